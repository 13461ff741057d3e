"""Start a chapter: `python -m course_utils new 10 lora_family "The LoRA family"`.

Writes a page with the sections that every chapter has, the source of its lab with one exercise that works, the check of
that exercise, wrong and right answers for the tests, and the entries in `_toc.yml`. All of it runs and builds at once;
the author replaces it piece by piece.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path
from typing import Any

import yaml

from course_utils.errors import CourseError
from course_utils.workshop.authoring.notebooks import AuthoringError, repository_root

COMMAND = "python -m course_utils new"

_PAGE = """# {title}

**After this chapter you can**

- (write what the reader can do, one line each).

**Lab:** {{doc}}`../labs/{stem}` · **Solution:** {{doc}}`the same lab, solved <../solutions/{stem}>`

## The idea

(The intuition and an analogy, before any formula.)

## The formula, beside the code

$$
y = 2 x
$$

**A worked example.** For $x = 3$ it is $y = 6$.

## What we measured

(A figure by `picture` and a table by `result-table`, both from a result file.)

## What it costs

(Memory, time, storage.)

## What goes wrong in practice

| What you see | The likely reason | What to do |
|---|---|---|
| (a symptom) | (its reason) | (the way out) |

## Quiz

Click an answer to see whether it is right, and why.

**1. What is twice 3?**

:::{{dropdown}} 5
:class-container: quiz-answer
**No.** That is $2 + 3$.
:::
:::{{dropdown}} 6
:class-container: quiz-answer
**Right.** $2 \\cdot 3$.
:::

## Take-aways

- (One line each.)

## References

```{{bibliography}}
:filter: docname in docnames
```
"""

_LAB = '''# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Lab {number}: {title}
#
# **You will**
#
# * (write what the learner does, one line each).
#
# **Time:** the whole lab runs in about {{{{ seconds }}}} s on two CPU cores (measured). No GPU is needed.
# Read the chapter *{title}* first.

# %%
# {{{{ install }}}}

# %%
from course_utils.exercises import check

# %% [markdown]
# ## Exercise 1: an example
#
# Write a function that returns twice its argument.


# %% tags=["exercise", "points:1"]
def double(x):
    """Twice x."""
    ### BEGIN SOLUTION
    # Hint: multiply.
    return 2 * x
    ### END SOLUTION


# %% tags=["check"]
check("{name}.double", double)
'''

_EXERCISES = '''"""The checks of chapter {number}, {title}."""

from __future__ import annotations

from typing import Any

from course_utils.exercises.checking import call, compare, exercise, number


@exercise("{name}.double", points=1, passes="Twice the number.", section="The formula, beside the code")
def _double(answer: Any) -> None:
    value = number(call(answer, 3))
    mistakes = [
        (5, "You added 2. Multiply by it."),
        (9, "That is the square."),
        (3, "That is the number itself."),
    ]
    compare(value, 6, mistakes, f"For 3 it is 6, your function returns {{value:g}}.")
'''

_ANSWERS = '''"""Answers to the exercises of chapter {number}: wrong ones with words of the message, and right ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

Function = Callable[..., Any]

WRONG: dict[str, list[tuple[Function, str]]] = {{
    "{name}.double": [
        (lambda x: x + 2, "You added 2"),
        (lambda x: x * x, "square"),
        (lambda x: x, "the number itself"),
    ],
}}

RIGHT: dict[str, list[Function]] = {{"{name}.double": [lambda x: x + x]}}
'''


class _ContentsDumper(yaml.SafeDumper):
    """Writes `_toc.yml` as it stands there, so that a new chapter only adds lines to it."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        """Indent lists, too."""
        super().increase_indent(flow, False)


_ContentsDumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if ": " in text else None),
)


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
    contents = yaml.safe_load((root / "_toc.yml").read_text("utf-8"))
    _add_to(contents, stem, number, title, part)
    texts = {
        root / "book" / f"{stem}.md": _PAGE,
        root / "solutions" / f"{stem}.py": _LAB,
        root / "course_utils" / "exercises" / f"{name}.py": _EXERCISES,
        root / "tests" / "answers" / f"{name}.py": _ANSWERS,
    }
    for path in texts:
        if path.exists():
            raise ChapterError(f"{path.relative_to(root)} exists already; choose another name")
    for path, text in texts.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text.format(number=number, name=name, title=title, stem=stem), "utf-8")
    style: dict[str, Any] = {"Dumper": _ContentsDumper, "sort_keys": False, "allow_unicode": True, "width": 120}
    (root / "_toc.yml").write_text(yaml.dump(contents, **style), encoding="utf-8")
    return [*texts, root / "_toc.yml"]


def _add_to(contents: dict[str, Any], stem: str, number: int, title: str, part: str | None) -> None:
    """Put page, lab and solution into the table of contents, in the order of the chapters' numbers."""
    parts = {entry["caption"]: entry for entry in contents["parts"]}
    with_numbers = [name for name, entry in parts.items() if re.search(r"/\d\d_", str(entry["chapters"]))]
    caption = part or with_numbers[-1]
    if caption not in parts:
        raise ChapterError(f"_toc.yml has no part {caption!r}; it has {', '.join(map(repr, parts))}")
    chapters = parts[caption]["chapters"]
    chapters.append(
        {
            "file": f"book/{stem}",
            "sections": [
                {"file": f"labs/{stem}"},
                {"file": f"solutions/{stem}", "title": f"Solution {number}: {title}"},
            ],
        }
    )
    chapters.sort(key=lambda chapter: str(chapter["file"]))
