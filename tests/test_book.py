"""The book: its Sphinx extension, its links, and its pages in a real browser, over file:// and http://."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlparse

import pytest
import yaml
from browser import HTML, NoBrowserError, open_browser, serve
from playwright.sync_api import Browser, ConsoleMessage, Page
from sphinx.application import Sphinx
from sphinx.util.docutils import docutils_namespace, patch_docutils

ROOT = Path(__file__).parents[1]
CONFIG = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))
TOC = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))


def names_in(node: object) -> list[str]:
    """All pages that a part of `_toc.yml` names."""
    if isinstance(node, list):
        return [name for item in node for name in names_in(item)]
    if isinstance(node, dict):
        own = [value for key, value in node.items() if key in ("root", "file")]
        return own + [name for value in node.values() for name in names_in(value)]
    return []


PAGES = names_in(TOC)


# --- the extension ---------------------------------------------------------------------------------------------------

RESULTS = {
    "runs": {
        "lora": {"title": "LoRA", "accuracy": {"mean": 0.9634}, "trainable": 74498, "seeds": [3, 5]},
        "full": {"title": "full", "accuracy": {"mean": 0.9512}, "trainable": 22_713_986, "seeds": [1, 2]},
    },
    "rate": 5e-05,
    "tiny": 3.4e-05,
    "flag": True,
}

OPTIONS = {"results_folder": "results", "myst_enable_extensions": ["dollarmath"]}


def build(folder: Path, page: str, results: object = RESULTS) -> tuple[str, str, Sphinx]:
    """Build a project with one page; return its HTML, the warnings and the application."""
    source = folder / "source"
    (source / "results").mkdir(parents=True, exist_ok=True)
    text = results if isinstance(results, str) else json.dumps(results)
    (source / "results" / "quality.json").write_text(text)
    if not (source / "index.md").exists() or (source / "index.md").read_text() != page:
        (source / "index.md").write_text(page)
    warnings = io.StringIO()
    with patch_docutils(), docutils_namespace():
        app = Sphinx(
            source, None, folder / "html", folder / "doctrees", "html",
            {**OPTIONS, "extensions": ["myst_parser", "results"]},
            status=None, warning=warnings,
        )  # fmt: skip
        app.build()
    return (folder / "html" / "index.html").read_text(), warnings.getvalue(), app


@pytest.fixture(autouse=True)
def extension_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "book" / "_ext"))


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        ("runs.lora.accuracy.mean percent", "96.3%"),
        ("runs.lora.accuracy.mean percent2", "96.34%"),
        ("tiny percent2", "&lt;0.01%"),
        ("tiny percent", "&lt;0.1%"),
        ("runs.full.trainable int", "22,713,986"),
        ("runs.lora.trainable", "74,498"),
        ("runs.lora.accuracy.mean .2f", "0.96"),
        ("rate g", "5e-5"),
        ("runs.lora.seeds.1 int", "5"),
        ("runs.lora.title", "LoRA"),
    ],
)
def test_result_shows_the_number(tmp_path: Path, asked: str, expected: str) -> None:
    html, warnings, _ = build(tmp_path, f"# Page\n\nIt is ({{result}}`quality {asked}`).\n")
    assert f"It is ({expected})." in html
    assert not warnings


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("qualty rate g", "no result file 'qualty' in results; there are: quality"),
        ("quality runs.lara.trainable int", "'lara' is not in keys lora, full"),
        ("quality runs.lora.seeds.2 int", "'2' is not in a list of 2"),
        ("quality runs.lora.title.x int", "'x' is not in str"),
        ("quality rate parcent", "unknown format 'parcent'"),
        ("quality rate int", "not a whole number"),
        ("quality rate", "needs a format"),
        ("quality runs.lora.title percent", "'LoRA' is not a number"),
        ("quality flag int", "True is not a number"),
        ("quality runs.lora", "is neither a number nor a text"),
        ("quality", "write FILE PATH FORMAT"),
    ],
)
def test_a_wrong_result_is_a_warning_with_page_and_line(tmp_path: Path, asked: str, said: str) -> None:
    _, warnings, app = build(tmp_path, f"# Page\n\nFirst.\n\nIt is {{result}}`{asked}`.\n")
    assert said in warnings
    assert "index.md:5: WARNING: result: " in warnings
    assert app._warncount == 1  # so that -W fails


def test_a_result_file_that_is_no_json_is_a_warning(tmp_path: Path) -> None:
    assert "quality.json is not JSON" in build(tmp_path, "# Page\n\n{result}`quality rate g`\n", "{")[1]


def test_a_changed_number_builds_the_page_again(tmp_path: Path) -> None:
    page = "# Page\n\nIt is {result}`quality rate g`.\n"
    assert "It is 5e-5." in build(tmp_path, page)[0]
    file = tmp_path / "source" / "results" / "quality.json"
    later = file.stat().st_mtime + 10
    file.write_text(json.dumps({"rate": 0.25}))
    os.utime(file, (later, later))
    assert "It is 0.25." in build(tmp_path, page, {"rate": 0.25})[0]


TABLE = """# Page

```{result-table} quality runs
:columns: title|method, accuracy.mean|accuracy|percent, trainable|trained|int
:caption: Measured with $r = 8$.
:name: tab-runs
```
"""


def test_result_table_is_accessible(tmp_path: Path) -> None:
    html, warnings, _ = build(tmp_path, TABLE)
    assert not warnings
    table = html[html.index("<table") : html.index("</table>")].replace("<p>", "").replace("</p>", "")
    assert 'id="tab-runs"' in table
    assert "<caption>" in table and "Measured with" in table and "math" in table
    assert table.count('scope="col"') == 3
    assert table.count('scope="row"') == 2
    for cell in (">LoRA</th>", ">96.3%</td>", ">74,498</td>", ">full</th>", ">95.1%</td>", ">22,713,986</td>"):
        assert cell in table


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ("quality runs", "quality run", "'run' is not in keys"),
        ("quality runs", "quality rate", "is no list or dict of rows"),
        ("accuracy.mean|", "accuracy.median|", "'median' is not in keys mean"),
        ("trained|int", "trained|money", "unknown format 'money'"),
        ("title|method", "title", "write each column as key|Heading|format"),
        (":caption: Measured with $r = 8$.\n", "", "the option caption is missing"),
    ],
)
def test_a_wrong_table_is_a_warning_with_page_and_line(tmp_path: Path, before: str, after: str, said: str) -> None:
    _, warnings, _ = build(tmp_path, TABLE.replace(before, after))
    assert said in warnings
    assert "index.md:3: WARNING: result-table: " in warnings


# --- the built book, read as files -----------------------------------------------------------------------------------


class Reader(HTMLParser):
    """Collects what a page links to, its anchors, and its images."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.links: list[str] = []
        self.anchors: set[str] = set()
        self.sources: list[str] = []
        self.without_alt: list[str] = []
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if name := values.get("id"):
            self.anchors.add(name)
        if tag == "a" and (href := values.get("href")):
            self.links.append(href)
        if tag in ("img", "script", "link") and (source := values.get("src") or values.get("href")):
            self.sources.append(source)
        if tag == "img" and not (values.get("alt") or "").strip():
            self.without_alt.append(str(values.get("src"))[:80])


@pytest.fixture(scope="session")
def readers() -> dict[Path, Reader]:
    """Every HTML file of the built book."""
    missing = [name for name in PAGES if not (HTML / f"{name}.html").is_file()]
    assert not missing, f"the book is not built ({', '.join(missing)} missing): run `make book`"
    files = [file for file in HTML.rglob("*.html") if "_static" not in file.parts]
    return {file: Reader(file) for file in files}


def test_links_and_anchors_inside_the_book_exist(readers: dict[Path, Reader]) -> None:
    wrong = []
    for file, reader in readers.items():
        for link in {*reader.links, *reader.sources}:
            if urlparse(link).scheme:
                continue
            path, anchor = urldefrag(link)
            target = (file.parent / unquote(urlparse(path).path)).resolve() if path else file
            where = f"{file.relative_to(HTML)} → {link}"
            if not target.is_file():
                wrong.append(where)
            elif anchor and target in readers and unquote(anchor) not in readers[target].anchors:
                wrong.append(f"{where} (no such anchor)")
    assert not wrong


def test_every_image_has_a_text(readers: dict[Path, Reader]) -> None:
    assert not {
        str(file.relative_to(HTML)): reader.without_alt for file, reader in readers.items() if reader.without_alt
    }


def test_nothing_outside_is_loaded(readers: dict[Path, Reader]) -> None:
    loaded = {source for reader in readers.values() for source in reader.sources}
    assert not [source for source in loaded if urlparse(source).scheme in ("http", "https") or source.startswith("//")]


def test_no_page_shows_a_missing_number(readers: dict[Path, Reader]) -> None:
    assert not [
        file.name
        for file in readers
        if "??" in file.read_text(encoding="utf-8").split("<article")[-1].split("</article")[0]
    ]


@pytest.mark.parametrize("name", PAGES)
def test_colab_download_and_edit_links(name: str, readers: dict[Path, Reader]) -> None:
    links = readers[HTML / f"{name}.html"].links
    address, branch = CONFIG["repository"]["url"], CONFIG["repository"]["branch"]
    is_notebook = (ROOT / f"{name}.ipynb").is_file()
    source = f"{name}.ipynb" if is_notebook else f"{name}.md"
    assert (ROOT / source).is_file()
    assert f"{address}/edit/{branch}/{source}" in links

    path = urlparse(address).path.strip("/")
    colab = f"https://colab.research.google.com/github/{path}/blob/{branch}/{source}"
    launches = [link for link in links if link.startswith("https://colab.research.google.com/")]
    if is_notebook:
        assert launches and set(launches) == {colab}
    else:
        assert all((ROOT / link.split(f"/blob/{branch}/")[1]).is_file() for link in launches)

    downloads = [link for link in links if link.endswith(f"_sources/{source}")]
    assert downloads, "the page has no download button"
    assert (HTML / "_sources" / source).read_bytes() == (ROOT / source).read_bytes(), (
        "the book is older than its source"
    )


# --- the built book in a browser -------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def browser(readers: dict[Path, Reader]) -> Iterator[Browser]:
    try:
        with open_browser() as opened:
            yield opened
    except NoBrowserError as error:
        if os.environ.get("CI"):
            pytest.fail(f"CI must look at the book in a browser, but {error}")
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    with serve(HTML) as address:
        yield address


class Watched:
    """A page that writes down each request that leaves the book, each failed one, and each error."""

    def __init__(self, page: Page, base: str) -> None:
        self.page, self.base = page, base
        self.troubles: list[str] = []
        page.on("request", lambda request: self._outside(request.url))
        page.on("requestfailed", lambda request: self.troubles.append(f"failed: {request.url}"))
        page.on(
            "response",
            lambda reply: self.troubles.append(f"{reply.status}: {reply.url}") if reply.status >= 400 else None,
        )
        page.on("console", self._console)
        page.on("pageerror", lambda error: self.troubles.append(f"script error: {error}"))

    def _outside(self, url: str) -> None:
        if not url.startswith((self.base, "data:", "blob:")):
            self.troubles.append(f"external request: {url}")

    def _console(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.troubles.append(f"console {message.type}: {message.text}")

    def open(self, path: str) -> Page:
        """Go there, and wait until all is loaded and the formulas are set."""
        self.page.goto(f"{self.base}/{path}", wait_until="load")
        if self.page.locator(".math").count():
            self.page.wait_for_selector("mjx-container", state="attached", timeout=20_000)
            self.page.evaluate("() => MathJax.startup.promise")
        return self.page


@pytest.fixture(params=["file", "http"])
def watched(request: pytest.FixtureRequest, browser: Browser, server: str) -> Iterator[Watched]:
    base = HTML.as_uri() if request.param == "file" else server
    page = browser.new_page(viewport={"width": 1440, "height": 900})
    yield Watched(page, base)
    page.close()


@pytest.mark.parametrize("name", ["index", *PAGES, "genindex"])
def test_a_page_needs_no_network_and_shows_its_formulas(watched: Watched, name: str) -> None:
    page = watched.open(f"{name}.html")
    formulas = page.locator(".math").count()
    assert page.locator(".math mjx-container").count() >= formulas
    assert page.locator("mjx-merror").count() == 0
    page.wait_for_load_state("networkidle")
    broken = page.eval_on_selector_all("img", "all => all.filter(i => i.complete && !i.naturalWidth).map(i => i.src)")
    assert not broken
    assert not watched.troubles


# Everything that sticks out of the page, unless something around it scrolls or cuts it.
_TOO_WIDE = """() => {
  const limit = document.documentElement.clientWidth + 1, found = [];
  const box = element => element.getBoundingClientRect();
  if (document.documentElement.scrollWidth > limit) found.push('page: ' + document.documentElement.scrollWidth);
  for (const element of document.querySelectorAll('article *')) {
    const {left, right, width, height} = box(element);
    if (!width || !height || (right <= limit && left >= -1)) continue;
    let around = element.parentElement;
    while (around && getComputedStyle(around).overflowX === 'visible') around = around.parentElement;
    if (around?.closest('article') && box(around).right <= limit) continue;
    found.push(`${element.tagName}.${element.className} from ${Math.round(left)} to ${Math.round(right)}`);
  }
  return found.slice(0, 10);
}"""

# Text whose contrast with its background is below 4.5, as WCAG 2 counts it.
_TOO_FAINT = """() => {
  const rgba = text => { const n = text.match(/[\\d.]+/g).map(Number); return n.length < 4 ? [...n, 1] : n; };
  const linear = v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4;
  const light = c => .2126 * linear(c[0]) + .7152 * linear(c[1]) + .0722 * linear(c[2]);
  const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
  const texts = 'p, li, th, td, h1, h2, h3, summary, code, figcaption, caption, a, span';
  const found = new Set();
  for (const element of document.querySelectorAll(`article :is(${texts})`)) {
    const own = [...element.childNodes].some(n => n.nodeType === 3 && n.textContent.trim());
    if (!own || !element.getClientRects().length || element.closest('mjx-container, .headerlink')) continue;
    const layers = [];
    for (let e = element; e; e = e.parentElement) layers.unshift(rgba(getComputedStyle(e).backgroundColor));
    const ground = layers.reduce((below, top) => over(top, below), [255, 255, 255, 1]);
    const [a, b] = [light(over(rgba(getComputedStyle(element).color), ground)), light(ground)];
    const contrast = (Math.max(a, b) + .05) / (Math.min(a, b) + .05);
    const text = element.textContent.trim().slice(0, 40);
    if (contrast < 4.5) found.add(`${contrast.toFixed(2)} ${element.tagName}.${element.className}: ${text}`);
  }
  return [...found].slice(0, 10);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("name", PAGES)
def test_a_page_reads_well_on_phone_and_desktop(browser: Browser, server: str, name: str, scheme: str) -> None:
    page = browser.new_page(color_scheme="dark" if scheme == "dark" else "light")
    watched = Watched(page, server)
    watched.open(f"{name}.html")
    assert page.evaluate("document.documentElement.dataset.theme") == scheme
    page.evaluate("() => document.querySelectorAll('details').forEach(d => d.open = true)")
    page.add_style_tag(content="* { transition: none !important }")  # or we would measure the sidebar on its way
    for width, height in ((360, 740), (1440, 900)):
        page.set_viewport_size({"width": width, "height": height})
        assert not page.evaluate(_TOO_WIDE), f"too wide at {width} px"
    assert not page.evaluate(_TOO_FAINT), f"too faint in {scheme}"
    assert not watched.troubles
    page.close()


def test_a_quiz_answer_opens_by_keyboard(watched: Watched) -> None:
    for name in PAGES:
        page = watched.open(f"{name}.html")
        answers = page.locator("details.quiz-answer")
        if answers.count():
            answers.first.locator("summary").focus()
            page.keyboard.press("Enter")
            assert answers.first.evaluate("details => details.open")
            assert answers.first.locator("p").first.is_visible()
            return
    pytest.fail("no page of the book has a quiz answer (class quiz-answer)")


def test_search_finds_lora(watched: Watched) -> None:
    page = watched.page
    page.goto(f"{watched.base}/search.html?q=LoRA")
    page.wait_for_selector("#search-results ul.search li a", timeout=20_000)
    page.wait_for_function(
        "() => !document.querySelector('#search-progress')?.textContent.includes('.')", timeout=20_000
    )
    found = page.eval_on_selector_all("#search-results ul.search li a", "all => all.map(a => a.href)")
    assert any("book/09_lora.html" in link for link in found)
    assert not [trouble for trouble in watched.troubles if "external" in trouble]
