"""The store: one JSON record a cell, its per-query values beside it as Parquet; everything reported is read from here.

::

    RESULTS/cells/<dataset>/<protocol>/<method>-<split>-s<seed>-<key>.json      the record
    RESULTS/cells/<dataset>/<protocol>/<method>-<split>-s<seed>-<key>.parquet   one row a query and gallery
    RESULTS/searches/<dataset>/<method>-<key>.json                              which learning rate validation picked
    RESULTS/cards/methods/<method>.json, RESULTS/cards/datasets/<dataset>.json  cards of what was run
    RESULTS/resolved.json                                                       the last run's settings

``<key>`` is a hash over everything that determines the score (:func:`content_key`), so a record is looked up by what
it measured: change one input and the cell is another cell. Files are written to a temporary name, flushed to the disk
and renamed, the per-query file first: a reader never sees half a record, whenever the writer is killed. A record that
cannot be read is reported in one line and stands among the failures of every report; a run that plans its cell keeps
the file aside as ``*.unreadable`` and measures the cell again.

A folder may also hold a pack (:mod:`benchmarks.store.packed`): many records in few files, for committing. Loose and
packed records are read alike; where both have a cell, the loose record counts.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import itertools
import json
import math
import os
import platform
import re
import time
import types
import typing
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Literal

from benchmarks.store.packed import MANIFEST, Pack, PackError, open_pack

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

SCHEMA = 1

#: Version of the scoring code (ranking, metrics): raise it when a change of that code changes scores.
SCORING = 1

Status = Literal["ok", "failed", "skipped", "not_applicable"]
STATUSES: tuple[str, ...] = typing.get_args(Status)

#: A cell with one of these needs no second run.
FINISHED = ("ok", "not_applicable")


class RecordError(ValueError):
    """A file that is not a valid record; one line that names the place."""


@dataclass(frozen=True)
class CellId:
    """Which cell of the sweep a record is, in words; ``ablation`` names the switched factor of an ablation's row."""

    method: str
    variant: str
    config: dict[str, Any]
    backbone: str
    dataset: str
    protocol: str
    rules: str
    split: str
    select: str
    seed: int
    limit: int | None = None
    ablation: str = ""


@dataclass(frozen=True)
class GalleryScores:
    """Scores of one question: a gallery searched, or class names chosen from.

    ``metrics`` are fractions in [0, 1] by name; the name says the convention. For a classification ``n_queries`` are
    the images, ``gallery_size`` the classes, and ``similarity`` is ``logits``.
    """

    metrics: dict[str, float]
    n_queries: int
    gallery_size: int
    similarity: str
    n_without_relevant: int = 0
    without_relevant: str = ""


@dataclass(frozen=True)
class Fit:
    """What training did; ``fit_id`` names the training data, so cells that share a fitted model share it.

    ``trials``: where a learning rate was picked from a grid, each rate with its validation score (None if that training
    failed, with the ``reason``) and seconds; ``learning_rate`` is the one picked, or set by the preset.
    """

    fit_id: str = ""
    steps: int = 0
    selected_step: int = 0
    losses: list[dict[str, Any]] = field(default_factory=list)
    validation: list[dict[str, Any]] = field(default_factory=list)
    trials: list[dict[str, Any]] = field(default_factory=list)
    learning_rate: float | None = None


@dataclass(frozen=True)
class Search:
    """A learning rate picked from a grid: ``trials`` as in :class:`Fit`; None where nothing was picked."""

    trials: list[dict[str, Any]] = field(default_factory=list)
    learning_rate: float | None = None


@dataclass(frozen=True)
class Cost:
    """What a cell cost.

    ``seconds`` by phase: ``fit`` (once for all cells of a fitted model, and the same number in each of their records),
    ``search`` (training with every learning rate of the grid, once for all seeds; with the search's seed the kept fit
    is one of them), ``encode`` (images first needed by this cell), ``rank`` and ``classify``.
    ``peak_memory_mib``: resident memory of the process at its highest in these phases. ``pictures_per_second``:
    encoding or classifying with this fitted model, decoding excluded; None if nothing had to be.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    peak_memory_mib: float | None = None
    peak_gpu_memory_mib: float | None = None
    pictures_per_second: float | None = None
    trainable_parameters: int | None = None
    total_parameters: int | None = None


@dataclass(frozen=True)
class Environment:
    """Where a cell ran: package versions, the code's git commit, hardware (no host name), device and threads.

    ``tf32``: whether a GPU may round the factors of float32 products and convolutions to TF32; None in records
    written before this was recorded.
    """

    packages: dict[str, str] = field(default_factory=dict)
    git: dict[str, Any] = field(default_factory=dict)
    hardware: dict[str, Any] = field(default_factory=dict)
    device: str = ""
    threads: int = 0
    tf32: bool | None = None


@dataclass(frozen=True)
class PerQuery:
    """The side file: its name beside the record, its sha256 and its number of rows."""

    file: str
    sha256: str
    rows: int


@dataclass(frozen=True)
class Record:
    """One cell's record.

    ``inputs`` is what ``key`` hashes. ``method`` and ``dataset`` hold what tables need of the cards: title, ``floor``
    and, by question, the ``extensions`` beyond the paper (method); title, version and gallery domain (dataset).
    ``galleries`` are the task's questions, scored or not, each with the metrics that lead its tables; ``scores`` has
    one entry each where ``status`` is ``ok``.
    """

    key: str
    status: Status
    cell: CellId
    inputs: dict[str, Any]
    method: dict[str, Any]
    dataset: dict[str, Any]
    galleries: dict[str, list[str]]
    scores: dict[str, GalleryScores] = field(default_factory=dict)
    fit: Fit = field(default_factory=Fit)
    cost: Cost = field(default_factory=Cost)
    environment: Environment = field(default_factory=Environment)
    notes: list[str] = field(default_factory=list)
    reason: str = ""
    traceback: str = ""
    per_query: PerQuery | None = None
    created: str = ""
    schema: int = SCHEMA

    def to_json(self) -> str:
        """Indented JSON; values that JSON cannot hold (NaN in a loss curve) become null."""
        return json.dumps(_plain(dataclasses.asdict(self)), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Record:
        """Parse and validate; raises :class:`RecordError` that names the first thing wrong."""
        try:
            data = json.loads(text)
        except ValueError as error:
            raise RecordError(f"not JSON ({error})") from error
        if not isinstance(data, dict) or not isinstance(data.get("schema"), int):
            raise RecordError("not a record (no schema number)")
        if data["schema"] > SCHEMA:
            raise RecordError(
                f"schema {data['schema']} is newer than this version reads ({SCHEMA}); upgrade ucdr-bench"
            )
        record: Record = _typed(cls, data, "record")
        if record.key != content_key(record.inputs):
            raise RecordError("the key does not belong to the inputs")
        if record.status == "ok":
            if set(record.scores) != set(record.galleries):
                raise RecordError("status is ok, but not every gallery has scores")
            for gallery, scores in record.scores.items():
                if not scores.metrics or not all(math.isfinite(value) for value in scores.metrics.values()):
                    raise RecordError(f"status is ok, but the scores of gallery {gallery!r} are not all numbers")
        return record


@dataclass(frozen=True)
class Unreadable:
    """What stands in a record's place: its name below the folder, and one line that names file and mend."""

    name: str
    reason: str


def content_key(inputs: Mapping[str, Any]) -> str:
    """32 hexadecimal digits that name these inputs."""
    text = json.dumps(_plain(inputs), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def backbone_identity(backbone: Mapping[str, Any]) -> str:
    """32 hexadecimal digits for a backbone's config, tokenizer and image processor, as a record's inputs state them.

    Empty for a record that does not state config and tokenizer (records of older versions).
    """
    parts = {name: backbone.get(name) for name in ("config_hash", "tokenizer_hash", "preprocessing")}
    return content_key(parts) if parts["config_hash"] else ""


def safe_name(name: str, length: int = 48) -> str:
    """A name as one harmless path part: letters, digits, ``._+-``; everything else becomes ``_``."""
    return re.sub(r"[^A-Za-z0-9._+-]+", "_", name).lstrip(".-")[:length] or "_"


class ResultStore:
    """Reads and writes records under one folder. Several processes may write to it at the same time.

    ``report`` is called with one line for each file that cannot be used.
    """

    def __init__(self, root: Path | str, report: Callable[[str], None] | None = None) -> None:
        self.root = Path(root)
        self._report = report or (lambda line: None)
        self._reported = ""

    def path(self, cell: CellId, key: str) -> Path:
        """Where the record of a cell lies."""
        folder = self.root / "cells" / safe_name(cell.dataset) / safe_name(cell.protocol)
        return folder / f"{safe_name(cell.method)}-{safe_name(cell.split)}-s{cell.seed}-{key}.json"

    def name(self, cell: CellId, key: str) -> str:
        """:meth:`path` below this folder, with forward slashes: what a pack calls the record."""
        return self.path(cell, key).relative_to(self.root).as_posix()

    def pack(self) -> Pack | None:
        """The pack in this folder, or None; a damaged one is reported once and counts as absent."""
        try:
            return open_pack(self.root)
        except PackError as error:
            self._report_once(_damaged(error))
            return None

    def _report_once(self, line: str) -> None:
        if line != self._reported:
            self._reported = line
            self._report(line)

    def read(self, cell: CellId, key: str, *, set_aside: bool = True) -> Record | None:
        """The record of a cell, or None; an unreadable one is reported and counts as absent.

        With ``set_aside`` the unreadable file is renamed to ``*.unreadable``, so that its place is free.
        """
        path = self.path(cell, key)
        if path.exists():
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
        text = json.dumps(_plain(record), indent=1, ensure_ascii=False) + "\n"
        write_atomically(self._search_path(dataset, method, key), text.encode())

    def read_search(self, dataset: str, method: str, key: str) -> Search | None:
        """A learning-rate search's outcome, or None; an unreadable one is reported and counts as absent."""
        path = self._search_path(dataset, method, key)
        pack = self.pack()
        packed = pack.searches.get(path.relative_to(self.root).as_posix()) if pack and not path.exists() else None
        try:
            record = json.loads(path.read_text(encoding="utf-8") if packed is None else packed)
            if not isinstance(record, dict) or content_key(record["inputs"]) != key:
                raise RecordError("the key does not belong to the inputs")
            search: Search = _typed(Search, record["search"], "search")
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._report(f"{path}: {error}; counts as absent")
            return None
        return search

    def _search_path(self, dataset: str, method: str, key: str) -> Path:
        return self.root / "searches" / safe_name(dataset) / f"{safe_name(method)}-{key}.json"

    def searches(self) -> Iterator[tuple[str, str]]:
        """Path below this folder and JSON text of every search, loose or packed, in a fixed order."""
        pack = self.pack()
        found = dict(pack.searches) if pack else {}
        for path in (self.root / "searches").rglob("*.json"):
            if not path.name.startswith("."):
                try:
                    found[path.relative_to(self.root).as_posix()] = path.read_text(encoding="utf-8")
                except (OSError, UnicodeDecodeError) as error:
                    self._report(f"{path}: cannot be read ({error}); skipped")
        yield from sorted(found.items())

    def discard(self, cell: CellId, key: str) -> None:
        """Remove the record of a cell that no longer exists, if there is one; packs are never changed."""
        for suffix in (".json", ".parquet"):
            self.path(cell, key).with_suffix(suffix).unlink(missing_ok=True)

    def write_card(self, kind: str, name: str, card: Mapping[str, Any]) -> None:
        """Keep a method's or data set's card with the records."""
        text = json.dumps(_plain(card), indent=1, ensure_ascii=False) + "\n"
        write_atomically(self.root / "cards" / safe_name(kind) / f"{safe_name(name)}.json", text.encode())

    def write_resolved(self, settings: Mapping[str, Any]) -> None:
        """Keep the settings of this run as ``resolved.json``."""
        write_atomically(self.root / "resolved.json", (json.dumps(_plain(settings), indent=1) + "\n").encode())

    def clean(self) -> int:
        """Remove temporary files whose writer was killed; returns how many there were.

        Those of a living process of this machine stay, and those of another machine that are not an hour old.
        """
        removed = 0
        for path in [path for path in self.root.rglob(".*.tmp") if _WRITER.search(path.name)]:
            with contextlib.suppress(OSError):
                if _left_behind(path):
                    path.unlink()
                    removed += 1
        return removed

    def paths(self) -> list[Path]:
        """Files of all loose records, in a fixed order."""
        return sorted(path for path in (self.root / "cells").rglob("*.json") if not path.name.startswith("."))

    def records(self) -> Iterator[Record]:
        """All valid records in a fixed order; others are reported and skipped, and stay where they are."""
        for entry in self.entries():
            if isinstance(entry, Record):
                yield entry
            else:
                self._report_once(entry.reason)

    def entries(self) -> Iterator[Record | Unreadable]:
        """All records in a fixed order, and what cannot be read in its record's place."""
        try:
            pack = open_pack(self.root)
        except PackError as error:
            pack = None
            yield Unreadable(MANIFEST, _damaged(error))
        loose = {path.relative_to(self.root).as_posix(): path for path in self.paths()}
        for name in sorted({*loose, *(pack.records if pack else ())}, key=lambda name: PurePosixPath(name).parts):
            problem = ""
            if name in loose:
                try:
                    yield read_record(loose[name])
                    continue
                except RecordError as error:
                    problem = f"{loose[name]}: {error}"
            packed = self._packed(name)
            if packed is None:
                problem = problem or f"{self.root}: the packed record {name!r} cannot be read"
                yield Unreadable(name, f"{problem}; run the command of its sweep again, or delete the file")
            else:
                if problem:
                    self._report(f"{problem}; its packed copy counts")
                yield packed

    def per_query(self, record: Record) -> pd.DataFrame:
        """The per-query values of a record; raises :class:`RecordError` if they are missing or altered.

        Those of a lean pack are fewer and rounded (:mod:`benchmarks.store.packed`).
        """
        frame: pd.DataFrame = self.per_query_table(record).to_pandas()
        return frame

    def per_query_table(self, record: Record) -> pa.Table:
        """:meth:`per_query` as an Arrow table."""
        import io

        from pyarrow import parquet

        if record.per_query is None:
            raise RecordError(f"the record of {record.cell.method} ({record.status}) has no per-query values")
        path = self.path(record.cell, record.key)
        try:
            data = _side_file(path.with_name(record.per_query.file), record.per_query)
        except RecordError:
            name, pack = self.name(record.cell, record.key), self.pack()
            if pack is None or self._packed(name) != record:
                raise
            try:
                packed = pack.per_query(name)
            except PackError as error:
                raise RecordError(f"{error}; pack again or delete the pack") from error
            if packed is None:
                raise
            return packed
        return parquet.read_table(io.BytesIO(data))


def _damaged(error: PackError) -> str:
    return f"{error}; all records of this pack count as absent: pack again or delete the pack"


def read_record(path: Path) -> Record:
    """Read and validate one record and check its side file; raises :class:`RecordError`."""
    try:
        record = Record.from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(f"cannot be read ({error})") from error
    if record.per_query is not None:
        _side_file(path.with_name(record.per_query.file), record.per_query)
    return record


def _side_file(path: Path, expected: PerQuery) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise RecordError(f"its per-query file {path.name} cannot be read ({error.strerror or error})") from error
    if hashlib.sha256(data).hexdigest() != expected.sha256:
        raise RecordError(f"its per-query file {path.name} was altered or cut")
    return data


#: What a frame without a single record has beside the cell's columns, so that readers find them empty, not missing.
_MORE_COLUMNS = (
    *("gallery", "metric", "value", "status", "reason", "title", "floor", "headline", "notes", "key", "fit_id"),
    *("dataset_version", "gallery_domain", "data_hash", "weights_hash", "identity", "precision", "scoring", "created"),
)

_FILE = re.compile(r"(?P<method>[^-]+)-(?P<split>.+)-s(?P<seed>\d+)-(?P<key>[0-9a-f]{32})\.json")


def load_results(path: Path | str, report: Callable[[str], None] | None = None) -> pd.DataFrame:
    """All records under a results folder as a frame: one row a cell, gallery and metric.

    Cells without scores (failed, skipped, not applicable) have one row a gallery with ``metric`` None and ``value``
    NaN; ``status`` and ``reason`` say why. Columns: the cell (``method``, ``variant``, ``config`` as JSON,
    ``backbone``, ``dataset``, ``protocol``, ``rules``, ``split``, ``select``, ``seed``, ``limit``), ``gallery``,
    ``metric``, ``value`` (a fraction), ``status``, ``reason``, counts, cost, ``floor``, ``extension`` (what the
    method's paper does not define, empty where it does), ``headline``, ``notes`` (a tuple), hashes, ``key``,
    ``created``.

    A record that cannot be read is a failed row that knows no more than the file's name says (no ``data_hash``);
    ``report`` gets one line for each (default: a warning). Raises ``FileNotFoundError`` if there is no such folder.
    """
    import warnings

    import pandas as pd

    root = Path(path)
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a results folder; run `python -m benchmarks.run --out {root}` first")
    tell = report or (lambda line: warnings.warn(line, stacklevel=2))
    rows: list[dict[str, Any]] = []
    for record in ResultStore(root, tell).entries():
        if isinstance(record, Unreadable):
            tell(record.reason)
            rows.append(_unreadable_row(record))
            continue
        common = {
            **{f.name: getattr(record.cell, f.name) for f in dataclasses.fields(CellId) if f.name != "config"},
            "config": json.dumps(record.cell.config, sort_keys=True),
            "status": record.status,
            "reason": record.reason,
            "title": record.method.get("title", ""),
            "floor": bool(record.method.get("floor", False)),
            "dataset_version": record.dataset.get("version", ""),
            "gallery_domain": record.dataset.get("gallery_domain", ""),
            "data_hash": record.inputs.get("dataset", {}).get("data_hash", ""),
            "weights_hash": record.inputs.get("backbone", {}).get("weights_hash", ""),
            "identity": backbone_identity(record.inputs.get("backbone", {})),
            "precision": record.inputs.get("backbone", {}).get("precision", ""),
            "scoring": record.inputs.get("scoring", 0),
            "fit_id": record.fit.fit_id,
            **{
                f"{phase}_seconds": record.cost.seconds.get(phase)
                for phase in ("fit", "search", "encode", "rank", "classify")
            },
            "peak_memory_mib": record.cost.peak_memory_mib,
            "pictures_per_second": record.cost.pictures_per_second,
            "trainable_parameters": record.cost.trainable_parameters,
            "total_parameters": record.cost.total_parameters,
            "notes": tuple(record.notes),
            "key": record.key,
            "created": record.created,
        }
        for gallery, headline in record.galleries.items():
            scores = record.scores.get(gallery)
            extension = record.method.get("extensions", {}).get(gallery, "")
            common |= {"gallery": gallery, "headline": tuple(headline), "extension": extension}
            if scores is None:
                rows.append({**common, "metric": None, "value": math.nan})
                continue
            counts = {name: getattr(scores, name) for name in ("n_queries", "n_without_relevant", "gallery_size")}
            for metric, value in scores.metrics.items():
                rows.append({**common, **counts, "metric": metric, "value": value})
    columns = [f.name for f in dataclasses.fields(CellId)]
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=[*columns, *_MORE_COLUMNS])


def _unreadable_row(entry: Unreadable) -> dict[str, Any]:
    """A failed row of :func:`load_results`: what a file's name says of its cell, and why it has no score."""
    parts = PurePosixPath(entry.name).parts
    found = _FILE.fullmatch(parts[-1])
    cell = CellId(
        method=found["method"] if found else "*", variant="", config={}, backbone="", rules="", select="",
        dataset=parts[1] if len(parts) == 4 else "*", protocol=parts[2] if len(parts) == 4 else "*",
        split=found["split"] if found else "*", seed=int(found["seed"]) if found else 0,
    )  # fmt: skip
    about = {name: value for name, value in vars(cell).items() if name != "config"}
    names = ("title", "fit_id", "dataset_version", "gallery_domain", "data_hash", "weights_hash", "identity")
    empty = dict.fromkeys(names, "")
    return about | empty | {
        "config": "{}", "status": "failed", "reason": entry.reason, "floor": False, "precision": "", "scoring": 0,
        "key": found["key"] if found else entry.name, "created": "", "gallery": "*", "headline": (), "extension": "",
        "notes": (), "metric": None, "value": math.nan,
    }  # fmt: skip


def write_atomically(path: Path, data: bytes) -> None:
    """Write a whole file or nothing: temporary file in the same folder, flushed to the disk, renamed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{_machine()}-{os.getpid()}-{next(_writes)}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # not every system lets one flush a folder
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


_writes = itertools.count()
_WRITER = re.compile(r"\.([0-9a-f]{8})-(\d+)-\d+\.tmp$")


@functools.cache
def _machine() -> str:
    """Eight digits that tell this machine from others writing to the same folder; its name stays private."""
    return hashlib.sha256(platform.node().encode()).hexdigest()[:8]


def _left_behind(path: Path) -> bool:
    """Whether a temporary file's writer is gone."""
    import psutil

    found = _WRITER.search(path.name)
    assert found is not None
    written = path.stat().st_mtime
    if found[1] != _machine():
        return time.time() - written > 3600
    try:
        return bool(psutil.Process(int(found[2])).create_time() > written + 1)  # a later process has its number
    except psutil.NoSuchProcess:
        return True


def _parquet(frame: pd.DataFrame) -> bytes:
    import io

    import pyarrow as pa
    from pyarrow import parquet

    table = pa.Table.from_pandas(frame, preserve_index=False).replace_schema_metadata(None)
    place = table.schema.get_field_index("top_scores")
    if place >= 0:  # these serve images: four bytes are enough
        scores = table.column(place).cast(pa.list_(pa.float32()))
        table = table.set_column(place, "top_scores", scores)
    buffer = io.BytesIO()
    parquet.write_table(table, buffer, compression="zstd", compression_level=9, write_statistics=False)
    return buffer.getvalue()


def _plain(value: Any) -> Any:
    """JSON-able copy: tuples become lists, numpy scalars numbers, non-finite numbers null, other objects text."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if hasattr(value, "item") and not isinstance(value, str | bytes) and getattr(value, "ndim", 0) == 0:
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int | bool) else str(value)


@functools.cache
def _type_hints(kind: Hashable) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _typed(kind: Any, value: Any, where: str) -> Any:
    """``value`` as ``kind`` (a dataclass, a builtin, a Literal, a union or a container of these), checked."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if dataclasses.is_dataclass(kind):
        if not isinstance(value, dict):
            raise RecordError(f"{where} must be an object")
        types_of = _type_hints(typing.cast(Hashable, kind))
        made = {}
        for one in dataclasses.fields(kind):
            if one.name in value:
                made[one.name] = _typed(types_of[one.name], value[one.name], f"{where}.{one.name}")
            elif one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING:
                raise RecordError(f"{where}.{one.name} is missing")
        return kind(**made)  # type: ignore[operator]
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _typed(next(one for one in arguments if one is not type(None)), value, where)
    if origin is Literal:
        if value not in arguments:
            raise RecordError(f"{where} is {value!r}, not one of {', '.join(arguments)}")
        return value
    if origin is dict and isinstance(value, dict):
        if arguments[1] is Any:
            return value
        return {key: _typed(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin is list and isinstance(value, list):
        return [_typed(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
    if kind is Any:
        return value
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    plain = origin or kind
    if not isinstance(value, plain) or (plain is int and isinstance(value, bool)):
        raise RecordError(f"{where} must be {plain.__name__}, not {type(value).__name__}")
    return value
