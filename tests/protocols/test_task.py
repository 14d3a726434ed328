"""Tasks: what every clean task promises is checked, and a breach is named."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.datasets.base import DatasetError
from benchmarks.protocols import ucdr
from benchmarks.protocols.task import Retrieval, Task, limited
from tests.support.tiny_dataset import TinyShapes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("trained query", "test image 'line/.* is also trained on"),
        ("trained gallery", "test image 'flat/.* is also trained on"),
        ("query in gallery", "a query is in the gallery"),
        ("empty", "no query images"),
        ("withheld class", "trains on classes whose names are withheld"),
    ],
)
def test_a_leaking_task_is_refused(change: str, message: str) -> None:
    dataset = TinyShapes()
    good = ucdr.PROTOCOL.task(dataset, "line")
    one, train, names = good.retrievals[0], good.train, good.class_names
    query, gallery = one.query, one.gallery
    if change == "trained query":
        train = np.union1d(train, query[:1])
    elif change == "trained gallery":
        train = np.union1d(train, gallery[:1])
    elif change == "query in gallery":
        gallery = np.union1d(gallery, query[:1])
    elif change == "empty":
        query = query[:0]
    else:
        names = names[1:]
    bad = Task("ucdr", "tiny", "clean", "line", train, names, (Retrieval("unseen", query, gallery),))
    with pytest.raises(DatasetError, match=message):
        bad.check(dataset)


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
