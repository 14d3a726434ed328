"""Sketchy Extended: sketches and photographs of 125 classes, with the two class splits of the literature."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from benchmarks.datasets.base import DatasetCard, ReleasedListing, RetrievalCut
from benchmarks.datasets.retrieval_dataset import RetrievalDataset
from benchmarks.datasets.tree_scan import Place

BIBTEX = """@article{sangkloy2016sketchy,
  title={The Sketchy Database: Learning to Retrieve Badly Drawn Bunnies},
  author={Sangkloy, Patsorn and Burnell, Nathan and Ham, Cusuh and Hays, James},
  journal={ACM Transactions on Graphics},
  volume={35},
  number={4},
  year={2016}
}
@inproceedings{liu2017deep,
  title={Deep Sketch Hashing: Fast Free-Hand Sketch-Based Image Retrieval},
  author={Liu, Li and Shen, Fumin and Shen, Yuming and Liu, Xianglong and Shao, Ling},
  booktitle={Proceedings of the IEEE Conference on Computer Vision and Pattern Recognition},
  year={2017}
}"""


class Sketchy(RetrievalDataset):
    """Split of ECCV 2018 (Yelamarthi et al.): 21 test classes, none of them among ImageNet's 1,000."""

    card = DatasetCard(
        name="sketchy",
        title="Sketchy Extended, 21 test classes (ECCV 2018 split)",
        version="v1",
        source="Sketchy (https://sketchy.eye.gatech.edu/, Sangkloy et al., SIGGRAPH 2016) and the photographs added by "
        "Liu et al., CVPR 2017",
        licence="none stated by its authors; research use, the added photographs are ImageNet's",
        gallery_domain="photo",
        headline=RetrievalCut(map_at=200, precision_at=200),
        bibtex=BIBTEX,
        known_problems=(
            "one query domain: UCDR and UdCDR train on photographs alone; the papers report UcCDR",
            "the papers' code draws validation classes and trains on them all the same; here they are kept apart",
            "the released code of the UCDR papers inverts sketches; here only under --rules official",
            "the gallery is the extended photo set alone, as in the released code: the 12,500 original photographs are "
            "not added to it",
        ),
        layout="ROOT/256x256/sketch/tx_000000000000/CLASS/* (or ROOT/sketch/...) and ROOT/EXTEND_image_sketchy/CLASS/*"
        " (or ROOT/extended_photo/CLASS/*)",
    )
    places = (
        Place(
            "sketch",
            (
                "256x256/sketch/tx_000000000000",
                "sketch/tx_000000000000",
                "256x256/sketch/tx_000000000000_ready",
                "sketch/tx_000000000000_ready",
                "sketch",
            ),
        ),
        Place(
            "photo",
            (
                "EXTEND_image_sketchy",
                "extended_photo",
                "256x256/EXTEND_image_sketchy",
                "EXTEND_image_sketchy_ready",
                "256x256/EXTEND_image_sketchy_ready",
            ),
        ),
    )
    also_named: ClassVar[tuple[str, ...]] = ("Sketchy", "sketchy_extended")
    class_list = "sketchy_eccv2018"
    released = ReleasedListing(mixed_gallery=False, inverted=("sketch",))
    published_counts: ClassVar = {"sketch": 75471, "photo": 73002}


class SketchyRandom(Sketchy):
    """The random split (Shen et al., CVPR 2018): 25 test classes. The same folder as ``sketchy``."""

    card = dataclasses.replace(
        Sketchy.card,
        name="sketchy_random",
        title="Sketchy Extended, 25 test classes (random split)",
        headline=RetrievalCut(map_at=None, precision_at=100),
    )
    also_named = ("sketchy", "Sketchy")
    class_list = "sketchy_random"
