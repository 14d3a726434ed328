"""LoRA: low-rank adaptation (Hu et al., ICLR 2022) of both CLIP towers, through peft. docs/methods.md, "Baselines".

Idea: a frozen linear map W gets a learned low-rank summand, ``W x + (alpha / r) B A x`` with A [r, in] and B [out, r].
Here W are the query, key, value and output projections of every attention layer of both towers; r = 8, alpha = 16. A
starts at random (Kaiming uniform, as in peft), B at zero, so training starts from CLIP.

Trained: A and B. Texts: ``a photo of a {class}``; the text tower learns, so they are computed at every step. Loss:
cross-entropy over cosine(image, text of every class with labelled images) / tau, Adam 1e-4. Batch size,
epochs and early stop, our choice, are those of CoOp and VPT (docs/methods.md, Baselines).

Speed: the words ``a photo of a`` that all texts begin with are computed once a step, texts are cut at their ends.

Shapes: B images, C classes with labelled images, E embedding width.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from peft import LoraConfig as PeftConfig
from peft import inject_adapter_in_model
from torch import Tensor, nn
from torch.nn import functional as F

from methods.cards import read_card
from methods.interface import FitReport, Log, Method, TrainingData, restore
from methods.parts.augment import PLAIN, Augmentation, augment
from methods.parts.backbone import Backbone, Statistics
from methods.parts.bounds import Bound
from methods.parts.losses import TEMPERATURE, image_text_loss
from methods.parts.parallel import share
from methods.parts.prompt_units import read_image
from methods.parts.prompts import PromptTemplate, encode_prompts
from methods.training.batches import batches, seen_classes
from methods.training.loop import run_single_stage, seeded

_INIT, _BATCHES, _AUGMENT = range(3)  # what a random generator is for

#: The linear maps of an attention layer that are adapted, by CLIPModel's names.
TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")


@dataclass(frozen=True)
class LoRAConfig:
    """Settings of LoRA.

    The method:

    * ``rank``: r of A and B. ``alpha``: the summand is multiplied by alpha / r.
    * ``vision``, ``text``: which towers are adapted (at least one).
    * ``template``: the text of a class, with ``{name}``.
    * ``temperature``: tau of the loss; 0: CLIP's own, 1 / logit scale.
    * ``train_statistics``, ``test_statistics``: pixel normalisation, ``clip``, ``imagenet`` or ``none``.

    Training:

    * ``learning_rate``, ``weight_decay``: of Adam.
    * ``batch_size``, ``epochs``; ``steps``: 0 for the epochs, or the number of optimiser steps.
    * ``validate_every``: steps between validations; 0: once an epoch, or ten times in ``steps``. ``patience``:
      validations without gain before training stops (0: never).
    * ``augment``: random crop, flip and colour jitter.
    * ``fast``: False is the plain path with the same numbers: every text from its start token to its last position, all
      outputs of the last vision block.
    """

    bounds: ClassVar = {"temperature": Bound(low=0)}
    rank: int = 8
    alpha: float = 16.0
    vision: bool = True
    text: bool = True
    template: str = "a photo of a {name}"
    temperature: float = TEMPERATURE
    train_statistics: Statistics = "clip"
    test_statistics: Statistics = "clip"
    learning_rate: float = 1e-4
    weight_decay: float = 0.0
    batch_size: int = 256
    epochs: int = 100
    steps: int = 0
    validate_every: int = 0
    patience: int = 2
    augment: bool = True
    fast: bool = True

    def __post_init__(self) -> None:
        if not (self.vision or self.text):
            raise ValueError("lora: vision and text are both off; leave one tower on")


class LoRA(Method):
    """Low-rank adapters on the attention of both towers."""

    card = read_card("lora")
    Config = LoRAConfig
    one_process = ""
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    ablations: ClassVar[dict[str, dict[str, Any]]] = {
        "vision_only": {"text": False},
        "text_only": {"vision": False},
        "rank_2": {"rank": 2, "alpha": 4.0},
        "rank_32": {"rank": 32, "alpha": 64.0},
        "clip_temperature": {"temperature": 0.0},
    }
    #: The plain path of the same numbers, for tests and timings.
    plain: ClassVar[dict[str, Any]] = {"fast": False}

    config: LoRAConfig
    #: The copy of CLIP that holds the adapters.
    adapted: Backbone | None = None

    @property
    def clip(self) -> Backbone:
        """The adapted copy; raises ``RuntimeError`` before ``fit`` or ``load``."""
        if self.adapted is None:
            raise RuntimeError("lora has learned nothing yet: call fit, or load a checkpoint")
        return self.adapted

    def build(self, seed: int) -> None:
        """A copy of CLIP with untrained adapters: A Kaiming-uniform, B zero."""
        config, generator = self.config, seeded(seed, _INIT)
        towers = "|".join(name for name, on in (("vision_model", config.vision), ("text_model", config.text)) if on)
        pattern = rf"({towers})\..*\.self_attn\.({'|'.join(TARGETS)})"
        self.adapted = self.backbone.clone()
        with torch.random.fork_rng(devices=[]):  # peft draws from the global generator; its draws are replaced below
            peft = PeftConfig(r=config.rank, lora_alpha=config.alpha, target_modules=pattern, lora_dropout=0.0)
            inject_adapter_in_model(peft, self.adapted.model)
        self.adapted.model.eval().requires_grad_(False)
        for name, value in self.trainable().items():
            drawn = torch.zeros(value.shape)
            if ".lora_A." in name:
                nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=generator)
            value.data.copy_(drawn)
            value.requires_grad_(True)

    def trainable(self) -> dict[str, nn.Parameter]:
        """A and B of every adapted map, by peft's names (``....self_attn.q_proj.lora_A.weight``)."""
        named = self.clip.model.named_parameters()
        return {name.replace(".default.", "."): value for name, value in named if ".lora_" in name}

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
        """Train the adapters on the labelled images. Target images and classes without images are not used."""
        config, begun = self.config, time.perf_counter()
        self.build(seed)
        names, labels = seen_classes(data)
        labels = labels.to(self.device)
        prompts = self.prompts(names)
        texts = self.text_features(prompts) if config.fast and not config.text else None
        augmentation = Augmentation() if config.augment else PLAIN
        stream = batches(data, config.batch_size, seeded(seed, _BATCHES), balanced="domain")

        def loss(step: int) -> Tensor:
            index = share(next(stream))
            pixels = augment(data.images.pixels(index), augmentation, seeded(seed, _AUGMENT, step))
            images = self.image_features(self.backbone.normalize(pixels.to(self.device), config.train_statistics))
            known = self.text_features(prompts) if texts is None else texts
            return image_text_loss(images, known, labels[index], temperature=1 / self.logit_scale())

        report = run_single_stage(
            self,
            data,
            log,
            stage="adapters",
            trained=self.trainable(),
            loss=loss,
            images=len(data.images),
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
        return 1 / self.config.temperature if self.config.temperature else self.backbone.logit_scale

    # --- checkpoints ---

    def tensors(self) -> dict[str, Tensor]:
        """The adapters, by peft's names."""
        return {name: value.detach() for name, value in self.trainable().items()}

    def load_tensors(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Put back what :meth:`tensors` gave."""
        if self.adapted is None:
            self.build(seed=0)
        restore(self, self.trainable(), tensors)
