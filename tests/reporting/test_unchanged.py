"""What a report does again: nothing where nothing changed, one plot where one file was altered."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from benchmarks.reporting import files, plots
from benchmarks.reporting.data import ReportData
from benchmarks.reporting.digests import INPUTS
from benchmarks.reporting.files import write_report
from benchmarks.reporting.plot_collector import PlotCollector, PlotPool
from benchmarks.store.files import ResultStore
from benchmarks.store.frame import load_results


@pytest.fixture
def copied(filled: ResultStore, tmp_path: Path) -> ResultStore:
    """A store that a test may change."""
    shutil.copytree(filled.root, tmp_path / "copied", copy_function=shutil.copy2)
    return ResultStore(tmp_path / "copied")


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the functions that drew since the list was cleared."""
    names: list[str] = []
    draw = plots.draw_plot

    def counted(function: str, arguments: tuple[Any, ...], folder: Path) -> tuple[list[Path], str]:
        names.append(function)
        return draw(function, arguments, folder)

    monkeypatch.setattr(plots, "draw_plot", counted)
    return names


def report(store: ResultStore, folder: Path, said: list[str] | None = None, **options: Any) -> list[Path]:
    say = (lambda line: None) if said is None else said.append
    data = ReportData(load_results(store.root, say), store=store, resamples=100, report=say)
    return write_report(data, folder, **options)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def stamps(folder: Path) -> dict[str, int]:
    return {str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def test_an_unchanged_report_is_skipped_and_says_the_same(
    copied: ResultStore, tmp_path: Path, drawn: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (copied.root / "cards" / "methods" / "good.json").write_text("{")  # something to say
    first: list[str] = []
    again: list[str] = []
    written = report(copied, tmp_path / "out", first)
    before = stamps(tmp_path / "out")
    assert drawn
    assert (tmp_path / "out" / INPUTS).is_file()
    drawn.clear()
    monkeypatch.setattr(files, "_write", lambda *_: pytest.fail("it was written again"))
    assert report(copied, tmp_path / "out", again) == written
    assert not drawn
    assert stamps(tmp_path / "out") == before
    assert again == first


@pytest.mark.parametrize("change", ["record", "card", "settings", "resamples"])
def test_a_changed_input_makes_the_report_anew(copied: ResultStore, tmp_path: Path, change: str) -> None:
    report(copied, tmp_path / "out")
    before = (tmp_path / "out" / INPUTS).read_bytes()
    options: dict[str, Any] = {}
    if change == "record":
        next((copied.root / "cells").rglob("good-*.json")).unlink()
    elif change == "card":
        card = copied.root / "cards" / "methods" / "good.json"
        card.write_text(card.read_text(encoding="utf-8").replace("A good method", "Another name"), encoding="utf-8")
    elif change == "settings":
        copied.write_resolved({"methods": ["good"]})
    else:
        options["resamples"] = 200
    data = ReportData(load_results(copied.root), store=copied, **{"resamples": 100, **options})
    write_report(data, tmp_path / "out")
    assert (tmp_path / "out" / INPUTS).read_bytes() != before
    if change == "card":
        assert "Another name" in (tmp_path / "out" / "index.html").read_text(encoding="utf-8")


@pytest.mark.parametrize("how", ["altered", "removed"])
def test_an_altered_plot_is_drawn_again_and_no_other(
    copied: ResultStore, tmp_path: Path, drawn: list[str], how: str
) -> None:
    out = tmp_path / "out"
    report(copied, out)
    whole = contents(out)
    drawn.clear()
    victim = next((out / "plots").rglob("loss.svg"))
    if how == "altered":
        stamp = victim.stat()
        victim.write_bytes(victim.read_bytes().replace(b"</svg>", b"<!---></svg>"))
        os.utime(victim, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    else:
        victim.unlink()
    report(copied, out)
    assert drawn == ["loss_curves"]
    assert contents(out) == whole


def test_an_altered_page_is_written_again_without_drawing(
    copied: ResultStore, tmp_path: Path, drawn: list[str]
) -> None:
    out = tmp_path / "out"
    report(copied, out)
    whole = contents(out)
    drawn.clear()
    (out / "index.html").write_text("nothing")
    report(copied, out)
    assert not drawn
    assert contents(out) == whole


@pytest.mark.parametrize("damage", ["", "[]", "{", '{"plots": {"a": 1}, "report": {}}'])
def test_a_damaged_note_of_the_inputs_costs_no_more_than_time(copied: ResultStore, tmp_path: Path, damage: str) -> None:
    out = tmp_path / "out"
    report(copied, out)
    whole = contents(out)
    (out / INPUTS).write_text(damage)
    report(copied, out)
    assert contents(out) == whole


def test_other_processes_draw_the_same_files(copied: ResultStore, tmp_path: Path) -> None:
    report(copied, tmp_path / "one")
    report(copied, tmp_path / "two", workers=1)
    one, two = contents(tmp_path / "one"), contents(tmp_path / "two")
    assert one == two


class Deadly:
    """Ends the process that reads it."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os._exit, (3,)


def test_a_plot_whose_process_dies_is_one_line_and_the_others_are_kept(
    tmp_path: Path,
) -> None:
    said: list[str] = []
    pool = PlotPool(1)
    collector = PlotCollector(tmp_path, said.append, pool)
    collector.add("loss_curves", {"good": [[(1, 3.0), (2, 2.0), (3, 1.0)]]}, kind="training", title="before")
    collector.add("loss_curves", Deadly(), kind="training", title="deadly")
    collector.add("loss_curves", {"good": [[(1, 1.0), (2, 2.0), (3, 3.0)]]}, kind="training", title="after")
    try:
        found = collector.plots()
    finally:
        pool.close()
    assert [plot.title for plot in found] == ["before", "deadly", "after"]
    assert [bool(plot.files) for plot in found] == [True, False, True]
    assert said == ["plot of deadly left out: the process that drew it died"]
