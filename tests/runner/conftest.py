"""Fixtures of the runner's tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.runner.settings import Settings
from methods.registry import METHODS
from tests.runner.probe import Failing, NotANumber, Probe


@pytest.fixture
def probes(tiny_dataset: type) -> Iterator[None]:
    """Registers the methods of :mod:`tests.runner.probe`."""
    for method in (Probe, Failing, NotANumber):
        METHODS.add(method.card.name, method)
    Probe.fits, Probe.batches, Probe.draws = [], [], []
    yield
    for method in (Probe, Failing, NotANumber):
        METHODS.remove(method.card.name)


@pytest.fixture
def settings(probes: None, tiny_folder: Path, tmp_path: Path) -> Settings:
    """A run of the probe on three protocols of the tiny data set."""
    return Settings(
        methods=("probe",),
        datasets=("tiny",),
        protocols=("ucdr", "uccdr", "udcdr"),
        backbone=str(tiny_folder),
        preset="full",
        out=str(tmp_path / "results"),
        threads=1,
        device="cpu",
    )
