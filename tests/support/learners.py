"""Methods for sweep tests that other processes can import: one that learns, one whose process dies, one that fails."""

from __future__ import annotations

import dataclasses
import os
import signal
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from methods.interface import FitReport, Log, Method, MethodCard, NotApplicableError, TrainingData
from methods.registry import METHODS

#: The folder in which a test leaves word for methods in other processes.
WORD = "UCDR_BENCH_TEST_WORD"


def told(word: str) -> bool:
    """Whether the test left this word."""
    return WORD in os.environ and (Path(os.environ[WORD]) / word).exists()


@dataclass(frozen=True)
class LearnerConfig:
    """``learning_rate``: how far the embedding is moved. ``steps``: a budget."""

    learning_rate: float = 0.5
    steps: int = 3
    centre: bool = False


class Learner(Method):
    """Moves small grey pictures by a random vector that depends on the seed."""

    card = MethodCard("learner", "Learner", "tests", "-", 2026, "", trains="a vector")
    Config = LearnerConfig
    ablations: ClassVar[dict[str, dict[str, Any]]] = {"still": {"learning_rate": 0.0}, "centred": {"centre": True}}

    def fit(self, data: TrainingData, *, seed: int, log: Log) -> FitReport:
        pixels = data.images.pixels(torch.arange(len(data.images)))
        self.shift = self.config.learning_rate * torch.rand(64) + pixels.std()
        self.mean = self.small(pixels).mean(dim=0) if self.config.centre else torch.zeros(64)
        for step in range(self.config.steps):
            log(stage="one", step=step + 1, loss=1.0 / (step + 1))
        score = data.validate(self)
        return FitReport(steps=self.config.steps, trainable_parameters=64, validation=[{"step": 3, "score": score}])

    @staticmethod
    def small(pixels: Tensor) -> Tensor:
        return torch.nn.functional.adaptive_avg_pool2d(1 - pixels, 8).mean(dim=1).flatten(1)

    def encode_images(self, pixels: Tensor) -> Tensor:
        return torch.nn.functional.normalize(self.small(pixels) - self.mean + self.shift, dim=-1)

    def encode_classes(self, names: Sequence[str]) -> Tensor:
        raise NotApplicableError("learner has no classes")


class Mortal(Learner):
    """Its process is killed where ``line`` is held out, as long as the test says so."""

    card = dataclasses.replace(Learner.card, name="mortal")

    def fit(self, data: TrainingData, *, seed: int, log: Log) -> FitReport:
        if "line" not in data.domain_names and told("die"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().fit(data, seed=seed, log=log)


@contextmanager
def learners() -> Iterator[None]:
    """The methods of this file and the tiny data set, registered."""
    from benchmarks.datasets.registry import DATASETS
    from tests.support.tiny_dataset import TinyShapes

    methods = (Learner, Mortal)
    for method in methods:
        METHODS.add(method.card.name, method)
    DATASETS.add("tiny", TinyShapes)
    try:
        yield
    finally:
        for method in methods:
            METHODS.remove(method.card.name)
        DATASETS.remove("tiny")
