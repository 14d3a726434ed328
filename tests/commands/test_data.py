"""``card``, ``verify`` and ``splits`` of ``benchmarks.data`` on a tree of every data set's layout."""

from __future__ import annotations

import hashlib
import io
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import data
from benchmarks.datasets.i2webv import I2WebV
from benchmarks.datasets.own_folder import OwnFolder
from benchmarks.datasets.registry import DATASETS
from benchmarks.datasets.splits import SPLITS, class_lists
from tests.datasets import transfer_trees, trees
from tests.datasets.conftest import image_cache  # noqa: F401 (an image cache of the test's own, for every test)


def listed(name: str, write: Callable[..., list[str]]) -> Callable[[Path], object]:
    """A writer of a tree with all classes of a class list."""
    classes = [cls for split in SPLITS for cls in class_lists(name)[split]]
    return lambda root: write(root, classes, images=1, plenty=True)


#: Writes the tree of each data set that is not shipped.
TREES: dict[str, Callable[[Path], object]] = {
    "domainnet": listed("domainnet", trees.domainnet_tree),
    "domainnet_245": listed("domainnet", trees.domainnet_tree),
    "sketchy": listed("sketchy_eccv2018", trees.sketchy_tree),
    "sketchy_random": listed("sketchy_eccv2018", trees.sketchy_tree),
    "tuberlin": listed("tuberlin", trees.tuberlin_tree),
    "office_home": transfer_trees.office_home_tree,
    "mini_domainnet": transfer_trees.mini_domainnet_tree,
    "visda": transfer_trees.visda_tree,
    "visda_test": transfer_trees.visda_tree,
    "pacs": transfer_trees.pacs_tree,
    "vlcs": transfer_trees.vlcs_tree,
    "terra_incognita": transfer_trees.terra_incognita_tree,
    "i2awa": transfer_trees.i2awa_tree,
    "i2webv": lambda root: transfer_trees.i2webv_tree(root, transfer_trees.WNIDS, 6),
    "folder": trees.own_tree,
}


def test_there_is_a_tree_for_every_data_set() -> None:
    assert {*TREES, "picto_domains", "tiny"} >= set(DATASETS.names())


@pytest.mark.parametrize("name", TREES)
def test_card_verify_and_splits(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(I2WebV, "sizes", (6, 8))
    root = tmp_path / name
    root.mkdir()
    TREES[name](root)
    assert data.main(["card", name]) == 0
    card = capsys.readouterr().out
    for word in ("source ", "licence ", "folder "):
        assert re.search(rf"^{word} +\S", card, re.MULTILINE), f"{name}'s card says nothing of its {word}"
    code = data.main(["verify", name, "--root", str(root)])
    printed = capsys.readouterr()
    assert code == 0, printed.out + printed.err
    assert re.search(r"^data hash [0-9a-f]{64}$", printed.out, re.MULTILINE)
    assert re.search(rf"^{name} v1: [\d,]+ images decode, [\d,]+ tasks? (is|are) sound", printed.out, re.MULTILINE)
    assert data.main(["splits", name, "--data-root", str(tmp_path)]) == 0
    assert re.search(r"\b\d+ classes\b", capsys.readouterr().out)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    trees.own_tree(tmp_path / "folder")
    return tmp_path / "folder"


def test_counts_and_hashes_are_those_of_the_files(root: Path, capsys: pytest.CaptureFixture) -> None:
    (root / "photo" / "dog" / "0000.jpg").write_bytes(b"<html>404</html>")
    (root / "photo" / "cup" / "0000.jpg").write_bytes(b"<html>404</html>")
    assert data.main(["verify", "folder", "--root", str(root)]) == 1
    printed = capsys.readouterr().out
    for domain in root.iterdir():
        assert re.search(
            rf"^{domain.name} +{len(list(domain.rglob('*.jpg')))} images, 8 classes$", printed, re.MULTILINE
        )
    lines = [
        f"{file.relative_to(root).as_posix()}\t{hashlib.sha256(file.read_bytes()).hexdigest()}\n"
        for file in root.rglob("*.jpg")
    ]
    assert f"content hash {hashlib.sha256(''.join(sorted(lines)).encode()).hexdigest()}\n" in printed
    assert "byte-identical" not in printed, "two pages in the place of images are broken, not twins"
    assert re.search(r"^tasks +ucdr 2, uccdr 2, udcdr 2, uda 6, dazsl 1, dg 3, uda_inductive 6$", printed, re.MULTILINE)


@pytest.mark.parametrize("size", ["0", "-3", "1.5", "²", "100000"])
def test_a_size_that_cannot_be_kept_is_a_wrong_option(root: Path, size: str, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit, match="2"):
        data.main(["verify", "folder", "--root", str(root), f"--size={size}"])
    assert "--size: a whole number from 1 to 2048, not " in capsys.readouterr().err


def test_images_are_not_said_to_be_kept_where_nothing_is(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("UCDR_BENCH_CACHE", "off")
    assert data.main(["verify", "folder", "--root", str(root), "--size", "8"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "folder: images cannot be kept decoded at 8 x 8 pixels: set UCDR_BENCH_CACHE to a folder with" in line


@pytest.mark.parametrize("data_root", ["~nobody-of-that-name", "none", "folder/photo/dog/0000.jpg"])
def test_a_data_root_that_is_none_is_one_line(
    root: Path, data_root: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(root.parent)
    for words in (["list"], ["verify", "folder"], ["card", "picto_domains"], ["splits", "picto_domains"]):
        assert data.main([*words, "--data-root", data_root]) == 1
        assert capsys.readouterr() == ("", f"benchmarks.data: --data-root {data_root} is not a folder\n")


def test_an_interrupt_and_a_reader_that_leaves_are_no_tracebacks(
    root: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def interrupted(dataset: OwnFolder) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(data, "splits", interrupted)
    assert data.main(["splits", "folder", "--root", str(root)]) == 130
    assert capsys.readouterr().err == "benchmarks.data: stopped\n"
    command = [sys.executable, "-m", "benchmarks.data", "splits", "domainnet"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 1


def test_names_that_the_terminal_cannot_show_are_escaped(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(out, encoding="ascii"))
    assert data.main(["splits", "folder", "--root", str(root)]) == 0
    assert b"\\u732b" in out.getvalue()


def test_a_list_of_broken_images_that_cannot_be_written_is_one_line(root: Path, capsys: pytest.CaptureFixture) -> None:
    (root / "photo" / "dog" / "0000.jpg").write_bytes(b"")
    (root / "broken.txt").mkdir()
    assert data.main(["verify", "folder", "--root", str(root), "--write-broken"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("broken.txt cannot be written: Is a directory; repair or remove those images instead")
