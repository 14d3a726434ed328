"""Tip-Adapter and Tip-Adapter-F: their equations against naive loops, the cache, the search, the optimiser."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from methods.interface import Method
from methods.parts.backbone import Backbone
from methods.tip_adapter import ALPHAS, BETAS, TipAdapter, TipAdapterF
from methods.training.batches import few_shots
from methods.zero_shot import ZeroShot
from tests.methods.test_baselines import NAMES, quiet, task


def unit(vector: list[float]) -> list[float]:
    length = math.sqrt(sum(value * value for value in vector))
    return [value / length for value in vector]


def dot(first: list[float], second: list[float]) -> float:
    return sum(a * b for a, b in zip(first, second, strict=True))


def naive_logits(
    image: list[float], keys: list[list[float]], classes: list[str], texts: dict[str, list[float]], scale: float,
    alpha: float, beta: float,
) -> list[float]:  # fmt: skip
    """One image's logits, vote by vote."""
    found = []
    for name, text in texts.items():
        votes = 0.0
        for key, its in zip(keys, classes, strict=True):
            if its == name:
                votes += math.exp(-beta * (1 - dot(unit(image), key)))
        found.append(alpha * votes + scale * dot(unit(image), unit(text)))
    return found


@pytest.mark.parametrize("kind", [TipAdapter, TipAdapterF])
def test_logits_are_votes_and_texts(kind: Any, tiny_backbone: Backbone) -> None:
    budget = {"steps": 2, "batch_size": 12} if kind is TipAdapterF else {}
    method, data = kind(tiny_backbone, kind.Config(shots=3, alpha=0.7, beta=2.5, **budget)), task()
    method.fit(data, seed=0, log=quiet)
    pixels = data.images.pixels(torch.arange(5))
    features = tiny_backbone.encode_images(tiny_backbone.normalize(pixels))
    encoded = tiny_backbone.encode_texts([f"a photo of a {name.replace('_', ' ')}." for name in NAMES])
    classes = [method.class_names[number] for number in method.cached_classes]
    expected = [
        naive_logits(
            one.tolist(), method.keys.tolist(), classes, dict(zip(NAMES, encoded.tolist(), strict=True)),
            tiny_backbone.logit_scale, 0.7, 2.5,
        )
        for one in features
    ]  # fmt: skip
    torch.testing.assert_close(method.classify(pixels, NAMES), torch.tensor(expected), rtol=1e-4, atol=1e-4)
    assert len(classes) == 4 * 3
    assert "unseen dog" not in classes
    torch.testing.assert_close(method.encode_images(pixels), ZeroShot(tiny_backbone).encode_images(pixels))


def test_without_the_caches_weight_it_is_clip(tiny_backbone: Backbone) -> None:
    method = TipAdapter(tiny_backbone, TipAdapter.Config(alpha=0.0))
    method.fit(task(), seed=0, log=quiet)
    pixels = task().images.pixels(torch.arange(5))
    clip = ZeroShot(tiny_backbone, ZeroShot.Config(template="a photo of a {}."))
    torch.testing.assert_close(method.classify(pixels, NAMES), clip.classify(pixels, NAMES), rtol=0, atol=1e-4)


def test_a_key_is_the_unit_mean_of_its_views(tiny_backbone: Backbone) -> None:
    data = task()
    plain = TipAdapter(tiny_backbone, TipAdapter.Config(views=0, shots=0))
    plain.fit(data, seed=0, log=quiet)
    frozen = tiny_backbone.encode_images(tiny_backbone.normalize(data.images.pixels(torch.arange(len(data.images)))))
    torch.testing.assert_close(plain.keys.detach(), F.normalize(frozen, dim=-1), rtol=0, atol=1e-5)
    assert [plain.class_names[number] for number in plain.cached_classes] == [NAMES[label] for label in data.labels]
    same = TipAdapter(tiny_backbone, TipAdapter.Config(views=3, shots=0, crop=1.0, flip=False))
    same.fit(data, seed=0, log=quiet)
    torch.testing.assert_close(same.keys, plain.keys, rtol=0, atol=1e-5)
    seen = TipAdapter(tiny_backbone, TipAdapter.Config(views=3, shots=0))
    seen.fit(data, seed=0, log=quiet)
    assert not torch.allclose(seen.keys, plain.keys, atol=1e-4)
    torch.testing.assert_close(seen.keys.detach().norm(dim=1), torch.ones(len(data.images)))


@given(st.lists(st.tuples(st.integers(0, 3), st.integers(0, 2)), min_size=1, max_size=40), st.integers(1, 6))
def test_few_shots_are_even_over_domains_and_nested(images: list[tuple[int, int]], shots: int) -> None:
    labels, domains = torch.tensor(images).T
    drawn = {k: few_shots(labels, domains, k, torch.Generator().manual_seed(5)).tolist() for k in (shots, shots + 1)}
    assert set(drawn[shots]) <= set(drawn[shots + 1])
    assert drawn[shots] == sorted(set(drawn[shots]))
    for label in set(labels.tolist()):
        of_class = [n for n in drawn[shots] if labels[n] == label]
        assert len(of_class) == min(shots, int((labels == label).sum()))
        left = {domain: int(((labels == label) & (domains == domain)).sum()) for domain in set(domains.tolist())}
        taken = {domain: sum(int(domains[n]) == domain for n in of_class) for domain in left}
        spare = [taken[domain] for domain in left if taken[domain] < left[domain]]
        assert not spare or max(taken.values()) - min(spare) <= 1, "a domain with images left is behind by one at most"
    assert few_shots(labels, domains, 0, torch.Generator()).tolist() == list(range(len(images)))


def test_search_keeps_the_best_and_the_configs_own_where_nothing_is_better(tiny_backbone: Backbone) -> None:
    asked: list[tuple[float, float]] = []

    def validate(method: Method) -> float:
        assert isinstance(method, TipAdapter)
        asked.append((method.alpha, method.beta))
        return 1.0 if (method.alpha, method.beta) == (2.0, 4.0) else 0.5

    method = TipAdapter(tiny_backbone, TipAdapter.Config(search=True, alpha=1.5, views=0))
    method.fit(task(validate=validate), seed=0, log=quiet)
    assert (method.alpha, method.beta) == (2.0, 4.0)
    assert asked[0] == (1.5, 5.5)
    assert set(asked[1:]) == {(alpha, beta) for alpha in ALPHAS for beta in BETAS}
    method.fit(task(validate=lambda method: 0.5), seed=0, log=quiet)
    assert (method.alpha, method.beta) == (1.5, 5.5)
    method.fit(task(), seed=0, log=quiet)  # no validation task: NaN
    assert (method.alpha, method.beta) == (1.5, 5.5)
    method.fit(task(validate=validate, select="last"), seed=0, log=quiet)
    assert (method.alpha, method.beta) == (1.5, 5.5)


def test_keys_are_trained_by_adamw_with_a_cosine(tiny_backbone: Backbone) -> None:
    data = task(domains=1)  # 16 images, one batch: all of them, whatever the order
    config = TipAdapterF.Config(steps=4, batch_size=16, augment=False, views=0, learning_rate=0.05, weight_decay=0.1)
    method = TipAdapterF(tiny_backbone, config)
    report = method.fit(data, seed=0, log=quiet)

    images = F.normalize(tiny_backbone.encode_images(tiny_backbone.normalize(data.images.all)), dim=1)
    texts = tiny_backbone.encode_texts([f"a photo of a {name.replace('_', ' ')}." for name in NAMES[:4]])
    clip = tiny_backbone.logit_scale * images @ F.normalize(texts, dim=1).T
    keys = torch.nn.Parameter(images.clone())
    adam = torch.optim.AdamW([keys], lr=0.05, eps=1e-4, weight_decay=0.1)
    values = F.one_hot(data.labels, 4).float()
    for step, entry in enumerate(report.losses):
        adam.param_groups[0]["lr"] = 0.05 * 0.5 * (1 + math.cos(math.pi * step / 4))
        loss = F.cross_entropy((-5.5 * (1 - images @ keys.T)).exp() @ values + clip, data.labels)
        assert entry["loss"] == pytest.approx(float(loss.detach()), abs=1e-4)
        adam.zero_grad()
        loss.backward()
        adam.step()
    torch.testing.assert_close(method.keys.detach(), keys.detach(), rtol=0, atol=1e-3)


def test_training_reads_the_cached_images_alone(tiny_backbone: Backbone) -> None:
    data, read = task(), []
    pixels = data.images.pixels

    def spy(index: Tensor) -> Tensor:
        read.extend(index.tolist())
        return pixels(index)

    data.images.pixels = spy  # type: ignore[method-assign]
    method = TipAdapterF(tiny_backbone, TipAdapterF.Config(shots=2, steps=6, batch_size=4))
    method.fit(data, seed=0, log=quiet)
    assert len(set(read)) == 4 * 2 == len(method.cached_classes)


def test_epochs_are_of_the_cached_images(tiny_backbone: Backbone) -> None:
    method = TipAdapterF(tiny_backbone, TipAdapterF.Config(shots=2, epochs=3, batch_size=4))
    assert method.fit(task(), seed=0, log=quiet).steps == 3 * 2
