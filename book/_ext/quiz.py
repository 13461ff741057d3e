"""Ask a question of a quiz: the directive `question`.

::::{question}
What may stand here is what may stand in a page: a table, a log, a piece of code.

- [ ] An answer that somebody would choose
  Why it is not right.
- [x] The right one
  Why it is.
::::

Each answer becomes a dropdown that says whether it is right, and why; the first line is what one can choose. Authors
need not care in which order they write the answers down: they are shuffled, always in the same way. Questions count by
themselves within a page. Where several answers are right, the question says so.
"""

from __future__ import annotations

import random
import re
from dataclasses import dataclass
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

_ANSWER = re.compile(r"^- \[([ x])\] (.+)$")
_DIRECTIVE = re.compile(r"^::::\{question\}\n(.*?)^::::$", re.DOTALL | re.MULTILINE)
#: Of the shuffle. With it the right answer stands at each place equally often; `tests/test_quiz.py` counts.
_SHUFFLE = 176
SEVERAL = "More than one answer is right."


class QuizError(ValueError):
    """A question that cannot be asked so."""


@dataclass(frozen=True)
class Answer:
    """An answer, whether it is right, and why."""

    text: str
    right: bool
    why: str


@dataclass(frozen=True)
class Question:
    """What is asked, in Markdown, and the answers in the order of the page's source."""

    asked: str
    answers: tuple[Answer, ...]

    @property
    def has_material(self) -> bool:
        """Whether there is something to look at: a table, a formula, a log, code or a picture."""
        return bool(re.search(r"^(```|\||\$\$|!\[)", self.asked, re.MULTILINE))


def read(source: str) -> Question:
    """A question from the lines between the fences.

    Args:
        source: Markdown; the answers follow the question, each with its reason indented below it.

    Raises:
        QuizError: no right answer, a single one, an answer without a reason, or several right ones without a word.
    """
    lines = source.splitlines()
    starts = [n for n, line in enumerate(lines) if _ANSWER.match(line)]
    answers = []
    for start, end in zip(starts, [*starts[1:], len(lines)], strict=True):
        found = _ANSWER.match(lines[start])
        assert found
        why = "\n".join(line.strip() for line in lines[start + 1 : end]).strip()
        if not why:
            raise QuizError(f"the answer {found[2]!r} has no reason below it")
        answers.append(Answer(found[2].strip(), found[1] == "x", why))
    right = sum(answer.right for answer in answers)
    if not right or right == len(answers):
        raise QuizError("a question needs answers that are right, `- [x]`, and answers that are not, `- [ ]`")
    asked = "\n".join(lines[: starts[0]]).strip()
    if (right > 1) != (SEVERAL in " ".join(asked.split())):
        raise QuizError(f"where several answers are right, and only there, the question says: {SEVERAL}")
    return Question(asked, tuple(answers))


def questions(page: str) -> list[Question]:
    """All questions of a page, from its Markdown."""
    return [read(found[1]) for found in _DIRECTIVE.finditer(page)]


def shuffled(question: Question, page: str, number: int) -> list[Answer]:
    """The answers in the order in which readers see them: another for each question, and the same in each build.

    Args:
        question: it.
        page: its name, "09_lora".
        number: of the question on it, from 1.
    """
    answers = list(question.answers)
    random.Random(f"{_SHUFFLE} {page} {number}").shuffle(answers)
    return answers


def markdown(question: Question, page: str, number: int) -> str:
    """What the page shows."""
    parts = [f"**{number}.** {question.asked}"]
    for answer in shuffled(question, page, number):
        verdict = "**Right.**" if answer.right else "**No.**"
        parts.append(f":::::{{dropdown}} {answer.text}\n:class-container: quiz-answer\n{verdict} {answer.why}\n:::::")
    return "\n\n".join(parts)


class QuestionDirective(SphinxDirective):
    """A question with its answers folded."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """Read, shuffle, and let the page's own parser show it."""
        page = self.env.docname.rpartition("/")[2]
        number = self.env.temp_data["quiz"] = self.env.temp_data.get("quiz", 0) + 1
        try:
            question = read("\n".join(self.content))
        except QuizError as error:
            raise self.error(str(error)) from error
        box = nodes.container(classes=["quiz-question"])
        text = StringList(markdown(question, page, number).splitlines(), source=self.get_source_info()[0])
        self.state.nested_parse(text, self.content_offset, box)
        return [box]


def setup(app: Sphinx) -> dict[str, Any]:
    """Add the directive."""
    app.add_directive("question", QuestionDirective)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
