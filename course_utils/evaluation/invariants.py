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
from safetensors.torch import load_file, save_file
from torch import nn

from course_utils import checkpoints
from course_utils.errors import CourseError
from course_utils.methods import MethodConfig, MethodError, count_parameters, inject, merge, trainable_parameters
from course_utils.methods.targets import find_head

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


class _BrokenError(CourseError):
    """A property does not hold; the text says what was seen."""


#: The mistake that most often breaks a property.
_LIKELY = {
    "identity at initialisation": "The update must start at zero: in LoRA B is zero and only A is random. For a "
    "method that does not promise it, such as prompt tuning, pass identity=False",
    "only the intended parameters get gradients": "Was the base model frozen? Does the forward pass use every new "
    "weight, without detach or no_grad?",
    "frozen weights stay": "Was the base model frozen before the new weights were added?",
    "trained weights change": "Does the optimiser have them? It must be made after inject. And if A and B of LoRA both "
    "start at zero, each keeps the other's gradient at zero",
    "evaluation is repeatable": "Is dropout on in eval mode too? nn.Dropout is not; functional.dropout must be told "
    "training=self.training",
    "merged equals unmerged": "Is the update scaled in the merge as in the forward pass, and the right way round? "
    "nn.Linear holds its weight as (out, in), Conv1D as (in, out), and the update is B A, not A B",
    "save and load": "Was everything trainable saved, the head too? If the weights are equal and the logits are not, "
    "the forward pass does not use a setting as it was saved: the factor of LoRA is alpha / rank, not alpha",
    "an incomplete checkpoint is refused": "load_state_dict with strict=False takes whatever it finds. Compare the "
    "names in the file with those of the trained weights",
    "new weights in full precision": "The steps of training are smaller than fp16 or bf16 can add to a weight: keep "
    "the new weights in float32, and give the output the base's type",
    "parameter count": "Were other layers chosen than you think, or the base model not frozen, or the head forgotten?",
}


def check_invariants(
    make_model: Callable[[], nn.Module],
    config: MethodConfig,
    batch: Batch,
    *,
    identity: bool = True,
    expected_parameters: int | None = None,
    train: Callable[[nn.Module, Batch], object] | None = None,
    save: Callable[[nn.Module, Path], object] = checkpoints.save,
    load: Callable[[nn.Module, Path], object] = checkpoints.load,
) -> Report:
    """Check a method on a model: about five training steps, so take a small batch.

    Args:
        make_model: returns a fresh classifier each time, with the same weights each time.
        config: the method.
        batch: input_ids, attention_mask and labels.
        identity: whether the method promises to change nothing at first. Prompts, prefixes and quantisation do not.
        expected_parameters: how many parameters should be trained, head included; None leaves this property out.
        train: trains a model for a few steps with a learning rate of about 0.01; default: four steps of AdamW.
        save: writes a model's trained weights into a folder.
        load: puts them into a fresh model.

    Returns:
        The report. A property that cannot be checked because something raised counts as a failure.

    Raises:
        ValueError: two models of `make_model` differ, so nothing could be compared.
    """
    if not torch.equal(_logits(make_model(), batch), _logits(make_model(), batch)):
        raise ValueError("make_model gives other weights each time; set the seed inside it")
    try:
        trial = _trial(make_model, config, batch, train or _train, save, load)
    except _InjectError as error:
        cause = error.__cause__
        return Report((Property("inject", False, f"{type(cause).__name__}: {cause}"),))
    checks: dict[str, Callable[[], str]] = {
        "identity at initialisation": trial.starts_as_identity,
        "only the intended parameters get gradients": trial.gradients_where_intended,
        "frozen weights stay": trial.frozen_unchanged,
        "trained weights change": trial.trained_changed,
        "merged equals unmerged": trial.merge_is_equal,
        "save and load": trial.round_trip,
        "an incomplete checkpoint is refused": trial.incomplete_refused,
        "evaluation is repeatable": trial.evaluation_repeatable,
        "new weights in full precision": trial.full_precision,
    }
    if not identity:
        del checks["identity at initialisation"]
    if expected_parameters is not None:
        checks["parameter count"] = lambda: trial.parameter_count(expected_parameters)
    return Report(tuple(_run(name, check) for name, check in checks.items()))


class _InjectError(CourseError):
    """The method does not get into the model; the cause says why."""


def _trial(
    make_model: Callable[[], nn.Module],
    config: MethodConfig,
    batch: Batch,
    train: Callable[[nn.Module, Batch], object],
    save: Callable[[nn.Module, Path], object],
    load: Callable[[nn.Module, Path], object],
) -> _Trial:
    """Put the method into a model and train it, and keep what there was before."""
    tuned = make_model()
    pretrained = dict(tuned.named_parameters())
    head = {p for name in find_head(tuned, config.head) for p in tuned.get_submodule(name).parameters()}
    try:
        inject(tuned, config)
    except Exception as error:
        raise _InjectError from error
    trained = trainable_parameters(tuned)
    # A method that adds weights leaves the pretrained ones alone; one that adds none chooses among them.
    adds = not {id(p) for p in tuned.parameters()} <= {id(p) for p in pretrained.values()}
    frozen = {n: p for n, p in pretrained.items() if p not in head and (adds or not p.requires_grad)}
    before = {name: p.detach().clone() for name, p in (frozen | trained).items()}
    train(tuned, batch)
    gradients = _gradients(tuned, batch)
    return _Trial(make_model, config, batch, save, load, tuned, pretrained, trained, frozen, before, gradients)


@dataclass
class _Trial:
    """A trained model and what was known of it before: each method checks one property, and says what it saw.

    Args:
        make_model, config, batch, save, load: as `check_invariants` was given them.
        tuned: the model with the method, trained.
        pretrained: name → parameter of the model before the method came.
        trained, frozen: name → parameter of what is to be trained, and of what is not.
        before: their values before training.
        gradients: length of each trained parameter's gradient, None where it has none.
    """

    make_model: Callable[[], nn.Module]
    config: MethodConfig
    batch: Batch
    save: Callable[[nn.Module, Path], object]
    load: Callable[[nn.Module, Path], object]
    tuned: nn.Module
    pretrained: dict[str, nn.Parameter]
    trained: dict[str, nn.Parameter]
    frozen: dict[str, nn.Parameter]
    before: dict[str, torch.Tensor]
    gradients: dict[str, float | None]

    def starts_as_identity(self) -> str:
        # In fp64 rounding can neither hide nor feign a difference.
        with_method = inject(self.make_model().double(), self.config)
        _same(_logits(with_method, self.batch), _logits(self.make_model().double(), self.batch), TOLERANCE)
        return "right after inject the model computes what it did before"

    def gradients_where_intended(self) -> str:
        silent = [n for n, g in self.gradients.items() if g is None]
        _none("pretrained weights are trained too", [n for n, p in self.frozen.items() if p.requires_grad])
        _none("frozen weights got a gradient", [n for n, p in self.frozen.items() if p.grad is not None])
        _none("the loss does not depend on these trainable weights", silent)
        own = {id(p) for p in self.pretrained.values()}
        new = [n for n, p in self.tuned.named_parameters() if id(p) not in own]
        if new and not set(new) & set(self.trained):
            _none("the method's own weights are frozen too", new)
        return f"{len(self.trained)} tensors are trained, each gets a gradient, and no other does"

    def frozen_unchanged(self) -> str:
        changed = [n for n, p in self.frozen.items() if _differ(p, self.before[n])]
        _none("pretrained weights changed while training", changed)
        return "training left every frozen weight as it was, bit for bit"

    def trained_changed(self) -> str:
        # A vector may rightly have no gradient: the key's bias does not change what attention looks at.
        still = [n for n, p in self.trained.items() if not _differ(p, self.before[n])]
        _none("training never moved these", [n for n in still if self.trained[n].ndim > 1 or self.gradients[n]])
        return "training moved all that is trainable"

    def merge_is_equal(self) -> str:
        wide = inject(self.make_model(), self.config).double()
        _copy(self.tuned, wide)
        unmerged = _logits(wide, self.batch)
        try:
            merge(wide)
        except MethodError as refusal:
            return f"the method says that it cannot be merged ({refusal})"
        _none("the merge left or lost parameters", sorted(set(dict(wide.named_parameters())) ^ set(self.pretrained)))
        _same(_logits(wide, self.batch), unmerged, TOLERANCE)
        return "the merged model computes the same, with the base model's own parameters"

    def round_trip(self) -> str:
        with TemporaryDirectory() as folder:
            self.save(self.tuned, Path(folder))
            self.load(restored := self.make_model(), Path(folder))
        saved = dict(restored.named_parameters())
        new = {n: p for n, p in self.trained.items() if n not in self.pretrained}
        # Some save an equal method in a plainer form: a prefix without its network, PiSSA as LoRA of twice the rank.
        if any(n not in saved or saved[n].shape != p.shape for n, p in new.items()):
            _same(_logits(restored, self.batch), _logits(self.tuned, self.batch), 10 * TOLERANCE)
            return "a model that is loaded from the saved, plainer form computes the same"
        _none("these did not come back", [n for n, p in self.trained.items() if _differ(p, saved[n])])
        _same(_logits(restored, self.batch), _logits(self.tuned, self.batch), 0)
        return "a saved and loaded model computes the same, bit for bit"

    def incomplete_refused(self) -> str:
        with TemporaryDirectory() as folder:
            self.save(self.tuned, Path(folder))
            for file in Path(folder).glob("*.safetensors"):
                lost, *kept = load_file(file).items()
                save_file(dict(kept), file)
                try:
                    self.load(self.make_model(), Path(folder))
                except Exception as refusal:
                    return f"without {lost[0]} it says: {refusal}"
                raise _BrokenError(f"a checkpoint without {lost[0]} was loaded without a word")
        return "not checked: the checkpoint is no safetensors file"

    def evaluation_repeatable(self) -> str:
        if _differ(_logits(self.tuned, self.batch), _logits(self.tuned, self.batch)):
            raise _BrokenError("two evaluations of the same batch differ")
        return "two evaluations of the same batch are equal, bit for bit"

    def full_precision(self) -> str:
        half = self.make_model().to(torch.bfloat16)
        own = set(half.parameters())
        new = {n: p for n, p in trainable_parameters(inject(half, self.config)).items() if p not in own}
        _none("new weights in half precision", [n for n, p in new.items() if p.dtype.itemsize < 4])
        _logits(half, self.batch)
        return "in a model in bfloat16, too, the new weights are float32"

    def parameter_count(self, expected: int) -> str:
        count = count_parameters(self.tuned)
        if count.trainable != expected:
            raise _BrokenError(f"expected {expected:,} trained parameters, but {count}")
        return str(count)


def _run(name: str, check: Callable[[], str]) -> Property:
    try:
        return Property(name, True, check())
    except _BrokenError as broken:
        return Property(name, False, f"{broken}. {_LIKELY[name]}")
    except Exception as error:  # the method under test is a learner's: whatever it raises belongs into the report
        return Property(name, False, f"{type(error).__name__}: {error}. {_LIKELY[name]}")


def _train(model: nn.Module, batch: Batch, steps: int = 4) -> None:
    optimizer = torch.optim.AdamW(trainable_parameters(model).values(), lr=1e-2, weight_decay=0.0)
    model.train()
    with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
        torch.manual_seed(0)
        for _ in range(steps):
            model.zero_grad()
            model(**batch).loss.backward()
            optimizer.step()


def _gradients(model: nn.Module, batch: Batch) -> dict[str, float | None]:
    """For each trained parameter the length of its gradient, None where it has none."""
    model.zero_grad()
    model.eval()
    model(**batch).loss.backward()
    return {n: None if p.grad is None else p.grad.norm().item() for n, p in trainable_parameters(model).items()}


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
