"""Tune once, use everywhere: search the learning rate of every method on validation data and keep it as data.

For each data set, protocol and method a search (:mod:`benchmarks.runner.rate_search`) is made on splits declared
here, before any score is seen: the first :data:`SPLITS` of each protocol in the protocol's own order. With several, a
rate's score is its mean over them. No test image is encoded. Protocols that show a method the same data (UCDR and
UdCDR) share a search. Searches are stored in the results folder trial by trial, so that the same command goes on where
it was stopped; the rates are written to a file of :mod:`benchmarks.runner.tuned`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.console import consoles, counted, plain, unwritable

if TYPE_CHECKING:
    from benchmarks.runner.command import Run, Terminal
    from benchmarks.runner.plan import Cell, FitGroup, Plan
    from benchmarks.runner.resources import Resources
    from benchmarks.runner.settings import Settings
    from benchmarks.runner.tuned import TunedRate
    from benchmarks.store.files import ResultStore

#: Splits of each protocol that rates are searched on, unless the command says more: its first ones.
SPLITS = 1

#: Preset whose budget a trial has, unless the command says another one.
PRESET = "standard"

#: Results folder of the searches.
OUT = "results/tuning"

#: Settings of a method that say what a trial may spend.
BUDGET = ("steps", "batch_size", "validate_every", "patience")

#: Data set, protocol and method.
TuningCase = tuple[str, str, str]


def tune(options: dict[str, Any], prog: str, command: str, *, splits: int = SPLITS, file: Path | None = None) -> int:
    """Carry out the command with a run's options; returns the exit code.

    ``file``: where the rates go (default: the backbone's in ``benchmarks/presets/tuned``). ``command`` is the command
    line that the file states.
    """
    from benchmarks.runner.command import Terminal, resolved
    from benchmarks.runner.settings import SettingsError
    from benchmarks.runner.tuned import TunedFileError
    from methods.registry import UnknownNameError

    terminal = Terminal(*consoles())
    if "config" not in options and "recipe" not in options:
        options.setdefault("preset", PRESET)
        options.setdefault("out", OUT)
    try:
        settings = searched_settings(resolved({**options, "search": True}), splits)
        return _tune(settings, command, splits, file, terminal)
    except (SettingsError, UnknownNameError, TunedFileError) as error:
        terminal.error(f"{prog}: {error}")
        return 2
    except KeyboardInterrupt:
        terminal.error("stopped; finished trials are kept, the same command goes on")
        return 130


def searched_settings(settings: Settings, splits: int = SPLITS) -> Settings:
    """The settings of the searches: seed 0 and all splits of the preset's protocols that are declared.

    Raises :class:`~benchmarks.runner.settings.SettingsError` for settings under which rates would be picked on test
    data, or not by one command.
    """
    from benchmarks.runner.plan import SEARCH_SEED
    from benchmarks.runner.settings import SettingsError

    if splits < 1:
        raise SettingsError(f"--splits: at least 1, not {splits}")
    if settings.splits:
        raise SettingsError("splits: rates are tuned on the first splits of each protocol; leave the setting out")
    least = min((count for count in settings.budget.splits.values() if count is not None), default=None)
    if least is not None and splits > least:
        raise SettingsError(f"--splits: preset {settings.preset} has only {least} of each protocol")
    if settings.select != "val":
        raise SettingsError(f"--select {settings.select}: rates are tuned on validation data; leave the option out")
    if settings.rules != "clean":
        raise SettingsError(f"--rules {settings.rules}: rates are tuned without test data; leave the option out")
    if settings.limit is not None and settings.limit == settings.budget.limit:
        text = "its limit of images makes tuned rates mean nothing; take a preset without one"
        raise SettingsError(f"--preset {settings.preset}: {text}, e.g. {PRESET}")
    if settings.limit is not None:
        raise SettingsError("--limit: rates tuned on few images mean nothing; leave the option out")
    if settings.validation_limit is not None:
        raise SettingsError("--validation-limit: rates are tuned on whole validation tasks; leave the option out")
    if settings.shots is not None:
        raise SettingsError("--shots: tuned rates are those of the whole data; leave the option out")
    if settings.selectors:
        raise SettingsError("--selectors: the file of tuned rates has no checkpoints; leave the option out")
    if settings.shard is not None:
        raise SettingsError("--shard: all searches go into one file; spread them with --jobs, or by --methods")
    return dataclasses.replace(settings, seeds=(SEARCH_SEED,))


def check_target(file: Path) -> None:
    """Refuse a file that the rates could not be written to, before hours of work.

    Raises :class:`~benchmarks.runner.settings.SettingsError` in one line that names the option.
    """
    from benchmarks.runner.settings import SettingsError

    if file.suffix != ".toml":
        raise SettingsError(f"--to {file}: must be a .toml file, e.g. rates.toml")
    if file.is_dir():
        raise SettingsError(f"--to {file}: a folder; give a .toml file to write")
    if reason := unwritable(file.parent):
        raise SettingsError(f"--to {file}: cannot be written ({reason}); give a .toml file elsewhere with --to")


def declared(resources: Resources, dataset: str, protocol: str, splits: int) -> list[str]:
    """The splits of a protocol that rates are searched on."""
    return resources.all_splits(dataset, protocol)[:splits]


def tuning_plan(plan: Plan, resources: Resources, splits: int) -> tuple[Plan, dict[TuningCase, FitGroup]]:
    """The searches of a plan made with ``search``: each once, and the one that answers each question.

    Methods without a learning rate to search, and protocols without a validation task, have none.
    """
    from benchmarks.runner.plan import search_key

    members: dict[TuningCase, list[tuple[FitGroup, Cell]]] = {}
    for group in plan.groups:
        for cell in group.cells:
            name = cell.id
            wanted = declared(resources, name.dataset, name.protocol, splits)
            if group.choice.search is not None and name.split in wanted:
                members.setdefault((name.dataset, name.protocol, group.method), []).append((group, cell))
    searches: dict[str, FitGroup] = {}
    of_question: dict[TuningCase, FitGroup] = {}
    for question, joined in members.items():
        (group, cell), *others = joined
        search = dataclasses.replace(group, cells=(cell,), tuning=True, partners=tuple(other for _, other in others))
        key = search_key(search)
        assert key is not None
        of_question[question] = searches.setdefault(key, search)
    return dataclasses.replace(plan, groups=tuple(searches.values())), of_question


def _tune(settings: Settings, command: str, splits: int, file: Path | None, terminal: Terminal) -> int:
    from benchmarks.runner.command import announce, carry_out, open_store, prepare
    from benchmarks.runner.resources import settled_cache
    from benchmarks.runner.settings import SettingsError
    from benchmarks.runner.tuned import TUNED, file_name, read_tuned, write_tuned

    with settled_cache(terminal.warn):
        run = prepare(settings, command)
        searches, of_question = tuning_plan(run.plan, run.resources, splits)
        if not searches.groups and not run.plan.broken:
            raise SettingsError(
                "nothing to tune: no method here has a learning rate to search on a protocol with validation data"
            )
        run = dataclasses.replace(run, whole=searches, plan=searches)
        facts = run.resources.backbone_facts
        file = file or TUNED / file_name(facts.name, settings.preset)
        check_target(file)
        if file.exists():
            read_tuned(file)  # a damaged file is said before hours of work
        announce(run, terminal)
        store = open_store(run, terminal)
        if settings.dry_run:
            for line in listed(run, of_question, store):
                terminal.print(line)
            return 1 if run.plan.broken else 0
        outcome = carry_out(run, store, terminal)
        rates = list(found(run, of_question, store, splits))
        if rates:
            try:
                write_tuned(file, facts.name, facts.identity, rates)
            except OSError as error:
                raise SettingsError(f"--to {file}: cannot be written ({error.strerror or error})") from error
        for rate in rates:
            terminal.print(_line(rate))
        done = ", ".join(f"{count} {status}" for status, count in sorted(outcome.counts.items())) or "none"
        terminal.print(f"searches: {done}")
        terminal.print(f"rates: {file}" if rates else "rates: none found, nothing written")
        return 1 if outcome.failed else 0


def found(run: Run, of_question: dict[TuningCase, FitGroup], store: ResultStore, splits: int) -> Iterator[TunedRate]:
    """What the finished searches of a store found, one entry a question."""
    from benchmarks.runner.plan import search_key
    from benchmarks.runner.tuned import TunedRate

    for (dataset, protocol, method), group in of_question.items():
        key, one = search_key(group), group.choice.search
        search = store.read_search(group.dataset, group.method, key or "")
        if search is None or search.learning_rate is None or one is None:
            continue
        inputs = group.cells[0].inputs
        config = inputs["method"]["config"]
        yield TunedRate(
            dataset=dataset,
            data_hash=str(inputs["dataset"]["data_hash"]),
            protocol=protocol,
            splits=declared(run.resources, dataset, protocol, splits),
            method=method,
            version=int(inputs["method"]["version"]),
            paper=one.paper,
            learning_rate=search.learning_rate,
            rate_range=search.rate_range,
            edge=search.edge,
            seed=group.seed,
            budget={"preset": run.settings.preset, **{name: config[name] for name in BUDGET if name in config}},
            command=run.command,
            trials=[{key: value for key, value in trial.items() if value is not None} for trial in search.trials],
        )


def listed(run: Run, of_question: dict[TuningCase, FitGroup], store: ResultStore) -> Iterator[str]:
    """A line for each question of a dry run: its state, and what its search may try."""
    from benchmarks.runner.plan import search_key

    keys = set()
    left = 0
    for (dataset, protocol, method), group in of_question.items():
        key, one = search_key(group), group.choice.search
        assert key is not None and one is not None
        search = None if run.settings.force else store.read_search(group.dataset, group.method, key)
        trials = 0 if search is None else len(search.trials)
        state = (
            "tuned"
            if search is not None and search.learning_rate is not None
            else f"{trials}/{counted(one.trials, 'trial')}"
        )
        if key not in keys and not state.startswith("tuned"):
            left += one.trials - trials
        shared = "  (shared)" if key in keys else ""
        keys.add(key)
        splits = ", ".join(cell.id.split for cell in (group.cells[0], *group.partners))
        low, high = one.range
        yield (f"{state}  {dataset}  {protocol}  {splits}  {method}  around {one.paper:g}, {low:g} to {high:g}{shared}")
    for broken in run.plan.broken:
        name = broken.cell.id
        yield f"broken  {name.dataset}  {name.protocol}  {name.method}: {plain(broken.reason)}"
    rates, searches = counted(len(of_question), "rate"), counted(len(keys), "search")
    yield f"{rates}, {searches}, {counted(left, 'trial')} to do"


def _line(rate: TunedRate) -> str:
    scores = [trial["validation"] for trial in rate.trials if "validation" in trial]
    best = f", validation {max(scores):.4f}" if scores else ""
    end = {"low": ", the lowest tried", "high": ", the highest tried"}.get(rate.edge, "")
    return f"{rate.dataset}  {rate.protocol}  {rate.method}: {rate.learning_rate:g} (paper {rate.paper:g}{best}{end})"
