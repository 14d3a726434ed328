"""The documentation is true: links, generated parts, executed examples, options and figures."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.glob("*.md"))
#: Every document whose links are checked.
LINKING = [*PAGES, *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "results/README.md"))]
COMMANDS = (
    "run",
    "ablate",
    "tune",
    "report",
    "compare",
    "data",
    "convert",
    "pack",
    "apply",
    "embed",
    "push",
    "speed.training",
    "speed.ranking",
    "speed.report",
)

_FENCE = re.compile(r"^```.*?^```[^\n]*$", flags=re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\(([^)\s]+)\)")


@cache
def generator() -> ModuleType:
    """``docs/generate.py``."""
    spec = importlib.util.spec_from_file_location("docs_generate", DOCS / "generate.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def examples(language: str = "python") -> list[tuple[str, str, str]]:
    """Every marked code block of the pages in a language: page, name, code."""
    marked = re.compile(rf"<!-- example: ([^\n]+?) -->\n```{language}\n(.*?)```", flags=re.DOTALL)
    return [(page.name, *found) for page in PAGES for found in marked.findall(page.read_text(encoding="utf-8"))]


def example(page: str, name: str, language: str = "python") -> str:
    """One marked code block."""
    (code,) = [code for where, what, code in examples(language) if (where, what) == (page, name)]
    return code


# --- links ------------------------------------------------------------------------------------------------------------


@cache
def anchors(page: Path) -> frozenset[str]:
    """What a link to a page may name behind ``#``: its headings, as MkDocs and most hosts spell them."""
    text = _FENCE.sub("", page.read_text(encoding="utf-8"))
    heads = re.findall(r"^#+ (.+)$", text, flags=re.MULTILINE)
    return frozenset(re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", head).strip().lower()) for head in heads)


def broken_links(page: Path) -> Iterator[str]:
    """Links of a page that lead nowhere."""
    for link in _LINK.findall(_FENCE.sub("", page.read_text(encoding="utf-8"))):
        if "://" in link:
            continue
        path, _, anchor = link.partition("#")
        goal = page.parent / path if path else page
        if not goal.is_file() or (anchor and goal.suffix == ".md" and anchor not in anchors(goal)):
            yield link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_of_a_page_lead_somewhere(page: Path) -> None:
    assert not list(broken_links(page))


@pytest.mark.parametrize("page", LINKING[len(PAGES) :], ids=lambda page: page.name)
def test_links_of_other_documents_lead_somewhere(page: Path) -> None:
    lost = [link for link in broken_links(page) if not (page.parent / link).is_dir()]  # a README may name a folder
    assert not lost


def test_the_check_sees_a_broken_link(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# One head\n[a](gone.md) [b](#one-head) [c](#two) [d](https://x.org/y)\n```\n[e](code.md)\n```\n")
    assert list(broken_links(page)) == ["gone.md", "#two"]


def test_the_site_shows_every_page() -> None:
    nav = set(re.findall(r"(\S+\.md)$", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"), flags=re.MULTILINE))
    own = {name for name in nav if not name.startswith("repository/")}
    assert own == {page.name for page in PAGES}
    assert all((ROOT / name.removeprefix("repository/")).is_file() for name in nav - own)


# --- generated parts --------------------------------------------------------------------------------------------------


def test_generated_parts_are_what_the_script_writes() -> None:
    made = generator().pages()
    pages = {"README.md", "discrepancies.md", "methods.md", "datasets.md", "reproduce.md", "results.md", "sizing.md"}
    assert pages == {path.name for path in made}
    stale = [path.name for path, text in made.items() if path.read_text(encoding="utf-8") != text]
    assert not stale, f"run {generator().COMMAND}"


def test_tables_of_the_reference_follow_its_leaderboard() -> None:
    module = generator()
    rows = [row for row in module.reference_rows("leaderboard.csv") if row["query_domain"] == "mean"]
    for backbone in module.reference_backbones():
        lines = module.reference_scores(backbone).splitlines()[2:]
        own = [row for row in rows if row["backbone"] == backbone]
        assert len(lines) == len({row["label"] for row in own})
        best = max(
            (row for row in own if (row["protocol"], row["gallery"], row["metric"]) == ("ucdr", "unseen", "map@all")),
            key=lambda row: float(row["value"] or 0),
        )
        assert lines[0].startswith(f"| {best['label']} | {100 * float(best['value']):.1f}")
        assert ["(floor)" in line for line in lines] == sorted("(floor)" in line for line in lines), "floors come last"


def test_the_two_backbones_are_compared_on_the_same_splits() -> None:
    lines = {line.split(" | ")[0].strip("| "): line for line in generator().two_backbones().splitlines()[2:]}
    scores = {}
    for name in ("reference", "invariant"):
        frame, _ = generator().reference_records(ROOT / "results" / name)
        own = frame[
            (frame["protocol"] == "ucdr") & (frame["gallery"] == "unseen") & (frame["metric"] == "map@all")
            & (frame["seed"] == 0) & frame["split"].isin(["clipart", "freehand", "line", "pixel"])
        ]  # fmt: skip
        assert own.groupby("method").size().eq(4).all()
        scores[name] = 100 * own.groupby("method")["value"].mean()
    assert next(iter(lines)) == "zero_shot"
    expected = " / ".join(f"{scores[name]['zero_shot']:.1f}" for name in scores)
    assert lines["zero_shot"].startswith(f"| zero_shot | {expected} |")
    for method in ("linear_probe", "vpt_deep", "pros"):
        first = lines[method].split(" | ")[1].split(" / ")
        assert [float(text) for text in first] == pytest.approx(
            [scores[name][method] - scores[name]["zero_shot"] for name in scores], abs=0.051
        )
    assert set(lines) == {name for name in scores["invariant"].index if name not in ("random", "constant", "raw_pixel")}


def test_check_names_a_page_that_is_out_of_date(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = generator()
    page = tmp_path / "page.md"
    page.write_text("<!-- generated: part -->\nold\n<!-- end of part -->\n")
    monkeypatch.setattr(module, "ROOT", tmp_path)
    monkeypatch.setattr(module, "pages", lambda: {page: module.filled(page.read_text(), {"part": lambda: "new"})})
    assert module.main(["--check"]) == 1
    assert capsys.readouterr().out == f"page.md is out of date: run {module.COMMAND}\n"
    assert module.main([]) == 0
    assert page.read_text() == "<!-- generated: part -->\n\nnew\n\n<!-- end of part -->\n"
    assert module.main(["--check"]) == 0


def test_every_setting_is_explained_once() -> None:
    module = generator()
    for name, method in module.method_classes().items():
        rows = module.meanings(method.Config)
        listed = [field for fields, _ in rows for field in fields]
        assert sorted(listed) == sorted(field.name for field in dataclasses.fields(method.Config)), name
        assert all(text for _, text in rows), f"{name}: the docstring of its Config leaves a field out"


@dataclasses.dataclass
class Commented:
    """A config whose fields have comments beside them."""

    first: int = 1  # the first one
    second: int = 2  # the second
    third: int = 3


def test_a_comment_belongs_to_the_field_before_it() -> None:
    assert generator().comments(Commented) == {"first": "the first one", "second": "the second"}


def test_the_ledger_has_every_deviation_of_every_card() -> None:
    page = (DOCS / "discrepancies.md").read_text(encoding="utf-8")
    for name, method in generator().method_classes().items():
        for deviation in method.card.deviations:
            assert f"| {generator().cell(deviation.topic)} |" in page, (name, deviation.topic)
    papers = ("pros", "ucdr_adapter", "ad_clip", "sre_clip")
    assert all(f"`{name}`;" in page for name in papers)


# --- examples ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("page", "name"), [(page, name) for page, name, _ in examples() if name not in ("method", "data set")]
)
def test_an_example_runs(page: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    exec(compile(example(page, name), page, "exec"), {"__name__": "docs_example"})


def test_the_method_example_runs(tiny_dataset: type, tiny_folder: Path, tmp_path: Path) -> None:
    from benchmarks import load_results
    from benchmarks.run import main
    from methods.registry import METHODS

    code = example("own_method.md", "method")
    assert len(code.strip().splitlines()) < 30
    try:
        exec(compile(code, "own_method.md", "exec"), {"__name__": "docs_example"})
        arguments = ["--methods", "centred_clip,zero_shot", "--datasets", "tiny", "--backbone", str(tiny_folder)]
        assert main([*arguments, "--protocols", "ucdr", "--preset", "smoke", "--out", str(tmp_path)]) == 0
    finally:
        METHODS.remove("centred_clip")
    results = load_results(tmp_path)
    assert set(results["method"]) == {"centred_clip", "zero_shot"}
    assert set(results["status"]) == {"ok"}


def test_the_data_set_example_runs(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from benchmarks import load_results
    from benchmarks.datasets.registry import DATASETS
    from benchmarks.run import main
    from tests.datasets import trees

    classes = ("agate", "beryl", "calcite", "galena", "halite", "jade", "opal", "pyrite")
    names = [f"{domain}/{name}/{n}.png" for domain in ("photographs", "drawing") for name in classes for n in range(3)]
    trees.write_images(tmp_path / "data" / "minerals", names)
    monkeypatch.setenv("UCDR_BENCH_CACHE", "off")
    try:
        exec(compile(example("own_data.md", "data set"), "own_data.md", "exec"), {"__name__": "docs_example"})
        arguments = ["--methods", "zero_shot", "--datasets", "minerals", "--data-root", str(tmp_path / "data")]
        arguments += ["--backbone", str(tiny_folder), "--protocols", "uccdr", "--preset", "smoke", "--jobs", "1"]
        assert main([*arguments, "--out", str(tmp_path / "results")]) == 0
    finally:
        DATASETS.remove("minerals")
    results = load_results(tmp_path / "results")
    assert set(results["status"]) == {"ok"}
    assert set(results["gallery_domain"]) == {"photo"}


def test_the_folder_example_is_the_rule_with_a_gallery_of_its_own(tmp_path: Path) -> None:
    from benchmarks.datasets.own_folder import FolderRule, read_rule

    (tmp_path / "folder.toml").write_text(example("own_data.md", "folder.toml", "toml"))
    assert read_rule(tmp_path / "folder.toml") == FolderRule(gallery_domain="photo")


def test_other_python_blocks_are_python() -> None:
    for page in PAGES:
        for code in re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
            compile(code, page.name, "exec")


# --- commands and figures ---------------------------------------------------------------------------------------------


def commands() -> Iterator[tuple[str, str, str]]:
    """Every command of the suite in a shell block: page, command, the rest of the line."""
    for page in [*PAGES, ROOT / "README.md"]:
        for block in re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), flags=re.DOTALL):
            lines = re.sub(r"\s*#.*", "", block.replace("\\\n", " ")).splitlines()
            for line in lines:
                for name, rest in re.findall(r"-m benchmarks\.([\w.]+)([^&|]*)", line):
                    yield page.name, name, rest


def test_commands_have_the_options_that_the_pages_use() -> None:
    wanted: dict[str, set[str]] = {}
    for page, name, rest in commands():
        assert name in COMMANDS, f"{page}: there is no command benchmarks.{name}"
        command = f"{name} {rest.split()[0]}" if name == "data" else name
        wanted.setdefault(command, set()).update(re.findall(r"(?<!\S)--[\w-]+", rest))
    assert {"run", "data verify", "report"} <= set(wanted)
    for command, options in wanted.items():
        module, *sub = command.split()
        done = subprocess.run(
            [sys.executable, "-m", f"benchmarks.{module}", *sub, "--help"], cwd=ROOT, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert options <= set(re.findall(r"--[\w-]+", done.stdout)), command


def test_recipes_methods_and_presets_in_commands_exist() -> None:
    from benchmarks.runner.presets import PRESETS
    from benchmarks.runner.settings import recipes
    from methods.registry import METHODS

    known = {"recipe": set(recipes()), "preset": set(PRESETS), "methods": {"all", "centred_clip", *METHODS.names()}}
    for page, _, rest in commands():
        for option, names in known.items():
            for value in re.findall(rf"--{option} (\S+)", rest):
                assert value == "..." or set(value.split(",")) <= names, f"{page}: --{option} {value}"


def test_the_recipe_table_names_every_recipe_with_its_fits_and_hours() -> None:
    from benchmarks.runner.settings import recipe_file, recipes, resolve
    from tests.runner.test_recipes import CELLS

    table = (DOCS / "reproduce.md").read_text(encoding="utf-8")
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


def test_figures_of_picto_domains_are_those_of_the_pack() -> None:
    from benchmarks.datasets.picto_domains import PictoDomains

    pack, page = PictoDomains(), " ".join((DOCS / "datasets.md").read_text(encoding="utf-8").split())
    closed, sizes = pack.closed_set, [len(pack.classes(split)) for split in ("train", "val", "test")]
    assert f"{len(pack.table):,} openly licensed drawings of {len(pack.classes())} everyday things" in page
    assert "{} train, {} validation, {} test".format(*sizes) in page
    assert f"{len(pack.uda_pairs)} transfers between {', '.join(closed.uda_domains[:3])} and line" in page
    assert f"over {len(closed.uda_classes)} classes" in page
    assert f"{len(closed.seen)} seen and {len(closed.unseen)} unseen classes" in page


def test_every_word_of_the_glossary_is_explained_once() -> None:
    words = re.findall(r"^\| \*\*(.+?)\*\* \|", (DOCS / "glossary.md").read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert words == sorted(words) and len(set(words)) == len(words)
    asked = "cell fit task split arm floor rules variant selection extension"
    assert set(asked.split()) <= set(words)


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    pytest.importorskip("mkdocs", reason="needs the extra docs")
    pytest.importorskip("material", reason="needs the extra docs")
    pytest.importorskip("mkdocstrings", reason="needs the extra docs")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    leaderboard = tmp_path / "site" / "repository" / "reports" / "reference"
    assert (leaderboard / "leaderboard" / "index.html").is_file()
    assert (leaderboard / "index.html").read_bytes() == (ROOT / "reports/reference/index.html").read_bytes()
    api = (tmp_path / "site" / "api" / "index.html").read_text(encoding="utf-8")
    for name in ("methods.interface.Method", "methods.registry.register", "benchmarks.load_results"):
        assert f'id="{name}"' in api
    assert 'id="benchmarks.evaluation.ranking.rank"' in api
