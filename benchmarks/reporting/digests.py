"""Digests of what a report is made from, kept in its folder, so that nothing unchanged is written or drawn again.

``inputs.json`` in the report's folder holds the digest of the last report's inputs with the sha256 of every file that
it wrote, and the same for each plot. A file that is missing or was altered counts as changed.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.reporting.data import ReportData
from benchmarks.reporting.error_analysis import synsets_of
from benchmarks.store.files import is_file, write_atomically
from benchmarks.store.weights import FIT, FOLDER

#: Name of the file among those of a report.
INPUTS = "inputs.json"

#: Packages whose version may change what a report looks like.
_PACKAGES = ("jinja2", "matplotlib", "nltk", "numpy", "pandas", "pillow", "scipy")


def digest(*values: Any) -> str:
    """A hash of plain values, arrays, paths, dataclasses and containers of them, and of the code that reports."""
    state = hashlib.sha256(_code().encode())
    for value in values:
        _feed(state, value)
    return state.hexdigest()


def _feed(state: Any, value: Any) -> None:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        state.update(type(value).__name__.encode())
        for field in dataclasses.fields(value):
            _feed(state, getattr(value, field.name))
    elif isinstance(value, np.ndarray):
        state.update(f"{value.dtype}{value.shape}".encode())
        state.update(np.ascontiguousarray(value).tobytes())
    elif isinstance(value, Mapping):
        state.update(f"map {len(value)}".encode())
        for key, item in value.items():
            _feed(state, key)
            _feed(state, item)
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        state.update(f"list {len(value)}".encode())
        for item in value:
            _feed(state, item)
    else:
        value = value.item() if isinstance(value, np.generic) else value
        state.update(f"{type(value).__name__} {value!r};".encode())


@functools.cache
def _code() -> str:
    """A hash of the code and packages that make a report."""
    state = hashlib.sha256()
    root = Path(__file__).parents[1]
    folders = (root / "reporting", root / "published", root / "recipes", root / "evaluation")
    for path in sorted(path for folder in folders for path in folder.rglob("*")):
        if path.is_file() and path.suffix in (".py", ".jinja", ".css", ".js", ".csv", ".toml"):
            state.update(path.name.encode() + path.read_bytes())
    for name in _PACKAGES:
        try:
            state.update(f"{name} {importlib.metadata.version(name)}".encode())
        except importlib.metadata.PackageNotFoundError:
            continue
    return state.hexdigest()


def report_digest(data: ReportData) -> str:
    """A digest of everything a report without images is made from, the stored results included."""
    store = data.store
    facts: list[Any] = [data.command, data.resamples, *map(_column, data.results.items())]
    facts += [sorted(synsets_of(name).items()) for name in sorted({*map(str, data.results["dataset"])})]
    if store is not None:
        pack = [store.root / name for name in ("pack.json", "resolved.json")]
        cards = sorted((store.root / "cards").rglob("*.json"))
        for path in (*pack, *cards):
            with contextlib.suppress(OSError):  # gone, or what this user may not read
                facts.append((path.name, path.read_bytes()))
        for path in sorted([*(store.root / "cells").rglob("*"), *(store.root / FOLDER).glob(f"*/*/{FIT}")]):
            if is_file(path) and not path.name.startswith("."):
                state = path.stat()
                facts.append(f"{path.name} {state.st_size} {state.st_mtime_ns}")
    return digest(facts)


def _column(named: tuple[Any, pd.Series]) -> tuple[Any, ...]:
    """A column of results as its name, its distinct values, and the place of each row's value among these."""
    name, column = named
    if column.dtype.kind in "fiub":
        return name, column.to_numpy()
    codes, values = pd.factorize(column, use_na_sentinel=False)
    return name, codes, list(values)


class PlotDigests:
    """Files of plots by the digest of what was drawn, read from and kept for ``inputs.json``."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._before: dict[str, dict[str, str]] = {}
        self._now: dict[str, dict[str, str]] = {}
        self._report: dict[str, Any] = {}
        try:
            stored = json.loads((folder / INPUTS).read_text(encoding="utf-8"))
            self._before = {str(key): dict(files) for key, files in stored["plots"].items()}
            self._report = dict(stored["report"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            self._before, self._report = {}, {}

    def files(self, key: str) -> list[Path] | None:
        """The files of a plot drawn before from the same data, if all are as they were written."""
        stored = self._before.get(key)
        return None if stored is None else self._unchanged(stored)

    def keep(self, key: str, files: Iterable[Path]) -> None:
        """Note a plot's files."""
        self._now[key] = self._hashes(files)

    def report(self, key: str) -> tuple[list[Path], list[str]] | None:
        """Files and problems of the last report, if it was made from the same inputs and no file has changed."""
        if self._report.get("digest") != key:
            return None
        files = self._unchanged(self._report.get("files", {}))
        return None if files is None else (files, list(self._report.get("problems", [])))

    def write(self, key: str, files: Iterable[Path], problems: Sequence[str]) -> None:
        """Write ``inputs.json``; ``key`` is the report's digest, empty for one that is always written anew."""
        report = {"digest": key, "files": self._hashes(files), "problems": list(problems)}
        text = json.dumps({"report": report, "plots": self._now}, indent=1, ensure_ascii=False) + "\n"
        write_atomically(self._folder / INPUTS, text.encode())

    def _hashes(self, files: Iterable[Path]) -> dict[str, str]:
        return {path.relative_to(self._folder).as_posix(): _sha256(path) for path in files}

    def _unchanged(self, stored: Mapping[str, str]) -> list[Path] | None:
        files = [self._folder / name for name in stored]
        try:
            same = all(_sha256(path) == stored[name] for path, name in zip(files, stored, strict=True))
        except OSError:
            return None
        return files if same else None


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
