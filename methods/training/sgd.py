"""Prompt learning as CoOp's successors train it: SGD with momentum, an epoch of warm-up, then a cosine over the epochs.

DAPL, CoCoOp, MaPLe and PromptSRC are trained so (all of them with the Dassl toolbox): plain shuffled batches, a random
resized crop of 8 to 100 % of the image and a random flip, logits scaled by CLIP's own temperature, no early stop.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from methods.interface import TrainingData
from methods.parts.augment import PLAIN, Augmentation
from methods.training.batches import batches
from methods.training.image_text import ImageTextConfig, ImageTextMethod


def warm_cosine(passed: int, rate: float, *, periods: int, warmup: int, warmup_rate: float) -> float:
    """The learning rate when ``passed`` periods (epochs or iterations) are over: ``warmup_rate`` in the first
    ``warmup`` ones, then a cosine that falls from ``rate`` towards 0 in ``periods`` more."""
    if passed < warmup:
        return warmup_rate
    return rate * 0.5 * (1 + math.cos(math.pi * (passed - warmup) / periods))


@dataclass(frozen=True)
class SgdConfig(ImageTextConfig):
    """Settings that all methods trained this way have."""

    temperature: float = 0.0  # tau of the loss; 0: CLIP's own, 1 / logit scale
    learning_rate: float = 2e-3  # of SGD, at the top of the cosine
    momentum: float = 0.9  # of SGD
    weight_decay: float = 5e-4  # of SGD
    warmup_rate: float = 1e-5  # learning rate before the cosine begins
    warmup_epochs: int = 1  # epochs at that rate
    batch_size: int = 4  # images a step
    epochs: int = 5  # passes over the labelled images, over which the cosine falls
    patience: int = 0  # validations without gain before training stops; 0: never
    augment: bool = True  # random crop (8 to 100 % of the image) and flip

    @property
    def augmentation(self) -> Augmentation:
        """The augmentation of training images."""
        return Augmentation(crop=0.08, flip=True, jitter=0.0) if self.augment else PLAIN


class SgdMethod(ImageTextMethod):
    """An :class:`~methods.training.image_text.ImageTextMethod` that is trained this way."""

    config: SgdConfig

    def optimizer(self) -> torch.optim.Optimizer:
        """SGD over what is trained; weight decay is an L2 term of the gradient."""
        config = self.config
        return torch.optim.SGD(
            self.trainable().values(),
            lr=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
        )

    def step_rate(self, step: int, steps: int) -> float:
        """:func:`warm_cosine` in the epochs that have passed: the config's ``epochs``, spread over ``steps``."""
        return self.rate_after(step * self.config.epochs // steps)

    def rate_after(self, passed: int) -> float:
        """The learning rate when so many periods of the schedule are over."""
        config = self.config
        return warm_cosine(
            passed,
            config.learning_rate,
            periods=config.epochs,
            warmup=config.warmup_epochs,
            warmup_rate=config.warmup_rate,
        )

    def batches(self, data: TrainingData, generator: torch.Generator) -> Iterator[Tensor]:
        """Endless index batches: all labelled images, shuffled anew each epoch."""
        return batches(data, self.config.batch_size, generator)
