"""Frozen features, computed once an image (docs/methods.md, "Exact speed", 3).

What a frozen tower computes of an image depends on the backbone (weights, config, tokenizer), the preprocessing, the
precision and the image, and on nothing else; these are the key. Values are kept in memory, those of large sets in
memory-mapped files.

Images are always computed in batches of one fixed size (the last one is filled up). On a CPU each batch is computed
by one thread, and several threads compute batches side by side, because a product that several threads share is
rounded differently at another place of the batch. An image's features on one machine are therefore equal to the bit
whatever the number of threads, whichever other images were asked for, and whatever was in the cache already. On a GPU
they are so if its kernels round each row in the same way, which is not guaranteed: there, and between machines,
expect float32 features to agree to about 1e-5 of their length. Text features are computed one node at a time with all
threads: equal to the bit for one number of threads, and to about 1e-6 between numbers of threads.
"""

import contextlib
import functools
import hashlib
import json
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from methods.parts.backbone import Backbone, PromptBackbone, Statistics, stack_layers
from methods.parts.feeding import feed, unit_range
from methods.parts.row_files import RowFiles

#: Images computed between two writes to files, all that a killed process loses: a multiple of every batch size in
#: use, so that the batches are those without files.
CHUNK = 4096

#: Batches computed side by side on a CPU, at most: each needs the memory of its activations.
SIDE_BY_SIDE = 8

Result = TypeVar("Result")

Row = dict[str, Tensor]  # one image's values by name, on the CPU


class StoredImages(Protocol):
    """What the cache needs of a set of images (``methods.interface.Images`` has it)."""

    def __len__(self) -> int: ...

    def stored(self, index: Tensor) -> Tensor:
        """The images at index [B] as they are kept -> [B, 3, H, W]: uint8, or floats in [0, 1]."""

    @property
    def content(self) -> Sequence[str]:
        """A content hash for each image."""


@dataclass(frozen=True)
class FeatureScope:
    """What a cached value depends on besides the image."""

    quantity: str
    backbone: str
    preprocessing: str
    precision: str

    @classmethod
    def of(cls, backbone: Backbone, quantity: str, statistics: Statistics = "clip") -> Self:
        """The scope of a quantity of this backbone, with images normalised by these statistics."""
        preprocessing = {**backbone.preprocessing, "statistics": statistics}
        return cls(
            quantity=quantity,
            backbone=json.dumps(backbone.identity, sort_keys=True),
            preprocessing=json.dumps(preprocessing, sort_keys=True),
            precision=f"{backbone.precision} {_arithmetic(backbone.device)}{' compiled' if backbone.compiled else ''}",
        )

    @property
    def key(self) -> str:
        """sha256 of all parts; names the scope's folder."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


def _arithmetic(device: torch.device) -> str:
    """The kind of device and, on a GPU, whether float32 is rounded to TF32 there."""
    rounded = device.type == "cuda" and (torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32)
    exact = " without TF32" if device.type == "cuda" and not rounded else ""
    return f"{device.type}{exact}"


class FeatureCache:
    """Values by (scope, image content), in memory up to ``limit`` bytes (the oldest go first).

    With a ``folder``, values of a set of images that take more than a quarter of ``limit`` go to memory-mapped files
    there (:class:`~methods.parts.row_files.RowFiles`), :data:`CHUNK` images at a time: they are then never held in
    memory as a whole, and a killed process continues where it stopped. Without room on that disk they are kept
    in memory, with a warning.
    """

    def __init__(self, folder: Path | str | None = None, *, limit: int = 1 << 30) -> None:
        self.folder = None if folder is None else Path(folder)
        self.limit = limit
        self.hits = 0
        self.misses = 0
        self._rows: dict[tuple[str, str], Row] = {}
        self._bytes = 0

    def lookup(
        self, scope: FeatureScope, content: Sequence[str], compute: Callable[[Tensor], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Values of N images by their content hashes, each tensor [N, ...] on the CPU (large ones over a file).

        ``compute`` gets the positions [M] (in ``content``) of images that are not cached, at most :data:`CHUNK` at a
        time, and returns tensors [M, ...]; in memory each distinct image is computed once.
        """
        if self.folder is not None and len(content) > CHUNK:
            files = self._files(scope, content)
            if files.started or self._large(compute(torch.zeros(1, dtype=torch.long)), len(content)):
                features = self._from_files(files, compute)
                if features is not None:
                    return features
                return self._from_memory(scope.key, content, functools.partial(_read_or_compute, files, compute))
        return self._from_memory(scope.key, content, compute)

    def clear(self) -> None:
        """Forget what is in memory; files stay."""
        self._rows.clear()
        self._bytes = self.hits = self.misses = 0

    def _from_memory(
        self, key: str, content: Sequence[str], compute: Callable[[Tensor], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        rows: dict[str, Row] = {}
        missing: dict[str, int] = {}
        for position, image in enumerate(content):
            known = self._rows.get((key, image))
            if known is None:
                missing.setdefault(image, position)
            else:
                rows[image] = known
        self.hits += len(content) - len(missing)
        self.misses += len(missing)
        names = list(missing)
        for start in range(0, len(names), CHUNK):
            part = names[start : start + CHUNK]
            computed = compute(torch.tensor([missing[image] for image in part]))
            rows.update(_split(part, {name: value.detach().cpu() for name, value in computed.items()}))
        self._keep(key, {image: rows[image] for image in names})
        if not rows:
            return {name: value.cpu() for name, value in compute(torch.zeros(0, dtype=torch.long)).items()}
        return {name: torch.stack([rows[image][name] for image in content]) for name in next(iter(rows.values()))}

    def _keep(self, key: str, rows: dict[str, Row]) -> None:
        for image, row in rows.items():
            if (key, image) not in self._rows:
                self._rows[key, image] = row
                self._bytes += _size(row)
        while self._bytes > self.limit and self._rows:
            self._bytes -= _size(self._rows.pop(next(iter(self._rows))))

    def _from_files(self, files: RowFiles, compute: Callable[[Tensor], dict[str, Tensor]]) -> dict[str, Tensor] | None:
        """Compute what is missing in the files; None if they cannot be written."""
        missing = np.flatnonzero(~files.filled)
        self.hits += files.count - len(missing)
        self.misses += len(missing)
        for start in range(0, len(missing), CHUNK):
            rows = missing[start : start + CHUNK]
            computed = compute(torch.from_numpy(rows))
            try:
                files.write(rows, {name: value.detach().cpu() for name, value in computed.items()})
            except OSError as error:
                what = f"features cannot be kept in {files.folder} ({error.strerror or error})"
                warnings.warn(f"{what}: they are held in memory", RuntimeWarning, stacklevel=4)
                return None
        return files.tensors()

    def _files(self, scope: FeatureScope, content: Sequence[str]) -> RowFiles:
        assert self.folder is not None
        images = hashlib.sha256()
        for image in content:
            images.update(image.encode() + b"\n")
        return RowFiles(self.folder / scope.key[:32] / images.hexdigest()[:32], len(content))

    def _large(self, row: dict[str, Tensor], count: int) -> bool:
        return _size(row) * count > self.limit // 4


@functools.cache
def process_cache() -> FeatureCache:
    """The cache that the methods of one process share; give it a ``folder`` for sets too large for memory."""
    return FeatureCache()


def image_features(
    backbone: Backbone,
    images: StoredImages,
    *,
    statistics: Statistics = "clip",
    cache: FeatureCache | None = None,
    batch_size: int = 64,
) -> Tensor:
    """Frozen CLIP image features of all N images -> [N, E] on the CPU, not L2-normalised."""

    def compute(pixels: Tensor) -> dict[str, Tensor]:
        return {"features": backbone.encode_images(backbone.normalize(pixels, statistics))}

    return frozen_values(
        backbone, "image_features", images, compute, statistics=statistics, cache=cache, batch_size=batch_size
    )["features"]


def layer_statistics(
    backbone: PromptBackbone,
    images: StoredImages,
    *,
    statistics: Statistics = "clip",
    cache: FeatureCache | None = None,
    batch_size: int = 64,
) -> dict[str, Tensor]:
    """Frozen image features and layer styles of all N images, on the CPU.

    ``features`` [N, E] (not L2-normalised), ``mu`` and ``sigma`` [N, n, w]: mean and deviation over the positions of
    each of the n layers (:meth:`methods.parts.backbone.PromptBackbone.encode_styles`); w is the widest layer's, and
    zeros fill the others.
    """

    def compute(pixels: Tensor) -> dict[str, Tensor]:
        features, mu, sigma = backbone.encode_styles(backbone.normalize(pixels, statistics))
        return {"features": features, "mu": stack_layers(mu), "sigma": stack_layers(sigma)}

    return frozen_values(
        backbone, "layer_statistics", images, compute, statistics=statistics, cache=cache, batch_size=batch_size
    )


def frozen_values(
    backbone: Backbone,
    quantity: str,
    images: StoredImages,
    compute: Callable[[Tensor], dict[str, Tensor]],
    *,
    statistics: Statistics = "clip",
    cache: FeatureCache | None = None,
    batch_size: int = 64,
) -> dict[str, Tensor]:
    """The result of ``compute`` for all N images, each tensor [N, ...] on the CPU (large ones over a file).

    ``compute`` gets pixels [batch_size, 3, H, W] in [0, 1] on the backbone's device, on a CPU in several threads at a
    time, so it must change nothing; ``quantity`` names what it computes, together with every setting that it depends on
    beside the backbone and ``statistics``.
    """

    def read(part: Tensor) -> tuple[Tensor]:
        pixels = images.stored(part)
        if len(pixels) < batch_size:  # with a fixed batch size the last bits do not depend on the other images
            filler = pixels.new_zeros(batch_size - len(pixels), *pixels.shape[1:])
            pixels = torch.cat([pixels, filler])
        return (pixels,)

    @torch.no_grad()  # here, since it holds for one thread
    def run(pixels: Tensor, count: int) -> dict[str, Tensor]:
        return {name: value[:count].cpu() for name, value in compute(unit_range(pixels)).items()}

    def in_batches(index: Tensor) -> dict[str, Tensor]:
        split = index.split(batch_size)
        with (
            contextlib.closing(feed(split, read, backbone.device)) as fed,
            one_thread_a_batch(backbone.device) as count,
        ):
            batches = ((pixels, len(part)) for part, (pixels,) in fed)
            if min(count, len(split)) == 1:
                parts = [run(*batch) for batch in batches]
            else:
                parts = list(side_by_side(count, run, batches))
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    scope = FeatureScope.of(backbone, f"{quantity} batch {batch_size}", statistics)
    return (process_cache() if cache is None else cache).lookup(scope, images.content, in_batches)


@contextlib.contextmanager
def one_thread_a_batch(device: torch.device) -> Iterator[int]:
    """On a CPU, one thread for each operation inside this context; yields how many batches to compute side by side."""
    if device.type != "cpu":
        yield 1
        return
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield min(threads, SIDE_BY_SIDE)
    finally:
        torch.set_num_threads(threads)


def side_by_side(
    count: int, run: Callable[[Tensor, int], Result], batches: Iterable[tuple[Tensor, int]]
) -> Iterator[Result]:
    """``run`` of each batch, in order, ``count`` at a time; batches are taken in the calling thread."""
    with ThreadPoolExecutor(count) as pool:
        running: deque[Future[Result]] = deque()
        for pixels, wanted in batches:
            if len(running) == count:
                yield running.popleft().result()
            running.append(pool.submit(run, pixels, wanted))
        while running:
            yield running.popleft().result()


def _read_or_compute(
    files: RowFiles, compute: Callable[[Tensor], dict[str, Tensor]], index: Tensor
) -> dict[str, Tensor]:
    """Values of images at index [B], as ``compute`` gives them; those that the files hold are read."""
    if not files.started:
        return compute(index)
    values = {name: value[index] for name, value in files.tensors().items()}
    missing = ~torch.from_numpy(files.filled)[index]
    if bool(missing.any()):
        for name, value in compute(index[missing]).items():
            values[name][missing] = value.detach().cpu()
    return values


def _split(content: Iterable[str], values: dict[str, Tensor]) -> dict[str, Row]:
    """Rows as a copy, so that dropping one frees it."""
    return {image: {name: value[row].clone() for name, value in values.items()} for row, image in enumerate(content)}


def _size(row: Row) -> int:
    return sum(value.numel() * value.element_size() for value in row.values())
