"""From a task to what a method may see: the adapter between protocols and :class:`methods.interface.TrainingData`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from benchmarks.datasets.pixels import DatasetImages, PixelCache
from benchmarks.protocols.selection import Question, selection_question
from benchmarks.protocols.task import Task
from methods.interface import Method, TrainingData

#: ``score(method, question)``: mAP@all of a retrieval, accuracy of a classification, H where classes are seen or not,
#: the value of a selector without target labels.
ScoreFunction = Callable[[Method, Question], float]


def training_data(task: Task, cache: PixelCache, score: ScoreFunction, *, select: str = "val") -> TrainingData:
    """What ``fit`` gets for a task.

    Labels index ``task.class_names``, domains the sorted names of the domains trained on; WordNet synsets are those of
    the class names shown. ``validate`` scores the question that ``select`` chooses on
    (:func:`~benchmarks.protocols.selection.selection_question`); under ``oracle`` it is a selection on test data,
    marked in every table.
    """
    table = cache.dataset.table
    classes, domains = table["class"].to_numpy()[task.train], table["domain"].to_numpy()[task.train]
    domain_names = tuple(sorted(set(domains)))
    number_of = {name: number for number, name in enumerate(task.class_names)}
    question = selection_question(task, select)
    synsets = {name: synset for name, synset in cache.dataset.synsets.items() if name in number_of}
    return TrainingData(
        protocol=task.protocol,
        images=DatasetImages(cache, task.train),
        labels=torch.tensor([number_of[name] for name in classes], dtype=torch.int64),
        domains=torch.from_numpy(np.searchsorted(domain_names, domains).astype(np.int64)),
        class_names=task.class_names,
        domain_names=domain_names,
        validate=None if question is None else lambda method: score(method, question),
        target=None if task.target is None else DatasetImages(cache, task.target),
        synsets=synsets,
        synsets_published=cache.dataset.synsets_published,
        select=select,
        target_domain=None if task.target is None or task.transfer is None else task.transfer[1],
    )
