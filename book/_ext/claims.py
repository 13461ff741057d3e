"""Make two pages from data files: what tutorials get wrong, and common misconceptions.

```{claims}
```

counts the verdicts in `book/data/claims.yml`, and lists its rows under the chapter that is their home;
`{misconceptions}` lists `book/data/misconceptions.yml`. The first lines of these files say what a row holds.

A home is a chapter of `chapters.yml` and a heading in its page, as in a link: `09_lora#merging`. As long as the page
does not exist, the row says "to come". As soon as it exists, the heading must exist too. Whatever is wrong in a row is
a warning with the file and the line, so a build with `-W` fails.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import yaml
from docutils import nodes
from markdown_it import MarkdownIt
from mdit_py_plugins.dollarmath import dollarmath_plugin
from myst_parser.mdit_to_docutils.base import default_slugify
from results import ResultError, read, scoped_header, shown, table_cell
from sphinx.application import Sphinx
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

LOGGER = logging.getLogger(__name__)

# verdict → what it means, and the words before the link to the chapter
VERDICTS = {
    "right": ("True, and taught in this course.", "Taught in"),
    "half right": ("True under a condition that is missing, or with a detail that is wrong.", "Completed in"),
    "wrong": ("Not true, or code that does not do what it says.", "Corrected in"),
    "outlook": ("A view of the future, neither true nor false.", "Taken up in"),
}


class ClaimError(ValueError):
    """A data file, or a row in it, is not as it should be; `line` says where."""

    def __init__(self, line: int, message: str) -> None:
        super().__init__(message)
        self.line = line


@dataclass(frozen=True)
class Row:
    """A statement and what is right about it; `line` is where it stands in its file."""

    id: str
    claim: str
    verdict: str
    correct: str
    home: str
    line: int
    measured: str = ""
    cell: str = ""


ALLOWED = {field.name for field in fields(Row)} - {"line"}
REQUIRED = ALLOWED - {"measured", "cell"}


class _Loader(yaml.SafeLoader):
    """Remembers the line of each row, and refuses a field that stands twice."""


def _mapping(loader: _Loader, node: yaml.MappingNode) -> dict[str, Any]:
    names = [key.value for key, _ in node.value]
    line = node.start_mark.line + 1
    if double := [name for name, count in Counter(names).items() if count > 1]:
        raise ClaimError(line, f"{', '.join(double)} stands twice in one row")
    content = {str(name): value for name, value in loader.construct_mapping(node, deep=True).items()}
    return {**content, "line": line}


_Loader.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)


def read_rows(file: Path, required: set[str], allowed: set[str]) -> list[dict[str, Any]]:
    """The rows of a YAML list, each with its `line`.

    Raises:
        ClaimError: no YAML, no list, or a field is missing or unknown.
    """
    try:
        entries = yaml.load(file.read_text(encoding="utf-8"), _Loader)
    except FileNotFoundError as error:
        raise ClaimError(1, "there is no such file") from error
    except yaml.MarkedYAMLError as error:
        raise ClaimError(
            (error.problem_mark.line if error.problem_mark else 0) + 1, f"no YAML: {error.problem}"
        ) from error
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise ClaimError(1, "the file must hold a list of rows")
    for entry in entries:
        name = entry.get("id", entry.get("file", "a row"))
        if missing := [field for field in sorted(required) if entry.get(field) in (None, "")]:
            raise ClaimError(entry["line"], f"{name} has no {', '.join(missing)}")
        if unknown := sorted(set(entry) - allowed - {"line"}):
            raise ClaimError(entry["line"], f"{name} has the unknown field {', '.join(unknown)}")
    return entries


def load(file: Path) -> list[Row]:
    """The rows of a file.

    Raises:
        ClaimError: no YAML, a field is missing or unknown, or an id stands twice.
    """
    entries = read_rows(file, REQUIRED, ALLOWED)
    rows = [
        Row(line=entry["line"], **{name: str(value) for name, value in entry.items() if name != "line"})
        for entry in entries
    ]
    seen: dict[str, int] = {}
    for row in rows:
        if row.id in seen:
            raise ClaimError(row.line, f"{row.id} stands in line {seen[row.id]} already")
        seen[row.id] = row.line
    return rows


def headings(file: Path) -> dict[str, str]:
    """Slug → heading of a page or a notebook, down to the third level, with slugs as MyST makes them."""
    text = file.read_text(encoding="utf-8")
    if file.suffix == ".ipynb":
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells)
    tokens = MarkdownIt("commonmark").use(dollarmath_plugin).parse(text)
    found: dict[str, str] = {}
    for start, inline in pairwise(tokens):
        if start.type != "heading_open" or start.tag not in ("h1", "h2", "h3"):
            continue
        children = inline.children or []
        title = "".join(child.content for child in children if child.type in ("text", "code_inline"))
        slug, number = default_slugify(title), 1
        while slug in found:
            slug, number = f"{slug}-{number}", number + 1
        found[slug] = inline.content
    return found


class Book:
    """What a row may point to: planned chapters, pages and labs that exist, and the bibliography."""

    def __init__(self, data: Path) -> None:
        self.book = data.parent
        self.labs = self.book.parent / "labs"
        self.chapters_file = data / "chapters.yml"
        names = {"number", "file", "title", "part"}
        self.chapters = {entry["file"]: entry for entry in read_rows(self.chapters_file, names, names)}
        self.bibliography = self.book / "references.bib"
        text = self.bibliography.read_text(encoding="utf-8") if self.bibliography.is_file() else ""
        self.works = set(re.findall(r"^@\w+\{([^,\s]+),", text, re.MULTILINE))
        self._headings: dict[Path, dict[str, str]] = {}

    def file(self, place: str, lab: bool = False) -> Path:
        """The page of a home, or the lab of a cell; it need not exist."""
        stem = place.partition("#")[0]
        return self.labs / f"{stem}.ipynb" if lab else self.book / f"{stem}.md"

    def heading(self, place: str, lab: bool = False) -> str | None:
        """The words of the heading that a place names; None if the file has no such heading."""
        file = self.file(place, lab)
        if file not in self._headings:
            self._headings[file] = headings(file)
        return self._headings[file].get(place.partition("#")[2])

    def problems(self, row: Row) -> Iterator[str]:
        """Everything that is wrong with a row, in words; result numbers are looked up when the row is shown."""
        if row.verdict not in VERDICTS:
            yield f"{row.id} has the unknown verdict {row.verdict!r}; there are: {', '.join(VERDICTS)}"
        for kind, place in (("home", row.home), ("cell", row.cell)):
            if place:
                yield from (f"{row.id}: {problem}" for problem in self._misplaced(kind, place))
        for keys in re.findall(r"\{cite:\w+\}`([^`]*)`", f"{row.claim} {row.correct} {row.measured}"):
            if unknown := [key.strip() for key in keys.split(",") if key.strip() not in self.works]:
                yield f"{row.id} cites {', '.join(unknown)}, which {self.bibliography.name} does not have"
        if row.measured and "{result}`" not in row.measured:
            yield f"{row.id} has a measured sentence without a number by {{result}}"

    def _misplaced(self, kind: str, place: str) -> Iterator[str]:
        stem, hash_, slug = place.partition("#")
        if not (stem and hash_ and slug):
            yield f"the {kind} {place!r} should be CHAPTER#HEADING, like 09_lora#merging"
        elif stem not in self.chapters:
            yield f"the {kind} {stem!r} is not in {self.chapters_file.name}; there are: {', '.join(self.chapters)}"
        else:
            file = self.file(place, lab=kind == "cell")
            if file.is_file() and self.heading(place, lab=kind == "cell") is None:
                existing = ", ".join(self._headings[file])
                yield f"{file.parent.name}/{file.name} has no heading {slug!r}; there are: {existing}"


class _Rows(SphinxDirective):
    """What both lists share: read, check, and write the rows."""

    name_of_file: ClassVar[str]
    prefix: ClassVar[str]  # of the anchors
    number: ClassVar[str]  # how a row's number is shown

    def run(self) -> list[nodes.Node]:
        """Warn of all problems, and show what there is."""
        folder = Path(self.env.srcdir) / self.env.config.claims_folder
        file = folder / self.name_of_file
        for used in (file, folder / "chapters.yml", Path(__file__)):
            self.env.note_dependency(str(used))
        if (contents := Path(self.env.srcdir) / "_toc.yml").is_file():  # it decides which pages are in the book
            self.env.note_dependency(str(contents))
        here = file
        try:
            rows = load(file)
            here = folder / "chapters.yml"
            self.book = Book(folder)
        except ClaimError as error:
            self._warn(here, error.line, str(error))
            return []
        # Sphinx reads a page again while a file that it depends on is missing: so it sees a chapter that comes.
        self.env.note_dependency(str(self.book.bibliography))
        for row in rows:
            self.env.note_dependency(str(self.book.file(row.home)))
            if row.cell:
                self.env.note_dependency(str(self.book.file(row.cell, lab=True)))
        good = []
        for row in rows:
            problems = list(self.book.problems(row))
            for problem in problems:
                self._warn(file, row.line, problem)
            if not problems:
                good.append(row)
        return self._show(good, partial(self._warn, file))

    def _warn(self, file: Path, line: int, message: str) -> None:
        where = file.relative_to(self.env.srcdir).as_posix()
        LOGGER.warning("%s: %s", self.name, message, location=f"{where}:{line}")

    def _show(self, rows: list[Row], warn: Callable[[int, str], None]) -> list[nodes.Node]:
        raise NotImplementedError

    def _list(self, rows: list[Row], warn: Callable[[int, str], None]) -> nodes.bullet_list:
        entries = nodes.bullet_list(classes=["claims"])
        entries += [self._entry(row, warn) for row in rows]
        return entries

    def _entry(self, row: Row, warn: Callable[[int, str], None]) -> nodes.list_item:
        anchor = f"{self.prefix}-{row.id}"
        verdict = row.verdict.replace(" ", "-")
        said = nodes.paragraph("", "", classes=["claim-said"])
        said += nodes.strong("", f"{row.verdict.capitalize()}:", classes=["verdict"])
        said += nodes.Text(" ")
        said += nodes.inline("", "", *self._inline(row.claim), classes=["claim-text"])
        said += nodes.Text(" ")
        said += nodes.reference("", self.number.format(row.id), refid=anchor, internal=True, classes=["claim-id"])
        entry = nodes.list_item("", said, ids=[anchor], classes=[f"claim-{verdict}"])
        entry += nodes.paragraph("", "", *self._inline(row.correct))
        if row.measured:
            try:
                text = re.sub(r"\{result\}`([^`]+)`", self._number, row.measured)
            except ResultError as error:
                warn(row.line, f"{row.id}: {error}")
            else:
                label = nodes.strong("", "Measured:")
                entry += nodes.paragraph("", "", label, nodes.Text(" "), *self._inline(text))
        entry += nodes.paragraph("", "", *self._inline(self._places(row)), classes=["claim-home"])
        self.state.document.note_explicit_target(entry)
        return entry

    def _number(self, match: re.Match[str]) -> str:
        parts = match[1].split()
        if len(parts) not in (2, 3):
            raise ResultError(f"write FILE PATH FORMAT, not {match[1]!r}")
        return shown(read(self.env, parts[0], parts[1]), *parts[2:])

    def _places(self, row: Row) -> str:
        """Where the row is taught, as Markdown."""
        chapter = self.book.chapters[row.home.partition("#")[0]]
        home = self._link(row.home, f"chapter {chapter['number']}")
        places = f"{VERDICTS[row.verdict][1]} {home}." if home else f"To come: {chapter['title']}."
        if row.cell:
            lab = self.book.chapters[row.cell.partition("#")[0]]["number"]
            if cell := self._link(row.cell, f"lab {lab}", lab=True):
                places += f" Try it in {cell}."
        return places

    def _link(self, place: str, words: str, lab: bool = False) -> str:
        """A Markdown link that shows the heading; empty if there is no such page in the book yet."""
        file = self.book.file(place, lab)
        docname = self.env.path2doc(str(file))
        if not file.is_file() or docname not in self.env.found_docs:
            return ""
        path = file.relative_to(self.env.srcdir).as_posix()
        return f"[{words}, “{self.book.heading(place, lab)}”](/{path}#{place.partition('#')[2]})"

    def _inline(self, text: str) -> list[nodes.Node]:
        found, messages = self.state.inline_text(text, self.lineno)
        return [*found, *messages]


class Claims(_Rows):
    """The claims: a table that counts the verdicts, and a section for each chapter that is the home of some."""

    name_of_file = "claims.yml"
    prefix = "claim"
    number = "{}"

    def _show(self, rows: list[Row], warn: Callable[[int, str], None]) -> list[nodes.Node]:
        sections = []
        for stem, chapter in self.book.chapters.items():
            own = [row for row in rows if row.home.partition("#")[0] == stem]
            if not own:
                continue
            title = f"Chapter {chapter['number']}: {chapter['title']}"
            section = nodes.section("", nodes.title("", title), ids=[nodes.make_id(f"claims-{stem}")])
            section += self._list(own, warn)
            self.set_source_info(section)
            sections.append(section)
        return [self._table(rows), *sections]

    def _table(self, rows: list[Row]) -> nodes.table:
        counts = Counter(row.verdict for row in rows)
        caption = f"The verdicts on the {len(rows)} claims."
        table = nodes.table("", nodes.title("", caption), classes=["result-table"])
        group = nodes.tgroup("", *(nodes.colspec(colwidth=1) for _ in range(3)), cols=3)
        table += group
        names = (("verdict", False), ("claims", True), ("what it means", False))
        group += nodes.thead(
            "", nodes.row("", *(table_cell(name, scoped_header, number, scope="col") for name, number in names))
        )
        body = nodes.tbody()
        group += body
        for verdict, (meaning, _) in VERDICTS.items():
            cells = (
                table_cell(verdict, scoped_header, scope="row"),
                table_cell(str(counts[verdict]), nodes.entry, number=True),
            )
            body += nodes.row("", *cells, table_cell(meaning, nodes.entry))
        self.set_source_info(table)
        return table


class Misconceptions(_Rows):
    """The misconceptions, in one list."""

    name_of_file = "misconceptions.yml"
    prefix = "misconception"
    number = "no. {}"

    def _show(self, rows: list[Row], warn: Callable[[int, str], None]) -> list[nodes.Node]:
        return [self._list(rows, warn)]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directives and the folder of the data files (relative to the source folder)."""
    app.setup_extension("results")
    app.add_config_value("claims_folder", "book/data", "env")
    app.add_directive("claims", Claims)
    app.add_directive("misconceptions", Misconceptions)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
