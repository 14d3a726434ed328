"""Write everything printable from a results folder: leaderboards, plots and the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.reporting import leaderboard
from benchmarks.store.files import ResultStore, write_atomically

#: Name of the page among the files of a report.
PAGE = "index.html"


def write_report(
    frame: pd.DataFrame,
    folder: Path,
    *,
    store: ResultStore,
    command: str = "",
    report: Callable[[str], None] | None = None,
    resamples: int | None = None,
    images: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write ``leaderboard.{md,csv,tex}``, ``plots/`` and the page `PAGE`; returns the files, the Markdown first.

    ``published.md`` beside them has the papers' figures of these data sets, where there are any.

    Args:
        frame: rows of `benchmarks.store.frame.load_results` of ``store``.
        folder: where to write.
        store: where per-query values, loss curves and cards are read from.
        command: the command line that made this, shown in the files.
        report: gets one line for each plot, section or file that could not be used; none of them costs the tables.
        resamples: of the tests between methods; None: as `benchmarks.reporting.method_comparison` chooses.
        images: ``data_root`` of the data sets, for galleries and the map of embeddings; None: neither.
    """
    from benchmarks.reporting import published
    from benchmarks.reporting.ablation_tables import is_ablated
    from benchmarks.reporting.figures import Easel, draw
    from benchmarks.reporting.latex import latex
    from benchmarks.reporting.method_comparison import Comparison, compare_methods
    from benchmarks.reporting.page import Drawn, Material, write_page

    problems: list[str] = []

    def warn(line: str) -> None:
        line = " ".join(line.split())  # names may hold line breaks
        problems.append(line)
        (report or (lambda text: None))(line)

    everything = leaderboard.newest(frame)
    told = leaderboard.current(frame)
    own, listed = everything[~is_ablated(everything)], told[~is_ablated(told)]
    comparison: Comparison | None = _attempt(
        "tests between methods", warn, lambda: compare_methods(store, own, resamples=resamples, report=warn)
    )
    counted = {*told["key"]}
    records = {record.key: record for record in store.records() if record.key in counted}
    texts: dict[str, Callable[[], str]] = {
        "leaderboard.md": lambda: leaderboard.markdown(listed, command, records.values()),
        "leaderboard.csv": lambda: leaderboard.csv_text(listed),
        "leaderboard.tex": lambda: latex(own, comparison, command),
    }
    beside: pd.DataFrame | None = _attempt("the published figures", warn, lambda: published.beside(listed))
    if beside is not None:
        near = beside[beside["ours"].notna() | beside["dataset"].isin(set(listed["dataset"]))]
        if len(near):
            texts["published.md"] = lambda: published.markdown(near)
    if len(own) < len(everything):
        texts["ablations.csv"] = lambda: leaderboard.csv_text(everything)
    files = []
    for name, make in texts.items():
        text = make()
        write_atomically(folder / name, text.encode())
        files.append(folder / name)
    drawn: dict[leaderboard.Setting, Drawn] = {}
    settings = leaderboard.settings_of(own)
    for number, setting in enumerate(settings, start=1):
        place = folder / "plots" if len(settings) == 1 else folder / "plots" / f"setting-{number}"
        drawn[setting] = draw(store, own, everything, setting, comparison, records, place, warn)
        files += [path for plot in drawn[setting].plots for path in plot.files]
    shown = None
    if images is not None:
        from benchmarks.reporting.galleries import embedding_map, galleries
        from benchmarks.reporting.plots import gallery_sheet

        shown = _attempt("retrieval galleries", warn, lambda: galleries(store, own, records, warn, **images))
        if shown is not None and shown.queries:
            files += _attempt("the gallery sheet", warn, lambda: gallery_sheet(shown, folder / "plots")) or []
        if settings:
            easel = Easel(warn)
            title, caption = "Embeddings of the frozen backbone", "Colour: class; shape: domain."
            place = folder / "plots"
            easel.draw(partial(embedding_map, own, place, **images), "embeddings", title, caption)
            of_first = drawn[settings[0]]
            drawn[settings[0]] = replace(of_first, plots=(*of_first.plots, *easel.plots))
            files += [path for plot in easel.plots for path in plot.files]
    material = Material(store, told, listed, records, comparison, drawn, shown, beside, command, tuple(problems))
    page = _attempt("the page", warn, lambda: write_page(material, folder / PAGE))
    return files if page is None else [*files, page]


def _attempt(what: str, warn: Callable[[str], None], make: Callable[[], Any]) -> Any:
    """What ``make`` returns; if it fails, None and a line that says so. Disk errors are the caller's."""
    try:
        return make()
    except OSError:
        raise
    except Exception as error:
        warn(f"{what} left out: {type(error).__name__}: {error}")
        return None
