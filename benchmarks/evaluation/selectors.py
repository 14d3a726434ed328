"""Selection without target labels: values of a model's predictions on unlabelled target images; higher is better.

Each function is one published criterion. P is the matrix of class probabilities ``[N, C]``, the softmax of the logits;
H(p) = -sum_c p_c log p_c in nats.

=============  ======================================================================================================
``entropy``    -1/N sum_i H(P_i)
``im``         H(mean_i P_i) - 1/N sum_i H(P_i)
``bnm``        ||P||_* / N
``snd``        mean entropy of the softmax over each image's similarities to all others
``dev``        minus the risk on labelled source images, weighted by the density ratio of target to source
=============  ======================================================================================================

None looks at a target label. ``dev`` also reads labelled source images: those trained on (without their labels) and the
held-out ones of the validation task (with them).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, log_softmax

#: Similarities held at a time by :func:`snd` (64 MiB as float64).
_CELLS = 2**23

#: SND's temperature (Saito et al., ICCV 2021, section 4: 0.05 in all experiments).
SND_TEMPERATURE = 0.05

#: Inverse strengths of the L2 penalty that the domain classifier of :func:`dev` chooses from.
DEV_STRENGTHS = tuple(float(value) for value in np.logspace(-2, 4, 7))


def entropy(logits: Any) -> float:
    """Minus the mean entropy of the predictions: confident ones score higher.

    Source: Morerio, Cavazza, Murino, "Minimal-Entropy Correlation Alignment for Unsupervised Deep Domain Adaptation",
    ICLR 2018: hyper-parameters by the least mean entropy of the target's predictions. A model that gives all images one
    class with certainty has the best value.

    Args:
        logits: ``[N, C]``, torch or numpy.

    Raises:
        ValueError: the logits are not a matrix of finite numbers with at least one image.
    """
    return -float(_entropies(_log_probabilities(logits)).mean())


def im(logits: Any) -> float:
    """Information maximisation: entropy of the mean prediction minus the mean entropy.

    Source: Shi and Sha, "Information-Theoretical Learning of Discriminative Clusters for Unsupervised Domain
    Adaptation", ICML 2012: the empirical mutual information of image and predicted class, I(X; Y) = H(mean p) - mean
    H(p); as a validator: Musgrave, Belongie, Lim, "Three New Validators and a Large-Scale Benchmark Ranking for
    Unsupervised Domain Adaptation", 2022.

    Args and Raises: as :func:`entropy`.
    """
    log_p = _log_probabilities(logits)
    mean = np.exp(log_p).mean(axis=0)
    marginal = -float(np.sum(mean[mean > 0] * np.log(mean[mean > 0])))
    return marginal - float(_entropies(log_p).mean())


def bnm(logits: Any) -> float:
    """The nuclear norm of the prediction matrix, divided by the number of images: confident and diverse predictions.

    Source: Cui et al., "Towards Discriminability and Diversity: Batch Nuclear-norm Maximization under Label
    Insufficient Situations", CVPR 2020: the loss L_BNM = -||P||_* / B of a batch, with the sign changed; over all
    target images as a validator: Musgrave, Belongie, Lim, 2022. Computed from the eigenvalues of P^T P, so memory
    follows the classes.

    Args and Raises: as :func:`entropy`.
    """
    p = np.exp(_log_probabilities(logits))
    if len(p) < p.shape[1]:
        return float(np.linalg.norm(p, ord="nuc")) / len(p)
    return float(np.sqrt(np.clip(np.linalg.eigvalsh(p.T @ p), 0, None)).sum()) / len(p)


def snd(logits: Any, *, temperature: float = SND_TEMPERATURE) -> float:
    """Soft neighbourhood density: how many neighbours each target image has in the space of predictions.

    With F the rows of P scaled to length 1 and S = F F^T without its diagonal: the mean over images of the entropy of
    softmax(S_i / temperature) over the other images.

    Source: Saito et al., "Tune it the Right Way: Unsupervised Validation of Domain Adaptation via Soft Neighborhood
    Density", ICCV 2021, eqs. 1 to 3; softmax outputs as features, as in its experiments. A model that predicts one
    class for all images has the best value, log(N - 1).

    Args:
        logits: ``[N, C]``, torch or numpy.
        temperature: tau of eq. 2.

    Raises:
        ValueError: as :func:`entropy`, or fewer than two images.
    """
    p = np.exp(_log_probabilities(logits))
    if len(p) < 2:
        raise ValueError("soft neighbourhood density needs at least two images")
    features = p / np.linalg.norm(p, axis=1, keepdims=True)
    total, step = 0.0, max(1, _CELLS // len(p))
    for start in range(0, len(p), step):
        similarity = features[start : start + step] @ features.T / temperature
        rows = np.arange(len(similarity))
        similarity[rows, start + rows] = -np.inf
        log_q = log_softmax(similarity, axis=1)
        log_q[rows, start + rows] = 0.0  # 0 log 0 = 0; exp below must not see it as a probability of 1
        q = np.exp(log_q)
        q[rows, start + rows] = 0.0
        total -= float(np.sum(q * log_q))
    return total / len(p)


def dev(source: Any, target: Any, held_out: Any, held_out_logits: Any, held_out_labels: Any) -> float:
    """Deep embedded validation: minus the control-variate estimate of the target risk.

    A classifier of source against target features gives each held-out source image its density ratio w = (N_s / N_t)
    P(target | x) / P(source | x). With l the cross-entropy of the image's prediction, the risk is mean(w l) +
    eta mean(w) - eta, eta = -Cov(w l, w) / Var(w).

    Source: You et al., "Towards Accurate Model Selection in Deep Unsupervised Domain Adaptation", ICML 2019,
    section 4: the density ratio of a domain classifier, and algorithm 1, the risk with its control variate. The domain
    classifier is logistic regression with an L2 penalty whose strength is the best of :data:`DEV_STRENGTHS` on a fifth
    of the features (the release: a perceptron chosen in the same way).

    Args:
        source: ``[N_s, D]`` features of the source images trained on.
        target: ``[N_t, D]`` features of the target images.
        held_out: ``[M, D]`` features of the held-out source images.
        held_out_logits: ``[M, C]`` of the held-out images.
        held_out_labels: ``[M]`` their columns.

    Raises:
        ValueError: logits that are not finite, or fewer than two held-out images, or five features of either domain.
    """
    log_p = _log_probabilities(held_out_logits)
    labels = np.asarray(_array(held_out_labels), dtype=np.int64)
    losses = -log_p[np.arange(len(labels)), labels]
    return -dev_risk(density_ratio(_array(source), _array(target), _array(held_out)), losses)


def dev_risk(weights: NDArray[np.float64], losses: NDArray[np.float64]) -> float:
    """mean(w l) + eta mean(w) - eta with eta = -Cov(w l, w) / Var(w), 0 where all weights are equal; ``[M]`` each."""
    if len(weights) < 2:
        raise ValueError("deep embedded validation needs at least two held-out images")
    weighted = weights * losses
    variance = float(np.var(weights, ddof=1))
    eta = -float(np.cov(weighted, weights)[0, 1]) / variance if variance > 0 else 0.0
    return float(weighted.mean()) + eta * float(weights.mean()) - eta


def density_ratio(
    source: NDArray[np.float64], target: NDArray[np.float64], asked: NDArray[np.float64]
) -> NDArray[np.float64]:
    """p_target(x) / p_source(x) of the features ``asked`` [M, D], by a classifier of source against target features.

    Raises ``ValueError`` for fewer than five features of either domain.
    """
    if min(len(source), len(target)) < 5:
        raise ValueError("deep embedded validation needs at least five images of each domain")
    x = np.concatenate([source, target]).astype(np.float64)
    y = np.repeat([0.0, 1.0], [len(source), len(target)])
    order = np.random.default_rng(0).permutation(len(x))
    fifth, rest = order[: len(x) // 5], order[len(x) // 5 :]
    best, best_accuracy = DEV_STRENGTHS[0], -1.0
    for strength in DEV_STRENGTHS:
        coefficients = _logistic(x[rest], y[rest], strength)
        accuracy = float((((_decision(x[fifth], coefficients)) > 0) == (y[fifth] > 0)).mean())
        if accuracy > best_accuracy:
            best, best_accuracy = strength, accuracy
    # exp of the log odds is P(target) / P(source)
    odds = _decision(asked.astype(np.float64), _logistic(x[rest], y[rest], best))
    ratio: NDArray[np.float64] = np.exp(np.clip(odds, -50, 50)) * len(source) / len(target)
    return ratio


def _decision(x: NDArray[np.float64], coefficients: NDArray[np.float64]) -> NDArray[np.float64]:
    values: NDArray[np.float64] = x @ coefficients[:-1] + coefficients[-1]
    return values


def _logistic(x: NDArray[np.float64], y: NDArray[np.float64], strength: float) -> NDArray[np.float64]:
    """Weights and intercept ``[D + 1]`` that minimise |w|^2 / 2 + strength times the summed logistic loss."""

    def loss(coefficients: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        z = _decision(x, coefficients)
        residual = strength * (expit(z) - y)
        w = coefficients[:-1]
        value = float(w @ w) / 2 + strength * float(np.sum(np.logaddexp(0, z) - y * z))
        return value, np.append(w + x.T @ residual, residual.sum())

    found: NDArray[np.float64] = minimize(
        loss, np.zeros(x.shape[1] + 1), jac=True, method="L-BFGS-B", options={"maxiter": 200}
    ).x
    return found


def _array(values: Any) -> NDArray[Any]:
    """Torch (of any device), numpy or a list -> numpy."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


def _log_probabilities(logits: Any) -> NDArray[np.float64]:
    z = _array(logits).astype(np.float64)
    if z.ndim != 2 or 0 in z.shape or not np.isfinite(z).all():
        raise ValueError(f"logits must be a matrix [images, classes] of finite numbers, got shape {z.shape}")
    values: NDArray[np.float64] = log_softmax(z, axis=1)
    return values


def _entropies(log_p: NDArray[np.float64]) -> NDArray[np.float64]:
    values: NDArray[np.float64] = -(np.exp(log_p) * log_p).sum(axis=1)
    return values


#: Criteria of the logits ``[N, C]`` of the target images alone, by name; the other name of :data:`NAMES` is ``dev``.
OF_LOGITS: Mapping[str, Callable[[Any], float]] = {"im": im, "snd": snd, "bnm": bnm, "entropy": entropy}
