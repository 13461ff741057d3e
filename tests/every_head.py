"""Every model class with a task that transformers offers: is all that is new trained, saved and loaded?

    python tests/every_head.py --out tests/every_head.json     all of them; `make test` runs some families of it

A case is one model class and one method. A tiny pretrained model of the family, that of its language model where it has
one, is loaded into the class as anybody does it, and so with a new head. Then: inject, train, save; and in another
process, on the same pretrained model with another new head: load, and compute the same. A case is `equal`, or `refused`
with a sentence, or `skipped` because the class cannot be built small. All else `fails`.

What stands in the report is not done again, but for classes with an outcome that is named: `--again fails`. A process
that hangs or dies costs its own case.
"""

from __future__ import annotations

import argparse
import copy
import json
import multiprocessing
import re
import signal
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from tiny import LARGEST, RULES, inputs_for, tiny_config
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM
from transformers.models.auto import modeling_auto

from course_utils.checkpoints import CheckpointError, load, save
from course_utils.methods import (
    BitFitConfig,
    HeadOnlyConfig,
    HoulsbyConfig,
    IA3Config,
    LoRAConfig,
    MethodError,
    PromptTuningConfig,
    inject,
    quantize,
    trainable_parameters,
)
from course_utils.methods.heads import head_by_build
from course_utils.methods.virtual_tokens import AdaptedBody

METHODS = {
    "LoRA": LoRAConfig(rank=2, targets="all-linear"),
    "BitFit": BitFitConfig(),
    "(IA)³": IA3Config(),
    "head only": HeadOnlyConfig(),
    "adapters": HoulsbyConfig(size=4),
    "prompt tuning": PromptTuningConfig(virtual_tokens=2),
}
SAMPLE = (
    *("albert", "bart", "bert", "deberta-v2", "distilbert", "electra", "gpt2", "llama", "opt", "qwen3", "t5", "xlm"),
    *("vit", "wav2vec2"),
)
STEPS, SECONDS = 30, 40

Outcomes = dict[str, dict[str, str]]


def classes(families: tuple[str, ...] | None = None) -> dict[str, list[str]]:
    """Family → its model classes, of all the automatic classes that begin with `AutoModelFor`, in their order."""
    found: dict[str, list[str]] = {}
    for auto in sorted(name for name in vars(modeling_auto) if name.startswith("AutoModelFor")):
        for family, names in getattr(modeling_auto, auto)._model_mapping._model_mapping.items():
            for name in [names] if isinstance(names, str) else names:
                known = found.setdefault(family, [])
                if name not in known and (families is None or family in families):
                    known.append(name)
    return {family: names for family, names in sorted(found.items()) if names}


@contextmanager
def limit(seconds: int) -> Iterator[None]:
    def stop(*_: Any) -> None:
        raise TimeoutError(f"it takes more than {seconds} seconds")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


# --- a tiny pretrained model, and the class on top of it -------------------------------------------------------------


class SkippedError(Exception):
    """The class cannot be built small."""


class Pretrained:
    """Where the tiny pretrained models of one family stand."""

    def __init__(self, family: str, root: Path) -> None:
        self.family, self.root = family, root

    def prepare(self, name: str) -> tuple[Path, dict[str, torch.Tensor]]:
        """A folder to load the class from, and inputs that it computes something for."""
        model_class = getattr(transformers, name)
        reasons = []
        for number, rule in enumerate(RULES):
            try:
                config = tiny_config(self.family, model_class, rule)
                _refuse_large(model_class, config)
                folder = self._folder(model_class, config, number)
                return folder, _first_inputs(load_class(name, folder, seed=1)[0])
            except Exception as error:  # whatever a class of transformers says of a small configuration
                reasons.append(error)
        raise SkippedError(_reason(reasons))

    def _folder(self, model_class: Any, config: Any, number: int) -> Path:
        """A random model with the head of pretraining, or none; the class itself where it is one, or reads none."""
        heads = (AutoModelForMaskedLM, AutoModelForSeq2SeqLM, AutoModelForCausalLM, AutoModel)
        others = [auto._model_mapping[type(config)] for auto in heads if type(config) in auto._model_mapping]
        singles = [other for other in others if isinstance(other, type)]
        for pretrained in (*(() if model_class in singles else singles), model_class):
            folder = self.root / f"pretrained-{pretrained.__name__}-{number}"
            if not folder.exists():
                _refuse_large(pretrained, config)
                torch.manual_seed(0)
                pretrained(copy.deepcopy(config)).save_pretrained(folder)
            model, new = load_class(model_class.__name__, folder, seed=1)
            if any(name not in new for name, _ in model.named_parameters()):
                return folder
        raise ValueError("it reads nothing of what it has saved")


def _refuse_large(model_class: Any, config: Any) -> None:
    with torch.device("meta"):
        size = sum(p.numel() for p in model_class(copy.deepcopy(config)).parameters())
    if size > LARGEST:
        raise OverflowError("no rule makes it small")


def _first_inputs(model: Any) -> dict[str, torch.Tensor]:
    found: list[Exception] = []
    for inputs in inputs_for(model):
        try:
            outputs = results(model, inputs)
            if outputs and all(torch.isfinite(o).all() for o in outputs) and any(o.requires_grad for o in outputs):
                return inputs
        except TimeoutError:
            raise
        except Exception as error:
            found.append(error)
    raise RuntimeError("it computes nothing from tokens, an image or a sound alone")


def _reason(errors: list[Exception]) -> str:
    for error in errors:
        if isinstance(error, TimeoutError):
            raise error
        if isinstance(error, ImportError):
            package = re.search(r"requires the (\S+)|named '?([\w.]+)", str(error))
            return (
                f"it needs a package that is not installed: {next(filter(None, package.groups())) if package else ''}"
            )
    if any("computes nothing" in str(error) for error in errors):
        return "it computes nothing from tokens, an image or a sound alone"
    if any(isinstance(error, OverflowError) for error in errors):
        return "no rule makes it small"
    texts = Counter(f"{type(error).__name__}: {str(error)[:120]}".replace("\n", " ") for error in errors)
    return f"no rule builds it: {texts.most_common(1)[0][0]}"


def load_class(name: str, folder: Path, seed: int) -> tuple[Any, set[str]]:
    """The class on the pretrained model, and the parameters that are new."""
    torch.manual_seed(seed)
    model, info = getattr(transformers, name).from_pretrained(folder, output_loading_info=True)
    own = {name for name, _ in model.named_parameters() if not _is_computed(model, name)}
    return model.eval(), set(info["missing_keys"]) & own


def _is_computed(model: Any, name: str) -> bool:
    """Whether a formula gives the parameter: the comparison in the other process shows that it is the same there."""
    return "Sinusoidal" in type(model.get_submodule(name.rpartition(".")[0])).__name__


def results(model: Any, inputs: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """All numbers that the model computes, without its caches. What it draws is the same each time."""
    torch.manual_seed(0)
    return [tensor for tensor in _tensors(model(**inputs)) if tensor.is_floating_point()]


def _tensors(output: Any) -> Iterator[torch.Tensor]:
    if isinstance(output, torch.Tensor):
        yield output
    elif isinstance(output, Mapping):
        for name, value in output.items():
            if not any(part in name for part in ("past_key_values", "cache", "mems")):
                yield from _tensors(value)
    elif isinstance(output, list | tuple):
        for part in output:
            yield from _tensors(part)


# --- the two processes -----------------------------------------------------------------------------------------------


def train_and_save(name: str, pretrained: Path, inputs: Mapping[str, torch.Tensor], method: str, folder: Path) -> str:
    """`equal` when the checkpoint and the expected results are in the folder, or the sentence of a refusal."""
    model, new = load_class(name, pretrained, seed=1)
    new |= {n for n, _ in model.named_parameters() if n.startswith(tuple(f"{m}." for m in head_by_build(model) or ()))}
    try:
        inject(model, METHODS[method])
    except MethodError as error:
        return f"refused: {error}"
    _check_head(model, new)
    optimizer = torch.optim.AdamW(trainable_parameters(model).values(), lr=1e-3)
    before = results(model, inputs)
    if not any(tensor.requires_grad for tensor in before) and model.main_input_name != "input_ids":
        raise SkippedError("what is trained has no part in what it computes without labels, or from one input of two")
    for _ in range(STEPS):
        optimizer.zero_grad()
        sum(tensor.square().mean() for tensor in results(model, inputs)).backward()  # type: ignore[union-attr]
        optimizer.step()
    if model.main_input_name != "input_ids" and _equal(before, results(model, inputs)):
        raise SkippedError("what it computes are choices, which a little training does not change")
    try:
        save(model, folder)
    except CheckpointError as error:
        return f"refused: {error}"
    with torch.no_grad():
        torch.save(results(model, inputs), folder / "expected.pt")
    return "equal"


def _check_head(model: Any, new: set[str]) -> None:
    """All that is new is trained as it is, under its own name: no target, no bias of BitFit's alone, not in 4 bits."""
    for body in [name for name, module in model.named_modules() if isinstance(module, AdaptedBody)]:
        new = {re.sub(rf"^{re.escape(body)}\.", f"{body}.base.", name) for name in new}
    left = new - set(trainable_parameters(model))
    assert not left, f"new and not trained as it is: {sorted(left)[:3]}"
    if isinstance(model.tuning, HeadOnlyConfig):
        packed = copy.deepcopy(model)
        with suppress(MethodError):  # it has no linear layer
            quantize(packed)
        left = new - {name for name, p in packed.named_parameters() if p.is_floating_point()}
        assert not left, f"new and quantised: {sorted(left)[:3]}"


def check(name: str, pretrained: Path, inputs: Mapping[str, torch.Tensor], folder: Path) -> str:
    """Load the checkpoint into a freshly drawn head, and compare."""
    model, _ = load_class(name, pretrained, seed=2)
    with torch.no_grad():
        before = results(model, inputs)
        found, expected = results(load(model, folder), inputs), torch.load(folder / "expected.pt")
    assert all(torch.isfinite(tensor).all() for tensor in expected), "not finite after training"
    assert _equal(found, expected), "other results"
    assert not _equal(before, expected), "training changed nothing"
    return "equal"


def _equal(some: list[torch.Tensor], others: list[torch.Tensor]) -> bool:
    return len(some) == len(others) and all(torch.equal(one, two) for one, two in zip(some, others, strict=True))


class Journal:
    """Case → outcome, a line each, so that a process that dies leaves what it has done, and the case it died of."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> Outcomes:
        found: Outcomes = {}
        for line in self.path.read_text("utf-8").splitlines() if self.path.exists() else ():
            name, method, outcome = json.loads(line)
            found.setdefault(name, {})[method] = outcome
        return found

    def run(self, name: str, method: str, case: Callable[[], str]) -> None:
        self.write(name, method, "fails: the process died or hung")
        try:
            with limit(SECONDS):
                outcome = case()
        except (SkippedError, TimeoutError) as error:
            outcome = f"skipped: {error}"
        except Exception as error:
            outcome = f"fails: {type(error).__name__}: {str(error)[:300]}"
        self.write(name, method, outcome)

    def write(self, name: str, method: str, outcome: str) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps([name, method, outcome], ensure_ascii=False) + "\n")


def train_family(family: str, names: list[str], root: Path) -> None:
    """The first process: all classes and methods that the journal does not have."""
    journal, pretrained = Journal(root / "trained"), Pretrained(family, root)
    for name in names:
        if "build" not in journal.read().get(name, {}):
            journal.run(name, "build", partial(_build, pretrained, name, root))
        if journal.read()[name]["build"] != "equal":
            continue
        folder, inputs = torch.load(root / f"{name}.pt", weights_only=False)
        for number, method in enumerate(METHODS):
            done = journal.read()[name]
            slow = next((outcome for outcome in done.values() if "seconds" in outcome), "")
            if slow:
                journal.write(name, method, slow)
            elif method not in done:
                case = partial(train_and_save, name, folder, inputs, method, root / f"{name}-{number}")
                journal.run(name, method, case)


def _build(pretrained: Pretrained, name: str, root: Path) -> str:
    torch.save(pretrained.prepare(name), root / f"{name}.pt")
    return "equal"


def check_family(names: list[str], root: Path) -> None:
    """The second process: all that the first has saved."""
    journal = Journal(root / "checked")
    for name, trained in Journal(root / "trained").read().items():
        if trained.pop("build") != "equal":
            continue
        folder, inputs = torch.load(root / f"{name}.pt", weights_only=False)
        for number, method in enumerate(METHODS):
            if trained.get(method) == "equal" and method not in journal.read().get(name, {}):
                journal.run(name, method, partial(check, name, folder, inputs, root / f"{name}-{number}"))


def _until_done(work: Callable[..., None], *arguments: Any, journal: Path) -> None:
    """Run it in a process of its own, and once more for what is left each time that the process dies or hangs."""
    for _ in range(20):
        process = multiprocessing.get_context("fork").Process(target=work, args=arguments)
        process.start()
        size, since = -1, time.monotonic()
        while process.is_alive():
            process.join(2)
            now = journal.stat().st_size if journal.exists() else 0
            if now != size:
                size, since = now, time.monotonic()
            elif time.monotonic() - since > 3 * SECONDS:  # it hangs where no alarm reaches it
                process.kill()
        if process.exitcode == 0:
            return


def run_family(family: str, names: list[str]) -> Outcomes:
    """Class → method → outcome."""
    with TemporaryDirectory() as folder:
        root = Path(folder)
        _until_done(train_family, family, names, root, journal=root / "trained")
        _until_done(check_family, names, root, journal=root / "checked")
        outcomes = Journal(root / "trained").read()
        for name, found in outcomes.items():
            build = found.pop("build")
            if build != "equal":
                outcomes[name] = dict.fromkeys(METHODS, build)
        for name, found in Journal(root / "checked").read().items():
            outcomes[name] |= found
    return {
        f"{family} {name}": {method: _alike(outcome, name, family) for method, outcome in found.items()}
        for name, found in outcomes.items()
    }


def _alike(outcome: str, name: str, family: str) -> str:
    """The outcome without the names of class and family, so that the same reason counts as the same."""
    return outcome.replace(name, "CLASS").replace(f"({family})", "(FAMILY)").replace(f"'{family}'", "FAMILY")


# --- the report ------------------------------------------------------------------------------------------------------


def run(families: tuple[str, ...] | None) -> dict[str, Any]:
    """The report of these families, or of all."""
    outcomes: Outcomes = {}
    for family, names in classes(families).items():
        outcomes |= run_family(family, names)
    return report(outcomes)


def report(outcomes: Outcomes) -> dict[str, Any]:
    """Counts; each reason with how often it was given; and of each case the number of its outcome among these."""
    every = Counter(outcome for found in outcomes.values() for outcome in found.values())
    order = [outcome for outcome, _ in sorted(every.items(), key=lambda item: (item[0].partition(":")[0], -item[1]))]
    by_method = {m: Counter(found[m].partition(":")[0] for found in outcomes.values() if m in found) for m in METHODS}
    return {
        "versions": {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__},
        "families": len({case.split()[0] for case in outcomes}),
        "classes": len(outcomes),
        "counts": dict(sorted(sum(by_method.values(), Counter[str]()).items())),
        "by method": {method: dict(sorted(counts.items())) for method, counts in by_method.items()},
        "outcomes": [f"{every[outcome]} {outcome}" for outcome in order],
        "cases": {case: [order.index(found[m]) for m in METHODS] for case, found in sorted(outcomes.items())},
    }


def read(stored: Mapping[str, Any]) -> Outcomes:
    """The outcomes of a report."""
    texts = [outcome.partition(" ")[2] for outcome in stored["outcomes"]]
    return {case: {m: texts[n] for m, n in zip(METHODS, found, strict=True)} for case, found in stored["cases"].items()}


def write(path: Path, found: Mapping[str, Any]) -> None:
    """A line for each case."""
    text = json.dumps(found, indent=1, ensure_ascii=False)
    text = re.sub(r"\[\s*((?:\d+,?\s*)+)\]", lambda match: f"[{' '.join(match[1].split())}]", text)
    path.write_text(text + "\n", "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", help="only these, with commas")
    parser.add_argument("--out", type=Path, required=True, help="where the report goes; what it has is not done again")
    parser.add_argument(
        "--again", default="", help="do the families again that have such a case: fails, skipped, or a word"
    )
    options = parser.parse_args()
    quiet()
    outcomes = read(json.loads(options.out.read_text("utf-8"))) if options.out.exists() else {}
    for family, names in classes(options.families and tuple(options.families.split(","))).items():
        known = {name: outcomes.get(f"{family} {name}", {}).values() for name in names}
        names = [n for n in names if not known[n] or (options.again and any(options.again in o for o in known[n]))]
        if names:
            outcomes |= run_family(family, names)
            write(options.out, report(outcomes))
            print(
                family,
                Counter(o.partition(":")[0] for n in names for o in outcomes[f"{family} {n}"].values()),
                flush=True,
            )


def quiet() -> None:
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)


if __name__ == "__main__":
    main()
