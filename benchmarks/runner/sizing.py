"""What a training step costs: floating-point operations, seconds on a card, and memory on the device.

All of it follows from a list of *passes*, runs of token sequences through a transformer: how many, how long, and
whether gradients go through frozen weights or train them. Operations are those of the matrix products and of attention;
bytes are what autograd keeps for the backward pass, counted per token and block (tests/runner/test_sizing.py compares
both with counted ones). Nothing here imports torch.

Seconds need a rate: that of a record of ``benchmarks.speed.gpu`` (results/speed/gpu.json) where there is one, else the
data sheet of an A100 times the share that such a step usually reaches (:data:`ASSUMED`). A step takes at least the time
to launch its kernels.

Every trained method of ours is described, but for those that train on stored features (:data:`STORED_FEATURES`).

Shapes: B images, C classes with labelled images, D domains, T tokens of a sequence, w width.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Literal

from methods.parts.bounds import CONTEXT, NAME
from methods.parts.checkpointing import CHECKPOINT_ABOVE, PIECE_BYTES, sequence_bytes

Kind = Literal["encode", "through", "trained"]

#: Tokens of a class name, on average (DomainNet's names have 1 to 4).
NAME_TOKENS = 2

#: TFLOP/s taken for a step without a measurement, and why.
ASSUMED: Mapping[str, tuple[float, str]] = {
    "float32": (12.0, "A100, 60 % of the data sheet's 19.5 TFLOP/s"),
    "tf32": (39.0, "A100, a quarter of the data sheet's 156 TFLOP/s"),
    "bf16": (60.0, "A100, a fifth of the data sheet's 312 TFLOP/s, as batches are small"),
}

#: Seconds to launch a kernel, and kernels of a block: forward, and forward with backward.
LAUNCH_S, KERNELS = 1e-5, {"encode": 30, "through": 120, "trained": 130}

#: Where ``benchmarks.speed.gpu`` writes its numbers.
MEASURED = Path(__file__).resolve().parents[2] / "results" / "speed" / "gpu.json"

GIB = 2**30

#: What CUDA takes for itself, and what the allocator holds beside the tensors in use.
CONTEXT_GIB, SLACK = 0.6, 1.1

#: Bytes that checkpointed prompts take: a piece's activations, their gradients and work space.
CHECKPOINTED = 3 * PIECE_BYTES


@dataclass(frozen=True)
class Towers:
    """Sizes of a CLIP's transformers: widths, blocks, heads, tokens of an image (class token included)."""

    vision_width: int
    vision_layers: int
    vision_heads: int
    vision_tokens: int
    text_width: int
    text_layers: int
    text_heads: int

    def vision(self, images: int, kind: Kind, *, extra: int = 0, tokens: int = 0, layers: int = 0) -> Pass:
        """``images`` through the vision tower with ``extra`` tokens beside their own (or ``tokens`` in all)."""
        length = tokens or self.vision_tokens + extra
        return Pass(self.vision_width, layers or self.vision_layers, self.vision_heads, images, length, kind)

    def text(self, texts: int, tokens: int, kind: Kind, *, behind: int = 0) -> Pass:
        """``texts`` of so many tokens through the text tower, ``behind`` a shared prefix of so many."""
        return Pass(
            self.text_width, self.text_layers, self.text_heads, texts, tokens, kind, keys=tokens + behind, text=True
        )


#: The published CLIPs.
PUBLISHED: Mapping[str, Towers] = {
    "ViT-B/32": Towers(768, 12, 12, 50, 512, 12, 8),
    "ViT-B/16": Towers(768, 12, 12, 197, 512, 12, 8),
    "ViT-L/14": Towers(1024, 24, 16, 257, 768, 12, 12),
}

#: Their weights in MiB, float32.
PUBLISHED_MIB: Mapping[str, float] = {"ViT-B/32": 577, "ViT-B/16": 571, "ViT-L/14": 1631}


@dataclass(frozen=True)
class Pass:
    """``sequences`` of ``tokens`` through ``layers`` blocks; each token attends to ``keys`` others (0: ``tokens``).

    ``kind``: ``encode`` without gradients; ``through`` frozen weights to what is in front of them; ``trained`` weights.
    """

    width: int
    layers: int
    heads: int
    sequences: int
    tokens: int
    kind: Kind
    keys: int = 0
    text: bool = False

    @property
    def _rows(self) -> int:
        return self.sequences * self.tokens * self.layers

    @property
    def flops(self) -> float:
        """Operations, backward included."""
        forward = self._rows * (24 * self.width**2 + 4 * (self.keys or self.tokens) * self.width)
        return forward * {"encode": 1, "through": 2, "trained": 3}[self.kind]

    def saved_bytes(self, precision: str) -> float:
        """Bytes kept for the backward pass.

        Float32, a token and block: the inputs of both LayerNorms, queries, keys and values, and the two factors of the
        activation (4 widths each); trained weights also need the inputs of every linear map. Attention is the plain one
        and keeps a weight for each head and key. In bfloat16, what linear maps give has half the bytes; LayerNorms and
        the plain attention compute in float32.
        """
        if self.kind == "encode":
            return 0.0
        per_width = 13 if self.kind == "through" else 20
        half = 8 if self.kind == "through" else 15  # of these, in two bytes
        bytes_ = 4 * per_width - (2 * half if precision == "bf16" else 0)
        attention = 4 * self.heads * (self.keys or self.tokens) * (2 if self.text else 1)
        return self._rows * (bytes_ * self.width + attention)

    def checkpoint_bytes(self, precision: str) -> int:
        """What :func:`methods.parts.prompts.encode_prompts` compares with its bound: of prompts behind a prefix that
        they share, where there are gradients."""
        if not self.text or self.keys <= self.tokens or self.kind == "encode":
            return 0
        bf16 = precision == "bf16"
        return self.sequences * sequence_bytes(
            int(self.tokens), int(self.keys), width=self.width, heads=self.heads, layers=self.layers, bf16=bf16
        )


@dataclass(frozen=True)
class Step:
    """A training step of one stage.

    passes: what runs through the towers (the second forward pass of checkpointed prompts is not counted).
    trained: values that the optimiser moves, of which it keeps ``moments`` each (Adam 2, SGD with momentum 1).
    copied: values of the CLIP that the method copies to train weights of it; 0: it has none of its own.
    """

    stage: str
    passes: tuple[Pass, ...]
    trained: float = 0.0
    moments: int = 2
    copied: float = 0.0

    @property
    def flops(self) -> float:
        """Operations."""
        return sum(one.flops for one in self.passes)

    def seconds(self, tflops: float) -> float:
        """At so many TFLOP/s, and no less than it takes to launch the kernels."""
        launches = sum(one.layers * KERNELS[one.kind] for one in self.passes) * LAUNCH_S
        return max(self.flops / (tflops * 1e12), launches)

    def gib(self, weights_mib: float, precision: str) -> float:
        """Peak memory on a GPU: weights (in bf16 also their casts), what is trained, activations, CUDA itself."""
        weights = weights_mib * 2**20 * (1.5 if precision == "bf16" else 1) + 4 * self.copied
        trained = 4 * self.trained * (1 + self.moments + (not self.copied))
        checkpointed = sum(one.checkpoint_bytes(precision) for one in self.passes) > CHECKPOINT_ABOVE
        kept = [one for one in self.passes if one.text and not (checkpointed and one.checkpoint_bytes(precision))]
        texts = sum(one.saved_bytes(precision) for one in kept) + checkpointed * CHECKPOINTED
        images = sum(one.saved_bytes(precision) for one in self.passes if not one.text)
        widest = max(
            (12 * one.sequences * one.tokens * one.width * 4 for one in self.passes if not one.text), default=0
        )
        return CONTEXT_GIB + SLACK * (weights + trained + texts + images + widest) / GIB


# --- the methods ------------------------------------------------------------------------------------------------------


#: Share of a CLIP's weights that are its vision tower's.
VISION_SHARE = 0.6


@dataclass(frozen=True)
class TaskSize:
    """What a method trains on, and the CLIP's size: C classes, D labelled domains, whether it is shown images of the
    target domain, and all weights of CLIP."""

    classes: int
    domains: int
    target: bool
    weights: float


Steps = Callable[[Any, Towers, TaskSize], list[Step]]


def _prompt_tokens(template: str, context: int) -> tuple[int, int]:
    """Tokens of a class's text: of the prefix that all classes share, and of what is behind it.

    ``context`` learned tokens are where the template says or, if it does not, in the place of its first words.
    """
    before, _, after = template.replace("{}", NAME).partition(NAME)
    words = [len(re.findall(r"\w+|[^\w\s]+", part.replace(CONTEXT, ""))) for part in (before, after)]
    prefix, suffix = 1 + words[0], NAME_TOKENS + words[1] + 1
    if CONTEXT in after:
        return prefix, suffix + context
    return (prefix + context if CONTEXT in before else max(prefix, 1 + context)), suffix


def _texts(config: Any, towers: Towers, classes: int, kind: Kind = "through", *, contexts: int = 1) -> list[Pass]:
    """The texts of all classes behind each of so many contexts, as the config's template has them."""
    prefix, suffix = _prompt_tokens(config.template, getattr(config, "context_tokens", 0))
    return [towers.text(contexts, prefix, kind), towers.text(contexts * classes, suffix, kind, behind=prefix)]


def _frozen_images(config: Any, towers: Towers, images: int) -> list[Pass]:
    """Frozen CLIP's features of so many images: computed once, before the first step, unless images are augmented."""
    return [towers.vision(images, "encode")] if config.augmentation.active else []


def _coop(config: Any, towers: Towers, size: TaskSize) -> list[Step]:
    images = _frozen_images(config, towers, config.batch_size)
    if config.train_projections:
        images = [towers.vision(config.batch_size, "encode")]
    return [Step("context", (*images, *_texts(config, towers, size.classes)))]


def _cocoop(config: Any, towers: Towers, size: TaskSize) -> list[Step]:
    images = config.batch_size  # each has a context of its own
    texts = _texts(config, towers, size.classes, contexts=images)
    return [Step("context and meta-net", (*_frozen_images(config, towers, images), *texts), moments=1)]


def _vpt(config: Any, towers: Towers, size: TaskSize) -> list[Step]:
    return [Step("visual prompts", (towers.vision(config.batch_size, "through", extra=config.prompt_tokens),))]


def _own_vision(stage: str) -> Steps:
    """Some weights of a copy of the vision tower, small ones: the others are frozen."""

    def steps(config: Any, towers: Towers, size: TaskSize) -> list[Step]:
        return [Step(stage, (towers.vision(config.batch_size, "through"),), copied=size.weights)]

    return steps


def _lora(config: Any, towers: Towers, size: TaskSize) -> list[Step]:
    images = towers.vision(config.batch_size, "through" if config.vision else "encode")
    texts = _texts(config, towers, size.classes) if config.text else []
    return [Step("adapters", (images, *texts), copied=size.weights)]


def _full_finetune(config: Any, towers: Towers, size: TaskSize) -> list[Step]:
    texts = _texts(config, towers, size.classes, "trained") if config.train_text else []
    trained = (1 if config.train_text else VISION_SHARE) * size.weights
    images = towers.vision(config.batch_size, "trained")
    return [Step("vision tower", (images, *texts), trained, copied=size.weights)]


def _sketch_lvm(config: Any, towers: Towers, size: TaskSize) -> list[Step]:
    # anchors, positives, negatives; with ``train_unnamed`` a quarter of the maps is trained too, which is not counted
    images = towers.vision(3 * config.batch_size, "through", extra=config.prompt_tokens)
    return [Step("triplets", (images,), copied=size.weights)]


def _prompted(config: Any, towers: Towers, images: int) -> Pass:
    """Images through a tower whose first blocks have learned tokens at their inputs: as many as texts have, or their
    own number."""
    return towers.vision(images, "through", extra=getattr(config, "prompt_tokens", config.context_tokens))


def _maps(blocks: int, towers: Towers) -> float:
    """Values of the linear maps from the text prompts of the first blocks to the vision prompts."""
    return min(blocks, towers.text_layers, towers.vision_layers) * towers.text_width * towers.vision_width


def _maple(config: Any, towers: Towers, size: TaskSize) -> list[Step]:
    passes = (_prompted(config, towers, config.batch_size), *_texts(config, towers, size.classes))
    return [Step("prompts", passes, _maps(config.depth, towers), moments=1)]


def _ivlp(config: Any, towers: Towers, size: TaskSize) -> list[Step]:
    passes = (_prompted(config, towers, config.batch_size), *_texts(config, towers, size.classes))
    return [Step("prompts", passes, moments=1)]


def _promptsrc(config: Any, towers: Towers, size: TaskSize) -> list[Step]:
    (prompted,) = _ivlp(config, towers, size)
    teacher = _frozen_images(config, towers, config.batch_size)
    return [Step("prompts", (*teacher, *prompted.passes), moments=1)]


def _pda(config: Any, towers: Towers, size: TaskSize) -> list[Step]:
    # where the protocol shows no target images, those of another training domain take their place
    groups = 2 if config.target_weight else 1
    teacher = [towers.vision(config.batch_size, "encode")] if config.target_weight else []
    images = [_prompted(config, towers, config.batch_size)] * groups
    passes = (*images, *teacher, *_texts(config, towers, size.classes))
    return [Step("prompts", passes, _maps(min(config.coupled, config.depth), towers), moments=1)]


def _cmkd(config: Any, towers: Towers, size: TaskSize) -> list[Step]:
    groups = 2 if config.target_weight or config.teacher_weight else 1  # target images as in PDA
    images = [towers.vision(config.batch_size, "trained")] * groups
    trained = VISION_SHARE * size.weights
    return [Step("distillation", tuple(images), trained, moments=1, copied=size.weights)]


def _dapl(config: Any, towers: Towers, size: TaskSize) -> list[Step]:
    domains = size.domains + size.target
    groups = 2 if size.target and config.target_weight else 1
    images = _frozen_images(config, towers, config.batch_size) * groups
    context = config.context_tokens + config.domain_tokens
    template = config.template
    if config.domain_words:
        template = f"{template.removesuffix('.')} , a domain image.."
    prefix, suffix = _prompt_tokens(template, context)
    if config.class_specific:  # nothing is shared
        texts = [towers.text(domains * size.classes, prefix + suffix, "through")]
    else:
        texts = [
            towers.text(domains, prefix, "through"),
            towers.text(domains * size.classes, suffix, "through", behind=prefix),
        ]
    return [Step("contexts", (*images, *texts), moments=1)]


def _head(stage: str) -> Steps:
    """Something behind CLIP's image features."""

    def steps(config: Any, towers: Towers, size: TaskSize) -> list[Step]:
        return [Step(stage, tuple(_frozen_images(config, towers, config.batch_size)))]

    return steps


def _pros(config: Any, towers: Towers, size: TaskSize) -> list[Step]:
    kinds = len(config.kinds)
    own = kinds * config.prompt_length
    texts = (
        towers.text(1, 4, "through"),
        towers.text(size.classes, NAME_TOKENS + config.context_tokens + 4, "through", behind=4),
    )
    first = Step("prompt units", (towers.vision(config.stage1_batch_size, "through", extra=own), *texts))
    units = config.prompt_length * (size.domains + size.classes)
    written = towers.vision_tokens - 1 + own + units
    simulator = towers.vision(config.batch_size, "trained", tokens=written, layers=config.simulator_layers)
    trained = 12 * towers.vision_width**2 * config.simulator_layers
    main = towers.vision(config.batch_size, "through", extra=own)
    return [first, Step("simulator", (simulator, main, *texts), trained)]


def _ucdr_adapter(config: Any, towers: Towers, size: TaskSize) -> list[Step]:
    own = config.prompt_length * (config.domain_prompts + config.class_prompts)
    momentum = [towers.vision(config.stage1_batch_size, "encode", extra=own)] if config.triplet_weight else []
    texts = [
        towers.text(1, 4, "through"),
        towers.text(size.classes, NAME_TOKENS + config.context_tokens + 4, "through", behind=4),
    ]
    first = Step("source adapter", (towers.vision(config.stage1_batch_size, "through", extra=own), *momentum, *texts))
    second = [towers.vision(config.batch_size, "through", extra=2), towers.vision(config.batch_size, "encode")]
    if config.momentum_in_phase2:
        second.append(towers.vision(config.batch_size, "encode", extra=2))
    return [first, Step("target prompts", tuple(second))] if config.generate else [first]


def _ad_clip(config: Any, towers: Towers, size: TaskSize) -> list[Step]:
    images = 2 * config.batch_size
    layers = config.layers or towers.vision_layers
    context = 1 + 2 * layers * config.domain_tokens + config.image_tokens
    passes = [towers.vision(images, "encode")] if config.augmentation.active else []
    passes.append(towers.text(images, context, "through"))
    passes.append(towers.text(images * size.classes, NAME_TOKENS + 2, "through", behind=context))
    projectors = layers * (4 * towers.vision_width * (config.domain_hidden + config.style_hidden))
    return [Step("projectors", tuple(passes), projectors)]


_WORK: Mapping[str, Steps] = {
    "pros": _pros,
    "ucdr_adapter": _ucdr_adapter,
    "ad_clip": _ad_clip,
    "coop": _coop,
    "cocoop": _cocoop,
    "maple": _maple,
    "ivlp": _ivlp,
    "promptsrc": _promptsrc,
    "dapl": _dapl,
    "pda": _pda,
    "cmkd": _cmkd,
    "sketch_lvm": _sketch_lvm,
    "vpt_shallow": _vpt,
    "vpt_deep": _vpt,
    "bitfit": _own_vision("biases"),
    "ln_tuning": _own_vision("LayerNorms"),
    "lora": _lora,
    "full_finetune": _full_finetune,
    "tip_adapter_f": _head("keys"),
    "linear_probe": _head("linear map"),
    "metric_head": _head("linear map"),
    "clip_adapter": _head("adapters"),
}

#: Methods that train on features which are stored before the first step; the first three run the vision tower without
#: gradients where their images are augmented.
STORED_FEATURES = ("linear_probe", "metric_head", "clip_adapter", "sre_clip")

#: The methods whose steps run through a tower, and are described.
DESCRIBED = tuple(name for name in _WORK if name not in STORED_FEATURES)

#: Methods that tell apart all class names that training may use, not those with labelled images alone.
ALL_NAMES = ("ad_clip", "dapl", "pda", "cmkd")


def steps_of(
    method: str,
    config: Any,
    towers: Towers,
    classes: int,
    domains: int,
    weights_mib: float = 0.0,
    *,
    target: bool = True,
) -> list[Step] | None:
    """The stages of a method's training, one step of each.

    ``classes``: those that it tells apart (:data:`ALL_NAMES`); ``domains``: those with labelled images; ``target``:
    whether it is shown images of the target domain. None for a method whose steps run through no tower (it trains on
    stored features), or that is another distribution's.
    """
    if method not in _WORK:
        return None
    steps = _WORK[method](config, towers, TaskSize(classes, domains, target, weights_mib * 2**18))
    return steps if any(step.passes for step in steps) else None


def rate(precision: str, file: Path = MEASURED) -> tuple[float, str]:
    """TFLOP/s of a training step in a precision, and the basis: measured, or :data:`ASSUMED`."""
    try:
        facts = json.loads(file.read_text(encoding="utf-8"))
        if facts["precision"] == precision and not facts["quick"] and "gpu" in facts["environment"]["hardware"]:
            found = [one["ours"]["flops"] / one["ours"]["s"] / 1e12 for one in facts["steps"] if one["part"] == "step"]
            if found:
                return median(found), f"measured, {facts['environment']['hardware']['gpu']}"
    except (OSError, ValueError, KeyError, TypeError):
        pass
    return ASSUMED[precision]


# --- the papers' recipes ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class RecipeWork:
    """What a recipe's table trains on: classes and domains, optimiser steps of each stage, images that it encodes for
    validation in all."""

    backbone: str
    classes: int
    domains: int
    steps: Sequence[int]
    encoded: int


#: The recipes on transformers whose steps run through a tower. Steps follow from the published number of images; where
#: a paper stops early, 10 epochs are taken.
RECIPE_WORK: Mapping[str, RecipeWork] = {
    "pros_domainnet": RecipeWork("ViT-B/32", 300, 5, (523, 41_850), 450_000),
    "pros_domainnet_udcdr": RecipeWork("ViT-B/32", 300, 5, (523, 41_850), 450_000),
    "pros_sketchy": RecipeWork("ViT-B/32", 104, 2, (304, 24_290), 250_000),
    "pros_tuberlin": RecipeWork("ViT-B/32", 220, 2, (88, 7_040), 270_000),
    "ucdr_adapter_domainnet": RecipeWork("ViT-B/32", 245, 5, (427, 34_180), 450_000),
    "ucdr_adapter_domainnet_udcdr": RecipeWork("ViT-B/32", 245, 5, (427, 34_180), 450_000),
    "ucdr_adapter_sketchy": RecipeWork("ViT-B/32", 104, 2, (304, 24_290), 250_000),
    "ucdr_adapter_tuberlin": RecipeWork("ViT-B/32", 220, 2, (88, 7_040), 270_000),
    "ad_clip_office_home": RecipeWork("ViT-B/16", 65, 2, (12_150,), 195_000),
    "ad_clip_mini_domainnet": RecipeWork("ViT-B/16", 126, 2, (93_750,), 500_000),
    "ad_clip_visda": RecipeWork("ViT-B/16", 12, 2, (476_200,), 2_769_400),
}


def recipe_hours(method: str, config: Any, work: RecipeWork, precision: str, tflops: float) -> tuple[float, list[Step]]:
    """GPU hours of one fit of a recipe, and its steps."""
    towers = PUBLISHED[work.backbone]
    steps = steps_of(method, config, towers, work.classes, work.domains, PUBLISHED_MIB[work.backbone])
    assert steps is not None
    seconds = sum(count * step.seconds(tflops) for count, step in zip(work.steps, steps, strict=True))
    encoding = towers.vision(work.encoded, "encode").flops
    if method == "ad_clip":  # each image against its own prompts
        encoding += towers.text(work.encoded * work.classes, NAME_TOKENS + 2, "encode", behind=29).flops
    elif method == "pros":
        encoding *= 1.3
    elif method == "ucdr_adapter":
        encoding *= 2
    return (seconds + encoding / (tflops * 1e12)) / 3600, steps
