# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Lab 4: The training loop
#
# **You will**
#
# * mend the loop of a common tutorial, line by line,
# * write early stopping and gradient accumulation, and find out when ReduceLROnPlateau can fire,
# * overfit on purpose, cure it, and save the result so that others can load it safely.
#
# **Time:** the whole lab runs in about {{ seconds }} s on two CPU cores (measured). No GPU is needed.
# Read the chapter *The training loop* first.

# %%
# {{ install }}

# %%
import pickle
import tempfile
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import nn

from course_utils import (
    LoRAConfig,
    TrainingConfig,
    check,
    fit,
    inject,
    load_classifier,
    load_sentiment,
    majority_accuracy,
    make_loader,
    save,
)
from course_utils.data import encode
from course_utils.plots import training_curves
from course_utils.training import learning_rates

# %% [markdown]
# ## A loop that does not run
#
# This is the loop of a common tutorial, with its settings:
#
# ```python
# optimizer = Adam(model.parameters(), lr=0.001)
# scheduler = ReduceLROnPlateau(optimizer, 'min', patience=3)
# for epoch in range(num_epochs):
#     for inputs, targets in dataloader:
#         optimizer.zero_grad()
#         outputs = model(inputs)
#         loss = criterion(outputs, targets)
#         loss.backward()
#         optimizer.step()
#     scheduler.step(loss)
# torch.save(model.state_dict(), 'best_model.pt')
# ```
#
# The order of its steps is right: forward, loss, backward, update. But with a model of transformers it stops at the
# third line of the inner loop. We try these lines on a batch.

# %%
tweets = load_sentiment("tweets")
model, tokenizer = load_classifier("minilm")
batch = next(iter(make_loader(tweets["train"].select(range(32)), tokenizer, 8, shuffle=True)))
outputs = model(batch["input_ids"])
try:
    nn.CrossEntropyLoss()(outputs, batch["labels"])
except TypeError:
    print(f"the loss function cannot read a {type(outputs).__name__}; it holds {', '.join(outputs)}")

# %% [markdown]
# And the model was given no mask. So it read the padding as if it were text. Does that change the answers?

# %%
model.eval()  # dropout off: the same input gives the same output
with torch.no_grad():
    with_mask = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits
    without = model(input_ids=batch["input_ids"]).logits
padded = (batch["attention_mask"] == 0).any(dim=1)
changed = (with_mask - without).abs().amax(dim=1) > 1e-5
print(f"{int(padded.sum())} of {len(padded)} texts are padded, and the answer changed for", end=" ")
print("exactly these" if torch.equal(padded, changed) else "others too")

# %% [markdown]
# ## Exercise 1: mend the loop
#
# Write one epoch as it should be. For each batch, a dictionary of tensors: move it to the device, clear the gradients,
# forward, backward, clip the gradient to `clip_norm`, let the optimiser and then the scheduler take a step. The
# scheduler counts *steps*. Return the mean of the batches' losses as a number.
#
# The model is on the device already. It may come in evaluation mode.


# %% tags=["exercise", "points:4"]
def train_epoch(model, loader, optimizer, scheduler, device, clip_norm):
    """Train one epoch; return the mean of the batches' losses."""
    ### BEGIN SOLUTION
    # Hint: model.train() first. model(**batch).loss is the loss. torch.nn.utils.clip_grad_norm_ clips.
    model.train()
    losses = []
    for batch in loader:
        batch = {key: value.to(device) for key, value in batch.items()}
        optimizer.zero_grad()
        loss = model(**batch).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip_norm)
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    return sum(losses) / len(losses)
    ### END SOLUTION


# %% tags=["check"]
check("training_loop.epoch", train_epoch)

# %% [markdown]
# ## The learning rate, step by step
#
# From here on the lab uses `fit` of the course, which does all of this. Its learning rate warms up and then falls to
# zero. Look at the first one: with a warm-up, the first step changes nothing.

# %%
config = TrainingConfig(learning_rate=1e-4, warmup=0.1)
print([f"{rate:.1e}" for rate in learning_rates(config, total=20)])

# %% [markdown]
# ## Exercise 2: when can ReduceLROnPlateau fire?
#
# `ReduceLROnPlateau(optimizer, 'min', patience=3)` is told the validation loss after each epoch. An epoch is *bad* when
# its loss is not below the best so far. When there are **more than** `patience` bad epochs in a row, it lowers the rate
# and begins to count again.
#
# Write a function that returns the list of epochs, counted from 1, after which it lowers the rate. You may count
# yourself, or ask torch's scheduler.


# %% tags=["exercise", "points:2"]
def reductions(losses, patience):
    """The epochs (the first is 1) after which ReduceLROnPlateau lowers the rate, for one loss an epoch."""
    ### BEGIN SOLUTION
    # Hint: keep the best loss and the number of bad epochs in a row. An improvement sets the number to 0.
    best, bad, epochs = float("inf"), 0, []
    for epoch, loss in enumerate(losses, start=1):
        if loss < best:
            best, bad = loss, 0
        else:
            bad += 1
        if bad > patience:
            epochs.append(epoch)
            bad = 0
    return epochs
    ### END SOLUTION


# %% tags=["check"]
check("training_loop.plateau", reductions)

# %% [markdown]
# Torch's own scheduler, with a loss that never improves after the first epoch:

# %%
optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))], lr=1e-4)
scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "min", patience=3)
for epoch in range(1, 7):
    print(f"epoch {epoch}: learning rate {scheduler.get_last_lr()[0]:.0e}")
    optimizer.step()
    scheduler.step(0.5)

# %% [markdown]
# The first epoch always improves on nothing. Four bad ones follow, so the rate falls after the fifth epoch. In a
# fine-tuning of three epochs it never does.
#
# ## Exercise 3: early stopping
#
# An epoch *improves* when its loss is below that of the best epoch by more than `minimum_change`. Then it is the new
# best one. When `patience` epochs in a row have not improved, training stops.
#
# Write a function that returns the best epoch, whose weights we want back, and the last epoch that was trained. The
# first epoch is 1.


# %% tags=["exercise", "points:3"]
def early_stopping(losses, patience, minimum_change):
    """The best epoch and the last one, for the validation losses that a long training would give."""
    ### BEGIN SOLUTION
    # Hint: keep the best loss, its epoch, and how many epochs have passed since.
    best, best_epoch, waited = float("inf"), 0, 0
    for epoch, loss in enumerate(losses, start=1):
        if loss < best - minimum_change:
            best, best_epoch, waited = loss, epoch, 0
        else:
            waited += 1
        if waited == patience:
            return best_epoch, epoch
    return best_epoch, len(losses)
    ### END SOLUTION


# %% tags=["check"]
check("training_loop.early_stopping", early_stopping)

# %% [markdown]
# ## Overfit on purpose
#
# Before you trust a loop, let it learn a few texts by heart. If it cannot, something is broken. We take 64 tweets and
# show them six times. `watch` is called with each new row of the history; here it prints the evaluations.

# %%
few = tweets["train"].select(range(64))
validation = make_loader(tweets["validation"].select(range(96)), tokenizer, 64)
floor = majority_accuracy(list(tweets["train"]["label"]), list(tweets["validation"]["label"][:96]))


def print_evaluations(row):
    """For `watch`: one line an epoch."""
    if "accuracy" in row:
        print(f"epoch {row['epoch']}: training loss {row['train_loss']:.3f}, validation loss {row['loss']:.3f}")


# %% tags=["nbval-ignore-output"]
model, tokenizer = load_classifier("minilm")
by_heart = fit(
    model,
    make_loader(few, tokenizer, 16, shuffle=True),
    validation,
    TrainingConfig(learning_rate=2e-4, epochs=6, schedule="constant"),
    watch=print_evaluations,
)

# %% [markdown]
# Now the cure that helps most: more texts. The same number of steps, 24, but each tweet is seen once.

# %% tags=["nbval-ignore-output"]
more = tweets["train"].select(range(24 * 16))
model, tokenizer = load_classifier("minilm")
read_once = fit(
    model,
    make_loader(more, tokenizer, 16, shuffle=True),
    validation,
    TrainingConfig(learning_rate=2e-4, epochs=1, schedule="constant"),
    watch=print_evaluations,
)
training_curves({"64 tweets, 6 times": by_heart, "384 tweets, once": read_once}, floor)

# %%
last = by_heart.evaluations[-1]
assert last["train_loss"] < 0.25, "it could not learn 64 tweets by heart: something is broken"
assert last["loss"] > last["train_loss"] + 0.1
assert read_once.evaluations[-1]["loss"] < last["loss"]
print("64 tweets are known by heart; as many steps with new tweets give a lower validation loss")

# %% [markdown]
# When there are no more texts: stop early. `fit` always ends with the weights of the best epoch, and with `patience` it
# does not even train the others.
#
# ## Exercise 4: gradient accumulation
#
# 32 texts do not fit into memory, but 8 do? Take four batches of 8, add up their gradients, and step once. PyTorch
# adds to `.grad` by itself. But each loss is a *mean*, and four means add up to four times too much. Multiply each loss
# by its batch's share of the texts: the last batch may be smaller.
#
# Write one step. Return the loss of the large batch as a number.


# %% tags=["exercise", "points:3"]
def accumulated_step(model, batches, optimizer):
    """One step of the optimiser, as if all texts of `batches` stood in one batch; return that batch's loss."""
    ### BEGIN SOLUTION
    # Hint: count the texts of all batches first: len(batch["labels"]). Clear the gradients once, step once.
    texts = sum(len(batch["labels"]) for batch in batches)
    optimizer.zero_grad()
    total = 0.0
    for batch in batches:
        loss = model(**batch).loss * len(batch["labels"]) / texts
        loss.backward()
        total += loss.item()
    optimizer.step()
    return total
    ### END SOLUTION


# %% tags=["check"]
check("training_loop.accumulate", accumulated_step)

# %% [markdown]
# On MiniLM: the gradient of one batch of 32, of four batches of 8 with each loss divided by 4, and without dividing.

# %%
model, tokenizer = load_classifier("minilm")
model.eval()  # dropout would draw other numbers each time


def gradient(batch_size, factor):
    """All gradients of 32 tweets as one long vector."""
    model.zero_grad()
    for batch in make_loader(tweets["train"].select(range(32)), tokenizer, batch_size):
        (model(**batch).loss * factor).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


large, divided, added = gradient(32, 1), gradient(8, 1 / 4), gradient(8, 1)
assert (divided - large).norm() < 1e-4 * large.norm()
print("one large batch and four small ones: the same gradient")
print(f"not divided: {added.norm() / large.norm():.2f} times as long")

# %% [markdown]
# In `fit` it is one setting: `TrainingConfig(accumulate=4)`.
#
# ## Saving and loading, safely
#
# `torch.save` writes a *pickle*, and a pickle may hold commands. Here is one that only prints; it could as well delete
# your files. Since torch 2.6, `torch.load` refuses it, because `weights_only=True` is the default.


# %%
class Harmless:
    """When it is loaded, it calls print."""

    def __reduce__(self):
        return print, ("this line was printed by loading a file",)


folder = Path(tempfile.mkdtemp())
torch.save({"weight": torch.zeros(2), "extra": Harmless()}, folder / "model.pt")
torch.load(folder / "model.pt", weights_only=False)
try:
    torch.load(folder / "model.pt")
except pickle.UnpicklingError:
    print("refused: the file holds more than weights")

# %% [markdown]
# A safetensors file holds tensors and nothing else. `save_pretrained` writes one for a whole model, and `save` of the
# course one for a method. Look whether the **head** is in it: it is as new as the rest.

# %%
adapted, _ = load_classifier("minilm")
inject(adapted, LoRAConfig(rank=8))
save(adapted, folder / "adapter")
names = list(load_file(folder / "adapter" / "adapter_model.safetensors"))
print(len(names), "tensors; the head:", [name for name in names if "classifier" in name])

# %% [markdown]
# ## Your experiment
#
# Change a setting and run the cell again. Ideas:
#
# * the tutorial's optimiser: `learning_rate=1e-3, schedule="constant", warmup=0`. Does it leave the floor?
# * `accumulate=4` with batches of 8, against one batch of 32,
# * `clip_norm=0.1`, or `math.inf`.

# %% tags=["nbval-ignore-output"]
model, tokenizer = load_classifier("minilm")
train = make_loader(tweets["train"].select(range(256)), tokenizer, 16, shuffle=True)
experiment = fit(model, train, validation, TrainingConfig(learning_rate=5e-4, epochs=1))
print(f"validation accuracy {experiment.evaluations[-1]['accuracy']:.1%}, floor {floor:.1%}")

# %% [markdown]
# ## The same with `Trainer`
#
# transformers' `Trainer` is the loop that most people use. A common tutorial sets `batch 4`, `accumulation 8` and
# `1 epoch`, and nothing else: then the learning rate is 5e-5, nothing is evaluated, and nothing is saved at the end.
# Here is all that belongs to it. Without the line `accepts_loss_kwargs` some versions do not divide the loss: see the
# chapter.

# %% tags=["nbval-ignore-output"]
from transformers import EarlyStoppingCallback, Trainer, TrainingArguments

model, tokenizer = load_classifier("minilm")
model.accepts_loss_kwargs = False  # its loss is a mean over the batch: Trainer must divide
rows = {
    name: encode(list(part["text"]), list(part["label"]), tokenizer)
    for name, part in (
        ("train", tweets["train"].select(range(64))),
        ("validation", tweets["validation"].select(range(64))),
    )
}
arguments = TrainingArguments(
    output_dir=str(folder / "trainer"),
    per_device_train_batch_size=4,
    gradient_accumulation_steps=8,
    per_device_eval_batch_size=64,
    learning_rate=1e-4,
    num_train_epochs=1,
    eval_strategy="epoch",
    save_strategy="epoch",
    save_only_model=True,
    load_best_model_at_end=True,
    seed=0,
    report_to="none",  # or "tensorboard"
    disable_tqdm=True,
    dataloader_pin_memory=False,  # it warns where there is no GPU
)
trainer = Trainer(
    model,
    arguments,
    train_dataset=rows["train"],
    eval_dataset=rows["validation"],
    processing_class=tokenizer,  # pads each batch
    callbacks=[EarlyStoppingCallback(early_stopping_patience=2)],
)
trainer.train()
trainer.save_model(folder / "best")

# %%
assert trainer.state.global_step == 2
print("64 tweets in batches of 4, 8 batches a step:", trainer.state.global_step, "steps")
print("saved:", (folder / "best" / "model.safetensors").exists())

# %% [markdown]
# ## Take away
#
# * Training mode, one device, the mask, `.loss`, a clean gradient, clipping, a schedule by steps.
# * Choose and stop by the *validation* loss, and keep the weights of the best epoch.
# * Divide when you accumulate.
# * First let the loop learn a few texts by heart. Then give it more texts.
