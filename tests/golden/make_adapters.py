"""Write `adapters.safetensors`: what the library `adapters` computes on the tiny models of `models.py`.

That library needs an older transformers than the course, so this runs in an environment of its own, outside the
repository, and `test_bottleneck.py` compares with the file. From the repository's root::

    python3 -m venv golden-env
    golden-env/bin/pip install torch==2.13.0 transformers==4.57.6 adapters==1.3.0
    golden-env/bin/python tests/golden/make_adapters.py

All weights are drawn by `draw`, from the name of the parameter, with a generator that NumPy never changes. So the file
need not hold them. Everything is computed in fp64 and stored in fp32.
"""

from __future__ import annotations

import re
import sys
import zlib
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

FILE = Path(__file__).with_name("adapters.safetensors")
KINDS = ("bert", "roberta", "gpt2", "llama")
#: The bottleneck's width: 5 equals no other size of the tiny models, so a swapped matrix cannot pass.
SIZE = 5
STEPS = 10
#: Another activation for each model, so that all are compared.
ACTIVATIONS = {"bert": "swish", "roberta": "gelu", "gpt2": "tanh", "llama": "relu"}
#: Large enough that the adapter weighs as much as the layer beside it.
ADAPTER_STD = 0.3
#: Plain AdamW divides a gradient by its own size, and so blows up the rounding of one that is almost zero.
OPTIMIZER: dict[str, Any] = {"lr": 1e-2, "eps": 1e-3}


def draw(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Numbers from a standard normal distribution that depend on the name only."""
    return torch.from_numpy(np.random.RandomState(zlib.crc32(name.encode())).standard_normal(shape))


def is_norm(name: str) -> bool:
    """Whether a parameter of this name belongs to a normalisation."""
    return re.search(r"LayerNorm|layernorm|\bln_|\bnorm\b", name) is not None


@torch.no_grad()
def fill(parameters: dict[str, nn.Parameter]) -> None:
    """Draw all these parameters, each by the name that it has here."""
    for name, parameter in parameters.items():
        if is_norm(name):
            parameter.copy_(draw(name, parameter.shape) * 0.1 + (1 if name.endswith("weight") else 0))
        else:
            parameter.copy_(draw(name, parameter.shape) * (ADAPTER_STD if "adapter" in name else 0.1))


def train(model: nn.Module, parameters: dict[str, nn.Parameter], batches: list[Any]) -> dict[str, torch.Tensor]:
    """Logits, loss and gradients of the first batch, and the parameters after one AdamW step on each batch."""
    optimizer = torch.optim.AdamW(parameters.values(), **OPTIMIZER)
    results: dict[str, torch.Tensor] = {}
    for batch in batches:
        optimizer.zero_grad()
        output = model(**batch)
        output.loss.backward()
        if not results:
            results = {"logits": output.logits.detach(), "loss": output.loss.detach()}
            results |= {f"gradient/{name}": p.grad.clone() for name, p in parameters.items() if p.grad is not None}
        optimizer.step()
    return results | {f"trained/{name}": p.detach() for name, p in parameters.items()}


def main() -> None:
    """Run the three methods on the four models and write the file."""
    import transformers
    from safetensors.torch import save_file

    sys.path.insert(0, str(Path(__file__).parent.parent))
    from models import HIDDEN, make, make_batch

    adapters: Any = import_module("adapters")  # mypy would take `answers/adapters.py` for the library
    methods = {
        "houlsby": adapters.DoubleSeqBnConfig,
        "pfeiffer": adapters.SeqBnConfig,
        "parallel": adapters.ParBnConfig,
    }
    golden: dict[str, torch.Tensor] = {}
    for kind in KINDS:
        batches = [make_batch(kind, seed=seed) for seed in range(STEPS)]
        golden["input_ids"] = torch.stack([batch["input_ids"] for batch in batches])  # the same for every kind
        plain = make(kind).double()
        fill(dict(plain.named_parameters()))
        golden[f"{kind}/plain"] = plain(**batches[0]).logits.detach()
        for method, config in methods.items():
            model = make(kind).double()
            fill(dict(model.named_parameters()))
            adapters.init(model)
            model.add_adapter("a", config(reduction_factor=HIDDEN / (SIZE + 0.5), non_linearity=ACTIVATIONS[kind]))
            model.set_active_adapters("a")
            model.double().eval().requires_grad_(False)
            trained = {}
            for name, parameter in model.named_parameters():
                if ".adapters.a." in name:
                    trained[canonical(name)] = parameter
                elif method == "houlsby" and is_norm(name):
                    trained[name] = parameter
            fill({name: parameter for name, parameter in trained.items() if "adapter" in name})
            for parameter in trained.values():
                parameter.requires_grad_(True)
            results = train(model, trained, batches)
            golden |= {f"{kind}/{method}/{name}": tensor for name, tensor in results.items()}
    tensors = {
        name: (tensor.int() if tensor.dtype == torch.int64 else tensor.float()).contiguous()
        for name, tensor in golden.items()
    }
    versions = ", ".join(f"{module.__name__} {module.__version__}" for module in (adapters, transformers, torch))
    save_file(tensors, FILE, metadata={"made_with": versions})  # one entry only: several come in a random order
    print(f"{FILE.name}: {len(tensors)} tensors, {FILE.stat().st_size:,} bytes, made with {versions}")


def canonical(name: str) -> str:
    """A name for a parameter of `adapters` that both sides can form: block, sublayer, matrix."""
    block = re.search(r"\.(\d+)\.", name)
    matrix = re.search(r"adapter_(down|up)\.(?:0\.)?(weight|bias)$", name)
    assert block is not None
    assert matrix is not None
    attention = ".attention.output." in name or "attention_adapters" in name
    return f"{block[1]}.{'attention' if attention else 'feed_forward'}.adapter.{matrix[1]}.{matrix[2]}"


if __name__ == "__main__":
    main()
