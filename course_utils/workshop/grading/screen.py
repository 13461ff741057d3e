"""What an answer does not need: code that could reach the check itself, where both run in one process.

This is no proof, it is a fence: such an answer gets no points by itself, and the report asks a person to look at it.
"""

from __future__ import annotations

import ast
import re

_MODULES = {
    *("ast", "atexit", "builtins", "code", "codecs", "ctypes", "dis", "faulthandler", "gc", "imp", "importlib"),
    *("inspect", "io", "linecache", "marshal", "multiprocessing", "os", "pickle", "pkgutil", "posix", "resource"),
    *("runpy", "select", "shutil", "signal", "socket", "subprocess", "sys", "threading", "traceback", "types"),
    *("unittest", "weakref", "_thread", "_ctypes", "cffi", "psutil", "pytest", "IPython"),
}
_OURS = ("course_utils.exercises", "course_utils.workshop.grading", "course_utils.workshop.authoring.notebooks")
_NAMES = {
    *("eval", "exec", "compile", "globals", "locals", "vars", "delattr", "breakpoint", "input", "open"),
    *("get_ipython", "exit", "quit"),
}
_MAGIC = re.compile(r"__.*|_getframe|_current_frames|f_(back|locals|globals|code|builtins)|(gi|tb|cr|ag)_frame|mro")
_USUAL = {"__init__", "__name__", "__len__", "__call__", "__getitem__", "__iter__", "__main__"}


def suspicious(code: str) -> list[str]:
    """What in this code an answer does not need; empty for an answer like all others."""
    tree = ast.parse(code)
    imported = {name for node in ast.walk(tree) for name in _imported(node)}
    found: dict[str, None] = {}
    for node in ast.walk(tree):
        for says in _in_node(node, imported):
            found[says] = None
    return list(found)


def _imported(node: ast.AST) -> list[str]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        return [(name.asname or name.name).split(".")[0] for name in node.names]
    return []


def _in_node(node: ast.AST, imported: set[str]) -> list[str]:
    if isinstance(node, ast.Import):
        return [f"import {name.name}" for name in node.names if _forbidden(name.name)]
    if isinstance(node, ast.ImportFrom):
        whole = [f"{node.module}.{name.name}" for name in node.names]
        safe = node.module == "course_utils.exercises" and all(name.name == "check" for name in node.names)
        return [] if safe else [f"import {name}" for name in whole if _forbidden(name)]
    if isinstance(node, ast.Name) and (node.id in _NAMES or _hidden(node.id)):
        return [node.id]
    if isinstance(node, ast.Attribute):
        inside = _root(node) in imported
        reaches = inside and (node.attr in _MODULES or node.attr.startswith("_"))
        says = [ast.unparse(node)] if reaches or _hidden(node.attr) else []
        # `type(model).forward = ...` changes the class for the check too.
        if isinstance(node.ctx, ast.Store | ast.Del) and (inside or _root(node) == "type"):
            says.append(f"{ast.unparse(node)} = …")
        return says
    if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("setattr", "getattr"):
        constant = node.args[1].value if len(node.args) > 1 and isinstance(node.args[1], ast.Constant) else None
        changes = node.func.id == "setattr" and node.args and _root(node.args[0]) in {*imported, "type"}
        if changes or (isinstance(constant, str) and _hidden(constant)):
            return [ast.unparse(node)]
    if isinstance(node, ast.Global | ast.Nonlocal):
        return [f"global {name}" for name in node.names if name in imported]
    return []


def _forbidden(module: str) -> bool:
    return module.split(".")[0] in _MODULES or module.startswith(_OURS)


def _hidden(name: str) -> bool:
    return bool(_MAGIC.fullmatch(name)) and name not in _USUAL


def _root(node: ast.AST) -> str | None:
    while isinstance(node, ast.Attribute | ast.Subscript | ast.Call):
        node = node.func if isinstance(node, ast.Call) else node.value
    return node.id if isinstance(node, ast.Name) else None
