"""Office-Home in the layouts of its users."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks.datasets.office_home import OfficeHome
from tests.datasets.layouts import Copy, move, said


@pytest.mark.parametrize("real", ["Real", "RealWorld", "Real_World", "real_world", "Real-World", "REAL WORLD"])
@pytest.mark.parametrize("base", ["", "images", "OfficeHomeDataset_10072016", "images/OfficeHomeDataset_10072016"])
def test_office_home_layouts(made: Path, copy: Copy, real: str, base: str) -> None:
    root = copy("office_home")
    for folder in ("Art", "Clipart", "Product", "Real World"):
        new = real if folder == "Real World" else folder
        move(root, f"OfficeHomeDataset_10072016/{folder}", f"other/{base}/{new}" if base else f"other/{new}")
    dataset = OfficeHome(root / "other")
    assert dataset.findings == ()
    assert dataset.data_hash == OfficeHome(made / "office_home").data_hash
    assert f"real_world from {base}/{real}".replace("from /", "from ") in said(dataset)


def test_a_second_folder_of_a_domain_is_named(copy: Copy) -> None:
    root = copy("office_home") / "OfficeHomeDataset_10072016"
    shutil.copytree(root / "Real World", root / "Real")
    (finding,) = OfficeHome(root).findings
    assert str(finding) == "Real: not read: real_world is read from Real World"
    assert "1 second folders of a domain" in OfficeHome(root).left_out
