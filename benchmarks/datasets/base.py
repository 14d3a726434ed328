"""What a dataset is: a table of labelled images, their pixels, class splits and a card.

A dataset yields samples; a protocol decides which of them may be trained on, queried or searched.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import pandas as pd

if TYPE_CHECKING:
    from torch import Tensor

    from methods.parts.preprocessing import ImageProcessing


@dataclass(frozen=True)
class ReleasedListing:
    """How the released code of the UCDR papers lists a data set's images; ``--rules official`` follows it.

    * ``mixed_gallery``: 92 % of the gallery domain's images of a training class are trained on and the rest is in
      the mixed gallery (DomainNet). False: all of them are trained on, and there is no mixed gallery.
    * ``trains_on_validation``: the validation classes are part of the training classes.
    * ``inverted``: domains whose images are shown as negatives, in training and in tests.
    """

    mixed_gallery: bool = True
    trains_on_validation: bool = True
    inverted: tuple[str, ...] = ()


class DatasetError(RuntimeError):
    """A dataset cannot be used; one line that names the file or folder and says how to fix it."""


@dataclass(frozen=True)
class RetrievalCut:
    """The figures that lead a dataset's tables, as its papers report them.

    AP cut ``map_at`` (None = all) and precision cut ``precision_at`` (None: recall@1 leads instead).
    """

    map_at: int | None = None
    precision_at: int | None = 100

    def metrics(self) -> tuple[str, ...]:
        """Names of the leading metrics; a cut AP is given under both conventions, never under one only."""
        k = self.map_at
        precision = ("map@all",) if k is None else (f"map@{k}[retrieved]", f"map@{k}[trec]")
        return (*precision, "recall@1" if self.precision_at is None else f"p@{self.precision_at}")


@dataclass(frozen=True)
class DatasetCard:
    """What a dataset is, where it comes from and what is known to be wrong with it."""

    name: str
    title: str
    version: str
    source: str
    licence: str
    gallery_domain: str
    headline: RetrievalCut = RetrievalCut()
    bibtex: str = ""
    known_problems: tuple[str, ...] = ()
    layout: str = ""


@dataclass(frozen=True)
class ClosedSet:
    """Fixed settings of a dataset for UDA and DAZSL.

    UDA runs all ordered pairs of ``uda_domains`` over ``uda_classes``; DAZSL runs ``dazsl_pairs`` (source, target) with
    ``seen`` and ``unseen`` classes. Class lists are names.
    """

    uda_domains: tuple[str, ...] = ()
    uda_classes: tuple[str, ...] = ()
    dazsl_pairs: tuple[tuple[str, str], ...] = ()
    seen: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()


class Dataset(ABC):
    """A dataset whose samples are the rows of :attr:`table`.

    ``table`` has one row an image and the columns ``key`` (unique string), ``class``, ``domain``, ``split``
    ("train" | "val" | "test", a property of the class) and ``held_back`` (bool, images of train classes that no
    training ever sees). Rows are ordered by ``key``, so numbering never depends on file order.
    """

    card: ClassVar[DatasetCard]
    released: ClassVar[ReleasedListing] = ReleasedListing()
    #: Names the way from a stored image to its pixels: change it when that changes, so that no score is reused.
    decoding: ClassVar[str] = ""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root

    @property
    @abstractmethod
    def table(self) -> pd.DataFrame:
        """All samples."""

    @abstractmethod
    def pixels(self, rows: np.ndarray, size: int) -> Tensor:
        """RGB in [0, 1] of the given rows at ``size`` x ``size`` pixels: float32 ``[B, 3, size, size]``."""

    def processed(self, rows: np.ndarray, how: ImageProcessing) -> Tensor:
        """RGB of the given rows under a backbone's image processing: uint8 ``[B, 3, size, size]``.

        This default uses :meth:`pixels`: the data set resizes to the size that the processing resizes to, and the
        processing crops. A data set with access to the stored images overrides it.

        Raises :class:`DatasetError` if :meth:`pixels` gives another type or values outside [0, 1].
        """
        import torch

        given = self.pixels(rows, how.side)
        if given.dtype != torch.float32 or (given.numel() and not (given.min() >= 0 and given.max() <= 1)):
            span = f" from {float(given.min()):g} to {float(given.max()):g}" if given.numel() else ""
            raise DatasetError(
                f"{self.card.name}: pixels() returned {given.dtype}{span}; return float32 RGB from 0 to 1, or override"
                " processed() to return uint8 RGB"
            )
        pixels = torch.from_numpy(how.crop_squares(given.numpy()))
        return pixels.mul(255).round_().to(torch.uint8)

    @property
    @abstractmethod
    def content(self) -> Sequence[str]:
        """Content hash of every row's stored image."""

    @property
    def synsets(self) -> Mapping[str, str]:
        """WordNet synset name of each class that has one."""
        return {}

    @property
    def facts(self) -> tuple[str, ...]:
        """What was read of a data set's folder and which version it is: one line each, without its path."""
        return ()

    @property
    def left_out(self) -> str:
        """How many files of which kind are not used, in one line; "" if every file is used."""
        return ""

    @property
    def name_notes(self) -> tuple[str, ...]:
        """Notes for records on how class names were read, one line each."""
        return ()

    @property
    def synsets_published(self) -> bool:
        """Whether :attr:`synsets` come with the data set; False: they were chosen by hand for this benchmark."""
        return True

    @property
    def closed_set(self) -> ClosedSet:
        """Fixed UDA and DAZSL settings (empty if the dataset defines none)."""
        return ClosedSet()

    @property
    def uda_pairs(self) -> tuple[tuple[str, str], ...]:
        """UDA's transfers (source, target): all ordered pairs of the closed set's domains."""
        domains = self.closed_set.uda_domains
        return tuple((source, target) for source in domains for target in domains if source != target)

    @property
    def dg_set(self) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Domains and classes of domain generalisation: the closed set's; empty if the dataset defines none."""
        return self.closed_set.uda_domains, self.closed_set.uda_classes

    @cached_property
    def domains(self) -> tuple[str, ...]:
        """Domain names, sorted."""
        return tuple(sorted(self.table["domain"].unique()))

    def classes(self, split: str | None = None) -> tuple[str, ...]:
        """Class names of a split (all if None), sorted."""
        table = self.table if split is None else self.table[self.table["split"] == split]
        return tuple(sorted(table["class"].unique()))

    @cached_property
    def data_hash(self) -> str:
        """sha256 over keys, classes, domains, splits and image contents: names the exact data of a score."""
        digest = hashlib.sha256()
        columns = ["key", "class", "domain", "split", "held_back"]
        for values, content in zip(self.table[columns].itertuples(index=False), self.content, strict=True):
            digest.update(("\t".join(map(str, values)) + "\t" + content + "\n").encode())
        return digest.hexdigest()

    def check(self) -> None:
        """Check what every dataset guarantees; raises :class:`DatasetError` naming the first violation."""
        table, name = self.table, self.card.name
        missing = {"key", "class", "domain", "split", "held_back"} - set(table.columns)
        if missing:
            raise DatasetError(f"{name}: the table has no columns {sorted(missing)}")
        if table["key"].duplicated().any():
            raise DatasetError(f"{name}: {table.loc[table['key'].duplicated(), 'key'].iloc[0]!r} is listed twice")
        splits_per_class = table.groupby("class")["split"].nunique()
        if (splits_per_class > 1).any():
            raise DatasetError(f"{name}: class {splits_per_class.idxmax()!r} is in two splits; splits must be disjoint")
        if bool((table["held_back"] & (table["split"] != "train")).any()):
            raise DatasetError(f"{name}: only images of train classes can be held back")
        if self.card.gallery_domain not in set(table["domain"]):
            raise DatasetError(f"{name}: gallery domain {self.card.gallery_domain!r} has no images")


@dataclass
class BrokenImages:
    """Images that could not be decoded, by key and reason; never replaced silently."""

    reasons: dict[str, str] = field(default_factory=dict)


def dataset_root(data_root: str | None, name: str) -> Path | None:
    """Where a data set is under the data root: ``NAME.parquet`` or the folder ``NAME``; None without a data root.

    Raises :class:`DatasetError` if the data root cannot be read.
    """
    if data_root is None:
        return None
    file = expanded(data_root) / f"{name}.parquet"
    try:
        return file if file.is_file() else file.with_suffix("")
    except OSError as error:
        raise DatasetError(f"{name}: {data_root} cannot be read: {error.strerror or error}") from error


def expanded(path: str) -> Path:
    """A path with ``~`` as the home folder; unchanged where there is no such user."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        return Path(path)


def root_problem(data_root: str | None) -> str:
    """Why ``--data-root`` cannot be used, naming it; "" if it can, or was not given."""
    usable = data_root is None or expanded(data_root).is_dir()
    return "" if usable else f"--data-root {data_root} is not a folder"
