"""The checks of chapter 16: labels, loss and padding of a chat model, LoRA's count, and reading an answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional

from course_utils.exercises.checking import (
    Wrong,
    call,
    compare,
    equal,
    exercise,
    loss,
    number,
    same_device,
    trained_tensors,
)

_LABELS = "The formula, beside the code"
_PADDING = "Padding on the left, and the end of an answer"
_COUNT = "What a Llama layer looks like"
_READ = "Writing an answer, and reading it"

_EOS = 2


def _pair(value: Any, count: int, what: str) -> tuple[Any, ...]:
    if not isinstance(value, (tuple, list)) or len(value) != count:
        raise Wrong(f"Expected {count} values: {what}.")
    return tuple(value)


def _list(value: Any, what: str) -> list[int]:
    if isinstance(value, torch.Tensor):
        value = value.tolist()
    if not isinstance(value, (list, tuple)) or not all(isinstance(each, int) for each in value):
        raise Wrong(f"Expected {what} as a list of whole numbers.")
    return list(value)


# --- labels ---------------------------------------------------------------------------------------------------------


@exercise(
    "llama.labels",
    points=2,
    passes="The model learns the answer and where it ends, and nothing of the question.",
    section=_LABELS,
)
def _labels(answer: Any) -> None:
    # The prompt holds the end token too: a chat template ends each message with it.
    for prompt, learnt, eos in (([1, 40, 2, 41, 42], [17, 34], 2), ([1, 9, 50], [16, 7, 35], 9)):
        value = _pair(call(answer, list(prompt), list(learnt), eos), 2, "input_ids and labels")
        ids, labels = _list(value[0], "input_ids"), _list(value[1], "labels")
        whole = [*prompt, *learnt, eos]
        if ids == [*prompt, *learnt]:
            raise Wrong("The end token is missing in input_ids: the model would never learn to stop.")
        if ids == [*learnt, eos]:
            raise Wrong("input_ids holds the answer only. The model must read the question as well.")
        if ids != whole:
            raise Wrong("input_ids should be the prompt, the answer and the end token, in this order.")
        hidden = [-100] * len(prompt)
        if len(labels) != len(ids):
            raise Wrong(f"labels must be as long as input_ids, {len(ids)}; yours has {len(labels)}.")
        for wrong, message in (
            (whole, "The question is not masked: the model would mostly learn to write tweets. Put -100 there."),
            ([*hidden, *learnt, -100], "The end token is masked: the model would never learn to stop."),
            ([-100 if t == eos else t for t in whole], "You masked every end token, and nothing else."),
            ([0] * len(prompt) + [*learnt, eos], "A label of 0 is a token like any other. What is left out is -100."),
            ([-1] * len(prompt) + [*learnt, eos], "-1 is not left out; cross-entropy leaves out -100."),
            ([eos] * len(prompt) + [*learnt, eos], "The end token as a label of the question is learnt. Use -100."),
            ([*prompt, *([-100] * (len(learnt) + 1))], "It is the wrong way round: you masked the answer."),
            ([*hidden[1:], *learnt, eos, -100], "You shifted the labels. The model does that itself; see exercise 2."),
            (
                [*hidden, -100, *learnt[1:], eos],
                "The first token of the answer is masked too. It is the one with the sentiment.",
            ),
            ([*hidden[1:], prompt[-1], *learnt, eos], "The last token of the prompt is not masked."),
        ):
            if labels == wrong:
                raise Wrong(message)
        if labels != [*hidden, *learnt, eos]:
            raise Wrong("labels should be -100 for each token of the prompt, then the answer and the end token.")


# --- loss -----------------------------------------------------------------------------------------------------------


@exercise(
    "llama.loss",
    points=3,
    passes="Position t - 1 predicts token t, and only what is not -100 counts.",
    section=_LABELS,
)
def _loss(answer: Any) -> None:
    for tokens, first, words in ((7, 4, 5), (5, 3, 9)):
        (logits,) = trained_tensors((tokens, words))
        labels = torch.tensor([-100] * first + [(3 * t + 1) % words for t in range(first, tokens)])
        value = loss(call(answer, logits, labels), logits)
        every = -torch.log_softmax(logits, dim=-1)
        places = [t for t in range(tokens) if labels[t] != -100]
        right = torch.stack([every[t - 1, labels[t]] for t in places])
        later = [t for t in places if t + 1 < tokens]
        after = torch.stack([every[t + 1, labels[t]] for t in later])
        compare(
            value,
            right.mean(),
            [
                (
                    functional.cross_entropy(logits, labels),
                    "The shift is missing: the logits of a position were compared with the token that stands there. "
                    "They predict the next one.",
                ),
                (after.mean(), "You shifted the wrong way: position t predicts token t + 1, not t - 1."),
                (right.sum(), "That is the sum. Divide by the number of labels that count."),
                (right.sum() / tokens, "You divided by all tokens. Only the labels that are not -100 count."),
                (right.sum() / (tokens - 1), "You divided by all positions. Only labels that are not -100 count."),
                (-right.mean(), "The sign is wrong: the loss is minus the logarithm of the probability."),
                (
                    (right / torch.log(torch.tensor(2.0))).mean(),
                    "That is in bits. The loss uses the natural logarithm.",
                ),
                (
                    -torch.stack([logits[t - 1, labels[t]] for t in places]).mean(),
                    "These are the logits themselves; log_softmax is missing.",
                ),
            ],
            "It is not the mean of −log p(labels[t] | position t − 1) over the labels that are not -100.",
        )


# --- padding --------------------------------------------------------------------------------------------------------


@exercise(
    "llama.padding",
    points=3,
    passes="Each row ends with its text, and neither attention nor loss sees the padding.",
    section=_PADDING,
)
def _padding(answer: Any) -> None:
    # The padding is the end token, as in SmolLM2, and each row has an end token of its own.
    rows = [([1, 40, 17, _EOS], [-100, -100, 17, _EOS]), ([1, 2, 40, 41, 42, 16, _EOS], [-100] * 5 + [16, _EOS])]
    ids, labels = [list(row[0]) for row in rows], [list(row[1]) for row in rows]
    value = _pair(call(answer, ids, labels, _EOS), 3, "input_ids, attention_mask and labels")
    if not all(isinstance(each, (torch.Tensor, list)) for each in value):
        raise Wrong("Expected three lists of rows, or three tensors.")
    got = [torch.as_tensor(each) for each in value]
    for each, what in zip(got, ("input_ids", "attention_mask", "labels"), strict=True):
        same_device(each, what)
    n, longest = 3, 7
    if any(tuple(each.shape) != (2, longest) for each in got):
        raise Wrong(f"Each of the three should have the shape (2, {longest}): as many places as the longest row has.")
    short, short_labels = rows[0]
    if got[0][0].tolist() == short + [_EOS] * n:
        raise Wrong("You filled up on the right. The model would write its answer after the padding: fill on the left.")
    right_ids = torch.tensor([[_EOS] * n + short, rows[1][0]])
    if not torch.equal(got[0], right_ids):
        raise Wrong("input_ids should be n times pad_id, and then the row.")
    right_mask = torch.tensor([[0] * n + [1] * 4, [1] * longest])
    for wrong, message in (
        (
            (right_ids != _EOS).long(),
            "You made the mask from the ids. The padding has the id of the end token here, so real end tokens are "
            "hidden too. Go by position.",
        ),
        (1 - right_mask, "The mask is the wrong way round: 1 is a real token, 0 is padding."),
        (torch.ones_like(right_mask), "The mask is 1 everywhere: the model would read the padding."),
        (right_mask.flip(1), "The mask has its zeros on the right; the padding stands on the left."),
    ):
        if torch.equal(got[1].long(), wrong):
            raise Wrong(message)
    if not torch.equal(got[1].long(), right_mask):
        raise Wrong("attention_mask should be n zeros, and then a one for each token of the row.")
    right_labels = torch.tensor([[-100] * n + short_labels, rows[1][1]])
    for wrong, message in (
        (
            torch.where(right_labels == _EOS, -100, right_labels),
            "You masked every label that equals pad_id, and with it the end of each answer.",
        ),
        (torch.tensor([[_EOS] * n + short_labels, rows[1][1]]), "The labels of the padding are learnt. Use -100."),
        (torch.tensor([[0] * n + short_labels, rows[1][1]]), "A label of 0 is a token like any other. Use -100."),
        (torch.tensor([short_labels + [-100] * n, rows[1][1]]), "The labels are filled up on the other side."),
    ):
        if torch.equal(got[2], wrong):
            raise Wrong(message)
    if not torch.equal(got[2], right_labels):
        raise Wrong("labels should be n times -100, and then the labels of the row.")
    others = [[5, 6, 7], [8], [9, 4]], [[-100, 6, 7], [8], [-100, 4]]
    value = _pair(call(answer, *others, 3), 3, "input_ids, attention_mask and labels")
    wanted = [[[5, 6, 7], [3, 3, 8], [3, 9, 4]], [[1, 1, 1], [0, 0, 1], [0, 1, 1]]]
    wanted.append([[-100, 6, 7], [-100, -100, 8], [-100, -100, 4]])
    if any(not equal(one, other) for one, other in zip(value, wanted, strict=True)):
        raise Wrong("It is right for one batch only. Take rows, labels and pad_id from what you are given.")


# --- counting -------------------------------------------------------------------------------------------------------


@exercise(
    "llama.count",
    points=2,
    passes="Keys and values are narrower where several heads share them, and so is LoRA's B.",
    section=_COUNT,
)
def _count(answer: Any) -> None:
    for width, heads, shared, layers, rank in ((576, 9, 3, 30, 8), (4096, 32, 8, 32, 16)):
        values = width // heads * shared
        compare(
            number(call(answer, width, heads, shared, layers, rank)),
            layers * rank * (width + width + width + values),
            [
                (
                    layers * rank * 4 * width,
                    "You took the values for as wide as the queries. There are fewer heads of values: shared_heads.",
                ),
                (rank * (3 * width + values), "That is one layer. The model has several."),
                (layers * (3 * width + values), "The rank is missing."),
                (
                    layers * rank * (2 * width),
                    "That is A of both matrices, or A and B of the query alone. Both matrices have both.",
                ),
                (layers * rank * (width + values), "That is B of both matrices. A is missing."),
                (
                    layers * rank * (2 * width + 2 * values),
                    "The query is as wide as the model; only values are narrower.",
                ),
                (layers * rank * (3 * width + shared), "shared_heads counts heads. A head has width / heads numbers."),
                (layers * (width * width + width * values), "These are the frozen weights. Count A and B."),
                (
                    layers * rank * (width * width + width * values),
                    "A and B are thin: rank · (in + out), not in · out.",
                ),
            ],
            "Count rank · (in + out) for the query and for the value, in each layer.",
        )


# --- reading --------------------------------------------------------------------------------------------------------


@exercise(
    "llama.read",
    points=2,
    passes="What the model was given is cut off, and what it wrote after the end token, too.",
    section=_READ,
)
def _read(answer: Any) -> None:
    words = {1: "<start>", 2: "<end>", 40: "luck", 41: "y", 42: "?", 16: "positive", 17: "negative", 7: " ", 35: "3"}

    def decode(ids: Any) -> str:
        return "".join(words[int(each)] for each in ids)

    # The prompt holds end tokens, as chat templates write them; the second answer was not finished.
    cases = (
        ([1, 40, 2, 1, 41], [16, 7, 35, 2, 2, 2], "positive 3"),
        ([1, 2, 42], [17, 7, 35, 41], "negative 3y"),
        ([1, 40, 41, 2], [2, 2, 2], ""),
    )
    for prompt, new, right in cases:
        _read_one(answer, prompt, new, right, decode)
    value = call(answer, [8, 9, 5, 6, 7, 6], 2, 7, lambda ids: "-".join(str(int(each)) for each in ids))
    if value != "5-6":
        raise Wrong("It is right for one end token only. Use the arguments `eos` and `decode`.")


def _read_one(answer: Any, prompt: list[int], new: list[int], right: str, decode: Callable[[Any], str]) -> None:
    output = [*prompt, *new]
    value = call(answer, list(output), len(prompt), _EOS, decode)
    if not isinstance(value, str):
        raise Wrong(f"Expected a text, got {type(value).__name__}: hand the ids to decode.")
    if value == right:
        return
    for wrong, message in (
        (decode(output), "That is prompt and answer together. The output of `generate` begins with the prompt."),
        (decode(new), "The end tokens are still there. The answer ends before the first one."),
        (
            decode(output[: output.index(_EOS)]) if _EOS in output else None,
            "You cut at the first end token of all, and that one stands in the prompt. Cut the prompt off first.",
        ),
        (decode([*prompt, *new[: new.index(_EOS)]]) if _EOS in new else None, "The prompt is still in front."),
        (
            decode(new[: new.index(_EOS) + 1]) if _EOS in new else None,
            "The end token itself is still there. It is no part of the answer.",
        ),
        (
            decode(new[:-1]),
            "You cut the last token off, whatever it is. An answer that was not finished has no end token.",
        ),
        ("", "An answer without an end token is an answer too: then take all that was written."),
    ):
        if value == wrong:
            raise Wrong(message)
    raise Wrong("Decode what stands after the prompt, up to the first end token, or to the end if there is none.")
