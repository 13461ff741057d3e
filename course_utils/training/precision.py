"""Half precision or not: what is faster on this processor is measured, not believed.

bfloat16 halves what is read from memory, and processors with instructions for it (AVX512-BF16, AMX, Arm's BF16)
multiply it several times as fast as float32. All others emulate it, ten to forty times slower; most laptops are among
them. So the three products of a training step are timed once in both types::

    y = x Wᵀ     ∂x = g W     ∂W = gᵀ x          x and g (128, 512), W (512, 512)

    factor = seconds in float32 / seconds in bfloat16       4.0: bfloat16 is four times as fast; 0.1: ten times slower

The factor is kept in the process and, by the processor's name, in the course's cache folder, so that two runs decide
alike. Only torch and NumPy are needed here: `python -m course_utils doctor` prints the same.
"""

from __future__ import annotations

import json
import os
import platform
import time
import warnings
from functools import cache, partial
from pathlib import Path

import torch
from torch import nn

from course_utils.evaluation.timing import in_turn
from course_utils.models.assets import cache_folder

#: bfloat16 must be faster by this factor before "auto" takes it: casts and roundings cost something, too.
WORTHWHILE = 1.25
ROWS, WIDTH = 128, 512
_TYPES = (torch.float32, torch.bfloat16)
#: They limit the instructions that torch uses, so what was measured without them says nothing about a run with them.
LIMITS = ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "MKL_ENABLE_INSTRUCTIONS")


class SlowPrecisionWarning(UserWarning):
    """The precision that was asked for is slower here than float32."""


def choose(precision: str, device: str) -> str:
    """What a run computes in: "fp32" or "bf16".

    Args:
        precision: "fp32" or "bf16", which are kept (with a warning where bf16 is slower), or "auto".
        device: type of the device, such as "cpu" or "cuda".
    """
    if precision == "auto":
        return "bf16" if fastest_dtype(device) == torch.bfloat16 else "fp32"
    if precision == "bf16":
        _warn_if_slow("precision='bf16'", device)
    return precision


def fastest_dtype(device: str | None = None) -> torch.dtype:
    """torch.bfloat16 where products in it are clearly faster than in torch.float32, else torch.float32.

    Args:
        device: type of the device; None means the GPU if CUDA sees one, else the processor.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    return torch.bfloat16 if device == "cpu" and bf16_factor() >= WORTHWHILE else torch.float32


def warn_if_emulated(model: nn.Module) -> None:
    """Warn when a model that stands on the processor holds weights in bfloat16, and the processor emulates it."""
    if any(p.dtype == torch.bfloat16 and p.device.type == "cpu" for p in model.parameters()):
        _warn_if_slow("a model in bfloat16", "cpu")


def describe(factor: float) -> str:
    """A factor in words.

    >>> describe(4.0), describe(0.05)
    ('bf16 is 4.0 times as fast as fp32', 'bf16 is 20 times slower than fp32')
    """
    if factor >= 1:
        return f"bf16 is {factor:.1f} times as fast as fp32"
    return f"bf16 is {1 / factor:.{0 if factor <= 0.1 else 1}f} times slower than fp32"


@cache
def bf16_factor() -> float:
    """How many times as fast as in fp32 a step's products are in bf16 on this processor; below 1 means slower.

    The first call on a machine takes up to a second; later ones read the file `precision.json` in the cache folder.
    """
    file, name = cache_folder() / "precision.json", _machine()
    known = _read(file)
    if name not in known:
        seconds = _seconds()
        known[name] = round(seconds[torch.float32] / seconds[torch.bfloat16], 3)
        _write(file, known)
    return known[name]


def _seconds(repeats: int = 3) -> dict[torch.dtype, float]:
    """The shortest of a few times for the products of one training step, by type; the types take turns."""
    runs = {str(dtype): partial(_products, *_factors(dtype)) for dtype in _TYPES}
    times = in_turn(runs, repeats, warm_up=1, clock=time.perf_counter)
    return {dtype: times[str(dtype)].min() / 1000 for dtype in _TYPES}


def _factors(dtype: torch.dtype) -> list[torch.Tensor]:
    chance = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=chance).to(dtype) for shape in ((ROWS, WIDTH), (WIDTH, WIDTH), (ROWS, WIDTH))]


def _products(x: torch.Tensor, weight: torch.Tensor, gradient: torch.Tensor) -> None:
    x @ weight.T, gradient @ weight, gradient.T @ x


def _machine() -> str:
    """What the factor depends on: processor, torch, and what limits the instructions."""
    limits = [f"{name}={os.environ[name]}" for name in LIMITS if name in os.environ]
    return ", ".join([_processor(), torch.backends.cpu.get_cpu_capability(), f"torch {torch.__version__}", *limits])


def _processor() -> str:
    try:  # Linux says its name here; elsewhere Python knows
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _read(file: Path) -> dict[str, float]:
    """The factors by machine; nothing where the file is absent or spoilt."""
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
        return {name: float(factor) for name, factor in known.items() if float(factor) > 0}
    except (OSError, ValueError, TypeError, AttributeError):
        return {}


def _write(file: Path, known: dict[str, float]) -> None:
    """Remember for the next process. A cache that cannot be written only means measuring again."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        unfinished = file.with_name(f"{file.name}.{os.getpid()}")  # moved in one step: no reader sees half a file
        unfinished.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        unfinished.replace(file)
    except OSError:
        pass


def _warn_if_slow(what: str, device: str) -> None:
    if device == "cpu" and bf16_factor() < 1:
        warnings.warn(
            f"{what} on this processor, which emulates it: {describe(bf16_factor())}, measured on the products of a "
            "training step. Take precision='auto', or load the model with dtype=fastest_dtype()",
            SlowPrecisionWarning,
            stacklevel=3,
        )
