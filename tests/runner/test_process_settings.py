"""A run called from a notebook or script leaves the process as it found it, however the run ends."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks import run
from benchmarks.runner.process_settings import prepared_process
from methods.floors import RandomEmbedding


@pytest.fixture(autouse=True)
def _as_it_was() -> Iterator[None]:
    filled = torch.utils.deterministic.fill_uninitialized_memory
    rounded = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.utils.deterministic.fill_uninitialized_memory = filled
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = rounded


def state() -> dict[str, Any]:
    """Everything of the process that a run sets."""
    return {
        "environment": dict(os.environ),
        "threads": torch.get_num_threads(),
        "deterministic": torch.are_deterministic_algorithms_enabled(),
        "warn only": torch.is_deterministic_algorithms_warn_only_enabled(),
        "filled": torch.utils.deterministic.fill_uninitialized_memory,
        "tf32": (torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32),
        "numpy's generator": np.random.get_state()[1].tolist(),  # type: ignore[index, union-attr]
        "torch's generator": torch.get_rng_state().tolist(),
        "folder": Path.cwd(),
    }


def unusual(monkeypatch: pytest.MonkeyPatch, *, other: bool) -> None:
    """Settings that are not those of a run; with ``other``, the opposite ones."""
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    if other:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    torch.set_num_threads(2)
    torch.use_deterministic_algorithms(other, warn_only=False)
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = other, not other


def call(folder: Path, out: Path, jobs: int, *more: str) -> int:
    fixed = ["--datasets", "tiny", "--backbone", str(folder), "--threads", "1", "--preset", "full"]
    what = ["--methods", "random", "--protocols", "ucdr", "--jobs", str(jobs), "--out", str(out)]
    return run.main([*fixed, *what, *more])


@pytest.mark.parametrize("other", [True, False])
@pytest.mark.parametrize("jobs", [1, 4])  # 4: executor `processes`, which does a single group itself
@pytest.mark.parametrize("ending", ["ok", "failed", "fail-fast", "interrupt"])
def test_a_run_puts_the_process_back(
    tiny_dataset: type,
    tiny_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ending: str,
    jobs: int,
    other: bool,
) -> None:
    monkeypatch.setattr("benchmarks.reporting.files.write_report", lambda *_, **__: [tmp_path, tmp_path])
    seen: list[dict[str, Any]] = []
    real = RandomEmbedding.encode_images

    def encode(self: RandomEmbedding, pixels: Any) -> Any:
        seen.append(state())
        if ending == "interrupt":
            raise KeyboardInterrupt
        return real(self, pixels) if ending == "ok" else 1 / 0

    monkeypatch.setattr(RandomEmbedding, "encode_images", encode)
    unusual(monkeypatch, other=other)
    before = state()
    code = call(tiny_folder, tmp_path / "out", jobs, *(["--fail-fast"] if ending == "fail-fast" else []))
    assert code == {"ok": 0, "interrupt": 130}.get(ending, 1)
    assert state() == before
    inside = seen[0]
    assert (inside["threads"], inside["deterministic"], inside["warn only"]) == (1, True, True)
    assert (inside["filled"], inside["tf32"]) == (False, (False, False))
    assert inside["environment"]["CUBLAS_WORKSPACE_CONFIG"] == (":16:8" if other else ":4096:8")


def test_an_error_inside_puts_the_process_back(monkeypatch: pytest.MonkeyPatch) -> None:
    unusual(monkeypatch, other=False)
    before, python = state(), random.getstate()
    with pytest.raises(SystemExit), prepared_process(1):
        torch.manual_seed(1)
        random.random()
        np.random.rand()
        raise SystemExit
    assert (state(), random.getstate()) == (before, python)


def test_a_run_without_a_cache_leaves_the_environment(
    tiny_dataset: type, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("benchmarks.reporting.files.write_report", lambda *_, **__: [tmp_path, tmp_path])
    monkeypatch.setenv("UCDR_BENCH_CACHE", "~no_such_user_here/cache")
    before = state()
    assert call(tiny_folder, tmp_path / "out", 1) == 0
    assert state() == before
    reported = [line for line in capfd.readouterr().err.splitlines() if "cache" in line]
    assert len(reported) == 1, reported
