"""``benchmarks.compare``: planted drops are found, noise is not, and what cannot be compared is said in one line."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from benchmarks import cli
from benchmarks.compare import main
from benchmarks.evaluation.statistics import holm
from benchmarks.reporting.store_comparison import CELL_COLUMNS, UNLIKE, compare_stores
from benchmarks.store.files import ResultStore
from tests.support.made_up_results import CLASSES, PER_CLASS, add, retrieval_table, zero_shot_table

ROOT = Path(__file__).parents[2]
N = CLASSES * PER_CLASS
OF_CLASS = np.arange(N) // PER_CLASS


def ap(seed: int, shift: float | np.ndarray = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.clip(0.5 + shift + 0.1 * rng.standard_normal(CLASSES)[OF_CLASS] + 0.1 * rng.random(N), 0, 1)


@pytest.fixture
def old(tmp_path: Path) -> ResultStore:
    return ResultStore(tmp_path / "old")


@pytest.fixture
def new(tmp_path: Path) -> ResultStore:
    return ResultStore(tmp_path / "new")


def fill(old: ResultStore, new: ResultStore) -> None:
    """Four cells: one lost five points in every class, one gained, one changed by luck only, one not at all."""
    luck = 0.1 * np.random.default_rng(5).standard_normal(CLASSES)[OF_CLASS]
    for number, (split, change) in enumerate(
        (("drop", -0.05), ("gain", 0.05), ("luck", luck - luck.mean()), ("same", 0.0))
    ):
        add(old, "pros", split, retrieval_table(ap(number)))
        add(new, "pros", split, retrieval_table(ap(number, change)), code=2)


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    code = main([str(argument) for argument in arguments])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_a_planted_drop_fails_the_command(
    old: ResultStore, new: ResultStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(old, new)
    table = tmp_path / "out" / "diff.csv"
    code, out, err = run(capsys, old.root, new.root, "--out", table)
    assert (code, err) == (1, "")
    assert re.search(r"pros +tiny UCDR drop, unseen, seed 0 +map@all +\d\d\.\d +\d\d\.\d +-5\.0 .*DROP", out)
    assert re.search(r"tiny UCDR gain, .*\+5\.0 .*GAIN", out)
    assert "4 cells compared, in percent; 1 significant drop and 1 gain of more than 1 " in out
    assert table.read_text().splitlines()[0] == ",".join(CELL_COLUMNS)
    written = pd.read_csv(table).set_index("split")
    assert written["verdict"].fillna("").to_dict() == {"drop": "drop", "gain": "gain", "luck": "", "same": ""}
    assert written["difference"].to_dict() == pytest.approx({"drop": -0.05, "gain": 0.05, "luck": 0.0, "same": 0.0})
    assert written["p_holm"].to_numpy() == pytest.approx(holm(written["p"]))
    assert written["p"]["same"] == 1.0
    assert (written["low"] <= written["difference"] + 1e-12).all()


def test_threshold_and_alpha_decide(old: ResultStore, new: ResultStore, capsys: pytest.CaptureFixture[str]) -> None:
    fill(old, new)
    assert run(capsys, old.root, new.root, "--threshold", 0.06)[0] == 0
    assert run(capsys, old.root, new.root, "--threshold", 0.04)[0] == 1
    assert run(capsys, old.root, new.root, "--alpha", 0.0005)[0] == 0, "twelve classes reach no smaller p than 2^-11"


def test_a_large_change_by_luck_is_no_drop(
    old: ResultStore, new: ResultStore, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two points lost on average, but by one class alone: no evidence about classes."""
    change = np.where(OF_CLASS == 0, -0.4, 0.0)
    add(old, "pros", "line", retrieval_table(ap(0)))
    add(new, "pros", "line", retrieval_table(ap(0, change)))
    found = compare_stores(old, new)
    assert found.cells["difference"][0] < -0.02
    assert found.cells["p"][0] == 1.0
    assert run(capsys, old.root, new.root)[0] == 0


def test_a_store_equals_itself(old: ResultStore, capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (0, 1):
        add(old, "pros", "line", retrieval_table(ap(seed)), seed=seed)
    code, out, _ = run(capsys, old.root, old.root)
    assert code == 0
    assert "2 cells compared" in out
    assert "0 not compared" in out


def test_a_cell_that_lost_its_score_fails_the_command(
    old: ResultStore, new: ResultStore, capsys: pytest.CaptureFixture[str]
) -> None:
    for store in (old, new):
        add(store, "pros", "line", retrieval_table(ap(0)))
    add(old, "pros", "gone", retrieval_table(ap(0)))
    add(new, "pros", "added", retrieval_table(ap(0)), select="oracle", rules="official")
    add(old, "pros", "crash", retrieval_table(ap(0)))
    add(new, "pros", "crash", None, reason="RuntimeError: boom\n[red]")
    add(old, "pros", "both crash", None)
    add(new, "pros", "both crash", None)
    code, out, _ = run(capsys, old.root, new.root)
    assert code == 1, "what no longer runs is no better than what runs worse"
    assert "LOST, only in OLD: pros on tiny/ucdr/gone, unseen, seed 0: not in the other store\n" in out
    assert (
        "\nonly in NEW: pros on tiny/ucdr/added, unseen, seed 0, official rules, oracle: not in the other store\n"
        in out
    )
    reason = "failed in the new store: RuntimeError: boom [red]"
    assert f"LOST, only in OLD: pros on tiny/ucdr/crash, unseen, seed 0: {reason}\n" in out
    assert "both crash" not in out
    assert "1 cell compared" in out
    assert "3 not compared, 2 of them lost" in out
    code, out, _ = run(capsys, old.root, new.root, "--partial")
    assert code == 1, "a failure is no part of a partial run"
    assert "\nonly in OLD: pros on tiny/ucdr/gone" in out
    assert "3 not compared, 1 of them lost" in out
    for path in [path for path in new.paths() if "-crash-" in path.name]:
        path.unlink()
    assert run(capsys, old.root, new.root)[0] == 1
    assert run(capsys, old.root, new.root, "--partial")[0] == 0


def test_a_method_that_cannot_be_planned_any_more_is_no_part_of_a_partial_run(
    old: ResultStore, new: ResultStore, capsys: pytest.CaptureFixture[str]
) -> None:
    for store in (old, new):
        add(store, "pros", "line", retrieval_table(ap(0)))
    add(old, "coop", "line", retrieval_table(ap(1)))
    assert run(capsys, old.root, new.root, "--partial")[0] == 0
    add(new, "coop", "*", None, reason="ImportError: no module", galleries=("*",))
    code, out, _ = run(capsys, old.root, new.root, "--partial")
    assert code == 1
    where = "LOST, only in OLD: coop on tiny/ucdr/line, unseen, seed 0"
    assert f"{where}: failed in the new store: ImportError: no module" in out
    assert "1 of them lost" in out


def test_a_switched_factor_is_no_other_config_of_the_same_cell(old: ResultStore, new: ResultStore) -> None:
    for store, factor, shift in ((old, "no_mask", 0.0), (new, "no_units", -0.3)):
        add(store, "pros", "line", retrieval_table(ap(0)))
        add(store, "pros", "line", retrieval_table(ap(0, shift)), config={"off": factor}, ablation=factor)
    found = compare_stores(old, new)
    assert found.cells["ablation"].tolist() == [""]
    assert found.drops.empty
    assert found.lost["ablation"].tolist() == ["no_mask"]


def test_other_queries_are_not_compared(old: ResultStore, new: ResultStore, capsys: pytest.CaptureFixture[str]) -> None:
    add(old, "pros", "same", retrieval_table(ap(0)))
    add(new, "pros", "same", retrieval_table(ap(0)))
    add(old, "pros", "fewer", retrieval_table(ap(0)))
    add(new, "pros", "fewer", retrieval_table(ap(0)[:-PER_CLASS]), limit=33)
    add(old, "pros", "bare", retrieval_table(ap(0)), per_query=False)
    add(new, "pros", "bare", retrieval_table(ap(0)))
    code, out, _ = run(capsys, old.root, new.root)
    assert code == 1
    assert re.search(
        r"LOST, not comparable: pros on tiny/ucdr/fewer, .* the queries differ \(36 in the old store, 33", out
    )
    assert re.search(r"not comparable: pros on tiny/ucdr/bare, .* old store: .* has no per-query values", out)
    assert "1 cell compared" in out


def test_a_changed_config_is_paired_and_named(old: ResultStore, new: ResultStore) -> None:
    add(old, "pros", "line", retrieval_table(ap(0)), config={"steps": 60, "depth": 2})
    add(new, "pros", "line", retrieval_table(ap(0)), config={"steps": 80, "depth": 2}, backbone="picto-clip-v2")
    cells = compare_stores(old, new).cells
    assert cells["changed"].tolist() == ["steps: 60 -> 80; backbone: picto-clip-v1 -> picto-clip-v2"]


def test_several_configs_pair_with_their_like(old: ResultStore, new: ResultStore) -> None:
    for steps in (10, 20):
        add(old, "pros", "line", retrieval_table(ap(steps)), config={"steps": steps})
    for steps in (20, 10, 30):
        add(new, "pros", "line", retrieval_table(ap(steps)), config={"steps": steps}, code=2)
    found = compare_stores(old, new)
    assert found.cells["difference"].tolist() == [0.0, 0.0]
    assert found.cells["changed"].tolist() == ["", ""]
    assert found.unpaired[["store", "reason"]].to_numpy().tolist() == [["new", "not in the other store"]]
    for steps in (40, 50):
        add(old, "coop", "line", retrieval_table(ap(steps)), config={"steps": steps})
        add(new, "coop", "line", retrieval_table(ap(steps)), config={"steps": steps + 1})
    found = compare_stores(old, new)
    assert set(found.cells["method"]) == {"pros"}
    assert found.unpaired["reason"].tolist().count("several configs, none alike") == 4
    assert set(found.lost["why"]) == {UNLIKE}, "they are there, so a partial run has lost them too"


def test_galleries_and_classifications_are_cells(old: ResultStore, new: ResultStore) -> None:
    for store, shift in ((old, 0.0), (new, -0.1)):
        galleries = [retrieval_table(ap(1), "unseen"), retrieval_table(ap(1, shift), "mixed")]
        add(store, "pros", "line", pd.concat(galleries))
        rng = np.random.default_rng(0)
        credit = (rng.random(N) < 0.8 + 5 * shift).astype(float)
        add(store, "pros", "line to flat", zero_shot_table(credit, 8), protocol="dazsl")
    cells = compare_stores(old, new).cells.set_index("gallery")
    assert cells["metric"].to_dict() == {"unseen": "map@all", "mixed": "map@all", "target": "h[image]"}
    assert cells["verdict"].to_dict() == {"unseen": "", "mixed": "drop", "target": "drop"}
    assert cells["difference"]["target"] == pytest.approx(cells["new"]["target"] - cells["old"]["target"])


def test_metrics_can_be_named(old: ResultStore, new: ResultStore, capsys: pytest.CaptureFixture[str]) -> None:
    fill(old, new)
    found = compare_stores(old, new, metrics=["recall@1", "map@all"])
    assert sorted(found.cells["metric"]) == ["map@all"] * 4 + ["recall@1"] * 4
    assert found.cells["p_holm"].to_numpy() == pytest.approx(holm(found.cells["p"]))
    code, out, _ = run(capsys, old.root, new.root, "--metric", "recall@1, map@all", "--threshold", 0.5)
    assert code == 0
    assert "8 cells compared" in out


def test_unusable_input_is_one_line(
    old: ResultStore, new: ResultStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    add(old, "pros", "line", retrieval_table(ap(0)))
    add(new, "pros", "line", retrieval_table(ap(0)), seed=7)
    (tmp_path / "empty").mkdir()
    blocked = tmp_path / "file"
    blocked.write_text("")
    for arguments, message in (
        ((old.root, tmp_path / "nowhere"), "nowhere is not a results folder"),
        ((tmp_path / "empty", old.root), "empty holds no readable record"),
        ((old.root, new.root), "have no cell with a score in common"),
        (
            (old.root, old.root, "--metric", "map@7"),
            "no paired cell has the metric map@7; there are: map@all, recall@1",
        ),
        ((old.root, old.root, "--threshold", "-1"), "threshold=-1.0 must be from 0 to 1: a fraction"),
        ((old.root, old.root, "--threshold", "1.5"), "threshold=1.5 must be from 0 to 1: a fraction, 0.01 is one perc"),
        ((old.root, old.root, "--threshold", "nan"), "threshold=nan must be from 0 to 1"),
        ((old.root, old.root, "--metric", ""), "--metric names no metric"),
        ((old.root, old.root, "--metric", " , "), "--metric names no metric"),
        ((old.root, old.root, "--alpha", "0"), "alpha=0.0 must be between 0 and 1"),
        ((old.root, old.root, "--out", blocked / "x.csv"), "name a file that can be written"),
    ):
        code, out, err = run(capsys, *arguments)
        assert (code, out) == (2, ""), arguments
        assert len(err.splitlines()) == 1
        assert err.startswith("benchmarks.compare: ")
        assert message in err
    for empty in (["--out", ""], ["--out", " "]):
        with pytest.raises(SystemExit) as stopped:
            main([str(old.root), str(old.root), *empty])
        assert stopped.value.code == 2
        assert "--out: is empty; name one, or leave the option out" in capsys.readouterr().err
    for folders in (["", str(old.root)], [str(old.root), ""]):
        with pytest.raises(SystemExit):
            main(folders)
        assert "is empty; name a folder" in capsys.readouterr().err
    with pytest.raises(SystemExit) as stopped:
        main([str(old.root)])
    assert stopped.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_damaged_record_is_reported_and_left_out(
    old: ResultStore, new: ResultStore, capsys: pytest.CaptureFixture[str]
) -> None:
    for store in (old, new):
        for split in ("line", "glyph"):
            written = add(store, "pros", split, retrieval_table(ap(0), domain=split))
    new.path(written.cell, written.key).with_suffix(".parquet").write_bytes(b"cut")
    code, out, err = run(capsys, old.root, new.root)
    assert code == 1
    assert "was altered or cut; run its command again, or delete the file" in err
    assert "LOST, only in OLD: pros on tiny/ucdr/glyph" in out
    assert "1 cell compared" in out


@pytest.mark.parametrize("side", ["old", "new"])
def test_a_damaged_record_of_either_folder_fails_the_command(
    old: ResultStore, new: ResultStore, capsys: pytest.CaptureFixture[str], side: str
) -> None:
    """Lost from OLD, a cell has nothing to lose; lost from NEW alone, nothing to compare with: neither may pass."""
    for store in (old, new):
        add(store, "pros", "line", retrieval_table(ap(0)))
    damaged = old if side == "old" else new
    written = add(damaged, "pros", "glyph", retrieval_table(ap(0)))
    assert run(capsys, old.root, new.root, "--partial")[0] == 0
    damaged.path(written.cell, written.key).write_text("{")
    code, out, err = run(capsys, old.root, new.root, "--partial")
    assert code == 1
    assert "0 of them lost" in out
    assert "run its command again, or delete the file" in err
    assert err.endswith("unreadable records: 1; each is named above\n")


def test_a_store_of_damaged_records_holds_none(
    old: ResultStore, new: ResultStore, capsys: pytest.CaptureFixture[str]
) -> None:
    for store in (old, new):
        written = add(store, "pros", "line", retrieval_table(ap(0)))
    new.path(written.cell, written.key).write_text("{")
    code, _, err = run(capsys, old.root, new.root)
    assert code == 2
    assert f"benchmarks.compare: {new.root} holds no readable record" in err


def test_a_gallery_or_metric_that_went_is_lost(
    old: ResultStore, new: ResultStore, capsys: pytest.CaptureFixture[str]
) -> None:
    both = pd.concat([retrieval_table(ap(1), "unseen"), retrieval_table(ap(1), "mixed")])
    add(old, "pros", "line", both, galleries=("unseen", "mixed"))
    add(new, "pros", "line", retrieval_table(ap(1), "unseen"))
    for partial in ([], ["--partial"]):
        code, out, _ = run(capsys, old.root, new.root, *partial)
        assert code == 1
        assert (
            "LOST, only in OLD: pros on tiny/ucdr/line, mixed, seed 0: its record in the new store has no such gal"
            in out
        )
        assert "1 cell compared" in out
    written = add(new, "pros", "line", both, galleries=("unseen", "mixed"))
    assert run(capsys, old.root, new.root)[0] == 0
    path = new.path(written.cell, written.key)
    data = json.loads(path.read_text())
    del data["scores"]["mixed"]["metrics"]["map@all"]
    path.write_text(json.dumps(data))
    for asked in ([], ["--metric", "map@all"]):
        code, out, _ = run(capsys, old.root, new.root, *asked)
        assert code == 1
        assert (
            "LOST, not comparable: pros on tiny/ucdr/line, mixed, seed 0: map@all: its record in the new store" in out
        )
        assert "1 cell compared" in out
    assert run(capsys, old.root, new.root, "--metric", "recall@1")[0] == 0
    code, out, _ = run(capsys, new.root, old.root)
    assert code == 1, "a leading metric without a value is nothing that a gate could judge"
    assert "map@all: its record in the old store has no such metric" in out


def test_a_folder_that_cannot_be_read_is_not_blamed_on_out(
    old: ResultStore, new: ResultStore, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for store in (old, new):
        add(store, "pros", "line", retrieval_table(ap(0)))
    real = os.scandir

    def closed(path: str | Path = ".") -> object:
        if path == new.root:
            raise PermissionError(13, "Permission denied", str(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", closed)
    assert run(capsys, old.root, new.root) == (
        2,
        "",
        f"benchmarks.compare: {new.root}: cannot be read (Permission denied): give yourself access\n",
    )


def test_hostile_names_come_out_as_text(old: ResultStore, new: ResultStore, capsys: pytest.CaptureFixture[str]) -> None:
    name = "[bold]x[/]\n<b>"
    for store in (old, new):
        add(store, name, name, retrieval_table(ap(0)), protocol=name)
    add(old, name, "gone", retrieval_table(ap(0)))
    code, out, _ = run(capsys, old.root, new.root, "--partial")
    assert code == 0
    assert "[bold]x[/] <b>" in out
    assert "only in OLD: [bold]x[/] <b> on tiny/ucdr/gone" in out


def test_the_installed_command_is_the_same(
    old: ResultStore, new: ResultStore, capsys: pytest.CaptureFixture[str]
) -> None:
    fill(old, new)
    assert cli.main(["compare", str(old.root), str(new.root)]) == 1
    assert cli.main(["compare", str(old.root), str(new.root / "nowhere")]) == 2
    assert capsys.readouterr().err.startswith("ucdr-bench compare: ")


def test_it_runs_as_a_module_and_help_loads_nothing_heavy(old: ResultStore) -> None:
    add(old, "pros", "line", retrieval_table(ap(0)))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}

    def python(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, *arguments]
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=300)

    helped = python("-X", "importtime", "-m", "benchmarks.compare", "--help")
    assert helped.returncode == 0
    assert "exit code: 0 no significant drop" in helped.stdout
    lines = [line for line in helped.stderr.splitlines() if line.startswith("import time:")]
    assert not {line.rpartition("|")[2].strip() for line in lines} & {"torch", "scipy", "pandas", "numpy"}
    done = python("-X", "importtime", "-m", "benchmarks.compare", str(old.root), str(old.root))
    assert done.returncode == 0
    assert not re.search(r"\| +torch$", done.stderr, flags=re.MULTILINE), "comparing needs no torch"


def test_copies_of_a_store_are_the_same_store(old: ResultStore, new: ResultStore, tmp_path: Path) -> None:
    fill(old, new)
    shutil.copytree(new.root, tmp_path / "copy")
    one, other = (compare_stores(old, store).cells for store in (new, ResultStore(tmp_path / "copy")))
    pd.testing.assert_frame_equal(one, other)
    back = compare_stores(new, old).cells.set_index("split")
    there = one.set_index("split")
    assert back["p"].to_dict() == there["p"].to_dict()
    assert back["difference"].to_dict() == pytest.approx((-there["difference"]).to_dict())
