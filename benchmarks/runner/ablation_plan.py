"""Ablations: each method as configured, then with one factor switched at a time.

A method's own table is its ``ablations`` (name to config changes); ``--grid`` adds levels of a
setting. Every row is an ordinary cell whose record names the factor; a sweep stores, resumes and shares it like any
other. The row of the default is the same record that ``benchmarks.run`` makes.
"""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from benchmarks.runner.presets import has_field
from benchmarks.runner.settings import Settings, SettingsError, config_changes, nearest, parse_value
from methods.registry import METHODS

if TYPE_CHECKING:
    from benchmarks.runner.plan import Arm
    from methods.interface import Method


@dataclass(frozen=True)
class AblationPlan:
    """The arms of each method, the default first, and why a method has none."""

    arms: Mapping[str, Sequence[Arm]]
    skipped: Mapping[str, str]


def plan_ablation(
    settings: Settings, factors: Sequence[str] = ("all",), grid: Sequence[str] = (), *, own_protocols: bool = False
) -> AblationPlan:
    """What to switch: the named ``factors`` of the methods' own tables (``all``, or ``none``), and ``KEY=V1,V2`` grids.

    An arm that changes nothing here (its value is already set) or repeats another is left out. With ``own_protocols``
    each method runs on the protocols its paper defines it on, else on the run's. Raises
    :class:`~benchmarks.runner.settings.SettingsError` for an unknown factor or key, or a value that the config refuses.
    """
    if not factors:
        raise SettingsError("--factors: name at least one, all, or none (with --grid)")
    if set(factors) == {"none"} and not grid:
        raise SettingsError("--factors none: switches nothing without --grid KEY=V1,V2; name factors, or add a --grid")
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
    given = config_changes(settings, {name: method.Config for name, method in methods.items()})
    arms: dict[str, list[Arm]] = {}
    for name, method in methods.items():
        own = {factor: changes for factor, changes in _table(method).items() if {"all", factor} & set(factors)}
        arms[name] = list(_arms(settings, name, method, given[name], {**own, **levels[name]}, own_protocols))
        if len(arms[name]) == 1:
            arms[name], skipped[name] = [], "nothing to switch"
    return AblationPlan(arms, skipped)


def _table(method: type[Method]) -> Mapping[str, Mapping[str, Any]]:
    table: Mapping[str, Mapping[str, Any]] = getattr(method, "ablations", {})
    return table


def _levels(
    settings: Settings, methods: Mapping[str, type[Method]], grid: Sequence[str]
) -> dict[str, dict[str, dict[str, Any]]]:
    """Named changes of each method from ``KEY=V1,V2``; a key without a method reaches all that have the setting."""
    levels: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in methods}
    configs = {name: method.Config for name, method in methods.items()}
    for item in grid:
        key, equals, values = item.partition("=")
        if not equals or not values:
            raise SettingsError(f"--grid {item}: write KEY=V1,V2, e.g. --grid pros.prompt_length=1,2,4")
        for level in _values(values):
            with_level = dataclasses.replace(settings, set=((key.strip(), level),))
            for name, changes in config_changes(with_level, configs, option="--grid").items():
                for setting, value in changes.items():
                    levels[name][f"{setting}={value}"] = {setting: value}
    return levels


def _values(text: str) -> list[Any]:
    """``V1,V2`` as a list: TOML literals (lists and quoted text may hold commas), else plain words."""
    try:
        values: list[Any] = tomllib.loads(f"values = [{text}]")["values"]
    except tomllib.TOMLDecodeError:
        values = [parse_value(word.strip()) for word in text.split(",")]
    return values


def _arms(
    settings: Settings,
    name: str,
    method: type[Method],
    given: Mapping[str, Any],
    table: Mapping[str, Mapping[str, Any]],
    own_protocols: bool,
) -> Iterator[Arm]:
    """The default (with the ``given`` changes of ``--set``), then one arm a factor of the table."""
    from benchmarks.runner.plan import Arm, make_config, picks_rates

    protocols = None
    if own_protocols:
        protocols = tuple(protocol for protocol in settings.protocols if protocol not in method.card.extensions)
    seen = []
    for factor, changes in {"": {}, **table}.items():
        try:
            config = make_config(method, settings, {**given, **changes})
        except ValueError as error:
            raise SettingsError(f"{name}, {factor}: {error}") from error
        named = has_field(method.Config, "learning_rate") and "learning_rate" in {**given, **changes}
        named &= picks_rates(settings)  # a named rate is another arm than one that the preset picks
        if (config, named) not in seen:
            seen.append((config, named))
            yield Arm(factor, changes, protocols)
