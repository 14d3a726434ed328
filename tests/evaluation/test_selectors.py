"""Label-free selectors against naive loops, scikit-learn and known values."""

import math
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from benchmarks.evaluation import selectors
from benchmarks.protocols.selection import LABEL_FREE
from benchmarks.runner.settings import Select


def drawn(seed: int, images: int, classes: int, scale: float = 3.0) -> np.ndarray:
    return scale * np.random.default_rng(seed).standard_normal((images, classes))


def probabilities(logits: np.ndarray) -> list[list[float]]:
    rows = []
    for row in logits.tolist():
        powers = [math.exp(value - max(row)) for value in row]
        rows.append([power / sum(powers) for power in powers])
    return rows


def naive_entropy(row: list[float]) -> float:
    return -sum(p * math.log(p) for p in row if p > 0)


def naive(name: str, logits: np.ndarray) -> float:
    """Each criterion of the logits as plain loops."""
    p = probabilities(logits)
    n, c = len(p), len(p[0])
    mean_entropy = sum(naive_entropy(row) for row in p) / n
    if name == "entropy":
        return -mean_entropy
    if name == "im":
        return naive_entropy([sum(row[k] for row in p) / n for k in range(c)]) - mean_entropy
    if name == "bnm":
        return float(np.linalg.svd(np.array(p), compute_uv=False).sum()) / n
    total = 0.0
    for i in range(n):
        similar = []
        for j in range(n):
            if j != i:
                dot = sum(a * b for a, b in zip(p[i], p[j], strict=True))
                similar.append(dot / math.hypot(*p[i]) / math.hypot(*p[j]))
        powers = [math.exp(value / 0.05) for value in similar]
        total += naive_entropy([power / sum(powers) for power in powers])
    return total / n


@pytest.mark.parametrize("name", selectors.OF_LOGITS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), images=st.integers(2, 12), classes=st.integers(1, 8), scale=st.floats(0.1, 20))
def test_a_criterion_is_its_naive_loop(name: str, seed: int, images: int, classes: int, scale: float) -> None:
    logits = drawn(seed, images, classes, scale)
    expected = pytest.approx(naive(name, logits), abs=1e-7)
    assert selectors.OF_LOGITS[name](logits) == expected
    assert selectors.OF_LOGITS[name](torch.from_numpy(logits)) == expected


@pytest.mark.parametrize("name", selectors.OF_LOGITS)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), shift=st.floats(-50, 50))
def test_order_of_images_and_classes_and_a_shift_change_nothing(name: str, seed: int, shift: float) -> None:
    logits, rng = drawn(seed, 9, 4), np.random.default_rng(seed)
    other = logits[rng.permutation(9)][:, rng.permutation(4)] + shift
    assert selectors.OF_LOGITS[name](other) == pytest.approx(selectors.OF_LOGITS[name](logits), abs=1e-9)


def test_snd_in_blocks_is_snd_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = drawn(1, 50, 5)
    whole = selectors.snd(logits)
    monkeypatch.setattr(selectors, "_CELLS", 170)  # three images at a time, and a rest
    assert selectors.snd(logits) == pytest.approx(whole, abs=1e-12)


def test_known_values() -> None:
    certain = 1000 * np.eye(4)[np.arange(40) % 4]
    one_class = 1000 * np.eye(4)[np.zeros(40, dtype=int)]
    unsure = np.zeros((40, 4))
    assert selectors.entropy(certain) == selectors.entropy(one_class) == 0.0
    assert selectors.entropy(unsure) == pytest.approx(-math.log(4))
    assert selectors.im(certain) == pytest.approx(math.log(4))
    assert selectors.im(one_class) == pytest.approx(0) and selectors.im(unsure) == pytest.approx(0)
    assert selectors.bnm(certain) == pytest.approx(4 * math.sqrt(10) / 40)
    assert selectors.bnm(certain) > selectors.bnm(one_class) > selectors.bnm(unsure)
    assert selectors.snd(one_class) == pytest.approx(math.log(39))
    assert selectors.snd(certain) == pytest.approx(math.log(9), abs=1e-3)


def test_the_risk_of_dev_is_its_formula() -> None:
    rng = np.random.default_rng(3)
    weights, losses = rng.uniform(0.1, 3, 30), rng.uniform(0, 2, 30)
    weighted = [w * value for w, value in zip(weights, losses, strict=True)]
    mean_w, mean_l = sum(weights) / 30, sum(weighted) / 30
    covariance = sum((a - mean_l) * (w - mean_w) for a, w in zip(weighted, weights, strict=True)) / 29
    variance = sum((w - mean_w) ** 2 for w in weights) / 29
    eta = -covariance / variance
    assert selectors.dev_risk(weights, losses) == pytest.approx(mean_l + eta * mean_w - eta)
    assert selectors.dev_risk(np.ones(30), losses) == pytest.approx(losses.mean())


def test_the_density_ratio_is_that_of_scikit_learn() -> None:
    rng = np.random.default_rng(4)
    source, target, asked = rng.normal(0, 1, (80, 3)), rng.normal(0.8, 1, (50, 3)), rng.normal(0, 1, (20, 3))
    x, y = np.concatenate([source, target]), np.repeat([0, 1], [80, 50])
    order = np.random.default_rng(0).permutation(130)
    fifth, rest = order[:26], order[26:]
    models = [
        LogisticRegression(C=c, tol=1e-10, max_iter=10_000).fit(x[rest], y[rest]) for c in selectors.DEV_STRENGTHS
    ]
    best = max(models, key=lambda model: model.score(x[fifth], y[fifth]))  # the first of equal ones
    p = best.predict_proba(asked)
    assert selectors.density_ratio(source, target, asked) == pytest.approx(p[:, 1] / p[:, 0] * 80 / 50, rel=1e-3)


def test_dev_estimates_the_risk_on_the_target() -> None:
    """Source and target differ in x[0] alone; a model that is wrong on the target side is the worse one."""
    rng = np.random.default_rng(5)
    source, held_out = rng.normal(0, 1, (400, 2)), rng.normal(0, 1, (400, 2))
    target = rng.normal((1.5, 0), 1, (400, 2))
    labels = np.zeros(400, dtype=int)
    wrong_at_target = np.stack([-4 * (held_out[:, 0] - 1), np.zeros(400)], axis=1)
    wrong_elsewhere = np.stack([4 * (held_out[:, 0] + 1), np.zeros(400)], axis=1)
    bad = selectors.dev(source, target, held_out, wrong_at_target, labels)
    good = selectors.dev(source, target, held_out, wrong_elsewhere, torch.from_numpy(labels))
    assert good > bad
    assert good == selectors.dev(source, target, held_out, wrong_elsewhere, labels)


@pytest.mark.parametrize("name", selectors.OF_LOGITS)
@pytest.mark.parametrize(
    "logits", [np.zeros(3), np.zeros((0, 3)), np.full((3, 3), np.nan)], ids=["flat", "none", "nan"]
)
def test_what_is_no_prediction_is_refused(name: str, logits: np.ndarray) -> None:
    with pytest.raises(ValueError, match="logits must be a matrix"):
        selectors.OF_LOGITS[name](logits)


def test_too_few_images_are_refused() -> None:
    with pytest.raises(ValueError, match="at least two images"):
        selectors.snd(np.zeros((1, 3)))
    with pytest.raises(ValueError, match="at least two held-out"):
        selectors.dev_risk(np.ones(1), np.ones(1))
    with pytest.raises(ValueError, match="at least five images"):
        selectors.density_ratio(np.zeros((4, 2)), np.zeros((9, 2)), np.zeros((1, 2)))


def test_the_option_has_every_selector() -> None:
    assert (*selectors.OF_LOGITS, "dev") == LABEL_FREE
    assert get_args(Select) == ("last", "val", "oracle", *LABEL_FREE)
