"""A folder of images embedded by a fitted method: resumable, memory-mapped, searched by image or text.

::

    OUT/embeddings.npy   float32 [N, D], one row an image, as the method encodes it
    OUT/images.parquet   the N images in the same order: name, path, size, mtime_ns, sha256
    OUT/search.faiss     faiss index of the rows (cosine; not for methods that compare by Euclidean distance)
    OUT/broken.csv       images that could not be read, with the reason; only if there are any
    OUT/index.json       which weights made it, written last
    OUT/partial/         what an interrupted run has done; the same command goes on from there

An image that is there with the same path, size and time is not encoded again, also where others were added, changed or
removed since. Every batch has the same size, so an embedding does not depend on which images are encoded with it.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import itertools
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pyarrow import parquet
from torch import Tensor

from benchmarks.console import printable
from benchmarks.datasets.decoding import readable_endings
from benchmarks.datasets.image_workers import make_jobs, run_jobs
from benchmarks.evaluation.search import Neighbours, scan_index, search
from benchmarks.runner.embeddings import BATCH
from benchmarks.store.files import temporary_name, write_atomically
from methods.interface import Method, NotApplicableError, NotFittedError, unit_length
from methods.parts.backbone import BackboneError
from methods.parts.feature_cache import one_thread_a_batch, side_by_side
from methods.parts.feeding import unit_range
from methods.parts.row_files import RowFiles

#: Images encoded between two writes: all that is lost if the process is killed.
CHUNK = 16 * BATCH

#: Rows copied or compared at a time.
SLAB = 16384

SCHEMA = 1

#: Why an image is left out whose path is not UTF-8.
NOT_UTF8 = "its name, or that of a folder above it, is not UTF-8; rename it"


class ApplyError(ValueError):
    """Images or an index that cannot be used; one line that names the place and the fix."""


@dataclass(frozen=True)
class FoundImage:
    """An image file: its name in all output, and what tells whether it has changed."""

    name: str
    path: str
    size: int
    mtime_ns: int

    @property
    def state(self) -> tuple[str, int, int]:
        """Equal for an untouched file."""
        return self.path, self.size, self.mtime_ns


def find_images(places: Sequence[Path], without: Path | None = None) -> list[FoundImage]:
    """Image files in and below folders, and files as given, in the order of their names.

    Names are paths below the folder, where one folder is given, else the paths as given. Hidden files and folders and
    links to folders are left out, and so is the folder ``without`` (where the embeddings and contact sheets are) if a
    place is around it. Raises :class:`ApplyError` for a place that is not there, or if nothing is found.
    """
    apart = None if without is None else without.resolve()
    endings = readable_endings()
    found: dict[str, FoundImage] = {}
    for place in places:
        if place.is_file():
            paths: Iterable[Path] = (place,)
        elif place.is_dir():
            paths = _below(place, endings, apart)
        else:
            raise ApplyError(f"{place}: no such file or folder")
        for path in paths:
            name = path.relative_to(place) if len(places) == 1 and path != place else path
            state = path.stat()
            image = FoundImage(name.as_posix(), str(path.resolve()), state.st_size, state.st_mtime_ns)
            found.setdefault(image.path, image)
    if not found:
        where = ", ".join(map(str, places))
        raise ApplyError(f"{where}: no images there (files ending in {', '.join(endings[:8])}, ...)")
    return sorted(found.values(), key=lambda image: image.name)


def _below(folder: Path, endings: tuple[str, ...], apart: Path | None) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        if Path(root) != folder and apart is not None and Path(root).resolve() == apart:
            folders[:] = []
            continue
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            path = Path(root) / name
            if not name.startswith(".") and path.suffix.lower() in endings and path.is_file():
                yield path


def decode_images(
    paths: Sequence[str], method: Method, rows: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray, dict[int, str]]:
    """Images at ``rows`` (sorted) of ``paths`` as the backbone takes them, decoded by worker processes.

    Returns the rows that could be read, their pixels (uint8 ``[B, 3, size, size]``) and sha256 (uint8 ``[B, 32]``),
    and the reason for each of the others.
    """
    how = method.backbone.processing
    good: list[tuple[int, np.ndarray, bytes]] = []
    broken: dict[int, str] = {}
    for result in run_jobs(make_jobs(rows, lambda row: paths[row], how, None, hashes=True), len(rows)):
        assert result.pixels is not None
        for image, pixels in zip(result.checked, result.pixels, strict=True):
            if image.reason:
                broken[image.row] = image.reason
            else:
                good.append((image.row, pixels, bytes.fromhex(image.sha256)))
    good.sort(key=lambda one: one[0])
    size = how.size
    pixels = np.stack([one[1] for one in good]) if good else np.zeros((0, 3, size, size), np.uint8)
    digests = np.array([list(one[2]) for one in good], np.uint8).reshape(len(good), 32)
    return np.array([one[0] for one in good], np.int64), pixels, digests, broken


def encode_pixels(run: Callable[[Tensor], Tensor], pixels: np.ndarray, device: torch.device) -> Tensor:
    """``run`` on images (uint8 ``[B, 3, H, W]``, B > 0) in batches of one size, the last one filled up: ``[B, ...]``.

    On a CPU with several threads, each computes a batch of its own.
    """

    @torch.no_grad()
    def one(batch: Tensor, wanted: int) -> Tensor:
        filled = torch.cat([batch, batch[-1:].expand(BATCH - wanted, -1, -1, -1)])
        return run(unit_range(filled.to(device))).float().cpu()[:wanted]

    parts = (torch.from_numpy(pixels[start : start + BATCH]) for start in range(0, len(pixels), BATCH))
    batches = ((part, len(part)) for part in parts)
    made: list[Tensor] = []
    with one_thread_a_batch(device) as count:
        made += [one(*batch) for batch in itertools.islice(batches, 1)]  # what a method keeps of its first call is kept
        made += side_by_side(count, one, batches) if count > 1 else (one(*batch) for batch in batches)
    return torch.cat(made)


def embed_images(
    method: Method,
    key: str,
    found: Sequence[FoundImage],
    out: Path,
    advance: Callable[[int], None] = lambda count: None,
) -> tuple[ImageIndex, dict[str, str]]:
    """Embed images into the folder ``out`` and index them; returns the index and the broken images with their reasons.

    ``key`` names the method's weights. Images that the folder has, of the same weights, are not encoded again. Raises
    :class:`ApplyError` if no image can be read, ``OSError`` if the folder cannot be written.
    """
    nameless = {printable(image.name): NOT_UTF8 for image in found if not _is_utf8(image.path)}
    found = [image for image in found if _is_utf8(image.path)]
    advance(len(nameless))
    if not found:
        raise ApplyError(f"none of {len(nameless)} images can be read; {next(iter(nameless))}: {NOT_UTF8}")
    paths, places = [image.path for image in found], {image.state: row for row, image in enumerate(found)}
    states = hashlib.sha256(json.dumps([key, [image.state for image in found]]).encode()).hexdigest()[:16]
    before = _of_same_weights(out, key)
    if before is not None and before.states == [image.state for image in found]:
        advance(len(found))
        _write_broken(out, nameless)
        return before, nameless
    rows = RowFiles(out / "partial" / states, len(found))
    filled = rows.filled
    if before is not None:
        known = [(row, places[state]) for row, state in enumerate(before.states) if state in places]
        known = sorted(((old, new) for old, new in known if not filled[new]), key=lambda pair: pair[1])
        for start in range(0, len(known), SLAB):
            old, new = (np.array(part, np.int64) for part in zip(*known[start : start + SLAB], strict=True))
            digests = np.array([list(bytes.fromhex(before.sha256[row])) for row in old], np.uint8)
            copied = torch.from_numpy(np.array(before.embeddings[old]))
            rows.write(new, {"embedding": copied, "sha256": torch.from_numpy(digests)})
        filled = rows.filled
    broken: dict[int, str] = {}
    advance(int(filled.sum()))
    missing = np.flatnonzero(~filled)
    for start in range(0, len(missing), CHUNK):
        chunk = missing[start : start + CHUNK]
        good, pixels, digests, wrong = decode_images(paths, method, chunk)
        broken |= wrong
        if len(good):
            embeddings = encode_pixels(method.encode_images, pixels, method.device)
            rows.write(good, {"embedding": embeddings, "sha256": torch.from_numpy(digests)})
        advance(len(chunk))
    reasons = nameless | {found[row].name: reason for row, reason in sorted(broken.items())}
    if not rows.started:
        name, reason = next(iter(reasons.items()))
        shutil.rmtree(out / "partial", ignore_errors=True)
        raise ApplyError(f"none of {len(reasons)} images can be read; {name}: {reason}")
    states_now = [found[int(row)].state for row in np.flatnonzero(rows.filled)]
    if before is None or before.states != states_now:
        _write(rows, found, out, key, method)
    _write_broken(out, reasons)
    shutil.rmtree(out / "partial", ignore_errors=True)
    return ImageIndex(out), reasons


def _of_same_weights(out: Path, key: str) -> ImageIndex | None:
    with contextlib.suppress(ApplyError):
        index = ImageIndex(out)
        return index if index.key == key else None
    return None


def _write(rows: RowFiles, found: Sequence[FoundImage], out: Path, key: str, method: Method) -> None:
    """The files of the index, the description last."""
    (out / "index.json").unlink(missing_ok=True)  # from here on, the former index is not whole
    there = np.flatnonzero(rows.filled)
    tensors = rows.tensors()
    width = tensors["embedding"].shape[1]
    target = out / "embeddings.npy"
    partial = temporary_name(target)
    try:
        array = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float32, shape=(len(there), width))
        for start in range(0, len(there), SLAB):
            part = torch.from_numpy(there[start : start + SLAB])
            array[start : start + SLAB] = tensors["embedding"][part].numpy()
        array.flush()
        del array
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)
    images = [found[int(row)] for row in there]
    columns = {
        "name": [image.name for image in images],
        "path": [image.path for image in images],
        "size": [image.size for image in images],
        "mtime_ns": [image.mtime_ns for image in images],
        "sha256": [bytes(one).hex() for one in tensors["sha256"][torch.from_numpy(there)].numpy()],
    }
    buffer = io.BytesIO()
    parquet.write_table(pa.table(columns), buffer, compression="zstd")
    write_atomically(out / "images.parquet", buffer.getvalue())
    (out / "search.faiss").unlink(missing_ok=True)
    about = {
        "schema": SCHEMA, "key": key, "method": method.card.name, "backbone": method.backbone.name,
        "similarity": method.card.similarity, "images": len(there), "width": width,
    }  # fmt: skip
    write_atomically(out / "index.json", (json.dumps(about, indent=1) + "\n").encode())


def _write_broken(out: Path, reasons: Mapping[str, str]) -> None:
    if reasons:
        write_csv(out / "broken.csv", ("name", "reason"), reasons.items())
    else:
        (out / "broken.csv").unlink(missing_ok=True)


def _is_utf8(text: str) -> bool:
    """False for a file name of other bytes, which neither Parquet nor CSV files can hold."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def write_csv(path: Path, head: Sequence[str], rows: Iterable[Iterable[Any]]) -> None:
    """A CSV file, whole or not at all."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(head)
    writer.writerows(rows)
    write_atomically(path, text.getvalue().encode())


class ImageIndex:
    """The embedded images of a folder, opened: ``names`` and ``paths`` in the order of ``embeddings`` [N, D]."""

    def __init__(self, folder: Path) -> None:
        """Open it; raises :class:`ApplyError` if there is none, or it is damaged."""
        self.folder = folder
        try:
            about = json.loads((folder / "index.json").read_text(encoding="utf-8"))
            self.key, self.similarity, self.method = about["key"], about["similarity"], about["method"]
            table = parquet.read_table(folder / "images.parquet").to_pydict()
            self.names, self.paths, self.sha256 = table["name"], table["path"], table["sha256"]
            self.states = list(zip(table["path"], table["size"], table["mtime_ns"], strict=True))
            self.embeddings: np.ndarray = np.load(folder / "embeddings.npy", mmap_mode="r", allow_pickle=False)
            if self.embeddings.shape != (len(self.names), about["width"]) or about["schema"] != SCHEMA:
                raise ValueError("its files do not belong together")
        except FileNotFoundError as error:
            raise ApplyError(f"{folder}: no embedded images there; give IMAGES to embed them") from error
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            text = " ".join(str(error).split())
            raise ApplyError(f"{folder}: damaged ({text}); delete it and embed again") from error

    def __len__(self) -> int:
        return len(self.names)

    @cached_property
    def _faiss(self) -> Any:
        """The faiss index: read from its file; made and written if it is missing or is not of these rows."""
        import faiss

        file = self.folder / "search.faiss"
        with contextlib.suppress(Exception):  # faiss raises RuntimeError for a cut file
            index = faiss.read_index(str(file))
            if (index.ntotal, index.d) == self.embeddings.shape:
                return index
        index = scan_index(self.embeddings)
        partial = temporary_name(file)
        try:
            faiss.write_index(index, str(partial))
            partial.replace(file)
        finally:
            partial.unlink(missing_ok=True)
        return index

    def search(self, queries: Tensor | np.ndarray, k: int) -> Neighbours:
        """The ``k`` nearest images of each query embedding ``[Q, D]``, best first, exactly as a ranking has them."""
        index = self._faiss if self.similarity == "cosine" else None
        return search(queries, self.embeddings, k, similarity=self.similarity, index=index)

    def write_parquet(self, path: Path) -> None:
        """Names, sha256 and embeddings as one Parquet file, a slab of rows at a time."""
        kind = pa.schema([("name", pa.string()), ("sha256", pa.string()), ("embedding", pa.list_(pa.float32()))])
        partial = temporary_name(path)
        try:
            with parquet.ParquetWriter(partial, kind, compression="zstd") as writer:
                for start in range(0, len(self), SLAB):
                    part = slice(start, start + SLAB)
                    columns = [self.names[part], self.sha256[part], list(np.asarray(self.embeddings[part]))]
                    writer.write_table(
                        pa.table([pa.array(c, f.type) for c, f in zip(columns, kind, strict=True)], kind)
                    )
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def image_query(method: Method, path: Path) -> Tensor:
    """The embedding ``[1, D]`` of one image file; raises :class:`ApplyError` naming it if it cannot be read."""
    good, pixels, _, broken = decode_images([str(path)], method, np.array([0]))
    if not len(good):
        raise ApplyError(f"{path}: {broken[0]}")
    return encode_pixels(method.encode_images, pixels, method.device)


def text_query(method: Method, text: str) -> Tensor:
    """The embedding ``[1, D]`` of a text, taken as a class name: the method puts it into its own prompt.

    Raises :class:`ApplyError` if the method embeds no texts, compares by Euclidean distance, or reads no text so long.
    """
    if method.card.similarity != "cosine":
        raise ApplyError(f"{method.card.name} compares images by Euclidean distance and embeds no text; use --search")
    try:
        with torch.no_grad():
            return unit_length(method.encode_classes([text]).float().cpu())
    except BackboneError as error:
        raise ApplyError(f"--text: {error}") from error
    except (NotApplicableError, NotFittedError) as error:
        raise ApplyError(f"{method.card.name} has no embedding of the text {text!r} ({error})") from error
