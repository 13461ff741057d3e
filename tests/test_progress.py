"""What has been solved is read from saved notebooks, and the start notebook shows it."""

from __future__ import annotations

import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from course_utils.exercises.checking import run_check
from course_utils.exercises.solved import ProgressError, progress
from course_utils.workshop.authoring import my_labs

ROOT = Path(__file__).parents[1]


def lora_forward(x, W, b, A, B, alpha):  # type: ignore[no-untyped-def]
    return x @ W.T + b + alpha / A.shape[0] * (x @ A.T @ B.T)


def say(file: Path, exercise: str, answer: object) -> None:
    """Save a lab as it is after an answer was checked: with what the check really says."""
    notebook = nbformat.read(file, as_version=4)
    cell = next(cell for cell in notebook.cells if f'check("{exercise}"' in cell.source)
    cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text=f"{run_check(exercise, answer)}\n")]
    nbformat.write(notebook, file)


@pytest.fixture
def mine(tmp_path: Path) -> Path:
    for name in ("08_adapters", "09_lora", "10_lora_family"):
        shutil.copy(ROOT / "labs" / f"{name}.ipynb", tmp_path)
    return tmp_path


def test_solved_wrong_and_open_are_told_apart(mine: Path) -> None:
    assert progress(mine).next == ("08_adapters", "adapters.bottleneck")
    say(mine / "09_lora.ipynb", "lora.forward", lora_forward)
    say(mine / "09_lora.ipynb", "lora.initialise", lambda inputs, outputs, rank: None)
    say(mine / "09_lora.ipynb", "lora.merge", lambda W, A, B, alpha: 1 / 0)
    (mine / "09_lora.old-1.ipynb").write_text("old", encoding="utf-8")
    found = progress(mine)
    lab = found.labs[1]
    assert (lab.solved, lab.next) == ({"lora.forward"}, "lora.initialise")
    assert lab.tried == {"lora.initialise", "lora.merge"}
    assert (lab.earned, sum(lab.points.values())) == (3, 9) and lab.title == "Lab 9: LoRA"
    assert found.next == ("09_lora", "lora.initialise")  # not back to lab 8
    assert "All together: 3 of 30 points" in str(found) and "| 1 of 4 | 3 of 9 |" in found._repr_markdown_()


def test_every_exercise_is_counted_with_its_points() -> None:
    open_labs, solutions = progress(ROOT / "labs"), progress(ROOT / "solutions")
    assert len(open_labs.labs) == len(solutions.labs) == len(list((ROOT / "labs").glob("*.ipynb")))
    assert not any(lab.solved or lab.tried for lab in open_labs.labs)
    assert [lab.points for lab in open_labs.labs] == [lab.points for lab in solutions.labs]
    assert all(lab.next is None for lab in solutions.labs) and solutions.next is None
    assert "All is solved." in str(solutions)


@pytest.mark.parametrize("content", ["", "{", "[]", '{"cells": 3}', '{"cells": [{}]}', "\udc80"])
def test_a_broken_notebook_is_named_and_the_others_count(mine: Path, content: str) -> None:
    (mine / "10_lora_family.ipynb").write_bytes(content.encode("utf-8", "surrogatepass"))
    found = progress(mine)
    assert [lab.name for lab in found.labs] == ["08_adapters", "09_lora"]
    assert "10_lora_family.ipynb was left out: it is no notebook" in str(found)


def test_copies_comments_and_older_messages_do_not_count(mine: Path) -> None:
    say(mine / "09_lora.ipynb", "lora.forward", lora_forward)
    shutil.copy(mine / "09_lora.ipynb", mine / "09_lora-Copy1.ipynb")
    notebook = nbformat.read(mine / "09_lora.ipynb", as_version=4)
    for cell in notebook.cells:
        if 'check("lora.forward"' in cell.source:
            cell.source = f'# check("lora.old")\n{cell.source}'
            cell.outputs[0].text += f"{run_check('lora.forward', lambda *a: 1)}\n"  # tried again, and worse
    nbformat.write(notebook, mine / "09_lora.ipynb")
    found = progress(mine)
    assert [lab.name for lab in found.labs] == ["08_adapters", "09_lora", "10_lora_family"]
    assert found.labs[1].solved == set() and found.labs[1].next == "lora.forward"


def test_nothing_is_called_solved_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "09_lora.ipynb").write_text("{}", encoding="utf-8")
    assert "All is solved" not in str(progress(tmp_path)) and "09_lora.ipynb was left out" in str(progress(tmp_path))


def test_where_there_are_no_labs_it_says_so(tmp_path: Path) -> None:
    with pytest.raises(ProgressError, match="make lab"):
        progress(tmp_path)
    with pytest.raises(ProgressError, match="there is no folder"):
        progress(tmp_path / "nowhere")


def test_the_start_notebook_runs_where_make_lab_puts_it(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "labs", tmp_path / "labs")
    my_labs.update(tmp_path)
    folder = tmp_path / "my_labs"
    notebook = nbformat.read(folder / my_labs.START, as_version=4)
    words = "".join(cell.source for cell in notebook.cells)
    links = {part.split(")")[0] for part in words.split("](")[1:]}
    assert links and all((folder / link).is_file() for link in links)
    NotebookClient(notebook, resources={"metadata": {"path": str(folder)}}).execute()
    shown = next(cell for cell in notebook.cells if cell.cell_type == "code").outputs[0].data["text/markdown"]
    assert "| [Lab 9: LoRA](09_lora.ipynb) | 0 of 4 | 0 of 9 | `lora.forward` |" in shown
    assert "Go on with why.majority in 01_why_fine_tune.ipynb." in shown
