"""Training in two stages, as in ProS and UCDR-Adapter: budgets, batches, freezing and the loop, written once.

Stage 1 learns prompts of the training domains and classes; stage 2 learns to make the prompts of new images. Both use
Adam and batches balanced over the domains. The learning rate is fixed in stage 1 and 10^(-3 epoch / 20) times its start
in stage 2 (docs/methods.md, ProS).

B images in a batch, N labelled images, E embedding width.
"""

from __future__ import annotations

import math
import time
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.interface import FitReport, Log, Method, TrainingData
from methods.official.pros_release import decayed_rate
from methods.parts.augment import augment
from methods.parts.feeding import Feed, feed
from methods.parts.parallel import share
from methods.training.batches import domain_batches, epoch_images, seen_classes
from methods.training.loop import budget, count_parameters, run_stage, seeded


@dataclass(frozen=True)
class Stage:
    """One of the two stages."""

    number: int  # 1 or 2
    name: str  # of the stage in logs and loss curves
    epochs: int  # if the run sets no number of steps; the learning rate of stage 2 changes this often
    batch_size: int
    learning_rate: float  # at the start
    validations: int  # validation scores if this is the last stage, spread evenly over its steps

    def rate(self, step: int, steps: int) -> float:
        """Learning rate at a step (from 0) of the stage's ``steps``."""
        return self.learning_rate if self.number == 1 else decayed_rate(self.learning_rate, step * self.epochs // steps)


@dataclass(frozen=True)
class Batch:
    """The images of a training step; of several processes that train together, this one's share of them."""

    step: int  # of the stage, from 0
    size: int  # images of the whole batch, in all processes
    index: Tensor  # [B] into the training images
    pixels: Tensor  # [B, 3, H, W], augmented and normalised
    domains: Tensor  # [B], numbers of the domains that have training images
    classes: Tensor  # [B], numbers of the classes that have training images


class TwoStageMethod(Method):
    """A method that is trained in two stages; target images are not used.

    Subclasses describe the stages (:meth:`stages`), the parts that are trained (:meth:`build`, :meth:`parameters`,
    :meth:`stage_parameters`) and the loss of a batch (:meth:`stage_loss`). Their ``Config`` has the fields
    ``steps``, ``stage1_share``, ``batch_size``, ``sampler``, ``train_statistics``, ``validate_every``, ``patience``,
    ``temperature`` and the property ``augmentation``.
    """

    one_process = ""
    reads_target = False
    fact_names = ("class_names", "domain_names")
    random_batches: ClassVar[int]  # numbers of the random generators of batches and augmentation
    random_augment: ClassVar[int]
    class_names: tuple[str, ...] = ()  # classes and domains with training images, in the order of their prompts
    domain_names: tuple[str, ...] = ()

    @abstractmethod
    def stages(self) -> list[Stage]:
        """The stages that this config runs, in order."""

    @abstractmethod
    def build(self, class_names: Sequence[str], domain_names: Sequence[str], *, seed: int) -> None:
        """Make the untrained parts for these training classes and domains; keep the names as facts."""

    @abstractmethod
    def parameters(self) -> Mapping[str, nn.Parameter]:
        """All parameters that a stage may train, by name."""

    @abstractmethod
    def stage_parameters(self, stage: int) -> dict[str, nn.Parameter]:
        """The parameters that a stage trains, by name."""

    @abstractmethod
    def stage_loss(self, stage: int, data: TrainingData, seed: int) -> Callable[[Batch], Tensor]:
        """The function from a batch to the stage's loss; called as the stage starts, so it may compute constants."""

    def stage_steps(self, data: TrainingData) -> dict[int, int]:
        """Optimiser steps of the stages that run: their epochs, or shares of the config's ``steps``."""
        config, stages = self.config, self.stages()
        images = epoch_images(data, config.sampler, config.batch_size)
        if config.steps > 0 and len(stages) == 2:
            first = min(max(1, round(config.stage1_share * config.steps)), config.steps - 1)
            shares = {1: first, 2: config.steps - first}
            return {number: steps for number, steps in shares.items() if steps > 0}
        return {stage.number: budget(config.steps, stage.epochs, images, stage.batch_size) for stage in stages}

    def trainable(self, stage: int) -> dict[str, nn.Parameter]:
        """:meth:`stage_parameters`, set to require gradients; all other parameters are frozen."""
        chosen = self.stage_parameters(stage)
        for parameter in self.parameters().values():
            parameter.requires_grad_(False)
        for parameter in chosen.values():
            parameter.requires_grad_(True)
        return chosen

    def optimizer(self, stage: int) -> torch.optim.Optimizer:
        """A new Adam (0.9, 0.999, no weight decay) over what the stage trains; everything else is frozen."""
        rates = {each.number: each.learning_rate for each in self.stages()}
        return torch.optim.Adam(self.trainable(stage).values(), lr=rates[stage])

    def fit(self, data: TrainingData, *, seed: int, log: Log) -> FitReport:
        """Stage 1, then stage 2. Classes and domains without labelled images get no prompt."""
        config, report, start = self.config, FitReport(), time.perf_counter()
        class_names, classes = seen_classes(data)
        present, domains = torch.unique(data.domains, return_inverse=True)
        self.build(class_names, [data.domain_names[int(number)] for number in present], seed=seed)
        trained: dict[str, nn.Parameter] = {}
        steps = self.stage_steps(data)
        for stage in self.stages():
            number = stage.number
            if number not in steps:
                continue
            optimizer = self.optimizer(number)
            trained |= self.stage_parameters(number)
            batch_loss = self.stage_loss(number, data, seed)
            generator = seeded(seed, self.random_batches, number)
            stream = domain_batches(data, stage.batch_size, generator, config.sampler, round_size=config.batch_size)
            fed = feed(islice(stream, steps[number]), lambda whole: (data.images.stored(share(whole)),), self.device)

            def loss(
                step: int,
                number: int = number,
                fed: Feed[Tensor] = fed,
                batch_loss: Callable[[Batch], Tensor] = batch_loss,
            ) -> Tensor:
                whole, (pixels,) = next(fed)
                index = share(whole)
                pixels = augment(pixels, config.augmentation, seeded(seed, self.random_augment, number, step))
                pixels = self.backbone.normalize(pixels, config.train_statistics)
                numbers = (part[index].to(self.device, non_blocking=True) for part in (domains, classes))
                return batch_loss(Batch(step, len(whole), index, pixels, *numbers))

            def rate(step: int, stage: Stage = stage) -> float:
                return stage.rate(step, steps[stage.number])

            every = config.validate_every or math.ceil(steps[number] / stage.validations)
            with closing(fed):
                run_stage(
                    self,
                    data,
                    report,
                    log,
                    stage=stage.name,
                    steps=steps[number],
                    optimizers=[optimizer],
                    loss=loss,
                    learning_rate=rate,
                    validate_every=every if number == max(steps) else 0,
                    patience=config.patience,
                )
        for parameter in self.parameters().values():
            parameter.requires_grad_(False)
        report.trainable_parameters = count_parameters(trained)
        report.seconds = time.perf_counter() - start
        return report

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Normalised image features [B, E]: no labels, no texts, nothing masked."""
        return F.normalize(self.encode_raw(pixels), dim=-1)

    def logit_scale(self) -> float:
        """1 / tau, as in training."""
        return float(1.0 / self.config.temperature)
