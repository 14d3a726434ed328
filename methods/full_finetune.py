"""CLIP-Full: the whole vision tower trained with the image-text loss. docs/methods.md, "Baselines".

Nothing is added to CLIP; a copy of its vision tower (blocks, embeddings, LayerNorms, projection) is trained. Texts,
``a photo of a {class}``, are constant and computed once. Loss: cross-entropy over cosine(image, text of every class
with labelled images) / tau. Settings: those that the ProS release (MIT) runs its CLIP-Full baseline with on DomainNet
(Adam 1e-6, weight decay 4e-5, batch 256, 100 epochs, early stop 2; batch 480 and early stop 3 on Sketchy and
TU-Berlin). That baseline trains the text tower and CLIP's temperature as well: ``variants["official"]``.

Shapes: B images, C classes with labelled images, E embedding width.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.cards import read_card
from methods.interface import FitReport, Log, Method, TrainingData
from methods.official.pros_release import decayed_rate
from methods.parts.augment import PLAIN, Augmentation, augment
from methods.parts.backbone import Backbone, Statistics
from methods.parts.bounds import Bound
from methods.parts.losses import TEMPERATURE, cosine_similarities
from methods.parts.parallel import share
from methods.parts.prompt_units import read_image
from methods.parts.prompts import PromptTemplate, encode_prompts
from methods.training.batches import Sampler, domain_batches, epoch_images, seen_classes
from methods.training.loop import run_single_stage, seeded

_BATCHES, _AUGMENT = range(2)  # what a random generator is for

#: The lowest learning rate of the released schedule.
RATE_FLOOR = 1e-8


@dataclass(frozen=True)
class FullFinetuneConfig:
    """Settings of CLIP-Full.

    The method:

    * ``template``: the text of a class, with ``{name}``.
    * ``temperature``: tau of the loss; 0: CLIP's own, 1 / logit scale (released).
    * ``train_text``: the text tower and its projection are trained too, and with ``temperature`` 0 the logit scale
      (released).
    * ``train_statistics``, ``test_statistics``: pixel normalisation, ``clip``, ``imagenet`` (released: in training) or
      ``none``.

    Training:

    * ``learning_rate``, ``weight_decay``: of Adam.
    * ``schedule``: of the learning rate, ``constant``, or ``released``: times 10^(-3 epoch / 20), at least 1e-8.
    * ``batch_size``, ``epochs``; ``steps``: 0 for the epochs, or the number of optimiser steps.
    * ``sampler``: batches balanced over domains, ``reshuffled``, or ``released``: one order for all seeds and epochs.
    * ``validate_every``: steps between validations; 0: once an epoch, or ten times in ``steps``. ``patience``:
      validations without gain before training stops (0: never).
    * ``augment``: random crop, flip and colour jitter.
    * ``fast``: False is the plain path with the same numbers: texts at every step, all outputs of the last block.
    """

    bounds: ClassVar = {"temperature": Bound(low=0)}
    template: str = "a photo of a {name}"
    temperature: float = TEMPERATURE
    train_text: bool = False
    train_statistics: Statistics = "clip"
    test_statistics: Statistics = "clip"
    learning_rate: float = 1e-6
    weight_decay: float = 4e-5
    schedule: Literal["constant", "released"] = "constant"
    batch_size: int = 256
    epochs: int = 100
    steps: int = 0
    sampler: Sampler = "reshuffled"
    validate_every: int = 0
    patience: int = 2
    augment: bool = True
    fast: bool = True


class FullFinetune(Method):
    """CLIP with its vision tower trained."""

    card = read_card("full_finetune")
    Config = FullFinetuneConfig
    one_process = ""
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "official": {
            "temperature": 0.0,
            "train_text": True,
            "train_statistics": "imagenet",
            "schedule": "released",
            "sampler": "released",
        }
    }
    ablations: ClassVar[dict[str, dict[str, Any]]] = {
        "train_text": {"train_text": True},
        "clip_temperature": {"temperature": 0.0},
        "not_augmented": {"augment": False},
    }
    #: The plain path of the same numbers, for tests and timings.
    plain: ClassVar[dict[str, Any]] = {"fast": False}

    config: FullFinetuneConfig
    #: The copy of CLIP whose vision tower is trained.
    tuned: Backbone | None = None

    @property
    def clip(self) -> Backbone:
        """The trained copy; raises ``RuntimeError`` before ``fit`` or ``load``."""
        if self.tuned is None:
            raise RuntimeError("full_finetune has learned nothing yet: call fit, or load a checkpoint")
        return self.tuned

    def trainable(self) -> dict[str, nn.Parameter]:
        """What is trained, by CLIPModel's names."""
        trained = self.clip.vision_parameters()
        if self.config.train_text:
            trained |= self.clip.text_parameters()
            if not self.config.temperature:
                trained["logit_scale"] = self.clip.model.logit_scale
        return trained

    def image_features(self, pixels: Tensor) -> Tensor:
        """Image features [B, E] of normalised pixels, not normalised."""
        return read_image(self.clip, self.clip.image_tokens(pixels), "class_token", plain=not self.config.fast)

    def text_features(self, prompts: PromptTemplate) -> Tensor:
        """Text features [C, E], not normalised."""
        return encode_prompts(self.clip, prompts, shared_prefix=self.config.fast, cut=self.config.fast)

    def prompts(self, names: Sequence[str]) -> PromptTemplate:
        """The classes' texts."""
        return PromptTemplate.build(self.backbone, names, self.config.template)

    # --- training ---

    def fit(self, data: TrainingData, *, seed: int, log: Log) -> FitReport:
        """Train on the labelled images. Target images and classes without labelled images are not used."""
        config, begun = self.config, time.perf_counter()
        self.tuned = self.backbone.clone()
        trained = self.trainable()
        for value in trained.values():
            value.requires_grad_(True)
        names, labels = seen_classes(data)
        labels = labels.to(self.device)
        prompts = self.prompts(names)
        texts = self.text_features(prompts) if config.fast and not config.train_text else None
        augmentation = Augmentation() if config.augment else PLAIN
        stream = domain_batches(data, config.batch_size, seeded(seed, _BATCHES), config.sampler)

        def loss(step: int) -> Tensor:
            index = share(next(stream))
            pixels = augment(data.images.pixels(index), augmentation, seeded(seed, _AUGMENT, step))
            images = self.image_features(self.backbone.normalize(pixels.to(self.device), config.train_statistics))
            known = self.text_features(prompts) if texts is None else texts
            scale = 1 / config.temperature if config.temperature else self.clip.model.logit_scale.exp()
            return F.cross_entropy(scale * cosine_similarities(images, known), labels[index])

        def rate(epoch: int) -> float:
            return decayed_rate(config.learning_rate, epoch, RATE_FLOOR)

        report = run_single_stage(
            self,
            data,
            log,
            stage="vision tower",
            trained=trained,
            loss=loss,
            images=epoch_images(data, config.sampler, config.batch_size),
            rate=rate if config.schedule == "released" else None,
        )
        report.seconds = time.perf_counter() - begun
        return report

    # --- answers ---

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

    def logit_scale(self) -> float:
        """1 / tau, as in training."""
        return 1 / self.config.temperature if self.config.temperature else self.clip.logit_scale

    # --- checkpoints ---

    def tensors(self) -> dict[str, Tensor]:
        """The trained weights by CLIPModel's names."""
        return {name: value.detach() for name, value in self.trainable().items()}

    def load_tensors(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Put back what :meth:`tensors` gave."""
        if self.tuned is None:
            self.tuned = self.backbone.clone()
        if set(tensors) != set(self.trainable()):
            raise ValueError("full_finetune: the checkpoint's tensors do not fit this config and backbone")
        self.clip.load_parameters(tensors)
