"""The ranking engine against scikit-learn, naive loops, all orders of ties, laws, and the released code's numbers."""

import itertools
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import average_precision_score

from benchmarks.evaluation.ranking import RULES, rank, rank_scores
from tests.support.golden import golden_dir

GOLDEN = golden_dir()


def clouds(seed, n_queries, n_gallery, d=16, classes=7, spread=1.0):
    """Noisy class centres: embeddings and labels of queries and gallery."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((classes, d))
    ql, gl = rng.integers(0, classes, n_queries), rng.integers(0, classes, n_gallery)
    q = centres[ql] + spread * rng.standard_normal((n_queries, d))
    g = centres[gl] + spread * rng.standard_normal((n_gallery, d))
    return q.astype(np.float32), g.astype(np.float32), ql, gl


def naive(relevant, k, recall_k):
    """Figures of one ranking without ties, by the definitions in the module's docstring, item by item."""
    total = sum(relevant)
    found = 0
    precisions = []
    precisions_in_cut = []
    for i, r in enumerate(relevant, 1):
        if r:
            found += 1
            precisions.append(found / i)
            if i <= k:
                precisions_in_cut.append(found / i)
    inside = len(precisions_in_cut)
    return {
        "ap@all": sum(precisions) / total,
        f"ap@{k}[retrieved]": sum(precisions_in_cut) / inside if inside else 0.0,
        f"ap@{k}[trec]": sum(precisions_in_cut) / total,
        f"p@{k}": inside / k,
        f"recall@{recall_k}": float(any(relevant[:recall_k])),
    }


def expectation(scores, relevant, k, recall_k):
    """Mean of the naive figures over every way to place the relevant items of each tied group in the group's places."""
    groups = []
    for score in sorted(set(scores), reverse=True):
        members = [bool(r) for s, r in zip(scores, relevant, strict=True) if s == score]
        places = itertools.combinations(range(len(members)), sum(members))
        groups.append([[p in chosen for p in range(len(members))] for chosen in places])
    figures = [naive(list(itertools.chain(*order)), k, recall_k) for order in itertools.product(*groups)]
    return {name: sum(f[name] for f in figures) / len(figures) for name in figures[0]}


def assert_same(a, b, tolerance=1e-12):
    assert a.per_query_values.keys() == b.per_query_values.keys()
    for name, values in a.per_query_values.items():
        np.testing.assert_allclose(values, b.per_query_values[name], rtol=0, atol=tolerance, err_msg=name)


# ---- definitions ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("similarity", ["cosine", "sqeuclidean"])
@pytest.mark.parametrize("k", [1, 5, 20, 500])
def test_figures_equal_naive_loop(similarity, k):
    q, g, ql, gl = clouds(0, 25, 160)
    got = rank(q, g, ql, gl, similarity=similarity, ks=(k,), recall_ks=(k,))
    q64, g64 = q.astype(np.float64), g.astype(np.float64)
    if similarity == "cosine":
        q64 /= np.linalg.norm(q64, axis=1, keepdims=True)
        g64 /= np.linalg.norm(g64, axis=1, keepdims=True)
    distance = ((q64[:, None] - g64[None]) ** 2).sum(-1)
    for i in range(len(q)):
        order = np.argsort(distance[i])
        for name, value in naive((gl[order] == ql[i]).tolist(), k, k).items():
            assert got.per_query_values[name][i] == pytest.approx(value, abs=1e-12), name


def test_map_all_equals_scikit_learn():
    rng = np.random.default_rng(1)
    scores = rng.standard_normal((40, 300))
    ql, gl = rng.integers(0, 9, 40), rng.integers(0, 9, 300)
    got = rank_scores(scores, ql, gl).values("map@all")
    want = [average_precision_score(gl == c, row) for c, row in zip(ql, scores, strict=True)]
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-12)


def test_the_two_conventions_differ_as_defined():
    # relevant at ranks 1 and 4, cut at 3, two relevant items in all
    scores = np.array([[4.0, 3.0, 2.0, 1.0]])
    means = rank_scores(scores, [7], [7, 0, 0, 7], ks=(3,), recall_ks=(1,)).means()
    assert means == {
        "map@all": pytest.approx((1 + 2 / 4) / 2),
        "map@3[retrieved]": pytest.approx(1.0),
        "map@3[trec]": pytest.approx(0.5),
        "p@3": pytest.approx(1 / 3),
        "recall@1": 1.0,
    }


def test_recall_is_a_hit_rate_not_a_share_of_the_relevant():
    scores = np.array([[5.0, 4.0, 3.0, 2.0, 1.0]] * 2)
    got = rank_scores(scores, ["a", "b"], ["b", "a", "a", "a", "b"], recall_ks=(1, 2))
    np.testing.assert_array_equal(got.values("recall@1"), [0.0, 1.0])
    np.testing.assert_array_equal(got.values("recall@2"), [1.0, 1.0])


def test_default_columns_name_their_convention():
    got = rank(*clouds(2, 5, 30))
    assert set(got.means()) == {
        "map@all", "map@100[retrieved]", "map@100[trec]", "p@100", "map@200[retrieved]", "map@200[trec]", "p@200",
        "recall@1", "recall@10", "recall@100",
    }  # fmt: skip
    assert got.values("map@200[trec]") is got.per_query_values["ap@200[trec]"]
    with pytest.raises(KeyError, match=r"no metric 'map@200' was computed; there are: .*map@200\[trec\]"):
        got.values("map@200")


def test_small_gallery():
    q, g, ql, gl = clouds(3, 12, 5, classes=2)
    got = rank(q, g, ql, gl, ks=(3, 200), recall_ks=(1, 999))
    counted = got.n_relevant > 0
    np.testing.assert_allclose(got.values("map@200[trec]"), got.values("map@all"))
    np.testing.assert_allclose(got.values("map@200[retrieved]"), got.values("map@all"))
    np.testing.assert_allclose(got.values("p@200")[counted], got.n_relevant[counted] / 200)
    assert (got.values("recall@999")[counted] == 1).all()
    one = rank(q, g[:1], ql, gl[:1])
    assert set(one.values("map@all")[one.n_relevant > 0]) <= {1.0}


def test_queries_without_relevant_items():
    q, g, ql, gl = clouds(4, 30, 50)
    ql[[3, 8]] = 99
    excluded = rank(q, g, ql, gl, without_relevant="exclude")
    zero = rank(q, g, ql, gl, without_relevant="zero")
    assert excluded.n_without_relevant == zero.n_without_relevant == 2
    assert np.flatnonzero(np.isnan(excluded.values("map@all"))).tolist() == [3, 8]
    assert zero.values("map@all")[[3, 8]].tolist() == [0.0, 0.0]
    for name, mean in excluded.means().items():
        assert zero.means()[name] == pytest.approx(mean * 28 / 30, abs=1e-14)


def test_no_query_has_a_relevant_item():
    q, g, _, gl = clouds(5, 4, 20)
    labels = [99] * 4
    with pytest.raises(ValueError, match="none of the 4 queries has an item of its class in the gallery of 20"):
        rank(q, g, labels, gl).means()
    assert set(rank(q, g, labels, gl, without_relevant="zero").means().values()) == {0.0}


# ---- ties ----------------------------------------------------------------------------------------------------------

tied_case = st.integers(1, 9).flatmap(
    lambda n: st.tuples(
        st.lists(st.integers(0, 3), min_size=n, max_size=n),
        st.lists(st.booleans(), min_size=n, max_size=n).filter(any),
        st.integers(1, n + 1),
        st.integers(1, n + 1),
    )
)


@settings(max_examples=150, deadline=None)
@given(tied_case)
def test_ties_equal_the_mean_over_all_orders(case):
    scores, relevant, k, recall_k = case
    got = rank_scores(
        np.array([scores]), [1], np.array(relevant, int), ks=(k,), recall_ks=(recall_k,), without_relevant="zero"
    )
    for name, value in expectation(scores, relevant, k, recall_k).items():
        assert got.per_query_values[name][0] == pytest.approx(value, abs=1e-12), name


def test_ties_equal_the_mean_over_literal_permutations():
    scores, labels, k = [1, 0, 0, 0, 0, -1], [0, 1, 0, 1, 0, 1], 3
    figures = []
    for order in itertools.permutations(range(6)):
        ranked = sorted(order, key=lambda i: -scores[i])  # stable: the permutation decides among ties
        figures.append(naive([labels[i] == 1 for i in ranked], k, 2))
    got = rank_scores(np.array([scores]), [1], labels, ks=(k,), recall_ks=(2,))
    for name in figures[0]:
        assert got.per_query_values[name][0] == pytest.approx(np.mean([f[name] for f in figures]), abs=1e-12), name


def test_large_tied_group_equals_sampled_orders():
    rng = np.random.default_rng(6)
    scores = np.repeat([2.0, 1.0, 0.0], [60, 400, 300])[None]
    labels = (rng.random(760) < 0.12).astype(int)
    got = rank_scores(scores, [1], labels, ks=(100,), recall_ks=(100,))
    sampled = []
    for _ in range(3000):
        order = np.argsort(-scores[0] + 1e-3 * rng.random(760))
        sampled.append(naive((labels[order] == 1).tolist(), 100, 100))
    for name in ("ap@all", "ap@100[retrieved]", "ap@100[trec]", "p@100"):
        values = np.array([f[name] for f in sampled])
        assert abs(got.per_query_values[name][0] - values.mean()) < 5 * values.std() / len(values) ** 0.5, name


@pytest.mark.parametrize("similarity", ["cosine", "sqeuclidean"])
def test_dead_model_scores_the_class_prior(similarity):
    """One point for all images, at a value whose products round: no order of the gallery may show in the figures."""
    rng = np.random.default_rng(7)
    point = rng.standard_normal(33).astype(np.float32)
    n, classes = 1201, 10
    gl = np.sort(rng.integers(0, classes, n))
    q, g, ql = np.tile(point, (23, 1)), np.tile(point, (n, 1)), np.arange(23) % classes
    got = rank(q, g, ql, gl, similarity=similarity)
    prior = np.array([(gl == c).mean() for c in ql])
    np.testing.assert_allclose(got.values("p@100"), prior, rtol=0, atol=1e-12)
    np.testing.assert_allclose(got.values("map@all"), prior, rtol=0, atol=0.01)
    np.testing.assert_allclose(got.values("recall@1"), prior, rtol=0, atol=1e-12)
    for _ in range(3):
        order = rng.permutation(n)
        assert_same(got, rank(q, g[order], ql, gl[order], similarity=similarity), 0)


@pytest.mark.parametrize("similarity", ["cosine", "sqeuclidean"])
def test_duplicates_tie_wherever_they_stand(similarity):
    """Copies of few points, so that every rank is a tie: a product rounded by position would break some of them."""
    rng = np.random.default_rng(8)
    points = (rng.standard_normal((5, 67)) * [[1], [3], [0.01], [100], [1]]).astype(np.float32)
    which = rng.integers(0, 5, 1003)
    gl = rng.integers(0, 4, 1003)
    q = rng.standard_normal((17, 67)).astype(np.float32)
    got = rank(q, points[which], np.arange(17) % 4, gl, similarity=similarity)
    with np.errstate(all="ignore"):
        small = rank(q, points, np.zeros(17), np.zeros(5), similarity=similarity, top=5)
    position = np.argsort(small.top_ids, axis=1)
    assert_same(got, rank_scores(-position[:, which], np.arange(17) % 4, gl))


# ---- invariance ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("similarity", ["cosine", "sqeuclidean"])
def test_chunks_and_memory_do_not_change_a_bit(similarity, monkeypatch):
    q, g, ql, gl = clouds(9, 61, 2500, d=40, spread=2)
    whole = rank(q, g, ql, gl, similarity=similarity, top=3)
    tight = rank(q, g, ql, gl, similarity=similarity, top=3, memory_mib=2.5)  # gallery in slabs, few queries a chunk
    monkeypatch.setattr("benchmarks.evaluation.ranking._SLAB", 7)
    by_seven = rank(q, g, ql, gl, similarity=similarity, top=3)
    for other in (tight, by_seven):
        assert_same(whole, other, 0)
        np.testing.assert_array_equal(whole.top_scores, other.top_scores)
        np.testing.assert_array_equal(whole.top_ids, other.top_ids)
    for size in (1, 7):
        parts = [rank(q[i : i + size], g, ql[i : i + size], gl, similarity=similarity) for i in range(0, 61, size)]
        for name, values in whole.per_query_values.items():
            np.testing.assert_array_equal(values, np.concatenate([p.per_query_values[name] for p in parts]), name)


def test_torch_and_numpy_and_label_types_agree():
    q, g, ql, gl = clouds(10, 20, 100)
    want = rank(q, g, ql, gl)
    tensors = [torch.from_numpy(x) for x in (q, g, ql, gl)]
    tensors[0].requires_grad_()
    assert_same(want, rank(*tensors), 0)
    assert_same(want, rank(q.astype(np.float64), g, [f"c{c}" for c in ql], [f"c{c}" for c in gl]), 0)
    half = tensors[1].to(torch.bfloat16)
    assert_same(rank(q, half.float(), ql, gl), rank(q, half, ql, gl), 0)


embeddings = hnp.arrays(np.float32, st.tuples(st.integers(2, 24), st.just(4)), elements=st.integers(-3, 3))


@settings(max_examples=80, deadline=None)
@given(embeddings, embeddings, st.sampled_from(["cosine", "sqeuclidean"]), st.randoms(use_true_random=False))
def test_laws(q, g, similarity, random):
    """Order of gallery and queries, and scale under cosine, change nothing; figures are bounded; retrieved >= trec."""
    ql = np.array([random.randrange(3) for _ in q])
    gl = np.array([random.randrange(3) for _ in g])
    options = {"similarity": similarity, "ks": (1, 4, 30), "recall_ks": (1, 5), "without_relevant": "zero"}
    got = rank(q, g, ql, gl, **options)
    for name, values in got.per_query_values.items():
        assert ((values >= 0) & (values <= 1 + 1e-12)).all(), name
    for k in (1, 4, 30):
        retrieved, trec = got.values(f"map@{k}[retrieved]"), got.values(f"map@{k}[trec]")
        assert (retrieved >= trec - 1e-12).all()
        assert (trec <= got.values("map@all") + 1e-12).all()
    order = random.sample(range(len(g)), len(g))
    assert_same(got, rank(q, g[order], ql, gl[order], **options), 0)
    order = random.sample(range(len(q)), len(q))
    shuffled = rank(q[order], g, ql[order], gl, **options)
    assert shuffled.means() == got.means()
    for name, values in got.per_query_values.items():
        np.testing.assert_array_equal(values[order], shuffled.per_query_values[name])
    if similarity == "cosine":
        assert_same(got, rank(q * np.float32(4), g * np.float32(0.25), ql, gl, **options), 0)


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 6), st.booleans()), min_size=2, max_size=12).filter(
        lambda x: any(r for _, r in x)
    ),
    st.data(),
)
def test_raising_a_relevant_item_never_lowers_a_figure(items, data):
    scores, relevant = (np.array(x) for x in zip(*items, strict=True))
    i = data.draw(st.sampled_from(np.flatnonzero(relevant).tolist()))
    raised = scores.copy()
    raised[i] += data.draw(st.integers(1, 6))
    k = data.draw(st.integers(1, 13))
    names = ["ap@all", f"ap@{k}[trec]", f"p@{k}", f"recall@{k}"]
    before, after = (rank_scores(s[None], [1], relevant.astype(int), ks=(k,), recall_ks=(k,)) for s in (scores, raised))
    for name in names:
        assert after.per_query_values[name][0] >= before.per_query_values[name][0] - 1e-12, name


def test_retrieved_convention_can_fall_when_a_relevant_item_rises():
    """The known flaw of the [retrieved] divisor, kept as the papers' code has it."""
    labels = [1, 0, 0, 1]
    before = rank_scores(np.array([[4.0, 3.0, 2.0, 1.0]]), [1], labels, ks=(3,)).means()
    after = rank_scores(np.array([[4.0, 3.0, 2.0, 2.5]]), [1], labels, ks=(3,)).means()
    assert before["map@3[retrieved]"] == 1.0
    assert after["map@3[retrieved]"] == pytest.approx((1 + 2 / 3) / 2)
    assert after["map@3[trec]"] > before["map@3[trec]"]


@pytest.mark.parametrize("scale", [1e-300, 1e-30, 1.0, 1e30, 1e298])
@pytest.mark.parametrize("shift", [0.0, 1e9])
def test_any_range_of_scores_is_counted_right(scale, shift):
    """Buckets must not depend on the range: tiny, huge, far from zero, one outlier, all in one bucket."""
    rng = np.random.default_rng(11)
    scores = rng.standard_normal((12, 400))
    scores[:, 0] += 1e6
    scores[:, 1] -= 1e6
    scores[3:6] = np.round(scores[3:6])
    scores = (scores + shift) * scale
    ql, gl = rng.integers(0, 5, 12), rng.integers(0, 5, 400)
    dense = np.array([np.unique(row, return_inverse=True)[1] for row in scores])
    assert_same(rank_scores(scores, ql, gl), rank_scores(dense, ql, gl), 1e-15)


# ---- top, memory, errors -------------------------------------------------------------------------------------------


def test_top_ids_and_scores():
    q, g, ql, gl = clouds(12, 9, 40)
    g[5] = g[30]
    for similarity in ("cosine", "sqeuclidean"):
        got = rank(q, g, ql, gl, similarity=similarity, top=100)
        assert got.top_ids.shape == got.top_scores.shape == (9, 40)
        q64, g64 = q.astype(np.float64), g.astype(np.float64)
        if similarity == "cosine":
            want = (q64 @ g64.T) / np.linalg.norm(q64, axis=1)[:, None] / np.linalg.norm(g64, axis=1)
        else:
            want = -((q64[:, None] - g64[None]) ** 2).sum(-1)
        want = np.take_along_axis(want, got.top_ids, 1)
        np.testing.assert_allclose(got.top_scores, want, rtol=0, atol=2e-8 if similarity == "cosine" else 1e-10)
        assert (np.diff(got.top_scores, axis=1) <= 0).all()
        assert (np.argsort(got.top_ids, axis=1)[:, 30] - np.argsort(got.top_ids, axis=1)[:, 5] == 1).all()
        short = rank(q, g, ql, gl, similarity=similarity, top=7)
        np.testing.assert_array_equal(short.top_ids, got.top_ids[:, :7])
    frame = got.per_query()
    assert frame["top_ids"][2].tolist() == got.top_ids[2].tolist()
    assert rank(q, g, ql, gl).top_ids is None


def test_per_query_frame():
    q, g, ql, gl = clouds(13, 9, 40)
    ql[4] = 99
    got = rank(q, g, ql, gl)
    frame = got.per_query()
    assert frame.index.name == "query"
    assert frame["n_relevant"].tolist() == [(gl == c).sum() for c in ql]
    assert np.isnan(frame.loc[4, "ap@200[trec]"])
    for name, mean in got.means().items():
        assert frame[name.removeprefix("m")].mean() == pytest.approx(mean)


@pytest.mark.parametrize("classes", [2, 300])
@pytest.mark.parametrize("similarity", ["cosine", "sqeuclidean"])
def test_memory_ceiling(classes, similarity):
    """Whole scores alone would be 73 MiB, positions with two classes 37 MiB an array."""
    q, g, ql, gl = clouds(14, 800, 12000, d=24, classes=classes)
    tracemalloc.start()
    try:
        rank(q, g, ql, gl, similarity=similarity, memory_mib=16)
        peak = tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()
    assert peak < 16 + 3, f"peak {peak:.1f} MiB"  # 3 MiB: labels, results and progress of the call itself


@pytest.mark.parametrize("similarity", ["cosine", "sqeuclidean"])
def test_memory_ceiling_of_a_large_gallery_with_long_class_names(similarity):
    """As fixed-width text the names alone would be 57 MiB; the grid of the gallery 18 MiB, or 37 MiB with two parts."""
    q, g, ql, gl = clouds(16, 3, 300_000, d=8, classes=40)
    names = np.array([f"class number {number:02d} of a data set whose names are long" for number in range(40)], object)
    tracemalloc.start()
    try:
        got = rank(q, g, names[ql], names[gl], similarity=similarity, memory_mib=32)
        peak = tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()
    assert peak < 32, f"peak {peak:.1f} MiB"
    assert got.means() == rank(q, g, ql, gl, similarity=similarity).means()


def test_progress_counts_every_query():
    seen = []
    q, g, ql, gl = clouds(15, 50, 3000)
    rank(q, g, ql, gl, memory_mib=4, progress=seen.append)
    assert sum(seen) == 50
    assert len(seen) > 1


def test_errors_are_one_clear_line():
    q, g, ql, gl = clouds(16, 5, 20)
    broken = g.copy()
    broken[[3, 7]] = np.nan
    cases = [
        ((q, broken, ql, gl), {}, r"gallery has NaN or infinite values in 2 of 20 rows \(3, 7\)"),
        ((q[:, :3], g, ql, gl), {}, "query embeddings have 3 dimensions and gallery embeddings 16"),
        ((q[0], g, ql, gl), {}, r"query must be a matrix .* got shape \(16,\)"),
        ((q, g, ql[:4], gl), {}, r"query has 5 rows but labels of shape \(4,\)"),
        ((q, g, ql, gl[:, None]), {}, "gallery has 20 rows but labels of shape"),
        ((q, g, ql, [str(c) for c in gl]), {}, "use the same class ids"),
        ((q, g[:0], ql, gl[:0]), {}, "the gallery is empty"),
        ((q, g, ql, gl), {"ks": (0,)}, "cuts must be positive integers"),
        ((q, g, ql, gl), {"similarity": "dot"}, "similarity='dot' is unknown"),
        ((q, g, ql, gl), {"without_relevant": "skip"}, "without_relevant='skip' is unknown"),
        ((q, g, ql, gl), {"memory_mib": 0.1}, "memory_mib=0.1 is too low .* at least 1 MiB"),
    ]
    for args, options, message in cases:
        with pytest.raises(ValueError, match=message) as error:
            rank(*args, **options)
        assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match="scores has NaN"):
        rank_scores(np.full((1, 20), np.nan), [0], gl)


# ---- the released code ---------------------------------------------------------------------------------------------


@pytest.mark.golden
def test_official_rules_give_the_released_numbers():
    with np.load(GOLDEN / "metrics.npz") as z:
        golden = dict(z)
    n_first = golden["rank_first20"].shape[1]
    got = rank(
        golden["query"], golden["gallery"], golden["query_labels"], golden["gallery_labels"], top=n_first,
        **RULES["official"],
    )  # fmt: skip
    names = {
        "ap_at_200": "map@200[retrieved]",
        "ap_all": "map@all",
        "prec_at_100": "p@100",
        "prec_at_200": "p@200",
    }
    means = got.means()
    for key, name in names.items():
        np.testing.assert_allclose(got.values(name), golden[f"per_query_{key}"], rtol=0, atol=1e-6, err_msg=name)
        assert means[name] == pytest.approx(float(golden[f"mean_{key}"]), abs=1e-6)
    np.testing.assert_array_equal(got.top_ids, golden["rank_first20"])


@pytest.mark.golden
def test_clean_rules_leave_out_queries_of_absent_classes():
    with np.load(GOLDEN / "metrics.npz") as z:
        golden = dict(z)
    absent = ~np.isin(golden["query_labels"], golden["gallery_labels"])
    got = rank(golden["query"], golden["gallery"], golden["query_labels"], golden["gallery_labels"], **RULES["clean"])
    assert got.n_without_relevant == absent.sum()
    assert (np.isnan(got.values("map@all")) == absent).all()
