"""Zero-shot CLIP (Radford et al., ICML 2021): nothing is trained; the baseline that every method must beat.

Image embedding: the normalised CLIP image feature. Class embedding: the normalised CLIP text feature of
``a photo of a {class}`` (underscores become spaces), or the mean over a set of templates or of a class's own sentences
(:mod:`methods.parts.templates`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from methods.cards import read_card
from methods.interface import FitReport, Log, Method, NotApplicableError, TrainingData, added
from methods.parts.bounds import fill, template_fault
from methods.parts.prompts import check_names
from methods.parts.templates import check_texts, class_texts, mean_embeddings


@dataclass(frozen=True)
class ZeroShotConfig:
    """Settings; raises ``ValueError`` for a template or file that cannot be used."""

    template: str = "a photo of a {}"  # the sentence a class name is put into, at ``{}`` or ``{name}``
    templates: str = added("")  # in its place: ``imagenet``, ``imagenet_best``, or a .txt or .json file of texts
    class_names: str = added("")  # a JSON file {class: name} of the names to write

    def __post_init__(self) -> None:
        if reason := template_fault(self.template):
            raise ValueError(f"zero_shot: template {reason}")
        check_texts("zero_shot", self.templates, self.class_names)


class ZeroShot(Method):
    """CLIP without any training."""

    card = read_card("zero_shot")
    Config: ClassVar[type] = ZeroShotConfig
    needs = "features"
    trained = False

    def fit(self, data: TrainingData, *, seed: int, log: Log) -> FitReport:
        """Nothing to learn."""
        return FitReport()

    @torch.no_grad()
    def encode_images(self, pixels: Tensor) -> Tensor:
        """Normalised CLIP image features ``[B, E]``."""
        return F.normalize(self.encode_raw(pixels), dim=-1)

    @torch.no_grad()
    def encode_raw(self, pixels: Tensor) -> Tensor:
        """CLIP image features ``[B, E]`` as the projection gives them."""
        return self.backbone.encode_images(self.backbone.normalize(pixels.to(self.device)))

    @torch.no_grad()
    def encode_classes(self, names: Sequence[str]) -> Tensor:
        """Normalised CLIP text features ``[C, E]`` of the template filled with each name, or means over several texts.

        Raises :class:`~methods.interface.NotApplicableError` for a class without a sentence in the file of sentences.
        """
        check_names(names)
        config = self.config
        if not (config.templates or config.class_names):
            texts = [fill(config.template, name.replace("_", " ")) for name in names]
            return F.normalize(self.backbone.encode_texts(texts), dim=-1)
        of_class, missing = class_texts(names, config.template, config.templates, config.class_names)
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise NotApplicableError(
                f"zero_shot: {config.templates} has no sentences for the class {missing[0]!r}{more}; add them, or"
                " give the file's names of the classes with --class-names"
            )
        return mean_embeddings(self.backbone.encode_texts, of_class)
