"""Figures of the case study."""

from __future__ import annotations

from course_utils.data.ratings import DOMAINS
from course_utils.evaluation import results
from course_utils.plots.evaluation import reliability_diagram
from course_utils.plots.style import COLOURS, Picture, make_axes, percent_axis

_MODELS = {"lora": ("LoRA, mean of three seeds", "o"), "full": ("full fine-tuning, one seed", "s")}
_BASELINES = {"words": ("word counts", "^"), "lexicon": ("list of words", "v")}


def search() -> Picture:
    """Validation loss of each trial after each epoch; trials that were stopped early end sooner."""
    stored = results.read("case_study")["search"]
    figure, axes = make_axes(6.6, 4.0)
    said = []
    best = min(stored["trials"], key=lambda row: row["losses"][-1] if row["state"] == "finished" else float("inf"))
    for row in stored["trials"]:
        finished, first = row["state"] == "finished", row["number"] == 0
        colour = COLOURS[1] if first else COLOURS[0] if finished else "grey"
        width = 2.6 if row is best else 1.2
        style = {"color": colour, "linewidth": width, "linestyle": "-" if finished else "--"}
        axes.plot(range(1, row["epochs"] + 1), row["losses"], "o", markersize=4, **style)
        settings = f"rank {row['rank']}, learning rate {row['learning_rate']:.2g}"
        said.append(f"trial {row['number']} ({settings}) {row['state']} at {row['losses'][-1]:.3f}")
    axes.plot([], [], color=COLOURS[1], label="the known setting, trial 0")
    axes.plot([], [], color=COLOURS[0], label="other trials; thick: the best")
    axes.plot([], [], color="grey", linestyle="--", marker="o", markersize=4, label="stopped early")
    axes.set(xlabel="epoch", ylabel="validation loss", xticks=range(1, stored["epochs"] + 1), ylim=(0, None))
    axes.legend(fontsize=9)
    return Picture(figure, f"Validation loss of each trial by epoch: {'; '.join(said)}.")


def slices() -> Picture:
    """Accuracy on each slice with its 95% interval for LoRA, and without for the others."""
    rows = [row for row in results.read("case_study")["test"]["slices"] if row["n"]]
    figure, axes = make_axes(7.6, 0.42 * len(rows) + 1.5)
    places = range(len(rows), 0, -1)
    for colour, (name, (title, marker)) in zip(COLOURS, {**_MODELS, **_BASELINES}.items(), strict=False):
        values = [row[name]["accuracy"] for row in rows]
        if name == "lora":
            axes.hlines(places, [row[name]["low"] for row in rows], [row[name]["high"] for row in rows], color=colour)
        axes.plot(values, places, marker, color=colour, label=title, markersize=7, alpha=0.9)
    axes.axvline(rows[0]["lora"]["accuracy"], color="grey", linestyle="--", linewidth=1)
    axes.set(xlabel="test accuracy", xlim=(-0.03, 1.03))
    axes.set_yticks(list(places), [f"{row['title']} ({row['n']})" for row in rows])
    percent_axis(axes, "x")
    figure.legend(fontsize=9, loc="outside lower center", ncols=2, frameon=False)
    said = "; ".join(
        f"{row['title']} ({row['n']} texts) LoRA {row['lora']['accuracy']:.1%}, {row['lora']['low']:.1%} to "
        f"{row['lora']['high']:.1%}, full {row['full']['accuracy']:.1%}, word counts {row['words']['accuracy']:.1%}, "
        f"list of words {row['lexicon']['accuracy']:.1%}"
        for row in rows
    )
    return Picture(figure, f"Dot chart of test accuracy by slice: {said}.")


def transfer() -> Picture:
    """Accuracy of the models of the tweets on the four domains; the bar is the larger class of each."""
    rows = {row["domain"]: row for row in results.read("case_study")["transfer"]["domains"]}
    figure, axes = make_axes(7.0, 3.9)
    said = []
    for place, domain in enumerate(DOMAINS):
        axes.hlines(rows[domain]["majority"], place - 0.35, place + 0.35, color="grey", linestyle="--")
    names = {"lora": ("LoRA", "o"), "full": ("full fine-tuning", "s"), **_BASELINES}
    for step, (colour, (name, (title, marker))) in enumerate(zip(COLOURS, names.items(), strict=False)):
        for place, domain in enumerate(DOMAINS):
            row = rows[domain][name]
            x, label = place + 0.14 * (step - 1.5), title if place == 0 else None
            axes.vlines(x, row["low"], row["high"], color=colour)
            axes.plot(x, row["accuracy"], marker, color=colour, label=label, markersize=7)
        said.append(f"{title}: " + ", ".join(f"{domain} {rows[domain][name]['accuracy']:.1%}" for domain in DOMAINS))
    axes.plot([], [], color="grey", linestyle="--", label="the larger class")
    axes.set(ylabel="accuracy", ylim=(0.4, 1.0))
    axes.set_xticks(range(len(DOMAINS)), [f"{domain} ({rows[domain]['n']})" for domain in DOMAINS])
    percent_axis(axes)
    figure.legend(fontsize=9, loc="outside lower center", ncols=5, frameon=False)
    return Picture(figure, f"Accuracy on the test texts of four domains, trained on tweets. {'. '.join(said)}.")


def calibration() -> Picture:
    """The chosen model's reliability diagram, before and after temperature scaling."""
    stored = results.read("case_study")["test"]["calibration"]
    return reliability_diagram(
        {
            "LoRA as trained": stored["before"]["bins"],
            f"divided by T = {stored['temperature']:.2f}": stored["after"]["bins"],
        }
    )
