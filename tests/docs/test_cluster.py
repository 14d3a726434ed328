"""The page docs/cluster.md: its SLURM array, its submitit script and its executor do what it says."""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.reporting.csv_text import leaderboard_csv
from benchmarks.reporting.data import ReportData
from benchmarks.store.files import ResultStore
from benchmarks.store.frame import load_results

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"
PAGE = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
SMALL = ["--methods", "random,constant", "--protocols", "ucdr", "--seeds", "0,1", "--preset", "smoke", "--limit", "24"]


def environment(folder: Path, **more: str) -> dict[str, str]:
    """The environment of a shell in which ``python`` is this one and finds modules of ``folder``."""
    (folder / "bin").mkdir(exist_ok=True)
    python = folder / "bin" / "python"
    if not python.exists():
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        python.chmod(0o755)
    path = os.pathsep.join([str(folder / "bin"), os.environ["PATH"]])
    modules = os.pathsep.join([str(folder), str(ROOT)])
    return {**os.environ, "PATH": path, "PYTHONPATH": modules, "OMP_NUM_THREADS": "1", **more}


def cells(folder: Path) -> set[tuple[str, str, int]]:
    return {(one.cell.method, one.cell.split, one.cell.seed) for one in ResultStore(folder).records()}


def test_the_tasks_of_the_array_are_the_shards_of_one_plan(tmp_path: Path) -> None:
    script = EXAMPLES / "slurm_array.sh"
    lines = script.read_text().splitlines()
    directives = [line.startswith("#SBATCH ") for line in lines]
    command = next(place for place, line in enumerate(lines) if not line.startswith("#"))
    assert sum(directives) == sum(directives[:command]) > 3, "sbatch reads none after the first command"
    parts = []
    for task in ("1", "2"):
        out = tmp_path / f"shard{task}"
        slurm = {"SLURM_ARRAY_TASK_ID": task, "SLURM_ARRAY_TASK_COUNT": "2", "SLURM_CPUS_PER_TASK": "1"}
        done = subprocess.run(
            ["sh", str(script), *SMALL, "--out", str(out)],
            cwd=tmp_path, env=environment(tmp_path, **slurm), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert f"shard={task},2" in done.stdout
        parts.append(cells(out))
    assert parts[0] and parts[1] and not parts[0] & parts[1]
    whole = {(method, split, seed) for method in ("random", "constant") for seed in (0, 1) for split in splits(parts)}
    assert parts[0] | parts[1] == whole


def splits(parts: list[set[tuple[str, str, int]]]) -> set[str]:
    return {split for part in parts for _, split, _ in part}


def test_submitit_runs_every_shard(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    out = tmp_path / "results"
    options = ["--shards", "2", "--cluster", "local", "--cpus", "1", "--folder", str(tmp_path / "logs")]
    command = [sys.executable, str(EXAMPLES / "submitit_shards.py"), *options, "--", *SMALL, "--jobs", "1"]
    done = subprocess.run(
        [*command, "--threads", "1", "--out", str(out)],
        cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["shard 1/2: exit code 0", "shard 2/2: exit code 0"]
    found = cells(out)
    assert found == {(method, split, seed) for method, _, seed in found for _, split, _ in found}
    assert {method for method, _, _ in found} == {"random", "constant"}
    assert {seed for _, _, seed in found} == {0, 1}


def test_a_preempted_shard_is_sent_again_as_it_was() -> None:
    pytest.importorskip("submitit")
    spec = importlib.util.spec_from_file_location("submitit_shards", EXAMPLES / "submitit_shards.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    again = module.Shard(4, ["--methods", "random"]).checkpoint(3)
    assert again.args == (3,)
    assert (again.function.count, again.function.options) == (4, ["--methods", "random"])


def block(name: str) -> str:
    (code,) = re.findall(rf"<!-- executor: {name} -->\n```\w+\n(.*?)```", PAGE, flags=re.DOTALL)
    return str(code)


def test_the_executor_of_the_page_is_found_by_its_entry_point_and_changes_no_score(tmp_path: Path) -> None:
    group, name, target = re.findall(r'\."?([\w."]+)"\]\n(\w+) = "([\w:]+)"', block("entry point"))[0]
    (tmp_path / f"{target.partition(':')[0]}.py").write_text(block("module"))
    info = tmp_path / "my_cluster-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: my-cluster\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[{group}]\n{name} = {target}\n")
    assert group == "ucdr_bench.executors"
    tables = []
    for executor in ("local", name):
        out = tmp_path / f"results-{executor}"
        command = [sys.executable, "-m", "benchmarks.run", *SMALL, "--threads", "1", "--jobs", "1"]
        done = subprocess.run(
            [*command, "--executor", executor, "--out", str(out)],
            cwd=tmp_path, env=environment(tmp_path), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        tables.append(leaderboard_csv(ReportData(load_results(out))))
    assert tables[0] == tables[1]
    assert tables[0].count("\n") > 4
