"""Fixtures that several test files share."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from methods.parts.backbone import Backbone
from tests.support.tiny_clip import tiny_clip_folder


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the tiny random CLIP (tests/support/tiny_clip.py)."""
    return tiny_clip_folder(tmp_path_factory.mktemp("models") / "tiny-clip")


@pytest.fixture(scope="session")
def tiny_backbone(tiny_folder: Path) -> Backbone:
    """The tiny random CLIP, loaded. Shared by all tests: frozen, clone it before training it."""
    return Backbone.load(tiny_folder)


@pytest.fixture
def tiny_dataset() -> Iterator[type]:
    """The tiny data set's class (tests/support/tiny_dataset.py), registered as ``tiny`` while the test runs."""
    from benchmarks.datasets.registry import DATASETS
    from tests.support.tiny_dataset import TinyShapes

    DATASETS.add("tiny", TinyShapes)
    yield TinyShapes
    DATASETS.remove("tiny")
