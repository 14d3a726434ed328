"""A sweep as a SLURM job array from Python: ``python docs/examples/submitit_shards.py --shards 16 -- OPTIONS``.

``OPTIONS`` are those of ``benchmarks.run``. Each job runs one shard of the same plan; a job that is preempted is sent
again and goes on where it stopped. ``--cluster local`` runs the jobs as processes of this machine, to try it.
Needs submitit: ``pip install 'ucdr-bench[submitit]'``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import submitit


class Shard:
    """Runs one of ``count`` shards with some options of ``benchmarks.run``; returns its exit code."""

    def __init__(self, count: int, options: Sequence[str]) -> None:
        self.count = count
        self.options = list(options)

    def __call__(self, number: int) -> int:
        from benchmarks.run import main

        return main([*self.options, "--shard", f"{number}/{self.count}"])

    def checkpoint(self, number: int) -> submitit.helpers.DelayedSubmission:
        """What SLURM is sent again when a job is preempted: the same, for its finished cells are stored."""
        return submitit.helpers.DelayedSubmission(self, number)


def main(argv: Sequence[str] | None = None) -> int:
    """Submit, wait and print what became of each shard; returns the worst exit code."""
    parser = argparse.ArgumentParser(description="Run the shards of a sweep as SLURM jobs.")
    parser.add_argument("--shards", type=int, default=16, help="jobs (default: 16)")
    parser.add_argument("--folder", default="submitit", help="for the jobs' logs (default: submitit)")
    parser.add_argument("--cluster", help="slurm (default, where there is one) or local")
    parser.add_argument("--partition", help="of SLURM")
    parser.add_argument("--minutes", type=int, default=240, help="at most, for each job (default: 240)")
    parser.add_argument("--cpus", type=int, default=4, help="of each job (default: 4)")
    parser.add_argument("--gpus", type=int, default=0, help="of each job (default: 0)")
    parser.add_argument("options", nargs="*", help="after --: options of benchmarks.run")
    args = parser.parse_args(argv)
    executor = submitit.AutoExecutor(folder=args.folder, cluster=args.cluster)
    executor.update_parameters(
        name="ucdr-bench", timeout_min=args.minutes, cpus_per_task=args.cpus, gpus_per_node=args.gpus, mem_gb=8
    )
    if args.partition:
        executor.update_parameters(slurm_partition=args.partition)
    jobs = executor.map_array(Shard(args.shards, args.options), range(1, args.shards + 1))
    codes = [job.result() for job in jobs]
    for number, code in enumerate(codes, start=1):
        print(f"shard {number}/{args.shards}: exit code {code}")
    return max(codes)


if __name__ == "__main__":
    raise SystemExit(main())
