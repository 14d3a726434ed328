"""Office-Home, mini-DomainNet, VisDA, PACS, I2AwA and I2WebV: published layouts, transfers, and what goes wrong."""

from __future__ import annotations

import hashlib
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from benchmarks import data
from benchmarks.datasets.base import Dataset, DatasetError
from benchmarks.datasets.folder_dataset import FolderDataset
from benchmarks.datasets.i2awa import SEEN, UNSEEN, I2AwA
from benchmarks.datasets.i2webv import I2WebV, class_names
from benchmarks.datasets.mini_domainnet import MiniDomainNet
from benchmarks.datasets.office_home import OfficeHome
from benchmarks.datasets.pacs import PACS
from benchmarks.datasets.registry import DATASETS
from benchmarks.datasets.terra_incognita import TerraIncognita
from benchmarks.datasets.visda import VisDA, VisDATest
from benchmarks.datasets.vlcs import VLCS
from benchmarks.datasets.wnids import synset_name
from benchmarks.protocols.dazsl import PROTOCOL as DAZSL
from benchmarks.protocols.registry import PROTOCOLS
from benchmarks.protocols.task import Classification, held_out_tenth
from benchmarks.protocols.uda import INDUCTIVE, PROTOCOL
from tests.datasets.transfer_trees import (
    PACS_DOMAINS,
    i2awa_tree,
    i2webv_tree,
    mini_domainnet_tree,
    office_home_tree,
    pacs_tree,
    terra_incognita_tree,
    visda_tree,
    vlcs_tree,
)
from tests.datasets.trees import damage, write_images

#: Eleven nouns of WordNet: two cranes, two maillots; the first six play the seen classes.
WNIDS = (
    "n02012849",  # crane, the bird
    "n03126707",  # crane, the machine
    "n03710637",  # maillot, tights
    "n03710721",  # maillot, tank suit
    "n01440764",  # tench
    "n02084071",  # dog
    "n02121620",  # cat
    "n02958343",  # car
    "n12992868",  # fungus
    "n07739125",  # apple
    "n04379243",  # table
)


class SmallI2WebV(I2WebV):
    sizes = (6, 11)


@pytest.fixture(scope="module")
def trees(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """All the trees under one data root; tests that change one copy it first."""
    root = tmp_path_factory.mktemp("data")
    office_home_tree(root / "office_home")
    pacs_tree(root / "pacs")
    vlcs_tree(root / "vlcs")
    terra_incognita_tree(root / "terra_incognita")
    visda_tree(root / "visda")
    mini_domainnet_tree(root / "domainnet")
    i2awa_tree(root / "i2awa")
    i2webv_tree(root / "i2webv", WNIDS, 6)
    return root


@pytest.fixture
def copy(trees: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A copy of one tree that the test may change."""

    def make(name: str) -> Path:
        return Path(shutil.copytree(trees / name, tmp_path / name, symlinks=True))

    return make


SETS: dict[str, tuple[type[FolderDataset], str, int]] = {
    "office_home": (OfficeHome, "office_home", 12),
    "mini_domainnet": (MiniDomainNet, "domainnet", 12),
    "visda": (VisDA, "visda", 1),
    "visda_test": (VisDATest, "visda", 1),
    "pacs": (PACS, "pacs", 12),
    "vlcs": (VLCS, "vlcs", 12),
    "terra_incognita": (TerraIncognita, "terra_incognita", 12),
    "i2awa": (I2AwA, "i2awa", 0),
    "i2webv": (SmallI2WebV, "i2webv", 0),
}


def one_line(error: pytest.ExceptionInfo[DatasetError], name: str) -> str:
    text = str(error.value)
    assert "\n" not in text
    assert text.startswith(f"{name}: ")
    return text


# --- every set --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SETS)
def test_every_layout_loads_and_every_task_of_every_protocol_is_sound(trees: Path, name: str) -> None:
    kind, folder, transfers = SETS[name]
    dataset = kind(trees / folder)
    dataset.check()
    assert dataset.card.name == name
    assert len(PROTOCOL.splits(dataset)) == transfers
    for protocol in PROTOCOLS.names():
        for split in PROTOCOLS.get(protocol).splits(dataset):
            PROTOCOLS.get(protocol).task(dataset, split).check(dataset)
    assert {len(dataset.classes(split)) > 0 for split in ("train", "val", "test")} == {True}
    assert set(dataset.classes()) == set(dataset.table["class"])
    for split in ("train", "val", "test"):
        assert set(dataset.classes(split)) == set(dataset.table.loc[dataset.table["split"] == split, "class"])
    rows = np.array([0, len(dataset.table) - 1])
    assert dataset.pixels(rows, 8).shape == (2, 3, 8, 8)
    assert dataset.card.layout and dataset.card.licence and dataset.card.source and dataset.card.bibtex
    registered = DATASETS.get(name)
    assert registered is kind or issubclass(kind, registered)


@pytest.mark.parametrize("name", SETS)
def test_a_missing_folder_is_one_line_with_the_layout(tmp_path: Path, name: str) -> None:
    kind, _, _ = SETS[name]
    with pytest.raises(DatasetError) as caught:
        kind(tmp_path / "nowhere").check()
    assert "does not exist; the layout is " in one_line(caught, name)
    (tmp_path / "empty").mkdir()
    with pytest.raises(DatasetError) as caught:
        kind(tmp_path / "empty").check()
    assert "layout is " in one_line(caught, name)


def test_sets_are_found_by_the_names_of_their_archives(trees: Path) -> None:
    assert MiniDomainNet(trees / "mini_domainnet").folder == trees / "domainnet"
    assert VisDATest(trees / "visda_test").folder == trees / "visda"
    assert "visda_test" not in DATASETS.defaults()


@pytest.mark.parametrize("name", ["office_home", "visda", "pacs", "mini_domainnet"])
def test_transfers_show_no_target_label(trees: Path, name: str) -> None:
    kind, folder, _ = SETS[name]
    dataset = kind(trees / folder)
    domains = dataset.table["domain"].to_numpy()
    for split in PROTOCOL.splits(dataset):
        source, target = split.split(" to ")
        task = PROTOCOL.task(dataset, split)
        assert set(task.class_names) == set(dataset.classes())
        assert set(domains[task.train]) == {source}
        assert task.target is not None
        assert set(domains[task.target]) == set(domains[task.classifications[0].rows]) == {target}
        assert isinstance(task.validation, Classification)
        assert set(domains[task.validation.rows]) == {source} or not len(task.validation.rows)


@pytest.mark.parametrize(
    ("name", "class_folder"),
    [
        ("office_home", "OfficeHomeDataset_10072016/Real World/Alarm_Clock"),
        ("pacs", "pacs_data/sketch/dog"),
        ("i2awa", "Animals_with_Attributes2/JPEGImages/killer+whale"),
        ("i2webv", "imagenet/train/n01440764"),
    ],
)
def test_damaged_trees_name_everything_that_is_not_used(
    copy: Callable[[str], Path],
    tmp_path: Path,
    name: str,
    class_folder: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kind, folder, _ = SETS[name]
    root = copy(folder)
    before = len(kind(root).table)
    harm = damage(root, class_folder, tmp_path / "outside")
    dataset = kind(root)
    empty = [finding.path for finding in dataset.findings if finding.kind == "empty_file"]
    assert empty == [path for path in harm.broken if path.endswith("zero.jpg")]
    assert len(dataset.table) == before + len(harm.broken) - len(empty) + len(harm.whole)
    left_out = [finding.path for finding in dataset.findings if finding.kind not in ("unknown_class", "empty_file")]
    assert sorted(left_out) == [*harm.left_out]
    assert all("\n" not in str(finding) for finding in dataset.findings)
    for protocol in PROTOCOLS.names():
        for split in PROTOCOLS.get(protocol).splits(dataset):
            PROTOCOLS.get(protocol).task(dataset, split).check(dataset)
    with monkeypatch.context() as patch:
        patch.setitem(DATASETS._loaded, name, kind)
        assert data.main(["verify", name, "--root", str(root), "--write-broken", "--all"]) == 1
        shown = capsys.readouterr().out
        assert "broken images: 3" in shown
        assert all(broken.rpartition("/")[2] in shown for broken in harm.broken)
        assert data.main(["verify", name, "--root", str(root)]) == 0
    assert f"{before + len(harm.whole)} images decode" in capsys.readouterr().out


def test_lists_name_missing_images(copy: Callable[[str], Path]) -> None:
    root = copy("visda")
    (root / "validation" / "car" / "1_114945.jpg").unlink()
    dataset = VisDA(root)
    assert [(one.kind, one.path) for one in dataset.findings] == [("missing_image", "validation/car/1_114945.jpg")]
    root = copy("domainnet")
    (root / "sketch" / "class_007" / "sketch_000000.jpg").unlink()
    assert [one.path for one in MiniDomainNet(root).findings] == ["sketch/class_007/sketch_000000.jpg"]


def remove(folder: Path, outside: Path) -> None:
    shutil.rmtree(folder)


def replace_by_archive(folder: Path, outside: Path) -> None:
    shutil.rmtree(folder)
    folder.with_name(f"{folder.name}.zip").write_bytes(b"PK")


def link_to_itself(folder: Path, outside: Path) -> None:
    shutil.rmtree(folder)
    folder.symlink_to(folder.name)


def move_outside(folder: Path, outside: Path) -> None:
    folder.symlink_to(folder.rename(outside))


@pytest.mark.parametrize("harm", [remove, replace_by_archive, link_to_itself, move_outside])
@pytest.mark.parametrize(
    ("name", "class_folder", "says"),
    [
        ("pacs", "pacs_data/photo/dog", "  photo/dog: no image of this class in this domain; fetch them\n"),
        ("visda", "validation/car", "missing images: 3\n  validation/car/0_114945.jpg: "),
        ("domainnet", "real/class_003", "missing images: 2\n  real/class_003/real_000000.jpg: "),
    ],
)
def test_a_class_that_a_domain_lost_is_not_in_order(
    copy: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
    harm: Callable[[Path, Path], None],
    tmp_path: Path,
    name: str,
    class_folder: str,
    says: str,
) -> None:
    root = copy(name)
    harm(root / class_folder, tmp_path / "elsewhere")
    assert data.main(["verify", "mini_domainnet" if name == "domainnet" else name, "--root", str(root)]) == 1
    printed = capsys.readouterr()
    assert says in printed.out
    assert printed.err == ""


def test_two_folders_of_one_class_are_both_read_and_named(copy: Callable[[str], Path]) -> None:
    root = copy("pacs")
    shutil.copytree(root / "pacs_data/photo/dog", root / "pacs_data/photo/Dog")
    dataset = PACS(root)
    assert len(dataset.table) == 87
    assert [(one.kind, str(one)) for one in dataset.findings] == [
        ("similar_names", "photo/dog: read from the folders Dog, dog")
    ]


# --- Office-Home and PACS ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "spelled",
    [
        ("OfficeHomeDataset_10072016", "Art", "Clipart", "Product", "Real World"),
        ("", "Art", "Clipart", "Product", "Real_World"),
        ("", "art", "clipart", "product", "real_world"),
        ("OfficeHomeDataset", "Art", "Clipart", "Product", "RealWorld"),
    ],
)
def test_office_home_is_the_same_in_every_spelling(
    trees: Path, copy: Callable[[str], Path], spelled: tuple[str, ...]
) -> None:
    root = copy("office_home")
    base, *names = spelled
    old = root / "OfficeHomeDataset_10072016"
    new = root / base if base else root
    for before, after in zip(("Art", "Clipart", "Product", "Real World"), names, strict=True):
        new.mkdir(exist_ok=True)
        (old / before).rename(new / after)
    dataset = OfficeHome(root)
    assert dataset.domains == ("art", "clipart", "product", "real_world")
    assert len(dataset.classes()) == 65
    assert dataset.data_hash == OfficeHome(trees / "office_home").data_hash
    assert [len(dataset.classes(split)) for split in ("train", "val", "test")] == [39, 10, 16]


def test_a_class_without_images_is_named(copy: Callable[[str], Path]) -> None:
    root = copy("office_home")
    for folder in root.rglob("ToothBrush"):
        shutil.rmtree(folder)
    with pytest.raises(DatasetError) as caught:
        OfficeHome(root).check()
    assert "1 of 65 classes have no images" in one_line(caught, "office_home")
    assert "(toothbrush)" in str(caught.value)


def test_a_domain_without_images_is_named(copy: Callable[[str], Path]) -> None:
    root = copy("pacs")
    (root / "pacs_data" / "cartoon").rename(root / "pacs_data" / "comic")
    with pytest.raises(DatasetError) as caught:
        PACS(root).check()
    assert "has no folder pacs_data/cartoon; the layout is" in one_line(caught, "pacs")


@pytest.mark.parametrize("base", ["", "PACS/kfold", "kfold", "images"])
def test_pacs_is_the_same_in_every_layout(trees: Path, tmp_path: Path, base: str) -> None:
    pacs_tree(tmp_path / "PACS", base)
    other = PACS(tmp_path / "pacs" if base != "images" else tmp_path / "PACS")
    assert other.domains == PACS_DOMAINS
    own = PACS(trees / "pacs")
    assert other.table["key"].tolist() == own.table["key"].tolist()
    assert other.table["held_back"].tolist() == own.table["held_back"].tolist()


# --- VisDA ------------------------------------------------------------------------------------------------------------


def test_visda_reads_the_lists(trees: Path) -> None:
    dataset = VisDA(trees / "visda")
    assert PROTOCOL.splits(dataset) == ["synthetic to real"]
    assert "synthetic/car/src_1_02691156_0__0_31_0.png" in set(dataset.table["key"])
    test = VisDATest(trees / "visda")
    real = test.table[test.table["domain"] == "real"]
    assert set(real["path"].str.split("/").str[0]) == {"test"}
    assert (real["path"].str.extract(r"trunk\d+/([a-z]+)")[0] == real["class"]).all(), "labels come from the list"
    assert dataset.data_hash != test.data_hash


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("car/0_114945.jpg 2", "car/0_114945.jpg has the label 2, which is not its class"),
        ("car/0_114945.jpg 12", "has the label 12"),
        ("car/0_114945.jpg", "expected 'PATH LABEL'"),
        ("car/0_114945.jpg 3\ncar/0_114945.jpg 3", "car/0_114945.jpg is listed twice"),
    ],
)
def test_a_wrong_list_is_refused(copy: Callable[[str], Path], line: str, says: str) -> None:
    root = copy("visda")
    file = root / "validation" / "image_list.txt"
    file.write_text(file.read_text().replace("car/0_114945.jpg 3", line))
    with pytest.raises(DatasetError) as caught:
        VisDA(root).check()
    assert says in one_line(caught, "visda")


def test_without_its_list_a_part_cannot_be_read(copy: Callable[[str], Path]) -> None:
    root = copy("visda")
    (root / "train" / "image_list.txt").unlink()
    with pytest.raises(DatasetError) as caught:
        VisDA(root).check()
    assert "train/image_list.txt does not exist; the layout is ROOT/{train,validation}" in one_line(caught, "visda")


# --- mini-DomainNet ---------------------------------------------------------------------------------------------------


def test_mini_domainnet_keeps_the_published_parts(trees: Path) -> None:
    dataset = MiniDomainNet(trees / "domainnet")
    assert len(dataset.classes()) == 126
    assert "zebra" not in dataset.classes(), "no list names it"
    part = dataset.table["part"].to_numpy()
    for protocol in (PROTOCOL, INDUCTIVE):
        task = protocol.task(dataset, "real to sketch")
        task.check(dataset)
        assert set(part[task.train]) == {"train"}
        assert task.target is not None
        assert set(part[task.target]) == {"train"}
        assert set(part[task.classifications[0].rows]) == {"test"}
        assert len(task.classifications[0].rows) == 126
        assert len(task.target) == 126
        assert not task.transductive


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda lists: (lists / "real_test.txt").unlink(), "real_test.txt does not exist; the layout is"),
        (
            lambda lists: _replace(lists / "real_train.txt", "real/class_001/", "class_001/"),
            "not of the form real/CLASS",
        ),
        (lambda lists: _replace(lists / "real_test.txt", ".jpg 5\n", ".jpg 6\n"), "class_005 has two labels"),
        (lambda lists: _forget(lists, "class_100/"), "names 125 classes, mini-DomainNet has 126"),
    ],
)
def test_wrong_split_files_are_refused(copy: Callable[[str], Path], change: Any, says: str) -> None:
    root = copy("domainnet")
    change(root / "splits_mini")
    with pytest.raises(DatasetError) as caught:
        MiniDomainNet(root).check()
    assert says in one_line(caught, "mini_domainnet")


def _replace(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def _forget(lists: Path, what: str) -> None:
    for file in lists.iterdir():
        file.write_text("\n".join(line for line in file.read_text().splitlines() if what not in line))


# --- I2AwA ------------------------------------------------------------------------------------------------------------


def test_i2awa_ties_every_class_to_its_synset(trees: Path) -> None:
    dataset = I2AwA(trees / "i2awa")
    assert (len(SEEN), len(UNSEEN)) == (40, 10)
    synsets = dataset.synsets
    assert set(synsets) == set(dataset.classes())
    assert len(set(synsets.values())) == 50
    assert synsets["killer_whale"] == "killer_whale.n.01"
    assert synsets["polar_bear"] == "ice_bear.n.01"
    assert synsets["seal"] == "seal.n.09"
    animal = {synset_name("n00015388")}
    from nltk.corpus import wordnet

    for name in synsets.values():
        above = {one.name() for path in wordnet.synset(name).hypernym_paths() for one in path}
        assert animal <= above, f"{name} is no animal"


def test_i2awa_runs_dazsl(trees: Path) -> None:
    dataset = I2AwA(trees / "i2awa")
    assert DAZSL.splits(dataset) == ["3d2 to awa2"]
    task = DAZSL.task(dataset, "3d2 to awa2")
    task.check(dataset)
    table = dataset.table
    classes, domains = table["class"].to_numpy(), table["domain"].to_numpy()
    assert set(classes[task.train]) == set(SEEN), "every seen class is labelled"
    assert set(domains[task.train]) == {"3d2"}
    assert task.target is not None
    assert set(classes[task.target]) == {*SEEN, *UNSEEN}
    assert task.classifications[0].seen == tuple(SEEN)
    assert isinstance(task.validation, Classification)
    assert task.validation.seen is None, "there are no classes to play the unseen ones: plain accuracy"
    assert set(domains[task.validation.rows]) == {"3d2"}
    assert not set(task.validation.rows) & set(task.train)
    assert len(task.class_names) == 50
    assert PROTOCOL.splits(dataset) == []


def test_i2awa_reads_gif_and_odd_endings(trees: Path) -> None:
    dataset = I2AwA(trees / "i2awa")
    rows = np.flatnonzero(dataset.table["key"].str.contains(r"20\.gif|7\.jpeg"))
    assert len(rows) == 2
    assert dataset.pixels(rows, 8).std() > 0


def test_i2awa_refuses_what_is_not_its_class(copy: Callable[[str], Path]) -> None:
    root = copy("i2awa")
    write_images(root, ["3D2/horse-n02374451/1.jpg", "3D2/unicorn-n09505153/1.jpg"])
    dataset = I2AwA(root)
    said = {finding.path: finding.reason for finding in dataset.findings}
    assert said["3D2/horse"] == "an unseen class: its source images are left out"
    assert "not a class of i2awa" in said["unicorn"]
    assert not ((dataset.table["class"] == "horse") & (dataset.table["domain"] == "3d2")).any()
    (root / "3D2" / "tiger-n02129604").rename(root / "3D2" / "tiger-n02129165")
    with pytest.raises(DatasetError) as caught:
        I2AwA(root).check()
    assert "under the WordNet id n02129165, but tiger is n02129604" in one_line(caught, "i2awa")


@pytest.mark.parametrize("folder", ["3D2/tiger-n02129604", "Animals_with_Attributes2/JPEGImages/giraffe"])
def test_i2awa_needs_every_class_in_its_domains(copy: Callable[[str], Path], folder: str) -> None:
    root = copy("i2awa")
    shutil.rmtree(root / folder)
    with pytest.raises(DatasetError) as caught:
        I2AwA(root).check()
    text = one_line(caught, "i2awa")
    assert "classes have no images" in text
    assert "left out" not in text
    (root / folder).mkdir()
    with pytest.raises(DatasetError, match=rf"; left out here: {folder}: has no images$"):
        I2AwA(root).check()
    assert ("tiger" if "tiger" in folder else "giraffe") in text


# --- I2WebV -----------------------------------------------------------------------------------------------------------


def test_i2webv_takes_its_classes_from_webvisions_list(trees: Path) -> None:
    dataset = SmallI2WebV(trees / "i2webv")
    names = list(dataset.wnids)
    assert names[0] == "crane (wading bird)"
    assert names[1] == "crane (lifting device)"
    assert names[4:7] == ["tench", "dog", "cat"]
    assert len(set(names)) == 11
    assert dataset.synsets["crane (wading bird)"] == "crane.n.05"
    assert dataset.synsets["dog"] == "dog.n.01"
    assert dataset.closed_set.seen == tuple(names[:6])
    assert dataset.closed_set.unseen == tuple(names[6:])
    assert I2WebV.sizes == (1000, 5000)


def test_i2webv_runs_dazsl(trees: Path) -> None:
    dataset = SmallI2WebV(trees / "i2webv")
    task = DAZSL.task(dataset, "imagenet to webvision")
    task.check(dataset)
    classes = dataset.table["class"].to_numpy()
    assert set(classes[task.train]) == set(dataset.closed_set.seen)
    assert task.target is not None
    assert set(classes[task.target]) == set(dataset.classes())
    label_3 = dataset.table[dataset.table["path"].str.endswith("val000003.jpg")]
    assert label_3["class"].tolist() == [list(dataset.wnids)[3]]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda info: (info / "synsets.txt").unlink(), "are those of WebVision 2.0's own lists, which are not shipped"),
        (
            lambda info: _cut(info / "synsets.txt", 6),
            "lists 6 classes, not 11 (WebVision 1.0 has the seen classes alone",
        ),
        (lambda info: _cut(info / "synsets.txt", 9), "lists 9 classes, not 11"),
        (lambda info: _replace(info / "synsets.txt", WNIDS[2], WNIDS[1]), "lists n03126707 twice"),
        (lambda info: _replace(info / "synsets.txt", WNIDS[2], "n99999999"), "n99999999 is not a noun of WordNet 3.0"),
        (lambda info: _replace(info / "synsets.txt", WNIDS[2], "n02084072"), "n02084072 is not a noun of WordNet 3.0"),
        (
            lambda info: _replace(info / "synsets.txt", WNIDS[2], "maillot"),
            "synsets.txt: maillot is not a noun of WordNet 3.0; fetch it again",
        ),
        (lambda info: (info / "synsets.txt").write_bytes(b"\xff\xfe"), "synsets.txt is not UTF-8 text: byte 0"),
        (lambda info: _replace(info / "val_filelist.txt", " 10\n", " 11\n"), "label 11 is beyond the 11 classes"),
        (lambda info: (info / "val_filelist.txt").unlink(), "val_filelist.txt does not exist"),
        (
            lambda info: (info.parent / "val_images_resized").rename(info.parent / "v"),
            "no folder val_images_resized or",
        ),
        (lambda info: shutil.rmtree(info.parents[1] / "imagenet/train" / WNIDS[4]), "1 of 6 classes have no images"),
        (lambda info: shutil.rmtree(info.parents[1] / "imagenet"), "has no folder imagenet/train or"),
    ],
)
def test_i2webv_says_what_is_wrong(copy: Callable[[str], Path], change: Any, says: str) -> None:
    root = copy("i2webv")
    change(root / "webvision" / "info")
    with pytest.raises(DatasetError) as caught:
        SmallI2WebV(root).check()
    assert says in one_line(caught, "i2webv")


def _cut(file: Path, lines: int) -> None:
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:lines]))


def test_other_places_of_imagenet_and_of_the_lists(trees: Path, copy: Callable[[str], Path]) -> None:
    root = copy("i2webv")
    (root / "imagenet" / "train").rename(root / "ILSVRC2012_img_train")
    (root / "imagenet").rmdir()
    for file in (root / "webvision" / "info").iterdir():
        file.rename(root / "webvision" / file.name)
    (root / "webvision" / "val_images_resized").rename(root / "webvision" / "val_images_256")
    write_images(root, ["ILSVRC2012_img_train/n02121620/1.JPEG"])  # an unseen class
    other = SmallI2WebV(root)
    assert [finding.path for finding in other.findings] == ["n02121620"]
    assert other.data_hash == SmallI2WebV(trees / "i2webv").data_hash


def test_names_that_several_classes_share() -> None:
    assert class_names(["n02012849", "n03126707"]) == ["crane (wading bird)", "crane (lifting device)"]
    # two robins, both thrushes
    assert class_names(["n01562265", "n01558993"]) == ["robin (redbreast)", "robin (American robin)"]
    assert class_names(["n01558993", "n02084071"]) == ["robin", "dog"], "alone, its first synonym tells it"


def test_no_two_nouns_of_wordnet_have_one_name_and_no_name_holds_an_id() -> None:
    from nltk.corpus import wordnet

    wnids = [f"n{synset.offset():08d}" for synset in wordnet.all_synsets("n")]
    assert len(wnids) == 82115
    for chosen in (wnids, wnids[::7], np.random.default_rng(0).permutation(wnids)[:5000].tolist()):
        names = class_names(chosen)
        assert len({name.lower() for name in names}) == len(chosen)
        assert not [name for name in names if re.search(r"[0-9]{8}|_", name)]


# --- shared rules -----------------------------------------------------------------------------------------------------


def test_the_held_out_tenth_is_that_of_its_definition() -> None:
    generator = np.random.default_rng(0)
    classes = np.array([f"c{number}" for number in generator.integers(0, 7, 200)], dtype=object)
    keys = np.array([f"key {number}" for number in generator.permutation(200)], dtype=object)
    rows = np.sort(generator.choice(200, 90, replace=False))
    expected = set()
    for name in set(classes[rows]):
        mine = sorted(rows[classes[rows] == name], key=lambda row: hashlib.sha256(keys[row].encode()).digest())
        expected |= set(mine[: max(1, round(len(mine) / 10))]) if len(mine) >= 3 else set()
    train, held = held_out_tenth(rows, classes, keys)
    assert set(held) == expected
    assert sorted([*train, *held]) == rows.tolist()
    nothing = np.zeros(0, dtype=np.int64)
    assert [len(part) for part in held_out_tenth(nothing, classes, keys)] == [0, 0]


def test_a_method_learns_and_is_scored_on_a_generated_tree(
    trees: Path,
    tiny_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One sweep from the folder to the record: DAZSL on I2AwA with validation, UDA on VisDA."""
    from benchmarks import load_results
    from benchmarks.run import main

    monkeypatch.setattr("benchmarks.reporting.files.write_report", lambda *_, **__: [tmp_path, tmp_path])
    arguments = ["--methods", "zero_shot,coop", "--datasets", "i2awa,visda", "--data-root", str(trees)]
    arguments += ["--protocols", "uda,dazsl", "--preset", "smoke", "--backbone", str(tiny_folder), "--jobs", "1"]
    code = main([*arguments, "--out", str(tmp_path / "out")])
    frame = load_results(tmp_path / "out")
    assert code == 0, capsys.readouterr()
    assert set(frame["status"]) == {"ok"}
    found = set(zip(frame["dataset"], frame["protocol"], frame["method"], strict=True))
    assert found == {
        (dataset, protocol, method)
        for dataset, protocol in (("i2awa", "dazsl"), ("visda", "uda"))
        for method in ("zero_shot", "coop")
    }
    assert {"h[image]", "unseen[image]"} <= set(frame[frame["protocol"] == "dazsl"]["metric"])


def test_images_keep_their_own_pixels(trees: Path) -> None:
    dataset: Dataset = OfficeHome(trees / "office_home")
    assert isinstance(dataset, FolderDataset)
    row = 77
    with Image.open(dataset.paths(np.array([row]))[0]) as image:
        square = image.convert("RGB").crop((1, 0, 9, 8))
        expected = np.asarray(square).transpose(2, 0, 1)
    got = dataset.pixels(np.array([row]), 8).mul(255).round().numpy()[0]
    assert np.abs(got - expected).max() <= 1
