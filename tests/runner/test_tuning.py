"""Searched and tuned learning rates: what a run does with them, the file that keeps them, and the command."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import tomllib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from benchmarks import tune
from benchmarks.reporting.data import ReportData
from benchmarks.reporting.markdown import leaderboard_markdown
from benchmarks.runner import tuned
from benchmarks.runner.plan import plan
from benchmarks.runner.presets import PRESETS, Preset
from benchmarks.runner.records import convergence
from benchmarks.runner.resources import Resources
from benchmarks.runner.run_plan import execute
from benchmarks.runner.settings import Settings, SettingsError
from benchmarks.runner.tuned import TunedFileError, TunedRate, read_tuned, tuned_rates, write_tuned
from benchmarks.runner.tuning import searched_settings
from benchmarks.store.files import ResultStore
from benchmarks.store.frame import load_results
from benchmarks.store.records import Record, content_key
from methods.interface import FitReport, Log, Method, MethodCard, TrainingData
from methods.registry import METHODS
from methods.training.loop import run_stage
from tests.support.every import Silent


@dataclass(frozen=True)
class RatedConfig:
    """``learning_rate``: the paper's."""

    learning_rate: float = 0.5
    steps: int = 3


class Rated(Method):
    """Moves small images by a vector; what it was trained with, and on which domains, is kept in class variables."""

    card = MethodCard("rated", "Rated", "tests", "-", 2026, "", trains="a vector")
    Config = RatedConfig
    ablations: ClassVar[dict[str, dict[str, Any]]] = {"named": {"learning_rate": 5.0}}
    trained_with: ClassVar[list[float]] = []
    stop_after: ClassVar[int] = 10**9

    def fit(self, data: TrainingData, *, seed: int, log: Log) -> FitReport:
        if len(self.trained_with) >= self.stop_after:
            raise KeyboardInterrupt
        self.trained_with.append(self.config.learning_rate)
        self.domains = data.domain_names
        self.shift = self.config.learning_rate * torch.rand(192)
        curve = [{"step": step, "score": step / 10} for step in range(1, 5)]
        return FitReport(steps=3, trainable_parameters=192, validation=curve, validations_allowed=4)

    def encode_images(self, pixels: Tensor) -> Tensor:
        flat = nn.functional.adaptive_avg_pool2d(1 - pixels, 8).flatten(1)
        return nn.functional.normalize(flat + self.shift, dim=-1)

    def encode_classes(self, names: Sequence[str]) -> Tensor:
        return nn.functional.normalize(torch.ones(len(names), 192), dim=-1)


#: Validation score of a trained method.
Curve = Callable[[Method], float]


@pytest.fixture(autouse=True)
def rated(tiny_dataset: type, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    METHODS.add("rated", Rated)
    Rated.trained_with, Rated.stop_after = [], 10**9
    for preset in (
        Preset("plain", "paper's rates", 3),
        Preset("ready", "tuned rates", 3, validations=4, patience=2, tuned=True),
        Preset("wide", "a wider range", 3, range_high=1e4, trials=7),
    ):
        monkeypatch.setitem(PRESETS, preset.name, preset)  # type: ignore[call-overload]
    monkeypatch.setattr(tuned, "TUNED", tmp_path / "tuned")
    yield
    METHODS.remove("rated")


@pytest.fixture
def settings(tiny_folder: Path, tmp_path: Path) -> Settings:
    return Settings(
        methods=("rated", "zero_shot"), datasets=("tiny",), protocols=("uccdr",), backbone=str(tiny_folder),
        preset="ready", out=str(tmp_path / "out"), threads=1, jobs=1, device="cpu",
    )  # fmt: skip


def validates(monkeypatch: pytest.MonkeyPatch, curve: Curve) -> None:
    monkeypatch.setattr(TrainingData, "validate", lambda self, method: curve(method))


def peak_at(rate: float) -> Curve:
    return lambda method: 0.9 - 0.1 * abs(math.log10(method.config.learning_rate / rate))


def run(settings: Settings) -> list[Record]:
    resources = Resources(settings)
    store = ResultStore(settings.out)
    execute(plan(settings, resources), resources, store, Silent())
    return [record for record in store.records() if record.cell.method == "rated"]


def options(settings: Settings, file: Path, *more: str) -> list[str]:
    return [
        "--methods", ",".join(settings.methods), "--datasets", "tiny", "--protocols", ",".join(settings.protocols),
        "--backbone", settings.backbone, "--preset", settings.preset, "--out", settings.out, "--threads", "1",
        "--jobs", "1", "--device", "cpu", "--to", str(file), *more,
    ]  # fmt: skip


# --- a search within a run ---


def test_a_search_climbs_to_the_peak_and_the_record_says_how(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    validates(monkeypatch, peak_at(1.58))
    records = run(dataclasses.replace(settings, search=True))
    assert records
    for record in records:
        assert [trial["learning_rate"] for trial in record.fit.trials] == [0.5, 0.05, 5.0, 1.58, 0.889, 2.81]
        assert all(trial["seconds"] >= 0 for trial in record.fit.trials)
        assert record.fit.learning_rate == 1.58
        assert (record.fit.rate_from, record.fit.rate_range, record.fit.edge) == ("search", [0.005, 50.0], "")
        assert record.inputs["method"]["search"] == {"paper": 0.5, "low": 0.01, "high": 100.0, "trials": 6}
        assert "search" in record.cost.seconds
        assert record.cell.config["learning_rate"] == 0.5, "rows of one method stay one row, whatever was picked"


def test_one_search_serves_all_seeds_and_goes_on_where_it_was_stopped(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    validates(monkeypatch, peak_at(1.58))
    settings = dataclasses.replace(settings, search=True, seeds=(1, 0, 2), methods=("rated",))
    whole = dataclasses.replace(settings, out=str(tmp_path / "whole"))
    expected = {record.key: (record.scores, record.fit.learning_rate) for record in run(whole)}
    assert len(Rated.trained_with) == 6 + 2, "the best of the six is seed 0's fit"
    Rated.trained_with, Rated.stop_after = [], 4
    with pytest.raises(KeyboardInterrupt):
        run(settings)
    Rated.trained_with, Rated.stop_after = [], 10**9
    records = run(settings)
    assert Rated.trained_with[:2] == [0.889, 2.81], "the four trials that were stored are not made again"
    assert len(Rated.trained_with) == 2 + 3
    assert {record.key: (record.scores, record.fit.learning_rate) for record in records} == expected
    assert len({str(record.fit.trials) for record in records}) == 1


def test_the_end_of_the_range_is_recorded_noted_and_marked(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    validates(monkeypatch, lambda method: min(1.0, method.config.learning_rate / 100))
    (record, *_) = run(dataclasses.replace(settings, search=True))
    assert (record.fit.learning_rate, record.fit.edge) == (50.0, "high")
    assert record.notes.count("the learning rate picked, 50, is the highest of those tried") == 1
    report = leaderboard_markdown(ReportData(load_results(settings.out)))
    (row,) = [line for line in report.splitlines() if line.startswith("| rated") and "highest tried" in line][:1]
    assert "rising 1 of 1, rate highest tried" in row
    assert "Training: fits whose validation still rose" in report


def test_a_preset_may_widen_the_range(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    validates(monkeypatch, peak_at(500))
    (record, *_) = run(dataclasses.replace(settings, search=True, preset="wide"))
    assert [trial["learning_rate"] for trial in record.fit.trials][3:5] == [50.0, 500.0]
    assert (record.fit.learning_rate, record.fit.edge, len(record.fit.trials)) == (500.0, "", 7)


def test_a_rate_that_fails_loses_and_if_all_fail_so_does_the_cell(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit(self: Rated, data: TrainingData, *, seed: int, log: Log) -> FitReport:
        if self.config.learning_rate > highest:
            raise FloatingPointError("the loss is not a number")
        return trained(self, data, seed=seed, log=log)

    trained, highest = Rated.fit, 0.3
    monkeypatch.setattr(Rated, "fit", fit)
    validates(monkeypatch, lambda method: min(1.0, method.config.learning_rate))
    (record, *_) = run(dataclasses.replace(settings, search=True))
    trials = {trial["learning_rate"]: trial for trial in record.fit.trials}
    assert trials[0.5]["validation"] is None and "not a number" in trials[0.5]["reason"]
    assert (record.fit.learning_rate, record.fit.edge) == (0.158, "")
    highest = -1.0
    records = run(dataclasses.replace(settings, search=True, out=settings.out + "-none"))
    assert {record.reason for record in records} == {"FloatingPointError: the loss is not a number"}


# --- tuned rates ---


def tuned_file(settings: Settings, file: Path, *more: str) -> dict[str, TunedRate]:
    assert tune.main(options(settings, file, *more)) == 0
    return {rate.protocol: rate for rate in read_tuned(file)[1]}


def test_the_command_tunes_once_and_runs_take_the_rate(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    validates(monkeypatch, peak_at(1.58))
    settings = dataclasses.replace(settings, protocols=("ucdr", "udcdr", "uda"))
    file = tuned.TUNED / "tiny.toml"
    rates = tuned_file(dataclasses.replace(settings, out=str(tmp_path / "tuning")), file)
    assert set(rates) == {"ucdr", "udcdr", "uda"}
    assert len(Rated.trained_with) == 12, "UCDR and UdCDR share a search, on the first split alone"
    assert "searches: 2 tuned" in capsys.readouterr().out
    one = rates["ucdr"]
    assert (one.method, one.paper, one.learning_rate, one.edge, one.seed) == ("rated", 0.5, 1.58, "", 0)
    assert one.splits == [Resources(settings).splits("tiny", "ucdr")[0]]
    assert one.budget == {"preset": "ready", "steps": 3}
    assert one.command.startswith("python -m benchmarks.tune --methods rated,zero_shot")
    assert one.data_hash == Resources(settings).dataset("tiny").data_hash
    assert not list((tmp_path / "tuning" / "cells").rglob("*.json")), "no test image is scored"
    Rated.trained_with = []
    text = file.read_text()
    again = dataclasses.replace(settings, out=str(tmp_path / "tuning"))
    assert tune.main(options(again, file)) == 0
    assert (Rated.trained_with, file.read_text()) == ([], text)
    assert tune.main(options(again, file, "--dry-run")) == 0
    printed = capsys.readouterr().out
    assert "searches: 2 cached" in printed
    assert "3 rates, 2 searches, 0 trials to do" in printed

    records = run(dataclasses.replace(settings, seeds=(0, 1)))
    assert set(Rated.trained_with) == {1.58}
    fits = {(record.fit.fit_id, record.cell.seed) for record in records}
    assert len(Rated.trained_with) == len(fits) < len(records), "UCDR and UdCDR still share their fits"
    for record in records:
        assert (record.fit.learning_rate, record.fit.rate_from) == (1.58, "tuned")
        assert record.fit.trials == rates[record.cell.protocol].trials
        assert record.fit.rate_range == [0.005, 50.0]
        assert record.inputs["method"]["learning_rates"] == [1.58]
        assert "search" not in record.cost.seconds, "it was made beforehand"
        assert not any("tuned" in note for note in record.notes)


def test_without_a_tuned_rate_the_configured_one_is_taken_and_said(settings: Settings) -> None:
    records = run(dataclasses.replace(settings, methods=("rated", "zero_shot")))
    assert set(Rated.trained_with) == {0.5}
    for record in records:
        assert (record.fit.rate_from, record.fit.learning_rate) == ("paper", None)
        assert "no tuned learning rate of this backbone, data set and protocol: the configured one is taken" in (
            record.notes
        )
    others = [r for r in ResultStore(settings.out).records() if r.cell.method == "zero_shot"]
    assert others and not any("tuned" in note for record in others for note in record.notes)


@pytest.mark.parametrize("field", ["data_hash", "version"])
def test_a_rate_of_other_data_or_other_code_is_not_taken(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, field: str
) -> None:
    """Two folders of images have one data set's name; a method's new version may need another rate."""
    validates(monkeypatch, peak_at(1.58))
    file = tuned.TUNED / "tiny.toml"
    (rate,) = tuned_file(settings, file).values()
    changed = dataclasses.replace(rate, **{field: "0" * 64 if field == "data_hash" else rate.version + 1})
    identity, _ = read_tuned(file)
    file.unlink()
    write_tuned(file, "tiny", identity, [changed])
    Rated.trained_with = []
    records = run(dataclasses.replace(settings, methods=("rated",)))
    assert {record.fit.rate_from for record in records} == {"paper"}
    assert all(any("no tuned learning rate" in note for note in record.notes) for record in records)
    kept = write_tuned(file, "tiny", identity, [rate])
    assert len(kept) == (2 if field == "data_hash" else 1), "rates of other data stay beside these"


def test_set_and_search_win_over_a_tuned_rate(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    validates(monkeypatch, peak_at(1.58))
    tuned_file(settings, tuned.TUNED / "tiny.toml")

    def choices(**changes: Any) -> set[tuple[str, tuple[float, ...]]]:
        changed = dataclasses.replace(settings, methods=("rated",), **changes)
        return {(group.choice.source, group.learning_rates) for group in plan(changed, Resources(changed)).groups}

    assert choices() == {("tuned", (1.58,))}
    assert choices(set=(("learning_rate", 0.25),)) == {("config", ())}
    assert choices(search=True) == {("search", ())}
    assert choices(preset="plain") == {("config", ())}
    other = dataclasses.replace(settings, methods=("rated",), protocols=("uda",))
    assert {group.choice.source for group in plan(other, Resources(other)).groups} == {"paper"}, "another protocol"


def test_an_arm_that_sets_the_rate_is_another_one_only_where_it_changes_something(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    from benchmarks.runner.ablation_plan import plan_ablation

    def arms(**changes: Any) -> list[str]:
        chosen = dataclasses.replace(settings, methods=("rated",), **changes)
        planned = plan(chosen, Resources(chosen), plan_ablation(chosen).arms)
        assert len({cell.key for cell in planned.cells}) == len(planned.cells)
        return sorted({cell.id.ablation for cell in planned.cells})

    assert arms() == ["", "named"]
    monkeypatch.setattr(Rated, "ablations", {"named": {"learning_rate": 0.5}})
    assert arms() == [""], "nothing is tuned, so the default has that very rate"
    validates(monkeypatch, peak_at(1.58))
    tuned_file(settings, tuned.TUNED / "tiny.toml")
    assert arms() == ["", "named"]


def test_a_rate_is_the_mean_over_the_declared_splits(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = dataclasses.replace(settings, protocols=("ucdr",), methods=("rated",))
    first, second = Resources(settings).splits("tiny", "ucdr")[:2]

    def curve(method: Method) -> float:
        assert isinstance(method, Rated)
        rate = method.config.learning_rate
        return peak_at(0.05 if first not in method.domains else 5.0)(method) - 0.02 * abs(math.log10(rate / 0.5)) ** 2

    validates(monkeypatch, curve)
    one = tuned_file(settings, tuned.TUNED / "one.toml")["ucdr"]
    assert one.learning_rate == pytest.approx(0.05, rel=0.2)
    assert "by_split" not in one.trials[0]
    Rated.trained_with = []
    both = tuned_file(settings, tuned.TUNED / "two.toml", "--splits", "2")["ucdr"]
    assert len(Rated.trained_with) == 12, "six trials on two splits, none of them that of the search on one"
    assert both.splits == [first, second]
    assert both.learning_rate == 0.5
    for trial in both.trials:
        assert trial["validation"] == pytest.approx(sum(trial["by_split"]) / 2)
        assert len(trial["by_split"]) == 2


@pytest.mark.slow
def test_rates_do_not_depend_on_the_executor(settings: Settings, tmp_path: Path) -> None:
    from tests.support.learners import Learner

    METHODS.add("learner", Learner)
    try:
        settings = dataclasses.replace(settings, methods=("learner",), protocols=("ucdr", "uda"))
        serial = tuned_file(settings, tmp_path / "serial.toml")
        workers = dataclasses.replace(settings, out=str(tmp_path / "workers"))
        spread = tuned_file(workers, tmp_path / "workers.toml", "--jobs", "2")
    finally:
        METHODS.remove("learner")

    def outcome(rates: dict[str, TunedRate]) -> Any:
        trials = {name: [(t["learning_rate"], t["validation"]) for t in rate.trials] for name, rate in rates.items()}
        return trials, {name: rate.learning_rate for name, rate in rates.items()}

    assert outcome(serial) == outcome(spread)
    assert all(len(rate.trials) == 6 for rate in spread.values())


def test_a_search_that_fails_is_a_failure_of_the_command(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def curve(method: Method) -> float:
        raise RuntimeError("no score")

    validates(monkeypatch, curve)
    file = tuned.TUNED / "tiny.toml"
    assert tune.main(options(settings, file)) == 1
    assert "rates: none found, nothing written" in capsys.readouterr().out
    assert not file.exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["--select", "oracle"], "--select oracle: rates are tuned on validation data"),
        (["--rules", "official"], "--rules official"),
        (["--limit", "9"], "--limit"),
        (["--preset", "smoke"], "--preset smoke: its limit of images makes tuned rates mean nothing"),
        (["--data-root", "/nope2"], "--data-root /nope2 is not a folder"),
        (["--dry-run", "--data-root", "/nope2"], "--data-root /nope2 is not a folder"),
        (["--shots", "4"], "--shots"),
        (["--validation-limit", "9"], "--validation-limit"),
        (["--selectors", "all"], "--selectors"),
        (["--shard", "1/2"], "--shard"),
        (["--splits", "0"], "--splits: at least 1"),
        (["--methods", "zero_shot"], "nothing to tune"),
        (["--set", "learning_rate=1"], "nothing to tune"),
        (["--methods", "coopp"], "coop"),
    ],
)
def test_what_cannot_be_tuned_is_one_line(
    changes: list[str], said: str, settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune.main([*options(settings, tmp_path / "x.toml"), *changes]) == 2
    error = capsys.readouterr().err.strip()
    assert said in error
    assert error.count("\n") == 0
    assert Rated.trained_with == []


@pytest.mark.parametrize("dry", [["--dry-run"], []])
@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("", "argument --to: is empty; name one"),
        ("{0}", "--to {0}: must be a .toml file"),
        ("{0}/rates.json", "--to {0}/rates.json: must be a .toml file"),
        ("{0}/folder.toml", "--to {0}/folder.toml: a folder; give a .toml file to write"),
        ("{0}/file/x.toml", "--to {0}/file/x.toml: cannot be written ({0}/file is a file, not a folder)"),
    ],
)
def test_a_target_that_cannot_be_written_is_refused_before_the_search(
    target: str, said: str, dry: list[str], settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder.toml").mkdir()
    (tmp_path / "file").touch()
    with contextlib.suppress(SystemExit):
        assert tune.main([*options(settings, tmp_path / "x.toml"), "--to", target.format(tmp_path), *dry]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said.format(tmp_path) in line and "delete" not in line
    assert Rated.trained_with == []


def test_a_folder_among_the_files_of_rates_is_not_to_be_deleted(settings: Settings) -> None:
    (tuned.TUNED / "odd.toml").mkdir(parents=True)
    with pytest.raises(SettingsError, match=r"odd\.toml: a folder, not a file of rates; give it a name"):
        plan(settings, Resources(settings))


def test_the_preset_says_how_many_splits_there_are(settings: Settings) -> None:
    with pytest.raises(SettingsError, match="quick has only 2"):
        searched_settings(dataclasses.replace(settings, preset="quick"), 3)
    assert searched_settings(dataclasses.replace(settings, seeds=(3, 4)), 3).seeds == (0,)


def test_every_planned_key_is_the_hash_of_the_cells_inputs(settings: Settings) -> None:
    chosen = dataclasses.replace(
        settings, methods=("zero_shot", "coop", "sre_clip", "rated"), protocols=("ucdr", "dazsl")
    )
    for cell in plan(chosen, Resources(chosen)).cells:
        assert cell.key == content_key(cell.inputs), "another method's cell changed it"


# --- the file ---

numbers = st.floats(1e-12, 1e6)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
entries = st.builds(
    TunedRate, dataset=texts, data_hash=texts, protocol=texts, splits=st.lists(texts, max_size=2), method=texts,
    version=st.integers(1, 9), paper=numbers, learning_rate=numbers, rate_range=st.lists(numbers, max_size=2),
    edge=st.sampled_from(["", "low", "high"]), seed=st.just(0),
    budget=st.fixed_dictionaries({"preset": texts, "steps": st.integers(0, 999)}), command=texts,
    trials=st.lists(
        st.fixed_dictionaries({"learning_rate": numbers}, optional={"validation": numbers, "reason": texts}), max_size=3
    ),
)  # fmt: skip


@given(st.lists(entries, max_size=3, unique_by=lambda rate: rate.question), texts)
def test_what_is_written_is_read_again(tmp_path_factory: pytest.TempPathFactory, rates: Any, name: str) -> None:
    file = tmp_path_factory.mktemp("rates") / "b.toml"
    identity = {"weights_hash": "ab", "config_hash": name}
    write_tuned(file, name, identity, rates)
    assert tomllib.loads(file.read_text(encoding="utf-8"))["backbone"] == name
    read_identity, read = read_tuned(file)
    assert read_identity == identity
    assert read == sorted(rates, key=lambda rate: rate.question)
    assert tuned_rates(identity, file.parent) == {rate.question: rate for rate in rates}
    assert tuned_rates({"weights_hash": "other"}, file.parent) == {}


def test_a_preset_takes_the_rates_of_its_own_budget(tmp_path: Path) -> None:
    identity = {"weights_hash": "ab"}

    def written(preset: str, rate: float, *methods: str) -> None:
        rates = [entry(method=name, learning_rate=rate, budget={"preset": preset, "steps": 3}) for name in methods]
        write_tuned(tmp_path / tuned.file_name("b", preset), "b", identity, rates)

    def taken(preset: str) -> dict[str, float]:
        return {one.method: one.learning_rate for one in tuned_rates(identity, tmp_path, preset=preset).values()}

    written("standard", 0.1, "one", "two")
    written("quick", 0.2, "one", "three")
    written("aaa", 0.3, "two", "three", "four")
    assert {file.name for file in tmp_path.iterdir()} == {"b.toml", "b-quick.toml", "b-aaa.toml"}
    assert taken("standard") == {"one": 0.1, "two": 0.1, "three": 0.2, "four": 0.3}
    assert taken("quick") == {"one": 0.2, "two": 0.1, "three": 0.2, "four": 0.3}
    assert taken("aaa") == {"one": 0.1, "two": 0.3, "three": 0.3, "four": 0.3}


def entry(**changes: Any) -> TunedRate:
    values: dict[str, Any] = {
        "dataset": "tiny", "data_hash": "ab", "protocol": "ucdr", "splits": ["line"], "method": "rated", "version": 1,
        "paper": 0.5, "learning_rate": 1.5, "rate_range": [0.005, 50.0], "edge": "", "seed": 0, "budget": {"steps": 3},
        "command": "python -m benchmarks.tune", "trials": [{"learning_rate": 1.5, "validation": 0.25}],
    }  # fmt: skip
    return TunedRate(**{**values, **changes})


def test_a_later_search_replaces_its_own_question_alone(tmp_path: Path) -> None:
    file, identity = tmp_path / "b.toml", {"weights_hash": "ab"}
    write_tuned(file, "b", identity, [entry(), entry(method="other")])
    write_tuned(file, "b", identity, [entry(learning_rate=3.0)])
    assert {rate.method: rate.learning_rate for rate in read_tuned(file)[1]} == {"rated": 3.0, "other": 1.5}
    write_tuned(file, "b", {"weights_hash": "cd"}, [entry()])
    assert [rate.method for rate in read_tuned(file)[1]] == ["rated"], "another backbone's rates are not kept"


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("learning_rate = 1.5\n", "", "learning_rate is missing"),
        ("learning_rate = 1.5\n", 'learning_rate = "high"\n', "learning_rate must be float"),
        ("learning_rate = 1.5\n", "learning_rate = 0\n", "must be above 0"),
        ("learning_rate = 1.5\n", "learning_rate = inf\n", "must be above 0"),
        ("[identity]", "[identities]", "identity is missing"),
        ("seed = 0", "seed = 0\nseeds = 1", "seeds is unknown"),
        ("[[rates]]", "[rates", "at line 8"),
    ],
)
def test_a_damaged_file_is_one_line_that_names_it(
    old: str, new: str, said: str, settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tuned.TUNED / "b.toml"
    write_tuned(file, "b", {"weights_hash": "ab"}, [entry()])
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new, 1))
    with pytest.raises(TunedFileError, match=said) as raised:
        read_tuned(file)
    assert str(file) in str(raised.value) and "benchmarks.tune" in str(raised.value)
    with pytest.raises(SettingsError, match=said):
        plan(settings, Resources(settings))
    assert tune.main(options(settings, file)) == 2
    assert str(file) in capsys.readouterr().err


def test_the_committed_files_can_be_used() -> None:
    folder = Path(tuned.__file__).parents[1] / "presets" / "tuned"
    for file in folder.glob("*.toml"):
        identity, rates = read_tuned(file)
        assert identity["weights_hash"]
        for rate in rates:
            assert rate.command.startswith("python -m benchmarks.tune")
            best = max(trial.get("validation", -math.inf) for trial in rate.trials)
            assert {"learning_rate": rate.learning_rate, "validation": best}.items() <= next(
                trial for trial in rate.trials if trial.get("validation") == best
            ).items(), f"{file}: {rate.question}"


# --- convergence ---


def report(scores: Sequence[float], allowed: int, *, patience: bool = False) -> FitReport:
    curve: list[dict[str, float | int]] = [{"step": place, "score": score} for place, score in enumerate(scores, 1)]
    return FitReport(validation=curve, validations_allowed=allowed, out_of_patience=patience)


def test_converged_is_what_peaks_before_the_last_quarter() -> None:
    assert convergence(report([1, 2, 3, 2], 4)) == "converged"
    assert convergence(report([1, 2, 3, 4], 4)) == "rising"
    assert convergence(report([1, 2, 3, 3], 4)) == "converged", "an equal score is no gain"
    assert convergence(report([1, 2, 3, 4, 5, 6, 7, 6], 8)) == "rising"
    assert convergence(report([1, 2, 3, 4, 5, 6, 5, 4], 8)) == "converged"
    assert convergence(report([1, 2, 3, 4, 5, 6, 7, 6, 5], 9, patience=True)) == "converged"
    assert convergence(report([1], 1)) == convergence(report([], 8)) == convergence(report([1, 2, 1], 0)) == ""


@given(st.lists(st.floats(0, 1), min_size=2, max_size=30))
def test_more_of_the_same_is_no_rise(scores: list[float]) -> None:
    assert convergence(report(scores + [0.0] * len(scores), 2 * len(scores))) == "converged"
    assert convergence(report([*scores, 2.0], len(scores) + 1)) == "rising"


@pytest.mark.parametrize(
    ("scores", "patience", "wanted"),
    [
        ([0.1, 0.2, 0.3, 0.4], 2, (4, False, "rising")),
        ([0.4, 0.3, 0.2, 0.1], 2, (3, True, "converged")),
        ([0.1, 0.4, 0.3, 0.2], 2, (4, False, "converged")),
        ([0.4, 0.3, 0.2, 0.1], 0, (4, False, "converged")),
        ([math.nan] * 4, 2, (0, False, "")),
    ],
)
def test_the_loop_says_what_its_budget_allowed(
    scores: list[float],
    patience: int,
    wanted: tuple[int, bool, str],
    monkeypatch: pytest.MonkeyPatch,
    tiny_backbone: Any,
) -> None:
    answers, weight = iter(scores), nn.Parameter(torch.ones(()))
    validates(monkeypatch, lambda method: next(answers))
    data = TrainingData(
        protocol="x", images=[], labels=torch.ones(0), domains=torch.ones(0), class_names=(), domain_names=()  # type: ignore[arg-type]
    )  # fmt: skip
    made = FitReport()
    run_stage(
        Rated(tiny_backbone), data, made, lambda **numbers: None, stage="one", steps=8,
        optimizers=[torch.optim.SGD([weight], lr=0.1)], loss=lambda step: weight**2, validate_every=2,
        patience=patience,
    )  # fmt: skip
    assert made.validations_allowed == 4
    assert (len(made.validation), made.out_of_patience, convergence(made)) == wanted


def test_patience_is_the_presets_for_every_method() -> None:
    from methods.coop import CoOp
    from methods.pros import ProSConfig

    one = Preset("p", "", steps=30, validations=4, patience=3)
    for config in (ProSConfig, CoOp.Config):
        assert one.changes(config) == {"steps": 30, "validate_every": 8, "patience": 3}
    assert {p.patience for p in PRESETS.values() if not p.validations} == {0}
