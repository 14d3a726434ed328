"""Settings: command line over file over defaults, types, names, seeds, shards."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks.runner.presets import PRESETS
from benchmarks.runner.settings import Settings, SettingsError, config_changes, parse_set, resolve
from methods.floors import RandomConfig
from methods.registry import METHODS, UnknownNameError
from methods.zero_shot import ZeroShotConfig


def test_the_command_line_wins_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "run.toml"
    file.write_text(
        'methods = ["zero_shot"]\nseeds = [0, 1]\npreset = "standard"\nfail-fast = true\nlimit = 5\n'
        '[set.zero_shot]\ntemplate = "a {}"\n[set.random]\nwidth = 8\n'
    )
    settings = resolve({"seeds": "7", "set": parse_set(["random.width=9"])}, file)
    assert (settings.methods, settings.seeds, settings.preset, settings.limit) == (("zero_shot",), (7,), "standard", 5)
    assert settings.fail_fast
    assert settings.select == "val"
    assert dict(settings.set) == {"zero_shot.template": "a {}", "random.width": 9}, "--set wins setting by setting"
    assert dict(resolve({}, file).set) == {"zero_shot.template": "a {}", "random.width": 8}
    assert resolve({}) == resolve({"methods": "all", "datasets": "picto_domains"})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("sedes = [1]", "unknown setting 'sedes'; did you mean seeds"),
        ("seeds = [", "is not TOML"),
        ('fail_fast = "yes"', "run.toml: fail_fast is true or false"),
        ("set = 3", "must be a table"),
        ("methods = 3", "run.toml: methods: cannot read 3; name at least one, or all"),
        ("methods = []", "run.toml: methods: cannot read"),
        ('methods = ["co-op"]', "run.toml: methods: unknown method 'co-op'; did you mean coop"),
        ('rules = "x"', "run.toml: rules 'x' is unknown"),
        ('keep_weights = "x"', "run.toml: keep_weights 'x' is unknown"),
        ("jobs = 0", "run.toml: jobs must be positive, not 0"),
        ("limit = -1", "run.toml: limit must be positive, not -1"),
        ('limit = "few"', "run.toml: limit: cannot read 'few'; write a whole number"),
        ("seeds = [-1]", "run.toml: seeds: a seed is 0 or larger"),
        ('out = ""', "run.toml: out is empty"),
        ("splits = 0", "run.toml: splits is either one number from 1"),
        ('track = ["x"]', "run.toml: track 'x' is unknown"),
    ],
)
def test_a_wrong_file_is_one_line(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "run.toml"
    file.write_text(text)
    with pytest.raises((SettingsError, UnknownNameError), match=message):
        resolve({}, file)


def test_set_values_keep_their_types() -> None:
    assert parse_set(["a=1", "b=0.5", "c=true", "d=[1, 2]", "e=word", 'f="1"', "g=a=b", "h="]) == (
        ("a", 1),
        ("b", 0.5),
        ("c", True),
        ("d", [1, 2]),
        ("e", "word"),
        ("f", "1"),
        ("g", "a=b"),
        ("h", ""),
    )
    configs = {"random": RandomConfig, "zero_shot": ZeroShotConfig}
    changes = config_changes(Settings(set=(("width", 8), ("zero_shot.template", "{}"))), configs)
    assert changes == {"random": {"width": 8}, "zero_shot": {"template": "{}"}}
    with pytest.raises(SettingsError, match=r"takes a whole number \(default 64\), not true"):
        config_changes(Settings(set=(("width", True),)), configs)
    with pytest.raises(SettingsError, match="is a text"):
        config_changes(Settings(set=(("template", 3),)), configs)


def test_seed_zero_is_a_seed_and_all_means_all() -> None:
    settings = resolve({"seeds": "0", "methods": "all", "protocols": "all"})
    assert settings.seeds == (0,)
    assert settings.methods == tuple(METHODS.defaults())
    assert {"ucdr", "uccdr", "udcdr"} <= set(settings.protocols)
    assert resolve({"seeds": "2,0,2"}).seeds == (2, 0)


def test_shards_are_read_or_refused() -> None:
    assert resolve({"shard": "2/4"}).shard == (2, 4)
    for wrong in ("0/4", "5/4", "2", "a/b", "2/"):
        with pytest.raises(SettingsError, match=r"--shard: cannot read .*; write I/N"):
            resolve({"shard": wrong})


def test_unknown_names_come_with_the_nearest() -> None:
    with pytest.raises(UnknownNameError, match="did you mean raw_pixel"):
        resolve({"methods": "raw_pixels"})


@pytest.mark.parametrize("seeds", ["4294967296", str(2**64), "-1", "0,4294967296"])
def test_seeds_that_train_as_another_are_refused(seeds: str) -> None:
    with pytest.raises(SettingsError, match="--seeds: a seed is 0 or larger and at most 4294967295"):
        resolve({"seeds": seeds})
    assert resolve({"seeds": str(2**32 - 1)}).seeds == (2**32 - 1,)


@pytest.mark.parametrize("value", [0.5, [0.5], [True], "0.5", "", [], "x"])
def test_seeds_that_are_no_whole_numbers_are_refused(value: Any) -> None:
    with pytest.raises(SettingsError, match="--seeds: cannot read"):
        resolve({"seeds": value})


def test_smoke_is_small() -> None:
    settings = resolve({"preset": "smoke"})
    assert settings.limit == PRESETS["smoke"].limit
    assert resolve({"preset": "smoke", "limit": 7}).limit == 7
    assert PRESETS["smoke"].splits_of("uda") == 1
    assert PRESETS["standard"].splits_of("uda") is None


@pytest.mark.parametrize("value", ["0", "1,2", "2,freehand", "freehand,2", "", True])
def test_splits_that_are_neither_names_nor_a_number_are_refused(value: Any) -> None:
    with pytest.raises(SettingsError, match="--splits"):
        resolve({"splits": value})


def test_splits_are_names_or_a_number() -> None:
    assert resolve({"splits": "freehand, line to flat"}).splits == ("freehand", "line to flat")
    assert resolve({"splits": 2}).splits == resolve({"splits": "2"}).splits == ("2",)


def test_a_setting_of_every_name_can_be_in_a_file(tmp_path: Path) -> None:
    """What a run writes as its settings is read again as the same settings."""
    chosen = resolve(
        {"methods": "zero_shot", "seeds": "3,4", "limit": 9, "set": parse_set(["zero_shot.template=a {}"])}
    )
    lines = []
    for key, value in chosen.as_dict().items():
        if key == "set":
            lines += ["[set.zero_shot]", 'template = "a {}"']
        elif value is not None and key != "shard" and (key, value) not in (("jobs", 0), ("threads", 0)):
            lines.append(f"{key} = {json.dumps(value)}")
    lines.sort(key=lambda line: line.startswith(("[", "template")))
    file = tmp_path / "again.toml"
    file.write_text("\n".join(lines))
    again = resolve({}, file)
    assert dict(again.set) == {"zero_shot.template": "a {}"}
    assert dataclasses.replace(again, set=chosen.set) == chosen


def test_settings_are_data_that_json_holds() -> None:
    values = Settings(set=(("a.b", 1),), shard=(1, 2)).as_dict()
    assert json.loads(json.dumps(values)) == values
    assert values["set"] == {"a.b": 1}
    assert values["shard"] == [1, 2]
    assert set(values) == {field.name for field in dataclasses.fields(Settings)}


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"rules": "offical"}, "--rules 'offical' is unknown"),
        ({"select": "test"}, "--select 'test' is unknown"),
        ({"precision": "fp16"}, "--precision 'fp16' is unknown"),
        ({"preset": "smokey"}, "--preset 'smokey' is unknown"),
        ({"limit": 0}, "--limit must be positive, not 0"),
        ({"jobs": -1}, "--jobs must be positive, not -1"),
        ({"jobs": 0}, "--jobs must be positive, not 0"),
        ({"threads": -1}, "--threads must be positive, not -1"),
    ],
)
def test_a_value_out_of_range_is_one_line(option: dict[str, Any], message: str) -> None:
    with pytest.raises(SettingsError, match=message) as caught:
        resolve(option)
    assert "\n" not in str(caught.value)
