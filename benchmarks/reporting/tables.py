"""Tables of stored scores: methods by query domains, for each setting, protocol, gallery and metric.

Scores that answer different questions never share a table: the data, the backbone, the rules, the selection and the
limit are in a table's `Setting`; of the backbone, its weights and its ``identity`` (config, tokenizer and image
processor; empty in records that do not state them, which share a table among themselves). A cell has a score only if
every seed that the method was run with in that table has one; otherwise the cell says what is missing, and no mean is
taken over it. Where a cell was measured several times (its code or its learning rates changed since), the record made
last counts, and of a method's records in a protocol those of its latest code alone (`newest`).

Nothing here depends on a file format: `benchmarks.reporting.grids` turns these tables into cells of text.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import pandas as pd

from benchmarks.evaluation.statistics import mean_over_seeds
from benchmarks.reporting.types import (
    SETTING,
    STATUS_TEXT,
    MethodScores,
    Score,
    ScoreTable,
    Setting,
    is_absent,
    protocol_title,
)
from benchmarks.store.records import Record

#: Columns that name a method's configuration in the leaderboard.
METHOD_COLUMNS = ["method", "variant", "config"]

_CONFIGURATION = [*METHOD_COLUMNS, "ablation"]
_COLUMNS = [*SETTING, "protocol", "gallery", "split", *_CONFIGURATION, "seed", "metric", "value"]
_COLUMNS += ["status", "reason", "floor", "extension", "headline", "key", "created", "edge", "convergence"]
_COLUMNS += ["fit_id", "learning_rate"]

#: Protocols in the order of the report; any other comes after them, by name.
_PROTOCOLS = ("ucdr", "uccdr", "udcdr", "uda", "dazsl")


# --------------------------------------------------------------------------------------------------------------------
# Rows of results
# --------------------------------------------------------------------------------------------------------------------


def usable(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of cells that were planned and can be read; the others (no data hash) only appear among the failures."""
    return _chosen(frame, ~_is_unplanned(frame)) if len(frame) else frame.reindex(columns=_COLUMNS)


def newest(frame: pd.DataFrame) -> pd.DataFrame:
    """`usable` rows of one record a cell: where a cell has several records, the one made last stays.

    Of a method in a protocol only records of its latest code (`method_version`) stay, so that no mean is over two.
    """
    frame = usable(frame)
    if "method_version" in frame.columns:
        row = [*SETTING, "protocol", *_CONFIGURATION]
        latest = frame.groupby(row, dropna=False, sort=False)["method_version"].transform("max")
        frame = _chosen(frame, frame["method_version"] >= latest)
    records = frame.drop_duplicates("key").sort_values(["created", "key"], kind="stable")
    cell = [*SETTING, "protocol", "split", *_CONFIGURATION, "seed"]
    old = records.loc[records.duplicated(cell, keep="last"), "key"]
    return _chosen(frame, ~frame["key"].isin(old))


def _chosen(frame: pd.DataFrame, rows: pd.Series) -> pd.DataFrame:
    """The rows that are chosen; the frame itself, and no copy, where that is every one."""
    return frame if rows.all() else frame[rows]


def current(frame: pd.DataFrame) -> pd.DataFrame:
    """`newest`, and what has only a reason to display: cells that could not be planned, unreadable records."""
    if frame.empty:
        return newest(frame)
    return _chosen(frame, _is_unplanned(frame) | frame["key"].isin(newest(frame)["key"]))


def is_ablated(frame: pd.DataFrame) -> pd.Series:
    """Which rows of `benchmarks.store.frame.load_results` are of records whose method had a factor switched."""
    if "ablation" not in frame.columns:
        return pd.Series(False, index=frame.index)
    return frame["ablation"].fillna("") != ""


def without_ablations(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of records whose method had no factor switched."""
    return _chosen(frame, ~is_ablated(frame))


def of_setting(frame: pd.DataFrame, setting: Setting, without: Iterable[str] = ()) -> pd.DataFrame:
    """The rows of a setting; ``without`` names parts of it that need not be the same."""
    mask = pd.Series(True, index=frame.index)
    for name in SETTING:
        if name not in without and name in frame.columns:
            wanted = getattr(setting, name)
            mask &= frame[name].isna() if wanted is None else frame[name] == wanted
    return _chosen(frame, mask)


def settings_of(frame: pd.DataFrame) -> list[Setting]:
    """The settings in a frame of results, clean ones first; those that state the backbone's identity before others."""
    parts: list[dict[str, Any]] = usable(frame)[list(SETTING)].drop_duplicates().to_dict("records")  # type: ignore[assignment]
    settings = [
        Setting(**{**part, "limit": None if is_absent(part["limit"]) else int(part["limit"])}) for part in parts
    ]
    return sorted(settings, key=lambda s: (s.rules != "clean", s.select == "oracle", *_sort_key(vars(s))))


def _sort_key(setting: Mapping[str, Any]) -> list[tuple[bool, str]]:
    return [(name == "identity" and not value, str(value)) for name, value in setting.items()]


def _is_unplanned(frame: pd.DataFrame) -> pd.Series:
    return (frame["data_hash"] == "") | (frame["split"] == "*")


def row_labels(frame: pd.DataFrame) -> dict[Any, str]:
    """A label for each method and config: the bare name, and what differs where a method has several configs."""
    labels: dict[Any, str] = {}
    for method, part in frame[METHOD_COLUMNS].drop_duplicates().groupby("method", sort=False):
        kinds = list(dict.fromkeys(zip(part["variant"].astype(str), part["config"].astype(str), strict=True)))
        variants = {variant for variant, _ in kinds} != {"paper"}
        for variant, config in kinds:
            values = json.loads(config)
            same = [json.loads(other) for name, other in kinds if name == variant]
            notes = [variant] if variants else []
            notes += [f"{k}={v}" for k, v in sorted(values.items()) if any(other.get(k) != v for other in same)]
            labels[(method, variant, config)] = f"{method} ({', '.join(notes)})" if notes else str(method)
    return labels


# --------------------------------------------------------------------------------------------------------------------
# Tables of scores
# --------------------------------------------------------------------------------------------------------------------


def score_tables(frame: pd.DataFrame, setting: Setting, metrics: Iterable[str] | None = None) -> list[ScoreTable]:
    """All tables of a setting: by protocol and gallery in the order stored, each of the leading metrics."""
    rows = of_setting(newest(frame), setting)[[name for name in _COLUMNS if name not in SETTING]]
    labels = row_labels(rows)
    asked = None if metrics is None else list(metrics)
    tables = []
    for (protocol, gallery), part in rows.groupby(["protocol", "gallery"], sort=False):
        columns = tuple(sorted(part["split"].unique()))
        wanted = asked if asked is not None else list(dict.fromkeys(m for row in part["headline"] for m in row))
        methods = [
            _method_scores(labels[configuration[:3]], of_method, columns, wanted)
            for configuration, of_method in part.groupby(_CONFIGURATION, sort=False)
        ]
        for place, metric in enumerate(wanted):
            ranked = setting.select != "oracle"
            lines = [of_metric[place] for of_metric in methods]
            lines.sort(key=lambda row: (row.mean.value is None, -(row.mean.value or 0) if ranked else 0, row.label))
            tables.append(
                ScoreTable(setting, str(protocol), str(gallery), metric, columns, tuple(lines), metric == wanted[0])
            )
    order = {name: place for place, name in enumerate(_PROTOCOLS)}
    tables.sort(key=lambda table: (order.get(table.protocol, len(order)), table.protocol))
    return tables


def _method_scores(
    label: str, rows: pd.DataFrame, columns: tuple[str, ...], metrics: Sequence[str]
) -> list[MethodScores]:
    """A method's row in the table of each metric."""
    first = rows.iloc[0]
    seeds = sorted(rows["seed"].unique())
    by_split = dict(iter(rows.groupby("split", sort=False)))
    floor, extension = bool(rows["floor"].any()), next((text for text in rows["extension"] if text), "")
    training = training_mark(rows)
    ok = rows[rows["status"] == "ok"]
    values: dict[str, dict[str, dict[int, float]]] = {}  # metric -> column -> seed -> score
    for metric, split, seed, value in zip(ok["metric"], ok["split"], ok["seed"], ok["value"], strict=True):
        values.setdefault(metric, {}).setdefault(split, {})[seed] = value
    lines = []
    for metric in metrics:
        by_column = values.get(metric, {})
        scores = {column: _score(by_split.get(column), by_column.get(column, {}), seeds) for column in columns}
        mean = _mean(scores, by_column, seeds)
        lines.append(
            MethodScores(
                label, str(first["method"]), floor, scores, mean, extension,
                str(first["config"]), str(first["ablation"]), training,
            )
        )  # fmt: skip
    return lines


def training_mark(rows: pd.DataFrame) -> str | None:
    """What must be known of the fits behind a method's rows: ``rising 2 of 6, rate highest tried``; "" for nothing.

    None where no record says how its training ended and how its rate was found.
    """
    fits = rows.drop_duplicates(["fit_id", "learning_rate", "seed"])
    known = fits[fits["convergence"].isin(["converged", "rising"])]
    edges = sorted(set(fits["edge"]) & {"low", "high"})
    if not len(known) and not edges:
        return None
    rising = int((known["convergence"] == "rising").sum())
    parts = [f"rising {rising} of {len(known)}"] if rising else []
    parts += [f"rate {'lowest' if edge == 'low' else 'highest'} tried" for edge in edges]
    return ", ".join(parts)


def _score(rows: pd.DataFrame | None, values: Mapping[int, float], seeds: Sequence[int]) -> Score:
    """Mean over the method's seeds if each has the score; else the worst status and the number of seeds without it."""
    if rows is None:
        return Score(None, status="missing")
    without = [seed for seed in seeds if seed not in values]
    if not without:
        return _over_seeds(math.fsum(values.values()) / len(values), values)
    bad = rows[rows["status"] != "ok"]
    without = sorted(bad["seed"].unique()) or without
    status = str(bad["status"].iloc[0]) if len(bad) else "missing"
    if len(without) == len(seeds):
        return Score(None, status=status)
    return Score(
        None, status=f"{'missing' if status == 'missing' else STATUS_TEXT[status]} {len(without)}/{len(seeds)}"
    )


def _mean(scores: Mapping[str, Score], values: Mapping[str, Mapping[int, float]], seeds: Sequence[int]) -> Score:
    """Mean over columns seed by seed, then over seeds, if no column is missing."""
    known = [score.value for score in scores.values() if score.value is not None]
    if len(known) == len(scores):
        by_seed = {seed: math.fsum(values[column][seed] for column in scores) / len(scores) for seed in seeds}
        return _over_seeds(math.fsum(known) / len(known), by_seed)
    if not known and len({score.status for score in scores.values()}) == 1:
        return Score(None, status=next(iter(scores.values())).status)
    return Score(None, status="incomplete")


def _over_seeds(mean: float, by_seed: Mapping[int, float]) -> Score:
    interval = mean_over_seeds(list(by_seed.values()))
    return Score(mean, interval.n, "ok", interval.low, interval.high, by_seed)


# --------------------------------------------------------------------------------------------------------------------
# Notes on the tables
# --------------------------------------------------------------------------------------------------------------------


def failures(frame: pd.DataFrame) -> pd.DataFrame:
    """Cells that have no score: one row each with status and reason.

    Rules, selection and the switched factor are columns where the frame holds several.
    """
    several = [name for name in ("rules", "select", "ablation") if frame[name].replace("", pd.NA).nunique() > 1]
    several += ["ablation"] if "ablation" not in several and (frame["ablation"] != "").any() else []
    columns = ["dataset", "protocol", "split", "method", "seed", *several, "status", "reason"]
    return frame.loc[frame["status"] != "ok", columns].drop_duplicates(ignore_index=True)


def failure_lines(frame: pd.DataFrame) -> Iterator[tuple[str, str]]:
    """Status and one line for each cell that has no score."""
    for row in failures(frame).to_dict("records"):
        where = f"{row['method']} on {row['dataset']}/{row['protocol']}/{row['split']}, seed {row['seed']}"
        where += "".join(f", {row[name]}" for name in ("rules", "select", "ablation") if row.get(name))
        yield row["status"], " ".join(f"{row['status']}: {where}: {row['reason']}".split())


#: Head of a table of `data_used`.
DATA_USED = ("data set", "data hash", "what was read", "files left out")


def data_used(records: Iterable[Record]) -> list[tuple[str, str, str, str]]:
    """Notes of the records on their data: data set, the first digits of its hash, what was read, what was left out.

    One row for each data set and hash with a note.
    """
    rows: dict[tuple[str, str, str, str], None] = {}
    for record in records:
        facts, left_out = record.dataset.get("facts") or [], record.dataset.get("left_out") or ""
        if facts or left_out:
            key = (record.cell.dataset, str(record.inputs.get("dataset", {}).get("data_hash", ""))[:8])
            rows[(*key, "; ".join(map(str, facts)), str(left_out))] = None
    return sorted(rows)


#: Notes of records that a setting's title already contains.
_IN_TITLE = ("limited to ", "selected on test")


def notes_of(frame: pd.DataFrame, setting: Setting) -> list[str]:
    """What the records of a setting note on how models were selected: ``protocol/split (methods): note``."""
    rows = of_setting(newest(frame), setting)
    if rows.empty or "notes" not in rows:
        return []
    places_of: dict[tuple[str, str, str], dict[str, None]] = {}
    for row in rows.drop_duplicates("key").to_dict("records"):
        for note in row["notes"] if isinstance(row["notes"], tuple | list) else ():
            if not note.startswith(_IN_TITLE):
                places_of.setdefault((row["protocol"], row["split"], note), {})[row["method"]] = None
    by_note: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (protocol, split, note), methods in places_of.items():
        by_note.setdefault((note, tuple(methods)), []).append(f"{protocol_title(protocol)} {split}")
    return [f"{', '.join(places)} ({', '.join(methods)}): {note}" for (note, methods), places in by_note.items()]


def extensions(tables: Iterable[ScoreTable]) -> list[tuple[str, str, str]]:
    """What the extension marks of some tables mean: method, protocols, and what was decided for them."""
    protocols_of: dict[tuple[str, str], dict[str, None]] = {}
    for table in tables:
        for row in table.rows:
            if row.extension:
                protocols_of.setdefault((row.method, row.extension), {})[protocol_title(table.protocol)] = None
    return [(method, ", ".join(protocols), text) for (method, text), protocols in sorted(protocols_of.items())]
