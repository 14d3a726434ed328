"""Content hashes: right after any replacement, quick on a second start, right without a cache."""

import hashlib
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from benchmarks.datasets import contents
from benchmarks.datasets.base import DatasetError
from benchmarks.datasets.contents import file_hashes, tree_hash
from benchmarks.datasets.own_folder import OwnFolder
from tests.datasets.trees import write_images


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read, as they are read; a file need not lie still to be remembered."""
    asked: list[str] = []
    read = contents._read

    def counting(path: str) -> tuple[str, tuple[int, int, int, int]]:
        asked.append(Path(path).name)
        return read(path)

    monkeypatch.setattr(contents, "_read", counting)
    monkeypatch.setattr(contents, "SETTLED", -3600.0)
    return asked


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    found = [tmp_path / f"{number}.bin" for number in range(5)]
    for number, file in enumerate(found):
        file.write_bytes(bytes([number]) * 100)
    return found


def hashes(files: list[Path]) -> list[str]:
    return file_hashes([str(file) for file in files], name="test")


def truth(files: list[Path]) -> list[str]:
    return [hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "" for file in files]


def test_read_once_and_then_remembered(files: list[Path], reads: list[str]) -> None:
    assert hashes(files) == truth(files)
    assert len(reads) == 5
    assert hashes(files) == truth(files)
    assert hashes(files[3:] + files[:1]) == truth(files[3:] + files[:1])
    assert len(reads) == 5
    files[0].write_bytes(b"longer than it was" * 100)
    assert hashes(files) == truth(files)
    assert reads[5:] == ["0.bin"]


def in_place(file: Path, other: bytes) -> None:
    file.write_bytes(other)


def another_file(file: Path, other: bytes) -> None:
    new = file.with_suffix(".new")
    new.write_bytes(other)
    new.replace(file)


def another_file_with_its_times(file: Path, other: bytes) -> None:
    about = file.stat()
    another_file(file, other)
    os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))


def in_place_with_its_times(file: Path, other: bytes) -> None:
    about = file.stat()
    file.write_bytes(other)
    os.utime(file, ns=(about.st_atime_ns, about.st_mtime_ns))


def link_to_another(file: Path, other: bytes) -> None:
    target = file.with_suffix(".target")
    target.write_bytes(other)
    about = file.stat()
    os.utime(target, ns=(about.st_atime_ns, about.st_mtime_ns))
    file.unlink()
    file.symlink_to(target)


@pytest.mark.parametrize(
    "replace", [in_place, another_file, another_file_with_its_times, in_place_with_its_times, link_to_another]
)
def test_a_file_of_the_same_size_is_another_file(
    files: list[Path], reads: list[str], replace: Callable[[Path, bytes], None]
) -> None:
    hashes(files)
    time.sleep(0.02)  # the clock of a file system moves in steps; SETTLED is for that, and off in this test
    replace(files[2], b"x" * 100)
    assert hashes(files) == truth(files)
    assert reads[5:] == ["2.bin"]


def test_a_link_that_is_turned_is_read_again(files: list[Path], tmp_path: Path, reads: list[str]) -> None:
    link = tmp_path / "link"
    link.symlink_to(files[0])
    assert hashes([link]) == truth(files[:1])
    link.unlink()
    link.symlink_to(files[1])
    assert hashes([link]) == truth(files[1:2])


def test_a_file_that_was_just_written_is_not_remembered(
    files: list[Path], reads: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contents, "SETTLED", 3600.0)
    hashes(files)
    hashes(files)
    assert len(reads) == 10


def test_right_without_a_cache_or_with_a_damaged_one(
    files: list[Path], reads: list[str], image_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert hashes(files) == truth(files)
    (memory,) = image_cache.rglob("*.hashes")
    whole = memory.read_bytes()
    damaged = [whole[:100], b"", b"PAR1" * 20, *(_flipped(whole, place) for place in range(0, len(whole), 97))]
    for content in damaged:
        memory.write_bytes(content)
        assert hashes(files) == truth(files)
    monkeypatch.setenv("UCDR_BENCH_CACHE", "off")
    reads.clear()
    for _ in range(2):
        assert hashes(files) == truth(files)
    assert len(reads) == 10
    monkeypatch.setenv("UCDR_BENCH_CACHE", str(files[0] / "no folder"))
    assert hashes(files) == truth(files)


def _flipped(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 16]) + data[place + 1 :]


def test_what_cannot_be_read_has_no_hash(files: list[Path], tmp_path: Path) -> None:
    odd = [files[0], tmp_path / "gone", tmp_path, files[1]]
    assert hashes(odd) == [*truth(files[:1]), "", "", *truth(files[1:2])]
    with pytest.raises(OSError, match="gone"):
        tree_hash(tmp_path / "gone")


def test_a_folder_is_named_by_names_and_contents(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "a").mkdir(parents=True)
    (tree / "a" / "x").write_text("1")
    before = tree_hash(tree)
    assert tree_hash(shutil.copytree(tree, tmp_path / "copy")) == before
    (tree / "a" / "x").rename(tree / "a" / "y")
    assert tree_hash(tree) != before
    (tree / "a" / "y").rename(tree / "a" / "x")
    assert tree_hash(tree) == before
    (tree / "a" / "x").write_text("2")
    assert tree_hash(tree) != before


def test_the_time_left_follows_the_bytes(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    advance = contents.Advance(1000, 100 << 20, "images read")
    advance(1, 50 << 20)
    assert advance.line(60.0).startswith("1 of 1,000 images read, about 2 min left"), advance.line(60.0)
    monkeypatch.setattr(contents, "PATIENCE", 0.0)
    for _ in range(5):
        advance(1, 1000)
    assert capsys.readouterr().err.count("\n") == 1, "one line a minute"


# --- data sets --------------------------------------------------------------------------------------------------------


def tree(root: Path) -> Path:
    keys = [f"{d}/{c}/{n}.bmp" for d in ("photo", "line") for c in ("cat", "dog", "owl", "fox") for n in range(3)]
    write_images(root, keys)
    return root


def swap(first: Path, second: Path) -> None:
    """Exchange two images; names and modification times stay."""
    times = [(file.stat().st_atime_ns, file.stat().st_mtime_ns) for file in (first, second)]
    one, other = first.read_bytes(), second.read_bytes()
    assert one != other
    for file, data, when in zip((first, second), (other, one), times, strict=True):
        file.write_bytes(data)
        os.utime(file, ns=when)


def test_two_roots_are_one_data_set_only_if_their_images_are_equal(tmp_path: Path) -> None:
    first = OwnFolder(tree(tmp_path / "a"))
    copy = OwnFolder(Path(shutil.copytree(tmp_path / "a", tmp_path / "b")))
    assert copy.data_hash == first.data_hash
    assert copy.image_cache(8).folder == first.image_cache(8).folder, "decoded images are shared"
    swap(tmp_path / "b" / "photo" / "cat" / "0.bmp", tmp_path / "b" / "photo" / "dog" / "0.bmp")
    other = OwnFolder(tmp_path / "b")
    assert other.data_hash != first.data_hash
    assert other.image_cache(8).folder != first.image_cache(8).folder


def test_decoded_images_follow_the_files(tmp_path: Path) -> None:
    root = tree(tmp_path / "a")
    before = OwnFolder(root).pixels(np.arange(24), 8)
    swap(root / "photo" / "cat" / "0.bmp", root / "photo" / "dog" / "0.bmp")
    dataset = OwnFolder(root)
    rows = {key: row for row, key in enumerate(dataset.table["key"])}
    cat, dog = rows["photo/cat/0.bmp"], rows["photo/dog/0.bmp"]
    after = dataset.pixels(np.arange(24), 8)
    assert (after[cat] == before[dog]).all()
    assert (after[dog] == before[cat]).all()
    assert not (after[cat] == before[cat]).all()


def test_an_image_replaced_during_a_run_is_refused_by_name(tmp_path: Path) -> None:
    root = tree(tmp_path / "a")
    dataset = OwnFolder(root)
    dataset.content  # noqa: B018 - a run plans first
    swap(root / "photo" / "cat" / "0.bmp", root / "photo" / "dog" / "0.bmp")
    with pytest.raises(DatasetError, match=r"photo/(cat|dog)/0\.bmp is broken: the file changed after"):
        dataset.pixels(np.arange(24), 8)


def test_verify_reads_the_content_whatever_is_remembered(
    tmp_path: Path, reads: list[str], image_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from benchmarks.data import verify

    root = tree(tmp_path / "a")
    true = OwnFolder(root).data_hash
    dataset = OwnFolder(root)
    false_hashes = ["00" * 32] * 24
    contents.remember(dataset.paths(), false_hashes, name=dataset._cache_name, start=time.time())
    assert OwnFolder(root).data_hash != true, "remembered"
    verify(OwnFolder(root))
    assert f"data hash {true}" in capsys.readouterr().out
    assert OwnFolder(root).data_hash == true, "and put right"


def test_an_image_that_cannot_be_read_spoils_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree(tmp_path / "a")
    read = contents._read

    def refusing(path: str) -> tuple[str, tuple[int, int, int, int]]:
        if path.endswith("photo/cat/0.bmp"):
            raise PermissionError(13, "Permission denied", path)
        return read(path)

    monkeypatch.setattr(contents, "_read", refusing)
    dataset = OwnFolder(root)
    odd = [one for one in dataset.content if len(one) != 64]
    assert odd == ["unreadable photo/cat/0.bmp"]
    assert len(set(dataset.content)) == 24
