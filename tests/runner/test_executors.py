"""Executors and shards: the same scores to the last byte wherever a plan is carried out, whoever dies on the way."""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.reporting.csv_text import leaderboard_csv
from benchmarks.reporting.data import ReportData
from benchmarks.runner.executors import Outcome
from benchmarks.runner.machine import final_settings
from benchmarks.runner.plan import Plan, plan, search_key, shard
from benchmarks.runner.presets import PRESETS, Preset
from benchmarks.runner.registered_names import unnamed
from benchmarks.runner.resources import Resources
from benchmarks.runner.run_plan import execute
from benchmarks.runner.settings import Settings
from benchmarks.store.files import ResultStore
from benchmarks.store.frame import load_results
from methods.registry import METHODS
from tests.support.every import Silent
from tests.support.learners import WORD, Learner, learners


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    monkeypatch.setenv(WORD, str(tmp_path))
    monkeypatch.setitem(PRESETS, "grid", Preset("grid", "two rates", 3, learning_rates=(0.125, 0.75)))  # type: ignore[call-overload]
    with learners():
        yield


@pytest.fixture
def settings(tiny_folder: Path, tmp_path: Path) -> Settings:
    return Settings(
        methods=("random", "learner"),
        datasets=("tiny",),
        protocols=("ucdr", "udcdr"),
        seeds=(0, 1),
        backbone=str(tiny_folder),
        preset="grid",
        out=str(tmp_path / "results"),
        threads=1,
        jobs=1,
        device="cpu",
    )


def run(settings: Settings) -> tuple[Outcome, ResultStore]:
    resources = Resources(settings)
    planned = plan(settings, resources)
    if settings.shard is not None:
        planned = shard(planned, *settings.shard)
    store = ResultStore(settings.out)
    return execute(planned, resources, store, Silent()), store


def score_tables(folder: Path | str) -> bytes:
    return leaderboard_csv(ReportData(load_results(folder))).encode()


def per_query_files(folder: Path | str) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*.parquet")}


def test_scores_do_not_depend_on_the_executor(settings: Settings, tmp_path: Path) -> None:
    outcome, serial = run(settings)
    assert outcome.counts == {"ok": 24}
    workers = dataclasses.replace(settings, out=str(tmp_path / "workers"), jobs=2)
    outcome, parallel = run(workers)
    assert outcome.counts == {"ok": 24}
    merged = tmp_path / "merged"
    for number in (1, 2, 3):
        part = dataclasses.replace(settings, out=str(tmp_path / f"shard{number}"), shard=(number, 3))
        assert run(part)[0].counts.keys() == {"ok"}
        shutil.copytree(part.out, merged, dirs_exist_ok=True)
    expected = score_tables(settings.out)
    assert expected.count(b"\n") > 40
    assert score_tables(workers.out) == expected
    assert score_tables(merged) == expected
    assert per_query_files(workers.out) == per_query_files(settings.out) == per_query_files(merged)
    assert run(dataclasses.replace(workers, out=str(merged)))[0].counts == {"cached": 24}
    for store in (serial, parallel):
        searches: dict[str, set[str]] = {}
        for record in store.records():
            if record.cell.method == "learner":
                searches.setdefault(record.fit.fit_id, set()).add(str(record.fit.trials))
        assert len(searches) == 3
        assert all(len(trials) == 1 for trials in searches.values()), "seconds included: seeds share one search"
    assert {record.environment.threads for record in parallel.records()} == {1}


@pytest.mark.slow
def test_a_dead_worker_costs_its_cells_and_the_sweep_goes_on(settings: Settings, tmp_path: Path) -> None:
    settings = dataclasses.replace(settings, methods=("mortal",), preset="full", jobs=2)
    word = tmp_path / "die"
    word.touch()
    outcome, store = run(settings)
    assert outcome.counts == {"ok": 8, "failed": 4}
    failed = [record for record in store.records() if record.status == "failed"]
    assert {(record.cell.protocol, record.cell.split) for record in failed} == {("ucdr", "line"), ("udcdr", "line")}
    for record in failed:
        assert record.reason.startswith("the worker process was ended by SIGKILL (often: out of memory; ")
        assert "fewer --jobs" in record.reason
        assert "the same command tries these cells again" in record.reason
    word.unlink()
    again = run(dataclasses.replace(settings, jobs=1))[0]
    assert again.counts == {"cached": 8, "ok": 4}
    undisturbed = dataclasses.replace(settings, jobs=1, out=str(tmp_path / "undisturbed"))
    run(undisturbed)
    assert score_tables(settings.out) == score_tables(undisturbed.out)


@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shards_are_parts_of_the_plan_that_keep_models_together(settings: Settings, count: int) -> None:
    settings = dataclasses.replace(settings, methods=("random", "learner", "mortal"), protocols=("ucdr", "uccdr"))
    resources = Resources(settings)
    whole = plan(settings, resources)
    parts = [shard(whole, number, count) for number in range(1, count + 1)]
    keys = [{cell.key for cell in part.cells} for part in parts]
    assert sum(map(len, keys)) == len(whole.cells)
    assert set().union(*keys) == {cell.key for cell in whole.cells}
    shuffled = dataclasses.replace(whole, groups=whole.groups[::-1])
    assert [{cell.key for cell in shard(shuffled, n, count).cells} for n in range(1, count + 1)] == keys
    where: dict[str, set[int]] = {}
    for number, part in enumerate(parts):
        order = [group for group in whole.groups if group in part.groups]
        assert list(part.groups) == order
        for group in part.groups:
            together = search_key(group) or f"{group.method} {group.seed} {METHODS.get(group.method).trained}"
            where.setdefault(together, set()).add(number)
    assert all(len(numbers) == 1 for numbers in where.values()), "one search, one set of encoded images: one shard"
    if count == 2:
        sizes = [sum(group.method == "learner" for group in part.groups) for part in parts]
        assert max(sizes) - min(sizes) <= 2, "each method is shared out evenly"


def test_names_that_live_here_alone_keep_a_run_in_one_process(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.runner.machine.cores", lambda: 8)
    settings = dataclasses.replace(settings, jobs=0)
    assert unnamed(settings) == []
    assert final_settings(settings, 0).jobs == 8

    class Homemade(Learner):
        card = dataclasses.replace(Learner.card, name="homemade")

    METHODS.add("homemade", Homemade)
    try:
        settings = dataclasses.replace(settings, methods=("learner", "homemade"))
        assert unnamed(settings) == ["homemade"]
        assert final_settings(settings, 0).jobs == 1
        assert final_settings(dataclasses.replace(settings, jobs=3), 0).jobs == 3
    finally:
        METHODS.remove("homemade")


def test_no_search_is_made_twice_and_none_waits_for_nothing(settings: Settings) -> None:
    from benchmarks.runner.executors.schedule import Schedule
    from benchmarks.store.records import Search

    settings = dataclasses.replace(settings, methods=("learner",), protocols=("ucdr",), seeds=(0, 1, 2))
    resources = Resources(settings)
    planned: Plan = plan(settings, resources)
    schedule = Schedule(planned, resources, ResultStore(settings.out), Silent())
    schedule.begin()
    assert schedule.waiting == 9
    first = [schedule.take() for _ in range(3)]
    searches: list[Any] = [unit.search for unit in first if unit is not None]
    assert len(set(searches)) == 3
    assert schedule.take() is None, "six groups wait for the three searches"
    assert first[0] is not None
    schedule.keep_search(first[0].groups[0], Search([{"learning_rate": 0.5, "validation": 0.1}], 0.5))
    followers = [schedule.take(), schedule.take()]
    assert [unit.search for unit in followers if unit is not None] == [searches[0]] * 2, (
        "now both other seeds may start"
    )
    assert schedule.take() is None
    assert first[1] is not None
    first[1].groups.clear()
    schedule.give_back(first[1])
    retry = schedule.take()
    assert retry is not None
    assert retry.search == searches[1], "that search failed: the next seed tries it"
    assert schedule.take() is None


def test_an_executor_of_another_package_is_found_and_checked(settings: Settings, tmp_path: Path) -> None:
    """Entry-point group ``ucdr_bench.executors``: listed, run, its answer checked, its failed import one line."""
    import os
    import subprocess
    import sys

    (tmp_path / "acme_grid.py").write_text(
        "from benchmarks.runner.executors import Outcome\n"
        "def execute(plan, resources, store, progress):\n"
        "    return Outcome({'ok': len(plan.cells)})\n"
        "def wrong(plan, resources, store, progress):\n"
        "    return 3\n"
    )
    info = tmp_path / "acme_grid-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-grid\nVersion: 1.0\n")
    points = "[ucdr_bench.executors]\ngrid = acme_grid:execute\nwrong = acme_grid:wrong\ngone = acme_gone:execute\n"
    (info / "entry_points.txt").write_text(points)
    root = Path(__file__).resolve().parents[2]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(root)])}
    program = (
        "import sys\n"
        "from benchmarks import run\n"
        "what = ['--preset', 'smoke', '--methods', 'random', '--protocols', 'uda', '--out', sys.argv[1]]\n"
        "for name in ('grid', 'wrong', 'gone', 'gird'):\n"
        "    print(name, run.main([*what, '--executor', name]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "out")],
        capture_output=True,
        text=True,
        env=environment,
        timeout=200,
    )
    codes = [line for line in done.stdout.splitlines() if line.split(" ")[0] in ("grid", "wrong", "gone", "gird")]
    assert codes == ["grid 0", "wrong 2", "gone 2", "gird 2"], done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("benchmarks.run:")]
    assert len(lines) == 3
    assert "--executor wrong: it returned int, not benchmarks.runner.executors.Outcome" in lines[0]
    assert "--executor gone:" in lines[1]
    assert "acme-grid" in lines[1]
    assert "--executor 'gird' is unknown; did you mean grid?" in lines[2]
