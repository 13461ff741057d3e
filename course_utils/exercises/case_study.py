"""The checks of chapter 21, the case study."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from course_utils.evaluation.calibration import probabilities
from course_utils.evaluation.intervals import accuracy_interval
from course_utils.exercises.checking import Wrong, call, compare, equal, exercise, number, random_tensors

_BASELINES = "Baselines first"
_SLICES = "Where it errs"
_TEST = "The test, once"
_SURE = "How sure it is, and when to ask a person"
_EXPORT = "Merge, export, and check"
_CARD = "The model card"


# --- a list of words -------------------------------------------------------------------------------------------------

_POSITIVE, _NEGATIVE, _NEGATIONS = {"good", "love", "nice"}, {"bad", "sad", "awful"}, {"not", "never"}


def _score(
    words: Sequence[str], *, turn: bool = True, lasting: bool = False, cost: int = 0, before: bool = False
) -> int:
    total, turned = 0, False
    for place, word in enumerate(words):
        if word in _NEGATIONS:
            turned, total = True, total - cost
            continue
        value = (word in _POSITIVE) - (word in _NEGATIVE)
        after = before and place + 1 < len(words) and words[place + 1] in _NEGATIONS
        total += -value if (turn and turned and not before) or after else value
        turned = turned and lasting
    return total


@exercise(
    "case_study.lexicon",
    points=3,
    passes="No training, no model, and already a bar that many trained models do not reach.",
    section=_BASELINES,
)
def _lexicon(answer: Any) -> None:
    texts = (
        "good good bad",
        "this is not good",
        "not bad , i love it",
        "never awful , never sad",
        "not the good one",
        "sad",
        "no idea",
        "good not",
    )
    values = []
    for text in texts:
        given = (set(_POSITIVE), set(_NEGATIVE), set(_NEGATIONS))
        values.append(number(call(answer, text.split(), *given)))
    others = number(call(answer, ["up", "no", "up", "down", "love"], {"up"}, {"down", "sad"}, {"no", "hardly"}))
    split = [text.split() for text in texts]
    right = [_score(words) for words in split]
    first = next((k for k, value in enumerate(values) if value != right[k]), 0)
    said = f"For “{texts[first]}” it is {right[first]}, your function returns {values[first]:g}. "

    def scores(**mistake: Any) -> torch.Tensor:
        return torch.tensor([float(_score(words, **mistake)) for words in split])

    compare(
        torch.tensor(values),
        scores(),
        [
            (scores(turn=False), said + "Negations are ignored: a word right after one changes its sign."),
            (scores(lasting=True), said + "A negation turns only the word right after it, not all the rest."),
            (scores(turn=False, cost=1), said + "The negation is no negative word itself. It turns the next."),
            (scores(cost=1), said + "The negation itself counts nothing; it only turns the next word."),
            (scores(before=True), said + "You turn the word *before* the negation. It is the one after it."),
            (-scores(), said + "The sign is wrong: positive words count +1."),
            (
                torch.tensor([sum(word in _POSITIVE for word in words) for words in split]),
                said + "The negative words are missing. Each counts −1.",
            ),
            (scores().sign(), said + "Return the sum, not only its sign."),
            (scores() / torch.tensor([len(words) for words in split]), said + "Do not divide by the number of words."),
        ],
        said + "Add 1 for each positive word and −1 for each negative one; a negation turns the word after it.",
    )
    if others != -1:  # 1 − 1 − 1
        raise Wrong("It is right for one list of words only. Use the three sets that are handed over.")


# --- slices ----------------------------------------------------------------------------------------------------------

Row = tuple[str, int, int]
_TABLES: tuple[tuple[list[Row], float], ...] = (
    # name, texts, right answers; and the accuracy on all texts
    ([("sarcasm", 3, 2), ("negation", 200, 172), ("emoji", 150, 146), ("long", 400, 372), ("disputed", 61, 46)], 0.95),
    ([("short", 500, 470), ("links", 4, 2), ("names", 300, 291), ("questions", 90, 72)], 0.92),
    ([("short", 500, 470), ("links", 4, 2), ("names", 300, 291), ("questions", 90, 72)], 0.975),
)


def _named(rows: list[Row], whole: float, rule: str) -> set[str]:
    found = set()
    for name, n, right in rows:
        low, high = accuracy_interval(right, n)
        bound = {"high": high, "low": low, "point": right / n}[rule]
        if bound < whole:
            found.add(name)
    return found


@exercise(
    "case_study.slices",
    points=3,
    passes="A low accuracy on few texts is a question. One whose whole interval is low is a finding.",
    section=_SLICES,
)
def _slices(answer: Any) -> None:
    for rows, whole in _TABLES:
        result = call(answer, list(rows), whole)
        if isinstance(result, str) or not all(isinstance(name, str) for name in result):
            raise Wrong("Expected a list of names, such as ['negation'], also where it holds one name.")
        names, right = set(result), _named(rows, whole, "high")
        if names == right:
            continue
        lowest = min(rows, key=lambda row: row[2] / row[1])[0]
        most = max(rows, key=lambda row: row[1] - row[2])[0]
        if names == _named(rows, whole, "point"):
            raise Wrong(
                f"You took every slice below {whole:.0%}, also those with a handful of texts. Compare the *upper* end of "
                "the interval with the accuracy on all texts."
            )
        if names == _named(rows, whole, "low"):
            raise Wrong(
                "You compared the lower end of the interval. It is below the whole nearly always: take the upper."
            )
        if names == {lowest}:
            raise Wrong(f"You took the lowest accuracy, “{lowest}”. How many texts are in it?")
        if names == {most}:
            raise Wrong(
                f"You took the slice with the most errors, “{most}”. A large slice has many. Look at its interval."
            )
        if names == {row[0] for row in rows} - right:
            raise Wrong("These are the other slices: the upper end must lie *below* the accuracy on all texts.")
        raise Wrong(f"For {rows} and {whole:.0%} it is {sorted(right)}, your function returns {sorted(names)}.")


# --- several tests ---------------------------------------------------------------------------------------------------

_FAMILIES: tuple[dict[str, float], ...] = (
    {"words": 1e-12, "head only": 3e-9, "BitFit": 0.009, "(IA)³": 0.03, "full": 0.6},
    {"a": 0.02, "b": 0.04, "c": 0.9},
    {"one": 0.012, "two": 0.3, "three": 0.0001, "four": 0.04},
)


@exercise(
    "case_study.tests",
    points=2,
    passes="Five tests are five chances to be lucky, so each must pass a stricter bar.",
    section=_TEST,
)
def _tests(answer: Any) -> None:
    for family in _FAMILIES:
        result = call(answer, dict(family))
        if isinstance(result, str) or not all(name in family for name in result):
            raise Wrong("Expected a list with some of the names that were handed over.")
        names, each = set(result), 0.05 / len(family)
        right = {name for name, p in family.items() if p <= each}
        if names == right:
            continue
        if names == {name for name, p in family.items() if p <= 0.05}:
            raise Wrong(
                f"You compared with 0.05. With {len(family)} tests, chance alone passes that bar in "
                f"{1 - 0.95 ** len(family):.0%} of all cases: divide 0.05 by the number of tests."
            )
        if names == set(family) - right:
            raise Wrong("It is the other way round: a *small* p is evidence of a difference.")
        if names == {name for name, p in family.items() if p * len(family) > 1}:
            raise Wrong("You took the large ones. Multiply p by the number of tests, and keep what is at most 0.05.")
        if names == {name for name, p in family.items() if p <= 0.05**2}:
            raise Wrong("You squared 0.05. Divide it by the number of tests.")
        raise Wrong(f"For {family} it is {sorted(right)}, your function returns {sorted(names)}.")


# --- when to ask a person --------------------------------------------------------------------------------------------


@exercise(
    "case_study.review",
    points=3,
    passes="The bound comes from validation, and it is about the answer that was given, whatever its class.",
    section=_SURE,
)
def _review(answer: Any) -> None:
    for kept, texts in ((0.9, 40), (0.75, 27), (0.5, 33)):
        logits = (3 * random_tensors((texts, 2))[0]).numpy()
        value = number(call(answer, logits.copy(), kept))
        share = probabilities(logits)
        confidence = share.max(axis=1)
        # Any bound between the two neighbouring texts does the same.
        order = np.sort(confidence)[::-1]
        last = round(kept * len(order))
        if order[last] < value <= order[last - 1] or equal(value, np.quantile(confidence, 1 - kept)):
            continue
        exponential = np.exp(logits)
        compare(
            value,
            float(np.quantile(confidence, 1 - kept)),
            [
                (
                    np.quantile(confidence, kept),
                    f"With this bound the model answers {1 - kept:.0%} alone. Take the quantile at 1 − kept: the least "
                    "sure texts go to the person.",
                ),
                (
                    np.quantile(share[:, 1], 1 - kept),
                    "You took the probability of “positive”. A model that is sure of “negative” has a low one. Take the "
                    "larger of the two.",
                ),
                (np.quantile(logits.max(axis=1), 1 - kept), "These are logits. Take the softmax first."),
                (
                    np.quantile(np.abs(logits[:, 1] - logits[:, 0]), 1 - kept),
                    "That is a margin of logits, no probability.",
                ),
                (
                    np.quantile(exponential.max(axis=1), 1 - kept),
                    "Divide by the sum of the row, else it is no softmax.",
                ),
                (kept, "You returned the share itself. It says how *many*, the bound says how *sure*."),
                (1 - kept, "You returned 1 − kept itself. It says how many, the bound says how sure."),
                (confidence.mean(), "That is the mean confidence. Half of the texts, more or less, lie below it."),
            ],
            f"With your bound the model would answer {(confidence >= value).mean():.0%} of the texts alone; "
            f"{kept:.0%} were asked for.",
        )


# --- the same logits? ------------------------------------------------------------------------------------------------


@exercise(
    "case_study.logits",
    points=3,
    passes="The largest difference finds an error that a mean would hide, and the changed answers say whether it matters.",
    section=_EXPORT,
)
def _logits(answer: Any) -> None:
    for sign in (-1, 1):
        _compare_logits(answer, sign)


def _compare_logits(answer: Any, sign: int) -> None:
    texts = 51 + 2 * sign
    reference = random_tensors((texts, 2))[0].numpy()
    exported = reference + np.linspace(-0.3, 0.2, 2 * texts, dtype=np.float32).reshape(texts, 2)
    exported[7] = reference[7][::-1]  # one answer is turned round
    lower, higher = reference[11].argsort()
    exported[11, lower if sign < 0 else higher] += 9 * sign  # far off, but the answer stays
    result = call(answer, reference.copy(), exported.copy())
    if not isinstance(result, (tuple, list)) or len(result) != 2:
        raise Wrong("Expected two numbers: the largest absolute difference, and how many answers changed.")
    difference, changed = (number(each) for each in result)
    gap = exported - reference
    compare(
        difference,
        np.abs(gap).max(),
        [
            (
                np.abs(gap).mean(),
                "That is the mean difference. One broken text among thousands hardly moves it: take max.",
            ),
            (gap.max(), "The sign is in the way: a logit that is far too low counts as well. Take the absolute value."),
            (
                (-gap).max(),
                "The sign is in the way: a logit that is far too high counts as well. Take the absolute value.",
            ),
            (abs(gap.mean()), "You took the mean first: differences up and down cancel out."),
            (abs(gap.sum()), "You added the differences up: those up and down cancel out."),
            (np.abs(gap).sum(), "That is the sum over all texts. It grows with their number; take the largest."),
            ((gap**2).mean(), "That is the mean squared difference. Take the largest absolute one."),
            (
                np.abs(probabilities(exported) - probabilities(reference)).max(),
                "You compared probabilities. Where the model is sure they hide a difference of the logits.",
            ),
            (
                np.abs(reference.max(axis=1) - exported.max(axis=1)).max(),
                "You compared only the larger logit of each text.",
            ),
        ],
        "The first number is not the largest absolute difference.",
    )
    turned = reference.argmax(axis=1) != exported.argmax(axis=1)
    compare(
        changed,
        int(turned.sum()),
        [
            (turned.mean(), "The second number is the share of changed answers. Count them."),
            (int((~turned).sum()), "You counted the answers that stayed the same."),
            (float(turned.any()), "You said whether any answer changed. Count how many."),
            (
                int((np.abs(gap).max(axis=1) > 1e-4).sum()),
                "You counted texts with other logits. An *answer* is the argmax.",
            ),
            (int((reference != exported).sum()), "You counted logits that differ. An *answer* is the argmax of a row."),
        ],
        f"The second number is not how many answers changed; here {int(turned.sum())} did.",
    )


# --- a line of the model card ----------------------------------------------------------------------------------------


@exercise(
    "case_study.card",
    points=2,
    passes="Accuracy, number of texts, interval and floor: now a reader can judge it.",
    section=_CARD,
)
def _card(answer: Any) -> None:
    for right, n, floor in ((808, 843, 0.687), (45, 50, 0.6)):
        line = call(answer, right, n, floor)
        if not isinstance(line, str):
            raise Wrong(f"Expected a sentence, got {type(line).__name__}.")
        low, high = accuracy_interval(right, n)
        numbers = [float(found) for found in re.findall(r"\d+(?:\.\d+)?", line)]
        wanted = {
            f"the accuracy, {right / n:.1%}": right / n,
            f"the lower end of the interval, {low:.1%}": low,
            f"the upper end of the interval, {high:.1%}": high,
            f"the majority baseline, {floor:.1%}": floor,
        }
        if n not in numbers:
            raise Wrong(
                f"The number of texts, {n}, is missing. {right / n:.0%} of ten texts and of ten thousand differ."
            )
        for what, value in wanted.items():
            if any(abs(found - 100 * value) < 0.051 for found in numbers):
                continue
            simple = 1.96 * (right / n * (1 - right / n) / n) ** 0.5
            if any(abs(found - 100 * (right / n + sign * simple)) < 0.051 for found in numbers for sign in (-1, 1)):
                raise Wrong("The interval is the simple one, p ± 1.96 √(p(1−p)/n). Use accuracy_interval, Wilson's.")
            if any(abs(found - value) < 1e-3 for found in numbers):
                raise Wrong(f"Write {what}, in percent with one decimal: a reader should not have to convert it.")
            if any(abs(found - 100 * value) < 0.51 for found in numbers):
                raise Wrong(f"{what.capitalize()} needs one decimal; you rounded it to whole percent.")
            raise Wrong(f"Missing: {what}. Your line says: {line}")
