"""``--executor ray``: the same plan on a Ray cluster, one machine or many; extra: ``pip install 'ucdr-bench[ray]'``.

The cluster is the one that ``RAY_ADDRESS`` names or that runs on this machine (``ray start``); without either, one is
started here for the run. Workers are actors with ``--threads`` CPUs and, where the run is on GPUs, a GPU each (a part
of one, if ``--jobs`` asks for more workers than there are GPUs). Every machine needs this package in this version, and
data sets and backbones under the same path; results travel to this process, which alone writes to the store. A worker
or machine that is lost costs the cells that it was working on.
"""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from benchmarks.runner.executors.pool import Pool, Worker
from benchmarks.runner.executors.schedule import Schedule
from benchmarks.runner.failures import OUT_OF_MEMORY, explain
from benchmarks.runner.fit_group import GroupRunner
from benchmarks.runner.outcome import FailFast, Outcome, Progress, SilentProgress
from benchmarks.runner.plan import FitGroup, Plan
from benchmarks.runner.process_settings import prepare_process
from benchmarks.runner.registered_names import named, register_missing
from benchmarks.runner.resources import Resources
from benchmarks.runner.settings import Settings, SettingsError
from benchmarks.store.files import ResultStore
from benchmarks.store.records import Record, Search
from benchmarks.store.weights import FitWeights


def run_on_ray(plan: Plan, resources: Resources, store: ResultStore, progress: Progress) -> Outcome:
    """Run the plan on a Ray cluster, with ``settings.jobs`` workers or, for 0, as many as the cluster has room for.

    Raises :class:`~benchmarks.runner.settings.SettingsError` if Ray is not installed or has no room for one worker.
    """
    ray = _ray()
    schedule = Schedule(plan, resources, store, progress)
    ours = not ray.is_initialized()
    pool: _RayPool | None = None
    try:
        schedule.begin()
        if schedule.waiting:
            if ours:
                ray.init(log_to_driver=False)
            pool = _RayPool(schedule, ray)
            pool.run()
    except FailFast:
        pass
    finally:
        if pool is not None:
            pool.stop()
        if ours and ray.is_initialized():
            ray.shutdown()
    return schedule.outcome


def _ray() -> Any:
    try:
        import ray
    except ImportError as error:
        raise SettingsError(
            f"--executor ray: Ray cannot be imported ({error}); pip install 'ucdr-bench[ray]', or use --jobs"
        ) from error
    return ray


@dataclass(eq=False)
class _Actor(Worker):
    handle: Any = field(kw_only=True)
    answer: Any = None


class _RayPool(Pool[_Actor]):
    def __init__(self, schedule: Schedule, ray: Any) -> None:
        super().__init__(schedule)
        self.ray = ray
        settings = schedule.settings
        gpus = ray.cluster_resources().get("GPU", 0.0)
        on_gpu = settings.device.startswith("cuda") or (settings.device == "auto" and gpus > 0)
        share = 1.0 if not on_gpu or settings.jobs <= gpus or not gpus else int(1e4 * gpus / settings.jobs) / 1e4
        self.needs = {"CPU": float(settings.threads)} | ({"GPU": share} if on_gpu else {})
        self.settings = dataclasses.replace(settings, device="cuda" if on_gpu else "cpu")
        if self.limit() == 0:
            needs = " and ".join(f"{number:g} {name}" for name, number in self.needs.items())
            raise SettingsError(f"--executor ray: no machine of the cluster has {needs}; add one, or lower --threads")
        self._class = ray.remote(_Remote)

    def limit(self) -> int:
        """As many as the machines of the cluster have room for, at most ``--jobs``."""
        room = 0
        for node in self.ray.nodes():
            if node["Alive"]:
                has = node["Resources"]
                room += int(min(has.get(name, 0.0) / number for name, number in self.needs.items()) + 1e-6)
        return min(room, self.settings.jobs or room)

    def start(self, number: int, progress: Progress) -> _Actor:
        """Start an actor wherever there is room."""
        options = {"num_cpus": self.needs["CPU"], "num_gpus": self.needs.get("GPU", 0.0)}
        handle = self._class.options(**options).remote(self.settings, named(self.settings))
        return _Actor(number, progress, handle=handle)

    def send(self, worker: _Actor, group: FitGroup, search: Search | None) -> bool:
        """Start the group on the actor; all its messages come back at the end."""
        worker.progress.fitting(group)
        worker.answer = worker.handle.group.remote(group, search)
        return True

    def end(self, worker: _Actor) -> None:
        """Kill the actor."""
        self.ray.kill(worker.handle, no_restart=True)

    def collect(self) -> None:
        """Read the next result; an error of Ray means that the actor is lost."""
        busy = {worker.answer: worker for worker in self.workers if worker.group is not None}
        (ready, *_), _ = self.ray.wait(list(busy))
        worker = busy[ready]
        try:
            messages = self.ray.get(ready)
        except self.ray.exceptions.RayError as error:
            self.gone(worker, _lost(error))
        else:
            for message in messages:
                self.take_in(worker, *message)


def _lost(error: Exception) -> str:
    message = next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return (
        f"the Ray worker was lost ({message}); it may have run out of memory ({OUT_OF_MEMORY}), or its machine has"
        " another version of ucdr-bench; the same command tries these cells again"
    )


class _Remote:
    """The actor: carries out a group and returns what a worker process would have sent."""

    def __init__(self, settings: Settings, registered: Sequence[tuple[str, str, str]]) -> None:
        prepare_process(settings.threads, settings.precision)
        register_missing(registered)
        self._messages: list[tuple[Any, ...]] = []
        self._runner = GroupRunner(
            Resources(settings), SilentProgress(), self._keep, self._keep_search, self._keep_weights
        )

    def group(self, group: FitGroup, search: Search | None) -> list[tuple[Any, ...]]:
        """Records, the search if one was made, and how it ended."""
        self._messages = []
        try:
            self._runner.group(group, search)
        except Exception as error:  # e.g. the data set is not there, so not even a row can be made here
            self._messages.append(("error", explain(error), "".join(traceback.format_exception(error))))
        else:
            self._messages.append(("done",))
        return self._messages

    def _keep(self, record: Record, per_query: pd.DataFrame | None) -> None:
        self._messages.append(("record", record, per_query))

    def _keep_search(self, group: FitGroup, search: Search) -> None:
        self._messages.append(("search", group, search))

    def _keep_weights(self, group: FitGroup, weights: FitWeights) -> None:
        self._messages.append(("weights", dataclasses.replace(group, cells=group.cells[:1]), weights))
