"""What each way to select a model would have picked of the checkpoints that were validated, and its regret."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.store.records import Record

#: Columns of the table: the best checkpoint, then the ways to select.
SELECTOR_ORDER = ("oracle", "val", "last", "im", "snd", "bnm", "entropy", "dev")

#: One checkpoint's values by way to select (``Fit.checkpoints`` of a record).
Checkpoint = Mapping[str, Any]


@dataclass(frozen=True)
class SelectorPicks:
    """A method's picks on a protocol: means over ``fits`` pools of ``checkpoints`` (on average) each.

    ``over``: ``steps`` of the fits, or ``rates and steps`` of learning-rate searches. ``scores``: the score on the test
    data of what each way to select picks, a fraction; ``oracle`` is the best. ``question``: what is scored.
    """

    method: str
    label: str
    protocol: str
    question: str
    over: str
    fits: int
    checkpoints: float
    scores: Mapping[str, float]

    def regret(self, name: str) -> float:
        """How far the pick is below the best checkpoint."""
        return self.scores["oracle"] - self.scores[name]


def picks(label: str, protocol: str, records: Sequence[Record]) -> list[SelectorPicks]:
    """The rows of a method on a protocol: over the steps of its fits, and over the trials of its searches.

    ``records``: of one configuration. Of cells that share a fit, one has its checkpoints. A fit with a single
    checkpoint is left out.
    """
    rows = []
    pools = {
        "steps": [last_stage(one.fit.checkpoints) for one in records],
        "rates and steps": [trials for one in _one_a_search(records) if (trials := searched(one))],
    }
    question = next((question_of(one) for one in records), "")
    for over, of_kind in pools.items():
        of_kind = [pool for pool in map(scored, of_kind) if len(pool) > 1]  # of one there is nothing to choose
        found = [picked(pool, last=over == "steps") for pool in of_kind]
        if not found:
            continue
        names = [name for name in SELECTOR_ORDER if all(name in one for one in found)]
        scores = {name: math.fsum(one[name] for one in found) / len(found) for name in names}
        mean = math.fsum(len(pool) for pool in of_kind) / len(found)
        method = records[0].cell.method
        rows.append(SelectorPicks(method, label, protocol, question, over, len(found), mean, scores))
    return rows


def means_over_methods(picks: Iterable[SelectorPicks]) -> list[SelectorPicks]:
    """For each question that several methods answer, the mean over them of what each way to select picks."""
    of_question: dict[tuple[str, str, str], list[SelectorPicks]] = {}
    for one in picks:
        of_question.setdefault((one.protocol, one.question, one.over), []).append(one)
    means = []
    for (protocol, question, over), found in of_question.items():
        if len(found) < 2:
            continue
        names = [name for name in SELECTOR_ORDER if all(name in one.scores for one in found)]
        scores = {name: math.fsum(one.scores[name] for one in found) / len(found) for name in names}
        fits = sum(one.fits for one in found)
        checkpoints = math.fsum(one.checkpoints * one.fits for one in found) / fits
        label = f"mean of {len(found)} methods"
        means.append(SelectorPicks("", label, protocol, question, over, fits, round(checkpoints, 1), scores))
    return means


def question_of(record: Record) -> str:
    """The question whose score is a checkpoint's ``oracle``: the first classification, else the first retrieval."""
    classified = [name for name, metrics in record.galleries.items() if any("[image]" in one for one in metrics)]
    return next(iter([*classified, *record.galleries]), "")


def picked(pool: Sequence[Checkpoint], *, last: bool = True) -> dict[str, float]:
    """The test score of what each way to select picks: the first checkpoint with its highest value.

    Empty for a pool without test scores; a way without a finite value is left out, ``last`` too unless asked for.
    """
    pool = scored(pool)
    if not pool:
        return {}
    scores = {"last": float(pool[-1]["oracle"])} if last else {}
    for name in SELECTOR_ORDER:
        known = [one for one in pool if _finite(one.get(name))]
        if known and name != "last":
            scores[name] = float(max(known, key=lambda one: one[name])["oracle"])
    return scores


def scored(pool: Sequence[Checkpoint]) -> list[Checkpoint]:
    """The checkpoints that have a score on the test data."""
    return [one for one in pool if _finite(one.get("oracle"))]


def last_stage(checkpoints: Sequence[Checkpoint]) -> list[Checkpoint]:
    """The checkpoints of the training's last stage: those of earlier ones are no finished models."""
    return [one for one in checkpoints if one.get("stage") == checkpoints[-1].get("stage")]


def searched(record: Record) -> list[Checkpoint]:
    """The checkpoints of all trials of a record's learning-rate search; none unless two trials have some."""
    trials = [last_stage(trial["checkpoints"]) for trial in record.fit.trials if trial.get("checkpoints")]
    return [one for trial in trials for one in trial] if len(trials) > 1 else []


def _one_a_search(records: Iterable[Record]) -> list[Record]:
    """One record of each search: all seeds of a training set share it."""
    return list({(one.fit.fit_id, one.cell.split): one for one in records}.values())


def _finite(value: Any) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)
