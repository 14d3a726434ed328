"""Splits of classes, and the images held back."""

from __future__ import annotations

import pandas as pd
import pytest

from benchmarks.datasets.base import DatasetError
from benchmarks.datasets.splits import class_splits, held_back


def test_class_splits_follow_seed_and_names_alone() -> None:
    names = [f"c{number}" for number in range(20)]
    splits = class_splits(names)
    assert splits == class_splits(reversed(names))
    assert [list(splits.values()).count(split) for split in ("train", "val", "test")] == [12, 3, 5]
    assert class_splits(names, seed=1) != splits
    assert sorted(class_splits(["a", "b", "c"]).values()) == ["test", "train", "val"]
    with pytest.raises(DatasetError, match="need at least three classes; there are 2"):
        class_splits(["a", "b"])


def test_held_back_takes_a_twelfth_of_the_gallery_and_never_all() -> None:
    counts = {"a": 1, "b": 2, "c": 13, "d": 100}
    rows = [
        {"key": f"{domain}/{name}/{number}", "class": name, "domain": domain}
        for domain in ("g", "h")
        for name, count in counts.items()
        for number in range(count)
    ]
    frame = pd.DataFrame(rows)
    chosen = held_back(frame, ["a", "b", "c"], "g")
    assert frame[chosen].groupby(["domain", "class"]).size().to_dict() == {("g", "b"): 1, ("g", "c"): 2}
    shuffled = frame.sample(frac=1, random_state=0).reset_index(drop=True)
    assert set(shuffled[held_back(shuffled, ["a", "b", "c"], "g")]["key"]) == set(frame[chosen]["key"])
