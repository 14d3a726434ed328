"""What UCDR, UcCDR and UdCDR share: who sees what (docs/protocols.md), as checks of one protocol."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from benchmarks.datasets.base import Dataset
from tests.protocols.golden_tree import GoldenPlain


def facts(dataset: Dataset, rows: np.ndarray) -> pd.DataFrame:
    """The table's lines of some rows."""
    return dataset.table.iloc[rows]


def check_who_sees_what(dataset: Dataset, protocol: Any) -> None:
    """Training, queries, galleries and validation of every split are those of docs/protocols.md, clean rules."""
    gallery_domain = dataset.card.gallery_domain
    splits = protocol.splits(dataset)
    assert set(splits) == set(dataset.domains) - {gallery_domain}
    for split in splits:
        task = protocol.task(dataset, split)
        task.check(dataset)
        held_out = None if protocol.name == "uccdr" else split
        train = facts(dataset, task.train)
        assert set(train["split"]) == {"train"}
        assert not train["held_back"].any()
        assert set(train["domain"]) == set(dataset.domains) - {held_out}
        expected = dataset.table[
            (dataset.table["split"] == "train") & ~dataset.table["held_back"] & (dataset.table["domain"] != held_out)
        ]
        assert task.train.tolist() == expected.index.tolist(), "all such images, none left out"
        assert task.class_names == dataset.classes("train")
        assert task.target is None
        assert tuple(one.name for one in task.retrievals) == protocol.galleries
        wanted = "train" if protocol.name == "udcdr" else "test"
        for one in task.retrievals:
            query, gallery = facts(dataset, one.query), facts(dataset, one.gallery)
            everything = dataset.table[(dataset.table["domain"] == split) & (dataset.table["split"] == wanted)]
            assert one.query.tolist() == everything.index.tolist()
            assert set(gallery["domain"]) == {gallery_domain}
            assert (
                set(gallery["split"]) == {"unseen": {"test"}, "seen": {"train"}, "mixed": {"test", "train"}}[one.name]
            )
            assert gallery.loc[gallery["split"] == "train", "held_back"].all()
            assert set(query["domain"]) == {split}
        assert task.validation is not None
        query, gallery = facts(dataset, task.validation.query), facts(dataset, task.validation.gallery)
        assert set(query["split"]) == set(gallery["split"]) == {"val"}
        assert set(query["domain"]) == set(dataset.domains) - {gallery_domain, held_out}
        assert set(gallery["domain"]) == {gallery_domain}


def check_test_images_are_new(dataset: Dataset, protocol: Any) -> None:
    """No query or gallery image is trained or selected on, by row or by content."""
    content = np.array(dataset.content)
    for split in protocol.splits(dataset):
        task = protocol.task(dataset, split)
        assert task.validation is not None
        used = np.unique(np.concatenate([task.train, task.validation.query, task.validation.gallery]))
        for one in task.retrievals:
            tested = np.concatenate([one.query, one.gallery])
            assert not np.intersect1d(used, tested).size
            assert not np.intersect1d(content[used], content[tested]).size, "not under another name either"
            assert not np.intersect1d(content[one.query], content[one.gallery]).size
        trained = set(facts(dataset, used)["class"])
        if protocol.name != "udcdr":
            assert not trained & set(facts(dataset, task.retrievals[0].query)["class"])
            assert not trained & set(facts(dataset, task.retrievals[0].gallery)["class"])


def check_plain_listing(protocol: Any, golden_splits: dict[str, Any]) -> None:
    """The released code's plain listing: every image of a training class is trained on, and the gallery is unseen."""
    expected, dataset = golden_splits["expected"], GoldenPlain(golden_splits)
    task = protocol.task(dataset, "quickdraw", "official")
    task.check(dataset)
    assert [one.name for one in task.retrievals] == ["unseen"]
    assert len(task.retrievals[0].gallery) == expected["gallery_plain_test_count"]
    trained = facts(dataset, task.train)
    assert int((trained["domain"] == "real").sum()) == expected["gallery_plain_train_count"]
    assert list(task.class_names) == expected["full_train_classes"]
