"""The base class of data sets that are folders of images.

One file a data set, e.g.::

    class Mine(FolderDataset):
        card = DatasetCard(name="mine", ..., gallery_domain="real", layout="ROOT/{clipart,real}/CLASS/*")
        places = (Place("clipart", ("clipart",)), Place("real", ("real", "Real World")))

        def arrange(self, images):            # columns key, class, domain, ... of the images that were found
            classes = canonical_classes(self, images, CLASSES)
            ...
            return images.assign(split=..., held_back=...)

Images named in ``ROOT/broken.txt`` are left out. No image is decoded before it is needed.
"""

from __future__ import annotations

import contextlib
import glob
import hashlib
import os
import shlex
import unicodedata
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pandas as pd

from benchmarks.console import counted
from benchmarks.datasets import contents
from benchmarks.datasets.base import Dataset, DatasetError
from benchmarks.datasets.class_words import plain_name
from benchmarks.datasets.decoding import RECIPE, ImageError
from benchmarks.datasets.image_cache import ImageCache, cache_folder
from benchmarks.datasets.synsets import TABLES, checked_synsets
from benchmarks.datasets.tree_scan import (
    ARCHIVE_SUFFIXES,
    BROKEN_LIST,
    Finding,
    FindingKind,
    Listing,
    Place,
    check_root,
    count_left_out,
    place_folders,
    scan,
    usable_entries,
)
from methods.parts.preprocessing import ImageProcessing

if TYPE_CHECKING:
    from torch import Tensor


class FolderDataset(Dataset):
    """A data set read from a folder. A subclass gives ``card``, ``places`` and :meth:`arrange`.

    * ``also_named``: other names of the folder under the data root (``--data-root``), tried after ``card.name``; a
      root of another name is used as it is.
    * ``published_counts``: images by domain as its authors state them, shown beside those found.
    * ``may_be_absent``: (domain, class) pairs without images as published; every other class is in every domain.
    """

    places: ClassVar[tuple[Place, ...]] = ()
    also_named: ClassVar[tuple[str, ...]] = ()
    published_counts: ClassVar[Mapping[str, int]] = {}
    may_be_absent: ClassVar[frozenset[tuple[str, str]]] = frozenset()
    decoding: ClassVar[str] = RECIPE

    def __init__(self, root: Path | None = None) -> None:
        super().__init__(root)
        self._added_findings: list[Finding] = []
        self._caches: dict[ImageProcessing, ImageCache] = {}

    # what a subclass may define

    def read(self, root: Path) -> Listing:
        """List the images under the root; the default reads ``places``."""
        return scan(root, self.places)

    @abstractmethod
    def arrange(self, images: pd.DataFrame) -> pd.DataFrame:
        """Add what each image is: the frame with ``class``, ``domain``, ``split`` and ``held_back`` as the data set
        has them. Rows may be left out (:meth:`note` says why) but not added."""

    def note(self, kind: FindingKind, path: str, reason: str, count: int = 1) -> None:
        """Add a :class:`Finding`; ``count``: the number of files."""
        self._added_findings.append(Finding(kind, path, reason, count=count))

    # what follows from these

    @cached_property
    def folder(self) -> Path:
        """The folder in use; raises :class:`DatasetError` (one line that says how to fix it) if there is none."""
        name, layout = self.card.name, f"{self.card.layout} (source: {self.card.source})"
        if self.root is None:
            raise DatasetError(f"{name} is not shipped: give --data-root FOLDER, where FOLDER/{name} is {layout}")
        others = self.also_named if self.root.name == name else ()
        with self._errors_named():
            for root in (self.root, *(self.root.parent / other for other in others)):
                if root.exists():
                    return root
            if self.root.name == name and self.root.parent.is_dir():
                names = {plain_name(item) for item in (name, *others)}
                for entry in usable_entries(self.root.parent)[0]:  # office-home, OFFICE_HOME, ...
                    if plain_name(entry.name) in names and entry.is_dir():
                        return self.root.parent / entry.name
        raise DatasetError(f"{name}: {self.root} does not exist; the layout is {layout}{self._hint(self.root)}")

    @cached_property
    def listing(self) -> Listing:
        """The tree as it was read, without the images of ``broken.txt`` and empty files."""
        folder = self.folder
        with self._errors_named():
            check_root(folder)
            try:
                listing = self.read(folder)
            except DatasetError as error:
                raise DatasetError(f"{error}{self._hint(folder)}") from error
            return _without_empty(self._without_broken(listing))

    def looks_like_root(self, folder: Path) -> bool:
        """Whether a folder looks like the data set's root: it has the folders of all its places."""
        wanted = [place for place in self.places if not place.optional]
        try:
            return bool(wanted) and all(place_folders(folder, place)[0] is not None for place in wanted)
        except DatasetError:
            return False

    def _hint(self, root: Path) -> str:
        """For an error, where the data set is not in ``root``: the folder that may be meant, or the archives to unpack;
        "" if neither is found."""
        try:
            if self.looks_like_root(root):
                return ""
            parent, entries = root.resolve().parent, sorted(root.iterdir()) if root.is_dir() else []
            named = [entry for entry in entries if entry.name in (self.card.name, *self.also_named)]
            meant = next((folder for folder in (*named, parent, *entries) if self.looks_like_root(folder)), None)
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
        return {name: item.synset for name, item in checked_synsets(self.card.name).items()}

    @property
    def synsets_published(self) -> bool:
        """False where :attr:`synsets` are this suite's own table."""
        return self.card.name not in TABLES

    @cached_property
    def table(self) -> pd.DataFrame:
        """All samples; beside the usual columns ``path``, ``bytes`` and ``mtime_ns`` of the files."""
        listing = self.listing
        with self._errors_named():
            try:
                table = self.arrange(listing.images)
            except DatasetError as error:
                unused = [item for item in (*listing.findings, *self._added_findings) if item.kind != "system_file"]
                why = (
                    f"; left out here: {unused[0]}" + (f" ({len(unused)} in all)" if len(unused) > 1 else "")
                    if unused
                    else ""
                )
                raise DatasetError(f"{error}{why}") from error
        if not len(table):
            raise DatasetError(f"{self.card.name}: {self.folder} has no images of its classes")
        return table.sort_values("key", kind="stable", ignore_index=True)

    @contextlib.contextmanager
    def _errors_named(self) -> Iterator[None]:
        """Put the data set's name before errors without it; an ``OSError`` becomes a :class:`DatasetError`."""
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
        return tuple(item for item in (*self.listing.findings, *self._added_findings) if item.kind != "system_file")

    @cached_property
    def left_out(self) -> str:
        """How many files of which kind are not used, in one line; "" if there are none."""
        _ = self.table
        return count_left_out((*self.listing.findings, *self._added_findings))

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
        """RGB in [0, 1]: the central square, bicubic (:mod:`benchmarks.datasets.decoding`), from the image cache.

        Raises :class:`DatasetError` naming a broken image and the command that lists them all.
        """
        return self.processed(rows, ImageProcessing.at(size)).float().div_(255)

    def processed(self, rows: np.ndarray, how: ImageProcessing) -> Tensor:
        """RGB under a backbone's image processing, uint8, from the image cache; errors as :meth:`pixels`."""
        import torch

        try:
            pixels = self.image_cache(how).pixels(np.asarray(rows))
        except ImageError as error:
            raise DatasetError(
                f"{self.card.name}: {error}; list all with: python -m benchmarks.data verify {self.card.name} "
                f"--root {shlex.quote(str(self.folder))} (--write-broken leaves them out)"
            ) from error
        return torch.from_numpy(pixels)

    def image_cache(self, how: int | ImageProcessing) -> ImageCache:
        """The decoded images under one image processing, or OpenAI's own at a size in pixels."""
        how = ImageProcessing.at(how).without_statistics()
        if how not in self._caches:
            digests = b"".join(hashlib.sha256(item.encode()).digest()[:16] for item in self.content)
            stamps = np.frombuffer(digests, dtype="<i8").reshape(-1, 2)
            folder = cache_folder()
            made = ImageCache(self.paths(), stamps, self._identity, how, folder, hashes=self.content)
            self._caches.setdefault(how, made)  # another thread may have made it meanwhile
        return self._caches[how]

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
        return self._content_or_unreadable(contents.file_hashes(self.paths(), name=self._cache_name))

    def set_content(self, hashes: Sequence[str], start: float) -> None:
        """Use the sha256 of every image ("" if it cannot be read) read by the caller since the time ``start``."""
        vars(self)["content"] = self._content_or_unreadable(hashes)
        contents.remember(self.paths(), hashes, name=self._cache_name, start=start)

    @property
    def _cache_name(self) -> str:
        return hashlib.sha256(os.fsencode(self.folder.resolve())).hexdigest()[:32]

    def _content_or_unreadable(self, hashes: Sequence[str]) -> list[str]:
        return [item or f"unreadable {key}" for key, item in zip(self.table["key"], hashes, strict=True)]

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
        broken, stale = set(), set()
        for line in lines:
            name = unicodedata.normalize("NFC", line.partition("\t")[0])
            name = name if name in known else name.strip()
            if name in known:
                broken.add(known[name])
            elif name and not name.startswith("#"):
                stale.add(name)
        left = images[~images["key"].isin(broken)].reset_index(drop=True)
        if not len(left):
            raise DatasetError(f"{file} names every image; delete it, then verify again")
        empty = set(images.loc[images["bytes"] == 0, "key"])
        findings = [
            Finding("broken", key, f"left out: named in {BROKEN_LIST}", "empty" if key in empty else "")
            for key in sorted(broken)
        ]
        findings += [Finding("stale_entry", name, f"named in {BROKEN_LIST}, but no image") for name in sorted(stale)]
        return replace(listing, images=left, findings=(*listing.findings, *findings))


def _without_empty(listing: Listing) -> Listing:
    """The listing without empty files; raises :class:`DatasetError` if none is left."""
    images = listing.images
    empty = images["bytes"] == 0
    if empty.all():
        raise DatasetError("every image file is empty; fetch them again")
    findings = [Finding("empty_file", path, "the file is empty") for path in images.loc[empty, "path"]]
    return replace(listing, images=images[~empty].reset_index(drop=True), findings=(*listing.findings, *findings))


def canonical_classes(
    dataset: FolderDataset, images: pd.DataFrame, classes: Sequence[str], aliases: Mapping[str, str] | None = None
) -> pd.DataFrame:
    """Rename folder names to the data set's class names; leave out, with a note, folders that are not a class of it.

    A folder is a class if both have the same letters and digits in order (``hot-air_balloon``, ``hot_air_balloon``)
    or if ``aliases`` (plain folder name to class) says so; two folders of one domain that are the same class are both
    read, with a note. Raises :class:`DatasetError` naming the classes that have no image in any domain: a part of a
    published data set must not pass for the whole.
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
            verb = "is" if count == 1 else "are"
            reason = f"not a class of {dataset.card.name}; its {counted(count, 'image')} {verb} left out"
            dataset.note("unknown_class", folder, reason, count)
    known = images[images["class"].map(lambda folder: names[folder] is not None)]
    known = known.assign(**{"class": known["class"].map(names)})
    spelled: dict[tuple[str, str], list[str]] = {}
    for domain, folder in sorted(set(zip(images["domain"], images["class"], strict=True))):
        spelled.setdefault((domain, names[folder] or ""), []).append(folder)
    for (domain, name), several in spelled.items():
        if name and len(several) > 1:
            dataset.note("similar_names", f"{domain}/{name}", f"read from the folders {', '.join(several)}")
    absent = sorted(set(classes) - set(known["class"]))
    if absent:
        shown = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
        raise DatasetError(
            f"{dataset.card.name}: {len(absent)} of {len(classes)} classes have no images under {dataset.folder} "
            f"({shown}); fetch the rest, or use the data set 'folder' for a part"
        )
    return known.reset_index(drop=True)


def note_missing_classes(dataset: FolderDataset, images: pd.DataFrame, classes: Iterable[str]) -> None:
    """Note the classes that have no image in one of the domains and should have (``may_be_absent``)."""
    there = {*zip(images["domain"], images["class"], strict=True), *dataset.may_be_absent}
    for domain in sorted(set(images["domain"])):
        for name in sorted(classes):
            if (domain, name) not in there:
                dataset.note("missing_class", f"{domain}/{name}", "no image of this class in this domain; fetch them")


def require_images(images: pd.DataFrame, classes: Mapping[str, str], domain: str, folder: Path) -> None:
    """Raise :class:`DatasetError` naming the classes that have no image in a domain."""
    there = set(images.loc[images["domain"] == domain, "class"])
    absent = sorted(set(classes) - there)
    if absent:
        shown = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
        raise DatasetError(
            f"{len(absent)} of {len(classes)} classes have no images of the domain {domain} under {folder} ({shown});"
            " fetch the rest"
        )
