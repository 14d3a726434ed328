"""Training augmentation of the released code: random resized crop, horizontal flip, colour jitter.

Crop and flip are one bilinear interpolation, the jitter follows it in place; both run where the images are, so 8-bit
images are copied to the device before they are augmented. What is drawn comes from the generator that is passed in,
never from global state. The distribution is that of torchvision's ``RandomResizedCrop``, ``RandomHorizontalFlip`` and
``ColorJitter``, with one order of the jitter's steps a batch (as in kornia).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from methods.parts import parallel
from methods.parts.feeding import unit_range

#: Width over height of a crop, at least and at most.
RATIO = (3 / 4, 4 / 3)

#: Crops tried for an image before it is kept whole.
TRIES = 10

#: Weights of red, green and blue in grey (ITU-R 601).
GREY = (0.299, 0.587, 0.114)


@dataclass(frozen=True)
class Augmentation:
    """Defaults: the official code of ProS and UCDR-Adapter, crop scale 0.8 to 1, flip, jitter 0.4 (all four).

    ``crop`` = 1 and ``jitter`` = 0 and ``flip`` = False leave the images unchanged. ``version`` is part of the key of a
    score whose training images were augmented: raise it when a change of this file changes a pixel.
    """

    version: ClassVar[int] = 2  # 1: kornia's, on the CPU for methods with the image-text loss
    crop: float = 0.8
    flip: bool = True
    jitter: float = 0.4

    @property
    def active(self) -> bool:
        """False if images pass unchanged (frozen features can then be cached)."""
        return self.crop < 1 or self.flip or self.jitter > 0


#: No augmentation.
PLAIN = Augmentation(crop=1.0, flip=False, jitter=0.0)


@dataclass(frozen=True)
class Draw:
    """What is drawn for a batch of B images, on the CPU.

    ``boxes`` [B, 4]: left, top, width and height of each crop in pixels (whole numbers), or None without crops;
    ``flips`` [B] (bool); ``factors`` [B, 4] of brightness, contrast, saturation (1 changes nothing) and hue (in turns,
    0 changes nothing), or None without jitter, and the ``order`` of these four, by number.
    """

    flips: Tensor
    boxes: Tensor | None = None
    factors: Tensor | None = None
    order: tuple[int, ...] = (0, 1, 2, 3)


def augment(pixels: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """Augmented copies of images ``[B, 3, H, W]``, one draw an image: float32 in [0, 1] in the same shape, on the
    images' device.

    ``pixels``: uint8, or floats in [0, 1]; without augmentation they are only brought to that range. ``generator`` is
    one of the CPU. Each of several processes that train together draws its own.
    """
    if not augmentation.active:
        return unit_range(pixels)
    own = int(torch.randint(2**62, (), generator=generator)) + parallel.rank()
    count, _, height, width = pixels.shape
    return apply(pixels, draw(augmentation, count, height, width, torch.Generator().manual_seed(own)))


def draw(augmentation: Augmentation, count: int, height: int, width: int, generator: torch.Generator) -> Draw:
    """Draw crops, flips and colours for ``count`` images of ``height`` x ``width`` pixels."""
    boxes = factors = None
    order: list[int] = []
    if augmentation.crop < 1:
        boxes = _boxes(augmentation.crop, count, height, width, generator)
    flips = torch.rand(count, generator=generator) < (0.5 if augmentation.flip else 0.0)
    if augmentation.jitter > 0:
        strength = augmentation.jitter
        low = torch.tensor([max(0.0, 1 - strength)] * 3 + [-strength])
        high = torch.tensor([1 + strength] * 3 + [strength])
        factors = low + (high - low) * torch.rand(count, 4, generator=generator)
        order = torch.randperm(4, generator=generator).tolist()
    return Draw(flips, boxes, factors, tuple(order))


def apply(pixels: Tensor, drawn: Draw) -> Tensor:
    """Images ``[B, 3, H, W]`` (uint8, or floats in [0, 1]) as drawn: float32 in [0, 1], on their device."""
    out = _crop_and_flip(unit_range(pixels), drawn)
    if drawn.factors is None:
        return out
    out = out.clone() if out.data_ptr() == pixels.data_ptr() else out
    factors = drawn.factors.to(out.device, non_blocking=True)
    for step in drawn.order:
        _STEPS[step](out, factors[:, step].view(-1, 1, 1, 1))
    return out


# --- crop and flip ----------------------------------------------------------------------------------------------------


def _boxes(smallest: float, count: int, height: int, width: int, generator: torch.Generator) -> Tensor:
    """Boxes [B, 4] that keep ``smallest`` to all of the area, sides in :data:`RATIO`, anywhere in the image.

    The first of :data:`TRIES` boxes that fits is taken; where none does, the largest one of an allowed ratio.
    """
    area = height * width * (smallest + (1 - smallest) * torch.rand(count, TRIES, generator=generator))
    low, high = (math.log(ratio) for ratio in RATIO)
    ratio = torch.exp(low + (high - low) * torch.rand(count, TRIES, generator=generator))
    sides = torch.stack([(area * ratio).sqrt(), (area / ratio).sqrt()], dim=-1).round()  # [B, tries, 2]: width, height
    whole = torch.tensor([float(width), float(height)])
    fits = ((sides >= 1) & (sides <= whole)).all(dim=-1)
    first = sides[torch.arange(count), fits.byte().argmax(dim=1)]
    narrow, wide = width / height < RATIO[0], width / height > RATIO[1]
    largest = torch.tensor(
        [
            float(round(height * RATIO[1]) if wide else width),
            float(round(width / RATIO[0]) if narrow else height),
        ]
    )
    sides = torch.where(fits.any(dim=1, keepdim=True), first, largest)
    start = ((whole - sides + 1) * torch.rand(count, 2, generator=generator)).floor().minimum(whole - sides)
    return torch.cat([start, sides], dim=1)


def _crop_and_flip(pixels: Tensor, drawn: Draw) -> Tensor:
    """Each box, mirrored or not, stretched to the whole image: pixel centres of its corners on those of the image's."""
    if drawn.boxes is None:
        if not drawn.flips.any():
            return pixels
        flips = drawn.flips.to(pixels.device, non_blocking=True).view(-1, 1, 1, 1)
        return torch.where(flips, pixels.flip(-1), pixels)
    height, width = pixels.shape[-2:]
    left, top, across, down = drawn.boxes.unbind(dim=1)
    right = left + across - 1
    first, last = torch.where(drawn.flips, right, left), torch.where(drawn.flips, left, right)
    ends = torch.stack([first, last, top, top + down - 1], dim=1)  # [B, 4], in pixels
    scale = torch.tensor([max(1, width - 1)] * 2 + [max(1, height - 1)] * 2)
    ends = (2 * ends / scale - 1).to(pixels.device, non_blocking=True)  # -1 and 1 are the image's ends
    steps = [torch.linspace(0, 1, side, device=pixels.device) for side in (width, height)]
    columns = torch.lerp(ends[:, 0:1], ends[:, 1:2], steps[0])
    rows = torch.lerp(ends[:, 2:3], ends[:, 3:4], steps[1])
    grid = torch.empty(len(pixels), height, width, 2, device=pixels.device)
    grid[..., 0], grid[..., 1] = columns[:, None, :], rows[:, :, None]
    return torch.nn.functional.grid_sample(pixels, grid, padding_mode="border", align_corners=True)


# --- colours: each step changes images [B, 3, H, W] in place, by factors [B, 1, 1, 1] ---------------------------------


def _brightness(images: Tensor, factor: Tensor) -> None:
    images.mul_(factor).clamp_(0, 1)


def _contrast(images: Tensor, factor: Tensor) -> None:
    """Away from the mean grey of each image, or towards it."""
    red, green, blue = images.mean(dim=(2, 3), keepdim=True).unbind(dim=1)
    grey = GREY[0] * red + GREY[1] * green + GREY[2] * blue
    images.mul_(factor).add_(grey[:, None] * (1 - factor)).clamp_(0, 1)


def _saturation(images: Tensor, factor: Tensor) -> None:
    """Away from the grey of each pixel, or towards it."""
    red, green, blue = images.unbind(dim=1)
    grey = (GREY[0] * red).add_(green, alpha=GREY[1]).add_(blue, alpha=GREY[2])
    images.mul_(factor).add_(grey[:, None] * (1 - factor)).clamp_(0, 1)


def _hue(images: Tensor, turns: Tensor) -> None:
    """Turn the hue of HSV: with h the hue in turns, V the largest and C the range of a pixel's three values, channel
    n = 5, 3, 1 (red, green, blue) becomes V - C min(1, max(0, 2 - |k - 2|)) with k = 6 (h + n / 6 mod 1)."""
    red, green, blue = images.unbind(dim=1)
    top = torch.maximum(torch.maximum(red, green), blue)
    span = top - torch.minimum(torch.minimum(red, green), blue)
    sixths = (red - green).add_(span, alpha=4)  # where blue is the largest; the masks are 0 or 1, so the sums are exact
    sixths.lerp_((blue - red).add_(span, alpha=2), green.clone().eq_(top)).lerp_(green - blue, red.clone().eq_(top))
    hue = sixths.div_(6 * span.clamp(min=torch.finfo(span.dtype).tiny))[:, None] + turns
    for channel, offset in enumerate((5 / 6, 3 / 6, 1 / 6)):
        k = (hue[:, 0] + (offset + 1)).frac_().mul_(6)  # the sum is positive
        share = k.sub_(2).abs_().neg_().add_(2).clamp_(0, 1)
        torch.addcmul(top, share, span, value=-1, out=images[:, channel])


_STEPS: tuple[Callable[[Tensor, Tensor], None], ...] = (_brightness, _contrast, _saturation, _hue)
