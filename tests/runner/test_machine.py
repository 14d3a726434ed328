"""The machine shared out: device, jobs and threads are final before the plan is made."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from benchmarks.runner.command import prepare
from benchmarks.runner.machine import final_settings, pick_precision, spread
from benchmarks.runner.settings import Settings, SettingsError
from methods.registry import METHODS
from methods.zero_shot import ZeroShot


def test_jobs_and_threads_share_the_machine_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def shared(asked: Settings | None = None, **facts: float) -> tuple[int, int]:
        made = spread(asked or Settings(), **facts)
        return made.jobs, made.threads

    monkeypatch.setattr("benchmarks.runner.machine.cores", lambda: 8)
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(total=64 * 2**30))
    monkeypatch.setenv("OMP_NUM_THREADS", "")
    assert shared() == (8, 1)
    assert shared(Settings(jobs=2)) == (2, 4)
    assert shared(Settings(jobs=16)) == (16, 1)
    assert shared(Settings(threads=4)) == (2, 4)
    assert shared(weights_mib=600) == (8, 1)
    assert shared(weights_mib=1700) == (4, 2), "48 GiB for workers of 11 GiB"
    assert shared(weights_mib=10**6) == (1, 8)
    assert shared(gpus=1) == (1, 8)
    assert shared(gpus=4) == (4, 2)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert shared() == (2, 3)
    assert shared(Settings(jobs=1)) == (1, 3)
    assert shared(Settings(jobs=1, threads=5)) == (1, 5)


def test_final_settings_have_a_device_jobs_and_threads_and_stay_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    asked = Settings(methods=("zero_shot",), protocols=("ucdr",), seeds=(3,))
    final = final_settings(asked, weights_mib=100)
    assert final.device == "cpu"
    assert final.jobs >= 1
    assert final.threads >= 1
    assert final_settings(final, weights_mib=100) == final
    filled = dataclasses.replace(
        final, device=asked.device, precision=asked.precision, jobs=asked.jobs, threads=asked.threads
    )
    assert filled == asked, "nothing else changes"


def test_what_is_given_is_final(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    given = Settings(methods=("zero_shot",), device="cpu", precision="bf16", jobs=3, threads=5)
    assert final_settings(given, weights_mib=1e9) == given


def test_a_device_that_is_not_there_is_one_line() -> None:
    for device, reason in (("tpu", "tpu"), ("cuda:63", ""), ("meta", "")):
        with pytest.raises(
            SettingsError, match=rf"^--device {device} cannot be used here \(.*{reason}.*\); try --device cpu$"
        ):
            final_settings(Settings(device=device), weights_mib=0)


def test_a_cluster_chooses_devices_and_jobs() -> None:
    final = final_settings(Settings(methods=("zero_shot",), executor="ray"), weights_mib=0)
    assert (final.device, final.jobs) == ("auto", 0)
    assert final.threads >= 1


def test_a_method_that_other_processes_cannot_import_takes_one_job(monkeypatch: pytest.MonkeyPatch) -> None:
    class Local(ZeroShot):
        card = dataclasses.replace(ZeroShot.card, name="local")

    monkeypatch.setattr("benchmarks.runner.machine.cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    METHODS.add("local", Local)
    try:
        alone = Settings(methods=("local",), protocols=("ucdr",), device="cpu")
        assert final_settings(alone, weights_mib=1).jobs == 1
        assert final_settings(dataclasses.replace(alone, jobs=2), weights_mib=1).jobs == 2, "asked for"
        assert final_settings(dataclasses.replace(alone, methods=("zero_shot",)), weights_mib=1).jobs > 1
    finally:
        METHODS.remove("local")


def test_the_plan_and_the_resources_have_the_final_settings(
    tiny_dataset: type, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    asked = Settings(
        methods=("zero_shot",), datasets=("tiny",), protocols=("ucdr",), backbone=str(tiny_folder), out=str(tmp_path)
    )
    run = prepare(asked, "command", None)
    assert run.settings == final_settings(asked, run.resources.backbone_facts.weights_mib)
    assert run.resources.settings is run.settings
    assert run.plan.cells


# --- precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "device", "capability", "expected"),
    [
        ("auto", "cpu", None, "float32"),
        ("auto", "cuda", (7, 5), "float32"),
        ("auto", "cuda:1", (8, 0), "bf16"),
        ("float32", "cuda", (9, 0), "float32"),
        ("tf32", "cuda", (8, 6), "tf32"),
        ("bf16", "cpu", None, "bf16"),
    ],
)
def test_precision_is_what_the_device_has(
    name: str, device: str, capability: Any, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device=None: capability)
    assert pick_precision(name, device) == expected


@pytest.mark.parametrize(("device", "capability"), [("cpu", None), ("cuda", (7, 5))])
def test_tf32_is_refused_where_it_is_not(device: str, capability: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda device=None: capability)
    with pytest.raises(SettingsError, match=rf"^--precision tf32: {device} does not have it .*; use float32$"):
        pick_precision("tf32", device)


def test_auto_precision_is_final_in_the_settings() -> None:
    assert final_settings(Settings(device="cpu"), 0).precision == "float32"
    assert Settings().precision == "auto"
