"""What the official code of UCDR-Adapter does differently from the paper; methods/cards/ucdr_adapter.toml has all.

Shapes: B images, E embedding width.
"""

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from methods.parts.losses import without_rounding
from methods.parts.queues import ClassQueues

#: Changes to the paper's settings: every switch as in the official code.
SETTINGS: dict[str, Any] = {
    "mask": False,
    "read_out": "first_prompt",
    "attention_query": "corner_patch",
    "momentum_start": "own",
    "momentum_in_phase2": True,
    "train_statistics": "imagenet",
    "test_statistics": "clip",
    "stage1_learning_rate": 1e-4,
    "sampler": "released",
}


def hardest_triplet_loss(anchors: Tensor, queues: ClassQueues, labels: Tensor, margin: float) -> Tensor:
    """The triplet loss with each image's farthest positive and nearest negative: in the official code, but unused.

    ``anchors`` [B, E] and the queues are L2-normalised. Images without a positive or a negative do not count.
    """
    exact = "donot_use_mm_for_euclid_dist"
    distances = without_rounding(torch.cdist(anchors, queues.features.flatten(0, 1), compute_mode=exact))
    distances = distances.unflatten(1, (-1, queues.size))  # [B, C, size]
    filled = torch.arange(queues.size, device=anchors.device) < queues.lengths[:, None]
    own = (torch.arange(len(filled), device=anchors.device) == labels[:, None])[..., None]
    farthest = distances.masked_fill(~(own & filled), -math.inf).amax(dim=(1, 2))
    nearest = distances.masked_fill(~(~own & filled), math.inf).amin(dim=(1, 2))
    valid = farthest.isfinite() & nearest.isfinite()
    return F.relu(farthest - nearest + margin)[valid].sum() / valid.sum().clamp(min=1)
