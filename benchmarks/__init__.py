"""Benchmarks: datasets, protocols, evaluation, the runner, the store and the reports.

For notebooks (nothing is imported before it is used):

* :func:`load_results` - stored scores as a pandas frame, one row a metric and cell;
* :func:`load_method` - a fitted method whose weights ``--keep-weights`` or ``Method.save`` wrote;
* :func:`retrieve` - the nearest gallery images of each query under a method.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.datasets.wordnet import offer_to_nltk

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd
    from torch import Tensor

    from methods.interface import Method
    from methods.parts.backbone import Backbone

__all__ = ["load_method", "load_results", "retrieve"]

# Waiting OpenMP threads that spin make two threads slower than one on a busy machine. Read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
offer_to_nltk()


def load_results(path: str | Path) -> pd.DataFrame:
    """Every record under a results folder: one row a cell, gallery and metric.

    Raises ``FileNotFoundError`` if there is no such folder, ``PermissionError`` if it cannot be read; an unreadable
    record is a failed row, with a warning.
    """
    from benchmarks.store.frame import load_results

    return load_results(path)


def load_method(path: str | Path, backbone: str | Path | Backbone | None = None, device: str | None = None) -> Method:
    """A fitted method, ready to encode, on the backbone that its file names.

    ``path``: a record whose weights were kept, a folder of weights, a results folder with the weights of one fit, or
    what ``Method.save`` was given. ``backbone``: a name, folder or loaded backbone in place of the file's; ``device``:
    where it computes (default: a GPU if there is one). Raises ``ValueError``, in one line, for weights that are missing
    or damaged, or a backbone with other weights, another config or tokenizer.
    """
    from benchmarks.applying.loading import load_method

    return load_method(path, backbone, device).method


def retrieve(
    method: Method, queries: Tensor, gallery: Tensor, k: int = 10, *, batch_size: int = 64
) -> tuple[np.ndarray, np.ndarray]:
    """The ``k`` gallery images nearest to each query under a fitted method, best first.

    ``queries [Q, 3, H, W]`` and ``gallery [N, 3, H, W]`` are RGB at the backbone's size: floats in [0, 1], or uint8.
    Returns gallery positions (int64) and scores (float64: cosine, or minus the squared Euclidean distance where that is
    the method's similarity), both ``[Q, min(k, N)]``. Raises ``ValueError`` for an empty gallery, ``k`` or
    ``batch_size`` below 1, another shape or type, and floats that are NaN or outside [0, 1].
    """
    import torch

    from benchmarks.evaluation.search import search

    images = [_pixels(name, images) for name, images in (("queries", queries), ("gallery", gallery))]
    if len(gallery) == 0:
        raise ValueError("the gallery is empty; there is nothing to search")
    for name, number in (("k", k), ("batch_size", batch_size)):
        if isinstance(number, bool) or not isinstance(number, int) or number < 1:
            raise ValueError(f"{name} must be a whole number of at least 1, not {number!r}")
    with torch.no_grad():
        encoded = [
            torch.cat([method.encode_images(_unit(part)).float().cpu() for part in batch.split(batch_size)])
            for batch in images
        ]
    ranking = search(encoded[0], encoded[1], k, similarity=method.card.similarity)
    return ranking.ids, ranking.scores


#: How far beyond [0, 1] a float may be: rounding, not the overshoot of an interpolation.
_ROUNDING = 1e-4


def _pixels(name: str, images: Tensor) -> Tensor:
    """The images, checked; raises ``ValueError`` in one line that names the argument."""
    import torch

    if not isinstance(images, torch.Tensor):
        hint = "; torch.from_numpy makes one of an array" if hasattr(images, "__array__") else ""
        raise ValueError(f"{name} must be a torch tensor [B, 3, H, W], not {type(images).__name__}{hint}")
    if images.ndim != 4 or images.shape[1] != 3:
        raise ValueError(f"{name} must be RGB images [B, 3, H, W], not of shape {list(images.shape)}")
    if images.dtype == torch.uint8:
        return images
    if not images.is_floating_point():
        raise ValueError(f"{name} must be floats in [0, 1] or uint8, not {images.dtype}")
    if not images.numel():
        return images
    low, high = (float(value) for value in torch.aminmax(images))
    if not (low >= -_ROUNDING and high <= 1 + _ROUNDING):  # NaN is neither
        hint = "divide by 255" if high > 2 else "clamp them after an interpolation, and undo any normalisation"
        raise ValueError(f"{name} must be in [0, 1], not from {low:g} to {high:g}; {hint}")
    return images


def _unit(images: Tensor) -> Tensor:
    """float32 in [0, 1]."""
    return images.float() if images.is_floating_point() else images.float().div_(255)
