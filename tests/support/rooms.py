"""Rooms, layers and import arrows of the code, measured: ``python -m tests.support.rooms [--root FOLDER] [--list]``.

A *room* is a folder with Python files; at the root of ``benchmarks`` each module is a room of its own, since the
root holds commands and the public API. The table in docs/architecture.md ("Layers") orders the rooms; a line of it
may also name modules of ``methods``, which is split that way. An *arrow* leads from a room to a room that one of its
modules imports, inside functions too. Imports under ``if TYPE_CHECKING`` are collected apart.
"""

from __future__ import annotations

import argparse
import ast
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGES = ("methods", "benchmarks")
PAPERS = ("pros", "ucdr_adapter", "ad_clip", "sre_clip")


@dataclass(frozen=True)
class Import:
    """One import of a module of ours in a module of ours."""

    source: str
    target: str
    line: int
    #: Inside a function, so that it runs when the function does.
    lazy: bool = False
    #: Under ``if TYPE_CHECKING``: it never runs.
    typing_only: bool = False

    def __str__(self) -> str:
        kind = " (types only)" if self.typing_only else " (inside a function)" if self.lazy else ""
        return f"{self.source}:{self.line} imports {self.target}{kind}"


def modules(root: Path = ROOT) -> dict[str, Path]:
    """Every module of the two packages by its dotted name; a package has the name of its folder."""
    named: dict[str, Path] = {}
    for package in PACKAGES:
        for file in sorted((root / package).rglob("*.py")):
            parts = file.relative_to(root).with_suffix("").parts
            named[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = file
    return named


def _is_type_checking(test: ast.expr) -> bool:
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (
        isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING"
    )


def _statements(node: ast.AST, lazy: bool = False, typing_only: bool = False) -> Iterator[tuple[ast.AST, bool, bool]]:
    """Import statements and ``import_module`` calls below a node, with where they are."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.Import, ast.ImportFrom)) or (
            isinstance(child, ast.Call)
            and getattr(child.func, "attr", getattr(child.func, "id", "")) in ("import_module", "__import__")
        ):
            yield child, lazy, typing_only
        if isinstance(child, ast.If) and _is_type_checking(child.test):
            for statement in child.body:
                yield from _statements(ast.Module([statement], []), lazy, True)
            for statement in child.orelse:
                yield from _statements(ast.Module([statement], []), lazy, typing_only)
        else:
            inside = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from _statements(child, lazy or inside, typing_only)


def _targets(statement: ast.AST, package: str, known: Iterable[str]) -> Iterator[str]:
    """Modules of ours that a statement imports: ``from a.b import c`` is ``a.b.c`` if that is a module."""
    if isinstance(statement, ast.Import):
        names = [alias.name for alias in statement.names]
    elif isinstance(statement, ast.ImportFrom):
        base = statement.module or ""
        if statement.level:
            above = package.split(".")[: len(package.split(".")) - statement.level + 1]
            base = ".".join([*above, *([base] if base else [])])
        names = [f"{base}.{alias.name}" if f"{base}.{alias.name}" in known else base for alias in statement.names]
    else:
        assert isinstance(statement, ast.Call)
        names = [str(a.value) for a in statement.args[:1] if isinstance(a, ast.Constant)]
    yield from dict.fromkeys(name for name in names if name in known)


def imports_of(name: str, file: Path, known: Iterable[str]) -> list[Import]:
    """The imports of one module."""
    package = name if file.name == "__init__.py" else name.rpartition(".")[0]
    return [
        Import(name, target, statement.lineno, lazy, typing_only)  # type: ignore[attr-defined]
        for statement, lazy, typing_only in _statements(ast.parse(file.read_text(encoding="utf-8")))
        for target in _targets(statement, package, known)
        if target != name
    ]


def imports(root: Path = ROOT) -> list[Import]:
    """Every import of a module of ours."""
    known = modules(root)
    return [found for name, file in known.items() for found in imports_of(name, file, known)]


def layers(page: Path = ROOT / "docs" / "architecture.md") -> list[tuple[str, ...]]:
    """The table "Layers" of the page, from the lowest layer to the highest: each line's rooms and modules."""
    table = page.read_text(encoding="utf-8").partition("<!-- layers -->")[2].partition("<!-- end of layers -->")[0]
    rows = [line.split("|")[1:-1] for line in table.splitlines() if re.match(r"\| *\d+ *\|", line)]
    numbers = [int(row[0]) for row in rows]
    assert numbers == list(range(len(rows), 0, -1)), (
        f"{page.name}: layers are numbered from the top to 1, not {numbers}"
    )

    def entries(cell: str) -> tuple[str, ...]:
        paths = re.findall(r"`([\w./]+)`", cell)
        return tuple(path.removesuffix(".py").strip("/").replace("/", ".") for path in paths)

    return [entries(row[1]) for row in reversed(rows)]


def place(module: str, table: list[tuple[str, ...]]) -> tuple[int, str]:
    """The layer (from 1, the lowest) and the room of a module; the longest entry that names it or a folder above it.

    Raises:
        LookupError: no layer names the module.
    """
    entries = {entry: number for number, row in enumerate(table, 1) for entry in row}
    name = module
    while name:
        if name in entries:
            return entries[name], name
        # The root of `benchmarks` is only the API: a module there needs an entry of its own.
        name = "" if name.count(".") == 1 and name.startswith("benchmarks.") else name.rpartition(".")[0]
    raise LookupError(f"docs/architecture.md names no layer for {module}")


def natural_room(module: str, known: dict[str, Path]) -> str:
    """The room of a module where no table says more: its folder, or itself at the root of ``benchmarks``."""
    is_package = known[module].name == "__init__.py"
    if is_package or (module.count(".") == 1 and module.startswith("benchmarks.")):
        return module
    return module.rpartition(".")[0]


def circles(edges: Iterable[tuple[str, str]]) -> list[list[str]]:
    """Strongly connected groups of more than one node, each sorted (Tarjan's algorithm)."""
    after: dict[str, list[str]] = {}
    for source, target in edges:
        after.setdefault(source, []).append(target)
        after.setdefault(target, [])
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    groups: list[list[str]] = []

    def visit(node: str) -> None:
        index[node] = low[node] = len(index)
        stack.append(node)
        for target in after[node]:
            if target not in index:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], index[target])
        if low[node] == index[node]:
            group = []
            while not group or group[-1] != node:
                group.append(stack.pop())
            if len(group) > 1:
                groups.append(sorted(group))

    for node in sorted(after):
        if node not in index:
            visit(node)
    return sorted(groups)


def heights(edges: set[tuple[str, str]]) -> dict[str, int]:
    """The longest way down from each node, counted in nodes; a circle counts with all its nodes."""
    group = {node: "+".join(members) for members in circles(edges) for node in members}
    below: dict[str, set[str]] = {}
    for source, target in edges:
        source, target = group.get(source, source), group.get(target, target)
        below.setdefault(source, set())
        below.setdefault(target, set())
        if source != target:
            below[source].add(target)
    height: dict[str, int] = {}

    def of(node: str) -> int:
        if node not in height:
            height[node] = node.count("+") + 1 + max((of(target) for target in below[node]), default=0)
        return height[node]

    return {node: of(node) for node in below}


#: What opens each paper's core: its first model part or loss, by any name that it has had.
CORES = {
    "pros": ("simulate",),
    "ucdr_adapter": ("target_prompts",),
    "ad_clip": ("LayerwiseLinear", "Projectors", "training_contexts"),
    "sre_clip": ("AttentionAdapter", "pair_loss"),
}


def first_equation(paper: str, root: Path = ROOT) -> tuple[int, int]:
    """Lines of a paper's file, and the line of its first core equation in code (0 if none of the names is there)."""
    text = (root / "methods" / f"{paper}.py").read_text(encoding="utf-8")
    starts = [
        node.lineno
        for node in ast.walk(ast.parse(text))
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and node.name in CORES[paper]
    ]
    return len(text.splitlines()), min(starts, default=0)


@dataclass(frozen=True)
class Measure:
    """Figures of one tree."""

    rooms: list[str]
    arrows: dict[tuple[str, str], list[Import]]

    @property
    def room_circles(self) -> list[list[str]]:
        """Groups of rooms that import each other."""
        return circles(self.arrows)

    @property
    def hidden(self) -> list[Import]:
        """Imports inside functions or for types alone that close a circle of rooms."""
        groups = self.room_circles
        return [
            found
            for (source, target), listed in self.arrows.items()
            if any(source in group and target in group for group in groups)
            and all(entry.lazy or entry.typing_only for entry in listed)
            for found in listed
        ]

    @property
    def floors(self) -> int:
        """Rooms on the longest way down, without the hidden imports; a circle that is left counts in full."""
        hidden = {(entry.source, entry.target) for entry in self.hidden}
        edges = {
            arrow
            for arrow, listed in self.arrows.items()
            if not all((entry.source, entry.target) in hidden for entry in listed)
        }
        return max(heights(edges).values(), default=0)


def measure(
    root: Path = ROOT, packages: Iterable[str] = PACKAGES, table: list[tuple[str, ...]] | None = None
) -> Measure:
    """Rooms and arrows of a tree; the public API (``benchmarks/__init__.py``) is no room.

    Rooms are the entries of a ``table`` of layers, or without one what :func:`natural_room` says.
    """
    known = modules(root)
    kept = tuple(packages)

    def room(module: str) -> str:
        name = place(module, table)[1] if table else natural_room(module, known)
        return "" if name == "benchmarks" or name.split(".")[0] not in kept else name

    arrows: dict[tuple[str, str], list[Import]] = {}
    for entry in imports(root):
        source, target = room(entry.source), room(entry.target)
        if source and target and source != target:
            arrows.setdefault((source, target), []).append(entry)
    return Measure(sorted({room(module) for module in known} - {""}), arrows)


def upward(root: Path = ROOT, page: Path | None = None) -> list[Import]:
    """Imports that lead to a higher layer of the table on a page (default: the tree's docs/architecture.md)."""
    table = layers(page or root / "docs" / "architecture.md")
    return [entry for entry in imports(root) if place(entry.target, table)[0] > place(entry.source, table)[0]]


def main(arguments: list[str] | None = None) -> int:
    """Print the figures of a tree."""
    parser = argparse.ArgumentParser(prog="python -m tests.support.rooms", description=__doc__)
    parser.add_argument("--root", type=Path, default=ROOT, help="a checkout (default: this one)")
    parser.add_argument("--list", action="store_true", help="also list every arrow with its first import")
    options = parser.parse_args(arguments)
    root = options.root.resolve()
    for label, packages in (("benchmarks", ("benchmarks",)), ("benchmarks and methods", PACKAGES)):
        figures = measure(root, packages)
        print(f"{label}: {len(figures.rooms)} rooms, {len(figures.arrows)} arrows, {figures.floors} floors")
        print(f"  circles of rooms: {[' + '.join(group) for group in figures.room_circles] or 'none'}")
        print(f"  imports that close them from inside a function or for types: {len(figures.hidden)}")
        for entry in figures.hidden:
            print(f"    {entry}")
    files = circles((entry.source, entry.target) for entry in imports(root))
    print(f"circles of modules: {[' + '.join(group) for group in files] or 'none'}")
    if "<!-- layers -->" in (root / "docs" / "architecture.md").read_text(encoding="utf-8"):
        found = upward(root)
        table = layers(root / "docs" / "architecture.md")
        figures = measure(root, table=table)
        print(f"by the table of docs/architecture.md: {len(table)} layers", end=", ")
        print(f"{len(figures.rooms)} rooms, {len(figures.arrows)} arrows, {figures.floors} floors")
        print(f"  circles of rooms: {[' + '.join(group) for group in figures.room_circles] or 'none'}")
        print(f"imports that lead upward: {len(found)}", *(f"  {entry}" for entry in found), sep="\n")
    for paper in PAPERS:
        lines, line = first_equation(paper, root)
        print(f"methods/{paper}.py: {lines} lines, first core equation at line {line}")
    if options.list:
        for (source, target), listed in sorted(measure(root).arrows.items()):
            print(f"{source} -> {target}: {listed[0]}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
