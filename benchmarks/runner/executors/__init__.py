"""Where the fit groups of a plan are carried out: in this process, in several, or on a Ray cluster.

An executor is a function ``(plan, resources, store, progress) -> Outcome``. All of them follow one
:class:`~benchmarks.runner.executors.schedule.Schedule`, which alone knows what is left to do and
alone writes to the store.
Third parties: entry-point group ``ucdr_bench.executors``.
"""

from methods.registry import Registry

EXECUTORS: Registry = Registry("executor", "ucdr_bench.executors")

for _name, _target, _summary in (
    ("serial", "benchmarks.runner.executors.serial:execute", "one group after the other in this process"),
    ("processes", "benchmarks.runner.executors.processes:execute", "--jobs N worker processes on this machine"),
    ("ray", "benchmarks.runner.executors.ray:execute", "--jobs N workers on a Ray cluster (extra: ray)"),
):
    EXECUTORS.add(_name, _target, summary=_summary)
