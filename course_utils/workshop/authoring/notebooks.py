"""From one source to two notebooks: `python -m course_utils notebooks`.

The source of a lab is `solutions/NN_name.py` (jupytext percent format). Cells are tagged `exercise`, `check` and
`points:2`; the answer stands between `### BEGIN SOLUTION` and `### END SOLUTION`. From it come

* `solutions/NN_name.ipynb`, with the answers, and
* `labs/NN_name.ipynb`, with a stub in the place of each answer; hints (`# Hint: ...`) stay.

`# {{ install }}` stands for the cell that installs the course on Colab, the same in every lab.

Both are executed and stored with their outputs. Cell ids come from the content, and no times are recorded, so the
same source gives the same file. `--check` makes nothing and compares. `--sources` runs nothing: it renews texts and
code where no output can differ, because only words, import lines or the course's address changed.

A lab that somebody has worked in is never overwritten, except with `--discard-changes`.
"""

from __future__ import annotations

import argparse
import ast
import copy
import hashlib
import math
import os
import re
import sys
import time
import tomllib
from difflib import SequenceMatcher
from functools import cache, partial
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import torch
from joblib import Parallel, delayed
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

from course_utils.errors import CourseError
from course_utils.evaluation import results
from course_utils.workshop.authoring import address
from course_utils.workshop.experiments import store

#: The repository; where only the package is installed, the folder that it lies in (`repository_root` tells them apart).
ROOT = next(above.parent for above in Path(__file__).resolve().parents if above.name == "course_utils")
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
STUB = "your answer goes here"
_SECONDS = "lab_seconds"
_COMMAND = "python -m course_utils notebooks"
_KINDS = ("lab", "solution")
#: It asks a fresh process, for pip may succeed and the import still fail; and the kernel may hold older modules.
_INSTALL = """\
# On Colab this cell installs the course. Everywhere else it does nothing.
import sys

if "google.colab" in sys.modules:
    import subprocess
    from importlib.metadata import version

    print("Installing the course (a minute or two) ...", flush=True)
    course = "course-utils{{ extra }} @ git+{{ repository }}@v{{ version }}"
    test = "import course_utils.exercises as e; from importlib.metadata import version; print(version('course-utils'))"
    steps = [["-m", "pip", "install", "--quiet", course], ["-c", test]]
    done = [subprocess.run([sys.executable, *step], capture_output=True, text=True) for step in steps]
    said = "\\n".join(step.stdout + step.stderr for step in done)[-2000:]
    if any(step.returncode for step in done) or done[1].stdout.split() != ["{{ version }}"]:
        raise RuntimeError(
            "The course could not be installed. Choose Runtime > Disconnect and delete runtime, and run this cell "
            "again. If it fails again, report these lines:\\n" + said
        )
    if any(name in sys.modules and sys.modules[name].__version__ != version(name) for name in ("numpy", "pandas")):
        raise RuntimeError("Nearly done: choose Runtime > Restart session, and run all cells from the top.")
    print("The course is installed, version {{ version }}.")"""
#: In its place, as long as the course has no address: pip would ask for a repository that does not exist.
_NO_INSTALL = """\
# On Colab this cell would install the course. Everywhere else it does nothing.
import sys

if "google.colab" in sys.modules:
    raise RuntimeError(
        "This copy of the course has no public address yet, so Colab cannot install it. Run the lab on your own "
        "computer with `make lab`, or ask whoever gave it to you: one command of the course, publish-as, sets the "
        "address in all labs."
    )"""
_METADATA: dict[str, Any] = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}


class AuthoringError(CourseError, ValueError):
    """A lab's source is not as it must be; the message names the file and the cell."""


def repository_root() -> Path:
    """The repository, for the commands that write into it.

    Raises:
        AuthoringError: only the package is installed, as on Colab, or this is a copy for students.
    """
    if not (ROOT / "solutions").is_dir():
        raise AuthoringError(
            f"this command needs the repository with the labs' sources, and {ROOT} holds no folder solutions. "
            "Clone the repository, and run the command in it after `make`."
        )
    return ROOT


def main(arguments: list[str]) -> int:
    """Write or check the notebooks."""
    parser = argparse.ArgumentParser(prog=_COMMAND, description="Make the notebooks of labs/ and solutions/.")
    parser.add_argument("labs", nargs="*", metavar="LAB", help="NN_name; default: all")
    parser.add_argument("--check", action="store_true", help="change nothing; fail if a notebook is out of date")
    parser.add_argument("--time", action="store_true", help="run them and write down their seconds, but no notebook")
    parser.add_argument("--jobs", type=int, default=1, help="with --time: notebooks that run at once (default 1)")
    parser.add_argument(
        "--sources", action="store_true", help="run nothing: renew texts and imports, keep the stored outputs"
    )
    parser.add_argument(
        "--keep-outputs", action="store_true", help="with --sources: cells with other code keep theirs, too"
    )
    parser.add_argument("--discard-changes", action="store_true", help="overwrite notebooks that somebody worked in")
    options = parser.parse_args(arguments)
    if options.keep_outputs and not options.sources:
        parser.error("--keep-outputs goes with --sources")
    try:
        root = repository_root()
    except AuthoringError as error:
        print(error, file=sys.stderr)
        return 1
    found = {path.stem: path for path in sources(root)}
    unknown = set(options.labs) - set(found)
    if unknown:
        parser.error(f"no lab {', '.join(sorted(unknown))}; there are {', '.join(found)}")
    chosen = options.labs or list(found)
    try:
        if options.check:
            stale = [line for name in chosen for line in out_of_date(found[name])]
            print("\n".join(stale) or f"{2 * len(chosen)} notebooks are up to date with their sources")
            return 1 if stale else 0
        if options.time:
            _time([found[name] for name in chosen], options.jobs)
            return 0
        if not options.discard_changes:
            for name in chosen:
                _refuse_changed(found[name])
        if options.sources:  # all or none: a refusal leaves every notebook as it was
            renewed = [renew(found[name], kind, options.keep_outputs) for name in chosen for kind in _KINDS]
            written = sum(_store(*one) for one in renewed)
            print(f"{written} of {len(renewed)} notebooks renewed; none was run")
            return 0
        for name in chosen:
            _make(found[name])
    except AuthoringError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


def sources(root: Path) -> list[Path]:
    """The sources of all labs, in the order of their numbers."""
    return sorted((root / "solutions").glob("[0-9][0-9]_*.py"))


def renew_install_cells(root: Path) -> list[Path]:
    """Put the address that `_config.yml` holds now into every notebook, and return those that changed.

    Only the cell that installs the course on Colab is written: outputs and a learner's answers stay.
    """
    where, changed = address.stored(root), []
    for source in sources(root):
        text = install_cell(source.stem, where)
        for path in (notebook_path(source, kind) for kind in _KINDS):
            if not path.is_file():
                continue
            notebook = nbformat.read(path, as_version=4)
            for cell in _code(notebook):
                if "google.colab" in cell.source:
                    cell.source = text
            if _store(path, notebook):
                changed.append(path)
    return changed


def _make(source: Path) -> None:
    """Execute a lab and its solution, note the seconds, and store both."""
    executed, seconds = {}, {}
    notebook_path(source, "lab").parent.mkdir(exist_ok=True)
    for kind in _KINDS:
        print(f"running the {kind} of {source.stem} ...", file=sys.stderr, flush=True)
        executed[kind], seconds[kind] = _run(source, kind)
    store.update(_SECONDS, _COMMAND, partial(_with_seconds, "seconds", source.stem, seconds))
    for kind, notebook in executed.items():
        # The text shows the seconds that were measured just now.
        for fresh, cell in zip(build(source, kind).cells, notebook.cells, strict=True):
            cell.source = fresh.source
        path = notebook_path(source, kind)
        _store(path, notebook)
        print(f"wrote {path.relative_to(ROOT)} ({seconds[kind]:.0f} s)", file=sys.stderr)


def _store(path: Path, notebook: NotebookNode) -> bool:
    """Write a notebook in one step; False where it stands there already."""
    text = nbformat.writes(notebook) + "\n"
    if path.is_file() and path.read_text(encoding="utf-8") == text:
        return False
    unfinished = path.with_suffix(".partial")
    unfinished.write_text(text, encoding="utf-8")
    os.replace(unfinished, path)
    return True


def renew(source: Path, kind: str, keep_outputs: bool = False) -> tuple[Path, NotebookNode]:
    """The notebook of a source with the outputs that are stored, without a run.

    A cell keeps its output where its code is the same, the import lines aside: a module that moved prints what it
    printed before. Texts may change freely.

    Args:
        source: `solutions/NN_name.py`.
        kind: "lab" or "solution".
        keep_outputs: a cell whose code changed keeps the old output as well; its author knows that it still holds.

    Raises:
        AuthoringError: a cell holds other code than the stored one, or there is no stored notebook.
    """
    path = notebook_path(source, kind)
    if not path.is_file():
        raise AuthoringError(f"{path.parent.name}/{path.name} is missing; run: {_COMMAND} {source.stem}")
    notebook = build(source, kind)
    old, new = _code(nbformat.read(path, as_version=4)), _code(notebook)
    matcher = SequenceMatcher(None, [_effect(cell) for cell in old], [_effect(cell) for cell in new], autojunk=False)
    changed = []
    for same, start, stop, first, last in matcher.get_opcodes():
        if same == "equal" or (keep_outputs and stop - start == last - first):
            for before, cell in zip(old[start:stop], new[first:last], strict=True):
                cell.outputs, cell.execution_count = before.outputs, before.execution_count
        else:
            changed += new[first:last]
    if changed and not keep_outputs:
        lines = next((line for line in changed[0].source.splitlines() if line.strip()), "")
        raise AuthoringError(
            f"{path.parent.name}/{path.name}: {len(changed)} cell(s) hold other code than the notebook, the first one "
            f"begins with {lines!r}. Their outputs may differ: run {_COMMAND} {source.stem}, or add --keep-outputs if "
            "you know that they do not."
        )
    for position, cell in enumerate(new, start=1):
        if cell.execution_count is not None:
            cell.execution_count = position  # as if the notebook had been run from its top
            for output in cell.outputs:
                if "execution_count" in output:
                    output.execution_count = position
    return path, notebook


def _code(notebook: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def _effect(cell: NotebookNode) -> str:
    """What a code cell does, in a form that import lines, comments and layout do not change."""
    if "google.colab" in cell.source:
        return "installs the course on Colab"  # and has no output anywhere else
    try:
        tree = ast.parse(cell.source)
    except SyntaxError:  # a magic command
        return str(cell.source)
    for node in ast.walk(tree):
        for field in ("body", "orelse", "finalbody"):
            if isinstance(statements := getattr(node, field, None), list):
                setattr(node, field, [one for one in statements if not isinstance(one, ast.Import | ast.ImportFrom)])
    return ast.dump(tree)


def changed_by_hand(source: Path, kind: str) -> list[int]:
    """Which cells of a stored notebook somebody has changed or filled in, counted from 1.

    A cell keeps its id when it is edited, and the id comes from the source. So a cell with a known id and another text
    was edited; and so was a cell of an exercise without a stub, even where the source has moved on since.
    """
    path = notebook_path(source, kind)
    if not path.is_file():
        return []
    filled = re.compile(r"\{\{ \w+ \}\}")  # these texts change without anybody's hand
    raw = {cell.id: cell.source for cell in _identified(source)}
    fresh = {cell.id: cell.source for cell in build(source, kind).cells if not filled.search(raw[cell.id])}
    found = []
    for position, cell in enumerate(nbformat.read(path, as_version=4).cells, start=1):
        edited = cell.source != fresh.get(cell.get("id"), cell.source)
        answered = kind == "lab" and "exercise" in cell.metadata.get("tags", []) and STUB not in cell.source
        if edited or answered:
            found.append(position)
    return found


def _refuse_changed(source: Path) -> None:
    for kind in _KINDS:
        if changed := changed_by_hand(source, kind):
            path = notebook_path(source, kind)
            raise AuthoringError(
                f"{path.parent.name}/{path.name} was changed by hand (cell {', '.join(map(str, changed))}), and would "
                f"be overwritten. Copy it to another place first; then add --discard-changes. What should last goes "
                f"into solutions/{source.name}; your own answers go into my_labs (make lab)."
            )


def _run(source: Path, kind: str) -> tuple[NotebookNode, float]:
    """The executed notebook, and how many seconds it took."""
    started = time.perf_counter()
    notebook = _execute(build(source, kind), source)
    return notebook, round(time.perf_counter() - started, 1)


def _time(chosen: list[Path], jobs: int) -> None:
    """Run notebooks where they are, on a GPU perhaps, and write only their seconds down."""
    wanted = [(source, kind) for source in chosen for kind in _KINDS]
    work = Parallel(n_jobs=jobs, backend="threading", return_as="generator")  # each kernel is a process of its own
    place = "gpu_seconds" if torch.cuda.is_available() else "seconds"
    for (source, kind), (_, seconds) in zip(wanted, work(delayed(_run)(*one) for one in wanted), strict=True):
        print(f"the {kind} of {source.stem} took {seconds:.0f} s", file=sys.stderr, flush=True)
        store.update(_SECONDS, _COMMAND, partial(_with_seconds, place, source.stem, {kind: seconds}, at_once=jobs))


def _with_seconds(
    place: str, stem: str, measured: dict[str, float], stored: dict[str, Any], at_once: int = 1
) -> dict[str, Any]:
    """The content of the file of seconds, with new ones in "seconds" or in "gpu_seconds"."""
    known = {key: stored[key] for key in ("seconds", "gpu_seconds", "gpu") if key in stored}
    if place == "gpu_seconds":
        known["gpu"] = {"device": results.device(), "at_once": at_once}
    seconds = stored.get(place, {})
    return known | {place: dict(sorted((seconds | {stem: seconds.get(stem, {}) | measured}).items()))}


def notebook_path(source: Path, kind: str) -> Path:
    """Where the notebook of a source goes; `kind` is "lab" or "solution"."""
    return source.parents[1] / ("labs" if kind == "lab" else "solutions") / f"{source.stem}.ipynb"


#: What a lab calls the link to its solution, and a solution the one to its lab.
OTHER = {"lab": "its solution", "solution": "the lab itself"}


def build(source: Path, kind: str) -> NotebookNode:
    """The notebook of a source, not executed.

    Args:
        source: `solutions/NN_name.py`.
        kind: "lab" or "solution".

    Raises:
        AuthoringError: the markers of an answer do not pair up, an exercise has no points, or a picture no
            alternative text.
    """
    notebook = nbformat.v4.new_notebook(cells=_identified(source))
    notebook.metadata = nbformat.from_dict(copy.deepcopy(_METADATA))
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for position, cell in enumerate(notebook.cells):
        _check_cell(cell, f"{source.name}, cell {position + 1}")
        cell.metadata.pop("lines_to_next_cell", None)  # jupytext's note on the layout of the source
        cell.source = _fill(cell.source, source.stem)
        if cell.cell_type == "code":
            cell.source = without_markers(cell.source) if kind == "solution" else to_stub(cell.source)
            cell.outputs, cell.execution_count = [], None
        elif kind == "solution" and position == 0:
            cell.source = re.sub(r"^# (.*)$", r"# \1, solved", cell.source, count=1, flags=re.MULTILINE)
    notebook.cells[0].source += f"\n\n{_ways(source, kind)}"
    return notebook


def _ways(source: Path, kind: str) -> str:
    """Where one can go from here: the chapter's page, the other one of lab and solution, the ones before and after."""
    other = {"lab": "solution", "solution": "lab"}[kind]
    ways = [
        f"[the chapter's page](../book/{source.stem}.md)",
        f"[{OTHER[kind]}](../{other}s/{source.stem}.ipynb)",
    ]
    row = sources(source.parents[1])
    place = row.index(source) if source in row else 0
    ways += [f"[the {kind} before](./{before.stem}.ipynb)" for before in row[max(place - 1, 0) : place]]
    ways += [f"[the next {kind}](./{after.stem}.ipynb)" for after in row[place + 1 : place + 2]]
    return " · ".join(ways)


def _identified(source: Path) -> list[NotebookNode]:
    """The cells of a source as it stands there, each with its id."""
    seen: dict[str, int] = {}
    cells: list[NotebookNode] = jupytext.read(source, fmt="py:percent").cells
    for cell in cells:
        cell.id = _cell_id(source.stem, cell.source, seen)
    return cells


def to_stub(code: str) -> str:
    """Replace each answer by a stub: `raise NotImplementedError` in a function, `name = ...` outside one.

    Lines of the answer that begin with `# Hint:` stay.
    """
    lines: list[str] = []
    answer: list[str] | None = None
    for line in code.split("\n"):
        if line.strip() == BEGIN:
            answer = []
        elif line.strip() == END:
            lines += _stub(answer or [])
            answer = None
        elif answer is not None:
            answer.append(line)
        else:
            lines.append(line)
    return "\n".join(lines)


def _stub(answer: list[str]) -> list[str]:
    hints = [line for line in answer if line.strip().startswith("# Hint:")]
    first = next(line for line in answer if line.strip())
    indent = first[: len(first) - len(first.lstrip())]
    if indent:
        return [*hints, f'{indent}raise NotImplementedError("{STUB}")']
    names = [match[1] for line in answer if (match := re.match(r"(\w+)(?:: [^=]+)? = ", line))]
    return [*hints, *(f"{name} = ...  # {STUB}" for name in dict.fromkeys(names))]


def without_markers(code: str) -> str:
    """The code without the lines that mark an answer."""
    return "\n".join(line for line in code.split("\n") if line.strip() not in (BEGIN, END))


def out_of_date(source: Path) -> list[str]:
    """One line for each notebook of a source that `main` would write differently, its outputs aside."""
    found = []
    for kind in _KINDS:
        path = notebook_path(source, kind)
        name = f"{path.parent.name}/{path.name}"
        if not path.is_file():
            found.append(f"{name} is missing; run: {_COMMAND} {source.stem}")
            continue
        stored = nbformat.read(path, as_version=4)
        if [_inputs(cell) for cell in stored.cells] != [_inputs(cell) for cell in build(source, kind).cells]:
            found.append(f"{name} differs from solutions/{source.name}; run: {_COMMAND} {source.stem}")
        code = [cell for cell in stored.cells if cell.cell_type == "code" and cell.source.strip()]
        if any(cell.execution_count is None for cell in code):
            found.append(f"{name} holds cells that were not executed; run: {_COMMAND} {source.stem}")
    return found


def _inputs(cell: NotebookNode) -> tuple[Any, ...]:
    return cell.id, cell.cell_type, cell.source, dict(cell.metadata)


def _execute(notebook: NotebookNode, source: Path) -> NotebookNode:
    environment = {**os.environ, "TQDM_DISABLE": "1"}  # a stored progress bar is noise
    client = NotebookClient(notebook, timeout=600, kernel_name="python3", record_timing=False)
    client.resources = {"metadata": {"path": str(source.parents[1] / "labs")}}
    try:
        client.execute(env=environment)
    except CellExecutionError as error:
        raise AuthoringError(f"{source.name} stopped with an error:\n{error}") from error
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    notebook.metadata = nbformat.from_dict(copy.deepcopy(_METADATA))
    return notebook


def _check_cell(cell: NotebookNode, where: str) -> None:
    markers = [line.strip() for line in cell.source.split("\n") if line.strip() in (BEGIN, END)]
    if markers != [BEGIN, END] * (len(markers) // 2) or len(markers) % 2:
        raise AuthoringError(f"{where}: {BEGIN} and {END} do not pair up")
    tags = cell.metadata.get("tags", [])
    if "exercise" in tags and not any(re.fullmatch(r"points:\d+", tag) for tag in tags):
        raise AuthoringError(f"{where}: an exercise needs a tag like points:2")
    if ("exercise" in tags) != bool(markers):
        raise AuthoringError(f"{where}: a cell has the tag exercise exactly when it holds a solution")


def _cell_id(stem: str, content: str, seen: dict[str, int]) -> str:
    """Eight characters from the content, so that an inserted cell leaves the ids of the others alone."""
    seen[content] = seen.get(content, 0) + 1
    return hashlib.sha256(f"{stem}\n{content}\n{seen[content]}".encode()).hexdigest()[:8]


def _fill(text: str, stem: str) -> str:
    """Put the cell for Colab and the measured seconds in the place of their names."""
    if "{{ install }}" in text:
        text = text.replace("# {{ install }}", install_cell(stem, address.stored(ROOT)))
    return text.replace("{{ seconds }}", _shown_seconds(stem))


def install_cell(stem: str, where: address.Address) -> str:
    """The cell that installs the course on Colab.

    Args:
        stem: of the lab, such as "21_case_study": it may need more packages than the others.
        where: the course's address; nobody's gives a cell that says so on Colab.
    """
    if not where.is_somebodys:
        return _NO_INSTALL
    version, extras = _project()
    extra = f"lab{stem.partition('_')[0].lstrip('0')}"
    return (
        _INSTALL.replace("{{ extra }}", f"[{extra}]" if extra in extras else "")
        .replace("{{ version }}", version)
        .replace("{{ repository }}", where.repository)
    )


@cache
def _project() -> tuple[str, frozenset[str]]:
    """The course's version and the names of its extras, from pyproject.toml."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    return project["version"], frozenset(project["optional-dependencies"])


def _shown_seconds(stem: str) -> str:
    """The measured seconds of the slower of the two notebooks, rounded up to fives."""
    measured = results.stored(_SECONDS).get("seconds", {}).get(stem)
    return str(5 * math.ceil(max(measured.values()) / 5)) if measured else "?"
