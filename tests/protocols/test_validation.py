"""What selects a model where a data set has few domains, classes or images: a validation task, or a plain word."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from benchmarks.datasets.registry import DATASETS
from benchmarks.protocols import dazsl, uccdr, ucdr, uda, udcdr
from benchmarks.protocols.task import Classification, Retrieval, answerable, own_gallery
from benchmarks.reporting.data import ReportData
from benchmarks.reporting.markdown import leaderboard_markdown
from benchmarks.runner.plan import plan, validation_notes
from benchmarks.runner.presets import PRESETS, Preset
from benchmarks.runner.records import search_notes
from benchmarks.runner.resources import Resources
from benchmarks.runner.run_plan import execute
from benchmarks.runner.settings import Settings
from benchmarks.store.files import ResultStore
from benchmarks.store.frame import load_results
from benchmarks.store.records import Fit, Record
from methods.interface import FitReport, Log, Method, MethodCard, TrainingData
from methods.registry import METHODS
from tests.support.every import Silent
from tests.support.tiny_dataset import TinyShapes

GRID = (0.125, 0.75)


class TwoDomains(TinyShapes):
    """Images and drawings, as Sketchy, TU-Berlin, VisDA and most own data sets."""

    domain_names = ("flat", "sketch")


class NoValidation(TwoDomains):
    """Without validation classes there is nothing to validate on."""

    @cached_property
    def table(self) -> pd.DataFrame:
        table = super().table
        return table.assign(split=table["split"].replace("val", "test"))


class Apart(TinyShapes):
    """No validation class has images in the gallery domain and in another one."""

    @cached_property
    def table(self) -> pd.DataFrame:
        table = super().table
        only = np.where(table["class"] == "one_bar", table["domain"] == "flat", table["domain"] != "flat")
        return table[(table["split"] != "val") | only].reset_index(drop=True)


@dataclass(frozen=True)
class RateConfig:
    """``learning_rate``: how far the embedding is moved; ``steps``: a budget."""

    learning_rate: float = 0.5
    steps: int = 3


class Rated(Method):
    """Moves small images by a vector as long as its learning rate; remembers the rates it was trained with."""

    card = MethodCard("rated", "Rated", "tests", "-", 2026, "", trains="a vector")
    Config = RateConfig
    trained_with: ClassVar[list[float]] = []
    validation: ClassVar[float | None] = None

    def fit(self, data: TrainingData, *, seed: int, log: Log) -> FitReport:
        self.trained_with.append(self.config.learning_rate)
        self.shift = self.config.learning_rate * torch.rand(192)
        return FitReport(steps=3)

    def encode_images(self, pixels: Tensor) -> Tensor:
        flat = torch.nn.functional.adaptive_avg_pool2d(1 - pixels, 8).flatten(1)
        return torch.nn.functional.normalize(flat + self.shift, dim=-1)

    def encode_classes(self, names: Sequence[str]) -> Tensor:
        return torch.nn.functional.normalize(torch.ones(len(names), 192), dim=-1)


@pytest.fixture(autouse=True)
def registered(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    names = {"two": TwoDomains, "none": NoValidation, "apart": Apart}
    for name, kind in names.items():
        DATASETS.add(name, kind)
    METHODS.add("rated", Rated)
    monkeypatch.setitem(PRESETS, "grid", Preset("grid", "two rates", 3, learning_rates=GRID))  # type: ignore[call-overload]
    Rated.trained_with = []
    yield
    METHODS.remove("rated")
    for name in names:
        DATASETS.remove(name)


def settings(folder: Path, out: Path, dataset: str, **changes: Any) -> Settings:
    fixed: dict[str, Any] = {"protocols": ("ucdr", "udcdr"), "preset": "grid", "threads": 1, "device": "cpu"}
    return Settings(methods=("rated",), datasets=(dataset,), backbone=str(folder), out=str(out), **{**fixed, **changes})


def run(chosen: Settings) -> list[Record]:
    resources, store = Resources(chosen), ResultStore(chosen.out)
    execute(plan(chosen, resources), resources, store, Silent())
    return list(store.records())


@pytest.mark.parametrize("protocol", [ucdr.PROTOCOL, udcdr.PROTOCOL])
def test_two_domains_are_validated_within_the_training_domain(protocol: Any) -> None:
    dataset = TwoDomains()
    task = protocol.task(dataset, "sketch")
    task.check(dataset)
    assert isinstance(task.validation, Retrieval)
    query, gallery = (dataset.table.iloc[rows] for rows in (task.validation.query, task.validation.gallery))
    assert not set(query.index) & set(gallery.index)
    for part in (query, gallery):
        assert set(part["domain"]) == {"flat"}, "never the unseen domain"
        assert set(part["split"]) == {"val"}, "never a test class"
    assert set(query["class"]) == set(gallery["class"]) == set(dataset.classes("val"))
    assert any("validated within flat" in note for note in task.notes)


def test_a_task_with_a_validation_task_across_domains_keeps_it() -> None:
    dataset = TinyShapes()
    for protocol in (ucdr.PROTOCOL, udcdr.PROTOCOL, uccdr.PROTOCOL):
        for split in protocol.splits(dataset):
            task = protocol.task(dataset, split)
            assert isinstance(task.validation, Retrieval)
            assert "flat" not in set(dataset.table["domain"].iloc[task.validation.query])
            assert task.notes == ()
    known = {split: ucdr.PROTOCOL.task(dataset, split).fit_id for split in ucdr.PROTOCOL.splits(dataset)}
    assert known == FIT_IDS, "stored scores keep their keys"


#: Of the release before the validation task inside one domain.
FIT_IDS = {"glyph": "c3efed0b6c43e099", "line": "108e3d9fc6cf0076", "sketch": "124d8858998903c1"}


def test_validation_classes_that_no_two_domains_share_are_validated_within_one() -> None:
    dataset = Apart()
    task = uccdr.PROTOCOL.task(dataset, "line")
    assert isinstance(task.validation, Retrieval)
    assert set(dataset.table["domain"].iloc[task.validation.query]) == {"flat"}
    assert answerable(task.validation, dataset.table["class"].to_numpy())


@given(st.lists(st.sampled_from("abcd"), max_size=30), st.randoms(use_true_random=False))
def test_own_gallery_is_a_rule_of_the_keys_alone(names: list[str], random: Any) -> None:
    keys, classes = np.array([f"k{n}" for n in range(len(names))], dtype=object), np.array(names, dtype=object)
    made = own_gallery(np.arange(len(names)), classes, keys)
    assert not np.intersect1d(made.query, made.gallery).size
    assert np.union1d(made.query, made.gallery).tolist() == list(range(len(names)))
    for name in set(names):
        asked, searched = (classes[made.query] == name).sum(), (classes[made.gallery] == name).sum()
        assert asked == (asked + searched) // 2, "half of each class, and no query without a relevant image"
    order = list(range(len(names)))
    random.shuffle(order)
    again = own_gallery(np.arange(len(names)), classes[order], keys[order])
    assert set(keys[order][again.query]) == set(keys[made.query])


def test_questions_without_an_answer() -> None:
    classes = np.array(["a", "a", "b", "c"], dtype=object)
    rows = np.array
    none = np.zeros(0, dtype=np.int64)
    assert answerable(Retrieval("v", rows([0, 3]), rows([1, 2])), classes)
    assert not answerable(Retrieval("v", rows([3]), rows([0, 1])), classes)
    assert not answerable(Retrieval("v", none, rows([0])), classes)
    assert answerable(Classification("v", rows([0]), ("a", "b")), classes)
    assert not answerable(Classification("v", none, ("a", "b")), classes)
    assert answerable(Classification("v", rows([0, 2]), ("a", "b"), seen=("a",)), classes)
    assert not answerable(Classification("v", rows([0, 1]), ("a", "b"), seen=("a",)), classes)
    assert not answerable(Classification("v", rows([2]), ("a", "b"), seen=("a",)), classes)


def test_two_domains_are_searched_and_said(tiny_folder: Path, tmp_path: Path) -> None:
    chosen = settings(tiny_folder, tmp_path / "out", "two", seeds=(0, 1))
    records = run(chosen)
    assert {record.status for record in records} == {"ok"}
    assert sorted(Rated.trained_with[:2]) == sorted(GRID)
    for record in records:
        assert [trial["learning_rate"] for trial in record.fit.trials] == list(GRID)
        scores = [trial["validation"] for trial in record.fit.trials]
        assert all(score is not None and 0 <= score <= 1 for score in scores)
        assert any("validated within flat" in note for note in record.notes)
    resources = Resources(chosen)
    assert validation_notes(plan(chosen, resources), chosen, resources) == [
        "two ucdr/sketch, udcdr/sketch: validated within flat: no other training domain has images of its classes"
    ]
    assert "validated within flat" in leaderboard_markdown(ReportData(load_results(chosen.out)))


def test_where_nothing_validates_the_configured_rate_is_taken_and_said(tiny_folder: Path, tmp_path: Path) -> None:
    chosen = settings(tiny_folder, tmp_path / "out", "none", seeds=(0, 1))
    records = run(chosen)
    assert {record.status for record in records} == {"ok"}
    assert Rated.trained_with == [0.5, 0.5], "one training a seed, none for a search"
    for record in records:
        assert record.fit.trials == []
        assert record.fit.learning_rate == 0.5
        assert "search" not in record.cost.seconds
        assert any("no validation task: learning rate as configured" in note for note in record.notes)
    assert not list(Path(chosen.out).rglob("searches/**/*.json"))
    report = leaderboard_markdown(ReportData(load_results(chosen.out)))
    assert "no validation task: learning rate as configured" in report
    resources = Resources(chosen)
    (line,) = validation_notes(plan(chosen, resources), chosen, resources)
    assert line.startswith("none ucdr/sketch, udcdr/sketch: no validation task")


def test_oracle_searches_without_a_validation_task(tiny_folder: Path, tmp_path: Path) -> None:
    records = run(settings(tiny_folder, tmp_path / "out", "none", select="oracle", protocols=("ucdr",)))
    assert all(len(record.fit.trials) == 2 for record in records)
    assert not any("no validation" in note for record in records for note in record.notes)


def test_a_limit_that_leaves_no_validation_is_said_and_not_a_failure(tiny_folder: Path, tmp_path: Path) -> None:
    class Few(TinyShapes):
        """The first validation class is missing from the gallery, so that one query and one gallery image differ."""

        @cached_property
        def table(self) -> pd.DataFrame:
            table = super().table
            gone = (table["class"] == "one_bar") & (table["domain"] == "flat")
            return table[~gone].reset_index(drop=True)

    DATASETS.add("few", Few)
    try:
        records = run(settings(tiny_folder, tmp_path / "out", "few", limit=1, protocols=("udcdr",)))
    finally:
        DATASETS.remove("few")
    assert {record.status for record in records} == {"ok"}
    assert all(any("no validation task" in note for note in record.notes) for record in records)


@pytest.mark.parametrize("protocol", [uda.PROTOCOL, dazsl.PROTOCOL])
def test_too_few_images_to_hold_a_tenth_back_leave_no_validation(
    protocol: Any, tiny_folder: Path, tmp_path: Path
) -> None:
    class Sparse(TinyShapes):
        """Two images a class: a tenth of nothing is held back. No validation class has one."""

        @cached_property
        def table(self) -> pd.DataFrame:
            table = super().table
            keep = table["key"].str.contains("/[01]$") & (table["split"] != "val")
            return table[keep].assign(held_back=False).reset_index(drop=True)

    DATASETS.add("sparse", Sparse)
    try:
        records = run(settings(tiny_folder, tmp_path / "out", "sparse", protocols=(protocol.name,)))
    finally:
        DATASETS.remove("sparse")
    assert records
    for record in records:
        assert record.status == "ok", record.reason
        assert record.fit.learning_rate == 0.5
        assert any("no validation task" in note for note in record.notes)


def test_a_score_that_is_no_number_never_wins(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scores = {0.125: float("nan"), 0.75: 0.1}
    monkeypatch.setattr(TrainingData, "validate", lambda self, method: scores[method.config.learning_rate])
    for record in run(settings(tiny_folder, tmp_path / "some", "two")):
        assert record.fit.learning_rate == 0.75
        assert record.fit.trials[0]["reason"] == "the validation score is nan"
    scores[0.75] = float("nan")
    Rated.trained_with = []
    records = run(settings(tiny_folder, tmp_path / "none", "two"))
    assert Rated.trained_with == [*GRID, 0.5]
    for record in records:
        assert record.status == "ok"
        assert record.fit.learning_rate == 0.5
        assert any("0.5 taken as configured" in note for note in record.notes)


def test_a_tie_is_noted() -> None:
    trials = [{"learning_rate": rate, "validation": score} for rate, score in ((1e-4, 0.5), (1e-3, 0.75), (1e-2, 0.75))]
    assert search_notes(Fit(trials=trials, learning_rate=1e-3)) == [
        "learning rates 0.001, 0.01 tie in validation: the first is taken"
    ]
    assert search_notes(Fit(trials=trials[:2], learning_rate=1e-3)) == []
    assert search_notes(Fit()) == []
    assert search_notes(dataclasses.replace(Fit(), learning_rate=0.1)) == []
