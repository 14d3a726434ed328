"""The result store: one JSON record a cell, its per-query values beside it as Parquet; all reports read from it.

::

    RESULTS/cells/<dataset>/<protocol>/<method>-<split>-s<seed>-<key>.json      the record
    RESULTS/cells/<dataset>/<protocol>/<method>-<split>-s<seed>-<key>.parquet   one row a query and gallery
    RESULTS/searches/<dataset>/<method>-<key>.json                              the learning rate that validation picked
    RESULTS/weights/<dataset>/<method>-s<seed>-<key>/                           a fit's weights (:mod:`.weights`)
    RESULTS/cards/methods/<method>.json, RESULTS/cards/datasets/<dataset>.json  cards of what was run
    RESULTS/resolved.json                                                       the last run's settings

``<key>`` is a hash over everything that determines the score (:func:`~benchmarks.store.records.content_key`),
so a record is found by what
it measured: a change of any input gives another key. Files are written to a temporary name, flushed to the disk
and renamed, the per-query file first: a reader never sees half a record, whenever the writer is killed. A record that
cannot be read is reported in one line and is listed among the failures of every report; a run that plans its cell
renames the file to ``*.unreadable`` and measures the cell again.

A folder may also hold a pack (:mod:`benchmarks.store.packed`): many records in few files, for committing. Loose and
packed records are read alike; where both have a cell, the loose record is used.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import io
import itertools
import json
import os
import platform
import re
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.store.packed import LISTS, MANIFEST, Pack, PackError, open_pack
from benchmarks.store.records import (
    FINISHED,
    SCHEMA,
    CellId,
    PerQuery,
    Record,
    RecordError,
    Search,
    Unreadable,
    UnusableHereError,
    cannot_be_read,
    content_key,
    json_value,
    parse_value,
)

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa


def safe_name(name: str, length: int = 48) -> str:
    """A name as one harmless path part: letters, digits, ``._+-``; everything else becomes ``_``."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", name).lstrip(".-")[:length] or "_"


class ResultStore:
    """Reads and writes records under one folder. Several processes may write to it at the same time.

    ``report`` is called with one line for each file that cannot be used.
    """

    #: Whether it writes nothing.
    read_only = False

    def __init__(self, root: Path | str, report: Callable[[str], None] | None = None) -> None:
        self.root = Path(root)
        self._report = report or (lambda line: None)
        self._reported: set[str] = set()

    def check(self) -> None:
        """Raise ``FileNotFoundError`` or ``PermissionError``, in one line, if there is no such folder to read."""
        try:
            with os.scandir(self.root):
                return
        except PermissionError as error:
            raise PermissionError(f"{self.root}: {cannot_be_read(error)}") from error
        except OSError as error:
            text = f"{self.root} is not a results folder; run `python -m benchmarks.run --out {self.root}` first"
            raise FileNotFoundError(text) from error

    def path(self, cell: CellId, key: str) -> Path:
        """The path of a cell's record."""
        folder = self.root / "cells" / safe_name(cell.dataset) / safe_name(cell.protocol)
        return folder / f"{safe_name(cell.method)}-{safe_name(cell.split)}-s{cell.seed}-{key}.json"

    def name(self, cell: CellId, key: str) -> str:
        """:meth:`path` below this folder, with forward slashes: the record's name in a pack."""
        return self.path(cell, key).relative_to(self.root).as_posix()

    def pack(self) -> Pack | None:
        """The pack in this folder, or None; a damaged one is reported once and counts as absent."""
        try:
            return open_pack(self.root)
        except PackError as error:
            self._report_once(_damaged(error))
            return None

    def _report_once(self, line: str) -> None:
        if line not in self._reported:
            self._reported.add(line)
            self._report(line)

    def _is_there(self, path: Path) -> bool:
        """Whether a file exists; a folder that this user may not enter is reported, and its records count as absent."""
        try:
            return path.exists()
        except PermissionError as error:
            folders = [folder for folder in path.parents if folder.is_relative_to(self.root)]
            closed = next((one for one in reversed(folders) if not os.access(one, os.X_OK)), path.parent)
            self._report_once(f"{closed}: {cannot_be_read(error)}; until then its records count as absent")
            return False

    def read(self, cell: CellId, key: str, *, set_aside: bool = True) -> Record | None:
        """The record of a cell, or None; an unreadable one is reported and counts as absent.

        With ``set_aside`` the unreadable file is renamed to ``*.unreadable``, so that a new record can be written.
        """
        path = self.path(cell, key)
        if self._is_there(path):
            try:
                return read_record(path)
            except RecordError as error:
                if set_aside:
                    with contextlib.suppress(OSError):
                        path.replace(path.with_suffix(".json.unreadable"))
                then = "kept as *.unreadable, its cell is measured again" if set_aside else "its cell counts as absent"
                self._report(f"{path}: {error}; {then}")
        return self._packed(self.name(cell, key))

    def _packed(self, name: str) -> Record | None:
        pack = self.pack()
        if pack is None or name not in pack.records:
            return None
        try:
            return Record.from_json(pack.records[name])
        except RecordError as error:
            self._report(f"{pack.root}: the packed record {name!r}: {error}; counts as absent")
            return None

    def finished(self, cell: CellId, key: str, *, set_aside: bool = True) -> Record | None:
        """The record if this cell needs no second run."""
        record = self.read(cell, key, set_aside=set_aside)
        return record if record is not None and record.status in FINISHED else None

    def write(self, record: Record, per_query: pd.DataFrame | None = None) -> Record:
        """Write a record and its per-query values atomically; returns the record as stored."""
        path = self.path(record.cell, record.key)
        side = path.with_suffix(".parquet")
        if per_query is not None:
            data = _parquet(per_query)
            write_atomically(side, data)
            digest = hashlib.sha256(data).hexdigest()
            record = dataclasses.replace(record, per_query=PerQuery(side.name, digest, len(per_query)))
        write_atomically(path, record.to_json().encode())
        if per_query is None:
            side.unlink(missing_ok=True)
        return record

    def write_search(self, dataset: str, method: str, key: str, inputs: Mapping[str, Any], search: Search) -> None:
        """Keep the outcome of a learning-rate search; ``key`` is the content key of ``inputs``."""
        record = {"schema": SCHEMA, "key": key, "inputs": inputs, "search": dataclasses.asdict(search)}
        text = json.dumps(json_value(record), indent=1, ensure_ascii=False) + "\n"
        write_atomically(self._search_path(dataset, method, key), text.encode())

    def read_search(self, dataset: str, method: str, key: str) -> Search | None:
        """A learning-rate search's outcome, or None; an unreadable one is reported and counts as absent."""
        path = self._search_path(dataset, method, key)
        pack = self.pack()
        there = self._is_there(path)
        packed = pack.searches.get(path.relative_to(self.root).as_posix()) if pack and not there else None
        if packed is None and not there:
            return None
        try:
            record = json.loads(path.read_text(encoding="utf-8") if packed is None else packed)
            if not isinstance(record, dict) or content_key(record["inputs"]) != key:
                raise RecordError("the key is not the hash of the inputs")
            search: Search = parse_value(Search, record["search"], "search")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            why = cannot_be_read(error) if isinstance(error, OSError) else error
            self._report(f"{path}: {why}; counts as absent")
            return None
        return search

    def _search_path(self, dataset: str, method: str, key: str) -> Path:
        return self.root / "searches" / safe_name(dataset) / f"{safe_name(method)}-{key}.json"

    def searches(self) -> Iterator[tuple[str, str]]:
        """Path below this folder and JSON text of every search, loose or packed, in a fixed order."""
        pack = self.pack()
        searches = dict(pack.searches) if pack else {}
        for path in files_below(self.root / "searches", ".json", self._report_closed):
            try:
                searches[path.relative_to(self.root).as_posix()] = path.read_text(encoding="utf-8")
            except OSError as error:
                self._report(f"{path}: {cannot_be_read(error)}; skipped")
            except UnicodeDecodeError as error:
                self._report(f"{path}: cannot be read ({error}); skipped")
        yield from sorted(searches.items())

    def discard(self, cell: CellId, key: str) -> None:
        """Remove the record of a cell that no longer exists, if there is one; packs are never changed."""
        for suffix in (".json", ".parquet"):
            self.path(cell, key).with_suffix(suffix).unlink(missing_ok=True)

    def write_card(self, kind: str, name: str, card: Mapping[str, Any]) -> None:
        """Keep a method's or data set's card with the records."""
        text = json.dumps(json_value(card), indent=1, ensure_ascii=False) + "\n"
        write_atomically(self.root / "cards" / safe_name(kind) / f"{safe_name(name)}.json", text.encode())

    def write_resolved(self, settings: Mapping[str, Any]) -> None:
        """Keep the settings of this run as ``resolved.json``."""
        write_atomically(self.root / "resolved.json", (json.dumps(json_value(settings), indent=1) + "\n").encode())

    def clean(self) -> int:
        """Remove temporary files and folders whose writer was killed; returns how many there were.

        Files of a running process of this machine stay, and those of another machine that are less than an hour old.
        """
        removed = 0
        for path in [path for path in self.root.rglob(".*.tmp") if _WRITER.search(path.name)]:
            with contextlib.suppress(OSError):
                if _writer_ended(path):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
                    removed += 1
        return removed

    def paths(self) -> list[Path]:
        """Files of all loose records, in a fixed order; a folder that cannot be read is reported."""
        return files_below(self.root / "cells", ".json", self._report_closed)

    def _report_closed(self, error: OSError) -> None:
        self._report_once(_closed(error))

    def records(self) -> Iterator[Record]:
        """All valid records in a fixed order; others are reported and skipped, and not moved."""
        for entry in self.entries():
            if isinstance(entry, Record):
                yield entry
            else:
                self._report_once(entry.reason)

    def entries(self) -> Iterator[Record | Unreadable]:
        """All records in a fixed order, with an :class:`Unreadable` for each that cannot be read."""
        try:
            pack = open_pack(self.root)
        except PackError as error:
            pack = None
            yield Unreadable(MANIFEST, _damaged(error))
        closed: list[OSError] = []
        found = files_below(self.root / "cells", ".json", closed.append)
        for one in closed:
            yield Unreadable(Path(one.filename).relative_to(self.root).as_posix(), _closed(one))
        loose = {path.relative_to(self.root).as_posix(): path for path in found}
        for name in sorted({*loose, *(pack.records if pack else ())}, key=lambda name: name.split("/")):
            problem, fix = "", "; run its command again, or delete the file"
            if name in loose:
                try:
                    yield read_record(loose[name])
                    continue
                except UnusableHereError as error:
                    problem, fix = f"{loose[name]}: {error}", ""
                except RecordError as error:
                    problem = f"{loose[name]}: {error}"
            packed = self._packed(name)
            if packed is None:
                problem = problem or f"{self.root}: the packed record {name!r} cannot be read"
                yield Unreadable(name, problem + fix)
            else:
                if problem:
                    self._report(f"{problem}; its packed copy is used")
                yield packed

    def per_query(self, record: Record) -> pd.DataFrame:
        """The per-query values of a record; raises :class:`RecordError` if they are missing or altered.

        Those of a lean pack are fewer and rounded (:mod:`benchmarks.store.packed`).
        """
        frame: pd.DataFrame = self.per_query_table(record).to_pandas()
        return frame

    def per_query_table(self, record: Record, *, lists: bool = True) -> pa.Table:
        """:meth:`per_query` as an Arrow table; without ``lists`` the best images and their scores are not read."""

        import pyarrow as pa
        from pyarrow import parquet

        if record.per_query is None:
            raise RecordError(f"the record of {record.cell.method} ({record.status}) has no per-query values")
        path = self.path(record.cell, record.key)
        try:
            data = _side_file(path.with_name(record.per_query.file), record.per_query)
        except RecordError:
            name, pack = self.name(record.cell, record.key), self.pack()
            if pack is None or record.per_query.sha256 not in pack.records.get(name, ""):
                raise
            try:
                packed = pack.per_query(name, lists=lists)
            except PackError as error:
                raise RecordError(str(error)) from error
            if packed is None:
                raise
            return packed
        file = parquet.ParquetFile(pa.BufferReader(data))
        names = file.schema_arrow.names
        chosen = None if lists else [name for name in names if not name.startswith(LISTS)]
        return file.read(chosen, use_threads=False)  # a few thousand rows: threads cost more than they save


def _damaged(error: PackError) -> str:
    return f"{error}; until then its records count as absent"


def _closed(error: OSError) -> str:
    return f"{error.filename}: {cannot_be_read(error)}; until then its records count as absent"


def files_below(folder: Path, ending: str, failed: Callable[[OSError], None]) -> list[Path]:
    """What is below a folder with names that end so and do not begin with a dot, in a fixed order.

    ``failed`` gets the error of each folder that cannot be read: ``Path.rglob`` leaves it out without a word.
    """

    def tell(error: OSError) -> None:
        if not isinstance(error, FileNotFoundError):
            failed(error)

    found: list[Path] = []
    for root, folders, files in os.walk(folder, onerror=tell):
        found += [Path(root, one) for one in (*folders, *files) if one.endswith(ending) and not one.startswith(".")]
    return sorted(found)


def is_file(path: Path) -> bool:
    """Whether there is such a file, as far as this user may know."""
    with contextlib.suppress(OSError):
        return path.is_file()
    return False


def read_record(path: Path) -> Record:
    """Read and validate one record and check its side file; raises :class:`RecordError`."""
    try:
        record = Record.from_json(path.read_text(encoding="utf-8"))
    except PermissionError as error:
        raise UnusableHereError(cannot_be_read(error)) from error
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"cannot be read ({error})") from error
    if record.per_query is not None:
        _side_file(path.with_name(record.per_query.file), record.per_query)
    return record


def _side_file(path: Path, expected: PerQuery) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        kind = UnusableHereError if isinstance(error, PermissionError) else RecordError
        raise kind(f"its per-query file {path.name} {cannot_be_read(error)}") from error
    if hashlib.sha256(data).hexdigest() != expected.sha256:
        raise RecordError(f"its per-query file {path.name} was altered or cut")
    return data


def write_atomically(path: Path, data: bytes) -> None:
    """Write a whole file or nothing: temporary file in the same folder, flushed to the disk, renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_name(path)
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not every system can flush a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def temporary_name(path: Path) -> Path:
    """A new name beside ``path``, which :meth:`ResultStore.clean` removes if this process ends before it does."""
    return path.with_name(f".{path.name}.{_machine()}-{os.getpid()}-{next(_writes)}.tmp")


def is_temporary(name: str) -> bool:
    """Whether a file or folder has a name that :func:`temporary_name` gives."""
    return name.startswith(".") and _WRITER.search(name) is not None


_writes = itertools.count()
_WRITER = re.compile(r"\.([0-9a-f]{8})-(\d+)-\d+\.tmp$")


@functools.cache
def _machine() -> str:
    """Eight digits that identify this machine among those writing to the same folder, without its name."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def _writer_ended(path: Path) -> bool:
    """Whether the process that wrote a temporary file has ended."""
    import psutil

    match = _WRITER.search(path.name)
    assert match is not None
    written = path.stat().st_mtime
    if match[1] != _machine():
        return time.time() - written > 3600
    try:
        return bool(psutil.Process(int(match[2])).create_time() > written + 1)  # a later process has the same id
    except psutil.NoSuchProcess:
        return True


def _parquet(frame: pd.DataFrame) -> bytes:

    import pyarrow as pa
    from pyarrow import parquet

    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    place = table.schema.get_field_index("top_scores")
    if place >= 0:  # only displayed beside images: four bytes are enough
        scores = table.column(place).cast(pa.list_(pa.float32()))
        table = table.set_column(place, "top_scores", scores)
    buffer = io.BytesIO()
    parquet.write_table(table, buffer, compression="zstd", compression_level=9, write_statistics=False)
    return buffer.getvalue()
