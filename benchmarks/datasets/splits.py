"""Class splits: committed lists (``benchmarks/assets/class_lists/NAME.json``), a seeded rule, held-back images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cache
from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd

from benchmarks.datasets.base import DatasetError

SPLITS = ("train", "val", "test")

#: Share of a train class's gallery images that no training sees, as in the released code's rule.
HELD_BACK_SHARE = 0.08


@cache
def class_lists(name: str) -> dict[str, tuple[str, ...]]:
    """The committed classes of each split (``train``, ``val``, ``test``), in the order of the released code.

    Raises :class:`DatasetError` if the file was changed (its sha256 does not match) or a class is in two splits.
    """
    file = Path(str(resources.files("benchmarks"))) / "assets" / "class_lists" / f"{name}.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        lists = {split: tuple(content[split]) for split in SPLITS}
        stated = content["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{file} cannot be read ({error}); reinstall the package") from error
    if lists_hash(lists) != stated:
        raise DatasetError(f"{file} was changed: its sha256 does not match; reinstall the package")
    names = [name for split in SPLITS for name in lists[split]]
    if len(set(names)) != len(names):
        raise DatasetError(f"{file}: a class is in two splits")
    return lists


def lists_hash(lists: Mapping[str, tuple[str, ...]]) -> str:
    """sha256 of the lines ``SPLIT<tab>CLASS``, in order."""
    text = "".join(f"{split}\t{name}\n" for split in SPLITS for name in lists[split])
    return hashlib.sha256(text.encode()).hexdigest()


def class_splits(
    classes: Iterable[str], *, seed: int = 0, val_share: float = 0.15, test_share: float = 0.25
) -> dict[str, str]:
    """Split of every class by a seeded rule: ``{class: "train" | "val" | "test"}``.

    Classes are ordered by ``sha256("SEED/class/NAME")``; the first ``round(test_share * n)`` are test, the next
    ``round(val_share * n)`` val, at least one each, the rest train. Needs three classes.
    """
    names = sorted(set(classes))
    if len(names) < 3:
        raise DatasetError(f"train, validation and test classes need at least three classes; there are {len(names)}")
    order = sorted(names, key=lambda name: hashlib.sha256(f"{seed}/class/{name}".encode()).digest())
    test = max(1, round(test_share * len(names)))
    val = max(1, min(round(val_share * len(names)), len(names) - test - 1))
    return {
        name: "test" if place < test else "val" if place < test + val else "train" for place, name in enumerate(order)
    }


def held_back(
    images: pd.DataFrame, train: Iterable[str], gallery_domain: str, *, share: float = HELD_BACK_SHARE
) -> np.ndarray:
    """Which images no training may use: bool, one a row of ``images``.

    Of every train class, in the gallery domain, the images whose key has the lowest sha256: ``n - int((1 - share) *
    n)`` of n, as many as the released code holds back, but chosen by name and never all of them. The other domains hold
    back nothing, because no gallery is made of them.
    """
    chosen = np.zeros(len(images), dtype=bool)
    eligible = images["class"].isin(set(train)) & (images["domain"] == gallery_domain)
    keys = images["key"].to_numpy()
    for rows in images.reset_index(drop=True)[eligible.to_numpy()].groupby("class").indices.values():
        members = np.flatnonzero(eligible.to_numpy())[rows]
        count = len(members) - int((1 - share) * len(members))
        order = sorted(members, key=lambda row: hashlib.sha256(str(keys[row]).encode()).digest())
        chosen[order[: min(count, len(members) - 1)]] = True
    return chosen


def with_splits(images: pd.DataFrame, split_of: Mapping[str, str], gallery_domain: str) -> pd.DataFrame:
    """``split`` by class, and ``held_back`` in the gallery domain of the train classes."""
    train = [name for name, split in split_of.items() if split == "train"]
    held = held_back(images, train, gallery_domain)
    return images.assign(split=images["class"].map(split_of), held_back=held)
