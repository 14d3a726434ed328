"""Registries: near names, names registered twice, entries that cannot be imported, methods of other distributions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from methods.registry import METHODS, DuplicateNameError, Registry, UnknownNameError

ROOT = Path(__file__).parents[2]


def test_did_you_mean() -> None:
    with pytest.raises(UnknownNameError) as caught:
        METHODS.get("zero_shto")
    assert str(caught.value) == "unknown method 'zero_shto'; did you mean zero_shot or zero_shot_domain?"
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
    assert "test_registry.py:" in message


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
