"""What another process must import so that it finds the methods, data sets and protocols of a run by name."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence

from benchmarks.datasets.registry import DATASETS
from benchmarks.protocols.registry import PROTOCOLS
from benchmarks.runner.settings import Settings
from methods.registry import METHODS, Registry

REGISTRIES: dict[str, Registry] = {"methods": METHODS, "datasets": DATASETS, "protocols": PROTOCOLS}


def named(settings: Settings) -> list[tuple[str, str, str]]:
    """What another process must know by name to work on this run: (kind, name, ``module:attribute``)."""
    entries = []
    for kind, registry in REGISTRIES.items():
        chosen = getattr(settings, kind)
        for entry in registry.entries():
            target = entry.target
            if not isinstance(target, str):
                module, name = getattr(target, "__module__", "?"), getattr(target, "__qualname__", "?")
                target = f"{module}:{name}"
            if entry.name in chosen or chosen == ("all",):
                entries.append((kind, entry.name, target))
    return entries


def unnamed(settings: Settings) -> list[str]:
    """What of it another process could not import: classes made in a notebook, in a function, by ``exec``."""
    alone = []
    for _, name, target in named(settings):
        module, _, path = target.partition(":")
        origin = getattr(sys.modules.get(module), "__file__", None) if module in sys.modules else find_module(module)
        if "<locals>" in path or origin is None:
            alone.append(name)
    return alone


def find_module(name: str) -> object | None:
    """The spec of a module that is not loaded, or None."""
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError):
        return None


def register_missing(known: Sequence[tuple[str, str, str]]) -> None:
    """In another process: register what :func:`named` lists and is not registered here."""
    for kind, name, target in known:
        if name not in REGISTRIES[kind].names():
            REGISTRIES[kind].add(name, target)
