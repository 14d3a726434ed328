"""CLIP's ResNets (RN50, RN101, ...): the image tower from open_clip, the text tower as in every other CLIP.

The tower's four stages are its layers, with widths of 4, 8, 16 and 32 times the tower's (RN50: 256 to 2048); their
feature maps' positions are what a transformer's tokens are. BatchNorm always uses its stored statistics, also where a
method trains the weights. Attention pooling at the end reads the mean position alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from methods.parts.backbone import BackboneError, PromptBackbone, token_statistics
from methods.parts.identity import TEXT_FIELDS, digest, tower_facts

if TYPE_CHECKING:
    from transformers import CLIPModel


class ResNetClip(nn.Module):
    """Open_clip's ``ModifiedResNet`` as ``vision_model``, and the text side of a ``transformers`` CLIP."""

    def __init__(self, tower: nn.Module, text: CLIPModel) -> None:
        super().__init__()
        self.vision_model = tower
        self.text_model, self.text_projection = text.text_model, text.text_projection
        self.logit_scale = text.logit_scale


class ResNetBackbone(PromptBackbone):
    """A frozen CLIP with a ResNet. ``config``: open_clip's config of the model (``model_cfg``)."""

    def __init__(self, model: ResNetClip, *, config: Mapping[str, Any], **rest: Any) -> None:
        self.config = config
        super().__init__(model, **rest)

    def _construction(self) -> dict[str, Any]:
        """What the class is built with beside the model."""
        return {**super()._construction(), "config": self.config, "image_size": self._side}

    def _weights(self) -> Iterator[tuple[str, Tensor]]:
        """The parameters, and BatchNorm's means and variances."""
        yield from self.model.named_parameters()
        yield from ((name, value) for name, value in self.model.named_buffers() if name.endswith(("_mean", "_var")))

    @property
    def embed_dim(self) -> int:
        """Width E of the shared embedding."""
        return int(self.model.vision_model.output_dim)

    @property
    def style_widths(self) -> tuple[int, ...]:
        """Channels of the four stages."""
        tower = self.model.vision_model
        stages = (tower.layer1, tower.layer2, tower.layer3, tower.layer4)
        return tuple(int(stage[-1].conv3.out_channels) for stage in stages)

    @property
    def config_hash(self) -> str:
        """sha256 of what determines the output in the configs of both towers."""
        vision, text = self.config["vision_cfg"], self.model.text_model.config
        tower = {name: vision.get(name) for name in ("layers", "width", "head_width", "image_size")}
        heads = self.model.vision_model.attnpool.num_heads
        return digest({"resnet": {**tower, "heads": heads}, "text": tower_facts(text, TEXT_FIELDS)})

    def vision_parameters(self) -> dict[str, nn.Parameter]:
        """The image tower with its attention pool: ``vision_model.*``."""
        return dict(self._parameters_of("vision_model."))

    def encode_images(self, pixels: Tensor) -> Tensor:
        """Image features of normalised pixels [B, 3, H, W] -> [B, E], not L2-normalised."""
        with self.autocast():
            return self._pool(self._stages(pixels)[-1]).float()

    def encode_styles(self, pixels: Tensor, layers: int = 0) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Features, and the statistics of the positions behind each stage."""
        with self.autocast():
            maps = self._stages(pixels)
            features = self._pool(maps[-1]).float()
        statistics = [token_statistics([one.flatten(2).transpose(1, 2)]) for one in maps[-layers:]]
        return features, [mu[0] for mu, _ in statistics], [sigma[0] for _, sigma in statistics]

    def _stages(self, pixels: Tensor) -> list[Tensor]:
        """The maps [B, w_l, h_l, h_l] behind the four stages."""
        if pixels.ndim != 4 or tuple(pixels.shape[1:]) != (3, self._side, self._side):
            raise BackboneError(
                f"pixels have shape {tuple(pixels.shape)}, this backbone takes [B, 3, {self._side}, {self._side}]:"
                " resize the images to the backbone's image_size"
            )
        tower, maps = self.model.vision_model, []
        hidden = tower.stem(pixels)
        for stage in (tower.layer1, tower.layer2, tower.layer3, tower.layer4):
            hidden = stage(hidden)
            maps.append(hidden)
        return maps

    def _pool(self, last: Tensor) -> Tensor:
        """Attention of the mean position to all positions and itself: [B, w, h, h] -> [B, E]."""
        pool = self.model.vision_model.attnpool
        positions = last.flatten(2).transpose(1, 2)
        tokens = torch.cat([positions.mean(dim=1, keepdim=True), positions], dim=1) + pool.positional_embedding
        maps = (pool.q_proj(tokens[:, :1]), pool.k_proj(tokens), pool.v_proj(tokens))
        query, keys, values = (one.unflatten(-1, (pool.num_heads, -1)).transpose(1, 2) for one in maps)
        mixed = F.scaled_dot_product_attention(query, keys, values).transpose(1, 2).flatten(2)
        pooled: Tensor = pool.c_proj(mixed)[:, 0]
        return pooled
