"""What a run works on, loaded once and shared by its cells: the backbone, data sets, tasks and decoded images."""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cached_property
from typing import TYPE_CHECKING, Any

from benchmarks.backbones import sources
from benchmarks.datasets.base import Dataset, dataset_root
from benchmarks.datasets.contents import tree_hash
from benchmarks.datasets.image_cache import cache_folder
from benchmarks.datasets.pixels import CACHE_SHARE, PixelCache
from benchmarks.datasets.registry import DATASETS
from benchmarks.protocols.registry import PROTOCOLS
from benchmarks.protocols.task import (
    Task,
    limited,
    with_shots,
    with_validation_limit,
    without_unanswerable_validation,
)
from benchmarks.runner.backbone_facts import BackboneFacts, backbone_facts
from benchmarks.runner.machine import pick_device, pick_precision
from benchmarks.runner.settings import Settings, SettingsError
from benchmarks.store.records import content_key
from methods.interface import Method
from methods.parts.feature_cache import process_cache

if TYPE_CHECKING:
    from methods.parts.backbone import Backbone


class LazyBackbone:
    """The backbone that the settings name, loaded when it is first used; its facts are known without loading it.

    Under the official rules its images are processed as in the released code, whatever its image processor says. Both
    attributes raise :class:`~benchmarks.runner.settings.SettingsError` naming the option for a backbone that cannot be
    loaded.
    """

    def __init__(self, settings: Settings, device: str) -> None:
        self._settings = settings
        self._device = device
        self._precision = pick_precision(settings.precision, device)

    @cached_property
    def facts(self) -> BackboneFacts:
        """Name, hashes, image processing and size."""
        try:
            facts = backbone_facts(self._settings.backbone, self._precision, lambda: self._as_stored)
        except SettingsError:
            raise
        except ValueError as error:  # BackboneError is one
            raise SettingsError(f"--backbone: {error}") from error
        if self._settings.rules == "official":
            facts = dataclasses.replace(facts, preprocessing=facts.processing.official().record())
        return facts

    @cached_property
    def loaded(self) -> Backbone:
        """The model, its tokenizer and its image processing."""
        backbone = self._as_stored
        if "facts" in vars(self) and backbone.identity != self.facts.identity:
            raise SettingsError(f"--backbone {self._settings.backbone}: its files have changed; run again")
        if self._settings.rules == "official":
            backbone.preprocessing = backbone.processing.official().record()
        return backbone

    @cached_property
    def _as_stored(self) -> Backbone:
        settings = self._settings
        try:
            backbone = sources.load(settings.backbone, device=self._device, precision=self._precision)
            return backbone.compile() if settings.compile else backbone
        except ValueError as error:  # BackboneError is one
            raise SettingsError(f"--backbone: {error}") from error


class Resources:
    """Loads each thing when it is first asked for. One a process."""

    def __init__(self, settings: Settings, backbone: LazyBackbone | None = None) -> None:
        self._settings = settings
        self.device = pick_device(settings.device)
        self._backbone = backbone or LazyBackbone(settings, self.device)
        self._datasets: dict[str, Dataset] = {}
        self._tasks: dict[tuple[str, str, str], Task] = {}
        self._pixels: dict[str, PixelCache] = {}
        self._facts: dict[str, dict[str, Any]] = {}
        self._files: dict[str, str] = {}
        cache = cache_folder()
        process_cache().folder = None if cache is None else cache / "features"

    @property
    def settings(self) -> Settings:
        """The settings of the run."""
        return self._settings

    @property
    def backbone(self) -> Backbone:
        """The backbone, loaded."""
        return self._backbone.loaded

    @property
    def backbone_facts(self) -> BackboneFacts:
        """What a plan needs of the backbone."""
        return self._backbone.facts

    def dataset(self, name: str) -> Dataset:
        """A checked data set; raises DatasetError if it is missing or breaks a rule of :meth:`Dataset.check`."""
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
        hashes = {}
        for name, path in sorted(method.files(config).items()):
            place = str(path)
            if place not in self._files:
                try:
                    self._files[place] = tree_hash(path)
                except OSError:
                    self._files[place] = ""
            hashes[name] = self._files[place]
        return hashes

    def all_splits(self, dataset: str, protocol: str) -> list[str]:
        """All splits of a protocol on a data set, in the protocol's order."""
        return PROTOCOLS.get(protocol).splits(self.dataset(dataset))

    def splits(self, dataset: str, protocol: str) -> list[str]:
        """The splits that a protocol runs on a data set: those of the settings, else the preset's number of them."""
        every = self.all_splits(dataset, protocol)
        chosen, count = self.settings.splits, self.settings.split_count
        if chosen and count is None:
            return [split for split in every if split in chosen]
        return every[: count or self.settings.budget.splits_of(protocol)]

    def task(self, dataset: str, protocol: str, split: str) -> Task:
        """A checked task under the run's rules and limit."""
        key = (dataset, protocol, split)
        if key not in self._tasks:
            source = self.dataset(dataset)
            task = PROTOCOLS.get(protocol).task(source, split, self.settings.rules)
            if self.settings.shots is not None:
                task = with_shots(task, source, self.settings.shots, self.settings.shots_draw)
            if self.settings.limit is not None:
                task = limited(task, source, self.settings.limit)
            if self.settings.validation_limit is not None:
                task = with_validation_limit(task, source, self.settings.validation_limit)
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
    """Where there is no folder for the cache: warn once, and run without it, workers too, until the block ends."""
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
