"""Leaderboards: a golden table from made-up records, missing and failed cells shown and never averaged over."""

from __future__ import annotations

import csv
import io
import re
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from PIL import Image
from rich.console import Console

from benchmarks.evaluation.statistics import mean_over_seeds
from benchmarks.reporting import grids, plots, terminal
from benchmarks.reporting.csv_text import leaderboard_csv
from benchmarks.reporting.data import ReportData
from benchmarks.reporting.files import write_report
from benchmarks.reporting.markdown import leaderboard_markdown
from benchmarks.reporting.tables import score_tables, settings_of
from benchmarks.reporting.types import Score, ScoreTable
from benchmarks.store.files import ResultStore
from benchmarks.store.frame import load_results
from benchmarks.store.records import CellId, GalleryScores, Record, backbone_identity, content_key

METRICS = ("map@all", "recall@1")


def add(store: ResultStore, method: str, split: str, value: float | None, **changes: Any) -> None:
    """Store a record whose map@all is ``value`` and recall@1 half of it; None fails."""
    cell_changes = {key: changes[key] for key in CellId.__dataclass_fields__ if key in changes}
    cell = CellId(
        **{
            "method": method,
            "variant": "paper",
            "config": {},
            "backbone": "picto-clip-v1",
            "dataset": "tiny",
            "protocol": "ucdr",
            "rules": "clean",
            "split": split,
            "select": "val",
            "seed": 0,
            **cell_changes,
        }
    )
    inputs = {
        "scoring": 1,
        "cell": vars(cell),
        "code": changes.get("code", 1),
        "method": {"version": changes.get("version", 1)},
        "dataset": {"data_hash": changes.get("data_hash", "ab" * 32)},
        "backbone": {"weights_hash": "cd" * 32, "precision": "float32", **changes.get("backbone_facts", {})},
    }
    status = changes.get("status", "ok" if value is not None else "failed")
    scores = {}
    if value is not None:
        scores["unseen"] = GalleryScores({"map@all": value, "recall@1": value / 2}, 8, 24, "cosine", 0, "exclude")
    store.write(
        Record(
            key=content_key(inputs),
            status=status,
            cell=cell,
            inputs=inputs,
            method={"title": method, "floor": method == "random", "extensions": changes.get("extensions", {})},
            dataset={"version": "v1", "gallery_domain": "flat"},
            galleries={"unseen": list(METRICS)},
            scores=scores,
            created=changes.get("created", ""),
            reason=changes.get("reason", "" if value is not None else "RuntimeError: boom"),
        )
    )


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    return ResultStore(tmp_path / "results")


def frame_of(store: ResultStore) -> pd.DataFrame:
    return load_results(store.root)


GOLDEN = """\
# Leaderboard

Made by `python -m benchmarks.run`.

Percent. A table's head names its metric: the `[retrieved]` and `[trec]` conventions differ.
`(floor)` marks baselines that know nothing. Means are taken over complete rows only.
±: half of the 95 % t interval over seeds; one seed (n = 1) has none.

## tiny v1 (abababab), picto-clip-v1 (cdcdcdcd)

Means over the query domains (UDA and DAZSL: transfers).

| map@all | UCDR unseen | seeds |
| --- | ---: | ---: |
| good | 45.0 | n = 1 |
| random (floor) | 11.1 | n = 1 |
| crashed | incomplete | - |
| partial | incomplete | - |
| stuck | failed | - |
| wordless | n/a | - |

| recall@1 | UCDR unseen | seeds |
| --- | ---: | ---: |
| good | 22.5 | n = 1 |
| random (floor) | 5.6 | n = 1 |
| crashed | incomplete | - |
| partial | incomplete | - |
| stuck | failed | - |
| wordless | n/a | - |

### UCDR, unseen: map@all in percent, by query domain

| map@all | glyph | line | mean | seeds |
| --- | ---: | ---: | ---: | ---: |
| good | 40.0 | 50.0 | 45.0 | n = 1 |
| random (floor) | 10.0 | 12.3 | 11.1 | n = 1 |
| crashed | 90.0 | failed | incomplete | n = 1 |
| partial | - | 99.0 | incomplete | n = 1 |
| stuck | failed | failed | failed | - |
| wordless | n/a | n/a | n/a | - |

### UCDR, unseen: recall@1 in percent, by query domain

| recall@1 | glyph | line | mean | seeds |
| --- | ---: | ---: | ---: | ---: |
| good | 20.0 | 25.0 | 22.5 | n = 1 |
| random (floor) | 5.0 | 6.1 | 5.6 | n = 1 |
| crashed | 45.0 | failed | incomplete | n = 1 |
| partial | - | 49.5 | incomplete | n = 1 |
| stuck | failed | failed | failed | - |
| wordless | n/a | n/a | n/a | - |

## Cells without a score

| dataset | protocol | split | method | seed | status | reason |
| --- | --- | --- | --- | --- | --- | --- |
| tiny | ucdr | line | crashed | 0 | failed | RuntimeError: boom |
| tiny | ucdr | glyph | stuck | 0 | failed | RuntimeError: boom |
| tiny | ucdr | line | stuck | 0 | failed | RuntimeError: boom |
| tiny | ucdr | glyph | wordless | 0 | not_applicable | no names |
| tiny | ucdr | line | wordless | 0 | not_applicable | no names |
"""


def fill(store: ResultStore) -> None:
    for split, good, random in (("glyph", 0.4, 0.1), ("line", 0.5, 0.1226)):
        add(store, "good", split, good)
        add(store, "random", split, random)
        add(store, "stuck", split, None)
        add(store, "wordless", split, None, status="not_applicable", reason="no names")
    add(store, "crashed", "glyph", 0.9)
    add(store, "crashed", "line", None)
    add(store, "partial", "line", 0.99)


def test_golden_table(store: ResultStore) -> None:
    fill(store)
    assert leaderboard_markdown(ReportData(frame_of(store), command="python -m benchmarks.run")) == GOLDEN


def test_csv_holds_every_figure_and_status(store: ResultStore) -> None:
    fill(store)
    rows = list(csv.DictReader(io.StringIO(leaderboard_csv(ReportData(frame_of(store))))))
    assert len(rows) == 6 * 2 * 3
    of = {(r["method"], r["metric"], r["query_domain"]): (r["value"], r["status"]) for r in rows}
    assert of["good", "map@all", "mean"] == ("0.450000", "ok")
    assert of["random", "map@all", "line"] == ("0.122600", "ok")
    assert of["crashed", "map@all", "line"] == ("", "failed")
    assert of["crashed", "recall@1", "mean"] == ("", "incomplete")
    assert of["partial", "map@all", "glyph"] == ("", "missing")
    assert {r["floor"] for r in rows if r["method"] == "random"} == {"True"}


def test_terminal_table_shows_the_same_and_the_failures(store: ResultStore) -> None:
    fill(store)
    console = Console(width=140, record=True, file=io.StringIO())
    terminal.print_tables(console, ReportData(frame_of(store)))
    text = console.export_text()
    assert re.search(r"good +40\.0 +50\.0 +45\.0", text)
    assert re.search(r"crashed +90\.0 +failed +incomplete", text)
    assert "failed: stuck on tiny/ucdr/line, seed 0: RuntimeError: boom" in text


def test_transfers_are_called_transfers(store: ResultStore) -> None:
    add(store, "good", "line to flat", 0.5, protocol="uda")
    frame = frame_of(store)
    table = score_tables(frame, settings_of(frame)[0])[0]
    assert table.title() == "UDA, unseen: map@all in percent, by transfer"


def test_seeds_are_averaged_and_named(store: ResultStore) -> None:
    for seed, value in enumerate((0.1, 0.2, 0.6)):
        add(store, "good", "line", value, seed=seed)
        add(store, "shaky", "line", value if seed else None, seed=seed)
    add(store, "short", "line", 0.5)
    frame = frame_of(store)
    table = score_tables(frame, settings_of(frame)[0], ["map@all"])[0]
    rows = {row.label: row for row in table.rows}
    expected = mean_over_seeds([0.1, 0.2, 0.6])
    assert rows["good"].scores["line"] == Score(
        pytest.approx(0.3), 3, "ok", pytest.approx(expected.low), pytest.approx(expected.high)
    )
    assert rows["good"].mean == rows["good"].scores["line"], "there is one query domain"
    assert rows["shaky"].scores["line"].value is None
    assert rows["shaky"].scores["line"].text() == "failed 1/3"
    assert rows["shaky"].mean.value is None
    head, lines = grids.by_protocol(table).plain()
    assert head[-1] == "seeds"
    assert {line[0]: line[1:] for line in lines} == {
        "good": ["30.0 ± 65.7", "30.0 ± 65.7", "n = 3"],
        "short": ["50.0", "50.0", "n = 1"],
        "shaky": ["failed 1/3", "failed 1/3", "-"],
    }
    lines = [line for line in leaderboard_markdown(ReportData(frame)).splitlines() if line.startswith("| good")]
    assert lines[0] == "| good | 30.0 ± 65.7 | n = 3 |"
    row = next(csv.DictReader(io.StringIO(leaderboard_csv(ReportData(frame)))))
    assert [row[name] for name in ("value", "low", "high", "seeds")] == ["0.500000", "", "", "1"]


def test_a_seed_that_a_method_lacks_somewhere_is_missing_there(store: ResultStore) -> None:
    for split in ("glyph", "line"):
        for seed in (0, 1, 2):
            add(store, "whole", split, 0.1 * seed, seed=seed)
            if (split, seed) not in (("line", 1), ("line", 2)):
                add(store, "holey", split, 0.9, seed=seed)
    frame = frame_of(store)
    table = score_tables(frame, settings_of(frame)[0], ["map@all"])[0]
    rows = {row.label: row for row in table.rows}
    assert [rows["holey"].scores[split].text() for split in table.columns] == ["90.0", "missing 2/3"]
    assert rows["holey"].mean.text() == "incomplete"
    whole = rows["whole"].mean
    expected = mean_over_seeds([0.0, 0.1, 0.2])
    assert (whole.value, whole.low, whole.high) == pytest.approx((0.1, expected.low, expected.high))


def test_the_newest_record_of_a_cell_counts_and_none_is_averaged(store: ResultStore) -> None:
    """Measured under three versions of the code, the last one neither the first nor the last file by name."""
    for code, value, created in ((1, 0.2, "2026-01-02"), (2, 0.7, "2026-01-03"), (3, None, "2026-01-01")):
        add(store, "good", "line", value, code=code, created=created)
    add(store, "good", "glyph", 0.3, code=1)
    frame = frame_of(store)
    assert frame["key"].nunique() == 4
    table = score_tables(frame, settings_of(frame)[0], ["map@all"])[0]
    assert [row.mean.value for row in table.rows] == [pytest.approx(0.5)]
    assert table.rows[0].scores["line"].seeds == 1
    files = write_report(ReportData(frame, store=store, resamples=50), store.root / "page")
    text = next(path for path in files if path.name == "leaderboard.md").read_text()
    assert "| good | 30.0 | 70.0 | 50.0 | n = 1 |" in text
    assert "boom" not in text, "the failure was fixed"


def test_no_mean_is_over_two_versions_of_a_methods_code(store: ResultStore) -> None:
    for split, version in (("glyph", 1), ("line", 1), ("line", 2)):
        add(store, "good", split, 0.2 + 0.1 * version, version=version)
        add(store, "other", split, 0.1)
    frame = frame_of(store)
    rows = score_tables(frame, settings_of(frame)[0], ["map@all"])[0].rows
    row = next(one for one in rows if one.method == "good")
    assert row.scores["line"].value == pytest.approx(0.4)
    assert (row.mean.value, row.mean.status) == (None, "incomplete"), "glyph was measured by the old code alone"


@pytest.mark.parametrize(
    ("change", "mark"),
    [
        ({"rules": "official"}, "OFFICIAL RULES"),
        ({"select": "oracle"}, "ORACLE"),
        ({"select": "last"}, "selection: last"),
        ({"limit": 9}, "LIMITED to 9"),
        ({"backbone": "picto-clip-v2"}, "picto-clip-v2"),
        ({"data_hash": "ef" * 32}, "efefefef"),
    ],
)
def test_what_is_not_comparable_never_shares_a_table(store: ResultStore, change: dict[str, Any], mark: str) -> None:
    add(store, "good", "line", 0.5)
    add(store, "good", "line", 0.9, **change)
    frame = frame_of(store)
    settings = settings_of(frame)
    assert len(settings) == 2
    made = [score_tables(frame, setting, ["map@all"]) for setting in settings]
    files = write_report(ReportData(frame, store=store, resamples=50), store.root / "page")
    folders = {path.parent.name for path in files if path.suffix == ".png"}
    assert folders == {"setting-1", "setting-2"}
    assert sorted(tables[0].rows[0].scores["line"].value or 0 for tables in made) == [0.5, 0.9]
    assert sum(mark in setting.title() for setting in settings) == 1


def test_oracle_rows_stand_in_no_order_of_merit(store: ResultStore) -> None:
    for select in ("val", "oracle"):
        for method, value in (("a", 0.1), ("b", 0.9)):
            add(store, method, "line", value, select=select)
    frame = frame_of(store)
    made = {s.select: score_tables(frame, s, ["map@all"])[0] for s in settings_of(frame)}
    assert [row.label for row in made["val"].rows] == ["b", "a"]
    assert [row.label for row in made["oracle"].rows] == ["a", "b"]


def test_configs_of_one_method_are_rows_that_say_what_differs(store: ResultStore) -> None:
    for context in (4, 16):
        add(store, "coop", "line", context / 100, config={"context": context, "steps": 60})
    add(store, "pros", "line", 0.3, variant="official", config={"mask": False})
    frame = frame_of(store)
    table = score_tables(frame, settings_of(frame)[0], ["map@all"])[0]
    assert [row.label for row in table.rows] == ["pros (official)", "coop (context=16)", "coop (context=4)"]


def test_hostile_names_come_out_as_text(store: ResultStore, tmp_path: Path) -> None:
    name = "<b>x</b>|$a_1$\n[bold]`*"
    add(store, name, name, 0.5, protocol=name)
    add(store, "other", name, None, protocol=name, reason=name)
    frame = frame_of(store)
    lines = leaderboard_markdown(ReportData(frame)).splitlines()
    for line in lines:
        if line.startswith("| "):
            assert len(re.findall(r"(?<!\\)\|", line)) in (4, 5, 8), line
    assert not any("<b>" in line.replace("\\<b\\>", "") for line in lines)
    console = Console(width=200, record=True, file=io.StringIO())
    terminal.print_tables(console, ReportData(frame))
    text = console.export_text()
    assert "[bold]`*" in text
    assert not any(line.startswith("[bold]`*") for line in text.splitlines()), "a name is one line"
    assert next(csv.DictReader(io.StringIO(leaderboard_csv(ReportData(frame)))))["method"] == name
    problems: list[str] = []
    files = write_report(ReportData(frame, store=store, report=problems.append), tmp_path / "page")
    assert len(problems) == 1
    assert "no per-query values; not tested" in problems[0]
    assert "\n" not in problems[0]
    assert all(path.resolve().is_relative_to((tmp_path / "page").resolve()) for path in files)


def test_plots_are_written_and_legible(store: ResultStore, tmp_path: Path) -> None:
    fill(store)
    frame = frame_of(store)
    table = score_tables(frame, settings_of(frame)[0])[0]
    svg, png = plots.bars(table, tmp_path)
    image = Image.open(png)
    assert image.width == round(plots.COLUMN * 200)
    colours = {colour for _, colour in image.convert("RGB").getcolors(1 << 20) or []}
    for colour, _ in plots.MARKS[: len(table.columns)]:
        assert tuple(int(colour[i : i + 2], 16) for i in (1, 3, 5)) in colours
    first = svg.read_bytes()
    plots.bars(table, tmp_path)
    assert svg.read_bytes() == first, "the same scores give the same file"


def test_one_failing_plot_costs_no_table(store: ResultStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(store)

    def broken(table: ScoreTable, folder: Path) -> list[Path]:
        raise RuntimeError("no fonts")

    monkeypatch.setattr(plots, "bars", broken)
    lines: list[str] = []
    files = write_report(ReportData(frame_of(store), store=store, report=lines.append), tmp_path / "page")
    assert {"leaderboard.md", "leaderboard.csv", "leaderboard.tex", "pairs.csv", "index.html"} <= {
        path.name for path in files
    }
    assert [line for line in lines if "no fonts" in line] == [
        "plot of UCDR unseen: map@all left out: RuntimeError: no fonts"
    ]
    assert "This plot could not be drawn: RuntimeError: no fonts" in files[-1].read_text()


def test_an_empty_store_has_an_empty_leaderboard(tmp_path: Path) -> None:
    (tmp_path / "results").mkdir()
    frame = load_results(tmp_path / "results")
    assert settings_of(frame) == []
    assert "Leaderboard" in leaderboard_markdown(ReportData(frame))


def test_extensions_are_marked_where_the_paper_is_silent(store: ResultStore) -> None:
    for split in ("glyph", "line"):
        add(store, "native", split, 0.5)
        add(store, "guest", split, 0.4, extensions={"unseen": "source | only"})
        add(store, "guest", split, 0.3, protocol="uccdr")
    frame = frame_of(store)
    text = leaderboard_markdown(ReportData(frame))
    assert "| guest | 40.0† | 30.0 | n = 1 |" in text, "the mark is at the figure, by protocol"
    assert "| guest † | 40.0 | 40.0 | 40.0 | n = 1 |" in text
    assert "| guest | 30.0 | 30.0 | 30.0 |" in text
    assert "| native | 50.0 | 50.0 | 50.0 |" in text
    assert "| guest | UCDR | source \\| only |" in text
    rows = list(csv.DictReader(io.StringIO(leaderboard_csv(ReportData(frame)))))
    assert {(row["method"], row["protocol"], row["extension"]) for row in rows} == {
        ("native", "ucdr", ""),
        ("guest", "ucdr", "source | only"),
        ("guest", "uccdr", ""),
    }


def test_a_card_says_for_which_questions_it_goes_beyond_the_paper() -> None:
    from methods.ad_clip import AdClip
    from methods.pros import ProS
    from methods.registry import METHODS

    assert AdClip.card.extension("uda", "classification") == ""
    assert "retrieval embedding" in AdClip.card.extension("uda_inductive", "retrieval")
    assert ProS.card.extension("udcdr", "retrieval") == ""
    assert "source only" in ProS.card.extension("dazsl", "classification")
    protocols = ("ucdr", "uccdr", "udcdr", "uda", "dazsl", "dg")
    for name in METHODS.names():
        card = METHODS.get(name).card
        assert all(key.partition("/")[0] in protocols for key in card.extensions), name


CONFIG_A = {"config_hash": "aa", "tokenizer_hash": "bb", "preprocessing": {"size": 64}}
OTHERS = [{**CONFIG_A, "config_hash": "cc"}, {**CONFIG_A, "tokenizer_hash": ""}, {**CONFIG_A, "preprocessing": {}}]


@pytest.mark.parametrize("other", OTHERS)
def test_models_of_equal_weights_and_another_setup_do_not_share_a_table(
    store: ResultStore, other: dict[str, Any]
) -> None:
    add(store, "good", "flat", 0.5, created="2026-01-01", backbone_facts=CONFIG_A)
    add(store, "good", "flat", 0.2, created="2026-01-02", backbone_facts=other)
    frame = frame_of(store)
    by_identity = {one.identity: score_tables(frame, one)[0].rows[0].mean.value for one in settings_of(frame)}
    own = [backbone_identity(facts) for facts in (CONFIG_A, other)]
    assert by_identity == {own[0]: 0.5, own[1]: 0.2}
    titles = [one.title() for one in settings_of(frame)]
    assert len(set(titles)) == 2
    assert all(re.search(r"\(cdcdcdcd, setup [0-9a-f]{8}\)", title) for title in titles)
    text = leaderboard_csv(ReportData(frame))
    assert "identity" in text.splitlines()[0].split(",")
    assert all(f",{identity[:12]}," in text for identity in own)
    assert ",cdcdcdcdcdcd," in text, "hashes are shortened, and complete in the records"
    assert "cd" * 7 not in text


def test_records_that_do_not_state_the_setup_share_a_table_and_come_last(store: ResultStore) -> None:
    add(store, "good", "flat", 0.5, created="2026-01-01")
    add(store, "good", "flat", 0.4, created="2026-01-02", code=2)
    add(store, "good", "line", 0.3, backbone_facts={"preprocessing": {"size": 64}})
    assert [one.identity for one in settings_of(frame_of(store))] == [""]
    assert "identity" not in leaderboard_csv(ReportData(frame_of(store))).splitlines()[0].split(",")
    add(store, "good", "flat", 0.2, backbone_facts=CONFIG_A)
    frame = frame_of(store)
    assert [one.identity for one in settings_of(frame)] == [backbone_identity(CONFIG_A), ""]
    assert score_tables(frame, settings_of(frame)[1])[0].rows[0].scores["flat"].value == 0.4


@pytest.mark.parametrize("width", [10, 40, 60, 200])
def test_no_figure_is_broken_over_two_lines(width: int) -> None:
    head = ["map@all", *(f"UCDR column {n}" for n in range(6))]
    rows = [["a method (floor)", *(f"{n}2.5 \u00b1 0.{n}" for n in range(6))], ["b", *("1.0" for _ in range(6))]]
    console = Console(file=io.StringIO(), width=width, record=True)
    terminal.print_lines(console, "title", head, rows)
    text = console.export_text()
    for figure in (*rows[0][1:], *head[1:]):
        assert any(figure in line for line in text.splitlines()), figure
    made = terminal.blocks(head, rows, width)
    assert [place for block in made for place in block[1:]] == list(range(1, 7))
    assert all(block[0] == 0 for block in made)
    if width >= 40:
        assert max(map(len, text.splitlines())) <= width
    assert len(made) == {10: 6, 200: 1}.get(width, len(made))
