"""Records with made-up per-query values, for tests of what is computed from a store."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from benchmarks.evaluation.classification import harmonic_mean
from benchmarks.store.files import ResultStore
from benchmarks.store.records import CellId, GalleryScores, Record, content_key

CLASSES = 12
PER_CLASS = 3


def retrieval_table(ap: np.ndarray, gallery: str = "unseen", domain: str = "line") -> pd.DataFrame:
    """Per-query table of one gallery: ``ap`` [Q] over classes of ``PER_CLASS`` queries each."""
    n = len(ap)
    return pd.DataFrame(
        {
            "query": [f"{domain}/{i:03d}" for i in range(n)],
            "class": [f"class {i // PER_CLASS}" for i in range(n)],
            "domain": domain,
            "gallery": gallery,
            "ap@all": ap,
            "recall@1": (ap > 0.5).astype(float),
            "top_keys": [["x"]] * n,
        }
    )


def zero_shot_table(credit: np.ndarray, unseen_from: int, gallery: str = "target") -> pd.DataFrame:
    """Per-image table of a classification; classes from ``unseen_from`` on are unseen."""
    table = retrieval_table(credit, gallery)[["query", "class", "domain", "gallery"]]
    unseen = np.arange(len(credit)) // PER_CLASS >= unseen_from
    return table.assign(credit=credit, zsl_credit=np.where(unseen, credit, np.nan))


def metrics_of(table: pd.DataFrame) -> dict[str, float]:
    """The stored means of a table."""
    if "credit" in table:
        unseen = table["zsl_credit"].notna()
        seen_mean, unseen_mean = table["credit"][~unseen].mean(), table["credit"][unseen].mean()
        h = harmonic_mean(seen_mean, unseen_mean)
        return {"h[image]": h, "seen[image]": seen_mean, "unseen[image]": unseen_mean}
    return {"map@all": float(table["ap@all"].mean()), "recall@1": float(table["recall@1"].mean())}


def add(
    store: ResultStore,
    method: str,
    split: str,
    tables: pd.DataFrame | None,
    *,
    per_query: bool = True,
    dropped: tuple[str, ...] = (),
    status: str = "",
    galleries: tuple[str, ...] = ("unseen",),
    reason: str = "RuntimeError: boom",
    code: int = 1,
    created: str = "2026-01-01T00:00:00+00:00",
    data_hash: str = "ab" * 32,
    **changes: Any,
) -> Record:
    """Store a record with these per-query values (all its galleries in one table); None is a cell without a score.

    ``code`` changes the key and nothing else, ``changes`` fields of the cell. ``per_query=False`` leaves the side file
    out, ``dropped`` some of its columns.
    """
    cell = CellId(
        **{
            "method": method, "variant": "paper", "config": {}, "backbone": "picto-clip-v1", "dataset": "tiny",
            "protocol": "ucdr", "rules": "clean", "split": split, "select": "val", "seed": 0, **changes,
        }
    )  # fmt: skip
    inputs = {
        "scoring": 1,
        "code": code,
        "cell": vars(cell),
        "dataset": {"data_hash": data_hash},
        "backbone": {"weights_hash": "cd" * 32, "precision": "float32"},
    }
    scores = {}
    if tables is not None:
        scores = {
            str(gallery): GalleryScores(metrics_of(table.dropna(axis=1, how="all")), len(table), 24, "cosine")
            for gallery, table in tables.groupby("gallery", sort=False)
        }
    record = Record(
        key=content_key(inputs),
        status=status or ("failed" if tables is None else "ok"),  # type: ignore[arg-type]
        cell=cell,
        inputs=inputs,
        method={"title": method, "floor": method == "random"},
        dataset={"version": "v1", "gallery_domain": "flat"},
        galleries={name: list(one.metrics) for name, one in scores.items()}
        or {name: ["map@all", "recall@1"] for name in galleries},
        scores=scores,
        reason="" if tables is not None else reason,
        created=created,
    )
    side = None if tables is None or not per_query else tables.drop(columns=list(dropped))
    return store.write(record, side)
