"""The book: its Sphinx extension, its links, and its pages in a real browser, over file:// and http://."""

from __future__ import annotations

import io
import json
import os
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote, urldefrag, urlparse

import axe_playwright_python
import pytest
import yaml
from browser import HTML, serve
from patience import PATIENCE
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page
from sphinx.application import Sphinx
from sphinx.errors import ConfigError
from sphinx.util.docutils import docutils_namespace, patch_docutils

from course_utils.training.memory import SHAPES, training_memory
from course_utils.workshop.authoring.address import Address
from course_utils.workshop.experiments import variations as study_variations

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
#: What Sphinx adds; `index` and `404` have tests of their own.
GENERATED = ["genindex", "search"]
#: Where the book is published, and the folder of the server under which it lies there.
_OWNER, _NAME = urlparse(CONFIG["repository"]["url"]).path.strip("/").split("/")
ADDRESS = CONFIG["html"].get("baseurl") or f"https://{_OWNER.lower()}.github.io/{_NAME}/"
UNDER = urlparse(ADDRESS).path.rstrip("/")


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

OPTIONS = {"source_suffix": {".md": "markdown"}, "results_folder": "results", "myst_enable_extensions": ["dollarmath"]}


def build(folder: Path, page: str, results: object = RESULTS) -> tuple[str, str, Sphinx]:
    """Build a project with one page; return its HTML, the warnings and the application."""
    source = folder / "source"
    (source / "results").mkdir(parents=True, exist_ok=True)
    text = results if isinstance(results, str) else json.dumps(results)
    (source / "results" / "quality.json").write_text(text, encoding="utf-8")
    if not (source / "index.md").exists() or (source / "index.md").read_text(encoding="utf-8") != page:
        (source / "index.md").write_text(page, encoding="utf-8")
    warnings = io.StringIO()
    with patch_docutils(), docutils_namespace():
        app = Sphinx(
            source, None, folder / "html", folder / "doctrees", "html",
            {**OPTIONS, "extensions": ["myst_parser", "results"]},
            status=None, warning=warnings,
        )  # fmt: skip
        app.build()
    return (folder / "html" / "index.html").read_text(encoding="utf-8"), warnings.getvalue(), app


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
    file.write_text(json.dumps({"rate": 0.25}), encoding="utf-8")
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


def test_a_table_of_chosen_rows(tmp_path: Path) -> None:
    rows = {"full": {"title": "full"}, "lora": {"title": "LoRA"}, "scratch": {"title": "from scratch"}}
    page = (
        "```{result-table} quality methods\n:rows: lora, full\n:columns: title|method\n:caption: Two of three.\n```\n"
    )
    html, warnings, _ = build(tmp_path, f"# Page\n\n{page}", {"methods": rows})
    assert not warnings
    assert html.index(">LoRA<") < html.index(">full<") and "from scratch" not in html
    _, warnings, _ = build(tmp_path, f"# Page\n\n{page}".replace("lora,", "lroa,"), {"methods": rows})
    assert "methods in quality.json has no 'lroa'" in warnings


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
        self.headings: list[int] = []  # of the article
        self.meta: dict[str, list[str]] = {}
        self._in_article = False
        self.feed(file.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        if name := values.get("id"):
            self.anchors.add(name)
        if tag == "a" and (href := values.get("href")):
            self.links.append(href)
        if tag == "article" or values.get("class") == "bd-search-container":
            self._in_article = True
        if self._in_article and re.fullmatch("h[1-6]", tag):
            self.headings.append(int(tag[1]))
        if tag == "meta" and (key := values.get("property") or values.get("name")):
            self.meta.setdefault(key, []).append(values.get("content") or "")
        if tag == "link" and values.get("rel") == "canonical":
            self.meta.setdefault("canonical", []).append(values.get("href") or "")
        elif tag in ("img", "script", "link") and (source := values.get("src") or values.get("href")):
            self.sources.append(source)
        if tag == "img" and not (values.get("alt") or "").strip():
            self.without_alt.append(str(values.get("src"))[:80])

    def handle_endtag(self, tag: str) -> None:
        if tag == "article":
            self._in_article = False


@pytest.fixture(scope="module")
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
            path = urlparse(path).path
            if file.name == "404.html" and path.startswith(UNDER):  # its links are absolute
                path = path.removeprefix(UNDER).lstrip("/")
            target = (file.parent / unquote(path)).resolve() if path else file
            where = f"{file.relative_to(HTML)} → {link}"
            if not target.is_file():
                wrong.append(where)
            elif anchor and target in readers and unquote(anchor) not in readers[target].anchors:
                wrong.append(f"{where} (no such anchor)")
    assert not wrong


def test_headings_are_in_order(readers: dict[Path, Reader]) -> None:
    """One title on each page, and no level left out below it: the headings are a table of contents for listeners."""
    wrong = {}
    for file, reader in readers.items():
        levels = reader.headings
        if file != HTML / "index.html" and (
            levels.count(1) != 1 or any(below > above + 1 for above, below in pairwise([0, *levels]))
        ):
            wrong[str(file.relative_to(HTML))] = levels
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
    path = urlparse(address).path.strip("/")
    colab = f"https://colab.research.google.com/github/{path}/blob/{branch}/{source}"
    launches = [link for link in links if link.startswith("https://colab.research.google.com/")]
    if not Address.of(address).is_somebodys:
        assert not launches and not [link for link in links if link.startswith(address)], "a link that leads nowhere"
    elif is_notebook:
        assert launches and set(launches) == {colab} and f"{address}/edit/{branch}/{source}" in links
    else:
        assert f"{address}/edit/{branch}/{source}" in links
        assert all((ROOT / link.split(f"/blob/{branch}/")[1]).is_file() for link in launches)

    downloads = [link for link in links if link.endswith(f"_sources/{source}")]
    assert downloads, "the page has no download button"
    assert (HTML / "_sources" / source).read_bytes() == (ROOT / source).read_bytes(), (
        "the book is older than its source"
    )


# --- what a published book needs -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("repository", "address"),
    [
        ("https://github.com/Owner/Name", "https://owner.github.io/Name/"),
        ("https://github.com/owner/name/", "https://owner.github.io/name/"),
        ("https://github.com/Owner/owner.github.io", "https://owner.github.io/"),
    ],
)
def test_the_pages_address_follows_from_the_repository(repository: str, address: str) -> None:
    assert import_module("publish").pages_address(repository) == address


@pytest.mark.parametrize("repository", ["https://git.example.org/owner/name", "https://github.com/owner", ""])
def test_another_home_must_be_named(repository: str) -> None:
    with pytest.raises(ConfigError, match="say where the book is published with html: baseurl"):
        import_module("publish").pages_address(repository)


@pytest.mark.parametrize("name", ["index", *PAGES])
def test_a_link_to_a_page_has_a_card(name: str, readers: dict[Path, Reader]) -> None:
    meta = readers[HTML / f"{name}.html"].meta
    keys = ("title", "description", "url", "image", "image:alt", "site_name", "type")
    assert all(len(meta[f"og:{key}"]) == 1 for key in keys)
    page = PAGES[0] if name == "index" else name
    assert meta["og:url"] == meta["canonical"] == [f"{ADDRESS}{page}.html"]
    assert meta["og:site_name"] == [CONFIG["title"]]
    assert len(meta["og:title"][0]) > 3
    assert meta["description"] == meta["og:description"]
    assert 30 < len(meta["description"][0]) <= 210
    image = HTML / meta["og:image"][0].removeprefix(ADDRESS)
    head = image.read_bytes()[:24]
    assert head.startswith(b"\x89PNG") and (head[16:20], head[20:24]) == ((1200).to_bytes(4), (630).to_bytes(4))


# --- the built book in a browser -------------------------------------------------------------------------------------
#
# Each page is opened twice, and all that is asked of it is asked of these two: once in light colours over http://, on a
# phone that is turned into a desktop; once in dark colours over file://, on a desktop that is turned into a phone. What
# a page loads does not hang on its colours, and its colours do not hang on where it came from.


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
            self.page.wait_for_selector("mjx-container", state="attached", timeout=1000 * PATIENCE)
            self.page.evaluate("() => MathJax.startup.promise")
        return self.page

    def set_width(self, width: int) -> None:
        self.page.set_viewport_size({"width": width, "height": HEIGHTS[width]})


#: A phone and a desktop: width → height.
HEIGHTS = {360: 740, 1440: 900}
#: Colours → where from, and the widths in the order in which the page has them.
VIEWS = {"light": ("http", (360, 1440)), "dark": ("file", (1440, 360))}


@pytest.fixture(scope="session")
def contexts(browser: Browser) -> dict[str, BrowserContext]:
    """One for each colour scheme, so that what all pages have in common is fetched and compiled once."""
    return {"light": browser.new_context(color_scheme="light"), "dark": browser.new_context(color_scheme="dark")}


@pytest.fixture(scope="session")
def windows(contexts: dict[str, BrowserContext]) -> dict[str, Watched]:
    """One page for each colour scheme, which goes from page to page: a new one takes as long as to load."""
    return {scheme: Watched(context.new_page(), "") for scheme, context in contexts.items()}


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    with serve(HTML) as address:
        yield address


@pytest.fixture(params=["file", "http"])
def watched(request: pytest.FixtureRequest, contexts: dict[str, BrowserContext], server: str) -> Iterator[Watched]:
    """A desktop, over file:// and over http://."""
    page = contexts["light"].new_page()
    watched = Watched(page, HTML.as_uri() if request.param == "file" else server)
    watched.set_width(1440)
    yield watched
    page.close()


# Everything that sticks out of the page, unless something around it scrolls or cuts it.
_TOO_WIDE = """() => {
  const limit = document.documentElement.clientWidth + 1, found = [];
  const box = element => element.getBoundingClientRect();
  if (document.documentElement.scrollWidth > limit) found.push('page: ' + document.documentElement.scrollWidth);
  for (const element of document.querySelectorAll('article *')) {
    const {left, right, width, height} = box(element);
    if (!width || !height || (right <= limit && left >= -1)) continue;
    let around = element.parentElement;
    while (around && (getComputedStyle(around).overflowX === 'visible' || box(around).right > limit))
      around = around.parentElement;
    if (around?.closest('article')) continue;
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


#: Violations of axe-core that cannot be mended here: (rule, part of the selector) → why.
ALLOWED: dict[tuple[str, str], str] = {}
_SOURCE = (Path(axe_playwright_python.__file__).parent / "axe.min.js").read_text(encoding="utf-8")
# axe keeps the private fields of each colour in weak maps, and the garbage collector visits these again and again.
# Here a field stands on its object, which says the same. A run of axe takes a third less time by it, and a whole page,
# loading included, 3 to 12% less (measured).
_FIELDS = """class {
  own = Symbol();
  has(key) { return Object.hasOwn(key, this.own); }
  get(key) { return key[this.own]; }
  set(key, value) { key[this.own] = value; return this; }
  add(key) { return this.set(key, true); }
  delete(key) { return delete key[this.own]; }
}"""
_AXE = f"(() => {{ if (window.axe) return; const WeakMap = {_FIELDS}, WeakSet = WeakMap;\n{_SOURCE}\n}})()"
#: What a colour scheme can change.
_COLOURS = ["color-contrast", "link-in-text-block"]


def show_all(page: Page) -> None:
    """Open every dropdown; and nothing moves, or we would measure the sidebar on its way."""
    page.evaluate("() => document.querySelectorAll('details').forEach(d => d.open = true)")
    page.add_style_tag(content="* { transition: none !important; animation: none !important }")


def violations(page: Page, rules: list[str] | None = None, without: str | None = None) -> list[str]:
    """The serious and critical violations that axe-core finds on a page with every dropdown open.

    Args:
        page: it is loaded.
        rules: of axe; all by default.
        without: a selector of what has been looked at on another page.
    """
    show_all(page)
    page.evaluate(_AXE)
    options: dict[str, object] = {"resultTypes": ["violations"], "preload": False}  # or it fetches style sheets again
    if rules:
        options["runOnly"] = {"type": "rule", "values": rules}
    context = {"exclude": [[without]]} if without else {"include": [["html"]]}
    found = []
    for violation in page.evaluate("([where, options]) => axe.run(where, options)", [context, options])["violations"]:
        for node in violation["nodes"]:
            where = " ".join(map(str, node["target"]))
            known = any(violation["id"] == rule and part in where for rule, part in ALLOWED)
            if violation["impact"] in ("serious", "critical") and not known:
                found.append(f"{violation['id']} at {where}: {node['failureSummary']} {node['html'][:150]}")
    return found


@pytest.mark.spread
@pytest.mark.parametrize("scheme", VIEWS)
@pytest.mark.parametrize("name", [*PAGES, *GENERATED, "index"])
def test_a_page(name: str, scheme: str, windows: dict[str, Watched], server: str) -> None:
    """It reads well on phone and desktop, axe finds nothing serious, its formulas show, and it needs no network.

    Light on the desktop and on a phone with every rule of axe, dark with the rules about colours.
    """
    protocol, widths = VIEWS[scheme]
    watched = windows[scheme]
    page, watched.base = watched.page, server if protocol == "http" else HTML.as_uri()
    watched.troubles.clear()
    found: dict[str, object] = {}  # what is wrong, by where it was seen: one test tells all of it
    frame = "nav" if name.startswith(("labs/", "solutions/")) else None  # what leads through the book is the same there
    watched.set_width(widths[0])
    watched.open(f"{name}.html")
    if name in PAGES:
        theme = page.evaluate("document.documentElement.dataset.theme")
        found["the theme"] = theme if theme != scheme else None
    if name != "index":  # it only leads to the first page
        show_all(page)
    for width in widths:
        watched.set_width(width)
        if name in PAGES:
            found[f"too wide at {width} px"] = page.evaluate(_TOO_WIDE)
            found[f"too faint at {width} px"] = page.evaluate(_TOO_FAINT) if width == 1440 else None
        if name != "index" and (scheme, width) != ("dark", 360):
            found[f"axe at {width} px"] = violations(page, _COLOURS if scheme == "dark" else None, frame)
    found["formulas that are not set"] = page.locator(".math").count() > page.locator(".math mjx-container").count()
    found["formulas with a mistake"] = page.locator("mjx-merror").count()
    page.wait_for_load_state("networkidle")  # most of it has passed: what a page asks for late has been asked for
    found["broken images"] = page.eval_on_selector_all(
        "img", "all => all.filter(i => i.complete && !i.naturalWidth).map(i => i.src)"
    )
    found["in the network and the console"] = list(watched.troubles)
    assert not {where: what for where, what in found.items() if what}


def test_axe_would_find_something(browser: Browser) -> None:
    """The check checks: it names a picture without a text and a control without a name."""
    page = browser.new_page()
    page.set_content('<html lang="en"><title>x</title><main><h1>x</h1><img src="data:,"><input type="range"></main>')
    assert {line.split()[0] for line in violations(page)} == {"image-alt", "label"}
    page.close()


def test_generated_pages_that_no_list_names(browser: Browser, server: str, readers: dict[Path, Reader]) -> None:
    """Whatever an extension adds, like the sources of the library, is looked at too."""
    named = {*PAGES, *GENERATED, "index", "404"}
    others = [name for file in readers if (name := file.relative_to(HTML).with_suffix("").as_posix()) not in named]
    page = browser.new_page(viewport={"width": 1440, "height": 900})  # one for all, because a new one loads all anew
    watched = Watched(page, server)
    for name in others:
        watched.open(f"{name}.html")
        found = violations(
            page, without="nav" if name != others[0] else None
        )  # what leads through the book is the same
        assert not found, name
        assert not watched.troubles, name
    page.close()


@pytest.mark.parametrize("lost", ["lost.html", "book/lost.html", "a/deep/folder/"])
def test_the_page_for_wrong_addresses_works_at_any_depth(browser: Browser, lost: str) -> None:
    with serve(HTML, UNDER) as address:
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        watched = Watched(page, address)
        reply = page.goto(f"{address}/{lost}", wait_until="load")
        assert reply is not None and reply.status == 404
        page.wait_for_load_state("networkidle")
        assert page.locator("article h1").inner_text().startswith("This page does not exist")
        own = [t for t in watched.troubles if not t.endswith(lost) and "status of 404" not in t]
        assert not own
        assert page.locator("link[rel=canonical]").count() == 0
        assert not violations(page)
        assert page.evaluate(_TOO_WIDE) == []
        page.get_by_role("link", name="with its first page").click()
        page.wait_for_url(f"{address}/{PAGES[0]}.html")
        page.goto(f"{address}/{lost}")
        page.locator("nav.bd-links a", has_text="LoRA").first.click()
        page.wait_for_url(f"{address}/**/*.html")
        assert page.locator("article h1").count() == 1
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
    # Results come one after the other, and the dots of the progress blink: wait for the chapter itself.
    chapter = page.locator('#search-results ul.search li a[href*="book/09_lora.html"]')
    chapter.first.wait_for(state="attached", timeout=60_000)
    assert not [trouble for trouble in watched.troubles if "external" in trouble]


# --- the calculator --------------------------------------------------------------------------------------------------

#: model, method, precision, batch, length, rank, checkpointing
SETTINGS = [
    ("minilm", "lora-qv", "float32", 32, 32, 8, False),
    ("minilm", "full", "float32", 1, 16, 8, False),
    ("bert-base", "lora-all", "mixed", 256, 4096, 256, False),
    ("roberta-large", "ia3", "mixed", 8, 512, 1, True),
    ("llama-3.1-8b", "lora-qv", "mixed", 2, 2048, 64, False),
    ("llama-2-70b", "lora-all", "nf4", 1, 512, 16, True),
    ("smollm2-135m", "full", "mixed", 16, 128, 8, True),
]
_SET = """values => {
  for (const [name, value] of Object.entries(values)) {
    const field = document.getElementById('calc-' + name);
    if (field.type === 'checkbox') field.checked = value;
    else field.value = field.type === 'range' ? Math.log2(value) : value;
  }
  document.getElementById('memory-calculator').dispatchEvent(new Event('input'));
}"""


def test_the_calculator_computes_what_python_computes(watched: Watched) -> None:
    page = watched.open("book/calculator.html")
    names = ("model", "method", "precision", "batch", "length", "rank", "checkpointing")
    shown = import_module("calculator").shown
    for settings in SETTINGS:
        page.evaluate(_SET, dict(zip(names, settings, strict=True)))
        wanted = training_memory(SHAPES[settings[0]], *settings[1:])
        text = page.locator("#calc-result").inner_text().replace("\u00a0", " ")
        got = json.loads(page.locator("#calc-result").get_attribute("data-bytes") or "")
        for key in ("weights", "gradients", "optimiser", "activations", "trained"):
            assert got[key] == pytest.approx(getattr(wanted, key.replace("optimiser", "optimizer")), rel=1e-12), key
        assert text.startswith(f"{shown(wanted.total)} in all: weights {shown(wanted.weights)}, ")
        assert f"Trained: {wanted.trained:,} of " in text
    page.evaluate(_SET, {"method": "full", "precision": "nf4"})
    assert "cannot be trained" in page.locator("#calc-result").inner_text()
    assert not watched.troubles


def test_the_sliders_work_by_keyboard(watched: Watched) -> None:
    page = watched.open("book/calculator.html")
    result = page.locator("#calc-result")
    before = result.inner_text()
    slider = page.get_by_label("Texts in a batch")
    slider.focus()
    page.keyboard.press("ArrowRight")
    assert slider.get_attribute("aria-valuetext") == "64"
    assert result.inner_text() != before
    assert result.get_attribute("aria-live") == "polite"

    explore = page.locator("#explore-rank")
    explore.focus()
    for key, row in (("Home", 0), ("ArrowRight", 1), ("End", -1)):
        page.keyboard.press(key)
        wanted = json.loads((ROOT / "book" / "results" / "ranks.json").read_text(encoding="utf-8"))["rows"][row]
        text = page.locator("#explore-result").inner_text()
        assert text.startswith(f"Rank {wanted['rank']} trains {wanted['trainable'] - wanted['head']:,} numbers")
        assert f"reached {wanted['accuracy']:.1%}" in text
        assert page.locator("tr.chosen th").inner_text() == str(wanted["rank"])


def test_without_scripts_the_calculator_is_a_table(browser: Browser) -> None:
    page = browser.new_page(java_script_enabled=False)
    page.goto((HTML / "book" / "calculator.html").as_uri())
    assert not page.locator("#memory-calculator").is_visible()
    row = page.locator("tr", has_text="Llama 2 7B, full fine-tuning")
    wanted = training_memory(SHAPES["llama-2-7b"], "full", "mixed", 1, 512)
    assert row.locator("td").last.inner_text() == import_module("calculator").shown(wanted.total)
    assert page.locator("#rank-table tbody tr").count() == len(study_variations.RANKS)
    page.close()
