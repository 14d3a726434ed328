"""The plan of a run: which cells there are, and which of them share a fitted model.

Planning loads the data sets' tables and the method classes but fits, encodes and ranks nothing. What comes out is plain
data that can be listed, stored, cut into shards and sent to other processes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import traceback
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from benchmarks.datasets.base import DatasetError
from benchmarks.datasets.registry import DATASETS
from benchmarks.protocols.selection import refused, selection_question
from benchmarks.protocols.task import VALIDATED_WITHIN, Classification, Task
from benchmarks.recipes import paper_config
from benchmarks.runner.failures import describe
from benchmarks.runner.presets import has_field
from benchmarks.runner.rates import RateChoice, choose
from benchmarks.runner.resources import Resources
from benchmarks.runner.settings import Settings, SettingsError, config_changes, nearest
from benchmarks.runner.tuned import RateQuestion, TunedFileError, TunedRate, tuned_rates
from benchmarks.store.records import SCORING, CellId, content_key
from methods.interface import Method, stated
from methods.parts.bounds import faults
from methods.parts.capabilities import shortfall
from methods.registry import METHODS

#: Seed of the trainings that pick a learning rate, whatever the seeds of the run: all seeds of a method and training
#: data then have the rate that one search picked.
SEARCH_SEED = 0


@dataclass(frozen=True)
class Cell:
    """One score to be measured: a method's config on one split of a protocol, with one seed.

    ``inputs`` (JSON-able) is all that determines the score; ``galleries`` are the task's questions with their leading
    metrics; ``fit_id`` names the training data and what selects the model.
    """

    id: CellId
    inputs: Mapping[str, Any]
    galleries: Mapping[str, tuple[str, ...]]
    fit_id: str

    @cached_property
    def key(self) -> str:
        """Content key of the record."""
        return content_key(self.inputs)


@dataclass(frozen=True)
class FitGroup:
    """Cells that one fitted model serves.

    ``config`` is an instance of the method's ``Config``; ``choice`` says what takes the place of
    ``config.learning_rate``. A group of ``tuning`` is searched and not fitted: the validation score of a rate is its
    mean over the group's task and those of the ``partners`` (cells on other splits). ``unfit``: why
    the method cannot run on the backbone, in one line; the cells are then not applicable, and nothing is fitted.
    """

    method: str
    config: Any
    choice: RateChoice
    dataset: str
    seed: int
    fit_id: str
    cells: tuple[Cell, ...]
    tuning: bool = False
    partners: tuple[Cell, ...] = ()
    unfit: str = ""

    @property
    def learning_rates(self) -> tuple[float, ...]:
        """Fixed rates of the choice: several are tried, a single one is taken as it is."""
        return self.choice.rates


@dataclass(frozen=True)
class Broken:
    """Cells that cannot even be planned (a data set is missing, a method cannot be imported), as one."""

    cell: Cell
    reason: str
    traceback: str


@dataclass(frozen=True)
class Plan:
    """What a run will do. ``skipped``: data sets that ``--datasets all`` did not find, and protocols
    (``DATASET/PROTOCOL``) of which a data set has no task, each with the reason."""

    groups: tuple[FitGroup, ...]
    broken: tuple[Broken, ...] = ()
    skipped: Mapping[str, str] = dataclasses.field(default_factory=dict)

    @property
    def cells(self) -> list[Cell]:
        """All cells in the order they run."""
        return [cell for group in self.groups for cell in group.cells]


@dataclass(frozen=True)
class Arm:
    """One row of an ablation: the switched factor's name, what it changes, and the protocols (None: the run's)."""

    name: str = ""
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    protocols: tuple[str, ...] | None = None


def make_config(
    method: type[Method], settings: Settings, changes: Mapping[str, Any], paper: Mapping[str, Any] | None = None
) -> Any:
    """A method's config: the paper's defaults, then the named variant, then the preset's budget, then ``paper`` (its
    values for a data set, under ``--preset full``), then ``--set``.

    Raises :class:`~benchmarks.runner.settings.SettingsError`, in one line that names the setting, for a value that no
    training can use (:mod:`methods.parts.bounds`).
    """
    values = {
        **method.variants.get(settings.variant, {}),
        **settings.budget.changes(method.Config),
        **(paper or {}),
        **changes,
    }
    try:
        config = method.Config(**values)
    except ValueError as error:  # the method's own check
        raise SettingsError(f"--set: {' '.join(str(error).split())}") from error
    if wrong := faults(config):
        raise SettingsError("; ".join(f"--set {method.card.name}.{field} {reason}" for field, reason in wrong))
    return config


def plan(settings: Settings, resources: Resources, arms: Mapping[str, Sequence[Arm]] | None = None) -> Plan:
    """Plan a run: each method as configured, or, where ``arms`` has it, once for each of its arms.

    Raises :class:`~benchmarks.runner.settings.SettingsError` for a ``--set`` or ``--variant`` that fits no method, or a
    backbone that cannot be loaded or that no chosen method can run on. A data set or method that cannot be used becomes
    :class:`Broken` cells instead.
    """
    methods, unusable = _methods(settings)
    changes = config_changes(settings, {name: method.Config for name, method in methods.items()})
    datasets = DATASETS.defaults() if settings.datasets == ("all",) else settings.datasets
    runs = {dataset: _configured(settings, methods, changes, arms or {}, dataset) for dataset in datasets}
    broken: list[Broken] = []
    skipped: dict[str, str] = {}
    tuned = _tuned(settings, resources)
    groups: dict[tuple[Any, ...], list[Cell]] = {}
    choices: dict[tuple[Any, ...], RateChoice] = {}
    offered: set[str] = set()  # query domains and transfers of the protocols
    for dataset in datasets:
        try:
            data_hash = str(resources.dataset_facts(dataset)["data_hash"])
        except Exception as error:
            if settings.datasets == ("all",) and isinstance(error, DatasetError):
                skipped[dataset] = str(error)
                continue
            failed = [(name, protocol) for protocol in settings.protocols for name in settings.methods]
            broken += [_broken(settings, name, dataset, protocol, error) for name, protocol in failed]
            continue
        broken += [
            _broken(settings, name, dataset, protocol, error)
            for protocol in settings.protocols
            for name, error in unusable.items()
        ]
        for protocol in settings.protocols:
            try:
                tasks = [resources.task(dataset, protocol, split) for split in resources.splits(dataset, protocol)]
            except Exception as error:
                broken += [_broken(settings, name, dataset, protocol, error) for name in methods]
                continue
            offered |= set(resources.all_splits(dataset, protocol))
            if not tasks:
                reason = "it has none of --splits" if settings.splits else "the data set has no task of this protocol"
                skipped[f"{dataset}/{protocol}"] = reason
            for reason in (refused(task, settings.select) for task in tasks):
                if reason:
                    raise SettingsError(f"--select {settings.select}: {reason}")
            for number, (name, arm, config, fixed) in enumerate(runs[dataset]):
                if arm.protocols is not None and protocol not in arm.protocols:
                    continue
                of_protocol = choose(
                    settings, name, config, dataset=dataset, protocol=protocol, data_hash=data_hash,
                    version=methods[name].version, fixed=fixed, tuned=tuned,
                )  # fmt: skip
                for seed in settings.seeds:
                    for task in tasks:
                        choice = searchable(settings, task, config, of_protocol)
                        cell = make_cell(
                            settings, resources, methods[name], name, config, choice, dataset, task, seed, arm.name
                        )
                        # the checkpoints of a search's trials are scored on the target images of one task
                        scored = settings.selectors and choice.searched and task.target is not None
                        alone = (task.split,) if scored else ()
                        group = (dataset, number, seed, cell.fit_id, *choice.shared, *alone)
                        groups.setdefault(group, []).append(cell)
                        choices[group] = choice  # cells of one fit share the validation task
    named = settings.splits if settings.split_count is None else ()
    if offered and (unknown := [name for name in named if name not in offered]):
        raise SettingsError(f"--splits {unknown[0]!r} is unknown; {nearest(unknown[0], offered)}")
    fits = []
    arm_of: dict[str, int] = {}
    for group, cells in sorted(groups.items(), key=lambda item: item[0][:3]):
        dataset, number, seed, fit_id = group[:4]
        name, _, config, _ = runs[dataset][number]
        # an arm that sets the very rate that another one has is the same cell (keys are known once all cells are made)
        own = tuple(cell for cell in cells if arm_of.setdefault(cell.key, number) == number)
        if own:
            reason = unfit(methods[name], config, resources)
            choice = RateChoice() if reason else choices[group]
            fits.append(FitGroup(name, config, choice, dataset, seed, fit_id, own, unfit=reason))
    if fits and not broken and all(group.unfit for group in fits):
        raise SettingsError(f"--backbone: {'; '.join(dict.fromkeys(group.unfit for group in fits))}")
    return Plan(tuple(fits), tuple(broken), skipped)


def unfit(method: type[Method], config: Any, resources: Resources) -> str:
    """Why a method of this config cannot run on the backbone, in one line; "" if it can."""
    facts = resources.backbone_facts
    return shortfall(method.card.name, method.needs_of(config), facts.name, facts.offers)


def _configured(
    settings: Settings,
    methods: Mapping[str, type[Method]],
    changes: Mapping[str, Mapping[str, Any]],
    arms: Mapping[str, Sequence[Arm]],
    dataset: str,
) -> list[tuple[str, Arm, Any, bool]]:
    """``(method, arm, config, whether its learning rate is fixed)`` of all that runs on a data set; of equal arms the
    first."""
    made: list[tuple[str, Arm, Any, bool]] = []
    for name, method in methods.items():
        paper = paper_config(name, dataset) if settings.preset == "full" else {}
        for arm in arms.get(name, (Arm(),)):
            config = make_config(method, settings, {**changes[name], **arm.changes}, paper)
            fixed = (
                not has_field(method.Config, "learning_rate")
                or not picks_rates(settings)
                or "learning_rate" in {**changes[name], **arm.changes}
            )
            if (name, config, fixed) not in [(other, *rest) for other, _, *rest in made]:
                made.append((name, arm, config, fixed))
    return made


def picks_rates(settings: Settings) -> bool:
    """Whether a run may take another learning rate than the configured one."""
    return settings.search or settings.budget.tuned or bool(settings.budget.learning_rates)


def _tuned(settings: Settings, resources: Resources) -> dict[RateQuestion, TunedRate]:
    """The backbone's tuned rates, where the run may take them."""
    if settings.search or not settings.budget.tuned:
        return {}
    try:
        return tuned_rates(resources.backbone_facts.identity, preset=settings.preset)
    except TunedFileError as error:
        raise SettingsError(str(error)) from error


def searchable(settings: Settings, task: Task, config: Any, choice: RateChoice) -> RateChoice:
    """The choice on a task: where nothing can pick one of several rates, the configured rate alone."""
    if choice.searched and selection_question(task, settings.select) is None:
        return RateChoice("config", (config.learning_rate,))
    return choice


def unvalidated(settings: Settings, task: Task, method: type[Method]) -> str:
    """What a missing validation task means for a method's score, in one line; "" where it has no effect."""
    if selection_question(task, settings.select) is not None or not method.trained:
        return ""
    kept = "" if settings.select == "last" else ", the last step kept"
    searched = settings.search or len(settings.budget.learning_rates) > 1
    rate = "learning rate as configured, nothing searched" if searched else "nothing is chosen on it"
    return f"no validation task: {rate}{kept}"


def unfit_notes(plan: Plan) -> list[str]:
    """A line for each reason for which methods of a plan cannot run on the backbone."""
    return list(dict.fromkeys(group.unfit for group in plan.groups if group.unfit))


def validation_notes(plan: Plan, settings: Settings, resources: Resources) -> list[str]:
    """A line for each validation task of a plan that is missing or not the protocol's usual one."""
    notes: dict[tuple[str, str], list[str]] = {}
    for group in (one for one in plan.groups if not one.unfit):
        for cell in group.cells:
            task = resources.task(cell.id.dataset, cell.id.protocol, cell.id.split)
            method = METHODS.get(group.method)
            of_task = [note for note in task.notes if method.trained and note.startswith(VALIDATED_WITHIN)]
            for note in (*of_task, unvalidated(settings, task, method)):
                where = f"{cell.id.protocol}/{cell.id.split}"
                if note and where not in (places := notes.setdefault((cell.id.dataset, note), [])):
                    places.append(where)
    return [f"{dataset} {', '.join(places)}: {note}" for (dataset, note), places in notes.items()]


def make_cell(
    settings: Settings,
    resources: Resources,
    method: type[Method],
    name: str,
    config: Any,
    choice: RateChoice,
    dataset: str,
    task: Task,
    seed: int,
    ablation: str = "",
) -> Cell:
    """The cell of a method's config (registered as ``name``) on a task of a data set."""
    backbone, source = resources.backbone_facts, resources.dataset(dataset)
    # oracle validates on this very task's test retrieval, so no other task shares the model
    own = f"-{task.protocol}-{task.split}" if settings.select == "oracle" else ""
    values = stated(config)
    cell = CellId(
        method=name,
        variant=settings.variant if settings.variant in method.variants else "paper",
        config=values,
        backbone=backbone.name,
        dataset=dataset,
        protocol=task.protocol,
        rules=settings.rules,
        split=task.split,
        select=settings.select,
        seed=seed,
        limit=settings.limit,
        ablation=ablation,
        shots=shots_text(settings),
    )
    inputs: dict[str, Any] = {
        "scoring": SCORING,
        "method": {
            "name": name,
            "version": method.version,
            "config": values,
            **choice.inputs(),
            **augmentation_inputs(config),
            "files": resources.file_hashes(method, config),
        },
        "backbone": {
            **backbone.identity,
            "preprocessing": backbone.preprocessing,
            "precision": backbone.precision,
            **({"compiled": True} if settings.compile else {}),
        },
        "dataset": dict(resources.dataset_facts(dataset)),  # a copy: what a method adds is its own
        "task": {
            "protocol": task.protocol,
            "split": task.split,
            "rules": task.rules,
            "fit_id": task.fit_id + own,
            "retrievals": {question.name: _hash(question.query, question.gallery) for question in task.retrievals},
            "classifications": {c.name: _hash(c.rows, c.class_names, c.seen) for c in task.classifications},
        },
        "select": settings.select,
        "seed": seed,
    }
    if settings.shots is not None:
        inputs["task"]["shots"] = {"count": settings.shots, "draw": settings.shots_draw}
    if reason := unfit(method, config, resources):
        inputs["not_applicable"] = reason  # a later version may run it
    if method.reads_synsets:
        inputs["dataset"]["synsets"] = _hash(sorted(source.synsets.items()), source.synsets_published)
    leading = {question.name: source.card.headline.metrics() for question in task.retrievals}
    leading |= {question.name: classification_metrics(question) for question in task.classifications}
    return Cell(cell, inputs, leading, shown_to(method, task, settings.select).fit_id + own)


def shown_to(method: type[Method], task: Task, select: str) -> Task:
    """What a method is shown of a task: without target images where neither ``fit`` nor ``select`` looks at them."""
    return task if method.reads_target or select not in ("val", "last") else task.without_target()


def augmentation_inputs(config: Any) -> dict[str, int]:
    """What the key of a score says of its augmentation: its version, where training images are augmented."""
    augmentation = getattr(config, "augmentation", None)
    return {"augmentation": augmentation.version} if augmentation is not None and augmentation.active else {}


def search_inputs(group: FitGroup) -> dict[str, Any]:
    """All that determines which learning rate is picked (JSON-able): a cell's inputs without its seed and questions."""
    inputs = group.cells[0].inputs
    kept = {name: inputs[name] for name in ("scoring", "method", "backbone", "dataset", "select")}
    partners = {"partners": [cell.fit_id for cell in group.partners]} if group.partners else {}
    return {**kept, "fit_id": group.fit_id, "rules": inputs["task"]["rules"], **partners}


def search_key(group: FitGroup) -> str | None:
    """Key of the learning-rate search that a group needs; the same for all seeds. None if it needs none."""
    return content_key(search_inputs(group)) if group.choice.searched else None


def shard(plan: Plan, number: int, count: int) -> Plan:
    """Shard ``number`` (from 1) of ``count``: the same part for the same command on every machine.

    Groups are identified by content. Cells of one fitted model, seeds of one learning-rate search and the groups of a
    method that shares its encoded images stay together. The units of each method and data set are assigned in turn,
    so the shards cost about the same. Every shard reports what cannot be planned.
    """
    units: dict[tuple[str, str], dict[str, list[FitGroup]]] = {}
    for group in plan.groups:
        units.setdefault((group.dataset, group.method), {}).setdefault(unit_key(group), []).append(group)
    kept: set[int] = set()
    for owner, of_owner in units.items():
        first = int(content_key({"owner": owner}), 16)
        for place, key in enumerate(sorted(of_owner)):
            if (first + place) % count == number - 1:
                kept |= {id(group) for group in of_owner[key]}
    return dataclasses.replace(plan, groups=tuple(group for group in plan.groups if id(group) in kept))


def unit_key(group: FitGroup) -> str:
    """The same for groups that should run in one place: by search, or by method and seed where nothing is trained."""
    if (search := search_key(group)) is not None:
        return search
    inputs = group.cells[0].inputs
    kept = {name: inputs[name] for name in ("method", "backbone", "dataset", "select", "seed")}
    trained = METHODS.get(group.method).trained
    return content_key({**kept, "rules": inputs["task"]["rules"], "fit_id": group.fit_id if trained else ""})


def classification_metrics(question: Classification) -> tuple[str, ...]:
    """The metrics that lead a classification's tables: accuracy, or the harmonic mean and its two parts."""
    return ("accuracy[image]",) if question.seen is None else ("h[image]", "seen[image]", "unseen[image]")


def unplanned_cells(settings: Settings, plan: Plan) -> Iterator[Cell]:
    """The placeholder cells of :class:`Broken` for all that this plan could plan; earlier runs may have left them."""
    for group in {(cell.id.method, cell.id.dataset, cell.id.protocol) for cell in plan.cells}:
        yield _placeholder(settings, *group)


def _methods(settings: Settings) -> tuple[dict[str, type[Method]], dict[str, Exception]]:
    usable: dict[str, type[Method]] = {}
    unusable: dict[str, Exception] = {}
    for name in settings.methods:
        try:
            usable[name] = METHODS.get(name)
        except ImportError as error:
            unusable[name] = error
    known = {"paper"} | {variant for method in usable.values() for variant in method.variants}
    if settings.variant not in known:
        raise SettingsError(f"--variant {settings.variant!r}: no method has it; {nearest(settings.variant, known)}")
    return usable, unusable


def _hash(*parts: Any) -> str:
    """16 digits that name row numbers and class names."""
    digest = hashlib.sha256()
    for part in parts:
        rows = isinstance(part, np.ndarray)
        digest.update((np.ascontiguousarray(part, dtype=np.int64).tobytes() if rows else repr(part).encode()) + b"|")
    return digest.hexdigest()[:16]


def _placeholder(settings: Settings, method: str, dataset: str, protocol: str) -> Cell:
    """A placeholder cell for all splits; nothing more is known when nothing could be loaded."""
    cell = CellId(
        method=method,
        variant=settings.variant,
        config={},
        backbone=settings.backbone,
        dataset=dataset,
        protocol=protocol,
        rules=settings.rules,
        split="*",
        select=settings.select,
        seed=settings.seeds[0],
        limit=settings.limit,
        shots=shots_text(settings),
    )
    about = {name: value for name, value in dataclasses.asdict(cell).items() if name != "shots" or value}
    return Cell(cell, {"unplanned": about}, {"*": ()}, "")


def shots_text(settings: Settings) -> str:
    """The shots as a record states them: ``""``, ``"4"`` or ``"4 draw 1"``."""
    if settings.shots is None:
        return ""
    return f"{settings.shots} draw {settings.shots_draw}" if settings.shots_draw else str(settings.shots)


def _broken(settings: Settings, method: str, dataset: str, protocol: str, error: Exception) -> Broken:
    return Broken(
        _placeholder(settings, method, dataset, protocol), describe(error), "".join(traceback.format_exception(error))
    )
