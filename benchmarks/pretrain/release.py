"""Measure a pretraining run on PictoDomains and write it as a version for shipping.

Everything that guides training - when to stop, what to tune, the aim - looks at train and validation classes. Test
classes are measured once, when a version is written, and the version is part of its folder's name.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file

from benchmarks.datasets.picto_domains import PictoDomains
from benchmarks.evaluation.ranking import rank
from benchmarks.pretrain import card
from benchmarks.pretrain.model import PIXEL_MEAN, PIXEL_STD, ModelConfig, build_model
from methods.floors import RawPixel
from methods.parts.backbone import Backbone
from methods.zero_shot import ZeroShot

#: The aim of the embedded backbone: zero-shot top-1 over train and validation classes.
AIM = 0.30


def export(run: Path, checkpoint: str, folder: Path) -> dict[str, Any]:
    """Write a checkpoint as a Hugging Face CLIP folder (float16) and return the checkpoint's record.

    Raises ``FileNotFoundError`` naming the checkpoint that is missing.
    """
    tensors, record_file = run / f"{checkpoint}.safetensors", run / f"{checkpoint}.json"
    if not tensors.is_file():
        raise FileNotFoundError(f"{tensors} is missing: train first, or name another --checkpoint")
    record = json.loads(record_file.read_text(encoding="utf-8"))
    model = build_model(ModelConfig(**record["model"]))
    model.load_state_dict({k[6:]: v for k, v in load_file(tensors).items() if k.startswith("model.")})
    folder.mkdir(parents=True, exist_ok=True)
    model.half().save_pretrained(folder)
    for file in sorted((run / "tokenizer").iterdir()):
        shutil.copy(file, folder / file.name)
    size = record["model"]["image_size"]
    processor = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"height": size, "width": size},
        "do_center_crop": False,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [PIXEL_MEAN] * 3,
        "image_std": [PIXEL_STD] * 3,
        "resample": 3,
        "do_convert_rgb": True,
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(processor, indent=1) + "\n", encoding="utf-8")
    return record


def measure(backbone: Backbone, dataset: PictoDomains, splits: tuple[str, ...]) -> dict[str, Any]:
    """Zero-shot top-1 and cross-domain mAP@all over the classes of ``splits``, per domain.

    mAP columns: this backbone, the same architecture with random weights, raw pixels.
    """
    table = dataset.table
    rows = np.flatnonzero(table["split"].isin(splits).to_numpy())
    names = sorted(set(table["class"].to_numpy()[rows]))
    labels = np.array([names.index(name) for name in table["class"].to_numpy()[rows]])
    domains = table["domain"].to_numpy()[rows]
    untrained = ZeroShot(Backbone.from_config(backbone.model.config, 0, tokenizer=backbone.tokenizer))
    methods = {"picto-clip": ZeroShot(backbone), "random weights": untrained, "raw pixels": RawPixel(backbone)}
    embeddings = {
        name: torch.cat(
            [method.encode_images(dataset.pixels(part, backbone.image_size)) for part in np.array_split(rows, 40)]
        )
        for name, method in methods.items()
    }
    text = methods["picto-clip"].encode_classes(names)
    hit = (embeddings["picto-clip"] @ text.T).argmax(1).numpy() == labels
    gallery = domains == dataset.card.gallery_domain
    result: dict[str, Any] = {"classes": len(names), "top1": float(hit.mean()), "domains": {}}
    for domain in dataset.domains:
        of = domains == domain
        line: dict[str, Any] = {"pictures": int(of.sum()), "top1": float(hit[of].mean())}
        if domain != dataset.card.gallery_domain:
            for name, embedding in embeddings.items():
                scores = rank(embedding[of].numpy(), embedding[gallery].numpy(), labels[of], labels[gallery])
                line[name] = scores.means()["map@all"]
        result["domains"][domain] = line
    return result


def _table(result: dict[str, Any]) -> str:
    lines = [
        "| domain | images | top-1 | mAP@all | random weights | raw pixels | times raw pixels |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    for domain, line in result["domains"].items():
        if "picto-clip" in line:
            figures = " | ".join(f"{line[name]:.3f}" for name in ("picto-clip", "random weights", "raw pixels"))
            figures += f" | {line['picto-clip'] / line['raw pixels']:.1f}"
        else:
            figures = "gallery | | |"
        lines.append(f"| {domain} | {line['pictures']} | {line['top1']:.1%} | {figures} |")
    return "\n".join(lines)


def evaluate(
    run: Path,
    checkpoint: str,
    *,
    echo: bool = True,
    headroom: bool = False,
    random_weights: bool = False,
    json_file: Path | None = None,
) -> dict[str, Any]:
    """Measure a checkpoint on train and validation classes; writes ``evaluation.json`` into the run folder.

    ``run`` may also be a released CLIP folder (``config.json``), which is only measured and printed. ``headroom``
    measures :mod:`benchmarks.pretrain.headroom` as well (under ``headroom``); ``random_weights`` measures the same
    architecture untrained; ``json_file`` takes a copy of the result.
    """
    from benchmarks.pretrain import headroom as headroom_module

    released = (run / "config.json").is_file()
    folder = run if released else run / "export"
    record = {} if released else export(run, checkpoint, folder)
    backbone = Backbone.load(folder)
    if random_weights:
        backbone = Backbone.from_config(backbone.model.config, 0, tokenizer=backbone.tokenizer)
    result = measure(backbone, PictoDomains(), ("train", "val"))
    result |= {key: record[key] for key in ("step", "pictures") if key in record}
    if echo:
        step = f"step {record['step']}: " if record else ""
        print(f"{step}top-1 {result['top1']:.1%} over {result['classes']} classes\n{_table(result)}", flush=True)
    if headroom:
        trained = backbone.clone().to("cuda" if torch.cuda.is_available() else "cpu")
        result["headroom"] = headroom_module.measure_headroom(trained, PictoDomains())
        print(headroom_module.summary("random weights" if random_weights else run.name, result["headroom"]), flush=True)
    if json_file is not None:
        json_file.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if not released and not random_weights:
        (run / "evaluation.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    return result


def write(
    run: Path,
    checkpoint: str,
    *,
    version: str,
    parent: Path | None,
    corpus: Path | None = None,
    beside: Sequence[Path] = (),
) -> Path:
    """Write ``picto-clip-VERSION`` (``v3`` for 3): weights, tokenizer, image processor, card, corpus, measurements.

    ``beside``: results of ``evaluate --headroom --json`` of other backbones, named by file, for the card's comparison;
    the run's own are in its ``evaluation.json`` where that was measured at the same step.

    Raises ``ValueError`` if that version exists: a released version is never overwritten.
    """
    parent = parent or Path(__file__).parents[1] / "assets" / "picto_clip"
    label = version_label(version)
    folder = parent / f"picto-clip-{label}"
    if folder.exists():
        raise ValueError(f"{folder} exists: a released version is never overwritten; give the next --version")
    record = export(run, checkpoint, folder)
    dataset = PictoDomains()
    backbone = Backbone.load(folder)
    seen, test = measure(backbone, dataset, ("train", "val")), measure(backbone, dataset, ("test",))
    compared = {label: seen | _own_headroom(run, record["step"])}
    compared |= {file.stem: json.loads(file.read_text(encoding="utf-8")) for file in beside}
    facts = {
        "version": label,
        "data_hash": dataset.data_hash,
        "weights_hash": backbone.weights_hash,
        "step": record["step"],
        "pictures": record["pictures"],
        "training": record["training"],
        "model": record["model"],
        "train_and_validation_classes": seen,
        "test_classes": test,
        "headroom": {name: result["headroom"] for name, result in compared.items() if "headroom" in result},
    }
    (folder / "measurements.json").write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    if corpus is not None:
        shutil.copy(corpus / "corpus.json", folder / "corpus.json")
    (folder / "README.md").write_text(_card(label, record, backbone, seen, test, compared), encoding="utf-8")
    print(f"wrote {folder}: top-1 {seen['top1']:.1%} over {seen['classes']} train and validation classes")
    return folder


def version_label(version: str) -> str:
    """``v3`` for ``3``; a version that differs in its corpus has a word, e.g. ``unseen``. Raises ``ValueError``."""
    if re.fullmatch(r"\d+(\.\d+)*", version):
        return f"v{version}"
    if re.fullmatch(r"[a-z]+", version):
        return version
    raise ValueError(f"--version {version!r} is neither a number (3) nor a word in lower case (unseen)")


def _own_headroom(run: Path, step: int) -> dict[str, Any]:
    file = run / "evaluation.json"
    stored = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return {"headroom": stored["headroom"]} if stored.get("step") == step and "headroom" in stored else {}


def _card(
    version: str,
    record: dict[str, Any],
    backbone: Backbone,
    seen: dict[str, Any],
    test: dict[str, Any],
    compared: dict[str, dict[str, Any]],
) -> str:
    training = record["training"]
    template = card.CLIP if training.get("recipe") == "clip" else card.INVARIANT
    parameters = sum(p.numel() for p in backbone.model.parameters())
    without_test = not record["corpus"].get("test_classes", True)
    share = training.get("colour_share", 0)
    return template.format(
        version=version,
        model=record["model"],
        training=training,
        corpus=record["corpus"],
        world=record["world"],
        step=record["step"],
        images=record["pictures"],
        epochs=record["pictures"] / record["corpus"]["pictures"],
        parameters=parameters,
        megabytes=parameters * 2 / 1e6,
        decay=training["decay_share"],
        colour=f"{share:.0%} of every batch" if share else "as the cap leaves them",
        unseen=card.LEFT_OUT if without_test else "",
        names=card.UNSEEN if without_test else card.SEEN,
        classes=seen["classes"],
        chance=1 / seen["classes"],
        top1=seen["top1"],
        aim=AIM,
        table_seen=_table(seen),
        test_classes=test["classes"],
        table_test=_table(test),
        headroom=card.style_table(compared),
    )
