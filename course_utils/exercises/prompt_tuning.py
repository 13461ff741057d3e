"""The checks of chapter 12, Prompt tuning. Each compares with plain tensors of unequal sizes."""

from __future__ import annotations

from typing import Any

import torch

from course_utils.exercises.checking import (
    Wrong,
    call,
    compare,
    equal,
    exercise,
    number,
    random_tensors,
    reaches,
    tensor,
    trained_tensors,
)

_FORMULA = "The formula, beside the code"
_START = "Where the vectors start"
_POOL = "Which position does the head read?"
_COUNT = "What it costs"


@exercise(
    "prompt_tuning.prepend",
    points=3,
    passes="The k vectors stand before every text, each token sees them, and the gradient reaches P.",
    section=_FORMULA,
)
def _prepend(answer: Any) -> None:
    # One row is padded on the right and one on the left, so that the place of the new ones in the mask matters.
    mask = torch.tensor([[1, 1, 1, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1, 1]])
    embedded, prompt = random_tensors((2, 7, 5), (3, 5))
    prompt.requires_grad_()
    x, extended = _pair(call(answer, embedded, mask, prompt))
    _one_prompt_a_text(x, embedded, prompt)
    repeated = prompt.detach().expand(2, -1, -1)
    compare(
        tensor(x, (2, 10, 5), "the embeddings, (batch, k + tokens, hidden),"),
        torch.cat((repeated, embedded), dim=1),
        [
            (
                torch.cat((embedded, repeated), dim=1),
                "P stands behind the text. It belongs before it: [P; E]. Behind, it would come after the padding.",
            ),
            (
                torch.cat((repeated.flip(1), embedded), dim=1),
                "The rows of P are in reverse order.",
            ),
            (
                torch.cat((repeated * 0, embedded), dim=1),
                "The k new rows are zeros. They should be the rows of P.",
            ),
        ],
        "The embeddings are not P and then E, one after the other along the tokens.",
    )
    ones = torch.ones(2, 3, dtype=mask.dtype)
    if isinstance(extended, torch.Tensor) and tuple(extended.shape) == (2, 7):
        raise Wrong("The mask has still the length of the text. It needs k entries more, one for each row of P.")
    compare(
        tensor(extended, (2, 10), "the mask, (batch, k + tokens),"),
        torch.cat((ones, mask), dim=1),
        [
            (
                torch.cat((ones * 0, mask), dim=1),
                "The k new entries of the mask are 0, so no token looks at P: it has no effect, and gets no gradient "
                "from the text. They must be 1.",
            ),
            (
                torch.cat((mask, ones), dim=1),
                "The ones stand behind the mask. P stands before the text, so they belong before it.",
            ),
            (
                torch.ones(2, 10),
                "The whole mask is 1. Then the padding is read as text; keep the mask of the text as it is.",
            ),
        ],
        "The mask is not k ones and then the mask of the text.",
    )
    reaches(x, prompt)
    embedded, prompt = random_tensors((4, 5, 3), (2, 3))
    x, extended = _pair(call(answer, embedded, torch.ones(4, 5), prompt))
    x = tensor(x, (4, 7, 3), "for k = 2 and four texts of five tokens, the embeddings")
    if not equal(x, torch.cat((prompt.expand(4, -1, -1), embedded), dim=1)):
        raise Wrong("It is right for one batch only. Take the sizes from what you are given.")
    tensor(extended, (4, 7), "for k = 2 and four texts of five tokens, the mask")


def _pair(result: Any) -> tuple[Any, Any]:
    """The two results of the first exercise."""
    if not (isinstance(result, (tuple, list)) and len(result) == 2):
        raise Wrong("Return two tensors: the embeddings with P before them, and the longer mask.")
    x, extended = result
    if all(isinstance(part, torch.Tensor) for part in result) and x.ndim == 2 and extended.ndim == 3:
        raise Wrong("These are the mask and the embeddings. Return the embeddings first.")
    return x, extended


def _one_prompt_a_text(x: Any, embedded: torch.Tensor, prompt: torch.Tensor) -> None:
    """Name the ways to put P into the text instead of before it."""
    if not isinstance(x, torch.Tensor) or x.shape != embedded.shape:
        return
    k = len(prompt)
    if equal(x[:, k:], embedded[:, k:]):
        raise Wrong(f"P is written over the first {k} tokens, and [CLS] is lost. Put P before them: k + tokens rows.")
    raise Wrong("The text has still its old number of rows. P adds k rows; nothing is added to the tokens themselves.")


@exercise(
    "prompt_tuning.initialise",
    points=2,
    passes="k rows of the model's own table: the vectors start as words, in the order of the text.",
    section=_START,
)
def _initialise(answer: Any) -> None:
    (table,) = random_tensors((9, 4))
    ids = [5, 2, 7]
    value = _rows(call(answer, table, list(ids), 5), 5, "three ids and k = 5")
    repeated = table[[5, 2, 7, 5, 2]]
    compare(
        value,
        repeated,
        [
            (table[[5, 5, 2, 2, 7]], "Each id is repeated on the spot. Repeat the whole text: 5, 2, 7, 5, 2."),
            (table[[5, 2, 7, 7, 7]], "You repeat the last token only. Begin the text again: 5, 2, 7, 5, 2."),
            (table[[2, 7, 5, 2, 7]], "You repeat the text, but keep the last k. Keep the first k: 5, 2, 7, 5, 2."),
            (
                torch.cat((table[ids], torch.zeros(2, 4))),
                "The places behind the text are filled with zeros. Begin the text again.",
            ),
            (table[:5], "These are the first k rows of the table. Take the rows that the ids name."),
            (
                table[ids].mean(0).expand(5, -1),
                "All vectors start as the mean of the words. Then they are equal, and position alone tells them apart.",
            ),
        ],
        "The rows are not the embeddings of 5, 2, 7, 5, 2, in this order.",
    )
    table = random_tensors((11, 4))[0] - 1
    value = _rows(call(answer, table, [3, 8, 1, 6], 2), 2, "four ids and k = 2")
    compare(
        value,
        table[[3, 8]],
        [(table[[1, 6]], "A text that is too long is cut at its end. You kept the last k ids.")],
        "For four ids and k = 2 the rows should be those of the first two ids.",
    )


def _rows(value: Any, k: int, case: str) -> torch.Tensor:
    """The learner's k vectors of four numbers."""
    if isinstance(value, torch.Tensor) and value.ndim == 1:
        raise Wrong("These are token ids. Look up their rows in the table `words`.")
    if isinstance(value, torch.Tensor) and value.ndim == 2 and len(value) != k:
        raise Wrong(f"For {case} there should be {k} rows, yours are {len(value)}: repeat the ids, or cut them.")
    return tensor(value, (k, 4), f"for {case}, the result")


@exercise(
    "prompt_tuning.pool",
    points=2,
    passes="The head reads [CLS], as it did before; the k positions only worked for it.",
    section=_POOL,
)
def _pool(answer: Any) -> None:
    (states,) = trained_tensors((6, 9, 5))  # more texts than k, so that an index into the texts can be named
    k = 3
    value = call(answer, states, k)
    if isinstance(value, torch.Tensor) and tuple(value.shape) == (9, 5):
        raise Wrong("You took one whole text. The first index counts the texts; the positions are the second.")
    if isinstance(value, torch.Tensor) and tuple(value.shape) in {(6, 6, 5), (6, 3, 5)}:
        raise Wrong("That is a whole stretch of positions. The head reads one vector for each text.")
    compare(
        tensor(value, (6, 5), "the result, one vector a text,"),
        states[:, k],
        [
            (states[:, 0], "That is the first virtual token, which peft reads. [CLS] stands behind the k vectors."),
            (states[:, k - 1], "That is the last virtual token. Positions count from 0, so [CLS] is at k."),
            (states[:, k + 1], "That is the token after [CLS]. Positions count from 0, so [CLS] is at k."),
            (states[:, -1], "That is the last position, which is padding in a short text. BERT's head reads [CLS]."),
            (states.mean(1), "That is the mean of all positions. The head of BERT reads one of them, [CLS]."),
            (
                states[:, k:].mean(1),
                "That is the mean of the text. The head of BERT reads one of its positions, [CLS].",
            ),
            (states[:, :k].mean(1), "That is the mean of the virtual tokens. The head of BERT reads [CLS]."),
        ],
        "The result is not the row of [CLS].",
    )
    reaches(tensor(value, (6, 5), "the result"), states)
    states = random_tensors((4, 11, 3))[0]
    if not equal(tensor(call(answer, states, 5), (4, 3), "the result for k = 5"), states[:, 5]):
        raise Wrong("It is right for one k only. Use the argument `k`.")


@exercise(
    "prompt_tuning.count",
    points=2,
    passes="Few numbers, whatever the depth of the model; for a short prompt the head is a large part of them.",
    section=_COUNT,
)
def _count(answer: Any) -> None:
    k, hidden, classes = 7, 10, 3
    head = hidden * classes + classes
    value = number(call(answer, k, hidden, classes))
    compare(
        value,
        k * hidden + head,
        [
            (k * hidden, "The head is missing. It is new, so it is trained with the prompt."),
            (k * hidden + hidden * classes, "The bias of the head is missing: one number a class."),
            (k + head, "A virtual token is a vector of `hidden` numbers, not one number."),
            (head, "That is the head alone. The prompt has k · hidden numbers."),
            (
                2 * k * hidden + head,
                "You counted keys and values. That is prefix tuning; a prompt is one vector a token.",
            ),
            (k * hidden * classes + head, "There is one prompt for the task, not one for each class."),
            (k * hidden * hidden + head, "A virtual token is one vector, not a matrix."),
            (k * hidden + classes, "The weight of the head is missing: hidden · classes numbers."),
        ],
        f"For k = 7, hidden = 10 and 3 classes it is {k * hidden + head}, your function returns {value:g}.",
    )
    if number(call(answer, 2, 6, 4)) != 12 + 28:
        raise Wrong("It is right for one case only; use all three arguments.")
