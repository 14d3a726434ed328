"""What ProS and UCDR-Adapter have in common: prompt units, the image sequence that holds them, and its read-out token.

See docs/methods.md. Both papers keep a table of learned vectors, the *prompt units* (one or more for every
training domain and every training class), put two kinds of prompt between the class token and the patches of the frozen
CLIP vision tower, and write each class as ``a photo of {class} from X ... X domain.`` with learned context X.

Shapes: B images, K prompt tokens, P patches, w vision width, E embedding width.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from methods.parts.backbone import ClipBackbone, PromptBackbone, insert_prompts
from methods.parts.prompts import opening_ids

#: The text of a class, for :meth:`methods.parts.prompts.PromptTemplate.build`.
TEXT_TEMPLATE = "a photo of {name} from {context} domain."

#: Standard deviation of the learned text context at the start (that of CoOp).
CONTEXT_STD = 0.02

#: Which token of the image sequence becomes the image feature. ``class_token``: the papers' choice. ``first_prompt``:
#: index 1, as in the official code of both papers (the first domain prompt token, where there is one).
ReadOut = Literal["class_token", "first_prompt"]
_READ_INDEX: dict[ReadOut, int] = {"class_token": 0, "first_prompt": 1}


def new_units(rows: int, backbone: ClipBackbone, generator: torch.Generator) -> Tensor:
    """Untrained units [rows, w], uniform in [-v, v] with ``v = sqrt(6 / (3 p^2 + w))``, p the patch size."""
    width, patch = backbone.vision_width, backbone.patch_size
    bound = math.sqrt(6.0 / (3 * patch * patch + width))
    return (torch.empty(rows, width).uniform_(-bound, bound, generator=generator)).to(backbone.device)


def new_context(tokens: int, backbone: PromptBackbone, generator: torch.Generator) -> Tensor:
    """Untrained text context [tokens, v], normal with standard deviation 0.02."""
    return torch.empty(tokens, backbone.text_width).normal_(0.0, CONTEXT_STD, generator=generator).to(backbone.device)


def opening_context(tokens: int, backbone: PromptBackbone, template: str, generator: torch.Generator) -> Tensor:
    """Text context [tokens, v] that starts as the template's words before the class name, normal behind their end."""
    context = new_context(tokens, backbone, generator)
    ids = opening_ids(backbone, template)[:tokens]
    if ids:
        context[: len(ids)] = backbone.embed_tokens(torch.tensor(ids, device=backbone.device)).detach()
    return context


def new_linear(
    out: int, wide: int, backbone: PromptBackbone, generator: torch.Generator, *, layers: int = 0
) -> tuple[Tensor, Tensor]:
    """Untrained weight [out, wide] and bias [out] as of ``torch.nn.Linear``; of ``layers`` maps [layers, out, ...]."""
    shape, bound = (layers, out) if layers else (out,), wide**-0.5
    weight = torch.empty(*shape, wide).uniform_(-bound, bound, generator=generator)
    return weight.to(backbone.device), torch.empty(shape).uniform_(-bound, bound, generator=generator).to(
        backbone.device
    )


def prompted_tokens(
    backbone: ClipBackbone, pixels: Tensor, prompts: Tensor, *, class_token: Tensor | None = None
) -> Tensor:
    """The main sequence ``[class token + pos_0 ; prompts ; patches + pos_1..P]`` -> [B, 1+K+P, w].

    ``pixels`` [B, 3, H, W] are normalised; ``prompts`` [B, K, w] (or [K, w], the same for all images) carry no
    position; ``class_token`` [w] replaces the frozen one.
    """
    return insert_prompts(backbone.image_tokens(pixels, class_token=class_token), prompts)


def read_image(
    backbone: ClipBackbone, tokens: Tensor, read_out: ReadOut, *, projection: Tensor | None = None, plain: bool = False
) -> Tensor:
    """Pre-LayerNorm, blocks, post-LayerNorm of the read-out token and projection: tokens [B, T, w] -> [B, E].

    Not L2-normalised. ``projection`` [E, w] replaces the frozen one. ``plain`` also computes the unused outputs of the
    last block (the same numbers, for tests and timings).
    """
    index = _READ_INDEX[read_out]
    if plain:
        return backbone.readout(backbone.run_vision(tokens)[:, index], projection=projection)
    return backbone.readout(backbone.run_vision(tokens, read=index), projection=projection)
