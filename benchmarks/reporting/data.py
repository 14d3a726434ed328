"""What a report is made of, computed once: records, settings, tables, comparisons, costs, errors and ablations.

Formats (Markdown, LaTeX, HTML, CSV, terminal) and plots read a `ReportData` and compute no score of their own. A new
figure of the report is a new property here, and a column in `benchmarks.reporting.grids`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import cached_property
from typing import Any, TypeVar

import pandas as pd

from benchmarks.reporting import costs, error_analysis, method_comparison, published, selector_picks, tables
from benchmarks.reporting.ablation_tables import ablation_tables
from benchmarks.reporting.error_analysis import ErrorAnalysis, WordNet
from benchmarks.reporting.method_comparison import MethodComparison, SettingComparison
from benchmarks.reporting.selector_picks import SelectorPicks
from benchmarks.reporting.types import AblationTable, MethodCost, ScoreTable, Setting
from benchmarks.store.files import ResultStore
from benchmarks.store.records import Record

Result = TypeVar("Result")


class ReportData:
    """Stored results and everything computed from them; each part is computed when it is first read, and kept.

    Args:
        results: rows of `benchmarks.store.frame.load_results`.
        store: where records, per-query values, loss curves and cards are read from; None: there are only the scores.
        command: the command line that made the report, displayed in its files.
        report: gets one line for each part that cannot be used; no such part stops the tables.
        resamples: of the tests between methods; None: as `benchmarks.reporting.method_comparison` chooses.
        records: those of the store by key, where they have been read already.
    """

    def __init__(
        self,
        results: pd.DataFrame,
        *,
        store: ResultStore | None = None,
        command: str = "",
        report: Callable[[str], None] | None = None,
        resamples: int | None = None,
        records: dict[str, Record] | None = None,
    ) -> None:
        self.results = results
        self.store = store
        self.command = command
        self.resamples = resamples
        self.problems: list[str] = []
        self._report = report
        self._read = records
        self._ablations: dict[Setting, tuple[AblationTable, ...]] = {}

    def warn(self, line: str) -> None:
        """Keep a line about what cannot be used, and report it."""
        line = " ".join(line.split())  # names may hold line breaks
        self.problems.append(line)
        if self._report is not None:
            self._report(line)

    def attempt(self, what: str, compute: Callable[[], Result]) -> Result | None:
        """What ``compute`` returns; None and a warning if it fails. Raises ``OSError`` as it is: a full disk, say."""
        try:
            return compute()
        except OSError:
            raise
        except Exception as error:
            self.warn(f"{what} left out: {type(error).__name__}: {error}")
            return None

    # ----------------------------------------------------------------------------------------------------------------
    # Rows of results
    # ----------------------------------------------------------------------------------------------------------------

    @cached_property
    def current(self) -> pd.DataFrame:
        """Rows of the newest record of each cell, and of cells that have only a reason to display."""
        return tables.current(self.results)

    @cached_property
    def newest(self) -> pd.DataFrame:
        """Rows of the newest record of each cell, ablations included."""
        return tables.newest(self.results)

    @cached_property
    def listed(self) -> pd.DataFrame:
        """`current` without ablations: what the leaderboard lists."""
        return tables.without_ablations(self.current)

    @cached_property
    def scored(self) -> pd.DataFrame:
        """`newest` without ablations: what the tables are computed from."""
        return tables.without_ablations(self.newest)

    @cached_property
    def records(self) -> dict[str, Record]:
        """The records behind `current` by key; none without a store."""
        if self.store is None:
            return {}
        wanted = {*self.current["key"]}
        if self._read is None:
            self._read = {record.key: record for record in self.store.records() if record.key in wanted}
        return {key: record for key, record in self._read.items() if key in wanted}

    def per_query(self, key: str) -> pd.DataFrame:
        """The per-query values of the record ``key``; raises ``RecordError`` or ``KeyError`` where there are none."""
        if self.store is None:
            raise KeyError(f"no store to read the record {key} from")
        return self.store.per_query(self.records[key])

    # ----------------------------------------------------------------------------------------------------------------
    # What is computed from them
    # ----------------------------------------------------------------------------------------------------------------

    @cached_property
    def settings(self) -> list[SettingData]:
        """The settings of the leaderboard in its order, each with its tables, costs and errors."""
        return [SettingData(self, setting) for setting in tables.settings_of(self.scored)]

    @cached_property
    def comparison(self) -> MethodComparison | None:
        """The paired tests between methods; None if they cannot be made."""
        store = self.store
        if store is None:
            return None
        return self.attempt(
            "tests between methods",
            lambda: method_comparison.compare_methods(
                store, self.scored, resamples=self.resamples, report=self.warn, records=self.records
            ),
        )

    @cached_property
    def published(self) -> pd.DataFrame | None:
        """Published scores beside ours; None if they cannot be read."""
        return self.attempt("the published figures", lambda: published.beside(self.listed))

    def ablations(self, setting: Setting) -> tuple[AblationTable, ...]:
        """The ablations of a setting; it may have no other results."""
        if setting not in self._ablations:
            self._ablations[setting] = tuple(ablation_tables(self.newest, setting))
        return self._ablations[setting]


class SettingData:
    """One setting of a report: what all its tables and plots are made of."""

    def __init__(self, data: ReportData, setting: Setting) -> None:
        self.data = data
        self.setting = setting

    @cached_property
    def rows(self) -> pd.DataFrame:
        """The setting's rows of results."""
        return tables.of_setting(self.data.scored, self.setting)

    @cached_property
    def labels(self) -> dict[Any, str]:
        """Label of each (method, variant, config)."""
        return tables.row_labels(self.rows)

    @cached_property
    def tables(self) -> list[ScoreTable]:
        """Tables by protocol, gallery and metric."""
        return tables.score_tables(self.data.scored, self.setting)

    @property
    def leading(self) -> list[ScoreTable]:
        """The table of each gallery's first metric."""
        return [table for table in self.tables if table.leads]

    @property
    def metrics(self) -> list[str]:
        """Metrics of the tables, in their order."""
        return list(dict.fromkeys(table.metric for table in self.tables))

    @cached_property
    def comparison(self) -> SettingComparison:
        """Intervals, groups, pairs and ranks."""
        return SettingComparison(self.data.comparison, self.setting)

    @cached_property
    def costs(self) -> list[MethodCost]:
        """What each method cost."""
        return costs.method_costs(self.rows, self.labels, self.data.records)

    @cached_property
    def errors(self) -> ErrorAnalysis:
        """First answers of all methods and how far wrong ones are; empty with a ``problem`` if they cannot be read."""
        data = self.data
        if data.store is None:
            return ErrorAnalysis()
        try:
            questions = error_analysis.question_errors(
                data.store, self.tables, self.rows, self.labels, data.records, data.warn
            )
            return ErrorAnalysis(tuple(questions), WordNet(error_analysis.synsets_of(self.setting.dataset)))
        except Exception as error:
            data.warn(f"errors by WordNet distance left out: {type(error).__name__}: {error}")
            return ErrorAnalysis(problem=str(error))

    @cached_property
    def ablations(self) -> tuple[AblationTable, ...]:
        """Ablations of the setting's methods."""
        return self.data.ablations(self.setting)

    @cached_property
    def notes(self) -> list[str]:
        """What the records note on how models were selected."""
        return tables.notes_of(self.data.scored, self.setting)

    @cached_property
    def extensions(self) -> list[tuple[str, str, str]]:
        """Method, protocols and text of each answer that the method's paper does not define."""
        return tables.extensions(self.tables)

    @cached_property
    def fits(self) -> dict[str, list[Record]]:
        """One record a fit and seed of each label."""
        fits: dict[str, list[Record]] = {}
        for configuration, of_method in self.rows.groupby(tables.METHOD_COLUMNS, sort=False):
            keys = dict.fromkeys(of_method["key"])
            records = [self.data.records[key] for key in keys if key in self.data.records]
            fits[self.labels[configuration]] = _one_a_fit(records)
        return fits

    @cached_property
    def selector_picks(self) -> list[SelectorPicks]:
        """What each way to select would have picked, where records have checkpoints (``--selectors``)."""
        picks = []
        for (protocol, *configuration), of_method in self.rows.groupby(
            ["protocol", *tables.METHOD_COLUMNS], sort=False
        ):
            keys = dict.fromkeys(of_method["key"])
            records = [self.data.records[key] for key in keys if key in self.data.records]
            picks += selector_picks.picks(self.labels[tuple(configuration)], str(protocol), records)
        return picks

    @cached_property
    def validations(self) -> dict[str, dict[str, list[list[tuple[int, float]]]]]:
        """By protocol and label: the validation curve (step, score) of each fit that has one."""
        curves: dict[str, dict[str, list[list[tuple[int, float]]]]] = {}
        for (protocol, *configuration), of_method in self.rows.groupby(
            ["protocol", *tables.METHOD_COLUMNS], sort=False
        ):
            keys = dict.fromkeys(of_method["key"])
            records = [self.data.records[key] for key in keys if key in self.data.records]
            known = [curve for record in _one_a_fit(records) if (curve := validation_curve(record))]
            if known:
                curves.setdefault(str(protocol), {})[self.labels[tuple(configuration)]] = known
        return curves


def _one_a_fit(records: Iterable[Record]) -> list[Record]:
    """One record of each fit: cells that show a method the same data share one."""
    return list({(one.fit.fit_id, one.fit.learning_rate, one.cell.seed): one for one in records}.values())


def validation_curve(record: Record) -> list[tuple[int, float]]:
    """Step and validation score of a fit, in order; empty for one without at least two scores."""
    made = [(one.get("step"), one.get("score")) for one in record.fit.validation]
    curve = [
        (int(step), float(score))
        for step, score in made
        if isinstance(step, int | float) and isinstance(score, int | float) and math.isfinite(score)
    ]
    return curve if len(curve) > 1 else []
