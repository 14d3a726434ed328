"""Floors: class means, names without images, files, and what the random vectors depend on."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from methods.floors import ConstantEmbedding, RandomConfig, RandomEmbedding, RawPixel, RawPixelConfig
from methods.interface import Method, NotApplicableError, TrainingData
from methods.parts.backbone import Backbone
from tests.support.images import InMemoryImages

FLOORS = (RandomEmbedding, ConstantEmbedding, RawPixel)


def images(count: int, seed: int = 0) -> Tensor:
    levels = torch.randint(0, 256, (count, 3, 32, 32), generator=torch.Generator().manual_seed(seed))
    return levels.float() / 255


def data(count: int = 700) -> TrainingData:
    """Images of three of four classes (``ghost`` has none)."""
    return TrainingData(
        protocol="ucdr",
        images=InMemoryImages(images(count)),
        labels=torch.arange(count) % 3,
        domains=torch.zeros(count, dtype=torch.int64),
        class_names=["cat", "dog", "sea turtle", "ghost"],
        domain_names=["line"],
    )


def fitted(kind: type[Method], backbone: Backbone, seed: int = 0, count: int = 700) -> Method:
    method = kind(backbone)
    report = method.fit(data(count), seed=seed, log=lambda **numbers: None)
    assert report.trainable_parameters == 0
    return method


@pytest.mark.parametrize("kind", FLOORS)
def test_a_class_is_the_mean_of_its_images(kind: type[Method], tiny_backbone: Backbone) -> None:
    method = fitted(kind, tiny_backbone)
    shown = data()
    embedding = method.encode_images(images(700))
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(700))
    for number, name in enumerate(("cat", "dog", "sea turtle")):
        mean = F.normalize(embedding[shown.labels == number].mean(0), dim=0)
        torch.testing.assert_close(method.encode_classes([name])[0], mean)
    turned = method.encode_classes(["sea turtle", "cat"])
    torch.testing.assert_close(turned, method.encode_classes(["cat", "sea turtle"]).flip(0))
    logits = method.classify(images(5), ["dog", "cat"])
    torch.testing.assert_close(logits, method.encode_images(images(5)) @ method.encode_classes(["dog", "cat"]).T)


@pytest.mark.parametrize("kind", FLOORS)
@pytest.mark.parametrize("name", ["ghost", "unicorn"])
def test_a_class_without_images_is_not_applicable(kind: type[Method], name: str, tiny_backbone: Backbone) -> None:
    with pytest.raises(NotApplicableError, match=f"{kind.card.name} has no images of '{name}'"):
        fitted(kind, tiny_backbone).encode_classes(["cat", name])


@pytest.mark.parametrize("kind", FLOORS)
def test_a_file_brings_the_method_back(kind: type[Method], tiny_backbone: Backbone, tmp_path: Path) -> None:
    method = fitted(kind, tiny_backbone, seed=5)
    method.save(tmp_path / "floor")
    again = kind.load(tmp_path / "floor", tiny_backbone)
    assert torch.equal(again.encode_images(images(4)), method.encode_images(images(4)))
    assert torch.equal(again.encode_classes(["dog", "cat"]), method.encode_classes(["dog", "cat"]))
    with pytest.raises(NotApplicableError):
        again.encode_classes(["ghost"])
    other = next(floor for floor in FLOORS if floor is not kind)
    with pytest.raises(ValueError, match=f"a checkpoint of {kind.card.name}, not of {other.card.name}"):
        other.load(tmp_path / "floor", tiny_backbone)


@pytest.mark.parametrize("kind", FLOORS)
def test_no_training_images_is_no_error(kind: type[Method], tiny_backbone: Backbone, tmp_path: Path) -> None:
    method = fitted(kind, tiny_backbone, count=0)
    assert len(method.encode_images(images(3))) == 3
    method.save(tmp_path / "floor")
    with pytest.raises(NotApplicableError):
        kind.load(tmp_path / "floor", tiny_backbone).encode_classes(["cat"])


def test_random_is_a_function_of_seed_and_image(tiny_backbone: Backbone) -> None:
    one, same, other = (fitted(RandomEmbedding, tiny_backbone, seed) for seed in (0, 0, 1))
    whole = one.encode_images(images(6))
    assert torch.equal(whole, same.encode_images(images(6)))
    assert torch.equal(whole[[4, 1]], one.encode_images(images(6)[[4, 1]])), "not of its batch mates"
    assert not torch.allclose(whole, other.encode_images(images(6)))
    changed = images(6)
    changed[2, 0, 0, 0] = 1 - changed[2, 0, 0, 0].round()
    difference = (one.encode_images(changed) - whole).abs().amax(dim=1)
    assert (difference > 0.1).tolist() == [False, False, True, False, False, False]
    cosines = whole @ whole.T - torch.eye(6)
    assert float(cosines.abs().max()) < 0.6
    wide = RandomEmbedding(tiny_backbone, RandomConfig(width=9))
    assert wide.encode_images(images(2)).shape == (2, 9)


def test_constant_makes_every_ranking_one_tie(tiny_backbone: Backbone) -> None:
    embedding = fitted(ConstantEmbedding, tiny_backbone).encode_images(images(5))
    assert torch.equal(embedding, embedding[:1].expand(5, -1))


def test_raw_pixel_compares_ink(tiny_backbone: Backbone) -> None:
    method = RawPixel(tiny_backbone)
    white = torch.ones(1, 3, 32, 32)
    left, right = white.clone(), white.clone()
    left[..., :16], right[..., 16:] = 0, 0
    embedding = method.encode_images(torch.cat([left, right, white, left]))
    assert embedding.shape == (4, 3 * 16 * 16)
    cosine = embedding @ embedding.T
    assert float(cosine[0, 1]) == pytest.approx(0, abs=1e-4)
    assert float(cosine[0, 3]) == pytest.approx(1, abs=1e-5)
    assert torch.isfinite(embedding).all(), "a blank image has an embedding too"
    assert RawPixel(tiny_backbone, RawPixelConfig(side=4)).encode_images(left).shape == (1, 48)


@pytest.mark.parametrize("kind", FLOORS)
def test_floors_are_marked_and_use_no_weights(kind: type[Method], tiny_backbone: Backbone) -> None:
    assert kind.card.floor
    assert not kind.trained
    method = fitted(kind, tiny_backbone)
    assert method.total_parameters() == 0
    assert torch.equal(method.encode_raw(images(2)), method.encode_images(images(2)))
    with pytest.raises(TypeError, match="config must be"):
        kind(tiny_backbone, config=object())
