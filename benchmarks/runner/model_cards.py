"""The model card of a fit, from its records."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.store.records import Record
from methods.cards.model_card import ModelScore, model_card
from methods.registry import METHODS


def scored_card(records: Sequence[Record]) -> str:
    """README.md of the weights that these records (one or more of one fit) were measured with."""
    first = records[0]
    config = dict(first.cell.config)
    if first.fit.learning_rate is not None:
        config["learning_rate"] = first.fit.learning_rate
    scores = [score for record in records for score in scores_of(record)]
    return model_card(METHODS.get(first.cell.method).card, config, first.cell.backbone, scores)


def scores_of(record: Record) -> list[ModelScore]:
    """A record's scores, one entry a gallery or classification; the metrics that lead its tables come first."""
    cell = record.cell
    made = []
    for question, scores in record.scores.items():
        leading = [name for name in record.galleries.get(question, ()) if name in scores.metrics]
        names = [*leading, *(name for name in scores.metrics if name not in leading)]
        title = f"{record.dataset.get('title', cell.dataset)} {record.dataset.get('version', '')}".strip()
        made.append(
            ModelScore(
                dataset=cell.dataset,
                title=title,
                protocol=cell.protocol,
                split=cell.split,
                question=question,
                metrics={name: scores.metrics[name] for name in names},
                seed=cell.seed,
                rules=cell.rules,
                selection=cell.select,
                key=record.key,
            )
        )
    return made
