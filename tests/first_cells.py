"""Run the first cells of labs as on Colab: outside the repository, with the course as it is installed.

    python tests/first_cells.py                # all labs, each up to its first exercise
    python tests/first_cells.py 05_evaluation

Needs the course's wheel, ipykernel and nbclient, and nothing of the tests.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

ROOT = Path(__file__).parents[1]
SHOW_WHERE = "import course_utils; print(course_utils.__file__)"


def run(name: str, folder: Path, whole: bool = False) -> Path:
    """Run a lab up to its first exercise and return the file from which the kernel took the course.

    Args:
        name: of the lab, such as "05_evaluation".
        folder: where it runs.
        whole: go on to its end.
    """
    notebook = nbformat.read(ROOT / "labs" / f"{name}.ipynb", as_version=4)
    exercises = [number for number, cell in enumerate(notebook.cells) if "exercise" in cell.metadata.get("tags", [])]
    first = notebook.cells if whole else notebook.cells[: exercises[0]]
    notebook.cells = [*first, nbformat.v4.new_code_cell(SHOW_WHERE)]
    client = NotebookClient(notebook, timeout=600, kernel_name="python3")
    client.resources = {"metadata": {"path": str(folder)}}
    client.execute()
    return Path(notebook.cells[-1].outputs[0].text.strip())


def main(names: list[str]) -> int:
    """Run labs, and say which of them failed."""
    failed = []
    with tempfile.TemporaryDirectory() as folder:
        for name in names or sorted(path.stem for path in (ROOT / "labs").glob("*.ipynb")):
            try:
                where = run(name, Path(folder))
                said = "" if ROOT not in where.parents else f"the course is that of the repository, {where}"
            except CellExecutionError as error:
                said = str(error)
            print(f"{name}: {said or 'well'}", flush=True)
            failed += [name] if said else []
    print(f"failed: {', '.join(failed)}" if failed else "all is well")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
