"""The checks of chapter 14, Prefix tuning. Each compares with the formula on small random matrices."""

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
_GATE = "Two attentions and a gate"
_COUNT = "What it costs"


def _attend(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, factor: float | None = None) -> torch.Tensor:
    scores = q @ keys.T * (q.shape[1] ** -0.5 if factor is None else factor)
    return scores.softmax(dim=1) @ values


@exercise(
    "prefix_tuning.attention",
    points=3,
    passes="Every token now looks at the prefix, too, and the text itself was not touched.",
    section=_FORMULA,
)
def _attention(answer: Any) -> None:
    q, K, V, P_K, P_V = random_tensors((3, 11), (5, 11), (5, 11), (2, 11), (2, 11))
    P_K.requires_grad_(), P_V.requires_grad_()
    value = tensor(call(answer, q, K, V, P_K, P_V), (3, 11), "the result, (queries, d),")
    _mixed(value, q, K, V, P_K, P_V)
    reaches(value, P_K, P_V)
    # Other sizes: a number in the formula fails here.
    q, K, V, P_K, P_V = random_tensors((2, 9), (5, 9), (5, 9), (7, 9), (7, 9))
    expected = _attend(q, torch.cat((P_K, K)), torch.cat((P_V, V)))
    if not equal(tensor(call(answer, q, K, V, P_K, P_V), (2, 9), "the result"), expected):
        raise Wrong("It is right for d = 11 only. Take d from the shape of the keys.")


def _mixed(
    value: torch.Tensor, q: torch.Tensor, K: torch.Tensor, V: torch.Tensor, P_K: torch.Tensor, P_V: torch.Tensor
) -> None:
    """The values of the text and of the prefix are mixed by one softmax over all keys."""
    keys, values = torch.cat((P_K, K)), torch.cat((P_V, V))
    text, prefix = _attend(q, K, V), _attend(q, P_K, P_V)
    compare(
        value,
        _attend(q, keys, values),
        [
            (text, "The prefix is missing: this is the attention to the text alone."),
            (prefix, "The text is missing: this is the attention to the prefix alone. Both stand in one list of keys."),
            (
                _attend(q, keys, values, 1.0),
                "The scores are not divided by √d. The prefix changes nothing about that.",
            ),
            (_attend(q, keys, values, 1 / 11), "You divided by d. The scores are divided by its square root."),
            (
                _attend(q, keys, values, 7**-0.5),
                "You divided by the root of the number of keys. d is the length of a key.",
            ),
            (
                _attend(q, torch.cat((P_V, K)), torch.cat((P_K, V))),
                "The keys and the values of the prefix are swapped: P_K belongs to K, P_V to V.",
            ),
            (
                _attend(q, keys, torch.cat((V, P_V))),
                "The prefix stands before the keys and behind the values, so each weight meets another token's value.",
            ),
            (
                _attend(q, torch.cat((K, P_K)), values),
                "The prefix stands behind the keys and before the values, so each weight meets another token's value.",
            ),
            (
                (q @ keys.T / 11**0.5).softmax(dim=0) @ values,
                "The softmax runs over the queries. The weights of one query, over all keys, must add up to 1: dim=1.",
            ),
            (q @ keys.T / 11**0.5 @ values, "The softmax is missing."),
            (
                text + prefix,
                "You added two attentions. There is one softmax over all keys, so the prefix takes its share from the text.",
            ),
            (
                (text + prefix) / 2,
                "Each half got a softmax of its own and half the weight. One softmax over all keys gives each its share.",
            ),
            (
                _attend(q, keys, torch.cat((0 * P_V, V))),
                "The values of the prefix count as zero. P_V is missing in the mix.",
            ),
        ],
        "The result is not softmax(q [P_K; K]ᵀ / √d) [P_V; V].",
    )


@exercise(
    "prefix_tuning.gate",
    points=3,
    passes="Each query has its own gate, and it is never quite closed.",
    section=_GATE,
)
def _gate(answer: Any) -> None:
    q, K, P_K = random_tensors((3, 11), (5, 11), (2, 11))
    value = call(answer, q, K, P_K)
    if isinstance(value, torch.Tensor) and tuple(value.shape) == (3, 1):
        value = value[:, 0]
    if isinstance(value, torch.Tensor) and tuple(value.shape) == (3, 2):
        raise Wrong("That is one share for each virtual token. Add them up: one number for each query.")
    if isinstance(value, torch.Tensor) and tuple(value.shape) in ((), (1,)):
        raise Wrong("That is one number for all. Each query has its own gate: return one number for each row of q.")
    weights = (q @ torch.cat((P_K, K)).T / 11**0.5).softmax(dim=1)
    share = weights[:, :2].sum(dim=1)
    of_prefix, of_text = ((q @ keys.T / 11**0.5).exp().sum(dim=1) for keys in (P_K, K))
    unscaled = (q @ torch.cat((P_K, K)).T).softmax(dim=1)
    compare(
        tensor(value, (3,), "the gate, one number for each query,"),
        share,
        [
            (1 - share, "That is the share of the text. The gate is the share of the prefix."),
            (of_prefix / of_text, "You divided the prefix by the text. The gate is its part of the whole, so below 1."),
            (of_prefix, "Those are the exponentials of the prefix. Divide by the sum over all keys, prefix and text."),
            (share / 2, "That is the mean over the virtual tokens. The gate is the sum of their weights."),
            (weights[:, 0], "That is the share of the first virtual token alone. Add up all of them."),
            (
                weights[:, -2:].sum(dim=1),
                "Those are the weights of the last tokens of the text. The prefix stands first.",
            ),
            (torch.full((3,), 2 / 7), "That is k / (k + tokens), as if all scores were equal. The scores decide."),
            (
                torch.ones(3),
                "The softmax ran over the prefix alone, so its weights add up to 1. It runs over all keys.",
            ),
            (unscaled[:, :2].sum(dim=1), "The scores are not divided by √d."),
            (1 - unscaled[:, :2].sum(dim=1), "That is the share of the text, and the scores are not divided by √d."),
        ],
        "The result is not the part of the softmax that falls on the prefix.",
    )
    q, K, P_K = random_tensors((2, 9), (5, 9), (7, 9))
    expected = (q @ torch.cat((P_K, K)).T / 3).softmax(dim=1)[:, :7].sum(dim=1)
    gate = call(answer, q, K, P_K)
    if not isinstance(gate, torch.Tensor) or not equal(gate.reshape(-1), expected):
        raise Wrong("It is right for k = 2 and d = 11 only. Take both from the shapes.")


@exercise(
    "prefix_tuning.split",
    points=3,
    passes="That is how the table gets into the cache of each layer.",
    section=_FORMULA,
)
def _split(answer: Any) -> None:
    k, layers, heads, d = 3, 4, 2, 5
    width = heads * d
    (table,) = trained_tensors((k, 2 * layers * width))
    layer = 1
    result = call(answer, table, layer, layers, heads)
    if not (isinstance(result, (tuple, list)) and len(result) == 2):
        raise Wrong("Expected two tensors, the keys and the values.")
    got = [_of_one_layer(part, what, heads, k, d) for part, what in zip(result, ("keys", "values"), strict=True)]

    def columns(number: int) -> torch.Tensor:
        """The block of that number, (heads, k, d)."""
        return table[:, number * width : (number + 1) * width].view(k, heads, d).transpose(0, 1)

    def unturned(number: int) -> torch.Tensor:
        return table[:, number * width : (number + 1) * width].reshape(heads, k, d)

    keys, values = columns(2 * layer), columns(2 * layer + 1)
    both = torch.stack([part.detach() for part in got])
    compare(
        both,
        torch.stack((keys, values)),
        [
            (torch.stack((values, keys)), "Keys and values are swapped: the keys of a layer come first."),
            (
                torch.stack((unturned(2 * layer), unturned(2 * layer + 1))),
                "The numbers of different tokens and heads are mixed up. A row of the table is one token, so view it as "
                "(k, heads, d) first, and then swap the first two dimensions.",
            ),
            (
                torch.stack((columns(2 * layer + 2), columns(2 * layer + 3))),
                "That is the layer after it. Layers count from 0.",
            ),
            (
                torch.stack((columns(2 * layer - 2), columns(2 * layer - 1))),
                "That is the layer before it. Layers count from 0.",
            ),
            (
                torch.stack((columns(layer), columns(layers + layer))),
                "You read the table as all keys and then all values. It goes layer by layer: keys of layer 0, its values, "
                "keys of layer 1, and so on.",
            ),
            (
                torch.stack((columns(layer), columns(layer + 1))),
                "You forgot that each layer has two blocks, so the blocks before yours are 2 · layer.",
            ),
            (torch.stack((keys, keys)), "Both are the keys. The values stand in the block behind them."),
            (torch.stack((values, values)), "Both are the values. The keys stand in the block before them."),
        ],
        f"These are not the keys and the values of layer {layer}.",
    )
    for part in got:
        reaches(part, table)
    (table,) = random_tensors((2, 2 * 3 * 20))
    result = call(answer, table, 2, 3, 5)
    block = [table[:, start : start + 20].view(2, 5, 4).transpose(0, 1) for start in (80, 100)]
    if not all(equal(one, other) for one, other in zip(result, block, strict=True)):
        raise Wrong("It is right for one size only. Take the width from the table: its columns are 2 · layers · width.")


def _of_one_layer(value: Any, what: str, heads: int, k: int, d: int) -> torch.Tensor:
    if isinstance(value, torch.Tensor) and tuple(value.shape) == (k, heads, d):
        raise Wrong(
            f"Your {what} have the shape (k, heads, d). Each head attends by itself, so the heads come first: swap the "
            "first two dimensions."
        )
    if isinstance(value, torch.Tensor) and tuple(value.shape) == (k, heads * d):
        raise Wrong(f"Your {what} are the right block or another of that size, but the heads are not apart yet.")
    return tensor(value, (heads, k, d), f"the {what}, (heads, k, d),")


@exercise(
    "prefix_tuning.count",
    points=2,
    passes="The table is small. The network that computes it need not be.",
    section=_COUNT,
)
def _count(answer: Any) -> None:
    k, layers, width, mid = 7, 3, 8, 4
    direct = number(call(answer, k, layers, width, None))
    compare(
        direct,
        336,
        [
            (168, "You counted the keys alone. Each layer has keys and values."),
            (112, "You counted one layer. Every layer has its own keys and values."),
            (56, "That is prompt tuning: k vectors at the input. Here each layer has keys and values of its own."),
            (48, "k is missing: there are as many rows as virtual tokens."),
            (332, "That is the count with the network. With mid_dim None the table itself is trained."),
        ],
        f"For k = {k}, {layers} layers and width {width}, the table has 336 numbers, your function returns {direct:g}.",
    )
    network = number(call(answer, k, layers, width, mid))
    compare(
        network,
        332,
        [
            (336, "With a network, the table is computed and not trained. Count the embedding and the two layers."),
            (668, "The table is computed by the network, so it is not trained besides it."),
            (280, "The biases are missing: one number for each output of the two layers."),
            (276, "The embedding is missing: k rows of `width` numbers go into the network."),
            (224, "The embedding and the biases are missing."),
            (172, "The second layer must give the keys and values of all layers: 2 · layers · width outputs."),
            (212, "The second layer gives keys and values, so it has 2 · layers · width outputs."),
            (7 * 36 + 7 * 240 + 56, "The network is one for all virtual tokens: only the embedding has k rows."),
            (7 * 36 + 7 * 240, "The network is one for all virtual tokens: only the embedding has k rows."),
            (296, "The first layer is missing: from width to mid_dim."),
            (92, "The second layer is missing: from mid_dim to 2 · layers · width."),
        ],
        f"With a network of mid_dim {mid} it is 332, your function returns {network:g}.",
    )
    if (number(call(answer, 2, 5, 6, None)), number(call(answer, 2, 5, 6, 3))) != (120, 273):
        raise Wrong("It is right for one size only; use the arguments.")
