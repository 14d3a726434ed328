"""``--keep-weights``: every record finds its fit's weights, no record or key changes, and packs say what they leave."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import load_results
from benchmarks.ablate import main as ablate
from benchmarks.pack import main as pack
from benchmarks.report import main as report
from benchmarks.run import main as run
from benchmarks.store.files import ResultStore
from benchmarks.store.weights import STEM, WeightStore, read_kept
from methods.coop import CoOp
from methods.interface import Method
from methods.parts.backbone import Backbone

huggingface_hub = pytest.importorskip("huggingface_hub")


@pytest.fixture(autouse=True)
def _no_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.fixture
def sweep(tiny_dataset: type, tiny_folder: Path) -> Any:
    """Runs CoOp and zero-shot CLIP on the tiny data set; further options may be given."""

    def start(out: Path, *more: str, seeds: str = "0,1", methods: str = "coop,zero_shot", command: Any = run) -> int:
        common = ["--datasets", "tiny", "--backbone", str(tiny_folder), "--preset", "smoke", "--protocols", "ucdr"]
        common += ["--jobs", "1", "--device", "cpu", "--seeds", seeds, "--methods", methods, "--out", str(out)]
        return command([*common, *more])

    return start


def test_all_keeps_every_fit_and_changes_no_record(sweep: Any, tmp_path: Path, tiny_backbone: Backbone) -> None:
    assert sweep(tmp_path / "without") == 0
    assert sweep(tmp_path / "with", "--keep-weights", "all") == 0
    without, kept = load_results(tmp_path / "without"), load_results(tmp_path / "with")
    assert set(without["key"]) == set(kept["key"])
    columns = ["key", "gallery", "metric", "value"]
    assert without[columns].equals(kept[columns])
    assert (without["weights"] == "").all() and (kept["weights"] != "").all()
    for record in ResultStore(tmp_path / "with").records():
        folder = tmp_path / "with" / WeightStore(tmp_path / "with").of_record(record)
        described = read_kept(folder)
        described.check()
        assert (described.method, described.seed) == (record.cell.method, record.cell.seed)
        card = huggingface_hub.ModelCard((folder / "README.md").read_text())
        found = {(one.task_name, one.metric_type): one for one in card.data.eval_results}
        assert len(found) == sum(len(gallery.metrics) for gallery in record.scores.values())
        for question, gallery in record.scores.items():
            for name, value in gallery.metrics.items():
                one = found[f"ucdr, {question}, clean rules, seed {record.cell.seed}", name]
                assert one.dataset_split == record.cell.split
                assert one.metric_value == pytest.approx(value, abs=1e-6)
        if record.cell.method == "coop":
            loaded: Method = CoOp.load(folder / STEM, tiny_backbone)
            assert torch.isfinite(loaded.encode_classes(["cat"])).all()


def test_kept_weights_are_those_that_were_scored(sweep: Any, tmp_path: Path, tiny_backbone: Backbone) -> None:
    """A second training with the same seed gives the same tensors as the ones kept."""
    for name in ("one", "two"):
        assert sweep(tmp_path / name, "--keep-weights", "all", seeds="3", methods="coop") == 0
    first, second = (sorted((tmp_path / name).rglob("method.safetensors")) for name in ("one", "two"))
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]
    assert len({path.read_bytes() for path in first}) == len(first) > 0


def test_best_keeps_one_seed_a_split_by_validation(sweep: Any, tmp_path: Path) -> None:
    assert sweep(tmp_path / "all", "--keep-weights", "all", seeds="0,1,2") == 0
    assert sweep(tmp_path / "best", "--keep-weights", "best", seeds="0,1,2") == 0
    rivals: dict[str, list[Any]] = {}
    for one in WeightStore(tmp_path / "all").all():
        rivals.setdefault(one.rivals, []).append(one)
    assert all(len(of_split) == 3 for of_split in rivals.values())
    kept = {one.rivals: one.key for one in WeightStore(tmp_path / "best").all()}
    assert kept == {key: max(of_split, key=lambda one: one.order).key for key, of_split in rivals.items()}
    trained = [one for one in WeightStore(tmp_path / "all").all() if one.method == "coop"]
    assert all(one.validation is not None for one in trained)


def test_best_chooses_between_the_arms_of_an_ablation(sweep: Any, tmp_path: Path) -> None:
    more = ["--keep-weights", "best", "--factors", "context_4", "--limit", "40"]
    assert sweep(tmp_path, *more, seeds="0", methods="coop", command=ablate) == 0
    records = list(ResultStore(tmp_path).records())
    assert len({record.cell.split for record in records}) == 1
    assert len({record.cell.ablation for record in records}) == 2
    assert sum(bool(WeightStore(tmp_path).of_record(record)) for record in records) == 1


def test_finished_cells_are_not_run_again_and_the_run_says_so(
    sweep: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert sweep(tmp_path, seeds="0", methods="zero_shot") == 0
    capsys.readouterr()
    assert sweep(tmp_path, "--keep-weights", "all", seeds="0", methods="zero_shot") == 0
    assert "without weights:" in capsys.readouterr().out
    assert sweep(tmp_path, "--keep-weights", "all", "--force", seeds="0", methods="zero_shot") == 0
    out = capsys.readouterr().out
    assert "without weights:" not in out and "weights: " in out


def test_worker_processes_keep_the_same_weights(
    tmp_path: Path, tiny_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from tests.support.learners import learners

    with learners():
        common = ["--datasets", "picto_domains", "--preset", "smoke", "--protocols", "ucdr", "--device", "cpu"]
        common += ["--methods", "coop", "--seeds", "0", "--threads", "1", "--limit", "24", "--keep-weights", "all"]
        common += ["--backbone", str(tiny_folder)]
        assert run([*common, "--jobs", "1", "--out", str(tmp_path / "one")]) == 0
        assert run([*common, "--jobs", "2", "--out", str(tmp_path / "two")]) == 0
    names = [
        sorted(p.relative_to(tmp_path / n).as_posix() for p in (tmp_path / n / "weights").rglob("*"))
        for n in ("one", "two")
    ]
    assert names[0] == names[1] and names[0]
    for name in names[0]:
        if name.endswith(".safetensors"):
            assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()


def test_weights_that_cannot_be_written_cost_no_score(
    sweep: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(self: Any, *values: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(WeightStore, "write", full)
    assert sweep(tmp_path, "--keep-weights", "all", seeds="0", methods="zero_shot") == 1
    assert set(load_results(tmp_path)["status"]) == {"ok"}
    assert "zero_shot on tiny, seed 0: the weights are not kept" in capsys.readouterr().err


def test_the_report_links_them_and_a_pack_takes_them_or_says_that_it_does_not(
    sweep: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = tmp_path / "results"
    assert sweep(results, "--keep-weights", "all", seeds="0") == 0
    page = (results / "report" / "index.html").read_text()
    kept = [one.folder for one in WeightStore(results).all()]
    for folder in kept:
        assert f'href="../weights/tiny/{folder.name}/README.md"' in page
        assert folder.name in (results / "report" / "leaderboard.md").read_text()
    capsys.readouterr()
    assert pack([str(results), "--out", str(tmp_path / "pack")]) == 0
    assert (
        f"weights of {len(kept)} fits" in (out := capsys.readouterr().out) and "left out; --weights takes them" in out
    )
    assert not (tmp_path / "pack" / "weights").exists()
    assert pack([str(results), "--out", str(tmp_path / "pack"), "--weights"]) == 0
    assert "taken" in capsys.readouterr().out
    packed = load_results(tmp_path / "pack")
    assert (packed["weights"] != "").all()
    for one in WeightStore(tmp_path / "pack").all():
        one.check()
    assert report([str(tmp_path / "pack"), "--out", str(tmp_path / "elsewhere" / "report")]) == 0
    assert 'href="../../pack/weights/tiny/' in (tmp_path / "elsewhere" / "report" / "index.html").read_text()
    assert pack([str(results), "--out", str(tmp_path / "pack")]) == 2
    assert f"weights of {len(kept)} fits that" in capsys.readouterr().err
    assert pack([str(results), "--out", str(tmp_path / "pack"), "--replace"]) == 0
    assert not list((tmp_path / "pack" / "weights").rglob("*.json"))


def test_an_unknown_choice_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--keep-weights", "some", "--out", str(tmp_path)]) == 2
    assert capsys.readouterr().err.strip().count("\n") == 0


def test_the_file_states_the_backbone_and_none_of_its_weights(
    sweep: Any, tmp_path: Path, tiny_backbone: Backbone
) -> None:
    assert sweep(tmp_path, "--keep-weights", "all", seeds="0", methods="coop") == 0
    folder = next(iter(WeightStore(tmp_path).all())).folder
    stated = json.loads((folder / "method.json").read_text())
    assert stated["identity"] == tiny_backbone.identity and stated["backbone_name"]
    size = (folder / "method.safetensors").stat().st_size
    assert size < sum(4 * value.numel() for value in tiny_backbone.model.parameters()) / 2


def test_cells_that_share_a_fit_across_transfers_each_find_its_weights(
    tiny_dataset: type, tiny_folder: Path, tmp_path: Path
) -> None:
    options = ["--methods", "linear_probe", "--datasets", "tiny", "--backbone", str(tiny_folder), "--protocols", "uda"]
    options += ["--preset", "standard", "--set", "steps=2", "--jobs", "1", "--device", "cpu", "--out", str(tmp_path)]
    assert run([*options, "--keep-weights", "all"]) == 0
    store, weights = ResultStore(tmp_path), WeightStore(tmp_path)
    by_fit: dict[str, set[bytes]] = {}
    for record in store.records():
        folder = weights.of_record(record)
        assert folder
        (tensors,) = (tmp_path / folder).glob("*.safetensors")
        by_fit.setdefault(record.fit.fit_id, set()).add(tensors.read_bytes())
    assert len(by_fit) == 3 and all(len(contents) == 1 for contents in by_fit.values())
