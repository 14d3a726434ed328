"""Run a plan: choose the executor that the settings name and give it the plan."""

from __future__ import annotations

from benchmarks.runner.executor_registry import EXECUTORS
from benchmarks.runner.outcome import Outcome, Progress
from benchmarks.runner.plan import Plan
from benchmarks.runner.resources import Resources
from benchmarks.runner.settings import SettingsError
from benchmarks.store.files import ResultStore


def execute(plan: Plan, resources: Resources, store: ResultStore, progress: Progress) -> Outcome:
    """Run every cell of the plan that has no finished record (``--force``: every cell), where the settings say.

    A kill or Ctrl-C at any moment leaves only whole records behind; the same command then goes on where it stopped.
    No score depends on the executor; on a CPU the last digits depend on ``threads``, which each record names.

    Raises :class:`~benchmarks.runner.settings.SettingsError` for an executor that cannot be imported or does not return
    an :class:`~benchmarks.runner.executors.Outcome`.
    """
    settings = resources.settings
    name = settings.executor if settings.executor != "local" else "processes" if settings.jobs > 1 else "serial"
    try:
        executor = EXECUTORS.get(name)
    except ImportError as error:
        raise SettingsError(f"--executor {name}: {error}") from error
    outcome = executor(plan, resources, store, progress)
    if not isinstance(outcome, Outcome):
        raise SettingsError(
            f"--executor {name}: it returned {type(outcome).__name__}, not benchmarks.runner.executors.Outcome"
        )
    return outcome
