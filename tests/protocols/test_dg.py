"""DG: what training sees, DomainBed's training-domain validation, and runs of every method."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks.datasets.base import DatasetError
from benchmarks.datasets.picto_domains import PictoDomains
from benchmarks.datasets.pixels import PixelCache
from benchmarks.datasets.visda import VisDA
from benchmarks.protocols.dg import PROTOCOL, held_out_count
from benchmarks.protocols.registry import PROTOCOLS
from benchmarks.protocols.task import Classification
from benchmarks.run import main as run
from benchmarks.runner.embeddings import EncodedImages, encode_as
from benchmarks.runner.selection_values import SelectionScores
from benchmarks.runner.settings import resolve
from benchmarks.store.files import ResultStore
from methods.parts.backbone import Backbone
from methods.registry import METHODS
from methods.zero_shot import ZeroShot
from tests.support.every import small_set
from tests.support.tiny_dataset import CLASSES, TinyShapes


class Parts(TinyShapes):
    """Published with a train and a test part of every domain."""

    @cached_property
    def table(self) -> pd.DataFrame:
        table = super().table
        return table.assign(part=np.where(table["key"].str[-1].astype(int) < 4, "train", "test"))


@pytest.mark.parametrize("kind", [TinyShapes, PictoDomains])
def test_training_never_sees_the_held_out_domain(kind: type[TinyShapes] | type[PictoDomains]) -> None:
    dataset = kind()
    table = dataset.table
    for split in PROTOCOL.splits(dataset):
        task = PROTOCOL.task(dataset, split)
        task.check(dataset)
        assert isinstance(task.validation, Classification) and task.target is None and not task.retrievals
        (question,) = task.classifications
        domains = table["domain"].to_numpy()
        seen = set(dataset.dg_set[0]) - {split}
        assert set(domains[task.train]) == set(domains[task.validation.rows]) == seen
        assert set(domains[question.rows]) == {split}
        assert question.class_names == task.class_names == dataset.dg_set[1]
        inside = table["class"].isin(task.class_names) & table["domain"].isin(seen)
        assert {*task.train, *task.validation.rows} == set(np.flatnonzero(inside))
        assert not set(task.train) & set(task.validation.rows)
        assert len(question.rows) == (table["class"].isin(task.class_names) & (table["domain"] == split)).sum()


def test_validation_takes_a_fifth_of_each_class_and_domain() -> None:
    dataset = TinyShapes()
    task = PROTOCOL.task(dataset, "flat")
    assert isinstance(task.validation, Classification)
    rows = dataset.table.iloc[task.validation.rows]
    assert set(rows.groupby(["class", "domain"]).size()) == {1}  # of six images
    assert len(rows) == 6 * 2
    assert [held_out_count(images) for images in (0, 1, 2, 4, 7, 8, 100)] == [0, 0, 1, 1, 1, 2, 20]


def test_published_parts_are_kept() -> None:
    dataset = Parts()
    task = PROTOCOL.task(dataset, "flat")
    part = dataset.table["part"].to_numpy()
    assert isinstance(task.validation, Classification)
    assert set(part[task.train]) == set(part[task.validation.rows]) == {"train"}
    assert set(part[task.classifications[0].rows]) == {"test"}


def test_two_domains_are_too_few_and_other_requests_are_refused(tmp_path: Path) -> None:
    class Two(TinyShapes):
        dg_set = (("flat", "line"), CLASSES[:6])

    assert PROTOCOL.splits(Two()) == []
    with pytest.raises(DatasetError, match="has no DG domain 'sketch'; choose from"):
        PROTOCOL.task(TinyShapes(), "sketch")
    with pytest.raises(DatasetError, match="dg has clean rules only"):
        PROTOCOL.task(TinyShapes(), "flat", "official")
    assert len(VisDA.places) == 2


def test_dg_runs_by_name_only() -> None:
    assert "dg" in PROTOCOLS.names() and "dg" not in PROTOCOLS.defaults()
    assert resolve({"protocols": "all"}).protocols == ("ucdr", "uccdr", "udcdr", "uda", "dazsl")
    assert resolve({"protocols": "dg"}).protocols == ("dg",)


def test_validation_is_the_mean_over_domains(tiny_backbone: Backbone) -> None:
    """Against the accuracies of the domains, with domains of unequal size."""
    dataset = TinyShapes()
    task = PROTOCOL.task(dataset, "flat")
    assert isinstance(task.validation, Classification)
    domains = dataset.table["domain"].to_numpy()
    glyphs = task.validation.rows[domains[task.validation.rows] == "glyph"]
    lines = task.train[(domains[task.train] == "line") & (dataset.table["class"].to_numpy()[task.train] == "one_disc")]
    rows = np.sort(np.concatenate([glyphs, lines]))
    method = ZeroShot(tiny_backbone)
    cache = PixelCache(dataset, tiny_backbone.processing, 0.01)
    encoded = EncodedImages(encode_as(method, "clean"), cache, lambda count: None)
    scores = SelectionScores(method, encoded, "clean")

    def accuracy(of: np.ndarray) -> float:
        images = [cache[of[i : i + 1]].float() / 255 for i in range(len(of))]
        logits = torch.cat([method.classify(image, task.class_names) for image in images])
        found = np.array(task.class_names)[logits.argmax(dim=1).numpy()]
        return float((found == dataset.table["class"].to_numpy()[of]).mean())

    mean = (accuracy(glyphs) + accuracy(lines)) / 2
    assert scores.score(Classification("v", rows, task.class_names, each_domain=True)) == pytest.approx(mean)
    assert scores.score(Classification("v", rows, task.class_names)) == pytest.approx(accuracy(rows))
    assert mean != pytest.approx(accuracy(rows)), "the two differ, or this test shows nothing"


def test_every_method_runs(
    tiny_dataset: type, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    names = tuple(METHODS.names())
    sets = [part for key, value in small_set(names) for part in ("--set", f"{key}={value}")]
    options = ["--datasets", "tiny", "--backbone", str(tiny_folder), "--preset", "smoke", "--jobs", "1"]
    options += ["--methods", ",".join(names), "--protocols", "dg", "--device", "cpu", "--out", str(tmp_path)]
    assert run([*options, *sets]) == 0
    records: dict[str, Any] = {record.cell.method: record for record in ResultStore(tmp_path).records()}
    assert set(records) == set(names)
    assert {name: one.status for name, one in records.items() if one.status != "ok"} == {}
    assert all(set(one.scores) == {"target"} for one in records.values())
    page = (tmp_path / "report" / "leaderboard.md").read_text()
    assert "### DG, target: accuracy\\[image\\] in percent, by query domain" in page
