"""VisDA-2017, classification: 12 classes, from rendered models to photographs; one transfer.

``visda`` adapts to the validation images (MS COCO), as the papers do; ``visda_test`` to the challenge's test images
(YouTube frames), whose labels were published later.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import pandas as pd

from benchmarks.datasets.base import DatasetCard, DatasetError
from benchmarks.datasets.image_lists import (
    NoLabelsError,
    RelativeList,
    describe_lists,
    find_lists,
    prefix_notes,
    read_relative_list,
)
from benchmarks.datasets.transfer_dataset import TransferDataset
from benchmarks.datasets.tree_scan import Listing, Place, check_root, join_listings, place_folders, scan_listed

#: In the order of the labels in ``image_list.txt``.
CLASSES = (
    "aeroplane",
    "bicycle",
    "bus",
    "car",
    "horse",
    "knife",
    "motorcycle",
    "person",
    "plant",
    "skateboard",
    "train",
    "truck",
)

_BIBTEX = """@article{peng2017visda,
  title={VisDA: The Visual Domain Adaptation Challenge},
  author={Peng, Xingchao and Usman, Ben and Kaushik, Neela and Hoffman, Judy and Wang, Dequan and Saenko, Kate},
  journal={arXiv preprint arXiv:1710.06924},
  year={2017}
}"""
_SOURCE = "https://ai.bu.edu/visda-2017/, classification track (Peng et al., 2017)"
#: Where the labels of the test images were published after the challenge.
LABELLED_TEST = "image_list.txt in classification/data of VisionLearningGroup/taskcv-2017-public on GitHub"
_LICENCE = "non-commercial research and education, as its page states"


class VisDA(TransferDataset):
    """Images and labels are those of ``image_list.txt`` in each part's folder, or of a list with another usual name:
    ``image_list/PART.txt``, ``PART_list.txt``, ``PART/PART_image_list.txt`` (also ``valid`` for validation)."""

    card = DatasetCard(
        name="visda",
        title="VisDA-2017: synthetic to real, 12 classes",
        version="v1",
        source=_SOURCE,
        licence=_LICENCE,
        gallery_domain="real",
        bibtex=_BIBTEX,
        known_problems=(
            "papers report the mean of the 12 class accuracies: compare accuracy[class]",
            "the unlabelled target images are the test images, as the field does (uda_inductive parts them)",
            "two domains: UCDR and UdCDR train on photographs alone",
            "published for domain adaptation: the class split of the retrieval protocols is our seeded rule",
        ),
        layout="ROOT/{train,validation}/CLASS/* with ROOT/{train,validation}/image_list.txt (or"
        " ROOT/image_list/{train,validation}.txt, ROOT/{train,validation}_list.txt)",
    )
    places = (Place("synthetic", ("train",)), Place("real", ("validation", "valid", "val")))
    also_named: ClassVar[tuple[str, ...]] = ("visda17", "visda2017", "VisDA2017", "visda-2017", "VisDA-C")
    class_names = CLASSES
    published_counts: ClassVar = {"synthetic": 152397, "real": 55388}

    def read(self, root: Path) -> Listing:
        """The images that the lists name."""
        root = check_root(root)
        parts = [self._part(root, place) for place in self.places]
        return replace(join_listings(parts), notes=tuple(dict.fromkeys(note for part in parts for note in part.notes)))

    def _part(self, root: Path, place: Place) -> Listing:
        folder = place_folders(root, place)[0] or place.folders[0]
        file, placed, unread = self._list(root, folder, place)
        listed = placed.rows
        twice = listed["path"].duplicated()
        if twice.any():
            raise DatasetError(f"{file}: {listed.loc[twice, 'path'].iloc[0]} is listed twice; fetch the list again")
        if set(listed["label"]) == set(range(1, len(CLASSES) + 1)):
            raise DatasetError(
                f"{file}: labels start at 1, not at 0 (aeroplane); take 1 off each, or fetch the list again"
            )
        wrong = listed[(listed["label"] >= len(CLASSES)) | self._misplaced(listed)]
        if len(wrong):
            path, label = wrong.iloc[0]
            raise DatasetError(f"{file}: {path} has the label {label}, which is not its class; fetch the list again")
        classes = [CLASSES[label] for label in listed["label"]]
        listing = scan_listed(root, listed["path"], domain=place.domain, classes=classes)
        images = listing.images
        keys = place.domain + "/" + images["key"].str.removeprefix(f"{folder}/")
        notes = (f"list of {place.domain}: {describe_lists([file], root)}", *prefix_notes([placed]))
        notes += (f"lists not read: {describe_lists(unread, root)}",) if unread else ()
        return Listing(images.assign(key=keys), listing.findings, notes)

    def _list(self, root: Path, folder: str, place: Place) -> tuple[Path, RelativeList, list[Path]]:
        """The first list of a part that has labels, and the others; raises DatasetError if there is none."""
        names = tuple(dict.fromkeys((folder, *place.folders)))
        inside = [f"{folder}/image_list.txt", *(f"{folder}/{name}_image_list.txt" for name in names)]
        patterns = [kind.format(name) for kind in ("{}_image_list.txt", "{}_list.txt", "{}.txt") for name in names]
        patterns += ["image_list.txt"] if folder == "test" else []
        files = [root / name for name in inside if (root / name).is_file()]
        files += [file for file in find_lists(root, patterns) if file not in files]
        if not files:
            raise DatasetError(f"{root / inside[0]} does not exist; the layout is {self.card.layout}")
        for file in files:
            try:
                placed = read_relative_list(file, folder, 2, root=root, spelled=names)
            except NoLabelsError:
                continue
            return file, placed, [other for other in files if other != file]
        source = LABELLED_TEST if folder == "test" else f"unpack {folder}.tar again"
        raise DatasetError(f"{files[0]} has no labels; the labelled list is needed in its place: {source}")

    def _misplaced(self, listed: pd.DataFrame) -> pd.Series:
        """Whether an image is in the folder of another class than its label's; other folders are ignored."""
        folders = listed["path"].str.split("/").str[-2]
        number_of = {name: number for number, name in enumerate(CLASSES)}
        numbers = folders.map(number_of)
        return numbers.notna() & (numbers != listed["label"])

    @property
    def uda_pairs(self) -> tuple[tuple[str, str], ...]:
        """Synthetic to real alone."""
        return (("synthetic", "real"),)


class VisDATest(VisDA):
    """The challenge's test images as target; their folders have no meaning, the list has the labels."""

    card = DatasetCard(
        name="visda_test",
        title="VisDA-2017 with the challenge's test images: synthetic to real, 12 classes",
        version="v1",
        source=f"{_SOURCE}; the test list with labels: VisionLearningGroup/taskcv-2017-public on GitHub",
        licence=_LICENCE,
        gallery_domain="real",
        bibtex=_BIBTEX,
        known_problems=(
            "most papers adapt to the validation images instead: data set visda",
            *VisDA.card.known_problems,
        ),
        layout="ROOT/train/CLASS/* and ROOT/test/trunk*/*, with ROOT/{train,test}/image_list.txt (the test list with"
        f" labels: {LABELLED_TEST})",
    )
    places = (Place("synthetic", ("train",)), Place("real", ("test",)))
    also_named: ClassVar = ("visda", *VisDA.also_named)
    published_counts: ClassVar = {"synthetic": 152397, "real": 72372}
