"""Contributors and CI run the same: tox, .ci/run, the workflow, pre-commit; lowest versions and typing markers."""

from __future__ import annotations

import configparser
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support import lowest

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def tox() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.read(ROOT / "tox.ini", encoding="utf-8")
    return parser


def read(path: str) -> Any:
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


def test_the_lowest_versions_are_those_of_pyproject() -> None:
    wanted = lowest.constraints((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert lowest.FILE.read_text(encoding="utf-8") == wanted, "run python -m tests.support.lowest"


@pytest.mark.parametrize(
    ("dependencies", "message"),
    [
        ('["numpy"]', "'numpy' needs one lower bound"),
        ('["numpy<3"]', "needs one lower bound"),
        ('["numpy>=1.26,<3"]', "needs one lower bound"),
        ('["numpy>=1.26", "NumPy>=2"]', "numpy has the lower bounds 1.26 and 2"),
    ],
)
def test_a_requirement_without_one_lower_bound_is_refused(dependencies: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        lowest.constraints(f"[project]\ndependencies = {dependencies}\n")


def test_lowest_versions_are_written_once_each() -> None:
    text = lowest.constraints(
        '[project]\ndependencies = ["torch~=2.13.0", "A_b[x]>=1"]\n[project.optional-dependencies]\ntest = ["a_b>=1"]\n'
    )
    assert text == lowest.HEAD + "a_b==1\ntorch==2.13.0\n"


def test_both_packages_say_that_they_are_typed() -> None:
    data = PROJECT["tool"]["setuptools"]["package-data"]
    for package in ("methods", "benchmarks"):
        assert (ROOT / package / "py.typed").is_file()
        assert "py.typed" in data[package]


def test_every_tox_environment_that_contributors_are_told_of_exists() -> None:
    sections = {name.removeprefix("testenv:") for name in tox().sections()}
    assert {"lint", "type", "tests", "slow", "browser", "lowest", "coverage", "docs", "gpu", "golden"} <= sections
    for page in ("docs/contributing.md", "CONTRIBUTING.md", "tox.ini", ".github/PULL_REQUEST_TEMPLATE.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        for names in re.findall(r"tox -e ([\w,]+)", text):
            assert set(names.split(",")) <= sections, page


def test_extras_of_tox_and_the_documents_exist() -> None:
    extras = set(PROJECT["project"]["optional-dependencies"])
    parser = tox()
    for section in parser.sections():
        assert set(re.findall(r"[\w-]+", parser[section].get("extras", ""))) <= extras, section
    for page in ("docs/contributing.md", "README.md", ".ci/run"):
        for names in re.findall(r'-e "\.\[([\w,]+)\]"', (ROOT / page).read_text(encoding="utf-8")):
            assert set(names.split(",")) <= extras, page


def test_pre_commit_runs_what_tox_runs() -> None:
    hooks = {hook["id"]: hook["entry"] for repo in read(".pre-commit-config.yaml")["repos"] for hook in repo["hooks"]}
    assert set(hooks) == {"ruff", "ruff-format", "mypy"}
    commands = "\n".join(tox()[section]["commands"] for section in ("testenv:lint", "testenv:type"))
    for words in ("ruff check", "ruff format", "mypy"):
        assert words in commands
        assert any(words in entry for entry in hooks.values())


def test_the_workflow_runs_the_submission_script_on_every_supported_python() -> None:
    jobs = read(".github/workflows/ci.yml")["jobs"]
    versions = jobs["checks"]["strategy"]["matrix"]["python"]
    assert versions == ["3.11", "3.12", "3.13"]
    assert PROJECT["project"]["requires-python"] == f">={versions[0]}"
    ran = {name: [step["run"] for step in job["steps"] if "run" in step] for name, job in jobs.items()}
    assert ran["checks"] == [".ci/run"]
    assert "tox -e lowest" in ran["lowest"]
    assert "tox -e coverage" in ran["coverage"]
    assert "--cov" in tox()["testenv:coverage"]["commands"]


@pytest.mark.parametrize("file", WORKFLOWS, ids=lambda file: file.name)
def test_actions_are_named_by_version(file: Path) -> None:
    used = re.findall(r"uses: *(\S+)", file.read_text(encoding="utf-8"))
    assert used
    assert not [name for name in used if not re.fullmatch(r"[\w-]+/[\w-]+@v\d+(\.\d+)*", name)]
    assert "latest" not in file.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ["fault", "score", "method"])
def test_issue_forms_have_what_a_form_needs(name: str) -> None:
    form = read(f".github/ISSUE_TEMPLATE/{name}.yml")
    assert form["name"]
    assert form["description"]
    identifiers = [part["id"] for part in form["body"]]
    assert len(identifiers) == len(set(identifiers))
    assert all(part["attributes"]["label"] for part in form["body"])
