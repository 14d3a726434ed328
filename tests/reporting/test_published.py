"""Published figures beside ours: the file, the join, and that no convention, class split or backbone is ever mixed."""

from __future__ import annotations

import csv
import itertools
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from benchmarks.backbones.sources import OPENAI
from benchmarks.reporting import published
from benchmarks.reporting.data import ReportData
from benchmarks.reporting.files import write_report
from benchmarks.reporting.markdown import published_markdown
from benchmarks.store.files import ResultStore
from benchmarks.store.frame import load_results
from benchmarks.store.records import CellId, GalleryScores, Record, content_key

B32 = "openai/clip-vit-base-patch32"
OFFICE_HOME = ("art", "clipart", "product", "real_world")


def add(store: ResultStore, metrics: dict[str, float], gallery: str, **cell: Any) -> None:
    """Store a finished record with these figures (``status="failed"``: without); other words are fields of the cell."""
    status, extension, created = cell.pop("status", "ok"), cell.pop("extension", ""), cell.pop("created", "")
    data_hash, code = cell.pop("data_hash", "ab" * 32), cell.pop("code", 1)
    precision = cell.pop("precision", "float32")
    identity = {
        "method": "pros",
        "variant": "official",
        "config": {"steps": 0},
        "backbone": B32,
        "dataset": "domainnet",
        "protocol": "ucdr",
        "rules": "official",
        "split": "sketch",
        "select": "val",
        "seed": 0,
    }
    made = CellId(**(identity | cell))
    inputs = {
        "scoring": 1,
        "code": code,
        "cell": vars(made),
        "dataset": {"data_hash": data_hash},
        "backbone": {"weights_hash": "cd" * 32, "precision": precision},
    }
    scores = {gallery: GalleryScores(metrics, 8, 24, "cosine")} if status == "ok" else {}
    store.write(
        Record(
            key=content_key(inputs),
            status=status,
            cell=made,
            inputs=inputs,
            method={"title": made.method, "extensions": {gallery: extension} if extension else {}},
            dataset={"version": "v1", "gallery_domain": "real"},
            galleries={gallery: list(metrics)},
            scores=scores,
            reason="" if status == "ok" else "RuntimeError: boom",
            created=created,
        )
    )


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    return ResultStore(tmp_path / "results")


def row(among: pd.DataFrame, /, **where: str) -> pd.Series:
    """The one row of these values."""
    for name, value in where.items():
        among = among[among[name] == value]
    assert len(among) == 1, among
    return among.iloc[0]


def pros_sketch(table: pd.DataFrame, metric: str = "map@200[retrieved]") -> pd.Series:
    return row(table, published_method="ProS", split="sketch", gallery="unseen", metric=metric, protocol="ucdr")


# --- the file ---------------------------------------------------------------------------------------------------------


def test_every_row_keeps_its_source_and_confidence() -> None:
    raw = published.read()
    assert tuple(raw.columns) == published.FILE_COLUMNS
    assert len(raw) > 500
    for column in ("paper", "protocol", "method", "metric", "value", "source", "confidence"):
        assert (raw[column].str.strip() != "").all(), column
    assert set(raw["confidence"]) == {"read"}


def test_known_figures_in_our_words() -> None:
    figures = published.figures()
    average = figures[(figures["split"] == published.MEAN) & (figures["dataset"] == "domainnet")]
    adapter = average[(average["method"] == "ucdr_adapter") & (average["metric"] == "map@200[retrieved]")]
    assert dict(zip(adapter["gallery"], adapter["value"], strict=True)) == {
        "unseen": 0.6071,
        "mixed": 0.5660,
        "seen": 0.6370,
    }
    large = row(figures, method="ad_clip", backbone="ViT-L/14", split="art to clipart")
    assert large["value"] == pytest.approx(0.803)
    mean = row(figures, table="Office-Home", method="ad_clip", backbone="ViT-B/16", split=published.MEAN)
    assert (mean["value"], mean["std"]) == (pytest.approx(0.861), pytest.approx(0.002))
    assert figures["value"].between(0, 1).all()
    assert not figures["published_metric"].str.contains("lr|epochs|hardware|gain|std", regex=True).any()


def test_figures_of_newer_papers_in_our_words() -> None:
    figures = published.figures()
    cmkd = figures[figures["method"] == "cmkd"]
    found = {(one["dataset"], one["backbone"], one["metric"]): one["value"] for one in cmkd.to_dict("records")}
    expected = {
        ("office_home", "RN50", "accuracy[image]"): 0.793,
        ("office_home", "ViT-B/16", "accuracy[image]"): 0.884,
        ("visda", "RN101", "accuracy[class]"): 0.87,
        ("visda", "ViT-B/16", "accuracy[class]"): 0.903,
    }
    assert found == pytest.approx(expected)
    sketches = figures[figures["method"] == "sketch_lvm"]
    assert dict(zip(sketches["metric"], sketches["value"], strict=True)) == {
        "map@200[retrieved]": 0.723,
        "p@200": 0.725,
        "map@all": 0.651,
        "p@100": 0.732,
    }
    assert set(sketches["split"]) == {"sketch"} and set(sketches["backbone"]) == {"ViT-B/32"}
    own = figures[figures["source"].str.contains("output/eval.txt", regex=False)]
    own_values = dict(zip(own["metric"], own["value"], strict=True))
    assert own_values == pytest.approx({"accuracy[image]": 0.8503, "accuracy[class]": 0.8681})
    assert (own["backbone"] == "RN101").all() and (own["method"] == "dapl").all()


def test_every_score_is_matched_or_says_why_not() -> None:
    figures = published.figures()
    matched = figures[figures["obstacle"] == ""]
    assert len(matched) >= 120
    assert (matched[["method", "backbone", "split", "gallery", "metric"]] != "").all(axis=None)
    table = published.beside()
    assert len(table) == len(figures)
    assert (table["reason"] != "").all()
    assert table["ours"].isna().all()
    assert table["gap"].isna().all()


def test_transfers_of_the_tables_are_complete() -> None:
    figures = published.figures()
    own = figures[(figures["method"] == "ad_clip") & (figures["backbone"] == "ViT-B/16")]
    wanted = {f"{s} to {t}" for s, t in itertools.permutations(OFFICE_HOME, 2)}
    assert set(own[own["dataset"] == "office_home"]["split"]) == wanted | {published.MEAN}
    shown = own[(own["dataset"] == "office_home") & (own["table"] == "Office-Home") & (own["split"] != published.MEAN)]
    mean = row(own, table="Office-Home", split=published.MEAN)
    assert shown["value"].mean() == pytest.approx(mean["value"], abs=6e-4), "the printed mean is that of the columns"


@pytest.mark.parametrize("text", [None, "a,b\n1,2\n", "\x00\x01"])
def test_a_broken_file_is_named_in_one_line(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "published.csv"
    if text is not None:
        file.write_text(text)
    with pytest.raises(published.PublishedError) as caught:
        published.figures(file)
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_value_that_is_no_number_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "published.csv"
    with file.open("w", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(published.FILE_COLUMNS)
        writer.writerow(
            ["P", "T", "UCDR", "DomainNet", "query=sketch; unseen-class gallery", "ProS", "mAP@200", "n/a", "", ""]
        )
    with pytest.raises(published.PublishedError, match="no number"):
        published.figures(file)


# --- the join ---------------------------------------------------------------------------------------------------------


def test_ours_stands_beside_the_same_question(store: ResultStore) -> None:
    for seed, value in enumerate((0.60, 0.62)):
        add(store, {"map@200[retrieved]": value, "map@200[trec]": 0.1, "p@200": 0.5}, "unseen", seed=seed)
    found = pros_sketch(published.beside(load_results(store.root)))
    assert found["published"] == 0.6457
    assert found["ours"] == pytest.approx(0.61)
    assert found["gap"] == pytest.approx(0.61 - 0.6457)
    assert (found["seeds"], found["rules"]) == (2, "official")
    assert "secondary" in found["reason"]
    precision = pros_sketch(published.beside(load_results(store.root)), "p@200")
    assert precision["ours"] == pytest.approx(0.5)


def test_metric_conventions_never_mix(store: ResultStore) -> None:
    add(store, {"map@200[trec]": 0.61, "map@all": 0.5}, "unseen")
    found = pros_sketch(published.beside(load_results(store.root)))
    assert math.isnan(found["ours"])
    assert "metric convention" in found["reason"]


def test_class_splits_never_mix(store: ResultStore) -> None:
    scores = {"map@200[retrieved]": 0.6, "p@200": 0.5}
    add(store, scores, "unseen", rules="clean")
    found = pros_sketch(published.beside(load_results(store.root)))
    assert math.isnan(found["ours"])
    assert found["reason"] == "class split: run with --rules official (ours: clean)"
    for split in ("clipart", "infograph", "painting", "quickdraw", "sketch"):
        for rules in ("clean", "official"):
            add(store, scores, "unseen", method="ucdr_adapter", rules=rules, split=split)
    table = published.beside(load_results(store.root))
    adapter = table[(table["published_method"] == "UCDR-Adapter") & table["ours"].notna()]
    assert set(adapter["rules"]) == {"clean"}, "its release trains on the train classes alone"
    assert set(adapter["split"]) == {published.MEAN}
    for split in ("clipart", "infograph", "painting", "quickdraw", "sketch"):
        add(store, scores, "unseen", method="ucdr_adapter", dataset="domainnet_245", rules="official", split=split)
    table = published.beside(load_results(store.root))
    adapter = table[(table["published_method"] == "UCDR-Adapter") & table["ours"].notna()]
    assert set(adapter["rules"]) == {"clean", "official"}, "official figures of the data set with its class list"
    assert adapter[adapter["rules"] == "official"]["reason"].str.startswith("ours on domainnet_245").all()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"backbone": "picto-clip-v1"}, "run with another backbone (picto-clip-v1), published with ViT-B/32"),
        ({"backbone": "checkpoints/my-vit-b-32-finetuned"}, "run with another backbone"),
        ({"limit": 96}, "run with --limit only"),
        ({"gallery": "mixed"}, "not run"),
        ({"split": "clipart"}, "not run"),
        ({"dataset": "picto_domains"}, "not run"),
        ({"protocol": "uccdr"}, "not run"),
        ({"method": "coop"}, "not run"),
        ({"status": "failed"}, "failed: RuntimeError: boom"),
        ({"status": "failed", "gallery": "*", "split": "*"}, "failed: RuntimeError: boom"),
        ({"ablation": "no_mask"}, "not run"),
        ({"dataset": "domainnet_245"}, "not run"),
    ],
)
def test_another_question_leaves_ours_blank(store: ResultStore, change: dict[str, Any], reason: str) -> None:
    gallery = change.pop("gallery", "unseen")
    add(store, {"map@200[retrieved]": 0.6}, gallery, **change)
    found = pros_sketch(published.beside(load_results(store.root)))
    assert math.isnan(found["ours"])
    assert math.isnan(found["gap"])
    assert found["reason"].startswith(reason)


DOMAINNET = ("clipart", "infograph", "painting", "quickdraw", "sketch")
SKETCHY = {"dataset": "sketchy", "protocol": "uccdr", "method": "ucdr_adapter"}
UDA = {"protocol": "uda", "backbone": "openai/clip-vit-base-patch16", "rules": "clean", "variant": "paper"}
HOME = {**UDA, "dataset": "office_home", "method": "ad_clip", "split": "art to clipart"}
PHASES = {"steps": 0, "prompt_length": 4, "context_tokens": 8, "epochs": 10}


def answered(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["ours"].notna()]


@pytest.mark.parametrize(
    ("cell", "named", "absent"),
    [
        ({}, ["secondary", "ours: 1 seed, 8 queries"], ["variant", "Euclidean", "folder", "test set"]),
        ({"variant": "paper"}, ["ours is the variant paper, not the released code's"], []),
        ({"select": "last"}, ["published picks its model on the test set, ours does not"], ["ours is selected"]),
        ({"select": "oracle"}, ["ours is selected on the test set"], ["published picks"]),
        ({"precision": "bf16"}, ["ours in bf16"], []),
        ({"backbone": "mine/clip-vit-base-patch32"}, ["weights of the folder mine/clip-vit-base-patch32"], []),
        ({"config": {"steps": 0, "prompt_length": 4}}, ["ours with prompt_length 4, published with 1"], []),
        ({"config": {"steps": 9, "epochs": 3}}, ["ours trained for 9 steps"], ["epochs"]),
        ({**SKETCHY, "config": PHASES}, ["secondary"], ["published with"]),
        ({**SKETCHY, "config": {"steps": 0, "prompt_length": 1}}, ["ours with prompt_length 1, published with 4"], []),
        (HOME, ["published in mixed precision (float16), ours in float32", "nine tenths of the labelled source"], []),
        ({**HOME, "rules": "official"}, [], ["nine tenths", "picks its", "ours is selected"]),
        ({**HOME, "method": "zero_shot"}, ["ours: 1 seed"], ["nine tenths", "template", "test set"]),
        (
            {**HOME, "method": "zero_shot", "config": {"template": "a drawing of a {}"}},
            ["ours with the template 'a drawing of a {}'"],
            [],
        ),
    ],
)  # fmt: skip
def test_every_difference_is_named(
    store: ResultStore, cell: dict[str, Any], named: list[str], absent: list[str]
) -> None:
    protocol = cell.get("protocol", "ucdr")
    metric = "accuracy[image]" if protocol == "uda" else "map@200[retrieved]"
    add(store, {metric: 0.6}, "target" if protocol == "uda" else "unseen", **cell)
    found = answered(published.beside(load_results(store.root)))
    assert len(found)
    for reason in found["reason"]:
        assert all(words in reason for words in named), reason
        assert not any(words in reason for words in absent), reason


def test_clean_figures_name_what_the_released_rules_do_otherwise(store: ResultStore) -> None:
    for split in DOMAINNET:
        for method in ("ucdr_adapter", "zero_shot"):
            add(
                store, {"map@200[retrieved]": 0.5}, "unseen", rules="clean", variant="paper", method=method, split=split
            )
    found = answered(published.beside(load_results(store.root)))
    adapter = row(found, method="ucdr_adapter")["reason"]
    for words in (
        "Euclidean",
        "inverts the images of quickdraw and sketch",
        "another draw of held-back",
        "picks its",
    ):
        assert words in adapter
    floor = row(found, method="zero_shot")["reason"]
    assert "Euclidean" in floor and "inverts" in floor
    assert "held-back" not in floor and "picks its" not in floor
    assert floor.endswith("ours: 1 seed, 40 queries")


def test_a_baseline_of_another_paper_is_told_from_its_own(store: ResultStore) -> None:
    transfers = [f"{s} to {t}" for s, t in itertools.permutations(OFFICE_HOME, 2)]
    for split in transfers:
        own = {**HOME, "method": "coop", "split": split, "rules": "official"}
        add(store, {"accuracy[image]": 0.8}, "target", extension="source only", **own)
    (found,) = answered(published.beside(load_results(store.root))).to_dict("records")
    assert "published is another paper's run of this baseline" in found["reason"]
    assert "ours is selected on the test set" in found["reason"]
    assert "ours goes beyond the method's paper: source only" in found["reason"]


@pytest.mark.parametrize(
    ("dataset", "metric", "matched"),
    [
        ("sketchy", "map@200[retrieved]", True),
        ("sketchy", "map@200[trec]", False),
        ("sketchy", "map@all", False),
        ("sketchy_random", "map@200[retrieved]", False),
        ("sketchy_random", "map@all", False),
        ("tuberlin", "map@all", True),
        ("tuberlin", "map@200[retrieved]", False),
    ],
)
def test_a_split_of_sketchy_is_never_the_other(store: ResultStore, dataset: str, metric: str, matched: bool) -> None:
    add(store, {metric: 0.6}, "unseen", dataset=dataset, protocol="uccdr")
    assert bool(len(answered(published.beside(load_results(store.root))))) is matched


@pytest.mark.parametrize(
    ("dataset", "metric", "matched"),
    [
        ("visda", "accuracy[class]", True),
        ("visda", "accuracy[image]", False),
        ("visda_test", "accuracy[class]", False),
        ("i2awa", "h[image]", False),
    ],
)
def test_accuracies_keep_their_convention(store: ResultStore, dataset: str, metric: str, matched: bool) -> None:
    cell = {**UDA, "dataset": dataset, "split": "synthetic to real", "method": "zero_shot"}
    if dataset == "i2awa":
        cell |= {"protocol": "dazsl", "split": "3d2 to awa2", "method": "sre_clip", "backbone": B32}
    add(store, {metric: 0.6}, "target", **cell)
    found = answered(published.beside(load_results(store.root)))
    assert bool(len(found)) is matched
    assert found["reason"].str.contains("taken for the twelve classes").all()


def test_the_newest_record_of_a_cell_counts_once(store: ResultStore) -> None:
    for day, value in ((1, 0.4), (3, 0.6), (2, 0.5)):
        made = f"2026-01-0{day}T00:00:00+00:00"
        add(store, {"map@200[retrieved]": value}, "unseen", code=day, created=made)
    found = pros_sketch(published.beside(load_results(store.root)))
    assert (found["ours"], found["seeds"]) == (0.6, 1)


def test_a_seed_that_failed_leaves_no_mean_over_the_others(store: ResultStore) -> None:
    add(store, {"map@200[retrieved]": 0.6}, "unseen")
    add(store, {}, "unseen", seed=1, status="failed")
    found = pros_sketch(published.beside(load_results(store.root)))
    assert math.isnan(found["ours"])
    assert found["reason"] == "failed on sketch, seed 1: RuntimeError: boom"


def test_a_mean_needs_the_same_seeds_not_only_as_many(store: ResultStore) -> None:
    for split in DOMAINNET:
        add(store, {"map@200[retrieved]": 0.6}, "unseen", split=split, seed=int(split == "sketch"))
    table = published.beside(load_results(store.root))
    mean = row(table, published_method="ProS", split=published.MEAN, gallery="unseen", metric="map@200[retrieved]")
    assert math.isnan(mean["ours"])
    assert "same seeds" in mean["reason"]
    assert pros_sketch(table)["ours"] == 0.6


def test_two_copies_of_the_data_are_told_apart(store: ResultStore) -> None:
    for data_hash in ("ab" * 32, "ef" * 32):
        add(store, {"map@200[retrieved]": 0.6}, "unseen", data_hash=data_hash)
    found = answered(published.beside(load_results(store.root)))
    listed = sorted(reason.split("; ")[-2] for reason in found["reason"])
    assert listed == ["data abababab of several", "data efefefef of several"]


def test_every_refusal_is_told(store: ResultStore) -> None:
    add(store, {"map@200[retrieved]": 0.6}, "unseen", rules="clean")
    add(store, {}, "unseen", seed=1, status="failed")
    add(store, {"map@200[retrieved]": 0.6}, "unseen")
    reason = pros_sketch(published.beside(load_results(store.root)))["reason"]
    assert reason == (
        "class split: run with --rules official (ours: clean); failed on sketch, seed 1: RuntimeError: boom"
    )


HUB = {kind: name.removeprefix("open_clip:") for name in OPENAI.values() if (kind := published.backbone_kind(name))}
#: One aspect of a question changed to what no published figure asks.
ELSEWHERE: dict[str, Callable[[dict[str, Any]], Any]] = {
    "metric": lambda one: {
        "map@200[retrieved]": "map@200[trec]",
        "map@all": "map@200[retrieved]",
        "p@200": "p@100",
        "p@100": "p@200",
        "accuracy[image]": "accuracy[class]",
        "accuracy[class]": "accuracy[image]",
    }[one["metric"]],
    "dataset": lambda one: {"sketchy": "sketchy_random", "visda": "visda_test"}.get(one["dataset"], "picto_domains"),
    "gallery": lambda one: {"unseen": "mixed of ours", "target": "source"}.get(one["gallery"], "of ours"),
    "protocol": lambda one: {"ucdr": "uccdr", "uccdr": "ucdr", "uda": "uda_inductive"}.get(one["protocol"], "dazsl"),
    "backbone": lambda one: {HUB["ViT-B/32"]: "laion/CLIP-ViT-B-32"}.get(one["backbone"], "openai/clip-rn50"),
    "rules": lambda one: "clean" if one["method"] == "pros" else "rules of another suite",
    "limit": lambda one: 128.0,
    "ablation": lambda one: "no_mask",
    "split": lambda one: "real" if one["protocol"] != "uda" else "art to art",
    "method": lambda one: "lora",
}


def test_no_figure_is_ever_answered_by_another_question() -> None:
    figures = published.figures()
    figures = figures[figures["obstacle"] == ""]
    right: dict[tuple[Any, ...], dict[str, Any]] = {}
    for figure in figures.to_dict("records"):
        splits = published.ALL_SPLITS[figure["protocol"], figure["dataset"]] if figure["split"] == "mean" else ()
        for split in sorted(splits) or [figure["split"]]:
            cell = {name: figure[name] for name in ("method", "dataset", "protocol", "gallery", "metric")}
            cell |= {"split": split, "backbone": HUB[figure["backbone"]], "rules": "official"}
            if (figure["method"], figure["dataset"]) == ("ucdr_adapter", "domainnet"):
                cell["dataset"] = "domainnet_245"
            right.setdefault(tuple(cell.values()), cell | {"value": len(right) / 1000})
    wrong = [one | {name: change(one), "value": 9.0} for one in right.values() for name, change in ELSEWHERE.items()]
    wrong = [one for one in wrong if tuple(part for name, part in one.items() if name != "value") not in right]
    common = {
        "variant": "official", "config": "{}", "select": "val", "seed": 0, "limit": float("nan"), "ablation": "",
        "shots": "",
        "status": "ok", "reason": "", "data_hash": "ab", "weights_hash": "cd", "identity": "", "precision": "float32",
        "scoring": 1,
        "dataset_version": "v1", "extension": "", "headline": (), "floor": False, "created": "", "n_queries": 8,
    }  # fmt: skip
    rows = [common | one for one in (*right.values(), *wrong)]
    of_record = ("method", "dataset", "protocol", "split", "backbone", "rules", "limit", "ablation")
    rows = [one | {"key": " ".join(str(one[name]) for name in of_record)} for one in rows]
    table = published.beside(pd.DataFrame(rows).sample(frac=1, random_state=0))
    found = answered(table)
    assert len(found) == len(figures), "every figure that can be answered is, once"
    assert found["ours"].max() < 1, "no figure of another question"
    for one in found[found["split"] != published.MEAN].to_dict("records"):
        names = ("method", "dataset", "protocol", "gallery", "metric", "split")
        (own,) = [r for r in right.values() if [r[n] for n in names] == [one[n] for n in names]
                  and r["backbone"] == HUB[one["backbone"]]]  # fmt: skip
        assert one["ours"] == own["value"]


def test_a_mean_needs_all_transfers_with_the_same_seeds(store: ResultStore) -> None:
    transfers = [f"{s} to {t}" for s, t in itertools.permutations(OFFICE_HOME, 2)]
    common = {
        "method": "ad_clip",
        "backbone": "weights/ViT-B-16",
        "dataset": "office_home",
        "protocol": "uda",
        "rules": "clean",
        "config": {"steps": 100},
    }

    def mean() -> pd.Series:
        table = published.beside(load_results(store.root))
        return row(table, table="Office-Home", method="ad_clip", backbone="ViT-B/16", split=published.MEAN)

    for number, split in enumerate(transfers[:-1]):
        add(store, {"accuracy[image]": 0.80 + number / 100}, "target", split=split, **common)
    assert math.isnan(mean()["ours"])
    assert "real_world to product missing" in mean()["reason"]
    add(store, {"accuracy[image]": 0.91}, "target", split=transfers[-1], **common)
    found = mean()
    assert found["ours"] == pytest.approx(sum(0.80 + n / 100 for n in range(12)) / 12)
    assert found["published_std"] == pytest.approx(0.002)
    assert "100 steps" in found["reason"]
    assert "picks its model on the test set" in found["reason"]
    add(store, {"accuracy[image]": 0.8}, "target", split=transfers[0], seed=1, **common)
    assert math.isnan(mean()["ours"])
    assert "same seeds" in mean()["reason"]


def test_several_configurations_have_a_row_each(store: ResultStore) -> None:
    for variant, value in (("official", 0.6), ("paper", 0.5)):
        add(store, {"map@200[retrieved]": value}, "unseen", variant=variant)
    table = published.beside(load_results(store.root))
    rows = table[(table["published_method"] == "ProS") & (table["split"] == "sketch") & table["ours"].notna()]
    assert dict(zip(rows["label"], rows["ours"], strict=True)) == {"pros (official)": 0.6, "pros (paper)": 0.5}


def test_unfavourable_sources_stay_unmatched() -> None:
    table = published.beside()
    assert row(table, published_metric="accuracy", dataset="i2awa")["reason"].startswith("the source does not name")
    inferred = table[table["published_metric"].str.contains("inferred")]
    assert len(inferred) == 3
    assert inferred["reason"].str.contains("convention").all()
    assert row(table, published_method="UCDR-Adapter: + Mask")["reason"] == "an ablation of the paper"
    resnet = table[table["backbone"] == "RN50"]
    ours = resnet["published_method"].isin(("AD-CLIP", "DAPL", "CMKD", "Zero-shot CLIP", "CLIP-FT"))
    assert (resnet["published_method"] == "AD-CLIP").sum() >= 18
    assert resnet[~ours]["reason"].str.contains("not in the suite").all()
    assert (resnet[ours]["reason"] == "not run").all()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("openai/clip-vit-base-patch32", "ViT-B/32"),
        ("models/clip-vit-large-patch14", "ViT-L/14"),
        ("converted/ViT-B-16", "ViT-B/16"),
        ("timm/resnet50_clip.openai", "RN50"),
        ("timm/resnet50_clip.yfcc15m", ""),
        ("models/RN101", "RN101"),
        ("random-0", ""),
        ("laion/CLIP-ViT-B-32-laion2B-s34B-b79K", ""),
        ("openai/clip-vit-large-patch14-336", ""),
        ("", ""),
    ],
)
def test_backbones_are_known_by_their_exact_names(name: str, kind: str) -> None:
    assert published.backbone_kind(name) == kind


def test_markdown_shows_blanks_and_gaps(store: ResultStore) -> None:
    add(store, {"map@200[retrieved]": 0.61}, "unseen")
    table = published.beside(load_results(store.root))
    text = published_markdown(table)
    assert "| 64.6 | 61.0 | -3.6 |" in text
    assert "| 75.9 ± 0.1 | - | - |" in text


def test_a_report_has_the_figures_of_its_data_sets(store: ResultStore, tmp_path: Path) -> None:
    add(store, {"map@200[retrieved]": 0.61}, "unseen")
    frame = load_results(store.root)
    write_report(ReportData(frame, store=store, resamples=20), tmp_path / "report")
    text = (tmp_path / "report" / "published.md").read_text()
    assert "| 64.6 | 61.0 | -3.6 |" in text and "ucdr, domainnet" in text
    assert "AD-CLIP" not in text, "of other data sets"
    write_report(ReportData(frame.assign(dataset="mine"), store=store, resamples=20), tmp_path / "other")
    assert not (tmp_path / "other" / "published.md").exists()
