"""A small task and the stock towers run by hand, for tests of methods that learn prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from methods.interface import TrainingData
from methods.parts.backbone import ClipBackbone
from tests.support.images import InMemoryImages

NAMES = ("cat", "sea_turtle", "t-shirt", "hot_air_balloon", "unseen dog")
SEEN = NAMES[:4]
DOMAINS = ("clipart", "flat", "sketch")


def quiet(**numbers: object) -> None:
    """A log that keeps nothing."""


def drawn(labels: Tensor, domains: Tensor, seed: int = 7) -> Tensor:
    """A colour for each class, dimmed by domain, with noise."""
    colours = torch.tensor([[0.9, 0.1, 0.1], [0.1, 0.9, 0.1], [0.1, 0.1, 0.9], [0.8, 0.8, 0.1], [0.5, 0.5, 0.5]])
    noise = torch.rand(len(labels), 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    plain = colours[labels] * (0.6 + 0.15 * domains[:, None])
    return (0.8 * plain[:, :, None, None] + 0.2 * noise).clamp(0, 1)


def task(*, domains: int = 3, each: int = 4, target: bool = False, **options: Any) -> TrainingData:
    """Four classes with images, in random order, and one without; with ``target`` images of one more domain."""
    count = 4 * each
    order = torch.randperm(count * domains, generator=torch.Generator().manual_seed(0))
    labels = torch.arange(4).repeat(each * domains)[order]
    of_domain = torch.arange(domains).repeat_interleave(count)
    shown = torch.arange(4).repeat(each)
    other = InMemoryImages(drawn(shown, torch.full_like(shown, 3), seed=8)) if target else None
    return TrainingData(
        **{
            "protocol": "test",
            "images": InMemoryImages(drawn(labels, of_domain)),
            "labels": labels,
            "domains": of_domain,
            "class_names": NAMES,
            "domain_names": DOMAINS[:domains],
            "target": other,
            **options,
        }
    )


def words(backbone: ClipBackbone, text: str) -> Tensor:
    """Embeddings [T, v] of a piece of text, without start and end."""
    return backbone.embed_tokens(torch.tensor(backbone.token_ids(text), dtype=torch.long))


def text_by_hand(
    backbone: ClipBackbone, context: Tensor, rest: str, deep: Sequence[Tensor] = (), *, before: str = ""
) -> Tensor:
    """``[SOS ; before ; context [m, v] ; rest ; EOT]`` through the stock blocks, normalised: [E].

    ``deep``: what replaces tokens 1..m at the input of the second block, the third, and so on.
    """
    model = backbone.model
    start, end = (backbone.embed_tokens(torch.tensor([one])) for one in (backbone.start_id, backbone.end_id))
    parts = [start, words(backbone, before), context, words(backbone, rest), end]
    sentence = torch.cat([part for part in parts if len(part)])[None]
    length = sentence.shape[1]
    hidden = sentence + model.text_model.embeddings.position_embedding.weight[:length]
    mask = torch.full((length, length), float("-inf")).triu(1)[None, None]
    for number, block in enumerate(model.text_model.encoder.layers):
        if 0 < number <= len(deep):
            hidden = torch.cat([hidden[:, :1], deep[number - 1][None], hidden[:, 1 + len(context) :]], dim=1)
        hidden = block(hidden, mask)
    feature: Tensor = model.text_projection(model.text_model.final_layer_norm(hidden)[0, -1])
    return F.normalize(feature, dim=0)


def image_by_hand(backbone: ClipBackbone, image: Tensor, prompts: Sequence[Tensor]) -> Tensor:
    """One normalised image [3, H, W] through the stock blocks, with prompts [K, w] of each of the first blocks put
    *behind* the patches, as the released code does; normalised: [E]."""
    vision = backbone.model.vision_model
    tokens = vision.embeddings(image[None])
    own = tokens.shape[1]
    hidden = vision.pre_layrnorm(torch.cat([tokens, prompts[0][None]], dim=1))
    for number, block in enumerate(vision.encoder.layers):
        if 0 < number < len(prompts):
            hidden = torch.cat([hidden[:, :own], prompts[number][None]], dim=1)
        hidden = block(hidden, None)
    feature: Tensor = backbone.model.visual_projection(vision.post_layernorm(hidden[0, 0]))
    return F.normalize(feature, dim=0)
