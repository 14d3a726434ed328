"""Where the fit groups of a plan run: in this process, in several, or on a Ray cluster.

This module is the public interface for third parties. An executor is a function ``(plan, resources, store, progress) ->
Outcome``, registered under the entry-point group ``ucdr_bench.executors``. All executors of this package follow one
:class:`~benchmarks.runner.executors.schedule.Schedule`, which keeps account of what is left to do and alone writes to
the store; :class:`~benchmarks.runner.fit_group.GroupRunner` carries out one group.
"""

from benchmarks.runner.outcome import FailFast, Outcome, Progress, SilentProgress
from methods.registry import Registry

__all__ = ["EXECUTORS", "FailFast", "Outcome", "Progress", "SilentProgress"]

EXECUTORS: Registry = Registry("executor", "ucdr_bench.executors")

for _name, _target, _summary in (
    ("serial", "benchmarks.runner.executors.serial:run_serially", "one group after the other in this process"),
    (
        "processes",
        "benchmarks.runner.executors.processes:run_in_processes",
        "--jobs N processes on this machine",
    ),
    ("ray", "benchmarks.runner.executors.ray:run_on_ray", "--jobs N workers on a Ray cluster (extra: ray)"),
):
    EXECUTORS.add(_name, _target, summary=_summary)
