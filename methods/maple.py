"""MaPLe: multi-modal prompt learning (Khattak et al., CVPR 2023), and its independent form, IVLP. See docs/methods.md.

Idea: both CLIP towers are prompted, and deeply: at the input of each of their first J blocks m learned tokens stand in
the place of what the block before made of its own. ``maple`` couples the towers, ``ivlp`` (the paper's baseline,
"independent vision-language prompting") does not.

1. **Text**: ``[SOS ; P_1 ... P_m ; rest of the words ; name_k . EOT]`` at the input of block 1, fresh P at those of
   blocks 2..J; later blocks carry the last ones on. The first P start as the embeddings of ``a photo of a``.
2. **Image**: ``[cls + pos_0 ; Q_1 ... Q_m ; patches + pos]`` at the input of block 1, fresh Q at the inputs of blocks
   2..J; read at the class token.
3. **Coupling** (maple): Q of block j is F_j(P of block j), a linear map from the text to the vision width, so that the
   text prompts' gradient also comes from the images. ivlp learns Q directly.
4. **Loss**: cross-entropy over exp(logit_scale) * cos(image, text of every class with labelled images).

Trained: maple: P of J blocks and the maps F_j; ivlp: P and Q. The released code differs: methods/cards/maple.toml,
methods/cards/ivlp.toml. Retrieval, which the paper does not have, compares image features; target images and classes
without labelled images are not used.

Speed: the text prompts are right behind the start token and equal for all classes, so with all their deep replacements
they are a prefix whose keys and values are computed once a step, not once a class.

Shapes: B images, C classes with labelled images, m tokens, J prompted blocks, w vision width, v text width, E embedding
width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from methods.cards import read_card
from methods.parts.backbone import ClipBackbone
from methods.parts.bounds import Bound
from methods.parts.prompt_units import new_linear, opening_context, prompted_tokens
from methods.parts.prompts import PromptTemplate, encode_prompts
from methods.training.image_text import Prompts
from methods.training.loop import seeded
from methods.training.sgd import SgdConfig, SgdMethod

#: Standard deviation of a prompt at the start.
PROMPT_STD = 0.02


def new_prompts(blocks: int, tokens: int, width: int, generator: torch.Generator) -> Tensor:
    """Untrained prompts [blocks, tokens, width] from N(0, 0.02^2)."""
    return torch.empty(blocks, tokens, width).normal_(0.0, PROMPT_STD, generator=generator)


@dataclass(frozen=True)
class PromptedConfig(SgdConfig):
    """Settings of methods that prompt both towers."""

    bounds: ClassVar = {"temperature": Bound(low=0), "depth": Bound(low=1), "context_tokens": Bound(low=1)}
    template: str = "a photo of a {name}."  # the text of a class; its first tokens are the prompts' start
    context_tokens: int = 2  # m, learned tokens at the input of a text block
    depth: int = 9  # J, prompted blocks of each tower, counted from its input; at most all it has
    learning_rate: float = 3.5e-3  # of SGD, at the top of the cosine


class PromptedTowers(SgdMethod):
    """Learned tokens at the input of the first blocks of both towers, with the image-text loss."""

    stage = "prompts"
    config: PromptedConfig
    backbone: ClipBackbone

    def text_depth(self) -> int:
        """J of the text tower."""
        return min(self.config.depth, self.backbone.text_layers)

    def vision_depth(self) -> int:
        """J of the vision tower."""
        return min(self.config.depth, self.backbone.vision_layers)

    @property
    def frozen_texts(self) -> bool:
        """False: the prompts are in them."""
        return False

    def build_text(self, depth: int, generator: torch.Generator) -> dict[str, Tensor]:
        """``context`` [m, v], from the template's first words, and ``deep_context`` [J-1, m, v], normal."""
        config, backbone = self.config, self.backbone
        parts = {"context": opening_context(config.context_tokens, backbone, config.template, generator)}
        if depth > 1:
            deep = new_prompts(depth - 1, config.context_tokens, backbone.text_width, generator)
            parts["deep_context"] = deep.to(backbone.device)
        return parts

    @abstractmethod
    def vision_prompts(self) -> Tensor:
        """(2, 3) Q of the prompted blocks [J, K, w]."""

    def prompts(self, names: Sequence[str]) -> PromptTemplate:
        """The classes' texts with the m places in front."""
        return PromptTemplate.opening(self.backbone, names, self.config.template, self.config.context_tokens)

    def text_features(self, prompts: Prompts) -> Tensor:
        """(1) Text features [C, E], not normalised."""
        assert isinstance(prompts, PromptTemplate)
        learned, fast = self.trainable(), self.config.fast
        return encode_prompts(
            self.backbone,
            prompts,
            learned["context"],
            deep_prompts=learned.get("deep_context"),
            shared_prefix=fast,
            cut=fast,
        )

    def image_features(self, pixels: Tensor) -> Tensor:
        """(2) Image features [B, E] of normalised pixels, not normalised."""
        backbone, prompts = self.backbone, self.vision_prompts()
        tokens = prompted_tokens(backbone, pixels, prompts[0])
        if self.config.fast:
            return backbone.readout(backbone.run_vision(tokens, deep_prompts=prompts[1:], read=0))
        return backbone.readout(backbone.run_vision(tokens, deep_prompts=prompts[1:])[:, 0])


class MaPLe(PromptedTowers):
    """Text prompts, and vision prompts that are linear maps of them."""

    card = read_card("maple")
    Config = PromptedConfig
    ablations: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "depth_1": {"depth": 1},
        "depth_2": {"depth": 2},
        "context_1": {"context_tokens": 1},
        "context_4": {"context_tokens": 4},
        "not_augmented": {"augment": False},
    }

    def text_depth(self) -> int:
        """J, the same in both towers: at most the blocks of the shallower one."""
        return min(super().text_depth(), super().vision_depth())

    def build(self, seed: int) -> dict[str, nn.Parameter]:
        """Text prompts (``context``, ``deep_context``), ``coupling.weight`` [J, w, v] and ``coupling.bias`` [J, w].

        The maps start as ``torch.nn.Linear`` does, all but the first from the same draw.
        """
        generator, depth, backbone = seeded(seed, 0), self.text_depth(), self.backbone
        parts = self.build_text(depth, generator)
        weight, bias = new_linear(backbone.vision_width, backbone.text_width, backbone, generator, layers=min(depth, 2))
        draw = torch.arange(depth).clamp(max=1).to(backbone.device)
        parts |= {"coupling.weight": weight[draw], "coupling.bias": bias[draw]}
        return {name: nn.Parameter(part) for name, part in parts.items()}

    def vision_prompts(self) -> Tensor:
        """(3) F_j of the text prompts of block j -> [J, m, w]."""
        learned = self.trainable()
        context = learned["context"][None]
        if "deep_context" in learned:
            context = torch.cat([context, learned["deep_context"]])
        return torch.einsum("jmv,jwv->jmw", context, learned["coupling.weight"]) + learned["coupling.bias"][:, None]


@dataclass(frozen=True)
class IVLPConfig(PromptedConfig):
    """Settings of independent prompts."""

    bounds: ClassVar = {**PromptedConfig.bounds, "prompt_tokens": Bound(low=1)}
    prompt_tokens: int = 2  # K, learned tokens at the input of a vision block


class IVLP(PromptedTowers):
    """Text prompts and vision prompts that know nothing of each other."""

    card = read_card("ivlp")
    Config = IVLPConfig
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {"official": {"depth": 12}}
    ablations: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "depth_1": {"depth": 1},
        "tokens_4": {"context_tokens": 4, "prompt_tokens": 4},
        "not_augmented": {"augment": False},
    }
    config: IVLPConfig

    def build(self, seed: int) -> dict[str, nn.Parameter]:
        """Text prompts (``context``, ``deep_context``) and ``prompts`` [J, K, w], normal."""
        generator, backbone = seeded(seed, 0), self.backbone
        parts = self.build_text(self.text_depth(), generator)
        vision = new_prompts(self.vision_depth(), self.config.prompt_tokens, backbone.vision_width, generator)
        parts["prompts"] = vision.to(backbone.device)
        return {name: nn.Parameter(part) for name, part in parts.items()}

    def vision_prompts(self) -> Tensor:
        """(2) Q of the prompted blocks [J, K, w]."""
        return self.trainable()["prompts"]
