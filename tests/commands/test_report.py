"""``benchmarks.report``: what it refuses, and that it then leaves the report that was there."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.report import main
from benchmarks.store.files import ResultStore
from benchmarks.store.pack_writer import write_pack
from tests.support.made_up_results import CLASSES, PER_CLASS, add, retrieval_table


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    store = ResultStore(tmp_path / "results")
    for method in ("coop", "pros"):
        add(store, method, "line", retrieval_table(np.random.default_rng(len(method)).random(CLASSES * PER_CLASS)))
    return store


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[str]:
    try:
        assert main([str(argument) for argument in arguments]) == 2
    except SystemExit as stopped:
        assert stopped.code == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[-1].startswith("benchmarks.report: ")
    return err.splitlines()


@pytest.mark.parametrize("what", ["records", "pack"])
def test_a_folder_of_damaged_records_leaves_the_report_that_was_there(
    store: ResultStore, tmp_path: Path, capsys: pytest.CaptureFixture[str], what: str
) -> None:
    results, out = store.root, tmp_path / "report"
    if what == "pack":
        results = tmp_path / "pack"
        write_pack(store, results)
    assert main([str(results), "--out", str(out), "--resamples", "100"]) == 0
    capsys.readouterr()
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in out.rglob("*") if path.is_file()}
    damaged = [results / "records.parquet"] if what == "pack" else store.paths()
    for path in damaged:
        path.write_text("{")
    lines = refused(capsys, results, "--out", out)
    assert lines[-1] == f"benchmarks.report: {results} holds no readable record"
    assert [line.split(": ")[0] for line in lines[:-1]] == [str(path) for path in damaged]
    assert {p: (p.read_bytes(), p.stat().st_mtime_ns) for p in out.rglob("*") if p.is_file()} == before


def test_one_damaged_record_of_several_is_told(store: ResultStore, capsys: pytest.CaptureFixture[str]) -> None:
    store.paths()[0].write_text("{")
    assert main([str(store.root), "--resamples", "100"]) == 1
    assert "unreadable records: 1; each is named above" in capsys.readouterr().err


def test_a_folder_that_cannot_be_read_is_one_line(
    store: ResultStore, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.scandir

    def closed(path: Any = ".") -> Any:
        if path == store.root:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", closed)
    (line,) = refused(capsys, store.root)
    assert line == f"benchmarks.report: {store.root}: cannot be read (Permission denied): give yourself access"


def test_options_without_a_usable_value_are_named(store: ResultStore, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        ((store.root, "--out", ""), "--out: is empty; name one, or leave the option out"),
        ((store.root, "--out", " "), "--out: is empty"),
        (("",), "RESULTS: is empty; name a folder"),
        ((store.root, "--resamples", "0"), "--resamples: 0 is too few: 1 or more, 10000 are usual"),
        ((store.root, "--resamples", "-5"), "--resamples: -5 is too few"),
        ((store.root, "--resamples", "many"), "--resamples"),
    ):
        (line,) = refused(capsys, *arguments)
        assert message in line
    assert not (store.root / "report").exists()
    assert main([str(store.root), "--resamples", "1"]) == 0
