"""The search of a learning rate: laws on unimodal curves, and its way in a few cases worked out by hand."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.runner.rate_search import RateSearch, Trial, edge, next_rate, picked

papers = st.floats(1e-7, 10, allow_nan=False)
#: Decades from the paper's rate to the peak of a validation curve.
peaks = st.floats(-4, 4, allow_nan=False)
#: How steep the curve falls below and above its peak.
slopes = st.tuples(st.floats(0.05, 5), st.floats(0.05, 5))


def unimodal(paper: float, peak: float, slopes: tuple[float, float]) -> Callable[[float], float]:
    """A score that rises strictly up to the peak and falls strictly after it."""

    def score(rate: float) -> float:
        distance = math.log10(rate / paper) - peak
        return slopes[0] * distance if distance < 0 else -slopes[1] * distance

    return score


def carried_out(search: RateSearch, score: Callable[[float], float | None]) -> list[Trial]:
    trials: list[Trial] = []
    while (rate := next_rate(search, trials)) is not None:
        trials.append((rate, score(rate)))
    return trials


def half_decades(search: RateSearch) -> list[float]:
    """Rates of the search's range, a factor of sqrt(10) apart."""
    first, last = round(2 * math.log10(search.low)), round(2 * math.log10(search.high))
    return [search.paper * 10 ** (step / 2) for step in range(first, last + 1)]


@given(papers, peaks, slopes)
def test_a_unimodal_curve_is_climbed_to_the_half_decade(paper: float, peak: float, slopes: tuple[float, float]) -> None:
    search, score = RateSearch(paper), unimodal(paper, peak, slopes)
    trials = carried_out(search, score)
    assert len(trials) == 6, "the same number for every curve"
    rates = [rate for rate, _ in trials]
    assert len(set(rates)) == 6, "no rate is tried twice"
    low, high = search.range
    assert all(low <= rate <= high for rate in rates)
    best = picked(trials)
    assert best is not None
    grid = max(score(rate) for rate in half_decades(search))
    rounding = 0.005 * max(slopes)  # rates have three digits
    assert score(best) >= grid - rounding
    if abs(peak) < 1.75:
        assert edge(trials) == ""
        assert abs(math.log10(best / paper) - peak) <= 0.5 + 1e-2 or score(best) > grid - rounding
    elif abs(peak) >= 2:
        assert edge(trials) == ("low" if peak < 0 else "high")
        assert best == (low if peak < 0 else high)


@given(st.integers(-40, 40), slopes, st.integers(-5, 5))
def test_only_ratios_to_the_papers_rate_and_the_order_of_scores_count(
    tenths: int, slopes: tuple[float, float], shift: int
) -> None:
    peak = tenths / 10 + 0.037  # no two rates of the grid score alike, so no rounding decides
    one, other = RateSearch(1.0), RateSearch(10.0**shift)
    first = carried_out(one, unimodal(1.0, peak, slopes))
    second = carried_out(other, lambda rate: math.exp(unimodal(other.paper, peak, slopes)(rate)))
    assert [f"{rate * 10.0**shift:.3g}" for rate, _ in first] == [f"{rate:.3g}" for rate, _ in second]


@given(st.lists(st.none() | st.floats(0, 1), min_size=8, max_size=8), papers)
def test_any_scores_end_it_in_at_most_six_different_rates(scores: list[float | None], paper: float) -> None:
    search, answers = RateSearch(paper), iter(scores)
    trials = carried_out(search, lambda rate: next(answers))
    assert len({rate for rate, _ in trials}) == len(trials) <= 6
    assert [rate for rate, _ in trials[:3]] == [paper, float(f"{paper / 10:.3g}"), float(f"{paper * 10:.3g}")]
    for made in range(len(trials)):
        assert next_rate(search, trials[:made]) == trials[made][0], "a search that was stopped goes on as it would have"
    if any(score is not None for _, score in trials):
        assert len(trials) == 6


@given(papers, st.floats(1e-5, 0.1), st.floats(10, 1e5), st.integers(3, 12), peaks, slopes)
def test_a_wider_range_or_more_trials_are_kept_to(
    paper: float, low: float, high: float, trials: int, peak: float, slopes: tuple[float, float]
) -> None:
    search = RateSearch(paper, low, high, trials)
    made = carried_out(search, unimodal(paper, peak, slopes))
    assert len(made) <= trials
    for rate, _ in made:
        assert low * 0.994 <= rate / paper <= high * 1.006


def ratios(scores: dict[float, float | None]) -> list[float]:
    """Ratios tried in this order, given the scores by ratio."""
    return [float(f"{rate:.3g}") for rate, _ in carried_out(RateSearch(1.0), lambda rate: scores.get(rate, 0.0))]


def test_its_way_by_hand() -> None:
    assert ratios({1: 0.5, 0.1: 0.1, 10: 0.2, 3.16: 0.3}) == [1, 0.1, 10, 3.16, 0.316, 1.78], (
        "the better neighbour's side first"
    )
    assert ratios({1: 0.5, 0.1: 0.6, 10: 0.2, 0.01: 0.1}) == [1, 0.1, 10, 0.01, 0.316, 0.0316]
    assert ratios({1: 0.5, 0.1: 0.1, 10: 0.6, 100: 0.7}) == [1, 0.1, 10, 100, 31.6, 56.2], "the range ends at 100"
    assert ratios({1: 0.5, 0.1: 0.1, 10: 0.2, 3.16: 0.6}) == [1, 0.1, 10, 3.16, 1.78, 5.62]
    assert ratios({1: 0.5, 0.1: 0.1, 10: None, 3.16: None})[:5] == [1, 0.1, 10, 0.316, 3.16]


def test_where_every_trial_failed_lower_rates_are_tried() -> None:
    assert [rate for rate, _ in carried_out(RateSearch(1.0), lambda rate: None)] == [1, 0.1, 10, 0.01]
    saved = carried_out(RateSearch(1.0), lambda rate: 0.3 if rate < 0.05 else None)
    assert [rate for rate, _ in saved][3:] == [0.01, 0.0316, 0.0178]
    assert (picked(saved), edge(saved)) == (0.01, "low")


def test_ties_go_to_the_rate_that_was_tried_first() -> None:
    trials = carried_out(RateSearch(1e-3), lambda rate: 0.25)
    assert picked(trials) == 1e-3
    assert edge(trials) == ""
    assert picked([(1.0, None), (0.1, 0.5), (10.0, 0.5)]) == 0.1
    assert picked([(1.0, None)]) is None


def test_a_rate_beyond_which_training_failed_is_no_edge() -> None:
    assert edge([(1.0, 0.5), (0.1, 0.2), (10.0, None)]) == ""
    assert edge([(1.0, 0.5), (0.1, 0.6), (10.0, None)]) == "low"
    assert edge([(1.0, 0.5)]) == ""


@pytest.mark.parametrize("values", [(0.0,), (-1.0,), (math.inf,), (1.0, 0.5), (1.0, 0.01, 5), (1.0, 0.01, 100, 2)])
def test_what_cannot_be_searched_is_said(values: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="search"):
        RateSearch(*values)  # type: ignore[arg-type]


def test_the_paper_is_never_rounded() -> None:
    paper = 0.000123456
    assert next_rate(RateSearch(paper), []) == paper
    assert all(a != b for a, b in itertools.pairwise(rate for rate, _ in carried_out(RateSearch(paper), lambda r: r)))
