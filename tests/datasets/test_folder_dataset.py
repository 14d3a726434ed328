"""Data sets in image folders: their root, their table, its hash, broken images."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from benchmarks import data
from benchmarks.datasets import image_workers
from benchmarks.datasets.base import DatasetError
from benchmarks.datasets.domainnet import DomainNet
from benchmarks.datasets.office_home import OfficeHome
from benchmarks.datasets.own_folder import OwnFolder
from benchmarks.datasets.tree_scan import scan
from tests.datasets import trees
from tests.datasets.small import PLACES, Small, small_tree
from tests.datasets.trees import class_tree, damage, image_bytes, write_images


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return small_tree(tmp_path)


@pytest.mark.parametrize(
    ("break_it", "line"),
    [
        (lambda root: (root / "photos").rename(root / "other"), "has no folder Photo or photos; the layout is ROOT"),
        (lambda root: (root / "draw").rename(root / "other"), "has no folder draw/256; the layout is"),
        (lambda root: [f.unlink() for f in root.rglob("*.jpg")], "has no images in its class folders"),
        (lambda root: [f.unlink() for f in root.rglob("hot-dog/*")], "1 of 3 classes have no images under"),
        (lambda root: (root / "broken.txt").write_bytes(b"\xff"), r"broken\.txt is not UTF-8 text: byte 0 is wrong"),
        (
            lambda root: (root / "broken.txt").write_text("\n".join(scan(root, PLACES).images["key"])),
            r"broken\.txt names every image; delete it, then verify again$",
        ),
    ],
)
def test_what_cannot_be_used_fails_with_one_line(root: Path, break_it: object, line: str) -> None:
    break_it(root)  # type: ignore[operator]
    with pytest.raises(DatasetError, match=line) as caught:
        Small(root).check()
    assert str(caught.value).startswith("small: ")
    assert "\n" not in str(caught.value)


def test_no_root_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(
        DatasetError, match=r"^small is not shipped: give --data-root FOLDER, where FOLDER/small is ROOT"
    ):
        Small(None).check()
    with pytest.raises(
        DatasetError, match=r"^small: .*/nowhere does not exist; the layout is ROOT/.* \(source: here\)$"
    ):
        Small(tmp_path / "nowhere").check()
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match=r"^small: .*/file is a file; give the folder with the images$"):
        Small(tmp_path / "file").check()


def test_another_name_of_the_folder_is_found(root: Path) -> None:
    root.rename(root.with_name("Small"))
    Small(root).check()


def test_a_root_of_another_name_is_taken_at_its_word(root: Path) -> None:
    root.rename(root.with_name("Small"))
    with pytest.raises(DatasetError, match=r"^small: .*/data/copy does not exist; the layout is "):
        Small(root.with_name("copy")).check()


@pytest.mark.parametrize(
    ("given", "meant"),
    [("", "small"), ("small/photos", "small"), ("small/small", "small"), ("outer", "outer/small")],
)
def test_a_root_beside_the_right_one_is_told_the_right_one(root: Path, given: str, meant: str) -> None:
    data_root = root.parent
    if meant.startswith("outer"):
        (data_root / "outer").mkdir()
        root.rename(data_root / "outer" / "small")
    with pytest.raises(DatasetError, match="the layout is ") as caught:
        Small(data_root / given).check()
    assert str(caught.value).endswith(f"; did you mean {data_root / meant}?")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("packed", ["small.zip", "small/photos.tar.gz"])
def test_archives_that_were_not_unpacked_are_named(tmp_path: Path, packed: str) -> None:
    (tmp_path / packed).parent.mkdir(exist_ok=True)
    (tmp_path / packed).write_bytes(b"PK")
    with pytest.raises(DatasetError, match=rf"^small: .*; unpack {Path(packed).name} first$"):
        Small(tmp_path / "small").check()


def test_keys_and_hash_do_not_depend_on_the_unicode_form(tmp_path: Path) -> None:
    hashes = []
    for form in ("NFC", "NFD"):
        made = tmp_path / form
        write_images(
            made, [unicodedata.normalize(form, f"{d}/{c}é/x.jpg") for d in ("photos", "draw/256") for c in "ab"]
        )
        images_found = scan(made, PLACES).images
        hashes.append((images_found["key"].tolist(), images_found["class"].tolist()))
    assert hashes[0] == hashes[1]


def test_the_table_has_canonical_classes_and_rows_in_key_order(root: Path) -> None:
    write_images(root, ["photos/wasp/1.jpg"])
    dataset = Small(root)
    dataset.check()
    assert dataset.classes() == ("ant", "bee", "hot_dog")
    assert dataset.table["key"].is_monotonic_increasing
    assert [str(one) for one in dataset.findings] == ["wasp: not a class of small; its 1 image is left out"]
    held = dataset.table[dataset.table["held_back"]]
    assert set(held["class"]) == {"ant"}
    assert set(held["domain"]) == {"photo"}
    assert len(held) == 1


def test_the_data_hash_follows_names_and_contents_not_place_or_time(root: Path, tmp_path: Path) -> None:
    first = Small(root)
    copy = tmp_path / "copy"
    class_tree(copy, ("photos", "draw/256"), ("ant", "Bumble-Bee", "hot-dog"), 4)
    os.utime(copy / "photos/ant/0000.jpg", (1, 1))
    assert Small(copy).data_hash == first.data_hash
    (copy / "photos/ant/0000.jpg").write_bytes(image_bytes("a/b.png"))
    assert Small(copy).data_hash != first.data_hash
    assert len(set(first.content)) == len(first.table)


def test_broken_images_fail_by_name_until_they_are_left_out_by_name(root: Path, tmp_path: Path) -> None:
    harm = damage(root, "photos/ant", tmp_path / "outside")
    dataset = Small(root)
    rows = np.flatnonzero(dataset.table["key"].isin([*harm.broken, *harm.whole]))
    with pytest.raises(
        DatasetError, match=r"^small: .*/photos/ant/page\.jpg is broken: not an image .*2 of the"
    ) as caught:
        dataset.pixels(rows, 8)
    assert "python -m benchmarks.data verify small --root" in str(caught.value)
    whole = np.flatnonzero(dataset.table["key"].isin(harm.whole))
    assert dataset.pixels(whole, 8).shape == (len(harm.whole), 3, 8, 8)
    (root / "broken.txt").write_text("# found by verify\n" + "\n".join([*harm.broken, "photos/ant/gone.jpg"]) + "\n")
    clean = Small(root)
    assert len(clean.table) == len(dataset.table) - 2, "the empty one is left out without being named"
    assert not set(harm.broken) & set(clean.table["key"])
    kinds = [(one.kind, one.path) for one in clean.findings if one.kind in ("broken", "stale_entry", "missing_image")]
    assert kinds == [*(("broken", key) for key in harm.broken), ("stale_entry", "photos/ant/gone.jpg")]
    assert clean.data_hash != dataset.data_hash
    clean.pixels(np.arange(len(clean.table)), 8)


def test_checking_names_every_broken_image_with_its_reason(root: Path, tmp_path: Path) -> None:
    harm = damage(root, "photos/ant", tmp_path / "outside")
    dataset = Small(root)
    answers = {dataset.table["key"].iloc[one.row]: one for one in image_workers.check_images(dataset.paths())}
    assert len(answers) == len(dataset.table)
    reasons = {key.rpartition("/")[2]: one.reason for key, one in answers.items() if one.reason}
    (empty,) = (one for one in dataset.findings if one.kind == "empty_file")
    assert str(empty) == "photos/ant/zero.jpg: the file is empty"
    assert {*reasons, "zero.jpg"} == {key.rpartition("/")[2] for key in harm.broken}
    assert reasons["page.jpg"] == "not an image that Pillow can read"
    assert "truncated" in reasons["truncated.jpg"].lower()
    assert len({one.sha256 for one in answers.values()}) == len(answers)


def test_files_left_out_are_counted_in_the_run_the_records_and_the_report(
    tmp_path: Path, tiny_folder: Path, capsys: pytest.CaptureFixture
) -> None:
    from benchmarks.run import main

    root = tmp_path / "data" / "folder"
    trees.own_tree(root)
    for name in ("1.heic", "2.HEIC", "3.xyz", "README", "._0000.jpg", ".DS_Store"):
        (root / "photo" / "dog" / name).write_bytes(b"x")
    (root / "photo" / "dog" / "more").mkdir()
    (root / "photo" / "loose.jpg").write_bytes(b"x")
    (root / "photo" / "cup" / "zero.jpg").write_bytes(b"")
    counted = "2 .heic, 1 .xyz, 1 beside the class folders, 1 folders in class folders, 1 without an ending, "
    assert OwnFolder(root).left_out == f"{counted}1 empty, 2 system files", "no cell fails because of it"
    assert data.main(["verify", "folder", "--root", str(root), "--write-broken"]) == 1
    assert f"left out         {counted}" in capsys.readouterr().out
    everything = f"{counted}1 empty, 2 system files"
    assert OwnFolder(root).left_out == everything
    arguments = ["--methods", "zero_shot", "--protocols", "uda", "--preset", "smoke", "--backbone", str(tiny_folder)]
    arguments += [
        "--datasets",
        "folder",
        "--data-root",
        str(root.parent),
        "--out",
        str(tmp_path / "out"),
        "--jobs",
        "1",
    ]
    assert main(arguments) == 0
    printed = capsys.readouterr()
    (line,) = (line for line in printed.err.splitlines() if "left out" in line)
    assert line.startswith(f"left out of folder: {everything} (python -m benchmarks.data verify folder --data-root ")
    for file in (tmp_path / "out" / "cells").rglob("*.json"):
        record = json.loads(file.read_text())
        assert f"left out of the data: {everything}" in record["notes"]
        assert record["dataset"]["left_out"] == everything
    board = (tmp_path / "out" / "report" / "leaderboard.md").read_text()
    assert "## Data" in board and "2 .heic, 1 .xyz" in board
    page = (tmp_path / "out" / "report" / "index.html").read_text()
    assert "2 .heic, 1 .xyz" in page


def test_nothing_is_said_where_every_file_is_used(made: Path) -> None:
    assert OfficeHome(made / "office_home").left_out == ""
    assert DomainNet(made / "domainnet").left_out == ""
