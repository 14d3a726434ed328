"""A method that records its calls, others that fail, and runs of them on the tiny data set."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from benchmarks.runner.executors import Outcome
from benchmarks.runner.plan import Plan, plan
from benchmarks.runner.resources import Resources
from benchmarks.runner.run_plan import execute
from benchmarks.runner.settings import Settings
from benchmarks.store.files import ResultStore
from benchmarks.store.records import CellId, Record
from methods.interface import FitReport, Log, Method, MethodCard, NotApplicableError, TrainingData


@dataclass(frozen=True)
class ProbeConfig:
    """``learning_rate``: how far the embedding is moved; above 1 the training fails. ``steps``: a budget."""

    learning_rate: float = 0.5
    steps: int = 7
    names: tuple[str, ...] = ()


class Probe(Method):
    """Learns a random direction and remembers, in class variables, what was asked of it."""

    card = MethodCard("probe", "Probe", "tests", "-", 2026, "", trains="a direction")
    Config = ProbeConfig
    variants: ClassVar[dict[str, dict[str, Any]]] = {"paper": {}, "official": {"learning_rate": 0.25}}
    fits: ClassVar[list[TrainingData]] = []
    batches: ClassVar[list[int]] = []
    draws: ClassVar[list[tuple[float, float, float]]] = []

    def fit(self, data: TrainingData, *, seed: int, log: Log) -> FitReport:
        if self.config.learning_rate > 1:
            raise FloatingPointError("the loss is not a number")
        self.fits.append(data)
        self.draws.append((random.random(), float(np.random.rand()), float(torch.rand(1))))
        self.shift = self.config.learning_rate * torch.rand(1)
        log(stage="one", step=0, loss=1.0)
        return FitReport(steps=self.config.steps, trainable_parameters=1, validation=[{"score": data.validate(self)}])

    def encode_images(self, pixels: Tensor) -> Tensor:
        self.batches.append(len(pixels))
        flat = torch.nn.functional.adaptive_avg_pool2d(1 - pixels, 8).flatten(1)
        return torch.nn.functional.normalize(flat + self.shift, dim=-1)

    def encode_classes(self, names: Sequence[str]) -> Tensor:
        raise NotApplicableError("probe has no classes")


class Failing(Probe):
    """Fails in ways that depend on the held-out domain."""

    card = dataclasses.replace(Probe.card, name="failing")

    def fit(self, data: TrainingData, *, seed: int, log: Log) -> FitReport:
        if "line" not in data.domain_names:
            raise RuntimeError("no line\nno fit")
        if "sketch" not in data.domain_names:
            raise NotApplicableError("needs sketches")
        return super().fit(data, seed=seed, log=log)


class NotANumber(Probe):
    """Its embeddings are NaN."""

    card = dataclasses.replace(Probe.card, name="nan")

    def fit(self, data: TrainingData, *, seed: int, log: Log) -> FitReport:
        return FitReport()

    def encode_images(self, pixels: Tensor) -> Tensor:
        return torch.full((len(pixels), 4), float("nan"))


class Silent:
    """A progress display that keeps the cells and counts the images."""

    def __init__(self) -> None:
        self.cells: list[tuple[CellId, str]] = []
        self.encoded = 0

    def cell(self, cell: CellId, status: str, reason: str = "") -> None:
        self.cells.append((cell, status))

    def fitting(self, group: Any) -> None: ...

    def log(self, **numbers: Any) -> None: ...

    def images(self, count: int) -> None:
        self.encoded += count


def run(settings: Settings, resources: Resources | None = None) -> tuple[Plan, Outcome, ResultStore, Silent]:
    resources = resources or Resources(settings)
    planned = plan(settings, resources)
    store, watcher = ResultStore(settings.out), Silent()
    return planned, execute(planned, resources, store, watcher), store, watcher


def by_split(store: ResultStore, protocol: str = "ucdr") -> dict[str, Record]:
    return {record.cell.split: record for record in store.records() if record.cell.protocol == protocol}
