"""Ablations: each method as configured, then with one factor switched at a time.

A method's own table is its ``ablations`` (name to config changes, METHODS: "Ablations"); ``--grid`` adds levels of a
setting. Every row is an ordinary cell whose record names the factor, so a sweep stores, resumes and shares it like any
other: the row of the default is the very record that ``benchmarks.run`` makes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.settings import Settings, SettingsError, config_changes, nearest, parse_value
from methods.registry import METHODS

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from benchmarks.sweep import Arm
    from methods.interface import Method


@dataclass(frozen=True)
class Ablation:
    """The arms of each method, the default first, and why a method has none."""

    arms: Mapping[str, Sequence[Arm]]
    skipped: Mapping[str, str]


def ablation(
    settings: Settings, factors: Sequence[str] = ("all",), grid: Sequence[str] = (), *, own_protocols: bool = False
) -> Ablation:
    """What to switch: the named ``factors`` of the methods' own tables (``all``, or ``none``), and ``KEY=V1,V2`` grids.

    An arm that changes nothing here (its value is already set) or repeats another is left out. With ``own_protocols``
    each method runs on the protocols its paper defines it on, else on the run's. Raises
    :class:`~benchmarks.settings.SettingsError` for an unknown factor or key, or a value that the config refuses.
    """
    methods: dict[str, type[Method]] = {}
    skipped: dict[str, str] = {}
    for name in settings.methods:
        try:
            methods[name] = METHODS.get(name)
        except ImportError:  # the plan gives it a row
            continue
    known = {factor for method in methods.values() for factor in _table(method)}
    for factor in factors:
        if factor not in {"all", "none", *known}:
            raise SettingsError(f"--factors: no method of this run has {factor!r}; {nearest(factor, known | {'none'})}")
    levels = _levels(settings, methods, grid)
    arms: dict[str, list[Arm]] = {}
    for name, method in methods.items():
        own = {factor: changes for factor, changes in _table(method).items() if {"all", factor} & set(factors)}
        arms[name] = list(_arms(settings, name, method, {**own, **levels[name]}, own_protocols))
        if len(arms[name]) == 1:
            arms[name], skipped[name] = [], "nothing to switch"
    return Ablation(arms, skipped)


def _table(method: type[Method]) -> Mapping[str, Mapping[str, Any]]:
    table: Mapping[str, Mapping[str, Any]] = getattr(method, "ablations", {})
    return table


def _levels(
    settings: Settings, methods: Mapping[str, type[Method]], grid: Sequence[str]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Named changes of each method from ``KEY=V1,V2``; a key without a method reaches all that have the setting."""
    found: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in methods}
    configs = {name: method.Config for name, method in methods.items()}
    for item in grid:
        key, equals, values = item.partition("=")
        if not equals or not values:
            raise SettingsError(f"--grid {item}: write KEY=V1,V2, e.g. --grid pros.prompt_length=1,2,4")
        for text in values.split(","):
            one = dataclasses.replace(settings, set=((key.strip(), parse_value(text.strip())),))
            for name, changes in config_changes(one, configs).items():
                for setting, value in changes.items():
                    found[name][f"{setting}={value}"] = {setting: value}
    return found


def _arms(
    settings: Settings, name: str, method: type[Method], table: Mapping[str, Mapping[str, Any]], own_protocols: bool
) -> Iterator[Arm]:
    from benchmarks.sweep import Arm, make_config

    protocols = None
    if own_protocols:
        protocols = tuple(one for one in settings.protocols if one not in method.card.extensions)
    given = config_changes(settings, {other: METHODS.get(other).Config for other in settings.methods})[name]
    seen = []
    for factor, changes in {"": {}, **table}.items():
        try:
            config = make_config(method, settings, {**given, **changes})
        except ValueError as error:
            raise SettingsError(f"{name}, {factor}: {error}") from error
        if config not in seen:
            seen.append(config)
            yield Arm(factor, changes, protocols)


@dataclass(frozen=True)
class AblationTable:
    """A method's ablation: one row an arm, the default first; ``head`` names protocol, gallery and metric."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def ablation_tables(frame: pd.DataFrame) -> Iterator[AblationTable]:
    """Means over query domains (or transfers) and seeds of every arm in percent, and the difference to the default."""
    from benchmarks.reporting.leaderboard import protocol_title, settings_of, tables

    for setting in settings_of(frame):
        for method in frame.loc[frame["ablation"] != "", "method"].unique():
            of_method = frame[frame["method"] == method]
            columns: list[str] = []
            found: dict[str, dict[str, Any]] = {}
            names = sorted(of_method["ablation"].unique(), key=lambda name: name != "")
            for name in names:
                for table in tables(of_method[of_method["ablation"] == name], setting):
                    if table.leads and table.rows:
                        column = f"{protocol_title(table.protocol)} {table.gallery} {table.metric}"
                        columns += [] if column in columns else [column]
                        found.setdefault(name, {})[column] = table.rows[0].mean
            rows = []
            for name, scores in found.items():
                shown = [name or "default"]
                for column in columns:
                    score, usual = scores.get(column), found.get("", {}).get(column)
                    text = score.text() if score else "-"
                    if name and score and usual and score.value is not None and usual.value is not None:
                        text += f" ({100 * (score.value - usual.value):+.1f})"
                    shown.append(text)
                rows.append(tuple(shown))
            if rows:
                yield AblationTable(f"{method}: {setting.title()}", ("switched", *columns), tuple(rows))


def print_ablations(console: Console, frame: pd.DataFrame) -> None:
    """Print a table a method, then what has no score."""
    from rich.table import Table

    from benchmarks.reporting.leaderboard import failures

    if len(frame):
        for one in ablation_tables(frame):
            table = Table(title=one.title, title_justify="left", box=None, pad_edge=False)
            for number, head in enumerate(one.head):
                table.add_column(head, justify="right" if number else "left")
            for row in one.rows:
                table.add_row(*row)
            console.print()
            console.print(table, markup=False)
    for row in failures(frame).itertuples(index=False):
        line = f"{row.status}: {row.method} on {row.dataset}/{row.protocol}/{row.split}, seed {row.seed}: {row.reason}"
        console.print(line, style="red" if row.status == "failed" else "yellow", markup=False, highlight=False)
