"""UcCDR: who sees what, and one model for all query domains."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from benchmarks.datasets.base import Dataset
from benchmarks.protocols import uccdr, ucdr
from tests.protocols.unseen_classes import check_plain_listing, check_test_images_are_new, check_who_sees_what, facts


def test_who_sees_what(dataset: Dataset) -> None:
    check_who_sees_what(dataset, uccdr.PROTOCOL)


def test_nothing_asked_or_searched_was_trained_or_selected_on(dataset: Dataset) -> None:
    check_test_images_are_new(dataset, uccdr.PROTOCOL)


def test_one_model_serves_all_query_domains(dataset: Dataset) -> None:
    splits = uccdr.PROTOCOL.splits(dataset)
    assert len({uccdr.PROTOCOL.task(dataset, split).fit_id for split in splits}) == 1
    assert uccdr.PROTOCOL.task(dataset, splits[0]).fit_id not in {
        ucdr.PROTOCOL.task(dataset, split).fit_id for split in splits
    }


@pytest.mark.parametrize("rules", ["clean", "official"])
def test_queries_and_galleries_are_those_of_ucdr(dataset: Dataset, rules: Any) -> None:
    for split in uccdr.PROTOCOL.splits(dataset):
        seen, unseen = (protocol.task(dataset, split, rules) for protocol in (uccdr.PROTOCOL, ucdr.PROTOCOL))
        seen.check(dataset)
        assert [one.name for one in seen.retrievals] == [one.name for one in unseen.retrievals]
        for one, other in zip(seen.retrievals, unseen.retrievals, strict=True):
            assert np.array_equal(one.query, other.query)
            assert np.array_equal(one.gallery, other.gallery)
        assert set(unseen.train) < set(seen.train), "the query domain is trained on as well"
        assert set(facts(dataset, seen.train)["domain"]) - set(facts(dataset, unseen.train)["domain"]) == {split}


# --- the released lists -----------------------------------------------------------------------------------------------


@pytest.mark.golden
def test_official_tasks_without_a_mixed_gallery(golden_splits: dict[str, Any]) -> None:
    check_plain_listing(uccdr.PROTOCOL, golden_splits)
