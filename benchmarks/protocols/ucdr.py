"""UCDR, universal cross-domain retrieval: queries of an unseen domain and unseen classes (docs/protocols.md, UCDR).

For a held-out domain h and the gallery domain g: training sees labelled images of the train classes in all domains
but h, without the held-back ones. Queries are h's images of the test classes. Gallery ``unseen``: g's images of
classes; gallery ``mixed``: those and g's held-back images of train classes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from benchmarks.datasets.base import Dataset
from benchmarks.protocols import official
from benchmarks.protocols.task import Protocol, Retrieval, Rows, Rules, Task


def clean_training(rows: Rows, held_out: str | None, dataset: Dataset) -> np.ndarray:
    """Train classes, all domains but ``held_out``, without held-back images."""
    domains = tuple(domain for domain in dataset.domains if domain != held_out)
    return rows.of("train", domains=domains, held_back=False)


class OfficialListing:
    """The released code's lists for one dataset, as its :class:`~benchmarks.datasets.base.ReleasedListing` says.

    Training classes are the train classes, then in most cases the validation classes.
    """

    def __init__(self, dataset: Dataset, rows: Rows) -> None:
        self.rows = rows
        self.released = dataset.released
        validation = dataset.classes("val") if self.released.trains_on_validation else ()
        self.class_names = (*dataset.classes("train"), *validation)
        self.test_classes = dataset.classes("test")
        self._files = {key: np.sort(rows) for key, rows in dataset.table.groupby(["domain", "class"]).indices.items()}

    def files(self, domain: str, classes: Sequence[str]) -> list[list[int]]:
        """Rows of each class in a domain, in key order; none for a class without images in the domain."""
        none = np.zeros(0, dtype=np.int64)
        return [self._files.get((domain, name), none).tolist() for name in classes]

    def training(self, held_out: str | None, domains: Sequence[str]) -> np.ndarray:
        """92 % of the gallery domain (all of it where there is no mixed gallery), all of the other seen domains."""
        files = self.files(self.rows.gallery, self.class_names)
        parts = official.generalised(files)[0] if self.released.mixed_gallery else official.plain(files)
        for domain in domains:
            if domain not in (held_out, self.rows.gallery):
                parts += official.plain(self.files(domain, self.class_names))
        return np.array(sorted(parts), dtype=np.int64)

    def galleries(self) -> dict[str, np.ndarray]:
        """Gallery rows by name: ``unseen``, and ``mixed`` where the released code has it."""
        unseen = official.plain(self.files(self.rows.gallery, self.test_classes))
        galleries = {"unseen": unseen}
        if self.released.mixed_gallery:
            galleries["mixed"] = official.generalised(self.files(self.rows.gallery, self.class_names))[1] + unseen
        return {name: np.array(sorted(rows), dtype=np.int64) for name, rows in galleries.items()}


def unseen_class_task(protocol: str, dataset: Dataset, query_domain: str, rules: Rules, held_out: str | None) -> Task:
    """UCDR (``held_out`` is the query domain) and UcCDR (``held_out`` is None) share all but the training domains."""
    rows = Rows(dataset)
    queries = rows.of("test", domains=(query_domain,))
    if rules == "official":
        listing = OfficialListing(dataset, rows)
        galleries = listing.galleries()
        train, class_names = listing.training(held_out, dataset.domains), listing.class_names
        validation: Retrieval | None = Retrieval("test data (official rules)", queries, galleries["unseen"])
        merged = ("validation classes are trained on",) if listing.released.trains_on_validation else ()
        inverted = tuple(f"{domain} images are inverted" for domain in listing.released.inverted)
        notes: tuple[str, ...] = ("selected on test", *merged, *inverted)
    else:
        unseen = rows.of("test", domains=(rows.gallery,))
        held_back = rows.of("train", domains=(rows.gallery,), held_back=True)
        galleries = {"unseen": unseen, "mixed": np.union1d(unseen, held_back)}
        train, class_names = clean_training(rows, held_out, dataset), dataset.classes("train")
        validation, notes = rows.validation(tuple(domain for domain in dataset.domains if domain != held_out))
    return Task(
        protocol=protocol,
        dataset=dataset.card.name,
        rules=rules,
        split=query_domain,
        train=train,
        class_names=class_names,
        retrievals=tuple(Retrieval(name, queries, gallery) for name, gallery in galleries.items()),
        validation=validation,
        notes=notes,
    )


class Ucdr(Protocol):
    """Unseen domain and unseen classes; one task a held-out domain."""

    name = "ucdr"
    summary = "queries of an unseen domain and unseen classes"
    galleries = ("unseen", "mixed")

    def splits(self, dataset: Dataset) -> list[str]:
        """The held-out (query) domains: all but the gallery domain."""
        return list(Rows(dataset).query_domains)

    def task(self, dataset: Dataset, split: str, rules: Rules = "clean") -> Task:
        """The task that holds out domain ``split``."""
        return unseen_class_task(self.name, dataset, split, rules, held_out=split)


PROTOCOL = Ucdr()
