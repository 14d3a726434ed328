"""Lists of images: paths and labels as they are published."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.datasets.base import DatasetError
from benchmarks.datasets.image_lists import find_lists, read_image_list, read_relative_list
from benchmarks.datasets.tree_scan import join_listings, scan_listed
from tests.datasets.trees import class_tree


@pytest.fixture
def root(tmp_path: Path) -> Path:
    made = tmp_path / "data" / "small"
    class_tree(made, ("photos", "draw/256"), ("ant", "Bumble-Bee", "hot-dog"), 4)
    return made


def test_published_lists(root: Path, tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_text("photos/ant/0000.jpg 0\nphotos/hot dog/1.jpg 12\n\n../secret.jpg 3\n", encoding="utf-8-sig")
    frame = read_image_list(file)
    assert frame.to_dict("list") == {
        "path": ["photos/ant/0000.jpg", "photos/hot dog/1.jpg", "../secret.jpg"],
        "label": [0, 12, 3],
    }
    listing = scan_listed(root, frame["path"], domain="photo")
    assert listing.images[["key", "class", "domain"]].values.tolist() == [["photos/ant/0000.jpg", "ant", "photo"]]
    assert [(one.kind, one.path) for one in listing.findings] == [
        ("missing_image", "../secret.jpg"),
        ("missing_image", "photos/hot dog/1.jpg"),
    ]
    (root / "far").symlink_to(tmp_path)
    (root / "near").symlink_to("photos")
    odd = scan_listed(root, ["photos/ant/1.jpg", "far/list.txt", *["near/ant/0002.jpg"] * 2], domain="photo")
    assert [str(one) for one in odd.findings] == [
        "far/list.txt: behind a link that leaves the data set's folder; not followed",
        "near/ant/0002.jpg: named twice; read once",
        "photos/ant/1.jpg: named in a list, but not there",
    ]
    other = scan_listed(root, ["photos/ant/0001.jpg"], domain="photo", classes=["x"])
    assert join_listings([listing, other]).images["class"].tolist() == ["ant", "x"]
    with pytest.raises(DatasetError, match=r"photos/ant/0000\.jpg is listed twice"):
        join_listings([listing, listing])
    file.write_text("photos/ant/0000.jpg\n")
    with pytest.raises(DatasetError, match=r"list\.txt, line 1: expected 'PATH LABEL', found 'photos/ant/0000\.jpg'"):
        read_image_list(file)
    with pytest.raises(DatasetError, match="cannot be read: No such file"):
        read_image_list(tmp_path / "none.txt")
    with pytest.raises(DatasetError, match=r"has none of the 2 images that the list of photo names, such as a/1\.jpg$"):
        scan_listed(root, ["a/1.jpg", "a/2.jpg"], domain="photo")


@pytest.mark.parametrize("label", ["²", "-1", "1.0", "9" * 30, "x\0.jpg 1", "x\x1b.jpg 1"])
def test_a_line_of_a_list_that_cannot_be_meant_is_shown(tmp_path: Path, label: str) -> None:
    file = tmp_path / "list.txt"
    file.write_text(f"a/1.jpg 0\na/2.jpg {label}\n")
    with pytest.raises(DatasetError, match=r"list\.txt, line 2: expected 'PATH LABEL', found 'a/2\.jpg ") as caught:
        read_image_list(file)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("line", ["a/1.jpg 0 3", "'a/1.PNG' 0 3", "a/1.jpeg\t0\t3", "a/hot dog.jpg 0 3"])
def test_a_third_column_is_refused_by_line(tmp_path: Path, line: str) -> None:
    file = tmp_path / "list.txt"
    file.write_text(f"a/hot 1.jpg.jpg 0\n{line}\n")
    with pytest.raises(DatasetError, match=r"list\.txt, line 2: expected 'PATH LABEL', .*keep these two columns alone"):
        read_image_list(file)


def test_a_number_in_a_name_is_no_column(tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_text("a/photo.jpg 2.jpg 0\na/c.jpg 1/2.png 1\n")
    assert read_image_list(file)["path"].tolist() == ["a/photo.jpg 2.jpg", "a/c.jpg 1/2.png"]


@pytest.mark.parametrize("place", ["Splits", "SPLIT", "Image_List", ""])
def test_lists_are_found_in_any_case(tmp_path: Path, place: str) -> None:
    (tmp_path / place).mkdir(exist_ok=True)
    for name in ("Clipart_Train.TXT", "clipart_train_3.txt", "Clipart_Notes.md"):
        (tmp_path / place / name).write_text("clipart/a/1.jpg 0\n")
    names = [file.name for file in find_lists(tmp_path, ["clipart_train.txt", "clipart_*.txt"])]
    assert names == ["Clipart_Train.TXT", "clipart_train_3.txt"]
    (tmp_path / place / "clipart_train.txt").write_text("clipart/a/1.jpg 0\n")
    assert find_lists(tmp_path, ["clipart_train.txt"])[0].name == "clipart_train.txt", "the published spelling first"


def test_lists_with_tabs_are_read_and_empty_ones_refused(tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_text("a/hot dog.jpg\t3  \r\n")
    assert read_image_list(file).to_numpy().tolist() == [["a/hot dog.jpg", 3]]
    file.write_text("\ufeff\"a/hot dog.jpg\" 3\r\n\r\n'a/it''s.jpg'  4\r\n", encoding="utf-8")
    assert read_image_list(file)["path"].tolist() == ["a/hot dog.jpg", "a/it''s.jpg"]
    file.write_text("\n \n")
    with pytest.raises(DatasetError, match=r"list\.txt is empty; fetch the list again"):
        read_image_list(file)


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
