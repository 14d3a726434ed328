"""Sets of texts for a class, whose features are averaged. Radford et al. (ICML 2021) publish theirs with CLIP (MIT)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from methods.parts.bounds import NAME

#: "a X photo of Y {name}." for each X, with its Ys.
_PHOTOS: Mapping[str, Sequence[str]] = {
    "": ("a", "the", "many", "my", "one"),
    "bad": ("a", "the"),
    "good": ("the",),
    "low resolution": ("a", "the"),
    "cropped": ("a", "the"),
    "bright": ("a", "the"),
    "dark": ("the",),
    "close-up": ("a", "the"),
    "black and white": ("the",),
    "jpeg corrupted": ("a",),
    "blurry": ("a", "the"),
    "pixelated": ("a", "the"),
}

#: "a photo of X {name}." for each X.
_KINDS = ("a hard to see", "the hard to see", "a clean", "the clean", "a dirty", "the dirty", "the cool", "a large",
          "a nice", "a weird")  # fmt: skip

#: "X of Y {name}." for each X, with its Ys.
_WORKS: Mapping[str, Sequence[str]] = {
    "a sculpture": ("a", "the"),
    "a rendering": ("a", "the"),
    "a rendition": ("a", "the"),
    "a painting": ("a", "the"),
    "a doodle": ("a", "the"),
    "a sketch": ("a", "the"),
    "a tattoo": ("a",),
    "a drawing": ("a",),
    "graffiti": ("a",),
    "art": ("a",),
    "itap": ("the",),
}

#: "X {name}." for each X.
_MADE = ("the embroidered", "a embroidered", "the plastic", "a plastic", "the origami", "a origami", "the toy",
         "a cartoon")  # fmt: skip


def _imagenet() -> Iterator[str]:
    for look, articles in _PHOTOS.items():
        yield from (f"a {look} photo of {article} {NAME}.".replace("  ", " ") for article in articles)
    yield from (f"a photo of {kind} {NAME}." for kind in _KINDS)
    for work, articles in _WORKS.items():
        yield from (f"{work} of {article} {NAME}." for article in articles)
    yield from (f"{made} {NAME}." for made in _MADE)
    yield from (f"{article} {NAME} in a video game." for article in ("a", "the"))


#: Those 60 of CLIP's 80 texts for ImageNet that PromptSRC's teacher averages.
IMAGENET_60: tuple[str, ...] = tuple(_imagenet())
