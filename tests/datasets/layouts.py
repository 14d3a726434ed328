"""Trees in the layouts that users have: copies that may be changed, and prefixes of lists."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from benchmarks.datasets.folder_dataset import FolderDataset
from benchmarks.datasets.i2webv import I2WebV
from benchmarks.datasets.splits import SPLITS, class_lists

Copy = Callable[[str], Path]


class SmallI2WebV(I2WebV):
    sizes = (6, 8)


def whole(lists: str) -> list[str]:
    return [name for split in SPLITS for name in class_lists(lists)[split]]


def move(root: Path, old: str, new: str) -> None:
    (root / new).parent.mkdir(parents=True, exist_ok=True)
    (root / old).rename(root / new)


def rewrite(files: list[Path], change: Callable[[str], str]) -> None:
    for file in files:
        file.write_text("".join(change(line) + "\n" for line in file.read_text().splitlines()))


def said(dataset: FolderDataset) -> str:
    return "\n".join(dataset.facts)


PREFIXES = [
    ("./", lambda line: f"./{line}"),
    ("./data/DomainNet/", lambda line: f"./data/DomainNet/{line}"),
    ("/data/real/sketch/", lambda line: f"/data/real/sketch/{line}"),
    ("C:/data/", lambda line: "C:\\data\\" + line.replace("/", "\\")),
    ("../../data/multi/", lambda line: f"../../data//multi/./{line}"),
]
PREFIX_IDS = ["dot", "relative", "absolute", "windows", "up"]
