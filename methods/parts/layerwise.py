"""Linear maps of one vector for each layer of a tower, each layer with weights of its own.

Shapes: B images, n layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn


def layerwise_linear(wide: Sequence[int], out: int, generator: torch.Generator) -> nn.Module:
    """A linear map from each of n layers' own width: [B, n, in] -> [B, n, out]."""
    if len(set(wide)) == 1:
        return LayerwiseLinear(len(wide), wide[0], out, generator)
    return UnequalLinear(wide, out, generator)


class LayerwiseLinear(nn.Module):
    """A separate linear map for every layer: [B, n, in] -> [B, n, out]. Starts as ``torch.nn.Linear`` does."""

    def __init__(self, layers: int, wide: int, out: int, generator: torch.Generator) -> None:
        super().__init__()
        bound = wide**-0.5
        self.weight = nn.Parameter(torch.empty(layers, out, wide).uniform_(-bound, bound, generator=generator))
        self.bias = nn.Parameter(torch.empty(layers, out).uniform_(-bound, bound, generator=generator))

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.einsum("bni,noi->bno", inputs, self.weight) + self.bias


class UnequalLinear(nn.Module):
    """:class:`LayerwiseLinear` for layers of unequal widths: of a row it reads as many values as its layer is wide."""

    def __init__(self, wide: Sequence[int], out: int, generator: torch.Generator) -> None:
        super().__init__()
        self.layers = nn.ModuleList(LayerwiseLinear(1, width, out, generator) for width in wide)
        self.wide = tuple(wide)

    def forward(self, inputs: Tensor) -> Tensor:
        parts = zip(self.layers, self.wide, strict=True)
        return torch.cat([linear(inputs[:, n : n + 1, :width]) for n, (linear, width) in enumerate(parts)], dim=1)
