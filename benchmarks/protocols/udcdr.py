"""UdCDR: unseen domain, seen classes (docs/protocols.md, column UdCDR).

The same training data as UCDR (so the same fitted model). Queries are the held-out domain's images of the train
classes; the gallery is the gallery domain's held-back images of the train classes.
"""

from __future__ import annotations

import numpy as np

from benchmarks.datasets.base import Dataset
from benchmarks.protocols import official
from benchmarks.protocols.task import Protocol, Retrieval, Rows, Rules, Task
from benchmarks.protocols.ucdr import OfficialListing, unseen_class_task


class Udcdr(Protocol):
    """Unseen domain and seen classes; one task a held-out domain."""

    name = "udcdr"
    summary = "queries of an unseen domain and seen classes"
    galleries = ("seen",)

    def splits(self, dataset: Dataset) -> list[str]:
        """The held-out (query) domains: all but the gallery domain."""
        return list(Rows(dataset).query_domains)

    def task(self, dataset: Dataset, split: str, rules: Rules = "clean") -> Task:
        """The task that holds out domain ``split``."""
        rows = Rows(dataset)
        fitted = unseen_class_task("ucdr", dataset, split, rules, held_out=split)
        if rules == "official":
            listing, share = OfficialListing(dataset, rows), official.udcdr_share(split)
            queries = np.array(
                sorted(official.udcdr_sample(listing.files(split, listing.class_names), share)), dtype=np.int64
            )
            gallery = np.array(
                sorted(official.udcdr_sample(listing.files(rows.gallery, listing.class_names), share)), dtype=np.int64
            )
            notes = (*fitted.notes, "gallery images are trained on", "first 45 train classes only")
        else:
            queries = rows.of("train", domains=(split,))
            gallery = rows.of("train", domains=(rows.gallery,), held_back=True)
            notes = fitted.notes
        return Task(
            protocol=self.name,
            dataset=dataset.card.name,
            rules=rules,
            split=split,
            train=fitted.train,
            class_names=fitted.class_names,
            retrievals=(Retrieval("seen", queries, gallery),),
            validation=fitted.validation,
            notes=notes,
        )


PROTOCOL = Udcdr()
