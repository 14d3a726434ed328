"""Checks of a data set for ``python -m benchmarks.data``: is it there, do its images decode, which are identical."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from benchmarks.datasets.base import Dataset, DatasetError, dataset_root
from benchmarks.datasets.decoding import ImageError
from benchmarks.datasets.folder_dataset import FolderDataset
from benchmarks.datasets.image_cache import SPARE
from benchmarks.datasets.image_workers import check_images
from benchmarks.datasets.registry import DATASETS
from benchmarks.datasets.synsets import checked_synsets
from benchmarks.datasets.tree_scan import ARCHIVE_SUFFIXES, BROKEN_LIST, IMAGE_SUFFIXES, FindingKind, check_root
from methods.parts.senses import doubtful

#: Kinds of findings in the order in which they are printed, and their titles.
FINDING_TITLES: Mapping[FindingKind, str] = {
    "missing_image": "missing images",
    "broken": f"images left out by {BROKEN_LIST}",
    "stale_entry": f"lines of {BROKEN_LIST} that name no image",
    "missing_class": "classes without images in a domain",
    "duplicate": "names of images that are read already",
    "unknown_class": "folders that are not a class",
    "similar_names": "class or domain folders with almost the same name",
    "empty_folder": "folders without images",
    "link": "links that are not followed",
    "bad_name": "names that cannot be used",
    "second_folder": "second folders of a domain, not read",
    "not_read": "files that are not read",
}


def presence(name: str, data_root: str) -> str:
    """Whether a data set is under the data root: ``shipped``, ``missing``, ``unusable``, ``empty``, ``found``, or
    ``found as FOLDER``."""
    kind = DATASETS.get(name)
    if not (isinstance(kind, type) and issubclass(kind, FolderDataset)):
        return "shipped"
    root = dataset_root(data_root, name)
    try:
        folder = kind(root).folder
        check_root(folder)
    except DatasetError as error:
        if "does not exist" in str(error):
            return "missing"
        return "unusable" if root is None or _has_files(root) else "empty"
    if not _has_files(folder):
        return "empty"
    return "found" if root is None or folder.name == root.name else f"found as {folder.name}"


def _has_files(folder: Path) -> bool:
    """Whether there is an image or an archive at any depth; hidden files do not count."""
    known = (*IMAGE_SUFFIXES, *ARCHIVE_SUFFIXES)
    return any(
        not name.startswith(".") and name.lower().endswith(known)
        for _, _, names in os.walk(folder, followlinks=True)
        for name in names
    )


def findings_by_kind(dataset: FolderDataset) -> dict[FindingKind, list[str]]:
    """The findings of a data set, one line each, by kind."""
    kinds: dict[FindingKind, list[str]] = {}
    for finding in dataset.findings:
        kinds.setdefault(finding.kind, []).append(str(finding))
    return kinds


@dataclass(frozen=True)
class FileReport:
    """The result of decoding every image of a folder data set.

    ``hashes [N]``: sha256 of each row's file. ``broken``: reason by row. ``turned``: rows whose EXIF orientation is not
    upright. ``content_hash``: sha256 over keys and files.
    """

    hashes: np.ndarray
    broken: dict[int, str]
    turned: list[int]
    content_hash: str

    @property
    def whole(self) -> np.ndarray:
        """Rows of the images that decode."""
        return np.setdiff1d(np.arange(len(self.hashes)), list(self.broken))


def check_files(dataset: FolderDataset) -> FileReport:
    """Read, hash and decode every image, and keep the hashes."""
    keys, start = dataset.table["key"].to_numpy(), time.time()
    hashes, broken = np.zeros(len(keys), dtype="U64"), {}
    turned: list[int] = []
    for image in check_images(dataset.paths()):
        hashes[image.row] = image.sha256
        turned += [image.row] if image.orientation != 1 else []
        if image.reason:
            broken[image.row] = image.reason
    dataset.set_content(hashes.tolist(), start)
    content = "".join(f"{key}\t{digest}\n" for key, digest in zip(keys, hashes, strict=True))
    return FileReport(hashes, broken, turned, hashlib.sha256(content.encode()).hexdigest())


def decode_all(dataset: Dataset) -> None:
    """Decode every image of a data set that is not a folder; raises :class:`DatasetError` for one that cannot be."""
    rows = np.arange(len(dataset.table))
    for batch in np.array_split(rows, max(1, len(rows) // 512)):
        try:
            dataset.pixels(batch, 32)
        except DatasetError:
            raise
        except Exception as error:
            first, last = dataset.table["key"].iloc[[batch[0], batch[-1]]]
            raise DatasetError(f"an image between {first!r} and {last!r} cannot be decoded: {error}") from error


def doubtful_senses(dataset: FolderDataset) -> list[str]:
    """Classes whose WordNet synset was not given and is ambiguous, or is only a wider one; a line each."""
    lines = [str(sense) for sense in doubtful(dataset.classes(), dataset.synsets)]
    wider = [
        f"{name}: {checked.synset} is only the nearest wider synset"
        for name, checked in checked_synsets(dataset.card.name).items()
        if not checked.exact and name in set(dataset.classes())
    ]
    return lines + wider


def identical_images(dataset: FolderDataset, hashes: np.ndarray, rows: np.ndarray) -> list[str]:
    """Byte-identical images among ``rows`` in different splits, domains or classes, which could make a test easier than
    it should be; a line each group."""
    table = dataset.table
    role = table["split"].where(~table["held_back"], "held back")
    facts = table.assign(sha=hashes, role=role).iloc[rows]
    facts = facts[facts["sha"].duplicated(keep=False)]
    lines = []
    for _, group in facts.groupby("sha", sort=False):
        differs = [name for name in ("role", "domain", "class") if group[name].nunique() > 1]
        if differs:
            more = f" = {len(group) - 4} more" if len(group) > 4 else ""
            lines.append(f"{' = '.join(group['path'].head(4))}{more} (differ in {', '.join(differs)})")
    return sorted(lines)


def write_broken_list(dataset: FolderDataset, broken: Mapping[str, str]) -> Path:
    """Add images (reason by key) to ``broken.txt`` and return its path; raises :class:`DatasetError` if it cannot be
    written."""
    file = dataset.folder / BROKEN_LIST
    try:
        before = file.read_text(encoding="utf-8-sig") if file.is_file() else "# left out; image, then why\n"
        lines = "".join(f"{key}\t{broken[key]}\n" for key in sorted(broken))
        file.write_text(before + ("" if before.endswith("\n") else "\n") + lines, encoding="utf-8")
    except OSError as error:
        why = error.strerror or error
        raise DatasetError(f"{file} cannot be written: {why}; repair or remove those images instead") from error
    return file


def fill_cache(dataset: FolderDataset, size: int, rows: np.ndarray) -> str:
    """Decode images at ``size`` x ``size`` pixels into the cache; returns a line that says how many are in it.

    Raises :class:`DatasetError` if they cannot be kept.
    """
    name, cache = dataset.card.name, dataset.image_cache(size)
    try:
        kept = cache.keep(rows)
    except ImageError as error:
        raise DatasetError(f"{name}: {error}; it changed since it was checked, verify again") from error
    if not kept:
        raise DatasetError(
            f"{name}: images cannot be kept decoded at {size} x {size} pixels: set UCDR_BENCH_CACHE to a folder with"
            f" {(len(rows) * cache.slot_bytes + SPARE) / 2**30:.1f} GiB free"
        )
    return f"{cache.filled()} images are kept decoded at {size} x {size} pixels in {cache.folder}"
