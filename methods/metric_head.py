"""Metric-learning head: a linear map of frozen CLIP image features with the supervised contrastive loss (Khosla et al.,
NeurIPS 2020). docs/methods.md, "Baselines".

Idea: retrieval ranks images by images, so the map W [E, E], the identity at first, is trained on images alone: those of
a class, from all training domains, are drawn together and away from the others. For an image i of a batch I with its
positives P(i), the other images of its class in the batch, and z = W f / |W f|,

    L = mean over i with P(i) not empty of  - 1 / |P(i)|  sum over p in P(i) of
        log( exp(z_i z_p / tau) / sum over a in I, a != i, of exp(z_i z_a / tau) )

(L_out of the paper, tau = 0.1). The paper gives each image a positive by augmenting it twice; a frozen feature has no
second view. Here half of the batch, the anchors, is drawn balanced over domains, as in all baselines, and each brings
along an image of its class from another domain (of its own domain where its class is in no other).

Class embeddings, which the paper does not have: W g of the text feature g, since W changes the metric of the space that
images and texts share. (The loss is the same for R W with any rotation R; the cosine of W f with g is not.)

Speed: frozen image features are computed once and cached where images are not augmented. Several processes: all compute
the whole batch, each the loss of its share of the images.

Shapes: B images, A anchors, N labelled images, C classes, E embedding width.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from methods.cards import read_card
from methods.interface import NotApplicableError, TrainingData
from methods.parts.parallel import processes, rank
from methods.training.batches import Partners, batches
from methods.training.image_text import LinearMapConfig, LinearMapMethod


def contrastive_terms(images: Tensor, labels: Tensor, *, temperature: float) -> tuple[Tensor, Tensor]:
    """The loss of each image as an anchor [B], 0 for one without positives, and the number of its positives [B].

    ``images`` [B, E] (normalised here), ``labels`` [B].
    """
    images = F.normalize(images, dim=-1)
    itself = torch.eye(len(labels), dtype=torch.bool, device=images.device)
    logits = images @ images.T / temperature
    logits = logits.masked_fill(itself, torch.finfo(logits.dtype).min)
    positive = (labels[:, None] == labels) & ~itself
    count = positive.sum(1)
    return -logits.log_softmax(1).where(positive, 0.0).sum(1) / count.clamp(min=1), count


@dataclass(frozen=True)
class MetricHeadConfig(LinearMapConfig):
    """Settings of the metric-learning head."""

    temperature: float = 0.1  # tau of the loss; 0: CLIP's own, 1 / logit scale
    batch_size: int = 256  # images a step: anchors and their partners, each once
    cross_domain: bool = True  # a partner comes from another domain; False: from any
    map_texts: bool = True  # class embeddings are W g; False: the texts g


class MetricHead(LinearMapMethod):
    """A linear map of frozen image features, trained with the supervised contrastive loss."""

    card = read_card("metric_head")
    Config = MetricHeadConfig
    ablations: ClassVar[dict[str, dict[str, Any]]] = {
        "any_domain": {"cross_domain": False},
        "texts_not_mapped": {"map_texts": False},
        "clip_temperature": {"temperature": 0.0},
        "augmented": {"augment": True},
    }
    config: MetricHeadConfig

    def loss(self, images: Tensor, texts: Tensor, labels: Tensor) -> Tensor:
        """This process's part of the supervised contrastive loss of a batch: images [B, E], labels [B]."""
        terms, count = contrastive_terms(images, labels, temperature=1 / self.logit_scale())
        return terms[rank() :: processes()].sum() * processes() / (count > 0).sum().clamp(min=1)

    def batches(self, data: TrainingData, generator: torch.Generator) -> Iterator[Tensor]:
        """Endless index batches of anchors, balanced over domains, and their partners: sorted, each image once.

        Raises :class:`~methods.interface.NotApplicableError` if no class has two labelled images.
        """
        if len(data.labelled_classes) == len(data.labels):
            wanted = "compares two images of a class; no class has two labelled ones here"
            raise NotApplicableError(f"{self.card.name} {wanted}")
        domains = data.domains if self.config.cross_domain else torch.zeros_like(data.domains)
        partners = Partners(data.labels, domains)
        for anchors in batches(data, max(1, self.config.batch_size // 2), generator, balanced="domain"):
            yield torch.unique(torch.cat([anchors, partners.draw(anchors, generator)]))

    def encoded_rows(self, batch: Tensor) -> Tensor:
        """All of them: an image is compared with the whole batch."""
        return batch

    @torch.no_grad()
    def encode_classes(self, names: Sequence[str]) -> Tensor:
        """Normalised ``[C, E]``: the texts of any class names through the map."""
        texts = self.text_features(self.prompts(names))
        return F.normalize(self.head(texts) if self.config.map_texts else texts, dim=-1)
