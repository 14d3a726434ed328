"""Linear probe of frozen CLIP image features (Radford et al., ICML 2021, section 3.2). docs/methods.md, "Baselines".

Idea: a linear classifier on frozen features shows what these features hold. CLIP's paper fits a logistic regression to
the training classes; its rows say nothing of other classes and embed no image. So here the classifier is written as a
linear map W [E, E] of the image feature f, the identity at first, and the text g_c of each class:

    p(c | x) = softmax_c(cos(W f, g_c) / tau)

The class rows W^T g_c can be any where there are at most E classes with linearly independent texts. W f embeds the
image; every class, trained on or not, is embedded as its text.

Trained: W; with ``classifier`` "trained" the class rows too, which start at the texts. A class that was trained on is
then embedded as its row, any other as its text. Loss: cross-entropy over cosine(image, text of every class with
labelled images) / tau (:mod:`methods.training.image_text`), Adam in batches, as in all baselines here; CLIP's paper has
L-BFGS and an L2 penalty searched on validation data, whose place early stop takes. The feature is read behind CLIP's
projection, where texts can be compared with it (CLIP's paper: before).

Speed: frozen image features are computed once and cached where images are not augmented, so a step is a product with W
and one with the texts.

Shapes: B images, C classes with labelled images, E embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.cards import read_card
from methods.interface import FitReport, Log, TrainingData
from methods.training.batches import seen_classes
from methods.training.image_text import LinearMapConfig, LinearMapMethod


@dataclass(frozen=True)
class LinearProbeConfig(LinearMapConfig):
    """Settings of the linear probe."""

    classifier: Literal["texts", "trained"] = "texts"  # the class rows behind the map: fixed texts, or trained from
    # there


class LinearProbe(LinearMapMethod):
    """Logistic regression on frozen image features, through a map of the embedding space."""

    card = read_card("linear_probe")
    Config = LinearProbeConfig
    fact_names = ("class_names",)
    ablations: ClassVar[dict[str, dict[str, Any]]] = {
        "trained_classifier": {"classifier": "trained"},
        "clip_temperature": {"temperature": 0.0},
        "augmented": {"augment": True},
    }
    config: LinearProbeConfig

    #: The C classes trained on, in the order of the class rows.
    class_names: tuple[str, ...] = ()

    def build(self, seed: int) -> dict[str, nn.Parameter]:
        """``map`` [E, E], the identity; with ``classifier`` "trained" also ``classes`` [C, E], the unit texts."""
        parts = super().build(seed)
        if self.config.classifier == "trained":
            with torch.no_grad():
                texts = F.normalize(self.text_features(self.prompts(self.class_names)), dim=-1)
            parts["classes"] = nn.Parameter(texts)
        return parts

    def loss(self, images: Tensor, texts: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy over cosine / tau with the class rows in use: images [B, E], texts [C, E], labels [B]."""
        return super().loss(images, self.trainable().get("classes", texts), labels)

    def fit(self, data: TrainingData, *, seed: int, log: Log) -> FitReport:
        """Train on the labelled images."""
        self.class_names = tuple(seen_classes(data)[0])
        return super().fit(data, seed=seed, log=log)

    @torch.no_grad()
    def encode_classes(self, names: Sequence[str]) -> Tensor:
        """Normalised embeddings ``[C, E]``: a class's trained row if it has one, else its text."""
        texts, rows = super().encode_classes(names), self.trainable().get("classes")
        if rows is None:
            return texts
        number = {name: n for n, name in enumerate(self.class_names)}
        return torch.stack(
            [
                F.normalize(rows[number[name]], dim=0) if name in number else text
                for name, text in zip(names, texts, strict=True)
            ]
        )
