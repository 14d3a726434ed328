"""Presets: what they change in a method's config."""

from __future__ import annotations

from benchmarks.runner.presets import PRESETS, Preset
from tests.runner.probe import ProbeConfig


def test_presets_set_what_a_config_has() -> None:
    from methods.pros import ProSConfig
    from methods.sre_clip import SreClipConfig

    preset = Preset("p", "", steps=30, batch_size=32, validations=4)
    wanted = {"steps": 30, "batch_size": 32, "stage1_batch_size": 32, "validate_every": 8, "patience": 0}
    assert preset.changes(ProSConfig) == wanted
    assert "stage1_batch_size" not in preset.changes(SreClipConfig)
    assert preset.changes(ProbeConfig) == {"steps": 30}
    assert Preset("p", "", steps=30, batch_size=320).changes(ProSConfig)["batch_size"] == 50
    assert PRESETS["full"].changes(ProSConfig) == {"steps": 0}
