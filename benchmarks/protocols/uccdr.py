"""UcCDR: seen domains, unseen classes (docs/protocols.md, column UcCDR).

Training sees the train classes in all domains, without the held-back images. Queries are each domain's images of
the test classes (the gallery domain's excepted); galleries as in UCDR. One training serves all query domains.
"""

from __future__ import annotations

from benchmarks.datasets.base import Dataset
from benchmarks.protocols.task import Protocol, Rows, Rules, Task
from benchmarks.protocols.ucdr import unseen_class_task


class Uccdr(Protocol):
    """Seen domains and unseen classes; one task a query domain, all with the same training data."""

    name = "uccdr"
    summary = "queries of a seen domain and unseen classes"
    galleries = ("unseen", "mixed")

    def splits(self, dataset: Dataset) -> list[str]:
        """The query domains: all but the gallery domain."""
        return list(Rows(dataset).query_domains)

    def task(self, dataset: Dataset, split: str, rules: Rules = "clean") -> Task:
        """The task that queries with domain ``split``."""
        return unseen_class_task(self.name, dataset, split, rules, held_out=None)


PROTOCOL = Uccdr()
