"""CoOp: learning to prompt for vision-language models (Zhou et al., IJCV 2022). docs/methods.md, "Baselines".

Idea: the words before a class name are learned vectors, ``X_1 ... X_16 {class}.``, the same for all classes. Everything
else is CLIP as it is: images are embedded by the frozen vision tower, so a *retrieval* by images alone scores
exactly what zero-shot CLIP scores; only class embeddings, and what is classified with them, change.

Trained: the context. Loss: cross-entropy over cosine(image, text of every class with labelled images) / tau
(:mod:`methods.training.image_text`). Settings: those that the ProS release (MIT) runs its CoOp baseline with (Adam
1e-3, batch 256, 100 epochs, early stop 2, 16 context tokens). That baseline also trains both projections and divides by
CLIP's own temperature: ``variants["official"]``.

Speed: frozen image features are computed once and cached where images are not augmented, so a step is the text side
alone, and the 17 leading positions that all classes share are computed once a step.

Shapes: B images, C classes with labelled images, m context tokens, v text width, E embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from methods.cards import read_card
from methods.official.pros_release import BASELINE
from methods.parts.backbone import ClipBackbone, PromptBackbone
from methods.parts.capabilities import Capability
from methods.parts.prompt_units import new_context
from methods.parts.prompts import PromptTemplate, encode_prompts
from methods.training.image_text import ImageTextMethod, Prompts, ReleasedConfig
from methods.training.loop import seeded


@dataclass(frozen=True)
class CoOpConfig(ReleasedConfig):
    """Settings of CoOp."""

    context_tokens: int = 16  # m, learned vectors before the class name, shared by all classes
    template: str = "{context} {name}."  # the text of a class, with ``{context}`` and ``{name}``
    train_projections: bool = False  # both projections are trained too (released)
    augment: bool = False  # random crop, flip and colour jitter (released); without it image features are cached


class CoOp(ImageTextMethod):
    """Learned context before the class name; frozen CLIP images."""

    card = read_card("coop")
    Config = CoOpConfig
    stage = "context"
    needs = "styles"
    variants: ClassVar = {"official": {**BASELINE, "train_projections": True, "augment": True}}
    ablations: ClassVar[dict[str, dict[str, Any]]] = {
        "context_4": {"context_tokens": 4},
        "train_projections": {"train_projections": True},
        "clip_temperature": {"temperature": 0.0},
        "augmented": {"augment": True},
    }
    config: CoOpConfig
    backbone: PromptBackbone

    @classmethod
    def needs_of(cls, config: CoOpConfig) -> Capability:
        """``tokens`` to train both projections, as only a vision transformer's image branch ends with one."""
        return "tokens" if config.train_projections else cls.needs

    def build(self, seed: int) -> dict[str, nn.Parameter]:
        """``context`` [m, v] from N(0, 0.02^2); with ``train_projections`` CLIP's projections by CLIPModel's names."""
        parts = {"context": new_context(self.config.context_tokens, self.backbone, seeded(seed, 0))}
        if self.config.train_projections:
            for name in ("visual_projection.weight", "text_projection.weight"):
                parts[name] = self.backbone.model.get_parameter(name).detach().clone()
        return {name: nn.Parameter(part) for name, part in parts.items()}

    @property
    def frozen_images(self) -> bool:
        """True unless the projections are trained."""
        return not self.config.train_projections

    @property
    def frozen_texts(self) -> bool:
        """False: the context is in them."""
        return False

    def prompts(self, names: Sequence[str]) -> PromptTemplate:
        """The classes' texts with places for the context."""
        return PromptTemplate.build(self.backbone, names, self.config.template, self.config.context_tokens)

    def text_features(self, prompts: Prompts) -> Tensor:
        """Text features [C, E] of ``X_1 ... X_m {class}.``, not normalised."""
        assert isinstance(prompts, PromptTemplate)
        learned, fast = self.trainable(), self.config.fast
        projection = learned.get("text_projection.weight")
        return encode_prompts(
            self.backbone, prompts, learned["context"], projection=projection, shared_prefix=fast, cut=fast
        )

    def image_features(self, pixels: Tensor) -> Tensor:
        """Image features [B, E] of normalised pixels, not normalised: frozen CLIP's, through the projection in use."""
        if not isinstance(self.backbone, ClipBackbone):
            with torch.no_grad():
                return self.backbone.encode_images(pixels)
        with torch.no_grad():
            tokens = self.backbone.run_vision(self.backbone.image_tokens(pixels), read=0)
        return self.backbone.readout(tokens, projection=self.trainable().get("visual_projection.weight"))
