"""Batches for pretraining: which drawings form a batch, how they are coloured and moved.

Most of the corpus is single-colour line art, while photographs, emoji and clip art are filled with colour. So a
drawing's *regions* (connected areas enclosed by its ink) are found once, and each time it is shown it is painted anew:
ink, paper and regions get colours of a random palette, sometimes with a soft light gradient. Colour drawings are
recoloured in other ways. A random affine map is applied to all.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.datasets.build.picto_sources import DOMAIN_COLLECTIONS
from benchmarks.pretrain.captions import concept_of
from benchmarks.pretrain.pairs import entries

#: Regions of a drawing that get separate colours; 0 is ink or paper, further regions share the last colour.
MAX_REGIONS = 7


def find_regions(ink: np.ndarray) -> np.ndarray:
    """Areas enclosed by ink: uint8 ``[N, S, S]`` ink -> uint8 ``[N, S, S]`` region numbers, 1 for the largest.

    Paper that touches the border is 0, and so is ink itself.
    """
    from scipy import ndimage

    regions = np.zeros_like(ink)
    for n, image in enumerate(ink):
        paper, count = ndimage.label(np.pad(image < 96, 1, constant_values=True))
        outside = paper[0, 0]
        paper = paper[1:-1, 1:-1]
        sizes = np.bincount(paper.ravel(), minlength=count + 1)
        sizes[[0, outside]] = 0
        table = np.zeros(count + 1, dtype=np.uint8)
        for rank, label in enumerate(np.argsort(-sizes, kind="stable")[: int((sizes > 3).sum())]):
            table[label] = min(rank + 1, MAX_REGIONS)
        regions[n] = table[paper]
    return regions


def names_test_class(phrases: Sequence[str]) -> np.ndarray:
    """Whether a name ``[N]`` holds the name of a PictoDomains test class or of its synset (any lemma, any number).

    Words and WordNet nouns of several words are looked up in singular and in all their noun senses.
    """
    from nltk.corpus import wordnet

    from benchmarks.datasets.picto_domains import PictoDomains

    dataset = PictoDomains()
    table = dataset.table
    names = set(table.loc[table["split"] == "test", "class"])
    synsets = {dataset.synsets[name] for name in names}
    words = {name.replace("-", " ").replace("_", " ").lower() for name in names}
    words |= {lemma.replace("_", " ").lower() for synset in synsets for lemma in wordnet.synset(synset).lemma_names()}

    @cache
    def held(entry: str) -> bool:
        single = wordnet.morphy(entry.replace(" ", "_"), wordnet.NOUN) or entry
        return entry in words or single.replace("_", " ") in words

    shared = {phrase: any(held(entry) for entry in {phrase, *entries(phrase)}) for phrase in set(phrases)}
    return np.array([shared[phrase] for phrase in phrases], dtype=bool)


class Corpus:
    """The corpus folder, memory-mapped, with a sampler over concepts.

    A batch holds ``concepts`` concepts drawn without replacement with weight ``sqrt(images) * (10 if concrete)`` and
    ``views`` drawings of each (colour drawings three times as likely).

    ``pack_collections`` False leaves out whole collections that PictoDomains uses (openclipart); ``test_classes``
    False leaves out every drawing that names one of PictoDomains' test classes (:func:`names_test_class`).
    """

    def __init__(self, folder: Path, *, pack_collections: bool = True, test_classes: bool = True) -> None:
        if not (folder / "corpus.json").is_file():
            raise FileNotFoundError(f"{folder}: no corpus here; build it with `python -m benchmarks.pretrain corpus`")
        self.summary = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
        index = pd.read_parquet(folder / "index.parquet")
        kept = np.ones(len(index), dtype=bool)
        if not pack_collections:
            kept &= (
                ~index["collection"].isin(name for names in DOMAIN_COLLECTIONS.values() for name in names).to_numpy()
            )
        if not test_classes:
            kept &= ~names_test_class(index["phrase"].tolist())
        self.index = index[kept].reset_index(drop=True)
        self.summary |= {
            "pictures": len(self.index),
            "mono": int((self.index["kind"] == "mono").sum()),
            "colour": int((self.index["kind"] == "colour").sum()),
            "phrases": int(self.index["phrase"].nunique()),
            "pack_collections": pack_collections,
            "test_classes": test_classes,
        }
        self.mono = np.load(folder / "mono.npy", mmap_mode="r")
        self.colour = np.load(folder / "colour.npy", mmap_mode="r")
        self.folder = folder
        keys = [concept_of(phrase).key for phrase in self.index["phrase"]]
        codes, names = pd.factorize(pd.Series(keys), sort=True)
        self.concept_names = list(names)
        order = np.argsort(codes, kind="stable")
        bounds = np.searchsorted(codes[order], np.arange(len(names) + 1))
        self._members = [order[bounds[i] : bounds[i + 1]] for i in range(len(names))]
        counts = np.diff(bounds)
        concrete = np.array([name.startswith("synset:") for name in names])
        weight = np.sqrt(counts) * np.where(concrete, 10.0, 1.0)
        self._weight = weight / weight.sum()
        self._concrete_weight = np.where(concrete, weight, 0) / weight[concrete].sum()
        self._is_colour = (self.index["kind"] == "colour").to_numpy()
        self._row = self.index["row"].to_numpy()

    @cached_property
    def regions(self) -> np.ndarray:
        """Region numbers of all single-colour drawings ``[N, S, S]``, found once a corpus (minutes) and kept."""
        file = self.folder / "regions.npy"
        if not file.is_file():
            temporary = self.folder / f"regions.{os.getpid()}.part.npy"
            np.save(temporary, find_regions(np.asarray(self.mono)))
            temporary.replace(file)
        shared: np.ndarray = np.load(file, mmap_mode="r")
        return shared

    def draw(
        self, random: np.random.Generator, *, concepts: int, views: int, concrete: bool = False
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draw index rows ``[concepts * views]`` and the concept position of each ``[concepts * views]``.

        ``concrete``: concrete WordNet nouns only.
        """
        weight = self._concrete_weight if concrete else self._weight
        chosen = random.choice(len(self._members), size=concepts, replace=False, p=weight)
        rows = np.empty((concepts, views), dtype=np.int64)
        for i, concept in enumerate(chosen):
            members = self._members[concept]
            share = np.where(self._is_colour[members], 3.0, 1.0)
            fits = len(members) >= views
            rows[i] = random.choice(members, size=views, replace=not fits, p=share / share.sum())
        return rows.ravel(), np.repeat(np.arange(concepts), views)

    def paint(self, rows: np.ndarray, generator: torch.Generator, device: torch.device) -> Tensor:
        """Painted, recoloured and moved images ``[B, 3, S, S]`` in [0, 1] of the given index rows."""
        colour = torch.from_numpy(self._is_colour[rows])
        size = self.mono.shape[1]
        pixels = torch.empty(len(rows), 3, size, size)
        at = self._row[rows]
        mono_at = at[~colour.numpy()]
        if len(mono_at):
            ink = torch.from_numpy(self.mono[mono_at]).float().div_(255)
            pixels[~colour] = paint_regions(ink, torch.from_numpy(self.regions[mono_at]).long(), generator)
        if colour.any():
            rgb = torch.from_numpy(self.colour[at[colour.numpy()]]).permute(0, 3, 1, 2).float().div_(255)
            pixels[colour] = recolour(rgb, generator)
        return move(pixels, generator).to(device)


def _uniform(generator: torch.Generator, *shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
    return torch.rand(*shape, generator=generator) * (high - low) + low


def paint_regions(ink: Tensor, regions: Tensor, generator: torch.Generator) -> Tensor:
    """Colour single-colour drawings: ink ``[B, S, S]`` in [0, 1] and regions ``[B, S, S]`` -> ``[B, 3, S, S]``.

    40 % stay black (or one dark colour) on white; the rest get a palette for their regions, ink and sometimes paper.
    """
    count = len(ink)
    thick = _uniform(generator, count) < 0.12
    ink = ink[:, None].clone()
    ink[thick] = F.max_pool2d(ink[thick], 3, 1, 1)
    palette = _uniform(generator, count, MAX_REGIONS + 1, 3)
    shared = _uniform(generator, count, 1, 1) < 0.4
    palette = torch.where(shared, palette[:, 1:2].expand_as(palette), palette)
    white = torch.ones(count, 1, 3)
    tinted = _uniform(generator, count, 1, 1)
    paper = torch.where(tinted < 0.85, white, 0.6 + 0.4 * _uniform(generator, count, 1, 3))
    filled = _uniform(generator, count, 1, 1) < 0.55
    palette = torch.where(filled, palette, paper.expand_as(palette))
    palette[:, :1] = paper
    canvas = palette.gather(1, regions.flatten(1)[:, :, None].expand(-1, -1, 3)).transpose(1, 2)
    canvas = canvas.reshape(count, 3, *ink.shape[-2:])
    kind = _uniform(generator, count, 1, 1, 1)
    colour = _uniform(generator, count, 3, 1, 1)
    pen = torch.where(kind < 0.4, torch.zeros_like(colour), torch.where(kind < 0.6, 0.4 * colour, colour))
    shade = _uniform(generator, count, 1, 1, 1) < 0.3
    ramp = torch.linspace(-0.5, 0.5, ink.shape[-1])
    tilt = _uniform(generator, count, 2, 1, 1, low=-0.8, high=0.8)
    light = 1 + tilt[:, :1] * ramp[None, None, :, None] + tilt[:, 1:] * ramp[None, None, None, :]
    painted = canvas * (1 - ink) + pen * ink
    inside = (regions[:, None] > 0) | (ink > 0.5)
    return torch.where(shade & inside, (painted * light).clamp(0, 1), painted)


def recolour(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Colour drawings ``[B, 3, S, S]``: 45 % stay, the rest are mixed, greyed or brightened."""
    count = len(pixels)
    kind = _uniform(generator, count, 1, 1, 1)
    mix = torch.softmax(3 * torch.randn(count, 3, 3, generator=generator), dim=-1)
    mixed = torch.einsum("bij,bjhw->bihw", mix, pixels)
    grey = pixels.mean(1, keepdim=True).expand_as(pixels)
    gain = _uniform(generator, count, 1, 1, 1, low=0.6, high=1.4)
    jittered = 1 - ((1 - pixels) * gain).clamp(0, 1)
    return torch.where(
        kind < 0.45, pixels, torch.where(kind < 0.75, mixed, torch.where(kind < 0.85, grey, jittered))
    ).contiguous()


def move(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Random flip, rotation, scale, shear and shift on white; now and then coarse pixels or a blur."""
    count, _, size, _ = pixels.shape
    angle = _uniform(generator, count, low=-0.3, high=0.3)
    scale = torch.exp(_uniform(generator, count, low=-0.15, high=0.35))
    aspect = torch.exp(_uniform(generator, count, low=-0.15, high=0.15))
    shear = _uniform(generator, count, low=-0.15, high=0.15)
    flip = torch.where(_uniform(generator, count) < 0.5, -1.0, 1.0)
    cos, sin = torch.cos(angle), torch.sin(angle)
    shift = _uniform(generator, count, 2, low=-0.12, high=0.12)
    theta = torch.stack(
        [
            torch.stack([flip * scale * aspect * cos, -scale * (sin + shear), shift[:, 0]], 1),
            torch.stack([flip * scale * sin, scale / aspect * cos, shift[:, 1]], 1),
        ],
        1,
    )
    grid = F.affine_grid(theta, [count, 3, size, size], align_corners=False)
    moved = 1 - F.grid_sample(1 - pixels, grid, align_corners=False)
    coarse = _uniform(generator, count) < 0.12
    if coarse.any():
        side = int(torch.randint(14, 33, (), generator=generator))
        small = F.interpolate(moved[coarse], side, mode="area")
        moved[coarse] = F.interpolate(small, size, mode="nearest" if side % 2 else "bilinear")
    return moved
