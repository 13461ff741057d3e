# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Lab 22: All methods compared
#
# **You will**
#
# * put an interval around the mean of a few seeds, and compare two methods seed by seed,
# * test many methods at once without being fooled by the luckiest,
# * find the methods that no other beats when several prices count, and choose one by a rule,
# * add a method of your own in ten lines, and see it in the plot.
#
# **Time:** the whole lab runs in about {{ seconds }} s on two CPU cores (measured). No GPU is needed.
# Read the chapter *All methods compared* first.

# %%
# {{ install }}

# %%
import math
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pandas as pd
from datasets import DatasetDict
from scipy.stats import t as student, ttest_rel
from torch import nn

from course_utils import (
    METHODS,
    Method,
    MethodConfig,
    check,
    count_parameters,
    inject,
    load_classifier,
    load_sentiment,
    majority_accuracy,
)
from course_utils.evaluation import (
    accuracy_interval,
    front,
    holm as holm_adjusted,
    mean_interval,
    paired_difference,
    results,
)
from course_utils.plots import accuracy_against_prices, differences, parameters_and_memory, two_kinds_of_luck
from course_utils.training import train_once

# %% [markdown]
# ## The measurements
#
# The file `comparison.json` joins the large study with the costs of each method. Nothing is trained here.

# %%
stored = results.read("comparison")
methods = stored["methods"]
seeds = {key: row["seeds"] for key, row in methods.items()}
prices = ("trainable", "memory_mb", "step_ms", "checkpoint_kb")
assert len(methods) >= 20 and stored["seeds"] >= 3
assert all(row[price] > 0 for row in methods.values() for price in prices)
print("all methods have several seeds and four prices")

# %% tags=["nbval-ignore-output"]
columns = {"title": "method", "trainable": "trained", "memory_mb": "memory (MB)", "step_ms": "step (ms)",
           "checkpoint_kb": "file (kB)"}  # fmt: skip
table = pd.DataFrame(methods.values())[list(columns)].rename(columns=columns).set_index("method")
table.insert(0, "accuracy", [f"{row['accuracy']['mean']:.1%}" for row in methods.values()])
table

# %% tags=["nbval-ignore-output"]
two_kinds_of_luck()

# %% [markdown]
# ## Exercise 1: the interval of a mean
#
# A few seeds gave a few accuracies. Their mean is $m$, their sample standard deviation (divided by $n - 1$) is $s$.
# Return the two ends of the 95% interval of the mean, $m \pm t \cdot s / \sqrt{n}$.
#
# `student.ppf(q, freedom)` is Student's quantile: the number below which a share `q` lies, with so many degrees of
# freedom. The interval leaves 2.5% at each side.


# %% tags=["exercise", "points:3"]
def interval(values):
    """Lower and upper end of the 95% interval of the mean."""
    import math

    import numpy as np
    from scipy.stats import t as student

    ### BEGIN SOLUTION
    # Hint: np.std(values, ddof=1) divides by n − 1.
    n = len(values)
    mean = sum(values) / n
    half = student.ppf(0.975, n - 1) * np.std(values, ddof=1) / math.sqrt(n)
    return mean - half, mean + half
    ### END SOLUTION


# %% tags=["check"]
check("comparison.interval", interval)

# %% [markdown]
# Two intervals for the same method. One speaks about other *seeds*, the other about other *texts*. (From here on the
# lab calls the course's own functions, so that it also runs where an exercise is still open.)

# %% tags=["nbval-ignore-output"]
for key in ("lora", "full", "pfeiffer", "prompt"):
    low, high = mean_interval(seeds[key])
    row = methods[key]["accuracy"]
    print(f"{methods[key]['title']}: seeds {low:.1%} to {high:.1%}, texts {row['low']:.1%} to {row['high']:.1%}")

# %% [markdown]
# How large is $t$? With very many seeds it would be 1.96.

# %%
for n in (2, 3, 5, 10, 100):
    quantile = student.ppf(0.975, n - 1)
    print(f"{n} seeds: t = {quantile:.2f}, half the interval {quantile / math.sqrt(n):.2f} s")

# %% [markdown]
# Two seeds say almost nothing. From three to five the interval shrinks to half its width.
#
# ## Exercise 2: pairs
#
# Two methods ran with the same seeds, and each seed gave both the same head and the same order of the texts. So
# compare them **seed by seed**: return the interval of the mean of `first[k] - second[k]`. Your function of exercise 1
# may help.


# %% tags=["exercise", "points:3"]
def paired(first, second):
    """Lower and upper end of the 95% interval of the mean difference, first minus second."""
    ### BEGIN SOLUTION
    # Hint: make the list of differences, then its interval.
    gaps = [a - b for a, b in zip(first, second, strict=True)]
    return interval(gaps)
    ### END SOLUTION


# %% tags=["check"]
check("comparison.paired", paired)

# %% [markdown]
# Every method against full fine-tuning. That is the question: *does it cost accuracy to train less?* It was chosen
# before looking, so there is one test for each method, and not one for each pair of methods.

# %%
others = [key for key in methods if key != "full"]
found = {key: paired_difference(seeds[key], seeds["full"]) for key in others}
p_values = {key: difference.p for key, difference in found.items()}
for row in stored["differences"].values():
    assert abs(found[row["method"]].low - row["low"]) < 1e-9 and abs(p_values[row["method"]] - row["p"]) < 1e-9
print("the differences follow from the stored accuracies")

# %% tags=["nbval-ignore-output"]
pd.DataFrame(
    {
        "method": methods[key]["title"],
        "difference": f"{100 * found[key].mean:+.2f}",
        "95% interval": f"{100 * found[key].low:+.2f} to {100 * found[key].high:+.2f}",
        "p": f"{found[key].p:.4f}",
    }
    for key in sorted(others, key=p_values.get)
).set_index("method")

# %% [markdown]
# Was it worth while to pair? Only where the seeds share something. The correlation of two methods over the seeds, the
# mean over all pairs of methods; 1 would be all, 0 is nothing:

# %% tags=["nbval-ignore-output"]
agreement = np.corrcoef(list(seeds.values()))
print(f"{agreement[np.triu_indices(len(agreement), 1)].mean():.2f}")

# %% [markdown]
# Nothing. So pairing did not help here. But it was the plan, and a plan is not changed after the results are seen.
#
# ## Exercise 3: many tests
#
# One test for each method, and each says “a difference!” in 5% of the cases where there is none. Holm's correction:
# sort the $m$ p-values. The smallest must be at most $0.05 / m$, the second at most $0.05 / (m - 1)$, and so on, the
# largest at most $0.05$. At the first failure stop: this one and all larger ones have not passed. Return the names of
# those that passed.


# %% tags=["exercise", "points:3"]
def holm(p_values):
    """The names of the tests that pass; p_values: name → p."""
    ### BEGIN SOLUTION
    # Hint: sorted(p_values, key=p_values.get) lists the names, the smallest p first.
    passed = []
    ordered = sorted(p_values, key=p_values.get)
    for place, name in enumerate(ordered):
        if p_values[name] > 0.05 / (len(ordered) - place):
            break
        passed.append(name)
    return passed
    ### END SOLUTION


# %% tags=["check"]
check("comparison.holm", holm)

# %%
alone = [key for key in others if p_values[key] <= 0.05]
together = [key for key, p in holm_adjusted(p_values).items() if p <= 0.05]
assert set(together) <= set(alone)
passed = stored["tests"]["all_seeds"]
assert (len(alone), len(together)) == (passed["uncorrected"], passed["holm"])
print("what passes Holm's bars is a part of what passes 0.05")

# %% tags=["nbval-ignore-output"]
print(f"{len(alone)} of {len(others)} tests pass 0.05, and {len(together)} pass Holm's bars:")
print(", ".join(methods[key]["title"] for key in together))
differences()

# %% [markdown]
# Is the correction needed? Let chance speak: 19 methods that are all *exactly as good* as the reference, five seeds
# each, and this 2,000 times. How often is there at least one “finding”?

# %%
chance = np.random.default_rng(0)
runs = chance.normal(size=(2000, 20, 5))
p = ttest_rel(runs[:, 1:], runs[:, :1], axis=2).pvalue
once, corrected = np.mean((p <= 0.05).any(axis=1)), np.mean((p <= 0.05 / 19).any(axis=1))
assert 0.4 < once < 0.7 and corrected < 0.06
print(f"at least one false finding: {once:.0%} without correction, {corrected:.1%} with 0.05 / 19")

# %% [markdown]
# (All 19 are compared with the same reference, so their luck is shared, and the share is below the
# $1 - 0.95^{19} = 62\%$ of independent tests. 0.05 / 19 is the first bar of Bonferroni and of Holm.)
#
# ## Exercise 4: several prices
#
# A method **beats** another if its accuracy is no lower, *none* of its prices is higher, and one of all these numbers
# is better. Each row is (accuracy, price, price, …), with one price or more. Return the names that no other row beats.


# %% tags=["exercise", "points:3"]
def unbeaten(rows):
    """The names that no other row beats; rows: name → (accuracy, price, ...)."""
    ### BEGIN SOLUTION
    # Hint: all(a <= b for a, b in zip(...)) compares the prices one by one.
    kept = []
    for name, row in rows.items():
        beaten = False
        for other in rows.values():
            no_dearer = all(a <= b for a, b in zip(other[1:], row[1:], strict=True))
            if other[0] >= row[0] and no_dearer and other != row:
                beaten = True
        if not beaten:
            kept.append(name)
    return kept
    ### END SOLUTION


# %% tags=["check"]
check("comparison.front", unbeaten)

# %%
fronts = {}
for price in prices:
    fronts[price] = front({key: (row["accuracy"]["mean"], row[price]) for key, row in methods.items()})
    assert set(fronts[price]) == set(stored["fronts"][price])
everything = front({key: (row["accuracy"]["mean"], *(row[p] for p in prices)) for key, row in methods.items()})
assert set().union(*fronts.values()) <= set(everything)
print("whoever is unbeaten at one price is unbeaten when all four count")

# %% tags=["nbval-ignore-output"]
for price, names in fronts.items():
    print(f"{price}: {', '.join(methods[key]['title'] for key in names)}")
print(f"all four: {len(everything)} of {len(methods)}")
parameters_and_memory()

# %% [markdown]
# So “the best method” does not exist. There are fronts, and you have to say which price you pay.
#
# ## Exercise 5: the choice
#
# A rule that can be written down before anybody looks: *of all methods whose accuracy is at most `margin` below the
# best, take the cheapest.* Each row is (accuracy, price). Return one name.


# %% tags=["exercise", "points:2"]
def cheapest(rows, margin):
    """The name of the cheapest row within the margin of the best; rows: name → (accuracy, price)."""
    ### BEGIN SOLUTION
    # Hint: first the best accuracy, then the list of the names that are near it, then min by the price.
    best = max(accuracy for accuracy, _ in rows.values())
    near = [name for name, (accuracy, _) in rows.items() if accuracy >= best - margin]
    return min(near, key=lambda name: rows[name][1])
    ### END SOLUTION


# %% tags=["check"]
check("comparison.cheapest", cheapest)

# %% tags=["nbval-ignore-output"]
best = max(row["accuracy"]["mean"] for row in methods.values())
for margin in (0.0, 0.01, 0.02):
    near = {key: row for key, row in methods.items() if row["accuracy"]["mean"] >= best - margin}
    for price in prices:
        key = min(near, key=lambda key: near[key][price])
        print(f"at most {100 * margin:g} points below the best, lowest {price}: {methods[key]['title']}")

# %% [markdown]
# ## A method in ten lines
#
# *LayerNorm tuning* (Qi and others, 2022) trains the gains and biases of the layer normalisations and nothing else.
# `inject` freezes the model before it asks a method, and trains the head in any case. So a method is a class with a
# name and one function; one line puts it into the table of all methods.


# %%
@dataclass(frozen=True)
class LayerNormConfig(MethodConfig):
    """Train the gains and biases of every layer normalisation."""

    name: ClassVar[str] = "LayerNorm tuning"

    def apply(self, model: nn.Module) -> None:
        """Unfreeze them."""
        for module in model.modules():
            if isinstance(module, nn.LayerNorm):
                module.requires_grad_(True)


METHODS["layer_norm"] = Method("LayerNorm tuning", LayerNormConfig(), (1e-2,))
print(count_parameters(inject(load_classifier()[0], LayerNormConfig())))

# %% [markdown]
# ## Exercise 6: a method of your own
#
# BitFit trains the biases. LayerNorm tuning trains gains, and the biases beside them. What do gains and biases have in
# common? They are **vectors**, and all the rest of a transformer are matrices. Write the method that trains every
# vector: set `requires_grad` for all parameters with one axis. Change the model in place; nothing is returned. Do not
# go by names: in another model they are others.


# %% tags=["exercise", "points:2"]
def unfreeze_vectors(model):
    """Let every parameter with one axis be trained; the rest stays as it is."""
    ### BEGIN SOLUTION
    # Hint: model.parameters() lists all parameters, and parameter.ndim is the number of axes of one.
    for parameter in model.parameters():
        if parameter.ndim == 1:
            parameter.requires_grad_(True)
    ### END SOLUTION


# %% tags=["check"]
check("comparison.vectors", unfreeze_vectors)

# %% [markdown]
# ## The new method in the plot
#
# The study would train LayerNorm tuning with every seed. Here one seed and few texts must do, and LoRA gets just as
# little, so that the two can be compared.

# %%
tweets = load_sentiment("tweets")
small = DatasetDict(
    train=tweets["train"].select(range(224)),
    validation=tweets["validation"].select(range(32)),
    test=tweets["test"].select(range(200)),
)
floor = majority_accuracy(list(small["train"]["label"]), list(small["test"]["label"]))
short = {}
for key, rate in (("layer_norm", 2e-2), ("lora", 8e-3)):
    short[key] = train_once(small, METHODS[key], rate, seed=0)
    assert short[key]["accuracy"] > floor + 0.05, f"{key}: {short[key]['accuracy']:.1%}, floor {floor:.1%}"
print(f"both learn from {len(small['train'])} tweets")

# %% tags=["nbval-ignore-output"]
shown = dict(methods)
for key, run in short.items():
    low, high = accuracy_interval(round(run["accuracy"] * len(small["test"])), len(small["test"]))
    shown[f"short {key}"] = {
        "title": f"{METHODS[key].full_title}, few tweets",
        "accuracy": {"mean": run["accuracy"], "low": low, "high": high},
        "seeds": [run["accuracy"]],
        "trainable": run["trainable"],
    }
    print(f"{METHODS[key].full_title}: {run['accuracy']:.1%} ({low:.1%} to {high:.1%}), {run['trainable']:,} trained")
accuracy_against_prices(
    shown,
    {
        "trained parameters, head included": {key: row["trainable"] for key, row in shown.items()},
        "kilobytes of a checkpoint": {key: row["checkpoint_kb"] for key, row in methods.items()},
    },
)

# %% [markdown]
# The two plus signs on the left are new. They had a fraction of the training texts, so do not compare them with the
# others. Compare them with each other, with the intervals above, and with one seed in mind.
#
# ## Your experiment
#
# Change the method and run the cells again. Ideas:
#
# * call your `unfreeze_vectors(model)` in `apply`. How many numbers are trained now?
# * train only the gains: `module.weight.requires_grad_(True)`,
# * another seed, `seed=1`. How far does the accuracy move, and how does that compare with the difference of the two?

# %% [markdown]
# ## The same in `scipy`
#
# scipy has the interval, the paired test and its interval. Its correction for many tests is Benjamini and Hochberg's,
# which promises less than Holm's and finds more: of its findings, 5% may be false. (Holm's own correction is in
# *statsmodels*, as `multipletests(p, method="holm")`; the course does not install it.)

# %%
from scipy.stats import false_discovery_control, sem

for key in others:
    values = seeds[key]
    theirs = student.interval(0.95, len(values) - 1, loc=np.mean(values), scale=sem(values))
    assert np.allclose(mean_interval(values), theirs, rtol=0, atol=1e-12)
    test = ttest_rel(values, seeds["full"])
    assert np.allclose((found[key].low, found[key].high), test.confidence_interval(), rtol=0, atol=1e-12)
    assert abs(found[key].p - test.pvalue) < 1e-12
print("intervals and tests: equal to scipy's for every method")

adjusted = dict(zip(others, false_discovery_control(list(p_values.values())), strict=True))
assert {key for key in others if adjusted[key] <= 0.05} >= set(together)
print("Benjamini and Hochberg find all that Holm finds, and perhaps more")

# %% [markdown]
# ## Take away
#
# * Two kinds of luck: the seeds and the texts. An interval of one kind says nothing about the other.
# * Compare in pairs: the same seeds, the same texts. Fix the question first, count the tests, and correct for them.
# * There is no best method, only methods that no other beats at your price.
# * A method is a class with one function and one line in the study.
