# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Lab 21: A case study
#
# **You will**
#
# * do a whole job in small: floor, baseline, search, training, test, export, model card,
# * write a baseline that needs no training, and read a table of slices and several tests without fooling yourself,
# * decide when the model should ask a person,
# * export the model, and prove that it still says the same.
#
# **Time:** the whole lab runs in about {{ seconds }} s on two CPU cores (measured). No GPU is needed.
# Read the chapter *A case study* first.

# %%
# {{ install }}

# %%
import tempfile
from pathlib import Path

import numpy as np
import optuna

from course_utils import (
    LoRAConfig,
    TrainingConfig,
    check,
    count_parameters,
    fit,
    inject,
    load_classifier,
    load_sentiment,
    majority_accuracy,
    make_loader,
    merge,
)
from course_utils.evaluation import (
    lexicon_logits,
    logits_of,
    mcnemar,
    review_bound,
    slice_table,
    surest_errors,
    word_count_logits,
    word_counts,
)
from course_utils.serving import Classifier, export, to_int8

# %% [markdown]
# ## The question
#
# *Is a tweet positive or negative?* The number that decides is the accuracy; macro F1 stands beside it. Before anything
# is trained we look at the data and at the floor.

# %%
tweets = load_sentiment("tweets")
validation = tweets["validation"]
truth = np.array(validation["label"])
floor = majority_accuracy(list(tweets["train"]["label"]), list(truth))
for name, split in tweets.items():
    print(f"{name}: {len(split)} texts, {np.mean(split['label']):.1%} positive")
print(f"always the larger class, on validation: {floor:.1%}")

# %% [markdown]
# ## Exercise 1: a baseline that nobody trains
#
# Count words. A positive word counts +1 and a negative word −1. A negation counts nothing itself; it turns the sign of
# the **one** word right after it. So "not good" counts −1, and "not bad , love it" counts +2.


# %% tags=["exercise", "points:3"]
def word_score(words, positive, negative, negations):
    """The score of a list of words; the three others are sets of words."""
    ### BEGIN SOLUTION
    # Hint: walk through the words and remember whether the word before was a negation.
    total, sign = 0, 1
    for word in words:
        total += sign * ((word in positive) - (word in negative))
        sign = -1 if word in negations else 1
    return total
    ### END SOLUTION


# %% tags=["check"]
check("case_study.lexicon", word_score)

# %% [markdown]
# The course has a longer list, written by hand without looking at the tweets; its negations reach three words far.
# Beside it stands the usual baseline, logistic regression on word counts, which reads all training texts.

# %%
linear = word_counts(tweets["train"]["text"], tweets["train"]["label"])
logits = {
    "list of words": lexicon_logits(list(validation["text"])),
    "word counts": word_count_logits(linear, list(validation["text"])),
}
for name, values in logits.items():
    print(f"{name}: {np.mean(values.argmax(1) == truth):.1%}")

# %% [markdown]
# The list wins. Whoever skips this step and trains only the head of the model, as in chapter 1, would not notice that
# a list of words is as good. Now we know what LoRA has to beat.
#
# ## A search that survives being killed
#
# Optuna keeps its trials in a file. We search for the learning rate in very small: 128 texts, 4 steps, judged by the
# validation loss. Real trials are longer; the code is the same.
#
# One trap is silent. A sampler with a fixed seed begins anew after a restart, and proposes what it has proposed before.
# So its seed must change with the number of trials that are there.

# %%
optuna.logging.set_verbosity(optuna.logging.WARNING)
few, judged = tweets["train"].select(range(128)), validation.select(range(64))


def objective(trial):
    """Train a few steps; the validation loss."""
    rate = trial.suggest_float("learning_rate", 5e-4, 2e-2, log=True)
    model, tokenizer = load_classifier("minilm")
    inject(model, LoRAConfig(rank=8, alpha=16))
    loaders = make_loader(few, tokenizer, 32, shuffle=True), make_loader(judged, tokenizer, 64)

    def report(row):
        if "accuracy" in row:  # the end of an epoch
            trial.report(row["loss"], row["epoch"])
            if trial.should_prune():  # worse than the median of the others at this epoch
                raise optuna.TrialPruned

    history = fit(model, *loaders, TrainingConfig(learning_rate=rate, epochs=1), watch=report)
    return history.evaluations[-1]["loss"]


def open_search(file):
    """The search as the file holds it; a new one where there is none."""
    pruner = optuna.pruners.MedianPruner(n_startup_trials=2)
    study = optuna.create_study(storage=f"sqlite:///{file}", study_name="rate", load_if_exists=True, pruner=pruner)
    study.sampler = optuna.samplers.TPESampler(seed=len(study.trials))
    return study


# %% tags=["nbval-ignore-output"]
folder = Path(tempfile.mkdtemp())
search = open_search(folder / "search.db")
search.enqueue_trial({"learning_rate": 2e-3})  # what we know from chapter 9 goes first
search.optimize(objective, n_trials=2)
del search  # as if the computer had been switched off

again = open_search(folder / "search.db")
print(f"{len(again.trials)} trials are still there")
again.optimize(objective, n_trials=1)
for trial in again.trials:
    print(f"learning rate {trial.params['learning_rate']:.4f}: {trial.state.name.lower()}, {trial.value}")

# %%
assert len({trial.params["learning_rate"] for trial in again.trials}) == 3
assert again.best_value < 0.75, "worse than a coin: the labels must be wrong"
print("three different trials, and nothing was lost")

# %% [markdown]
# ## Training
#
# One epoch on a third of the training texts, to keep the lab short. The rate is higher than the one that the search
# in the chapter chose, because there are only 48 steps to go, of 16 texts each.

# %% tags=["nbval-ignore-output"]
model, tokenizer = load_classifier("minilm")  # another backbone, such as "bert-base-uncased", is this one word
inject(model, LoRAConfig(rank=8, alpha=16))
count = count_parameters(model)
train = make_loader(tweets["train"].select(range(768)), tokenizer, 16, shuffle=True)
history = fit(model, train, make_loader(validation, tokenizer, 64), TrainingConfig(learning_rate=4e-3, epochs=1))
logits["LoRA"] = logits_of(model, tokenizer, validation)
print(f"{history.evaluations[-1]['accuracy']:.1%} on validation")

# %%
print(f"{count.trainable:,} of {count.total:,} parameters are trained, {count.share:.2%}")
assert count.share <= 0.0035
assert np.mean(logits["LoRA"].argmax(1) == truth) > floor + 0.15

# %% [markdown]
# ## Exercise 2: which slices are really weak?
#
# You are given rows `(name, texts, right answers)` and the accuracy on all texts. Return the names of the slices that
# are **shown** to be weak: their whole 95% interval lies below the accuracy on all texts.


# %% tags=["exercise", "points:3"]
from course_utils.evaluation import accuracy_interval


def weak_slices(rows, accuracy_of_all):
    """The names of the slices whose interval lies below; `accuracy_interval(right, n)` gives (low, high)."""
    ### BEGIN SOLUTION
    # Hint: a slice is shown to be weak when even the upper end of its interval is lower than the whole.
    return [name for name, n, right in rows if accuracy_interval(right, n)[1] < accuracy_of_all]
    ### END SOLUTION


# %% tags=["check"]
check("case_study.slices", weak_slices)

# %% [markdown]
# The slices of our own model, on validation:

# %% tags=["nbval-ignore-output"]
answers = {name: [values.argmax(1)] for name, values in logits.items()}
print(f"{'':32} texts   LoRA   interval         list of words")
for row in slice_table(validation, answers):
    if row["n"]:
        mine, words = row["LoRA"], row["list of words"]
        print(
            f"{row['title']:32} {row['n']:5}  {mine['accuracy']:6.1%}  {mine['low']:.1%} to {mine['high']:.1%}  "
            f"{words['accuracy']:6.1%}"
        )

# %% [markdown]
# Look at the slice where the listed words say the opposite: the list is wrong there *by construction*, because that is
# how the slice was made. Do not call that a finding. And where raters disagree, no model can be right all the time.
#
# ## Exercise 3: several comparisons
#
# McNemar's test gives a p-value for each rival. With five tests, one of them is below 0.05 by luck in 23% of all cases.
# Bonferroni's remedy: ask each test for $p \le 0.05 / m$, with $m$ the number of tests. Return the names that pass.


# %% tags=["exercise", "points:2"]
def shown(p_values):
    """The names of the rivals that are shown to differ; p_values: name → p."""
    ### BEGIN SOLUTION
    # Hint: len(p_values) is the number of tests.
    return [name for name, p in p_values.items() if p <= 0.05 / len(p_values)]
    ### END SOLUTION


# %% tags=["check"]
check("case_study.tests", shown)

# %% tags=["nbval-ignore-output"]
for name in ("list of words", "word counts"):
    p = mcnemar(truth, logits["LoRA"].argmax(1), logits[name].argmax(1))
    print(f"LoRA and the {name}: p = {p:.2g}")

# %% [markdown]
# ## Exercise 4: when to ask a person
#
# A model need not answer everything. Let it answer a share `kept` of the texts, those of which it is surest; a person
# reads the others. Which confidence is the bound? The confidence is the probability of the answer that was given.
# Choose the bound on **validation** logits.


# %% tags=["exercise", "points:3"]
import numpy as np

from course_utils.evaluation import probabilities


def confidence_bound(validation_logits, kept):
    """The confidence from which on the model answers alone; logits (n, 2), `kept` such as 0.9."""
    ### BEGIN SOLUTION
    # Hint: probabilities(logits) is the softmax. np.quantile(values, q) has a share q of the values below it.
    return np.quantile(probabilities(validation_logits).max(axis=1), 1 - kept)
    ### END SOLUTION


# %% tags=["check"]
check("case_study.review", confidence_bound)

# %% [markdown]
# ## The test, once
#
# All is decided: the model, and the bound. Now, and only now, the test split.

# %% tags=["nbval-ignore-output"]
test = tweets["test"]
labels = np.array(test["label"])
bound = review_bound(logits["LoRA"], 0.9)
final = logits_of(model, tokenizer, test)
right = final.argmax(1) == labels
alone = probabilities(final).max(axis=1) >= bound
low, high = accuracy_interval(int(right.sum()), len(right))
print(f"test accuracy {right.mean():.1%} ({low:.1%} to {high:.1%}, {len(right)} texts)")
print(f"it answers {alone.mean():.1%} alone, and {right[alone].mean():.1%} of those are right")
print(f"the person gets {(~alone).sum()} texts, and meets {(~alone & ~right).sum()} of {(~right).sum()} errors")

# %%
assert right.mean() > floor + 0.15
assert right[alone].mean() > right.mean()
print("what it is sure of is right more often")

# %% [markdown]
# Read the errors of which it was surest. Some are not the model's:

# %% tags=["nbval-ignore-output"]
for row in surest_errors(test, final, 5):
    print(
        f"{row['label']}, {row['positive_votes']:.0%} of raters say positive, {row['confidence']:.0%} sure of the other"
    )
    print("   ", row["text"][:110])

# %% [markdown]
# ## Exercise 5: does the exported model say the same?
#
# Two numbers tell: the largest absolute difference of any logit, and how many **answers** changed. Return both.


# %% tags=["exercise", "points:3"]
def compare_logits(reference, exported):
    """(largest absolute difference, number of changed answers) of two arrays (n, 2)."""
    ### BEGIN SOLUTION
    # Hint: np.abs(a - b).max(), and an answer is a row's argmax(axis=1).
    difference = abs(reference - exported).max()
    return difference, (reference.argmax(axis=1) != exported.argmax(axis=1)).sum()
    ### END SOLUTION


# %% tags=["check"]
check("case_study.logits", compare_logits)

# %% [markdown]
# Merge, export, and round to 8 bits. `Classifier` reads nothing but the folder: no torch, no transformers.

# %% tags=["nbval-ignore-output"]
some = test.select(range(100))
before = logits_of(model, tokenizer, some)
merge(model)
export(model, tokenizer, folder, review_below=bound)
to_int8(folder)
served = {"merged, PyTorch": logits_of(model, tokenizer, some)}
for kind in ("float32", "int8"):
    served[f"ONNX, {kind}"] = Classifier(folder, kind).logits(list(some["text"]))
for name, values in served.items():
    changed = (values.argmax(1) != before.argmax(1)).sum()
    print(f"{name}: largest difference {np.abs(values - before).max():.6f}, {changed} of {len(some)} answers changed")
for file in sorted(folder.glob("*.onnx")):
    print(f"{file.name}: {file.stat().st_size / 1e6:.0f} MB")

# %%
assert np.abs(served["ONNX, float32"] - before).max() < 1e-3
assert np.abs(served["ONNX, int8"] - before).max() > 1e-4
print("the export is the same model up to rounding; int8 is another model, a quarter of the size")

# %% tags=["nbval-ignore-output"]
classifier = Classifier(folder, "int8")
for text in ("this is the best day ever :)", "Thanks for ruining my week", "it was not as bad as I thought"):
    print(text, "→", classifier.answer(text))

# %% [markdown]
# ## Exercise 6: the line of the model card that everybody reads
#
# Write one line with the accuracy, its 95% interval, the number of texts, and the majority baseline; shares in percent
# with one decimal.


# %% tags=["exercise", "points:2"]
def result_line(right, n, majority):
    """Such as "Accuracy 80.0% (70.0% to 90.0%, n = 50); majority class 60.0%."; `majority` is a share."""
    ### BEGIN SOLUTION
    # Hint: accuracy_interval(right, n) gives Wilson's interval, and f"{share:.1%}" writes percent.
    low, high = accuracy_interval(right, n)
    return f"Accuracy {right / n:.1%} ({low:.1%} to {high:.1%}, n = {n}); majority class {majority:.1%}."
    ### END SOLUTION


# %% tags=["check"]
check("case_study.card", result_line)

# %% [markdown]
# ## Your experiment
#
# Change one thing and run the cell again. Ideas:
#
# * Add words to the list until it stops getting better on *validation*. How far does it get?
# * Ask for `kept=0.8`. Is the work of the person worth it?
# * Write a text that turns the answer round by one word.

# %% tags=["nbval-ignore-output"]
for text in ("I like it", "I don't like it", "I don't think that I don't like it", "like, whatever"):
    print(text, "→", classifier.answer(text))

# %% [markdown]
# ## Take away
#
# * The floor and a list of words come before any training.
# * A search has a budget, a file, and the known setting as its first trial.
# * The test split is read once. Slices with few texts are questions, not findings.
# * An exported model is compared logit by logit, and its cleaning and tokeniser travel with it.
