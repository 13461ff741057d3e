"""The course without its answers: `python -m course_utils student-copy FOLDER`, for a class.

The copy holds the book, the labs and the library, with a README for students. Its pages do not link to solutions. Its
Makefile is ours without the targets that need what is left out.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from pathlib import Path

import yaml

from course_utils.errors import CourseError
from course_utils.workshop.authoring.notebooks import OTHER, AuthoringError, repository_root, to_stub

_FILES = (
    "_config.yml",
    "_toc.yml",
    ".gitignore",
    "CITATION.cff",
    "constraints.txt",
    "environment.yml",
    "pyproject.toml",
)
_FOLDERS = ("book", "labs", "course_utils")
_LEFT_OUT = ("_build", "__pycache__", ".*", "*.egg-info", "chapter")  # the last: a template, with its answers
#: What `make` offers in the copy; the other targets need the solutions, the tests or the repository.
TARGETS = frozenset({"help", "assets", "book", "lab", "reset", "doctor", "clean", "$(VENV)/installed"})
_README = """# {title}

The course for your class: a book, labs with exercises, and `course_utils`, the library that they use.

You need Python 3.11 or newer and `make`. The first command makes an environment in `.venv`, and fetches the model and
the data; this takes a few minutes.

| Command | What it does |
|---|---|
| `make lab` | opens your own copies of the labs, `my_labs`, in JupyterLab |
| `make reset LAB=09` | starts a lab over; your old copy stays beside it |
| `make book` | builds the book; then open `book/_build/html/index.html` |
| `make doctor` | checks this computer, and says how to mend what is wrong |

On Windows, in PowerShell:

```powershell
py -m venv .venv
.venv\\Scripts\\python -m pip install -c constraints.txt -e ".[lab,book]"
.venv\\Scripts\\python -m course_utils my-labs
.venv\\Scripts\\python -m jupyterlab my_labs
```

Hand in the notebooks of `my_labs`. A newer copy of the course may be unpacked over this one: your work in `my_labs` is
never overwritten.

Code: [MIT](LICENSE). Text and pictures: [CC BY 4.0](LICENSE-text.md).
"""
_LINK = re.compile(r" · \*\*Solution:\*\* \{doc\}`[^`]*`")
_WAY = re.compile(rf" · \[{OTHER['lab']}\]\([^)]*\)")
_ENTRY = re.compile(r"^ *- file: solutions/.*\n(?: *title: .*\n)?", re.MULTILINE)


class CopyError(CourseError, ValueError):
    """Nothing was copied; the message says what to do."""


def main(arguments: list[str]) -> int:
    """Write the copy."""
    parser = argparse.ArgumentParser(prog="python -m course_utils student-copy", description="The course, no answers.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a new folder")
    options = parser.parse_args(arguments)
    try:
        copy(options.folder)
    except (AuthoringError, CopyError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{options.folder} holds the course without solutions; `make book` in it builds the book")
    return 0


def copy(folder: Path) -> None:
    """Copy the course without solutions and tests.

    Args:
        folder: a new one, or an empty one.

    Raises:
        AuthoringError: only the package is installed, and not the repository.
        CopyError: there is something in the folder.
    """
    root = repository_root()
    if folder.exists() and any(folder.iterdir()):
        raise CopyError(f"{folder} is not empty: name a new folder, so that no older file stays in it")
    folder.mkdir(parents=True, exist_ok=True)
    for path in [*(root / name for name in _FILES), *root.glob("LICENSE*")]:
        shutil.copy(path, folder)
    title = yaml.safe_load((root / "_config.yml").read_text(encoding="utf-8"))["title"]
    (folder / "README.md").write_text(_README.format(title=title), encoding="utf-8")
    (folder / "Makefile").write_text(makefile((root / "Makefile").read_text(encoding="utf-8")), encoding="utf-8")
    for name in _FOLDERS:
        shutil.copytree(root / name, folder / name, ignore=shutil.ignore_patterns(*_LEFT_OUT), dirs_exist_ok=True)
    for lab in (folder / "labs").glob("*.ipynb"):
        lab.write_text(_WAY.sub("", lab.read_text(encoding="utf-8")), encoding="utf-8")
    toc = folder / "_toc.yml"
    toc.write_text(_ENTRY.sub("", toc.read_text(encoding="utf-8")), encoding="utf-8")
    for page in (folder / "book").glob("*.md"):
        text = _LINK.sub("", page.read_text(encoding="utf-8"))
        for source in re.findall(r"\.\./solutions/(\w+)\.py", text):  # a page shows a function that is no answer
            stubs = to_stub((root / "solutions" / f"{source}.py").read_text(encoding="utf-8"))
            (folder / "labs" / f"{source}.py").write_text(stubs, encoding="utf-8")
        page.write_text(text.replace("../solutions/", "../labs/"), encoding="utf-8")


def makefile(whole: str) -> str:
    """The course's Makefile with the rules of `TARGETS` only, and the lines of `make help` about them."""
    kept = []
    for block in whole.split("\n\n"):
        rule = re.search(r"^(?!\.[A-Z])([^\s#:=][^:=]*?):(?![:=])", block, re.MULTILINE)
        if rule is None or TARGETS & set(rule[1].split()):
            kept.append(block)
    text = re.sub(
        r"^\.PHONY: (.*)",
        lambda line: " ".join([".PHONY:", *(name for name in line[1].split() if name in TARGETS | {"again"})]),
        "\n\n".join(kept),
        flags=re.MULTILINE,
    )
    lines = text.split("\n")
    return "\n".join(
        line for line in lines if not (said := re.search(r'@echo "make ([\w-]+)', line)) or said[1] in TARGETS
    )
