"""The lowest versions that pyproject.toml admits, as constraints for pip: `python tests/floors.py > floors.txt`."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path
from typing import Any

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def floors(project: dict[str, Any]) -> list[str]:
    """`name==version` for each requirement of the project and of its extras.

    Raises:
        ValueError: a requirement names no lowest version.
    """
    extras = project.get("optional-dependencies", {}).values()
    found = []
    for line in [*project["dependencies"], *(line for extra in extras for line in extra)]:
        parts = re.match(r"([\w.-]+)\s*>=\s*([\w.]+)", line)
        if parts is None:
            raise ValueError(f"{line!r} in pyproject.toml names no lowest version; expected name>=version")
        found.append(f"{parts[1]}=={parts[2]}")
    return found


if __name__ == "__main__":
    sys.stdout.write("\n".join(floors(tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"])) + "\n")
