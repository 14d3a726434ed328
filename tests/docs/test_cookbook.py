"""The page docs/cookbook.md, command by command: each runs, and prints what the page shows but for its numbers."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "cookbook.md").read_text(encoding="utf-8")
ANSWERS = re.findall(
    r"## ([^\n]+)\n\n<!-- cookbook -->\n```sh\n(.*?)\n```\n\n```text\n(.*?)\n```", PAGE, flags=re.DOTALL
)


def masked(text: str) -> list[str]:
    """Lines without numbers, hashes and the width of columns; ``1 cell`` and ``2 cells`` are alike."""
    lines = (" ".join(re.sub(r"[+-]?\b[0-9a-f]*\d[0-9a-f.]*", "#", line).split()) for line in text.splitlines())
    lines = (re.sub(r"# (cell|fit)s\b", r"# \1", line) for line in lines)
    return [line for line in lines if line]


def missing(shown: str, printed: str) -> list[str]:
    """Lines shown that were not printed, in this order; ``...`` is any lines."""
    rest = iter(masked(printed))
    return [line for line in masked(shown) if line != "..." and line not in rest]


def write_images(folder: Path) -> None:
    """The folders that the page's commands read: images to search, and a data set of two domains."""
    from benchmarks.datasets.picto_domains import PictoDomains

    data = PictoDomains()
    classes, domains = data.table["class"], data.table["domain"]

    def write(rows: np.ndarray, place: Path) -> None:
        place.mkdir(parents=True)
        for row, pixels in zip(rows, data.pixels(rows, 96).numpy(), strict=True):
            Image.fromarray((pixels.transpose(1, 2, 0) * 255).astype(np.uint8)).save(place / f"{row}.png")

    rows = np.flatnonzero(classes.isin(["alarm clock", "cat", "dog"]).to_numpy())[:30]
    write(rows, folder / "photos")
    (folder / "photos" / f"{rows[0]}.png").rename(folder / "photos" / "query.png")
    for domain, source in (("photo", "flat"), ("sketch", "line")):
        for name in ("apple", "bus", "car", "cat", "crown", "cup", "dog", "dress"):
            own = np.flatnonzero(((classes == name) & (domains == source)).to_numpy())[:3]
            write(own, folder / "data" / "folder" / domain / name)


@pytest.mark.timeout(1800)
def test_every_answer_runs_and_prints_what_is_shown(tmp_path: Path) -> None:
    assert len(ANSWERS) == PAGE.count("\n## ") == PAGE.count("<!-- cookbook -->") == 10
    write_images(tmp_path)
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "reference").symlink_to(ROOT / "results" / "reference", target_is_directory=True)
    own_method = (ROOT / "docs" / "own_method.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"<!-- example: method -->\n```python\n(.*?)```", own_method, flags=re.DOTALL)
    (tmp_path / "my_method.py").write_text(code)
    paths = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)]), "UCDR_BENCH_CACHE": str(tmp_path / "cache")}
    environment = os.environ | paths | {"OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    for title, command, shown in ANSWERS:
        program, *words = shlex.split(command)
        start = [sys.executable, "-m", "benchmarks.cli"] if program == "ucdr-bench" else [sys.executable]
        done = subprocess.run(
            [*start, *words], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, (title, done.stderr)
        assert not missing(shown, done.stdout), title


def test_the_comparison_sees_other_text_and_ignores_numbers() -> None:
    printed = "cells: 12 ok\n a   1.5  fit 8146ddafe07710bf\nend"
    assert missing("cells: 3 ok\n...\n a 22.75 fit 00af12", printed) == []
    assert missing("end\ncells: 3 ok", printed) == ["cells: # ok"], "in this order"
    assert missing("cells: 3 failed", printed) == ["cells: # failed"]
