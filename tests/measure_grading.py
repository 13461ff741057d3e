"""How fast a class is graded: `python tests/measure_grading.py` writes `book/results/grading.json`."""

from __future__ import annotations

import tempfile
import threading
import time
from pathlib import Path

import psutil
from submissions import cells, hand_in, lab, notebook, solved

from course_utils.workshop.experiments import store
from course_utils.workshop.grading import command

NAME, STUDENTS, WORKERS = "09_lora", 100, 2


def main() -> None:
    right = solved(NAME)
    with tempfile.TemporaryDirectory() as folder:
        for number in range(STUDENTS):
            task = lab(NAME).tasks[number % len(lab(NAME).tasks)]
            wrong = right[task.exercise].replace("rank", "rank + 1", 1) if number % 2 else right[task.exercise]
            hand_in(Path(folder) / "in", f"student {number:03}", NAME, notebook(cells(NAME, {task.exercise: wrong})))
        memory: list[float] = []
        stop = threading.Event()
        watching = threading.Thread(target=_watch, args=(memory, stop))
        watching.start()
        started = time.perf_counter()
        command.grade(Path(folder) / "in", Path(folder) / "out", workers=WORKERS)
        seconds = time.perf_counter() - started
        stop.set()
        watching.join()
    tenth = len(memory) // 10
    content = {
        "lab": NAME,
        "students": STUDENTS,
        "exercises": STUDENTS * len(lab(NAME).tasks),
        "workers": WORKERS,
        "seconds": round(seconds, 1),
        "megabytes": {
            "tenth": round(max(memory[2 * tenth : 3 * tenth])),
            "end": round(max(memory[-2 * tenth : -tenth])),
        },
    }
    print(store.write("grading", "python tests/measure_grading.py", content))


def _watch(memory: list[float], stop: threading.Event) -> None:
    """The memory of all processes of the grader, shared pages counted once."""
    while not stop.wait(0.2):
        total = 0
        for process in (psutil.Process(), *psutil.Process().children(recursive=True)):
            try:
                total += process.memory_full_info().pss
            except psutil.Error:
                continue
        memory.append(total / 1e6)


if __name__ == "__main__":
    main()
