"""mini-DomainNet: 126 classes of DomainNet in four domains, with the published train and test lists; 12 transfers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pandas as pd

from benchmarks.datasets.base import DatasetCard, DatasetError
from benchmarks.datasets.image_lists import (
    OTHER_LISTS,
    RelativeList,
    describe_lists,
    display_path,
    find_lists,
    prefix_notes,
    read_relative_list,
)
from benchmarks.datasets.splits import class_splits, with_splits
from benchmarks.datasets.transfer_dataset import TransferDataset, keys_by_domain
from benchmarks.datasets.tree_scan import Listing, Place, check_root, join_listings, place_folders, scan_listed

DOMAINS = ("clipart", "painting", "real", "sketch")
LISTS = "splits_mini"
SOURCE = "splits_mini of KaiyangZhou/Dassl.pytorch on GitHub, DATASETS.md"
#: Where the eight lists may be under the root; DomainNet's own twelve have the same names in the later places.
PLACES = (LISTS, "mini_splits", "splits", "image_list", "image_lists", "lists", "txt", "")


class MiniDomainNet(TransferDataset):
    """DomainNet's images, as the lists in ``splits_mini`` choose them. The classes also come from the lists.

    Transfers keep the published parts: labelled images and unlabelled target images come from the train lists, the
    test is the target's test list (column ``part`` of the table).
    """

    card = DatasetCard(
        name="mini_domainnet",
        title="mini-DomainNet: 126 classes of DomainNet in four domains",
        version="v1",
        source="images: https://ai.bu.edu/M3SDA/ (Peng et al., ICCV 2019); lists: splits_mini of "
        "KaiyangZhou/Dassl.pytorch on GitHub, DATASETS.md (Zhou et al., TIP 2021)",
        licence="fair use notice on DomainNet's page: research; the images come from the web",
        gallery_domain="real",
        bibtex="""@article{zhou2021domain,
  title={Domain Adaptive Ensemble Learning},
  author={Zhou, Kaiyang and Yang, Yongxin and Qiao, Yu and Xiang, Tao},
  journal={IEEE Transactions on Image Processing},
  volume={30},
  pages={8008--8018},
  year={2021}
}""",
        known_problems=(
            "the AD-CLIP release merges its settings so that the 96 px of this set become 224 px",
            "published for domain adaptation: the class split of the retrieval protocols is our seeded rule",
        ),
        layout="DomainNet as it unpacks, with ROOT/splits_mini/{clipart,painting,real,sketch}_{train,test}.txt",
    )
    places = (*(Place(domain, (domain,)) for domain in DOMAINS), Place("", (LISTS,), classes=False))
    also_named = ("domainnet", "DomainNet", "domain_net")
    #: Classes that the published lists name.
    count: ClassVar[int] = 126

    def read(self, root: Path) -> Listing:
        """The images that the eight lists name, with their ``part``."""
        folder = self._lists(check_root(root))
        listings: list[Listing] = []
        classes: dict[str, int] = {}
        lists: dict[Path, RelativeList] = {}
        for domain in DOMAINS:
            there = place_folders(root, Place(domain, (domain,)))[0] or domain
            for part in ("train", "test"):
                file = folder / f"{domain}_{part}.txt"
                placed = lists[file] = read_relative_list(file, there, 2, root=root)
                classes.update(self._classes(file, placed.rows, classes))
                listing = scan_listed(root, placed.rows["path"], domain=domain)
                listings.append(replace(listing, images=listing.images.assign(part=part)))
        if len(classes) != self.count:
            explanation = f"those are DomainNet's own lists, mini-DomainNet's are {SOURCE}"
            why = explanation if len(classes) == 345 else "fetch the lists again"
            raise DatasetError(f"{folder} names {len(classes)} classes, mini-DomainNet has {self.count}: {why}")
        notes = (f"lists: {describe_lists(list(lists), root)}", *prefix_notes(lists.values()))
        return replace(keys_by_domain(join_listings(listings)), notes=notes)

    def _lists(self, root: Path) -> Path:
        """The folder with all eight lists; raises DatasetError naming what is missing, or what is there instead."""
        names = [f"{domain}_{part}.txt" for domain in DOMAINS for part in ("train", "test")]
        folders = [root / place for place in PLACES]
        whole = next((folder for folder in folders if all((folder / name).is_file() for name in names)), None)
        if whole is not None:
            return whole
        other = find_lists(root, [name.format(domain=domain) for domain in DOMAINS for name in OTHER_LISTS])
        if other:
            raise DatasetError(
                f"{root} has {display_path(other[0], root)}, a list without train and test parts (DomainNet-126, SSDA);"
                f" mini-DomainNet needs ROOT/{LISTS}/DOMAIN_{{train,test}}.txt: {SOURCE}"
            )
        first = next((folder for folder in folders if any((folder / name).is_file() for name in names)), root / LISTS)
        absent = next(name for name in names if not (first / name).is_file())
        raise DatasetError(f"{first / absent} does not exist; the layout is {self.card.layout}")

    def _classes(self, file: Path, listed: pd.DataFrame, known: dict[str, int]) -> dict[str, int]:
        """Label of every class in a list; raises DatasetError if a label is not that of the other lists."""
        labels: dict[str, int] = {}
        for name, label in zip(listed["path"].str.split("/").str[-2], listed["label"], strict=True):
            if labels.setdefault(name, label) != label or known.get(name, label) != label:
                raise DatasetError(f"{file}: class {name} has two labels; fetch the lists again")
        return labels

    def arrange(self, images: pd.DataFrame) -> pd.DataFrame:
        """Split the classes by rule; a list's classes are folder names as they are."""
        names = sorted(images["class"].unique())
        missing = self.count - len(names)
        if missing:
            raise DatasetError(f"{missing} of {self.count} classes have no images under {self.folder}; fetch the rest")
        return with_splits(images, class_splits(names), self.card.gallery_domain)
