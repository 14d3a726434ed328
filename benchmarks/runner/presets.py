"""Presets: how much a run spends, as data.

A preset never names a method. ``steps``, ``batch_size``, ``validations`` and ``patience`` set the fields of a method's
``Config`` that say the same, where that config has them; ``tuned`` and ``learning_rates`` say where its
``learning_rate`` comes from (:mod:`benchmarks.runner.rates`); ``limit`` and ``splits`` make a run small for all methods
alike. ``--set`` wins over the preset, the preset over a named variant.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Preset:
    """One budget, the same for every method.

    * ``steps``: optimiser steps of a trained method in all; 0 keeps each method's own (paper's) schedule.
    * ``batch_size``: labelled images a step at most (of every stage); 0 keeps each method's own.
    * ``validations``: how often in ``steps`` the validation task is scored, at equal distances; the best step is kept.
      0 keeps each method's own setting.
    * ``patience``: with ``validations``, after how many of them without gain training stops, for every method alike;
      0: never, so that all spend the same.
    * ``tuned``: the learning rate is the one that a search found beforehand for the backbone, data set, protocol and
      method (``benchmarks/presets/tuned``, :mod:`benchmarks.runner.tuned`), else the configured one, with a note.
    * ``range_low``, ``range_high``, ``trials``: of a search (``--search``, ``python -m benchmarks.tune``): the range as
      factors of the paper's rate, and the number of trials (:mod:`benchmarks.runner.rate_search`).
    * ``learning_rates``: fixed grid; each is tried with the whole budget and the validation task picks one, once for
      each training data, with seed 0, for all seeds. A grid of one rate sets it. Empty: no grid.
    * ``limit``: as ``--limit``, images in training, query and gallery; None takes all.
    * ``splits``: query domains (or transfers), in the protocol's order: so many of each protocol that is named; of one
      that is not named as many as "" says. Without "" it has all, as with None.
    """

    name: str
    summary: str
    steps: int
    batch_size: int = 0
    validations: int = 0
    patience: int = 0
    tuned: bool = False
    range_low: float = 0.01
    range_high: float = 100.0
    trials: int = 6
    learning_rates: tuple[float, ...] = ()
    limit: int | None = None
    splits: Mapping[str, int | None] = dataclasses.field(default_factory=dict)

    def splits_of(self, protocol: str) -> int | None:
        """How many query domains or transfers of a protocol run at most; None: all."""
        return self.splits.get(protocol, self.splits.get(""))

    def changes(self, config: type) -> dict[str, Any]:
        """What the preset changes in this ``Config`` class."""
        defaults: dict[str, Any] = {field.name: field.default for field in dataclasses.fields(config)}
        values: dict[str, Any] = {"steps": self.steps}
        if self.batch_size:
            values |= {
                name: min(defaults.get(name, 0), self.batch_size) for name in ("batch_size", "stage1_batch_size")
            }
        if self.validations:
            values |= {"validate_every": math.ceil(self.steps / self.validations), "patience": self.patience}
        return {name: value for name, value in values.items() if name in defaults}


def has_field(config: type, name: str) -> bool:
    """Whether a ``Config`` class has a field of this name."""
    return any(field.name == name for field in dataclasses.fields(config))


PRESETS: Mapping[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset(
            "smoke",
            "proves that it works (90 seconds); its scores mean nothing",
            steps=2,
            batch_size=8,
            validations=1,
            limit=256,
            splits={"": 1},
        ),
        Preset(
            "quick",
            "a first look: a few splits of each protocol, tuned rates (8 minutes for all methods on two cores)",
            steps=40,
            batch_size=32,
            validations=1,
            tuned=True,
            range_high=1000.0,
            splits={"": 2, "ucdr": 3, "udcdr": 3, "uccdr": None},  # UcCDR's splits share one fit
        ),
        Preset(
            "standard",
            "the committed reference: one cap of steps, one patience, tuned rates",
            steps=480,
            batch_size=32,
            validations=16,
            patience=3,
            tuned=True,
            range_high=1000.0,
        ),
        Preset("full", "each paper's own schedule, settings of each data set, backbone and protocols", steps=0),
    )
}
