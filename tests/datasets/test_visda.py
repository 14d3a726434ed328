"""VisDA in the layouts of its users, and its test part."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.datasets.base import DatasetError
from benchmarks.datasets.visda import VisDA, VisDATest
from tests.datasets.layouts import Copy, move, rewrite, said


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
