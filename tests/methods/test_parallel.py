"""Data-parallel training: processes that share a batch have the gradients of one process that has all of it."""

from __future__ import annotations

import json
import multiprocessing
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks.datasets.pixels import PixelCache
from benchmarks.protocols import ucdr
from benchmarks.protocols.training import training_data
from benchmarks.runner.distributed import join
from benchmarks.runner.settings import Settings, SettingsError
from methods.ad_clip import AdClip
from methods.interface import Method
from methods.parts import parallel
from methods.parts.backbone import Backbone
from methods.registry import METHODS
from methods.training import loop
from tests.support.tiny_dataset import TinyShapes

PLAIN = {"crop": 1.0, "flip": False, "jitter": 0.0}
#: No augmentation and no dropout, which each process draws for itself; so small a rate that no step moves the weights.
CONFIGS: dict[str, dict[str, Any]] = {
    "pros": {**PLAIN, "dropout": 0.0, "stage1_batch_size": 12, "batch_size": 12, "steps": 4, "stage1_share": 0.5},
    "ucdr_adapter": {**PLAIN, "stage1_batch_size": 12, "batch_size": 12, "steps": 4, "stage1_share": 0.5},
    "coop": {"batch_size": 12, "steps": 2},
    "vpt_shallow": {"augment": False, "batch_size": 12, "steps": 2},
    "vpt_deep": {"augment": False, "batch_size": 12, "steps": 2},
    "full_finetune": {"augment": False, "batch_size": 12, "steps": 2},
    "lora": {"augment": False, "batch_size": 12, "steps": 2},
    "linear_probe": {"batch_size": 12, "steps": 2},
    "metric_head": {"batch_size": 12, "steps": 2},
    "clip_adapter": {"batch_size": 12, "steps": 2},
    "sketch_lvm": {"batch_size": 12, "steps": 2},
    "bitfit": {"augment": False, "batch_size": 12, "steps": 2},
    "ln_tuning": {"augment": False, "batch_size": 12, "steps": 2},
    "cocoop": {"augment": False, "batch_size": 12, "steps": 2},
    "maple": {"augment": False, "batch_size": 12, "steps": 2},
    "ivlp": {"augment": False, "batch_size": 12, "steps": 2},
    "promptsrc": {"augment": False, "batch_size": 12, "steps": 2},
}


def gradients(name: str, backbone: Backbone) -> list[list[Tensor | None]]:
    """The gradients that every optimiser step of a small fit sees."""
    dataset = TinyShapes()
    data = training_data(
        ucdr.PROTOCOL.task(dataset, "line"), PixelCache(dataset, backbone.image_size), lambda *_: 0.0, select="last"
    )
    seen: list[list[Tensor | None]] = []
    average = parallel.average_gradients

    def spy(parameters: Any) -> None:
        average(parameters)
        seen.append([None if p.grad is None else p.grad.clone() for p in parameters])

    kind: type[Method] = METHODS.get(name)
    method = kind(backbone, kind.Config(**CONFIGS[name], learning_rate=1e-9))
    parallel.average_gradients = spy
    try:
        method.fit(data, seed=0, log=lambda **_: None)
    finally:
        parallel.average_gradients = average
    return seen


def one_of_two(rank: int, meeting: Path, names: list[str], backbone: Backbone, out: Path) -> None:
    """A process of two: meets the other through a file, stores the gradients it ends up with."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    torch.save({name: gradients(name, backbone) for name in names}, out / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="starts its processes by fork")
def test_two_processes_have_the_gradients_of_one(tiny_backbone: Backbone, tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    pair = [
        fork.Process(target=one_of_two, args=(rank, tmp_path / "meeting", list(CONFIGS), tiny_backbone, tmp_path))
        for rank in range(2)
    ]
    for process in pair:
        process.start()
    alone = {name: gradients(name, tiny_backbone) for name in CONFIGS}
    for process in pair:
        process.join(timeout=120)
        assert process.exitcode == 0
    for rank in range(2):
        both = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, steps in alone.items():
            assert len(steps) == CONFIGS[name]["steps"] == len(both[name])
            for one, two in zip(steps, both[name], strict=True):
                assert any(gradient is not None and gradient.abs().max() > 0 for gradient in one), name
                for expected, found in zip(one, two, strict=True):
                    assert (expected is None) == (found is None), name
                    if expected is not None:
                        size = float(expected.norm())
                        assert float((expected - found).norm()) <= 1e-4 * size + 1e-7, name


def one_of_two_flat(rank: int, meeting: Path, out: Path) -> None:
    """Averages gradients of several types, some missing, and counts the exchanges."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    calls: list[int] = []
    real = parallel.distributed.all_reduce
    parallel.distributed.all_reduce = lambda tensor: (calls.append(tensor.numel()), real(tensor))[1]  # type: ignore
    parameters = [
        torch.nn.Parameter(torch.zeros(2, 3)),
        torch.nn.Parameter(torch.zeros(4)),
        torch.nn.Parameter(torch.zeros(())),
        torch.nn.Parameter(torch.zeros(5)),
    ]
    parameters[0].grad = torch.full((3, 2), 1.0 + rank).T  # not contiguous
    if rank == 1:
        parameters[1].grad = torch.full((4,), 8.0)
    parameters[2].grad = torch.tensor(3.0 * rank)
    parallel.average_gradients(parameters)
    found = [None if p.grad is None else p.grad.tolist() for p in parameters]
    (out / f"{rank}.json").write_text(json.dumps([calls, found]))
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="starts its processes by fork")
def test_gradients_travel_as_one_tensor(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    pair = [fork.Process(target=one_of_two_flat, args=(n, tmp_path / "meeting", tmp_path)) for n in range(2)]
    for process in pair:
        process.start()
    for process in pair:
        process.join(timeout=60)
    expected = [[[1.5] * 3] * 2, [4.0] * 4, 1.5, None]
    for rank in range(2):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == [[4 + 6 + 4 + 1 + 5], expected]


def one_of_two_with_faults(rank: int, meeting: Path, out: Path) -> None:
    """Trains three times; process 1 fails in the first, both in the second; then process 0 ends in the midst."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    cpu, said = torch.device("cpu"), []

    def train(fault: Exception | None) -> None:
        with parallel.fail_together():
            parallel.same_start([torch.nn.Parameter(torch.ones(2))])
            parallel.average(1.0, cpu)
            if fault is not None:
                raise fault
            said.append(f"mean {parallel.average(float(rank), cpu)}")

    for fault in (OSError("broken\nimage") if rank == 1 else None, ValueError(f"both, {rank}"), None):
        try:
            train(fault)
        except Exception as error:
            said.append(f"{type(error).__name__}: {error}")
    (out / f"{rank}.json").write_text(json.dumps(said))
    try:
        if rank == 1:
            train(None)
    finally:
        parallel._end()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="starts its processes by fork")
def test_a_training_that_fails_in_one_process_fails_in_all_and_the_next_one_is_whole(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    pair = [fork.Process(target=one_of_two_with_faults, args=(n, tmp_path / "meeting", tmp_path)) for n in range(2)]
    for process in pair:
        process.start()
    for process in pair:
        process.join(timeout=60)
    assert [process.exitcode for process in pair] == [0, 1], "the one that was left alone ended too"
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == ["OtherFailedError: process 1 failed: OSError: broken image", "ValueError: both, 0", "mean 0.5"]
    assert second == ["OSError: broken\nimage", "ValueError: both, 1", "mean 0.5"]


def test_what_cannot_be_shared_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch, tiny_backbone: Backbone) -> None:
    monkeypatch.setattr(parallel, "processes", lambda: 4)
    monkeypatch.setattr(parallel, "rank", lambda: 1)
    assert parallel.share(torch.arange(8)).tolist() == [1, 5]
    with pytest.raises(parallel.ParallelError, match=r"^a batch of 10 images cannot be divided evenly over 4 pro"):
        parallel.share(torch.arange(10))
    method = AdClip(tiny_backbone)
    with pytest.raises(parallel.ParallelError, match=r"^ad_clip trains in one process: its loss takes means over the "):
        loop.run_stage(
            method,
            None,  # type: ignore[arg-type]
            None,  # type: ignore[arg-type]
            lambda **_: None,
            stage="one",
            steps=1,
            optimizers=[method.optimizer()],
            loss=lambda step: torch.zeros(()),
        )


def test_options_that_start_further_processes_are_refused_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel, "launched", lambda: 2)
    monkeypatch.setattr(parallel, "start", lambda cpu: None)
    assert join(Settings(jobs=0, device="cpu")).jobs == 1
    for wrong, line in (
        (Settings(jobs=2), "leave --executor and --jobs out"),
        (Settings(device="cuda:1"), "leave it out"),
    ):
        with pytest.raises(SettingsError, match=line):
            join(wrong)
        with monkeypatch.context() as second, pytest.raises(SystemExit) as silent:
            second.setattr(parallel, "rank", lambda: 1)
            join(wrong)
        assert silent.value.code == 2


def test_every_method_says_whether_it_can_be_spread() -> None:
    trained = {name for name in METHODS.names() if METHODS.get(name).trained and not METHODS.get(name).card.floor}
    alone = {name for name in trained if METHODS.get(name).one_process}
    assert alone == {"ad_clip", "sre_clip", "dapl", "tip_adapter_f", "cmkd", "pda"}
    assert not {name for name in trained if METHODS.get(name).one_process == Method.one_process}


@pytest.mark.slow
def test_a_run_of_two_processes(tiny_folder: Path, tmp_path: Path) -> None:
    """Two CPU processes: the first one writes the records, whose scores are those of one process.

    ``accelerate launch`` starts GPU processes through torch's launcher, but on the CPU alone needs MPI: so torch's is
    used here. The processes join through accelerate either way.
    """
    given = ["--methods", "faulty,coop,ad_clip", "--datasets", "tiny", "--protocols", "ucdr", "--seeds", "0"]
    given += ["--backbone", str(tiny_folder), "--set", "faulty.fault=second_process"]
    given += ["--preset", "smoke", "--device", "cpu", "--threads", "1"]
    module = ["-m", "tests.support.learners"]
    two = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", *module]
    found = {}
    for name, start in (("one", [sys.executable, *module]), ("two", two)):
        out = tmp_path / name
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}
        line = [*start, *given, "--out", str(out)]
        done = subprocess.run(line, capture_output=True, text=True, env=environment, timeout=240)
        records = [json.loads(file.read_text()) for file in (out / "cells").rglob("*.json")]
        assert records, done.stderr
        assert f"page: {out}/report/index.html" in done.stdout, "the first process reports before any is ended"
        found[name] = {record["cell"]["method"]: record for record in records}
    one, two_ = found["one"]["coop"], found["two"]["coop"]
    assert (one["key"], one["status"], two_["status"]) == (two_["key"], "ok", "ok")
    assert two_["environment"]["hardware"]["processes"] == 2
    for gallery, scores in one["scores"].items():
        assert two_["scores"][gallery]["metrics"] == pytest.approx(scores["metrics"], abs=1e-6)
    assert found["one"]["ad_clip"]["status"] == found["one"]["faulty"]["status"] == "ok"
    failed = found["two"]["faulty"]["reason"]
    assert failed == "OtherFailedError: process 1 failed: OSError: broken image", "and the next training is whole"
    assert found["two"]["ad_clip"]["reason"].startswith("ParallelError: ad_clip trains in one process: ")
