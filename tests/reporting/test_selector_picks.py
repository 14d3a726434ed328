"""The table of what each way to select would have picked, from records and from a run of the documented command."""

from __future__ import annotations

import dataclasses
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from benchmarks import load_results
from benchmarks.reporting.data import ReportData
from benchmarks.reporting.grids import SELECTION_NOTE, selection_grid
from benchmarks.reporting.markdown import leaderboard_markdown
from benchmarks.reporting.page import render
from benchmarks.reporting.selector_picks import SelectorPicks, means_over_methods, picked, picks
from benchmarks.run import main as run
from benchmarks.store.files import ResultStore
from benchmarks.store.records import Fit, Record
from tests.docs.test_documents import example
from tests.reporting.conftest import add, zero_shot_table


def checkpoint(step: int, stage: str = "all", **values: Any) -> dict[str, Any]:
    return {"stage": stage, "step": step, **values}


#: Source validation picks step 1, im step 2 (the first of two equal ones), dev step 3, which is the best.
STEPS = [
    checkpoint(1, val=0.9, im=0.1, dev=-3.0, oracle=0.5),
    checkpoint(2, val=0.8, im=0.7, dev=-2.0, oracle=0.6),
    checkpoint(3, val=0.7, im=0.7, dev=-1.0, oracle=0.8),
    checkpoint(4, val=0.6, im=None, dev=-4.0, oracle=0.4),
]


def test_a_pick_is_the_first_best_and_its_score_the_test_score() -> None:
    assert picked(STEPS) == {"oracle": 0.8, "val": 0.5, "last": 0.4, "im": 0.6, "dev": 0.8}
    assert "last" not in picked(STEPS, last=False)
    assert picked([]) == picked([checkpoint(1, val=0.5)]) == {}


def stored(store: ResultStore, method: str, checkpoints: list[Any], seed: int = 0, **fit: Any) -> Record:
    record = add(store, method, zero_shot_table(0.5, seed), protocol="dazsl", split="line to pixel", seed=seed)
    record = dataclasses.replace(record, fit=Fit(fit_id="a", checkpoints=checkpoints, **fit))
    return store.write(record, zero_shot_table(0.5, seed))


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    store = ResultStore(tmp_path / "results")
    better = [one | {"oracle": one["oracle"] + 0.1} for one in STEPS]
    first = [checkpoint(9, "first", val=1.0, im=9.0, dev=0.0, oracle=1.0)]  # an earlier stage is no finished model
    stored(store, "good", [*first, *STEPS])
    trials = [{"learning_rate": rate, "checkpoints": part} for rate, part in ((0.1, STEPS[:2]), (1.0, STEPS[2:]))]
    stored(store, "good", better, seed=1, trials=trials)
    stored(store, "plain", [])
    return store


def test_rows_are_means_over_fits_and_the_trials_of_a_search(store: ResultStore) -> None:
    (setting,) = ReportData(load_results(store.root), store=store).settings
    steps, rates = setting.selector_picks
    assert (steps.method, steps.question, steps.over) == ("good", "target", "steps")
    assert (steps.fits, steps.checkpoints) == (2, 4)
    assert steps.scores == pytest.approx({"oracle": 0.85, "val": 0.55, "last": 0.45, "im": 0.65, "dev": 0.85})
    assert steps.regret("val") == pytest.approx(0.3) and steps.regret("dev") == 0
    assert (rates.over, rates.fits, rates.checkpoints) == ("rates and steps", 1, 4)
    assert rates.scores == pytest.approx({"oracle": 0.8, "val": 0.5, "im": 0.6, "dev": 0.8})


def test_the_report_has_the_table_where_there_are_checkpoints(store: ResultStore, tmp_path: Path) -> None:
    data = ReportData(load_results(store.root), store=store)
    text = leaderboard_markdown(data)
    assert "### What each way to select would have picked" in text and SELECTION_NOTE in text
    scores = "85.0 | 55.0 (-30.0) | 45.0 (-40.0) | 65.0 (-20.0) | 85.0 (-0.0)★"
    assert f"| good | DAZSL target | steps | 4 / 2 | {scores} |" in text
    assert "| good | DAZSL target | rates and steps | 4 / 1 | 80.0 | 50.0 (-30.0) | - | 60.0 (-20.0) |" in text
    page = render(data)
    assert "What each way to select would have picked" in page
    empty = ResultStore(tmp_path / "other")
    stored(empty, "plain", [])
    assert "each way to select" not in leaderboard_markdown(ReportData(load_results(empty.root), store=empty))


def test_only_a_method_with_checkpoints_has_a_row(store: ResultStore) -> None:
    records = [record for record in store.records() if record.cell.method == "plain"]
    assert records and picks("plain", "dazsl", records) == []
    lone = [dataclasses.replace(record, fit=Fit(fit_id="a", checkpoints=STEPS[:1])) for record in records]
    assert picks("plain", "dazsl", lone) == [], "one checkpoint leaves nothing to choose"
    assert selection_grid([]).rows == ()


def test_the_documented_command_makes_the_table(
    tiny_dataset: type, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    command = example("protocols.md", "selectors", "sh")
    found = re.fullmatch(r"python -m benchmarks.run (.*)\n", command)
    assert found is not None
    arguments = shlex.split(found[1])
    arguments[arguments.index("--out") + 1] = str(tmp_path)
    small = ["--datasets", "tiny", "--backbone", str(tiny_folder), "--preset", "smoke", "--jobs", "1"]
    assert run([*arguments, *small, "--set", "steps=4", "--set", "validate_every=2"]) == 0
    text = (tmp_path / "report" / "leaderboard.md").read_text()
    table = text.partition("### What each way to select would have picked")[2].partition("###")[0]
    rows = [line for line in table.splitlines() if line.startswith(("| coop", "| ad_clip"))]
    assert len(rows) == 4 and all("steps" in row for row in rows)
    head = next(line for line in table.splitlines() if line.startswith("| method"))
    columns = "oracle | val | last | im | snd | bnm | entropy | dev"
    assert f"checkpoints / fits | {columns} |" in head


def test_the_mean_over_methods_has_what_all_of_them_have() -> None:
    common = {"protocol": "uda", "question": "target", "over": "steps"}
    one = SelectorPicks("a", "a", **common, fits=1, checkpoints=4, scores={"oracle": 0.8, "val": 0.5, "im": 0.6})
    other = SelectorPicks("b", "b", **common, fits=3, checkpoints=8, scores={"oracle": 0.6, "val": 0.6})
    lone = SelectorPicks("a", "a", "dazsl", "target", "steps", 1, 4, {"oracle": 0.5, "val": 0.5})
    (mean,) = means_over_methods([one, lone, other])
    assert (mean.label, mean.protocol, mean.fits, mean.checkpoints) == ("mean of 2 methods", "uda", 4, 7.0)
    assert mean.scores == pytest.approx({"oracle": 0.7, "val": 0.55}), "methods count equally, not fits"
    assert selection_grid([one, other]).rows[-1].cells[0].text == "mean of 2 methods"
