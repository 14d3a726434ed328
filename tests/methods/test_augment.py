"""Augmentation: the same images as torchvision's formulas and kornia for the same draws, and the same distribution."""

from __future__ import annotations

import colorsys
import dataclasses
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from methods.interface import TrainingData
from methods.parts import augment as module
from methods.parts import parallel
from methods.parts.augment import PLAIN, Augmentation, Draw, apply, augment, draw
from methods.registry import METHODS
from tests.support.images import InMemoryImages

KINDS = {
    "all": Augmentation(),
    "crop": Augmentation(0.08, False, 0.0),
    "flip": Augmentation(1.0, True, 0.0),
    "jitter": Augmentation(1.0, False, 0.4),
    "strong": Augmentation(0.3, True, 0.5),
}


def seeded(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int, height: int, width: int, seed: int = 0) -> Tensor:
    """Noise, with grey, black and white pixels and equal channels among it."""
    made = torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=seeded(seed))
    made[:, 1, ::3] = made[:, 0, ::3]
    made[:, 2, ::5] = made[:, 0, ::5]
    made[:, :, 0, 0] = 0
    made[:, :, -1, -1] = 255
    return made


def plainly(pixels: Tensor, drawn: Draw) -> Tensor:
    """The same augmentation one image at a time: crop, resize, mirror, then each pixel through ``colorsys``."""
    out = []
    for number, image in enumerate(pixels.double() / 255):
        if drawn.boxes is not None:
            left, top, width, height = (int(value) for value in drawn.boxes[number])
            part = image[None, :, top : top + height, left : left + width]
            image = F.interpolate(part, image.shape[1:], mode="bilinear", align_corners=True)[0]
        if drawn.flips[number]:
            image = image.flip(-1)
        for step in drawn.order if drawn.factors is not None else ():
            assert drawn.factors is not None
            image = coloured(image, step, float(drawn.factors[number, step])).clamp(0, 1)
        out.append(image)
    return torch.stack(out).float()


def coloured(image: Tensor, step: int, factor: float) -> Tensor:
    grey = (image * torch.tensor([0.299, 0.587, 0.114], dtype=image.dtype).view(3, 1, 1)).sum(0, keepdim=True)
    if step == 0:
        return image * factor
    if step < 3:
        other = grey.mean() if step == 1 else grey
        return factor * image + (1 - factor) * other
    turned = []
    for pixel in image.flatten(1).T.tolist():
        hue, saturation, value = colorsys.rgb_to_hsv(*pixel)
        turned.append(colorsys.hsv_to_rgb((hue + factor) % 1.0, saturation, value))
    return torch.tensor(turned, dtype=image.dtype).T.reshape(image.shape)


@settings(deadline=None, max_examples=60)
@given(
    kind=st.sampled_from(sorted(KINDS)),
    height=st.integers(1, 19),
    width=st.integers(1, 19),
    seed=st.integers(0, 2**31),
)
def test_a_batch_is_what_each_image_is_by_the_plain_path(kind: str, height: int, width: int, seed: int) -> None:
    pixels, drawn = images(3, height, width, seed), draw(KINDS[kind], 3, height, width, seeded(seed))
    torch.testing.assert_close(apply(pixels, drawn), plainly(pixels, drawn), atol=3e-4, rtol=0)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_floats_and_8_bit_images_come_out_equal_and_are_not_changed(kind: str) -> None:
    pixels = images(4, 16, 12)
    floats = pixels.float() / 255
    before = floats.clone()
    of_floats = augment(floats, KINDS[kind], seeded(3))
    assert torch.equal(of_floats, augment(pixels, KINDS[kind], seeded(3)))
    assert torch.equal(floats, before)
    assert torch.equal(pixels, images(4, 16, 12))
    assert of_floats.dtype == torch.float32 and of_floats.shape == pixels.shape
    assert of_floats.min() >= 0 and of_floats.max() <= 1
    assert not torch.equal(of_floats, floats)


def test_nothing_changes_without_augmentation() -> None:
    pixels = images(3, 8, 8)
    assert torch.equal(augment(pixels, PLAIN, seeded(0)), pixels.float() / 255)
    whole = Draw(
        torch.zeros(3, dtype=torch.bool), torch.tensor([[0.0, 0, 8, 8]] * 3), torch.tensor([[1.0, 1, 1, 0]] * 3)
    )
    torch.testing.assert_close(apply(pixels, whole), pixels.float() / 255, atol=2e-6, rtol=0)
    assert augment(pixels[:0], Augmentation(), seeded(0)).shape == (0, 3, 8, 8)


def test_draws_follow_the_generator_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    pixels = images(5, 16, 16)
    torch.manual_seed(0)
    state = torch.get_rng_state()
    first = augment(pixels, Augmentation(), seeded(7))
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(1)
    assert torch.equal(augment(pixels, Augmentation(), seeded(7)), first)
    assert not torch.equal(augment(pixels, Augmentation(), seeded(8)), first)
    equal = augment(pixels[:1].expand(5, -1, -1, -1), Augmentation(), seeded(7))
    assert len({tuple(image.flatten().tolist()) for image in equal}) == 5
    monkeypatch.setattr(parallel, "rank", lambda: 1)
    assert not torch.equal(augment(pixels, Augmentation(), seeded(7)), first)


# --- the distribution -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 64), (20, 90), (90, 20)])
@pytest.mark.parametrize("smallest", [0.08, 0.8])
def test_crops_have_the_area_and_the_ratio_asked_for(height: int, width: int, smallest: float) -> None:
    boxes = draw(Augmentation(smallest, True, 0.0), 4000, height, width, seeded(0)).boxes
    assert boxes is not None
    left, top, across, down = boxes.unbind(dim=1)
    assert torch.equal(boxes, boxes.round())
    assert min(left.min(), top.min()) == 0 and (left + across).max() == width and (top + down).max() == height
    rounding = 1 / min(float(across.min()), float(down.min()))
    ratio, area = across / down, across * down / (height * width)
    assert 0.75 * (1 - rounding) <= ratio.min() and ratio.max() <= 4 / 3 * (1 + rounding)
    if height == width:
        assert smallest - 2 * rounding <= area.min() < smallest + 0.05 and area.max() > 0.98
    for start, side, whole in ((left, across, width), (top, down, height)):
        free = whole - side
        places = start[free > 3] / free[free > 3]  # 0 to 1, evenly
        if len(places) > 200:
            assert places.min() == 0 and places.max() == 1 and abs(float(places.mean()) - 0.5) < 0.05


def test_flips_and_colours_are_drawn_evenly() -> None:
    drawn = draw(Augmentation(), 20_000, 8, 8, seeded(0))
    assert abs(float(drawn.flips.float().mean()) - 0.5) < 0.02
    assert drawn.factors is not None
    for column, (low, high) in zip(drawn.factors.T, [(0.6, 1.4)] * 3 + [(-0.4, 0.4)], strict=True):
        counts = torch.histc(column, 8, low, high)
        assert int(counts.sum()) == len(column)
        assert (counts / len(column) - 1 / 8).abs().max() < 0.01
    correlated = torch.corrcoef(torch.cat([drawn.factors, drawn.flips[:, None].float()], dim=1).T) - torch.eye(5)
    assert correlated.abs().max() < 0.05
    orders = [draw(Augmentation(), 1, 8, 8, seeded(seed)).order for seed in range(600)]
    assert len(set(orders)) == 24 and all(sorted(order) == [0, 1, 2, 3] for order in orders)
    factors = draw(Augmentation(1.0, False, 2.0), 500, 8, 8, seeded(0)).factors
    assert factors is not None and factors[:, :3].min() >= 0


def test_nothing_is_mirrored_without_flips() -> None:
    assert not draw(Augmentation(0.5, False, 0.4), 500, 8, 8, seeded(0)).flips.any()


# --- against kornia ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kornia() -> Any:
    return pytest.importorskip("kornia.augmentation")


def test_crops_are_those_of_kornia(kornia: Any) -> None:
    pixels = images(16, 40, 40)
    torch.manual_seed(0)
    crop = kornia.RandomResizedCrop((40, 40), scale=(0.3, 1.0), p=1.0)
    expected = crop(pixels.float() / 255)
    corners = crop._params["src"]
    sides = corners[:, 2] - corners[:, 0] + 1
    drawn = Draw(torch.zeros(16, dtype=torch.bool), torch.cat([corners[:, 0], sides], dim=1))
    torch.testing.assert_close(apply(pixels, drawn), expected, atol=2e-5, rtol=0)


def test_colours_are_those_of_kornia(kornia: Any) -> None:
    pixels = images(16, 24, 24)
    jitter = kornia.ColorJitter(0.4, 0.4, 0.4, 0.4, p=1.0)
    for seed in range(6):
        torch.manual_seed(seed)
        expected = jitter(pixels.float() / 255)
        names = ("brightness_factor", "contrast_factor", "saturation_factor", "hue_factor")
        factors = torch.stack([jitter._params[name] for name in names], dim=1)
        drawn = Draw(torch.zeros(16, dtype=torch.bool), None, factors, tuple(jitter._params["order"].tolist()))
        torch.testing.assert_close(apply(pixels, drawn), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("smallest", [0.08, 0.8])
def test_crops_are_drawn_as_kornia_draws_them(kornia: Any, smallest: float) -> None:
    from scipy.stats import ks_2samp

    count = 4000
    torch.manual_seed(0)
    corners = kornia.RandomResizedCrop((64, 64), scale=(smallest, 1.0), p=1.0).forward_parameters((count, 3, 64, 64))[
        "src"
    ]
    theirs = torch.cat([corners[:, 0], corners[:, 2] - corners[:, 0] + 1], dim=1)
    ours = draw(Augmentation(smallest, False, 0.0), count, 64, 64, seeded(0)).boxes
    assert ours is not None
    for number in range(4):
        assert ks_2samp(ours[:, number], theirs[:, number]).pvalue > 1e-3, number
    area = [boxes[:, 2] * boxes[:, 3] for boxes in (ours, theirs)]
    assert ks_2samp(*area).pvalue > 1e-3


# --- the device -------------------------------------------------------------------------------------------------------


class EightBit(InMemoryImages):
    """Images that are asked for as they are kept, never as floats."""

    def pixels(self, index: Tensor) -> Tensor:
        raise AssertionError("8-bit images became floats before they were on the device")

    def stored(self, index: Tensor) -> Tensor:
        return self.values[index]


@pytest.mark.parametrize("name", ["coop", "full_finetune", "lora", "vpt_deep", "pros", "ucdr_adapter"])
def test_methods_augment_8_bit_images_on_their_device(
    name: str, tiny_backbone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    method_class = METHODS.get(name)
    known = {field.name for field in dataclasses.fields(method_class.Config)}
    changes = {"steps": 2, "batch_size": 6, "stage1_batch_size": 6, "augment": True, "validate_every": 0}
    size, labels = tiny_backbone.image_size, torch.arange(12) % 3
    data = TrainingData(
        protocol="toy",
        images=EightBit(images(12, size, size)),
        labels=labels,
        domains=torch.arange(12) // 6,
        class_names=("cat", "dog", "cow"),
        domain_names=("photo", "sketch"),
        select="last",
    )
    seen: list[Tensor] = []

    def spy(pixels: Tensor, drawn: Draw) -> Tensor:
        seen.append(pixels)
        return apply(pixels, drawn)

    monkeypatch.setattr(module, "apply", spy)
    method = method_class(
        tiny_backbone, method_class.Config(**{key: value for key, value in changes.items() if key in known})
    )
    method.fit(data, seed=0, log=lambda **_: None)
    assert len(seen) == 2
    assert {(batch.dtype, batch.device) for batch in seen} == {(torch.uint8, method.device)}
