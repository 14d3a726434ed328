"""All records under a results folder as one pandas frame (:func:`load_results`)."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import warnings
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from benchmarks.store.files import ResultStore
from benchmarks.store.records import CellId, Record, Unreadable, backbone_identity
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
    folder of its fit's weights below this one, else empty), ``created``.

    A record that cannot be read is a failed row with only what its file name contains (no ``data_hash``);
    ``report`` gets one line for each (default: a warning). Raises ``FileNotFoundError`` if there is no such folder.
    """
    return frame_and_records(path, report or (lambda line: warnings.warn(line, stacklevel=2)))[0]


def frame_and_records(path: Path | str, report: Callable[[str], None]) -> tuple[pd.DataFrame, dict[str, Record]]:
    """:func:`load_results` and the records behind it by key, in the order of the store; each is read once."""
    import pandas as pd

    root = Path(path)
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a results folder; run `python -m benchmarks.run --out {root}` first")
    weights = WeightStore(root)
    records: dict[str, Record] = {}
    rows: list[dict[str, Any]] = []
    for record in ResultStore(root, report).entries():
        if isinstance(record, Unreadable):
            report(record.reason)
            rows.append(_unreadable_row(record))
            continue
        records[record.key] = record
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
            "weights": weights.of_record(record),
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
    return pd.DataFrame(rows) if rows else pd.DataFrame(columns=[*columns, *_MORE_COLUMNS]), records


def _unreadable_row(entry: Unreadable) -> dict[str, Any]:
    """A failed row of :func:`load_results`: what a file's name says about its cell, and why it has no score."""
    parts = PurePosixPath(entry.name).parts
    match = _FILE.fullmatch(parts[-1])
    cell = CellId(
        method=match["method"] if match else "*", variant="", config={}, backbone="", rules="", select="",
        dataset=parts[1] if len(parts) == 4 else "*", protocol=parts[2] if len(parts) == 4 else "*",
        split=match["split"] if match else "*", seed=int(match["seed"]) if match else 0,
    )  # fmt: skip
    about = {name: value for name, value in vars(cell).items() if name != "config"}
    names = ("title", "fit_id", "dataset_version", "gallery_domain", "data_hash", "weights_hash", "identity", "weights")
    empty = dict.fromkeys(names, "")
    return about | empty | {
        "config": "{}", "status": "failed", "reason": entry.reason, "floor": False, "precision": "", "scoring": 0,
        "key": match["key"] if match else entry.name, "created": "", "gallery": "*", "headline": (), "extension": "",
        "notes": (), "metric": None, "value": math.nan,
    }  # fmt: skip
