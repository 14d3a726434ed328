"""Retrieval data sets: the table does not depend on the layout."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import data
from benchmarks.datasets.domainnet import DomainNet
from benchmarks.datasets.folder_dataset import FolderDataset
from benchmarks.datasets.sketchy import Sketchy
from benchmarks.datasets.tuberlin import TUBerlin
from tests.datasets.layouts import Copy, move


@pytest.mark.parametrize("name", ["domain_net", "DomainNet", "DOMAINNET"])
def test_the_folder_of_other_code_bases_is_found(
    made: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / name).symlink_to(made / "domainnet")
    assert DomainNet(tmp_path / "domainnet").folder.name == name
    assert data.main(["list", "--data-root", str(tmp_path)]) == 0
    assert f"found as {name} " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("kind", "name", "moves"),
    [
        (Sketchy, "sketchy", {"256x256/sketch": "sketch", "EXTEND_image_sketchy": "extended_photo"}),
        (Sketchy, "sketchy", {"EXTEND_image_sketchy": "256x256/EXTEND_image_sketchy_ready"}),
        (TUBerlin, "tuberlin", {"png": "sketches", "ImageResized": "images"}),
        (TUBerlin, "tuberlin", {"png": "png_ready", "ImageResized": "ImageResized_ready"}),
    ],
)
def test_retrieval_sets_do_not_depend_on_the_layout(
    made: Path, copy: Copy, kind: type[FolderDataset], name: str, moves: dict[str, str]
) -> None:
    root = copy(name)
    for old, new in moves.items():
        move(root, old, new)
    assert kind(root).data_hash == kind(made / name).data_hash
