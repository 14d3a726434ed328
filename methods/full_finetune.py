"""CLIP-Full: the whole vision tower trained with the image-text loss. docs/methods.md, "Baselines".

Nothing is added to CLIP; a copy of its vision tower (blocks, embeddings, LayerNorms, projection) is trained. Texts,
``a photo of a {class}``, are constant and computed once. Loss: cross-entropy over cosine(image, text of every class
with labelled images) / tau (:mod:`methods.training.image_text`). Settings: those that the ProS release (MIT) runs its
CLIP-Full baseline with on DomainNet (Adam 1e-6, weight decay 4e-5, batch 256, 100 epochs, early stop 2; batch 480 and
early stop 3 on Sketchy and TU-Berlin). That baseline trains the text tower and CLIP's temperature as well:
``variants["official"]``.

Shapes: B images, C classes with labelled images, E embedding width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from methods.cards import read_card
from methods.official.pros_release import BASELINE
from methods.parts.losses import cosine_similarities
from methods.training.image_text import OwnClipMethod, ReleasedConfig


@dataclass(frozen=True)
class FullFinetuneConfig(ReleasedConfig):
    """Settings of CLIP-Full. They are for OpenAI's CLIP; a small CLIP needs a larger learning rate to move at all."""

    train_text: bool = False  # the text tower and its projection are trained too, and with ``temperature`` 0 the
    # logit scale (released)
    learning_rate: float = 1e-6  # of Adam
    weight_decay: float = 4e-5  # of Adam


class FullFinetune(OwnClipMethod):
    """CLIP with its vision tower trained."""

    card = read_card("full_finetune")
    Config = FullFinetuneConfig
    stage = "vision tower"
    needs = "features"
    lowest_rate = 1e-8
    seed_parts = (0, 1)  # nothing is drawn at the start
    variants: ClassVar = {"official": {**BASELINE, "train_text": True}}
    ablations: ClassVar[dict[str, dict[str, Any]]] = {
        "train_text": {"train_text": True},
        "clip_temperature": {"temperature": 0.0},
        "not_augmented": {"augment": False},
    }
    config: FullFinetuneConfig

    def build(self, seed: int) -> dict[str, nn.Parameter]:
        """The trained weights of a copy of CLIP, by CLIPModel's names."""
        self.copy = self.backbone.clone()
        trained = self.copy.vision_parameters()
        if self.config.train_text:
            trained |= self.copy.text_parameters()
            if not self.config.temperature:
                trained["logit_scale"] = self.copy.model.logit_scale
        return trained

    @property
    def frozen_texts(self) -> bool:
        """Whether the text tower is left as it is."""
        return not self.config.train_text

    def loss(self, images: Tensor, texts: Tensor, labels: Tensor) -> Tensor:
        """Cross-entropy over cosine / tau, or over cosine times CLIP's own scale, which may be trained."""
        scale = 1 / self.config.temperature if self.config.temperature else self.clip.model.logit_scale.exp()
        return F.cross_entropy(scale * cosine_similarities(images, texts), labels)
