# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Lab 24: Serving
#
# **You will**
#
# * measure latency so that the numbers can be trusted, merged against unmerged,
# * compute a batch in which each text has its own LoRA adapter, and see what a mix-up does,
# * count the memory of many tasks, and the price of virtual tokens,
# * find out a base of the right shape and the wrong weights before it answers.
#
# **Time:** the whole lab runs in about {{ seconds }} s on two CPU cores (measured). No GPU is needed.
# Read the chapter *Serving* first.

# %%
# {{ install }}

# %%
import tempfile
import time
from pathlib import Path

import torch

from course_utils import (
    CheckpointError,
    LoRAConfig,
    PromptTuningConfig,
    TrainingConfig,
    check,
    count_parameters,
    find_targets,
    fit,
    inject,
    load,
    load_classifier,
    load_sentiment,
    make_loader,
    merge,
    predict,
    save,
)
from course_utils.serving import MixedLoRA, check_seal, fingerprint, seal

# %% [markdown]
# ## Two tasks, two adapters
#
# One base shall serve two customers. The first asks whether a tweet is positive. The second asks whether it holds an
# exclamation mark: a silly task, but quickly learnt, and its answers differ from the first one's. So you will see it
# when a text gets the wrong adapter.

# %% tags=["nbval-ignore-output"]
tweets = load_sentiment("tweets")
for split in tweets:
    marks = [int("!" in text) for text in tweets[split]["text"]]
    tweets[split] = tweets[split].add_column("exclaims", marks)
judged = tweets["validation"].select(range(40))
TASKS = {"sentiment": "label", "exclaims": "exclaims"}
folder = Path(tempfile.mkdtemp())
for name, column in TASKS.items():
    model, tokenizer = load_classifier("minilm")
    inject(model, LoRAConfig(rank=8, alpha=16))
    part = make_loader(tweets["train"].select(range(384)), tokenizer, 16, shuffle=True, label=column)
    fit(model, part, make_loader(judged, tokenizer, 64, label=column), TrainingConfig(learning_rate=8e-3, epochs=1))
    save(model, folder / name)
    seal(model, folder / name)  # which base it was trained on; exercise 5 says why
folders = {name: folder / name for name in TASKS}
print({name: sorted(file.name for file in path.iterdir()) for name, path in folders.items()})

# %% [markdown]
# ## Exercise 1: how slow is it?
#
# Nobody waits for a mean. A service promises, for example, "half of the requests within 15 ms, 95% within 25 ms": the
# 50th and the 95th percentile. Write the measurement:
#
# 1. evaluation mode, and no gradients,
# 2. send the first `warm_up` requests once, untimed,
# 3. then send *all* requests and time each by itself; `clock()` gives seconds,
# 4. return the 50th and the 95th percentile **in milliseconds**.


# %% tags=["exercise", "points:3"]
import numpy as np


def latency(model, requests, warm_up, clock):
    """(p50, p95) in milliseconds; `model(request)` answers one request."""
    ### BEGIN SOLUTION
    # Hint: np.percentile(times, (50, 95)) gives both.
    model.eval()
    times = []
    with torch.no_grad():
        for request in requests[:warm_up]:
            model(request)
        for request in requests:
            started = clock()
            model(request)
            times.append(1000 * (clock() - started))
    return np.percentile(times, (50, 95))
    ### END SOLUTION


# %% tags=["check"]
check("serving.latency", latency)

# %% [markdown]
# Now a real one: 60 tweets, one at a time, with LoRA beside the weights and merged into them. The two models take
# turns, so that a busy moment of the machine hits both.

# %% tags=["nbval-ignore-output"]
singles = [tokenizer(text, return_tensors="pt") for text in tweets["validation"]["text"][:60]]
apart = load(load_classifier("minilm")[0], folders["sentiment"]).eval()
merged = merge(load(load_classifier("minilm")[0], folders["sentiment"])).eval()
times = {"LoRA apart": [], "LoRA merged": []}
with torch.no_grad():
    for request in singles[:5] + singles:
        for title, model in (("LoRA apart", apart), ("LoRA merged", merged)):
            started = time.perf_counter()
            model(**request)
            times[title].append(1000 * (time.perf_counter() - started))
for title, values in times.items():
    p50, p95 = np.percentile(values[5:], (50, 95))  # the first five warm up
    print(f"{title}: p50 {p50:.1f} ms, p95 {p95:.1f} ms")

# %%
batch = dict(tokenizer(list(judged["text"]), padding=True, return_tensors="pt"))
with torch.no_grad():
    unmerged_logits, merged_logits = apart(**batch).logits, merged(**batch).logits
assert (unmerged_logits - merged_logits).abs().max() / unmerged_logits.abs().max() < 1e-5
assert count_parameters(merged).total < count_parameters(apart).total
print("the same answers, and the merged model is a plain one")

# %% [markdown]
# ## Exercise 2: each text with its own adapter
#
# Merged, one model serves one task. Not merged, one base serves all, even *within one batch*: the large product is the
# same for all texts, and the thin path differs. Text n of the batch wants adapter `which[n]`:
#
# $$h_n = W x_n + s_a\, B_a (A_a x_n), \qquad a = \texttt{which}[n]$$
#
# `x` has the shape (texts, tokens, in), `W` (out, in), `A` (adapters, rank, in), `B` (adapters, out, rank), `scaling`
# (adapters,) and `which` (texts,).


# %% tags=["exercise", "points:3"]
def mixed_lora(x, W, A, B, scaling, which):
    """(texts, tokens, out): every text through the frozen W and through its own adapter."""
    ### BEGIN SOLUTION
    # Hint: A[which] has the shape (texts, rank, in); `@` multiplies batches of matrices, and .mT transposes each.
    own = x @ A[which].mT @ B[which].mT
    return x @ W.T + scaling[which][:, None, None] * own
    ### END SOLUTION


# %% tags=["check"]
check("serving.mixed", mixed_lora)

# %% [markdown]
# `MixedLoRA` does this in each adapted layer of a real model, and gives each text the head of its adapter, too. We ask
# both questions about 40 tweets: one batch of 80 texts.

# %%
base, _ = load_classifier("minilm")
mixed = MixedLoRA(base, folders)
both = {key: torch.cat([value, value]) for key, value in batch.items()}
names = ["sentiment"] * 40 + ["exclaims"] * 40
with torch.no_grad():
    together = mixed(names, **both).logits
    for place, (name, path) in enumerate(folders.items()):
        alone = load(load_classifier("minilm")[0], path).eval()(**batch).logits
        difference = (together[40 * place : 40 * (place + 1)] - alone).abs().max() / alone.abs().max()
        assert difference < 1e-5
        print(f"{name}: in the mixed batch the same logits as alone")

# %% [markdown]
# And if the names are mixed up? Nothing breaks. No error, no warning, two numbers for each text as ever:

# %% tags=["nbval-ignore-output"]
truth = torch.tensor(list(judged["label"]) + list(judged["exclaims"]))
with torch.no_grad():
    swapped = mixed(names[::-1], **both).logits
right = (together.argmax(1) == truth).float().mean().item()
wrong = (swapped.argmax(1) == truth).float().mean().item()
print(f"right adapter: {right:.1%} of the answers are right; wrong adapter: {wrong:.1%}")

# %%
assert right > wrong + 0.2, f"with the right adapter {right:.1%}, with the wrong one {wrong:.1%}"
print("a mixed-up name costs accuracy and raises no error: test it with texts whose answer you know")

# %% [markdown]
# ## Exercise 3: the memory of many tasks
#
# All weights are float32, 4 bytes each. `base` counts the weights of the base without a head, `shapes` lists the
# matrices (out, in) that LoRA adapts, `head` counts the weights of one task's head. How many bytes do all tasks take,
# merged (each task is a model) and not merged (one base, and for each task LoRA and its head)?


# %% tags=["exercise", "points:2"]
def served_bytes(base, shapes, rank, head, tasks, merged):
    """Bytes of the weights of all tasks together."""
    ### BEGIN SOLUTION
    # Hint: LoRA has rank · (out + in) numbers for each matrix; a merged model has none.
    if merged:
        return 4 * tasks * (base + head)
    adapter = rank * sum(outputs + inputs for outputs, inputs in shapes) + head
    return 4 * (base + tasks * adapter)
    ### END SOLUTION


# %% tags=["check"]
check("serving.memory", served_bytes)

# %%
model, _ = load_classifier("minilm")
head = sum(p.numel() for p in model.classifier.parameters())
shapes = [tuple(layer.weight.shape) for layer in find_targets(model, None).values()]
body = model.num_parameters() - head
print(f"base {body:,} weights, {len(shapes)} matrices of {shapes[0]}, head {head}")
stored = sum(path.stat().st_size for path in folders["sentiment"].glob("*.safetensors"))
lora = sum(8 * sum(shape) for shape in shapes)
assert 0 <= stored - 4 * (lora + head) < 10_000  # names and shapes come on top
merged_mb, apart_mb = 400 * (body + head) / 1e6, 4 * (body + 100 * (lora + head)) / 1e6
print(f"100 tasks: {merged_mb:,.0f} MB merged, {apart_mb:,.0f} MB on one base")

# %% [markdown]
# ## Exercise 4: what virtual tokens cost
#
# A prompt or a prefix cannot be merged. What do $k$ virtual tokens cost in every request? Count the multiplications of
# one block of an encoder of width $d$. With $q$ rows that are computed and $m$ positions that each row looks at:
#
# $$12\, q\, d^2 + 2\, q\, m\, d$$
#
# The first part is the matrices ($4d^2$ of attention, $8d^2$ of the feed-forward part), the second one the attention
# itself (scores, and the mean of the values). For a text of `tokens` tokens, choose $q$ and $m$ for the kinds
# `"merged"` (a merged LoRA), `"prefix"` (ready-made keys and values) and `"prompt"` (vectors in front of the words).


# %% tags=["exercise", "points:2"]
def block_cost(tokens, width, virtual, kind):
    """Multiplications of one block for one text."""
    ### BEGIN SOLUTION
    # Hint: a prompt passes through the block like words; a prefix is only looked at.
    rows = tokens + virtual if kind == "prompt" else tokens
    positions = tokens if kind == "merged" else tokens + virtual
    return 12 * rows * width**2 + 2 * rows * positions * width
    ### END SOLUTION


# %% tags=["check"]
check("serving.cost", block_cost)

# %% [markdown]
# Does the clock agree? A tweet of 20 tokens with a prompt of 20: twice the rows, so about twice the multiplications.
# But one short text keeps no processor busy, and much of its time is the start of each operation. In a batch the ratio
# comes closer to two.

# %% tags=["nbval-ignore-output"]
prompted = inject(load_classifier("minilm")[0], PromptTuningConfig(virtual_tokens=20)).eval()
some = {key: value[:32, :20] for key, value in batch.items()}
seconds = {"merged": [], "prompt": []}
with torch.no_grad():
    for _ in range(5):  # in turn, so that a slow moment hits both
        for name, model in (("merged", merged), ("prompt", prompted)):
            started = time.process_time()
            model(**some)
            seconds[name].append(time.process_time() - started)
ratio = float(np.median(np.array(seconds["prompt"][1:]) / np.array(seconds["merged"][1:])))
print(f"32 tweets of 20 tokens: with the prompt {ratio:.2f} times as long")

# %%
assert 1.2 < ratio < 3.5, f"a prompt as long as the text changed the time by the factor {ratio:.2f}"
print("the prompt costs time in every request")

# %% [markdown]
# ## Exercise 5: is it the right base?
#
# An adapter fits every base of the same shape. Here is one with random weights. Our loader compares names and shapes,
# and both are right:

# %%
stranger, _ = load_classifier("minilm", pretrained=False)
load(stranger, folders["sentiment"])
labels, logits = predict(stranger, make_loader(judged, tokenizer, 64))
nonsense = float((logits.argmax(1) == labels).mean())
print("loaded without an error")

# %% tags=["nbval-ignore-output"]
at_home = (together[:40].argmax(1) == truth[:40]).float().mean().item()
print(f"on the wrong base {nonsense:.1%} of the tweets are right, on its own base {at_home:.1%}")

# %% [markdown]
# So we need a fingerprint of the base. Write a function that takes the weights, a dictionary name → tensor, and returns
# `hashlib.sha256(...).hexdigest()` over names, shapes and numbers. The head (names that begin with `classifier`) stays
# out: each task trains its own. The order of the dictionary must not matter.


# %% tags=["exercise", "points:3"]
import hashlib


def base_fingerprint(weights):
    """The SHA-256 of a base as hexadecimal text."""
    ### BEGIN SOLUTION
    # Hint: digest = hashlib.sha256(); digest.update(some bytes) as often as you like; digest.hexdigest() at the end.
    digest = hashlib.sha256()
    for name in sorted(weights):
        if not name.startswith("classifier"):
            digest.update(f"{name} {tuple(weights[name].shape)}".encode())
            digest.update(weights[name].numpy().tobytes())
    return digest.hexdigest()
    ### END SOLUTION


# %% tags=["check"]
check("serving.fingerprint", base_fingerprint)

# %% [markdown]
# The course's own does the same, and `seal` above has written it beside each checkpoint. `MixedLoRA` looks at it before
# it loads anything:

# %%
check_seal(load_classifier("minilm")[0], folders["sentiment"])  # the right base: no error
stranger, _ = load_classifier("minilm", pretrained=False)
try:
    MixedLoRA(stranger, folders)
except CheckpointError as error:
    print(str(error).split(": its seal")[0].replace(str(folder), "..."))
assert fingerprint(load_classifier("minilm", seed=5)[0]) == fingerprint(apart)  # head and LoRA are left out
print("the same base with another head and with LoRA: the same fingerprint")

# %% [markdown]
# ## Your experiment
#
# Change one thing and run the cell again. Ideas:
#
# * batches of 1, 8 and 64. When does the time for a text stop falling?
# * sort the tweets by length before you cut them into batches. How much padding is left?
# * `torch.set_num_threads(1)`, and 2. Does one request get faster, or do two?

# %% tags=["nbval-ignore-output"]
size = 16
texts = list(judged["text"])
started, cells, filled = time.perf_counter(), 0, 0
with torch.no_grad():
    for start in range(0, len(texts), size):
        one = tokenizer(texts[start : start + size], padding=True, return_tensors="pt")
        merged(**one)
        cells, filled = cells + one["attention_mask"].numel(), filled + int(one["attention_mask"].sum())
each = 1000 * (time.perf_counter() - started) / len(texts)
print(f"batches of {size}: {each:.1f} ms for a text, {1 - filled / cells:.0%} of the positions are padding")

# %% [markdown]
# ## The same in `peft`
#
# peft loads several adapters into one model, too, and takes `adapter_names`, one for each text. It goes through the
# adapters one after the other where we gather them; the logits are the same.

# %%
import warnings

warnings.filterwarnings("ignore", category=FutureWarning)  # transformers' notes to the authors of peft
from peft import PeftModel

model, _ = load_classifier("minilm")
peft_model = PeftModel.from_pretrained(model, folders["sentiment"], adapter_name="sentiment")
peft_model.load_adapter(folders["exclaims"], adapter_name="exclaims")
peft_model.eval()
with torch.no_grad():
    theirs = peft_model(**both, adapter_names=names).logits
assert (theirs - together).abs().max() / together.abs().max() < 1e-5
print("a mixed batch in peft: the same logits for", len(names), "texts")

# %% [markdown]
# ## Take away
#
# * Warm up, `eval()`, no gradients, time each request, and report percentiles.
# * Merged LoRA is as fast as the base and serves one task. Beside the weights it serves many, also in one batch.
# * Virtual tokens are paid for in every request: a prompt like words, a prefix like words that are only looked at.
# * A wrong adapter or a wrong base raises no error. Name, test, and seal them.
