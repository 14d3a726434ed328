"""One group after the other, in this process."""

from __future__ import annotations

from benchmarks.execution import FailFast, Outcome, Progress, Runner, prepared_process
from benchmarks.executors.schedule import Schedule
from benchmarks.store import ResultStore
from benchmarks.sweep import Plan
from benchmarks.workbench import Workbench


def execute(plan: Plan, workbench: Workbench, store: ResultStore, progress: Progress) -> Outcome:
    """Run the plan here; Ctrl-C passes through, whatever is stored by then is whole.

    The process's threads, arithmetic and generators are put back at the end.
    """
    schedule = Schedule(plan, workbench, store, progress)
    try:
        with prepared_process(workbench.settings.threads):
            schedule.begin()
            work(schedule, workbench, progress)
    except FailFast:
        pass
    return schedule.outcome


def work(schedule: Schedule, workbench: Workbench, progress: Progress) -> None:
    """Do everything that is lined up."""
    runner = Runner(workbench, progress, schedule.keep, schedule.keep_search)
    while (unit := schedule.take()) is not None:
        while unit.groups:
            group = unit.groups.popleft()
            runner.group(group, schedule.search(group))
        schedule.give_back(unit)
