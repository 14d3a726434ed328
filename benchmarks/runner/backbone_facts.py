"""What a plan needs of a backbone: its name, hashes and image processing, remembered so that it is not loaded.

The facts of a folder are kept in the cache folder under a hash of all its files, of the code that loads backbones and
of the packages that code uses. File hashes are themselves remembered while a file is untouched
(:mod:`benchmarks.datasets.contents`). A backbone of the Hub, or any backbone without a cache folder, is loaded.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import importlib.metadata
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import benchmarks.backbones
import methods.parts
from benchmarks.backbones import sources
from benchmarks.datasets.contents import tree_hash
from benchmarks.datasets.image_cache import cache_folder
from benchmarks.runner.machine import FinalPrecision
from methods.parts.capabilities import Capability
from methods.parts.preprocessing import ImageProcessing

if TYPE_CHECKING:
    from methods.parts.backbone import Backbone

#: Packages that decide what becomes of a checkpoint's files.
PACKAGES = ("torch", "transformers", "tokenizers", "safetensors", "open_clip_torch", "timm")


@dataclass(frozen=True)
class BackboneFacts:
    """What records and plans hold of a backbone.

    ``identity`` and ``preprocessing`` are those of :class:`methods.parts.backbone.Backbone`; ``image_size`` is in
    pixels, ``weights_mib`` the size of its parameters; ``offers``: what methods it can serve.
    """

    name: str
    identity: Mapping[str, str]
    preprocessing: Mapping[str, Any]
    precision: FinalPrecision
    image_size: int
    weights_mib: float
    offers: Capability = "tokens"
    towers: Mapping[str, int] | None = None  # fields of benchmarks.runner.sizing.Towers, where both are transformers

    @classmethod
    def of(cls, backbone: Backbone) -> Self:
        """The facts of a loaded backbone."""
        weights = sum(value.numel() * value.element_size() for value in backbone.model.parameters())
        return cls(
            name=backbone.name,
            identity=backbone.identity,
            preprocessing=backbone.preprocessing,
            precision=backbone.precision,
            image_size=int(backbone.image_size),
            weights_mib=weights / 2**20,
            offers=backbone.offers,
            towers=_towers(backbone),
        )

    @property
    def processing(self) -> ImageProcessing:
        """How an image becomes the backbone's input pixels."""
        return ImageProcessing.of_record(self.preprocessing, self.image_size)


def _towers(backbone: Backbone) -> dict[str, int] | None:
    if backbone.offers != "tokens":
        return None
    config = backbone.model.config
    vision, text = config.vision_config, config.text_config
    return {
        "vision_width": int(vision.hidden_size),
        "vision_layers": int(vision.num_hidden_layers),
        "vision_heads": int(vision.num_attention_heads),
        "vision_tokens": (int(backbone.image_size) // int(vision.patch_size)) ** 2 + 1,
        "text_width": int(text.hidden_size),
        "text_layers": int(text.num_hidden_layers),
        "text_heads": int(text.num_attention_heads),
    }


def backbone_facts(name_or_folder: str, precision: FinalPrecision, load: Callable[[], Backbone]) -> BackboneFacts:
    """The facts of a backbone: remembered ones where no file has changed, else those of ``load()``, which are kept.

    Raises what :func:`benchmarks.backbones.sources.resolve` or ``load`` raises for a backbone that cannot be used.
    """
    file = _memory(name_or_folder)
    if file is not None and (facts := _read(file, precision)) is not None:
        return facts
    facts = BackboneFacts.of(load())
    if file is not None and file == _memory(name_or_folder):  # nothing changed while it was loaded
        _write(file, facts)
    return facts


def _memory(name_or_folder: str) -> Path | None:
    """The file that keeps the facts of this folder as it is now; None without a cache folder, or for a Hub name."""
    cache = cache_folder()
    name, source = sources.resolve(name_or_folder)
    folder = Path(source).expanduser()
    if cache is None or not folder.is_dir():
        return None
    try:
        parts = [name, str(folder.resolve()), tree_hash(folder)]
    except OSError:  # loading it reports what is wrong
        return None
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            parts.append(f"{package} {importlib.metadata.version(package)}")
    folders = (methods.parts.__path__[0], benchmarks.backbones.__path__[0])
    for code in (file for place in folders for file in sorted(Path(place).glob("*.py"))):
        parts.append(hashlib.sha256(code.read_bytes()).hexdigest())
    return cache / "backbones" / f"{hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:32]}.json"


def _read(file: Path, precision: FinalPrecision) -> BackboneFacts | None:
    """The facts in a file; None if there is none, or it is damaged."""
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
        facts = stored["facts"]
        if stored["sha256"] == _digest(facts):
            return BackboneFacts(**facts, precision=precision)
    except (OSError, ValueError, TypeError, KeyError):
        pass
    return None


def _write(file: Path, facts: BackboneFacts) -> None:
    values = dataclasses.asdict(facts)
    del values["precision"]
    temporary = file.with_suffix(f".{os.getpid()}.part")
    with contextlib.suppress(OSError):  # no space, no permission: the next start loads the backbone again
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(json.dumps({"facts": values, "sha256": _digest(values)}), encoding="utf-8")
            temporary.replace(file)
        finally:
            temporary.unlink(missing_ok=True)


def _digest(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
