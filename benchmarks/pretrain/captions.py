"""Captions: an icon's name becomes text in varied templates, so that every text position gets trained.

A drawing's *concept* decides which captions are positives: drawings whose names are nouns of the same
WordNet synset (first sense, concrete things) share one concept, e.g. ``car`` and ``automobile``; any other name is a
concept of its own. Captions name the concept by one of its names and, in a share of them, its hypernym, category and
style. Long captions put the name anywhere among the context's positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

import numpy as np

#: Lexicographer files of concrete things.
CONCRETE = frozenset({"noun.animal", "noun.artifact", "noun.body", "noun.food", "noun.object", "noun.plant"})

SHORT_TEMPLATES = (
    "{}",
    "{}.",
    "a {}",
    "a {}.",
    "the {}.",
    "a photo of a {}",
    "a photo of a {}.",
    "a photo of the {}.",
    "a picture of a {}",
    "a picture of a {}.",
    "a drawing of a {}",
    "a drawing of a {}.",
    "an icon of a {}",
    "an image of a {}.",
    "a {} icon",
    "a simple {} symbol.",
    "a sketch of a {}",
    "a small picture of a {}.",
    "clip art of a {}",
    "an emoji of a {}",
)
STYLED_TEMPLATES = (
    "a {style} drawing of a {}",
    "a {style} icon of a {}",
    "a photo of a {} from {style} domain.",
    "a photo of {} from the {style} domain.",
    "a {} in {style} style",
    "{style} {}",
)
CATEGORY_TEMPLATES = ("a {}, {category}", "a photo of a {}, one of {category}.", "{category}: {}")
HYPERNYM_TEMPLATES = ("a {}, a kind of {hypernym}.", "a photo of a {}, which is a {hypernym}.", "{}, {hypernym}")

_CLAUSES = (
    "this is one of many small pictures",
    "it was drawn for a screen, a sign or a map",
    "the style is {style}",
    "the category is {category}",
    "the collection is {collection}",
    "it looks simple and clear",
    "drawn by hand on a white background",
    "in black and white or in colour",
    "seen from the side, from above or from the front",
    "large or small, bright or dark",
    "from this domain or another domain",
    "as a photo, a sketch, a painting, clip art or an icon",
)


@dataclass(frozen=True)
class Concept:
    """What a drawing shows: ``key`` joins positives, ``names`` name it, ``hypernym`` may be empty."""

    key: str
    names: tuple[str, ...]
    hypernym: str = ""

    @property
    def concrete(self) -> bool:
        """True for a concrete WordNet noun."""
        return self.key.startswith("synset:")


@cache
def concept_of(phrase: str) -> Concept:
    """The concept a phrase names (WordNet first sense if that is a concrete noun, else the phrase itself)."""
    from nltk.corpus import wordnet

    lemma = phrase.replace(" ", "_")
    base = wordnet.morphy(lemma, wordnet.NOUN) or lemma
    senses = wordnet.synsets(base, pos=wordnet.NOUN)
    if not senses or senses[0].lexname() not in CONCRETE:
        return Concept(f"phrase:{phrase}", (phrase,))
    sense = senses[0]
    mainly = [name for name in sense.lemma_names() if wordnet.synsets(name, pos=wordnet.NOUN)[0] == sense]
    names = [name.replace("_", " ") for name in mainly if name == name.lower()]
    names = [phrase, *[name for name in names if name != phrase][:3]]
    hypernyms = [name.replace("_", " ") for above in sense.hypernyms()[:1] for name in above.lemma_names()[:1]]
    return Concept(f"synset:{sense.name()}", tuple(names), hypernyms[0].lower() if hypernyms else "")


class CaptionWriter:
    """Writes captions with its own generator; the same seed and calls give the same captions."""

    def __init__(self, seed: int) -> None:
        self.random = np.random.default_rng(seed)

    def short(self, phrase: str, style: str, category: str) -> str:
        """A caption of one short clause."""
        concept = concept_of(phrase)
        draw = self.random.random(3)
        name = phrase
        if len(concept.names) > 1 and draw[0] < 0.25:
            name = concept.names[1 + int(self.random.integers(len(concept.names) - 1))]
        if draw[1] < 0.12 and concept.hypernym:
            return self._pick(HYPERNYM_TEMPLATES).format(name, hypernym=concept.hypernym)
        if draw[1] < 0.27 and style:
            return self._pick(STYLED_TEMPLATES).format(name, style=style)
        if draw[1] < 0.35 and category:
            return self._pick(CATEGORY_TEMPLATES).format(name, category=category)
        return self._pick(SHORT_TEMPLATES).format(name)

    def long(self, phrase: str, style: str, category: str, collection: str) -> str:
        """A caption of several clauses in random order, the one with the name anywhere among them."""
        values = {
            "style": style or "plain",
            "category": category or "things",
            "collection": collection.replace("-", " "),
        }
        count = int(self.random.integers(1, 6))
        clauses = [
            _CLAUSES[int(i)].format(**values) for i in self.random.choice(len(_CLAUSES), size=count, replace=False)
        ]
        clauses.insert(int(self.random.integers(count + 1)), self.short(phrase, style, category).rstrip("."))
        return ", ".join(clauses) + "."

    def _pick(self, templates: tuple[str, ...]) -> str:
        return templates[int(self.random.integers(len(templates)))]
