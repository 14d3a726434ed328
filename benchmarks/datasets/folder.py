"""``folder``: your own pictures, any ``ROOT/domain/class/*`` tree, with protocols and splits made by a stated rule.

The rule, with the defaults that ``ROOT/folder.toml`` may change (``gallery_domain``, ``seed``, ``test_share``,
``val_share``, ``held_back_share``):

1. A domain is a folder under the root that holds class folders with pictures; two at least.
2. The gallery domain is ``real``, ``photo``, ``photos``, ``image`` or ``images`` if there is one (in that order), else
   the domain with most pictures, the first by name if equal.
3. Validation and test classes are drawn among the classes with pictures in every domain, in the order of
   ``sha256("SEED/class/NAME")``: the first quarter is test, the next 15 % val, at least one each; all others are train.
4. Of every train class a fifth of the gallery domain's pictures, those whose key has the lowest sha256, is held back.
5. UDA: all ordered pairs of the four domains with most pictures, over the classes with three pictures in each of them.
6. DAZSL: from the domain with most pictures (the gallery domain excepted) to the gallery domain; seen are the train
   classes with three source pictures and one target picture, unseen the test classes.
"""

from __future__ import annotations

import dataclasses
import itertools
import tomllib
import unicodedata
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.datasets.base import ClosedSet, DatasetCard, DatasetError, RetrievalCut
from benchmarks.datasets.folders import (
    PICTURE_SUFFIXES,
    Finding,
    FolderDataset,
    Listing,
    Place,
    class_splits,
    held_back,
    scan,
    usable_entries,
)

SETTINGS = "folder.toml"
PHOTOGRAPHS = ("real", "photo", "photos", "image", "images")


@dataclass(frozen=True)
class FolderRule:
    """What ``folder.toml`` may say; ``gallery_domain`` "" lets the rule choose."""

    gallery_domain: str = ""
    seed: int = 0
    test_share: float = 0.25
    val_share: float = 0.15
    held_back_share: float = 0.2


def read_rule(file: Path) -> FolderRule:
    """The settings of a tree; the defaults if there is no file. Raises :class:`DatasetError` naming file and key."""
    if not file.is_file():
        return FolderRule()
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DatasetError(f"{file} is not TOML: {' '.join(str(error).split())}") from error
    known = {field.name: field.default for field in dataclasses.fields(FolderRule)}
    for key, value in values.items():
        if key not in known:
            raise DatasetError(f"{file}: unknown key {key!r}; known are {', '.join(known)}")
        wanted = type(known[key])
        if isinstance(value, bool) or not isinstance(value, (int, float) if wanted is float else wanted):
            raise DatasetError(f"{file}: {key} is {wanted.__name__}, not {value!r}")
    rule = FolderRule(**values)
    shares: dict[str, Any] = {key: getattr(rule, key) for key in known if key.endswith("_share")}
    for key, value in shares.items():
        if not 0 < value < 1:
            raise DatasetError(f"{file}: {key} lies between 0 and 1, not at {value}")
    if rule.test_share + rule.val_share >= 1:
        raise DatasetError(f"{file}: test_share and val_share leave no train classes")
    return rule


class Folder(FolderDataset):
    """A tree of the user's. Its card is made for the tree: the gallery domain is chosen when it is first read."""

    card = DatasetCard(
        name="folder",
        title="Your own pictures",
        version="v1",
        source="yours",
        licence="yours",
        gallery_domain="",
        headline=RetrievalCut(map_at=None, precision_at=None),
        layout="ROOT/DOMAIN/CLASS/*, optionally ROOT/folder.toml",
    )

    def __init__(self, root: Path | None = None) -> None:
        super().__init__(root)
        with self._named():
            if root is None or not root.is_dir():
                return
            self.rule = read_rule(root / SETTINGS)
        gallery = self._gallery(self.listing.pictures)
        vars(self)["card"] = dataclasses.replace(self.card, gallery_domain=gallery)  # over the class's, for this tree

    def read(self, root: Path) -> Listing:
        """Every folder under the root that is not hidden is a domain."""
        entries, odd = usable_entries(root)
        names = [entry.name for entry in entries if entry.is_dir()]
        if not names:
            why = f" ({odd[0]})" if odd else ""
            raise DatasetError(f"{root} holds no domain folders{why}; the layout is {self.card.layout}")
        listing = scan(root, [Place(unicodedata.normalize("NFC", name), (name,), optional=True) for name in names])
        empty = sorted(set(names) - set(listing.pictures["path"].str.partition("/")[0]))
        odd += [Finding("empty", name, "holds no class folders with pictures: no domain") for name in empty]
        return Listing(listing.pictures, (*listing.findings, *odd))

    def lies_in(self, folder: Path) -> bool:
        """Whether there are pictures two folders below."""
        return any(file.suffix.lower() in PICTURE_SUFFIXES for file in itertools.islice(folder.glob("*/*/*"), 1000))

    def _gallery(self, pictures: pd.DataFrame) -> str:
        counts = pictures.groupby("domain").size()
        if len(counts) < 2:
            raise DatasetError(f"folder: {self.folder} has one domain, {counts.index[0]}; two are needed")
        wanted = unicodedata.normalize("NFC", self.rule.gallery_domain)
        if wanted and wanted not in counts.index:
            raise DatasetError(
                f"folder: {self.folder / SETTINGS}: no domain {wanted!r}; there are {', '.join(counts.index)}"
            )
        if wanted:
            return wanted
        named = {str(name).casefold(): str(name) for name in counts.index}
        known = next((named[name] for name in PHOTOGRAPHS if name in named), None)
        return known or min(map(str, counts.index), key=lambda name: (-counts[name], name))

    def arrange(self, pictures: pd.DataFrame) -> pd.DataFrame:
        """The rule of this module."""
        counts = pictures.groupby(["class", "domain"]).size().unstack(fill_value=0)
        everywhere = counts.index[(counts > 0).all(axis=1)]
        if len(everywhere) < 3:
            raise DatasetError(
                f"{self.folder}: {len(everywhere)} classes lie in every domain ({', '.join(counts.columns)}); "
                "three are needed: train, validation and test"
            )
        alike: dict[str, str] = {}
        for name in counts.index:
            other = alike.setdefault(name.casefold(), name)
            if other != name:
                self.note("alike", name, f"differs from {other} in case only; if both are one class, rename one")
        rule = self.rule
        split_of = class_splits(everywhere, seed=rule.seed, val_share=rule.val_share, test_share=rule.test_share)
        split = pictures["class"].map(lambda name: split_of.get(name, "train"))
        train = set(pictures["class"][split == "train"])
        held = held_back(pictures, train, self.card.gallery_domain, share=rule.held_back_share)
        return pictures.assign(split=split, held_back=held)

    @cached_property
    def closed_set(self) -> ClosedSet:
        """UDA and DAZSL by the rule of this module; empty where too few pictures are shared."""
        table, gallery = self.table, self.card.gallery_domain
        counts = table.groupby(["class", "domain"]).size().unstack(fill_value=0)
        order = sorted(self.domains, key=lambda name: (-counts[name].sum(), name))
        domains = tuple(sorted(order[:4]))
        shared = tuple(sorted(counts.index[(counts[list(domains)] >= 3).all(axis=1)]))
        source = next(name for name in order if name != gallery)
        split = table.drop_duplicates("class").set_index("class")["split"].reindex(counts.index)
        shown = counts[gallery] >= 1
        seen = tuple(sorted(counts.index[shown & (counts[source] >= 3) & (split == "train")]))
        unseen = tuple(sorted(counts.index[shown & (split == "test")]))
        return ClosedSet(
            uda_domains=domains if len(shared) >= 2 else (),
            uda_classes=shared if len(shared) >= 2 else (),
            dazsl_pairs=((source, gallery),) if seen and unseen else (),
            seen=seen,
            unseen=unseen,
        )
