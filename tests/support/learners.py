"""Methods for sweep tests that other processes can import: one learns, one loses its process, one goes wrong.

Run as a module, this file is ``benchmarks.run`` with these methods and the tiny data set.
"""

from __future__ import annotations

import dataclasses
import os
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from methods.interface import FitReport, Log, Method, MethodCard, NotApplicableError, TrainingData
from methods.parts.parallel import rank
from methods.registry import METHODS
from methods.training.loop import run_stage

#: The folder in which a test leaves word for methods in other processes.
WORD = "UCDR_BENCH_TEST_WORD"

#: Seconds that a step of :class:`Learner` sleeps, so that a test can act in the midst of it.
PAUSE = "UCDR_BENCH_TEST_PAUSE"

#: A folder with a file named like the process for as long as a fit of :class:`Learner` takes its steps.
FITTING = "UCDR_BENCH_TEST_FITTING"


@contextmanager
def marked() -> Iterator[None]:
    """Say in the folder :data:`FITTING`, if there is one, that this process is fitting."""
    if FITTING not in os.environ:
        yield
        return
    mark = Path(os.environ[FITTING]) / str(os.getpid())
    mark.touch()
    try:
        yield
    finally:
        mark.unlink()


def word_left(word: str) -> bool:
    """Whether the test left this word."""
    return WORD in os.environ and (Path(os.environ[WORD]) / word).exists()


@dataclass(frozen=True)
class LearnerConfig:
    """``learning_rate``: how far the embedding is moved. ``steps``: a budget."""

    learning_rate: float = 0.5
    steps: int = 3
    centre: bool = False


class Learner(Method):
    """Moves small grey images by a random vector that depends on the seed."""

    card = MethodCard("learner", "Learner", "tests", "-", 2026, "", trains="a vector")
    Config = LearnerConfig
    ablations: ClassVar[dict[str, dict[str, Any]]] = {"still": {"learning_rate": 0.0}, "centred": {"centre": True}}

    def fit(self, data: TrainingData, *, seed: int, log: Log) -> FitReport:
        pixels = data.images.pixels(torch.arange(len(data.images)))
        self.shift = self.config.learning_rate * torch.rand(64) + pixels.std()
        self.mean = self.small(pixels).mean(dim=0) if self.config.centre else torch.zeros(64)
        with marked():
            for step in range(self.config.steps):
                time.sleep(float(os.environ.get(PAUSE, "0")))
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
        if "line" not in data.domain_names and word_left("die"):
            os.kill(os.getpid(), signal.SIGKILL)
        return super().fit(data, seed=seed, log=log)


class Located(Learner):
    """Says in its loss curve on which node of a Ray cluster it was trained; the word ``meet`` makes it wait."""

    card = dataclasses.replace(Learner.card, name="located")

    def fit(self, data: TrainingData, *, seed: int, log: Log) -> FitReport:
        report = super().fit(data, seed=seed, log=log)
        ray = sys.modules.get("ray")
        node = ray.get_runtime_context().get_node_id() if ray is not None and ray.is_initialized() else "here"
        word = Path(os.environ[WORD])
        (word / f"node-{node}").touch()
        begun = time.monotonic()
        while word_left("meet") and len(list(word.glob("node-*"))) < 2 and time.monotonic() - begun < 600:
            time.sleep(0.05)
        return dataclasses.replace(report, losses=[{"stage": node, "step": 0, "loss": 1.0}])


@dataclass(frozen=True)
class FaultyConfig:
    """``fault``: what goes wrong where ``line`` is held out (``second_process``: in that one, everywhere)."""

    fault: str = "none"


class Faulty(Learner):
    """Goes wrong as its config says, where ``line`` is held out; elsewhere it trains one weight by descent."""

    card = dataclasses.replace(Learner.card, name="faulty")
    Config = FaultyConfig
    one_process = ""

    def fit(self, data: TrainingData, *, seed: int, log: Log) -> FitReport:
        fault = self.config.fault if "line" not in data.domain_names else "none"
        if fault == "memory":
            np.ones(2**58, dtype=np.uint8)
        elif fault == "torch_memory":
            torch.ones(2**58, dtype=torch.uint8)
        elif fault == "gpu_memory":
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        elif self.config.fault == "second_process" and rank() == 1:
            raise OSError("broken image")
        weight = torch.nn.Parameter(torch.ones(()))
        self.mean, self.shift = torch.zeros(64), torch.zeros(64)
        report = FitReport(trainable_parameters=1)
        run_stage(
            self,
            data,
            report,
            log,
            stage="one",
            steps=3,
            optimizers=[torch.optim.SGD([weight], lr=0.1)],
            loss=lambda step: weight**2 if fault != "diverges" or step < 2 else weight * float("nan"),
        )
        return report


@contextmanager
def learners() -> Iterator[None]:
    """The methods of this file and the tiny data set, registered."""
    from benchmarks.datasets.registry import DATASETS
    from tests.support.tiny_dataset import TinyShapes

    methods = (Learner, Mortal, Located, Faulty)
    for method in methods:
        METHODS.add(method.card.name, method)
    DATASETS.add("tiny", TinyShapes)
    try:
        yield
    finally:
        for method in methods:
            METHODS.remove(method.card.name)
        DATASETS.remove("tiny")


if __name__ == "__main__":
    from benchmarks.run import main

    with learners():
        sys.exit(main())
