"""``card``, ``verify`` and ``splits`` of ``benchmarks.data`` on a tree of every data set's layout."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import data
from benchmarks.datasets.i2webv import I2WebV
from benchmarks.datasets.listed import SPLITS, class_lists
from benchmarks.datasets.registry import DATASETS
from tests.datasets import transfer_trees, trees


def listed(name: str, write: Callable[..., list[str]]) -> Callable[[Path], object]:
    """A writer of a tree with all classes of a class list."""
    classes = [cls for split in SPLITS for cls in class_lists(name)[split]]
    return lambda root: write(root, classes, pictures=1, plenty=True)


#: Writes the tree of each data set that is not shipped.
TREES: dict[str, Callable[[Path], object]] = {
    "domainnet": listed("domainnet", trees.domainnet_tree),
    "domainnet_245": listed("domainnet", trees.domainnet_tree),
    "sketchy": listed("sketchy_eccv2018", trees.sketchy_tree),
    "sketchy_random": listed("sketchy_eccv2018", trees.sketchy_tree),
    "tuberlin": listed("tuberlin", trees.tuberlin_tree),
    "office_home": transfer_trees.office_home_tree,
    "mini_domainnet": transfer_trees.mini_domainnet_tree,
    "visda": transfer_trees.visda_tree,
    "visda_test": transfer_trees.visda_tree,
    "pacs": transfer_trees.pacs_tree,
    "i2awa": transfer_trees.i2awa_tree,
    "i2webv": lambda root: transfer_trees.i2webv_tree(root, transfer_trees.WNIDS, 6),
    "folder": trees.own_tree,
}


def test_there_is_a_tree_for_every_data_set() -> None:
    assert {*TREES, "picto_domains", "tiny"} >= set(DATASETS.names())


@pytest.mark.parametrize("name", TREES)
def test_card_verify_and_splits(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(I2WebV, "sizes", (6, 8))
    root = tmp_path / name
    root.mkdir()
    TREES[name](root)
    assert data.main(["card", name]) == 0
    card = capsys.readouterr().out
    for word in ("source ", "licence ", "folder "):
        assert re.search(rf"^{word} +\S", card, re.MULTILINE), f"{name}'s card says nothing of its {word}"
    code = data.main(["verify", name, "--root", str(root)])
    printed = capsys.readouterr()
    assert code == 0, printed.out + printed.err
    assert re.search(r"^data hash [0-9a-f]{64}$", printed.out, re.MULTILINE)
    assert re.search(rf"^{name} v1: [\d,]+ pictures decode, [\d,]+ tasks? (is|are) sound", printed.out, re.MULTILINE)
    assert data.main(["splits", name, "--data-root", str(tmp_path)]) == 0
    assert re.search(r"\b\d+ classes\b", capsys.readouterr().out)
