"""``CLIPModel``'s two towers as pretraining runs them: the same function of the same parameters with less work.

The last block computes the one token that is read (class token, end of text); queries, keys and values are one product;
``x * sigmoid(1.702 x)`` is ``silu`` with its factor moved into the weights; patches are cut by reshaping; and a
single-colour drawing, whose three channels are equal, is embedded as one channel. Products run in ``dtype``, parameters
and gradients stay float32.

Shapes: B images, P patches, w width, U texts, L tokens, E embedding width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

_GELU = 1.702


def patches_of(images: Tensor, patch: int) -> Tensor:
    """Cut images ``[B, c, S, S]`` into flat patches ``[B, P, c * patch * patch]``, row by row."""
    count, channels, size, _ = images.shape
    grid = size // patch
    cut = images.view(count, channels, grid, patch, grid, patch).permute(0, 2, 4, 1, 3, 5)
    return cut.reshape(count, grid * grid, channels * patch * patch)


def image_features(model: Any, images: tuple[Tensor, ...], dtype: torch.dtype) -> Tensor:
    """Projected image features ``[B, E]`` of normalised images, one after the other.

    ``images`` holds tensors ``[b, 3, S, S]`` or, for images with three equal channels, ``[b, 1, S, S]``; B sums the b.
    """
    tower = model.vision_model
    weight = tower.embeddings.patch_embedding.weight.to(dtype)
    kernels = {3: weight.flatten(1), 1: weight.sum(1).flatten(1)}
    parts = [
        F.linear(patches_of(part.to(dtype), weight.shape[-1]), kernels[part.shape[1]]) for part in images if len(part)
    ]
    embedded = torch.cat(parts) if len(parts) > 1 else parts[0]
    first = tower.embeddings.class_embedding.to(dtype).expand(len(embedded), 1, -1)
    hidden = torch.cat([first, embedded], 1) + tower.embeddings.position_embedding.weight.to(dtype)
    hidden = _norm(tower.pre_layrnorm, hidden)
    at = torch.zeros(len(hidden), dtype=torch.long, device=hidden.device)
    read = _run(tower.encoder.layers, hidden, at, causal=False)
    return F.linear(_norm(tower.post_layernorm, read), model.visual_projection.weight.to(dtype)).float()


def text_features(model: Any, tokens: Tensor, end: Tensor, dtype: torch.dtype) -> Tensor:
    """Projected text features ``[U, E]`` of tokens ``[U, L]`` up to the end of text ``end [U]``; the rest is unread."""
    tower = model.text_model
    hidden = tower.embeddings.token_embedding.weight.to(dtype)[tokens]
    hidden = hidden + tower.embeddings.position_embedding.weight[: tokens.shape[1]].to(dtype)
    read = _run(tower.encoder.layers, hidden, end, causal=True)
    return F.linear(_norm(tower.final_layer_norm, read), model.text_projection.weight.to(dtype)).float()


def _norm(layer: Any, hidden: Tensor) -> Tensor:
    weight, bias = layer.weight.to(hidden.dtype), layer.bias.to(hidden.dtype)
    return F.layer_norm(hidden, layer.normalized_shape, weight, bias, layer.eps)


def _run(layers: Any, hidden: Tensor, at: Tensor, *, causal: bool) -> Tensor:
    """All blocks: ``[B, T, w]`` -> ``[B, w]`` at position ``at [B]``."""
    for layer in layers[:-1]:
        hidden = hidden + _attend(layer.self_attn, _norm(layer.layer_norm1, hidden), causal=causal)
        hidden = hidden + _feed(layer.mlp, _norm(layer.layer_norm2, hidden))
    last = layers[-1]
    index = at[:, None, None].expand(-1, 1, hidden.shape[-1])
    normed = _norm(last.layer_norm1, hidden)
    read = hidden.gather(1, index) + _attend_one(
        last.self_attn, normed.gather(1, index), normed, at if causal else None
    )
    return (read + _feed(last.mlp, _norm(last.layer_norm2, read)))[:, 0]


def _linear(layers: tuple[Any, ...], value: Tensor) -> Tensor:
    """Several linear maps of one input as one product."""
    weight = torch.cat([layer.weight for layer in layers]) if len(layers) > 1 else layers[0].weight
    bias = torch.cat([layer.bias for layer in layers]) if len(layers) > 1 else layers[0].bias
    return F.linear(value, weight.to(value.dtype), bias.to(value.dtype))


def _heads(value: Tensor, count: int) -> Tensor:
    """``[B, T, w]`` -> ``[B, heads, T, w / heads]``."""
    return value.unflatten(-1, (count, -1)).transpose(1, 2)


def _attend(attention: Any, hidden: Tensor, *, causal: bool) -> Tensor:
    projected = _linear((attention.q_proj, attention.k_proj, attention.v_proj), hidden)
    query, key, value = (_heads(part, attention.num_heads) for part in projected.chunk(3, -1))
    if hidden.device.type == "cpu":
        # The CPU's fused attention has a slow backward pass in bf16; plain products make the step twice as fast.
        scores = query @ key.transpose(-1, -2) * attention.scale
        if causal:
            later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=hidden.device).triu(1)
            scores = scores.masked_fill(later, float("-inf"))
        mixed = scores.softmax(-1) @ value
    else:
        mixed = F.scaled_dot_product_attention(query, key, value, is_causal=causal, scale=attention.scale)
    return _linear((attention.out_proj,), mixed.transpose(1, 2).flatten(2))


def _attend_one(attention: Any, read: Tensor, hidden: Tensor, end: Tensor | None) -> Tensor:
    """Attention of one query token ``[B, 1, w]`` over ``[B, T, w]``, up to position ``end [B]`` where given."""
    query = _heads(_linear((attention.q_proj,), read), attention.num_heads)
    key, value = (
        _heads(part, attention.num_heads) for part in _linear((attention.k_proj, attention.v_proj), hidden).chunk(2, -1)
    )
    scores = query @ key.transpose(-1, -2) * attention.scale
    if end is not None:
        later = torch.arange(hidden.shape[1], device=hidden.device) > end[:, None]
        scores = scores.masked_fill(later[:, None, None], float("-inf"))
    return _linear((attention.out_proj,), (scores.softmax(-1) @ value).transpose(1, 2).flatten(2))


def _feed(mlp: Any, hidden: Tensor) -> Tensor:
    """The block's two-layer network with quick GELU."""
    dtype = hidden.dtype
    wide = F.silu(F.linear(hidden, (mlp.fc1.weight * _GELU).to(dtype), (mlp.fc1.bias * _GELU).to(dtype)))
    return F.linear(wide, (mlp.fc2.weight / _GELU).to(dtype), mlp.fc2.bias.to(dtype))
