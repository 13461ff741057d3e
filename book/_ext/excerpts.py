"""Show a part of the library in a page, ready to be read and copied: the directive `excerpt`.

```{excerpt} course_utils.methods.lora.LoRALinear.forward
```

names an object as Python does, so it is found wherever its module has moved to, through re-exports too. Functions are
shown with their signature, methods below the line of their class. Comments for tools are left out (`# type: ignore`),
and so is a `try` that only undoes its work and raises again. The rest is formatted for the width of the column. Several
names, one a line in the body, make one block. Options:

* `:no-docstring:`: where the page says the same;
* `:from: TEXT` and `:to: TEXT`: of a long function only the lines from the first that contains the one to the next that
  contains the other, below its name and arguments.

A name or a line that is not there is a warning with the page and the line, so a build with `-W` fails.
"""

from __future__ import annotations

import ast
import io
import re
import subprocess
import sys
import textwrap
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.environment import BuildEnvironment
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective
from sphinx.util.nodes import make_refnode

LOGGER = logging.getLogger(__name__)
#: Characters that fit into the column of a page on a screen of 1440 px; `tests/test_api_pages.py` measures it.
WIDTH = 96
_FOR_TOOLS = re.compile(r"#\s*(?:type: ?ignore|noqa|fmt:|pragma:)[^#]*")

Function = ast.FunctionDef | ast.AsyncFunctionDef


class ExcerptError(ValueError):
    """The library has no such object or line."""


@dataclass(frozen=True)
class Found:
    """An object of the library: where it stands."""

    file: Path
    name: str  # inside its module: LoRALinear.forward
    source: str
    chain: tuple[ast.stmt, ...]  # the classes around it, and itself


# --- finding ---------------------------------------------------------------------------------------------------------


def find(dotted: str, root: Path) -> Found:
    """The object that a dotted name leads to, below the folder `root`; nothing is imported.

    Raises:
        ExcerptError: there is no such module or object; the message names what there is.
    """
    steps, place = dotted.split("."), root
    while len(steps) > 1 and (place / steps[0]).is_dir():
        place = place / steps.pop(0)
    file = place / f"{steps[0]}.py"
    if file.is_file():
        del steps[0]
    elif not (file := place / "__init__.py").is_file():
        raise ExcerptError(f"there is no module {dotted!r}: {place.relative_to(root)} has no {steps[0]}.py")
    source = file.read_text(encoding="utf-8")
    chain: list[ast.stmt] = []
    body = ast.parse(source).body
    where = file.relative_to(root).as_posix()
    for count, step in enumerate(steps, start=1):
        names: dict[str, ast.stmt | None] = dict(named(body))
        if (node := names.get(step)) is None:
            inside = f"{where}, in {'.'.join(steps[: count - 1])}," if count > 1 else where
            if file.name == "__init__.py":
                names |= {other.stem: node for other in sorted(place.glob("[a-z]*.py"))}
            else:
                names = {name: one for name, one in names.items() if not isinstance(one, ast.ImportFrom)}
            raise ExcerptError(f"{inside} has no {step!r}; there are: {', '.join(names) or 'no names'}")
        if isinstance(node, ast.ImportFrom):
            original = next(alias.name for alias in node.names if (alias.asname or alias.name) == step)
            return find(".".join([node.module or "", original, *steps[count:]]), root)
        chain.append(node)
        body = node.body if isinstance(node, ast.ClassDef) else []
    if not chain:
        raise ExcerptError(f"{dotted!r} is a whole module: name something in it")
    return Found(file, ".".join(steps), source, tuple(chain))


def named(body: Iterable[ast.stmt]) -> Iterator[tuple[str, ast.stmt]]:
    """What the statements of a module or a class bind: definitions, constants, and names from other modules."""
    for node in body:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                yield name, node
            case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                yield name, node
            case ast.ImportFrom(names=aliases):
                yield from ((alias.asname or alias.name, node) for alias in aliases)


# --- cutting out -----------------------------------------------------------------------------------------------------


def excerpt(found: Found, docstring: bool = True, first: str = "", last: str = "") -> tuple[str, list[str]]:
    """The code to show, and in words what was left out of it.

    Raises:
        ExcerptError: no line holds the text `first`, or none after it the text `last`.
    """
    node, left_out = found.chain[-1], []
    lines = found.source.split("\n")
    code = textwrap.dedent("\n".join(lines[first_line(node) - 1 : node.end_lineno]))
    if not docstring or first:
        code = without_docstring(code)
    if first:
        code, left_out = part(code, found, first, last), ["a part"]
    elif (shorter := without_rollback(code)) != code:
        code, left_out = shorter, ["without the lines that undo it after an error"]
    for around in reversed(found.chain[:-1]):
        assert isinstance(around, ast.ClassDef)
        head = "\n".join(lines[around.lineno - 1 : around.body[0].lineno - 1]).strip()
        code = f"{head}\n    ...\n\n{textwrap.indent(code, '    ')}"
    return fitted(without_comments_for_tools(code)), left_out


def first_line(node: ast.stmt) -> int:
    """Where a definition begins: at its first decorator."""
    return min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", []))])


def without_docstring(code: str) -> str:
    """A function without its docstring."""
    [node] = ast.parse(code).body
    body = getattr(node, "body", [])
    if len(body) < 2 or ast.get_docstring(node) is None:  # type: ignore[arg-type]
        return code
    lines = code.split("\n")
    return "\n".join([*lines[: body[0].lineno - 1], *lines[body[0].end_lineno :]])


def part(code: str, found: Found, first: str, last: str) -> str:
    """The name and the arguments of a function, and some lines of it."""
    [node] = ast.parse(code).body
    if not isinstance(node, Function):
        raise ExcerptError(f"{found.name} is no function: show it whole, without :from:")
    lines = code.split("\n")
    start = next((n for n in range(node.body[0].lineno - 1, len(lines)) if first in lines[n]), None)
    if start is None:
        raise ExcerptError(f"no line of {found.name} contains {first!r}")
    end = next((n for n in range(start, len(lines)) if last in lines[n]), None) if last else len(lines) - 1
    if end is None:
        raise ExcerptError(f"no line of {found.name} after {first!r} contains {last!r}")
    for argument in ast.walk(node.args):
        if isinstance(argument, ast.arg):
            argument.annotation = None
    shown = textwrap.indent(textwrap.dedent("\n".join(lines[start : end + 1])), "    ")
    skipped = "    ...\n" if start > node.body[0].lineno - 1 else ""
    return f"def {node.name}({ast.unparse(node.args)}):\n{skipped}{shown}"


def without_rollback(code: str) -> str:
    """Of a `try` whose handlers undo something and raise again only the body, and nothing that is kept for them."""
    tree, lines = ast.parse(code), code.split("\n")
    gone: set[int] = set()
    shifted: set[int] = set()
    handlers: list[ast.ExceptHandler] = []
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Try)
            and not node.orelse
            and not node.finalbody
            and all(map(_raises_again, node.handlers))
        ):
            handlers += node.handlers
            gone |= {node.lineno, *range(node.handlers[0].lineno, (node.end_lineno or 0) + 1)}
            shifted |= set(range(node.lineno + 1, node.handlers[0].lineno))
    inside = {id(node) for handler in handlers for node in ast.walk(handler)}
    used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load)
            and id(node) not in inside}  # fmt: skip
    for node in ast.walk(tree):
        if handlers and isinstance(node, ast.Assign) and id(node) not in inside:
            names = [target.id for target in node.targets if isinstance(target, ast.Name)]
            if len(names) == len(node.targets) and not used & set(names):
                gone |= set(range(node.lineno, (node.end_lineno or 0) + 1))
    kept = ((number, line) for number, line in enumerate(lines, start=1) if number not in gone)
    return "\n".join(line.removeprefix("    ") if number in shifted else line for number, line in kept)


def _raises_again(handler: ast.ExceptHandler) -> bool:
    match handler.body:
        case [_, *_, ast.Raise(exc=None)]:
            return True
    return False


def without_comments_for_tools(code: str) -> str:
    """The code without comments that only a type checker or a formatter reads."""
    lines = code.split("\n")
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(code).readline))
    except (tokenize.TokenError, IndentationError):  # a part may end inside something
        return code
    for token in tokens:
        if token.type == tokenize.COMMENT and _FOR_TOOLS.search(token.string):
            row, column = token.start
            lines[row - 1] = (lines[row - 1][:column] + _FOR_TOOLS.sub("", token.string)).rstrip()
    return "\n".join(lines)


# --- fitting into the column -----------------------------------------------------------------------------------------


@cache
def fitted(code: str, width: int = WIDTH) -> str:
    """The code with no line longer than `width`, unless a text in it is: by ruff, and docstrings and comments by us."""
    code = _comments_above(code, width)  # before, or ruff would break a short statement with a long comment
    command = [sys.executable, "-m", "ruff", "format", "--isolated", "--line-length", str(width), "-"]
    done = subprocess.run(command, input=code, capture_output=True, text=True, encoding="utf-8", check=False)
    if done.returncode:
        raise ExcerptError(f"ruff could not format the code: {done.stderr.strip() or 'is it installed?'}")
    return _comments_above(_docstrings_refilled(done.stdout.strip("\n"), width), width)


def _docstrings_refilled(code: str, width: int) -> str:
    lines = code.split("\n")
    documented = [node for node in ast.walk(ast.parse(code)) if isinstance(node, Function | ast.ClassDef | ast.Module)]
    texts = [node.body[0] for node in documented if ast.get_docstring(node) is not None]
    for text in sorted(texts, key=lambda text: -text.lineno):  # from below, so that the lines above keep their numbers
        start, end = text.lineno - 1, text.end_lineno or 0
        if any(len(line) > width for line in lines[start:end]):
            lines[start:end] = refilled(lines[start:end], width)
    return "\n".join(lines)


def refilled(lines: list[str], width: int) -> list[str]:
    """Paragraphs and entries of a docstring filled anew; what stands below `::` stays."""
    done: list[str] = []
    literal = -1  # the indentation of the line that ended in ::
    section = False  # Args and the like, where an entry is "name: text"
    group: list[str] = []

    def close() -> None:
        if group:
            first, rest = indentation(group[0]), indentation(group[-1])
            text = " ".join(line.strip() for line in group)
            ends = re.match(r"\s*[*-] ", group[0]) or (section and re.match(r"\s*[\w, ]+: ", group[0]))
            rest = max(rest, first + 4 * bool(ends and len(group) == 1)) if first or ends else rest
            done.extend(
                textwrap.wrap(text, width, initial_indent=" " * first, subsequent_indent=" " * rest,
                              break_long_words=False, break_on_hyphens=False)
            )  # fmt: skip
            group.clear()

    for line in lines:
        here = indentation(line)
        if literal >= 0 and (not line.strip() or here > literal):
            close()
            done.append(line)
            continue
        literal = -1
        if not line.strip() or re.match(r"\s*(Args|Returns|Raises|Yields):$", line) or line.strip() == '"""':
            close()
            done.append(line)
            section = line.strip().endswith(":")
            continue
        if (len(group) > 1 and here != indentation(group[-1])) or (group and here < indentation(group[0])):
            close()
        entry = r"\s*(?:\d+\.|[*-]) |\s*\w+: " if section else r"\s*(?:\d+\.|[*-]) "
        if group and re.match(entry, line) and here <= indentation(group[0]):
            close()
        group.append(line)
        if line.rstrip().endswith("::"):
            literal = here
    close()
    return done


def indentation(line: str) -> int:
    """The spaces that a line begins with."""
    return len(line) - len(line.lstrip())


def _comments_above(code: str, width: int) -> str:
    """A comment that sticks out goes above its line; one that is a line of its own is wrapped."""
    lines = code.split("\n")
    for token in reversed(list(_comments(code))):
        row, column = token.start
        line = lines[row - 1]
        if len(line) <= width:
            continue
        indent = " " * indentation(line)
        words = textwrap.wrap(token.string.lstrip("# "), width - len(indent) - 2, break_long_words=False)
        comment = [f"{indent}# {text}" for text in words]
        statement = line[:column].rstrip()
        lines[row - 1 : row] = [*comment, statement] if statement else comment
    return "\n".join(lines)


def _comments(code: str) -> Iterator[tokenize.TokenInfo]:
    return (one for one in tokenize.generate_tokens(io.StringIO(code).readline) if one.type == tokenize.COMMENT)


# --- the directive ---------------------------------------------------------------------------------------------------


def source_link(env: BuildEnvironment, found: Found) -> nodes.Node:
    """The name and the file of an object; where the book has a page of the file, the name leads to its place on it."""
    path = found.file.relative_to(env.srcdir).as_posix()
    name: nodes.Element = nodes.literal("", found.name)
    docname = path.removesuffix(".py")
    if path.startswith("course_utils/") and docname in env.found_docs:
        to = {"reftarget": docname, "anchor": nodes.make_id(found.name), "refdoc": env.docname}
        name = addnodes.pending_xref("", name, refdomain="", reftype="library-file", **to)
    return nodes.inline("", "", name, nodes.Text(f" in {path}"))


def resolve_file(app: Sphinx, env: BuildEnvironment, node: addnodes.pending_xref, shown: nodes.TextElement) -> Any:
    """A link to an object on the page of its file."""
    if node["reftype"] != "library-file":
        return None
    return make_refnode(app.builder, node["refdoc"], node["reftarget"], node["anchor"], shown)


class Excerpt(SphinxDirective):
    """One object or several of one module; see the module's docstring."""

    optional_arguments = 1
    has_content = True
    option_spec: ClassVar[dict[str, Any]] = {
        "no-docstring": directives.flag,
        "from": directives.unchanged_required,
        "to": directives.unchanged_required,
    }

    def run(self) -> list[nodes.Node]:
        """Show the code below its name."""
        root = Path(self.env.srcdir)
        self.env.note_dependency(__file__)
        try:
            found = [find(name, root) for name in [*self.arguments, *filter(None, map(str.strip, self.content))]]
            if not found:
                raise ExcerptError("name what to show, like course_utils.methods.lora.LoRALinear.forward")
            code, left_out = [], []
            for one in found:
                self.env.note_dependency(str(one.file))
                options = (self.options.get(key, "") for key in ("from", "to"))
                text, missing = excerpt(one, "no-docstring" not in self.options, *options)
                code.append(text)
                left_out += missing
        except ExcerptError as error:
            LOGGER.warning("excerpt: %s", error, location=self.get_location())
            return []
        block = nodes.literal_block("", "\n\n\n".join(code), language="python")
        self.set_source_info(block)
        caption = nodes.caption("", "", source_link(self.env, found[0]))
        for one in found[1:]:
            caption += [nodes.Text(", "), source_link(self.env, one)]
        if left_out:
            caption += nodes.Text(f", {left_out[0]}")
        return [nodes.container("", caption, block, literal_block=True, classes=["literal-block-wrapper", "excerpt"])]


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive and the links to the pages of files."""
    app.add_directive("excerpt", Excerpt)
    app.connect("missing-reference", resolve_file)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
