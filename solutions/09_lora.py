# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Lab 9: LoRA
#
# **You will**
#
# * write LoRA's forward pass, its initialisation, its merge and its parameter count, a few lines each,
# * put LoRA into a real model, train it on real tweets, and look at what it has learnt,
# * merge it, store it in a few hundred kilobytes, and load it in `peft`.
#
# **Time:** the whole lab runs in about {{ seconds }} s on two CPU cores (measured). No GPU is needed.
# Read the chapter *LoRA* first.

# %%
# {{ install }}

# %%
import copy
import math
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from course_utils import (
    LoRAConfig,
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
from course_utils.evaluation import in_turn
from course_utils.plots import bars, training_curves

# %% [markdown]
# ## Exercise 1: the forward pass
#
# A linear layer computes $h = W x + b$. LoRA freezes it and adds a second path:
#
# $$h = W x + b + \frac{\alpha}{r}\, B A x$$
#
# `x` holds one row for each input, so in code the layer is `x @ W.T + b`. `A` has the shape (rank, in), `B` has the
# shape (out, rank).


# %% tags=["exercise", "points:3"]
def lora_forward(x, W, b, A, B, alpha):
    """`W x + b + (alpha / rank) · B A x` for every row x; x (rows, in) → (rows, out)."""
    ### BEGIN SOLUTION
    # Hint: take the rank from A's shape, and multiply x by A first: the product stays thin.
    rank = A.shape[0]
    return x @ W.T + b + alpha / rank * (x @ A.T @ B.T)
    ### END SOLUTION


# %% tags=["check"]
check("lora.forward", lora_forward)

# %% [markdown]
# ## Exercise 2: where to start
#
# Before the first step the model must compute exactly what it did before. So the product $BA$ must be zero. But if
# *both* are zero, nothing ever learns. Write a function that returns `A` and `B` for a layer.


# %% tags=["exercise", "points:2"]
def initialise(inputs, outputs, rank):
    """A (rank, inputs) and B (outputs, rank) with B A = 0, ready to learn."""
    ### BEGIN SOLUTION
    # Hint: one is random, the other is zero.
    A = (2 * torch.rand(rank, inputs) - 1) / math.sqrt(inputs)
    B = torch.zeros(outputs, rank)
    return A, B
    ### END SOLUTION


# %% tags=["check"]
check("lora.initialise", initialise)

# %% [markdown]
# ## Exercise 3: merging
#
# After training, the second path can be folded into the weight: one matrix, no extra work. Write it.


# %% tags=["exercise", "points:2"]
def merge_weight(W, A, B, alpha):
    """The weight (out, in) of one plain layer that computes what the layer with LoRA computes."""
    ### BEGIN SOLUTION
    # Hint: B A has the shape (out, in), like W. Return a new matrix.
    rank = A.shape[0]
    return W + alpha / rank * B @ A
    ### END SOLUTION


# %% tags=["check"]
check("lora.merge", merge_weight)

# %% [markdown]
# ## Exercise 4: what does it cost?
#
# Write the number of trained parameters for a list of weight shapes `(out, in)`.


# %% tags=["exercise", "points:2"]
def lora_parameters(shapes, rank):
    """Numbers that LoRA of this rank trains when it adapts matrices of these (out, in) shapes."""
    ### BEGIN SOLUTION
    # Hint: B has out × rank numbers, A has rank × in.
    return sum(rank * (outputs + inputs) for outputs, inputs in shapes)
    ### END SOLUTION


# %% tags=["check"]
check("lora.count", lora_parameters)

# %% [markdown]
# ## LoRA in a real model
#
# MiniLM has 6 layers. LoRA adapts the query and the value matrix of each, 384 × 384 numbers.
# By the formula that is 12 · 8 · (384 + 384) = 73,728 numbers. And the head has 2 · 384 + 2 = 770.

# %%
config = LoRAConfig(rank=8, alpha=16)
model, tokenizer = load_classifier("minilm")
inject(model, config)
print(count_parameters(model))
print(model.bert.encoder.layer[0].attention.self.query)

# %% [markdown]
# Does it keep its promises? `check_invariants` builds the model afresh and tries each one.

# %%
tweets = load_sentiment("tweets")
batch = next(iter(make_loader(tweets["train"].select(range(8)), tokenizer, 8)))
print(check_invariants(lambda: load_classifier("minilm")[0], config, batch, expected_parameters=73_728 + 770))

# %% [markdown]
# Now train. The learning rate is 8e-3, some twenty-five times the 3e-4 that lab 1 gives to full fine-tuning.

# %% tags=["nbval-ignore-output"]
judged = tweets["validation"].select(range(200))  # enough to see what happens, and the lab stays short
train = make_loader(tweets["train"].select(range(1024)), tokenizer, 32, shuffle=True)
validation = make_loader(judged, tokenizer, 64)
floor = majority_accuracy(list(tweets["train"]["label"]), list(judged["label"]))
history = fit(model, train, validation, TrainingConfig(learning_rate=8e-3, epochs=1))
training_curves({"LoRA, rank 8": history}, floor)

# %%
accuracy = history.evaluations[-1]["accuracy"]
assert accuracy > floor + 0.15, f"{accuracy:.1%} is too close to the floor of {floor:.1%}"
print("LoRA is far above the floor after 32 steps")

# %% [markdown]
# ## What has it learnt?
#
# `B` began at zero. Here is how large the learnt change ΔW is beside the frozen weight W, layer by layer.

# %% tags=["nbval-ignore-output"]
sizes = {}
for number, block in enumerate(model.bert.encoder.layer, start=1):
    for name in ("query", "value"):
        layer = getattr(block.attention.self, name)
        sizes[f"layer {number}, {name}"] = (layer.delta().norm() / layer.base.weight.norm()).item()
bars(sizes, "size of the change, ‖ΔW‖ / ‖W‖")

# %% [markdown]
# A change of a few percent of the weights turns a model of sentence similarity into a sentiment classifier. If every
# bar were zero, training would have had no effect: that is the first thing to look at when "LoRA learns nothing".
#
# ## Merge, and what merging buys
#
# We time both on the same validation texts, in turn.

# %% tags=["nbval-ignore-output"]
_, unmerged_logits = predict(model, validation)
unmerged = copy.deepcopy(model)
folder = Path(tempfile.mkdtemp())
save(model, folder / "adapter")  # before merging: a merged model has nothing left to save apart
merge(model)
_, merged_logits = predict(model, validation)
runs = {"unmerged": lambda: predict(unmerged, validation), "merged": lambda: predict(model, validation)}
for name, milliseconds in in_turn(runs, rounds=3, warm_up=1, clock=time.perf_counter).items():
    print(f"{name}: {milliseconds.min():.0f} ms, the best of three")

# %%
difference = np.abs(merged_logits - unmerged_logits).max() / np.abs(unmerged_logits).max()
assert difference < 1e-5
assert not any("lora" in name for name, _ in model.named_modules())
print("merged and unmerged give the same answers, and no trace of LoRA is left in the model")

# %% [markdown]
# ## What is stored
#
# The adapter and the head, nothing else.

# %%
adapter_kilobytes = (folder / "adapter" / "adapter_model.safetensors").stat().st_size / 1000
model_kilobytes = 4 * count_parameters(model).total / 1000
print(f"adapter {adapter_kilobytes:,.0f} kB, whole model {model_kilobytes:,.0f} kB")

# %%
restored, _ = load_classifier("minilm")
load(restored, folder / "adapter")
_, restored_logits = predict(restored, validation)
assert np.array_equal(restored_logits, unmerged_logits)
print("loaded into a fresh backbone, it gives the same logits bit for bit")

# %% [markdown]
# ## Your experiment
#
# Change the rank, alpha, the targets or the learning rate, and run the cell again. Ideas:
#
# * rank 1 against rank 32. How much does it matter?
# * the learning rate of full fine-tuning, 2e-4. What happens?
# * `targets="all-linear"`, every matrix of the body.

# %% tags=["nbval-ignore-output"]
model, tokenizer = load_classifier("minilm")
inject(model, LoRAConfig(rank=1, alpha=2))
few = make_loader(tweets["train"].select(range(512)), tokenizer, 32, shuffle=True)
experiment = fit(model, few, validation, TrainingConfig(learning_rate=8e-3, epochs=1))
print(f"validation accuracy {experiment.evaluations[-1]['accuracy']:.1%}, floor {floor:.1%}")

# %% [markdown]
# ## The same in `peft`
#
# Our checkpoint is a checkpoint of peft: it loads there, and the logits are the same. And a new adapter takes the
# three lines at the end.

# %%
import warnings

warnings.filterwarnings("ignore", category=FutureWarning)  # transformers' notes to the authors of peft
from peft import LoraConfig, PeftModel, get_peft_model

model, _ = load_classifier("minilm")
loaded = PeftModel.from_pretrained(model, folder / "adapter").eval()
_, peft_logits = predict(loaded, validation)
print("same logits in peft:", np.array_equal(peft_logits, unmerged_logits))

model, _ = load_classifier("minilm")
settings = LoraConfig(task_type="SEQ_CLS", r=8, lora_alpha=16, target_modules=["query", "value"])
peft_model = get_peft_model(model, settings)
print("same count in peft:", f"{sum(p.numel() for p in peft_model.parameters() if p.requires_grad):,}")

# %% [markdown]
# ## Take away
#
# * LoRA **adds** $\frac{\alpha}{r} BA$ to a frozen weight. One of the two factors starts at zero.
# * It saves optimiser state and storage. It does not make a training step much faster, and the merged model is as
#   large and as fast as the base.
# * Its learning rate is ten times or more that of full fine-tuning.
