"""Images on their way to a method: read ahead by a thread, 8-bit RGB up to the device, there floats in [0, 1].

A step that reads its own batch leaves the device idle meanwhile. :func:`feed` reads the next batches beside the step
that runs; on a GPU they lie in pinned memory and are copied by a stream of their own. What is read, and in which
order, is the same as without it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeAlias, TypeVar

import torch
from torch import Tensor

Item = TypeVar("Item")

#: What :func:`feed` gives.
Feed: TypeAlias = Generator[tuple[Item, tuple[Tensor, ...]], None, None]

#: Batches that are read ahead of the step; 0: each is read when it is asked for, by the thread that asks.
AHEAD = 2


def unit_range(pixels: Tensor) -> Tensor:
    """RGB in [0, 1] as methods take it: float32 of uint8 values, in the same shape; floats pass unchanged."""
    return pixels if pixels.is_floating_point() else pixels.float().div_(255)


def feed(
    items: Iterable[Item], load: Callable[[Item], Sequence[Tensor]] | None, device: str | torch.device
) -> Feed[Item]:
    """Each item with what ``load`` gives for it (tensors on the CPU), on ``device``; in order. None: with nothing.

    One thread takes the items and loads them, at most :data:`AHEAD` before they are asked for, so ``items`` and
    ``load`` must not depend on what the caller computes meanwhile. What they raise is raised here when the item's turn
    comes. Close the generator (``contextlib.closing``) where it may not be read to its end: the thread ends with it.
    """
    if load is None or AHEAD < 1:
        for item in items:
            yield item, () if load is None else tuple(tensor.to(device, non_blocking=True) for tensor in load(item))
        return
    move, source = _Mover(torch.device(device)), iter(items)

    def prepare() -> tuple[Item, Any] | None:
        for item in source:  # the next one, if there is any
            return item, move.start(load(item))
        return None

    pool = ThreadPoolExecutor(1, thread_name_prefix="feeding")
    waiting: deque[Future[tuple[Item, Any] | None]] = deque(pool.submit(prepare) for _ in range(AHEAD))
    try:
        while (ready := waiting.popleft().result()) is not None:
            waiting.append(pool.submit(prepare))
            yield ready[0], move.finish(ready[1])
    finally:
        pool.shutdown(cancel_futures=True)


class _Mover:
    """Moves tensors from the feeding thread (:meth:`start`) to the device for the thread that computes
    (:meth:`finish`)."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream: torch.cuda.Stream | None = None

    def start(self, tensors: Sequence[Tensor]) -> Any:
        """To a GPU: from pinned memory, on a stream beside the computing one. Other devices copy in :meth:`finish`."""
        if self.device.type != "cuda":
            return tensors
        with torch.cuda.device(self.device):
            if self._stream is None:
                self._stream = torch.cuda.Stream()
            with torch.cuda.stream(self._stream):
                there = [tensor.pin_memory().to(self.device, non_blocking=True) for tensor in tensors]
                return there, self._stream.record_event()

    def finish(self, started: Any) -> tuple[Tensor, ...]:
        """The tensors on the device; what the caller computes with them waits for the copy, the caller does not."""
        if self.device.type != "cuda":
            return tuple(tensor.to(self.device, non_blocking=True) for tensor in started)
        there, copied = started
        computing = torch.cuda.current_stream(self.device)
        computing.wait_event(copied)
        for tensor in there:
            tensor.record_stream(computing)  # its memory is not given out again before the step is done with it
        return tuple(there)
