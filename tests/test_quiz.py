"""The quizzes: nothing but knowing helps to find the right answer, and half of the questions show something."""

from __future__ import annotations

import io
import itertools
import re
import sys
from collections import Counter
from pathlib import Path

import pytest
from scipy.stats import chisquare
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace, patch_docutils

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "book" / "_ext"))
import quiz  # noqa: E402

sys.path.pop(0)

PAGES = {path.stem: path.read_text(encoding="utf-8") for path in sorted((ROOT / "book").glob("[0-9][0-9]_*.md"))}
ASKED = [
    (page, number, question)
    for page, text in PAGES.items()
    for number, question in enumerate(quiz.questions(text), start=1)
]
SINGLE = [row for row in ASKED if sum(answer.right for answer in row[2].answers) == 1]


def _words(text: str) -> int:
    """The length that a reader sees: without the marks of Markdown."""
    return len(re.sub(r"[`$*\\{}]", "", text))


def test_every_chapter_asks_and_nothing_is_written_otherwise() -> None:
    for page, text in PAGES.items():
        assert len(quiz.questions(text)) >= 3, page
        assert text.count("{question}") == len(quiz.questions(text)), page
        assert "quiz-answer" not in text, page
    assert len(ASKED) >= 98


def test_the_right_answer_stands_anywhere() -> None:
    for count in (3, 4):
        rows = [row for row in SINGLE if len(row[2].answers) == count]
        places = Counter(
            next(n for n, answer in enumerate(quiz.shuffled(question, page, number)) if answer.right)
            for page, number, question in rows
        )
        print(f"{count} answers, right one at place: {sorted(places.items())}")
        if len(rows) >= 5 * count:  # fewer say nothing
            assert chisquare([places[place] for place in range(count)]).pvalue > 0.05
    for chapter, rows_ in itertools.groupby(SINGLE, key=lambda row: row[0]):
        seen = [[a.right for a in quiz.shuffled(question, page, n)].index(True) for page, n, question in rows_]
        assert len(set(seen)) > 1, f"{chapter}: the right answer always stands at the same place"


def test_the_right_answer_is_neither_the_longest_nor_the_shortest() -> None:
    """More often than chance would have it, within two standard deviations."""
    longest = shortest = 0
    chance = variance = 0.0
    right, wrong = [], []
    for _, _, question in SINGLE:
        lengths = [_words(answer.text) for answer in question.answers]
        own = next(_words(answer.text) for answer in question.answers if answer.right)
        longest += own == max(lengths) and lengths.count(own) == 1
        shortest += own == min(lengths) and lengths.count(own) == 1
        share = 1 / len(lengths)
        chance, variance = chance + share, variance + share * (1 - share)
        right.append(own)
        wrong += [_words(answer.text) for answer in question.answers if not answer.right]
    print(f"{len(SINGLE)} questions: longest {longest}, shortest {shortest}, by chance {chance:.0f}")
    for found in (longest, shortest):
        assert found <= chance + 2 * variance**0.5
    assert 0.85 < (sum(right) / len(right)) / (sum(wrong) / len(wrong)) < 1.15


def test_half_of_the_questions_show_something() -> None:
    shown = sum(question.has_material for _, _, question in ASKED)
    print(f"{shown} of {len(ASKED)} questions have a table, a log, a formula or code")
    assert shown >= len(ASKED) / 2
    assert len(ASKED) - len(SINGLE) >= 8, "several answers are right where that is natural"


def test_the_order_is_the_same_in_each_build() -> None:
    page, number, question = ASKED[0]
    assert quiz.shuffled(question, page, number) == quiz.shuffled(question, page, number)
    assert set(quiz.shuffled(question, page, number)) == set(question.answers)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("What?\n\n- [ ] a\n  why\n- [ ] b\n  why", "a question needs answers"),
        ("What?\n\n- [x] a\n  why\n- [x] b\n  why", "a question needs answers"),
        ("What?\n\n- [x] a\n- [ ] b\n  why", "no reason"),
        ("What?\n\n- [x] a\n  why\n- [x] b\n  why\n- [ ] c\n  why", "several answers"),
        ("What? More than one answer is right.\n\n- [x] a\n  why\n- [ ] b\n  why", "several answers"),
    ],
)
def test_a_question_that_cannot_be_asked(source: str, words: str) -> None:
    with pytest.raises(quiz.QuizError, match=words):
        quiz.read(source)


def test_pages_show_questions_with_their_material(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "book" / "_ext"))
    source = tmp_path / "source"
    source.mkdir()
    for name, text in PAGES.items():
        section = text.partition("## Quiz")[2].partition("## Take-aways")[0]
        (source / f"{name}.md").write_text(f"---\norphan: true\n---\n# Quiz\n{section}", encoding="utf-8")
    (source / "index.md").write_text("# Index\n", encoding="utf-8")
    warnings = io.StringIO()
    options = {
        "extensions": ["myst_parser", "sphinx_design", "quiz"],
        "myst_enable_extensions": ["dollarmath", "colon_fence"],
        "html_theme": "basic",
    }
    with patch_docutils(), docutils_namespace():
        app = Sphinx(
            source, None, tmp_path / "html", tmp_path / "trees", "html", options, status=None, warning=warnings
        )
        app.build()
    assert not warnings.getvalue()
    for name, text in PAGES.items():
        page = (tmp_path / "html" / f"{name}.html").read_text(encoding="utf-8")
        found = quiz.questions(text)
        assert page.count("quiz-answer") == sum(len(question.answers) for question in found), name
        assert page.count("quiz-question") == len(found), name
        assert page.count("<pre>") == sum(question.asked.count("```") // 2 for question in found), name
        assert page.count("<table") == sum("\n|" in question.asked for question in found), name
        assert page.count("<strong>Right.</strong>") == sum(a.right for question in found for a in question.answers)
        assert f"<strong>{len(found)}.</strong>" in page and f"<strong>{len(found) + 1}.</strong>" not in page
