"""One group after the other, in this process."""

from __future__ import annotations

from benchmarks.runner.executors.schedule import Schedule
from benchmarks.runner.fit_group import GroupRunner
from benchmarks.runner.outcome import FailFast, Outcome, Progress
from benchmarks.runner.plan import Plan
from benchmarks.runner.process_settings import prepared_process
from benchmarks.runner.resources import Resources
from benchmarks.store.files import ResultStore


def run_serially(plan: Plan, resources: Resources, store: ResultStore, progress: Progress) -> Outcome:
    """Run the plan here; Ctrl-C passes through, and whatever is stored by then is whole.

    The process's threads, arithmetic and generators are put back at the end.
    """
    schedule = Schedule(plan, resources, store, progress)
    try:
        with prepared_process(resources.settings.threads, resources.settings.precision):
            schedule.begin()
            work(schedule, resources, progress)
    except FailFast:
        pass
    return schedule.outcome


def work(schedule: Schedule, resources: Resources, progress: Progress) -> None:
    """Carry out everything that is waiting."""
    runner = GroupRunner(resources, progress, schedule.keep, schedule.keep_search, schedule.keep_weights)
    while (unit := schedule.take()) is not None:
        while unit.groups:
            group = unit.groups.popleft()
            runner.group(group, schedule.search(group))
        schedule.give_back(unit)
