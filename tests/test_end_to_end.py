"""The grid: every registered method answers every registered protocol, end to end through the sweep.

The sweep is ``--preset smoke`` on the tiny data set and the tiny CLIP; scores mean nothing here. What is checked is
that each is there and holds what an answer must hold. Rows and columns come from the registries: a new method or
protocol is covered with no edit.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.datasets.registry import DATASETS
from benchmarks.protocols.task import Task
from benchmarks.runner.plan import FitGroup, plan
from benchmarks.runner.presets import PRESETS
from benchmarks.runner.resources import Resources
from benchmarks.runner.run_plan import execute
from benchmarks.runner.settings import resolve
from benchmarks.store.files import ResultStore
from benchmarks.store.records import Record
from methods.interface import FitReport, Log, Method, NotApplicableError, TrainingData
from methods.parts.backbone import Backbone
from methods.parts.feeding import unit_range
from methods.registry import METHODS
from tests.support.every import METHOD_NAMES, PROTOCOL_NAMES, Silent
from tests.support.tiny_dataset import TinyShapes

every_protocol = pytest.mark.parametrize("protocol", PROTOCOL_NAMES)
every_method = pytest.mark.parametrize("method", METHOD_NAMES)


class Keeper(Silent):
    """A watcher that knows which model is being fitted."""

    group: FitGroup

    def fitting(self, group: FitGroup) -> None:
        self.group = group


@dataclass
class Swept:
    """What a sweep left: its records by (method, protocol), and every fitted method by (method, fit id, seed)."""

    resources: Resources
    records: dict[tuple[str, str], list[Record]] = field(default_factory=dict)
    fitted: dict[tuple[str, str, int], Method] = field(default_factory=dict)

    def task(self, record: Record) -> Task:
        """The task that a record answers."""
        return self.resources.task("tiny", record.cell.protocol, record.cell.split)

    def method(self, record: Record) -> Method:
        """The fitted method that gave a record."""
        return self.fitted[record.cell.method, record.fit.fit_id or self.task(record).fit_id, record.cell.seed]


def sweep(folder: Path, backbone: Path, **changes: Any) -> Swept:
    """Run ``--preset smoke`` on the tiny data set."""
    asked = {"methods": METHOD_NAMES, "protocols": PROTOCOL_NAMES, "datasets": "tiny", "preset": "smoke"}
    fixed = {"backbone": str(backbone), "out": str(folder), "device": "cpu", "threads": 1, "jobs": 1}
    resources = Resources(resolve({**asked, **fixed, **changes}))
    swept, store, watcher = Swept(resources), ResultStore(folder), Keeper()
    with pytest.MonkeyPatch.context() as patch:
        for name in resources.settings.methods:
            method = METHODS.get(name)

            def keeping(self: Method, data: TrainingData, *, seed: int, log: Log, _fit: Any = method.fit) -> FitReport:
                swept.fitted[watcher.group.method, watcher.group.fit_id, seed] = self
                report: FitReport = _fit(self, data, seed=seed, log=log)
                return report

            patch.setattr(method, "fit", keeping)
        execute(plan(resources.settings, resources), resources, store, watcher)
    for record in store.records():
        swept.records.setdefault((record.cell.method, record.cell.protocol), []).append(record)
    return swept


@pytest.fixture(scope="module")
def registered() -> Iterator[None]:
    """The tiny data set, registered for the whole file."""
    DATASETS.add("tiny", TinyShapes)
    yield
    DATASETS.remove("tiny")


@pytest.fixture(scope="module")
def swept(registered: None, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Swept:
    """All methods in all protocols, clean rules, paper variants, seed 0."""
    return sweep(tmp_path_factory.mktemp("grid"), tiny_folder)


def has_no_answer(record: Record, task: Task) -> bool:
    """Whether docs/protocols.md lets the method decline: a floor, asked for a class it was shown no image of."""
    trained = set(TinyShapes().table["class"][task.train])
    asked = {name for question in task.classifications for name in question.class_names}
    return bool(METHODS.get(record.cell.method).card.floor) and not asked <= trained


def check_scores(record: Record, task: Task) -> None:
    """A record's status and scores, and its cost and curves, are all there and can be true."""
    if has_no_answer(record, task):
        assert record.status == "not_applicable"
        assert "has no images of" in record.reason
        return
    assert record.status == "ok", f"{record.reason}\n{record.traceback}"
    assert set(record.scores) == {question.name for question in (*task.retrievals, *task.classifications)}
    for name, scores in record.scores.items():
        assert set(record.galleries[name]) <= set(scores.metrics)
        assert all(math.isfinite(value) and 0 <= value <= 1 for value in scores.metrics.values()), scores.metrics
        assert scores.n_queries > 0
    assert record.per_query is not None
    assert record.per_query.rows == sum(scores.n_queries for scores in record.scores.values())


def check_training(record: Record, task: Task) -> None:
    """The record says what training did and cost; an untrained method says that there was none."""
    method, fit, cost = METHODS.get(record.cell.method), record.fit, record.cost
    by_embedding = method.classify is Method.classify and record.cell.rules == "clean"
    if record.status == "ok" and method.trained and (task.retrievals or by_embedding):
        assert cost.pictures_per_second is not None and cost.pictures_per_second > 0
    assert cost.seconds["fit"] >= 0
    assert cost.peak_memory_mib is not None and cost.peak_memory_mib > 10
    assert cost.total_parameters is not None
    assert cost.trainable_parameters is not None
    if not method.trained:
        assert (fit.steps, cost.trainable_parameters, fit.losses) == (0, 0, [])
        return
    assert fit.steps == PRESETS["smoke"].steps
    assert 0 < cost.trainable_parameters <= cost.total_parameters
    assert cost.seconds["fit"] > 0
    assert 1 <= fit.selected_step <= fit.steps
    assert len(fit.losses) >= 1
    assert all(math.isfinite(one["loss"]) and one["stage"] for one in fit.losses)
    assert [one["step"] for one in fit.losses] == sorted({one["step"] for one in fit.losses})


@every_protocol
@every_method
def test_every_method_answers_every_protocol(method: str, protocol: str, swept: Swept) -> None:
    records = swept.records[method, protocol]
    assert {record.cell.split for record in records} == set(swept.resources.splits("tiny", protocol))
    for record in records:
        check_scores(record, swept.task(record))
        check_training(record, swept.task(record))


@every_protocol
@every_method
def test_records_say_what_goes_beyond_the_paper(method: str, protocol: str, swept: Swept) -> None:
    card = METHODS.get(method).card
    for record in swept.records[method, protocol]:
        retrievals = {one.name for one in swept.task(record).retrievals}
        expected = {
            name: card.extension(protocol, "retrieval" if name in retrievals else "classification")
            for name in record.galleries
        }
        assert record.method["extensions"] == {name: text for name, text in expected.items() if text}
        assert record.method["encode_batch"] > 1


@every_method
def test_every_method_says_how_fast_it_is(method: str, swept: Swept) -> None:
    """An untrained method encodes each image once in all; at least its first cell has a rate."""
    rates = [
        record.cost.pictures_per_second for protocol in PROTOCOL_NAMES for record in swept.records[method, protocol]
    ]
    assert any(rate is not None and rate > 0 for rate in rates)


# --- what the fitted methods answer -----------------------------------------------------------------------------------


@pytest.fixture
def answering(method: str, protocol: str, swept: Swept) -> tuple[Method, Tensor, list[str]]:
    """A fitted method, seven images that the protocol asks about, and the classes that it has images of."""
    record = swept.records[method, protocol][0]
    task = swept.task(record)
    asked = task.retrievals[0].query if task.retrievals else task.classifications[0].rows
    images = unit_range(swept.resources.pixels("tiny")[asked[:: max(1, len(asked) // 7)][:7]])
    return swept.method(record), images, sorted(set(TinyShapes().table["class"][task.train]))


def close(one: Tensor, other: Tensor, what: str) -> None:
    """Equal to 1e-5 of the largest magnitude."""
    scale = float(other.abs().max())
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5 * scale, msg=lambda text: f"{what}: {text}")


@every_protocol
@every_method
def test_embeddings_are_finite_normalised_and_their_own(answering: tuple[Method, Tensor, list[str]]) -> None:
    method, images, names = answering
    seen = images.clone()
    embeddings, classes, logits = method.encode_images(images), method.encode_classes(names), None
    logits = method.classify(images, names)
    raw = method.encode_raw(images)
    assert torch.equal(images, seen), "images are not written into"
    assert embeddings.shape[0] == raw.shape[0] == logits.shape[0] == len(images)
    assert classes.shape[0] == logits.shape[1] == len(names)
    for embedding in (embeddings, classes, logits, raw):
        assert embedding.ndim == 2
        assert embedding.is_floating_point()
        assert embedding.isfinite().all()
    if method.card.similarity != "sqeuclidean":
        torch.testing.assert_close(embeddings.norm(dim=1), torch.ones(len(images)), rtol=0, atol=1e-5)
    torch.testing.assert_close(classes.norm(dim=1), torch.ones(len(names)), rtol=0, atol=1e-5)
    assert torch.equal(method.encode_images(images), embeddings), "the same question, the same answer"
    assert torch.equal(method.classify(images, names), logits)
    mixed = torch.tensor([4, 2, 6])
    close(method.encode_images(images[mixed]), embeddings[mixed], "embedding in other company")
    close(method.encode_raw(images[mixed]), raw[mixed], "raw embedding in other company")
    close(method.classify(images[mixed], names), logits[mixed], "logits in other company")
    close(method.encode_images(images[5:6]), embeddings[5:6], "embedding alone")
    close(method.encode_classes(names[::-1]), classes.flip(0), "class embeddings in another order")
    close(method.classify(images, names[::-1]), logits.flip(1), "logits in another order of names")


@every_protocol
@every_method
def test_any_class_name_has_an_embedding_but_a_floor_declines(answering: tuple[Method, Tensor, list[str]]) -> None:
    method, images, names = answering
    strange = [*names[:2], "aircraft_carrier", "two_cats"]
    if method.card.floor:
        for question in (method.encode_classes, lambda names: method.classify(images, names)):
            with pytest.raises(NotApplicableError, match="aircraft_carrier"):
                question(strange)
        return
    classes = method.encode_classes(strange)
    assert classes.isfinite().all()
    torch.testing.assert_close(classes.norm(dim=1), torch.ones(4), rtol=0, atol=1e-5)
    assert float((classes[2] - classes[3]).norm()) > 1e-3, "each name its own"
    logits = method.classify(images, strange)
    assert logits.shape == (len(images), 4)
    assert logits.isfinite().all()


@every_protocol
@every_method
def test_a_checkpoint_answers_as_the_method_did(
    answering: tuple[Method, Tensor, list[str]], swept: Swept, tmp_path: Path
) -> None:
    method, images, names = answering
    torch.set_num_threads(swept.resources.settings.threads or 1)  # what the run kept of the class names has its bits
    method.save(tmp_path / "kept" / "method")
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == ["method.json", "method.safetensors"]
    again = type(method).load(tmp_path / "kept" / "method", swept.resources.backbone)
    assert again.config == method.config
    assert again.total_parameters() == method.total_parameters()
    assert torch.equal(again.encode_images(images), method.encode_images(images))
    assert torch.equal(again.encode_raw(images), method.encode_raw(images))
    assert torch.equal(again.encode_classes(names), method.encode_classes(names))
    assert torch.equal(again.classify(images, names), method.classify(images, names))


UNTRAINED = tuple(name for name in METHOD_NAMES if not METHODS.get(name).trained)


@pytest.mark.parametrize("method", UNTRAINED)
def test_what_needs_no_training_embeds_alike_in_all_protocols(method: str, swept: Swept) -> None:
    """``trained = False`` lets protocols share encoded images, so the embedding must not depend on what was shown."""
    found = [fitted for (name, _, _), fitted in swept.fitted.items() if name == method]
    assert len(found) >= 4
    images = unit_range(swept.resources.pixels("tiny")[TinyShapes().table.index[:4].to_numpy()])
    first, *others = (fitted.encode_images(images) for fitted in found)
    assert all(torch.equal(first, other) for other in others)


def test_no_method_changes_the_backbone(swept: Swept, tiny_folder: Path) -> None:
    used, fresh = swept.resources.backbone.model, Backbone.load(tiny_folder).model
    assert not any(value.requires_grad for value in used.parameters())
    assert not used.training
    for (name, value), (_, expected) in zip(used.state_dict().items(), fresh.state_dict().items(), strict=True):
        assert torch.equal(value, expected), name


# --- seeds and rules --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def again(registered: None, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory, swept: Swept) -> Swept:
    """The sweep a second time, with a second seed, in the protocols without and with target images."""
    return sweep(tmp_path_factory.mktemp("again"), tiny_folder, protocols=("ucdr", "dazsl"), seeds=(0, 1))


@pytest.mark.parametrize("protocol", ["ucdr", "dazsl"])
@every_method
def test_the_same_seed_gives_the_same_bits_and_another_seed_others(
    method: str, protocol: str, swept: Swept, again: Swept
) -> None:
    before = {record.key: record for record in swept.records[method, protocol]}
    for record in again.records[method, protocol]:
        first = before.get(record.key)
        if first is None:
            assert record.cell.seed == 1
            continue
        assert record.scores == first.scores
        assert record.fit == first.fit
        assert record.per_query == first.per_query, "the sha256 of every query's values"
        mine, theirs = again.method(record).tensors(), swept.method(first).tensors()
        assert set(mine) == set(theirs)
        assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
        if METHODS.get(method).trained:
            other = again.fitted[method, record.fit.fit_id, 1].tensors()
            assert not all(torch.equal(value, other[name]) for name, value in mine.items()), "seed 1 learns others"
    assert {record.cell.seed for record in again.records[method, protocol]} == {0, 1}


RELEASED = tuple(name for name in METHOD_NAMES if "official" in METHODS.get(name).variants)


@pytest.fixture(scope="module")
def official(registered: None, tiny_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Swept]:
    """Official rules: the official variants in all protocols, and the paper ones of methods that have both."""
    folder = tmp_path_factory.mktemp("official")
    return {
        "official": sweep(folder / "official", tiny_folder, rules="official", variant="official"),
        "paper": sweep(folder / "paper", tiny_folder, rules="official", methods=RELEASED),
    }


@pytest.mark.parametrize("variant", ["official", "paper"])
@every_protocol
@every_method
def test_every_method_runs_under_official_rules(
    method: str, protocol: str, variant: str, official: dict[str, Swept]
) -> None:
    if variant == "paper" and method not in RELEASED:
        variant = "official"  # the method has no official variant: that sweep ran its paper one
    swept = official[variant]
    released = variant == "official" and method in RELEASED
    if protocol == "dg":  # no paper here has this protocol, so no official rules
        (record,) = swept.records[method, protocol]
        assert record.status == "failed" and "dg has clean rules only; leave --rules out, or dg" in record.reason
        return
    for record in swept.records[method, protocol]:
        task = swept.task(record)
        check_scores(record, task)
        check_training(record, task)
        assert record.cell.rules == "official"
        assert record.cell.variant == ("official" if released else "paper")
        chosen = METHODS.get(method).variants.get("official", {}) if released else {}
        assert {key: record.cell.config[key] for key in chosen if key not in ("steps", "batch_size")} == {
            key: value for key, value in chosen.items() if key not in ("steps", "batch_size")
        }
        assert "selected on test" in record.notes, "official rows are marked"
        for name, scores in record.scores.items():
            retrieval = name in {one.name for one in task.retrievals}
            assert scores.similarity == ("sqeuclidean" if retrieval else "logits")
