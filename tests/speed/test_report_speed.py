"""The cost of a report is measured on a store of the asked size, and a report that differs is found."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from benchmarks.speed import report
from benchmarks.store.files import ResultStore
from tests.support.made_up_results import CLASSES, PER_CLASS, add, retrieval_table


@pytest.fixture
def source(tmp_path: Path) -> Path:
    store, rng = ResultStore(tmp_path / "source"), np.random.default_rng(0)
    for method in ("zero_shot", "random"):
        for split in ("line", "flat"):
            add(store, method, split, retrieval_table(rng.random(CLASSES * PER_CLASS)))
    return tmp_path / "source"


def test_records_are_repeated_with_further_seeds(source: Path, tmp_path: Path) -> None:
    assert report.make_store(source, tmp_path / "made", 10) > 0
    originals = {one.key for one in ResultStore(source).records()}
    made = list(ResultStore(tmp_path / "made").records())
    assert len(made) == 10
    assert originals <= {one.key for one in made}
    assert sorted(one.cell.seed for one in made) == [0] * 4 + [1] * 4 + [2] * 2
    assert all(one.per_query is not None for one in made), "reading checks the hash of every file"
    report.make_store(source, tmp_path / "bare", 5, per_query=False)
    assert [one.per_query for one in ResultStore(tmp_path / "bare").records()] == [None] * 5


def test_a_report_is_measured_beside_another_checkout(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "speed.json"
    arguments = ["--source", str(source), "--records", "8", "--resamples", "50", "--json", str(file)]
    assert report.main([*arguments, "--before", str(report.ROOT)]) == 0
    result = json.loads(file.read_text())
    assert result["records"] == 8
    assert {"leaderboard.md", "leaderboard.csv", "leaderboard.tex", "index.html"} <= set(result["files"])
    for name in ("before", "now"):
        (cost,) = result[name]
        assert cost["cpu_s"] > 0
        assert 50 < cost["memory_mib"] < 4000
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in printed] == ["8", "before", "now", "ratio"]


def test_reports_that_differ_are_named(tmp_path: Path) -> None:
    for name, text in (("one", "a"), ("two", "b")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "leaderboard.md").write_text(text)
        (tmp_path / name / "leaderboard.csv").write_text("same")
    (tmp_path / "two" / "published.md").write_text("only here")
    assert report.compared(tmp_path / "one", tmp_path / "two") == ["leaderboard.md", "published.md"]


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (["--records", "0"], "--records must be at least 1"),
        (["--before", "nowhere"], "--before nowhere: not a checkout of this repository"),
        (["--source", "nowhere", "--records", "1"], "nowhere holds no readable record"),
    ],
)
def test_what_cannot_be_measured_is_one_line(
    arguments: list[str], reason: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as error:
        report.main(arguments)
    assert error.value.code == 2
    assert reason in capsys.readouterr().err.splitlines()[-1]
