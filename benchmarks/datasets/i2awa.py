"""I2AwA: from 3D2 (40 animals from web searches) to AwA2 (the same 40 and 10 more); one transfer.

The benchmark of unsupervised open domain recognition (Zhuo et al., CVPR 2019), which SRE-CLIP uses for DAZSL. The ten
unseen classes are AwA2's "proposed split".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import pandas as pd

from benchmarks.datasets.base import ClosedSet, DatasetCard, DatasetError
from benchmarks.datasets.folder_dataset import FolderDataset, canonical_classes, require_images
from benchmarks.datasets.splits import class_splits, with_splits
from benchmarks.datasets.transfer_dataset import keys_by_domain
from benchmarks.datasets.tree_scan import Listing, Place, scan
from benchmarks.datasets.wnids import synset_name

#: Seen classes and their WordNet ids, as the names of 3D2's folders give them (``killer+whale-n02071294``).
SEEN: Mapping[str, str] = {
    "killer_whale": "n02071294",
    "beaver": "n02363005",
    "dalmatian": "n02110341",
    "persian_cat": "n02123394",
    "german_shepherd": "n02106662",
    "siamese_cat": "n02123597",
    "skunk": "n02445715",
    "mole": "n01889520",
    "tiger": "n02129604",
    "hippopotamus": "n02398521",
    "leopard": "n02128385",
    "spider_monkey": "n02493793",
    "elephant": "n02503517",
    "gorilla": "n02480855",
    "ox": "n02403003",
    "chimpanzee": "n02481823",
    "hamster": "n02342885",
    "fox": "n02118333",
    "squirrel": "n02355227",
    "rabbit": "n02324045",
    "wolf": "n02114100",
    "chihuahua": "n02085620",
    "weasel": "n02441942",
    "otter": "n02444819",
    "buffalo": "n02410702",
    "zebra": "n02391049",
    "giant_panda": "n02510455",
    "pig": "n02395406",
    "lion": "n02129165",
    "polar_bear": "n02134084",
    "collie": "n02106030",
    "cow": "n02403454",
    "deer": "n02430045",
    "mouse": "n02330245",
    "humpback_whale": "n02065726",
    "antelope": "n02419796",
    "grizzly_bear": "n02132580",
    "rhinoceros": "n02391994",
    "raccoon": "n02508021",
    "moose": "n02432983",
}
UNSEEN: Mapping[str, str] = {
    "sheep": "n02411705",
    "dolphin": "n02068974",
    "bat": "n02139199",
    "seal": "n02076196",
    "blue_whale": "n02064816",
    "rat": "n02331046",
    "horse": "n02374451",
    "walrus": "n02081571",
    "giraffe": "n02439033",
    "bobcat": "n02127482",
}

#: c of SRE-CLIP's balance term on this set (docs/methods.md, SRE-CLIP): ``--set sre_clip.unseen_share=0.3``.
UNSEEN_SHARE = 0.3

_WITH_ID = re.compile(r"(.+)-(n\d{8})")


class I2AwA(FolderDataset):
    """3D2 beside AwA2 as their archives unpack."""

    card = DatasetCard(
        name="i2awa",
        title="I2AwA: 3D2 to AwA2, 40 seen and 10 unseen animals",
        version="v1",
        source="3D2: link in junbaoZHUO/UODTN on GitHub (Zhuo et al., CVPR 2019); AwA2: https://cvml.ista.ac.at/AwA2/, "
        "AwA2-data.zip (Xian et al., TPAMI 2019)",
        licence="3D2: web images, no commercial use (its authors hold no rights); AwA2: a licence per image",
        gallery_domain="awa2",
        bibtex="""@inproceedings{zhuo2019unsupervised,
  title={Unsupervised Open Domain Recognition by Semantic Discrepancy Minimization},
  author={Zhuo, Junbao and Wang, Shuhui and Cui, Shuhao and Huang, Qingming},
  booktitle={Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  pages={750--759},
  year={2019}
}
@article{xian2019zero,
  title={Zero-Shot Learning: A Comprehensive Evaluation of the Good, the Bad and the Ugly},
  author={Xian, Yongqin and Lampert, Christoph H. and Schiele, Bernt and Akata, Zeynep},
  journal={IEEE Transactions on Pattern Analysis and Machine Intelligence},
  volume={41},
  number={9},
  pages={2251--2265},
  year={2019}
}""",
        known_problems=(
            "every class of the source is seen, so validation cannot hold classes back: it is the accuracy on a tenth "
            "of the source images",
            "the unlabelled target images are the test images, as the paper does",
            "published for DAZSL: the class split of the retrieval protocols is our seeded rule over the seen classes",
            "24 of the 40 seen classes are classes of ImageNet",
        ),
        layout="ROOT/3D2/CLASS-WNID/* and ROOT/Animals_with_Attributes2/JPEGImages/CLASS/* (or"
        " ROOT/{AwA2,AwA}/JPEGImages)",
    )
    places = (
        Place("3d2", ("3D2", "3d2", "3D2-1")),
        Place(
            "awa2",
            (
                "Animals_with_Attributes2/JPEGImages",
                "AwA2/JPEGImages",
                "AwA/JPEGImages",
                "JPEGImages",
                "AwA2",
            ),
        ),
    )
    also_named = ("I2AwA",)
    published_counts: ClassVar = {"3d2": 2970, "awa2": 37322}

    def read(self, root: Path) -> Listing:
        """The tree; 3D2 holds GIF files too, of which the first frame counts."""
        return keys_by_domain(scan(root, self.places))

    def arrange(self, images: pd.DataFrame) -> pd.DataFrame:
        """Classes by folder name, checked against the WordNet id in 3D2's; the unseen ones are test classes."""
        known = {**SEEN, **UNSEEN}
        named = images["class"].str.extract(_WITH_ID)
        plain = named[0].fillna(images["class"])
        table = canonical_classes(self, images.assign(**{"class": plain, "wnid": named[1]}), tuple(known))
        expected = table["class"].map(known)
        wrong = table["wnid"].notna() & (table["wnid"] != expected)
        if wrong.any():
            first = table[wrong].iloc[0]
            raise DatasetError(
                f"{first['path']} is under the WordNet id {first['wnid']}, but {first['class']} is "
                f"{known[first['class']]}"
            )
        labelled = table["domain"].eq("3d2")
        stray = labelled & table["class"].isin(UNSEEN)
        for name in sorted(table.loc[stray, "class"].unique()):
            self.note("unknown_class", f"3D2/{name}", "an unseen class: its source images are left out")
        table = table[~stray].drop(columns="wnid").reset_index(drop=True)
        require_images(table, SEEN, "3d2", self.folder)
        require_images(table, known, "awa2", self.folder)
        splits = {**class_splits(SEEN), **dict.fromkeys(UNSEEN, "test")}
        return with_splits(table, splits, self.card.gallery_domain)

    def classes(self, split: str | None = None) -> tuple[str, ...]:
        """Class names of a split (all if None), sorted; known without the images."""
        splits = {**class_splits(SEEN), **dict.fromkeys(UNSEEN, "test")}
        return tuple(sorted(name for name in splits if split in (None, splits[name])))

    @property
    def closed_set(self) -> ClosedSet:
        """DAZSL from 3D2 to AwA2."""
        return ClosedSet(dazsl_pairs=(("3d2", "awa2"),), seen=tuple(SEEN), unseen=tuple(UNSEEN))

    @property
    def synsets(self) -> Mapping[str, str]:
        """WordNet synset name of every class."""
        return {name: synset_name(wnid) for name, wnid in {**SEEN, **UNSEEN}.items()}
