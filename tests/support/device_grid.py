"""What the tests of the simulated device and those of a GPU ask of every method."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch

from benchmarks.protocols.training import training_data
from benchmarks.runner.resources import Resources
from benchmarks.runner.settings import resolve
from methods.interface import Method
from methods.parts.feeding import unit_range
from methods.registry import METHODS
from tests.support.every import METHOD_NAMES, small

#: Every method with its paper settings and, where there are any, those of its released code.
VARIANTS = [
    (name, variant) for name in METHOD_NAMES for variant in dict.fromkeys(["paper", *METHODS.get(name).variants])
]


def bench(folder: Path, device: str, precision: str = "float32") -> Resources:
    settings = {"methods": METHOD_NAMES, "protocols": ("uda",), "datasets": "tiny", "preset": "smoke", "jobs": 1}
    settings |= {"backbone": str(folder), "out": "unused", "threads": 1, "device": device, "precision": precision}
    return Resources(resolve(settings))


def trained(name: str, variant: str, bench: Resources, **more: Any) -> tuple[Method, torch.Tensor, list[str]]:
    """A method after a few steps of UDA (the protocol that shows target images), images and class names.

    ``more``: other settings, where the method has them, and ``log``.
    """
    kind, log = METHODS.get(name), more.pop("log", lambda **_: None)
    task = bench.task("tiny", "uda", bench.splits("tiny", "uda")[0])
    pixels = bench.pixels("tiny")
    fields = {field.name for field in dataclasses.fields(kind.Config)}
    changes = {**small(kind), **{field: value for field, value in more.items() if field in fields}}
    config = kind.Config(**{**dict(kind.variants).get(variant, {}), **changes})
    method = kind(bench.backbone, config, bench.device)
    torch.manual_seed(0)
    method.fit(training_data(task, pixels, lambda method, question: 0.5), seed=0, log=log)
    return method, unit_range(pixels[task.train[:5]]), list(task.class_names)


def answers(method: Method, pixels: torch.Tensor, names: list[str]) -> dict[str, torch.Tensor]:
    """What a run asks of a method."""
    with torch.no_grad():
        return {
            "embeddings": method.encode_images(pixels),
            "raw": method.encode_raw(pixels),
            "classes": method.encode_classes(names),
            "logits": method.classify(pixels, names),
        }
