"""UDA: labelled source, unlabelled target, the inductive half, published parts (docs/protocols.md)."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from benchmarks.datasets.base import DatasetError
from benchmarks.datasets.picto_domains import PictoDomains
from benchmarks.protocols.task import Classification
from benchmarks.protocols.uda import INDUCTIVE, PROTOCOL
from tests.protocols.adaptation import check_official_rules
from tests.support.tiny_dataset import DOMAINS, TinyShapes


@pytest.fixture(scope="module")
def dataset() -> PictoDomains:
    return PictoDomains()


def test_splits_are_all_ordered_pairs_of_domains() -> None:
    pairs = [f"{source} to {target}" for source in DOMAINS[:3] for target in DOMAINS[:3] if source != target]
    assert sorted(PROTOCOL.splits(TinyShapes())) == sorted(INDUCTIVE.splits(TinyShapes())) == sorted(pairs)
    with pytest.raises(DatasetError, match=r"tiny has no UDA transfer 'flat to flat'; choose from"):
        PROTOCOL.task(TinyShapes(), "flat to flat")


def test_target_images_are_searched_among_the_labelled_source_images() -> None:
    tiny = TinyShapes()
    task = PROTOCOL.task(tiny, "line to flat")
    classes, domains = (tiny.table[column].to_numpy() for column in ("class", "domain"))
    (retrieval,), (question,) = task.retrievals, task.classifications
    assert retrieval.gallery.tolist() == task.train.tolist()
    assert task.gallery_trained
    everything = np.flatnonzero((domains == "flat") & np.isin(classes, tiny.closed_set.uda_classes))
    assert retrieval.query.tolist() == question.rows.tolist() == everything.tolist()
    assert task.class_names == question.class_names == tiny.closed_set.uda_classes
    assert task.target is not None
    assert task.target.tolist() == everything.tolist(), "transductive: the unlabelled images are the test images"
    assert task.transductive


def test_a_tenth_of_the_source_validates_and_is_not_trained_on() -> None:
    tiny = TinyShapes()
    task = PROTOCOL.task(tiny, "line to flat")
    classes, domains = (tiny.table[column].to_numpy() for column in ("class", "domain"))
    source = np.flatnonzero((domains == "line") & np.isin(classes, tiny.closed_set.uda_classes))
    assert isinstance(task.validation, Classification)
    assert sorted([*task.train, *task.validation.rows]) == source.tolist()
    for name in tiny.closed_set.uda_classes:
        assert (classes[task.validation.rows] == name).sum() == 1, "one of six images of each class"


def test_inductive_halves_hold_all_target_images() -> None:
    tiny = TinyShapes()
    whole, halves = (protocol.task(tiny, "line to flat") for protocol in (PROTOCOL, INDUCTIVE))
    assert halves.target is not None
    assert whole.target is not None
    shown, asked = halves.target, halves.classifications[0].rows
    assert sorted([*shown, *asked]) == whole.target.tolist()
    assert min(len(shown), len(asked)) > 0
    assert not halves.transductive
    assert halves.train.tolist() == whole.train.tolist()


class Parted(TinyShapes):
    """The tiny data set, published with a train and a test part of every domain."""

    @property
    def table(self) -> pd.DataFrame:  # type: ignore[override]
        number = super().table["key"].str.rsplit("/", n=1).str[1].astype(int)
        return super().table.assign(part=np.where(number < 4, "train", "test"))


@pytest.mark.parametrize("protocol", [PROTOCOL, INDUCTIVE], ids=lambda protocol: protocol.name)
def test_published_parts_are_kept(protocol: object) -> None:
    parted = Parted()
    task = protocol.task(parted, "line to flat")  # type: ignore[attr-defined]
    task.check(parted)
    part = parted.table["part"].to_numpy()
    assert isinstance(task.validation, Classification)
    assert set(part[np.concatenate([task.train, task.target, task.validation.rows])]) == {"train"}
    assert set(part[task.classifications[0].rows]) == {"test"}
    assert not task.transductive


# --- PictoDomains -----------------------------------------------------------------------------------------------------


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


def test_official_rules_train_on_the_whole_source_and_select_on_the_target(dataset: PictoDomains) -> None:
    check_official_rules(dataset, PROTOCOL)
