"""The cost of runs is measured on a folder of its own, and a failure is one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.speed import run

FEW = ("--methods", "random", "--protocols", "ucdr", "--limit", "60")


def test_a_small_run_is_measured_in_every_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "speed" / "run.json"
    assert run.main(["--repeats", "1", "--json", str(file), *FEW]) == 0
    result = json.loads(file.read_text())
    assert result["cells"] > 0
    assert result["arguments"] == list(FEW)
    assert set(result["ratios"]) == set(run.KINDS)
    assert result["ratios"]["start"] == 1
    assert all(len(times) == 1 and times[0] > 0 for times in result["cpu_s"].values())
    assert result["cpu_s"]["cold"][0] > result["cpu_s"]["cached"][0]  # the report alone takes seconds
    assert result["cpu_s"]["report"][0] > result["cpu_s"]["cached"][0]
    printed = capsys.readouterr()
    assert [line.split()[0] for line in printed.out.splitlines()[1:]] == list(run.KINDS)
    assert printed.err == ""


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--repeats", "0"], "--repeats must be at least 1"),
        (["--out", "x"], "--out is set by this command"),
        (["--dry-run"], "--dry-run is set by this command"),
        (["--methods", "nothing", "--repeats", "1"], "benchmarks.run failed: benchmarks.run: "),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        run.main(arguments)
    assert error.value.code == 2
    assert reason in capsys.readouterr().err.splitlines()[-1]
