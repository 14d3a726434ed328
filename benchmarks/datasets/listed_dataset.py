"""Published folders whose class split is a committed list (``benchmarks/assets/class_lists/NAME.json``)."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from importlib import resources
from pathlib import Path
from typing import ClassVar

import pandas as pd

from benchmarks.datasets.base import DatasetError
from benchmarks.datasets.layouts import (
    FolderDataset,
    Listing,
    canonical_classes,
    held_back,
    note_lacking,
    place_folders,
    scan,
)

SPLITS = ("train", "val", "test")


@cache
def class_lists(name: str) -> dict[str, tuple[str, ...]]:
    """The committed classes of each split (``train``, ``val``, ``test``), in the order of the released code.

    Raises :class:`DatasetError` if the file was changed (its sha256 no longer fits) or a class stands in two splits.
    """
    file = Path(str(resources.files("benchmarks"))) / "assets" / "class_lists" / f"{name}.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        lists = {split: tuple(content[split]) for split in SPLITS}
        stated = content["sha256"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DatasetError(f"{file} cannot be read ({error}); reinstall the package") from error
    if lists_hash(lists) != stated:
        raise DatasetError(f"{file} was changed: its sha256 no longer fits; reinstall the package")
    names = [name for split in SPLITS for name in lists[split]]
    if len(set(names)) != len(names):
        raise DatasetError(f"{file}: a class stands in two splits")
    return lists


def lists_hash(lists: Mapping[str, tuple[str, ...]]) -> str:
    """sha256 of the lines ``SPLIT<tab>CLASS``, in order."""
    text = "".join(f"{split}\t{name}\n" for split in SPLITS for name in lists[split])
    return hashlib.sha256(text.encode()).hexdigest()


class ListedDataset(FolderDataset):
    """A folder data set whose classes and class split are the committed lists ``lists``.

    Of every train class the images of the gallery domain that :func:`~benchmarks.datasets.layouts.held_back` picks
    are kept from training, so that galleries of seen classes hold nothing that was trained on. ``aliases`` maps folder
    names (letters and digits only) to classes where spelling alone does not tell. Keys begin with the first spelling
    of a domain's folder, whichever of its spellings was read, so that they do not depend on the layout.
    """

    lists: ClassVar[str]
    aliases: ClassVar[Mapping[str, str]] = {}

    def read(self, root: Path) -> Listing:
        """The tree, its keys under the published folders."""
        listing = scan(root, self.places)
        images = listing.images
        keys = images["key"].copy()
        for place in self.places:
            mine = images["domain"] == place.domain
            folder = place_folders(root, place)[0]
            if folder not in (None, place.folders[0]):
                keys[mine] = place.folders[0] + keys[mine].str.removeprefix(unicodedata.normalize("NFC", str(folder)))
        images = images.assign(key=keys).sort_values("key", kind="stable", ignore_index=True)
        return replace(listing, images=images)

    def arrange(self, images: pd.DataFrame) -> pd.DataFrame:
        """Give every image its class, the class's split, and whether it is held back."""
        lists = class_lists(self.lists)
        split_of = {name: split for split in SPLITS for name in lists[split]}
        found = canonical_classes(self, images, tuple(split_of), self.aliases)
        note_lacking(self, found, split_of)
        held = held_back(found, lists["train"], self.card.gallery_domain)
        return found.assign(split=found["class"].map(split_of), held_back=held)

    def classes(self, split: str | None = None) -> tuple[str, ...]:
        """Class names of a split in the order of the released code, whose sampling seeds are positions in that list;
        all of them, sorted, if ``split`` is None."""
        lists = class_lists(self.lists)
        return lists[split] if split is not None else tuple(sorted(name for names in lists.values() for name in names))
