"""The page from a made-up store: what is in it, that it fetches nothing, and that names stay text."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from benchmarks import report
from benchmarks.reporting import plot_collector, plots
from benchmarks.reporting.data import ReportData
from benchmarks.reporting.files import write_report
from benchmarks.reporting.plot_collector import PlannedPlots
from benchmarks.store.files import ResultStore
from benchmarks.store.frame import load_results
from tests.reporting.conftest import add, retrieval_table
from tests.reporting.reading import Page

HOSTILE = "<script>alert(1)</script>\"'&{{7*7}}{% raw %}\n../../x|$a_1$\\end{document}"


def written(store: ResultStore, folder: Path, command: str = "") -> tuple[Page, str, list[str]]:
    """The parsed page, its text and what was reported."""
    problems: list[str] = []
    frame = load_results(store.root, problems.append)
    data = ReportData(frame, store=store, report=problems.append, resamples=200, command=command)
    files = write_report(data, folder)
    text = files[-1].read_text(encoding="utf-8")
    return Page(text), text, problems


@pytest.fixture(scope="module")
def read(filled: ResultStore, tmp_path_factory: pytest.TempPathFactory) -> tuple[Page, str, list[str]]:
    folder = tmp_path_factory.mktemp("report")
    return (*written(filled, folder, command="python -m benchmarks.report <x>"),)


def test_the_page_is_whole_and_fetches_nothing(read: tuple[Page, str, list[str]]) -> None:
    parsed, text, problems = read
    assert problems == []
    assert parsed.crossed == []
    assert parsed.fetched == []
    assert len(parsed.ids) == len(set(parsed.ids))
    assert "default-src 'none'" in next(g["content"] for t, g in parsed.tags if g.get("http-equiv"))
    assert not re.search(r"@import|url\(|fetch\(|XMLHttp|eval\(", text)
    links = [given["href"] for tag, given in parsed.tags if tag == "a"]
    assert {link[1:] for link in links if link.startswith("#")} <= set(parsed.ids)
    assert "https://example.org/paper" in links
    assert len(text) < 3_000_000


def test_scores_come_with_interval_group_and_marks(read: tuple[Page, str, list[str]], filled: ResultStore) -> None:
    parsed, _, _ = read
    frame = load_results(filled.root)
    head, *rows = parsed.tables["UCDR, unseen: map@all in percent, by query domain"]
    assert [name.split(" ")[0] for name in head] == ["method", "line", "pixel", "mean", "seeds"]
    by_name = {row[0].split(" ")[0]: row for row in rows}
    assert by_name["random"][0] == "random floor"
    own = frame[(frame["method"] == "good") & (frame["metric"] == "map@all") & (frame["select"] == "val")]
    own = own[(own["config"] == "{}") & (own["protocol"] == "ucdr")]
    seeds = own.groupby("seed")["value"].mean()
    half = 4.302653 * seeds.std(ddof=1) / 3**0.5  # t quantile for two degrees of freedom
    assert by_name["good"][3] == f"{100 * seeds.mean():.1f}★ ± {100 * half:.1f}"
    assert by_name["good"][4] == "3"
    assert by_name["stuck"][1:4] == ["failed", "-", "incomplete"]
    assert "★" not in by_name["random"][3]
    dazsl = {row[0]: row for row in parsed.tables["DAZSL, target: h[image] in percent, by transfer"][1:]}
    assert "fair†" in dazsl
    assert "good (mask=False)" not in by_name, "an ablation is no row of the leaderboard"


def test_oracle_rows_are_marked_and_unranked(read: tuple[Page, str, list[str]]) -> None:
    parsed, text, _ = read
    oracle = [rows for rows in parsed.all_tables if any("oracle, unranked" in row[0] for row in rows)]
    assert oracle
    assert not any(mark in cell for rows in oracle for row in rows for cell in row for mark in "★≈")
    assert "ORACLE: selected on test data, not ranked" in text
    inflation = parsed.tables["How much selecting on the test data adds (percentage points)"]
    assert [row[0] for row in inflation[1:]] == ["good"]


def test_every_section_is_there(read: tuple[Page, str, list[str]]) -> None:
    parsed, _, _ = read
    for anchor in ("overview", "protocols", "domains", "tests", "plots", "cost", "errors", "published", "failures",
                   "cards", "deviations", "datasets", "bibtex", "settings", "extensions"):  # fmt: skip
        assert anchor in parsed.ids, anchor
    tables = parsed.tables
    assert tables["Failed, skipped and not applicable cells"][1][-1] == "RuntimeError: boom"
    deviations = tables["Where a paper and its released code disagree"]
    assert deviations[1] == ["good", "token", "class", "prompt", "both: --set good.read_out=...", "read_out"]
    cost = {row[0]: row for row in tables["What a method costs"][1:]}
    assert cost["good"][1:5] == ["256", "10,000", "4", "9"]
    assert cost["random floor"][3:5] == ["-", "-"], "what trains nothing has no seconds of training"
    settings = {row[0]: row[1] for row in tables["Settings of the last run"][1:]}
    assert settings["seeds"] == "0, 1, 2"
    assert tables["Data set card: tiny"][-1] == ["known problems", "very few"]
    assert any("@inproceedings{good2024" in text for text in parsed.texts)
    assert tables["Answers that a method's paper does not define, and what is done"][1][2] == "as if <i>seen</i>"


def test_ablations_stand_beside_their_default(read: tuple[Page, str, list[str]], filled: ResultStore) -> None:
    _, default, arm = read[0].tables["good"]
    assert (default[0], arm[0]) == ("default", "no_mask")
    assert (default[-1], arm[-1]) == ("3", "1")
    frame = load_results(filled.root)
    own = frame[(frame["method"] == "good") & (frame["metric"] == "map@all") & (frame["select"] == "val")]
    mean = own[(own["protocol"] == "ucdr") & (own["seed"] == 0)].groupby("ablation")["value"].mean() * 100
    assert arm[1] == f"{mean['no_mask']:.1f} {mean['no_mask'] - mean['']:+.1f}", "with the default of the same seed"
    assert mean["no_mask"] < mean[""]


def test_errors_name_the_confused_classes(read: tuple[Page, str, list[str]]) -> None:
    parsed, _, _ = read
    far = parsed.tables["UCDR, unseen: how far the first image retrieved is from the true class when it is wrong"]
    wrong = {row[0].split(" ")[0]: float(row[2]) for row in far[1:]}
    assert wrong["good"] < wrong["fair"] < wrong["random"]
    title = next(name for name in parsed.tables if name.startswith("UCDR, unseen: most confused pairs"))
    pairs = parsed.tables[title][1:]
    distance = {frozenset(row[1:3]): int(row[5]) for row in pairs}
    assert all(one != other for one, other in map(tuple, distance))
    assert all(d >= 2 for d in distance.values())


@pytest.mark.parametrize("where", ["method", "protocol", "split", "class", "reason", "card"])
def test_hostile_names_come_out_as_text(where: str, tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "results")
    name = HOSTILE
    table = retrieval_table("line", 0.5, 0)
    if where == "class":
        table["class"] = table["class"].replace("cat", name)
        table["domain"] = name
        folder = f"flat/{name.replace('/', ' ')}/"  # a gallery key names its class
        table["top_keys"] = [[key.replace("flat/cat/", folder) for key in keys] for keys in table["top_keys"]]
    changes = {where: name} if where in ("protocol", "split") else {}
    add(store, name if where == "method" else "good", table, trainable=5, **changes)
    add(store, "other", None, reason=name if where == "reason" else "no", **changes)
    if where == "card":
        card = dict.fromkeys(("name", "title", "authors", "notes", "bibtex"), name)
        store.write_card("methods", name, card | {"url": "javascript:alert(1)", "deviations": [{"topic": name}]})
        store.write_card("datasets", name, {"title": name, "known_problems": [name], "headline": {name: name}})
        store.write_resolved({name: name})
    parsed, text, _ = written(store, tmp_path / "out")
    assert parsed.crossed == []
    assert parsed.fetched == []
    assert [tag for tag, _ in parsed.tags].count("script") == 1, "the page's own"
    assert "<script>alert" not in text
    assert "javascript:" not in "".join(given.get("href", "") for _, given in parsed.tags)
    assert "alert(1)" in "".join(parsed.texts), "the name is there, as text"
    assert "{{7*7}}" in "".join(parsed.texts), "and no template of its own"
    inside = (tmp_path / "out").resolve()
    assert all(path.resolve().is_relative_to(inside) for path in inside.rglob("*"))
    assert not (tmp_path / "x").exists()


def test_a_failing_part_leaves_a_notice(filled: ResultStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise RuntimeError("no <fonts>")

    for name in ("bars", "heat_map", "cost_against_score", "seconds_by_phase", "seen_against_unseen", "loss_curves",
                 "precision_curves", "error_distances", "ablation_bars"):  # fmt: skip
        monkeypatch.setattr(plots, name, broken)
    monkeypatch.setattr("benchmarks.reporting.method_comparison.compare_methods", broken)
    parsed, text, problems = written(filled, tmp_path)
    assert "This plot could not be drawn: RuntimeError: no &lt;fonts&gt;" in text
    assert "tests between methods left out: RuntimeError: no <fonts>" in problems
    assert any("tests between methods left out" in line for line in parsed.texts)
    row = next(r for r in parsed.tables["UCDR, unseen: map@all in percent, by query domain"] if r[0] == "good")
    assert re.fullmatch(r"\d+\.\d", row[3]), "the score stays, without interval and mark"


def test_broken_cards_cost_nothing_else(store: ResultStore, tmp_path: Path) -> None:
    add(store, "good", retrieval_table("line", 0.5, 0))
    store.write_card("methods", "good", {"name": "good", "deviations": None, "year": None})
    (store.root / "cards" / "methods" / "bad.json").write_text("{")
    (store.root / "cards" / "methods" / "list.json").write_text("[1]")
    (store.root / "resolved.json").write_text("nonsense")
    parsed, _, _ = written(store, tmp_path / "out")
    assert parsed.tables["Method cards"][1][0] == "good"
    assert sum("left out" in text for text in parsed.texts) == 3


def test_limited_runs_draw_no_more_than_bars(store: ResultStore, tmp_path: Path) -> None:
    add(store, "good", retrieval_table("line", 0.5, 0), limit=9)
    _, text, _ = written(store, tmp_path / "out")
    assert {path.name for path in (tmp_path / "out" / "plots").iterdir()} == {
        "ucdr-unseen-map_all.svg",
        "ucdr-unseen-map_all.png",
    }
    assert "LIMITED to 9 images" in text


def test_the_command_prints_where_the_page_lies(
    filled: ResultStore, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plot_collector, "draw_setting", lambda _, collector: PlannedPlots(collector))
    out = tmp_path / "out"
    assert report.main([str(filled.root), "--out", str(out), "--resamples", "50"]) == 0
    assert f"page: {out / 'index.html'}" in capsys.readouterr().out
    assert (out / "index.html").is_file()
    (tmp_path / "file").write_text("")
    assert report.main([str(filled.root), "--out", str(tmp_path / "file"), "--resamples", "50"]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_an_empty_frame_gives_an_empty_page(store: ResultStore, tmp_path: Path) -> None:
    store.root.mkdir(parents=True)
    parsed, _, _ = written(store, tmp_path / "out")
    assert parsed.crossed == []
    assert "None: every planned cell has a score." in "".join(parsed.texts)
