"""Seconds a training step of every method, by its plain path and by ours, on the same inputs in the same run.

``python -m benchmarks.speed.training`` fits each trained method of the registry twice, interleaved and several times
over: as it is, and with its exact speed-ups switched off (the changes in its ``plain`` class attribute, else
``fast=False`` in its config; a method with neither is timed as it is). The timed code is the method's own ``fit``,
loss, backward and optimiser step, seen from outside through the ``log`` callback. What a stage does before its first
step (cached features, prompts, graphs) is reported as its preparation, the least of the repeats, since what a process
loads once (WordNet) falls on the first. The first step of every stage warms up and is not timed.

Both paths see the same images, labels, class names and seed, so their losses must agree. The run compares them,
prints the largest relative difference of the first steps, and ends with exit code 1 where it is above the tolerance: a
ratio between paths that compute different things would be worthless.

Workload. Batch sizes are those of each method's paper (its config's defaults), with 245 classes, the training classes
of DomainNet in the UCDR-Adapter release, under the names of PictoDomains; at that size a step of some plain paths takes
minutes on a CPU. ``--shrink N`` divides batch sizes and classes by N and so keeps the proportion of images to texts,
which sets the ratio. By default N is 2 for picto-clip, and for the ViT sizes 12 on a CPU and 4 on a GPU;
``--batch-size`` and ``--classes`` set other numbers. (Batches that are balanced over the 5 domains hold at least
one image of each.) Augmentation is the paper's; ``--no-augmentation`` leaves it out, so that frozen image features
are computed once. Images are noise, held in memory, with as many target images.

Backbones: ``picto-clip``, and ``vit-b-32``, ``vit-b-16`` and ``vit-l-14``, the published CLIP sizes with random weights
and picto-clip's tokenizer (its smaller vocabulary makes some names longer, hence our ratio smaller).

Columns: *ratio* is plain over ours, the median of the repeats with their range. *CPU ratio* is that of processor time,
the better measure where other work shares the cores. *Work ratio* is that of floating-point operations in matrix
products, convolutions and attention (``torch.utils.flop_counter``); it is the same on every machine.

Measured in float32 on one thread of a quiet machine (``results/speed/training.json``; work ratio in brackets), against
what the arithmetic promises:

* AD-CLIP's text side, which is also timed alone (forward of all prompts of a batch, backward to their context), at
  least 8 times less work: 48 times faster (30) on picto-clip with 8 + 8 images and 122 classes, 9.1 (14) at ViT-B/32
  size with 1 + 1 images and 20 classes; the whole step 40 (27) and 5.6 (9.7).
* SRE-CLIP's step at least 20 times faster from cached features: 143 (516) at ViT-B/32 size with 21 + 21 images. On
  picto-clip, whose tower is smaller than the adapter and the graph network, 5.1 (4.6) with 128 + 128.
* UCDR-Adapter at least 3 times at 245 classes, in proportion: phase 2 with the paper's augmentation 3.0 (3.9) on
  picto-clip with 25 images and 122 classes, 2.4 (2.4) at ViT-B/32 size with 4 and 20; 3.3 (3.8) there without
  augmentation, when the image context tokens are cached too (processor time of a busy machine, 24 classes). Two of the
  four passes through the tower remain with augmentation, so that 3 is out of reach at that size. Phase 1, in which
  texts and prompts train: 1.8 (1.6) and 1.4 (1.3).
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.console import OneLineParser
from methods.registry import METHODS, UnknownNameError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from methods.interface import Method, TrainingData
    from methods.parts.backbone import Backbone
    from methods.parts.prompts import PromptTemplate

#: Training classes and domains of the UCDR-Adapter release on DomainNet.
CLASSES, DOMAINS = 245, 5

#: Patch size of the published CLIP sizes that are built here with random weights.
VIT = {"vit-b-32": 32, "vit-b-16": 16, "vit-l-14": 14}

#: Largest relative difference of the losses of two equal paths: at the first step, when the weights are still the same,
#: and later, when rounding has gone through the optimiser (Adam turns the sign of a gradient near 0 into a whole step).
TOLERANCE = {"float32": (1e-5, 1e-4), "bf16": (2e-2, 5e-2)}

#: So many first steps of a stage are compared; further on rounding grows without bound.
COMPARED = 6


class DisagreementError(RuntimeError):
    """The plain and the fast path of a method computed different losses."""


@dataclass(frozen=True)
class SpeedSettings:
    """What to measure; 0 is the default (:func:`workload`)."""

    shrink: int = 0
    batch_size: int = 0
    classes: int = 0
    steps: int = 0
    repeats: int = 0
    augmentation: bool = True
    seed: int = 0


@dataclass(frozen=True)
class MeasuredCost:
    """Wall-clock seconds, processor seconds of all threads, and floating-point operations (0 where not counted)."""

    wall_s: float = 0.0
    cpu_s: float = 0.0
    flops: int = 0

    def __add__(self, other: MeasuredCost) -> MeasuredCost:
        return MeasuredCost(self.wall_s + other.wall_s, self.cpu_s + other.cpu_s, self.flops + other.flops)

    def __sub__(self, other: MeasuredCost) -> MeasuredCost:
        return MeasuredCost(self.wall_s - other.wall_s, self.cpu_s - other.cpu_s, self.flops - other.flops)


@dataclass
class TimedStage:
    """One stage of one fit: the timed steps, their text sides, and all losses (the first step's too).

    ``first`` is the first step, whose operations are counted and whose time is not used; ``preparation`` is what came
    between the end of the stage before (or the start of ``fit``) and that step.
    """

    preparation: MeasuredCost
    first: MeasuredCost
    first_text: MeasuredCost
    steps: list[MeasuredCost] = field(default_factory=list)
    texts: list[MeasuredCost] = field(default_factory=list)
    losses: list[float] = field(default_factory=list)


class StepTimer:
    """Times the steps of one ``fit`` from outside.

    The end of a step is a call of ``log``; the first step of a stage begins when its optimiser has been made, which
    every method does last before the stage.
    """

    def __init__(self, device: torch.device, *, count_work: bool) -> None:
        self.stages: dict[str, TimedStage] = {}
        self._device, self._count_work = device, count_work
        self._counter: Any = None
        self._stack = ExitStack()
        self._preparation, self._text = MeasuredCost(), MeasuredCost()
        self._last = self.now()

    def now(self) -> MeasuredCost:
        """Both clocks and the counter, after all work that was sent to the device."""
        if self._device.type == "cuda":
            import torch

            torch.cuda.synchronize(self._device)
        flops = self._counter.get_total_flops() if self._counter is not None else 0
        return MeasuredCost(time.perf_counter(), time.process_time(), flops)

    def optimizer_made(self) -> None:
        """All until now was preparation."""
        now = self.now()
        self._preparation += now - self._last
        if self._count_work and self._counter is None:
            self._counter = self._stack.enter_context(work_counter())
        self._last = self.now()

    def add_text(self, cost: MeasuredCost) -> None:
        """Part of the present step's text side."""
        self._text += cost

    def log(self, **numbers: Any) -> None:
        """The ``log`` of :meth:`methods.interface.Method.fit`."""
        if "loss" not in numbers:
            return
        cost = self.now() - self._last
        name = numbers["stage"]
        if name in self.stages:
            self.stages[name].steps.append(cost)
            self.stages[name].texts.append(self._text)
        else:
            self.stages[name] = TimedStage(self._preparation, cost, self._text)
            self.close()
        self.stages[name].losses.append(numbers["loss"])
        self._preparation, self._text = MeasuredCost(), MeasuredCost()
        self._last = self.now()

    def close(self) -> None:
        """Stop counting operations."""
        self._stack.close()
        self._counter = None


def work_counter() -> Any:
    """A context that counts floating-point operations, those of the CPU's attention kernel too."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode, sdpa_backward_flop_count, sdpa_flop_count

    def forward(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return int(sdpa_flop_count(query, key, value))

    def backward(gradient: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
        return int(sdpa_backward_flop_count(gradient, query, key, value))

    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    kernel_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward
    return FlopCounterMode(display=False, custom_mapping={kernel: forward, kernel_backward: backward})


@contextmanager
def each_optimizer(call: Callable[[], None]) -> Iterator[None]:
    """Call ``call`` whenever an optimiser has been made."""
    from torch.optim import Optimizer

    original = Optimizer.__init__

    def init(self: Any, *arguments: Any, **named: Any) -> None:
        original(self, *arguments, **named)
        call()

    Optimizer.__init__ = init  # type: ignore[method-assign]
    try:
        yield
    finally:
        Optimizer.__init__ = original  # type: ignore[method-assign]


def watch_text_side(method: Any, timer: StepTimer) -> None:
    """Time AD-CLIP's text side within its steps: the forward pass to t_k(x) and the backward pass to the contexts."""
    encode = method.text_features

    def text_features(prompts: PromptTemplate, context: Tensor) -> Tensor:
        before = timer.now()
        texts: Tensor = encode(prompts, context)
        timer.add_text(timer.now() - before)
        reached: list[MeasuredCost] = []
        texts.register_hook(lambda gradient: reached.append(timer.now()))
        context.register_hook(lambda gradient: timer.add_text(timer.now() - reached.pop()))
        return texts

    method.text_features = text_features


# --- workload ---------------------------------------------------------------------------------------------------------


def trained_methods() -> list[str]:
    """Methods of the registry that take optimiser steps."""
    return [name for name in METHODS.defaults() if has_field(METHODS.get(name), "steps")]


def has_field(method: type[Method], name: str) -> bool:
    """Whether the method's config has a field of this name."""
    return any(known.name == name for known in dataclasses.fields(method.Config))


def plain_changes(method: type[Method]) -> dict[str, Any] | None:
    """The changes to the config that give the method's plain path; None if it names none."""
    named = getattr(method, "plain", None)
    if named is not None:
        return dict(named)
    return {"fast": False} if has_field(method, "fast") else None


def workload(settings: SpeedSettings, backbone: str, device: str) -> SpeedSettings:
    """The settings with all defaults filled in for this backbone and device."""
    small, slow = backbone not in VIT, backbone in VIT and device == "cpu"
    shrink = settings.shrink or (2 if small else 12 if device == "cpu" else 4)
    return dataclasses.replace(
        settings,
        shrink=shrink,
        classes=settings.classes or max(2, CLASSES // shrink),
        steps=settings.steps or (1 if slow else 3),
        repeats=settings.repeats or (2 if slow else 3),
    )


def config_changes(method: type[Method], settings: SpeedSettings) -> dict[str, Any]:
    """Changes to the method's config: one untimed and ``steps`` timed steps a stage, batches of the workload's size.

    Target losses run from the first step on; there is no validation.
    """
    stages = 2 if has_field(method, "stage1_share") else 1
    changes: dict[str, Any] = {
        "steps": (1 + settings.steps) * stages,
        "stage1_share": 0.5,
        "warmup_share": 0.0,
        "validate_every": 0,
    }
    for name in ("batch_size", "stage1_batch_size"):
        if has_field(method, name):
            published = getattr(method.Config(), name)
            changes[name] = settings.batch_size or max(1, published // settings.shrink)
    if not settings.augmentation:
        changes |= {"augment": False, "crop": 1.0, "flip": False, "jitter": 0.0}
    return {name: value for name, value in changes.items() if has_field(method, name)}


@cache
def class_list() -> tuple[tuple[str, ...], Mapping[str, str]]:
    """Class names of PictoDomains in order, and their synsets."""
    from benchmarks.datasets.picto_domains import PictoDomains

    dataset = PictoDomains()
    return tuple(sorted(dataset.table["class"].unique())), dataset.synsets


def training_data(images: int, classes: int, size: int, seed: int) -> TrainingData:
    """Noise images of ``classes`` classes in 5 domains, labelled, and as many unlabelled target images.

    Raises ``ValueError`` if there are not so many class names.
    """
    import torch

    from methods.interface import Images, TrainingData
    from methods.parts.feeding import unit_range

    names, synsets = class_list()
    if classes > len(names):
        raise ValueError(f"--classes {classes}: there are {len(names)} class names")

    class Noise(Images):
        def __init__(self, kind: str, draw: int) -> None:
            generator = torch.Generator().manual_seed(draw)
            self.values = torch.randint(0, 256, (images, 3, size, size), dtype=torch.uint8, generator=generator)
            self.content = [f"noise {size} {kind} {draw} {number}" for number in range(images)]

        def __len__(self) -> int:
            return images

        def pixels(self, index: Tensor) -> Tensor:
            return unit_range(self.values[index])

        def stored(self, index: Tensor) -> Tensor:
            return self.values[index]

        content: Sequence[str] = ()

    number = torch.arange(images)
    return TrainingData(
        protocol="speed",
        images=Noise("source", 2 * seed),
        target=Noise("target", 2 * seed + 1),
        labels=number % classes,
        domains=number % DOMAINS,
        class_names=names[:classes],
        domain_names=[f"domain {domain}" for domain in range(DOMAINS)],
        synsets={name: synsets[name] for name in names[:classes] if name in synsets},
        select="last",
    )


def load_backbone(name: str, device: str, precision: Any) -> Backbone:
    """``picto-clip``, a size of :data:`VIT` with random weights, or any value of ``benchmarks.run --backbone``."""
    from transformers import CLIPConfig

    from benchmarks.backbones import sources
    from methods.parts.backbone import Backbone

    if name not in VIT:
        return sources.load(name, device=device, precision=precision)
    tokenizer = sources.load("picto-clip", device="cpu", precision="float32").tokenizer
    large = name == "vit-l-14"
    heads, layers, text_heads = (16, 24, 12) if large else (12, 12, 8)  # each of width 64

    def tower(heads: int, layers: int) -> dict[str, int]:
        width = 64 * heads
        sizes = {"hidden_size": width, "intermediate_size": 4 * width}
        return {**sizes, "num_attention_heads": heads, "num_hidden_layers": layers}

    vision, text = {**tower(heads, layers), "image_size": 224}, tower(text_heads, 12)
    special = {f"{kind}_token_id": getattr(tokenizer, f"{kind}_token_id") for kind in ("bos", "eos", "pad")}
    config = CLIPConfig(
        vision_config={**vision, "patch_size": VIT[name]},
        text_config={**text, **special, "vocab_size": 49408, "max_position_embeddings": 77},
        projection_dim=64 * text_heads,
    )
    backbone = Backbone.from_config(config, seed=0, tokenizer=tokenizer, precision=precision)
    backbone.name = f"{name} (random weights)"
    return backbone.to(device)


# --- measurement ------------------------------------------------------------------------------------------------------


def fit_once(
    name: str, changes: Mapping[str, Any], backbone: Backbone, data: TrainingData, *, seed: int, count_work: bool
) -> dict[str, TimedStage]:
    """Fit a method of this name with these changes to its config, from cold feature caches; its stages by name."""
    from methods.parts.feature_cache import process_cache

    method_class = METHODS.get(name)
    process_cache().clear()
    gc.collect()
    method = method_class(backbone, method_class.Config(**changes), backbone.device)
    timer = StepTimer(backbone.device, count_work=count_work)
    if name == "ad_clip":
        watch_text_side(method, timer)
    try:
        with each_optimizer(timer.optimizer_made):
            method.fit(data, seed=seed, log=timer.log)
    finally:
        timer.close()
        process_cache().clear()
    return timer.stages


@contextmanager
def peak_gpu_memory(device: torch.device) -> Iterator[list[float]]:
    """A list that, after the block, holds the most memory that tensors took on a GPU, in MiB; empty elsewhere."""
    peak: list[float] = []
    if device.type != "cuda":
        yield peak
        return
    import torch

    torch.cuda.reset_peak_memory_stats(device)
    yield peak
    torch.cuda.synchronize(device)
    peak.append(torch.cuda.max_memory_allocated(device) / 2**20)


def measure(
    name: str, backbone: Backbone, settings: SpeedSettings, progress: Callable[[str], None] = lambda what: None
) -> list[dict[str, Any]]:
    """Rows (:func:`compare`) of every stage of one method on one backbone; ``settings`` as :func:`workload` gives them.

    Raises :class:`DisagreementError` if the two paths run other stages or numbers of steps; losses that differ are
    reported by a row's ``agrees``.
    """
    method = METHODS.get(name)
    changes, plain = config_changes(method, settings), plain_changes(method)
    sizes = [changes[key] for key in ("stage1_batch_size", "batch_size") if key in changes]
    images = max([2 * settings.classes, *sizes])  # two a class: metric_head compares them
    data = training_data(images, settings.classes, backbone.image_size, settings.seed)
    paths = {"ours": changes} if plain is None else {"plain": {**changes, **plain}, "ours": changes}
    fits: dict[str, list[dict[str, TimedStage]]] = {path: [] for path in paths}
    peaks = dict.fromkeys(paths, 0.0)
    gc.collect()
    gc.freeze()  # what is there already is not searched for garbage before every fit
    try:
        for repeat in range(settings.repeats):
            for path in list(paths)[:: 1 if repeat % 2 == 0 else -1]:  # so that neither path is always the first
                progress(f"{name}, {backbone.name}: {path}")
                with peak_gpu_memory(backbone.device) as peak:
                    fit = fit_once(name, paths[path], backbone, data, seed=settings.seed, count_work=repeat == 0)
                fits[path].append(fit)
                peaks[path] = max([*peak, peaks[path]])
    finally:
        gc.unfreeze()
    shapes = {tuple((stage, len(run.losses)) for stage, run in fit.items()) for path in fits for fit in fits[path]}
    if len(shapes) != 1:
        raise DisagreementError(f"{name} on {backbone.name}: the paths run other stages or steps: {sorted(shapes)}")

    rows = []
    for number, stage in enumerate(fits["ours"][0]):
        stages = {path: [fit[stage] for fit in runs] for path, runs in fits.items()}
        about = {
            "method": name,
            "backbone": backbone.name,
            "stage": stage,
            "batch_size": sizes[number] if number < len(sizes) else sizes[-1],
            "classes": settings.classes,
            "pictures": images,
            **loss_agreement(stages, backbone.precision, first_stage=number == 0),
            "peak_gpu_mib": peaks if backbone.device.type == "cuda" else None,
            "preparation_s": {path: min(s.preparation.wall_s for s in runs) for path, runs in stages.items()},
        }
        steps = {path: [(s.first, s.steps) for s in runs] for path, runs in stages.items()}
        rows.append({**about, "part": "step", **compare(steps)})
        if all(s.first_text.wall_s for runs in stages.values() for s in runs):
            texts = {path: [(s.first_text, s.texts) for s in runs] for path, runs in stages.items()}
            rows.append({**about, "part": "text side", **compare(texts)})
    return rows


def loss_agreement(stages: Mapping[str, list[TimedStage]], precision: str, *, first_stage: bool) -> dict[str, Any]:
    """Largest relative difference of both paths' losses at the first step and later, and whether they agree.

    A later stage starts from weights that the two paths have trained, so all its steps count as later ones.
    """
    if "plain" not in stages:
        return {"loss_difference": None, "agrees": None, "losses": {"ours": [s.losses for s in stages["ours"]]}}
    first, later = 0.0, 0.0
    for plain, ours in zip(stages["plain"], stages["ours"], strict=True):
        pairs = zip(plain.losses[:COMPARED], ours.losses[:COMPARED], strict=True)
        differences = [abs(a - b) / max(abs(a), 1e-12) for a, b in pairs]
        first, later = max(first, differences[0]), max(later, *differences[1:])
    strict, loose = TOLERANCE[precision]
    return {
        "loss_difference": {"first": first, "later": later},
        "tolerance": {"first": strict if first_stage else loose, "later": loose},
        "agrees": first <= (strict if first_stage else loose) and later <= loose,
        "losses": {path: [s.losses for s in runs] for path, runs in stages.items()},
    }


def compare(costs: Mapping[str, list[tuple[MeasuredCost, list[MeasuredCost]]]]) -> dict[str, Any]:
    """Seconds of each path, and plain over ours in time, processor time and work.

    ``costs``: for each path and repeat the first, untimed cost, whose operations count, and the timed ones. A repeat's
    time is the median of its steps, the time reported the median of the repeats.
    """
    result: dict[str, Any] = {}
    for path, repeats in costs.items():
        seconds = [[cost.wall_s for cost in timed] for _, timed in repeats]
        medians = [median(steps) for steps in seconds]
        result[path] = {
            "s": median(medians),
            "range_s": [min(medians), max(medians)],
            "cpu_s": median(median(cost.cpu_s for cost in timed) for _, timed in repeats),
            "flops": repeats[0][0].flops,
            "steps_s": seconds,
        }
    if "plain" not in result:
        return {**result, "plain": None, "ratio": None, "ratio_range": None, "cpu_ratio": None, "work_ratio": None}
    plain, ours = result["plain"], result["ours"]
    ratios = [median(p) / median(o) for p, o in zip(plain["steps_s"], ours["steps_s"], strict=True)]
    return {
        **result,
        "ratio": median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "cpu_ratio": plain["cpu_s"] / ours["cpu_s"] if ours["cpu_s"] else None,
        "work_ratio": plain["flops"] / ours["flops"] if ours["flops"] else None,
    }


# --- output -----------------------------------------------------------------------------------------------------------


TITLES = (
    *("method", "stage", "backbone", "batch", "classes", "plain s/step", "ours s/step", "ratio (range)", "CPU ratio"),
    *("work ratio", "loss difference", "preparation s, plain / ours"),
)


def table_head() -> str:
    """The first two lines of the Markdown table."""
    return f"| {' | '.join(TITLES)} |\n|{' --- |' * 3}{' ---: |' * (len(TITLES) - 3)}"


def table_line(row: Mapping[str, Any]) -> str:
    """A row's line of the Markdown table."""
    stage = row["stage"] if row["part"] == "step" else f"{row['stage']}: {row['part']}"
    cells = [row["method"], stage, row["backbone"], row["batch_size"], row["classes"]]
    ours, before = row["ours"], row["preparation_s"]
    if row["plain"] is None:
        cells += ["no plain path", f"{ours['s']:.3g}", "", "", "", "", f"- / {before['ours']:.2g}"]
    else:
        low, high = row["ratio_range"]
        difference = max(row["loss_difference"].values())
        cells += [f"{row['plain']['s']:.3g}", f"{ours['s']:.3g}", f"{row['ratio']:.1f} ({low:.1f} to {high:.1f})"]
        cells += [f"{row[kind]:.1f}" if row[kind] else "" for kind in ("cpu_ratio", "work_ratio")]
        cells += [f"{difference:.0e}{'' if row['agrees'] else ' DISAGREE'}"]
        cells += [f"{before['plain']:.2g} / {before['ours']:.2g}"]
    return f"| {' | '.join(str(cell) for cell in cells)} |"


@contextmanager
def fit_progress(fits: int) -> Iterator[Callable[[str], None]]:
    """Progress over the fits on standard error, with the time left; silent where that is no terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    display = Progress(
        *columns,
        console=console,
        disable=not console.is_terminal,
        transient=True,
        redirect_stdout=sys.stdout.isatty(),  # the table's lines go above the bar, but never out of a file
    )
    with display:
        task = display.add_task("", total=fits)
        shown = False

        def fitting(what: str) -> None:
            nonlocal shown
            display.update(task, description=what, advance=int(shown))
            shown = True

        yield fitting


def _split(given: str, known: Sequence[str]) -> list[str]:
    return list(known) if given == "all" else [name.strip() for name in given.split(",") if name.strip()]


def build_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = OneLineParser(
        prog="python -m benchmarks.speed.training",
        description="Time a training step of each method by its plain path and by ours, on the same inputs.",
    )
    parser.add_argument("--methods", default="all", metavar="LIST", help="comma list, or all trained ones (default)")
    parser.add_argument(
        "--backbones",
        default="picto-clip,vit-b-32",
        metavar="LIST",
        help=f"comma list of picto-clip, {', '.join(VIT)} (random weights), folders (default: %(default)s)",
    )
    parser.add_argument("--shrink", type=int, default=0, help="divide the papers' batch sizes and classes by this")
    parser.add_argument("--batch-size", type=int, default=0, help="of all methods and stages (default: see --shrink)")
    parser.add_argument("--classes", type=int, default=0, help="default: see --shrink")
    parser.add_argument(
        "--steps", type=int, default=0, help="timed steps a stage and repeat (default: 3; a ViT on a CPU: 1)"
    )
    parser.add_argument("--repeats", type=int, default=0, help="fits by each path (default: 3; a ViT on a CPU: 2)")
    parser.add_argument("--no-augmentation", action="store_true", help="leave out the papers' augmentation")
    parser.add_argument("--device", default="auto", help="auto (default), cpu, cuda, cuda:1, ...")
    parser.add_argument(
        "--precision", choices=["float32", "bf16"], help="default: float32 on a CPU, bf16 (autocast) on a GPU"
    )
    parser.add_argument("--threads", type=int, help="CPU threads (default: OMP_NUM_THREADS, or all cores)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every number to FILE")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see ``--help``. Exit code 1 if the paths of a method disagree or one fails, 2 for wrong options."""
    parser = build_parser()
    args = parser.parse_args(argv)
    for name in ("shrink", "batch_size", "classes", "steps", "repeats", "seed"):
        if getattr(args, name) < 0:
            parser.error(f"--{name.replace('_', '-')} cannot be negative")
    if args.threads is not None and args.threads < 1:
        parser.error("--threads must be at least 1")
    try:
        for name in [] if args.methods == "all" else _split(args.methods, ()):
            METHODS.check(name)
    except UnknownNameError as error:
        parser.error(str(error))

    import torch

    from benchmarks.runner.environment import environment
    from benchmarks.runner.machine import pick_device
    from benchmarks.runner.process_settings import prepare_process
    from benchmarks.runner.settings import SettingsError

    methods = _split(args.methods, trained_methods() if args.methods == "all" else ())
    for name in methods:
        if not has_field(METHODS.get(name), "steps"):
            parser.error(f"{name} is not trained; choose from: {', '.join(trained_methods())}")
    try:
        device = pick_device(args.device)
    except SettingsError as error:
        parser.error(str(error))
    precision = args.precision or ("float32" if device == "cpu" else "bf16")
    prepare_process(args.threads or 0)  # the arithmetic of a run
    torch.optim.SGD([torch.zeros(1, requires_grad=True)])  # the first optimiser of a process imports a compiler

    start, load = time.perf_counter(), [os.getloadavg()]
    settings = SpeedSettings(
        shrink=args.shrink,
        batch_size=args.batch_size,
        classes=args.classes,
        steps=args.steps,
        repeats=args.repeats,
        augmentation=not args.no_augmentation,
        seed=args.seed,
    )
    rows: list[dict[str, Any]] = []
    failures: list[dict[str, str]] = []
    used: dict[str, SpeedSettings] = {}
    names = _split(args.backbones, ())
    fits = sum(2 * len(methods) * workload(settings, name, device).repeats for name in names)
    with fit_progress(fits) as progress:
        for backbone_name in names:
            try:
                backbone = load_backbone(backbone_name, device, precision)
            except ValueError as error:
                parser.error(str(error))
            backbone.weights_hash  # noqa: B018 (kept by the backbone: no fit pays for it)
            used[backbone.name] = workload(settings, backbone_name, device)
            for name in methods:
                try:
                    fresh = measure(name, backbone, used[backbone.name], progress)
                    print(*([] if rows else [table_head()]), *map(table_line, fresh), sep="\n", flush=True)
                    rows += fresh
                except (RuntimeError, ValueError, MemoryError) as error:  # out of memory, ...: the others go on
                    reason = next(iter(str(error).splitlines()), type(error).__name__)
                    failures.append({"method": name, "backbone": backbone.name, "reason": reason})
            del backbone
    load.append(os.getloadavg())
    seconds = time.perf_counter() - start

    result: dict[str, Any] = {
        "schema": 1,
        "environment": dataclasses.asdict(environment(device, torch.get_num_threads())),
        "precision": precision,
        "load_average": {"start": load[0], "end": load[1]},
        "seconds": seconds,
        "settings": {name: dataclasses.asdict(chosen) for name, chosen in used.items()},
        "rows": rows,
        "failures": failures,
    }
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    machine = result["environment"]["hardware"]
    print(
        f"\n{machine.get('gpu', machine['cpu'])}, {precision}, {torch.get_num_threads()} threads, torch"
        f" {torch.__version__}; {seconds:.0f} s in all; load average {load[0][0]:.1f} at the"
        f" start, {load[1][0]:.1f} at the end"
    )
    for failure in failures:
        print(f"failed: {failure['method']} on {failure['backbone']}: {failure['reason']}", file=sys.stderr)
    wrong = [row for row in rows if row["agrees"] is False and row["part"] == "step"]
    for row in wrong:
        found, allowed = row["loss_difference"], row["tolerance"]
        print(
            f"DISAGREE: {row['method']} on {row['backbone']}, stage {row['stage']}: losses of the plain path and of"
            f" ours differ by {found['first']:.1e} at the first step (allowed {allowed['first']:.0e}) and by"
            f" {found['later']:.1e} later (allowed {allowed['later']:.0e})",
            file=sys.stderr,
        )
    return 1 if failures or wrong else 0


if __name__ == "__main__":
    sys.exit(main())
