"""The training benchmark times real fits of both paths on the same inputs, and says so when their losses disagree."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from benchmarks.speed import training
from methods.interface import FitReport, Method, MethodCard
from methods.parts.feature_cache import image_features, process_cache
from methods.registry import METHODS
from methods.training.loop import run_stage
from tests.support.tiny_clip import tiny_clip_folder

SMALL = ["--classes", "6", "--batch-size", "5", "--steps", "1", "--device", "cpu", "--precision", "float32"]
PAUSE = 0.02  # seconds that the probe below prepares itself
STAGES = {"pros": 2, "ucdr_adapter": 2}


@pytest.fixture(scope="module")
def backbone(tmp_path_factory) -> str:
    return str(tiny_clip_folder(tmp_path_factory.mktemp("tiny_clip")))


class Probe(Method):
    """Keeps what it was given; with ``wrong`` its plain path computes another loss from the third step on."""

    card = MethodCard("probe", "", "", "", 0, "", trains="one number")
    seen: list[dict[str, Any]] = []  # noqa: RUF012 (the log of all fits, emptied by the fixture)

    @dataclass(frozen=True)
    class Config:
        steps: int = 100
        batch_size: int = 8
        fast: bool = True

    wrong = 0.0

    def fit(self, data, *, seed, log) -> FitReport:
        fit = {"fast": self.config.fast, "seed": seed, "labels": data.labels, "names": data.class_names, "pixels": []}
        fit["cached"] = process_cache().misses
        fit["features"] = image_features(self.backbone, data.images)
        fit["target"] = data.target.pixels(torch.arange(len(data.target)))
        time.sleep(PAUSE)
        self.seen.append(fit)
        value, report = nn.Parameter(torch.ones(())), FitReport()

        def loss(step: int) -> Tensor:
            pixels = data.images.pixels(torch.arange(self.config.batch_size))
            fit["pixels"].append(pixels)
            extra = self.wrong if step >= 2 and not self.config.fast else 0.0
            return value * (pixels.mean() + extra)

        optimizers = [torch.optim.SGD([value], lr=0.1)]
        run_stage(self, data, report, log, stage="only", steps=self.config.steps, optimizers=optimizers, loss=loss)
        return report

    def encode_images(self, pixels) -> Tensor:
        raise NotImplementedError

    def encode_classes(self, names) -> Tensor:
        raise NotImplementedError


@pytest.fixture
def probe(monkeypatch) -> Iterator[type[Probe]]:
    monkeypatch.setattr(Probe, "seen", [])
    METHODS.add("probe", Probe)
    yield Probe
    METHODS.remove("probe")


def test_all_methods_run_by_both_paths_and_agree(backbone, tmp_path, capsys):
    out = tmp_path / "speed" / "training.json"
    made = torch.optim.Optimizer.__init__
    arguments = ["--backbones", backbone, *SMALL, "--repeats", "1", "--json", str(out)]
    assert training.main(arguments) == 0, capsys.readouterr().err
    assert torch.optim.Optimizer.__init__ is made
    result = json.loads(out.read_text())
    assert result["environment"]["packages"]["torch"] == torch.__version__
    assert result["environment"]["threads"] == torch.get_num_threads()
    assert result["environment"]["device"] == "cpu"
    assert result["schema"] == 1 and result["precision"] == "float32" and not result["failures"]
    assert [len(result["load_average"][end]) for end in ("start", "end")] == [3, 3]
    assert [chosen["classes"] for chosen in result["settings"].values()] == [6]

    printed = capsys.readouterr()
    assert printed.err == ""
    rows = [row for row in result["rows"] if row["part"] == "step"]
    for name in training.trained_methods():
        own = [row for row in rows if row["method"] == name]
        assert len({row["stage"] for row in own}) == len(own) == STAGES.get(name, 1), name
        for row in own:
            assert row["agrees"] is True
            assert row["loss_difference"]["first"] <= row["tolerance"]["first"] <= 1e-4
            assert [len(losses) for path in ("plain", "ours") for losses in row["losses"][path]] == [2, 2]
            plain, ours = row["plain"], row["ours"]
            for path in (plain, ours):
                assert len(path["steps_s"]) == 1 and len(path["steps_s"][0]) == 1
                assert path["s"] == path["steps_s"][0][0] > 0
            assert row["ratio"] == pytest.approx(plain["s"] / ours["s"])
            assert row["ratio_range"] == [row["ratio"]] * 2
            assert plain["flops"] > ours["flops"] > 0 and row["work_ratio"] > 1
            assert row["preparation_s"]["plain"] >= 0 and row["preparation_s"]["ours"] >= 0
            assert f"| {name} | {row['stage']} | {row['backbone']} | 5 | 6 | {plain['s']:.3g} |" in printed.out


def test_text_side_of_ad_clip_is_the_smaller_part_of_its_step(backbone):
    from benchmarks.backbones import sources

    loaded = sources.load(backbone, device="cpu", precision="float32")
    settings = training.workload(training.SpeedSettings(classes=6, batch_size=3, steps=1, repeats=1), backbone, "cpu")
    step, text = training.measure("ad_clip", loaded, settings)
    assert (step["part"], text["part"]) == ("step", "text side")
    for path in ("plain", "ours"):
        assert 0 < text[path]["s"] < step[path]["s"]
        assert 0 < text[path]["flops"] < step[path]["flops"]
    plain, ours = (step[path]["flops"] - text[path]["flops"] for path in ("plain", "ours"))
    assert plain == ours  # all that the paths differ in is the text side
    assert text["work_ratio"] > step["work_ratio"] > 1


def test_both_paths_get_the_same_inputs_in_turn_and_cold_caches(backbone, probe, tmp_path):
    out = ["--json", str(tmp_path / "training.json")]
    assert training.main(["--methods", "probe", "--backbones", backbone, *SMALL, "--repeats", "3", *out]) == 0
    (row,) = json.loads((tmp_path / "training.json").read_text())["rows"]
    assert min(row["preparation_s"].values()) >= PAUSE
    assert [fit["fast"] for fit in probe.seen] == [False, True, True, False, False, True]
    assert {fit["cached"] for fit in probe.seen} == {0}
    first = probe.seen[0]
    assert first["seed"] == 0 and len(first["names"]) == 6 and len(first["pixels"]) == 2
    assert first["labels"].unique().tolist() == list(range(6))
    assert not torch.equal(first["target"], first["pixels"][0][: len(first["target"])])
    for fit in probe.seen[1:]:
        assert fit["names"] == first["names"] and fit["seed"] == 0
        for key in ("labels", "target", "features"):
            assert torch.equal(fit[key], first[key]), key
        assert all(torch.equal(a, b) for a, b in zip(fit["pixels"], first["pixels"], strict=True))


def test_losses_that_disagree_end_with_an_error(backbone, probe, monkeypatch, capsys, tmp_path):
    out = tmp_path / "training.json"
    arguments = ["--methods", "probe", "--backbones", backbone, *SMALL, "--steps", "3", "--repeats", "1"]
    arguments += ["--json", str(out)]
    assert training.main(arguments) == 0
    monkeypatch.setattr(probe, "wrong", 1e-3)
    assert training.main(arguments) == 1
    printed = capsys.readouterr()
    assert "DISAGREE" in printed.out
    assert printed.err.startswith("DISAGREE: probe on ") and "2.0e-03 later (allowed 1e-04)" in printed.err
    (row,) = json.loads(out.read_text())["rows"]
    assert row["agrees"] is False and row["loss_difference"]["first"] == 0


def test_other_numbers_of_steps_are_an_error(backbone, probe, monkeypatch, capsys):
    changes = training.config_changes

    def longer(method, settings):
        return {**changes(method, settings), "steps": 2}

    monkeypatch.setattr(training, "config_changes", longer)
    monkeypatch.setattr(probe, "plain", {"fast": False, "steps": 3}, raising=False)
    assert training.main(["--methods", "probe", "--backbones", backbone, *SMALL, "--repeats", "1"]) == 1
    assert "other stages or steps" in capsys.readouterr().err


def test_a_method_without_a_plain_path_is_timed_alone(backbone, probe, monkeypatch, capsys):
    @dataclass(frozen=True)
    class Config:
        steps: int = 100
        batch_size: int = 8

    monkeypatch.setattr(Config, "fast", True, raising=False)
    monkeypatch.setattr(probe, "Config", Config)
    assert training.main(["--methods", "probe", "--backbones", backbone, *SMALL, "--repeats", "1"]) == 0
    assert "| no plain path |" in capsys.readouterr().out
    assert len(probe.seen) == 1


def test_a_method_that_fails_does_not_stop_the_others(backbone, probe, monkeypatch, capsys):
    def fail(self, data, *, seed, log):
        raise RuntimeError("out of memory\nlong story")

    monkeypatch.setattr(probe, "fit", fail)
    assert training.main(["--methods", "probe,coop", "--backbones", backbone, *SMALL, "--repeats", "1"]) == 1
    printed = capsys.readouterr()
    assert "| coop |" in printed.out
    assert printed.err.startswith("failed: probe on ") and printed.err.endswith(": out of memory\n")


def test_defaults_keep_the_proportions_of_the_papers():
    pros = METHODS.get("pros")
    for backbone, device, shrink in (("picto-clip", "cpu", 2), ("vit-b-32", "cpu", 12), ("vit-b-16", "cuda", 4)):
        settings = training.workload(training.SpeedSettings(), backbone, device)
        changes = training.config_changes(pros, settings)
        assert settings.classes == 245 // shrink
        assert (changes["stage1_batch_size"], changes["batch_size"]) == (400 // shrink, 50 // shrink)
        assert changes["steps"] == 2 * (1 + settings.steps)
    changes = training.config_changes(pros, training.SpeedSettings(shrink=1, classes=245, steps=1, augmentation=False))
    assert not pros.Config(**changes).augmentation.active


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "prso"], "did you mean pros?"),
        (["--methods", "zero_shot"], "is not trained"),
        (["--threads", "0"], "at least 1"),
        (["--classes", "-1"], "cannot be negative"),
        (["--backbones", "no/such/folder"], "does not exist"),
    ],
)
def test_wrong_options_are_told(arguments, message, capsys):
    with pytest.raises(SystemExit) as error:
        training.main(arguments)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_help_does_not_need_torch():
    code = (
        "import sys\nfrom benchmarks.speed import training\n"
        "try:\n    training.main(['--help'])\nexcept SystemExit:\n    pass\n"
        "assert not {'numpy', 'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "--backbones" in done.stdout
