"""Training on labelled images and unlabelled images of another domain, side by side: the base of CMKD and PDA.

A batch is B labelled images and as many *target* images: those that the protocol shows or, where it shows none, the
images of another training domain, whose labels are not read. The two domains of such a batch are drawn anew for each.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from methods.interface import FitReport, Log, TrainingData
from methods.parts.augment import augment
from methods.parts.feeding import Feed, feed
from methods.training.batches import batches, domain_pairs, target_batches
from methods.training.image_text import ImageTextMethod, Prompts, TrainingBatch
from methods.training.loop import budget, seeded

_TARGET_BATCHES, _TARGET_AUGMENT = 3, 4  # what a random generator is for, beside ``seed_parts``


class AdaptationMethod(ImageTextMethod):
    """A method whose loss is of labelled images and of target images (:meth:`adaptation_loss`)."""

    one_process = "its loss compares the images of a batch"
    reads_target = True
    #: While it trains: the pixels of a step's target images, None where they are in the batch; and all its steps.
    _target: Callable[[int], Tensor] | None = None
    _target_feed: Feed[Tensor] | None = None
    _steps: int = 0

    @abstractmethod
    def adaptation_loss(
        self, source: Tensor, labels: Tensor, target: Tensor, prompts: Prompts, fixed_texts: Tensor | None, *, step: int
    ) -> Tensor:
        """The loss of normalised pixels of labelled images [B, 3, H, W], ``labels`` [B], and of target images."""

    def fit(self, data: TrainingData, *, seed: int, log: Log) -> FitReport:
        """Train on labelled images and target images."""
        config = self.config
        self._steps = budget(config.steps, config.epochs, len(data.images), config.batch_size)
        try:
            return super().fit(data, seed=seed, log=log)
        finally:
            if self._target_feed is not None:
                self._target_feed.close()
            self._target = self._target_feed = None

    def begin(self, data: TrainingData, seed: int) -> None:
        """Start the stream of target images, where the protocol shows any."""
        if not data.has_target:
            return
        images, config, augmentation = data.target, self.config, self.config.augmentation
        stream = target_batches(len(images), config.batch_size, seeded(seed, _TARGET_BATCHES))
        self._target_feed = fed = feed(stream, lambda index: (images.stored(index),), self.device)

        def pixels(step: int) -> Tensor:
            _, (stored,) = next(fed)
            seen = augment(stored, augmentation, seeded(seed, _TARGET_AUGMENT, step))
            return self.backbone.normalize(seen, config.train_statistics)

        self._target = pixels

    def batches(self, data: TrainingData, generator: torch.Generator) -> Iterator[Tensor]:
        """Endless index batches: all labelled images, shuffled anew each epoch; without target images, the images of
        one training domain and then as many of another."""
        if data.has_target:
            yield from batches(data, self.config.batch_size, generator)
        for first, second in domain_pairs(data.domains, self.config.batch_size, generator):
            count = min(len(first), len(second))
            yield torch.cat([first[:count], second[:count]])

    def batch_loss(self, batch: TrainingBatch, prompts: Prompts, fixed_texts: Tensor | None) -> Tensor:
        """:meth:`adaptation_loss` of a batch."""
        assert batch.pixels is not None
        source, labels = batch.pixels, batch.labels
        if self._target is not None:
            target = self._target(batch.step)
        else:
            (source, target), labels = source.chunk(2), labels.chunk(2)[0]
        return self.adaptation_loss(source, labels, target, prompts, fixed_texts, step=batch.step)
