"""Visual prompt tuning (Jia et al., ECCV 2022), shallow and deep. docs/methods.md, "Baselines".

Idea: K learned tokens stand behind the class token of the frozen vision tower,
``[cls + pos_0 ; P_1 ... P_K ; patches + pos_1..]``.

* ``vpt_shallow``: at the input of the tower; the blocks carry them on.
* ``vpt_deep``: at the input of every block; blocks 1..n-1 put fresh prompts in the place of the last block's outputs.

The feature is read at the class token. Trained: the prompts. Texts, ``a photo of a {class}``, are constant and computed
once. Loss: cross-entropy over cosine(image, text of every class with labelled images) / tau. Settings: those that the
ProS release (MIT) runs its VPT baseline with (Adam 1e-3, batch 256, 100 epochs, early stop 2, 10 tokens, shallow). That
baseline also trains the vision projection and divides by CLIP's own temperature: ``variants["official"]``.

Shapes: B images, C classes with labelled images, K prompts, n blocks, w vision width, E embedding width.
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
from methods.parts.losses import TEMPERATURE, image_text_loss
from methods.parts.parallel import share
from methods.parts.prompt_units import new_units, prompted_tokens
from methods.parts.prompts import PromptTemplate, encode_prompts
from methods.training.batches import Sampler, domain_batches, epoch_images, seen_classes
from methods.training.loop import run_single_stage, seeded

_INIT, _BATCHES, _AUGMENT = range(3)  # what a random generator is for


@dataclass(frozen=True)
class VPTConfig:
    """Settings of visual prompt tuning.

    The method:

    * ``prompt_tokens``: K, learned tokens at the input of a block.
    * ``template``: the text of a class, with ``{name}``.
    * ``temperature``: tau of the loss; 0: CLIP's own, 1 / logit scale (released).
    * ``train_projection``: the vision projection is trained too (released).
    * ``train_statistics``, ``test_statistics``: pixel normalisation, ``clip``, ``imagenet`` (released: in training) or
      ``none``.

    Training:

    * ``learning_rate``, ``weight_decay``: of Adam.
    * ``schedule``: of the learning rate, ``constant``, or ``released``: times 10^(-3 epoch / 20), at least 1e-6.
    * ``batch_size``, ``epochs``; ``steps``: 0 for the epochs, or the number of optimiser steps.
    * ``sampler``: batches balanced over domains, ``reshuffled``, or ``released``: one order for all seeds and epochs.
    * ``validate_every``: steps between validations; 0: once an epoch, or ten times in ``steps``. ``patience``:
      validations without gain before training stops (0: never).
    * ``augment``: random crop, flip and colour jitter.
    * ``fast``: False is the plain path with the same numbers: texts at every step, all outputs of the last block.
    """

    bounds: ClassVar = {"temperature": Bound(low=0)}
    prompt_tokens: int = 10
    template: str = "a photo of a {name}"
    temperature: float = TEMPERATURE
    train_projection: bool = False
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
    augment: bool = True
    fast: bool = True

    def __post_init__(self) -> None:
        if self.prompt_tokens < 1:
            raise ValueError(f"vpt: prompt_tokens is {self.prompt_tokens}; without prompts it is zero_shot")


class VPTShallow(Method):
    """Learned tokens at the input of the frozen vision tower."""

    card = read_card("vpt_shallow")
    Config = VPTConfig
    one_process = ""
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "official": {
            "temperature": 0.0,
            "train_projection": True,
            "train_statistics": "imagenet",
            "schedule": "released",
            "sampler": "released",
        }
    }
    ablations: ClassVar[dict[str, dict[str, Any]]] = {
        "prompt_tokens_1": {"prompt_tokens": 1},
        "prompt_tokens_50": {"prompt_tokens": 50},
        "train_projection": {"train_projection": True},
        "clip_temperature": {"temperature": 0.0},
        "not_augmented": {"augment": False},
    }
    #: The plain path of the same numbers, for tests and timings.
    plain: ClassVar[dict[str, Any]] = {"fast": False}
    #: Fresh prompts at every block (:class:`VPTDeep`).
    deep: ClassVar[bool] = False

    config: VPTConfig
    #: ``prompts`` [K, w]; deep: ``deep_prompts`` [n-1, K, w]; with ``train_projection``: ``visual_projection.weight``.
    learned: dict[str, nn.Parameter] | None = None

    def build(self, seed: int) -> None:
        """Untrained prompts, uniform in [-v, v] with v = sqrt(6 / (3 p^2 + w)); the projection as CLIP has it."""
        backbone, tokens, generator = self.backbone, self.config.prompt_tokens, seeded(seed, _INIT)
        self.learned = {"prompts": nn.Parameter(new_units(tokens, backbone, generator))}
        if self.deep:
            later = backbone.vision_layers - 1
            deep = new_units(later * tokens, backbone, generator).view(later, tokens, -1)
            self.learned["deep_prompts"] = nn.Parameter(deep)
        if self.config.train_projection:
            self.learned["visual_projection.weight"] = nn.Parameter(backbone.vision_projection.detach().clone())

    def trainable(self) -> dict[str, nn.Parameter]:
        """What is trained, by name; raises ``RuntimeError`` before ``fit`` or ``load``."""
        if self.learned is None:
            raise RuntimeError(f"{self.card.name} has learned nothing yet: call fit, or load a checkpoint")
        return self.learned

    def image_features(self, pixels: Tensor) -> Tensor:
        """``[cls ; prompts ; patches]`` through the frozen tower, read at the class token -> [B, E], not normalised."""
        own, backbone = self.trainable(), self.backbone
        tokens = prompted_tokens(backbone, pixels, own["prompts"])  # [B, 1+K+P, w]
        deep = own.get("deep_prompts")
        if self.config.fast:
            read = backbone.run_vision(tokens, deep_prompts=deep, read=0)
        else:
            read = backbone.run_vision(tokens, deep_prompts=deep)[:, 0]
        return backbone.readout(read, projection=own.get("visual_projection.weight"))

    @torch.no_grad()
    def text_features(self, names: Sequence[str]) -> Tensor:
        """Normalised text features [C, E] of frozen CLIP."""
        prompts = PromptTemplate.build(self.backbone, names, self.config.template)
        fast = self.config.fast
        return F.normalize(encode_prompts(self.backbone, prompts, shared_prefix=fast, cut=fast), dim=-1)

    # --- training ---

    def fit(self, data: TrainingData, *, seed: int, log: Log) -> FitReport:
        """Learn the prompts from the labelled images. Target images and classes without images are not used."""
        config, begun = self.config, time.perf_counter()
        self.build(seed)
        names, labels = seen_classes(data)
        labels = labels.to(self.device)
        texts = self.text_features(names) if config.fast else None
        augmentation = Augmentation() if config.augment else PLAIN
        stream = domain_batches(data, config.batch_size, seeded(seed, _BATCHES), config.sampler)

        def loss(step: int) -> Tensor:
            index = share(next(stream))
            pixels = augment(data.images.pixels(index), augmentation, seeded(seed, _AUGMENT, step))
            images = self.image_features(self.backbone.normalize(pixels.to(self.device), config.train_statistics))
            known = self.text_features(names) if texts is None else texts
            return image_text_loss(images, known, labels[index], temperature=1 / self.logit_scale())

        def rate(epoch: int) -> float:
            return decayed_rate(config.learning_rate, epoch)

        report = run_single_stage(
            self,
            data,
            log,
            stage="visual prompts",
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

    def encode_classes(self, names: Sequence[str]) -> Tensor:
        """Normalised CLIP text features ``[C, E]`` of any class names."""
        return self.text_features(names)

    def logit_scale(self) -> float:
        """1 / tau, as in training."""
        return 1 / self.config.temperature if self.config.temperature else self.backbone.logit_scale

    # --- checkpoints ---

    def tensors(self) -> dict[str, Tensor]:
        """The prompts; a trained projection bears CLIPModel's name."""
        return {name: value.detach() for name, value in self.trainable().items()}

    def load_tensors(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Put back what :meth:`tensors` gave."""
        if self.learned is None:
            self.build(seed=0)
        restore(self, self.trainable(), tensors)


class VPTDeep(VPTShallow):
    """Learned tokens at the input of every block of the frozen vision tower; all else as :class:`VPTShallow`."""

    card = read_card("vpt_deep")
    deep = True
