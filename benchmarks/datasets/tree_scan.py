"""What is in a folder of images: reading a tree, and what in it is not used.

Reading is strict and reports what it did: names are sorted, so nothing depends on the order of the file system; files
with other endings, links that leave the folder or lead back into it, and folders without images are listed as
:class:`Finding`, one line each, and left out. No image is decoded here.
"""

from __future__ import annotations

import os
import re
import stat
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pandas as pd

from benchmarks.datasets.base import DatasetError
from benchmarks.datasets.class_words import plain_name
from benchmarks.datasets.decoding import HEIF_ENDINGS, readable_endings

#: Endings (in any case) of files that are read as images: what Pillow reads on this machine.
IMAGE_SUFFIXES = readable_endings()

#: Endings of archives; an error names one that is where the images should be, to be unpacked.
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar")

#: Files and folders that operating systems create; only counted.
SYSTEM_FILES = ("Thumbs.db", "__MACOSX", "desktop.ini")

#: A list of images to leave out, one key a line, in the data set's folder. ``verify --write-broken`` writes it.
BROKEN_LIST = "broken.txt"

_BESIDE_CLASSES = "beside the class folders; not read"

NOT_IN_NAMES = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")


@dataclass(frozen=True)
class Place:
    """Where a domain's images are: the folders ``folders`` under the root, each with ``CLASS/*`` in it.

    ``folders`` are spellings of one place; the first that exists is read. With ``classes`` False the images are in
    the folder itself and their class is "" until the data set sets it. An ``optional`` place may be absent.
    """

    domain: str
    folders: tuple[str, ...]
    classes: bool = True
    optional: bool = False


#: ``not_read`` (not an image), ``link`` (not followed), ``bad_name`` (cannot be used), ``empty_folder``, ``empty_file``
#: (an image file without content), ``missing_image`` (named in a list, but not there), ``missing_class`` (a class
#: without images in a domain), ``duplicate`` (read already under another name), ``unknown_class`` (no class of the data
#: set), ``similar_names`` (class or domain folders with almost the same name), ``broken`` (named in broken.txt),
#: ``stale_entry`` (named there, but no image), ``second_folder`` (of a domain), ``system_file``.
FindingKind = Literal[
    "not_read",
    "link",
    "bad_name",
    "empty_folder",
    "empty_file",
    "missing_image",
    "missing_class",
    "duplicate",
    "unknown_class",
    "similar_names",
    "broken",
    "stale_entry",
    "second_folder",
    "system_file",
]


@dataclass(frozen=True)
class Finding:
    """Something in the tree that is not used, by path under the root, and why.

    ``what`` names the kind of file in a summary (default: by ``kind``), ``count`` is the number of files.
    """

    kind: FindingKind
    path: str
    reason: str
    what: str = ""
    count: int = 1

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class Listing:
    """What is under a root: ``images``, one row each, ordered by key; ``findings``, what is not used; ``notes``, which
    folders and lists were read, one line each.

    Columns: ``key`` (path under the root with ``/``, in Unicode form C), ``class`` (folder name, form C), ``domain``,
    ``path`` (as the file system spells it, under the root), ``bytes`` and ``mtime_ns``.
    """

    images: pd.DataFrame
    findings: tuple[Finding, ...] = ()
    notes: tuple[str, ...] = ()


def scan(root: Path, places: Sequence[Place], *, suffixes: Sequence[str] = IMAGE_SUFFIXES) -> Listing:
    """List the images of a tree.

    Raises :class:`DatasetError` (one line) if the root or a place that is not optional is missing, if it cannot be
    read, if two names differ only in their Unicode form, or if there is no image at all.
    """
    reader = _TreeReader(check_root(root), tuple(suffix.lower() for suffix in suffixes))
    absent = []
    folders = [(place, *place_folders(reader.root, place)) for place in places]
    read = [f"{place.domain} from {folder}" for place, folder, _ in folders if folder is not None]
    folders.sort(key=lambda item: item[1] is not None and (reader.root / item[1]).is_symlink())  # folders before links
    for place, folder, others in folders:
        if folder is None and not place.optional:
            absent.append(" or ".join(place.folders))
        elif folder is not None:
            reader.read_place(folder, place)
            reader.findings += [
                Finding("second_folder", other, f"not read: {place.domain} is read from {folder}") for other in others
            ]
    if absent:
        raise DatasetError(f"{root} has no folder {', '.join(absent)}; the layout is {_layout(places)}")
    listing = reader.listing()
    without_images = {place.domain for place in places if not place.optional} - set(listing.images["domain"])
    if without_images:
        why = f" ({listing.findings[0]})" if listing.findings else ""
        raise DatasetError(f"{root} has no images of the domain {', '.join(sorted(without_images))}{why}")
    return replace(listing, notes=(f"folders: {', '.join(read)}",))


def place_folders(root: Path, place: Place) -> tuple[str | None, list[str]]:
    """The folder of a place under the root, as the file system spells it, and others that could be it as well.

    The first spelling of ``place.folders`` wins; else a path that has the same letters and digits (``Art_Painting`` for
    ``art_painting``). A folder in or above the one that is read is not listed among the others.
    """
    exact = [name for name in place.folders if (root / name).is_dir()]
    folders_found = list(
        dict.fromkeys([*exact, *(path for name in place.folders for path in _similar_folders(root, name))])
    )
    if not folders_found:
        return None, []
    first = root / folders_found[0]
    real = first.resolve()
    others = [
        name
        for name in folders_found[1:]
        if not (first.is_relative_to(root / name) or (root / name).is_relative_to(first))
        and (root / name).resolve() != real
    ]
    return folders_found[0], others


def _similar_folders(root: Path, name: str) -> list[str]:
    """Folders under the root that have the same letters and digits as ``name``, part by part."""
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


def scan_listed(root: Path, paths: Iterable[str], *, domain: str, classes: Iterable[str] | None = None) -> Listing:
    """List the images that a published list names: ``paths`` under the root (with ``/``), their ``domain`` and
    classes (default: each image's folder name).

    Images that are not there, or that the rules refuse, become findings of kind ``missing_image``; links obey the
    same rules as in :func:`scan`. Raises :class:`DatasetError` if none of them is there.
    """
    reader = _TreeReader(check_root(root), IMAGE_SUFFIXES)
    paths = list(paths)
    names = [Path(path).parent.name for path in paths] if classes is None else list(classes)
    for path, name in zip(paths, names, strict=True):
        reader.read_listed(path, domain, name)
    listing = reader.listing()
    if not len(listing.images):
        first = f", such as {listing.findings[0].path}" if listing.findings else ""
        raise DatasetError(f"{root} has none of the {len(paths)} images that the list of {domain} names{first}")
    findings = (
        item if item.kind == "duplicate" else replace(item, kind="missing_image", what="") for item in listing.findings
    )
    return Listing(listing.images, tuple(findings))


def join_listings(listings: Iterable[Listing]) -> Listing:
    """Several listings of one root as one; raises :class:`DatasetError` if an image is in two of them."""
    listings = list(listings)
    images = pd.concat([item.images for item in listings], ignore_index=True)
    twice = images["key"].duplicated()
    if twice.any():
        raise DatasetError(f"the image {images.loc[twice, 'key'].iloc[0]} is listed twice")
    images = images.sort_values("key", kind="stable", ignore_index=True)
    findings = tuple(finding for item in listings for finding in item.findings)
    return Listing(images, findings, tuple(note for item in listings for note in item.notes))


def check_root(root: Path) -> Path:
    """The root as a real path; raises :class:`DatasetError` if it is not a folder."""
    if not root.exists():
        raise DatasetError(f"{root} does not exist")
    if not root.is_dir():
        raise DatasetError(f"{root} is a file; give the folder with the images")
    return root.resolve()


def usable_entries(folder: Path, path: str = "") -> tuple[list[os.DirEntry[str]], list[Finding]]:
    """The entries of a folder, by name, without hidden files; findings for names that cannot be used.

    ``path``: the folder's path under the root, for the findings. Raises :class:`DatasetError` if it cannot be read.
    """
    good, odd, _ = _sorted_entries(folder, path)
    return good, odd


def _sorted_entries(folder: Path, path: str) -> tuple[list[os.DirEntry[str]], list[Finding], list[str]]:
    """:func:`usable_entries`, and the names of hidden and system files."""
    try:
        with os.scandir(folder) as folders_found:
            entries = sorted(folders_found, key=lambda entry: entry.name)
    except OSError as error:
        raise DatasetError(f"{folder} cannot be read: {error.strerror or error}") from error
    good, odd, system = [], [], []
    prefix = f"{path}/" if path else ""
    for entry in entries:
        if entry.name.startswith(".") or entry.name in SYSTEM_FILES:
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
            odd.append(Finding("bad_name", f"{prefix}{shown}", "the name is not UTF-8; rename it"))
            continue
        if NOT_IN_NAMES.search(entry.name):
            reason = "the name has a tab, line break or control character; rename it"
            odd.append(Finding("bad_name", f"{prefix}{entry.name!r}", reason))
            continue
        good.append(entry)
    return good, odd, system


class _TreeReader:
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

    def read_place(self, folder: str, place: Place) -> None:
        """Read one place."""
        if self._refused_folder(folder):
            return
        real = str((self.root / folder).resolve())
        if self._places.setdefault(real, folder) != folder:
            self._report("link", folder, f"a link to {self._places[real]}, which is read as a domain already")
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
                self._report("not_read", path, _BESIDE_CLASSES, what="beside the class folders")

    def read_listed(self, path: str, domain: str, name: str) -> None:
        """Read one image that a list names."""
        folder, _, file = path.rpartition("/")
        if path.startswith("/") or Path(path).is_absolute() or ".." in path.split("/"):
            self._report("missing_image", path, "the list names a file outside the data set's folder")
            return
        try:
            if folder not in self._parents:
                self._parents[folder] = (self.root / folder).resolve()
            parent = self._parents[folder]
            about = os.lstat(parent / file)
        except PermissionError:
            self._report("missing_image", path, "named in a list, but its folder cannot be read (permission denied)")
            return
        except (OSError, RuntimeError):  # RuntimeError: a link that leads to itself
            self._report("missing_image", path, "named in a list, but not there")
            return
        if stat.S_ISLNK(about.st_mode):
            self._links.append((path, name, domain, False))
        elif not parent.is_relative_to(self.root):
            self._report("link", path, "behind a link that leaves the data set's folder; not followed")
        else:
            self._add_image(path, name, domain, about, f"{parent}{os.sep}{file}")

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
        if not len(frame) and not any(finding.kind == "missing_image" for finding in self.findings):
            raise DatasetError(f"{self.root} has no images in its class folders{self._first_finding()}")
        frame = frame.sort_values("key", kind="stable", ignore_index=True)
        return Listing(frame, (*sorted(self.findings, key=lambda item: (item.path, item.kind)), *self._system))

    def _first_finding(self) -> str:
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
                self._report("not_read", path, f"{why}; not read", what=what)
            elif entry.is_symlink():
                self._links.append((path, name, domain, False))
            else:
                self._add_image(path, name, domain, entry.stat(), f"{real}{os.sep}{entry.name}")
        if len(self.rows) + len(self._links) == before:
            self._report("empty_folder", folder, "has no images")

    def _entries(self, folder: str) -> list[os.DirEntry[str]]:
        entries, odd, system = _sorted_entries(self.root / folder, folder)
        self.findings += odd
        if system:
            names = ", ".join(map(ascii, system[:3]))
            self._system.append(Finding("system_file", folder, f"system files, such as {names}", count=len(system)))
        return entries

    def _refused_folder(self, path: str) -> bool:
        """Whether a folder is (or is behind) a link that leaves the root or leads back to a folder above it."""
        full = self.root / path
        real = full.resolve()
        if real == full:
            return False
        if full.is_relative_to(real):
            self._report("link", path, "a link that leads back to a folder above it; not followed")
        elif not real.is_relative_to(self.root):
            self._report(
                "link", path, f"a link that leaves the data set's folder (to {real}); not followed, move it in"
            )
        else:
            return False
        return True

    def _linked_folder(self, path: str, name: str, domain: str) -> None:
        real = self._real_path(path)
        if real is None or (real.is_dir() and self._refused_folder(path)):
            return
        if real.is_dir() and str(real) in self._folders:
            self._report("link", path, f"a link to {self._folders[str(real)]}, which is listed already")
        elif real.is_dir():
            self._images(path, name, domain)
        elif self._is_image(path):
            self._report("not_read", path, _BESIDE_CLASSES, what="beside the class folders")

    def _linked_file(self, path: str, name: str, domain: str) -> None:
        real = self._real_path(path)
        if real is None:
            return
        if not real.is_relative_to(self.root):
            self._report(
                "link", path, f"a link that leaves the data set's folder (to {real}); not followed, copy it in"
            )
        elif not real.is_file():
            self._report("link", path, "a link to something that is not a file; not read")
        elif str(real) in self._real:
            self._report(
                "duplicate", path, f"a link to {real.relative_to(self.root).as_posix()}, which is listed already"
            )
        else:
            self._add_image(path, name, domain, real.stat(), str(real))

    def _real_path(self, path: str) -> Path | None:
        try:
            return (self.root / path).resolve(strict=True)
        except (OSError, RuntimeError) as error:
            nothing = isinstance(error, FileNotFoundError)
            self._report("link", path, "a link to nothing" if nothing else "a link that leads to itself")
            return None

    def _add_image(self, path: str, name: str, domain: str, about: os.stat_result, real: str) -> None:
        if not stat.S_ISREG(about.st_mode):
            self._report("not_read", path, "not a regular file", what="special files")
            return
        if real in self._real:
            if self._spelling.get(unicodedata.normalize("NFC", path)) == path:
                self._report("duplicate", path, "named twice; read once")
            else:
                self._report("duplicate", path, "a link to an image that is listed already")
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

    def _report(self, kind: FindingKind, path: str, reason: str, *, what: str = "", count: int = 1) -> None:
        self.findings.append(Finding(kind, path, reason, what, count))


def _unreadable(name: str) -> str:
    """Why a file of this name is not read as an image."""
    ending = Path(name).suffix.lower()
    if ending in HEIF_ENDINGS:
        return f"{ending} needs the package pillow-heif: install it, or convert the image"
    return "not an ending that is read" if ending else "no file name ending"


def _layout(places: Sequence[Place]) -> str:
    folders = ",".join(place.folders[0] for place in places if not place.optional)
    return f"ROOT/{{{folders}}}/" + ("CLASS/*" if any(place.classes for place in places) else "*")


#: Kinds of findings that are files not used, and their names in a summary ("": :attr:`Finding.what` is used).
LEFT_OUT: dict[FindingKind, str] = {
    "not_read": "",
    "missing_image": "named in a list but not there",
    "unknown_class": "in folders that are not a class",
    "broken": f"named in {BROKEN_LIST}",
    "empty_file": "empty",
    "link": "behind links that are not followed",
    "bad_name": "with names that cannot be used",
    "second_folder": "second folders of a domain",
    "system_file": "system files",
}


def count_left_out(findings: Iterable[Finding]) -> str:
    """One line that counts the files that are not used, by kind: ``8 .tif, 3 .heic, 2 system files``; "" for none."""
    counts: dict[tuple[int, str], int] = {}
    for item in findings:
        if item.kind in LEFT_OUT:
            place = (list(LEFT_OUT).index(item.kind), item.what or LEFT_OUT[item.kind])
            counts[place] = counts.get(place, 0) + item.count
    order = sorted(counts, key=lambda at: (at[0], -counts[at], at[1]))
    return ", ".join(f"{counts[place]} {place[1]}" for place in order)
