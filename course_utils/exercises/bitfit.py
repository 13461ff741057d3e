"""The checks of chapter 7, BitFit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from course_utils.exercises.checking import Wrong, call, compare, exercise, number, random_tensors, tensor

_FORMULA = "The formula, beside the code"
_TWO = "All biases, or two of them"
_COUNT = "What it costs"

_BLOCK = "bert.encoder.layer.3."
#: Parameters as in BERT, and one whose name is a trap: a matrix that is called bias (T5 and others have such a table).
_NAMES = (
    "bert.embeddings.word_embeddings.weight",
    "bert.embeddings.LayerNorm.weight",
    "bert.embeddings.LayerNorm.bias",
    f"{_BLOCK}attention.self.relative_attention_bias.weight",
    f"{_BLOCK}attention.self.query.weight",
    f"{_BLOCK}attention.self.query.bias",
    f"{_BLOCK}attention.self.key.weight",
    f"{_BLOCK}attention.self.key.bias",
    f"{_BLOCK}attention.self.value.weight",
    f"{_BLOCK}attention.self.value.bias",
    f"{_BLOCK}attention.output.dense.weight",
    f"{_BLOCK}attention.output.dense.bias",
    f"{_BLOCK}attention.output.LayerNorm.weight",
    f"{_BLOCK}attention.output.LayerNorm.bias",
    f"{_BLOCK}intermediate.dense.weight",
    f"{_BLOCK}intermediate.dense.bias",
    f"{_BLOCK}output.dense.weight",
    f"{_BLOCK}output.dense.bias",
    f"{_BLOCK}output.LayerNorm.weight",
    f"{_BLOCK}output.LayerNorm.bias",
    "bert.pooler.dense.weight",
    "bert.pooler.dense.bias",
)


@exercise(
    "bitfit.names",
    points=2,
    passes="All biases and the whole head: nothing else is trained.",
    section=_FORMULA,
)
def _names_of_bitfit(answer: Any) -> None:
    for head in ("classifier", "score"):
        names = [*_NAMES, f"{head}.weight", f"{head}.bias"]
        chosen = _names(call(answer, list(names), head), names)
        biases = {name for name in names if name.endswith(".bias")}
        of_head = {f"{head}.weight", f"{head}.bias"}
        trap = {name for name in names if "relative_attention_bias" in name}
        if chosen == biases | of_head:
            continue
        if chosen & trap:
            raise Wrong(
                f"{min(trap)} is a weight of a layer whose name holds the word “bias”. A bias is a parameter whose "
                "*last* part is `bias`."
            )
        if chosen == of_head:
            raise Wrong("That is the head alone, which is feature extraction. Add the biases.")
        if weights := sorted(chosen - biases - of_head):
            raise Wrong(f"{weights[0]} is a weight. BitFit freezes all weights except the head's.")
        if not chosen & of_head:
            raise Wrong("The head is missing. It is new and starts at random, so it is trained with every method.")
        if f"{head}.weight" not in chosen:
            raise Wrong(f"Only the head's bias is there. The head is trained as a whole, so {head}.weight too.")
        if not any("LayerNorm" in name for name in chosen):
            raise Wrong("The biases of the layer normalisations are missing. BitFit trains every bias, theirs too.")
        raise Wrong(f"{min((biases | of_head) - chosen)} is missing. BitFit trains every bias, and the whole head.")


@exercise(
    "bitfit.gradient",
    points=2,
    passes="One sum over all tokens of all texts. The input of the layer is not needed for it.",
    section=_FORMULA,
)
def _gradient(answer: Any) -> None:
    # Axes of different lengths, and then two that are equal: there a sum over the wrong two is seen, too.
    for shape in ((2, 3, 5), (5, 3, 5), (3, 7, 7)):
        (g,) = random_tensors(shape)
        result = call(answer, g)
        texts, tokens, out = shape
        if getattr(result, "shape", None) == (texts, out) and texts != out:
            raise Wrong("You summed over the tokens of each text. The texts share one bias as well: sum over both.")
        if getattr(result, "shape", None) == (tokens, out) and tokens != out:
            raise Wrong("You summed over the texts. All tokens share one bias as well: sum over both.")
        if getattr(result, "shape", None) == (texts, tokens):
            raise Wrong("You summed over the outputs. Each output has its own bias: that axis stays.")
        if getattr(result, "shape", None) == ():
            raise Wrong("You summed over everything. Each output has its own bias: the last axis stays.")
        value = tensor(result, (out,), "the gradient of the bias")
        total = g.sum((0, 1))
        compare(
            value,
            total,
            [
                (
                    g.mean((0, 1)),
                    "That is the mean over the tokens. The bias is added at each token, so its gradients add up: a sum.",
                ),
                (g.sum(1).mean(0), "That is a mean over the texts. What is shared adds up: a sum over both axes."),
                (g.sum(0).mean(0), "That is a mean over the tokens of a text. What is shared adds up: a sum."),
                (g[:, 0].sum(0), "That is the first token alone. The bias is added at every token."),
                (g[0].sum(0), "That is the first text alone. All texts of the batch share the bias."),
                (-total, "The sign is turned. That is the direction of the step; the gradient itself has no minus."),
                (total.abs(), "A gradient keeps its sign."),
                (g.abs().sum((0, 1)), "You summed absolute values. Opposite wishes of two tokens cancel out."),
                (g.sum((1, 2)), "You kept the axis of the texts. The outputs' axis, the last one, stays."),
                (g.sum((0, 2)), "You kept the axis of the tokens. The outputs' axis, the last one, stays."),
            ],
            "It is not the sum of the output's gradients over texts and tokens.",
        )


@exercise(
    "bitfit.count",
    points=3,
    passes="For BERT-base your formula gives 102,914: 0.09% of the model.",
    section=_COUNT,
)
def _count(answer: Any) -> None:
    for width, inner, blocks, labels in ((10, 37, 3, 5), (768, 3072, 12, 2)):
        normalisations = (2 * blocks + 1) * width
        block = 5 * width + inner  # query, key, value, attention output, inner, second
        right = blocks * block + normalisations + width + labels
        value = number(call(answer, width, inner, blocks, labels))
        mistakes = [
            (right - labels, "The head's own bias is missing: one number for each label."),
            (right - width, "One vector of the width is missing: the embeddings' normalisation, or the pooler."),
            (right - 2 * width, "The embeddings' normalisation and the pooler are missing: one vector each."),
            (right - 2 * width - labels, "Those are the blocks alone. Add embeddings, pooler and head."),
            (right - normalisations, "The normalisations are missing. Each has a bias as well."),
            (right - 2 * blocks * width, "The blocks' normalisations are missing: two in each block."),
            (
                right - blocks * width,
                "One vector is missing in each block: is a normalisation or the output forgotten?",
            ),
            (
                right + blocks * (inner - width),
                "The second feed-forward layer's bias is as long as its *output*, width.",
            ),
            (
                right - blocks * (inner - width),
                "The first feed-forward layer's bias is as long as its *output*, inner.",
            ),
            (right + normalisations, "You counted the normalisations' weights as well. BitFit freezes them."),
            (right + labels * width, "You counted the head's weight as well. Here we want the biases only."),
            (right + labels * (width - 1), "The head's bias has one number for each label, not labels · width."),
            (block + 2 * width + 2 * width + labels, "That is a model of one block. Multiply by `blocks`."),
            (blocks * (width + inner), "That is the variant with two biases. Here we want them all."),
        ]
        otherwise = (
            f"For width {width}, inner {inner}, {blocks} blocks and {labels} labels it is {right:,}, your function "
            f"returns {value:,g}."
        )
        compare(value, right, mistakes, otherwise)


@exercise(
    "bitfit.two",
    points=2,
    passes="These are the query's bias and the inner one: less than half of all biases.",
    section=_TWO,
)
def _two(answer: Any) -> None:
    _two_of(answer, list(_NAMES), _BLOCK)
    other = "deberta.encoder.layer.11."
    _two_of(answer, [name.replace(_BLOCK, other) for name in _NAMES if "embeddings" not in name], other)


def _two_of(answer: Any, names: list[str], block: str) -> None:
    chosen = _names(call(answer, list(names)), names)
    query, inner = f"{block}attention.self.query.bias", f"{block}intermediate.dense.bias"
    second, after_attention = f"{block}output.dense.bias", f"{block}attention.output.dense.bias"
    if chosen == {query, inner}:
        return
    if weights := sorted(name for name in chosen if not name.endswith(".bias")):
        raise Wrong(f"{weights[0]} is no bias. Look at the last part of the name.")
    if query not in chosen:
        raise Wrong("The query's bias is missing: attention.self.query.bias.")
    if after_attention in chosen:
        raise Wrong(
            "attention.output.dense.bias is not one of the two. The paper counts that layer as the first (m1), and its "
            "m2 is the next one, the inner layer."
        )
    if second in chosen:
        raise Wrong(
            "You took the last layer of the feed-forward part, which the paper calls m3. The paper's m2 is the layer "
            "before the activation function: intermediate.dense."
        )
    if inner not in chosen:
        raise Wrong("The bias of the feed-forward part is missing: intermediate.dense.bias.")
    if chosen & {f"{block}attention.self.key.bias", f"{block}attention.self.value.bias"}:
        raise Wrong("Of query, key and value only the query's bias is trained.")
    raise Wrong(f"{min(chosen - {query, inner})} is not one of the two.")


def _names(value: Any, existing: list[str]) -> set[str]:
    """The learner's choice of names."""
    if isinstance(value, str) or not isinstance(value, Iterable):
        raise Wrong(f"Expected a list of names, got {type(value).__name__}.")
    chosen = list(value)
    if strange := [name for name in chosen if name not in existing]:
        raise Wrong(f"{strange[0]!r} is not one of the names that your function was given. Return whole names.")
    if len(chosen) != len(set(chosen)):
        raise Wrong("A name stands there twice.")
    if not chosen:
        raise Wrong("No name was chosen at all.")
    return set(chosen)
