"""Methods with the image-text loss that differ in what they train: the base of all trained baselines.

Loss: cross-entropy over cosine(image, text of every class with labelled images) / tau, in batches balanced over
domains, with Adam. A subclass says what is trained (:meth:`ImageTextMethod.build`) and how it changes an image or a
text feature; everything else is here. For instance, LayerNorm tuning is::

    class LnTuning(OwnClipMethod):
        card, Config, stage = read_card("ln_tuning"), ImageTextConfig, "LayerNorms"

        def build(self, seed: int) -> dict[str, nn.Parameter]:
            self.copy = self.backbone.clone()
            return {name: value for name, value in self.copy.vision_parameters().items() if "norm" in name}

Speed: texts that training does not change, and image features that it does not change where images are not augmented,
are computed once. Target images and classes without labelled images are not used.

Shapes: B images, C classes with labelled images, E embedding width.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.interface import FitReport, Log, Method, TrainingData
from methods.official.pros_release import LOWEST_RATE, decayed_rate
from methods.parts.augment import PLAIN, Augmentation, augment
from methods.parts.backbone import Backbone, ClipBackbone, PromptBackbone, Statistics
from methods.parts.bounds import Bound, fill
from methods.parts.feature_cache import image_features
from methods.parts.feeding import feed
from methods.parts.losses import TEMPERATURE, image_text_loss
from methods.parts.parallel import share
from methods.parts.prompt_units import read_image
from methods.parts.prompts import PromptTemplate, class_text, encode_prompts
from methods.training.batches import Sampler, domain_batches, epoch_images, seen_classes
from methods.training.loop import budget, run_single_stage, seeded

#: Texts of C classes: with places for learned context, or the token ids [C, L] of a backbone that offers features.
Prompts = PromptTemplate | Tensor


@dataclass(frozen=True)
class ImageTextConfig:
    """Settings that all methods with the image-text loss have."""

    bounds: ClassVar = {"temperature": Bound(low=0)}
    template: str = "a photo of a {name}"  # the text of a class, with ``{name}``
    temperature: float = TEMPERATURE  # tau of the loss; 0: CLIP's own, 1 / logit scale (released)
    train_statistics: Statistics = "clip"  # pixel normalisation in training: clip, imagenet (released) or none
    test_statistics: Statistics = "clip"  # pixel normalisation at test
    learning_rate: float = 1e-3  # of Adam
    weight_decay: float = 0.0  # of Adam
    batch_size: int = 256  # images a step
    epochs: int = 100  # passes over the labelled images
    steps: int = 0  # 0 for the epochs, or the number of optimiser steps
    validate_every: int = 0  # steps between validations; 0: once an epoch, or ten times in ``steps``
    patience: int = 2  # validations without gain before training stops; 0: never
    augment: bool = True  # random crop, flip and colour jitter
    fast: bool = True  # False: the plain path with the same numbers, everything computed anew at every step

    @property
    def augmentation(self) -> Augmentation:
        """The augmentation of training images."""
        return Augmentation() if self.augment else PLAIN


@dataclass(frozen=True)
class ReleasedConfig(ImageTextConfig):
    """Settings of the baselines that the ProS release has, with the switches to what its code does."""

    schedule: Literal["constant", "released"] = "constant"  # of the learning rate; released: times 10^(-3 epoch / 20)
    sampler: Sampler = "reshuffled"  # of batches; released: one order for all seeds and epochs


@dataclass(frozen=True)
class TrainingBatch:
    """The images of a training step; of several processes that train together, this one's share of them."""

    step: int  # from 0
    index: Tensor  # [B] into the training images
    labels: Tensor  # [B] of them, as :meth:`ImageTextMethod.labelled` numbers the classes
    pixels: Tensor | None  # [B, 3, H, W], augmented and normalised; None where frozen features are known
    features: Tensor | None  # [B, E], frozen features that are known


class ImageTextMethod(Method):
    """A part of CLIP, or something beside it, trained with the image-text loss."""

    one_process = ""
    reads_target = False
    #: Names the training in logs and curves.
    stage: ClassVar[str]
    #: The lowest learning rate of the official schedule (``schedule`` "released").
    lowest_rate: ClassVar[float] = LOWEST_RATE
    #: Numbers that, with the run's seed, seed the batches and the augmentation.
    seed_parts: ClassVar[tuple[int, int]] = (1, 2)
    #: The plain path of the same numbers, for tests and timings.
    plain: ClassVar[Mapping[str, Any]] = {"fast": False}

    #: What is trained, by name; None before ``fit`` or ``load``.
    parameters: dict[str, nn.Parameter] | None = None

    # --- the model and its loss ---

    @abstractmethod
    def build(self, seed: int) -> dict[str, nn.Parameter]:
        """What is trained, by name, before training; sets whatever else the method computes with."""

    def trainable(self) -> dict[str, nn.Parameter]:
        """What is trained, by name; raises :class:`~methods.interface.NotFittedError` before ``fit`` or ``load``."""
        return self.fitted(self.parameters)

    @property
    def clip(self) -> Backbone:
        """The CLIP that encodes: the frozen backbone, or the method's own copy of it."""
        return self.backbone

    @property
    def frozen_images(self) -> bool:
        """Whether training leaves CLIP's image features, the input of :meth:`head`, as they are."""
        return False

    @property
    def frozen_texts(self) -> bool:
        """Whether training leaves the text features as they are."""
        return True

    def head(self, features: Tensor) -> Tensor:
        """What comes behind CLIP's image features [B, E]; default: nothing."""
        return features

    def image_features(self, pixels: Tensor) -> Tensor:
        """Image features [B, E] of normalised pixels [B, 3, H, W], not L2-normalised."""
        clip = self.clip
        if not isinstance(clip, ClipBackbone):
            return self.head(clip.encode_images(pixels))
        tokens = clip.image_tokens(pixels)
        return self.head(read_image(clip, tokens, "class_token", plain=not self.config.fast))

    def prompts(self, names: Sequence[str]) -> Prompts:
        """The classes' texts; raises ``BackboneError`` if one exceeds the backbone's context length."""
        if isinstance(self.backbone, PromptBackbone):
            return PromptTemplate.build(self.backbone, names, self.config.template)
        return self.backbone.tokenize([fill(self.config.template, class_text(name)) for name in names])

    def text_features(self, prompts: Prompts) -> Tensor:
        """Text features [C, E], not L2-normalised."""
        if isinstance(prompts, Tensor):
            return self.clip.encode_ids(prompts)
        assert isinstance(self.clip, PromptBackbone)
        return encode_prompts(self.clip, prompts, shared_prefix=self.config.fast, cut=self.config.fast)

    def loss(self, images: Tensor, texts: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy over cosine / tau: images [B, E], texts [C, E], labels [B] in 0..C-1."""
        return image_text_loss(images, texts, labels, temperature=1 / self.logit_scale())

    def logit_scale(self) -> float:
        """1 / tau."""
        return 1 / self.config.temperature if self.config.temperature else self.clip.logit_scale

    # --- training ---

    def optimizer(self) -> torch.optim.Optimizer:
        """The optimiser of what is trained."""
        parameters, config = self.trainable().values(), self.config
        return torch.optim.Adam(parameters, lr=config.learning_rate, weight_decay=config.weight_decay)

    def step_rate(self, step: int, steps: int) -> float | None:
        """The learning rate of a step (from 0) of all ``steps``; None: as in ``schedule``, else constant."""
        return None

    def labelled(self, data: TrainingData) -> tuple[Sequence[str], Tensor]:
        """The names that training tells apart, and each image's label among them; default: classes with images."""
        return seen_classes(data)

    def begin(self, data: TrainingData, seed: int) -> None:
        """Called as training begins, with untrained parts in place: compute what stays constant. Default: nothing."""

    def batch_loss(self, batch: TrainingBatch, prompts: Prompts, fixed_texts: Tensor | None) -> Tensor:
        """The loss of a batch; ``fixed_texts`` [C, E]: the text features, where training leaves them as they are."""
        images = self.batch_images(batch)
        texts = self.text_features(prompts) if fixed_texts is None else fixed_texts
        return self.loss(images, texts, batch.labels)

    def batch_images(self, batch: TrainingBatch) -> Tensor:
        """Image features [B, E] of a batch, not L2-normalised."""
        if batch.features is not None:
            return self.head(batch.features)
        assert batch.pixels is not None
        return self.image_features(batch.pixels)

    def after_step(self, step: int, steps: int) -> None:
        """Called after each step (from 0) of all ``steps``, before a validation. Default: nothing."""

    def batches(self, data: TrainingData, generator: torch.Generator) -> Iterator[Tensor]:
        """Endless index batches into the labelled images, equal in all processes: balanced over domains."""
        return domain_batches(data, self.config.batch_size, generator, getattr(self.config, "sampler", "reshuffled"))

    def encoded_rows(self, batch: Tensor) -> Tensor:
        """The images of a batch that this process encodes and :meth:`loss` gets; default: its share of them."""
        return share(batch)

    def fit(self, data: TrainingData, *, seed: int, log: Log) -> FitReport:
        """Train on the labelled images."""
        config, start = self.config, time.perf_counter()
        sampler: Sampler = getattr(config, "sampler", "reshuffled")
        batch_part, augment_part = self.seed_parts
        self.parameters = self.build(seed)
        for parameter in self.parameters.values():
            parameter.requires_grad_(True)
        names, labels = self.labelled(data)
        labels = labels.to(self.device)
        prompts = self.prompts(names)
        augmentation = config.augmentation
        self.begin(data, seed)
        images = epoch_images(data, sampler, config.batch_size)
        steps = budget(config.steps, config.epochs, images, config.batch_size)
        stream = map(self.encoded_rows, islice(self.batches(data, seeded(seed, batch_part)), steps))
        fixed_texts = self.text_features(prompts) if config.fast and self.frozen_texts else None
        fixed_images = None
        if config.fast and self.frozen_images and not augmentation.active:
            fixed_images = image_features(self.backbone, data.images, statistics=config.train_statistics)
            fixed_images = fixed_images.to(self.device)
        read = None if fixed_images is not None else lambda index: (data.images.stored(index),)
        fed = feed(stream, read, self.device)

        def loss(step: int) -> Tensor:
            index, stored = next(fed)
            there = index.to(self.device, non_blocking=True)
            pixels = features = None
            if fixed_images is not None:
                features = fixed_images[there]
            else:
                pixels = augment(stored[0], augmentation, seeded(seed, augment_part, step))
                pixels = self.backbone.normalize(pixels, config.train_statistics)
            return self.batch_loss(TrainingBatch(step, index, labels[there], pixels, features), prompts, fixed_texts)

        def rate(epoch: int) -> float:
            return decayed_rate(config.learning_rate, epoch, self.lowest_rate)

        def step_rate(step: int, steps: int) -> float:
            return self.step_rate(step, steps) or 0.0

        with closing(fed):
            report = run_single_stage(
                self,
                data,
                log,
                stage=self.stage,
                trained=self.parameters,
                loss=loss,
                images=images,
                rate=rate if getattr(config, "schedule", "constant") == "released" else None,
                optimizer=self.optimizer(),
                step_rate=None if self.step_rate(0, 1) is None else step_rate,
                after_step=self.after_step,
            )
        report.seconds = time.perf_counter() - start
        return report

    # --- inference ---

    @torch.no_grad()
    def encode_raw(self, pixels: Tensor) -> Tensor:
        """Image features ``[B, E]`` before normalisation."""
        return self.image_features(self.backbone.normalize(pixels.to(self.device), self.config.test_statistics))

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Normalised image features ``[B, E]``."""
        return F.normalize(self.encode_raw(pixels), dim=-1)

    @torch.no_grad()
    def encode_classes(self, names: Sequence[str]) -> Tensor:
        """Normalised text features ``[C, E]`` of any class names."""
        return F.normalize(self.text_features(self.prompts(names)), dim=-1)

    # --- state ---

    def learned_tensors(self) -> Mapping[str, Tensor]:
        """What is trained, by name."""
        return self.trainable()

    def prepare_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Build the parameters if there are none yet."""
        if self.parameters is None:
            self.parameters = self.build(seed=0)


@dataclass(frozen=True)
class LinearMapConfig(ImageTextConfig):
    """Settings of the methods that train a map of CLIP's image features."""

    learning_rate: float = 1e-4  # of Adam. A step moves each of the E x E entries by about the rate, so that n steps
    # turn a row of the identity by up to n sqrt(E) rates: at E = 512 all of it after 440 steps
    augment: bool = False  # random crop, flip and colour jitter; without it image features are computed once


class LinearMapMethod(ImageTextMethod):
    """An :class:`ImageTextMethod` that trains a linear map of CLIP's frozen image features, the identity at first."""

    stage = "linear map"
    needs = "features"
    config: LinearMapConfig

    def build(self, seed: int) -> dict[str, nn.Parameter]:
        """``map`` [E, E], the identity."""
        return {"map": nn.Parameter(torch.eye(self.backbone.embed_dim).to(self.device))}

    @property
    def frozen_images(self) -> bool:
        """True: the map reads frozen features."""
        return True

    def head(self, features: Tensor) -> Tensor:
        """W f of image features f [B, E]."""
        return features @ self.trainable()["map"].T


class OwnClipMethod(ImageTextMethod):
    """An :class:`ImageTextMethod` that trains weights inside its own copy of CLIP."""

    copy: Backbone | None = None

    @property
    def clip(self) -> Backbone:
        """The method's copy; raises :class:`~methods.interface.NotFittedError` before ``fit`` or ``load``."""
        return self.fitted(self.copy)

    @property
    def frozen_texts(self) -> bool:
        """Whether nothing of the text tower is trained."""
        return not any(name.startswith("text_") for name in self.trainable())
