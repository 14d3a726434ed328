"""What can go wrong in a sweep: each fault is a row with its reason and the fix, the sweep goes on, exit code 1."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest

from benchmarks import report, run
from benchmarks.datasets.base import DatasetError
from benchmarks.datasets.registry import DATASETS
from benchmarks.reporting import files as report_files
from benchmarks.reporting.csv_text import leaderboard_csv
from benchmarks.reporting.data import ReportData
from benchmarks.reporting.plot_collector import PlannedPlots
from benchmarks.store import files
from benchmarks.store.files import ResultStore, read_record
from benchmarks.store.frame import load_results
from benchmarks.store.records import Record
from tests.support.learners import FITTING, PAUSE, learners
from tests.support.tiny_dataset import TinyShapes

ROOT = Path(__file__).parents[2]

#: The command and its exit code; ``printed`` is what it wrote to both streams.
Command = Callable[..., int]


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    with learners():
        yield


@pytest.fixture
def command(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """``command("--methods", "learner")``: the run command in this process, results in ``tmp_path/results``."""
    monkeypatch.setattr(
        "benchmarks.reporting.plot_collector.draw_setting", lambda _, collector: PlannedPlots(collector)
    )

    def call(*arguments: str) -> int:
        fixed = ["--backbone", str(tiny_folder), "--protocols", "ucdr", "--preset", "full", "--threads", "1"]
        return run.main([*fixed, "--jobs", "1", "--out", str(tmp_path / "results"), *arguments])

    return call


def records(folder: Path) -> dict[str, Record]:
    return {record.cell.split: record for record in ResultStore(folder / "results").records()}


def check_one_failed(folder: Path, printed: Any, *said: str) -> None:
    """``line`` has a row that says all this, on the screen and in the leaderboard too; the others have scores."""
    found = records(folder)
    assert {split: record.status for split, record in found.items()} == {
        "glyph": "ok",
        "line": "failed",
        "sketch": "ok",
    }
    table = (folder / "results" / "report" / "leaderboard.md").read_text()
    for words in said:
        assert words in found["line"].reason
        assert words in printed.err
        assert words in table.replace("\\_", "_")
    assert "cells: 1 failed, 2 ok" in printed.out
    assert "\n" not in found["line"].reason


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("diverges", ("loss is nan at step 2 of one", "lower the learning rate with --set")),
        ("memory", ("Unable to allocate 256. PiB", "fewer --jobs, a smaller batch (--set batch_size=N)")),
        ("torch_memory", ("can't allocate memory", "fewer --jobs, a smaller batch (--set batch_size=N)")),
        ("gpu_memory", ("CUDA out of memory", "fewer --jobs, a smaller batch (--set batch_size=N)")),
    ],
)
def test_a_training_that_goes_wrong(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture, fault: str, said: tuple[str, ...]
) -> None:
    arguments = ("--methods", "faulty", "--datasets", "tiny")
    assert command(*arguments, "--set", f"faulty.fault={fault}") == 1
    check_one_failed(tmp_path, capsys.readouterr(), *said)


def test_a_broken_image(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, broken = TinyShapes.pixels, "line/one_ring/3"

    def pixels(self: TinyShapes, rows: np.ndarray, size: int) -> Any:
        if broken in set(self.table["key"].to_numpy()[rows]):
            raise OSError("image file is truncated (12 bytes not processed)")
        return real(self, rows, size)

    monkeypatch.setattr(TinyShapes, "pixels", pixels)
    arguments = ("--methods", "learner", "--datasets", "tiny")
    assert command(*arguments) == 1
    said = (f"tiny: the image '{broken}' cannot be decoded (image file is truncated (12 bytes not processed))",)
    check_one_failed(
        tmp_path, capsys.readouterr(), *said, "put a whole file in its place", "benchmarks.data verify tiny"
    )
    monkeypatch.undo()
    monkeypatch.setattr(
        "benchmarks.reporting.plot_collector.draw_setting", lambda _, collector: PlannedPlots(collector)
    )
    assert command(*arguments) == 0
    assert "cells: 2 cached, 1 ok" in capsys.readouterr().out


def test_a_missing_data_folder(command: Command, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    class Elsewhere(TinyShapes):
        def __init__(self, root: Path | None = None) -> None:
            super().__init__(root)
            if root is None or not root.is_dir():
                raise DatasetError(f"{root} does not exist; put the images there")

    DATASETS.add("elsewhere", Elsewhere)
    try:
        arguments = ("--methods", "learner", "--datasets", "elsewhere,tiny", "--data-root", str(tmp_path))
        assert command(*arguments) == 1
        printed = capsys.readouterr()
        assert "cells: 1 failed, 3 ok" in printed.out
        assert f"{tmp_path}/elsewhere does not exist; put the images there" in printed.err
        assert "does not exist; put the images there" in (tmp_path / "results/report/leaderboard.md").read_text()
        (tmp_path / "elsewhere").mkdir()
        assert command(*arguments) == 0
        assert "cells: 3 cached, 3 ok" in capsys.readouterr().out
        assert "put the images there" not in (tmp_path / "results/report/leaderboard.md").read_text()
    finally:
        DATASETS.remove("elsewhere")


def test_a_full_disk(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = files.write_atomically

    def full(path: Path, data: bytes) -> None:
        if "line" in path.name and path.suffix == ".parquet":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(path, data)

    monkeypatch.setattr(files, "write_atomically", full)
    arguments = ("--methods", "learner", "--datasets", "tiny")
    assert command(*arguments) == 1
    said = ("the record cannot be written (No space left on device)", "free space there")
    check_one_failed(tmp_path, capsys.readouterr(), *said)
    monkeypatch.setattr(files, "write_atomically", real)
    assert command(*arguments) == 0
    assert "cells: 2 cached, 1 ok" in capsys.readouterr().out


def test_a_disk_with_room_for_nothing(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("--methods", "learner", "--datasets", "tiny")

    def full(path: Path, data: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(files, "write_atomically", full)
        assert command(*arguments) == 2
        assert f"--out {tmp_path}/results: cannot be written (No space left on device)" in capsys.readouterr().err
        patch.setattr(ResultStore, "write_resolved", lambda self, settings: self.root.mkdir())
        patch.setattr(ResultStore, "write_card", lambda *_: None)
        patch.setattr(report_files, "write_atomically", full)
        assert command(*arguments) == 1
    printed = capsys.readouterr()
    assert "cells: 3 failed" in printed.out
    assert "report: cannot be written (No space left on device); free space there" in printed.err
    assert command(*arguments) == 0


def test_an_unreadable_record(command: Command, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ("--methods", "learner", "--datasets", "tiny")
    assert command(*arguments) == 0
    assert command(*arguments, "--seeds", "1") == 0, "stays readable: without any record there is no report"
    expected = leaderboard_csv(ReportData(load_results(tmp_path / "results")))
    cells = sorted((tmp_path / "results" / "cells").rglob("*-s0-*.json"))
    cells[0].write_bytes(cells[0].read_bytes()[:100])
    cells[1].with_suffix(".parquet").write_bytes(b"")
    cells[2].write_bytes(b"\xff\xfe\x00")
    capsys.readouterr()
    page = tmp_path / "page"
    assert report.main([str(tmp_path / "results"), "--out", str(page)]) == 1
    printed = capsys.readouterr()
    assert "unreadable records: 3; each is named above" in printed.err
    for number, path in enumerate(cells):
        split = path.name.split("-")[1]
        (line,) = (line for line in printed.err.splitlines() if str(path) in line)
        assert "run its command again" in line
        assert f"failed: learner on tiny/ucdr/{split}, seed 0: {line}" in printed.out, number
        for table in ("leaderboard.md", "index.html"):
            assert path.name in (page / table).read_text(), table
    assert command(*arguments, "--dry-run") == 0
    assert "3 cells, 0 cached" in capsys.readouterr().out
    assert all(path.exists() for path in cells)
    assert command(*arguments) == 0
    printed = capsys.readouterr()
    assert "cells: 3 ok" in printed.out, "each is measured again"
    assert printed.err.count("kept as *.unreadable, its cell is measured again") == 3
    assert all(str(path) in printed.err for path in cells)
    assert report.main([str(tmp_path / "results"), "--out", str(page)]) == 0
    assert leaderboard_csv(ReportData(load_results(tmp_path / "results"))) == expected


def test_leftovers_of_killed_writers_are_removed(tmp_path: Path) -> None:
    kept = ResultStore(tmp_path)
    folder = tmp_path / "cells" / "tiny"
    folder.mkdir(parents=True)
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    mine, machine = os.getpid(), files._machine()
    names = {
        f".a.json.{machine}-{dead.pid}-0.tmp": True,
        f".b.json.{machine}-{mine}-0.tmp": False,
        f".c.json.{machine}-{mine}-1.tmp": True,
        ".d.json.00000000-1-0.tmp": False,
        ".e.json.00000000-1-1.tmp": True,
        "notes.tmp": False,
        ".notes.tmp": False,
    }
    for name in names:
        (folder / name).write_text("half a rec")
    long_ago = psutil.Process(mine).create_time() - 60
    os.utime(folder / f".c.json.{machine}-{mine}-1.tmp", (long_ago, long_ago))
    os.utime(folder / ".e.json.00000000-1-1.tmp", (time.time() - 7200,) * 2)
    assert kept.clean() == 3
    assert {name for name, goes in names.items() if not goes} == {path.name for path in folder.iterdir()}
    assert kept.paths() == []


@pytest.fixture
def started() -> Iterator[list[subprocess.Popen]]:
    """Processes of a test; whatever of them is left is killed."""
    processes: list[subprocess.Popen] = []
    yield processes
    for process in processes:
        process.kill()
        process.wait()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_at_any_moment_a_sweep_goes_on_and_ends_the_same(
    tmp_path: Path, tiny_folder: Path, started: list[subprocess.Popen]
) -> None:
    """Real processes and real kills: of the whole, of a worker, with one job and with two, at seeded random moments."""
    results, fitting = tmp_path / "results", tmp_path / "fitting"
    fitting.mkdir()
    options = ["--methods", "learner,random", "--datasets", "tiny", "--protocols", "ucdr,udcdr", "--seeds", "0,1,2"]
    options += ["--preset", "standard", "--set", "learner.steps=3", "--backbone", str(tiny_folder), "--threads", "1"]

    def start(jobs: int, out: Path, pause: float = 0.0) -> subprocess.Popen:
        environment = {**os.environ, PAUSE: str(pause)} | ({FITTING: str(fitting)} if out == results else {})
        call = [sys.executable, "-m", "tests.support.learners", *options, "--jobs", str(jobs), "--out", str(out)]
        streams = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        started.append(subprocess.Popen(call, cwd=ROOT, env=environment, **streams))  # type: ignore[call-overload]
        return started[-1]

    def stored() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (results / "cells").rglob("*.json") if path.name[0] != "."}

    undisturbed = start(1, tmp_path / "undisturbed")
    moments = random.Random(7)
    finished: dict[Path, int] = {}
    for jobs, victim in ((1, "all"), (2, "all"), (2, "worker")):
        sweep = start(jobs, results, pause=0.6)
        target = len(finished) + moments.randint(1, 4)
        while len(stored()) < target and sweep.poll() is None:
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 1))
        assert sweep.poll() is None, sweep.communicate()[0].decode()
        workers = [child for child in psutil.Process(sweep.pid).children() if "spawn_main" in " ".join(child.cmdline())]
        assert len(workers) == (jobs if jobs > 1 else 0), (len(stored()), target, psutil.Process(sweep.pid).children())
        if victim == "worker":
            of_process = {str(worker.pid): worker for worker in workers}
            before = {mark.name for mark in fitting.iterdir()}
            while not (fresh := {mark.name for mark in fitting.iterdir()} & set(of_process) - before):
                assert sweep.poll() is None, sweep.communicate()[0].decode()
                before &= {mark.name for mark in fitting.iterdir()}
                time.sleep(0.01)
            of_process[fresh.pop()].send_signal(signal.SIGKILL)  # with a cell in hand: a fit that has just begun
            printed = sweep.communicate(timeout=600)[0].decode()
            assert sweep.returncode == 1, printed
            assert "was ended by SIGKILL" in printed
            for record in ResultStore(results, pytest.fail).records():
                if record.status == "failed":
                    ResultStore(results).path(record.cell, record.key).unlink()
        else:
            sweep.kill()
            sweep.communicate()
            _gone, alive = psutil.wait_procs(workers, timeout=60)
            assert not alive, "workers end with the process that started them"
        for path, when in finished.items():
            assert path.stat().st_mtime_ns == when, "no finished cell is repeated"
        finished = stored()
        for path in finished:
            assert read_record(path).status == "ok"
    shutil.copy(next(iter(finished)), results / "cells" / f".x.json.{files._machine()}-999999999-0.tmp")
    last = start(2, results)
    printed = last.communicate(timeout=600)[0].decode()
    assert last.returncode == 0, printed
    assert f"{len(finished)} cached" in printed
    assert not list(results.rglob("*.tmp"))
    assert all(path.stat().st_mtime_ns == when for path, when in finished.items())
    assert undisturbed.wait(timeout=600) == 0
    tables = [(folder / "report" / "leaderboard.csv").read_bytes() for folder in (results, tmp_path / "undisturbed")]
    assert tables[0] == tables[1]
    assert tables[0].count(b"\n") > 40
