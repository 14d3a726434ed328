"""Commands in the shells that people have: a reader that leaves, a locale without UTF-8, no home folder."""

from __future__ import annotations

import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]

#: Class names in several alphabets; the third is decomposed, as macOS stores names.
NAMES = ("crème brûlée", "東京タワー", unicodedata.normalize("NFD", "piñata"), "plain")


def environment(**changes: str) -> dict[str, str]:
    """The caller's environment with changes; Python's own UTF-8 switches are off."""
    left_out = ("PYTHONUTF8", "PYTHONIOENCODING", "LC_ALL", "LANG", "LC_CTYPE")
    kept = {name: value for name, value in os.environ.items() if name not in left_out}
    return {**kept, "PYTHONPATH": str(ROOT), "UCDR_BENCH_CACHE": "off", **changes}


C = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}


def call(*arguments: str, **changes: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, env=environment(**changes), cwd=ROOT, timeout=300
    )


@pytest.mark.parametrize(
    "command",
    [
        ["benchmarks.cli", "--help"],
        ["benchmarks.cli", "run", "--help"],
        ["benchmarks.cli", "methods"],
        ["benchmarks.cli", "datasets"],
        ["benchmarks.cli", "protocols"],
        ["benchmarks.cli", "cite", "coop"],
        ["benchmarks.data", "list"],
        ["benchmarks.cli", "compare", "--help"],
        ["benchmarks.cli", "pretrain", "--help"],
        ["benchmarks.run", "--preset", "smoke", "--methods", "random", "--protocols", "uda", "--dry-run"],
    ],
)
def test_a_reader_that_leaves_ends_the_command_quietly(command: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)  # gone before the first letter: `| head -0`
    try:
        done = subprocess.run(
            [sys.executable, "-m", *command],
            stdout=writer,
            stderr=subprocess.PIPE,
            env=environment(),
            cwd=ROOT,
            timeout=300,
        )
    finally:
        os.close(writer)
    assert done.stderr == b""
    assert done.returncode in (0, 1)


@pytest.fixture(scope="module")
def accented(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with a folder data set whose classes are `NAMES`."""
    root = tmp_path_factory.mktemp("data")
    for place, domain in enumerate(("photo", "sketch")):
        for label, name in enumerate(NAMES):
            folder = root / "folder" / domain / name
            folder.mkdir(parents=True)
            for number in range(3):
                Image.new("RGB", (16, 16), (label * 60, place * 200, number * 9)).save(folder / f"é{number}.png")
    return root


@pytest.mark.parametrize("changes", [C, {}, {"LC_ALL": "C"}], ids=["C", "unset", "C coerced"])
def test_verify_and_splits_read_names_as_utf8_whatever_the_locale(accented: Path, changes: dict[str, str]) -> None:
    done = call("-m", "benchmarks.data", "verify", "folder", "--root", str(accented / "folder"), **changes)
    assert done.returncode == 0, done.stderr.decode()
    utf8 = call("-m", "benchmarks.data", "verify", "folder", "--root", str(accented / "folder"), PYTHONUTF8="1")
    assert done.stdout == utf8.stdout
    listed = call("-m", "benchmarks.data", "splits", "folder", "--root", str(accented / "folder"), **changes)
    assert "crème brûlée".encode() in listed.stdout
    assert "東京タワー".encode() in listed.stdout


def test_a_run_under_a_c_locale_has_the_scores_of_utf8(accented: Path, tmp_path: Path) -> None:
    what = ["--preset", "smoke", "--methods", "zero_shot", "--protocols", "uda", "--datasets", "folder", "--jobs", "1"]
    tables = []
    for name, changes in (("c", C), ("utf8", {"PYTHONUTF8": "1"})):
        out = tmp_path / name
        done = call("-m", "benchmarks.run", *what, "--data-root", str(accented), "--out", str(out), **changes)
        assert done.returncode == 0, done.stderr.decode()
        tables.append((out / "report" / "leaderboard.csv").read_bytes())
    assert tables[0] == tables[1]


def test_the_library_never_reads_names_in_another_encoding(accented: Path) -> None:
    """No command is there to start Python anew: the data set is refused in one line that says how to start it."""
    program = (
        "import sys\n"
        "from benchmarks.datasets.registry import DATASETS\n"
        "from pathlib import Path\n"
        f"root = Path({str(accented / 'folder')!a})\n"
        "try:\n"
        "    names = sorted(set(DATASETS.get('folder')(root).table['class']))\n"
        "except RuntimeError as error:\n"
        "    names = [str(error)]\n"
        "sys.stdout.buffer.write('|'.join(names).encode())\n"
    )
    refused, read = call("-c", program, **C), call("-c", program, **C | {"PYTHONUTF8": "1"})
    assert (refused.returncode, read.returncode) == (0, 0), refused.stderr.decode()
    assert refused.stdout.decode().startswith("folder: this Python reads file names as ascii, ")
    assert "start it with PYTHONUTF8=1" in refused.stdout.decode()
    assert read.stdout.decode().split("|") == sorted(unicodedata.normalize("NFC", name) for name in NAMES)


def test_without_a_home_the_missing_cache_is_told_once(tmp_path: Path) -> None:
    what = ["--preset", "smoke", "--methods", "zero_shot,random", "--protocols", "uda", "--limit", "16"]
    done = call(
        "-m",
        "benchmarks.run",
        *what,
        "--jobs",
        "2",
        "--out",
        str(tmp_path / "out"),
        UCDR_BENCH_CACHE="~no_such_user_here/cache",
    )
    assert done.returncode == 0, done.stderr.decode()
    lines = [line for line in (done.stdout + done.stderr).decode().splitlines() if "no cache" in line]
    assert len(lines) == 1, lines
    assert "set UCDR_BENCH_CACHE to a folder" in lines[0]


@pytest.mark.parametrize(
    ("files", "word"),
    [
        ([], "empty"),
        ([".DS_Store", "photo/.hidden.png"], "empty"),
        (["README.txt", "photo/cat/notes.md"], "empty"),
        (["photo/cat/1.png", "sketch/cat/1.png"], "found"),
    ],
)
def test_data_list_tells_a_folder_without_images(tmp_path: Path, files: list[str], word: str) -> None:
    (tmp_path / "folder").mkdir()
    for name in files:
        path = tmp_path / "folder" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.suffix == ".png" and not path.name.startswith("."):
            Image.new("RGB", (8, 8)).save(path)
        else:
            path.write_bytes(b"x")
    done = call("-m", "benchmarks.data", "list", "--data-root", str(tmp_path))
    assert done.returncode == 0, done.stderr.decode()
    line = next(line for line in done.stdout.decode().splitlines() if line.startswith("folder "))
    assert line.split()[1] == word
