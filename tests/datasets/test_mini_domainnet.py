"""Mini-DomainNet: its lists in every spelling."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks.datasets.base import DatasetError
from benchmarks.datasets.mini_domainnet import MiniDomainNet
from tests.datasets.layouts import PREFIX_IDS, PREFIXES, Copy, move, rewrite, said


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
