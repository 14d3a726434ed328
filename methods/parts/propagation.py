"""Message passing of a graph network with torch_geometric, in a separate file: that library loads slowly."""

from __future__ import annotations

from torch import Tensor
from torch_geometric.nn import Linear, MessagePassing

__all__ = ["Linear", "Propagation"]


class Propagation(MessagePassing):
    """Ahat H: the output of a node is the weighted sum over its neighbours and itself."""

    def __init__(self) -> None:
        super().__init__(aggr="add")

    def forward(self, hidden: Tensor, messages: Tensor, weights: Tensor, rows: int) -> Tensor:
        """``hidden`` [n, F], ``messages`` [2, M] (from, to), ``weights`` [M] -> the first ``rows`` nodes [rows, F]."""
        received: Tensor = self.propagate(messages, x=(hidden, None), weights=weights, size=(len(hidden), rows))
        return received

    def message(self, x_j: Tensor, weights: Tensor) -> Tensor:
        """The weighted features of the senders [M, F]."""
        return weights.unsqueeze(-1) * x_j
