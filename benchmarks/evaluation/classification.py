"""Accuracy of class scores: per image and per class, and over seen and unseen classes (generalised zero-shot).

Every figure names how it averages: ``[image]`` is the share of images classified right, ``[class]`` the mean over
the classes present of the share within each class. The zero-shot figures:

===========  =========================================================================================================
``seen``     images of seen ("known") classes, predicted among all classes
``unseen``   images of unseen ("unknown") classes, predicted among all classes
``all``      all images, predicted among all classes
``h``        harmonic mean of ``seen`` and ``unseen``; 0 if either is 0
``zsl``      images of unseen classes, predicted among the unseen classes
===========  =========================================================================================================

The SRE-CLIP release reports ``h[image]``, the harmonic mean of the two per-image accuracies.

Ties: classes whose score is within `TIE` (relative to the largest magnitude among the allowed ones) of the best
share the prediction, so that a model that gives t classes equal scores gets 1/t whatever their order.

Images are scored one by one, so memory follows the blocks that are given, not the number of images.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd

Scores = Any  # a matrix, or an iterator of matrices

_CELLS = 2**21  # scores looked at together: 16 MiB as float64

TIE = 1e-6
"""Relative width of a tie: a few float32 roundings, as matrix products of equal class embeddings differ by them."""


@dataclass(frozen=True, eq=False)
class ClassificationScores:
    """What class scores earned, image by image.

    Attributes:
        labels: int64 [B], true class of each image (column of the scores).
        credit: float64 [B], 1 for a correct prediction, 0 for a wrong one, 1/t for one of t tied classes.
        zsl_credit: the same among unseen classes only, NaN for images of seen classes; None without a
            split into seen and unseen.
        unseen: bool [C], which classes are unseen; None without such a split.
    """

    labels: NDArray[np.int64]
    credit: NDArray[np.float64]
    zsl_credit: NDArray[np.float64] | None = None
    unseen: NDArray[np.bool_] | None = None

    def means(self) -> dict[str, float]:
        """``accuracy[image]``, ``accuracy[class]``, or the zero-shot figures of the module's docstring, both ways."""
        if self.unseen is None or self.zsl_credit is None:
            return _both("accuracy", self.credit, self.labels)
        is_unseen = self.unseen[self.labels]
        figures = {
            **_both("seen", self.credit[~is_unseen], self.labels[~is_unseen]),
            **_both("unseen", self.credit[is_unseen], self.labels[is_unseen]),
            **_both("all", self.credit, self.labels),
            **_both("zsl", self.zsl_credit[is_unseen], self.labels[is_unseen]),
        }
        for way in ("image", "class"):
            figures[f"h[{way}]"] = harmonic_mean(figures[f"seen[{way}]"], figures[f"unseen[{way}]"])
        return figures

    def per_image(self) -> pd.DataFrame:
        """One row an image: ``label``, ``credit`` and, with a split, ``unseen`` and ``zsl_credit``."""
        import pandas as pd

        columns: dict[str, Any] = {"label": self.labels, "credit": self.credit}
        if self.unseen is not None:
            columns |= {"unseen": self.unseen[self.labels], "zsl_credit": self.zsl_credit}
        return pd.DataFrame(columns).rename_axis("image")

    def per_class(self) -> Mapping[int, float]:
        """Accuracy of each class present."""
        return {int(c): float(self.credit[self.labels == c].mean()) for c in np.unique(self.labels)}


def classify(scores: Scores, labels: Any) -> ClassificationScores:
    """Score class scores on a closed set of classes.

    Args:
        scores: [B, C] logits or probabilities, torch or numpy, higher is better; or an iterator of such blocks of
            images, in order, which need not be in memory together.
        labels: [B] true columns.

    Raises:
        ValueError: shapes that do not fit, NaN in the scores, labels outside the columns, or no images.
    """
    return _classify(scores, labels, None)


def classify_zero_shot(scores: Scores, labels: Any, seen: Any) -> ClassificationScores:
    """Score class scores where some classes were never labelled in training (DAZSL).

    Args:
        scores: [B, C] logits or probabilities of images of seen and unseen classes, higher is better; or blocks, as
            `classify`.
        labels: [B] true columns.
        seen: ids of the seen classes, or a boolean mask [C].

    Raises:
        ValueError: as `classify`, or if there are no images of seen or of unseen classes.
    """
    return _classify(scores, labels, seen)


def harmonic_mean(a: float, b: float) -> float:
    """2ab / (a + b), and 0 where both are 0."""
    return 2 * a * b / (a + b) if a + b > 0 else 0.0


def _both(name: str, credit: NDArray[np.float64], labels: NDArray[np.int64]) -> dict[str, float]:
    _, index, count = np.unique(labels, return_inverse=True, return_counts=True)
    of_class = np.bincount(index, weights=credit) / count
    return {f"{name}[image]": float(credit.mean()), f"{name}[class]": float(of_class.mean())}


def _credit(scores: NDArray[np.float64], labels: NDArray[np.int64], allowed: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Share of the prediction on the true class, when tied classes share it; [B]."""
    considered = np.where(allowed, scores, -np.inf)
    best = considered.max(axis=1, keepdims=True)
    width = TIE * np.abs(np.where(allowed, scores, 0.0)).max(axis=1, keepdims=True)
    tied = considered >= best - width
    return tied[np.arange(len(labels)), labels] / tied.sum(axis=1)


def _classify(scores: Scores, labels: Any, seen: Any) -> ClassificationScores:
    y = _on_cpu(labels)
    if y.ndim == 1 and len(y) == 0:
        raise ValueError("there are no images to classify")
    credit, zsl_credit = np.empty(len(y)), np.full(len(y), np.nan)
    everything, unseen, width = np.ones(0, bool), np.zeros(0, bool), -1
    done = bad = 0
    for s in _blocks(scores, y.shape):
        part = slice(done, done + len(s))
        done += len(s)
        if done > len(y) or (width >= 0 and s.shape[1] != width):
            raise ValueError(f"blocks of scores have {done} or more images of {len(y)}, or differ in their classes")
        if width < 0:
            width = s.shape[1]
            if y.dtype.kind not in "iu" or y.min() < 0 or y.max() >= width:
                raise ValueError(f"labels must be columns of the scores, integers from 0 to {width - 1}")
            y, everything = y.astype(np.int64), np.ones(width, bool)
            unseen = np.zeros(width, bool) if seen is None else _unseen(seen, width, y)
        broken = ~np.isfinite(s).all(axis=1)
        bad += int(broken.sum())
        if not bad:
            credit[part] = _credit(s, y[part], everything)
            of_unseen = unseen[y[part]]
            zsl_credit[part][of_unseen] = _credit(s[of_unseen], y[part][of_unseen], unseen)
    if done != len(y):
        raise ValueError(f"blocks of scores have {done} images, not {len(y)}")
    if bad:
        raise ValueError(f"class scores of {bad} of {len(y)} images are NaN or infinite")
    return ClassificationScores(y, credit) if seen is None else ClassificationScores(y, credit, zsl_credit, unseen)


def _unseen(seen: Any, width: int, labels: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Mask [C] of the unseen classes, checked against the images."""
    chosen = _on_cpu(seen)
    if chosen.dtype == bool and chosen.shape != (width,):
        raise ValueError(f"the mask of seen classes has shape {chosen.shape}; the scores have {width} classes")
    if chosen.dtype != bool and (chosen.ndim != 1 or ((chosen < 0) | (chosen >= width)).any()):
        raise ValueError(f"seen classes must be ids from 0 to {width - 1}, got {chosen.tolist()}")
    unseen = np.ones(width, bool)
    unseen[chosen if chosen.dtype == bool else chosen.astype(np.int64)] = False
    is_unseen = unseen[labels]
    if not is_unseen.any() or is_unseen.all():
        raise ValueError(
            f"seen and unseen accuracy need images of both: {(~is_unseen).sum()} of seen classes, "
            f"{is_unseen.sum()} of unseen ones were given"
        )
    return unseen


def _on_cpu(values: Any) -> NDArray[Any]:
    """Torch (of any device), numpy or a list -> numpy."""
    return np.asarray(values.detach().cpu() if hasattr(values, "detach") else values)


def _blocks(scores: Scores, labels: tuple[int, ...]) -> Iterator[NDArray[np.float64]]:
    """The scores as float64, a bounded number at a time; ``labels`` is the labels' shape."""
    for given in scores if isinstance(scores, Iterator) else [scores]:
        rows = given.detach().cpu() if hasattr(given, "detach") else np.asarray(given)
        if rows.ndim != 2 or len(labels) != 1 or (given is scores and labels != (len(rows),)):
            raise ValueError(
                f"scores must be [images, classes] with one label an image, got {tuple(rows.shape)} and {labels}"
            )
        step = max(1, _CELLS // max(1, rows.shape[1]))
        for start in range(0, len(rows), step):
            part = rows[start : start + step]
            yield np.asarray(part.double() if hasattr(part, "double") else part, dtype=np.float64)
