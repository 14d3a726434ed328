"""Data-parallel training: each process takes its share of every batch, and the gradients are averaged.

``accelerate launch -m benchmarks.run ...`` starts one process a GPU (extra ``multigpu``). All of them hold the same
weights and walk through the same batches; process r of n works on rows r, r + n, ... of each. As long as a loss is a
mean over the pictures of a batch, the average of the n gradients is the gradient of the whole batch. Where a method
couples the pictures of a batch, it gathers what they share (UCDR-Adapter's queues) or refuses
(:attr:`methods.interface.Method.one_process`). Augmentation and dropout are drawn by each process for itself: the same
distribution, other draws than one process makes.

In one process every function here leaves its argument as it is.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Iterable

import torch
from torch import Tensor, distributed, nn

#: How long processes wait for each other: one may decode pictures or rank a gallery while the others are done.
PATIENCE = datetime.timedelta(hours=2)


class ParallelError(RuntimeError):
    """Training cannot be spread over these processes; one line with the mend."""


def launched() -> int:
    """Number of processes that this one was started with (1: it was started alone)."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def start(*, cpu: bool) -> None:
    """Join the other processes, through accelerate: gloo on the CPU, else NCCL with a GPU for each process.

    Raises :class:`ParallelError` if accelerate is not installed.
    """
    try:
        from accelerate import PartialState
    except ImportError as error:
        raise ParallelError("training with several processes needs accelerate: pip install ucdr-bench[multigpu]") from (
            error
        )
    PartialState(cpu=cpu, timeout=PATIENCE)


def processes() -> int:
    """Number of processes that train together."""
    joined = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if joined else 1


def rank() -> int:
    """Number of this process, from 0."""
    return distributed.get_rank() if processes() > 1 else 0


def share(batch: Tensor) -> Tensor:
    """This process's rows of a batch ``[B, ...]``: ``[B / n, ...]``.

    Raises :class:`ParallelError` if the rows cannot be shared out evenly: the average of the gradients would then not
    be the gradient of the batch.
    """
    count = processes()
    if len(batch) % count:
        raise ParallelError(
            f"a batch of {len(batch)} pictures cannot be shared out evenly over {count} processes; choose another with"
            " --set batch_size=N (and stage1_batch_size, where there is one)"
        )
    return batch[rank() :: count]


def gather(rows: Tensor) -> Tensor:
    """The rows ``[B / n, ...]`` of all processes in the order of the whole batch ``[B, ...]``; without gradients."""
    if processes() == 1:
        return rows
    parts = [torch.empty_like(rows) for _ in range(processes())]
    distributed.all_gather(parts, rows.detach().contiguous())
    return torch.stack(parts, dim=1).flatten(0, 1)


def average(number: float, device: torch.device) -> float:
    """Mean over the processes; not a number for all if it is for one."""
    if processes() == 1:
        return number
    total = torch.tensor(number, dtype=torch.float64, device=device)
    distributed.all_reduce(total)
    return float(total) / processes()


def agree(number: float, device: torch.device) -> float:
    """The first process's number, for all: their last digits may differ, their decisions must not."""
    if processes() == 1:
        return number
    first = torch.tensor(number, dtype=torch.float64, device=device)
    distributed.broadcast(first, 0)
    return float(first)


def same_start(parameters: Iterable[nn.Parameter]) -> None:
    """Give all processes the first one's weights."""
    if processes() > 1:
        for parameter in parameters:
            distributed.broadcast(parameter.data, 0)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its mean over the processes; one that no process has stays None."""
    if processes() == 1:
        return
    everything = list(parameters)
    has = torch.tensor([p.grad is not None for p in everything], dtype=torch.float32, device=everything[0].device)
    distributed.all_reduce(has)
    for parameter, known in zip(everything, has.tolist(), strict=True):
        if known:
            gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.contiguous()
            distributed.all_reduce(gradient)
            parameter.grad = gradient / processes()
