"""Search of a learning rate around the one that a method's paper states: which rate to try next, given the scores.

Every trained method gets the same number of trials, on a grid in the logarithm of the rate whose centre is its own
paper's rate p. Trials 1 to 3 are p, p/10 and 10 p. Then, one at a time:

1. while the best rate so far is the lowest or highest tried, the next one beyond it, a factor of 10 away, if the range
   has it (p/100 to 100 p, unless a preset widens it);
2. else the middle, in the logarithm, between the best rate and the farther of the two rates tried next to it, of
   equally far ones the one with the better score: a factor of sqrt(10) from the best on both its sides, then closer.

The best rate is the one with the best validation score, the first tried if several are equal; a trial that failed has
no score and is worse than any other. Where all trials failed, lower rates are tried: what runs away at a rate need not
at a tenth of it.

:func:`next_rate` is a function of its arguments alone, so a search that was stopped goes on with its trials.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

#: A rate that was tried, and its validation score (higher is better; None if the trial failed).
Trial = tuple[float, float | None]

#: Where in its range a picked rate is: inside, or at an end.
Edge = Literal["", "low", "high"]

#: Steps of the finest grid in a decade; half as many are a factor of sqrt(10).
_DECADE = 16

#: Steps from the paper's rate of the first trials.
_START = (0, -_DECADE, _DECADE)


@dataclass(frozen=True)
class RateSearch:
    """A search to make: the ``paper``'s rate, the range as factors of it, and the number of trials.

    Raises ``ValueError`` for a rate that is not above 0, a range that does not hold the first trials, or fewer trials
    than these.
    """

    paper: float
    low: float = 0.01
    high: float = 100.0
    trials: int = 6

    def __post_init__(self) -> None:
        if not 0 < self.paper < math.inf:
            raise ValueError(f"a search needs a learning rate above 0 to start from, not {self.paper!r}")
        if not (0 < self.low <= 0.1 and 10 <= self.high < math.inf):
            raise ValueError(
                f"a search tries a tenth and ten times the rate: {self.low:g} to {self.high:g} is too narrow"
            )
        if self.trials < len(_START):
            raise ValueError(f"a search begins with {len(_START)} trials, not {self.trials}")

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and the highest rate that may be tried."""
        return self._rate(self._lowest), self._rate(self._highest)

    @property
    def _lowest(self) -> int:
        return math.ceil(_DECADE * math.log10(self.low) - 1e-9)

    @property
    def _highest(self) -> int:
        return math.floor(_DECADE * math.log10(self.high) + 1e-9)

    def _rate(self, step: int) -> float:
        """The rate at a step of the grid from the paper's, in three digits; the paper's as it is."""
        return self.paper if step == 0 else float(f"{self.paper * 10 ** (step / _DECADE):.3g}")

    def _step(self, rate: float) -> int:
        return round(_DECADE * math.log10(rate / self.paper))


def next_rate(search: RateSearch, trials: Sequence[Trial]) -> float | None:
    """The rate to try after these ``trials``, in the order made; None when the search is done."""
    if len(trials) >= search.trials:
        return None
    if len(trials) < len(_START):
        return search._rate(_START[len(trials)])
    scores = {search._step(rate): -math.inf if score is None else score for rate, score in trials}
    best = max(scores, key=lambda step: scores[step])  # the first of equal ones
    if scores[best] == -math.inf:
        best = min(scores)
    step = _beyond(search, best, scores)
    if step is None and scores[best] > -math.inf:
        step = _between(best, scores)
    return None if step is None else search._rate(step)


def _beyond(search: RateSearch, best: int, scores: dict[int, float]) -> int | None:
    """The step that extends the tried rates where the best is their lowest or highest; None if the range ends."""
    if best == min(scores) and best > search._lowest:
        return max(best - _DECADE, search._lowest)
    if best == max(scores) and best < search._highest:
        return min(best + _DECADE, search._highest)
    return None


def _between(best: int, scores: dict[int, float]) -> int | None:
    """The step in the middle of the best and its widest neighbour, of equally wide ones the better; None if none is."""
    below = max((step for step in scores if step < best), default=best)
    above = min((step for step in scores if step > best), default=best)
    sides = sorted((below, above), key=lambda side: (abs(side - best), scores[side]), reverse=True)
    return next(((best + side) // 2 for side in sides if abs(side - best) > 1), None)


def picked(trials: Sequence[Trial]) -> float | None:
    """The rate with the best score, the first tried of equal ones; None if no trial has a score."""
    known = [(rate, score) for rate, score in trials if score is not None]
    return max(known, key=lambda trial: trial[1])[0] if known else None


def edge(trials: Sequence[Trial]) -> Edge:
    """Whether the rate picked is the lowest or the highest of those tried, so that a better one may lie beyond it."""
    best = picked(trials)
    if best is None or len(trials) < 2:
        return ""
    rates = [rate for rate, _ in trials]
    return "low" if best == min(rates) else "high" if best == max(rates) else ""
