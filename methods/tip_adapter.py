"""Tip-Adapter: training-free adaption of CLIP for few-shot classification (Zhang et al., ECCV 2022).
docs/methods.md, Baselines.

Idea: a few labelled images of each class are kept as a *cache*, their CLIP features as keys and their classes as
values. An image asks the cache and CLIP's texts, and the two answers are added:

    F [M, E]  unit features of M cached images (mean over augmented views, then normalised), L [M, C] their classes
    phi(a)    = exp(-beta (1 - a))                       affinity of a cosine a
    logits(x) = alpha phi(f F^T) L + s f G^T             f the unit image feature, G the unit texts, s CLIP's scale

* ``tip_adapter``: nothing is trained.
* ``tip_adapter_f``: the keys F are trained, from there on, with the cross-entropy of the logits over the classes that
  have labelled images (AdamW, cosine over the epochs); values and texts stay.

alpha 1 and beta 5.5 are the paper's; ``search`` tries others on the validation task, as the paper does for each data
set. The cache holds ``shots`` images a class, 16 as in the paper's largest setting, drawn by the run's seed.

Extensions: a class without cached images gets no votes, so that its logit is CLIP's. Images and classes are embedded by
frozen CLIP: the paper defines no other embedding, and a *retrieval* by images alone scores what zero-shot CLIP scores.

Shapes: B images, M cached images, C classes, E embedding width.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.cards import read_card
from methods.interface import FitReport, Log, TrainingData
from methods.parts.augment import PLAIN, Augmentation, augment
from methods.parts.backbone import Statistics
from methods.parts.bounds import Bound
from methods.parts.losses import cosine_similarities
from methods.training.batches import batches, few_shots, restricted, seen_classes
from methods.training.image_text import ImageTextMethod
from methods.training.loop import check_processes, seeded

#: Images of the cache that are encoded at a time.
CACHE_BATCH = 64

#: What ``search`` tries, in this order.
ALPHAS, BETAS = (1.0, 0.1, 0.5, 2.0, 3.0), (5.5, 1.0, 2.5, 4.0, 7.0)


def cache_logits(images: Tensor, keys: Tensor, values: Tensor, *, beta: float) -> Tensor:
    """phi(f F^T) L: unit images [B, E], keys [M, E], values [M, C] -> [B, C]."""
    return (-beta * (1 - images @ keys.T)).exp() @ values


@dataclass(frozen=True)
class TipAdapterConfig:
    """Settings of Tip-Adapter."""

    bounds: ClassVar = {
        "shots": Bound(low=0),
        "views": Bound(low=0),
        "alpha": Bound(low=0),
        "beta": Bound(above=0),
        "temperature": Bound(low=0),
    }
    shots: int = 16  # cached images of a class, evenly over its domains; 0: all
    views: int = 10  # augmented views of a cached image, whose features are averaged; 0: the image as it is
    alpha: float = 1.0  # weight of the cache; official: 1.17
    beta: float = 5.5  # sharpness of the affinity; official: 1
    search: bool = False  # alpha and beta are chosen on the validation task, from 5 values each; official: True
    template: str = "a photo of a {name}."  # the text of a class, with ``{name}``
    temperature: float = 0.0  # 1 / s; 0: CLIP's own, 1 / logit scale
    train_statistics: Statistics = "clip"  # pixel normalisation in training: clip, imagenet or none
    test_statistics: Statistics = "clip"  # pixel normalisation at test
    crop: float = 0.5  # smallest share of an image that a random crop keeps; 1: no crop
    flip: bool = True  # random horizontal flips
    fast: bool = True  # the exact speed-ups of docs/methods.md; False: the plain path, with the same numbers

    @property
    def augmentation(self) -> Augmentation:
        """The augmentation of the cached images' views."""
        return Augmentation(self.crop, self.flip, 0.0) if self.views else PLAIN


class TipAdapter(ImageTextMethod):
    """A cache of a few labelled images beside frozen CLIP; nothing is trained."""

    card = read_card("tip_adapter")
    Config: ClassVar[type] = TipAdapterConfig
    stage = "cache"
    needs = "features"
    trained = False
    one_process = "its cache is drawn once"
    fact_names = ("class_names", "cached_classes", "alpha", "beta")
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {"official": {"alpha": 1.17, "beta": 1.0, "search": True}}
    ablations: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "shots_1": {"shots": 1},
        "shots_4": {"shots": 4},
        "no_views": {"views": 0},
        "no_cache": {"alpha": 0.0},
        "searched": {"search": True},
    }

    class_names: tuple[str, ...] = ()  # the C classes with cached images
    cached_classes: tuple[int, ...] = ()  # the class of each of the M cached images, a number into ``class_names``
    alpha: float = 1.0  # those in use: the config's, or what the search found
    beta: float = 5.5

    # --- the cache ---

    @property
    def keys(self) -> Tensor:
        """F [M, E]; raises :class:`~methods.interface.NotFittedError` before ``fit`` or ``load``."""
        return self.trainable()["keys"]

    def values(self, names: Sequence[str]) -> Tensor:
        """L [M, C] of these class names: 1 where a cached image is of the class."""
        numbers = {name: number for number, name in enumerate(names)}
        rows = torch.tensor([numbers.get(name, -1) for name in self.class_names])[list(self.cached_classes)]
        return (rows[:, None] == torch.arange(len(names))).float().to(self.device, non_blocking=True)

    @torch.no_grad()
    def cache(self, data: TrainingData, seed: int) -> TrainingData:
        """Fill the cache; gives ``data`` with the cached images alone."""
        config = self.config
        few = few_shots(data.labels, data.domains, config.shots, seeded(seed, 0))
        data = restricted(data, few)
        names, labels = seen_classes(data)
        self.class_names, self.cached_classes = tuple(names), tuple(labels.tolist())
        self.alpha, self.beta = config.alpha, config.beta
        views = config.views if config.augmentation.active else 0
        keys = []
        for number, index in enumerate(torch.arange(len(few)).split(CACHE_BATCH)):
            stored, features = data.images.stored(index).to(self.device), []
            for view in range(max(1, views)):
                seen = augment(stored, config.augmentation if views else PLAIN, seeded(seed, 3, number, view))
                features.append(self.backbone.encode_images(self.backbone.normalize(seen, config.train_statistics)))
            keys.append(F.normalize(torch.stack(features).mean(dim=0), dim=-1))
        self.parameters = {"keys": nn.Parameter(torch.cat(keys), requires_grad=False)}
        return data

    def logits(self, images: Tensor, texts: Tensor, values: Tensor) -> Tensor:
        """alpha phi(f F^T) L + s f G^T: image features [B, E], texts [C, E], values [M, C] -> [B, C]."""
        votes = cache_logits(F.normalize(images, dim=-1), self.keys, values, beta=self.beta)
        return self.alpha * votes + self.logit_scale() * cosine_similarities(images, texts)

    # --- fit ---

    def fit(self, data: TrainingData, *, seed: int, log: Log) -> FitReport:
        """Fill the cache, and search alpha and beta where the config asks for it."""
        start = time.perf_counter()
        check_processes(self)
        self.cache(data, seed)
        self.search(data)
        return FitReport(seconds=time.perf_counter() - start)

    def search(self, data: TrainingData) -> None:
        """With ``search``: the alpha and beta of the best validation score; the config's come first."""
        if not self.config.search or data.select == "last":
            return
        best = data.validate(self), self.alpha, self.beta
        for self.alpha, self.beta in itertools.product(ALPHAS, BETAS):
            score = data.validate(self)
            if score > best[0]:
                best = score, self.alpha, self.beta
        _, self.alpha, self.beta = best

    # --- inference ---

    @property
    def frozen_images(self) -> bool:
        """True."""
        return True

    @torch.no_grad()
    def classify(self, pixels: Tensor, names: Sequence[str]) -> Tensor:
        """Logits ``[B, C]`` over any class names; those without cached images get CLIP's alone."""
        return self.logits(self.encode_raw(pixels), self.text_features(self.prompts(names)), self.values(names))

    # --- state ---

    def build(self, seed: int) -> dict[str, nn.Parameter]:
        """``keys`` [M, E]: those of the cache, or room for a checkpoint's."""
        if self.parameters is None:
            room = torch.empty(len(self.cached_classes), self.backbone.embed_dim, device=self.device)
            return {"keys": nn.Parameter(room, requires_grad=False)}
        return self.parameters

    def prepare_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Room for a checkpoint's keys."""
        if self.parameters is None or len(self.keys) != len(self.cached_classes):
            self.parameters = None
            self.parameters = self.build(seed=0)


@dataclass(frozen=True)
class TipAdapterFConfig(TipAdapterConfig):
    """Settings of Tip-Adapter-F."""

    learning_rate: float = 1e-3  # of AdamW, at the start of the cosine
    weight_decay: float = 0.01  # of AdamW
    batch_size: int = 256  # images a step
    epochs: int = 20  # passes over the cached images
    steps: int = 0  # 0 for the epochs, or the number of optimiser steps
    validate_every: int = 0  # steps between validations; 0: once an epoch, or ten times in ``steps``
    patience: int = 0  # validations without gain before training stops; 0: never
    augment: bool = True  # crops and flips in training; False: neither there nor in the cache, whatever ``views`` is

    @property
    def augmentation(self) -> Augmentation:
        """The augmentation of training images and of the cached images' views."""
        return Augmentation(self.crop, self.flip, 0.0) if self.augment else PLAIN


class TipAdapterF(TipAdapter):
    """:class:`TipAdapter` whose keys are trained."""

    card = read_card("tip_adapter_f")
    Config = TipAdapterFConfig
    stage = "keys"
    trained = True
    ablations: ClassVar[Mapping[str, Mapping[str, Any]]] = {**TipAdapter.ablations, "not_augmented": {"augment": False}}
    config: TipAdapterFConfig

    def optimizer(self) -> torch.optim.Optimizer:
        """AdamW over the keys, with the epsilon of the released code."""
        return torch.optim.AdamW(
            [self.keys], self.config.learning_rate, eps=1e-4, weight_decay=self.config.weight_decay
        )

    def step_rate(self, step: int, steps: int) -> float:
        """A cosine from the learning rate to 0, advanced at each step."""
        return self.config.learning_rate * 0.5 * (1 + math.cos(math.pi * step / steps))

    def batches(self, data: TrainingData, generator: torch.Generator) -> Iterator[Tensor]:
        """Endless index batches: all cached images, shuffled anew each epoch."""
        return batches(data, self.config.batch_size, generator)

    def loss(self, images: Tensor, texts: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy of the logits over the classes with cached images: [B, E], texts [C, E], labels [B]."""
        return F.cross_entropy(self.logits(images, texts, self.values(self.class_names)), labels)

    def fit(self, data: TrainingData, *, seed: int, log: Log) -> FitReport:
        """Fill the cache, train its keys, then search alpha and beta where the config asks for it."""
        start = time.perf_counter()
        check_processes(self)
        few = self.cache(data, seed)
        report = ImageTextMethod.fit(self, few, seed=seed, log=log)
        self.keys.requires_grad_(False)
        self.search(data)
        report.seconds = time.perf_counter() - start
        return report
