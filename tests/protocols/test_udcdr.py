"""UdCDR: who sees what, UCDR's model, and the released code's samples to the file (tests/golden)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.datasets.base import Dataset
from benchmarks.protocols import official, ucdr, udcdr
from tests.protocols.golden_tree import GoldenTree, Listing
from tests.protocols.unseen_classes import check_test_images_are_new, check_who_sees_what, facts


def test_who_sees_what(dataset: Dataset) -> None:
    check_who_sees_what(dataset, udcdr.PROTOCOL)


def test_nothing_asked_or_searched_was_trained_or_selected_on(dataset: Dataset) -> None:
    check_test_images_are_new(dataset, udcdr.PROTOCOL)


def test_the_model_is_that_of_ucdr(dataset: Dataset) -> None:
    for split in ucdr.PROTOCOL.splits(dataset):
        assert ucdr.PROTOCOL.task(dataset, split).fit_id == udcdr.PROTOCOL.task(dataset, split).fit_id


def test_official_rules_keep_their_flaws_and_name_them(dataset: Dataset) -> None:
    for split in udcdr.PROTOCOL.splits(dataset):
        task = ucdr.PROTOCOL.task(dataset, split, "official")
        seen = udcdr.PROTOCOL.task(dataset, split, "official")
        gallery = seen.retrievals[0].gallery
        assert set(gallery) <= set(seen.train), "the gallery was trained on"
        assert set(facts(dataset, gallery)["class"]) <= set(task.class_names[: official.UDCDR_CLASSES])
        assert not set(seen.retrievals[0].query) & set(seen.train)
        assert {"selected on test", "gallery images are trained on"} <= set(seen.notes)


def test_there_is_one_gallery_and_it_is_never_trained_on(dataset: Dataset) -> None:
    for split in udcdr.PROTOCOL.splits(dataset):
        (retrieval,) = udcdr.PROTOCOL.task(dataset, split).retrievals
        held_back = dataset.table[(dataset.table["split"] == "train") & dataset.table["held_back"]]
        of_gallery = held_back[held_back["domain"] == dataset.card.gallery_domain]
        assert retrieval.gallery.tolist() == of_gallery.index.tolist()
        assert set(facts(dataset, retrieval.query)["class"]) <= set(dataset.classes("train"))


# --- the released lists -----------------------------------------------------------------------------------------------


@pytest.mark.golden
def test_udcdr_samples_are_the_released_ones(listing: Listing, golden_splits: dict[str, Any]) -> None:
    expected = golden_splits["expected"]
    assert (official.udcdr_share("quickdraw"), official.udcdr_share("painting")) == (0.1, 0.25)

    def sample(domain: str, share: float) -> list[str]:
        return listing.paths(official.udcdr_sample(listing.files(domain), share))

    gallery = sample("real", 0.1)
    assert sample("quickdraw", 0.1) == expected["udcdr_query_quickdraw_p010"]
    assert gallery == expected["udcdr_gallery_real_p010"]
    assert sample("painting", 0.25) == expected["udcdr_painting_p025"]
    trained = set(listing.paths(official.generalised(listing.files("real"))[0]))
    assert len(set(gallery) & trained) == expected["udcdr_gallery_also_in_training"] == len(gallery)


@pytest.mark.golden
def test_official_tasks_hold_the_released_samples(golden_splits: dict[str, Any]) -> None:
    """Held-out quickdraw and painting: queries and gallery are the released samples."""
    expected, dataset = golden_splits["expected"], GoldenTree(golden_splits)
    keys = dataset.table["key"].to_numpy()
    task = ucdr.PROTOCOL.task(dataset, "quickdraw", "official")
    seen = udcdr.PROTOCOL.task(dataset, "quickdraw", "official").retrievals[0]
    assert set(keys[seen.query]) == set(expected["udcdr_query_quickdraw_p010"])
    assert set(keys[seen.gallery]) == set(expected["udcdr_gallery_real_p010"])
    assert len(np.intersect1d(seen.query, task.train)) == expected["udcdr_query_also_in_training"]
    assert len(np.intersect1d(seen.gallery, task.train)) == expected["udcdr_gallery_also_in_training"]
    painting = udcdr.PROTOCOL.task(dataset, "painting", "official").retrievals[0]
    assert set(keys[painting.query]) == set(expected["udcdr_painting_p025"])
