"""What a CLIP checkpoint's weights do not contain, its activation and heads: read from ``open_clip_config.json``.

open_clip stores weights under OpenAI's names, but its models have plain GELU unless their config has ``quick_gelu``,
and the heads of its larger ones are 80, 88 or 104 wide.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from methods.parts.preprocessing import CLIP_MEAN, CLIP_STD, ImageProcessing, read_processor

NAME = "open_clip_config.json"

ACTIVATIONS = ("quick_gelu", "gelu")

#: Keys of open_clip's configs that do not change a trained model's output.
_HARMLESS = {
    "": ("embed_dim", "vision_cfg", "text_cfg", "quick_gelu", "init_logit_scale", "cast_dtype", "output_dict"),
    "vision_cfg": ("layers", "width", "head_width", "mlp_ratio", "patch_size", "image_size", "patch_dropout"),
    "text_cfg": ("context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio"),
}

#: Values that other keys may have, since they are the same in every CLIP.
_USUAL = {"pool_type": ("tok", "argmax"), "pos_embed_type": ("learnable",), "pad_id": (0,), "proj_type": ("linear",)}


class ConfigError(ValueError):
    """A config that cannot be used; one line without the file's name."""


@dataclass(frozen=True)
class CheckpointFacts:
    """Settings of a model that its weights do not contain; ``None``: not known.

    ``activation``: "quick_gelu" or "gelu"; ``head_width`` of the vision tower and ``text_heads``; ``expected``: sizes
    that the weights must have, by the config's names; ``preprocess``: image processor settings; ``whole``: the config
    itself, empty where the settings are from options.
    """

    activation: str | None = None
    head_width: int | None = None
    text_heads: int | None = None
    expected: Mapping[str, int] = field(default_factory=dict)
    preprocess: Mapping[str, Any] = field(default_factory=dict)
    whole: Mapping[str, Any] = field(default_factory=dict)

    @property
    def complete(self) -> bool:
        """Whether a model can be built."""
        return self.activation is not None and self.head_width is not None


def beside(checkpoint: Path) -> Path | None:
    """The ``open_clip_config.json`` in a checkpoint's folder, if there is one."""
    file = (checkpoint if checkpoint.is_dir() else checkpoint.parent) / NAME
    return file if file.is_file() else None


def read(file: Path) -> CheckpointFacts:
    """The settings in open_clip's config: the file beside its weights, or one of its ``model_configs``.

    Raises :class:`ConfigError` if it cannot be read, or has settings that ``transformers.CLIPModel`` does not support.
    """
    whole = content(file)
    model = whole["model_cfg"]
    vision, text = model["vision_cfg"], model["text_cfg"]
    for where, part in (("", model), ("vision_cfg", vision), ("text_cfg", text)):
        _refuse_unknown(where, part)
    head_width, heads = vision.get("head_width", 64), text.get("heads", 8)
    for key, value in (("vision_cfg.head_width", head_width), ("text_cfg.heads", heads)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{key} {value!r} must be a whole number of 1 or more")
    if not isinstance(model.get("quick_gelu", False), bool):
        raise ConfigError(f"quick_gelu {model['quick_gelu']!r} must be true or false")
    return CheckpointFacts(
        activation="quick_gelu" if model.get("quick_gelu", False) else "gelu",
        head_width=head_width,
        text_heads=heads,
        expected={
            name: value
            for name, given in (
                ("embed_dim", model.get("embed_dim")),
                ("vision_cfg.width", vision.get("width")),
                ("vision_cfg.layers", vision.get("layers")),
                ("vision_cfg.patch_size", vision.get("patch_size")),
                ("vision_cfg.image_size", vision.get("image_size")),
                ("text_cfg.width", text.get("width")),
                ("text_cfg.layers", text.get("layers")),
                ("text_cfg.context_length", text.get("context_length")),
                ("text_cfg.vocab_size", text.get("vocab_size")),
            )
            if isinstance(value := _one_side(given), int)
        },
        preprocess=_preprocess(whole.get("preprocess_cfg") or {}),
        whole=whole,
    )


def content(file: Path) -> dict[str, Any]:
    """The whole file, with the model's config as ``model_cfg``; raises :class:`ConfigError` if it is none."""
    try:
        whole = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or " ".join(str(error).split())
        raise ConfigError(f"it cannot be read as JSON ({reason})") from error
    whole = whole if isinstance(whole, dict) else {}
    model = whole.get("model_cfg", whole)
    if not isinstance(model, dict) or not all(isinstance(model.get(key), dict) for key in ("vision_cfg", "text_cfg")):
        raise ConfigError("it has no vision_cfg and text_cfg: give open_clip's config of the model")
    return {**whole, "model_cfg": model}


def is_plain(file: Path) -> bool:
    """Whether the model is a CLIP with a vision transformer that ``transformers.CLIPModel`` computes as well.

    Raises :class:`ConfigError` if the file is no config of open_clip's.
    """
    if is_resnet(file):
        return False
    try:
        read(file)
    except ConfigError:
        return False
    return True


def is_resnet(file: Path) -> bool:
    """Whether the model is a CLIP with OpenAI's ResNet and text tower."""
    model = content(file)["model_cfg"]
    layers = model["vision_cfg"].get("layers")
    if not isinstance(layers, list) or len(layers) != 4 or model["vision_cfg"].get("timm_model_name"):
        return False
    try:
        _refuse_unknown("", model)
        _refuse_unknown("text_cfg", model["text_cfg"])
    except ConfigError:
        return False
    return True


def image_processing(file: Path) -> ImageProcessing:
    """How an image becomes the model's pixels; raises :class:`ConfigError` for what is not supported."""
    whole = content(file)
    size = _one_side(whole["model_cfg"]["vision_cfg"].get("image_size", 224))
    if not isinstance(size, int):
        raise ConfigError(f"vision_cfg.image_size {size!r} is not square: only square images are supported")
    return read_processor(processor(_preprocess(whole.get("preprocess_cfg") or {}), size), size)


def processor(preprocess: Mapping[str, Any], size: int) -> dict[str, Any]:
    """``CheckpointFacts.preprocess`` as an image processor's config for images of ``size`` pixels."""
    square = {"height": size, "width": size}
    squash = preprocess.get("squash", False)
    return {
        "image_processor_type": "CLIPImageProcessor",
        "image_mean": preprocess.get("image_mean", CLIP_MEAN),
        "image_std": preprocess.get("image_std", CLIP_STD),
        "resample": preprocess.get("resample", 3),
        "size": square if squash else {"shortest_edge": size},
        "crop_size": square,
        "do_resize": True,
        "do_center_crop": not squash,
        "do_normalize": True,
        "do_convert_rgb": True,
    }


def _refuse_unknown(where: str, part: Mapping[str, Any]) -> None:
    for key, value in part.items():
        if key in _HARMLESS[where] or value in (None, False, "", {}) or value in _USUAL.get(key, ()):
            continue
        name = f"{where}.{key}" if where else key
        raise ConfigError(f"{name} {value!r} is not supported by transformers.CLIPModel: it cannot be converted")


def _one_side(value: Any) -> Any:
    """A size that may be a number or a pair of equal numbers."""
    return value[0] if isinstance(value, list) and value and all(side == value[0] for side in value) else value


def _preprocess(given: Any) -> dict[str, Any]:
    """open_clip's ``preprocess_cfg`` as settings of a ``CLIPImageProcessor``, without the model's own sizes."""
    if not isinstance(given, Mapping):
        raise ConfigError(f"preprocess_cfg {given!r} must be a dictionary of settings")
    mode, resample = given.get("resize_mode", "shortest"), given.get("interpolation", "bicubic")
    if mode not in ("shortest", "squash") or resample not in ("bicubic", "bilinear"):
        raise ConfigError(
            f"preprocess_cfg has resize_mode {mode!r} and interpolation {resample!r}: only shortest or squash, bicubic"
            " or bilinear can be converted"
        )
    made: dict[str, Any] = {"resample": 3 if resample == "bicubic" else 2, "squash": mode == "squash"}
    for key, name in (("mean", "image_mean"), ("std", "image_std")):
        if given.get(key) is not None:
            made[name] = _three(key, given[key])
    return made


def _three(key: str, value: Any) -> list[float]:
    """A number for each channel; one number is for all three."""
    numbers = [value] * 3 if isinstance(value, int | float) else value
    sound = isinstance(numbers, list) and len(numbers) == 3
    if not sound or not all(isinstance(number, int | float) and not isinstance(number, bool) for number in numbers):
        raise ConfigError(f"preprocess_cfg.{key} {value!r} must be three numbers")
    return numbers
