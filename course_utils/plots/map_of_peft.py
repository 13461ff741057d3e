"""Figures of the chapter that maps the methods."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from course_utils.evaluation import results
from course_utils.plots.style import COLOURS, Picture, make_axes, percent_axis
from course_utils.training.memory import MEMORY_METHODS, SHAPES, training_memory

#: family → keys of the study's methods, in the order of the chapters
FAMILIES: dict[str, tuple[str, ...]] = {
    "for comparison": ("full", "head_only"),
    "selective": ("last_layers", "bitfit"),
    "additive: layers and vectors": ("houlsby", "pfeiffer", "parallel", "ia3"),
    "additive: soft prompts": ("prompt", "p_tuning", "prefix", "p_tuning_v2"),
    "reparameterised": ("lora", "lora_all", "lora_plus", "pissa", "adalora", "dora", "vera", "qlora"),
}


def families() -> Picture:
    """The study's methods by family: how much each trains, beside its test accuracy with the 95% interval."""
    quality = results.read("quality")
    methods = quality["methods"]
    rows = [(family, methods[key]) for family, keys in FAMILIES.items() for key in keys if key in methods]
    figure, (left, right) = make_axes(9.0, 0.3 * len(rows) + 1.6, columns=2)
    styles = dict(zip(FAMILIES, zip(("#000000", *COLOURS), "xs^vo", strict=False), strict=True))
    said: dict[str, list[str]] = {}
    for height, (family, row) in enumerate(rows):
        colour, marker = styles[family]
        accuracy, style = row["accuracy"], {"color": colour, "marker": marker, "markersize": 7, "linestyle": "none"}
        left.plot(row["trainable"], height, label="" if family in said else family, **style)
        spans = [[accuracy["mean"] - accuracy["low"]], [accuracy["high"] - accuracy["mean"]]]
        right.errorbar(accuracy["mean"], height, xerr=spans, capsize=3, **style)
        text = f"{row['title']} {row['trainable']:,} and {accuracy['mean']:.1%}"
        said.setdefault(family, []).append(text)
    for axes in (left, right):
        axes.set_yticks(range(len(rows)), [row["title"] for _, row in rows] if axes is left else [])
        axes.set_ylim(len(rows) - 0.4, -0.6)
    left.set(xscale="log", xlabel="trained parameters, head included")
    right.set(xlabel="test accuracy")
    percent_axis(right, "x")
    majority = quality["baselines"]["majority"]
    right.axvline(majority, color="grey", linestyle="--")
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=3, fontsize=9)
    listed = ". ".join(f"{family}: {'; '.join(texts)}" for family, texts in said.items())
    return Picture(
        figure,
        "Two dot charts with one row a method, grouped by family: trained parameters, and test accuracy. "
        f"{listed}. A dashed line marks the majority class at {majority:.1%}.",
    )


def memory_by_method(methods: Sequence[str] = ("full", "lora-all", "lora-qv", "ia3")) -> Picture:
    """Weights, gradients, Adam's state and activations by the course's rule, for a small model and for a large one."""
    settings = {
        "MiniLM, 32 texts of 128 tokens, 32 bits": ("minilm", {"precision": "float32", "batch": 32, "length": 128}),
        "Llama 2 7B, 1 text of 512 tokens, 16 bits": ("llama-2-7b", {"precision": "mixed", "batch": 1, "length": 512}),
    }
    figure, both = make_axes(9.0, 3.2, columns=2)
    said = []
    for axes, (title, (shape, chosen)) in zip(both, settings.items(), strict=True):
        bars = {MEMORY_METHODS[method]: _parts(shape, method, chosen) for method in methods}
        left = [0.0] * len(bars)
        for colour, part in zip(COLOURS, next(iter(bars.values())), strict=False):
            sizes = [parts[part] for parts in bars.values()]
            axes.barh(list(bars), sizes, left=left, color=colour, label=part)
            left = [a + b for a, b in zip(left, sizes, strict=True)]
        axes.set(xlabel="GB", xlim=(0, 1.05 * max(left)))
        axes.set_title(title, fontsize=10)
        axes.invert_yaxis()
        axes.grid(axis="y", visible=False)
        each = (
            f"{name} " + ", ".join(f"{part} {size:.3g}" for part, size in parts.items()) for name, parts in bars.items()
        )
        said.append(f"{title}, in GB: {'; '.join(each)}.")
    both[1].set_yticklabels([])
    figure.legend(*both[0].get_legend_handles_labels(), loc="outside upper center", ncols=4, fontsize=9)
    return Picture(figure, f"Two charts of stacked bars, memory of training by method. {' '.join(said)}")


def _parts(shape: str, method: str, settings: Mapping[str, object]) -> dict[str, float]:
    """GB by what they hold."""
    memory = training_memory(SHAPES[shape], method, **settings)  # type: ignore[arg-type]
    return {
        "weights": memory.weights / 1e9,
        "gradients": memory.gradients / 1e9,
        "Adam's state": memory.optimizer / 1e9,
        "activations": memory.activations / 1e9,
    }
