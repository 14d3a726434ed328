"""Small trees of exactly the layouts in which the data sets of domain adaptation are published."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from benchmarks.datasets.i2awa import SEEN, UNSEEN
from benchmarks.datasets.visda import CLASSES as VISDA_CLASSES
from tests.datasets.trees import class_tree, write_images

_OFFICE_HOME = (
    "Alarm_Clock,Backpack,Batteries,Bed,Bike,Bottle,Bucket,Calculator,Calendar,Candles,Chair,Clipboards,Computer,Couch,"
    "Curtains,Desk_Lamp,Drill,Eraser,Exit_Sign,Fan,File_Cabinet,Flipflops,Flowers,Folder,Fork,Glasses,Hammer,Helmet,"
    "Kettle,Keyboard,Knives,Lamp_Shade,Laptop,Marker,Monitor,Mop,Mouse,Mug,Notebook,Oven,Pan,Paper_Clip,Pen,Pencil,"
    "Postit_Notes,Printer,Push_Pin,Radio,Refrigerator,Ruler,Scissors,Screwdriver,Shelf,Sink,Sneakers,Soda,Speaker,"
    "Spoon,TV,Table,Telephone,ToothBrush,Toys,Trash_Can,Webcam"
)
OFFICE_HOME_FOLDERS = tuple(_OFFICE_HOME.split(","))
#: Nouns of WordNet for a small I2WebV: six seen classes, two unseen ones.
WNIDS = ("n02012849", "n03126707", "n01440764", "n02084071", "n02121620", "n02958343", "n07739125", "n04379243")
PACS_DOMAINS = ("art_painting", "cartoon", "photo", "sketch")
PACS_CLASSES = ("dog", "elephant", "giraffe", "guitar", "horse", "house", "person")


def office_home_tree(root: Path, images: int = 2) -> Path:
    """The archive: ``OfficeHomeDataset_10072016/{Art,Clipart,Product,Real World}/CLASS/00001.jpg``, lists beside."""
    base = root / "OfficeHomeDataset_10072016"
    class_tree(base, ("Art", "Clipart", "Product", "Real World"), OFFICE_HOME_FOLDERS, images, "{number:05d}.jpg")
    (base / "ImageInfo.csv").write_text("Art,Alarm_Clock,00001.jpg\n")
    return root


def pacs_tree(root: Path, base: str = "pacs_data", images: int = 3) -> Path:
    """``BASE/{art_painting,cartoon,photo,sketch}/CLASS/pic_001.jpg``, sketches as PNG."""
    folders = [f"{base}/{domain}" if base else domain for domain in PACS_DOMAINS]
    class_tree(root, folders[:3], PACS_CLASSES, images, "pic_{number:03d}.jpg")
    class_tree(root, folders[3:], PACS_CLASSES, images, "{number}.png")
    return root


VLCS_DOMAINS = ("Caltech101", "LabelMe", "SUN09", "VOC2007")
VLCS_CLASSES = ("bird", "car", "chair", "dog", "person")
TERRA_CLASSES = ("bird", "bobcat", "cat", "coyote", "dog", "empty", "opossum", "rabbit", "raccoon", "squirrel")


def vlcs_tree(root: Path, base: str = "VLCS", images: int = 6) -> Path:
    """``VLCS/{Caltech101,LabelMe,SUN09,VOC2007}/CLASS/imgs_001.jpg``, as DomainBed's archive unpacks."""
    folders = [f"{base}/{domain}" if base else domain for domain in VLCS_DOMAINS]
    class_tree(root, folders, VLCS_CLASSES, images, "imgs_{number:03d}.jpg")
    return root


def vlcs_archive_tree(root: Path, images: int = 6) -> Path:
    """``VLCS/{CALTECH,LABELME,SUN,PASCAL}/{full,train}/{0..4}/*``, as the authors' archive unpacks."""
    domains = ("CALTECH", "LABELME", "SUN", "PASCAL")
    numbers = [str(number) for number in range(5)]
    class_tree(root, [f"VLCS/{one}/full" for one in domains], numbers, images, "imgs_{number:03d}.jpg")
    class_tree(root, [f"VLCS/{one}/train" for one in domains], numbers, 1, "imgs_{number:03d}.jpg")
    return root


def terra_incognita_tree(root: Path, images: int = 6) -> Path:
    """``terra_incognita/location_N/CLASS/*``, as DomainBed's download script makes it."""
    places = [f"terra_incognita/location_{number}" for number in (38, 43, 46, 100)]
    class_tree(root, places, TERRA_CLASSES, images, "58a2-{number}.jpg")
    return root


def visda_tree(root: Path, images: int = 3) -> Path:
    """``{train,validation}/CLASS/*`` and ``test/trunkNN/*``, each with its ``image_list.txt``."""
    for part, name in (
        ("train", "{cls}/src_1_02691156_{number}__0_31_0.png"),
        ("validation", "{cls}/{number}_114945.jpg"),
        ("test", "trunk{number:02d}/{cls}{number}.jpg"),
    ):
        lines = [
            (name.format(cls=cls, number=number), label)
            for label, cls in enumerate(VISDA_CLASSES)
            for number in range(images)
        ]
        write_images(root, (f"{part}/{path}" for path, _ in lines))
        (root / part / "image_list.txt").write_text("".join(f"{path} {label}\n" for path, label in lines))
    return root


def mini_domainnet_tree(root: Path, classes: int = 126) -> Path:
    """DomainNet's folders and ``splits_mini``: a train and a test image a class and domain."""
    names = [f"class_{number:03d}" for number in range(classes)]
    (root / "splits_mini").mkdir(parents=True)
    for domain in ("clipart", "painting", "real", "sketch"):
        paths = class_tree(root, (domain,), names, 2, domain + "_{number:06d}.jpg")
        label = {name: number for number, name in enumerate(names)}
        lines = [f"{path} {label[path.split('/')[1]]}" for path in paths]
        for part, chosen in (("train", lines[::2]), ("test", lines[1::2])):
            (root / "splits_mini" / f"{domain}_{part}.txt").write_text("\n".join(chosen) + "\n")
    class_tree(root, ("real",), ["zebra"], 1)  # of DomainNet, in no list
    return root


def i2awa_tree(root: Path, images: int = 3) -> Path:
    """``3D2/CLASS-WNID/N.jpg`` (names with plus signs, some GIF) and AwA2 as its archive unpacks."""
    seen = [name.replace("_", "+") for name in SEEN]
    folders = [f"{name}-{wnid}" for name, wnid in zip(seen, SEEN.values(), strict=True)]
    class_tree(root, ("3D2",), folders, images, "{number}.jpg")
    write_images(root, [f"3D2/{folders[0]}/20.gif", f"3D2/{folders[1]}/7.jpeg"])
    everything = [*seen, *(name.replace("_", "+") for name in UNSEEN)]
    class_tree(root, ("Animals_with_Attributes2/JPEGImages",), everything, 2, "{cls}_1000{number}.jpg")
    (root / "Animals_with_Attributes2" / "classes.txt").write_text("1\tantelope\n")
    return root


def i2webv_tree(root: Path, wnids: Sequence[str], seen: int, images: int = 3) -> Path:
    """``imagenet/train/WNID/*`` of the first classes, and WebVision's lists and validation images of all."""
    class_tree(root, ("imagenet/train",), wnids[:seen], images, "{cls}_{number}.JPEG")
    names = [f"val{number:06d}.jpg" for number in range(2 * len(wnids))]
    write_images(root, (f"webvision/val_images_resized/{name}" for name in names))
    info = root / "webvision" / "info"
    info.mkdir()
    (info / "synsets.txt").write_text("".join(f"{wnid} some, synonyms\n" for wnid in wnids))
    lines = [f"{name} {number % len(wnids)}" for number, name in enumerate(names)]
    (info / "val_filelist.txt").write_text("\n".join(lines) + "\n")
    return root
