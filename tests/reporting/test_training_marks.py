"""What the report says of training: fits that still rise, rates at an edge, convergence curves."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.reporting import plots
from benchmarks.reporting.data import ReportData, validation_curve
from benchmarks.reporting.markdown import leaderboard_markdown
from benchmarks.reporting.plot_collector import PlotCollector, draw_setting
from benchmarks.store.files import ResultStore
from benchmarks.store.frame import load_results
from benchmarks.store.records import Fit
from tests.reporting.conftest import add, retrieval_table


def put(store: ResultStore, method: str, scores: list[float], **fit: Any) -> None:
    """A record of a fit with these validation scores; ``split`` and ``seed`` besides fields of the fit."""
    cell = {name: fit.pop(name) for name in ("split", "seed", "protocol") if name in fit}
    record = add(store, method, retrieval_table("line", 0.5, 1), trainable=9, **cell)
    curve = [{"step": 10 * place, "score": score} for place, score in enumerate(scores, start=1)]
    changed = dataclasses.replace(record.fit, validation=curve, **fit)
    store.write(dataclasses.replace(record, fit=changed), retrieval_table("line", 0.5, 1))


def test_the_column_counts_what_rises_and_marks_edges(store: ResultStore) -> None:
    put(store, "slow", [0.1, 0.2], split="line", convergence="rising", edge="high")
    put(store, "slow", [0.2, 0.1], split="pixel", convergence="converged")
    put(store, "done", [0.2, 0.1], split="line", convergence="converged")
    put(store, "done", [0.2, 0.1], split="pixel", convergence="converged")
    put(store, "fixed", [0.2, 0.1], split="line", edge="low")
    add(store, "frozen", retrieval_table("line", 0.5, 1), split="line")
    text = leaderboard_markdown(ReportData(load_results(store.root), store=store))
    rows = [line for line in text.splitlines() if line.count("|") == 7]
    assert rows[0].endswith("| seeds | training |")
    ends = {line.split("|")[1].strip(): line.split("|")[-2].strip() for line in rows[2:]}
    assert ends["slow"] == "rising 1 of 2, rate highest tried"
    assert ends["done"] == ends["frozen"] == ""
    assert ends["fixed"] == "rate lowest tried"
    assert "Training: fits whose validation still rose" in text


def test_a_fit_that_serves_several_splits_counts_once(store: ResultStore) -> None:
    for split in ("line", "pixel", "glyph"):
        put(store, "shared", [0.1, 0.2], split=split, fit_id="of all", convergence="rising")
    text = leaderboard_markdown(ReportData(load_results(store.root), store=store))
    assert "| rising 1 of 1 |" in text


def test_records_that_do_not_tell_have_no_such_column(store: ResultStore) -> None:
    put(store, "old", [0.1, 0.2])
    text = leaderboard_markdown(ReportData(load_results(store.root), store=store))
    assert "training" not in text.lower()


def test_there_is_a_plot_of_convergence_for_each_protocol(store: ResultStore, tmp_path: Path) -> None:
    for protocol in ("ucdr", "uccdr"):
        put(store, "a", [0.1, 0.3, 0.2], protocol=protocol)
        put(store, "b", [0.2, 0.2, 0.4], protocol=protocol)
    put(store, "one", [0.2], protocol="udcdr")
    data = ReportData(load_results(store.root), store=store)
    (setting,) = data.settings
    assert set(setting.validations) == {"ucdr", "uccdr"}, "one score is no curve"
    assert setting.validations["ucdr"]["a"] == [[(10, 0.1), (20, 0.3), (30, 0.2)]]
    drawn = draw_setting(setting, PlotCollector(tmp_path, data.warn)).finished().plots
    made = {plot.protocol: plot for plot in drawn if plot.title.endswith("convergence")}
    assert set(made) == {"ucdr", "uccdr"}
    for protocol, plot in made.items():
        assert [file.name for file in plot.files] == [f"convergence-{protocol}.svg", f"convergence-{protocol}.png"]
        assert all(file.stat().st_size > 1000 for file in plot.files)
    assert data.problems == []


def test_two_rates_on_the_same_data_are_two_fits(store: ResultStore) -> None:
    put(store, "a", [0.1, 0.3], learning_rate=0.1, fit_id="same")
    put(store, "a", [0.2, 0.4], learning_rate=0.2, fit_id="same", protocol="udcdr")
    put(store, "b", [0.1, 0.3], learning_rate=0.1, fit_id="same")
    put(store, "b", [0.1, 0.3], learning_rate=0.1, fit_id="same", protocol="udcdr")
    (setting,) = ReportData(load_results(store.root), store=store).settings
    assert {label: len(records) for label, records in setting.fits.items()} == {"a": 2, "b": 1}
    assert {one.label: one.fits for one in setting.costs} == {"a": 2, "b": 1}


@pytest.mark.parametrize("bad", [{}, {"step": 20}, {"step": 20, "score": None}, {"step": 20, "score": float("nan")}])
def test_a_score_that_is_none_is_left_out(bad: dict[str, Any], store: ResultStore) -> None:
    record = add(store, "a", retrieval_table("line", 0.5, 1))
    curve = [{"step": 10, "score": 0.5}, bad, {"step": 30, "score": 0.25}]
    assert validation_curve(dataclasses.replace(record, fit=Fit(validation=curve))) == [(10, 0.5), (30, 0.25)]


def test_the_best_so_far_is_kept_by_fits_that_ended_early() -> None:
    long, short, late = [(10, 0.2), (20, 0.1), (30, 0.5)], [(10, 0.4), (20, 0.3)], [(20, 0.1), (30, 0.3)]
    steps, means = plots.best_so_far([long, short])
    assert (steps, means) == ([10, 20, 30], pytest.approx([0.3, 0.3, 0.45]))
    steps, means = plots.best_so_far([long, late])
    assert (steps, means) == ([20, 30], pytest.approx([0.15, 0.4]))


@given(st.lists(st.lists(st.floats(0, 1), min_size=2, max_size=6), min_size=1, max_size=4))
def test_the_best_so_far_never_falls_and_ends_at_the_mean_of_the_best(scores: list[list[float]]) -> None:
    curves = [list(enumerate(own, start=1)) for own in scores]
    _, means = plots.best_so_far(curves)
    assert all(a <= b + 1e-12 for a, b in itertools.pairwise(means))
    assert means[-1] == pytest.approx(sum(max(own) for own in scores) / len(scores))
