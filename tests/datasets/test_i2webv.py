"""I2WebV as WebVision's scripts leave it, and in class folders."""

from __future__ import annotations

from pathlib import Path

from tests.datasets import transfer_trees
from tests.datasets.layouts import Copy, SmallI2WebV, move, rewrite, said


def test_i2webv_as_webvisions_scripts_leave_it(made: Path, copy: Copy) -> None:
    root = copy("i2webv")
    move(root, "webvision/info/val_filelist.txt", "webvision/meta/val.txt")
    rewrite([root / "webvision/info/synsets.txt"], lambda line: line.split()[0])
    move(root, "webvision/info/synsets.txt", "webvision/meta/synsets.txt")
    move(root, "webvision/val_images_resized", "webvision/val")
    dataset = SmallI2WebV(root)
    assert dataset.data_hash == SmallI2WebV(made / "i2webv").data_hash
    assert "webvision/meta/val.txt, images from webvision/val" in said(dataset)
    rewrite([root / "webvision/meta/val.txt"], lambda line: f"val_images_resized/{line}")
    assert SmallI2WebV(root).data_hash == dataset.data_hash


def test_i2webv_in_class_folders(made: Path, copy: Copy) -> None:
    root = copy("i2webv")
    for line in (root / "webvision/info/val_filelist.txt").read_text().splitlines():
        name, label = line.split()
        wnid = transfer_trees.WNIDS[int(label)]
        move(root, f"webvision/val_images_resized/{name}", f"webvision/image/{wnid}/{name}")
    (root / "webvision/val_images_resized").rmdir()
    (root / "webvision/info/val_filelist.txt").unlink()
    dataset = SmallI2WebV(root)
    assert dataset.data_hash == SmallI2WebV(made / "i2webv").data_hash
    assert "webvision from webvision/image" in said(dataset)
