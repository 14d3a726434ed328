"""The packaged recipes: each plans its paper's table on a tree of its data set's layout; one tiny run a paper."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks import run
from benchmarks.datasets.i2webv import I2WebV
from benchmarks.datasets.listed import SPLITS, class_lists
from benchmarks.reporting.page import Drawn
from benchmarks.settings import RECIPES, recipes, resolve
from tests.datasets import transfer_trees, trees
from tests.support.tiny_clip import tiny_clip_folder, tiny_config

#: Each recipe's cells on the tree: splits times seeds; and its fits, all seeds and splits apart.
CELLS = {
    "pros_domainnet": 5,
    "pros_domainnet_udcdr": 5,
    "pros_sketchy": 1,
    "pros_tuberlin": 1,
    "ucdr_adapter_domainnet": 5,
    "ucdr_adapter_domainnet_udcdr": 5,
    "ucdr_adapter_sketchy": 1,
    "ucdr_adapter_tuberlin": 1,
    "ad_clip_office_home": 60,
    "ad_clip_visda": 5,
    "ad_clip_mini_domainnet": 60,
    "sre_clip_i2awa": 1,
    "sre_clip_i2webv": 1,
}


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with a tree of every layout that a recipe reads."""
    root = tmp_path_factory.mktemp("data")
    for name, lists, write in (
        ("domainnet", "domainnet", trees.domainnet_tree),
        ("sketchy", "sketchy_eccv2018", trees.sketchy_tree),
        ("tuberlin", "tuberlin", trees.tuberlin_tree),
    ):
        write(root / name, [cls for split in SPLITS for cls in class_lists(lists)[split]], pictures=1, plenty=True)
    transfer_trees.mini_domainnet_tree(root / "mini_domainnet")
    transfer_trees.office_home_tree(root / "office_home")
    transfer_trees.visda_tree(root / "visda")
    transfer_trees.i2awa_tree(root / "i2awa")
    transfer_trees.i2webv_tree(root / "i2webv", transfer_trees.WNIDS, 6)
    return root


@pytest.fixture(autouse=True)
def _small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(I2WebV, "sizes", (6, 8))
    monkeypatch.setattr("benchmarks.reporting.figures.draw", lambda *_: Drawn())
    monkeypatch.setenv("UCDR_BENCH_CACHE", str(tmp_path / "cache"))


def test_there_is_a_recipe_for_every_table() -> None:
    assert recipes() == sorted(CELLS)


@pytest.mark.parametrize("name", CELLS)
def test_a_recipe_plans_its_table(
    name: str, data_root: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    given = ["--recipe", name, "--data-root", str(data_root), "--backbone", str(tiny_folder)]
    assert run.main([*given, "--dry-run", "--out", str(tmp_path / "results")]) == 0
    printed = capsys.readouterr()
    settings = resolve({}, RECIPES / f"{name}.toml")
    to_run = [line for line in printed.out.splitlines() if line.startswith("to run")]
    assert len(to_run) == CELLS[name]
    assert {line.split()[2] for line in to_run} == set(settings.datasets)
    assert re.search(
        rf"^{CELLS[name]} cells, 0 cached, {CELLS[name]} fits to do, 0 cannot be planned$", printed.out, re.M
    )
    hours = CELLS[name] * settings.gpu_hours_each_fit
    assert f"expected: {hours:.3g} GPU hours ({CELLS[name]} fits of {settings.gpu_hours_each_fit:g}); " in printed.out
    assert "TFLOP" in printed.out, "the basis of the estimate"
    assert printed.err == ""
    text = (RECIPES / f"{name}.toml").read_text()
    comment = text[: text.index("\n\n")]
    assert all(line.startswith("#") for line in comment.splitlines())
    assert {"Convention", "Not known"} <= {line[2:].partition(":")[0] for line in comment.splitlines()}
    assert settings.preset == "full" and settings.rules == "official"


def test_the_command_line_wins_over_a_recipe_setting_by_setting(capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    recipe = RECIPES / "ucdr_adapter_sketchy.toml"
    settings = resolve({"seeds": "3", "set": (("ucdr_adapter.batch_size", 40),)}, recipe)
    assert settings.seeds == (3,)
    values = dict(settings.set)
    assert (values["ucdr_adapter.batch_size"], values["ucdr_adapter.prompt_length"]) == (40, 4)
    assert run.main(["--recipe", "pros_domainet", "--dry-run", "--out", str(tmp_path)]) == 2
    said = capsys.readouterr().err
    assert said.startswith("benchmarks.run: --recipe 'pros_domainet' is unknown; did you mean pros_domainnet or ")
    assert said.count("\n") == 1


def narrow(path: Path, patch: int) -> Path:
    """A random CLIP with the layers, tokens and context of ViT-B/32 or ViT-B/16, but towers 48 and 32 wide."""
    layers = {"num_hidden_layers": 12, "num_attention_heads": 4}
    vision = {"hidden_size": 48, "intermediate_size": 96, "image_size": 224, "patch_size": patch, **layers}
    return tiny_clip_folder(path, config=tiny_config(vision=vision, text={"max_position_embeddings": 77, **layers}))


def end_to_end(name: str, limit: str, data_root: Path, backbone: Path, out: Path) -> list[dict[str, object]]:
    """Run a recipe for two steps on a few pictures; its records."""
    given = ["--recipe", name, "--data-root", str(data_root), "--backbone", str(backbone), "--device", "cpu"]
    given += ["--preset", "smoke", "--limit", limit, "--seeds", "0", "--precision", "float32"]
    assert run.main([*given, "--threads", "1", "--jobs", "1", "--out", str(out)]) == 0
    return [json.loads(file.read_text()) for file in (out / "cells").rglob("*.json")]


@pytest.mark.parametrize(
    ("name", "limit", "patch", "metric"),
    [
        ("pros_tuberlin", "4", 32, "map@all"),
        ("ucdr_adapter_sketchy", "4", 32, "map@200[retrieved]"),
        ("ad_clip_visda", "12", 16, "accuracy[class]"),
        ("sre_clip_i2awa", "50", 32, "h[image]"),
    ],
)
def test_a_paper_runs_end_to_end(
    name: str, limit: str, patch: int, metric: str, data_root: Path, tmp_path: Path
) -> None:
    (record,) = end_to_end(name, limit, data_root, narrow(tmp_path / "clip", patch), tmp_path / "results")
    assert record["status"] == "ok", record["reason"]
    assert record["fit"]["steps"] == 2
    assert record["cell"]["rules"] == "official"
    scores = {metric: value for one in record["scores"].values() for metric, value in one["metrics"].items()}
    assert 0 <= scores[metric] <= 1


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_pros_runs_end_to_end_with_a_vit_b_32(data_root: Path, tmp_path: Path) -> None:
    """Random weights in the full size of ViT-B/32."""
    wide = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
    text = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8}
    config = tiny_config(
        vision={**wide, "image_size": 224, "patch_size": 32}, text={**text, "max_position_embeddings": 77}
    )
    (record,) = end_to_end(
        "pros_sketchy", "4", data_root, tiny_clip_folder(tmp_path / "clip", config=config), tmp_path / "results"
    )
    assert record["status"] == "ok", record["reason"]
