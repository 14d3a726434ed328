"""Resources: the pixels of a data set under the rules."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.datasets.base import ReleasedListing
from benchmarks.datasets.pixels import DatasetImages
from benchmarks.runner.resources import Resources
from benchmarks.runner.settings import Settings


@pytest.mark.parametrize("rules", ["clean", "official"])
def test_the_official_rules_invert_the_domains_that_the_released_code_inverts(
    settings: Settings, tiny_dataset: Any, monkeypatch: pytest.MonkeyPatch, rules: Any
) -> None:
    plain = Resources(settings).pixels("tiny")
    monkeypatch.setattr(tiny_dataset, "released", ReleasedListing(inverted=("sketch", "line")))
    resources = Resources(dataclasses.replace(settings, rules=rules))
    shown, rows = resources.pixels("tiny"), np.arange(len(plain.dataset.table))
    negative = np.isin(plain.dataset.table["domain"], ["sketch", "line"]) & (rules == "official")
    assert 0 < negative.sum() < len(rows) or rules == "clean"
    turned = torch.from_numpy(negative)[:, None, None, None]
    assert torch.equal(shown[rows], torch.where(turned, 255 - plain[rows], plain[rows]))
    contents = [np.array(DatasetImages(cache, rows).content) for cache in (plain, shown)]
    assert np.array_equal(contents[0] != contents[1], negative), "no feature of one is taken for the other's"
    notes = {f"{domain} images are inverted" for domain in ("sketch", "line")}
    assert (notes <= set(resources.task("tiny", "ucdr", "line").notes)) == (rules == "official")
