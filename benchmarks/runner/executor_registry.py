"""All executors by name. Third parties: entry-point group ``ucdr_bench.executors``."""

from __future__ import annotations

from methods.registry import Registry

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
