"""Small trees of exactly the layouts in which the data sets are published, with tiny images, and ways to damage them.

An image's content follows from its path (colour from the class folder, brightness from the domain, a mark from the
file name), so two trees with the same paths hold the same bytes and no two images of a tree are equal.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

FORMATS = {
    ".jpg": "JPEG",
    ".jpeg": "JPEG",
    ".png": "PNG",
    ".webp": "WEBP",
    ".bmp": "BMP",
    ".gif": "GIF",
    ".tif": "TIFF",
}
SIDE = (10, 8)


def image_bytes(path: str, side: tuple[int, int] = SIDE) -> bytes:
    """An encoded image of ``side`` (width, height), in the format of the path's ending."""
    parts = path.split("/")
    folder = parts[-2] if len(parts) > 1 else ""
    tint = np.frombuffer(hashlib.sha256(folder.encode()).digest()[:3], dtype=np.uint8)
    mark = np.frombuffer(hashlib.sha256(path.encode()).digest(), dtype=np.uint8)
    pixels = np.broadcast_to(tint // 2 + 40 + len(parts[0]) * 5 % 60, (side[1], side[0], 3)).copy()
    pixels.reshape(-1)[: len(mark)] = mark[: pixels.size]
    out = io.BytesIO()
    suffix = "." + path.rpartition(".")[2].lower()
    Image.fromarray(pixels.astype(np.uint8)).save(out, FORMATS[suffix])
    return out.getvalue()


def write_images(root: Path, paths: Iterable[str], side: tuple[int, int] = SIDE) -> list[str]:
    """Write the images ``paths`` (with ``/``, under ``root``); returns the paths."""
    made, folders = [], set()
    for path in paths:
        file = root / path
        if file.parent not in folders:
            file.parent.mkdir(parents=True, exist_ok=True)
            folders.add(file.parent)
        file.write_bytes(image_bytes(path, side))
        made.append(path)
    return made


#: Every tree has this many images in its first three classes if ``plenty`` is asked for: enough for a tenth of them.
PLENTY = 12


def class_tree(
    root: Path,
    folders: Sequence[str],
    classes: Sequence[str],
    images: int,
    name: str = "{number:04d}.jpg",
    *,
    plenty: bool = False,
) -> list[str]:
    """``FOLDER/CLASS/*`` for every folder and class; ``name`` may use ``{folder}``, ``{cls}`` and ``{number}``."""
    rich = set(classes[:3]) if plenty else set()
    return write_images(
        root,
        (
            f"{folder}/{cls}/" + name.format(folder=folder.rpartition("/")[2], cls=cls, number=number)
            for folder in folders
            for cls in classes
            for number in range(PLENTY if cls in rich else images)
        ),
    )


def domainnet_tree(
    root: Path, classes: Sequence[str], *, images: int = 2, lists: bool = True, plenty: bool = False
) -> list[str]:
    """DomainNet as its six archives unpack, with the twelve train and test lists beside them."""
    domains = ("clipart", "infograph", "painting", "quickdraw", "real", "sketch")
    paths: list[str] = []
    for domain in domains:
        suffix = "png" if domain == "quickdraw" else "jpg"
        mine = [
            f"{domain}/{cls}/{domain}_{number:03d}_{count:06d}.{suffix}"
            for number, cls in enumerate(sorted(classes), 1)
            for count in range(1, (PLENTY if plenty and cls in classes[:3] else images) + 1)
        ]
        paths += write_images(root, mine)
        if lists:
            labels = {cls: number for number, cls in enumerate(sorted(classes))}
            lines = [f"{path} {labels[path.split('/')[1]]}" for path in mine]
            for part, chosen in (("train", lines[::2]), ("test", lines[1::2])):
                (root / f"{domain}_{part}.txt").write_text("\n".join(chosen) + "\n")
    return paths


def sketchy_tree(root: Path, classes: Sequence[str], *, images: int = 2, plenty: bool = False) -> list[str]:
    """Sketchy Extended as its two archives unpack: 256x256/{sketch,photo}/tx_*/CLASS and EXTEND_image_sketchy/CLASS."""
    spelled = [{"hot_air_balloon": "hot-air_balloon", "jack_o_lantern": "jack-o-lantern"}.get(c, c) for c in classes]
    folders = ("256x256/sketch/tx_000000000000", "256x256/photo/tx_000000000000", "256x256/sketch/tx_000100000000")
    paths = class_tree(root, folders[:1], spelled, images, "n02691156_{number}-1.png", plenty=plenty)
    paths += class_tree(root, folders[1:2], spelled, 1, "n02691156_{number}.jpg")
    paths += class_tree(root, folders[2:], spelled, 1, "n02691156_{number}-1.png")
    return paths + class_tree(root, ("EXTEND_image_sketchy",), spelled, images, "ext_{number}.jpg", plenty=plenty)


def tuberlin_tree(root: Path, classes: Sequence[str], *, images: int = 2, plenty: bool = False) -> list[str]:
    """TU-Berlin Extended as its two archives unpack: png/CLASS with spaces, ImageResized/CLASS spelled its own way."""
    hyphens = ("t_shirt", "hot_dog", "frying_pan", "beer_mug", "teddy_bear", "wine_bottle", "human_skeleton")
    sketches = [c.replace("_", "-") if c in hyphens else c.replace("_", " ") for c in classes]
    photos = [TUBERLIN_PHOTO_NAMES.get(c, c.replace("_", "").replace("(", "").replace(")", "")) for c in classes]
    paths = class_tree(root, ("png",), sketches, images, "{number}.png", plenty=plenty)
    (root / "png" / "filelist.txt").write_text("airplane/1.png\n")
    return paths + class_tree(root, ("ImageResized",), photos, images, "n02691156_{number}.JPEG", plenty=plenty)


#: How the photo archive of TU-Berlin Extended spells what is not just written together.
TUBERLIN_PHOTO_NAMES = {
    "chandelier": "chandeler",
    "diamond": "diamod",
    "giraffe": "griaffe",
    "mouse_(animal)": "mouse",
    "pipe_(for_smoking)": "pipe",
    "space_shuttle": "spacesshuttle",
    "spider": "spidar",
    "trombone": "tromobone",
    "wrist_watch": "wristwatching",
}


def own_tree(
    root: Path,
    domains: Sequence[str] = ("drawing", "photo", "Öl auf Leinwand"),
    classes: Sequence[str] = ("Äpfel", "chat", "dog", "猫", "tree", "bird", "car", "cup"),
    images: int = 5,
) -> list[str]:
    """A user's own ROOT/domain/class/* tree, with names that are not ASCII."""
    return class_tree(root, domains, classes, images)


@dataclass(frozen=True)
class Damage:
    """What :func:`damage` added: keys that are listed but broken, listed and whole, and paths that must be left out."""

    broken: tuple[str, ...]
    whole: tuple[str, ...]
    left_out: tuple[str, ...]


def damage(root: Path, class_folder: str, outside: Path) -> Damage:
    """Add to the class folder (a path under ``root``): broken images, odd endings, odd names, links; beside it an
    empty class folder. ``outside`` is a folder elsewhere that links may point to."""
    folder = root / class_folder
    some = image_bytes(f"{class_folder}/x.jpg", (64, 48))
    (folder / "truncated.jpg").write_bytes(some[: len(some) // 2])
    (folder / "zero.jpg").write_bytes(b"")
    (folder / "page.jpg").write_text("<html>404</html>")
    whole = write_images(
        root,
        [
            f"{class_folder}/{name}"
            for name in ("UPPER.JPG", "photo.jpeg", "new.webp", "raw.bmp", "naïve ☃.png", "moving.gif", "scan.TIF")
        ],
    )
    (folder / "notes.txt").write_text("not an image")
    (folder / "film.mp4").write_bytes(some)
    (folder / "nested").mkdir()
    (folder / ".hidden.jpg").write_bytes(some)
    outside.mkdir(parents=True, exist_ok=True)
    (outside / "away.jpg").write_bytes(some)
    (folder / "leaves.jpg").symlink_to(outside / "away.jpg")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    (folder / "dangling.jpg").symlink_to("gone.jpg")
    (folder / "again.jpg").symlink_to("UPPER.JPG")
    beside = folder.parent
    (beside / "empty class").mkdir()
    (beside / "linked away").symlink_to(outside)
    (beside / "linked back").symlink_to("..")
    left_out = [
        *(f"{class_folder}/{name}" for name in ("notes.txt", "film.mp4", "nested")),
        *(f"{class_folder}/{name}" for name in ("leaves.jpg", "loop.jpg", "dangling.jpg", "again.jpg")),
        *(f"{beside.relative_to(root).as_posix()}/{name}" for name in ("empty class", "linked away", "linked back")),
    ]
    broken = tuple(f"{class_folder}/{name}" for name in ("page.jpg", "truncated.jpg", "zero.jpg"))
    return Damage(broken, tuple(whole), tuple(sorted(left_out)))
