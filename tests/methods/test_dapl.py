"""DAPL: its equations against loops written here, and what it does with and without target images."""

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from methods.dapl import DAPL, DAPLConfig, pseudo_labels, target_loss
from methods.interface import TrainingData
from methods.parts.backbone import Backbone
from methods.parts.prompts import class_text
from tests.support.prompting import NAMES, quiet, task, text_by_hand

SMALL: dict[str, Any] = {"steps": 3, "batch_size": 12, "augment": False, "context_tokens": 3, "domain_tokens": 2}


def fitted(backbone: Backbone, data: TrainingData, **changes: Any) -> DAPL:
    method = DAPL(backbone, DAPLConfig(**{**SMALL, **changes}))
    method.fit(data, seed=0, log=quiet)
    return method


def texts_by_hand(method: DAPL, names: Sequence[str]) -> Tensor:
    """t_k^d, one prompt at a time: [D, C, E]."""
    learned, rows = method.trainable(), []
    for number, domain in enumerate(method.domain_names):
        row = []
        for name in names:
            shared = learned["context"]
            if method.config.class_specific:
                known = name in method.class_names
                shared = shared[method.class_names.index(name)] if known else sum(shared) / len(shared)
            rest = f"{class_text(name)}."
            if method.config.domain_words:
                rest = f"{class_text(name)} , a {domain} image.."
            row.append(text_by_hand(method.backbone, torch.cat([shared, learned["domains"][number]]), rest))
        rows.append(torch.stack(row))
    return torch.stack(rows)


@pytest.mark.parametrize("target", [False, True])
@pytest.mark.parametrize("change", [{}, {"class_specific": True}, {"domain_words": True}])
def test_texts(target: bool, change: dict[str, Any], tiny_backbone: Backbone) -> None:
    names = [*NAMES, "horse"]
    method = fitted(tiny_backbone, task(domains=2, target=target), learning_rate=1.0, warmup_epochs=0, **change)
    assert method.domain_names == (("clipart", "flat", "target") if target else ("clipart", "flat"))
    expected = texts_by_hand(method, names)
    torch.testing.assert_close(method.domain_texts(names), expected, rtol=1e-4, atol=1e-5)
    classes = expected[-1] if target else F.normalize((expected[0] + expected[1]) / 2, dim=-1)
    torch.testing.assert_close(method.encode_classes(names), classes, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("denominator", ["all", "own"])
@pytest.mark.parametrize("mean", ["batch", "confident"])
@pytest.mark.parametrize("threshold", [0.0, 0.3, 1.0])
def test_losses(
    denominator: Literal["all", "own"], mean: Literal["batch", "confident"], threshold: float, tiny_backbone: Backbone
) -> None:
    data = task(domains=2, target=True)
    changes = {"denominator": denominator, "target_mean": mean, "threshold": threshold, "pseudo_temperature": 0.5}
    method = fitted(tiny_backbone, data, target_weight=0.7, **changes)
    scale = tiny_backbone.logit_scale
    texts = texts_by_hand(method, NAMES).detach()
    index = torch.tensor([0, 5, 20, 9])
    source = tiny_backbone.encode_images(tiny_backbone.normalize(data.images.pixels(index)))
    target = tiny_backbone.encode_images(tiny_backbone.normalize(data.target.pixels(torch.arange(6))))
    zero_shot = torch.stack(
        [text_by_hand(tiny_backbone, texts.new_zeros(0, 32), f"a photo of a {class_text(name)}.") for name in NAMES]
    ).detach()

    def minus_log_probability(image: Tensor, domain: int, label: int) -> Tensor:
        """-log P(class, domain | image), a term of the sum at a time."""
        unit = image / image.norm()
        below = torch.zeros(())
        for other in range(3):
            for name in range(5):
                if denominator == "all" or other == domain:
                    below = below + (scale * unit @ texts[other, name]).exp()
        return -((scale * unit @ texts[domain, label]).exp() / below).log()

    domains, labels = data.domains[index], data.labels[index]
    expected = sum(
        minus_log_probability(image, int(domain), int(label))
        for image, domain, label in zip(source, domains, labels, strict=True)
    )
    got = method.loss_of(source, texts, labels, domains)
    torch.testing.assert_close(got, expected / 4, rtol=1e-4, atol=1e-5)

    terms = []
    for image in target:
        shares = torch.stack([(scale * image @ text / image.norm() / 0.5).exp() for text in zero_shot])
        best = int(shares.argmax())
        if shares[best] / shares.sum() >= threshold:
            terms.append(minus_log_probability(image, 2, best))
    assert {0.0: len(terms) == 6, 0.3: 0 < len(terms) < 6 or len(terms) == 6, 1.0: not terms}[threshold]
    wanted = sum(terms, torch.zeros(())) / (6 if mean == "batch" else max(1, len(terms)))
    torch.testing.assert_close(method.target_loss(target, texts, zero_shot), wanted, rtol=1e-4, atol=1e-5)


@given(st.lists(st.lists(st.floats(-5, 5), min_size=3, max_size=3), min_size=1, max_size=6), st.floats(0, 1))
def test_only_confident_images_count(rows: list[list[float]], threshold: float) -> None:
    logits = torch.tensor(rows, dtype=torch.float64)
    labels, counts = pseudo_labels(logits, threshold, 1.0)
    shares = logits.softmax(dim=1)
    for row, label, count in zip(shares, labels, counts, strict=True):
        assert row[label] == row.max()
        assert bool(count) == bool(row.max() >= threshold)
    both = [target_loss(logits, labels, counts, mean) for mean in ("batch", "confident")]
    if counts.any():
        torch.testing.assert_close(both[0] * len(rows), both[1] * counts.sum())
    else:
        assert both[0] == both[1] == 0


def test_a_step_is_sgd_on_source_and_target(tiny_backbone: Backbone) -> None:
    """Losses of the first steps, where all images are in every batch, against SGD written here."""
    data = task(domains=1, target=True)
    changes = {"learning_rate": 0.1, "warmup_epochs": 0, "threshold": 0.2, "batch_size": 16, "epochs": 1}
    method = DAPL(tiny_backbone, DAPLConfig(**{**SMALL, **changes}))
    report = method.fit(data, seed=3, log=quiet)
    other = DAPL(tiny_backbone, method.config)
    other.class_names, other.domain_names, other.adapts = method.class_names, method.domain_names, True
    other.parameters = other.build(3)
    every = torch.arange(16)
    source, target = (
        tiny_backbone.encode_images(tiny_backbone.normalize(images.pixels(every)))
        for images in (data.images, data.target)
    )
    zero_shot = tiny_backbone.encode_texts([f"a photo of a {class_text(name)}." for name in NAMES])
    sgd = torch.optim.SGD(other.parameters.values(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    for entry in report.losses:
        texts = texts_by_hand(other, NAMES)
        loss = other.loss_of(source, texts, data.labels, torch.zeros(16, dtype=torch.long))
        loss = loss + other.target_loss(target, texts, zero_shot)
        assert entry["loss"] == pytest.approx(float(loss.detach()), abs=1e-4)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
    for name, value in method.tensors().items():
        torch.testing.assert_close(value, other.parameters[name].detach(), rtol=1e-3, atol=1e-5)


def test_the_target_is_learned_from_its_pseudo_labels(tiny_backbone: Backbone) -> None:
    data = task(domains=1, each=6, target=True)
    pixels = data.target.pixels(torch.arange(24))
    texts = tiny_backbone.encode_texts([f"a photo of a {class_text(name)}." for name in NAMES])
    images = tiny_backbone.encode_images(tiny_backbone.normalize(pixels))
    pseudo = F.cosine_similarity(images[:, None], texts, dim=2).argmax(dim=1)
    agreements = []
    for weight in (0.0, 1.0):
        method = fitted(
            tiny_backbone, data, steps=120, batch_size=24, threshold=0.0, target_weight=weight, learning_rate=0.05
        )
        agreements.append(float((method.classify(pixels, NAMES).argmax(dim=1) == pseudo).float().mean()))
    assert agreements[1] > 0.8 and agreements[1] > agreements[0] + 0.2


def test_target_labels_and_images_of_others_are_not_asked_for(tiny_backbone: Backbone) -> None:
    """Without target images every training domain has its tokens, and ``target`` is never read."""
    method = fitted(tiny_backbone, task(domains=3))  # reading .target would raise
    assert method.domain_names == ("clipart", "flat", "sketch") and not method.adapts
    kept = (method._target, method._zero_shot, method._domains)
    assert kept == (None, None, None)
    one = fitted(tiny_backbone, task(domains=1))
    assert one.domain_names == ("clipart",)
    assert fitted(tiny_backbone, task(domains=1, target=True), target_weight=0.0).domain_names == ("clipart", "target")


def test_schedule_of_the_released_code(tiny_backbone: Backbone) -> None:
    method = DAPL(tiny_backbone, DAPLConfig(schedule="iteration"))
    rates = [method.step_rate(step, 500) for step in range(60)]
    assert rates[0] == 1e-5 and rates[1] == pytest.approx(3e-3)
    assert rates[26] == pytest.approx(0.0, abs=1e-12) and rates[51] == pytest.approx(3e-3)


def test_nothing_to_learn_is_refused() -> None:
    with pytest.raises(ValueError, match="leaves nothing to learn"):
        DAPLConfig(context_tokens=0, domain_tokens=0)
    assert {row.switch for row in DAPL.card.deviations} - {""} <= {one.name for one in dataclasses.fields(DAPLConfig)}
