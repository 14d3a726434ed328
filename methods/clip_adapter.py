"""CLIP-Adapter: better vision-language models with feature adapters (Gao et al., IJCV 2024).
docs/methods.md, Baselines.

Idea: CLIP stays frozen; a small network behind it (a bottleneck of two linear maps without biases, a ReLU after each)
adds what the training classes need, and a residual connection with a fixed ratio keeps what CLIP knows:

    A(x)  = relu(relu(x V) U)                  V [E, E / 4], U [E / 4, E]
    f'    = alpha A_v(f) + (1 - alpha) f       the image feature f of CLIP, before L2 normalisation
    g_c'  = beta A_t(g_c) + (1 - beta) g_c     the text feature of class c (``branch`` text or both)
    p(c | x) = softmax_c(cos(f', g_c') / tau), tau CLIP's own

Trained: the adapters. The paper's main model, and all that is released, adapts the images alone (beta = 0). The paper
searches alpha for each data set; the released code has 0.2, the default here. Batches of 32 and learning rate 1e-5 are
the paper's. Loss and loop: :mod:`methods.training.image_text`.

Extension: f' embeds an image for retrieval and g_c' embeds any class, trained on or not.

Speed: frozen image features are computed once and cached where images are not augmented.

Shapes: B images, C classes with labelled images, E embedding width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.cards import read_card
from methods.parts.bounds import Bound
from methods.training.image_text import ImageTextConfig, ImageTextMethod, Prompts
from methods.training.loop import seeded


def adapted(features: Tensor, down: Tensor, up: Tensor, ratio: float) -> Tensor:
    """ratio A(x) + (1 - ratio) x: features x [..., E], ``down`` [H, E], ``up`` [E, H] -> [..., E]."""
    return ratio * F.linear(F.linear(features, down).relu(), up).relu() + (1 - ratio) * features


@dataclass(frozen=True)
class ClipAdapterConfig(ImageTextConfig):
    """Settings of CLIP-Adapter."""

    bounds: ClassVar = {
        **ImageTextConfig.bounds,
        "image_ratio": Bound(low=0, high=1),
        "text_ratio": Bound(low=0, high=1),
        "reduction": Bound(low=1),
    }
    branch: Literal["image", "text", "both"] = "image"  # the towers whose features an adapter changes
    image_ratio: float = 0.2  # alpha, the adapter's share of the image feature
    text_ratio: float = 0.2  # beta, the adapter's share of the text feature
    reduction: int = 4  # E over the bottleneck's width
    template: str = "a photo of a {name}."  # the text of a class, with ``{name}``
    temperature: float = 0.0  # tau of the loss; 0: CLIP's own, 1 / logit scale
    learning_rate: float = 1e-5  # of Adam
    batch_size: int = 32  # images a step
    augment: bool = False  # random crop, flip and colour jitter; without it image features are computed once


class ClipAdapter(ImageTextMethod):
    """Bottleneck adapters behind frozen CLIP, blended with its features."""

    card = read_card("clip_adapter")
    Config = ClipAdapterConfig
    stage = "adapters"
    needs = "features"
    ablations: ClassVar[dict[str, dict[str, Any]]] = {
        "mostly_adapter": {"image_ratio": 0.6},
        "no_residual": {"image_ratio": 1.0},
        "text_adapter": {"branch": "text"},
        "both_adapters": {"branch": "both"},
        "reduction_16": {"reduction": 16},
    }
    config: ClipAdapterConfig

    def build(self, seed: int) -> dict[str, nn.Parameter]:
        """``image_down`` [H, E] and ``image_up`` [E, H], or ``text_...``, as ``torch.nn.Linear`` starts."""
        wide, generator = self.backbone.embed_dim, seeded(seed, 0)
        narrow = max(1, wide // self.config.reduction)
        parts = {}
        for branch in ("image", "text"):
            if self.config.branch in (branch, "both"):
                for name, shape in (("down", (narrow, wide)), ("up", (wide, narrow))):
                    weight = torch.empty(shape).uniform_(-(shape[1] ** -0.5), shape[1] ** -0.5, generator=generator)
                    parts[f"{branch}_{name}"] = nn.Parameter(weight.to(self.device))
        return parts

    @property
    def frozen_images(self) -> bool:
        """True: the adapter reads frozen features."""
        return True

    @property
    def frozen_texts(self) -> bool:
        """Whether no adapter changes the texts."""
        return self.config.branch == "image"

    def head(self, features: Tensor) -> Tensor:
        """f' of image features f [B, E], not L2-normalised."""
        if self.config.branch == "text":
            return features
        learned = self.trainable()
        return adapted(features, learned["image_down"], learned["image_up"], self.config.image_ratio)

    def text_features(self, prompts: Prompts) -> Tensor:
        """g' of the texts [C, E], not L2-normalised."""
        with torch.no_grad():
            features = super().text_features(prompts)
        if self.config.branch == "image":
            return features
        learned = self.trainable()
        return adapted(features, learned["text_down"], learned["text_up"], self.config.text_ratio)
