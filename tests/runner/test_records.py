"""The record of a cell: what was measured and what it cost."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from benchmarks.runner.resources import Resources
from benchmarks.runner.settings import Settings
from tests.runner.probe import by_split, run


def test_the_record_says_what_was_measured_and_what_it_cost(settings: Settings) -> None:
    _, _, store, _ = run(
        dataclasses.replace(settings, protocols=("ucdr",), preset="standard", set=(("learning_rate", 0.5),))
    )
    record = by_split(store)["line"]
    assert set(record.scores) == {"unseen", "mixed"}
    unseen = record.scores["unseen"]
    assert {"map@all", "map@200[retrieved]", "map@200[trec]", "p@100", "recall@1"} <= set(unseen.metrics)
    assert (unseen.n_queries, unseen.gallery_size, unseen.n_without_relevant) == (24, 24, 0)
    assert record.scores["mixed"].gallery_size == 24 + 6 * 2
    assert record.inputs["backbone"]["weights_hash"] == Resources(settings).backbone.weights_hash
    assert record.inputs["method"]["config"] == {"learning_rate": 0.5, "steps": 480, "names": []}, "the budget"
    assert record.fit.steps == 480
    assert record.fit.losses == [{"stage": "one", "step": 0, "loss": 1.0}]
    assert 0 < record.fit.validation[0]["score"] <= 1
    assert record.cost.trainable_parameters == 1
    assert record.cost.total_parameters == 63713
    assert record.cost.peak_memory_mib is not None
    assert record.cost.peak_memory_mib > 50
    assert {"fit", "encode", "rank"} == set(record.cost.seconds)
    assert all(seconds >= 0 for seconds in record.cost.seconds.values())
    assert record.cost.pictures_per_second is not None
    environment = record.environment
    assert environment.packages["torch"] == torch.__version__
    assert len(environment.git["commit"]) == 40
    assert environment.hardware["logical_cores"] >= 1
    assert (environment.threads, environment.device) == (1, "cpu")
    frame = store.per_query(record)
    assert frame.groupby("gallery")["ap@all"].mean()["unseen"] == pytest.approx(unseen.metrics["map@all"], abs=1e-12)
    assert (frame["domain"] == "line").all()
    assert all(len(keys) == 10 and all(key.startswith("flat/") for key in keys) for keys in frame["top_keys"])
