"""The code and commands of the README, and of the pages that it sends readers to, are true."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")


def block(marker: str, page: str = "README.md") -> str:
    """The fenced code block of a page behind ``<!-- MARKER -->``."""
    text = (ROOT / page).read_text(encoding="utf-8")
    found = re.search(rf"<!-- {re.escape(marker)} -->\n```\w+\n(.*?)```", text, flags=re.DOTALL)
    assert found, f"{page} has no code block marked {marker!r}"
    return found.group(1)


def test_the_readme_is_short() -> None:
    assert len(README.splitlines()) <= 130


def test_set_up_lines_are_one_line_each() -> None:
    for marker in ("main job", "tests"):
        assert len(block(marker).strip().splitlines()) == 1
    assert "python -m benchmarks.run --methods all" in block("main job")
    assert "pytest" in block("tests")


def test_the_method_example_runs(tiny_dataset: type, tiny_folder: Path, tmp_path: Path) -> None:
    from benchmarks import load_results
    from benchmarks.run import main
    from methods.registry import METHODS

    example = block("example: method", "docs/own_method.md")
    assert len(example.strip().splitlines()) < 30
    try:
        exec(compile(example, "own_method.md", "exec"), {"__name__": "documented_example"})
        arguments = ["--methods", "centred_clip,zero_shot", "--datasets", "tiny", "--backbone", str(tiny_folder)]
        assert main([*arguments, "--protocols", "ucdr", "--preset", "smoke", "--out", str(tmp_path)]) == 0
    finally:
        METHODS.remove("centred_clip")
    results = load_results(tmp_path)
    assert set(results["method"]) == {"centred_clip", "zero_shot"}
    assert set(results["status"]) == {"ok"}


def test_the_recipe_table_names_every_recipe_with_its_fits_and_hours() -> None:
    from benchmarks.runner.settings import recipe_file, recipes, resolve
    from tests.runner.test_recipes import CELLS

    table = (ROOT / "docs" / "reproduce.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:-1] for line in table.splitlines() if line.startswith("| `") and "GPU" not in line]
    stated: dict[str, tuple[float, float]] = {}
    for names, _, fits, hours in (row for row in rows if len(row) == 4):
        listed = re.findall(r"`(\w+)`", names)
        if set(listed) <= set(recipes()):
            each = [float(value) for value in hours.split(",")]
            stated |= {name: (float(fits.split()[0]), value) for name, value in zip(listed, each, strict=True)}
    expected = {name: (CELLS[name], resolve({}, recipe_file(name)).gpu_hours_each_fit) for name in recipes()}
    assert set(stated) == set(expected)
    for name, (fits, each) in expected.items():
        assert stated[name] == (fits, pytest.approx(fits * each)), name


def test_the_folder_example_is_the_rule_with_a_gallery_of_its_own(tmp_path: Path) -> None:
    from benchmarks.datasets.own_folder import FolderRule, read_rule

    (tmp_path / "folder.toml").write_text(block("example: folder.toml", "docs/own_data.md"))
    assert read_rule(tmp_path / "folder.toml") == FolderRule(gallery_domain="photo")


def test_files_that_the_readme_links_to_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in target:
            assert (ROOT / target).exists(), f"README.md links to {target}, which is missing"


@pytest.mark.parametrize("command", [["-m", "benchmarks.run", "--help"], ["-m", "benchmarks.cli", "methods"]])
def test_commands_of_the_readme_answer(command: list[str]) -> None:
    done = subprocess.run([sys.executable, *command], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout
