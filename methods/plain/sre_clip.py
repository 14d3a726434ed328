"""SRE-CLIP without the speed-ups: L_pair by comparing all pairs (docs/methods.md, SRE-CLIP)."""

from __future__ import annotations

import torch
from torch import Tensor


def pair_loss(before: Tensor, after: Tensor, *, half: bool = False) -> Tensor:
    """L_pair: distances [R, C] of C classes to R classes before and after the graph network -> scalar.

    Over every row r and every pair with before[r, i] < before[r, j]: the mean of relu(after[r, i] - after[r, j]). NaN
    if there is no such pair. ``half`` (official): only pairs with i + j < C. ``before`` may be on the CPU, ``after`` on
    another device.
    """
    compared = before.unsqueeze(2) < before.unsqueeze(1)
    if half:
        places = torch.arange(before.shape[1], device=before.device)
        compared &= places.unsqueeze(1) + places < before.shape[1]
    pairs = torch.nonzero(compared.flatten()).flatten().to(after.device, non_blocking=True)
    return (after.unsqueeze(2) - after.unsqueeze(1)).flatten()[pairs].relu().mean()
