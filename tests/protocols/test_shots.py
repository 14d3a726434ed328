"""``--shots``: at most K labelled images a class and domain, nested in K, the same in any order, part of the key."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks import load_results
from benchmarks.protocols.dg import PROTOCOL as DG
from benchmarks.protocols.task import Retrieval, Task, with_shots
from benchmarks.protocols.uccdr import PROTOCOL as UCCDR
from benchmarks.protocols.ucdr import PROTOCOL as UCDR
from benchmarks.protocols.uda import PROTOCOL as UDA
from benchmarks.protocols.udcdr import PROTOCOL as UDCDR
from benchmarks.run import main as run
from benchmarks.runner.settings import SettingsError, resolve
from benchmarks.store.files import ResultStore
from tests.support.tiny_dataset import TinyShapes

DATASET = TinyShapes()
TABLE = DATASET.table
TASKS = [one.task(DATASET, one.splits(DATASET)[0]) for one in (UCDR, UCCDR, UDA, DG)]


def groups(rows: np.ndarray) -> Counter[tuple[str, str]]:
    part = TABLE.iloc[rows]
    return Counter(zip(part["class"], part["domain"], strict=True))


def labelled(task: Task) -> list[np.ndarray]:
    """The rows whose labels training or selection reads, by role."""
    if task.validation is None:
        return [task.train]
    if isinstance(task.validation, Retrieval):
        return [task.train, task.validation.query, task.validation.gallery]
    return [task.train, task.validation.rows]


tasks = st.sampled_from(TASKS)
counts = st.integers(1, 7)


@settings(max_examples=40, deadline=None)
@given(task=tasks, fewer=counts, more=counts, draw=st.integers(0, 5))
def test_fewer_shots_are_a_part_of_more(task: Task, fewer: int, more: int, draw: int) -> None:
    fewer, more = sorted((fewer, more))
    small, large = (labelled(with_shots(task, DATASET, shots, draw)) for shots in (fewer, more))
    for part, whole, everything in zip(small, large, labelled(task), strict=True):
        assert set(part) <= set(whole) <= set(everything)
        if fewer == more:
            assert np.array_equal(part, whole)


@settings(max_examples=40, deadline=None)
@given(task=tasks, shots=counts, draw=st.integers(0, 5))
def test_each_class_and_domain_has_as_many_as_asked_or_all(task: Task, shots: int, draw: int) -> None:
    for part, everything in zip(labelled(with_shots(task, DATASET, shots, draw)), labelled(task), strict=True):
        assert groups(part) == {key: min(shots, count) for key, count in groups(everything).items()}
        assert np.array_equal(part, np.unique(part))


@settings(max_examples=20, deadline=None)
@given(task=tasks, shots=counts, kept=st.sets(st.sampled_from(sorted(set(TABLE["class"]))), min_size=1))
def test_a_draw_does_not_depend_on_other_classes(task: Task, shots: int, kept: set[str]) -> None:
    inside = TABLE["class"].isin(kept).to_numpy()
    alone = replace(task, train=task.train[inside[task.train]], validation=None)
    together = with_shots(task, DATASET, shots).train
    assert np.array_equal(with_shots(alone, DATASET, shots).train, together[inside[together]])


def test_draws_differ() -> None:
    drawn = {with_shots(TASKS[0], DATASET, 2, draw).train.tobytes() for draw in range(5)}
    assert len(drawn) == 5


def test_tests_and_unlabelled_images_stay_whole() -> None:
    for task in TASKS:
        few = with_shots(task, DATASET, 1)
        few.check(DATASET)
        assert few.classifications == task.classifications
        assert (few.target is None) == (task.target is None)
        if task.target is not None and few.target is not None:
            assert np.array_equal(few.target, task.target)
        for before, after in zip(task.retrievals, few.retrievals, strict=True):
            assert np.array_equal(before.query, after.query)
            expected = few.train if task.gallery_trained else before.gallery
            assert np.array_equal(after.gallery, expected), "a gallery of labelled source images is what was trained on"


def test_ucdr_and_udcdr_still_share_their_fit() -> None:
    first, second = (with_shots(one.task(DATASET, "line"), DATASET, 2) for one in (UCDR, UDCDR))
    assert first.fit_id == second.fit_id != UCDR.task(DATASET, "line").fit_id


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"shots": 0}, "--shots must be positive, not 0"),
        ({"shots_draw": 1}, "--shots-draw needs --shots"),
        ({"shots": 2, "shots_draw": -1}, "--shots-draw must be 0 or more, not -1"),
        ({"shots": 2, "rules": "official"}, "--shots: the official rules train on all images"),
        ({"shots": "few"}, "--shots: cannot read 'few'"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_used_are_one_line(options: dict[str, Any], text: str) -> None:
    with pytest.raises(SettingsError) as error:
        resolve(options)
    assert str(error.value).startswith(text) and "\n" not in str(error.value)


def test_few_shot_scores_have_keys_and_tables_of_their_own(
    tiny_dataset: type, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    common = ["--datasets", "tiny", "--backbone", str(tiny_folder), "--preset", "smoke", "--jobs", "1"]
    common += ["--methods", "coop", "--protocols", "ucdr", "--device", "cpu", "--out", str(tmp_path)]
    common += ["--set", "steps=2"]
    for more in ([], ["--shots", "1"], ["--shots", "2"], ["--shots", "2", "--shots-draw", "1"]):
        assert run([*common, *more]) == 0
    records = list(ResultStore(tmp_path).records())
    assert sorted(record.cell.shots for record in records) == ["", "1", "2", "2 draw 1"]
    for record in records:
        stated = record.inputs["task"].get("shots")
        assert (stated is None) == (record.cell.shots == "")
    assert len({record.key for record in records}) == len({record.fit.fit_id for record in records}) == 4
    frame = load_results(tmp_path)
    assert set(frame["shots"]) == {"", "1", "2", "2 draw 1"}
    text = (tmp_path / "report" / "leaderboard.md").read_text()
    assert text.count("\n## ") >= 4
    assert "few-shot: 2 labelled images a class and domain" in text
    assert "few-shot: 2 draw 1 labelled images a class and domain" in text
