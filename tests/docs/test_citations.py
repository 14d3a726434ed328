"""What Python files, cards, recipes and documents cite is in the repository: documents and files, by name or path."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

#: Folders that hold no text of ours, or stored text that stays as it was written.
SKIPPED = {"results", "reports", "site", "__pycache__", "node_modules"}
CITING = {".py", ".md", ".toml", ".cff", ".ini", ".yml", ".yaml"}
#: A path is checked if it begins with one of the repository's folders, or leads up.
FOLDERS = ("methods", "benchmarks", "docs", "tests", "results", "reports", "..")
SUFFIXES = "py|md|toml|json|csv|cff|ini|ya?ml|npz|npy|png|html|jinja|css|js|zip|parquet|safetensors"

_URL = re.compile(r"\w+://\S+")
_DOCUMENT = re.compile(r"(?<![\w./{}*<>-])((?:\.{0,2}/?[\w-]+/)*[\w-]+\.md)(?![\w*])")
_PLACEHOLDER = re.compile(r"(?:^|/)(?:[a-z]+_)*[A-Z_]+(?:/|\.(?!md$))")  # e.g. NAME in place of a name, test_NAME.py
_PATH = re.compile(rf"(?<![\w./{{}}*<>-])((?:\.\./)*(?:[\w.-]+/)+[\w.-]+\.(?:{SUFFIXES}))(?![\w*/])")

#: Names that are meant to be somewhere else, and where that is.
ELSEWHERE = {
    "published.md": "written into a report's folder",
    "results/speed/gpu.json": "written by benchmarks.speed.gpu, where a GPU is at hand",
}
#: The same for one file alone.
ELSEWHERE_IN = {
    ("benchmarks/datasets/mini_domainnet.py", "DATASETS.md"): "of Dassl.pytorch, named beside it",
    ("benchmarks/datasets/build/wordnet_build.py", "benchmarks/datasets/wordnet_build.py"): "its name in the archive",
    ("docs/datasets.md", "DATASETS.md"): "the same, in the generated card",
    ("mkdocs.yml", "repository/reports/reference/leaderboard.md"): "a page that docs/hooks.py adds to the site",
}


def citing_files(root: Path = ROOT) -> Iterator[Path]:
    """Every file whose citations are checked."""
    for entry in sorted(root.iterdir()):
        hidden = entry.name.startswith(".") or entry.name.endswith(".egg-info")
        if entry.is_dir() and not (
            hidden or entry.name in SKIPPED or (root == ROOT and entry.name in ("build", "dist"))
        ):
            yield from citing_files(entry)
        elif entry.is_file() and entry.suffix in CITING:
            yield entry


@cache
def names() -> frozenset[str]:
    """Names of all files of the repository that are not hidden."""
    stored = (path for folder in ("results", "reports") for path in (ROOT / folder).rglob("*") if path.is_file())
    return frozenset(path.name for path in (*citing_files(), *stored))


def cited(text: str) -> set[str]:
    """Documents and files that a text names."""
    text = _URL.sub(" ", text)
    paths = {path for path in _PATH.findall(text) if path.split("/")[0] in FOLDERS and not _PLACEHOLDER.search(path)}
    return paths | set(_DOCUMENT.findall(text))


def exists(citation: str, file: Path) -> bool:
    """Whether a citation of a file leads to a file: from the root, its own folder, a package, or by its name alone."""
    if "/" not in citation:
        return citation in names()
    return any((base / citation).exists() for base in (ROOT, file.parent, ROOT / "docs", ROOT / "benchmarks"))


def text_of(file: Path) -> str:
    """What a file says; of a test its comments and docstrings, since its other strings name files that it makes."""
    text = file.read_text(encoding="utf-8")
    if file.suffix != ".py" or "tests" not in file.relative_to(ROOT).parts:
        return text
    nodes = (ast.Module, ast.ClassDef, ast.FunctionDef)
    said = [ast.get_docstring(node) or "" for node in ast.walk(ast.parse(text)) if isinstance(node, nodes)]
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    return "\n".join([*said, *(token.string for token in tokens if token.type == tokenize.COMMENT)])


def missing(file: Path) -> list[str]:
    """Citations of a file that lead nowhere."""
    own = file.relative_to(ROOT).as_posix()
    return sorted(
        citation
        for citation in cited(text_of(file))
        if citation not in ELSEWHERE and (own, citation) not in ELSEWHERE_IN and not exists(citation, file)
    )


def test_everything_that_is_cited_is_in_the_repository() -> None:
    nowhere = {str(file.relative_to(ROOT)): found for file in citing_files() if (found := missing(file))}
    assert not nowhere, "cited, but not in the repository"


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('"""Idea (NOWHERE.md, section 2)."""', {"NOWHERE.md"}),
        ("see `../nowhere.md` for the ledger", {"../nowhere.md"}),
        ("# docs/nowhere.md, Exact speed", {"docs/nowhere.md"}),
        ("[training](../methods/parts/nowhere.py)", {"../methods/parts/nowhere.py"}),
        ("as in tests/golden/nowhere.npz.", {"tests/golden/nowhere.npz"}),
        ("benchmarks/assets/class_lists/NAME.json", set()),
        ("https://example.org/docs/page.md", set()),
        ("the released src/utils/mAP.py:165", set()),
        ("report*.md, {name}.md, NAME.mdx, RESULTS/<key>.md", set()),
    ],
)
def test_the_check_sees_citations(text: str, found: set[str]) -> None:
    assert cited(text) == found
    assert not any(exists(citation, ROOT / "README.md") for citation in found)


def test_exceptions_are_still_cited() -> None:
    everything = {file.relative_to(ROOT).as_posix(): file.read_text(encoding="utf-8") for file in citing_files()}
    for (file, citation), reason in ELSEWHERE_IN.items():
        assert citation in cited(everything[file]), f"{file} no longer cites {citation} ({reason})"
    own = Path(__file__).relative_to(ROOT).as_posix()
    for citation in ELSEWHERE:
        assert any(citation in cited(text) for file, text in everything.items() if file != own), citation
