"""Start a chapter: `python -m course_utils new 10 lora_family "The LoRA family"`.

Writes a page with the sections that every chapter has, the source of its lab with one exercise that works, the check of
that exercise, wrong and right answers for the tests, and the entries in `_toc.yml`. All of it runs and builds at once;
the author replaces it piece by piece.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from pathlib import Path

import yaml

from course_utils.errors import CourseError
from course_utils.workshop.authoring.notebooks import AuthoringError, repository_root

COMMAND = "python -m course_utils new"

#: A whole chapter that runs as it stands. The words of its name, number and title are replaced; it has the repository's
#: folders, so that it can be read, checked and run like any other.
TEMPLATE = Path(__file__).parent / "chapter"
_WORDS = re.compile("98_an_example|an_example|An example|98")


class ChapterError(CourseError, ValueError):
    """The chapter cannot be started; nothing was written."""


def main(arguments: list[str]) -> int:
    """Write the files and say what comes next."""
    parser = argparse.ArgumentParser(prog=COMMAND, description="Start a chapter: page, lab, check, answers, contents.")
    parser.add_argument("number", type=int, help="of the chapter, 1 to 99")
    parser.add_argument("name", help="of the files, such as lora_family")
    parser.add_argument("title", help='such as "The LoRA family"')
    parser.add_argument("--part", help="caption of the part in _toc.yml; default: the last one that has chapters")
    options = parser.parse_args(arguments)
    try:
        root = repository_root()
        written = start(root, options.number, options.name, options.title, options.part)
    except (AuthoringError, ChapterError) as error:
        print(error, file=sys.stderr)
        return 1
    print("\n".join(f"wrote {path.relative_to(root)}" for path in written))
    print(f"Next: fill them in, then run: make notebooks ARGS={options.number:02d}_{options.name} && make book")
    return 0


def start(root: Path, number: int, name: str, title: str, part: str | None = None) -> list[Path]:
    """Write the files of a new chapter below `root` and return their paths.

    Args:
        root: of the course.
        number: of the chapter, 1 to 99; must be free.
        name: of the files, lower-case letters, digits and underscores.
        title: as readers see it.
        part: caption of its part in `_toc.yml`; None means the last one that has chapters.

    Raises:
        ChapterError: the number or the name is taken or makes no sense, or there is no such part. Nothing is written.
    """
    if not 1 <= number <= 99:
        raise ChapterError(f"the number of a chapter is 1 to 99, got {number}")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ChapterError(f"a name consists of lower-case letters, digits and underscores, got {name!r}")
    if not title.strip():
        raise ChapterError("the title is empty")
    stem = f"{number:02d}_{name}"
    taken = [path.name for path in (root / "book").glob(f"{number:02d}_*.md")]
    if taken:
        raise ChapterError(f"chapter {number} exists already: {', '.join(taken)}")
    words = {"98_an_example": stem, "an_example": name, "An example": title, "98": str(number)}
    texts = {
        root / _filled_in(str(file.relative_to(TEMPLATE)), words): _filled_in(file.read_text(encoding="utf-8"), words)
        for file in sorted(TEMPLATE.rglob("*.*"))
        if file.suffix in (".md", ".py")
    }
    for path in texts:
        if path.exists():
            raise ChapterError(f"{path.relative_to(root)} exists already; choose another name")
    contents = root / "_toc.yml"
    texts[contents] = _with_chapter(contents.read_text(encoding="utf-8"), stem, number, title, part)
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return list(texts)


def _filled_in(text: str, words: dict[str, str]) -> str:
    return _WORDS.sub(lambda found: words[found[0]], text)


def _with_chapter(contents: str, stem: str, number: int, title: str, part: str | None) -> str:
    """The table of contents with page, lab and solution in the order of the chapters' numbers.

    Lines are added to the text: reading and writing it as YAML would lose its comments.
    """
    parts = {entry["caption"]: entry for entry in yaml.safe_load(contents)["parts"]}
    with_numbers = [name for name, entry in parts.items() if re.search(r"/\d\d_", str(entry["chapters"]))]
    caption = part or with_numbers[-1]
    if caption not in parts:
        raise ChapterError(f"_toc.yml has no part {caption!r}; it has {', '.join(map(repr, parts))}")
    lines = contents.splitlines()
    starts = [at for at, line in enumerate(lines) if line.startswith("  - caption:")]
    start = next(at for at in starts if yaml.safe_load(lines[at]) == [{"caption": caption}])
    end = min((at for at in starts if at > start), default=len(lines))
    chapters = [at for at in range(start, end) if lines[at].startswith("      - file:")]
    place = next((at for at in chapters if _file(lines[at]) > f"book/{stem}"), end)
    new = [
        f"      - file: book/{stem}",
        "        sections:",
        f"          - file: labs/{stem}",
        f"          - file: solutions/{stem}",
        f"            title: {json.dumps(f'Solution {number}: {title}', ensure_ascii=False)}",
    ]
    return "\n".join([*lines[:place], *new, *lines[place:]]) + "\n"


def _file(line: str) -> str:
    return str(yaml.safe_load(line)[0]["file"])
