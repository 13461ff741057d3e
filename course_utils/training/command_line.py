"""Train one method on the tweets, in one process or in several: `python -m course_utils train`.

    python -m course_utils train lora --rank 4 --epochs 2 --out trained
    torchrun --nproc-per-node 2 -m course_utils train lora --out trained
    python -m course_utils train lora --help        # with the settings of LoRA
    python -m course_utils train lora --data reviews.csv --label stars --out trained   # texts of your own

All take the same steps: `--batch-size` texts a step, however many processes share them. The first process alone
prints and saves: the checkpoint, which peft loads where it has the method, and `history.json`. Of texts of your own the
best epoch is chosen on validation, and the test is taken once, at the end.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import re
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import torch
from accelerate import PartialState
from datasets import DatasetDict
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from course_utils.checkpoints import save
from course_utils.checkpoints.class_names import name_classes
from course_utils.data.batching import make_loader
from course_utils.data.own_data import read_own
from course_utils.data.splits import load_sentiment
from course_utils.errors import CourseError
from course_utils.evaluation import results
from course_utils.evaluation.intervals import accuracy_interval
from course_utils.evaluation.metrics import majority_accuracy, score
from course_utils.evaluation.prediction import predict
from course_utils.methods import count_parameters, inject
from course_utils.methods.registry import Method, studied
from course_utils.models.backbones import LABELS, load_classifier
from course_utils.training.config import TrainingConfig, TrainingError
from course_utils.training.distributed import without_dropout
from course_utils.training.loop import fit

COMMAND = "python -m course_utils train"
Settings = TypeVar("Settings")


def main(arguments: list[str]) -> int:
    """Train, and save once."""
    name = arguments[0] if arguments and arguments[0] in studied() else None  # its settings are options, too
    parser = _parser(name)
    options = parser.parse_args(arguments)
    if name is None:
        parser.error(f"the method comes first: {COMMAND} {options.method} --out {options.out} ...")
    for option, value in (("--texts", options.texts), ("--batch-size", options.batch_size)):
        if value is not None and value < 1:
            parser.error(f"{option} must be at least 1, got {value}")
    if options.out.exists():
        parser.error(f"{options.out} exists already; name a new folder")
    try:
        method = replace(studied()[name], config=_with_options(studied()[name].config, options))
        _train(method, _with_options(_defaults(name), options), options)
    except CourseError as error:  # every process says it; none waits for the others
        print(f"{COMMAND}: {error}", file=sys.stderr)
        return 1
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return 0


# --- options --------------------------------------------------------------------------------------------------------


def _parser(name: str | None) -> argparse.ArgumentParser:
    """What the command understands: its own options, the settings of the training, and those of a known method."""
    parser = argparse.ArgumentParser(
        prog=COMMAND,
        usage=f"{COMMAND} METHOD --out FOLDER [options]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("method", choices=studied(), metavar="METHOD", help=f"one of {', '.join(studied())}")
    parser.add_argument("--out", type=Path, required=True, help="folder for the checkpoint; must not exist yet")
    parser.add_argument("--texts", type=int, help="training texts (default 256 tweets, or all of your own)")
    parser.add_argument("--batch-size", type=int, default=32, help="texts a step, all processes together (default 32)")
    own = parser.add_argument_group("texts of your own, instead of the tweets")
    own.add_argument("--data", type=Path, metavar="FILE", help="CSV, TSV or JSON lines with a text and a label each")
    own.add_argument("--text", default="text", metavar="COLUMN", help="the column of the texts (default text)")
    own.add_argument("--label", default="label", metavar="COLUMN", help="the column of the labels (default label)")
    own.add_argument(
        "--group", metavar="COLUMN", help="texts of one group stay on one side, such as those of an author"
    )
    own.add_argument("--delimiter", help="between the columns (default a comma)")
    own.add_argument("--encoding", default="utf-8", help="of the file (default utf-8)")
    parser.add_argument("--no-dropout", action="store_true", help="for comparing runs number by number")
    _add_settings(parser.add_argument_group("training"), _defaults(name), {"max_steps": "--steps"})
    if name is not None:
        _add_settings(parser.add_argument_group(studied()[name].full_title), studied()[name].config)
    return parser


def _defaults(name: str | None) -> TrainingConfig:
    """A short training whose batches are shared by all processes, with the rate that the study chose for the method."""
    config = TrainingConfig(epochs=1, split_batches=True)
    if name is None:
        return config
    judged = results.read("quality")["methods"].get(name)  # a method of the reader's own has no results yet
    return replace(config, learning_rate=judged["learning_rate"] if judged else studied()[name].rates[0])


#: The type of a setting → how `argparse` reads it. A setting of another type cannot be said on a command line.
_READ: dict[Any, dict[str, Any]] = {
    bool: {"action": argparse.BooleanOptionalAction},
    **{kind: {"type": kind} for kind in (int, float, str)},
    **{kind | None: {"type": kind} for kind in (int, float, str)},
    tuple[str, ...] | None: {"type": str, "nargs": "+"},
    tuple[int, ...] | None: {"type": int, "nargs": "+"},
    str | tuple[str, ...] | None: {"type": str, "nargs": "+"},
}


def _add_settings(group: Any, settings: Any, second_names: dict[str, str] | None = None) -> None:
    """An option for each setting of a configuration; its docstring is the help, its values are the defaults."""
    hints, said = get_type_hints(type(settings)), _documented(type(settings))
    for name in (one.name for one in fields(settings) if hints[one.name] in _READ):
        names = [f"--{name.replace('_', '-')}", *filter(None, [(second_names or {}).get(name)])]
        text = f"{said[name]} (default: {getattr(settings, name)})".replace("%", "%%")
        # What is not given stays out of the answer, and the configuration keeps what it has.
        group.add_argument(*names, dest=name, default=argparse.SUPPRESS, help=text, **_READ[hints[name]])


def _documented(kind: type) -> dict[str, str]:
    """Setting → what the section `Args:` of its class, or of one that this builds on, says about it."""
    found: dict[str, str] = {}
    for one in reversed(kind.__mro__):
        _, _, section = (inspect.cleandoc(one.__doc__ or "")).partition("Args:\n")
        entries = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", section, re.MULTILINE)
        found |= {name: " ".join(text.split()) for name, text in entries}
    return found


def _with_options(settings: Settings, options: argparse.Namespace) -> Settings:
    """A configuration with the values that were given; one word stays a word where the setting may be one."""
    hints = get_type_hints(type(settings))
    given = {one.name: getattr(options, one.name) for one in fields(settings) if one.name in options}  # type: ignore[arg-type]
    for name, value in given.items():
        if isinstance(value, list):
            may_be_a_word = hints[name] == str | tuple[str, ...] | None
            given[name] = value[0] if len(value) == 1 and may_be_a_word else tuple(value)
    return replace(settings, **given)  # type: ignore[type-var]


# --- training -------------------------------------------------------------------------------------------------------


def _texts(options: argparse.Namespace) -> tuple[DatasetDict, tuple[str, ...], str]:
    """The splits, the classes by name, and what there is to say about them."""
    if options.data is None:
        tweets = load_sentiment("tweets")
        tweets["validation"] = tweets["validation"].select(range(64))
        return tweets, LABELS, ""
    own = read_own(
        options.data,
        text=options.text,
        label=options.label,
        group=options.group,
        delimiter=options.delimiter,
        encoding=options.encoding,
    )
    return own.splits, own.labels, str(own)


def _train(method: Method, config: TrainingConfig, options: argparse.Namespace) -> None:
    splits, labels, described = _texts(options)
    there = len(splits["train"])
    texts = options.texts or (256 if options.data is None else there)
    if texts > there:
        raise TrainingError(f"there are {there} training texts; --texts asks for {texts}")
    model, tokenizer = load_classifier(num_labels=len(labels), pretrained=method.pretrained, seed=config.seed)
    name_classes(model, labels)
    inject(model, method.config, seed=config.seed)
    if options.no_dropout:
        without_dropout(model)
    if described and os.environ.get("RANK", "0") == "0":  # the processes meet in `fit`, and not before
        print(described, _cut(splits["train"]["text"], tokenizer), sep="\n", flush=True)
    part = splits["train"].select(range(texts))
    train = make_loader(part, tokenizer, options.batch_size, shuffle=True, seed=config.seed)
    history = fit(model, train, make_loader(splits["validation"], tokenizer, 64), config)
    state = PartialState()
    if state.is_main_process:  # else every process would write the same files at the same time
        save(model, options.out)
        record = {"processes": state.num_processes, "steps": history.steps, "evaluations": history.evaluations}
        print(f"{method.full_title}: {count_parameters(model)}")
        print(f"{len(history.steps)} steps in {state.num_processes} process(es), {history.seconds:.0f} s")
        if described:
            record |= {"labels": labels, "test": _judge(model, tokenizer, splits)}
        (options.out / "history.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        print(f"last loss {history.steps[-1]['loss']:.4f}; saved in the folder {options.out.name}")
        if described:
            print(f"use it: model, tokenizer = load_classifier(num_labels={len(labels)}); load(model, '{options.out}')")
    state.wait_for_everyone()  # nobody may leave, or read the checkpoint, before it is written


def _cut(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> str:
    """How many texts are longer than the model reads."""
    most = tokenizer.model_max_length
    longer = sum(len(ids) > most for ids in tokenizer(list(texts), verbose=False)["input_ids"])
    return f"training texts that are longer than the model's {most} tokens, and are cut there: {longer:,}"


def _judge(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, splits: DatasetDict) -> dict[str, Any]:
    """The test, beside always naming the commonest class."""
    truth, logits = predict(model, make_loader(splits["test"], tokenizer, 64))
    scores, right = score(truth, logits), int((logits.argmax(axis=1) == truth).sum())
    low, high = accuracy_interval(right, len(truth))
    majority = majority_accuracy(splits["train"]["label"], truth.tolist())
    print(
        f"test: {scores.accuracy:.1%} of {len(truth):,} texts are right, 95% interval {low:.1%} to {high:.1%}; "
        f"always the commonest class: {majority:.1%}; F1, mean over the classes: {scores.f1_macro:.3f}"
    )
    return scores.as_dict() | {"low": low, "high": high, "majority": majority}
