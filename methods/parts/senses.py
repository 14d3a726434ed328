"""Which noun sense of WordNet a class name means: looked up by its spelling, chosen by the other classes' senses.

``mouse`` among monitors and keyboards is the device, among cats and horses the animal. :func:`choose_senses` takes for
each name the sense nearest to the other names' senses. Nearness of two senses is the share of ancestors that they have
in common (Dice's coefficient of the two sets, each with the sense itself), which is what Wu and Palmer measure in a
tree. The same names always give the same senses, whatever their order.
"""

import functools
import itertools
import math
import os
import re
import sys
import unicodedata
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

#: WordNet's files of things that can be seen in an image.
CONCRETE = frozenset(
    f"noun.{kind}"
    for kind in ("animal", "artifact", "body", "food", "object", "phenomenon", "plant", "shape", "substance")
)

#: Penalties of a sense: for a person (seldom what a class is named after), for anything else that is no concrete thing,
#: for each rank below the first in WordNet's order (commonest first), up to :data:`PLACES`, and for each factor e by
#: which it is rarer in WordNet's counted texts than the commonest sense. Chosen on the hand-checked classes.
PERSON, ABSTRACT, RANK, RARE = 0.2, 0.1, 0.06, 0.03
PLACES = 6

#: Nearness is the mean over this many of the other classes, the nearest ones, so that a few animals among many tools
#: stay animals; :data:`ALL` is the weight of the mean over all of them.
NEAREST, ALL = 2, 0.2

#: Rounds of choosing; the first starts from the concrete and common senses.
ROUNDS = 3

#: A choice is doubtful if the score of the second-best sense is closer than this.
CLOSE = 0.05

#: Longest name, in words, of which every spelling is tried.
_WORDS = 5


def wordnet() -> Any:
    """nltk's WordNet reader.

    Raises:
        WordNetError: no folder of nltk's path has WordNet's files, or other accounts may write to that folder.
    """
    from nltk.corpus import wordnet as reader

    try:
        reader.ensure_loaded()
    except LookupError as error:
        if refused := re.search(r"chmod go-w '(.+?)'", str(error)):
            raise WordNetError(
                "NLTK refuses WordNet's files, because other accounts may write to their folder: run"
                f" chmod -R go-w '{refused[1]}'"
            ) from None
        raise WordNetError(
            "WordNet is not found: `import benchmarks` brings the nouns shipped with this suite, or set NLTK_DATA to a"
            " folder that holds corpora/wordnet"
        ) from None
    return reader


def undisputed_wordnet() -> Path | None:
    """The ``wordnet.zip`` that nltk will read, without loading nltk (two seconds); None where only nltk can tell.

    That is the one in the first folder of ``NLTK_DATA``, where only this account or root may write to it, nltk is not
    loaded yet, and no folder where nltk looks holds an unpacked WordNet, which it would prefer.
    """
    first, *others = [folder for folder in os.environ.get("NLTK_DATA", "").split(os.pathsep) if folder] or [""]
    if os.name != "posix" or not first or "nltk" in sys.modules:
        return None
    usual = [Path(sys.prefix), *(Path(base) for base in ("/usr", "/usr/local", "/usr/share", "/usr/local/share"))]
    looked_in = [Path(folder) for folder in (first, *others, "~/nltk_data")]
    looked_in += [base / place / "nltk_data" for base in usual for place in ("", "share", "lib")]
    archive = Path(first).expanduser() / "corpora" / "wordnet.zip"
    try:
        if any((folder.expanduser() / "corpora" / "wordnet").exists() for folder in looked_in):
            return None
        found = [path.stat() for path in (archive, archive.parent, archive.parent.parent)]
    except (OSError, RuntimeError):  # not there, no right to look, no home
        return None
    private = all(one.st_uid in (0, os.geteuid()) and not one.st_mode & 0o022 for one in found)
    return archive if private and archive.is_file() else None


class WordNetError(RuntimeError):
    """WordNet, a synset or a word vector is missing; the message is one line with the fix."""


@dataclass(frozen=True)
class Doubt:
    """A class whose sense is doubtful: the synset name ``chosen`` ("" if WordNet has none for it) and ``instead``, the
    second-best one ("" likewise)."""

    name: str
    chosen: str
    instead: str = ""

    def __str__(self) -> str:
        if not self.chosen:
            return f"{self.name}: WordNet has no such noun"
        return f"{self.name}: {_described(self.chosen)}, or {_described(self.instead)}"


def _described(synset: str) -> str:
    return f"{synset} ({' '.join(wordnet().synset(synset).definition().split())[:60]})"


@functools.lru_cache(maxsize=65536)
def senses(name: str, strict: bool = False) -> tuple[Any, ...]:
    """All noun senses of a class name, the commonest first; () if WordNet has none.

    Underscores, spaces and hyphens may replace each other, or be left out. Unless ``strict``, they may also be mixed, a
    remark in parentheses and an article are left out, and a WordNet id (``n02084071``) means its synset.
    """
    reader = wordnet()
    if not strict and re.fullmatch(r"n[0-9]{8}", name):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # nltk warns of an offset without a synset, or raises an error of any type
            try:
                synset = reader.synset_from_pos_and_offset("n", int(name[1:]))
            except Exception:
                return ()
        return () if synset is None or not synset.name() else (synset,)
    texts = (name,) if strict else (name, _without_remark(name), _without_article(_without_remark(name)))
    for text in dict.fromkeys(texts):
        for spelling in _spellings(text, mixed=not strict):
            synsets = reader.synsets(spelling, pos=reader.NOUN)
            if synsets:
                return tuple(synsets)
    return ()


def _without_remark(name: str) -> str:
    return re.sub(r"[\s_]*\([^()]*\)[\s_]*$", "", name)


def _without_article(name: str) -> str:
    return re.sub(r"^(the|an|a)[\s_]+(?=\w)", "", name, flags=re.IGNORECASE)


def _spellings(name: str, mixed: bool) -> tuple[str, ...]:
    """How WordNet may write a name: its words joined by underscores, hyphens, nothing, or the first two mixed."""
    name = unicodedata.normalize("NFC", name).strip()
    words = [word for word in re.split(r"[\s_-]+", name) if word]
    if not words:
        return ()
    plain = (name.replace(" ", "_"), "_".join(words), "-".join(words), "".join(words))
    combinations: list[str] = []
    if mixed and 2 < len(words) <= _WORDS:
        for joints in itertools.product("_-", repeat=len(words) - 1):
            combinations.append("".join(part for pair in zip(words, (*joints, ""), strict=True) for part in pair))
    return tuple(dict.fromkeys((*plain, *combinations)))


@functools.lru_cache(maxsize=65536)
def _lineage(synset: Any) -> frozenset[Any]:
    """A synset and all its hypernyms, direct and indirect."""
    lineage, queue = {synset}, [synset]
    while queue:
        current = queue.pop()
        for parent in (*current.hypernyms(), *current.instance_hypernyms()):
            if parent not in lineage:
                lineage.add(parent)
                queue.append(parent)
    return frozenset(lineage)


def _priors(synsets: Sequence[Any]) -> list[float]:
    """The score of each sense of a name without regard to the other names: minus its penalties, 0 at most."""
    counts = [sum(lemma.count() for lemma in synset.lemmas()) for synset in synsets]
    most = math.log(max(counts, default=0) + 1)
    return [
        round(-RANK * min(rank, PLACES) - RARE * (most - math.log(count + 1)) - _abstract(synset), 9)
        for rank, (synset, count) in enumerate(zip(synsets, counts, strict=True))
    ]


def _abstract(synset: Any) -> float:
    """The penalty of a sense for being a person or no concrete thing, 0 for a concrete one."""
    kind = synset.lexname()
    if kind == "noun.Tops":  # plant, animal, person, food, ... and entity, act, time, ...
        return 0.0 if any(above.name() == "physical_entity.n.01" for above in _lineage(synset)) else ABSTRACT
    return 0.0 if kind in CONCRETE else PERSON if kind == "noun.person" else ABSTRACT


class _Candidates:
    """The senses of all names, a row each, and how near they are to each other.

    ``owner``: the name's number; ``prior``: score without the other names; ``near``: Dice's coefficient of two rows.
    """

    def __init__(self, of_name: Sequence[tuple[Any, ...]]) -> None:
        self.synsets = [synset for synsets in of_name for synset in synsets]
        self.owner = np.repeat(np.arange(len(of_name)), [len(synsets) for synsets in of_name])
        self.prior = np.array([prior for synsets in of_name for prior in _priors(synsets)])
        column: dict[Any, int] = {}
        lineages = [[column.setdefault(above, len(column)) for above in _lineage(synset)] for synset in self.synsets]
        member = np.zeros((len(lineages), len(column)), dtype=np.float32)  # whole numbers: exact sums in any order
        for row, lineage in enumerate(lineages):
            member[row, lineage] = 1
        size = member.sum(axis=1)
        self.near = 2 * (member @ member.T) / np.maximum(size[:, None] + size[None], 1)

    def scores(self, chosen: np.ndarray) -> np.ndarray:
        """Score of every row, given the ``chosen`` rows of the other names."""
        others = len(chosen) - 1
        if not others:
            return self.prior
        same_name = self.owner[:, None] == self.owner[chosen][None]
        nearness = self.near[:, chosen].astype(np.float64)
        nearest = -np.sort(-np.where(same_name, -1.0, nearness), axis=1)[:, : min(NEAREST, others)]
        mean = np.where(same_name, 0.0, nearness).sum(axis=1) / others
        return np.round((1 - ALL) * nearest.mean(axis=1) + ALL * mean + self.prior, 9)

    def best(self, scores: np.ndarray) -> np.ndarray:
        """The best row of each name, of equal ones that of the commoner sense."""
        order = np.lexsort((np.arange(len(scores)), -np.round(scores, 9), self.owner))
        return order[np.r_[True, self.owner[order][1:] != self.owner[order][:-1]]]


@functools.lru_cache(maxsize=64)
def _choose(
    names: tuple[str, ...], given: tuple[tuple[str, str], ...]
) -> tuple[tuple[tuple[str, Any], ...], tuple[Doubt, ...]]:
    """``(name, synset or None)`` of distinct sorted names, and the doubtful ones; ``given`` ones are fixed."""
    stated = dict(given)
    candidates = [(named_synset(name, stated[name]),) if stated.get(name) else senses(name) for name in names]
    known = [number for number, synsets in enumerate(candidates) if synsets]
    doubts = [Doubt(name, "") for name, synsets in zip(names, candidates, strict=True) if not synsets]
    chosen: dict[str, Any] = dict.fromkeys(names)
    if known:
        table = _Candidates([candidates[number] for number in known])
        rows = table.best(table.prior)
        for _ in range(ROUNDS):
            rows = table.best(table.scores(rows))
        scores = table.scores(rows)
        for place, row in enumerate(rows):
            name = names[known[place]]
            chosen[name] = table.synsets[row]
            others = [other for other in np.flatnonzero(table.owner == place) if other != row]
            second = max(others, key=lambda other: (scores[other], -other), default=None)
            if second is not None and scores[row] - scores[second] < CLOSE:
                doubts.append(Doubt(name, table.synsets[row].name(), table.synsets[second].name()))
    return tuple(chosen.items()), tuple(sorted(doubts, key=lambda doubt: doubt.name))


def choose_senses(names: Sequence[str], given: Mapping[str, str] | None = None) -> dict[str, Any]:
    """The noun synset of each name, None where WordNet has none; ``given`` names the synset of some.

    Raises:
        WordNetError: WordNet is missing, or it has no synset of a given name.
    """
    fixed = tuple(sorted((name, synset) for name, synset in (given or {}).items() if synset and name in set(names)))
    return dict(_choose(tuple(sorted(set(names))), fixed)[0])


def doubtful(names: Sequence[str], given: Mapping[str, str] | None = None) -> tuple[Doubt, ...]:
    """The names, sorted, that are not in ``given`` and whose two best senses score nearly the same, or without a sense.

    Raises:
        WordNetError: as :func:`choose_senses` does.
    """
    fixed = tuple(sorted((name, synset) for name, synset in (given or {}).items() if synset and name in set(names)))
    return _choose(tuple(sorted(set(names))), fixed)[1]


def nearest_sense(name: str, others: Sequence[str]) -> Any | None:
    """The noun synset of one more name beside the synset names ``others`` ("": skipped); None if WordNet has none.

    Raises:
        WordNetError: WordNet is missing.
    """
    synsets, reader = senses(name), wordnet()
    chosen = [reader.synset(other) for other in dict.fromkeys(others) if other]
    if not synsets or not chosen:
        return synsets[0] if synsets else None

    priors, lineages = _priors(synsets), [_lineage(synset) for synset in chosen]

    def score(rank: int) -> float:
        lineage = _lineage(synsets[rank])
        shared = (2 * len(lineage & other) / (len(lineage) + len(other)) for other in lineages)
        nearness = sorted(shared, reverse=True)
        best, mean = nearness[:NEAREST], sum(nearness) / len(nearness)
        return round((1 - ALL) * sum(best) / len(best) + ALL * mean + priors[rank], 9)

    return synsets[max(range(len(synsets)), key=lambda rank: (score(rank), -rank))]


def named_synset(name: str, synset: str) -> Any:
    """The synset called ``synset``, for class ``name``.

    Raises:
        WordNetError: WordNet is missing, or it has no such synset.
    """
    reader = wordnet()
    try:
        named = reader.synset(synset)
    except Exception as error:  # nltk raises WordNetError, ValueError or KeyError here
        raise WordNetError(
            f"class {name!r}: WordNet has no synset {synset!r}; correct the data set's synsets"
        ) from error
    return named
