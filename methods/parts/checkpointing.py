"""When the activations of many prompts are computed again in the backward pass instead of being kept.

:func:`methods.parts.prompts.encode_prompts` decides by these numbers, and what a plan expects of memory follows from
them too. Nothing here imports torch.
"""

from __future__ import annotations

#: Bytes of activations kept for backward above which the prompts' suffixes run in checkpointed pieces (a second
#: forward).
CHECKPOINT_ABOVE = 16 << 30

#: Bytes of activations of such a piece, or of one class where that is more.
PIECE_BYTES = 1 << 30


def sequence_bytes(tokens: int, keys: int, *, width: int, heads: int, layers: int, bf16: bool) -> int:
    """About the bytes that a text of ``tokens``, each of which attends to at most ``keys``, keeps for backward.

    A token keeps in a block about 16 vectors of the text width (8 of them the MLP's four times wider arrays) and a
    weight for every head and token that it may attend to. The first block, which the contexts share, and the last,
    which computes one token, keep less: with 12 blocks two thirds of this were measured.
    """
    return tokens * layers * (16 * width + heads * keys) * (2 if bf16 else 4)
