"""Every method in several processes, on a tiny random BERT: what the study of chapter 23 and the tests start.

    torchrun --nproc-per-node 2 -m course_utils.workshop.experiments.parallel OUT.json [METHOD ...]

Each method trains twice: by `fit`, which wraps the model in DistributedDataParallel, and with FSDP2, whose shards are
put together again afterwards. The first process writes what came out.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate import PartialState
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from course_utils.methods import AdaLoRAConfig, MethodConfig, trainable_parameters
from course_utils.methods.registry import studied
from course_utils.training.config import TrainingConfig
from course_utils.training.distributed import SharedBatches
from course_utils.training.loop import fit
from course_utils.training.tiny import collate_tiny, tiny_loader, tiny_model

STEPS = 6
_CONFIG = TrainingConfig(
    learning_rate=1e-3, epochs=2, warmup=0.0, weight_decay=0.0, schedule="constant", device="cpu", split_batches=True
)
#: AdaLoRA's ranks must fall within the few steps.
_ADALORA = AdaLoRAConfig(init_rank=4, target_rank=3, total_steps=STEPS, initial_steps=1, final_steps=2)
Weights = dict[str, torch.Tensor]


def configs() -> dict[str, MethodConfig]:
    """Each method of the study, by its key there."""
    return {key: entry.config for key, entry in studied().items() if entry.pretrained} | {"adalora": _ADALORA}


def train_by_fit(config: MethodConfig) -> tuple[list[float], Weights, bool]:
    """Losses, trained weights, and whether every frozen number is as it was; in one process or in several."""
    model = tiny_model(config)
    trained = trainable_parameters(model)
    frozen = {name: value.clone() for name, value in model.state_dict().items() if name not in trained}
    history = fit(model, tiny_loader(), tiny_loader(), _CONFIG)
    state = model.state_dict()
    untouched = all(torch.equal(state[name], value) for name, value in frozen.items() if "rank" not in name)
    return [row["loss"] for row in history.steps], _detached(trained), untouched


def sharded(config: MethodConfig) -> tuple[nn.Module, float]:
    """The model in pieces, one in each process, and the share of its numbers that one process holds."""
    model = tiny_model(config)
    whole = sum(tensor.numel() for tensor in _tensors(model))
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    for blocks in [module for module in model.modules() if isinstance(module, nn.ModuleList)]:
        for block in blocks:
            fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model, sum(_local(tensor).numel() for tensor in _tensors(model)) / whole


def train_by_fsdp(model: nn.Module, config: MethodConfig) -> tuple[list[float], Weights]:
    """Losses, and the trained weights put together again."""
    trained = trainable_parameters(model)
    rates = [_CONFIG.learning_rate * config.rate_factor(name) for name in trained]
    groups = [{"params": [p], "lr": rate} for p, rate in zip(trained.values(), rates, strict=True)]
    optimizer = torch.optim.AdamW(groups, weight_decay=0.0)
    losses = []
    for step, (batch, factor) in enumerate(_shared_batches(), start=1):
        loss = model(**batch).loss
        penalty = config.penalty(model)
        loss = factor * (loss if penalty is None else loss + penalty)  # FSDP averages the gradients as DDP does
        loss.backward()
        nn.utils.clip_grad_norm_(trained.values(), _CONFIG.clip_norm)
        optimizer.step()
        config.after_step(model, step)
        optimizer.zero_grad()
        losses.append(_mean(_plain(loss.detach())))
    return losses, {name: _plain(parameter).detach().clone() for name, parameter in trained.items()}


def _shared_batches() -> Iterator[tuple[dict[str, torch.Tensor], float]]:
    """This process's share of each batch, and the factor of its loss: R · n_r / n."""
    loader, processes = tiny_loader(), dist.get_world_size()
    for _ in range(_CONFIG.epochs):
        for rows in list(loader.batch_sampler):  # type: ignore[arg-type]
            own = next(iter(SharedBatches([rows], dist.get_rank(), processes)))
            yield collate_tiny([loader.dataset[row] for row in own]), processes * len(own) / len(rows)


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    return [*model.parameters(), *model.buffers()]


def _local(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def _plain(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def _mean(value: torch.Tensor) -> float:
    dist.all_reduce(value)
    return float(value) / dist.get_world_size()


def _detached(weights: dict[str, nn.Parameter]) -> Weights:
    return {name: parameter.detach().clone() for name, parameter in weights.items()}


def _equal_everywhere(weights: Weights) -> bool:
    """Whether all processes hold the same numbers, bit for bit."""
    flat = torch.cat([value.flatten() for value in weights.values()])
    first = flat.clone()
    dist.broadcast(first, 0)
    different = torch.tensor(float(not torch.equal(first, flat)))
    dist.all_reduce(different)
    return not different.item()


def difference(one: Weights, other: Weights) -> float:
    """The largest absolute difference of two sets of weights.

    Left out are the biases of the keys: softmax does not see a number that is added to all scores of a query, so their
    gradient is zero but for rounding, and Adam makes a whole step of it, in another direction each time it is rounded.
    """
    return max(float((one[name] - other[name]).abs().max()) for name in one if not name.endswith("key.bias"))


def compare(config: MethodConfig) -> dict[str, Any]:
    """What came out for one method; the same in every process."""
    losses, weights, untouched = train_by_fit(config)
    row: dict[str, Any] = {"losses": losses, "ranks_equal": _equal_everywhere(weights), "frozen_unchanged": untouched}
    row["weights"] = {name: value.flatten().tolist() for name, value in weights.items()}
    pieces, row["fsdp_share"] = sharded(config)
    try:
        fsdp_losses, fsdp_weights = train_by_fsdp(pieces, config)
    except RuntimeError as error:  # what PyTorch raises for an operation that cannot do with pieces
        return row | {"fsdp_error": f"{type(error).__name__}: {error}".splitlines()[0]}
    return row | {"fsdp_losses": fsdp_losses, "fsdp_difference": difference(weights, fsdp_weights)}


def main(arguments: list[str]) -> int:
    """Compare the methods that are named, or all, and let the first process write the file."""
    out, names = Path(arguments[0]), arguments[1:] or list(configs())
    torch.set_num_threads(1)
    state = PartialState(cpu=True)
    rows = {name: compare(configs()[name]) for name in names}
    if state.is_main_process:
        out.write_text(json.dumps(rows), encoding="utf-8")
    state.wait_for_everyone()
    dist.destroy_process_group()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
