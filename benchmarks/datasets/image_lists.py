"""Published image lists (``PATH LABEL`` a line): where they are, and what their paths begin with.

The same list is found in many places: beside the archives, in ``splits/`` (Dassl), ``image_list/`` (the Transfer
Learning Library), ``txt/`` (MME), and each code base writes its own prefix before the paths
(``./data/DomainNet/clipart/...``).
"""

from __future__ import annotations

import fnmatch
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from benchmarks.datasets.base import DatasetError
from benchmarks.datasets.class_words import plain_name
from benchmarks.datasets.tree_scan import IMAGE_SUFFIXES, NOT_IN_NAMES

#: Folders under the root in which lists are looked for, in this order and in any case.
LIST_FOLDERS = ("", "splits", "split", "image_list", "image_lists", "lists", "txt")

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


#: An image's path and a further number behind it, where a list has a third column (the domain's number).
_MORE_COLUMNS = re.compile(rf"(?:{'|'.join(map(re.escape, IMAGE_SUFFIXES))})['\"]?\s+[0-9]+\s*$", re.IGNORECASE)


@dataclass(frozen=True)
class RelativeList:
    """A list whose paths are ``FOLDER/...`` in the tree: columns ``path`` and ``label``, and what the paths began with
    before that."""

    rows: pd.DataFrame
    prefixes: tuple[str, ...] = ()


def folders_with_lists(root: Path, folders: Sequence[str] = LIST_FOLDERS) -> list[Path]:
    """The existing folders that may have lists; last ``txt/NAME`` beside the root, as in MME."""
    below = _by_lower_name(root, folders=True)
    places = [place for folder in folders for place in ([root] if not folder else below.get(folder.casefold(), []))]
    return [place for place in (*places, root.parent / "txt" / root.name) if place.is_dir()]


def find_lists(root: Path, patterns: Iterable[str], folders: Sequence[str] = LIST_FOLDERS) -> list[Path]:
    """Lists whose name matches one of the patterns (``*`` is any text) in any case: by folder, then by pattern, then by
    name, the spelling of the pattern first."""
    wanted = [pattern.casefold() for pattern in patterns]
    files: list[Path] = []
    for folder in folders_with_lists(root, folders):
        here = _by_lower_name(folder)
        for pattern in wanted:
            names = sorted(fnmatch.filter(here, pattern)) if "*" in pattern else [pattern]
            files += [file for name in names for file in here.get(name, []) if file not in files]
    return files


def _by_lower_name(folder: Path, *, folders: bool = False) -> dict[str, list[Path]]:
    """The text files (or the folders) in a folder by their name in lower case, lower-case spellings first."""
    found: dict[str, list[Path]] = {}
    try:
        with os.scandir(folder) as entries:
            names = [entry.name for entry in entries if folders or entry.name.lower().endswith(".txt")]
    except OSError:
        return found
    for name in sorted(names, key=lambda name: (name != name.lower(), name)):
        if (folder / name).is_dir() if folders else (folder / name).is_file():
            found.setdefault(name.casefold(), []).append(folder / name)
    return found


def display_path(file: Path, root: Path) -> str:
    """A list's path for messages and records: relative to the root."""
    if file.is_relative_to(root):
        return file.relative_to(root).as_posix()
    return f"../{file.relative_to(root.parent).as_posix()}" if file.is_relative_to(root.parent) else file.name


def read_relative_list(file: Path, folder: str, depth: int, *, root: Path, spelled: Iterable[str] = ()) -> RelativeList:
    """Read a list whose images are ``depth`` names below ``folder`` (a path under the root): 2 for CLASS/FILE.

    What a path has before the folder's name is ignored, whichever separator it has (``./data/``, an absolute path,
    backslashes), and a path may begin below the folder. ``spelled`` are other names of the folder.

    Raises :class:`DatasetError` naming file and path if a path is not in the folder (while others are), and
    as :func:`read_image_list` does.
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
    return RelativeList(rows.assign(path=paths), tuple(sorted({prefix for prefix in prefixes.values() if prefix})))


def prefix_notes(lists: Iterable[RelativeList]) -> tuple[str, ...]:
    """One line with the prefixes that were removed from paths; empty if there are none."""
    files = sorted({prefix for listing in lists for prefix in listing.prefixes})
    shown = ", ".join(map(repr, files[:3])) + (", ..." if len(files) > 3 else "")
    return (f"paths in the lists are read without {shown}",) if files else ()


def describe_lists(files: Sequence[Path], root: Path) -> str:
    """Several lists in few words: those of one folder together."""
    by_folder: dict[str, list[str]] = {}
    for file in files:
        by_folder.setdefault(display_path(file, root).rpartition("/")[0], []).append(file.name)
    parts = []
    for folder, names in by_folder.items():
        more = f" and {len(names) - 2} more" if len(names) > 3 else ""
        parts.append(f"{', '.join(names[: 2 if more else 3])}{more} in {folder or 'ROOT'}")
    return "; ".join(parts)


def _prefix(head: str, names: set[str]) -> str | None:
    """What a path has before its folder; None if it is in another folder."""
    before, _, last = head.rpartition("/")
    if head in ("", "."):
        return "./" if head else ""
    if plain_name(last) not in names:
        return None
    return f"{before}/" if before or head.startswith("/") else ""


class NoLabelsError(DatasetError):
    """An image list without labels."""


def read_image_list(file: Path) -> pd.DataFrame:
    """A published image list, ``PATH LABEL`` a line (DomainNet, VisDA, mini-DomainNet): columns ``path``, ``label``.

    Paths may have spaces and be in quotes. Raises :class:`DatasetError` naming the file and line that cannot be
    read, or the file if it is empty, and :class:`NoLabelsError` if every line is a path alone.
    """
    try:
        lines = file.read_text(encoding="utf-8-sig").splitlines()
    except OSError as error:
        raise DatasetError(f"{file} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{file} is not UTF-8 text: byte {error.start} is wrong; fetch the list again") from error
    rows = []
    entries = [line.strip() for line in lines if line.strip()]
    if entries and all(line.lower().endswith(IMAGE_SUFFIXES) for line in entries):
        first = f"{file}, line {lines.index(next(line for line in lines if line.strip())) + 1}"
        raise NoLabelsError(
            f"{first}: expected 'PATH LABEL', found {entries[0][:80]!r}: no line of the list has a label"
        )
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        path, label = (*line.rsplit(maxsplit=1), "")[:2]
        if _MORE_COLUMNS.search(path):
            shown = f"{line.strip()[:80]!r}: keep these two columns alone"
            raise DatasetError(f"{file}, line {number}: expected 'PATH LABEL', found {shown}")
        if not re.fullmatch(r"[0-9]{1,9}", label) or NOT_IN_NAMES.search(path):
            raise DatasetError(f"{file}, line {number}: expected 'PATH LABEL', found {line.strip()[:80]!r}")
        path = path.strip().replace("\\", "/")
        quoted = len(path) > 2 and path[0] == path[-1] and path[0] in "'\""
        rows.append((path[1:-1] if quoted else path, int(label)))
    if not rows:
        raise DatasetError(f"{file} is empty; fetch the list again")
    return pd.DataFrame(rows, columns=["path", "label"]).astype({"label": "int64"})
