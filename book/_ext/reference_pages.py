"""Tables of the reference pages, made from data: each grows by itself when something is measured.

`{learning-rates}`      the rates tried and chosen for each method of `quality.json`, beside published ones
                        (`book/data/learning_rates.yml`);
`{published-results}`   the rows of `book/data/published.yml`, one table for each setting, with ours beside them;
`{execution-times}`     the seconds of each notebook (`lab_seconds.json`), and their sum.

Whatever is wrong is a warning with the file or the page, so a build with `-W` fails. This module also puts the index
of terms below the last part of the contents, and says which terms of the glossary are Chinese.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from itertools import groupby
from pathlib import Path
from typing import Any, ClassVar

import yaml
from claims import Book, ClaimError, read_rows
from docutils import nodes
from results import ResultError, read, scoped_header, shown, table_cell
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

LOGGER = logging.getLogger(__name__)
REQUIRED = {"setting", "method", "value", "unit", "cite"}
ALLOWED = REQUIRED | {"trained", "ours", "note"}
UNKNOWN = "none noted"
INDEX = ("Index of terms", "genindex")


def published_rate(rates: dict[str, str], method: str) -> str:
    """What is noted for a method, or for its family: `lora_rank_64` belongs to `lora`, unless it has its own row."""
    steps = method.split("_")
    names = ("_".join(steps[:count]) for count in range(len(steps), 0, -1))
    return next((rates[name] for name in names if name in rates), UNKNOWN)


def chosen_and_tried(rate: float, tried: list[float]) -> tuple[str, str]:
    """The two cells of a method; a rate at the edge of what was tried is called so, for the best may lie beyond it."""
    tried = sorted({rate, *tried})
    edge = ""
    if len(tried) > 1 and rate in (tried[0], tried[-1]):
        edge = f" (the {'smallest' if rate == tried[0] else 'largest'} tried)"
    return shown(rate, "g") + edge, ", ".join(shown(value, "g") for value in tried)


def times(ratio: float) -> str:
    """A ratio in few digits."""
    return f"{ratio:,.0f}" if ratio >= 2 else f"{ratio:.2g}"


def settings(rows: list[dict[str, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The rows of each setting, in the order of the file.

    Raises:
        ClaimError: the rows of a setting do not stand together, or differ in unit or source.
    """
    seen = set()
    for setting, group in groupby(rows, key=lambda row: row["setting"]):
        members = list(group)
        if setting in seen:
            raise ClaimError(members[0]["line"], f"{setting!r} stands in two places")
        seen.add(setting)
        for field in ("unit", "cite", "note"):
            if len({row.get(field) for row in members}) > 1:
                raise ClaimError(members[0]["line"], f"the rows of {setting!r} differ in {field}")
        yield str(setting), members


def load_published(file: Path) -> list[dict[str, Any]]:
    """The rows of `published.yml`, each with its line.

    Raises:
        ClaimError: no YAML, a field is missing or unknown, or a setting is torn apart.
    """
    rows = read_rows(file, REQUIRED, ALLOWED)
    list(settings(rows))
    return rows


class _Table(SphinxDirective):
    """What the three have in common: reading with warnings, and a table with header cells for both directions."""

    data: ClassVar[tuple[str, ...]] = ()

    def run(self) -> list[nodes.Node]:
        """Show what there is; warn of what is wrong."""
        self.folder = Path(self.env.srcdir) / self.env.config.claims_folder
        for file in (Path(__file__), *(self.folder / name for name in self.data)):
            self.env.note_dependency(str(file))
        try:
            return self._show()
        except ResultError as error:
            LOGGER.warning("%s: %s", self.name, error, location=self.get_location())
        except ClaimError as error:
            where = (self.folder / self.data[0]).relative_to(self.env.srcdir).as_posix()
            LOGGER.warning("%s: %s", self.name, error, location=f"{where}:{error.line}")
        return []

    def _show(self) -> list[nodes.Node]:
        raise NotImplementedError

    def _inline(self, text: str) -> list[nodes.Node]:
        found, messages = self.state.inline_text(text, self.lineno)
        return [*found, *messages]

    def _table(self, caption: str, headings: list[str], rows: list[list[str]], numbers: set[int]) -> nodes.table:
        """A table of cells in Markdown; the first column names the rows, those in `numbers` stand at the right."""
        table = nodes.table("", nodes.title("", "", *self._inline(caption)), classes=["result-table"])
        group = nodes.tgroup("", *(nodes.colspec(colwidth=1) for _ in headings), cols=len(headings))
        table += group
        cells = (table_cell(text, scoped_header, i in numbers, scope="col") for i, text in enumerate(headings))
        group += nodes.thead("", nodes.row("", *cells))
        body = nodes.tbody()
        group += body
        for row in rows:
            line = nodes.row()
            for i, text in enumerate(row):
                cell = table_cell("", nodes.entry, i in numbers) if i else table_cell("", scoped_header, scope="row")
                cell[0] += self._inline(text)
                line += cell
            body += line
        self.set_source_info(table)
        return table


class LearningRates(_Table):
    """The rates of every method in `quality.json`."""

    data = ("learning_rates.yml",)

    def _show(self) -> list[nodes.Node]:
        methods, tried = read(self.env, "quality", "methods"), read(self.env, "quality", "rates")
        published = yaml.safe_load((self.folder / self.data[0]).read_text(encoding="utf-8"))
        full = methods.get("full", {}).get("learning_rate")
        rows = []
        for name, method in methods.items():
            rate = float(method["learning_rate"])
            chosen, all_tried = chosen_and_tried(rate, [float(run["learning_rate"]) for run in tried.get(name, [])])
            ratio = times(rate / full) if full else ""
            rows.append([method["title"], chosen, ratio, all_tried, published_rate(published, name)])
        headings = ["method", "chosen here", "times that of full fine-tuning", "tried here", "published, or a default"]
        caption = (
            "Learning rates. “Chosen here” is the one with the lowest validation loss (MiniLM, the tweets, Adam with "
            "weight decay, batches of 32). The last column is about other models and data."
        )
        return [self._table(caption, headings, rows, {2})]


class PublishedResults(_Table):
    """The published rows, one table for each setting."""

    data = ("published.yml",)

    def _show(self) -> list[nodes.Node]:
        ours = read(self.env, "quality", "methods")
        book = Book(self.folder)
        self.env.note_dependency(str(book.bibliography))
        shown_: list[nodes.Node] = []
        for setting, rows in settings(load_published(self.folder / self.data[0])):
            if rows[0]["cite"] not in book.works:
                unknown = f"{setting!r} cites {rows[0]['cite']}, which {book.bibliography.name} does not have"
                raise ClaimError(rows[0]["line"], unknown)
            trained, beside = (any(row.get(field) for row in rows) for field in ("trained", "ours"))
            headings = ["method", *["trained"] * trained, "published", *["ours, on the tweets"] * beside]
            cells = []
            for row in rows:
                line = [str(row["method"]), *[str(row.get("trained", ""))] * trained, str(row["value"])]
                if beside:
                    names = [name for name in row.get("ours", "").split() if name in ours]
                    line.append(shown(ours[names[0]]["accuracy"]["mean"], "percent") if names else "–")
                cells.append(line)
            note = f" {rows[0]['note']}" if rows[0].get("note") else ""
            caption = f"{setting}: {rows[0]['unit']} {{cite:p}}`{rows[0]['cite']}`.{note}"
            shown_.append(self._table(caption, headings, cells, set(range(1, len(headings)))))
        return shown_


class ExecutionTimes(_Table):
    """The seconds of each notebook; columns for a GPU only where one was measured."""

    data = ("chapters.yml",)

    def _show(self) -> list[nodes.Node]:
        titles = {stem: f"{one['number']}. {one['title']}" for stem, one in Book(self.folder).chapters.items()}
        content = read(self.env, "lab_seconds", "seconds")
        measured = {"": content}
        with suppress(ResultError):  # only where one was measured
            measured["GPU, "] = read(self.env, "lab_seconds", "gpu_seconds")
        labs = {file.stem for file in (Path(self.env.srcdir) / "labs").glob("[0-9]*.ipynb")}
        columns = [(where, kind) for where in measured for kind in ("lab", "solution")]
        rows, sums = [], [0.0] * len(columns)
        for stem in sorted({*content, *labs}):
            line = [titles.get(stem, stem)]
            for i, (where, kind) in enumerate(columns):
                seconds = measured[where].get(stem, {}).get(kind)
                sums[i] += seconds or 0
                text = f"{seconds:.0f} s" if seconds else "not measured"
                folder = "labs" if kind == "lab" else "solutions"
                linked = seconds and not where and f"{folder}/{stem}" in self.env.found_docs
                line.append(f"[{text}](/{folder}/{stem}.ipynb)" if linked else text)
            rows.append(line)
        rows.append(["all together", *(f"{total / 60:.1f} min" for total in sums)])
        headings = ["chapter", *(f"{where}{kind}" for where, kind in columns)]
        caption = "Seconds from an empty kernel to the last cell, the loading of the libraries included."
        return [self._table(caption, headings, rows, set(range(1, len(headings))))]


def link_the_index(app: Sphinx, doctree: nodes.document) -> None:
    """The contents' last part ends with the index of terms: `_toc.yml` may name only files."""
    if app.env.docname == app.config.root_doc and (trees := list(doctree.findall(addnodes.toctree))):
        trees[-1]["entries"].append(INDEX)


def mark_the_chinese(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """A voice that reads the glossary aloud changes the language for Chinese words: in its text, not in its tags."""
    if 'glossary"' in context.get("body", ""):
        context["body"] = re.sub(
            r"(<[^>]*>)|([\u4e00-\u9fff]+)",
            lambda match: match[1] or f'<span lang="zh-Hans">{match[2]}</span>',
            context["body"],
        )


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directives; before Sphinx collects the contents (priority 500), the index is put there."""
    app.setup_extension("claims")
    app.add_directive("learning-rates", LearningRates)
    app.add_directive("published-results", PublishedResults)
    app.add_directive("execution-times", ExecutionTimes)
    app.connect("doctree-read", link_the_index, priority=400)
    app.connect("html-page-context", mark_the_chinese)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
