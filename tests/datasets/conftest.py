"""Fixtures of the data set tests."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def image_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An image cache of the test's own, and decoding in this process."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("UCDR_BENCH_CACHE", str(folder))
    monkeypatch.setenv("UCDR_BENCH_WORKERS", "1")
    return folder
