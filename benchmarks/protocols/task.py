"""Tasks: what a protocol makes of a dataset - who may be trained on, what is queried, what is searched.

A :class:`Task` names rows of the dataset's table and nothing else. Two tasks with the same ``fit_id`` show a method the
same training data, so one fitted model serves both.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from benchmarks.datasets.base import Dataset, DatasetError

Rules = Literal["clean", "official"]


#: How the note begins on a validation task inside one domain.
VALIDATED_WITHIN = "validated within "


@dataclass(frozen=True)
class Retrieval:
    """One retrieval question: ``query`` and ``gallery`` are table rows; ``name`` names the gallery."""

    name: str
    query: np.ndarray
    gallery: np.ndarray


@dataclass(frozen=True)
class Classification:
    """One classification question: images ``rows`` among ``class_names``.

    ``seen`` names the classes with labelled training images where that matters (DAZSL); None asks for plain accuracy.
    ``each_domain``: as a choice between models its score is the mean over domains of their accuracies (``dg``).
    """

    name: str
    rows: np.ndarray
    class_names: tuple[str, ...]
    seen: tuple[str, ...] | None = None
    each_domain: bool = False


@dataclass(frozen=True)
class Task:
    """One cell's data.

    ``split`` is what varies inside a protocol (the query domain in the UCDR family, ``source to target`` in UDA and
    DAZSL, which ``transfer`` holds apart).
    ``train`` are the labelled rows, ``target`` the unlabelled ones (None where the protocol shows none),
    ``class_names`` what the method may know during training, ``validation`` the question that scores a model during
    training. ``transductive``: the unlabelled target images are also the test images, as the field does in UDA and
    DAZSL. ``gallery_trained``: the gallery is the labelled source, as in UDA's retrieval.
    """

    protocol: str
    dataset: str
    rules: Rules
    split: str
    train: np.ndarray
    class_names: tuple[str, ...]
    retrievals: tuple[Retrieval, ...] = ()
    classifications: tuple[Classification, ...] = ()
    validation: Retrieval | Classification | None = None
    target: np.ndarray | None = None
    transductive: bool = False
    gallery_trained: bool = False
    notes: tuple[str, ...] = ()
    transfer: tuple[str, str] | None = None
    fit_id: str = field(default="", compare=False)

    def __post_init__(self) -> None:
        digest = hashlib.sha256()
        for rows in (self.train, self.target if self.target is not None else np.zeros(0, dtype=np.int64)):
            digest.update(np.ascontiguousarray(rows, dtype=np.int64).tobytes() + b"|")
        if isinstance(self.validation, Retrieval):
            digest.update(self.validation.query.tobytes() + b"|" + self.validation.gallery.tobytes())
        elif isinstance(self.validation, Classification):
            digest.update(self.validation.rows.tobytes() + f"|{self.validation.class_names}".encode())
            digest.update(f"|{self.validation.seen}".encode())
            digest.update(b"|each domain" if self.validation.each_domain else b"")
        digest.update(f"{self.dataset}|{self.rules}|{self.class_names}".encode())
        object.__setattr__(self, "fit_id", digest.hexdigest()[:16])

    def check(self, dataset: Dataset) -> None:
        """Assert what every clean task promises; raises :class:`DatasetError` naming the breach.

        Training and test rows are disjoint; no query is in its gallery; nothing is empty. Under the official rules
        trained-on gallery images are allowed (that is the flaw those rules keep).
        """
        name = f"{self.dataset}/{self.protocol}/{self.split}"
        questions = [(question.name, "query", question.query) for question in self.retrievals]
        questions += [(question.name, "test", question.rows) for question in self.classifications]
        galleries = [(question.name, "gallery", question.gallery) for question in self.retrievals]
        for part, role, rows in (*questions, *galleries):
            if len(rows) == 0:
                raise DatasetError(
                    f"{name}: no {role} images ({part}): too few for this protocol; `python -m benchmarks.data card"
                    f" {self.dataset} ...` counts them by domain and split"
                )
        for retrieval in self.retrievals:
            if len(np.intersect1d(retrieval.query, retrieval.gallery)):
                raise DatasetError(f"{name}: a query is in the gallery ({retrieval.name})")
        if self.rules == "official":
            return
        unlabelled = self.target if self.target is not None else np.zeros(0, dtype=np.int64)
        for rows, trained in (
            *((rows, self.train) for _, _, rows in questions),
            *((rows, self.train) for _, _, rows in galleries if not self.gallery_trained),
            *((rows, unlabelled) for _, _, rows in (*questions, *galleries) if not self.transductive),
        ):
            both = np.intersect1d(rows, trained)
            if len(both):
                key = dataset.table["key"].iloc[both[0]]
                raise DatasetError(f"{name}: test image {key!r} is also trained on")
        if set(dataset.table["class"].to_numpy()[self.train]) - set(self.class_names):
            raise DatasetError(f"{name}: trains on classes whose names are withheld")


class Protocol(ABC):
    """A protocol: turns a dataset into tasks, one a split."""

    name: str
    summary: str
    #: Galleries (retrieval names) in the order tables show them.
    galleries: tuple[str, ...]

    @abstractmethod
    def splits(self, dataset: Dataset) -> list[str]:
        """What the protocol varies on this dataset, e.g. the query domains."""

    @abstractmethod
    def task(self, dataset: Dataset, split: str, rules: Rules = "clean") -> Task:
        """The task of one split."""


class Rows:
    """Selections of a dataset's rows that the protocols share; all results are sorted int64 row numbers."""

    def __init__(self, dataset: Dataset) -> None:
        table = dataset.table
        self.classes = table["class"].to_numpy()
        self.domains = table["domain"].to_numpy()
        self.splits = table["split"].to_numpy()
        self.keys = table["key"].to_numpy()
        self.held_back = table["held_back"].to_numpy(dtype=bool)
        self.gallery = dataset.card.gallery_domain
        self.query_domains = tuple(domain for domain in dataset.domains if domain != self.gallery)

    def of(self, split: str, *, domains: tuple[str, ...] | None = None, held_back: bool | None = None) -> np.ndarray:
        """Rows of a class split, optionally of some domains, optionally only (or never) held-back ones."""
        mask = self.splits == split
        if domains is not None:
            mask &= np.isin(self.domains, domains)
        if held_back is not None:
            mask &= self.held_back == held_back
        return np.flatnonzero(mask).astype(np.int64)

    def validation(self, seen_domains: tuple[str, ...]) -> tuple[Retrieval | None, tuple[str, ...]]:
        """The validation task, and the notes on it.

        Validation classes, seen domains but the gallery's, against the gallery domain. Where that leaves no query with
        a relevant image (a data set of two domains, one of them held out), one seen domain is searched for its own
        validation images (:func:`own_gallery`): the gallery domain, or the first other one where that is possible.
        None where nothing is.
        """
        queries = self.of("val", domains=tuple(d for d in seen_domains if d != self.gallery))
        across = Retrieval("validation", queries, self.of("val", domains=(self.gallery,)))
        if answerable(across, self.classes):
            return across, ()
        for domain in sorted(seen_domains, key=lambda name: (name != self.gallery, name)):
            within = own_gallery(self.of("val", domains=(domain,)), self.classes, self.keys)
            if answerable(within, self.classes):
                return within, (f"{VALIDATED_WITHIN}{domain}: no other training domain has images of its classes",)
        return None, ()


def own_gallery(rows: np.ndarray, classes: np.ndarray, keys: np.ndarray) -> Retrieval:
    """A validation task inside one domain: of each class the half whose keys hash lowest queries the other images.

    Classes with one image are only searched. ``rows [N]`` are table rows, ``classes`` and ``keys`` the whole table's
    columns. The rule depends on the keys alone, not on their order.
    """
    queries = lowest_hashes(rows, classes, keys, lambda count: count // 2)
    return Retrieval("validation", queries, np.setdiff1d(rows, queries))


def answerable(question: Retrieval | Classification, classes: np.ndarray) -> bool:
    """Whether a question has a score: a query with a relevant image, or images to classify (of seen and of unseen
    classes, where it tells them apart). ``classes`` is the whole table's column."""
    if isinstance(question, Retrieval):
        return bool(np.isin(classes[question.query], classes[question.gallery]).any())
    if question.seen is None:
        return len(question.rows) > 0
    seen = np.isin(classes[question.rows], question.seen)
    return bool(seen.any() and not seen.all())


def without_unanswerable_validation(task: Task, dataset: Dataset) -> Task:
    """The task without a validation question that has no score (too few images, or a ``--limit`` that leaves none)."""
    if task.validation is None or answerable(task.validation, dataset.table["class"].to_numpy()):
        return task
    return replace(task, validation=None)


def named_transfers(pairs: Iterable[tuple[str, str]]) -> dict[str, tuple[str, str]]:
    """Transfers (source, target) by name, ``SOURCE to TARGET``.

    Domains may hold " to " themselves: of several transfers that would have one name, each has its domains in quotes.
    """
    pairs = list(dict.fromkeys(pairs))
    plain = [f"{source} to {target}" for source, target in pairs]
    names = [
        name if plain.count(name) == 1 else f"{source!r} to {target!r}"
        for name, (source, target) in zip(plain, pairs, strict=True)
    ]
    return dict(zip(names, pairs, strict=True))


def held_out_tenth(rows: np.ndarray, classes: np.ndarray, keys: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split labelled rows into ``(training, held out)``: of each class the tenth whose keys hash lowest.

    Classes with fewer than three images give none, others at least one. ``rows [N]`` are table rows, ``classes`` and
    ``keys`` the whole table's columns. The rule depends on the keys alone, not on their order.
    """
    out = lowest_hashes(rows, classes, keys, lambda count: max(1, round(count / 10)) if count >= 3 else 0)
    return np.setdiff1d(rows, out), out


def lowest_hashes(rows: np.ndarray, classes: np.ndarray, keys: np.ndarray, share: Callable[[int], int]) -> np.ndarray:
    """Of each class's rows the ``share(count)`` whose keys hash lowest: sorted table rows."""
    chosen: list[int] = []
    order = rows[np.argsort(classes[rows], kind="stable")]
    starts = np.unique(classes[order], return_index=True)[1]
    for part in np.split(order, starts[1:]):
        of_class = sorted(part.tolist(), key=lambda row: hashlib.sha256(str(keys[row]).encode()).digest())
        chosen += of_class[: share(len(of_class))]
    return np.array(sorted(chosen), dtype=np.int64)


def with_shots(task: Task, dataset: Dataset, shots: int, draw: int = 0) -> Task:
    """The task with at most ``shots`` labelled images a class and domain, in training and in validation.

    The rule: of each class and domain, images in the order of ``sha256("DRAW/KEY")``, the first ones. So fewer shots
    are a part of more, the draw does not depend on the order of files or on other classes, and another ``draw`` is
    another sample. Training and each role of the validation task are drawn apart; unlabelled images and tests stay
    whole, but for a gallery of labelled training images.
    """
    table = dataset.table
    classes, domains, keys = (table[column].to_numpy() for column in ("class", "domain", "key"))

    def drawn(rows: np.ndarray) -> np.ndarray:
        chosen: dict[tuple[str, str], list[tuple[bytes, int]]] = {}
        for row in rows.tolist():
            order = hashlib.sha256(f"{draw}/{keys[row]}".encode()).digest()
            chosen.setdefault((classes[row], domains[row]), []).append((order, row))
        return np.array(sorted(row for of_one in chosen.values() for _, row in sorted(of_one)[:shots]), dtype=np.int64)

    train, validation = drawn(task.train), task.validation
    if isinstance(validation, Retrieval):
        validation = replace(validation, query=drawn(validation.query), gallery=drawn(validation.gallery))
    elif validation is not None:
        validation = replace(validation, rows=drawn(validation.rows))
    retrievals = task.retrievals
    if task.gallery_trained:
        kept = (replace(one, gallery=np.intersect1d(one.gallery, train)) for one in retrievals)
        retrievals = tuple(kept)
    return replace(task, train=train, validation=validation, retrievals=retrievals)


def _spread(dataset: Dataset, limit: int) -> Callable[[np.ndarray], np.ndarray]:
    """What takes at most ``limit`` of the table rows it is given: class by class in turn, in a fixed random order
    within a class, so that different rows keep the same classes as long as the limit reaches them."""
    classes = dataset.table["class"].to_numpy()
    order = np.random.default_rng(0).permutation(len(classes))
    turn = np.empty(len(classes), dtype=np.int64)

    def first_rows(rows: np.ndarray) -> np.ndarray:
        if len(rows) <= limit:
            return rows
        shuffled = rows[np.argsort(order[rows])]
        names = classes[shuffled]
        for name in np.unique(names):
            of_class = shuffled[names == name]
            turn[of_class] = np.arange(len(of_class))
        chosen = shuffled[np.lexsort((names, turn[shuffled]))][:limit]
        return np.sort(chosen)

    return first_rows


def with_validation_limit(task: Task, dataset: Dataset, limit: int) -> Task:
    """The task validated on at most ``limit`` query and gallery images (or classified images), spread over the classes.

    The same images at each validation and for every method; training and tests stay whole. A task whose validation
    has no more images stays as it is, the others say so in ``notes``.
    """
    first_rows, whole = _spread(dataset, limit), task.validation
    if isinstance(whole, Retrieval):
        part: Retrieval | Classification = replace(
            whole, query=first_rows(whole.query), gallery=first_rows(whole.gallery)
        )
        images = max(len(whole.query), len(whole.gallery))
    elif whole is not None:
        part, images = replace(whole, rows=first_rows(whole.rows)), len(whole.rows)
    else:
        return task
    if images <= limit:
        return task
    return replace(task, validation=part, notes=(*task.notes, f"validation limited to {limit} images a role"))


def limited(task: Task, dataset: Dataset, limit: int) -> Task:
    """The task with at most ``limit`` training, target, query and gallery images each, spread over the classes."""
    first_rows = _spread(dataset, limit)

    def retrieval(question: Retrieval) -> Retrieval:
        return replace(question, query=first_rows(question.query), gallery=first_rows(question.gallery))

    def classification(question: Classification) -> Classification:
        return replace(question, rows=first_rows(question.rows))

    validation = task.validation
    if isinstance(validation, Retrieval):
        validation = retrieval(validation)
    elif validation is not None:
        validation = classification(validation)
    return replace(
        task,
        train=first_rows(task.train),
        target=None if task.target is None else first_rows(task.target),
        validation=validation,
        classifications=tuple(classification(question) for question in task.classifications),
        retrievals=tuple(retrieval(question) for question in task.retrievals),
        notes=(*task.notes, f"limited to {limit} images a role"),
    )
