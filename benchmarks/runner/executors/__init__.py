"""Where the fit groups of a plan run: in this process, in several, or on a Ray cluster.

This module is the public interface for third parties. An executor is a function ``(plan, resources, store, progress) ->
Outcome``, registered under the entry-point group ``ucdr_bench.executors``. All executors of this package follow one
:class:`~benchmarks.runner.executors.schedule.Schedule`, which keeps account of what is left to do and alone writes to
the store; :class:`~benchmarks.runner.fit_group.GroupRunner` carries out one group.
"""

from benchmarks.runner.executor_registry import EXECUTORS
from benchmarks.runner.outcome import FailFast, Outcome, Progress, SilentProgress

__all__ = ["EXECUTORS", "FailFast", "Outcome", "Progress", "SilentProgress"]
