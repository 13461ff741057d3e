"""Time several things side by side, so that what disturbs one disturbs all."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

Run = Callable[[], Any]


def in_turn(
    runs: Mapping[str, Run], rounds: int, warm_up: int = 2, clock: Callable[[], float] = time.process_time
) -> dict[str, np.ndarray]:
    """Milliseconds of each run, (rounds,); the runs take turns.

    The order is turned round each time: who goes first finds in the processor's cache what the last one left there, and
    not what all of them need.

    Args:
        runs: name → what is timed.
        rounds: how often each is timed.
        warm_up: turns before that, which do not count: the first ones fetch memory and choose how to compute.
        clock: gives seconds. The default counts the processor's time, which other programs disturb less than that on
            the wall; with several threads it adds them up, and with a GPU it does not count what the GPU does.

    Raises:
        ValueError: there is nothing to time, or less than one round.
    """
    if not runs or rounds < 1 or warm_up < 0:
        raise ValueError(
            f"expected something to time, rounds >= 1 and warm_up >= 0, got {len(runs)}, {rounds}, {warm_up}"
        )
    times: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(warm_up + rounds):
        for name, run in list(runs.items())[:: -1 if turn % 2 else 1]:
            started = clock()
            run()
            if turn >= warm_up:
                times[name].append(1000 * (clock() - started))
    return {name: np.array(values) for name, values in times.items()}
