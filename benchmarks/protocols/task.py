"""Tasks: what a protocol makes of a dataset - who may be trained on, what is queried, what is searched.

A :class:`Task` names rows of the dataset's table and nothing else. Two tasks with the same ``fit_id`` show a method the
same training data, so one fitted model answers both.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from benchmarks.datasets.base import Dataset, DatasetError

Rules = Literal["clean", "official"]


@dataclass(frozen=True)
class Retrieval:
    """One retrieval question: ``query`` and ``gallery`` are table rows; ``name`` names the gallery."""

    name: str
    query: np.ndarray
    gallery: np.ndarray


@dataclass(frozen=True)
class Task:
    """One cell's data.

    ``split`` is what varies inside a protocol (the query domain in the UCDR family). ``train`` are the labelled rows,
    ``target`` the unlabelled ones (None where the protocol shows none), ``class_names`` what the method may know during
    training, ``validation`` the retrieval that scores a model during training.
    """

    protocol: str
    dataset: str
    rules: Rules
    split: str
    train: np.ndarray
    class_names: tuple[str, ...]
    retrievals: tuple[Retrieval, ...]
    validation: Retrieval | None = None
    target: np.ndarray | None = None
    notes: tuple[str, ...] = ()
    fit_id: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha256()
        for rows in (self.train, self.target if self.target is not None else np.zeros(0, dtype=np.int64)):
            digest.update(np.ascontiguousarray(rows, dtype=np.int64).tobytes() + b"|")
        if self.validation is not None:
            digest.update(self.validation.query.tobytes() + b"|" + self.validation.gallery.tobytes())
        digest.update(f"{self.dataset}|{self.rules}|{self.class_names}".encode())
        object.__setattr__(self, "fit_id", digest.hexdigest()[:16])

    def check(self, dataset: Dataset) -> None:
        """Assert what every clean task promises; raises :class:`DatasetError` naming the breach.

        Training and test rows are disjoint; no query stands in its gallery; nothing is empty. Under the official rules
        trained-on gallery pictures are allowed (that is the flaw those rules keep).
        """
        name = f"{self.dataset}/{self.protocol}/{self.split}"
        trained = np.union1d(self.train, self.target) if self.target is not None else self.train
        for retrieval in self.retrievals:
            if len(retrieval.query) == 0 or len(retrieval.gallery) == 0:
                raise DatasetError(
                    f"{name}: no {'queries' if len(retrieval.query) == 0 else 'gallery'} ({retrieval.name})"
                )
            if len(np.intersect1d(retrieval.query, retrieval.gallery)):
                raise DatasetError(f"{name}: a query stands in the gallery ({retrieval.name})")
            if self.rules == "clean":
                for role, rows in (("query", retrieval.query), ("gallery", retrieval.gallery)):
                    both = np.intersect1d(rows, trained)
                    if len(both):
                        key = dataset.table["key"].iloc[both[0]]
                        raise DatasetError(f"{name}: {role} picture {key!r} is also trained on")
        if self.rules == "clean":
            classes = set(dataset.table["class"].to_numpy()[self.train])
            if classes - set(self.class_names):
                raise DatasetError(f"{name}: trains on classes whose names are withheld")


@dataclass(frozen=True)
class HeadlineFigure:
    """The figure that leads a protocol's tables."""

    metric: str
    name: str


class Protocol(ABC):
    """A protocol: turns a dataset into tasks, one a split."""

    name: str
    summary: str
    #: Galleries (retrieval names) in the order tables show them.
    galleries: tuple[str, ...]

    @abstractmethod
    def splits(self, dataset: Dataset) -> list[str]:
        """What the protocol varies on this dataset, e.g. the query domains."""

    @abstractmethod
    def task(self, dataset: Dataset, split: str, rules: Rules = "clean") -> Task:
        """The task of one split."""


class Rows:
    """Selections of a dataset's rows that the protocols share; all results are sorted int64 row numbers."""

    def __init__(self, dataset: Dataset) -> None:
        table = dataset.table
        self.classes = table["class"].to_numpy()
        self.domains = table["domain"].to_numpy()
        self.splits = table["split"].to_numpy()
        self.held_back = table["held_back"].to_numpy(dtype=bool)
        self.gallery = dataset.card.gallery_domain
        self.query_domains = tuple(domain for domain in dataset.domains if domain != self.gallery)

    def of(self, split: str, *, domains: tuple[str, ...] | None = None, held_back: bool | None = None) -> np.ndarray:
        """Rows of a class split, optionally of some domains, optionally only (or never) held-back ones."""
        mask = self.splits == split
        if domains is not None:
            mask &= np.isin(self.domains, domains)
        if held_back is not None:
            mask &= self.held_back == held_back
        return np.flatnonzero(mask).astype(np.int64)

    def validation(self, seen_domains: tuple[str, ...]) -> Retrieval | None:
        """Validation task: validation classes, seen domains but the gallery's, against the gallery domain."""
        queries = self.of("val", domains=tuple(d for d in seen_domains if d != self.gallery))
        gallery = self.of("val", domains=(self.gallery,))
        return Retrieval("validation", queries, gallery) if len(queries) and len(gallery) else None
