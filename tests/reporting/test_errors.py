"""WordNet distances and classes read off keys, against values counted by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from benchmarks.reporting.data import ReportData
from benchmarks.reporting.error_analysis import WordNet
from benchmarks.reporting.types import QuestionErrors
from benchmarks.store.files import ResultStore
from benchmarks.store.frame import load_results
from tests.reporting.conftest import add, retrieval_table


def asked(store: ResultStore) -> tuple[QuestionErrors, ...]:
    data = ReportData(load_results(store.root), store=store, report=print)
    return data.settings[0].errors.questions


def test_distances_are_nltks() -> None:
    from nltk.corpus import wordnet

    ours = WordNet({"crane": "crane.n.04"})
    names = ("cat", "dog", "blue whale", "dolphin", "car", "truck", "apple", "crane")
    for one in names:
        for other in names:
            synsets = [wordnet.synset("crane.n.04") if n == "crane" else wordnet.synsets(n.replace(" ", "_"), "n")[0]
                       for n in (one, other)]  # fmt: skip
            assert ours.distance(one, other) == synsets[0].shortest_path_distance(synsets[1]), (one, other)
    assert ours.distance("cat", "no such thing at all") is None
    assert ours.common("cat", "dog") == "carnivore"


def test_confusions_and_curves_by_hand(store: ResultStore) -> None:
    table = pd.DataFrame(
        {
            "query": ["line/cat/0", "line/dog/0"], "class": ["cat", "dog"], "domain": "line", "gallery": "unseen",
            "n_relevant": [2, 1], "ap@all": [0.8, 0.3], "recall@1": [1.0, 0.0], "p@100": [0.02, 0.01],
            "top_keys": [["flat/cat/0", "flat/dog/0", "flat/cat/1"], ["flat/cat/0", "flat/cat/1", "flat/dog/0"]],
            "top_scores": [[0.3, 0.2, 0.1]] * 2,
        }
    )  # fmt: skip
    add(store, "good", table)
    (question,) = asked(store)
    (one,) = question.methods
    assert (one.queries, dict(one.confused)) == (2, {("dog", "cat"): 1})
    assert one.curve is not None
    np.testing.assert_allclose(one.curve.precision, [0.5, 0.25, 0.5])
    np.testing.assert_allclose(one.curve.recall, [0.25, 0.25, 1.0])
    assert one.curve.cuts == {100: pytest.approx((0.015, 1.0))}


def test_keys_that_do_not_name_their_class_leave_the_question_out(store: ResultStore) -> None:
    table = retrieval_table("line", 0.5, 0)
    table["top_keys"] = [[f"image-{i}" for i in range(6)]] * len(table)
    add(store, "good", table)
    (question,) = asked(store)
    assert question.methods == ()
    assert "cannot be read off their keys" in question.problem


def test_methods_without_all_domains_have_no_curve(store: ResultStore) -> None:
    for split in ("line", "pixel"):
        add(store, "whole", retrieval_table(split, 0.5, 0), split=split)
    add(store, "part", retrieval_table("line", 0.5, 1))
    (question,) = asked(store)
    assert {one.label: one.curve is not None for one in question.methods} == {"whole": True, "part": False}


def test_lists_that_a_lean_pack_left_out_are_not_counted(store: ResultStore) -> None:
    table = retrieval_table("line", 0.5, 0)
    table.loc[4:, "top_keys"] = None
    add(store, "good", table)
    (question,) = asked(store)
    assert question.methods[0].queries == 4
