"""The papers' settings: a settings file for each table of the papers, and what they say of a method on a data set.

`benchmarks.runner.settings` runs these files; reports read here how a paper trained.
"""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

#: Folder of the recipes.
RECIPES = Path(__file__).parent

#: Data sets that split the images of another one in their own way: a paper's settings are the same for both.
SAME_IMAGES: Mapping[str, str] = {
    "domainnet_245": "domainnet",
    "sketchy_random": "sketchy",
    "visda_test": "visda",
}


def recipes() -> list[str]:
    """Names of the packaged recipes."""
    return sorted(path.stem for path in RECIPES.glob("*.toml"))


def paper_recipes(methods: Iterable[str], datasets: Iterable[str]) -> list[Mapping[str, Any]]:
    """The recipes, as their files state them, of any of these methods on any of these data sets."""

    def images(names: Iterable[str]) -> set[str]:
        return {SAME_IMAGES.get(name, name) for name in names}

    wanted = images(datasets)
    return [one for one in _all_recipes() if set(one["methods"]) & set(methods) and images(one["datasets"]) & wanted]


def paper_config(method: str, dataset: str) -> dict[str, Any]:
    """The paper's config of a method on a data set, as its recipe states it; empty if no paper has that pair."""
    config: dict[str, Any] = {}
    for recipe in paper_recipes((method,), (dataset,)):
        for key, value in recipe["set"].items():
            if not isinstance(value, dict):
                config[key] = value
            elif key == method:
                config |= value
            else:  # a field of another method keeps that method's name
                config |= {f"{key}.{name}": item for name, item in value.items()}
    return config


@functools.cache
def _all_recipes() -> tuple[Mapping[str, Any], ...]:
    return tuple(tomllib.loads((RECIPES / f"{name}.toml").read_text(encoding="utf-8")) for name in recipes())
