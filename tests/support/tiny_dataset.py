"""A tiny data set of drawn shapes: four domains (drawing styles), twelve classes, 300-odd images, made in memory.

A class is a shape and its number of copies, a domain a way of drawing it, so raw pixels and CLIP both have something to
find, and every protocol has train, validation, test and held-back images. Register it for a test with::

    def test_it(tiny_dataset): ...          # tests/conftest.py: registered as "tiny"
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from benchmarks.datasets.base import ClosedSet, Dataset, DatasetCard, RetrievalCut

DOMAINS = ("flat", "glyph", "line", "sketch")
SHAPES = ("disc", "box", "wedge", "cross", "bar", "ring")
CLASSES = tuple(f"{count}_{shape}" for count in ("one", "two") for shape in SHAPES)
SPLITS = {"val": ("one_bar", "two_ring"), "test": ("one_cross", "one_ring", "two_box", "two_wedge")}
SIDE = 48


def split_of(name: str) -> str:
    """The split of a class."""
    return next((split for split, names in SPLITS.items() if name in names), "train")


def draw(name: str, domain: str, number: int) -> np.ndarray:
    """One image, uint8 ``[SIDE, SIDE, 3]``: the class's shape in the domain's style, placed by ``number``."""
    seed = int.from_bytes(hashlib.sha256(f"{name}/{domain}/{number}".encode()).digest()[:4], "little")
    random = np.random.default_rng(seed)
    count, shape = name.split("_")
    image = Image.new("RGB", (SIDE, SIDE), "white")
    pen = ImageDraw.Draw(image)
    ink = tuple(int(c) for c in random.integers(20, 200, 3)) if domain in ("flat", "sketch") else (0, 0, 0)
    fill, outline, width = (ink, None, 1) if domain in ("flat", "glyph") else (None, ink, 2 if domain == "line" else 3)
    places = [(24, 24)] if count == "one" else [(14, 24), (34, 24)]
    radius = int(random.integers(12, 17)) if count == "one" else int(random.integers(7, 10))
    for x, y in places:
        x, y = x + int(random.integers(-3, 4)), y + int(random.integers(-3, 4))
        box = (x - radius, y - radius, x + radius, y + radius)
        if shape == "disc":
            pen.ellipse(box, fill, outline, width)
        elif shape == "box":
            pen.rectangle(box, fill, outline, width)
        elif shape == "wedge":
            corners = [(x, y - radius), (x + radius, y + radius), (x - radius, y + radius)]
            pen.polygon(corners, fill, outline, width)
        elif shape == "bar":
            pen.rectangle((x - radius, y - radius // 3, x + radius, y + radius // 3), fill, outline, width)
        elif shape == "cross":
            pen.line((x - radius, y, x + radius, y), ink, radius // 2)
            pen.line((x, y - radius, x, y + radius), ink, radius // 2)
        else:
            pen.ellipse(box, None, ink, max(3, width))
    return np.asarray(image)


class TinyShapes(Dataset):
    """Six images a class in every domain; in train classes the last two of each are held back."""

    card = DatasetCard(
        name="tiny",
        title="Tiny shapes",
        version="v1",
        source="drawn by this test suite",
        licence="MIT",
        gallery_domain="flat",
        headline=RetrievalCut(map_at=None, precision_at=None),
    )
    domain_names: Sequence[str] = DOMAINS
    images = 6

    def __init__(self, root: Path | None = None) -> None:
        super().__init__(root)
        self.decoded = 0

    @cached_property
    def table(self) -> pd.DataFrame:
        rows = [
            {
                "key": f"{domain}/{name}/{number}",
                "class": name,
                "domain": domain,
                "split": split_of(name),
                "held_back": split_of(name) == "train" and number >= self.images - 2,
            }
            for domain in self.domain_names
            for name in CLASSES
            for number in range(self.images)
        ]
        return pd.DataFrame(rows).sort_values("key", ignore_index=True)

    def pixels(self, rows: np.ndarray, size: int) -> Tensor:
        self.decoded += len(rows)
        images = [_image(*_parts(key)) for key in self.table["key"].to_numpy()[rows]]
        pixels = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float().div_(255)
        return torch.nn.functional.interpolate(pixels, (size, size), mode="bilinear", antialias=True).clamp_(0, 1)

    @cached_property
    def content(self) -> Sequence[str]:
        return [hashlib.sha256(_image(*_parts(key)).tobytes()).hexdigest() for key in self.table["key"]]

    @cached_property
    def synsets(self) -> dict[str, str]:
        return {name: f"{name.split('_')[1]}.n.01" for name in CLASSES if "ring" in name or "box" in name}

    @cached_property
    def closed_set(self) -> ClosedSet:
        classes = CLASSES[:6]
        return ClosedSet(
            uda_domains=DOMAINS[:3],
            uda_classes=classes,
            dazsl_pairs=(("line", "flat"),),
            seen=classes[:4],
            unseen=classes[4:],
        )


def _parts(key: str) -> tuple[str, str, int]:
    domain, name, number = key.split("/")
    return name, domain, int(number)


@functools.cache
def _image(name: str, domain: str, number: int) -> np.ndarray:
    return draw(name, domain, number)
