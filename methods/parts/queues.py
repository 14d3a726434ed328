"""First-in, first-out queues of features, one per class, as tensors (UCDR-Adapter's momentum features).

Shapes: B images, C classes, n draws of an image, E embedding width.
"""

import torch
from torch import Tensor


class ClassQueues:
    """The last ``size`` features of every class, one tensor [C, size, E]."""

    def __init__(self, classes: int, size: int, width: int, device: torch.device | str = "cpu") -> None:
        self._rows = torch.zeros(classes * size + 1, width, device=device)  # the last one takes what no queue keeps
        self.features = self._rows[:-1].view(classes, size, width)
        self.pushed = torch.zeros(classes, dtype=torch.long, device=device)  # since the start, per class
        self.size = size

    @property
    def lengths(self) -> Tensor:
        """Features in each queue [C]."""
        return self.pushed.clamp(max=self.size)

    def push(self, features: Tensor, labels: Tensor) -> None:
        """Append features [B, E] to the queues of their classes [B], in batch order."""
        same = labels[:, None] == labels
        earlier, count = same.tril(-1).sum(dim=1), same.sum(dim=1)
        stays = count - earlier <= self.size  # more of one class than a queue holds: the last ones
        slot = (self.pushed[labels] + earlier) % self.size
        row = torch.where(stays, labels * self.size + slot, len(self._rows) - 1)
        self._rows.index_copy_(0, row, features.detach().to(self._rows.dtype))
        self.pushed += (labels[:, None] == torch.arange(len(self.pushed), device=labels.device)).sum(dim=0)

    def entry(self, classes: Tensor, age: Tensor) -> Tensor:
        """The features of these classes at these places, 0 the oldest: index tensors [...] -> [..., E]."""
        slot = (self.pushed[classes] - self.lengths[classes] + age) % self.size
        return self.features[classes, slot]

    def draw(self, labels: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """n positives and n negatives for each image, without a loop.

        ``uniforms`` [B, n, 2] in [0, 1) pick a place in the queue of the image's class, and one in all other queues
        joined in class order. Returns positives and negatives [B, n, E], and which images have both [B].
        """
        lengths = self.lengths
        ends = lengths.cumsum(dim=0)
        starts = ends - lengths
        own = lengths[labels][:, None]
        others = ends[-1] - own
        classes = labels[:, None].expand(uniforms.shape[:2])
        positives = self.entry(classes, (uniforms[..., 0].double() * own).long())
        place = (uniforms[..., 1].double() * others).long()
        place = place + torch.where(place >= starts[labels][:, None], own, 0)  # step over the class's own queue
        classes = torch.searchsorted(ends, place, right=True).clamp(max=len(ends) - 1)
        negatives = self.entry(classes, place - starts[classes])
        return positives, negatives, ((own > 0) & (others > 0))[:, 0]

    def lists(self) -> list[Tensor]:
        """Each queue's features [length, E], oldest first."""
        ages = torch.arange(self.size, device=self.pushed.device)
        lengths = enumerate(self.lengths.tolist())
        return [self.entry(torch.full_like(ages, number), ages)[:length] for number, length in lengths]
