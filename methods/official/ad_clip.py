"""What the code released with AD-CLIP does differently from the paper; methods/cards/ad_clip.toml has all differences.

Shapes: B images, C classes, n layers, w vision width.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

#: Changes to the paper's settings: every switch as in the released code.
SETTINGS: dict[str, Any] = {
    "smn_input": "source",
    "test_tokens": "own",
    "pairing": "item",
    "entropy": "batch_normalised",
    "shared_mix": True,
    "domain_input": "average",
    "style_input": "neighbours",
    "schedule": "iteration",
}

#: Those of the released code with CLIP's ResNet, whose projectors keep their first layers in plain lists of Python: no
#: optimiser gets them, and no file.
RESNET_SETTINGS: dict[str, Any] = {**SETTINGS, "fixed_first": True}


def average_style(mu: Tensor, sigma: Tensor) -> Tensor:
    """Input of the domain projector: (mu + sigma) / 2, of two tensors [B, n, w] -> [B, n, w]."""
    return (mu + sigma) / 2


def neighbour_means(style: Tensor) -> Tensor:
    """Input of the style mapping network: means of channels 2j and 2j + 1 of [mu ; sigma] [B, n, 2w] -> [B, n, w]."""
    return style.unflatten(-1, (-1, 2)).mean(dim=-1)


def batch_normalised_entropy(logits: Tensor) -> Tensor:
    """Entropy of the softmax of logits [B, C], divided by its L2 norm over the batch: no distribution; mean over B."""
    shares = F.normalize(logits.softmax(dim=-1), dim=0)
    return -(shares * (shares + 1e-8).log()).sum(dim=-1).mean()
