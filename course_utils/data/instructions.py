"""The tweets as a task for a language model: answer with the sentiment and its strength, such as "negative 2".

The answer is text, so it can be right, wrong, or nothing that one can read. The strength is the mean rating without its
sign, rounded, 1 to 4.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from course_utils.models.backbones import LABELS
from course_utils.models.chat import ChatError, Message

QUESTION = "Positive or negative? How strongly, from 1 to 4?"
_FORM = re.compile(rf"({'|'.join(LABELS)}) ([1-4])")
_WORD = re.compile("|".join(LABELS), re.IGNORECASE)


def question(text: str) -> list[Message]:
    """The conversation that asks about a tweet.

    The system message is empty on purpose: without one, SmolLM2's template writes 22 tokens of its own.
    """
    return [{"role": "system", "content": ""}, {"role": "user", "content": f"{text}\n{QUESTION}"}]


def answer(rating: float) -> str:
    """The right answer for a mean rating.

    >>> answer(-1.7)
    'negative 2'

    Raises:
        ChatError: the rating is no number from −4 to 4, or so near to zero that it has no strength.
    """
    if not 0.5 <= abs(rating) <= 4:
        raise ChatError(f"expected a rating from −4 to −0.5 or from 0.5 to 4, got {rating!r}; drop near-neutral tweets")
    return f"{LABELS[rating > 0]} {math.floor(abs(rating) + 0.5)}"


def read_answer(text: str) -> tuple[str, int] | None:
    """Sentiment and strength; None for a text that does not keep the form exactly.

    >>> read_answer("negative 2"), read_answer("Negative. I'm sorry")
    (('negative', 2), None)
    """
    found = _FORM.fullmatch(text)
    return (found[1], int(found[2])) if found else None


def read_sentiment(text: str) -> str | None:
    """The first word of the two in a free answer, upper or lower case; None if there is none."""
    found = _WORD.search(text)
    return found[0].lower() if found else None


@dataclass(frozen=True)
class AnswerScores:
    """Shares of all answers, from 0 to 1. An answer that cannot be read counts as wrong.

    Args:
        readable: keep the form.
        exact: are the right answer, letter for letter.
        sentiment: have the right sentiment word, whatever stands around it.
        n: how many answers.
    """

    readable: float
    exact: float
    sentiment: float
    n: int


def score_answers(written: Sequence[str], right: Sequence[str]) -> AnswerScores:
    """Compare what a model wrote with the right answers.

    Raises:
        ChatError: there is nothing to compare, or one list is longer.
    """
    if len(written) != len(right) or not right:
        raise ChatError(
            f"expected as many answers as right ones, and at least one; got {len(written)} and {len(right)}"
        )
    pairs = list(zip(written, right, strict=True))
    return AnswerScores(
        readable=sum(read_answer(text) is not None for text in written) / len(right),
        exact=sum(text == truth for text, truth in pairs) / len(right),
        sentiment=sum(read_sentiment(text) == truth.split()[0] for text, truth in pairs) / len(right),
        n=len(right),
    )


def commonest(answers: Sequence[str]) -> str:
    """The answer that occurs most often: what to say if one may not read the tweet."""
    return Counter(answers).most_common(1)[0][0]
