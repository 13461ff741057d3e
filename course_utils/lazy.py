"""A room's front door: its names stand in `__init__.pyi`, and each is imported when somebody asks for it.

So `from course_utils import fit` brings in neither pandas nor matplotlib, and `python -m course_utils doctor` runs even
where PyTorch cannot be imported, which is why this is no package from outside.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any


def front_door(package: str, file: str) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """`__getattr__`, `__dir__` and `__all__` for the `__init__.py` of a room, from the `__init__.pyi` beside it.

    Args:
        package: `__name__` of the room, such as "course_utils.training".
        file: its `__file__`.

    Raises:
        ImportError: the stub holds something else than `from .module import name as name`.
    """
    homes: dict[str, str] = {}
    stub = Path(file).with_suffix(".pyi")
    for line in ast.parse(stub.read_text(encoding="utf-8")).body:
        if not isinstance(line, ast.ImportFrom) or line.level != 1:
            raise ImportError(f"{stub.name} of {package}, line {line.lineno}: expected 'from .m import name as name'")
        homes |= dict.fromkeys((name.asname or name.name for name in line.names), line.module or "")

    def __getattr__(name: str) -> Any:  # noqa: N807 (it becomes the package's own)
        if name not in homes:
            raise AttributeError(f"module {package!r} has no attribute {name!r}; it has {', '.join(sorted(homes))}")
        if not homes[name]:  # `from . import results`
            return import_module(f"{package}.{name}")
        value = getattr(import_module(f"{package}.{homes[name]}"), name)
        setattr(sys.modules[package], name, value)
        return value

    return __getattr__, lambda: sorted(homes), sorted(homes)
