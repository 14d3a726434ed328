"""Write a report: leaderboards in every format, plots and the page."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.reporting import galleries, plot_collector, plots
from benchmarks.reporting.csv_text import ablations_csv, leaderboard_csv, pairs_csv
from benchmarks.reporting.data import ReportData
from benchmarks.reporting.digests import PlotDigests, report_digest
from benchmarks.reporting.latex import leaderboard_latex
from benchmarks.reporting.markdown import leaderboard_markdown, published_markdown
from benchmarks.reporting.page import render
from benchmarks.reporting.plot_collector import PlotPool
from benchmarks.reporting.types import Galleries, Plot, SettingPlots
from benchmarks.store.files import write_atomically

#: Name of the page among the files of a report.
PAGE = "index.html"


def write_report(
    data: ReportData, folder: Path, *, images: Mapping[str, Any] | None = None, workers: int = 0
) -> list[Path]:
    """Write ``leaderboard.{md,csv,tex}``, ``plots/`` and the page `PAGE`; returns the files, the Markdown first.

    ``pairs.csv`` has the tests of all pairs of methods; ``published.md`` the papers' figures of these data sets, where
    there are any; ``ablations.csv`` the scores of ablations. Where nothing changed since the folder was written,
    nothing is written again (`benchmarks.reporting.digests`), and the same problems are reported as then.

    Args:
        data: of the report; a part that fails is reported, and does not stop the tables.
        folder: where to write.
        images: ``data_root`` of the data sets, for galleries and the map of embeddings; None: neither.
        workers: processes that draw plots beside this one.

    Raises:
        OSError: the folder cannot be written.
    """
    digests = PlotDigests(folder)
    key = "" if images is not None else report_digest(data)
    if key and (unchanged := digests.report(key)) is not None:
        files, problems = unchanged
        for line in problems:
            data.warn(line)
        return files
    pool = PlotPool(workers)
    try:
        files = _write(data, folder, images, pool, digests)
    finally:
        pool.close()
    digests.write(key, files, data.problems)
    return files


def _write(
    data: ReportData, folder: Path, images: Mapping[str, Any] | None, pool: PlotPool, digests: PlotDigests
) -> list[Path]:
    planned = plot_collector.draw_report(data, folder / "plots", pool, digests)
    files = []
    for name, make in _texts(data).items():
        write_atomically(folder / name, make().encode())
        files.append(folder / name)
    drawn = {one.setting: plots_of.finished() for one, plots_of in zip(data.settings, planned, strict=True)}
    files += [path for one in drawn.values() for plot in one.plots for path in plot.files]
    gallery = None
    if images is not None:
        gallery = data.attempt("retrieval galleries", lambda: galleries.galleries(data, **images))
        if gallery is not None and gallery.queries:
            files += data.attempt("the gallery sheet", lambda: _gallery_sheet(gallery, folder / "plots")) or []
        if data.settings:
            first = data.settings[0].setting
            plot = embedding_plot(data, folder / "plots", images)
            drawn[first] = SettingPlots((*drawn[first].plots, plot), drawn[first].notes)
            files += plot.files
    page = data.attempt("the page", lambda: render(data, drawn, gallery, folder))
    if page is not None:
        write_atomically(folder / PAGE, page.encode())
        files.append(folder / PAGE)
    return files


def _texts(data: ReportData) -> dict[str, Callable[[], str]]:
    """The text files of a report: name, and what writes it."""
    texts: dict[str, Callable[[], str]] = {
        "leaderboard.md": lambda: leaderboard_markdown(data),
        "leaderboard.csv": lambda: leaderboard_csv(data),
        "leaderboard.tex": lambda: leaderboard_latex(data),
        "pairs.csv": lambda: pairs_csv(data),
    }
    if data.published is not None:
        datasets = set(data.listed["dataset"])
        near = data.published[data.published["ours"].notna() | data.published["dataset"].isin(datasets)]
        if len(near):
            texts["published.md"] = lambda: published_markdown(near)
    if len(data.scored) < len(data.newest):
        texts["ablations.csv"] = lambda: ablations_csv(data)
    return texts


def _gallery_sheet(gallery: Galleries | None, folder: Path) -> list[Path]:
    return [] if gallery is None else plots.gallery_sheet(gallery, folder)


def embedding_plot(data: ReportData, folder: Path, images: Mapping[str, Any]) -> Plot:
    """The map of embeddings of the first setting; a failed plot where data set or backbone are not there."""
    title = "Embeddings of the frozen backbone"
    plot = Plot(title, "Colour: class; shape: domain.", "embeddings")
    try:
        files = plots.embedding_points(galleries.embedding_map(data.settings[0].setting, **images), folder)
    except Exception as error:
        reason = f"{type(error).__name__}: {error}"
        data.warn(f"plot of {title} left out: {reason}")
        return Plot(plot.title, plot.caption, plot.kind, failed=reason)
    return Plot(plot.title, plot.caption, plot.kind, files=tuple(files))
