"""Image folders made for domain adaptation: one closed set of classes in several domains, known by name."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pandas as pd

from benchmarks.datasets.base import ClosedSet
from benchmarks.datasets.folder_dataset import FolderDataset, canonical_classes, note_missing_classes
from benchmarks.datasets.splits import class_splits, with_splits
from benchmarks.datasets.tree_scan import Listing, Place, place_folders, scan


class TransferDataset(FolderDataset):
    """A folder data set whose domains share the classes ``class_names``: UDA over all of them.

    * ``bases``: folders under the root that may contain the domain folders, as the published archives unpack.
    * ``aliases``: folder names (letters and digits only) of classes where the spelling does not match.

    No class split was published, so the retrieval protocols use the seeded rule of
    :func:`~benchmarks.datasets.splits.class_splits`. Keys are ``DOMAIN/CLASS FOLDER/FILE`` in every layout.
    """

    class_names: ClassVar[tuple[str, ...]] = ()
    aliases: ClassVar[Mapping[str, str]] = {}
    bases: ClassVar[tuple[str, ...]] = ("",)

    def read(self, root: Path) -> Listing:
        """The tree under the first base that has a domain's folder."""
        return keys_by_domain(scan(root, places_under_base(root, self.places, self.bases)))

    def looks_like_root(self, folder: Path) -> bool:
        """Whether one of the bases under a folder has the folders of all domains."""
        return any(super(TransferDataset, self).looks_like_root(folder / base) for base in self.bases)

    def arrange(self, images: pd.DataFrame) -> pd.DataFrame:
        """Give every image its class, the class's split by rule, and whether it is held back."""
        table = canonical_classes(self, images, self.class_names, self.aliases)
        note_missing_classes(self, table, self.class_names)
        return with_splits(table, class_splits(self.class_names), self.card.gallery_domain)

    def classes(self, split: str | None = None) -> tuple[str, ...]:
        """Class names of a split (all if None), sorted; known without the images."""
        if not self.class_names:
            return super().classes(split)
        splits = class_splits(self.class_names)
        return tuple(sorted(name for name in self.class_names if split in (None, splits[name])))

    @property
    def closed_set(self) -> ClosedSet:
        """All domains and all classes."""
        return ClosedSet(uda_domains=self.domains, uda_classes=self.classes())


def places_under_base(root: Path, places: tuple[Place, ...], bases: tuple[str, ...]) -> tuple[Place, ...]:
    """The places under the first base folder that has all of them, else one of them; under the first if none has."""
    there = {
        base: [place_folders(root / base, place)[0] for place in places] for base in bases if (root / base).is_dir()
    }
    whole = [base for base, folders in there.items() if None not in folders]
    part = [base for base, folders in there.items() if any(folders)]
    base = next(iter([*whole, *part, bases[0]]))
    prefix = f"{base}/" if base else ""
    return tuple(replace(place, folders=tuple(prefix + name for name in place.folders)) for place in places)


def keys_by_domain(listing: Listing) -> Listing:
    """The listing with keys ``DOMAIN/CLASS FOLDER/FILE``, so that keys do not depend on where an archive unpacks."""
    images = listing.images
    names = images["key"].str.rpartition("/")[2]
    images = images.assign(key=images["domain"] + "/" + images["class"] + "/" + names)
    return replace(listing, images=images.sort_values("key", kind="stable", ignore_index=True))
