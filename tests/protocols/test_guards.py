"""Guards: every registered method in every protocol learns from what docs/protocols.md shows, and nothing else.

Four kinds of test, all fed from the registries:

* what a protocol hands out is compared with docs/protocols.md, row by row, on the tiny data set and on PictoDomains;
* a method that asks for what is withheld gets an error, and the sweep records it and goes on;
* a tripwire under the data set and the tokenizer notes which images and class names each method's training asks for;
* a second world, in which everything withheld is different, must give bit for bit the same trained method.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor

from benchmarks.datasets.base import Dataset
from benchmarks.datasets.picto_domains import PictoDomains, pack_path
from benchmarks.datasets.pixels import PixelCache
from benchmarks.protocols.registry import PROTOCOLS
from benchmarks.protocols.task import Classification, Retrieval, Task
from benchmarks.protocols.training import Question, training_data
from benchmarks.runner.embeddings import EncodedImages
from benchmarks.runner.executors import Outcome
from benchmarks.runner.plan import plan
from benchmarks.runner.resources import Resources
from benchmarks.runner.run_plan import execute
from benchmarks.runner.scoring import score_classification, score_retrieval
from benchmarks.runner.settings import Settings
from benchmarks.store.files import ResultStore
from benchmarks.store.records import Record
from methods.interface import FitReport, Log, Method, TrainingData, WithheldError
from methods.parts import feeding
from methods.parts.backbone import Backbone, PromptBackbone
from methods.parts.bounds import fill
from methods.parts.feature_cache import process_cache
from methods.parts.feeding import unit_range
from methods.parts.prompts import class_text
from methods.parts.templates import IMAGENET_60
from methods.registry import METHODS
from tests.support.every import METHOD_NAMES, PROTOCOL_NAMES, Silent, small
from tests.support.tiny_dataset import TinyShapes

every_protocol = pytest.mark.parametrize("protocol", PROTOCOL_NAMES)
every_method = pytest.mark.parametrize("method", METHOD_NAMES)


# --- what a protocol hands out, against docs/protocols.md -------------------------------------------------------------


@dataclass(frozen=True)
class Shown:
    """One column of docs/protocols.md as conditions on the data set's table.

    ``labelled``: images that fit may see with their label; ``unlabelled``: without; ``names``: class names in fit;
    ``validation``: images that the validation task may hold.
    """

    labelled: pd.Series
    unlabelled: pd.Series
    names: frozenset[str]
    validation: pd.Series


def shown(dataset: Dataset, protocol: str, split: str) -> Shown:
    """The table of docs/protocols.md, written down a second time."""
    table, closed = dataset.table, dataset.closed_set
    none = pd.Series(False, index=table.index)
    train, val = table["split"] == "train", table["split"] == "val"
    if protocol in ("ucdr", "udcdr", "uccdr"):
        domain = none if protocol == "uccdr" else table["domain"] == split
        names = frozenset(table.loc[train, "class"])
        return Shown(train & ~domain & ~table["held_back"], none, names, val & ~domain)
    if protocol == "dg":
        inside = table["class"].isin(closed.uda_classes) & table["domain"].isin(closed.uda_domains)
        seen_domains = inside & (table["domain"] != split)
        return Shown(seen_domains, none, frozenset(closed.uda_classes), seen_domains)
    source, target = (table["domain"] == name for name in split.split(" to "))
    if protocol in ("uda", "uda_inductive"):
        inside = table["class"].isin(closed.uda_classes)
        return Shown(inside & source, inside & target, frozenset(closed.uda_classes), inside & source)
    if protocol == "dazsl":
        seen, inside = (table["class"].isin(names) for names in (closed.seen, (*closed.seen, *closed.unseen)))
        names = frozenset((*closed.seen, *closed.unseen, *table.loc[val, "class"]))
        return Shown(seen & source, inside & target, names, (seen | val) & source)
    pytest.skip(f"docs/protocols.md's table has no column {protocol}; the other tests of this file cover it")


def _data_sets() -> list[Any]:
    packed = pytest.mark.skipif(not pack_path().is_file(), reason="no pack here")
    return [pytest.param(TinyShapes, id="tiny"), pytest.param(PictoDomains, id="picto", marks=packed)]


@pytest.fixture(scope="module", params=_data_sets())
def dataset(request: pytest.FixtureRequest) -> Dataset:
    made: Dataset = request.param()
    return made


def no_score(method: Method, question: Question) -> float:
    raise AssertionError("nothing is validated here")


@every_protocol
def test_training_data_holds_what_the_table_shows_and_nothing_else(dataset: Dataset, protocol: str) -> None:
    content, cache = np.array(dataset.content), PixelCache(dataset, 8)
    for split in PROTOCOLS.get(protocol).splits(dataset):
        allowed = shown(dataset, protocol, split)
        task = PROTOCOLS.get(protocol).task(dataset, split)
        data = training_data(task, cache, no_score)
        rows_of = dict(zip(content, range(len(content)), strict=True))
        assert len(rows_of) == len(content), "an image is known by its content"
        labelled = [rows_of[one] for one in data.images.content]
        assert allowed.labelled[labelled].all()
        assert [data.class_names[label] for label in data.labels] == dataset.table["class"][labelled].tolist()
        assert [data.domain_names[one] for one in data.domains] == dataset.table["domain"][labelled].tolist()
        assert set(data.domain_names) == set(dataset.table["domain"][labelled]), "no other domain is even named"
        assert set(data.class_names) <= allowed.names
        assert set(data.synsets) <= allowed.names
        assert data.has_target == bool(allowed.unlabelled.any())
        if data.has_target:
            assert allowed.unlabelled[[rows_of[one] for one in data.target.content]].all()
        assert task.validation is not None
        assert allowed.validation[list(rows_in(task.validation))].all()
        assert not set(rows_in(task.validation)) & set(labelled), "what selects is not trained on"


@every_protocol
def test_no_attribute_leads_to_the_data_set(protocol: str) -> None:
    """Not even an underscored one: from the training data nothing but the images shown can be reached."""
    dataset = TinyShapes()
    chosen = PROTOCOLS.get(protocol)
    task = chosen.task(dataset, chosen.splits(dataset)[0])
    cache = PixelCache(dataset, 8)
    data = training_data(task, cache, no_score)
    met: list[Any] = []
    waiting: list[Any] = [data]
    while waiting:
        thing = waiting.pop()
        if any(thing is known for known in met) or isinstance(thing, str | int | float | torch.Tensor | type | None):
            continue
        met.append(thing)
        if isinstance(thing, dict):
            waiting += thing.values()
        elif isinstance(thing, list | tuple | set):
            waiting += thing
        else:
            waiting += vars(thing).values() if hasattr(thing, "__dict__") else []
    assert data.images in met
    assert not [thing for thing in met if isinstance(thing, Dataset | PixelCache | Task | pd.DataFrame | np.ndarray)]


# --- asking for what is withheld is an error --------------------------------------------------------------------------

#: What a method may try, by name: a question to :class:`TrainingData` alone, and the error it gets if withheld.
PEEKS: dict[str, tuple[Callable[[TrainingData], Any], type[Exception]]] = {
    "target labels": (lambda data: data.target_labels, WithheldError),
    "target images": (lambda data: data.target, WithheldError),
    "a target image beyond": (lambda data: data.target.pixels(torch.tensor([len(data.target)])), WithheldError),
    "an image beyond": (lambda data: data.images.pixels(torch.tensor([0, len(data.images)])), WithheldError),
    "an image before": (lambda data: data.images.pixels(torch.tensor([-1])), WithheldError),
    "unseen names": (lambda data: data.unseen_names, WithheldError),
    "a name beyond": (lambda data: data.class_names[len(data.class_names)], IndexError),
    "a test class's synset": (lambda data: data.synsets["one_ring"], KeyError),
}


def withheld(task: Task) -> set[str]:
    """The peeks that a task's protocol forbids."""
    allowed = set()
    if task.target is not None:
        allowed.add("target images")
    if set(task.class_names) - set(TinyShapes().table["class"][task.train]):
        allowed.add("unseen names")
    if "one_ring" in task.class_names:
        allowed.add("a test class's synset")
    return set(PEEKS) - allowed


def peeking(method: type[Method], peek: Callable[[TrainingData], Any]) -> type[Method]:
    """The method with a ``fit`` that also asks for something else."""

    def fit(self: Method, data: TrainingData, *, seed: int, log: Log) -> FitReport:
        peek(data)
        report: FitReport = method.fit(self, data, seed=seed, log=log)
        return report

    return type(f"Peeking{method.__name__}", (method,), {"fit": fit})


def test_what_the_table_withholds() -> None:
    """``withheld`` itself: everything in the UCDR family, target labels and what is beyond in all protocols."""
    dataset, closed = TinyShapes(), {"target images", "a test class's synset"}
    allowed = {"ucdr": set(), "uccdr": set(), "udcdr": set(), "uda": closed, "uda_inductive": closed}
    for protocol, some in (allowed | {"dazsl": closed | {"unseen names"}}).items():
        for split in PROTOCOLS.get(protocol).splits(dataset):
            assert withheld(PROTOCOLS.get(protocol).task(dataset, split)) == set(PEEKS) - some


@every_protocol
@every_method
def test_a_method_that_reads_what_is_withheld_gets_an_error(
    method: str, protocol: str, tiny_backbone: Backbone
) -> None:
    dataset, chosen = TinyShapes(), PROTOCOLS.get(protocol)
    cache = PixelCache(dataset, tiny_backbone.image_size)
    for split in chosen.splits(dataset):
        task = chosen.task(dataset, split)
        data = training_data(task, cache, no_score)
        for name in sorted(withheld(task)):
            peek, error = PEEKS[name]
            guilty = peeking(METHODS.get(method), peek)(tiny_backbone)
            with pytest.raises(error) as caught:
                guilty.fit(data, seed=0, log=lambda **numbers: None)
            if error is WithheldError:
                assert re.match(rf"{task.protocol} (shows no|withholds) |image -?\d+ is not shown", str(caught.value))


def test_the_sweep_records_each_offender_and_goes_on(tiny_dataset: type, tiny_folder: Path, tmp_path: Path) -> None:
    """Offenders made of every method in all protocols and splits; every cell of the honest ones is scored."""
    guilty = {f"guilty_{name}": peeking(METHODS.get(name), PEEKS["target labels"][0]) for name in METHOD_NAMES}
    honest = ("random", "zero_shot")
    settings = Settings(
        methods=(honest[0], *guilty, honest[1]),
        datasets=("tiny",),
        protocols=PROTOCOL_NAMES,
        backbone=str(tiny_folder),
        preset="smoke",
        limit=48,
        out=str(tmp_path / "results"),
        threads=1,
        device="cpu",
    )
    for name, method in guilty.items():
        METHODS.add(name, method)
    try:
        outcome, records = run(settings)
    finally:
        for name in guilty:
            METHODS.remove(name)
    cells = {(record.cell.protocol, record.cell.split) for record in records}
    assert {protocol for protocol, _ in cells} == set(PROTOCOL_NAMES)
    assert outcome.counts["failed"] == len(cells) * len(guilty)
    assert outcome.counts["ok"] + outcome.counts.get("not_applicable", 0) == len(cells) * len(honest)
    for record in records:
        if record.cell.method in guilty:
            assert record.status == "failed"
            assert re.fullmatch(r"WithheldError: \w+ withholds target labels from every method", record.reason)
            assert "in target_labels" in record.traceback
            assert not record.scores
        elif record.cell.method == "zero_shot":
            assert record.status == "ok"


def run(settings: Settings) -> tuple[Outcome, list[Record]]:
    resources = Resources(settings)
    store = ResultStore(settings.out)
    return execute(plan(settings, resources), resources, store, Silent()), list(store.records())


# --- what every method really asks for --------------------------------------------------------------------------------


class OtherWorld(TinyShapes):
    """The tiny data set with everything else than what a task shows made different.

    Images that the task does not show are noise of another content; classes, domains and synsets of images whose
    labels it does not show have other names. ``task`` None: the tiny data set as it is.
    """

    def __init__(self, task: Task | None) -> None:
        super().__init__()
        self._hidden = np.zeros(len(self.table), dtype=bool)
        if task is None:
            return
        labelled = np.union1d(task.train, list(rows_in(task.validation)))
        images = labelled if task.target is None else np.union1d(labelled, task.target)
        self._hidden[:] = True
        self._hidden[images] = False
        unlabelled = np.setdiff1d(np.arange(len(self.table)), labelled)
        table = self.table.copy()
        for column in ("class", "domain"):
            table.loc[unlabelled, column] = "another_" + table.loc[unlabelled, column]
        self.table = table
        self.synsets = {name: one if name in task.class_names else "cup.n.01" for name, one in self.synsets.items()}
        self.content = [
            f"other {row}" if hidden else content
            for row, (hidden, content) in enumerate(zip(self._hidden, super().content, strict=True))
        ]

    def pixels(self, rows: np.ndarray, size: int) -> Tensor:
        images = super().pixels(rows, size)
        hidden = torch.from_numpy(self._hidden[rows])
        images[hidden] = torch.rand(images[hidden].shape, generator=torch.Generator().manual_seed(1))
        return images


class Tripwire(PixelCache):
    """Notes the table rows that are read, apart for what is read inside of ``validate``."""

    def __init__(self, dataset: Dataset, size: int) -> None:
        super().__init__(dataset, size)
        self.validating = False
        self.in_fit: set[int] = set()
        self.in_validation: set[int] = set()

    def __getitem__(self, rows: np.ndarray) -> Tensor:
        (self.in_validation if self.validating else self.in_fit).update(int(row) for row in rows)
        return super().__getitem__(rows)

    def score(self, method: Method, question: Question) -> float:
        """The validation score, as the sweep computes it."""
        self.validating = True
        try:
            encoded = EncodedImages(method.encode_images, self, lambda count: None)
            if isinstance(question, Classification):
                scores = score_classification(method, encoded, question, "clean").scores.means()
                return scores["accuracy[image]" if question.seen is None else "h[image]"]
            return score_retrieval(method, encoded, question, "clean", ks=()).means()["map@all"]
        finally:
            self.validating = False


@dataclass
class Fitted:
    """A method after ``fit``, and all that its training asked for."""

    task: Task
    method: Method
    report: FitReport
    read: Tripwire
    texts: list[str] = field(default_factory=list)


def rows_in(question: Question | None) -> Iterator[int]:
    """All table rows of a question."""
    if isinstance(question, Retrieval):
        yield from [int(row) for row in (*question.query, *question.gallery)]
    elif question is not None:
        yield from [int(row) for row in question.rows]


def fit(method: type[Method], task: Task, world: Dataset, backbone: Backbone) -> Fitted:
    """Fit on the world's images of the task; seed 3."""
    cache, texts, token_ids = Tripwire(world, backbone.image_size), [], PromptBackbone.token_ids

    def noting(self: PromptBackbone, text: str) -> list[int]:
        texts.append(text)
        return token_ids(self, text)

    process_cache().clear()
    made = method(backbone, method.Config(**small(method)))
    data = training_data(task, cache, cache.score)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PromptBackbone, "token_ids", noting)
        patch.setattr(feeding, "AHEAD", 0)  # else training images that are read meanwhile count as validation's
        torch.manual_seed(3)
        report = made.fit(data, seed=3, log=lambda **numbers: None)
    return Fitted(task, made, report, cache, texts)


@pytest.fixture(scope="module")
def fitted(tiny_backbone: Backbone) -> Callable[[str, str, bool], Fitted]:
    """``fitted(method, protocol, other_world)``, once for the protocols that show the same training data."""
    known: dict[tuple[str, str, bool], Fitted] = {}

    @functools.cache
    def task_of(protocol: str) -> Task:
        chosen, dataset = PROTOCOLS.get(protocol), TinyShapes()
        task: Task = chosen.task(dataset, chosen.splits(dataset)[-1])
        return task

    def get(method: str, protocol: str, other_world: bool) -> Fitted:
        task = task_of(protocol)
        key = (method, task.fit_id, other_world)
        if key not in known:
            world = OtherWorld(task if other_world else None)
            known[key] = fit(METHODS.get(method), task, world, tiny_backbone)
        return known[key]

    return get


def offences(one: Fitted, dataset: Dataset) -> list[str]:
    """Everything that the training asked for and its task does not show."""
    task, table = one.task, dataset.table
    target: set[int] = set() if task.target is None else set(task.target.tolist())
    found = [f"image {table['key'][row]}" for row in one.read.in_fit - set(task.train.tolist()) - target]
    found += [f"in validation {table['key'][row]}" for row in one.read.in_validation - set(rows_in(task.validation))]
    hidden = [name for name in dataset.classes() if name not in task.class_names]
    domains = set(dataset.domains) - set(table["domain"][task.train])
    published = {fill(text, class_text(name)) for text in IMAGENET_60 for name in task.class_names}
    for text in set(one.texts):
        words = f" {re.sub('[^a-z]+', ' ', text.lower())} "
        found += [f"class name {name}" for name in hidden if f" {class_text(name)} " in words]
        if text not in published:  # "a sketch of a cat." is asked for whatever the domains are
            found += [f"domain name {name}" for name in domains if f" {name} " in words]
    return found


@every_protocol
@every_method
def test_training_asks_for_what_is_shown_only(
    method: str, protocol: str, fitted: Callable[[str, str, bool], Fitted]
) -> None:
    one = fitted(method, protocol, False)
    assert offences(one, TinyShapes()) == []
    if one.method.trained:
        assert one.read.in_fit, "the tripwire sees what training reads"
        assert one.report.steps == small(type(one.method))["steps"]
        assert one.read.in_validation == set(rows_in(one.task.validation)), "validated, through validate alone"
        assert len(one.report.validation) >= 1


@every_protocol
@every_method
def test_what_is_withheld_changes_no_bit_of_a_trained_method(
    method: str, protocol: str, fitted: Callable[[str, str, bool], Fitted]
) -> None:
    one, other = fitted(method, protocol, False), fitted(method, protocol, True)
    assert different(one, other) == []


def different(one: Fitted, other: Fitted) -> list[str]:
    """What is not bit for bit equal in two trained methods."""
    found = [
        name
        for name in ("steps", "selected_step", "trainable_parameters", "losses", "validation")
        if getattr(one.report, name) != getattr(other.report, name)
    ]
    mine, theirs = one.method.tensors(), other.method.tensors()
    assert set(mine) == set(theirs)
    found += [name for name, value in mine.items() if not torch.equal(value, theirs[name])]
    found += ["facts"] * (one.method.facts() != other.method.facts())
    side = one.method.backbone.image_size
    pixels = torch.rand(3, 3, side, side, generator=torch.Generator().manual_seed(5))
    with torch.no_grad():
        found += ["features"] * (not torch.equal(one.method.encode_images(pixels), other.method.encode_images(pixels)))
        labelled = sorted(set(TinyShapes().table["class"][one.task.train]))
        classes = [fitted.method.encode_classes(labelled) for fitted in (one, other)]
    return found + ["class embeddings"] * (not torch.equal(*classes))


@every_protocol
def test_these_tests_catch_a_method_that_breaks_in(protocol: str, tiny_backbone: Backbone) -> None:
    """Python keeps no secrets from a method that digs; this one does, and both the tripwire and the worlds show it."""
    base: type[Method] = METHODS.get("raw_pixel")

    class Burglar(base):  # type: ignore[misc, valid-type]
        def fit(self, data: TrainingData, *, seed: int, log: Log) -> FitReport:
            report: FitReport = super().fit(data, seed=seed, log=log)
            cells = [cell.cell_contents for cell in data.images._decode.__closure__]  # type: ignore[attr-defined]
            cache = next(content for content in cells if isinstance(content, PixelCache))
            self.loot = unit_range(cache[np.arange(len(cache.dataset.table))]).mean(dim=0, keepdim=True)
            self.backbone.encode_texts([f"a photo of a {class_text(name)}" for name in cache.dataset.classes()])
            return report

        def tensors(self) -> dict[str, Tensor]:
            return {**super().tensors(), "loot": self.loot}

    chosen, dataset = PROTOCOLS.get(protocol), TinyShapes()
    task = chosen.task(dataset, chosen.splits(dataset)[-1])
    one, other = (fit(Burglar, task, OtherWorld(world), tiny_backbone) for world in (None, task))
    assert different(one, other) == ["loot"]
    found = offences(one, dataset)
    asked = {row for question in (*task.retrievals, *task.classifications) for row in rows_in(question)}
    unshown = asked - set(task.train) - set(() if task.target is None else task.target)
    assert {f"image {dataset.table['key'][row]}" for row in unshown} <= set(found)
    assert any(offence.startswith("image ") for offence in found)
    hidden = set(dataset.classes()) - set(task.class_names)
    assert {f"class name {name}" for name in hidden} <= set(found)


def test_the_other_world_is_another_one() -> None:
    for protocol in PROTOCOL_NAMES:
        chosen, here = PROTOCOLS.get(protocol), TinyShapes()
        task = chosen.task(here, chosen.splits(here)[-1])
        there = OtherWorld(task)
        for question in (*task.retrievals, *task.classifications):
            rows = np.array(sorted(rows_in(question)))
            rows = np.setdiff1d(rows, task.train)
            assert (here.table["class"][rows] != there.table["class"][rows]).all(), "test labels differ"
            if not task.transductive:
                assert (here.pixels(rows, 8) - there.pixels(rows, 8)).abs().amax(dim=(1, 2, 3)).min() > 0.1
                assert not set(np.array(here.content)[rows]) & set(np.array(there.content)[rows])
        assert torch.equal(here.pixels(task.train, 8), there.pixels(task.train, 8))
        assert here.table.loc[task.train].equals(there.table.loc[task.train])
        assert dataclasses.asdict(here.closed_set) == dataclasses.asdict(there.closed_set)
