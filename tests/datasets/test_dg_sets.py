"""VLCS and TerraIncognita: published layouts, what is missing, and their domains for generalisation."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from benchmarks.datasets.terra_incognita import TerraIncognita
from benchmarks.datasets.vlcs import VLCS
from benchmarks.protocols.dg import PROTOCOL
from tests.datasets import transfer_trees
from tests.datasets.layouts import move


@pytest.mark.parametrize("base", ["VLCS", "vlcs", ""])
def test_vlcs_is_the_same_under_every_base(made: Path, tmp_path: Path, base: str) -> None:
    transfer_trees.vlcs_tree(tmp_path / "data")
    move(tmp_path, "data/VLCS", f"root/{base}" if base else "root")
    other = VLCS(tmp_path / "root")
    other.check()
    assert other.data_hash == VLCS(made / "vlcs").data_hash
    assert other.domains == ("caltech101", "labelme", "sun09", "voc2007")
    assert len(other.table) == 4 * 5 * 6


def test_the_archive_of_vlcs_numbers_its_classes(tmp_path: Path) -> None:
    dataset = VLCS(transfer_trees.vlcs_archive_tree(tmp_path))
    dataset.check()
    assert set(dataset.table["class"]) == set(transfer_trees.VLCS_CLASSES)
    assert len(dataset.table) == 4 * 5 * 6, "the folders full alone: train repeats its images"
    birds = dataset.table[dataset.table["class"] == "bird"]
    assert set(birds["key"].str.split("/").str[1]) == {"0"}


def test_terra_incognita_says_which_class_a_location_lacks(tmp_path: Path) -> None:
    transfer_trees.terra_incognita_tree(tmp_path)
    for name in ("raccoon", "squirrel"):
        shutil.rmtree(tmp_path / "terra_incognita" / "location_100" / name)
    dataset = TerraIncognita(tmp_path)
    dataset.check()
    assert len(dataset.table) == 3 * 10 * 6 + 8 * 6
    lacking = {finding.path for finding in dataset.findings if finding.kind == "missing_class"}
    assert lacking == {"location_100/raccoon", "location_100/squirrel"}
    task = PROTOCOL.task(dataset, "location_100")
    task.check(dataset)
    tested = set(dataset.table["class"].to_numpy()[task.classifications[0].rows])
    assert len(task.class_names) == 10 and len(tested) == 8, "all names are candidates"


@pytest.mark.parametrize("kind", [VLCS, TerraIncognita])
def test_published_counts_are_of_the_domains(made: Path, kind: type[VLCS] | type[TerraIncognita]) -> None:
    dataset = kind(made / kind.card.name)
    assert set(kind.published_counts) == set(dataset.domains) == set(PROTOCOL.splits(dataset))
    assert sum(kind.published_counts.values()) == {"vlcs": 10729, "terra_incognita": 24330}[kind.card.name]
