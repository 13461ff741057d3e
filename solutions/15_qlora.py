# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Lab 15: QLoRA
#
# **You will**
#
# * round weights to 8 bits and to 4 bits by hand, put two of them into one byte, and count what a weight costs,
# * write the layer that reads its weight back when it computes, and let a gradient pass through it,
# * train a real model whose weights are stored in 4 bits, and see that not one of the 4-bit weights moves,
# * merge it, round it to 4 bits again, and see what that costs.
#
# **Time:** the whole lab runs in about {{ seconds }} s on two CPU cores (measured). No GPU is needed.
# Read the chapter *QLoRA* first.

# %%
# {{ install }}

# %%
import tempfile
import time
from itertools import chain
from pathlib import Path

import numpy as np
import torch

from course_utils import (
    LoRAConfig,
    QLoRAConfig,
    TrainingConfig,
    check,
    count_parameters,
    find_targets,
    fit,
    inject,
    load,
    load_classifier,
    load_sentiment,
    majority_accuracy,
    make_loader,
    merge,
    predict,
    quantize,
    save,
)
from course_utils.methods import (
    NF4_LEVELS,
    LoRALinear,
    NF4Linear,
    bits_per_parameter,
    dequantize,
    dequantize_blocks,
    dequantize_int8_absmax,
    dequantize_nf4,
    quantize_blocks,
    quantize_int8_absmax,
    quantize_nf4,
)
from course_utils.plots import beside_rounding, levels, training_curves

# %% [markdown]
# ## Exercise 1: eight bits, by the largest number
#
# Divide each row by its largest absolute value, the *absmax*. Now all numbers lie between -1 and 1. Times 127, rounded,
# each is a whole number from -127 to 127 and fits into 8 bits:
#
# $$\text{code} = \text{round}(127 \cdot w / \text{absmax}), \qquad \hat w = \text{code} \cdot \text{absmax} / 127$$
#
# Write the round trip: the codes, and what they read back as. No row is all zeros.


# %% tags=["exercise", "points:2"]
def int8_round_trip(W):
    """Codes (out, in) as torch.int8 with one absmax for each row of W, and the weight (out, in) that they stand for."""
    ### BEGIN SOLUTION
    # Hint: W.abs().amax(dim=1, keepdim=True) is a column, which fits beside each row. Round before .to(torch.int8).
    absmax = W.abs().amax(dim=1, keepdim=True)
    codes = torch.round(127 * W / absmax).to(torch.int8)
    return codes, codes * absmax / 127
    ### END SOLUTION


# %% tags=["check"]
check("qlora.int8", int8_round_trip)

# %% [markdown]
# ## Exercise 2: four bits, two in a byte
#
# NF4 has a table of 16 levels between -1 and 1. A block of neighbouring weights is divided by its absmax, and for each
# number we store the *index* of the nearest level. Sixteen indices need four bits, so two of them share a byte: the
# first of a pair in the high four bits, the second in the low four. The indices 10 and 2 make $10 \cdot 16 + 2 = 162$.


# %% tags=["exercise", "points:3"]
def nf4_block(block, levels):
    """One block of weights (an even number) → the bytes, torch.uint8 (half as many), and the absmax."""
    ### BEGIN SOLUTION
    # Hint: (scaled[:, None] - levels).abs().argmin(dim=1) is the nearest level's index. codes[0::2] are the first ones.
    absmax = block.abs().max()
    codes = (block[:, None] / absmax - levels).abs().argmin(dim=1)
    return (codes[0::2] << 4 | codes[1::2]).to(torch.uint8), absmax
    ### END SOLUTION


# %% tags=["check"]
check("qlora.nf4", nf4_block)

# %% [markdown]
# ## Exercise 3: what does a weight cost?
#
# Four bits for the code. On top comes the absmax, a float32 of 32 bits, which `block` weights share. With double
# quantisation the absmax itself is stored in 8 bits, and `second_block` of these values share one float32.


# %% tags=["exercise", "points:2"]
def bits_per_weight(block, second_block=None):
    """Bits for one weight; `second_block=None` means that the absmax values stay in float32."""
    ### BEGIN SOLUTION
    # Hint: one second scale serves second_block absmax values, and so block · second_block weights.
    if second_block is None:
        return 4 + 32 / block
    return 4 + 8 / block + 32 / (block * second_block)
    ### END SOLUTION


# %% tags=["check"]
check("qlora.bits", bits_per_weight)

# %% [markdown]
# ## Exercise 4: the layer
#
# The weight is stored as indices, and read back when it is needed: $\hat W = \text{levels}[\text{codes}] \cdot
# \text{absmax}$. Here each row is one block, and the indices are not packed. LoRA stands beside it (the bias is left
# out):
#
# $$h = \hat W x + s \cdot B A x$$
#
# $\hat W$ is frozen. But the layers *below* this one want to learn, so the gradient must come through. Let
# $g = \partial L / \partial h$, one row for each row of `x`. Return `h`, and the gradient of `x`.


# %% tags=["exercise", "points:3"]
def qlora_layer(x, g, codes, absmax, levels, A, B, s):
    """Output (rows, out), and gradient of x (rows, in); codes (out, in), absmax (out), A (rank, in), B (out, rank)."""
    ### BEGIN SOLUTION
    # Hint: levels[codes] looks all of them up. Forward it is x Ŵᵀ for rows; backward the same matrix, not transposed.
    W = levels[codes] * absmax[:, None]
    h = x @ W.T + s * (x @ A.T @ B.T)
    return h, g @ W + s * (g @ B @ A)
    ### END SOLUTION


# %% tags=["check"]
check("qlora.layer", qlora_layer)

# %% [markdown]
# ## Real weights
#
# Are the weights of a trained model normally distributed? Here is one matrix of MiniLM, each number divided by the
# absmax of its block of 64. One number of each block is at -1 or 1: the largest.

# %% tags=["nbval-ignore-output"]
model, tokenizer = load_classifier("minilm")
weight = model.bert.encoder.layer[2].intermediate.dense.weight.detach()
levels(weight, "the weights of one matrix of MiniLM")

# %% [markdown]
# Close to a bell. NF4 has many levels where many weights are. Does this help? We round the same matrix in several ways
# and measure the relative error, $\lVert \hat W - W \rVert / \lVert W \rVert$.


# %%
def error(restored, weight):
    """The relative error of a weight that was rounded."""
    return ((restored.view_as(weight) - weight).norm() / weight.norm()).item()


def four_bits(weight, table, block_size):
    """The weight after rounding to a table of levels."""
    codes, absmax = quantize_blocks(weight, table, block_size)
    return dequantize_blocks(codes, absmax, table, block_size)


equal_steps = torch.linspace(-1, 1, 16)
print(f"8 bits, one absmax a row:          {error(dequantize_int8_absmax(*quantize_int8_absmax(weight)), weight):.1%}")
print(f"4 bits, NF4, blocks of 64:         {error(four_bits(weight, NF4_LEVELS, 64), weight):.1%}")
print(f"4 bits, equal steps, blocks of 64: {error(four_bits(weight, equal_steps, 64), weight):.1%}")
print(f"4 bits, NF4, one absmax for all:   {error(four_bits(weight, NF4_LEVELS, weight.numel()), weight):.1%}")

# %% [markdown]
# Four bits cost about ten times the error of eight. At four bits, both the table and the blocks help. And this is why
# blocks are small: one very large number spoils only the block where it stands. We put an outlier into one row and look
# at all *other* numbers of that row.

# %%
spoilt = weight.clone()
spoilt[3, 17] = 100 * weight.std()
others = torch.arange(weight.shape[1]) != 17
for title, restored in (
    ("8 bits, one absmax a row", dequantize_int8_absmax(*quantize_int8_absmax(spoilt))),
    ("4 bits, one absmax a row", four_bits(spoilt, NF4_LEVELS, weight.shape[1]).view_as(weight)),
    ("4 bits, blocks of 64", four_bits(spoilt, NF4_LEVELS, 64).view_as(weight)),
):
    print(f"{title}: {error(restored[3][others], spoilt[3][others]):.0%} error in the rest of the row")

# %% [markdown]
# With one scale for the row, four bits lose the whole rest of it: everything is nearest to zero. With blocks, the
# outlier takes its 63 neighbours with it, and the five other blocks of the row are as before: $\sqrt{63/383}$ is 41%.
#
# ## QLoRA in a real model
#
# `QLoRAConfig` rounds the linear layers of the body to NF4 and puts LoRA beside each of them. The head, the embeddings,
# the normalisations and the biases stay as they are.

# %%
config = QLoRAConfig(rank=8, alpha=16)
reference, tokenizer = load_classifier("minilm")
model, _ = load_classifier("minilm")
inject(model, config)
print(count_parameters(model))
layer = model.bert.encoder.layer[0].attention.self.query
print(layer.base)
print("stored:", layer.base.codes.dtype, tuple(layer.base.codes.shape), "for", layer.base.packed_parameters, "weights")
print(f"by the formula {bits_per_parameter():.3f} bits, without double quantisation {bits_per_parameter(double=False)}")


# %% [markdown]
# What is stored agrees with the formula, to the third digit. How much smaller is the whole model?


# %%
def megabytes(model):
    """What parameters and buffers of a model take."""
    return sum(tensor.nbytes for tensor in chain(model.parameters(), model.buffers())) / 1e6


packed = sum(module.packed_parameters for module in model.modules() if isinstance(module, NF4Linear))
embeddings = sum(p.numel() for p in model.bert.embeddings.parameters())
print(f"float32 {megabytes(reference):.1f} MB, QLoRA {megabytes(model):.1f} MB, LoRA's matrices and head included")
print(f"{packed:,} weights are in 4 bits, {embeddings:,} in the embeddings are not")

# %% [markdown]
# Half of MiniLM is its table of words, which is not quantised. In a model with billions of weights the table is a small
# part. One thing is different from LoRA: at the start the model computes what the *quantised* model computes, and that
# is not quite what the original did.

# %%
tweets = load_sentiment("tweets")
batch = next(iter(make_loader(tweets["train"].select(range(8)), tokenizer, 8)))


@torch.no_grad()
def logits_of(model):
    """What a model says to the eight tweets."""
    return model.eval()(**batch).logits


start = logits_of(model)
print("equal to the quantised model:", torch.equal(start, logits_of(quantize(load_classifier("minilm")[0]))))
print("equal to the original model:", torch.allclose(start, logits_of(reference), rtol=1e-3))

# %% [markdown]
# ## Training
#
# As for LoRA. Each layer reads its weight back in the forward pass, and again in the backward pass.

# %% tags=["nbval-ignore-output"]
stored = {name: buffer.clone() for name, buffer in model.named_buffers()}
judged = tweets["validation"].select(range(200))  # enough to see what happens, and the lab stays short
train = make_loader(tweets["train"].select(range(768)), tokenizer, 16, shuffle=True)
validation = make_loader(judged, tokenizer, 64)
floor = majority_accuracy(list(tweets["train"]["label"]), list(judged["label"]))
history = fit(model, train, validation, TrainingConfig(learning_rate=4e-3, epochs=1))
training_curves({"QLoRA, rank 8": history}, floor)

# %%
accuracy = history.evaluations[-1]["accuracy"]
assert accuracy > floor + 0.15, f"{accuracy:.1%} is too close to the floor of {floor:.1%}"
print("QLoRA is far above the floor after 48 steps")

# %% [markdown]
# ## Who has moved?
#
# Not one bit of the stored weights. They got no gradient, and the optimiser does not know of them. Still, the gradient
# went through them: LoRA in the *first* layer has learnt, and its gradient came down through all layers above.

# %%
print("codes and scales unchanged:", all(torch.equal(stored[name], buffer) for name, buffer in model.named_buffers()))
first = model.bert.encoder.layer[0].attention.self.query
print("B of the first layer has moved away from zero:", bool(first.lora_B.weight.any()))
print("type of A and B:", first.lora_A.weight.dtype, "type of the stored codes:", first.base.codes.dtype)

# %% [markdown]
# How large is what LoRA has learnt, beside the error that rounding to four bits made?

# %% tags=["nbval-ignore-output"]
originals = find_targets(reference, "all-linear")
adapted = {name: module for name, module in model.named_modules() if isinstance(module, LoRALinear)}
with torch.no_grad():
    updates = [(module.delta().norm() / module.base.weight.norm()).item() for module in adapted.values()]
    roundings = [error(module.base.weight, originals[name].weight) for name, module in adapted.items()]
beside_rounding(updates, roundings)

# %%
assert all(0.05 < rounding < 0.15 for rounding in roundings)
print("rounding to four bits changes every matrix by roughly a tenth of its size")

# %% [markdown]
# Keep this picture in mind for merging.
#
# ## What reading back costs
#
# The same steps with the 4-bit layers, and with ordinary layers that hold the very same numbers in float32.

# %% tags=["nbval-ignore-output"]
packed_model = inject(quantize(load_classifier("minilm")[0]), config)
expanded = inject(
    dequantize(quantize(load_classifier("minilm")[0])), LoRAConfig(rank=8, alpha=16, targets="all-linear")
)


def seconds_of_a_step(model, batch):
    """Forward and backward pass."""
    started = time.perf_counter()
    model(**batch).loss.backward()
    return time.perf_counter() - started


for texts in (2, 32):
    some = next(iter(make_loader(tweets["train"].select(range(texts)), tokenizer, texts)))
    times = [(seconds_of_a_step(packed_model, some), seconds_of_a_step(expanded, some)) for _ in range(4)]  # in turn
    slow, fast = (min(column) for column in zip(*times, strict=True))
    print(f"{texts} tweets: 4 bits {1000 * slow:.0f} ms, float32 {1000 * fast:.0f} ms, ratio {slow / fast:.2f}")

# %% [markdown]
# Reading back is work that comes on top. The larger the batch, the less it counts: in each pass a weight is read once
# for all tokens.
#
# And do the two models compute the same? They must: QLoRA *is* LoRA on the rounded weights.

# %%
print("same logits at the start:", torch.equal(logits_of(packed_model), logits_of(expanded)))

# %% [markdown]
# ## Merging
#
# First in full precision: $\hat W + s B A$ as an ordinary float32 matrix.

# %%
folder = Path(tempfile.mkdtemp())
save(model, folder / "adapter")  # before merging: a merged model has nothing left to save apart
_, unmerged_logits = predict(model, validation)
with torch.no_grad():
    changes = {name: module.delta().clone() for name, module in adapted.items()}
merge(model)
_, merged_logits = predict(model, validation)


def relative(logits):
    """How far these logits are from those of the model that was trained."""
    return float(np.linalg.norm(logits - unmerged_logits) / np.linalg.norm(unmerged_logits))


assert relative(merged_logits) < 1e-5
print(f"the same answers, and {megabytes(model):.1f} MB again")

# %% [markdown]
# Correct, and as large as before: the four bits are gone. So round the sum to four bits once more? We measure the new
# rounding error, too, and compare it with the size of what LoRA had learnt.

# %% tags=["nbval-ignore-output"]
merged_weights = {name: layer.weight.detach().clone() for name, layer in find_targets(model, "all-linear").items()}
quantize(model)
_, rounded_logits = predict(model, validation)
again = find_targets(model, "all-linear")
moved = {name: again[name].weight - (merged_weights[name] - changes[name]) for name in changes}  # after all
errors = [((moved[name] - change).norm() / change.norm()).item() for name, change in changes.items()]
left = [((moved[name] * change).sum() / change.norm() ** 2).item() for name, change in changes.items()]
print(f"the logits move by {relative(rounded_logits):.1%} of their size")
print(f"answers that changed: {(rounded_logits.argmax(1) != unmerged_logits.argmax(1)).sum()} of {len(rounded_logits)}")
print(f"size of the new rounding error, beside that of the update: {np.mean(errors):.0%} on average")
print(f"in the direction of the update the weights moved {np.mean(left):.0%} of the way on average")

# %%
assert relative(rounded_logits) > 100 * relative(merged_logits)
assert 0.5 < np.mean(errors) < 2
assert np.mean(left) < 0.75
print("merged in full precision nothing changes; rounded to four bits again the model computes something else")

# %% [markdown]
# Look at the last two lines of the cell before. The rounded weights stand on their levels. LoRA has moved them away a
# little, and most of these moves are shorter than half the way to the next level. So rounding takes them back to where
# they were: the new error is nearly as large as the whole update, and much of what was learnt is gone. Nothing in the
# training has seen it coming.
#
# ## What is stored
#
# The adapter says nothing of the four bits: it is a LoRA as in lab 9. Load it onto a *quantised* model to get what you
# trained. Onto the original weights it loads, too, without a word, and computes something else.

# %%
restored = quantize(load_classifier("minilm")[0])
load(restored, folder / "adapter")
print("onto the quantised model, the same logits:", np.array_equal(predict(restored, validation)[1], unmerged_logits))
elsewhere, _ = load_classifier("minilm")
load(elsewhere, folder / "adapter")
print("onto the original, the same logits:", relative(predict(elsewhere, validation)[1]) < 1e-3)

# %% [markdown]
# ## Your experiment
#
# Change one thing and run the cell again. Ideas:
#
# * `block_size=4096`, and blocks of 16. What does a weight cost, and how large is the rounding error?
# * `double=False`. Can you see any difference?
# * `compute_dtype=torch.bfloat16`, the paper's choice on a GPU. On many processors it is slower.

# %% tags=["nbval-ignore-output"]
model, tokenizer = load_classifier("minilm")
inject(model, QLoRAConfig(rank=8, alpha=16, block_size=4096))
layer = model.bert.encoder.layer[0].attention.self.query.base
print(layer, f"error {error(layer.weight, reference.bert.encoder.layer[0].attention.self.query.weight):.1%}")
few = make_loader(tweets["train"].select(range(256)), tokenizer, 32, shuffle=True)
experiment = fit(model, few, validation, TrainingConfig(learning_rate=4e-3, epochs=1))
print(f"validation accuracy {experiment.evaluations[-1]['accuracy']:.1%}, floor {floor:.1%}")

# %% [markdown]
# ## The same in `peft`
#
# peft has no number format of its own. It puts its LoRA on whatever layers the model has. So we give it ordinary layers
# with our rounded weights, and load our adapter.

# %%
import warnings

warnings.filterwarnings("ignore", category=FutureWarning)  # transformers' notes to the authors of peft
from peft import PeftModel

model = dequantize(quantize(load_classifier("minilm")[0]))
loaded = PeftModel.from_pretrained(model, folder / "adapter").eval()
_, peft_logits = predict(loaded, validation)
print("same logits in peft:", np.array_equal(peft_logits, unmerged_logits))

# %% [markdown]
# On a GPU the four bits come from the library `bitsandbytes`. Is its format ours? The course does not need that
# library; where it is missing, the next cell only says so.

# %% tags=["nbval-ignore-output"]
try:
    import bitsandbytes.functional as bnb
except ImportError:
    print(
        "bitsandbytes is not installed. Install it and run this cell again; the course's tests compare the bytes, too."
    )
else:
    codes, absmax = quantize_nf4(weight)
    theirs, state = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    assert torch.equal(codes, theirs.flatten())
    assert torch.equal(absmax, state.absmax)
    assert torch.equal(dequantize_nf4(codes, absmax, weight.shape), bnb.dequantize_4bit(theirs, state))
    print("same bytes, same scales, and the same weights read back")

# %% [markdown]
# ## Take away
#
# * A number becomes the index of the nearest of 16 levels. The block's largest absolute value sets the scale.
# * 4.5 bits for each weight, 4.127 with double quantisation.
# * The rounded weights are frozen, and the gradient passes through them. LoRA's matrices are never rounded.
# * Merging in full precision is exact and gives up the four bits. Rounding the sum again changes the model.
