"""The pre-norm transformer block of CLIP, run on given tokens.

``transformers.CLIPModel`` runs its blocks on images and on token ids only. Prompt methods need more: tokens of their
own, the state after every block, an output at one token alone, and text blocks that share the keys and values of a
common prefix (docs/methods.md, Exact speed). The functions below do that with the sub-modules of a ``CLIPEncoderLayer``
(``layer_norm1``, ``self_attn.q_proj`` ..., ``mlp``), so an adapter that replaces one of its linear maps (peft's LoRA)
works too.

Numbers equal those of the stock block (SDPA attention). Attention dropout, 0 in every CLIP, is never applied.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

Block = Any  # transformers.models.clip.modeling_clip.CLIPEncoderLayer


@dataclass(frozen=True)
class KeysValues:
    """Keys and values of one block for P prefix tokens, each [B, heads, P, head_dim]."""

    keys: Tensor
    values: Tensor


def _split_heads(projected: Tensor, heads: int) -> Tensor:
    """[N, T, w] -> [N, heads, T, w / heads]."""
    return projected.unflatten(-1, (heads, -1)).transpose(-3, -2)


def _merge_heads(attended: Tensor) -> Tensor:
    """[..., heads, T, d] -> [..., T, heads * d]."""
    return attended.transpose(-3, -2).flatten(-2)


def _feed_forward(block: Block, hidden: Tensor, attended: Tensor) -> Tensor:
    """Both residual steps: hidden + out_proj(attended), then + MLP."""
    hidden = hidden + block.self_attn.out_proj(attended)
    normed, mlp = block.layer_norm2(hidden), block.mlp
    if type(mlp.activation_fn).__name__ != "QuickGELUActivation":
        return hidden + mlp(normed)
    return hidden + mlp.fc2(quick_gelu(mlp.fc1(normed)))


#: Values of an array that the passes of :func:`quick_gelu` go through at a time: they stay in a core's cache.
_PIECE = 1 << 15

#: Values of an array from which :class:`_QuickGelu` is faster than autograd: the system's allocator then takes fresh
#: pages for every array and clears them first (32 MB of float32).
_LARGE = 1 << 23


class _QuickGelu(torch.autograd.Function):
    """:func:`quick_gelu` for backward on a CPU. The operations are autograd's own in the same order, so every value and
    gradient is the same to the bit; but they go piece by piece, and only the argument is kept for backward.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
        for source, target in zip(*(_pieces(array) for array in (x, out)), strict=True):
            torch.mul(source, 1.702, out=target).sigmoid_().mul_(source)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        """Of x s(a x): ``a s'(a x) (x g) + s(a x) g``."""
        (x,) = ctx.saved_tensors
        result = torch.empty_like(x, memory_format=torch.contiguous_format)
        for source, given, target in zip(*(_pieces(array) for array in (x, gradient, result)), strict=True):
            share = torch.mul(source, 1.702).sigmoid_()
            torch.mul(given, source, out=target)
            torch.ops.aten.sigmoid_backward.grad_input(target, share, grad_input=target)
            target.mul_(1.702).add_(share.mul_(given))
        return result


def _pieces(array: Tensor) -> tuple[Tensor, ...]:
    return array.reshape(-1).split(_PIECE)


def quick_gelu(x: Tensor) -> Tensor:
    """``x sigmoid(1.702 x)``, the activation of OpenAI's CLIP: any shape, the same numbers as the stock module's.

    Where no gradient is wanted it may write the result into ``x``, so ``x`` must not be used afterwards.
    """
    if torch.compiler.is_compiling():
        return x * torch.sigmoid(1.702 * x)
    if x.device.type != "cpu" or x.dtype != torch.float32 or torch.get_num_threads() > 1 or not x.is_contiguous():
        return x * torch.sigmoid(1.702 * x)
    if torch.is_grad_enabled() and x.requires_grad:
        result: Tensor = _QuickGelu.apply(x) if x.numel() >= _LARGE else x * torch.sigmoid(1.702 * x)
        return result
    for piece in _pieces(x):
        piece.mul_((piece * 1.702).sigmoid_())
    return x


def take_token(hidden: Tensor, index: Tensor) -> Tensor:
    """The token at ``index`` [C] of every sequence: hidden [..., C, T, w] -> [..., C, 1, w]."""
    where = index.view(-1, 1, 1).expand(*hidden.shape[:-2], 1, hidden.shape[-1])
    return hidden.gather(-2, where)


def project_tokens(block: Block, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A block's queries, keys and values of tokens, each [..., w] as ``hidden`` [..., w], heads side by side."""
    attention, normed = block.self_attn, block.layer_norm1(hidden)
    return attention.q_proj(normed), attention.k_proj(normed), attention.v_proj(normed)


def run_block(
    block: Block, hidden: Tensor, *, causal: bool = False, projected: tuple[Tensor, Tensor, Tensor] | None = None
) -> Tensor:
    """One block: hidden [N, T, w] -> [N, T, w]; ``projected`` is :func:`project_tokens` of it, where it is known."""
    heads = block.self_attn.num_heads
    parts = project_tokens(block, hidden) if projected is None else projected
    queries, keys, values = (_split_heads(part, heads) for part in parts)
    attended = F.scaled_dot_product_attention(queries, keys, values, is_causal=causal)
    return _feed_forward(block, hidden, _merge_heads(attended))


def run_last_block(block: Block, hidden: Tensor, index: Tensor, *, causal: bool = False) -> Tensor:
    """The last block where only the token at ``index`` [N] is read: hidden [N, T, w] -> [N, 1, w].

    Queries, output projection and MLP are computed for that token alone; keys and values for all.
    """
    attention = block.self_attn
    normed = block.layer_norm1(hidden)
    keys = _split_heads(attention.k_proj(normed), attention.num_heads)
    values = _split_heads(attention.v_proj(normed), attention.num_heads)
    queries = _split_heads(attention.q_proj(take_token(normed, index)), attention.num_heads)
    mask = None
    if causal:
        positions = torch.arange(hidden.shape[-2], device=hidden.device)
        mask = (positions <= index[:, None])[:, None, None, :]
    attended = F.scaled_dot_product_attention(queries, keys, values, attn_mask=mask)
    return _feed_forward(block, take_token(hidden, index), _merge_heads(attended))


def run_last_block_leading(block: Block, hidden: Tensor, count: int) -> Tensor:
    """The last block where only the first ``count`` tokens are read: hidden [N, T, w] -> [N, count, w] (not causal).

    For a few queries over many tokens: instead of a key and a value for every token, each head's query goes through the
    key map's transpose and the tokens' weighted sum through the value map. The same numbers: q.(W_k x) = (W_k^T q).x.
    It uses the weights of k_proj and v_proj, so these must be plain linear maps.
    """
    attention = block.self_attn
    heads = attention.num_heads
    normed = block.layer_norm1(hidden)
    queries = _split_heads(attention.q_proj(normed[:, :count]) * attention.scale, heads)  # [N, heads, count, d]
    to_keys, to_values = (part.weight.unflatten(0, (heads, -1)) for part in (attention.k_proj, attention.v_proj))
    scores = (queries @ to_keys).flatten(1, 2) @ normed.transpose(1, 2)  # [N, heads * count, T]
    scores = scores.unflatten(1, (heads, count)) + queries @ attention.k_proj.bias.view(heads, -1, 1)
    mixed = scores.softmax(dim=-1).flatten(1, 2) @ normed  # [N, heads * count, w]
    attended = mixed.unflatten(1, (heads, count)) @ to_values.transpose(1, 2)
    return _feed_forward(block, hidden[:, :count], _merge_heads(attended) + attention.v_proj.bias)


def prefix_keys_values(block: Block, hidden: Tensor) -> KeysValues:
    """Keys and values of the prefix tokens in this block: hidden [B, P, w] is the block's input."""
    attention = block.self_attn
    normed = block.layer_norm1(hidden)
    return KeysValues(
        keys=_split_heads(attention.k_proj(normed), attention.num_heads),
        values=_split_heads(attention.v_proj(normed), attention.num_heads),
    )


def run_block_after_prefix(block: Block, hidden: Tensor, prefix: KeysValues, index: Tensor | None = None) -> Tensor:
    """One causal block over C suffixes that follow a common prefix.

    ``hidden`` [S, C, T, w] and ``prefix`` [B, heads, P, d], where S and B are equal or one of them is 1 (then shared).
    Every suffix token attends to all P prefix tokens and to the suffix tokens up to itself. The prefix is not copied
    per class: its part of the scores is one product of all C * T queries with the P keys.

    With ``index`` [C] (counted in the suffix) only that token is computed, and the result has T = 1.
    Returns [max(S, B), C, T, w].
    """
    attention = block.self_attn
    normed = block.layer_norm1(hidden)
    keys = _split_heads(attention.k_proj(normed), attention.num_heads)  # [S, C, heads, T, d]
    values = _split_heads(attention.v_proj(normed), attention.num_heads)
    tokens = torch.arange(hidden.shape[-2], device=hidden.device)
    if index is None:
        hidden_after = (tokens > tokens[:, None])[None, None, None]  # [1, 1, 1, T, T]: True for later tokens
    else:
        hidden_after = (tokens > index[:, None])[None, :, None, None]  # [1, C, 1, 1, T]
        hidden, normed = take_token(hidden, index), take_token(normed, index)
    queries = _split_heads(attention.q_proj(normed) * attention.scale, attention.num_heads)  # [S, C, heads, Tq, d]
    shared, classes, heads, length, width = queries.shape
    batch = max(shared, prefix.keys.shape[0])

    own_scores = queries @ keys.transpose(-1, -2)  # [S, C, heads, Tq, T]
    own_scores = own_scores.masked_fill(hidden_after, float("-inf"))
    stacked = queries.transpose(1, 2).reshape(shared, heads, classes * length, width)
    prefix_scores = stacked @ prefix.keys.transpose(-1, -2)  # [batch, heads, C * Tq, P]
    prefix_scores = prefix_scores.unflatten(2, (classes, length)).transpose(1, 2)  # [batch, C, heads, Tq, P]

    scores = torch.cat([prefix_scores, own_scores.expand(batch, -1, -1, -1, -1)], dim=-1)
    weights = scores.softmax(dim=-1)
    on_prefix, on_own = weights.split([prefix_scores.shape[-1], own_scores.shape[-1]], dim=-1)
    from_prefix = on_prefix.transpose(1, 2).flatten(2, 3) @ prefix.values  # [batch, heads, C * Tq, d]
    from_prefix = from_prefix.unflatten(2, (classes, length)).transpose(1, 2)
    attended = from_prefix + on_own @ values  # [batch, C, heads, Tq, d]
    return _feed_forward(block, hidden, _merge_heads(attended))
