"""``folder``: a user's own tree - the rule, its settings, every protocol on it, and verify on a damaged one."""

from __future__ import annotations

import json
import os
import shutil
import sys
import unicodedata
from pathlib import Path

import numpy as np
import pytest

from benchmarks import data, run
from benchmarks.datasets.base import DatasetError
from benchmarks.datasets.class_words import words_of
from benchmarks.datasets.own_folder import FolderRule, OwnFolder, read_rule
from benchmarks.datasets.tree_scan import IMAGE_SUFFIXES
from benchmarks.protocols.registry import PROTOCOLS
from tests.datasets import trees


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "data" / "folder"
    trees.own_tree(made)
    return made


def test_the_rule_splits_classes_and_images(root: Path) -> None:
    dataset = OwnFolder(root)
    dataset.check()
    assert dataset.card.gallery_domain == "photo"
    assert OwnFolder.card.gallery_domain == "", "the class's own card is left alone"
    assert dataset.domains == ("drawing", "photo", "Öl auf Leinwand")
    assert [len(dataset.classes(split)) for split in ("train", "val", "test")] == [5, 1, 2]
    held = dataset.table[dataset.table["held_back"]]
    assert held.groupby(["domain", "class"]).size().to_dict() == {("photo", c): 1 for c in dataset.classes("train")}
    again = OwnFolder(root)
    assert again.table.equals(dataset.table)
    assert again.data_hash == dataset.data_hash


def test_classes_that_a_domain_lacks_are_trained_on_only(root: Path) -> None:
    shutil.rmtree(root / "drawing" / "猫")
    trees.write_images(root, ["photo/alone/1.jpg"])
    dataset = OwnFolder(root)
    dataset.check()
    assert {"猫", "alone"} <= set(dataset.classes("train"))


def test_gallery_without_photographs_is_the_largest_domain(root: Path) -> None:
    (root / "photo").rename(root / "watercolour")
    assert OwnFolder(root).card.gallery_domain == "drawing"
    trees.write_images(root, ["watercolour/dog/extra.jpg"])
    assert OwnFolder(root).card.gallery_domain == "watercolour"


def test_settings_of_the_tree(root: Path) -> None:
    (root / "folder.toml").write_text('gallery_domain = "drawing"\nseed = 3\ntest_share = 0.5\n')
    dataset = OwnFolder(root)
    assert dataset.rule == FolderRule("drawing", 3, 0.5)
    assert dataset.card.gallery_domain == "drawing"
    assert len(dataset.classes("test")) == 4


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("seed = ", "folder.toml is not TOML"),
        ("sed = 1", "unknown key 'sed'; known are gallery_domain, seed, test_share, val_share, held_back_share"),
        ("seed = 1.5", "seed must be int, not 1.5"),
        ("test_share = true", "test_share must be float, not True"),
        ("val_share = 1", "val_share must be between 0 and 1, not 1"),
        ("test_share = 0.6\nval_share = 0.5", "leave no train classes"),
        ('gallery_domain = "phot"', "no domain 'phot'; there are drawing, photo, Öl auf Leinwand"),
    ],
)
def test_wrong_settings_fail_with_one_line(root: Path, text: str, line: str) -> None:
    (root / "folder.toml").write_text(text)
    with pytest.raises(DatasetError, match=line) as caught:
        OwnFolder(root).check()
    assert str(caught.value).startswith("folder: ")
    assert "\n" not in str(caught.value)
    assert read_rule(root / "none.toml") == FolderRule()


@pytest.mark.parametrize("domain", [" photo", "#photo", "photo "])
def test_broken_images_are_left_out_whatever_their_folder_is_called(root: Path, domain: str) -> None:
    (root / "photo").rename(root / domain)
    (root / domain / "dog" / "0000.jpg").write_bytes(b"")
    assert data.main(["verify", "folder", "--root", str(root), "--write-broken"]) == 1
    assert data.main(["verify", "folder", "--root", str(root)]) == 0
    assert f"{domain}/dog/0000.jpg" not in set(OwnFolder(root).table["key"])


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes")
def test_domains_whose_names_cannot_be_used_are_named(root: Path) -> None:
    expected = OwnFolder(root).data_hash
    for name in (b"two\nlines", b"bad\xff", b"__MACOSX"):
        shutil.copytree(root / "photo", Path(os.fsdecode(os.fsencode(root) + b"/" + name)))
    dataset = OwnFolder(root)
    assert [(one.kind, one.path) for one in dataset.findings] == [
        ("bad_name", "bad\\udcff"),
        ("bad_name", "'two\\nlines'"),
    ]
    assert dataset.data_hash == expected


def test_domains_are_the_same_in_both_unicode_forms(root: Path) -> None:
    expected = OwnFolder(root).data_hash
    (root / "Öl auf Leinwand").rename(root / unicodedata.normalize("NFD", "Öl auf Leinwand"))
    (root / "folder.toml").write_text('gallery_domain = "photo"\n')
    assert OwnFolder(root).data_hash == expected
    (root / "folder.toml").write_text(unicodedata.normalize("NFD", 'gallery_domain = "Öl auf Leinwand"\n'))
    assert OwnFolder(root).card.gallery_domain == "Öl auf Leinwand"


def test_one_class_that_two_domains_spell_differently(root: Path) -> None:
    expected = {split: OwnFolder(root).classes(split) for split in ("train", "val", "test")}
    (root / "photo" / "dog").rename(root / "photo" / "003.Dog ")
    dataset = OwnFolder(root)
    assert {split: dataset.classes(split) for split in expected} == expected
    assert dataset.name_notes == ("class dog: one class, read from the folders '003.Dog ', 'dog'",)


@pytest.mark.parametrize("name", ["12-dog", "dogs", "3 dog", "dog!", "12_dogs"])
def test_classes_of_almost_one_name_in_different_domains_are_noted(root: Path, name: str) -> None:
    assert OwnFolder(root).name_notes == ()
    (root / "photo" / "dog").rename(root / "photo" / name)
    dataset = OwnFolder(root)
    assert {"dog", words_of(name)} <= set(dataset.classes()), "they stay two classes"
    (note,) = dataset.name_notes
    assert note.startswith("class ") and "almost the name of" in note and "if both are one class, rename one" in note
    shutil.copytree(root / "photo" / name, root / "photo" / "dog")
    assert OwnFolder(root).name_notes == (), "a domain that has both tells them apart"


@pytest.mark.parametrize("domains", [("photo", "sketch"), ("Real World", "clip_art", "line", "product")])
def test_a_tree_of_class_folders_with_domain_folders_in_them_is_refused(
    tmp_path: Path, domains: tuple[str, ...]
) -> None:
    for name in ("ant", "bee", "cup", "dog", "elk"):
        trees.class_tree(tmp_path, (name,), domains, 2)
    with pytest.raises(DatasetError, match=r"these folders are CLASS/DOMAIN \(such as ant/\{.*\}\): swap") as caught:
        _ = OwnFolder(tmp_path).table
    assert "\n" not in str(caught.value)


def test_few_classes_in_many_domains_have_a_hint(tmp_path: Path) -> None:
    for name in ("ant", "bee", "cup"):
        trees.class_tree(tmp_path, (name,), ("line", "flat"), 2)
    with pytest.raises(DatasetError, match=r"three are needed.*if the folders are CLASS/DOMAIN, swap the two levels"):
        _ = OwnFolder(tmp_path).table


def test_one_domain_may_tell_classes_apart_by_case(root: Path) -> None:
    shutil.copytree(root / "photo" / "dog", root / "photo" / "Dog")
    dataset = OwnFolder(root)
    assert {"Dog", "dog"} <= set(dataset.classes())
    assert "dog: differs from Dog in case only; if both are one class, rename one" in map(str, dataset.findings)


def test_names_as_they_are_written(root: Path) -> None:
    (root / "photo" / "dog").rename(root / "photo" / "Big_Dog")
    assert "big dog" in OwnFolder(root).classes()
    (root / "folder.toml").write_text("exact_names = true\n")
    assert "Big_Dog" in OwnFolder(root).classes()


def test_synsets_of_the_settings(root: Path) -> None:
    assert OwnFolder(root).synsets == {}
    (root / "folder.toml").write_text('[synsets]\n"Dog" = "dog.n.03"\n')
    assert OwnFolder(root).synsets == {"dog": "dog.n.03"}
    for text, line in (
        ('dog = "dog.n.99"', r"folder.toml: WordNet has no noun synset 'dog.n.99' \(class 'dog'\)"),
        ('dragonet = "dog.n.01"', "synsets names 'dragonet', which is not a class here"),
        ('dog = "run.v.01"', "no"),
        ("dog = 3", "synsets must be a table"),
    ):
        (root / "folder.toml").write_text(f"[synsets]\n{text}\n")
        with pytest.raises(DatasetError, match=line):
            _ = OwnFolder(root).synsets


@pytest.mark.parametrize("middle", ["images", "train"])
def test_class_folders_one_level_too_deep(root: Path, middle: str) -> None:
    for domain in list(root.iterdir()):
        domain.rename(root / "moved")
        (root / domain.name).mkdir()
        (root / "moved").rename(root / domain.name / middle)
    with pytest.raises(DatasetError, match=rf"one level too deep, in drawing/{middle}: move them up") as caught:
        OwnFolder(root).check()
    assert "did you mean" not in str(caught.value)


def test_links_that_are_no_domain_are_named(root: Path, tmp_path: Path) -> None:
    (root / "drawing").rename(tmp_path / "elsewhere")
    (root / "out").symlink_to(tmp_path / "elsewhere")
    (root / "nothing").symlink_to(tmp_path / "absent")
    (root / "loop").symlink_to(root / "loop")
    kinds = {one.path: one.kind for one in OwnFolder(root).findings}
    assert kinds == {"out": "link", "nothing": "link", "loop": "link"}


@pytest.mark.parametrize("name", ["sim to real", "a to b to c", "a->b", "a,b", "-x", "PHOTO", "to"])
def test_domains_of_any_name_have_sound_tasks(root: Path, name: str) -> None:
    (root / "drawing").rename(root / name)
    dataset = OwnFolder(root)
    for protocol in ("uda", "uda_inductive", "dazsl", "ucdr"):
        found = PROTOCOLS.get(protocol)
        for split in found.splits(dataset):
            task = found.task(dataset, split)
            task.check(dataset)
            if task.transfer:
                domains = dataset.table["domain"].to_numpy()
                assert (set(domains[task.train]), set(domains[task.target])) == ({task.transfer[0]}, {task.transfer[1]})


def test_trees_that_no_protocol_fits_fail_with_one_line(root: Path, tmp_path: Path) -> None:
    for path in ("drawing", "Öl auf Leinwand"):
        shutil.rmtree(root / path)
    with pytest.raises(DatasetError, match=r"^folder: .* has only the domain photo; two are needed$"):
        OwnFolder(root)
    trees.class_tree(root, ["drawing"], ["dog", "cup"], 2)
    with pytest.raises(DatasetError, match=r"^folder: .*: 2 classes are in every domain \(drawing, photo\); three"):
        OwnFolder(root).check()
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError, match="has no domain folders; the layout is ROOT/DOMAIN/CLASS"):
        OwnFolder(tmp_path / "empty")
    (tmp_path / "empty" / "a").mkdir()
    with pytest.raises(DatasetError, match="has no images in its class folders"):
        OwnFolder(tmp_path / "empty")


def test_the_closed_set_follows_the_rule(root: Path) -> None:
    (root / "drawing/dog/0000.jpg").unlink()
    (root / "drawing/dog/0001.jpg").unlink()
    (root / "drawing/dog/0002.jpg").unlink()
    dataset = OwnFolder(root)
    closed = dataset.closed_set
    assert closed.uda_domains == dataset.domains
    assert set(closed.uda_classes) == set(dataset.classes()) - {"dog"}
    assert closed.dazsl_pairs == (("Öl auf Leinwand", "photo"),)
    assert set(closed.seen) == set(dataset.classes("train"))
    assert closed.unseen == dataset.classes("test")


def test_every_protocol_runs_on_a_tree_with_names_that_are_not_ascii(
    root: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.reporting.plots.bars", lambda table, folder, *more: [])
    arguments = ["--methods", "zero_shot", "--datasets", "folder", "--data-root", str(root.parent), "--preset", "smoke"]
    arguments += ["--backbone", str(tiny_folder), "--threads", "1", "--out", str(tmp_path / "results")]
    assert run.main(arguments) == 0
    records = [json.loads(file.read_text()) for file in (tmp_path / "results" / "cells").rglob("*.json")]
    assert {record["cell"]["protocol"] for record in records} == set(PROTOCOLS.defaults())
    assert {record["status"] for record in records} == {"ok"}


def test_a_broken_image_fails_the_cell_with_one_line_that_names_the_mend(
    root: Path, tiny_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.reporting.plots.bars", lambda table, folder, *more: [])
    (root / "photo" / OwnFolder(root).classes("test")[0] / "0000.jpg").write_bytes(b"not an image")
    arguments = ["--methods", "zero_shot", "--datasets", "folder", "--data-root", str(root.parent), "--preset", "smoke"]
    arguments += ["--protocols", "ucdr", "--backbone", str(tiny_folder), "--threads", "1"]
    assert run.main([*arguments, "--out", str(tmp_path / "results")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "0000.jpg is broken: not an image that Pillow can read" in line
    assert f"python -m benchmarks.data verify folder --root {root} (--write-broken leaves them out)" in line


def test_verify_names_what_is_wrong_and_can_leave_it_out(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture, image_cache: Path
) -> None:
    harm = trees.damage(root, "photo/dog", tmp_path / "outside")
    shutil.copy(root / "drawing/dog/0000.jpg", root / "photo/dog/copied.jpg")
    assert data.main(["verify", "folder", "--root", str(root)]) == 1
    printed = capsys.readouterr().out
    assert f"broken images: {len(harm.broken)}\n" in printed
    for key in harm.broken:
        assert f"  {key}: " in printed
    for path in harm.left_out:
        assert f"  {path}: " in printed
    assert "  drawing/dog/0000.jpg = photo/dog/copied.jpg (differ in domain)" in printed
    assert "NOT in order: 3 images are broken (--write-broken leaves them out)" in printed

    assert data.main(["verify", "folder", "--root", str(root), "--write-broken"]) == 1
    assert (root / "broken.txt").read_text().startswith("# left out; image, then why\nphoto/dog/page.jpg\tnot a")
    capsys.readouterr()
    assert data.main(["verify", "folder", "--root", str(root), "--size", "8"]) == 0
    printed = capsys.readouterr().out
    assert "images left out by broken.txt: 3\n" in printed
    count = len(OwnFolder(root).table)
    assert f"{count} images are kept decoded at 8 x 8 pixels" in printed
    dataset = OwnFolder(root)
    dataset.pixels(np.arange(count), 8)
    assert dataset.image_cache(8).decoded == 0


def test_verify_cuts_long_lists_unless_asked(root: Path, capsys: pytest.CaptureFixture) -> None:
    for number in range(25):
        (root / "photo" / "dog" / f"{number}.mp4").write_bytes(b"")
    assert data.main(["verify", "folder", "--root", str(root)]) == 0
    assert "  ... and 5 more (--all names them)" in capsys.readouterr().out
    assert data.main(["verify", "folder", "--root", str(root), "--all"]) == 0
    assert capsys.readouterr().out.count(".mp4: not an ending that is read") == 25


# --- what a tree may look like ----------------------------------------------------------------------------------------


def names_tree(root: Path, domains: tuple[str, ...], between: str = "") -> Path:
    for domain in domains:
        folder = f"{domain}/{between}" if between else domain
        trees.class_tree(root, (folder,), ("ant", "bee", "cup", "dog"), 4)
    return root


def test_a_domain_that_links_to_another_never_takes_its_images(tmp_path: Path) -> None:
    root = names_tree(tmp_path, ("photo", "a from b"))
    alone = OwnFolder(root).data_hash
    (root / "a link").symlink_to("photo")
    dataset = OwnFolder(root)
    assert dataset.domains == ("a from b", "photo")
    assert dataset.data_hash == alone
    assert [str(one) for one in dataset.findings] == ["a link: a link to photo, which is read as a domain already"]


@pytest.mark.parametrize("other", ["Photo", "photo ", "pho-to"])
def test_domains_of_almost_one_name_are_read_both_and_noted(tmp_path: Path, other: str) -> None:
    dataset = OwnFolder(names_tree(tmp_path, (other, "photo", "sketch")))
    assert len(dataset.domains) == 3
    assert dataset.left_out == "", "both are read"
    (note,) = dataset.name_notes
    assert "if both are one domain, join them" in note and note.startswith("domain ")


def test_a_folder_too_many_is_named_as_what_it_is(tmp_path: Path) -> None:
    for name, between, said in (
        ("one", {"photo": "imgs", "sketch": "pngs"}, "one level too deep, in photo/imgs: move them up"),
        (
            "two",
            {"train": "photo", "test": "sketch"},
            "domain folders are one level too deep, in test/sketch and train/",
        ),
        (
            "three",
            {"photo": "images", "sketch": "images"},
            "in photo/images: move them up, so that they are photo/CLASS",
        ),
    ):
        for domain, middle in between.items():
            names_tree(tmp_path / name, (domain,), middle)
        with pytest.raises(DatasetError, match=said):
            OwnFolder(tmp_path / name)
    trees.class_tree(tmp_path, ("four",), ("ant", "bee", "cup"), 2)
    with pytest.raises(DatasetError, match="put these class folders into a folder per domain") as caught:
        OwnFolder(tmp_path / "four")
    assert "did you mean" not in str(caught.value)


def test_images_beside_the_domains_and_empty_ones_are_counted_and_no_cell_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    root = names_tree(tmp_path / "folder", ("photo", "sketch"))
    before = OwnFolder(root).data_hash
    trees.write_images(root, ["loose.jpg"])
    (root / "photo" / "ant" / "zero.PNG").write_bytes(b"")
    (root / "photo" / "ant" / "phone.HEIC").write_bytes(b"x")
    dataset = OwnFolder(root)
    assert dataset.data_hash == before
    heic = "" if ".heic" in IMAGE_SUFFIXES else "1 .heic, "
    assert dataset.left_out == f"{heic}1 beside the domain folders, 1 empty"
    assert data.main(["verify", "folder", "--root", str(root)]) == 1
    printed = capsys.readouterr().out
    assert "photo/ant/zero.PNG: the file is empty; left out" in printed
    assert "1 image is broken (--write-broken leaves them out)" in printed
    assert "pillow-heif" in printed or not heic
    assert data.main(["verify", "folder", "--root", str(root), "--write-broken"]) == 1
    assert data.main(["verify", "folder", "--root", str(root)]) == 0
    assert OwnFolder(root).data_hash == before


def test_a_class_named_twice_in_the_synsets_is_refused(tmp_path: Path) -> None:
    root = names_tree(tmp_path, ("photo", "sketch"))
    (root / "folder.toml").write_text('[synsets]\nant = "ant.n.01"\nAnt = "bee.n.01"\n')
    with pytest.raises(DatasetError, match=r"folder\.toml: synsets names the class 'ant' twice"):
        _ = OwnFolder(root).synsets
