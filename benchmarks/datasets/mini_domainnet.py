"""mini-DomainNet: 126 classes of DomainNet in four domains, with the published train and test lists; 12 transfers."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pandas as pd

from benchmarks.datasets.base import DatasetCard, DatasetError
from benchmarks.datasets.folders import Listing, Place, class_splits, join_listings, list_files, read_image_list
from benchmarks.datasets.transfers import TransferDataset, with_splits

DOMAINS = ("clipart", "painting", "real", "sketch")
LISTS = "splits_mini"


class MiniDomainNet(TransferDataset):
    """DomainNet's pictures, as the lists in ``splits_mini`` choose them. The lists also say what the classes are.

    Transfers keep the published parts: labelled pictures and unlabelled target pictures come from the train lists, the
    test is the target's test list (column ``part`` of the table).
    """

    card = DatasetCard(
        name="mini_domainnet",
        title="mini-DomainNet: 126 classes of DomainNet in four domains",
        version="v1",
        source="pictures: https://ai.bu.edu/M3SDA/ (Peng et al., ICCV 2019); lists: splits_mini of "
        "KaiyangZhou/Dassl.pytorch on GitHub, DATASETS.md (Zhou et al., TIP 2021)",
        licence="fair use notice on DomainNet's page: research; the pictures come from the web",
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
    also_named = ("domainnet", "DomainNet")
    #: Classes that the published lists name.
    count: ClassVar[int] = 126

    def read(self, root: Path) -> Listing:
        """The pictures that the eight lists name, with their ``part``."""
        listings: list[Listing] = []
        classes: dict[str, int] = {}
        for domain in DOMAINS:
            for part in ("train", "test"):
                file = root / LISTS / f"{domain}_{part}.txt"
                if not file.is_file():
                    raise DatasetError(f"{file} does not exist; the layout is {self.card.layout}")
                listed = read_image_list(file)
                classes.update(self._classes(file, listed, domain, classes))
                listing = list_files(root, listed["path"], domain=domain)
                listings.append(Listing(listing.pictures.assign(part=part), listing.findings))
        if len(classes) != self.count:
            raise DatasetError(
                f"{root / LISTS} names {len(classes)} classes, mini-DomainNet has {self.count}: fetch the lists again"
            )
        return join_listings(listings)

    def _classes(self, file: Path, listed: pd.DataFrame, domain: str, known: dict[str, int]) -> dict[str, int]:
        """Label of every class in a list; raises DatasetError if a label is not that of the other lists."""
        parts = listed["path"].str.split("/")
        odd = parts.map(len).ne(3) | parts.str[0].ne(domain)
        if odd.any():
            raise DatasetError(f"{file}: {listed.loc[odd, 'path'].iloc[0]} is not of the form {domain}/CLASS/FILE")
        found: dict[str, int] = {}
        for name, label in zip(parts.str[1], listed["label"], strict=True):
            if found.setdefault(name, label) != label or known.get(name, label) != label:
                raise DatasetError(f"{file}: class {name} has two labels; fetch the lists again")
        return found

    def arrange(self, pictures: pd.DataFrame) -> pd.DataFrame:
        """Split the classes by rule; a list's classes are folder names as they are."""
        names = sorted(pictures["class"].unique())
        lacking = self.count - len(names)
        if lacking:
            raise DatasetError(
                f"{lacking} of {self.count} classes have no pictures under {self.folder}; fetch the rest"
            )
        return with_splits(pictures, class_splits(names), self.card.gallery_domain)
