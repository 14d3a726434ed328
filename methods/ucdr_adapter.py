"""UCDR-Adapter (Jiang et al., WACV 2025): prompts of the training domains and classes, and generated ones for new ones.

Idea (docs/methods.md, UCDR-Adapter):

1. **Source adapter learning.** Every training domain and class gets prompt tokens P_D, P_C for the frozen CLIP vision
   tower, ``[cls + pos_0 ; P_D[d] ; P_C[y] ; patches + pos]``; the texts share a learned context, the learnable textual
   semantic template (LTST), ``a photo of {class} from X_1 ... X_m domain.`` Dual loss: cross-entropy over
   cos(image, text) / tau, and a triplet loss against per-class queues that a momentum copy of the image branch fills.
2. **Target prompt generation.** What frozen CLIP sees of an image, h (its class token before the projection), attends
   to all those prompts, the image's own ones masked, domains and classes apart:
   ``a = softmax_k((W_prm P_k . W_img h) / T)``, ``q = sum_k a_k W_prm P_k``, prompt ``(q + LayerNorm(W_o q)) / r``.
   The two results take the place of P_D[d] and P_C[y]: the image's domain and class are as good as unseen. Loss: the
   cross-entropy alone.
3. **Inference.** As phase 2 with nothing masked; labels and texts are not needed.

Trained: phase 1 the text context, class and domain prompts; phase 2 W_img, W_prm, W_o, its LayerNorm, the class token
and the vision projection. CLIP's blocks and the text tower stay frozen. Where the released code differs:
methods/cards/ucdr_adapter.toml. That code carries no licence: this file is written from docs/methods.md and the golden
numbers.

Shapes: B images, D training domains, C training classes, L prompt tokens each, K = D*L or C*L, w vision width,
v text width, E embedding width, m context tokens.
"""

from __future__ import annotations

import copy
import functools
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.cards import read_card
from methods.interface import FitReport, Log, Method, TrainingData, restore
from methods.official.pros_release import decayed_rate
from methods.parts.augment import Augmentation, augment
from methods.parts.backbone import Backbone, Statistics
from methods.parts.feature_cache import frozen_values
from methods.parts.losses import TEMPERATURE, image_text_loss, triplet_hinge, without_rounding
from methods.parts.parallel import gather, share
from methods.parts.prompt_units import (
    TEXT_TEMPLATE,
    ReadOut,
    new_context,
    new_units,
    prompted_tokens,
    read_image,
)
from methods.parts.prompts import PromptTemplate, encode_prompts
from methods.training.batches import Sampler, domain_batches, epoch_images
from methods.training.loop import budget, count_parameters, run_stage, seeded

PLAIN_TEMPLATE = "a photo of a {name}"  # the text of a class without LTST
DRAWS = 2  # (positive, negative) pairs that each image draws from the queues
_CONTEXT, _BRANCH, _MOMENTUM, _BATCHES, _AUGMENT, _TRIPLETS = range(6)  # what a random generator is for


#: Where the released code does something else than the paper, as changes to the config.
OFFICIAL: dict[str, Any] = {
    "mask": False,
    "read_out": "first_prompt",
    "attention_query": "corner_patch",
    "momentum_start": "own",
    "momentum_in_phase2": True,
    "train_statistics": "imagenet",
    "test_statistics": "clip",
    "stage1_learning_rate": 1e-4,
    "sampler": "released",
}


@dataclass(frozen=True)
class UCDRAdapterConfig:
    """Settings of UCDR-Adapter; the defaults are the paper's on DomainNet. :meth:`official` gives the released code's.

    The method:

    * ``context_tokens``: m of LTST (paper: 8 on Sketchy and TU-Berlin). 0 is "no LTST": ``a photo of a {class}``.
    * ``prompt_length``: L, tokens of one domain or class prompt (paper: 4 on Sketchy and TU-Berlin).
    * ``domain_prompts``, ``class_prompts``: which kinds of prompt exist (at least one).
    * ``generate``: False leaves phase 2 out; inference then uses the mean domain prompt and the mean class prompt.
    * ``attention_temperature``: T of the attention over prompts. ``prompt_ratio``: r, the generated prompts' divisor.
    * ``temperature``: tau of the image-text loss.
    * ``triplet_weight``, ``margin``: of the triplet loss; weight 0 leaves it out, and the momentum copy with it.
    * ``momentum``: share of itself that the momentum copy keeps at a step; 0 is "no momentum" (the online branch).
    * ``queue_size``: momentum features that are kept of each class.

    Where paper and released code differ:

    * ``mask``: in phase 2 own prompts become zero rows before W_prm (but never the only domain or class there is).
    * ``read_out``: the token that becomes the image feature, ``class_token`` (paper) or ``first_prompt`` (released).
    * ``attention_query``: what attends to the prompts. ``class_token`` (paper): frozen CLIP's. ``corner_patch``
      (released): the output at the first patch of a sequence without class token. Both before the projection.
    * ``momentum_start``: the momentum copy starts equal to the ``online`` branch (paper), or from its ``own`` random
      values (released).
    * ``momentum_in_phase2``: momentum pass and queues go on in phase 2, where no loss reads them (released).
    * ``triplet``: ``random`` pairs, or the ``hardest`` ones (in the released code, but unused).
    * ``train_statistics``, ``test_statistics``: pixel normalisation, ``clip``, ``imagenet`` (released: in training) or
      ``none``.
    * ``stage1_learning_rate``: phase 1's own learning rate, whatever ``learning_rate`` is (released); 0: the same.
    * ``sampler``: ``reshuffled``, or ``released``: one order for all seeds and epochs.

    Training:

    * ``learning_rate``: of Adam; fixed in phase 1, times 10^(-3 epoch / 20) in phase 2 (floor 1e-6).
    * ``batch_size``, ``epochs``: of phase 2. ``stage1_batch_size``, ``stage1_epochs``: of phase 1.
    * ``steps``: 0 for those epochs, or the total number of optimiser steps, of which phase 1 gets ``stage1_share``. The
      schedule of phase 2 then spreads its ``epochs`` evenly over its steps.
    * ``validate_every``: steps between validations in the last phase (0: once an epoch); ``patience``: validations
      without gain before training stops (0: never).
    * ``crop``, ``flip``, ``jitter``: augmentation, see :class:`methods.parts.augment.Augmentation`.
    * ``fast``: the exact speed-ups of docs/methods.md. False: the plain path of the same numbers: all texts at every
      step, the momentum pass with a graph and in phase 2 too, W_prm once an image, a Python loop over the queues.
    """

    context_tokens: int = 16
    prompt_length: int = 1
    domain_prompts: bool = True
    class_prompts: bool = True
    generate: bool = True
    attention_temperature: float = 0.75
    prompt_ratio: float = 33.0
    temperature: float = TEMPERATURE
    triplet_weight: float = 1.0
    margin: float = 0.2
    momentum: float = 0.999
    queue_size: int = 20
    mask: bool = True
    read_out: ReadOut = "class_token"
    attention_query: Literal["class_token", "corner_patch"] = "class_token"
    momentum_start: Literal["online", "own"] = "online"
    momentum_in_phase2: bool = False
    triplet: Literal["random", "hardest"] = "random"
    train_statistics: Statistics = "clip"
    test_statistics: Statistics = "clip"
    stage1_learning_rate: float = 0.0
    sampler: Sampler = "reshuffled"
    learning_rate: float = 1e-4
    batch_size: int = 50
    epochs: int = 10
    stage1_batch_size: int = 400
    stage1_epochs: int = 1
    steps: int = 0
    stage1_share: float = 0.2
    validate_every: int = 0
    patience: int = 2
    crop: float = 0.8
    flip: bool = True
    jitter: float = 0.4
    fast: bool = True

    def __post_init__(self) -> None:
        if not (self.domain_prompts or self.class_prompts):
            raise ValueError("ucdr_adapter: domain_prompts and class_prompts are both off; leave one on")

    @classmethod
    def official(cls) -> UCDRAdapterConfig:
        """Every switch as in the released code."""
        return cls(**OFFICIAL)

    @property
    def augmentation(self) -> Augmentation:
        """What training does to images."""
        return Augmentation(self.crop, self.flip, self.jitter)


Own = tuple[Tensor, Tensor]  # each image's domain [B] and class [B]


class ImageBranch(nn.Module):
    """All that is learned of the image branch, beside the frozen CLIP blocks. The momentum copy is a second one.

    ``domain_prompts`` [D*L, w] and ``class_prompts`` [C*L, w] (no rows if switched off), ``W_image``, ``W_prompt``,
    ``prompt_proj`` (W_o), ``layer_norm2`` (its LayerNorm), and CLIP's ``class_token`` [w] and ``projection`` [E, w].
    """

    def __init__(
        self, backbone: Backbone, config: UCDRAdapterConfig, domains: int, classes: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.config, width = config, backbone.vision_width
        self.items = domains, classes
        domain_rows = domains * config.prompt_length if config.domain_prompts else 0
        class_rows = classes * config.prompt_length if config.class_prompts else 0
        self.domain_prompts = nn.Parameter(new_units(domain_rows, backbone, generator))
        self.class_prompts = nn.Parameter(new_units(class_rows, backbone, generator))
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator.initial_seed())
            self.W_image, self.W_prompt, self.prompt_proj = (nn.Linear(width, width) for _ in range(3))
        self.layer_norm2 = nn.LayerNorm(width)
        self.class_token = nn.Parameter(backbone.class_token.detach().clone())
        self.projection = nn.Parameter(backbone.vision_projection.detach().clone())
        self.to(backbone.device)

    def banks(self) -> list[tuple[int, Tensor, int]]:
        """The kinds of prompt in use, domain first: (kind 0 domain or 1 class, prompts [K, w], number of items)."""
        prompts: list[Tensor] = [self.domain_prompts, self.class_prompts]
        return [(kind, prompts[kind], items) for kind, items in enumerate(self.items) if len(prompts[kind])]

    def own_prompts(self, own: Own) -> Tensor:
        """The prompts P_D[d] and P_C[y] of each image: [B, 2L, w] (phase 1)."""
        rows = [F.embedding(own[kind], bank.view(items, -1)) for kind, bank, items in self.banks()]
        return torch.cat(rows, dim=1).view(len(own[0]), -1, self.domain_prompts.shape[1])

    def mean_prompts(self) -> Tensor:
        """The mean domain prompt and the mean class prompt [2L, w] (inference without phase 2)."""
        shape = self.config.prompt_length, self.domain_prompts.shape[1]
        return torch.cat([bank.view(items, *shape).mean(dim=0) for _, bank, items in self.banks()])

    def target_prompts(self, h: Tensor, own: Own | None) -> Tensor:
        """Generated domain and class prompt [B, 2, w] for image context tokens h [B, w]; ``own`` ones are masked."""
        prompts = []
        for kind, bank, items in self.banks():
            masked = None
            if own is not None and items > 1:  # an only domain is not masked: nothing would be left
                owners = torch.arange(items, device=h.device).repeat_interleave(self.config.prompt_length)
                masked = owners == own[kind][:, None]
            prompts.append(self._attend(bank, h, masked))
        return torch.stack(prompts, dim=1)

    def _attend(self, bank: Tensor, h: Tensor, masked: Tensor | None) -> Tensor:
        """``a = softmax_k((W_prm P_k . W_img h) / T)``, ``q = sum_k a_k W_prm P_k``, ``(q + LayerNorm(W_o q)) / r``.

        bank [K, w], h [B, w] -> [B, w]. Rows where ``masked`` [B, K] are zero before W_prm, which leaves its bias: that
        one key serves all masked rows, so the bank is projected once, not once an image.
        """
        query, temperature = self.W_image(h), self.config.attention_temperature
        if masked is None:
            keys = self.W_prompt(bank)
            q = (query @ keys.T / temperature).softmax(dim=-1) @ keys
        elif self.config.fast:
            keys, zero_key = self.W_prompt(bank), self.W_prompt.bias
            a = (torch.where(masked, (query @ zero_key)[:, None], query @ keys.T) / temperature).softmax(dim=-1)
            q = a.masked_fill(masked, 0) @ keys + (a * masked).sum(dim=-1, keepdim=True) * zero_key
        else:
            keys = self.W_prompt(bank.expand(len(h), -1, -1).masked_fill(masked[..., None], 0))  # [B, K, w]
            a = (torch.einsum("bw,bkw->bk", query, keys) / temperature).softmax(dim=-1)
            q = torch.einsum("bk,bkw->bw", a, keys)
        return (q + self.layer_norm2(self.prompt_proj(q))) / self.config.prompt_ratio


@torch.no_grad()
def follow(momentum: nn.Module, online: nn.Module, keep: float) -> None:
    """One momentum update: every parameter of the copy becomes ``keep * itself + (1 - keep) * online``."""
    for slow, fast in zip(momentum.parameters(), online.parameters(), strict=True):
        slow.lerp_(fast, 1 - keep)


class ClassQueues:
    """First in, first out: the last ``size`` momentum features of every class, one tensor [C, size, E]."""

    def __init__(self, classes: int, size: int, width: int, device: torch.device | str = "cpu") -> None:
        self.features = torch.zeros(classes, size, width, device=device)
        self.pushed = torch.zeros(classes, dtype=torch.long, device=device)  # ever, per class
        self.size = size

    @property
    def lengths(self) -> Tensor:
        """Features in each queue [C]."""
        return self.pushed.clamp(max=self.size)

    def push(self, features: Tensor, labels: Tensor) -> None:
        """Append features [B, E] to the queues of their classes [B], in batch order."""
        same = labels[:, None] == labels
        earlier, count = same.tril(-1).sum(dim=1), same.sum(dim=1)
        stays = count - earlier <= self.size  # more of one class than a queue holds: the last ones
        slot = (self.pushed[labels] + earlier) % self.size
        self.features[labels[stays], slot[stays]] = features[stays].detach().to(self.features.dtype)
        self.pushed += torch.bincount(labels, minlength=len(self.pushed))

    def entry(self, classes: Tensor, age: Tensor) -> Tensor:
        """The features of these classes at these places, 0 the oldest: index tensors [...] -> [..., E]."""
        slot = (self.pushed[classes] - self.lengths[classes] + age) % self.size
        return self.features[classes, slot]

    def draw(self, labels: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """n positives and n negatives for each image, without a loop.

        ``uniforms`` [B, n, 2] in [0, 1) pick a place in the image's own queue, and one in all other queues joined in
        class order. Returns positives and negatives [B, n, E], and which images have both [B].
        """
        lengths = self.lengths
        ends = lengths.cumsum(dim=0)
        starts = ends - lengths
        own = lengths[labels][:, None]
        others = ends[-1] - own
        classes = labels[:, None].expand(uniforms.shape[:2])
        positives = self.entry(classes, (uniforms[..., 0].double() * own).long())
        place = (uniforms[..., 1].double() * others).long()
        place = place + torch.where(place >= starts[labels][:, None], own, 0)  # step over the own queue
        classes = torch.searchsorted(ends, place, right=True).clamp(max=len(ends) - 1)
        negatives = self.entry(classes, place - starts[classes])
        return positives, negatives, ((own > 0) & (others > 0))[:, 0]

    def lists(self) -> list[Tensor]:
        """Each queue's features [length, E], oldest first."""
        ages = torch.arange(self.size, device=self.pushed.device)
        lengths = enumerate(self.lengths.tolist())
        return [self.entry(torch.full_like(ages, number), ages)[:length] for number, length in lengths]


def triplet_loss(anchors: Tensor, queues: ClassQueues, labels: Tensor, uniforms: Tensor, margin: float) -> Tensor:
    """Mean over images and their draws of ``relu(|x - positive| - |x - negative| + margin)``.

    ``anchors`` [B, E] and the queues are L2-normalised; ``uniforms`` [B, n, 2] as in :meth:`ClassQueues.draw`. Images
    without a positive or a negative do not count.
    """
    positives, negatives, valid = queues.draw(labels, uniforms)
    hinges = triplet_hinge(anchors[:, None], positives, negatives, margin=margin).mean(dim=1)
    return (hinges * valid).sum() / valid.sum().clamp(min=1)


def triplet_loss_plain(anchors: Tensor, queues: ClassQueues, labels: Tensor, uniforms: Tensor, margin: float) -> Tensor:
    """:func:`triplet_loss` image by image: the plain path."""
    lists, losses = queues.lists(), []
    for anchor, label, picks in zip(anchors, labels.tolist(), uniforms.tolist(), strict=True):
        positives = lists[label]
        negatives = torch.cat([queue for number, queue in enumerate(lists) if number != label])
        if len(positives) and len(negatives):
            for p, n in picks:
                positive, negative = positives[int(p * len(positives))], negatives[int(n * len(negatives))]
                losses.append(triplet_hinge(anchor, positive, negative, margin=margin))
    return torch.stack(losses).mean() if losses else anchors.sum() * 0


def hardest_triplet_loss(anchors: Tensor, queues: ClassQueues, labels: Tensor, margin: float) -> Tensor:
    """Like :func:`triplet_loss` with each image's farthest positive and nearest negative."""
    exact = "donot_use_mm_for_euclid_dist"
    distances = without_rounding(torch.cdist(anchors, queues.features.flatten(0, 1), compute_mode=exact))
    distances = distances.unflatten(1, (-1, queues.size))  # [B, C, size]
    filled = torch.arange(queues.size, device=anchors.device) < queues.lengths[:, None]
    own = (torch.arange(len(filled), device=anchors.device) == labels[:, None])[..., None]
    farthest = distances.masked_fill(~(own & filled), -math.inf).amax(dim=(1, 2))
    nearest = distances.masked_fill(~(~own & filled), math.inf).amin(dim=(1, 2))
    valid = farthest.isfinite() & nearest.isfinite()
    return F.relu(farthest - nearest + margin)[valid].sum() / valid.sum().clamp(min=1)


class Terms(NamedTuple):
    """A training forward: loss, its parts, normalised features of images [B, E], texts [C, E] and momentum images."""

    loss: Tensor
    image_text: Tensor
    triplet: Tensor | None
    images: Tensor
    texts: Tensor
    momentum_images: Tensor | None


class UCDRAdapter(Method):
    """UCDR-Adapter: source adapter learning, then target prompt generation."""

    card = read_card("ucdr_adapter")
    Config = UCDRAdapterConfig
    one_process = ""
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {}, "official": OFFICIAL}
    ablations: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "no_ltst": {"context_tokens": 0},
        "no_momentum": {"momentum": 0.0},
        "no_triplet": {"triplet_weight": 0.0},
        "no_domain_prompts": {"domain_prompts": False},
        "no_class_prompts": {"class_prompts": False},
        "no_generation": {"generate": False},
        "no_mask": {"mask": False},
        **{f"prompt_length_{length}": {"prompt_length": length} for length in (2, 4, 8)},
        **{f"attention_temperature_{t}": {"attention_temperature": t} for t in (0.25, 0.5, 1.0)},
        **{f"prompt_ratio_{r}": {"prompt_ratio": float(r)} for r in (1, 11, 66)},
    }

    config: UCDRAdapterConfig
    branch: ImageBranch
    momentum: ImageBranch
    queues: ClassQueues
    context: nn.Parameter | None
    prompts: PromptTemplate
    class_names: tuple[str, ...] = ()
    domain_names: tuple[str, ...] = ()

    def build(
        self,
        class_names: Sequence[str],
        domain_names: Sequence[str],
        *,
        seed: int,
        prompts: PromptTemplate | None = None,
    ) -> None:
        """Untrained parameters for these training classes and domains; ``prompts`` replaces the classes' texts."""
        config, backbone = self.config, self.backbone
        self.class_names, self.domain_names = tuple(class_names), tuple(domain_names)
        self.prompts = self._template(class_names) if prompts is None else prompts
        tokens = config.context_tokens
        self.context = nn.Parameter(new_context(tokens, backbone, seeded(seed, _CONTEXT))) if tokens else None
        sizes = len(domain_names), len(class_names)
        self.branch = ImageBranch(backbone, config, *sizes, seeded(seed, _BRANCH))
        if config.momentum_start == "online":
            self.momentum = copy.deepcopy(self.branch)
        else:
            self.momentum = ImageBranch(backbone, config, *sizes, seeded(seed, _MOMENTUM))
        self.momentum.requires_grad_(not config.fast)
        self.queues = ClassQueues(sizes[1], config.queue_size, backbone.embed_dim, backbone.device)

    def trainable(self, phase: int) -> dict[str, nn.Parameter]:
        """The parameters that a phase trains, by the names of :meth:`tensors`; all others stop requiring gradients."""
        first = ("text_context", "domain_prompts", "class_prompts")
        everything = self._parameters()
        chosen = {name: value for name, value in everything.items() if (name in first) == (phase == 1) and len(value)}
        for name, value in everything.items():
            value.requires_grad_(name in chosen)
        return chosen

    # --- the image and text branches ----------------------------------------------------------------------------------

    def text_features(self, prompts: PromptTemplate | None = None) -> Tensor:
        """Normalised text features of the training classes (or of ``prompts``) [C, E] with the learned context."""
        fast = self.config.fast
        prompts = self.prompts if prompts is None else prompts
        return F.normalize(encode_prompts(self.backbone, prompts, self.context, shared_prefix=fast, cut=fast), dim=-1)

    @torch.no_grad()
    def image_context(self, pixels: Tensor) -> Tensor:
        """Image context tokens h [B, w] of normalised pixels: frozen CLIP without prompts, before the projection."""
        with self.backbone.autocast():
            tokens = self.backbone.image_tokens(pixels)
            if self.config.attention_query == "corner_patch":
                tokens = tokens[:, 1:]
            return self.backbone.vision.norm(self.backbone.run_vision(tokens, read=0))

    def image_features(self, branch: ImageBranch, pixels: Tensor, prompts: Tensor) -> Tensor:
        """Features [B, E], not normalised, of ``[cls ; prompts ; patches]`` in the frozen tower."""
        tokens = prompted_tokens(self.backbone, pixels, prompts, class_token=branch.class_token)
        plain = not self.config.fast
        return read_image(self.backbone, tokens, self.config.read_out, projection=branch.projection, plain=plain)

    # --- training -----------------------------------------------------------------------------------------------------

    def phase1(self, pixels: Tensor, own: Own, uniforms: Tensor, *, texts: Tensor | None = None) -> Terms:
        """Source adapter learning: a training forward on normalised pixels with the images' own prompts.

        ``uniforms`` [B, 2, 2] in [0, 1) draw the triplets; ``texts`` [C, E] are text features that are known already.
        """
        config = self.config

        def encode(branch: ImageBranch) -> Tensor:
            return F.normalize(self.image_features(branch, pixels, branch.own_prompts(own)), dim=-1)

        images = encode(self.branch)
        texts = self.text_features() if texts is None else texts
        loss = image_text = image_text_loss(images, texts, own[1], temperature=config.temperature)
        momentum_images = triplet = None
        if config.triplet_weight:
            momentum_images = self._momentum_step(encode, own[1])
            triplet = self.triplet(images, own[1], uniforms)
            loss = image_text + config.triplet_weight * triplet
        return Terms(loss, image_text, triplet, images, texts, momentum_images)

    def phase2(self, pixels: Tensor, own: Own, *, texts: Tensor | None = None, h: Tensor | None = None) -> Terms:
        """Target prompt generation: a training forward on normalised pixels with generated prompts.

        ``texts`` [C, E] and ``h`` [B, w] are text features and image context tokens that are known already.
        """
        config = self.config
        context = self.image_context(pixels) if h is None else h

        def encode(branch: ImageBranch) -> Tensor:
            prompts = branch.target_prompts(context, own if config.mask else None)
            return F.normalize(self.image_features(branch, pixels, prompts), dim=-1)

        images = encode(self.branch)
        texts = self.text_features() if texts is None else texts
        loss = image_text_loss(images, texts, own[1], temperature=config.temperature)
        idle = config.momentum_in_phase2 or not config.fast  # nothing reads it
        return Terms(loss, loss, None, images, texts, self._momentum_step(encode, own[1]) if idle else None)

    def _momentum_step(self, encode: Callable[[ImageBranch], Tensor], labels: Tensor) -> Tensor:
        """Update the momentum copy, encode the batch with it, queue the features; normalised features [B, E].

        Processes that train together queue the features of the whole batch.
        """
        follow(self.momentum, self.branch, self.config.momentum)
        with torch.set_grad_enabled(not self.config.fast):
            features = encode(self.momentum).detach()
        self.queues.push(gather(features), gather(labels))
        return features

    def triplet(self, images: Tensor, labels: Tensor, uniforms: Tensor) -> Tensor:
        """The triplet loss of normalised features [B, E] against the queues as they stand."""
        if self.config.triplet == "hardest":
            return hardest_triplet_loss(images, self.queues, labels, self.config.margin)
        loss = triplet_loss if self.config.fast else triplet_loss_plain
        return loss(images, self.queues, labels, uniforms, self.config.margin)

    def fit(self, data: TrainingData, *, seed: int, log: Log) -> FitReport:
        """Phase 1, then phase 2. Target images are not used; classes without labelled images get no prompt."""
        config, report, begun = self.config, FitReport(), time.perf_counter()
        seen, present = data.labelled_classes, torch.unique(data.domains)
        labels, domains = torch.searchsorted(seen, data.labels), torch.searchsorted(present, data.domains)
        self.build([data.class_names[c] for c in seen], [data.domain_names[d] for d in present], seed=seed)
        streams, trained = self._batches(data, seed), dict[str, nn.Parameter]()
        steps = self.phase_steps(data)
        contexts = None if config.augmentation.active or not (config.fast and 2 in steps) else self._contexts(data)
        for phase, number in steps.items():
            trained |= self.trainable(phase)
            texts = None
            if config.fast and (phase == 2 or self.context is None):  # no text parameter trains: computed once
                with torch.no_grad():
                    texts = self.text_features()

            def loss(step: int, phase: int = phase, texts: Tensor | None = texts) -> Tensor:
                everyone = next(streams[phase])
                index = share(everyone)
                pixels = data.images.pixels(index).to(self.device)
                pixels = augment(pixels, config.augmentation, seeded(seed, _AUGMENT, phase, step))
                pixels = self.backbone.normalize(pixels, config.train_statistics)
                own = domains[index].to(self.device), labels[index].to(self.device)
                with self.backbone.autocast():
                    if phase == 2:
                        h = None if contexts is None else contexts[index].to(self.device)
                        return self.phase2(pixels, own, texts=texts, h=h).loss
                    uniforms = share(torch.rand(len(everyone), DRAWS, 2, generator=seeded(seed, _TRIPLETS, step)))
                    return self.phase1(pixels, own, uniforms.to(self.device), texts=texts).loss

            epochs = config.stage1_epochs if phase == 1 else config.epochs
            run_stage(
                self,
                data,
                report,
                log,
                stage=("source adapter", "target prompts")[phase - 1],
                steps=number,
                optimizers=[self.optimizer(phase)],
                loss=loss,
                learning_rate=functools.partial(self.rate, phase, steps=number),
                validate_every=(config.validate_every or math.ceil(number / epochs)) if phase == max(steps) else 0,
                patience=config.patience,
            )
        self.branch.requires_grad_(False)
        report.trainable_parameters = count_parameters(trained)
        report.seconds = time.perf_counter() - begun
        return report

    def optimizer(self, phase: int) -> torch.optim.Optimizer:
        """A fresh Adam (0.9, 0.999, no weight decay) over what the phase trains; freezes everything else."""
        return torch.optim.Adam(self.trainable(phase).values(), lr=self.rate(phase, 0, steps=1))

    def rate(self, phase: int, step: int, *, steps: int) -> float:
        """Learning rate at a step of a phase of ``steps`` steps."""
        config = self.config
        if phase == 1:
            return config.stage1_learning_rate or config.learning_rate
        return decayed_rate(config.learning_rate, step * config.epochs // steps)

    def phase_steps(self, data: TrainingData) -> dict[int, int]:
        """Optimiser steps of the phases that run."""
        config = self.config
        images = epoch_images(data, config.sampler, config.batch_size)
        steps = {1: budget(config.steps, config.stage1_epochs, images, config.stage1_batch_size)}
        if config.generate:
            if config.steps > 0:
                steps[1] = min(max(1, round(config.stage1_share * config.steps)), config.steps - 1)
            steps[2] = budget(config.steps - steps[1], config.epochs, images, config.batch_size)
        return {phase: number for phase, number in steps.items() if number > 0}

    def _batches(self, data: TrainingData, seed: int) -> dict[int, Iterator[Tensor]]:
        """Each phase's index batches, balanced over the domains."""
        config = self.config
        sizes = {1: config.stage1_batch_size, 2: config.batch_size}
        return {
            phase: domain_batches(
                data, size, seeded(seed, _BATCHES, phase), config.sampler, round_size=config.batch_size
            )
            for phase, size in sizes.items()
        }

    def _contexts(self, data: TrainingData) -> Tensor:
        """Image context tokens [N, w] of all training images, for images that are not augmented."""
        config = self.config

        def compute(pixels: Tensor) -> dict[str, Tensor]:
            return {"h": self.image_context(self.backbone.normalize(pixels, config.train_statistics))}

        quantity = f"image context {config.attention_query}"
        return frozen_values(self.backbone, quantity, data.images, compute, statistics=config.train_statistics)["h"]

    # --- answers ------------------------------------------------------------------------------------------------------

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Normalised image features [B, E] with generated prompts, nothing masked."""
        return F.normalize(self.encode_raw(pixels), dim=-1)

    @torch.no_grad()
    def encode_raw(self, pixels: Tensor) -> Tensor:
        """The same before normalisation."""
        self._check_fitted()
        pixels = self.backbone.normalize(pixels.to(self.device), self.config.test_statistics)
        with self.backbone.autocast():
            if self.config.generate:
                prompts = self.branch.target_prompts(self.image_context(pixels), None)
            else:
                prompts = self.branch.mean_prompts()
            return self.image_features(self.branch, pixels, prompts)

    @torch.no_grad()
    def encode_classes(self, names: Sequence[str]) -> Tensor:
        """Normalised text features [C, E] of any class names with the learned context."""
        self._check_fitted()
        return self.text_features(self._template(names))

    def logit_scale(self) -> float:
        """1 / tau of the image-text loss."""
        return 1.0 / self.config.temperature

    def _template(self, names: Sequence[str]) -> PromptTemplate:
        tokens = self.config.context_tokens
        return PromptTemplate.build(self.backbone, names, TEXT_TEMPLATE if tokens else PLAIN_TEMPLATE, tokens)

    def _check_fitted(self) -> None:
        if not self.class_names:
            raise RuntimeError(f"{self.card.name} has not learned anything yet: call fit, or load a checkpoint")

    # --- storing ------------------------------------------------------------------------------------------------------

    def _parameters(self) -> dict[str, nn.Parameter]:
        clip = {"class_token": "vision_model.embeddings.class_embedding", "projection": "visual_projection.weight"}
        context = {} if self.context is None else {"text_context": self.context}
        return {**context, **{clip.get(name, name): value for name, value in self.branch.named_parameters()}}

    def tensors(self) -> dict[str, Tensor]:
        """The image branch and the text context; trained copies of CLIP's weights bear CLIPModel's names."""
        return {name: value.detach() for name, value in self._parameters().items()} if self.class_names else {}

    def facts(self) -> dict[str, Any]:
        """Training classes and domains, in the order of their prompts."""
        return {"class_names": list(self.class_names), "domain_names": list(self.domain_names)}

    def load_tensors(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Put back what :meth:`tensors` and :meth:`facts` gave."""
        names = tuple(facts["class_names"]), tuple(facts["domain_names"])
        if names != (self.class_names, self.domain_names):
            self.build(*names, seed=0)
        restore(self, self._parameters(), tensors)
