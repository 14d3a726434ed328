"""PromptSRC: prompting with self-regulating constraints (Khattak et al., ICCV 2023). docs/methods.md, PromptSRC.

Idea: prompts of both towers (those of IVLP, :mod:`methods.maple`) that may not stray from what frozen CLIP knows. f and
g are frozen CLIP's image and text features, f_p and g_p the prompted ones, all normalised.

1. **Mutual agreement**: |f_p - f|, |g_p - g| (mean absolute differences) and the divergence of the prompted class
   probabilities from CLIP's, KL(softmax(s f g) || softmax(s f_p g_p)), s CLIP's logit scale.
2. **Textual diversity**: g is the mean of a class's features over 60 texts, normalised.
3. **Loss**: cross-entropy of s f_p g_p + ``image_weight`` |f_p - f| + ``text_weight`` |g_p - g| + the divergence.
4. **Gaussian weighted aggregation**: the model is the weighted mean of the prompts at the ends of epochs 1..T, with
   weights proportional to the normal density of the epoch, mean ``ensemble_mean``, deviation ``ensemble_std``: those of
   the first epochs are immature, those of the last ones overfit. While it trains, and where training stops early,
   the model is the mean of the epochs that have ended. (A run whose budget is a number of steps spreads the T
   epochs evenly over them.)

Trained: the prompts. The released code differs: methods/cards/promptsrc.toml. Retrieval, which the paper does not have,
compares image features; target images and classes without labelled images are not used.

Speed: as MaPLe; frozen features of class texts are computed once, those of images once where they are not augmented.

Shapes: B images, C classes with labelled images, E embedding width, T epochs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.cards import read_card
from methods.interface import FitReport, Log, TrainingData
from methods.maple import IVLP, IVLPConfig
from methods.parts.bounds import Bound
from methods.parts.feature_cache import image_features
from methods.parts.prompts import PromptTemplate, encode_prompts
from methods.parts.templates import IMAGENET_60
from methods.training.image_text import Prompts, TrainingBatch

# --- the loss --------------------------------------------------------------------------------------------------------


def loss_terms(
    images: Tensor, texts: Tensor, frozen_images: Tensor, frozen_texts: Tensor, labels: Tensor, scale: float
) -> dict[str, Tensor]:
    """(1, 3) The four terms, not weighted: features [B, E] and [C, E] (normalised here), ``labels`` [B] in 0..C-1.

    ``ce``; ``image`` and ``text``, means over all entries; ``logits``, the divergence divided by B C (released).
    """
    images, texts, frozen_images, frozen_texts = (
        F.normalize(features, dim=-1) for features in (images, texts, frozen_images, frozen_texts)
    )
    logits, frozen_logits = scale * images @ texts.T, scale * frozen_images @ frozen_texts.T
    divergence = F.kl_div(
        logits.log_softmax(dim=-1), frozen_logits.log_softmax(dim=-1), log_target=True, reduction="sum"
    )
    return {
        "ce": F.cross_entropy(logits, labels),
        "image": F.l1_loss(images, frozen_images),
        "text": F.l1_loss(texts, frozen_texts),
        "logits": divergence / logits.numel(),
    }


def epoch_weights(epochs: int, mean: float, deviation: float) -> list[float]:
    """(4) The weights of epochs 1..T, proportional to a normal density; their sum is 1."""
    heights = [-0.5 * ((epoch - mean) / deviation) ** 2 for epoch in range(1, epochs + 1)]
    densities = [math.exp(height - max(heights)) for height in heights]
    return [density / sum(densities) for density in densities]


# --- settings --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PromptSRCConfig(IVLPConfig):
    """Settings of PromptSRC."""

    bounds: ClassVar = {**IVLPConfig.bounds, "ensemble_std": Bound(above=0)}
    context_tokens: int = 4  # m, learned tokens at the input of a text block
    prompt_tokens: int = 4  # K, learned tokens at the input of a vision block
    image_weight: float = 10.0  # lambda_1, of |f_p - f|
    text_weight: float = 25.0  # lambda_2, of |g_p - g|
    logit_weight: float = 1.0  # of the divergence
    diverse_texts: bool = True  # g is a mean over 60 texts; False: of ``template`` alone
    ensemble: bool = True  # the Gaussian weighted mean over epochs; False: the last prompts
    ensemble_mean: float = 15.0  # mean of the weights, in epochs
    ensemble_std: float = 1.0  # their deviation, in epochs
    learning_rate: float = 2.5e-3  # of SGD, at the top of the cosine
    epochs: int = 20  # T, passes over the labelled images, over which the cosine falls


# --- the method ------------------------------------------------------------------------------------------------------


class PromptSRC(IVLP):
    """Prompts of both towers that are held to frozen CLIP's features, and averaged over training."""

    card = read_card("promptsrc")
    Config = PromptSRCConfig
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {}
    ablations: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "no_image_term": {"image_weight": 0.0},
        "no_text_term": {"text_weight": 0.0},
        "no_logit_term": {"logit_weight": 0.0},
        "one_text": {"diverse_texts": False},
        "no_ensemble": {"ensemble": False},
        "no_constraints": {"image_weight": 0.0, "text_weight": 0.0, "logit_weight": 0.0},
        "depth_1": {"depth": 1},
        "not_augmented": {"augment": False},
    }
    config: PromptSRCConfig
    _frozen_texts: Tensor | None = None  # while it trains: g [C, E]
    _frozen_images: Tensor | None = None  # while it trains: f [N, E], where images are not augmented
    _average: dict[str, nn.Parameter] | None = None  # while it trains: the mean of the epochs that have ended
    _weight: float = 0.0  # the sum of their weights
    _in_step: bool = False  # whether features are those of a training step, of the prompts that are trained

    def trainable(self) -> dict[str, nn.Parameter]:
        """The prompts in a training step, and their mean (4), as far as there is one, at any other time."""
        own = super().trainable()
        return own if self._average is None or self._in_step else self._average

    # --- training ---

    def fit(self, data: TrainingData, *, seed: int, log: Log) -> FitReport:
        """Train on the labelled images; the model is the mean of the prompts over the epochs."""
        self._average, self._weight = None, 0.0
        try:
            report = super().fit(data, seed=seed, log=log)
            if self._average is not None:
                self.parameters = self._average
        finally:
            self._average = self._frozen_texts = self._frozen_images = None
        return report

    @torch.no_grad()
    def begin(self, data: TrainingData, seed: int) -> None:
        """(2) Frozen CLIP's features of the classes, and of the images where they are not augmented."""
        config, (names, _) = self.config, self.labelled(data)
        texts = IMAGENET_60 if config.diverse_texts else (config.template,)
        features = [encode_prompts(self.backbone, PromptTemplate.build(self.backbone, names, text)) for text in texts]
        self._frozen_texts = torch.stack(features).mean(dim=0)
        if config.fast and not config.augmentation.active:
            known = image_features(self.backbone, data.images, statistics=config.train_statistics)
            self._frozen_images = known.to(self.device)

    def batch_loss(self, batch: TrainingBatch, prompts: Prompts, fixed_texts: Tensor | None) -> Tensor:
        """(3) The weighted sum of the terms; one of weight 0 is left out."""
        config = self.config
        assert batch.pixels is not None and self._frozen_texts is not None
        if self._frozen_images is not None:
            frozen = self._frozen_images[batch.index.to(self.device, non_blocking=True)]
        else:
            with torch.no_grad():
                frozen = self.backbone.encode_images(batch.pixels)
        self._in_step = True
        try:
            images, texts = self.image_features(batch.pixels), self.text_features(prompts)
        finally:
            self._in_step = False
        terms = loss_terms(images, texts, frozen, self._frozen_texts, batch.labels, self.logit_scale())
        weights = {"ce": 1.0, "image": config.image_weight, "text": config.text_weight, "logits": config.logit_weight}
        return torch.stack([weight * terms[name] for name, weight in weights.items() if weight]).sum()

    @torch.no_grad()
    def after_step(self, step: int, steps: int) -> None:
        """(4) At the end of an epoch the prompts join the mean."""
        config = self.config
        before, after = (passed * config.epochs // steps for passed in (step, step + 1))
        if not config.ensemble or before == after:
            return
        weight = sum(epoch_weights(config.epochs, config.ensemble_mean, config.ensemble_std)[before:after])
        self._weight += weight
        share = weight / self._weight if self._weight else 1.0
        current = self.fitted(self.parameters)
        if self._average is None:
            self._average = {name: nn.Parameter(value.clone(), requires_grad=False) for name, value in current.items()}
        for name, value in self._average.items():
            value.lerp_(current[name].detach(), share)
