"""What a run works on, loaded once and shared by its cells: the backbone, data sets, tasks and decoded images."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from benchmarks.backbones import sources
from benchmarks.datasets.base import Dataset, dataset_root
from benchmarks.datasets.contents import tree_hash
from benchmarks.datasets.image_cache import cache_folder
from benchmarks.datasets.pixels import CACHE_SHARE, PixelCache
from benchmarks.datasets.registry import DATASETS
from benchmarks.protocols.registry import PROTOCOLS
from benchmarks.protocols.task import Classification, Retrieval, Task, without_unanswerable_validation
from benchmarks.runner.settings import Settings, SettingsError, spread
from benchmarks.store.records import content_key
from methods.interface import Method
from methods.parts.feature_cache import process_cache
from methods.registry import METHODS, Registry

if TYPE_CHECKING:
    from methods.parts.backbone import Backbone


class Resources:
    """Loads each thing when it is first asked for. One a process."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.device = pick_device(settings.device)
        self._datasets: dict[str, Dataset] = {}
        self._tasks: dict[tuple[str, str, str], Task] = {}
        self._pixels: dict[str, PixelCache] = {}
        self._facts: dict[str, dict[str, Any]] = {}
        self._files: dict[str, str] = {}
        cache = cache_folder()
        process_cache().folder = None if cache is None else cache / "features"

    @cached_property
    def backbone(self) -> Backbone:
        """The backbone; raises :class:`SettingsError` naming the option if it cannot be loaded.

        Under the official rules its images are processed as in the released code, whatever its image processor says.
        """
        settings = self.settings
        try:
            backbone = sources.load(settings.backbone, device=self.device, precision=settings.precision)
        except ValueError as error:  # BackboneError is one
            raise SettingsError(f"--backbone: {error}") from error
        if settings.rules == "official":
            backbone.preprocessing = backbone.processing.released().record()
        return backbone

    def spread(self) -> Settings:
        """The settings with jobs and threads shared out over this machine (:func:`benchmarks.runner.settings.spread`).

        One job, unless more are asked for, where something was registered that only this process has.
        """
        weights = sum(value.numel() * value.element_size() for value in self.backbone.model.parameters())
        settings, gpus = self.settings, 0
        if not settings.jobs and unnamed(settings):
            settings = dataclasses.replace(settings, jobs=1)
        if self.device.startswith("cuda"):
            gpus = torch.cuda.device_count() if self.device == "cuda" else 1
        return spread(settings, weights_mib=weights / 2**20, gpus=gpus)

    def dataset(self, name: str) -> Dataset:
        """A checked data set; raises DatasetError if it is not there or breaks a promise."""
        if name not in self._datasets:
            dataset = DATASETS.get(name)(dataset_root(self.settings.data_root, name))
            dataset.check()
            self._datasets[name] = dataset
        return self._datasets[name]

    def dataset_facts(self, name: str) -> dict[str, Any]:
        """What of a data set determines scores (JSON-able): its name and version, and hashes of its images with their
        classes, domains and splits, of the way they are decoded and of the classes' WordNet synsets."""
        if name not in self._facts:
            source = self.dataset(name)
            facts = {"name": name, "version": source.card.version, "data_hash": source.data_hash}
            self._facts[name] = facts | {"decoding": source.decoding, "synsets": _synsets_hash(source)}
        return self._facts[name]

    def file_hashes(self, method: type[Method], config: Any) -> dict[str, str]:
        """sha256 of every file that a method of this config reads beside images and backbone; "" for one that cannot
        be read (``fit`` says why)."""
        found = {}
        for name, path in sorted(method.files(config).items()):
            place = str(path)
            if place not in self._files:
                try:
                    self._files[place] = tree_hash(path)
                except OSError:
                    self._files[place] = ""
            found[name] = self._files[place]
        return found

    def splits(self, dataset: str, protocol: str) -> list[str]:
        """The splits a protocol runs on a data set, at most the preset's number."""
        return PROTOCOLS.get(protocol).splits(self.dataset(dataset))[: self.settings.budget.splits]

    def task(self, dataset: str, protocol: str, split: str) -> Task:
        """A checked task under the run's rules and limit."""
        key = (dataset, protocol, split)
        if key not in self._tasks:
            source = self.dataset(dataset)
            task = PROTOCOLS.get(protocol).task(source, split, self.settings.rules)
            if self.settings.limit is not None:
                task = limited(task, source, self.settings.limit)
            task = without_unanswerable_validation(task, source)
            task.check(source)
            self._tasks[key] = task
        return self._tasks[key]

    def pixels(self, dataset: str) -> PixelCache:
        """The data set's images under the backbone's image processing."""
        if dataset not in self._pixels:
            share = CACHE_SHARE / max(1, self.settings.jobs)
            source, rules = self.dataset(dataset), self.settings.rules
            inverted = source.released.inverted if rules == "official" else ()
            self._pixels[dataset] = PixelCache(source, self.backbone.processing, share, inverted)
        return self._pixels[dataset]


@contextmanager
def settled_cache(report: Callable[[str], None]) -> Iterator[None]:
    """Where there is no folder for the cache: say so once, and do without it, workers too, until the block ends."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        cache_folder()
    if not caught:
        yield
        return
    report(str(caught[0].message))
    before = os.environ.get("UCDR_BENCH_CACHE")
    os.environ["UCDR_BENCH_CACHE"] = "off"
    try:
        yield
    finally:
        if before is None:
            del os.environ["UCDR_BENCH_CACHE"]
        else:
            os.environ["UCDR_BENCH_CACHE"] = before


def _synsets_hash(dataset: Dataset) -> str:
    try:
        return content_key(dict(dataset.synsets))
    except Exception:  # WordNet is missing: every fit says so
        return ""


REGISTRIES: dict[str, Registry] = {"methods": METHODS, "datasets": DATASETS, "protocols": PROTOCOLS}


def named(settings: Settings) -> list[tuple[str, str, str]]:
    """What another process must know by name to work on this run: (kind, name, ``module:attribute``)."""
    known = []
    for kind, registry in REGISTRIES.items():
        chosen = getattr(settings, kind)
        for entry in registry.entries():
            target = entry.target
            if not isinstance(target, str):
                module, name = getattr(target, "__module__", "?"), getattr(target, "__qualname__", "?")
                target = f"{module}:{name}"
            if entry.name in chosen or chosen == ("all",):
                known.append((kind, entry.name, target))
    return known


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


def pick_device(name: str) -> str:
    """``auto`` is ``cuda`` where there is one, else ``cpu``; raises :class:`SettingsError` for what is not there.

    A device must keep what is put there: torch's ``meta`` does not.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.ones(1, device=name).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0]  # torch goes on with all it was built with
        raise SettingsError(f"--device {name} cannot be used here ({reason}); try --device cpu") from error
    return name


def limited(task: Task, dataset: Dataset, limit: int) -> Task:
    """The task with at most ``limit`` training, target, query and gallery images each, spread over the classes.

    Images are taken class by class in turn, in a fixed random order within a class, so all roles keep the same
    classes as long as the limit reaches them.
    """
    classes = dataset.table["class"].to_numpy()
    order = np.random.default_rng(0).permutation(len(classes))
    turn = np.empty(len(classes), dtype=np.int64)

    def few(rows: np.ndarray) -> np.ndarray:
        if len(rows) <= limit:
            return rows
        mine = rows[np.argsort(order[rows])]
        names = classes[mine]
        for name in np.unique(names):
            of_class = mine[names == name]
            turn[of_class] = np.arange(len(of_class))
        chosen = mine[np.lexsort((names, turn[mine]))][:limit]
        return np.sort(chosen)

    def retrieval(one: Retrieval) -> Retrieval:
        return dataclasses.replace(one, query=few(one.query), gallery=few(one.gallery))

    def classification(one: Classification) -> Classification:
        return dataclasses.replace(one, rows=few(one.rows))

    validation = task.validation
    if isinstance(validation, Retrieval):
        validation = retrieval(validation)
    elif validation is not None:
        validation = classification(validation)

    changes: dict[str, Any] = {
        "train": few(task.train),
        "target": None if task.target is None else few(task.target),
        "validation": validation,
        "classifications": tuple(classification(one) for one in task.classifications),
        "retrievals": tuple(retrieval(one) for one in task.retrievals),
        "notes": (*task.notes, f"limited to {limit} images a role"),
    }
    return dataclasses.replace(task, **changes)
