"""The float32 screen changes no figure: every column is that of exact rows to the last bit."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.evaluation import ranking, screening
from benchmarks.evaluation.ranking import RetrievalScores, fixed_point, rank
from benchmarks.evaluation.screening import Float32Screen


@pytest.fixture(autouse=True)
def screen_always() -> Iterator[None]:
    """Small galleries are screened too, with any number of relevant items."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "_SCREEN_FROM", 1)
        patch.setattr(ranking, "_SCREEN_RELEVANT", 0)
        yield


def exactly(*arguments: Any, **options: Any) -> RetrievalScores:
    """`rank` without the screen."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ranking, "_SCREEN_FROM", 1 << 60)
        return rank(*arguments, **options)


def close_points(seed: int, n: int, d: int, classes: int, gap: float) -> tuple[Any, ...]:
    """Queries and a gallery in clusters of points that are equal, or ``gap`` apart; with labels."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((max(2, n // 4), d))
    gallery = centres[rng.integers(0, len(centres), n)] + gap * rng.integers(-1, 2, (n, d))
    query = centres[rng.integers(0, len(centres), 9)] + gap * rng.integers(-1, 2, (9, d))
    query[0] = 0
    return query, gallery, rng.integers(0, classes + 1, 9), rng.integers(0, classes, n)


def assert_same(one: RetrievalScores, other: RetrievalScores, *, columns: list[str] | None = None) -> None:
    assert set(columns or other.per_query_values) == set(one.per_query_values)
    for name, values in one.per_query_values.items():
        assert np.array_equal(values, other.per_query_values[name], equal_nan=True), name
    assert np.array_equal(one.n_relevant, other.n_relevant)
    for found, wanted in ((one.top_ids, other.top_ids), (one.top_scores, other.top_scores)):
        assert (found is None) == (wanted is None)
        assert found is None or np.array_equal(found, wanted)


@settings(max_examples=150)
@given(
    seed=st.integers(0, 2**32 - 1),
    n=st.integers(1, 400),
    d=st.sampled_from([1, 2, 7, 64, 300]),
    classes=st.integers(1, 12),
    gap=st.sampled_from([0.0, 1e-9, 3e-8, 1e-7, 1e-6, 1e-5, 1e-3, 0.5]),
    top=st.sampled_from([0, 1, 5]),
    cuts=st.lists(st.sampled_from([1, 2, 3, 10, 50, 500]), min_size=1, max_size=3, unique=True),
)
def test_every_figure_is_that_of_exact_rows(
    seed: int, n: int, d: int, classes: int, gap: float, top: int, cuts: list[int]
) -> None:
    points = close_points(seed, n, d, classes, gap)
    options: dict[str, Any] = {"ks": cuts, "recall_ks": cuts[:1], "top": top}
    wanted = exactly(*points, **options)
    assert_same(rank(*points, **options), wanted)
    without = [name for name in wanted.per_query_values if name != "ap@all"]
    assert_same(rank(*points, **options, whole=False), wanted, columns=without)
    assert_same(exactly(*points, **options, whole=False), wanted, columns=without)


@pytest.mark.parametrize("whole", [True, False])
def test_screening_is_used_and_settles_nearly_all(whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    scored: list[int] = []
    exact = Float32Screen.exact
    monkeypatch.setattr(Float32Screen, "exact", lambda self, q, ids: scored.append(len(ids)) or exact(self, q, ids))
    monkeypatch.setattr(ranking._Counter, "__call__", lambda *_: pytest.fail("an exact row was counted"))
    rng = np.random.default_rng(0)
    points = rng.standard_normal((20, 64)), rng.standard_normal((5000, 64))
    rank(*points, rng.integers(0, 500, 20), rng.integers(0, 500, 5000), whole=whole)
    assert 0 < sum(scored) < 20 * 400


@pytest.mark.parametrize("whole", [True, False])
def test_a_row_of_ties_is_scored_exactly(whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(screening, "MOST", 64)
    rng = np.random.default_rng(1)
    gallery = rng.standard_normal((300, 16))
    gallery[:200] = gallery[0]  # more ties than may be scored one by one
    query = np.concatenate([gallery[:1], rng.standard_normal((8, 16))])
    labels = rng.integers(0, 3, 9), rng.integers(0, 3, 300)
    options: dict[str, Any] = {"ks": (5,), "recall_ks": (1,), "whole": whole, "top": 3}
    assert_same(rank(query, gallery, *labels, **options), exactly(query, gallery, *labels, **options))
    same = np.ones((9, 16)), np.ones((300, 16))
    assert_same(rank(*same, *labels, **options), exactly(*same, *labels, **options))


@pytest.mark.parametrize("whole", [True, False])
def test_a_product_of_less_than_float32_is_noticed(whole: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    fill = Float32Screen.fill

    def rough(self: Float32Screen, out: Any, directions: Any) -> None:
        fill(self, out, directions)
        out.view(np.uint32)[:] &= 0xFFFF0000  # bfloat16

    monkeypatch.setattr(Float32Screen, "fill", rough)
    rng = np.random.default_rng(2)
    points = rng.standard_normal((50, 64)), rng.standard_normal((500, 64))
    labels = rng.integers(0, 20, 50), rng.integers(0, 20, 500)
    assert_same(rank(*points, *labels, ks=(10,), whole=whole), exactly(*points, *labels, ks=(10,), whole=whole))


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    d=st.sampled_from([1, 3, 64, 257, 1024]),
    block=st.sampled_from([1, 16, 256, 4096]),
    scale=st.sampled_from([1e-30, 1.0, 1e30]),
)
def test_the_error_bound_holds(seed: int, d: int, block: int, scale: float) -> None:
    rng = np.random.default_rng(seed)
    signs = np.abs if seed % 2 else np.asarray  # all of one sign is where sums lose most
    gallery, _ = fixed_point(scale * signs(rng.standard_normal((50, d))))
    query, _ = fixed_point(scale * signs(rng.standard_normal((5, d))))
    screen = Float32Screen(gallery, ranking.FIXED_POINT, block)
    found = np.empty((5, 50), np.float32)
    screen.fill(found, query)
    error = np.abs(found - (query @ gallery.T) * ranking.FIXED_POINT**-2)
    assert error.max() <= screen.error


def test_memory_stays_below_the_ceiling_with_a_screen() -> None:
    import tracemalloc

    rng = np.random.default_rng(3)
    points = rng.standard_normal((400, 64)).astype(np.float32), rng.standard_normal((6000, 64)).astype(np.float32)
    labels = rng.integers(0, 100, 400), rng.integers(0, 100, 6000)
    rank(points[0][:2], points[1], labels[0][:2], labels[1], memory_mib=64)
    tracemalloc.start()
    rank(*points, *labels, memory_mib=24)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 26 * 2**20


def test_nothing_asked_for_is_refused() -> None:
    with pytest.raises(ValueError, match="whole=False needs a cut"):
        rank(np.ones((2, 2)), np.ones((3, 2)), [0, 1], [0, 1, 1], ks=(), recall_ks=(), whole=False)
