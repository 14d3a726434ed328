"""``--track``: a run a record with its curves and scores; a tracker that fails costs no score."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from benchmarks.reporting.csv_text import leaderboard_csv
from benchmarks.reporting.data import ReportData
from benchmarks.run import main
from benchmarks.runner import tracking
from benchmarks.runner.settings import TRACKERS, SettingsError, resolve
from benchmarks.store.files import ResultStore
from benchmarks.store.frame import load_results
from benchmarks.store.records import Fit
from tests.store.test_files import record
from tests.support.trackers import Broken

JSON_LINES = "tests.support.trackers:JsonLines"


@pytest.fixture
def arguments(tiny_folder: Path) -> list[str]:
    common = ["--datasets", "picto_domains", "--preset", "smoke", "--protocols", "ucdr", "--device", "cpu"]
    common += ["--methods", "zero_shot,coop", "--threads", "1", "--jobs", "1", "--limit", "24"]
    return [*common, "--backbone", str(tiny_folder)]


def lines(folder: Path) -> dict[str, list[dict[str, Any]]]:
    return {path.stem: [json.loads(line) for line in path.read_text().splitlines()] for path in folder.glob("*.jsonl")}


def test_every_record_is_a_run_with_its_curves_and_scores(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--out", str(tmp_path), "--track", JSON_LINES]) == 0
    printed = capsys.readouterr()
    assert f"tracked by: {JSON_LINES}" in printed.out
    assert "left out" not in printed.err
    (folder,) = (tmp_path / "tracking").glob("*JsonLines")
    runs = lines(folder)
    records = list(ResultStore(tmp_path).records())
    assert len(records) == len(runs) - 1 > 1, "the other run has the galleries"
    for one in records:
        (name,) = [name for name in runs if name.endswith(one.key[:8])]
        assert name.startswith(f"{one.cell.method}-picto_domains-ucdr-{one.cell.split}-s0")
        about, *steps, end = runs[name]
        assert end == {"end": True}
        assert about["about"]["split"] == one.cell.split
        assert about["about"]["status"] == "ok"
        order = [step["step"] for step in steps]
        assert order == sorted(order)
        losses = [step["values"]["loss"] for step in steps if "loss" in step["values"]]
        assert losses == [entry["loss"] for entry in one.fit.losses]
        assert bool(losses) is (one.cell.method == "coop")
        validation = [step["values"]["validation"] for step in steps if "validation" in step["values"]]
        assert validation == [entry["score"] for entry in one.fit.validation]
        for gallery, scores in one.scores.items():
            for metric, value in scores.metrics.items():
                assert steps[-1]["values"][f"{gallery}/{metric}"] == value
    images = [line["images"] for line in runs[tracking.GALLERY] if "images" in line]
    (shape,) = images[0]["gallery"]
    assert shape[2] == 3 and min(shape[:2]) > 100
    before = {name: len(run) for name, run in runs.items() if name != tracking.GALLERY}
    assert main([*arguments, "--out", str(tmp_path), "--track", JSON_LINES]) == 0
    after = {name: len(run) for name, run in lines(folder).items() if name != tracking.GALLERY}
    assert after == before, "finished cells are not sent again"


def test_a_tracker_that_fails_is_named_once_and_costs_nothing(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Broken.runs.clear()
    assert main([*arguments, "--out", str(tmp_path / "tracked"), "--track", "tests.support.trackers:Broken"]) == 0
    warned = [line for line in capsys.readouterr().err.splitlines() if "--track" in line]
    assert warned == [
        "--track tests.support.trackers:Broken: ConnectionError: no network; it gets nothing more of this run"
    ]
    assert len(Broken.runs) == 2
    assert main([*arguments, "--out", str(tmp_path / "plain")]) == 0
    tracked, plain = (leaderboard_csv(ReportData(load_results(tmp_path / name))) for name in ("tracked", "plain"))
    assert tracked == plain
    keys = [sorted(one.key for one in ResultStore(tmp_path / name).records()) for name in ("tracked", "plain")]
    assert keys[0] == keys[1], "no key depends on it"


def test_tensorboard_has_the_curves(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    store = tracking.tracked_store(tmp_path, ["tensorboard"], print)
    losses = [{"stage": "one", "step": step, "loss": 2.0 - step} for step in range(3)]
    fit = Fit("f", 3, 2, losses, [{"step": 2, "score": 0.25}])
    written = store.write(record(fit=fit))
    image = tmp_path / "sheet.png"
    from PIL import Image

    Image.new("RGB", (8, 6), (255, 0, 0)).save(image)
    store.tracking.images([image])
    (folder,) = (tmp_path / "tracking" / "tensorboard").glob(f"zero_shot-tiny-ucdr-line-s0-{written.key[:8]}")
    events = EventAccumulator(str(folder)).Reload()
    assert [(one.step, one.value) for one in events.Scalars("loss")] == [(0, 2.0), (1, 1.0), (2, 0.0)]
    assert [(one.step, one.value) for one in events.Scalars("validation")] == [(2, 0.25)]
    assert [(one.step, one.value) for one in events.Scalars("unseen/map@all")] == [(3, 0.5)]
    shown = EventAccumulator(str(tmp_path / "tracking" / "tensorboard" / "gallery")).Reload()
    (found,) = shown.Images("sheet")
    assert (found.width, found.height) == (8, 6)


def test_runs_of_wandb_share_a_project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """accelerate's tracker, on a stand-in for the package: what it is started with and sent."""
    calls: list[tuple[Any, ...]] = []

    class Run:
        def log(self, values: dict[str, float], step: int | None = None, **more: Any) -> None:
            calls.append(("log", step, values))

        def finish(self) -> None:
            calls.append(("finish",))

    def init(**options: Any) -> Run:
        calls.append(("init", options["project"], options["name"]))
        return Run()

    wandb = ModuleType("wandb")
    wandb.__spec__ = ModuleSpec("wandb", None)
    vars(wandb).update(init=init, config={}, Image=lambda image: image.shape)
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    problems: list[str] = []
    store = tracking.tracked_store(tmp_path, ["wandb"], problems.append)
    first = store.write(record())
    monkeypatch.setenv("WANDB_PROJECT", "other")
    second = store.write(
        record("failed", reason="no", inputs={"seed": 1}, fit=Fit("f", 1, 0, [{"step": 0, "loss": 1.0}]))
    )
    assert problems == []
    begun = [call[1:] for call in calls if call[0] == "init"]
    assert begun == [
        ("ucdr-bench", f"zero_shot-tiny-ucdr-line-s0-{first.key[:8]}"),
        ("other", f"zero_shot-tiny-ucdr-line-s0-{second.key[:8]}"),
    ]
    assert ("log", 3, {f"{g}/{m}": v for g, s in first.scores.items() for m, v in s.metrics.items()}) in calls
    assert calls[-2:] == [("log", 0, {"loss": 1.0}), ("finish",)]


def test_every_tracker_is_started_with_a_run_and_its_project(tmp_path: Path) -> None:
    for name in TRACKERS:
        positional, more = tracking.started_with(name, "a run", tmp_path)
        texts = [*positional, *more.values()]
        assert any("a run" in text for text in texts) or name == "comet_ml", name
        assert (tracking.PROJECT in texts) is (name not in ("tensorboard", "aim", "dvclive")), name


def test_names_fit_mlflow_and_stay_apart() -> None:
    values = {"unseen/map@all": 0.5, "unseen/map@200[trec]": 0.25, "target/h[image]": 1.0}
    assert tracking.named_for("tensorboard", values) == values
    named = tracking.named_for("mlflow", values)
    assert len(named) == 3
    assert all(set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789_-. /") for name in named)


def test_what_is_not_a_number_is_not_sent() -> None:
    losses = [{"step": 0, "loss": float("nan"), "stage": "a"}, {"step": 1, "loss": 1.5}, {"loss": 2.0}]
    sent = tracking.events(record("failed", fit=Fit("f", 2, 0, losses)))
    assert sent == [(1, {"loss": 1.5})]


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("tensorbord", "--track 'tensorbord' is unknown; did you mean tensorboard?"),
        ("aim", "--track aim: the package aim is not installed; pip install aim"),
        ("no_module:Tracker", "--track no_module:Tracker: cannot be imported (No module named 'no_module')"),
        ("pathlib:Path", "--track pathlib:Path: not a subclass of accelerate.tracking.GeneralTracker"),
    ],
)
def test_a_tracker_that_is_not_there_is_one_line_before_any_fit(
    name: str, reason: str, arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--out", str(tmp_path), "--track", name]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == f"benchmarks.run: {reason}"
    assert not (tmp_path / "cells").exists()


def test_every_name_is_one_of_accelerate() -> None:
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS

    known = {str(getattr(key, "value", key)) for key in LOGGER_TYPE_TO_CLASS}
    assert known & set(TRACKERS) >= {"tensorboard", "wandb", "mlflow"}
    assert resolve({"track": "tensorboard,wandb"}).track == ("tensorboard", "wandb")
    with pytest.raises(SettingsError, match="cannot read"):
        resolve({"track": ","})


def test_nothing_of_a_tracker_is_imported_unless_asked_for() -> None:
    code = (
        "import sys, benchmarks.runner.command, benchmarks.runner.tracking, benchmarks.runner.options\n"
        "print([name for name in ('accelerate', 'tensorboard', 'wandb', 'mlflow') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
