"""Single steps of the race on one core, with one choice more each time, and how near they are to their arithmetic.

All take their steps in turn, and each batch several times; the shortest time counts, because nothing makes a step
quicker than it is. Beside them stand matrix products of a step's shapes, so that the operations of a step, which torch
counts, become the time that they need at least::

    share = operations / operations a second of a product alone / seconds of the step
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from course_utils.data.batching import make_loader
from course_utils.data.splits import load_sentiment
from course_utils.evaluation.timing import in_turn
from course_utils.methods import inject, trainable_parameters
from course_utils.methods.registry import METHODS
from course_utils.models.backbones import load_classifier
from course_utils.training.needless import first_token_only, plain_attention, without_drawing
from course_utils.training.precision import fastest_dtype
from course_utils.workshop.experiments.costs import Batch

BATCHES, PASSES, BATCH = 6, 3, 32
#: A product of a step, and how many of them are timed together: (tokens, in) and (out, in).
TOKENS, IN, OUT, PRODUCTS = 700, 384, 1536, 10
#: What the profiler calls them → which part of a step they are.
PARTS = {
    "products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm"),
    "drawing": ("aten::bernoulli_", "aten::native_dropout", "aten::native_dropout_backward"),
    "copies": ("aten::copy_", "aten::_to_copy"),
    "curves": (
        "aten::gelu", "aten::gelu_backward", "aten::_softmax", "aten::_softmax_backward_data",
        "aten::native_layer_norm", "aten::native_layer_norm_backward", "aten::tanh",
    ),
}  # fmt: skip

Loss = Callable[[Any, Batch], torch.Tensor]


def usual_loss(model: Any, batch: Batch) -> torch.Tensor:
    """The loss of a padded batch."""
    loss: torch.Tensor = model(**batch).loss
    return loss


def packed_loss(model: Any, batch: Batch) -> torch.Tensor:
    """The same loss without a padding token: the texts stand one behind another, and none looks at its neighbours."""
    there = batch["attention_mask"].bool()
    lengths = there.sum(1)
    owner = torch.repeat_interleave(torch.arange(len(lengths)), lengths)
    starts = lengths.cumsum(0) - lengths
    hidden = model.bert(
        input_ids=batch["input_ids"][there][None],
        position_ids=(torch.arange(len(owner)) - starts[owner])[None],
        attention_mask=(owner[:, None] == owner)[None, None],
    ).last_hidden_state[0, starts]
    logits = model.classifier(model.dropout(model.bert.pooler(hidden[:, None])))
    return nn.functional.cross_entropy(logits, batch["labels"])


@dataclass(frozen=True)
class Choice:
    """How a step is taken.

    Args:
        title: how the page calls it.
        sorted_: texts of about the same length share a batch.
        bf16: compute in bfloat16.
        short_cuts: of `training.needless`.
        loss: of a batch.
        fused: take PyTorch's AdamW in one kernel.
        frozen: the type of the frozen weights.
    """

    title: str
    sorted_: bool = True
    bf16: bool = False
    short_cuts: tuple[Callable[[nn.Module], Any], ...] = ()
    loss: Loss = usual_loss
    fused: bool = False
    frozen: torch.dtype = torch.float32


def choices() -> tuple[dict[str, Choice], dict[str, Choice]]:
    """The ladder, each with one thing more than the one before; and what was tried in place of its end."""
    half = fastest_dtype("cpu") == torch.bfloat16
    ladder = {"random": Choice("random batches, as the recipe", sorted_=False)}

    def climb(name: str, title: str, *short_cuts: Callable[[nn.Module], Any], **changes: Any) -> None:
        last = list(ladder.values())[-1]
        ladder[name] = replace(last, title=title, short_cuts=(*last.short_cuts, *short_cuts), **changes)

    climb("sorted", "texts of about one length together", sorted_=True)
    if half:
        climb("bf16", "bfloat16", bf16=True)
        climb("plain", "attention in separate products", plain_attention)
    climb("no_dropout", "no dropout", without_drawing)
    climb("first_token", "the last layer for one token", first_token_only)
    end = list(ladder.values())[-1]
    fused = tuple(cut for cut in end.short_cuts if cut is not plain_attention)
    others = {
        "packed": replace(
            end, title="texts packed, no padding", short_cuts=(plain_attention, without_drawing), loss=packed_loss
        ),
        "fused_adamw": replace(end, title="AdamW in one kernel", fused=True),
    }
    if half:
        others |= {
            "fused_attention": replace(end, title="attention in one kernel", short_cuts=fused),
            "bf16_weights": replace(end, title="frozen weights kept in bfloat16", frozen=torch.bfloat16),
        }
    return ladder, others


def measure() -> dict[str, Any]:
    """All of it, in this process, on one core: the two tables, the products, the tokens."""
    torch.set_num_threads(1)
    tweets, (_, tokenizer) = load_sentiment(), load_classifier()
    loader = make_loader(tweets["train"], tokenizer, BATCH, shuffle=True)
    batches = {True: _full(loader), False: _full(_at_random(loader))}
    ladder, others = choices()
    both = ladder | others
    models = {name: _model(choice) for name, choice in both.items()}
    times = _times(both, models, batches)
    rates = {name: _product_flops() / times[f"products, {name}"].min() / 1e6 for name in PRODUCT_RUNS}  # 10⁹ a second
    rows = {}
    for name, choice in both.items():
        flops = _flops(choice, models[name], batches[choice.sorted_])
        milliseconds = float(times[name].reshape(PASSES, BATCHES).min(0).mean())
        rows[name] = {
            "title": choice.title,
            "milliseconds": round(milliseconds, 1),
            "gflop": round(flops / 1e9, 2),
            "arithmetic": round(flops / 1e6 / rates["bf16" if choice.bf16 else "fp32"] / milliseconds, 3),
            "parts": _profile(choice, models[name], batches[choice.sorted_][:3]),
        }
    _compare(rows, ladder, others)
    tokens = {name: _padding(batches[sorted_]) for name, sorted_ in (("random", False), ("sorted", True))}
    return {
        "measured": {
            "tokens": tokens,
            "products": {name: round(rate, 1) for name, rate in rates.items()},
            "choices": {name: rows[name] for name in ladder},
            "others": {name: rows[name] for name in others},
        }
    }


def _compare(rows: dict[str, Any], ladder: Mapping[str, Choice], others: Mapping[str, Choice]) -> None:
    """How many times as fast as the first, and as the one before; what was tried is compared with the ladder's end."""
    first, before = rows["random"], rows["random"]
    for name in ladder:
        rows[name]["faster"] = round(first["milliseconds"] / rows[name]["milliseconds"], 2)
        rows[name]["gain"] = round(before["milliseconds"] / rows[name]["milliseconds"], 2)
        before = rows[name]
    for name in others:
        rows[name]["gain"] = round(before["milliseconds"] / rows[name]["milliseconds"], 2)


def _full(batches: Any) -> list[Batch]:
    """The first full batches."""
    full = (batch for batch in batches if len(batch["labels"]) == BATCH)
    return [batch for batch, _ in zip(full, range(BATCHES), strict=False)]


def _at_random(loader: DataLoader) -> Iterator[Batch]:
    """The loader's texts in an order that knows nothing of their lengths."""
    order = torch.randperm(len(loader.dataset), generator=torch.Generator().manual_seed(0)).tolist()  # type: ignore[arg-type]
    for start in range(0, len(order), BATCH):
        yield loader.collate_fn([loader.dataset[i] for i in order[start : start + BATCH]])


def _padding(batches: list[Batch]) -> dict[str, float]:
    """Tokens a batch, and how much of that is padding."""
    tokens, real = (sum(int(f(batch)) for batch in batches) for f in (_all_tokens, _real_tokens))
    return {"tokens": round(tokens / len(batches)), "padding": round(1 - real / tokens, 3)}


def _all_tokens(batch: Batch) -> int:
    return batch["input_ids"].numel()


def _real_tokens(batch: Batch) -> int:
    return int(batch["attention_mask"].sum())


def _model(choice: Choice) -> nn.Module:
    model = inject(load_classifier()[0], METHODS["lora"].config)
    for parameter in model.parameters():
        if not parameter.requires_grad:
            parameter.data = parameter.data.to(choice.frozen)
    return model.train()


def _steps(choice: Choice, model: nn.Module, batches: list[Batch]) -> Iterator[None]:
    """A training step on a batch each time that the next item is asked for."""
    trained = list(trainable_parameters(model).values())
    optimizer = torch.optim.AdamW(trained, lr=1e-3, fused=choice.fused)
    for batch in batches:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=choice.bf16):
            loss = choice.loss(model, batch)
        loss.backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
        yield


PRODUCT_RUNS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def _products(dtype: torch.dtype) -> Callable[[], None]:
    """Several products as a step has them, forward and backward."""
    chance = torch.Generator().manual_seed(0)
    shapes = ((TOKENS, IN), (OUT, IN), (TOKENS, OUT))
    x, weight, gradient = (torch.randn(shape, generator=chance).to(dtype) for shape in shapes)

    def run() -> None:
        for _ in range(PRODUCTS):
            nn.functional.linear(x, weight)
            gradient @ weight

    return run


def _product_flops() -> int:
    return 2 * 2 * TOKENS * IN * OUT * PRODUCTS


def _times(
    both: Mapping[str, Choice], models: Mapping[str, nn.Module], batches: Mapping[bool, list[Batch]]
) -> dict[str, np.ndarray]:
    """Milliseconds of each step and of the products, all in turn."""
    warm_up = 2
    with ExitStack() as stack:
        runs: dict[str, Callable[[], Any]] = {}
        for name, choice in both.items():
            for cut in choice.short_cuts:
                stack.enter_context(cut(models[name]))
            mine = batches[choice.sorted_]
            runs[name] = partial(next, _steps(choice, models[name], [*mine[:warm_up], *(mine * PASSES)]))
        runs |= {f"products, {name}": _products(dtype) for name, dtype in PRODUCT_RUNS.items()}
        return in_turn(runs, PASSES * BATCHES, warm_up)


def _flops(choice: Choice, model: nn.Module, batches: list[Batch]) -> float:
    """Operations of the products of a step, the mean over the batches; a product of (m, k) and (k, n) has 2 m k n."""
    with ExitStack() as stack:
        for cut in {*choice.short_cuts, plain_attention}:  # torch counts no operations of the fused kernel
            stack.enter_context(cut(model))
        with FlopCounterMode(display=False) as counter:
            for batch in batches:
                with torch.autocast("cpu", torch.bfloat16, enabled=choice.bf16):
                    loss = choice.loss(model, batch)
                loss.backward()
        model.zero_grad()
    return counter.get_total_flops() / len(batches)


def _profile(choice: Choice, model: nn.Module, batches: list[Batch]) -> dict[str, float]:
    """Which share of a step's time goes where."""
    with ExitStack() as stack:
        for cut in choice.short_cuts:
            stack.enter_context(cut(model))
        steps = _steps(choice, model, [batches[0], *batches])
        next(steps)
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            for _ in batches:
                next(steps)
    own = {event.key: event.self_cpu_time_total for event in profiler.key_averages()}
    total = sum(own.values())
    shares = {part: round(sum(own.get(name, 0.0) for name in names) / total, 3) for part, names in PARTS.items()}
    return shares | {"rest": round(1 - sum(shares.values()), 3)}
