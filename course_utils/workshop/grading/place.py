"""From a student's notebook to the code that one exercise needs.

The cell with the answer is found wherever it stands, by the name that it defines. It brings along what it uses: the
statements of the student's own cells, and of the lab's, that define a name which it reads, and so on. Everything else
in the notebook stays out: check cells, experiments, training.
"""

from __future__ import annotations

import ast
import builtins
import re
import symtable
from dataclasses import dataclass
from typing import Any

_BROKEN = (SyntaxError, ValueError, RecursionError, MemoryError)
_STARS = "*"


@dataclass(frozen=True)
class Piece:
    """A statement or a cell.

    Args:
        code: its text.
        binds: the names that it defines.
        changes: the names whose objects it changes: `table["x"] = 1`, `torch.set_num_threads(1)`.
        reads: the names that it needs from outside.
        own: whether the student wrote it.
    """

    code: str
    binds: frozenset[str]
    changes: frozenset[str]
    reads: frozenset[str]
    own: bool


@dataclass(frozen=True)
class Placed:
    """What to run for one exercise.

    Args:
        pieces: in order; the cell with the answer among them.
        answer: the name to give to the check.
        error: why the answer cannot run; None when it can.
        note: what a reader of the report should know, or "".
        untouched: the cell is as the lab gave it out.
    """

    pieces: list[Piece]
    answer: str
    error: str | None = None
    note: str = ""
    untouched: bool = False


def place(lab: dict[str, Any], cells: list[tuple[str, str]], exercise: str) -> Placed:
    """Find the answer to an exercise and what it needs.

    Args:
        lab: "cells" and "tasks" of a `Lab`, as plain data.
        cells: (id, code) of the student's code cells.
        exercise: its name.
    """
    homes = {task["exercise"]: _home(task, cells) for task in lab["tasks"]}
    task = next(task for task in lab["tasks"] if task["exercise"] == exercise)
    found = homes[exercise]
    if not found:
        return Placed([], task["answer"], f"no cell of the notebook defines `{task['answer']}`")
    position = found[-1]
    code = clean(cells[position][1])
    untouched = _same(code, task["stub"])
    note = f"{len(found)} cells answer this exercise; the last one counts." if len(found) > 1 else ""
    try:
        own = piece(code, own=True)
    except _BROKEN as error:
        where = f" in line {error.lineno} of the cell" if isinstance(error, SyntaxError) and error.lineno else ""
        says = error.msg if isinstance(error, SyntaxError) else str(error)
        return Placed([], task["answer"], f"{type(error).__name__}{where}: {says}", note)
    answer = task["answer"]
    if answer not in own.binds:
        others = _functions(code)
        if not others:
            return Placed([], answer, f"the cell does not define `{answer}` any more", note)
        answer = others[-1]
        note = f"{note} The cell defines `{answer}` in the place of `{task['answer']}`; it was taken.".strip()
    answers = {places[-1] for places in homes.values() if places}
    theirs = _own_pieces(lab, cells, answers)
    given = [statement for cell in lab["cells"] for statement in _statements(cell, own=False)]
    return Placed(_needed(own, position, theirs, given), answer, None, note, untouched)


def _home(task: dict[str, Any], cells: list[tuple[str, str]]) -> list[int]:
    """Positions of the cells that answer; those left as they were given out count only when there is no other."""
    name = re.escape(task["answer"])
    pattern = re.compile(rf"^(async +)?(def +{name}\b|{name} *(:[^=\n]*)?=(?!=)|class +{name}\b)", re.MULTILINE)
    defining = [place for place, (_, code) in enumerate(cells) if pattern.search(code)]
    found = defining or [place for place, (cell_id, _) in enumerate(cells) if cell_id == task["cell_id"]]
    return [place for place in found if not _same(clean(cells[place][1]), task["stub"])] or found[-1:]


def _same(one: str, other: str) -> bool:
    return "".join(one.split()) == "".join(other.split())


def clean(code: str) -> str:
    """The code without IPython's own lines (`%`, `!`, `?`), where it is no Python with them."""
    try:
        ast.parse(code)
    except _BROKEN:
        return "\n".join(line for line in code.split("\n") if not re.match(r"\s*[%!?]|.*\?$", line))
    return code


def piece(code: str, own: bool) -> Piece:
    """A cell or a statement with the names that it binds and reads.

    Raises:
        SyntaxError: it is no Python; also ValueError, RecursionError and MemoryError for what no parser takes.
    """
    tree = ast.parse(code)
    compile(tree, "<your notebook>", "exec", dont_inherit=True)
    table = symtable.symtable(code, "<your notebook>", "exec")
    binds = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_assigned() or symbol.is_imported()}
    changes = {name for node in tree.body for name in _changes(node)}
    if any(isinstance(node, ast.ImportFrom) and node.names[0].name == "*" for node in tree.body):
        binds.add(_STARS)
    reads = {symbol.get_name() for symbol in table.get_symbols() if symbol.is_referenced()} | _globals(table)
    return Piece(code, frozenset(binds), frozenset(changes), frozenset(reads - set(vars(builtins))), own)


def _globals(table: symtable.SymbolTable) -> set[str]:
    """Names that functions and classes take from outside of all of them."""
    found = set()
    for child in table.get_children():
        found |= {symbol.get_name() for symbol in child.get_symbols() if symbol.is_global()} | _globals(child)
    return found


def _changes(statement: ast.stmt) -> list[str]:
    if isinstance(statement, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return []  # what it changes is changed when it is called
    found = []
    for node in ast.walk(statement):
        target: ast.AST | None = None
        if isinstance(node, ast.Attribute | ast.Subscript) and isinstance(node.ctx, ast.Store | ast.Del):
            target = node
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            target = node.value.func
        while isinstance(target, ast.Attribute | ast.Subscript):
            target = target.value
            if isinstance(target, ast.Name):
                found.append(target.id)
    return found


def _functions(code: str) -> list[str]:
    return [node.name for node in ast.parse(code).body if isinstance(node, ast.FunctionDef)]


def _statements(code: str, own: bool) -> list[Piece]:
    """The top-level statements of a cell; none where it is no Python."""
    code = clean(code)
    try:
        return [piece(ast.get_source_segment(code, node) or "", own) for node in _decorated(ast.parse(code))]
    except _BROKEN:
        return []


def _decorated(tree: ast.Module) -> list[ast.stmt]:
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef) and node.decorator_list:
            node.lineno, node.col_offset = node.decorator_list[0].lineno, 0
    return tree.body


def _own_pieces(lab: dict[str, Any], cells: list[tuple[str, str]], answers: set[int]) -> list[tuple[int, Piece]]:
    """(position, piece) of what the student wrote: other answers as whole cells, own cells by statement."""
    given = {"".join(code.split()) for code in lab["cells"]} | {"".join(task["stub"].split()) for task in lab["tasks"]}
    found: list[tuple[int, Piece]] = []
    for position, (_, code) in enumerate(cells):
        if "".join(code.split()) in given:
            continue
        if position in answers:
            try:
                found.append((position, piece(clean(code), own=True)))
            except _BROKEN:
                continue
        else:
            found += [(position, statement) for statement in _statements(code, own=True)]
    return found


def _needed(answer: Piece, position: int, theirs: list[tuple[int, Piece]], given: list[Piece]) -> list[Piece]:
    """The answer with all that it needs, in the order of the notebook; what the lab gives comes first."""
    others = [own for place, own in theirs if place != position]
    wanted = [*answer.reads, _STARS]
    taken: set[int] = set()
    seen: set[str] = set()
    while wanted:
        name = wanted.pop()
        if name in seen:
            continue
        seen.add(name)
        # What the student defines counts before what the lab defines.
        pool = others if any(name in other.binds for other in others) else given
        found = [other for other in pool if name in other.binds]
        found += [other for other in (*others, *(pool if pool is given else [])) if name in other.changes]
        taken |= {id(other) for other in found}
        wanted += [read for other in found for read in other.reads]
    ordered = [other for place, other in theirs if place < position] + [answer]
    ordered += [other for place, other in theirs if place > position]
    # A helper that stands below its function in the notebook is there by the time the function is called.
    return [own for own in given if id(own) in taken] + [own for own in ordered if id(own) in taken or own is answer]
