"""DomainNet, Sketchy and TU-Berlin on trees of their published layouts: what loads, what fails and with which line."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks import data, run
from benchmarks.datasets import retrieval_dataset, splits
from benchmarks.datasets.base import DatasetError
from benchmarks.datasets.domainnet import DomainNet
from benchmarks.datasets.folder_dataset import FolderDataset
from benchmarks.datasets.registry import DATASETS
from benchmarks.datasets.retrieval_dataset import RetrievalDataset
from benchmarks.datasets.sketchy import Sketchy, SketchyRandom
from benchmarks.datasets.splits import class_lists, lists_hash
from benchmarks.datasets.tuberlin import TUBerlin
from benchmarks.protocols import uccdr, ucdr, udcdr
from tests.datasets import trees
from tests.support.golden import golden_set

SETS: dict[str, tuple[type[RetrievalDataset], tuple[int, int, int]]] = {
    "domainnet": (DomainNet, (245, 55, 45)),
    "sketchy": (Sketchy, (93, 11, 21)),
    "sketchy_random": (SketchyRandom, (90, 10, 25)),
    "tuberlin": (TUBerlin, (200, 20, 30)),
}
TREES: dict[str, Callable[..., list[str]]] = {
    "domainnet": trees.domainnet_tree,
    "sketchy": trees.sketchy_tree,
    "tuberlin": trees.tuberlin_tree,
}


def all_classes(kind: type[RetrievalDataset]) -> list[str]:
    """Train classes first, so that the first three are train classes under every split."""
    lists = class_lists(kind.class_list)
    return [name for split in splits.SPLITS for name in lists[split]]


@pytest.fixture(scope="module")
def data_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with a tree of each set: every class, two images a class and domain, twelve of the first three."""
    root = tmp_path_factory.mktemp("data")
    for name, write in TREES.items():
        write(root / name, all_classes(SETS[name][0]), plenty=True)
    return root


@pytest.fixture(params=SETS)
def loaded(request: pytest.FixtureRequest, data_root: Path) -> RetrievalDataset:
    kind, _ = SETS[request.param]
    return kind(data_root / request.param)


# --- the lists --------------------------------------------------------------------------------------------------------


@pytest.mark.golden
def test_the_committed_class_lists_are_the_official_ones() -> None:
    official: dict[str, list[str]] = golden_set().json("class_lists.json")
    domainnet = class_lists("domainnet")
    for split in splits.SPLITS:
        assert list(domainnet[split]) == official[f"domainnet_{split}"]
    for name, test, val in (
        ("sketchy_eccv2018", "sketchy_test_eccv2018_21", "sketchy_val_eccv2018_drawn_but_also_trained_on"),
        ("sketchy_random", "sketchy_test_random_25", "sketchy_val_random_drawn_but_also_trained_on"),
    ):
        lists = class_lists(name)
        assert list(lists["test"]) == official[test]
        assert list(lists["val"]) == official[val]
        assert sorted(sum(lists.values(), ())) == official["sketchy_all_125"]
    tuberlin = class_lists("tuberlin")
    assert list(tuberlin["test"]) == official["tuberlin_test_30"]
    assert list(tuberlin["val"]) == official["tuberlin_val_20"]
    assert list(tuberlin["train"]) == official["tuberlin_train_200"]


def test_a_changed_list_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert lists_hash(class_lists("tuberlin")) == "e6f6e7f8f42c8f7dba019cee9b1e8190f24994107e7da1365471538181e9579c"
    folder = tmp_path / "assets" / "class_lists"
    folder.mkdir(parents=True)
    lists = {"train": ["a"], "val": ["b"], "test": ["c"]}
    monkeypatch.setattr(splits.resources, "files", lambda package: tmp_path)
    (folder / "mine.json").write_text(json.dumps({"sha256": "0" * 64, **lists}))
    with pytest.raises(DatasetError, match=r"mine\.json was changed: its sha256 does not match; reinstall the package"):
        class_lists("mine")
    twice = dict.fromkeys(splits.SPLITS, ("a",))
    (folder / "twice.json").write_text(json.dumps({"sha256": lists_hash(twice), **twice}))
    with pytest.raises(DatasetError, match="a class is in two splits"):
        class_lists("twice")
    with pytest.raises(DatasetError, match="cannot be read"):
        class_lists("absent")


@pytest.mark.golden
def test_the_official_rules_on_a_tree_on_disk_give_the_released_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fixture's tree as files, read as DomainNet with the fixture's classes, through the protocols."""
    fixture: dict[str, Any] = golden_set().json("splits.json")
    for domain, classes in fixture["files_per_class"].items():
        for name, count in classes.items():
            folder = tmp_path / domain / name
            folder.mkdir(parents=True)
            for number in range(count):
                (folder / f"{domain[0]}_{number:03d}.jpg").write_bytes(b"an image")
    lists = {split: tuple(fixture[f"{split}_classes"]) for split in splits.SPLITS}
    monkeypatch.setattr(retrieval_dataset, "class_lists", lambda name: lists)
    dataset, expected = DomainNet(tmp_path), fixture["expected"]
    dataset.check()
    keys = dataset.table["key"].to_numpy()
    task = ucdr.PROTOCOL.task(dataset, "quickdraw", "official")
    assert list(task.class_names) == expected["full_train_classes"]
    assert len(task.train) == expected["full_train_files_count"]
    unseen, mixed = task.retrievals
    assert (len(unseen.query), len(unseen.gallery)) == (
        expected["full_query_te_count"],
        expected["full_gallery_te_count"],
    )
    seen = set(expected["gallery_generalised_test_seen"])
    assert set(keys[mixed.gallery]) - set(keys[unseen.gallery]) == seen
    sampled = udcdr.PROTOCOL.task(dataset, "quickdraw", "official").retrievals[0]
    assert set(keys[sampled.query]) == set(expected["udcdr_query_quickdraw_p010"])
    assert set(keys[sampled.gallery]) == set(expected["udcdr_gallery_real_p010"])
    painting = udcdr.PROTOCOL.task(dataset, "painting", "official").retrievals[0]
    assert set(keys[painting.query]) == set(expected["udcdr_painting_p025"])
    held = dataset.table["key"][dataset.table["held_back"]]
    counts = {name: len([key for key in held if key.startswith(f"real/{name}/")]) for name in lists["train"]}
    trained = {name: fixture["files_per_class"]["real"][name] for name in lists["train"]}
    released = {name: n - int(0.92 * n) if n > 1 else 0 for name, n in trained.items()}  # an only image is trained on
    assert counts == released, "as many as the released rule holds back"


# --- loading ----------------------------------------------------------------------------------------------------------


def test_a_whole_tree_loads(loaded: RetrievalDataset) -> None:
    loaded.check()
    name = loaded.card.name
    counts = SETS[name][1]
    assert tuple(len(loaded.classes(split)) for split in splits.SPLITS) == counts
    table = loaded.table
    assert set(table["class"]) == set(loaded.classes())
    assert tuple(table.groupby("split")["class"].nunique()[list(splits.SPLITS)]) == counts
    sizes = table.groupby(["domain", "class"]).size()
    assert sizes.min() == 2
    assert (sizes == trees.PLENTY).sum() == 3 * len(loaded.domains)
    assert set(loaded.domains) == set(loaded.published_counts)
    assert loaded.findings == ()
    held = table[table["held_back"]]
    assert set(held["domain"]) == {loaded.card.gallery_domain}
    assert held.groupby("class").size().to_dict() == dict.fromkeys(loaded.classes("train"), 1)
    assert loaded.pixels(np.array([0, len(table) - 1]), 8).shape == (2, 3, 8, 8)


def test_every_clean_task_is_sound_and_leaks_nothing(loaded: RetrievalDataset) -> None:
    for protocol in (ucdr.PROTOCOL, uccdr.PROTOCOL, udcdr.PROTOCOL):
        splits = protocol.splits(loaded)
        assert len(splits) == (5 if loaded.card.name == "domainnet" else 1)
        for split in splits:
            task = protocol.task(loaded, split)
            task.check(loaded)
            trained = set(loaded.table["class"].to_numpy()[task.train])
            assert trained == set(loaded.classes("train"))
            protocol.task(loaded, split, "official").check(loaded)


def test_headline_metrics_are_the_papers() -> None:
    assert DomainNet.card.headline.metrics() == Sketchy.card.headline.metrics()
    assert DomainNet.card.headline.metrics() == ("map@200[retrieved]", "map@200[trec]", "p@200")
    assert SketchyRandom.card.headline.metrics() == TUBerlin.card.headline.metrics() == ("map@all", "p@100")


def test_both_sketchy_splits_read_one_folder(data_root: Path) -> None:
    first, second = Sketchy(data_root / "sketchy"), SketchyRandom(data_root / "sketchy_random")
    assert second.folder == data_root / "sketchy"
    assert first.table["key"].tolist() == second.table["key"].tolist()
    assert first.data_hash != second.data_hash
    assert first.image_cache(8).folder == second.image_cache(8).folder, "one cache for both"


@pytest.mark.parametrize(
    ("name", "moves"),
    [
        ("sketchy", {"256x256/sketch": "sketch", "EXTEND_image_sketchy": "extended_photo"}),
        ("tuberlin", {"png": "sketches", "ImageResized": "images"}),
    ],
)
def test_the_layout_of_the_papers_scripts_is_read_as_well(
    data_root: Path, tmp_path: Path, name: str, moves: dict[str, str]
) -> None:
    copy = tmp_path / name
    shutil.copytree(data_root / name, copy)
    kind = SETS[name][0]
    before = kind(copy)
    expected = before.table.groupby(["domain", "class", "split"]).size()
    for old, new in moves.items():
        (copy / old).rename(copy / new)
    assert kind(copy).table.groupby(["domain", "class", "split"]).size().equals(expected)


def test_damage_is_listed_by_name_and_nothing_is_replaced(data_root: Path, tmp_path: Path) -> None:
    copy = tmp_path / "domainnet"
    shutil.copytree(data_root / "domainnet", copy)
    harm = trees.damage(copy, "real/zebra", tmp_path / "outside")
    trees.write_images(copy, ["real/zèbre/1.jpg"])
    number = sorted(all_classes(DomainNet)).index("tiger") + 1
    gone = f"clipart/tiger/clipart_{number:03d}_000001.jpg"
    (copy / gone).unlink()
    dataset = DomainNet(copy)
    dataset.check()
    named = {finding.path: finding.kind for finding in dataset.findings}
    assert set(harm.left_out) <= set(named)
    assert named["zèbre"] == "unknown_class"
    missing = [path for path, kind in named.items() if kind == "missing_image"]
    assert missing == [gone]
    assert f"{gone}: named in clipart_train.txt, but not there" in map(str, dataset.findings)
    rows = np.flatnonzero(dataset.table["key"].isin(harm.broken))
    with pytest.raises(DatasetError, match=r"^domainnet: .*real/zebra/page\.jpg is broken: not an image"):
        dataset.pixels(rows, 8)


def delete(*paths: str) -> Callable[[Path], None]:
    def act(root: Path) -> None:
        for path in paths:
            for found in sorted(root.glob(path)):
                shutil.rmtree(found) if found.is_dir() else found.unlink()

    return act


def test_painting_without_t_shirt_is_not_in_order(data_root: Path, tmp_path: Path) -> None:
    """The train list has no image of it, the test list names two."""
    root = tmp_path / "domainnet"
    shutil.copytree(data_root / "domainnet", root, copy_function=os.link)
    for name in ("t-shirt", "sword"):
        shutil.rmtree(root / "painting" / name)
    lacking = [str(finding) for finding in DomainNet(root).findings if finding.kind == "missing_class"]
    assert lacking == [
        f"painting/{name}: no image of this class in this domain; fetch them" for name in ("sword", "t-shirt")
    ]
    assert not any("in order" in problem for problem in DomainNet.card.known_problems)


@pytest.mark.parametrize(
    ("name", "break_it", "line"),
    [
        (
            "sketchy",
            delete("EXTEND_image_sketchy"),
            "has no folder EXTEND_image_sketchy or extended_photo or 256x256/EXT",
        ),
        (
            "sketchy",
            delete("256x256/sketch/tx_000000000000/*/*"),
            "has no images of the domain sketch (256x256/sketch",
        ),
        ("sketchy", delete("*/*/*/hot-*", "*/hot-*"), "1 of 125 classes have no images under"),
        (
            "tuberlin",
            delete("png"),
            "has no folder png or sketches or png_ready or sketch; the layout is ROOT/{png,ImageResized}/CLASS/*",
        ),
        ("tuberlin", delete("*/a*", "*/b*"), "classes have no images under"),
    ],
)
def test_a_tree_that_is_not_whole_fails_with_one_line(
    data_root: Path, tmp_path: Path, name: str, break_it: Callable[[Path], None], line: str
) -> None:
    copy = tmp_path / name
    shutil.copytree(data_root / name, copy)
    break_it(copy)
    with pytest.raises(DatasetError, match=re.escape(line)) as caught:
        SETS[name][0](copy).check()
    assert str(caught.value).startswith(f"{name}: ")
    assert "\n" not in str(caught.value)


def test_a_damaged_image_list_is_named(data_root: Path, tmp_path: Path) -> None:
    for domain in ("clipart", "infograph", "painting", "quickdraw", "real", "sketch"):
        trees.write_images(tmp_path, [f"{domain}/ant/1.jpg"])
    (tmp_path / "real_test.txt").write_text("real/ant/1.jpg 8\nreal/ant/2.jpg\n")
    with pytest.raises(DatasetError, match=r"^domainnet: .*real_test\.txt, line 2: expected 'PATH LABEL', found"):
        DomainNet(tmp_path).check()


def test_cards_tell_source_licence_and_layout_without_the_data(capsys: pytest.CaptureFixture) -> None:
    for name in [*SETS, "folder"]:
        kind = DATASETS.get(name)
        assert issubclass(kind, FolderDataset)
        assert kind.card.name == name
        assert kind.card.source and kind.card.licence and kind.card.layout.startswith("ROOT/")
        assert data.main(["card", name]) == 0
        printed = capsys.readouterr().out
        assert (
            f"not usable here: {name} is not shipped: give --data-root FOLDER, where FOLDER/{name} is ROOT/" in printed
        )


# --- end to end -------------------------------------------------------------------------------------------------------


@pytest.fixture
def quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.reporting.plots.bars", lambda table, folder, *more: [])


@pytest.mark.usefixtures("quiet")
@pytest.mark.parametrize("rules", ["clean", "official"])
def test_the_ucdr_family_runs_on_domainnet(
    data_root: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, rules: str
) -> None:
    arguments = ["--methods", "zero_shot", "--datasets", "domainnet", "--data-root", str(data_root), "--rules", rules]
    arguments += ["--protocols", "ucdr,uccdr,udcdr", "--preset", "smoke", "--limit", "40", "--threads", "1"]
    assert run.main([*arguments, "--backbone", str(tiny_folder), "--out", str(tmp_path / "results")]) == 0
    printed = capsys.readouterr()
    assert re.search(r"^cells: \d+ ok$", printed.out, re.MULTILINE)
    assert "UCDR, unseen: map@200[retrieved] in percent, by query domain" in printed.out
    assert printed.err == ""
    records = [json.loads(file.read_text()) for file in (tmp_path / "results" / "cells").rglob("*.json")]
    assert {(record["cell"]["protocol"], record["status"]) for record in records} == {
        (protocol, "ok") for protocol in ("ucdr", "uccdr", "udcdr")
    }
    metrics = {name for record in records for scores in record["scores"].values() for name in scores["metrics"]}
    assert {"map@200[retrieved]", "map@200[trec]", "p@200"} <= metrics


@pytest.mark.usefixtures("quiet")
def test_all_takes_the_data_sets_that_are_there_and_lists_the_others(
    data_root: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = tmp_path / "data"
    root.mkdir()
    (root / "sketchy").symlink_to(data_root / "sketchy")
    arguments = ["--methods", "zero_shot", "--datasets", "all", "--data-root", str(root), "--protocols", "uccdr"]
    arguments += ["--preset", "smoke", "--backbone", str(tiny_folder), "--threads", "1", "--dry-run"]
    assert run.main([*arguments, "--out", str(tmp_path / "results")]) == 0
    printed = capsys.readouterr()
    planned = {line.split()[2] for line in printed.out.splitlines() if line.startswith("to run")}
    assert planned == {"picto_domains", "sketchy", "sketchy_random"}
    skipped = re.findall(r"^skipped: (\w+): (.*)$", printed.err, re.MULTILINE)
    assert {"domainnet", "tuberlin", "folder"} <= {name for name, _ in skipped}
    assert all("does not exist; the layout is" in reason for name, reason in skipped if name in (*SETS, "folder"))


# --- the data command -------------------------------------------------------------------------------------------------


def test_list_says_what_is_there(data_root: Path, capsys: pytest.CaptureFixture) -> None:
    assert data.main(["list", "--data-root", str(data_root)]) == 0
    lines = dict(line.split()[:2] for line in capsys.readouterr().out.splitlines())
    assert lines["picto_domains"] == "shipped"
    assert lines["domainnet"] == lines["sketchy"] == lines["sketchy_random"] == lines["tuberlin"] == "found"
    assert lines["folder"] == "missing"


def test_splits_need_no_images(capsys: pytest.CaptureFixture, data_root: Path) -> None:
    assert data.main(["splits", "tuberlin"]) == 0
    printed = capsys.readouterr().out
    digest = hashlib.sha256("\n".join(class_lists("tuberlin")["test"]).encode()).hexdigest()
    assert f"test: 30 classes, sha256 {digest}\n  banana, bus, tractor," in printed
    assert "held back images: not known here: tuberlin is not shipped" in printed
    assert data.main(["splits", "tuberlin", "--data-root", str(data_root)]) == 0
    assert re.search(r"^held back: 200 images, sha256 [0-9a-f]{64}$", capsys.readouterr().out, re.MULTILINE)


def test_verify_in_order(data_root: Path, capsys: pytest.CaptureFixture) -> None:
    assert data.main(["verify", "sketchy", "--root", str(data_root / "sketchy")]) == 0
    printed = capsys.readouterr().out
    assert "photo                  280 images, 125 classes (published: 73,002)" in printed
    assert "sketchy v1: 560 images decode, 3 tasks are sound" in printed
    assert len(re.findall(r"^(?:data|content) hash [0-9a-f]{64}$", printed, re.MULTILINE)) == 2


def test_verify_without_the_data(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert data.main(["verify", "domainnet", "--root", str(tmp_path / "none")]) == 1
    printed = capsys.readouterr()
    assert printed.err.startswith(
        f"benchmarks.data: domainnet: {tmp_path / 'none'} does not exist; the layout is ROOT/"
    )
    assert printed.err.count("\n") == 1
