"""Presets: how much a run spends, as data.

A preset never names a method. Its budget fields (``steps``, ``learning_rate_trials``) replace the fields of the same
name in a method's ``Config`` where that config has them; ``limit`` and ``splits`` make a run small for all methods
alike. ``--set`` and a named variant's other fields still apply; ``--set`` wins over the preset.
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
    * ``learning_rate_trials``: learning rates tried on the validation task, 1 takes the configured one.
    * ``limit``: as ``--limit``, pictures in training, query and gallery; None takes all.
    * ``splits``: query domains (or transfers) of each protocol, in the protocol's order; None takes all.
    """

    name: str
    summary: str
    steps: int
    learning_rate_trials: int
    limit: int | None = None
    splits: int | None = None

    def changes(self, config: type) -> dict[str, Any]:
        """The budget fields that this ``Config`` class has, with the preset's values."""
        budget = {"steps": self.steps, "learning_rate_trials": self.learning_rate_trials}
        own = {field.name for field in dataclasses.fields(config)}
        return {name: value for name, value in budget.items() if name in own}


PRESETS: Mapping[str, Preset] = {
    preset.name: preset
    for preset in (
        Preset("smoke", "proves that it works (90 seconds); its scores mean nothing", 4, 1, limit=128, splits=2),
        Preset("quick", "a first look (10 minutes for all methods on two cores)", 60, 1),
        Preset("standard", "the committed reference: equal steps, learning rate from a fixed grid", 300, 3),
        Preset("full", "the papers' own schedules", 0, 1),
    )
}
