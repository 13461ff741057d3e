"""Train one method on the tweets, in one process or in several: `python -m course_utils train`.

    python -m course_utils train lora --out trained
    torchrun --nproc-per-node 2 -m course_utils train lora --out trained

Both take the same steps: `--batch-size` texts a step, however many processes share them. The first process alone
prints and saves: the checkpoint, which peft loads where it has the method, and `history.json`.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch
from accelerate import PartialState

from course_utils.checkpoints import save
from course_utils.data.batching import make_loader
from course_utils.data.splits import load_sentiment
from course_utils.evaluation import results
from course_utils.methods import count_parameters, inject
from course_utils.methods.registry import studied
from course_utils.models.backbones import load_classifier
from course_utils.training.config import TrainingConfig, TrainingError
from course_utils.training.distributed import SharingError, without_dropout
from course_utils.training.loop import fit

COMMAND = "python -m course_utils train"


def main(arguments: list[str]) -> int:
    """Train, and save once."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("method", choices=studied(), metavar="METHOD", help=f"one of {', '.join(studied())}")
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint; must not exist yet")
    parser.add_argument("--texts", type=int, default=256, help="training tweets (default 256)")
    parser.add_argument("--batch-size", type=int, default=32, help="tweets a step, all processes together (default 32)")
    parser.add_argument("--accumulate", type=int, default=1, help="batches a step (default 1)")
    parser.add_argument("--steps", type=int, help="stop after so many steps (default: one epoch)")
    parser.add_argument("--learning-rate", type=float, help="default: the one that the study chose for the method")
    parser.add_argument("--seed", type=int, default=0, help="of the order, the new weights and dropout (default 0)")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto", help="default auto")
    parser.add_argument("--no-dropout", action="store_true", help="for comparing runs number by number")
    options = parser.parse_args(arguments)
    if options.batch_size < 1 or options.texts < 1:
        parser.error(f"--texts and --batch-size must be at least 1, got {options.texts} and {options.batch_size}")
    if options.out.exists():
        parser.error(f"{options.out} exists already; name a new folder")
    try:
        _train(options)
    except (SharingError, TrainingError) as error:  # every process says it; none waits for the others
        print(f"{COMMAND}: {error}", file=sys.stderr)
        return 1
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return 0


def _train(options: argparse.Namespace) -> None:
    method, tweets = studied()[options.method], load_sentiment("tweets")
    if options.texts > len(tweets["train"]):
        raise TrainingError(f"there are {len(tweets['train'])} training tweets; --texts asks for {options.texts}")
    rate = options.learning_rate or results.read("quality")["methods"][options.method]["learning_rate"]
    config = TrainingConfig(
        learning_rate=rate, epochs=1, accumulate=options.accumulate, max_steps=options.steps, seed=options.seed,
        device=options.device, split_batches=True,
    )  # fmt: skip
    model, tokenizer = load_classifier(seed=options.seed)
    inject(model, method.config, seed=options.seed)
    if options.no_dropout:
        without_dropout(model)
    part = tweets["train"].select(range(options.texts))
    train = make_loader(part, tokenizer, options.batch_size, shuffle=True, seed=options.seed)
    history = fit(model, train, make_loader(tweets["validation"].select(range(64)), tokenizer, 64), config)
    state = PartialState()
    if state.is_main_process:  # else every process would write the same files at the same time
        save(model, options.out)
        record = {"processes": state.num_processes, "steps": history.steps, "evaluations": history.evaluations}
        (options.out / "history.json").write_text(json.dumps(record, indent=1) + "\n")
        print(f"{method.full_title}: {count_parameters(model)}")
        print(f"{len(history.steps)} steps in {state.num_processes} process(es), {history.seconds:.0f} s")
        print(f"last loss {history.steps[-1]['loss']:.4f}; saved in the folder {options.out.name}")
    state.wait_for_everyone()  # nobody may leave, or read the checkpoint, before it is written
