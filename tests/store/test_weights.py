"""Kept weights: whole or absent, found from a record, and one of the rivals under ``best``."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.store import weights as module
from benchmarks.store.files import ResultStore
from benchmarks.store.weights import (
    FIT,
    FitWeights,
    WeightsError,
    WeightStore,
    fit_key,
    read_kept,
    rivals_key,
)


@pytest.fixture(autouse=True)
def _no_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def inputs_of(seed: int = 0, rate: float = 0.1, fit_id: str = "ucdr-line", **task: Any) -> dict[str, Any]:
    return {
        "scoring": 1,
        "method": {"name": "coop", "version": 1, "config": {"learning_rate": rate}, "learning_rates": [], "files": {}},
        "backbone": {"weights_hash": "w"},
        "dataset": {"name": "tiny", "data_hash": "d"},
        "task": {"protocol": "ucdr", "split": "line", "rules": "clean", "fit_id": fit_id, **task},
        "select": "val",
        "seed": seed,
    }


def some(score: float | None, text: bytes = b"x") -> FitWeights:
    return FitWeights({"method.json": text, "README.md": b"card"}, score)


def test_records_of_one_fit_share_their_weights_and_another_seed_or_setting_does_not() -> None:
    one = inputs_of()
    assert fit_key(one) == fit_key(inputs_of(protocol="uccdr", split="flat", retrievals={"unseen": "1"}))
    others = [inputs_of(seed=1), inputs_of(rate=0.2), inputs_of(fit_id="ucdr-flat")]
    assert len({fit_key(one), *map(fit_key, others)}) == 4
    assert [rivals_key(other) == rivals_key(one) for other in others] == [True, True, False]


@settings(deadline=None, max_examples=25)
@given(st.lists(st.tuples(st.integers(0, 3), st.sampled_from([0.1, 0.2]), st.none() | st.floats(0, 1)), min_size=1))
def test_best_keeps_the_highest_score_whatever_the_order(tmp_path_factory, fits) -> None:  # type: ignore[no-untyped-def]
    fits = list({(seed, rate): (seed, rate, score) for seed, rate, score in fits}.values())
    store = WeightStore(tmp_path_factory.mktemp("store"))
    for seed, rate, score in fits:
        store.write(inputs_of(seed, rate), some(score), "best")
    (kept,) = store.all()
    top = max(-1.0 if score is None else score for _, _, score in fits)
    assert (-1.0 if kept.validation is None else kept.validation) == top
    assert kept.seed == min(seed for seed, _, score in fits if (-1.0 if score is None else score) == top)


def test_best_removes_nothing_of_another_split_and_nothing_that_all_kept(tmp_path: Path) -> None:
    store = WeightStore(tmp_path)
    store.write(inputs_of(0), some(0.1), "all")
    store.write(inputs_of(0, fit_id="ucdr-flat"), some(0.1), "best")
    store.write(inputs_of(1), some(0.5), "best")
    store.write(inputs_of(2), some(0.7), "best")
    assert sorted(kept.seed for kept in store.all()) == [0, 0, 2]
    assert store.write(inputs_of(3), some(0.6), "best") is None
    assert store.covers(inputs_of(3), "best") and not store.covers(inputs_of(3), "all")


def test_a_writer_that_is_killed_leaves_the_former_weights_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, written = WeightStore(tmp_path), []
    folder = store.write(inputs_of(), some(0.5, b"first"), "all")
    assert folder is not None

    def killed(path: Path, data: bytes) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        written.append(path)
        if len(written) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(module, "write_atomically", killed)
        store.write(inputs_of(), some(0.5, b"second"), "all")
    assert (folder / "method.json").read_bytes() == b"first"
    store.write(inputs_of(), some(0.5, b"second"), "all")
    assert (folder / "method.json").read_bytes() == b"second"
    assert [path for path in folder.parent.iterdir() if path != folder] == []


def test_folders_of_a_killed_writer_are_cleaned_away(tmp_path: Path) -> None:
    store = WeightStore(tmp_path)
    folder = store.write(inputs_of(), some(0.5), "all")
    assert folder is not None
    name = next(iter(module.temporary_name(folder).name.split("-")))
    left = folder.with_name(f"{module.temporary_name(folder).name.rsplit('-', 2)[0]}-999999999-0.tmp")
    left.mkdir()
    (left / "method.json").write_text(name)
    assert ResultStore(tmp_path).clean() == 1
    assert not left.exists() and folder.is_dir()


@pytest.mark.parametrize("damage", ["cut", "gone", "not json", "newer", "other key"])
def test_damaged_weights_are_named_in_one_line(tmp_path: Path, damage: str) -> None:
    folder = WeightStore(tmp_path).write(inputs_of(), some(0.5), "all")
    assert folder is not None
    described = json.loads((folder / FIT).read_text())
    if damage == "cut":
        (folder / "method.json").write_bytes(b"")
    elif damage == "gone":
        (folder / "method.json").unlink()
    elif damage == "not json":
        (folder / FIT).write_text("{")
    else:
        changed = {"schema": 99} if damage == "newer" else {"key": "0" * 32}
        (folder / FIT).write_text(json.dumps(described | changed))
    with pytest.raises(WeightsError, match=r"method\.json|fit\.json") as caught:
        read_kept(folder).check()
    assert "\n" not in str(caught.value)


def test_the_card_may_change_and_a_read_only_store_writes_nothing(tmp_path: Path) -> None:
    store = WeightStore(tmp_path)
    store.write_card(inputs_of(), "too early")
    assert not list(tmp_path.iterdir())
    assert WeightStore(tmp_path, read_only=True).write(inputs_of(), some(0.5), "all") is None
    assert not list(tmp_path.iterdir())
    folder = store.write(inputs_of(), some(0.5), "all")
    assert folder is not None
    WeightStore(tmp_path, read_only=True).write_card(inputs_of(), "no")
    store.write_card(inputs_of(), "scores")
    assert (folder / "README.md").read_text() == "scores"
    read_kept(folder).check()
