"""OpenAI's CLIP files (``ViT-B-32.pt``) as checkpoint folders of ``transformers.CLIPModel``, or of open_clip for the
ResNets (``RN50.pt``); nothing in them is run.

OpenAI publishes TorchScript archives: zip files whose ``data.pkl`` lists the modules and whose ``data/N`` hold the raw
tensors. :func:`read_archive` reads that list with its own interpreter, which supports numbers, texts, containers and
tensors and calls nothing; the code in the archive is never run, only searched for its activation. Everything else
``torch.save`` wrote, state dicts in the same naming or ``pytorch_model.bin`` of a Hugging Face folder, goes through
``torch.load(weights_only=True)``.
"""

from __future__ import annotations

import dataclasses
import gzip
import json
import math
import os
import pickletools
import re
import shutil
import warnings
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from benchmarks.backbones import open_clip_config
from benchmarks.backbones.open_clip_config import CheckpointFacts
from methods.parts.backbone import hub_unreachable

if TYPE_CHECKING:
    from transformers import CLIPConfig

#: Where OpenAI's byte-pair vocabulary comes from unless another is given: every CLIP of OpenAI has the same one.
TOKENIZER = "openai/clip-vit-base-patch32"

#: Buffers of the archives that are not weights.
NO_WEIGHTS = ("input_resolution", "context_length", "vocab_size")

#: Where training code keeps the state dict in what it saves.
WRAPPERS = ("state_dict", "model_state_dict", "model")

#: What training in several processes and torch.compile put before every name, in any order.
_PREFIXES = re.compile(r"^(module\.|_orig_mod\.)+")

#: The widest vision tower of OpenAI's; its heads are 64 wide, those of wider ones are not.
_OPENAI_WIDEST = 1024

_DTYPES: Mapping[str, torch.dtype] = {
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "ByteStorage": torch.uint8,
    "BoolStorage": torch.bool,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
}

#: The list of modules of a ViT-L/14 has 100 kB; a list of this size is not a CLIP.
_LONGEST_LIST = 2 << 20


class CheckpointError(ValueError):
    """A checkpoint that cannot be read safely or is not a CLIP of OpenAI; one line that names the file and the fix."""


# --- reading ----------------------------------------------------------------------------------------------------------


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint file by name: a TorchScript archive, or a state dict that ``torch.save`` wrote.

    Nothing in the file is executed. Raises :class:`CheckpointError` if it is missing, broken or has more than data.
    """
    if not path.is_file():
        raise CheckpointError(
            f"checkpoint {path} does not exist: give OpenAI's .pt file (the `clip` package keeps them in ~/.cache/clip)"
            f", or fetch a converted checkpoint with `hf download {TOKENIZER}`"
        )
    if path.suffix == ".safetensors":
        return _read_safetensors(path)
    if _is_archive(path):
        return read_archive(path)
    _check_stored(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # warnings about pickle protocols; real problems raise
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle.UnpicklingError, RuntimeError, EOFError, ... : whatever is wrong with the file
        wanted = re.search(r"GLOBAL (\S+)|class (\S+)|(?:Unsupported|Trying to load unsupported) \S+ (\S+)", str(error))
        what = f" ({next(name for name in wanted.groups() if name)})" if wanted else ""
        raise CheckpointError(
            f"checkpoint {path} is broken, or contains more than tensors{what}: refused, nothing of it was run"
        ) from error
    while isinstance(loaded, Mapping):
        inner = next((loaded[name] for name in WRAPPERS if isinstance(loaded.get(name), Mapping)), None)
        if inner is None:
            break
        loaded = inner
    if not isinstance(loaded, Mapping) or not any(isinstance(value, Tensor) for value in loaded.values()):
        raise CheckpointError(f"checkpoint {path} has no state dict (names and tensors)")
    weights = {str(name): value for name, value in loaded.items() if isinstance(value, Tensor)}
    for name, value in weights.items():
        if value.layout != torch.strided or value.device.type != "cpu" or value.is_complex():
            raise CheckpointError(f"checkpoint {path}: {name} is not a plain tensor of real numbers")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise CheckpointError(f"checkpoint {path} is broken (tensor {name} reaches beyond its data)")
    return weights


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    try:
        return dict(load_file(path))
    except Exception as error:  # SafetensorError, OSError, ...
        raise CheckpointError(
            f"checkpoint {path} is broken ({' '.join(str(error).split())}): fetch it again"
        ) from error


def recognise(path: Path, weights: Mapping[str, Tensor]) -> CheckpointFacts:
    """The activation and heads that a checkpoint file itself shows.

    OpenAI's own files have a typical form: a TorchScript archive with ``quick_gelu`` and a vision tower no wider than
    OpenAI's, or a state dict with the archive's three numbers. No other file shows it: open_clip uses the
    same names for models with another activation and other heads.
    """
    activation = _shown_activation(path, weights)
    width = weights["visual.conv1.weight"].shape[0]
    is_openai = activation == "quick_gelu" and width <= _OPENAI_WIDEST and width % 64 == 0
    return CheckpointFacts(activation=activation, head_width=64 if is_openai else None)


def _shown_activation(path: Path, weights: Mapping[str, Tensor]) -> str | None:
    """The activation that OpenAI's own files show; None for any other."""
    if _is_archive(path):
        return _activation_of_code(path)
    return "quick_gelu" if set(NO_WEIGHTS) <= set(weights) else None


def _activation_of_code(path: Path) -> str | None:
    with zipfile.ZipFile(path) as archive:
        files = [name for name in archive.namelist() if "/code/" in name and name.endswith(".py")]
        text = b"".join(archive.open(name).read(_LONGEST_LIST) for name in files)
    plain, quick = b"torch.gelu(" in text, b"torch.sigmoid(" in text
    return None if plain == quick else "gelu" if plain else "quick_gelu"


def read_archive(path: Path) -> dict[str, Tensor]:
    """The tensors of a TorchScript archive by their place in the module tree (``visual.conv1.weight``).

    Raises :class:`CheckpointError` if the archive is broken, or its list of modules contains more than data.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            root = next((name for name in archive.namelist() if name.endswith("/data.pkl")), "")[: -len("data.pkl")]
            if archive.getinfo(f"{root}data.pkl").file_size > _LONGEST_LIST:
                raise CheckpointError(f"checkpoint {path}: its list of modules is too long for a CLIP")
            order = f"{root}byteorder"
            if order in archive.namelist() and archive.open(order).read(len(b"little") + 1) != b"little":
                raise CheckpointError(f"checkpoint {path} was written on a big-endian machine, which is not supported")
            tree = _Interpreter(_Storages(archive, root)).run(archive.read(f"{root}data.pkl"))
    except CheckpointError as error:
        raise CheckpointError(str(error) if str(path) in str(error) else f"checkpoint {path} {error}") from error
    except Exception as error:  # zipfile.BadZipFile, KeyError, IndexError, struct.error, ...: a broken file
        reason = " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(f"checkpoint {path} is broken ({reason}): fetch it again") from error
    return dict(_leaves(tree, "", set()))


def _check_stored(path: Path) -> None:
    """A checkpoint's zip file is not compressed, so that what is read is no larger than the file."""
    try:
        with zipfile.ZipFile(path) as archive:
            packed = [entry.filename for entry in archive.infolist() if entry.compress_type != zipfile.ZIP_STORED]
    except zipfile.BadZipFile:
        return  # the older format of torch.save, or broken: reading it raises
    if packed:
        raise CheckpointError(f"checkpoint {path} is compressed ({packed[0]}), which torch never does: refused")


def _is_archive(path: Path) -> bool:
    """TorchScript's archives are zip files with the constants of their code."""
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith("/constants.pkl") for name in archive.namelist())
    except (OSError, zipfile.BadZipFile):
        return False


@dataclass(frozen=True)
class _Global:
    """The name of a class or function; it is never looked up."""

    name: str


@dataclass
class _Object:
    """A module of the archive: its attributes."""

    state: dict[Any, Any]


class _Storages:
    """Raw tensor data of an archive."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        self._archive = archive
        self._root = root
        self._read: dict[str, Tensor] = {}

    def get(self, description: Any) -> Tensor:
        """The flat tensor of ``("storage", type, key, location, count)``."""
        kind, dtype, key, _, count = description
        if kind != "storage" or not isinstance(dtype, _Global) or not re.fullmatch(r"\w+", str(key)):
            raise CheckpointError("has an invalid storage entry")
        known = _DTYPES.get(dtype.name.removeprefix("torch."))
        if known is None or not isinstance(count, int):
            raise CheckpointError(f"has tensors of the unknown type {dtype.name}")
        if key not in self._read:
            entry = self._archive.getinfo(f"{self._root}data/{key}")
            size = torch.empty(0, dtype=known).element_size() * count
            if entry.file_size != size or entry.compress_type != zipfile.ZIP_STORED:
                raise CheckpointError(f"is broken (tensor {key} has {entry.file_size} bytes, not {size})")
            data = bytearray(self._archive.read(entry))
            self._read[key] = torch.frombuffer(data, dtype=known) if count else torch.empty(0, dtype=known)
        return self._read[key]


class _Interpreter:
    """Runs the few pickle instructions that describe tensors, modules and containers; refuses others and calls nothing.

    ``REDUCE`` accepts three names: the tensor builder, the ordered dictionary and TorchScript's typed lists. Any
    other name raises :class:`CheckpointError`.
    """

    def __init__(self, storages: _Storages) -> None:
        self._storages = storages
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def run(self, data: bytes) -> Any:
        """The object that the instructions describe."""
        constants = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
        values = ("BININT", "BININT1", "BININT2", "LONG1", "BINUNICODE", "SHORT_BINUNICODE", "BINFLOAT")
        for code, given, _ in pickletools.genops(data):
            argument: Any = given
            name = code.name
            if name in values:
                self._stack.append(argument)
            elif name in constants:
                self._stack.append(constants[name])
            elif name in ("BINPUT", "LONG_BINPUT"):
                self._memo[argument] = self._stack[-1]
            elif name == "MEMOIZE":
                self._memo[len(self._memo)] = self._stack[-1]
            elif name in ("BINGET", "LONG_BINGET"):
                self._stack.append(self._memo[argument])
            elif name == "STOP":
                return self._stack.pop()
            elif name not in ("PROTO", "FRAME"):
                step = getattr(self, f"_{name.lower()}", None)
                if step is None:
                    raise CheckpointError(f"uses the pickle instruction {name}: refused, nothing of it was run")
                step(argument)
        raise CheckpointError("is broken (its list of modules has no end)")

    def _marked(self) -> list[Any]:
        start = self._marks.pop()
        values = self._stack[start:]
        del self._stack[start:]
        return values

    def _mark(self, _: Any) -> None:
        self._marks.append(len(self._stack))

    def _global(self, argument: str) -> None:
        self._stack.append(_Global(argument.replace(" ", ".")))

    def _empty_tuple(self, _: Any) -> None:
        self._stack.append(())

    def _empty_list(self, _: Any) -> None:
        self._stack.append([])

    def _empty_dict(self, _: Any) -> None:
        self._stack.append({})

    def _tuple(self, _: Any) -> None:
        self._stack.append(tuple(self._marked()))

    def _tuple1(self, _: Any) -> None:
        self._stack[-1:] = [tuple(self._stack[-1:])]

    def _tuple2(self, _: Any) -> None:
        self._stack[-2:] = [tuple(self._stack[-2:])]

    def _tuple3(self, _: Any) -> None:
        self._stack[-3:] = [tuple(self._stack[-3:])]

    def _append(self, _: Any) -> None:
        value = self._stack.pop()
        self._of(list).append(value)

    def _appends(self, _: Any) -> None:
        values = self._marked()
        self._of(list).extend(values)

    def _setitem(self, _: Any) -> None:
        key, value = self._stack[-2:]
        del self._stack[-2:]
        self._of(dict)[key] = value

    def _setitems(self, _: Any) -> None:
        values = self._marked()
        self._of(dict).update(zip(values[::2], values[1::2], strict=True))

    def _of(self, kind: type) -> Any:
        if not isinstance(self._stack[-1], kind):
            raise CheckpointError("is broken (its list of modules is invalid)")
        return self._stack[-1]

    def _newobj(self, _: Any) -> None:
        made, arguments = self._stack[-2:]
        if not isinstance(made, _Global) or not made.name.startswith("__torch__.") or arguments != ():
            raise CheckpointError(f"makes a {getattr(made, 'name', made)}: refused, nothing of it was run")
        self._stack[-2:] = [_Object({})]

    def _build(self, _: Any) -> None:
        state = self._stack.pop()
        if not isinstance(state, dict) or not isinstance(self._stack[-1], _Object):
            raise CheckpointError("is broken (its list of modules is invalid)")
        self._stack[-1].state.update(state)

    def _binpersid(self, _: Any) -> None:
        self._stack[-1] = self._storages.get(self._stack[-1])

    def _reduce(self, _: Any) -> None:
        arguments = self._stack.pop()
        called = self._stack.pop()
        name = called.name if isinstance(called, _Global) else str(called)
        if name == "torch._utils._rebuild_tensor_v2":
            self._stack.append(_tensor(*arguments[:4]))
        elif name == "collections.OrderedDict" and arguments == ():
            self._stack.append({})
        elif name.startswith("torch.jit._pickle.build_"):
            self._stack.append(arguments[0])
        else:
            raise CheckpointError(f"calls {name}: refused, nothing of it was run")


def _tensor(storage: Any, offset: Any, size: Any, stride: Any) -> Tensor:
    numbers = (offset, *size, *stride)
    if not isinstance(storage, Tensor) or not all(isinstance(n, int) and n >= 0 for n in numbers):
        raise CheckpointError("is broken (a tensor is invalid)")
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 not in size and (last >= len(storage) or math.prod(size) > len(storage)):
        raise CheckpointError("is broken (a tensor reaches beyond its data)")
    return storage.as_strided(size, stride, offset)


def _leaves(value: Any, place: str, seen: set[int]) -> list[tuple[str, Tensor]]:
    """All tensors below a module with their dotted names; no deeper than a CLIP is, and each module (``seen``) once."""
    if isinstance(value, Tensor):
        return [(place, value)]
    if not isinstance(value, _Object) or place.count(".") > 8 or id(value) in seen:
        return []
    seen.add(id(value))
    below = [(f"{place}.{name}" if place else str(name), child) for name, child in value.state.items()]
    return [leaf for name, child in below for leaf in _leaves(child, name, seen)]


# --- OpenAI's layout --------------------------------------------------------------------------------------------------


def clip_config(
    weights: Mapping[str, Tensor],
    *,
    start_id: int | None = None,
    end_id: int | None = None,
    facts: CheckpointFacts = CheckpointFacts("quick_gelu", 64),  # noqa: B008 (frozen)
) -> CLIPConfig:
    """The architecture that weights in OpenAI's naming imply.

    ``start_id`` and ``end_id``: the tokenizer's; by default the last two of the vocabulary, OpenAI's. ``facts``: what
    the weights do not contain, by default OpenAI's.
    Raises :class:`CheckpointError` if this is not a CLIP of OpenAI with a vision transformer.
    """
    from transformers import CLIPConfig

    if is_resnet(weights):
        raise CheckpointError("is a CLIP with a ResNet, which is no transformers.CLIPModel")
    try:
        patches, vision_positions = weights["visual.conv1.weight"], weights["visual.positional_embedding"]
        for name in ("token_embedding.weight", "positional_embedding"):
            weights[name]
        projection = weights["text_projection"].shape[1]
    except KeyError as error:
        raise CheckpointError(f"has no {error.args[0]}: it is not a CLIP in OpenAI's naming") from None
    width, _, _, patch = patches.shape
    vision_hidden = _hidden(weights, "visual.", width)
    return CLIPConfig(
        projection_dim=projection,
        vision_config={
            "hidden_size": width,
            "intermediate_size": vision_hidden,
            "num_hidden_layers": _blocks(weights, "visual."),
            "num_attention_heads": max(1, width // (facts.head_width or 64)),
            "patch_size": patch,
            "image_size": patch * math.isqrt(vision_positions.shape[0] - 1),
            "hidden_act": facts.activation or "quick_gelu",
            "projection_dim": projection,
        },
        text_config=text_config(weights, start_id=start_id, end_id=end_id, facts=facts),
    )


def is_resnet(weights: Mapping[str, Tensor]) -> bool:
    """Whether weights in OpenAI's naming are those of a CLIP with a ResNet."""
    return "visual.layer1.0.conv1.weight" in weights


def resnet_config(weights: Mapping[str, Tensor], activation: str) -> dict[str, Any]:
    """open_clip's config of a CLIP with OpenAI's ResNet (``RN50``, ...), whose text tower has this ``activation``.

    Raises :class:`CheckpointError` naming what is missing.
    """
    try:
        positions = weights["visual.attnpool.positional_embedding"].shape[0]
        vocabulary, text_width = weights["token_embedding.weight"].shape
        layers = [_stage(weights, number) for number in range(1, 5)]
        return {
            "model_cfg": {
                "embed_dim": weights["text_projection"].shape[1],
                "quick_gelu": activation == "quick_gelu",
                "vision_cfg": {
                    "image_size": 32 * math.isqrt(positions - 1),  # the last map has a position for 32 x 32 pixels
                    "layers": layers,
                    "width": weights["visual.layer1.0.conv1.weight"].shape[0],
                },
                "text_cfg": {
                    "context_length": weights["positional_embedding"].shape[0],
                    "vocab_size": vocabulary,
                    "width": text_width,
                    "heads": max(1, text_width // 64),
                    "layers": _blocks(weights, ""),
                },
            }
        }
    except KeyError as error:
        raise CheckpointError(f"has no {error.args[0]}: it is not a CLIP in OpenAI's naming") from None


def _stage(weights: Mapping[str, Tensor], number: int) -> int:
    """Blocks of one stage of a ResNet, at least one."""
    blocks = _numbered(weights, f"visual.layer{number}")
    if not blocks:
        raise CheckpointError(f"is missing some of visual.layer{number}: it is broken, fetch it again")
    return blocks


def text_config(
    weights: Mapping[str, Tensor], *, start_id: int | None, end_id: int | None, facts: CheckpointFacts
) -> dict[str, Any]:
    """The text tower's part of :func:`clip_config`, whatever the image tower."""
    vocabulary, width = weights["token_embedding.weight"].shape
    return {
        "hidden_size": width,
        "intermediate_size": _hidden(weights, "", width),
        "num_hidden_layers": _blocks(weights, ""),
        "num_attention_heads": facts.text_heads or max(1, width // 64),
        "max_position_embeddings": weights["positional_embedding"].shape[0],
        "vocab_size": vocabulary,
        "hidden_act": facts.activation or "quick_gelu",
        "projection_dim": weights["text_projection"].shape[1],
        "bos_token_id": vocabulary - 2 if start_id is None else start_id,
        "eos_token_id": vocabulary - 1 if end_id is None else end_id,
        "pad_token_id": vocabulary - 1 if end_id is None else end_id,
    }


def _hidden(weights: Mapping[str, Tensor], prefix: str, width: int) -> int:
    first = weights.get(f"{prefix}transformer.resblocks.0.mlp.c_fc.weight")
    return 4 * width if first is None else int(first.shape[0])


def _blocks(weights: Mapping[str, Tensor], prefix: str) -> int:
    return _numbered(weights, f"{prefix}transformer.resblocks")


def _numbered(weights: Mapping[str, Tensor], place: str) -> int:
    """How many parts of the list at ``place`` have weights; raises :class:`CheckpointError` where one is missing."""
    matches = [re.match(rf"{re.escape(place)}\.(\d+)\.", name) for name in weights]
    numbers = {int(match[1]) for match in matches if match}
    if numbers != set(range(len(numbers))):
        raise CheckpointError(f"is missing some of {place}: it is broken, fetch it again")
    return len(numbers)


_NAMES: Mapping[str, str] = {
    "visual.class_embedding": "vision_model.embeddings.class_embedding",
    "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
    "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
    "visual.ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "visual.ln_pre.bias": "vision_model.pre_layrnorm.bias",
    "visual.ln_post.weight": "vision_model.post_layernorm.weight",
    "visual.ln_post.bias": "vision_model.post_layernorm.bias",
    "visual.proj": "visual_projection.weight",
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection": "text_projection.weight",
    "logit_scale": "logit_scale",
}
_IN_BLOCK: Mapping[str, str] = {
    "attn.out_proj": "self_attn.out_proj",
    "ln_1": "layer_norm1",
    "ln_2": "layer_norm2",
    "mlp.c_fc": "mlp.fc1",
    "mlp.c_proj": "mlp.fc2",
}


def clip_weights(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """OpenAI's weights under ``CLIPModel``'s names, float32: projections transposed, packed q, k, v split.

    Raises :class:`CheckpointError` naming the first weight that is not part of a CLIP.
    """
    converted: dict[str, Tensor] = {}
    for name, value in weights.items():
        if name in NO_WEIGHTS:
            continue
        tensor = value.float()
        block = re.fullmatch(r"(visual\.)?transformer\.resblocks\.(\d+)\.(.+?)[._](weight|bias)", name)
        if name in _NAMES:
            transposed = name in ("visual.proj", "text_projection")
            converted[_NAMES[name]] = tensor.T.contiguous() if transposed else tensor.clone()
        elif block:
            tower, number, part, kind = block.groups()
            layer = f"{'vision_model' if tower else 'text_model'}.encoder.layers.{number}"
            if part == "attn.in_proj":
                for letter, third in zip("qkv", tensor.chunk(3), strict=True):
                    converted[f"{layer}.self_attn.{letter}_proj.{kind}"] = third.clone()
            elif part in _IN_BLOCK:
                converted[f"{layer}.{_IN_BLOCK[part]}.{kind}"] = tensor.clone()
            else:
                raise CheckpointError(f"has the weight {name}, which no CLIP of OpenAI has")
        else:
            raise CheckpointError(f"has the weight {name}, which no CLIP of OpenAI has")
    return converted


# --- writing ----------------------------------------------------------------------------------------------------------


def load_tokenizer(source: str = TOKENIZER) -> Any:
    """CLIP's tokenizer: from a Hub name, a folder, or OpenAI's vocabulary file ``bpe_simple_vocab_16e6.txt.gz``.

    Raises :class:`CheckpointError` that says which command fetches it.
    """
    from transformers import AutoTokenizer, CLIPTokenizer

    path = Path(source).expanduser()
    silence = ""
    try:
        if path.is_file():
            return CLIPTokenizer(**_vocabulary(path))
        if path.is_dir():
            return AutoTokenizer.from_pretrained(str(path), local_files_only=True)
        silence = hub_unreachable(source)
        return AutoTokenizer.from_pretrained(source, local_files_only=bool(silence))
    except Exception as error:  # OSError, ValueError, KeyError, ...: missing, no network, not a tokenizer
        reason = silence or " ".join(str(error).split()) or type(error).__name__
        raise CheckpointError(
            f"tokenizer {source} cannot be loaded ({reason}): fetch it with `hf download {TOKENIZER} vocab.json"
            " merges.txt tokenizer.json tokenizer_config.json`, or give --tokenizer the file"
            " bpe_simple_vocab_16e6.txt.gz of OpenAI's `clip` package"
        ) from error


def _vocabulary(path: Path) -> dict[str, Any]:
    """Vocabulary and merges of OpenAI's file: a header line, then merges, of which the first 48,894 are used."""
    with gzip.open(path, "rt", encoding="utf-8") as lines:
        merges = [tuple(line.split()) for line in lines.read().split("\n")[1 : 49152 - 256 - 2 + 1]]
    merges = [merge for merge in merges if merge]
    if not merges or any(len(merge) != 2 for merge in merges):
        raise ValueError("not a list of byte-pair merges")
    from tokenizers.pre_tokenizers import ByteLevel

    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]  # OpenAI's order: printable bytes first
    letters = [chr(byte) for byte in printable]
    letters += [chr(256 + number) for number in range(256 - len(printable))]
    if set(letters) != set(ByteLevel.alphabet()):
        raise ValueError("the tokenizers package has another byte alphabet")
    words = [*letters, *(f"{byte}</w>" for byte in letters), *("".join(merge) for merge in merges)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    return {"vocab": {word: number for number, word in enumerate(words)}, "merges": merges}


def convert(
    source: Path,
    out: Path,
    *,
    tokenizer: str = TOKENIZER,
    config: Path | None = None,
    activation: str | None = None,
    head_width: int | None = None,
) -> Path:
    """Write the checkpoint ``source`` as a folder ``out`` that ``Backbone.load`` takes; returns ``out``.

    ``source``: OpenAI's ``.pt`` file (TorchScript archive or state dict), open_clip's weights (file or folder), or
    a Hugging Face folder whose weights are pickled (``pytorch_model.bin``). The folder appears whole or not at all.
    ``config``: open_clip's ``open_clip_config.json`` (by default the one beside ``source``); ``activation`` and
    ``head_width`` of the vision tower replace it.

    Raises :class:`CheckpointError` if ``out`` is in use, the checkpoint or tokenizer cannot be used, or the activation
    and heads are not known.
    """
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise CheckpointError(f"{out} exists already: give a new folder, or remove it first")
    work = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    try:
        work.mkdir(parents=True)
        if _only_features(source):
            if config or activation or head_width:
                raise CheckpointError(f"folder {source} keeps its config: leave the other options out")
            _copy_as_safetensors(source, work)
        elif source.is_dir() and (source / "config.json").is_file():
            if config or activation or head_width:
                raise CheckpointError(
                    f"folder {source} has a config.json with all settings: leave the other options out"
                )
            _convert_folder(source, work)
        else:
            facts = _facts_from_config(source, config, activation, head_width)
            _convert_openai(_open_clip_weights(source) if source.is_dir() else source, work, tokenizer, facts)
        if out.is_dir():
            out.rmdir()
        work.rename(out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return out


def _only_features(folder: Path) -> bool:
    """Whether a folder holds a model of open_clip's, or a SigLIP, that keeps its own layout."""
    try:
        if (file := open_clip_config.beside(folder)) is not None and folder.is_dir():
            return not open_clip_config.is_plain(file)
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        return isinstance(config, dict) and config.get("model_type") == "siglip"
    except (OSError, ValueError):  # reading it as a CLIP says what is wrong
        return False


def _copy_as_safetensors(folder: Path, out: Path) -> None:
    """The folder with its pickled weights, read without running them, as safetensors under the same name."""
    from safetensors.torch import save_file

    names = {"open_clip_pytorch_model.bin": "open_clip_model.safetensors", "pytorch_model.bin": "model.safetensors"}
    found = next((name for name in names if (folder / name).is_file()), None)
    if found is None:
        raise CheckpointError(f"folder {folder} has none of {' and '.join(names)}: there is nothing to convert")
    weights = read_weights(folder / found)
    save_file(
        {name: value.contiguous().clone() for name, value in weights.items()}, out / names[found], {"format": "pt"}
    )
    for file in sorted(folder.iterdir()):
        if file.suffix in (".json", ".txt", ".model"):
            shutil.copyfile(file, out / file.name)


def _open_clip_weights(folder: Path) -> Path:
    """The weights in a folder of open_clip's."""
    candidates = [folder / name for name in ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")]
    if open_clip_config.beside(folder) is not None:
        for file in candidates:
            if file.is_file():
                return file
    raise CheckpointError(
        f"folder {folder} has neither config.json and pytorch_model.bin nor open_clip's {open_clip_config.NAME} and"
        f" {candidates[1].name}: there is nothing to convert"
    )


def _facts_from_config(
    source: Path, config: Path | None, activation: str | None, head_width: int | None
) -> CheckpointFacts:
    """The settings from a config file or the options."""
    by_options = CheckpointFacts(activation, head_width)
    if config is not None and by_options != CheckpointFacts():
        raise CheckpointError("--config has all settings: leave --activation and --head-width out")
    file = config or (open_clip_config.beside(source) if by_options == CheckpointFacts() else None)
    if file is None:
        return by_options
    try:
        return open_clip_config.read(file)
    except open_clip_config.ConfigError as error:
        raise CheckpointError(f"config {file}: {error}") from error


def _complete(source: Path, weights: Mapping[str, Tensor], facts: CheckpointFacts) -> CheckpointFacts:
    """``facts``, completed and checked with the file; raises :class:`CheckpointError` if some are missing."""
    shown = recognise(source, weights)
    if facts.activation and _is_archive(source) and shown.activation not in (None, facts.activation):
        raise CheckpointError(
            f"checkpoint {source} computes {shown.activation}, not {facts.activation}:"
            " correct the config or --activation"
        )
    if not facts.complete:
        facts = dataclasses.replace(
            facts, activation=facts.activation or shown.activation, head_width=facts.head_width or shown.head_width
        )
    width, text_width = weights["visual.conv1.weight"].shape[0], weights["token_embedding.weight"].shape[1]
    if not facts.complete:
        missing = " and ".join(
            option
            for option, value in (
                (
                    "--activation (gelu for open_clip's, quick_gelu for OpenAI's and for those named quickgelu)",
                    facts.activation,
                ),
                ("--head-width (64; 80 for ViT-H, 88 for ViT-g, 104 for ViT-bigG)", facts.head_width),
            )
            if value is None
        )
        raise CheckpointError(
            f"checkpoint {source} does not show how it computes (OpenAI's and open_clip's have the same names): put its"
            f" {open_clip_config.NAME} beside it, or give --config FILE, or give {missing}"
        )
    assert facts.head_width is not None
    if width % facts.head_width or text_width % (facts.text_heads or max(1, text_width // 64)):
        raise CheckpointError(
            f"checkpoint {source}: widths {width} (vision) and {text_width} (text) do not divide into heads of"
            f" {facts.head_width} and {facts.text_heads or text_width // 64} heads: correct the config or --head-width"
        )
    return facts


def check_sizes(source: Path, config: CLIPConfig, facts: CheckpointFacts) -> None:
    vision, text = config.vision_config, config.text_config
    sizes = {
        "embed_dim": config.projection_dim,
        "vision_cfg.width": vision.hidden_size,
        "vision_cfg.layers": vision.num_hidden_layers,
        "vision_cfg.patch_size": vision.patch_size,
        "vision_cfg.image_size": vision.image_size,
        "text_cfg.width": text.hidden_size,
        "text_cfg.layers": text.num_hidden_layers,
        "text_cfg.context_length": text.max_position_embeddings,
        "text_cfg.vocab_size": text.vocab_size,
    }
    _same_sizes(source, sizes, facts.expected)


def _same_sizes(source: Path, sizes: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raise :class:`CheckpointError` where a config has another size than the weights."""
    for name, value in expected.items():
        if sizes[name] != value:
            raise CheckpointError(
                f"checkpoint {source} has {name} {sizes[name]}, but its config has {value}: they do not belong together"
            )


def _convert_openai(source: Path, out: Path, tokenizer: str, facts: CheckpointFacts) -> None:
    weights = {_PREFIXES.sub("", name): value for name, value in read_weights(source).items()}
    if is_resnet(weights):
        _convert_resnet(source, weights, out, tokenizer, facts)
        return
    try:
        clip_config(weights)
        values = clip_weights(weights)
    except CheckpointError as error:
        raise CheckpointError(f"checkpoint {source} {error}") from None
    except Exception as error:  # shapes that no CLIP has
        reason = " ".join(str(error).split())
        raise CheckpointError(f"checkpoint {source} has weights of shapes that no CLIP has ({reason})") from error
    vocabulary = _tokenizer_of(source, weights, tokenizer)
    ends = {"start_id": vocabulary.bos_token_id, "end_id": vocabulary.eos_token_id}
    one_head = CheckpointFacts("gelu", weights["visual.conv1.weight"].shape[0], 1)  # shapes do not depend on heads
    check_shapes(clip_config(weights, **ends, facts=one_head), values, source)
    facts = _complete(source, weights, facts)
    config = clip_config(weights, **ends, facts=facts)
    check_sizes(source, config, facts)
    _save(config, values, out, source)
    vocabulary.save_pretrained(out)
    processor = open_clip_config.processor(facts.preprocess, config.vision_config.image_size)
    (out / "preprocessor_config.json").write_text(json.dumps(processor, indent=2) + "\n", encoding="utf-8")


def _tokenizer_of(source: Path, weights: Mapping[str, Tensor], tokenizer: str) -> Any:
    """The tokenizer; raises :class:`CheckpointError` if the checkpoint has another number of tokens."""
    vocabulary = load_tokenizer(tokenizer)
    known = weights["token_embedding.weight"].shape[0]
    if len(vocabulary) != known:
        raise CheckpointError(
            f"checkpoint {source} has {known} tokens, tokenizer {tokenizer} {len(vocabulary)}: they do not"
            " belong together"
        )
    return vocabulary


def _convert_resnet(
    source: Path, weights: Mapping[str, Tensor], out: Path, tokenizer: str, facts: CheckpointFacts
) -> None:
    """A folder of open_clip's: the weights under their names, and the config that they imply."""
    from safetensors.torch import save_file

    shown = _shown_activation(source, weights)
    if facts.activation and shown and facts.activation != shown:
        raise CheckpointError(f"checkpoint {source} computes {shown}, not {facts.activation}: correct --activation")
    activation = facts.activation or shown
    if activation is None:
        raise CheckpointError(
            f"checkpoint {source} does not show how its text tower computes: put its {open_clip_config.NAME} beside it,"
            " or give --activation (quick_gelu for OpenAI's and for those named quickgelu, gelu for open_clip's)"
        )
    try:
        config = resnet_config(weights, activation)
    except CheckpointError as error:
        raise CheckpointError(f"checkpoint {source} {error}") from None
    if facts.whole:
        sizes, stated = (_resnet_sizes(one["model_cfg"]) for one in (config, facts.whole))
        _same_sizes(source, sizes, {name: stated[name] for name in sorted(sizes.keys() & stated.keys())})
        config = dict(facts.whole)
    vocabulary = _tokenizer_of(source, weights, tokenizer)
    left_out = {*NO_WEIGHTS, "attn_mask"}  # a causal mask, which follows from the context length
    kept = {name: value.contiguous().clone() for name, value in weights.items() if name not in left_out}
    save_file(kept, out / "open_clip_model.safetensors", {"format": "pt"})
    (out / open_clip_config.NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    (out / "open_clip_model.safetensors").chmod((out / open_clip_config.NAME).stat().st_mode)
    vocabulary.save_pretrained(out)


def _resnet_sizes(model: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes in a ResNet's config by name; the heads follow from the widths."""
    parts = {"": model, "vision_cfg.": model["vision_cfg"], "text_cfg.": model["text_cfg"]}
    sizes = {f"{part}{key}": value for part, values in parts.items() for key, value in values.items()}
    return {name: sizes[name] for name in sizes.keys() - {"vision_cfg", "text_cfg", "quick_gelu", "text_cfg.heads"}}


def _convert_folder(source: Path, out: Path) -> None:
    from transformers import CLIPConfig

    if not (source / "config.json").is_file() or not (source / "pytorch_model.bin").is_file():
        raise CheckpointError(f"folder {source} has no config.json or pytorch_model.bin: there is nothing to convert")
    values = read_weights(source / "pytorch_model.bin")
    positions = ("text_model.embeddings.position_ids", "vision_model.embeddings.position_ids")  # of older versions
    try:
        config = CLIPConfig.from_pretrained(source, local_files_only=True)
    except Exception as error:  # OSError, ValueError, TypeError, ... of transformers
        reason = " ".join(str(error).split())
        raise CheckpointError(f"{source / 'config.json'} is not the configuration of a CLIP ({reason})") from error
    _save(config, {name: value for name, value in values.items() if name not in positions}, out, source)
    for file in sorted(source.iterdir()):
        if file.suffix in (".json", ".txt") and file.name != "config.json":
            shutil.copyfile(file, out / file.name)


def check_shapes(config: CLIPConfig, values: Mapping[str, Tensor], source: Path) -> Any:
    """An empty model of the config; raises :class:`CheckpointError` naming the first weight that does not fit it."""
    from transformers import CLIPModel

    with torch.device("meta"):  # shapes without memory: a checkpoint's sizes may be absurd
        model = CLIPModel(config)
    expected = {name: value.shape for name, value in model.state_dict().items() if not name.endswith("position_ids")}
    for name in sorted({*expected, *values}):
        if name not in expected or name not in values or expected[name] != values[name].shape:
            there = tuple(values[name].shape) if name in values else "missing"
            wanted = tuple(expected[name]) if name in expected else "not part of a CLIP"
            raise CheckpointError(f"checkpoint {source}: weight {name} is {there}, expected {wanted}")
    return model


def _save(config: CLIPConfig, values: Mapping[str, Tensor], out: Path, source: Path) -> None:
    model = check_shapes(config, values, source)
    float_values = {name: value.float().contiguous() for name, value in values.items()}
    model.load_state_dict(float_values, strict=False, assign=True)
    model.save_pretrained(out, max_shard_size="50GB")
    mode = (out / "config.json").stat().st_mode
    (out / "model.safetensors").chmod(mode)  # safetensors files are readable by their owner only
