"""Ablations: one factor at a time around the default, as ordinary records; and the estimate of a dry run."""

from __future__ import annotations

import dataclasses
import itertools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import benchmarks
from benchmarks import ablate, cli, run
from benchmarks.console import duration
from benchmarks.evaluation.statistics import mean_over_seeds
from benchmarks.reporting.ablation_tables import ablation_tables
from benchmarks.reporting.plot_collector import PlannedPlots
from benchmarks.reporting.tables import settings_of
from benchmarks.runner.ablation_plan import AblationPlan, plan_ablation
from benchmarks.runner.estimate import PastCosts, estimate
from benchmarks.runner.plan import plan, search_inputs, search_key
from benchmarks.runner.presets import PRESETS, Preset
from benchmarks.runner.resources import Resources
from benchmarks.runner.settings import Settings, SettingsError, resolve
from benchmarks.store.files import ResultStore
from benchmarks.store.records import Cost, Record, Search
from methods.registry import METHODS
from tests.support.every import METHOD_NAMES
from tests.support.learners import learners
from tests.support.made_up_results import CLASSES, PER_CLASS, add, retrieval_table

Command = Callable[..., int]


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    with learners():
        yield


@pytest.fixture
def options(tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr(
        "benchmarks.reporting.plot_collector.draw_setting", lambda _, collector: PlannedPlots(collector)
    )
    fixed = ["--backbone", str(tiny_folder), "--datasets", "tiny", "--preset", "full", "--jobs", "1", "--threads", "1"]
    return [*fixed, "--out", str(tmp_path / "results")]


def test_one_factor_at_a_time_around_the_default(
    options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    options += ["--methods", "learner,random", "--protocols", "ucdr"]
    assert run.main(options) == 0
    capsys.readouterr()
    assert ablate.main([*options, "--grid", "learning_rate=0.25,0.5"]) == 0
    printed = capsys.readouterr()
    assert "skipped: random: nothing to switch" in printed.err
    assert "cells: 3 cached, 9 ok" in printed.out, "the default's row was there, 0.5 is the default"
    frame = benchmarks.load_results(tmp_path / "results")
    frame = frame[(frame["method"] == "learner") & (frame["metric"] == "map@all") & (frame["gallery"] == "unseen")]
    assert frame.groupby("ablation").size().to_dict() == {"": 3, "still": 3, "centred": 3, "learning_rate=0.25": 3}
    configs = {name: json.loads(part["config"].iloc[0]) for name, part in frame.groupby("ablation")}
    usual = configs.pop("")
    for name, changed in (("still", {"learning_rate": 0.0}), ("centred", {"centre": True})):
        assert configs[name] == usual | changed
    means = frame.groupby("ablation")["value"].mean() * 100
    row = f"centred {means['centred']:.1f} ({means['centred'] - means['']:+.1f})".split()
    lines = [line.split() for line in printed.out.splitlines()]
    assert any(line[: len(row)] == row for line in lines)
    assert any(line[:2] == ["default", f"{means['']:.1f}"] for line in lines)
    assert ablate.main([*options, "--factors", "still"]) == 0
    assert "cells: 6 cached" in capsys.readouterr().out
    assert cli.main(["ablate", *options, "--factors", "none", "--grid", "learner.steps=5", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "6 cells, 3 cached, 3 fits to do" in printed
    assert sum(line.startswith("to run  tiny  ucdr  ") and "  learner  steps=5  s0  " in line
               for line in printed.splitlines()) == 3  # fmt: skip


def test_a_failed_arm_is_shown_and_never_averaged(
    tmp_path: Path, options: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    from tests.support.learners import Learner

    real = Learner.fit

    def failing(self: Learner, data: Any, *, seed: int, log: Any) -> Any:
        if self.config.centre and "line" not in data.domain_names:
            raise RuntimeError("planted")
        return real(self, data, seed=seed, log=log)

    monkeypatch.setattr(Learner, "fit", failing)
    assert ablate.main([*options, "--methods", "learner", "--protocols", "ucdr"]) == 1
    frame = benchmarks.load_results(tmp_path / "results")
    (table,) = ablation_tables(frame, settings_of(frame)[0])
    assert list(table.scores) == ["default", "centred", "still"]
    first = table.questions[0]
    assert table.difference("still", first) is not None
    assert table.scores["centred"][first].text() == "incomplete"
    assert "failed: learner on tiny/ucdr/line, seed 0, centred: RuntimeError: planted" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--factors", "stil"], "--factors: no method of this run has 'stil'; did you mean still?"),
        (["--grid", "steps"], "--grid steps: write KEY=V1,V2"),
        (["--grid", "setps=1,2"], "--grid setps: no method of this run has that setting; did you mean steps"),
        (["--grid", "steps=few"], "--grid learner.steps takes a whole number"),
        (["--grid", "learner.steps=[1, 2]"], "--grid learner.steps takes a whole number (default 3), not [1, 2]"),
        (["--factors", ""], "--factors: name at least one, all, or none"),
        (["--factors", " , "], "--factors: name at least one, all, or none"),
        (["--factors", "none"], "--factors none: switches nothing without --grid"),
        (["--data-root", "/nope2"], "--data-root /nope2 is not a folder"),
        (["--dry-run", "--data-root", "/nope2"], "--data-root /nope2 is not a folder"),
    ],
)
def test_a_wrong_factor_is_one_line(
    options: list[str], capsys: pytest.CaptureFixture, arguments: list[str], message: str
) -> None:
    assert ablate.main([*options, "--methods", "learner", *arguments]) == 2
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert message in line


@pytest.mark.parametrize("preset", ["quick", "standard", "full"])
def test_every_table_of_every_method_makes_configs(preset: str) -> None:
    """Each factor of the shipped methods changes something under each preset, and by default runs where it should."""
    made: AblationPlan = plan_ablation(
        resolve({"methods": ",".join(METHOD_NAMES), "preset": preset}), own_protocols=True
    )
    for name in METHOD_NAMES:
        table = getattr(METHODS.get(name), "ablations", {})
        assert [arm.name for arm in made.arms[name]] == (["", *table] if table else [])
        assert (name in made.skipped) == (not table)
    protocols = {name: set(arms[0].protocols or ()) for name, arms in made.arms.items() if arms}
    assert {"ucdr", "uccdr", "udcdr"} <= protocols["pros"]
    assert "dazsl" not in protocols["pros"]
    assert "uda" in protocols["ad_clip"]
    assert protocols["sre_clip"] & {"ucdr", "uda", "dazsl"} == {"dazsl"}
    with pytest.raises(SettingsError, match="no method of this run"):
        plan_ablation(resolve({"methods": "pros"}), ["no_gcn"])


def test_a_grid_holds_lists_words_and_the_rate_that_a_search_would_pick() -> None:
    settings = resolve({"methods": "coop,sre_clip", "preset": "standard"})
    usual = METHODS.get("coop").Config().learning_rate
    grid = [f"coop.learning_rate={usual}", "eval_attention=self,reference", 'template="{context}, {name}","{name}"']
    arms = plan_ablation(settings, ["none"], grid).arms
    assert [arm.name for arm in arms["coop"]] == [
        "", f"learning_rate={usual}", "template={context}, {name}", "template={name}"
    ]  # fmt: skip
    assert [arm.name for arm in arms["sre_clip"]] == ["", "eval_attention=self"], "reference is the default"


def test_a_method_that_cannot_be_imported_costs_no_other_its_ablations() -> None:
    METHODS.add("gone", "nowhere:Gone")
    try:
        made = plan_ablation(resolve({"methods": "gone,learner"}))
    finally:
        METHODS.remove("gone")
    assert [arm.name for arm in made.arms["learner"]] == ["", "still", "centred"]


def test_arms_hang_from_the_default_they_were_switched_in(tmp_path: Path) -> None:
    """Two budgets in one store, and an arm that one query domain and one seed are missing of."""
    store = ResultStore(tmp_path)
    rng = np.random.default_rng(0)
    values: dict[tuple[str, int, int, str], float] = {}
    for steps, factor, seed, split in itertools.product((3, 9), ("", "centred"), (0, 1), ("line", "glyph")):
        if (factor, seed, split) == ("centred", 1, "glyph") and steps == 9:
            continue
        table = retrieval_table(rng.random(CLASSES * PER_CLASS), domain=split)
        config = {"steps": steps, "centre": factor == "centred"}
        add(store, "learner", split, table, seed=seed, config=config, ablation=factor)
        values[factor, steps, seed, split] = table["ap@all"].mean()
    add(store, "learner", "line", retrieval_table(np.ones(36)), config={"steps": 3, "still": True}, ablation="still")
    frame = benchmarks.load_results(tmp_path)
    few, many = ablation_tables(frame, settings_of(frame)[0])
    assert (few.method, many.method, few.owner) == ("learner (steps=3)", "learner (steps=9)", "learner")
    question = few.questions[0]
    mean = {
        factor: np.mean([values[factor, 3, seed, split] for seed in (0, 1) for split in ("line", "glyph")])
        for factor in ("", "centred")
    }
    found = few.difference("centred", question)
    assert found is not None
    assert found.mean == pytest.approx(mean["centred"] - mean[""])
    by_seed = [
        np.mean([values["centred", 3, seed, split] - values["", 3, seed, split] for split in ("line", "glyph")])
        for seed in (0, 1)
    ]
    expected = mean_over_seeds(by_seed)
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high))
    assert few.change("centred", question) == f"{100 * found.mean:+.1f} ± {50 * (expected.high - expected.low):.1f}"
    assert few.change("default", question) == few.change("still", question) == ""
    assert few.scores["still"][question].text() == "incomplete", "no mean over one of two query domains"
    assert few.difference("still", question) is None
    assert list(many.scores) == ["default", "centred"]
    assert many.scores["centred"][question].text() == "incomplete"


def test_old_records_have_no_ablation(options: list[str], tmp_path: Path) -> None:
    assert run.main([*options, "--methods", "random", "--protocols", "ucdr"]) == 0
    store = ResultStore(tmp_path / "results")
    for path in store.paths():
        data = json.loads(path.read_text())
        assert data["cell"].pop("ablation") == ""
        path.write_text(json.dumps(data))
    assert {record.cell.ablation for record in store.records()} == {""}
    assert set(benchmarks.load_results(store.root)["ablation"]) == {""}


def test_a_dry_run_says_how_long_it_may_take(options: list[str], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    options += ["--methods", "learner,faulty", "--protocols", "ucdr", "--seeds"]
    assert run.main([*options, "0", "--dry-run"]) == 0
    assert "time: unknown, there is no record of such work yet" in capsys.readouterr().out
    assert run.main([*options[:-1], "--methods", "learner"]) == 0
    capsys.readouterr()
    assert run.main([*options, "0,1", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "time    learner: 1 s (3 fits, 3 cells)" in printed
    assert "time    faulty: unknown (6 fits, 6 cells)" in printed
    assert "with --jobs 1, as past records say, and 6 cells of unknown length" in printed


def test_an_estimate_counts_fits_and_searches_once(
    tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(PRESETS, "grid", Preset("grid", "two rates", 3, learning_rates=(0.125, 0.75)))  # type: ignore[call-overload]
    settings = Settings(
        methods=("learner",),
        datasets=("tiny",),
        protocols=("ucdr", "udcdr"),
        preset="grid",
        backbone=str(tiny_folder),
        device="cpu",
        seeds=(0, 1, 2),
    )
    planned = plan(settings, Resources(settings))
    assert (len(planned.groups), len(planned.cells)) == (9, 18)
    store = ResultStore(tmp_path)

    def record(cell: Any, **seconds: float) -> Record:
        return Record(cell.key, "ok", cell.id, dict(cell.inputs), {}, {}, {}, cost=Cost(seconds))

    cells = [cell for cell in planned.cells if cell.id.protocol == "ucdr"][:3]
    records = [record(c, fit=f, search=20.0, encode=1.0, rank=0.5) for c, f in zip(cells, (1, 10, 100), strict=True)]
    (one,) = estimate(planned.groups, PastCosts.of(records), store)
    assert (one.cells, one.fits, one.unknown) == (18, 9, 9), "nothing is known of udcdr"
    assert one.seconds == pytest.approx(9 * 1.5 + 3 * 20 + 6 * 10), "seed 0's fit is one of its search's trainings"
    other = dataclasses.replace(cells[0], id=dataclasses.replace(cells[0].id, config={"steps": 3, "learning_rate": 9}))
    (like,) = estimate(planned.groups, PastCosts.of([record(other, fit=7.0, rank=0.25)]), store)
    assert like.seconds == pytest.approx(9 * 0.25 + 6 * 7), "as many steps: taken for the same work"
    store.write_search(
        "tiny", "learner", search_key(planned.groups[0]) or "", search_inputs(planned.groups[0]), Search()
    )
    (again,) = estimate(planned.groups, PastCosts.of(records), store)
    (forced,) = estimate(planned.groups, PastCosts.of(records), None)
    assert forced.seconds == one.seconds
    assert again.seconds == pytest.approx(one.seconds - 20 + 10), "that search is done, its fit is not"
    longer = dataclasses.replace(other, id=dataclasses.replace(other.id, config={"steps": 4}))
    (none,) = estimate(planned.groups, PastCosts.of([record(longer, fit=7.0)]), store)
    assert (none.unknown, none.seconds) == (18, 0)
    assert [duration(s) for s in (0.2, 40, 100, 5000, 9000)] == ["1 s", "40 s", "2 min", "83 min", "2.5 h"]
