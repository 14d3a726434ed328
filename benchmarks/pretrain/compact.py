"""A checkpoint small enough to keep under version control, from which training resumes.

Weights in float16, Adam's second moment as one byte a number on a logarithmic scale (within 6 % of its square root, and
never zero where it was not), no first moment: with beta1 = 0.9 that is the mean of ten steps and is back after some
dozens. A resumed run is therefore close to the uninterrupted one, not equal to it.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

_LEVELS = 254
#: Smallest root of a second moment that is not taken for zero, as a power of two.
_FLOOR = -34.0


def squeeze(moment: Tensor) -> tuple[Tensor, Tensor]:
    """Second moments of any shape -> bytes of that shape (0 for zero) and the scale's two ends ``[2]``."""
    root = moment.float().sqrt()
    exponent = root.clamp(min=2.0**_FLOOR).log2()
    low, high = exponent.min(), exponent.max()
    step = ((high - low) / _LEVELS).clamp(min=1e-6)
    level = ((exponent - low) / step).round() + 1
    return torch.where(root > 0, level, 0).to(torch.uint8), torch.stack([low, step])


def restore(level: Tensor, scale: Tensor) -> Tensor:
    """The moments again, float32."""
    root = torch.exp2(scale[0] + (level.float() - 1) * scale[1])
    return torch.where(level > 0, root.square(), 0)


def expand(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """A compact checkpoint's tensors in the form of :meth:`Trainer.load`; any other's unchanged."""
    full = dict(tensors)
    for name in [name for name in tensors if name.startswith("levels.")]:
        key = name.removeprefix("levels.")
        moment = restore(full.pop(name), full.pop(f"scale.{key}"))
        full |= {f"exp_avg_sq.{key}": moment, f"exp_avg.{key}": torch.zeros_like(moment)}
    return full


def write(run: Path, checkpoint: str, out: Path) -> int:
    """Write ``checkpoint`` of ``run`` compactly as the run folder ``out``; returns its bytes.

    Raises ``FileNotFoundError`` naming the checkpoint that is missing.
    """
    file = run / f"{checkpoint}.safetensors"
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: train first, or name another --checkpoint")
    small: dict[str, Tensor] = {}
    for name, value in load_file(file).items():
        slot, key = name.split(".", 1)
        if slot == "model":
            small[name] = value.half() if value.is_floating_point() else value
        elif slot == "exp_avg_sq":
            small[f"levels.{key}"], small[f"scale.{key}"] = squeeze(value)
    out.mkdir(parents=True, exist_ok=True)
    save_file(small, out / "checkpoint.safetensors")
    record = json.loads((run / f"{checkpoint}.json").read_text(encoding="utf-8"))
    (out / "checkpoint.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    shutil.copytree(run / "tokenizer", out / "tokenizer", dirs_exist_ok=True)
    return sum(path.stat().st_size for path in out.rglob("*") if path.is_file())
