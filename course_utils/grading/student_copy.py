"""The course without its answers: `python -m course_utils student-copy FOLDER`, for a class.

The copy holds the book, the labs and the library. Its pages do not link to solutions, and `make book`, `make lab` and
`make doctor` work in it as usual.
"""

from __future__ import annotations

import argparse
import re
import shutil
import sys
from pathlib import Path

from course_utils.authoring import ROOT, to_stub

_FILES = ("_config.yml", "_toc.yml", "CITATION.cff", "constraints.txt", "environment.yml", "Makefile", "pyproject.toml")
_FOLDERS = ("book", "labs", "course_utils")
_LEFT_OUT = ("_build", "__pycache__", ".*", "*.egg-info")
_LINK = re.compile(r" · \*\*Solution:\*\* \{doc\}`[^`]*`")
_ENTRY = re.compile(r"^ *- file: solutions/.*\n(?: *title: .*\n)?", re.MULTILINE)


class CopyError(ValueError):
    """Nothing was copied; the message says what to do."""


def main(arguments: list[str]) -> int:
    """Write the copy."""
    parser = argparse.ArgumentParser(prog="python -m course_utils student-copy", description="The course, no answers.")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="a new folder")
    options = parser.parse_args(arguments)
    try:
        copy(options.folder)
    except (CopyError, OSError) as error:
        print(error, file=sys.stderr)
        return 1
    print(f"{options.folder} holds the course without solutions; `make book` in it builds the book")
    return 0


def copy(folder: Path) -> None:
    """Copy the course without solutions and tests.

    Args:
        folder: a new one, or an empty one.

    Raises:
        CopyError: there is something in the folder.
    """
    if folder.exists() and any(folder.iterdir()):
        raise CopyError(f"{folder} is not empty: name a new folder, so that no older file stays in it")
    folder.mkdir(parents=True, exist_ok=True)
    for path in [*(ROOT / name for name in _FILES), ROOT / "README.md", *ROOT.glob("LICENSE*")]:
        shutil.copy(path, folder)
    for name in _FOLDERS:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns(*_LEFT_OUT), dirs_exist_ok=True)
    toc = folder / "_toc.yml"
    toc.write_text(_ENTRY.sub("", toc.read_text(encoding="utf-8")), encoding="utf-8")
    for page in (folder / "book").glob("*.md"):
        text = _LINK.sub("", page.read_text(encoding="utf-8"))
        for source in re.findall(r"\.\./solutions/(\w+)\.py", text):  # a page shows a function that is no answer
            stubs = to_stub((ROOT / "solutions" / f"{source}.py").read_text(encoding="utf-8"))
            (folder / "labs" / f"{source}.py").write_text(stubs, encoding="utf-8")
        page.write_text(text.replace("../solutions/", "../labs/"), encoding="utf-8")
