"""What chooses a model on a task: its validation question, its test question, or target images without labels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from benchmarks.protocols.task import Classification, Retrieval, Task

#: Selectors without target labels (:mod:`benchmarks.evaluation.selectors`), in the order tables show them.
LABEL_FREE = ("im", "snd", "bnm", "entropy", "dev")


@dataclass(frozen=True)
class LabelFree:
    """What a selector without target labels looks at.

    ``target`` are the unlabelled rows, classified among ``class_names``. ``dev`` also reads the ``source`` rows trained
    on and the ``held_out`` question, labelled images of the source; None for the others.
    """

    selector: str
    target: np.ndarray
    class_names: tuple[str, ...]
    source: np.ndarray
    held_out: Classification | None = None


#: What a model is chosen on.
Question = Retrieval | Classification | LabelFree


def refused(task: Task, selector: str) -> str:
    """Why a selector cannot be used on a task, in one line; "" if it can, and for ``val``, ``last`` and ``oracle``."""
    if selector not in LABEL_FREE:
        return ""
    if task.target is None or not task.classifications:
        return (
            f"it looks at unlabelled target images, and protocol {task.protocol} shows none to classify; take"
            " --protocols uda or dazsl, or --select val"
        )
    return ""


def selection_question(task: Task, selector: str) -> Question | None:
    """The question whose score chooses a model: ``val`` and ``last`` the validation task, ``oracle`` the first test
    question (classification before retrieval), others unlabelled target images. None where the task has none."""
    if selector == "oracle":
        tests: tuple[Question, ...] = (*task.classifications, *task.retrievals)
        return tests[0]
    if selector not in LABEL_FREE:
        return task.validation
    held_out = task.validation if isinstance(task.validation, Classification) else None
    if refused(task, selector) or task.target is None or (selector == "dev" and held_out is None):
        return None
    names = task.classifications[0].class_names
    return LabelFree(selector, task.target, names, task.train, held_out if selector == "dev" else None)
