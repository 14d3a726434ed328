"""Images on their way to a method: 8-bit RGB until they are on the device, then floats in [0, 1]."""

from __future__ import annotations

from torch import Tensor


def unit_range(pixels: Tensor) -> Tensor:
    """RGB in [0, 1] as methods take it: float32 of uint8 values, in the same shape; floats pass unchanged."""
    return pixels if pixels.is_floating_point() else pixels.float().div_(255)
