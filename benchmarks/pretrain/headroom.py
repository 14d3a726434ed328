"""Headroom: how much simple adaptation gains over zero-shot features, and how much style the features carry.

Headroom is validation mAP@all (validation classes, seen domains against the gallery domain, the validation task of UCDR
with one domain held out) after adaptation on the train classes of the seen domains, minus the same of zero-shot. Three
heads, none of them a paper's method, each with the best of its learning rates and steps, both chosen on validation:

* ``linear_probe``: a linear map in place of CLIP's image projection, starting there; cross-entropy to a classifier that
  starts at the classes' texts;
* ``metric_head``: the same map, supervised contrastive loss over images of all seen domains;
* ``full_finetune``: the vision tower, supervised contrastive loss, random resized crops and flips.

Cross-entropy to the classes' fixed texts was the first loss of ``full_finetune`` and gained less: on a run of 0.77
million pairs, 3.6 points where the heads gained 4.7.

Test classes are used nowhere here.

Shapes: B images, C train classes, E embedding width, w vision width.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.datasets.base import Dataset
from benchmarks.evaluation.ranking import rank
from benchmarks.pretrain.pairs import CropTable
from benchmarks.pretrain.towers import image_features
from benchmarks.protocols.task import Retrieval
from benchmarks.protocols.ucdr import PROTOCOL
from methods.parts.backbone import Backbone
from methods.zero_shot import ZeroShot

TEMPERATURE = 0.07


@dataclass(frozen=True)
class HeadroomConfig:
    """Budget of the three heads. Learning rates are tried in this order and all are reported; where the best is the
    lowest or the highest, the next one beyond it is tried too, up to ``extensions`` times."""

    held_out: str = "freehand"
    head_rates: tuple[float, ...] = (1e-4, 3e-4, 1e-3, 3e-3, 1e-2)
    head_steps: int = 300
    head_batch: int = 1024
    tune_rates: tuple[float, ...] = (3e-5, 1e-4, 3e-4)
    tune_steps: int = 500
    tune_batch: int = 256
    validations: int = 10
    extensions: int = 3
    weight_decay: float = 0.01
    crop_area: float = 0.5
    seed: int = 0


@dataclass(frozen=True)
class LabelledImages:
    """Images ``[N, 3, S, S]`` in [0, 1] of one selection, their class numbers and domain names ``[N]``."""

    pixels: Tensor
    labels: np.ndarray
    domains: np.ndarray


def select(dataset: Dataset, rows: np.ndarray, size: int) -> LabelledImages:
    """The images of table rows."""
    classes = dataset.table["class"].to_numpy()
    numbers = {name: n for n, name in enumerate(sorted(set(classes)))}
    pixels = torch.cat([dataset.pixels(part, size) for part in np.array_split(rows, max(1, len(rows) // 512))])
    labels = np.array([numbers[name] for name in classes[rows]])
    return LabelledImages(pixels, labels, dataset.table["domain"].to_numpy()[rows])


def beyond(trials: Sequence[Mapping[str, Any]]) -> list[float]:
    """The learning rate after the best trial's (about three times lower or higher) if that is an end of the range."""
    tried = [trial["learning_rate"] for trial in trials]
    best = max(trials, key=lambda trial: trial["map@all"])["learning_rate"]
    if best == min(tried):
        return [float(f"{best / 10**0.5:.0e}")]
    return [float(f"{best * 10**0.5:.0e}")] if best == max(tried) else []


def supervised_contrastive(embedding: Tensor, labels: Tensor, temperature: float = TEMPERATURE) -> Tensor:
    """Supervised contrastive loss of unit vectors ``[B, E]``: mean over anchors that have a positive in the batch."""
    itself = torch.eye(len(labels), dtype=torch.bool, device=embedding.device)
    logits = (embedding @ embedding.T / temperature).masked_fill(itself, -1e4)
    positive = (labels[:, None] == labels[None, :]) & ~itself
    count = positive.sum(1)
    mean = (F.log_softmax(logits, 1) * positive).sum(1) / count.clamp(min=1)
    return -mean[count > 0].mean()


def within_map(embedding: np.ndarray, labels: np.ndarray) -> float:
    """mAP@all of every image of a domain ``[N, E]`` against the others; images alone in their class do not count."""
    unit = embedding / np.linalg.norm(embedding, axis=1, keepdims=True).clip(1e-12)
    scores = unit.astype(np.float64) @ unit.T.astype(np.float64)
    np.fill_diagonal(scores, -np.inf)
    order = np.argsort(-scores, axis=1, kind="stable")[:, :-1]
    hit = labels[order] == labels[:, None]
    precision = hit.cumsum(1) / np.arange(1, hit.shape[1] + 1)
    relevant = hit.sum(1)
    average = (precision * hit).sum(1) / relevant.clip(min=1)
    return float(average[relevant > 0].mean()) if (relevant > 0).any() else float("nan")


def neighbour_share(embedding: np.ndarray, domains: np.ndarray, count: int = 10) -> tuple[float, float]:
    """Share of an image's nearest ``count`` images ``[N, E]`` that are of its own domain, and the same by chance."""
    unit = embedding / np.linalg.norm(embedding, axis=1, keepdims=True).clip(1e-12)
    scores = unit @ unit.T
    np.fill_diagonal(scores, -np.inf)
    near = np.argpartition(-scores, min(count, len(scores) - 1) - 1, axis=1)[:, :count]
    names, sizes = np.unique(domains, return_counts=True)
    size = dict(zip(names, sizes, strict=True))
    chance = np.mean([(size[d] - 1) / (len(domains) - 1) for d in domains])
    return float((domains[near] == domains[:, None]).mean()), float(chance)


def domain_probe(train: np.ndarray, train_domains: np.ndarray, test: np.ndarray, test_domains: np.ndarray) -> float:
    """Accuracy of a logistic regression that predicts the domain from features ``[N, E]``, on other images."""
    names = sorted(set(train_domains))
    x, y = torch.from_numpy(train).float(), torch.tensor([names.index(d) for d in train_domains])
    mean, std = x.mean(0), x.std(0).clamp(min=1e-6)
    x = (x - mean) / std
    layer = nn.Linear(x.shape[1], len(names))
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    optimizer = torch.optim.LBFGS(layer.parameters(), max_iter=200, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(layer(x), y) + 1e-4 * layer.weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    with torch.no_grad():
        predicted = layer((torch.from_numpy(test).float() - mean) / std).argmax(1).numpy()
    return float((np.array(names)[predicted] == test_domains).mean())


class Adaptation:
    """One backbone with the images of one UCDR task: train images, validation queries and gallery."""

    def __init__(self, backbone: Backbone, dataset: Dataset, config: HeadroomConfig) -> None:
        self.backbone, self.config, self.device = backbone, config, backbone.device
        task = PROTOCOL.task(dataset, config.held_out)
        validation = task.validation
        if not isinstance(validation, Retrieval):
            raise ValueError(f"{dataset.card.name}: no validation task with {config.held_out} held out")
        size = backbone.image_size
        self.train = select(dataset, task.train, size)
        self.query, self.gallery = (select(dataset, rows, size) for rows in (validation.query, validation.gallery))
        present = np.unique(self.train.labels)
        names = sorted(set(dataset.table["class"]))
        self.texts = ZeroShot(backbone).encode_classes([names[n] for n in present]).to(self.device)
        self.labels = torch.from_numpy(np.searchsorted(present, self.train.labels)).to(self.device)
        self.dtype = torch.bfloat16 if self.device.type == "cuda" or _bf16_is_fast() else torch.float32

    @torch.no_grad()
    def features(self, model: Any, pixels: Tensor) -> Tensor:
        """Vision features before the projection ``[N, w]`` of images in [0, 1]."""
        bare = _Unprojected(model)
        parts = [self.backbone.normalize(part.to(self.device)) for part in pixels.split(512)]
        return torch.cat([image_features(bare, (part,), torch.float32) for part in parts])

    def score(self, query: Tensor, gallery: Tensor) -> float:
        """mAP@all of validation queries against the validation gallery, embeddings ``[N, E]``."""
        predicted = rank(
            query.float().cpu().numpy(), gallery.float().cpu().numpy(), self.query.labels, self.gallery.labels
        )
        return float(predicted.means()["map@all"])

    def search(
        self,
        name: str,
        rates: tuple[float, ...],
        begin: Callable[[], tuple[list[Tensor], Callable, Callable]],
        steps: int,
    ) -> dict[str, Any]:
        """Train at every rate; ``begin`` gives (trained tensors, loss of a step, validation score)."""
        trials: list[dict[str, Any]] = []
        left = list(rates)
        while left:
            rate = left.pop(0)
            parameters, loss, validate = begin()
            optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=self.config.weight_decay)
            curve = []
            for step in range(steps):
                for group in optimizer.param_groups:
                    group["lr"] = rate * min(1.0, (step + 1) / 20)
                optimizer.zero_grad()
                loss(step).backward()
                optimizer.step()
                if (step + 1) % max(1, steps // self.config.validations) == 0:
                    curve.append((step + 1, validate()))
            at, best = max(curve, key=lambda point: point[1])
            print(f"{name} at {rate:g}: {best:.3f} at step {at}", file=sys.stderr, flush=True)
            trials.append({"learning_rate": rate, "step": at, "map@all": best, "last": curve[-1][1]})
            if not left and len(trials) < len(rates) + self.config.extensions:
                left = beyond(trials)
        top = max(trials, key=lambda trial: trial["map@all"])
        edge = bool(beyond(trials))
        rising = top["step"] == max(step for step, _ in curve)
        return {"map@all": top["map@all"], "best": top, "edge": edge, "rising": rising, "trials": trials}

    def heads(self) -> dict[str, Any]:
        """Zero-shot, linear probe and metric head."""
        model, config = self.backbone.model, self.config
        train, query, gallery = (self.features(model, part.pixels) for part in (self.train, self.query, self.gallery))
        projection = model.visual_projection.weight.detach()
        # White the features by their scale, so that one grid of rates fits every backbone; the start is unchanged.
        scale = train.std()
        train, query, gallery, projection = train / scale, query / scale, gallery / scale, projection * scale

        def embed(weight: Tensor, features: Tensor) -> Tensor:
            return F.normalize(features @ weight.T, dim=-1)

        def validate(weight: Tensor) -> float:
            with torch.no_grad():
                return self.score(embed(weight, query), embed(weight, gallery))

        def batch(step: int) -> Tensor:
            generator = torch.Generator().manual_seed(config.seed * 1_000_003 + step)
            return torch.randperm(len(train), generator=generator)[: config.head_batch].to(self.device)

        def probe() -> tuple[list[Tensor], Callable, Callable]:
            weight, classifier = (value.clone().requires_grad_(True) for value in (projection, self.texts))

            def loss(step: int) -> Tensor:
                rows = batch(step)
                cosine = embed(weight, train[rows]) @ F.normalize(classifier, dim=-1).T
                return F.cross_entropy(cosine / TEMPERATURE, self.labels[rows])

            return [weight, classifier], loss, lambda: validate(weight)

        def metric() -> tuple[list[Tensor], Callable, Callable]:
            weight = projection.clone().requires_grad_(True)

            def loss(step: int) -> Tensor:
                rows = batch(step)
                return supervised_contrastive(embed(weight, train[rows]), self.labels[rows])

            return [weight], loss, lambda: validate(weight)

        result: dict[str, Any] = {"zero_shot": {"map@all": validate(projection)}}
        result["linear_probe"] = self.search("linear_probe", config.head_rates, probe, config.head_steps)
        result["metric_head"] = self.search("metric_head", config.head_rates, metric, config.head_steps)
        return result

    def tuned(self) -> dict[str, Any]:
        """Full fine-tuning of the vision tower."""
        config, size = self.config, self.backbone.image_size
        crops = CropTable(size, max(1, int((config.crop_area * 0.75) ** 0.5 * size)), self.device, self.dtype)
        normalize = self.backbone.normalize

        def begin() -> tuple[list[Tensor], Callable, Callable]:
            model = copy.deepcopy(self.backbone.model).to(self.device)
            parameters = [*model.vision_model.parameters(), *model.visual_projection.parameters()]
            for parameter in parameters:
                parameter.requires_grad_(True)

            def loss(step: int) -> Tensor:
                random = np.random.default_rng(config.seed * 1_000_003 + step)
                rows = torch.from_numpy(random.choice(len(self.labels), config.tune_batch, replace=False))
                pixels = normalize(self.train.pixels[rows].to(self.device)).to(self.dtype)
                pixels = crops.apply(pixels, random, area=config.crop_area, aspect=4 / 3)
                images = F.normalize(image_features(model, (pixels,), self.dtype), dim=-1)
                return supervised_contrastive(images, self.labels[rows.to(self.device)])

            def validate() -> float:
                with torch.no_grad():
                    query, gallery = (
                        torch.cat(
                            [
                                image_features(model, (normalize(part.to(self.device)),), self.dtype)
                                for part in images.pixels.split(512)
                            ]
                        )
                        for images in (self.query, self.gallery)
                    )
                return self.score(query, gallery)

            return parameters, loss, validate

        return self.search("full_finetune", config.tune_rates, begin, config.tune_steps)


class _Unprojected:
    """A ``CLIPModel`` whose image projection is the identity, for :func:`image_features`."""

    def __init__(self, model: Any) -> None:
        self.vision_model = model.vision_model
        width = model.config.vision_config.hidden_size
        weight = torch.eye(width, device=model.visual_projection.weight.device)
        self.visual_projection = type("Identity", (), {"weight": weight})


def _bf16_is_fast() -> bool:
    from torch.backends import cpu

    return "AVX512" in cpu.get_cpu_capability()


def style(backbone: Backbone, dataset: Dataset) -> dict[str, Any]:
    """How much style the output features carry: train classes teach the domain probe, validation classes test it.

    ``domain_probe`` accuracy with its ``domain_chance`` (share of the commonest domain); ``neighbours``: share of the
    own domain among the nearest ten, with chance; ``within``: mAP@all inside each domain. The last two are over train
    and validation classes.
    """
    splits = dataset.table["split"].to_numpy()
    parts = {}
    for split in ("train", "val"):
        images = select(dataset, np.flatnonzero(splits == split), backbone.image_size)
        with torch.no_grad():
            features = [
                backbone.encode_images(backbone.normalize(part.to(backbone.device)))
                for part in images.pixels.split(512)
            ]
        embedding = F.normalize(torch.cat(features), dim=-1).cpu().numpy()
        parts[split] = (embedding, images)
    (train, train_images), (test, test_images) = parts["train"], parts["val"]
    embedding = np.concatenate([train, test])
    labels = np.concatenate([train_images.labels, test_images.labels])
    domains = np.concatenate([train_images.domains, test_images.domains])
    share, chance = neighbour_share(embedding, domains)
    _, sizes = np.unique(test_images.domains, return_counts=True)
    return {
        "domain_probe": domain_probe(train, train_images.domains, test, test_images.domains),
        "domain_chance": float(sizes.max() / sizes.sum()),
        "neighbours": share,
        "neighbours_chance": chance,
        "within": {d: within_map(embedding[domains == d], labels[domains == d]) for d in sorted(set(domains))},
    }


def measure_headroom(backbone: Backbone, dataset: Dataset, config: HeadroomConfig | None = None) -> dict[str, Any]:
    """Style figures and headroom of a backbone: see the module and :func:`style`."""
    config, start = config or HeadroomConfig(), time.perf_counter()
    adaptation = Adaptation(backbone, dataset, config)
    result = {"style": style(backbone, dataset), **adaptation.heads(), "full_finetune": adaptation.tuned()}
    base = result["zero_shot"]["map@all"]
    result["headroom"] = {
        name: result[name]["map@all"] - base for name in ("linear_probe", "metric_head", "full_finetune")
    }
    result["held_out"], result["seconds"] = config.held_out, round(time.perf_counter() - start)
    return result


def summary(name: str, result: dict[str, Any]) -> str:
    """A few lines for people."""
    look = result["style"]
    lines = [
        f"{name}: validation mAP@all, seen domains to gallery ({result['held_out']} held out)",
        f"  zero-shot      {result['zero_shot']['map@all']:.3f}",
    ]
    for head, gain in result["headroom"].items():
        best = result[head]["best"]
        note = ", end of the range" if result[head]["edge"] else ""
        note += ", still rising" if result[head].get("rising") else ""
        lines.append(
            f"  {head:14} {result[head]['map@all']:.3f}  {100 * gain:+.1f} points"
            f" (rate {best['learning_rate']:g}, step {best['step']}{note})"
        )
    lines.append(f"  domain probe   {look['domain_probe']:.1%} (commonest domain {look['domain_chance']:.1%})")
    lines.append(f"  own style among ten nearest {look['neighbours']:.1%} (chance {look['neighbours_chance']:.1%})")
    lines.append("  within-domain mAP " + ", ".join(f"{d} {v:.3f}" for d, v in look["within"].items()))
    return "\n".join(lines)
