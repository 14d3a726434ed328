"""Shared loss terms against values worked out independently."""

import math

import pytest
import torch
import torch.nn.functional as F

from methods.parts.losses import cosine_similarities, image_text_loss, mean_entropy, triplet_hinge


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_cosines_with_shared_and_with_own_texts() -> None:
    images, texts = draw(3, 8), draw(5, 8, seed=1)
    expected = torch.stack([F.cosine_similarity(image, texts) for image in images])
    torch.testing.assert_close(cosine_similarities(images, texts), expected)
    own = draw(3, 5, 8, seed=2)
    expected = torch.stack([F.cosine_similarity(image, rows) for image, rows in zip(images, own, strict=True)])
    torch.testing.assert_close(cosine_similarities(images, own), expected)
    torch.testing.assert_close(cosine_similarities(10 * images, own / 3), expected)


def test_image_text_loss_is_cross_entropy_of_cosines_over_temperature() -> None:
    images, texts, labels = torch.eye(3)[:2], torch.eye(3), torch.tensor([0, 2])
    high, low = math.exp(1 / 0.07), 1.0
    expected = -(math.log(high / (high + 2 * low)) + math.log(low / (high + 2 * low))) / 2
    assert float(image_text_loss(images, texts, labels)) == pytest.approx(expected, rel=1e-5)
    assert float(image_text_loss(images, texts, labels, temperature=1.0)) == pytest.approx(
        -(1 - math.log(math.e + 2) - math.log(math.e + 2)) / 2, rel=1e-5
    )


def test_mean_entropy() -> None:
    assert float(mean_entropy(torch.zeros(4, 8))) == pytest.approx(math.log(8))
    assert float(mean_entropy(torch.tensor([[1000.0, 0.0, 0.0]]))) == pytest.approx(0, abs=1e-6)
    logits = draw(6, 5)
    expected = torch.distributions.Categorical(logits=logits).entropy().mean()
    torch.testing.assert_close(mean_entropy(logits), expected)


def test_triplet_hinge() -> None:
    anchor = torch.tensor([[0.0, 0.0], [0.0, 0.0]])
    positive, negative = torch.tensor([[3.0, 4.0], [0.0, 1.0]]), torch.tensor([[0.0, 4.0], [0.0, 2.0]])
    torch.testing.assert_close(triplet_hinge(anchor, positive, negative, margin=0.2), torch.tensor([1.2, 0.0]))
    anchors, positives, negatives = draw(5, 8), draw(5, 8, seed=1), draw(5, 8, seed=2)
    ours = triplet_hinge(anchors, positives, negatives, margin=0.5)
    expected = F.triplet_margin_loss(anchors, positives, negatives, margin=0.5, eps=0, reduction="none")
    torch.testing.assert_close(ours, expected)
    same = anchors.clone().requires_grad_(True)
    triplet_hinge(same, anchors, negatives, margin=100.0).sum().backward()
    assert torch.isfinite(same.grad).all()


def test_rounding_of_a_distance_has_no_gradient() -> None:
    """An image's own momentum feature is its positive: what is left of the distance is rounding."""
    unit, negatives = F.normalize(draw(6, 8), dim=-1), F.normalize(draw(6, 8, seed=2), dim=-1)
    gradients = []
    for seed in range(2):
        anchors = unit.clone().requires_grad_(True)
        rounded = unit + 1e-7 * draw(6, 8, seed=10 + seed)
        triplet_hinge(anchors, rounded, negatives, margin=100.0).sum().backward()
        assert anchors.grad is not None
        gradients.append(anchors.grad)
    torch.testing.assert_close(gradients[0], gradients[1])
    anchors = unit.clone().requires_grad_(True)
    (-(anchors - negatives).norm(dim=-1)).sum().backward()
    assert anchors.grad is not None
    torch.testing.assert_close(gradients[0], anchors.grad)
