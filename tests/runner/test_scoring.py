"""Scores of a fitted model: retrieval under both rules, classification image by image."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.protocols.task import Classification
from benchmarks.runner import scoring
from benchmarks.runner.embeddings import EncodedImages
from benchmarks.runner.resources import Resources
from benchmarks.runner.settings import Settings
from methods.parts.feeding import unit_range
from methods.zero_shot import ZeroShot
from tests.runner.probe import by_split, run


class Points(ZeroShot):
    """Embeddings with a single 1 and class embeddings of whole numbers, so that logits are exact and often equal."""

    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.one_hot(pixels.mean(dim=1).flatten(1)[:, 5::61].argmax(dim=1), 20).float()

    def encode_classes(self, names: Sequence[str]) -> torch.Tensor:
        return torch.randint(-3, 4, (len(names), 20), generator=torch.Generator().manual_seed(len(names))).float()

    def logit_scale(self) -> float:
        return 4.0


@pytest.mark.parametrize("held", [1, 100, 777])
def test_logits_in_blocks_give_the_same_answers(
    settings: Settings, tiny_dataset: Any, monkeypatch: pytest.MonkeyPatch, held: int
) -> None:
    resources = Resources(settings)
    pixels, classes = resources.pixels("tiny"), tiny_dataset().classes()
    for method in (Points(resources.backbone), ZeroShot(resources.backbone)):
        encoded = EncodedImages(method.encode_images, pixels, lambda n: None)
        for rules, seen in (("clean", None), ("clean", classes[:3]), ("official", classes[:3])):
            question = Classification("all", np.arange(len(pixels.dataset.table)), classes, seen)
            whole = scoring.score_classification(method, encoded, question, rules, top=4)
            with monkeypatch.context() as patch:
                patch.setattr(scoring, "LOGITS", held)
                assert rules != "clean" or len(list(scoring.class_logits(method, encoded, question, rules))) > 2
                parts = scoring.score_classification(method, encoded, question, rules, top=4)
            np.testing.assert_array_equal(parts.scores.credit, whole.scores.credit)
            assert parts.scores.means() == whole.scores.means()
            if isinstance(method, Points):
                assert torch.equal(parts.best_logits, whole.best_logits)
                assert torch.equal(parts.best_classes, whole.best_classes)
            torch.testing.assert_close(parts.best_logits, whole.best_logits)


def test_logits_of_a_wrong_shape_are_refused(settings: Settings, tiny_dataset: Any) -> None:
    class Wide(ZeroShot):
        def classify(self, pixels: torch.Tensor, names: Sequence[str]) -> torch.Tensor:
            return torch.zeros(len(pixels), len(names) + 1)

    resources = Resources(settings)
    encoded = EncodedImages(lambda pixels: pixels.mean(dim=(2, 3)), resources.pixels("tiny"), lambda n: None)
    question = Classification("all", np.arange(9), tiny_dataset().classes())
    with pytest.raises(ValueError, match=r"logits of 9 images have shape \(9, 13\), not \[9, 12\]"):
        scoring.score_classification(Wide(resources.backbone), encoded, question, "clean")


def test_official_rules_rank_raw_features_by_distance(settings: Settings) -> None:
    settings = dataclasses.replace(settings, methods=("zero_shot",), protocols=("ucdr",), rules="official")
    _, _, store, _ = run(settings)
    record = by_split(store)["line"]
    assert record.scores["unseen"].similarity == "sqeuclidean"
    assert record.scores["unseen"].without_relevant == "zero"
    assert "selected on test" in record.notes
    resources = Resources(settings)
    method, cache = ZeroShot(resources.backbone), resources.pixels("tiny")
    task = resources.task("tiny", "ucdr", "line").retrievals[0]
    query, gallery = (method.encode_raw(unit_range(cache[rows])) for rows in (task.query, task.gallery))
    assert float((query.norm(dim=1) - 1).abs().max()) > 0.05, "raw features are not of unit length"
    nearest = torch.cdist(query, gallery).argsort(dim=1)[:, 0]
    frame = store.per_query(record)
    tops = frame[frame["gallery"] == "unseen"]["top_keys"].str[0].tolist()
    keys = cache.dataset.table["key"].to_numpy()[task.gallery]
    assert tops == keys[nearest.numpy()].tolist()


class LongEmbeddings(ZeroShot):
    """Zero-shot CLIP whose embeddings are of many lengths, as a method of another package may give them."""

    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        return 7 * super().encode_images(pixels)

    def encode_classes(self, names: Sequence[str]) -> torch.Tensor:
        return torch.arange(1.0, len(names) + 1)[:, None] * super().encode_classes(names)


def test_classification_is_scored_and_kept_image_by_image(settings: Settings) -> None:
    from benchmarks.protocols.registry import PROTOCOLS
    from benchmarks.runner.resources import DATASETS

    closed = DATASETS.get("tiny")().closed_set
    for name in {"uda", "dazsl"} - set(PROTOCOLS.names()):
        PROTOCOLS.add(name, f"benchmarks.protocols.{name}:PROTOCOL", summary="added by a test")
    settings = dataclasses.replace(settings, methods=("zero_shot", "raw_pixel"), protocols=("uda", "dazsl"))
    resources = Resources(settings)
    _, outcome, store, _ = run(settings, resources)
    assert outcome.counts == {"ok": 6 + 1 + 6, "not_applicable": 1}
    records = {(r.cell.method, r.cell.protocol, r.cell.split): r for r in store.records()}
    refused = records["raw_pixel", "dazsl", "line to flat"]
    assert refused.status == "not_applicable"
    assert "has no images of" in refused.reason
    record = records["zero_shot", "uda", "flat to glyph"]
    assert set(record.scores) == {"source", "target"}
    assert record.galleries["target"] == ["accuracy[image]"]
    target = record.scores["target"]
    assert (target.n_queries, target.gallery_size, target.similarity) == (36, 6, "logits")
    frame = store.per_query(record).query("gallery == 'target'")
    assert frame["credit"].mean() == pytest.approx(target.metrics["accuracy[image]"])
    method, pixels = ZeroShot(resources.backbone), resources.pixels("tiny")
    question = resources.task("tiny", "uda", "flat to glyph").classifications[0]
    slow = method.classify(unit_range(pixels[question.rows]), closed.uda_classes)
    encoded = EncodedImages(method.encode_images, pixels, lambda count: None)
    fast = torch.cat(list(scoring.class_logits(method, encoded, question, "clean")))
    torch.testing.assert_close(fast, slow, rtol=1e-5, atol=1e-5)
    asked = torch.cat(list(scoring.class_logits(method, encoded, question, "official")))
    torch.testing.assert_close(asked, slow, rtol=1e-5, atol=1e-5)
    long = LongEmbeddings(resources.backbone)
    encoded = EncodedImages(long.encode_images, pixels, lambda count: None)
    scaled = torch.cat(list(scoring.class_logits(long, encoded, question, "clean")))
    torch.testing.assert_close(scaled, slow, rtol=1e-5, atol=1e-4)
    whole = long.classify(unit_range(pixels[question.rows]), closed.uda_classes)
    torch.testing.assert_close(whole, slow, rtol=1e-5, atol=1e-4)
    best = slow.argmax(dim=1)
    assert frame["top_keys"].str[0].tolist() == [closed.uda_classes[i] for i in best]
    right = frame["top_keys"].str[0] == frame["class"]
    assert right.mean() == pytest.approx(target.metrics["accuracy[image]"])
    scores = records["zero_shot", "dazsl", "line to flat"].scores["target"]
    assert {"h[image]", "seen[image]", "unseen[image]", "zsl[class]"} <= set(scores.metrics)
    limit = dataclasses.replace(settings, limit=12, out=settings.out + "2", methods=("zero_shot",))
    assert run(limit)[1].counts == {"ok": 7}
