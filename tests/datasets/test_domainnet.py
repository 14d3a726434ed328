"""DomainNet: its lists wherever users put them, and which of its versions a folder holds."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import data
from benchmarks.datasets import domainnet
from benchmarks.datasets.domainnet import CLEANED, ORIGINAL, DomainNet, edition
from tests.datasets import trees
from tests.datasets.layouts import PREFIX_IDS, PREFIXES, Copy, move, rewrite, said


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
