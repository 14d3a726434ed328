"""All records under a results folder as one pandas frame (:func:`load_results`)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import marshal
import math
import re
import warnings
from array import array
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from benchmarks.store.files import ResultStore
from benchmarks.store.records import CellId, Environment, Fit, Record, Unreadable, backbone_identity
from benchmarks.store.weights import WeightStore

if TYPE_CHECKING:
    import pandas as pd

#: Columns of a frame without records, beside the cell's, so that readers find empty columns, not missing ones.
_MORE_COLUMNS = (
    *(
        "gallery",
        "metric",
        "value",
        "status",
        "reason",
        "title",
        "floor",
        "headline",
        "notes",
        "key",
        "fit_id",
        "weights",
        "learning_rate",
        "edge",
        "convergence",
    ),
    *("dataset_version", "gallery_domain", "data_hash", "weights_hash", "identity", "precision", "scoring", "created"),
)

_FILE = re.compile(r"(?P<method>[^-]+)-(?P<split>.+)-s(?P<seed>\d+)-(?P<key>[0-9a-f]{32})\.json")


def load_results(path: Path | str, report: Callable[[str], None] | None = None) -> pd.DataFrame:
    """All records under a results folder as a frame: one row a cell, gallery and metric.

    Cells without scores (failed, skipped, not applicable) have one row a gallery with ``metric`` None and ``value``
    NaN; ``status`` and ``reason`` give the cause. Columns: the cell (``method``, ``variant``, ``config`` as JSON,
    ``backbone``, ``dataset``, ``protocol``, ``rules``, ``split``, ``select``, ``seed``, ``limit``), ``gallery``,
    ``metric``, ``value`` (a fraction), ``status``, ``reason``, counts, cost, ``floor``, ``extension`` (what the
    method's paper does not define, else empty), ``headline``, ``notes`` (a tuple), hashes, ``key``, ``weights`` (the
    folder of its fit's weights below this one, else empty), ``created``; of the fit
    ``learning_rate`` (None: the config's), ``edge`` and ``convergence`` (:class:`benchmarks.store.records.Fit`).

    A record that cannot be read is a failed row with only what its file name contains (no ``data_hash``);
    ``report`` gets one line for each (default: a warning). Raises ``FileNotFoundError`` if there is no such folder,
    ``PermissionError`` if it cannot be read.
    """
    return frame_and_records(path, report or (lambda line: warnings.warn(line, stacklevel=2)))[0]


def frame_and_records(
    path: Path | str, report: Callable[[str], None], *, compact: bool = False
) -> tuple[pd.DataFrame, dict[str, Record]]:
    """:func:`load_results` and the records behind it by key, in the order of the store; each is read once.

    With ``compact``, for reports of many records, texts of the frame are Python objects that its rows share, as in
    pandas before version 3, and what records have alike is held once.
    """
    root = Path(path)
    store = ResultStore(root, report)
    store.check()
    weights, shared = WeightStore(root), Shared()
    records: dict[str, Record] = {}
    rows = _Rows(compact)
    for entry in store.entries():
        if isinstance(entry, Unreadable):
            report(entry.reason)
            rows.add_unreadable(_unreadable_row(entry))
            continue
        record = records[entry.key] = shared.record(entry) if compact else entry
        rows.add(record, weights.of_record(record))
    return rows.frame(), records


class Shared:
    """What records have alike, held once: a store's records repeat inputs, titles, environments and the curves of a fit
    that several cells share."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._values: dict[bytes, Any] = {}

    def record(self, record: Record) -> Record:
        """An equal record; its texts, lists and mappings are those of earlier records where they are equal."""
        own = {"cell": record.inputs["cell"]} if "cell" in record.inputs else {}
        common = {name: value for name, value in record.inputs.items() if name != "cell"}
        inputs = {name: own[name] if name in own else self.value(common[name]) for name in record.inputs}
        return self._fields(record, inputs=inputs, key=record.key, created=record.created, scores=record.scores)

    def value(self, value: Any) -> Any:
        """An equal text, list or mapping, in the same order; anything else as it is."""
        if isinstance(value, str):
            return self._texts.setdefault(value, value)
        if not isinstance(value, list | dict):
            return value
        digest = hashlib.blake2b(marshal.dumps(value, 2), digest_size=16).digest()  # only to tell values apart
        return self._values.setdefault(digest, value)

    def _fields(self, part: Any, **changes: Any) -> Any:
        """A dataclass with its fields held once, but for ``changes``."""
        shared = {
            name: self._fields(value) if isinstance(value, CellId | Fit | Environment) else self.value(value)
            for name, value in vars(part).items()
            if name not in changes
        }
        return type(part)(**shared, **changes)


class _Rows:
    """The rows of a frame, held by record, gallery and metric, so that a row costs two numbers until the end.

    The columns, their order and their types are those of ``pandas.DataFrame`` of one dictionary a row.
    """

    def __init__(self, compact: bool) -> None:
        self._compact = compact
        self._records: list[dict[str, Any]] = []
        self._galleries: list[dict[str, Any]] = []
        self._record_of: list[int] = []  # by gallery
        self._gallery_of = array("q")  # by row
        self._metrics: list[str | None] = []
        self._values = array("d")
        self._columns: dict[str, None] = {}

    def add(self, record: Record, weights: str) -> None:
        """The rows of a record: one a metric of each gallery, or one for a gallery without scores."""
        common = _about(record) | {"weights": weights, "created": record.created}
        begun = False
        for gallery, headline in record.galleries.items():
            scores = record.scores.get(gallery)
            if scores is not None and not scores.metrics:
                continue
            if not begun:
                begun = True
                self._records.append(common)
            extension = record.method.get("extensions", {}).get(gallery, "")
            of_gallery: dict[str, Any] = {"gallery": gallery, "headline": tuple(headline), "extension": extension}
            if scores is not None:
                of_gallery |= {name: getattr(scores, name) for name in _COUNTS}
            metrics = {None: math.nan} if scores is None else scores.metrics
            self._add(common, of_gallery, metrics)

    def add_unreadable(self, row: dict[str, Any]) -> None:
        """The one row of a record that cannot be read."""
        of_gallery = {name: row[name] for name in ("gallery", "headline", "extension")}
        common = {name: value for name, value in row.items() if name not in (*of_gallery, "metric", "value")}
        self._columns |= dict.fromkeys(row)
        self._records.append(common)
        self._add(common, of_gallery, {None: math.nan})

    def _add(self, common: Mapping[str, Any], gallery: dict[str, Any], metrics: Mapping[Any, float]) -> None:
        self._columns |= dict.fromkeys((*common, *gallery, "metric", "value"))
        self._record_of.append(len(self._records) - 1)
        self._gallery_of.extend([len(self._galleries)] * len(metrics))
        self._galleries.append(gallery)
        self._metrics += metrics
        self._values.extend(metrics.values())

    def frame(self) -> pd.DataFrame:
        """All rows."""
        import numpy as np
        import pandas as pd

        if not self._metrics:
            return pd.DataFrame(columns=[*(f.name for f in dataclasses.fields(CellId)), *_MORE_COLUMNS])
        gallery_of = np.frombuffer(self._gallery_of, dtype=np.int64)
        record_of = np.array(self._record_of, dtype=np.int64)[gallery_of]
        parts = [
            (pd.DataFrame(self._records), record_of),
            (pd.DataFrame(self._galleries), gallery_of),
            (pd.DataFrame({"metric": self._metrics, "value": np.frombuffer(self._values, dtype=np.float64)}), None),
        ]
        columns: dict[str, Any] = {}
        for part, places in parts:
            for name in part.columns:
                column = part[name]
                if self._compact and isinstance(column.dtype, pd.StringDtype):
                    codes, texts = pd.factorize(column, use_na_sentinel=False)
                    column = pd.Series(np.asarray(texts, dtype=object)[codes], dtype=object)
                columns[name] = column if places is None else column.take(places).reset_index(drop=True)
        return pd.DataFrame({name: columns[name] for name in self._columns})


#: What a gallery's scores say beside the metrics.
_COUNTS = ("n_queries", "n_without_relevant", "gallery_size")


def _about(record: Record) -> dict[str, Any]:
    """What all rows of a record say of it."""
    backbone = record.inputs.get("backbone", {})
    return {
        **{f.name: getattr(record.cell, f.name) for f in dataclasses.fields(CellId) if f.name != "config"},
        "config": json.dumps(record.cell.config, sort_keys=True),
        "status": record.status,
        "reason": record.reason,
        "title": record.method.get("title", ""),
        "floor": bool(record.method.get("floor", False)),
        "dataset_version": record.dataset.get("version", ""),
        "gallery_domain": record.dataset.get("gallery_domain", ""),
        "data_hash": record.inputs.get("dataset", {}).get("data_hash", ""),
        "weights_hash": backbone.get("weights_hash", ""),
        "identity": backbone_identity(backbone),
        "precision": backbone.get("precision", ""),
        "scoring": record.inputs.get("scoring", 0),
        "method_version": record.inputs.get("method", {}).get("version", 0),
        "fit_id": record.fit.fit_id,
        "learning_rate": record.fit.learning_rate,
        "edge": record.fit.edge,
        "convergence": record.fit.convergence,
        **{f"{phase}_seconds": record.cost.seconds.get(phase) for phase in _PHASES},
        "peak_memory_mib": record.cost.peak_memory_mib,
        "pictures_per_second": record.cost.pictures_per_second,
        "trainable_parameters": record.cost.trainable_parameters,
        "total_parameters": record.cost.total_parameters,
        "notes": tuple(record.notes),
        "key": record.key,
    }


_PHASES = ("fit", "search", "encode", "rank", "classify")


def _unreadable_row(entry: Unreadable) -> dict[str, Any]:
    """A failed row of :func:`load_results`: what a file's name says about its cell, and why it has no score."""
    parts = PurePosixPath(entry.name).parts
    match, folder = _FILE.fullmatch(parts[-1]), parts[-1][-5:] != ".json"  # of records, and cannot be read
    cell = CellId(
        method=match["method"] if match else "*", variant="", config={}, backbone="", rules="", select="",
        dataset=parts[1] if len(parts) == 4 or (folder and len(parts) > 1) else "*",
        protocol=parts[2] if len(parts) == 4 or (folder and len(parts) > 2) else "*",
        split=match["split"] if match else "*", seed=int(match["seed"]) if match else 0,
    )  # fmt: skip
    about = {name: value for name, value in vars(cell).items() if name != "config"}
    names = (
        "title",
        "fit_id",
        "edge",
        "convergence",
        "dataset_version",
        "gallery_domain",
        "data_hash",
        "weights_hash",
        "identity",
        "weights",
    )
    empty = dict.fromkeys(names, "")
    return about | empty | {
        "config": "{}", "status": "failed", "reason": entry.reason, "floor": False, "precision": "", "scoring": 0,
        "method_version": 0,
        "key": match["key"] if match else entry.name, "created": "", "gallery": "*", "headline": (), "extension": "",
        "notes": (), "metric": None, "value": math.nan,
    }  # fmt: skip
