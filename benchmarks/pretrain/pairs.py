"""Batches of the recipe ``clip``: which image-caption pairs, the text of captions, how images are cropped.

Pairs are drawn as CLIP balanced its queries, with a cap a name: all pairs of a name count as ``cap`` pairs at most.
CLIP's cap, 20,000 pairs of 400 million over 500,000 queries, is 25 times the mean of a query; so is ours of a name. A
caption holds the drawing's own name as it
is, never a synonym, and often its style, colour, category or collection, as the alternative texts of the web do.
Captions are put together from token runs cut once, so a batch costs no tokenizer. An image is cropped to a random
rectangle, resized and mirrored, one matrix product on either side; names with left or right are not mirrored.

Every batch follows from (seed, step, rank) alone.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from benchmarks.pretrain.model import PIXEL_STD

#: Templates by what they contain besides the name, with each group's share of captions where a drawing has the words.
TEMPLATES: dict[str, tuple[float, tuple[str, ...]]] = {
    "name": (
        0.44,
        (
            *("{name}", "{name}", "{name}.", "a {name}", "a {name}.", "the {name}.", "{name} icon", "{name} icon"),
            *("{name} icons", "{name} symbol", "{name} sign.", "{name} svg", "{name} vector icon", "free {name} icon"),
            *("an icon of a {name}", "{name} illustration", "{name} clip art", "clip art of a {name}"),
            *("a drawing of a {name}.", "a sketch of a {name}", "an image of a {name}.", "a picture of a {name}"),
            *("a photo of a {name}", "a photo of a {name}.", "a photo of the {name}", "a small picture of a {name}."),
        ),
    ),
    "style": (
        0.2,
        (
            *("{style} {name}", "{style} {name} icon", "{name} {style} icon", "{name} ({style})", "{name} {style}"),
            *("{name} icon, {style} style", "a {name} in {style} style", "a {style} drawing of a {name}."),
            *("a {style} icon of a {name}", "a photo of a {name} from {style} domain."),
        ),
    ),
    "colour": (
        0.12,
        (
            *("{colour} {name}", "{colour} {name} icon", "{name} icon, {colour}", "a {colour} drawing of a {name}"),
            *("a {colour} picture of a {name}.", "{colour} clip art of a {name}"),
        ),
    ),
    "category": (
        0.1,
        (
            *("{name}, {category}", "{category}: {name}", "{category} {name} icon", "a {name}, {category}."),
            *("{name} icon | {category} icons", "a photo of a {name}, one of {category}."),
        ),
    ),
    "collection": (
        0.14,
        (
            *("{name} icon from {collection}", "{collection} {name}", "{name} | {collection}", "{collection}: {name}"),
            *("{name} {style} icon, {collection}", "{colour} {name} icon from {collection}", "{name} by {collection}"),
        ),
    ),
}
#: Text of web pages before and after a drawing's name, in long captions.
CLAUSES = (
    *(
        "free download",
        "vector icon for web and app",
        "svg and png",
        "for websites, signs and maps",
        "simple and clear",
    ),
    *("drawn by hand on a white background", "the style is {style}", "part of the {collection} collection"),
    *("category {category}", "in {colour}", "seen from the side, from above or from the front", "large or small size"),
    *(
        "for print, for a screen or for a sketch",
        "a picture, a drawing, a photo or clip art",
        "from this or another domain",
    ),
)
COLOUR_WORDS = {
    "mono": ("black and white", "black", "monochrome", "single-colour"),
    "colour": ("colour", "color", "colourful", "multi-coloured"),
}
_SLOTS = ("name", "style", "colour", "category", "collection")
_LONGEST_NAME = 16


@cache
def _compound_nouns() -> frozenset[str]:
    from nltk.corpus import wordnet

    return frozenset(name.replace("_", " ") for name in wordnet.all_lemma_names("n") if "_" in name)


def entries(phrase: str) -> tuple[str, ...]:
    """What a name may refer to: its words and the WordNet nouns of several words in it."""
    words = phrase.split()
    runs = (" ".join(words[i:j]) for i in range(len(words)) for j in range(i + 2, min(len(words), i + 4) + 1))
    nouns = _compound_nouns()
    return tuple(dict.fromkeys([*words, *(run for run in runs if run in nouns)]))


def balanced_weights(phrases: Sequence[str], cap: float) -> np.ndarray:
    """Weight ``[N]`` in (0, 1] of every drawing: a name's drawings weigh ``cap`` together at most (0: no cap)."""
    count = Counter(phrases)
    return np.array([min(1.0, cap / count[phrase]) if cap > 0 else 1.0 for phrase in phrases])


class TokenRuns:
    """Token ids of strings, end to end, to be joined at white space or signs: string number -> run of ids."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self.numbers: dict[str, int] = {}
        self._strings: list[str] = []
        self.add([""])

    def add(self, strings: Iterable[str]) -> np.ndarray:
        """Numbers of the strings; new ones are cut into tokens at :meth:`close`."""
        for string in (strings := list(strings)):
            if string not in self.numbers:
                self.numbers[string] = len(self._strings)
                self._strings.append(string)
        return np.array([self.numbers[string] for string in strings], dtype=np.int64)

    def close(self) -> None:
        """Cut every string into tokens."""
        ids = self.tokenizer(self._strings, add_special_tokens=False)["input_ids"]
        self.length = np.array([len(run) for run in ids], dtype=np.int64)
        self.start = np.concatenate([[0], np.cumsum(self.length)[:-1]])
        self.tokens = np.array([token for run in ids for token in run], dtype=np.int64)

    def join(self, runs: np.ndarray, *, first: int, last: int, longest: int) -> tuple[np.ndarray, np.ndarray]:
        """Runs ``[B, R]`` -> tokens ``[B, L]`` between ``first`` and ``last`` (also the padding), and the end ``[B]``.

        ``longest`` bounds L; what is longer is cut at the end.
        """
        lengths = self.length[runs]
        total = lengths.sum(1)
        end = np.minimum(total, longest - 2) + 1
        tokens = np.full((len(runs), int(end.max()) + 1), last, dtype=np.int64)
        tokens[:, 0] = first
        flat = lengths.ravel()
        inside = np.arange(flat.sum()) - np.repeat(np.cumsum(flat) - flat, flat)
        source = np.repeat(self.start[runs].ravel(), flat) + inside
        row = np.repeat(np.arange(len(runs)), total)
        column = np.arange(len(row)) - np.repeat(np.cumsum(total) - total, total) + 1
        kept = column < end[row]
        tokens[row[kept], column[kept]] = self.tokens[source[kept]]
        return tokens, end


def _pieces(template: str) -> list[str]:
    """``"a {style} icon of {name}"`` -> ``["a", "{style}", "icon of", "{name}"]``."""
    parts = template.replace("{", "\0{").replace("}", "}\0").split("\0")
    return [part.strip() for part in parts if part.strip()]


class CaptionTable:
    """Captions of index rows as token ids."""

    def __init__(
        self, index: pd.DataFrame, tokenizer: Any, context_length: int, name_only: float = TEMPLATES["name"][0]
    ) -> None:
        self.runs = TokenRuns(tokenizer)
        self.context_length = context_length
        self.first, self.last = tokenizer.bos_token_id, tokenizer.eos_token_id
        columns = {
            "name": [" ".join(phrase.split()[:_LONGEST_NAME]) for phrase in index["phrase"].astype(str)],
            "style": index["style"].astype(str).tolist(),
            "category": index["category"].astype(str).tolist(),
            "collection": [name.replace("-", " ") for name in index["collection"].astype(str)],
        }
        self.words = {name: self.runs.add(values) for name, values in columns.items()}
        self.kind = (index["kind"] == "colour").to_numpy().astype(np.int64)
        self.colours = np.stack([self.runs.add(COLOUR_WORDS[kind]) for kind in ("mono", "colour")])
        templates = [(group, text) for group, (_, texts) in TEMPLATES.items() for text in texts]
        self.templates = self._table([text for _, text in templates])
        self.clauses = self._table([f", {text}" for text in CLAUSES])
        others = sum(part for group, (part, _) in TEMPLATES.items() if group != "name")
        parts = {group: part * (1 - name_only) / others for group, (part, _) in TEMPLATES.items()} | {"name": name_only}
        share = np.array([parts[group] / len(TEMPLATES[group][1]) for group, _ in templates])
        needs = {slot: np.array([f"{{{slot}}}" in text for _, text in templates]) for slot in ("style", "category")}
        has = {slot: self.words[slot] > 0 for slot in needs}
        # One cumulative distribution over the templates for each of (has a style, has a category).
        self.state = has["style"] * 2 + has["category"]
        self.chance = np.stack(
            [
                np.cumsum(weight / weight.sum())
                for state in range(4)
                for weight in [share * (state >= 2) ** needs["style"] * (state % 2) ** needs["category"]]
            ]
        )
        self.runs.close()

    def _table(self, texts: Sequence[str]) -> np.ndarray:
        """Templates as run numbers ``[T, R]``; slot s is ``-1 - s``, empty places are run 0."""
        pieces = [_pieces(text) for text in texts]
        table = np.zeros((len(texts), max(map(len, pieces))), dtype=np.int64)
        for row, parts in enumerate(pieces):
            for column, part in enumerate(parts):
                slot = part[1:-1] if part.startswith("{") else ""
                table[row, column] = -1 - _SLOTS.index(slot) if slot else self.runs.add([part])[0]
        return table

    def write(self, rows: np.ndarray, random: np.random.Generator, *, long: bool) -> tuple[np.ndarray, np.ndarray]:
        """Captions of index rows ``[B]``: token ids ``[B, L]`` and the position of the end of text ``[B]``.

        ``long``: up to three clauses before and after, so that every position of the context is trained.
        """
        draw = random.random(len(rows))
        chosen = (self.chance[self.state[rows]] <= draw[:, None]).sum(1).clip(max=len(self.templates) - 1)
        runs = self.templates[chosen]
        if long:
            clauses = random.integers(len(CLAUSES), size=(len(rows), 6))
            some = np.arange(3) < random.integers(0, 4, size=(len(rows), 2, 1))
            extra = np.where(some.reshape(len(rows), 6)[:, :, None], self.clauses[clauses], 0)
            runs = np.concatenate(
                [extra[:, :3].reshape(len(rows), -1), runs, extra[:, 3:].reshape(len(rows), -1)], axis=1
            )
        colour = self.colours[self.kind[rows], random.integers(self.colours.shape[1], size=len(rows))]
        for slot, name in enumerate(_SLOTS):
            word = colour if name == "colour" else self.words[name][rows]
            runs = np.where(runs == -1 - slot, word[:, None], runs)
        return self.runs.join(runs, first=self.first, last=self.last, longest=self.context_length)


class CropTable:
    """Matrices that cut ``length`` pixels from ``start`` and stretch them to ``size``, bilinear, mirrored or not."""

    def __init__(self, size: int, shortest: int, device: torch.device, dtype: torch.dtype) -> None:
        self.size, self.shortest, self.device = size, shortest, device
        lengths = range(shortest, size + 1)
        counts = [size - length + 1 for length in lengths]
        self.first = np.concatenate([[0], np.cumsum(counts)[:-1]])
        matrices = np.concatenate([self._matrices(length) for length in lengths])
        both = np.stack([matrices, matrices[:, ::-1]])
        self.matrices = torch.from_numpy(both.copy()).to(device, dtype)

    def _matrices(self, length: int) -> np.ndarray:
        """``[size - length + 1, size, size]``, one for each start."""
        at = ((np.arange(self.size) + 0.5) * length / self.size - 0.5).clip(0, length - 1)
        low = np.floor(at).astype(int)
        high, share = np.minimum(low + 1, length - 1), at - low
        starts = np.arange(self.size - length + 1)
        matrices = np.zeros((len(starts), self.size, self.size), dtype=np.float32)
        block, row = starts[:, None], np.arange(self.size)[None]
        np.add.at(matrices, (block, row, low[None] + block), 1 - share[None])
        np.add.at(matrices, (block, row, high[None] + block), share[None])
        return matrices

    def apply(
        self,
        images: Tensor,
        random: np.random.Generator,
        *,
        area: float,
        aspect: float,
        turns: np.ndarray | None = None,
    ) -> Tensor:
        """Random resized crop and flip of ``[B, c, S, S]``: between ``area`` and all of the area, sides stretched by up
        to ``aspect``; ``turns [B]``: which images may be mirrored (default: all).
        """
        count, bound = len(images), math.log(aspect)
        share = random.uniform(area, 1, count)
        stretch = np.exp(random.uniform(-bound, bound, count))
        numbers = []
        for length in (np.sqrt(share * stretch) * self.size, np.sqrt(share / stretch) * self.size):
            whole = np.round(length).astype(np.int64).clip(self.shortest, self.size)
            start = np.floor(random.random(count) * (self.size - whole + 1)).astype(np.int64)
            numbers.append(torch.from_numpy(self.first[whole - self.shortest] + start).to(self.device))
        mirrored = (random.random(count) < 0.5) & (True if turns is None else turns)
        flip = torch.from_numpy(mirrored.astype(np.int64)).to(self.device)
        vertical, horizontal = self.matrices[0][numbers[0]], self.matrices[flip, numbers[1]]
        return vertical[:, None] @ images @ horizontal.transpose(1, 2)[:, None]


@dataclass(frozen=True)
class PairBatch:
    """``images``: normalised, ``[b, 1, S, S]`` and ``[b', 3, S, S]``; captions of the B = b + b' in the same order.

    ``texts``: (tokens ``[u, L]``, ends ``[u]``) in chunks of like length; ``order [B]``: where each image's caption is
    among the chunks' rows; ``same [B, B]``: whether two captions are equal.
    """

    images: tuple[Tensor, Tensor]
    texts: tuple[tuple[Tensor, Tensor], ...]
    order: Tensor
    same: Tensor


class PairBatches:
    """The pairs of a corpus, on a device."""

    def __init__(self, corpus: Any, tokenizer: Any, config: Any, context_length: int, device: torch.device) -> None:
        self.config, self.device = config, device
        self.dtype = torch.bfloat16 if config.precision == "bf16" else torch.float32
        self.captions = CaptionTable(corpus.index, tokenizer, context_length, config.name_only)
        phrases = corpus.index["phrase"].astype(str).tolist()
        weights = balanced_weights(phrases, config.cap)
        colour = (corpus.index["kind"] == "colour").to_numpy()
        share = config.colour_share if config.colour_share > 0 else weights[colour].sum() / weights.sum()
        self.colours = round(config.batch * float(share if colour.any() else 0)) if (~colour).any() else config.batch
        self.kinds = [(np.flatnonzero(kind), weights[kind].cumsum()) for kind in (~colour, colour)]
        self.row = corpus.index["row"].to_numpy()
        self.turns = np.array([not {"left", "right"} & set(phrase.split()) for phrase in phrases])
        size = corpus.mono.shape[1]
        low = math.sqrt(config.crop_area / config.crop_aspect)
        self.crops = CropTable(size, max(1, math.floor(low * size)), device, self.dtype)
        # A GPU holds all images; the CPU reads them where they are.
        self.pixels = [corpus.mono, corpus.colour]
        if device.type != "cpu":
            self.pixels = [torch.from_numpy(np.array(part)).to(device) for part in self.pixels]

    @property
    def effective(self) -> tuple[float, float]:
        """Sum of the weights of single-colour and of colour drawings: how many drawings the cap leaves."""
        return tuple(float(sums[-1]) if len(sums) else 0.0 for _, sums in self.kinds)  # type: ignore[return-value]

    def draw(self, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Index rows of one batch: single-colour and colour drawings, with replacement, by weight."""
        counts = (self.config.batch - self.colours, self.colours)
        return tuple(  # type: ignore[return-value]
            rows[np.searchsorted(sums, random.random(count) * sums[-1], side="right").clip(max=len(rows) - 1)]
            if count
            else rows[:0]
            for (rows, sums), count in zip(self.kinds, counts, strict=True)
        )

    def crop(self, ink: Tensor, rows: np.ndarray, random: np.random.Generator) -> Tensor:
        """Random resized crop and flip of index rows: uint8 ink ``[b, c, S, S]`` -> normalised ``[b, c, S, S]``."""
        area, aspect = self.config.crop_area, self.config.crop_aspect
        cropped = self.crops.apply(ink.to(self.dtype), random, area=area, aspect=aspect, turns=self.turns[rows])
        return cropped * (-1 / (255 * PIXEL_STD))

    def _ink(self, rows: np.ndarray, kind: int) -> Tensor:
        """Ink (255 - value) of index rows, uint8 ``[b, c, S, S]``."""
        at = self.row[rows]
        if self.device.type == "cpu":
            part = torch.from_numpy(self.pixels[kind][at])
        else:
            part = self.pixels[kind][torch.from_numpy(at).to(self.device)]
        return part[:, None] if kind == 0 else 255 - part.permute(0, 3, 1, 2)

    def batch(self, step: int, seed: int) -> PairBatch:
        """The batch of one step; ``seed`` holds the run's seed, the step and the rank."""
        random = np.random.default_rng(seed)
        config = self.config
        drawn = self.draw(random)
        images = tuple(self.crop(self._ink(rows, kind), rows, random) for kind, rows in enumerate(drawn))
        tokens, end = self.captions.write(
            np.concatenate(drawn), random, long=step % config.long_every == config.long_every - 1
        )
        _, group = np.unique(tokens, axis=0, return_inverse=True)
        order, texts = np.argsort(end, kind="stable"), []
        for part in np.array_split(order, config.text_chunks if self.device.type == "cpu" else 1):
            length = int(end[part].max()) + 1
            if self.device.type != "cpu":
                length = min(-(-length // 8) * 8, self.captions.context_length)
                tokens = np.pad(
                    tokens, ((0, 0), (0, max(0, length - tokens.shape[1]))), constant_values=self.captions.last
                )
            texts.append(tuple(torch.from_numpy(a).to(self.device) for a in (tokens[part, :length], end[part])))
        where = torch.from_numpy(np.argsort(order, kind="stable")).to(self.device)
        codes = torch.from_numpy(group.reshape(-1)).to(self.device)
        return PairBatch(images, tuple(texts), where, codes[:, None] == codes[None, :])  # type: ignore[arg-type]
