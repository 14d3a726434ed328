"""BitFit: the biases of the vision tower (Ben Zaken et al., ACL 2022). docs/methods.md, "Baselines".

Idea: of a frozen transformer only the bias vectors are trained: those of the attention's four maps, of the MLP's two
maps and of the LayerNorms. The paper does so in BERT, with the classification layer on top; here the class texts are in
that layer's place. The vision tower is adapted, as by CLIP-Full and VPT (VPT's paper has this baseline for vision
transformers, "Bias"); ``text`` adds the text tower.

Trained: the biases, in a copy of CLIP. (A key's bias shifts all scores of a query alike, so its gradient is 0.) Loss:
cross-entropy over cosine(image, text of every class with labelled images) / tau (:mod:`methods.training.image_text`),
Adam 1e-3, the rate in the examples of the paper's released code (1e-5 there for all weights). Batch size, epochs and
early stop, our choice, are those of CoOp and VPT (docs/methods.md, Baselines).

Shapes: B images, C classes with labelled images, E embedding width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import nn

from methods.cards import read_card
from methods.training.image_text import ImageTextConfig, OwnClipMethod

#: The two biases of a block that suffice in the paper (section 4, "Fewer bias parameters"), by CLIPModel's names.
FEWER = (".self_attn.q_proj.bias", ".mlp.fc1.bias")


@dataclass(frozen=True)
class BitFitConfig(ImageTextConfig):
    """Settings of BitFit."""

    biases: Literal["all", "query_and_mlp"] = "all"  # which ones: all, or those of the query and of the MLP's first map
    text: bool = False  # the text tower's too
    learning_rate: float = 1e-3  # of Adam


class BitFit(OwnClipMethod):
    """CLIP with the biases of its vision tower trained."""

    card = read_card("bitfit")
    Config = BitFitConfig
    stage = "biases"
    ablations: ClassVar[dict[str, dict[str, Any]]] = {
        "query_and_mlp": {"biases": "query_and_mlp"},
        "both_towers": {"text": True},
        "clip_temperature": {"temperature": 0.0},
        "not_augmented": {"augment": False},
    }
    config: BitFitConfig

    def build(self, seed: int) -> dict[str, nn.Parameter]:
        """The trained biases of a copy of CLIP, by CLIPModel's names."""
        self.copy = self.backbone.clone()
        weights = self.copy.vision_parameters() | (self.copy.text_parameters() if self.config.text else {})
        ends = (".bias",) if self.config.biases == "all" else FEWER
        return {name: value for name, value in weights.items() if name.endswith(ends)}
