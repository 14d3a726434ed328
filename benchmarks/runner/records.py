"""The record of a cell: what was measured, by which method on which data, where, and its notes."""

from __future__ import annotations

import datetime
from typing import Any

from benchmarks.runner.embeddings import BATCH
from benchmarks.runner.environment import environment
from benchmarks.runner.plan import Cell, unvalidated
from benchmarks.runner.resources import Resources
from benchmarks.store.records import Fit, Record, Status
from methods.registry import METHODS


def make_record(resources: Resources, cell: Cell, status: Status, **values: Any) -> Record:
    """A cell's record, with this process's environment and the current time.

    ``values`` are further fields of :class:`~benchmarks.store.records.Record`.
    """
    method: dict[str, Any] = {}
    dataset: dict[str, Any] = {}
    notes: list[str] = []
    if cell.id.split != "*":
        card, data = METHODS.get(cell.id.method).card, resources.dataset(cell.id.dataset).card
        task = resources.task(cell.id.dataset, cell.id.protocol, cell.id.split)
        retrievals = {retrieval.name for retrieval in task.retrievals}
        extensions = {
            name: card.extension(task.protocol, "retrieval" if name in retrievals else "classification")
            for name in cell.galleries
        }
        method = {
            "title": card.title,
            "floor": card.floor,
            "extensions": {name: text for name, text in extensions.items() if text},
            # scores depend on the batch where a method mixes the images of one (SRE-CLIP's released evaluation)
            "encode_batch": BATCH,
        }
        source = resources.dataset(cell.id.dataset)
        dataset = {"title": data.title, "version": data.version, "gallery_domain": data.gallery_domain}
        dataset |= {"facts": list(source.facts), "left_out": source.left_out}
        notes = [*task.notes, *source.name_notes]
        if source.left_out:
            notes.append(f"left out of the data: {source.left_out}")
        if missing := unvalidated(resources.settings, task, METHODS.get(cell.id.method)):
            notes.append(missing)
        if values.get("fit"):
            notes += search_notes(values["fit"])
    return Record(
        key=cell.key,
        status=status,
        cell=cell.id,
        inputs=dict(cell.inputs),
        method=method,
        dataset=dataset,
        galleries={name: list(metrics) for name, metrics in cell.galleries.items()},
        environment=environment(resources.device, resources.settings.threads),
        notes=notes,
        created=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **values,
    )


def search_notes(fit: Fit) -> list[str]:
    """A note on how the learning rate was picked: a tie, or that no trial has a score."""
    if not fit.trials:
        return []
    scores = [trial.get("validation") for trial in fit.trials]
    known = [score for score in scores if score is not None]
    if not known:
        return [f"no learning rate of the grid has a validation score: {fit.learning_rate:g} taken as configured"]
    tied = [trial["learning_rate"] for trial, score in zip(fit.trials, scores, strict=True) if score == max(known)]
    if len(tied) == 1:
        return []
    return [f"learning rates {', '.join(f'{rate:g}' for rate in tied)} tie in validation: the first is taken"]
