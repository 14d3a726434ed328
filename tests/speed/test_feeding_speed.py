"""The feeding benchmark reads real files by both ways, and a device that works longer than reading takes waits less."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch

from benchmarks.speed import feeding
from methods.interface import Images

SMALL = ("--images", "160", "--size", "16", "--batch-size", "8", "--steps", "4", "--step-ms", "5", "--repeats", "1")


def test_everything_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, before = tmp_path / "speed" / "feeding.json", ours_only(os.environ)
    assert feeding.main([*SMALL, "--workers", "2", "--json", str(file)]) == 0
    result = json.loads(file.read_text())
    assert set(result["decode"]) == {"processes", "threads", "one thread"}
    assert all(rate > 0 for rate in (*result["decode"].values(), *result["cache"].values()))
    for source in ("cache", "JPEG"):
        for times in result["wait"][source].values():
            assert 0 < times["mean_ms"] <= times["longest_ms"]
    assert [(row["images"], row["side"]) for row in result["augment"]] == list(feeding.AUGMENTED)
    assert all(row["ratio"] == row["plain_ms"] / row["ours_ms"] for row in result["augment"])
    assert result["settings"]["images"] == 160 and len(result["load_average"]["end"]) == 3
    printed = capsys.readouterr()
    assert printed.out.count("\n| ") == 8
    assert printed.err == ""
    assert ours_only(os.environ) == before


def ours_only(variables: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in variables.items() if name.startswith("UCDR_BENCH")}


class Slow(Images):
    """Takes as long to read as a step works."""

    def __len__(self) -> int:
        return 4

    def pixels(self, index: torch.Tensor) -> torch.Tensor:
        time.sleep(0.05)
        return torch.zeros(len(index), 3, 4, 4)

    @property
    def content(self) -> list[str]:
        return ["zeros"] * 4


def test_a_step_waits_for_what_was_not_read_ahead() -> None:
    index = [torch.arange(4)] * 5
    ours, plain = (feeding.waits(Slow(), index, "cpu", 0.1, ahead=ahead)[1:] for ahead in (True, False))  # type: ignore[arg-type]
    assert min(plain) >= 0.05
    assert sorted(ours)[1] < 0.04


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--images", "100"], "--images must be at least 128"),
        (["--workers", "0"], "--workers must be at least 1"),
        (["--threads", "0"], "--threads must be at least 1"),
        (["--step-ms", "-1"], "--step-ms cannot be negative"),
        (["--device", "tpu9"], "--device tpu9 cannot be used here"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        feeding.main(arguments)
    assert error.value.code == 2
    assert reason in capsys.readouterr().err.splitlines()[-1]


def test_help_needs_no_torch() -> None:
    code = (
        "import sys\nfrom benchmarks.speed import feeding\n"
        "try:\n    feeding.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "assert not {'numpy', 'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--step-ms" in done.stdout
