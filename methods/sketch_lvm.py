"""CLIP for all things zero-shot sketch-based image retrieval (Sain et al., CVPR 2023). docs/methods.md, Sketch_LVM.

Idea: sketches and photos are embedded by the same CLIP vision tower, each with prompt tokens of its own, and what makes
one space of both is a triplet loss across the two, with CLIP's texts as anchors of the classes:

    f_d(x)  = the tower on [cls + pos_0 ; P_d ; patches + pos_1..], P_d [K, w] the prompts of the image's domain d
    L_tri   = mean max(0, mu + delta(f_a, f_p) - delta(f_a, f_n)),   delta(u, v) = |u - v|^2 of unit features
    L       = L_tri + lambda (L_cls(a) + L_cls(p)),                  L_cls the image-text loss at CLIP's own scale

with an anchor a, a positive p of its class from another domain, and a negative n of another class from the domain of p.
(The paper: a sketch, a photo of its class, a photo of another one.) Trained: the prompts, and the LayerNorms of a copy
of the vision tower. This is the paper's category-level method; its fine-grained one needs pairs of a sketch and its
very photo.

Extensions: the paper has two domains, sketch and photo, and knows which an image is of. Here every training domain has
prompts, and an image comes without its domain: it gets those of the training domain whose mean frozen CLIP feature is
nearest to its own (``prompts`` common: one set of prompts for all, as in the paper's fine-grained method). Where the
training images are of one domain alone, positives and negatives are of it.

Shapes: B images, D training domains, C classes with labelled images, K prompts, w vision width, E embedding width.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.cards import read_card
from methods.interface import FitReport, Log, TrainingData
from methods.parts.backbone import ClipBackbone
from methods.parts.bounds import Bound
from methods.parts.feature_cache import image_features
from methods.parts.losses import image_text_loss
from methods.parts.parallel import share
from methods.parts.prompt_units import prompted_tokens, read_image
from methods.training.batches import Partners, batches
from methods.training.image_text import ImageTextConfig, OwnClipMethod, Prompts, TrainingBatch
from methods.training.loop import seeded

# --- the loss --------------------------------------------------------------------------------------------------------

Distance = Literal["squared", "cosine"]


def distances(first: Tensor, second: Tensor, distance: Distance) -> Tensor:
    """delta of features [A, E] and [A, E] -> [A]: |u - v|^2 of the unit vectors, or 1 - cosine (released)."""
    first, second = F.normalize(first, dim=-1), F.normalize(second, dim=-1)
    if distance == "squared":
        return (first - second).square().sum(dim=-1)
    return 1 - (first * second).sum(dim=-1)


def triplet_terms(
    anchors: Tensor, positives: Tensor, negatives: Tensor, *, margin: float, distance: Distance
) -> Tensor:
    """max(0, mu + delta(a, p) - delta(a, n)) of A triplets: features [A, E] three times -> [A]."""
    gap = distances(anchors, positives, distance) - distances(anchors, negatives, distance)
    return F.relu(margin + gap)


# --- settings --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SketchLvmConfig(ImageTextConfig):
    """Settings of Sketch_LVM. Defaults are the paper's; "official:" is the released code's value where it differs."""

    bounds: ClassVar = {**ImageTextConfig.bounds, "class_weight": Bound(low=0), "norm_rate": Bound(low=0)}
    prompt_tokens: int = 3  # K, learned tokens of a domain
    prompts: Literal["own", "common"] = "own"  # each training domain's own, or one set for all
    norms: bool = True  # the LayerNorms of the vision tower are trained too
    margin: float = 0.3  # mu of the triplet loss; official: 0.2
    distance: Distance = "squared"  # of unit features: squared Euclidean, or 1 - cosine (official)
    class_weight: float = 0.5  # lambda, weight of the image-text losses; official: 0
    negatives: Literal["other", "any"] = "other"  # a negative is of another class, or of any (official)
    train_unnamed: bool = False  # the attention's query, key and value maps, the class token, the positions and the
    # projection are trained too; official: True
    template: str = "a photo of a {name}"  # the text of a class, with ``{name}``
    temperature: float = 0.0  # tau of the image-text loss; 0: CLIP's own, 1 / logit scale
    learning_rate: float = 1e-5  # of Adam, for the prompts; official: 1e-3
    norm_rate: float = 1.0  # that of the tower's weights, in multiples of it; official: 0.1
    batch_size: int = 64  # triplets a step; official: 32
    epochs: int = 60  # passes over the labelled images as anchors
    patience: int = 0  # validations without gain before training stops; 0: never
    augment: bool = False  # random crop, flip and colour jitter


# --- the method ------------------------------------------------------------------------------------------------------

#: What the released code leaves trainable beside the LayerNorms: all that is not called ``weight`` or ``bias`` there.
UNNAMED = (
    *(f"{part}_proj.{of}" for part in "qkv" for of in ("weight", "bias")),
    "class_embedding",
    "position_embedding.weight",
    "visual_projection.weight",
)


class SketchLvm(OwnClipMethod):
    """Prompts of each domain and trained LayerNorms, under a triplet loss across domains."""

    card = read_card("sketch_lvm")
    Config = SketchLvmConfig
    stage = "triplets"
    fact_names = ("domain_names",)
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "official": {
            "margin": 0.2,
            "distance": "cosine",
            "class_weight": 0.0,
            "negatives": "any",
            "train_unnamed": True,
            "train_statistics": "imagenet",
            "test_statistics": "imagenet",
            "learning_rate": 1e-3,
            "norm_rate": 0.1,
            "batch_size": 32,
        }
    }
    ablations: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "common_prompts": {"prompts": "common"},
        "frozen_norms": {"norms": False},
        "no_class_loss": {"class_weight": 0.0},
        "prompt_tokens_1": {"prompt_tokens": 1},
        "prompt_tokens_10": {"prompt_tokens": 10},
        "cosine_distance": {"distance": "cosine"},
    }
    config: SketchLvmConfig
    backbone: ClipBackbone

    domain_names: tuple[str, ...] = ()  # the D training domains, in the order of their prompts
    _means: Tensor | None = None  # [D, E], the mean of each one's frozen unit features, normalised
    _domains: Tensor  # [N] the domain of each training image; while training

    @property
    def tower(self) -> ClipBackbone:
        """The method's copy of CLIP."""
        assert isinstance(self.clip, ClipBackbone)
        return self.clip

    @property
    def guesses(self) -> bool:
        """Whether an image's prompts depend on its domain."""
        return self.config.prompts == "own" and len(self.domain_names) > 1

    def build(self, seed: int) -> dict[str, nn.Parameter]:
        """``prompts`` [D, K, w] from N(0, 1), and the trained weights of a copy of CLIP by CLIPModel's names."""
        self.copy = self.backbone.clone()
        sets = len(self.domain_names) if self.guesses else 1
        shape = (sets, self.config.prompt_tokens, self.backbone.vision_width)
        prompts = torch.empty(shape).normal_(generator=seeded(seed, 0)).to(self.device)
        norms = [name for name, module in self.copy.model.named_modules() if isinstance(module, nn.LayerNorm)]
        parts = {"prompts": nn.Parameter(prompts)}
        for name, value in self.copy.vision_parameters().items():
            of_norm = self.config.norms and name.rpartition(".")[0] in norms
            if of_norm or (self.config.train_unnamed and name.endswith(UNNAMED)):
                parts[name] = value
        return parts

    def features(self, pixels: Tensor, domains: Tensor) -> Tensor:
        """f_d of normalised pixels [B, 3, H, W] and their domains' numbers [B] -> [B, E], not L2-normalised."""
        prompts = self.trainable()["prompts"][domains if self.guesses else torch.zeros_like(domains)]
        tokens = prompted_tokens(self.tower, pixels, prompts)
        return read_image(self.tower, tokens, "class_token", plain=not self.config.fast)

    def nearest_domains(self, pixels: Tensor) -> Tensor:
        """The training domain whose mean frozen feature is nearest: normalised pixels [B, 3, H, W] -> [B]."""
        if not self.guesses:
            return torch.zeros(len(pixels), dtype=torch.long, device=pixels.device)
        with torch.no_grad():
            return (F.normalize(self.backbone.encode_images(pixels), dim=-1) @ self.fitted(self._means).T).argmax(1)

    def image_features(self, pixels: Tensor) -> Tensor:
        """f_d [B, E] of normalised pixels, d the nearest training domain."""
        return self.features(pixels, self.nearest_domains(pixels))

    # --- training ---

    def fit(self, data: TrainingData, *, seed: int, log: Log) -> FitReport:
        """Train on triplets of the labelled images."""
        present, domains = torch.unique(data.domains, return_inverse=True)
        self.domain_names = tuple(data.domain_names[int(number)] for number in present)
        self._domains = domains.to(self.device)
        return super().fit(data, seed=seed, log=log)

    def begin(self, data: TrainingData, seed: int) -> None:
        """The domains' mean frozen features, of the images as they are at test."""
        self._means = None
        if self.guesses:
            frozen = image_features(self.backbone, data.images, statistics=self.config.test_statistics)
            one_hot = F.one_hot(self._domains.cpu(), len(self.domain_names)).float()
            self._means = F.normalize(one_hot.T @ F.normalize(frozen, dim=-1), dim=-1).to(self.device)

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam, the tower's weights at their own rate."""
        config, trained = self.config, dict(self.trainable())
        groups = [{"params": [trained.pop("prompts")], "lr": config.learning_rate}]
        if trained:
            groups.append({"params": list(trained.values()), "lr": config.learning_rate * config.norm_rate})
        return torch.optim.Adam(groups, weight_decay=config.weight_decay)

    def batches(self, data: TrainingData, generator: torch.Generator) -> Iterator[Tensor]:
        """Endless index batches [3A]: anchors, balanced over domains, then their positives, then their negatives.

        Where the positive's domain has no other class, its negative is of the same one, and counts for nothing.
        """
        positives = Partners(data.labels, data.domains)
        any_class = self.config.negatives == "any"
        negatives = Partners(data.domains, torch.zeros_like(data.labels) if any_class else data.labels)
        for anchors in batches(data, self.config.batch_size, generator, balanced="domain"):
            positive = positives.draw(anchors, generator)
            yield torch.cat([anchors, positive, negatives.draw(positive, generator)])

    def encoded_rows(self, batch: Tensor) -> Tensor:
        """This process's share of the triplets."""
        return share(batch.view(3, -1).T).T.flatten()

    def batch_loss(self, batch: TrainingBatch, prompts: Prompts, fixed_texts: Tensor | None) -> Tensor:
        """L_tri + lambda (L_cls(a) + L_cls(p)) of a batch of triplets."""
        assert batch.pixels is not None
        config = self.config
        anchors, positives, negatives = self.features(
            batch.pixels, self._domains[batch.index.to(self.device, non_blocking=True)]
        ).chunk(3)
        terms = triplet_terms(anchors, positives, negatives, margin=config.margin, distance=config.distance)
        of_anchor, of_positive, of_negative = batch.labels.chunk(3)
        if config.negatives == "other":
            terms = terms * (of_anchor != of_negative)
        loss = terms.mean()
        if config.class_weight:
            texts = self.text_features(prompts) if fixed_texts is None else fixed_texts
            tau = 1 / self.logit_scale()
            classes = image_text_loss(anchors, texts, of_anchor, temperature=tau)
            loss = loss + config.class_weight * (
                classes + image_text_loss(positives, texts, of_positive, temperature=tau)
            )
        return loss

    # --- state ---

    def learned_tensors(self) -> Mapping[str, Tensor]:
        """What is trained, and ``domain_means`` [D, E] where images are given their domain's prompts."""
        trained = self.trainable()
        return {**trained, "domain_means": self.fitted(self._means)} if self.guesses else trained

    def prepare_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Build the parts for these domains."""
        sets = len(self.domain_names) if self.guesses else 1
        if self.parameters is None or len(self.parameters["prompts"]) != sets:
            self.parameters = self.build(seed=0)
        self._means = torch.empty(sets, self.backbone.embed_dim, device=self.device) if self.guesses else None
