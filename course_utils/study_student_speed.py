"""How fast teacher and students answer; a part of `study-distillation`."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import torch

from course_utils.backbones import load_classifier
from course_utils.data import load_sentiment, make_loader
from course_utils.distillation import cut_layers, encoder_parameters, small_student
from course_utils.study_runs import Row
from course_utils.training import predict

#: The names of the rows.
SPEED = ("speed_teacher", "speed_three", "speed_two", "speed_tiny")


def speed(layers: Sequence[int], rounds: int = 15) -> list[Row]:
    """Milliseconds a tweet on one processor core: the teacher and its students answer in turn; medians.

    Measured in batches of 32 tweets and one tweet at a time. Time does not depend on what the weights have learnt, so
    nothing is trained.

    Args:
        layers: of the student that is cut from the teacher.
        rounds: how often each answers, after a first time that does not count.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    teacher, tokenizer = load_classifier()
    titles = ("the teacher, six layers", "three layers of it", "two layers of it", "tiny, two narrow layers")
    students = [cut_layers(teacher, (1, 2, 3)), cut_layers(teacher, layers), small_student(teacher)]
    models = dict(zip(SPEED, zip(titles, [teacher, *students], strict=True), strict=True))
    part = load_sentiment()["test"].select(range(256))
    loaders = {"batch": make_loader(part, tokenizer, 32), "single": make_loader(part.select(range(32)), tokenizer, 1)}
    times: dict[tuple[str, str], list[float]] = {}
    for turn in range(rounds + 1):
        for name, (_, model) in models.items():
            for size, loader in loaders.items():
                batches = list(loader)  # reading and padding are no part of the model
                started = time.process_time()
                predict(model, batches)  # type: ignore[arg-type]
                if turn:  # the first one warms up
                    each = 1000 * (time.process_time() - started) / sum(len(batch["labels"]) for batch in batches)
                    times.setdefault((name, size), []).append(each)
    torch.set_num_threads(threads)
    rows = []
    for name, (title, model) in models.items():
        row: Row = {"arm": name, "title": title}
        row |= {"parameters": model.num_parameters(), "encoder": encoder_parameters(model)}
        row |= {"encoder_share": row["encoder"] / encoder_parameters(teacher)}
        for size in loaders:
            row[f"{size}_ms"] = float(np.median(times[name, size]))
            row[f"{size}_times"] = float(np.median(times[SPEED[0], size])) / row[f"{size}_ms"]
        rows.append(row)
    return rows
