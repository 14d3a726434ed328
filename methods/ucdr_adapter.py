"""UCDR-Adapter (Jiang et al., WACV 2025): prompts of the training domains and classes, and generated ones for new ones.

Idea (docs/methods.md, UCDR-Adapter):

1. **Source adapter learning.** Every training domain and class gets prompt tokens P_D, P_C for the frozen CLIP vision
   tower, ``[cls + pos_0 ; P_D[d] ; P_C[y] ; patches + pos]`` (1); the texts share a learned context, the learnable
   textual semantic template (LTST), ``a photo of {class} from X_1 ... X_m domain.`` Dual loss: cross-entropy over
   cos(image, text) / tau (2), and a triplet loss ``relu(|x - positive| - |x - negative| + margin)`` (3) against
   per-class queues that a momentum copy of the image branch, ``copy = k copy + (1 - k) branch`` (4), fills.
2. **Target prompt generation.** What frozen CLIP sees of an image, h (its class token before the projection), attends
   to all those prompts, the image's own ones masked, domains and classes apart:
   ``a = softmax_k((W_prm P_k . W_img h) / T)``, ``q = sum_k a_k W_prm P_k``, prompt ``(q + LayerNorm(W_o q)) / r`` (5).
   The two results take the place of P_D[d] and P_C[y]: the image's domain and class are as good as unseen. Loss: the
   cross-entropy alone.
3. **Inference.** As phase 2 with nothing masked; labels and texts are not needed.

Trained: phase 1 the text context, class and domain prompts; phase 2 W_img, W_prm, W_o, its LayerNorm, the class token
and the vision projection. CLIP's blocks and the text tower stay frozen. Where the official code differs:
methods/cards/ucdr_adapter.toml and methods/official/ucdr_adapter.py. That code carries no licence: this file is written
from docs/methods.md and the golden numbers.

Shapes: B images, D training domains, C training classes, L prompt tokens each, K = D*L or C*L, w vision width,
v text width, E embedding width, m context tokens.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.cards import read_card
from methods.interface import TrainingData
from methods.official.ucdr_adapter import SETTINGS, hardest_triplet_loss
from methods.parts.augment import Augmentation
from methods.parts.backbone import ClipBackbone, Statistics
from methods.parts.feature_cache import frozen_values
from methods.parts.losses import TEMPERATURE, image_text_loss, triplet_hinge
from methods.parts.parallel import gather, share
from methods.parts.prompt_units import TEXT_TEMPLATE, ReadOut, new_context, new_units, prompted_tokens, read_image
from methods.parts.prompts import PromptTemplate, encode_prompts
from methods.parts.queues import ClassQueues
from methods.plain import ucdr_adapter as plain
from methods.training.batches import Sampler
from methods.training.loop import seeded
from methods.training.two_stage import Batch, Stage, TwoStageMethod

PLAIN_TEMPLATE = "a photo of a {name}"  # the text of a class without LTST
DRAWS = 2  # (positive, negative) pairs that each image draws from the queues
_CONTEXT, _BRANCH, _MOMENTUM, _BATCHES, _AUGMENT, _TRIPLETS = range(6)  # numbers of the random generators

Own = tuple[Tensor, Tensor]  # each image's domain [B] and class [B]


class ImageBranch(nn.Module):
    """What is learned of the image branch, beside the frozen CLIP blocks. The momentum copy is a second one.

    ``domain_prompts`` P_D [D*L, w] and ``class_prompts`` P_C [C*L, w] (no rows if switched off), ``W_image``,
    ``W_prompt``, ``prompt_proj`` (W_o), ``layer_norm2`` (its LayerNorm), and CLIP's ``class_token`` [w] and
    ``projection`` [E, w].
    """

    def __init__(
        self, backbone: ClipBackbone, config: UCDRAdapterConfig, domains: int, classes: int, generator: torch.Generator
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

    def attend(self, bank: Tensor, h: Tensor, masked: Tensor | None) -> Tensor:
        """(5): ``a = softmax_k((W_prm P_k . W_img h) / T)``, ``q = sum_k a_k W_prm P_k``,
        ``(q + LayerNorm(W_o q)) / r``.

        Prompts ``bank`` [K, w], image context tokens h [B, w] -> [B, w]. Rows where ``masked`` [B, K] are zero before
        W_prm, which leaves its bias: one key for all masked rows, so the bank is projected once, not once per image.
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
            q = plain.masked_attention(query, bank, masked, self.W_prompt, temperature)
        return (q + self.layer_norm2(self.prompt_proj(q))) / self.config.prompt_ratio

    def target_prompts(self, h: Tensor, own: Own | None) -> Tensor:
        """Phase 2: generated domain and class prompt [B, 2, w] for h [B, w]; each image's ``own`` ones are masked."""
        prompts = []
        for kind, bank, items in self.banks():
            masked = None
            if own is not None and items > 1:  # an only domain is not masked: nothing would be left
                owners = torch.arange(items, device=h.device).repeat_interleave(self.config.prompt_length)
                masked = owners == own[kind][:, None]
            prompts.append(self.attend(bank, h, masked))
        return torch.stack(prompts, dim=1)

    def own_prompts(self, own: Own) -> Tensor:
        """Phase 1: P_D[d] and P_C[y] of each image [B, 2L, w]."""
        rows = [F.embedding(own[kind], bank.view(items, -1)) for kind, bank, items in self.banks()]
        return torch.cat(rows, dim=1).view(len(own[0]), -1, self.domain_prompts.shape[1])

    def mean_prompts(self) -> Tensor:
        """The mean domain prompt and the mean class prompt [2L, w] (inference without phase 2)."""
        shape = self.config.prompt_length, self.domain_prompts.shape[1]
        return torch.cat([bank.view(items, *shape).mean(dim=0) for _, bank, items in self.banks()])

    def banks(self) -> list[tuple[int, Tensor, int]]:
        """The kinds of prompt in use, domain first: (kind 0 domain or 1 class, prompts [K, w], number of items)."""
        prompts: list[Tensor] = [self.domain_prompts, self.class_prompts]
        return [(kind, prompts[kind], items) for kind, items in enumerate(self.items) if len(prompts[kind])]


def triplet_loss(anchors: Tensor, queues: ClassQueues, labels: Tensor, uniforms: Tensor, margin: float) -> Tensor:
    """(3): mean over images and their draws of ``relu(|x - positive| - |x - negative| + margin)``.

    ``anchors`` [B, E] and the queues are L2-normalised; ``uniforms`` [B, n, 2] as in :meth:`ClassQueues.draw`. Images
    without a positive or a negative do not count.
    """
    positives, negatives, valid = queues.draw(labels, uniforms)
    hinges = triplet_hinge(anchors[:, None], positives, negatives, margin=margin).mean(dim=1)
    return (hinges * valid).sum() / valid.sum().clamp(min=1)


@torch.no_grad()
def ema_update(momentum: nn.Module, online: nn.Module, keep: float) -> None:
    """(4): every parameter of the momentum copy becomes ``keep * itself + (1 - keep) * online``."""
    for average, current in zip(momentum.parameters(), online.parameters(), strict=True):
        average.lerp_(current, 1 - keep)


class Terms(NamedTuple):
    """A training forward: loss, its parts, normalised features of images [B, E], texts [C, E] and momentum images."""

    loss: Tensor
    image_text: Tensor
    triplet: Tensor | None
    images: Tensor
    texts: Tensor
    momentum_images: Tensor | None


class UCDRAdapterModel:
    """Image branch, its momentum copy with the queues, text context, and the losses of both phases.

    ``prompts`` are the texts of the C training classes; pixels [B, 3, H, W] are normalised.
    """

    def __init__(
        self, backbone: ClipBackbone, config: UCDRAdapterConfig, prompts: PromptTemplate, domains: int, *, seed: int
    ) -> None:
        self.backbone, self.config, self.prompts = backbone, config, prompts
        tokens, sizes = config.context_tokens, (domains, len(prompts))
        self.context = nn.Parameter(new_context(tokens, backbone, seeded(seed, _CONTEXT))) if tokens else None
        self.branch = ImageBranch(backbone, config, *sizes, seeded(seed, _BRANCH))
        if config.momentum_start == "online":
            self.momentum = copy.deepcopy(self.branch)
        else:
            self.momentum = ImageBranch(backbone, config, *sizes, seeded(seed, _MOMENTUM))
        self.momentum.requires_grad_(not config.fast)
        self.queues = ClassQueues(sizes[1], config.queue_size, backbone.embed_dim, backbone.device)

    def image_features(self, branch: ImageBranch, pixels: Tensor, prompts: Tensor) -> Tensor:
        """(1): features [B, E], not normalised, of ``[cls ; prompts ; patches]`` in the frozen tower."""
        tokens = prompted_tokens(self.backbone, pixels, prompts, class_token=branch.class_token)
        fast = self.config.fast
        return read_image(self.backbone, tokens, self.config.read_out, projection=branch.projection, plain=not fast)

    @torch.no_grad()
    def image_context(self, pixels: Tensor) -> Tensor:
        """Image context tokens h [B, w]: frozen CLIP without prompts, before the projection."""
        with self.backbone.autocast():
            tokens = self.backbone.image_tokens(pixels)
            if self.config.attention_query == "corner_patch":
                tokens = tokens[:, 1:]
            return self.backbone.vision.norm(self.backbone.run_vision(tokens, read=0))

    def text_features(self, prompts: PromptTemplate | None = None) -> Tensor:
        """Normalised text features of the training classes (or of ``prompts``) [C, E] with the learned context."""
        fast = self.config.fast
        prompts = self.prompts if prompts is None else prompts
        return F.normalize(encode_prompts(self.backbone, prompts, self.context, shared_prefix=fast, cut=fast), dim=-1)

    def phase1(self, pixels: Tensor, own: Own, uniforms: Tensor, *, texts: Tensor | None = None) -> Terms:
        """Source adapter learning, loss (2) + weight * (3): a training forward with the images' own prompts.

        ``uniforms`` [B, 2, 2] in [0, 1) draw the triplets; ``texts`` [C, E] are text features computed before.
        """
        config = self.config

        def encode(branch: ImageBranch) -> Tensor:
            return F.normalize(self.image_features(branch, pixels, branch.own_prompts(own)), dim=-1)

        images = encode(self.branch)
        texts = self.text_features() if texts is None else texts
        loss = image_text = image_text_loss(images, texts, own[1], temperature=config.temperature)
        momentum_images = triplet = None
        if config.triplet_weight:
            momentum_images = self.momentum_step(encode, own[1])
            triplet = self.triplet(images, own[1], uniforms)
            loss = image_text + config.triplet_weight * triplet
        return Terms(loss, image_text, triplet, images, texts, momentum_images)

    def phase2(self, pixels: Tensor, own: Own, *, texts: Tensor | None = None, h: Tensor | None = None) -> Terms:
        """Target prompt generation, loss (2): a training forward with generated prompts.

        ``texts`` [C, E] and ``h`` [B, w] are text features and image context tokens computed before.
        """
        config = self.config
        context = self.image_context(pixels) if h is None else h

        def encode(branch: ImageBranch) -> Tensor:
            prompts = branch.target_prompts(context, own if config.mask else None)
            return F.normalize(self.image_features(branch, pixels, prompts), dim=-1)

        images = encode(self.branch)
        texts = self.text_features() if texts is None else texts
        loss = image_text_loss(images, texts, own[1], temperature=config.temperature)
        goes_on = config.momentum_in_phase2 or not config.fast  # no loss reads its queues
        return Terms(loss, loss, None, images, texts, self.momentum_step(encode, own[1]) if goes_on else None)

    def momentum_step(self, encode: Callable[[ImageBranch], Tensor], labels: Tensor) -> Tensor:
        """(4), then encode the batch with the momentum copy and queue the features; normalised features [B, E].

        Processes that train together queue the features of the whole batch.
        """
        ema_update(self.momentum, self.branch, self.config.momentum)
        with torch.set_grad_enabled(not self.config.fast):
            features = encode(self.momentum).detach()
        self.queues.push(gather(features), gather(labels))
        return features

    def triplet(self, images: Tensor, labels: Tensor, uniforms: Tensor) -> Tensor:
        """The triplet loss (3) of normalised features [B, E] against the current queues."""
        if self.config.triplet == "hardest":
            return hardest_triplet_loss(images, self.queues, labels, self.config.margin)
        loss = triplet_loss if self.config.fast else plain.triplet_loss
        return loss(images, self.queues, labels, uniforms, self.config.margin)

    def inference_features(self, pixels: Tensor) -> Tensor:
        """Image features [B, E], not normalised, with generated prompts, nothing masked."""
        if self.config.generate:
            prompts = self.branch.target_prompts(self.image_context(pixels), None)
        else:
            prompts = self.branch.mean_prompts()
        return self.image_features(self.branch, pixels, prompts)


@dataclass(frozen=True)
class UCDRAdapterConfig:
    """Settings of UCDR-Adapter; the defaults are the paper's on DomainNet. :meth:`official`: the official code's."""

    # the method
    context_tokens: int = 16  # m of LTST (paper: 8 on Sketchy and TU-Berlin). 0 is "no LTST": ``a photo of a {class}``
    prompt_length: int = 1  # L, tokens of one domain or class prompt (paper: 4 on Sketchy and TU-Berlin)
    domain_prompts: bool = True  # whether there are domain prompts (at least one kind must exist)
    class_prompts: bool = True  # whether there are class prompts
    generate: bool = True  # False leaves phase 2 out; inference then uses the mean domain prompt and mean class prompt
    attention_temperature: float = 0.75  # T of the attention over prompts
    prompt_ratio: float = 33.0  # r, the generated prompts' divisor
    temperature: float = TEMPERATURE  # tau of the image-text loss
    triplet_weight: float = 1.0  # of the triplet loss; 0 leaves it out, and the momentum copy with it
    margin: float = 0.2  # of the triplet loss
    momentum: float = 0.999  # share of itself that the momentum copy keeps at a step; 0 is "no momentum" (the branch)
    queue_size: int = 20  # momentum features that are kept of each class

    # where paper and official code differ
    mask: bool = True  # in phase 2 own prompts become zero rows before W_prm (never the only domain or class there is)
    read_out: ReadOut = "class_token"  # the token that becomes the image feature, or ``first_prompt`` (official)
    attention_query: Literal["class_token", "corner_patch"] = "class_token"  # what attends to the prompts.
    # ``class_token`` (paper): frozen CLIP's. ``corner_patch`` (official): the output at the first patch of a sequence
    # without class token. Both before the projection.
    momentum_start: Literal["online", "own"] = "online"  # the momentum copy starts equal to the ``online`` branch
    # (paper), or from its ``own`` random values (official).
    momentum_in_phase2: bool = False  # momentum pass and queues go on in phase 2, where no loss reads them (official)
    triplet: Literal["random", "hardest"] = "random"  # pairs, or the ``hardest`` (official, unused)
    train_statistics: Statistics = "clip"  # pixel normalisation: ``clip``, ``imagenet`` (official) or ``none``
    test_statistics: Statistics = "clip"  # the same at inference
    stage1_learning_rate: float = 0.0  # phase 1's own, whatever ``learning_rate`` is (official); 0: the same
    sampler: Sampler = "reshuffled"  # batches, or ``released``: one order for all seeds and epochs

    # training
    learning_rate: float = 1e-4  # of Adam; fixed in phase 1, times 10^(-3 epoch / 20) in phase 2 (at least 1e-6)
    batch_size: int = 50  # of phase 2
    epochs: int = 10  # of phase 2
    stage1_batch_size: int = 400  # of phase 1
    stage1_epochs: int = 1  # of phase 1
    steps: int = 0  # 0: those epochs. Else the total number of optimiser steps; the schedule of phase 2 then spreads
    # its ``epochs`` evenly over its steps.
    stage1_share: float = 0.2  # phase 1's share of ``steps``
    validate_every: int = 0  # steps between validations in the last phase (0: once an epoch)
    patience: int = 2  # validations without gain before training stops (0: never)
    crop: float = 0.8  # augmentation, see :class:`methods.parts.augment.Augmentation`
    flip: bool = True  # augmentation
    jitter: float = 0.4  # augmentation
    fast: bool = True  # the exact speed-ups of docs/methods.md. False: the plain path of the same numbers: all texts at
    # every step, the momentum pass with a graph and in phase 2 too, W_prm once an image, a Python loop over the queues.

    def __post_init__(self) -> None:
        if not (self.domain_prompts or self.class_prompts):
            raise ValueError("ucdr_adapter: domain_prompts and class_prompts are both off; leave one on")

    @classmethod
    def official(cls) -> UCDRAdapterConfig:
        """Every switch as in the official code."""
        return cls(**SETTINGS)

    @property
    def augmentation(self) -> Augmentation:
        """What training does to images."""
        return Augmentation(self.crop, self.flip, self.jitter)


class UCDRAdapter(TwoStageMethod):
    """UCDR-Adapter: source adapter learning, then target prompt generation."""

    card = read_card("ucdr_adapter")
    Config = UCDRAdapterConfig
    backbone: ClipBackbone
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {}, "official": SETTINGS}
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
    random_batches, random_augment = _BATCHES, _AUGMENT
    _model: UCDRAdapterModel | None = None

    @property
    def model(self) -> UCDRAdapterModel:
        """The trained parts; raises :class:`~methods.interface.NotFittedError` before ``fit`` or ``load``."""
        return self.fitted(self._model)

    # --- training ---

    def stages(self) -> list[Stage]:
        """Source adapter learning, then target prompt generation unless it is left out."""
        config = self.config
        rates = config.stage1_learning_rate or config.learning_rate, config.learning_rate
        first, second = config.stage1_epochs, config.epochs
        stages = [
            Stage(1, "source adapter", first, config.stage1_batch_size, rates[0], validations=first),
            Stage(2, "target prompts", second, config.batch_size, rates[1], validations=second),
        ]
        return stages if config.generate else stages[:1]

    def build(
        self,
        class_names: Sequence[str],
        domain_names: Sequence[str],
        *,
        seed: int,
        prompts: PromptTemplate | None = None,
    ) -> None:
        """Untrained parts for these training classes and domains; ``prompts`` replaces the classes' texts."""
        self.class_names, self.domain_names = tuple(class_names), tuple(domain_names)
        prompts = self.template(class_names) if prompts is None else prompts
        self._model = UCDRAdapterModel(self.backbone, self.config, prompts, len(domain_names), seed=seed)

    def parameters(self) -> dict[str, nn.Parameter]:
        """The text context and the image branch; trained copies of CLIP's weights have CLIPModel's names."""
        clip = {"class_token": "vision_model.embeddings.class_embedding", "projection": "visual_projection.weight"}
        context = {} if self.model.context is None else {"text_context": self.model.context}
        branch = {clip.get(name, name): value for name, value in self.model.branch.named_parameters()}
        return {**context, **branch}

    def stage_parameters(self, stage: int) -> dict[str, nn.Parameter]:
        """Text context and prompts in phase 1, all other parameters in phase 2."""
        first = ("text_context", "domain_prompts", "class_prompts")
        everything = self.parameters()
        return {name: value for name, value in everything.items() if (name in first) == (stage == 1) and len(value)}

    def stage_loss(self, stage: int, data: TrainingData, seed: int) -> Callable[[Batch], Tensor]:
        """The loss of a phase; ``fast`` computes texts and image contexts once where they are constant."""
        model, config = self.model, self.config
        texts = contexts = None
        if config.fast and (stage == 2 or model.context is None):  # no text parameter is trained
            with torch.no_grad():
                texts = model.text_features()
        if config.fast and stage == 2 and not config.augmentation.active:
            contexts = self.image_contexts(data)

        def loss(batch: Batch) -> Tensor:
            own = batch.domains, batch.classes
            with self.backbone.autocast():
                if stage == 2:
                    h = None if contexts is None else contexts[batch.index].to(self.device, non_blocking=True)
                    return model.phase2(batch.pixels, own, texts=texts, h=h).loss
                uniforms = share(torch.rand(batch.size, DRAWS, 2, generator=seeded(seed, _TRIPLETS, batch.step)))
                return model.phase1(batch.pixels, own, uniforms.to(self.device, non_blocking=True), texts=texts).loss

        return loss

    def image_contexts(self, data: TrainingData) -> Tensor:
        """Image context tokens h [N, w] of all training images, for images that are not augmented."""
        statistics = self.config.train_statistics

        def compute(pixels: Tensor) -> dict[str, Tensor]:
            return {"h": self.model.image_context(self.backbone.normalize(pixels, statistics))}

        quantity = f"image context {self.config.attention_query}"
        return frozen_values(self.backbone, quantity, data.images, compute, statistics=statistics)["h"]

    def template(self, names: Sequence[str]) -> PromptTemplate:
        """The texts of these classes, with room for the learned context."""
        tokens = self.config.context_tokens
        return PromptTemplate.build(self.backbone, names, TEXT_TEMPLATE if tokens else PLAIN_TEMPLATE, tokens)

    # --- inference ---

    @torch.no_grad()
    def encode_raw(self, pixels: Tensor) -> Tensor:
        """Image features [B, E] before normalisation, which the official evaluation ranks."""
        pixels = self.backbone.normalize(pixels.to(self.device), self.config.test_statistics)
        with self.backbone.autocast():
            return self.model.inference_features(pixels)

    @torch.no_grad()
    def encode_classes(self, names: Sequence[str]) -> Tensor:
        """Normalised text features [C, E] of any class names with the learned context."""
        return self.model.text_features(self.template(names))

    # --- state ---

    def learned_tensors(self) -> Mapping[str, Tensor]:
        """The text context and the image branch; momentum copy and queues serve training alone."""
        return self.parameters()

    def prepare_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Build the model for the checkpoint's classes and domains, unless there is one for as many already."""
        sizes = len(self.domain_names), len(self.class_names)
        if self._model is None or self._model.branch.items != sizes:
            self.build(self.class_names, self.domain_names, seed=0)
