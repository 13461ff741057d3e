"""Figures that a reader can change: the directives `memory-calculator` and `rank-explorer`, without arguments.

All they know stands in the page: the shapes of `course_utils.memory` and the rows of `book/results/ranks.json` as JSON,
a few lines of script, and a table that says the same to whoever reads without scripts or on paper. Nothing is loaded,
so the page works from a folder. A test moves the sliders and compares with `course_utils.memory.training_memory`.
"""

from __future__ import annotations

import html
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

TEMPLATES = Path(__file__).parent
#: The rows of the table that needs no script: model, method, precision, batch, length, rank.
_ROWS = [
    ("minilm", "full", "float32", 32, 32, 8),
    ("minilm", "lora-qv", "float32", 32, 32, 8),
    ("bert-base", "full", "float32", 32, 128, 8),
    ("bert-base", "lora-qv", "float32", 32, 128, 8),
    ("llama-2-7b", "full", "mixed", 1, 512, 8),
    ("llama-2-7b", "lora-qv", "mixed", 1, 512, 8),
    ("llama-2-7b", "lora-all", "nf4", 1, 512, 8),
    ("llama-2-70b", "lora-all", "nf4", 1, 512, 8),
]


def _options(names: dict[str, str], chosen: str) -> str:
    return "".join(
        f'<option value="{key}"{" selected" if key == chosen else ""}>{html.escape(name)}</option>'
        for key, name in names.items()
    )


def shown(bytes_: float) -> str:
    """As the script writes it: three significant digits in GB or MB of a thousand each."""
    for unit, size in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if bytes_ >= size:
            value = bytes_ / size
            return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f} {unit}"
    return f"{bytes_:.0f} bytes"


class MemoryCalculator(SphinxDirective):
    """Memory by model, method, precision, batch, length and rank."""

    def run(self) -> list[nodes.Node]:
        """Fill the template."""
        from course_utils.training import memory

        rows = []
        for model, method, precision, batch, length, rank in _ROWS:
            got = memory.training_memory(memory.SHAPES[model], method, precision, batch, length, rank)
            parts = (got.weights, got.gradients, got.optimizer, got.activations, got.total)
            cells = "".join(f'<td class="text-right">{shown(part)}</td>' for part in parts)
            what = f"{memory.SHAPES[model].title}, {memory.MEMORY_METHODS[method]}"
            how = f"{memory.PRECISIONS[precision].split(' (')[0]}, {batch} × {length} tokens"
            rows.append(f'<tr><th scope="row">{html.escape(what)}</th><td>{how}</td>{cells}</tr>')
        data = {
            "shapes": {key: {**asdict(shape), "keys": shape.keys} for key, shape in memory.SHAPES.items()},
            "nf4_bits": memory.NF4_BITS,
        }
        return _fill(
            self,
            "calculator_memory.html",
            [Path(memory.__file__)],
            DATA=json.dumps(data).replace("</", "<\\/"),
            MODELS=_options({key: shape.title for key, shape in memory.SHAPES.items()}, "minilm"),
            METHODS=_options(memory.MEMORY_METHODS, "lora-qv"),
            PRECISIONS=_options(memory.PRECISIONS, "float32"),
            ROWS="\n".join(rows),
        )


class RankExplorer(SphinxDirective):
    """LoRA's rank against trained numbers and measured accuracy."""

    def run(self) -> list[nodes.Node]:
        """Fill the template."""
        from course_utils.evaluation import results

        ranks = results.read("ranks")["rows"]
        rows = [
            f'<tr data-rank="{row["rank"]}"><th scope="row">{row["rank"]}</th>'
            f'<td class="text-right">{row["trainable"] - row["head"]:,}</td>'
            f'<td class="text-right">{(row["trainable"] - row["head"]) / row["total"]:.2%}</td>'
            f'<td class="text-right">{row["accuracy"]:.1%}</td>'
            f'<td class="text-right">{row["low"]:.1%} to {row["high"]:.1%}</td></tr>'
            for row in ranks
        ]
        middle = next((index for index, row in enumerate(ranks) if row["rank"] == 8), 0)
        file = results.FOLDER / "ranks.json"
        return _fill(
            self, "calculator_ranks.html", [file], ROWS="\n".join(rows), LAST=str(len(ranks) - 1), START=str(middle)
        )


def _fill(directive: SphinxDirective, template: str, sources: list[Path], **values: str) -> list[nodes.Node]:
    file = TEMPLATES / template
    for source in (file, Path(__file__), *sources):
        directive.env.note_dependency(str(source))
    text = file.read_text(encoding="utf-8")
    for key, value in values.items():
        text = text.replace("{{" + key + "}}", value)
    return [nodes.raw("", text, format="html")]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register both directives."""
    app.add_directive("memory-calculator", MemoryCalculator)
    app.add_directive("rank-explorer", RankExplorer)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
