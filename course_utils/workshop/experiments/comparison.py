"""All methods beside each other, one command: `python -m course_utils study-comparison [METHOD ...]`.

It measures what each method costs (a training step, the memory of a training, the file), and joins the costs with the
large study (`quality.json`): the table, the fronts, the differences from full fine-tuning over the seeds with Holm's
correction, and what became of the best of the first seeds.

Costs that are there already are kept; `--again` measures them anew. Methods that are measured together take their steps
batch by batch in turn, so that a slow moment of the machine hits all of them. After `make study` run the command once
more: where no cost is missing it takes seconds.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import asdict
from functools import partial
from itertools import combinations
from typing import Any

import numpy as np
from scipy.stats import spearmanr
from torch import nn
from tqdm import tqdm

from course_utils.evaluation import results
from course_utils.evaluation.many_methods import front, holm, mean_interval, paired_difference
from course_utils.methods import MethodConfig, inject
from course_utils.methods.registry import studied
from course_utils.models.backbones import load_classifier
from course_utils.workshop.experiments import costs, store

COMMAND = "python -m course_utils study-comparison"
NAME = "comparison"
REFERENCE = "full"
#: The prices of a method, as keys of its row; each has a front.
PRICES = ("trainable", "memory_mb", "step_ms", "checkpoint_kb")
BAR = 0.05


def main(arguments: list[str]) -> int:
    """Measure the costs that are missing and write `book/results/comparison.json`."""
    parser = argparse.ArgumentParser(
        prog=COMMAND, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("methods", nargs="*", metavar="METHOD", help=f"default: all of {', '.join(methods())}")
    parser.add_argument("--again", action="store_true", help="measure costs that are there already")
    parser.add_argument("--steps", type=int, default=12, help="timed steps of each method (default 12)")
    parser.add_argument("--processes", type=int, default=2, help="trainings of each method for memory (default 2)")
    options = parser.parse_args(arguments)
    if unknown := set(options.methods) - set(methods()):
        parser.error(f"unknown method {', '.join(sorted(unknown))}; choose from {', '.join(methods())}")
    if options.steps < 1 or options.processes < 1:
        parser.error("--steps and --processes must be at least 1")
    known = dict(results.stored(NAME).get("costs", {}))
    missing = [key for key in options.methods or methods() if options.again or key not in known]
    if missing:
        known |= measure_costs(missing, options.steps, options.processes)
    store.write(NAME, COMMAND, {"costs": known, **compared(results.read("quality"), known)})
    return 0


def methods() -> list[str]:
    """The methods of the study that start from the pretrained model, those that were added too."""
    return [key for key, entry in studied().items() if entry.pretrained]


# --- costs -----------------------------------------------------------------------------------------------------------


def measure_costs(names: list[str], steps: int, processes: int) -> dict[str, dict[str, float]]:
    """Method → `step_ms` (median), `memory_mb` (median of several processes) and `checkpoint_kb`."""
    builds = {name: partial(_with_method, studied()[name].config) for name in names}
    times = costs.step_times({name: build() for name, build in builds.items()}, costs.prepare_batches(steps), warm_up=2)
    return {
        name: {
            "step_ms": round(float(np.median(times[name])), 1),
            "memory_mb": round(statistics.median(costs.process_peak(build) for _ in range(processes)), 1),
            "checkpoint_kb": costs.storage(build)["checkpoint_kb"],
        }
        for name, build in tqdm(builds.items(), unit="method")
    }


def _with_method(config: MethodConfig) -> nn.Module:
    """The default classifier with a method in it; the settings travel with the call into another process."""
    return inject(load_classifier()[0], config)


# --- what follows from the study -------------------------------------------------------------------------------------


def compared(quality: dict[str, Any], measured: dict[str, dict[str, float]]) -> dict[str, Any]:
    """All that the chapter says, from the large study and the measured costs.

    Args:
        quality: the large study.
        measured: method → its costs; a method without them is left out.
    """
    rows: dict[str, dict[str, Any]] = {}
    for method, cost in measured.items():
        if method in quality["methods"]:
            judged = quality["methods"][method]
            low, high = mean_interval(judged["seeds"])
            kept = {key: judged[key] for key in ("title", "trainable", "share", "accuracy", "seeds")}
            rows[method] = kept | cost | {"seeds_low": low, "seeds_high": high}
    fronts = {price: front(_priced(rows, price)) for price in PRICES}
    for key, row in rows.items():
        row["unbeaten_in"] = sum(key in names for names in fronts.values())
    return {
        "seeds": len(quality["seeds"]),
        "runs": len(quality["runs"]),
        "hours": _hours(quality["runs"]),
        "methods": rows,
        "fronts": fronts,
        "all_prices": {"unbeaten": len(front(_priced(rows, *PRICES))), "of": len(rows)},
        **_differences(rows),
        "luck": _luck(rows),
    }


def _hours(runs: list[dict[str, Any]]) -> dict[str, float]:
    """How long the runs took, those on a processor and those on a GPU."""
    seconds = {"processor": 0.0, "gpu": 0.0}
    for run in runs:
        seconds["processor" if run["device"].endswith("CPU cores") else "gpu"] += run["seconds"]
    return {place: total / 3600 for place, total in seconds.items()}


def _priced(rows: dict[str, dict[str, Any]], *prices: str) -> dict[str, tuple[float, ...]]:
    return {key: (row["accuracy"]["mean"], *(row[price] for price in prices)) for key, row in rows.items()}


def _differences(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Each method against full fine-tuning over the seeds, the lowest mean first, and how many tests pass."""
    first = _half(rows)
    differences, fewer = _tested(rows, len(rows[REFERENCE]["seeds"])), _tested(rows, first)
    number = len(differences)
    return {
        "differences": differences,
        "tests": {
            "number": number,
            "one_or_more_by_chance": 1 - (1 - BAR) ** number,
            "pairs": len(rows) * (len(rows) - 1) // 2,
            "seed_correlation": _seed_correlation(rows),
            "all_seeds": _passing(differences),
            "first_seeds": {"seeds": first, **_passing(fewer)},
        },
    }


def _seed_correlation(rows: dict[str, dict[str, Any]]) -> float:
    """How much the seeds share: the correlation of two methods over the seeds, the mean over all pairs of methods."""
    varying = [row["seeds"] for row in rows.values() if len(set(row["seeds"])) > 1]
    return statistics.mean(statistics.correlation(first, second) for first, second in combinations(varying, 2))


def _half(rows: dict[str, dict[str, Any]]) -> int:
    """How many seeds we call the first ones: half of them, rounded up, and at least two."""
    return max(2, (len(rows[REFERENCE]["seeds"]) + 1) // 2)


def _tested(rows: dict[str, dict[str, Any]], seeds: int) -> dict[str, dict[str, Any]]:
    """Method → its difference from full fine-tuning over the first seeds, the lowest mean first."""
    reference = rows[REFERENCE]["seeds"][:seeds]
    found = {key: paired_difference(row["seeds"][:seeds], reference) for key, row in rows.items() if key != REFERENCE}
    adjusted = holm({key: difference.p for key, difference in found.items()})
    return {
        key: {"method": key, "title": rows[key]["title"], **asdict(found[key]), "p_holm": adjusted[key]}
        for key in sorted(found, key=lambda key: found[key].mean)
    }


def _passing(differences: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """How many tests pass by three rules, and the titles of those that pass Holm's."""
    rows = differences.values()
    return {
        "uncorrected": sum(row["p"] <= BAR for row in rows),
        "bonferroni": sum(row["p"] * len(rows) <= BAR for row in rows),
        "holm": sum(row["p_holm"] <= BAR for row in rows),
        "found": ", ".join(row["title"] for row in rows if row["p_holm"] <= BAR) or "none",
    }


def _luck(rows: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """What became of the method that was best in the first seeds, when the later ones are looked at."""
    half = _half(rows)
    first = {key: statistics.mean(row["seeds"][:half]) for key, row in rows.items()}
    later = {key: statistics.mean(row["seeds"][half:]) for key, row in rows.items()}
    best = max(first, key=first.__getitem__)
    top = sorted(first, key=first.__getitem__, reverse=True)[: len(first) // 2]
    return {
        "seeds": half,
        "title": rows[best]["title"],
        "first": first[best],
        "later": later[best],
        "rank": 1 + sum(value > later[best] for value in later.values()),
        "top": len(top),
        "rank_correlation": float(spearmanr([first[key] for key in top], [later[key] for key in top]).statistic),
    }
