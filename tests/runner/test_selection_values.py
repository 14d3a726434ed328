"""``--select`` without target labels and ``--selectors``: what is picked, what is refused, what changes nothing."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.datasets.pixels import PixelCache
from benchmarks.evaluation.classification import classify
from benchmarks.evaluation.selectors import OF_LOGITS, dev
from benchmarks.protocols.dazsl import PROTOCOL as DAZSL
from benchmarks.protocols.selection import LABEL_FREE, LabelFree, refused, selection_question
from benchmarks.protocols.task import Classification, Retrieval
from benchmarks.protocols.ucdr import PROTOCOL as UCDR
from benchmarks.protocols.uda import INDUCTIVE
from benchmarks.protocols.uda import PROTOCOL as UDA
from benchmarks.run import main as run
from benchmarks.runner.embeddings import EncodedImages, encode_as
from benchmarks.runner.selection_values import SelectionScores, sample
from benchmarks.runner.settings import SettingsError, resolve
from benchmarks.store.files import ResultStore
from benchmarks.store.records import Record
from methods.parts.backbone import Backbone
from methods.zero_shot import ZeroShot
from tests.support.tiny_dataset import TinyShapes


@pytest.fixture(autouse=True)
def _no_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.fixture
def sweep(tiny_dataset: type, tiny_folder: Path) -> Any:
    """Runs CoOp on UDA of the tiny data set; further options may be given."""

    def start(out: Path, *more: str, protocols: str = "uda", methods: str = "coop") -> int:
        common = ["--datasets", "tiny", "--backbone", str(tiny_folder), "--preset", "smoke", "--jobs", "1"]
        common += ["--device", "cpu", "--methods", methods, "--protocols", protocols, "--out", str(out)]
        return run([*common, "--set", "validate_every=2", "--set", "steps=6", *more])

    return start


def records(folder: Path) -> list[Record]:
    return sorted(ResultStore(folder).records(), key=lambda one: one.key)


# --- what a selector looks at -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [UDA, INDUCTIVE, DAZSL], ids=lambda one: one.name)
@pytest.mark.parametrize("name", LABEL_FREE)
def test_a_selector_looks_at_the_unlabelled_target_alone(protocol: Any, name: str) -> None:
    dataset = TinyShapes()
    task = protocol.task(dataset, protocol.splits(dataset)[0])
    question = selection_question(task, name)
    assert isinstance(question, LabelFree) and task.target is not None and task.transfer is not None
    assert np.array_equal(question.target, task.target)
    assert question.class_names == task.classifications[0].class_names
    assert (question.held_out is task.validation) == (name == "dev")
    labelled = question.source if question.held_out is None else [*question.source, *question.held_out.rows]
    assert task.transfer[1] not in set(dataset.table["domain"].to_numpy()[np.asarray(labelled)])
    assert refused(task, name) == ""


def test_the_other_ways_keep_their_questions() -> None:
    dataset = TinyShapes()
    task = UDA.task(dataset, UDA.splits(dataset)[0])
    assert selection_question(task, "val") is selection_question(task, "last") is task.validation
    assert selection_question(task, "oracle") is task.classifications[0]
    assert isinstance(selection_question(UCDR.task(dataset, "line"), "oracle"), Retrieval)
    assert selection_question(UCDR.task(dataset, "line"), "im") is None


def test_values_are_those_of_the_criteria(tiny_backbone: Backbone) -> None:
    """The scores of a zero-shot model against its logits, computed here image by image."""
    dataset = TinyShapes()
    task = UDA.task(dataset, UDA.splits(dataset)[0])
    assert task.target is not None and isinstance(task.validation, Classification)
    cache = PixelCache(dataset, tiny_backbone.processing, 0.01)
    method = ZeroShot(tiny_backbone)
    scores = SelectionScores(method, EncodedImages(encode_as(method, "clean"), cache, lambda count: None), "clean")
    names, target, held_out = task.class_names, task.target, task.validation.rows

    def logits(rows: np.ndarray) -> torch.Tensor:
        return torch.cat([method.classify(cache[rows[i : i + 1]].float() / 255, names) for i in range(len(rows))])

    def features(rows: np.ndarray) -> torch.Tensor:
        return torch.cat([method.encode_images(cache[rows[i : i + 1]].float() / 255) for i in range(len(rows))])

    def labels(rows: np.ndarray) -> np.ndarray:
        return np.array([names.index(name) for name in dataset.table["class"].to_numpy()[rows]])

    def score(name: str) -> float:
        question = selection_question(task, name)
        assert question is not None
        return scores.score(question)

    for name, criterion in OF_LOGITS.items():
        assert score(name) == pytest.approx(criterion(logits(target)), abs=1e-4), name
    expected = dev(*map(features, (task.train, target, held_out)), logits(held_out), labels(held_out))
    assert score("dev") == pytest.approx(expected, rel=1e-3)
    assert score("oracle") == classify(logits(target), labels(target)).means()["accuracy[image]"]


def test_a_sample_is_nested_and_knows_no_order() -> None:
    keys = np.array([f"image {n}" for n in range(50)])
    rows = np.arange(10, 40)
    some, more = sample(rows, keys, 5), sample(rows, keys, 12)
    assert set(some) < set(more) < set(rows)
    assert np.array_equal(sample(rows[::-1], keys, 5), some)
    assert sample(rows, keys, 30) is rows


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_protocol_without_target_images_is_refused_in_one_line(
    sweep: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(tmp_path, "--select", "im", protocols="uda,ucdr") == 2
    line = capsys.readouterr().err.strip().splitlines()[-1]
    assert "--select im: it looks at unlabelled target images, and protocol ucdr shows none to classify" in line
    assert "--protocols uda or dazsl, or --select val" in line
    assert not list(tmp_path.rglob("*.json")), "refused before anything is run"


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"select": "im", "rules": "official"}, "--select im: the official rules select on the test images"),
        ({"select": "imm"}, "--select 'imm' is unknown; did you mean im?"),
        ({"selectors": "im,deva"}, "--selectors 'deva' is unknown; did you mean dev?"),
        ({"selectors": "all", "select": "last"}, "--selectors: --select last makes no validation to record"),
    ],
    ids=str,
)
def test_settings_that_do_not_go_together_are_one_line(options: dict[str, str], text: str) -> None:
    with pytest.raises(SettingsError) as error:
        resolve(options)
    assert str(error.value).startswith(text) and "\n" not in str(error.value)


def test_all_means_every_selector() -> None:
    assert resolve({"selectors": "all"}).selectors == LABEL_FREE
    assert resolve({"selectors": "dev,im,dev"}).selectors == ("dev", "im")
    assert resolve({}).selectors == ()


# --- runs -------------------------------------------------------------------------------------------------------------


def test_recording_changes_no_key_and_no_score(sweep: Any, tmp_path: Path) -> None:
    assert sweep(tmp_path / "without", protocols="uda,dazsl,ucdr") == 0
    assert sweep(tmp_path / "with", "--selectors", "all", protocols="uda,dazsl,ucdr") == 0
    before, after = records(tmp_path / "without"), records(tmp_path / "with")
    assert [one.key for one in before] == [one.key for one in after] and before
    assert [one.scores for one in before] == [one.scores for one in after]
    assert [one.fit.validation for one in before] == [one.fit.validation for one in after]
    assert all(not one.fit.checkpoints for one in before)
    for one in after:
        checkpoints = one.fit.checkpoints
        assert [round(each["val"], 6) for each in checkpoints] == [each["score"] for each in one.fit.validation]
        assert [each["step"] for each in checkpoints] == [each["step"] for each in one.fit.validation]
        free = set() if one.cell.protocol == "ucdr" else set(LABEL_FREE)
        assert all(set(each) == {"stage", "step", "val", "oracle", *free} for each in checkpoints)
        assert all(math.isfinite(each[name]) for each in checkpoints for name in ("val", "oracle", *free))
        kept = next(each for each in checkpoints if each["step"] == one.fit.selected_step)
        gallery = "unseen" if one.cell.protocol == "ucdr" else "target"
        metric = {"uda": "accuracy[image]", "dazsl": "h[image]", "ucdr": "map@all"}[one.cell.protocol]
        assert kept["oracle"] == pytest.approx(one.scores[gallery].metrics[metric], abs=1e-9)


@pytest.mark.parametrize("name", [*LABEL_FREE, "oracle"])
def test_the_weights_kept_are_those_that_the_selector_picks(sweep: Any, tmp_path: Path, name: str) -> None:
    assert sweep(tmp_path, "--select", name, "--selectors", "all") == 0
    (one, *_) = records(tmp_path)
    checkpoints = one.fit.checkpoints
    assert len(checkpoints) == 3
    best = max(checkpoints, key=lambda each: each[name])
    assert one.fit.selected_step == best["step"]
    assert one.scores["target"].metrics["accuracy[image]"] == pytest.approx(best["oracle"], abs=1e-9)
    assert one.cell.select == one.inputs["select"] == name
    assert "selected on test" not in one.notes


def test_a_search_picks_its_rate_by_the_selector(sweep: Any, tmp_path: Path) -> None:
    assert sweep(tmp_path, "--select", "im", "--selectors", "im", "--search") == 0
    for one in records(tmp_path):
        trials = [trial for trial in one.fit.trials if trial["validation"] is not None]
        assert len(trials) > 1
        for trial in trials:
            assert trial["validation"] == pytest.approx(max(each["im"] for each in trial["checkpoints"]), abs=1e-6)
        assert one.fit.learning_rate == max(trials, key=lambda trial: trial["validation"])["learning_rate"]


def test_fits_that_were_finished_before_are_counted(
    sweep: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(tmp_path) == 0
    assert "without selectors" not in capsys.readouterr().out
    assert sweep(tmp_path, "--selectors", "im") == 0
    assert "without selectors: 1 of 1 fit (finished before); --force fits again" in capsys.readouterr().out
    assert sweep(tmp_path, "--selectors", "im", "--force") == 0
    assert "without selectors" not in capsys.readouterr().out


def test_cells_that_share_a_fit_have_its_checkpoints_once(sweep: Any, tmp_path: Path) -> None:
    assert sweep(tmp_path, "--selectors", "all", protocols="ucdr,udcdr") == 0
    by_fit: dict[str, list[Record]] = {}
    for one in records(tmp_path):
        by_fit.setdefault(one.fit.fit_id, []).append(one)
    for cells in by_fit.values():
        assert [one.cell.protocol for one in cells if one.fit.checkpoints] == ["ucdr"]
