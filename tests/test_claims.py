"""The lists of claims and misconceptions: complete, each row with a home, and shown as readers need it."""

from __future__ import annotations

import io
import json
import re
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import yaml
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace, patch_docutils

ROOT = Path(__file__).parents[1]
DATA = ROOT / "book" / "data"
sys.path.insert(0, str(ROOT / "book" / "_ext"))

import data_pages  # noqa: E402
import results  # noqa: E402

sys.path.pop(0)

CLAIMS = data_pages.load(DATA / "claims.yml")
MISCONCEPTIONS = data_pages.load(DATA / "misconceptions.yml")
ROWS = [*CLAIMS, *MISCONCEPTIONS]
CHAPTERS = {row["file"]: row for row in data_pages.load(DATA / "chapters.yml")}
WORKS = set(
    re.findall(r"^@\w+\{([^,\s]+),", (ROOT / "book" / "references.bib").read_text(encoding="utf-8"), re.MULTILINE)
)


def value(name: str, path: str) -> Any:
    """A measured number."""
    return results.follow(
        json.loads((ROOT / "book" / "results" / f"{name}.json").read_text(encoding="utf-8")), path, name
    )


def problems(row: data_pages.Row) -> list[str]:
    return list(data_pages.problems(row, set(CHAPTERS), WORKS, value))


@pytest.fixture(autouse=True)
def extension_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "book" / "_ext"))


# --- the data --------------------------------------------------------------------------------------------------------


def test_every_claim_stands_there_once() -> None:
    rows_of_article = {"000": 27, "001": 17, "002": 42, "003": 26}
    expected = [f"{name}-{number:02}" for name, count in rows_of_article.items() for number in range(1, count + 1)]
    assert [row["id"] for row in CLAIMS] == expected
    assert len(expected) == 112


def test_every_misconception_stands_there_once() -> None:
    assert [row["id"] for row in MISCONCEPTIONS] == list(range(1, 21))
    assert {row["verdict"] for row in MISCONCEPTIONS} <= {"wrong", "half right"}


def test_all_verdicts_occur() -> None:
    assert {row["verdict"] for row in CLAIMS} == {"right", "half right", "wrong", "outlook"}


def test_no_row_has_a_problem() -> None:
    assert not [f"line {row.line}: {problem}" for row in ROWS for problem in problems(row)]


def test_a_measured_number_is_not_typed() -> None:
    for row in ROWS:
        rest = re.sub(r"\{result\}`[^`]+`", "", row.get("measured", "")).replace("95% interval", "interval")
        assert not re.search(r"\d", rest.replace("F1", "")), f"{row.name}: {rest}"


def test_the_articles_stay_unnamed() -> None:
    for file in (DATA / "claims.yml", ROOT / "book" / "what_tutorials_get_wrong.md"):
        assert not re.search(r"[0-9a-f]{12}|\.txt", file.read_text(encoding="utf-8"))


def test_the_planned_chapters_are_numbered_and_named_as_their_pages() -> None:
    chapters = list(CHAPTERS.values())
    assert [chapter["number"] for chapter in chapters] == list(range(1, len(chapters) + 1))
    toc = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
    part_of = {entry["file"]: part["caption"] for part in toc["parts"] for entry in part["chapters"]}
    for stem, chapter in CHAPTERS.items():
        assert stem.startswith(f"{chapter['number']:02}_")
        page = ROOT / "book" / f"{stem}.md"
        if page.is_file():
            title = page.read_text(encoding="utf-8").splitlines()[0].removeprefix("# ")
            assert chapter["title"] == title, f"chapters.yml calls {stem} otherwise than its page does"
        if f"book/{stem}" in part_of:
            assert chapter["part"] == part_of[f"book/{stem}"]


def test_every_chapter_page_is_planned() -> None:
    pages = {page.stem for page in (ROOT / "book").glob("[0-9][0-9]_*.md")}
    assert pages <= set(CHAPTERS)


@pytest.mark.parametrize(
    ("identifier", "home"),
    [
        *((f"003-0{number}", "01_why_fine_tune#the-idea") for number in (1, 2, 3)),
        ("003-04", "01_why_fine_tune#four-ways-to-get-a-classifier"),
        ("000-18", "01_why_fine_tune#know-your-floor-first"),
        *((f"002-0{number}", "09_lora#the-formula-beside-the-code") for number in (2, 3)),
        *((f"002-0{number}", "09_lora#rank-alpha-targets-and-learning-rate") for number in (4, 6)),
        ("002-05", "09_lora#what-it-costs"),
    ],
)
def test_the_first_chapters_are_the_home_of_their_claims(identifier: str, home: str) -> None:
    assert next(row for row in CLAIMS if row["id"] == identifier)["home"] == home  # the build checks the heading


# --- rows that must be refused ---------------------------------------------------------------------------------------

GOOD = next(row for row in CLAIMS if row["home"].startswith("09_lora#") and "cell" in row)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("home", "09_lara#merging", "09_lara#merging is in no chapter of chapters.yml; there are: 01_why_fine_tune"),
        ("cell", "09_lara#merging", "09_lara#merging is in no chapter of chapters.yml; there are: 01_why_fine_tune"),
        ("correct", "See {cite:p}`hu2021lora,nobody1900`.", "references.bib does not have nobody1900"),
        (
            "measured",
            "It is {result}`quality methods.lara.accuracy.mean percent`.",
            "quality.json has no 'methods.lara",
        ),
        ("measured", "It is {result}`quality methods.lora.accuracy.mean`.", "needs a format"),
    ],
)
def test_a_wrong_row_is_refused(field: str, value: str, said: str) -> None:
    assert not problems(GOOD)
    [problem] = problems(data_pages.Row(GOOD | {field: value}))
    assert said in problem


ROW = """\
- id: 002-02
  claim: LoRA adds a matrix for the *bias*.
  verdict: wrong
  correct: "Both belong to one weight: $BA$."
  home: 09_lora#what-it-costs--42
  measured: "We got {result}`quality lora percent`."
  cell: 09_lora#exercise-1
- id: 002-14
  claim: A template is a prompt.
  verdict: half right
  correct: Not always.
  home: 12_prompt_tuning#the-idea
"""


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("  home: 09_lora#what-it-costs--42\n", "", "1: 002-02: 'home' is a required property"),
        (
            "  correct: Not always.\n",
            "  correct:\n",
            "8: 002-14: correct None is not of type 'string'; expected a text",
        ),
        (
            "verdict: half right",
            "verdict: sloppy",
            "8: 002-14: verdict 'sloppy' is not one of ['right', 'half right', ",
        ),
        (
            "  cell: 09_lora#exercise-1\n",
            "  colour: red\n",
            "1: 002-02: Additional properties are not allowed ('colour'",
        ),
        ("id: 002-14", "id: 002-02", "8: 002-02 stands in line 1 already"),
        ("  claim: A template", "  verdict: right\n  claim: A template", "8: verdict stands twice in one row"),
        ("claim: A template", "claim: 'A template", "no YAML"),
        ("09_lora#exercise-1", "09_lora", "1: 002-02: cell '09_lora' does not match"),
        ("09_lora#exercise-1", "09_lora#", "; expected CHAPTER#HEADING, like 09_lora#merging"),
        ("We got {result}`quality lora percent`.", "96%", "; expected a sentence with {result}`FILE PATH FORMAT`"),
    ],
)
def test_a_malformed_file_is_refused_with_its_line(tmp_path: Path, before: str, after: str, said: str) -> None:
    file = tmp_path / "claims.yml"
    assert before in ROW
    file.write_text(ROW.replace(before, after), encoding="utf-8")
    with pytest.raises(data_pages.DataError) as error:
        data_pages.load(file)
    assert said in f"{error.value.line}: {error.value}"


# --- the extension ---------------------------------------------------------------------------------------------------

LORA = "# LoRA\n\n## What it costs: $r$, `42`!\n\n## What it costs: $r$, `42`\n\n### A — b\n\n```\n## no heading\n```\n"


def project(folder: Path, rows: str = ROW) -> Path:
    """A small book of one chapter and its lab, with the two lists."""
    source = folder / "source"
    for name in ("book/data", "book/results", "labs"):
        (source / name).mkdir(parents=True, exist_ok=True)
    (source / "index.md").write_text(
        "# Book\n\n```{toctree}\nbook/09_lora\nbook/what_tutorials_get_wrong\nbook/misconceptions\nlabs/09_lora\n```\n",
        encoding="utf-8",
    )
    for name in ("what_tutorials_get_wrong", "misconceptions"):
        text = (ROOT / "book" / f"{name}.md").read_text(encoding="utf-8")
        (source / "book" / f"{name}.md").write_text(
            text.replace("{doc}", "").partition("## References")[0], encoding="utf-8"
        )
    (source / "book" / "09_lora.md").write_text(LORA, encoding="utf-8")
    cell = {"cell_type": "markdown", "id": "a", "metadata": {}, "source": ["# Lab\n", "\n", "## Exercise 1\n"]}
    notebook = {"cells": [cell], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}
    (source / "labs" / "09_lora.ipynb").write_text(json.dumps(notebook), encoding="utf-8")
    (source / "book" / "data" / "chapters.yml").write_text(
        "- {number: 9, file: 09_lora, title: LoRA, part: Two}\n"
        "- {number: 12, file: 12_prompt_tuning, title: Prompt tuning, part: Two}\n",
        encoding="utf-8",
    )
    (source / "book" / "data" / "claims.yml").write_text(rows, encoding="utf-8")
    (source / "book" / "data" / "misconceptions.yml").write_text(
        ROW.replace("002-02", "1").replace("002-14", "2"), encoding="utf-8"
    )
    (source / "book" / "results" / "quality.json").write_text(json.dumps({"lora": 0.962}), encoding="utf-8")
    return source


def build(folder: Path) -> tuple[str, str, Sphinx]:
    """Build the small book; return the page with the lists, the warnings and the application."""
    warnings = io.StringIO()
    options = {"extensions": ["myst_nb", "data_pages"], "myst_heading_anchors": 3, "nb_execution_mode": "off"}
    options |= {"myst_enable_extensions": ["dollarmath"]}
    # Sphinx writes into the default of this setting, and the next project of the same process finds it there.
    options |= {"source_suffix": {".md": "myst-nb", ".ipynb": "myst-nb"}}
    with patch_docutils(), docutils_namespace():
        app = Sphinx(
            folder / "source",
            None,
            folder / "html",
            folder / "doctrees",
            "html",
            options,
            status=None,
            warning=warnings,
        )
        app.build()
    pages = ("what_tutorials_get_wrong", "misconceptions")
    html = "".join((folder / "html" / "book" / f"{name}.html").read_text(encoding="utf-8") for name in pages)
    return html, re.sub("\x1b\\[[0-9;]*m", "", warnings.getvalue()), app


class Entries(HTMLParser):
    """The anchors of the rows, the text of each, and its links."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.texts: dict[str, str] = {}
        self.links: dict[str, list[str]] = {}
        self.now = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if tag == "li" and re.match(r"(claim|misconception)-", values.get("id") or ""):
            self.now = values["id"] or ""
            self.texts[self.now], self.links[self.now] = "", []
        if tag == "a" and self.now:
            self.links[self.now].append(values.get("href") or "")

    def handle_endtag(self, tag: str) -> None:
        if tag == "li":
            self.now = ""

    def handle_data(self, data: str) -> None:
        if self.now:
            self.texts[self.now] += data


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, Sphinx]]:
    folder = tmp_path_factory.mktemp("claims")
    project(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(ROOT / "book" / "_ext"))
        yield build(folder)


def test_a_row_shows_everything_and_leads_home(built: tuple[str, str, Sphinx]) -> None:
    html, warnings, _ = built
    assert not warnings
    entries = Entries(html)
    assert list(entries.texts) == ["claim-002-02", "claim-002-14", "misconception-1", "misconception-2"]
    text = " ".join(entries.texts["claim-002-02"].split())
    for part in (
        "Wrong: LoRA adds a matrix for the bias. 002-02",
        "Both belong to one weight",
        "Measured: We got 96.2%.",
    ):
        assert part in text  # the verdict is a word, not only a colour
    assert "Corrected in chapter 9, “What it costs: r, 42!”. Try it in lab 9, “Exercise 1”." in text.replace(
        "\\(r\\)", "r"
    )
    anchor = "../labs/09_lora.html#exercise-1"
    assert entries.links["claim-002-02"] == ["#claim-002-02", "09_lora.html#what-it-costs-r-42", anchor]


def test_a_page_to_come_has_no_link(built: tuple[str, str, Sphinx]) -> None:
    entries = Entries(built[0])
    assert "Half right: A template is a prompt." in entries.texts["claim-002-14"]
    assert "To come: Prompt tuning." in entries.texts["claim-002-14"]
    assert entries.links["claim-002-14"] == ["#claim-002-14"]


def test_the_verdicts_are_counted_and_the_rows_grouped(built: tuple[str, str, Sphinx]) -> None:
    html = built[0]
    table = re.sub(r"</?p>", "", html[html.index("<table") : html.index("</table>")])
    assert "The verdicts on the 2 claims." in table
    assert table.count('scope="col"') == 3 and table.count('scope="row"') == 4
    counts = re.findall(
        r'<th scope="row"[^>]*>([a-z ]+)</th>\s*<td[^>]*>(\d+)</td>', table.replace(' class="stub"', "")
    )
    assert dict(counts) == {"right": "0", "half right": "1", "wrong": "1", "outlook": "0"}
    assert re.findall(r"<h2>([^<]+)<", html) == ["Chapter 9: LoRA", "Chapter 12: Prompt tuning"]


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("verdict: half right", "verdict: maybe", "8: WARNING: 002-14: verdict 'maybe' is not one of ['right', 'half"),
        (
            "what-it-costs--42",
            "costs",
            "1: WARNING: 002-02: book/09_lora has no heading 'costs'; there are: lora, what-",
        ),
        (
            "exercise-1",
            "exercise-2",
            "1: WARNING: 002-02: labs/09_lora has no heading 'exercise-2'; there are: lab, exerc",
        ),
        ("quality lora", "quality lara", "1: WARNING: 002-02: quality.json has no 'lara'"),
        ("lora percent", "lora", "1: WARNING: 002-02: 0.962 needs a format"),
        ("- id: 002-14", "- name: 002-14", "8: WARNING: a row: 'id' is a required property"),
    ],
)
def test_a_planted_error_stops_the_build_with_file_and_line(tmp_path: Path, before: str, after: str, said: str) -> None:
    assert before in ROW
    project(tmp_path, ROW.replace(before, after))
    _, warnings, app = build(tmp_path)
    assert f"book/data/claims.yml:{said}" in warnings
    assert app._warncount >= 1  # so that -W fails


def test_a_page_that_comes_is_linked_in_the_next_build(tmp_path: Path) -> None:
    source = project(tmp_path)
    assert "To come: Prompt tuning." in Entries(build(tmp_path)[0]).texts["claim-002-14"]
    (source / "book" / "12_prompt_tuning.md").write_text(
        "---\norphan: true\n---\n# Prompt tuning\n\n## The idea\n", encoding="utf-8"
    )
    html, warnings, _ = build(tmp_path)
    assert not warnings
    assert "12_prompt_tuning.html#the-idea" in Entries(html).links["claim-002-14"]
