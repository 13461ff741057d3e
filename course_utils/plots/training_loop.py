"""Figures of the chapter on the training loop."""

from __future__ import annotations

import torch

from course_utils.evaluation import results
from course_utils.plots.style import COLOURS, Picture, make_axes, percent_axis
from course_utils.training.config import TrainingConfig
from course_utils.training.schedule import learning_rates

#: Invented validation losses, one an epoch, for the scheduler that waits.
EXAMPLE_LOSSES = (0.60, 0.50, 0.42, 0.40, 0.41, 0.43, 0.42, 0.44, 0.43, 0.42, 0.43, 0.44)


def plateau_rates(losses: tuple[float, ...] = EXAMPLE_LOSSES, patience: int = 3) -> list[float]:
    """The share of the first learning rate with which torch's ReduceLROnPlateau runs each epoch."""
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, "min", patience=patience)
    rates = []
    for loss in losses:
        rates.append(float(optimizer.param_groups[0]["lr"]))
        scheduler.step(loss)
    return rates


def schedules(total: int = 30) -> Picture:
    """The course's two schedules by step, and ReduceLROnPlateau by epoch."""
    figure, (left, right) = make_axes(9.0, 3.6, columns=2)
    said = []
    for colour, name in zip(COLOURS, ("linear", "constant"), strict=False):
        rates = learning_rates(TrainingConfig(learning_rate=1e-4, schedule=name), total)
        left.plot(range(1, total + 1), rates, marker=".", color=colour, label=f"{name}, 10% warm-up")
        said.append(
            f"{name} starts at {rates[0]:g} in step 1, reaches {max(rates):g} in step {rates.index(max(rates)) + 1} "
            f"and ends at {rates[-1]:.2g} in step {total}"
        )
    left.set(xlabel="step", ylabel="learning rate")
    left.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    left.legend(fontsize=9, loc="lower center")
    rates = plateau_rates()
    epochs = list(range(1, len(rates) + 1))
    right.plot(epochs, EXAMPLE_LOSSES, marker="o", color=COLOURS[2], label="validation loss (invented)")
    right.step(epochs, rates, where="mid", color=COLOURS[1], label="rate, share of the first")
    right.set(xlabel="epoch", ylim=(0, 1.05), xticks=epochs)
    right.legend(fontsize=9)
    lowered = next(epoch for epoch, rate in zip(epochs, rates, strict=True) if rate < 1)
    return Picture(
        figure,
        f"Two line charts. Left, the learning rate by step: {'; '.join(said)}. Right, ReduceLROnPlateau with patience "
        f"3: the lowest loss is in epoch {EXAMPLE_LOSSES.index(min(EXAMPLE_LOSSES)) + 1}, and the rate stays as it was "
        f"until epoch {lowered}, where it falls to a tenth.",
    )


def recipes() -> Picture:
    """Validation accuracy after the last epoch by recipe, one dot a seed."""
    content = results.read("training")
    rows = list(content["recipes"].values())[::-1]
    figure, axes = make_axes(7.6, 0.5 * len(rows) + 1.3)
    for position, row in enumerate(rows):
        axes.plot(
            row["accuracy"]["seeds"], [position] * len(row["accuracy"]["seeds"]), "o", color=COLOURS[0], alpha=0.6
        )
        axes.plot(row["accuracy"]["mean"], position, "|", markersize=18, color=COLOURS[1])
    axes.set_yticks(range(len(rows)), [row["title"] for row in rows])
    axes.axvline(content["majority"], color="grey", linestyle="--", label="majority class")
    axes.set(xlabel="validation accuracy after two epochs", ylim=(-0.6, len(rows) - 0.4))
    percent_axis(axes, "x")
    axes.legend(loc="lower right", bbox_to_anchor=(1, 1), borderaxespad=0, fontsize=9)
    said = "; ".join(f"{row['title']}: mean {row['accuracy']['mean']:.1%}" for row in rows[::-1])
    return Picture(figure, f"Chart with one dot a seed and a mark at the mean. {said}.")


def overfitting() -> Picture:
    """Training and validation loss by step: 64 tweets again and again, and as many steps with new tweets."""
    content = results.read("training")["overfitting"]
    figure, axes = make_axes(9.0, 4.0, columns=2)
    rows = [content[key] for key in ("few", "few_lora")]
    highest = max(e[kind] for row in rows for e in row["evaluations"] for kind in ("loss", "train_loss"))
    said = []
    many = content["many"]
    for panel, row in zip(axes, rows, strict=True):
        epochs = [evaluation["epoch"] for evaluation in row["evaluations"]]
        panel.plot(epochs, [e["train_loss"] for e in row["evaluations"]], color=COLOURS[0], label="training loss")
        panel.plot(epochs, [e["loss"] for e in row["evaluations"]], color=COLOURS[1], label="validation loss")
        panel.plot(row["best_epoch"], row["best"]["loss"], "o", color=COLOURS[1], label="best epoch")
        panel.axhline(many["last"]["loss"], color=COLOURS[2], linestyle="--", label=f"validation, {many['title']}")
        panel.set(title=row["title"], xlabel="epoch", ylabel="loss", ylim=(0, 1.05 * highest))
        said.append(
            f"{row['title']}: the training loss falls to {row['last']['train_loss']:.3f}, the validation loss is "
            f"lowest, {row['best']['loss']:.3f}, in epoch {row['best_epoch']} and ends at {row['last']['loss']:.3f}"
        )
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=9)
    return Picture(
        figure,
        f"Two line charts of loss by epoch. {'. '.join(said)}. As many steps with {many['texts']:,} tweets, "
        f"each seen once, end at a validation loss of {many['last']['loss']:.3f}.",
    )
