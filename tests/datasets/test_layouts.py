"""Layouts and list names that users have: what is found, what is said, and that no score depends on them."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import data
from benchmarks.datasets import domainnet
from benchmarks.datasets.base import DatasetError
from benchmarks.datasets.domainnet import CLEANED, ORIGINAL, DomainNet, edition
from benchmarks.datasets.folder_dataset import FolderDataset
from benchmarks.datasets.i2awa import I2AwA
from benchmarks.datasets.i2webv import I2WebV
from benchmarks.datasets.image_lists import read_image_list, read_relative_list
from benchmarks.datasets.mini_domainnet import MiniDomainNet
from benchmarks.datasets.office_home import OfficeHome
from benchmarks.datasets.own_folder import OwnFolder
from benchmarks.datasets.pacs import PACS
from benchmarks.datasets.sketchy import Sketchy
from benchmarks.datasets.splits import SPLITS, class_lists
from benchmarks.datasets.tuberlin import TUBerlin
from benchmarks.datasets.visda import VisDA, VisDATest
from tests.datasets import transfer_trees, trees

Copy = Callable[[str], Path]


class SmallI2WebV(I2WebV):
    sizes = (6, 8)


def whole(lists: str) -> list[str]:
    return [name for split in SPLITS for name in class_lists(lists)[split]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("layouts")
    trees.domainnet_tree(root / "domainnet", whole("domainnet"))
    trees.sketchy_tree(root / "sketchy", whole("sketchy_eccv2018"), images=1)
    trees.tuberlin_tree(root / "tuberlin", whole("tuberlin"), images=1)
    transfer_trees.mini_domainnet_tree(root / "mini")
    transfer_trees.office_home_tree(root / "office_home")
    transfer_trees.pacs_tree(root / "pacs")
    transfer_trees.visda_tree(root / "visda")
    transfer_trees.i2awa_tree(root / "i2awa")
    transfer_trees.i2webv_tree(root / "i2webv", transfer_trees.WNIDS, 6)
    return root


@pytest.fixture
def copy(made: Path, tmp_path: Path) -> Copy:
    """A copy of a tree; its images are links, its lists may be changed."""

    def link(source: str, target: str) -> None:
        (shutil.copy2 if source.endswith(".txt") else os.link)(source, target)

    return lambda name: Path(shutil.copytree(made / name, tmp_path / name, copy_function=link))


def move(root: Path, old: str, new: str) -> None:
    (root / new).parent.mkdir(parents=True, exist_ok=True)
    (root / old).rename(root / new)


def rewrite(files: list[Path], change: Callable[[str], str]) -> None:
    for file in files:
        file.write_text("".join(change(line) + "\n" for line in file.read_text().splitlines()))


def said(dataset: FolderDataset) -> str:
    return "\n".join(dataset.facts)


PREFIXES = [
    ("./", lambda line: f"./{line}"),
    ("./data/DomainNet/", lambda line: f"./data/DomainNet/{line}"),
    ("/data/real/sketch/", lambda line: f"/data/real/sketch/{line}"),
    ("C:/data/", lambda line: "C:\\data\\" + line.replace("/", "\\")),
    ("../../data/multi/", lambda line: f"../../data//multi/./{line}"),
]
PREFIX_IDS = ["dot", "relative", "absolute", "windows", "up"]


# --- DomainNet --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["splits", "image_list", ""])
def test_domainnet_lists_are_found_where_code_bases_put_them(copy: Copy, place: str) -> None:
    root = copy("domainnet")
    for file in sorted(root.glob("*.txt")) if place else ():
        move(root, file.name, f"{place}/{file.name}")
    gone = next((root / "sketch" / "zebra").iterdir())
    gone.unlink()
    dataset = DomainNet(root)
    (finding,) = dataset.findings
    name = next(f"{part}.txt" for part in ("sketch_train", "sketch_test") if part in finding.reason)
    path = f"{place}/{name}" if place else name
    assert str(finding) == f"sketch/zebra/{gone.name}: named in {path}, but not there"
    assert f"clipart_train.txt, clipart_test.txt and 10 more in {place or 'ROOT'}" in said(dataset)


@pytest.mark.parametrize(("prefix", "change"), PREFIXES, ids=PREFIX_IDS)
def test_prefixes_in_domainnets_lists_make_nothing_missing(
    made: Path, copy: Copy, prefix: str, change: Callable[[str], str]
) -> None:
    root = copy("domainnet")
    rewrite(list(root.glob("*.txt")), change)
    dataset = DomainNet(root)
    assert dataset.findings == ()
    assert dataset.data_hash == DomainNet(made / "domainnet").data_hash
    wanted = "../../data/multi/" if prefix.startswith("..") else prefix
    assert f"paths in the lists are read without {wanted!r}" in said(dataset).replace("//", "/").replace("/./m", "/m")


def test_domainnet_without_lists_and_with_two_copies_of_them_says_so(copy: Copy) -> None:
    root = copy("domainnet")
    (root / "splits").mkdir()
    shutil.copy(root / "real_test.txt", root / "splits")
    assert "lists not read, as others of their names are: real_test.txt in splits" in said(DomainNet(root))
    for file in root.rglob("*.txt"):
        file.unlink()
    assert "lists: none" in said(DomainNet(root))


@pytest.mark.parametrize(
    "name",
    [
        "clipart_list.txt",
        "image_list/clipart.txt",
        "txt/labeled_source_images_clipart.txt",
        "splits/unlabeled_target_images_clipart_3.txt",
        "../txt/domainnet/validation_target_images_clipart_3.txt",
    ],
)
def test_partial_lists_are_named_with_what_they_hold(copy: Copy, name: str) -> None:
    root = copy("domainnet")
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    first = (root / "clipart_train.txt").read_text().splitlines()[0]
    (root / name).write_text(f"{first}\nclipart/zebra/gone.jpg 1\n")
    dataset = DomainNet(root)
    assert dataset.findings == (), "no part of the published lists"
    line = next(line for line in dataset.facts if name.rpartition("/")[2] in line)
    assert line.startswith(f"{name}: not used, ")
    assert line.endswith("it names 2 images of 2 classes, 1 of them not in this tree")


def test_the_version_of_domainnet_is_told_by_sizes_and_by_names(
    copy: Copy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert edition(CLEANED) == "version: the cleaned archives"
    assert edition(ORIGINAL).startswith("version: the original, uncleaned archives")
    assert edition({**CLEANED, "sketch": ORIGINAL["sketch"], "real": 7}) == (
        "version: mixed, cleaned: clipart, infograph, painting; original: sketch; unlike both: real"
    )
    assert edition({}).startswith("version: unknown")
    assert sum(CLEANED.values()) == 586575 and sum(ORIGINAL.values()) == 596006 + 4
    root = copy("domainnet")
    counts = DomainNet(root).table["domain"].value_counts().to_dict()
    monkeypatch.setattr(domainnet, "CLEANED", counts)
    monkeypatch.setattr(domainnet, "ORIGINAL", {**counts, "clipart": counts["clipart"] + 1})
    assert DomainNet(root).facts[-1] == "version: the cleaned archives"
    trees.write_images(root, ["clipart/zebra/duplicate.jpg"])
    dataset = DomainNet(root)
    assert f"neither list of their domain: 1 of clipart's {counts['clipart'] + 1:,}" in said(dataset)
    assert dataset.facts[-1].startswith("version: the original, uncleaned archives")
    assert data.main(["card", "domainnet", "--root", str(root)]) == 0
    printed = capsys.readouterr().out
    assert "read             version: " in printed
    assert "clipart_train.txt" in printed


@pytest.mark.parametrize("name", ["domain_net", "DomainNet", "DOMAINNET"])
def test_the_folder_of_other_code_bases_is_found(
    made: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / name).symlink_to(made / "domainnet")
    assert DomainNet(tmp_path / "domainnet").folder.name == name
    assert data.main(["list", "--data-root", str(tmp_path)]) == 0
    assert f"found as {name} " in capsys.readouterr().out


# --- mini-DomainNet ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("prefix", "change"), PREFIXES, ids=PREFIX_IDS)
def test_mini_domainnet_does_not_depend_on_the_spelling_of_its_lists(
    made: Path, copy: Copy, prefix: str, change: Callable[[str], str]
) -> None:
    root = copy("mini")
    rewrite(list((root / "splits_mini").iterdir()), change)
    move(root, "splits_mini", "splits")
    dataset = MiniDomainNet(root)
    assert dataset.findings == ()
    assert dataset.data_hash == MiniDomainNet(made / "mini").data_hash
    assert "clipart_train.txt, clipart_test.txt and 6 more in splits" in said(dataset)
    rewrite(list((root / "splits").iterdir()), lambda line: line.replace("\\", "/").rpartition("/cl")[2].strip())
    with pytest.raises(DatasetError, match="is not of the form"):
        MiniDomainNet(root).check()


def test_mini_domainnet_tells_other_lists_from_its_own(made: Path, copy: Copy) -> None:
    with pytest.raises(DatasetError, match=r"names 345 classes, mini-DomainNet has 126: those are DomainNet's own"):
        MiniDomainNet(made / "domainnet").check()
    root = copy("mini")
    shutil.rmtree(root / "splits_mini")
    (root / "clipart_list.txt").write_text("clipart/class_000/clipart_000000.jpg 0\n")
    with pytest.raises(
        DatasetError, match=r"has clipart_list\.txt, a list without train and test parts .* splits_mini"
    ):
        MiniDomainNet(root).check()


# --- VisDA ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [
        ("train/train_image_list.txt", "validation/valid_image_list.txt"),
        ("train_list.txt", "validation_list.txt"),
        ("image_list/train.txt", "image_list/validation.txt"),
    ],
)
@pytest.mark.parametrize("prefix", ["", "{part}/", "/data/VISDA-C/{part}/", "./"])
def test_visda_in_the_layouts_of_the_field(made: Path, copy: Copy, names: tuple[str, str], prefix: str) -> None:
    root = copy("visda")
    for part, name in zip(("train", "validation"), names, strict=True):
        move(root, f"{part}/image_list.txt", name)
        rewrite([root / name], lambda line, part=part: prefix.format(part=part) + line)  # type: ignore[misc]
    dataset = VisDA(root)
    assert dataset.findings == ()
    assert dataset.data_hash == VisDA(made / "visda").data_hash
    assert names[1].rpartition("/")[2] in said(dataset)
    rewrite([root / names[1]], lambda line: line.replace("car/0_114945.jpg 3", "car/0_114945.jpg 2"))
    with pytest.raises(DatasetError, match="has the label 2, which is not its class"):
        VisDA(root).check()


def test_visdas_unlabelled_test_list_says_what_is_needed(made: Path, copy: Copy) -> None:
    root = copy("visda")
    labelled = (root / "test/image_list.txt").read_text()
    rewrite([root / "test/image_list.txt"], lambda line: line.rpartition(" ")[0])
    with pytest.raises(
        DatasetError, match=r"visda_test: .*no labels.*classification/data of VisionLearningGroup/taskcv"
    ):
        VisDATest(root).check()
    (root / "image_list.txt").write_text(labelled)
    dataset = VisDATest(root)
    assert dataset.data_hash == VisDATest(made / "visda").data_hash
    assert "list of real: image_list.txt in ROOT" in said(dataset)
    assert "lists not read: image_list.txt in test" in said(dataset)


@pytest.mark.parametrize(("kind", "part"), [(VisDATest, "test"), (VisDA, "validation")])
def test_labels_that_start_at_1_are_told(copy: Copy, kind: type[VisDA], part: str) -> None:
    root = copy("visda")

    def later(line: str) -> str:
        path, _, label = line.rpartition(" ")
        return f"{path} {int(label) + 1}"

    rewrite([root / part / "image_list.txt"], later)
    with pytest.raises(DatasetError, match=f"{part}/image_list.txt: labels start at 1, not at 0"):
        kind(root).check()


# --- Office-Home, PACS, Sketchy, TU-Berlin ----------------------------------------------------------------------------


@pytest.mark.parametrize("real", ["Real", "RealWorld", "Real_World", "real_world", "Real-World", "REAL WORLD"])
@pytest.mark.parametrize("base", ["", "images", "OfficeHomeDataset_10072016", "images/OfficeHomeDataset_10072016"])
def test_office_home_layouts(made: Path, copy: Copy, real: str, base: str) -> None:
    root = copy("office_home")
    for folder in ("Art", "Clipart", "Product", "Real World"):
        new = real if folder == "Real World" else folder
        move(root, f"OfficeHomeDataset_10072016/{folder}", f"other/{base}/{new}" if base else f"other/{new}")
    dataset = OfficeHome(root / "other")
    assert dataset.findings == ()
    assert dataset.data_hash == OfficeHome(made / "office_home").data_hash
    assert f"real_world from {base}/{real}".replace("from /", "from ") in said(dataset)


def test_a_second_folder_of_a_domain_is_named(copy: Copy) -> None:
    root = copy("office_home") / "OfficeHomeDataset_10072016"
    shutil.copytree(root / "Real World", root / "Real")
    (finding,) = OfficeHome(root).findings
    assert str(finding) == "Real: not read: real_world is read from Real World"
    assert "1 second folders of a domain" in OfficeHome(root).left_out


@pytest.mark.parametrize(
    "names", [("Art_Painting", "Cartoon", "Photo", "Sketch"), ("art", "cartoon", "photo", "sketch")]
)
def test_pacs_in_other_spellings(made: Path, copy: Copy, names: tuple[str, ...]) -> None:
    root = copy("pacs")
    for old, new in zip(transfer_trees.PACS_DOMAINS, names, strict=True):
        move(root, f"pacs_data/{old}", f"PACS/{new}")
    assert PACS(root).data_hash == PACS(made / "pacs").data_hash


@pytest.mark.parametrize(
    ("kind", "name", "moves"),
    [
        (Sketchy, "sketchy", {"256x256/sketch": "sketch", "EXTEND_image_sketchy": "extended_photo"}),
        (Sketchy, "sketchy", {"EXTEND_image_sketchy": "256x256/EXTEND_image_sketchy_ready"}),
        (TUBerlin, "tuberlin", {"png": "sketches", "ImageResized": "images"}),
        (TUBerlin, "tuberlin", {"png": "png_ready", "ImageResized": "ImageResized_ready"}),
    ],
)
def test_retrieval_sets_do_not_depend_on_the_layout(
    made: Path, copy: Copy, kind: type[FolderDataset], name: str, moves: dict[str, str]
) -> None:
    root = copy(name)
    for old, new in moves.items():
        move(root, old, new)
    assert kind(root).data_hash == kind(made / name).data_hash


# --- I2AwA and I2WebV -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["AwA/JPEGImages", "AWA2/JPEGImages", "JPEGImages", "AwA2"])
def test_i2awa_layouts(made: Path, copy: Copy, place: str) -> None:
    root = copy("i2awa")
    move(root, "Animals_with_Attributes2/JPEGImages", place)
    assert I2AwA(root).data_hash == I2AwA(made / "i2awa").data_hash
    assert f"awa2 from {place}" in said(I2AwA(root))


def test_i2webv_as_webvisions_scripts_leave_it(made: Path, copy: Copy) -> None:
    root = copy("i2webv")
    move(root, "webvision/info/val_filelist.txt", "webvision/meta/val.txt")
    rewrite([root / "webvision/info/synsets.txt"], lambda line: line.split()[0])
    move(root, "webvision/info/synsets.txt", "webvision/meta/synsets.txt")
    move(root, "webvision/val_images_resized", "webvision/val")
    dataset = SmallI2WebV(root)
    assert dataset.data_hash == SmallI2WebV(made / "i2webv").data_hash
    assert "webvision/meta/val.txt, images from webvision/val" in said(dataset)
    rewrite([root / "webvision/meta/val.txt"], lambda line: f"val_images_resized/{line}")
    assert SmallI2WebV(root).data_hash == dataset.data_hash


def test_i2webv_in_class_folders(made: Path, copy: Copy) -> None:
    root = copy("i2webv")
    for line in (root / "webvision/info/val_filelist.txt").read_text().splitlines():
        name, label = line.split()
        wnid = transfer_trees.WNIDS[int(label)]
        move(root, f"webvision/val_images_resized/{name}", f"webvision/image/{wnid}/{name}")
    (root / "webvision/val_images_resized").rmdir()
    (root / "webvision/info/val_filelist.txt").unlink()
    dataset = SmallI2WebV(root)
    assert dataset.data_hash == SmallI2WebV(made / "i2webv").data_hash
    assert "webvision from webvision/image" in said(dataset)


# --- lists ------------------------------------------------------------------------------------------------------------


def test_paths_that_lead_elsewhere_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "clipart_train.txt"
    for line in ("real/zebra/1.jpg 0", "1.jpg 0", "clipart/1.jpg/2/3.jpg 0"):
        file.write_text(f"{line}\n")
        with pytest.raises(DatasetError, match=r"is not of the form clipart/CLASS/FILE$"):
            read_relative_list(file, "clipart", 2, root=tmp_path)
    for lines in ("clipart/a/1.jpg 0\na/2.jpg 0\n", "a/2.jpg 0\nclipart/a/1.jpg 0\n"):
        file.write_text(lines)
        with pytest.raises(DatasetError, match=r"a/2\.jpg is not of the form clipart/CLASS/FILE, as other lines are"):
            read_relative_list(file, "clipart", 2, root=tmp_path)


def test_a_list_without_labels_is_told_from_a_damaged_one(tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_text("\na/1.jpg\na/2.jpg\n")
    with pytest.raises(DatasetError, match=r"line 2: expected 'PATH LABEL', found 'a/1\.jpg': no line .* has a label"):
        read_image_list(file)
    file.write_text("a/1.jpg 0\na/2.jpg\n")
    with pytest.raises(DatasetError, match=r"line 2: expected 'PATH LABEL', found 'a/2\.jpg'$"):
        read_image_list(file)


# --- files that are left out ------------------------------------------------------------------------------------------


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
