"""Accuracy figures against scikit-learn, the released code's numbers, and laws."""

import itertools
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from benchmarks.evaluation import classification
from benchmarks.evaluation.classification import classify, classify_zero_shot, harmonic_mean
from tests.support.golden import golden_dir

GOLDEN = golden_dir()


def drawn(seed, n=200, classes=9):
    rng = np.random.default_rng(seed)
    labels = rng.choice(classes, n, p=np.arange(1, classes + 1) / sum(range(1, classes + 1)))
    return rng.standard_normal((n, classes)) + 0.4 * labels[:, None] * np.eye(classes)[labels], labels


def test_equals_scikit_learn():
    scores, labels = drawn(0)
    means = classify(scores, labels).means()
    assert means["accuracy[image]"] == pytest.approx(accuracy_score(labels, scores.argmax(1)))
    assert means["accuracy[class]"] == pytest.approx(balanced_accuracy_score(labels, scores.argmax(1)))
    assert means["accuracy[image]"] > means["accuracy[class]"] + 0.02
    by_class = classify(scores, labels).per_class()
    assert np.mean(list(by_class.values())) == pytest.approx(means["accuracy[class]"])


def test_zero_shot_figures_by_hand():
    #   classes 0, 1 seen; 2, 3 unseen
    scores = np.array(
        [
            [9, 1, 0, 0],  # 0: right
            [1, 9, 0, 0],  # 0: wrong
            [0, 9, 8, 0],  # 1: right
            [0, 9, 8, 0],  # 2: wrong, right among unseen
            [0, 0, 9, 1],  # 2: right
            [0, 9, 8, 1],  # 3: wrong, wrong among unseen too
        ],
        float,
    )
    got = classify_zero_shot(scores, [0, 0, 1, 2, 2, 3], seen=[0, 1])
    assert got.means() == pytest.approx(
        {
            "seen[image]": 2 / 3, "seen[class]": 3 / 4,
            "unseen[image]": 1 / 3, "unseen[class]": 1 / 4,
            "all[image]": 1 / 2, "all[class]": 1 / 2,
            "zsl[image]": 2 / 3, "zsl[class]": 1 / 2,
            "h[image]": 4 / 9, "h[class]": 3 / 8,
        }
    )  # fmt: skip
    frame = got.per_image()
    assert frame["zsl_credit"].isna().tolist() == [True] * 3 + [False] * 3
    assert frame["unseen"].tolist() == [False] * 3 + [True] * 3
    by_mask = classify_zero_shot(torch.tensor(scores), torch.tensor([0, 0, 1, 2, 2, 3]), [True, True, False, False])
    assert by_mask.means() == got.means()


def test_restricting_the_answers_needs_no_bounded_scores():
    """The release subtracts 100 from seen classes, which fails for logits that differ by more than 100."""
    scores = np.array([[500.0, 0.0, 1.0], [500.0, 0.0, 0.0]])
    assert classify_zero_shot(scores, [2, 0], seen=[0]).means()["zsl[image]"] == 1.0


def test_ties_share_the_answer():
    scores, labels = np.full((30, 6), 0.3), np.arange(30) % 6
    assert classify(scores, labels).means() == pytest.approx({"accuracy[image]": 1 / 6, "accuracy[class]": 1 / 6})
    noise = np.random.default_rng(1).uniform(-1e-8, 1e-8, scores.shape)
    np.testing.assert_array_equal(classify(scores + noise, labels).credit, np.full(30, 1 / 6))
    zero_shot = classify_zero_shot(scores, labels, [0, 1]).means()
    assert zero_shot["zsl[image]"] == pytest.approx(1 / 4)
    assert zero_shot["h[image]"] == pytest.approx(1 / 6)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.randoms(use_true_random=False))
def test_order_of_images_and_classes_does_not_matter(seed, random):
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 4, (25, 7)).astype(float)
    labels = rng.integers(0, 7, 25)
    labels[:2] = [0, 6]
    want = classify_zero_shot(scores, labels, range(4)).means()
    rows, columns = random.sample(range(25), 25), random.sample(range(7), 7)
    place = np.argsort(columns)
    got = classify_zero_shot(scores[rows][:, columns], place[labels[rows]], place[:4])
    assert got.means() == pytest.approx(want, abs=1e-12)
    assert all(0 <= v <= 1 for v in want.values())
    assert want["zsl[image]"] >= want["unseen[image]"] - 1e-12
    for way in ("image", "class"):
        low, high = sorted([want[f"seen[{way}]"], want[f"unseen[{way}]"]])
        assert low - 1e-12 <= want[f"h[{way}]"] <= high + 1e-12 or want[f"h[{way}]"] == 0


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(0, 25), max_size=6), st.sampled_from([1, 30, 10**6]))
def test_blocks_change_not_a_bit(seed, cuts, cells):
    """Whatever the blocks, given or made inside: the same credit as all scores at once, ties included."""
    rng = np.random.default_rng(seed)
    scores = torch.from_numpy(rng.integers(0, 4, (25, 7)) + rng.choice([0.0, 1e-9], (25, 7))).float()
    labels = rng.integers(0, 7, 25)
    labels[:2] = [0, 6]
    bounds = [0, *sorted(cuts), 25]
    blocks = [scores[a:b] for a, b in itertools.pairwise(bounds)]
    whole, whole_zero = classify(scores, labels), classify_zero_shot(scores, labels, range(4))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classification, "_CELLS", cells)
        got, got_zero = classify(iter(blocks), labels), classify_zero_shot(iter(blocks), labels, range(4))
    np.testing.assert_array_equal(got.credit, whole.credit)
    np.testing.assert_array_equal(got_zero.credit, whole_zero.credit)
    np.testing.assert_array_equal(got_zero.zsl_credit, whole_zero.zsl_credit)
    assert got_zero.means() == whole_zero.means()


def test_memory_follows_the_blocks():
    """40,000 images among 200 classes: 61 MiB as float64, and several arrays of that size on the way."""
    labels = np.arange(40_000) % 200
    rng = np.random.default_rng(0)
    tracemalloc.start()
    try:
        classify_zero_shot((rng.standard_normal((2000, 200)) for _ in range(20)), labels, range(100))
        peak = tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()
    assert peak < 24, f"peak {peak:.1f} MiB"


def test_harmonic_mean():
    assert harmonic_mean(0.0, 0.0) == 0.0
    assert harmonic_mean(1.0, 0.0) == 0.0
    assert harmonic_mean(0.6, 0.3) == pytest.approx(0.4)


def test_errors_are_one_clear_line():
    scores, labels = drawn(2, 10, 4)
    with pytest.raises(ValueError, match=r"got \(10, 4\) and \(9,\)"):
        classify(scores, labels[:9])
    with pytest.raises(ValueError, match="labels must be columns of the scores, integers from 0 to 3"):
        classify(scores, labels + 4)
    with pytest.raises(ValueError, match="class scores of 1 of 10 images are NaN"):
        classify(np.where(np.arange(10)[:, None] == 3, np.nan, scores), labels)
    with pytest.raises(ValueError, match="no images"):
        classify(scores[:0], labels[:0])
    with pytest.raises(ValueError, match="need images of both: 10 of seen classes, 0 of unseen"):
        classify_zero_shot(scores, labels, range(4))
    with pytest.raises(ValueError, match=r"ids from 0 to 3, got \[7\]"):
        classify_zero_shot(scores, labels, [7])
    with pytest.raises(ValueError, match=r"mask of seen classes has shape \(2,\)"):
        classify_zero_shot(scores, labels, [True, False])
    with pytest.raises(ValueError, match="blocks of scores have 8 images, not 10"):
        classify(iter([scores[:8]]), labels)
    with pytest.raises(ValueError, match="blocks of scores have 12 or more images of 10"):
        classify(iter([scores[:6], scores[:6]]), labels)
    with pytest.raises(ValueError, match="differ in their classes"):
        classify(iter([scores[:5], scores[5:, :3]]), labels)


@pytest.mark.golden
def test_released_zero_shot_figures():
    with np.load(GOLDEN / "sre_clip.npz") as z:
        golden = dict(z)
    scores = np.concatenate([golden["gzsl_seen_scores"], golden["gzsl_unseen_scores"]])
    labels = np.concatenate([golden["gzsl_seen_labels"], golden["gzsl_unseen_labels"]])
    means = classify_zero_shot(scores, labels, golden["seen_class_ids"]).means()
    names = {
        "gzsl_seen_sample": "seen[image]",
        "gzsl_seen_class": "seen[class]",
        "gzsl_unseen_sample": "unseen[image]",
        "gzsl_unseen_class": "unseen[class]",
        "zsl_acc_sample": "zsl[image]",
        "zsl_acc_class": "zsl[class]",
        "gzsl_h": "h[image]",
        "gzsl_h_from_class_means_unused": "h[class]",
    }
    for key, name in names.items():
        assert means[name] == pytest.approx(float(golden[key]), abs=1e-6), key
