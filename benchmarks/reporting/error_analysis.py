"""What methods get wrong, from the lists of best answers in the store: precision by rank, confusions, WordNet distance.

A retrieval's list holds keys of gallery images. Their classes are not stored: they are read off the key (a query
with this key has a class; else a folder of the key names one) and the whole question is left out if the classes so
found contradict the stored recall@1 anywhere.

`benchmarks.reporting.grids.error_grids` turns these counts into tables, `benchmarks.reporting.plots` draws them.
"""

from __future__ import annotations

import functools
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from benchmarks.datasets.registry import DATASETS
from benchmarks.reporting.tables import METHOD_COLUMNS
from benchmarks.reporting.types import Curve, MethodErrors, QuestionErrors, ScoreTable
from benchmarks.store.files import ResultStore
from benchmarks.store.records import Record, RecordError


@dataclass
class WordNet:
    """Distances between classes in the embedded WordNet: edges of the shortest path over hypernyms.

    ``given`` are synset names that the data set states; any other class counts as its name's first noun sense.
    """

    given: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._above: dict[str, dict[Any, int]] = {}
        self._synset = functools.cache(self._find)

    def distance(self, first: str, second: str) -> int | None:
        """Number of edges between two classes; None if one of them is not in WordNet."""
        above, below = self._ancestors(first), self._ancestors(second)
        return min((above[s] + below[s] for s in above.keys() & below.keys()), default=None)

    def common(self, first: str, second: str) -> str:
        """Name of the nearest common hypernym, or ""."""
        above, below = self._ancestors(first), self._ancestors(second)
        shared = min(above.keys() & below.keys(), key=lambda s: (above[s] + below[s], str(s)), default=None)
        return "" if shared is None else str(shared.lemma_names()[0]).replace("_", " ")

    def _find(self, name: str) -> Any:
        from nltk.corpus import wordnet

        if name in self.given:
            return wordnet.synset(self.given[name])
        senses = wordnet.synsets(re.sub(r"[\s_-]+", "_", name.strip()), pos="n")
        return senses[0] if senses else None

    def _ancestors(self, name: str) -> dict[Any, int]:
        if name not in self._above:
            synset = self._synset(name)
            depth_of: dict[Any, int] = {} if synset is None else {synset: 0}
            edge = list(depth_of)
            while edge:
                edge = [
                    (depth_of.setdefault(above, depth_of[one] + 1), above)[1]
                    for one in edge
                    for above in (*one.hypernyms(), *one.instance_hypernyms())
                    if above not in depth_of
                ]
            self._above[name] = depth_of
        return self._above[name]


def synsets_of(dataset: str) -> Mapping[str, str]:
    """The synsets a data set states for its classes; none if it cannot be opened here."""
    try:
        synsets: Mapping[str, str] = DATASETS.get(dataset)().synsets
    except Exception:  # the data are not here: a name then means its first sense
        return {}
    return synsets


def question_errors(
    store: ResultStore,
    tables: Sequence[ScoreTable],
    rows: pd.DataFrame,
    labels: Mapping[Any, str],
    records: Mapping[str, Record],
    report: Callable[[str], None],
) -> list[QuestionErrors]:
    """First answers to the first gallery of every protocol; the lowest seed of each method.

    ``report`` gets one line for each record whose answers cannot be read.
    """
    questions = []
    asked: dict[str, ScoreTable] = {}
    for table in tables:
        if table.leads:
            asked.setdefault(table.protocol, table)
    ok = rows[rows["status"] == "ok"]
    for table in asked.values():
        of_table = ok[(ok["protocol"] == table.protocol) & (ok["gallery"] == table.gallery)]
        read: dict[str, tuple[str, list[pd.DataFrame]]] = {}
        for configuration, of_method in of_table.groupby(METHOD_COLUMNS, sort=False):
            lowest = of_method[of_method["seed"] == of_method["seed"].min()]
            frames = []
            for key in dict.fromkeys(lowest["key"]):
                if key in records and records[key].per_query is None:
                    continue  # reported by the tests between methods
                try:
                    answers = store.per_query(records[key])
                except (RecordError, KeyError) as error:
                    label = labels[configuration]
                    report(f"{label} on {table.protocol}: {error.args[0]}; its errors are not displayed")
                    continue
                answers = answers[answers["gallery"] == table.gallery]
                if "top_keys" in answers.columns:
                    frames.append(answers[answers["top_keys"].notna()])
            frames = [frame for frame in frames if len(frame)]
            if frames:
                read[labels[configuration]] = (str(configuration[0]), frames)
        order = {row.label: place for place, row in enumerate(table.rows)}
        questions.append(_question(table, dict(sorted(read.items(), key=lambda one: order[one[0]]))))
    return [question for question in questions if question.methods or question.problem]


def _question(table: ScoreTable, read: Mapping[str, tuple[str, list[pd.DataFrame]]]) -> QuestionErrors:
    everything = [frame for _, frames in read.values() for frame in frames]
    retrieval = any(frame["recall@1"].notna().any() for frame in everything if "recall@1" in frame.columns)
    class_of: Callable[[str], str | None] = _classes(everything) if retrieval else str
    methods = []
    for label, (method, frames) in read.items():
        confused: Counter[tuple[str, str]] = Counter()
        per_class: Counter[str] = Counter()
        for frame in frames:
            first = [class_of(keys[0]) for keys in frame["top_keys"]]
            true = frame["class"].tolist()
            if retrieval:
                hit = frame["recall@1"].to_numpy()  # between 0 and 1 where several images share the first rank
                if any(
                    one is None or (r in (0.0, 1.0) and (one == own) != bool(r))
                    for one, own, r in zip(first, true, hit, strict=True)
                ):
                    problem = "the classes of its gallery images cannot be read off their keys"
                    return QuestionErrors(table.protocol, table.gallery, retrieval, (), problem)
            per_class.update(true)
            confused.update((own, str(one)) for own, one in zip(true, first, strict=True) if one != own)
        whole = len(frames) == len(table.columns)  # curves over fewer domains compare with no other
        curve = _curve(frames, class_of) if retrieval and whole else None
        methods.append(MethodErrors(label, method, sum(map(len, frames)), confused, per_class, curve))
    return QuestionErrors(table.protocol, table.gallery, retrieval, tuple(methods))


def _classes(frames: Iterable[pd.DataFrame]) -> Callable[[str], str | None]:
    """A function from an image's key to its class, or None."""
    known: dict[str, str] = {}
    for frame in frames:
        known.update(zip(frame["query"], frame["class"], strict=True))
    by_name = {_slug(name): name for name in known.values()}

    @functools.cache
    def class_of(key: str) -> str | None:
        if key in known:
            return known[key]
        parts = key.split("/")[1:-1]
        named = next((by_name[_slug(part)] for part in parts if _slug(part) in by_name), None)
        return named or (parts[0].replace("-", " ").replace("_", " ") if parts else None)

    return class_of


def _slug(name: str) -> str:
    return re.sub(r"[\W_]+", " ", name).strip().lower()


def _curve(frames: Sequence[pd.DataFrame], class_of: Callable[[str], str | None]) -> Curve | None:
    """Mean over query domains of each query's precision and recall after rank 1, 2, ..."""
    precision, recall, cuts = [], [], []
    for frame in frames:
        found = frame[frame["n_relevant"] > 0] if "n_relevant" in frame.columns else frame.iloc[:0]
        if found.empty:
            return None
        lists = found["top_keys"].tolist()
        k = min(map(len, lists))
        hits = np.array(
            [[class_of(key) == own for key in keys[:k]] for keys, own in zip(lists, found["class"], strict=True)]
        )
        after = np.cumsum(hits, axis=1)
        relevant = found["n_relevant"].to_numpy(dtype=float)
        precision.append((after / np.arange(1, k + 1)).mean(0))
        recall.append((after / relevant[:, None]).mean(0))
        own_cuts = {}
        for name in found.columns:
            at = re.fullmatch(r"p@(\d+)", name)
            if at and int(at[1]) > k and found[name].notna().all():
                values = found[name].to_numpy(dtype=float)
                own_cuts[int(at[1])] = (values.mean(), (values * int(at[1]) / relevant).mean())
        cuts.append(own_cuts)
    ranks = min(map(len, precision))
    shared = sorted(set.intersection(*(set(one) for one in cuts)))
    return Curve(
        np.mean([one[:ranks] for one in precision], axis=0),
        np.mean([one[:ranks] for one in recall], axis=0),
        {at: (float(np.mean([c[at][0] for c in cuts])), float(np.mean([c[at][1] for c in cuts]))) for at in shared},
        sum(map(len, frames)),
    )


def distances(errors: MethodErrors, wordnet: WordNet) -> Counter[int]:
    """How many wrong first answers are at each WordNet distance (edges) from the true class."""
    found: Counter[int] = Counter()
    for (true, answered), times in errors.confused.items():
        distance = wordnet.distance(true, answered)
        if distance is not None:
            found[distance] += times
    return found


@dataclass(frozen=True)
class ErrorAnalysis:
    """All questions of a setting with the WordNet that measures their errors; ``problem`` if they cannot be read."""

    questions: tuple[QuestionErrors, ...] = ()
    wordnet: WordNet = field(default_factory=WordNet)
    problem: str = ""

    @property
    def has_curves(self) -> bool:
        """Whether any method has a curve of precision and recall."""
        return any(method.curve is not None for question in self.questions for method in question.methods)
