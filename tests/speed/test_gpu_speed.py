"""The script for a GPU runs without one, reports what failed, and keeps to its time."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from benchmarks.speed import gpu, training

REPORT = """<testsuites><testsuite>
<testcase classname="a" name="good"/><testcase classname="a" name="left"><skipped message="no"/></testcase>
<testcase classname="a" name="bad"><failure message="assert 1 == 2&#10;more">long</failure></testcase>
</testsuite></testsuites>"""


def test_a_quick_run_on_the_cpu(tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [
        "--device",
        "cpu",
        "--quick",
        "--no-tests",
        "--backbones",
        str(tiny_folder),
        "--methods",
        "coop,linear_probe",
    ]
    assert gpu.main([*given, "--out", str(tmp_path / "speed")]) == 0, capsys.readouterr().err
    facts = json.loads((tmp_path / "speed" / "gpu.json").read_text())
    assert facts["quick"] is True and facts["precision"] == "bf16" and facts["tests"] is None
    assert facts["environment"]["device"] == "cpu" and facts["left_out"] == facts["failures"] == []
    assert all(rate > 0 for rate in facts["matrix_tflops"].values())
    (encoded,) = csv.DictReader((tmp_path / "speed" / "gpu_encoding.csv").open())
    assert float(encoded["images_per_s"]) > 0 and float(encoded["texts_per_s"]) > 0
    rows = list(csv.DictReader((tmp_path / "speed" / "gpu_steps.csv").open()))
    assert {row["method"] for row in rows} == {"coop", "linear_probe"}
    for row, detail in zip(rows, facts["steps"], strict=True):
        assert float(row["ours_s"]) == pytest.approx(detail["ours"]["s"], rel=1e-3)
        assert float(row["ours_tflops"]) == pytest.approx(
            detail["ours"]["flops"] / detail["ours"]["s"] / 1e12, rel=1e-2
        )


def test_no_time_leaves_all_out_and_says_so(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = iter(range(0, 10**6, 3600))
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    assert gpu.main(["--device", "cpu", "--quick", "--no-tests", "--minutes", "1", "--out", str(tmp_path)]) == 0
    assert json.loads((tmp_path / "gpu.json").read_text())["left_out"] == ["picto-clip: everything"]
    assert "left out for time: picto-clip: everything" in capsys.readouterr().err


def test_failures_end_with_an_error(
    tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any, **__: Any) -> list[dict[str, Any]]:
        raise RuntimeError("CUDA out of memory\nlong story")

    monkeypatch.setattr(training, "measure", full)
    monkeypatch.setattr(gpu, "run_tests", lambda *_: {"finished": True, "failed": 1, "failures": []})
    given = ["--device", "cpu", "--quick", "--backbones", str(tiny_folder), "--methods", "coop", "--out", str(tmp_path)]
    assert gpu.main(given) == 1
    assert "failed: coop on " in capsys.readouterr().err
    assert json.loads((tmp_path / "gpu.json").read_text())["failures"][0]["reason"] == "CUDA out of memory"


def test_the_outcome_of_tests_is_read() -> None:
    found = gpu.outcome(ElementTree.fromstring(REPORT))
    assert (found["passed"], found["failed"], found["skipped"]) == (1, 1, 1)
    assert found["failures"] == [{"test": "a::bad", "reason": "assert 1 == 2"}]


def test_tests_that_take_too_long_are_stopped() -> None:
    found = gpu.run_tests("cpu", 0.01)
    assert found["finished"] is False and found["reason"].startswith("stopped after")


@pytest.mark.parametrize(
    ("name", "rate"),
    [("NVIDIA H100 80GB HBM3", 989), ("NVIDIA H100 PCIe", 756), ("NVIDIA A100-SXM4-80GB", 312), ("unknown", None)],
)
def test_cards(name: str, rate: float | None) -> None:
    assert gpu.data_sheet(name) == rate


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (["--device", "cuda:77"], "--device cuda:77 cannot be used here"),
        (["--device", "cpu", "--methods", "zero_shot"], "--methods: zero_shot is not a trained method"),
        (["--minutes", "0"], "--minutes must be above 0"),
        (["--device", "cpu", "--precision", "tf32"], "--precision tf32: cpu does not have it"),
    ],
)
def test_wrong_options_are_one_line(arguments: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as error:
        gpu.main(arguments)
    assert error.value.code == 2
    assert line in capsys.readouterr().err.splitlines()[-1]


def test_help_needs_no_torch() -> None:
    code = (
        "import sys\nfrom benchmarks.speed import gpu\n"
        "try:\n    gpu.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "assert not {'numpy', 'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--minutes" in done.stdout
