"""Scanning a tree: what is read, what is left out and why."""

from __future__ import annotations

import os
import sys
import unicodedata
from pathlib import Path

import pytest

from benchmarks.datasets.base import DatasetError, dataset_root
from benchmarks.datasets.tree_scan import scan
from tests.datasets.small import PLACES, Small, small_tree
from tests.datasets.trees import damage, write_images


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return small_tree(tmp_path)


def test_a_sorted_listing_with_domains_and_classes(root: Path) -> None:
    listing = scan(root, PLACES)
    keys = listing.images["key"].tolist()
    assert keys == sorted(keys)
    assert len(keys) == 2 * 3 * 4
    first = listing.images.iloc[0]
    assert (first["key"], first["class"], first["domain"]) == ("draw/256/Bumble-Bee/0000.jpg", "Bumble-Bee", "draw")
    assert first["bytes"] == (root / first["path"]).stat().st_size
    assert listing.findings == ()


def test_everything_odd_is_listed_with_its_reason_and_left_out(root: Path, tmp_path: Path) -> None:
    before = set(scan(root, PLACES).images["key"])
    harm = damage(root, "photos/ant", tmp_path / "outside")
    listing = scan(root, PLACES)
    assert set(listing.images["key"]) - before == {*harm.broken, *harm.whole}
    reasons = {finding.path: finding.reason for finding in listing.findings if finding.kind != "system_file"}
    assert tuple(sorted(reasons)) == harm.left_out
    (system,) = (finding for finding in listing.findings if finding.kind == "system_file")
    assert str(system) == "photos/ant: system files, such as '.hidden.jpg'"
    assert all("\n" not in str(finding) for finding in listing.findings)
    said = {path.rpartition("/")[2]: reason for path, reason in reasons.items()}
    assert said["notes.txt"] == "not an ending that is read; not read"
    assert said["nested"] == "a folder; not read"
    assert said["leaves.jpg"].startswith("a link that leaves the data set's folder (to ")
    assert said["loop.jpg"] == "a link that leads to itself"
    assert said["dangling.jpg"] == "a link to nothing"
    assert said["again.jpg"] == "a link to photos/ant/UPPER.JPG, which is listed already"
    assert said["empty class"] == "has no images"
    assert said["linked away"].startswith("a link that leaves the data set's folder")
    assert said["linked back"] == "a link that leads back to a folder above it; not followed"


def test_links_inside_the_root_are_followed_once(root: Path) -> None:
    write_images(root, ["store/0.jpg", "store/1.jpg"])
    (root / "photos" / "cat").symlink_to(root / "store")
    (root / "photos" / "cats").symlink_to("cat")
    (root / "photos" / "aunt").symlink_to("ant")
    (root / "photos" / "lone.jpg").symlink_to("ant/0000.jpg")
    listing = scan(root, PLACES)
    assert {"photos/cat/0.jpg", "photos/cat/1.jpg"} <= set(listing.images["key"])
    assert {finding.path: finding.reason for finding in listing.findings} == {
        "photos/aunt": "a link to photos/ant, which is listed already",
        "photos/cats": "a link to photos/cat, which is listed already",
        "photos/lone.jpg": "beside the class folders; not read",
    }


def test_a_domain_that_is_a_link_to_elsewhere_is_named(root: Path, tmp_path: Path) -> None:
    (root / "photos").rename(tmp_path / "moved")
    (root / "photos").symlink_to(tmp_path / "moved")
    with pytest.raises(
        DatasetError, match=r"^small: .* no images of the domain photo \(photos: a link that leaves the"
    ):
        Small(root).check()


def test_what_the_system_refuses_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DatasetError, match=r"^small: .*/x+ cannot be read: File name too long$"):
        Small(tmp_path / ("x" * 300)).check()

    def refuses(path: Path) -> bool:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "is_file", refuses)
    with pytest.raises(DatasetError, match=r"^small: .* cannot be read: Permission denied$"):
        dataset_root(str(tmp_path), "small")


def test_two_unicode_forms_of_one_name_are_refused(root: Path) -> None:
    name = "photos/ant/é.jpg"
    write_images(root, [unicodedata.normalize("NFC", name), unicodedata.normalize("NFD", name)])
    if len(list((root / "photos/ant").iterdir())) < 6:
        pytest.skip("this file system keeps one Unicode form only")
    with pytest.raises(DatasetError, match="same name in two Unicode forms"):
        scan(root, PLACES)


@pytest.mark.skipif(sys.platform != "linux", reason="names of any bytes")
def test_names_that_are_not_text_are_named(root: Path) -> None:
    Path(os.fsdecode(os.fsencode(root / "photos" / "ant") + b"/bad\xff.jpg")).write_bytes(b"x")
    odd = ("two\nlines", "escape\x1b[31m", "next\x85line", "line\u2028separator")
    for name in odd:
        (root / "photos" / "ant" / f"{name}.jpg").write_bytes(b"x")
    found = [str(finding) for finding in scan(root, PLACES).findings]
    why = "the name has a tab, line break or control character; rename it"
    assert found == [
        *sorted(f"photos/ant/{name + '.jpg'!r}: {why}" for name in odd),
        "photos/ant/bad\\udcff.jpg: the name is not UTF-8; rename it",
    ]
    assert all(line.isprintable() for line in found)
