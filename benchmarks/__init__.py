"""Benchmarks: datasets, protocols, evaluation, the runner, the store and the reports.

For notebooks (nothing is imported before it is used):

* :func:`load_results` - stored scores as a pandas frame, one row a metric and cell;
* :func:`retrieve` - the nearest gallery pictures of each query under a method.
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

__all__ = ["load_results", "retrieve"]

# Waiting OpenMP threads that spin make two threads slower than one on a busy machine. Read when torch is loaded.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
offer_to_nltk()


def load_results(path: str | Path) -> pd.DataFrame:
    """Every record under a results folder: one row a cell, gallery and metric (:func:`benchmarks.store.load_results`).

    Raises ``FileNotFoundError`` if there is no such folder; an unreadable record is a failed row, with a warning.
    """
    from benchmarks.store import load_results

    return load_results(path)


def retrieve(
    method: Method, queries: Tensor, gallery: Tensor, k: int = 10, *, batch_size: int = 64
) -> tuple[np.ndarray, np.ndarray]:
    """The ``k`` gallery pictures nearest to each query under a fitted method, best first.

    ``queries [Q, 3, H, W]`` and ``gallery [N, 3, H, W]`` are RGB in [0, 1] at the backbone's size. Returns gallery
    positions (int64) and scores (float64: cosine, or minus the squared Euclidean distance where that is the method's
    similarity), both ``[Q, min(k, N)]``. Raises ``ValueError`` for an empty gallery or k < 1.
    """
    import torch

    from benchmarks.evaluation.search import search

    if len(gallery) == 0:
        raise ValueError("the gallery is empty; there is nothing to search")
    with torch.no_grad():
        encoded = [
            torch.cat([method.encode_images(part).float().cpu() for part in pictures.split(batch_size)])
            for pictures in (queries, gallery)
        ]
    found = search(encoded[0], encoded[1], k, similarity=method.card.similarity)
    return found.ids, found.scores
