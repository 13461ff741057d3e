"""What a process holds at its peak while it trains: measured, in a process of its own."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import torch

from course_utils.methods import FullConfig, LoRAConfig, inject, trainable_parameters
from course_utils.models.backbones import load_classifier

LENGTH = 128
MEASURED_CONFIGS = {"full": FullConfig(), "lora-qv": LoRAConfig(rank=8)}
#: glibc keeps freed memory for later. Told so, it gives every larger piece back at once, and we see what is in use.
GIVE_BACK = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "MALLOC_ARENA_MAX": "1"}


# --- memory ---------------------------------------------------------------------------------------------------------


def peak_bytes(method: str, batch: int, checkpointing: bool, give_back: bool = True) -> float:
    """Bytes that a fresh process holds at its peak while MiniLM trains, above what it held before the model came.

    Args:
        method: "full" or "lora-qv".
        batch: texts of 128 tokens.
        checkpointing: compute the activations again in the backward pass.
        give_back: make the allocator return memory at once (glibc only); False leaves it as it is by default.
    """
    command = [sys.executable, "-m", "course_utils", "study-scaling", "--peak", method, str(batch), str(checkpointing)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | (GIVE_BACK if give_back else {})
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return float(done.stdout.splitlines()[-1])


def prepared(method: str, checkpointing: bool) -> Any:
    """MiniLM in training mode. Dropout in the attention is off: with it, a processor has no fused attention."""
    model: Any = inject(load_classifier("minilm")[0], MEASURED_CONFIGS[method])
    for name, module in model.named_modules():
        if name.endswith("attention.self"):
            module.dropout.p = 0.0
    if checkpointing:
        model.gradient_checkpointing_enable()
    return model.train()


def random_batch(texts: int) -> dict[str, torch.Tensor]:
    """Texts of 128 random tokens, without padding."""
    ids = torch.randint(1000, 20_000, (texts, LENGTH), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "labels": torch.zeros(texts, dtype=torch.long)}


def train_and_look(method: str, batch: int, checkpointing: bool) -> float:
    """Three steps in this process; the bytes it held at its peak, above what it held before the model came."""
    import peft  # noqa: F401 (what a method may import later must not count as memory of the training)

    torch.set_num_threads(1)
    inputs = random_batch(batch)
    load_classifier("minilm")  # loads what loading needs
    gc.collect()
    before = psutil.Process().memory_info().rss
    model = prepared(method, checkpointing)
    optimizer = torch.optim.AdamW(trainable_parameters(model).values(), lr=1e-4)
    for _ in range(3):
        model(**inputs).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return high_water() * 2**20 - before


def high_water() -> float:
    """The most megabytes that this process has held.

    On Linux `ru_maxrss` will not do: a new process begins with the peak of the one that started it.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        lines = dict(line.split(":", 1) for line in status.read_text(encoding="utf-8").splitlines())
        return float(lines["VmHWM"].split()[0]) / 2**10
    import resource  # not on Windows

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
