# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Lab 11: (IA)³
#
# **You will**
#
# * write (IA)³ in an attention layer and in a feed-forward block, merge it, and count its parameters,
# * put it into a real model, train it on real tweets, and see which factors moved away from one,
# * merge it, store it in some sixty kilobytes, and load it in `peft`.
#
# **Time:** the whole lab runs in about {{ seconds }} s on two CPU cores (measured). No GPU is needed.
# Read the chapter *(IA)³* first.

# %%
# {{ install }}

# %%
import math
import tempfile
from pathlib import Path

import numpy as np
import torch
from transformers import BertConfig, BertForSequenceClassification

from course_utils import (
    IA3Config,
    TrainingConfig,
    check,
    check_invariants,
    count_parameters,
    fit,
    inject,
    load,
    load_classifier,
    load_sentiment,
    majority_accuracy,
    make_loader,
    merge,
    predict,
    save,
)
from course_utils.methods import IA3Linear
from course_utils.plots import bars, factors_moved, training_curves

# %% [markdown]
# ## Exercise 1: attention with scaled keys and values
#
# Attention computes $\text{softmax}(q\,k^\top / \sqrt d)\;v$. (IA)³ multiplies each number of a key by its own factor,
# and each number of a value by its own:
#
# $$\text{softmax}\!\left(\frac{q\,(l_k \odot k)^\top}{\sqrt d}\right) (l_v \odot v)$$
#
# Here is one head. `q`, `k` and `v` hold one row for each token; $d$ is the length of a row of `q`.


# %% tags=["exercise", "points:3"]
def ia3_attention(q, k, v, l_k, l_v):
    """Attention of one head with factors l_k (d) and l_v (e); q (queries, d), k (tokens, d), v (tokens, e)."""
    ### BEGIN SOLUTION
    # Hint: k * l_k multiplies every row of k by the vector l_k. The softmax goes along the tokens, dim=-1.
    scores = q @ (k * l_k).T / math.sqrt(q.shape[1])
    return torch.softmax(scores, dim=-1) @ (v * l_v)
    ### END SOLUTION


# %% tags=["check"]
check("ia3.attention", ia3_attention)

# %% [markdown]
# ## Exercise 2: the feed-forward block
#
# The block makes a long inner vector $f = \text{GELU}(W_1 x + b_1)$ and reads it with a second layer. (IA)³ scales
# the inner vector, after the activation function and before the second layer:
#
# $$W_2\,(l \odot f) + b_2$$


# %% tags=["exercise", "points:2"]
def ia3_feedforward(x, W1, b1, W2, b2, l_ff):
    """W2 (l_ff ⊙ GELU(W1 x + b1)) + b2 for every row x; `torch.nn.functional.gelu` is GELU."""
    ### BEGIN SOLUTION
    # Hint: a layer is x @ W.T + b here, because x holds one row for each token.
    inner = torch.nn.functional.gelu(x @ W1.T + b1)
    return (inner * l_ff) @ W2.T + b2
    ### END SOLUTION


# %% tags=["check"]
check("ia3.feedforward", ia3_feedforward)

# %% [markdown]
# ## Exercise 3: merging, two cases
#
# After training, the factors go into the layer beside them.
#
# * `side="output"`: the layer of the keys or values. Find `W'` and `b'` with $W'x + b' = l \odot (W x + b)$.
# * `side="input"`: the second feed-forward layer. Find `W'` and `b'` with $W'x + b' = W (l \odot x) + b$.


# %% tags=["exercise", "points:3"]
def merge_layer(W, b, factors, side):
    """Weight (out, in) and bias (out) of one plain layer that computes what the scaled one computes."""
    ### BEGIN SOLUTION
    # Hint: W * factors scales the columns, W * factors[:, None] the rows. What happens to b in each case?
    if side == "output":
        return W * factors[:, None], b * factors
    return W * factors, b
    ### END SOLUTION


# %% tags=["check"]
check("ia3.merge", merge_layer)

# %% [markdown]
# ## Exercise 4: which layers, and how many numbers?
#
# Here is one block of a BERT, name and shape `(out, in)`. Write a function that counts the factors of (IA)³ for a
# whole model of such blocks: keys and values on their output, the second feed-forward layer on its input.

# %%
one_block = {
    "encoder.layer.0.attention.self.query": (384, 384),
    "encoder.layer.0.attention.self.key": (384, 384),
    "encoder.layer.0.attention.self.value": (384, 384),
    "encoder.layer.0.attention.output.dense": (384, 384),
    "encoder.layer.0.intermediate.dense": (1536, 384),
    "encoder.layer.0.output.dense": (384, 1536),
}


# %% tags=["exercise", "points:3"]
def ia3_parameters(layers):
    """The number of factors for a dict of layers, dotted name → (out, in)."""
    ### BEGIN SOLUTION
    # Hint: two names end in "output.dense". Only one of the two layers is the feed-forward block's.
    total = 0
    for name, (outputs, inputs) in layers.items():
        if name.endswith((".key", ".value")):
            total += outputs
        elif name.endswith(".output.dense") and "attention" not in name:
            total += inputs
    return total
    ### END SOLUTION


# %% tags=["check"]
check("ia3.count", ia3_parameters)

# %% [markdown]
# ## (IA)³ in a real model
#
# MiniLM has 6 blocks with 384 keys, 384 values and an inner width of 1,536. That makes 6 · (384 + 384 + 1,536) =
# 13,824 factors. And the head has 2 · 384 + 2 = 770 numbers.

# %%
config = IA3Config()
model, tokenizer = load_classifier("minilm")
inject(model, config)
print(count_parameters(model))
for name, module in model.named_modules():
    if isinstance(module, IA3Linear) and ".layer.0." in name:
        print(f"{name}: {module.ia3_l.numel()} factors on the {'input' if module.feedforward else 'output'}")

# %% [markdown]
# The query is not in the list. Does the method keep its promises? `check_invariants` builds the model afresh and tries
# each one.

# %%
tweets = load_sentiment("tweets")
batch = next(iter(make_loader(tweets["train"].select(range(8)), tokenizer, 8)))
print(check_invariants(lambda: load_classifier("minilm")[0], config, batch, expected_parameters=13_824 + 770))

# %% [markdown]
# ## A trap: names that end alike
#
# Two layers of each block end in `output.dense`: the second feed-forward layer, and the one behind the attention
# heads, `attention.output.dense`. peft's default for BERT names just this ending, so it scales both. We count it on
# BERT-base. On the device `meta` a model has shapes and no numbers, so nothing is loaded.


# %%
def count_on_bert_base(**places):
    """What (IA)³ trains in BERT-base, head not counted."""
    with torch.device("meta"):
        bert = BertForSequenceClassification(BertConfig())
    counted = count_parameters(inject(bert, IA3Config(**places)))
    return counted.trainable - counted.head


print(f"the paper's places: {count_on_bert_base():,} = 12 · (768 + 768 + 3,072)")
print(f"every output.dense: {count_on_bert_base(feedforward=('output.dense',)):,} = 12 · (768 + 768 + 3,072 + 768)")

wide, _ = load_classifier("minilm")
print("MiniLM, every output.dense:", count_parameters(inject(wide, IA3Config(feedforward=("output.dense",)))))

# %% [markdown]
# ## Why ones, and not zeros?
#
# LoRA starts with a zero. A factor must not: zero times anything is zero. Here is the fresh model on eight tweets,
# and then with all factors at zero.


# %%
def answers_differ(model):
    """Whether the eight tweets get different logits."""
    with torch.no_grad():
        logits = model.eval()(**batch).logits
    return not torch.allclose(logits, logits[:1].expand_as(logits), atol=1e-5)


print("factors at one, the tweets get different answers:", answers_differ(model))
zeros, _ = load_classifier("minilm")
inject(zeros, config)
with torch.no_grad():
    for module in zeros.modules():
        if isinstance(module, IA3Linear):
            module.ia3_l.zero_()
print("factors at zero, the tweets get different answers:", answers_differ(zeros))

# %% [markdown]
# With zeros no token hears of any other, and the first token, which the head reads, is the same in each text. So all
# tweets get one and the same answer: the pretrained model is switched off.
#
# ## Training
#
# The learning rate is 8e-2, ten times the 8e-3 that lab 9 gives to LoRA: in 32 steps a factor should get far. The
# chapter shows the rates that were tried over three epochs. Weight decay would pull a factor to zero, while at rest it
# stands at one; `fit` leaves vectors out of it.

# %% tags=["nbval-ignore-output"]
settings = TrainingConfig(learning_rate=8e-2, epochs=1)
judged = tweets["validation"].select(range(200))  # enough to see what happens, and the lab stays short
train = make_loader(tweets["train"].select(range(1024)), tokenizer, 32, shuffle=True)
validation = make_loader(judged, tokenizer, 64)
floor = majority_accuracy(list(tweets["train"]["label"]), list(judged["label"]))
history = fit(model, train, validation, settings)
training_curves({"(IA)³": history}, floor)

# %%
accuracy = history.evaluations[-1]["accuracy"]
assert accuracy > floor + 0.12, f"{accuracy:.1%} is too close to the floor of {floor:.1%}"
print("(IA)³ is far above the floor after 32 steps")

# %% [markdown]
# ## What has it learnt?
#
# Every factor began at one. How far did they move, layer by layer?

# %% tags=["nbval-ignore-output"]
kinds = {"keys": "attention.self.key", "values": "attention.self.value", "feed-forward": "output.dense"}
factors = {
    kind: [block.get_submodule(name).factors().detach() for block in model.bert.encoder.layer]
    for kind, name in kinds.items()
}
factors_moved({kind: [(vector - 1).abs().mean().item() for vector in layers] for kind, layers in factors.items()})

# %% [markdown]
# And which single factors moved most? Above one the activation is amplified, between zero and one it is inhibited: that
# is where the method's name comes from. Below zero its sign turns.

# %% tags=["nbval-ignore-output"]
single = [
    (f"layer {number}, {kind} {index}", value)
    for kind, layers in factors.items()
    for number, vector in enumerate(layers, start=1)
    for index, value in enumerate(vector.tolist())
]
for name, value in sorted(single, key=lambda item: -abs(item[1] - 1))[:8]:
    print(f"{name}: {value:.2f}")
values = torch.tensor([value for _, value in single])
print(f"below one: {(values < 1).float().mean():.0%} of all factors")
print(f"smallest {values.min():.2f}, largest {values.max():.2f}")

# %%
assert (values - 1).abs().max() > 0.2, "no factor has gone far: the learning rate is too low"
assert len(values) == 13_824
print("the factors have left one")

# %% [markdown]
# Be careful with what you conclude. Adam moves every factor by about the learning rate in each step, whether its
# gradient is large or small, so factors that hardly matter leave one, too. A better question: what happens when we set
# the vectors of one kind back to one?


# %% tags=["nbval-ignore-output"]
def accuracy_without(kind):
    """Validation accuracy with all vectors of one kind at one; afterwards they are as they were."""
    layers = [block.get_submodule(kinds[kind]) for block in model.bert.encoder.layer]
    learnt = [layer.ia3_l.detach().clone() for layer in layers]
    with torch.no_grad():
        for layer in layers:
            layer.ia3_l.fill_(1.0)
        labels, logits = predict(model, validation)
        for layer, vector in zip(layers, learnt, strict=True):
            layer.ia3_l.copy_(vector)
    return float((logits.argmax(-1) == labels).mean())


without = {f"{kind} back at one": accuracy_without(kind) for kind in kinds}
bars({"all as learnt": accuracy} | without, "validation accuracy", floor)

# %% [markdown]
# A point more or less on 200 tweets is two tweets, so look for large drops only. The feed-forward vectors hold two
# thirds of all factors.
#
# ## Merge
#
# Now the factors go into the weights: your exercise 3, in every layer.

# %% tags=["nbval-ignore-output"]
_, unmerged_logits = predict(model, validation)
folder = Path(tempfile.mkdtemp())
save(model, folder / "adapter")  # before merging: a merged model has nothing left to save apart
merge(model)
_, merged_logits = predict(model, validation)
difference = np.abs(merged_logits - unmerged_logits).max() / np.abs(unmerged_logits).max()
print(f"largest relative difference {difference:.1e}")

# %%
assert difference < 1e-5
assert not any("ia3" in name for name, _ in model.named_parameters())
print("merged and unmerged give the same answers, and no factor is left in the model")

# %% [markdown]
# ## What is stored
#
# 14,594 numbers of four bytes each are 58 kB; the file's header with the names comes on top.

# %%
file = folder / "adapter" / "adapter_model.safetensors"
assert 4 * 14_594 < file.stat().st_size < 4 * 14_594 + 8_000
print(f"the numbers alone: {4 * 14_594 / 1000:.0f} kB, whole model: {4 * count_parameters(model).total / 1000:,.0f} kB")
restored, _ = load_classifier("minilm")
load(restored, folder / "adapter")
_, restored_logits = predict(restored, validation)
assert np.array_equal(restored_logits, unmerged_logits)
print("loaded into a fresh backbone, it gives the same logits bit for bit")

# %% [markdown]
# ## Your experiment
#
# Change the places or the learning rate, and run the cell again. Ideas:
#
# * the feed-forward vectors alone: `IA3Config(keys_and_values=())`; below are keys and values alone,
# * the learning rate of full fine-tuning, 3e-4. How far can a factor get in 16 steps?
# * a rate that is too high, 0.5.

# %% tags=["nbval-ignore-output"]
model, tokenizer = load_classifier("minilm")
inject(model, IA3Config(feedforward=()))
few = make_loader(tweets["train"].select(range(512)), tokenizer, 32, shuffle=True)
experiment = fit(model, few, validation, settings)
print(f"validation accuracy {experiment.evaluations[-1]['accuracy']:.1%}, floor {floor:.1%}")

# %% [markdown]
# ## The same in `peft`
#
# Our checkpoint is a checkpoint of peft: it loads there, and the logits are the same. For a new adapter, write the
# places as patterns that are matched against the whole name; then no other `output.dense` slips in.

# %%
import warnings

warnings.filterwarnings("ignore", category=FutureWarning)  # transformers' notes to the authors of peft
from peft import IA3Config as PeftIA3Config, PeftModel, get_peft_model

model, _ = load_classifier("minilm")
loaded = PeftModel.from_pretrained(model, folder / "adapter").eval()
_, peft_logits = predict(loaded, validation)
print("same logits in peft:", np.array_equal(peft_logits, unmerged_logits))


def count_in_peft(**places):
    """What peft's (IA)³ trains in MiniLM, head included."""
    model, _ = load_classifier("minilm")
    peft_model = get_peft_model(model, PeftIA3Config(task_type="SEQ_CLS", **places))
    return sum(p.numel() for p in peft_model.parameters() if p.requires_grad)


feedforward = r".*layer\.\d+\.output\.dense"
full_names = count_in_peft(target_modules=rf".*\.(key|value)|{feedforward}", feedforward_modules=feedforward)
print(f"peft with full names: {full_names:,}, as ours")
print(f"peft's default: {count_in_peft():,}, with attention.output.dense")

# %% [markdown]
# ## Take away
#
# * (IA)³ multiplies keys, values and the inner feed-forward activations by learnt factors that start at **one**.
# * Keys and values are scaled on the output, bias included; the second feed-forward layer is scaled on the input.
# * It needs a high learning rate. Weight decay pulls a factor to zero, not to one, so leave the factors out of it.
# * Look at the count. If it is larger than keys + values + inner width, a name has matched too much.
