"""Marked shell commands of the pages run as they are shown, on the tiny data set with few steps."""

from __future__ import annotations

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from benchmarks import load_results
from benchmarks.run import main as run
from tests.docs.test_documents import example, examples

SHOWN = [
    ("protocols.md", "domain generalisation", {"dg"}, {"target"}),
    ("protocols.md", "few shots", {"ucdr", "uda"}, {"unseen", "mixed", "source", "target"}),
    ("protocols.md", "validation limit", {"ucdr"}, {"unseen", "mixed"}),
    ("methods.md", "templates", {"uda"}, {"source", "target"}),
]


def arguments(page: str, name: str, out: Path) -> list[str]:
    """The options of a shown ``benchmarks.run`` command, with another results folder."""
    found = re.fullmatch(r"python -m benchmarks\.run (.*)\n", example(page, name, "sh"))
    assert found is not None
    options = shlex.split(found[1])
    options[options.index("--out") + 1] = str(out)
    return options


@pytest.mark.parametrize(("page", "name", "protocols", "galleries"), SHOWN, ids=[name for _, name, *_ in SHOWN])
def test_a_shown_command_runs(
    page: str, name: str, protocols: set[str], galleries: set[str],
    tiny_dataset: type, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    small: list[Any] = ["--datasets", "tiny", "--backbone", str(tiny_folder), "--preset", "smoke", "--jobs", "1"]
    options = arguments(page, name, tmp_path)
    steps = ["--set", "steps=2"] if "coop" in options[options.index("--methods") + 1] else []
    assert run([*options, *small, *steps]) == 0
    frame = load_results(tmp_path)
    assert set(frame["status"]) == {"ok"}
    assert set(frame["protocol"]) == protocols and set(frame["gallery"]) == galleries
    if name == "few shots":
        assert set(frame["shots"]) == {"4"}


def test_every_shown_command_of_a_run_is_run() -> None:
    shown = {(page, name) for page, name, code in examples("sh") if code.startswith("python -m benchmarks.run ")}
    elsewhere = {("protocols.md", "selectors"), ("apply.md", "keep")}  # the first: test_selector_picks.py
    assert shown - elsewhere <= {(page, name) for page, name, *_ in SHOWN}
