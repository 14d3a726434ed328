"""Backbones by name: ``picto-clip`` is the default shipped version; every other name goes to ``Backbone.load``.

Any CLIP can be used: a Hub name (``openai/clip-vit-base-patch32``) or a folder, also open_clip's (a folder, or
``open_clip:`` before a Hub name) and SigLIP. OpenAI's ``.pt`` files become folders with
``python -m benchmarks.convert``. Every score names the version (``picto-clip-v3``), never just ``picto-clip``.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from methods.parts.backbone import Backbone, Precision

#: Folder of the shipped versions, ``picto-clip-v2``, ``picto-clip-v3``, ...
SHIPPED = Path(__file__).parents[1] / "assets" / "picto_clip"

#: What ``picto-clip`` means (where it is missing, the newest).
DEFAULT = "picto-clip-v3"

#: Other names of shipped versions, which describe them.
ALIASES = {"picto-clip-invariant": "picto-clip-v2"}

#: OpenAI's names of its CLIPs, and where the Hub has them.
OPENAI = {
    "ViT-B/32": "openai/clip-vit-base-patch32",
    "ViT-B/16": "openai/clip-vit-base-patch16",
    "ViT-L/14": "openai/clip-vit-large-patch14",
    "RN50": "open_clip:timm/resnet50_clip.openai",
    "RN101": "open_clip:timm/resnet101_clip.openai",
}


def shipped_versions() -> dict[str, Path]:
    """Shipped versions of picto-clip: those named by a word (``picto-clip-unseen``), then by number, oldest first."""
    folders = [path for path in SHIPPED.glob("picto-clip-*") if (path / "config.json").is_file()]
    return {
        path.name: path for path in sorted(folders, key=lambda path: [int(n) for n in re.findall(r"\d+", path.name)])
    }


def resolve(name_or_folder: str) -> tuple[str, str]:
    """``(name for the records, what Backbone.load takes)``; raises ``ValueError`` if no version of picto-clip is there.

    Other names are returned unchanged; ``Backbone.load`` raises if they are wrong.
    """
    versions = shipped_versions()
    name_or_folder = ALIASES.get(name_or_folder, name_or_folder)
    if name_or_folder == "picto-clip" and versions:
        name = DEFAULT if DEFAULT in versions else list(versions)[-1]
        return name, str(versions[name])
    if name_or_folder in versions:
        return name_or_folder, str(versions[name_or_folder])
    if re.fullmatch(r"picto-clip(-v[\d.]+|-unseen)?", name_or_folder) and not Path(name_or_folder).is_dir():
        there = ", ".join(versions) or "none"
        raise ValueError(
            f"backbone {name_or_folder} is not in this installation (there: {there}); use --backbone FOLDER"
        )
    path = Path(name_or_folder).expanduser()
    if path.suffix in (".pt", ".pth", ".bin", ".safetensors") and not path.is_dir():
        raise ValueError(
            f"backbone {name_or_folder} is a checkpoint file, not a folder: convert it first, with"
            f" `python -m benchmarks.convert {name_or_folder} {path.stem}` (open_clip's weights with their"
            f" open_clip_config.json beside them, or --config FILE), and use --backbone {path.stem}"
        )
    if name_or_folder in OPENAI:
        raise ValueError(f"backbone {name_or_folder} is OpenAI's name: use its Hub name {OPENAI[name_or_folder]}")
    return "", name_or_folder


def load(name_or_folder: str, *, device: str, precision: Precision) -> Backbone:
    """The backbone, with ``name`` set to the shipped version's name or what :meth:`Backbone.load` makes of it.

    Raises ``ValueError`` (``BackboneError`` is one) that names the problem and, for a missing checkpoint of the Hub,
    the command that fetches it.
    """
    from methods.parts.backbone import BackboneError, OtherModelError

    name, source = resolve(name_or_folder)
    try:
        backbone = _load(source, device=device, precision=precision)
    except OtherModelError as error:
        from benchmarks.backbones.loading import load_siglip

        if error.kind != "siglip":
            raise BackboneError(
                f"backbone {source} is a {error.kind!r} checkpoint: of the models in transformers' layout, those with"
                " model_type 'clip' or 'siglip' can be used"
            ) from error
        return load_siglip(source, device=device, precision=precision)
    except BackboneError as error:
        convert = "`python -m benchmarks.convert FOLDER OUT` converts a folder whose weights are only pickled"
        if "only pickled weights" in str(error):
            raise BackboneError(f"{error}; {convert}") from error
        if "a Hub name needs the network" not in str(error):
            raise
        raise BackboneError(
            f"{error}; `hf download {source}` fetches it (as a folder with --local-dir FOLDER), {convert}"
        ) from error
    backbone.name = name or backbone.name
    return backbone


def _load(source: str, *, device: str, precision: Precision) -> Backbone:
    from benchmarks.backbones.loading import is_open_clip, load_open_clip
    from methods.parts.backbone import Backbone

    if is_open_clip(source):
        return load_open_clip(source, device=device, precision=precision)
    return Backbone.load(source, device=device, precision=precision)
