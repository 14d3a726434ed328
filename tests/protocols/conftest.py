"""Fixtures of the protocol tests."""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.datasets.base import Dataset
from benchmarks.datasets.picto_domains import PictoDomains, pack_path
from tests.protocols.golden_tree import GoldenTree, Listing
from tests.support.golden import golden_set
from tests.support.tiny_dataset import TinyShapes


def _datasets() -> list[Any]:
    packed = pytest.param(PictoDomains, marks=pytest.mark.skipif(not pack_path().is_file(), reason="no pack here"))
    return [pytest.param(TinyShapes, id="tiny"), packed]


@pytest.fixture(scope="module", params=_datasets())
def dataset(request: pytest.FixtureRequest) -> Dataset:
    made: Dataset = request.param()
    made.check()
    return made


@pytest.fixture(scope="module")
def golden_splits() -> dict[str, Any]:
    splits: dict[str, Any] = golden_set().json("splits.json")
    return splits


@pytest.fixture(scope="module")
def listing(golden_splits: dict[str, Any]) -> Listing:
    return Listing(GoldenTree(golden_splits), golden_splits["expected"]["full_train_classes"])
