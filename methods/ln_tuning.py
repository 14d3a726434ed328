"""LN-Tune: the LayerNorms of the vision tower (Basu et al., AAAI 2024). docs/methods.md, "Baselines".

Idea: of a frozen vision transformer only the gains and biases of its LayerNorms are trained: two in every block, the
one before the blocks and the one behind them. Basu et al. find this a strong baseline for few-shot classification with
vision transformers; Kim et al. ("How to Adapt Your Large-Scale Vision-and-Language Model", 2021) find it one for CLIP.
The classes are told apart by their texts here. ``text`` adds the text tower.

Trained: gains and biases, in a copy of CLIP. Loss: cross-entropy over cosine(image, text of every class with labelled
images) / tau (:mod:`methods.training.image_text`), Adam 1e-3: our choice, that of BitFit, which trains half of the same
values, and of VPT. Batch size, epochs and early stop, our choice, are those of CoOp and VPT (docs/methods.md,
Baselines).

Shapes: B images, C classes with labelled images, E embedding width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import nn

from methods.cards import read_card
from methods.training.image_text import ImageTextConfig, OwnClipMethod

#: How the names of what is trained end.
ENDS = {"both": (".weight", ".bias"), "gains": (".weight",), "biases": (".bias",)}


@dataclass(frozen=True)
class LnTuningConfig(ImageTextConfig):
    """Settings of LN-Tune."""

    parts: Literal["both", "gains", "biases"] = "both"  # what of a LayerNorm is trained
    text: bool = False  # the text tower's LayerNorms too
    learning_rate: float = 1e-3  # of Adam


class LnTuning(OwnClipMethod):
    """CLIP with the LayerNorms of its vision tower trained."""

    card = read_card("ln_tuning")
    Config = LnTuningConfig
    stage = "LayerNorms"
    ablations: ClassVar[dict[str, dict[str, Any]]] = {
        "gains_only": {"parts": "gains"},
        "biases_only": {"parts": "biases"},
        "both_towers": {"text": True},
        "clip_temperature": {"temperature": 0.0},
        "not_augmented": {"augment": False},
    }
    config: LnTuningConfig

    def build(self, seed: int) -> dict[str, nn.Parameter]:
        """The trained gains and biases of a copy of CLIP, by CLIPModel's names."""
        self.copy = self.backbone.clone()
        weights = self.copy.vision_parameters() | (self.copy.text_parameters() if self.config.text else {})
        norms = {
            name
            for name, module in self.copy.model.named_modules(remove_duplicate=False)
            if isinstance(module, nn.LayerNorm)
        }
        return {
            name: value
            for name, value in weights.items()
            if name.rpartition(".")[0] in norms and name.endswith(ENDS[self.config.parts])
        }
