"""What plots are drawn from: places of labels, marks, training curves."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.reporting import plots
from benchmarks.reporting.plot_collector import mean_losses
from benchmarks.store.records import Fit
from tests.store.test_files import record


@given(st.lists(st.floats(0, 1), max_size=20), st.floats(0.001, 0.1))
def test_labels_keep_their_order_and_their_distance(places: list[float], gap: float) -> None:
    wanted = sorted(places)
    found = plots.spread(wanted, gap)
    assert len(found) == len(wanted)
    assert all(after - before >= gap - 1e-9 for before, after in itertools.pairwise(found))
    assert all(place >= -1e-9 for place in found)
    if all(after - before >= gap for before, after in itertools.pairwise(wanted)):
        assert found == pytest.approx(wanted), "nothing to move"


def test_labels_of_one_place_stand_around_it() -> None:
    assert plots.spread([0.5, 0.5, 0.5], 0.1) == pytest.approx([0.4, 0.5, 0.6])
    assert plots.spread([0.5, 0.5, 0.62], 0.1) == pytest.approx([0.44, 0.54, 0.64])
    assert plots.spread([0.0, 0.0], 0.1) == pytest.approx([0.0, 0.1]), "not below the axes"


def test_no_two_methods_share_colour_and_shape() -> None:
    marks = plots._marks([f"method {number}" for number in range(56)])
    assert len(set(marks.values())) == 56


def test_losses_stand_at_their_steps() -> None:
    few = record(fit=Fit("f", 3, 3, [{"step": step, "loss": 4.0 - step} for step in (1, 2, 3)]))
    assert mean_losses(few) == [(1.0, 3.0), (2.0, 2.0), (3.0, 1.0)]
    many = mean_losses(record(fit=Fit("f", 480, 480, [{"step": step, "loss": float(step)} for step in range(1, 481)])))
    assert len(many) == 20 and many[0][0] == 12.5 and many[-1][0] == 468.5, "means over 24 steps"
    assert all(step == loss for step, loss in many)
    assert mean_losses(record(fit=Fit("f", 1, 1, [{"step": 1, "loss": 1.0}]))) == []


def test_a_reader_of_a_plot_never_sees_half_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two shards may draw one report: a file there is the old one or the new one."""
    curves = {"one": [[(1.0, 2.0), (2.0, 1.0)]]}
    files = plots.loss_curves(curves, tmp_path)
    before = {file: file.read_bytes() for file in files}
    seen: list[bytes] = []
    whole = plots.write_atomically

    def noted(path: Path, data: bytes) -> None:
        seen.append(path.read_bytes())
        whole(path, data)

    monkeypatch.setattr(plots, "write_atomically", noted)
    assert plots.loss_curves(curves, tmp_path) == files
    assert seen == [before[file] for file in files], "untouched until the new one is whole"
    assert {file: file.read_bytes() for file in files} == before
