"""CLIP for methods that change its tokens, prompts or weights (docs/architecture.md, "Backbone").

:class:`Backbone` is the interface: what any image-text model does. :class:`ClipBackbone` wraps any
``transformers.CLIPModel`` checkpoint and lets a method run the vision tower on its own tokens, read any token or every
block's state, and run the text tower on given embeddings. All sizes come from the checkpoint's config. The weights are
frozen; a method that trains a part of CLIP trains its own copy of it and passes that copy in (``class_token=``,
``projection=``), or trains a :meth:`Backbone.clone`. The shared backbone never changes.

Shapes: B images, C texts, P patches (grid x grid), w vision width, v text width, E embedding width, L context length.
"""

from __future__ import annotations

import contextlib
import copy
import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from methods.parts.capabilities import Capability
from methods.parts.frozen import cast_now, keep_casts
from methods.parts.identity import config_hash, tokenizer_hash
from methods.parts.memory import align_parameters
from methods.parts.preprocessing import ImageProcessing, ImageSize, ProcessingError, read_processor
from methods.parts.transformer import (
    KeysValues,
    prefix_keys_values,
    project_tokens,
    run_block,
    run_block_after_prefix,
    run_last_block,
    run_last_block_leading,
    take_token,
)

if TYPE_CHECKING:  # loaded with the first backbone: a plan needs none of it
    from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModel

Precision = Literal["float32", "tf32", "bf16"]
Statistics = Literal["clip", "imagenet", "none"]

#: How a tower runs a block: :func:`methods.parts.transformer.run_block`, or its compiled form.
RunBlock = Callable[..., Tensor]

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
#: Configs older than transformers 4.31 have 2, whatever the tokenizer; the text is then read at its largest id.
_LEGACY_EOS = 2
_HUB_SECONDS = 5.0


class BackboneError(ValueError):
    """A checkpoint, text or image that the backbone cannot use; the message is one line and names the fix."""


class OtherModelError(BackboneError):
    """A checkpoint of ``transformers`` that is not a CLIP: ``kind`` is its config's ``model_type``."""

    def __init__(self, message: str, kind: Any) -> None:
        super().__init__(message)
        self.kind = kind


def square(value: Any, what: str) -> int:
    """A config size that may be a number or a pair of equal numbers."""
    sides = {int(side) for side in (value if isinstance(value, list | tuple) else [value])}
    if len(sides) != 1:
        raise BackboneError(f"{what} {value} is not square: only square images and patches are supported")
    return sides.pop()


def insert_prompts(tokens: Tensor, prompts: Tensor) -> Tensor:
    """Put prompt tokens right behind the class token: [B, 1+P, w] and [B, K, w] or [K, w] -> [B, 1+K+P, w]."""
    prompts = prompts.expand(tokens.shape[0], -1, -1)
    return torch.cat([tokens[:, :1], prompts, tokens[:, 1:]], dim=1)


def replace_prompts(tokens: Tensor, prompts: Tensor) -> Tensor:
    """Put prompts [K, w] or [B, K, w] in the place of tokens 1..K of [B, T, w]."""
    return insert_prompts(torch.cat([tokens[:, :1], tokens[:, 1 + prompts.shape[-2] :]], dim=1), prompts)


def token_statistics(hidden_per_layer: Sequence[Tensor], eps: float = 2.3e-8) -> tuple[Tensor, Tensor]:
    """Each layer's style: mean and (biased) standard deviation over its tokens (docs/methods.md, AD-CLIP).

    ``hidden_per_layer``: n tensors [B, T, w]. Returns mu and sigma, both [n, B, w], with
    ``sigma = sqrt((sum over tokens of (t - mu)^2 + eps) / T)``; the official code adds its eps to the sum, as here.
    """
    hidden = torch.stack(list(hidden_per_layer)).float()
    mu = hidden.mean(dim=2)
    squares = (hidden - mu.unsqueeze(2)).square().sum(dim=2)
    return mu, ((squares + eps) / hidden.shape[2]).sqrt()


def stack_layers(values: Sequence[Tensor]) -> Tensor:
    """A value of each of n layers, [B, w_l] each -> [B, n, w], w the largest width; zeros fill narrower layers."""
    widest = max(value.shape[-1] for value in values)
    return torch.stack([F.pad(value, (0, widest - value.shape[-1])) for value in values], dim=1)


def _check_depth(deep_prompts: Tensor | None, layers: int) -> None:
    """Deep prompts are for blocks 1..d of a tower's ``layers``, so d is at most one less."""
    if deep_prompts is not None and deep_prompts.shape[0] > layers - 1:
        raise BackboneError(f"deep_prompts has {deep_prompts.shape[0]} rows, this tower needs {layers - 1} at most")


def _with_deep_prompts(hidden: Tensor, deep_prompts: Tensor | None, block: int) -> Tensor:
    """The input of a block (from 0) with its prompts, if it has any, in the place of the last block's outputs."""
    if deep_prompts is None or not 0 < block <= deep_prompts.shape[0]:
        return hidden
    return replace_prompts(hidden, deep_prompts[block - 1])


class VisionTower(nn.Module):
    """A CLIP vision transformer run on given tokens. Parameters are named as in ``CLIPModel`` (``vision_model.*``)."""

    def __init__(self, vision_model: CLIPVisionModel) -> None:
        super().__init__()
        self.vision_model = vision_model
        self.block: RunBlock = run_block  # or its compiled form
        config = vision_model.config
        self.width: int = config.hidden_size
        self.layers: int = config.num_hidden_layers
        self.patch_size: int = square(config.patch_size, "patch size")
        self.image_size: int = square(config.image_size, "image size")
        self.grid: int = self.image_size // self.patch_size

    @classmethod
    def random(cls, config: CLIPVisionConfig, *, layers: int, seed: int) -> Self:
        """A tower of the given config with ``layers`` blocks and random, trainable weights (ProS's simulator)."""
        config = copy.deepcopy(config)
        config.num_hidden_layers = layers
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            from transformers import CLIPVisionModel

            return cls(CLIPVisionModel(config))

    @property
    def class_token(self) -> Tensor:
        """[w], without its position."""
        token: Tensor = self.vision_model.embeddings.class_embedding
        return token

    @property
    def positions(self) -> Tensor:
        """[1+P, w]; row 0 belongs to the class token."""
        positions: Tensor = self.vision_model.embeddings.position_embedding.weight
        return positions

    def patch_tokens(self, pixels: Tensor) -> Tensor:
        """Patches of normalised pixels [B, 3, H, W] -> [B, P, w], without positions."""
        if pixels.ndim != 4 or tuple(pixels.shape[1:]) != (3, self.image_size, self.image_size):
            raise BackboneError(
                f"pixels have shape {tuple(pixels.shape)}, this backbone takes [B, 3, {self.image_size},"
                f" {self.image_size}]: resize the images to the backbone's image_size"
            )
        patches: Tensor = self.vision_model.embeddings.patch_embedding(pixels)
        return patches.flatten(2).transpose(1, 2).to(self.positions.dtype)

    def image_tokens(self, pixels: Tensor, *, class_token: Tensor | None = None) -> Tensor:
        """``[class token ; patches] + positions`` [B, 1+P, w]; ``class_token`` [w] replaces the frozen one."""
        patches = self.patch_tokens(pixels)
        token = self.class_token if class_token is None else class_token
        return torch.cat([token.expand(patches.shape[0], 1, -1), patches], dim=1) + self.positions

    def run(self, tokens: Tensor, *, deep_prompts: Tensor | None = None, read: int | None = None) -> Tensor:
        """Pre-LayerNorm and all blocks: tokens [B, T, w] -> [B, T, w], or [B, w] of the token ``read`` alone.

        ``deep_prompts`` [d, K, w] or [d, B, K, w] replace tokens 1..K at the input of blocks 1..d (visual prompt
        tuning, deep: d = n-1). With ``read`` the last block computes that token only: the same numbers with less work.
        """
        blocks = self.vision_model.encoder.layers
        _check_depth(deep_prompts, len(blocks))
        hidden: Tensor = self.vision_model.pre_layrnorm(tokens)
        for number, block in enumerate(blocks):
            hidden = _with_deep_prompts(hidden, deep_prompts, number)
            if read is None or number < len(blocks) - 1:
                hidden = self.block(block, hidden)
            else:
                index = torch.full((hidden.shape[0],), read, device=hidden.device)
                hidden = run_last_block(block, hidden, index)
        return hidden if read is None else hidden[:, 0]

    def run_leading(self, tokens: Tensor, count: int) -> Tensor:
        """:meth:`run`, of which only the first ``count`` tokens are read: tokens [B, T, w] -> [B, count, w]."""
        *blocks, last = self.vision_model.encoder.layers
        hidden: Tensor = self.vision_model.pre_layrnorm(tokens)
        for block in blocks:
            hidden = run_block(block, hidden)
        return run_last_block_leading(last, hidden, count)

    def run_leading_shared(self, shared: Tensor, rows: Tensor | None, own: Tensor, count: int) -> Tensor:
        """:meth:`run_leading` where sequences begin with rows of one table: ``[shared[rows] ; own]`` -> [B, count, w].

        ``shared`` [S, w]; ``rows`` [B, R] into it (None: all S in order); ``own`` [B, T, w], each image's tokens. Up to
        the first block's attention a token depends on nothing else: LayerNorms, queries, keys and values of the shared
        ones are computed once, not once per image. The same numbers but for rounding.
        """
        first, *blocks = self.vision_model.encoder.layers

        def spread(values: Tensor) -> Tensor:
            return values.expand(len(own), -1, -1) if rows is None else F.embedding(rows, values)

        if not blocks:
            return self.run_leading(torch.cat([spread(shared), own], dim=1), count)
        parts = []
        for tokens in (shared, own):
            hidden = self.vision_model.pre_layrnorm(tokens)
            parts.append((hidden, *project_tokens(first, hidden)))
        hidden, *projected = (torch.cat([spread(table), each], dim=1) for table, each in zip(*parts, strict=True))
        hidden = run_block(first, hidden, projected=(projected[0], projected[1], projected[2]))
        for block in blocks[:-1]:
            hidden = run_block(block, hidden)
        return run_last_block_leading(blocks[-1], hidden, count)

    def run_layers(self, tokens: Tensor) -> list[Tensor]:
        """Like :meth:`run`, returning the state [B, T, w] after each of the n blocks (the last one is run's result)."""
        hidden: Tensor = self.vision_model.pre_layrnorm(tokens)
        states = []
        for block in self.vision_model.encoder.layers:
            hidden = self.block(block, hidden)
            states.append(hidden)
        return states

    def norm(self, hidden: Tensor) -> Tensor:
        """Post-LayerNorm of read-out tokens [..., w] (before projection)."""
        normed: Tensor = self.vision_model.post_layernorm(hidden)
        return normed


class TextTower(nn.Module):
    """A CLIP text transformer run on given embeddings. Parameters are named as in ``CLIPModel`` (``text_model.*``)."""

    def __init__(self, text_model: nn.Module) -> None:
        super().__init__()
        self.text_model: Any = text_model
        self.block: RunBlock = run_block  # or its compiled form
        config: Any = text_model.config
        self.width: int = config.hidden_size
        self.layers: int = config.num_hidden_layers
        self.context_length: int = config.max_position_embeddings
        eos = config.eos_token_id
        self.end_ids: list[int] = list(eos) if isinstance(eos, list | tuple) else [eos]

    @property
    def positions(self) -> Tensor:
        """[L, v]."""
        positions: Tensor = self.text_model.embeddings.position_embedding.weight
        return positions

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """Token ids [...] -> embeddings [..., v], without positions."""
        embedded: Tensor = self.text_model.embeddings.token_embedding(ids)
        return embedded

    def eot_positions(self, ids: Tensor) -> Tensor:
        """Where each row of ids [C, T] is read, [C]: the first end-of-text token.

        The rule of ``transformers``: the first ``config.eos_token_id``; a config that has 2 is an old one whose number
        means nothing, and the row is read at its largest id (OpenAI's rule, the same place for OpenAI's vocabulary).

        Raises:
            BackboneError: a row has no end-of-text token.
        """
        if self.end_ids == [_LEGACY_EOS]:
            return ids.argmax(dim=-1)
        ends = torch.isin(ids, torch.tensor(self.end_ids, device=ids.device))
        if not bool(ends.any(dim=-1).all()):
            raise BackboneError(
                f"a text has no end-of-text token (id {self.end_ids}): build its ids with Backbone.tokenize"
            )
        return ends.int().argmax(dim=-1)

    def run(self, embeddings: Tensor, eot: Tensor, *, cut: bool = True, deep_prompts: Tensor | None = None) -> Tensor:
        """Causal tower over embeddings [C, T, v] without positions, final LayerNorm at ``eot`` [C] -> [C, v].

        ``deep_prompts`` [d, m, v] replace tokens 1..m at the input of blocks 1..d. With ``cut`` the batch is cut at its
        longest end of text and the last block computes the read token only: the tower is causal, so the numbers are the
        same. ``cut=False`` is the plain path, every token through every block.
        """
        if cut:
            embeddings = embeddings[:, : int(eot.max()) + 1]
        if embeddings.shape[1] > self.context_length:
            raise BackboneError(f"{embeddings.shape[1]} text tokens exceed the context length {self.context_length}")
        eot = eot.to(embeddings.device)
        hidden = embeddings + self.positions[: embeddings.shape[1]]
        blocks = list(self.text_model.encoder.layers)
        _check_depth(deep_prompts, len(blocks))
        for number, block in enumerate(blocks[:-1] if cut else blocks):
            hidden = self.block(block, _with_deep_prompts(hidden, deep_prompts, number), causal=True)
        if cut:
            hidden = _with_deep_prompts(hidden, deep_prompts, len(blocks) - 1)
        read = run_last_block(blocks[-1], hidden, eot, causal=True) if cut else take_token(hidden, eot)
        return self._norm(read)[:, 0]

    def run_prefix(self, prefix: Tensor, *, deep_prompts: Tensor | None = None) -> list[KeysValues]:
        """Each block's keys and values of a prefix [B, P, v] (embeddings without positions, starting at position 0).

        ``deep_prompts`` as in :meth:`run`; their m tokens are in the prefix.
        """
        hidden = prefix + self.positions[: prefix.shape[1]]
        blocks = list(self.text_model.encoder.layers)
        _check_depth(deep_prompts, len(blocks))
        states = []
        for number, block in enumerate(blocks):
            hidden = _with_deep_prompts(hidden, deep_prompts, number)
            states.append(prefix_keys_values(block, hidden))
            if block is not blocks[-1]:
                hidden = run_block(block, hidden, causal=True)
        return states

    def run_after_prefix(self, prefix: Sequence[KeysValues], suffix: Tensor, eot: Tensor) -> Tensor:
        """Read C suffixes behind a common prefix: suffix [S, C, T, v] -> [max(S, B), C, v].

        ``eot`` [C] is counted in the suffix. S and the prefix's B are equal, or one of them is 1 and shared by all.
        Same numbers as :meth:`run` on prefix and suffix put together; the prefix is computed once, not once per class.
        """
        start = prefix[0].keys.shape[2]
        length = suffix.shape[2]
        if start + length > self.context_length:
            raise BackboneError(f"{start + length} text tokens exceed the context length {self.context_length}")
        eot = eot.to(suffix.device)
        hidden = suffix + self.positions[start : start + length]
        blocks = list(self.text_model.encoder.layers)
        for block, keys_values in zip(blocks, prefix, strict=True):
            hidden = run_block_after_prefix(block, hidden, keys_values, index=eot if block is blocks[-1] else None)
        return self._norm(hidden)[:, :, 0]

    def _norm(self, hidden: Tensor) -> Tensor:
        normed: Tensor = self.text_model.final_layer_norm(hidden)
        return normed


class Backbone(ABC):
    """A frozen image-text model: what methods use of it. :meth:`load` and :meth:`from_config` make a CLIP.

    This class is the part that every backbone has, *features*: images and texts become vectors of one space.
    ``offers`` says what more there is (:mod:`methods.parts.capabilities`): :class:`PromptBackbone` adds *styles*,
    :class:`ClipBackbone` *tokens*. ``causal_text`` says whether a text token depends on earlier ones alone, so that a
    text may be cut behind the token that is read, and texts may share the work of a common beginning; without it every
    text runs whole.

    ``precision`` "float32"; "tf32": the same, where the process lets a GPU round the factors of float32 products
    (:func:`benchmarks.runner.process_settings.prepare_process` does); or "bf16": weights stay float32 and the matrix
    products run in bfloat16 (autocast), those of frozen weights from a copy that is made once
    (:mod:`methods.parts.frozen`). What a tower returns is float32 in all cases. A training step of a method belongs
    inside ``with backbone.autocast():``.
    """

    offers: ClassVar[Capability] = "features"
    causal_text: ClassVar[bool] = False
    #: Whether the towers' blocks are compiled (:meth:`compile`).
    compiled: bool = False

    def __init__(
        self,
        model: nn.Module,
        *,
        image_size: int,
        tokenizer: Any = None,
        name: str = "unnamed",
        preprocessing: Mapping[str, Any] | None = None,
        precision: Precision = "float32",
    ) -> None:
        if precision not in get_args(Precision):
            raise BackboneError(f"precision {precision!r} is unknown: use {', '.join(get_args(Precision))}")
        self.model: Any = model.float().eval().requires_grad_(False)
        align_parameters(self.model)
        if precision == "bf16":
            keep_casts(self.model)
        self.tokenizer = tokenizer
        self.name = name
        self.precision: Precision = precision
        self._side = image_size
        self.preprocessing: dict[str, Any] = ImageProcessing.of_record(preprocessing or {}, image_size).record()
        self._hash: tuple[tuple[tuple[int, int], ...], str] | None = None
        self._scale: tuple[tuple[int, int], float] | None = None
        self._statistics: dict[tuple[Any, ...], tuple[Tensor, Tensor]] = {}

    # --- building ----------------------------------------------------------------------------------------------------

    @classmethod
    def load(cls, name_or_folder: str | Path, *, device: str = "cpu", precision: Precision = "float32") -> ClipBackbone:
        """The CLIP in a folder in Hugging Face format or of a Hub name: :meth:`ClipBackbone.load`.

        :func:`benchmarks.backbones.sources.load` also takes the backbones that offer less.
        """
        return ClipBackbone.load(name_or_folder, device=device, precision=precision)

    @classmethod
    def from_config(
        cls, config: CLIPConfig, seed: int, *, tokenizer: Any = None, precision: Precision = "float32"
    ) -> ClipBackbone:
        """A CLIP with random weights: :meth:`ClipBackbone.from_config`."""
        return ClipBackbone.from_config(config, seed, tokenizer=tokenizer, precision=precision)

    def clone(self) -> Self:
        """A deep copy whose weights may be trained; frozen until a method sets ``requires_grad_`` on its parameters."""
        return type(self)(copy.deepcopy(self.model), **self._construction())

    def _construction(self) -> dict[str, Any]:
        """What the class is built with beside the model, for :meth:`clone`."""
        return {
            "tokenizer": self.tokenizer,
            "name": self.name,
            "preprocessing": self.preprocessing,
            "precision": self.precision,
        }

    def to(self, device: str | torch.device) -> Self:
        """Move the weights; returns self."""
        self.model.to(device)
        return self

    # --- sizes and identity ------------------------------------------------------------------------------------------

    @property
    def image_size(self) -> int:
        """Side of an image in pixels; it carries :attr:`processing`."""
        return ImageSize(self.processing)

    @property
    def processing(self) -> ImageProcessing:
        """How an image becomes the pixels that this backbone takes; :attr:`preprocessing` states it for records."""
        return ImageProcessing.of_record(self.preprocessing, self._side)

    @property
    @abstractmethod
    def embed_dim(self) -> int:
        """Width E of the shared embedding."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        parameter: Tensor = next(self.model.parameters())
        return parameter.device

    @property
    def logit_scale(self) -> float:
        """Factor from cosine to logit: the exponential of CLIP's parameter of that name (100 for OpenAI's CLIP).

        It is read from the device once, and again only after it changed.
        """
        parameter: Tensor = self.model.logit_scale
        stamp = (parameter.data_ptr(), parameter._version)
        if self._scale is None or self._scale[0] != stamp:  # reading it makes the host wait for the device
            self._scale = (stamp, float(parameter.detach().exp()))
        return self._scale[1]

    @property
    def weights_hash(self) -> str:
        """sha256 over the sorted names of the weights and their float32 bytes; computed anew only after one changed."""
        parameters = sorted(self._weights())
        stamp = tuple((tensor.data_ptr(), tensor._version) for _, tensor in parameters)
        if self._hash is None or self._hash[0] != stamp:
            digest = hashlib.sha256()
            for name, tensor in parameters:
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
            self._hash = (stamp, digest.hexdigest())
        return self._hash[1]

    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        """What a checkpoint stores, by name: the parameters."""
        return self.model.named_parameters()

    @property
    @abstractmethod
    def config_hash(self) -> str:
        """sha256 of all that determines the towers' output beside the weights."""

    @property
    def tokenizer_hash(self) -> str:
        """sha256 of all that decides which ids a text gets; "" without a tokenizer."""
        return tokenizer_hash(self.tokenizer)

    @property
    def identity(self) -> dict[str, str]:
        """Hashes of all that determines what the towers make of normalised pixels and of texts: ``weights_hash``,
        ``config_hash`` and ``tokenizer_hash`` (:mod:`methods.parts.identity`)."""
        return {
            "weights_hash": self.weights_hash,
            "config_hash": self.config_hash,
            "tokenizer_hash": self.tokenizer_hash,
        }

    def autocast(self) -> contextlib.AbstractContextManager[Any]:
        """The context of this backbone's precision: bfloat16 autocast for "bf16", nothing for "float32".

        Autocast's own cache of cast weights is off, so passes with and without gradients may share one context (it
        would not hold frozen weights anyway: :mod:`methods.parts.frozen` does).
        """
        if self.precision == "bf16":
            return torch.autocast(self.device.type, dtype=torch.bfloat16, cache_enabled=False)
        return contextlib.nullcontext()

    def compile(self, **options: Any) -> Self:
        """Compile the towers' blocks with ``torch.compile(..., **options)``; returns self, with ``compiled`` True.

        The numbers then differ in their last digits. Clones, which a method trains, are not compiled.

        Raises:
            BackboneError: it has no transformer that this package runs block by block.
        """
        towers = [tower for tower in (getattr(self, "vision", None), getattr(self, "text", None)) if tower is not None]
        if not towers:
            raise BackboneError(f"backbone {self.name} cannot be compiled: only the transformers of a CLIP can")
        with self.autocast():
            cast_now(self.model)
        block = torch.compile(run_block, **options)
        for tower in towers:
            tower.block = block
        self.compiled = True
        return self

    # --- parameters --------------------------------------------------------------------------------------------------

    @abstractmethod
    def vision_parameters(self) -> dict[str, nn.Parameter]:
        """What an image's features depend on, by the model's names."""

    @abstractmethod
    def text_parameters(self) -> dict[str, nn.Parameter]:
        """What a text's features depend on, by the model's names."""

    def _parameters_of(self, *prefixes: str) -> Iterator[tuple[str, nn.Parameter]]:
        return ((name, tensor) for name, tensor in self.model.named_parameters() if name.startswith(prefixes))

    def load_parameters(self, values: Mapping[str, Tensor]) -> None:
        """Copy the given values into the parameters of those names (a clone's trained weights, read back from a file).

        Raises:
            BackboneError: a name that this backbone does not have, or another shape.
        """
        own = dict(self.model.named_parameters())
        for name, value in values.items():
            if name not in own or own[name].shape != value.shape:
                shape = tuple(own[name].shape) if name in own else "absent"
                raise BackboneError(f"weight {name} {tuple(value.shape)} does not fit backbone {self.name} ({shape})")
        with torch.no_grad():
            for name, value in values.items():
                own[name].copy_(value)

    # --- images and texts --------------------------------------------------------------------------------------------

    def normalize(self, pixels: Tensor, statistics: Statistics = "clip") -> Tensor:
        """Normalise pixels [B, 3, H, W] in [0, 1] per channel.

        "clip": the checkpoint's own statistics (its image processor's mean and std); "imagenet"; "none": unchanged.

        Raises ``BackboneError`` for whole numbers (8-bit images), which would be read as values in [0, 1].
        """
        if not pixels.is_floating_point():
            raise BackboneError(f"pixels must be floats in [0, 1], not {pixels.dtype}; pass pixels.float() / 255")
        if statistics == "none":
            return pixels
        if statistics == "clip":
            mean, std = self.preprocessing["mean"], self.preprocessing["std"]
        elif statistics == "imagenet":
            mean, std = IMAGENET_MEAN, IMAGENET_STD
        else:
            raise BackboneError(f"statistics {statistics!r} are unknown: use clip, imagenet or none")
        key = (*mean, *std, pixels.device, pixels.dtype)
        if key not in self._statistics:  # sent to the device once
            shape = (1, 3, 1, 1)
            self._statistics[key] = pixels.new_tensor(mean).view(shape), pixels.new_tensor(std).view(shape)
        means, deviations = self._statistics[key]
        return (pixels - means) / deviations

    @abstractmethod
    def encode_images(self, pixels: Tensor) -> Tensor:
        """Image features of normalised pixels [B, 3, H, W] -> [B, E], not L2-normalised; gradients flow into the
        weights that are trained."""

    @abstractmethod
    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids [C, L] of C texts, on the backbone's device.

        Raises:
            BackboneError: a text is longer than the context.
        """

    @abstractmethod
    def encode_ids(self, ids: Tensor) -> Tensor:
        """Text features of token ids [C, L] -> [C, E], not L2-normalised."""

    def encode_texts(self, texts: Sequence[str], *, batch_size: int = 256) -> Tensor:
        """Text features of C texts -> [C, E], not L2-normalised."""
        if not texts:
            return torch.zeros(0, self.embed_dim, device=self.device)
        return torch.cat([self.encode_ids(part) for part in self.tokenize(texts).split(batch_size)])


class PromptBackbone(Backbone):
    """A backbone that offers *styles*: layer statistics of images, and CLIP's causal text tower on given embeddings.

    ``model`` has the text tower as ``text_model`` (a ``transformers`` CLIP text model), ``text_projection`` and
    ``logit_scale``.
    """

    offers: ClassVar[Capability] = "styles"
    causal_text = True

    def __init__(self, model: nn.Module, *, image_size: int, **rest: Any) -> None:
        super().__init__(model, image_size=image_size, **rest)
        self.text = TextTower(self.model.text_model)
        self._check_tokenizer()

    def _check_tokenizer(self) -> None:
        """The place where a text is read must be the tokenizer's end of text (else features are silently wrong)."""
        if self.tokenizer is None:
            return
        end = self.tokenizer.eos_token_id
        if end is None or self.tokenizer.bos_token_id is None:
            missing = "end" if end is None else "start"
            raise BackboneError(
                f"backbone {self.name}: its tokenizer has no {missing}-of-text token: name it in tokenizer_config.json"
                f" as {'eos' if end is None else 'bos'}_token"
            )
        if end == self.tokenizer.bos_token_id:
            raise BackboneError(
                f"backbone {self.name}: its tokenizer starts and ends a text with the same id {end}: its vocabulary has"
                f" no {self.tokenizer.bos_token!r}; fetch the tokenizer's files again"
            )
        if len(self.tokenizer) <= len(set(self.tokenizer.all_special_ids)):
            raise BackboneError(
                f"backbone {self.name}: its tokenizer has no words: put the checkpoint's tokenizer.json, or"
                " vocab.json and merges.txt, beside its config.json"
            )
        if self.text.end_ids == [_LEGACY_EOS] and end != max(self.tokenizer.get_vocab().values()):
            raise BackboneError(
                f"backbone {self.name}: the tokenizer ends a text with id {end}, which is not its largest, where an old"
                f" config reads it: set text_config.eos_token_id in config.json to {end}"
            )
        if self.text.end_ids != [_LEGACY_EOS] and end not in self.text.end_ids:
            raise BackboneError(
                f"backbone {self.name}: the tokenizer ends a text with id {end}, config.json's text_config.eos_token_id"
                f" is {self.text.end_ids}: make them agree"
            )
        largest = max(self.tokenizer.get_vocab().values())
        if max(len(self.tokenizer), largest + 1) > self.vocabulary_size:
            raise BackboneError(
                f"backbone {self.name}: the tokenizer has {len(self.tokenizer)} tokens (largest id {largest}), the"
                f" model {self.vocabulary_size}: tokenizer and weights do not belong together"
            )
        if dropout := _tokenizers_description(self.tokenizer)[1].get("dropout"):
            raise BackboneError(
                f"backbone {self.name}: its tokenizer drops merges at random (dropout {dropout}), so that a text has"
                " other tokens each time: set model.dropout to null in tokenizer.json"
            )
        lost = _without_merge(self.tokenizer)
        if lost:
            raise BackboneError(
                f"backbone {self.name}: no merge of its tokenizer makes {len(lost)} of its tokens, such as {lost[0]!r},"
                " so words fall into letters: its merges (in tokenizer.json, or merges.txt by vocab.json) are missing"
                " or cut off; fetch the tokenizer's files again"
            )

    # --- sizes -------------------------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def style_widths(self) -> tuple[int, ...]:
        """Width of each of the n layers whose statistics are a style."""

    @property
    def text_width(self) -> int:
        """Width v of the text tower."""
        return self.text.width

    @property
    def text_layers(self) -> int:
        """Number of text blocks."""
        return self.text.layers

    @property
    def context_length(self) -> int:
        """Longest text in tokens, start and end included."""
        return self.text.context_length

    @property
    def vocabulary_size(self) -> int:
        """Rows of the token embedding."""
        return int(self.model.text_model.config.vocab_size)

    def text_parameters(self) -> dict[str, nn.Parameter]:
        """The text branch by CLIPModel's names: ``text_model.*`` and ``text_projection.weight``."""
        return dict(self._parameters_of("text_model.", "text_projection."))

    @property
    def text_projection(self) -> Tensor:
        """Weight [E, v] of the text projection."""
        weight: Tensor = self.model.text_projection.weight
        return weight

    # --- styles ------------------------------------------------------------------------------------------------------

    @abstractmethod
    def encode_styles(self, pixels: Tensor, layers: int = 0) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Features [B, E] of normalised pixels [B, 3, H, W], and the mean and deviation over its positions of each of
        the last ``layers`` layers (0: all n): tensors [B, w_l] (:func:`token_statistics`)."""

    # --- texts -------------------------------------------------------------------------------------------------------

    def token_ids(self, text: str) -> list[int]:
        """The tokens of a piece of text, without start and end."""
        if self.tokenizer is None:
            raise BackboneError(f"backbone {self.name} has no tokenizer: give one to from_config, or load a checkpoint")
        ids = [int(token) for token in self.tokenizer(text, add_special_tokens=False)["input_ids"]]
        if self.tokenizer.eos_token_id in ids:
            raise BackboneError(
                f"the text {text!r} holds the end-of-text token, or a character unknown to the tokenizer: remove it"
            )
        return ids

    @property
    def start_id(self) -> int:
        """The tokenizer's start-of-text id."""
        return int(self.tokenizer.bos_token_id)

    @property
    def end_id(self) -> int:
        """The tokenizer's end-of-text id."""
        return int(self.tokenizer.eos_token_id)

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids [C, L] with start and end, zero-padded, on the backbone's device.

        Raises:
            BackboneError: a text is longer than the context.
        """
        ids = torch.zeros(len(texts), self.context_length, dtype=torch.long)
        for row, text in enumerate(texts):
            pieces = self.token_ids(text)
            tokens = [self.start_id, *pieces, self.end_id]
            if len(tokens) > self.context_length:
                raise BackboneError(
                    f"the text {text!r} has {len(tokens)} tokens, backbone {self.name} reads {self.context_length}:"
                    " shorten it"
                )
            ids[row, : len(tokens)] = torch.tensor(tokens)
        return ids.to(self.device)

    def eot_positions(self, ids: Tensor) -> Tensor:
        """Where each row of ids [C, T] is read, [C] (see :meth:`TextTower.eot_positions`)."""
        return self.text.eot_positions(ids)

    def embed_tokens(self, ids: Tensor) -> Tensor:
        """Token ids [...] -> embeddings [..., v], without positions."""
        return self.text.embed_tokens(ids)

    def project_text(self, read: Tensor, *, projection: Tensor | None = None) -> Tensor:
        """Projection of an end-of-text state [..., v] -> [..., E]; ``projection`` [E, v] replaces the frozen one."""
        with self.autocast():
            features = self.model.text_projection(read) if projection is None else F.linear(read, projection)
            return features.float()

    def run_text(
        self, embeddings: Tensor, eot: Tensor, *, projection: Tensor | None = None, cut: bool = True
    ) -> Tensor:
        """Text features of embeddings [C, T, v] (without positions) read at ``eot`` [C] -> [C, E], not normalised.

        Adds positions, runs the causal tower, final LayerNorm at the end of text, projection. ``cut=False`` is the
        plain path, which also computes the tokens behind the end of text.
        """
        with self.autocast():
            read = self.text.run(embeddings, eot, cut=cut)
        return self.project_text(read, projection=projection)

    def encode_ids(self, ids: Tensor, *, projection: Tensor | None = None, cut: bool = True) -> Tensor:
        """CLIP's text features of token ids [C, T] -> [C, E], not L2-normalised."""
        eot = self.eot_positions(ids)
        return self.run_text(self.embed_tokens(ids), eot, projection=projection, cut=cut)

    def encode_texts(self, texts: Sequence[str], *, projection: Tensor | None = None, batch_size: int = 256) -> Tensor:
        """CLIP's text features of C texts -> [C, E], not L2-normalised."""
        if not texts:
            return torch.zeros(0, self.embed_dim, device=self.device)
        ids = self.tokenize(texts)
        parts = [self.encode_ids(part, projection=projection) for part in ids.split(batch_size)]
        return torch.cat(parts)


class ClipBackbone(PromptBackbone):
    """A frozen CLIP whose towers run on given tokens. Build it with :meth:`load` or :meth:`from_config`."""

    offers: ClassVar[Capability] = "tokens"

    def __init__(
        self,
        model: CLIPModel,
        *,
        tokenizer: Any = None,
        name: str = "unnamed",
        preprocessing: Mapping[str, Any] | None = None,
        precision: Precision = "float32",
    ) -> None:
        self.vision = VisionTower(model.vision_model)
        super().__init__(
            model,
            image_size=self.vision.image_size,
            tokenizer=tokenizer,
            name=name,
            preprocessing=preprocessing,
            precision=precision,
        )

    # --- building ----------------------------------------------------------------------------------------------------

    @classmethod
    def load(cls, name_or_folder: str | Path, *, device: str = "cpu", precision: Precision = "float32") -> Self:
        """Load a CLIP checkpoint: a folder in Hugging Face format, or a name on the Hugging Face Hub.

        Only safetensors weights are read. ``name`` becomes the Hub name, or the folder's last two parts.

        Raises:
            BackboneError: nothing there, not a CLIP, no safetensors, weights that are missing, left over, of another
                shape or not finite, or a tokenizer or image processor that cannot be used.
        """
        from transformers import AutoTokenizer, CLIPConfig, CLIPModel

        text = str(name_or_folder)
        folder = Path(text).expanduser()
        name, unreached = text, ""
        if folder.is_dir():
            check_folder(folder)
            text = str(folder)
            name = f"{folder.resolve().parent.name}/{folder.resolve().name}"
        elif (
            folder.exists()
            or isinstance(name_or_folder, Path)
            or text.startswith((".", "/", "~"))
            or text.count("/") > 1
        ):
            raise BackboneError(f"backbone folder {text} does not exist: give a folder with config.json, or a Hub name")
        else:
            unreached = hub_unreachable(text)
        local = folder.is_dir() or bool(unreached)
        part = "config.json"
        try:
            given, _ = CLIPConfig.get_config_dict(text, local_files_only=local)
            kind = given.get("model_type")
            if kind != "clip":
                raise OtherModelError(
                    f"backbone {text} is a {kind!r} checkpoint: only model_type 'clip' can be used", kind
                )
            config = CLIPConfig.from_pretrained(text, local_files_only=local)
            _check_activations(text, config)
            part = "weights"
            with quiet_loading(local):
                model, report = CLIPModel.from_pretrained(
                    text,
                    config=config,
                    dtype=torch.float32,
                    use_safetensors=True,
                    attn_implementation="sdpa",
                    output_loading_info=True,
                    ignore_mismatched_sizes=True,  # they are in the report
                    local_files_only=local,
                )
            _check_weights(text, model, report)
            part = "tokenizer"
            tokenizer = AutoTokenizer.from_pretrained(text, local_files_only=local, trust_remote_code=False)
            part = "preprocessor_config.json"
            preprocessing = processor_record(text, local, square(config.vision_config.image_size, "image size"))
        except BackboneError:
            raise
        except Exception as error:  # transformers raises OSError, ValueError, SafetensorError, KeyError, ... here
            reason = " ".join(str(error).split())[:400] or type(error).__name__
            if folder.is_dir() and part == "tokenizer":
                reason = reason if len(reason) <= 200 else f"{reason[:197]}..."
                advice = (
                    "put the checkpoint's own tokenizer.json (or vocab.json and merges.txt) and tokenizer_config.json"
                    " into the folder"
                )
            elif folder.is_dir():
                advice = f"check the folder's {part}"
            else:
                reason = f"it is not in the local Hub cache, and the Hub: {unreached}" if unreached else reason
                advice = "a Hub name needs the network, or HF_HUB_OFFLINE=1 with the checkpoint in the local Hub cache"
            raise BackboneError(f"backbone {text}: its {part} cannot be loaded ({reason}): {advice}") from error
        backbone = cls(model, tokenizer=tokenizer, name=name, preprocessing=preprocessing, precision=precision)
        return backbone.to(device)

    @classmethod
    def from_config(
        cls, config: CLIPConfig, seed: int, *, tokenizer: Any = None, precision: Precision = "float32"
    ) -> Self:
        """A CLIP of this config with random weights; the same seed gives the same weights."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            from transformers import CLIPModel

            model = CLIPModel(config)
        return cls(model, tokenizer=tokenizer, name=f"random-{seed}", precision=precision)

    # --- sizes and identity ------------------------------------------------------------------------------------------

    @property
    def vision_width(self) -> int:
        """Width w of the vision tower."""
        return self.vision.width

    @property
    def vision_layers(self) -> int:
        """Number n of vision blocks."""
        return self.vision.layers

    @property
    def patch_size(self) -> int:
        """Side of a patch in pixels."""
        return self.vision.patch_size

    @property
    def grid(self) -> int:
        """Patches along a side."""
        return self.vision.grid

    @property
    def embed_dim(self) -> int:
        """Width E of the shared embedding."""
        return int(self.model.config.projection_dim)

    @property
    def style_widths(self) -> tuple[int, ...]:
        """The vision width, n times."""
        return (self.vision_width,) * self.vision_layers

    @property
    def config_hash(self) -> str:
        """sha256 of what determines the output in CLIP's config."""
        return config_hash(self.model.config)

    # --- parameters --------------------------------------------------------------------------------------------------

    def vision_parameters(self) -> dict[str, nn.Parameter]:
        """The image branch by CLIPModel's names: ``vision_model.*`` and ``visual_projection.weight``."""
        return dict(self._parameters_of("vision_model.", "visual_projection."))

    @property
    def class_token(self) -> Tensor:
        """The vision tower's class token [w], without its position."""
        return self.vision.class_token

    @property
    def vision_positions(self) -> Tensor:
        """[1+P, w]; row 0 belongs to the class token."""
        return self.vision.positions

    @property
    def vision_projection(self) -> Tensor:
        """Weight [E, w] of the image projection."""
        weight: Tensor = self.model.visual_projection.weight
        return weight

    # --- images ------------------------------------------------------------------------------------------------------

    def patch_tokens(self, pixels: Tensor) -> Tensor:
        """Patches of normalised pixels [B, 3, H, W] -> [B, P, w], without positions."""
        with self.autocast():
            return self.vision.patch_tokens(pixels)

    def image_tokens(self, pixels: Tensor, *, class_token: Tensor | None = None) -> Tensor:
        """``[class token ; patches] + positions`` [B, 1+P, w]; ``class_token`` [w] replaces the frozen one."""
        with self.autocast():
            return self.vision.image_tokens(pixels, class_token=class_token)

    def run_vision(self, tokens: Tensor, *, deep_prompts: Tensor | None = None, read: int | None = None) -> Tensor:
        """Pre-LayerNorm and all blocks, tokens [B, T, w] -> [B, T, w], with ``read`` [B, w] (see VisionTower.run)."""
        with self.autocast():
            return self.vision.run(tokens, deep_prompts=deep_prompts, read=read)

    def run_vision_layers(self, tokens: Tensor) -> list[Tensor]:
        """The state [B, T, w] after each of the n blocks; the last equals :meth:`run_vision`."""
        with self.autocast():
            return self.vision.run_layers(tokens)

    def readout(self, hidden: Tensor, *, projection: Tensor | None = None) -> Tensor:
        """Post-LayerNorm and projection of a read-out token [B, w] -> [B, E], not normalised.

        ``projection`` [E, w] replaces the frozen one. ``backbone.vision.norm`` is the LayerNorm alone.
        """
        with self.autocast():
            normed = self.vision.norm(hidden)
            features = self.model.visual_projection(normed) if projection is None else F.linear(normed, projection)
            return features.float()

    def encode_images(
        self, pixels: Tensor, *, class_token: Tensor | None = None, projection: Tensor | None = None
    ) -> Tensor:
        """CLIP's image features of normalised pixels [B, 3, H, W] -> [B, E], not L2-normalised."""
        tokens = self.image_tokens(pixels, class_token=class_token)
        return self.readout(self.run_vision(tokens, read=0), projection=projection)

    def encode_styles(self, pixels: Tensor, layers: int = 0) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Features, and the statistics of the tokens behind each block, the class token among them."""
        states = self.run_vision_layers(self.image_tokens(pixels))
        mu, sigma = token_statistics(states[-layers:])
        return self.readout(states[-1][:, 0]), list(mu), list(sigma)


def _tokenizers_description(tokenizer: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """A ``tokenizers`` tokenizer as its ``tokenizer.json`` would describe it, and its ``model``; else empty."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    whole: dict[str, Any] = {} if backend is None else json.loads(backend.to_str())
    return whole, whole.get("model") or {}


def _without_merge(tokenizer: Any) -> list[str]:
    """Tokens of a byte-pair vocabulary that no text can become, since no merge makes them; none for other kinds.

    Single symbols and special tokens (``<...>``, ``[...]``, added ones) need no merge.
    """
    whole, model = _tokenizers_description(tokenizer)
    if model.get("type") != "BPE" or model.get("ignore_merges"):
        return []
    suffix, prefix = model.get("end_of_word_suffix") or "", model.get("continuing_subword_prefix") or ""
    pairs = (merge.split(" ") if isinstance(merge, str) else merge for merge in model["merges"])
    made = {first + second.removeprefix(prefix) for first, second in pairs}
    special = {token["content"] for token in whole.get("added_tokens") or ()} | set(tokenizer.all_special_tokens)
    return [
        token
        for token in model["vocab"]
        if len(token.removesuffix(suffix).removeprefix(prefix)) > 1
        and token not in made
        and token not in special
        and token[0] + token[-1] not in ("<>", "[]")
    ]


@contextlib.contextmanager
def quiet_loading(local: bool) -> Iterator[None]:
    """No progress bar and no report table while local files are read; a download from the Hub keeps its bar."""
    if not local:
        yield
        return
    from transformers.utils import logging as transformers_logging

    bar, verbosity = transformers_logging.is_progress_bar_enabled(), transformers_logging.get_verbosity()
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bar:
            transformers_logging.enable_progress_bar()


def hub_unreachable(name: str) -> str:
    """Why the Hugging Face Hub cannot be reached for a checkpoint now; empty if it has the checkpoint.

    One request of a few seconds: ``transformers`` itself would try for half a minute for each file, although the file
    may be in the local cache.

    Raises:
        BackboneError: there is no such checkpoint.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    try:
        HfApi().model_info(name, timeout=_HUB_SECONDS)
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise BackboneError(
            f"backbone {name} cannot be loaded (the Hub has no such checkpoint, or restricts it to its members): check"
            " the name, or `hf auth login`"
        ) from error
    except Exception as error:  # no network, a proxy's refusal, HF_HUB_OFFLINE, a broken response, ...
        return " ".join(str(error).split())[:200] or type(error).__name__
    return ""


def _check_activations(text: str, config: CLIPConfig) -> None:
    """Refuse an activation that ``transformers`` does not have: it would raise the bare name as a KeyError."""
    from transformers.activations import ACT2FN

    for tower in ("vision_config", "text_config"):
        name = getattr(config, tower).hidden_act
        if not isinstance(name, str) or name not in ACT2FN:
            raise BackboneError(
                f"backbone {text}: config.json has the hidden_act {name!r} in {tower}, which transformers does not"
                " have: give the one it was trained with, such as 'quick_gelu' (OpenAI) or 'gelu'"
            )


def _check_weights(text: str, model: CLIPModel, report: Mapping[str, Any]) -> None:
    """A checkpoint's weights must be all of the config's CLIP, and finite; heads beside it are left out."""
    misfits = sorted(report["mismatched_keys"])
    if misfits:
        name, there, wanted = misfits[0]
        raise BackboneError(
            f"backbone {text}: weight {name} is {tuple(there)}, config.json asks for {tuple(wanted)}: they do not"
            " belong together"
        )
    missing = sorted(report["missing_keys"])
    if missing:
        raise BackboneError(
            f"backbone {text}: {len(missing)} weights are missing, such as {missing[0]}: use the files of a full CLIP"
        )
    towers = ("vision_model.", "text_model.", "visual_projection.", "text_projection.")
    surplus = sorted(name for name in report["unexpected_keys"] if name.startswith(towers))
    if surplus:
        raise BackboneError(
            f"backbone {text} has {len(surplus)} weights too many for its config.json, such as {surplus[0]}: they do"
            " not belong together"
        )
    for name, weight in model.named_parameters():
        if not bool(weight.isfinite().all()):
            raise BackboneError(f"backbone {text}: weight {name} is not finite: the file is broken, fetch it again")


def processor_record(text: str, local: bool, size: int) -> dict[str, Any]:
    """What a checkpoint's image processor does, as :meth:`ImageProcessing.record`; CLIP's own without one.

    Raises:
        BackboneError: a processor that cannot be followed.
    """
    from transformers.image_processing_base import ImageProcessingMixin

    try:
        processor, _ = ImageProcessingMixin.get_image_processor_dict(text, local_files_only=local)
    except OSError as error:
        if isinstance(error.__context__, ValueError):  # it is there and no JSON
            raise
        return ImageProcessing.clip(size).record()
    try:
        return read_processor(processor, size).record()
    except ProcessingError as error:
        alone = not Path(text).is_dir() or (Path(text) / "preprocessor_config.json").is_file()
        file = "preprocessor_config.json" if alone else "processor_config.json"
        raise BackboneError(f"backbone {text}: {file} has {error}") from error


def check_folder(folder: Path) -> None:
    """The files that a checkpoint folder needs, with the fix for what is missing."""
    if not (folder / "config.json").is_file():
        raise BackboneError(f"backbone folder {folder} has no config.json: it is not a Hugging Face CLIP checkpoint")
    if not (folder / "model.safetensors").is_file() and not (folder / "model.safetensors.index.json").is_file():
        if any(folder.glob("*.safetensors")):
            raise BackboneError(
                f"backbone folder {folder} has neither model.safetensors nor model.safetensors.index.json, which its"
                " other safetensors files need: fetch the folder again"
            )
        problem = "only pickled weights" if any(folder.glob("*.bin")) else "no weights"
        raise BackboneError(
            f"backbone folder {folder} has {problem}: convert them to model.safetensors"
            " (CLIPModel.save_pretrained writes it); pickle is never loaded"
        )
