# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Lab 5: Evaluation
#
# **You will**
#
# * compute macro F1, Wilson's interval, McNemar's test and the calibration error yourself, a few lines each,
# * mend a piece of metric code that looks fine and is wrong in several places,
# * judge two trained models: which one is better, how sure can we be, and how sure are they themselves?
#
# **Time:** the whole lab runs in about {{ seconds }} s on two CPU cores (measured). No GPU is needed.
# Read the chapter *Evaluation* first.

# %%
# {{ install }}

# %%
import math

import numpy as np
import torch

from course_utils import (
    HeadOnlyConfig,
    TrainingConfig,
    check,
    fit,
    inject,
    load_classifier,
    load_sentiment,
    majority_accuracy,
    make_loader,
)
from course_utils.evaluation import (
    accuracy_interval,
    best_threshold,
    bootstrap_interval,
    calibration_error,
    class_scores,
    disagreements,
    f1_average,
    fit_temperature,
    mcnemar,
    mean_and_spread,
    probabilities,
    reliability,
    results,
)
from course_utils.plots import reliability_diagram

# %% [markdown]
# ## Trained models, kept as logits
#
# Most of this lab needs no training. `python -m course_utils study-evaluation` has trained LoRA and head only on the
# tweets, and stored the logits for each text of the validation and the test split. Everything about the quality of a
# classifier can be computed from these.

# %%
stored = results.read("evaluation")
labels = {split: np.array(values) for split, values in stored["labels"].items()}
logits = {name: {split: np.array(rows) for split, rows in both.items()} for name, both in stored["logits"].items()}
answers = {name: both["test"].argmax(axis=1) for name, both in logits.items()}
for name in ("majority", "words", "head_only", "lora"):
    print(f"{name:10} {np.mean(answers[name] == labels['test']):.1%} of {len(labels['test'])} test tweets right")

# %% [markdown]
# `majority` answers “positive” to everything, `words` counts words (TF-IDF with logistic regression).
#
# ## Exercise 1: macro F1
#
# For each class: **precision** is the share of right answers among the texts that were called this class, **recall**
# the share that was found among the texts that belong to it. F1 is $2 P R / (P + R)$. **Macro** F1 is the plain mean
# over the classes. A class that the model never answers has F1 = 0.


# %% tags=["exercise", "points:3"]
def macro_f1(labels, predicted):
    """The mean over all classes in `labels` of the F1 of each."""
    ### BEGIN SOLUTION
    # Hint: for each class count the hits, how often it was answered, and how often it is right; F1 = 2 hits / (both).
    values = []
    for one in sorted(set(labels)):
        hits = sum(truth == answer == one for truth, answer in zip(labels, predicted, strict=True))
        answered = sum(answer == one for answer in predicted)
        present = sum(truth == one for truth in labels)
        values.append(2 * hits / (answered + present))
    return sum(values) / len(values)
    ### END SOLUTION


# %% tags=["check"]
check("evaluation.f1", macro_f1)

# %% [markdown]
# Now the trap. Accuracy says that the majority class is not bad at all. What does macro F1 say?

# %%
for name in ("majority", "head_only", "lora"):
    negative, positive = class_scores(labels["test"], answers[name])
    print(
        f"{name:10} recall of negative {negative.recall:.1%}, of positive {positive.recall:.1%}; "
        f"F1 micro {f1_average(labels['test'], answers[name], 'micro'):.1%}, "
        f"macro {f1_average(labels['test'], answers[name], 'macro'):.1%}, "
        f"weighted {f1_average(labels['test'], answers[name], 'weighted'):.1%}"
    )

# %% [markdown]
# ## Exercise 2: mend the metric code
#
# This code stood in a tutorial, more or less. Read it before you go on. What is wrong?
#
# ```python
# y_pred_val = model(X_val)                                  # and numpy was never imported
# accuracy = np.mean([(model(x).argmax() == y).mean() for x, y in batches])
# f1 = f1_score(y_true_val, y_pred_val)
# auc = roc_auc_score(y_true_val, y_pred_val)
# ```
#
# Write it right. `model(**batch).logits` holds two logits for each text. Batches can differ in size.


# %% tags=["exercise", "points:3"]
from sklearn.metrics import f1_score, roc_auc_score


def judge(model, loader):
    """Accuracy, macro F1 and ROC-AUC of a two-class `model` on all texts of `loader` (batches with "labels")."""
    ### BEGIN SOLUTION
    # Hint: model.eval(), torch.no_grad(); collect the labels and logits of all batches, and compute once, at the end.
    model.eval()
    with torch.no_grad():
        rows = [(batch["labels"], model(**batch).logits) for batch in loader]
    truth, all_logits = (torch.cat(column) for column in zip(*rows, strict=True))
    predicted = all_logits.argmax(dim=1)
    positive = all_logits.softmax(dim=1)[:, 1]
    accuracy = (predicted == truth).double().mean().item()
    return accuracy, f1_score(truth, predicted, average="macro"), roc_auc_score(truth, positive)
    ### END SOLUTION


# %% tags=["check"]
check("evaluation.mend", judge)

# %% [markdown]
# ## One seed decides nothing, and a falling loss proves nothing
#
# Now a small training, live: the head only, with three seeds on 640 tweets, and once on 320 tweets with a quarter of
# the learning rate. `fit` judges each on the validation split, as you have just written it.

# %% tags=["nbval-ignore-output"]
tweets = load_sentiment("tweets")
floor = majority_accuracy(list(tweets["train"]["label"]), list(tweets["validation"]["label"]))


def head_only(seed, texts, learning_rate):
    """Train a head for one epoch; its history, with the scores on the validation split."""
    model, tokenizer = load_classifier("minilm", seed=seed)
    inject(model, HeadOnlyConfig())
    train = make_loader(tweets["train"].select(range(texts)), tokenizer, 32, shuffle=True, seed=seed)
    validation = make_loader(tweets["validation"], tokenizer, 64)
    return fit(model, train, validation, TrainingConfig(learning_rate=learning_rate, epochs=1, seed=seed))


accuracies = [head_only(seed, 640, 0.2).evaluations[-1]["accuracy"] for seed in (0, 1, 2)]
mean, spread = mean_and_spread(accuracies)
print(f"three seeds: {', '.join(f'{accuracy:.1%}' for accuracy in accuracies)}; standard deviation {spread:.1%}")
history = head_only(0, 320, 0.05)
trapped = history.evaluations[-1]
print(f"320 tweets: training loss from {history.steps[0]['loss']:.2f} to {history.steps[-1]['loss']:.2f}")
print(f"            accuracy {trapped['accuracy']:.1%}, floor {floor:.1%}, macro F1 {trapped['f1_macro']:.1%}")

# %%
assert spread > 0.001, "the seeds give different results"
assert abs(trapped["accuracy"] - floor) < 0.03, "hardly any tweet is called negative"
assert trapped["f1_macro"] < 0.6, "and macro F1 shows it"
print("three seeds give three results; the loss falls and the accuracy is the floor: macro F1 gives it away")

# %% [markdown]
# ## Exercise 3: Wilson's interval
#
# A test split is a sample. With $p$ the accuracy on $n$ texts and $z = 1.96$ (for 95%), the true accuracy plausibly
# lies between
#
# $$\frac{p + \frac{z^2}{2n} \pm z \sqrt{\frac{p(1-p)}{n} + \frac{z^2}{4n^2}}}{1 + \frac{z^2}{n}}$$


# %% tags=["exercise", "points:2"]
def wilson(correct, n, z=1.96):
    """The lower and the upper end of Wilson's interval for `correct` right answers out of `n`."""
    ### BEGIN SOLUTION
    # Hint: p, then the middle p + z²/2n, then the root, and divide both ends by 1 + z²/n.
    p = correct / n
    middle = p + z**2 / (2 * n)
    root = z * math.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    return (middle - root) / (1 + z**2 / n), (middle + root) / (1 + z**2 / n)
    ### END SOLUTION


# %% tags=["check"]
check("evaluation.wilson", wilson)

# %%
for n in (100, 338, 843, 10_000):
    low, high = accuracy_interval(round(0.95 * n), n)
    print(f"95% right of {n:6,} texts: from {low:.1%} to {high:.1%}, {100 * (high - low):.1f} points wide")

# %% [markdown]
# For other numbers than an accuracy there is the **bootstrap**: draw the test split again and again from itself, with
# replacement, and look how much the number moves.

# %%
for name in ("head_only", "lora"):
    low, high = bootstrap_interval(lambda y, p: f1_average(y, p, "macro"), labels["test"], answers[name], repeats=500)
    print(f"{name:10} macro F1 {f1_average(labels['test'], answers[name], 'macro'):.1%}, from {low:.1%} to {high:.1%}")

# %% [markdown]
# ## Exercise 4: McNemar's test
#
# Two models judged the same texts. On most texts both are right, or both are wrong: these say nothing about which is
# better. Let $b$ be the number of texts that only the first gets right, and $c$ those that only the second gets right.
# If the two are equally good, each of these $b + c$ texts is the toss of a fair coin. The p-value is the chance that
# such a coin comes out at least as one-sided as it did: **twice** the chance of at most $\min(b, c)$ heads in $b + c$
# tosses, and never above 1.


# %% tags=["exercise", "points:2"]
def mcnemar_p(labels, first, second):
    """The exact two-sided p-value of McNemar's test for two lists of answers."""
    ### BEGIN SOLUTION
    # Hint: count b and c; math.comb(b + c, k) / 2 ** (b + c) is the chance of k heads.
    rows = list(zip(labels, first, second, strict=True))
    b = sum(one == truth and other != truth for truth, one, other in rows)
    c = sum(one != truth and other == truth for truth, one, other in rows)
    tail = sum(math.comb(b + c, k) for k in range(min(b, c) + 1)) / 2 ** (b + c)
    return min(1.0, 2 * tail)
    ### END SOLUTION


# %% tags=["check"]
check("evaluation.mcnemar", mcnemar_p)

# %%
for one, other in (("lora", "head_only"), ("head_only", "head_only_slow"), ("head_only", "words")):
    b, c = disagreements(labels["test"], answers[one], answers[other])
    ends = [accuracy_interval(int((answers[name] == labels["test"]).sum()), 843) for name in (one, other)]
    overlap = "overlap" if ends[0][0] < ends[1][1] and ends[1][0] < ends[0][1] else "do not overlap"
    p = mcnemar(labels["test"], answers[one], answers[other])
    print(f"{one} and {other}: {b} against {c} texts, p = {p:.2g}; their intervals {overlap}")

# %% [markdown]
# Look at the second and the third line. In both, the intervals overlap. But head only and its smaller learning rate
# make nearly the same mistakes, so that a small difference stands out. Head only and word counts make different ones.
#
# ## Exercise 5: the calibration error
#
# A model that says “90% sure” should be right in 90% of such cases. Sort the texts by confidence into bins of equal
# width, $(0, 0.1], (0.1, 0.2], \dots$ In each bin $k$ with $n_k$ texts, compare the mean confidence with the share of
# right answers. The **expected calibration error** is the mean gap, weighted by the number of texts:
#
# $$\text{ECE} = \sum_k \frac{n_k}{n}\, |\text{accuracy}_k - \text{confidence}_k|$$


# %% tags=["exercise", "points:3"]
def expected_calibration_error(right, confidence, bins=10):
    """The calibration error; `right` holds 1 for a right answer and 0 for a wrong one, a text each."""
    ### BEGIN SOLUTION
    # Hint: math.ceil(confidence * bins) numbers the bins from 1 on. n_k times the gap of a bin is the difference of two
    # Hint: sums, of `right` and of `confidence`.
    gaps = {}
    for hit, sure in zip(right, confidence, strict=True):
        k = math.ceil(sure * bins)
        gaps[k] = gaps.get(k, 0.0) + hit - sure
    return sum(abs(gap) for gap in gaps.values()) / len(right)
    ### END SOLUTION


# %% tags=["check"]
check("evaluation.ece", expected_calibration_error)

# %% [markdown]
# How sure are our models? **Temperature scaling** divides all logits by one number T, chosen on the *validation* split
# so that its cross-entropy is lowest. It changes no answer.

# %%
for name in ("majority", "head_only_slow", "head_only", "lora"):
    T = fit_temperature(labels["validation"], logits[name]["validation"])
    before, after = (probabilities(logits[name]["test"], t) for t in (1.0, T))
    print(
        f"{name:14} right {np.mean(answers[name] == labels['test']):.1%}, sure {before.max(axis=1).mean():.1%}, "
        f"calibration error {calibration_error(labels['test'], before):.1%}; "
        f"with T = {T:.2f} it is {calibration_error(labels['test'], after):.1%}"
    )

# %% tags=["nbval-ignore-output"]
diagrams = {
    name: [vars(row) for row in reliability(labels["test"], probabilities(logits[name]["test"]))]
    for name in ("head_only_slow", "lora")
}
reliability_diagram(diagrams)

# %% [markdown]
# The majority “model” is almost perfectly calibrated: it says the same 69% for every text, and is right in 69%.
# Calibration alone makes no good classifier. And a temperature helps only where there is something to mend: it helps
# `head_only_slow`, which is too shy, and not the other two. The chapter says why.
#
# ## The threshold is a choice, made on validation
#
# A classifier of two classes answers “positive” where the probability is above 0.5. Nobody says that it must be 0.5.

# %%
for name in ("head_only", "lora"):
    positive = {split: probabilities(logits[name][split])[:, 1] for split in labels}
    chosen = best_threshold(labels["validation"], positive["validation"])
    best = best_threshold(labels["test"], positive["test"])
    for words, threshold in (
        ("by default", 0.5),
        ("from validation", chosen),
        ("from the test itself (cheating)", best),
    ):
        f1 = f1_average(labels["test"], positive["test"] > threshold, "macro")
        print(f"{name:10} threshold {threshold:.3f} {words:32} macro F1 on test {f1:.1%}")

# %% [markdown]
# ## Your experiment: how the test split wears out
#
# Here are `models` classifiers that are all **equally good**: 95% right in truth. Each is judged on the same number of
# texts, and you report the best. Change the three numbers. How many models does it take to gain a point out of nothing?
# And what does a larger test split change?

# %%
models, truth, n = 20, 0.95, 843
best = np.random.default_rng(0).binomial(n, truth, size=(2000, models)).max(axis=1) / n
print(f"the best of {models} models that are all {truth:.0%} right reaches {best.mean():.1%} on {n} texts, on average")

# %% [markdown]
# ## The same with the libraries that people use
#
# scikit-learn has the metrics, scipy the interval and the test.

# %%
from scipy.stats import binomtest
from sklearn.metrics import classification_report

print(classification_report(labels["test"], answers["lora"], target_names=["negative", "positive"], digits=3))
margin = logits["lora"]["test"][:, 1] - logits["lora"]["test"][:, 0]
print(f"ROC-AUC from scores  {roc_auc_score(labels['test'], margin):.3f}")
print(f"ROC-AUC from answers {roc_auc_score(labels['test'], answers['lora']):.3f}  (a common mistake)")
print(f"macro F1 {f1_score(labels['test'], answers['lora'], average='macro'):.3f}")
right = int((answers["lora"] == labels["test"]).sum())
interval = binomtest(right, len(labels["test"])).proportion_ci(method="wilson")
b, c = disagreements(labels["test"], answers["lora"], answers["head_only"])
print(f"Wilson {interval.low:.3f} to {interval.high:.3f}; McNemar p = {binomtest(b, b + c).pvalue:.1g}")

# %% [markdown]
# ## Take away
#
# * Print the floor, the number of texts and an interval beside each accuracy; macro F1 shows a class that is ignored.
# * Compare two models on the same texts, text by text, and over several seeds.
# * Learning rate, threshold, temperature: everything that is chosen is chosen on validation. The test comes last, once.
