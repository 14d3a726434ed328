"""Embeddings of a data set's images under one fitted model: each image is encoded once, in batches of a fixed size."""

from __future__ import annotations

import hashlib
import itertools
import math
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from benchmarks.datasets.image_cache import cache_folder
from benchmarks.datasets.pixels import PixelCache
from benchmarks.runner.plan import FitGroup
from benchmarks.store.records import content_key
from methods.interface import Method
from methods.parts.feature_cache import one_thread_a_batch, side_by_side
from methods.parts.feeding import feed, unit_range
from methods.parts.parallel import gather, processes, rank
from methods.parts.row_files import RowFiles

#: Images encoded at once. Every batch has this size (the last is filled up) and on a CPU is computed by one thread,
#: several batches side by side: an image's embedding is equal to the bit whatever the number of threads and whichever
#: other images a run, or a resumed part of it, needed.
BATCH = 64

#: Images encoded between two writes to files: all that is lost if the process is killed.
CHUNK = 64 * BATCH

#: Embeddings of a data set that take more bytes than this are kept in files, not in memory.
LARGE = 1 << 28

#: No embedding is expected to be wider; smaller data sets are not prepared for files.
MAX_WIDTH = 4096


class EncodedImages:
    """Retrieval embeddings of a data set's images under one method; each image is encoded when first needed.

    With a ``folder``, embeddings of more than :data:`LARGE` bytes are kept in memory-mapped files there, and those that
    an earlier process left are used. ``seconds`` is the time spent in the method, ``count`` the images that went
    through it (fillers included). ``device`` is the method's: on a CPU with several threads, each computes a batch of
    its own. Processes that train together encode every n-th batch each and exchange what they found, so all of them
    must ask for the same rows, inside :func:`methods.parts.parallel.fail_together`.
    """

    def __init__(
        self,
        encode: Callable[[Tensor], Tensor],
        pixels: PixelCache,
        on_images: Callable[[int], None],
        folder: Path | None = None,
        *,
        device: str | torch.device = "cpu",
    ) -> None:
        self._encode = encode
        self._device = torch.device(device)
        self.pixels = pixels
        self._on_images = on_images
        total = len(pixels.dataset.table)
        self._files = None if folder is None else RowFiles(folder, total)
        self._known = np.zeros(total, dtype=bool) if self._files is None else self._files.filled
        self._kept: Tensor | None = None
        self.count = 0
        self.seconds = 0.0

    def __getitem__(self, rows: np.ndarray) -> Tensor:
        """Embeddings ``[len(rows), D]`` of table rows, float32 on the CPU."""
        self.encode(rows)
        if self._kept is None:
            assert self._files is not None
            return self._files.tensors()["embedding"][torch.from_numpy(rows)]
        return self._kept[torch.from_numpy(rows)]

    def encode(self, rows: np.ndarray) -> None:
        """Encode those of the table rows that are not encoded yet."""
        missing = self._missing(rows)
        for start in range(0, len(missing), CHUNK):
            chunk = missing[start : start + CHUNK]
            self._keep(chunk, self._encoded(chunk))
            self._known[chunk] = True

    def _missing(self, rows: np.ndarray) -> np.ndarray:
        """Those of the rows that are not encoded yet, sorted; of processes that train together, in any of them."""
        if processes() == 1:
            return np.unique(rows[~self._known[rows]])
        asked = np.unique(rows)
        here = torch.from_numpy(self._known[asked].astype(np.uint8)).to(self._device)
        everywhere = gather(here).view(len(asked), processes()).amin(dim=1).bool().cpu().numpy()
        return np.asarray(asked[~everywhere])

    def _encoded(self, rows: np.ndarray) -> Tensor:
        """Embeddings [len(rows), D]; processes that train together encode every n-th batch each, and share them."""
        if processes() == 1:
            return torch.cat(list(self._in_batches(rows)))
        parts = [rows[at : at + BATCH] for at in range(0, len(rows), BATCH)]
        each = math.ceil(len(parts) / processes())
        own = [parts[min(rank() + number * processes(), len(parts) - 1)] for number in range(each)]
        local = torch.cat(list(self._in_batches(np.concatenate(own))))
        filler = local.new_zeros(each * BATCH - len(local), local.shape[1])
        local = torch.cat([local, filler]).view(each, -1).to(self._device)
        return gather(local).cpu().view(-1, filler.shape[1])[: len(rows)]

    def discard(self) -> None:
        """Delete the files, if there are any."""
        if self._files is not None:
            self._files.remove()

    def _in_batches(self, rows: np.ndarray) -> Iterator[Tensor]:
        parts = [rows[at : at + BATCH] for at in range(0, len(rows), BATCH)]
        with (
            closing(feed(parts, lambda part: (self._pixels(part),), self._device)) as fed,
            one_thread_a_batch(self._device) as count,
        ):
            batches = ((pixels, len(part)) for part, (pixels,) in fed)
            for pixels, wanted in itertools.islice(batches, int(self.count == 0)):
                yield self._count(*self._run(pixels, wanted), 1)  # what a method keeps from its first call is kept once
            if count == 1:
                yield from (self._count(*self._run(pixels, wanted), 1) for pixels, wanted in batches)
            else:
                yield from (self._count(*result, count) for result in side_by_side(count, self._run, batches))

    def _pixels(self, batch: np.ndarray) -> Tensor:
        return self.pixels[np.concatenate([batch, np.repeat(batch[-1:], BATCH - len(batch))])]

    @torch.no_grad()  # here, since the setting is per thread
    def _run(self, pixels: Tensor, wanted: int) -> tuple[Tensor, float]:
        """Embeddings of the first ``wanted`` images of a batch (uint8), and the seconds that the batch took."""
        start = time.perf_counter()
        embeddings = self._encode(unit_range(pixels)).float().cpu()
        seconds = time.perf_counter() - start
        if embeddings.shape[0] != BATCH or embeddings.ndim != 2:
            raise ValueError(f"embeddings of {BATCH} images have shape {tuple(embeddings.shape)}, not [{BATCH}, D]")
        return embeddings[:wanted], seconds

    def _count(self, embeddings: Tensor, seconds: float, count: int) -> Tensor:
        """Count a batch; ``count`` batches were computed at a time."""
        self.seconds += seconds / count
        self.count += BATCH
        self._on_images(len(embeddings))
        return embeddings

    def _keep(self, rows: np.ndarray, embeddings: Tensor) -> None:
        total, width = len(self._known), embeddings.shape[1]
        if self._kept is None and self._files is not None and (self._files.started or 4 * total * width > LARGE):
            try:
                self._files.write(rows, {"embedding": embeddings})
                return
            except OSError as error:
                what = f"embeddings cannot be kept in {self._files.folder} ({error.strerror or error})"
                warnings.warn(f"{what}: they are held in memory", RuntimeWarning, stacklevel=4)
        if self._kept is None:
            self._kept = torch.empty(total, width)  # the system gives memory to the rows that are used
            if self._files is not None and self._files.started:
                known = torch.from_numpy(np.flatnonzero(self._known))
                self._kept[known] = self._files.tensors()["embedding"][known]
        self._kept[torch.from_numpy(rows)] = embeddings


def encode_as(method: Method, rules: str) -> Callable[[Tensor], Tensor]:
    """The call whose output is ranked: raw features under the official rules."""
    return method.encode_raw if rules == "official" else method.encode_images


def embedding_folder(group: FitGroup, method: Method, pixels: PixelCache) -> Path | None:
    """The folder of a fitted model's embeddings if they are many: named by all that determines them.

    That is the cell's inputs, the learned tensors and the images; for a method that is not trained, the training data
    do not count. None where ``UCDR_BENCH_CACHE`` is off.
    """
    root = cache_folder()
    if root is None or 4 * len(pixels.dataset.table) <= LARGE // MAX_WIDTH:
        return None
    inputs = group.cells[0].inputs
    digest = hashlib.sha256()
    for name, tensor in sorted(method.tensors().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    for image in pixels.dataset.content:
        digest.update(image.encode())
    facts = {name: inputs[name] for name in ("scoring", "method", "backbone", "dataset", "select", "seed")}
    facts |= {"rules": inputs["task"]["rules"], "fit_id": group.fit_id if method.trained else ""}
    facts |= {"size": pixels.size, "device": method.device.type, "model and pictures": digest.hexdigest()}
    return root / "embeddings" / content_key(facts)
