"""Import rules: no module imports upward, methods import no benchmarks, help and listings load no torch."""

from __future__ import annotations

import ast
import importlib
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from tests.support import rooms

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
HEAVY = {"torch", "transformers", "pandas", "matplotlib", "faiss", "nltk", "peft", "torch_geometric", "scipy"}

#: What the root of `benchmarks` holds beside `__init__.py`: the commands, the entry point, what commands share.
COMMANDS = {"run", "ablate", "tune", "report", "compare", "data", "convert", "pack", "apply", "embed", "push", "cli"}
SHARED = {"console"}


def arrow(entry: rooms.Import) -> str:
    return f"{entry.source} -> {entry.target}"


def test_no_module_imports_upward() -> None:
    assert not [str(entry) for entry in rooms.upward()], "a module imports its own layer or a lower one"


def test_no_modules_import_each_other() -> None:
    assert not rooms.circles((entry.source, entry.target) for entry in rooms.imports())


def test_no_folders_import_each_other() -> None:
    assert not rooms.measure(table=rooms.layers()).room_circles


def test_no_command_imports_another() -> None:
    commands = {f"benchmarks.{name}" for name in COMMANDS}
    breaking = [str(entry) for entry in rooms.imports() if {entry.source, entry.target} <= commands]
    assert not breaking, "what commands share is in benchmarks/console.py"


def test_nothing_below_imports_a_command() -> None:
    commands = {f"benchmarks.{name}" for name in COMMANDS}
    assert not [str(e) for e in rooms.imports() if e.target in commands and e.source not in commands]


def test_the_root_of_benchmarks_holds_commands_and_the_api_only() -> None:
    files = {file.stem for file in (ROOT / "benchmarks").glob("*.py")}
    assert files == {"__init__"} | COMMANDS | SHARED


def test_the_table_names_what_is_there_and_the_diagram_shows_it() -> None:
    table = rooms.layers()
    entries = [entry for row in table for entry in row]
    assert len(entries) == len(set(entries))
    known = rooms.modules()
    gone = [entry for entry in entries if entry not in known]
    assert not gone, "the table names a folder or module that is not there"
    for module in known:
        assert rooms.place(module, table)
    diagram = PAGE.with_suffix(".svg").read_text(encoding="utf-8")
    for entry in set(entries) - {"benchmarks"}:
        short = entry.removeprefix("benchmarks.") if entry.count(".") == 1 else entry
        assert re.search(rf">(?:benchmarks/)?{re.escape(short.replace('.', '/'))}(?:/|\.py)?[ <]", diagram), entry


def test_the_page_names_every_module_of_large_folders() -> None:
    part = PAGE.read_text(encoding="utf-8").partition("<!-- modules -->")[2].partition("<!-- end of modules -->")[0]
    rows = {cells[1].strip(" `"): cells[2] for line in part.splitlines() if len(cells := line.split("|")) == 4}
    folders = [name for name in rows if name.endswith("/")]
    assert len(folders) == 8
    for folder in folders:
        there = {file.stem for file in (ROOT / folder).glob("*.py")} - {"__init__"}
        named = re.findall(r"`(\w+)`", rows[folder])
        assert sorted(named) == sorted(there), folder


def test_the_measure_sees_imports_of_every_kind(tmp_path: Path) -> None:
    texts = {
        "methods/__init__.py": "",
        "methods/low.py": "import importlib\nimportlib.import_module('benchmarks.store.files')\n",
        "benchmarks/__init__.py": "",
        "benchmarks/run.py": "from benchmarks.store import files\nfrom benchmarks.store.files import Record\n",
        "benchmarks/store/__init__.py": "",
        "benchmarks/store/files.py": "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from benchmarks import run\ndef load():\n    from ..store import frame\n",
        "benchmarks/store/frame.py": "class Frame:\n    import benchmarks.store.files\n",
        "docs/architecture.md": "<!-- layers -->\n| 2 | `benchmarks/`, `benchmarks/run.py` | x |\n"
        "| 1 | `methods/`, `benchmarks/store/` | y |\n<!-- end of layers -->",
    }
    for name, text in texts.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    found = rooms.imports(tmp_path)
    assert {(e.source, e.target, e.lazy, e.typing_only) for e in found} == {
        ("methods.low", "benchmarks.store.files", False, False),
        ("benchmarks.run", "benchmarks.store.files", False, False),
        ("benchmarks.store.files", "benchmarks.run", False, True),
        ("benchmarks.store.files", "benchmarks.store.frame", True, False),
        ("benchmarks.store.frame", "benchmarks.store.files", False, False),
    }
    assert [arrow(entry) for entry in rooms.upward(tmp_path)] == ["benchmarks.store.files -> benchmarks.run"]
    assert rooms.circles((e.source, e.target) for e in found) == [
        ["benchmarks.run", "benchmarks.store.files", "benchmarks.store.frame"]
    ]
    assert rooms.measure(tmp_path, ("benchmarks",)).rooms == ["benchmarks.run", "benchmarks.store"]


def names_of_types(file: Path) -> Iterator[tuple[str, str]]:
    """Public classes and type aliases of a module, and what an alias is; a class is equal to no other."""
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef):
            yield node.name, f"class of {file}"
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if name[0].isupper() and not name.isupper():
                yield name, ast.unparse(node.value)


def names_of_several(files: Iterable[Path]) -> dict[str, set[str]]:
    meanings: dict[str, set[str]] = {}
    for file in files:
        for name, meaning in names_of_types(file):
            if not name.startswith("_"):
                meanings.setdefault(name, set()).add(meaning)
    return {name: found for name, found in meanings.items() if len(found) > 1}


def test_a_type_s_name_means_one_thing() -> None:
    found = names_of_several(rooms.modules().values())
    assert set(found) <= {"Own"}, "a name of ProS's and UCDR-Adapter's equations, used in each paper's file alone"


def test_the_check_of_names_sees_two_classes_of_one_name(tmp_path: Path) -> None:
    texts = {"a.py": "class Row: ...\nSide = int\nKind = str\n", "b.py": "class Row: ...\nSide = float\nKind = str\n"}
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    assert set(names_of_several(tmp_path / name for name in texts)) == {"Row", "Side"}


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


def test_reporting_imports_neither_methods_nor_the_runner() -> None:
    barred = ("methods.", "benchmarks.runner.")
    assert not [
        str(entry)
        for entry in rooms.imports()
        if entry.source.startswith("benchmarks.reporting.") and f"{entry.target}.".startswith(barred)
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ["-m", "benchmarks.run", "--help"],
        ["-m", "benchmarks.run", "--methods", "zeroshot"],
        ["-m", "benchmarks.tune", "--help"],
        ["-m", "benchmarks.tune", "--methods", "zeroshot"],
        ["-m", "benchmarks.report", "--help"],
        ["-m", "benchmarks.data", "--help"],
        ["-m", "benchmarks.data", "list"],
        ["-m", "benchmarks.cli", "--help"],
        ["-m", "benchmarks.cli", "run", "--help"],
        ["-m", "benchmarks.cli", "methods"],
        ["-m", "benchmarks.cli", "datasets"],
        ["-m", "benchmarks.cli", "protocols"],
        ["-m", "benchmarks.apply", "--help"],
        ["-m", "benchmarks.embed", "--help"],
        ["-m", "benchmarks.push", "--help"],
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
