"""What an executor reports while it runs a plan, and what it returns."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from benchmarks.runner.plan import FitGroup
    from benchmarks.store.records import CellId


class Progress(Protocol):
    """Receives the events of a run; :class:`~benchmarks.runner.progress.RunProgress` displays them."""

    def cell(self, cell: CellId, status: str, reason: str = "") -> None:
        """A cell is done (``status`` as in the record, or ``cached``)."""

    def fitting(self, group: FitGroup) -> None:
        """A model is about to be fitted."""

    def log(self, **numbers: Any) -> None:
        """Numbers from inside ``fit``."""

    def images(self, count: int) -> None:
        """Images were encoded."""


@dataclass
class Outcome:
    """Number of cells by status; ``cached`` ones were finished before and not run again. ``problems``: what else went
    wrong, one line each."""

    counts: dict[str, int] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def add(self, status: str) -> None:
        """Count one cell."""
        self.counts[status] = self.counts.get(status, 0) + 1

    @property
    def failed(self) -> int:
        """Cells that failed."""
        return self.counts.get("failed", 0)


class FailFast(Exception):  # noqa: N818 - not an error: it ends a run under --fail-fast
    """The first failure under ``--fail-fast``."""


class SilentProgress:
    """A :class:`Progress` that does nothing."""

    def cell(self, cell: CellId, status: str, reason: str = "") -> None:
        """Nothing."""

    def fitting(self, group: FitGroup) -> None:
        """Nothing."""

    def log(self, **numbers: Any) -> None:
        """Nothing."""

    def images(self, count: int) -> None:
        """Nothing."""
