"""Fixtures that several test files share."""

import locale
import logging
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.support import torchvision_operators

torchvision_operators.declare()  # before anything imports torchvision

from methods.parts.backbone import Backbone  # noqa: E402
from tests.support.tiny_clip import tiny_clip_folder  # noqa: E402


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--torch-threads N``: threads of torch in each test (default 1: tests run beside each other)."""
    parser.addoption("--torch-threads", type=int, default=1, help="threads of torch in each test (default 1)")


def process_wide() -> dict[str, object]:
    """The settings of this process that a test may change and must not leave behind."""
    return {
        "threads of torch": torch.get_num_threads(),
        "default dtype of torch": torch.get_default_dtype(),
        "gradients of torch": torch.is_grad_enabled(),
        "working directory": Path.cwd(),
        "locale": locale.setlocale(locale.LC_ALL),
        "logging level": logging.getLogger().level,
    }


@pytest.fixture(autouse=True)
def _process_as_it_was(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test starts with ``--torch-threads`` threads, and finds every other process-wide setting as it was.

    The order of the tests, and what an earlier one ran, then decide nothing. What product code changes (a run sets
    threads and determinism for its process) is put back here; what else a test leaves changed fails that test.
    """
    threads = request.config.getoption("--torch-threads")
    torch.set_num_threads(threads)
    environment = dict(os.environ)
    deterministic = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    before = process_wide()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])
    for name in set(os.environ) - set(environment):
        del os.environ[name]
    os.environ.update(environment)
    assert process_wide() == before


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
