"""PACS in other spellings."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.datasets.pacs import PACS
from tests.datasets import transfer_trees
from tests.datasets.layouts import Copy, move


@pytest.mark.parametrize(
    "names", [("Art_Painting", "Cartoon", "Photo", "Sketch"), ("art", "cartoon", "photo", "sketch")]
)
def test_pacs_in_other_spellings(made: Path, copy: Copy, names: tuple[str, ...]) -> None:
    root = copy("pacs")
    for old, new in zip(transfer_trees.PACS_DOMAINS, names, strict=True):
        move(root, f"pacs_data/{old}", f"PACS/{new}")
    assert PACS(root).data_hash == PACS(made / "pacs").data_hash
