"""ProS: prompting to simulate generalised knowledge (Fang et al., CVPR 2024). docs/methods.md, ProS.

Idea: learn what every training domain and class looks like as *prompt units*, then train a small transformer to write
the prompts of an image whose domain and class it is not shown, as will be the case at test time.

1. **Prompt units learning.** Domain units P_D and semantic units P_S; of an image (x, d, y) only its own two are in
   the sequence of the frozen CLIP vision tower ("mask and align"):
   ``[cls + pos_0 ; P_D[d] ; P_S[y] ; patches + pos_1..P]``, with dropout on the tokens. (1)
2. **Context-aware simulator learning.** The *simulator*, a small vision transformer, sees the image, all units but
   the image's own two, and two templates t_D, t_S:
   ``[t_D ; t_S ; P_D, row d zero ; P_S, row y zero ; own patches + own pos_1..P]``. (2)
   Its outputs at the templates, the content-aware dynamic prompts (CaDP), take the place of P_D[d] and P_S[y] in the
   CLIP tower.
3. **Inference.** As stage 2 with nothing masked; labels and texts are not needed.

Loss of both stages: cross-entropy over cos(f, g_c) / tau, (3) f the image feature (read at the class token, projected)
and g_c the text feature of training class c, ``a photo of {c} from X_1 ... X_m domain.`` with learned context X.

Trained: stage 1 the units, the text context and the text projection; stage 2 the simulator, the templates, the text
context, both projections and the class token. CLIP's blocks stay frozen. Where the official code differs:
methods/cards/pros.toml and methods/official/pros.py.

Shapes: B images, C training classes, D training domains, L prompt tokens of a unit, K prompt tokens in a sequence, P
patches, m context tokens, w vision width, v text width, E embedding width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.cards import read_card
from methods.interface import TrainingData
from methods.official.pros import SETTINGS, first_output
from methods.parts.augment import Augmentation
from methods.parts.backbone import ClipBackbone, Statistics, VisionTower
from methods.parts.losses import TEMPERATURE, image_text_loss
from methods.parts.parallel import rank
from methods.parts.prompt_units import TEXT_TEMPLATE, ReadOut, new_context, new_units, prompted_tokens, read_image
from methods.parts.prompts import PromptTemplate, encode_prompts
from methods.training.batches import Sampler
from methods.training.loop import seeded
from methods.training.two_stage import Batch, Stage, TwoStageMethod

Own = dict[str, Tensor]  # each image's own "domain" and "class", numbers [B]


class ProSModel(nn.Module):
    """What ProS trains, its forward passes through the frozen backbone (not part of the module), and its loss.

    Pixels [B, 3, H, W] are normalised.
    """

    def __init__(
        self, backbone: ClipBackbone, config: ProSConfig, domains: int, classes: int, generator: torch.Generator
    ):
        super().__init__()
        self.backbone, self.config = (backbone,), config  # a tuple, so that frozen weights are no parameters here
        length, width = config.prompt_length, backbone.vision_width

        def units(number: int) -> nn.Parameter:
            return nn.Parameter(new_units(number * length, backbone, generator).view(number, length, width))

        self.domain_units, self.class_units = units(domains), units(classes)  # P_D [D, L, w], P_S [C, L, w]
        self.domain_template, self.class_template = units(1), units(1)  # t_D, t_S [1, L, w]
        self.text_context = nn.Parameter(new_context(config.context_tokens, backbone, generator))  # X [m, v]
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

    def units(self, kind: str) -> Tensor:
        """The units of a kind, [D or C, L, w]."""
        table: Tensor = getattr(self, f"{kind}_units")
        return table

    def unit_prompts(self, own: Own | None) -> Tensor:
        """Stage 1: P_D[d] and P_S[y] of each image, [B, K, w].

        Without a mask all units, and for ``own`` None (inference without a simulator) the mean unit of each kind; both
        are the same for all images, [K, w].
        """
        if not self.config.mask:
            return torch.cat([self.units(kind).flatten(0, 1) for kind in self.config.kinds])
        if own is None:
            return torch.cat([self.units(kind).mean(dim=0) for kind in self.config.kinds])
        return torch.cat([self.units(kind)[own[kind]] for kind in self.config.kinds], dim=1)

    def image_features(self, pixels: Tensor, prompts: Tensor, dropout: torch.Generator | None = None) -> Tensor:
        """(1): ``[cls + pos_0 ; prompts ; patches + pos]`` through CLIP's frozen blocks -> [B, E], not normalised.

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

    def simulate(self, pixels: Tensor, own: Own | None) -> Tensor:
        """(2): the CaDP that the simulator writes for images -> [B, K, w].

        Sequence: ``[t_D ; t_S ; all domain units ; all semantic units ; patches + positions]``. In training the units
        of each image's ``own`` domain and class are zero; an only domain's unit is not. ``own`` is None at inference.
        """
        config, batch = self.config, len(pixels)
        kinds, masked = config.kinds, own is not None and config.mask
        first = first_output(kinds, config.prompt_length) if config.simulator_output == "index_1" else 0
        end = first + len(kinds) * config.prompt_length  # the templates lead the sequence
        patches = self.simulator.patch_tokens(pixels) + self.simulator.positions[1:]
        if config.fast:
            shared, rows = self.shared_tokens(own if masked else None)
            outputs = self.simulator.run_leading_shared(shared, rows, patches, end)
        else:
            sequence = [getattr(self, f"{kind}_template").expand(batch, -1, -1) for kind in kinds]
            for kind in kinds if config.units != "none" else ():
                units = self.units(kind).expand(batch, -1, -1, -1)  # [B, D or C, L, w]
                if own is not None and masked and units.shape[1] > 1:
                    units = units * (1 - F.one_hot(own[kind], units.shape[1]).to(units))[:, :, None, None]
                sequence.append(units.flatten(1, 2))
            outputs = self.simulator.run(torch.cat([*sequence, patches], dim=1))  # [B, K + L(D + C) + P, w]
        return F.linear(self.simulator.norm(outputs[:, first:end]), self.simulator_out).float()

    def shared_tokens(self, own: Own | None) -> tuple[Tensor, Tensor | None]:
        """``[t_D ; t_S ; P_D ; P_S]`` and a zero row, and the rows of it [B, R] that each image sees.

        The rows of an image's ``own`` units are the zero row, an only domain's is not; ``own`` None masks nothing, and
        without a zero row all images see all rows: (tokens [R, w], None).
        """
        kinds, length = self.config.kinds, self.config.prompt_length
        tables = [getattr(self, f"{kind}_template") for kind in kinds]
        hidden: list[Tensor | None] = [None] * len(kinds)
        if self.config.units != "none":
            tables += [self.units(kind) for kind in kinds]
            hidden += [own[kind] if own is not None and len(self.units(kind)) > 1 else None for kind in kinds]
        tokens = torch.cat([table.flatten(0, 1) for table in tables])  # [R, w]
        if own is None:
            return tokens, None
        batch = len(next(iter(own.values())))
        masked = []
        for table, numbers in zip(tables, hidden, strict=True):
            place = torch.arange(len(table), device=tokens.device).repeat_interleave(length)
            masked.append((place == numbers[:, None]) if numbers is not None else (place < 0).expand(batch, -1))
        rows = torch.arange(len(tokens), device=tokens.device)
        return F.pad(tokens, (0, 0, 0, 1)), torch.where(torch.cat(masked, dim=1), len(tokens), rows)

    def training_features(self, stage: int, pixels: Tensor, own: Own, dropout: torch.Generator | None = None) -> Tensor:
        """f: image features [B, E] of a training stage."""
        if stage == 1:
            return self.image_features(pixels, self.unit_prompts(own), dropout)
        return self.image_features(pixels, self.simulate(pixels, own))

    def inference_features(self, pixels: Tensor) -> Tensor:
        """f: image features [B, E] without labels, nothing masked."""
        prompts = self.simulate(pixels, None) if self.config.simulator else self.unit_prompts(None)
        return self.image_features(pixels, prompts)

    def text_features(self, prompts: PromptTemplate) -> Tensor:
        """g: text features [C, E] of the classes in ``prompts`` with the learned context, not normalised."""
        fast, projection = self.config.fast, self.text_projection
        return encode_prompts(
            self.backbone[0], prompts, self.text_context, projection=projection, shared_prefix=fast, cut=fast
        )

    def loss(
        self, stage: int, pixels: Tensor, own: Own, prompts: PromptTemplate, dropout: torch.Generator | None = None
    ) -> Tensor:
        """(3): cross-entropy over cos(f, g_c) / tau; ``prompts`` are the texts of all training classes."""
        with self.backbone[0].autocast():
            images = self.training_features(stage, pixels, own, dropout)
            texts = self.text_features(prompts)
            return image_text_loss(images, texts, own["class"], temperature=self.config.temperature)

    def stage_parameters(self, stage: int) -> dict[str, nn.Parameter]:
        """What a stage trains, by name."""
        names = ["text_context", "text_projection"]
        if stage == 1:
            names += [f"{kind}_units" for kind in self.config.kinds]
        else:
            names += [f"{kind}_template" for kind in self.config.kinds]
            names += ["class_token", "vision_projection", "simulator_out"]
            unused = "simulator.vision_model.embeddings.class_embedding"  # the simulator has no class token
            names += [name for name, _ in self.named_parameters() if name.startswith("simulator.") and name != unused]
        parameters = dict(self.named_parameters())
        return {name: parameters[name] for name in names}


@dataclass(frozen=True)
class ProSConfig:
    """Settings of ProS; the defaults are the paper's. :meth:`official` gives those of the official code."""

    # the method
    context_tokens: int = 16  # m, learned text context vectors, shared by all classes
    text_template: str = TEXT_TEMPLATE  # the text of a class, with ``{name}`` and ``{context}``
    units: Literal["both", "domain", "class", "none"] = "both"  # which prompt units exist (ablations).
    # Each kind brings its template; ``none`` keeps the class template alone and has no stage 1.
    prompt_length: int = 1  # L, tokens of a unit and of a template
    mask: bool = True  # stage 1 shows only an image's own units and stage 2 hides them. False: all units, always
    simulator: bool = True  # False stops after stage 1; inference then uses the mean unit of each kind
    simulator_layers: int = 2  # blocks of the simulator (its width and heads are those of the vision tower)
    temperature: float = TEMPERATURE  # tau of the loss
    dropout: float = 0.5  # share of the values of the whole stage-1 image sequence that is set to zero

    # where paper and official code differ
    read_out: ReadOut = "class_token"  # the token that becomes the image feature, or ``first_prompt`` (official)
    simulator_output: Literal["template", "index_1"] = "template"  # the simulator tokens that become the prompts.
    # ``template`` (paper): those at the templates. ``index_1`` (official): with one template only, the ones that
    # follow it: prompt unit 0, or the first patch.
    train_statistics: Statistics = "clip"  # pixel normalisation: ``clip``, ``imagenet`` (official) or ``none``
    test_statistics: Statistics = "clip"  # the same at inference
    sampler: Sampler = "reshuffled"  # batches, or ``released``: one order for all seeds and epochs

    # training
    learning_rate: float = 1e-4  # of Adam; fixed in stage 1, times 10^(-3 epoch / 20) in stage 2 (at least 1e-6)
    batch_size: int = 50  # of stage 2
    epochs: int = 10  # of stage 2
    stage1_batch_size: int = 400  # of stage 1
    stage1_epochs: int = 1  # of stage 1
    steps: int = 0  # 0: those epochs. Else the total number of optimiser steps; the last stage then counts ``epochs``
    # equal parts of its steps as its epochs (schedule, validation).
    stage1_share: float = 0.2  # stage 1's share of ``steps``
    validate_every: int = 0  # steps between validations in the last stage (0: once an epoch)
    patience: int = 2  # validations without gain before training stops (0: never)
    crop: float = 0.8  # augmentation, see :class:`methods.parts.augment.Augmentation`
    flip: bool = True  # augmentation
    jitter: float = 0.4  # augmentation
    fast: bool = True  # the exact speed-ups of docs/methods.md. False is the plain path with the same numbers

    def __post_init__(self) -> None:
        if self.units == "none" and not self.simulator:
            raise ValueError("pros: units=none with simulator=False leaves no prompts; change one of the two")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"pros: dropout {self.dropout} is not in [0, 1)")

    @classmethod
    def official(cls) -> ProSConfig:
        """Every switch as in the official code."""
        return cls(**SETTINGS)

    @property
    def augmentation(self) -> Augmentation:
        """What training does to images."""
        return Augmentation(self.crop, self.flip, self.jitter)

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kinds of prompt in the image sequence, in its order."""
        return {"both": ("domain", "class"), "domain": ("domain",)}.get(self.units, ("class",))


class ProS(TwoStageMethod):
    """Prompting to simulate: prompt units, then a simulator that writes the prompts of unseen domains and classes."""

    card = read_card("pros")
    Config = ProSConfig
    version = 2  # 2: the simulator's first block sums the gradients of shared tokens in another order
    backbone: ClipBackbone
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {}, "official": SETTINGS}
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
    random_init, random_batches, random_augment, random_dropout = range(4)  # numbers of the random generators
    _model: ProSModel | None = None

    @property
    def model(self) -> ProSModel:
        """The trained parts; raises :class:`~methods.interface.NotFittedError` before ``fit`` or ``load``."""
        return self.fitted(self._model)

    # --- training ---

    def stages(self) -> list[Stage]:
        """Prompt units (if there are any), then the simulator (unless it is left out)."""
        config, rate = self.config, self.config.learning_rate
        epochs = config.epochs if config.steps else config.stage1_epochs
        first = Stage(1, "prompt units", config.stage1_epochs, config.stage1_batch_size, rate, validations=epochs)
        second = Stage(2, "simulator", config.epochs, config.batch_size, rate, validations=config.epochs)
        return [*([first] if config.units != "none" else []), *([second] if config.simulator else [])]

    def build(self, class_names: Sequence[str], domain_names: Sequence[str], *, seed: int) -> None:
        """Untrained parts for these training classes and domains."""
        self.class_names, self.domain_names = tuple(class_names), tuple(domain_names)
        generator = seeded(seed, self.random_init)
        self._model = ProSModel(self.backbone, self.config, len(domain_names), len(class_names), generator)

    def parameters(self) -> dict[str, nn.Parameter]:
        """All parameters of :class:`ProSModel`."""
        return dict(self.model.named_parameters())

    def stage_parameters(self, stage: int) -> dict[str, nn.Parameter]:
        """What a stage trains, by name."""
        return self.model.stage_parameters(stage)

    def stage_loss(self, stage: int, data: TrainingData, seed: int) -> Callable[[Batch], Tensor]:
        """Loss (3) of a batch; the texts of both stages are those of the training classes."""
        prompts = self.prompts(self.class_names)
        process = (rank(),) if rank() else ()  # processes that train together drop different values

        def loss(batch: Batch) -> Tensor:
            generator = seeded(seed, self.random_dropout, batch.step, *process)
            dropout = torch.Generator(self.device).manual_seed(generator.initial_seed())
            own = {"domain": batch.domains, "class": batch.classes}
            return self.model.loss(stage, batch.pixels, own, prompts, dropout)

        return loss

    def prompts(self, names: Sequence[str]) -> PromptTemplate:
        """The texts of these classes, with room for the learned context."""
        return PromptTemplate.build(self.backbone, names, self.config.text_template, self.config.context_tokens)

    # --- inference ---

    @torch.no_grad()
    def encode_raw(self, pixels: Tensor) -> Tensor:
        """Image features ``[B, E]`` before normalisation, which the official evaluation ranks."""
        normalized = self.backbone.normalize(pixels.to(self.device), self.config.test_statistics)
        with self.backbone.autocast():
            return self.model.inference_features(normalized)

    @torch.no_grad()
    def encode_classes(self, names: Sequence[str]) -> Tensor:
        """Normalised text features ``[C, E]`` of any class names with the learned context."""
        return F.normalize(self.model.text_features(self.prompts(names)), dim=-1)

    # --- state ---

    def learned_tensors(self) -> Mapping[str, Tensor]:
        """All parameters of :class:`ProSModel`, by name."""
        return self.parameters()

    def prepare_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Build the model for as many units as the checkpoint has, unless there is one already."""
        sizes = len(tensors["domain_units"]), len(tensors["class_units"])
        model = self._model
        if model is None or (len(model.domain_units), len(model.class_units)) != sizes:
            self._model = ProSModel(self.backbone, self.config, *sizes, seeded(0))
