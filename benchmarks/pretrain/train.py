"""Multi-positive contrastive training of picto-clip: seeded, resumable, on one GPU or a few CPU processes.

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
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional as F

from benchmarks.pretrain.captions import CaptionWriter
from benchmarks.pretrain.data import Corpus
from benchmarks.pretrain.model import PIXEL_MEAN, PIXEL_STD, ModelConfig, build_model, train_tokenizer


@dataclass(frozen=True)
class TrainConfig:
    """Recipe of one pretraining run. ``steps`` optimiser steps of ``concepts * views`` pictures per process.

    The first ``concrete_steps`` steps draw concrete WordNet nouns only, which come round often enough to be learned;
    without them the loss stays at chance for long.
    """

    steps: int = 10_000
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
    among images (the concept's other pictures are the positives) keeps the vision tower from starting out constant.
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


def _multi_positive(logits: Tensor, positive: Tensor) -> Tensor:
    """Mean over rows of minus the mean log-softmax over the row's positives (rows without one count nothing)."""
    log_probability = F.log_softmax(logits, dim=1) * positive
    return -(log_probability.sum(1) / positive.sum(1).clamp(min=1)).mean()


def pooled(output: Any) -> Tensor:
    """Projected features, whether ``get_*_features`` gives them bare or inside an output object."""
    return output if isinstance(output, Tensor) else output.pooler_output


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


class Trainer:
    """One process of a run in ``folder`` (several processes average their gradients through gloo)."""

    def __init__(self, corpus: Corpus, folder: Path, model_config: ModelConfig, config: TrainConfig) -> None:
        self.corpus, self.folder, self.config, self.model_config = corpus, folder, config, model_config
        self.rank = int(os.environ.get("RANK", "0"))
        self.world = int(os.environ.get("WORLD_SIZE", "1"))
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
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
        if config.precision == "bf16" and self.device.type == "cpu":
            # The CPU's fused attention has a slow backward pass in bf16; plain products make the step twice as fast.
            self.model.set_attn_implementation("eager")
        decayed = [p for p in self.model.parameters() if p.ndim >= 2]
        others = [p for p in self.model.parameters() if p.ndim < 2]
        self.optimizer = torch.optim.AdamW(
            [{"params": decayed, "weight_decay": config.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=config.learning_rate,
            betas=config.betas,
            fused=True,
        )
        self.step = 0
        self.pictures = 0
        self.history: list[dict] = []
        if (folder / "checkpoint.json").is_file():
            self.load(folder / "checkpoint.safetensors", folder / "checkpoint.json")

    def losses(self, step: int) -> Tensor:
        """Loss of this process's batch of one step."""
        config = self.config
        seed = (config.seed * 1_000_003 + step) * 64 + self.rank
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
        tokens = self.tokenizer(captions, padding=True, truncation=True, return_tensors="pt").to(self.device)
        with torch.autocast(self.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
            images = pooled(self.model.get_image_features(pixel_values=(pixels - PIXEL_MEAN) / PIXEL_STD))
            texts = pooled(self.model.get_text_features(**tokens))
        images, texts = F.normalize(images.float(), dim=-1), F.normalize(texts.float(), dim=-1)
        where = torch.from_numpy(concept).to(self.device)
        scale = self.model.logit_scale.exp()
        return contrastive_loss(images, texts, where, scale, image_weight=config.image_weight)

    def train(self) -> None:
        """Train to ``config.steps`` (or for ``config.minutes``), saving as it goes."""
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

        config, started, running = self.config, time.perf_counter(), 0.0
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]:.0f} pictures/s"),
            TimeRemainingColumn(),
        )
        self.model.train()
        decay_begins = int(config.steps * (1 - config.decay_share))
        begun, shown = self.step, 0
        with Progress(*columns, disable=self.rank > 0 or not sys.stderr.isatty()) as bar:
            task = bar.add_task("pretraining", total=config.steps, completed=self.step, rate=0.0)
            while self.step < config.steps:
                if self.step == decay_begins:
                    self.save("stable")
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
                self.pictures += config.concepts * config.views * self.world
                running += float(loss.detach())
                seen = (self.step - begun) * config.concepts * config.views * self.world
                rate = seen / max(time.perf_counter() - started, 1e-9)
                bar.update(task, completed=self.step, rate=rate)
                if self.step % config.save_every == 0 or self.step == config.steps:
                    average = running / (self.step - max(begun, shown))
                    shown, running = self.step, 0.0
                    self.history.append(
                        {"step": self.step, "pictures": self.pictures, "loss": round(average, 4), "rate": round(rate)}
                    )
                    if self.rank == 0:
                        print(json.dumps(self.history[-1]), flush=True)
                    self.save("checkpoint")
                    stop = torch.tensor(
                        float(config.minutes > 0 and time.perf_counter() - started > config.minutes * 60)
                    )
                    if self.world > 1:
                        torch.distributed.broadcast(stop, 0)
                    if bool(stop):
                        break

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
            "pictures": self.pictures,
            "model": dataclasses.asdict(self.model_config),
            "training": dataclasses.asdict(self.config),
            "world": self.world,
            "corpus": {k: self.corpus.summary[k] for k in ("iconify_version", "pictures", "mono", "colour", "phrases")},
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
        for key, parameter in self.model.named_parameters():
            if f"exp_avg.{key}" in tensors:
                self.optimizer.state[parameter] = {
                    "step": torch.tensor(float(record["step"])),
                    # Copies: tensors of the file may lie unaligned, and aligned ones are rounded alike in every run.
                    "exp_avg": tensors[f"exp_avg.{key}"].clone().to(self.device),
                    "exp_avg_sq": tensors[f"exp_avg_sq.{key}"].clone().to(self.device),
                }
        self.step, self.pictures, self.history = record["step"], record["pictures"], record["history"]
