"""Runs on backbones that offer less than tokens: what runs, what is not applicable, and that a plan says so first."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.datasets.registry import DATASETS
from benchmarks.protocols.training import training_data
from benchmarks.run import main
from benchmarks.runner.plan import plan
from benchmarks.runner.resources import Resources
from benchmarks.runner.run_plan import execute
from benchmarks.runner.settings import SettingsError, resolve
from benchmarks.store.files import ResultStore
from benchmarks.store.records import Record
from methods.registry import METHODS
from tests.support.every import METHOD_NAMES, Silent, small, small_set
from tests.support.tiny_dataset import TinyShapes
from tests.support.tiny_families import open_clip_folder, siglip_folder

TOKENS = {"vpt_shallow", "vpt_deep", "pros", "ucdr_adapter", "bitfit", "ln_tuning", "maple", "ivlp", "promptsrc"}
TOKENS |= {"sketch_lvm", "pda"}
STYLES = {"coop", "lora", "ad_clip", "dapl", "cocoop"}


@pytest.fixture(scope="module", autouse=True)
def tiny() -> Iterator[None]:
    DATASETS.add("tiny", TinyShapes)
    yield
    DATASETS.remove("tiny")


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("open_clip")
    folder = tmp_path_factory.mktemp("models") / "rn"
    open_clip_folder(folder, "resnet")
    return folder


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "siglip"
    siglip_folder(folder)
    return folder


def bench(backbone: Path, out: Path, **changes: Any) -> Resources:
    asked = {"methods": METHOD_NAMES, "protocols": ("ucdr", "uda"), "datasets": "tiny", "preset": "smoke"}
    asked |= {"backbone": str(backbone), "out": str(out), "device": "cpu", "threads": 1, "jobs": 1}
    asked |= changes
    return Resources(resolve({"set": small_set(asked["methods"]), **asked}))


def run(resources: Resources, out: Path) -> list[Record]:
    store = ResultStore(out)
    execute(plan(resources.settings, resources), resources, store, Silent())
    return list(store.records())


@pytest.mark.parametrize(("family", "lacking"), [("resnet", TOKENS), ("siglip", TOKENS | STYLES)])
@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_every_method_runs_or_says_what_it_needs(
    family: str, lacking: set[str], precision: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    folder = request.getfixturevalue(family)
    methods = METHOD_NAMES if precision == "float32" else ("zero_shot", "full_finetune", "ad_clip")
    resources = bench(folder, tmp_path, precision=precision, methods=methods)
    records = run(resources, tmp_path)
    assert {record.cell.method for record in records} == set(methods)
    for record in records:
        if record.cell.method in lacking:
            assert record.status == "not_applicable"
            assert record.reason.startswith(f"{record.cell.method} needs ")
            assert "\n" not in record.reason
        else:
            assert record.status == "ok", record.reason
    again = plan(resources.settings, resources)
    store = ResultStore(tmp_path)
    assert execute(again, resources, store, Silent()).counts == {"cached": len(again.cells)}


def test_nothing_left_is_a_settings_error(siglip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    resources = bench(siglip, tmp_path, methods=("pros", "vpt_deep"))
    with pytest.raises(SettingsError, match=r"--backbone: pros needs tokens, .* offers features: choose another"):
        plan(resources.settings, resources)
    arguments = ["--methods", "pros", "--datasets", "tiny", "--protocols", "ucdr", "--preset", "smoke"]
    assert main([*arguments, "--backbone", str(siglip), "--out", str(tmp_path / "out"), "--device", "cpu"]) == 2
    assert "needs tokens" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_dry_run_names_what_does_not_apply(siglip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--methods", "zero_shot,pros", "--datasets", "tiny", "--protocols", "ucdr", "--preset", "smoke"]
    arguments += ["--backbone", str(siglip), "--out", str(tmp_path / "out"), "--device", "cpu", "--dry-run"]
    assert main(arguments) == 0
    out, err = capsys.readouterr()
    assert "not applicable: pros needs tokens" in " ".join((out + err).split())
    lines = out.splitlines()
    assert all(line.startswith("n/a" if "  pros  " in line else "to run") for line in lines if "  ucdr  " in line)


def test_keys_of_what_runs_do_not_know_the_capability(tiny_folder: Path, tmp_path: Path) -> None:
    resources = bench(tiny_folder, tmp_path, methods=("zero_shot", "ad_clip"))
    for cell in plan(resources.settings, resources).cells:
        assert "not_applicable" not in cell.inputs
        assert "fixed_first" not in cell.inputs["method"]["config"]
    changed = bench(tiny_folder, tmp_path, methods=("ad_clip",), set=(("ad_clip.fixed_first", True),))
    assert all(cell.inputs["method"]["config"]["fixed_first"] for cell in plan(changed.settings, changed).cells)


@pytest.mark.parametrize(("family", "lacking"), [("resnet", TOKENS), ("siglip", TOKENS | STYLES)])
def test_a_saved_method_gives_the_same_answers(
    family: str, lacking: set[str], request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    resources = bench(request.getfixturevalue(family), tmp_path)
    task = resources.task("tiny", "uda", resources.splits("tiny", "uda")[0])
    cache = resources.pixels("tiny")
    data = training_data(task, cache, lambda method, question: 0.0)
    pixels = cache[task.train[:5]].float() / 255
    for name in (name for name in METHOD_NAMES if name not in lacking and METHODS.get(name).trained):
        kind = METHODS.get(name)
        method = kind(resources.backbone, kind.Config(**small(kind)))
        method.fit(data, seed=0, log=lambda **numbers: None)
        method.save(tmp_path / name)
        again = kind.load(tmp_path / name, resources.backbone)
        names = data.class_names
        torch.testing.assert_close(again.encode_images(pixels), method.encode_images(pixels), rtol=0, atol=1e-6)
        torch.testing.assert_close(again.encode_classes(names), method.encode_classes(names), rtol=0, atol=1e-6)
        other = resources.backbone.clone()
        with torch.no_grad():
            next(iter(other.vision_parameters().values())).add_(1.0)
        with pytest.raises(ValueError, match="trained on other backbone weights"):
            kind.load(tmp_path / name, other)
