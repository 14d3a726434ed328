"""UCDR: who sees what, and the released code's lists to the file (tests/golden)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.datasets.base import Dataset
from benchmarks.datasets.pixels import PixelCache
from benchmarks.protocols import official, ucdr
from benchmarks.protocols.task import Retrieval
from benchmarks.protocols.training import training_data
from methods.interface import WithheldError
from tests.protocols.golden_tree import Golden245, GoldenPlain, GoldenTree, Listing, sha
from tests.protocols.unseen_classes import check_plain_listing, check_test_images_are_new, check_who_sees_what, facts
from tests.support.golden import golden_dir, golden_set
from tests.support.tiny_dataset import DOMAINS, TinyShapes


def test_who_sees_what(dataset: Dataset) -> None:
    check_who_sees_what(dataset, ucdr.PROTOCOL)


def test_nothing_asked_or_searched_was_trained_or_selected_on(dataset: Dataset) -> None:
    check_test_images_are_new(dataset, ucdr.PROTOCOL)


def test_a_model_for_each_held_out_domain(dataset: Dataset) -> None:
    splits = ucdr.PROTOCOL.splits(dataset)
    assert len({ucdr.PROTOCOL.task(dataset, split).fit_id for split in splits}) == len(splits)
    assert ucdr.PROTOCOL.task(dataset, splits[0]).fit_id != ucdr.PROTOCOL.task(dataset, splits[0], "official").fit_id


def test_official_rules_keep_their_flaw_and_name_it(dataset: Dataset) -> None:
    for split in ucdr.PROTOCOL.splits(dataset):
        task = ucdr.PROTOCOL.task(dataset, split, "official")
        task.check(dataset)
        assert set(facts(dataset, task.train)["split"]) == {"train", "val"}
        assert task.class_names == (*dataset.classes("train"), *dataset.classes("val"))
        assert task.validation is not None
        assert np.array_equal(task.validation.query, task.retrievals[0].query), "selected on test"
        assert "selected on test" in task.notes


def test_training_data_shows_the_task_and_nothing_else() -> None:
    dataset = TinyShapes()
    task = ucdr.PROTOCOL.task(dataset, "line")
    asked: list[Retrieval] = []

    def score(method: Any, retrieval: Retrieval) -> float:
        asked.append(retrieval)
        return 0.25

    shown = training_data(task, PixelCache(dataset, 16), score)
    table = facts(dataset, task.train).reset_index(drop=True)
    assert len(shown.images) == len(task.train) == 6 * 3 * 4
    assert [shown.class_names[i] for i in shown.labels] == table["class"].tolist()
    assert [shown.domain_names[i] for i in shown.domains] == table["domain"].tolist()
    assert shown.domain_names == tuple(d for d in DOMAINS if d != "line")
    assert set(shown.class_names) == set(dataset.classes("train"))
    assert set(shown.synsets) == {name for name in dataset.synsets if name in shown.class_names}
    index = torch.tensor([3, 0, 71])
    expected = dataset.pixels(task.train[index.numpy()], 16)
    assert (shown.images.pixels(index) - expected).abs().max() <= 0.5 / 255 + 1e-6
    assert list(shown.images.content)[71] == dataset.content[task.train[71]]
    assert shown.validate(None) == 0.25  # type: ignore[arg-type]
    assert asked == [task.validation]
    assert not shown.has_target
    with pytest.raises(WithheldError, match="ucdr shows no target"):
        _ = shown.target
    with pytest.raises(WithheldError):
        _ = shown.target_labels
    training_data(task, PixelCache(dataset, 16), score, select="oracle").validate(None)  # type: ignore[arg-type]
    assert asked[1] is task.retrievals[0]


# --- the released lists -----------------------------------------------------------------------------------------------


@pytest.mark.golden
def test_generalised_listing_is_the_released_one(listing: Listing, golden_splits: dict[str, Any]) -> None:
    expected, test_classes = golden_splits["expected"], golden_splits["test_classes"]
    training, rest = official.generalised(listing.files("real"))
    assert listing.paths(rest) == expected["gallery_generalised_test_seen"]
    assert listing.paths(training)[:100] == expected["gallery_generalised_train_first100"]
    assert len(training) == expected["gallery_generalised_train_count"]
    assert sha(listing.paths(training)) == expected["gallery_generalised_train_sha256_of_newline_join"]
    for role, domain in (("gallery", "real"), ("query", "quickdraw")):
        unseen = [row for files in listing.files(domain, test_classes) for row in files]
        seen = official.generalised(listing.files(domain))[1]
        assert len(unseen) == expected[f"{role}_plain_test_count"]
        assert sha(listing.paths(unseen)) == expected[f"{role}_plain_test_sha256_of_newline_join"]
        assert len(seen + unseen) == expected[f"{role}_generalised_test_count"] == expected[f"full_{role}_va_count"]
        assert sha(listing.paths(seen + unseen)) == expected[f"{role}_generalised_test_sha256_of_newline_join"]
        of_245 = official.generalised(listing.files(domain, expected["ucdra_variant"]["full_train_classes"]))[1]
        assert len(of_245 + unseen) == expected["ucdra_variant"][f"full_{role}_va_count"]
    of_gallery = [row for files in listing.files("real", test_classes) for row in files]
    assert len(of_gallery) == expected["gallery_generalised_test_unseen_count"]
    assert sha(listing.paths(of_gallery)) == expected["gallery_generalised_test_unseen_sha256_of_newline_join"]


@pytest.mark.golden
def test_official_tasks_hold_the_released_lists(golden_splits: dict[str, Any]) -> None:
    """Held-out quickdraw: the task's rows are the released lists (as sets: the order of training files is theirs)."""
    expected, dataset = golden_splits["expected"], GoldenTree(golden_splits)
    task = ucdr.PROTOCOL.task(dataset, "quickdraw", "official")
    assert list(task.class_names) == expected["full_train_classes"]
    assert len(task.train) == expected["full_train_files_count"]
    domains = facts(dataset, task.train)["domain"].value_counts()
    for domain, count in expected["full_train_domain_counts"].items():
        assert int(domains.get(domain, 0)) == count
    unseen, mixed = task.retrievals
    assert len(unseen.query) == expected["full_query_te_count"]
    assert len(unseen.gallery) == expected["full_gallery_te_count"]
    assert len(mixed.gallery) == expected["gallery_generalised_test_count"]


@pytest.mark.golden
def test_the_full_training_list_is_the_released_one(listing: Listing, golden_splits: dict[str, Any]) -> None:
    """Gallery domain's 92 %, then the seen domain (painting), then the auxiliary ones, each class by class."""
    expected = golden_splits["expected"]
    for names, values in (
        (expected["full_train_classes"], expected),
        (expected["ucdra_variant"]["full_train_classes"], expected["ucdra_variant"]),
    ):
        rows = official.generalised(listing.files("real", names))[0]
        auxiliary = sorted(set(golden_splits["files_per_class"]) - {"quickdraw", "painting", "real"})
        for domain in ("painting", *auxiliary):
            rows += [row for files in listing.files(domain, names) for row in files]
        assert len(rows) == values["full_train_files_count"]
        assert sha(listing.paths(rows)) == values["full_train_files_sha256"]


@pytest.mark.golden
def test_official_tasks_without_the_validation_classes(golden_splits: dict[str, Any]) -> None:
    """UCDR-Adapter's code: the same test, trained on 245 classes instead of 300."""
    expected, dataset = golden_splits["expected"]["ucdra_variant"], Golden245(golden_splits)
    task, usual = (ucdr.PROTOCOL.task(tree, "quickdraw", "official") for tree in (dataset, GoldenTree(golden_splits)))
    assert list(task.class_names) == expected["full_train_classes"] == golden_splits["train_classes"]
    assert len(task.train) == expected["full_train_files_count"]
    domains = facts(dataset, task.train)["domain"].value_counts()
    assert {name: int(domains.get(name, 0)) for name in dataset.domains} == expected["full_train_domain_counts"]
    assert task.notes == ("selected on test",), "validation classes are neither trained on nor asked for"
    assert np.array_equal(task.retrievals[0].gallery, usual.retrievals[0].gallery)
    assert set(task.retrievals[1].gallery) < set(usual.retrievals[1].gallery), "no images of validation classes"
    assert task.fit_id != usual.fit_id
    clean, clean_usual = (ucdr.PROTOCOL.task(tree, "quickdraw") for tree in (dataset, GoldenTree(golden_splits)))
    assert np.array_equal(clean.train, clean_usual.train)


@pytest.mark.golden
def test_official_tasks_without_a_mixed_gallery(golden_splits: dict[str, Any]) -> None:
    check_plain_listing(ucdr.PROTOCOL, golden_splits)
    clean = ucdr.PROTOCOL.task(GoldenPlain(golden_splits), "quickdraw")
    assert [one.name for one in clean.retrievals] == ["unseen", "mixed"]


@pytest.mark.golden
def test_the_golden_folder_is_the_one_asked_for() -> None:
    assert (golden_dir() / "splits.json").is_file()
    assert golden_set().folder == Path(golden_dir())
