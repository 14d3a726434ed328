"""Frames of results built by columns: those of one dictionary a row, whatever the records are like."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.store.files import ResultStore
from benchmarks.store.frame import Shared, _about, _Rows, _unreadable_row, frame_and_records, load_results
from benchmarks.store.records import Cost, Environment, Fit, GalleryScores, Record, Unreadable
from tests.store.test_files import cell, record

FIXTURES = Path(__file__).parents[1] / "fixtures"


def plain_frame(entries: list[Record | Unreadable], weights: str = "") -> pd.DataFrame:
    """The frame of some entries of a store, one dictionary a row: the plain form of ``_Rows``."""
    rows: list[dict[str, Any]] = []
    for one in entries:
        if isinstance(one, Unreadable):
            rows.append(_unreadable_row(one))
            continue
        common = _about(one) | {"weights": weights, "created": one.created}
        for gallery, headline in one.galleries.items():
            scores = one.scores.get(gallery)
            extension = one.method.get("extensions", {}).get(gallery, "")
            common |= {"gallery": gallery, "headline": tuple(headline), "extension": extension}
            if scores is None:
                rows.append({**common, "metric": None, "value": math.nan})
                continue
            counts = {name: getattr(scores, name) for name in ("n_queries", "n_without_relevant", "gallery_size")}
            rows += [{**common, **counts, "metric": name, "value": value} for name, value in scores.metrics.items()]
    return pd.DataFrame(rows)


def by_columns(entries: list[Record | Unreadable], compact: bool) -> pd.DataFrame:
    rows = _Rows(compact)
    for one in entries:
        if isinstance(one, Unreadable):
            rows.add_unreadable(_unreadable_row(one))
        else:
            rows.add(one, "")
    return rows.frame()


NUMBERS = st.one_of(st.none(), st.floats(0, 1))
METRICS = st.dictionaries(st.sampled_from(["map@all", "recall@1", "h[image]"]), st.floats(0, 1), max_size=3)
SCORES = st.builds(GalleryScores, METRICS, st.integers(0, 9), st.integers(1, 9), st.just("cosine"), st.integers(0, 2))
RECORDS = st.builds(
    lambda status, scores, galleries, rate, seconds, limit, seed, notes: record(
        status,
        cell=cell(limit=limit, seed=seed, config={"rate": rate}),
        galleries={name: ["map@all"] for name in galleries},
        scores={name: one for name, one in scores.items() if name in galleries},
        fit=Fit("f", 3, learning_rate=rate),
        cost=Cost(seconds, trainable_parameters=limit),
        notes=notes,
        reason="" if status == "ok" else "no",
    ),
    st.sampled_from(["ok", "failed", "skipped"]),
    st.dictionaries(st.sampled_from(["unseen", "mixed"]), SCORES, max_size=2),
    st.lists(st.sampled_from(["unseen", "mixed", "target"]), max_size=3, unique=True),
    NUMBERS,
    st.dictionaries(st.sampled_from(["fit", "rank"]), st.floats(0, 9), max_size=2),
    st.one_of(st.none(), st.integers(1, 9)),
    st.integers(0, 3),
    st.lists(st.text(max_size=3), max_size=2),
)
LOST = st.just(Unreadable("cells/tiny/ucdr/zero_shot-line-s0-" + "ab" * 16 + ".json", "cut off"))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.one_of(RECORDS, LOST), max_size=6))
def test_columns_are_those_of_one_dictionary_a_row(entries: list[Record | Unreadable]) -> None:
    plain, built = plain_frame(entries), by_columns(entries, compact=False)
    if plain.empty:
        assert built.empty and {"metric", "value", "weights"} <= set(built.columns)
        return
    pd.testing.assert_frame_equal(built, plain, check_exact=True)
    compact = by_columns(entries, compact=True)
    assert list(compact) == list(plain)
    pd.testing.assert_frame_equal(compact, plain, check_exact=True, check_dtype=False)
    assert not any(isinstance(kind, pd.StringDtype) for kind in compact.dtypes)


def test_equal_parts_of_records_are_held_once() -> None:
    losses = [{"step": 0, "loss": 1.5}]
    texts = [record(cell=cell(seed=n), fit=Fit("f1", losses=list(losses))).to_json() for n in (0, 1)]
    other = record(
        environment=Environment({"torch": "2"}, device="cpu"), fit=Fit("f1", losses=[{"step": 0, "loss": 1}])
    )
    read = [Record.from_json(text) for text in (*texts, other.to_json())]
    shared = Shared()
    held = [shared.record(one) for one in read]
    assert [one.to_json() for one in held] == [one.to_json() for one in read]
    assert held == read
    first, second, third = held
    assert first.fit.losses is second.fit.losses
    assert first.inputs["dataset"] is second.inputs["dataset"] is third.inputs["dataset"]
    assert first.cell.config is second.cell.config
    assert third.fit.losses is not first.fit.losses, "1 is not 1.5"


@pytest.mark.parametrize("compact", [False, True])
def test_a_store_has_the_same_rows_either_way(tmp_path: Path, compact: bool) -> None:
    store = ResultStore(tmp_path)
    for seed in range(3):
        inputs = {"seed": seed, "dataset": {"data_hash": "ab" * 32}, "backbone": {"weights_hash": "cd" * 32}}
        written = store.write(record(["ok", "failed", "ok"][seed], inputs=inputs, cell=cell(seed=seed)))
    store.path(written.cell, written.key).write_text("{")
    lines: list[str] = []
    frame, records = frame_and_records(tmp_path, lines.append, compact=compact)
    expected = plain_frame(list(ResultStore(tmp_path).entries()))
    pd.testing.assert_frame_equal(frame, expected, check_exact=True, check_dtype=not compact)
    assert len(lines) == 1 and len(records) == 2
    pd.testing.assert_frame_equal(load_results(tmp_path, lines.append), expected, check_exact=True)


def test_lists_of_best_images_need_not_be_read(tmp_path: Path) -> None:
    from tests.store.test_files import per_query

    store = ResultStore(tmp_path)
    written = store.write(record(), per_query())
    whole, short = (store.per_query_table(written, lists=lists) for lists in (True, False))
    assert {"top_keys", "top_scores"} == set(whole.column_names) - set(short.column_names)
    assert short.equals(whole.select(short.column_names))


def test_the_key_of_parsed_inputs_is_that_of_the_inputs() -> None:
    inputs = {"b": [1, 2.5, None], "a": {"ü": True}, "seed": 0}
    one = record(inputs=inputs)
    assert Record.from_json(one.to_json()).key == one.key
    changed = json.loads(one.to_json())
    changed["inputs"]["b"][1] = math.nan  # json reads it; the hash is that of null
    with pytest.raises(ValueError, match="not the hash"):
        Record.from_json(json.dumps(changed))
    nothing = dataclasses.replace(one, inputs={"b": None})
    with pytest.raises(ValueError, match="not the hash"):
        Record.from_json(nothing.to_json())
