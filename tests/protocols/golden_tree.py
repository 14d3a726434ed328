"""The synthetic file tree of tests/golden/splits.json, and the released code's lists of it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
import torch

from benchmarks.datasets.base import Dataset, DatasetCard, ReleasedListing
from benchmarks.protocols import ucdr


class GoldenTree(Dataset):
    """The fixture's synthetic file tree, listed in order of class lists and file names."""

    card = DatasetCard("golden", "Golden tree", "v1", "tests/golden", "MIT", gallery_domain="real")

    def __init__(self, splits: dict[str, Any]) -> None:
        super().__init__(None)
        self.lists = splits

    @cached_property
    def table(self) -> pd.DataFrame:
        split_of = {name: split for split in ("train", "val", "test") for name in self.lists[f"{split}_classes"]}
        rows = [
            {
                "key": f"{domain}/{name}/{domain[0]}_{number:03d}.jpg",
                "class": name,
                "domain": domain,
                "split": split_of[name],
                "held_back": False,
            }
            for domain, classes in self.lists["files_per_class"].items()
            for name, count in classes.items()
            for number in range(count)
        ]
        return pd.DataFrame(rows).sort_values("key", ignore_index=True)

    def pixels(self, rows: np.ndarray, size: int) -> torch.Tensor:
        raise AssertionError("only the lists are tested")

    @cached_property
    def content(self) -> Sequence[str]:
        return list(self.table["key"])

    def classes(self, split: str | None = None) -> tuple[str, ...]:
        """The fixture's own order: the seed of a class's sample is its place in this list."""
        return tuple(self.lists[f"{split}_classes"])


class Golden245(GoldenTree):
    """The tree as UCDR-Adapter's code lists DomainNet."""

    released = ReleasedListing(trains_on_validation=False)


class GoldenPlain(GoldenTree):
    """The tree as the released code lists Sketchy and TU-Berlin."""

    released = ReleasedListing(mixed_gallery=False)


def sha(paths: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(paths).encode()).hexdigest()


class Listing:
    """What the rules of benchmarks/protocols/official.py make of the tree, as paths."""

    def __init__(self, dataset: GoldenTree, train_classes: Sequence[str]) -> None:
        self.keys = dataset.table["key"].to_numpy()
        self.listing = ucdr.OfficialListing(dataset, ucdr.Rows(dataset))
        self.train_classes = train_classes

    def files(self, domain: str, classes: Sequence[str] | None = None) -> list[list[int]]:
        return self.listing.files(domain, self.train_classes if classes is None else classes)

    def paths(self, rows: Sequence[int]) -> list[str]:
        return [str(self.keys[row]) for row in rows]
