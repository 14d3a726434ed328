"""PACS: 7 classes as photographs, art paintings, cartoons and sketches; twelve transfers."""

from __future__ import annotations

from typing import ClassVar

from benchmarks.datasets.base import DatasetCard
from benchmarks.datasets.transfer_dataset import TransferDataset
from benchmarks.datasets.tree_scan import Place


class PACS(TransferDataset):
    """The archive as it unpacks (``pacs_data``), the copies of later code (``PACS/kfold``), or the domain folders."""

    card = DatasetCard(
        name="pacs",
        title="PACS: 7 classes in four domains",
        version="v1",
        source="https://domaingeneralization.github.io/#data (Li et al., ICCV 2017)",
        licence="none stated; research use",
        gallery_domain="photo",
        bibtex="""@inproceedings{li2017deeper,
  title={Deeper, Broader and Artier Domain Generalization},
  author={Li, Da and Yang, Yongxin and Song, Yi-Zhe and Hospedales, Timothy M.},
  booktitle={Proceedings of the IEEE International Conference on Computer Vision},
  pages={5542--5550},
  year={2017}
}""",
        known_problems=(
            "seven classes: the retrieval protocols have four to train on, one for validation and two for the test",
            "published for domain generalisation: the class split of the retrieval protocols is our seeded rule",
            "some copies hold sketch/dog/n02103406_4068-1.png, which the split files name but cannot be read",
        ),
        layout="ROOT/{pacs_data,PACS/kfold,kfold,images,PACS}/{art_painting,cartoon,photo,sketch}/CLASS/* (or in ROOT)",
    )
    places = (
        Place("art_painting", ("art_painting", "art")),
        *(Place(domain, (domain,)) for domain in ("cartoon", "photo", "sketch")),
    )
    bases = ("", "pacs_data", "PACS/kfold", "kfold", "images", "pacs_data/pacs_data", "PACS", "pacs")
    also_named = ("PACS",)
    class_names = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")
    published_counts: ClassVar = {"art_painting": 2048, "cartoon": 2344, "photo": 1670, "sketch": 3929}
