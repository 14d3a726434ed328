"""AD-CLIP: adapting domains in prompt space using CLIP (Singha et al., ICCV Workshops 2023). docs/methods.md, AD-CLIP.

Idea: CLIP stays frozen; the *prompt* of a class is written anew for every image, from the image's style (its domain)
and its content at the layers of the vision tower, so that one prompt spans source and target domain. The numbers are
those of the comments below; docs/methods.md has the formulas.

1. **Style**: after each of the n vision blocks, mu_l and sigma_l, the mean and the standard deviation over the tokens
   (the class token is one of them).
2. **Domain projector P_v**: two linear maps of [mu_l ; sigma_l] for each layer -> n domain tokens.
3. **Style mapping network f_smn**: an MLP of [mu_l ; sigma_l] for each layer; from *target* style it predicts the
   *source* domain tokens, so that no source image is needed at test time.
4. **Content projector P_c**: a linear map of mu_l for each layer, then J linear mixes over the layers: J image tokens.
5. **Prompt** of image x and class k: ``[SOS ; n source-domain tokens ; n target-domain tokens ; J image tokens ;
   name_k . EOT]``; t_k(x) is its text feature. *Training* pairs labelled source images with unlabelled target images:
   an image's own domain tokens are P_v(x), the other domain's are the mean of P_v over the other half of the batch.
   *Test*: source tokens f_smn(x), target tokens P_v(x).
6. **Logits**: exp(logit_scale) * cos(f(x), t_k(x)).
7. **Loss**: ce(source) + 0.1 smn + 0.01 entropy(target) + kl, see :func:`loss_terms`.

Trained: the three projectors. The released code differs: methods/cards/ad_clip.toml, methods/official/ad_clip.py.

Extensions (the paper classifies target images and nothing else):

8. **Retrieval embedding**: normalise(f(x) + sum_k p_k(x) t_k(x)), p the softmax of the logits over the classes that the
   protocol names in training; all images, source or target, are encoded by the test rule.
9. **Class embedding** without an image: the mean of t_k(x), by the test rule, over ``anchors`` training images,
   normalised. The anchors are drawn once, from the run's seed, evenly over all labelled images; their layer statistics
   are saved with the model, so any class name, seen in training or not, has an embedding.
10. **No target images** (UCDR family): a batch pairs two different training domains, the first drawn in proportion to
    its images; the second plays the target, and its labels are not read.

A ResNet's n layers are its four stages, whose widths w differ: narrower ones are filled with zeros where a table holds
all of them, and no weight reads these.

Shapes: B images, C classes, n layers, J image tokens, w vision width, v text width, E embedding width.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.cards import read_card
from methods.interface import FitReport, Images, Log, Method, TrainingData, added
from methods.official import ad_clip as official
from methods.parts.augment import Augmentation, augment
from methods.parts.backbone import PromptBackbone, Statistics, stack_layers
from methods.parts.feature_cache import layer_statistics
from methods.parts.feeding import feed
from methods.parts.layerwise import layerwise_linear
from methods.parts.losses import cosine_similarities, mean_entropy
from methods.parts.prompts import PromptTemplate, encode_prompts
from methods.training.batches import batches, domain_pairs, target_batches
from methods.training.loop import budget, count_parameters, run_stage, seeded
from methods.training.sgd import warm_cosine

# --- the model -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class VisionFeatures:
    """What the frozen vision tower gives for B images; AD-CLIP reads nothing else of them.

    ``features`` [B, E], not normalised; ``mu``, ``sigma`` [B, n, w]: the style of each layer.
    """

    features: Tensor
    mu: Tensor
    sigma: Tensor

    @classmethod
    @torch.no_grad()
    def extract(cls, backbone: PromptBackbone, pixels: Tensor, layers: int = 0) -> VisionFeatures:
        """(1) One pass over normalised pixels [B, 3, H, W]; styles of the last ``layers`` layers (0: of all)."""
        features, mu, sigma = backbone.encode_styles(pixels, layers)
        return cls(features, stack_layers(mu), stack_layers(sigma))

    def style(self, widths: Sequence[int]) -> Tensor:
        """[mu_l ; sigma_l] of every layer, zeros behind those of narrower layers: [B, n, 2w]."""
        if set(widths) == {self.mu.shape[-1]}:
            return torch.cat([self.mu, self.sigma], dim=-1)
        pairs = (torch.cat([self.mu[:, n, :w], self.sigma[:, n, :w]], dim=-1) for n, w in enumerate(widths))
        return stack_layers(list(pairs))

    def __getitem__(self, index: Tensor) -> VisionFeatures:
        return VisionFeatures(self.features[index], self.mu[index], self.sigma[index])

    def __len__(self) -> int:
        return len(self.features)

    def to(self, device: torch.device) -> VisionFeatures:
        """The same on another device."""
        return VisionFeatures(*(part.to(device, non_blocking=True) for part in (self.features, self.mu, self.sigma)))


class Projectors(nn.Module):
    """All that AD-CLIP trains, and the learned tokens (the *context*) of the prompts that they write."""

    def __init__(self, backbone: PromptBackbone, config: AdClipConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        widths = backbone.style_widths
        if config.layers > len(widths):
            raise ValueError(
                f"ad_clip: layers {config.layers} is more than the {len(widths)} vision blocks of backbone"
                f" {backbone.name}; lower it, or 0 for all"
            )
        self.widths = narrow = widths[-config.layers :]
        self.layers, wide, out = len(narrow), tuple(2 * width for width in narrow), backbone.text_width
        domain_wide = wide if config.domain_input == "concat" else narrow
        style_wide = wide if config.style_input == "concat" else narrow
        self.domain = LayerwiseMLP(
            domain_wide, config.domain_hidden, out, generator, relu=config.domain_projector == "mlp"
        )
        self.style = LayerwiseMLP(style_wide, config.style_hidden, out, generator, relu=True)
        self.content = ContentProjector(narrow, 1 if config.shared_mix else config.image_tokens, out, generator)
        if config.fixed_first:
            for first in (self.domain.linear1, self.style.linear1, self.content.linear):
                first.requires_grad_(False)

    def trained(self) -> list[nn.Parameter]:
        """The parameters that an optimiser gets: all, or with ``fixed_first`` all but the first maps."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def domain_tokens(self, image: VisionFeatures) -> Tensor:
        """(2) P_v: style -> n domain tokens [B, n, v]."""
        concat = self.config.domain_input == "concat"
        tokens: Tensor = self.domain(
            image.style(self.widths) if concat else official.average_style(image.mu, image.sigma)
        )
        return tokens

    def style_tokens(self, image: VisionFeatures) -> Tensor:
        """(3) f_smn: style -> the source domain tokens that it predicts [B, n, v]."""
        concat, style = self.config.style_input == "concat", image.style(self.widths)
        tokens: Tensor = self.style(style if concat else official.neighbour_means(style))
        return tokens

    def image_tokens(self, image: VisionFeatures) -> Tensor:
        """(4) P_c: the mean token of each layer -> J image tokens [B, J, v]."""
        tokens: Tensor = self.content(image.mu)
        return tokens.expand(-1, self.config.image_tokens, -1)  # a shared mix gives one token, J times

    @property
    def context_tokens(self) -> int:
        """Learned tokens of a prompt: 2n + J."""
        return 2 * self.layers * self.config.domain_tokens + self.config.image_tokens

    def _context(self, source_domain: Tensor, target_domain: Tensor, image: VisionFeatures) -> Tensor:
        """(5) ``[n source-domain tokens ; n target-domain tokens ; J image tokens]`` -> [B, 2n + J, v]."""
        parts = [domain.expand(len(image), -1, -1) for domain in (source_domain, target_domain)]
        content = [self.image_tokens(image)] if self.config.image_tokens else []
        return torch.cat((parts if self.config.domain_tokens else []) + content, dim=1)

    def training_contexts(self, source: VisionFeatures, target: VisionFeatures) -> tuple[Tensor, Tensor]:
        """Contexts of the source and of the target images of a batch.

        The other domain's tokens are the mean over that half of the batch (``pairing`` mean), or those of the image at
        the same position in it (``item``).
        """
        source_tokens, target_tokens = self.domain_tokens(source), self.domain_tokens(target)
        source_domain, target_domain = source_tokens, target_tokens
        if self.config.pairing == "mean":
            source_domain, target_domain = (
                tokens.mean(dim=0, keepdim=True) for tokens in (source_tokens, target_tokens)
            )
        return self._context(source_tokens, target_domain, source), self._context(source_domain, target_tokens, target)

    def test_context(self, image: VisionFeatures) -> Tensor:
        """Contexts of images without a batch: source tokens f_smn(x) (or P_v(x)), target tokens P_v(x)."""
        target_tokens = self.domain_tokens(image)
        source_tokens = self.style_tokens(image) if self.config.test_tokens == "mapped" else target_tokens
        return self._context(source_tokens, target_tokens, image)


class LayerwiseMLP(nn.Module):
    """Two linear maps for every layer, with a ReLU or nothing between them: [B, n, in] -> [B, n, out]."""

    def __init__(self, wide: Sequence[int], hidden: int, out: int, generator: torch.Generator, *, relu: bool) -> None:
        super().__init__()
        self.linear1 = layerwise_linear(wide, hidden, generator)
        self.linear2 = layerwise_linear([hidden] * len(wide), out, generator)
        self.relu = relu

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.linear1(inputs)
        tokens: Tensor = self.linear2(hidden.relu() if self.relu else hidden)
        return tokens


class ContentProjector(nn.Module):
    """A linear map for every layer, then linear mixes over the layers: [B, n, in] -> [B, mixes, out]."""

    def __init__(self, wide: Sequence[int], mixes: int, out: int, generator: torch.Generator) -> None:
        super().__init__()
        layers = len(wide)
        bound = layers**-0.5
        self.linear = layerwise_linear(wide, out, generator)
        self.mix_weight = nn.Parameter(torch.empty(mixes, layers).uniform_(-bound, bound, generator=generator))
        self.mix_bias = nn.Parameter(torch.empty(mixes).uniform_(-bound, bound, generator=generator))

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.einsum("jn,bnv->bjv", self.mix_weight, self.linear(inputs)) + self.mix_bias[:, None]


# --- the loss --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Half:
    """One half of a batch: its B images, their t_k(x) ``texts`` [B, C, E], normalised, and ``logits`` [B, C]."""

    image: VisionFeatures
    texts: Tensor
    logits: Tensor


def loss_terms(projectors: Projectors, source: Half, target: Half, labels: Tensor) -> dict[str, Tensor]:
    """(7) The four terms, not weighted, for labelled source images (``labels`` [B] in 0..C-1) and target images.

    * ``ce``: cross-entropy of the source logits (the paper's supervised contrastive loss, prompts as prototypes);
    * ``smn``: mean squared error between P_v(source) and f_smn(target), batch means;
    * ``entropy``: mean entropy of the softmax of the target logits;
    * ``kl``: KL(softmax of the target's t_k || softmax of the source's) over the class axis, batch means; E summed.
    """
    config = projectors.config
    domain_tokens = projectors.domain_tokens(source.image)
    style_tokens = projectors.style_tokens(target.image if config.smn_input == "target" else source.image)
    if config.smn_detach:
        domain_tokens = domain_tokens.detach()
    compared = [domain_tokens, style_tokens, source.texts, target.texts]
    if config.pairing == "mean":
        compared = [values.mean(dim=0, keepdim=True) for values in compared]
    domain_tokens, style_tokens, source_texts, target_texts = compared
    entropy = mean_entropy if config.entropy == "posterior" else official.batch_normalised_entropy
    return {
        "ce": F.cross_entropy(source.logits, labels),
        "smn": F.mse_loss(style_tokens, domain_tokens),
        "entropy": entropy(target.logits),
        "kl": F.kl_div(
            source_texts.log_softmax(dim=1), target_texts.log_softmax(dim=1), log_target=True, reduction="batchmean"
        ),
    }


def total_loss(terms: Mapping[str, Tensor], config: AdClipConfig) -> Tensor:
    """(7) The weighted sum; a term of weight 0 is left out, so that weight decay leaves what only it trains alone."""
    weights = {
        "ce": config.ce_weight,
        "smn": config.smn_weight if config.domain_tokens else 0.0,
        "entropy": config.entropy_weight,
        "kl": config.kl_weight,
    }
    return torch.stack([weight * terms[name] for name, weight in weights.items() if weight]).sum()


@dataclass(frozen=True)
class Losses:
    """The loss of one batch: its ``terms`` (not weighted), their weighted sum ``total``, and both halves."""

    terms: dict[str, Tensor]
    total: Tensor
    source: Half
    target: Half


# --- settings --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class AdClipConfig:
    """Settings of AD-CLIP. Defaults are the paper's; "official:" is the value of the released code where it differs."""

    domain_tokens: bool = True  # False leaves the 2n domain tokens out of the prompt, and the smn term out of the loss
    image_tokens: int = 4  # J, image tokens of a prompt; 0 leaves them out
    layers: int = 0  # n, the number of vision blocks read, counted from the last; 0: all
    domain_projector: Literal["linear", "mlp"] = "linear"  # P_v has nothing (linear) or a ReLU (mlp) between its maps
    domain_hidden: int = 256  # hidden width of P_v
    style_hidden: int = 384  # hidden width of f_smn
    ce_weight: float = 1.0  # weight of the loss term ce
    smn_weight: float = 0.1  # weight of smn
    entropy_weight: float = 0.01  # weight of entropy
    kl_weight: float = 1.0  # weight of kl
    anchors: int = 32  # training images whose prompts are averaged for a class embedding (extension)

    smn_input: Literal["target", "source"] = "target"  # images whose style f_smn learns from; official: source
    smn_detach: bool = False  # True keeps the gradient of the smn term from P_v
    test_tokens: Literal["mapped", "own"] = "mapped"  # source tokens at test: f_smn(x), or P_v(x); official: own
    pairing: Literal["mean", "item"] = "mean"  # a batch's halves meet by their means, or image by image (official)
    entropy: Literal["posterior", "batch_normalised"] = "posterior"  # entropy of posteriors; official: batch_normalised
    shared_mix: bool = False  # True makes the J image tokens equal; official: True
    domain_input: Literal["concat", "average"] = "concat"  # P_v reads [mu ; sigma], or (mu + sigma) / 2 (official)
    style_input: Literal["concat", "neighbours"] = "concat"  # f_smn reads [mu ; sigma], or neighbour means (official)
    schedule: Literal["epoch", "iteration"] = "epoch"  # what the learning rate advances with; official: iteration
    fixed_first: bool = added(False)  # True leaves each projector's first maps as drawn; official with a ResNet: True
    statistics: Statistics = "clip"  # pixel normalisation: clip, imagenet or none

    learning_rate: float = 1e-2  # of Adam, at the top of the cosine; half a period of the cosine is ``epochs``
    weight_decay: float = 5e-4  # of Adam, as an L2 term of the gradient
    warmup_rate: float = 1e-5  # learning rate before the cosine begins
    warmup_epochs: int = 1  # epochs at that rate
    batch_size: int = 16  # labelled images in a step, and as many target images
    epochs: int = 50  # passes over the labelled images
    steps: int = 0  # 0: ``epochs`` decides; else optimiser steps, over which the schedule's epochs are spread evenly
    validate_every: int = 0  # steps between validations; 0: once an epoch, or ten times in a run of given ``steps``
    patience: int = 0  # validations without gain before training stops; 0: never
    crop: float = 0.08  # smallest share of an image that a random crop keeps; 1: no crop
    flip: bool = True  # random horizontal flips
    jitter: float = 0.0  # strength of the colour jitter
    fast: bool = True  # the exact speed-ups of docs/methods.md; False: the plain path, with the same numbers

    def __post_init__(self) -> None:
        if not self.domain_tokens and self.image_tokens == 0:
            raise ValueError(
                "ad_clip: domain_tokens=False with image_tokens=0 leaves nothing to learn; set one of them"
            )
        if min(self.image_tokens, self.layers) < 0 or self.anchors < 1:
            raise ValueError("ad_clip: image_tokens and layers cannot be below 0, nor anchors below 1")

    @classmethod
    def official(cls) -> AdClipConfig:
        """Every switch as in the released code."""
        return cls(**official.SETTINGS)

    @property
    def augmentation(self) -> Augmentation:
        """The augmentation of training images; without any, the vision tower runs once for each image."""
        return Augmentation(self.crop, self.flip, self.jitter)


# --- the method ------------------------------------------------------------------------------------------------------

_INIT, _ANCHORS, _BATCHES, _AUGMENT = range(4)  # what a random generator is for

#: Prompts (images times classes) that inference runs at a time: bounds its memory.
PROMPTS_PER_PASS = 4096

#: Validations of a run whose length is given in steps, where ``validate_every`` is 0.
VALIDATIONS = 10


class AdClip(Method):
    """AD-CLIP: prompts written from an image's style and content, for source and target domain at once."""

    card = read_card("ad_clip")
    Config = AdClipConfig
    needs = "styles"
    backbone: PromptBackbone
    fact_names = ("class_names",)
    one_process = "its loss takes means over the two halves of a batch"
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "paper": {},
        "official": official.SETTINGS,
        "official_resnet": official.RESNET_SETTINGS,
    }
    ablations: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "no_ce": {"ce_weight": 0.0},
        "no_smn": {"smn_weight": 0.0, "test_tokens": "own"},  # an untrained f_smn writes no tokens
        "no_entropy": {"entropy_weight": 0.0},
        "no_kl": {"kl_weight": 0.0},
        "no_domain_tokens": {"domain_tokens": False},
        "no_image_tokens": {"image_tokens": 0},
        "layers_1": {"layers": 1},
        "layers_2": {"layers": 2},
        "image_tokens_1": {"image_tokens": 1},
        "image_tokens_2": {"image_tokens": 2},
        "image_tokens_8": {"image_tokens": 8},
        "mlp_domain_projector": {"domain_projector": "mlp"},
    }

    def __init__(
        self, backbone: PromptBackbone, config: AdClipConfig | None = None, device: str | torch.device | None = None
    ) -> None:
        super().__init__(backbone, config, device)
        self.projectors = Projectors(backbone, self.config, seeded(0, _INIT)).to(self.device)
        self.class_names: tuple[str, ...] = ()  # the classes known from training
        self._training_prompts: PromptTemplate | None = None  # their prompts
        self._anchors: VisionFeatures | None = None

    # --- prompts, text features, logits, loss ---

    def prompts(self, names: Sequence[str]) -> PromptTemplate:
        """``[SOS ; 2n + J slots ; name . EOT]`` of every name; kept for the classes known from training."""
        if self._training_prompts is not None and tuple(names) == self.class_names:
            return self._training_prompts
        tokens = self.projectors.context_tokens
        return PromptTemplate.build(self.backbone, names, "{context} {name}.", tokens)

    def text_features(self, prompts: PromptTemplate, context: Tensor) -> Tensor:
        """(5) t_k(x): contexts [B, 2n + J, v] -> [B, C, E], normalised.

        The start token and the context are the same for all classes: their keys and values are computed once an image.
        """
        fast, chunk = self.config.fast, PROMPTS_PER_PASS
        features = encode_prompts(self.backbone, prompts, context, shared_prefix=fast, cut=fast, class_chunk=chunk)
        return F.normalize(features, dim=-1)

    def logits(self, image: VisionFeatures, texts: Tensor) -> Tensor:
        """(6) exp(logit_scale) * cos(f(x), t_k(x)): texts [B, C, E] -> [B, C]."""
        return self.backbone.logit_scale * cosine_similarities(image.features, texts)

    def losses(self, source: VisionFeatures, target: VisionFeatures, labels: Tensor, prompts: PromptTemplate) -> Losses:
        """(7) The loss of a batch: labelled source images (``labels`` [B] index the prompts) and target images."""
        contexts = self.projectors.training_contexts(source, target)
        texts = self.text_features(prompts, torch.cat(contexts))
        source_texts, target_texts = texts.split([len(source), len(target)])
        source_half = Half(source, source_texts, self.logits(source, source_texts))
        target_half = Half(target, target_texts, self.logits(target, target_texts))
        terms = loss_terms(self.projectors, source_half, target_half, labels)
        return Losses(terms, total_loss(terms, self.config), source_half, target_half)

    # --- training ---

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam over the projectors, weight decay as an L2 term of the gradient."""
        return torch.optim.Adam(
            self.projectors.trained(),
            lr=self.config.learning_rate,
            weight_decay=self.config.weight_decay,
        )

    def learning_rate(self, step: int, steps: int) -> float:
        """Warm-up, then a cosine in the epochs (``epochs`` in ``steps``) or iterations that have passed."""
        config = self.config
        passed = step if config.schedule == "iteration" else step * config.epochs // steps
        return warm_cosine(
            passed,
            config.learning_rate,
            periods=config.epochs,
            warmup=config.warmup_epochs,
            warmup_rate=config.warmup_rate,
        )

    def fit(self, data: TrainingData, *, seed: int, log: Log) -> FitReport:
        """Train on labelled images and target images, or other training domains where there are none (10)."""
        config, start = self.config, time.perf_counter()
        self.projectors = Projectors(self.backbone, config, seeded(seed, _INIT)).to(self.device)
        self.class_names, self._training_prompts = data.class_names, None
        sample = torch.randperm(len(data.images), generator=seeded(seed, _ANCHORS))[: config.anchors].sort().values
        self._anchors = self._extract(data.images.pixels(sample))

        prompts, pairs = self.prompts(data.class_names), self._pairs(data, seed)
        self._training_prompts = prompts
        source = self._training_features(data.images, seed)
        target = self._training_features(data.target, seed) if data.has_target else source
        steps = budget(config.steps, config.epochs, len(data.images), config.batch_size)
        frozen, others = config.fast and not config.augmentation.active, data.target if data.has_target else data.images

        def read(pair: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
            return data.images.stored(pair[0]), others.stored(pair[1])

        fed = feed(islice(pairs, steps), None if frozen else read, self.device)

        def loss(step: int) -> Tensor:
            (first, second), pixels = next(fed)
            labels = data.labels[first].to(self.device, non_blocking=True)
            views = source(first, 2 * step, *pixels[:1]), target(second, 2 * step + 1, *pixels[1:])
            return self.losses(*views, labels, prompts).total

        report = FitReport(trainable_parameters=count_parameters(self.projectors.trained()))
        every = config.validate_every or math.ceil(steps / (VALIDATIONS if config.steps else config.epochs))
        with closing(fed):
            run_stage(
                self,
                data,
                report,
                log,
                stage="projectors",
                steps=steps,
                optimizers=[self.optimizer()],
                loss=loss,
                learning_rate=lambda step: self.learning_rate(step, steps),
                validate_every=every,
                patience=config.patience,
            )
        report.seconds = time.perf_counter() - start
        return report

    def _pairs(self, data: TrainingData, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Endless (source, target) indices: into the labelled images, and into the target images.

        Where the protocol shows no target images, both index the labelled ones, of two different domains (of the same
        one if there is only one).
        """
        size, generator = self.config.batch_size, seeded(seed, _BATCHES)
        pairs: Iterator[tuple[Tensor, Tensor]]
        if data.has_target:
            pairs = zip(batches(data, size, generator), target_batches(len(data.target), size, generator), strict=True)
        else:
            pairs = domain_pairs(data.domains, size, generator)
        for source, target in pairs:
            count = min(len(source), len(target)) if self.config.pairing == "item" else size
            yield source[:count], target[:count]

    def _training_features(self, images: Images, seed: int) -> Callable[..., VisionFeatures]:
        """``features(index, draw, stored)`` of training images; ``draw`` numbers the augmentation, ``stored`` are the
        images where they have been read already."""
        config = self.config
        if config.fast and not config.augmentation.active:  # the tower is frozen: once an image is enough
            known = layer_statistics(self.backbone, images, statistics=config.statistics)
            layers = slice(-config.layers, None)
            table = VisionFeatures(known["features"], known["mu"][:, layers], known["sigma"][:, layers])
            return lambda index, draw, stored=None: table[index].to(self.device)

        def features(index: Tensor, draw: int, stored: Tensor | None = None) -> VisionFeatures:
            pixels = images.stored(index).to(self.device) if stored is None else stored
            return self._extract(augment(pixels, config.augmentation, seeded(seed, _AUGMENT, draw)))

        return features

    # --- inference ---

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """(8) normalise(f(x) + sum_k p_k(x) t_k(x)) over the classes known from training -> ``[B, E]``."""
        parts = []
        for image, texts in self._by_the_test_rule(pixels, self.fitted(self._training_prompts)):
            shares = self.logits(image, texts).softmax(dim=-1)
            parts.append(F.normalize(image.features, dim=-1) + torch.einsum("bc,bce->be", shares, texts))
        return F.normalize(torch.cat(parts), dim=-1)

    @torch.no_grad()
    def encode_classes(self, names: Sequence[str]) -> Tensor:
        """(9) Mean of t_k(x) over the anchor images, normalised -> ``[C, E]``; any class name."""
        context = self.projectors.test_context(self.fitted(self._anchors))
        prompts, total = self.prompts(names), torch.zeros(len(names), self.backbone.embed_dim, device=self.device)
        for part in context.split(max(1, PROMPTS_PER_PASS // len(prompts))):
            total += self.text_features(prompts, part).sum(dim=0)
        return F.normalize(total, dim=-1)

    @torch.no_grad()
    def classify(self, pixels: Tensor, names: Sequence[str]) -> Tensor:
        """Logits ``[B, C]`` over class names, each image against its own prompts (the paper's prediction)."""
        pairs = self._by_the_test_rule(pixels, self.prompts(names))
        return torch.cat([self.logits(image, texts) for image, texts in pairs])

    def _by_the_test_rule(self, pixels: Tensor, prompts: PromptTemplate) -> Iterator[tuple[VisionFeatures, Tensor]]:
        """Features and t_k(x) [b, C, E] of images without a batch, as many images at a time as memory allows."""
        for part in pixels.split(max(1, PROMPTS_PER_PASS // len(prompts))):
            image = self._extract(part)
            yield image, self.text_features(prompts, self.projectors.test_context(image))

    def _extract(self, pixels: Tensor) -> VisionFeatures:
        normalized = self.backbone.normalize(pixels.to(self.device), self.config.statistics)
        return VisionFeatures.extract(self.backbone, normalized, self.config.layers)

    # --- state ---

    def total_parameters(self) -> int:
        """The backbone's weights and the projectors'; anchors are not trained."""
        return sum(p.numel() for p in [*self.backbone.model.parameters(), *self.projectors.parameters()])

    def learned_tensors(self) -> dict[str, Tensor]:
        """The projectors, and the anchors' layer statistics."""
        anchors = vars(self.fitted(self._anchors))
        tensors = {f"projectors.{name}": value for name, value in self.projectors.state_dict().items()}
        return tensors | {f"anchors.{name}": value for name, value in anchors.items()}

    def prepare_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Prompts of the class names, and room for the checkpoint's anchors."""
        self._training_prompts = None
        self._training_prompts = self.prompts(self.class_names)
        count, layers = len(tensors.get("anchors.features", ())), self.projectors.layers
        if self._anchors is None or len(self._anchors) != count:
            features = torch.empty(count, self.backbone.embed_dim, device=self.device)
            mu, sigma = torch.empty(2, count, layers, max(self.projectors.widths), device=self.device)
            self._anchors = VisionFeatures(features, mu, sigma)
