"""The house: rooms that use only rooms above them, one meaning for a name, front doors that open, and a true guide."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import jupytext
import pytest
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

from course_utils.errors import CourseError
from course_utils.workshop.authoring import rooms

ROOT = Path(__file__).parents[1]
LIBRARY = ROOT / "course_utils"
CHAPTERS = {path.stem.split("_", 1)[1] for path in (ROOT / "book").glob("[0-9][0-9]_*.md")}
DOORS = sorted(stub.parent for stub in LIBRARY.rglob("__init__.pyi"))
#: How many lines of a lab's first cell of imports may import from the course.
IMPORT_LINES = 4
#: How many lines a function of the library may have, its docstring not counted.
FUNCTION_LINES = 60


def test_the_layers_hold_and_there_are_no_circles(capsys: pytest.CaptureFixture[str]) -> None:
    status = lint_imports(config_filename=str(ROOT / "pyproject.toml"), no_cache=True)
    assert status == EXIT_STATUS_SUCCESS, capsys.readouterr().out


def test_each_room_stands_in_the_map_and_in_the_layers() -> None:
    folders = {folder.name for folder in LIBRARY.iterdir() if folder.is_dir() and (folder / "__init__.py").exists()}
    assert folders == set(rooms.ROOMS)
    layers = re.search(r"layers = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.DOTALL)
    assert layers is not None
    assert re.findall(r'"course_utils\.(\w+)"', layers[1])[: len(rooms.ROOMS)] == list(reversed(rooms.ROOMS))


def test_the_map_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert rooms.main([]) == 0
    printed = capsys.readouterr().out.splitlines()
    assert len(printed) == len(rooms.ROOMS)
    assert printed[0].endswith("uses no other room")
    for number, line in enumerate(printed):
        used = re.findall(r"(\w+) \(\d+\)", line)
        assert all(rooms.ROOMS.index(room) < number for room in used), line


def test_no_module_hides_what_a_front_door_gives() -> None:
    """Once `room/model_card.py` is imported, `from room import model_card` gives that module, and no function."""
    for stub in LIBRARY.rglob("__init__.pyi"):
        modules = {file.stem for file in stub.parent.iterdir() if file.suffix == ".py" or file.is_dir()}
        lines = [line for line in ast.parse(stub.read_text(encoding="utf-8")).body if isinstance(line, ast.ImportFrom)]
        names = {one.asname or one.name for line in lines if line.module for one in line.names}
        assert not names & modules, stub


def test_a_name_has_one_meaning() -> None:
    """A module's name may stand in several rooms only where it is that of a chapter or of a method."""
    homes = defaultdict(set)
    for file in LIBRARY.rglob("*.py"):
        if file.stem not in ("__init__", "__main__") and "chapter" not in file.parts:  # the template of a chapter
            homes[file.stem].add(file.relative_to(LIBRARY).parent.as_posix())
    methods = {file.stem for file in (LIBRARY / "methods").glob("*.py")}
    for name, places in homes.items():
        shared: set[str] = set()
        if name in CHAPTERS | {"quality"}:  # what is asked, drawn and measured for one chapter
            shared |= {"exercises", "plots", "workshop/experiments"}
        if name in methods:  # a method and its checkpoints
            shared |= {"methods", "checkpoints"}
        if name == "errors":  # each room's own
            shared = places
        meanings = len(places - shared) + bool(places & shared)
        assert meanings == 1, f"{name} means several things: {sorted(places)}"


def test_every_error_is_a_course_error() -> None:
    """So that one `except CourseError` catches what the course refuses, and a bug of ours is told from it."""
    found = set()
    for file in LIBRARY.rglob("*.py"):
        names = [
            node.name
            for node in ast.parse(file.read_text(encoding="utf-8")).body
            if isinstance(node, ast.ClassDef) and node.name.endswith("Error")
        ]
        if names:
            module = import_module(".".join(file.relative_to(ROOT).with_suffix("").parts))
            found |= {getattr(module, name) for name in names}
    assert len(found) > 20 and not [error.__name__ for error in found if not issubclass(error, CourseError)]


@pytest.mark.parametrize("folder", DOORS, ids=lambda folder: folder.relative_to(ROOT).as_posix())
def test_a_front_door_opens(folder: Path) -> None:
    package = ".".join(folder.relative_to(ROOT).parts)
    room = import_module(package)
    modules = {file.stem for file in folder.glob("*.py")} | {inner.name for inner in folder.iterdir() if inner.is_dir()}
    for line in ast.parse((folder / "__init__.pyi").read_text(encoding="utf-8")).body:
        assert isinstance(line, ast.ImportFrom)
        for name in line.names:
            assert name.asname == name.name, f"{package}: write 'as {name.name}', or type checkers do not see it"
            value = getattr(room, name.name)
            if line.module is not None:  # a function called like a module would hide it, or be hidden by it
                assert name.name not in modules, f"{package}: {name.name} is a module's name, too"
                assert value is getattr(import_module(f"{package}.{line.module}"), name.name)
    with pytest.raises(AttributeError, match="it has"):
        _ = room.no_such_name


def imports(code: str) -> list[str]:
    """The modules of the course that a piece of code imports from, one for each line that does."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "course_utils":
            found.append(node.module or "")
        if isinstance(node, ast.Import):
            found += [name.name for name in node.names if name.name.split(".")[0] == "course_utils"]
    return found


def missing(code: str) -> list[str]:
    """The names that a piece of code imports from the course, and that are not there."""
    found = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "course_utils":
            room = import_module(node.module or "")
            for name in (f"{node.module}.{one.name}" for one in node.names):
                is_module = find_spec(name) is not None  # which may be imported from its room, too
                if not is_module and not hasattr(room, name.rpartition(".")[2]):
                    found.append(name)
    return found


def code_of(file: Path) -> list[str]:
    """The pieces of Python in a lab's source or in a page, without what only runs elsewhere."""
    if file.suffix == ".py":
        cells = jupytext.read(file).cells
        return [
            re.sub(r"^\s*[%!].*$", "", cell.source, flags=re.MULTILINE) for cell in cells if cell.cell_type == "code"
        ]
    return re.findall(r"^```python\n(.*?)^```", file.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize(
    "file", sorted([*(ROOT / "solutions").glob("*.py"), *(ROOT / "book").glob("*.md")]), ids=lambda file: file.name
)
def test_labs_and_pages_come_in_by_the_front_door(file: Path) -> None:
    """They import from `course_utils` or from one level below it, never from the workshop; a lab with few lines."""
    used = [imports(code) for code in code_of(file)]
    for module in {module for modules in used for module in modules}:
        assert module.count(".") <= 1, f"{file.name} imports from {module}: take it from its room"
        assert not module.startswith("course_utils.workshop"), f"{file.name} imports from the workshop"
    assert not [name for code in code_of(file) for name in missing(code)], f"{file.name} imports what is not there"
    if file.suffix == ".py":
        first = next(modules for modules in used if modules)
        assert len(first) <= IMPORT_LINES, f"{file.name} begins with {len(first)} lines: {', '.join(first)}"


def test_the_guide_counts_right() -> None:
    """The evening's reading in `course_utils/README.md`: each file with its lines, and their sum."""
    guide = (LIBRARY / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| \d+ \| \[`([^`]+)`\]\(([^)]+)\) \| (\d+) \|", guide, re.MULTILINE)
    assert 8 <= len(rows) <= 12
    total = 0
    for shown, link, lines in rows:
        counted = len((LIBRARY / link).read_text(encoding="utf-8").splitlines())
        assert shown == link and int(lines) == counted, f"course_utils/README.md: {link} has {counted} lines"
        total += counted
    assert f"{total:,} lines" in guide, f"course_utils/README.md: the files have {total:,} lines together"


def test_a_function_is_read_at_one_sitting() -> None:
    """Every function of the library has few enough lines, its docstring not counted; there is no exception."""
    long = []
    for file in LIBRARY.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (lines := length(node)) > FUNCTION_LINES:
                long.append(f"{file.relative_to(LIBRARY)}:{node.lineno} {node.name} has {lines}")
    assert not long, f"more than {FUNCTION_LINES} lines, so take named steps out of them: {', '.join(sorted(long))}"


def length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """How many lines a function has from `def` to its end, without its docstring."""
    first, *_ = function.body
    docstring = (first.end_lineno or 0) - first.lineno + 1 if ast.get_docstring(function) is not None else 0
    return (function.end_lineno or 0) - function.lineno + 1 - docstring
