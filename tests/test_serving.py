"""Mixed batches, the seal of a base, timing, and what the chapter on serving measured."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from cases import move
from models import ALL_MODELS, CLASSIFIERS, DEVICE, make, make_batch, noise, relative, rounding
from peft import PeftModel
from torch import nn

from course_utils.checkpoints import CheckpointError, load, save
from course_utils.evaluation import results
from course_utils.evaluation.timing import in_turn
from course_utils.methods import (
    BitFitConfig,
    DoRAConfig,
    LoRAConfig,
    MethodConfig,
    MethodError,
    PfeifferConfig,
    PrefixTuningConfig,
    inject,
)
from course_utils.serving.base_fingerprint import SEAL, check_seal, fingerprint, seal
from course_utils.serving.mixed_batches import MixedLoRA, ServingError
from course_utils.workshop.experiments import serving as study_serving

LORAS: tuple[LoRAConfig, ...] = (
    LoRAConfig(rank=3, alpha=7),
    LoRAConfig(rank=5, alpha=4, rank_stabilized=True),
    LoRAConfig(rank=2, alpha=9, targets="all-linear"),
)


def trained(kind: str, config: MethodConfig, folder: Path, seed: int) -> Path:
    """A checkpoint whose adapter and head are far from where they began."""
    model = inject(make(kind), config, seed=seed)
    move(model, seed=seed)
    for name, parameter in model.named_parameters():
        if name.startswith(("classifier", "score")):
            parameter.data += 0.3 * noise(parameter, seed)
    return save(model, folder)


@pytest.fixture
def folders(request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, Path]:
    kind = request.node.callspec.params["kind"] if hasattr(request.node, "callspec") else "bert"
    return {
        name: trained(kind, config, tmp_path / name, i)
        for i, (name, config) in enumerate(zip("abc", LORAS, strict=True))
    }


def inputs(kind: str, rows: int = 5, left: bool = False) -> dict[str, torch.Tensor]:
    batch = make_batch(kind, rows=rows, left=left)
    return {key: batch[key] for key in ("input_ids", "attention_mask")}


@torch.no_grad()
def alone(kind: str, folder: Path | None, batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
    model = make(kind) if folder is None else load(make(kind), folder).eval()
    logits: torch.Tensor = model(**batch).logits
    return logits


# --- a mixed batch ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALL_MODELS)
@torch.no_grad()
def test_each_text_gets_what_its_adapter_gives_alone(kind: str, folders: dict[str, Path]) -> None:
    batch = inputs(kind)
    names = ["c", "a", None, "b", "a"]
    mixed = MixedLoRA(make(kind), folders)
    got = mixed(names, **batch).logits
    for row, name in enumerate(names):
        expected = alone(kind, None if name is None else folders[name], batch)
        assert relative(got[row], expected[row]) <= rounding()
        assert all(relative(got[row], alone(kind, folders[o], batch)[row]) > 1e-3 for o in "abc" if o != name)
    again = mixed(names[::-1], **batch).logits  # nothing of the batch before is left
    assert relative(again[0], alone(kind, folders["a"], batch)[0]) <= rounding()


@pytest.mark.parametrize("kind", ("bert", "llama", "llama-lm"))  # peft mixes no head of two layers, such as RoBERTa's
@torch.no_grad()
def test_it_equals_peft_with_adapter_names(kind: str, folders: dict[str, Path]) -> None:
    batch, names = inputs(kind), ["b", "a", "b", "c", "a"]
    theirs: Any = PeftModel.from_pretrained(make(kind), folders["a"], adapter_name="a")
    for name in ("b", "c"):
        theirs.load_adapter(folders[name], adapter_name=name)
    expected = theirs.eval()(**batch, adapter_names=names).logits
    assert relative(MixedLoRA(make(kind), folders)(names, **batch).logits, expected) <= rounding()


@torch.no_grad()
def test_it_writes_on_with_each_adapter(tmp_path: Path) -> None:
    kind = "llama-lm"
    folders = {
        name: trained(kind, config, tmp_path / name, i)
        for i, (name, config) in enumerate(zip("ab", LORAS, strict=False))
    }
    batch = inputs(kind, rows=2, left=True)
    length: dict[str, Any] = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    mixed = MixedLoRA(make(kind), folders)
    inner: Any = mixed.model
    with mixed.using(["b", "a"]):
        written = inner.generate(**batch, **length)
    for row, name in enumerate("ba"):
        model: Any = load(make(kind), folders[name]).eval()
        assert torch.equal(model.generate(**batch, **length)[row], written[row])
    assert not torch.equal(written[0, -6:], make(kind).generate(**batch, **length)[0, -6:])


def test_everything_is_frozen_and_in_evaluation_mode(folders: dict[str, Path]) -> None:
    mixed = MixedLoRA(make("bert").train(), folders)
    assert not mixed.model.training and not any(p.requires_grad for p in mixed.parameters())


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (DoRAConfig(rank=2), "is DoRA; only LoRA"),
        (PfeifferConfig(), "only LoRA"),
        (PrefixTuningConfig(virtual_tokens=2), "only LoRA"),
        (BitFitConfig(), "only LoRA"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_what_is_not_a_sum_is_refused_and_the_model_stays(config: MethodConfig, said: str, tmp_path: Path) -> None:
    model, batch = make("bert"), inputs("bert")
    before = alone("bert", None, batch)
    good, bad = trained("bert", LORAS[0], tmp_path / "good", 0), trained("bert", config, tmp_path / "bad", 1)
    with pytest.raises(MethodError, match=said):
        MixedLoRA(model, {"good": good, "bad": bad})
    with torch.no_grad():
        assert torch.equal(model(**batch).logits, before)
    MixedLoRA(model, {"good": good})


def test_a_checkpoint_that_does_not_fit_leaves_the_model_alone(folders: dict[str, Path], tmp_path: Path) -> None:
    model = inject(make("bert", hidden_size=16, num_labels=2), LORAS[0])
    narrow = save(model, tmp_path / "narrow")
    base = make("bert")
    names = [name for name, _ in base.named_parameters()]
    with pytest.raises(CheckpointError, match="another backbone"):
        MixedLoRA(base, {**folders, "narrow": narrow})
    assert [name for name, _ in base.named_parameters()] == names
    with pytest.raises(CheckpointError, match="already carries"):
        MixedLoRA(inject(make("bert"), LORAS[0]), folders)
    with pytest.raises(MethodError, match="no adapter to serve"):
        MixedLoRA(base, {})


def test_requests_that_make_no_sense(folders: dict[str, Path]) -> None:
    mixed, batch = MixedLoRA(make("bert"), folders), inputs("bert", rows=2)
    with pytest.raises(ServingError, match="there is no adapter 'd'; there are a, b, c"):
        mixed(["a", "d"], **batch)
    with pytest.raises(ServingError, match="expected a list of 2 names"):
        mixed(["a"], **batch)
    with pytest.raises(ServingError, match="expected a list of 2 names"):
        mixed("ab", **batch)
    with pytest.raises(ServingError, match="name the adapter of each text"):
        mixed.model(**batch)
    with mixed.using(["a"]), pytest.raises(ServingError, match="name the adapter of each text"):
        mixed.model(**batch)


def test_a_head_that_is_more_than_linear_layers_is_refused(folders: dict[str, Path]) -> None:
    model = make("bert")
    model.classifier = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 2)).to(DEVICE)
    with pytest.raises(MethodError, match=r"classifier\.0 of the head is no linear layer"):
        MixedLoRA(model, folders)


# --- the seal ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ALL_MODELS)
def test_a_method_and_another_head_leave_the_fingerprint_and_one_number_changes_it(kind: str) -> None:
    found = fingerprint(make(kind))
    assert found == fingerprint(make(kind))
    for config in (LORAS[2], DoRAConfig(rank=2)):
        model = inject(make(kind), config)
        move(model)
        assert fingerprint(model) == found
    other = make(kind)
    if kind in CLASSIFIERS:
        for name, parameter in other.named_parameters():
            if name.startswith(("classifier", "score")):
                parameter.data += 1
        assert fingerprint(other) == found
    next(other.parameters()).data[5, 3] += 1e-3
    assert fingerprint(other) != found != fingerprint(make(kind).to(torch.bfloat16))


def test_methods_that_wrap_the_whole_body_are_seen_through() -> None:
    found = fingerprint(make("bert"))
    for config in (PrefixTuningConfig(virtual_tokens=2), PfeifferConfig()):
        assert fingerprint(inject(make("bert"), config)) == found


def test_a_method_that_trains_the_base_itself_has_no_base_left() -> None:
    with pytest.raises(MethodError, match=r"trains .*bias of the base itself"):
        fingerprint(inject(make("bert"), BitFitConfig()))


def test_a_sealed_adapter_is_refused_by_another_base(folders: dict[str, Path], tmp_path: Path) -> None:
    assert seal(make("bert"), folders["b"]) == folders["b"] / SEAL
    check_seal(load(make("bert"), folders["b"]), folders["b"])
    stranger = make("bert", seed=1)
    names = [name for name, _ in stranger.named_parameters()]
    with pytest.raises(CheckpointError, match="was trained on another base"):
        MixedLoRA(stranger, folders)
    assert [name for name, _ in stranger.named_parameters()] == names
    MixedLoRA(stranger, {"a": folders["a"]})  # it has no seal, so nobody can tell
    with pytest.raises(CheckpointError, match=r"has no base\.json"):
        check_seal(stranger, folders["a"])
    check_seal(stranger, folders["a"], required=False)
    with pytest.raises(CheckpointError, match="there is no folder"):
        seal(make("bert"), tmp_path / "nowhere")
    for broken in ("", "[]", json.dumps({"md5": ""})):
        (folders["b"] / SEAL).write_text(broken, encoding="utf-8")
        with pytest.raises(CheckpointError, match="cannot be read"):
            check_seal(make("bert"), folders["b"])


# --- timing and the study ---------------------------------------------------------------------------------------------


def test_runs_take_turns_and_the_first_ones_do_not_count() -> None:
    order: list[str] = []
    seconds = iter([9.0, 9.0, 2.0, 1.0, 3.0, 4.0])  # what each run takes
    now = 0.0

    def run(name: str) -> None:
        nonlocal now
        order.append(name)
        now += next(seconds)

    times = in_turn({"a": lambda: run("a"), "b": lambda: run("b")}, rounds=2, warm_up=1, clock=lambda: now)
    assert order == ["a", "b", "b", "a", "a", "b"]  # nobody is always the first
    assert times["a"].tolist() == [1000, 3000] and times["b"].tolist() == [2000, 4000]
    for runs, rounds, warm_up in (({}, 1, 0), ({"a": list}, 0, 0), ({"a": list}, 1, -1)):
        with pytest.raises(ValueError, match="expected something to time"):
            in_turn(runs, rounds, warm_up)


def test_the_study_refuses_too_few_rounds(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        study_serving.main(["--rounds", "2"])
    assert "at least 3" in capsys.readouterr().err


def test_percentiles_and_throughput_come_from_what_was_run() -> None:
    model = make("bert")
    rows = [{"input_ids": torch.full((n,), 5)} for n in (2, 4, 9)]
    singles = [{"input_ids": row["input_ids"][None].to(DEVICE)} for row in rows]
    found = study_serving.measure_requests(model, singles)
    assert found["n"] == 3 and found["tokens"] == [2, 4, 9]
    assert min(found["ms"]) <= found["p50"] <= found["p95"] <= found["p99"] <= max(found["ms"]) + 0.01
    sizes = study_serving.measure_sizes(model, inputs("bert", rows=8), 3)
    assert [row["size"] for row in sizes] == list(study_serving.SIZES)
    assert all(row["per_second"] == pytest.approx(1000 * row["size"] / row["ms"]) for row in sizes)


def test_what_the_page_says_was_measured() -> None:
    stored = results.read("serving")
    forms = stored["forms"]
    assert set(forms) == set(study_serving.FORMS) and stored["machine"]["threads"] == 1
    for size in ("single", "many"):
        assert 0.95 < forms["lora_merged"][f"{size}_ratio"] < 1.05
        assert forms["prompt"][f"{size}_ratio"] > 1.2 > forms["prefix"][f"{size}_ratio"] > 0.97
        assert forms["lora_all"][f"{size}_ratio"] > forms["lora"][f"{size}_ratio"]
    assert forms["lora_merged"]["difference"] < 1e-5 and stored["mixed"]["difference"] < 1e-5
    last = stored["mixed"]["rows"][-1]
    assert last["ours_ms"] < last["peft_ms"] < last["groups_ms"]
    requests, padding = stored["requests"], stored["padding"]
    assert requests["p50"] < requests["p95"] < requests["p99"] and requests["first"] > requests["p50"]
    assert padding["sorted"]["padding"] < padding["longest"]["padding"] < padding["fixed"]["padding"]
    for row in stored["served"]:
        assert row["adapters_mb"] == pytest.approx(stored["base_mb"] + row["n"] * stored["adapter_mb"])
    language = stored["language"]
    assert language["continued_ms"] < language["anew_ms"] / 2 and language["prefix_difference"] < 1e-4
    assert language["merged_per_second"] > language["apart_per_second"]
