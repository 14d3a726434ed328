"""``--executor ray`` on a local cluster of two nodes: the bytes of one process; lost workers cost their cells."""

from __future__ import annotations

import builtins
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import run as command
from benchmarks.runner.plan import plan
from benchmarks.runner.resources import Resources
from benchmarks.runner.run_plan import execute
from benchmarks.runner.settings import Settings, SettingsError
from benchmarks.store.files import ResultStore
from tests.runner.test_executors import per_query_files, run, score_tables
from tests.support.every import Silent
from tests.support.learners import WORD, learners


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    with learners():
        yield


@pytest.fixture
def settings(tiny_folder: Path, tmp_path: Path) -> Settings:
    return Settings(
        methods=("random", "located", "mortal"),
        datasets=("tiny",),
        protocols=("ucdr", "udcdr"),
        backbone=str(tiny_folder),
        preset="standard",
        out=str(tmp_path / "ray"),
        threads=1,
        device="cpu",
        executor="ray",
    )


def test_without_ray_there_is_one_clear_line(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **more: Any) -> Any:
        if name == "ray":
            raise ImportError("No module named 'ray'")
        return real(name, *arguments, **more)

    monkeypatch.setattr(builtins, "__import__", without)
    options = ["--methods", "random", "--datasets", "tiny", "--protocols", "ucdr", "--backbone", settings.backbone]
    assert command.main([*options, "--executor", "ray", "--out", settings.out]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert "--executor ray: Ray cannot be imported" in line
    assert "pip install 'ucdr-bench[ray]'" in line


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.timeout(1800)
def test_two_nodes_give_the_same_bytes_as_one_process(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    monkeypatch.setenv(WORD, str(tmp_path))
    monkeypatch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    (tmp_path / "die").touch()
    (tmp_path / "meet").touch()
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "object_store_memory": 10**8})
    try:
        cluster.add_node(num_cpus=1, object_store_memory=10**8)
        ray.init(address=cluster.address, log_to_driver=False)
        resources = Resources(settings)
        store = ResultStore(settings.out)
        outcome = execute(plan(settings, resources), resources, store, Silent())
        assert outcome.counts == {"ok": 16, "failed": 2}
        failed = [record for record in store.records() if record.status == "failed"]
        assert {(record.cell.method, record.cell.split) for record in failed} == {("mortal", "line")}
        for record in failed:
            assert record.reason.startswith("the Ray worker was lost (")
            assert "\n" not in record.reason
            assert "the same command tries these cells again" in record.reason
        nodes = {record.fit.losses[0]["stage"] for record in store.records() if record.cell.method == "located"}
        assert nodes == {node["NodeID"] for node in ray.nodes()}, "both machines worked"
        assert all(len(node) == 56 for node in nodes)
        (tmp_path / "die").unlink()
        (tmp_path / "meet").unlink()
        again = execute(plan(settings, resources), resources, store, Silent())
        assert again.counts == {"cached": 16, "ok": 2}
        assert ray.is_initialized(), "somebody else's cluster is left running"
        wanting = dataclasses.replace(settings, threads=3, force=True)
        with pytest.raises(SettingsError, match="no machine of the cluster has 3 CPU"):
            execute(plan(wanting, resources), Resources(wanting), store, Silent())
    finally:
        ray.shutdown()
        cluster.shutdown()
    serial = dataclasses.replace(settings, executor="local", jobs=1, out=str(tmp_path / "serial"))
    assert run(serial)[0].counts == {"ok": 18}
    assert score_tables(settings.out) == score_tables(serial.out)
    assert per_query_files(settings.out) == per_query_files(serial.out)
