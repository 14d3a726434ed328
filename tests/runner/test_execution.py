"""Plan and execution: what shares a fit, what is encoded how often, what a failure does, what makes another cell."""

from __future__ import annotations

import dataclasses
import errno
import os
import random
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.datasets.base import ReleasedListing
from benchmarks.datasets.pixels import DatasetImages, PixelCache, unit_range
from benchmarks.protocols.task import Classification, limited
from benchmarks.runner import embeddings, scoring
from benchmarks.runner.embeddings import EncodedImages
from benchmarks.runner.executors import Outcome
from benchmarks.runner.plan import Plan, plan
from benchmarks.runner.presets import PRESETS, Preset
from benchmarks.runner.resources import Resources
from benchmarks.runner.run_plan import execute
from benchmarks.runner.settings import Settings, SettingsError
from benchmarks.store.files import ResultStore
from benchmarks.store.records import CellId, Record
from methods.interface import FitReport, Log, Method, MethodCard, NotApplicableError, TrainingData
from methods.parts import row_files
from methods.registry import METHODS
from methods.zero_shot import ZeroShot


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
    """A watcher that keeps what it is told."""

    def __init__(self) -> None:
        self.cells: list[tuple[CellId, str]] = []
        self.encoded = 0

    def cell(self, cell: CellId, status: str, reason: str = "") -> None:
        self.cells.append((cell, status))

    def fitting(self, group: Any) -> None: ...

    def log(self, **numbers: Any) -> None: ...

    def images(self, count: int) -> None:
        self.encoded += count


@pytest.fixture(autouse=True)
def probes(tiny_dataset: type) -> Iterator[None]:
    for method in (Probe, Failing, NotANumber):
        METHODS.add(method.card.name, method)
    Probe.fits, Probe.batches, Probe.draws = [], [], []
    yield
    for method in (Probe, Failing, NotANumber):
        METHODS.remove(method.card.name)


@pytest.fixture
def settings(tiny_folder: Path, tmp_path: Path) -> Settings:
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


def run(settings: Settings, resources: Resources | None = None) -> tuple[Plan, Outcome, ResultStore, Silent]:
    resources = resources or Resources(settings)
    planned = plan(settings, resources)
    store, watcher = ResultStore(settings.out), Silent()
    return planned, execute(planned, resources, store, watcher), store, watcher


def by_split(store: ResultStore, protocol: str = "ucdr") -> dict[str, Record]:
    return {record.cell.split: record for record in store.records() if record.cell.protocol == protocol}


def test_cells_with_the_same_training_data_share_a_fit(settings: Settings) -> None:
    planned, outcome, _, watcher = run(settings)
    assert len(planned.cells) == 9
    assert outcome.counts == {"ok": 9}
    shared = sorted(sorted({(c.id.protocol, c.id.split) for c in group.cells}) for group in planned.groups)
    held_out = [[("ucdr", d), ("udcdr", d)] for d in ("glyph", "line", "sketch")]
    assert shared == sorted([*held_out, [("uccdr", d) for d in ("glyph", "line", "sketch")]])
    assert len(Probe.fits) == 4
    assert [status for _, status in watcher.cells] == ["ok"] * 9


def test_each_image_is_encoded_once_a_model(settings: Settings) -> None:
    resources = Resources(settings)
    planned, _, _, watcher = run(settings, resources)
    needed = 0
    for group in planned.groups:
        rows: set[int] = set()
        for cell in group.cells:
            for one in resources.task("tiny", cell.id.protocol, cell.id.split).retrievals:
                rows |= {*one.query.tolist(), *one.gallery.tolist()}
        needed += len(rows)
    assert watcher.encoded == needed
    assert set(Probe.batches) == {embeddings.BATCH}


def test_an_untrained_method_encodes_each_image_once_in_all(settings: Settings) -> None:
    settings = dataclasses.replace(settings, methods=("zero_shot",), seeds=(0, 1))
    resources = Resources(settings)
    planned, _, _, watcher = run(settings, resources)
    rows: set[int] = set()
    for cell in planned.cells:
        for one in resources.task("tiny", cell.id.protocol, cell.id.split).retrievals:
            rows |= {*one.query.tolist(), *one.gallery.tolist()}
    assert watcher.encoded == 2 * len(rows), "once a seed"


def test_an_embedding_depends_neither_on_its_batch_nor_on_threads(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embeddings, "BATCH", 16)
    monkeypatch.setattr(scoring, "BATCH", 16)
    resources = Resources(settings)
    method = ZeroShot(resources.backbone)
    cache = resources.pixels("tiny")
    rows = np.arange(len(cache.dataset.table))
    before, counted = torch.get_num_threads(), [0]
    try:
        torch.set_num_threads(1)
        whole = EncodedImages(method.encode_images, cache, lambda n: None)[rows]
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            encoded = EncodedImages(method.encode_images, cache, counted.append)
            assert torch.equal(encoded[rows], whole), threads
            parts = EncodedImages(method.encode_images, cache, lambda n: None)
            for piece in np.array_split(np.random.default_rng(0).permutation(rows), 7):
                assert torch.equal(parts[piece], whole[piece]), threads
            assert torch.get_num_threads() == threads
            assert encoded.count == -(-len(rows) // embeddings.BATCH) * embeddings.BATCH
            assert encoded.seconds > 0
    finally:
        torch.set_num_threads(before)
    assert sum(counted) == 3 * len(rows)


def test_embeddings_are_computed_by_several_threads_each_with_one(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embeddings, "BATCH", 8)
    monkeypatch.setattr(scoring, "BATCH", 8)
    resources = Resources(settings)
    cache = resources.pixels("tiny")
    seen: list[tuple[int, int, bool]] = []

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        seen.append((threading.get_ident(), torch.get_num_threads(), torch.is_grad_enabled()))
        number = len(seen)
        time.sleep(0.05)
        if number >= 4:
            raise RuntimeError("the fourth fails")
        return pixels.mean(dim=(2, 3))

    rows = np.arange(len(cache.dataset.table))
    assert len(rows) > 4 * embeddings.BATCH
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pytest.raises(RuntimeError, match="the fourth fails"):
            EncodedImages(encode, cache, lambda n: None).encode(rows)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert {(threads, grad) for _, threads, grad in seen} == {(1, False)}
    assert seen[0][0] == threading.get_ident()
    assert len({name for name, _, _ in seen}) > 1


class Points(ZeroShot):
    """Embeddings with a single 1 and class embeddings of whole numbers, so that logits are exact and often equal."""

    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(pixels.mean(dim=1).flatten(1)[:, 5::61].argmax(dim=1), 20).float()

    def encode_classes(self, names: Sequence[str]) -> torch.Tensor:
        return torch.randint(-3, 4, (len(names), 20), generator=torch.Generator().manual_seed(len(names))).float()

    def logit_scale(self) -> float:
        return 4.0


@pytest.mark.parametrize("held", [1, 100, 777])
def test_logits_in_blocks_give_the_same_answers(
    settings: Settings, tiny_dataset: Any, monkeypatch: pytest.MonkeyPatch, held: int
) -> None:
    resources = Resources(settings)
    pixels, classes = resources.pixels("tiny"), tiny_dataset().classes()
    for method in (Points(resources.backbone), ZeroShot(resources.backbone)):
        encoded = EncodedImages(method.encode_images, pixels, lambda n: None)
        for rules, seen in (("clean", None), ("clean", classes[:3]), ("official", classes[:3])):
            question = Classification("all", np.arange(len(pixels.dataset.table)), classes, seen)
            whole = scoring.score_classification(method, encoded, question, rules, top=4)
            with monkeypatch.context() as patch:
                patch.setattr(scoring, "LOGITS", held)
                assert rules != "clean" or len(list(scoring.class_logits(method, encoded, question, rules))) > 2
                parts = scoring.score_classification(method, encoded, question, rules, top=4)
            np.testing.assert_array_equal(parts.scores.credit, whole.scores.credit)
            assert parts.scores.means() == whole.scores.means()
            if isinstance(method, Points):
                assert torch.equal(parts.best_logits, whole.best_logits)
                assert torch.equal(parts.best_classes, whole.best_classes)
            torch.testing.assert_close(parts.best_logits, whole.best_logits)


def test_logits_of_a_wrong_shape_are_refused(settings: Settings, tiny_dataset: Any) -> None:
    class Wide(ZeroShot):
        def classify(self, pixels: torch.Tensor, names: Sequence[str]) -> torch.Tensor:
            return torch.zeros(len(pixels), len(names) + 1)

    resources = Resources(settings)
    encoded = EncodedImages(lambda pixels: pixels.mean(dim=(2, 3)), resources.pixels("tiny"), lambda n: None)
    question = Classification("all", np.arange(9), tiny_dataset().classes())
    with pytest.raises(ValueError, match=r"logits of 9 images have shape \(9, 13\), not \[9, 12\]"):
        scoring.score_classification(Wide(resources.backbone), encoded, question, "clean")


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Every data set counts as large, two batches a write; the cache folder."""
    monkeypatch.setattr(embeddings, "LARGE", 0)
    monkeypatch.setattr(embeddings, "CHUNK", 2 * embeddings.BATCH)
    monkeypatch.setattr(row_files, "SPARE", 0)
    monkeypatch.setenv("UCDR_BENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_killed_encoding_goes_on_where_it_stopped(settings: Settings, large: Path) -> None:
    resources = Resources(settings)
    method, pixels = ZeroShot(resources.backbone), resources.pixels("tiny")
    rows, batches = np.arange(len(pixels.dataset.table)), []

    def dies(shown: torch.Tensor) -> torch.Tensor:
        if len(batches) == 3:
            raise KeyboardInterrupt
        batches.append(len(shown))
        return method.encode_images(shown)

    with pytest.raises(KeyboardInterrupt):
        EncodedImages(dies, pixels, lambda n: None, large / "x").encode(rows)
    expected = EncodedImages(method.encode_images, pixels, lambda n: None)[rows]
    again = EncodedImages(method.encode_images, pixels, lambda n: None, large / "x")
    assert torch.equal(again[rows], expected)
    assert again.count == -(-(len(rows) - 2 * embeddings.BATCH) // embeddings.BATCH) * embeddings.BATCH
    last = EncodedImages(dies, pixels, lambda n: None, large / "x")
    assert torch.equal(last[rows[::-3].copy()], expected[rows[::-3].copy()])
    last.discard()
    assert not (large / "x").exists()


def test_without_room_embeddings_are_held_in_memory(
    settings: Settings, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resources = Resources(settings)
    method, pixels = ZeroShot(resources.backbone), resources.pixels("tiny")
    rows = np.arange(len(pixels.dataset.table))
    expected = EncodedImages(method.encode_images, pixels, lambda n: None)[rows]
    encoded = EncodedImages(method.encode_images, pixels, lambda n: None, large / "x")
    encoded.encode(rows[:30])

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(row_files.RowFiles, "write", full)
    with pytest.warns(RuntimeWarning, match=r"embeddings cannot be kept in .* \(No space left on device\)"):
        assert torch.equal(encoded[rows], expected)


def test_embeddings_in_files_change_no_score(settings: Settings, large: Path) -> None:
    settings = dataclasses.replace(settings, methods=("zero_shot", "probe"), seeds=(0,))
    _, outcome, store, _ = run(settings)
    assert outcome.failed == 0
    left = list((large / "embeddings").iterdir())
    assert len(left) == 1, "those of trained models are deleted when their group is done"
    scores = {record.key: record.scores for record in store.records()}
    again = dataclasses.replace(settings, out=settings.out + "2", methods=("zero_shot",))
    _, _, second, watcher = run(again)
    assert watcher.encoded == 0, "what is not trained is encoded once"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UCDR_BENCH_CACHE", "off")
        _, _, third, watcher = run(dataclasses.replace(settings, out=settings.out + "3"))
    assert watcher.encoded > 0
    assert {record.key: record.scores for record in third.records()} == scores
    assert {record.key: record.scores for record in second.records()}.items() <= scores.items()


def test_a_resumed_sweep_fits_only_what_is_missing(settings: Settings) -> None:
    planned, _, store, _ = run(settings)
    before = {record.key: record.scores for record in store.records()}
    gone = next(cell for cell in planned.cells if cell.id.protocol == "udcdr" and cell.id.split == "line")
    store.path(gone.id, gone.key).unlink()
    Probe.fits.clear()
    _, outcome, _, _ = run(settings)
    assert outcome.counts == {"ok": 1, "cached": 8}
    assert len(Probe.fits) == 1
    assert {record.key: record.scores for record in store.records()} == before
    Probe.fits.clear()
    assert run(settings)[1].counts == {"cached": 9}
    assert not Probe.fits
    assert run(dataclasses.replace(settings, force=True))[1].counts == {"ok": 9}


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


def test_fail_fast_stops_at_the_first_failure(settings: Settings) -> None:
    settings = dataclasses.replace(settings, methods=("nan", "probe"), protocols=("ucdr",), fail_fast=True)
    _, outcome, store, _ = run(settings)
    assert outcome.counts == {"failed": 1}
    assert len(list(store.records())) == 1


def test_an_interrupt_leaves_whole_records_and_the_next_run_goes_on(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked = Probe.encode_images, []

    def interrupted(self: Probe, pixels: Tensor) -> Tensor:
        asked.append(1)
        if len(asked) == 12:
            raise KeyboardInterrupt
        return real(self, pixels)

    monkeypatch.setattr(Probe, "encode_images", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(settings)
    monkeypatch.setattr(Probe, "encode_images", real)
    done = [record.status for record in ResultStore(settings.out).records()]
    assert done
    assert set(done) == {"ok"}
    assert run(settings)[1].counts == {"cached": len(done), "ok": 9 - len(done)}


def test_a_full_disk_does_not_stop_the_sweep(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    real, written = ResultStore.write, []

    def full(self: ResultStore, record: Record, per_query: Any = None) -> Record:
        written.append(record)
        if len(written) == 1:
            raise OSError(28, "No space left on device")
        return real(self, record, per_query)

    monkeypatch.setattr(ResultStore, "write", full)
    _, outcome, _, _ = run(dataclasses.replace(settings, protocols=("ucdr",)))
    assert outcome.counts == {"failed": 1, "ok": 2}


def test_the_record_says_what_was_measured_and_what_it_cost(settings: Settings) -> None:
    _, _, store, _ = run(
        dataclasses.replace(settings, protocols=("ucdr",), preset="standard", set=(("learning_rate", 0.5),))
    )
    record = by_split(store)["line"]
    assert set(record.scores) == {"unseen", "mixed"}
    unseen = record.scores["unseen"]
    assert {"map@all", "map@200[retrieved]", "map@200[trec]", "p@100", "recall@1"} <= set(unseen.metrics)
    assert (unseen.n_queries, unseen.gallery_size, unseen.n_without_relevant) == (24, 24, 0)
    assert record.scores["mixed"].gallery_size == 24 + 6 * 2
    assert record.inputs["backbone"]["weights_hash"] == Resources(settings).backbone.weights_hash
    assert record.inputs["method"]["config"] == {"learning_rate": 0.5, "steps": 100, "names": []}, "the budget"
    assert record.fit.steps == 100
    assert record.fit.losses == [{"stage": "one", "step": 0, "loss": 1.0}]
    assert 0 < record.fit.validation[0]["score"] <= 1
    assert record.cost.trainable_parameters == 1
    assert record.cost.total_parameters == 63713
    assert record.cost.peak_memory_mib is not None
    assert record.cost.peak_memory_mib > 50
    assert {"fit", "encode", "rank"} == set(record.cost.seconds)
    assert all(seconds >= 0 for seconds in record.cost.seconds.values())
    assert record.cost.pictures_per_second is not None
    environment = record.environment
    assert environment.packages["torch"] == torch.__version__
    assert len(environment.git["commit"]) == 40
    assert environment.hardware["logical_cores"] >= 1
    assert (environment.threads, environment.device) == (1, "cpu")
    frame = store.per_query(record)
    assert frame.groupby("gallery")["ap@all"].mean()["unseen"] == pytest.approx(unseen.metrics["map@all"], abs=1e-12)
    assert (frame["domain"] == "line").all()
    assert all(len(keys) == 10 and all(key.startswith("flat/") for key in keys) for keys in frame["top_keys"])


def test_what_changes_the_score_changes_the_key(settings: Settings, tiny_folder: Path, tmp_path: Path) -> None:
    from tests.support.tiny_clip import tiny_clip_folder

    def keys(**changes: Any) -> set[str]:
        changed = dataclasses.replace(settings, **{"protocols": ("ucdr",), **changes})
        return {cell.key for cell in plan(changed, Resources(changed)).cells}

    base = keys()
    assert len(base) == 3
    assert keys() == base
    assert keys(out="elsewhere", threads=2, force=True, fail_fast=True) == base
    others = [
        keys(seeds=(1,)),
        keys(rules="official"),
        keys(select="last"),
        keys(select="oracle"),
        keys(limit=8),
        keys(precision="bf16"),
        keys(variant="official"),
        keys(preset="standard"),
        keys(set=(("probe.learning_rate", 0.1),)),
        keys(methods=("failing",)),
        keys(protocols=("uccdr",)),
        keys(backbone=str(tiny_clip_folder(tmp_path / "other", seed=1))),
    ]
    for other in others:
        assert len(other) == 3
        assert not other & base
    assert len(set().union(*others)) == 3 * len(others)


def test_other_data_is_another_cell(settings: Settings, tiny_dataset: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {cell.key for cell in plan(settings, Resources(settings)).cells}
    content = list(tiny_dataset().content)
    monkeypatch.setattr(tiny_dataset, "content", ["changed", *content[1:]])
    assert not before & {cell.key for cell in plan(settings, Resources(settings)).cells}


def test_another_method_version_is_another_cell(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {cell.key for cell in plan(settings, Resources(settings)).cells}
    monkeypatch.setattr(Probe, "version", 2)
    assert not before & {cell.key for cell in plan(settings, Resources(settings)).cells}


def test_oracle_selects_on_the_test_retrieval_and_shares_no_model(settings: Settings) -> None:
    settings = dataclasses.replace(settings, select="oracle")
    planned, _, store, _ = run(settings)
    assert len(planned.groups) == 9
    for record in store.records():
        first = record.scores["unseen" if "unseen" in record.scores else "seen"]
        assert record.fit.validation[0]["score"] == pytest.approx(first.metrics["map@all"], abs=1e-12)
        assert record.cell.select == "oracle"


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


def test_official_rules_rank_raw_features_by_distance(settings: Settings) -> None:
    settings = dataclasses.replace(settings, methods=("zero_shot",), protocols=("ucdr",), rules="official")
    _, _, store, _ = run(settings)
    record = by_split(store)["line"]
    assert record.scores["unseen"].similarity == "sqeuclidean"
    assert record.scores["unseen"].without_relevant == "zero"
    assert "selected on test" in record.notes
    resources = Resources(settings)
    method, cache = ZeroShot(resources.backbone), resources.pixels("tiny")
    task = resources.task("tiny", "ucdr", "line").retrievals[0]
    query, gallery = (method.encode_raw(unit_range(cache[rows])) for rows in (task.query, task.gallery))
    assert float((query.norm(dim=1) - 1).abs().max()) > 0.05, "raw features are not of unit length"
    nearest = torch.cdist(query, gallery).argsort(dim=1)[:, 0]
    frame = store.per_query(record)
    tops = frame[frame["gallery"] == "unseen"]["top_keys"].str[0].tolist()
    keys = cache.dataset.table["key"].to_numpy()[task.gallery]
    assert tops == keys[nearest.numpy()].tolist()


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


def test_presets_set_what_a_config_has() -> None:
    from methods.pros import ProSConfig
    from methods.sre_clip import SreClipConfig

    preset = Preset("p", "", steps=30, batch_size=32, validations=4)
    wanted = {"steps": 30, "batch_size": 32, "stage1_batch_size": 32, "validate_every": 8, "patience": 0}
    assert preset.changes(ProSConfig) == wanted
    assert "stage1_batch_size" not in preset.changes(SreClipConfig)
    assert preset.changes(ProbeConfig) == {"steps": 30}
    assert Preset("p", "", steps=30, batch_size=320).changes(ProSConfig)["batch_size"] == 50
    assert PRESETS["full"].changes(ProSConfig) == {"steps": 0}


def test_a_grid_whose_every_rate_fails_is_a_failure(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PRESETS, "grid", Preset("grid", "too high", 5, learning_rates=(2.0, 3.0)))  # type: ignore[call-overload]
    _, outcome, store, _ = run(dataclasses.replace(settings, protocols=("ucdr",), preset="grid"))
    assert outcome.counts == {"failed": 3}
    assert all(record.reason == "FloatingPointError: the loss is not a number" for record in store.records())


def test_config_layers_default_variant_preset_set(settings: Settings) -> None:
    def config(**changes: Any) -> Any:
        changed = dataclasses.replace(settings, **changes)
        return plan(changed, Resources(changed)).groups[0].config

    assert config(preset="full") == ProbeConfig(steps=0)
    assert config(preset="full", variant="official") == ProbeConfig(learning_rate=0.25, steps=0)
    chosen = config(variant="official", set=(("probe.learning_rate", 1), ("steps", 9), ("names", ["a", "b"])))
    assert chosen == ProbeConfig(1.0, 9, ("a", "b"))
    assert isinstance(chosen.learning_rate, float)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"set": (("lerning_rate", 1.0),)}, "did you mean learning_rate"),
        ({"set": (("probe.learning_rate", "fast"),)}, "takes float"),
        ({"set": (("zero_shot.template", "x"),)}, "zero_shot is not a method of this run; add it to --methods"),
        ({"variant": "offical"}, "did you mean official"),
        ({"backbone": "no/such/folder/here"}, "--backbone: backbone folder"),
        ({"backbone": "picto-clip-v99"}, "not in this installation"),
        ({"device": "tpu9"}, "--device tpu9"),
    ],
)
def test_a_wrong_option_is_one_line(settings: Settings, change: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        changed = dataclasses.replace(settings, **change)
        plan(changed, Resources(changed))
    assert "\n" not in str(caught.value)


def test_a_missing_data_set_is_a_row_until_it_is_there(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.datasets.base import DatasetError
    from tests.support.tiny_dataset import TinyShapes

    def missing(self: TinyShapes, root: Path | None = None) -> None:
        raise DatasetError("tiny is missing: put it under --data-root")

    monkeypatch.setattr(TinyShapes, "__init__", missing)
    planned, outcome, store, _ = run(settings)
    assert not planned.cells
    assert outcome.counts == {"failed": 3}
    assert {r.reason for r in store.records()} == {"DatasetError: tiny is missing: put it under --data-root"}
    every = dataclasses.replace(settings, datasets=("all",), protocols=("ucdr",))
    assert plan(every, Resources(every)).skipped["tiny"] == "tiny is missing: put it under --data-root"


class LongEmbeddings(ZeroShot):
    """Zero-shot CLIP whose embeddings are of many lengths, as a method of another package may give them."""

    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        return 7 * super().encode_images(pixels)

    def encode_classes(self, names: Sequence[str]) -> torch.Tensor:
        return torch.arange(1.0, len(names) + 1)[:, None] * super().encode_classes(names)


def test_classification_is_scored_and_kept_image_by_image(settings: Settings) -> None:
    from benchmarks.protocols.registry import PROTOCOLS
    from benchmarks.runner.resources import DATASETS

    closed = DATASETS.get("tiny")().closed_set
    for name in {"uda", "dazsl"} - set(PROTOCOLS.names()):
        PROTOCOLS.add(name, f"benchmarks.protocols.{name}:PROTOCOL", summary="added by a test")
    settings = dataclasses.replace(settings, methods=("zero_shot", "raw_pixel"), protocols=("uda", "dazsl"))
    resources = Resources(settings)
    _, outcome, store, _ = run(settings, resources)
    assert outcome.counts == {"ok": 6 + 1 + 6, "not_applicable": 1}
    records = {(r.cell.method, r.cell.protocol, r.cell.split): r for r in store.records()}
    refused = records["raw_pixel", "dazsl", "line to flat"]
    assert refused.status == "not_applicable"
    assert "has no images of" in refused.reason
    record = records["zero_shot", "uda", "flat to glyph"]
    assert set(record.scores) == {"source", "target"}
    assert record.galleries["target"] == ["accuracy[image]"]
    target = record.scores["target"]
    assert (target.n_queries, target.gallery_size, target.similarity) == (36, 6, "logits")
    frame = store.per_query(record).query("gallery == 'target'")
    assert frame["credit"].mean() == pytest.approx(target.metrics["accuracy[image]"])
    method, pixels = ZeroShot(resources.backbone), resources.pixels("tiny")
    question = resources.task("tiny", "uda", "flat to glyph").classifications[0]
    slow = method.classify(unit_range(pixels[question.rows]), closed.uda_classes)
    encoded = EncodedImages(method.encode_images, pixels, lambda count: None)
    fast = torch.cat(list(scoring.class_logits(method, encoded, question, "clean")))
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-5)
    asked = torch.cat(list(scoring.class_logits(method, encoded, question, "official")))
    torch.testing.assert_close(asked, slow, rtol=1e-5, atol=1e-5)
    long = LongEmbeddings(resources.backbone)
    encoded = EncodedImages(long.encode_images, pixels, lambda count: None)
    scaled = torch.cat(list(scoring.class_logits(long, encoded, question, "clean")))
    torch.testing.assert_close(scaled, slow, rtol=1e-5, atol=1e-4)
    whole = long.classify(unit_range(pixels[question.rows]), closed.uda_classes)
    torch.testing.assert_close(whole, slow, rtol=1e-5, atol=1e-4)
    best = slow.argmax(dim=1)
    assert frame["top_keys"].str[0].tolist() == [closed.uda_classes[i] for i in best]
    right = frame["top_keys"].str[0] == frame["class"]
    assert right.mean() == pytest.approx(target.metrics["accuracy[image]"])
    scores = records["zero_shot", "dazsl", "line to flat"].scores["target"]
    assert {"h[image]", "seen[image]", "unseen[image]", "zsl[class]"} <= set(scores.metrics)
    limit = dataclasses.replace(settings, limit=12, out=settings.out + "2", methods=("zero_shot",))
    assert run(limit)[1].counts == {"ok": 7}


def test_limits_keep_classes_together(tiny_dataset: Any) -> None:
    from benchmarks.protocols.ucdr import PROTOCOL

    dataset = tiny_dataset()
    whole = PROTOCOL.task(dataset, "line")
    small = limited(whole, dataset, 8)
    small.check(dataset)
    classes = dataset.table["class"].to_numpy()
    unseen = small.retrievals[0]
    assert len(small.train) == len(unseen.query) == len(unseen.gallery) == 8
    assert set(classes[unseen.query]) == set(classes[unseen.gallery]) == set(dataset.classes("test"))
    assert set(small.train) <= set(whole.train)
    assert len(set(classes[small.train])) == 6
    assert small.fit_id != whole.fit_id
    tiny = limited(whole, dataset, 3).retrievals[0]
    assert set(classes[tiny.query]) == set(classes[tiny.gallery])


def test_decoded_images_are_kept_and_equal(tiny_dataset: Any) -> None:
    dataset = tiny_dataset()
    cache = PixelCache(dataset, 32)
    rows = np.array([5, 3, 5, 100])
    first, second = cache[rows], cache[rows]
    assert dataset.decoded == 3
    assert torch.equal(first, second)
    cache._kept = None
    assert torch.equal(cache[rows], first), "what is kept never changes a number"
    assert first.dtype is torch.uint8
    assert (unit_range(first) - dataset.pixels(rows, 32)).abs().max() <= 0.5 / 255 + 1e-6


@pytest.mark.parametrize("rules", ["clean", "official"])
def test_the_official_rules_invert_the_domains_that_the_released_code_inverts(
    settings: Settings, tiny_dataset: Any, monkeypatch: pytest.MonkeyPatch, rules: Any
) -> None:
    plain = Resources(settings).pixels("tiny")
    monkeypatch.setattr(tiny_dataset, "released", ReleasedListing(inverted=("sketch", "line")))
    resources = Resources(dataclasses.replace(settings, rules=rules))
    shown, rows = resources.pixels("tiny"), np.arange(len(plain.dataset.table))
    negative = np.isin(plain.dataset.table["domain"], ["sketch", "line"]) & (rules == "official")
    assert 0 < negative.sum() < len(rows) or rules == "clean"
    turned = torch.from_numpy(negative)[:, None, None, None]
    assert torch.equal(shown[rows], torch.where(turned, 255 - plain[rows], plain[rows]))
    contents = [np.array(DatasetImages(cache, rows).content) for cache in (plain, shown)]
    assert np.array_equal(contents[0] != contents[1], negative), "no feature of one is taken for the other's"
    notes = {f"{domain} images are inverted" for domain in ("sketch", "line")}
    assert (notes <= set(resources.task("tiny", "ucdr", "line").notes)) == (rules == "official")


# --- what a key holds -------------------------------------------------------------------------------------------------


def keys_of(settings: Settings) -> set[str]:
    return {cell.key for cell in plan(settings, Resources(settings)).cells}


def test_a_checkpoint_whose_config_changes_is_measured_again(
    settings: Settings, tiny_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "elsewhere")
    elsewhere = dataclasses.replace(settings, backbone=str(folder))
    assert keys_of(elsewhere) == keys_of(settings), "the same checkpoint in another folder"
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace("quick_gelu", "gelu"))
    assert not keys_of(elsewhere) & keys_of(settings)
    (folder / "config.json").write_text(config)
    assert keys_of(elsewhere) == keys_of(settings)


class Reads(Probe):
    """Reads a file that a setting names."""

    card = dataclasses.replace(Probe.card, name="reads")

    @dataclasses.dataclass(frozen=True)
    class Config(Probe.Config):
        table: str = ""


def test_the_content_of_a_file_that_a_method_reads_is_in_the_key(settings: Settings, tmp_path: Path) -> None:
    table = tmp_path / "table.txt"
    METHODS.add("reads", Reads)
    try:
        named = dataclasses.replace(settings, methods=("reads",), set=(("reads.table", str(table)),))
        absent = keys_of(named)
        table.write_text("one")
        first = keys_of(named)
        table.write_text("two")
        second = keys_of(named)
        table.write_text("one")
        assert keys_of(named) == first
        assert len(absent | first | second) == 3 * len(first)
    finally:
        METHODS.remove("reads")


def test_a_plain_word_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "word").write_text("x")
    (tmp_path / "a.txt").write_text("x")
    assert Reads.files(Reads.Config(table="word")) == {}
    assert Reads.files(Reads.Config(table="a.txt")) == {"table": Path("a.txt")}
    assert Reads.files(Reads.Config(table="a photo of a {}.")) == {}
    assert Reads.files(Reads.Config(table="no\0name/")) == {}


def test_synsets_decoding_and_version_are_in_the_key(
    settings: Settings, tiny_dataset: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [keys_of(settings)]
    with monkeypatch.context() as context:
        context.setattr(tiny_dataset, "synsets", {"one_ring": "ring.n.02"})
        found.append(keys_of(settings))
    with monkeypatch.context() as context:
        context.setattr(tiny_dataset, "decoding", "another way")
        found.append(keys_of(settings))
    with monkeypatch.context() as context:
        context.setattr(Probe, "version", Probe.version + 1)
        found.append(keys_of(settings))
    assert len(set.union(*found)) == 4 * len(found[0])


def test_sre_clip_reads_wordnet_and_word_vectors(tmp_path: Path) -> None:
    from methods.sre_clip import SreClip, SreClipConfig

    assert set(SreClip.files(SreClipConfig())) == {"wordnet"}
    assert SreClip.files(SreClipConfig())["wordnet"].exists()
    named = SreClip.files(SreClipConfig(word_vectors=str(tmp_path / "glove.txt")))
    assert named["word_vectors"] == tmp_path / "glove.txt"


def test_equal_devices_share_embeddings(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "LARGE", 1)
    monkeypatch.setattr(embeddings, "cache_folder", lambda: Path("cache"))
    resources = Resources(settings)
    group, pixels = plan(settings, resources).groups[0], resources.pixels("tiny")
    method = Probe(resources.backbone)
    places = []
    for device in ("cpu", "cuda:0", "cuda:1"):
        method.device = torch.device(device)
        places.append(embeddings.embedding_folder(group, method, pixels))
    assert places[1] == places[2] != places[0]
