"""DomainNet: 345 classes in six domains; the UCDR papers' split into 245 train, 55 validation and 45 test classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import pandas as pd

from benchmarks.datasets.base import DatasetCard, DatasetError, ReleasedListing, RetrievalCut
from benchmarks.datasets.image_lists import (
    OTHER_LISTS,
    RelativeList,
    describe_lists,
    display_path,
    find_lists,
    prefix_notes,
    read_relative_list,
)
from benchmarks.datasets.retrieval_dataset import RetrievalDataset
from benchmarks.datasets.tree_scan import Finding, Listing, Place

DOMAINS = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")

#: Images of the cleaned archives, as the download page states.
CLEANED: Mapping[str, int] = {
    "clipart": 48129,
    "infograph": 51605,
    "painting": 72266,
    "quickdraw": 172500,
    "real": 172947,
    "sketch": 69128,
}
#: Images of the original archives, as the paper states.
ORIGINAL: Mapping[str, int] = {
    "clipart": 48837,
    "infograph": 53201,
    "painting": 75759,
    "quickdraw": 172500,
    "real": 175327,
    "sketch": 70386,
}


class DomainNet(RetrievalDataset):
    """The six archives unpacked side by side; the train and test lists beside them are read if they are there.

    As in the UCDR papers every image of a class folder is used. The lists are only used to name missing images and to
    distinguish the cleaned archives from the original ones.
    """

    card = DatasetCard(
        name="domainnet",
        title="DomainNet: 345 classes in six domains",
        version="v1",
        source="six archives, https://ai.bu.edu/M3SDA/ (Peng et al., ICCV 2019)",
        licence="the notice on its page (research use); the images come from the web and keep their owners' rights",
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
            "the original archives have duplicates that were removed from the cleaned ones; the papers do not say "
            "which they used (verify names byte-identical images that are on both sides of a test)",
            "painting has two images of the class t-shirt, both in its test list: the train list has none",
            "the released code of the UCDR papers inverts quickdraw and sketch; here only under --rules official",
            "the papers' code lists files in the file system's order: its 92 % and UdCDR samples cannot be repeated",
        ),
        layout="ROOT/{clipart,infograph,painting,quickdraw,real,sketch}/CLASS/* (optional: DOMAIN_{train,test}.txt in"
        " ROOT, ROOT/splits or ROOT/image_list)",
    )
    places = tuple(Place(domain, (domain,)) for domain in DOMAINS)
    also_named: ClassVar[tuple[str, ...]] = ("DomainNet", "domain_net")
    class_list = "domainnet"
    released = ReleasedListing(inverted=("quickdraw", "sketch"))
    published_counts: ClassVar = CLEANED

    @property
    def dg_set(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """All six domains and 345 classes, as DomainBed's DomainNet."""
        return self.domains, self.classes()

    def read(self, root: Path) -> Listing:
        """The tree; images that a published list names and that are missing become findings."""
        listing = super().read(root)
        by_domain = {str(domain): set(keys) for domain, keys in listing.images.groupby("domain")["key"]}
        placed: dict[Path, RelativeList] = {}
        findings: list[Finding] = []
        unlisted: list[str] = []
        twice: list[Path] = []
        for domain in DOMAINS:
            there, named, count = by_domain.get(domain, set()), set(), len(placed)
            for part in ("train", "test"):
                files = find_lists(root, [f"{domain}_{part}.txt"])
                if not files:
                    continue
                file, *more = files
                twice += more
                placed[file] = read_relative_list(file, domain, 2, root=root)
                named |= set(placed[file].rows["path"])
                reason = f"named in {display_path(file, root)}, but not there"
                findings += [
                    Finding("missing_image", path, reason) for path in placed[file].rows["path"] if path not in there
                ]
            if len(placed) - count == 2 and there - named:
                unlisted.append(f"{len(there - named):,} of {domain}'s {len(there):,}")
        notes = [f"lists: {describe_lists(list(placed), root) or 'none (DOMAIN_train.txt and DOMAIN_test.txt)'}"]
        notes += prefix_notes(placed.values())
        if unlisted:
            why = "the published lists name the cleaned archives, so these come from the original ones or were added"
            notes.append(f"images that are in neither list of their domain: {', '.join(unlisted)} ({why})")
        notes += [f"lists not read, as others of their names are: {describe_lists(twice, root)}"] if twice else []
        others = find_lists(root, [name.format(domain=domain) for domain in DOMAINS for name in OTHER_LISTS])
        notes += [_partial(file, root, by_domain) for file in others]
        return dataclasses.replace(listing, findings=(*listing.findings, *findings), notes=(*listing.notes, *notes))

    @cached_property
    def facts(self) -> tuple[str, ...]:
        """Folders and lists that were read, and the version of the archives."""
        return (*super().facts, edition(self.table["domain"].value_counts()))


def edition(counts: pd.Series | Mapping[str, int]) -> str:
    """Which archives a tree with these numbers of images by domain was made from, in one line."""
    kinds: dict[str, list[str]] = {}
    for domain in DOMAINS:
        count = int(counts.get(domain, 0))
        published = (count == CLEANED[domain], count == ORIGINAL[domain])
        kind = {(True, True): "", (True, False): "cleaned", (False, True): "original"}.get(published, "unlike both")
        kinds.setdefault(kind, []).append(domain)
    kinds.pop("", None)  # quickdraw was not cleaned
    titles = {
        "cleaned": "the cleaned archives",
        "original": "the original, uncleaned archives: scores are not those of the cleaned ones",
        "unlike both": "unknown, no domain has the size of the cleaned or the original archives",
    }
    if len(kinds) == 1:
        return f"version: {titles[next(iter(kinds))]}"
    return "version: mixed, " + "; ".join(f"{kind}: {', '.join(domains)}" for kind, domains in sorted(kinds.items()))


def _partial(file: Path, root: Path, by_domain: Mapping[str, set[str]]) -> str:
    """One line on a list that is not one of the published twelve: it selects nothing here, but it may name images that
    are not there."""
    name = display_path(file, root)
    domain = next(domain for domain in DOMAINS if domain in file.name)
    try:
        rows = read_relative_list(file, domain, 2, root=root).rows
    except DatasetError as error:
        return f"{name}: not used ({str(error).removeprefix(f'{file}: ')})"
    absent = (~rows["path"].isin(by_domain.get(domain, set()))).sum()
    return (
        f"{name}: not used, every image of the class folders is; it names {len(rows):,} images of"
        f" {rows['label'].nunique()} classes, {absent:,} of them not in this tree"
    )


class DomainNet245(DomainNet):
    """DomainNet as UCDR-Adapter's code lists it: 245 training classes, where ProS's code trains on 300.

    The same folder and the same images as ``domainnet``, and under the clean rules the same tasks. A separate
    data set, so that no table mixes the two class splits.
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
