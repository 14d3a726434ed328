"""Data-parallel training: each process takes its share of every batch, and the gradients are averaged.

``accelerate launch -m benchmarks.run ...`` starts one process a GPU (extra ``multigpu``). All of them hold the same
weights and iterate over the same batches; process r of n works on rows r, r + n, ... of each. As long as a loss is a
mean over the images of a batch, the average of the n gradients is the gradient of the whole batch. Where a method
couples the images of a batch, it gathers what they share (UCDR-Adapter's queues) or allows one process only
(:attr:`methods.interface.Method.one_process`). Each process draws its own augmentation and dropout: the same
distribution, other draws than one process makes.

Before every exchange the processes exchange their state. A training inside :func:`fail_together` that fails in one
process, for a broken image or a full GPU, fails in all; otherwise the others would wait for that process, and then
average the gradients of its next training into theirs. When one process ends, the others end too.

In one process every function here leaves its argument as it is.
"""

from __future__ import annotations

import atexit
import contextlib
import datetime
import os
import sys
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, distributed, nn

#: How long processes wait for each other: one may decode images or rank a gallery while the others are done.
PATIENCE = datetime.timedelta(hours=2)


#: The state of a process.
_RUNNING, _FAILED, _ENDED = 0, 1, 2
#: Bytes of the reason that a process with a failed training sends to the others.
_REASON = 512


class ParallelError(RuntimeError):
    """Training cannot be spread over these processes; one line with the fix."""


class OtherFailedError(ParallelError):
    """The training that this process takes part in failed in another process."""


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
    atexit.register(_end)  # a launcher ends all processes when one ends with a failure: none ends before the last


def processes() -> int:
    """Number of processes that train together."""
    joined = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if joined else 1


def rank() -> int:
    """Number of this process, from 0."""
    return distributed.get_rank() if processes() > 1 else 0


@contextlib.contextmanager
def fail_together() -> Iterator[None]:
    """Around one training: if it fails in one process, it fails in all of them.

    Raises :class:`OtherFailedError`, with the other process's reason, where it is another one that failed.
    """
    if processes() == 1:
        yield
        return
    try:
        yield
        _meet()
    except OtherFailedError:
        raise
    except Exception as error:
        _meet(error)
        raise


def _meet(failure: Exception | None = None) -> None:
    """Wait for all processes and read their states."""
    states = _states(_RUNNING if failure is None else _FAILED)
    if _ENDED in states:
        raise SystemExit(f"process {states.index(_ENDED)} of {len(states)} has ended: process {rank()} ends too")
    if _FAILED not in states:
        return
    reason = "" if failure is None else " ".join(f"{type(failure).__name__}: {failure}".split())
    message = torch.frombuffer(bytearray(reason.encode()[:_REASON].ljust(_REASON)), dtype=torch.uint8)
    lines = [bytes(line.tolist()).decode(errors="ignore").strip() for line in _all(message)]
    if failure is None:
        raise OtherFailedError(f"process {states.index(_FAILED)} failed: {lines[states.index(_FAILED)]}")


def _states(state: int) -> list[int]:
    return [int(value) for value in _all(torch.tensor(state))]


def _all(value: Tensor) -> list[Tensor]:
    """A tensor of each process, on the CPU."""
    local = value.to("cuda" if distributed.get_backend() == "nccl" else "cpu")
    everyone = [torch.empty_like(local) for _ in range(processes())]
    distributed.all_gather(everyone, local)
    return [part.cpu() for part in everyone]


def _end() -> None:
    """Wait until all processes end."""
    sys.stdout.flush()  # a launcher may kill this process before Python does
    with contextlib.suppress(RuntimeError):  # one was killed
        while processes() > 1 and set(_states(_ENDED)) != {_ENDED}:
            pass


def share(batch: Tensor) -> Tensor:
    """This process's rows of a batch ``[B, ...]``: ``[B / n, ...]``.

    Raises :class:`ParallelError` if the rows cannot be divided evenly: the average of the gradients would then not
    be the gradient of the batch.
    """
    count = processes()
    if len(batch) % count:
        raise ParallelError(
            f"a batch of {len(batch)} images cannot be divided evenly over {count} processes; choose another with"
            " --set batch_size=N (and stage1_batch_size, where there is one)"
        )
    return batch[rank() :: count]


def gather(rows: Tensor) -> Tensor:
    """The rows ``[B / n, ...]`` of all processes in the order of the whole batch ``[B, ...]``; without gradients."""
    if processes() == 1:
        return rows
    _meet()
    parts = [torch.empty_like(rows) for _ in range(processes())]
    distributed.all_gather(parts, rows.detach().contiguous())
    return torch.stack(parts, dim=1).flatten(0, 1)


def average(number: float, device: torch.device) -> float:
    """Mean over the processes; not a number for all if it is for one."""
    if processes() == 1:
        return number
    _meet()
    total = torch.tensor(number, dtype=torch.float64, device=device)
    distributed.all_reduce(total)
    return float(total) / processes()


def agree(number: float, device: torch.device) -> float:
    """The first process's number, for all processes: last digits may differ between them, decisions must not."""
    if processes() == 1:
        return number
    _meet()
    first = torch.tensor(number, dtype=torch.float64, device=device)
    distributed.broadcast(first, 0)
    return float(first)


def same_start(parameters: Iterable[nn.Parameter]) -> None:
    """Give all processes the first one's weights."""
    if processes() > 1:
        _meet()
        for parameter in parameters:
            distributed.broadcast(parameter.data, 0)


def average_gradients(parameters: Iterable[nn.Parameter]) -> None:
    """Replace every gradient by its mean over the processes; one that no process has stays None.

    All gradients travel as one flat tensor (of each type of number), with a mark for each that is there.
    """
    if processes() == 1:
        return
    _meet()
    groups: dict[torch.dtype, list[nn.Parameter]] = {}
    for parameter in parameters:
        groups.setdefault(parameter.dtype, []).append(parameter)
    for group in groups.values():
        parts = [torch.zeros_like(p).flatten() if p.grad is None else p.grad.flatten() for p in group]
        there = torch.tensor([p.grad is not None for p in group], dtype=group[0].dtype).to(group[0].device)
        flat = torch.cat([there, *parts])
        distributed.all_reduce(flat)
        marks, *means = (flat / processes()).split([len(group), *(len(part) for part in parts)])
        for parameter, known, mean in zip(group, marks.tolist(), means, strict=True):
            if known:
                parameter.grad = mean.view_as(parameter)
