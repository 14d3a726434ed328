"""Leaderboards from stored scores: tables by protocol, gallery and query domain, as Markdown, CSV and for a terminal.

Scores that answer different questions never share a table: the data, the backbone, the rules, the selection and the
limit are in a table's :class:`Setting`; of the backbone, its weights and its ``identity`` (config, tokenizer and image
processor; empty in records that do not state them, which share a table among themselves). A figure stands in a cell
only if every seed that the method was run with in that table has one; otherwise the cell shows what is missing, and no
mean is taken over it. Where a cell was measured several times (its code or its learning rates changed since), the
record made last counts (:func:`newest`).
"""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import pandas as pd

from benchmarks.evaluation.statistics import mean_over_seeds

if TYPE_CHECKING:
    from rich.console import Console

    from benchmarks.store.records import Record

#: Columns of :func:`benchmarks.store.frame.load_results` that make two scores comparable.
SETTING = (
    "dataset",
    "dataset_version",
    "data_hash",
    "backbone",
    "weights_hash",
    "identity",
    "precision",
    "rules",
    "select",
    "limit",
    "scoring",
)

#: Protocols as the field writes them; any other is written in capitals.
PROTOCOL_TITLES = {"uccdr": "UcCDR", "udcdr": "UdCDR", "uda_inductive": "UDA (inductive)"}


def protocol_title(name: str) -> str:
    """A protocol's name as it stands in a heading."""
    return PROTOCOL_TITLES.get(name, name.upper())


#: How a cell without a figure is shown.
SHOWN = {"failed": "failed", "skipped": "skipped", "not_applicable": "n/a", "missing": "-"}


@dataclass(frozen=True)
class Setting:
    """What all scores of a table share."""

    dataset: str
    dataset_version: str
    data_hash: str
    backbone: str
    weights_hash: str
    identity: str
    precision: str
    rules: str
    select: str
    limit: int | None
    scoring: int

    def title(self) -> str:
        """One line, the marks of anything unusual included."""
        marks = []
        if self.rules != "clean":
            marks.append(
                f"{self.rules.upper()} RULES: as the released code, test data leak into training and selection"
            )
        if self.select == "oracle":
            marks.append("ORACLE: selected on test data, not ranked")
        elif self.select != "val":
            marks.append(f"selection: {self.select}")
        if self.limit is not None:
            marks.append(f"LIMITED to {self.limit} images a role: proves that it runs, the scores mean nothing")
        if self.precision not in ("float32", ""):
            marks.append(self.precision)
        model = self.weights_hash[:8] + (f", setup {self.identity[:8]}" if self.identity else "")
        name = f"{self.dataset} {self.dataset_version} ({self.data_hash[:8]}), {self.backbone} ({model})"
        return "; ".join([name, *marks])


@dataclass(frozen=True)
class Score:
    """One cell of a table: a mean over ``seeds`` seeds, or None with the ``status`` that says why.

    ``low`` and ``high`` bound its 95 % t interval over seeds; None for one seed. ``by_seed``: what it is the mean of.
    """

    value: float | None
    seeds: int = 0
    status: str = "ok"
    low: float | None = None
    high: float | None = None
    by_seed: Mapping[int, float] = field(default_factory=dict, compare=False)

    def text(self) -> str:
        """Percent with one decimal, or the status."""
        return f"{100 * self.value:.1f}" if self.value is not None else SHOWN.get(self.status, self.status)

    def with_interval(self) -> str:
        """:meth:`text`, with half of the interval where there is one."""
        if self.low is None or self.high is None:
            return self.text()
        return f"{self.text()} ± {100 * (self.high - self.low) / 2:.1f}"


@dataclass(frozen=True)
class Row:
    """A method's row: one score a column, and their mean where none is missing.

    ``config`` as JSON; ``ablation``: the factor that was switched, or "". ``extension``: what this suite decided
    because the method's paper does not define this answer, or "".
    """

    label: str
    method: str
    floor: bool
    scores: Mapping[str, Score]
    mean: Score
    extension: str = ""
    config: str = "{}"
    ablation: str = ""


@dataclass(frozen=True)
class Table:
    """One protocol, gallery and metric: methods by query domains; ``leads`` marks a gallery's first metric."""

    setting: Setting
    protocol: str
    gallery: str
    metric: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    leads: bool = True

    def title(self) -> str:
        """Protocol, gallery and metric."""
        by = "transfer" if is_transfer(self.protocol) else "query domain"
        return f"{protocol_title(self.protocol)}, {self.gallery}: {self.metric} in percent, by {by}"


def is_transfer(protocol: str) -> bool:
    """Whether a protocol's splits are transfers (SOURCE to TARGET), not query domains, whatever the domains' names."""
    return protocol.partition("_")[0] in ("uda", "dazsl")


def settings_of(frame: pd.DataFrame) -> list[Setting]:
    """The settings in a frame of results, clean ones first; those that state the backbone's identity before others."""
    plain = usable(frame)
    found: list[dict[str, Any]] = plain[list(SETTING)].drop_duplicates().to_dict("records")  # type: ignore[assignment]
    made = [Setting(**{**one, "limit": None if _absent(one["limit"]) else int(one["limit"])}) for one in found]
    return sorted(made, key=lambda s: (s.rules != "clean", s.select == "oracle", *_in_order(vars(s))))


def _in_order(setting: Mapping[str, Any]) -> list[tuple[bool, str]]:
    return [(name == "identity" and not value, str(value)) for name, value in setting.items()]


def tables(frame: pd.DataFrame, setting: Setting, metrics: Iterable[str] | None = None) -> list[Table]:
    """All tables of a setting: by protocol and gallery in the order stored, each of the leading metrics."""
    mine = _of_setting(newest(frame), setting)[[name for name in _COLUMNS if name not in SETTING]]
    labels = row_labels(mine)
    made = []
    for (protocol, gallery), part in mine.groupby(["protocol", "gallery"], sort=False):
        columns = tuple(sorted(part["split"].unique()))
        wanted = list(metrics if metrics is not None else dict.fromkeys(m for row in part["headline"] for m in row))
        for metric in wanted:
            rows = [
                _row(labels[identity[:3]], rows_of, columns, metric)
                for identity, rows_of in part.groupby(_IDENTITY, sort=False)
            ]
            ranked = setting.select != "oracle"
            rows.sort(key=lambda row: (row.mean.value is None, -(row.mean.value or 0) if ranked else 0, row.label))
            made.append(Table(setting, str(protocol), str(gallery), metric, columns, tuple(rows), metric == wanted[0]))
    order = {name: place for place, name in enumerate(("ucdr", "uccdr", "udcdr", "uda", "dazsl"))}
    made.sort(key=lambda t: (order.get(t.protocol, len(order)), t.protocol))
    return made


def failures(frame: pd.DataFrame) -> pd.DataFrame:
    """Cells that have no score: one row each with status and reason.

    Rules, selection and the switched factor are told where the frame holds several.
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


def row_labels(frame: pd.DataFrame) -> dict[Any, str]:
    """A label for each method and config: the bare name, and what differs where a method has several configs."""
    labels: dict[Any, str] = {}
    for method, part in frame.groupby("method", sort=False):
        kinds = list(dict.fromkeys(zip(part["variant"].astype(str), part["config"].astype(str), strict=True)))
        variants = {variant for variant, _ in kinds} != {"paper"}
        for variant, config in kinds:
            own = json.loads(config)
            same = [json.loads(other) for name, other in kinds if name == variant]
            notes = [variant] if variants else []
            notes += [f"{k}={v}" for k, v in sorted(own.items()) if any(other.get(k) != v for other in same)]
            labels[(method, variant, config)] = f"{method} ({', '.join(notes)})" if notes else str(method)
    return labels


def data_used(records: Iterable[Record]) -> list[tuple[str, str, str, str]]:
    """What the records say of their data: data set, the begin of its hash, what of it was read, what was left out.

    One row for each data set and hash, where there is anything to say.
    """
    rows: dict[tuple[str, str, str, str], None] = {}
    for record in records:
        facts, left_out = record.dataset.get("facts") or [], record.dataset.get("left_out") or ""
        if facts or left_out:
            key = (record.cell.dataset, str(record.inputs.get("dataset", {}).get("data_hash", ""))[:8])
            rows[(*key, "; ".join(map(str, facts)), str(left_out))] = None
    return sorted(rows)


#: Head of a table of :func:`data_used`.
DATA_USED = ("data set", "data hash", "what was read", "files left out")


def markdown(frame: pd.DataFrame, command: str = "", records: Iterable[Record] = ()) -> str:
    """The whole leaderboard as Markdown; ``records`` say what of each data set was read and left out."""
    lines = ["# Leaderboard", ""]
    if command:
        lines += [f"Made by `{command}`.", ""]
    lines += [
        "Percent. A column's metric stands in its table's head: the `[retrieved]` and `[trec]` conventions differ.",
        "`(floor)` marks methods that know nothing of the world. Means are taken over complete rows only.",
        "±: half of the 95 % t interval over seeds; one seed (n = 1) has none.",
        "",
    ]
    for setting in settings_of(frame):
        made = tables(frame, setting)
        lines += [f"## {_escape(setting.title())}", "", "Means over the query domains (UDA and DAZSL: transfers).", ""]
        for metric in dict.fromkeys(table.metric for table in made):
            lines += [*_markdown_table(*summary(made, metric)), ""]
        for table in made:
            lines += [f"### {_escape(table.title())}", "", *_markdown_table(*grid(table)), ""]
        beyond = [list(row) for row in extensions(made)]
        if beyond:
            lines += [
                f"### {EXTENSION} Extensions",
                "",
                "What a method's paper does not define and this suite decided:",
                "",
            ]
            lines += [*_markdown_table(["method", "protocol", "what is done"], beyond, figures=False), ""]
        if told := notes_of(frame, setting):
            lines += ["### Notes", "", *(f"- {_escape(line)}" for line in told), ""]
    used = [list(row) for row in data_used(records)]
    if used:
        lines += ["## Data", "", *_markdown_table(list(DATA_USED), used, figures=False), ""]
    failed = failures(frame)
    if len(failed):
        rows = [[str(value) for value in row] for row in failed.itertuples(index=False)]
        lines += ["## Cells without a score", "", *_markdown_table(list(failed.columns), rows, figures=False), ""]
    return "\n".join(lines)


def csv_text(frame: pd.DataFrame) -> str:
    """Every figure of every table: one row a setting, protocol, gallery, metric, method and query domain (or mean)."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    ablated = ["ablation"] if len(frame) and (frame["ablation"] != "").any() else []
    head = ["protocol", "gallery", "metric", "method", "label", *ablated, "floor", "extension", "query_domain"]
    stated = [name for name in SETTING if name != "identity" or (len(frame) and (frame["identity"] != "").any())]
    writer.writerow([*stated, *head, "value", "low", "high", "seeds", "status"])
    for setting in settings_of(frame):
        for table in tables(frame, setting):
            for row in table.rows:
                switched = [row.ablation] if ablated else []
                for column, score in [*row.scores.items(), ("mean", row.mean)]:
                    numbers = ["" if x is None else f"{x:.6f}" for x in (score.value, score.low, score.high)]
                    where = [table.protocol, table.gallery, table.metric, row.method, row.label, *switched, row.floor]
                    where += [row.extension, column]
                    writer.writerow(
                        [*(getattr(setting, name) for name in stated), *where, *numbers, score.seeds, score.status]
                    )
    return buffer.getvalue()


def print_tables(console: Console, frame: pd.DataFrame, *, by_domain: bool = True) -> None:
    """Print the leaderboard of a frame: with ``by_domain`` the first metric by query domain, then all means."""
    for setting in settings_of(frame):
        made = tables(frame, setting)
        console.print()
        console.print(setting.title(), style="bold", markup=False, highlight=False)
        if by_domain:
            for table in made:
                if table.leads:
                    _print(console, table.title(), *grid(table))
        for metric in dict.fromkeys(table.metric for table in made):
            _print(
                console,
                f"All protocols: {metric} in percent, mean over query domains or transfers",
                *summary(made, metric),
            )
        if extensions(made):
            note = f"{EXTENSION} beyond the method's paper; the leaderboard file says what is done"
            console.print(note, markup=False, highlight=False)
        for line in notes_of(frame, setting):
            console.print(f"note: {line}", markup=False, highlight=False, soft_wrap=True)
    print_failures(console, frame)


def print_failures(console: Console, frame: pd.DataFrame) -> None:
    """Print a line for each cell that has no score."""
    for status, line in failure_lines(frame):
        style = "red" if status == "failed" else "yellow"
        console.print(line, style=style, markup=False, highlight=False, soft_wrap=True)


def summary(made: list[Table], metric: str) -> tuple[list[str], list[list[str]]]:
    """Head and rows of a metric's means: methods by (protocol, gallery), in order of the first column."""
    made = [table for table in made if table.metric == metric]
    head = [metric, *(f"{protocol_title(table.protocol)} {table.gallery}" for table in made), "seeds"]
    by_label = [{row.label: row for row in table.rows} for table in made]
    labels = list(dict.fromkeys(label for rows in by_label for label in rows))
    rows = []
    for label in labels:
        own = [rows_of.get(label) for rows_of in by_label]
        floor = any(row.floor for row in own if row)
        means = [_mean(row) if row else SHOWN["missing"] for row in own]
        rows.append([_marked(label, floor), *means, _seeds(row.mean for row in own if row)])
    return head, rows


def grid(table: Table) -> tuple[list[str], list[list[str]]]:
    """Head and rows of one table by query domain, then the mean and the number of seeds."""
    head = [f"{table.metric}", *table.columns, "mean", "seeds"]
    rows = []
    for row in table.rows:
        scores = [row.scores[column] for column in table.columns]
        shown = [score.with_interval() for score in (*scores, row.mean)]
        rows.append([_marked(row.label, row.floor, row.extension), *shown, _seeds(scores)])
    return head, rows


def _seeds(scores: Iterable[Score]) -> str:
    """How many seeds stand behind some scores."""
    own = sorted({score.seeds for score in scores if score.value is not None})
    return ", ".join(f"n = {n}" for n in own) or SHOWN["missing"]


def _row(label: str, rows: pd.DataFrame, columns: tuple[str, ...], metric: str) -> Row:
    seeds = sorted(rows["seed"].unique())
    own = rows[(rows["status"] == "ok") & (rows["metric"] == metric)]
    values: dict[str, dict[int, float]] = {}  # column -> seed -> score
    for split, seed, value in zip(own["split"], own["seed"], own["value"], strict=True):
        values.setdefault(split, {})[seed] = value
    by_split = dict(iter(rows.groupby("split", sort=False)))
    scores = {column: _score(by_split.get(column), values.get(column, {}), seeds) for column in columns}
    known = [score.value for score in scores.values() if score.value is not None]
    if len(known) == len(columns):
        by_seed = {seed: math.fsum(values[column][seed] for column in columns) / len(columns) for seed in seeds}
        mean = _over_seeds(math.fsum(known) / len(known), by_seed)
    elif not known and len({score.status for score in scores.values()}) == 1:
        mean = Score(None, status=next(iter(scores.values())).status)
    else:
        mean = Score(None, status="incomplete")
    extension = next((text for text in rows["extension"] if text), "")
    config, ablation = str(rows["config"].iloc[0]), str(rows["ablation"].iloc[0])
    floor = bool(rows["floor"].any())
    return Row(label, str(rows["method"].iloc[0]), floor, scores, mean, extension, config, ablation)


def _score(rows: pd.DataFrame | None, values: Mapping[int, float], seeds: Sequence[int]) -> Score:
    """Mean over the method's seeds if each has the figure; else the worst status and how many seeds have it."""
    if rows is None:
        return Score(None, status="missing")
    lacking = [seed for seed in seeds if seed not in values]
    if not lacking:
        return _over_seeds(math.fsum(values.values()) / len(values), values)
    bad = rows[rows["status"] != "ok"]
    lacking = sorted(bad["seed"].unique()) or lacking
    status = str(bad["status"].iloc[0]) if len(bad) else "missing"
    if len(lacking) == len(seeds):
        return Score(None, status=status)
    return Score(None, status=f"{'missing' if status == 'missing' else SHOWN[status]} {len(lacking)}/{len(seeds)}")


def _over_seeds(mean: float, by_seed: Mapping[int, float]) -> Score:
    interval = mean_over_seeds(list(by_seed.values()))
    return Score(mean, interval.n, "ok", interval.low, interval.high, by_seed)


def usable(frame: pd.DataFrame) -> pd.DataFrame:
    """Rows of cells that were planned and can be read; the others (no data hash) only show among the failures."""
    return frame[~_is_unplanned(frame)] if len(frame) else frame.reindex(columns=_COLUMNS)


def current(frame: pd.DataFrame) -> pd.DataFrame:
    """:func:`newest`, and what has only a reason to show: cells that could not be planned, records nobody can read."""
    if frame.empty:
        return newest(frame)
    return frame[_is_unplanned(frame) | frame["key"].isin(newest(frame)["key"])]


def _is_unplanned(frame: pd.DataFrame) -> pd.Series:
    return (frame["data_hash"] == "") | (frame["split"] == "*")


def newest(frame: pd.DataFrame) -> pd.DataFrame:
    """:func:`usable` rows of one record a cell: where a cell has several records, the one made last stays."""
    frame = usable(frame)
    records = frame.drop_duplicates("key").sort_values(["created", "key"], kind="stable")
    cell = [*SETTING, "protocol", "split", *_IDENTITY, "seed"]
    old = records.loc[records.duplicated(cell, keep="last"), "key"]
    return frame[~frame["key"].isin(old)]


def _of_setting(frame: pd.DataFrame, setting: Setting) -> pd.DataFrame:
    mask = pd.Series(True, index=frame.index)
    for name in SETTING:
        value = getattr(setting, name)
        mask &= frame[name].isna() if value is None else frame[name] == value
    return frame[mask]


#: Notes of records that a setting's title says already.
_IN_TITLE = ("limited to ", "selected on test")


def notes_of(frame: pd.DataFrame, setting: Setting) -> list[str]:
    """What the records of a setting note on how models were selected: ``protocol/split (methods): note``."""
    mine = _of_setting(newest(frame), setting)
    if mine.empty or "notes" not in mine:
        return []
    found: dict[tuple[str, str, str], dict[str, None]] = {}
    for row in mine.drop_duplicates("key").to_dict("records"):
        for note in row["notes"] if isinstance(row["notes"], tuple | list) else ():
            if not note.startswith(_IN_TITLE):
                found.setdefault((row["protocol"], row["split"], note), {})[row["method"]] = None
    by_note: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (protocol, split, note), methods in found.items():
        by_note.setdefault((note, tuple(methods)), []).append(f"{protocol_title(protocol)} {split}")
    return [f"{', '.join(places)} ({', '.join(methods)}): {note}" for (note, methods), places in by_note.items()]


def _absent(value: Any) -> bool:
    return value is None or (isinstance(value, float) and math.isnan(value))


def extensions(made: Iterable[Table]) -> list[tuple[str, str, str]]:
    """What stands behind the extension marks of some tables: method, protocols, and what was decided for them."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for table in made:
        for row in table.rows:
            if row.extension:
                found.setdefault((row.method, row.extension), {})[protocol_title(table.protocol)] = None
    return [(method, ", ".join(protocols), text) for (method, text), protocols in sorted(found.items())]


#: Marks a score whose method's paper does not define the answer.
EXTENSION = "†"


def _marked(label: str, floor: bool, extension: str = "") -> str:
    return f"{label} (floor)" if floor else f"{label} {EXTENSION}" if extension else label


def _mean(row: Row) -> str:
    mark = EXTENSION if row.extension and row.mean.value is not None else ""
    return row.mean.text() + mark + row.mean.with_interval().removeprefix(row.mean.text())


def _escape(text: str) -> str:
    """Text as it is in Markdown: nothing of it is taken for markup."""
    text = re.sub(r"([\\`*\[\]<>|#&])", r"\\\1", " ".join(text.split()))
    return re.sub(r"(?<![A-Za-z0-9])_|_(?![A-Za-z0-9])", r"\\_", text)  # inside a word an underscore is only that


def _markdown_table(head: list[str], rows: list[list[str]], *, figures: bool = True) -> list[str]:
    align = ["---", *(["---:"] if figures else ["---"]) * (len(head) - 1)]
    return ["| " + " | ".join(map(_escape, line)) + " |" for line in (head,)] + [
        "| " + " | ".join(align) + " |",
        *("| " + " | ".join(map(_escape, line)) + " |" for line in rows),
    ]


def _print(console: Console, title: str, head: list[str], rows: list[list[str]]) -> None:
    from rich import box
    from rich.table import Table as RichTable
    from rich.text import Text

    console.print()
    console.print(" ".join(title.split()), markup=False, highlight=False, soft_wrap=True)
    for columns in blocks(head, rows, console.width):
        shown = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
        for place in columns:
            name = " ".join(head[place].split())
            shown.add_column(Text(name), justify="right" if place else "left", overflow="fold", no_wrap=True)
        for line in rows:
            style = "dim" if line[0].endswith("(floor)") else ""
            shown.add_row(*(Text(" ".join(line[place].split()), style=style) for place in columns))
        needed = _width(head, rows, columns)
        if needed > console.width:  # not even one column fits: run over the edge rather than break a figure
            shown.width = needed
        console.print(shown, soft_wrap=True, crop=False)


def blocks(head: Sequence[str], rows: Sequence[Sequence[str]], width: int) -> list[list[int]]:
    """Columns to print side by side so that no figure is broken over two lines: the label (column 0) with as many
    others as fit into ``width``, at least one each time."""
    made: list[list[int]] = []
    for place in range(1, len(head)):
        if made and _width(head, rows, [*made[-1], place]) <= width:
            made[-1].append(place)
        else:
            made.append([0, place])
    return made or [[0]]


def _width(head: Sequence[str], rows: Sequence[Sequence[str]], columns: Sequence[int]) -> int:
    """Letters that these columns take side by side, with what stands between them."""
    from rich.cells import cell_len

    of_column = (max(cell_len(" ".join(line[place].split())) for line in (head, *rows)) for place in columns)
    return sum(of_column) + 3 * len(columns) + 2


_IDENTITY = ["method", "variant", "config", "ablation"]
_COLUMNS = [*SETTING, "protocol", "gallery", "split", *_IDENTITY, "seed", "metric", "value"]
_COLUMNS += ["status", "reason", "floor", "extension", "headline", "key", "created"]
