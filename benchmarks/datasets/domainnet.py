"""DomainNet: 345 classes in six domains; the UCDR papers' split into 245 train, 55 validation and 45 test classes."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import ClassVar

from benchmarks.datasets.base import DatasetCard, ReleasedListing, RetrievalCut
from benchmarks.datasets.folders import Finding, Listing, Place, read_image_list
from benchmarks.datasets.listed import ListedDataset

DOMAINS = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")


class DomainNet(ListedDataset):
    """The six archives unpacked side by side; the train and test lists beside them are read if they are there.

    As in the UCDR papers every picture of a class folder is used. The lists only serve to name missing pictures.
    """

    card = DatasetCard(
        name="domainnet",
        title="DomainNet: 345 classes in six domains",
        version="v1",
        source="six archives, https://ai.bu.edu/M3SDA/ (Peng et al., ICCV 2019)",
        licence="the notice on its page (research use); the pictures come from the web and keep their owners' rights",
        gallery_domain="real",
        headline=RetrievalCut(map_at=200, precision_at=200),
        bibtex="""@inproceedings{peng2019moment,
  title={Moment Matching for Multi-Source Domain Adaptation},
  author={Peng, Xingchao and Bai, Qinxun and Xia, Xide and Huang, Zijun and Saenko, Kate and Wang, Bo},
  booktitle={Proceedings of the IEEE/CVF International Conference on Computer Vision},
  pages={1406--1415},
  year={2019}
}""",
        known_problems=(
            "the original archives hold duplicates that the cleaned ones lack; the papers do not say which they used "
            "(verify names byte-identical pictures that stand on both sides of a test)",
            "painting's published train list has no t-shirt: a tree without that folder is in order",
            "the released code of the UCDR papers inverts quickdraw and sketch; here only under --rules official",
            "the papers' code lists files in the file system's order: its 92 % and UdCDR samples cannot be repeated",
        ),
        layout="ROOT/{clipart,infograph,painting,quickdraw,real,sketch}/CLASS/* (optional: ROOT/DOMAIN_train.txt)",
    )
    places = tuple(Place(domain, (domain,)) for domain in DOMAINS)
    also_named: ClassVar[tuple[str, ...]] = ("DomainNet",)
    lists = "domainnet"
    may_lack: ClassVar = frozenset({("painting", "t-shirt")})
    released = ReleasedListing(inverted=("quickdraw", "sketch"))
    published_counts: ClassVar = {  # the cleaned archives, as the download page states
        "clipart": 48129,
        "infograph": 51605,
        "painting": 72266,
        "quickdraw": 172500,
        "real": 172947,
        "sketch": 69128,
    }

    def read(self, root: Path) -> Listing:
        """The tree; pictures that a published list names and the tree lacks become findings."""
        listing = super().read(root)
        there = set(listing.pictures["path"])
        missing = [
            Finding("missing", path, f"named in {file.name}, but not there")
            for domain in DOMAINS
            for file in (root / f"{domain}_train.txt", root / f"{domain}_test.txt")
            if file.is_file()
            for path in read_image_list(file)["path"]
            if path not in there
        ]
        return Listing(listing.pictures, (*listing.findings, *missing))


class DomainNet245(DomainNet):
    """DomainNet as UCDR-Adapter's code lists it: 245 training classes, where ProS's code trains on 300.

    The same folder and the same pictures as ``domainnet``, and under the clean rules the same tasks. A data set of its
    own, so that no table sets one class split beside the other.
    """

    card = dataclasses.replace(
        DomainNet.card,
        name="domainnet_245",
        title="DomainNet, official rules with 245 training classes (UCDR-Adapter's code)",
        known_problems=(
            "its official rules leave the validation classes out, so their figures and those of domainnet (300 classes)"
            " are not like for like",
            *DomainNet.card.known_problems,
        ),
    )
    also_named = ("domainnet", "DomainNet")
    released = dataclasses.replace(DomainNet.released, trains_on_validation=False)
