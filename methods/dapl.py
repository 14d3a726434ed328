"""DAPL: domain adaptation via prompt learning (Ge et al., arXiv 2022; IEEE TNNLS 2023). docs/methods.md, DAPL.

Idea: both CLIP towers stay frozen; the words before a class name are learned, some for all domains and some for each
domain, so that every domain has its own classifier and nothing needs to be aligned. The numbers are those of the
comments below.

1. **Prompt** of domain d and class k: ``[SOS ; v_1 ... v_M1 ; d_1 ... d_M2 ; name_k . EOT]``, M1 tokens that all
   domains share and M2 of domain d; t_k^d is its text feature.
2. **Probability** that image x is of class k and of domain d: the softmax of exp(logit_scale) * cos(f(x), t_k^d) over
   the prompts of *all* domains and classes, so that an image and a prompt match only if domain and class both do.
3. **Source loss**: -log P(label, source | x), mean over the labelled images of a batch.
4. **Pseudo-label** of a target image: the class that zero-shot CLIP, ``a photo of a {class}.``, finds most probable;
   the image counts only if that probability is at least ``threshold``.
5. **Target loss**: -log P(pseudo-label, target | x) of the images that count, divided by all of the batch.
6. **Loss**: source + ``target_weight`` * target. **Prediction**: the class of the largest t_k^target.

Trained: the M1 and the M2 tokens. The released code differs: methods/cards/dapl.toml.

Extensions (the paper classifies images of the target domain and nothing else):

7. **Images** are embedded by frozen CLIP, so retrieval by images alone scores what zero-shot CLIP scores.
8. **No target images** (UCDR family): every training domain has its tokens and its labels; a class is embedded by the
   mean of its normalised t_k^d over the training domains, since the domain of a query is not known.
9. **Classes without images** (DAZSL): prompts and pseudo-labels are of all class names that training may use. With
   ``class_specific`` a name without tokens of its own gets the mean of all classes'.

Shapes: B images, C classes, D domains (the training domains and, last, the target), M1 and M2 tokens, v text width,
E embedding width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.cards import read_card
from methods.interface import FitReport, Images, Log, TrainingData
from methods.parts.augment import augment
from methods.parts.backbone import PromptBackbone
from methods.parts.bounds import Bound
from methods.parts.feature_cache import image_features
from methods.parts.feeding import Feed, feed
from methods.parts.losses import cosine_similarities
from methods.parts.prompt_units import new_context
from methods.parts.prompts import PromptTemplate, class_text, encode_prompts
from methods.training.batches import target_batches
from methods.training.image_text import Prompts, TrainingBatch
from methods.training.loop import seeded
from methods.training.sgd import SgdConfig, SgdMethod

#: What the target domain is called where the prompt names domains: no protocol tells its name.
TARGET = "target"

# --- the loss --------------------------------------------------------------------------------------------------------


def domain_logits(cosines: Tensor, domains: Tensor, denominator: Literal["all", "own"]) -> Tensor:
    """(2) What the softmax is over: scaled cosines [B, D, C] of images of ``domains`` [B] -> [B, D C] or [B, C].

    ``all``: the prompts of all domains, domain by domain. ``own``: those of the image's own domain.
    """
    if denominator == "all":
        return cosines.flatten(1)
    return cosines[torch.arange(len(cosines), device=cosines.device), domains]


def domain_labels(labels: Tensor, domains: Tensor, classes: int, denominator: Literal["all", "own"]) -> Tensor:
    """(3, 5) The place of each image's class [B] among the logits of :func:`domain_logits`."""
    return labels + domains * classes if denominator == "all" else labels


def pseudo_labels(logits: Tensor, threshold: float, temperature: float) -> tuple[Tensor, Tensor]:
    """(4) The most probable class of zero-shot logits [B, C], and whether it counts: labels [B], bool [B]."""
    probability, label = (logits / temperature).softmax(dim=-1).max(dim=-1)
    return label, probability >= threshold


def target_loss(logits: Tensor, labels: Tensor, counts: Tensor, mean: Literal["batch", "confident"]) -> Tensor:
    """(5) Cross-entropy of the images that count, over the batch or over those images; 0 where none counts."""
    losses = F.cross_entropy(logits, labels, reduction="none") * counts
    return losses.sum() / (len(losses) if mean == "batch" else counts.sum().clamp(min=1))


# --- settings --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class DAPLConfig(SgdConfig):
    """Settings of DAPL. Defaults are the paper's; "official:" is the value of the released code where it differs."""

    bounds: ClassVar = {"temperature": Bound(low=0), "threshold": Bound(low=0, high=1)}
    context_tokens: int = 16  # M1, learned tokens that all domains share
    domain_tokens: int = 16  # M2, learned tokens of each domain; 0: none, which is CoOp with pseudo-labels
    class_specific: bool = False  # True: every class has M1 tokens of its own
    template: str = "{context} {name}."  # the text of a class, with ``{context}`` and ``{name}``
    domain_words: bool = False  # ", a DOMAIN image." behind the class name; official: True
    denominator: Literal["all", "own"] = "all"  # prompts of all domains, or of the image's own; official: own
    pseudo_template: str = "a photo of a {name}."  # the text that pseudo-labels come from
    pseudo_temperature: float = 1.0  # T, divides the logits that pseudo-labels come from
    threshold: float = 0.5  # least probability of a pseudo-label that counts
    target_weight: float = 1.0  # U, weight of the target loss
    target_mean: Literal["batch", "confident"] = "batch"  # what its sum is divided by; official: confident
    schedule: Literal["epoch", "iteration"] = "epoch"  # what the learning rate advances with; official: iteration
    learning_rate: float = 3e-3  # of SGD, at the top of the cosine
    batch_size: int = 32  # labelled images in a step, and as many target images
    epochs: int = 25  # passes over the labelled images; half a period of the cosine

    def __post_init__(self) -> None:
        if self.context_tokens + self.domain_tokens < 1:
            raise ValueError("dapl: context_tokens=0 with domain_tokens=0 leaves nothing to learn; set one of them")


# --- the method ------------------------------------------------------------------------------------------------------

_TARGET_BATCHES, _TARGET_AUGMENT = 3, 4  # what a random generator is for, beside ``seed_parts``


class DAPL(SgdMethod):
    """Learned context for all domains and for each; frozen CLIP images, pseudo-labelled target images."""

    card = read_card("dapl")
    Config = DAPLConfig
    stage = "contexts"
    needs = "styles"
    reads_target = True
    one_process = "its target loss is a mean over the images with a confident pseudo-label"
    fact_names = ("class_names", "domain_names", "adapts")
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "official": {
            "domain_words": True,
            "denominator": "own",
            "target_mean": "confident",
            "schedule": "iteration",
        },
    }
    ablations: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "no_domain_tokens": {"domain_tokens": 0},
        "no_target": {"target_weight": 0.0},
        "own_domain_only": {"denominator": "own"},
        "class_specific": {"class_specific": True},
        "threshold_0": {"threshold": 0.0},
        "threshold_0.8": {"threshold": 0.8},
        "not_augmented": {"augment": False},
    }
    config: DAPLConfig
    backbone: PromptBackbone
    class_names: tuple[str, ...] = ()  # that training may use
    domain_names: tuple[str, ...] = ()  # in the order of their tokens
    adapts: bool = False  # whether the last domain is the target
    _target: Callable[[int], Tensor] | None = None  # while it trains: step -> features [B, E] of target images
    _target_feed: Feed[Tensor] | None = None
    _zero_shot: Tensor | None = None  # while it trains: what pseudo-labels come from [C, E]
    _domains: Tensor | None = None  # while it trains: each labelled image's domain, numbered as ``domain_names`` [N]

    @cached_property
    def _templates(self) -> dict[tuple[tuple[str, ...], str], PromptTemplate]:
        return {}

    def build(self, seed: int) -> dict[str, nn.Parameter]:
        """``context`` [M1, v], or [C, M1, v], and ``domains`` [D, M2, v], from N(0, 0.02^2)."""
        config, backbone, generator = self.config, self.backbone, seeded(seed, 0)
        shape = (len(self.class_names),) if config.class_specific else ()
        shapes = {
            "context": (*shape, config.context_tokens, backbone.text_width),
            "domains": (len(self.domain_names), config.domain_tokens, backbone.text_width),
        }
        parts = {
            name: new_context(math.prod(shape[:-1]), backbone, generator).view(shape) for name, shape in shapes.items()
        }
        return {name: nn.Parameter(part) for name, part in parts.items() if part.numel()}

    @property
    def frozen_images(self) -> bool:
        """True: images are CLIP's."""
        return True

    @property
    def frozen_texts(self) -> bool:
        """False: the contexts are in them."""
        return False

    # --- prompts and text features ---

    def prompts(self, names: Sequence[str]) -> Prompts:
        """The classes' texts with places for the M1 + M2 tokens, without words for the domain."""
        return self._template(names, self.config.template)

    def _template(self, names: Sequence[str], template: str) -> PromptTemplate:
        tokens = self.config.context_tokens + self.config.domain_tokens
        if (tuple(names), template) not in self._templates:  # a step needs one for each domain, always the same
            if len(self._templates) > 4 * (1 + len(self.domain_names)):
                self._templates.clear()
            built = PromptTemplate.build(self.backbone, names, template, tokens)
            self._templates[tuple(names), template] = built
        return self._templates[tuple(names), template]

    def contexts(self, names: Sequence[str]) -> Tensor:
        """(1) ``[v_1 ... v_M1 ; d_1 ... d_M2]`` of every domain, [D, M1 + M2, v]; of classes [D, C, M1 + M2, v]."""
        learned, count = self.trainable(), len(self.domain_names)
        shared = learned.get("context", self.backbone.text_projection.new_zeros(0, self.backbone.text_width))
        if self.config.class_specific:
            places = {name: number for number, name in enumerate(self.class_names)}
            mean = shared.mean(dim=0)
            shared = torch.stack([shared[places[name]] if name in places else mean for name in names])
        parts = [shared.expand(count, *shared.shape)]
        if "domains" in learned:
            own = learned["domains"]
            parts.append(own[:, None].expand(-1, len(names), -1, -1) if self.config.class_specific else own)
        return torch.cat(parts, dim=-2)

    def domain_texts(self, names: Sequence[str]) -> Tensor:
        """(1) Normalised t_k^d of the classes -> [D, C, E].

        What a domain's prompts share, the start token and the context, is computed once a domain.
        """
        config, contexts = self.config, self.contexts(names)
        if config.domain_words:
            words = (f" , a {class_text(domain)} image.." for domain in self.domain_names)  # both full stops are theirs
            each = [self._template(names, config.template.removesuffix(".") + text) for text in words]
            features = [self._encode(one, context[None]) for one, context in zip(each, contexts, strict=True)]
            return F.normalize(torch.cat(features), dim=-1)
        return F.normalize(self._encode(self._template(names, config.template), contexts), dim=-1)

    def _encode(self, prompts: PromptTemplate, contexts: Tensor) -> Tensor:
        """Text features of contexts [D, M, v] or [D, C, M, v] -> [D, C, E]."""
        fast = self.config.fast
        if contexts.ndim == 3:
            return encode_prompts(self.backbone, prompts, contexts, shared_prefix=fast, cut=fast)
        rows = torch.arange(len(prompts), device=self.device)[:, None]
        embedded = self.backbone.embed_tokens(prompts.ids).expand(len(contexts), -1, -1, -1).clone()
        embedded[:, rows, prompts.slots] = contexts.to(embedded.dtype)
        read = self.backbone.run_text(embedded.flatten(0, 1), prompts.eot.repeat(len(contexts)), cut=fast)
        return read.unflatten(0, (len(contexts), len(prompts)))

    # --- training ---

    def labelled(self, data: TrainingData) -> tuple[Sequence[str], Tensor]:
        """(9) All class names that training may use."""
        return data.class_names, data.labels

    def fit(self, data: TrainingData, *, seed: int, log: Log) -> FitReport:
        """Train on labelled images and, where the protocol shows any, on pseudo-labelled target images."""
        present, self._domains = torch.unique(data.domains, return_inverse=True)
        self.class_names, self.adapts = data.class_names, data.has_target
        names = tuple(data.domain_names[int(number)] for number in present)
        self.domain_names = (*names, TARGET) if self.adapts else names
        try:
            return super().fit(data, seed=seed, log=log)
        finally:
            if self._target_feed is not None:
                self._target_feed.close()
            self._target = self._target_feed = self._zero_shot = self._domains = None

    @torch.no_grad()
    def begin(self, data: TrainingData, seed: int) -> None:
        """(4) The texts of pseudo-labels, and the stream of target images."""
        if not self.adapts or not self.config.target_weight:
            return
        texts = PromptTemplate.build(self.backbone, data.class_names, self.config.pseudo_template)
        self._zero_shot = encode_prompts(self.backbone, texts)
        self._target = self._target_features(data.target, seed)

    def _target_features(self, images: Images, seed: int) -> Callable[[int], Tensor]:
        """CLIP's features of the target images of a step."""
        config, augmentation = self.config, self.config.augmentation
        stream = target_batches(len(images), config.batch_size, seeded(seed, _TARGET_BATCHES))
        if config.fast and not augmentation.active:
            known = image_features(self.backbone, images, statistics=config.train_statistics)
            return lambda step: known[next(stream)].to(self.device, non_blocking=True)

        self._target_feed = fed = feed(stream, lambda index: (images.stored(index),), self.device)

        def features(step: int) -> Tensor:
            _, (stored,) = next(fed)
            pixels = augment(stored, augmentation, seeded(seed, _TARGET_AUGMENT, step))
            return self.image_features(self.backbone.normalize(pixels, config.train_statistics))

        return features

    def batch_loss(self, batch: TrainingBatch, prompts: Prompts, fixed_texts: Tensor | None) -> Tensor:
        """(3, 5, 6) Source loss, and target loss where there are target images."""
        assert self._domains is not None
        texts = self.domain_texts(self.class_names)
        domains = self._domains[batch.index].to(self.device, non_blocking=True)
        loss = self.loss_of(self.batch_images(batch), texts, batch.labels, domains)
        if self._target is not None and self._zero_shot is not None:
            images = self._target(batch.step)
            loss = loss + self.config.target_weight * self.target_loss(images, texts, self._zero_shot)
        return loss

    def loss_of(self, images: Tensor, texts: Tensor, labels: Tensor, domains: Tensor) -> Tensor:
        """(3) Cross-entropy of images [B, E] of known ``labels`` and ``domains`` [B] over texts [D, C, E]."""
        logits = domain_logits(self.scaled_cosines(images, texts), domains, self.config.denominator)
        return F.cross_entropy(logits, domain_labels(labels, domains, texts.shape[1], self.config.denominator))

    def target_loss(self, images: Tensor, texts: Tensor, zero_shot: Tensor) -> Tensor:
        """(4, 5) Of target images [B, E]; ``zero_shot`` [C, E]: what pseudo-labels come from."""
        config, scale = self.config, self.logit_scale()
        guess = scale * cosine_similarities(images, zero_shot)
        labels, counts = pseudo_labels(guess, config.threshold, config.pseudo_temperature)
        domains = torch.full_like(labels, len(texts) - 1)
        logits = domain_logits(self.scaled_cosines(images, texts), domains, config.denominator)
        return target_loss(
            logits, domain_labels(labels, domains, texts.shape[1], config.denominator), counts, config.target_mean
        )

    def scaled_cosines(self, images: Tensor, texts: Tensor) -> Tensor:
        """(2) exp(logit_scale) * cos(f(x), t_k^d): images [B, E], texts [D, C, E] -> [B, D, C]."""
        return self.logit_scale() * cosine_similarities(images, texts.flatten(0, 1)).unflatten(1, texts.shape[:2])

    def step_rate(self, step: int, steps: int) -> float:
        """Warm-up, then a cosine in the epochs or iterations that have passed."""
        return self.rate_after(step) if self.config.schedule == "iteration" else super().step_rate(step, steps)

    # --- inference ---

    @torch.no_grad()
    def encode_classes(self, names: Sequence[str]) -> Tensor:
        """(6, 8) t_k^target, or where there was no target the normalised mean of t_k^d over the domains -> [C, E]."""
        self.trainable()
        texts = self.domain_texts(names)
        return texts[-1] if self.adapts else F.normalize(texts.mean(dim=0), dim=-1)

    # --- state ---

    def prepare_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Contexts of the facts' classes and domains."""
        if self.parameters is None or any(
            name not in tensors or tensors[name].shape != value.shape for name, value in self.parameters.items()
        ):
            self.parameters = self.build(seed=0)
