"""The quickest way to a tuned model on a processor: `python -m course_utils race`.

The same model, tweets, seeds, steps and learning rate, LoRA on query and value, one epoch, four ways:

* the Hugging Face course's recipe: `Trainer` with peft, batches drawn at random and padded to their longest text,
* `Trainer` with its best settings: grouped by length, bfloat16 where this processor computes it, large batches to judge
  by, nothing saved or reported,
* our `fit` as the labs call it,
* `fit` within `quick`, in the faster precision.

They run in turn, each in a process of its own, which has imported the same libraries. The clock starts with texts and a
pretrained model in memory; it stops while a run is judged on the validation split, every few steps and by the same code
for all, and what a run judges for itself counts. Memory is looked at twice: what a process has grown by at its peak,
and what is in use at most on the longest tweets, where the allocator keeps nothing for later.

Each finished run is written down at once, so a killed race goes on where it stopped. At the end one core takes single
steps in turn, with one choice more each time (`race_steps.py`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
import torch
from datasets import DatasetDict
from joblib.externals.loky import ProcessPoolExecutor

from course_utils.data.batching import encode, make_loader
from course_utils.data.splits import load_sentiment
from course_utils.evaluation.prediction import evaluate
from course_utils.methods import inject
from course_utils.methods.registry import METHODS
from course_utils.models.backbones import DEFAULT_BACKBONE, load_classifier
from course_utils.training import precision
from course_utils.training.config import TrainingConfig
from course_utils.training.loop import fit
from course_utils.training.needless import quick
from course_utils.training.peak import GIVE_BACK, high_water
from course_utils.workshop.experiments import race_steps
from course_utils.workshop.experiments.pairs import PAIRS
from course_utils.workshop.experiments.store import Row, Runs, options, over_seeds

COMMAND = "python -m course_utils race"
SEEDS = (0, 1, 2)
BATCH, RATE = 32, 2e-3
#: Steps between two looks at the validation split.
EVERY = 6
#: A run has arrived when its validation accuracy is this share of what the course's recipe has at its end.
ARRIVED = 0.95
STEPS = "steps"


@dataclass
class Track:
    """What one run races on.

    Args:
        tweets: the splits.
        seed: of the head, the order and dropout.
        model, tokenizer: the pretrained model with a new head, and its tokenizer.
        every: steps between two looks.
        wall, processor: seconds so far, pauses left out.
        looks: (step, seconds, processor seconds, accuracy) of each look.
    """

    tweets: DatasetDict
    seed: int
    every: int = EVERY
    wall: float = 0.0
    processor: float = 0.0
    looks: list[tuple[int, float, float, float]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.prepare()
        self._go()

    def prepare(self) -> None:
        """Load what all ways begin with; the clock does not run yet."""
        self.model, self.tokenizer = load_classifier(seed=self.seed)
        self.judges = make_loader(self.tweets["validation"], self.tokenizer, 64)

    def _go(self) -> None:
        self._started = time.perf_counter(), time.process_time()

    def _stop(self) -> None:
        wall, processor = self._started
        self.wall += time.perf_counter() - wall
        self.processor += time.process_time() - processor

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time in here does not count, and nothing is drawn from the run's random numbers."""
        self._stop()
        with torch.random.fork_rng(devices=[]):
            yield
        self._go()

    def look(self, model: Any, step: int, last: bool = False) -> None:
        """Judge the model after a step, if it is time for it."""
        if last or step % self.every == 0:
            with self.paused():
                accuracy = evaluate(model, self.judges).accuracy
                self.looks.append((step, round(self.wall, 2), round(self.processor, 2), accuracy))


def trainer(track: Track, **settings: Any) -> Any:
    """`Trainer` with peft, and what the settings say beyond the recipe; the trained model."""
    import peft
    from transformers import DataCollatorWithPadding, Trainer, TrainerCallback, TrainingArguments

    class Look(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **others: Any) -> None:
            track.look(others["model"], state.global_step)

    torch.manual_seed(track.seed)
    settings_of_peft = peft.LoraConfig(task_type="SEQ_CLS", **PAIRS["lora"].theirs[1])
    model = peft.get_peft_model(track.model, settings_of_peft)
    rows = {
        split: encode(list(texts["text"]), list(texts["label"]), track.tokenizer)
        for split, texts in track.tweets.items()
    }
    with TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            num_train_epochs=1,
            per_device_train_batch_size=BATCH,
            learning_rate=RATE,
            warmup_steps=0.1,
            weight_decay=0.01,
            eval_strategy="epoch",
            seed=track.seed,
            use_cpu=True,
            dataloader_pin_memory=False,
            **settings,
        )
        Trainer(
            model,
            arguments,
            train_dataset=rows["train"],
            eval_dataset=rows["validation"],
            data_collator=DataCollatorWithPadding(track.tokenizer),
            processing_class=track.tokenizer,
            callbacks=[Look()],
        ).train()
    return model


def trainer_at_its_best(track: Track) -> Any:
    """Everything that `Trainer` offers for speed on a processor."""
    return trainer(
        track,
        train_sampling_strategy="group_by_length",
        bf16=precision.choose("auto", "cpu") == "bf16",
        per_device_eval_batch_size=2 * BATCH,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )


def ours(track: Track, **settings: Any) -> Any:
    """Our loop; the trained model."""
    model = inject(track.model, METHODS["lora"].config, seed=track.seed)
    train = make_loader(track.tweets["train"], track.tokenizer, BATCH, shuffle=True, seed=track.seed)
    validation = make_loader(track.tweets["validation"], track.tokenizer, 2 * BATCH)
    config = TrainingConfig(learning_rate=RATE, epochs=1, seed=track.seed, device="cpu", **settings)

    def watch(row: Row) -> None:
        if "accuracy" not in row:
            track.look(model, row["step"])

    fit(model, train, validation, config, watch=watch)
    return model


def ours_quick(track: Track) -> Any:
    """Our loop with every short cut."""
    with quick(track.model):
        return ours(track, precision="auto")


#: Name → what the page calls it, and what trains.
WAYS: dict[str, tuple[str, Callable[[Track], Any]]] = {
    "course": ("Trainer and peft, the Hugging Face course's recipe", trainer),
    "best": ("Trainer and peft, best settings", trainer_at_its_best),
    "fit": ("our fit", ours),
    "quick": ("our fit within quick, precision auto", ours_quick),
}


def main(arguments: list[str]) -> int:
    """Race, print and write `book/results/race.json`."""
    chosen = options(COMMAND, __doc__, {**WAYS, STEPS: None}, SEEDS, arguments)
    if chosen.again:
        RUNS.drop(lambda run: run["way"] in chosen.experiments and run["seed"] in chosen.seeds)
    for seed in chosen.seeds:
        for way in list(WAYS)[:: -1 if seed % 2 else 1]:
            if way in chosen.experiments and not RUNS.has({"way": way, "seed": seed}):
                row = _alone(run_here, way, seed)
                if seed == SEEDS[0]:
                    row["in_use_mb"] = _alone(most_in_use, way, environment=GIVE_BACK)
                RUNS.add(row)
                print(f"{WAYS[way][0]}, seed {seed}: {row['seconds']} s, {row['accuracy']:.1%}", flush=True)
    if STEPS in chosen.experiments and not RUNS.has({"way": STEPS, "seed": SEEDS[0]}):
        RUNS.add({"way": STEPS, "seed": SEEDS[0], **_alone(race_steps.measure)})
    RUNS.refresh()
    return 0


def _alone(work: Callable[..., Any], *given: Any, environment: dict[str, str] | None = None) -> Any:
    """What `work` returns from a process of its own."""
    with ProcessPoolExecutor(max_workers=1, env=environment) as process:
        return process.submit(work, *given).result()


def run_here(way: str, seed: int) -> Row:
    """One run in this process; its row.

    Args:
        way: of `WAYS`.
        seed: of the run.
    """
    return race_on(load_sentiment(), way, seed)


def most_in_use(way: str) -> float:
    """The most memory of a run on the longest tweets, in MB, in a process whose allocator keeps nothing back."""
    longest = {
        split: rows.select(sorted(range(len(rows)), key=lambda i: -len(rows[i]["text"]))[: 2 * BATCH])
        for split, rows in load_sentiment().items()
    }
    return float(race_on(DatasetDict(longest), way, SEEDS[0])["memory_mb"])


def race_on(tweets: DatasetDict, way: str, seed: int, every: int = EVERY) -> Row:
    """Train one way on the training split, and look at it on the validation split."""
    import peft  # noqa: F401 (each process carries the same libraries)
    from transformers import Trainer  # noqa: F401

    before = psutil.Process().memory_info().rss / 2**20
    track = Track(tweets, seed, every)
    model = WAYS[way][1](track)
    steps = -(-len(tweets["train"]) // BATCH)
    track.look(model, steps, last=True)
    step, wall, processor, accuracy = zip(*track.looks, strict=True)
    return {
        "way": way,
        "seed": seed,
        "steps": steps,
        "seconds": wall[-1],
        "processor_seconds": processor[-1],
        "memory_mb": round(high_water() - before),
        "accuracy": accuracy[-1],
        "threads": torch.get_num_threads(),
        "looks": {"step": step, "seconds": wall, "processor_seconds": processor, "accuracy": accuracy},
    }


def summarize(runs: list[Row]) -> Row:
    """Means over the seeds, and how many times as fast as the two ways of `Trainer` each is."""
    by_way = {way: {run["seed"]: run for run in runs if run["way"] == way} for way in WAYS}
    summary: Row = {
        "backbone": DEFAULT_BACKBONE,
        "batch_size": BATCH,
        "learning_rate": RATE,
        "every": EVERY,
        "bf16": precision.choose("auto", "cpu") == "bf16",
        "bf16_factor": round(precision.bf16_factor(), 2),
        "seeds": list(SEEDS),
    }
    steps = {key: value for run in runs if run["way"] == STEPS for key, value in run["measured"].items()}
    if not all(set(mine) == set(SEEDS) for mine in by_way.values()):
        return summary | steps
    target = ARRIVED * float(np.mean([run["accuracy"] for run in by_way["course"].values()]))
    by_way = {
        way: {seed: run | _arrival(run["looks"], target) for seed, run in mine.items()} for way, mine in by_way.items()
    }
    rows = {way: _row(WAYS[way][0], mine, by_way) for way, mine in by_way.items()}
    return summary | {"share": ARRIVED, "target": target, "ways": rows} | steps


def _arrival(looks: Row, target: float) -> Row:
    """The first look at which a run has the accuracy that counts as arrived; the last one if it never has."""
    first = next((i for i, accuracy in enumerate(looks["accuracy"]) if accuracy >= target), -1)
    return {
        "arrived": looks["step"][first],
        "arrived_seconds": looks["seconds"][first],
        "arrived_processor_seconds": looks["processor_seconds"][first],
        "reached": first >= 0,
    }


def _row(title: str, mine: dict[int, Row], by_way: dict[str, dict[int, Row]]) -> Row:
    """One line of the table; a ratio is formed seed by seed, between runs that took turns."""
    chosen = [mine[seed] for seed in SEEDS]
    row: Row = {"title": title, "accuracy": over_seeds(chosen, ["accuracy"])["accuracy"]}
    row["reached"] = all(run["reached"] for run in chosen)
    for key in ("seconds", "processor_seconds", "arrived_seconds", "arrived_processor_seconds", "arrived", "memory_mb"):
        row[key] = float(np.median([run[key] for run in chosen]))
    row["in_use_mb"] = mine[SEEDS[0]]["in_use_mb"]
    for other in ("course", "best"):
        for key in ("seconds", "processor_seconds", "arrived_seconds", "arrived_processor_seconds"):
            ratios = [by_way[other][seed][key] / mine[seed][key] for seed in SEEDS]
            row[f"{other}_{key}"] = round(float(np.median(ratios)), 2)
    return row


#: The result file of the race.
RUNS = Runs("race", COMMAND, ("way", "seed"), summarize)
