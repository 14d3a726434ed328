"""Image-text models that offer *features* alone: any model of open_clip's, and SigLIP in ``transformers``' layout.

SigLIP, SigLIP 2, EVA-02, CoCa and PE have towers of their own, which these classes run as they are: images and texts
are encoded whole, weights may be trained, and nothing else of the towers is reached.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from methods.parts.backbone import Backbone, BackboneError, Precision
from methods.parts.identity import TOWER_FIELDS, digest, tokenizer_hash, tower_facts

if TYPE_CHECKING:
    from transformers import SiglipModel

#: Parameters that no feature depends on.
_SCALES = ("logit_scale", "logit_bias")


class _Features(Backbone):
    """What both kinds share: names of the image branch's parameters start with ``branch``, texts are padded rows."""

    branch: str
    #: Parts of the model that are neither image nor text encoder.
    unused: tuple[str, ...] = ()

    def vision_parameters(self) -> dict[str, nn.Parameter]:
        """The image tower, with its projection."""
        return {name: value for name, value in self.model.named_parameters() if name.startswith(self.branch)}

    def text_parameters(self) -> dict[str, nn.Parameter]:
        """The text tower, with its projection."""
        other = (self.branch, *_SCALES, *self.unused)
        return {name: value for name, value in self.model.named_parameters() if not name.startswith(other)}

    def _check_pixels(self, pixels: Tensor) -> None:
        if pixels.ndim != 4 or tuple(pixels.shape[1:]) != (3, self._side, self._side):
            raise BackboneError(
                f"pixels have shape {tuple(pixels.shape)}, this backbone takes [B, 3, {self._side}, {self._side}]:"
                " resize the images to the backbone's image_size"
            )

    def _too_long(self, text: str, length: int) -> BackboneError:
        return BackboneError(f"the text {text!r} is too long, backbone {self.name} reads {length} tokens: shorten it")


class OpenClipBackbone(_Features):
    """A model of open_clip's, with its own tokenizer. ``config``: open_clip's config of the model (``model_cfg``)."""

    branch = "visual."
    unused = ("text_decoder.",)

    def __init__(self, model: nn.Module, *, config: Mapping[str, Any], **rest: Any) -> None:
        self.config = config
        super().__init__(model, **rest)

    def _construction(self) -> dict[str, Any]:
        """What the class is built with beside the model."""
        return {**super()._construction(), "config": self.config, "image_size": self._side}

    @property
    def embed_dim(self) -> int:
        """Width E of the shared embedding."""
        return int(self.config["embed_dim"])

    @property
    def config_hash(self) -> str:
        """sha256 of open_clip's config of the model."""
        return digest({"open_clip": self.config})

    @property
    def tokenizer_hash(self) -> str:
        """sha256 of the vocabulary and of how a text is cleaned and padded."""
        tokenizer = self.tokenizer
        inner = getattr(tokenizer, "tokenizer", None)  # of transformers
        if inner is not None:
            vocabulary = tokenizer_hash(inner)
        else:
            vocabulary = digest([sorted(tokenizer.encoder.items()), sorted(map(list, tokenizer.bpe_ranks))])
        settings = [getattr(tokenizer, name, None) for name in ("context_length", "strip_sep_token", "tokenizer_mode")]
        clean = getattr(getattr(tokenizer, "clean_fn", None), "__name__", "")
        return digest([type(tokenizer).__name__, vocabulary, clean, settings])

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Image features of normalised pixels [B, 3, H, W] -> [B, E], not L2-normalised."""
        self._check_pixels(pixels)
        with self.autocast():
            features: Tensor = self.model.encode_image(pixels, normalize=False)
            return features.float()

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids [C, L] of the model's own tokenizer; a text that it would cut raises ``BackboneError``."""
        ids: Tensor = self.tokenizer(list(texts))
        if getattr(self.tokenizer, "tokenizer_mode", "") != "clips":
            length = ids.shape[1]
            longer = self.tokenizer(list(texts), context_length=2 * length)
            for text, row in zip(texts, longer, strict=True):
                if bool((row[length:] != self._padding(row)).any()):
                    raise self._too_long(text, length)
        return ids.to(self.device)

    def _padding(self, row: Tensor) -> int:
        inner = getattr(self.tokenizer, "tokenizer", None)
        return 0 if inner is None or inner.pad_token_id is None else int(inner.pad_token_id)

    def encode_ids(self, ids: Tensor) -> Tensor:
        """Text features of token ids [C, L] -> [C, E], not L2-normalised."""
        with self.autocast():
            features: Tensor = self.model.encode_text(ids, normalize=False)
            return features.float()


class SiglipBackbone(_Features):
    """A ``transformers.SiglipModel`` with its tokenizer; its text tower sees a text whole, padding included."""

    branch = "vision_model."

    def __init__(
        self,
        model: SiglipModel,
        *,
        tokenizer: Any,
        name: str,
        preprocessing: Mapping[str, Any],
        precision: Precision,
    ) -> None:
        super().__init__(
            model,
            image_size=int(model.config.vision_config.image_size),
            tokenizer=tokenizer,
            name=name,
            preprocessing=preprocessing,
            precision=precision,
        )
        largest = max(tokenizer.get_vocab().values())
        if largest >= model.config.text_config.vocab_size:
            raise BackboneError(
                f"backbone {name}: the tokenizer's largest id is {largest}, the model has"
                f" {model.config.text_config.vocab_size} tokens: tokenizer and weights do not belong together"
            )

    @property
    def embed_dim(self) -> int:
        """Width E of the shared embedding: the image tower has no projection."""
        return int(self.model.config.vision_config.hidden_size)

    @property
    def context_length(self) -> int:
        """Length in tokens that every text is padded to."""
        return int(self.model.config.text_config.max_position_embeddings)

    @property
    def config_hash(self) -> str:
        """sha256 of what the towers read of their configs."""
        config = self.model.config
        vision = (*TOWER_FIELDS, "image_size", "patch_size", "num_channels", "vision_use_head")
        text = (*TOWER_FIELDS, "vocab_size", "max_position_embeddings", "projection_size")
        parts = [tower_facts(config.vision_config, vision), tower_facts(config.text_config, text)]
        return digest({"siglip": parts})

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Image features of normalised pixels [B, 3, H, W] -> [B, E], not L2-normalised."""
        self._check_pixels(pixels)
        with self.autocast():
            features: Tensor = self.model.vision_model(pixel_values=pixels).pooler_output
            return features.float()

    def tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids [C, L], padded to the context as in training; a text that is longer raises ``BackboneError``."""
        rows = self.tokenizer(list(texts), padding="max_length", max_length=self.context_length)["input_ids"]
        for text, row in zip(texts, rows, strict=True):
            if len(row) > self.context_length:
                raise self._too_long(text, self.context_length)
        return torch.tensor(rows, dtype=torch.long).to(self.device)

    def encode_ids(self, ids: Tensor) -> Tensor:
        """Text features of token ids [C, L] -> [C, E], not L2-normalised."""
        with self.autocast():
            features: Tensor = self.model.text_model(input_ids=ids).pooler_output
            return features.float()
