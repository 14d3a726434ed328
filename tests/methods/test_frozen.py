"""Frozen weights in bfloat16 are cast once, and the numbers are those of autocast to the bit."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from methods.parts.backbone import Backbone, ClipBackbone
from methods.parts.frozen import FrozenLinear, cast_now, keep_casts


class _Casts(TorchDispatchMode):
    """Counts casts by the shape of what is cast."""

    def __init__(self) -> None:
        super().__init__()
        self.shapes: Counter[tuple[int, ...]] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten._to_copy.default:
            self.shapes[tuple(args[0].shape)] += 1
        return func(*args, **(kwargs or {}))


@contextmanager
def casts() -> Iterator[Counter[tuple[int, ...]]]:
    with _Casts() as mode:
        yield mode.shapes


@pytest.fixture
def pair(tiny_folder: Path) -> tuple[ClipBackbone, ClipBackbone]:
    """A bf16 backbone, and one whose modules are torch's own."""
    ours, stock = (Backbone.load(tiny_folder, precision="bf16") for _ in range(2))
    for module in stock.model.modules():
        if type(module).__name__.startswith("Frozen"):
            module.__class__ = type(module).__bases__[1]
    return ours, stock


def test_features_are_those_of_autocast_to_the_bit(pair: tuple[ClipBackbone, ClipBackbone]) -> None:
    ours, stock = pair
    assert not any(isinstance(module, FrozenLinear) for module in stock.model.modules())
    pixels = torch.rand(3, 3, ours.image_size, ours.image_size)
    for _ in range(2):
        assert torch.equal(ours.encode_images(pixels), stock.encode_images(pixels))
        assert torch.equal(ours.encode_texts(["a cat", "a sea turtle"]), stock.encode_texts(["a cat", "a sea turtle"]))


def test_a_frozen_weight_is_cast_once(pair: tuple[ClipBackbone, ClipBackbone]) -> None:
    ours, stock = pair
    pixels = torch.rand(3, 3, ours.image_size, ours.image_size)
    weights = {tuple(p.shape) for p in ours.model.vision_model.encoder.parameters() if p.ndim == 2}
    for backbone, expected in ((ours, False), (stock, True)):
        backbone.encode_images(pixels)
        with casts() as seen:
            backbone.encode_images(pixels)
        assert bool(weights & set(seen)) is expected


def test_a_changed_or_trained_weight_is_never_stale() -> None:
    layer = nn.Sequential(nn.Linear(4, 3)).requires_grad_(False)
    keep_casts(layer)
    rows = torch.rand(2, 4)

    def expected() -> torch.Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
            return nn.functional.linear(rows, layer[0].weight, layer[0].bias)

    def check() -> None:
        with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
            assert torch.equal(layer(rows), expected())

    check()
    with torch.no_grad():
        layer[0].weight.mul_(2)
        layer[0].bias.add_(1)
    check()
    other = copy.deepcopy(layer)
    assert "_casts" not in other[0].__dict__ and "_casts" in layer[0].__dict__
    layer[0].weight.requires_grad_(True)
    with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
        layer(rows).sum().backward()
    assert layer[0].weight.grad is not None
    assert torch.equal(layer(rows), nn.functional.linear(rows, layer[0].weight, layer[0].bias)), "float32 outside"


def test_casts_can_be_made_beforehand(tiny_folder: Path) -> None:
    ours = Backbone.load(tiny_folder, precision="bf16")
    with ours.autocast():
        cast_now(ours.model)
    with casts() as seen:
        ours.encode_images(torch.rand(1, 3, ours.image_size, ours.image_size))
    assert not {tuple(p.shape) for p in ours.model.vision_model.encoder.parameters() if p.ndim == 2} & set(seen)


def test_float32_has_no_second_copy(tiny_backbone: ClipBackbone) -> None:
    assert not any(isinstance(module, FrozenLinear) for module in tiny_backbone.model.modules())


def test_scale_and_statistics_are_read_once_and_follow_changes(tiny_folder: Path) -> None:
    ours = Backbone.load(tiny_folder)
    pixels = torch.rand(2, 3, ours.image_size, ours.image_size)
    before, first = ours.normalize(pixels), ours.logit_scale
    assert first == pytest.approx(float(ours.model.logit_scale.exp()))
    with torch.no_grad():
        ours.model.logit_scale.add_(0.5)
    assert ours.logit_scale == pytest.approx(float(ours.model.logit_scale.exp()))
    assert ours.logit_scale > first
    assert torch.equal(ours.normalize(pixels), before)
    ours.preprocessing = {**ours.preprocessing, "mean": [0.0, 0.0, 0.0], "std": [1.0, 1.0, 1.0]}
    assert torch.equal(ours.normalize(pixels), pixels)
    assert ours.normalize(pixels.double()).dtype == torch.float64
