"""Sketch_LVM: its loss against naive loops, its triplets, its prompts, and whose prompts an image gets."""

from __future__ import annotations

import math
import re
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from methods.parts.backbone import Backbone
from methods.sketch_lvm import SketchLvm, triplet_terms
from methods.training.loop import seeded
from tests.methods.test_baselines import NAMES, Toy, quiet, task


def unit(vector: list[float]) -> list[float]:
    length = math.sqrt(sum(value * value for value in vector))
    return [value / length for value in vector]


def naive_distance(first: list[float], second: list[float], distance: str) -> float:
    first, second = unit(first), unit(second)
    if distance == "squared":
        return sum((a - b) ** 2 for a, b in zip(first, second, strict=True))
    return 1 - sum(a * b for a, b in zip(first, second, strict=True))


@pytest.mark.parametrize("distance", ["squared", "cosine"])
def test_a_triplet_is_a_hinge_of_two_distances(distance: Any) -> None:
    anchors, positives, negatives = torch.randn(3, 40, 5, generator=torch.Generator().manual_seed(1))
    found = triplet_terms(anchors, positives, negatives, margin=0.3, distance=distance)
    expected = []
    for a, p, n in zip(anchors.tolist(), positives.tolist(), negatives.tolist(), strict=True):
        gap = 0.3 + naive_distance(a, p, distance) - naive_distance(a, n, distance)
        expected.append(gap if gap > 0 else 0.0)
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-5)
    assert 0 < sum(value == 0 for value in expected) < 40


def make(backbone: Backbone, **changes: Any) -> SketchLvm:
    return SketchLvm(backbone, SketchLvm.Config(**{"steps": 2, "batch_size": 12, "learning_rate": 1e-3, **changes}))


@pytest.mark.parametrize("negatives", ["other", "any"])
def test_triplets_cross_domains_and_classes(negatives: Any, tiny_backbone: Backbone) -> None:
    data, method = task(), make(tiny_backbone, negatives=negatives)
    stream, same_class = method.batches(data, torch.Generator().manual_seed(0)), 0
    for _ in range(40):
        anchors, positives, others = next(stream).view(3, -1)
        assert len(anchors) == 12
        assert torch.equal(data.labels[anchors], data.labels[positives])
        assert (data.domains[anchors] != data.domains[positives]).all()
        assert torch.equal(data.domains[positives], data.domains[others])
        assert (positives != others).all()
        same_class += int((data.labels[anchors] == data.labels[others]).sum())
        assert torch.equal(torch.bincount(data.domains[anchors]), torch.tensor([4, 4, 4]))
    assert (same_class > 0) == (negatives == "any")


def stock_feature(backbone: Backbone, image: Tensor, prompts: Tensor) -> Tensor:
    """The stock vision tower with prompts behind the class token."""
    vision = backbone.model.vision_model
    tokens = vision.embeddings(image[None])
    hidden = vision.pre_layrnorm(torch.cat([tokens[:, :1], prompts[None], tokens[:, 1:]], dim=1))
    for block in vision.encoder.layers:
        hidden = block(hidden, None)
    return backbone.model.visual_projection(vision.post_layernorm(hidden[0, 0]))


def test_the_first_loss_is_that_of_a_loop(tiny_backbone: Backbone) -> None:
    data, method = task(), make(tiny_backbone, steps=1, learning_rate=0.0)
    report = method.fit(data, seed=0, log=quiet)
    prompts = method.tensors()["prompts"]
    index = next(method.batches(data, seeded(0, 1)))
    anchors, positives, negatives = index.view(3, -1).tolist()
    texts = tiny_backbone.encode_texts([f"a photo of a {name.replace('_', ' ')}" for name in NAMES[:4]])
    pixels = tiny_backbone.normalize(data.images.pixels(torch.arange(len(data.images))))

    def feature(number: int) -> Tensor:
        return stock_feature(tiny_backbone, pixels[number], prompts[int(data.domains[number])])

    def class_loss(number: int) -> float:
        logits = [
            tiny_backbone.logit_scale * float(F.cosine_similarity(feature(number), text, dim=0)) for text in texts
        ]
        top = max(logits)
        return top + math.log(sum(math.exp(one - top) for one in logits)) - logits[int(data.labels[number])]

    total = 0.0
    with torch.no_grad():
        for a, p, n in zip(anchors, positives, negatives, strict=True):
            far, near = (naive_distance(feature(a).tolist(), feature(x).tolist(), "squared") for x in (n, p))
            total += max(0.0, 0.3 + near - far) + 0.5 * (class_loss(a) + class_loss(p))
    assert report.losses[0]["loss"] == pytest.approx(total / len(anchors), rel=1e-4)


def test_an_image_gets_the_prompts_of_the_nearest_domain(tiny_backbone: Backbone) -> None:
    data, method = task(), make(tiny_backbone)
    method.fit(data, seed=0, log=quiet)
    pixels = data.images.pixels(torch.arange(len(data.images)))
    frozen = F.normalize(tiny_backbone.encode_images(tiny_backbone.normalize(pixels)), dim=1)
    means = [F.normalize(frozen[data.domains == domain].mean(dim=0), dim=0) for domain in range(3)]
    learned, nearest = method.tensors(), []
    for number in range(12):
        domain = max(range(3), key=lambda one: float(frozen[number] @ means[one]))
        expected = stock_feature(method.tower, tiny_backbone.normalize(pixels)[number], learned["prompts"][domain])
        torch.testing.assert_close(method.encode_raw(pixels[number : number + 1])[0], expected, rtol=0, atol=1e-5)
        nearest.append(domain)
    assert len(set(nearest)) > 1
    assert learned["prompts"].shape == (3, 3, 32)


def test_one_set_of_prompts_needs_no_domain(tiny_backbone: Backbone) -> None:
    for data, changes in ((task(), {"prompts": "common"}), (task(domains=1), {})):
        method = make(tiny_backbone, **changes)
        method.fit(data, seed=0, log=quiet)
        assert method.tensors()["prompts"].shape == (1, 3, 32)
        assert "domain_means" not in method.tensors()


def test_a_negative_of_the_anchors_class_counts_for_nothing(tiny_backbone: Backbone) -> None:
    """One domain with one class of its own: no negative can be had there."""
    labels = torch.tensor([0] * 6 + [1] * 6)
    data = task(domains=1)
    data.images, data.labels, data.domains = Toy(labels, labels * 0), labels * 0, labels * 0
    report = make(tiny_backbone, class_weight=0.0).fit(data, seed=0, log=quiet)
    assert [entry["loss"] for entry in report.losses] == [0.0, 0.0]


LAYERNORMS = r"vision_model\..*(layrnorm|layer_norm1|layer_norm2|post_layernorm)\.(weight|bias)"
MORE = r"|vision_model\..*\.[qkv]_proj\.(weight|bias)|vision_model\.embeddings\.(class|position)_embedding(\.weight)?"


@pytest.mark.parametrize(
    ("changes", "pattern", "count"),
    [
        ({}, LAYERNORMS, (2 * 2 + 2) * 2),
        ({"norms": False}, "nothing", 0),
        ({"train_unnamed": True}, LAYERNORMS + MORE + r"|visual_projection\.weight", (2 * 2 + 2) * 2 + 2 * 6 + 3),
    ],
)
def test_it_trains_prompts_and_the_named_weights(
    changes: dict[str, Any], pattern: str, count: int, tiny_backbone: Backbone
) -> None:
    method = make(tiny_backbone, **changes)
    method.fit(task(), seed=0, log=quiet)
    rest = set(method.trainable()) - {"prompts"}
    assert len(rest) == count
    assert all(re.fullmatch(pattern, name) for name in rest)


def test_the_rates_are_those_of_prompts_and_of_norms(tiny_backbone: Backbone) -> None:
    method = make(tiny_backbone, norm_rate=0.1, learning_rate=1e-3)
    method.fit(task(), seed=0, log=quiet)
    prompts, norms = method.optimizer().param_groups
    assert (prompts["lr"], len(prompts["params"])) == (1e-3, 1)
    assert (norms["lr"], len(norms["params"])) == (pytest.approx(1e-4), 12)


def test_the_released_codes_settings() -> None:
    config = SketchLvm.Config(**SketchLvm.variants["official"])
    assert (config.margin, config.distance, config.class_weight, config.batch_size) == (0.2, "cosine", 0, 32)
    assert (config.learning_rate, config.norm_rate, config.prompt_tokens) == (1e-3, 0.1, 3)
