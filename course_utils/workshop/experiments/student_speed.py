"""How fast teacher and students answer; a part of `study-distillation`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch

from course_utils.data.batching import make_loader
from course_utils.data.splits import load_sentiment
from course_utils.distillation import cut_layers, encoder_parameters, small_student
from course_utils.evaluation.prediction import predict
from course_utils.evaluation.timing import in_turn
from course_utils.models.backbones import load_classifier
from course_utils.workshop.experiments.store import Row

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
    tweets = load_sentiment()["test"]
    parts = {"batch": (tweets.select(range(256)), 32), "single": (tweets.select(range(32)), 1)}
    # Reading and padding are no part of the model.
    batches = {size: list(make_loader(part, tokenizer, together)) for size, (part, together) in parts.items()}
    runs = {
        f"{name} {size}": partial(predict, models[name][1], batches[size])  # type: ignore[arg-type]
        for name in models
        for size in parts
    }
    times = in_turn(runs, rounds, warm_up=1)
    torch.set_num_threads(threads)
    rows = []
    for name, (title, model) in models.items():
        row: Row = {"arm": name, "title": title}
        row |= {"parameters": model.num_parameters(), "encoder": encoder_parameters(model)}
        row |= {"encoder_share": row["encoder"] / encoder_parameters(teacher)}
        for size, (part, _) in parts.items():
            taken, of_teacher = (float(np.median(times[f"{who} {size}"])) for who in (name, SPEED[0]))
            row[f"{size}_ms"] = taken / len(part)
            row[f"{size}_times"] = of_teacher / taken
        rows.append(row)
    return rows
