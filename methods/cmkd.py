"""CMKD: unsupervised domain adaption harnessing vision-language pre-training (Zhou and Zhou, TCSVT 2024).
docs/methods.md, CMKD.

Idea: the vision tower is trained with a task head on labelled source images; on unlabelled target images CLIP's frozen
*texts* are the teacher. The teacher's answers are not copied: they are common sense that steers the student's own
confidence, more where the two disagree. With f the feature of the trained tower,

    p  = softmax(h(f)),  h = W LayerNorm(BatchNorm(f))          the student's task head
    q  = softmax(s cos(f, g_c)),  s CLIP's logit scale          the teacher: the texts g_c, on the student's feature
    w  = exp(-KL(q || p))                                        how far they agree, without gradient
    G(p, w) = sum_b w_b (1 - sum_c p_bc^2 / sum_b' p_b'c)        calibrated Gini impurity; the inner sum has no gradient

    L  = ce_0.1(h(f_s), y)                                       source, label smoothing 0.1
       + lambda_1 r [ G(p_t, w) + G((p_t + q_t) / 2, 1 - w) ]    task term, distillation term (q_t without gradient)
       + lambda_2 ce(s cos(f_s, g), y) + lambda_3 r G(q_t, 1)    regularisation of the teacher
    r  = 2 / (1 + exp(-t / T)) - 1                               at step t of T

lambda = 0.25, 0.1, 0.025. Trained: the whole vision branch (SGD, Nesterov momentum) and, a thousand times faster, the
head; statistics of a ResNet's own BatchNorms stay. ``sparse_threshold`` is the paper's residual sparse training: after
every step, a weight that has moved by no more than that goes back to CLIP's.

Extensions: an image is embedded for retrieval by f, a class by its text. Where a name without labelled images is among
those asked for (DAZSL), all are told apart by s cos(f, g_c): the head's row of such a class has seen no image of it,
and the head names none of them. Without target images, another training domain plays the target
(:mod:`methods.training.adaptation`).

Shapes: B images, C classes that training may use, E embedding width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.cards import read_card
from methods.interface import FitReport, Log, TrainingData
from methods.parts.augment import PLAIN, Augmentation
from methods.parts.bounds import Bound
from methods.parts.losses import cosine_similarities
from methods.training.adaptation import AdaptationMethod
from methods.training.batches import seen_classes
from methods.training.image_text import ImageTextConfig, OwnClipMethod, Prompts
from methods.training.loop import seeded

# --- the model and its losses ----------------------------------------------------------------------------------------


def task_logits(features: Tensor, head: Mapping[str, Tensor], *, training: bool) -> Tensor:
    """h: features [B, E] -> [B, C]. BatchNorm (its shift stays 0), LayerNorm, a linear map without bias.

    ``training``: the batch's own statistics, which ``head.mean`` and ``head.var`` [E] follow with momentum 0.1; a
    single image takes theirs.
    """
    mean, var, batch = head["head.mean"], head["head.var"], training and len(features) > 1
    hidden = F.batch_norm(features, mean, var, head["head.scale"], None, batch, 0.1, 1e-5)
    hidden = F.layer_norm(hidden, hidden.shape[-1:], head["head.norm.weight"], head["head.norm.bias"], 1e-6)
    return F.linear(hidden, head["head.classes"])


def agreement(student: Tensor, teacher: Tensor) -> Tensor:
    """w = exp(-KL(q || p)) of logits [B, C] and [B, C] -> [B], without gradient."""
    log_p, log_q = student.detach().log_softmax(dim=-1), teacher.detach().log_softmax(dim=-1)
    return (-(log_q.exp() * (log_q - log_p)).sum(dim=-1)).exp()


def gini_impurity(probabilities: Tensor, weights: Tensor) -> Tensor:
    """G(p, w): p [B, C], w [B] -> scalar, summed over the batch."""
    of_class = probabilities.sum(dim=0).detach().clamp(min=torch.finfo(probabilities.dtype).tiny)
    return (weights * (1 - (probabilities.square() / of_class).sum(dim=-1))).sum()


def target_terms(student: Tensor, teacher: Tensor) -> dict[str, Tensor]:
    """The three terms of target images, not weighted: logits of the head and of the texts, [B, C] each.

    ``task``: G(p, w); ``distill``: G((p + q) / 2, 1 - w), q without gradient; ``teacher``: G(q, 1).
    """
    weights, p, q = agreement(student, teacher), student.softmax(dim=-1), teacher.softmax(dim=-1)
    return {
        "task": gini_impurity(p, weights),
        "distill": gini_impurity((p + q.detach()) / 2, 1 - weights),
        "teacher": gini_impurity(q, torch.ones_like(weights)),
    }


# --- settings --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class CMKDConfig(ImageTextConfig):
    """Settings of CMKD, as released for Office-Home and a vision transformer."""

    bounds: ClassVar = {
        **ImageTextConfig.bounds,
        "label_smoothing": Bound(low=0, below=1),
        "momentum": Bound(low=0, below=1),
        **dict.fromkeys(("target_weight", "source_weight", "teacher_weight", "sparse_threshold"), Bound(low=0)),
    }
    target_weight: float = 0.25  # lambda_1, of the task and the distillation term
    source_weight: float = 0.1  # lambda_2, of the texts' cross-entropy on labelled images
    teacher_weight: float = 0.025  # lambda_3, of the teacher's impurity
    task_term: bool = True  # G(p, w)
    distill_term: bool = True  # G((p + q) / 2, 1 - w)
    label_smoothing: float = 0.1  # of the head's cross-entropy
    sparse_threshold: float = 0.0  # weights of CLIP that moved by no more are put back; the paper's RST: 1e-5
    template: str = "an image of a {name}"  # the text of a class, with ``{name}``
    temperature: float = 0.0  # 1 / s; 0: CLIP's own, 1 / logit scale
    learning_rate: float = 3e-6  # of SGD, for CLIP's weights, at the start; released for ResNets and VisDA: 3e-7
    head_rate: float = 1000.0  # that of the head, in multiples of it; released for ResNets: 10000
    decay: float = 0.75  # the rate is (1 + 3 t / T)^-decay of its start at step t of T
    momentum: float = 0.9  # of SGD, Nesterov's
    weight_decay: float = 5e-4  # of SGD
    batch_size: int = 32  # labelled images in a step, and as many target images
    epochs: int = 20  # passes over the labelled images, where ``steps`` is 0
    steps: int = 10_000  # optimiser steps; 0: ``epochs`` decides
    patience: int = 0  # validations without gain before training stops; 0: never
    augment: bool = True  # random crops and flips
    crop: float = 0.77  # smallest share of an image that a crop keeps: (224 / 256)^2

    @property
    def augmentation(self) -> Augmentation:
        """Random crop and flip."""
        return Augmentation(self.crop, True, 0.0) if self.augment else PLAIN


# --- the method ------------------------------------------------------------------------------------------------------

#: Standard deviation of the head's class rows at the start.
ROW_STD = 1e-3


class CMKD(AdaptationMethod, OwnClipMethod):
    """The vision tower and a task head, taught by CLIP's texts on target images."""

    card = read_card("cmkd")
    Config = CMKDConfig
    stage = "distillation"
    needs = "features"
    one_process = "its Gini impurity divides by sums over the batch"
    version = 2  # 2: names without labelled images are told apart by texts
    fact_names = ("class_names", "labelled_names")
    ablations: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "source_only": {"target_weight": 0.0, "source_weight": 0.0, "teacher_weight": 0.0},
        "no_task_term": {"task_term": False},
        "no_distillation": {"distill_term": False},
        "no_regularisation": {"source_weight": 0.0, "teacher_weight": 0.0},
        "sparse": {"sparse_threshold": 1e-5},
        "not_augmented": {"augment": False},
    }
    config: CMKDConfig

    class_names: tuple[str, ...] = ()  # the C classes of the head
    labelled_names: tuple[str, ...] = ()  # those with labelled images
    _statistics: dict[str, Tensor] | None = None  # ``head.mean`` and ``head.var`` [E]

    def build(self, seed: int) -> dict[str, nn.Parameter]:
        """The vision branch of a copy of CLIP, and the head: ``head.scale``, ``head.norm.*``, ``head.classes``."""
        self.copy = self.backbone.clone()
        wide = self.backbone.embed_dim
        rows = torch.empty(len(self.class_names), wide).normal_(0.0, ROW_STD, generator=seeded(seed, 0))
        head = {
            "head.scale": torch.ones(wide),
            "head.norm.weight": torch.ones(wide),
            "head.norm.bias": torch.zeros(wide),
            "head.classes": rows,
        }
        self._statistics = {
            "head.mean": torch.zeros(wide, device=self.device),
            "head.var": torch.ones(wide, device=self.device),
        }
        trained = {name: nn.Parameter(value.to(self.device)) for name, value in head.items()}
        return {**self.copy.vision_parameters(), **trained}

    @property
    def head_parts(self) -> dict[str, Tensor]:
        """What :func:`task_logits` computes with."""
        trained = {name: value for name, value in self.trainable().items() if name.startswith("head.")}
        return {**trained, **self.fitted(self._statistics)}

    def text_logits(self, features: Tensor, texts: Tensor) -> Tensor:
        """s cos(f, g_c): features [B, E], texts [C, E] -> [B, C]."""
        return self.logit_scale() * cosine_similarities(features, texts)

    # --- training ---

    def labelled(self, data: TrainingData) -> tuple[Sequence[str], Tensor]:
        """All class names that training may use."""
        return data.class_names, data.labels

    def fit(self, data: TrainingData, *, seed: int, log: Log) -> FitReport:
        """Train on labelled images and target images."""
        self.class_names, self.labelled_names = data.class_names, tuple(seen_classes(data)[0])
        return super().fit(data, seed=seed, log=log)

    def optimizer(self) -> torch.optim.Optimizer:
        """SGD with Nesterov momentum, the head at its own rate."""
        config, trained = self.config, self.trainable()
        tower = [value for name, value in trained.items() if not name.startswith("head.")]
        head = [value for name, value in trained.items() if name.startswith("head.")]
        groups: list[dict[str, Any]] = [{"params": tower, "scale": 1.0}, {"params": head, "scale": config.head_rate}]
        return torch.optim.SGD(
            groups,
            lr=config.learning_rate,
            momentum=config.momentum,
            weight_decay=config.weight_decay,
            nesterov=config.momentum > 0,
        )

    def step_rate(self, step: int, steps: int) -> float:
        """(1 + 3 t / T)^-0.75 of the learning rate: the released 0.0003 a step, over 10,000 steps."""
        return self.config.learning_rate * float((1 + 3 * step / steps) ** -self.config.decay)

    def ramp(self, step: int) -> float:
        """r, from 0 on."""
        return 2 / (1 + math.exp(-step / max(1, self._steps))) - 1

    def adaptation_loss(
        self, source: Tensor, labels: Tensor, target: Tensor, prompts: Prompts, fixed_texts: Tensor | None, *, step: int
    ) -> Tensor:
        """L of normalised pixels of labelled images and target images."""
        config, head = self.config, self.head_parts
        texts = self.text_features(prompts) if fixed_texts is None else fixed_texts
        images = self.image_features(source)
        loss = F.cross_entropy(task_logits(images, head, training=True), labels, label_smoothing=config.label_smoothing)
        if config.source_weight:
            loss = loss + config.source_weight * F.cross_entropy(self.text_logits(images, texts), labels)
        if not (config.target_weight or config.teacher_weight):
            return loss
        images = self.image_features(target)
        terms = target_terms(task_logits(images, head, training=True), self.text_logits(images, texts))
        weights = {
            "task": config.target_weight * config.task_term,
            "distill": config.target_weight * config.distill_term,
            "teacher": config.teacher_weight,
        }
        return loss + self.ramp(step) * torch.stack([weight * terms[name] for name, weight in weights.items()]).sum()

    @torch.no_grad()
    def after_step(self, step: int, steps: int) -> None:
        """Residual sparse training: what has hardly moved goes back to CLIP's weights."""
        if not self.config.sparse_threshold:
            return
        for name, start in self.backbone.vision_parameters().items():
            value = self.trainable()[name]
            value.copy_(torch.where((value - start).abs() > self.config.sparse_threshold, value, start))

    # --- inference ---

    @torch.no_grad()
    def classify(self, pixels: Tensor, names: Sequence[str]) -> Tensor:
        """Logits ``[B, C]``: the head's if all the names had labelled images, else those of their texts."""
        features = self.encode_raw(pixels)
        number = {name: place for place, name in enumerate(self.class_names)}
        if set(names) <= set(self.labelled_names):
            logits = task_logits(features, self.head_parts, training=False)
            return logits[:, [number[name] for name in names]]
        return self.text_logits(features, self.text_features(self.prompts(names)))

    # --- state ---

    def learned_tensors(self) -> Mapping[str, Tensor]:
        """What is trained, and the statistics of the head's BatchNorm."""
        return {**self.trainable(), **self.fitted(self._statistics)}

    def prepare_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Build the parts for these classes."""
        if self.parameters is None or len(self.parameters["head.classes"]) != len(self.class_names):
            self.parameters = self.build(seed=0)
