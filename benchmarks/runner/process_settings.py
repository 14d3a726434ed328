"""Settings of a process that change computed numbers: threads, determinism, rounding, seeds."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch


def prepare_process(threads: int, precision: str = "float32") -> None:
    """Threads (0: as they are), determinism and arithmetic of this process, for good: for processes that end with the
    run (workers, actors, commands); :func:`prepared_process` is for all others.

    On a GPU, float32 products and convolutions are done in float32, and in TF32 only if ``precision`` is ``tf32``
    (each record says so). Operations without a deterministic kernel warn; attention, the one such in use, gets one in
    training (:func:`methods.training.loop.training_attention`).
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if threads:
        torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # It would write to memory that is only reserved.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.benchmark = False  # its choice of a kernel would differ from run to run
    torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
    torch.backends.cudnn.allow_tf32 = precision == "tf32"


@contextmanager
def prepared_process(threads: int, precision: str = "float32") -> Iterator[None]:
    """A block under :func:`prepare_process`; afterwards, however it ends, the process is as it was before.

    For work in a process that is not the run's own (a notebook, a script, a test). The states of Python's, numpy's and
    torch's global generators, which every fit seeds, are put back too.
    """
    cublas, count = os.environ.get("CUBLAS_WORKSPACE_CONFIG"), torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    rounded = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    tried = torch.backends.cudnn.benchmark
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    on_gpus = torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []
    try:
        prepare_process(threads, precision)
        yield
    finally:
        if cublas is None:
            os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)
        torch.set_num_threads(count)
        torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = rounded
        torch.backends.cudnn.benchmark = tried
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])
        if on_gpus:
            torch.cuda.set_rng_state_all(on_gpus)


def seed_everything(seed: int) -> None:
    """Seed Python's, numpy's and torch's global generators."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
