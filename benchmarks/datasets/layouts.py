"""Data sets that are folders of images: reading a tree of a published layout, and the data set class made of it.

One file a data set, e.g.::

    class Mine(FolderDataset):
        card = DatasetCard(name="mine", ..., gallery_domain="real", layout="ROOT/{clipart,real}/CLASS/*")
        places = (Place("clipart", ("clipart",)), Place("real", ("real", "Real World")))

        def arrange(self, images):            # columns key, class, domain, ... of what lies there
            classes = canonical_classes(self, images, CLASSES)
            ...
            return images.assign(split=..., held_back=...)

Reading is strict and says what it did: names are sorted, so nothing depends on the order of the file system; files with
other endings, links that leave the folder or lead back into it, folders without images and images named in
``ROOT/broken.txt`` are listed as :class:`Finding`, one line each, and left out. Nothing is decoded before it is needed.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import re
import shlex
import stat
import sys
import unicodedata
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pandas as pd

from benchmarks.datasets import contents, image_files
from benchmarks.datasets.base import Dataset, DatasetError
from benchmarks.datasets.synsets import TABLES, checked_synsets
from methods.parts.preprocessing import ImageProcessing

if TYPE_CHECKING:
    from torch import Tensor

#: Endings (in any case) of files that are read as images: what Pillow reads on this machine.
IMAGE_SUFFIXES = image_files.readable_endings()

#: A list of images to leave out, one key a line, in the data set's folder. ``verify --write-broken`` writes it.
BROKEN_LIST = "broken.txt"

#: Share of a train class's gallery images that no training sees, as in the released code's rule.
HELD_BACK_SHARE = 0.08

#: Endings of archives; one that lies where the images should be is named, to be unpacked.
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar")

#: What systems leave in folders; not worth a word.
LITTER = ("Thumbs.db", "__MACOSX", "desktop.ini")

#: Why a file between class folders is not read.
BESIDE = "lies beside the class folders; not read"

_NOT_IN_NAMES = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


@dataclass(frozen=True)
class Place:
    """Where a domain's images lie: the folders ``folders`` under the root, each holding ``CLASS/*``.

    ``folders`` are spellings of one place; the first that exists is read. With ``classes`` False the images lie in
    the folder itself and their class is "" until the data set says otherwise. An ``optional`` place may be absent.
    """

    domain: str
    folders: tuple[str, ...]
    classes: bool = True
    optional: bool = False


@dataclass(frozen=True)
class Finding:
    """Something in the tree that is not used, by path under the root, and why.

    ``kind``: ``skipped`` (no image), ``link``, ``name``, ``empty`` (folder), ``missing`` (named in a list, but not
    there), ``lacking`` (a class without images in a domain), ``twice`` (read already under another name), ``unknown``
    (no class of the data set), ``alike`` (class folders with almost the same name), ``broken`` (named in broken.txt),
    ``zero`` (an image file without content),
    ``stale`` (named there, but no image), ``unused`` (a second folder of a domain), ``system`` (files that systems
    leave in a folder). ``what`` names the kind of file in a summary (default: by ``kind``), ``count`` how many files.
    """

    kind: str
    path: str
    reason: str
    what: str = ""
    count: int = 1

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class Listing:
    """What lies under a root: ``images``, one row each, ordered by key, what was left out, and ``notes``: which
    folders and lists were read, one line each.

    Columns: ``key`` (path under the root with ``/``, in Unicode form C), ``class`` (folder name, form C), ``domain``,
    ``path`` (as the file system spells it, under the root), ``bytes`` and ``mtime_ns``.
    """

    images: pd.DataFrame
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()


# --- reading trees ----------------------------------------------------------------------------------------------------


def scan(root: Path, places: Sequence[Place], *, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> Listing:
    """List the images of a tree.

    Raises :class:`DatasetError` (one line) if the root or a place that is not optional is missing, if it cannot be
    read, if two names differ only in their Unicode form, or if there is no image at all.
    """
    reader = _Reader(check_root(root), tuple(suffix.lower() for suffix in suffixes))
    absent = []
    found = [(place, *place_folders(reader.root, place)) for place in places]
    read = [f"{place.domain} from {folder}" for place, folder, _ in found if folder is not None]
    found.sort(key=lambda one: one[1] is not None and (reader.root / one[1]).is_symlink())  # folders before links
    for place, folder, others in found:
        if folder is None and not place.optional:
            absent.append(" or ".join(place.folders))
        elif folder is not None:
            reader.place(folder, place)
            reader.findings += [
                Finding("unused", other, f"not read: {place.domain} is read from {folder}") for other in others
            ]
    if absent:
        raise DatasetError(f"{root} lacks the folder {', '.join(absent)}; the layout is {_sketch(places)}")
    listing = reader.listing()
    bare = {place.domain for place in places if not place.optional} - set(listing.images["domain"])
    if bare:
        why = f" ({listing.findings[0]})" if listing.findings else ""
        raise DatasetError(f"{root} holds no images of the domain {', '.join(sorted(bare))}{why}")
    return replace(listing, notes=(f"folders: {', '.join(read)}",))


def place_folders(root: Path, place: Place) -> tuple[str | None, list[str]]:
    """The folder of a place under the root, as the file system spells it, and others that could be it as well.

    The first spelling of ``place.folders`` wins; else a path that has the same letters and digits (``Art_Painting`` for
    ``art_painting``). A folder in or above the one that is read is no other one.
    """
    exact = [name for name in place.folders if (root / name).is_dir()]
    found = list(dict.fromkeys([*exact, *(path for name in place.folders for path in _alike(root, name))]))
    if not found:
        return None, []
    first = root / found[0]
    real = first.resolve()
    others = [
        name
        for name in found[1:]
        if not (first.is_relative_to(root / name) or (root / name).is_relative_to(first))
        and (root / name).resolve() != real
    ]
    return found[0], others


def _alike(root: Path, name: str) -> list[str]:
    """Folders under the root that have the letters and digits of ``name``, part by part."""
    paths = [""]
    for part in name.split("/"):
        wanted = plain_name(part)
        paths = [
            f"{path}/{entry.name}" if path else entry.name
            for path in paths
            for entry in usable_entries(root / path, path)[0]
            if plain_name(entry.name) == wanted and entry.is_dir()
        ]
    return paths if plain_name(name) else []


def list_files(root: Path, paths: Iterable[str], *, domain: str, classes: Iterable[str] | None = None) -> Listing:
    """List the images that a published list names: ``paths`` under the root (with ``/``), their ``domain`` and
    classes (default: each image's folder name).

    Images that are not there, or that no rule lets in, become findings of kind ``missing``; links obey the same rules
    as in :func:`scan`.
    Raises :class:`DatasetError` if none of them is there.
    """
    reader = _Reader(check_root(root), IMAGE_SUFFIXES)
    paths = list(paths)
    names = [Path(path).parent.name for path in paths] if classes is None else list(classes)
    for path, name in zip(paths, names, strict=True):
        reader.named(path, domain, name)
    listing = reader.listing()
    if not len(listing.images):
        first = f", such as {listing.findings[0].path}" if listing.findings else ""
        raise DatasetError(f"{root} has none of the {len(paths)} images that the list of {domain} names{first}")
    findings = (one if one.kind == "twice" else replace(one, kind="missing", what="") for one in listing.findings)
    return Listing(listing.images, tuple(findings))


def join_listings(listings: Iterable[Listing]) -> Listing:
    """Several listings of one root as one; raises :class:`DatasetError` if an image stands in two of them."""
    listings = list(listings)
    images = pd.concat([one.images for one in listings], ignore_index=True)
    twice = images["key"].duplicated()
    if twice.any():
        raise DatasetError(f"the image {images.loc[twice, 'key'].iloc[0]} is listed twice")
    images = images.sort_values("key", kind="stable", ignore_index=True)
    findings = tuple(finding for one in listings for finding in one.findings)
    return Listing(images, findings, tuple(note for one in listings for note in one.notes))


class NoLabelsError(DatasetError):
    """A list of images without their labels."""


def read_image_list(file: Path) -> pd.DataFrame:
    """A published image list, ``PATH LABEL`` a line (DomainNet, VisDA, mini-DomainNet): columns ``path``, ``label``.

    Paths may hold spaces and stand in quotes. Raises :class:`DatasetError` naming the file and line that cannot be
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
        if not re.fullmatch(r"[0-9]{1,9}", label) or _NOT_IN_NAMES.search(path):
            raise DatasetError(f"{file}, line {number}: expected 'PATH LABEL', found {line.strip()[:80]!r}")
        path = path.strip().replace("\\", "/")
        quoted = len(path) > 2 and path[0] == path[-1] and path[0] in "'\""
        rows.append((path[1:-1] if quoted else path, int(label)))
    if not rows:
        raise DatasetError(f"{file} is empty; fetch the list again")
    return pd.DataFrame(rows, columns=["path", "label"]).astype({"label": "int64"})


def check_root(root: Path) -> Path:
    """The root as a real path; raises :class:`DatasetError` if it is no folder."""
    if not root.exists():
        raise DatasetError(f"{root} does not exist")
    if not root.is_dir():
        raise DatasetError(f"{root} is a file; give the folder that holds the images")
    return root.resolve()


def usable_entries(folder: Path, path: str = "") -> tuple[list[os.DirEntry[str]], list[Finding]]:
    """What lies in a folder, by name, without hidden files; findings for names that no list could hold.

    ``path``: the folder's path under the root, for the findings. Raises :class:`DatasetError` if it cannot be read.
    """
    good, odd, _ = _sorted_entries(folder, path)
    return good, odd


def _sorted_entries(folder: Path, path: str) -> tuple[list[os.DirEntry[str]], list[Finding], list[str]]:
    """:func:`usable_entries`, and the names of hidden files and of what systems leave in a folder."""
    try:
        with os.scandir(folder) as found:
            entries = sorted(found, key=lambda entry: entry.name)
    except OSError as error:
        raise DatasetError(f"{folder} cannot be read: {error.strerror or error}") from error
    good, odd, system = [], [], []
    prefix = f"{path}/" if path else ""
    for entry in entries:
        if entry.name.startswith(".") or entry.name in LITTER:
            system.append(entry.name)
            continue
        if not entry.name.isascii() and sys.getfilesystemencoding() != "utf-8":
            raise DatasetError(
                f"this Python reads file names as {sys.getfilesystemencoding()}, which changes names such as that of"
                f" {prefix}{ascii(entry.name)[1:-1]}: start it with PYTHONUTF8=1 in its environment (or python -X utf8)"
            )
        try:
            entry.name.encode()
        except UnicodeEncodeError:
            shown = entry.name.encode(errors="backslashreplace").decode()
            odd.append(Finding("name", f"{prefix}{shown}", "the name is not UTF-8; rename it"))
            continue
        if _NOT_IN_NAMES.search(entry.name):
            reason = "the name holds a tab, line break or control character; rename it"
            odd.append(Finding("name", f"{prefix}{entry.name!r}", reason))
            continue
        good.append(entry)
    return good, odd, system


class _Reader:
    """Collects the images of one root. Links are kept for the end, so that plain files always win."""

    def __init__(self, root: Path, suffixes: tuple[str, ...]) -> None:
        self.root = root
        self.suffixes = suffixes
        self.findings: list[Finding] = []
        self._system: list[Finding] = []
        self.rows: list[tuple[str, str, str, str, int, int]] = []
        self._spelling: dict[str, str] = {}
        self._real: set[str] = set()
        self._links: list[tuple[str, str, str, bool]] = []  # path, class, domain, whether at the place of a folder
        self._folders: dict[str, str] = {}
        self._places: dict[str, str] = {}
        self._parents: dict[str, Path] = {}

    def place(self, folder: str, place: Place) -> None:
        """Read one place."""
        if self._refused_folder(folder):
            return
        real = str((self.root / folder).resolve())
        if self._places.setdefault(real, folder) != folder:
            self._find("link", folder, f"a link to {self._places[real]}, which is read as a domain already")
            return
        if not place.classes:
            self._images(folder, "", place.domain)
            return
        for entry in self._entries(folder):
            path = f"{folder}/{entry.name}"
            if entry.is_symlink():
                self._links.append((path, entry.name, place.domain, True))
            elif entry.is_dir():
                self._images(path, entry.name, place.domain)
            elif self._is_image(entry.name):
                self._find("skipped", path, BESIDE, what="beside the class folders")

    def named(self, path: str, domain: str, name: str) -> None:
        """Take one image that a list names."""
        folder, _, file = path.rpartition("/")
        if path.startswith("/") or Path(path).is_absolute() or ".." in path.split("/"):
            self._find("missing", path, "the list names a file outside the data set's folder")
            return
        try:
            if folder not in self._parents:
                self._parents[folder] = (self.root / folder).resolve()
            parent = self._parents[folder]
            about = os.lstat(parent / file)
        except PermissionError:
            self._find("missing", path, "named in a list, but its folder may not be read")
            return
        except (OSError, RuntimeError):  # RuntimeError: a link that leads to itself
            self._find("missing", path, "named in a list, but not there")
            return
        if stat.S_ISLNK(about.st_mode):
            self._links.append((path, name, domain, False))
        elif not parent.is_relative_to(self.root):
            self._find("link", path, "lies behind a link that leaves the data set's folder; not followed")
        else:
            self._take(path, name, domain, about, f"{parent}{os.sep}{file}")

    def listing(self) -> Listing:
        """Everything read so far."""
        folders = sorted(link for link in self._links if link[3])
        self._links = [link for link in self._links if not link[3]]
        for path, name, domain, _ in folders:
            self._linked_folder(path, name, domain)
        for path, name, domain, _ in sorted(self._links):
            self._linked_file(path, name, domain)
        columns = ["key", "class", "domain", "path", "bytes", "mtime_ns"]
        frame = pd.DataFrame(self.rows, columns=columns).astype({"bytes": "int64", "mtime_ns": "int64"})
        if not len(frame) and not any(finding.kind == "missing" for finding in self.findings):
            raise DatasetError(f"{self.root} holds no images in its class folders{self._hint()}")
        frame = frame.sort_values("key", kind="stable", ignore_index=True)
        return Listing(frame, (*sorted(self.findings, key=lambda one: (one.path, one.kind)), *self._system))

    def _hint(self) -> str:
        return f" ({self.findings[0]}; {len(self.findings)} such)" if self.findings else ""

    def _images(self, folder: str, name: str, domain: str) -> None:
        real = str((self.root / folder).resolve())
        self._folders[real] = folder
        before = len(self.rows) + len(self._links)
        for entry in self._entries(folder):
            path = f"{folder}/{entry.name}"
            if not self._is_image(entry.name):
                folder_there = entry.is_dir(follow_symlinks=False)
                why = "a folder" if folder_there else _unreadable(entry.name)
                what = "folders in class folders" if folder_there else Path(path).suffix.lower() or "without an ending"
                self._find("skipped", path, f"{why}; not read", what=what)
            elif entry.is_symlink():
                self._links.append((path, name, domain, False))
            else:
                self._take(path, name, domain, entry.stat(), f"{real}{os.sep}{entry.name}")
        if len(self.rows) + len(self._links) == before:
            self._find("empty", folder, "holds no images")

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        entries, odd, system = _sorted_entries(self.root / folder, folder)
        self.findings += odd
        if system:
            names = ", ".join(map(ascii, system[:3]))
            self._system.append(Finding("system", folder, f"system files, such as {names}", count=len(system)))
        return entries

    def _refused_folder(self, path: str) -> bool:
        """Whether a folder is (or lies behind) a link that leaves the root or leads back to a folder above it."""
        full = self.root / path
        real = full.resolve()
        if real == full:
            return False
        if full.is_relative_to(real):
            self._find("link", path, "a link that leads back to a folder above it; not followed")
        elif not real.is_relative_to(self.root):
            self._find("link", path, f"a link that leaves the data set's folder (to {real}); not followed, move it in")
        else:
            return False
        return True

    def _linked_folder(self, path: str, name: str, domain: str) -> None:
        real = self._real_path(path)
        if real is None or (real.is_dir() and self._refused_folder(path)):
            return
        if real.is_dir() and str(real) in self._folders:
            self._find("link", path, f"a link to {self._folders[str(real)]}, which is listed already")
        elif real.is_dir():
            self._images(path, name, domain)
        elif self._is_image(path):
            self._find("skipped", path, BESIDE, what="beside the class folders")

    def _linked_file(self, path: str, name: str, domain: str) -> None:
        real = self._real_path(path)
        if real is None:
            return
        if not real.is_relative_to(self.root):
            self._find("link", path, f"a link that leaves the data set's folder (to {real}); not followed, copy it in")
        elif not real.is_file():
            self._find("link", path, "a link to something that is no file; not read")
        elif str(real) in self._real:
            self._find("twice", path, f"a link to {real.relative_to(self.root).as_posix()}, which is listed already")
        else:
            self._take(path, name, domain, real.stat(), str(real))

    def _real_path(self, path: str) -> Path | None:
        try:
            return (self.root / path).resolve(strict=True)
        except (OSError, RuntimeError) as error:
            nothing = isinstance(error, FileNotFoundError)
            self._find("link", path, "a link to nothing" if nothing else "a link that leads to itself")
            return None

    def _take(self, path: str, name: str, domain: str, about: os.stat_result, real: str) -> None:
        if not stat.S_ISREG(about.st_mode):
            self._find("skipped", path, "not a plain file", what="no plain files")
            return
        if real in self._real:
            if self._spelling.get(unicodedata.normalize("NFC", path)) == path:
                self._find("twice", path, "named twice; read once")
            else:
                self._find("twice", path, "a link to an image that is listed already")
            return
        key = unicodedata.normalize("NFC", path)
        if key in self._spelling:
            raise DatasetError(
                f"{self.root}: {path!r} and {self._spelling[key]!r} are the same name in two Unicode forms; rename one"
            )
        self._spelling[key] = path
        self._real.add(real)
        name = unicodedata.normalize("NFC", name)
        self.rows.append((key, name, domain, path, about.st_size, about.st_mtime_ns))

    def _is_image(self, name: str) -> bool:
        return name.lower().endswith(self.suffixes)

    def _find(self, kind: str, path: str, reason: str, *, what: str = "", count: int = 1) -> None:
        self.findings.append(Finding(kind, path, reason, what, count))


def _unreadable(name: str) -> str:
    """Why a file of this name is not taken for an image."""
    ending = Path(name).suffix.lower()
    if ending in image_files.HEIF_ENDINGS:
        return f"{ending} needs the package pillow-heif: install it, or convert the image"
    return "not an ending that is read" if ending else "no ending that says what it is"


def _sketch(places: Sequence[Place]) -> str:
    folders = ",".join(place.folders[0] for place in places if not place.optional)
    return f"ROOT/{{{folders}}}/" + ("CLASS/*" if any(place.classes for place in places) else "*")


#: Files that are not used, by the kind of finding, as a summary calls them; "" says how it calls the kind itself.
LEFT_OUT = {
    "skipped": "",
    "missing": "named in a list but not there",
    "unknown": "in folders that are no class",
    "broken": f"named in {BROKEN_LIST}",
    "zero": "of zero bytes",
    "link": "behind links that are not followed",
    "name": "with names that cannot be used",
    "unused": "second folders of a domain",
    "system": "system files",
}


def left_out(findings: Iterable[Finding]) -> str:
    """One line that counts the files that are not used, by kind: ``8 .tif, 3 .heic, 2 system files``; "" for none."""
    counts: dict[tuple[int, str], int] = {}
    for one in findings:
        if one.kind in LEFT_OUT:
            place = (list(LEFT_OUT).index(one.kind), one.what or LEFT_OUT[one.kind])
            counts[place] = counts.get(place, 0) + one.count
    order = sorted(counts, key=lambda at: (at[0], -counts[at], at[1]))
    return ", ".join(f"{counts[place]} {place[1]}" for place in order)


# --- rules that data sets share ---------------------------------------------------------------------------------------


def plain_name(name: str) -> str:
    """A class name with its letters and digits only, lower case: what spellings of one name share."""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFC", name)).casefold()


def held_back(
    images: pd.DataFrame, train: Iterable[str], gallery_domain: str, *, share: float = HELD_BACK_SHARE
) -> np.ndarray:
    """Which images no training may see: bool, one a row of ``images``.

    Of every train class, in the gallery domain, the images whose key has the lowest sha256: ``n - int((1 - share) *
    n)`` of n, as many as the released code holds back, but chosen by name and never all of them. The other domains hold
    back nothing, because no gallery is made of them.
    """
    chosen = np.zeros(len(images), dtype=bool)
    eligible = images["class"].isin(set(train)) & (images["domain"] == gallery_domain)
    keys = images["key"].to_numpy()
    for rows in images.reset_index(drop=True)[eligible.to_numpy()].groupby("class").indices.values():
        mine = np.flatnonzero(eligible.to_numpy())[rows]
        count = len(mine) - int((1 - share) * len(mine))
        order = sorted(mine, key=lambda row: hashlib.sha256(str(keys[row]).encode()).digest())
        chosen[order[: min(count, len(mine) - 1)]] = True
    return chosen


def class_splits(
    classes: Iterable[str], *, seed: int = 0, val_share: float = 0.15, test_share: float = 0.25
) -> dict[str, str]:
    """Split of every class by a seeded rule: ``{class: "train" | "val" | "test"}``.

    Classes are ordered by ``sha256("SEED/class/NAME")``; the first ``round(test_share * n)`` are test, the next
    ``round(val_share * n)`` val, at least one each, the rest train. Needs three classes.
    """
    names = sorted(set(classes))
    if len(names) < 3:
        raise DatasetError(f"train, validation and test classes need three classes at least; there are {len(names)}")
    order = sorted(names, key=lambda name: hashlib.sha256(f"{seed}/class/{name}".encode()).digest())
    test = max(1, round(test_share * len(names)))
    val = max(1, min(round(val_share * len(names)), len(names) - test - 1))
    return {
        name: "test" if place < test else "val" if place < test + val else "train" for place, name in enumerate(order)
    }


# --- the data set -----------------------------------------------------------------------------------------------------


class FolderDataset(Dataset):
    """A data set read from a folder. A subclass gives ``card``, ``places`` and :meth:`arrange`.

    * ``also_named``: other names of the folder under the data root (``--data-root``), tried after ``card.name``; a
      root of another name is taken at its word.
    * ``published_counts``: images by domain as its authors state them, shown beside those found.
    * ``may_lack``: (domain, class) that have no images as published; every other class lies in every domain.
    """

    places: ClassVar[tuple[Place, ...]] = ()
    also_named: ClassVar[tuple[str, ...]] = ()
    published_counts: ClassVar[Mapping[str, int]] = {}
    may_lack: ClassVar[frozenset[tuple[str, str]]] = frozenset()
    decoding: ClassVar[str] = image_files.RECIPE

    def __init__(self, root: Path | None = None) -> None:
        super().__init__(root)
        self._noted: list[Finding] = []
        self._stores: dict[ImageProcessing, image_files.ImageStore] = {}

    # what a subclass may say

    def read(self, root: Path) -> Listing:
        """What lies under the root; the default reads ``places``."""
        return scan(root, self.places)

    @abstractmethod
    def arrange(self, images: pd.DataFrame) -> pd.DataFrame:
        """Say what each image is: the frame with ``class``, ``domain``, ``split`` and ``held_back`` as the data set
        has them. Rows may be left out (:meth:`note` says why) but not added."""

    def note(self, kind: str, path: str, reason: str, count: int = 1) -> None:
        """Add a :class:`Finding`; ``count``: files that it is about."""
        self._noted.append(Finding(kind, path, reason, count=count))

    # what follows from it

    @cached_property
    def folder(self) -> Path:
        """The folder in use; raises :class:`DatasetError` (one line, with the mend) if there is none."""
        name, layout = self.card.name, f"{self.card.layout} (source: {self.card.source})"
        if self.root is None:
            raise DatasetError(f"{name} is not shipped: say --data-root FOLDER where FOLDER/{name} is {layout}")
        others = self.also_named if self.root.name == name else ()
        with self._named():
            for root in (self.root, *(self.root.parent / other for other in others)):
                if root.exists():
                    return root
            if self.root.name == name and self.root.parent.is_dir():
                spelled = {plain_name(one) for one in (name, *others)}
                for entry in usable_entries(self.root.parent)[0]:  # office-home, OFFICE_HOME, ...
                    if plain_name(entry.name) in spelled and entry.is_dir():
                        return self.root.parent / entry.name
        raise DatasetError(f"{name}: {self.root} does not exist; the layout is {layout}{self._mend(self.root)}")

    @cached_property
    def listing(self) -> Listing:
        """The tree as it was read, without the images of ``broken.txt`` and those of zero bytes."""
        folder = self.folder
        with self._named():
            check_root(folder)
            try:
                listing = self.read(folder)
            except DatasetError as error:
                raise DatasetError(f"{error}{self._mend(folder)}") from error
            return _without_empty(self._without_broken(listing))

    def lies_in(self, folder: Path) -> bool:
        """Whether a folder looks like the data set's root: it has the folders of all its places."""
        wanted = [place for place in self.places if not place.optional]
        try:
            return bool(wanted) and all(place_folders(folder, place)[0] is not None for place in wanted)
        except DatasetError:
            return False

    def _mend(self, root: Path) -> str:
        """Where the data set does not lie in ``root``: the folder that may be meant, or the archives to unpack; "" if
        there is nothing to say."""
        try:
            if self.lies_in(root):
                return ""
            parent, entries = root.resolve().parent, sorted(root.iterdir()) if root.is_dir() else []
            own = [entry for entry in entries if entry.name in (self.card.name, *self.also_named)]
            meant = next((folder for folder in (*own, parent, *entries) if self.lies_in(folder)), None)
            if meant is not None:
                return f"; did you mean {meant}?"
            beside = [] if entries else sorted(parent.glob(f"{glob.escape(root.name)}*"))
            packed = [file.name for file in entries or beside if file.suffix.lower() in ARCHIVE_SUFFIXES]
        except OSError:
            return ""
        more = f" and {len(packed) - 3} more" if len(packed) > 3 else ""
        return f"; unpack {', '.join(packed[:3])}{more} first" if packed else ""

    @property
    def synsets(self) -> Mapping[str, str]:
        """The hand-checked WordNet synset of each class (:mod:`benchmarks.datasets.synsets`); {} without a table."""
        return {name: one.synset for name, one in checked_synsets(self.card.name).items()}

    @property
    def synsets_published(self) -> bool:
        """False where :attr:`synsets` are this suite's own table."""
        return self.card.name not in TABLES

    @cached_property
    def table(self) -> pd.DataFrame:
        """All samples; beside the usual columns ``path``, ``bytes`` and ``mtime_ns`` of the files."""
        listing = self.listing
        with self._named():
            try:
                table = self.arrange(listing.images)
            except DatasetError as error:
                odd = [one for one in (*listing.findings, *self._noted) if one.kind != "system"]
                why = f"; left out here: {odd[0]}" + (f" ({len(odd)} in all)" if len(odd) > 1 else "") if odd else ""
                raise DatasetError(f"{error}{why}") from error
        if not len(table):
            raise DatasetError(f"{self.card.name}: {self.folder} holds no images of its classes")
        return table.sort_values("key", kind="stable", ignore_index=True)

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Errors that lack the data set's name get it; what the system refuses becomes one of them."""
        try:
            yield
        except DatasetError as error:
            name = self.card.name
            if str(error).startswith(f"{name}:"):
                raise
            raise DatasetError(f"{name}: {error}") from error
        except OSError as error:
            where = error.filename or self.root
            raise DatasetError(f"{self.card.name}: {where} cannot be read: {error.strerror or error}") from error

    @property
    def findings(self) -> tuple[Finding, ...]:
        """Everything in the tree that is not used, and why; system files are only counted (:attr:`left_out`)."""
        _ = self.table
        return tuple(one for one in (*self.listing.findings, *self._noted) if one.kind != "system")

    @cached_property
    def left_out(self) -> str:
        """How many files of which kind are not used, in one line; "" if there are none."""
        _ = self.table
        return left_out((*self.listing.findings, *self._noted))

    @property
    def facts(self) -> tuple[str, ...]:
        """Which folders and lists were read."""
        return self.listing.notes

    def paths(self, rows: np.ndarray | None = None) -> list[str]:
        """Full paths of table rows (default: all)."""
        root = str(self.folder.resolve())
        paths = self.table["path"].to_numpy() if rows is None else self.table["path"].to_numpy()[rows]
        return [f"{root}/{path}" for path in paths]

    def pixels(self, rows: np.ndarray, size: int) -> Tensor:
        """RGB in [0, 1]: the central square, bicubic (:mod:`benchmarks.datasets.image_files`), from the image cache.

        Raises :class:`DatasetError` naming a broken image and the command that lists them all.
        """
        return self.processed(rows, ImageProcessing.at(size)).float().div_(255)

    def processed(self, rows: np.ndarray, how: ImageProcessing) -> Tensor:
        """RGB under a backbone's image processing, uint8, from the image cache; errors as :meth:`pixels`."""
        import torch

        try:
            pixels = self.store(how).pixels(np.asarray(rows))
        except image_files.ImageError as error:
            raise DatasetError(
                f"{self.card.name}: {error}; list all with: python -m benchmarks.data verify {self.card.name} "
                f"--root {shlex.quote(str(self.folder))} (--write-broken leaves them out)"
            ) from error
        return torch.from_numpy(pixels)

    def store(self, how: int | ImageProcessing) -> image_files.ImageStore:
        """The decoded images under one image processing, or OpenAI's own at a size in pixels."""
        how = ImageProcessing.at(how).without_statistics()
        if how not in self._stores:
            digests = b"".join(hashlib.sha256(one.encode()).digest()[:16] for one in self.content)
            stamps = np.frombuffer(digests, dtype="<i8").reshape(-1, 2)
            folder = image_files.cache_folder()
            self._stores[how] = image_files.ImageStore(
                self.paths(), stamps, self._identity, how, folder, hashes=self.content
            )
        return self._stores[how]

    @cached_property
    def _identity(self) -> str:
        """Names the list of images for the cache: keys and contents."""
        digest = hashlib.sha256()
        for key, content in zip(self.table["key"], self.content, strict=True):
            digest.update(f"{key}\t{content}\n".encode())
        return digest.hexdigest()

    @cached_property
    def content(self) -> Sequence[str]:
        """sha256 of each image's file, read once and remembered while the file is untouched
        (:mod:`benchmarks.datasets.contents`); ``unreadable KEY`` for a file that cannot be read."""
        return self._marked(contents.file_hashes(self.paths(), name=self._memory))

    def take_content(self, hashes: Sequence[str], begun: float) -> None:
        """Use the sha256 of every image ("" if it cannot be read) that somebody read from the time ``begun`` on."""
        vars(self)["content"] = self._marked(hashes)
        contents.remember(self.paths(), hashes, name=self._memory, begun=begun)

    @property
    def _memory(self) -> str:
        return hashlib.sha256(os.fsencode(self.folder.resolve())).hexdigest()[:32]

    def _marked(self, hashes: Sequence[str]) -> list[str]:
        return [one or f"unreadable {key}" for key, one in zip(self.table["key"], hashes, strict=True)]

    def _without_broken(self, listing: Listing) -> Listing:
        file = self.folder / BROKEN_LIST
        if not file.is_file():
            return listing
        try:
            lines = file.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise DatasetError(f"{file} is not UTF-8 text: byte {error.start} is wrong; write it again") from error
        images = listing.images
        by_path = zip(images["path"], images["key"], strict=True)
        known = {unicodedata.normalize("NFC", path): key for path, key in by_path}
        known |= {key: key for key in images["key"]}
        gone, stale = set(), set()
        for line in lines:
            name = unicodedata.normalize("NFC", line.partition("\t")[0])
            name = name if name in known else name.strip()
            if name in known:
                gone.add(known[name])
            elif name and not name.startswith("#"):
                stale.add(name)
        left = images[~images["key"].isin(gone)].reset_index(drop=True)
        if not len(left):
            raise DatasetError(f"{file} leaves no image; delete it, then verify again")
        empty = set(images.loc[images["bytes"] == 0, "key"])
        findings = [
            Finding("broken", key, f"left out: named in {BROKEN_LIST}", "of zero bytes" if key in empty else "")
            for key in sorted(gone)
        ]
        findings += [Finding("stale", name, f"named in {BROKEN_LIST}, but no image") for name in sorted(stale)]
        return replace(listing, images=left, findings=(*listing.findings, *findings))


def _without_empty(listing: Listing) -> Listing:
    """The listing without files of zero bytes, which no decoder reads; raises :class:`DatasetError` if none is left."""
    images = listing.images
    empty = images["bytes"] == 0
    if empty.all():
        raise DatasetError("every image file is of zero bytes; fetch them again")
    findings = [Finding("zero", path, "the file is empty") for path in images.loc[empty, "path"]]
    return replace(listing, images=images[~empty].reset_index(drop=True), findings=(*listing.findings, *findings))


def canonical_classes(
    dataset: FolderDataset, images: pd.DataFrame, classes: Sequence[str], aliases: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """Rename folder names to the data set's class names; leave out, with a note, folders that are no class of it.

    A folder fits a class if both have the same letters and digits in order (``hot-air_balloon``, ``hot_air_balloon``)
    or if ``aliases`` (plain folder name to class) says so; two folders of one domain that fit the same class are both
    read, with a note. Raises :class:`DatasetError` naming the classes that have no image in any domain: a part of a
    published data set must not be taken for the whole.
    """
    by_plain = {plain_name(name): name for name in classes}
    if len(by_plain) != len(classes):
        raise ValueError("two classes differ in punctuation only; name them in aliases")
    by_plain.update(aliases or {})
    exact = {name: name for name in classes}
    folders = sorted(images["class"].unique())
    names = {folder: exact.get(folder) or by_plain.get(plain_name(folder)) for folder in folders}
    for folder in folders:
        if names[folder] is None:
            count = int((images["class"] == folder).sum())
            reason = f"no class of {dataset.card.name}; its {count} images are left out"
            dataset.note("unknown", folder, reason, count)
    known = images[images["class"].map(lambda folder: names[folder] is not None)]
    known = known.assign(**{"class": known["class"].map(names)})
    spelled: dict[tuple[str, str], list[str]] = {}
    for domain, folder in sorted(set(zip(images["domain"], images["class"], strict=True))):
        spelled.setdefault((domain, names[folder] or ""), []).append(folder)
    for (domain, name), several in spelled.items():
        if name and len(several) > 1:
            dataset.note("alike", f"{domain}/{name}", f"read from the folders {', '.join(several)}")
    absent = sorted(set(classes) - set(known["class"]))
    if absent:
        shown = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
        raise DatasetError(
            f"{dataset.card.name}: {len(absent)} of {len(classes)} classes have no images under {dataset.folder} "
            f"({shown}); fetch the rest, or use the data set 'folder' for a part"
        )
    return known.reset_index(drop=True)


def note_lacking(dataset: FolderDataset, images: pd.DataFrame, classes: Iterable[str]) -> None:
    """Note the classes that have no image in one of the domains and should have (``may_lack``)."""
    there = {*zip(images["domain"], images["class"], strict=True), *dataset.may_lack}
    for domain in sorted(set(images["domain"])):
        for name in sorted(classes):
            if (domain, name) not in there:
                dataset.note("lacking", f"{domain}/{name}", "no image of this class in this domain; fetch them")
