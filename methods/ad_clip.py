"""AD-CLIP: adapting domains in prompt space using CLIP (Singha et al., ICCV Workshops 2023). docs/methods.md, AD-CLIP.

Idea: CLIP stays frozen; the *prompt* of a class is written anew for every image, from what the vision tower's layers
say about the image's domain (its style) and its content, so that one prompt spans source and target domain.

* **Style**: after each of the n vision blocks, mu_l and sigma_l, the mean and the standard deviation over the tokens
  (the class token is one of them).
* **Domain projector P_v**: two linear maps of [mu_l ; sigma_l] a layer -> n domain tokens.
* **Content projector P_c**: a linear map of mu_l a layer, then J linear mixes over the layers -> J image tokens.
* **Style mapping network f_smn**: an MLP of [mu_l ; sigma_l] a layer; from *target* style it predicts the *source*
  domain tokens, so that no source image is needed at test time.
* **Prompt** of image x and class k: ``[SOS ; n source-domain tokens ; n target-domain tokens ; J image tokens ;
  name_k . EOT]``. t_k(x) is its text feature; the logits are exp(logit_scale) * cos(f(x), t_k(x)).
* **Training** pairs labelled source images with unlabelled target images. **Test** sees one image x: its source
  tokens are f_smn(x), its target tokens P_v(x).

Trained: the three projectors. Where the released code differs: methods/cards/ad_clip.toml.

Extensions (the paper classifies target images and nothing else):

* *No target images* (UCDR family): a batch pairs two different training domains, the first drawn in proportion to
  its images; the second plays the target, and its labels are not read.
* *Retrieval embedding*: normalise(f(x) + sum_k p_k(x) t_k(x)), p the softmax of the logits over the classes that the
  protocol names in training; all images, source or target, are encoded by the test rule.
* *Class embedding* without an image: the mean of t_k(x), by the test rule, over ``anchors`` training images,
  normalised. The anchors are drawn once, from the run's seed, evenly over all labelled images; their layer statistics
  are saved with the model, so any class name, seen in training or not, has an embedding.

Shapes: B images, C classes, n layers, J image tokens, w vision width, v text width, E embedding width.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.cards import read_card
from methods.interface import FitReport, Images, Log, Method, TrainingData
from methods.parts.augment import Augmentation, augment
from methods.parts.backbone import Backbone, Statistics, token_statistics
from methods.parts.feature_cache import layer_statistics
from methods.parts.losses import cosine_similarities, mean_entropy
from methods.parts.prompts import PromptTemplate, encode_prompts
from methods.training.batches import batches, target_batches
from methods.training.loop import budget, count_parameters, run_stage, seeded

_INIT, _ANCHORS, _BATCHES, _AUGMENT = range(4)  # what a random generator is for

#: Prompts (images times classes) that inference runs at a time: bounds its memory.
PROMPTS_PER_PASS = 4096

#: Validations of a run whose length is given in steps and that says nothing of ``validate_every``.
VALIDATIONS = 10

#: Where the released code does something else than the paper, as changes to the config.
OFFICIAL: dict[str, Any] = {
    "smn_input": "source",
    "test_tokens": "own",
    "pairing": "item",
    "entropy": "batch_normalised",
    "shared_mix": True,
    "domain_input": "average",
    "style_input": "neighbours",
    "schedule": "iteration",
}


@dataclass(frozen=True)
class AdClipConfig:
    """Settings of AD-CLIP; the defaults are the paper's. :meth:`official` gives those of the released code.

    The method:

    * ``domain_tokens``: False leaves the 2n domain tokens out of the prompt, and the style-mapping loss with them.
    * ``image_tokens``: J; 0 leaves them out.
    * ``layers``: n, the last so many vision blocks; 0 takes all.
    * ``domain_projector``: P_v's two maps with nothing between (``linear``) or a ReLU (``mlp``).
    * ``domain_hidden``, ``style_hidden``: hidden widths of P_v and f_smn.
    * ``ce_weight``, ``smn_weight``, ``entropy_weight``, ``kl_weight``: weights of the four loss terms.
    * ``anchors``: training images whose prompts are averaged for a class embedding.

    Where paper and released code differ, or could (paper first):

    * ``smn_input``: f_smn learns from the style of ``target`` or ``source`` images.
    * ``smn_detach``: True keeps the style-mapping loss from moving P_v.
    * ``test_tokens``: an image's source tokens at test time: ``mapped``, f_smn of it, or ``own``, P_v of it.
    * ``pairing``: how the halves of a batch meet: by batch ``mean``, or image by image (``item``).
    * ``entropy``: of each image's ``posterior``, or of probabilities ``batch_normalised``.
    * ``shared_mix``: True makes the J image tokens equal.
    * ``domain_input``: ``concat``, [mu ; sigma], or ``average``, (mu + sigma) / 2.
    * ``style_input``: ``concat``, or ``neighbours``, means of channels 2j and 2j + 1 of [mu ; sigma].
    * ``schedule``: the learning rate advances once an ``epoch`` or ``iteration``.
    * ``statistics``: pixel normalisation, ``clip``, ``imagenet`` or ``none``.

    Training:

    * ``learning_rate``, ``weight_decay``: of Adam (weight decay as an L2 term). The rate is ``warmup_rate`` for
      ``warmup_epochs`` epochs, then a cosine from ``learning_rate`` whose half period is ``epochs``.
    * ``batch_size``: labelled images a step, and as many target images.
    * ``epochs``: of the labelled images. ``steps``: 0 for those epochs, or the number of optimiser steps, over which
      the schedule's epochs are spread evenly.
    * ``validate_every``: steps between validations; 0: once an epoch, or ten times in a run of given ``steps``.
      ``patience``: validations without gain before training stops (0: never).
    * ``crop``, ``flip``, ``jitter``: augmentation, see :class:`methods.parts.augment.Augmentation`. Without any, the
      vision tower runs once an image, not once a step.
    * ``fast``: the exact speed-ups of docs/methods.md. False is the plain path with the same numbers.
    """

    domain_tokens: bool = True
    image_tokens: int = 4
    layers: int = 0
    domain_projector: Literal["linear", "mlp"] = "linear"
    domain_hidden: int = 256
    style_hidden: int = 384
    ce_weight: float = 1.0
    smn_weight: float = 0.1
    entropy_weight: float = 0.01
    kl_weight: float = 1.0
    anchors: int = 32
    smn_input: Literal["target", "source"] = "target"
    smn_detach: bool = False
    test_tokens: Literal["mapped", "own"] = "mapped"
    pairing: Literal["mean", "item"] = "mean"
    entropy: Literal["posterior", "batch_normalised"] = "posterior"
    shared_mix: bool = False
    domain_input: Literal["concat", "average"] = "concat"
    style_input: Literal["concat", "neighbours"] = "concat"
    schedule: Literal["epoch", "iteration"] = "epoch"
    statistics: Statistics = "clip"
    learning_rate: float = 1e-2
    weight_decay: float = 5e-4
    warmup_rate: float = 1e-5
    warmup_epochs: int = 1
    batch_size: int = 16
    epochs: int = 50
    steps: int = 0
    validate_every: int = 0
    patience: int = 0
    crop: float = 0.08
    flip: bool = True
    jitter: float = 0.0
    fast: bool = True

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
        return cls(**OFFICIAL)

    @property
    def augmentation(self) -> Augmentation:
        """What training does to images."""
        return Augmentation(self.crop, self.flip, self.jitter)


# --- what the frozen vision tower sees -------------------------------------------------------------------------------


@dataclass(frozen=True)
class View:
    """B images as the frozen vision tower sees them: all that AD-CLIP ever asks of it.

    ``features`` [B, E], not normalised; ``mu``, ``sigma`` [B, n, w]: each layer's style.
    """

    features: Tensor
    mu: Tensor
    sigma: Tensor

    def __getitem__(self, index: Tensor) -> View:
        return View(self.features[index], self.mu[index], self.sigma[index])

    def __len__(self) -> int:
        return len(self.features)

    def to(self, device: torch.device) -> View:
        """The same on another device."""
        return View(self.features.to(device), self.mu.to(device), self.sigma.to(device))


@torch.no_grad()
def look(backbone: Backbone, pixels: Tensor, layers: int = 0) -> View:
    """One pass over normalised pixels [B, 3, H, W]; styles of the last ``layers`` blocks, 0: of all."""
    states = backbone.run_vision_layers(backbone.image_tokens(pixels))  # n of [B, T, w]
    mu, sigma = token_statistics(states[-layers:])
    return View(backbone.readout(states[-1][:, 0]), mu.transpose(0, 1), sigma.transpose(0, 1))


# --- the three projectors --------------------------------------------------------------------------------------------


class LayerwiseLinear(nn.Module):
    """A linear map of its own for every layer: [B, n, in] -> [B, n, out]. Starts as ``torch.nn.Linear`` does."""

    def __init__(self, layers: int, wide: int, out: int, generator: torch.Generator) -> None:
        super().__init__()
        bound = wide**-0.5
        self.weight = nn.Parameter(torch.empty(layers, out, wide).uniform_(-bound, bound, generator=generator))
        self.bias = nn.Parameter(torch.empty(layers, out).uniform_(-bound, bound, generator=generator))

    def forward(self, inputs: Tensor) -> Tensor:
        return torch.einsum("bni,noi->bno", inputs, self.weight) + self.bias


class DomainProjector(nn.Module):
    """P_v: style -> n domain tokens [B, n, v]."""

    def __init__(self, config: AdClipConfig, layers: int, width: int, out: int, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        wide = 2 * width if config.domain_input == "concat" else width
        self.linear1 = LayerwiseLinear(layers, wide, config.domain_hidden, generator)
        self.linear2 = LayerwiseLinear(layers, config.domain_hidden, out, generator)

    def forward(self, view: View) -> Tensor:
        if self.config.domain_input == "concat":
            style = torch.cat([view.mu, view.sigma], dim=-1)  # [B, n, 2w]
        else:
            style = (view.mu + view.sigma) / 2
        hidden = self.linear1(style)
        tokens: Tensor = self.linear2(hidden.relu() if self.config.domain_projector == "mlp" else hidden)
        return tokens


class StyleMapper(nn.Module):
    """f_smn: style -> a guess [B, n, v] at the source domain tokens."""

    def __init__(self, config: AdClipConfig, layers: int, width: int, out: int, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        wide = 2 * width if config.style_input == "concat" else width
        self.linear1 = LayerwiseLinear(layers, wide, config.style_hidden, generator)
        self.linear2 = LayerwiseLinear(layers, config.style_hidden, out, generator)

    def forward(self, view: View) -> Tensor:
        style = torch.cat([view.mu, view.sigma], dim=-1)  # [B, n, 2w]
        if self.config.style_input == "neighbours":
            style = style.unflatten(-1, (-1, 2)).mean(dim=-1)  # [B, n, w]
        tokens: Tensor = self.linear2(self.linear1(style).relu())
        return tokens


class ContentProjector(nn.Module):
    """P_c: pooled tokens of each layer -> J image tokens [B, J, v]."""

    def __init__(self, config: AdClipConfig, layers: int, width: int, out: int, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        mixes, bound = 1 if config.shared_mix else config.image_tokens, layers**-0.5
        self.linear = LayerwiseLinear(layers, width, out, generator)
        self.mix_weight = nn.Parameter(torch.empty(mixes, layers).uniform_(-bound, bound, generator=generator))
        self.mix_bias = nn.Parameter(torch.empty(mixes).uniform_(-bound, bound, generator=generator))

    def forward(self, view: View) -> Tensor:
        content = self.linear(view.mu)  # [B, n, v]
        tokens = torch.einsum("jn,bnv->bjv", self.mix_weight, content) + self.mix_bias[:, None]
        return tokens.expand(-1, self.config.image_tokens, -1)


class Projectors(nn.Module):
    """All that AD-CLIP trains, and the learned tokens (the context) of the prompts they write."""

    def __init__(self, backbone: Backbone, config: AdClipConfig, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        if config.layers > backbone.vision_layers:
            raise ValueError(
                f"ad_clip: layers {config.layers} is more than the {backbone.vision_layers} vision blocks of backbone"
                f" {backbone.name}; lower it, or 0 for all"
            )
        self.layers = config.layers or backbone.vision_layers
        sizes = (config, self.layers, backbone.vision_width, backbone.text_width, generator)
        self.domain, self.style, self.content = DomainProjector(*sizes), StyleMapper(*sizes), ContentProjector(*sizes)

    @property
    def context_tokens(self) -> int:
        """Learned tokens of a prompt: 2n + J."""
        return 2 * self.layers * self.config.domain_tokens + self.config.image_tokens

    def _context(self, source_domain: Tensor, target_domain: Tensor, view: View) -> Tensor:
        """``[n source-domain tokens ; n target-domain tokens ; J image tokens]`` -> [B, 2n + J, v]."""
        parts = [domain.expand(len(view), -1, -1) for domain in (source_domain, target_domain)]
        image = [self.content(view)] if self.config.image_tokens else []
        return torch.cat((parts if self.config.domain_tokens else []) + image, dim=1)

    def training_contexts(self, source: View, target: View) -> tuple[Tensor, Tensor]:
        """Contexts of the source and of the target images of a batch.

        An image's own domain is in its own tokens; the other domain's are the mean over that half of the batch
        (``pairing`` mean), or those of the image at its place there (``item``).
        """
        own_source, own_target = self.domain(source), self.domain(target)
        if self.config.pairing == "item":
            return self._context(own_source, own_target, source), self._context(own_source, own_target, target)
        mean_source, mean_target = own_source.mean(dim=0, keepdim=True), own_target.mean(dim=0, keepdim=True)
        return self._context(own_source, mean_target, source), self._context(mean_source, own_target, target)

    def test_context(self, view: View) -> Tensor:
        """Contexts of images on their own: source tokens f_smn(x) (or P_v(x)), target tokens P_v(x)."""
        own = self.domain(view)
        return self._context(self.style(view) if self.config.test_tokens == "mapped" else own, own, view)


# --- losses ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Losses:
    """One forward pass: ``terms`` ce, smn, entropy and kl (not weighted), and what they were taken from.

    ``source_texts``, ``target_texts`` [B, C, E]: t_k(x), normalised. ``source_logits``, ``target_logits`` [B, C].
    """

    terms: dict[str, Tensor]
    total: Tensor
    source_texts: Tensor
    target_texts: Tensor
    source_logits: Tensor
    target_logits: Tensor


def target_entropy(logits: Tensor, kind: Literal["posterior", "batch_normalised"]) -> Tensor:
    """Entropy of the target predictions [B, C], mean over images; ``batch_normalised`` is the released code's."""
    if kind == "posterior":
        return mean_entropy(logits)
    shares = F.normalize(logits.softmax(dim=-1), dim=0)
    return -(shares * (shares + 1e-8).log()).sum(dim=-1).mean()


def class_axis_divergence(target: Tensor, source: Tensor) -> Tensor:
    """KL(softmax of target || softmax of source) over the class axis of text features [B, C, E]; the sum over C and E,
    mean over B."""
    return F.kl_div(source.log_softmax(dim=1), target.log_softmax(dim=1), log_target=True, reduction="batchmean")


class AdClip(Method):
    """AD-CLIP: prompts written from an image's style and content, for source and target domain at once."""

    card = read_card("ad_clip")
    Config = AdClipConfig
    one_process = "its loss takes means over the two halves of a batch"
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {}, "official": OFFICIAL}
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
        self, backbone: Backbone, config: AdClipConfig | None = None, device: str | torch.device | None = None
    ) -> None:
        super().__init__(backbone, config, device)
        self.projectors = Projectors(backbone, self.config, seeded(0, _INIT)).to(self.device)
        self.class_names: tuple[str, ...] = ()
        self._known: PromptTemplate | None = None  # prompts of class_names
        self._anchors: View | None = None

    # --- prompts ---

    def prompts(self, names: Sequence[str]) -> PromptTemplate:
        """``[SOS ; 2n + J slots ; name . EOT]`` of every name; kept for the classes known from training."""
        if self._known is not None and tuple(names) == self.class_names:
            return self._known
        tokens = self.projectors.context_tokens
        return PromptTemplate.build(self.backbone, names, "{context} {name}.", tokens)

    def text_features(self, prompts: PromptTemplate, context: Tensor) -> Tensor:
        """t_k(x): contexts [B, 2n + J, v] -> [B, C, E], normalised.

        The start token and the context are the same for all classes: their keys and values are computed once an image.
        """
        fast, chunk = self.config.fast, PROMPTS_PER_PASS
        features = encode_prompts(self.backbone, prompts, context, shared_prefix=fast, cut=fast, class_chunk=chunk)
        return F.normalize(features, dim=-1)

    def logits(self, view: View, texts: Tensor) -> Tensor:
        """exp(logit_scale) * cos(f(x), t_k(x)): texts [B, C, E] -> [B, C]."""
        return self.backbone.logit_scale * cosine_similarities(view.features, texts)

    # --- training ---

    def losses(self, source: View, target: View, labels: Tensor, prompts: PromptTemplate) -> Losses:
        """The four terms for labelled source images (``labels`` [B] index the prompts) and target images.

        With S, T the text features t_k(x) [B, C, E] of both halves and p the softmax of the logits over the classes:

        * ``ce``: cross-entropy of the source logits (the paper's supervised contrastive loss, prompts as prototypes);
        * ``smn``: mean squared error between P_v(source) and f_smn(target), batch means;
        * ``entropy``: mean entropy of p on the target;
        * ``kl``: KL(softmax of T || softmax of S) over the class axis, batch means.
        """
        config = self.config
        contexts = self.projectors.training_contexts(source, target)
        texts = self.text_features(prompts, torch.cat(contexts))
        source_texts, target_texts = texts.split([len(source), len(target)])
        source_logits, target_logits = self.logits(source, source_texts), self.logits(target, target_texts)

        domain_tokens = self.projectors.domain(source)
        style_tokens = self.projectors.style(target if config.smn_input == "target" else source)
        if config.smn_detach:
            domain_tokens = domain_tokens.detach()
        compared = [domain_tokens, style_tokens, source_texts, target_texts]
        if config.pairing == "mean":
            compared = [half.mean(dim=0, keepdim=True) for half in compared]
        domain_tokens, style_tokens, source_compared, target_compared = compared
        terms = {
            "ce": F.cross_entropy(source_logits, labels),
            "smn": F.mse_loss(style_tokens, domain_tokens),
            "entropy": target_entropy(target_logits, config.entropy),
            "kl": class_axis_divergence(target_compared, source_compared),
        }
        weights = {
            "ce": config.ce_weight,
            "smn": config.smn_weight if config.domain_tokens else 0.0,
            "entropy": config.entropy_weight,
            "kl": config.kl_weight,
        }  # a term of weight 0 stays out of the sum, so that weight decay leaves what only it trains alone
        total = torch.stack([weight * terms[name] for name, weight in weights.items() if weight]).sum()
        return Losses(terms, total, source_texts, target_texts, source_logits, target_logits)

    def optimizer(self) -> torch.optim.Optimizer:
        """Adam over the projectors, weight decay as an L2 term of the gradient."""
        return torch.optim.Adam(
            self.projectors.parameters(), lr=self.config.learning_rate, weight_decay=self.config.weight_decay
        )

    def learning_rate(self, step: int, steps: int) -> float:
        """Warm-up, then a cosine; its clock ticks once an epoch (``epochs`` in ``steps``) or once an iteration."""
        config = self.config
        tick = step if config.schedule == "iteration" else step * config.epochs // steps
        if tick < config.warmup_epochs:
            return config.warmup_rate
        return config.learning_rate * 0.5 * (1 + math.cos(math.pi * (tick - config.warmup_epochs) / config.epochs))

    def fit(self, data: TrainingData, *, seed: int, log: Log) -> FitReport:
        """Labelled images with target images, or with another training domain where there are none."""
        config, begun = self.config, time.perf_counter()
        self.projectors = Projectors(self.backbone, config, seeded(seed, _INIT)).to(self.device)
        self._know(data.class_names)
        sample = torch.randperm(len(data.images), generator=seeded(seed, _ANCHORS))[: config.anchors].sort().values
        self._anchors = self._look(data.images.pixels(sample))

        prompts, pairs = self.prompts(data.class_names), self._pairs(data, seed)
        source_view = self._viewer(data.images, seed)
        target_view = self._viewer(data.target, seed) if data.has_target else source_view
        steps = budget(config.steps, config.epochs, len(data.images), config.batch_size)

        def loss(step: int) -> Tensor:
            source, target = next(pairs)
            labels = data.labels[source].to(self.device)
            return self.losses(source_view(source, 2 * step), target_view(target, 2 * step + 1), labels, prompts).total

        report = FitReport(trainable_parameters=count_parameters(list(self.projectors.parameters())))
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
            validate_every=config.validate_every or math.ceil(steps / (VALIDATIONS if config.steps else config.epochs)),
            patience=config.patience,
        )
        report.seconds = time.perf_counter() - begun
        return report

    def _pairs(self, data: TrainingData, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Endless (source, target) indices: into the labelled images, and into the target images.

        Where the protocol shows no target images, both index the labelled ones, of two different domains (of the same
        one if there is but one).
        """
        size, generator = self.config.batch_size, seeded(seed, _BATCHES)
        pairs: Iterator[tuple[Tensor, Tensor]]
        if data.has_target:
            pairs = zip(batches(data, size, generator), target_batches(len(data.target), size, generator), strict=True)
        else:
            pairs = self._domain_pairs(data.domains, generator)
        for source, target in pairs:
            even = min(len(source), len(target)) if self.config.pairing == "item" else size
            yield source[:even], target[:even]

    def _domain_pairs(self, domains: Tensor, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        size = self.config.batch_size
        rows = [torch.nonzero(domains == domain).flatten() for domain in torch.unique(domains)]
        streams = [[target_batches(len(own), size, generator) for own in rows] for _ in ("source", "target")]
        images = torch.tensor([float(len(own)) for own in rows])
        while True:
            first = int(torch.multinomial(images, 1, generator=generator))
            others = [number for number in range(len(rows)) if number != first] or [first]
            second = others[int(torch.randint(len(others), (), generator=generator))]
            yield rows[first][next(streams[0][first])], rows[second][next(streams[1][second])]

    def _viewer(self, images: Images, seed: int) -> Callable[[Tensor, int], View]:
        """``view(index, draw)`` of training images; ``draw`` numbers the augmentation."""
        config = self.config
        if config.fast and not config.augmentation.active:  # the tower is frozen: once an image is enough
            known = layer_statistics(self.backbone, images, statistics=config.statistics)
            table = View(known["features"], known["mu"][:, -config.layers :], known["sigma"][:, -config.layers :])
            return lambda index, draw: table[index].to(self.device)

        def view(index: Tensor, draw: int) -> View:
            pixels = images.pixels(index).to(self.device)
            return self._look(augment(pixels, config.augmentation, seeded(seed, _AUGMENT, draw)))

        return view

    # --- inference ---

    def _look(self, pixels: Tensor) -> View:
        normalized = self.backbone.normalize(pixels.to(self.device), self.config.statistics)
        return look(self.backbone, normalized, self.config.layers)

    def _know(self, names: Sequence[str]) -> None:
        self._known = self.prompts(names)
        self.class_names = tuple(names)

    def _read(self, pixels: Tensor, prompts: PromptTemplate) -> Iterator[tuple[View, Tensor]]:
        """Views and t_k(x) [b, C, E] of images by the test rule, as many images at a time as memory allows."""
        for part in pixels.split(max(1, PROMPTS_PER_PASS // len(prompts))):
            view = self._look(part)
            yield view, self.text_features(prompts, self.projectors.test_context(view))

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """normalise(f(x) + sum_k p_k(x) t_k(x)) over the classes known from training (extension) -> ``[B, E]``."""
        if self._known is None:
            raise RuntimeError("ad_clip has learned nothing yet: call fit, or load a checkpoint")
        parts = []
        for view, texts in self._read(pixels, self._known):
            shares = self.logits(view, texts).softmax(dim=-1)
            parts.append(F.normalize(view.features, dim=-1) + torch.einsum("bc,bce->be", shares, texts))
        return F.normalize(torch.cat(parts), dim=-1)

    @torch.no_grad()
    def encode_classes(self, names: Sequence[str]) -> Tensor:
        """Mean of t_k(x) over the anchor images, normalised (extension) -> ``[C, E]``; any class name."""
        if self._anchors is None:
            raise RuntimeError("ad_clip has learned nothing yet: call fit, or load a checkpoint")
        prompts, total = self.prompts(names), torch.zeros(len(names), self.backbone.embed_dim, device=self.device)
        context = self.projectors.test_context(self._anchors)
        for part in context.split(max(1, PROMPTS_PER_PASS // len(prompts))):
            total += self.text_features(prompts, part).sum(dim=0)
        return F.normalize(total, dim=-1)

    @torch.no_grad()
    def classify(self, pixels: Tensor, names: Sequence[str]) -> Tensor:
        """Logits ``[B, C]`` over class names, each image against its own prompts (the paper's prediction)."""
        return torch.cat([self.logits(view, texts) for view, texts in self._read(pixels, self.prompts(names))])

    # --- saving ---

    def total_parameters(self) -> int:
        """The backbone's weights and the projectors'; anchors are statistics."""
        return sum(p.numel() for p in [*self.backbone.model.parameters(), *self.projectors.parameters()])

    def tensors(self) -> dict[str, Tensor]:
        """The projectors, and the anchors' layer statistics."""
        if self._anchors is None:
            return {}
        anchors = {"features": self._anchors.features, "mu": self._anchors.mu, "sigma": self._anchors.sigma}
        return {f"projectors.{name}": value for name, value in self.projectors.state_dict().items()} | {
            f"anchors.{name}": value for name, value in anchors.items()
        }

    def facts(self) -> dict[str, Any]:
        """The class names known from training."""
        return {"class_names": list(self.class_names)}

    def load_tensors(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Put projectors, anchors and class names back."""
        parts: dict[str, dict[str, Tensor]] = {"projectors": {}, "anchors": {}}
        for name, value in tensors.items():
            part, _, rest = name.partition(".")
            parts[part][rest] = value.to(self.device)
        self.projectors.load_state_dict(parts["projectors"])
        self._anchors = View(**parts["anchors"])
        self._know(facts["class_names"])
