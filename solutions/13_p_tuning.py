# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Lab 13: P-Tuning
#
# **You will**
#
# * write the prompt encoder, put its vectors between the words of a cloze, and throw the encoder away in the end,
# * count what is trained and what is stored,
# * see how the virtual tokens depend on each other, train them for a few steps on real tweets, and look at the result
#   without kindness,
# * do the same in `peft`, with equal numbers.
#
# **Time:** the whole lab runs in about {{ seconds }} s on two CPU cores (measured). No GPU is needed.
# Read the chapter *P-Tuning* first.

# %%
# {{ install }}

# %%
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from course_utils import (
    PromptTuningConfig,
    PTuningConfig,
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
    predict,
    save,
)
from course_utils.plots import similarity, training_curves

# %% [markdown]
# ## Exercise 1: the encoder
#
# P-Tuning computes the $k$ virtual tokens. A table `T` of $k$ rows goes through three linear layers, with ReLU behind
# the first and the second:
#
# $$p = W_3\,\text{ReLU}\bigl(W_2\,\text{ReLU}(W_1 t + b_1) + b_2\bigr) + b_3 \quad\text{for each row } t$$
#
# `T` holds one row for each virtual token, so in code a layer is `T @ W.T + b`.


# %% tags=["exercise", "points:3"]
def encode(T, W1, b1, W2, b2, W3, b3):
    """P (k, hidden) from T (k, hidden): three linear layers, ReLU behind the first two."""
    ### BEGIN SOLUTION
    # Hint: torch.relu is ReLU. The last layer has none: a virtual token may have negative numbers.
    inner = torch.relu(T @ W1.T + b1)
    inner = torch.relu(inner @ W2.T + b2)
    return inner @ W3.T + b3
    ### END SOLUTION


# %% tags=["check"]
check("p_tuning.encoder", encode)

# %% [markdown]
# ## Exercise 2: between the words
#
# In the paper the vectors stand inside a cloze, between words that stay words. The text holds a marker where a vector
# belongs, such as `late again . it <v> was <v> [MASK]`. The model has looked up the embeddings `E` of all tokens,
# markers included. Put the rows of `P` into the marked places, in order, in each text of the batch.


# %% tags=["exercise", "points:3"]
def insert(E, ids, marker, P):
    """E (batch, tokens, hidden) with P (k, hidden) in the k places of each text where ids (batch, tokens) is marker."""
    ### BEGIN SOLUTION
    # Hint: ids == marker is a mask. x[mask] = rows fills the places text by text, so P is needed once for each text.
    x = E.clone()
    x[ids == marker] = P.repeat(len(ids), 1)
    return x
    ### END SOLUTION


# %% tags=["check"]
check("p_tuning.insert", insert)

# %% [markdown]
# ## Exercise 3: throw the encoder away
#
# Training is over. P does not depend on the text, so compute it once and keep the numbers. `encoder()` returns P, as a
# part of a network that can be trained. It may have dropout.


# %% tags=["exercise", "points:2"]
def finish(encoder):
    """The table P (k, hidden) to be stored: the encoder's output without dropout and without a gradient."""
    ### BEGIN SOLUTION
    # Hint: encoder.eval() switches dropout off, and a tensor's detach() cuts it off from the network.
    encoder.eval()
    return encoder().detach().clone()
    ### END SOLUTION


# %% tags=["check"]
check("p_tuning.finish", finish)

# %% [markdown]
# ## Exercise 4: trained and stored
#
# Count both for the encoder of exercise 1, all of its layers `hidden` wide. The head has one weight for each pair of
# hidden number and class, and one bias for each class.


# %% tags=["exercise", "points:2"]
def p_tuning_parameters(k, hidden, classes):
    """Two numbers: how many are trained, and how many are stored after training."""
    ### BEGIN SOLUTION
    # Hint: trained are T, three layers with their biases, and the head. What of these is needed to answer?
    head = hidden * classes + classes
    encoder = 3 * (hidden * hidden + hidden)
    return k * hidden + encoder + head, k * hidden + head
    ### END SOLUTION


# %% tags=["check"]
check("p_tuning.count", p_tuning_parameters)

# %% [markdown]
# ## P-Tuning in a real model
#
# Ten virtual tokens for MiniLM, whose vectors have 384 numbers, and an MLP. T has 10 · 384 = 3,840 numbers, the three
# layers have 3 · (384² + 384) = 443,520, and the head has 770.

# %%
config = PTuningConfig(virtual_tokens=10)
model, tokenizer = load_classifier("minilm")
inject(model, config)
print(model.bert.prompt)
print(count_parameters(model))

# %% [markdown]
# And the other encoders, with 20 virtual tokens as in the chapter? The last column is the same for all of them.

# %%
encoders = {
    "none (prompt tuning)": PromptTuningConfig(),
    "MLP": PTuningConfig(),
    "LSTM, width 192": PTuningConfig(encoder="lstm", hidden=192),
    "LSTM, width 384": PTuningConfig(encoder="lstm"),
}
prompts = {}
for title, settings in encoders.items():
    other, _ = load_classifier("minilm")
    count = count_parameters(inject(other, settings))
    prompts[title] = other.bert.prompt
    print(f"{title}: {count.trainable:,} trained, {prompts[title]().numel() + count.head:,} stored")

# %% [markdown]
# As in the last lab, the answers change at once, so we say `identity=False`. All other promises hold.

# %%
tweets = load_sentiment("tweets")
batch = next(iter(make_loader(tweets["train"].select(range(8)), tokenizer, 8)))
report = check_invariants(
    lambda: load_classifier("minilm")[0], config, batch, identity=False, expected_parameters=3_840 + 443_520 + 770
)
print(report)

# %% [markdown]
# ## How do the virtual tokens depend on each other?
#
# First we change one row of the trained table, and look which virtual tokens change.


# %%
def changed_rows(prompt):
    """Which rows of P change when row 3 of the table does."""
    with torch.no_grad():
        before = prompt().clone()
        prompt.embedding.weight[3] += 1
        after = prompt().clone()
        prompt.embedding.weight[3] -= 1
    return [row for row in range(len(before)) if not torch.allclose(before[row], after[row], atol=1e-6)]


for title, prompt in prompts.items():
    rows = changed_rows(prompt)
    print(f"{title}: {len(rows)} of {len(prompt())} rows change")

# %% [markdown]
# The MLP works row by row. In the LSTM a change travels to the left and to the right. It gets weaker on its way, and
# how far it can be seen depends on the tolerance, which is 1e-6 here.
#
# Now one step of training that asks something of row 3 only. Do the other rows move?


# %%
def moved_rows(prompt):
    """How many rows of P move when one step of gradient descent tries to change row 3."""
    before = prompt().detach().clone()
    prompt()[3].sum().backward()
    with torch.no_grad():
        for parameter in prompt.parameters():
            parameter -= 0.01 * parameter.grad
    return int(((prompt().detach() - before).abs().amax(1) > 1e-6).sum())


for title, prompt in prompts.items():
    print(f"{title}: {moved_rows(prompt)} of {len(prompt())} rows move")

# %% [markdown]
# That is what the encoder buys: each step moves all virtual tokens, through weights that they share.
#
# And what it takes: here is how alike the vectors are *before* training. Red means the same direction, white means
# none in common.


# %%
def cosines(table):
    """The cosine of each pair of rows."""
    rows = torch.nn.functional.normalize(table.detach(), dim=1)
    return (rows @ rows.T).tolist()


starts = {}
for title in ("none (prompt tuning)", "MLP", "LSTM, width 384"):
    other, _ = load_classifier("minilm")
    inject(other, encoders[title])
    starts[title] = cosines(other.bert.prompt())

# %% tags=["nbval-ignore-output"]
similarity(starts)

# %%
means = {title: (np.sum(table) - 20) / (20 * 19) for title, table in starts.items()}
assert means["none (prompt tuning)"] < 0.1 < 0.3 < means["MLP"] < 0.8 < means["LSTM, width 384"]
print("words: all different; MLP: rather alike; LSTM: nearly copies of one vector")

# %% [markdown]
# ## Training
#
# 24 steps of 32 tweets. The rate is 5e-3: far less than for a bare prompt, because now a whole network moves. Weight
# decay is off, as in the last lab. And as there we write down two floors before we look: the accuracy of the majority,
# and the loss of whoever knows only the shares of the two classes.

# %% tags=["nbval-ignore-output"]
judged = tweets["validation"].select(range(200))  # enough to see what happens, and the lab stays short
train = make_loader(tweets["train"].select(range(768)), tokenizer, 32, shuffle=True)
validation = make_loader(judged, tokenizer, 64)
floor = majority_accuracy(list(tweets["train"]["label"]), list(judged["label"]))
share = np.mean(judged["label"])
floor_loss = -(share * np.log(share) + (1 - share) * np.log(1 - share))
start = model.bert.prompt().detach().clone()
history = fit(model, train, validation, TrainingConfig(learning_rate=5e-3, epochs=1, weight_decay=0.0))
training_curves({"P-Tuning, MLP": history}, floor)

# %% tags=["nbval-ignore-output"]
labels, logits = predict(model, validation)
last = history.evaluations[-1]
print(f"accuracy {last['accuracy']:.1%}, always the majority {floor:.1%}")
print(f"validation loss {last['loss']:.3f}, knowing the shares only {floor_loss:.3f}")
print(f"ROC-AUC {last['roc_auc']:.2f}; 0.5 is chance")
print("answered negative, positive:", np.bincount(logits.argmax(-1), minlength=2).tolist())

# %%
assert floor - 0.05 < last["accuracy"] < 0.95
assert last["loss"] < floor_loss + 0.05
print("after 24 steps P-Tuning is not far from the floor")

# %% [markdown]
# An honest result, and a disappointing one. In lab 9, LoRA was far above the floor after 32 steps. The
# chapter shows whole runs of three epochs: some seeds get away from the majority class, and others never do.
#
# Look at the last two lines that were printed. If all tweets get the same answer, the accuracy is that of the majority.
# The ROC-AUC can still be above 0.5: then the scores are in a better order than chance, and only the threshold is wrong
# for all of them.
#
# ## What has it learnt?
#
# Have the vectors come apart?

# %% tags=["nbval-ignore-output"]
learnt = model.bert.prompt().detach().clone()
similarity({"before": cosines(start), "after 24 steps": cosines(learnt)})


# %% tags=["nbval-ignore-output"]
def mean_cosine(table):
    """The mean cosine of two different rows."""
    k = len(table)
    return (np.sum(cosines(table)) - k) / (k * (k - 1))


print(f"mean length before {start.norm(dim=1).mean():.1f}, after {learnt.norm(dim=1).mean():.1f}")
print(f"mean cosine before {mean_cosine(start):.2f}, after {mean_cosine(learnt):.2f}")

# %%
assert learnt.norm(dim=1).mean() > 5 * start.norm(dim=1).mean()
assert mean_cosine(learnt) > mean_cosine(start)
print("the virtual tokens have become much longer, and more alike")

# %% [markdown]
# Not what we hoped for. Each step pushes on weights that all vectors share, and the simplest thing such a step can do
# is to push all of them in one direction. Ten vectors of one direction can hardly say more than one vector.
#
# And why so far in 24 steps? Adam moves each weight by about the rate. A number of P is a sum over 384 weights, and
# before it are two more layers that have moved as well. So P moves much faster than the rate suggests. A lower rate
# is gentler: try it below.
#
# ## Trained is not stored
#
# `save` writes two files. The first is what peft would write: P and the head. The second holds the encoder, so that
# training can go on.

# %%
folder = Path(tempfile.mkdtemp())
save(model, folder)
for name in ("adapter_model.safetensors", "prompt_encoder.safetensors"):
    numbers = sum(tensor.numel() for tensor in load_file(folder / name).values())
    print(f"{name}: {numbers:,} numbers, {4 * numbers / 1000:,.0f} kB")

# %% [markdown]
# Now delete the encoder, and load what is left.

# %%
(folder / "prompt_encoder.safetensors").unlink()
restored, _ = load_classifier("minilm")
load(restored, folder)
_, restored_logits = predict(restored, validation)
assert np.allclose(restored_logits, logits, atol=1e-6)
print(
    type(restored.tuning).__name__, "with", f"{count_parameters(restored).trainable:,} numbers gives the same answers"
)

# %% [markdown]
# It is a soft prompt like any other: what you have trained as P-Tuning is *used* as prompt tuning. You could also go on
# training it as one, with a rate for bare prompts.
#
# ## Your experiment
#
# Change the encoder, the rate or the seed, and run the cell again. Ideas:
#
# * another seed: `seed=1`, `seed=2`. How far do the losses lie apart?
# * `encoder="mlp"` with the rate 1e-3, and with 2e-2. Print the mean length and the mean cosine, too,
# * prompt tuning with as many steps: `PromptTuningConfig(virtual_tokens=10)` and the rate 1e-1.

# %% tags=["nbval-ignore-output"]
seed = 0
model, tokenizer = load_classifier("minilm", seed=seed)
inject(model, PTuningConfig(virtual_tokens=10, encoder="lstm", hidden=192), seed=seed)
few = make_loader(tweets["train"].select(range(256)), tokenizer, 32, shuffle=True, seed=seed)
experiment = fit(model, few, validation, TrainingConfig(learning_rate=2e-3, epochs=1, weight_decay=0.0))
print(f"validation accuracy {experiment.evaluations[-1]['accuracy']:.1%}, floor {floor:.1%}")
print(f"validation loss {experiment.evaluations[-1]['loss']:.3f}, knowing the shares only {floor_loss:.3f}")

# %% [markdown]
# ## The same in `peft`
#
# The class is `PromptEncoderConfig`. (`PrefixTuningConfig` is what is called P-Tuning *v2*.) We give both models the
# same encoder, and `pool="peft"`, because peft's BERT classifier reads the first virtual token.

# %%
warnings.filterwarnings("ignore", category=FutureWarning)  # transformers' notes to the authors of peft
from peft import PeftModel, PromptEncoderConfig, get_peft_model

theirs, _ = load_classifier("minilm")
settings = PromptEncoderConfig(
    task_type="SEQ_CLS", num_virtual_tokens=10, encoder_reparameterization_type="MLP", encoder_hidden_size=384
)
theirs = get_peft_model(theirs, settings).eval()
print("trained in peft:", f"{sum(p.numel() for p in theirs.parameters() if p.requires_grad):,}")

ours, _ = load_classifier("minilm")
inject(ours, PTuningConfig(virtual_tokens=10, pool="peft")).eval()
theirs.prompt_encoder["default"].load_state_dict(ours.bert.prompt.state_dict())  # the names are the same
with torch.no_grad():
    print("same logits:", torch.equal(ours(**batch).logits, theirs(**batch).logits))

# %% [markdown]
# peft stores the table and the head. The encoder is gone, so peft can use what it has stored, but it cannot go on
# training it.

# %%
theirs.save_pretrained(folder / "peft")
for name, stored in sorted(load_file(folder / "peft" / "adapter_model.safetensors").items()):
    print(f"{name}: {tuple(stored.shape)}")
loaded = PeftModel.from_pretrained(load_classifier("minilm")[0], folder / "peft").eval()
with torch.no_grad():
    print("same logits after loading:", torch.equal(loaded(**batch).logits, theirs(**batch).logits))
try:
    PeftModel.from_pretrained(load_classifier("minilm")[0], folder / "peft", is_trainable=True)
except ValueError as error:
    print(error)

# %% [markdown]
# ## Take away
#
# * A small network computes the $k$ virtual tokens. Each step moves all of them, and they start alike.
# * Trained: the table, the encoder and the head. Stored: the result of the encoder, and the head.
# * On a small frozen classifier it is slow and depends on the seed. Look at the answers and at the scores.
# * P-Tuning v2 is another method: keys and values in every layer.
