"""Where a score was measured: package versions, the code's commit, hardware. No host, user or path names."""

from __future__ import annotations

import functools
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import psutil

from benchmarks.store.records import Environment
from methods.parts.parallel import launched

PACKAGES = ("ucdr-bench", "torch", "transformers", "tokenizers", "peft", "numpy", "pandas", "torch_geometric", "nltk")


def environment(device: str, threads: int) -> Environment:
    """The environment of this process; ``processes`` is in its hardware where several train together."""
    together = {"processes": launched()} if launched() > 1 else {}
    return Environment(_packages(), _git(), _hardware(device) | together, device, threads, _tf32(), _arithmetic())


def _tf32() -> bool:
    """Whether torch may use TF32 for float32 products or convolutions."""
    import torch

    return bool(torch.backends.cuda.matmul.allow_tf32 or torch.backends.cudnn.allow_tf32)


def _arithmetic() -> dict[str, Any]:
    """The settings of torch that decide how numbers are computed, as they are now."""
    import torch

    cuda, cudnn = torch.backends.cuda, torch.backends.cudnn
    kernels = {
        "math": cuda.math_sdp_enabled(),
        "flash": cuda.flash_sdp_enabled(),
        "memory_efficient": cuda.mem_efficient_sdp_enabled(),
        "cudnn": cuda.cudnn_sdp_enabled(),
    }
    deterministic = torch.are_deterministic_algorithms_enabled()
    return {
        "deterministic": ("warn" if torch.is_deterministic_algorithms_warn_only_enabled() else True)
        if deterministic
        else False,
        "cudnn_deterministic": cudnn.deterministic,
        "cudnn_benchmark": cudnn.benchmark,
        "matmul_tf32": cuda.matmul.allow_tf32,
        "cudnn_tf32": cudnn.allow_tf32,
        "bf16_reduced_precision_sums": bool(cuda.matmul.allow_bf16_reduced_precision_reduction),
        "cublas_workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG", ""),
        "attention": [name for name, on in kernels.items() if on],
        "training_attention": ["math"],  # on a GPU: methods.training.loop.training_attention
    }


@functools.cache
def _packages() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


@functools.cache
def _git() -> dict[str, Any]:
    """Commit and whether tracked files differ from it; empty if the code does not lie in a repository of its own."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # an installed copy inside somebody else's repository has no commit of its own
        return {}

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=True, timeout=20
        ).stdout.strip()

    try:
        return {
            "commit": git("rev-parse", "HEAD"),
            "dirty": bool(git("status", "--porcelain", "--untracked-files=no", "--", "benchmarks", "methods")),
        }
    except (OSError, subprocess.SubprocessError):
        return {}


@functools.cache
def _hardware(device: str) -> dict[str, Any]:
    facts: dict[str, Any] = {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _cpu(),
        "cores": psutil.cpu_count(logical=False),
        "logical_cores": psutil.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
    }
    if device.startswith("cuda"):
        import torch

        gpu = torch.cuda.get_device_properties(torch.device(device))
        facts |= {"gpu": gpu.name, "gpu_memory_gib": round(gpu.total_memory / 2**30, 1), "cuda": torch.version.cuda}
    return facts


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


class PeakMemory:
    """Highest resident memory of this process since :meth:`restart`, in MiB.

    Linux keeps the mark and lets a process set it back. Elsewhere the mark of the whole process is the best there
    is, an upper bound.
    """

    def restart(self) -> None:
        """Forget what was before."""
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            return

    def mib(self) -> float:
        """The mark."""
        try:
            lines = Path("/proc/self/status").read_text().splitlines()
            return int(next(line for line in lines if line.startswith("VmHWM:")).split()[1]) / 1024
        except (OSError, StopIteration):
            import resource
            import sys

            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            return peak / 2**20 if sys.platform == "darwin" else peak / 1024
