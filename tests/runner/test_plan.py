"""The plan: cells that share a fit, and everything that makes another cell."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks.protocols.training import training_data
from benchmarks.runner.plan import augmentation_inputs, plan, shown_to
from benchmarks.runner.resources import Resources
from benchmarks.runner.settings import Settings, SettingsError
from methods.interface import WithheldError
from methods.linear_probe import LinearProbe
from methods.parts.augment import Augmentation
from methods.registry import METHODS
from tests.runner.probe import Probe, ProbeConfig, run
from tests.support.every import METHOD_NAMES

DOMAINS = ("flat", "glyph", "line")


def test_cells_with_the_same_training_data_share_a_fit(settings: Settings) -> None:
    planned, outcome, _, watcher = run(settings)
    assert len(planned.cells) == 9
    assert outcome.counts == {"ok": 9}
    shared = sorted(sorted({(c.id.protocol, c.id.split) for c in group.cells}) for group in planned.groups)
    held_out = [[("ucdr", d), ("udcdr", d)] for d in ("glyph", "line", "sketch")]
    assert shared == sorted([*held_out, [("uccdr", d) for d in ("glyph", "line", "sketch")]])
    assert len(Probe.fits) == 4
    assert [status for _, status in watcher.cells] == ["ok"] * 9


@pytest.mark.parametrize("order", [("zero_shot", "sre_clip"), ("sre_clip", "zero_shot")])
def test_a_key_does_not_depend_on_the_other_methods_of_a_run(settings: Settings, order: tuple[str, ...]) -> None:
    """SRE-CLIP's key has the classes' synsets as it reads them; that of another method in the same run does not."""

    def keys(methods: tuple[str, ...]) -> dict[str, set[str]]:
        run = dataclasses.replace(settings, methods=methods, protocols=("dazsl",))
        cells = plan(run, Resources(run)).cells
        return {name: {cell.key for cell in cells if cell.id.method == name} for name in methods}

    assert keys(order) == keys(("zero_shot",)) | keys(("sre_clip",))


def test_what_changes_the_score_changes_the_key(settings: Settings, tiny_folder: Path, tmp_path: Path) -> None:
    from tests.support.tiny_clip import tiny_clip_folder

    def keys(**changes: Any) -> set[str]:
        changed = dataclasses.replace(settings, **{"protocols": ("ucdr",), **changes})
        return {cell.key for cell in plan(changed, Resources(changed)).cells}

    base = keys()
    assert len(base) == 3
    assert keys() == base
    assert keys(out="elsewhere", threads=2, force=True, fail_fast=True) == base
    others = [
        keys(seeds=(1,)),
        keys(rules="official"),
        keys(select="last"),
        keys(select="oracle"),
        keys(limit=8),
        keys(precision="bf16"),
        keys(variant="official"),
        keys(preset="standard"),
        keys(set=(("probe.learning_rate", 0.1),)),
        keys(methods=("failing",)),
        keys(protocols=("uccdr",)),
        keys(backbone=str(tiny_clip_folder(tmp_path / "other", seed=1))),
    ]
    for other in others:
        assert len(other) == 3
        assert not other & base
    assert len(set().union(*others)) == 3 * len(others)


def test_other_data_is_another_cell(settings: Settings, tiny_dataset: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {cell.key for cell in plan(settings, Resources(settings)).cells}
    content = list(tiny_dataset().content)
    monkeypatch.setattr(tiny_dataset, "content", ["changed", *content[1:]])
    assert not before & {cell.key for cell in plan(settings, Resources(settings)).cells}


def test_another_method_version_is_another_cell(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    before = {cell.key for cell in plan(settings, Resources(settings)).cells}
    monkeypatch.setattr(Probe, "version", 2)
    assert not before & {cell.key for cell in plan(settings, Resources(settings)).cells}


def test_oracle_selects_on_the_test_retrieval_and_shares_no_model(settings: Settings) -> None:
    settings = dataclasses.replace(settings, select="oracle")
    planned, _, store, _ = run(settings)
    assert len(planned.groups) == 9
    for record in store.records():
        first = record.scores["unseen" if "unseen" in record.scores else "seen"]
        assert record.fit.validation[0]["score"] == pytest.approx(first.metrics["map@all"], abs=1e-12)
        assert record.cell.select == "oracle"


def test_config_layers_default_variant_preset_set(settings: Settings) -> None:
    def config(**changes: Any) -> Any:
        changed = dataclasses.replace(settings, **changes)
        return plan(changed, Resources(changed)).groups[0].config

    assert config(preset="full") == ProbeConfig(steps=0)
    assert config(preset="full", variant="official") == ProbeConfig(learning_rate=0.25, steps=0)
    chosen = config(variant="official", set=(("probe.learning_rate", 1), ("steps", 9), ("names", ["a", "b"])))
    assert chosen == ProbeConfig(1.0, 9, ("a", "b"))
    assert isinstance(chosen.learning_rate, float)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"set": (("lerning_rate", 1.0),)}, "did you mean learning_rate"),
        ({"set": (("probe.learning_rate", "fast"),)}, "takes a number"),
        ({"set": (("zero_shot.template", "x"),)}, "zero_shot is not a method of this run; add it to --methods"),
        ({"variant": "offical"}, "did you mean official"),
        ({"backbone": "no/such/folder/here"}, "--backbone: backbone folder"),
        ({"backbone": "picto-clip-v99"}, "not in this installation"),
        ({"device": "tpu9"}, "--device tpu9"),
    ],
)
def test_a_wrong_option_is_one_line(settings: Settings, change: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        changed = dataclasses.replace(settings, **change)
        plan(changed, Resources(changed))
    assert "\n" not in str(caught.value)


def test_splits_choose_query_domains_and_transfers(settings: Settings) -> None:
    def cells(splits: tuple[str, ...], protocols: tuple[str, ...] = ("ucdr", "uda")) -> dict[str, set[tuple[str, str]]]:
        changed = dataclasses.replace(settings, protocols=protocols, splits=splits)
        found: dict[str, set[tuple[str, str]]] = {name: set() for name in protocols}
        for cell in plan(changed, Resources(changed)).cells:
            found[cell.id.protocol].add((cell.id.split, cell.key))
        return found

    every = cells(())
    resources = Resources(settings)
    first = {name: resources.all_splits("tiny", name)[0] for name in every}
    assert cells(("1",)) == {name: {one for one in every[name] if one[0] == first[name]} for name in every}
    assert cells((first["uda"],)) == {"ucdr": set(), "uda": {one for one in every["uda"] if one[0] == first["uda"]}}
    changed = dataclasses.replace(settings, protocols=("ucdr", "uda"), splits=(first["uda"],))
    assert plan(changed, Resources(changed)).skipped == {"tiny/ucdr": "it has none of --splits"}
    with pytest.raises(SettingsError, match="--splits 'nowhere' is unknown"):
        cells(("nowhere", first["uda"]))
    with pytest.raises(SettingsError, match=r"--splits .* is unknown"):  # a transfer, but no query domain
        cells((first["uda"],), ("ucdr",))


def test_a_missing_data_set_is_a_row_until_it_is_there(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks.datasets.base import DatasetError
    from tests.support.tiny_dataset import TinyShapes

    def missing(self: TinyShapes, root: Path | None = None) -> None:
        raise DatasetError("tiny is missing: put it under --data-root")

    monkeypatch.setattr(TinyShapes, "__init__", missing)
    planned, outcome, store, _ = run(settings)
    assert not planned.cells
    assert outcome.counts == {"failed": 3}
    assert {r.reason for r in store.records()} == {"DatasetError: tiny is missing: put it under --data-root"}
    every = dataclasses.replace(settings, datasets=("all",), protocols=("ucdr",))
    assert plan(every, Resources(every)).skipped["tiny"] == "tiny is missing: put it under --data-root"


def keys_of(settings: Settings) -> set[str]:
    return {cell.key for cell in plan(settings, Resources(settings)).cells}


def test_a_checkpoint_whose_config_changes_is_measured_again(
    settings: Settings, tiny_folder: Path, tmp_path: Path
) -> None:
    folder = shutil.copytree(tiny_folder, tmp_path / "elsewhere")
    elsewhere = dataclasses.replace(settings, backbone=str(folder))
    assert keys_of(elsewhere) == keys_of(settings), "the same checkpoint in another folder"
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace("quick_gelu", "gelu"))
    assert not keys_of(elsewhere) & keys_of(settings)
    (folder / "config.json").write_text(config)
    assert keys_of(elsewhere) == keys_of(settings)


class Reads(Probe):
    """Reads a file that a setting names."""

    card = dataclasses.replace(Probe.card, name="reads")

    @dataclasses.dataclass(frozen=True)
    class Config(Probe.Config):
        table: str = ""


def test_the_content_of_a_file_that_a_method_reads_is_in_the_key(settings: Settings, tmp_path: Path) -> None:
    table = tmp_path / "table.txt"
    METHODS.add("reads", Reads)
    try:
        named = dataclasses.replace(settings, methods=("reads",), set=(("reads.table", str(table)),))
        absent = keys_of(named)
        table.write_text("one")
        first = keys_of(named)
        table.write_text("two")
        second = keys_of(named)
        table.write_text("one")
        assert keys_of(named) == first
        assert len(absent | first | second) == 3 * len(first)
    finally:
        METHODS.remove("reads")


def test_a_plain_word_is_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "word").write_text("x")
    (tmp_path / "a.txt").write_text("x")
    assert Reads.files(Reads.Config(table="word")) == {}
    assert Reads.files(Reads.Config(table="a.txt")) == {"table": Path("a.txt")}
    assert Reads.files(Reads.Config(table="a photo of a {}.")) == {}
    assert Reads.files(Reads.Config(table="no\0name/")) == {}


def test_synsets_decoding_and_version_are_in_the_key(
    settings: Settings, tiny_dataset: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = [keys_of(settings)]
    with monkeypatch.context() as context:
        context.setattr(tiny_dataset, "synsets", {"one_ring": "ring.n.02"})
        found.append(keys_of(settings))
    with monkeypatch.context() as context:
        context.setattr(tiny_dataset, "decoding", "another way")
        found.append(keys_of(settings))
    with monkeypatch.context() as context:
        context.setattr(Probe, "version", Probe.version + 1)
        found.append(keys_of(settings))
    assert len(set.union(*found)) == 4 * len(found[0])


def test_the_augmentation_is_in_the_key_of_what_augments(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    arms = {
        "not": dataclasses.replace(settings, methods=("coop", "zero_shot")),
        "by default": dataclasses.replace(settings, methods=("vpt_shallow", "pros")),
        "by a setting": dataclasses.replace(settings, methods=("coop",), set=(("coop.augment", True),)),
    }
    before = {name: keys_of(arm) for name, arm in arms.items()}
    monkeypatch.setattr(Augmentation, "version", Augmentation.version + 1)
    after = {name: keys_of(arm) for name, arm in arms.items()}
    assert after["not"] == before["not"]
    for name in ("by default", "by a setting"):
        assert len(before[name] | after[name]) == 2 * len(before[name])
    assert augmentation_inputs(Probe.Config()) == augmentation_inputs(METHODS.get("coop").Config()) == {}


def test_sre_clip_reads_wordnet_and_word_vectors(tmp_path: Path) -> None:
    from methods.sre_clip import SreClip, SreClipConfig

    assert set(SreClip.files(SreClipConfig())) == {"wordnet"}
    assert SreClip.files(SreClipConfig())["wordnet"].exists()
    named = SreClip.files(SreClipConfig(word_vectors=str(tmp_path / "glove.txt")))
    assert named["word_vectors"] == tmp_path / "glove.txt"


def groups_of(settings: Settings, method: str, **changes: Any) -> list[set[str]]:
    """The splits of each fit of a method in UDA."""
    changed = dataclasses.replace(settings, methods=(method,), protocols=("uda",), **changes)
    planned = plan(changed, Resources(changed))
    return sorted(({cell.id.split for cell in group.cells} for group in planned.groups), key=sorted)


@pytest.mark.parametrize("method", ["linear_probe", "full_finetune", "pros", "cocoop"])
def test_transfers_from_one_source_share_the_fit_of_what_uses_no_target_image(settings: Settings, method: str) -> None:
    by_source = [{f"{one} to {other}" for other in DOMAINS if other != one} for one in DOMAINS]
    assert groups_of(settings, method) == sorted(by_source, key=sorted)
    assert groups_of(settings, method, selectors=("im", "oracle")) == sorted(by_source, key=sorted)
    alone = [{split} for splits in sorted(by_source, key=sorted) for split in sorted(splits)]
    assert groups_of(settings, method, select="im") == alone, "what selects looks at target images"
    assert groups_of(settings, method, select="oracle") == alone
    searched = {"preset": "standard", "search": True}
    assert groups_of(settings, method, **searched) == sorted(by_source, key=sorted)
    assert groups_of(settings, method, selectors=("im",), **searched) == alone, "trials have checkpoints of one task"


@pytest.mark.parametrize("method", ["ad_clip", "dapl", "pda", "cmkd", "sre_clip"])
def test_what_uses_target_images_is_fitted_for_each_transfer(settings: Settings, method: str) -> None:
    assert all(len(splits) == 1 for splits in groups_of(settings, method))


def test_keys_and_scores_are_those_of_fits_of_their_own(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    run_of = {"methods": ("linear_probe",), "protocols": ("uda", "dazsl"), "preset": "standard"}
    asked = dataclasses.replace(settings, **run_of, set=(("steps", 3),), selectors=("im", "oracle"))
    shared = {record.key: record for record in run(asked)[2].records()}
    monkeypatch.setattr(LinearProbe, "reads_target", True)
    alone = {record.key: record for record in run(dataclasses.replace(asked, out=f"{asked.out}2"))[2].records()}
    assert set(shared) == set(alone)
    for key, record in shared.items():
        assert record.status == "ok" and record.scores == alone[key].scores and record.per_query == alone[key].per_query
        assert record.fit.checkpoints == alone[key].fit.checkpoints != []
    fits = [{record.fit.fit_id for record in records.values()} for records in (shared, alone)]
    assert len(fits[0]) < len(fits[1])


@pytest.mark.parametrize("name", [name for name in METHOD_NAMES if not METHODS.get(name).reads_target])
def test_a_method_that_uses_no_target_image_is_shown_none(name: str, settings: Settings) -> None:
    asked = dataclasses.replace(settings, protocols=("uda", "ucdr"))
    resources = Resources(asked)
    for protocol in asked.protocols:
        task = resources.task("tiny", protocol, resources.splits("tiny", protocol)[0])
        shown = shown_to(METHODS.get(name), task, "val")
        assert shown.target is None
        data = training_data(shown, resources.pixels("tiny"), lambda *_: 0.0)
        assert not data.has_target and data.target_domain is None
        with pytest.raises(WithheldError, match="use has_target first"):
            data.target  # noqa: B018
