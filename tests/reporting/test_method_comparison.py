"""Frames of what can be trusted: they follow from the per-query values, and what is missing is shown."""

from __future__ import annotations

import csv
import io
import itertools
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks.evaluation.statistics import class_totals, holm, mean_over_seeds, paired_tests
from benchmarks.reporting import grids
from benchmarks.reporting.csv_text import pairs_csv
from benchmarks.reporting.data import ReportData
from benchmarks.reporting.method_comparison import (
    AGREEMENT_COLUMNS,
    ALL,
    INFLATION_COLUMNS,
    PAIR_COLUMNS,
    RANK_COLUMNS,
    SCORE_COLUMNS,
    MethodComparison,
    compare_methods,
    query_values,
)
from benchmarks.reporting.tables import newest
from benchmarks.store.files import ResultStore
from benchmarks.store.frame import load_results
from tests.support.made_up_results import CLASSES, PER_CLASS, add, retrieval_table, zero_shot_table

N = CLASSES * PER_CLASS
OF_CLASS = np.arange(N) // PER_CLASS


def ap(seed: int, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.clip(0.3 + shift + 0.1 * rng.standard_normal(CLASSES)[OF_CLASS] + 0.1 * rng.random(N), 0, 1)


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    return ResultStore(tmp_path / "results")


def one(frame: pd.DataFrame, **where: object) -> pd.Series:
    for name, value in where.items():
        frame = frame[frame[name] == value]
    assert len(frame) == 1, frame
    return frame.iloc[0]


def fill(store: ResultStore) -> dict[tuple[str, int, str], np.ndarray]:
    """Two good methods much alike with two seeds, a bad one with one, over two splits."""
    values = {}
    for place, split in enumerate(("glyph", "line")):
        for seed in (0, 1):
            values["good", seed, split] = ap(1 + place, 0.3) + 0.01 * seed
            values["same", seed, split] = np.roll(values["good", seed, split], PER_CLASS) + 0.002 * seed
        values["bad", 0, split] = ap(3 + place)
    for (method, seed, split), ap_values in values.items():
        table = retrieval_table(ap_values, domain=split)
        shuffled = table.sample(frac=1, random_state=seed)  # rows of a table stand in no promised order
        add(store, method, split, shuffled, seed=seed)
    return values


def test_frames_follow_from_the_values(store: ResultStore) -> None:
    values = fill(store)
    got = compare_methods(store, resamples=500)
    assert list(got.scores.columns) == SCORE_COLUMNS
    assert list(got.pairs.columns) == PAIR_COLUMNS
    assert list(got.ranks.columns) == RANK_COLUMNS
    assert list(got.agreement.columns) == AGREEMENT_COLUMNS
    assert list(got.inflation.columns) == INFLATION_COLUMNS
    assert got.inflation.empty

    row = one(got.scores, metric="map@all", split=ALL, label="good")
    by_seed = [np.mean([values["good", seed, split].mean() for split in ("glyph", "line")]) for seed in (0, 1)]
    expected = mean_over_seeds(by_seed)
    assert (row["value"], row["low"], row["high"]) == pytest.approx((expected.mean, expected.low, expected.high))
    assert (row["seeds"], row["missing"], row["floor"], row["limit"]) == (2, (), False, None)
    single = one(got.scores, metric="map@all", split="line", label="bad")
    assert (single["seeds"], single["value"]) == (1, pytest.approx(values["bad", 0, "line"].mean()))
    assert math.isnan(single["low"])

    both = {
        method: np.stack([np.concatenate([values[method, seed, s] for s in ("glyph", "line")]) for seed in seeds])
        for method, seeds in (("good", (0, 1)), ("same", (0, 1)), ("bad", (0,)))
    }
    classes = np.tile([f"class {c}" for c in OF_CLASS], 2)
    totals = class_totals(both, classes, splits=np.repeat([0, 1], N))
    tests = {(test.a, test.b): test for test in paired_tests(totals, resamples=500)}
    test = tests["good", "bad"]
    pair = one(got.pairs, metric="map@all", split=ALL, a="good", b="bad")
    assert pair["difference"] == pytest.approx(test.difference)
    assert (pair["p"], pair["classes"], pair["queries"]) == (pytest.approx(test.p), CLASSES, 2 * N)
    assert (pair["seeds_a"], pair["seeds_b"]) == (2, 1)
    assert pair["low"] < pair["difference"] < pair["high"]
    of_question = got.pairs[(got.pairs["metric"] == "map@all") & (got.pairs["split"] == ALL)]
    assert of_question["p_holm"].tolist() == holm(of_question["p"]).tolist()
    assert (got.pairs["difference"] >= 0).all()


def test_groups_hold_what_cannot_be_told_apart(store: ResultStore) -> None:
    fill(store)
    scores = compare_methods(store, metrics=["map@all"], resamples=2000).scores
    for split in (ALL, "glyph", "line"):
        of_split = scores[scores["split"] == split].set_index("label")
        assert of_split["best"].sum() == 1
        assert of_split["best"].idxmax() in ("good", "same")
        assert of_split["group"].to_dict() == {"bad": False, "good": True, "same": True}
        assert of_split["p_best"]["bad"] < 0.05
        assert of_split["tested"].all()
    assert set(scores["metric"]) == {"map@all"}


def test_the_same_store_gives_the_same_frames(store: ResultStore) -> None:
    fill(store)
    first, second = (compare_methods(store, resamples=200) for _ in range(2))
    for name in MethodComparison.__dataclass_fields__:
        pd.testing.assert_frame_equal(getattr(first, name), getattr(second, name))


def test_what_is_missing_is_shown_and_never_averaged_over(store: ResultStore) -> None:
    fill(store)
    add(store, "crashed", "glyph", retrieval_table(ap(9, 0.6)))
    add(store, "crashed", "line", None)
    add(store, "partial", "line", retrieval_table(ap(9, 0.6)))
    for seed in (0, 1):
        add(store, "shaky", "glyph", retrieval_table(ap(9, 0.6), domain="glyph"), seed=seed)
    add(store, "shaky", "line", retrieval_table(ap(9, 0.6)), seed=0)
    add(store, "shaky", "line", None, seed=1, status="not_applicable", reason="no names")
    got = compare_methods(store, metrics=["map@all"], resamples=200)
    means = got.scores[got.scores["split"] == ALL].set_index("label")
    assert means["missing"][["crashed", "partial", "shaky"]].to_dict() == {
        "crashed": ("line: failed",),
        "partial": ("glyph: missing",),
        "shaky": ("line, seed 1: not_applicable",),
    }
    assert means["value"][["crashed", "partial", "shaky"]].isna().all()
    assert not means["group"][["crashed", "partial", "shaky"]].any()
    assert not {"crashed", "partial", "shaky"} & {*got.pairs[got.pairs["split"] == ALL]["a"]}
    line = got.scores[got.scores["split"] == "line"].set_index("label")
    assert line["best"].idxmax() == "partial"
    ranks = got.ranks[got.ranks["protocol"] == ALL].set_index("label")
    assert ranks["missing"]["crashed"] == ("ucdr, line, unseen",)
    assert ranks["rank"][["crashed", "partial", "shaky"]].isna().all()
    assert ranks["rank"][["good", "same", "bad"]].notna().all()
    assert set(ranks["of"]) == {3}


def test_records_without_usable_values_are_scored_and_not_tested(store: ResultStore) -> None:
    fill(store)
    lines: list[str] = []
    for split in ("glyph", "line"):
        add(store, "bare", split, retrieval_table(ap(5), domain=split), per_query=False)
        add(store, "other", split, retrieval_table(ap(5), domain="elsewhere"))
        add(store, "lacking", split, retrieval_table(ap(5), domain=split), dropped=("ap@all",))
    got = compare_methods(store, resamples=200, report=lines.append)
    means = got.scores[(got.scores["split"] == ALL) & (got.scores["metric"] == "map@all")].set_index("label")
    assert means["value"].notna().all()
    assert means["tested"].to_dict() == {
        "good": True, "same": True, "bad": True, "lacking": False, "bare": False, "other": False,
    }  # fmt: skip
    assert not means["group"][["bare", "other", "lacking"]].any()
    assert sum("bare on tiny/ucdr/" in line and "no per-query values; not tested" in line for line in lines) == 2
    assert sum("lacking on tiny/" in line and "no per-query column 'ap@all' for map@all" in line for line in lines) == 2
    assert len(lines) == 4


def test_settings_are_never_mixed(store: ResultStore) -> None:
    fill(store)
    for split in ("glyph", "line"):
        add(store, "good", split, retrieval_table(ap(7, 0.5), domain=split), rules="official")
        add(store, "good", split, retrieval_table(ap(7, 0.5), domain=split), limit=9)
    got = compare_methods(store, metrics=["map@all"], resamples=200)
    counts = got.scores[got.scores["split"] == ALL].groupby(["rules", "limit"], dropna=False).size().to_dict()
    assert sorted(counts.values()) == [1, 1, 3]
    assert set(got.pairs["rules"]) == {"clean"}
    assert set(got.pairs["limit"]) == {None}
    assert got.scores["rules"].tolist() == sorted(got.scores["rules"])


def test_mean_ranks_treat_galleries_of_a_cell_as_one(store: ResultStore) -> None:
    for split, a, b in (("glyph", 0.6, 0.5), ("line", 0.1, 0.7)):
        for method, value in (("a", a), ("b", b)):
            galleries = [retrieval_table(np.full(N, value), name, split) for name in ("unseen", "mixed")]
            add(store, method, split, pd.concat(galleries))
    ranks = compare_methods(store, resamples=50).ranks
    assert ranks["protocol"].tolist() == [ALL, ALL, "ucdr", "ucdr"]
    assert ranks["rank"].tolist() == [1.5] * 4
    assert set(ranks["cells"]) == {2}
    assert (ranks["low"].min(), ranks["high"].max()) == (1.0, 2.0)


def test_seeds_agree_as_the_orders_of_their_means_do(store: ResultStore) -> None:
    """Spearman over the methods with all seeds: the orders are abc, acb and cba; "once" has one seed alone."""
    means = {"a": (0.1, 0.1, 0.5), "b": (0.2, 0.3, 0.4), "c": (0.3, 0.2, 0.3)}
    for split, shift in (("glyph", 0.0), ("line", 0.2)):
        for method, by_seed in means.items():
            for seed, value in enumerate(by_seed):
                add(store, method, split, retrieval_table(np.full(N, value + shift), domain=split), seed=seed)
        add(store, "once", split, retrieval_table(np.full(N, 0.9), domain=split), seed=0)
    row = one(compare_methods(store, resamples=50).agreement)
    assert (row["protocol"], row["gallery"], row["metric"]) == ("ucdr", "unseen", "map@all")
    assert (row["methods"], row["seeds"]) == (3, 3)
    assert (row["low"], row["high"]) == pytest.approx((-1.0, 0.5))
    assert row["mean"] == pytest.approx((0.5 - 1.0 - 0.5) / 3)
    part = ReportData(load_results(store.root), store=store).settings[0]
    shown = [grid for grid in grids.tests(part.tables, part.comparison) if grid.caption.startswith("Do the seeds")]
    assert [[cell.text for cell in line.cells] for line in shown[0].rows] == [
        ["UCDR unseen", "map@all", "-0.33", "3", "3"]
    ]
    assert shown[0].rows[0].cells[2].small == "[-1.00, 0.50]"


def test_one_seed_or_two_methods_say_nothing_of_agreement(store: ResultStore) -> None:
    for method, value in (("a", 0.1), ("b", 0.2)):
        for seed in (0, 1):
            add(store, method, "glyph", retrieval_table(np.full(N, value), domain="glyph"), seed=seed)
    assert compare_methods(store, resamples=50).agreement.empty
    for value, method in enumerate("cd", 3):
        add(store, method, "glyph", retrieval_table(np.full(N, value / 10), domain="glyph"), seed=0)
    assert compare_methods(store, resamples=50).agreement.empty


def test_copies_of_a_method_change_nothing_for_the_others(store: ResultStore, tmp_path: Path) -> None:
    """Seven methods that leave the image features as they are have one ranking: one method to tests and agreement."""
    with_copies = ResultStore(tmp_path / "copies")
    for place, method in enumerate(("zero_shot", "good", "fair", "bad")):
        for split, seed in itertools.product(("glyph", "line"), (0, 1)):
            values = ap(11 + (place and seed), 0.08 * place) if place else ap(11, 0.0)
            for name in (method, *(f"copy {n}" for n in range(6) if method == "zero_shot")):
                table = retrieval_table(values, domain=split)
                add(with_copies, name, split, table, seed=seed)
                if name == method:
                    add(store, name, split, table, seed=seed)
    alone, among = compare_methods(store, resamples=400), compare_methods(with_copies, resamples=400)
    pd.testing.assert_frame_equal(alone.agreement, among.agreement)
    key = ["metric", "split", "a", "b"]
    kept = among.pairs[~among.pairs[["a", "b"]].apply(lambda names: names.str.startswith("copy")).any(axis=1)]
    both = alone.pairs.merge(kept, on=key, suffixes=("", " among"))
    assert len(both) == len(alone.pairs) == len(kept)
    assert both["p_holm"].to_numpy() == pytest.approx(both["p_holm among"].to_numpy())
    assert not kept["same"].any()
    same = among.pairs[among.pairs["same"]]
    assert len(same) == 21 * len(same[["metric", "split"]].drop_duplicates()), "each pair of the seven"
    assert set(same["difference"]) == {0.0}
    assert set(same["p_holm"]) == {1.0}
    question = among.pairs[(among.pairs["metric"] == "map@all") & (among.pairs["split"] == ALL)]
    against = question[(question["a"] == "bad") & (question["b"] != "fair") & (question["b"] != "good")]
    assert len(against) == 7
    assert against["p_holm"].nunique() == against["difference"].nunique() == 1, "each stands where the one stands"
    for scores in (alone.scores, among.scores):
        asked = scores[(scores["metric"] == "map@all") & (scores["split"] == ALL)].set_index("label")
        assert asked["best"].sum() == 1
    assert asked.loc[[name for name in asked.index if "copy" in name], "group"].nunique() == 1
    part = ReportData(load_results(with_copies.root), store=with_copies, resamples=400).settings[0]
    shown = grids.tests(part.tables, part.comparison)[0]
    assert "Methods that have the same value for every query are one method to the correction." in shown.notes


def test_copies_of_the_best_are_in_its_group_and_one_is_best(store: ResultStore) -> None:
    for method, values in (("b", ap(1, 0.3)), ("a", ap(1, 0.3)), ("c", ap(5))):
        add(store, method, "line", retrieval_table(values))
    scores = compare_methods(store, metrics=["map@all"], resamples=400).scores
    of_all = scores[scores["split"] == ALL].set_index("label")
    assert of_all["best"].to_dict() == {"a": True, "b": False, "c": False}
    assert of_all["group"].to_dict() == {"a": True, "b": True, "c": False}
    assert of_all["p_best"]["b"] == 1.0


def test_seeds_that_tie_all_methods_have_no_agreement(store: ResultStore) -> None:
    for method in "abc":
        for seed in (0, 1):
            add(store, method, "glyph", retrieval_table(np.full(N, 0.5), domain="glyph"), seed=seed)
    assert compare_methods(store, resamples=50).agreement.empty


def test_oracle_rows_are_marked_and_unranked_and_their_inflation_is_shown(store: ResultStore) -> None:
    values = fill(store)
    for split, gain in (("glyph", 0.05), ("line", 0.1)):
        for seed in (0, 1):
            table = retrieval_table(values["good", seed, split] + gain + 0.02 * seed, domain=split)
            add(store, "good", split, table, seed=seed, select="oracle")
    add(store, "bad", "line", retrieval_table(values["bad", 0, "line"]), select="oracle")
    got = compare_methods(store, metrics=["map@all"], resamples=200)
    oracle = got.scores[got.scores["select"] == "oracle"]
    assert len(oracle) == 6
    assert not oracle["tested"].any()
    assert not oracle["best"].any()
    assert set(got.pairs["select"]) == {"val"}
    assert set(got.ranks["select"]) == {"val"}
    shown = got.inflation.set_index(["label", "split"])
    assert "select" not in shown
    assert shown["inflation"]["good", "glyph"] == pytest.approx(0.06)
    assert shown["inflation"]["good", "line"] == pytest.approx(0.11)
    row = shown.loc[("good", ALL)]
    expected = mean_over_seeds([0.075, 0.095])
    assert (row["inflation"], row["low"], row["high"]) == pytest.approx((expected.mean, expected.low, expected.high))
    assert (row["oracle"] - row["val"], row["seeds"], row["missing"]) == (pytest.approx(0.085), 2, ())
    assert shown["inflation"]["bad", "line"] == pytest.approx(0)
    assert math.isnan(shown["inflation"]["bad", ALL])
    assert shown["missing"]["bad", ALL] == ("oracle glyph: missing",)
    assert "same" not in shown.index


def test_a_seed_on_one_side_only_is_missing(store: ResultStore) -> None:
    for seed in (0, 1):
        add(store, "good", "line", retrieval_table(ap(1)), seed=seed)
    add(store, "good", "line", retrieval_table(ap(1)), select="oracle")
    row = one(compare_methods(store, metrics=["map@all"], resamples=50).inflation, split=ALL)
    assert row["missing"] == ("oracle seed 1: missing",)
    assert math.isnan(row["inflation"])


def test_accuracies_come_from_credit(store: ResultStore) -> None:
    rng = np.random.default_rng(0)
    for method, rate in (("sharp", 0.9), ("blunt", 0.3)):
        credit = (rng.random(N) < rate).astype(float)
        add(store, method, "line to flat", zero_shot_table(credit, 8), protocol="dazsl")
    got = compare_methods(store, resamples=500)
    for row in got.pairs[got.pairs["split"] == ALL].to_dict("records"):
        value = got.scores[(got.scores["metric"] == row["metric"]) & (got.scores["split"] == ALL)].set_index("label")
        assert row["difference"] == pytest.approx(value["value"]["sharp"] - value["value"]["blunt"])
        assert (row["a"], row["b"]) == ("sharp", "blunt")
    counted = got.pairs[got.pairs["split"] == ALL].set_index("metric")
    assert counted["classes"].to_dict() == {"h[image]": 12, "seen[image]": 8, "unseen[image]": 4}
    assert counted["queries"].to_dict() == {"h[image]": 36, "seen[image]": 24, "unseen[image]": 12}
    assert one(got.scores, metric="h[image]", split=ALL, label="sharp")["best"]
    assert not one(got.scores, metric="h[image]", split=ALL, label="blunt")["group"]
    assert one(got.scores, metric="unseen[image]", split=ALL, label="blunt")["group"], "four classes separate nothing"


def test_unseen_classes_are_flagged_or_have_a_zero_shot_credit() -> None:
    table = zero_shot_table(np.linspace(0, 1, N), 8)
    flagged = table.assign(unseen=table["zsl_credit"].notna()).drop(columns="zsl_credit")
    for metric in ("seen[image]", "unseen[class]", "h[class]"):
        one_way, other = query_values(table, metric), query_values(flagged, metric)
        assert one_way.signature == other.signature
        assert one_way.weighting == other.weighting == ("class" if "class" in metric else "query")
    groups = query_values(flagged, "h[image]").groups
    assert groups is not None
    assert groups.sum() == 4 * PER_CLASS
    assert len(query_values(table, "zsl[image]").values) == 4 * PER_CLASS
    with pytest.raises(KeyError, match="no per-query column 'zsl_credit' for zsl"):
        query_values(flagged, "zsl[image]")
    with pytest.raises(KeyError, match=r"no per-query column 'ap@200\[trec\]'"):
        query_values(table, "map@200[trec]")


def test_the_newest_record_of_a_cell_counts(store: ResultStore) -> None:
    for code, value, created in ((1, 0.2, "2026-01-02"), (2, 0.7, "2026-01-03"), (3, 0.4, "2026-01-01")):
        add(store, "good", "line", retrieval_table(np.full(N, value)), code=code, created=created)
    frame = newest(load_results(store.root))
    assert frame["key"].nunique() == 1
    assert one(compare_methods(store, metrics=["map@all"]).scores, split=ALL)["value"] == pytest.approx(0.7)


def test_configs_of_a_method_are_compared_as_methods(store: ResultStore) -> None:
    for context in (4, 16):
        add(store, "coop", "line", retrieval_table(ap(context)), config={"context": context, "steps": 60})
    got = compare_methods(store, metrics=["map@all"], resamples=50)
    assert {*got.pairs["a"], *got.pairs["b"]} == {"coop (context=4)", "coop (context=16)"}


def test_filtered_results_are_what_is_compared(store: ResultStore) -> None:
    fill(store)
    frame = load_results(store.root)
    got = compare_methods(store, frame[frame["method"] != "same"], metrics=["map@all"], resamples=50)
    assert set(got.scores["label"]) == {"good", "bad"}
    empty = compare_methods(store, frame[:0])
    assert all(getattr(empty, name).empty for name in MethodComparison.__dataclass_fields__)


def test_hostile_names_are_names(store: ResultStore) -> None:
    for method in ("<b>\n|", "../..", "a\x00b"):
        add(store, method, "x\ny/..", retrieval_table(ap(len(method))), protocol="<i>")
    got = compare_methods(store, metrics=["map@all"], resamples=50)
    assert set(got.scores["method"]) == {"<b>\n|", "../..", "a\x00b"}
    assert got.scores["tested"].all()


def test_recomputed_means_equal_the_stored_ones_in_the_reference_results() -> None:
    """The metrics' definitions here and in the scoring code agree on real records (a pack may round to 1e-4)."""
    root = Path(__file__).parents[2] / "results" / "reference"
    store, checked = ResultStore(root), set()
    frame = load_results(root)
    wanted = frame[(frame["method"] == "zero_shot") & (frame["status"] == "ok")].drop_duplicates(
        ["protocol", "gallery"]
    )
    from benchmarks.reporting.method_comparison import per_query_tables

    for row in wanted.to_dict("records"):
        table = per_query_tables(store, row)[row["gallery"]]
        stored = frame[(frame["key"] == row["key"]) & (frame["gallery"] == row["gallery"])]
        for metric, value in zip(stored["metric"], stored["value"], strict=True):
            try:
                values = query_values(table, metric)
            except KeyError:
                continue  # a lean pack keeps the columns of leading metrics only
            totals = class_totals(
                {"m": values.values}, values.classes, groups=values.groups, weighting=values.weighting
            )
            assert totals.estimates()["m"] == pytest.approx(value, abs=2e-4), (row["protocol"], metric)
            checked.add(metric)
    assert {"map@all", "recall@1", "accuracy[image]", "h[image]", "seen[image]", "unseen[image]"} <= checked


def test_pairs_as_csv_are_the_tested_pairs_of_the_leading_metric(store: ResultStore) -> None:
    fill(store)
    data = ReportData(load_results(store.root), store=store, resamples=500)
    rows = list(csv.DictReader(io.StringIO(pairs_csv(data))))
    pairs = compare_methods(store, resamples=500).pairs
    leading = data.settings[0].leading[0].metric
    expected = pairs[(pairs["split"] == ALL) & (pairs["metric"] == leading)]
    assert [(row["better"], row["worse"]) for row in rows] == list(zip(expected["a"], expected["b"], strict=True))
    assert len(rows) == 3
    for row, entry in zip(rows, expected.to_dict("records"), strict=True):
        assert float(row["difference"]) == pytest.approx(entry["difference"], rel=1e-5)
        assert float(row["p_holm"]) == pytest.approx(entry["p_holm"], rel=1e-5)
        assert float(row["low"]) <= float(row["difference"]) <= float(row["high"])
    assert pairs_csv(ReportData(load_results(store.root))).count("\n") == 1, (
        "nothing is tested without per-query values"
    )
