"""Frozen features, computed once a picture (METHODS.md, "Exact speed", 3).

What a frozen tower says about a picture depends on the weights, the preprocessing, the precision and the picture, and
on nothing else; those four make the key. Values are kept in memory and, with a folder, in safetensors files as well.

Pictures are always computed in batches of one fixed size (the last one is filled up), so that the last bits of a
feature do not depend on which other pictures were asked for, or were in the cache already.
"""

import functools
import hashlib
import json
import os
import tempfile
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Protocol, Self

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from methods.parts.backbone import Backbone, Statistics, token_statistics

Row = dict[str, Tensor]  # one picture's values by name, on the CPU


class Pictures(Protocol):
    """What the cache needs of a set of pictures (``methods.interface.Pictures`` has it)."""

    def __len__(self) -> int: ...

    def pixels(self, index: Tensor) -> Tensor:
        """RGB in [0, 1] of the pictures at index [B] -> [B, 3, H, W]."""

    @property
    def content(self) -> Sequence[str]:
        """A content hash for each picture."""


@dataclass(frozen=True)
class FeatureScope:
    """What a cached value depends on besides the picture."""

    quantity: str
    weights: str
    preprocessing: str
    precision: str

    @classmethod
    def of(cls, backbone: Backbone, quantity: str, statistics: Statistics = "clip") -> Self:
        """The scope of a quantity of this backbone, with pictures normalised by these statistics."""
        preprocessing = {**backbone.preprocessing, "statistics": statistics}
        return cls(
            quantity=quantity,
            weights=backbone.weights_hash,
            preprocessing=json.dumps(preprocessing, sort_keys=True),
            precision=f"{backbone.precision} {backbone.device.type}",
        )

    @property
    def key(self) -> str:
        """sha256 of all parts; names the scope's folder."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


class FeatureCache:
    """Values by (scope, picture content), in memory up to ``limit`` bytes (the oldest go first), and in ``folder``.

    Files are written atomically, one for each call that computed something; a file that cannot be read is passed over
    with a warning and its values are computed again.
    """

    def __init__(self, folder: Path | str | None = None, *, limit: int = 1 << 30) -> None:
        self.folder = None if folder is None else Path(folder)
        self.limit = limit
        self.hits = 0
        self.misses = 0
        self._rows: dict[tuple[str, str], Row] = {}
        self._bytes = 0
        self._read: set[str] = set()

    def lookup(
        self, scope: FeatureScope, content: Sequence[str], compute: Callable[[Tensor], dict[str, Tensor]]
    ) -> dict[str, Tensor]:
        """Values of N pictures by their content hashes, each tensor [N, ...] on the CPU.

        ``compute`` gets the positions [M] (in ``content``) of the pictures that are not known, each distinct picture
        once, and returns tensors [M, ...].
        """
        key = scope.key
        self._read_folder(key)
        rows: dict[str, Row] = {}
        missing: dict[str, int] = {}
        for position, picture in enumerate(content):
            known = self._rows.get((key, picture))
            if known is None:
                missing.setdefault(picture, position)
            else:
                rows[picture] = known
        self.hits += len(content) - len(missing)
        self.misses += len(missing)
        if missing:
            computed = {
                name: value.detach().cpu().contiguous()
                for name, value in compute(torch.tensor(list(missing.values()))).items()
            }
            fresh = _split(missing, computed)
            rows.update(fresh)
            self._keep(key, fresh)
            self._write(scope, list(missing), computed)
        if not rows:
            return {name: value.cpu() for name, value in compute(torch.zeros(0, dtype=torch.long)).items()}
        names = next(iter(rows.values()))
        return {name: torch.stack([rows[picture][name] for picture in content]) for name in names}

    def clear(self) -> None:
        """Forget what is in memory; files stay."""
        self._rows.clear()
        self._read.clear()
        self._bytes = self.hits = self.misses = 0

    def _keep(self, key: str, rows: dict[str, Row]) -> None:
        for picture, row in rows.items():
            if (key, picture) not in self._rows:
                self._rows[key, picture] = row
                self._bytes += _size(row)
        while self._bytes > self.limit and self._rows:
            self._bytes -= _size(self._rows.pop(next(iter(self._rows))))

    def _read_folder(self, key: str) -> None:
        """Bring a scope's files into memory, once."""
        if self.folder is None or key in self._read:
            return
        self._read.add(key)
        for file in sorted((self.folder / key).glob("*.safetensors")):
            try:
                with safe_open(file, framework="pt") as stored:
                    content = json.loads(stored.metadata()["content"])
                    values = {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118 (not a dict)
            except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
                warnings.warn(f"feature cache file {file} cannot be read ({error}): delete it", stacklevel=3)
                continue
            self._keep(key, _split(content, values))

    def _write(self, scope: FeatureScope, content: list[str], values: dict[str, Tensor]) -> None:
        if self.folder is None:
            return
        folder = self.folder / scope.key
        folder.mkdir(parents=True, exist_ok=True)
        name = hashlib.sha256("\n".join(content).encode()).hexdigest()[:32]
        handle, temporary = tempfile.mkstemp(dir=folder, suffix=".part")
        os.close(handle)
        try:
            metadata = {"content": json.dumps(content), "scope": json.dumps(asdict(scope), sort_keys=True)}
            save_file(values, temporary, metadata=metadata)
            Path(temporary).replace(folder / f"{name}.safetensors")
        finally:
            Path(temporary).unlink(missing_ok=True)


@functools.cache
def process_cache() -> FeatureCache:
    """The cache that the methods of one process share, in memory."""
    return FeatureCache()


def image_features(
    backbone: Backbone,
    pictures: Pictures,
    *,
    statistics: Statistics = "clip",
    cache: FeatureCache | None = None,
    batch_size: int = 64,
) -> Tensor:
    """Frozen CLIP image features of all N pictures -> [N, E] on the CPU, not L2-normalised."""

    def compute(pixels: Tensor) -> dict[str, Tensor]:
        return {"features": backbone.encode_images(backbone.normalize(pixels, statistics))}

    return _lookup(backbone, "image_features", pictures, compute, statistics, cache, batch_size)["features"]


def layer_statistics(
    backbone: Backbone,
    pictures: Pictures,
    *,
    statistics: Statistics = "clip",
    cache: FeatureCache | None = None,
    batch_size: int = 64,
) -> dict[str, Tensor]:
    """Frozen image features and layer styles of all N pictures, on the CPU.

    ``features`` [N, E] (not L2-normalised), ``mu`` and ``sigma`` [N, n, w]: mean and deviation over the tokens after
    each of the n vision blocks (:func:`methods.parts.backbone.token_statistics`).
    """

    def compute(pixels: Tensor) -> dict[str, Tensor]:
        states = backbone.run_vision_layers(backbone.image_tokens(backbone.normalize(pixels, statistics)))
        mu, sigma = token_statistics(states)
        return {
            "features": backbone.readout(states[-1][:, 0]),
            "mu": mu.transpose(0, 1),
            "sigma": sigma.transpose(0, 1),
        }

    return _lookup(backbone, "layer_statistics", pictures, compute, statistics, cache, batch_size)


def _lookup(
    backbone: Backbone,
    quantity: str,
    pictures: Pictures,
    compute: Callable[[Tensor], dict[str, Tensor]],
    statistics: Statistics,
    cache: FeatureCache | None,
    batch_size: int,
) -> dict[str, Tensor]:
    @torch.no_grad()
    def in_batches(index: Tensor) -> dict[str, Tensor]:
        parts: list[dict[str, Tensor]] = []
        for part in index.split(batch_size):
            pixels = pictures.pixels(part).to(backbone.device)
            if len(pixels) < batch_size:  # a fixed batch size keeps the last bits the same in any company
                filler = pixels.new_zeros(batch_size - len(pixels), 3, backbone.image_size, backbone.image_size)
                pixels = torch.cat([pixels, filler])
            parts.append({name: value[: len(part)].cpu() for name, value in compute(pixels).items()})
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}

    scope = FeatureScope.of(backbone, f"{quantity} batch {batch_size}", statistics)
    return (process_cache() if cache is None else cache).lookup(scope, pictures.content, in_batches)


def _split(content: Iterable[str], values: dict[str, Tensor]) -> dict[str, Row]:
    """Rows of their own memory, so that dropping one frees it."""
    return {
        picture: {name: value[row].clone() for name, value in values.items()} for row, picture in enumerate(content)
    }


def _size(row: Row) -> int:
    return sum(value.numel() * value.element_size() for value in row.values())
