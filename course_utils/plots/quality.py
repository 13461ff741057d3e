"""Figures of the study: what the methods reach on the tweets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from course_utils.evaluation import results
from course_utils.evaluation.many_methods import front
from course_utils.plots.map_of_peft import FAMILIES
from course_utils.plots.style import COLOURS, Picture, bars, make_axes, percent_axis


def ways_to_a_classifier() -> Picture:
    """The study's test accuracies: baselines, from scratch, head only, LoRA and full fine-tuning."""
    quality = results.read("quality")
    values = {
        "always the majority class": quality["baselines"]["majority"],
        "from scratch": quality["methods"]["scratch"]["accuracy"]["mean"],
        "head only (feature extraction)": quality["methods"]["head_only"]["accuracy"]["mean"],
        "word counts (TF-IDF)": quality["baselines"]["tfidf"],
        "LoRA (PEFT)": quality["methods"]["lora"]["accuracy"]["mean"],
        "full fine-tuning": quality["methods"]["full"]["accuracy"]["mean"],
    }
    return bars(values, "test accuracy on the tweets", quality["baselines"]["majority"])


def accuracy_against_parameters(keys: Sequence[str], *, floor: str = "majority") -> Picture:
    """Test accuracy with its 95% interval against the number of trained parameters, for a few methods.

    Args:
        keys: methods of the study.
        floor: the dashed line: "majority" for the majority class, or a method of the study.
    """
    quality = results.read("quality")
    figure, axes = make_axes(6.8, 4.0)
    said = []
    for colour, marker, key in zip(COLOURS, "so^DvPX", keys, strict=False):
        row = quality["methods"][key]
        mean, low, high = (row["accuracy"][part] for part in ("mean", "low", "high"))
        spans = [[mean - low], [high - mean]]
        style = {"fmt": marker, "markersize": 8, "capsize": 4, "color": colour, "label": row["title"]}
        axes.errorbar(row["trainable"], mean, yerr=spans, **style)
        said.append(f"{row['title']} {mean:.1%} ({low:.1%} to {high:.1%}) with {row['trainable']:,}")
    if floor == "majority":
        title, height = "majority class", quality["baselines"]["majority"]
    else:
        title, height = quality["methods"][floor]["title"], quality["methods"][floor]["accuracy"]["mean"]
    axes.axhline(height, color="grey", linestyle="--", label=title)
    axes.set(xscale="log", xlabel="trained parameters, head included", ylabel="test accuracy")
    percent_axis(axes)
    axes.legend(fontsize=9, loc="center right")
    return Picture(
        figure,
        f"Scatter chart of test accuracy, with its 95% interval, against trained parameters: {'; '.join(said)}. "
        f"Dashed: {title}, {height:.1%}.",
    )


def losses_by_rate(keys: Sequence[str]) -> Picture:
    """Validation loss of each run at each learning rate: one dot a seed, a line through their means.

    Args:
        keys: methods of the large study.
    """
    quality = results.read("quality")
    figure, axes = make_axes(6.6, 3.8)
    said = []
    for colour, marker, key in zip(COLOURS, "so^Dv", keys, strict=False):
        losses: dict[float, list[float]] = {}
        for run in quality["runs"]:
            if run["method"] == key:
                losses.setdefault(run["learning_rate"], []).append(run["validation_loss"])
        title, tried = quality["methods"][key]["title"], sorted(losses)
        axes.plot(tried, [sum(losses[rate]) / len(losses[rate]) for rate in tried], color=colour)
        for rate in tried:
            axes.plot([rate] * len(losses[rate]), losses[rate], marker, color=colour, alpha=0.7)
        axes.plot([], [], marker, ls="-", color=colour, label=title)
        each = (f"{', '.join(f'{loss:.3f}' for loss in sorted(losses[rate]))} at {rate:g}" for rate in tried)
        said.append(f"{title}: {'; '.join(each)}")
    axes.set(xscale="log", xlabel="learning rate", ylabel="validation loss", ylim=(0, None))
    axes.legend(fontsize=9)
    return Picture(figure, f"Chart of validation loss against learning rate, one dot a seed. {'. '.join(said)}.")


def seeds(keys: Sequence[str]) -> Picture:
    """Test accuracy of each seed, and of their mean, for a few methods of the study."""
    quality = results.read("quality")
    figure, axes = make_axes(6.8, 0.45 * len(keys) + 1.3)
    said = []
    for place, key in enumerate(reversed(keys)):
        row = quality["methods"][key]
        mean, accuracies = row["accuracy"]["mean"], row["seeds"]
        axes.plot(accuracies, [place] * len(accuracies), "o", color=COLOURS[0], alpha=0.7)
        axes.plot([mean, mean], [place - 0.3, place + 0.3], color=COLOURS[1], linewidth=2)
        each = ", ".join(f"{accuracy:.1%}" for accuracy in accuracies)
        said.append(f"{row['title']}: {each}, mean {mean:.1%}")
    majority = quality["baselines"]["majority"]
    axes.axvline(majority, color="grey", linestyle="--", label=f"majority class {majority:.1%}")
    axes.plot([], [], "o", color=COLOURS[0], label="one seed")
    axes.plot([], [], color=COLOURS[1], label="mean")
    axes.set(xlabel="test accuracy", xlim=(majority - 0.02, 1.0))
    axes.set_yticks(range(len(keys)), [quality["methods"][key]["title"] for key in reversed(keys)])
    percent_axis(axes, "x")
    figure.legend(fontsize=9, loc="outside lower center", ncols=3, frameon=False)
    said.reverse()
    return Picture(figure, f"Dots for the seeds and a line for their mean. {'; '.join(said)}. Dashed: {majority:.1%}.")


def accuracy_against_prices(
    methods: Mapping[str, Mapping[str, Any]], prices: Mapping[str, Mapping[str, float]]
) -> Picture:
    """Test accuracy of all methods against two prices, with the line of those that no other method beats.

    Beaten methods are pale. A method that belongs to no family of the book is shown as a new one.

    Args:
        methods: rows of the study; from scratch is left out.
        prices: label of an axis → method → price; a method without a price is not drawn on that side.
    """
    families = {key: family for family, keys in FAMILIES.items() for key in keys}
    shown = {key: families.get(key, _NEW) for key in methods if key != "scratch"}
    figure, both = make_axes(9.6, 5.0, columns=len(prices))
    said = []
    for axes, (label, price) in zip(both, prices.items(), strict=True):
        said.append(f"accuracy against {label}; {_scatter(axes, methods, price, shown)}")
        drawn = [cost for key, cost in price.items() if key in shown]
        axes.set(xscale="log" if max(drawn) > 20 * min(drawn) else "linear", xlabel=label)
        axes.margins(x=0.14)
        percent_axis(axes)
    best = max((methods[key] for key in shown), key=lambda row: row["accuracy"]["mean"])
    low, high = best["accuracy"]["low"], best["accuracy"]["high"]
    for axes in both:
        axes.axhspan(low, high, color="grey", alpha=0.15, linewidth=0, label="95% interval of the best")
        axes.set_ylim(min(methods[key]["accuracy"]["mean"] for key in shown) - 0.02, high + 0.01)
    both[0].set_ylabel(f"test accuracy, mean of {len(best['seeds'])} seeds")
    for family, (colour, marker) in _STYLES.items():
        if family in shown.values():
            both[0].plot([], [], marker, color=colour, label=family)
    figure.legend(*both[0].get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=9)
    return Picture(
        figure,
        f"Two scatter charts. Test {said[0]}. Test {said[1]}. "
        f"A band marks the 95% interval of {best['title']}, {low:.1%} to {high:.1%}.",
    )


def _scatter(
    axes: Any, methods: Mapping[str, Mapping[str, Any]], price: Mapping[str, float], families: Mapping[str, str]
) -> str:
    """Draw the methods and the line of the unbeaten ones; the sentence for the alternative text."""
    points = {key: (float(methods[key]["accuracy"]["mean"]), float(price[key])) for key in families if key in price}
    unbeaten = front(points)
    for key, (accuracy, cost) in points.items():
        colour, marker = _STYLES[families[key]]
        axes.plot(cost, accuracy, marker, color=colour, markersize=8, alpha=1 if key in unbeaten else 0.45)
    axes.step([points[key][1] for key in unbeaten], [points[key][0] for key in unbeaten], where="post", **_LINE)
    for number, key in enumerate(unbeaten, start=1):
        accuracy, cost = points[key]
        # Numbers stand above and below in turn, because the best methods lie close together.
        offset = (0, 8) if number % 2 else (0, -16)
        axes.annotate(str(number), (cost, accuracy), offset, textcoords="offset points", fontsize=9, ha="center")
    names = "\n".join(f"{number} {methods[key]['title']}" for number, key in enumerate(unbeaten, start=1))
    axes.text(0.98, 0.62, f"not beaten:\n{names}", transform=axes.transAxes, fontsize=9, ha="right", va="top")
    listed = ", ".join(f"{methods[key]['title']} ({points[key][0]:.1%}, {points[key][1]:,.0f})" for key in unbeaten)
    beaten = ", ".join(
        f"{methods[key]['title']} ({accuracy:.1%}, {cost:,.0f})"
        for key, (accuracy, cost) in points.items()
        if key not in unbeaten
    )
    return f"not beaten, from the cheapest on: {listed}; beaten: {beaten or 'none'}"


_NEW = "new"
_STYLES = dict(zip((*FAMILIES, _NEW), zip(("#000000", *COLOURS), "xs^voP", strict=False), strict=True))
_LINE: dict[str, Any] = {"color": "grey", "linestyle": "--", "linewidth": 1, "label": "joins what no other beats"}
