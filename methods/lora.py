"""LoRA: low-rank adaptation (Hu et al., ICLR 2022) of both CLIP towers, through peft. docs/methods.md, "Baselines".

Idea: a frozen linear map W gets a learned low-rank summand, ``W x + (alpha / r) B A x`` with A [r, in] and B [out, r].
Here W are the query, key, value and output projections of every attention layer of both towers; r = 8, alpha = 16. A
starts at random (Kaiming uniform, as in peft), B at zero, so training starts from CLIP.

Trained: A and B. Texts: ``a photo of a {class}``; the text tower learns, so they are computed at every step. Loss:
cross-entropy over cosine(image, text of every class with labelled images) / tau (:mod:`methods.training.image_text`),
Adam 1e-4. Batch size, epochs and early stop, our choice, are those of CoOp and VPT (docs/methods.md, Baselines).

Speed: the words ``a photo of a`` that all texts begin with are computed once a step, texts are cut at their ends.

Shapes: B images, C classes with labelled images, E embedding width.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import nn

from methods.cards import read_card
from methods.training.image_text import ImageTextConfig, OwnClipMethod
from methods.training.loop import seeded

#: The linear maps of an attention layer that are adapted, by CLIPModel's names.
TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")

#: Those of the attention pool that ends CLIP's ResNets, whose convolutions are not adapted.
POOL_TARGETS = ("q_proj", "k_proj", "v_proj", "c_proj")


@dataclass(frozen=True)
class LoRAConfig(ImageTextConfig):
    """Settings of LoRA."""

    rank: int = 8  # r of A and B
    alpha: float = 16.0  # the summand is multiplied by alpha / r
    vision: bool = True  # the vision tower is adapted
    text: bool = True  # the text tower is adapted; at least one tower is
    learning_rate: float = 1e-4  # of Adam

    def __post_init__(self) -> None:
        if not (self.vision or self.text):
            raise ValueError("lora: vision and text are both off; leave one tower on")


class LoRA(OwnClipMethod):
    """Low-rank adapters on the attention of both towers."""

    card = read_card("lora")
    Config = LoRAConfig
    stage = "adapters"
    needs = "styles"  # a text tower of CLIP, and attention of CLIP in the image tower
    ablations: ClassVar[dict[str, dict[str, Any]]] = {
        "vision_only": {"text": False},
        "text_only": {"vision": False},
        "rank_2": {"rank": 2, "alpha": 4.0},
        "rank_32": {"rank": 32, "alpha": 64.0},
        "clip_temperature": {"temperature": 0.0},
    }
    config: LoRAConfig

    def build(self, seed: int) -> dict[str, nn.Parameter]:
        """A and B of every adapted map in a copy of CLIP, A Kaiming-uniform, B zero.

        By peft's names (``....self_attn.q_proj.lora_A.weight``).
        """
        from peft import LoraConfig as PeftConfig
        from peft import inject_adapter_in_model

        config, generator = self.config, seeded(seed, 0)
        towers = "|".join(name for name, on in (("vision_model", config.vision), ("text_model", config.text)) if on)
        pattern = rf"({towers})\..*\.self_attn\.({'|'.join(TARGETS)})"
        if config.vision:
            pattern = rf"{pattern}|vision_model\.attnpool\.({'|'.join(POOL_TARGETS)})"
        model = (copy := self.backbone.clone()).model
        with torch.random.fork_rng(devices=[]):  # peft draws from the global generator; its draws are replaced below
            peft = PeftConfig(r=config.rank, lora_alpha=config.alpha, target_modules=pattern, lora_dropout=0.0)
            inject_adapter_in_model(peft, model)
        model.eval().requires_grad_(False)
        self.copy = copy
        adapters = {name: value for name, value in model.named_parameters() if ".lora_" in name}
        for name, value in adapters.items():
            start = torch.zeros(value.shape)
            if ".lora_A." in name:
                nn.init.kaiming_uniform_(start, a=math.sqrt(5), generator=generator)
            value.data.copy_(start)
        return {name.replace(".default.", "."): value for name, value in adapters.items()}
