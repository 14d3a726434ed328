"""One fit group: seeds, the learning-rate search, what validation sees, failures."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from benchmarks.runner import selection_values
from benchmarks.runner.embeddings import EncodedImages
from benchmarks.runner.fit_group import ValidatedWeights
from benchmarks.runner.plan import plan
from benchmarks.runner.presets import PRESETS, Preset
from benchmarks.runner.process_settings import seed_everything
from benchmarks.runner.resources import Resources
from benchmarks.runner.scoring import score_retrieval
from benchmarks.runner.settings import Settings
from methods.interface import FitReport, Log, TrainingData
from methods.parts.backbone import Backbone
from methods.registry import METHODS
from tests.runner.probe import Probe, ProbeConfig, run


def test_the_same_seed_gives_the_same_scores_and_another_seed_others(settings: Settings, tmp_path: Path) -> None:
    settings = dataclasses.replace(settings, protocols=("ucdr",), seeds=(0, 3))
    one = run(settings)[2]
    draws = list(Probe.draws)
    other = run(dataclasses.replace(settings, out=str(tmp_path / "again"), seeds=(3, 0)))[2]
    scores = [{r.key: r.scores for r in store.records()} for store in (one, other)]
    assert scores[0] == scores[1]
    assert draws[0] == draws[1] == draws[2], "seed 0: python, numpy and torch start alike for every fit"
    assert draws[0] != draws[3]
    frames = [store.per_query(record) for store in (one, other) for record in store.records()]
    for a, b in zip(frames[: len(frames) // 2], frames[len(frames) // 2 :], strict=True):
        assert a.to_json() == b.to_json()


def test_a_failure_is_a_row_and_the_sweep_goes_on(settings: Settings) -> None:
    settings = dataclasses.replace(settings, methods=("failing", "probe"), protocols=("ucdr",))
    _, outcome, store, watcher = run(settings)
    assert outcome.counts == {"ok": 4, "failed": 1, "not_applicable": 1}
    assert outcome.failed == 1
    records = {r.cell.split: r for r in store.records() if r.cell.method == "failing"}
    assert records["line"].status == "failed"
    assert records["line"].reason == "RuntimeError: no line no fit"
    assert "in fit" in records["line"].traceback
    assert records["sketch"].status == "not_applicable"
    assert records["sketch"].reason == "NotApplicableError: needs sketches"
    assert records["glyph"].status == "ok"
    assert [status for _, status in watcher.cells] == ["ok", "failed", "not_applicable", "ok", "ok", "ok"]
    again = run(settings)[1]
    assert again.counts == {"cached": 5, "failed": 1}, "a failure is tried again, an answer is not"


def test_nan_embeddings_fail_with_a_reason(settings: Settings) -> None:
    _, outcome, store, _ = run(dataclasses.replace(settings, methods=("nan",), protocols=("ucdr",)))
    assert outcome.counts == {"failed": 3}
    assert all("NaN" in record.reason for record in store.records())


def test_validation_never_sees_test_data(settings: Settings) -> None:
    resources = Resources(settings)
    planned, _, _, _ = run(settings, resources)
    table = resources.dataset("tiny").table
    for cell in planned.cells:
        task = resources.task("tiny", cell.id.protocol, cell.id.split)
        assert task.validation is not None
        seen = table.iloc[np.concatenate([task.validation.query, task.validation.gallery])]
        assert set(seen["split"]) == {"val"}
        assert cell.id.protocol == "uccdr" or cell.id.split not in set(seen["domain"])


def test_the_learning_rate_is_picked_on_validation(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = Preset("grid", "three rates", 5, learning_rates=(0.125, 0.75, 2.0))
    monkeypatch.setitem(PRESETS, "grid", grid)  # type: ignore[call-overload]
    settings = dataclasses.replace(settings, protocols=("uccdr",), preset="grid")
    planned, outcome, store, _ = run(settings)
    assert outcome.counts == {"ok": 3}
    assert {group.learning_rates for group in planned.groups} == {(0.125, 0.75, 2.0)}
    for record in store.records():
        trials = record.fit.trials
        assert [trial["learning_rate"] for trial in trials] == [0.125, 0.75, 2.0]
        assert trials[2]["validation"] is None
        assert "not a number" in trials[2]["reason"]
        best = max(trials[:2], key=lambda trial: trial["validation"])
        assert record.fit.learning_rate == best["learning_rate"]
        assert set(record.cost.seconds) == {"fit", "search", "encode", "rank"}
        assert record.inputs["method"]["learning_rates"] == [0.125, 0.75, 2.0]
    fixed = dataclasses.replace(settings, set=(("learning_rate", 0.5),), out=settings.out + "2")
    assert {group.learning_rates for group in plan(fixed, Resources(fixed)).groups} == {()}


def test_one_search_serves_all_seeds_and_a_resumed_sweep(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "grid", Preset("grid", "two rates", 5, learning_rates=(0.125, 0.75)))  # type: ignore[call-overload]
    settings = dataclasses.replace(settings, protocols=("uccdr",), preset="grid", seeds=(1, 0, 2))
    _, outcome, store, _ = run(settings)
    assert outcome.counts == {"ok": 9}
    assert len(Probe.fits) == 2 + 2, "the grid with seed 0, whose best is kept, then a fit for each other seed"
    records = list(store.records())
    assert len({record.fit.learning_rate for record in records}) == 1
    assert len({str(record.fit.trials) for record in records}) == 1
    alone = dataclasses.replace(settings, seeds=(2,), out=settings.out + "-alone")
    other = {record.key: record.scores for record in run(alone)[2].records()}
    assert other == {record.key: record.scores for record in records if record.cell.seed == 2}
    Probe.fits.clear()
    for record in records:
        store.discard(record.cell, record.key)
    _, _, store, _ = run(settings)
    assert len(Probe.fits) == 3, "the search was kept, the models were not"
    assert {r.key: r.scores for r in store.records()} == {r.key: r.scores for r in records}
    (kept,) = (store.root / "searches").rglob("*.json")
    kept.write_text(kept.read_text().replace('"fit_id"', '"fitid"'))
    Probe.fits.clear()
    run(dataclasses.replace(settings, seeds=(5,)))
    assert len(Probe.fits) == 2 + 1, "an altered search counts as absent"


def test_a_grid_of_one_rate_sets_it(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "grid", Preset("grid", "one rate", 5, learning_rates=(0.375,)))  # type: ignore[call-overload]
    _, _, store, _ = run(dataclasses.replace(settings, protocols=("uccdr",), preset="grid"))
    assert len(Probe.fits) == 1
    assert {record.fit.learning_rate for record in store.records()} == {0.375}
    assert all(record.fit.trials == [] and "search" not in record.cost.seconds for record in store.records())


def test_a_grid_whose_every_rate_fails_is_a_failure(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "grid", Preset("grid", "too high", 5, learning_rates=(2.0, 3.0)))  # type: ignore[call-overload]
    _, outcome, store, _ = run(dataclasses.replace(settings, protocols=("ucdr",), preset="grid"))
    assert outcome.counts == {"failed": 3}
    assert all(record.reason == "FloatingPointError: the loss is not a number" for record in store.records())


class Learned(Probe):
    """A probe that declares its direction, and validates ``when`` in training."""

    card = dataclasses.replace(Probe.card, name="learned")
    declared: ClassVar[bool] = True
    when: ClassVar[str] = "kept"

    def learned_tensors(self) -> dict[str, torch.Tensor]:
        return {"shift": self.shift} if self.declared else {}

    def fit(self, data: TrainingData, *, seed: int, log: Log) -> FitReport:
        self.shift = self.config.learning_rate * torch.rand(1)
        validation = [{"score": data.validate(self)}] if self.when != "never" else []
        if self.when == "other weights":
            self.shift = self.shift + 1
        return FitReport(steps=1, trainable_parameters=1, validation=validation)


@pytest.fixture
def scored(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[float]]:
    """Registers :class:`Learned`; the shifts that the validation task was scored with."""
    shifts: list[float] = []
    score = selection_values.score_retrieval

    def noted(method: Any, *arguments: Any, **options: Any) -> Any:
        if options.get("ks") == ():
            shifts.append(float(method.shift))
        return score(method, *arguments, **options)

    monkeypatch.setattr(selection_values, "score_retrieval", noted)
    monkeypatch.setitem(PRESETS, "grid", Preset("grid", "two rates", 5, learning_rates=(0.125, 0.75)))  # type: ignore[call-overload]
    METHODS.add("learned", Learned)
    yield shifts
    METHODS.remove("learned")


@pytest.mark.parametrize(
    ("declared", "when", "passes"),
    [(True, "kept", 1), (True, "other weights", 2), (True, "never", 1), (False, "kept", 2)],
    ids=["same weights", "other weights", "not validated", "no declared tensors"],
)
def test_the_search_reuses_the_validation_score_of_equal_weights_alone(
    settings: Settings, scored: list[float], monkeypatch: pytest.MonkeyPatch, declared: bool, when: str, passes: int
) -> None:
    monkeypatch.setattr(Learned, "declared", declared)
    monkeypatch.setattr(Learned, "when", when)
    settings = dataclasses.replace(settings, methods=("learned",), protocols=("uccdr",), preset="grid")
    _, outcome, store, _ = run(settings)
    assert outcome.counts == {"ok": 3}
    assert len(scored) == 2 * passes, "for each of the two rates"
    record = next(iter(store.records()))
    resources = Resources(settings)
    task = resources.task("tiny", "uccdr", record.cell.split)
    cache = resources.pixels("tiny")
    for trial in record.fit.trials:
        seed_everything(0)
        method = Learned(resources.backbone, ProbeConfig(learning_rate=trial["learning_rate"], steps=5))
        method.shift = method.config.learning_rate * torch.rand(1) + (when == "other weights")
        encoded = EncodedImages(method.encode_images, cache, lambda count: None)
        fresh = score_retrieval(method, encoded, task.validation, "clean", ks=()).means()["map@all"]
        assert trial["validation"] == fresh, "the score of the weights that were kept"


def test_validated_weights_are_told_apart_by_tensors_and_facts(tiny_backbone: Backbone) -> None:
    class Named(Learned):
        fact_names = ("names",)

    validated, values = ValidatedWeights(), iter((0.25, 0.5, 0.75))
    score = validated.recorded(lambda method, question: next(values))
    method = Named(tiny_backbone)
    method.shift, method.names = torch.tensor([1.0]), ("a",)
    assert validated.score(method) is None
    assert score(method, None) == 0.25  # type: ignore[arg-type]
    assert validated.score(method) == 0.25
    method.names = ("b",)
    assert validated.score(method) is None
    method.shift = torch.nextafter(method.shift, torch.tensor(2.0))
    score(method, None)  # type: ignore[arg-type]
    method.shift, method.names = torch.tensor([1.0]), ("a",)
    assert validated.score(method) == 0.25
    other = Named(tiny_backbone)
    other.shift, other.names = method.shift.clone(), ("a",)
    assert validated.score(other) == 0.25, "equal weights, wherever they are"
    other.shift = other.shift.double()
    assert validated.score(other) is None
    validated.clear()
    assert validated.score(method) is None
