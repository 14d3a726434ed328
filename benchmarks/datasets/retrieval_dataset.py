"""Published folders for retrieval, whose class split is a committed list (``assets/class_lists/NAME.json``)."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pandas as pd

from benchmarks.datasets.folder_dataset import FolderDataset, canonical_classes, note_missing_classes
from benchmarks.datasets.splits import SPLITS, class_lists, held_back
from benchmarks.datasets.tree_scan import Listing, place_folders, scan


class RetrievalDataset(FolderDataset):
    """A folder data set whose classes and class split are the committed lists named ``class_list``.

    Of every train class the images of the gallery domain that :func:`~benchmarks.datasets.splits.held_back` picks
    are kept from training, so that no image in the gallery of a seen class was trained on. ``aliases`` maps folder
    names (letters and digits only) to classes where the spelling does not match. Keys begin with the first spelling
    of a domain's folder, whichever of its spellings was read, so that they do not depend on the layout.
    """

    class_list: ClassVar[str]
    aliases: ClassVar[Mapping[str, str]] = {}

    def read(self, root: Path) -> Listing:
        """The tree, with keys under the published folders."""
        listing = scan(root, self.places)
        images = listing.images
        keys = images["key"].copy()
        for place in self.places:
            rows = images["domain"] == place.domain
            folder = place_folders(root, place)[0]
            if folder not in (None, place.folders[0]):
                keys[rows] = place.folders[0] + keys[rows].str.removeprefix(unicodedata.normalize("NFC", str(folder)))
        images = images.assign(key=keys).sort_values("key", kind="stable", ignore_index=True)
        return replace(listing, images=images)

    def arrange(self, images: pd.DataFrame) -> pd.DataFrame:
        """Give every image its class, the class's split, and whether it is held back."""
        lists = class_lists(self.class_list)
        split_of = {name: split for split in SPLITS for name in lists[split]}
        table = canonical_classes(self, images, tuple(split_of), self.aliases)
        note_missing_classes(self, table, split_of)
        held = held_back(table, lists["train"], self.card.gallery_domain)
        return table.assign(split=table["class"].map(split_of), held_back=held)

    def classes(self, split: str | None = None) -> tuple[str, ...]:
        """Class names of a split in the order of the released code, whose sampling seeds are positions in that list;
        all of them, sorted, if ``split`` is None."""
        lists = class_lists(self.class_list)
        return lists[split] if split is not None else tuple(sorted(name for names in lists.values() for name in names))
