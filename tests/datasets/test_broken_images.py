"""An image that turns out to be broken in the middle of a run, on real files that nobody has verified before."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks import data, run
from benchmarks.datasets.own_folder import OwnFolder
from benchmarks.reporting.plot_collector import PlannedPlots
from benchmarks.store.files import ResultStore
from tests.datasets.trees import own_tree
from tests.support.learners import learners


def test_it_is_one_failed_row_with_the_mend_and_never_replaced(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UCDR_BENCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        "benchmarks.reporting.plot_collector.draw_setting", lambda _, collector: PlannedPlots(collector)
    )
    root, results = tmp_path / "my data" / "folder", tmp_path / "results"
    own_tree(root, domains=("drawing", "glyph", "photo"))
    name = OwnFolder(root).classes("test")[0]
    broken = root / "drawing" / name / "0002.jpg"
    broken.write_bytes(broken.read_bytes()[:300])

    def sweep() -> int:
        options = [
            "--methods",
            "learner",
            "--datasets",
            "folder",
            "--data-root",
            str(root.parent),
            "--out",
            str(results),
        ]
        options += ["--backbone", str(tiny_folder), "--protocols", "ucdr", "--preset", "full", "--threads", "1"]
        with learners():
            return run.main([*options, "--jobs", "1"])

    def verify(*options: str) -> int:
        capsys.readouterr()
        return data.main(["verify", "folder", "--root", str(root), *options])

    assert sweep() == 1
    printed = capsys.readouterr().err
    found = {record.cell.split: record for record in ResultStore(results).records()}
    assert {split: record.status for split, record in found.items()} == {"drawing": "failed", "glyph": "ok"}
    for said in (
        f"folder: {broken} is broken: ",
        f"python -m benchmarks.data verify folder --root '{root}' (--write-broken leaves them out)",
    ):
        assert said in found["drawing"].reason
        assert said in printed
    assert "\n" not in found["drawing"].reason

    assert verify() == 1
    listed = capsys.readouterr().out
    assert f"broken images: 1\n  drawing/{name}/0002.jpg: " in listed
    assert "NOT in order: 1 image is broken" in listed
    assert verify("--write-broken") == 1
    assert verify() == 0
    assert f"images left out by broken.txt: 1\n  drawing/{name}/0002.jpg: " in capsys.readouterr().out

    assert sweep() == 0
    asked = {
        record.scores["unseen"].n_queries
        for record in ResultStore(results).records()
        if record.cell.split == "drawing" and record.status == "ok"
    }
    assert asked == {5 * len(OwnFolder(root).classes("test")) - 1}, "one query fewer: nothing takes its place"
