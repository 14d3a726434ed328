"""Presets: how much a run spends, as data.

A preset never names a method. ``steps`` replaces the field of that name in a method's ``Config`` where that config has
it, and ``learning_rates`` are tried in place of its ``learning_rate``; ``limit`` and ``splits`` make a run small for
all methods alike. ``--set`` wins over the preset, the preset over a named variant.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Preset:
    """One budget, the same for every method.

    * ``steps``: optimiser steps of a trained method in all; 0 leaves each method its own (paper's) schedule.
    * ``learning_rates``: fixed grid; each is tried with the whole budget and the validation task picks one. Empty takes
      the configured rate.
    * ``limit``: as ``--limit``, pictures in training, query and gallery; None takes all.
    * ``splits``: query domains (or transfers) of each protocol, in the protocol's order; None takes all.
    """

    name: str
    summary: str
    steps: int
    learning_rates: tuple[float, ...] = ()
    limit: int | None = None
    splits: int | None = None

    def changes(self, config: type) -> dict[str, Any]:
        """What the preset changes in this ``Config`` class."""
        return {"steps": self.steps} if has_field(config, "steps") else {}


def has_field(config: type, name: str) -> bool:
    """Whether a ``Config`` class has a field of this name."""
    return any(field.name == name for field in dataclasses.fields(config))


PRESETS: Mapping[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("smoke", "proves that it works (90 seconds); its scores mean nothing", 4, limit=128, splits=2),
        Preset("quick", "a first look (10 minutes for all methods on two cores)", 60),
        Preset("standard", "the committed reference: equal steps, rate from a fixed grid", 300, (1e-4, 1e-3, 1e-2)),
        Preset("full", "the papers' own schedules", 0),
    )
}
