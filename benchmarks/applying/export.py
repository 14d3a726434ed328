"""The embeddings of a data set as a file for use elsewhere: Parquet, or ``.npy`` with the names in a CSV file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
from pyarrow import parquet

from benchmarks.applying.image_index import SLAB, ApplyError, write_csv
from benchmarks.datasets.base import Dataset, DatasetError, dataset_root, root_problem
from benchmarks.datasets.image_cache import cache_folder
from benchmarks.datasets.pixels import PixelCache
from benchmarks.datasets.registry import DATASETS
from benchmarks.runner.embeddings import EncodedImages
from benchmarks.store.files import temporary_name
from methods.interface import Method

#: Columns of a data set's table that go with the embeddings.
COLUMNS = ("key", "class", "domain", "split", "held_back")


def open_dataset(name: str, data_root: str | None) -> Dataset:
    """A checked data set; raises ``DatasetError`` or ``UnknownNameError`` as a run does."""
    if problem := root_problem(data_root):
        raise DatasetError(f"{problem}; give the one that has the data sets")
    dataset: Dataset = DATASETS.get(name)(dataset_root(data_root, name))
    dataset.check()
    return dataset


def export_embeddings(
    method: Method, key: str, dataset: Dataset, file: Path, on_images: Callable[[int], None] = lambda count: None
) -> tuple[int, int]:
    """Write the embedding of every image of a data set to ``file`` (``.parquet`` or ``.npy``); returns its shape.

    Images are encoded as in a run. What an interrupted export of a large set has done is kept in the cache folder.
    Raises :class:`ApplyError` for another ending, ``DatasetError`` for an image that cannot be read.
    """
    if file.suffix not in (".parquet", ".npy"):
        raise ApplyError(f"--out {file}: its ending must be .parquet or .npy")
    file.parent.mkdir(parents=True, exist_ok=True)
    cache = cache_folder()
    content = hashlib.sha256(f"{key} {dataset.data_hash} {dataset.decoding}".encode()).hexdigest()[:32]
    folder = None if cache is None else cache / "embeddings" / f"export-{content}"
    pixels = PixelCache(dataset, method.backbone.processing)
    encoded = EncodedImages(method.encode_images, pixels, on_images, folder, device=method.device)
    rows = np.arange(len(dataset.table))
    encoded.encode(rows)
    width = encoded[rows[:1]].shape[1]
    about = dataset.table[list(COLUMNS)]
    partial = temporary_name(file)
    try:
        if file.suffix == ".npy":
            array = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float32, shape=(len(rows), width))
            for start in range(0, len(rows), SLAB):
                array[start : start + SLAB] = encoded[rows[start : start + SLAB]].numpy()
            array.flush()
            del array
            write_csv(file.with_suffix(".csv"), COLUMNS, about.itertuples(index=False))
        else:
            fields = [(name, pa.bool_() if name == "held_back" else pa.string()) for name in COLUMNS]
            kind = pa.schema([*fields, ("embedding", pa.list_(pa.float32()))])
            note = {"method": method.card.name, "backbone": method.backbone.name, "data_hash": dataset.data_hash}
            with parquet.ParquetWriter(partial, kind.with_metadata(note), compression="zstd") as writer:
                for start in range(0, len(rows), SLAB):
                    part = rows[start : start + SLAB]
                    columns = [pa.array(about[name].iloc[part].tolist()) for name in COLUMNS]
                    columns.append(pa.array(list(encoded[part].numpy()), pa.list_(pa.float32())))
                    writer.write_table(pa.table(columns, schema=kind.with_metadata(note)))
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
    encoded.discard()
    return len(rows), width
