"""faiss search gives the ranking engine's neighbours, order and scores."""

import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from benchmarks.evaluation import search as search_module
from benchmarks.evaluation.ranking import rank
from benchmarks.evaluation.search import search

SIMILARITIES = ["cosine", "sqeuclidean"]


@pytest.mark.parametrize("similarity", SIMILARITIES)
@pytest.mark.parametrize(("n_queries", "n_gallery", "k"), [(1, 1, 1), (3, 700, 10), (64, 3000, 100), (25, 40, 200)])
def test_equals_the_ranking_engine(similarity, n_queries, n_gallery, k):
    rng = np.random.default_rng(n_gallery)
    q = rng.standard_normal((n_queries, 24)).astype(np.float32) + 3
    g = rng.standard_normal((n_gallery, 24)).astype(np.float32) + 3
    g[: n_gallery // 4] = g[n_gallery // 2 : n_gallery // 2 + n_gallery // 4]  # duplicates: order by position
    want = rank(q, g, np.zeros(n_queries), np.zeros(n_gallery), similarity=similarity, top=k)
    got = search(q, g, k, similarity=similarity)
    assert got.ids.shape == got.scores.shape == (n_queries, min(k, n_gallery))
    np.testing.assert_array_equal(got.ids, want.top_ids)
    np.testing.assert_allclose(got.scores, want.top_scores, rtol=0, atol=1e-10)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_neighbours_closer_than_float32_can_tell_are_put_in_order(similarity):
    """Far from the origin a float32 distance loses the order of near neighbours; the second scoring restores it."""
    rng = np.random.default_rng(0)
    base = rng.standard_normal(64) * 50
    q = base[None] + np.zeros((30, 1))
    g = base + 1e-3 * np.arange(1, 26)[:, None] * rng.choice([-1, 1], 64)
    shuffled = rng.permutation(25)
    got = search(q, g[shuffled], 25, similarity="sqeuclidean")
    assert (shuffled[got.ids] == np.arange(25)).all()
    assert (np.diff(search(q, g, 25, similarity=similarity).scores) <= 0).all()


@settings(max_examples=40, deadline=None)
@given(
    hnp.arrays(np.float32, st.tuples(st.integers(1, 9), st.just(3)), elements=st.integers(-2, 2)),
    hnp.arrays(np.float32, st.tuples(st.integers(1, 50), st.just(3)), elements=st.integers(-2, 2)),
    st.integers(1, 60),
    st.sampled_from(SIMILARITIES),
)
def test_scores_are_the_best_there_are(q, g, k, similarity):
    got = search(q, g, k, similarity=similarity)
    if similarity == "cosine":
        unit = [x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-30) for x in (q, g)]
        scores = unit[0] @ unit[1].T
    else:
        scores = -((q[:, None] - g[None]) ** 2).sum(-1)
    np.testing.assert_allclose(got.scores, -np.sort(-scores, axis=1)[:, :k], rtol=0, atol=1e-6)
    for row in got.ids:
        assert len(set(row.tolist())) == len(row)


SCALES = [1e-160, 1e-30, 1e-8, 1e-3, 1.0, 1e3, 1e8, 1e30, 1e150]


@settings(max_examples=150, deadline=None)
@given(
    hnp.arrays(np.float64, st.tuples(st.integers(1, 6), st.just(3)), elements=st.integers(-3, 3)),
    hnp.arrays(np.float64, st.tuples(st.integers(1, 60), st.just(3)), elements=st.integers(-3, 3)),
    st.lists(st.sampled_from(SCALES), min_size=2, max_size=4),
    st.sampled_from([np.float32, np.float64]),
    st.integers(1, 70),
    st.sampled_from(SIMILARITIES),
)
def test_order_is_that_of_rank_at_every_length_and_with_ties(q, g, scales, kind, k, similarity):
    """Very long and very short embeddings side by side, duplicates (ties go by position), both types."""
    if kind is np.float32:
        scales = [scale for scale in scales if 1e-30 <= scale <= 1e30] or [1.0]
    q = (q * np.resize(scales, len(q))[:, None]).astype(kind)
    g = (g * np.resize(scales[::-1], len(g))[:, None]).astype(kind)
    try:
        want = rank(q, g, np.zeros(len(q)), np.zeros(len(g)), similarity=similarity, top=k)
    except ValueError as refused:  # squares that do not fit float64
        with pytest.raises(ValueError) as also:
            search(q, g, k, similarity=similarity)
        assert str(also.value) == str(refused)
        assert not 1e-150 < max(np.abs(q).max(), np.abs(g).max()) < 1e100
        return
    got = search(q, g, k, similarity=similarity)
    np.testing.assert_array_equal(got.ids, want.top_ids)
    np.testing.assert_array_equal(got.scores, want.top_scores)


@pytest.mark.parametrize("n", [33, 34, 35, 36, 56, 69, 500])
@pytest.mark.parametrize("k", [1, 2, 5])
def test_more_ties_than_candidates_still_go_by_position(n, k):
    """All gallery items but the last are equal: float32 scores may differ where the exact ones tie."""
    gallery = np.ones((n, 3), np.float32)
    gallery[-1, 0] = 0
    query = np.array([[0, 1, 1], [1, 1, 1]], np.float32)
    got = search(query, gallery, k)
    np.testing.assert_array_equal(got.ids[0], [n - 1, *range(k - 1)])
    np.testing.assert_array_equal(got.ids[1], range(k))
    want = rank(query, gallery, np.zeros(2), np.zeros(n), top=k)
    np.testing.assert_array_equal(got.scores, want.top_scores)


@pytest.mark.parametrize("scale", [1e155, 1e300])
def test_lengths_whose_squares_do_not_fit_are_an_error_in_both(scale):
    q, g = np.full((2, 3), scale), np.full((4, 3), -scale)
    with pytest.raises(ValueError) as ranked:
        rank(q, g, np.zeros(2), np.zeros(4), similarity="sqeuclidean", top=2)
    with pytest.raises(ValueError) as searched:
        search(q, g, 2, similarity="sqeuclidean")
    assert str(searched.value) == str(ranked.value)
    assert "\n" not in str(searched.value)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_batches_do_not_matter(similarity, monkeypatch):
    rng = np.random.default_rng(1)
    q, g = rng.standard_normal((50, 16)), rng.standard_normal((400, 16))
    whole = search(q, g, 9, similarity=similarity)
    monkeypatch.setattr(search_module, "_CANDIDATE_BYTES", 1)
    single = search(torch.from_numpy(q), torch.from_numpy(g), 9, similarity=similarity)
    np.testing.assert_array_equal(whole.ids, single.ids)
    np.testing.assert_array_equal(whole.scores, single.scores)


@pytest.mark.parametrize("similarity", SIMILARITIES)
def test_memory_does_not_grow_with_the_gallery(similarity):
    """Beside faiss's own copy, which is not traced: the gallery as float64 would be 37 MiB, its grid as much again."""
    rng = np.random.default_rng(2)
    q, g = rng.standard_normal((5, 16), np.float32), rng.standard_normal((300_000, 16), np.float32)
    tracemalloc.start()
    try:
        search(q, g, 10, similarity=similarity)
        peak = tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()
    assert peak < 12, f"peak {peak:.1f} MiB"


def test_errors_are_one_clear_line():
    q, g = np.ones((4, 8), np.float32), np.ones((6, 8), np.float32)
    broken = q.copy()
    broken[2, 3] = np.nan
    cases = [
        ((broken, g, 1), {}, r"^query has NaN or infinite values in 1 of 4 rows \(2\)$"),
        ((q, g[:, :5], 1), {}, "^query embeddings have 8 dimensions and gallery embeddings 5; encode both"),
        ((q, g[0], 1), {}, r"^gallery must be a matrix"),
        ((q, g[:0], 1), {}, "^the gallery is empty"),
        ((q, g, 0), {}, "^k=0 is not a number of neighbours"),
        ((q, g, 1), {"similarity": "l2"}, "^similarity='l2' is unknown; use 'cosine' or 'sqeuclidean'$"),
        ((q, np.array([["a"] * 8]), 1), {}, "^gallery must hold numbers"),
    ]
    for args, options, message in cases:
        with pytest.raises(ValueError, match=message):
            search(*args, **options)
