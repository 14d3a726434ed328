"""ProS: prompting to simulate generalised knowledge (Fang et al., CVPR 2024). docs/methods.md, ProS.

Idea: learn what every training domain and class looks like as *prompt units*, then train a small transformer to write
the prompts of an image whose domain and class it is not shown, as will be the case at test time.

1. **Prompt units learning.** Domain units P_D and semantic units P_S; of an image (x, d, y) only its own two stand in
   the sequence of the frozen CLIP vision tower ("mask and align"):
   ``[cls + pos_0 ; P_D[d] ; P_S[y] ; patches + pos_1..P]``, with dropout on the tokens.
2. **Context-aware simulator learning.** The *simulator*, a small vision transformer, sees the image, all units but
   the image's own two, and two templates t_D, t_S:
   ``[t_D ; t_S ; P_D, row d zero ; P_S, row y zero ; own patches + own pos_1..P]``.
   Its outputs at the templates, the content-aware dynamic prompts (CaDP), take the place of P_D[d] and P_S[y] in the
   CLIP tower.
3. **Inference.** As stage 2 with nothing masked; labels and texts are not needed.

Loss of both stages: cross-entropy over cos(f, g_c) / tau, f the image feature (read at the class token, projected) and
g_c the text feature of training class c, ``a photo of {c} from X_1 ... X_m domain.`` with learned context X.

Trained: stage 1 the units, the text context and the text projection; stage 2 the simulator, the templates, the text
context, both projections and the class token. CLIP's blocks stay frozen. Where the released code differs:
methods/cards/pros.toml.

Shapes: B images, C training classes, D training domains, L prompt tokens of a unit, P patches, m context tokens,
w vision width, v text width, E embedding width.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.cards import read_card
from methods.interface import FitReport, Log, Method, TrainingData
from methods.official.pros_release import decayed_rate
from methods.parts.augment import Augmentation, augment
from methods.parts.backbone import Backbone, Statistics, VisionTower
from methods.parts.losses import TEMPERATURE, image_text_loss
from methods.parts.parallel import rank, share
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

_INIT, _BATCHES, _AUGMENT, _DROPOUT = range(4)  # what a random generator is for


#: Where the released code does something else than the paper, as changes to the config.
OFFICIAL: dict[str, Any] = {
    "read_out": "first_prompt",
    "simulator_output": "index_1",
    "train_statistics": "imagenet",
    "test_statistics": "clip",
    "sampler": "released",
}


@dataclass(frozen=True)
class ProSConfig:
    """Settings of ProS; the defaults are the paper's. :meth:`official` gives those of the released code.

    The method:

    * ``context_tokens``: m, learned text context vectors, shared by all classes.
    * ``text_template``: the text of a class, with ``{name}`` and ``{context}``.
    * ``units``: which prompt units exist, ``both``, ``domain``, ``class`` or ``none`` (ablations). Each kind brings its
      template; ``none`` keeps the class template alone and has no stage 1.
    * ``prompt_length``: L, tokens of a unit and of a template.
    * ``mask``: stage 1 shows only an image's own units and stage 2 hides them. False: all units, always.
    * ``simulator``: False stops after stage 1; inference then uses the mean domain unit and the mean class unit.
    * ``simulator_layers``: blocks of the simulator (its width and heads are those of the vision tower).
    * ``temperature``: tau of the loss.
    * ``dropout``: share of the values of the stage-1 image sequence, class token and patches included, set to zero.

    Where paper and released code differ:

    * ``read_out``: the token that becomes the image feature, ``class_token`` (paper) or ``first_prompt`` (released).
    * ``simulator_output``: the simulator tokens that become the prompts. ``template`` (paper): those at the templates.
      ``index_1`` (released): with one template only, the ones that follow it: prompt unit 0, or the first patch.
    * ``train_statistics``, ``test_statistics``: pixel normalisation, ``clip``, ``imagenet`` (released: in training) or
      ``none``.
    * ``sampler``: ``reshuffled``, or ``released``: one order for all seeds and epochs.

    Training:

    * ``learning_rate``: of Adam; fixed in stage 1, times 10^(-3 epoch / 20) in stage 2 (floor 1e-6).
    * ``batch_size``, ``epochs``: of stage 2. ``stage1_batch_size``, ``stage1_epochs``: of stage 1.
    * ``steps``: 0 for those epochs, or the total number of optimiser steps, of which stage 1 gets ``stage1_share``. The
      last stage then counts ``epochs`` equal parts of its steps as its epochs (schedule, validation).
    * ``validate_every``: steps between validations in the last stage (0: once an epoch); ``patience``: validations
      without gain before training stops (0: never).
    * ``crop``, ``flip``, ``jitter``: augmentation, see :class:`methods.parts.augment.Augmentation`.
    * ``fast``: the exact speed-ups of docs/methods.md. False is the plain path with the same numbers.
    """

    context_tokens: int = 16
    text_template: str = TEXT_TEMPLATE
    units: Literal["both", "domain", "class", "none"] = "both"
    prompt_length: int = 1
    mask: bool = True
    simulator: bool = True
    simulator_layers: int = 2
    temperature: float = TEMPERATURE
    dropout: float = 0.5
    read_out: ReadOut = "class_token"
    simulator_output: Literal["template", "index_1"] = "template"
    train_statistics: Statistics = "clip"
    test_statistics: Statistics = "clip"
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
        if self.units == "none" and not self.simulator:
            raise ValueError("pros: units=none with simulator=False leaves no prompts; set one of them otherwise")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"pros: dropout {self.dropout} is not in [0, 1)")

    @classmethod
    def official(cls) -> ProSConfig:
        """Every switch as in the released code."""
        return cls(**OFFICIAL)

    @property
    def augmentation(self) -> Augmentation:
        """What training does to images."""
        return Augmentation(self.crop, self.flip, self.jitter)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of prompt in the image sequence, in its order."""
        return {"both": ("domain", "class"), "domain": ("domain",)}.get(self.units, ("class",))


class ProSModel(nn.Module):
    """What ProS trains, and its forward passes through the frozen backbone (which is not part of the module)."""

    def __init__(self, backbone: Backbone, config: ProSConfig, domains: int, classes: int, generator: torch.Generator):
        super().__init__()
        self.backbone, self.config = (backbone,), config  # in a tuple: the frozen weights are no parameters of ours
        length, width = config.prompt_length, backbone.vision_width

        def units(number: int) -> nn.Parameter:
            return nn.Parameter(new_units(number * length, backbone, generator).view(number, length, width))

        self.domain_units, self.class_units = units(domains), units(classes)  # P_D [D, L, w], P_S [C, L, w]
        self.domain_template, self.class_template = units(1), units(1)  # t_D, t_S [1, L, w]
        self.text_context = nn.Parameter(new_context(config.context_tokens, backbone, generator))  # [m, v]
        self.text_projection = nn.Parameter(backbone.text_projection.detach().clone())  # [E, v]
        self.vision_projection = nn.Parameter(backbone.vision_projection.detach().clone())  # [E, w]
        self.class_token = nn.Parameter(backbone.class_token.detach().clone())  # [w]
        if config.simulator:
            seed = int(torch.randint(2**31, (), generator=generator))
            vision = backbone.vision.vision_model.config
            self.simulator = VisionTower.random(vision, layers=config.simulator_layers, seed=seed).to(backbone.device)
            out = torch.empty(width, width).normal_(0.0, width**-0.5, generator=generator)
            self.simulator_out = nn.Parameter(out.to(backbone.device))  # [w, w], y = x W^T
        self.requires_grad_(False)

    def stage_parameters(self, stage: Literal[1, 2]) -> dict[str, nn.Parameter]:
        """What a stage trains, by name; all the rest is frozen while the stage runs."""
        names = ["text_context", "text_projection"]
        if stage == 1:
            names += [f"{kind}_units" for kind in self.config.kinds]
        else:
            names += [f"{kind}_template" for kind in self.config.kinds]
            names += ["class_token", "vision_projection", "simulator_out"]
            unused = "simulator.vision_model.embeddings.class_embedding"  # the simulator has no class token
            names += [name for name, _ in self.named_parameters() if name.startswith("simulator.") and name != unused]
        own = dict(self.named_parameters())
        return {name: own[name] for name in names}

    def units(self, kind: str) -> Tensor:
        """The units of a kind, [D or C, L, w]."""
        table: Tensor = getattr(self, f"{kind}_units")
        return table

    # --- text side ---

    def text_features(self, prompts: PromptTemplate) -> Tensor:
        """Text features [C, E] of the classes in ``prompts`` with the learned context, not normalised."""
        return encode_prompts(
            self.backbone[0],
            prompts,
            self.text_context,
            projection=self.text_projection,
            shared_prefix=self.config.fast,
            cut=self.config.fast,
        )

    # --- image side: pixels are normalised ---

    def unit_prompts(self, own: dict[str, Tensor] | None) -> Tensor:
        """The prompts of stage 1, [B, K, w], or [K, w] where they are the same for all images.

        ``own`` holds each image's domain and class, ``[B]`` each: its own units. Without a mask: all units. ``own``
        is None at inference without a simulator: the mean unit of each kind (or all of them, without a mask).
        """
        if not self.config.mask:
            return torch.cat([self.units(kind).flatten(0, 1) for kind in self.config.kinds])
        if own is None:
            return torch.cat([self.units(kind).mean(dim=0) for kind in self.config.kinds])
        return torch.cat([self.units(kind)[own[kind]] for kind in self.config.kinds], dim=1)

    def simulate(self, pixels: Tensor, own: dict[str, Tensor] | None) -> Tensor:
        """CaDP: the prompts that the simulator writes for images [B, 3, H, W] -> [B, K, w].

        Sequence: ``[t_D ; t_S ; all domain units ; all semantic units ; patches + positions]``. In training ``own``
        holds each image's domain and class, whose units are replaced by zeros; a lone domain's unit is left.
        """
        config, batch = self.config, pixels.shape[0]
        sequence = [getattr(self, f"{kind}_template").expand(batch, -1, -1) for kind in config.kinds]
        for kind in config.kinds if config.units != "none" else ():
            units = self.units(kind).expand(batch, -1, -1, -1)  # [B, D or C, L, w]
            if own is not None and config.mask and units.shape[1] > 1:
                units = units * (1 - F.one_hot(own[kind], units.shape[1]).to(units))[:, :, None, None]
            sequence.append(units.flatten(1, 2))
        sequence.append(self.simulator.patch_tokens(pixels) + self.simulator.positions[1:])
        tokens = torch.cat(sequence, dim=1)  # [B, K + L(D + C) + P, w]
        count = len(config.kinds) * config.prompt_length  # K, the templates' outputs, which lead the sequence
        first = config.prompt_length if config.simulator_output == "index_1" and len(config.kinds) == 1 else 0
        if config.fast:
            outputs = self.simulator.run_leading(tokens, first + count)
        else:
            outputs = self.simulator.run(tokens)
        return F.linear(self.simulator.norm(outputs[:, first : first + count]), self.simulator_out).float()

    def image_features(self, pixels: Tensor, prompts: Tensor, dropout: torch.Generator | None = None) -> Tensor:
        """``[cls + pos_0 ; prompts ; patches + pos]`` through CLIP's frozen blocks -> [B, E], not normalised.

        ``dropout``, given in stage 1 only, draws the values of the sequence that are set to zero.
        """
        tokens = prompted_tokens(self.backbone[0], pixels, prompts, class_token=self.class_token)
        if dropout is not None and self.config.dropout > 0:
            keep = torch.empty_like(tokens).bernoulli_(1 - self.config.dropout, generator=dropout)
            tokens = tokens * keep / (1 - self.config.dropout)
        return read_image(
            self.backbone[0],
            tokens,
            self.config.read_out,
            projection=self.vision_projection,
            plain=not self.config.fast,
        )

    def training_features(
        self, stage: Literal[1, 2], pixels: Tensor, own: dict[str, Tensor], dropout: torch.Generator | None = None
    ) -> Tensor:
        """Image features [B, E] of a training stage; ``own``: each image's ``domain`` and ``class``, [B] each."""
        if stage == 1:
            return self.image_features(pixels, self.unit_prompts(own), dropout)
        return self.image_features(pixels, self.simulate(pixels, own))

    def inference_features(self, pixels: Tensor) -> Tensor:
        """Image features [B, E] without labels, nothing masked."""
        return self.image_features(
            pixels, self.simulate(pixels, None) if self.config.simulator else self.unit_prompts(None)
        )


class ProS(Method):
    """Prompting to simulate: prompt units, then a simulator that writes the prompts of unseen domains and classes."""

    card = read_card("pros")
    Config = ProSConfig
    one_process = ""
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {}, "official": OFFICIAL}
    ablations: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "no_units": {"units": "none"},
        "domain_units_only": {"units": "domain"},
        "semantic_units_only": {"units": "class"},
        "no_mask": {"mask": False},
        "no_simulator": {"simulator": False},
        "prompt_length_2": {"prompt_length": 2},
        "prompt_length_4": {"prompt_length": 4},
        "simulator_layers_1": {"simulator_layers": 1},
        "simulator_layers_4": {"simulator_layers": 4},
        "context_4": {"context_tokens": 4},
        "context_8": {"context_tokens": 8},
        "context_32": {"context_tokens": 32},
    }

    def __init__(
        self, backbone: Backbone, config: ProSConfig | None = None, device: str | torch.device | None = None
    ) -> None:
        super().__init__(backbone, config, device)
        self._model: ProSModel | None = None
        self.class_names: tuple[str, ...] = ()
        self.domain_names: tuple[str, ...] = ()

    @property
    def model(self) -> ProSModel:
        """The trained parts; raises ``RuntimeError`` before ``fit`` or ``load``."""
        if self._model is None:
            raise RuntimeError("pros has learned nothing yet: call fit, or load a checkpoint")
        return self._model

    # --- training ---

    def loss(
        self,
        stage: Literal[1, 2],
        pixels: Tensor,
        own: dict[str, Tensor],
        prompts: PromptTemplate,
        dropout: torch.Generator | None = None,
    ) -> Tensor:
        """Cross-entropy over cosine(image, text of every training class) / tau; ``pixels`` are normalised."""
        with self.backbone.autocast():
            images = self.model.training_features(stage, pixels, own, dropout)
            texts = self.model.text_features(prompts)
            return image_text_loss(images, texts, own["class"], temperature=self.config.temperature)

    def optimizer(self, stage: Literal[1, 2]) -> torch.optim.Optimizer:
        """A fresh Adam (0.9, 0.999, no weight decay) over what the stage trains; freezes everything else."""
        self.model.requires_grad_(False)
        parameters = list(self.model.stage_parameters(stage).values())
        return torch.optim.Adam([p.requires_grad_(True) for p in parameters], lr=self.config.learning_rate)

    def stage_steps(self, data: TrainingData) -> dict[Literal[1, 2], int]:
        """Optimiser steps of the stages that run."""
        config = self.config
        stages: list[tuple[Literal[1, 2], int, int]] = []  # stage, its epochs, its batch size
        if config.units != "none":
            stages.append((1, config.stage1_epochs, config.stage1_batch_size))
        if config.simulator:
            stages.append((2, config.epochs, config.batch_size))
        shares = {stage: config.steps for stage, _, _ in stages}
        if config.steps > 0 and len(stages) == 2:
            first = min(max(1, round(config.stage1_share * config.steps)), config.steps - 1)
            shares = {1: first, 2: config.steps - first}
            return {stage: number for stage, number in shares.items() if number > 0}
        images = epoch_images(data, config.sampler, config.batch_size)
        return {stage: budget(shares[stage], epochs, images, size) for stage, epochs, size in stages}

    def _batches(self, data: TrainingData, stage: int, seed: int) -> Iterator[Tensor]:
        config, generator = self.config, seeded(seed, _BATCHES, stage)
        size = config.stage1_batch_size if stage == 1 else config.batch_size
        return domain_batches(data, size, generator, config.sampler, round_size=config.batch_size)

    def fit(self, data: TrainingData, *, seed: int, log: Log) -> FitReport:
        """Stage 1, then stage 2. Target images are not used; classes without labelled images get no unit."""
        config, report, begun = self.config, FitReport(), time.perf_counter()
        seen, domains = data.labelled_classes, torch.unique(data.domains)
        own_class, own_domain = torch.searchsorted(seen, data.labels), torch.searchsorted(domains, data.domains)
        self.class_names = tuple(data.class_names[int(number)] for number in seen)
        self.domain_names = tuple(data.domain_names[int(number)] for number in domains)
        self._model = ProSModel(self.backbone, config, len(domains), len(seen), seeded(seed, _INIT))
        prompts = self._prompts(self.class_names)

        trained: dict[str, nn.Parameter] = {}
        steps = self.stage_steps(data)
        for stage, number in steps.items():
            stream = self._batches(data, stage, seed)

            def loss(step: int, stage: Literal[1, 2] = stage, stream: Iterator[Tensor] = stream) -> Tensor:
                index = share(next(stream))
                pixels = data.images.pixels(index).to(self.device)
                pixels = augment(pixels, config.augmentation, seeded(seed, _AUGMENT, stage, step))
                pixels = self.backbone.normalize(pixels, config.train_statistics)
                own = {"domain": own_domain[index].to(self.device), "class": own_class[index].to(self.device)}
                mine = (rank(),) if rank() else ()  # processes that train together drop other values
                dropout = torch.Generator(self.device).manual_seed(seeded(seed, _DROPOUT, step, *mine).initial_seed())
                return self.loss(stage, pixels, own, prompts, dropout)

            def rate(step: int, number: int = number) -> float:
                return decayed_rate(config.learning_rate, step * config.epochs // number)

            trained |= self.model.stage_parameters(stage)
            last = stage == max(steps)
            epochs = config.stage1_epochs if stage == 1 and config.steps == 0 else config.epochs
            run_stage(
                self,
                data,
                report,
                log,
                stage=("prompt units", "simulator")[stage - 1],
                steps=number,
                optimizers=[self.optimizer(stage)],
                loss=loss,
                learning_rate=rate if stage == 2 else None,
                validate_every=(config.validate_every or math.ceil(number / epochs)) if last else 0,
                patience=config.patience,
            )
        self.model.requires_grad_(False)
        report.trainable_parameters = count_parameters(trained)
        report.seconds = time.perf_counter() - begun
        return report

    def _prompts(self, names: Sequence[str]) -> PromptTemplate:
        return PromptTemplate.build(self.backbone, names, self.config.text_template, self.config.context_tokens)

    # --- inference ---

    @torch.no_grad()
    def encode_raw(self, pixels: Tensor) -> Tensor:
        """Image features ``[B, E]`` before normalisation, which the released evaluation ranks."""
        normalized = self.backbone.normalize(pixels.to(self.device), self.config.test_statistics)
        with self.backbone.autocast():
            return self.model.inference_features(normalized)

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Normalised image features ``[B, E]``; no labels, no text."""
        return F.normalize(self.encode_raw(pixels), dim=-1)

    @torch.no_grad()
    def encode_classes(self, names: Sequence[str]) -> Tensor:
        """Normalised text features ``[C, E]`` of any class names with the learned context."""
        return F.normalize(self.model.text_features(self._prompts(names)), dim=-1)

    def logit_scale(self) -> float:
        """1 / tau, as in training."""
        return 1.0 / self.config.temperature

    # --- checkpoints ---

    def tensors(self) -> dict[str, Tensor]:
        """All parameters of :class:`ProSModel`, by name."""
        return dict(self.model.state_dict())

    def facts(self) -> dict[str, Any]:
        """Names of the units, in order."""
        return {"class_names": list(self.class_names), "domain_names": list(self.domain_names)}

    def load_tensors(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Put back what :meth:`tensors` and :meth:`facts` gave."""
        self.class_names, self.domain_names = tuple(facts["class_names"]), tuple(facts["domain_names"])
        domains, classes = tensors["domain_units"].shape[0], tensors["class_units"].shape[0]
        self._model = ProSModel(self.backbone, self.config, domains, classes, seeded(0))
        self._model.load_state_dict(tensors)
