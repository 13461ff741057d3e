"""Pages made from data: a page that holds Jinja (a line that begins with `{%`) is a template over `book/data/*.yml`.

`book/data/schema.yml` says what a data file holds. A template has

* `rows("claims")`: the content of a data file, without what is wrong in it;
* `result("quality", "methods")`: a value of a result file, and `shown(value, "percent")`: a number as a reader sees it;
* `link("09_lora#merging")`, or `link("09_lora#merging", "labs")`: a link that shows the heading; "" without a page;
* `{data-table}`: a table with a caption. Its body holds the headings and the rows, cells apart by ` | `.

Whatever is wrong in a data file is a warning with that file and the line of the row, so a build with `-W` fails. This
module also puts the index of terms below the last part of the contents, and marks the Chinese terms of the glossary.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import yaml
from docutils import nodes
from docutils.parsers.rst import directives
from jinja2 import Environment, FileSystemLoader, StrictUndefined, TemplateError
from jsonschema import Draft202012Validator
from jsonschema.exceptions import best_match
from results import ResultError, read, shown, table
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

LOGGER = logging.getLogger(__name__)
SCHEMA = Path(__file__).parents[1] / "data" / "schema.yml"
INDEX = ("Index of terms", "genindex")


class DataError(ValueError):
    """A data file, or a row in it, is not as it should be; `line` says where."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


class Row(dict[str, Any]):
    """A mapping of a data file; `line` is where it begins."""

    line = 1

    @property
    def name(self) -> str:
        """What an error calls it."""
        return str(next((self[key] for key in ("id", "file", "setting", "method") if key in self), "a row"))


class _Loader(yaml.SafeLoader):
    """Remembers the line of each mapping, and refuses a field that stands twice."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> Row:
    row = Row({str(name): value for name, value in loader.construct_mapping(node, deep=True).items()})
    row.line = node.start_mark.line + 1
    if double := [name for name, count in Counter(key.value for key, _ in node.value).items() if count > 1]:
        raise DataError(row.line, f"{', '.join(double)} stands twice in one row")
    return row


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def load(file: Path) -> Any:
    """The content of a data file, its mappings as `Row`.

    Raises:
        DataError: there is no such file, it is no YAML, or not what the schema describes.
    """
    try:
        content = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError as error:
        raise DataError(1, "there is no such file") from error
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line if error.problem_mark else 0
        raise DataError(line + 1, f"no YAML: {error.problem}") from error
    schema = yaml.safe_load(SCHEMA.read_text(encoding="utf-8"))
    wrong = best_match(Draft202012Validator({**schema, "$ref": f"#/$defs/{file.stem}"}).iter_errors(content))
    if wrong is not None:
        steps, place, row = list(wrong.absolute_path), content, Row()
        for step in [*steps, None]:
            row = place if isinstance(place, Row) else row
            place = place if step is None else place[step]
        field = f"{steps[-1]} " if steps and isinstance(steps[-1], str) else ""
        expected = f"; expected {wrong.schema['description']}" if "description" in wrong.schema else ""
        raise DataError(row.line, f"{row.name}: {field}{wrong.message}{expected}")
    seen: dict[str, int] = {}
    for row in content if isinstance(content, list) else []:
        if (line := seen.setdefault(row.name, row.line)) != row.line:
            raise DataError(row.line, f"{row.name} stands in line {line} already")
    return content


def problems(row: Row, chapters: set[str], works: set[str], value: Callable[..., Any]) -> Iterator[str]:
    """What is wrong with a row beyond the schema: chapters, works and numbers that do not exist."""
    text = " ".join(map(str, row.values()))
    for place in (row.get("home"), row.get("cell")):
        if place and place.partition("#")[0] not in chapters:
            yield f"{place} is in no chapter of chapters.yml; there are: {', '.join(sorted(chapters))}"
    keys = [key.strip() for group in re.findall(r"\{cite:\w+\}`([^`]*)`", text) for key in group.split(",")]
    if unknown := {*keys, row.get("cite", "")} - works - {""}:
        yield f"references.bib does not have {', '.join(sorted(unknown))}"
    for asked in re.findall(r"\{result\}`([^`]*)`", text):
        try:
            name, path, *form = asked.split()
            shown(value(name, path), *form)
        except ValueError as error:  # a ResultError, too
            yield str(error)


def published_rate(rates: dict[str, str], method: str) -> str:
    """What is noted for a method, or for its family: `lora_rank_64` belongs to `lora`, unless it has its own row."""
    steps = method.split("_")
    names = ("_".join(steps[:count]) for count in range(len(steps), 0, -1))
    return next((rates[name] for name in names if name in rates), "none noted")


def edge(rate: float, tried: list[float]) -> str:
    """A rate at the edge of what was tried is called so, for the best may lie beyond it."""
    ends = (min(tried, default=rate), max(tried, default=rate))
    return (
        "" if ends[0] == ends[1] or rate not in ends else f" (the {'smallest' if rate == ends[0] else 'largest'} tried)"
    )


def render(app: Sphinx, docname: str, content: list[str]) -> None:
    """Fill in the template that a page is."""
    if not re.search(r"^\{%", content[0], re.MULTILINE):
        return
    env, root = app.env, Path(app.srcdir)
    folder = root / "book" / "data"
    for used in (Path(__file__), SCHEMA, root / "_toc.yml"):
        env.note_dependency(str(used))

    def value(name: str, path: str = "") -> Any:
        return read(env, name, path)

    def rows(name: str) -> Any:
        env.note_dependency(str(folder / f"{name}.yml"))
        env.note_dependency(str(folder.parent / "references.bib"))
        found = _load(app, name)
        if not isinstance(found, list):
            return found or {}
        chapters = {row["file"] for row in _load(app, "chapters") or []}
        works = set(re.findall(r"^@\w+\{([^,\s]+),", _text(folder.parent / "references.bib"), re.MULTILINE))
        good = []
        for row in found:
            wrong = list(problems(row, chapters, works, value))
            for problem in wrong:
                _warn(name, row.line, f"{row.name}: {problem}")
            good += [] if wrong else [row]
        return good

    def link(place: str, kind: str = "book") -> str:
        stem, _, slug = place.partition("#")
        page = f"{kind}/{stem}" + (".md" if kind == "book" else ".ipynb")
        env.note_dependency(
            str(root / page)
        )  # while it is missing, Sphinx reads this page again: so it sees one that comes
        return f"[](/{page}#{slug})" if env.path2doc(str(root / page)) in env.found_docs else ""

    templates = Environment(loader=FileSystemLoader(Path(__file__).parent), undefined=StrictUndefined, trim_blocks=True)
    templates.globals |= {
        "rows": rows,
        "link": link,
        "result": value,
        "shown": shown,
        "has": env.found_docs.__contains__,
    }
    templates.globals |= {"published_rate": published_rate, "edge": edge}
    try:
        content[0] = templates.from_string(content[0]).render()
    except (TemplateError, ResultError) as error:
        LOGGER.warning("%s", error, location=(docname, getattr(error, "lineno", None)))


def _text(file: Path) -> str:
    return file.read_text(encoding="utf-8") if file.is_file() else ""


def _warn(name: str, line: int, message: str) -> None:
    LOGGER.warning("%s", message, location=f"book/data/{name}.yml:{line}")


def _load(app: Sphinx, name: str) -> Any:
    """The content of a data file; None after a warning."""
    try:
        return load(Path(app.srcdir) / "book" / "data" / f"{name}.yml")
    except DataError as error:
        _warn(name, error.line, str(error))
        return None


def check_places(app: Sphinx, env: BuildEnvironment) -> None:
    """Each heading that a row names must exist, as soon as its page does."""
    for name in ("claims", "misconceptions"):
        for row in (_load(app, name) or []) if (Path(app.srcdir) / "book" / "data" / f"{name}.yml").is_file() else []:
            for page in (f"book/{row['home']}", f"labs/{row['cell']}" if "cell" in row else ""):
                docname, _, slug = page.partition("#")
                there = env.metadata.get(docname, {}).get("myst_slugs", {}) if docname in env.found_docs else {slug: ()}
                if slug not in there:
                    _warn(
                        name, row.line, f"{row.name}: {docname} has no heading {slug!r}; there are: {', '.join(there)}"
                    )


class DataTable(SphinxDirective):
    """A table with its `caption`; the option `numbers` names the columns that stand at the right, counted from 0.

    A column without any content is left out; elsewhere a cell without content is a dash.
    """

    has_content = True
    option_spec: ClassVar[dict[str, Any]] = {
        "caption": directives.unchanged_required,
        "numbers": directives.unchanged_required,
    }

    def run(self) -> list[nodes.Node]:
        """Build the table."""
        headings, *lines = ([cell.strip() for cell in line.split(" | ")] for line in self.content if line.strip())
        if wrong := [line for line in lines if len(line) != len(headings)]:
            LOGGER.warning("data-table: not %d cells: %s", len(headings), wrong[0], location=self.get_location())
            return []
        kept = [i for i in range(len(headings)) if any(line[i] for line in lines)]
        numbers = [str(i) in self.options.get("numbers", "").split() for i in kept]
        cells = [[self._inline(line[i] or "–") for i in kept] for line in lines]
        shown = table(self._inline(self.options["caption"]), [headings[i] for i in kept], cells, numbers)
        self.set_source_info(shown)
        return [shown]

    def _inline(self, text: str) -> list[nodes.Node]:
        found, messages = self.state.inline_text(text, self.lineno)
        return [*found, *messages]


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
    """Register the templates and the table; the index comes before Sphinx collects the contents (priority 500)."""
    app.setup_extension("results")
    app.add_directive("data-table", DataTable)
    app.connect("source-read", render)
    app.connect("env-check-consistency", check_places)
    app.connect("doctree-read", link_the_index, priority=400)
    app.connect("html-page-context", mark_the_chinese)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
