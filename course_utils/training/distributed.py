"""Data parallelism: several processes take one training step together.

Each process holds the whole model and reads its share of a batch. With n texts in the whole batch and n_r of them in
process r, the gradient of the whole batch is the *weighted* mean of the processes' gradients::

    g = Σ_r (n_r / n) g_r

DistributedDataParallel forms the plain mean over the R processes, g = (1/R) Σ_r (...). So each process multiplies its
loss by R · n_r / n first (Li et al. 2020, arXiv:2006.15704, describe the rest). With equal shares that factor is 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

from accelerate import Accelerator
from accelerate.data_loader import prepare_data_loader
from torch import nn
from torch.utils.data import DataLoader, Sampler

from course_utils.errors import CourseError


class SharingError(CourseError, ValueError):
    """The batches of a loader cannot be shared among so many processes."""


class SharedBatches(Sampler[list[int]]):
    """This process's share of each batch of another sampler.

    Process r of R takes the texts r, r + R, r + 2R, ... of a batch. The shares together are the batch, no text comes
    twice, and two shares differ by one text at most.

    Args:
        batches: the sampler of the whole batches. It must give the same ones in every process.
        rank: number of this process, from 0.
        processes: how many there are.

    Raises:
        SharingError: a process would get no text, or `rank` is no process.
    """

    def __init__(self, batches: Any, rank: int, processes: int) -> None:
        if not 0 <= rank < processes:
            raise SharingError(f"the rank must be from 0 to processes - 1, got rank {rank} of {processes} processes")
        self.batches, self.rank, self.processes = batches, rank, processes

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.batches:
            yield batch[self.rank :: self.processes]


def batch_size(loader: DataLoader) -> int | None:
    """Texts in a batch, as PyTorch's samplers and ours say it; None for a loader that cuts no batches."""
    size: int | None = getattr(loader.batch_sampler, "batch_size", None)
    return size


def share(loader: DataLoader, accelerator: Accelerator) -> DataLoader:
    """A loader of this process's share of each batch, on this process's device.

    Args:
        loader: of the whole batches, such as `make_loader` gives.
        accelerator: knows the processes and the device.

    Raises:
        SharingError: a batch, perhaps the last one, holds fewer texts than there are processes.
    """
    processes = accelerator.num_processes
    size = batch_size(loader)
    if size is None:
        raise SharingError("the loader cuts no batches: give DataLoader a batch_size, or a sampler that has one")
    texts = len(cast(Any, loader.dataset))
    smallest = min(texts, size, texts % size or size)
    if smallest < processes:
        raise SharingError(
            f"{texts} texts in batches of {size} leave a batch of {smallest}, too few for {processes} processes: each "
            "needs a text. Use fewer processes, or a batch size that leaves a larger last batch"
        )
    batches = SharedBatches(loader.batch_sampler, accelerator.process_index, processes)
    own: DataLoader = DataLoader(loader.dataset, batch_sampler=batches, collate_fn=loader.collate_fn)
    # One process as far as accelerate knows: it moves the batches to the device and shares nothing a second time.
    return prepare_data_loader(own, accelerator.device, num_processes=1, process_index=0, put_on_device=True)


def without_dropout(model: nn.Module) -> nn.Module:
    """The same model, which drops nothing any more: then two ways to compute one step can be compared exactly."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    return model
