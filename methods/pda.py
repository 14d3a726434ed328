"""PDA: prompt-based distribution alignment for unsupervised domain adaptation (Bai et al., AAAI 2024).
docs/methods.md, PDA.

Idea: both CLIP towers are prompted as in MaPLe (the *base branch*), and an image's feature looks at what is typical of
each class in the source and in the target domain (the *alignment branch*), so that one text classifier fits both.

1. **Base branch**: m learned tokens at the input of every block of both towers (:mod:`methods.maple`); those of the
   first vision blocks are linear maps of the text's, the others are the vision tower's own. Unit features f(x), t_k;
   logits s cos(f, t_k), s CLIP's logit scale.
2. **Banks**: frozen CLIP classifies all training images with ``a photo of a {class}.``. For each class, the features of
   the K images that it is surest of are averaged, of source images only where it is right; of target images by its
   guess. Rows [S, E] and [T, E].
3. **Image-guided feature tuning** (IFT): the same three-layer network g [E -> E/8 -> E/8 -> 3E, BatchNorm and ReLU
   between] makes queries, keys and values of the feature and of both banks; what f reads there is added to it:

       F_d = f + W softmax(0.1 q(f) k(bank_d)^T) v(bank_d),   d source or target
       aligned logits = 0.1 s cos(F_source, t_k) + 0.1 s cos(F_target, t_k)

4. **Loss**: cross-entropy of both kinds of logits, of source images with their labels and of target images with frozen
   CLIP's guess where its probability is at least ``threshold``.
5. **Prediction**: logits + 0.5 aligned logits.

Trained: the prompts, the maps between the towers, the IFT network, by SGD with a warm cosine
(:mod:`methods.training.sgd`).

Extensions: f embeds an image for retrieval and t_k a class; any names can be told apart, the banks stay. Without target
images, another training domain plays the target (:mod:`methods.training.adaptation`), and the target's bank is of all
training images by CLIP's guess.

Shapes: B images, C classes that training may use, S and T rows of the banks, m tokens, J prompted blocks, w vision
width, v text width, E embedding width.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.cards import read_card
from methods.dapl import pseudo_labels, target_loss
from methods.interface import FitReport, Log, TrainingData
from methods.maple import PromptedConfig, PromptedTowers, new_prompts
from methods.parts.bounds import Bound
from methods.parts.feature_cache import image_features
from methods.parts.losses import cosine_similarities
from methods.parts.prompt_units import new_context, new_linear
from methods.parts.prompts import PromptTemplate, encode_prompts
from methods.training.adaptation import AdaptationMethod
from methods.training.image_text import Prompts
from methods.training.loop import seeded

# --- the alignment branch --------------------------------------------------------------------------------------------

BankRows = Literal["left_out", "zeros"]


def bank(
    features: Tensor, classes: Tensor, confidence: Tensor, eligible: Tensor, count: int, slots: int, rows: BankRows
) -> Tensor:
    """(2) The mean feature of each class's surest images: [R, E].

    ``features`` [N, E], the ``classes`` [N] that they stand for (0..count-1), how sure CLIP is of them [N], and which
    of them may be taken [N]. ``left_out``: a mean over the images there are, no row for a class without any.
    ``zeros``: the empty ones of a class's slots count as zeros.
    """
    means = []
    for number in range(count):
        places = torch.nonzero((classes == number) & eligible).flatten()
        best = places[confidence[places].argsort(descending=True, stable=True)[:slots]]
        if rows == "zeros":
            means.append(features[best].sum(dim=0) / slots)
        elif len(best):
            means.append(features[best].mean(dim=0))
    return torch.stack(means) if means else features.new_zeros(0, features.shape[1])


def queries_keys_values(rows: Tensor, ift: Mapping[str, Tensor], *, training: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(3) g: rows [R, E] -> three tensors [R, E].

    ``training``: BatchNorm by the rows' own statistics, which the stored ones follow; a single row takes those.
    """
    hidden = rows
    for number in (1, 2):
        hidden = F.linear(hidden, ift[f"ift.{number}.weight"], ift[f"ift.{number}.bias"])
        mean, var = ift[f"ift.norm{number}.mean"], ift[f"ift.norm{number}.var"]
        scale, shift = ift[f"ift.norm{number}.weight"], ift[f"ift.norm{number}.bias"]
        hidden = F.batch_norm(hidden, mean, var, scale, shift, training and len(rows) > 1, 0.1, 1e-5).relu()
    queries, keys, values = F.linear(hidden, ift["ift.3.weight"], ift["ift.3.bias"]).unflatten(1, (-1, 3)).unbind(dim=2)
    return queries, keys, values


def guided(
    images: Tensor, banks: Sequence[Tensor], ift: Mapping[str, Tensor], *, scale: float, training: bool
) -> list[Tensor]:
    """(3) F_d of unit features [B, E] for each bank [R, E] -> [B, E] each, not normalised; an empty bank adds W 0."""
    queries = queries_keys_values(images, ift, training=training)[0]
    found = []
    for rows in banks:
        mixed = torch.zeros_like(images)
        if len(rows):
            _, keys, values = queries_keys_values(rows, ift, training=training)
            mixed = (scale * queries @ keys.T).softmax(dim=-1) @ values
        found.append(images + F.linear(mixed, ift["ift.post.weight"], ift["ift.post.bias"]))
    return found


# --- settings --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class PDAConfig(PromptedConfig):
    """Settings of PDA; "official:" is the value of the released code where it differs."""

    bounds: ClassVar = {
        **PromptedConfig.bounds,
        "coupled": Bound(low=0),
        "slots": Bound(low=1),
        "threshold": Bound(low=0, high=1),
        "attention_scale": Bound(above=0),
        **dict.fromkeys(("source_share", "target_share", "aligned_weight", "target_weight"), Bound(low=0)),
    }
    depth: int = 12  # J, prompted blocks of each tower, counted from its input; at most all it has
    coupled: int = 7  # vision blocks, from the input on, whose prompts are maps of the text's
    start: Literal["words", "noise"] = "words"  # of the first text prompts: the template's words, or normal (official)
    slots: int = 5  # K, images of a class that its row of a bank is the mean of
    bank_rows: Literal["left_out", "zeros"] = "left_out"  # what a bank has for missing images; official: zeros
    pseudo_template: str = "a photo of a {name}."  # the text of a class for frozen CLIP's guesses
    threshold: float = 0.8  # least probability of a guess that counts; released: 0.6 for VisDA, 0.9 for Office-31
    attention_scale: float = 0.1  # of the scores, before their softmax
    source_share: float = 0.1  # of the source bank's logits
    target_share: float = 0.1  # of the target bank's logits
    target_weight: float = 1.0  # of the loss of target images
    align: bool = True  # the alignment branch, in the loss and in the prediction
    aligned_weight: float = 0.5  # of the aligned logits in the prediction
    learning_rate: float = 3e-3  # of SGD, at the top of the cosine
    batch_size: int = 32  # labelled images in a step, and as many target images
    epochs: int = 10  # passes over the labelled images, over which the cosine falls


# --- the method ------------------------------------------------------------------------------------------------------

_BANKS = ("bank.source", "bank.target")


class PDA(AdaptationMethod, PromptedTowers):
    """Deep prompts in both towers, and features that look at banks of source and target."""

    card = read_card("pda")
    Config = PDAConfig
    one_process = "its target loss is a mean over the images with a confident guess"
    variants: ClassVar[Mapping[str, Mapping[str, Any]]] = {"official": {"start": "noise", "bank_rows": "zeros"}}
    ablations: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "base_branch_only": {"align": False},
        "no_target": {"target_weight": 0.0},
        "source_bank_only": {"target_share": 0.0},
        "target_bank_only": {"source_share": 0.0},
        "independent_prompts": {"coupled": 0},
        "threshold_0": {"threshold": 0.0},
        "slots_1": {"slots": 1},
    }
    config: PDAConfig

    _banks: dict[str, Tensor] | None = None  # by the names of ``_BANKS``
    _statistics: dict[str, Tensor] | None = None  # of the IFT network's BatchNorms
    _zero_shot: Tensor | None = None  # while it trains: texts [C, E] of frozen CLIP's guesses

    def maps(self) -> int:
        """Vision blocks whose prompts are maps of the text's."""
        return min(self.config.coupled, self.text_depth(), self.vision_depth())

    def build(self, seed: int) -> dict[str, nn.Parameter]:
        """``context`` and ``deep_context`` of texts, ``coupling.*``, ``prompts`` of the other vision blocks, ``ift.*``.

        Linear maps start as ``torch.nn.Linear`` does, all couplings but the first from the same draw.
        """
        generator, backbone, maps = seeded(seed, 0), self.backbone, self.maps()
        wide, tokens = backbone.embed_dim, self.config.context_tokens
        parts = self.build_text(self.text_depth(), generator)
        if self.config.start == "noise":
            parts["context"] = new_context(tokens, backbone, generator)
        if maps:
            weight, bias = new_linear(backbone.vision_width, backbone.text_width, backbone, generator, layers=2)
            draw = torch.arange(maps).clamp(max=1).to(backbone.device)
            parts |= {"coupling.weight": weight[draw], "coupling.bias": bias[draw]}
        if self.vision_depth() > maps:
            own = new_prompts(self.vision_depth() - maps, tokens, backbone.vision_width, generator)
            parts["prompts"] = own.to(backbone.device)
        narrow = max(1, wide // 8)
        self._statistics = {}
        for name, out, into in (
            ("1", narrow, wide),
            ("2", narrow, narrow),
            ("3", 3 * wide, narrow),
            ("post", wide, wide),
        ):
            parts[f"ift.{name}.weight"], parts[f"ift.{name}.bias"] = new_linear(out, into, backbone, generator)
            if name in "12":
                ones, zeros = torch.ones(narrow, device=self.device), torch.zeros(narrow, device=self.device)
                parts |= {f"ift.norm{name}.weight": ones, f"ift.norm{name}.bias": zeros}
                self._statistics |= {f"ift.norm{name}.mean": zeros.clone(), f"ift.norm{name}.var": ones.clone()}
        return {name: nn.Parameter(part) for name, part in parts.items() if self.config.align or "ift." not in name}

    def vision_prompts(self) -> Tensor:
        """(1) The prompts of the vision blocks [J, m, w]: maps of the text's, then the tower's own."""
        learned, maps, found = self.trainable(), self.maps(), []
        if maps:
            context = learned["context"][None]
            if "deep_context" in learned:
                context = torch.cat([context, learned["deep_context"]])[:maps]
            mapped = torch.einsum("jmv,jwv->jmw", context, learned["coupling.weight"])
            found.append(mapped + learned["coupling.bias"][:, None])
        return torch.cat([*found, learned["prompts"]]) if "prompts" in learned else found[0]

    # --- logits ---

    def aligned_logits(self, images: Tensor, texts: Tensor, *, training: bool) -> Tensor:
        """(3) Of unit image features [B, E] over texts [C, E] -> [B, C]."""
        config, banks = self.config, self.fitted(self._banks)
        ift = {**self.trainable(), **self.fitted(self._statistics)}
        both = guided(images, [banks[name] for name in _BANKS], ift, scale=config.attention_scale, training=training)
        shares = (config.source_share, config.target_share)
        parts = [share * cosine_similarities(one, texts) for share, one in zip(shares, both, strict=True)]
        return self.logit_scale() * torch.stack(parts).sum(dim=0)

    def both_logits(self, images: Tensor, texts: Tensor, *, training: bool) -> list[Tensor]:
        """(1, 3) Those of the base branch and of the alignment branch: image features [B, E], texts [C, E]."""
        found = [self.logit_scale() * cosine_similarities(images, texts)]
        if self.config.align:
            found.append(self.aligned_logits(F.normalize(images, dim=-1), texts, training=training))
        return found

    # --- training ---

    def labelled(self, data: TrainingData) -> tuple[Sequence[str], Tensor]:
        """All class names that training may use."""
        return data.class_names, data.labels

    def fit(self, data: TrainingData, *, seed: int, log: Log) -> FitReport:
        """Fill the banks, then train on labelled images and target images."""
        try:
            return super().fit(data, seed=seed, log=log)
        finally:
            self._zero_shot = None

    @torch.no_grad()
    def begin(self, data: TrainingData, seed: int) -> None:
        """(2) The texts of CLIP's guesses, and both banks, of images as they are."""
        super().begin(data, seed)
        config, count = self.config, len(data.class_names)
        texts = PromptTemplate.build(self.backbone, data.class_names, config.pseudo_template)
        self._zero_shot = encode_prompts(self.backbone, texts)
        if not config.align:
            return
        self._banks = {}
        for name, images in zip(_BANKS, (data.images, data.target if data.has_target else data.images), strict=True):
            features = image_features(self.backbone, images, statistics=config.train_statistics).to(self.device)
            guess = self.logit_scale() * cosine_similarities(features, self._zero_shot)
            confidence, classes = guess.softmax(dim=-1).max(dim=-1)
            eligible = torch.ones_like(classes, dtype=torch.bool)
            if name == "bank.source":
                labels = data.labels.to(self.device)
                classes, eligible = labels, classes == labels
            unit = F.normalize(features, dim=-1)
            self._banks[name] = bank(unit, classes, confidence, eligible, count, config.slots, config.bank_rows)

    def adaptation_loss(
        self, source: Tensor, labels: Tensor, target: Tensor, prompts: Prompts, fixed_texts: Tensor | None, *, step: int
    ) -> Tensor:
        """(4) Of normalised pixels of labelled images and target images."""
        config, zero_shot = self.config, self.fitted(self._zero_shot)
        texts = self.text_features(prompts)
        logits = self.both_logits(self.image_features(source), texts, training=True)
        loss = torch.stack([F.cross_entropy(one, labels) for one in logits]).sum()
        if not config.target_weight:
            return loss
        with torch.no_grad():
            guess = self.logit_scale() * cosine_similarities(self.backbone.encode_images(target), zero_shot)
        classes, counts = pseudo_labels(guess, config.threshold, 1.0)
        logits = self.both_logits(self.image_features(target), texts, training=True)
        losses = torch.stack([target_loss(one, classes, counts, "confident") for one in logits])
        return loss + config.target_weight * losses.sum()

    # --- inference ---

    @torch.no_grad()
    def classify(self, pixels: Tensor, names: Sequence[str]) -> Tensor:
        """(5) Logits ``[B, C]`` over any class names."""
        base, *aligned = self.both_logits(
            self.encode_raw(pixels), self.text_features(self.prompts(names)), training=False
        )
        return base + self.config.aligned_weight * aligned[0] if aligned else base

    # --- state ---

    def learned_tensors(self) -> Mapping[str, Tensor]:
        """What is trained, the banks, and the statistics of the IFT network."""
        trained = self.trainable()
        return (
            {**trained, **self.fitted(self._banks), **self.fitted(self._statistics)} if self.config.align else trained
        )

    def prepare_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Build the parts, with room for a checkpoint's banks."""
        super().prepare_state(tensors)
        if self.config.align:
            wide = self.backbone.embed_dim
            self._banks = {name: torch.empty(len(tensors.get(name, ())), wide, device=self.device) for name in _BANKS}
