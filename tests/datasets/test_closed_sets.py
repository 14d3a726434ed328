"""PictoDomains' committed UDA and DAZSL settings follow their rule, and the protocols take them as they are."""

import dataclasses
import json

import numpy as np
import pytest

from benchmarks.datasets.picto_domains import PictoDomains, closed_set_of, closed_set_path
from benchmarks.protocols.dazsl import PROTOCOL as DAZSL
from benchmarks.protocols.dazsl import Dazsl
from benchmarks.protocols.task import Classification
from benchmarks.protocols.uda import INDUCTIVE, PROTOCOL, Uda


@pytest.fixture(scope="module")
def dataset() -> PictoDomains:
    return PictoDomains()


def test_committed_lists_follow_the_rule(dataset: PictoDomains) -> None:
    ruled = json.loads(json.dumps(dataclasses.asdict(closed_set_of(dataset.table))))
    assert json.loads(closed_set_path().read_text(encoding="utf-8")) == ruled
    assert len(ruled["uda_classes"]) >= 40
    assert not set(ruled["seen"]) & set(ruled["unseen"])


def test_twelve_transfers_show_no_target_label(dataset: PictoDomains) -> None:
    splits = PROTOCOL.splits(dataset)
    assert len(splits) == 12
    domains = dataset.table["domain"].to_numpy()
    for split in splits:
        task = PROTOCOL.task(dataset, split)
        task.check(dataset)
        source, target = split.split(" to ")
        assert set(domains[task.train]) == {source}
        assert task.target is not None
        assert set(domains[task.target]) == {target}
        assert isinstance(task.validation, Classification)
        assert set(domains[task.validation.rows]) == {source}, "validation never looks at the target"
        assert not np.intersect1d(task.validation.rows, task.train).size


def test_inductive_uda_tests_on_other_images(dataset: PictoDomains) -> None:
    task = INDUCTIVE.task(dataset, "line to flat")
    task.check(dataset)
    assert task.target is not None
    assert not np.intersect1d(task.target, task.classifications[0].rows).size


@pytest.mark.parametrize("protocol", [PROTOCOL, DAZSL], ids=lambda protocol: protocol.name)
def test_official_rules_train_on_the_whole_source_and_select_on_the_target(
    dataset: PictoDomains, protocol: Uda | Dazsl
) -> None:
    split = protocol.splits(dataset)[0]
    clean, task = (protocol.task(dataset, split, rules) for rules in ("clean", "official"))
    task.check(dataset)
    assert isinstance(clean.validation, Classification)
    kept = set(dataset.table["class"].to_numpy()[clean.train])
    held_out = clean.validation.rows[dataset.table["class"].isin(kept).to_numpy()[clean.validation.rows]]
    assert set(task.train) == {*clean.train, *held_out}
    assert task.validation is task.classifications[0]
    assert task.class_names == task.classifications[0].class_names


def test_dazsl_labels_seen_classes_only(dataset: PictoDomains) -> None:
    closed = dataset.closed_set
    task = DAZSL.task(dataset, "line to flat")
    task.check(dataset)
    classes, domains = dataset.table["class"].to_numpy(), dataset.table["domain"].to_numpy()
    assert set(classes[task.train]) <= set(closed.seen)
    assert set(closed.unseen) <= set(classes[task.target])
    assert isinstance(task.validation, Classification)
    assert set(domains[task.validation.rows]) == {"line"}
    assert not set(classes[task.validation.rows]) & set(closed.unseen), "test classes play no part in validation"
    assert task.classifications[0].seen == closed.seen
