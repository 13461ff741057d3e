"""`python -m course_utils new` writes a chapter that runs at once, and overwrites nothing."""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from course_utils.exercises import checking
from course_utils.workshop.authoring import notebooks
from course_utils.workshop.authoring.new_chapter import TEMPLATE, ChapterError, start

ROOT = notebooks.ROOT


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "book").mkdir()
    shutil.copy(ROOT / "_toc.yml", tmp_path)
    return tmp_path


def files(folder: Path) -> dict[Path, str]:
    return {path: path.read_text(encoding="utf-8") for path in folder.rglob("*") if path.is_file()}


def test_a_new_chapter_is_whole(root: Path) -> None:
    captions = [part["caption"] for part in yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))["parts"]]
    written = start(root, 98, "an_example", "An example", part=captions[0])
    assert all(path.is_file() for path in written)
    chapters = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))["parts"][0]["chapters"]
    assert chapters[-1]["file"] == "book/98_an_example"  # by its number behind the others
    assert [entry["file"] for entry in chapters[-1]["sections"]] == ["labs/98_an_example", "solutions/98_an_example"]

    page = (root / "book" / "98_an_example.md").read_text(encoding="utf-8")
    model = (ROOT / "book" / "09_lora.md").read_text(encoding="utf-8")
    headings = [line for line in page.splitlines() if line.startswith("## ")]
    assert [line for line in model.splitlines() if line in headings] == headings  # the order of the model chapter

    cells = notebooks.build(root / "solutions" / "98_an_example.py", "lab").cells
    assert any("NotImplementedError" in cell.source for cell in cells)
    assert "{" not in page.split("## Take-aways")[1].replace("{bibliography}", "")


def test_the_contents_get_more_lines_and_keep_the_old_ones(root: Path) -> None:
    before = (root / "_toc.yml").read_text(encoding="utf-8").splitlines()
    start(root, 98, "an_example", "An: example")
    after = (root / "_toc.yml").read_text(encoding="utf-8").splitlines()
    new = [line for line in after if "98" in line or "An: example" in line]
    assert len(new) == 4 and len(after) == len(before) + 5  # and one line `sections:`
    first = after.index(new[0])
    assert after[:first] + after[first + 5 :] == before


def test_a_chapter_stands_in_the_order_of_the_numbers(root: Path) -> None:
    (root / "_toc.yml").write_text(
        (root / "_toc.yml").read_text(encoding="utf-8").replace("/03_data", "/30_data"), encoding="utf-8"
    )
    start(root, 3, "an_example", "An example", part="Tuning basics")
    chapters = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))["parts"][0]["chapters"]
    names = [chapter["file"] for chapter in chapters]
    assert names.index("book/03_an_example") == names.index("book/02_parameters_losses_optimisers") + 1


def test_the_template_is_a_chapter_and_all_its_words_are_replaced(root: Path) -> None:
    """It is one that ruff reads and that runs; what is left of its name would be a mistake of every new chapter."""
    written = start(root, 7, "windows_98", 'Windows 98, "again"')
    for path in written[:-1]:
        assert (
            TEMPLATE / str(path.relative_to(root)).replace("07", "98").replace("windows_98", "an_example")
        ).is_file()
        text = path.read_text(encoding="utf-8")
        left = text.replace("windows_98", "").replace("Windows 98", "")
        assert "98" not in left and "an_example" not in left and "An example" not in left
        assert "windows_98" in text or path.suffix == ".py"
    titles = [line for line in (root / "_toc.yml").read_text(encoding="utf-8").splitlines() if "Windows" in line]
    assert yaml.safe_load(titles[0]) == {"title": 'Solution 7: Windows 98, "again"'}


def test_without_a_part_it_joins_the_chapters_and_not_the_reference_pages(root: Path) -> None:
    start(root, 98, "an_example", "An example")
    parts = yaml.safe_load((root / "_toc.yml").read_text(encoding="utf-8"))["parts"]
    files_of = {part["caption"]: [entry["file"] for entry in part["chapters"]] for part in parts}
    assert "book/98_an_example" not in files_of["Reference"]
    assert sum("book/98_an_example" in names for names in files_of.values()) == 1


def test_its_exercise_works(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start(root, 98, "an_example", "An example")
    monkeypatch.setattr(checking, "_EXERCISES", {})
    runpy.run_path(str(root / "course_utils" / "exercises" / "an_example.py"))
    answers = runpy.run_path(str(root / "tests" / "answers" / "an_example.py"))
    for name, wrong in answers["WRONG"].items():
        for answer, words in wrong:
            assert words in checking.run_check(name, answer).message
        for answer in answers["RIGHT"][name]:
            assert checking.run_check(name, answer).status == "passed"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0, "name", "Title"), "1 to 99, got 0"),
        ((98, "LoRA family", "Title"), "lower-case letters, digits and underscores, got 'LoRA family'"),
        ((98, "name", " "), "the title is empty"),
        ((98, "name", "Title", "No part"), "has no part 'No part'; it has 'Tuning basics'"),
        ((97, "name", "Title"), "chapter 97 exists already: 97_other.md"),
        ((98, "lora", "Title"), "exercises/lora.py exists already"),
    ],
    ids=str,
)
def test_what_is_refused_writes_nothing(root: Path, arguments: tuple[int, str, str], message: str) -> None:
    (root / "book" / "97_other.md").touch()
    (root / "course_utils" / "exercises").mkdir(parents=True)
    (root / "course_utils" / "exercises" / "lora.py").touch()
    before = files(root)
    with pytest.raises(ChapterError, match=message):
        start(root, *arguments)
    assert files(root) == before


def test_the_command_says_what_is_wrong() -> None:
    command = [sys.executable, "-m", "course_utils", "new", "9", "again", "LoRA again"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1
    assert "chapter 9 exists already: 09_lora.md" in done.stderr
