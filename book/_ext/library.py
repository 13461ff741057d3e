"""The library in the book: a page for each file of a room, and a reference page for each room.

A file of Python that `_toc.yml` names is a page of the book. It shows the whole file: docstrings and comments as prose,
the code beside them, and each class and function with an anchor of its own. Nothing is written beside the sources: the
parser below reads the file itself, so the buttons for editing and downloading lead to it.

`{room} course_utils.methods` in a page of Markdown stands for the reference of all modules of that room, by autodoc. A
link leads from each object there to its place in the file, and from names in docstrings, comments and chapters to the
reference.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from excerpts import Function, first_line, fitted, without_comments_for_tools
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.environment import BuildEnvironment
from sphinx.ext.napoleon import GoogleDocstring
from sphinx.parsers import RSTParser
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util.docutils import SphinxRole
from sphinx.util.nodes import make_refnode

ROOT = Path(__file__).parents[2]

#: The rooms whose files are pages, as _toc.yml lists them.
_WITH_PAGES = tuple(f"course_utils.{room}." for room in ("methods", "training", "checkpoints", "distillation"))
#: Characters of a line of code beside its explanation.
WIDTH = 84
_ROOM = re.compile(r"^```\{room\} ([\w.]+)\n```$", re.MULTILINE)
#: What stays as it is in prose: bullets, code, emphasis.
_KEPT = re.compile(r"(^\s*[*-] |``[^`]+``|`[^`]+`|\*\*?\S(?:[^*\n]*\S)?\*\*?(?!\w))", re.MULTILINE)


# --- prose -----------------------------------------------------------------------------------------------------------


def escaped(lines: list[str]) -> list[str]:
    """A docstring with whatever reStructuredText would misread made plain: |x|, a lonely *, name_."""
    done: list[str] = []
    text: list[str] = []  # of prose; a literal may go on in the next line
    literal = -1

    def close() -> None:
        pieces = _KEPT.split("\n".join(text))
        pieces[::2] = [re.sub(r"([\\|*`])|(?<=\w)(_)(?!\w)", r"\\\g<0>", piece) for piece in pieces[::2]]
        done.extend("".join(pieces).split("\n") if text else [])
        text.clear()

    for line in lines:
        here = len(line) - len(line.lstrip())
        if literal >= 0 and (not line.strip() or here > literal):
            done.append(line)
            continue
        text.append(line)
        literal = here if line.rstrip().endswith("::") else -1
        if literal >= 0:
            close()
    close()
    return done


def prose(docstring: str, config: Config) -> list[str]:
    """A docstring as lines of reStructuredText, its Args, Returns and Raises as lists."""
    return list(GoogleDocstring(escaped(docstring.split("\n")), config).lines())


# --- the page of a file ----------------------------------------------------------------------------------------------


def comments_apart(code: list[str]) -> Iterator[tuple[list[str], list[str]]]:
    """Pieces of code, each with the lines of comment that stand above it."""
    text = "\n".join(code)
    alone = set()
    try:
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT and not token.line[: token.start[1]].strip():
                alone.add(token.start[0] - 1)
    except (tokenize.TokenError, IndentationError):
        pass  # what could not be read stays code
    said: list[str] = []
    piece: list[str] = []
    for number, line in enumerate(code):
        if number in alone:
            if any(map(str.strip, piece)):
                yield said, piece
                said, piece = [], []
            said.append(re.sub(r"^#:? ?|[- ]{3,}$|^# -{3,} ", "", line.strip()).strip())
        else:
            piece.append(line)
    if said or any(map(str.strip, piece)):
        yield said, piece


def docstrings_apart(code: str) -> tuple[str, dict[str, str]]:
    """The code without its docstrings, and these by the name of what they are about; "" is the module."""
    lines, found = code.split("\n"), {}

    def visit(node: ast.Module | ast.ClassDef | Function, name: str) -> None:
        for one in reversed(node.body):
            if isinstance(one, ast.ClassDef | Function):
                visit(one, f"{name}.{one.name}".lstrip("."))
        document = ast.get_docstring(node)
        if document is None:
            return
        found[name] = document
        start, end = node.body[0].lineno - 1, node.body[0].end_lineno or 0
        while end < len(lines) and not lines[end].strip() and len(node.body) > 1:
            end += 1  # no hole where it stood
        lines[start:end] = [] if len(node.body) > 1 else [f"{lines[start][: node.body[0].col_offset]}..."]

    visit(ast.parse(code), "")
    return "\n".join(lines), found


def page_of(source: str, name: str, config: Config) -> list[str]:
    """The page of a module, as lines of reStructuredText."""
    code, _ = docstrings_apart(fitted(without_comments_for_tools(source), WIDTH))
    _, documents = docstrings_apart(source)  # not filled for a column: a browser does that
    module, lines = ast.parse(code), code.split("\n")
    page: list[str] = []

    def heading(text: str, line: str) -> None:
        page.extend([re.sub(r"([_*])", r"\\\1", text), line * 2 * len(text), ""])

    def part(said: list[str], start: int, end: int) -> None:
        """The lines from `start` to `end`, counted from 1, beside `said` and their own comments."""
        pieces = list(comments_apart(lines[start - 1 : end]))
        if said and (not pieces or pieces[0][0]):
            pieces.insert(0, ([], []))
        for number, (comment, piece) in enumerate(pieces):
            words = [*(said if number == 0 else []), *escaped(comment)]
            page.extend([".. container:: beside", ""])
            if any(map(str.strip, words)):
                page.extend(["   .. container:: said", "", *(f"      {line}".rstrip() for line in words), ""])
            if text := "\n".join(piece).strip("\n"):
                page.extend(["   .. code-block:: python", ""])
                page.extend([*(f"      {line}".rstrip() for line in text.split("\n")), ""])

    def definitions(body: list[ast.stmt], around: str, done: int, end: int, line: str) -> None:
        """The classes and functions of a body whose first `done` lines are shown, and what stands between them."""
        defined = [one for one in body if isinstance(one, ast.ClassDef | Function)]
        for one in defined:
            begin = _with_comments(lines, first_line(one))
            between(body, done + 1, begin - 1, line, titled=one is not defined[0])
            name = f"{around}.{one.name}".lstrip(".")
            heading(name, line)
            said = prose(documents[name], config) if name in documents else []
            inner = [method for method in one.body if isinstance(method, Function)]
            whole = one.end_lineno or 0
            if isinstance(one, ast.ClassDef) and inner:
                start = _with_comments(lines, first_line(inner[0]))
                part(said, begin, start - 1)
                definitions(one.body, name, start - 1, whole, "~")
            else:
                part(said, begin, whole)
            done = whole
        between(body, done + 1, end, line, titled=bool(defined))

    def between(body: list[ast.stmt], start: int, end: int, line: str, titled: bool) -> None:
        """Constants, imports, fields."""
        if any(map(str.strip, lines[start - 1 : end])):
            if titled and line == "-":
                heading(_bound(body, start, end), line)
            part([], start, end)

    heading(name, "=")
    page.extend([*prose(documents.get("", ""), config), ""])
    names = [one.name for one in module.body if isinstance(one, ast.ClassDef | Function)]
    if len(names) > 1:
        page.extend(["In this file: " + ", ".join(f"`{one} <#{nodes.make_id(one)}>`__" for one in names) + ".", ""])
    definitions(module.body, "", 0, len(lines), "-")
    return page


def _with_comments(lines: list[str], start: int) -> int:
    """Where the comment begins that stands directly above a line."""
    while start > 1 and lines[start - 2].lstrip().startswith("#"):
        start -= 1
    return start


def _bound(body: list[ast.stmt], start: int, end: int) -> str:
    """The names of the constants between two lines, as a heading."""
    names = [
        target.id
        for node in body
        if isinstance(node, ast.Assign | ast.AnnAssign) and start <= node.lineno <= end
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name)
    ]
    return ", ".join(names[:3]) + (", …" if len(names) > 3 else "") if names else "and so on"


class ModuleParser(RSTParser):
    """Reads a file of Python as a page."""

    supported = ("python-module",)

    def parse(self, inputstring: str | StringList, document: nodes.document) -> None:
        """Make the page, and let docutils read it."""
        file = Path(document.current_source or "")
        page = page_of(str(inputstring), file.name, self.config)
        self.env.note_dependency(__file__)
        self.env.temp_data["library-module"] = self.env.docname.replace("/", ".")
        super().parse(StringList(page, str(file)), document)
        document["classes"] += ["library-file"]


# --- the reference ---------------------------------------------------------------------------------------------------


def modules_of(room: str, root: Path) -> list[Path]:
    """The files of a room, which is a folder with modules or one module, in the order of the alphabet.

    Raises:
        FileNotFoundError: there is neither.
    """
    folder = root / room.replace(".", "/")
    files = sorted(file for file in folder.rglob("*.py") if file.name != "__init__.py")
    if not files and (file := folder.with_suffix(".py")).is_file():
        files = [file]
    if not files:
        raise FileNotFoundError(f"there is no room {room}")
    return files


def expand_rooms(app: Sphinx, docname: str, content: list[str]) -> None:
    """Write the reference of a room where a page asks for it."""
    root = Path(app.srcdir)

    def reference(match: re.Match[str]) -> str:
        sections = []
        for file in modules_of(match[1], root):
            name = file.relative_to(root).with_suffix("").as_posix()
            app.env.note_dependency(str(file))
            app.env.note_dependency(str(file.parent))  # a file more or less
            page = f"[The whole file](/{name}.py), with explanations." if name in app.env.found_docs else ""
            # Without values: a table of constants would be wider than any screen, and the page of the file shows it.
            options = ["   :members:", "   :show-inheritance:", "   :no-value:"]
            lines = [f".. automodule:: {name.replace('/', '.')}", *options]
            sections.append("\n".join([f"## {file.name}\n", f"{page}\n", "```{eval-rst}", *lines, "```\n"]))
        return "\n".join(sections)

    content[0] = _ROOM.sub(reference, content[0])


def shorten(app: Sphinx, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Of a module the first paragraph: its page has the rest. This comes before napoleon, which reads the sections."""
    if what == "module":
        del lines[next((n for n, line in enumerate(lines) if not line.strip()), len(lines)) :]
        if lines and lines[-1].endswith("::"):
            lines[-1] = lines[-1][:-1]
    if what in ("attribute", "data", "property") and lines:
        lines[0] = f": {lines[0]}"  # else napoleon takes "BitFit's two: query and value" for a type and its explanation
    lines[:] = escaped(lines)


def link_to_file(domain: str, info: dict[str, str]) -> str | None:
    """The place of an object in the page of its file, seen from a page of `book/library`."""
    if domain != "py" or not info["module"].startswith(_WITH_PAGES):
        return None
    page = f"../../{info['module'].replace('.', '/')}.html"
    return f"{page}#{nodes.make_id(info['fullname'])}" if _has_anchor(info["module"], info["fullname"]) else page


@cache
def _has_anchor(module: str, name: str) -> bool:
    """Whether the page of a file has a heading for a name: classes and functions have one, constants have not."""
    body = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text(encoding="utf-8")).body
    for part in name.split("."):
        found = [node for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == part]
        if not found:
            return False
        body = found[0].body
    return True


# --- names as links --------------------------------------------------------------------------------------------------


class NameRole(SphinxRole):
    """`name` in a docstring or a comment: a link to the reference, where that has the name; else only code."""

    def run(self) -> tuple[list[nodes.Node], list[nodes.system_message]]:
        """Leave the decision to `resolve_name`."""
        shown = nodes.literal("", self.text, classes=["py"])
        module = self.env.temp_data.get("library-module") or self.env.ref_context.get("py:module", "")
        return [_link_to_name(self.env.docname, self.text, module, shown)], []


def _link_to_name(docname: str, name: str, module: str, shown: nodes.literal) -> addnodes.pending_xref:
    target = name.removesuffix("()")
    return addnodes.pending_xref(
        "", shown, refdomain="", reftype="library-name", reftarget=target, module=module, refdoc=docname
    )


def full_name(env: BuildEnvironment, name: str, module: str) -> str:
    """What a short name means: something of the same module, or the only thing in the library that is called so."""
    known = env.domains["py"].objects
    if f"{module}.{name}" in known:
        return f"{module}.{name}"
    found = [one for one in known if one.startswith("course_utils.") and one.endswith(f".{name}")]
    top = [one for one in found if known[one].objtype in ("class", "function", "exception")]
    candidates = top or found
    return candidates[0] if len(candidates) == 1 else ""


def resolve_name(app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, shown: nodes.TextElement) -> Any:
    """The link of `NameRole`, or the bare name."""
    if node["reftype"] != "library-name":
        return None
    full = full_name(env, node["reftarget"], node["module"])
    if not full:
        return shown
    entry = env.domains["py"].objects[full]
    return make_refnode(app.builder, node["refdoc"], entry.docname, entry.node_id, shown, full)


class LinkNames(SphinxPostTransform):
    """In a chapter the first `Name` of a class or function of the reference is a link to it."""

    default_priority = 5  # before references are resolved

    def run(self, **kwargs: Any) -> None:
        """Look at each inline piece of code that is not part of a link or a heading."""
        if not re.match(r"book/\d\d_", self.env.docname):
            return
        seen = set()
        for shown in list(self.document.findall(nodes.literal)):
            name = shown.astext().removesuffix("()")
            inside = shown.parent
            if name in seen or not re.fullmatch(r"[A-Za-z]\w{3,}", name) or not isinstance(inside, nodes.paragraph):
                continue
            full = full_name(self.env, name, "")
            # Only what stands at the top of a module: `train` in a chapter is not a method that is called so, too.
            if full and self.env.domains["py"].objects[full].objtype in ("class", "function", "exception"):
                seen.add(name)
                shown.replace_self(_link_to_name(self.env.docname, name, "", shown.deepcopy()))


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the kind of file, the links and the hooks; autodoc does the rest."""
    for extension in ("excerpts", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.linkcode"):
        app.setup_extension(extension)
    app.config.linkcode_resolve = link_to_file
    app.add_source_suffix(".py", "python-module")
    app.add_source_parser(ModuleParser)
    app.add_role("name", NameRole())
    app.add_post_transform(LinkNames)
    app.connect("source-read", expand_rooms)
    app.connect("autodoc-process-docstring", shorten, priority=100)
    app.connect("missing-reference", resolve_name)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
