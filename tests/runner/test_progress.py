"""The time left is given by method, and not where no record or finished fit says how long the rest may take."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from benchmarks.console import duration
from benchmarks.runner.estimate import RELATIVE_COSTS
from benchmarks.runner.progress import TRAINS, RunProgress
from methods.registry import METHODS


def cell(method: str) -> object:
    from types import SimpleNamespace

    return SimpleNamespace(method=method, dataset="tiny", protocol="uda", split="a", seed=0)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [0.0]
    monkeypatch.setattr("benchmarks.runner.progress.time.monotonic", lambda: now[0])
    return now


def watch(methods: list[str]) -> RunProgress:
    return RunProgress(Console(file=io.StringIO(), width=120), len(methods), methods)


def test_slow_methods_at_the_end_count_before_they_begin(clock: list[float]) -> None:
    progress = watch(["coop", "pros", "ad_clip"])
    clock[0] = 60.0
    progress.cell(cell("coop"), "ok")  # type: ignore[arg-type]
    rest = (RELATIVE_COSTS["pros"] + RELATIVE_COSTS["ad_clip"]) / RELATIVE_COSTS["coop"]
    assert progress._time_left() == f"about {duration(60 * rest)} left"
    assert rest > 15, "a count of cells would have said two minutes"


def test_methods_without_training_say_nothing_of_those_with_it(clock: list[float]) -> None:
    progress = watch(["random", "zero_shot", "coop", "random"])
    clock[0] = 10.0
    progress.cell(cell("random"), "ok")  # type: ignore[arg-type]
    assert progress._time_left() == ""
    progress.cell(cell("coop"), "ok")  # type: ignore[arg-type]
    assert progress._time_left().startswith("about ")
    floors = watch(["random", "random"])
    clock[0] = 20.0
    floors.cell(cell("random"), "ok")  # type: ignore[arg-type]
    assert floors._time_left() == "about 10 s left"


@pytest.mark.parametrize("status", ["cached", "failed", "not_applicable"])
def test_cells_that_took_no_time_are_no_measure(clock: list[float], status: str) -> None:
    progress = watch(["coop", "coop", "coop"])
    clock[0] = 1.0
    progress.cell(cell("coop"), status)  # type: ignore[arg-type]
    assert progress._time_left() == ""
    clock[0] = 11.0
    progress.cell(cell("coop"), "ok")  # type: ignore[arg-type]
    assert progress._time_left() == "about 11 s left"


def test_every_method_of_a_default_run_has_its_relative_cost() -> None:
    assert set(METHODS.defaults()) <= set(RELATIVE_COSTS)
    untrained = {name for name in METHODS.defaults() if not METHODS.get(name).trained}
    assert {name for name in untrained if RELATIVE_COSTS[name] >= TRAINS} <= {"tip_adapter"}, "its cache takes time"
