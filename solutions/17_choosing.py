# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Lab 17: Choosing a method
#
# **You will**
#
# * list the methods that fit a memory budget, and those that no other method beats,
# * compute how many test texts a difference needs, and choose a learning rate by a fair rule,
# * apply all this to the book's own measurements, and make one decision with two short trainings.
#
# **Time:** the whole lab runs in about {{ seconds }} s on two CPU cores (measured). No GPU is needed.
# Read the chapter *Choosing a method* first.

# %%
# {{ install }}

# %%
import math
import tempfile
from pathlib import Path

import pandas as pd
from scipy.stats import binom

from course_utils import (
    AdaLoRAConfig,
    DoRAConfig,
    IA3Config,
    LoRAConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    PTuningConfig,
    TrainingConfig,
    VeRAConfig,
    check,
    count_parameters,
    fit,
    inject,
    load_classifier,
    load_sentiment,
    majority_accuracy,
    make_loader,
    predict,
    save,
)
from course_utils.evaluation import accuracy_interval, best_rate, disagreements, front, mcnemar, results
from course_utils.plots import pareto, smallest_difference, training_curves
from course_utils.training import MEMORY_METHODS, SHAPES, training_memory

# %% [markdown]
# ## Exercise 1: what fits?
#
# `training_memory(shape, method, precision, batch, length)` returns the memory of a training step: `.weights`,
# `.gradients`, `.optimizer`, `.activations` and their sum `.total`, in bytes. `MEMORY_METHODS` holds the methods that
# it knows. Full fine-tuning with the precision `"nf4"` is impossible, and `training_memory` raises a `ValueError`.


# %% tags=["exercise", "points:3"]
def fits(shape, gigabytes, precision, batch, length):
    """The keys of MEMORY_METHODS whose training step needs at most so many GB; a GB is 10⁹ bytes."""
    from course_utils.training import MEMORY_METHODS, training_memory

    ### BEGIN SOLUTION
    # Hint: go through MEMORY_METHODS, leave out what is impossible, and compare `.total` with the budget.
    fitting = []
    for method in MEMORY_METHODS:
        if method == "full" and precision == "nf4":
            continue
        memory = training_memory(shape, method, precision, batch, length)
        if memory.total <= gigabytes * 1e9:
            fitting.append(method)
    return fitting
    ### END SOLUTION


# %% tags=["check"]
check("choosing.fits", fits)

# %% [markdown]
# ## Exercise 2: who is not beaten?
#
# A method **beats** another if it is at least as accurate, trains no more parameters, and is better in one of the two.
# Write the list of those that no other beats.


# %% tags=["exercise", "points:3"]
def pareto_front(rows):
    """The names that no other row beats; rows: name → (accuracy, trained parameters)."""
    ### BEGIN SOLUTION
    # Hint: compare each row with all others. Two equal rows do not beat each other.
    unbeaten = []
    for name, (accuracy, trained) in rows.items():
        beaten = any(a >= accuracy and t <= trained and (a, t) != (accuracy, trained) for a, t in rows.values())
        if not beaten:
            unbeaten.append(name)
    return unbeaten
    ### END SOLUTION


# %% tags=["check"]
check("choosing.pareto", pareto_front)

# %% [markdown]
# ## Exercise 3: how many test texts?
#
# Two models, each with mistakes of its own, are right in the shares $p$ and $q$ of all texts. To see the difference
# (95% interval) in 80% of all tests, a test needs
#
# $$n \ge \frac{(1.96 + 0.84)^2\,\bigl(p(1-p) + q(1-q)\bigr)}{(p - q)^2}$$
#
# texts. Return the smallest such whole number.


# %% tags=["exercise", "points:2"]
def texts_needed(p, q):
    """The number of test texts that shows the difference between the accuracies p and q."""
    ### BEGIN SOLUTION
    # Hint: math.ceil rounds up.
    variance = p * (1 - p) + q * (1 - q)
    return math.ceil((1.96 + 0.84) ** 2 * variance / (p - q) ** 2)
    ### END SOLUTION


# %% tags=["check"]
check("choosing.texts", texts_needed)

# %% [markdown]
# ## Exercise 4: the learning rate, by the rule
#
# `runs` is a list of dicts with the keys `learning_rate`, `seed`, `validation_loss` and `test_accuracy`, in no special
# order. Every rate has a run with seed 0. The two with the lowest validation loss there are the finalists; only they
# ran with more seeds. The finalist with the lower **mean** validation loss over its seeds wins.


# %% tags=["exercise", "points:3"]
def choose_rate(runs):
    """The learning rate that wins."""
    ### BEGIN SOLUTION
    # Hint: sort the runs with seed 0 by their loss and keep two rates. Then compare the means of these two.
    first = sorted((run for run in runs if run["seed"] == 0), key=lambda run: run["validation_loss"])
    means = {}
    for rate in [run["learning_rate"] for run in first[:2]]:
        losses = [run["validation_loss"] for run in runs if run["learning_rate"] == rate]
        means[rate] = sum(losses) / len(losses)
    return min(means, key=means.get)
    ### END SOLUTION


# %% tags=["check"]
check("choosing.rate", choose_rate)

# %% [markdown]
# ## Question 1, with numbers: a GPU of 24 GB
#
# Now to the real models. Which method and which precision fit into 24 GB, for one text of 512 tokens and for sixteen?

# %%
for title in ("roberta-large", "llama-2-7b", "llama-3.1-8b"):
    for batch in (1, 16):
        needs = {}
        for precision in ("mixed", "nf4"):
            for method in MEMORY_METHODS:
                if (method, precision) != ("full", "nf4"):
                    memory = training_memory(SHAPES[title], method, precision, batch=batch, length=512)
                    needs[f"{method} {precision}"] = memory.total / 1e9
        fitting = [f"{name} {need:.1f}" for name, need in needs.items() if need <= 24]
        print(f"{title}, batch {batch}: {', '.join(fitting) or 'nothing'}")

# %% [markdown]
# With one text the cliff lies between full fine-tuning and all the rest; the PEFT methods need nearly the same. With
# sixteen the activations decide, and for the two large models four bits do not help any more. Then the next thing to
# change is no method: it is the batch, or checkpointing.
#
# ## The book's own measurements
#
# `results.read` opens the files from which all numbers of the book come. Here is every method of the study, with the
# interval of its accuracy. The test has 843 tweets, and always answering “positive” gets 68.7%.

# %% tags=["nbval-ignore-output"]
quality, bench = results.read("quality"), results.read("bench")
tested = quality["texts"]["test"]
methods = {key: row for key, row in quality["methods"].items() if key != "scratch"}
table = []
for row in methods.values():
    low, high = accuracy_interval(round(row["accuracy"]["mean"] * tested), tested)
    table.append({
        "method": row["title"],
        "accuracy": f"{row['accuracy']['mean']:.1%}",
        "95% interval": f"{low:.1%} to {high:.1%}",
        "spread over seeds": f"{row['accuracy']['spread']:.1%}",
        "trained": f"{row['trainable']:,}",
        "file if fp32 (kB)": f"{4 * row['trainable'] / 1000:,.0f}",
    })  # fmt: skip
pd.DataFrame(table).set_index("method")

# %% [markdown]
# And the front: who is beaten by nobody?

# %% tags=["nbval-ignore-output"]
pareto()

# %%
points = {key: (row["accuracy"]["mean"], row["trainable"]) for key, row in methods.items()}
unbeaten = front(points)
best = max(points, key=lambda key: points[key][0])
assert best in unbeaten and min(points, key=lambda key: points[key][1]) in unbeaten
low = methods[best]["accuracy"]["low"]
tied = [key for key in points if points[key][0] >= low]
assert len(tied) >= 3, "the measurements have changed: read the text below again"
print("several methods lie inside the interval of the best one: accuracy alone does not choose")

# %% [markdown]
# How much can be luck? Take two methods that are **equally good**, right in 95% of all tweets, with mistakes of their
# own. How often does one of them lead by a point or more on 843 tweets, by chance alone?

# %%
chances = [binom.pmf(k, 843, 0.95) for k in range(844)]
for lead in (0.5, 1, 2, 3):
    tweets_ahead = lead / 100 * 843
    likely = [k for k in range(740, 844) if chances[k] > 1e-9]
    share = sum(chances[a] * chances[b] for a in likely for b in likely if abs(a - b) >= tweets_ahead)
    print(f"a lead of {lead} points or more, by chance: in {share:.0%} of all comparisons")

# %% [markdown]
# Nothing but luck, and in one comparison out of three somebody leads by a point. Two points are rare. So this is the
# rule of thumb: on this test a lead below two points says nothing. A larger test shows smaller differences:

# %%
smallest_difference()

# %% [markdown]
# ## Were the learning rates chosen by the rule?
#
# All runs are in the file, those that lost, too. So you can check us.

# %%
for key, row in quality["methods"].items():
    assert best_rate(quality["runs"], key) == row["learning_rate"], key
print("every learning rate in the book follows from the stored runs, without the test split")

# %% [markdown]
# ## A real decision
#
# The order: *“One base model for a thousand tasks like our tweets. Each task may take 100 kB. It must merge, because
# the largest customers get a plain model.”* So adapters, prompts and prefixes are out. What is left: LoRA and (IA)³.
# Which of them keep to 100 kB? Count before you train.

# %%
candidates = {
    "(IA)³": (IA3Config(), 8e-2),
    "LoRA, rank 2": (LoRAConfig(rank=2, alpha=4), 8e-3),
    "LoRA, rank 8": (LoRAConfig(rank=8, alpha=16), 8e-3),
}
models = {}
for title, (config, _) in candidates.items():
    models[title], tokenizer = load_classifier("minilm")
    count = count_parameters(inject(models[title], config))
    print(f"{title}: {count.trainable:,} numbers, {4 * count.trainable / 1000:.0f} kB")
    if 4 * count.trainable > 100_000:
        del models[title]
print("left:", ", ".join(models))

# %%
base = 4 * count_parameters(load_classifier("minilm")[0]).total / 1e6
for title, each in (("full fine-tuning", None), ("LoRA, rank 8", 74_498), ("(IA)³", 14_594)):
    total = 1000 * base if each is None else base + 1000 * 4 * each / 1e6
    print(f"1,000 tasks with {title}: {total:,.0f} MB")

# %% [markdown]
# Train the two that are left, 32 steps each, at the rates of the labs on (IA)³ and LoRA. Both are judged on the
# **validation** split: a method is a choice, too, so the test may not make it.

# %% tags=["nbval-ignore-output"]
tweets = load_sentiment("tweets")
train_texts, judged = tweets["train"].select(range(1024)), tweets["validation"]
validation = make_loader(judged, tokenizer, 64)
floor = majority_accuracy(list(tweets["train"]["label"]), list(judged["label"]))
histories, answers = {}, {}
for title, model in models.items():
    train = make_loader(train_texts, tokenizer, 32, shuffle=True)
    histories[title] = fit(model, train, validation, TrainingConfig(learning_rate=candidates[title][1], epochs=1))
    labels, logits = predict(model, validation)
    answers[title] = logits.argmax(1)
training_curves(histories, floor)

# %%
for title, predicted in answers.items():
    accuracy = float((predicted == labels).mean())
    assert accuracy > floor + 0.1, f"{title}: {accuracy:.1%} is too close to the floor of {floor:.1%}"
print("both candidates are far above the floor after 32 steps")

# %% [markdown]
# Now compare them text by text, as chapter 5 does.

# %% tags=["nbval-ignore-output"]
(name, first), (other_name, second) = answers.items()
only_first, only_second = disagreements(labels, first, second)
for title, predicted in answers.items():
    correct = int((predicted == labels).sum())
    low, high = accuracy_interval(correct, len(labels))
    print(f"{title}: {correct / len(labels):.1%}, 95% interval {low:.1%} to {high:.1%}")
print(f"only {name} is right on {only_first} tweets, only {other_name} on {only_second}")
print(f"p = {mcnemar(labels, first, second):.2f}")

# %% [markdown]
# If p is small (say below 0.05), these two *models* differ, and you would train more seeds before you say so of the
# *methods*. If it is not, accuracy has not decided, and the price does: the smaller file wins. Whatever came out on
# your computer, remember that this was one seed, 32 steps, and one rate for each.

# %% tags=["nbval-ignore-output"]
folder = Path(tempfile.mkdtemp())
for number, (title, model) in enumerate(models.items()):
    save(model, folder / str(number))
    size = sum(file.stat().st_size for file in (folder / str(number)).iterdir())
    print(f"{title}: {size / 1000:.0f} kB on disk, header and settings included")

# %%
sizes = [sum(file.stat().st_size for file in (folder / str(n)).iterdir()) for n in range(2)]
assert sizes[0] < sizes[1] < 100_000
print("both files keep to the order, and the file of (IA)³ is the smaller one")

# %% [markdown]
# ## Your experiment
#
# Ask the same question again with other candidates, and run the cell. Ideas:
#
# * LoRA of rank 1: `LoRAConfig(rank=1, alpha=2)`. Is rank 2 worth its bytes?
# * another seed: `TrainingConfig(..., seed=1)` and `make_loader(..., seed=1)`. How far does the accuracy move?
# * a rate three times lower. Is the difference between two rates larger than that between two methods?

# %% tags=["nbval-ignore-output"]
model, tokenizer = load_classifier("minilm")
inject(model, LoRAConfig(rank=1, alpha=2))
few = make_loader(tweets["train"].select(range(384)), tokenizer, 16, shuffle=True)
experiment = fit(model, few, validation, TrainingConfig(learning_rate=2e-2, epochs=1))
print(f"validation accuracy {experiment.evaluations[-1]['accuracy']:.1%}, floor {floor:.1%}")

# %% [markdown]
# ## The same in `peft`
#
# In peft a method is a class of settings, so a choice is a line in a dict. Here are the methods that both have, with
# the numbers that each trains, head included. (BitFit is one loop in plain PyTorch, and peft has no bottleneck adapters
# like those of chapter 8.)

# %%
import warnings

warnings.filterwarnings("ignore", category=FutureWarning)  # transformers' notes to the authors of peft
import peft

query_value = {"target_modules": ["query", "value"]}
feedforward = r".*layer\.\d+\.output\.dense"
choices = {
    "LoRA": (LoRAConfig(rank=8), peft.LoraConfig(r=8, lora_alpha=16, **query_value)),
    "LoRA, all linear": (
        LoRAConfig(rank=8, targets="all-linear"),
        peft.LoraConfig(r=8, lora_alpha=16, target_modules="all-linear"),
    ),
    "DoRA": (DoRAConfig(rank=8), peft.LoraConfig(r=8, lora_alpha=16, use_dora=True, **query_value)),
    "AdaLoRA": (
        AdaLoRAConfig(init_rank=12, target_rank=8, total_steps=100),
        peft.AdaLoraConfig(init_r=12, target_r=8, total_step=100, **query_value),
    ),
    "VeRA": (VeRAConfig(rank=256), peft.VeraConfig(r=256, **query_value)),
    "(IA)³": (
        IA3Config(),
        peft.IA3Config(target_modules=rf".*\.(key|value)|{feedforward}", feedforward_modules=feedforward),
    ),
    "prompt tuning": (PromptTuningConfig(virtual_tokens=20), peft.PromptTuningConfig(num_virtual_tokens=20)),
    "P-Tuning": (
        PTuningConfig(virtual_tokens=20),
        peft.PromptEncoderConfig(num_virtual_tokens=20, encoder_hidden_size=384),
    ),
    "prefix tuning": (PrefixTuningConfig(virtual_tokens=20), peft.PrefixTuningConfig(num_virtual_tokens=20)),
}
for title, (ours, theirs) in choices.items():
    counted = count_parameters(inject(load_classifier("minilm")[0], ours)).trainable
    theirs.task_type = "SEQ_CLS"
    peft_model = peft.get_peft_model(load_classifier("minilm")[0], theirs)
    assert counted == sum(p.numel() for p in peft_model.parameters() if p.requires_grad), title
    print(f"{title}: {counted:,} in both")

# %% [markdown]
# ## Take away
#
# * First what is possible (memory, number of tasks, merging), then what is likely to work, and only then a training.
# * Below about two points, 843 tweets say nothing. Half the difference needs four times the texts.
# * Choose rates by validation and several seeds, and compare methods text by text.
# * When accuracy cannot decide, the price does. Write the price down before you train.
