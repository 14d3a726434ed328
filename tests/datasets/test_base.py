"""The interface of data sets: images are uint8 RGB until a method is called, and other values are refused by name."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks.datasets.base import DatasetError
from benchmarks.datasets.pixels import DatasetImages, PixelCache
from methods.parts.preprocessing import ImageProcessing
from tests.support.tiny_dataset import TinyShapes

ROWS = np.array([7, 0, 7, 281])


def test_the_default_processing_rounds_the_floats_of_pixels_to_uint8() -> None:
    dataset = TinyShapes()
    given = dataset.pixels(ROWS, 32)
    processed = dataset.processed(ROWS, ImageProcessing.at(32))
    assert processed.dtype == torch.uint8
    assert torch.equal(processed, (given * 255).round().to(torch.uint8))


@pytest.mark.parametrize("share", [0.25, 0.0], ids=["kept", "not kept"])
def test_images_are_uint8_until_a_method_is_called(share: float) -> None:
    cache = PixelCache(TinyShapes(), 32, share)
    stored = cache[ROWS]
    assert (stored.dtype, stored.shape) == (torch.uint8, (4, 3, 32, 32))
    shown = DatasetImages(cache, ROWS).pixels(torch.tensor([0, 3]))
    assert shown.dtype == torch.float32
    assert torch.equal(shown, stored[[0, 3]] / 255)


@pytest.mark.parametrize("share", [0.25, 0.0], ids=["kept", "not kept"])
def test_a_data_set_whose_processed_gives_floats_is_refused_in_one_line(share: float) -> None:
    class Floats(TinyShapes):
        def processed(self, rows: np.ndarray, how: ImageProcessing) -> Tensor:
            return super().processed(rows, how).float()

    with pytest.raises(DatasetError) as refused:
        PixelCache(Floats(), 32, share)[ROWS]
    assert str(refused.value) == "tiny: processed() returned torch.float32; return uint8 RGB from 0 to 255"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda pixels: pixels * 255, r"torch.float32 from \d+ to 255"),
        (lambda pixels: pixels - 0.5, r"torch.float32 from -0\.\d+ to 0\.5"),
        (lambda pixels: (pixels * 255).to(torch.uint8), r"torch.uint8 from \d+ to 255"),
        (lambda pixels: pixels.double(), r"torch.float64 from [\d.]+ to 1"),
        (lambda pixels: pixels * torch.nan, r"torch.float32 from nan to nan"),
    ],
    ids=["0 to 255", "centred", "uint8", "double", "nan"],
)
def test_pixels_that_are_not_rgb_from_0_to_1_are_refused_in_one_line(
    change: Callable[[Tensor], Tensor], what: str
) -> None:
    class Changed(TinyShapes):
        def pixels(self, rows: np.ndarray, size: int) -> Tensor:
            return change(super().pixels(rows, size))

    with pytest.raises(
        DatasetError, match=rf"^tiny: pixels\(\) returned {what}; return float32 RGB from 0 to 1, .*uint8 RGB$"
    ):
        Changed().processed(ROWS, ImageProcessing.at(32))
