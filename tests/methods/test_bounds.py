"""A value that no training can have is refused in one line when the run is planned, whatever the method."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.runner.plan import make_config
from benchmarks.runner.settings import Settings, SettingsError
from methods.parts.bounds import Bound, bound_of, faults, fill, template_fault
from methods.registry import METHODS
from tests.support.every import METHOD_NAMES


def numbers(config: Any) -> list[dataclasses.Field[Any]]:
    return [f for f in dataclasses.fields(config) if type(getattr(config, f.name)) in (int, float)]


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_defaults_and_variants_are_in_bounds(name: str) -> None:
    method = METHODS.get(name)
    for changes in ({}, *method.variants.values(), *getattr(method, "ablations", {}).values()):
        assert faults(method.Config(**changes)) == []


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_no_method_takes_a_number_that_is_none_or_negative(name: str) -> None:
    method = METHODS.get(name)
    for field in numbers(method.Config()):
        kind = type(getattr(method.Config(), field.name))
        for wrong in (-1, -8) if kind is int else (-0.5, math.nan, math.inf, -math.inf):
            with pytest.raises(SettingsError) as caught:
                make_config(method, Settings(preset="full"), {field.name: wrong})
            assert field.name in str(caught.value)
            assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", METHOD_NAMES)
def test_choices_are_checked(name: str) -> None:
    method = METHODS.get(name)
    for field in dataclasses.fields(method.Config()):
        if "Literal" in str(field.type) or field.type in ("Sampler", "Statistics", "ReadOut"):
            with pytest.raises(SettingsError, match=f"{field.name} .*one of"):
                make_config(method, Settings(preset="full"), {field.name: "nonsense"})


@pytest.mark.parametrize("name", [n for n in METHOD_NAMES if hasattr(METHODS.get(n).Config(), "batch_size")])
def test_an_empty_batch_is_refused(name: str) -> None:
    with pytest.raises(SettingsError, match=r"batch_size must be at least 1, not 0"):
        make_config(METHODS.get(name), Settings(preset="full"), {"batch_size": 0})


@pytest.mark.parametrize(
    "template", ["a photo of a thing", "", "a {nam}", "a {} and a {name}", "a {name", "a } {}", "{0}"]
)
def test_every_template_must_have_one_place_for_the_name(template: str) -> None:
    assert template_fault(template)
    for name in METHOD_NAMES:
        method = METHODS.get(name)
        for field in dataclasses.fields(method.Config()):
            if field.name.endswith("template"):
                with pytest.raises(SettingsError, match="template") as caught:
                    make_config(method, Settings(preset="full"), {field.name: template})
                assert "\n" not in str(caught.value)


def test_both_places_for_a_name_are_taken() -> None:
    for template in ("a photo of a {}", "a photo of a {name}"):
        assert not template_fault(template)
        assert fill(template, "cat {x}") == "a photo of a cat {x}"
        make_config(METHODS.get("zero_shot"), Settings(preset="full"), {"template": template})
        make_config(METHODS.get("lora"), Settings(preset="full"), {"template": template})


def test_a_config_may_say_its_own_bounds() -> None:
    @dataclasses.dataclass(frozen=True)
    class Config:
        shift: float = 0.0
        scale: float = 2.0
        steps: int = 0

    Config.bounds = {"scale": Bound(low=-3, high=3)}  # type: ignore[attr-defined]
    assert faults(Config(shift=-1.0, scale=-2.5)) == [], "a number that starts at 0.0 may go either way"
    assert [name for name, _ in faults(Config(shift=math.nan, scale=-4.0, steps=-1))] == ["shift", "scale", "steps"]


@given(st.floats(allow_nan=True), st.floats(-10, 10), st.floats(-10, 10))
def test_a_bound_is_an_interval(value: float, low: float, high: float) -> None:
    assert Bound(low=low, high=high).holds(value) == (low <= value <= high)
    assert Bound(above=low, below=high).holds(value) == (low < value < high)
    assert not Bound().holds(math.nan)


def test_temperature_zero_is_clips_own_only_where_that_is_said() -> None:
    for name in ("coop", "lora", "vpt_deep", "full_finetune"):
        assert faults(METHODS.get(name).Config(temperature=0.0)) == []
    for name in ("pros", "ucdr_adapter", "sre_clip"):
        config = METHODS.get(name).Config(temperature=0.0)
        assert faults(config) == [("temperature", "must be above 0, not 0.0")]
    field = next(f for f in dataclasses.fields(METHODS.get("coop").Config) if f.name == "batch_size")
    assert str(bound_of(METHODS.get("coop").Config(), field)) == "at least 1"
