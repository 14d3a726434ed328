"""``--validation-limit``: a fixed part of the validation task, spread over the classes; nothing else changes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.protocols.dg import PROTOCOL as DG
from benchmarks.protocols.task import Retrieval, Task, with_validation_limit
from benchmarks.protocols.uccdr import PROTOCOL as UCCDR
from benchmarks.protocols.ucdr import PROTOCOL as UCDR
from benchmarks.protocols.uda import PROTOCOL as UDA
from benchmarks.run import main as run
from benchmarks.runner.settings import SettingsError, resolve
from benchmarks.store.files import ResultStore
from tests.support.tiny_dataset import TinyShapes

DATASET = TinyShapes()
CLASSES = DATASET.table["class"].to_numpy()
TASKS = [one.task(DATASET, one.splits(DATASET)[0]) for one in (UCDR, UCCDR, UDA, DG)]


def roles(task: Task) -> list[np.ndarray]:
    """The rows of the validation task."""
    assert task.validation is not None
    if isinstance(task.validation, Retrieval):
        return [task.validation.query, task.validation.gallery]
    return [task.validation.rows]


@settings(max_examples=60, deadline=None)
@given(task=st.sampled_from(TASKS), limit=st.integers(1, 60), more=st.integers(0, 20))
def test_a_validation_is_a_part_of_the_whole_spread_over_the_classes(task: Task, limit: int, more: int) -> None:
    short, longer = (with_validation_limit(task, DATASET, count) for count in (limit, limit + more))
    for part, larger, whole in zip(roles(short), roles(longer), roles(task), strict=True):
        assert len(part) == min(limit, len(whole))
        assert set(part) <= set(larger) <= set(whole)
        counts, all_counts = Counter(CLASSES[part]), Counter(CLASSES[whole])
        for one in counts:
            for other in all_counts:
                assert counts[one] <= counts[other] + 1 or counts[other] == all_counts[other], "in turn"
    limited = any(len(whole) > limit for whole in roles(task))
    assert short.notes == (*task.notes, *([f"validation limited to {limit} images a role"] if limited else []))
    assert np.array_equal(short.train, task.train)
    for one, other in zip(short.retrievals, task.retrievals, strict=True):
        assert np.array_equal(one.query, other.query) and np.array_equal(one.gallery, other.gallery)
    for asked, before in zip(short.classifications, task.classifications, strict=True):
        assert np.array_equal(asked.rows, before.rows)


def test_a_limit_that_reaches_all_images_changes_nothing() -> None:
    for task in TASKS:
        assert with_validation_limit(task, DATASET, max(len(rows) for rows in roles(task))) is task


def test_what_cannot_be_a_limit_is_refused() -> None:
    for value, said in ((0, "--validation-limit must be positive, not 0"), ("few", "--validation-limit: cannot read")):
        with pytest.raises(SettingsError, match=said):
            resolve({"validation_limit": value})


def test_a_record_says_so_and_has_a_key_of_its_own(
    tiny_dataset: type, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    options = ["--methods", "coop", "--datasets", "tiny", "--backbone", str(tiny_folder), "--preset", "smoke"]
    options += ["--protocols", "ucdr", "--jobs", "1", "--out", str(tmp_path), "--set", "steps=2"]
    for more in ([], ["--validation-limit", "5"], ["--validation-limit", "5000"]):
        assert run([*options, *more]) == 0
    notes = [record.notes for record in ResultStore(tmp_path).records()]
    assert len(notes) == 2, "a limit that reaches all images is the same cell"
    assert sum("validation limited to 5 images a role" in each for each in notes) == 1
