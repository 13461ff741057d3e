"""What every tuning method must keep, whichever it is: run it on your own implementation and read what it says.

report = check_invariants(make_model, LoRAConfig(rank=8), batch)
print(report)       # one line a property
assert report.ok
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

from course_utils import checkpoints
from course_utils.methods import MethodConfig, MethodError, count_parameters, inject, merge, trainable_parameters
from course_utils.methods.base import find_head

Batch = Mapping[str, torch.Tensor]
TOLERANCE = 1e-6  # of the largest logit


@dataclass(frozen=True)
class Property:
    """One property: its name, whether it holds, and in words what held or what failed and why that may be."""

    name: str
    holds: bool
    words: str

    def __str__(self) -> str:
        return f"{self.name}: {'holds' if self.holds else 'FAILS'}: {self.words}"


@dataclass(frozen=True)
class Report:
    """All properties of one method; `print` it."""

    properties: tuple[Property, ...]

    @property
    def failures(self) -> tuple[Property, ...]:
        """The properties that do not hold."""
        return tuple(p for p in self.properties if not p.holds)

    @property
    def ok(self) -> bool:
        """Whether all hold."""
        return not self.failures

    def __str__(self) -> str:
        return "\n".join(map(str, self.properties))


class _BrokenError(Exception):
    """A property does not hold; the text says what was seen."""


#: The mistake that most often breaks a property.
_LIKELY = {
    "identity at initialisation": "The update must start at zero: in LoRA B is zero and only A is random",
    "only the intended parameters get gradients": "Was the base model frozen? Does the forward pass use every new "
    "weight, without detach or no_grad?",
    "frozen weights stay": "Was the base model frozen before the new weights were added?",
    "trained weights change": "If A and B of LoRA both start at zero, each keeps the other's gradient at zero",
    "merged equals unmerged": "Is the update scaled in the merge as in the forward pass, and the right way round? "
    "nn.Linear holds its weight as (out, in), Conv1D as (in, out), and the update is B A, not A B",
    "save and load": "Was everything trainable saved, the head too? If the weights are equal and the logits are not, "
    "the forward pass does not use a setting as it was saved: the factor of LoRA is alpha / rank, not alpha",
    "parameter count": "Were other layers chosen than you think, or the base model not frozen, or the head forgotten?",
}


def check_invariants(
    make_model: Callable[[], nn.Module],
    config: MethodConfig,
    batch: Batch,
    *,
    expected_parameters: int | None = None,
    save: Callable[[nn.Module, Path], object] = checkpoints.save,
    load: Callable[[nn.Module, Path], object] = checkpoints.load,
) -> Report:
    """Check a method on a model: about five training steps, so take a small batch.

    Args:
        make_model: returns a fresh classifier each time, with the same weights each time.
        config: the method.
        batch: input_ids, attention_mask and labels.
        expected_parameters: how many parameters should be trained, head included; None leaves this property out.
        save: writes a model's trained weights into a folder.
        load: puts them into a fresh model.

    Returns:
        The report. A property that cannot be checked because something raised counts as a failure.

    Raises:
        ValueError: two models of `make_model` differ, so nothing could be compared.
    """
    first, second = make_model(), make_model()
    if not torch.equal(_logits(first, batch), _logits(second, batch)):
        raise ValueError("make_model gives other weights each time; set the seed inside it")

    def identity() -> str:
        _same(_logits(inject(make_model(), config), batch), _logits(first, batch), TOLERANCE)
        return "right after inject the model computes what it did before"

    tuned = make_model()
    pretrained = dict(tuned.named_parameters())
    head = {p for name in find_head(tuned, config.head) for p in tuned.get_submodule(name).parameters()}
    try:
        inject(tuned, config)
    except Exception as error:
        return Report((Property("inject", False, f"{type(error).__name__}: {error}"),))
    trained = trainable_parameters(tuned)
    # A method that adds weights leaves the pretrained ones alone; one that adds none chooses among them.
    adds = not {id(p) for p in tuned.parameters()} <= {id(p) for p in pretrained.values()}
    frozen = {n: p for n, p in pretrained.items() if p not in head and (adds or not p.requires_grad)}
    before = {name: p.detach().clone() for name, p in (frozen | trained).items()}
    gradients = _train(tuned, batch)

    def gradients_where_intended() -> str:
        _none("pretrained weights are trained too", [n for n, p in frozen.items() if p.requires_grad])
        _none("frozen weights got a gradient", [n for n, p in frozen.items() if p.grad is not None])
        _none("the loss does not depend on these trainable weights", [n for n, g in gradients.items() if g is None])
        return f"{len(trained)} tensors are trained, each gets a gradient, and no other does"

    def frozen_unchanged() -> str:
        _none("pretrained weights changed while training", [n for n, p in frozen.items() if _differ(p, before[n])])
        return "training left every frozen weight as it was, bit for bit"

    def trained_changed() -> str:
        # A vector may rightly have no gradient: the key's bias does not change what attention looks at.
        still = [n for n, p in trained.items() if not _differ(p, before[n]) and (p.ndim > 1 or gradients[n])]
        _none("training never moved these", still)
        return "training moved all that is trainable"

    def merge_is_equal() -> str:
        wide = inject(make_model(), config).double()  # in fp64 rounding can neither hide nor feign a difference
        _copy(tuned, wide)
        unmerged = _logits(wide, batch)
        try:
            merge(wide)
        except MethodError as refusal:
            return f"the method says that it cannot be merged ({refusal})"
        _none("the merge left or lost parameters", sorted(set(dict(wide.named_parameters())) ^ set(pretrained)))
        _same(_logits(wide, batch), unmerged, TOLERANCE)
        return "the merged model computes the same, with the base model's own parameters"

    def round_trip() -> str:
        with TemporaryDirectory() as folder:
            save(tuned, Path(folder))
            load(restored := make_model(), Path(folder))
        saved = dict(restored.named_parameters())
        _none("these did not come back", [n for n, p in trained.items() if n not in saved or _differ(p, saved[n])])
        _same(_logits(restored, batch), _logits(tuned, batch), 0)
        return "a saved and loaded model computes the same, bit for bit"

    def parameter_count() -> str:
        count = count_parameters(tuned)
        if count.trainable != expected_parameters:
            raise _BrokenError(f"expected {expected_parameters:,} trained parameters, but {count}")
        return str(count)

    checks = {
        "identity at initialisation": identity,
        "only the intended parameters get gradients": gradients_where_intended,
        "frozen weights stay": frozen_unchanged,
        "trained weights change": trained_changed,
        "merged equals unmerged": merge_is_equal,
        "save and load": round_trip,
    } | ({"parameter count": parameter_count} if expected_parameters is not None else {})
    return Report(tuple(_run(name, check) for name, check in checks.items()))


def _run(name: str, check: Callable[[], str]) -> Property:
    try:
        return Property(name, True, check())
    except _BrokenError as broken:
        return Property(name, False, f"{broken}. {_LIKELY[name]}")
    except Exception as error:  # the method under test is a learner's: whatever it raises belongs into the report
        return Property(name, False, f"{type(error).__name__}: {error}. {_LIKELY[name]}")


def _train(model: nn.Module, batch: Batch, steps: int = 4) -> dict[str, float | None]:
    """A few AdamW steps; for each trained parameter its largest gradient (length), None where it never got one."""
    trained = trainable_parameters(model)
    optimizer = torch.optim.AdamW(trained.values(), lr=1e-2, weight_decay=0.0)
    largest: dict[str, float | None] = dict.fromkeys(trained)
    model.train()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(0)
        for _ in range(steps):
            model.zero_grad()
            model(**batch).loss.backward()
            for name, p in trained.items():
                if p.grad is not None:
                    largest[name] = max(largest[name] or 0.0, p.grad.norm().item())
            optimizer.step()
    return largest


@torch.no_grad()
def _logits(model: nn.Module, batch: Batch) -> torch.Tensor:
    model.eval()
    return model(**batch).logits


@torch.no_grad()
def _copy(source: nn.Module, target: nn.Module) -> None:
    for to, value in zip(target.parameters(), source.parameters(), strict=True):
        to.copy_(value)


def _differ(one: torch.Tensor, other: torch.Tensor) -> bool:
    return not torch.equal(one, other)


def _same(got: torch.Tensor, expected: torch.Tensor, tolerance: float) -> None:
    difference = ((got - expected).abs().max() / expected.abs().max()).item()
    if not difference <= tolerance:  # NaN fails
        raise _BrokenError(f"the logits differ by {difference:.1e} of the largest")


def _none(words: str, names: list[str]) -> None:
    if names:
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise _BrokenError(f"{words}: {', '.join(names[:3])}{more}")
