"""DAZSL: labelled source of seen classes, unlabelled target, validation on the source alone (docs/protocols.md)."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from benchmarks.datasets.base import DatasetError
from benchmarks.datasets.picto_domains import PictoDomains
from benchmarks.protocols.dazsl import PROTOCOL as DAZSL
from benchmarks.protocols.task import Classification
from tests.protocols.adaptation import check_official_rules
from tests.support.tiny_dataset import TinyShapes


@pytest.fixture(scope="module")
def dataset() -> PictoDomains:
    return PictoDomains()


def test_splits_are_the_pairs_of_the_data_set() -> None:
    assert DAZSL.splits(TinyShapes()) == ["line to flat"]
    with pytest.raises(DatasetError, match=r"tiny has no DAZSL pair 'flat to line'; choose from"):
        DAZSL.task(TinyShapes(), "flat to line")


def test_the_target_is_shown_without_labels_and_is_the_test() -> None:
    tiny = TinyShapes()
    closed, task = tiny.closed_set, DAZSL.task(tiny, "line to flat")
    task.check(tiny)
    classes, domains = (tiny.table[column].to_numpy() for column in ("class", "domain"))
    everything = np.flatnonzero((domains == "flat") & np.isin(classes, (*closed.seen, *closed.unseen)))
    (question,) = task.classifications
    assert task.target is not None
    assert task.target.tolist() == question.rows.tolist() == everything.tolist()
    assert question.class_names == (*closed.seen, *closed.unseen)
    assert task.transductive
    assert not task.retrievals
    assert set(domains[task.train]) == {"line"}


def test_validation_classes_play_the_unseen_ones() -> None:
    """Validation has images of classes that training never labels, and a tenth of the seen classes' images."""
    tiny = TinyShapes()
    closed, task = tiny.closed_set, DAZSL.task(tiny, "line to flat")
    assert isinstance(task.validation, Classification)
    further = set(tiny.classes("val")) - {*closed.seen, *closed.unseen}
    assert further
    asked = set(tiny.table["class"].to_numpy()[task.validation.rows])
    assert asked == {*closed.seen, *further}
    assert task.validation.seen == closed.seen
    assert set(task.validation.class_names) == asked
    assert set(task.class_names) == {*closed.seen, *closed.unseen, *further}
    assert not np.intersect1d(task.train, task.validation.rows).size
    trained = set(tiny.table["class"].to_numpy()[task.train])
    assert trained == set(closed.seen)


class NoFurtherClasses(TinyShapes):
    """Validation classes without an image in the source, as in I2AwA and I2WebV."""

    @property
    def table(self) -> pd.DataFrame:  # type: ignore[override]
        table = super().table
        return table[(table["split"] != "val") | (table["domain"] != "line")].reset_index(drop=True)


def test_without_further_classes_the_held_out_tenth_alone_validates() -> None:
    less = NoFurtherClasses()
    task = DAZSL.task(less, "line to flat")
    assert isinstance(task.validation, Classification)
    assert task.validation.seen is None, "an accuracy, no harmonic mean"
    assert set(less.table["class"].to_numpy()[task.validation.rows]) == set(less.closed_set.seen)


# --- PictoDomains -----------------------------------------------------------------------------------------------------


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


def test_official_rules_train_on_the_whole_source_and_select_on_the_target(dataset: PictoDomains) -> None:
    check_official_rules(dataset, DAZSL)
