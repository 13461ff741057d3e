"""Figures of the chapter on serving."""

from __future__ import annotations

from course_utils.evaluation import results
from course_utils.plots.style import COLOURS, Picture, make_axes


def forms() -> Picture:
    """The time of each form of the model as a multiple of the base's, for one text and for a batch."""
    stored = results.read("serving")["forms"]
    rows = [row for name, row in stored.items() if name != "base"][::-1]
    figure, axes = make_axes(7.4, 0.6 * len(rows) + 1.5)
    for offset, (key, label) in enumerate((("single", "one tweet"), ("many", "a batch of 32"))):
        places = [place + 0.19 - 0.38 * offset for place in range(len(rows))]
        drawn = axes.barh(places, [row[f"{key}_ratio"] for row in rows], 0.36, color=COLOURS[offset], label=label)
        axes.bar_label(drawn, [f"{row[f'{key}_ratio']:.2f}" for row in rows], fontsize=9, padding=3)
    axes.axvline(1, color="black", linestyle="--", label="the base alone")
    axes.set_yticks(range(len(rows)), [row["title"] for row in rows])
    axes.set(xlabel="time, as a multiple of the base's", xlim=(0, 2.3))
    axes.grid(axis="y", visible=False)
    axes.legend(fontsize=9, loc="lower center", bbox_to_anchor=(0.4, 1), ncols=3)
    said = "; ".join(
        f"{row['title']} {row['single_ratio']:.2f} for one tweet and {row['many_ratio']:.2f} for a batch"
        for row in rows[::-1]
    )
    return Picture(figure, f"Bar chart of the time beside that of the base alone. {said}.")


def requests() -> Picture:
    """The latency of single tweets against their length, with the mean and two percentiles."""
    stored = results.read("serving")["requests"]
    figure, axes = make_axes(7.0, 3.8)
    axes.plot(stored["tokens"], stored["ms"], "o", color=COLOURS[0], alpha=0.4, markersize=4, label="a tweet")
    for place, (key, label) in enumerate((("p50", "50%"), ("p95", "95%"), ("p99", "99%")), start=1):
        axes.axhline(stored[key], color=COLOURS[place], label=f"{label} are below {stored[key]:.1f} ms")
    axes.set(xlabel="tokens", ylabel="milliseconds", ylim=(0, None))
    axes.legend(fontsize=9, loc="lower right")
    return Picture(
        figure,
        f"Scatter plot of {stored['n']} single tweets: the time grows with the number of tokens, from "
        f"{min(stored['ms']):.1f} to {max(stored['ms']):.1f} ms. Half are below {stored['p50']:.1f} ms, 95% below "
        f"{stored['p95']:.1f} ms, 99% below {stored['p99']:.1f} ms.",
    )


def batches() -> Picture:
    """How long a batch takes, and how many texts a second come out, against the size of the batch."""
    rows = results.read("serving")["batches"]
    sizes = [row["size"] for row in rows]
    figure, (left, right) = make_axes(9.0, 3.6, columns=2)
    left.plot(sizes, [row["ms"] for row in rows], "o-", color=COLOURS[1])
    right.plot(sizes, [row["per_second"] for row in rows], "o-", color=COLOURS[0])
    left.set(ylabel="milliseconds until the batch is done", ylim=(0, None))
    right.set(ylabel="texts a second", ylim=(0, None))
    for axes in (left, right):
        axes.set_xscale("log", base=2)
        axes.set_xticks(sizes, [str(size) for size in sizes])
        axes.set_xlabel("texts in a batch")
    said = "; ".join(f"{row['size']}: {row['ms']:.0f} ms, {row['per_second']:.0f} texts a second" for row in rows)
    return Picture(figure, f"Two line charts by the size of a batch, latency and throughput. {said}.")


def mixed() -> Picture:
    """The time of one batch against the number of different adapters in it, for three ways and for a merged model."""
    stored = results.read("serving")["mixed"]
    titles = {
        "groups": "switch, one adapter after the other",
        "peft": "peft, adapter_names",
        "ours": "gathered (ours)",
        "merged": "one merged model, one task only",
    }
    figure, axes = make_axes(7.2, 3.9)
    numbers = [row["adapters"] for row in stored["rows"]]
    said = []
    for place, (key, title) in enumerate(titles.items()):
        values = [row[f"{key}_ms"] for row in stored["rows"]]
        style = "--" if key == "merged" else "o-"
        axes.plot(numbers, values, style, color=COLOURS[place], label=title)
        said.append(f"{title} from {values[0]:.0f} to {values[-1]:.0f} ms")
    axes.set_xscale("log", base=2)
    axes.set_xticks(numbers, [str(number) for number in numbers])
    axes.set(xlabel=f"different adapters in a batch of {stored['texts']} tweets", ylabel="milliseconds", ylim=(0, None))
    axes.legend(fontsize=9, loc="upper left")
    return Picture(figure, f"Line chart by the number of adapters in a batch, 1 to {numbers[-1]}. {'; '.join(said)}.")
