"""SRE-CLIP: semantic relation-enhanced CLIP adapter (Yu et al., 2025). docs/methods.md, SRE-CLIP.

Made for domain-adaptive zero-shot learning: labelled source images of the seen classes, unlabelled target images of
seen and unseen classes, the names of all of them.

1. **Image branch.** The frozen CLIP feature z passes an attention adapter: e(z) = normalise(softmax(Q K^T / sqrt(d)) V
   + V(z)). Keys and values come from the batch in training, and from stored training images afterwards.
2. **Prototype branch.** Classes and their WordNet ancestors are the nodes of a graph, each the mean CLIP text embedding
   of its synonyms. A graph network of two layers and a linear residual projection make the class prototypes W of them.
3. **Losses.** Source: cross-entropy of e(z) W^T / tau; the structure loss L_pair (the graph network must not reverse
   the order of distances between classes); the semantic relation structure L_srs (an image's cosines with all
   prototypes are those of its class); the alignment retention L_align (text embeddings pass the adapter and land on
   their prototypes). Target: entropy; a memory of past features that spreads the posteriors; seen-unseen balance.

Trained: adapter, graph network, residual projection. CLIP is frozen and no part of it runs inside a training step.
Where the released code differs: methods/cards/sre_clip.toml; the code of those variants: methods/official/sre_clip.py.

Shapes: B images, C classes (seen and unseen), N graph nodes, n nodes within two steps of a class, E embedding width of
CLIP, F width of a node's vector (E, unless the nodes are word vectors), d width of adapter and prototypes, P patches,
R stored reference images.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.cards import read_card
from methods.interface import FitReport, Images, Log, Method, TrainingData
from methods.official import sre_clip as official
from methods.parts.backbone import Backbone, ClipBackbone, PromptBackbone
from methods.parts.bounds import Bound
from methods.parts.capabilities import Capability
from methods.parts.feature_cache import frozen_values, image_features
from methods.parts.losses import mean_entropy
from methods.parts.senses import WordNetError
from methods.parts.word_graph import (
    Field,
    GraphSource,
    SenseChoice,
    WordGraph,
    build_graph,
    extend_graph,
    receptive_field,
    text_vectors,
    wordnet_path,
)
from methods.plain import sre_clip as plain
from methods.training.batches import batches, target_batches
from methods.training.loop import budget, count_parameters, run_stage, seeded

TEMPLATE = "a photo of a {}"
PAPER_STEPS = 3000
LAYERS = 2  # of the graph network

# --- image branch -----------------------------------------------------------------------------------------------------


class AttentionAdapter(nn.Module):
    """softmax(Q K^T / sqrt(d)) V + V(z), with Q, K, V linear maps E -> d."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(features, width) for _ in range(3))

    def forward(self, z: Tensor, context: Tensor | None) -> Tensor:
        """Features z [B, E] that attend to ``context`` -> [B, d], not normalised.

        ``context``: [R, E] the same for all (z itself: attention over the batch), [B, P, E] each image's own, or None.
        """
        values: Tensor = self.v(z)
        if context is None:
            return values
        scale = 1 / math.sqrt(values.shape[1])
        queries, keys = self.q(z), self.k(context)
        mixed = values if context is z else self.v(context)
        if context.ndim == 2:
            return (scale * queries @ keys.T).softmax(dim=-1) @ mixed + values
        attention = (scale * torch.einsum("bd,bpd->bp", queries, keys)).softmax(dim=-1)
        return torch.einsum("bp,bpd->bd", attention, mixed) + values


# --- prototype branch -------------------------------------------------------------------------------------------------


class PrototypeBranch(nn.Module):
    """H1 = LeakyReLU(Ahat X W1 + b1), H2 = Ahat H1 W2 + b2, W = normalise(H2 + X R), R the residual projection.

    Only the nodes within two steps of a class are computed, each as far as the classes need it: the same numbers.
    """

    def __init__(self, config: SreClipConfig, inputs: int) -> None:
        from methods.parts.propagation import Linear, Propagation  # a slow import, needed once a fit starts

        super().__init__()
        self.dropout = config.dropout
        self.propagate = Propagation()
        self.layer1 = Linear(inputs, config.width) if config.gcn else None
        self.layer2 = Linear(config.width, config.width) if config.gcn else None
        self.residual = Linear(inputs, config.width, bias=False) if config.residual else None

    def forward(self, vectors: Tensor, field: Field, dropout: torch.Generator | None = None) -> Tensor:
        """Node vectors X [n, F] of ``field.nodes`` -> normalised prototypes [C, d]; ``dropout`` in training only."""
        outputs: list[Tensor] = []
        if self.layer1 is not None:
            hidden = F.leaky_relu(self.graph_layer(1, vectors, field, dropout), 0.2)
            outputs.append(self.graph_layer(2, hidden, field, dropout))
        if self.residual is not None:
            outputs.append(self.residual(vectors[: field.sizes[0]]))
        return F.normalize(torch.stack(outputs).sum(dim=0), dim=-1)

    def graph_layer(self, layer: int, hidden: Tensor, field: Field, dropout: torch.Generator | None = None) -> Tensor:
        """Layer 1 or 2 before its nonlinearity, at the nodes that the next layer reads."""
        linear: Any = self.layer1 if layer == 1 else self.layer2
        rows, count = field.sizes[LAYERS - layer], field.counts[LAYERS - layer]
        if dropout is not None and self.dropout > 0:
            keep = torch.rand(hidden.shape, generator=dropout) >= self.dropout
            hidden = hidden * keep.to(hidden.device, non_blocking=True) / (1 - self.dropout)
        received = self.propagate(hidden, field.messages[:, :count], field.weights[:count], rows)
        output: Tensor = linear(received)  # Ahat (X W) = (Ahat X) W
        return output


# --- losses -----------------------------------------------------------------------------------------------------------


def pair_loss(before: Tensor, after: Tensor) -> Tensor:
    """L_pair: distances [R, C] of C classes to R classes before and after the graph network -> scalar.

    The mean of relu(after[r, i] - after[r, j]) over every row r and every pair with before[r, i] < before[r, j]; NaN
    without such a pair. :func:`methods.plain.sre_clip.pair_loss` computes just that, in C^2 steps a row. This takes
    C log C: a class's distance enters the sum once with each pair that is reversed, as often more with plus than with
    minus as the class rose in the order of distances, so that the sum is that of
    after[r, i] * (place of i in the order after - place of i in the order before).
    """
    places = torch.arange(before.shape[1], device=before.device)
    sorted_after, order = after.sort(dim=1)
    sorted_before, back = before.gather(1, order).sort(dim=1, stable=True)  # equal before: in the order after
    place_before = torch.empty_like(back).scatter_(1, back, places.expand_as(back).contiguous())
    compared = torch.searchsorted(sorted_before, sorted_before).sum()  # pairs with before[r, i] < before[r, j]
    return (sorted_after * (places - place_before)).sum() / compared


def srs_loss(cosines: Tensor, prototypes: Tensor, classes: Tensor) -> Tensor:
    """L_srs: mean squared error between cos(e, W) [B, C] and cos(W_y, W), y the ``classes`` [B] of the images."""
    return F.mse_loss(cosines, prototypes[classes] @ prototypes.T)


def balance_loss(posteriors: Tensor, unseen: Tensor, share: float) -> Tensor:
    """m + c^2 / m: m the mean mass of ``posteriors`` [B, C] on the ``unseen`` classes (a mask [C], or their numbers),
    c their expected share."""
    mass = posteriors[:, unseen].sum(dim=-1).mean()
    return mass + share**2 / mass


class FeatureMemory:
    """The store of the memory term: the last rows e / tau [at most ``capacity``, d], without gradients."""

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.rows: Tensor | None = None
        self.pointer = 0

    def push(self, rows: Tensor) -> bool:
        """Store a batch [B, d]; True if the store was full before (the memory and balance terms then apply)."""
        rows = rows.detach()[-self.capacity :]
        if self.rows is None or len(self.rows) < self.capacity:
            self.rows = (rows if self.rows is None else torch.cat([self.rows, rows]))[: self.capacity]
            return False
        places = torch.arange(self.pointer, self.pointer + len(rows), device=rows.device)
        self.rows = self.rows.index_copy(0, places % self.capacity, rows)
        self.pointer = (self.pointer + len(rows)) % self.capacity
        return True


Memory = FeatureMemory | official.SurplusMemory


class SreClipModel(nn.Module):
    """What SRE-CLIP trains, on frozen features: both branches and the losses between them.

    ``features``: E. ``vectors`` [n, F]: node vectors of ``field.nodes``, classes first. ``seen`` [C]: classes with
    labelled images. ``texts`` [C, E]: the classes' text embeddings, for L_align. ``generator``: of the first weights.
    """

    def __init__(
        self,
        config: SreClipConfig,
        features: int,
        vectors: Tensor,
        field: Field,
        seen: Tensor,
        texts: Tensor | None,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.config, self.vectors, self.field, self.seen, self.texts = config, vectors, field, seen, texts
        self.adapter = AttentionAdapter(features, config.width)
        self.prototype_branch = PrototypeBranch(config, vectors.shape[1])
        for parameter in self.parameters():  # Glorot, zero biases: the paper names no initialisation
            bound = math.sqrt(6 / sum(parameter.shape)) if parameter.ndim > 1 else 0.0
            with torch.no_grad():
                parameter.uniform_(-bound, bound, generator=generator)
        residual = self.prototype_branch.residual
        if residual is not None and config.residual_init == "values" and vectors.shape[1] == features:
            with torch.no_grad():  # W starts near e(text of the class)
                residual.weight.copy_(self.adapter.v.weight)
        classes = vectors[: len(seen)]
        self.before = torch.cdist(classes, classes)  # [C, C] distances before the graph network
        self._before_read: Tensor | None = None  # what the host has read: a step must not wait for a GPU
        self._unseen_read: tuple[int, Tensor, float] | None = None
        self.to(vectors.device)
        self.unseen()

    def embed(self, features: Tensor, reference: Tensor | None = None) -> Tensor:
        """e(z) of features [B, E], or [B, 1+P, E] with patches -> [B, d], L2-normalised.

        ``reference`` [R, E] or [B, 1, E] takes the place of the batch.
        """
        if features.ndim == 3:
            return F.normalize(self.adapter(features[:, 0], features[:, 1:]), dim=-1)
        context = {"batch": features, "patches": features.unsqueeze(1), "none": None}[self.config.attention]
        if reference is not None and self.config.attention == "batch":
            context = reference
        return F.normalize(self.adapter(features, context), dim=-1)

    def prototypes(self, dropout: torch.Generator | None = None) -> Tensor:
        """W [C, d] of the training classes, L2-normalised."""
        prototypes: Tensor = self.prototype_branch(self.vectors, self.field, dropout)
        return prototypes

    def logits(self, embedded: Tensor, prototypes: Tensor) -> Tensor:
        """e W^T / tau [B, C]."""
        return embedded @ prototypes.T / self.config.temperature

    def source_terms(
        self, features: Tensor, labels: Tensor, prototypes: Tensor, pairs: torch.Generator | None = None
    ) -> dict[str, Tensor]:
        """Loss terms of labelled images, unweighted: features [B, E] (or [B, 1+P, E]), labels [B], W [C, d].

        * ``classification``: cross-entropy of e W^T / tau;
        * ``structure``: L_pair, or what ``config.structure`` names;
        * ``srs``: L_srs with each image's label;
        * ``align``: L_align, cross-entropy of e(t_c) W^T / tau over all classes c, t_c their text embeddings.
        """
        config, logits = self.config, self.logits(self.embed(features), prototypes)
        terms = {"classification": F.cross_entropy(logits, labels)}
        if config.structure != "none":
            terms["structure"] = self.structure_loss(prototypes, pairs)
        if config.srs_weight:
            classes = labels if config.srs_class == "label" else logits.argmax(dim=-1)
            terms["srs"] = srs_loss(self.srs_scores(logits), prototypes, classes)
        if config.align_weight:
            assert self.texts is not None
            aligned = self.logits(self.embed(self.texts), prototypes)
            terms["align"] = F.cross_entropy(aligned, torch.arange(len(aligned), device=aligned.device))
        return terms

    def target_terms(self, features: Tensor, prototypes: Tensor, memory: Memory) -> dict[str, Tensor]:
        """Loss terms of unlabelled images, unweighted; stores their features. p is the softmax of e W^T / tau.

        * ``entropy``: mean entropy of p, W detached;
        * ``memory``: minus the entropy of the mean p of the stored features, once the store is full;
        * ``balance``: m + c^2 / m, m the mean of p's mass on the unseen classes (none: left out), when the store is;
        * ``target_srs``: L_srs with the arg-max class.
        """
        config, embedded = self.config, self.embed(features)
        terms = {"entropy": mean_entropy(self.logits(embedded, prototypes.detach()))}
        full = self.remember(embedded, memory)
        trained = prototypes.detach() if config.target_gradients == "none" else prototypes
        logits = self.logits(embedded, trained)
        if full and memory.rows is not None:
            mean_posterior = (memory.rows @ trained.T).softmax(dim=-1).mean(dim=0)
            terms["memory"] = torch.special.xlogy(mean_posterior, mean_posterior).sum()
            unseen, part = self.unseen()
            if len(unseen):
                terms["balance"] = balance_loss(logits.softmax(dim=-1), unseen, config.unseen_share or part)
        if config.target_srs_weight:
            terms["target_srs"] = srs_loss(self.srs_scores(logits), trained, logits.argmax(dim=-1))
        return terms

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """Weighted sum of loss terms."""
        weights = self.config.weights
        return torch.stack([weights[name] * value for name, value in terms.items()]).sum()

    def structure_loss(self, prototypes: Tensor, pairs: torch.Generator | None = None) -> Tensor:
        """L_pair between the distances ``before`` and those of the prototypes, or a variant of the released code.

        ``pairs``: shuffles the classes for the official list of pairs.
        """
        config, before, after = self.config, self.before, torch.cdist(prototypes, prototypes)
        if config.structure in official.UNUSED_STRUCTURES:
            return official.UNUSED_STRUCTURES[config.structure](before, after)
        half, diagonal = config.pair_list == "half", config.pair_reading == "diagonal"
        if half and diagonal:  # few pairs, and which ones the host knows
            before = self._before_on_host()
        if half or diagonal:
            before, after = official.compared_distances(before, after, pairs if half else None, diagonal=diagonal)
        if half:
            value = plain.pair_loss(before, after, half=True)
        else:
            value = pair_loss(before, after) if config.fast else plain.pair_loss(before, after)
        return value if config.empty_pairs == "nan" else value.nan_to_num(nan=0.0)

    def unseen(self) -> tuple[Tensor, float]:
        """Numbers of the classes without labelled images, and their share of all; read again only after a change."""
        if self._unseen_read is None or self._unseen_read[0] != self.seen._version:
            unseen = ~self.seen
            self._unseen_read = self.seen._version, torch.nonzero(unseen).flatten(), float(unseen.float().mean())
        return self._unseen_read[1:]

    def _before_on_host(self) -> Tensor:
        if self._before_read is None:
            self._before_read = self.before.cpu()
        return self._before_read

    def srs_scores(self, logits: Tensor) -> Tensor:
        """The scores [B, C] that L_srs compares: cosines, or the logits themselves (official)."""
        return logits if self.config.srs_scale == "logits" else logits * self.config.temperature

    def remember(self, embedded: Tensor, memory: Memory) -> bool:
        """Store e / tau of target images; True if the store was full before."""
        return memory.push(embedded / self.config.temperature)

    def optimizer(self) -> torch.optim.Optimizer:
        """SGD with Nesterov momentum; group ``scale`` 1 for the adapter and ``gcn_rate`` for the prototype branch."""
        config = self.config
        groups = [
            {"params": list(self.adapter.parameters()), "scale": 1.0},
            {"params": list(self.prototype_branch.parameters()), "scale": config.gcn_rate},
        ]
        rate, momentum, decay = config.learning_rate, config.momentum, config.weight_decay
        return torch.optim.SGD(groups, lr=rate, momentum=momentum, weight_decay=decay, nesterov=True, fused=True)


# --- config -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class SreClipConfig:
    """Settings of SRE-CLIP; the defaults are the paper's. :meth:`official` gives those of the released code."""

    bounds: ClassVar = {"momentum": Bound(above=0, high=1)}

    width: int = 1024  # d, of the adapter and the prototypes
    attention: Literal["batch", "patches", "none"] = "batch"  # what the adapter attends to (patches: the image's own)
    eval_attention: Literal["reference", "self", "batch"] = "reference"  # what it attends to in use; official: batch
    reference_size: int = 256  # R, training images stored for ``eval_attention`` ``reference``
    unit_features: bool = True  # features are L2-normalised before the adapter; official: False

    gcn: bool = True  # the prototype branch has the graph network
    residual: bool = True  # and the residual projection R; official: False
    residual_init: Literal["values", "random"] = "values"  # ``values``: R starts as a copy of V (our choice), near CLIP
    graph: GraphSource = "wordnet"  # the edges: ``wordnet``, ``none``, or ``random`` (drawn from the run's seed)
    synonyms: bool = True  # False: a node has the text of its first name alone; official: False
    class_vectors: Literal["text", "words"] = "text"  # X: text embeddings; official: word vectors (``words``)
    word_vectors: str = ""  # text file of word vectors (a line: word, numbers); none: the mean CLIP token embedding
    senses: SenseChoice = "context"  # of names without a stated synset: nearest to the other classes'; official: first
    dropout: float = 0.5  # on the input of both graph layers

    temperature: float = 0.05  # tau
    structure: Literal["pair", "l2", "entropy", "none"] = "pair"  # L_pair; ``l2``, ``entropy``: unused, official code
    structure_weight: float = 100.0  # of ``structure``
    srs_weight: float = 1.0  # of L_srs on source images (1 is our choice); official: 0.01
    align_weight: float = 1.0  # of L_align (1 is our choice); official: 0, there is none
    entropy_weight: float = 3.0  # of the entropy of target posteriors
    memory_weight: float = 5.0  # of the memory term
    balance_weight: float = 5.0  # of the balance term
    target_srs_weight: float = 1.0  # of L_srs on target images (our choice); official: 0
    source_weight: float = 1.5  # of the source loss beside the target loss
    memory: int = 768  # capacity of the store (the number of target images if that is smaller)
    unseen_share: float = 0.0  # c of the balance term; 0: unseen / all classes. Paper: 0.3 (I2AwA), 0.82 (I2WebV)
    target_gradients: Literal["memory", "none"] = "memory"  # ``none``: memory and balance do not train the prototypes

    pair_reading: Literal["submatrix", "diagonal"] = "submatrix"  # distances that L_pair compares; official: diagonal
    pair_list: Literal["all", "half"] = "all"  # pairs that L_pair compares; official: half
    empty_pairs: Literal["zero", "nan"] = "zero"  # L_pair where nothing is left to compare; as released: nan
    srs_scale: Literal["cosine", "logits"] = "cosine"  # what L_srs compares with cosines; official: logits
    srs_class: Literal["label", "predicted"] = "label"  # y of L_srs on source images; official: predicted
    memory_surplus: bool = False  # the store may grow beyond its capacity; official: True

    learning_rate: float = 1e-3  # of SGD, for the adapter
    gcn_rate: float = 5.0  # the prototype branch learns at ``learning_rate`` times this
    momentum: float = 0.9  # of SGD (Nesterov)
    weight_decay: float = 1e-4  # of SGD
    warmup_share: float = 0.2  # share of the steps without target losses (paper: 600 of 3000)
    decay: float = 1e-3  # after warm-up, the rate is times (1 + decay * t)^-0.75, t in 3000ths of the budget
    batch_size: int = 256  # source images in a step, and as many target images
    epochs: int = 0  # passes over the source images; 0: ``steps`` decides
    steps: int = 0  # optimiser steps; 0: those of ``epochs``, and without ``epochs`` the paper's 3000
    validate_every: int = 0  # steps between validations; 0: once an epoch, at most 30 times
    patience: int = 0  # validations without gain before training stops; 0: never
    fast: bool = True  # False: frozen features anew at every step, L_pair by comparing all pairs; the same numbers

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(SreClipConfig).items():
            if get_origin(kind) is Literal and getattr(self, name) not in get_args(kind):
                raise ValueError(f"sre_clip: {name} {getattr(self, name)!r} is not one of {', '.join(get_args(kind))}")
        if not (self.gcn or self.residual):
            raise ValueError("sre_clip: gcn=False with residual=False leaves no prototypes; keep one of them")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"sre_clip: dropout {self.dropout} is not in [0, 1)")

    @classmethod
    def official(cls) -> SreClipConfig:
        """Every switch as in the released code."""
        return cls(**official.SETTINGS)

    @property
    def weights(self) -> dict[str, float]:
        """Weight of every loss term, by its name."""
        terms = ("structure", "srs", "align", "entropy", "memory", "balance", "target_srs")
        return {"classification": 1.0, **{name: getattr(self, f"{name}_weight") for name in terms}}


# --- training ---------------------------------------------------------------------------------------------------------

Features = Callable[[Tensor], Tensor]  # frozen features of a set's images by their index [B]
_INIT, _SOURCE, _TARGET, _DROPOUT, _PAIRS, _REFERENCE = range(6)  # what a random generator is for


def learning_rate(config: SreClipConfig, step: int, steps: int) -> float:
    """Rate of the adapter: constant during warm-up, then (1 + decay * t)^-0.75, t in 3000ths of the budget."""
    after = max(0, step - round(config.warmup_share * steps)) * PAPER_STEPS / steps
    return config.learning_rate * (1 + config.decay * after) ** -0.75


class SreClip(Method):
    """An attention adapter on frozen CLIP features and class prototypes from a WordNet graph."""

    card = read_card("sre_clip")
    Config = SreClipConfig
    needs = "features"
    reads_synsets = True
    one_process = "its images attend to all others of their batch, and train on stored features in minutes"
    fact_names = ("class_names", "synsets", "senses", "seed", "sizes")
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {}, "official": official.SETTINGS}
    ablations: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "no_gcn": {"gcn": False},
        "no_residual": {"residual": False},
        "residual_random": {"residual_init": "random"},
        "no_attention": {"attention": "none"},
        "patch_attention": {"attention": "patches"},
        "eval_self": {"eval_attention": "self"},
        "eval_batch": {"eval_attention": "batch"},
        "no_srs": {"srs_weight": 0.0, "target_srs_weight": 0.0},
        "srs_0.1": {"srs_weight": 0.1, "target_srs_weight": 0.1},
        "srs_10": {"srs_weight": 10.0, "target_srs_weight": 10.0},
        "no_align": {"align_weight": 0.0},
        "no_structure": {"structure": "none"},
        "structure_diagonal": {"pair_reading": "diagonal"},
        "graph_none": {"graph": "none"},
        "graph_random": {"graph": "random"},
        "no_synonyms": {"synonyms": False},
    }

    def __init__(
        self, backbone: Backbone, config: SreClipConfig | None = None, device: str | torch.device | None = None
    ) -> None:
        super().__init__(backbone, config, device)
        self.class_names: tuple[str, ...] = ()
        self.synsets: dict[str, str] = {}  # stated synset of a class name
        self.senses: SenseChoice = self.config.senses  # how those of other names are found
        self.seed = 0  # of a random graph
        self.sizes: tuple[int, ...] = ()  # of the part of the graph that the classes depend on
        self._model: SreClipModel | None = None
        self._reference: Tensor | None = None
        self._graph: WordGraph | None = None
        self._encoded: dict[str, Tensor] = {}  # class embeddings of the current weights

    @classmethod
    def needs_of(cls, config: SreClipConfig) -> Capability:
        """``tokens`` for attention to patches, ``styles`` for token embeddings as word vectors, else ``features``."""
        if config.attention == "patches":
            return "tokens"
        return "styles" if config.class_vectors == "words" and not config.word_vectors else cls.needs

    @property
    def model(self) -> SreClipModel:
        """The trained parts; raises ``NotFittedError`` before ``fit`` or ``load``."""
        return self.fitted(self._model)

    def fit(self, data: TrainingData, *, seed: int, log: Log) -> FitReport:
        """Source losses during warm-up, then target losses and 1.5 times the source losses.

        Without target images (UCDR family) the source losses fill the whole budget.
        """
        config, report, start = self.config, FitReport(), time.perf_counter()
        self.build(data, seed)
        model, images = self.model, len(data.images)
        steps = budget(config.steps, config.epochs, images, config.batch_size) if config.epochs else config.steps
        steps = steps or PAPER_STEPS
        source, source_stream = self._features_of(data.images), batches(data, config.batch_size, seeded(seed, _SOURCE))
        labels, sets = data.labels.to(self.device), [(images, source)]
        target = self._features_of(data.target) if data.has_target else None
        if target is not None:
            sets.append((len(data.target), target))
            target_stream = target_batches(len(data.target), config.batch_size, seeded(seed, _TARGET))
            store = official.SurplusMemory if config.memory_surplus else FeatureMemory
            memory = store(min(config.memory, len(data.target)))
        self._reference = self._choose_reference(sets, seed)

        def loss(step: int) -> Tensor:
            self._encoded.clear()  # the weights have changed
            index = next(source_stream)
            prototypes = model.prototypes(seeded(seed, _DROPOUT, step))
            terms = model.source_terms(
                source(index), labels[index.to(self.device, non_blocking=True)], prototypes, seeded(seed, _PAIRS, step)
            )
            source_loss = model.total(terms)
            if target is None:
                return source_loss
            features = target(next(target_stream))
            if step < round(config.warmup_share * steps):
                with torch.no_grad():
                    model.remember(model.embed(features), memory)
                return source_loss
            target_loss = model.total(model.target_terms(features, prototypes, memory))
            return target_loss + config.source_weight * source_loss

        run_stage(
            self,
            data,
            report,
            log,
            stage="adapter",
            steps=steps,
            optimizers=[model.optimizer()],
            loss=loss,
            learning_rate=lambda step: learning_rate(config, step, steps),
            validate_every=config.validate_every
            or max(math.ceil(images / min(config.batch_size, images)), math.ceil(steps / 30)),
            patience=config.patience,
        )
        self._encoded.clear()
        report.trainable_parameters = count_parameters(list(model.parameters()))
        report.seconds = time.perf_counter() - start
        return report

    def build(self, data: TrainingData, seed: int) -> None:
        """Graph, node vectors and fresh weights for the classes of ``data``."""
        known = data.synsets_published or self.config.senses == "context"
        self.class_names, self.synsets, self.seed = data.class_names, data.synsets if known else {}, seed
        self.senses, self._graph = self.config.senses, None
        self._encoded.clear()
        graph = self.graph
        field = receptive_field(graph.edges, graph.nodes, range(graph.classes), LAYERS)
        vectors, self.sizes = self._node_vectors(graph, field), field.sizes
        seen = torch.zeros(graph.classes, dtype=torch.bool, device=self.device)
        seen[data.labelled_classes.to(self.device)] = True
        texts = self._text_vectors(graph.words[: graph.classes]) if self.config.align_weight else None
        self._model = SreClipModel(
            self.config, self.backbone.embed_dim, vectors, field.to(self.device), seen, texts, seeded(seed, _INIT)
        )

    @property
    def graph(self) -> WordGraph:
        """The graph of the training classes; without a graph network, the classes alone."""
        if self._graph is None:
            source: GraphSource = self.config.graph if self.config.gcn else "none"
            self._graph = build_graph(self.class_names, self.synsets, source=source, seed=self.seed, choice=self.senses)
        return self._graph

    def _choose_reference(self, images: Sequence[tuple[int, Features]], seed: int) -> Tensor | None:
        """Features [R, E] of random images, as many from each set (number of images, features by index)."""
        if self.config.attention != "batch" or self.config.eval_attention != "reference":
            return None
        share, generator = self.config.reference_size // len(images), seeded(seed, _REFERENCE)
        return torch.cat([features(torch.randperm(count, generator=generator)[:share]) for count, features in images])

    # --- frozen inputs ---

    @torch.no_grad()
    def frozen_features(self, pixels: Tensor) -> Tensor:
        """CLIP's features of images: z [B, E], or with attention to patches all projected tokens [B, 1+P, E]."""
        pixels = pixels.to(self.device)
        if self.config.attention == "patches":
            return self._unit(self._tokens(pixels)["tokens"])
        return self._unit(self.backbone.encode_images(self.backbone.normalize(pixels)))

    def _tokens(self, pixels: Tensor) -> dict[str, Tensor]:
        assert isinstance(self.backbone, ClipBackbone)
        tokens = self.backbone.run_vision(self.backbone.image_tokens(self.backbone.normalize(pixels)))
        return {"tokens": self.backbone.readout(tokens)}

    def _unit(self, features: Tensor) -> Tensor:
        return F.normalize(features, dim=-1) if self.config.unit_features else features

    def _features_of(self, images: Images) -> Features:
        """Frozen features by index: from a table computed once, or anew at every call (``fast=False``)."""
        if not self.config.fast:
            return lambda index: self.frozen_features(images.pixels(index))
        if self.config.attention == "patches":
            table = frozen_values(self.backbone, "projected tokens", images, self._tokens)["tokens"]
        else:
            table = image_features(self.backbone, images)
        return lambda index: self._unit(table[index].to(self.device, non_blocking=True))

    def _node_vectors(self, graph: WordGraph, field: Field) -> Tensor:
        """X [n, F] of the nodes of a field, L2-normalised."""
        words = [graph.words[int(node)] for node in field.nodes]
        if self.config.class_vectors == "text":
            return self._text_vectors(words)
        assert isinstance(self.backbone, PromptBackbone)
        return official.word_vectors(self.backbone, [names[0] for names in words], self.config.word_vectors)

    def _text_vectors(self, words: Sequence[tuple[str, ...]]) -> Tensor:
        """Mean CLIP text embeddings of n nodes' synonyms, or of their first names -> [n, E], L2-normalised."""
        words = words if self.config.synonyms else [names[:1] for names in words]
        return text_vectors(self.backbone, words, TEMPLATE)

    @classmethod
    def files(cls, config: SreClipConfig) -> Mapping[str, Path]:
        """WordNet, and the file of word vectors if one is named."""
        paths = {"word_vectors": Path(config.word_vectors)} if config.word_vectors else {}
        with contextlib.suppress(WordNetError):  # fit raises it, with the fix
            paths["wordnet"] = wordnet_path()
        return paths

    # --- inference ---

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """e(z) ``[B, d]``."""
        features = self.frozen_features(pixels)
        reference = {"reference": self._reference, "self": features.unsqueeze(1), "batch": None}
        return self.model.embed(features, reference[self.config.eval_attention])

    @torch.no_grad()
    def encode_classes(self, names: Sequence[str]) -> Tensor:
        """Prototypes ``[C, d]`` of any class names.

        A name that was not in training gets the prototype of the training graph extended by it alone, so that it does
        not depend on the other ``names``; the prototypes of the training classes stay as they are.
        """
        if not self._encoded:
            self._encoded = dict(zip(self.class_names, self.model.prototypes(), strict=True))
        for name in names:
            if name not in self._encoded:
                graph, row = extend_graph(self.graph, name)
                field = receptive_field(graph.edges, graph.nodes, [row], LAYERS).to(self.device)
                self._encoded[name] = self.model.prototype_branch(self._node_vectors(graph, field), field)[0]
        return torch.stack([self._encoded[name] for name in names])

    def logit_scale(self) -> float:
        """1 / tau, as in training."""
        return 1.0 / self.config.temperature

    # --- state ---

    def learned_tensors(self) -> Mapping[str, Tensor]:
        """Weights of both branches, the node vectors and messages of the graph, the reference features."""
        model, field = self.model, self.model.field
        graph = {"nodes": field.nodes, "messages": field.messages, "message_weights": field.weights}
        state = {**model.state_dict(), "vectors": model.vectors, "seen": model.seen, **graph}
        return state if self._reference is None else {**state, "reference": self._reference}

    def prepare_state(self, tensors: Mapping[str, Tensor]) -> None:
        """A model for the classes and the graph of a checkpoint."""
        stored = {name: tensor.to(self.device) for name, tensor in tensors.items()}
        self._graph, self._reference = None, stored.get("reference")
        self._encoded.clear()
        field = Field(stored["nodes"], self.sizes, stored["messages"], stored["message_weights"])
        features = stored["adapter.q.weight"].shape[1]
        self._model = SreClipModel(
            self.config, features, stored["vectors"], field, stored["seen"], None, seeded(self.seed, _INIT)
        )

    def load_tensors(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """As :meth:`Method.load_tensors`; the oldest checkpoints have no ``senses`` and were trained with ``first``."""
        super().load_tensors(tensors, {"senses": "first", **facts})
