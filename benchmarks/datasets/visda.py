"""VisDA-2017, classification: 12 classes, from rendered models to photographs; one transfer.

``visda`` adapts to the validation pictures (MS COCO), as the papers do; ``visda_test`` to the challenge's test pictures
(YouTube frames), whose labels came out after it.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

import pandas as pd

from benchmarks.datasets.base import DatasetCard, DatasetError
from benchmarks.datasets.folders import Listing, Place, check_root, join_listings, list_files, read_image_list
from benchmarks.datasets.transfers import TransferDataset

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
_LICENCE = "non-commercial research and education, as its page states"


class VisDA(TransferDataset):
    """Pictures and labels are those of ``image_list.txt`` in each part's folder."""

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
            "the unlabelled target pictures are the test pictures, as the field does (uda_inductive parts them)",
            "two domains: UCDR and UdCDR train on photographs alone",
            "published for domain adaptation: the class split of the retrieval protocols is our seeded rule",
        ),
        layout="ROOT/{train,validation}/CLASS/* with ROOT/{train,validation}/image_list.txt",
    )
    places = (Place("synthetic", ("train",)), Place("real", ("validation",)))
    also_named: ClassVar[tuple[str, ...]] = ("visda17", "visda2017", "VisDA2017", "visda-2017", "VisDA-C")
    class_names = CLASSES
    published_counts: ClassVar = {"synthetic": 152397, "real": 55388}

    def read(self, root: Path) -> Listing:
        """The pictures that the lists name."""
        check_root(root)
        return join_listings([self._part(root, place.folders[0], place.domain) for place in self.places])

    def _part(self, root: Path, folder: str, domain: str) -> Listing:
        file = root / folder / "image_list.txt"
        if not file.is_file():
            raise DatasetError(f"{file} does not exist; the layout is {self.card.layout}")
        listed = read_image_list(file)
        twice = listed["path"].duplicated()
        if twice.any():
            raise DatasetError(f"{file}: {listed.loc[twice, 'path'].iloc[0]} is listed twice; fetch the list again")
        wrong = listed[(listed["label"] >= len(CLASSES)) | self._misplaced(listed)]
        if len(wrong):
            path, label = wrong.iloc[0]
            raise DatasetError(f"{file}: {path} has the label {label}, which is not its class; fetch the list again")
        classes = [CLASSES[label] for label in listed["label"]]
        paths = f"{folder}/" + listed["path"]
        listing = list_files(root, paths, domain=domain, classes=classes)
        pictures = listing.pictures
        keys = domain + "/" + pictures["key"].str.removeprefix(f"{folder}/")
        return Listing(pictures.assign(key=keys), listing.findings)

    def _misplaced(self, listed: pd.DataFrame) -> pd.Series:
        """Whether a picture lies in the folder of another class than its label's; other folders say nothing."""
        folders = listed["path"].str.partition("/")[0]
        number_of = {name: number for number, name in enumerate(CLASSES)}
        numbers = folders.map(number_of)
        return numbers.notna() & (numbers != listed["label"])

    @property
    def uda_pairs(self) -> tuple[tuple[str, str], ...]:
        """Synthetic to real alone."""
        return (("synthetic", "real"),)


class VisDATest(VisDA):
    """The challenge's test pictures as target; they lie in folders without meaning, the list has the labels."""

    card = DatasetCard(
        name="visda_test",
        title="VisDA-2017 with the challenge's test pictures: synthetic to real, 12 classes",
        version="v1",
        source=f"{_SOURCE}; the test list with labels: VisionLearningGroup/taskcv-2017-public on GitHub",
        licence=_LICENCE,
        gallery_domain="real",
        bibtex=_BIBTEX,
        known_problems=(
            "most papers adapt to the validation pictures instead: data set visda",
            *VisDA.card.known_problems,
        ),
        layout="ROOT/train/CLASS/* and ROOT/test/trunk*/*, with ROOT/{train,test}/image_list.txt",
    )
    places = (Place("synthetic", ("train",)), Place("real", ("test",)))
    also_named: ClassVar = ("visda", *VisDA.also_named)
    published_counts: ClassVar = {"synthetic": 152397, "real": 72372}
