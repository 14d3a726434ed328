"""The packed form of a result store: a few files in place of two a cell, small enough to be committed.

::

    FOLDER/pack.json           the manifest: schema, form, rounding, sha256 of the two files below
    FOLDER/records.parquet     one row a record or search: its path in a loose store, its JSON text, its columns
    FOLDER/per_query.parquet   one table over all records: ``record`` (that path), query, class, domain, gallery, values
    FOLDER/cards, FOLDER/resolved.json   as in a loose store

:class:`benchmarks.store.files.ResultStore` reads packed and loose records alike; ``python -m benchmarks.pack``
writes packs.

A pack has one of two forms, which the manifest and the metadata of both Parquet files name:

* ``full``: every per-query value, exactly.
* ``lean``: per query only what reports show. Texts, flags and ``n_relevant`` stay. Of the values stay the per-query
  columns of the record's leading metrics, ``ap@all``, ``recall@1`` and ``credit``, rounded to 1e-4 (stored as whole
  numbers of 1e-4 in columns called ``NAME [1e-4]``). The lists of best gallery images stay for the lowest seed of
  each method, variant and setting, and there for a sample of ``top`` queries of each split and gallery: the same
  queries under every method, spread over classes (:func:`benchmarks.store.pack_writer.sample`); elsewhere they are
  missing. The records are untouched: their means are those of the exact values.

Rows of one record are in their original order but not together: the records of a split alternate query by query, so
that what they share repeats and compresses well.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.store.records import cannot_be_read

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa

SCHEMA = 1

MANIFEST = "pack.json"
RECORDS = "records.parquet"
PER_QUERY = "per_query.parquet"

FORMS = ("lean", "full")

#: What the metadata of both Parquet files call the form.
NOTE = "ucdr-bench pack"

#: Whole numbers of 1 / SCALE are the rounded values of a lean pack.
SCALE = 10_000

#: Columns of per-query tables whose names begin like this are lists of best images or classes, and their scores.
LISTS = "top_"

#: A lean pack's column ``NAME`` in whole numbers is called ``NAME [1e-4]``.
SCALED = " [1e-4]"


#: What to do about a damaged pack.
MEND = "pack again or delete the pack"


class PackError(ValueError):
    """A pack that cannot be read or made; one line that names the file and says how to fix it."""


@dataclass(frozen=True)
class Manifest:
    """The content of ``pack.json``: ``top`` is None in a full pack, ``rounding`` 0; ``rows`` are per-query rows."""

    form: str
    top: int | None
    rounding: float
    records: int
    searches: int
    rows: int
    files: dict[str, str]
    schema: int = SCHEMA


class Pack:
    """An opened pack. ``records`` and ``searches``: JSON texts by path in a loose store, as ``cells/.../x.json``."""

    def __init__(self, root: Path) -> None:
        """Read the manifest and the records and check both files' sha256; raises :class:`PackError`."""
        self.root = root
        self.manifest = _manifest(root / MANIFEST)
        self.records: dict[str, str] = {}
        self.searches: dict[str, str] = {}
        self._columns: dict[str, str] = {}
        with _readable(root / RECORDS):
            rows = _table(self._checked(RECORDS)).select(["path", "json", "columns"]).to_pydict()
            for path, text, columns in zip(rows["path"], rows["json"], rows["columns"], strict=True):
                if path.startswith("searches/"):
                    self.searches[path] = text
                else:
                    self.records[path] = text
                    if columns:
                        self._columns[path] = columns
        self._checked(PER_QUERY)

    def per_query(self, path: str, *, lists: bool = True) -> pa.Table | None:
        """The per-query table of the record at ``path``, None if it has none; raises :class:`PackError`.

        The whole file is read once and kept. Without ``lists`` the columns of `LISTS` are left out.
        """
        import pyarrow as pa

        if path not in self._columns:
            return None
        with _readable(self.root / PER_QUERY):
            table, places = self._values
            columns = [(name, kind) for name, kind in json.loads(self._columns[path]) if lists or name[:4] != LISTS]
            stored = {name if name in table.column_names else name + SCALED for name, _ in columns}
            rows = table.select(sorted(stored)).take(pa.array(places[path]))
            arrays, fields = [], []
            for name, kind in columns:
                column = rows[name] if name in rows.column_names else unscaled(rows[name + SCALED])
                empty = kind.endswith("null")  # only missing values and empty lists cannot be cast
                arrays.append(pa.array(column.to_pylist(), type_of(kind)) if empty else column.cast(type_of(kind)))
                fields.append(pa.field(name, type_of(kind)))
            return pa.table(arrays, schema=pa.schema(fields))

    @cached_property
    def _values(self) -> tuple[pa.Table, dict[str, np.ndarray]]:
        """All per-query values, and the rows of each record."""
        import numpy as np

        table = _table(self._checked(PER_QUERY), ("record", "query", "class", "domain", "gallery"))
        record = table["record"].combine_chunks()
        codes = record.indices.to_numpy()
        order = np.argsort(codes, kind="stable")
        names = record.dictionary.to_pylist()
        ends = np.searchsorted(codes[order], np.arange(len(names)), side="right")
        return table, dict(zip(names, np.split(order, ends[:-1]), strict=True))

    def _checked(self, name: str) -> bytes:
        try:
            data = (self.root / name).read_bytes()
        except OSError as error:
            raise PackError(f"{self.root / name}: {cannot_be_read(error, MEND)}") from error
        if hashlib.sha256(data).hexdigest() != self.manifest.files.get(name):
            raise PackError(f"{self.root / name}: changed, cut off, or of another pack than {MANIFEST}: {MEND}")
        return data


_opened: dict[Path, tuple[tuple[Any, ...], Pack | PackError]] = {}


def open_pack(root: Path) -> Pack | None:
    """The pack in a folder, None if there is none; raises :class:`PackError` if it is damaged or newer.

    A pack is read and checked once in a process, and again when one of its files has changed.
    """
    try:
        state = tuple(_state(root / name) for name in (MANIFEST, RECORDS, PER_QUERY))
    except PermissionError as error:
        raise PackError(f"{root}: {cannot_be_read(error)}") from error
    if state[0] is None and state[1] is None:
        return None
    place = root.resolve()
    known = _opened.get(place)
    if known is None or known[0] != state:
        status: Pack | PackError
        try:
            status = Pack(root)
        except PackError as error:
            status = error
        known = (state, status)
        _opened[place] = known
        while len(_opened) > 4:
            del _opened[next(iter(_opened))]
    if isinstance(known[1], PackError):
        raise PackError(str(known[1]))
    return known[1]


def is_pack(root: Path) -> bool:
    """Whether a folder holds a pack, be it damaged or of a newer version: by its manifest or its records."""
    import pyarrow as pa
    from pyarrow import parquet

    with contextlib.suppress(OSError, ValueError):
        data = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
        if isinstance(data, dict) and {"schema", "form", "files"} <= data.keys():
            return True
    with contextlib.suppress(OSError, pa.ArrowException):
        return NOTE.encode() in (parquet.read_schema(root / RECORDS).metadata or {})
    return False


def type_name(kind: pa.DataType) -> str:
    """An Arrow type as written in ``columns`` of ``records.parquet``: ``double``, ``string``, ``list of float``."""
    return f"list of {kind.value_type}" if hasattr(kind, "value_type") and str(kind).startswith("list<") else str(kind)


def type_of(name: str) -> pa.DataType:
    """The Arrow type of a :func:`type_name`; raises ``ValueError`` for an unknown one."""
    import pyarrow as pa

    if name.startswith("list of "):
        return pa.list_(type_of(name.removeprefix("list of ")))
    return pa.type_for_alias(name)


def scaled(column: pa.Array) -> pa.Array | None:
    """Numbers (or lists of numbers) as whole numbers of 1e-4, int32, NaN as null; None if one is out of their range."""
    import numpy as np
    import pyarrow as pa

    if pa.types.is_list(column.type):
        inner = scaled(column.values)
        return None if inner is None else pa.ListArray.from_arrays(column.offsets, inner, mask=column.is_null())
    values = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
    missing = np.isnan(values)
    whole = np.rint(np.where(missing, 0.0, values) * SCALE)
    if not (np.abs(whole) < 2**31).all():
        return None
    return pa.array(whole.astype(np.int32), mask=missing)


def unscaled(column: pa.ChunkedArray) -> pa.Array:
    """The numbers that :func:`scaled` rounded, float64."""
    import pyarrow as pa
    from pyarrow import compute

    values_array = pa.concat_arrays(column.chunks) if column.num_chunks else pa.array([], column.type)
    if pa.types.is_list(values_array.type):
        values = compute.divide(values_array.values.cast(pa.float64()), float(SCALE))
        return pa.ListArray.from_arrays(values_array.offsets, values, mask=values_array.is_null())
    return compute.divide(values_array.cast(pa.float64()), float(SCALE))


class _readable:  # noqa: N801 - used as a block
    """A block in which anything wrong with a file's content becomes a :class:`PackError` that names the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, Exception) and not isinstance(error, PackError):
            text = " ".join(str(error).split())
            raise PackError(f"{self.path}: not a pack's table ({type(error).__name__}: {text}): {MEND}") from error


def _table(data: bytes, dictionaries: tuple[str, ...] = ()) -> pa.Table:
    from pyarrow import parquet

    source = io.BytesIO(data)
    names = parquet.read_schema(source).names
    table = parquet.read_table(source, read_dictionary=[name for name in dictionaries if name in names])
    return table.unify_dictionaries().combine_chunks()


def _manifest(path: Path) -> Manifest:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        schema = data.pop("schema")
        if schema > SCHEMA:
            raise PackError(f"{path}: schema {schema} is newer than this version reads ({SCHEMA}): upgrade ucdr-bench")
        manifest = Manifest(**data, schema=schema)
        if manifest.form not in FORMS or not isinstance(manifest.files, dict):
            raise ValueError("no form or no files")
    except PackError:
        raise
    except OSError as error:
        raise PackError(f"{path}: {cannot_be_read(error, MEND)}") from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        text = " ".join(str(error).split())
        raise PackError(f"{path}: not a pack's manifest ({type(error).__name__}: {text}): {MEND}") from error
    return manifest


def _state(path: Path) -> tuple[int, int, int] | None:
    try:
        status = os.stat(path)  # noqa: PTH116 - the same for a path that is a folder or gone
    except PermissionError:
        raise
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino
