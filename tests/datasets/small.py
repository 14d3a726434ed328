"""A small data set in a published layout: three classes in two domains, with class folders spelled in several ways."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from benchmarks.datasets.base import DatasetCard
from benchmarks.datasets.folder_dataset import FolderDataset, canonical_classes
from benchmarks.datasets.splits import held_back
from benchmarks.datasets.tree_scan import Place
from tests.datasets.trees import class_tree

PLACES = (Place("photo", ("Photo", "photos")), Place("draw", ("draw/256",)))


CLASSES = ("ant", "bee", "hot_dog")


class Small(FolderDataset):
    card = DatasetCard(
        "small", "Small", "v1", "here", "MIT", gallery_domain="photo", layout="ROOT/{photo,draw}/CLASS/*"
    )
    places = PLACES
    also_named = ("Small",)

    def arrange(self, found: pd.DataFrame) -> pd.DataFrame:
        found = canonical_classes(self, found, CLASSES, {"bumblebee": "bee"})
        split = found["class"].map({"ant": "train", "bee": "val", "hot_dog": "test"})
        return found.assign(split=split, held_back=held_back(found, ["ant"], "photo"))


def small_tree(folder: Path) -> Path:
    """The data set's root, with four images a class and domain, under ``folder``."""
    root = folder / "data" / "small"
    class_tree(root, ("photos", "draw/256"), ("ant", "Bumble-Bee", "hot-dog"), 4)
    return root
