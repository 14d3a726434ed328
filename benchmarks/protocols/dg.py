"""DG, domain generalisation on a closed class set: classify images of a domain that no training sees.

For each domain h of the data set's closed set: training sees labelled images of all classes in the other domains,
without a held-out fifth of each; no image of h. Test: accuracy on all images of h among the class names. Validation is
DomainBed's training-domain validation (Gulrajani and Lopez-Paz, "In Search of Lost Domain Generalization", ICLR 2021,
section 3): the mean over the training domains of the accuracy on their held-out fifths.

What differs from DomainBed's code: the fifth is of each class and domain, the images whose keys hash lowest, not a
random draw; all images of h are tested, where DomainBed leaves a fifth of them out.

Where a data set is published with a train and a test part of every domain (column ``part`` of its table), training and
validation see the train parts alone and the test is h's test part.
"""

from __future__ import annotations

import numpy as np

from benchmarks.datasets.base import Dataset, DatasetError
from benchmarks.protocols.task import Classification, Protocol, Rules, Task, lowest_hashes

#: Share of each training domain's images, class by class, that validation takes (DomainBed: ``holdout_fraction``).
HELD_OUT = 0.2


class Dg(Protocol):
    """Leave one domain out; one task a domain of a closed set with three domains or more."""

    name = "dg"
    summary = "classify a domain that no training sees, closed class set"
    galleries = ()

    def splits(self, dataset: Dataset) -> list[str]:
        """The held-out domains: those of the closed set; none where it has fewer than three."""
        domains = dataset.dg_set[0]
        return list(domains) if len(domains) > 2 else []

    def task(self, dataset: Dataset, split: str, rules: Rules = "clean") -> Task:
        """The task that holds out domain ``split``.

        Raises :class:`~benchmarks.datasets.base.DatasetError` for another domain, or the official rules.
        """
        domains, names = dataset.dg_set
        if split not in self.splits(dataset):
            raise DatasetError(f"{dataset.card.name} has no DG domain {split!r}; choose from {self.splits(dataset)}")
        if rules == "official":
            raise DatasetError(f"{dataset.card.name}: dg has clean rules only; leave --rules out, or dg")
        table = dataset.table
        classes, of_domain, keys = (table[column].to_numpy() for column in ("class", "domain", "key"))
        inside = table["class"].isin(names).to_numpy()
        parts = table["part"].to_numpy() if "part" in table else None
        train: list[np.ndarray] = []
        validation: list[np.ndarray] = []
        for domain in (name for name in domains if name != split):
            rows = np.flatnonzero(inside & (of_domain == domain)).astype(np.int64)
            if parts is not None:
                rows = rows[parts[rows] == "train"]
            held_out = lowest_hashes(rows, classes, keys, held_out_count)
            validation.append(held_out)
            train.append(np.setdiff1d(rows, held_out))
        test = np.flatnonzero(inside & (of_domain == split)).astype(np.int64)
        if parts is not None:
            test = test[parts[test] == "test"]
        rows = np.sort(np.concatenate(validation))
        return Task(
            protocol=self.name,
            dataset=dataset.card.name,
            rules=rules,
            split=split,
            train=np.sort(np.concatenate(train)),
            class_names=names,
            classifications=(Classification("target", test, names),),
            validation=Classification("validation", rows, names, each_domain=True),
        )


def held_out_count(images: int) -> int:
    """How many of a class's images in a domain validation takes: a fifth, at least one of two or more."""
    return max(1, round(HELD_OUT * images)) if images >= 2 else 0


PROTOCOL = Dg()
