"""The library in the book: excerpts that can be read and copied, a page for each file, a reference for each room."""

from __future__ import annotations

import ast
import importlib
import io
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
import yaml
from browser import HTML
from playwright.sync_api import Browser
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.ext import napoleon
from sphinx.util.docutils import docutils_namespace, patch_docutils

ROOT = Path(__file__).parents[1]
BOOK = ROOT / "book"
sys.path.insert(0, str(BOOK / "_ext"))

import excerpts  # noqa: E402
import library  # noqa: E402

sys.path.pop(0)

TOC = yaml.safe_load((ROOT / "_toc.yml").read_text(encoding="utf-8"))
#: Those that the book shows file by file.
ROOMS = [f"course_utils.{name}" for name in ("methods", "training", "checkpoints", "distillation")]
FILES = [file for room in ROOMS for file in library.modules_of(room, ROOT)]
OPTIONS = cast(Config, napoleon.Config(napoleon_use_ivar=True, napoleon_use_param=False, napoleon_use_rtype=False))


def short(file: Path) -> str:
    return file.relative_to(ROOT).as_posix()


@pytest.fixture(autouse=True)
def extension_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BOOK / "_ext"))


# --- the excerpts of the pages ---------------------------------------------------------------------------------------


def asked() -> Iterator[tuple[str, str, dict[str, str]]]:
    """Page, name and options of every excerpt."""
    for page in sorted(BOOK.glob("*.md")):
        text = page.read_text(encoding="utf-8")
        for first, body in re.findall(r"^```\{excerpt\} ?(.*)\n((?:(?!```).*\n)*)```", text, re.MULTILINE):
            options = dict(re.findall(r"^:([\w-]+): ?(.*)$", body, re.MULTILINE))
            for name in (first, *(line for line in body.split("\n") if not line.startswith(":"))):
                if name.strip():
                    yield page.name, name.strip(), options


ASKED = list(asked())


def code_of(name: str, options: dict[str, str]) -> str:
    found = excerpts.find(name, ROOT)
    return excerpts.excerpt(found, "no-docstring" not in options, options.get("from", ""), options.get("to", ""))[0]


@pytest.mark.parametrize(("page", "name", "options"), ASKED, ids=[f"{page}-{name}" for page, name, _ in ASKED])
def test_an_excerpt_reads_well(page: str, name: str, options: dict[str, str]) -> None:
    """It begins with a name, holds nothing for tools, and only a long text may stick out of the column."""
    code = code_of(name, options)
    [node] = ast.parse(code).body
    assert isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Assign | ast.AnnAssign)
    assert not re.search(r"# (type: ignore|noqa|fmt:)", code)
    long = [line for line in code.split("\n") if len(line) > excerpts.WIDTH]
    assert all(re.match(r"\s*f?[\"']", line) for line in long), long


@pytest.mark.parametrize(
    ("page", "name"),
    [(page, name) for page, name, options in ASKED if "from" not in options and name.startswith("course_utils")],
)
def test_a_copied_excerpt_runs(page: str, name: str) -> None:
    """In the place of its module, that is with its imports."""
    options = next(options for one, other, options in ASKED if (one, other) == (page, name))
    file = excerpts.find(name, ROOT).file
    try:
        module = importlib.import_module(file.relative_to(ROOT).with_suffix("").as_posix().replace("/", "."))
    except ImportError as error:
        if "triton" not in str(error):
            raise
        pytest.skip("triton is not installed: the kernel for a GPU")
    exec(compile("from __future__ import annotations\n" + code_of(name, options), name, "exec"), dict(vars(module)))


def test_no_page_includes_code_in_another_way() -> None:
    """Whoever copies from `literalinclude` gets the indentation of a class, and a line that is cut."""
    assert not [page.name for page in BOOK.rglob("*.md") if "{literalinclude}" in page.read_text(encoding="utf-8")]
    assert len(ASKED) >= 70


# --- cutting out -----------------------------------------------------------------------------------------------------

SOURCE = '''\
import math
from dataclasses import dataclass

from room.other import borrowed

#: A table.
TABLE: dict[str, int] = {"one": 1}


class Base:
    """The base."""


@dataclass
class Shape(Base):
    """A shape.

    Args:
        side: of it, a length that is said at such length that it has to be wrapped in the narrow column of a page.
    """

    side: float = 1.0

    @property
    def area(self) -> float:  # type: ignore[override]
        """Its area."""
        return self.side**2  # noqa: X1


def careful(numbers: list[int], *, twice: bool = False) -> int:
    """Add, or change nothing."""
    before = list(numbers)
    kept = len(numbers)
    try:
        numbers.append(kept)  # a comment that is long, and that goes above its line since it does not fit behind it
        numbers.append(2)
    except ValueError:
        numbers[:] = before
        raise
    total = sum(numbers)
    return total
'''


@pytest.fixture
def house(tmp_path: Path) -> Path:
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "__init__.py").write_text(
        "from room.shapes import Shape as Figure, careful\n", encoding="utf-8"
    )
    (tmp_path / "room" / "shapes.py").write_text(SOURCE, encoding="utf-8")
    (tmp_path / "room" / "other.py").write_text("def borrowed() -> int:\n    return 1\n", encoding="utf-8")
    return tmp_path


def test_a_method_stands_below_its_class_and_can_be_copied(house: Path) -> None:
    code, _ = excerpts.excerpt(excerpts.find("room.shapes.Shape.area", house))
    assert code == (
        "class Shape(Base):\n    ...\n\n    @property\n    def area(self) -> float:\n"
        '        """Its area."""\n        return self.side**2'
    )


def test_names_are_followed_to_where_they_stand(house: Path) -> None:
    assert excerpts.find("room.Figure.area", house).file.name == "shapes.py"
    assert excerpts.find("room.shapes.borrowed", house).file.name == "other.py"
    assert excerpts.excerpt(excerpts.find("room.shapes.TABLE", house))[0].startswith("TABLE: dict[str, int] = ")


def test_what_undoes_a_failure_is_left_out_and_said(house: Path) -> None:
    code, said = excerpts.excerpt(excerpts.find("room.careful", house))
    assert said == ["without the lines that undo it after an error"]
    assert "try" not in code and "before" not in code and "kept = len(numbers)" in code
    comment = code.index("    # a comment that is long")
    assert code.index("    numbers.append(kept)\n") > comment


def test_a_part_keeps_name_and_arguments(house: Path) -> None:
    code, said = excerpts.excerpt(excerpts.find("room.careful", house), first="total =", last="total =")
    assert code == "def careful(numbers, *, twice=False):\n    ...\n    total = sum(numbers)"
    assert said == ["a part"]


def test_a_docstring_is_filled_anew(house: Path) -> None:
    code = excerpts.fitted((house / "room" / "shapes.py").read_text(encoding="utf-8"), 60)
    assert max(map(len, code.split("\n"))) <= 60
    assert "        side: of it, a length that is said at such length\n            that it has to be wrapped" in code
    ast.parse(code)


@pytest.mark.parametrize(
    ("name", "first", "said"),
    [
        ("room.shaped.Shape", "", "room/__init__.py has no 'shaped'; there are: Figure, careful, other, shapes"),
        ("room.shapes.Shop", "", "room/shapes.py has no 'Shop'; there are: TABLE, Base, Shape, careful"),
        ("room.shapes.Shape.aria", "", "room/shapes.py, in Shape, has no 'aria'; there are: side, area"),
        ("room.shapes", "", "is a whole module"),
        ("room.careful", "nowhere", "no line of careful contains 'nowhere'"),
        ("room.Figure", "side", "Shape is no function"),
    ],
)
def test_a_wrong_name_is_a_warning_with_page_and_line(house: Path, name: str, first: str, said: str) -> None:
    option = f":from: {first}\n" if first else ""
    (house / "index.md").write_text(f"# Page\n\nText.\n\n```{{excerpt}} {name}\n{option}```\n", encoding="utf-8")
    warnings = io.StringIO()
    with patch_docutils(), docutils_namespace():
        options = {"extensions": ["myst_parser", "excerpts"], "source_suffix": {".md": "markdown"}}
        app = Sphinx(house, None, house / "out", house / "trees", "html", options, status=None, warning=warnings)
        app.build()
    assert said in warnings.getvalue()
    assert "index.md:5: WARNING: excerpt: " in warnings.getvalue()
    assert app._warncount == 1  # so that -W fails


# --- the pages of files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("file", FILES, ids=short)
def test_a_page_shows_every_line_of_its_file(file: Path) -> None:
    """Code and docstrings: nothing is lost, nothing comes twice."""
    source = file.read_text(encoding="utf-8")
    page = "\n".join(library.page_of(source, file.name, OPTIONS))
    blocks = re.findall(r"^   \.\. code-block:: python\n\n((?:      .*\n|\n)+)", page + "\n", re.MULTILINE)
    shown = [line.strip() for block in blocks for line in block.split("\n") if line.strip()]
    fitted = excerpts.fitted(excerpts.without_comments_for_tools(source), library.WIDTH)
    code, documents = library.docstrings_apart(fitted)
    expected = [line.strip() for line in code.split("\n") if line.strip() and not line.strip().startswith("#")]
    assert shown == expected
    for name, document in documents.items():
        words = [
            word for word in re.findall(r"\w{4,}", document) if word not in ("Args", "Returns", "Raises", "Yields")
        ]
        assert not [word for word in words if word not in page], name


def test_prose_cannot_break_a_page() -> None:
    lines = ["* a bullet with |x| and a*b and `name` and *weight*, name_", "  goes on::", "", "    |x| * y_"]
    assert library.escaped(lines) == [
        r"* a bullet with \|x\| and a\*b and `name` and *weight*, name\_",
        "  goes on::",
        "",
        "    |x| * y_",
    ]


@pytest.mark.parametrize("what", ["data", "attribute", "property"])
def test_a_colon_in_a_comment_makes_no_type(what: str) -> None:
    """Napoleon reads "BitFit's two: query and value" as a type and what it is for."""
    lines = ["BitFit's two: query and value.", "Of each layer."]
    library.shorten(cast(Sphinx, None), what, "room.PLACES", None, None, lines)
    shown = napoleon.GoogleDocstring(lines, OPTIONS, what=what, name="PLACES").lines()
    assert shown == ["BitFit's two: query and value.", "Of each layer."]


@pytest.mark.parametrize(
    ("name", "ignored"),
    [
        ("torch.Tensor", True),
        ("collections.abc.Sequence", True),
        ("course_utils.methods.adapter_layers._Adapted", True),
        ("course_utils.methods.lora.LoRAConfig", False),
        ("LoRAConfig", False),
        ("MethodError", False),
        ("a sentence that was taken for a type", False),
    ],
)
def test_only_names_of_others_may_lack_a_reference(name: str, ignored: bool) -> None:
    config = yaml.safe_load((ROOT / "_config.yml").read_text(encoding="utf-8"))["sphinx"]["config"]
    patterns = [pattern for role, pattern in config["nitpick_ignore_regex"] if role == "py:.*"]
    assert patterns and any(re.fullmatch(pattern, name) for pattern in patterns) is ignored


def test_every_file_of_a_room_is_in_the_contents() -> None:
    [part] = [part for part in TOC["parts"] if part["caption"] == "The library"]
    rooms = {entry["file"]: entry["sections"][0]["glob"] for entry in part["chapters"]}
    for room in ROOMS:
        page = f"book/library/{room.rsplit('.', 1)[1]}"
        assert rooms[page].startswith(room.replace(".", "/"))
        assert f"```{{room}} {room}\n```" in (ROOT / f"{page}.md").read_text(encoding="utf-8")


# --- the built pages -------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def built() -> Path:
    if not (HTML / "book" / "library" / "methods.html").is_file():
        pytest.fail("the book is not built: run `make book`")
    return HTML


@pytest.mark.parametrize("file", FILES, ids=short)
def test_each_class_and_function_has_an_anchor_and_a_reference(file: Path, built: Path) -> None:
    name = file.relative_to(ROOT).with_suffix("").as_posix()
    html = (built / f"{name}.html").read_text(encoding="utf-8")
    room = next(room for room in ROOMS if name.replace("/", ".").startswith(room))
    reference = (built / "book" / "library" / f"{room.rsplit('.', 1)[1]}.html").read_text(encoding="utf-8")
    assert f"{name}.html" in reference
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            continue
        anchor = re.sub(r"[^a-z0-9]+", "-", node.name.lower()).strip("-")
        assert f'id="{anchor}"' in html, node.name
        if not node.name.startswith("_") and ast.get_docstring(node):
            full = f"{name.replace('/', '.')}.{node.name}"
            assert f'id="{full}"' in reference, full
            assert f"{name}.html#{anchor}" in reference, f"{full} has no link to its place in the file"


def test_chapters_lead_to_the_reference_and_to_the_files(built: Path) -> None:
    html = (built / "book" / "09_lora.html").read_text(encoding="utf-8")
    assert "../course_utils/methods/lora.html#loralinear-forward" in html
    html = (built / "book" / "08_adapters.html").read_text(encoding="utf-8")
    assert "library/methods.html#course_utils.methods.adapters.HoulsbyConfig" in html
    linked = {
        name
        for page in (built / "book").glob("[0-9][0-9]_*.html")
        for name in re.findall(r'href="library/\w+\.html#([\w.]+)"', page.read_text(encoding="utf-8"))
    }
    methods = [name for name in linked if name.split(".")[-2][:1].isupper()]
    assert len(linked) >= 10 and not methods


_CUT = """() => [...document.querySelectorAll('.excerpt pre, .beside pre')]
  .filter(e => e.scrollWidth > e.clientWidth + 1).length"""
_FITS = """(selector) => {
  const pre = document.querySelector(selector), probe = document.createElement('span'), style = getComputedStyle(pre);
  probe.textContent = 'x'.repeat(100);
  pre.append(probe);
  const width = probe.getBoundingClientRect().width / 100;
  probe.remove();
  return (pre.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight)) / width;
}"""


@pytest.mark.parametrize(
    ("page", "selector", "width"),
    [
        ("book/06_map_of_peft", ".excerpt pre", excerpts.WIDTH),
        ("book/15_qlora", ".excerpt pre", excerpts.WIDTH),
        ("course_utils/methods/lora", ".beside pre", library.WIDTH),
    ],
)
def test_code_fits_its_column(browser: Browser, page: str, selector: str, width: int) -> None:
    opened = browser.new_page(viewport={"width": 1440, "height": 900})
    opened.goto((HTML / f"{page}.html").as_uri())
    assert opened.evaluate(_FITS, selector) >= width
    assert not opened.evaluate(_CUT)
    opened.close()


def test_prose_stands_beside_code_and_above_it_on_a_phone(browser: Browser) -> None:
    opened = browser.new_page(viewport={"width": 1440, "height": 900})
    opened.goto((HTML / "course_utils" / "methods" / "lora.html").as_uri())
    boxes = "() => ['.said', 'pre'].map(s => document.querySelector('.beside:has(.said) ' + s).getBoundingClientRect())"
    said, code = opened.evaluate(boxes)
    assert said["right"] < code["left"] and abs(said["top"] - code["top"]) < 60
    opened.set_viewport_size({"width": 390, "height": 800})
    said, code = opened.evaluate(boxes)
    assert said["bottom"] <= code["top"] and code["right"] <= 390
    opened.close()


@pytest.mark.parametrize("room", ROOMS)
def test_a_reference_fits_a_phone(browser: Browser, room: str) -> None:
    """The value of a constant was once as wide as three phones."""
    opened = browser.new_page(viewport={"width": 390, "height": 900})
    opened.goto((HTML / "book" / "library" / f"{room.rsplit('.', 1)[1]}.html").as_uri())
    assert opened.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0
    opened.close()
