"""Types that several modules of the report share: settings and scores, tables ready to be written, plots and galleries.

Nothing here computes a score or depends on a file format, and nothing here imports another module of the report.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from benchmarks.evaluation.statistics import SeedMean

#: Columns of :func:`benchmarks.store.frame.load_results` that make two scores comparable.
SETTING = (
    "dataset",
    "dataset_version",
    "data_hash",
    "backbone",
    "weights_hash",
    "identity",
    "precision",
    "rules",
    "select",
    "limit",
    "scoring",
    "shots",
)

#: In the columns ``split`` and ``protocol`` of a comparison: over all of them.
ALL = ""

#: Marks a score whose method's paper does not define the answer.
EXTENSION = "†"

#: Marks the best score of a column, and the scores that are not separable from it.
BEST, GROUP = "★", "≈"

#: How a cell without a score is displayed.
STATUS_TEXT = {"failed": "failed", "skipped": "skipped", "not_applicable": "n/a", "missing": "-"}

#: Protocols as the field writes them; any other is written in capitals.
PROTOCOL_TITLES = {"uccdr": "UcCDR", "udcdr": "UdCDR", "uda_inductive": "UDA (inductive)"}


def protocol_title(name: str) -> str:
    """A protocol's name as it appears in a heading."""
    return PROTOCOL_TITLES.get(name, name.upper())


def is_transfer(protocol: str) -> bool:
    """Whether a protocol's splits are transfers (SOURCE to TARGET), not query domains, whatever the domains' names."""
    return protocol.partition("_")[0] in ("uda", "dazsl")


def is_absent(value: Any) -> bool:
    """Whether a value of a frame is None or NaN."""
    return value is None or (isinstance(value, float) and math.isnan(value))


# --------------------------------------------------------------------------------------------------------------------
# Scores
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """What all scores of a table share."""

    dataset: str
    dataset_version: str
    data_hash: str
    backbone: str
    weights_hash: str
    identity: str
    precision: str
    rules: str
    select: str
    limit: int | None
    scoring: int
    shots: str = ""

    def title(self) -> str:
        """One line, the marks of anything unusual included."""
        marks = []
        if self.rules != "clean":
            marks.append(
                f"{self.rules.upper()} RULES: as the released code, test data leak into training and selection"
            )
        if self.select == "oracle":
            marks.append("ORACLE: selected on test data, not ranked")
        elif self.select != "val":
            marks.append(f"selection: {self.select}")
        if self.shots:
            marks.append(f"few-shot: {self.shots} labelled images a class and domain")
        if self.limit is not None:
            marks.append(f"LIMITED to {self.limit} images a role: proves that it runs, the scores mean nothing")
        if self.precision not in ("float32", ""):
            marks.append(self.precision)
        model = self.weights_hash[:8] + (f", setup {self.identity[:8]}" if self.identity else "")
        name = f"{self.dataset} {self.dataset_version} ({self.data_hash[:8]}), {self.backbone} ({model})"
        return "; ".join([name, *marks])


@dataclass(frozen=True)
class Score:
    """One score of a table: a mean over ``seeds`` seeds, or None with the ``status`` as the reason.

    ``low`` and ``high`` are its 95 % t interval over seeds; None for one seed. ``by_seed``: what it is the mean of.
    """

    value: float | None
    seeds: int = 0
    status: str = "ok"
    low: float | None = None
    high: float | None = None
    by_seed: Mapping[int, float] = field(default_factory=dict, compare=False)

    def text(self) -> str:
        """Percent with one decimal, or the status."""
        return f"{100 * self.value:.1f}" if self.value is not None else STATUS_TEXT.get(self.status, self.status)

    def interval_text(self) -> str:
        """``± half of the interval``, or "" where there is none."""
        return "" if self.low is None or self.high is None else f"± {100 * (self.high - self.low) / 2:.1f}"

    def with_interval(self) -> str:
        """:meth:`text`, with half of the interval where there is one."""
        return f"{self.text()} {self.interval_text()}".rstrip()


@dataclass(frozen=True)
class MethodScores:
    """A method's scores in a table: one a column, and their mean where none is missing.

    ``config`` as JSON; ``ablation``: the factor that was switched, or "". ``extension``: what this suite decided
    because the method's paper does not define this answer, or "". ``training``: what must be known of its fits (some
    still rise at the end of the budget, a learning rate is at an end of what was tried), or ""; None where no record
    tells.
    """

    label: str
    method: str
    floor: bool
    scores: Mapping[str, Score]
    mean: Score
    extension: str = ""
    config: str = "{}"
    ablation: str = ""
    training: str | None = None


@dataclass(frozen=True)
class ScoreTable:
    """One protocol, gallery and metric: methods by query domains; ``leads`` marks a gallery's first metric."""

    setting: Setting
    protocol: str
    gallery: str
    metric: str
    columns: tuple[str, ...]
    rows: tuple[MethodScores, ...]
    leads: bool = True

    def title(self) -> str:
        """Protocol, gallery and metric."""
        by = "transfer" if is_transfer(self.protocol) else "query domain"
        return f"{protocol_title(self.protocol)}, {self.gallery}: {self.metric} in percent, by {by}"

    def question(self) -> str:
        """Protocol and gallery."""
        return f"{protocol_title(self.protocol)} {self.gallery}"


# --------------------------------------------------------------------------------------------------------------------
# Ablations, costs, errors
# --------------------------------------------------------------------------------------------------------------------


#: Name of a method's default among its arms.
DEFAULT = "default"


@dataclass(frozen=True)
class AblationTable:
    """A method's arms in one setting, the default first; ``scores`` has one entry a question for each arm.

    ``method`` is the name, with what distinguishes its defaults where arms belong to several; ``owner`` the bare name.
    """

    method: str
    questions: tuple[str, ...]
    scores: dict[str, dict[str, Score]]
    owner: str = ""

    def difference(self, arm: str, question: str) -> SeedMean | None:
        """Score of an arm minus the default's, seed by seed: mean and t interval over the seeds.

        None where the default lacks one of the arm's seeds.
        """
        from benchmarks.evaluation.statistics import mean_over_seeds

        score, default = self.scores[arm].get(question), self.scores.get(DEFAULT, {}).get(question)
        if score is None or default is None or not score.by_seed or not score.by_seed.keys() <= default.by_seed.keys():
            return None
        return mean_over_seeds([value - default.by_seed[seed] for seed, value in sorted(score.by_seed.items())])

    def change(self, arm: str, question: str) -> str:
        """`difference` in points, ``+1.2 ± 0.4`` with several seeds; "" for the default and where there is none."""
        difference = None if arm == DEFAULT else self.difference(arm, question)
        if difference is None:
            return ""
        text = f"{100 * difference.mean:+.1f}"
        if difference.low is not None and difference.high is not None:
            text += f" ± {50 * (difference.high - difference.low):.1f}"
        return text

    def seeds(self, arm: str) -> str:
        """Over how many seeds an arm's scores are means."""
        numbers = sorted({score.seeds for score in self.scores[arm].values() if score.value is not None})
        return ", ".join(map(str, numbers)) or STATUS_TEXT["missing"]


@dataclass(frozen=True)
class MethodCost:
    """What a method cost in one setting; seconds are means: of a fit, of a search, of a cell's other phases.

    ``memory`` and ``gpu_memory`` are the largest peaks in MiB, ``images_per_second`` is a median.
    """

    label: str
    method: str
    floor: bool
    trainable: int | None
    total: int | None
    seconds: Mapping[str, float]
    images_per_second: float | None
    memory: float | None
    gpu_memory: float | None
    fits: int
    cells: int

    @property
    def training_seconds(self) -> float:
        """Seconds of a search and a fit; 0 for methods that train nothing."""
        return self.seconds.get("fit", 0.0) + self.seconds.get("search", 0.0) if self.trainable else 0.0


@dataclass(frozen=True)
class Curve:
    """Precision and recall after each of the first ranks [K], and at the cuts that the store has beyond them."""

    precision: np.ndarray
    recall: np.ndarray
    cuts: Mapping[int, tuple[float, float]]
    queries: int


@dataclass(frozen=True)
class MethodErrors:
    """First answers of one method: how many queries, and how often (true class, answered class) where they differ."""

    label: str
    method: str
    queries: int
    confused: Counter[tuple[str, str]]
    per_class: Counter[str]
    curve: Curve | None = None

    @property
    def wrong(self) -> int:
        """Queries whose first answer is of another class."""
        return self.confused.total()


@dataclass(frozen=True)
class QuestionErrors:
    """All methods' first answers to one question (lowest seed, all query domains together)."""

    protocol: str
    gallery: str
    retrieval: bool
    methods: tuple[MethodErrors, ...] = ()
    problem: str = ""

    @property
    def title(self) -> str:
        """Protocol and gallery."""
        return f"{protocol_title(self.protocol)}, {self.gallery}"


# --------------------------------------------------------------------------------------------------------------------
# Tables ready to be written
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class GridCell:
    """One cell: its text, what to sort by (None: by the text), CSS class, mark, remark beside it and on hover.

    ``plain`` is the whole cell in a format without marks and hover (Markdown, terminal); "" means ``text``.
    """

    text: str = ""
    sort: float | int | None = None
    kind: str = ""
    mark: str = ""
    small: str = ""
    note: str = ""
    tags: tuple[str, ...] = ()
    link: str = ""
    pre: bool = False
    plain: str = ""


@dataclass(frozen=True)
class GridRow:
    """Cells; ``method`` is what the page's method filter looks at (empty: always displayed)."""

    cells: tuple[GridCell, ...]
    method: str = ""
    kind: str = ""


@dataclass(frozen=True)
class Grid:
    """A table ready to be written in any format.

    ``style`` is ``figures`` (the first column names the row) or ``texts``; ``data`` serves the page's filters;
    ``corner`` replaces the first head in Markdown and on a terminal.
    """

    caption: str
    head: tuple[str, ...]
    rows: tuple[GridRow, ...]
    style: str = "figures"
    data: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    unranked: bool = False
    search: bool = False
    corner: str = ""

    def plain(self) -> tuple[list[str], list[list[str]]]:
        """Head and rows as text alone."""
        head = [self.corner or self.head[0], *self.head[1:]]
        return head, [[cell.plain or cell.text for cell in row.cells] for row in self.rows]


# --------------------------------------------------------------------------------------------------------------------
# Plots and galleries
# --------------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Plot:
    """A drawn plot: its files, or why there is none. ``kind`` and ``protocol`` serve the page's filters."""

    title: str
    caption: str = ""
    kind: str = ""
    protocol: str = ""
    files: tuple[Path, ...] = ()
    failed: str = ""


@dataclass(frozen=True)
class SettingPlots:
    """All plots of a setting, and notes on what could not be drawn because data are missing."""

    plots: tuple[Plot, ...] = ()
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Hit:
    """An image retrieved."""

    key: str
    class_name: str
    right: bool


@dataclass(frozen=True)
class RankedImages:
    """What a method retrieved for a query; ``score`` is the query's AP, ``floor`` as on the method's card."""

    label: str
    method: str
    score: float
    hits: tuple[Hit, ...]
    floor: bool = False


@dataclass(frozen=True)
class GalleryQuery:
    """A query under every method; ``title`` names the question.

    ``score`` is the mean AP over methods that are no floors, ``spread`` the difference between their best and worst.
    """

    key: str
    class_name: str
    domain: str
    title: str
    score: float
    rows: tuple[RankedImages, ...]
    spread: float = 0.0


@dataclass(frozen=True)
class Galleries:
    """Queries, the hardest first, and every image in them as a data URI by key; ``side`` in pixels."""

    queries: tuple[GalleryQuery, ...]
    images: Mapping[str, str]
    notes: tuple[str, ...] = ()
    side: int = 64


@dataclass(frozen=True, eq=False)
class EmbeddingMap:
    """Images as points [N, 2] on two axes with their classes and domains; ``share`` of the variance is on the axes."""

    points: np.ndarray
    classes: tuple[str, ...]
    domains: tuple[str, ...]
    share: float
