"""CoCoOp: conditional prompt learning for vision-language models (Zhou et al., CVPR 2022). docs/methods.md, CoCoOp.

Idea: the context that CoOp learns fits the classes it saw; a context that depends on the image fits others better.

1. **Meta-net**: h(x) = W_2 relu(W_1 f(x) + b_1) + b_2, f(x) the normalised image feature, E / 16 wide inside.
2. **Prompt** of image x, class k: ``[SOS ; V_1 + h(x) ... V_m + h(x) ; name_k . EOT]``; t_k(x) is its text feature.
3. **Logits**: exp(logit_scale) * cos(f(x), t_k(x)), each image against its own prompts. **Loss**: cross-entropy over
   the classes with labelled images.

Trained: V, which starts as the embeddings of ``a photo of a``, and the meta-net. Extensions (the paper classifies):

4. **Images** are embedded by frozen CLIP, so retrieval by images alone scores what zero-shot CLIP scores.
5. **Class embedding** without an image: the mean of the normalised t_k(x) over ``anchors`` training images, normalised.
   The anchors are drawn once, from the run's seed; their features are saved with the model.

Target images and classes without labelled images are not used.

Speed: the start token and the context are the same for all classes of an image, so their keys and values are computed
once an image; classes run by length. Images are taken in parts whose prompts fit into memory.

Shapes: B images, C classes with labelled images, m context tokens, v text width, E embedding width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.cards import read_card
from methods.interface import TrainingData
from methods.parts.backbone import PromptBackbone
from methods.parts.bounds import Bound
from methods.parts.losses import cosine_similarities
from methods.parts.prompt_units import new_linear, opening_context
from methods.parts.prompts import PromptTemplate, encode_prompts
from methods.training.image_text import Prompts, TrainingBatch
from methods.training.loop import seeded
from methods.training.sgd import SgdConfig, SgdMethod

#: Prompts (images times classes) that inference runs at a time: bounds its memory.
PROMPTS_PER_PASS = 4096

_INIT, _ANCHORS = 0, 3  # what a random generator is for, beside ``seed_parts``

# --- the model -------------------------------------------------------------------------------------------------------


def image_contexts(context: Tensor, images: Tensor, meta_net: Mapping[str, Tensor]) -> Tensor:
    """(1, 2) The learned ``context`` [m, v], each token shifted by h(x), for image features [B, E] -> [B, m, v].

    ``meta_net``: the two maps of h, ``linear1`` E -> E / reduction and ``linear2`` to v, each a ``weight`` and a
    ``bias``, with a ReLU between them; it reads normalised features.
    """
    hidden = F.linear(F.normalize(images, dim=-1), meta_net["linear1.weight"], meta_net["linear1.bias"]).relu()
    shift = F.linear(hidden, meta_net["linear2.weight"], meta_net["linear2.bias"])  # h(x) [B, v]
    return context.expand(len(images), -1, -1) + shift[:, None]


# --- settings --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CoCoOpConfig(SgdConfig):
    """Settings of CoCoOp."""

    bounds: ClassVar = {"temperature": Bound(low=0), "reduction": Bound(low=1), "context_tokens": Bound(low=1)}
    template: str = "a photo of a {name}."  # the text of a class; its first tokens are the context's start
    context_tokens: int = 4  # m, learned tokens in front
    reduction: int = 16  # the meta-net is E / reduction wide inside
    conditional: bool = True  # False leaves h(x) out: CoOp that starts from words
    anchors: int = 32  # training images whose prompts are averaged for a class embedding (extension)
    batch_size: int = 1  # images a step
    epochs: int = 10  # passes over the labelled images


# --- the method ------------------------------------------------------------------------------------------------------


class CoCoOp(SgdMethod):
    """Learned context that a small network shifts for each image; frozen CLIP images."""

    card = read_card("cocoop")
    Config = CoCoOpConfig
    stage = "context and meta-net"
    needs = "styles"
    ablations: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "unconditional": {"conditional": False},
        "context_1": {"context_tokens": 1},
        "context_16": {"context_tokens": 16},
        "batch_32": {"batch_size": 32},
        "not_augmented": {"augment": False},
    }
    config: CoCoOpConfig
    backbone: PromptBackbone
    anchors: Tensor | None = None  # frozen features [A, E] of some training images

    # --- what is trained, and the loss ---

    def build(self, seed: int) -> dict[str, nn.Parameter]:
        """``context`` [m, v], and the meta-net's two maps by ``torch.nn.Linear``'s names and start."""
        config, backbone, generator = self.config, self.backbone, seeded(seed, _INIT)
        parts = {"context": opening_context(config.context_tokens, backbone, config.template, generator)}
        if config.conditional:
            wide, inside = backbone.embed_dim, max(1, backbone.embed_dim // config.reduction)
            for name, sizes in (("linear1", (inside, wide)), ("linear2", (backbone.text_width, inside))):
                weight, bias = new_linear(*sizes, backbone, generator)
                parts |= {f"meta_net.{name}.weight": weight, f"meta_net.{name}.bias": bias}
        return {name: nn.Parameter(part) for name, part in parts.items()}

    def contexts(self, images: Tensor) -> Tensor:
        """(1, 2) The contexts of image features [B, E] -> [B, m, v]."""
        learned = self.trainable()
        if not self.config.conditional:
            return learned["context"].expand(len(images), -1, -1)
        meta_net = {name.removeprefix("meta_net."): value for name, value in learned.items()}
        return image_contexts(learned["context"], images, meta_net)

    def image_texts(self, prompts: PromptTemplate, images: Tensor) -> Tensor:
        """(2) Normalised t_k(x) of image features [B, E] -> [B, C, E]."""
        fast = self.config.fast
        features = encode_prompts(
            self.backbone,
            prompts,
            self.contexts(images),
            shared_prefix=fast,
            cut=fast,
            class_chunk=PROMPTS_PER_PASS,
        )
        return F.normalize(features, dim=-1)

    def prompts(self, names: Sequence[str]) -> PromptTemplate:
        """The classes' texts with the m places in front."""
        return PromptTemplate.opening(self.backbone, names, self.config.template, self.config.context_tokens)

    @property
    def frozen_images(self) -> bool:
        """True: images are CLIP's."""
        return True

    @property
    def frozen_texts(self) -> bool:
        """False: the context is in them."""
        return False

    def batch_loss(self, batch: TrainingBatch, prompts: Prompts, fixed_texts: Tensor | None) -> Tensor:
        """(3) Cross-entropy of each image over its own texts."""
        assert isinstance(prompts, PromptTemplate)
        images = self.batch_images(batch)
        return self.loss(images, self.image_texts(prompts, images), batch.labels)

    # --- training ---

    @torch.no_grad()
    def begin(self, data: TrainingData, seed: int) -> None:
        """(5) Draw the anchors."""
        sample = torch.randperm(len(data.images), generator=seeded(seed, _ANCHORS))[: self.config.anchors].sort().values
        pixels = data.images.pixels(sample).to(self.device)
        self.anchors = self.image_features(self.backbone.normalize(pixels, self.config.test_statistics))

    # --- inference ---

    @torch.no_grad()
    def text_features(self, prompts: Prompts) -> Tensor:
        """(5) The mean of the normalised t_k(x) over the anchors -> [C, E]."""
        assert isinstance(prompts, PromptTemplate)
        anchors = self.fitted(self.anchors)
        total = torch.zeros(len(prompts), self.backbone.embed_dim, device=self.device)
        for part in anchors.split(max(1, PROMPTS_PER_PASS // len(prompts))):
            total += self.image_texts(prompts, part).sum(dim=0)
        return total / len(anchors)

    @torch.no_grad()
    def classify(self, pixels: Tensor, names: Sequence[str]) -> Tensor:
        """(3) Logits ``[B, C]`` over class names, each image against its own prompts."""
        prompts, logits = self.prompts(names), []
        for part in self.encode_raw(pixels).split(max(1, PROMPTS_PER_PASS // len(names))):
            logits.append(self.logit_scale() * cosine_similarities(part, self.image_texts(prompts, part)))
        return torch.cat(logits)

    # --- state ---

    def total_parameters(self) -> int:
        """The backbone's weights, the context and the meta-net; anchors are not trained."""
        own = sum(value.numel() for value in self.trainable().values())
        return own + sum(value.numel() for value in self.backbone.model.parameters())

    def learned_tensors(self) -> Mapping[str, Tensor]:
        """What is trained, and the anchors' features."""
        return {**self.trainable(), "anchors": self.fitted(self.anchors)}

    def prepare_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Parameters if there are none yet, and room for the checkpoint's anchors."""
        super().prepare_state(tensors)
        count = len(tensors.get("anchors", ()))
        if self.anchors is None or len(self.anchors) != count:
            self.anchors = torch.empty(count, self.backbone.embed_dim, device=self.device)
