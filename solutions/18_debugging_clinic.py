# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Lab 18: A debugging clinic
#
# **You will**
#
# * meet twelve broken set-ups that learners really ask about, and see the symptom of each,
# * mend six of them yourself,
# * and for each of the six write a *regression test*: a function that says True for the broken set-up and False for a
#   sound one. Your tests are tested, on set-ups that you do not see.
#
# **Time:** the whole lab runs in about {{ seconds }} s on two CPU cores (measured). No GPU is needed.
# Read the chapter *A debugging clinic* first.

# %%
# {{ install }}

# %%
import math
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from course_utils import (
    CheckpointError,
    LoRAConfig,
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
    merge,
    predict,
    quantize,
    save,
    trainable_parameters,
)
from course_utils.data import clean_text, load_ratings
from course_utils.exercises import look_trained, tiny_batch, tiny_classifier
from course_utils.methods import dequantize

# %% [markdown]
# ## Before the patients come in
#
# Is it the model, or the computer? `python -m course_utils doctor` looks at the computer: the version of Python, the
# packages, memory and disk, and whether the files of the model and the data are whole. It prints the command that
# mends what is wrong. Run it first when something fails that worked yesterday.
#
# Nearly all patients of today are tiny: a BERT with two layers, 32 numbers a token, and random weights. A broken set-up
# is broken in a small model too, and there a try costs milliseconds.

# %%
model, batch = tiny_classifier(), tiny_batch()
print(f"{count_parameters(model).total:,} numbers in all")
print({name: tuple(tensor.shape) for name, tensor in batch.items()})

# %% [markdown]
# And these are the numbers to print *before* any guess. Each has a value that you can compute:
#
# * what is trained: LoRA of rank 4 on query and value of two layers, $2 \cdot 2 \cdot 4 \cdot (32 + 32) = 1{,}024$,
#   and a head of $2 \cdot 32 + 2 = 66$;
# * the first loss: a head that knows nothing yet gives about $\ln 2 = 0.69$ for two classes. (This tiny head starts
#   with larger numbers than usual, so it may be off a little);
# * the gradients: each trainable tensor has one. In a fresh LoRA that of $A$ is zero, because $B$ is zero, but it is
#   there;
# * the size of $B$: zero before the first step, and not zero after it.


# %%
def first_look(model, batch):
    """Print what can be compared with a number that we know."""
    model.zero_grad()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # we want to see the symptom here, not the warning
        loss = model(**batch).loss
        loss.backward()
    trained = trainable_parameters(model)
    without = [name for name, parameter in trained.items() if parameter.grad is None]
    sizes = [parameter.norm().item() for name, parameter in trained.items() if "lora_B" in name]
    print(count_parameters(model))
    print(f"loss {loss.item():.1f}; with two classes ln 2 = {math.log(2):.1f}")
    print(f"{len(without)} of {len(trained)} trainable tensors have no gradient")
    print(f"{sum(size > 0 for size in sizes)} of {len(sizes)} B are not zero")


def train(model, optimiser, batch, steps):
    """A few steps on one batch; return the first and the last loss."""
    losses = []
    for _ in range(steps):
        optimiser.zero_grad()
        loss = model.train()(**batch).loss
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    model.eval()
    return losses[0], losses[-1]


model = inject(tiny_classifier(), LoRAConfig(rank=4))
first_look(model, batch)

# %% [markdown]
# Then comes the strongest test of all, and it takes a second: **overfit one batch**. Whoever cannot learn eight texts
# by heart will not learn ten thousand. This is how it looks when all is well:

# %%
optimiser = torch.optim.AdamW(trainable_parameters(model).values(), lr=1e-2)
first, last = train(model, optimiser, batch, 60)
print("learnt by heart:", last < 0.1 * first)
print("accuracy on the eight texts:", f"{(model(**batch).logits.argmax(1) == batch['labels']).float().mean():.0%}")

# %% [markdown]
# ## Case 1: “LoRA trains, but hardly anything is trained”
#
# The learner wrote this function to choose the layers for LoRA. The targets were copied from a tutorial about Llama.


# %%
def broken_choose_layers(names, targets):
    """The names of the layers that get an adapter."""
    return [name for name in names if name.split(".")[-1] in targets]


names = [name for name, module in tiny_classifier().named_modules() if isinstance(module, torch.nn.Linear)]
print("q_proj and v_proj:", len(broken_choose_layers(names, ("q_proj", "v_proj"))), "layers")
print("query and v_proj: ", len(broken_choose_layers(names, ("query", "v_proj"))), "layers, and 4 were meant")

# %% [markdown]
# No error, no warning. The second one is worse than the first: the run even learns something.
#
# **Mend it.** Whenever one of the targets matches nothing, raise a `ValueError` that names it.


# %% tags=["exercise", "points:2"]
def choose_layers(names, targets):
    """The names whose last part is one of the targets; ValueError with the name of a target that matches nothing."""
    ### BEGIN SOLUTION
    # Hint: look at each target by itself; name.split(".")[-1] is the last part of a name.
    last = [name.split(".")[-1] for name in names]
    for target in targets:
        if target not in last:
            raise ValueError(f"no layer is called {target!r}; there are {sorted(set(last))}")
    return [name for name in names if name.split(".")[-1] in targets]
    ### END SOLUTION


# %% tags=["check"]
check("debugging_clinic.choose_layers", choose_layers)

# %% [markdown]
# **Write the test that would have found it.** `build()` returns a model with LoRA. `shapes` is the list of the (out,
# in) shapes of all matrices that should have an adapter. True means broken.


# %% tags=["exercise", "points:2"]
def detects_missing_layers(build, shapes, rank):
    """Whether LoRA does not hold as many numbers as the formula says."""
    ### BEGIN SOLUTION
    # Hint: count the parameters with "lora_" in their name, and compare with rank · (out + in), summed.
    found = sum(p.numel() for name, p in build().named_parameters() if "lora_" in name)
    return found != sum(rank * (outputs + inputs) for outputs, inputs in shapes)
    ### END SOLUTION


# %% tags=["check"]
check("debugging_clinic.detects_missing_layers", detects_missing_layers)

# %% [markdown]
# ## Case 2: “After loading, my model is at random again”
#
# The learner saves what LoRA has learnt.


# %%
def broken_save_trained(model):
    """What is to be stored, name → tensor."""
    return {name: p.detach().clone() for name, p in model.named_parameters() if "lora_" in name}


def restored(tensors, seed):
    """A fresh model with these tensors in it. Its body is the same, its head is drawn anew, as on another day."""
    fresh = inject(tiny_classifier(), LoRAConfig(rank=4))
    torch.manual_seed(seed)
    fresh.classifier.reset_parameters()
    fresh.load_state_dict(tensors, strict=False)
    return fresh


with torch.no_grad():
    right = (model(**batch).logits.argmax(1) == batch["labels"]).float().mean().item()
    again = [
        (restored(broken_save_trained(model), seed)(**batch).logits.argmax(1) == batch["labels"]).float().mean().item()
        for seed in range(20)
    ]
print(f"before saving {right:.0%} of the texts are right")
print("after loading, with twenty heads, fewer on average:", np.mean(again) < right - 0.2)

# %% [markdown]
# `load_state_dict(strict=False)` is silent about what is missing. The head is new in fine-tuning. It was trained, so it
# must be stored.
#
# **Mend it.** Return a copy of everything that was trained, and of nothing else.


# %% tags=["exercise", "points:2"]
def save_trained(model):
    """Name → copy, for every parameter that was trained."""
    ### BEGIN SOLUTION
    # Hint: requires_grad says what is trained, whatever its name.
    return {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    ### END SOLUTION


# %% tags=["check"]
check("debugging_clinic.save_trained", save_trained)

# %% [markdown]
# **Write the test.** `build()` returns two models, the trained one and the one that was loaded again.


# %% tags=["exercise", "points:2"]
def detects_lost_weights(build, batch):
    """Whether the reloaded model answers otherwise than the trained one."""
    ### BEGIN SOLUTION
    # Hint: compare logits, not classes. And think of dropout.
    trained, reloaded = build()
    with torch.no_grad():
        return not torch.equal(trained.eval()(**batch).logits, reloaded.eval()(**batch).logits)
    ### END SOLUTION


# %% tags=["check"]
check("debugging_clinic.detects_lost_weights", detects_lost_weights)

# %% [markdown]
# ## Case 3: “The loss is flat” · Case 4: “Prompt tuning is stuck at 68%”
#
# Two cases with the real MiniLM and real tweets. Both learners took a learning rate from somewhere else: 2e-5 for
# LoRA, which is one of full fine-tuning, and 1e-3 for prompt tuning, which LoRA would like. We train each of them for
# 32 steps, and then again with a rate of its own.
#
# The floors to compare with: always saying “positive”, and the loss of whoever knows only the shares of the classes.

# %% tags=["nbval-ignore-output"]
tweets = load_sentiment("tweets")
judged = tweets["validation"].select(range(200))
_, tokenizer = load_classifier("minilm")
texts = make_loader(tweets["train"].select(range(512)), tokenizer, 16, shuffle=True)
validation = make_loader(judged, tokenizer, 64)
floor = majority_accuracy(list(tweets["train"]["label"]), list(judged["label"]))
share = float(np.mean(judged["label"]))
floor_loss = -(share * math.log(share) + (1 - share) * math.log(1 - share))

runs = {}
for title, config, rate in (
    ("LoRA, 2e-5", LoRAConfig(rank=8), 2e-5),
    ("LoRA, 8e-3", LoRAConfig(rank=8), 8e-3),
    ("prompt, 1e-3", PromptTuningConfig(virtual_tokens=10), 1e-3),
    ("prompt, 3e-1", PromptTuningConfig(virtual_tokens=10), 3e-1),
):
    torch.manual_seed(0)
    real, _ = load_classifier("minilm")
    inject(real, config)
    history = fit(real, texts, validation, TrainingConfig(learning_rate=rate, epochs=1, weight_decay=0.0))
    last = history.evaluations[-1]
    answers = predict(real, validation)[1].argmax(1)
    runs[title] = {"first": history.steps[0]["loss"], **last, "positive": float(answers.mean())}
    print(
        f"{title:13} first loss {runs[title]['first']:.2f}, last validation loss {last['loss']:.3f}, "
        f"accuracy {last['accuracy']:.1%}, F1 (macro) {last['f1_macro']:.2f}, says positive {answers.mean():.0%}"
    )
print(f"floors: accuracy {floor:.1%}, loss {floor_loss:.3f}; ln 2 = {math.log(2):.3f}")

# %%
for title in ("LoRA, 2e-5", "prompt, 1e-3"):
    assert 0.5 < runs[title]["first"] < 0.9, "the first loss should be about ln 2"
    assert runs[title]["loss"] > floor_loss - 0.02, "it should not have learnt anything from the texts"
assert runs["LoRA, 8e-3"]["accuracy"] > floor + 0.1
assert runs["LoRA, 8e-3"]["loss"] < floor_loss - 0.1
print("with a rate from elsewhere neither has learnt anything from the texts; LoRA with its own rate has")

# %% [markdown]
# Look at the last column of the print. A model that says “positive” to everything has an accuracy of two thirds, and
# has read nothing. Three numbers unmask it: the accuracy of the majority, the share of each answer, and a macro F1
# far below the accuracy. The loss tells the same: between 0.69 and the loss of the shares, nothing of the *texts* was
# learnt.
#
# The cure is a rate of its own; the page on learning rates has a table. Prompt tuning needs the highest of all and
# more steps than sixteen; chapter 12 shows how far it comes.
#
# ## Case 5: “The loss falls, but LoRA does nothing”
#
# The learner made the optimiser first.


# %%
def broken_prepare(model, config, learning_rate):
    """Put the method in; return the optimiser."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    inject(model, config)
    return optimiser


model = tiny_classifier()
first, last = train(model, broken_prepare(model, LoRAConfig(rank=4), 1e-2), batch, 60)
print("the loss falls:", last < first)
first_look(model, batch)

# %% [markdown]
# The loss falls, since the head is in the optimiser. But every $B$ is still zero: the optimiser has never heard of it.
# It holds the frozen weights, which have no gradients.
#
# **Mend it.**

# %% tags=["exercise", "points:2"]
from course_utils import inject


def prepare(model, config, learning_rate):
    """Put the method in; return an AdamW of all that is trainable."""
    ### BEGIN SOLUTION
    # Hint: first inject, then the optimiser, and only with what requires_grad.
    inject(model, config)
    return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=learning_rate)
    ### END SOLUTION


# %% tags=["check"]
check("debugging_clinic.prepare", prepare)

# %% [markdown]
# **Write the test.** `build()` returns a model with LoRA and its optimiser, before the first step. What has to move:
# all of LoRA (`"lora_"` in the name) and the head (the name begins with `classifier`). And nothing else.


# %% tags=["exercise", "points:3"]
def detects_wrong_training(build, batch):
    """Whether training moves something else than LoRA and the head, or not all of them."""
    ### BEGIN SOLUTION
    # Hint: keep copies, take two steps (why not one?), and compare by name.
    model, optimiser = build()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    for _ in range(2):
        optimiser.zero_grad()
        model(**batch).loss.backward()
        optimiser.step()
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    return moved != {name for name in before if "lora_" in name or name.startswith("classifier")}
    ### END SOLUTION


# %% tags=["check"]
check("debugging_clinic.detects_wrong_training", detects_wrong_training)

# %% [markdown]
# ## Case 6: “I load my adapter, and it has no effect”
#
# In peft's files each name begins with `base_model.model.`. The learner's model has names without it.

# %%
trained = look_trained(inject(tiny_classifier(), LoRAConfig(rank=4)))
file = {"base_model.model." + name: p.detach().clone() for name, p in trainable_parameters(trained).items()}


def broken_load_strictly(model, tensors):
    """Put the tensors of a file into a model with LoRA."""
    model.load_state_dict(tensors, strict=False)
    return model


loaded = broken_load_strictly(inject(tiny_classifier(), LoRAConfig(rank=4)), file)
first_look(loaded, batch)

# %% [markdown]
# `strict=False` means: take what fits, and say nothing about the rest. Here nothing fits.
#
# **Mend it.** Take the prefix away. Raise a `ValueError` that names the key if a trainable parameter is missing in the
# file, or if the file has a key that is no trainable parameter. Only then load.


# %% tags=["exercise", "points:3"]
def load_strictly(model, tensors):
    """Put the tensors of a peft file into a model with LoRA, all of them or none; return the model."""
    ### BEGIN SOLUTION
    # Hint: two sets of names; `a ^ b` holds what is in one of them only. name.removeprefix(...) takes the prefix away.
    ours = {name.removeprefix("base_model.model."): tensor for name, tensor in tensors.items()}
    wanted = {name for name, p in model.named_parameters() if p.requires_grad}
    if wanted ^ set(ours):
        raise ValueError(f"missing: {sorted(wanted - set(ours))}; unexpected: {sorted(set(ours) - wanted)}")
    model.load_state_dict(ours, strict=False)
    return model
    ### END SOLUTION


# %% tags=["check"]
check("debugging_clinic.load_strictly", load_strictly)

# %% [markdown]
# **Write the test.** `build()` returns a model whose checkpoint was just loaded.


# %% tags=["exercise", "points:2"]
def detects_no_effect(build):
    """Whether at least one factor B is exactly zero as a whole."""
    ### BEGIN SOLUTION
    # Hint: p.any() is True as soon as one number of p is not zero.
    return any(not p.any() for name, p in build().named_parameters() if "lora_B" in name)
    ### END SOLUTION


# %% tags=["check"]
check("debugging_clinic.detects_no_effect", detects_no_effect)

# %% [markdown]
# ## Case 7: `Attempting to unscale FP16 gradients`
#
# A model in half precision takes half the memory. The learner trained all of it so, with a gradient scaler, as mixed
# precision needs it.


# %%
def step_with_scaler(model):
    """One step as mixed precision takes it; return what the error says, or that all went well."""
    scaler = torch.amp.GradScaler("cpu")
    optimiser = torch.optim.AdamW(trainable_parameters(model).values(), lr=1e-2)
    try:
        with torch.autocast("cpu", torch.float16):
            loss = model.train()(**batch).loss
        scaler.scale(loss).backward()
        scaler.step(optimiser)
    except ValueError as error:
        return str(error)
    return "one step, no error"


half = inject(tiny_classifier().half(), LoRAConfig(rank=4))
print("types of the trained weights:", sorted({str(p.dtype) for p in trainable_parameters(half).values()}))
print(step_with_scaler(half))
for parameter in trainable_parameters(half).values():  # the cure
    parameter.data = parameter.data.float()
half.zero_grad()  # else the old gradients in half precision would stay
print("types of the trained weights:", sorted({str(p.dtype) for p in trainable_parameters(half).values()}))
print(step_with_scaler(half))

# %% [markdown]
# `inject` makes LoRA's own weights in float32. But the *head* belongs to the model, and was fp16 like it. The error
# is a friend: without the scaler the steps would have been lost silently. Half precision has about three decimal
# digits.

# %%
weight = torch.tensor(1.0)
print("float32: ", (weight + 1e-4).item() != 1.0, "| float16: ", (weight.half() + 1e-4).item() != 1.0)

# %% [markdown]
# ## Case 8: “With checkpointing, only the head learns”
#
# Gradient checkpointing throws the activations of a block away and computes them again in the backward pass. The
# learner wrote it with the older kind of torch's `checkpoint`, which tutorials still show.


# %%
def broken_checkpoint(model):
    """Let each block compute its activations twice instead of keeping them."""
    for block in model.bert.encoder.layer:

        def forward(hidden, *arguments, inner=block.forward, **options):
            return torch.utils.checkpoint.checkpoint(
                lambda h: inner(h, *arguments, **options), hidden, use_reentrant=True
            )

        block.forward = forward
    return model


first_look(broken_checkpoint(inject(tiny_classifier(), LoRAConfig(rank=4)).train()), batch)

# %% [markdown]
# Only the two tensors of the head have a gradient. The older kind asks whether the *input* of a block needs a gradient.
# The input comes from the embeddings, and these are frozen; so the block is taken for a constant. torch says so in a
# warning, `None of the inputs have requires_grad=True`, which is easily lost among others.
#
# **Mend it.** There are two ways, one is enough. The embeddings themselves must stay frozen.

# %% tags=["exercise", "points:2"]


def checkpoint(model):
    """Let each block compute its activations twice; every trainable weight gets its gradient. Return the model."""
    ### BEGIN SOLUTION
    # Hint: use_reentrant=False. Or, before the loop, model.enable_input_require_grads().
    for block in model.bert.encoder.layer:

        def forward(hidden, *arguments, inner=block.forward, **options):
            return torch.utils.checkpoint.checkpoint(
                lambda h: inner(h, *arguments, **options), hidden, use_reentrant=False
            )

        block.forward = forward
    return model
    ### END SOLUTION


# %% tags=["check"]
check("debugging_clinic.checkpoint", checkpoint)

# %% [markdown]
# **Write the test.** `build()` returns a model with LoRA, in training mode.


# %% tags=["exercise", "points:2"]
def detects_no_gradient(build, batch):
    """Whether a trainable tensor has no gradient after one backward pass."""
    ### BEGIN SOLUTION
    # Hint: None is not the same as zero, and frozen weights have none either.
    model = build()
    model(**batch).loss.backward()
    return any(p.requires_grad and p.grad is None for p in model.parameters())
    ### END SOLUTION


# %% tags=["check"]
check("debugging_clinic.detects_no_gradient", detects_no_gradient)

# %% [markdown]
# ## Case 9: “Each evaluation gives another accuracy, and merged differs from unmerged”
#
# Often the merge is accused, and dropout did it.

# %%
noisy = look_trained(inject(tiny_classifier(dropout=0.1), LoRAConfig(rank=4))).train()
with torch.no_grad():
    one, two = noisy(**batch).logits, noisy(**batch).logits
    print("training mode, twice the same batch: equal", torch.equal(one, two))
    noisy.eval()  # the cure
    one, two = noisy(**batch).logits, noisy(**batch).logits
    print("evaluation mode:                     equal", torch.equal(one, two))
    print("merged:                              equal", torch.allclose(merge(noisy)(**batch).logits, one, atol=1e-5))

# %% [markdown]
# `torch.no_grad()` does not switch dropout off; only `eval()` does. `predict` and `evaluate` of this course do both,
# and put the model back into its mode.
#
# ## Case 10: “My language model learns to say nothing but padding”
#
# The labels of a language model are its own tokens. The learner forgot that padding is none.


# %%
def broken_mask_labels(input_ids, attention_mask):
    """The labels of a language model."""
    return input_ids.clone()


labels = broken_mask_labels(batch["input_ids"], batch["attention_mask"])
print(f"{(batch['attention_mask'] == 0).sum()} of {labels.numel()} labels are padding, and are praised when predicted")

# %% [markdown]
# **Mend it.** The loss of transformers ignores the label −100. Mind that some tokenisers pad with the same token that
# ends a text.


# %% tags=["exercise", "points:2"]
def mask_labels(input_ids, attention_mask):
    """The tokens, with -100 at the padding; the inputs stay as they are."""
    ### BEGIN SOLUTION
    # Hint: the mask says what padding is; masked_fill returns a new tensor.
    return input_ids.masked_fill(attention_mask == 0, -100)
    ### END SOLUTION


# %% tags=["check"]
check("debugging_clinic.mask_labels", mask_labels)

# %% [markdown]
# **Write the test.** `build()` returns a function `loss(input_ids, attention_mask)`. You cannot look into it. But you
# know something that must hold: *more padding changes nothing*. `torch.nn.functional.pad(tensor, (0, 3), value=...)`
# adds three columns on the right.


# %% tags=["exercise", "points:2"]
def detects_padding(build, input_ids, attention_mask):
    """Whether the loss changes when padding is added on the right."""
    ### BEGIN SOLUTION
    # Hint: the new columns get 0 in the mask. Compare with a small tolerance.
    loss = build()
    longer = torch.nn.functional.pad(input_ids, (0, 3), value=1)
    mask = torch.nn.functional.pad(attention_mask, (0, 3), value=0)
    return abs(loss(longer, mask) - loss(input_ids, attention_mask)) > 1e-4
    ### END SOLUTION


# %% tags=["check"]
check("debugging_clinic.detects_padding", detects_padding)

# %% [markdown]
# ## Case 11: “Since I merged, the model is worse”
#
# Two ways to get there. The first is to merge twice, for example in a function that runs before each evaluation. The
# second is to merge and store the result in 4 bits.

# %%
tuned = look_trained(inject(tiny_classifier(), LoRAConfig(rank=4)))
layer = tuned.bert.encoder.layer[0].attention.self.query
with torch.no_grad():
    before = tuned(**batch).logits
    once = layer.base.weight + layer.delta()
    twice = once + layer.delta()
print("once:  ΔW is in it", round(((once - layer.base.weight).norm() / layer.delta().norm()).item()), "time")
print("twice: ΔW is in it", round(((twice - layer.base.weight).norm() / layer.delta().norm()).item()), "times")

merge(tuned)
try:
    merge(tuned)
except ValueError as error:
    print("the course's merge:", error)

# %% [markdown]
# A merge must know that it was done. Ours takes the adapter out, so there is nothing left to add again.
#
# Now 4 bits. QLoRA trains beside weights in 4 bits, and merges into *full* precision. Whoever then stores the merged
# model in 4 bits again rounds once more, and the learnt change is often smaller than the rounding.

# %%
with torch.no_grad():
    full = tuned(**batch).logits
    print("merged in full precision: equal", torch.allclose(full, before, atol=1e-5))
    rounded = dequantize(quantize(tuned))(**batch).logits
    print("and stored in 4 bits:     equal", torch.allclose(rounded, before, atol=1e-2))

# %% [markdown]
# ## Case 12: “Validation is wonderful, the real world is not”
#
# A leak: texts of the test stand in the training data, too. The learner split the published tweets at random.

# %%
raw = load_ratings("tweets").sample(frac=1.0, random_state=0)
cleaned = [clean_text(text).lower() for text in raw["text"]]
cut = len(cleaned) // 4
known = set(cleaned[cut:])
print("split as published:", sum(text in known for text in cleaned[:cut]), "test texts are in the training data")

known = {text.lower() for text in tweets["train"]["text"]}
print("the course's split:", sum(text.lower() in known for text in tweets["test"]["text"]))

# %% [markdown]
# A few texts do little harm here. In a data set of copies, or of several sentences from each document, a leak makes a
# model look perfect. Compare the texts *before* the split. Two more cases of this kind have no error message either:
# choosing on the test, which makes it a second validation; and texts and labels that were shuffled apart, which
# leaves the accuracy at the floor. For the last one: print ten texts with their labels, and read them.
#
# ## All at once: the invariants
#
# Several of your tests stand in one function of the course. `check_invariants` builds a model afresh and tries what
# every method must keep. Here with the broken training loop of case 5, and the broken loader of case 6.


# %%
def train_too_early(model, batch):
    """What the optimiser of case 5 does: it knows only the head."""
    train(model, torch.optim.AdamW(model.classifier.parameters(), lr=1e-2), batch, 3)


def load_whatever_fits(model, folder):
    """What the loader of case 6 does."""
    broken_load_strictly(inject(model, LoRAConfig(rank=4)), load_file(folder / "adapter_model.safetensors"))


for title, options in (
    ("sound", {}),
    ("case 5", {"train": train_too_early}),
    ("case 6", {"load": load_whatever_fits}),
):
    report = check_invariants(tiny_classifier, LoRAConfig(rank=4), batch, expected_parameters=1_024 + 66, **options)
    print(f"{title}: {', '.join(failure.name for failure in report.failures) or 'all hold'}")

# %% [markdown]
# ## Your experiment
#
# Break something yourself. Change one line of this cell, guess what `first_look` and `train` will say, and run it:
#
# * `alpha=1000`, or a learning rate of 1. What does the loss look like when the rate is too high?
# * after `inject`, `model.requires_grad_(True)`. Which line of `first_look` betrays it?
# * labels that are all 0. Is a loss of zero a success?

# %% tags=["nbval-ignore-output"]
model = inject(tiny_classifier(), LoRAConfig(rank=4, alpha=8))
first, last = train(model, torch.optim.AdamW(trainable_parameters(model).values(), lr=1e-2), batch, 30)
print(f"first loss {first:.3f}, last loss {last:.3f}")
first_look(model, batch)

# %% [markdown]
# ## The same in `peft`
#
# Three of the twelve, in peft. **Case 1:** a target that matches nothing is an error, if *no* target matches. If one of
# them does, peft says nothing.

# %%
warnings.filterwarnings("ignore", category=FutureWarning)  # transformers' notes to the authors of peft
from peft import LoraConfig, PeftModel, get_peft_model


def in_peft(targets, task_type="SEQ_CLS"):
    """A tiny model with peft's LoRA of rank 4."""
    return get_peft_model(tiny_classifier(), LoraConfig(task_type=task_type, r=4, target_modules=targets))


def lora_numbers(model):
    """How many numbers LoRA has."""
    return sum(p.numel() for name, p in model.named_parameters() if "lora_" in name)


try:
    in_peft(["q_proj", "v_proj"])
except ValueError as error:
    print("q_proj, v_proj: a", type(error).__name__)
print("query, v_proj: ", lora_numbers(in_peft(["query", "v_proj"])), "numbers, and the formula says", 2 * 2 * 4 * 64)

# %% [markdown]
# **Case 2:** without a task type, peft freezes the head and does not store it.

# %%
for task_type in (None, "SEQ_CLS"):
    model = in_peft(["query", "value"], task_type)
    print(task_type, "→ the head is trained:", any("classifier" in n for n in trainable_parameters(model)))

# %% [markdown]
# **Case 6:** the names in a file of peft. We rename LoRA's tensors, as a script that “cleans up” may do, and load.

# %%
folder = Path(tempfile.mkdtemp()) / "adapter"
save(trained, folder)
weights = folder / "adapter_model.safetensors"
renamed = {
    name.replace("bert.encoder", "encoder") if "lora_" in name else name: t for name, t in load_file(weights).items()
}
save_file(renamed, weights)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    silent = PeftModel.from_pretrained(tiny_classifier(), folder)
print("peft: every B is zero:", all(not p.any() for name, p in silent.named_parameters() if "lora_B" in name))
try:
    load(tiny_classifier(), folder)
except CheckpointError as error:
    print("ours:", str(error)[:52], "...")

# %% [markdown]
# ## Take away
#
# * Print first, guess later: what is trained, the first loss, the gradients, the size of $B$, the share of each answer.
# * Overfit one batch before you train for an hour.
# * A mended bug deserves a test. And a test deserves to be tried on a broken set-up *and* on a sound one.
