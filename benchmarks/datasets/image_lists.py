"""Published image lists (``PATH LABEL`` a line): where they lie, and what their paths begin with.

The same list is found in many places: beside the archives, in ``splits/`` (Dassl), ``image_list/`` (the Transfer
Learning Library), ``txt/`` (MME), and each code base writes its own prefix before the paths
(``./data/DomainNet/clipart/...``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from benchmarks.datasets.base import DatasetError
from benchmarks.datasets.layouts import plain_name, read_image_list

#: Folders under the root in which lists are looked for, in this order.
LIST_FOLDERS = ("", "splits", "image_list", "image_lists", "lists", "txt")

#: Lists of a part of the classes, or of a few labelled images, as code for semi-supervised and source-free adaptation
#: names them (MME, SHOT and what follows them).
OTHER_LISTS = (
    "{domain}_list.txt",
    "{domain}.txt",
    "labeled_source_images_{domain}*.txt",
    "labeled_target_images_{domain}*.txt",
    "unlabeled_source_images_{domain}*.txt",
    "unlabeled_target_images_{domain}*.txt",
    "validation_target_images_{domain}*.txt",
)


@dataclass(frozen=True)
class PlacedList:
    """A list whose paths are ``FOLDER/...`` in the tree: columns ``path`` and ``label``, and what the paths began with
    before that."""

    rows: pd.DataFrame
    prefixes: tuple[str, ...] = ()


def list_folders(root: Path, folders: Sequence[str] = LIST_FOLDERS) -> list[Path]:
    """The folders that may hold lists and are there; last ``txt/NAME`` beside the root, as MME lays them out."""
    places = [*(root / folder for folder in folders), root.parent / "txt" / root.name]
    return [place for place in places if place.is_dir()]


def find_lists(root: Path, patterns: Iterable[str], folders: Sequence[str] = LIST_FOLDERS) -> list[Path]:
    """Lists whose name fits one of the patterns (``*`` is any text): by folder, then by pattern, then by name."""
    patterns = list(patterns)
    found: list[Path] = []
    for folder in list_folders(root, folders):
        for pattern in patterns:
            mine = sorted(folder.glob(pattern)) if "*" in pattern else [folder / pattern]
            found += [file for file in mine if file.is_file() and file not in found]
    return found


def shown(file: Path, root: Path) -> str:
    """A list's path as messages and records give it: under the root, or what leads to it from there."""
    if file.is_relative_to(root):
        return file.relative_to(root).as_posix()
    return f"../{file.relative_to(root.parent).as_posix()}" if file.is_relative_to(root.parent) else file.name


def read_placed(file: Path, folder: str, depth: int, *, root: Path, spelled: Iterable[str] = ()) -> PlacedList:
    """Read a list whose images lie ``depth`` names below ``folder`` (a path under the root): 2 for CLASS/FILE.

    What a path has before the folder's name does not count, whichever separator it has (``./data/``, an absolute path,
    backslashes), and a path may begin below the folder. ``spelled`` are other names of the folder.

    Raises :class:`DatasetError` naming file and path if a path does not lead through the folder (while others do), and
    as :func:`~benchmarks.datasets.layouts.read_image_list` does.
    """
    rows = read_image_list(file)
    names = {plain_name(name.rpartition("/")[2]) for name in (folder, *spelled)}
    prefixes: dict[str, str | None] = {}
    below: list[bool] = []  # whether paths begin below the folder
    paths = []
    for path in rows["path"]:
        plain = re.sub(r"/(?:\./|/)*", "/", path) if "//" in path or "/." in path else path
        head, *tail = plain.rsplit("/", depth)
        if len(tail) < depth:  # nothing before the last names
            head, tail = "", plain.split("/")
        if head not in prefixes:
            prefixes[head] = _prefix(head, names)
            below.append(head in ("", "."))
        if len(tail) != depth or prefixes[head] is None or below[-1] != below[0]:
            wanted = f"{folder}/" + ("CLASS/FILE" if depth == 2 else "FILE")
            mixed = len(tail) == depth and prefixes[head] is not None
            odd = str(rows["path"].iloc[0]) if mixed and below[0] else path
            raise DatasetError(f"{file}: {odd} is not of the form {wanted}{', as other lines are' if mixed else ''}")
        paths.append("/".join((folder, *tail)) if folder else "/".join(tail))
    return PlacedList(rows.assign(path=paths), tuple(sorted({prefix for prefix in prefixes.values() if prefix})))


def prefix_notes(lists: Iterable[PlacedList]) -> tuple[str, ...]:
    """One line that says what was left out at the beginning of paths; none if they begin as they should."""
    found = sorted({prefix for one in lists for prefix in one.prefixes})
    said = ", ".join(map(repr, found[:3])) + (", ..." if len(found) > 3 else "")
    return (f"paths in the lists are read without {said}",) if found else ()


def names_of(files: Sequence[Path], root: Path) -> str:
    """Several lists in few words: those of one folder together."""
    by_folder: dict[str, list[str]] = {}
    for file in files:
        by_folder.setdefault(shown(file, root).rpartition("/")[0], []).append(file.name)
    parts = []
    for folder, names in by_folder.items():
        more = f" and {len(names) - 2} more" if len(names) > 3 else ""
        parts.append(f"{', '.join(names[: 2 if more else 3])}{more} in {folder or 'ROOT'}")
    return "; ".join(parts)


def _prefix(head: str, names: set[str]) -> str | None:
    """What a path has before its folder; None if it leads through another folder."""
    before, _, last = head.rpartition("/")
    if head in ("", "."):
        return "./" if head else ""
    if plain_name(last) not in names:
        return None
    return f"{before}/" if before or head.startswith("/") else ""
