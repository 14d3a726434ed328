"""A checkpoint that is changed and put back, in one results folder: each model keeps its own scores."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.datasets.registry import DATASETS
from benchmarks.reporting.tables import score_tables, settings_of
from benchmarks.run import main
from benchmarks.runner import embeddings
from benchmarks.store.files import ResultStore
from benchmarks.store.frame import load_results
from methods.parts.feature_cache import process_cache
from tests.support.tiny_dataset import TinyShapes


def changed(name: str, **changes: Any) -> Callable[[Path], None]:
    """Changes values of a folder's JSON file."""

    def change(folder: Path) -> None:
        values = json.loads((folder / name).read_text())
        for key, value in changes.items():
            values[key] = {**values[key], **value} if isinstance(value, dict) else value
        (folder / name).write_text(json.dumps(values))

    return change


CHANGES = {
    "activation": changed("config.json", vision_config={"hidden_act": "gelu"}, text_config={"hidden_act": "gelu"}),
    "processor": changed("preprocessor_config.json", resample=0, image_mean=[0.1, 0.2, 0.3]),
}


@pytest.fixture
def tiny() -> Iterator[None]:
    DATASETS.add("tiny", TinyShapes)
    yield
    DATASETS.remove("tiny")


def run(folder: Path, out: Path) -> dict[str, dict[str, float]]:
    """Records by key, with the metrics of their first question."""
    process_cache().clear()
    arguments = ["--methods", "zero_shot", "--protocols", "ucdr", "--datasets", "tiny", "--seeds", "1"]
    arguments += ["--preset", "smoke", "--backbone", str(folder), "--jobs", "1", "--threads", "1", "--out", str(out)]
    assert main(arguments) == 0
    return {one.key: next(iter(one.scores.values())).metrics for one in ResultStore(out).records()}


@pytest.mark.parametrize("name", CHANGES)
def test_each_setup_of_a_checkpoint_keeps_its_own_scores(
    name: str, tiny: None, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embeddings, "LARGE", 0)  # embeddings lie in files
    monkeypatch.setenv("UCDR_BENCH_CACHE", str(tmp_path / "cache"))
    folder, out = shutil.copytree(tiny_folder, tmp_path / "a" / "clip"), tmp_path / "out"
    first = run(folder, out)
    CHANGES[name](folder)
    both = run(folder, out)
    assert len(both) == 2 * len(first), "nothing of the changed model is cached"
    monkeypatch.setenv("UCDR_BENCH_CACHE", str(tmp_path / "other cache"))
    fresh = run(folder, tmp_path / "fresh")
    assert {key: both[key] for key in fresh} == fresh
    stamps = {path: path.stat().st_mtime_ns for path in out.rglob("cells/**/*.json")}
    shutil.rmtree(folder)
    assert run(shutil.copytree(tiny_folder, tmp_path / "a" / "clip"), out) == both, "put back: all is cached"
    assert {path: path.stat().st_mtime_ns for path in out.rglob("cells/**/*.json")} == stamps
    found = load_results(out)
    shown = {
        setting.identity: {row.label: row.mean.value for row in score_tables(found, setting)[0].rows}
        for setting in settings_of(found)
    }
    assert len(shown) == 2
    truth = load_results(tmp_path / "fresh")
    setting = settings_of(truth)[0]
    assert shown[setting.identity] == {row.label: row.mean.value for row in score_tables(truth, setting)[0].rows}
