"""Every model class with a task that transformers offers for text: is all that is new trained, saved and loaded?

    python tests/every_head.py --out tests/every_head.json     all of them; `make test` runs some families of it

A case is one of transformers' automatic classes, one family and one method. The family's tiny pretrained model, that of
its language model where it has one, is loaded into the class as anybody does it, and so with a new head. Then: inject,
train, save; and in another process, on the same pretrained model with another new head: load, and compute the same. A
case is `equal`, or `refused` with a sentence, or `skipped` because the class cannot be built small. All else `fails`.
"""

from __future__ import annotations

import argparse
import json
import signal
import subprocess
import sys
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
import transformers
from models import HIDDEN, PAD, VOCABULARY
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoModelForMaskedLM, AutoModelForSeq2SeqLM

from course_utils.checkpoints import CheckpointError, load, save
from course_utils.methods import (
    BitFitConfig,
    HeadOnlyConfig,
    IA3Config,
    LoRAConfig,
    MethodError,
    inject,
    trainable_parameters,
)
from course_utils.methods.trial import _results, one_token

METHODS = {
    "LoRA": LoRAConfig(rank=2, targets="all-linear"),
    "BitFit": BitFitConfig(),
    "(IA)³": IA3Config(),
    "head only": HeadOnlyConfig(),
}
TASKS = (
    *("SequenceClassification", "TokenClassification", "QuestionAnswering", "MultipleChoice", "NextSentencePrediction"),
    *("MaskedLM", "CausalLM", "Seq2SeqLM"),
)
SAMPLE = (
    "albert",
    "bart",
    "bert",
    "deberta-v2",
    "distilbert",
    "electra",
    "gpt2",
    "llama",
    "opt",
    "qwen3",
    "t5",
    "xlm",
)
#: Numbers of a model that counts as tiny.
LARGEST = 3_000_000
STEPS, SECONDS = 3, 20

_SIZES: dict[str, Any] = (
    {"vocab_size": VOCABULARY, "hidden_size": HIDDEN, "num_hidden_layers": 2, "num_attention_heads": 4}
    | {"intermediate_size": 48, "max_position_embeddings": 40, "pad_token_id": PAD, "bos_token_id": 2}
    | {"eos_token_id": 3, "decoder_start_token_id": 2}
)
#: The names that some families have for their sizes.
_OTHER_SIZES: dict[str, Any] = (
    {"d_model": HIDDEN, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4, "d_inner": 48}
    | {"encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 4, "decoder_attention_heads": 4}
    | {"encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "ffn_dim": 48, "word_embed_proj_dim": HIDDEN, "n_inner": 48}
    | {"dim": HIDDEN, "n_layers": 2, "n_layer": 2, "n_heads": 4, "n_head": 4, "hidden_dim": 48, "emb_dim": HIDDEN}
    | {"embedding_size": HIDDEN, "num_key_value_heads": 2, "head_dim": 8, "rotary_dim": 4, "n_embd": HIDDEN}
    | {"num_hidden_groups": 2, "attention_types": [[["global", "local"], 1]], "n_positions": 40}
    | {"encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0, "moe_intermediate_size": 16, "num_experts": 4}
    | {"num_local_experts": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "ffn_hidden_size": 48}
)


def cases(families: tuple[str, ...] | None = None) -> Iterator[tuple[str, str]]:
    """Task and family, in transformers' order."""
    for task in TASKS:
        mapping = getattr(transformers, f"AutoModelFor{task}")._model_mapping._model_mapping
        for family in mapping:
            if families is None or family in families:
                yield task, family


def tiny_config(family: str) -> Any:
    """A small configuration: all the sizes that this family knows."""
    known = AutoConfig.for_model(family).to_dict()
    mapped = getattr(type(AutoConfig.for_model(family)), "attribute_map", {})
    sizes = _SIZES | {name: size for name, size in _OTHER_SIZES.items() if name in known}
    return AutoConfig.for_model(family, **{n: s for n, s in sizes.items() if n not in mapped or mapped[n] not in sizes})


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


def write_pretrained(family: str, folder: Path) -> None:
    """A random model with the head of pretraining, where the family has one."""
    config = tiny_config(family)
    for auto in (AutoModelForMaskedLM, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoModel):
        if type(config) in auto._model_mapping:
            break
    with torch.device("meta"):
        size = sum(p.numel() for p in auto.from_config(config).parameters())
    if size > LARGEST:
        raise ValueError("no tiny configuration is known")
    torch.manual_seed(0)
    auto.from_config(config).save_pretrained(folder)


def load_class(task: str, folder: Path, seed: int) -> tuple[Any, set[str]]:
    """The class on the pretrained model, and the parameters that are new."""
    torch.manual_seed(seed)
    auto = getattr(transformers, f"AutoModelFor{task}")
    model, info = auto.from_pretrained(folder, output_loading_info=True)
    own = {name for name, _ in model.named_parameters() if not _is_computed(model, name)}
    new = set(info["missing_keys"]) & own
    if new == own:
        raise ValueError("transformers reads nothing of the family's language model into this class")
    return model.eval(), new


def _is_computed(model: Any, name: str) -> bool:
    """Whether a formula gives the parameter: the comparison in the other process shows that it is the same there."""
    return "Sinusoidal" in type(model.get_submodule(name.rpartition(".")[0])).__name__


def results(model: Any) -> list[torch.Tensor]:
    """What the model computes for three tokens."""
    inputs = one_token(model)
    assert inputs is not None, "it reads no tokens"
    ids = inputs["input_ids"]
    first = torch.tensor([5, 7, 9]).expand(*ids.shape[:-1], 3)
    inputs = {name: torch.cat((first.reshape(*value.shape[:-1], 3), value), -1) for name, value in inputs.items()}
    return [tensor for tensor in _results(model(**inputs)) if tensor.is_floating_point()]


def train_and_save(task: str, pretrained: Path, method: str, folder: Path) -> str | None:
    """The sentence of a refusal, or None when the checkpoint and the expected results are in the folder."""
    model, new = load_class(task, pretrained, seed=1)
    try:
        inject(model, METHODS[method])
    except MethodError as error:
        return str(error)
    left = new - {name.replace(".base.", ".") for name in trainable_parameters(model)}
    assert not left, f"new and not trained: {sorted(left)[:3]}"
    optimizer = torch.optim.AdamW(trainable_parameters(model).values(), lr=1e-2)
    for _ in range(STEPS):
        optimizer.zero_grad()
        sum(tensor.square().mean() for tensor in results(model)).backward()  # type: ignore[union-attr]
        optimizer.step()
    save(model, folder)
    with torch.no_grad():
        torch.save(results(model), folder / "expected.pt")
    return None


def check(task: str, pretrained: Path, folder: Path) -> None:
    """Load the checkpoint into a freshly drawn head, and compare."""
    model, _ = load_class(task, pretrained, seed=2)
    with torch.no_grad():
        before = results(model)
        found, expected = results(load(model, folder)), torch.load(folder / "expected.pt")
    assert len(found) == len(expected)
    assert all(torch.equal(one, two) for one, two in zip(found, expected, strict=True)), "other results"
    assert any(not torch.equal(one, two) for one, two in zip(before, expected, strict=True)), "training changed nothing"


def run(families: tuple[str, ...] | None) -> dict[str, Any]:
    """All cases: outcome → counts and reasons."""
    outcomes: dict[str, tuple[str, str]] = {}
    with TemporaryDirectory() as name:
        root, bases = Path(name), {}
        for task, family in cases(families):
            pretrained = root / family
            try:
                if family not in bases:
                    bases[family] = "no tiny configuration is known"
                    with limit(SECONDS):
                        write_pretrained(family, pretrained)
                    bases[family] = ""
                if bases[family]:
                    raise LookupError(bases[family])
                with limit(SECONDS):
                    results(load_class(task, pretrained, seed=1)[0])
            except Exception as error:  # whatever a class of transformers says of a small configuration
                reason = (str(error) or type(error).__name__).splitlines()[0][:120]
                bases[family] = bases[family] and reason
                outcomes |= {f"{task}, {family}, {method}": ("skipped", reason) for method in METHODS}
                continue
            for number, method in enumerate(METHODS):
                folder = root / f"{task}-{family}-{number}"
                try:
                    with limit(SECONDS):
                        refusal = train_and_save(task, pretrained, method, folder)
                    outcome = ("equal", str(folder)) if refusal is None else ("refused", refusal)
                except CheckpointError as error:
                    outcome = ("refused", str(error))
                except Exception as error:
                    outcome = ("fails", f"{type(error).__name__}: {error}")
                outcomes[f"{task}, {family}, {method}"] = outcome
        saved = {case: folder for case, (kind, folder) in outcomes.items() if kind == "equal"}
        (root / "cases.json").write_text(json.dumps(saved), "utf-8")
        subprocess.run([sys.executable, __file__, "--check", str(root)], check=True, stdout=subprocess.DEVNULL)
        for case, reason in json.loads((root / "failed.json").read_text("utf-8")).items():
            outcomes[case] = ("fails", reason)
    return report(outcomes)


def report(outcomes: dict[str, tuple[str, str]]) -> dict[str, Any]:
    reasons: dict[str, dict[str, list[str]]] = {}
    for case, (kind, reason) in outcomes.items():
        if kind != "equal":
            reasons.setdefault(kind, {}).setdefault(reason, []).append(case)
    by_method = {
        method: Counter(kind for case, (kind, _) in outcomes.items() if case.endswith(method)) for method in METHODS
    }
    return {
        "versions": {"torch": torch.__version__.split("+")[0], "transformers": transformers.__version__},
        "families": len({case.split(", ")[1] for case in outcomes}),
        "classes": len({case.rpartition(", ")[0] for case in outcomes}),
        "counts": dict(sorted(Counter(kind for kind, _ in outcomes.values()).items())),
        "by method": {method: dict(sorted(counts.items())) for method, counts in by_method.items()},
    } | {kind: dict(sorted(by_reason.items())) for kind, by_reason in sorted(reasons.items())}


def check_all(root: Path) -> None:
    """The second process: which of the saved cases do not come back, and why."""
    failed = {}
    for case, folder in json.loads((root / "cases.json").read_text("utf-8")).items():
        task, family, _ = case.split(", ")
        try:
            check(task, root / family, Path(folder))
        except Exception as error:
            failed[case] = f"{type(error).__name__}: {error}"
    (root / "failed.json").write_text(json.dumps(failed), "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--families", help="only these, with commas")
    parser.add_argument("--out", type=Path, help="where the report goes; default: the screen")
    parser.add_argument("--check", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    if options.check is not None:
        check_all(options.check)
        return
    found = (
        json.dumps(run(options.families and tuple(options.families.split(","))), indent=1, ensure_ascii=False) + "\n"
    )
    if options.out is None:
        print(found, end="")
    else:
        options.out.write_text(found, "utf-8")


if __name__ == "__main__":
    main()
