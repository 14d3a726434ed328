"""Fixtures of the data set tests."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.datasets import transfer_trees, trees
from tests.datasets.layouts import Copy, whole


@pytest.fixture(autouse=True)
def image_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An image cache of the test's own, and decoding in this process."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("UCDR_BENCH_CACHE", str(folder))
    monkeypatch.setenv("UCDR_BENCH_WORKERS", "1")
    return folder


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small tree of every data set, never changed."""
    root = tmp_path_factory.mktemp("layouts")
    trees.domainnet_tree(root / "domainnet", whole("domainnet"))
    trees.sketchy_tree(root / "sketchy", whole("sketchy_eccv2018"), images=1)
    trees.tuberlin_tree(root / "tuberlin", whole("tuberlin"), images=1)
    transfer_trees.mini_domainnet_tree(root / "mini")
    transfer_trees.office_home_tree(root / "office_home")
    transfer_trees.pacs_tree(root / "pacs")
    transfer_trees.vlcs_tree(root / "vlcs")
    transfer_trees.terra_incognita_tree(root / "terra_incognita")
    transfer_trees.visda_tree(root / "visda")
    transfer_trees.i2awa_tree(root / "i2awa")
    transfer_trees.i2webv_tree(root / "i2webv", transfer_trees.WNIDS, 6)
    return root


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Copy:
    """A copy of a tree; its images are links, its lists may be changed."""

    def link(source: str, target: str) -> None:
        (shutil.copy2 if source.endswith(".txt") else os.link)(source, target)

    return lambda name: Path(shutil.copytree(made / name, tmp_path / name, copy_function=link))
