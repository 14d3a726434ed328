"""VLCS: 5 classes in the photographs of four data sets; for domain generalisation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from benchmarks.datasets.base import DatasetCard
from benchmarks.datasets.transfer_dataset import TransferDataset
from benchmarks.datasets.tree_scan import Place


class VLCS(TransferDataset):
    """DomainBed's copy (``VLCS/Caltech101/bird``), or the archive's ``full`` folders with numbered classes."""

    card = DatasetCard(
        name="vlcs",
        title="VLCS: 5 classes in four sets of photographs",
        version="v1",
        source="download script of facebookresearch/DomainBed (Fang et al., ICCV 2013)",
        licence="none stated; the images are those of Caltech-101, LabelMe, SUN09 and PASCAL VOC 2007",
        gallery_domain="voc2007",
        bibtex="""@inproceedings{fang2013unbiased,
  title={Unbiased Metric Learning: On the Utilization of Multiple Datasets and Web Images for Softening Bias},
  author={Fang, Chen and Xu, Ye and Rockmore, Daniel N.},
  booktitle={Proceedings of the IEEE International Conference on Computer Vision},
  pages={1657--1664},
  year={2013}
}""",
        known_problems=(
            "made for domain generalisation (dg): the retrieval protocols have three classes to train on, one for"
            " validation and one for the test, where every ranking is right",
            "all domains are photographs: the domain's word says nothing of the kind of image",
        ),
        layout="ROOT/{VLCS,.}/{Caltech101,LabelMe,SUN09,VOC2007}/CLASS/* (or"
        " ROOT/{VLCS,.}/{CALTECH,LABELME,SUN,PASCAL}/full/{0,1,2,3,4}/*)",
    )
    places = (
        Place("caltech101", ("Caltech101", "CALTECH/full", "caltech101")),
        Place("labelme", ("LabelMe", "LABELME/full", "labelme")),
        Place("sun09", ("SUN09", "SUN/full", "sun09")),
        Place("voc2007", ("VOC2007", "PASCAL/full", "voc2007")),
    )
    bases = ("", "VLCS", "vlcs")
    also_named = ("VLCS",)
    class_names = ("bird", "car", "chair", "dog", "person")
    aliases: ClassVar[Mapping[str, str]] = {str(number): name for number, name in enumerate(class_names)}
    published_counts: ClassVar = {"caltech101": 1415, "labelme": 2656, "sun09": 3282, "voc2007": 3376}
