"""Carrying out a plan: resumed, stopped at a failure or by an interrupt, on a full disk."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from torch import Tensor

from benchmarks.runner.settings import Settings
from benchmarks.store.files import ResultStore
from benchmarks.store.records import Record
from tests.runner.probe import Probe, run


def test_a_resumed_sweep_fits_only_what_is_missing(settings: Settings) -> None:
    planned, _, store, _ = run(settings)
    before = {record.key: record.scores for record in store.records()}
    gone = next(cell for cell in planned.cells if cell.id.protocol == "udcdr" and cell.id.split == "line")
    store.path(gone.id, gone.key).unlink()
    Probe.fits.clear()
    _, outcome, _, _ = run(settings)
    assert outcome.counts == {"ok": 1, "cached": 8}
    assert len(Probe.fits) == 1
    assert {record.key: record.scores for record in store.records()} == before
    Probe.fits.clear()
    assert run(settings)[1].counts == {"cached": 9}
    assert not Probe.fits
    assert run(dataclasses.replace(settings, force=True))[1].counts == {"ok": 9}


def test_fail_fast_stops_at_the_first_failure(settings: Settings) -> None:
    settings = dataclasses.replace(settings, methods=("nan", "probe"), protocols=("ucdr",), fail_fast=True)
    _, outcome, store, _ = run(settings)
    assert outcome.counts == {"failed": 1}
    assert len(list(store.records())) == 1


def test_an_interrupt_leaves_whole_records_and_the_next_run_goes_on(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, asked = Probe.encode_images, []

    def interrupted(self: Probe, pixels: Tensor) -> Tensor:
        asked.append(1)
        if len(asked) == 12:
            raise KeyboardInterrupt
        return real(self, pixels)

    monkeypatch.setattr(Probe, "encode_images", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(settings)
    monkeypatch.setattr(Probe, "encode_images", real)
    done = [record.status for record in ResultStore(settings.out).records()]
    assert done
    assert set(done) == {"ok"}
    assert run(settings)[1].counts == {"cached": len(done), "ok": 9 - len(done)}


def test_a_full_disk_does_not_stop_the_sweep(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    real, written = ResultStore.write, []

    def full(self: ResultStore, record: Record, per_query: Any = None) -> Record:
        written.append(record)
        if len(written) == 1:
            raise OSError(28, "No space left on device")
        return real(self, record, per_query)

    monkeypatch.setattr(ResultStore, "write", full)
    _, outcome, _, _ = run(dataclasses.replace(settings, protocols=("ucdr",)))
    assert outcome.counts == {"failed": 1, "ok": 2}
