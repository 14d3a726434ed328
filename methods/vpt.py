"""Visual prompt tuning (Jia et al., ECCV 2022), shallow and deep. docs/methods.md, "Baselines".

Idea: K learned tokens come behind the class token of the frozen vision tower,
``[cls + pos_0 ; P_1 ... P_K ; patches + pos_1..]``.

* ``vpt_shallow``: at the input of the tower; the blocks carry them on.
* ``vpt_deep``: at the input of every block; blocks 1..n-1 put fresh prompts in the place of the last block's outputs.

The feature is read at the class token. Trained: the prompts. Texts, ``a photo of a {class}``, are constant and computed
once. Loss: cross-entropy over cosine(image, text of every class with labelled images) / tau
(:mod:`methods.training.image_text`). Settings: those that the ProS release (MIT) runs its VPT baseline with (Adam 1e-3,
batch 256, 100 epochs, early stop 2, 10 tokens, shallow). That baseline also trains the vision projection and divides by
CLIP's own temperature: ``variants["official"]``.

Shapes: B images, C classes with labelled images, K prompts, n blocks, w vision width, E embedding width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.cards import read_card
from methods.official.pros_release import BASELINE
from methods.parts.backbone import ClipBackbone
from methods.parts.prompt_units import new_units, prompted_tokens
from methods.training.image_text import ImageTextMethod, Prompts, ReleasedConfig
from methods.training.loop import seeded


@dataclass(frozen=True)
class VPTConfig(ReleasedConfig):
    """Settings of visual prompt tuning."""

    prompt_tokens: int = 10  # K, learned tokens at the input of a block
    train_projection: bool = False  # the vision projection is trained too (released)

    def __post_init__(self) -> None:
        if self.prompt_tokens < 1:
            raise ValueError(f"vpt: prompt_tokens is {self.prompt_tokens}; without prompts it is zero_shot")


class VPTShallow(ImageTextMethod):
    """Learned tokens at the input of the frozen vision tower."""

    card = read_card("vpt_shallow")
    Config = VPTConfig
    stage = "visual prompts"
    #: Fresh prompts at every block (:class:`VPTDeep`).
    deep: ClassVar[bool] = False
    variants: ClassVar = {"official": {**BASELINE, "train_projection": True}}
    ablations: ClassVar[dict[str, dict[str, Any]]] = {
        "prompt_tokens_1": {"prompt_tokens": 1},
        "prompt_tokens_50": {"prompt_tokens": 50},
        "train_projection": {"train_projection": True},
        "clip_temperature": {"temperature": 0.0},
        "not_augmented": {"augment": False},
    }
    config: VPTConfig
    backbone: ClipBackbone

    def build(self, seed: int) -> dict[str, nn.Parameter]:
        """``prompts`` [K, w], uniform in [-v, v] with v = sqrt(6 / (3 p^2 + w)).

        Deep: also ``deep_prompts`` [n-1, K, w]; with ``train_projection``: also the projection by CLIPModel's name.
        """
        backbone, tokens, generator = self.backbone, self.config.prompt_tokens, seeded(seed, 0)
        parts = {"prompts": new_units(tokens, backbone, generator)}
        if self.deep:
            later = backbone.vision_layers - 1
            parts["deep_prompts"] = new_units(later * tokens, backbone, generator).view(later, tokens, -1)
        if self.config.train_projection:
            parts["visual_projection.weight"] = backbone.vision_projection.detach().clone()
        return {name: nn.Parameter(part) for name, part in parts.items()}

    def image_features(self, pixels: Tensor) -> Tensor:
        """``[cls ; prompts ; patches]`` through the frozen tower, read at the class token -> [B, E], not normalised."""
        learned, backbone = self.trainable(), self.backbone
        tokens = prompted_tokens(backbone, pixels, learned["prompts"])  # [B, 1+K+P, w]
        deep = learned.get("deep_prompts")
        if self.config.fast:
            read = backbone.run_vision(tokens, deep_prompts=deep, read=0)
        else:
            read = backbone.run_vision(tokens, deep_prompts=deep)[:, 0]
        return backbone.readout(read, projection=learned.get("visual_projection.weight"))

    def text_features(self, prompts: Prompts) -> Tensor:
        """Normalised text features [C, E] of frozen CLIP."""
        return F.normalize(super().text_features(prompts), dim=-1)

    @torch.no_grad()
    def encode_classes(self, names: Sequence[str]) -> Tensor:
        """Normalised CLIP text features ``[C, E]`` of any class names."""
        return self.text_features(self.prompts(names))


class VPTDeep(VPTShallow):
    """Learned tokens at the input of every block of the frozen vision tower; all else as :class:`VPTShallow`."""

    card = read_card("vpt_deep")
    deep = True
