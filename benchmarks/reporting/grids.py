"""What the tables of the page hold: scores with intervals and groups, tests, ranks, costs, cards and settings.

A `Grid` is only text and numbers to sort by; the template of `benchmarks.reporting.page` turns it into HTML.
"""

from __future__ import annotations

import itertools
import json
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pandas as pd

from benchmarks.reporting import leaderboard
from benchmarks.reporting.leaderboard import EXTENSION, SETTING, Score, Setting, Table, protocol_title
from benchmarks.reporting.method_comparison import ALL, Comparison
from benchmarks.store.records import Record

BEST, GROUP = "★", "≈"


@dataclass(frozen=True)
class Cell:
    """One cell: its text, what to sort by (None: by the text), CSS class, mark, remark beside it and on hover."""

    text: str = ""
    sort: float | int | None = None
    kind: str = ""
    mark: str = ""
    small: str = ""
    note: str = ""
    tags: tuple[str, ...] = ()
    link: str = ""
    pre: bool = False


@dataclass(frozen=True)
class Row:
    """Cells; ``method`` is what the page's method filter looks at (empty: always shown)."""

    cells: tuple[Cell, ...]
    method: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Grid:
    """A table; ``style`` is ``figures`` (first column names the row) or ``texts``; ``data`` serves the filters."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[Row, ...]
    style: str = "figures"
    data: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    unranked: bool = False
    search: bool = False


@dataclass(frozen=True)
class Known:
    """What the comparison knows of a score."""

    low: float
    high: float
    seeds: int
    best: bool
    group: bool
    p_best: float
    tested: bool


class Scores:
    """Looks up intervals and groups of one setting by (protocol, gallery, metric, split or `ALL`, label)."""

    def __init__(self, comparison: Comparison | None, setting: Setting) -> None:
        self.ranks = pd.DataFrame() if comparison is None else of_setting(comparison.ranks, setting)
        self.pairs = pd.DataFrame() if comparison is None else of_setting(comparison.pairs, setting)
        self._known: dict[tuple[str, ...], Known] = {}
        if comparison is not None:
            for one in of_setting(comparison.scores, setting).to_dict("records"):
                place = tuple(str(one[name]) for name in ("protocol", "gallery", "metric", "split", "label"))
                self._known[place] = Known(
                    one["low"], one["high"], one["seeds"], one["best"], one["group"], one["p_best"], one["tested"]
                )

    def of(self, table: Table, split: str, label: str) -> Known | None:
        """What is known of a figure of a table."""
        return self._known.get((table.protocol, table.gallery, table.metric, split, label))


def of_setting(frame: pd.DataFrame, setting: Setting, without: Iterable[str] = ()) -> pd.DataFrame:
    """The rows of a setting; ``without`` names parts of it that need not be the same."""
    mask = pd.Series(True, index=frame.index)
    for name in SETTING:
        if name not in without and name in frame.columns:
            wanted = getattr(setting, name)
            mask &= frame[name].isna() if wanted is None else frame[name] == wanted
    return frame[mask]


def percent(value: float | None, digits: int = 1) -> str:
    """Percent, or "-" for no number."""
    return "-" if value is None or math.isnan(value) else f"{100 * value:.{digits}f}"


def number(value: float | None, digits: int = 3) -> Cell:
    """A number in few digits; sorts by its value."""
    if value is None or math.isnan(value):
        return Cell("-", kind="none")
    if value and abs(value) < 10 ** (1 - digits):
        return Cell(f"{value:.1g}" if abs(value) >= 1e-4 else f"{value:.0e}", value, "number")
    text = f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.{digits}g}"
    return Cell(text, value, "number")


def score_cell(score: Score, known: Known | None, mark: str = "", kind: str = "") -> Cell:
    """A score with half its interval, ★ for the best of its column and ≈ for what is not separable from it."""
    if score.value is None:
        text = score.text()
        return Cell(text, kind=f"{kind} {'bad' if text.startswith('failed') else 'none'}".strip())
    small, notes = "", [f"{100 * score.value:.3f} %, n = {score.seeds}"]
    if known is not None:
        if not math.isnan(known.low):
            small = f"± {100 * (known.high - known.low) / 2:.1f}"
            notes.append(f"95 % t interval over seeds {percent(known.low, 2)} to {percent(known.high, 2)}")
        if known.best:
            mark, kind = BEST + mark, f"{kind} best"
            notes.append("the best of its column")
        elif known.group:
            mark, kind = GROUP + mark, f"{kind} group"
        if known.tested and not math.isnan(known.p_best):
            notes.append(f"p against the best {known.p_best:.3g} (Holm)")
        elif not known.tested:
            notes.append("not tested: no per-query values, or not ranked")
    return Cell(score.text(), 100 * score.value, kind.strip(), mark, small, "; ".join(notes))


def name_cell(label: str, *, floor: bool = False, extension: str = "", oracle: bool = False) -> Cell:
    """A method's name with its tags."""
    tags = (("floor",) if floor else ()) + (("oracle, unranked",) if oracle else ())
    return Cell(label, mark=EXTENSION if extension else "", tags=tags, note=extension)


def question_title(table: Table) -> str:
    """Protocol and gallery."""
    return f"{protocol_title(table.protocol)} {table.gallery}"


# --------------------------------------------------------------------------------------------------------------------
# Scores
# --------------------------------------------------------------------------------------------------------------------


def overview(tables: Sequence[Table], scores: Scores) -> list[Grid]:
    """One table of the means over domains of every gallery's leading metric, with the mean rank."""
    leading = [table for table in tables if table.leads]
    if not leading:
        return []
    rows = [{row.label: row for row in table.rows} for table in leading]
    oracle = leading[0].setting.select == "oracle"
    ranks = {}
    if len(scores.ranks):
        ranks = {one["label"]: one for one in scores.ranks[scores.ranks["protocol"] == ALL].to_dict("records")}
    lines: list[tuple[float, Row]] = []
    for label in dict.fromkeys(label for of_table in rows for label in of_table):
        own = [of_table.get(label) for of_table in rows]
        floor = any(row.floor for row in own if row)
        method = next(row.method for row in own if row)
        rank = ranks.get(label)
        cells = [name_cell(label, floor=floor, oracle=oracle), _rank_cell(rank)]
        for table, row in zip(leading, own, strict=True):
            mean = row.mean if row else Score(None, status="missing")
            mark = EXTENSION if row and row.extension and mean.value is not None else ""
            cells.append(score_cell(mean, scores.of(table, ALL, label), mark))
        order = rank["rank"] if rank is not None and not math.isnan(rank["rank"]) else math.inf
        lines.append((order, Row(tuple(cells), method, "floor" if floor else "")))
    if not oracle:
        lines.sort(key=lambda line: line[0])
    head = ("method", "mean rank", *(f"{question_title(table)}: {table.metric}" for table in leading))
    notes = (
        "Mean over query domains or transfers. Mean rank: over (protocol, query domain) by the leading metric, 1 is "
        "best, with its 95 % bootstrap interval; only methods that have every cell are ranked.",
    )
    if oracle:
        notes = ("Selected on the test data: not ranked, not tested, in no order.",)
    return [Grid("Leading metric of every protocol and gallery", head, tuple(row for _, row in lines), notes=notes)]


def _rank_cell(rank: Mapping[Any, Any] | None) -> Cell:
    if rank is None or math.isnan(rank["rank"]):
        missing = "; ".join(rank["missing"][:8]) + ("; ..." if len(rank["missing"]) > 8 else "") if rank else ""
        return Cell("not ranked" if rank else "-", kind="none", note=f"no score for {missing}" if missing else "")
    interval = "" if math.isnan(rank["low"]) else f"[{rank['low']:.1f}, {rank['high']:.1f}]"
    return Cell(f"{rank['rank']:.2f}", rank["rank"], "", small=interval, note=f"over {rank['cells']} cells")


def by_protocol(table: Table, scores: Scores, data: Mapping[str, str]) -> Grid:
    """Methods by query domains of one protocol, gallery and metric, the mean last."""
    oracle = table.setting.select == "oracle"
    rows = []
    for row in table.rows:
        cells = [name_cell(row.label, floor=row.floor, extension=row.extension, oracle=oracle)]
        cells += [score_cell(row.scores[c], scores.of(table, c, row.label)) for c in table.columns]
        cells.append(score_cell(row.mean, scores.of(table, ALL, row.label), kind="mean"))
        seeds = sorted({score.seeds for score in row.scores.values() if score.value is not None})
        cells.append(Cell(", ".join(map(str, seeds)) or "-", seeds[0] if seeds else None))
        rows.append(Row(tuple(cells), row.method, "floor" if row.floor else ""))
    return Grid(
        table.title(),
        ("method", *table.columns, "mean", "seeds"),
        tuple(rows),
        data=data,
        unranked=oracle,
        notes=("Selected on the test data: not ranked.",) if oracle else (),
    )


def by_domain(tables: Sequence[Table], split: str, scores: Scores, data: Mapping[str, str]) -> Grid:
    """Methods by protocols and galleries of one query domain or transfer."""
    asked = [table for table in tables if table.leads and split in table.columns]
    rows = [{row.label: row for row in table.rows} for table in asked]
    lines = []
    for label in dict.fromkeys(label for of_table in rows for label in of_table):
        own = [of_table.get(label) for of_table in rows]
        floor = any(row.floor for row in own if row)
        cells = [name_cell(label, floor=floor, oracle=asked[0].setting.select == "oracle")]
        for table, row in zip(asked, own, strict=True):
            score = row.scores[split] if row else Score(None, status="missing")
            mark = EXTENSION if row and row.extension and score.value is not None else ""
            cells.append(score_cell(score, scores.of(table, split, label), mark))
        lines.append(Row(tuple(cells), next(row.method for row in own if row), "floor" if floor else ""))
    word = "Transfer" if asked and all(leaderboard.is_transfer(table.protocol) for table in asked) else "Query domain"
    head = ("method", *(f"{question_title(table)}: {table.metric}" for table in asked))
    return Grid(f"{word} {split}: leading metrics in percent", head, tuple(lines), data=data)


# --------------------------------------------------------------------------------------------------------------------
# Tests, ranks, selection on test data
# --------------------------------------------------------------------------------------------------------------------


def tests(tables: Sequence[Table], scores: Scores, comparison: Comparison | None, setting: Setting) -> list[Grid]:
    """Pairs of methods on the mean of each leading metric, ranks by protocol, and what oracle selection adds."""
    made = []
    leading = {(table.protocol, table.gallery): table.metric for table in tables if table.leads}
    lines = []
    if len(scores.pairs):
        for one in scores.pairs[scores.pairs["split"] == ALL].to_dict("records"):
            if leading.get((one["protocol"], one["gallery"])) != one["metric"]:
                continue
            p = one["p_holm"]
            verdict = "separable" if p <= 0.05 else "not separable"
            interval = f"[{percent(one['low'])}, {percent(one['high'])}]"
            cells = (
                Cell(f"{protocol_title(one['protocol'])} {one['gallery']}"), Cell(one["metric"]),
                Cell(one["a"]), Cell(one["b"]),
                Cell(f"+{percent(one['difference'])}", 100 * one["difference"], "number", small=interval),
                Cell(_p(one["p"]), one["p"], "number"), Cell(_p(p), p, "number"),
                Cell(verdict, kind="" if p <= 0.05 else "none"),
                Cell(f"{one['classes']} / {one['queries']}", one["classes"], "number"),
            )  # fmt: skip
            lines.append(Row(cells, f"{one['a']} {one['b']}"))
    if lines:
        head = ("question", "metric", "better", "worse", "difference, 95 % bootstrap", "p", "p (Holm)", "at 5 %",
                "classes / queries")  # fmt: skip
        note = "Paired on the same queries, whole classes swapped (randomisation) or drawn (bootstrap)."
        made.append(
            Grid("All pairs, on the mean over domains", head, tuple(lines), "texts", notes=(note,), search=True)
        )
    if len(scores.ranks):
        made.append(_ranks(scores.ranks))
    inflation = pd.DataFrame() if comparison is None else of_setting(comparison.inflation, setting, ("select",))
    if len(inflation) and setting.select in ("val", "oracle"):
        made.append(_inflation(inflation, leading))
    return made


def _p(p: float) -> str:
    return "-" if math.isnan(p) else f"{p:.3f}" if p >= 0.001 else f"{p:.1e}"


def _ranks(ranks: pd.DataFrame) -> Grid:
    protocols = list(dict.fromkeys(ranks["protocol"]))
    rows = []
    for label, own in ranks.groupby("label", sort=False):
        by = {one["protocol"]: one for one in own.to_dict("records")}
        floor = bool(own["floor"].iloc[0])
        cells = (name_cell(str(label), floor=floor), *(_rank_cell(by.get(protocol)) for protocol in protocols))
        rows.append(Row(cells, str(own["method"].iloc[0]), "floor" if floor else ""))
    head = ("method", *("all" if protocol == ALL else protocol_title(protocol) for protocol in protocols))
    return Grid("Mean ranks (1 is best), with 95 % bootstrap intervals over query domains", head, tuple(rows))


def _inflation(inflation: pd.DataFrame, leading: Mapping[tuple[str, str], str]) -> Grid:
    rows = []
    for one in inflation[inflation["split"] == ALL].to_dict("records"):
        if leading.get((one["protocol"], one["gallery"]), one["metric"]) != one["metric"]:
            continue
        gained = one["inflation"]
        interval = "" if math.isnan(one["low"]) else f"[{percent(one['low'])}, {percent(one['high'])}]"
        missing = "; ".join(one["missing"])
        cells = (
            Cell(one["label"]), Cell(f"{protocol_title(one['protocol'])} {one['gallery']}: {one['metric']}"),
            Cell(percent(one["val"]), _or_none(one["val"], 100)),
            Cell(percent(one["oracle"]), _or_none(one["oracle"], 100), tags=("unranked",)),
            Cell("-" if math.isnan(gained) else f"{100 * gained:+.1f}", _or_none(gained, 100), small=interval,
                 note=missing),
            Cell(str(one["seeds"]), one["seeds"]),
        )  # fmt: skip
        rows.append(Row(cells, one["method"]))
    head = ("method", "question", "selected on validation", "oracle (on test)", "inflation", "seeds")
    return Grid("How much selecting on the test data adds (percentage points)", head, tuple(rows))


def _or_none(value: float, factor: float = 1) -> float | None:
    return None if math.isnan(value) else factor * value


# --------------------------------------------------------------------------------------------------------------------
# Cost, failures, extensions
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Cost:
    """What a method cost in one setting; seconds are means: of a fit, of a search, of a cell's other phases."""

    label: str
    method: str
    floor: bool
    trainable: int | None
    total: int | None
    seconds: Mapping[str, float]
    pictures_per_second: float | None
    memory: float | None
    gpu_memory: float | None
    fits: int
    cells: int

    @property
    def training_seconds(self) -> float:
        """Seconds of a search and a fit; 0 for methods that train nothing."""
        return self.seconds.get("fit", 0.0) + self.seconds.get("search", 0.0) if self.trainable else 0.0


def costs(rows: pd.DataFrame, labels: Mapping[Any, str], records: Mapping[str, Record]) -> list[Cost]:
    """One entry a method and config, from the records of its cells; a fit that several cells share counts once."""
    made = []
    for identity, own in rows.groupby(["method", "variant", "config"], sort=False):
        found = [records[key] for key in dict.fromkeys(own["key"]) if key in records and records[key].status == "ok"]
        if not found:
            continue
        seconds: dict[str, float] = {}
        fits = {(one.fit.fit_id, one.cell.seed): one for one in found}
        for phase in ("fit", "search"):
            values = [one.cost.seconds[phase] for one in fits.values() if phase in one.cost.seconds]
            if values:
                seconds[phase] = statistics.fmean(values)
        for phase in ("encode", "rank", "classify"):
            values = [one.cost.seconds[phase] for one in found if phase in one.cost.seconds]
            if values:
                seconds[phase] = statistics.fmean(values)
        rates = [one.cost.pictures_per_second for one in found if one.cost.pictures_per_second]
        memory = [one.cost.peak_memory_mib for one in found if one.cost.peak_memory_mib is not None]
        gpu = [one.cost.peak_gpu_memory_mib for one in found if one.cost.peak_gpu_memory_mib is not None]
        trainable = [one.cost.trainable_parameters for one in found if one.cost.trainable_parameters is not None]
        total = [one.cost.total_parameters for one in found if one.cost.total_parameters is not None]
        made.append(
            Cost(
                labels[identity],
                str(identity[0]),
                bool(own["floor"].any()),
                max(trainable, default=None),
                max(total, default=None),
                seconds,
                statistics.median(rates) if rates else None,
                max(memory, default=None),
                max(gpu, default=None),
                len(fits),
                len(found),
            )
        )
    return made


def cost_grid(entries: Sequence[Cost]) -> Grid:
    """Parameters, seconds by phase, speed and memory."""
    gpu = any(one.gpu_memory is not None for one in entries)
    head = ["method", "trainable parameters", "all parameters", "fit (s)", "search (s)", "encode (s)", "rank (s)"]
    head += ["classify (s)", "images/s", "peak memory (MiB)", *(["peak GPU memory (MiB)"] if gpu else [])]
    head += ["fits", "cells"]
    rows = []
    for one in entries:
        cells = [name_cell(one.label, floor=one.floor), number(one.trainable), number(one.total)]
        trained = {"fit", "search"} if not one.trainable else set()
        for phase in ("fit", "search", "encode", "rank", "classify"):
            cells.append(Cell("-", kind="none") if phase in trained else number(one.seconds.get(phase)))
        cells += [number(one.pictures_per_second), number(one.memory), *([number(one.gpu_memory)] if gpu else [])]
        cells += [number(one.fits), number(one.cells)]
        rows.append(Row(tuple(replace(cell, kind=cell.kind.replace("number", "")) for cell in cells), one.method))
    notes = (
        "Means. fit: training one model, once for all cells that share it; search: training with every learning rate "
        "of the grid, once for all seeds; encode: images first needed by the cell; peak memory: of the process.",
    )
    return Grid("What a method costs", tuple(head), tuple(rows), notes=notes)


def failures(frame: pd.DataFrame) -> Grid | None:
    """Cells without a score, each with its reason; None if there are none."""
    found = leaderboard.failures(frame)
    if found.empty:
        return None
    rows = tuple(
        Row(tuple(Cell(str(value), kind="bad" if value == "failed" else "") for value in line), str(line[3]))
        for line in found.itertuples(index=False)
    )
    return Grid("Failed, skipped and not applicable cells", tuple(found.columns), rows, "texts", search=True)


def extensions(tables: Sequence[Table]) -> Grid | None:
    """What this suite decided where a paper is silent."""
    rows = tuple(Row(tuple(map(Cell, line)), line[0]) for line in leaderboard.extensions(tables))
    title = "Answers that a method's paper does not define, and what is done"
    return Grid(title, ("method", "protocols", "what is done"), rows, "texts") if rows else None


# --------------------------------------------------------------------------------------------------------------------
# Cards, settings, environment, published figures
# --------------------------------------------------------------------------------------------------------------------


def method_cards(cards: Sequence[Mapping[str, Any]]) -> Grid | None:
    """Method cards as a table."""
    rows = []
    for card in cards:
        name = _text(card, "name")
        venue = " ".join(part for part in (_text(card, "venue"), _text(card, "year")) if part not in ("", "0"))
        cells = (
            Cell(name, tags=("floor",) if card.get("floor") else ()),
            Cell(_text(card, "title"), link=_web(card.get("url"))),
            Cell(_text(card, "authors")), Cell(venue), Cell(_text(card, "trains")), Cell(_text(card, "similarity")),
            Cell(_text(card, "code_licence")), Cell(_text(card, "notes")),
        )  # fmt: skip
        rows.append(Row(cells, name))
    head = ("method", "paper", "authors", "venue", "what is trained", "similarity", "licence of the released code",
            "notes")  # fmt: skip
    return Grid("Method cards", head, tuple(rows), "texts") if rows else None


def deviations(cards: Sequence[Mapping[str, Any]]) -> Grid | None:
    """The discrepancy table: where a paper and its released code disagree, and what this suite does."""
    rows = []
    for card in cards:
        for one in card.get("deviations") or ():
            if isinstance(one, Mapping):
                switch = _text(one, "switch")
                ours = _text(one, "ours") or (f"both: --set {_text(card, 'name')}.{switch}=..." if switch else "")
                cells = (card.get("name"), one.get("topic"), one.get("paper"), one.get("released"), ours, switch)
                rows.append(Row(tuple(Cell(str(text or "")) for text in cells), _text(card, "name")))
    head = ("method", "topic", "paper", "released code", "here", "switch")
    title = "Where a paper and its released code disagree"
    return Grid(title, head, tuple(rows), "texts", search=True) if rows else None


def dataset_cards(cards: Sequence[Mapping[str, Any]]) -> list[Grid]:
    """A table a data set."""
    made = []
    for card in cards:
        headline = card.get("headline")
        lines: list[tuple[str, Any]] = [(key, card.get(key)) for key in ("title", "version", "source", "licence")]
        lines += [("gallery domain", card.get("gallery_domain")), ("layout", card.get("layout"))]
        if isinstance(headline, Mapping):
            at, precision = headline.get("map_at"), headline.get("precision_at")
            cut = f"map@{'all' if at is None else at}, {'recall@1' if precision is None else f'p@{precision}'}"
            lines.append(("leading figures", cut))
        problems = card.get("known_problems")
        lines.append(("known problems", "; ".join(map(str, problems)) if isinstance(problems, list) else problems))
        rows = tuple(Row((Cell(key), Cell(str(value)))) for key, value in lines if value)
        made.append(Grid(f"Data set card: {_text(card, 'name')}", ("about", "value"), rows, "texts"))
    return made


def data_used(records: Sequence[Record]) -> Grid | None:
    """What of each data set was read, and how many files of which kind were left out."""
    rows = tuple(Row(tuple(map(Cell, line))) for line in leaderboard.data_used(records))
    return (
        Grid("What was read of the data, and what was left out", leaderboard.DATA_USED, rows, "texts") if rows else None
    )


def bibtex(cards: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Name and entry of every card that has one."""
    return [(_text(card, "name"), _text(card, "bibtex")) for card in cards if card.get("bibtex")]


def settings_tables(records: Sequence[Record], resolved: Mapping[str, Any]) -> list[Grid]:
    """The last run's settings, what each method ran with, and where."""
    made = []
    if resolved:
        rows = tuple(Row((Cell(str(key)), Cell(_shown(value)))) for key, value in resolved.items())
        made.append(Grid("Settings of the last run", ("option", "value"), rows, "texts"))
    configs: dict[tuple[str, str, str], list[Record]] = {}
    for record in records:
        config = json.dumps(record.cell.config, sort_keys=True)
        configs.setdefault((record.cell.method, record.cell.variant, config), []).append(record)
    rows = tuple(
        Row(
            (
                Cell(method), Cell(variant),
                Cell(", ".join(f"{key}={_shown(value)}" for key, value in json.loads(config).items()) or "-"),
                Cell(", ".join(f"{rate:g}" for rate in sorted(_rates(own))) or "-"),
                Cell(", ".join(map(str, sorted({one.cell.seed for one in own})))),
                number(len(own)),
            ),
            method,
        )
        for (method, variant, config), own in sorted(configs.items())
    )  # fmt: skip
    head = ("method", "variant", "config", "learning rates picked", "seeds", "cells")
    made.append(Grid("What each method ran with", head, rows, "texts", search=True))
    places: dict[str, int] = {}
    for record in records:
        one = record.environment
        parts = [("device", one.device), ("threads", one.threads), *one.hardware.items(), *one.packages.items()]
        if one.device.startswith("cuda") and one.tf32 is not None:
            parts.insert(1, ("TF32", "on" if one.tf32 else "off"))
        commit = str(one.git.get("commit", ""))[:12] + (" (with local changes)" if one.git.get("dirty") else "")
        text = ", ".join(f"{key} {_shown(value)}" for key, value in [("code", commit), *parts] if value)
        places[text] = places.get(text, 0) + 1
    rows = tuple(Row((Cell(text or "-"), number(n))) for text, n in sorted(places.items(), key=lambda kv: -kv[1]))
    made.append(Grid("Where the cells ran", ("environment", "cells"), rows, "texts"))
    return made


def _rates(records: Iterable[Record]) -> set[float]:
    return {one.fit.learning_rate for one in records if one.fit.learning_rate is not None}


def published(table: pd.DataFrame) -> list[Grid]:
    """`benchmarks.reporting.published.beside`'s rows: those with a figure of ours first, then all others."""
    made = []
    known = table[table["ours"].notna()]
    rest = table[table["ours"].isna()]
    for title, part in (("With a figure of ours", known), ("Without", rest)):
        rows = []
        for one in part.to_dict("records"):
            std = one["published_std"]
            ours = f"ours: {one['label']}, {one['rules']} rules" if one["label"] else ""
            cells = (
                Cell(one["dataset"], small=" ".join((protocol_title(one["protocol"]), one["backbone"])).strip()),
                Cell(" ".join(p for p in (one["split"] or one["setting"], one["gallery"]) if p)),
                Cell(one["published_method"], small=ours),
                Cell(one["metric"] or one["published_metric"]),
                Cell(percent(one["published"]), 100 * one["published"], "number",
                     small="" if std is None or pd.isna(std) else f"± {100 * std:.1f}"),
                Cell(percent(one["ours"]), _or_none(one["ours"], 100), "number", tags=_oracle_tag(one)),
                Cell("-" if pd.isna(one["gap"]) else f"{100 * one['gap']:+.1f}", _or_none(one["gap"], 100), "number"),
                Cell(one["reason"]), Cell(one["source"], small=f"confidence: {one['confidence']}"),
            )  # fmt: skip
            rows.append(Row(cells, one["method"] or one["published_method"]))
        if rows:
            head = ("data set, protocol", "split, gallery", "method", "metric", "published", "ours", "gap",
                    "why, or what differs", "source")  # fmt: skip
            made.append(Grid(f"{title} ({len(rows)})", head, tuple(rows), "texts", search=True))
    return made


def _oracle_tag(one: Mapping[Any, Any]) -> tuple[str, ...]:
    return ("oracle",) if one["select"] == "oracle" else ()


def _text(card: Mapping[str, Any], key: str) -> str:
    value = card.get(key)
    return "" if value is None else str(value)


def _web(address: Any) -> str:
    """An address only if a click on it opens a web page and runs nothing."""
    text = str(address or "")
    return text if text.startswith(("https://", "http://")) else ""


def _shown(value: Any) -> str:
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_shown(item)}" for key, item in value.items()) or "-"
    return "-" if value is None else str(value)


def numbered(values: Iterable[Any]) -> dict[Any, str]:
    """A number for each value, as the page's filters use: names never become part of markup or script."""
    return {value: str(place) for value, place in zip(dict.fromkeys(values), itertools.count(), strict=False)}
