"""PictoDomains' committed UDA and DAZSL settings follow their rule."""

import dataclasses
import json

import pytest

from benchmarks.datasets.picto_domains import PictoDomains, closed_set_of, closed_set_path


@pytest.fixture(scope="module")
def dataset() -> PictoDomains:
    return PictoDomains()


def test_committed_lists_follow_the_rule(dataset: PictoDomains) -> None:
    ruled = json.loads(json.dumps(dataclasses.asdict(closed_set_of(dataset.table))))
    assert json.loads(closed_set_path().read_text(encoding="utf-8")) == ruled
    assert len(ruled["uda_classes"]) >= 40
    assert not set(ruled["seen"]) & set(ruled["unseen"])
