"""Where the learning rate of a fit comes from: set by name, tuned beforehand, a preset's grid, or its own search."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from benchmarks.recipes import paper_config
from benchmarks.runner.rate_search import RateSearch, Trial, next_rate
from benchmarks.runner.settings import Settings
from benchmarks.runner.tuned import RateQuestion, TunedRate

#: As in :class:`benchmarks.store.records.Fit`.
Source = Literal["config", "paper", "tuned", "grid", "search"]


@dataclass(frozen=True)
class RateChoice:
    """The learning rate of a fit, or how it is to be found.

    ``rates``: several are tried and validation picks one; one is taken as it is; none leaves the config's rate, or
    the ``search``. ``tuned`` is the search that found a tuned rate.
    """

    source: Source = "config"
    rates: tuple[float, ...] = ()
    search: RateSearch | None = None
    tuned: TunedRate | None = None

    @property
    def searched(self) -> bool:
        """Whether trials have to be made."""
        return self.search is not None or len(self.rates) > 1

    @property
    def trials(self) -> int:
        """How many at most."""
        return self.search.trials if self.search else len(self.rates)

    @property
    def shared(self) -> tuple[Any, ...]:
        """Equal for choices that one fitted model can serve."""
        return self.source, self.rates, self.search, self.tuned.outcome if self.tuned else ""

    def next(self, trials: list[dict[str, Any]]) -> float | None:
        """The rate to try after these trials (as in a record); None if there is none left."""
        if self.search is not None:
            return next_rate(self.search, outcomes(trials))
        return self.rates[len(trials)] if len(trials) < len(self.rates) else None

    def inputs(self) -> dict[str, Any]:
        """What of this determines a score (JSON-able), for the key of its record."""
        if self.search is None:
            return {"learning_rates": self.rates}
        one = self.search
        wanted = {"paper": one.paper, "low": one.low, "high": one.high, "trials": one.trials}
        return {"learning_rates": self.rates, "search": wanted}

    def rate_range(self) -> list[float]:
        """The lowest and highest rate that may be tried."""
        if self.search is not None:
            return list(self.search.range)
        return [min(self.rates), max(self.rates)] if len(self.rates) > 1 else []


def outcomes(trials: list[dict[str, Any]]) -> list[Trial]:
    """The trials of a record as rates and scores."""
    return [(trial["learning_rate"], trial.get("validation")) for trial in trials]


def choose(
    settings: Settings,
    method: str,
    config: Any,
    *,
    dataset: str,
    protocol: str,
    data_hash: str,
    version: int,
    fixed: bool,
    tuned: Mapping[RateQuestion, TunedRate],
) -> RateChoice:
    """Where a method's learning rate comes from on a protocol of a data set.

    ``fixed``: it has been set by name, or the config has none. Else ``--search`` wins over a preset's grid, and that
    over the ``tuned`` rates, which are of these very data (``data_hash``) and of this ``version`` of the method's code.
    A search is made around the paper's rate: its recipe's for the data set, else the config's.
    """
    preset = settings.budget
    if fixed:
        return RateChoice()
    if settings.search:
        paper = float(paper_config(method, dataset).get("learning_rate", config.learning_rate))
        if paper > 0:
            return RateChoice("search", search=RateSearch(paper, preset.range_low, preset.range_high, preset.trials))
        return RateChoice()
    if preset.learning_rates:
        return RateChoice("grid", preset.learning_rates)
    if not preset.tuned:
        return RateChoice()
    found = tuned.get((dataset, data_hash, protocol, method))
    if found is None or found.version != version:
        return RateChoice("paper")
    return RateChoice("tuned", (found.learning_rate,), tuned=found)
