"""UDA, unsupervised domain adaptation on a closed class set (docs/protocols.md, column UDA).

Training sees labelled images of the source domain and unlabelled images of the target domain; both hold the same
classes, whose names are known. Test: accuracy on the target images, and retrieval from target to source (gallery: the
source images trained on). As the field does, the unlabelled training images are the test images (transductive);
``uda_inductive`` splits the target in half, one for training and one for the test. Where a data set is published with a
train and a test part of every domain (column ``part`` of its table), training sees the train parts alone and the test
is the target's test part. Validation: a held-out tenth of the source; target labels are never looked at. The official
rules train on the whole source and select on the target's test images, as the released code does.
"""

from __future__ import annotations

import hashlib

import numpy as np

from benchmarks.datasets.base import Dataset, DatasetError
from benchmarks.protocols.task import Classification, Protocol, Retrieval, Rules, Task, held_out_tenth, named_transfers


class Uda(Protocol):
    """The data set's transfers: all ordered pairs of its UDA domains, unless it says otherwise."""

    name = "uda"
    summary = "labelled source, unlabelled target, closed class set"
    galleries = ("source",)
    inductive = False

    def splits(self, dataset: Dataset) -> list[str]:
        """``"source to target"`` for every pair (12 for four domains)."""
        return list(named_transfers(dataset.uda_pairs))

    def task(self, dataset: Dataset, split: str, rules: Rules = "clean") -> Task:
        """The transfer ``split``; under the official rules nothing is held out, and selection looks at the test set."""
        transfers = named_transfers(dataset.uda_pairs)
        if split not in transfers:
            raise DatasetError(f"{dataset.card.name} has no UDA transfer {split!r}; choose from {list(transfers)}")
        source, target = transfers[split]
        table, names = dataset.table, dataset.closed_set.uda_classes
        classes, domains, keys = (table[column].to_numpy() for column in ("class", "domain", "key"))
        inside = table["class"].isin(names).to_numpy()
        parts = table["part"].to_numpy() if "part" in table else None
        labelled = np.flatnonzero(inside & (domains == source)).astype(np.int64)
        test = shown = np.flatnonzero(inside & (domains == target)).astype(np.int64)
        if parts is not None:
            labelled = labelled[parts[labelled] == "train"]
            shown, test = test[parts[test] == "train"], test[parts[test] == "test"]
        train, held_out = (labelled, None) if rules == "official" else held_out_tenth(labelled, classes, keys)
        if self.inductive and parts is None:
            even = np.array([hashlib.sha256(str(keys[row]).encode()).digest()[0] % 2 == 0 for row in test])
            test, shown = test[even], test[~even]
        question = Classification("target", test, names)
        return Task(
            protocol=self.name,
            dataset=dataset.card.name,
            rules=rules,
            split=split,
            transfer=(source, target),
            train=train,
            target=shown,
            class_names=names,
            retrievals=(Retrieval("source", test, train),),
            classifications=(question,),
            validation=question if held_out is None else Classification("validation", held_out, names),
            transductive=not self.inductive and parts is None,
            gallery_trained=True,
            notes=("selected on test",) if rules == "official" else (),
        )


class InductiveUda(Uda):
    """UDA with unlabelled training images and test images apart."""

    name = "uda_inductive"
    summary = "UDA whose test images no training sees"
    inductive = True


PROTOCOL = Uda()
INDUCTIVE = InductiveUda()
