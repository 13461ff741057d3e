"""Put measured numbers into a page: the role `result` and the directive `result-table`.

The number stands in a committed file `book/results/FILE.json`; the page says only where:

    LoRA reaches {result}`quality methods.lora.accuracy.mean percent`.

    ```{result-table} quality methods
    :columns: title|method, accuracy.mean|accuracy|percent, trainable|trained|int
    :caption: The same for all methods.
    ```

A format is `percent` (0.963 → 96.3%), `percent2` (two decimals), `points` (a difference, −0.013 → −1.3), `points2`,
`int` (74,498) or a number format of Python (`.3f`,
`g`). Texts and whole numbers need none. A wrong file, path or format is a warning with the page and the line, so a
build with `-W` fails. The page depends on the file: it is built again when the number changes.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective, SphinxRole

LOGGER = logging.getLogger(__name__)


class ResultError(ValueError):
    """A page asks for a result that is not there, or for a format that does not fit."""


class scoped_header(nodes.entry):  # noqa: N801  (docutils names its nodes so)
    """A header cell that says whether it heads a column or a row, for people who listen to a table."""


def read(env: BuildEnvironment, name: str, path: str) -> Any:
    """The value at a dotted path (a list by index; "" is all) of a result file; the page now depends on it."""
    folder = Path(env.srcdir) / env.config.results_folder
    file = folder / f"{name}.json"
    env.note_dependency(__file__)
    env.note_dependency(str(file))
    if not file.is_file():
        existing = ", ".join(sorted(other.stem for other in folder.glob("*.json"))) or "none"
        raise ResultError(f"there is no result file {name!r} in {env.config.results_folder}; there are: {existing}")
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except json.JSONDecodeError as error:
        raise ResultError(f"{name}.json is not JSON: {error}") from error
    return follow(content, path, name)


def follow(content: Any, path: str, name: str) -> Any:
    """Walk down a dotted path; the error says which step failed and what stands there."""
    for step in path.split(".") if path else []:
        if isinstance(content, dict) and step in content:
            content = content[step]
        elif isinstance(content, list) and step.isdigit() and int(step) < len(content):
            content = content[int(step)]
        else:
            here = f"keys {', '.join(content)}" if isinstance(content, dict) else type(content).__name__
            if isinstance(content, list):
                here = f"a list of {len(content)}"
            raise ResultError(f"{name}.json has no {path!r}: {step!r} is not in {here}")
    return content


def shown(value: Any, form: str = "") -> str:
    """A value as the reader sees it; `form` as in the module's docstring."""
    if not form and isinstance(value, str):
        return value
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ResultError(f"{value!r} is not a number" if form else f"{value!r} is neither a number nor a text")
    if not form and isinstance(value, float):
        raise ResultError(f"{value!r} needs a format, like percent or .2f")
    if match := re.fullmatch(r"percent(\d?)", form):
        digits = int(match[1] or 1)
        if 0 < value < 0.5 * 10.0 ** -(digits + 2):  # 770 of 22,713,986 are few, and not none
            return f"<{10.0**-digits:.{digits}f}%"
        return f"{100 * value:.{digits}f}%"
    if match := re.fullmatch(r"points(\d?)", form):
        return f"{100 * value:.{int(match[1] or 1)}f}".replace("-", "−")
    if form in ("", "int"):
        if value != round(value):
            raise ResultError(f"{value!r} is not a whole number")
        return f"{value:,.0f}"
    try:
        return re.sub(r"e([+-])0+(?=\d)", r"e\1", format(value, form))
    except ValueError as error:
        raise ResultError(f"unknown format {form!r}; use percent, percent2, points, int, or one like .2f") from error


class ResultRole(SphinxRole):
    """A number in running text: FILE PATH [FORMAT]."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Return the number as plain text."""
        try:
            parts = self.text.split()
            if len(parts) not in (2, 3):
                raise ResultError(f"write FILE PATH FORMAT, not {self.text!r}")
            text = shown(read(self.env, parts[0], parts[1]), *parts[2:])
        except ResultError as error:
            LOGGER.warning("result: %s", error, location=self.get_location())
            text = "??"
        return [nodes.Text(text)], []


class ResultTable(SphinxDirective):
    """A table of rows from a result file: FILE PATH, where the path leads to a list or a dict of rows.

    The option `rows` names the keys of a dict whose rows are shown, in this order; without it all are shown.
    """

    required_arguments = 2
    option_spec: ClassVar[dict[str, Any]] = {
        "columns": directives.unchanged_required,
        "rows": directives.unchanged_required,
        "caption": directives.unchanged_required,
        "name": directives.unchanged,
    }

    def run(self) -> list[nodes.Node]:
        """Build the table."""
        try:
            return [self._table()]
        except ResultError as error:
            LOGGER.warning("result-table: %s", error, location=self.get_location())
            return []

    def _table(self) -> nodes.table:
        name, path = self.arguments
        if missing := {"columns", "caption"} - set(self.options):
            raise ResultError(f"the option {', '.join(sorted(missing))} is missing")
        rows = read(self.env, name, path)
        if keys := [key.strip() for key in self.options.get("rows", "").split(",") if key.strip()]:
            rows = [follow(rows, key, f"{path} in {name}") for key in keys]
        rows = list(rows.values()) if isinstance(rows, dict) else rows
        if not isinstance(rows, list) or not rows:
            raise ResultError(f"{path!r} in {name}.json is no list or dict of rows, or it is empty")
        columns = [
            column.strip().split("|") for column in re.split(r"[,\n]", self.options["columns"]) if column.strip()
        ]
        if wrong := ["|".join(column) for column in columns if len(column) not in (2, 3)]:
            raise ResultError(f"write each column as key|Heading|format, not {', '.join(wrong)}")

        numbers = [False, *(len(column) == 3 for column in columns[1:])]  # the first column names the row
        cells = [
            [[nodes.Text(shown(follow(row, key, f"a row of {path} in {name}"), *form))] for key, _, *form in columns]
            for row in rows
        ]
        caption, messages = self.state.inline_text(self.options["caption"], self.lineno)
        made = table([*caption, *messages], [column[1] for column in columns], cells, numbers)
        self.set_source_info(made)
        self.add_name(made)
        return made


def table(
    caption: list[nodes.Node], headings: list[str], rows: list[list[list[nodes.Node]]], numbers: list[bool]
) -> nodes.table:
    """A table with header cells in both directions: the first cell of a row names it.

    Args:
        caption: what stands above it.
        headings: of the columns.
        rows: of cells, each a list of nodes.
        numbers: which columns stand at the right.
    """

    def row(cells: list[list[nodes.Node]], head: bool) -> nodes.row:
        line = nodes.row()
        for i, (cell, number) in enumerate(zip(cells, numbers, strict=True)):
            scope = "col" if head else "row" if i == 0 else ""
            classes = ["text-right"] if number else []
            paragraph = nodes.paragraph("", "", *cell)
            line += (
                scoped_header("", paragraph, classes=classes, scope=scope)
                if scope
                else nodes.entry("", paragraph, classes=classes)
            )
        return line

    group = nodes.tgroup("", *(nodes.colspec(colwidth=1) for _ in headings), cols=len(headings))
    group += nodes.thead("", row([[nodes.Text(heading)] for heading in headings], head=True))
    group += nodes.tbody("", *(row(cells, head=False) for cells in rows))
    return nodes.table("", nodes.title("", "", *caption), group, classes=["result-table"])


def _visit_header(self: Any, node: scoped_header) -> None:
    self.body.append(self.starttag(node, "th", "", scope=node["scope"]))


def _depart_header(self: Any, node: scoped_header) -> None:
    self.body.append("</th>\n")


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the role, the directive and the folder of the result files (relative to the source folder)."""
    app.add_config_value("results_folder", "book/results", "env")
    app.add_node(scoped_header, html=(_visit_header, _depart_header))
    app.add_role("result", ResultRole())
    app.add_directive("result-table", ResultTable)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
