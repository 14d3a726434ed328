"""Zero-shot CLIP (Radford et al., ICML 2021): nothing is trained; the baseline that every method must beat.

Image embedding: the normalised CLIP image feature. Class embedding: the normalised CLIP text feature of
``a photo of a {class}`` (underscores become spaces).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from methods.cards import read_card
from methods.interface import FitReport, Log, Method, TrainingData
from methods.parts.bounds import fill, template_fault


@dataclass(frozen=True)
class ZeroShotConfig:
    """``template``: the sentence a class name is put into, at ``{}`` or ``{name}``."""

    template: str = "a photo of a {}"

    def __post_init__(self) -> None:
        if reason := template_fault(self.template):
            raise ValueError(f"zero_shot: template {reason}")


class ZeroShot(Method):
    """CLIP without any training."""

    card = read_card("zero_shot")
    Config = ZeroShotConfig
    needs = "features"
    trained = False

    def fit(self, data: TrainingData, *, seed: int, log: Log) -> FitReport:
        """Nothing to learn."""
        return FitReport()

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """Normalised CLIP image features ``[B, E]``."""
        return F.normalize(self.encode_raw(pixels), dim=-1)

    @torch.no_grad()
    def encode_raw(self, pixels: Tensor) -> Tensor:
        """CLIP image features ``[B, E]`` as the projection gives them."""
        return self.backbone.encode_images(self.backbone.normalize(pixels.to(self.device)))

    @torch.no_grad()
    def encode_classes(self, names: Sequence[str]) -> Tensor:
        """Normalised CLIP text features ``[C, E]`` of the template filled with each name."""
        texts = [fill(self.config.template, name.replace("_", " ")) for name in names]
        return F.normalize(self.backbone.encode_texts(texts), dim=-1)
