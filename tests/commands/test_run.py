"""The run and report commands end to end, in process, on the tiny data set and the tiny CLIP."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import benchmarks
from benchmarks import cli, data, report, run
from benchmarks.protocols.dazsl import Dazsl
from benchmarks.reporting.plot_collector import PlannedPlots, draw_setting
from methods.registry import METHODS

Command = Callable[..., int]
DRAW = draw_setting


@pytest.fixture
def command(tiny_dataset: type, tiny_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """``command("--methods", "random")``: the run command on the tiny data set, results in ``tmp_path/results``.

    Plots, the slowest part, are left out unless a test asks for the fixture ``plots`` as well.
    """
    monkeypatch.setattr(
        "benchmarks.reporting.plot_collector.draw_setting", lambda _, collector: PlannedPlots(collector)
    )

    def call(*arguments: str) -> int:
        fixed = [
            "--datasets",
            "tiny",
            "--backbone",
            str(tiny_folder),
            "--threads",
            "1",
            "--jobs",
            "1",
            "--preset",
            "full",
        ]
        return run.main([*fixed, "--out", str(tmp_path / "results"), *arguments])

    return call


@pytest.fixture
def plots(monkeypatch: pytest.MonkeyPatch, command: Command) -> None:
    """Draw plots after all."""
    monkeypatch.setattr("benchmarks.reporting.plot_collector.draw_setting", DRAW)


def test_one_command_gives_records_and_a_leaderboard(
    command: Command, plots: None, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert command("--methods", "zero_shot,random,raw_pixel", "--protocols", "ucdr,udcdr") == 0
    printed = capsys.readouterr()
    assert "UCDR, unseen: map@all in percent, by query domain" in printed.out
    assert "raw_pixel (floor)" in printed.out
    assert "cells: 18 ok" in printed.out
    assert "leaderboard.md" in printed.out
    assert printed.err == "", "a line a minute where there is no terminal"
    results = tmp_path / "results"
    assert len(list((results / "cells").rglob("*.json"))) == 18
    resolved = json.loads((results / "resolved.json").read_text())
    assert resolved["methods"] == ["zero_shot", "random", "raw_pixel"]
    assert resolved["seeds"] == [0]
    assert resolved["device"] in ("cpu", "cuda")
    assert resolved["command"].startswith("python -m benchmarks.run --datasets tiny")
    card = json.loads((results / "cards" / "methods" / "zero_shot.json").read_text())
    assert card["year"] == 2021
    assert json.loads((results / "cards" / "datasets" / "tiny.json").read_text())["gallery_domain"] == "flat"
    text = (results / "report" / "leaderboard.md").read_text()
    assert "| map@all | glyph | line | sketch | mean |" in text
    assert (results / "report" / "plots" / "ucdr-unseen-map_all.png").stat().st_size > 5000
    assert f"page: {results / 'report' / 'index.html'}" in printed.out
    frame = benchmarks.load_results(results)
    values = frame[(frame["metric"] == "map@all") & (frame["protocol"] == "ucdr")].groupby("method")["value"].mean()
    assert values["random"] < values["zero_shot"]
    assert values["random"] < values["raw_pixel"]


def test_without_a_terminal_a_line_says_where_things_stand(
    command: Command, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command("--methods", "random", "--protocols", "ucdr") == 0
    monkeypatch.setattr("benchmarks.runner.progress.EVERY", 0.0)
    capsys.readouterr()
    assert command("--methods", "random,zero_shot", "--protocols", "ucdr") == 0
    said = capsys.readouterr().err.splitlines()
    lines = [re.fullmatch(r"(\d+) of (\d+) cells after \d+ s(, about \d+ s left)?: .+", line) for line in said]
    assert all(lines) and len(lines) > 6
    done = [int(line[1]) for line in lines if line]
    assert done == sorted(done) and done[-1] == 6
    assert {line[2] for line in lines if line} == {"6"}
    known = [bool(line[3]) for line in lines if line and 3 < int(line[1]) < 6]
    assert known and all(known), "cells that are not run again say nothing of the time left"
    assert not any(line[3] for line in lines if line and int(line[1]) <= 3)


def test_a_protocol_without_a_task_is_told(
    command: Command, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Dazsl, "splits", lambda self, dataset: [])
    assert command("--methods", "random", "--protocols", "dazsl,ucdr") == 0
    assert capsys.readouterr().err == "skipped: tiny/dazsl: the data set has no task of this protocol\n"
    assert command("--methods", "random", "--protocols", "dazsl") == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "benchmarks.run: nothing to run: choose other --protocols, --datasets or --methods"
    )


def test_nothing_runs_twice(command: Command, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    arguments = ("--methods", "random", "--protocols", "ucdr")
    assert command(*arguments) == 0
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "results" / "cells").rglob("*.*")}
    capsys.readouterr()
    assert command(*arguments) == 0
    assert "cells: 3 cached" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "results" / "cells").rglob("*.*")} == files


def test_the_same_seed_gives_the_same_tables(command: Command, tmp_path: Path) -> None:
    arguments = ("--methods", "random,zero_shot", "--protocols", "ucdr", "--seeds", "0,1")
    assert command(*arguments) == 0
    assert command(*arguments, "--out", str(tmp_path / "second")) == 0
    one, two = ((tmp_path / name / "report" / "leaderboard.csv").read_bytes() for name in ("results", "second"))
    assert one == two
    frame = benchmarks.load_results(tmp_path / "results")
    random = frame[(frame["method"] == "random") & (frame["metric"] == "map@all")]
    assert random[random["seed"] == 0]["value"].tolist() != random[random["seed"] == 1]["value"].tolist()


def test_a_failure_is_a_row_and_exit_code_1(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from methods.floors import RawPixel

    def broken(self: RawPixel, pixels: Any) -> Any:
        raise RuntimeError("planted")

    monkeypatch.setattr(RawPixel, "encode_images", broken)
    assert command("--methods", "random,raw_pixel", "--protocols", "ucdr") == 1
    printed = capsys.readouterr()
    assert "cells: 3 failed, 3 ok" in printed.out
    assert printed.err.count("RuntimeError: planted") == 3
    table = (tmp_path / "results" / "report" / "leaderboard.md").read_text()
    assert "| raw_pixel (floor) | failed | failed | failed | failed |" in table
    assert "RuntimeError: planted" in table
    monkeypatch.undo()
    assert command("--methods", "random,raw_pixel", "--protocols", "ucdr") == 0
    assert "cells: 3 cached, 3 ok" in capsys.readouterr().out


def test_a_method_that_cannot_be_imported_is_a_row_until_it_can(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    METHODS.add("absent", "no_such_package.module:Method")
    try:
        assert command("--methods", "absent,random", "--protocols", "ucdr") == 1
        printed = capsys.readouterr()
        assert "cells: 1 failed, 3 ok" in printed.out
        assert "cannot load no_such_package.module:Method" in printed.err
        METHODS.remove("absent")
        METHODS.add("absent", "methods.floors:ConstantEmbedding")
        assert command("--methods", "absent,random", "--protocols", "ucdr") == 0
    finally:
        METHODS.remove("absent")
    assert "no_such_package" not in (tmp_path / "results" / "report" / "leaderboard.md").read_text()


def test_dry_run_lists_and_writes_nothing(command: Command, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert command("--methods", "random", "--protocols", "ucdr,udcdr", "--dry-run") == 0
    printed = capsys.readouterr().out
    assert printed.count("to run  tiny") == 6
    assert "6 cells, 0 cached, 3 fits to do" in printed
    assert not (tmp_path / "results").exists()
    assert command("--methods", "random", "--protocols", "ucdr") == 0
    before = sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*"))
    capsys.readouterr()
    assert command("--methods", "random", "--protocols", "ucdr,udcdr", "--dry-run") == 0
    assert "6 cells, 3 cached, 3 fits to do" in capsys.readouterr().out
    assert sorted((path, path.stat().st_mtime_ns) for path in tmp_path.rglob("*")) == before


def test_a_dry_run_in_which_something_cannot_be_planned_fails_as_the_run_does(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    (tmp_path / "data").mkdir()
    wanted = ("--methods", "random", "--protocols", "ucdr", "--data-root", str(tmp_path / "data"))
    assert command(*wanted, "--datasets", "domainnet", "--dry-run") == 1
    printed = capsys.readouterr().out
    assert "0 cells, 0 cached, 0 fits to do, 1 cannot be planned" in printed
    assert "broken  domainnet  ucdr  *  random: domainnet" in printed, "no name of an error class"
    assert command(*wanted, "--datasets", "domainnet") == 1
    assert command(*wanted, "--dry-run") == 0


def test_one_cell_is_one_cell_in_every_line(command: Command, capsys: pytest.CaptureFixture) -> None:
    one = ("--methods", "coop", "--protocols", "ucdr", "--splits", "1", "--set", "steps=1", "--keep-weights", "all")
    assert command(*one, "--dry-run") == 0
    printed = capsys.readouterr().out
    assert "1 cell, 0 cached, 1 fit to do, 0 cannot be planned" in printed
    assert command(*one) == 0
    printed += capsys.readouterr().out
    assert "(1 of 1 fit)" in printed
    assert not re.search(r"\b1 (cells|fits|trials|searches|rates|records|images|methods)\b", printed)


def test_fail_fast(command: Command, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    from methods.floors import RandomEmbedding

    monkeypatch.setattr(RandomEmbedding, "encode_images", lambda self, pixels: 1 / 0)
    assert command("--methods", "random,constant", "--protocols", "ucdr", "--fail-fast") == 1
    assert "cells: 1 failed\n" in capsys.readouterr().out


def test_an_interrupt_says_how_to_go_on(
    command: Command, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    from methods.floors import RandomEmbedding

    def stop(self: RandomEmbedding, pixels: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(RandomEmbedding, "encode_images", stop)
    assert command("--methods", "random", "--protocols", "ucdr") == 130
    assert "the same command goes on" in capsys.readouterr().err
    monkeypatch.undo()
    assert command("--methods", "random", "--protocols", "ucdr") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--methods", "zeroshot"],
            "--methods: unknown method 'zeroshot'; did you mean zero_shot or zero_shot_domain?",
        ),
        (["--datasets", "picto_domain"], "--datasets: unknown dataset 'picto_domain'; did you mean picto_domains"),
        (["--protocols", "udcd"], "--protocols: unknown protocol 'udcd'; did you mean udcdr"),
        (["--preset", "quik"], "--preset 'quik' is unknown; did you mean quick?"),
        (["--rules", "oficial"], "--rules 'oficial' is unknown; did you mean official?"),
        (["--select", "x"], "--select 'x' is unknown; choose from: bnm, dev, entropy, im, last, oracle, snd, val"),
        (["--precision", "fp16"], "--precision 'fp16' is unknown"),
        (["--seeds", "one"], "--seeds: cannot read 'one'"),
        (["--seeds", "-1"], "--seeds: a seed is 0 or larger"),
        (["--limit", "0"], "--limit must be positive"),
        (["--methods", " , "], "--methods: cannot read"),
        (["--set", "steps"], "--set steps: write KEY=VALUE"),
        (["--set", "tempalte=x"], "did you mean"),
        (["--config", "nowhere.toml"], "--config nowhere.toml: No such file"),
        (["--backbone", "./nowhere"], "--backbone: backbone folder ./nowhere does not exist"),
        (
            ["--select", "best"],
            "--select 'best' is unknown; choose from: bnm, dev, entropy, im, last, oracle, snd, val",
        ),
        (["--jobs", "-1"], "--jobs must be positive"),
        (["--jobs", "0"], "--jobs must be positive, not 0"),
        (["--threads", "0"], "--threads must be positive, not 0"),
        (["--shots", "1", "--shots-draw", "-1"], "--shots-draw must be 0 or more, not -1"),
        (["--splits", "0"], "--splits is either one number from 1 (the first N of each protocol) or names, not '0'"),
        (["--selectors", ""], "--selectors: cannot read ''; name at least one, or all"),
        (["--methods", ""], "--methods: cannot read ''; name at least one, or all"),
        (["--datasets", ""], "--datasets: cannot read ''; name at least one, or all"),
        (["--protocols", ","], "--protocols: cannot read ','; name at least one, or all"),
        (["--track", ""], "--track: cannot read ''; name at least one, e.g. tensorboard"),
        (["--splits", ""], "--splits: cannot read ''; name at least one, or give a number N"),
        (["--templates", ""], "--templates is empty; name one, or leave the option out"),
        (["--class-names", " "], "--class-names is empty; name one, or leave the option out"),
        (["--templates", "nope"], "benchmarks.run: --templates: "),
        (["--class-names", "/nope.json"], "benchmarks.run: --class-names: /nope.json"),
        (["--config", ""], "argument --config: is empty; name one"),
        (["--data-root", "/nope2"], "--data-root /nope2 is not a folder"),
        (["--datasets", "all", "--data-root", "/nope2"], "--data-root /nope2 is not a folder"),
        (["--dry-run", "--data-root", __file__], f"--data-root {__file__} is not a folder"),
        (["--dry-run", "--out", __file__], f"--out {__file__}: cannot be written ({__file__} is a file, not a folder)"),
        (["--out", f"{__file__}/x"], f"--out {__file__}/x: cannot be written ({__file__} is a file, not a folder)"),
        (["--jobs", "0.5"], "argument --jobs: a whole number is needed, not '0.5'"),
        (["--threads", "-1"], "--threads must be positive"),
        (["--out", ""], "--out is empty; name one, or leave the option out"),
        (["--data-root", " "], "--data-root is empty"),
        (["--backbone", ""], "--backbone is empty"),
        (["--device", ""], "--device is empty"),
        (["--seeds", ""], "--seeds: cannot read ''"),
        (["--seeds", "4294967296"], "--seeds: a seed is 0 or larger and at most 4294967295"),
        (
            ["--methods", "random", "--set", "coop.steps=3"],
            "--set coop.steps: coop is not a method of this run; add it",
        ),
        (["--methods", "random", "--set", "steps=3"], "--set steps: no method of this run has that setting"),
        (
            ["--methods", "coop", "--set", "steps=1e9"],
            "--set coop.steps takes a whole number (default 0), not 1000000000.0",
        ),
        (["--methods", "coop", "--set", "validate_every=-1"], "coop.validate_every must be at least 0"),
        (["--methods", "coop", "--set", "patience=-1"], "coop.patience must be at least 0"),
        (["--methods", "coop", "--set", "context_tokens=0"], "has {context} where context_tokens is 0"),
        (["--methods", "pros", "--set", "temperature=0"], "--set pros.temperature must be above 0"),
        (["--methods", "lora", "--set", "learning_rate=abc"], "--set lora.learning_rate takes a number"),
        (["--methods", "lora", "--set", "learning_rate=true"], "--set lora.learning_rate takes a number"),
        (["--methods", "lora", "--set", "learning_rate=nan"], "--set lora.learning_rate must be at least 0, not nan"),
        (["--methods", "lora", "--set", "learning_rate=inf"], "lora.learning_rate must be a finite number, not inf"),
        (["--methods", "lora", "--set", "fast=1"], "--set lora.fast takes true or false (default true), not 1"),
        (["--methods", "zero_shot", "--set", "template={foo}"], "template has the stray '{foo}'"),
        (["--methods", "zero_shot", "--set", "template={name} {}"], "must have one place for the class name"),
        (["--shard", "3/2"], "--shard: cannot read '3/2'; write I/N"),
        (["--executor", "dask"], "--executor 'dask' is unknown; choose from: local, ray"),
        (["--worker", "2"], "unrecognized arguments: --worker 2"),
        (["--method", "all"], "unrecognized arguments: --method all"),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_code_2(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture, arguments: list[str], message: str
) -> None:
    try:
        code = command(*arguments)
    except SystemExit as error:
        code = int(str(error.code))
    assert code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert message in lines[0]
    assert not (tmp_path / "results").exists()


def test_set_reaches_the_method(command: Command, tmp_path: Path) -> None:
    assert command("--methods", "random", "--protocols", "ucdr", "--set", "random.width=5") == 0
    frame = benchmarks.load_results(tmp_path / "results")
    assert set(frame["config"]) == {'{"width": 5}'}


def test_official_rows_stand_in_tables_of_their_own(command: Command, tmp_path: Path) -> None:
    for rules in ("clean", "official"):
        assert command("--methods", "zero_shot", "--protocols", "ucdr", "--rules", rules) == 0
    text = (tmp_path / "results" / "report" / "leaderboard.md").read_text()
    clean, official = text.split("OFFICIAL RULES", 1)
    assert clean.count("### UCDR, unseen: map@all") == 1
    assert official.count("### UCDR, unseen: map@all") == 1


def test_smoke_is_marked_as_meaningless(command: Command, tmp_path: Path) -> None:
    assert command("--methods", "random", "--protocols", "ucdr,udcdr", "--preset", "smoke") == 0
    text = (tmp_path / "results" / "report" / "leaderboard.md").read_text()
    assert "LIMITED to 256 images a role" in text
    frame = benchmarks.load_results(tmp_path / "results")
    assert set(frame["split"]) == {"glyph"}, "one split"


def test_the_report_is_made_from_the_store_alone(
    command: Command, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert command("--methods", "random,zero_shot", "--protocols", "ucdr") == 0
    capsys.readouterr()
    made = tmp_path / "results" / "report" / "leaderboard.csv"
    expected = made.read_bytes()
    monkeypatch.setattr("methods.registry.METHODS.get", None)
    monkeypatch.setattr("benchmarks.datasets.registry.DATASETS.get", None)
    monkeypatch.setattr("methods.parts.backbone.Backbone.load", None)
    assert report.main([str(tmp_path / "results"), "--out", str(tmp_path / "page")]) == 0
    assert (tmp_path / "page" / "leaderboard.csv").read_bytes() == expected
    assert str(tmp_path / "page" / "leaderboard.md") in capsys.readouterr().out
    assert report.main([str(tmp_path / "nowhere")]) == 2
    assert report.main([str(tmp_path / "page")]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 2


def test_data_command(tiny_dataset: type, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    assert data.main(["list"]) == 0
    assert "picto_domains" in capsys.readouterr().out
    assert data.main(["card", "tiny"]) == 0
    printed = capsys.readouterr().out
    assert "gallery domain   flat" in printed
    assert "288" in printed
    assert data.main(["verify", "tiny"]) == 0
    assert re.search(r"288 images decode, \d+ tasks are sound\ndata hash [0-9a-f]{64}", capsys.readouterr().out)
    assert data.main(["splits", "tiny"]) == 0
    assert "test: 4 classes, sha256 " in capsys.readouterr().out
    assert data.main(["card", "tinny"]) == 2
    assert "did you mean tiny?" in capsys.readouterr().err

    def undecodable(self: Any, rows: Any, size: int) -> Any:
        raise OSError("truncated file")

    monkeypatch.setattr(tiny_dataset, "pixels", undecodable)
    assert data.main(["verify", "tiny"]) == 1
    assert "cannot be decoded: truncated file" in capsys.readouterr().err


def test_command_dispatch(command: Command, capsys: pytest.CaptureFixture, tmp_path: Path) -> None:
    for name in ("methods", "datasets", "protocols"):
        assert cli.main([name]) == 0
    printed = capsys.readouterr().out
    assert all(name in printed for name in ("zero_shot", "picto_domains", "udcdr"))
    assert cli.main(["cite", "zero_shot"]) == 0
    assert capsys.readouterr().out.startswith("@inproceedings{radford2021clip,")
    assert cli.main(["cite", "zeroshot"]) == 2
    assert cli.main(["cite", "random"]) == 1
    assert cli.main(["--version"]) == 0
    assert re.fullmatch(r"ucdr-bench(: a checkout .*| \d+\.\d+\S*)\n", capsys.readouterr().out)
    assert cli.main(["rnu"]) == 2
    assert "did you mean run" in capsys.readouterr().err
    assert cli.main([]) == 2
    assert cli.main(["--help"]) == 0
    assert "report" in capsys.readouterr().out
    with pytest.raises(SystemExit) as caught:
        cli.main(["run", "--help"])
    assert caught.value.code == 0
    assert "usage: ucdr-bench run" in capsys.readouterr().out


def test_retrieve_gives_the_nearest_images(tiny_backbone: Any) -> None:
    import torch

    from methods.zero_shot import ZeroShot

    gallery = torch.rand(9, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    method = ZeroShot(tiny_backbone)
    ids, scores = benchmarks.retrieve(method, gallery[[4, 7]], gallery, k=3, batch_size=4)
    assert ids.shape == scores.shape == (2, 3)
    assert ids[:, 0].tolist() == [4, 7]
    assert scores[:, 0] == pytest.approx([1, 1], abs=1e-6)
    cosine = method.encode_images(gallery[[4, 7]]) @ method.encode_images(gallery).T
    assert ids.tolist() == cosine.argsort(dim=1, descending=True)[:, :3].tolist()
    with pytest.raises(ValueError, match="gallery is empty"):
        benchmarks.retrieve(method, gallery, gallery[:0], k=3)


@pytest.fixture(scope="module")
def eight_images() -> Any:
    """uint8 ``[8, 3, 32, 32]``."""
    import torch

    return torch.randint(0, 256, (8, 3, 32, 32), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def test_retrieve_takes_bytes_and_every_float(tiny_backbone: Any, eight_images: Any) -> None:
    import torch

    from methods.zero_shot import ZeroShot

    method = ZeroShot(tiny_backbone)
    want_ids, want = benchmarks.retrieve(method, eight_images[:3].float() / 255, eight_images.float() / 255, k=8)
    ids, scores = benchmarks.retrieve(method, eight_images[:3], eight_images, k=8)
    assert (ids == want_ids).all()
    assert (scores == want).all()
    ids, scores = benchmarks.retrieve(method, eight_images[:3].double() / 255, eight_images, k=8)
    assert scores == pytest.approx(want, abs=1e-6)
    for kind in (torch.float16, torch.bfloat16):
        _, scores = benchmarks.retrieve(method, eight_images[:3].to(kind) / 255, eight_images, k=1)
        assert scores == pytest.approx(want[:, :1], abs=0.02)
    assert benchmarks.retrieve(method, eight_images[:0], eight_images, k=3)[0].shape == (0, 3)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda x: x.float(), r"must be in \[0, 1\], not from 0 to 255; divide by 255"),
        (lambda x: x.float() / 255 * 2 - 1, r"must be in \[0, 1\], not from -1 to 1; clamp them"),
        (lambda x: x.float() * float("nan"), r"must be in \[0, 1\], not from nan to nan"),
        (lambda x: x.float() / 255 + float("inf"), r"must be in \[0, 1\], not from inf to inf"),
        (lambda x: x.long(), "must be floats in .* or uint8, not torch.int64"),
        (lambda x: x > 100, "must be floats in .* or uint8, not torch.bool"),
        (lambda x: x[0], r"must be RGB images \[B, 3, H, W\], not of shape \[3, 32, 32\]"),
        (lambda x: x.permute(0, 2, 3, 1), r"must be RGB images \[B, 3, H, W\], not of shape \[8, 32, 32, 3\]"),
        (lambda x: x[:, :1], "must be RGB images"),
        (lambda x: x.numpy(), "must be a torch tensor .*, not ndarray; torch.from_numpy"),
        (lambda x: [x], "must be a torch tensor .*, not list$"),
        (lambda x: None, "must be a torch tensor .*, not NoneType$"),
    ],
)
def test_retrieve_names_the_images_that_it_refuses(
    tiny_backbone: Any, eight_images: Any, wrong: Callable[[Any], Any], message: str
) -> None:
    from methods.zero_shot import ZeroShot

    method = ZeroShot(tiny_backbone)
    with pytest.raises(ValueError, match=f"^queries {message}") as caught:
        benchmarks.retrieve(method, wrong(eight_images), eight_images)
    assert "\n" not in str(caught.value)
    with pytest.raises(ValueError, match=f"^gallery {message}"):
        benchmarks.retrieve(method, eight_images, wrong(eight_images))


@pytest.mark.parametrize("number", [0, -1, 1.5, True, "3", None])
@pytest.mark.parametrize("name", ["k", "batch_size"])
def test_retrieve_takes_whole_numbers(tiny_backbone: Any, eight_images: Any, name: str, number: Any) -> None:
    from methods.zero_shot import ZeroShot

    with pytest.raises(ValueError, match=f"^{name} must be a whole number of at least 1, not {number!r}$"):
        benchmarks.retrieve(ZeroShot(tiny_backbone), eight_images, eight_images, **{name: number})
