"""Import rules: methods know no benchmarks, help and listings load no torch, names resolve lazily and once."""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from methods.registry import METHODS, DuplicateNameError, Registry, UnknownNameError

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "transformers", "pandas", "matplotlib", "faiss", "nltk", "peft", "torch_geometric", "scipy"}


def imported_modules(file: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")
        elif isinstance(node, ast.Call) and getattr(node.func, "attr", "") in ("import_module", "__import__"):
            yield from (str(a.value) for a in node.args if isinstance(a, ast.Constant))


@pytest.mark.parametrize("file", sorted((ROOT / "methods").rglob("*.py")), ids=lambda file: str(file.relative_to(ROOT)))
def test_methods_never_import_benchmarks(file: Path) -> None:
    assert not [name for name in imported_modules(file) if name.split(".")[0] in ("benchmarks", "tests")]


def test_the_static_check_sees_an_import(tmp_path: Path) -> None:
    file = tmp_path / "bad.py"
    file.write_text("def f():\n    from benchmarks.store.files import Record\n    import benchmarks\n")
    assert list(imported_modules(file)) == ["benchmarks.store.files", "benchmarks"]


def test_reporting_imports_no_method() -> None:
    for file in (ROOT / "benchmarks" / "reporting").rglob("*.py"):
        names = list(imported_modules(file))
        assert not [name for name in names if name.split(".")[0] == "methods"], file
        assert not [
            name
            for name in names
            if name.startswith(
                ("benchmarks.runner.fit_group", "benchmarks.runner.run_plan", "benchmarks.runner.resources")
            )
        ], file


@pytest.mark.parametrize(
    "arguments",
    [
        ["-m", "benchmarks.run", "--help"],
        ["-m", "benchmarks.run", "--methods", "zeroshot"],
        ["-m", "benchmarks.report", "--help"],
        ["-m", "benchmarks.data", "--help"],
        ["-m", "benchmarks.data", "list"],
        ["-m", "benchmarks.cli", "--help"],
        ["-m", "benchmarks.cli", "run", "--help"],
        ["-m", "benchmarks.cli", "methods"],
        ["-m", "benchmarks.cli", "datasets"],
        ["-m", "benchmarks.cli", "protocols"],
        ["-m", "benchmarks.pretrain", "--help"],
        ["-c", "import benchmarks, benchmarks.datasets, benchmarks.protocols, methods, methods.parts"],
    ],
    ids=lambda arguments: " ".join(arguments[1:]),
)
def test_help_and_listings_load_nothing_heavy(arguments: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments], capture_output=True, text=True, cwd=ROOT, timeout=120
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("import time:")]
    loaded = {line.rpartition("|")[2].strip() for line in lines}
    assert "argparse" in loaded or "benchmarks" in loaded, "the listing of imports itself works"
    assert not loaded & HEAVY


def test_did_you_mean() -> None:
    with pytest.raises(UnknownNameError) as caught:
        METHODS.get("zero_shto")
    assert str(caught.value) == "unknown method 'zero_shto'; did you mean zero_shot?"
    with pytest.raises(UnknownNameError, match="choose from: random, constant, raw_pixel"):
        METHODS.check("qqqqqq")


def test_a_name_registered_twice_names_both_places() -> None:
    registry: Registry = Registry("method")
    registry.add("mine", "one.module:One", origin="first.py:3")
    registry.add("mine", "one.module:One", origin="elsewhere.py:1")
    with pytest.raises(DuplicateNameError) as caught:

        @registry.register("mine")
        class Mine:
            pass

    message = str(caught.value)
    assert "first.py:3" in message
    assert "test_imports.py:" in message


def test_a_module_that_cannot_be_imported_names_its_origin() -> None:
    registry: Registry = Registry("method")
    registry.add("gone", "no.such.module:Thing", origin="entry point of acme")
    registry.add("empty", "methods.registry:Nothing", origin="entry point of acme")
    assert registry.names() == ["gone", "empty"]
    for name in ("gone", "empty"):
        with pytest.raises(ImportError, match="entry point of acme"):
            registry.get(name)


PLUGIN = """
from methods.interface import MethodCard
from methods.zero_shot import ZeroShot


class Acme(ZeroShot):
    card = MethodCard("acme", "Acme", "Acme", "-", 2026, "", trains="nothing")
"""


def test_a_third_party_method_comes_by_entry_point(tmp_path: Path) -> None:
    """A distribution on the path is listed without being imported, resolves, and is part of ``--methods all``."""
    (tmp_path / "acme_retrieval.py").write_text(PLUGIN)
    info = tmp_path / "acme_retrieval-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: acme-retrieval\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[ucdr_bench.methods]\nacme = acme_retrieval:Acme\n")
    program = (
        "import sys\n"
        "from benchmarks.runner.settings import resolve\n"
        "from methods.registry import METHODS\n"
        "assert 'acme' in resolve({}).methods and 'acme_retrieval' not in sys.modules and 'torch' not in sys.modules\n"
        "print([e.origin for e in METHODS.entries() if e.name == 'acme'], METHODS.get('acme').card.title)\n"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "['entry point of acme-retrieval'] Acme"


def test_every_registered_name_resolves() -> None:
    from benchmarks.cli import COMMANDS
    from benchmarks.datasets.registry import DATASETS
    from benchmarks.protocols.registry import PROTOCOLS

    for registry in (METHODS, DATASETS, PROTOCOLS, COMMANDS):
        for entry in list(registry.entries()):
            assert entry.summary, f"{registry.kind} {entry.name} has no summary for its listing"
            assert registry.get(entry.name) is registry.get(entry.name)


def test_every_method_card_is_complete_and_named_as_registered() -> None:
    for name in METHODS.names():
        method = METHODS.get(name)
        card = method.card
        assert card.name == name
        assert card.title
        assert card.trains
        assert method.Config() == method.Config(), "a config with defaults for all fields"
        assert card.floor or (card.bibtex and card.url and str(card.year) in card.bibtex), name
        for variant, changes in method.variants.items():
            method.Config(**changes)
            assert variant


def test_listing_is_quick() -> None:
    importlib.import_module("methods.registry")
    program = "import time; t = time.perf_counter(); from benchmarks.runner.options import build_parser; "
    program += "build_parser('run', '', ''); "
    program += "print(time.perf_counter() - t)"
    times = [
        float(subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT).stdout)
        for _ in range(3)
    ]
    assert min(times) < 0.5
