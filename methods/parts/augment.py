"""Training augmentation of the official code: random resized crop, horizontal flip, colour jitter (through kornia).

Seeded by the generator that is passed in, never by global state.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from methods.parts import parallel


@dataclass(frozen=True)
class Augmentation:
    """Defaults: the official code of ProS and UCDR-Adapter, crop scale 0.8 to 1, flip, jitter 0.4 (all four).

    ``crop`` = 1 and ``jitter`` = 0 and ``flip`` = False leave the images unchanged.
    """

    crop: float = 0.8
    flip: bool = True
    jitter: float = 0.4

    @property
    def active(self) -> bool:
        """False if images pass unchanged (frozen features can then be cached)."""
        return self.crop < 1 or self.flip or self.jitter > 0


#: No augmentation.
PLAIN = Augmentation(crop=1.0, flip=False, jitter=0.0)


def augment(pixels: Tensor, augmentation: Augmentation, generator: torch.Generator) -> Tensor:
    """Augmented copies of images ``[B, 3, H, W]`` in [0, 1], one draw an image; same shape and range.

    Each of several processes that train together draws its own.
    """
    if not augmentation.active:
        return pixels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(torch.randint(2**62, (), generator=generator)) + parallel.rank())
        return _pipeline(augmentation, pixels.shape[-1])(pixels).clamp(0, 1)


@cache
def _pipeline(augmentation: Augmentation, size: int) -> Any:
    import kornia.augmentation as kornia

    steps: list[Any] = []
    if augmentation.crop < 1:
        steps.append(kornia.RandomResizedCrop((size, size), scale=(augmentation.crop, 1.0), p=1.0))
    if augmentation.flip:
        steps.append(kornia.RandomHorizontalFlip(p=0.5))
    if augmentation.jitter > 0:
        steps.append(kornia.ColorJitter(*[augmentation.jitter] * 4, p=1.0))
    return kornia.AugmentationSequential(*steps, data_keys=["input"], same_on_batch=False)
