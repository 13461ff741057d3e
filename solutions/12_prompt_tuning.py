# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Lab 12: Prompt tuning
#
# **You will**
#
# * put trained vectors before embedded texts, let them start as words, and pool the right position,
# * train a soft prompt on real tweets for a few steps, and see honestly how far that brings it,
# * look for the words in what was learnt, and compare with `peft`, which pools another position.
#
# **Time:** the whole lab runs in about {{ seconds }} s on two CPU cores (measured). No GPU is needed.
# Read the chapter *Prompt tuning* first.

# %%
# {{ install }}

# %%
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch

from course_utils import (
    MethodError,
    PromptTuningConfig,
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
from course_utils.plots import training_curves

# %% [markdown]
# ## Exercise 1: P before the text, and the mask
#
# The model looks up the embeddings of a text, `E`. Prompt tuning puts the same $k$ trained rows `P` before the
# embeddings of *every* text in the batch, along the tokens. The attention mask of the text, 1 for a token and 0 for
# padding, must grow with it, or nothing will look at `P`.


# %% tags=["exercise", "points:3"]
def prepend(E, mask, P):
    """[P; E] (batch, k + tokens, hidden) and its mask (batch, k + tokens).

    E (batch, tokens, hidden), mask (batch, tokens), P (k, hidden).
    """
    ### BEGIN SOLUTION
    # Hint: P.expand(batch, -1, -1) shows P once for each text; torch.cat(..., dim=1) joins along the tokens.
    batch, k = E.shape[0], P.shape[0]
    x = torch.cat((P.expand(batch, -1, -1), E), dim=1)
    return x, torch.cat((mask.new_ones(batch, k), mask), dim=1)
    ### END SOLUTION


# %% tags=["check"]
check("prompt_tuning.prepend", prepend)

# %% [markdown]
# ## Exercise 2: start as a text
#
# Training must start somewhere. One way is to write a text and to take the embeddings of its tokens. If the text has
# fewer than $k$ tokens, begin it again until there are $k$. If it has more, cut it at its end.
#
# `words` is the model's table of embeddings, one row for each token of the vocabulary; `ids` is a list.


# %% tags=["exercise", "points:2"]
def initialise(words, ids, k):
    """The first k vectors (k, hidden): rows of `words` (vocabulary, hidden) for the token ids, repeated or cut."""
    ### BEGIN SOLUTION
    # Hint: a list times a number repeats the list; words[[4, 2]] are the rows 4 and 2.
    return words[(ids * k)[:k]]
    ### END SOLUTION


# %% tags=["check"]
check("prompt_tuning.initialise", initialise)

# %% [markdown]
# ## Exercise 3: what does the head read?
#
# The body of BERT now returns a vector for each of $k$ + tokens positions. Its head was made to read one of them,
# [CLS], the first token of the *text*. Return that vector for each text.


# %% tags=["exercise", "points:2"]
def pool(states, k):
    """The vector of [CLS] for each text, (batch, hidden); states (batch, k + tokens, hidden)."""
    ### BEGIN SOLUTION
    # Hint: positions count from 0, and the first k of them are virtual.
    return states[:, k]
    ### END SOLUTION


# %% tags=["check"]
check("prompt_tuning.pool", pool)

# %% [markdown]
# ## Exercise 4: what does it cost?
#
# Count what is trained: the prompt, and a head with one weight for each pair of hidden number and class, and one bias
# for each class.


# %% tags=["exercise", "points:2"]
def prompt_parameters(k, hidden, classes):
    """Trained numbers: k vectors of `hidden` numbers, and the head."""
    ### BEGIN SOLUTION
    # Hint: the depth of the model plays no part.
    return k * hidden + hidden * classes + classes
    ### END SOLUTION


# %% tags=["check"]
check("prompt_tuning.count", prompt_parameters)

# %% [markdown]
# ## A soft prompt in a real model
#
# Ten virtual tokens that start as a text. MiniLM's vectors have 384 numbers, so the prompt has 10 · 384 = 3,840, and
# the head has 2 · 384 + 2 = 770.

# %%
model, tokenizer = load_classifier("minilm")
ids = tuple(tokenizer("is this tweet negative or positive?", add_special_tokens=False)["input_ids"])
print("the start:", tokenizer.convert_ids_to_tokens(list(ids)))
config = PromptTuningConfig(virtual_tokens=10, init="text", initial_tokens=ids)
inject(model, config)
print(count_parameters(model))

# %% [markdown]
# The word "tweet" is three tokens to this tokeniser. The text has nine tokens, so the tenth vector is its first word
# again.
#
# How long are the vectors of words? peft's default start draws every number from $N(0, 1)$, and such a vector of 384
# numbers is about $\sqrt{384}$ long.

# %%
words = model.get_input_embeddings().weight.detach()
print(f"mean length of a word's vector: {words.norm(dim=1).mean():.1f}")
print(f"of a random one: {384**0.5:.1f}")

# %% [markdown]
# Does the method keep its promises? One of LoRA's it does not make: the model's answers change at once, before any
# training. So we say `identity=False`.

# %%
tweets = load_sentiment("tweets")
batch = next(iter(make_loader(tweets["train"].select(range(8)), tokenizer, 8)))
report = check_invariants(
    lambda: load_classifier("minilm")[0], config, batch, identity=False, expected_parameters=4_610
)
print(report)

# %% [markdown]
# ## Ten positions fewer for the text
#
# MiniLM has 512 positions. The prompt takes ten, so a text may have 502 tokens. What happens to a longer one?

# %%
too_long = torch.full((1, 503), ids[0])
try:
    model(too_long)
except MethodError as error:
    print(error)
print("502 tokens:", tuple(model(too_long[:, :502]).logits.shape))

# %% [markdown]
# For long texts, tell the loader: `make_loader(..., max_length=512 - 10)`. Tweets are short.
#
# ## Training
#
# Now 40 steps of 32 tweets, the shortest ones, so that the steps are quick. The rate is 1e-1, more than ten times the
# 8e-3 of LoRA in lab 9. Weight decay is off: it pulls to zero, and there is no reason why a prompt should be near zero.
#
# Two floors to compare with. Whoever always says "positive" has the accuracy of the majority. And whoever knows only
# the shares of the two classes has a loss that we can compute.

# %% tags=["nbval-ignore-output"]
settings = TrainingConfig(learning_rate=1e-1, epochs=1, weight_decay=0.0)
judged = tweets["validation"].select(range(200))  # enough to see what happens, and the lab stays short
by_length = np.argsort([len(text) for text in tweets["train"]["text"]], kind="stable")
train = make_loader(tweets["train"].select(by_length[:1280]), tokenizer, 32, shuffle=True)
validation = make_loader(judged, tokenizer, 64)
floor = majority_accuracy(list(tweets["train"]["label"]), list(judged["label"]))
share = np.mean(judged["label"])
floor_loss = -(share * np.log(share) + (1 - share) * np.log(1 - share))
start = model.bert.prompt().detach().clone()
history = fit(model, train, validation, settings)
training_curves({"prompt tuning, 10 tokens": history}, floor)

# %% tags=["nbval-ignore-output"]
last = history.evaluations[-1]
print(f"accuracy {last['accuracy']:.1%}, always the majority {floor:.1%}")
print(f"validation loss {last['loss']:.3f}, knowing the shares only {floor_loss:.3f}")

# %%
assert floor - 0.05 < last["accuracy"] < 0.95
assert last["loss"] < floor_loss - 0.01, f"a loss of {last['loss']:.3f} is no better than {floor_loss:.3f}"
print("after 40 steps the loss is below that of knowing the shares only")

# %% [markdown]
# Look at the numbers without kindness. In lab 9 LoRA was far above the floor after 32 steps. The prompt has only begun:
# the loss has fallen, and the accuracy is a few points above the majority, or not even that. A learner who stops here
# thinks that the method is broken. It is slow. The chapter shows what three epochs give.
#
# Also look at the loss and not only at the accuracy: the loss moves first.
#
# ## Is it still a text?
#
# The prompt started as a text. For each vector we look for the word whose vector points most nearly in the same
# direction: cosine 1 means the same direction, 0 means none in common.


# %%
def nearest(vectors):
    """For each vector the token that points most nearly in its direction, and the cosine."""
    normalize = torch.nn.functional.normalize  # to length 1, so that a product is a cosine
    cosines = normalize(vectors, dim=1) @ normalize(words, dim=1).T
    best, rows = cosines.max(dim=1)
    return list(zip(tokenizer.convert_ids_to_tokens(rows.tolist()), best.tolist(), strict=True))


for token, cosine in nearest(start)[:5]:
    print(f"before: {token:8s} cosine {cosine:.2f}")

# %% tags=["nbval-ignore-output"]
learnt = model.bert.prompt().detach().clone()
for token, cosine in nearest(learnt):
    print(f"after: {token:12s} cosine {cosine:.2f}")
print(f"mean length before {start.norm(dim=1).mean():.1f}, after {learnt.norm(dim=1).mean():.1f}")

# %%
assert all(cosine < 0.8 for _, cosine in nearest(learnt))
assert learnt.norm(dim=1).mean() > 3 * start.norm(dim=1).mean()
print("no vector is a word any more, and all are much longer than words")

# %% [markdown]
# The text was a start, no more. Do not read a message in the nearest words: with a cosine so far from 1 they are only
# the least distant ones.
#
# ## How much of it is the prompt's work?
#
# The head was trained too. Put the first prompt back, keep the trained head, and see how much is lost. This is no
# precise division, because the head was trained together with the prompt. But do not be surprised if a good part of the
# progress is the head's.

# %% tags=["nbval-ignore-output"]
labels, logits = predict(model, validation)
with torch.no_grad():
    model.bert.prompt().copy_(start)
    _, with_start = predict(model, validation)
    model.bert.prompt().copy_(learnt)


def cross_entropy(logits):
    """The mean loss on the validation tweets."""
    return torch.nn.functional.cross_entropy(torch.tensor(logits), torch.tensor(labels)).item()


print(f"learnt prompt: loss {cross_entropy(logits):.3f}")
print(f"first prompt, learnt head: loss {cross_entropy(with_start):.3f}")

# %%
assert np.abs(logits - with_start).max() > 0.05
print("the learnt prompt changes the answers")

# %% [markdown]
# ## What is stored
#
# One table and the head: 4,610 numbers of four bytes.

# %%
folder = Path(tempfile.mkdtemp())
save(model, folder / "prompt")
file = folder / "prompt" / "adapter_model.safetensors"
assert 4 * 4_610 < file.stat().st_size < 4 * 4_610 + 2_000
print(f"the numbers alone: {4 * 4_610 / 1000:.0f} kB, whole model: {4 * count_parameters(model).total / 1000:,.0f} kB")
restored, _ = load_classifier("minilm")
load(restored, folder / "prompt")
_, restored_logits = predict(restored, validation)
assert np.array_equal(restored_logits, logits)
print("loaded into a fresh backbone, it gives the same logits bit for bit")

# %% [markdown]
# ## Your experiment
#
# The cell below starts at random numbers and takes three times the rate, for 20 steps. Do not expect a good model from
# so few steps; watch the loss. Then change the start, the rate or the length, and run it again. Ideas:
#
# * the rate 1e-2 instead of 3e-1. A long vector needs a long step to turn;
# * the learning rate of full fine-tuning, 3e-4;
# * 1 virtual token, or 40. What does that do to the time of a step?

# %% tags=["nbval-ignore-output"]
model, tokenizer = load_classifier("minilm")
inject(model, PromptTuningConfig(virtual_tokens=10, init="random"))  # inject has a seed of its own: seed=1 draws others
few = make_loader(tweets["train"].select(by_length[:640]), tokenizer, 32, shuffle=True)
experiment = fit(model, few, validation, TrainingConfig(learning_rate=3e-1, epochs=1, weight_decay=0.0))
print(f"validation accuracy {experiment.evaluations[-1]['accuracy']:.1%}, floor {floor:.1%}")
print(f"validation loss {experiment.evaluations[-1]['loss']:.3f}, knowing the shares only {floor_loss:.3f}")

# %% [markdown]
# ## The same in `peft`
#
# The class is called `PromptTuningConfig` there too. (`PrefixTuningConfig` is another method.) Two things differ:
#
# * peft's start from a text tokenises it as an input, so [CLS] and [SEP] are among the tokens,
# * peft lets BERT's head read position 0, the first virtual token. Ours does the same with `pool="peft"`.
#
# With both set, the logits are equal, bit for bit.

# %%
warnings.filterwarnings("ignore", category=FutureWarning)  # transformers' notes to the authors of peft
from peft import PeftModel, PromptTuningConfig as PeftPromptTuningConfig, get_peft_model

text = "is this tweet negative or positive?"
theirs, tokenizer = load_classifier("minilm")
peft_settings = PeftPromptTuningConfig(
    task_type="SEQ_CLS",
    num_virtual_tokens=10,
    prompt_tuning_init="TEXT",
    prompt_tuning_init_text=text,
    tokenizer_name_or_path=tokenizer.name_or_path,
)
theirs = get_peft_model(theirs, peft_settings).eval()
print("same count in peft:", f"{sum(p.numel() for p in theirs.parameters() if p.requires_grad):,}")

all_ids = tuple(tokenizer(text)["input_ids"])
logits_of = {}
for where in ("peft", "text"):
    ours, _ = load_classifier("minilm")
    inject(ours, PromptTuningConfig(virtual_tokens=10, init="text", initial_tokens=all_ids, pool=where)).eval()
    with torch.no_grad():
        logits_of[where] = ours(**batch).logits
with torch.no_grad():
    peft_logits = theirs(**batch).logits
print('pool="peft", same logits as peft:', torch.equal(logits_of["peft"], peft_logits))
print('pool="text", same logits as peft:', torch.equal(logits_of["text"], peft_logits))

# %% [markdown]
# So our prompt, trained with [CLS] as the pooled position, must not be used in peft as if nothing had happened. peft
# loads the file, and it warns that it does not know the setting `pool`.

# %%
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    loaded = PeftModel.from_pretrained(load_classifier("minilm")[0], folder / "prompt").eval()
assert any("pool" in str(warning.message) for warning in caught)
_, elsewhere = predict(loaded, validation)
assert not np.allclose(elsewhere, logits, atol=1e-3)
print("peft warns, and reads another position: the answers differ")

# %% [markdown]
# If you want to go on in peft, train with `pool="peft"` from the beginning.
#
# ## Take away
#
# * A soft prompt is $k$ trained vectors before the embeddings of every text. The mask grows by $k$ ones.
# * It changes the answers at once, cannot be merged, and takes $k$ positions from the text.
# * In a small model it learns slowly and wants a high learning rate. Look at the loss before you give up.
# * A text as the start is a start. The learnt vectors are no words.
