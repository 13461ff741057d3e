"""A Llama model that answers in a fixed form, before and after each method: `python -m course_utils study-llama`.

Each method trains the same steps on the same tweets, and then answers the first tweets of the test split greedily. The
learning rates were guessed from a few short trials at other rates, and not searched. Each method runs in a process of
its own, so that its memory can be measured, and is written down at once.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import psutil
import torch
from datasets import Dataset
from torch import nn

from course_utils.data.instructions import answer, commonest, question, score_answers
from course_utils.data.splits import load_sentiment
from course_utils.evaluation.intervals import accuracy_interval
from course_utils.methods import (
    LoRAConfig,
    MethodConfig,
    PrefixTuningConfig,
    PromptTuningConfig,
    QLoRAConfig,
    count_parameters,
    inject,
)
from course_utils.models.backbones import DEFAULT_LANGUAGE_MODEL, load_causal_lm
from course_utils.models.chat import Row, encode_chat
from course_utils.training.chats import ChatTraining, loss_per_token, train_on_chats, write_answers
from course_utils.training.peak import high_water
from course_utils.workshop.experiments import store

COMMAND = "python -m course_utils study-llama"
STEPS, BATCH_SIZE, TESTED, SAMPLES = 80, 4, 128, 6
INSTRUCTION = "Answer with one word, positive or negative, and a number from 1 to 4:"


@dataclass(frozen=True)
class Run:
    """One row of the study.

    Args:
        title: how the book calls it.
        method: what is trained, for a tokenizer; None trains nothing.
        learning_rate: the highest one.
        mask_prompt: False puts the question into the loss.
    """

    title: str
    method: Callable[[Any], MethodConfig] | None = None
    learning_rate: float = 2e-3
    mask_prompt: bool = True


def _lora(tokenizer: Any) -> LoRAConfig:
    return LoRAConfig(rank=8, alpha=16)


def _prompt(tokenizer: Any) -> PromptTuningConfig:
    ids = tuple(tokenizer(INSTRUCTION, add_special_tokens=False)["input_ids"])
    return PromptTuningConfig(virtual_tokens=20, init="text", initial_tokens=ids)


RUNS: dict[str, Run] = {
    "before": Run("before training"),
    "lora": Run("LoRA", _lora),
    "lora_unmasked": Run("LoRA, the question not masked", _lora, mask_prompt=False),
    "qlora": Run("QLoRA", lambda tokenizer: QLoRAConfig(rank=8, alpha=16, targets=("q_proj", "v_proj"))),
    "prefix": Run("prefix tuning", lambda tokenizer: PrefixTuningConfig(virtual_tokens=20), 3e-2),
    "prompt": Run("prompt tuning", _prompt, 1e-2),
}


def main(arguments: list[str]) -> int:
    """Run the methods and write `book/results/llama.json`."""
    parser = argparse.ArgumentParser(prog=COMMAND, description=__doc__)
    parser.add_argument("runs", nargs="*", metavar="RUN", help=f"default: all of {', '.join(RUNS)}")
    parser.add_argument(
        "--model",
        default=DEFAULT_LANGUAGE_MODEL,
        help="another Llama model: its Hub id, or a folder; writes llama_NAME",
    )
    options = parser.parse_args(arguments)
    unknown = set(options.runs) - set(RUNS)
    if unknown:
        parser.error(f"unknown run {', '.join(sorted(unknown))}; choose from {', '.join(RUNS)}")
    if len(options.runs) != 1:
        for name in options.runs or RUNS:
            subprocess.run(
                [sys.executable, "-m", "course_utils", "study-llama", name, "--model", options.model], check=True
            )
        return 0
    (name,) = options.runs
    row, common = measure(RUNS[name], options.model)
    store.update(result_name(options.model), COMMAND, partial(_with_row, name=name, row=row, common=common))
    print(f"{row['title']}: exact {row['exact']['share']:.1%}, loss {row['loss']:.3f}", flush=True)
    return 0


def result_name(model: str) -> str:
    """The result file of a model: "llama" for the course's own, "llama_NAME" for any other."""
    return "llama" if model == DEFAULT_LANGUAGE_MODEL else f"llama_{Path(model).name.lower().replace('.', '_')}"


def _with_row(stored: dict[str, Any], name: str, row: dict[str, Any], common: dict[str, Any]) -> dict[str, Any]:
    runs = stored.get("runs", {}) | {name: row}
    return {**common, "runs": {key: runs[key] for key in RUNS if key in runs}}


def measure(run: Run, model_name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Train one method and judge it: its row, and what is the same for all rows."""
    tweets = load_sentiment("tweets")
    test = tweets["test"].select(range(TESTED))
    held = psutil.Process().memory_info().rss / 2**20
    model: Any
    model, tokenizer = load_causal_lm(model_name, dtype=torch.bfloat16)
    model.to("cuda" if torch.cuda.is_available() else "cpu")
    if run.method is not None:
        inject(model, run.method(tokenizer))
    encode = partial(encode_rows, tokenizer)
    row: dict[str, Any] = {"title": run.title, "weights_mb": megabytes(model)}
    if run.method is not None:
        rows = encode(tweets["train"], mask_prompt=run.mask_prompt)
        row |= _train(model, tokenizer, rows, run) | {"peak_mb": round(_peak(held))}
    conversations, right = [question(text) for text in test["text"]], [answer(rating) for rating in test["rating"]]
    written = write_answers(model, tokenizer, conversations)
    scores = score_answers(written, right)
    for key in ("readable", "exact", "sentiment"):
        share = getattr(scores, key)
        low, high = accuracy_interval(round(share * scores.n), scores.n)
        row[key] = {"share": share, "low": low, "high": high}
    row["loss"] = loss_per_token(model, encode(test), tokenizer.pad_token_id)
    row["samples"] = [
        {"tweet": text, "right": truth, "written": wrote}
        for text, truth, wrote in zip(test["text"][:SAMPLES], right, written, strict=False)
    ]
    usual = commonest([answer(rating) for rating in tweets["train"]["rating"]])
    guess = score_answers([usual] * len(right), right)
    common = {
        "backbone": model_name,
        "steps": STEPS,
        "batch_size": BATCH_SIZE,
        "tested": TESTED,
        "commonest": {"answer": usual, "exact": guess.exact, "sentiment": guess.sentiment},
        "tokens": _tokens(encode(tweets["train"])),
    }
    return row, common


def encode_rows(tokenizer: Any, tweets: Dataset, mask_prompt: bool = True) -> list[Row]:
    """A row to train on for each tweet of a split."""
    pairs = zip(tweets["text"], tweets["rating"], strict=True)
    return [encode_chat(tokenizer, question(text), answer(rating), mask_prompt=mask_prompt) for text, rating in pairs]


def _train(model: nn.Module, tokenizer: Any, rows: Sequence[Row], run: Run) -> dict[str, Any]:
    count = count_parameters(model)
    _forget_peak()
    started, processor = time.perf_counter(), time.process_time()
    settings = ChatTraining(learning_rate=run.learning_rate, steps=STEPS, batch_size=BATCH_SIZE, precision="bf16")
    losses = train_on_chats(model, tokenizer, rows, settings)
    return {
        "learning_rate": run.learning_rate,
        "trainable": count.trainable,
        "share": count.share,
        "losses": [round(loss, 4) for loss in losses],
        "step_seconds": round((time.perf_counter() - started) / STEPS, 3),
        "step_processor_seconds": round((time.process_time() - processor) / STEPS, 3),
    }


def megabytes(model: nn.Module) -> float:
    """What the model's parameters and buffers take; tied ones count once."""
    stored = {id(tensor): tensor.nbytes for tensor in chain(model.parameters(), model.buffers())}
    return round(sum(stored.values()) / 1e6, 1)


def _tokens(rows: Sequence[Row]) -> dict[str, float]:
    """Mean tokens of a row, and how many of them are learnt."""
    learnt = [sum(label >= 0 for label in row["labels"]) for row in rows]
    lengths = [len(row["input_ids"]) for row in rows]
    return {
        "row": sum(lengths) / len(rows),
        "learnt": sum(learnt) / len(rows),
        "learnt_share": sum(learnt) / sum(lengths),
    }


def _forget_peak() -> None:
    """Let the peak begin anew, so that loading the model is not in it. Only Linux and CUDA can do that."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    reset = Path("/proc/self/clear_refs")
    if reset.exists():
        reset.write_text("5", encoding="utf-8")


def _peak(held: float) -> float:
    """The most megabytes since then: on a GPU those of the tensors, else the process's, less those held before."""
    return torch.cuda.max_memory_allocated() / 2**20 if torch.cuda.is_available() else high_water() - held
