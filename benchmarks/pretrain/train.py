"""Contrastive training of picto-clip by a named recipe: seeded, resumable, on GPUs or a few CPU processes.

Recipe ``clip`` is CLIP's: symmetric InfoNCE over image-caption pairs (:mod:`benchmarks.pretrain.pairs`). Recipe
``invariant`` was used for v1 and v2: multi-positive, among images as well, over drawings of one WordNet synset that are
painted anew (:mod:`benchmarks.pretrain.data`).

Every step's batch, captions and augmentation follow from (seed, rank, step) alone, so a resumed run is the
uninterrupted run. The learning rate is warmed up, held, and decayed linearly over the last part of the run
(warm-up, stable, decay), so a finished run can be prolonged from the checkpoint kept where its decay began.
Checkpoints are safetensors and JSON, never pickle.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import signal
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from benchmarks.pretrain import compact
from benchmarks.pretrain.captions import CaptionWriter
from benchmarks.pretrain.data import Corpus
from benchmarks.pretrain.model import PIXEL_MEAN, PIXEL_STD, ModelConfig, build_model, train_tokenizer
from benchmarks.pretrain.pairs import PairBatches
from benchmarks.pretrain.towers import image_features, text_features

#: Seconds between two lines where there is no terminal for a bar.
EVERY = 60.0


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one pretraining run; :meth:`of` gives a recipe's own defaults.

    Both recipes: ``steps`` optimiser steps; the learning rate is warmed up, held and decayed over the last
    ``decay_share``; every ``long_every``-th batch has long captions; ``precision``: ``float32`` or ``bf16``;
    ``save_every`` steps between checkpoints; ``minutes``: stop at the first checkpoint after them (0: never).

    ``invariant``: ``concepts * views`` images a step and process. The first ``concrete_steps`` steps draw concrete
    WordNet nouns only, which are repeated often enough to be learned; without them the loss stays at chance for long.

    ``clip``: ``batch`` pairs a step and process; ``cap`` pairs a name (0: no cap); ``colour_share`` of colour
    drawings in a batch (0: as the cap leaves them); ``name_only``: share of captions that are the name alone; crops of
    ``crop_area`` to all of the area, sides stretched by up to ``crop_aspect``; ``text_chunks`` of captions of like
    length on the CPU (changes no number but the last bits).
    """

    recipe: str = "invariant"
    steps: int = 10_000
    batch: int = 512
    cap: float = 0.0
    colour_share: float = 0.0
    name_only: float = 0.44
    crop_area: float = 0.5
    crop_aspect: float = 4 / 3
    text_chunks: int = 3
    concepts: int = 128
    views: int = 2
    learning_rate: float = 1e-3
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.98)
    warmup_steps: int = 300
    decay_share: float = 0.3
    long_every: int = 8
    gradient_clip: float = 1.0
    image_weight: float = 0.5
    concrete_steps: int = 600
    seed: int = 0
    precision: str = "float32"
    save_every: int = 250
    minutes: float = 0.0

    @classmethod
    def of(cls, recipe: str, **values: Any) -> TrainConfig:
        """The named recipe with ``values`` changed. Raises ``ValueError`` for a recipe that does not exist."""
        if recipe not in RECIPES:
            raise ValueError(f"--recipe {recipe}: no such recipe; choose from {', '.join(sorted(RECIPES))}")
        return cls(recipe=recipe, **{**RECIPES[recipe], **values})

    @property
    def images(self) -> int:
        """Images a step and process."""
        return self.batch if self.recipe == "clip" else self.concepts * self.views


#: What each recipe sets; the rest is :class:`TrainConfig`'s.
RECIPES: dict[str, dict[str, Any]] = {
    "invariant": {"warmup_steps": 200},
    "clip": {
        "cap": 100.0,
        "colour_share": 0.0,
        "weight_decay": 0.2,
        "precision": "bf16",
        "warmup_steps": 200,
        "decay_share": 0.2,
    },
}


def learning_rate(step: int, config: TrainConfig) -> float:
    """Warm-up, stable, linear decay to zero over the last ``decay_share`` of the steps."""
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    decay = config.steps * config.decay_share
    left = config.steps - step
    return config.learning_rate * (1.0 if left >= decay else max(left, 0) / decay)


def contrastive_loss(images: Tensor, texts: Tensor, concept: Tensor, scale: Tensor, *, image_weight: float) -> Tensor:
    """Symmetric multi-positive contrastive loss of unit vectors.

    images ``[B, E]``, texts ``[U, E]`` (one a concept), concept ``[B]`` the text of each image. Image to text is cross
    entropy; text to image averages the log-probability over all images of the concept. ``image_weight`` times the same
    among images (the concept's other images are the positives) keeps the vision tower from starting out constant.
    """
    logits = scale * images @ texts.T
    to_text = F.cross_entropy(logits, concept)
    to_image = _multi_positive(logits.T, concept[None, :] == torch.arange(len(texts), device=concept.device)[:, None])
    loss = (to_text + to_image) / 2
    if image_weight == 0:
        return loss
    itself = torch.eye(len(images), dtype=torch.bool, device=images.device)
    among = (scale * images @ images.T).masked_fill(itself, -1e4)
    return loss + image_weight * _multi_positive(among, (concept[:, None] == concept[None, :]) & ~itself)


def pair_loss(images: Tensor, texts: Tensor, same: Tensor, scale: Tensor) -> Tensor:
    """CLIP's symmetric InfoNCE of unit vectors ``[B, E]`` each; pair i is (image i, text i).

    ``same [B, B]``: whether two captions are equal, so that exact repeats count as positives (their mean
    log-probability) and not as negatives. Without repeats this is cross entropy towards the diagonal, both ways.
    """
    logits = scale * images @ texts.T
    return (_multi_positive(logits, same) + _multi_positive(logits.T, same)) / 2


def _multi_positive(logits: Tensor, positive: Tensor) -> Tensor:
    """Mean over rows of minus the mean log-softmax over the row's positives (rows without one count nothing)."""
    log_probability = F.log_softmax(logits, dim=1) * positive
    return -(log_probability.sum(1) / positive.sum(1).clamp(min=1)).mean()


def corpus_texts(corpus: Corpus, seed: int = 0) -> list[str]:
    """Texts the tokenizer is trained on: one short caption a drawing and a long one for every tenth."""
    writer = CaptionWriter(seed)
    texts = []
    columns = ("phrase", "style", "category", "collection")
    for n, (phrase, style, category, collection) in enumerate(corpus.index[list(columns)].itertuples(index=False)):
        texts.append(writer.short(phrase, style, category))
        if n % 10 == 0:
            texts.append(writer.long(phrase, style, category, collection))
    return texts


def process_device(rank: int) -> torch.device:
    """This process's own GPU (``LOCAL_RANK``, else its rank, modulo the GPUs here), or the CPU."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    number = int(os.environ.get("LOCAL_RANK", rank)) % torch.cuda.device_count()
    torch.cuda.set_device(number)
    return torch.device("cuda", number)


class _StopSignal:
    """Notes SIGTERM and SIGINT instead of dying of them (in the main thread, where signals can be caught)."""

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._note) for number in (signal.SIGTERM, signal.SIGINT)}
        return self

    def _note(self, number: int, frame: Any) -> None:
        self.requested = True

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)


class _RunDisplay:
    """A bar on a terminal, elsewhere a line every :data:`EVERY` seconds; nothing from ranks above 0."""

    def __init__(self, trainer: Trainer) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        self.trainer, self.total, self.printed = trainer, trainer.config.steps, time.perf_counter()
        self.bar = Progress(
            TextColumn("pretraining"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:.0f} images/s"),
            TimeRemainingColumn(),
            disable=trainer.rank > 0 or not sys.stderr.isatty(),
        )
        self.task = self.bar.add_task("pretraining", total=self.total, completed=trainer.step, rate=0.0)

    def __enter__(self) -> Self:
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def show(self, rate: float) -> None:
        """After a step, with the images a second of all processes."""
        trainer = self.trainer
        self.bar.update(self.task, completed=trainer.step, rate=rate)
        if trainer.rank or not self.bar.disable or time.perf_counter() - self.printed < EVERY:
            return
        self.printed = time.perf_counter()
        left = (self.total - trainer.step) * trainer.config.images * trainer.world / rate / 60
        line = f"step {trainer.step:,} of {self.total:,}, {rate:.0f} images/s, about {left:.0f} min left"
        print(line, file=sys.stderr, flush=True)


class Trainer:
    """One process of a run in ``folder`` (several processes average their gradients through gloo)."""

    def __init__(self, corpus: Corpus, folder: Path, model_config: ModelConfig, config: TrainConfig) -> None:
        self.corpus, self.folder, self.config, self.model_config = corpus, folder, config, model_config
        self.rank = int(os.environ.get("RANK", "0"))
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        self.device = process_device(self.rank)
        folder.mkdir(parents=True, exist_ok=True)
        if self.rank == 0 and not (folder / "tokenizer" / "tokenizer.json").is_file():
            train_tokenizer(corpus_texts(corpus), model_config, folder / "tokenizer")
        if self.world > 1:
            torch.distributed.init_process_group("gloo")
            torch.distributed.barrier()
        from transformers import AutoTokenizer

        self.tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
        torch.manual_seed(config.seed)
        self.model = build_model(model_config).to(self.device)
        self.dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        self.pairs = (
            PairBatches(corpus, self.tokenizer, config, model_config.context_length, self.device)
            if config.recipe == "clip"
            else None
        )
        decayed = [p for p in self.model.parameters() if p.ndim >= 2]
        others = [p for p in self.model.parameters() if p.ndim < 2]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=config.learning_rate,
            betas=config.betas,
            fused=True,
        )
        self.step = 0
        self.images_seen = 0
        self.history: list[dict] = []
        if (folder / "checkpoint.json").is_file():
            self.load(folder / "checkpoint.safetensors", folder / "checkpoint.json")

    def losses(self, step: int) -> Tensor:
        """Loss of this process's batch of one step."""
        return self._invariant_loss(step) if self.pairs is None else self._pair_loss(step)

    def _seed(self, step: int) -> int:
        return (self.config.seed * 1_000_003 + step) * 64 + self.rank

    def _pair_loss(self, step: int) -> Tensor:
        assert self.pairs is not None
        batch = self.pairs.batch(step, self._seed(step))
        images = image_features(self.model, batch.images, self.dtype)
        texts = torch.cat([text_features(self.model, *part, self.dtype) for part in batch.texts])[batch.order]
        images, texts = F.normalize(images, dim=-1), F.normalize(texts, dim=-1)
        return pair_loss(images, texts, batch.same, self.model.logit_scale.exp())

    def _invariant_loss(self, step: int) -> Tensor:
        config, seed = self.config, self._seed(step)
        random = np.random.default_rng(seed)
        generator = torch.Generator().manual_seed(seed)
        concrete = step < config.concrete_steps
        rows, concept = self.corpus.draw(random, concepts=config.concepts, views=config.views, concrete=concrete)
        pixels = self.corpus.paint(rows, generator, self.device)
        columns = ["phrase", "style", "category", "collection"]
        first = self.corpus.index[columns].iloc[rows[:: config.views]].astype(str).to_numpy().tolist()
        writer = CaptionWriter(seed)
        if step % config.long_every == config.long_every - 1:
            captions = [writer.long(*words) for words in first]
        else:
            captions = [writer.short(*words[:3]) for words in first]
        tokens = self.tokenizer(captions, padding=True, truncation=True, return_tensors="pt")["input_ids"]
        end = (tokens == self.tokenizer.eos_token_id).int().argmax(1)
        images = image_features(self.model, ((pixels - PIXEL_MEAN) / PIXEL_STD,), self.dtype)
        texts = text_features(self.model, tokens.to(self.device), end.to(self.device), self.dtype)
        images, texts = F.normalize(images, dim=-1), F.normalize(texts, dim=-1)
        where = torch.from_numpy(concept).to(self.device)
        scale = self.model.logit_scale.exp()
        return contrastive_loss(images, texts, where, scale, image_weight=config.image_weight)

    def take_step(self) -> Tensor:
        """One optimiser step; returns its loss."""
        config = self.config
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, config)
        loss = self.losses(self.step)
        loss.backward()
        self.average_gradients()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), config.gradient_clip)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            self.model.logit_scale.clamp_(max=math.log(100))
        self.step += 1
        self.images_seen += config.images * self.world
        return loss.detach()

    def train(self) -> None:
        """Train to ``config.steps`` (or for ``config.minutes``), saving regularly.

        SIGTERM and SIGINT end a run of one process after the step in progress, saved; several processes end at the next
        checkpoint.
        """
        config, stop = self.config, _StopSignal()
        self.model.train()
        decay_begins = int(config.steps * (1 - config.decay_share))
        first_step, started = self.step, time.perf_counter()
        shown, running = self.step, torch.zeros((), device=self.device)
        with stop, _RunDisplay(self) as display:
            while self.step < config.steps:
                if self.step == decay_begins:
                    self.save("stable")
                running += self.take_step()
                rate = (self.step - first_step) * config.images * self.world / max(time.perf_counter() - started, 1e-9)
                display.show(rate)
                at_once = stop.requested and self.world == 1
                if self.step % config.save_every == 0 or self.step == config.steps or at_once:
                    average = float(running) / (self.step - shown)
                    shown, running = self.step, torch.zeros((), device=self.device)
                    self.history.append(
                        {
                            "step": self.step,
                            "pictures": self.images_seen,
                            "loss": round(average, 4),
                            "rate": round(rate),
                        }
                    )
                    if self.rank == 0:
                        print(json.dumps(self.history[-1]), flush=True)
                    self.save("checkpoint")
                    late = 0 < config.minutes * 60 < time.perf_counter() - started
                    if self._agreed(stop.requested or late):
                        break

    def _agreed(self, stop: bool) -> bool:
        """Whether any process has a reason to stop."""
        if self.world == 1:
            return stop
        votes = torch.tensor(float(stop))
        torch.distributed.all_reduce(votes)
        return bool(votes)

    def average_gradients(self) -> None:
        """Mean of the gradients over the processes, through one flat vector."""
        if self.world == 1:
            return
        gradients = [p.grad for p in self.model.parameters() if p.grad is not None]
        flat = torch.cat([g.reshape(-1) for g in gradients])
        torch.distributed.all_reduce(flat)
        flat /= self.world
        for gradient, mean in zip(gradients, flat.split([g.numel() for g in gradients]), strict=True):
            gradient.copy_(mean.view_as(gradient))

    def save(self, name: str) -> None:
        """Write ``NAME.safetensors`` (weights, Adam moments) and ``NAME.json`` (step, recipe, history), atomically."""
        if self.rank:
            return
        tensors = {f"model.{k}": v.contiguous() for k, v in self.model.state_dict().items()}
        for key, parameter in self.model.named_parameters():
            state = self.optimizer.state.get(parameter, {})
            tensors |= {f"{slot}.{key}": state[slot] for slot in ("exp_avg", "exp_avg_sq") if slot in state}
        record = {
            "step": self.step,
            "pictures": self.images_seen,
            "model": dataclasses.asdict(self.model_config),
            "training": dataclasses.asdict(self.config),
            "world": self.world,
            "corpus": {
                key: self.corpus.summary[key]
                for key in (
                    "iconify_version",
                    *("pictures", "mono", "colour", "phrases", "pack_collections", "test_classes"),
                )
            },
            "history": self.history,
        }
        save_file(tensors, self.folder / f"{name}.part")
        (self.folder / f"{name}.json.part").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
        (self.folder / f"{name}.part").replace(self.folder / f"{name}.safetensors")
        (self.folder / f"{name}.json.part").replace(self.folder / f"{name}.json")

    def load(self, tensors_file: Path, record_file: Path) -> None:
        """Resume: weights, Adam moments, step and history of a checkpoint."""
        record = json.loads(record_file.read_text(encoding="utf-8"))
        if record["model"] != dataclasses.asdict(self.model_config):
            raise ValueError(f"{record_file}: made with other model sizes; give a new --out folder or the same sizes")
        tensors = load_file(tensors_file)
        self.model.load_state_dict({k[6:]: v for k, v in tensors.items() if k.startswith("model.")})
        tensors = compact.expand(tensors)
        for key, parameter in self.model.named_parameters():
            if f"exp_avg_sq.{key}" in tensors:
                self.optimizer.state[parameter] = {
                    # A fused optimiser reads the step where the parameter is.
                    "step": torch.tensor(float(record["step"]), device=parameter.device),
                    # Copies: tensors of the file may lie unaligned, and aligned ones are rounded alike in every run.
                    **{
                        slot: tensors[f"{slot}.{key}"].clone().to(parameter.device)
                        for slot in ("exp_avg", "exp_avg_sq")
                    },
                }
        self.step, self.images_seen, self.history = record["step"], record["pictures"], record["history"]
