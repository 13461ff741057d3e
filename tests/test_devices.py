"""Every method beside peft on the real model: on the processor, and on a GPU where there is one, in both precisions.

The tiny models of the other tests show where a mistake is; these show that the methods compute the same as the
reference library where people use them. Run the other tests on a GPU with `COURSE_TEST_DEVICE=cuda`.
"""

from __future__ import annotations

import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import bitsandbytes.functional as bnb
import peft
import pytest
import torch
from cases import move
from models import relative
from torch import nn

from course_utils.checkpoints import save
from course_utils.methods import trainable_parameters
from course_utils.methods.quantization import dequantize_nf4, quantize_nf4
from course_utils.workshop.experiments import pairs
from course_utils.workshop.experiments.costs import prepare_batches
from course_utils.workshop.experiments.pairs import PAIRS, Setting

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
#: How far two ways to the same number may lie apart. bfloat16 has eight binary digits.
TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 3e-2}


def gradient_length(model: Any, batch: dict[str, torch.Tensor]) -> float:
    """Of all trained weights together, so that it does not matter what they are called."""
    loss = nn.functional.cross_entropy(model(**batch).logits.float(), batch["labels"])
    loss.backward()
    gradients = [p.grad.float() for p in trainable_parameters(model).values() if p.grad is not None]
    assert gradients
    return torch.stack([gradient.norm() for gradient in gradients]).norm().item()


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("name", [name for name in PAIRS if name != "qlora"])
def test_peft_computes_the_same_from_our_checkpoint(name: str, dtype: torch.dtype, device: str, tmp_path: Path) -> None:
    setting = Setting(device, dtype)
    (batch,) = prepare_batches(1, device)
    batch = {key: value[:8] for key, value in batch.items()}
    ours: Any = pairs.build_ours(PAIRS[name], setting)
    untuned = ours(**batch).logits
    move(ours, size=0.02)
    folder = save(ours.eval(), tmp_path / "checkpoint")
    pretrained: Any = pairs.load_pretrained(setting)
    trains_there = name not in ("pissa", "prompt", "p_tuning", "prefix")  # saved in a plainer form, or refused by peft
    theirs: Any = peft.PeftModel.from_pretrained(pretrained, str(folder), is_trainable=trains_there).eval()
    with torch.no_grad():
        mine, reference = ours(**batch).logits, theirs(**batch).logits
    assert mine.device.type == device and mine.dtype == reference.dtype
    assert relative(mine, reference) <= TOLERANCE[dtype]
    assert relative(mine, untuned) > 3 * TOLERANCE[dtype]  # the method does something
    if trains_there:
        mine_length, reference_length = (gradient_length(model, batch) for model in (ours, theirs))
        assert mine_length == pytest.approx(reference_length, rel=TOLERANCE[dtype])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_nf4_equals_bitsandbytes(dtype: torch.dtype, device: str) -> None:
    pretrained: Any = pairs.load_pretrained(Setting(device, dtype))
    weight = pretrained.bert.encoder.layer[0].intermediate.dense.weight.detach()
    codes, absmax = quantize_nf4(weight)
    theirs, state = bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4")
    assert codes.device.type == device
    assert torch.equal(codes, theirs.flatten()) and torch.equal(absmax, state.absmax)
    restored = dequantize_nf4(codes, absmax, tuple(weight.shape)).to(dtype)
    assert torch.equal(restored, bnb.dequantize_4bit(theirs, state))


#: A weight in blocks of 64 and one that ends in the middle of a block; blocks of an odd length.
READS = """
import torch
from course_utils.methods.double_quantization import dequantize_absmax, double_quantize_absmax
from course_utils.methods.nf4_kernel import read_nf4
from course_utils.methods.quantization import dequantize_nf4, quantize_nf4

for dtype in {dtypes}:
    for shape, block in (((384, 64), 64), ((37, 11), 64), ((50, 7), 3)):
        weight = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to("{device}")
        codes, absmax = quantize_nf4(weight, block)
        eight, *second = double_quantize_absmax(absmax)
        for stored, scales, exact in ((absmax, None, absmax), (eight, second, dequantize_absmax(eight, *second))):
            read = read_nf4(codes, stored, shape, block, dtype, scales)
            assert read.dtype == dtype
            assert torch.equal(read, dequantize_nf4(codes, exact, shape, block).to(dtype)), (dtype, shape, block)
print("equal")
"""


@pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")
@pytest.mark.parametrize("device", DEVICES)
def test_the_kernel_reads_a_weight_bit_for_bit(device: str) -> None:
    """On the processor in Triton's interpreter, which cuts bfloat16 off where it should round."""
    dtypes = "(torch.float32,)" if device == "cpu" else "(torch.float32, torch.bfloat16, torch.float16)"
    environment = os.environ | {"TRITON_INTERPRET": "1" if device == "cpu" else "0"}
    command = [sys.executable, "-c", READS.format(dtypes=dtypes, device=device)]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert result.stdout.strip() == "equal", result.stderr[-2000:]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
def test_qlora_on_a_fresh_model_computes_what_bitsandbytes_does(dtype: torch.dtype, device: str) -> None:
    setting = Setting(device, dtype)
    (batch,) = prepare_batches(1, device)
    with torch.no_grad():
        mine, reference, whole = (
            model.eval()(**batch).logits
            for model in (
                pairs.build_ours(PAIRS["qlora"], setting),
                pairs.build_theirs(PAIRS["qlora"], setting),
                pairs.load_pretrained(setting),
            )
        )
    # bitsandbytes looks the 8-bit levels of double quantisation up approximately, so a few of them differ.
    assert relative(mine, reference) < 0.3 * relative(whole, reference)
