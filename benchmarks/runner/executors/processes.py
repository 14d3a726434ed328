"""``--jobs N``: worker processes on this machine, each with its own models, images and threads.

Workers are started afresh (spawn), fit and score, and send every record to this process, which alone writes to the
store. A worker that ends early costs the cells it was working on; it is replaced and the sweep goes on. When this
process ends, its workers end within moments.
"""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import pandas as pd
import torch

from benchmarks.runner.executors import serial
from benchmarks.runner.executors.pool import Pool, Worker
from benchmarks.runner.executors.schedule import Schedule
from benchmarks.runner.failures import OUT_OF_MEMORY, explain
from benchmarks.runner.fit_group import GroupRunner
from benchmarks.runner.outcome import FailFast, Outcome, Progress
from benchmarks.runner.plan import FitGroup, Plan
from benchmarks.runner.process_settings import prepare_process, prepared_process
from benchmarks.runner.registered_names import named, register_missing
from benchmarks.runner.resources import Resources
from benchmarks.runner.settings import Settings
from benchmarks.store.files import ResultStore
from benchmarks.store.records import CellId, Record, Search
from benchmarks.store.weights import FitWeights

#: Numbers from inside ``fit`` are passed on at most this often, in seconds.
EVERY = 0.25


@dataclass(eq=False)
class _Process(Worker):
    process: BaseProcess = field(kw_only=True)
    connection: Connection = field(kw_only=True)


def run_in_processes(plan: Plan, resources: Resources, store: ResultStore, progress: Progress) -> Outcome:
    """Run the plan in up to ``settings.jobs`` processes."""
    schedule = Schedule(plan, resources, store, progress)
    pool = _Pool(schedule)
    try:
        schedule.begin()
        if schedule.waiting > 1:
            pool.run()
        elif schedule.waiting:  # a single unit: no further process is started
            with prepared_process(resources.settings.threads, resources.settings.precision):
                serial.work(schedule, resources, progress)
    except FailFast:
        pass
    finally:
        pool.stop()
    return schedule.outcome


class _Pool(Pool[_Process]):
    def limit(self) -> int:
        """As ``--jobs`` says."""
        return self.schedule.settings.jobs

    def start(self, number: int, progress: Progress) -> _Process:
        """Start a process."""
        settings = self.schedule.settings
        settings = dataclasses.replace(settings, device=device_of(self.schedule.resources.device, number))
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        arguments = (theirs, settings, named(settings))
        process = context.Process(target=_work, args=arguments, name=f"ucdr-bench worker {number}", daemon=True)
        with _threads(settings.threads):
            process.start()
        theirs.close()
        return _Process(number, progress, process=process, connection=ours)

    def send(self, worker: _Process, group: FitGroup, search: Search | None) -> bool:
        """Through its pipe."""
        try:
            worker.connection.send((group, search))
        except OSError:
            return False
        return True

    def end(self, worker: _Process) -> None:
        """Kill it."""
        worker.connection.close()
        worker.process.kill()
        worker.process.join()

    def collect(self) -> None:
        """Read the messages that have arrived; a closed connection means that the worker has ended."""
        by_connection = {worker.connection: worker for worker in self.workers}
        for ready in wait(list(by_connection)):
            worker = by_connection[ready]  # type: ignore[index]
            try:
                message = worker.connection.recv()
            except (EOFError, OSError):
                worker.process.join()
                self.gone(worker, f"the worker process {_ending(worker.process.exitcode)}")
            else:
                self.take_in(worker, *message)


def _ending(code: int | None) -> str:
    again = "the same command tries these cells again"
    if code is not None and code < 0:
        try:
            name = signal.Signals(-code).name
        except ValueError:
            name = f"signal {-code}"
        often = f" (often: out of memory; {OUT_OF_MEMORY})" if name == "SIGKILL" else ""
        return f"was ended by {name}{often}; {again}"
    return f"ended by itself with exit code {code}; {again}, with --jobs 1 in one process"


def device_of(device: str, number: int) -> str:
    """The device of worker ``number``: the GPUs in turn where none was named."""
    return f"cuda:{number % torch.cuda.device_count()}" if device == "cuda" else device


@contextmanager
def _threads(threads: int) -> Iterator[None]:
    """The environment in which a child's numerical libraries start with this many threads."""
    names = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    before = {name: os.environ.get(name) for name in names}
    os.environ.update(dict.fromkeys(names, str(threads)))
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class _Sending(Progress):
    """A worker's progress, sent to the parent at most every :data:`EVERY` seconds."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._next = 0.0
        self._images = 0

    def cell(self, cell: CellId, status: str, reason: str = "") -> None:
        """Never called: the parent counts cells by their records."""

    def fitting(self, group: FitGroup) -> None:
        """Send which model is being fitted."""
        self._connection.send(("fitting", dataclasses.replace(group, cells=group.cells[:1])))

    def log(self, **numbers: Any) -> None:
        """Send the current numbers of training."""
        if self._due():
            plain = {key: value for key, value in numbers.items() if isinstance(value, str | int | float)}
            self._connection.send(("log", plain))

    def images(self, count: int) -> None:
        """Send how many images were encoded."""
        self._images += count
        if self._due():
            self._connection.send(("images", self._images))
            self._images = 0

    def _due(self) -> bool:
        now = time.monotonic()
        if now < self._next:
            return False
        self._next = now + EVERY
        return True


def _work(connection: Connection, settings: Settings, registered: Sequence[tuple[str, str, str]]) -> None:
    """A worker process: groups in, records out, until the parent closes the connection or ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the parent ends this one
    threading.Thread(target=_end_with_parent, daemon=True).start()
    prepare_process(settings.threads, settings.precision)
    register_missing(registered)
    resources = Resources(settings)

    def keep(record: Record, per_query: pd.DataFrame | None) -> None:
        connection.send(("record", record, per_query))

    def keep_search(group: FitGroup, search: Search) -> None:
        connection.send(("search", group, search))

    def keep_weights(group: FitGroup, weights: FitWeights) -> None:
        connection.send(("weights", dataclasses.replace(group, cells=group.cells[:1]), weights))

    runner = GroupRunner(resources, _Sending(connection), keep, keep_search, keep_weights)
    while True:
        try:
            group, search = connection.recv()
        except EOFError:
            return
        try:
            runner.group(group, search)
        except BrokenPipeError:
            return
        except Exception as error:  # e.g. the data set can no longer be loaded here, so not even a row can be made
            connection.send(("error", explain(error), "".join(traceback.format_exception(error))))
        else:
            connection.send(("done",))


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
