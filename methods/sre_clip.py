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
Where the released code differs: methods/cards/sre_clip.toml.

Shapes: B images, C classes (seen and unseen), N graph nodes, E embedding width of CLIP, F width of a node's vector
(E, unless the nodes are word vectors), d width of adapter and prototypes, P patches, R stored reference images.
"""

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
from torch_geometric.nn import Linear, MessagePassing

from methods.cards import read_card
from methods.interface import FitReport, Images, Log, Method, TrainingData
from methods.parts.backbone import Backbone
from methods.parts.bounds import Bound
from methods.parts.feature_cache import FeatureScope, frozen_values, image_features, process_cache
from methods.parts.losses import mean_entropy
from methods.parts.word_graph import (
    Field,
    GraphSource,
    SenseChoice,
    WordGraph,
    WordNetError,
    build_graph,
    extend_graph,
    read_word_vectors,
    receptive_field,
    wordnet_path,
)
from methods.training.batches import batches, target_batches
from methods.training.loop import budget, count_parameters, run_stage, seeded

_INIT, _SOURCE, _TARGET, _DROPOUT, _PAIRS, _REFERENCE = range(6)  # what a random generator is for
TEMPLATE = "a photo of a {}"
PAPER_STEPS = 3000
LAYERS = 2  # of the graph network

#: Where the released code does something else than the paper, as changes to the config.
OFFICIAL: dict[str, Any] = {
    "class_vectors": "words",
    "synonyms": False,
    "residual": False,
    "align_weight": 0.0,
    "pair_reading": "diagonal",
    "pair_list": "half",
    "srs_scale": "logits",
    "srs_class": "predicted",
    "srs_weight": 0.01,
    "target_srs_weight": 0.0,
    "memory_surplus": True,
    "eval_attention": "batch",
    "unit_features": False,
    "senses": "first",
}


@dataclass(frozen=True)
class SreClipConfig:
    """Settings of SRE-CLIP; the defaults are the paper's. :meth:`official` gives those of the released code.

    The method:

    * ``width``: d, of the adapter and the prototypes. ``temperature``: tau. ``dropout``: on the input of both graph
      layers. ``momentum``, ``weight_decay``: of SGD (Nesterov).
    * ``attention``: what the adapter attends to: ``batch``, the image's own ``patches``, or ``none`` (ablations).
    * ``eval_attention``: what takes the place of the batch after training: ``reference``, ``reference_size`` training
      images stored with the model; ``self``, the image alone; ``batch`` (released), its batch mates.
    * ``gcn``, ``residual``: parts of the prototype branch. ``residual_init``: ``values`` starts the residual projection
      as a copy of V, so that training begins near CLIP's own alignment of images and texts (our choice; the paper
      names no initialisation), or ``random``. ``graph``: the edges, ``wordnet``, ``none`` or ``random`` (drawn from the
      run's seed). ``synonyms``: False gives a node the text of its first name alone.
    * ``structure``: ``pair`` (L_pair), ``none``, or ``l2`` and ``entropy``, which the released code holds unused;
      ``structure_weight``: its weight. ``srs_weight``, ``target_srs_weight``: of L_srs on source and target.
      ``align_weight``: of L_align.
    * ``entropy_weight``, ``memory_weight``, ``balance_weight``: of the target terms; ``source_weight``: of the source
      loss beside them. ``memory``: capacity of the store (the target size if that is smaller).
    * ``unseen_share``: c of the balance term; 0 stands for unseen / all classes (paper: 0.3 on I2AwA, 0.82 on I2WebV).
    * ``warmup_share``: share of the steps without target losses. ``decay``: of the learning rate after it,
      (1 + decay * t)^-0.75, where t counts 3000ths of the budget.

    Where paper and released code differ:

    * ``class_vectors``: ``text``, or ``words``: word vectors from the text file ``word_vectors`` (a line: word,
      numbers), or, without a file, the mean CLIP token embedding of a name.
    * ``pair_reading``: ``submatrix`` or ``diagonal``. ``pair_list``: ``all`` or ``half``. ``empty_pairs``: the
      structure loss where nothing is left to compare, ``zero`` or ``nan``.
    * ``senses``: ``context``, hand-checked synsets and for other names the sense nearest to the other classes', or
      ``first``, the synsets that a data set is published with and for other names the commonest sense.
    * ``srs_scale``: ``cosine`` or ``logits``. ``srs_class``: ``label`` or ``predicted``, of source images.
    * ``unit_features``: whether features are L2-normalised before the adapter.
    * ``target_gradients``: whether the memory and balance terms train the prototypes (``memory``) or not (``none``).
    * ``memory_surplus``: the released bookkeeping of the store.

    Training:

    * ``learning_rate``: of the adapter; times ``gcn_rate`` for the prototype branch. ``batch_size``: images of the
      source, and as many of the target.
    * ``steps``: the budget; 0 for ``epochs`` over the source, and without those the paper's 3000 steps.
    * ``validate_every``: steps between validations (0: once an epoch, at most 30 times); ``patience``: validations
      without gain before training stops (0: never).
    * ``fast``: the exact speed-ups (frozen features once, not every step; L_pair by sorting). False is the plain path.
    """

    bounds: ClassVar = {"momentum": Bound(above=0, high=1)}
    width: int = 1024
    temperature: float = 0.05
    dropout: float = 0.5
    attention: Literal["batch", "patches", "none"] = "batch"
    eval_attention: Literal["reference", "self", "batch"] = "reference"
    reference_size: int = 256
    gcn: bool = True
    residual: bool = True
    residual_init: Literal["values", "random"] = "values"
    graph: GraphSource = "wordnet"
    synonyms: bool = True
    structure: Literal["pair", "l2", "entropy", "none"] = "pair"
    structure_weight: float = 100.0
    srs_weight: float = 1.0
    align_weight: float = 1.0
    entropy_weight: float = 3.0
    memory_weight: float = 5.0
    balance_weight: float = 5.0
    target_srs_weight: float = 1.0
    source_weight: float = 1.5
    memory: int = 768
    unseen_share: float = 0.0
    warmup_share: float = 0.2
    decay: float = 1e-3
    momentum: float = 0.9
    weight_decay: float = 1e-4
    class_vectors: Literal["text", "words"] = "text"
    word_vectors: str = ""
    pair_reading: Literal["submatrix", "diagonal"] = "submatrix"
    pair_list: Literal["all", "half"] = "all"
    empty_pairs: Literal["zero", "nan"] = "zero"
    srs_scale: Literal["cosine", "logits"] = "cosine"
    srs_class: Literal["label", "predicted"] = "label"
    unit_features: bool = True
    target_gradients: Literal["memory", "none"] = "memory"
    memory_surplus: bool = False
    senses: SenseChoice = "context"
    learning_rate: float = 1e-3
    gcn_rate: float = 5.0
    batch_size: int = 256
    epochs: int = 0
    steps: int = 0
    validate_every: int = 0
    patience: int = 0
    fast: bool = True

    def __post_init__(self) -> None:
        for name, kind in get_type_hints(SreClipConfig).items():
            if get_origin(kind) is Literal and getattr(self, name) not in get_args(kind):
                raise ValueError(f"sre_clip: {name} {getattr(self, name)!r} is not one of {', '.join(get_args(kind))}")
        if not (self.gcn or self.residual):
            raise ValueError("sre_clip: gcn=False with residual=False leaves no prototypes; keep one of them")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"sre_clip: dropout {self.dropout} is not in [0, 1)")

    @classmethod
    def official(cls) -> "SreClipConfig":
        """Every switch as in the released code."""
        return cls(**OFFICIAL)

    @property
    def weights(self) -> dict[str, float]:
        """Weight of every loss term, by its name."""
        return {
            "classification": 1.0,
            "structure": self.structure_weight,
            "srs": self.srs_weight,
            "align": self.align_weight,
            "entropy": self.entropy_weight,
            "memory": self.memory_weight,
            "balance": self.balance_weight,
            "target_srs": self.target_srs_weight,
        }


# --- image branch -----------------------------------------------------------------------------------------------------


class AttentionAdapter(nn.Module):
    """Q, K, V: linear maps E -> d; softmax(Q K^T / sqrt(d)) V + V(z)."""

    def __init__(self, features: int, width: int) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(features, width) for _ in range(3))

    def forward(self, z: Tensor, context: Tensor | None) -> Tensor:
        """Features z [B, E] that attend to ``context`` -> [B, d], not normalised.

        ``context``: [R, E] the same for all (z itself: attention over the batch), [B, P, E] each one's own, or None.
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


class Propagation(MessagePassing):
    """Ahat H: every node receives the weighted sum of its neighbours and of itself."""

    def __init__(self) -> None:
        super().__init__(aggr="add")

    def forward(self, hidden: Tensor, messages: Tensor, weights: Tensor, rows: int) -> Tensor:
        """``hidden`` [n, F], ``messages`` [2, M] (from, to), ``weights`` [M] -> the first ``rows`` nodes [rows, F]."""
        received: Tensor = self.propagate(messages, x=(hidden, None), weights=weights, size=(len(hidden), rows))
        return received

    def message(self, x_j: Tensor, weights: Tensor) -> Tensor:
        """What a neighbour sends."""
        return weights.unsqueeze(-1) * x_j


class PrototypeBranch(nn.Module):
    """H1 = LeakyReLU(Ahat X W1 + b1), H2 = Ahat H1 W2 + b2, W = normalise(H2 + R X), R the residual projection.

    Only the nodes within two steps of a class are computed, and only as far as the classes need them: the same numbers.
    """

    def __init__(self, config: SreClipConfig, inputs: int) -> None:
        super().__init__()
        self.dropout = config.dropout
        self.propagate = Propagation()
        self.layer1 = Linear(inputs, config.width) if config.gcn else None
        self.layer2 = Linear(config.width, config.width) if config.gcn else None
        self.residual = Linear(inputs, config.width, bias=False) if config.residual else None

    def graph_layer(self, layer: int, hidden: Tensor, field: Field, dropout: torch.Generator | None = None) -> Tensor:
        """Layer 1 or 2 before its nonlinearity, over the nodes that the next one needs."""
        linear: Any = self.layer1 if layer == 1 else self.layer2
        rows, count = field.sizes[LAYERS - layer], field.counts[LAYERS - layer]
        if dropout is not None and self.dropout > 0:
            keep = torch.rand(hidden.shape, generator=dropout) >= self.dropout
            hidden = hidden * keep.to(hidden.device) / (1 - self.dropout)
        received = self.propagate(hidden, field.messages[:, :count], field.weights[:count], rows)
        output: Tensor = linear(received)  # Ahat (X W) = (Ahat X) W
        return output

    def forward(self, vectors: Tensor, field: Field, dropout: torch.Generator | None = None) -> Tensor:
        """Node vectors [n, F] of ``field.nodes`` -> normalised prototypes [C, d]; ``dropout`` in training only."""
        outputs: list[Tensor] = []
        if self.layer1 is not None:
            hidden = F.leaky_relu(self.graph_layer(1, vectors, field, dropout), 0.2)
            outputs.append(self.graph_layer(2, hidden, field, dropout))
        if self.residual is not None:
            outputs.append(self.residual(vectors[: field.sizes[0]]))
        return F.normalize(torch.stack(outputs).sum(dim=0), dim=-1)


# --- losses -----------------------------------------------------------------------------------------------------------


def pair_loss(before: Tensor, after: Tensor, *, half: bool = False, by_sorting: bool = True) -> Tensor:
    """L_pair: distances [R, C] of C classes to R classes before and after the graph network -> scalar.

    Over every row r and every pair with before[r, i] < before[r, j]: the mean of relu(after[r, i] - after[r, j]). NaN
    if there is no such pair. ``half``: only pairs with i + j < C.

    ``by_sorting`` (without ``half``) takes C log C instead of C^2 steps a row. Over all pairs, a class enters the sum
    once with each pair that is reversed: as often more with plus than with minus as it rose in the order of distances,
    so that the sum is that of after[r, i] * (place of i after - place of i before).
    """
    classes = before.shape[1]
    places = torch.arange(classes, device=before.device)
    if by_sorting and not half:
        sorted_after, order = after.sort(dim=1)
        sorted_before, back = before.gather(1, order).sort(dim=1, stable=True)  # equal before: in the order after
        place_before = torch.empty_like(back).scatter_(1, back, places.expand_as(back).contiguous())
        closer = torch.searchsorted(sorted_before, sorted_before).sum()  # pairs in order before
        return (sorted_after * (places - place_before)).sum() / closer
    compared = before.unsqueeze(2) < before.unsqueeze(1)
    if half:
        compared &= places.unsqueeze(1) + places < classes
    return (after.unsqueeze(2) - after.unsqueeze(1))[compared].relu().mean()


def l2_loss(before: Tensor, after: Tensor) -> Tensor:
    """Squared difference of two distance matrices [C, C], each divided by its mean (released, unused)."""
    return F.mse_loss(after / after.mean(), before / before.mean())


def entropy_loss(before: Tensor, after: Tensor) -> Tensor:
    """KL divergence between the rows' softmax of closeness, before and after [C, C], summed (released, unused)."""
    before, after = before / before.mean(), after / after.mean()
    target, guess = before.max() - before, after.max() - after
    return F.kl_div(guess.log_softmax(dim=1), target.softmax(dim=1), reduction="sum")


class FeatureMemory:
    """The store of the memory term: past rows e / tau [at most ``capacity``, d], without gradients.

    ``surplus``: the released bookkeeping. While the store is short, whole batches are appended; then rows from a
    pointer on are replaced, and the pointer returns to 0 if the next batch would not fit below the capacity.
    """

    def __init__(self, capacity: int, *, surplus: bool = False) -> None:
        self.capacity = capacity
        self.surplus = surplus
        self.rows: Tensor | None = None
        self.pointer = 0

    def push(self, rows: Tensor) -> bool:
        """Store a batch [B, d]; True if the store was full before (the memory and balance terms then apply)."""
        rows = rows.detach() if self.surplus else rows.detach()[-self.capacity :]
        if self.rows is None or len(self.rows) < self.capacity:
            kept = rows if self.rows is None else torch.cat([self.rows, rows])
            self.rows = kept if self.surplus else kept[: self.capacity]
            return False
        places = torch.arange(self.pointer, self.pointer + len(rows), device=rows.device)
        self.rows = self.rows.index_copy(0, places if self.surplus else places % self.capacity, rows)
        self.pointer += len(rows)
        if not self.surplus:
            self.pointer %= self.capacity
        elif self.pointer + len(rows) > self.capacity:
            self.pointer = 0
        return True


class SreClipModel(nn.Module):
    """What SRE-CLIP trains, on frozen features: both branches and the losses between them.

    ``vectors`` [n, F]: node vectors of ``field.nodes``, classes first. ``seen`` [C]: classes with labelled images.
    ``texts`` [C, E]: the classes' text embeddings, for L_align.
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
        self.config, self.field, self.texts, self.seen = config, field, texts, seen
        self.vectors = vectors
        self.adapter = AttentionAdapter(features, config.width)
        inputs = vectors.shape[1]
        self.prototype_branch = PrototypeBranch(config, inputs)
        for parameter in self.parameters():  # Glorot, zero biases: the paper names no initialisation
            bound = math.sqrt(6 / sum(parameter.shape)) if parameter.ndim > 1 else 0.0
            with torch.no_grad():
                parameter.uniform_(-bound, bound, generator=generator)
        if self.prototype_branch.residual is not None and config.residual_init == "values" and inputs == features:
            with torch.no_grad():  # W starts near e(text of the class)
                self.prototype_branch.residual.weight.copy_(self.adapter.v.weight)
        classes = vectors[: len(seen)]
        self.before = torch.cdist(classes, classes)  # [C, C] distances before the graph network
        self.to(vectors.device)

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

    def structure_loss(self, prototypes: Tensor, pairs: torch.Generator | None = None) -> Tensor:
        """The structure term between ``before`` and the distances of the prototypes; ``pairs`` shuffles the classes."""
        config, before, after = self.config, self.before, torch.cdist(prototypes, prototypes)
        if config.structure == "l2":
            return l2_loss(before, after)
        if config.structure == "entropy":
            return entropy_loss(before, after)
        half = config.pair_list == "half"
        if half and pairs is not None:
            order = torch.randperm(len(before), generator=pairs).to(before.device)
            before, after = before[order][:, order], after[order][:, order]
        if config.pair_reading == "diagonal":
            before, after = before.diagonal().unsqueeze(0), after.diagonal().unsqueeze(0)
        value = pair_loss(before, after, half=half, by_sorting=config.fast)
        return value if config.empty_pairs == "nan" else value.nan_to_num(nan=0.0)

    def srs_loss(self, logits: Tensor, prototypes: Tensor, classes: Tensor | None = None) -> Tensor:
        """L_srs: MSE of cos(e, W) and cos(W_y, W); y is ``classes`` [B], or the arg-max class."""
        scores = logits if self.config.srs_scale == "logits" else logits * self.config.temperature
        chosen = logits.argmax(dim=-1) if classes is None else classes
        return F.mse_loss(scores, prototypes[chosen] @ prototypes.T)

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
            terms["srs"] = self.srs_loss(logits, prototypes, labels if config.srs_class == "label" else None)
        if config.align_weight:
            assert self.texts is not None
            aligned = self.logits(self.embed(self.texts), prototypes)
            terms["align"] = F.cross_entropy(aligned, torch.arange(len(aligned), device=aligned.device))
        return terms

    def target_terms(self, features: Tensor, prototypes: Tensor, memory: FeatureMemory) -> dict[str, Tensor]:
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
            unseen = ~self.seen
            if unseen.any():
                share = config.unseen_share or float(unseen.float().mean())
                mass = logits.softmax(dim=-1)[:, unseen].sum(dim=-1).mean()
                terms["balance"] = mass + share**2 / mass
        if config.target_srs_weight:
            terms["target_srs"] = self.srs_loss(logits, trained)
        return terms

    def remember(self, embedded: Tensor, memory: FeatureMemory) -> bool:
        """Store e / tau of target images; True if the store was full before."""
        return memory.push(embedded / self.config.temperature)

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """Weighted sum of loss terms."""
        weights = self.config.weights
        return torch.stack([weights[name] * value for name, value in terms.items()]).sum()

    def optimizer(self) -> torch.optim.Optimizer:
        """SGD with Nesterov momentum; group ``scale`` 1 for the adapter and ``gcn_rate`` for the prototype branch."""
        config = self.config
        groups = [
            {"params": list(self.adapter.parameters()), "scale": 1.0},
            {"params": list(self.prototype_branch.parameters()), "scale": config.gcn_rate},
        ]
        return torch.optim.SGD(
            groups,
            lr=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=True,
            fused=True,
        )


def learning_rate(config: SreClipConfig, step: int, steps: int) -> float:
    """Rate of the adapter: constant during warm-up, then (1 + decay * t)^-0.75, t in 3000ths of the budget."""
    after = max(0, step - round(config.warmup_share * steps)) * PAPER_STEPS / steps
    return config.learning_rate * (1 + config.decay * after) ** -0.75


# --- the method -------------------------------------------------------------------------------------------------------


class SreClip(Method):
    """An attention adapter on frozen CLIP features and class prototypes from a WordNet graph."""

    card = read_card("sre_clip")
    Config = SreClipConfig
    reads_synsets = True
    one_process = "its images attend to all others of their batch, and train on stored features in minutes"
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {"paper": {}, "official": OFFICIAL}
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
        self._synsets: dict[str, str] = {}
        self._senses: SenseChoice = self.config.senses
        self._seed = 0
        self._model: SreClipModel | None = None
        self._reference: Tensor | None = None
        self._graph: WordGraph | None = None
        self._encoded: dict[str, Tensor] = {}  # class embeddings of the weights as they stand

    @property
    def model(self) -> SreClipModel:
        """The trained parts; raises ``RuntimeError`` before ``fit`` or ``load``."""
        if self._model is None:
            raise RuntimeError("sre_clip has learned nothing yet: call fit, or load a checkpoint")
        return self._model

    @classmethod
    def files(cls, config: SreClipConfig) -> Mapping[str, Path]:
        """WordNet, and the file of word vectors if one is named."""
        found = {"word_vectors": Path(config.word_vectors)} if config.word_vectors else {}
        with contextlib.suppress(WordNetError):  # fit says what is wrong
            found["wordnet"] = wordnet_path()
        return found

    # --- frozen inputs ---

    @torch.no_grad()
    def frozen_features(self, pixels: Tensor) -> Tensor:
        """What CLIP says about images: z [B, E], or with attention to patches all projected tokens [B, 1+P, E]."""
        pixels = pixels.to(self.device)
        if self.config.attention == "patches":
            return self._unit(self._tokens(pixels)["tokens"])
        return self._unit(self.backbone.encode_images(self.backbone.normalize(pixels)))

    def _tokens(self, pixels: Tensor) -> dict[str, Tensor]:
        tokens = self.backbone.run_vision(self.backbone.image_tokens(self.backbone.normalize(pixels)))
        return {"tokens": self.backbone.readout(tokens)}

    def _unit(self, features: Tensor) -> Tensor:
        return F.normalize(features, dim=-1) if self.config.unit_features else features

    def _reader(self, images: Images) -> Callable[[Tensor], Tensor]:
        """Frozen features by index: from a table computed once, or anew at every call (``fast=False``)."""
        if not self.config.fast:
            return lambda index: self.frozen_features(images.pixels(index))
        if self.config.attention == "patches":
            table = frozen_values(self.backbone, "projected tokens", images, self._tokens)["tokens"]
        else:
            table = image_features(self.backbone, images)
        return lambda index: self._unit(table[index].to(self.device))

    @torch.no_grad()
    def _text_vectors(self, words: Sequence[tuple[str, ...]]) -> Tensor:
        """Mean CLIP text embedding of each node's synonyms in ``a photo of a {}`` -> [n, E], L2-normalised.

        A node is encoded by itself, so that the last bits do not depend on its neighbours, and once in a process.
        """
        texts = [
            tuple(TEMPLATE.format(word) for word in (node if self.config.synonyms else node[:1])) for node in words
        ]

        def compute(index: Tensor) -> dict[str, Tensor]:
            means = [F.normalize(self.backbone.encode_texts(texts[int(i)]), dim=-1).mean(dim=0) for i in index]
            return {"vector": F.normalize(torch.stack(means), dim=-1)}

        scope = FeatureScope.of(self.backbone, "mean text feature")
        return process_cache().lookup(scope, ["|".join(node) for node in texts], compute)["vector"].to(self.device)

    @torch.no_grad()
    def _word_vectors(self, words: Sequence[tuple[str, ...]]) -> Tensor:
        """A word vector for each node's first name -> [n, F], L2-normalised."""
        names = [node[0] for node in words]
        if self.config.word_vectors:
            vectors = read_word_vectors(self.config.word_vectors, names).to(self.device)
        else:
            ids = [torch.tensor(self.backbone.token_ids(name), device=self.backbone.device) for name in names]
            vectors = torch.stack([self.backbone.embed_tokens(row).mean(dim=0) for row in ids])
        return F.normalize(vectors, dim=-1)

    def _node_vectors(self, graph: WordGraph, field: Field) -> Tensor:
        words = [graph.words[int(node)] for node in field.nodes]
        return self._word_vectors(words) if self.config.class_vectors == "words" else self._text_vectors(words)

    @property
    def graph(self) -> WordGraph:
        """The graph of the training classes; without a graph network, the classes alone."""
        if self._graph is None:
            source: GraphSource = self.config.graph if self.config.gcn else "none"
            self._graph = build_graph(
                self.class_names, self._synsets, source=source, seed=self._seed, choice=self._senses
            )
        return self._graph

    # --- training ---

    def prepare(self, data: TrainingData, seed: int) -> None:
        """Graph, node vectors and fresh weights for the classes of ``data``."""
        known = data.synsets_published or self.config.senses == "context"
        self.class_names, self._synsets, self._seed = data.class_names, data.synsets if known else {}, seed
        self._senses = self.config.senses
        self._graph = None
        self._encoded.clear()
        graph = self.graph
        field = receptive_field(graph.edges, graph.nodes, range(graph.classes), LAYERS)
        vectors = self._node_vectors(graph, field)
        seen = torch.zeros(graph.classes, dtype=torch.bool, device=self.device)
        seen[data.labelled_classes.to(self.device)] = True
        texts = self._text_vectors(graph.words[: graph.classes]) if self.config.align_weight else None
        self._model = SreClipModel(
            self.config, self.backbone.embed_dim, vectors, field.to(self.device), seen, texts, seeded(seed, _INIT)
        )

    def fit(self, data: TrainingData, *, seed: int, log: Log) -> FitReport:
        """Source losses during warm-up, then target losses and 1.5 times the source losses.

        Without target images (UCDR family) the source losses fill the whole budget.
        """
        config, report, begun = self.config, FitReport(), time.perf_counter()
        self.prepare(data, seed)
        model, images = self.model, len(data.images)
        steps = budget(config.steps, config.epochs, images, config.batch_size) if config.epochs else config.steps
        steps = steps or PAPER_STEPS
        source, stream = self._reader(data.images), batches(data, config.batch_size, seeded(seed, _SOURCE))
        labels = data.labels.to(self.device)
        target = self._reader(data.target) if data.has_target else None
        if data.has_target:
            target_stream = target_batches(len(data.target), config.batch_size, seeded(seed, _TARGET))
            memory = FeatureMemory(min(config.memory, len(data.target)), surplus=config.memory_surplus)
        self._reference = self._choose_reference(data, source, target, seed)

        def loss(step: int) -> Tensor:
            self._encoded.clear()  # the weights have changed
            index = next(stream)
            prototypes = model.prototypes(seeded(seed, _DROPOUT, step))
            total = model.total(
                model.source_terms(source(index), labels[index], prototypes, seeded(seed, _PAIRS, step))
            )
            if target is None:
                return total
            features = target(next(target_stream))
            if step < round(config.warmup_share * steps):
                with torch.no_grad():
                    model.remember(model.embed(features), memory)
                return total
            return model.total(model.target_terms(features, prototypes, memory)) + config.source_weight * total

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
        report.seconds = time.perf_counter() - begun
        return report

    def _choose_reference(
        self,
        data: TrainingData,
        source: Callable[[Tensor], Tensor],
        target: Callable[[Tensor], Tensor] | None,
        seed: int,
    ) -> Tensor | None:
        """Features [R, E] of random training images, half of them target images where there are any."""
        if self.config.attention != "batch" or self.config.eval_attention != "reference":
            return None
        share = self.config.reference_size // (2 if target else 1)
        draw = seeded(seed, _REFERENCE)
        parts = [source(torch.randperm(len(data.images), generator=draw)[:share])]
        if target is not None:
            parts.append(target(torch.randperm(len(data.target), generator=draw)[:share]))
        return torch.cat(parts)

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

        A name that training did not know gets the prototype of the training graph extended by it alone, so that it does
        not depend on what else is asked; the prototypes of the training classes stay as they are.
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

    # --- checkpoints ---

    def tensors(self) -> dict[str, Tensor]:
        """Weights of both branches, the node vectors and messages of the graph, the reference features."""
        model = self.model
        kept = {
            **model.state_dict(),
            "vectors": model.vectors,
            "seen": model.seen,
            "nodes": model.field.nodes,
            "messages": model.field.messages,
            "message_weights": model.field.weights,
        }
        return kept if self._reference is None else {**kept, "reference": self._reference}

    def facts(self) -> dict[str, Any]:
        """Class names in order, their synsets, how others are found, a random graph's seed, the graph part's sizes."""
        return {
            "class_names": list(self.class_names),
            "synsets": self._synsets,
            "senses": self._senses,
            "seed": self._seed,
            "sizes": list(self.model.field.sizes),
        }

    def load_tensors(self, tensors: dict[str, Tensor], facts: dict[str, Any]) -> None:
        """Put back what :meth:`tensors` and :meth:`facts` gave."""
        self.class_names, self._synsets = tuple(facts["class_names"]), dict(facts["synsets"])
        self._senses = facts.get("senses", "first")  # how checkpoints without this fact were trained
        self._seed, self._graph = int(facts["seed"]), None
        self._encoded.clear()
        kept = {name: tensor.to(self.device) for name, tensor in tensors.items()}
        self._reference = kept.pop("reference", None)
        field = Field(kept.pop("nodes"), tuple(facts["sizes"]), kept.pop("messages"), kept.pop("message_weights"))
        self._model = SreClipModel(
            self.config,
            kept["adapter.q.weight"].shape[1],
            kept.pop("vectors"),
            field,
            kept.pop("seen"),
            None,
            seeded(self._seed, _INIT),
        )
        self._model.load_state_dict(kept)
