# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Lab 8: Adapters
#
# **You will**
#
# * write an adapter, put it into its three places, start it near the identity, and count its parameters,
# * train adapters in a real model on real tweets, and see which blocks need theirs,
# * measure what adapters cost when the model is used, and why no merge takes this away,
# * give one frozen model an adapter for each of two kinds of texts, and switch between them.
#
# **Time:** the whole lab runs in about {{ seconds }} s on two CPU cores (measured). No GPU is needed.
# Read the chapter *Adapters* first.

# %%
# {{ install }}

# %%
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch
from safetensors.torch import load_file
from torch import nn

from course_utils import (
    HoulsbyConfig,
    LoRAConfig,
    MethodError,
    ParallelAdapterConfig,
    PfeifferConfig,
    TrainingConfig,
    check,
    check_invariants,
    count_parameters,
    fit,
    inject,
    load_classifier,
    load_sentiment,
    majority_accuracy,
    make_loader,
    merge,
    predict,
    save,
)
from course_utils.plots import across_domains, bars, training_curves
from course_utils.serving import Adapters

# %% [markdown]
# ## Exercise 1: the adapter
#
# A frozen layer gave $h$, one row for each token. The adapter makes it short, bends it, makes it long again, and adds
# the result to what went by:
#
# $$h + U\,\text{relu}(D h + b) + c$$
#
# `D` has the shape (m, d), `U` the shape (d, m). In code a layer is `h @ D.T + b`, because `h` holds rows.


# %% tags=["exercise", "points:3"]
def adapt(h, D, b, U, c):
    """`h + U relu(D h + b) + c` for every row h; (rows, d) → (rows, d)."""
    ### BEGIN SOLUTION
    # Hint: torch.relu stands between the two matrices, and h itself comes through unchanged.
    return h + torch.relu(h @ D.T + b) @ U.T + c
    ### END SOLUTION


# %% tags=["check"]
check("adapters.bottleneck", adapt)

# %% [markdown]
# ## Exercise 2: three places
#
# A part of a BERT block takes `x` and computes `h`. Then the block adds the two and normalises: `LN(h + x)`. Write this
# end of the block with an adapter. `A` and `LN` are functions; `A` is the adapter *without* its shortcut.
#
# | `kind` | the adapter reads |
# |---|---|
# | `"houlsby"` | `h` |
# | `"pfeiffer"` | the normalised sum of `h` and `x` |
# | `"parallel"` | `x` |
#
# In all three, what it gives is added to `h`, before the sum with `x` and the normalisation.


# %% tags=["exercise", "points:3"]
def end_of_block(h, x, A, LN, kind):
    """What the block hands on, with an adapter of this kind; (rows, d) → (rows, d)."""
    ### BEGIN SOLUTION
    # Hint: first find what the adapter reads, then one line does for all three kinds.
    read = {"houlsby": h, "pfeiffer": LN(h + x), "parallel": x}[kind]
    return LN(h + A(read) + x)
    ### END SOLUTION


# %% tags=["check"]
check("adapters.places", end_of_block)

# %% [markdown]
# ## Exercise 3: where to start
#
# Before the first step the adapter should add next to nothing, and still both matrices must be able to learn, now or
# after the first step. Write a function that returns `D`, `b`, `U` and `c`.


# %% tags=["exercise", "points:2"]
def initialise(width, size):
    """D (size, width), b (size), U (width, size) and c (width) of a new adapter with ReLU."""
    ### BEGIN SOLUTION
    # Hint: biases at zero, and two small random matrices. Or one of the matrices zero; the chapter says which.
    D = 0.02 * torch.randn(size, width)
    U = 0.02 * torch.randn(width, size)
    return D, torch.zeros(size), U, torch.zeros(width)
    ### END SOLUTION


# %% tags=["check"]
check("adapters.initialise", initialise)

# %% [markdown]
# ## Exercise 4: what does it cost?
#
# Count the numbers of all adapters in a model.


# %% tags=["exercise", "points:2"]
def adapter_parameters(width, size, blocks, each):
    """Numbers of the adapters in so many blocks with `each` adapters of this size; biases included."""
    ### BEGIN SOLUTION
    # Hint: two matrices with size · width numbers each, and two biases of different length.
    one = 2 * size * width + size + width
    return blocks * each * one
    ### END SOLUTION


# %% tags=["check"]
check("adapters.count", adapter_parameters)

# %% [markdown]
# ## Adapters in a real model
#
# MiniLM has 6 blocks of width 384. By the formula, Pfeiffer's adapters of size 24 have
# 6 · (2 · 24 · 384 + 24 + 384) = 113,040 numbers, and Houlsby's twice as many. Houlsby's method also trains 13
# normalisations with 768 numbers each. The head has 770.

# %%
for kind in (HoulsbyConfig(), PfeifferConfig(), ParallelAdapterConfig()):
    model, tokenizer = load_classifier("minilm")
    inject(model, kind)
    print(f"{kind.name}: {count_parameters(model)}")

# %%
config = PfeifferConfig()
model, tokenizer = load_classifier("minilm")
inject(model, config)
print(model.bert.encoder.layer[0].output)

# %% [markdown]
# `base` is the end of the block as it was: it is frozen. `adapter` is new.
#
# ## Near the identity, or exactly there
#
# How far are the logits from those of the plain model, before any training? The difference is given as a share of the
# largest logit.

# %%
tweets = load_sentiment("tweets")
batch = next(iter(make_loader(tweets["train"].select(range(8)), tokenizer, 8)))


@torch.no_grad()
def logits_at_start(config=None):
    """Logits of a fresh model, with a method or without."""
    model, _ = load_classifier("minilm")
    if config is not None:
        inject(model, config)
    return model.eval()(**batch).logits


plain = logits_at_start()
starts = {
    "Houlsby, standard deviation 0.001": HoulsbyConfig(),
    "Pfeiffer, standard deviation 0.02": PfeifferConfig(),
    "Pfeiffer, standard deviation 1": PfeifferConfig(initial_std=1.0),
    "Pfeiffer, U = 0": PfeifferConfig(initial_std=None),
    "parallel, U = 0": ParallelAdapterConfig(),
}
for title, start in starts.items():
    distance = (logits_at_start(start) - plain).abs().max() / plain.abs().max()
    words = "exactly the same" if distance == 0 else "nearly the same" if distance < 0.1 else "another model"
    print(f"{title}: {words}")

# %% [markdown]
# With a standard deviation of 1 nothing is left of what pretraining has built. And now the opposite mistake: all zero.

# %%
zeros, _ = load_classifier("minilm")
inject(zeros, PfeifferConfig())
trained = {name: p for name, p in zeros.named_parameters() if ".layer.5." in name and p.requires_grad}
with torch.no_grad():
    for parameter in trained.values():
        parameter.zero_()
zeros(**batch).loss.backward()
for name, parameter in trained.items():
    print(f"{name.split('adapter.')[1]}: {'learns' if parameter.grad.any() else 'gets no gradient'}")

# %% [markdown]
# Only the last bias learns. It is the same for every text, so this adapter cannot tell two tweets apart.
#
# Does the course's implementation keep its promises? `check_invariants` builds the model afresh and tries each one.
# With `initial_std=None` the method promises to start exactly at the pretrained model.

# %%
exact = PfeifferConfig(initial_std=None)
print(check_invariants(lambda: load_classifier("minilm")[0], exact, batch, expected_parameters=113_040 + 770))

# %% [markdown]
# ## Training
#
# One epoch on 896 tweets, with $U = 0$ at the start. The learning rate is 1e-2, because 28 steps are few; over three
# epochs the study tried lower ones, see the chapter.
# `Adapters` keeps the model and its adapters apart; for now there is one, called "tweets".

# %% tags=["nbval-ignore-output"]
settings = TrainingConfig(learning_rate=1e-2, epochs=1)


def loaders(texts, number):
    """Training and validation loader of a domain: a part of each, so that the lab stays short."""
    return (
        make_loader(texts["train"].select(range(number)), tokenizer, 32, shuffle=True),
        make_loader(texts["validation"].select(range(120)), tokenizer, 64),
    )


train, validation = loaders(tweets, 896)
floor = majority_accuracy(list(tweets["train"]["label"]), list(tweets["validation"]["label"][:120]))
model, _ = load_classifier("minilm")
domains = Adapters(model)
domains.add("tweets", exact)
history = fit(model, train, validation, settings)
training_curves({"Pfeiffer adapters": history}, floor)

# %%
accuracy = history.evaluations[-1]["accuracy"]
assert accuracy > floor + 0.12, f"{accuracy:.1%} is too close to the floor of {floor:.1%}"
print("the adapters are far above the floor after 28 steps")

# %% [markdown]
# ## What has it learnt?
#
# How large is what each adapter adds, beside what it reads? We listen with a hook, a function that PyTorch calls after
# a layer.

# %% tags=["nbval-ignore-output"]
ends = [block.output for block in model.bert.encoder.layer]
sizes = {}
for number, end in enumerate(ends, start=1):

    def listen(module, inputs, output, name=f"block {number}"):
        sizes.setdefault(name, []).append((output.norm() / inputs[0].norm()).item())

    end.adapter.register_forward_hook(listen)
predict(model, validation)
for end in ends:
    end.adapter._forward_hooks.clear()
sizes = {name: sum(shares) / len(shares) for name, shares in sizes.items()}
bars(sizes, "size of what the adapter adds, ‖A(z)‖ / ‖z‖")

# %% [markdown]
# Large is not the same as important. So let us send one editor home at a time: what is the accuracy when the adapter of
# one block adds nothing?

# %% tags=["nbval-ignore-output"]
without = {"all at work": accuracy}
for number, end in enumerate(ends, start=1):
    end.adapter.scaling = 0.0
    labels, logits = predict(model, validation)
    without[f"block {number} silent"] = float((logits.argmax(-1) == labels).mean())
    end.adapter.scaling = exact.scaling
bars(without, "validation accuracy", floor)

# %% [markdown]
# A point more or less is one tweet of 120. Houlsby and others saw the same in their paper: a single adapter could be
# taken out of a trained model without much harm, and all of them together could not.
#
# ## What adapters cost when the model is used
#
# LoRA can be merged. Adapters cannot:

# %%
try:
    merge(inject(load_classifier("minilm")[0], PfeifferConfig()))
except MethodError as error:
    print(error)

# %% [markdown]
# So the small layers run for every text. We time the plain model, both kinds of adapters, and LoRA after merging. All
# models take turns, so that a busy moment of the machine hits them all.


# %% tags=["nbval-ignore-output"]
def prepared(config=None, merged=False):
    """A fresh model in evaluation mode, with a method or without."""
    model, _ = load_classifier("minilm")
    if config is not None:
        inject(model, config)
    return (merge(model) if merged else model).eval()


models = {
    "plain model": prepared(),
    "Pfeiffer, 6 adapters": prepared(PfeifferConfig()),
    "Houlsby, 12 adapters": prepared(HoulsbyConfig()),
    "LoRA, merged": prepared(LoRAConfig(), merged=True),
}


@torch.no_grad()
def milliseconds(inputs, rounds):
    """Name → the median time of one forward pass."""
    times = {name: [] for name in models}
    for _ in range(rounds):
        for name, model in models.items():
            started = time.perf_counter()
            model(**inputs)
            times[name].append(1000 * (time.perf_counter() - started))
    return {name: median(values[1:]) for name, values in times.items()}


one = tokenizer(tweets["validation"]["text"][:1], return_tensors="pt")
many = tokenizer(tweets["validation"]["text"][:32], padding=True, return_tensors="pt")
measured = {"one tweet": milliseconds(one, 20), "32 tweets": milliseconds(many, 3)}
for title, times in measured.items():
    for name, value in times.items():
        print(f"{title}, {name}: {value:.1f} ms, {value / times['plain model']:.2f} times the plain model")

# %%
ratio = measured["one tweet"]["Houlsby, 12 adapters"] / measured["one tweet"]["plain model"]
assert 0.95 < ratio < 3, f"twelve adapters change the time of a forward pass by the factor {ratio:.2f}"
print("twelve adapters cost some time for every tweet, less than the model itself")

# %% [markdown]
# Twelve adapters add 2% to the multiplications. For a single tweet they add more than that to the time, because each is
# a handful of small operations which wait for each other. For 32 tweets at once the multiplications count for more. The
# merged LoRA is an ordinary model. (Timing on a busy machine wobbles: a few percent mean nothing.)
#
# ## One adapter for each domain
#
# The course's data has other kinds of texts. Sentences from editorials of a newspaper sound unlike tweets:

# %%
news = load_sentiment("news")
for title, texts in (("tweets", tweets), ("news", news)):
    print(f"{title}: {min(texts['train']['text'][:40], key=len)}")

# %% [markdown]
# The news get an adapter of their own, on the same frozen model. `add` brings in a fresh one and switches to it; `fit`
# then trains what is in use. The tweets' adapter is not touched.

# %% tags=["nbval-ignore-output"]
_, tweet_logits = predict(domains.model, validation)
train, news_validation = loaders(news, 480)
judged = {"tweets": validation, "news": news_validation}
domains.add("news", exact)
fit(domains.model, train, news_validation, settings)


def accuracies():
    """The accuracy of the adapter in use on the texts of each domain."""
    results = {}
    for domain, loader in judged.items():
        labels, logits = predict(domains.model, loader)
        results[domain] = float((logits.argmax(-1) == labels).mean())
    return results


table = {}
for name in domains.names:
    domains.use(name)
    table[name] = accuracies()
across_domains(table)

# %% [markdown]
# A row is an adapter, a column the texts; the frame marks an adapter on its own domain. Look down the columns: what
# does it cost to use a foreign adapter? (With 120 texts in each column, a difference of a few points says nothing. And
# the floors differ: two of three tweets are positive, and two of five sentences of the editorials.)

# %%
own = sum(table[name][name] for name in table) / 2
foreign = sum(table[name][domain] for name in table for domain in table if name != domain) / 2
assert own > foreign + 0.02, f"own domain {own:.1%}, foreign domains {foreign:.1%}"
domains.use("tweets")
_, again = predict(domains.model, validation)
assert np.array_equal(again, tweet_logits)
print("an adapter is best at home, and the tweets' adapter gives the same logits as before, bit for bit")

# %% [markdown]
# How long does it take to switch?

# %% tags=["nbval-ignore-output"]
switches = []
for name in ("news", "tweets") * 10:
    started = time.perf_counter()
    domains.use(name)
    switches.append(1000 * (time.perf_counter() - started))
print(f"one switch: {median(switches):.1f} ms")

# %% [markdown]
# ## What is stored
#
# Each adapter with its head goes into a folder of its own. Two copies of the model would take twice its size.

# %%
folder = Path(tempfile.mkdtemp())
for name in domains.names:
    domains.use(name)
    save(model, folder / name)
bytes_of_one = (folder / "news" / "tuning_model.safetensors").stat().st_size
assert 4 * 113_810 < bytes_of_one < 4 * 113_810 + 8_000
plain, _ = load_classifier("minilm")
print(f"the numbers of one adapter and its head: {4 * 113_810 / 1000:.0f} kB")
print(f"the model itself: {4 * count_parameters(plain).total / 1000:,.0f} kB")

# %% [markdown]
# A service that starts anew loads the model once and the adapters from their folders.

# %%
service = Adapters(plain)
for name in ("news", "tweets"):
    service.add(name, folder / name)
_, loaded_logits = predict(service.model, validation)
assert service.active == "tweets"
assert np.array_equal(loaded_logits, tweet_logits)
print("loaded beside another adapter, it gives the same logits bit for bit")

# %% [markdown]
# ## Your experiment
#
# Change the size, the place or the start, and run the cell again. Ideas:
#
# * `size=1`: one single unit in each block. How much does it matter?
# * `HoulsbyConfig()` or `ParallelAdapterConfig()`; the latter multiplies by 4, so give it a lower learning rate,
# * `initial_std=1.0`, the start that leaves nothing of the pretrained model.

# %% tags=["nbval-ignore-output"]
model, _ = load_classifier("minilm")
inject(model, PfeifferConfig(size=4, initial_std=None))
few = make_loader(tweets["train"].select(range(256)), tokenizer, 32, shuffle=True)
experiment = fit(model, few, validation, settings)
print(f"validation accuracy {experiment.evaluations[-1]['accuracy']:.1%}, floor {floor:.1%}")

# %% [markdown]
# ## The same in a few lines of PyTorch
#
# `peft` has no bottleneck adapters of this kind. The library `adapters` has them, but it needs another version of
# transformers than this course, so the following lines are here to read, not to run:
#
# ```text
# import adapters
# from adapters import SeqBnConfig                  # Pfeiffer; DoubleSeqBnConfig is Houlsby, ParBnConfig parallel
#
# adapters.init(model)
# model.add_adapter("tweets", config=SeqBnConfig(reduction_factor=16))
# model.train_adapter("tweets")                     # freezes the model; then train as usual
# model.add_adapter("news", config=SeqBnConfig(reduction_factor=16))
# model.set_active_adapters("news")                 # switch
# ```
#
# (The course's tests compare with numbers that this library wrote.) What runs here is plain PyTorch: a forward hook may
# replace the output of a layer, and that is all that an adapter needs. We take the stored weights of the tweets.

# %%
weights = load_file(folder / "tweets" / "tuning_model.safetensors")
hooked, _ = load_classifier("minilm")
with torch.no_grad():
    hooked.classifier.weight.copy_(weights["classifier.weight"])
    hooked.classifier.bias.copy_(weights["classifier.bias"])


def attach(end, weights):
    """Pfeiffer's adapter on the end of a block, which takes (hidden layer, x) and gives LN(h + x)."""
    adapter = nn.Sequential(nn.Linear(384, 24), nn.ReLU(), nn.Linear(24, 384))
    adapter.load_state_dict(weights)

    def hook(module, inputs, normalised_sum):
        hidden, x = inputs
        h = module.dropout(module.dense(hidden))
        return module.LayerNorm(h + adapter(normalised_sum) + x)

    end.register_forward_hook(hook)


for number, block in enumerate(hooked.bert.encoder.layer):
    start = f"bert.encoder.layer.{number}.output.adapter."
    names = {"down.weight": "0.weight", "down.bias": "0.bias", "up.weight": "2.weight", "up.bias": "2.bias"}
    attach(block.output, {theirs: weights[start + ours] for ours, theirs in names.items()})

_, hooked_logits = predict(hooked, validation)
difference = np.abs(hooked_logits - tweet_logits).max() / np.abs(tweet_logits).max()
assert difference < 1e-6
print("the hooks give the same logits")

# %% [markdown]
# For Houlsby's adapters the hook is one line, `return h + adapter(h)`, on the dropout layer at the end of attention and
# of the feed-forward part.
#
# ## Take away
#
# * An adapter is down, a function that is not linear, up, and a shortcut around it all.
# * Houlsby reads `h`, Pfeiffer the normalised sum, the parallel adapter `x`. All add to `h` before the block's own sum.
# * Start near the identity, but never with both matrices at zero.
# * Adapters cannot be merged: they cost time for every text. In return, one frozen model serves many domains, and a
#   switch between them takes next to no time.
