"""Zero-shot CLIP with the domain's word: classes as ``a {domain} of a {class}``, nothing trained.

Image embedding: the normalised CLIP image feature, as in :mod:`methods.zero_shot`; in retrieval the two are the same.

Class embedding: which domain's word is written depends on what the protocol shows.

* UDA and DAZSL name the domain of the unlabelled target images: its word, ``a sketch of a cat``.
* Elsewhere the query's domain is unseen, so its word must not be used: the mean, scaled to length 1, of the unit-length
  text features with each training domain's word.

Words come from :data:`WORDS` (a photograph's domain is ``photo``, a style's its name), else from the domain's name with
spaces for underscores; ``words`` names a file with others.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from methods.cards import read_card
from methods.interface import FitReport, Log, NotFittedError, TrainingData
from methods.parts.templates import check_texts, class_texts, mean_embeddings, names_of, same
from methods.zero_shot import ZeroShot

#: Words of domains whose names are no kind of image; by name, lower case.
WORDS: Mapping[str, str] = {
    **dict.fromkeys(("real", "real world", "imagenet", "webvision", "awa2"), "photo"),
    **dict.fromkeys(("caltech101", "labelme", "sun09", "voc2007"), "photo"),  # VLCS
    **dict.fromkeys(("location 38", "location 43", "location 46", "location 100"), "camera trap photo"),
    **dict.fromkeys(("synthetic", "3d2"), "rendering"),  # VisDA and I2AwA
    "product": "product photo",
    "quickdraw": "quick drawing",
    "infograph": "infographic",
    "flat": "flat icon",
    "line": "line drawing",
    "glyph": "black and white icon",
    "pixel": "pixel art icon",
    "multicolour": "colourful icon",
    "shaded": "shaded icon",
    "freehand": "freehand drawing",
}

DOMAIN, NAME = "{domain}", "{name}"


@dataclass(frozen=True)
class ZeroShotDomainConfig:
    """Settings; raises ``ValueError`` for a sentence or file that cannot be used."""

    sentence: str = "a {domain} of a {name}"  # the text of a class, with ``{domain}`` and ``{name}``
    words: str = ""  # a JSON file {domain: word} of the words to write
    class_names: str = ""  # a JSON file {class: name} of the names to write

    def __post_init__(self) -> None:
        rest = self.sentence.replace(DOMAIN, "", 1).replace(NAME, "", 1)
        if DOMAIN not in self.sentence or NAME not in self.sentence or "{" in rest or "}" in rest:
            raise ValueError(
                f"zero_shot_domain: sentence {self.sentence!r} must have {DOMAIN} and {NAME} once each, and no other"
                " braces"
            )
        check_texts("zero_shot_domain", "", self.class_names)
        if self.words:
            names_of(self.words)


class ZeroShotDomain(ZeroShot):
    """CLIP without any training; its texts name the kind of image."""

    card = read_card("zero_shot_domain")
    Config = ZeroShotDomainConfig
    fact_names: ClassVar[tuple[str, ...]] = ("domains",)
    #: The domains whose words are written: the target's, or those trained on.
    domains: tuple[str, ...] = ()

    def fit(self, data: TrainingData, *, seed: int, log: Log) -> FitReport:
        """Take the names of the domains whose words may be used."""
        present = [data.domain_names[int(number)] for number in torch.unique(data.domains)]
        self.domains = (data.target_domain,) if data.target_domain is not None else tuple(present)
        return FitReport()

    @torch.no_grad()
    def encode_classes(self, names: Sequence[str]) -> Tensor:
        """Unit-length means ``[C, E]`` of the text features of each name with each domain's word."""
        if not self.domains:
            raise NotFittedError("zero_shot_domain is not fitted: call fit or load first")
        config = self.config
        words = domain_words(self.domains, config.words)
        texts: list[list[str]] = [[] for _ in names]
        for word in words:
            of_word, _ = class_texts(names, config.sentence.replace(DOMAIN, word), class_names=config.class_names)
            texts = [[*before, *more] for before, more in zip(texts, of_word, strict=True)]
        return mean_embeddings(self.backbone.encode_texts, texts)


def domain_words(domains: Sequence[str], file: str = "") -> tuple[str, ...]:
    """The word of each domain, each once: the ``file``'s, else :data:`WORDS`', else its name."""
    known = {**WORDS, **(names_of(file) if file else {})}
    return tuple(dict.fromkeys(known.get(same(name), " ".join(name.replace("_", " ").split())) for name in domains))
