"""Half precision is chosen by a measurement: what it decides, what it says, and that it is remembered."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from pair import together
from torch import nn

from course_utils.models.chat import ChatError
from course_utils.training import TrainingConfig, precision, run
from course_utils.training.chats import ChatTraining
from course_utils.training.precision import SlowPrecisionWarning, bf16_factor, choose, describe, fastest_dtype

FAST, EQUAL, EMULATED = 4.0, 1.0, 0.05


@pytest.fixture
def seconds(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[dict[torch.dtype, float]]:
    """The seconds that the probe is to find, by type; whoever changes them gets another processor."""
    found = {torch.float32: 1.0, torch.bfloat16: 1.0}
    monkeypatch.setenv("COURSE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(precision, "_seconds", lambda: found)
    bf16_factor.cache_clear()
    yield found
    bf16_factor.cache_clear()


def processor(seconds: dict[torch.dtype, float], factor: float) -> None:
    seconds[torch.bfloat16] = seconds[torch.float32] / factor


@pytest.mark.parametrize(
    ("factor", "chosen"),
    [(FAST, "bf16"), (precision.WORTHWHILE, "bf16"), (1.2, "fp32"), (EQUAL, "fp32"), (0.05, "fp32")],
)
def test_auto_takes_what_is_clearly_faster(seconds: dict[torch.dtype, float], factor: float, chosen: str) -> None:
    processor(seconds, factor)
    assert choose("auto", "cpu") == chosen
    assert fastest_dtype("cpu") == {"bf16": torch.bfloat16, "fp32": torch.float32}[chosen]


def test_bf16_on_a_processor_that_emulates_it_is_answered_with_the_factor(seconds: dict[torch.dtype, float]) -> None:
    processor(seconds, EMULATED)
    with pytest.warns(
        SlowPrecisionWarning, match=r"precision='bf16' .* emulates it: bf16 is 20 times slower than fp32"
    ):
        assert choose("bf16", "cpu") == "bf16"
    half = nn.Linear(2, 2).to(torch.bfloat16)
    with pytest.warns(SlowPrecisionWarning, match=r"a model in bfloat16 .* 20 times slower"):
        precision.warn_if_emulated(half)


def test_no_warning_where_there_is_no_reason(seconds: dict[torch.dtype, float]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        processor(seconds, FAST)
        choose("bf16", "cpu")
        precision.warn_if_emulated(nn.Linear(2, 2).to(torch.bfloat16))
        bf16_factor.cache_clear()
        processor(seconds, EMULATED)
        choose("fp32", "cpu")
        choose("auto", "cpu")
        choose("bf16", "cuda")  # the processor does not compute there
        precision.warn_if_emulated(nn.Linear(2, 2))


def test_the_factor_is_remembered(seconds: dict[torch.dtype, float], tmp_path: Path) -> None:
    processor(seconds, FAST)
    assert bf16_factor() == FAST
    processor(seconds, EMULATED)
    assert bf16_factor() == FAST  # in this process
    bf16_factor.cache_clear()
    assert bf16_factor() == FAST  # in the next one, from the file
    (stored,) = json.loads((tmp_path / "cache" / "precision.json").read_text(encoding="utf-8")).items()
    assert stored[1] == FAST and f"torch {torch.__version__}" in stored[0]


def test_other_instructions_are_another_processor(
    seconds: dict[torch.dtype, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    processor(seconds, FAST)
    bf16_factor()
    processor(seconds, EMULATED)
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "SSE41")
    bf16_factor.cache_clear()
    assert bf16_factor() == EMULATED


@pytest.mark.parametrize("spoilt", ["", "{", "[1]", '{"a": "b"}', '{"a": null}', '{"a": -1}'])
def test_a_spoilt_file_means_measuring_again(seconds: dict[torch.dtype, float], tmp_path: Path, spoilt: str) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / "precision.json").write_text(spoilt, encoding="utf-8")
    processor(seconds, FAST)
    assert bf16_factor() == FAST


def test_a_cache_that_cannot_be_written_is_no_error(seconds: dict[torch.dtype, float], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be", encoding="utf-8")
    processor(seconds, FAST)
    assert bf16_factor() == FAST


def test_the_probe_itself() -> None:
    seconds = precision._seconds(repeats=1)
    assert 0 < seconds[torch.float32] < 10
    assert 0 < seconds[torch.bfloat16] < 30


@pytest.mark.parametrize(
    ("factor", "words"),
    [(3.96, "4.0 times as fast as"), (0.5, "2.0 times slower than"), (0.026, "38 times slower than")],
)
def test_words(factor: float, words: str) -> None:
    assert describe(factor) == f"bf16 is {words} fp32"


def test_settings() -> None:
    assert TrainingConfig(precision="auto").precision == ChatTraining().precision == "auto"
    with pytest.raises(ChatError, match="precision is one of fp32, bf16, auto, got 'fp16'"):
        ChatTraining(precision="fp16")


def choose_in_a_pair(factors: list[float], folder: Path) -> None:
    """One process of two, each on a processor of its own, so to speak."""
    rank = int(os.environ["RANK"])
    precision.bf16_factor = lambda: factors[rank]  # type: ignore[assignment]
    accelerator = run._accelerator(TrainingConfig(precision="auto", device="cpu"))
    (folder / f"{rank}.txt").write_text(accelerator.mixed_precision, encoding="utf-8")


@pytest.mark.parametrize(("factors", "chosen"), [([FAST, EMULATED], "bf16"), ([EMULATED, FAST], "no")])
def test_processes_that_measure_different_factors_train_in_one_precision(
    factors: list[float], chosen: str, tmp_path: Path
) -> None:
    together(choose_in_a_pair, factors, tmp_path, folder=tmp_path)
    assert [(tmp_path / f"{rank}.txt").read_text(encoding="utf-8") for rank in (0, 1)] == [chosen, chosen]
