"""The packaged recipes: each plans its paper's table on a tree of its data set's layout; one tiny run a paper."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from benchmarks import run
from benchmarks.console import counted
from benchmarks.datasets.i2webv import I2WebV
from benchmarks.datasets.splits import SPLITS, class_lists
from benchmarks.recipes import RECIPES, recipes
from benchmarks.reporting import published
from benchmarks.reporting.plot_collector import PlannedPlots
from benchmarks.runner.plan import Arm, Plan, plan
from benchmarks.runner.resources import Resources
from benchmarks.runner.settings import Settings, SettingsError, resolve
from tests.datasets import transfer_trees, trees
from tests.support.tiny_clip import tiny_clip_folder, tiny_config
from tests.support.tiny_families import open_clip_folder

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
    "ad_clip_rn50_office_home": 60,
    "ad_clip_rn50_visda": 5,
    "ad_clip_rn50_mini_domainnet": 60,
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
        write(root / name, [cls for split in SPLITS for cls in class_lists(lists)[split]], images=1, plenty=True)
    transfer_trees.mini_domainnet_tree(root / "mini_domainnet")
    transfer_trees.office_home_tree(root / "office_home")
    transfer_trees.visda_tree(root / "visda")
    transfer_trees.i2awa_tree(root / "i2awa")
    transfer_trees.i2webv_tree(root / "i2webv", transfer_trees.WNIDS, 6)
    return root


@pytest.fixture(autouse=True)
def _small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(I2WebV, "sizes", (6, 8))
    monkeypatch.setattr(
        "benchmarks.reporting.plot_collector.draw_setting", lambda _, collector: PlannedPlots(collector)
    )
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
        rf"^{CELLS[name]} cells?, 0 cached, {CELLS[name]} fits? to do, 0 cannot be planned$", printed.out, re.M
    )
    hours = CELLS[name] * settings.gpu_hours_each_fit
    fits = counted(CELLS[name], "fit")
    assert f"expected: {hours:.3g} GPU hours ({fits} of {settings.gpu_hours_each_fit:g}); " in printed.out
    assert "TFLOP" in printed.out, "the basis of the estimate"
    assert printed.err == ""
    text = (RECIPES / f"{name}.toml").read_text()
    comment = text[: text.index("\n\n")]
    assert all(line.startswith("#") for line in comment.splitlines())
    assert {"Convention", "Not known"} <= {line[2:].partition(":")[0] for line in comment.splitlines()}
    assert settings.preset == "full" and settings.rules == "official"


def planned(data_root: Path, backbone: Path, file: Path | None = None, /, **stated: Any) -> Plan:
    settings = resolve({"data_root": str(data_root), "backbone": str(backbone), "device": "cpu", **stated}, file)
    return plan(settings, Resources(settings))


@pytest.mark.parametrize("name", CELLS)
def test_the_full_preset_alone_has_the_settings_of_the_recipe(name: str, data_root: Path, tiny_folder: Path) -> None:
    recipe = RECIPES / f"{name}.toml"
    stated = resolve({}, recipe)
    few = {"methods": stated.methods, "datasets": stated.datasets, "preset": "full", "variant": stated.variant}
    ours, wanted = planned(data_root, tiny_folder, **few), planned(data_root, tiny_folder, recipe)
    assert {group.config for group in ours.groups} == {group.config for group in wanted.groups}
    assert {cell.id.protocol for cell in ours.cells} >= {cell.id.protocol for cell in wanted.cells}
    galleries = {frozenset(cell.galleries) for cell in wanted.cells}
    assert len(galleries) == 1
    if stated.protocols == ("ucdr",):
        assert galleries == {frozenset(("unseen", "mixed"))}
    without = resolve(few)
    assert without.backbone == stated.backbone
    assert set(without.protocols) == {p for other in CELLS for p in pairs(other, stated.datasets, stated.methods)}


def pairs(name: str, datasets: tuple[str, ...], methods: tuple[str, ...]) -> tuple[str, ...]:
    """The protocols of a recipe if it is for these methods and data sets."""
    settings = resolve({}, RECIPES / f"{name}.toml")
    return settings.protocols if (settings.methods, settings.datasets) == (methods, datasets) else ()


def test_the_full_preset_configures_each_data_set_by_itself(data_root: Path, tiny_folder: Path) -> None:
    (data_root / "sketchy_random").symlink_to(data_root / "sketchy", target_is_directory=True)
    both = {"datasets": "sketchy,sketchy_random,domainnet_245", "protocols": "uccdr", "preset": "full"}
    made = planned(data_root, tiny_folder, methods="ucdr_adapter,pros", **both)
    lengths = {
        (group.method, group.dataset): (group.config.prompt_length, group.config.context_tokens, group.config.epochs)
        for group in made.groups
    }
    assert lengths == {
        ("ucdr_adapter", "sketchy"): (4, 8, 10),
        ("ucdr_adapter", "sketchy_random"): (4, 8, 10),
        ("ucdr_adapter", "domainnet_245"): (1, 16, 10),
        ("pros", "sketchy"): (1, 16, 200),
        ("pros", "sketchy_random"): (1, 16, 200),
        ("pros", "domainnet_245"): (1, 16, 10),
    }
    stated = planned(data_root, tiny_folder, methods="ucdr_adapter", set=(("prompt_length", 2),), **both)
    assert {group.config.prompt_length for group in stated.groups} == {2}, "--set wins"
    quick = planned(data_root, tiny_folder, methods="ucdr_adapter", **both | {"preset": "quick"})
    assert {group.config.prompt_length for group in quick.groups} == {1}, "equal budgets: no paper's settings"


def test_an_arm_that_is_the_papers_own_setting_is_the_default(data_root: Path, tiny_folder: Path) -> None:
    stated = {"methods": "ucdr_adapter", "datasets": "sketchy", "protocols": "uccdr", "preset": "full"}
    settings = resolve({"data_root": str(data_root), "backbone": str(tiny_folder), "device": "cpu", **stated})
    arms = [Arm(), Arm("prompt_length_4", {"prompt_length": 4}), Arm("prompt_length_8", {"prompt_length": 8})]
    made = plan(settings, Resources(settings), {"ucdr_adapter": arms})
    assert {cell.id.ablation for cell in made.cells} == {"", "prompt_length_8"}


def test_the_full_preset_takes_the_papers_backbone_unless_told() -> None:
    def full(**stated: Any) -> Settings:
        return resolve({"preset": "full", **stated})

    assert full(methods="ad_clip,zero_shot", datasets="visda_test").backbone == "openai/clip-vit-base-patch16"
    assert full(methods="ad_clip", datasets="visda", backbone="picto-clip").backbone == "picto-clip"
    assert full(methods="ad_clip", datasets="visda", protocols="ucdr,uda").protocols == ("ucdr", "uda")
    for stated in ({"datasets": "picto_domains"}, {"methods": "lora", "datasets": "visda"}, {"datasets": "all"}):
        assert full(**stated) == resolve({**stated, "preset": "full", "backbone": "picto-clip", "protocols": "all"})
    with pytest.raises(SettingsError, match="patch16 and openai/clip-vit-base-patch32; choose one with --backbone"):
        full(methods="ad_clip,pros", datasets="visda,sketchy")
    assert resolve({"methods": "ad_clip", "datasets": "visda"}).backbone == "picto-clip", "the quick preset"


def test_expected_hours_say_what_they_are_for(
    data_root: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    recipe = RECIPES / "ad_clip_office_home.toml"
    own = resolve({}, recipe).gpu_hours_basis
    assert own.startswith("50 epochs")
    large = resolve({"backbone": "openai/clip-vit-large-patch14", "datasets": "visda"}, recipe)
    assert large.gpu_hours_basis == (
        f"for office_home, not visda, for openai/clip-vit-base-patch16, not openai/clip-vit-large-patch14: {own}"
    )
    given = ["--recipe", "pros_tuberlin", "--methods", "pros,zero_shot", "--data-root", str(data_root), "--dry-run"]
    assert run.main([*given, "--backbone", str(tiny_folder), "--out", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "2 fits to do" in said
    assert "expected: 0.6 GPU hours (1 fit of 0.6); for openai/clip-vit-base-patch32, not " in said


def test_a_recipe_runs_another_method_under_its_rules(data_root: Path, tiny_folder: Path) -> None:
    recipe = RECIPES / "pros_tuberlin.toml"
    made = planned(data_root, tiny_folder, recipe, methods="zero_shot", variant="paper")
    assert [(cell.id.method, cell.id.rules, cell.id.protocol) for cell in made.cells] == [
        ("zero_shot", "official", "uccdr")
    ]
    with pytest.raises(SettingsError, match=r"prso\.epochs"):
        planned(data_root, tiny_folder, recipe, methods="pros", set=(("prso.epochs", 2),))


#: Rows of published.csv with one number, and the settings that say the same.
PUBLISHED_SETTINGS = {
    "ProS": {
        "lr": "learning_rate",
        "batch size stage 1": "stage1_batch_size",
        "batch size stage 2": "batch_size",
        "stage-1 epochs": "stage1_epochs",
        "early stop patience": "patience",
        "text prompt length": "context_tokens",
        "contrastive temperature": "temperature",
        "dropout (stage 1)": "dropout",
    },
    "UCDR-Adapter": {
        "lr stage 1": "learning_rate",
        "batch size stage 1": "stage1_batch_size",
        "batch size stage 2": "batch_size",
        "stage-1 epochs": "stage1_epochs",
        "stage-2 epochs": "epochs",
        "early stop patience": "patience",
        "momentum of momentum encoder": "momentum",
        "queue length per class": "queue_size",
        "triplet margin": "margin",
        "prompt divisor": "prompt_ratio",
        "ITC temperature": "temperature",
    },
    "AD-CLIP": {"lr": "learning_rate", "epochs": "epochs", "image tokens": "image_tokens"},
    "SRE-CLIP Adapter": {
        "temperature": "temperature",
        "batch size": "batch_size",
        "entropy weight": "entropy_weight",
        "distribution (memory) weight": "memory_weight",
        "balance weight (fc_w)": "balance_weight",
        "source weight after warm-up": "source_weight",
        "memory bank size": "memory",
    },
}


@pytest.mark.parametrize("method", PUBLISHED_SETTINGS)
def test_recipes_state_the_published_settings(method: str) -> None:
    rows = published.read()
    rows = rows[(rows["protocol"] == "hyper-parameter") & (rows["method"] == method)]
    stated = dict(zip(rows["metric"], rows["value"], strict=True))
    name = published.METHODS[method]
    of_method = [settings for one in recipes() if name in (settings := resolve({}, RECIPES / f"{one}.toml")).methods]
    assert len(of_method) >= 2
    for settings in of_method:
        for metric, field in PUBLISHED_SETTINGS[method].items():
            assert dict(settings.set)[f"{name}.{field}"] == float(stated[metric]), metric
        kind = published.backbone_kind(settings.backbone)
        resnet = settings.variant == "official_resnet"
        assert kind == ("RN50" if resnet else "ViT-B/16" if method == "AD-CLIP" else "ViT-B/32")
        if "seed" in stated:
            assert settings.seeds == (int(stated["seed"]),)


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
    """Run a recipe for two steps on a few images; its records."""
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


def test_ad_clips_resnet_table_runs_end_to_end(data_root: Path, tmp_path: Path) -> None:
    """Random weights, the four stages as wide as those of RN50."""
    pytest.importorskip("open_clip")
    open_clip_folder(tmp_path / "rn", "resnet", vision_cfg={"image_size": 224, "width": 64, "layers": [1, 1, 1, 1]})
    (record,) = end_to_end("ad_clip_rn50_visda", "12", data_root, tmp_path / "rn", tmp_path / "results")
    assert record["status"] == "ok", record["reason"]
    assert record["cell"]["variant"] == "official_resnet"
    assert record["fit"]["steps"] == 2
    text, mix = 32, 4
    second_and_mix = 2 * mix * text + 256 * text * mix + 384 * text * mix + mix + 1
    assert record["cost"]["trainable_parameters"] == second_and_mix
    scores = {metric: value for one in record["scores"].values() for metric, value in one["metrics"].items()}
    assert 0 <= scores["accuracy[class]"] <= 1


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
