"""A set of images in memory, as a method gets it in a test."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from torch import Tensor

from methods.interface import Images


class InMemoryImages(Images):
    """``values [N, 3, H, W]``, handed out as they are; the content hash is the sha256 of each image's bytes."""

    def __init__(self, values: Tensor) -> None:
        self.values = values

    def __len__(self) -> int:
        return len(self.values)

    def pixels(self, index: Tensor) -> Tensor:
        return self.values[index]

    @property
    def content(self) -> Sequence[str]:
        return [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in self.values]
