"""One source, two notebooks: stubs, ids, outputs, and that the stored notebooks are those of the sources."""

from __future__ import annotations

import re
import shlex
import sys
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import nbformat
import pytest

from course_utils.evaluation import results
from course_utils.workshop.authoring import notebooks
from course_utils.workshop.authoring.address import NOBODY, Address
from course_utils.workshop.authoring.notebooks import AuthoringError, build, notebook_path, out_of_date, to_stub

SOURCES = sorted((notebooks.ROOT / "solutions").glob("[0-9][0-9]_*.py"))
PROJECT = tomllib.loads((notebooks.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
VERSION, EXTRAS = PROJECT["version"], PROJECT["optional-dependencies"]
SOURCE = '''# %% [markdown]
# # Lab
#
# About {{ seconds }} s.

# %% tags=["exercise", "points:2"]
def double(x):
    """Twice x."""
    ### BEGIN SOLUTION
    # Hint: multiply.
    y = 2 * x
    return y
    ### END SOLUTION


# %% tags=["exercise", "points:1"]
### BEGIN SOLUTION
first: int = 1
second = first + 1
### END SOLUTION

# %%
print("the same")

# %%
print("the same")
'''


@pytest.fixture
def source(tmp_path: Path) -> Path:
    (tmp_path / "solutions").mkdir()
    (tmp_path / "labs").mkdir()
    path = tmp_path / "solutions" / "98_example.py"
    path.write_text(SOURCE, encoding="utf-8")
    return path


def test_the_lab_has_stubs_and_hints_and_no_answers(source: Path) -> None:
    text = "\n".join(cell.source for cell in build(source, "lab").cells)
    assert "2 * x" not in text and "first + 1" not in text and "SOLUTION" not in text
    assert '    # Hint: multiply.\n    raise NotImplementedError("your answer goes here")' in text
    assert "first = ...  # your answer goes here\nsecond = ..." in text


def test_the_solution_has_the_answers_and_no_markers(source: Path) -> None:
    text = "\n".join(cell.source for cell in build(source, "solution").cells)
    assert "y = 2 * x" in text and "SOLUTION" not in text and "# Lab, solved" in text


def test_every_line_of_a_lab_stands_in_its_solution() -> None:
    for source in SOURCES:
        for lab, solution in zip(build(source, "lab").cells, build(source, "solution").cells, strict=True):
            assert lab.id == solution.id
            if lab.cell_type == "code":
                extra = set(lab.source.splitlines()) - set(solution.source.splitlines())
                assert all("your answer goes here" in line for line in extra), extra


def test_ids_come_from_the_content(source: Path) -> None:
    before = [cell.id for cell in build(source, "lab").cells]
    assert len(set(before)) == len(before)  # two equal cells have two ids
    source.write_text(SOURCE.replace("# %% [markdown]", '# %%\nprint("new")\n\n# %% [markdown]', 1), encoding="utf-8")
    assert [cell.id for cell in build(source, "lab").cells][1:] == before


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("    ### END SOLUTION\n", "", "do not pair up"),
        ('"exercise", "points:2"', '"exercise"', "needs a tag like points"),
        ('tags=["exercise", "points:2"]', "", "exactly when it holds a solution"),
    ],
)
def test_a_bad_source_is_refused_with_its_cell(source: Path, old: str, new: str, message: str) -> None:
    source.write_text(SOURCE.replace(old, new, 1), encoding="utf-8")
    with pytest.raises(AuthoringError, match=f"98_example.py, cell 2.*{message}"):
        build(source, "lab")


def test_a_stub_in_a_nested_function_keeps_its_indent() -> None:
    code = "class A:\n    def f(self):\n        ### BEGIN SOLUTION\n        return 1\n        ### END SOLUTION"
    assert to_stub(code).splitlines()[-1] == '        raise NotImplementedError("your answer goes here")'


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_the_stored_notebooks_are_those_of_the_source(source: Path) -> None:
    assert out_of_date(source) == []


def test_a_changed_source_and_a_changed_notebook_are_noticed(source: Path) -> None:
    for kind in ("lab", "solution"):
        notebook = build(source, kind)
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.execution_count = 1
        nbformat.write(notebook, notebook_path(source, kind))
    assert out_of_date(source) == []
    lab = notebook_path(source, "lab")
    lab.write_text(lab.read_text(encoding="utf-8").replace("Hint: multiply", "Hint: add"), encoding="utf-8")
    assert out_of_date(source) == [
        "labs/98_example.ipynb differs from solutions/98_example.py; run: python -m course_utils notebooks 98_example"
    ]
    lab.unlink()
    source.write_text(SOURCE.replace("the same", "another"), encoding="utf-8")
    found = out_of_date(source)
    assert len(found) == 2 and "is missing" in found[0] and "differs" in found[1]


# --- renewed without a run -------------------------------------------------------------------------------------------

IMPORTS = "# %%\nfrom course_utils.old import (\n    one,\n    two,\n)\n\nprint(one)\n\n"


@pytest.fixture
def stored(source: Path) -> Path:
    """A source with both of its notebooks, each code cell with a number of its own as its output."""
    source.write_text(SOURCE.replace("# %% tags", IMPORTS + "# %% tags", 1), encoding="utf-8")
    for kind in ("lab", "solution"):
        notebook = build(source, kind)
        for number, cell in enumerate((cell for cell in notebook.cells if cell.cell_type == "code"), start=1):
            cell.execution_count = number
            cell.outputs = [
                nbformat.v4.new_output("execute_result", {"text/plain": f"{number}"}, execution_count=number)
            ]
        nbformat.write(notebook, notebook_path(source, kind))
    return source


def outputs(notebook: nbformat.NotebookNode) -> list[list[str]]:
    return [
        [output.data["text/plain"] for output in cell.outputs] for cell in notebook.cells if cell.cell_type == "code"
    ]


def test_moved_modules_and_other_words_keep_every_output(stored: Path) -> None:
    text = stored.read_text(encoding="utf-8").replace(
        "from course_utils.old import (\n    one,\n    two,\n)", "import room.new as one"
    )
    stored.write_text(text.replace("# About", "# Some words more.\n#\n# About"), encoding="utf-8")
    for kind in ("lab", "solution"):
        path, notebook = notebooks.renew(stored, kind)
        assert outputs(notebook) == [[str(number)] for number in range(1, len(outputs(notebook)) + 1)]
        assert "import room.new as one" in notebook.cells[1].source
        notebooks._store(path, notebook)
    assert out_of_date(stored) == []


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("print(one)", "print(two)"),  # another output
        ('print("the same")', 'print("the same")\n\n# %%\nprint("more")'),  # a new cell has none
        ("return y", "return y + 1"),  # in the solution alone
    ],
)
def test_a_cell_with_other_code_does_not_keep_its_output(stored: Path, old: str, new: str) -> None:
    stored.write_text(stored.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8")
    with pytest.raises(AuthoringError, match=r"1 cell\(s\) hold other code .* run python -m .*--keep-outputs"):
        notebooks.renew(stored, "solution")
    _, kept = notebooks.renew(stored, "solution", keep_outputs=True)
    counts = [cell.execution_count for cell in kept.cells if cell.cell_type == "code"]
    if "more" in new:  # what nobody has run stays empty, and `--check` will say so
        assert outputs(kept) == [["1"], ["2"], ["3"], ["4"], [], ["5"]] and counts == [1, 2, 3, 4, None, 6]
    else:
        assert outputs(kept) == [["1"], ["2"], ["3"], ["4"], ["5"]] and counts == [1, 2, 3, 4, 5]


def test_a_cell_that_goes_takes_its_output_with_it(stored: Path) -> None:
    stored.write_text(stored.read_text(encoding="utf-8").replace(IMPORTS, ""), encoding="utf-8")
    _, notebook = notebooks.renew(stored, "lab")
    assert outputs(notebook) == [["2"], ["3"], ["4"], ["5"]]
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [1, 2, 3, 4]
    assert [output.execution_count for cell in code for output in cell.outputs] == [1, 2, 3, 4]


def test_there_must_be_outputs_to_keep(source: Path) -> None:
    with pytest.raises(AuthoringError, match=r"labs/98_example\.ipynb is missing; run: python -m"):
        notebooks.renew(source, "lab")


def test_the_command_renews_all_notebooks_or_none(
    stored: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(notebooks, "ROOT", stored.parents[1])
    assert notebooks.main(["--sources"]) == 0
    assert capsys.readouterr().out == "0 of 2 notebooks renewed; none was run\n"
    stored.write_text(
        stored.read_text(encoding="utf-8").replace("# About", "# Nearly").replace("return y", "return y + 1"),
        encoding="utf-8",
    )
    before = notebook_path(stored, "lab").read_bytes()
    assert notebooks.main(["--sources"]) == 1
    assert notebook_path(stored, "lab").read_bytes() == before  # its words alone could have been renewed
    assert notebooks.main(["--sources", "--keep-outputs"]) == 0
    assert capsys.readouterr().out == "2 of 2 notebooks renewed; none was run\n"
    assert notebooks.main(["--check"]) == 0


# --- somebody's work -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "cell", "text"),
    [
        ("lab", 2, "def double(x):\n    return x + x"),
        ("lab", 4, 'print("the same")  # what does it print?'),
        ("solution", 0, "# My notes"),
    ],
)
@pytest.mark.parametrize("arguments", [[], ["--sources"]])
def test_work_in_a_notebook_is_not_overwritten(
    kind: str,
    cell: int,
    text: str,
    arguments: list[str],
    stored: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(notebooks, "ROOT", stored.parents[1])
    stored.write_text(stored.read_text(encoding="utf-8").replace("About {{ seconds }} s", "A lab"), encoding="utf-8")
    for each in ("lab", "solution"):
        notebooks._store(*notebooks.renew(stored, each))
        assert notebooks.changed_by_hand(stored, each) == []
    path = notebook_path(stored, kind)
    notebook = nbformat.read(path, as_version=4)
    notebook.cells[cell].source = text
    nbformat.write(notebook, path)
    before = path.read_bytes()
    assert notebooks.main(arguments) == 1
    assert path.read_bytes() == before
    said = capsys.readouterr().err
    assert f"was changed by hand (cell {cell + 1})" in said and "--discard-changes" in said


def test_an_answer_is_noticed_although_its_exercise_has_changed_since(stored: Path) -> None:
    path = notebook_path(stored, "lab")
    path.write_text(
        path.read_text(encoding="utf-8").replace("    # Hint: multiply.\\n", "").replace(notebooks.STUB, "no, 2 * x"),
        encoding="utf-8",
    )
    stored.write_text(
        stored.read_text(encoding="utf-8").replace("Twice x.", "Two times x.").replace("first + 1", "first + 2"),
        encoding="utf-8",
    )
    assert notebooks.changed_by_hand(stored, "lab") == [3, 4]


def test_without_the_repository_the_author_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(notebooks, "ROOT", tmp_path)  # as in site-packages
    for arguments in (["--check"], ["--sources"], []):
        assert notebooks.main(arguments) == 1
        assert "this command needs the repository" in capsys.readouterr().err


@pytest.mark.parametrize("folder", ["labs", "solutions"])
def test_stored_notebooks_are_whole(folder: str) -> None:
    """Outputs stored, no errors, no recorded times, every picture described."""
    for path in sorted((notebooks.ROOT / folder).glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
        assert outputs and not any(output.output_type == "error" for output in outputs), path.name
        assert not any("execution" in cell.metadata for cell in notebook.cells), path.name
        assert not any("image/png" in output.get("data", {}) for output in outputs), f"{path.name}: no alt text"
        # A warning would show a path of the author's machine, and differ on the next one.
        assert not any(output.get("name") == "stderr" for output in outputs), path.name
        for output in outputs:
            shown = output.get("data", {}).get("text/html", "")
            assert "<img" not in shown or 'alt="' in shown


def test_a_lab_has_what_every_lab_has() -> None:
    seconds = results.read("lab_seconds")["seconds"]
    for source in SOURCES:
        lab = build(source, "lab")
        first = lab.cells[0].source
        assert first.startswith("# Lab") and "**You will**" in first and "measured" in first
        assert "google.colab" in lab.cells[1].source and lab.cells[1].cell_type == "code"
        tags = [tag for cell in lab.cells for tag in cell.metadata.get("tags", [])]
        assert tags.count("exercise") >= 3 and tags.count("check") >= tags.count("exercise")
        text = "\n".join(cell.source for cell in lab.cells)
        assert "## Your experiment" in text
        if int(source.name[:2]) <= 18:  # no library that people use distils, or does a whole case
            assert re.search(r"^## The same (in|with) ", text, re.MULTILINE), "the library that people use comes last"
        assert max(seconds[source.stem].values()) <= 45


# --- the cell that installs the course on Colab ----------------------------------------------------------------------

PYTHON = """#!/bin/sh
case "$2" in
  pip) {pip};;
  *) {test};;
esac
"""


ADDRESS = Address("me", "course")


@pytest.fixture
def on_colab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], None]:
    """Run lab 21's first cell as on Colab, with a Python whose pip and whose import do what is said."""

    def run(pip: str, test: str) -> None:
        python = tmp_path / "python with spaces"
        python.write_text(
            PYTHON.format(pip=pip, test=test.replace("PYTHON", shlex.quote(sys.executable))), encoding="utf-8"
        )
        python.chmod(0o755)
        monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
        monkeypatch.setattr(sys, "executable", str(python))
        exec(compile(notebooks.install_cell("21_case_study", ADDRESS), "cell", "exec"), {})

    return run


def test_on_colab_the_cell_installs_the_version_of_the_notebook(
    on_colab: Callable[[str, str], None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    on_colab(f'echo "$@" > {shlex.quote(str(tmp_path / "asked"))}', 'exec PYTHON "$@"')  # a real import
    assert capsys.readouterr().out.endswith(f"The course is installed, version {VERSION}.\n")
    asked = (tmp_path / "asked").read_text(encoding="utf-8")
    assert asked.endswith(f" course-utils[lab21] @ git+{ADDRESS.repository}@v{VERSION}\n")


@pytest.mark.parametrize(
    ("pip", "test", "said"),
    [
        # The package of an earlier try is there, and pip fails all the same.
        ("echo ERROR: git clone did not run >&2; exit 1", f"echo {VERSION}", "git clone did not run"),
        ("exit 0", "echo ModuleNotFoundError: course_utils >&2; exit 1", "ModuleNotFoundError: course_utils"),
        ("exit 0", "echo 0.0.9", "0.0.9"),  # another version stayed
    ],
)
def test_on_colab_a_failed_install_never_says_installed(
    pip: str, test: str, said: str, on_colab: Callable[[str, str], None], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(RuntimeError, match=r"could not be installed\. Choose Runtime > Disconnect") as raised:
        on_colab(pip, test)
    assert said in str(raised.value)
    assert "is installed" not in capsys.readouterr().out


def test_on_colab_modules_that_were_loaded_before_are_noticed(
    on_colab: Callable[[str, str], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    numpy = ModuleType("numpy")
    monkeypatch.setattr(numpy, "__version__", "1.26.4", raising=False)
    monkeypatch.setitem(sys.modules, "numpy", numpy)
    with pytest.raises(RuntimeError, match="Restart session"):
        on_colab("exit 0", f"echo {VERSION}")
    assert "is installed" not in capsys.readouterr().out


def test_on_colab_a_course_without_an_address_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
    monkeypatch.setattr("subprocess.run", None)  # nothing is asked of an address that is nobody's
    with pytest.raises(RuntimeError, match=r"no public address yet.* own computer with `make lab`.* publish-as"):
        exec(notebooks.install_cell("09_lora", NOBODY), {})


def test_elsewhere_the_cell_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.run", None)
    for source in SOURCES:
        for address in (NOBODY, ADDRESS):
            exec(notebooks.install_cell(source.stem, address), {})


def test_the_cell_is_the_same_in_every_lab_but_for_its_extra() -> None:
    texts = {source.stem: notebooks.install_cell(source.stem, ADDRESS) for source in SOURCES}
    others = {text for stem, text in texts.items() if not stem.startswith("21")}
    assert len(others) == 1 and texts["21_case_study"].replace("[lab21]", "") in others
    assert not [
        source.name for source in SOURCES if re.search(r"pip install|urlretrieve", source.read_text(encoding="utf-8"))
    ]
    assert {*EXTRAS["lab21"]} <= {*EXTRAS["lab"]}  # `make` installs it for all
