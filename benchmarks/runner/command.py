"""What ``run`` and ``ablate`` do with their options: prepare, carry out, report.

Nothing heavy is imported before the options are known to be right, and torch's models only when a fit starts.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.console import consoles, counted, unwritable

if TYPE_CHECKING:
    import pandas as pd
    from rich.console import Console

    from benchmarks.runner.ablation_plan import AblationPlan
    from benchmarks.runner.outcome import Outcome
    from benchmarks.runner.plan import Plan
    from benchmarks.runner.resources import Resources
    from benchmarks.runner.settings import Settings
    from benchmarks.store.files import ResultStore
    from benchmarks.store.records import Record

#: Makes the arms of an ablation from the settings.
Arms = Callable[["Settings"], "AblationPlan"]


class Terminal:
    """Standard output and error of a command, in lines that are never wrapped, coloured by content or styled."""

    def __init__(self, out: Console, err: Console) -> None:
        self.out, self.err = out, err

    def print(self, line: str) -> None:
        """A line of output."""
        self.out.print(line, markup=False, highlight=False, soft_wrap=True)

    def note(self, line: str) -> None:
        """A dimmed line of output."""
        self.out.print(line, style="dim", markup=False, highlight=False, soft_wrap=True)

    def warn(self, line: str) -> None:
        """A warning."""
        self.err.print(line, style="yellow", markup=False, highlight=False, soft_wrap=True)

    def error(self, line: str) -> None:
        """An error."""
        self.err.print(line, markup=False, highlight=False, soft_wrap=True)


@dataclass(frozen=True)
class Run:
    """A prepared run: final settings, what they need, and the plan.

    ``whole`` is the plan of all shards, ``plan`` this shard's part; ``ablation`` is None for an ordinary run.
    """

    settings: Settings
    resources: Resources
    whole: Plan
    plan: Plan
    ablation: AblationPlan | None
    command: str

    @property
    def displayed_settings(self) -> dict[str, Any]:
        """The settings as the run prints and stores them."""
        return self.settings.as_dict() | {
            "backbone": self.resources.backbone_facts.name,
            "device": self.resources.device,
        }


def perform(options: dict[str, Any], prog: str, command: str, arms: Arms | None = None) -> int:
    """Carry out a command with these options; returns the exit code.

    ``command`` is the command line that the report names; ``arms`` makes the run an ablation.
    """
    from benchmarks.runner.settings import SettingsError
    from methods.registry import UnknownNameError

    terminal = Terminal(*consoles())
    if os.environ.get("WORLD_SIZE", "1") != "1":  # of processes that train together, the first one prints
        terminal.out.quiet = terminal.err.quiet = os.environ.get("RANK", "0") != "0"
    try:
        return _perform(resolved(options), command, arms, terminal)
    except (SettingsError, UnknownNameError) as error:
        terminal.error(f"{prog}: {error}")
        return 2
    except KeyboardInterrupt:
        terminal.error("stopped; finished cells are kept, the same command goes on")
        return 130


def resolved(options: dict[str, Any]) -> Settings:
    """The settings of command-line options and the file they name."""
    from benchmarks.runner.settings import SHORT, parse_set, recipe_file, resolve

    file, recipe = options.pop("config", None), options.pop("recipe", None)
    if recipe is not None:
        file = recipe_file(recipe)
    if "set" in options:
        options["set"] = parse_set(options["set"])
    for name in SHORT:
        if name in options:
            options["set"] = (*options.get("set", ()), (name, _texts(name, options.pop(name))))
    return resolve(options, file)


def _texts(name: str, source: str) -> str:
    """The value of ``--templates`` or ``--class-names``; raises SettingsError naming the option if it is unusable."""
    from benchmarks.runner.settings import SettingsError
    from methods.parts.templates import TextsError, names_of, templates_of

    option = f"--{name.replace('_', '-')}"
    if not source.strip():
        raise SettingsError(f"{option} is empty; name one, or leave the option out")
    try:
        (templates_of if name == "templates" else names_of)(source)
    except TextsError as error:
        raise SettingsError(f"{option}: {error}") from error
    return source


def check_folders(settings: Settings) -> None:
    """Refuse, before anything is planned, a data root that is no folder and results that cannot be written.

    Raises :class:`~benchmarks.runner.settings.SettingsError`.
    """
    from benchmarks.datasets.base import root_problem
    from benchmarks.runner.settings import SettingsError

    if problem := root_problem(settings.data_root):
        raise SettingsError(f"{problem}; give the one that has the data sets")
    if reason := unwritable(Path(settings.out)):
        raise SettingsError(f"--out {settings.out}: cannot be written ({reason}); give another folder")


def _perform(settings: Settings, command: str, arms: Arms | None, terminal: Terminal) -> int:
    from benchmarks.runner.distributed import join
    from benchmarks.runner.resources import settled_cache
    from methods.parts.parallel import rank

    settings = join(settings)
    ablation = arms(settings) if arms else None
    with settled_cache(terminal.warn):
        run = prepare(settings, command, ablation)
        announce(run, terminal)
        store = open_store(run, terminal)
        if run.settings.dry_run:
            from benchmarks.runner.listing import list_plan

            for line in list_plan(run.plan, run.settings, store, run.resources):
                terminal.print(line)
            return 1 if run.plan.broken else 0  # as the run itself would
        outcome = carry_out(run, store, terminal)
        if rank():  # the first process reports
            return 1 if outcome.failed else 0
        return report(run, outcome, store, terminal)


def prepare(settings: Settings, command: str, ablation: AblationPlan | None = None) -> Run:
    """Make the settings final, then plan.

    Raises :class:`~benchmarks.runner.settings.SettingsError` for settings that cannot be used.
    """
    from benchmarks.runner.machine import final_settings, pick_device
    from benchmarks.runner.plan import plan, shard
    from benchmarks.runner.resources import LazyBackbone, Resources

    check_folders(settings)
    backbone = LazyBackbone(settings, pick_device(settings.device))
    settings = final_settings(settings, backbone.facts.weights_mib)
    resources = Resources(settings, backbone)
    whole = plan(settings, resources, ablation.arms if ablation else None)
    part = whole if settings.shard is None else shard(whole, *settings.shard)
    return Run(settings, resources, whole, part, ablation, command)


def announce(run: Run, terminal: Terminal) -> None:
    """Print the settings, what is known of the data sets, and what is left out.

    Raises :class:`~benchmarks.runner.settings.SettingsError` if that leaves nothing.
    """
    from benchmarks.runner.plan import unfit_notes, validation_notes
    from benchmarks.runner.settings import SettingsError

    terminal.note(", ".join(_displayed(run.displayed_settings)))
    for name in dict.fromkeys(cell.id.dataset for cell in run.whole.cells):
        dataset = run.resources.dataset(name)
        if dataset.facts:
            terminal.note(f"{name}: {'; '.join(dataset.facts)}")
        if dataset.left_out:
            terminal.warn(f"left out of {name}: {dataset.left_out} ({_verify(run.settings, name)} names them)")
        for note in dataset.name_notes:
            terminal.warn(f"{name}: {note}")
    for name, reason in {**run.plan.skipped, **(run.ablation.skipped if run.ablation else {})}.items():
        terminal.warn(f"skipped: {name}: {reason}")
    for note in unfit_notes(run.plan):
        terminal.warn(f"not applicable: {note}")
    for note in validation_notes(run.plan, run.settings, run.resources):
        terminal.warn(f"note: {note}")
    if not (run.whole.cells or run.whole.broken):
        raise SettingsError("nothing to run: choose other --protocols, --datasets or --methods")


def open_store(run: Run, terminal: Terminal) -> ResultStore:
    """The store of the run's records; of processes that train together only the first one writes."""
    from benchmarks.runner.distributed import ReadOnlyStore
    from benchmarks.store.files import ResultStore
    from methods.parts.parallel import rank

    if rank():
        return ReadOnlyStore(run.settings.out, terminal.warn)
    if run.settings.track and not run.settings.dry_run:
        from benchmarks.runner.tracking import tracked_store

        return tracked_store(run.settings.out, run.settings.track, terminal.warn)
    return ResultStore(run.settings.out, terminal.warn)


def carry_out(run: Run, store: ResultStore, terminal: Terminal) -> Outcome:
    """Write settings and cards, then run the plan.

    Raises :class:`~benchmarks.runner.settings.SettingsError` for a store that cannot be written.
    """
    from benchmarks.runner.cards import write_cards
    from benchmarks.runner.plan import unplanned_cells
    from benchmarks.runner.progress import RunProgress
    from benchmarks.runner.run_plan import execute
    from benchmarks.runner.settings import SettingsError

    try:
        store.clean()
        store.write_resolved(run.displayed_settings | {"command": run.command})
        write_cards(run.plan, store)
    except OSError as error:
        raise SettingsError(f"--out {run.settings.out}: cannot be written ({error.strerror or error})") from error
    for cell in unplanned_cells(run.settings, run.plan):
        store.discard(cell.id, cell.key)
    methods = [cell.id.method for cell in run.plan.cells]
    with RunProgress(terminal.err, len(run.plan.cells) + len(run.plan.broken), methods) as progress:
        return execute(run.plan, run.resources, store, progress)


def report(run: Run, outcome: Outcome, store: ResultStore, terminal: Terminal) -> int:
    """Print the tables of this run's cells, write the report of the whole store; returns the exit code."""
    from benchmarks.reporting.data import ReportData
    from benchmarks.reporting.files import PAGE, write_report
    from benchmarks.store.frame import frame_and_records

    frame, records = frame_and_records(run.settings.out, terminal.warn, compact=True)
    print_scores(run, frame, terminal)
    folder = Path(run.settings.out) / "report"
    counts = ", ".join(f"{count} {status}" for status, count in sorted(outcome.counts.items())) or "no cells"
    lines = [
        f"cells: {counts}",
        f"records: {Path(run.settings.out) / 'cells'}",
        *weight_lines(run),
        *selector_lines(run, store),
    ]
    code = 1 if outcome.failed or outcome.problems else 0
    for line in outcome.problems:
        terminal.warn(line)
    try:
        if run.settings.track:
            lines.append(track(run, store, frame, records, terminal))
        data = ReportData(frame, store=store, command=run.command, report=terminal.warn, records=records)
        files = write_report(data, folder)
        lines += [f"leaderboard: {files[0]}, {files[1]}", f"plots: {folder / 'plots'}"]
        lines += [f"page: {path}" for path in files if path.name == PAGE]
    except OSError as error:
        reason = error.strerror or error
        terminal.warn(f"{folder}: cannot be written ({reason}); free space there, then the same command again")
        code = 1
    for line in lines:
        terminal.print(line)
    return code


def track(run: Run, store: ResultStore, frame: pd.DataFrame, records: dict[str, Record], terminal: Terminal) -> str:
    """Send this run's galleries to its trackers; returns a line that says where everything is."""
    from benchmarks.reporting.data import ReportData
    from benchmarks.runner.tracking import FOLDER, track_gallery

    keys = {cell.key for cell in run.plan.cells}
    planned = frame[frame["key"].isin(keys)] if len(frame) else frame
    if len(planned):
        data = ReportData(planned, store=store, report=terminal.warn, records=records)
        track_gallery(store, data, run.settings.data_root)
    return (
        f"tracked by: {', '.join(run.settings.track)} (files, where there are any: {Path(run.settings.out) / FOLDER})"
    )


def weight_lines(run: Run) -> list[str]:
    """Where the weights of this run's fits are, and how many finished fits have none."""
    from benchmarks.store.weights import FOLDER, WeightStore, fit_key

    keep, weights = run.settings.keep_weights, WeightStore(run.settings.out)
    if keep is None:
        return []
    fits = {fit_key(cell.inputs): cell.inputs for cell in run.plan.cells}
    missing = sum(not weights.covers(inputs, keep) for inputs in fits.values())
    kept = sum((weights.folder(inputs)).is_dir() for inputs in fits.values())
    lines = [f"weights: {Path(run.settings.out) / FOLDER} ({kept} of {counted(len(fits), 'fit')})"]
    if missing:
        of_all = f"{missing} of {counted(len(fits), 'fit')}"
        lines.append(f"without weights: {of_all} (finished before, or failed); --force fits again")
    return lines


def selector_lines(run: Run, store: ResultStore) -> list[str]:
    """How many finished fits have no checkpoints of ``--selectors``: they were made without it."""
    if not run.settings.selectors:
        return []
    records = [store.read(group.cells[0].id, group.cells[0].key) for group in run.plan.groups if group.cells]
    validated = [record for record in records if record is not None and record.fit.validation]
    missing = sum(not record.fit.checkpoints for record in validated)
    if not missing:
        return []
    return [f"without selectors: {missing} of {counted(len(validated), 'fit')} (finished before); --force fits again"]


def print_scores(run: Run, frame: pd.DataFrame, terminal: Terminal) -> None:
    """Print the tables of the cells that this run planned, and the failures among them."""
    from benchmarks.reporting.data import ReportData
    from benchmarks.reporting.terminal import print_ablations, print_failures, print_tables

    keys = {cell.key for cell in run.plan.cells} | {broken.cell.key for broken in run.plan.broken}
    planned = frame[frame["key"].isin(keys)] if len(frame) else frame
    if run.ablation:
        print_ablations(terminal.out, ReportData(planned))
        print_failures(terminal.out, planned)
    else:
        print_tables(terminal.out, ReportData(planned))


def _verify(settings: Settings, name: str) -> str:
    root = f" --data-root {shlex.quote(settings.data_root)}" if settings.data_root else ""
    return f"python -m benchmarks.data verify {name}{root}"


def _displayed(settings: Mapping[str, Any]) -> Iterator[str]:
    """``key=value`` of the settings that are set; a dry run prints ``gpu_hours_basis`` at its end."""
    for key, value in settings.items():
        if key != "gpu_hours_basis" and value not in (None, False, [], {}):
            yield f"{key}={','.join(map(str, value)) if isinstance(value, list) else value}"
