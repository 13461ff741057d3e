"""The pretended device must refuse what a GPU refuses; else the tests that run on it could not fail."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from patience import PATIENCE

TESTS = Path(__file__).parent
BEGIN = """
import torch
import pretend_gpu
from torch import nn

here, there = torch.arange(6.0).view(2, 3), torch.arange(6.0).view(2, 3).to("pretend")
layer = nn.Linear(3, 2).to("pretend")
"""


def run(lines: str) -> subprocess.CompletedProcess[str]:
    """In a process of its own, because the device cannot be taken away again."""
    return subprocess.run(
        [sys.executable, "-c", BEGIN + lines], cwd=TESTS, capture_output=True, text=True, check=False, timeout=PATIENCE
    )


MISTAKES = (
    "there + here",
    "layer(here)",
    "nn.Linear(3, 2)(there)",
    "torch.cat((there, here))",
    "here[there[:, 0] > 0]",
    "nn.Embedding(9, 2)(there.long())",
    "torch.where(there > 1, there, here)",
    "there.add_(here)",
    "there.numpy()",
    "there.__array__()",
    "there @ torch.eye(3)",
    "there @ torch.tensor([1.0, 2.0, 3.0])",
    "nn.functional.cross_entropy(layer(there), torch.tensor([0, 1]))",
)


def test_two_places_in_one_operation_fail_as_on_a_gpu() -> None:
    result = run(f"""
for mistake in {MISTAKES!r}:
    try:
        eval(mistake)
    except (RuntimeError, TypeError) as error:
        assert "Expected all tensors to be on the same device" in str(error) or "to numpy" in str(error), mistake
    else:
        raise SystemExit(f"{{mistake}} was let through")
""")
    assert result.returncode == 0, result.stderr


def test_what_a_gpu_allows_works_and_gives_the_processor_s_numbers_up_to_rounding() -> None:
    result = run("""
near = nn.Linear(3, 2)
far = nn.Linear(3, 2)
far.load_state_dict(near.state_dict())
weight = far.weight
assert far.to("pretend").weight is weight and isinstance(weight, nn.Parameter)  # a move keeps the parameters
for model, x in ((near, here), (far, there)):
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        model(x).square().sum().backward()
        optimizer.step()
assert torch.allclose(near.weight, far.weight.cpu(), atol=1e-6)
assert (there + torch.tensor(1.0)).device == there.device  # a number may come from the processor
assert torch.equal(there[torch.tensor([1])].cpu(), here[[1]]) and torch.equal(there[[1]].cpu(), here[[1]])
assert torch.tensor([1, 2], device="pretend").device == torch.eye(2, device="pretend").device == there.device
assert torch.equal(there.copy_(here + 1).cpu(), here + 1)
long = torch.randn(8, 300, generator=torch.Generator().manual_seed(0)).to("pretend")
alone, together = long[:1] @ long.T, (long @ long.T)[:1]
assert not torch.equal(alone, together) and torch.allclose(alone, together, atol=1e-4)  # the shape decides the rounding
assert torch.equal(long @ long.T, long @ long.T)
with torch.device("meta"):
    assert torch.tensor([1]).device.type == "meta"
""")
    assert result.returncode == 0, result.stderr


def test_fit_computes_there_and_brings_the_model_back() -> None:
    result = run("""
from torch.utils.data import DataLoader
from course_utils.methods import QLoRAConfig, inject, quantize
from course_utils.training import TrainingConfig, fit
from course_utils.evaluation.prediction import evaluate
from models import make, make_batch

rows = [
    {"input_ids": tokens.cpu(), "labels": number % 2}
    for number, tokens in enumerate(make_batch("bert", rows=8, length=5)["input_ids"])
]
model = inject(quantize(make("bert")), QLoRAConfig(rank=2))
parameters = dict(model.named_parameters())
places = set()
model.bert.embeddings.register_forward_hook(lambda layer, inputs, output: places.add(output.device.type))
for _ in range(2):
    fit(model, DataLoader(rows, batch_size=4), DataLoader(rows, batch_size=4), TrainingConfig(epochs=2, warmup=0))
    assert places == {"pretend"}, places
assert {tensor.device.type for tensor in (*model.parameters(), *model.buffers())} == {"cpu"}
assert all(parameter is parameters[name] for name, parameter in model.named_parameters())
evaluate(model, DataLoader(rows, batch_size=4))
assert places == {"pretend", "cpu"}
""")
    assert result.returncode == 0, result.stderr
