"""Floors: three baselines without learned knowledge: the scores that any method must beat.

``random`` gives each image a random vector, ``constant`` gives all images the same one (every ranking is one tie),
``raw_pixel`` is the image itself, small. A method within noise of these has learned nothing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from methods.cards import read_card
from methods.interface import FitReport, Log, Method, NotApplicableError, TrainingData


class ClassMeans(Method):
    """A floor's class embedding: the mean embedding of the class's training images.

    Learned: ``means`` [C, D] of the C classes with labelled images, whose names are ``names``.
    """

    needs = "features"  # of which it uses none
    trained = False
    fact_names: ClassVar[tuple[str, ...]] = ("names",)
    names: tuple[str, ...] = ()
    means: Tensor

    def fit(self, data: TrainingData, *, seed: int, log: Log) -> FitReport:
        """Average the embeddings of each class's labelled images."""
        self.begin(seed)
        if len(data.images) == 0:
            return FitReport()
        sums: Tensor | None = None
        for index in torch.arange(len(data.images)).split(512):
            embedding = self.encode_images(data.images.pixels(index))
            if sums is None:
                sums = torch.zeros(len(data.class_names), embedding.shape[1], device=self.device)
            sums.index_add_(0, data.labels[index].to(self.device), embedding)
        assert sums is not None
        seen = data.labelled_classes
        self.names = tuple(data.class_names[int(c)] for c in seen)
        self.means = F.normalize(sums[seen], dim=-1)
        return FitReport()

    def begin(self, seed: int) -> None:
        """Take the run's seed before anything is encoded."""

    def encode_classes(self, names: Sequence[str]) -> Tensor:
        """Means of the training images ``[C, D]``.

        Raises :class:`~methods.interface.NotApplicableError` for a class without training images.
        """
        unknown = [name for name in names if name not in self.names]
        if unknown:
            raise NotApplicableError(f"{self.card.name} has no images of {unknown[0]!r} to embed that class with")
        return self.means[[self.names.index(name) for name in names]]

    def logit_scale(self) -> float:
        """1: the logits are the cosines."""
        return 1.0

    def total_parameters(self) -> int:
        """None: the backbone is not used, and class means are statistics."""
        return 0

    def learned_tensors(self) -> Mapping[str, Tensor]:
        """The class means."""
        return {"means": self.means} if self.names else {}

    def prepare_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Room for the class means."""
        if "means" in tensors:
            self.means = torch.empty_like(tensors["means"], device=self.device)


@dataclass(frozen=True)
class RandomConfig:
    """``width``: dimensions of the random vectors."""

    width: int = 64


class RandomEmbedding(ClassMeans):
    """A unit vector drawn for each image from the run's seed and the image's content."""

    card = read_card("random")
    Config = RandomConfig
    fact_names = ("names", "seed")
    seed = 0

    def begin(self, seed: int) -> None:
        """Keep the seed: the vectors depend on it."""
        self.seed = seed

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Random unit vectors ``[B, width]``: a function of the seed and of the image alone."""
        rows = []
        for image in pixels.mul(255).round().to(torch.uint8).cpu().numpy():
            digest = hashlib.sha256(self.seed.to_bytes(8, "little") + image.tobytes()).digest()
            random = np.random.default_rng(int.from_bytes(digest[:8], "little"))
            rows.append(random.standard_normal(self.config.width, dtype=np.float32))
        return F.normalize(torch.from_numpy(np.stack(rows)).to(self.device), dim=-1)


class ConstantEmbedding(ClassMeans):
    """The same unit vector for every image and class."""

    card = read_card("constant")

    def encode_images(self, pixels: Tensor) -> Tensor:
        """``[B, 8]``, all rows equal."""
        return torch.full((len(pixels), 8), 8**-0.5, device=self.device)


@dataclass(frozen=True)
class RawPixelConfig:
    """``side``: images are averaged down to ``side x side`` pixels."""

    side: int = 16


class RawPixel(ClassMeans):
    """Cosine of the images' ink (white is zero), averaged down to ``side x side`` RGB."""

    card = read_card("raw_pixel")
    Config = RawPixelConfig

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Normalised ink ``[B, 3 * side * side]``; a blank image gives a uniform vector."""
        small = F.adaptive_avg_pool2d(1 - pixels.to(self.device), self.config.side).flatten(1)
        return F.normalize(small + 1e-6, dim=-1)
