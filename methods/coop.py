"""CoOp: learning to prompt for vision-language models (Zhou et al., IJCV 2022). docs/methods.md, "Baselines".

Idea: the words before a class name are learned vectors, ``X_1 ... X_16 {class}.``, the same for all classes. Everything
else is CLIP as it is: images are embedded by the frozen vision tower, so a *retrieval* by images alone scores
exactly what zero-shot CLIP scores; only class embeddings, and what is classified with them, change.

Trained: the context. Loss: cross-entropy over cosine(image, text of every class with labelled images) / tau.
Settings: those that the ProS release (MIT) runs its CoOp baseline with (Adam 1e-3, batch 256, 100 epochs, early stop 2,
16 context tokens). That baseline also trains both projections and divides by CLIP's own temperature:
``variants["official"]``.

Speed: frozen image features are computed once and cached where images are not augmented, so a step is the text side
alone, and the 17 leading positions that all classes share are computed once a step.

Shapes: B images, C classes with labelled images, m context tokens, w vision width, v text width, E embedding width.
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
from methods.interface import FitReport, Log, Method, TrainingData, restore
from methods.official.pros_release import decayed_rate
from methods.parts.augment import PLAIN, Augmentation, augment
from methods.parts.backbone import Statistics
from methods.parts.bounds import Bound
from methods.parts.feature_cache import image_features
from methods.parts.losses import TEMPERATURE, image_text_loss
from methods.parts.parallel import share
from methods.parts.prompt_units import new_context
from methods.parts.prompts import PromptTemplate, encode_prompts
from methods.training.batches import Sampler, domain_batches, epoch_images, seen_classes
from methods.training.loop import run_single_stage, seeded

_INIT, _BATCHES, _AUGMENT = range(3)  # what a random generator is for


@dataclass(frozen=True)
class CoOpConfig:
    """Settings of CoOp.

    The method:

    * ``context_tokens``: m, learned vectors before the class name, shared by all classes.
    * ``template``: the text of a class, with ``{context}`` and ``{name}``.
    * ``temperature``: tau of the loss; 0: CLIP's own, 1 / logit scale (released).
    * ``train_projections``: both projections are trained too (released).
    * ``train_statistics``, ``test_statistics``: pixel normalisation, ``clip``, ``imagenet`` (released: in training) or
      ``none``.

    Training:

    * ``learning_rate``, ``weight_decay``: of Adam.
    * ``schedule``: of the learning rate, ``constant``, or ``released``: times 10^(-3 epoch / 20), at least 1e-6.
    * ``batch_size``, ``epochs``; ``steps``: 0 for the epochs, or the number of optimiser steps.
    * ``sampler``: batches balanced over domains, ``reshuffled``, or ``released``: one order for all seeds and epochs.
    * ``validate_every``: steps between validations; 0: once an epoch, or ten times in ``steps``. ``patience``:
      validations without gain before training stops (0: never).
    * ``augment``: random crop, flip and colour jitter (released). Without it image features are cached.
    * ``fast``: False is the plain path with the same numbers: images at every step, every class from its start token.
    """

    bounds: ClassVar = {"temperature": Bound(low=0)}
    context_tokens: int = 16
    template: str = "{context} {name}."
    temperature: float = TEMPERATURE
    train_projections: bool = False
    train_statistics: Statistics = "clip"
    test_statistics: Statistics = "clip"
    learning_rate: float = 1e-3
    weight_decay: float = 0.0
    schedule: Literal["constant", "released"] = "constant"
    batch_size: int = 256
    epochs: int = 100
    steps: int = 0
    sampler: Sampler = "reshuffled"
    validate_every: int = 0
    patience: int = 2
    augment: bool = False
    fast: bool = True


class CoOp(Method):
    """Learned context before the class name; frozen CLIP images."""

    card = read_card("coop")
    Config = CoOpConfig
    one_process = ""
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "official": {
            "temperature": 0.0,
            "train_projections": True,
            "train_statistics": "imagenet",
            "schedule": "released",
            "sampler": "released",
            "augment": True,
        }
    }
    ablations: ClassVar[dict[str, dict[str, Any]]] = {
        "context_4": {"context_tokens": 4},
        "train_projections": {"train_projections": True},
        "clip_temperature": {"temperature": 0.0},
        "augmented": {"augment": True},
    }
    #: The plain path of the same numbers, for tests and timings.
    plain: ClassVar[dict[str, Any]] = {"fast": False}

    config: CoOpConfig
    #: ``context`` [m, v]; with ``train_projections`` also CLIP's two projections by CLIPModel's names.
    learned: dict[str, nn.Parameter] | None = None

    def build(self, seed: int) -> None:
        """Untrained parameters: context from N(0, 0.02^2), projections as CLIP has them."""
        context = new_context(self.config.context_tokens, self.backbone, seeded(seed, _INIT))
        self.learned = {"context": nn.Parameter(context)}
        if self.config.train_projections:
            for name in ("visual_projection.weight", "text_projection.weight"):
                weight = self.backbone.model.get_parameter(name).detach().clone()
                self.learned[name] = nn.Parameter(weight)

    def trainable(self) -> dict[str, nn.Parameter]:
        """What is trained, by name; raises ``RuntimeError`` before ``fit`` or ``load``."""
        if self.learned is None:
            raise RuntimeError("coop has learned nothing yet: call fit, or load a checkpoint")
        return self.learned

    def prompts(self, names: Sequence[str]) -> PromptTemplate:
        """The classes' texts; raises BackboneError if one exceeds the backbone's context length."""
        return PromptTemplate.build(self.backbone, names, self.config.template, self.config.context_tokens)

    def text_features(self, prompts: PromptTemplate) -> Tensor:
        """Text features [C, E] with the learned context, not normalised."""
        own, fast = self.trainable(), self.config.fast
        projection = own.get("text_projection.weight")
        return encode_prompts(
            self.backbone, prompts, own["context"], projection=projection, shared_prefix=fast, cut=fast
        )

    def image_features(self, pixels: Tensor) -> Tensor:
        """Image features [B, E] of normalised pixels, not normalised: frozen CLIP's, through the projection in use."""
        with torch.no_grad():
            tokens = self.backbone.run_vision(self.backbone.image_tokens(pixels), read=0)
        return self.backbone.readout(tokens, projection=self.trainable().get("visual_projection.weight"))

    # --- training ---

    def fit(self, data: TrainingData, *, seed: int, log: Log) -> FitReport:
        """Learn the context from the labelled images. Target images and classes without images are not used."""
        config, begun = self.config, time.perf_counter()
        self.build(seed)
        names, labels = seen_classes(data)
        labels = labels.to(self.device)
        prompts = self.prompts(names)
        augmentation = Augmentation() if config.augment else PLAIN
        stream = domain_batches(data, config.batch_size, seeded(seed, _BATCHES), config.sampler)

        known = None
        if config.fast and not augmentation.active and not config.train_projections:
            known = image_features(self.backbone, data.images, statistics=config.train_statistics).to(self.device)

        def loss(step: int) -> Tensor:
            index = share(next(stream))
            if known is not None:
                images = known[index]
            else:
                pixels = augment(data.images.pixels(index), augmentation, seeded(seed, _AUGMENT, step))
                images = self.image_features(self.backbone.normalize(pixels.to(self.device), config.train_statistics))
            return image_text_loss(
                images, self.text_features(prompts), labels[index], temperature=1 / self.logit_scale()
            )

        def rate(epoch: int) -> float:
            return decayed_rate(config.learning_rate, epoch)

        report = run_single_stage(
            self,
            data,
            log,
            stage="context",
            trained=self.trainable(),
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
        """Normalised text features ``[C, E]`` of any class names with the learned context."""
        return F.normalize(self.text_features(self.prompts(names)), dim=-1)

    def logit_scale(self) -> float:
        """1 / tau, as in training."""
        return 1 / self.config.temperature if self.config.temperature else self.backbone.logit_scale

    # --- checkpoints ---

    def tensors(self) -> dict[str, Tensor]:
        """The context; trained projections bear CLIPModel's names."""
        return {name: value.detach() for name, value in self.trainable().items()}

    def load_tensors(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Put back what :meth:`tensors` gave."""
        if self.learned is None:
            self.build(seed=0)
        restore(self, self.trainable(), tensors)
