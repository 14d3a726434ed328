"""DAZSL, domain-adaptive zero-shot learning (docs/protocols.md, column DAZSL).

Training sees labelled source images of the seen classes, unlabelled target images of seen and unseen classes, and
all class names. Test: target images among all class names; the headline is the harmonic mean H of the accuracies on
seen and on unseen classes, beside them the accuracy on all and the zero-shot accuracy among unseen classes only.
Validation looks at the source alone, by class and by image: source images of the validation classes, which are
never labelled in training, play the unseen ones, and a held-out tenth of the seen classes' images the seen ones.
Where the source has no images of further classes (I2AwA, I2WebV), validation is the accuracy on that tenth. The
official rules train on all source images of the seen classes, use no further names and select on the target, as the
released code.
"""

from __future__ import annotations

import numpy as np

from benchmarks.datasets.base import Dataset, DatasetError
from benchmarks.protocols.task import Classification, Protocol, Rules, Task, held_out_tenth, named_transfers


class Dazsl(Protocol):
    """The data set's (source, target) pairs."""

    name = "dazsl"
    summary = "labelled source of seen classes, unlabelled target of seen and unseen ones"
    galleries = ()

    def splits(self, dataset: Dataset) -> list[str]:
        """``"source to target"`` for every pair that the data set defines."""
        return list(named_transfers(dataset.closed_set.dazsl_pairs))

    def task(self, dataset: Dataset, split: str, rules: Rules = "clean") -> Task:
        """The pair ``split``; under the official rules nothing is held out, and selection looks at the test set."""
        transfers = named_transfers(dataset.closed_set.dazsl_pairs)
        if split not in transfers:
            raise DatasetError(f"{dataset.card.name} has no DAZSL pair {split!r}; choose from {list(transfers)}")
        source, target = transfers[split]
        closed, table = dataset.closed_set, dataset.table
        classes, domains, keys = (table[column].to_numpy() for column in ("class", "domain", "key"))
        of_source, of_target = domains == source, domains == target

        def rows(mask: np.ndarray, names: tuple[str, ...]) -> np.ndarray:
            return np.flatnonzero(mask & table["class"].isin(names).to_numpy()).astype(np.int64)

        test_names = (*closed.seen, *closed.unseen)
        test, labelled = rows(of_target, test_names), rows(of_source, closed.seen)
        question = Classification("target", test, test_names, seen=closed.seen)
        validation_classes: tuple[str, ...] = ()
        if rules == "official":
            train, validation = labelled, question
        else:
            validation_classes = tuple(name for name in dataset.classes("val") if name not in test_names)
            train, held_out = held_out_tenth(labelled, classes, keys)
            pretended = np.union1d(held_out, rows(of_source, validation_classes))
            known = closed.seen if len(pretended) > len(held_out) > 0 else None
            validation = Classification("validation", pretended, (*closed.seen, *validation_classes), seen=known)
        return Task(
            protocol=self.name,
            dataset=dataset.card.name,
            rules=rules,
            split=split,
            transfer=(source, target),
            train=train,
            target=test,
            class_names=(*test_names, *validation_classes),
            classifications=(question,),
            validation=validation,
            transductive=True,
            notes=("selected on test",) if rules == "official" else (),
        )


PROTOCOL = Dazsl()
