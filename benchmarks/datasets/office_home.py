"""Office-Home: 65 classes of everyday things in four domains; twelve transfers."""

from __future__ import annotations

from typing import ClassVar

from benchmarks.datasets.base import DatasetCard
from benchmarks.datasets.transfer_dataset import TransferDataset
from benchmarks.datasets.tree_scan import Place

_NAMES = """
    alarm_clock backpack batteries bed bike bottle bucket calculator calendar candles chair clipboards computer couch
    curtains desk_lamp drill eraser exit_sign fan file_cabinet flipflops flowers folder fork glasses hammer helmet
    kettle keyboard knives lamp_shade laptop marker monitor mop mouse mug notebook oven pan paper_clip pen pencil
    postit_notes printer push_pin radio refrigerator ruler scissors screwdriver shelf sink sneakers soda speaker spoon
    table telephone toothbrush toys trash_can tv webcam
"""
CLASSES = tuple(_NAMES.split())


class OfficeHome(TransferDataset):
    """The archive as it unpacks, or its four domain folders alone."""

    card = DatasetCard(
        name="office_home",
        title="Office-Home: 65 classes in four domains",
        version="v1",
        source="https://www.hemanthdv.org/officeHomeDataset.html (Venkateswara et al., CVPR 2017)",
        licence="non-commercial research and education, as its page states",
        gallery_domain="real_world",
        bibtex="""@inproceedings{venkateswara2017deep,
  title={Deep Hashing Network for Unsupervised Domain Adaptation},
  author={Venkateswara, Hemanth and Eusebio, Jose and Chakraborty, Shayok and Panchanathan, Sethuraman},
  booktitle={Proceedings of the IEEE Conference on Computer Vision and Pattern Recognition},
  pages={5018--5027},
  year={2017}
}""",
        known_problems=(
            "the unlabelled target images are the test images, as the field does (uda_inductive parts them)",
            "published for domain adaptation: the class split of the retrieval protocols is our seeded rule",
        ),
        layout="ROOT/{Art,Clipart,Product,Real World}/CLASS/* (or in ROOT/OfficeHomeDataset_10072016 or ROOT/images;"
        " Real_World, RealWorld or Real for Real World)",
    )
    places = (
        Place("art", ("Art", "art")),
        Place("clipart", ("Clipart", "clipart")),
        Place("product", ("Product", "product")),
        Place("real_world", ("Real World", "Real_World", "RealWorld", "real_world", "Real", "real")),
    )
    bases = (
        "",
        "OfficeHomeDataset_10072016",
        "OfficeHomeDataset",
        "images",
        "images/OfficeHomeDataset_10072016",
        "OfficeHome",
        "office_home",
    )
    also_named = ("OfficeHome", "Office-Home", "officehome", "OfficeHomeDataset_10072016", "office_home_dg")
    class_names = CLASSES
    published_counts: ClassVar = {"art": 2427, "clipart": 4365, "product": 4439, "real_world": 4357}
