"""Loss terms that several methods share. A term of one paper only is in that paper's file.

Shapes: B images, C classes, E embedding width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

TEMPERATURE = 0.07  # tau of docs/methods.md, unless a method sets another

#: Unit vectors nearer than this are equal: float32 features of one image, computed twice, differ by about 1e-7.
SAME_VECTOR = 1e-5


def cosine_similarities(images: Tensor, texts: Tensor) -> Tensor:
    """Cosines of images [B, E] with texts [C, E], or with each image's own texts [B, C, E] -> [B, C]."""
    images, texts = F.normalize(images, dim=-1), F.normalize(texts, dim=-1)
    if texts.ndim == 2:
        return images @ texts.T
    return torch.einsum("be,bce->bc", images, texts)


def image_text_loss(images: Tensor, texts: Tensor, labels: Tensor, *, temperature: float = TEMPERATURE) -> Tensor:
    """Mean cross-entropy of softmax(cosine / temperature) over the C texts (docs/methods.md, ProS).

    ``images`` [B, E], ``texts`` [C, E] or [B, C, E] (normalised here), ``labels`` [B] in 0..C-1.
    """
    return F.cross_entropy(cosine_similarities(images, texts) / temperature, labels)


def mean_entropy(logits: Tensor) -> Tensor:
    """Mean Shannon entropy, in nats, of softmax(logits) over the last axis: logits [B, C] -> scalar."""
    log_probabilities = logits.log_softmax(dim=-1)
    return -(log_probabilities.exp() * log_probabilities).sum(dim=-1).mean()


def triplet_hinge(anchors: Tensor, positives: Tensor, negatives: Tensor, *, margin: float) -> Tensor:
    """``relu(|a - p| - |a - n| + margin)`` with Euclidean distances of unit vectors: three tensors [..., E] -> [...],
    not averaged.

    A distance below :data:`SAME_VECTOR` is 0, and so is its gradient.
    """
    to_positive = torch.linalg.vector_norm(anchors - positives, dim=-1)
    to_negative = torch.linalg.vector_norm(anchors - negatives, dim=-1)
    return F.relu(without_rounding(to_positive) - without_rounding(to_negative) + margin)


def without_rounding(distances: Tensor) -> Tensor:
    """Distances of unit vectors, those below :data:`SAME_VECTOR` as 0 with gradient 0.

    The same features computed twice (with other threads, or in a batch of another size) differ in their last bits, and
    the gradient of so small a distance is a unit vector in a random direction.
    """
    return torch.where(distances > SAME_VECTOR, distances, 0.0)
