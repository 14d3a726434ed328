"""What of the machine a run uses: the device, how many fits at the same time, and the threads of each."""

from __future__ import annotations

import dataclasses
import os
from typing import Literal

import psutil

from benchmarks.runner.registered_names import unnamed
from benchmarks.runner.settings import Settings, SettingsError

#: What ``auto`` becomes.
FinalPrecision = Literal["float32", "tf32", "bf16"]


def final_settings(settings: Settings, weights_mib: float) -> Settings:
    """The settings with device, precision, jobs and threads filled in; a plan is made from these, and nothing changes
    them later.

    ``weights_mib``: size of the backbone's weights. One job, unless more are asked for, where a method, data set or
    protocol is registered that another process cannot import. Under ``--executor ray`` the device stays as given: it is
    chosen by the cluster's workers.

    Under ``--executor ray`` the precision is nevertheless settled here, since it is part of every key: by the device
    of this machine.

    Raises :class:`~benchmarks.runner.settings.SettingsError` for a device that is not there, or a precision that it
    does not have.
    """
    device, gpus = pick_device(settings.device), 0
    settings = dataclasses.replace(settings, precision=pick_precision(settings.precision, device))
    if not settings.jobs and unnamed(settings):
        settings = dataclasses.replace(settings, jobs=1)
    if device.startswith("cuda"):
        import torch

        gpus = torch.cuda.device_count() if device == "cuda" else 1
    settings = spread(settings, weights_mib=weights_mib, gpus=gpus)
    return settings if settings.executor == "ray" else dataclasses.replace(settings, device=device)


def pick_device(name: str) -> str:
    """``auto`` is ``cuda`` where there is one, else ``cpu``.

    A device must keep what is put there: torch's ``meta`` does not. Raises
    :class:`~benchmarks.runner.settings.SettingsError` for a device that is not there.
    """
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        torch.ones(1, device=name).item()
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0].partition(". ")[0]  # torch goes on with all it was built with
        raise SettingsError(f"--device {name} cannot be used here ({reason}); try --device cpu") from error
    return name


def pick_precision(name: str, device: str) -> FinalPrecision:
    """``auto`` is ``bf16`` on a GPU whose matrix units have it (CUDA, compute capability 8.0), else ``float32``.

    Raises :class:`~benchmarks.runner.settings.SettingsError` for ``tf32`` on a device without it.
    """
    if name in ("float32", "bf16"):
        return name  # type: ignore[return-value]
    has_both = False
    if device.startswith("cuda"):
        import torch

        has_both = torch.cuda.get_device_capability(device) >= (8, 0)
    if name == "auto":
        return "bf16" if has_both else "float32"
    if not has_both:
        raise SettingsError(
            f"--precision tf32: {device} does not have it (it needs CUDA, compute capability 8.0); use float32"
        )
    return "tf32"


def cores() -> int:
    """The physical cores this process may use."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(psutil.cpu_count(logical=False) or 1, allowed))


def spread(settings: Settings, *, weights_mib: float = 0, gpus: int = 0) -> Settings:
    """The settings with ``jobs`` and ``threads`` filled in from the machine.

    Small models train fastest on one thread each, so ``jobs`` becomes the number of cores, or of GPUs where the run is
    on them, as far as memory reaches: a worker needs a GiB and six times the backbone's weights (trained copy,
    gradients, two moments, best copy so far). ``threads`` becomes ``OMP_NUM_THREADS`` if set, else what is left of the
    cores for each job. Only what a machine has counts, never what is free just now, so a resumed sweep has the
    threads, and with them the last digits, that it began with. On a Ray cluster ``jobs`` is left to the cluster, and a
    fit has one thread unless ``--threads`` says otherwise.
    """
    given = os.environ.get("OMP_NUM_THREADS", "")
    threads = settings.threads or (int(given) if given.isdigit() else 0)
    if settings.executor == "ray":
        return dataclasses.replace(settings, threads=threads or 1)
    jobs = settings.jobs
    if not jobs:
        need = 1024 + 6 * weights_mib
        room = int(psutil.virtual_memory().total / 2**20 * 0.75 / need)
        jobs = max(1, gpus or min(cores() // (threads or 1), room))
    return dataclasses.replace(settings, jobs=jobs, threads=threads or max(1, cores() // jobs))
