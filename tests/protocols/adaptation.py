"""What UDA and DAZSL share: their official rules (docs/protocols.md), as checks of one protocol."""

from __future__ import annotations

from typing import Any

from benchmarks.datasets.base import Dataset
from benchmarks.protocols.task import Classification


def check_official_rules(dataset: Dataset, protocol: Any) -> None:
    """Official rules train on the whole source and select on the target."""
    split = protocol.splits(dataset)[0]
    clean, task = (protocol.task(dataset, split, rules) for rules in ("clean", "official"))
    task.check(dataset)
    assert isinstance(clean.validation, Classification)
    kept = set(dataset.table["class"].to_numpy()[clean.train])
    held_out = clean.validation.rows[dataset.table["class"].isin(kept).to_numpy()[clean.validation.rows]]
    assert set(task.train) == {*clean.train, *held_out}
    assert task.validation is task.classifications[0]
    assert task.class_names == task.classifications[0].class_names
