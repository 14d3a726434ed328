"""CLIP-Adapter: its equations against naive loops, its settings and what each branch changes."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch.nn import functional as F

from methods.clip_adapter import ClipAdapter, adapted
from methods.parts.backbone import Backbone
from methods.parts.bounds import faults
from methods.zero_shot import ZeroShot
from tests.methods.test_baselines import NAMES, quiet, task


def relu(value: float) -> float:
    return value if value > 0 else 0.0


def naive(feature: list[float], down: list[list[float]], up: list[list[float]], ratio: float) -> list[float]:
    """One adapted feature, number by number."""
    hidden = [relu(sum(w * x for w, x in zip(row, feature, strict=True))) for row in down]
    new = [relu(sum(w * x for w, x in zip(row, hidden, strict=True))) for row in up]
    return [ratio * n + (1 - ratio) * x for n, x in zip(new, feature, strict=True)]


@pytest.mark.parametrize("ratio", [0.0, 0.2, 1.0])
def test_an_adapter_is_a_loop_over_its_numbers(ratio: float) -> None:
    generator = torch.Generator().manual_seed(0)
    features, down, up = (torch.randn(shape, generator=generator) for shape in ((5, 8), (2, 8), (8, 2)))
    expected = torch.tensor([naive(one.tolist(), down.tolist(), up.tolist(), ratio) for one in features])
    torch.testing.assert_close(adapted(features, down, up, ratio), expected)


@pytest.mark.parametrize("branch", ["image", "text", "both"])
def test_logits_are_cosines_of_adapted_features_at_clips_scale(branch: Any, tiny_backbone: Backbone) -> None:
    config = ClipAdapter.Config(steps=3, batch_size=12, learning_rate=0.05, branch=branch)
    method, data = ClipAdapter(tiny_backbone, config), task()
    report = method.fit(data, seed=0, log=quiet)
    learned, pixels = method.tensors(), data.images.pixels(torch.arange(4))
    assert set(learned) == {f"{one}_{way}" for one in ("image", "text") for way in ("down", "up")
                            if branch in (one, "both")}  # fmt: skip
    images = tiny_backbone.encode_images(tiny_backbone.normalize(pixels))
    texts = tiny_backbone.encode_texts([f"a photo of a {name.replace('_', ' ')}." for name in NAMES])
    if branch != "text":
        images = adapted(images, learned["image_down"], learned["image_up"], 0.2)
    if branch != "image":
        texts = adapted(texts, learned["text_down"], learned["text_up"], 0.2)
    expected = tiny_backbone.logit_scale * F.normalize(images) @ F.normalize(texts).T
    torch.testing.assert_close(method.classify(pixels, NAMES), expected, rtol=0, atol=1e-4)
    assert math.isfinite(report.losses[0]["loss"])  # type: ignore[arg-type]


def test_without_an_adapters_share_it_is_clip(tiny_backbone: Backbone) -> None:
    method = ClipAdapter(tiny_backbone, ClipAdapter.Config(steps=2, batch_size=12, image_ratio=0.0))
    method.fit(task(), seed=0, log=quiet)
    pixels = task().images.pixels(torch.arange(4))
    expected = ZeroShot(tiny_backbone).encode_images(pixels)
    torch.testing.assert_close(method.encode_images(pixels), expected, rtol=0, atol=1e-6)


def test_the_papers_settings_and_their_bounds() -> None:
    config = ClipAdapter.Config()
    assert (config.image_ratio, config.reduction, config.learning_rate, config.batch_size) == (0.2, 4, 1e-5, 32)
    assert config.temperature == 0 and config.branch == "image"
    wrong = ClipAdapter.Config(image_ratio=1.5, reduction=0, text_ratio=-0.1)
    assert {name for name, _ in faults(wrong)} == {"image_ratio", "text_ratio", "reduction"}
