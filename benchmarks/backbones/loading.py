"""Checkpoints that are not CLIPs in the layout of ``transformers``: open_clip's, and SigLIP folders.

What open_clip calls a plain CLIP with a vision transformer becomes a :class:`~methods.parts.backbone.ClipBackbone` (its
weights under other names, no open_clip needed); one with OpenAI's ResNet a
:class:`~benchmarks.backbones.resnet.ResNetBackbone`; every other model serves features. Only safetensors are read.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.backbones import open_clip_config
from benchmarks.backbones.open_clip_config import CheckpointFacts, ConfigError
from benchmarks.backbones.openai_checkpoint import (
    NO_WEIGHTS,
    TOKENIZER,
    CheckpointError,
    check_shapes,
    check_sizes,
    clip_config,
    clip_weights,
    load_tokenizer,
    text_config,
)
from methods.parts.backbone import (
    Backbone,
    BackboneError,
    ClipBackbone,
    Precision,
    check_folder,
    hub_unreachable,
    processor_record,
    quiet_loading,
    square,
)

#: What ``--backbone`` puts before a folder or Hub name to have it read as open_clip's.
OPEN_CLIP = "open_clip:"

#: Names of open_clip's weights, the first that is there counts.
_WEIGHTS = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors")

#: Files of a Hub checkpoint that a model of open_clip's needs.
_FETCHED = (
    open_clip_config.NAME,
    *_WEIGHTS,
    "tokenizer*",
    "vocab*",
    "merges.txt",
    "special_tokens_map.json",
    "*.model",
)

#: OpenAI's byte-pair vocabulary, which open_clip's package contains.
_VOCABULARY = "bpe_simple_vocab_16e6.txt.gz"


def is_open_clip(source: str) -> bool:
    """Whether a backbone's name asks for open_clip's layout, or is a folder that has no other of a whole model.

    A ``config.json`` without ``model_type`` is timm's, of the image tower alone.
    """
    folder = Path(source).expanduser()
    if source.startswith(OPEN_CLIP) or not (folder / open_clip_config.NAME).is_file():
        return source.startswith(OPEN_CLIP)
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except FileNotFoundError:
        return True
    except (OSError, ValueError):
        return False
    return isinstance(config, dict) and "model_type" not in config


def load_open_clip(source: str, *, device: str = "cpu", precision: Precision = "float32") -> Backbone:
    """The model in a folder of open_clip's (``open_clip_config.json``, safetensors), or of a Hub name behind
    ``open_clip:``.

    Raises:
        BackboneError: nothing there, pickled weights alone, a config or weights that cannot be used, or open_clip's
            package is needed and missing.
    """
    text = source.removeprefix(OPEN_CLIP)
    folder, name = _folder(text)
    file = folder / open_clip_config.NAME
    if not file.is_file():
        raise BackboneError(f"backbone {text} has no {open_clip_config.NAME}: it is not a checkpoint of open_clip's")
    weights_file = next((folder / one for one in _WEIGHTS if (folder / one).is_file()), None)
    if weights_file is None:
        found = "only pickled weights" if any(folder.glob("*.bin")) else "no open_clip_model.safetensors"
        raise BackboneError(
            f"backbone {text} has {found}, and pickle is never loaded: `hf download {name} --local-dir FOLDER` fetches"
            " all of a Hub checkpoint, `python -m benchmarks.convert FOLDER OUT` converts a folder whose weights are"
            " only pickled"
        )
    try:
        given: dict[str, Any] = {"name": name, "precision": precision}
        processing = open_clip_config.image_processing(file)
        given["preprocessing"] = processing.record()
        config = open_clip_config.content(file)["model_cfg"]
        if open_clip_config.is_resnet(file):
            backbone = _resnet(config, _read(weights_file), folder, given | {"image_size": processing.size})
        elif open_clip_config.is_plain(file):
            backbone = _plain(file, _read(weights_file), folder, given)
        else:
            backbone = _features(config, weights_file, folder, given | {"image_size": processing.size})
    except ConfigError as error:
        raise BackboneError(f"backbone {text}: {open_clip_config.NAME}: {error}") from error
    except CheckpointError as error:
        raise BackboneError(f"backbone {text}: {error}") from error
    for part, weight in backbone.model.named_parameters():
        if not bool(weight.isfinite().all()):
            raise BackboneError(f"backbone {text}: weight {part} is not finite: the file is broken, fetch it again")
    return backbone.to(device)


def load_siglip(source: str, *, device: str = "cpu", precision: Precision = "float32") -> Backbone:
    """A ``transformers.SiglipModel``: a folder in Hugging Face format, or a Hub name.

    Raises:
        BackboneError: weights that are missing or not safetensors, or a tokenizer or image processor that cannot be
            used.
    """
    from benchmarks.backbones.features import SiglipBackbone

    folder, local, name = Path(source).expanduser(), True, source
    if folder.is_dir():
        check_folder(folder)
        name = _folder_name(folder)
    else:
        local = bool(hub_unreachable(source))
    part = "weights"
    try:
        from transformers import AutoTokenizer, SiglipModel

        with quiet_loading(local):
            model, report = SiglipModel.from_pretrained(
                str(folder) if folder.is_dir() else source,
                dtype=torch.float32,
                use_safetensors=True,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
                local_files_only=local,
            )
        wrong = sorted([*report["missing_keys"], *(one[0] for one in report["mismatched_keys"])])
        if wrong:
            raise BackboneError(
                f"backbone {source}: {len(wrong)} weights are missing or of another shape, such as {wrong[0]}: weights"
                " and config.json do not belong together"
            )
        for key, weight in model.named_parameters():
            if not bool(weight.isfinite().all()):
                raise BackboneError(f"backbone {source}: weight {key} is not finite: fetch the file again")
        part = "tokenizer"
        tokenizer = AutoTokenizer.from_pretrained(
            str(folder) if folder.is_dir() else source, local_files_only=local, trust_remote_code=False
        )
        part = "preprocessor_config.json"
        size = square(model.config.vision_config.image_size, "image size")
        record = processor_record(str(folder) if folder.is_dir() else source, local, size)
    except BackboneError:
        raise
    except Exception as error:  # OSError, ValueError, ImportError (sentencepiece), SafetensorError, ...
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise BackboneError(
            f"backbone {source}: its {part} cannot be loaded ({reason}): fetch its files again"
        ) from error
    return SiglipBackbone(model, tokenizer=tokenizer, name=name, preprocessing=record, precision=precision).to(device)


# --- the three kinds of open_clip's models ----------------------------------------------------------------------------


def _plain(file: Path, weights: Mapping[str, Tensor], folder: Path, given: Mapping[str, Any]) -> ClipBackbone:
    """A CLIP with a vision transformer, as a ``transformers.CLIPModel``."""
    from transformers import CLIPModel

    facts = open_clip_config.read(file)
    tokenizer = _tokenizer(folder)
    config = clip_config(weights, start_id=tokenizer.bos_token_id, end_id=tokenizer.eos_token_id, facts=facts)
    values = clip_weights(weights)
    check_shapes(config, values, folder)
    check_sizes(folder, config, facts)
    model = CLIPModel(config)
    model.load_state_dict(values, strict=False)  # check_shapes has seen to it that all are there
    return ClipBackbone(model, tokenizer=tokenizer, **given)


def _resnet(
    config: Mapping[str, Any], weights: Mapping[str, Tensor], folder: Path, given: Mapping[str, Any]
) -> Backbone:
    """A CLIP with OpenAI's ResNet: the tower of open_clip's package, the text tower of ``transformers``."""
    from transformers import CLIPConfig, CLIPModel

    from benchmarks.backbones.resnet import ResNetBackbone, ResNetClip

    _package()
    from open_clip.modified_resnet import ModifiedResNet

    vision, text = config["vision_cfg"], config["text_cfg"]
    width, side = vision.get("width", 64), given["image_size"]
    tower = ModifiedResNet(
        layers=vision["layers"],
        output_dim=config["embed_dim"],
        heads=width * 32 // vision.get("head_width", 64),
        image_size=side,
        width=width,
    )
    prefix = "visual."
    _load_all(
        tower, {name.removeprefix(prefix): one for name, one in weights.items() if name.startswith(prefix)}, folder
    )
    tokenizer = _tokenizer(folder)
    facts = CheckpointFacts("quick_gelu" if config.get("quick_gelu", False) else "gelu", 64, text.get("heads", 8))
    written = {name: one for name, one in weights.items() if not name.startswith(prefix) and name not in NO_WEIGHTS}
    half = text_config(written, start_id=tokenizer.bos_token_id, end_id=tokenizer.eos_token_id, facts=facts)
    smallest = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    clip = CLIPModel(CLIPConfig(text_config=half, vision_config=smallest, projection_dim=config["embed_dim"]))
    whole = ResNetClip(tower, clip)
    names = {name: one for name, one in whole.state_dict().items() if not name.startswith("vision_model.")}
    values = clip_weights(written)
    wrong = sorted(name for name in {*names, *values} if not _same_shape(names.get(name), values.get(name)))
    if [name for name in wrong if not name.endswith("position_ids")]:
        raise CheckpointError(
            f"its text weight {wrong[0]} does not fit {open_clip_config.NAME}: they do not belong together"
        )
    whole.load_state_dict(values, strict=False)
    return ResNetBackbone(whole, config=config, tokenizer=tokenizer, **given)


def _features(config: Mapping[str, Any], weights: Path, folder: Path, given: Mapping[str, Any]) -> Backbone:
    """Any other model, as open_clip's package builds it."""
    from benchmarks.backbones.features import OpenClipBackbone

    open_clip = _package()
    from open_clip.factory import load_checkpoint

    before = logging.getLogger().level
    try:
        logging.getLogger().setLevel(logging.ERROR)  # it warns of weights that are loaded below
        model = open_clip.create_model(f"local-dir:{folder}", load_weights=False, pretrained_text=False)
        load_checkpoint(model, str(weights))
        tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")
    except Exception as error:  # RuntimeError, OSError, KeyError, ImportError, ... of open_clip, timm and transformers
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise CheckpointError(
            f"open_clip cannot load it ({reason}): check {open_clip_config.NAME} and its files"
        ) from error
    finally:
        logging.getLogger().setLevel(before)
    return OpenClipBackbone(model, config=config, tokenizer=tokenizer, **given)


def _package() -> Any:
    """open_clip; raises ``BackboneError`` that names the extra where it is missing."""
    try:
        return importlib.import_module("open_clip")
    except Exception as error:  # ImportError, or RuntimeError of a torchvision that torch does not fit
        reason = " ".join(str(error).split())[:200]
        raise BackboneError(
            f"this backbone needs the package open_clip_torch ({reason}): `pip install 'ucdr-bench[open_clip]'`, with a"
            " torchvision that belongs to the installed torch"
        ) from error


# --- files ------------------------------------------------------------------------------------------------------------


def _folder(text: str) -> tuple[Path, str]:
    """The folder of a checkpoint, in the Hub's cache for a Hub name, and its name in records."""
    folder = Path(text).expanduser()
    if folder.is_dir():
        return folder, _folder_name(folder)
    if folder.exists() or text.startswith((".", "/", "~")) or text.count("/") != 1:
        raise BackboneError(f"backbone {OPEN_CLIP}{text}: give a folder with {open_clip_config.NAME}, or a Hub name")
    unreached = hub_unreachable(text)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(text, allow_patterns=list(_FETCHED), local_files_only=bool(unreached))), text
    except Exception as error:  # OSError, LocalEntryNotFoundError, ...
        reason = unreached or " ".join(str(error).split())[:200]
        raise BackboneError(
            f"backbone {text} is not in the local Hub cache, and the Hub: {reason}: a Hub name needs the network;"
            f" `hf download {text}` fetches it (as a folder with --local-dir FOLDER)"
        ) from error


def _folder_name(folder: Path) -> str:
    return f"{folder.resolve().parent.name}/{folder.resolve().name}"


def _read(file: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        return {name: value.float() for name, value in load_file(file).items()}
    except Exception as error:  # SafetensorError, OSError, ...
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{file.name} is broken ({reason}): fetch it again") from error


def _tokenizer(folder: Path) -> Any:
    """CLIP's tokenizer: the folder's own, else OpenAI's, from open_clip's package or the Hub."""
    if any((folder / one).is_file() for one in ("tokenizer.json", "vocab.json")):
        return load_tokenizer(str(folder))
    spec = importlib.util.find_spec("open_clip")
    places = spec.submodule_search_locations if spec is not None else None
    vocabulary = Path(places[0]) / _VOCABULARY if places else Path()
    return load_tokenizer(str(vocabulary) if vocabulary.is_file() else TOKENIZER)


def _load_all(module: torch.nn.Module, values: Mapping[str, Tensor], folder: Path) -> None:
    """Load every weight; raises ``CheckpointError`` naming the first that does not fit."""
    wanted = module.state_dict()
    counted = {name for name in wanted if name.endswith("num_batches_tracked")}
    for name in sorted({*wanted, *values} - counted):
        if not _same_shape(wanted.get(name), values.get(name)):
            there = tuple(values[name].shape) if name in values else "missing"
            expected = tuple(wanted[name].shape) if name in wanted else "not part of the tower"
            raise CheckpointError(f"folder {folder}: image weight {name} is {there}, expected {expected}")
    module.load_state_dict(dict(values), strict=False)


def _same_shape(one: Tensor | None, other: Tensor | None) -> bool:
    return one is not None and other is not None and one.shape == other.shape
