"""The README's code and commands are true."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(marker: str) -> str:
    """The fenced code block behind ``<!-- MARKER -->``."""
    found = re.search(rf"<!-- {re.escape(marker)} -->\n```\w+\n(.*?)```", README, flags=re.DOTALL)
    assert found, f"README.md has no code block marked {marker!r}"
    return found.group(1)


def test_set_up_lines_are_one_line_each() -> None:
    for marker in ("main job", "tests"):
        assert len(block(marker).strip().splitlines()) == 1
    assert "python -m benchmarks.run --methods all" in block("main job")
    assert "pytest" in block("tests")


def test_the_method_example_runs(tiny_dataset: type, tiny_folder: Path, tmp_path: Path) -> None:
    from benchmarks import load_results
    from benchmarks.run import main
    from methods.registry import METHODS

    example = block("example: method")
    assert len(example.strip().splitlines()) < 30
    try:
        exec(compile(example, "README.md", "exec"), {"__name__": "readme_example"})
        arguments = ["--methods", "centred_clip,zero_shot", "--datasets", "tiny", "--backbone", str(tiny_folder)]
        assert main([*arguments, "--protocols", "ucdr", "--preset", "smoke", "--out", str(tmp_path)]) == 0
    finally:
        METHODS.remove("centred_clip")
    results = load_results(tmp_path)
    assert set(results["method"]) == {"centred_clip", "zero_shot"}
    assert set(results["status"]) == {"ok"}


def test_files_that_the_readme_links_to_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in target:
            assert (ROOT / target).exists(), f"README.md links to {target}, which is missing"


@pytest.mark.parametrize("command", [["-m", "benchmarks.run", "--help"], ["-m", "benchmarks.cli", "methods"]])
def test_commands_of_the_readme_answer(command: list[str]) -> None:
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout
