"""The value of a model for each way to choose one: validation, test, or target images without labels."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from benchmarks.evaluation.selectors import OF_LOGITS, dev
from benchmarks.protocols.selection import LabelFree, Question, selection_question
from benchmarks.protocols.task import Classification, Task
from benchmarks.runner.embeddings import EncodedImages
from benchmarks.runner.scoring import class_logits, score_classification, score_retrieval
from methods.interface import Method

#: Images of one kind that ``snd`` and ``dev`` look at, at most: their cost grows with the square of the images, or with
#: every image trained on. Of more, those whose keys have the lowest hashes.
SAMPLE = 10_000

#: Logits that the other selectors look at, at most (512 MiB), but at least those of :data:`SAMPLE` images.
LOGITS = 2**27


class SelectionScores:
    """Scores of a method with its current weights, for several ways to choose; what they share is computed once."""

    def __init__(self, method: Method, encoded: EncodedImages, rules: str) -> None:
        self._method, self._encoded, self._rules = method, encoded, rules
        self._logits: dict[tuple[bytes, tuple[str, ...]], torch.Tensor] = {}

    def score(self, question: Question) -> float:
        """mAP@all of a retrieval; accuracy, H or the mean over domains of a classification; a selector's value."""
        if isinstance(question, LabelFree):
            return self._label_free(question)
        if isinstance(question, Classification):
            known = self._logits.get((question.rows.tobytes(), question.class_names))
            answers = score_classification(self._method, self._encoded, question, self._rules, known=known)
            if question.each_domain:
                domains = self._encoded.pixels.dataset.table["domain"].to_numpy()[question.rows]
                return float(np.mean([answers.scores.credit[domains == name].mean() for name in np.unique(domains)]))
            return answers.scores.means()["accuracy[image]" if question.seen is None else "h[image]"]
        return score_retrieval(self._method, self._encoded, question, self._rules, ks=()).means()["map@all"]

    def _label_free(self, question: LabelFree) -> float:
        name, table = question.selector, self._encoded.pixels.dataset.table
        most = SAMPLE if name in ("snd", "dev") else max(SAMPLE, LOGITS // len(question.class_names))
        target = sample(question.target, table["key"].to_numpy(), most)
        if name != "dev":
            return OF_LOGITS[name](self._of_rows(target, question.class_names))
        assert question.held_out is not None
        held_out, source = question.held_out, sample(question.source, table["key"].to_numpy(), most)
        number_of = {name: number for number, name in enumerate(held_out.class_names)}
        labels = np.array([number_of[name] for name in table["class"].to_numpy()[held_out.rows]], dtype=np.int64)
        trained, unlabelled, asked = (self._encoded[rows] for rows in (source, target, held_out.rows))
        return dev(trained, unlabelled, asked, self._of_rows(held_out.rows, held_out.class_names), labels)

    def _of_rows(self, rows: np.ndarray, names: tuple[str, ...]) -> torch.Tensor:
        """Logits ``[len(rows), len(names)]``; kept, as several selectors read the same ones."""
        key = rows.tobytes(), names
        if key not in self._logits:
            asked = Classification("target", rows, names)
            self._logits[key] = torch.cat(list(class_logits(self._method, self._encoded, asked, self._rules)))
        return self._logits[key]


def sample(rows: np.ndarray, keys: np.ndarray, count: int) -> np.ndarray:
    """At most ``count`` of the table ``rows``, sorted: those whose keys have the lowest sha256."""
    if len(rows) <= count:
        return rows
    order = sorted(rows.tolist(), key=lambda row: hashlib.sha256(str(keys[row]).encode()).digest())
    return np.array(sorted(order[:count]), dtype=np.int64)


def checkpoint_values(task: Task, selectors: Sequence[str], score: Callable[[Question], float]) -> Mapping[str, float]:
    """What a record keeps of a checkpoint: its value for each selector, ``val`` and ``oracle`` (the score on the test
    data, which chooses nothing unless ``--select oracle``); without those that the task has no question for.

    NaN where a selector has no value (too few images).
    """
    questions = {name: selection_question(task, name) for name in ("val", *selectors, "oracle")}
    values: dict[str, float] = {}
    for name, question in questions.items():
        if question is None:
            continue
        try:
            values[name] = score(question)
        except ValueError:
            if not isinstance(question, LabelFree):
                raise
            values[name] = math.nan
    return values
