"""Facts of a backbone: remembered while no file changes, so that a plan loads no weights."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.runner import backbone_facts as module
from benchmarks.runner.backbone_facts import BackboneFacts, backbone_facts
from methods.parts.backbone import Backbone
from methods.parts.preprocessing import ImageProcessing


class Loader:
    """Loads a folder and counts how often."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.count = folder, 0

    def __call__(self) -> Backbone:
        self.count += 1
        return Backbone.load(self.folder)


@pytest.fixture
def folder(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the tiny CLIP, and an empty cache folder."""
    monkeypatch.setenv("UCDR_BENCH_CACHE", str(tmp_path / "cache"))
    return Path(shutil.copytree(tiny_folder, tmp_path / "clip"))


def remembered(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "backbones").glob("*"))


def test_remembered_facts_are_those_of_the_loaded_backbone(folder: Path, tmp_path: Path) -> None:
    load = Loader(folder)
    first, second = (backbone_facts(str(folder), "float32", load) for _ in range(2))
    assert load.count == 1
    backbone = Backbone.load(folder)
    assert first == second == BackboneFacts.of(backbone)
    assert second.weights_mib == pytest.approx(sum(p.numel() for p in backbone.model.parameters()) * 4 / 2**20)
    assert isinstance(second.processing, ImageProcessing)
    assert second.processing == backbone.processing
    assert [file.suffix for file in remembered(tmp_path)] == [".json"]


def test_the_precision_is_that_of_the_run(folder: Path) -> None:
    load = Loader(folder)
    facts = backbone_facts(str(folder), "float32", load)
    assert backbone_facts(str(folder), "bf16", load) == dataclasses.replace(facts, precision="bf16")
    assert load.count == 1


@pytest.mark.parametrize("file", ["config.json", "preprocessor_config.json", "model.safetensors", "a_new_file.txt"])
def test_a_changed_file_is_loaded_again(folder: Path, file: str) -> None:
    load = Loader(folder)
    backbone_facts(str(folder), "float32", load)
    path = folder / file
    if path.suffix == ".json":
        path.write_text(json.dumps(json.loads(path.read_text()), indent=7))
    elif file == "model.safetensors":
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
    else:
        path.write_text("x")
    facts = backbone_facts(str(folder), "float32", load)
    assert load.count == 2
    assert facts == BackboneFacts.of(Backbone.load(folder))


@pytest.mark.parametrize(
    "damage",
    [
        lambda stored: "{",
        lambda stored: json.dumps([]),
        lambda stored: json.dumps(stored["facts"]),
        lambda stored: json.dumps({**stored, "facts": {**stored["facts"], "weights_mib": 1.0}}),
    ],
    ids=["cut", "a list", "no checksum", "altered"],
)
def test_damaged_facts_are_replaced(folder: Path, tmp_path: Path, damage: Callable[[dict[str, Any]], str]) -> None:
    load = Loader(folder)
    facts = backbone_facts(str(folder), "float32", load)
    (file,) = remembered(tmp_path)
    whole = file.read_text()
    file.write_text(damage(json.loads(whole)))
    assert backbone_facts(str(folder), "float32", load) == facts
    assert load.count == 2
    assert file.read_text() == whole


def test_facts_of_a_folder_that_changes_while_it_is_loaded_are_not_kept(folder: Path, tmp_path: Path) -> None:
    def load() -> Backbone:
        backbone = Backbone.load(folder)
        (folder / "README.md").write_text("changed meanwhile")
        return backbone

    backbone_facts(str(folder), "float32", load)
    assert remembered(tmp_path) == []


def test_without_a_cache_folder_it_is_loaded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UCDR_BENCH_CACHE", "off")
    load = Loader(folder)
    assert backbone_facts(str(folder), "float32", load) == backbone_facts(str(folder), "float32", load)
    assert load.count == 2


def test_another_version_of_a_package_is_another_backbone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load = Loader(folder)
    backbone_facts(str(folder), "float32", load)
    monkeypatch.setattr(module.importlib.metadata, "version", lambda name: "0")
    backbone_facts(str(folder), "float32", load)
    assert load.count == 2
