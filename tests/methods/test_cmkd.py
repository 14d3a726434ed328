"""CMKD: its terms against naive loops, the task head, the optimiser, residual sparse training."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.cmkd import CMKD, agreement, gini_impurity, target_terms, task_logits
from methods.parts.backbone import Backbone
from methods.training.loop import seeded
from tests.methods.test_baselines import NAMES, Toy, quiet, task


def softmax(row: list[float]) -> list[float]:
    top = max(row)
    values = [math.exp(one - top) for one in row]
    return [one / sum(values) for one in values]


def naive_agreement(student: list[float], teacher: list[float]) -> float:
    p, q = softmax(student), softmax(teacher)
    return math.exp(-sum(b * (math.log(b) - math.log(a)) for a, b in zip(p, q, strict=True)))


def naive_impurity(rows: list[list[float]], weights: list[float]) -> float:
    total = 0.0
    for row, weight in zip(rows, weights, strict=True):
        purity = 0.0
        for number, p in enumerate(row):
            purity += p * p / sum(other[number] for other in rows)
        total += weight * (1 - purity)
    return total


def logits(seed: int) -> Tensor:
    return 3 * torch.randn(6, 4, generator=torch.Generator().manual_seed(seed))


def test_the_terms_are_loops_over_images_and_classes() -> None:
    student, teacher = logits(0), logits(1)
    found = target_terms(student, teacher)
    pairs = list(zip(student.tolist(), teacher.tolist(), strict=True))
    weights = [naive_agreement(p, q) for p, q in pairs]
    torch.testing.assert_close(agreement(student, teacher), torch.tensor(weights))
    mixed = [[(a + b) / 2 for a, b in zip(softmax(p), softmax(q), strict=True)] for p, q in pairs]
    expected = {
        "task": naive_impurity([softmax(p) for p, _ in pairs], weights),
        "distill": naive_impurity(mixed, [1 - weight for weight in weights]),
        "teacher": naive_impurity([softmax(q) for _, q in pairs], [1.0] * 6),
    }
    assert {name: float(value) for name, value in found.items()} == pytest.approx(expected, rel=1e-4)


def test_gradients_pass_where_the_released_code_lets_them() -> None:
    student, teacher = logits(0).requires_grad_(), logits(1).requires_grad_()
    terms = target_terms(student, teacher)
    for name, trains_student, trains_teacher in (("task", 1, 0), ("distill", 1, 0), ("teacher", 0, 1)):
        found = torch.autograd.grad(terms[name], (student, teacher), retain_graph=True, allow_unused=True)
        assert [one is not None and bool(one.any()) for one in found] == [bool(trains_student), bool(trains_teacher)]
    p = torch.softmax(logits(2), dim=-1).requires_grad_()
    (gradient,) = torch.autograd.grad(gini_impurity(p, torch.ones(6)), p)
    torch.testing.assert_close(gradient, (-2 * p / p.sum(dim=0)).detach(), msg="class sums are constants")


def test_agreeing_answers_weigh_one_and_confident_ones_are_pure() -> None:
    same = logits(3)
    torch.testing.assert_close(agreement(same, same), torch.ones(6))
    sure = 200 * torch.eye(4)
    assert float(gini_impurity(sure.softmax(-1), torch.ones(4))) == pytest.approx(0, abs=1e-6)
    assert torch.isfinite(agreement(sure, -sure)).all()


def test_the_head_is_the_stock_layers() -> None:
    generator = torch.Generator().manual_seed(0)
    features, rows = torch.randn(7, 5, generator=generator), torch.randn(3, 5, generator=generator)
    norm, layer = nn.BatchNorm1d(5), nn.LayerNorm(5, eps=1e-6)
    head = {
        "head.mean": torch.zeros(5), "head.var": torch.ones(5), "head.scale": torch.full((5,), 1.5),
        "head.norm.weight": torch.full((5,), 0.7), "head.norm.bias": torch.full((5,), 0.1), "head.classes": rows,
    }  # fmt: skip
    with torch.no_grad():
        norm.weight.fill_(1.5)
        layer.weight.fill_(0.7)
        layer.bias.fill_(0.1)
        for training in (True, True, False):
            norm.train(training)
            torch.testing.assert_close(task_logits(features, head, training=training), layer(norm(features)) @ rows.T)
    torch.testing.assert_close(head["head.mean"], norm.running_mean)
    torch.testing.assert_close(head["head.var"], norm.running_var)
    assert torch.isfinite(task_logits(features[:1], head, training=True)).all(), "one image has no variance"


def whole_batch() -> Any:
    """16 labelled and 16 target images: all of them in every batch of 16, whatever the order."""
    labels = torch.arange(4).repeat(4)
    return task(domains=1, target=Toy(labels, torch.full_like(labels, 2)))


def test_training_is_nesterovs_sgd_on_the_stock_model(tiny_backbone: Backbone) -> None:
    data = whole_batch()
    config = CMKD.Config(steps=4, batch_size=16, augment=False, learning_rate=1e-3, head_rate=50.0, weight_decay=0.01)
    method = CMKD(tiny_backbone, config)
    report = method.fit(data, seed=0, log=quiet)
    fresh = CMKD(tiny_backbone, config)
    fresh.class_names = data.class_names
    start = fresh.build(0)

    model = tiny_backbone.clone().model
    rows = nn.Parameter(start["head.classes"].detach().clone())
    norm, layer = nn.BatchNorm1d(24), nn.LayerNorm(24, eps=1e-6)
    norm.bias.requires_grad_(False)
    tower = [*model.vision_model.parameters(), *model.visual_projection.parameters()]
    groups = [{"params": [p.requires_grad_() for p in tower]}, {"params": [norm.weight, *layer.parameters(), rows]}]
    sgd = torch.optim.SGD(groups, lr=1e-3, momentum=0.9, weight_decay=0.01, nesterov=True)
    with torch.no_grad():
        ids = tiny_backbone.tokenize([f"an image of a {name.replace('_', ' ')}" for name in NAMES])
        texts = F.normalize(model.get_text_features(ids).pooler_output, dim=1)
    source, target = (tiny_backbone.normalize(images.all) for images in (data.images, data.target))
    for step, entry in enumerate(report.losses):
        rate = 1e-3 * (1 + 3 * step / 4) ** -0.75
        for group, scale in zip(sgd.param_groups, (1, 50), strict=True):
            group["lr"] = rate * scale
        features = [model.get_image_features(pixels).pooler_output for pixels in (source, target)]
        task_of, texts_of = [], []
        for one in features:
            task_of.append(layer(norm(one)) @ rows.T)
            texts_of.append(tiny_backbone.logit_scale * F.normalize(one, dim=1) @ texts.T)
        p, q = task_of[1].softmax(1), texts_of[1].softmax(1)
        weight = torch.exp(-F.kl_div(p.log(), q, reduction="none").sum(1)).detach()

        def impurity(rows: Tensor, weight: Tensor) -> Tensor:
            return (weight * (1 - (rows**2 / rows.sum(0, keepdim=True).detach()).sum(1))).sum()

        ramp = 2 / (1 + math.exp(-step / 4)) - 1
        loss = F.cross_entropy(task_of[0], data.labels, label_smoothing=0.1)
        loss = loss + 0.1 * F.cross_entropy(texts_of[0], data.labels)
        loss = loss + 0.25 * ramp * (impurity(p, weight) + impurity((p + q.detach()) / 2, 1 - weight))
        loss = loss + 0.025 * ramp * impurity(q, torch.ones(16))
        assert entry["loss"] == pytest.approx(float(loss.detach()), rel=1e-3)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
    torch.testing.assert_close(method.tensors()["head.classes"], rows.detach(), rtol=0, atol=1e-3)


def test_the_head_answers_for_classes_with_labelled_images_and_the_texts_elsewhere(tiny_backbone: Backbone) -> None:
    """DAZSL: a class without labelled images has a row, but no image ever pulled it up."""
    data = task()
    method = CMKD(tiny_backbone, CMKD.Config(steps=3, batch_size=12, learning_rate=1e-3, head_rate=10.0))
    method.fit(data, seed=0, log=quiet)
    labelled = sorted({NAMES[int(label)] for label in data.labels}, key=NAMES.index)
    assert method.labelled_names == tuple(labelled) and set(labelled) < set(NAMES) == set(method.class_names)
    pixels = data.images.pixels(torch.arange(6))
    features = method.encode_raw(pixels)
    known = task_logits(features, method.head_parts, training=False)
    assert torch.equal(method.classify(pixels, labelled), known[:, [NAMES.index(name) for name in labelled]])
    assert torch.equal(method.classify(pixels, [labelled[2], labelled[0]]), known[:, [2, 0]])
    for names in (NAMES, [*labelled, "a name never seen"]):
        expected = tiny_backbone.logit_scale * F.normalize(features) @ method.encode_classes(names).T
        torch.testing.assert_close(method.classify(pixels, names), expected, rtol=0, atol=1e-4)


def test_sparse_training_puts_back_what_has_hardly_moved(tiny_backbone: Backbone) -> None:
    changed = []
    for threshold in (0.0, 2e-5):
        config = CMKD.Config(steps=3, batch_size=12, learning_rate=1e-4, sparse_threshold=threshold, augment=False)
        method = CMKD(tiny_backbone, config)
        method.fit(whole_batch(), seed=0, log=quiet)
        moved = {name: (value - tiny_backbone.model.get_parameter(name)).abs()
                 for name, value in method.tensors().items() if not name.startswith("head.")}  # fmt: skip
        assert all(((step == 0) | (step > threshold)).all() for step in moved.values())
        changed.append(sum(int((step > 0).sum()) for step in moved.values()))
    assert 0 < changed[1] < changed[0]


def test_without_target_images_another_domain_plays_the_target(tiny_backbone: Backbone) -> None:
    data = task()
    method = CMKD(tiny_backbone, CMKD.Config(batch_size=8))
    stream = method.batches(data, torch.Generator().manual_seed(0))
    for _ in range(20):
        source, target = (data.domains[half].unique() for half in next(stream).chunk(2))
        assert len(source) == len(target) == 1
        assert source != target
    first = next(CMKD(tiny_backbone, CMKD.Config(batch_size=8)).batches(data, seeded(0, CMKD.seed_parts[0])))
    losses = []
    for half in (None, 1, 0):
        shown = task()
        if half is not None:
            shown.labels[first.chunk(2)[half]] = 0
        report = CMKD(tiny_backbone, CMKD.Config(steps=1, batch_size=8)).fit(shown, seed=0, log=quiet)
        losses.append(report.losses[0]["loss"])
    assert losses[0] == losses[1], "labels of the half that plays the target are not read"
    assert losses[0] != losses[2]
