"""The map of the house: `python -m course_utils rooms` prints the rooms, their sizes and the arrows between them.

Rooms stand in the order in which they are read: an arrow always leads to a room above. What is forbidden stands in
`pyproject.toml` under `tool.importlinter`, and `tests/test_house.py` holds it.
"""

from __future__ import annotations

import argparse
from collections import Counter
from pathlib import Path

from course_utils.errors import CourseError

#: The rooms, from the first that a reader opens to the last. A room imports only from rooms before it.
ROOMS = (
    *("methods", "checkpoints", "models", "data", "evaluation", "training", "distillation", "serving"),
    *("exercises", "plots", "workshop"),
)


class HouseError(CourseError):
    """The map cannot be drawn here."""


def main(arguments: list[str]) -> int:
    """Print the map."""
    argparse.ArgumentParser(prog="python -m course_utils rooms", description=__doc__).parse_args(arguments)
    print("\n".join(drawn(sizes(Path(__file__).parents[2]), arrows())))
    return 0


def sizes(folder: Path) -> dict[str, tuple[int, int]]:
    """Room → files and lines."""
    found = {}
    for room in ROOMS:
        files = sorted((folder / room).rglob("*.py"))
        found[room] = (len(files), sum(len(file.read_text(encoding="utf-8").splitlines()) for file in files))
    return found


def arrows() -> dict[tuple[str, str], int]:
    """(room, room that it imports from) → number of imports between their modules.

    Raises:
        HouseError: the package that reads the imports is missing.
    """
    try:
        import grimp
    except ImportError as error:
        raise HouseError(
            "the map is read by the package grimp, which is not installed; it comes with the tests: "
            "pip install -c constraints.txt -e '.[test]'"
        ) from error
    graph = grimp.build_graph("course_utils", cache_dir=None)
    found: Counter[tuple[str, str]] = Counter()
    for module in graph.modules:
        for imported in graph.find_modules_directly_imported_by(module):
            ends = tuple(name.split(".")[1] if "." in name else "" for name in (module, imported))
            if ends[0] != ends[1] and set(ends) <= set(ROOMS):
                found[ends[0], ends[1]] += 1
    return dict(found)


def drawn(counted: dict[str, tuple[int, int]], found: dict[tuple[str, str], int]) -> list[str]:
    """The lines of the map, a room each."""
    lines = []
    for number, room in enumerate(ROOMS, start=1):
        files, length = counted[room]
        used = [f"{other} ({count})" for other in ROOMS if (count := found.get((room, other)))]
        lines.append(
            f"{number:2} {room:12} {files:4} files {length:6,} lines   uses {', '.join(used) or 'no other room'}"
        )
    return lines
