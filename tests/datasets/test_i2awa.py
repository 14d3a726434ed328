"""I2AwA in the layouts of its users."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.datasets.i2awa import I2AwA
from tests.datasets.layouts import Copy, move, said


@pytest.mark.parametrize("place", ["AwA/JPEGImages", "AWA2/JPEGImages", "JPEGImages", "AwA2"])
def test_i2awa_layouts(made: Path, copy: Copy, place: str) -> None:
    root = copy("i2awa")
    move(root, "Animals_with_Attributes2/JPEGImages", place)
    assert I2AwA(root).data_hash == I2AwA(made / "i2awa").data_hash
    assert f"awa2 from {place}" in said(I2AwA(root))
