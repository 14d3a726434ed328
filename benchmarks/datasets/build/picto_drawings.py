"""Classes and drawings of PictoDomains as the build passes them on: to its documents too."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from benchmarks.datasets.build.picto_sources import Drawing

#: Words of an icon's name that name a rendering of a design.
RENDERINGS = frozenset(
    {"outline", "outlined", "outlines", "fill", "filled", "solid", "bold", "sharp", "duo", "flat", "line", "linear"}
    | {"negative", "24px", "duotone", "regular", "color", "rounded"}
)
#: Last words that name the drawing's size in a collection.
SIZES = {"maki": ("11", "15")}
#: Collections that draw the same designs in several renderings.
FAMILIES: dict[str, str] = {
    "fluent-emoji": "fluent",
    "fluent-emoji-flat": "fluent",
    "fluent-emoji-high-contrast": "fluent",
    "icon-park": "icon-park",
    "icon-park-outline": "icon-park",
    "icon-park-solid": "icon-park",
    "streamline-ultimate": "streamline-ultimate",
    "streamline-ultimate-color": "streamline-ultimate",
    "streamline-freehand": "streamline-freehand",
    "streamline-freehand-color": "streamline-freehand",
}


def design_name(name: str, collection: str = "") -> str:
    """The name without the words for a rendering or size; numbers stay (another number is another drawing).

    ``beer-stein-02-outline`` -> ``beer-stein-02``.
    """
    first, *words = name.lower().split("-")
    if words and words[-1] in SIZES.get(collection, ()):
        words.pop()
    return "-".join([first, *(word for word in words if word not in RENDERINGS)])


@dataclass(frozen=True)
class ClassEntry:
    """One class: its WordNet 3.0 noun synset and the phrases that name it."""

    name: str
    synset: str
    offset: int
    kind: str
    phrases: tuple[str, ...]


@dataclass
class LabelledDrawing:
    """A drawing in its class and domain, with its pixels once drawn (uint8 ``[96, 96, 3]``)."""

    drawing: Drawing
    label: str
    domain: str
    pixels: np.ndarray = field(default_factory=lambda: np.zeros((0, 0, 3), dtype=np.uint8))
    signature: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.float32))
    split: str = ""
    held_back: bool = False

    @property
    def key(self) -> str:
        """``collection:name``."""
        return self.drawing.key

    @property
    def id(self) -> str:
        """``domain/class/collection:name``, stable over builds."""
        return f"{self.domain}/{self.label.replace(' ', '-')}/{self.key}"

    @property
    def design(self) -> tuple[str, str]:
        """Family of collections and name of the design; equal for two renderings of one design."""
        family = FAMILIES.get(self.drawing.collection, self.drawing.collection)
        return family, self.drawing.name if family == "openclipart" else design_name(
            self.drawing.name, self.drawing.collection
        )
