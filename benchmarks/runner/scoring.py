"""Scores of a fitted model on one question of a task: ranking of a retrieval, accuracy of a classification."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from benchmarks.evaluation.classification import ClassificationScores, classify, classify_zero_shot
from benchmarks.evaluation.ranking import RULES, RetrievalScores, rank
from benchmarks.protocols.task import Classification, Retrieval
from benchmarks.runner.embeddings import BATCH, EncodedImages
from methods.interface import Method, unit_length
from methods.parts.feeding import feed, unit_range

#: Logits held at a time (64 MiB).
LOGITS = 1 << 24


def score_retrieval(
    method: Method, encoded: EncodedImages, retrieval: Retrieval, rules: str, *, ks: tuple[int, ...], top: int = 0
) -> RetrievalScores:
    """Rank a retrieval's gallery for each query under the rules; clean rules take the method's own similarity."""
    labels = encoded.pixels.dataset.table["class"].to_numpy()
    options = dict(RULES[rules])
    if rules == "clean":
        options["similarity"] = method.card.similarity
    return rank(
        encoded[retrieval.query],
        encoded[retrieval.gallery],
        labels[retrieval.query],
        labels[retrieval.gallery],
        ks=ks,
        top=top,
        **options,
    )


@dataclass(frozen=True)
class ClassAnswers:
    """The result of a classification: the accuracy, and of each image the classes ``best_classes [B, k]``
    with the highest logits ``best_logits [B, k]``, best first."""

    scores: ClassificationScores
    best_classes: Tensor
    best_logits: Tensor


def score_classification(
    method: Method,
    encoded: EncodedImages,
    question: Classification,
    rules: str,
    *,
    top: int = 0,
    known: Tensor | None = None,
) -> ClassAnswers:
    """Accuracy of a method's predictions, and the ``top`` best classes of each image.

    The logits of all images and classes are never held together, only :data:`LOGITS` of them at a time; ``known`` are
    they, where a caller holds them already.
    """
    number_of = {name: number for number, name in enumerate(question.class_names)}
    of_image = encoded.pixels.dataset.table["class"].to_numpy()[question.rows]
    labels = np.array([number_of[name] for name in of_image], dtype=np.int64)
    best: list[tuple[Tensor, Tensor]] = []

    def blocks() -> Iterator[Tensor]:
        given = class_logits(method, encoded, question, rules) if known is None else iter([known])
        for logits in given:
            values, classes = logits.topk(min(top, logits.shape[1]), dim=1)
            best.append((classes, values))
            yield logits

    if question.seen is None:
        scores = classify(blocks(), labels)
    else:
        scores = classify_zero_shot(blocks(), labels, [number_of[name] for name in question.seen])
    return ClassAnswers(scores, *(torch.cat(part) for part in zip(*best, strict=True)))


def class_logits(method: Method, encoded: EncodedImages, question: Classification, rules: str) -> Iterator[Tensor]:
    """Logits ``[images, classes]`` of a question, float32 on the CPU, in blocks of images.

    A method that classifies as :class:`Method` does (cosine to the class embedding) has its names embedded once and its
    images taken from ``encoded``; ``classify`` of any other method is called batch by batch.
    """
    names, rows = question.class_names, question.rows
    with torch.no_grad():
        if type(method).classify is Method.classify and rules == "clean":
            encoded.encode(rows)
            classes = unit_length(method.encode_classes(names).float().cpu()).T
            # about equally many images in each block: one left over alone would be rounded otherwise
            for block in np.array_split(rows, math.ceil(len(rows) * len(names) / LOGITS)):
                images = torch.nn.functional.normalize(encoded[block], dim=-1)
                yield method.logit_scale() * images @ classes
            return
        parts = [rows[start : start + BATCH] for start in range(0, len(rows), BATCH)]
        with closing(feed(parts, lambda part: (encoded.pixels[part],), method.device)) as fed:
            for batch, (pixels,) in fed:
                started = time.perf_counter()
                logits = method.classify(unit_range(pixels), names).float().cpu()
                encoded.seconds += time.perf_counter() - started
                encoded.count += len(batch)
                if logits.shape != (len(batch), len(names)):
                    expected = [len(batch), len(names)]
                    raise ValueError(f"logits of {len(batch)} images have shape {tuple(logits.shape)}, not {expected}")
                yield logits
