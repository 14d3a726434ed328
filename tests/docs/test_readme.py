"""The README: short, two set-up lines, commands that run. Its links are checked in tests/docs/test_documents.py."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(marker: str) -> str:
    """The fenced code block of the README behind ``<!-- MARKER -->``."""
    match = re.search(rf"<!-- {re.escape(marker)} -->\n```\w+\n(.*?)```", README, flags=re.DOTALL)
    assert match, f"README.md has no code block marked {marker!r}"
    return match.group(1)


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 130


def test_set_up_lines_are_one_line_each() -> None:
    for marker in ("main job", "tests"):
        assert len(block(marker).strip().splitlines()) == 1
    assert "python -m benchmarks.run --methods all" in block("main job")
    assert "pytest" in block("tests")


@pytest.mark.parametrize("command", [["-m", "benchmarks.run", "--help"], ["-m", "benchmarks.cli", "methods"]])
def test_commands_of_the_readme_run(command: list[str]) -> None:
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout
