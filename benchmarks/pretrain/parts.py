"""A corpus in few small files: to carry it to another machine, or to keep it.

``pack`` writes ``part-00.zip``, ``part-01.zip``, ..., each at most 12 MiB: sheets of 2,048 drawings as lossless WebP,
the index and ``corpus.json``. ``unpack`` restores the same arrays, bit for bit, of the drawings the index names
(drawings that ``purge`` dropped are left out, so rows are numbered anew).
"""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

PART_BYTES = 12 * 2**20
_SHEET, _ACROSS = 2048, 64


def _sheet_bytes(images: np.ndarray) -> bytes:
    """Images ``[n, S, S]`` or ``[n, S, S, 3]`` side by side as one lossless WebP."""
    size, rows = images.shape[1], -(-len(images) // _ACROSS)
    padded = np.zeros((rows * _ACROSS, *images.shape[1:]), dtype=np.uint8)
    padded[: len(images)] = images
    tiled = padded.reshape(rows, _ACROSS, size, size, -1).transpose(0, 2, 1, 3, 4)
    tiled = tiled.reshape(rows * size, _ACROSS * size, -1)
    stream = io.BytesIO()
    Image.fromarray(np.repeat(tiled, 3 // tiled.shape[2], axis=2)).save(
        stream, "WEBP", lossless=True, quality=60, method=4
    )
    return stream.getvalue()


def _sheet_images(data: bytes, count: int, size: int, channels: int) -> np.ndarray:
    tiled = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))[:, :, :channels]
    images = tiled.reshape(-1, size, _ACROSS, size, channels).transpose(0, 2, 1, 3, 4)
    images = images.reshape(-1, size, size, channels)[:count]
    return images[:, :, :, 0] if channels == 1 else images


def pack(corpus: Path, out: Path, *, part_bytes: int = PART_BYTES) -> list[Path]:
    """Write the corpus folder as parts into ``out``; returns the files. Raises ``FileNotFoundError`` without one."""
    if not (corpus / "corpus.json").is_file():
        raise FileNotFoundError(f"{corpus}: no corpus here; build it with `python -m benchmarks.pretrain corpus`")
    out.mkdir(parents=True, exist_ok=True)
    index = pd.read_parquet(corpus / "index.parquet")
    summary = json.loads((corpus / "corpus.json").read_text(encoding="utf-8"))
    stream = io.BytesIO()
    renumbered = index.copy()
    renumbered["row"] = index.groupby("kind").cumcount()
    renumbered.to_parquet(stream)

    def members() -> Iterator[tuple[str, bytes]]:
        yield "corpus.json", json.dumps(summary, indent=1).encode() + b"\n"
        yield "index.parquet", stream.getvalue()
        for kind in ("mono", "colour"):
            stored = np.load(corpus / f"{kind}.npy", mmap_mode="r")
            rows = index.loc[index["kind"] == kind, "row"].to_numpy()
            for start in range(0, len(rows), _SHEET):
                part = rows[start : start + _SHEET]
                yield f"{kind}-{start // _SHEET:04d}-{len(part)}.webp", _sheet_bytes(stored[part])

    files: list[Path] = []
    left = 0
    for name, data in members():
        if not files or len(data) + 512 > left:
            files.append(out / f"part-{len(files):02d}.zip")
            files[-1].unlink(missing_ok=True)
            left = part_bytes
        with zipfile.ZipFile(files[-1], "a", zipfile.ZIP_STORED) as archive:
            archive.writestr(zipfile.ZipInfo(name), data)
        left -= len(data) + 512
    return files


def unpack(parts: Path, out: Path) -> int:
    """Make the corpus folder ``out`` of the parts in a folder; returns the number of drawings.

    Raises ``FileNotFoundError`` where parts are missing and ``ValueError`` where the counts do not agree.
    """
    files = sorted(parts.glob("part-*.zip"))
    members: dict[str, bytes] = {}
    for file in files:
        with zipfile.ZipFile(file) as archive:
            members |= {name: archive.read(name) for name in archive.namelist()}
    if "corpus.json" not in members or "index.parquet" not in members:
        raise FileNotFoundError(f"{parts}: part-00.zip with the index is missing; copy all parts of the packed corpus")
    size = json.loads(members["corpus.json"])["size"]
    index = pd.read_parquet(io.BytesIO(members["index.parquet"]))
    out.mkdir(parents=True, exist_ok=True)
    for kind, channels in (("mono", 1), ("colour", 3)):
        count = int((index["kind"] == kind).sum())
        shape = (count, size, size) if channels == 1 else (count, size, size, 3)
        sheets = sorted(name for name in members if name.startswith(f"{kind}-"))
        stored = sum(int(name.rsplit("-", 1)[1].removesuffix(".webp")) for name in sheets)
        if stored != count:
            raise ValueError(f"{parts}: {stored} {kind} drawings, the index has {count}; copy all parts again")
        images = np.zeros(shape, dtype=np.uint8)
        at = 0
        for name in sheets:
            n = int(name.rsplit("-", 1)[1].removesuffix(".webp"))
            images[at : at + n] = _sheet_images(members[name], n, size, channels)
            at += n
        np.save(out / f"{kind}.npy", images)
    (out / "index.parquet").write_bytes(members["index.parquet"])
    (out / "corpus.json").write_bytes(members["corpus.json"])
    return len(index)
