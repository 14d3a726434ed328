"""UCDR-Adapter's equations as they are written, without speed-ups: the path of ``fast=False``, with the same numbers.

Shapes: B images, K prompts, n draws of an image, w vision width, E embedding width.
"""

import torch
from torch import Tensor, nn

from methods.parts.losses import triplet_hinge
from methods.parts.queues import ClassQueues


def masked_attention(query: Tensor, bank: Tensor, masked: Tensor, project: nn.Linear, temperature: float) -> Tensor:
    """Attention of query [B, w] over the bank [K, w], projected once per image: rows ``masked`` [B, K] are zero."""
    keys = project(bank.expand(len(query), -1, -1).masked_fill(masked[..., None], 0))  # [B, K, w]
    a = (torch.einsum("bw,bkw->bk", query, keys) / temperature).softmax(dim=-1)
    return torch.einsum("bk,bkw->bw", a, keys)


def triplet_loss(anchors: Tensor, queues: ClassQueues, labels: Tensor, uniforms: Tensor, margin: float) -> Tensor:
    """:func:`methods.ucdr_adapter.triplet_loss`, image by image."""
    lists, losses = queues.lists(), []
    for anchor, label, picks in zip(anchors, labels.tolist(), uniforms.tolist(), strict=True):
        positives = lists[label]
        negatives = torch.cat([queue for number, queue in enumerate(lists) if number != label])
        if len(positives) and len(negatives):
            for p, n in picks:
                positive, negative = positives[int(p * len(positives))], negatives[int(n * len(negatives))]
                losses.append(triplet_hinge(anchor, positive, negative, margin=margin))
    return torch.stack(losses).mean() if losses else anchors.sum() * 0
