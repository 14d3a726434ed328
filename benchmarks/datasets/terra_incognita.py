"""TerraIncognita: 10 animals at four camera traps; for domain generalisation."""

from __future__ import annotations

from typing import ClassVar

from benchmarks.datasets.base import DatasetCard
from benchmarks.datasets.transfer_dataset import TransferDataset
from benchmarks.datasets.tree_scan import Place

LOCATIONS = ("38", "43", "46", "100")


class TerraIncognita(TransferDataset):
    """The four locations of Caltech Camera Traps that DomainBed's download script makes."""

    card = DatasetCard(
        name="terra_incognita",
        title="TerraIncognita: 10 animals at four camera traps",
        version="v1",
        source="download script of facebookresearch/DomainBed (Beery et al., ECCV 2018; Gulrajani and Lopez-Paz, 2021)",
        licence="Community Data License Agreement, permissive variant",
        gallery_domain="location_38",
        bibtex="""@inproceedings{beery2018recognition,
  title={Recognition in Terra Incognita},
  author={Beery, Sara and Van Horn, Grant and Perona, Pietro},
  booktitle={Proceedings of the European Conference on Computer Vision},
  pages={456--473},
  year={2018}
}""",
        known_problems=(
            "made for domain generalisation (dg): the class split of the retrieval protocols is our seeded rule",
            "papers state 24,788 images; what the download script makes today is smaller (24,330)",
            "the class empty has no animal",
        ),
        layout="ROOT/{terra_incognita,.}/{location_38,location_43,location_46,location_100}/CLASS/*",
    )
    places = tuple(Place(f"location_{number}", (f"location_{number}", f"L{number}")) for number in LOCATIONS)
    bases = ("", "terra_incognita", "TerraIncognita")
    also_named = ("TerraIncognita", "terra_incognita_dg")
    class_names = ("bird", "bobcat", "cat", "coyote", "dog", "empty", "opossum", "rabbit", "raccoon", "squirrel")
    published_counts: ClassVar = {
        "location_38": 9736,
        "location_43": 3970,
        "location_46": 5883,
        "location_100": 4741,
    }
