"""Every registered method and protocol, small enough to train in a test; what the guard and grid tests share."""

from __future__ import annotations

import dataclasses
from typing import Any

from benchmarks.protocols.registry import PROTOCOLS
from benchmarks.store.records import CellId
from methods.interface import Method
from methods.registry import METHODS

METHOD_NAMES = tuple(METHODS.names())
PROTOCOL_NAMES = tuple(PROTOCOLS.names())

#: Two optimiser steps on twelve images each (one step a stage), validated after each; for configs with the field.
SMALL: dict[str, Any] = {"steps": 2, "batch_size": 12, "stage1_batch_size": 12, "validate_every": 1}


def small(method: type[Method]) -> dict[str, Any]:
    """The part of :data:`SMALL` that a method's config knows; empty for a method without training."""
    fields = {field.name for field in dataclasses.fields(method.Config)}
    return {name: value for name, value in SMALL.items() if name in fields}


def small_set(names: tuple[str, ...] = METHOD_NAMES) -> tuple[tuple[str, Any], ...]:
    """:data:`SMALL` as ``--set`` pairs for these methods."""
    return tuple((f"{name}.{field}", value) for name in names for field, value in small(METHODS.get(name)).items())


class Silent:
    """A watcher of a sweep that keeps quiet."""

    def cell(self, cell: CellId, status: str, reason: str = "") -> None: ...

    def fitting(self, group: Any) -> None: ...

    def log(self, **numbers: Any) -> None: ...

    def images(self, count: int) -> None: ...
