"""Answers to the exercises of chapter 22: wrong ones with words of the message, and right ones."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from scipy import stats
from torch import nn

from course_utils.evaluation.many_methods import front, holm, mean_interval

Function = Callable[..., Any]


def _around(factor: Callable[[int], float], ddof: int = 1, root: bool = True) -> Function:
    def interval(values: list[float]) -> tuple[float, float]:
        n, mean = len(values), float(np.mean(values))
        half = factor(n) * float(np.std(values, ddof=ddof)) / (math.sqrt(n) if root else 1)
        return mean - half, mean + half

    return interval


def _t(n: int) -> float:
    return float(stats.t.ppf(0.975, n - 1))


def _from_scipy(values: list[float]) -> Any:
    return stats.t.interval(0.95, len(values) - 1, loc=np.mean(values), scale=stats.sem(values))


def _gaps(first: list[float], second: list[float]) -> list[float]:
    return [a - b for a, b in zip(first, second, strict=True)]


def _independent(first: list[float], second: list[float]) -> Any:
    return stats.ttest_ind(first, second).confidence_interval()


def _paired_by_scipy(first: list[float], second: list[float]) -> Any:
    return tuple(stats.ttest_rel(first, second).confidence_interval())


def _step_down(p_values: dict[str, float], bar: Callable[[int, int], float], stop: bool = True) -> list[str]:
    passed = []
    for place, (name, p) in enumerate(sorted(p_values.items(), key=lambda item: item[1])):
        if p <= bar(place, len(p_values)):
            passed.append(name)
        elif stop:
            break
    return passed


def _step_up(p_values: dict[str, float], bar: Callable[[int, int], float]) -> list[str]:
    ordered = sorted(p_values, key=lambda name: p_values[name])
    good = [place for place, name in enumerate(ordered) if p_values[name] <= bar(place, len(ordered))]
    return ordered[: max(good, default=-1) + 1]


def _holm_bar(place: int, tests: int) -> float:
    return 0.05 / (tests - place)


def _in_given_order(p_values: dict[str, float]) -> list[str]:
    passed = []
    for place, (name, p) in enumerate(p_values.items()):
        if p > _holm_bar(place, len(p_values)):
            break
        passed.append(name)
    return passed


def _front(beats: Callable[[Any, Any], bool]) -> Function:
    def unbeaten(rows: dict[str, Any]) -> list[str]:
        return [a for a, row in rows.items() if not any(beats(rows[b], row) for b in rows if b != a)]

    return unbeaten


def _no_dearer(one: Any, other: Any) -> bool:
    return all(a <= b for a, b in zip(one[1:], other[1:], strict=True))


def _front_by_arrays(rows: dict[str, Any]) -> set[str]:
    table = np.array([[-row[0], *row[1:]] for row in rows.values()])
    beaten = [bool(((table <= row).all(axis=1) & (table < row).any(axis=1)).any()) for row in table]
    return {name for name, lost in zip(rows, beaten, strict=True) if not lost}


def _within(rows: dict[str, Any], bar: float) -> list[str]:
    return [name for name, row in rows.items() if row[0] >= bar]


def _best(rows: dict[str, Any]) -> float:
    return float(max(row[0] for row in rows.values()))


def _by_sorting(rows: dict[str, Any], margin: float) -> str:
    for name, row in sorted(rows.items(), key=lambda item: item[1][1]):
        if _best(rows) - row[0] <= margin:
            return name
    raise ValueError("there are no rows")


def _unfreeze(choose: Callable[[str, nn.Module, str], bool]) -> Function:
    """Unfreeze the parameters for which `choose(name of the module, module, name of the parameter)` says so."""

    def unfreeze(model: nn.Module) -> None:
        for name, module in model.named_modules():
            for part, parameter in module.named_parameters(recurse=False):
                if choose(name, module, part):
                    parameter.requires_grad_(True)

    return unfreeze


def _norm(name: str, module: nn.Module, part: str) -> bool:
    return isinstance(module, nn.LayerNorm)


def _reset(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.weight.data.fill_(0.5)


WRONG: dict[str, list[tuple[Function, str]]] = {
    "comparison.interval": [
        (_around(lambda n: 1.96), "You took 1.96"),
        (_around(lambda n: float(stats.norm.ppf(0.975))), "You took 1.96"),
        (_around(_t, root=False), "where single *seeds* lie"),
        (_around(_t, ddof=0), "divides by n"),
        (_around(lambda n: float(stats.t.ppf(0.95, n - 1))), "quantile at 0.95"),
        (_around(lambda n: float(stats.t.ppf(0.975, n))), "n − 1, not n"),
        (_around(lambda n: 1.0), "one standard error"),
        (lambda values: (min(values), max(values)), "lowest and the highest"),
        (lambda values: mean_interval(values)[::-1], "lower end first"),
        (lambda values: sum(values) / len(values), "Expected two numbers"),
        (lambda values: (0.9, 1.0), "your function returns 0.9000"),
    ],
    "comparison.paired": [
        (lambda first, second: mean_interval(_gaps(second, first)), "sign is turned"),
        (lambda first, second: mean_interval(_gaps(first, second))[::-1], "lower end first"),
        (_independent, "nothing in common"),
        (lambda first, second: mean_interval([abs(gap) for gap in _gaps(first, second)]), "Keep the sign"),
        (lambda first, second: mean_interval(_gaps(sorted(first), sorted(second))), "sorted the values"),
        (
            lambda first, second: [a - b for a, b in zip(mean_interval(first), mean_interval(second), strict=True)],
            "ends of two intervals",
        ),
        (lambda first, second: (min(_gaps(first, second)), max(_gaps(first, second))), "smallest and the largest"),
        (lambda first, second: sum(_gaps(first, second)) / len(first), "Expected two numbers"),
        (lambda first, second: (0, 1), "the interval of exercise 1"),
    ],
    "comparison.holm": [
        (lambda p: [name for name in p if p[name] <= 0.05], "every p with 0.05"),
        (lambda p: [name for name in p if p[name] <= 0.05 / len(p)], "That is Bonferroni"),
        (lambda p: _step_down(p, _holm_bar, stop=False), "went on after the first"),
        (lambda p: _step_up(p, lambda place, tests: 0.05 * (place + 1) / tests), "Benjamini and Hochberg"),
        (lambda p: _step_up(p, _holm_bar), "began with the largest"),
        (lambda p: _step_down(p, lambda place, tests: 0.05 / (place + 1)), "becomes stricter"),
        (_in_given_order, "the order in which they came"),
        (lambda p: [name for name, value in holm(p).items() if value > 0.05], "do *not* pass"),
        (lambda p: [], "your function says none"),
        (lambda p: "prompt", "Expected a list"),
    ],
    "comparison.front": [
        (_front(lambda a, b: a[0] >= b[0] and a[1] <= b[1] and a[:2] != b[:2]), "first price only"),
        (_front(lambda a, b: a[0] >= b[0] and a[-1] <= b[-1] and (a[0], a[-1]) != (b[0], b[-1])), "last price only"),
        (_front(lambda a, b: a[0] >= b[0] and sum(a[1:]) <= sum(b[1:]) and a != b), "added the prices up"),
        (
            _front(lambda a, b: a[0] > b[0] and all(x < y for x, y in zip(a[1:], b[1:], strict=True))),
            "better in *everything*",
        ),
        (
            _front(lambda a, b: a[0] >= b[0] and any(x <= y for x, y in zip(a[1:], b[1:], strict=True)) and a != b),
            "if *one* price",
        ),
        (_front(lambda a, b: a[0] >= b[0] and _no_dearer(a, b)), "Two equal rows"),
        (_front(lambda a, b: a[0] <= b[0] and _no_dearer(a, b) and a != b), "lower accuracy as better"),
        (_front(lambda a, b: a[0] >= b[0] and _no_dearer(b, a) and a != b), "higher prices as better"),
        (lambda rows: [name for name in rows if name not in front(rows)], "beaten ones"),
        (lambda rows: list(rows), "your function says a, b, c, d, e"),
    ],
    "comparison.cheapest": [
        (lambda rows, margin: min(rows, key=lambda name: rows[name][1]), "cheapest of all"),
        (lambda rows, margin: max(rows, key=lambda name: rows[name][0]), "most accurate, whatever"),
        (lambda rows, margin: max(_within(rows, _best(rows) - margin), key=lambda n: rows[n][1]), "*dearest*"),
        (lambda rows, margin: min(_within(rows, _best(rows) * (1 - margin)), key=lambda n: rows[n][1]), "a share of"),
        (
            lambda rows, margin: min(
                _within(rows, sum(row[0] for row in rows.values()) / len(rows) - margin), key=lambda n: rows[n][1]
            ),
            "the mean of all methods",
        ),
        (lambda rows, margin: max(rows, key=lambda name: rows[name][0] / rows[name][1]), "divided by price"),
        (lambda rows, margin: _within(rows, _best(rows) - margin)[0], "your function says"),
        (lambda rows, margin: "LoRA", "Expected one of the names"),
    ],
    "comparison.vectors": [
        (lambda model: None, "still frozen"),
        (lambda model: model.requires_grad_(True), "full fine-tuning"),
        (_unfreeze(lambda name, module, part: part == "bias"), "That is BitFit"),
        (_unfreeze(_norm), "That is LayerNorm tuning"),
        (_unfreeze(lambda name, module, part: _norm(name, module, part) and part == "weight"), "gains alone"),
        (lambda model: [p.requires_grad_(p.ndim > 1) for p in model.parameters()], "other way round"),
        (
            _unfreeze(lambda name, module, part: "bias" in f"{name}.{part}" or _norm(name, module, part)),
            "whatever it is called",
        ),
        (_unfreeze(lambda name, module, part: part == "bias" or "LayerNorm" in name), "went by the name"),
        (_unfreeze(lambda name, module, part: "dense" in name), "it should be"),
        (_reset, "weights have changed"),
    ],
}

RIGHT: dict[str, list[Function]] = {
    "comparison.interval": [_around(_t), _from_scipy],
    "comparison.paired": [
        lambda first, second: mean_interval(_gaps(first, second)),
        _paired_by_scipy,
    ],
    "comparison.holm": [
        lambda p: _step_down(p, _holm_bar),
        lambda p: {name for name, value in holm(p).items() if value <= 0.05},
    ],
    "comparison.front": [front, _front_by_arrays],
    "comparison.cheapest": [
        _by_sorting,
        lambda rows, margin: min(_within(rows, _best(rows) - margin), key=lambda name: rows[name][1]),
    ],
    "comparison.vectors": [
        _unfreeze(lambda name, module, part: part == "bias" or _norm(name, module, part)),
        lambda model: [p.requires_grad_() for p in model.parameters() if p.dim() == 1],
    ],
}
