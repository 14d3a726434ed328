"""Store: whole records or none, keys that follow the inputs, old records that keep loading, hostile names."""

from __future__ import annotations

import copy
import dataclasses
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

import benchmarks
from benchmarks.store.files import ResultStore, read_record, safe_name, write_atomically
from benchmarks.store.frame import load_results
from benchmarks.store.records import SCHEMA, CellId, Cost, Fit, GalleryScores, Record, RecordError, Search, content_key

FIXTURES = Path(__file__).parents[1] / "fixtures"
ROOT = Path(__file__).parents[2]


def cell(**changes: Any) -> CellId:
    values: dict[str, Any] = {
        "method": "zero_shot",
        "variant": "paper",
        "config": {"template": "a photo of a {}"},
        "backbone": "picto-clip-v1",
        "dataset": "tiny",
        "protocol": "ucdr",
        "rules": "clean",
        "split": "line",
        "select": "val",
        "seed": 0,
    }
    return CellId(**{**values, **changes})


def scores(value: float = 0.5) -> GalleryScores:
    return GalleryScores({"map@all": value, "recall@1": 0.25}, 8, 24, "cosine", 1, "exclude")


def record(status: str = "ok", **changes: Any) -> Record:
    inputs = {"seed": 0, "dataset": {"data_hash": "ab" * 32}, "backbone": {"weights_hash": "cd" * 32}}
    inputs = changes.pop("inputs", inputs)
    values: dict[str, Any] = {
        "key": content_key(inputs),
        "status": status,
        "cell": cell(),
        "inputs": inputs,
        "method": {"title": "CLIP", "floor": False},
        "dataset": {"title": "Tiny", "version": "v1", "gallery_domain": "flat"},
        "galleries": {"unseen": ["map@all", "recall@1"], "mixed": ["map@all", "recall@1"]},
        "scores": {"unseen": scores(), "mixed": scores(0.375)} if status == "ok" else {},
        "fit": Fit("f1", 3, 2, [{"step": 0, "loss": 1.5}], [{"step": 2, "score": 0.4}]),
        "cost": Cost({"fit": 1.0, "encode": 0.5, "rank": 0.25}, 100.0, None, 321.0, 7, 99),
    }
    return Record(**{**values, **changes})


def per_query() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "query": ["q1", "q2"],
            "gallery": ["unseen", "unseen"],
            "ap@all": [0.5, 0.25],
            "top_keys": [["a", "b"], ["b", "a"]],
            "top_scores": [[0.9, 0.1], [0.8, 0.2]],
        }
    )


def test_a_record_comes_back_as_it_was(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    written = store.write(record(), per_query())
    assert store.read(written.cell, written.key) == written
    frame = store.per_query(written)
    assert frame["ap@all"].tolist() == [0.5, 0.25]
    assert [list(keys) for keys in frame["top_keys"]] == [["a", "b"], ["b", "a"]]
    assert store.finished(written.cell, written.key) == written


@pytest.mark.parametrize("status", ["failed", "skipped"])
def test_only_a_result_counts_as_finished(tmp_path: Path, status: str) -> None:
    store = ResultStore(tmp_path)
    written = store.write(record(status, reason="no", traceback="trace"))
    assert store.read(written.cell, written.key) == written
    assert store.finished(written.cell, written.key) is None
    again = store.write(record(), per_query())
    assert store.finished(again.cell, again.key) == again


def test_not_applicable_is_an_answer(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    written = store.write(record("not_applicable", reason="no such class"))
    assert store.finished(written.cell, written.key) == written


@pytest.mark.parametrize(
    "damage", ["cut", "empty", "binary", "folder", "foreign", "edited", "no side file", "cut side"]
)
def test_an_unreadable_record_counts_as_absent_and_is_kept(tmp_path: Path, damage: str) -> None:
    lines: list[str] = []
    store = ResultStore(tmp_path, lines.append)
    written = store.write(record(), per_query())
    path = store.path(written.cell, written.key)
    side = path.with_suffix(".parquet")
    text = path.read_text()
    if damage == "cut":
        path.write_text(text[: len(text) // 2])
    elif damage == "empty":
        path.write_text("")
    elif damage == "binary":
        path.write_bytes(b"\xff\xfe\x00\x01")
    elif damage == "folder":
        path.unlink()
        path.mkdir()
    elif damage == "foreign":
        path.write_text("[1, 2]")
    elif damage == "edited":
        path.write_text(text.replace('"seed": 0', '"seed": 1'))
    elif damage == "no side file":
        side.unlink()
    else:
        side.write_bytes(side.read_bytes()[:100])
    assert store.finished(written.cell, written.key, set_aside=False) is None
    assert path.exists(), "a look must not change the store"
    (row,) = load_results(tmp_path, lines.append).to_dict("records")
    assert (row["status"], row["metric"], row["data_hash"]) == ("failed", None, "")
    assert (row["method"], row["dataset"], row["protocol"], row["split"], row["seed"], row["key"]) == (
        "zero_shot", "tiny", "ucdr", "line", 0, written.key
    )  # fmt: skip
    assert row["reason"] == lines[-1]
    assert "run its command again" in row["reason"]
    assert store.finished(written.cell, written.key) is None
    assert not path.exists()
    assert path.with_suffix(".json.unreadable").exists()
    assert len(lines) == 3
    assert all(str(path) in line and "\n" not in line for line in lines)
    store.write(record(), per_query())
    assert store.finished(written.cell, written.key) is not None


def closed(monkeypatch: pytest.MonkeyPatch, *paths: Path) -> None:
    """Let these files and folders be as ones that this user may not read; also for root, who may read everything."""

    def refusing(real: Any, what: str) -> Any:
        def refuse(path: Any, *args: Any, **named: Any) -> Any:
            named_path = Path(path) if isinstance(path, str | Path) else Path()
            if {*named_path.parents} & {*paths} or (what != "stat" and named_path in paths):
                if what == "access":
                    return False
                raise PermissionError(13, "Permission denied", str(path))
            return real(path, *args, **named)

        return refuse

    for module, name in ((os, "scandir"), (os, "stat"), (os, "access"), (io, "open")):
        monkeypatch.setattr(module, name, refusing(getattr(module, name), name))


DENIED = "cannot be read (Permission denied): give yourself access"


@pytest.mark.parametrize("which", ["cells", "cells/tiny", "cells/tiny/ucdr"])
def test_a_folder_that_cannot_be_read_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, which: str) -> None:
    lines: list[str] = []
    store = ResultStore(tmp_path, lines.append)
    written = store.write(record(), per_query())
    other = store.write(record(inputs={"seed": 1}, cell=cell(seed=1)), per_query())
    closed(monkeypatch, tmp_path / which)
    said = [f"{tmp_path / which}: {DENIED}; until then its records count as absent"]
    assert list(store.records()) == []
    assert lines == said
    warned: list[str] = []
    (row,) = load_results(tmp_path, warned.append).to_dict("records")
    assert (row["status"], row["reason"], warned) == ("failed", lines[0], said)
    parts = which.split("/")
    assert (row["dataset"], row["protocol"]) == ([*parts, "*", "*"][1], [*parts, "*", "*"][2])
    store = ResultStore(tmp_path, lines.append)
    lines.clear()
    assert [store.read(one.cell, one.key) for one in (written, other)] == [None, None]
    assert lines == said, "a folder is told once, however many cells are looked for"
    assert ResultStore(tmp_path, warned.append).paths() == []
    assert warned == said * 2


def test_searches_in_a_folder_that_cannot_be_read_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    store = ResultStore(tmp_path, lines.append)
    store.write_search("tiny", "coop", content_key({"search": 1}), {"search": 1}, Search([{"learning_rate": 0.1}], 0.1))
    closed(monkeypatch, tmp_path / "searches" / "tiny")
    assert list(store.searches()) == []
    assert store.read_search("tiny", "coop", content_key({"search": 1})) is None
    assert lines == [f"{tmp_path / 'searches' / 'tiny'}: {DENIED}; until then its records count as absent"]


@pytest.mark.parametrize("ending", [".json", ".parquet"])
def test_a_file_that_may_not_be_read_is_not_to_be_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ending: str
) -> None:
    store = ResultStore(tmp_path)
    written = store.write(record(), per_query())
    path = store.path(written.cell, written.key)
    closed(monkeypatch, path.with_suffix(ending))
    (row,) = load_results(tmp_path, lambda line: None).to_dict("records")
    what = "" if ending == ".json" else f"its per-query file {path.stem}.parquet "
    assert row["reason"] == f"{path}: {what}{DENIED}"


def test_a_record_of_a_newer_schema_is_not_to_be_deleted(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    written = store.write(record(), per_query())
    path = store.path(written.cell, written.key)
    path.write_text(json.dumps({**json.loads(path.read_text()), "schema": SCHEMA + 1}))
    (row,) = load_results(tmp_path, lambda line: None).to_dict("records")
    assert row["reason"].endswith("upgrade ucdr-bench")


def test_a_results_folder_that_cannot_be_read_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ResultStore(tmp_path).write(record(), per_query())
    closed(monkeypatch, tmp_path)
    with pytest.raises(PermissionError) as raised:
        load_results(tmp_path)
    assert str(raised.value) == f"{tmp_path}: {DENIED}"
    lines: list[str] = []
    store = ResultStore(tmp_path, lines.append)
    assert store.read(cell(), record().key) is None, "a look at what is done goes on"
    assert lines == [f"{tmp_path}: {DENIED}; until then its records count as absent"]


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "record.json"
    write_atomically(path, b"old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new and longer")
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["record.json"]


def test_a_writer_killed_at_any_moment_leaves_whole_records(tmp_path: Path) -> None:
    program = (
        "import itertools, sys; from tests.store.test_files import ResultStore, record, per_query\n"
        "store = ResultStore(sys.argv[1])\n"
        "store.write(record(inputs={'seed': 99}), per_query())\n"
        "print('go', flush=True)\n"
        "for seed in itertools.cycle(range(40)): store.write(record(inputs={'seed': seed}), per_query())"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    for delay in (0.03, 0.11, 0.27):
        writer = subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path)], stdout=subprocess.PIPE, cwd=ROOT, env=environment
        )
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(delay)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
    lines: list[str] = []
    found = list(ResultStore(tmp_path, lines.append).records())
    assert found
    assert not lines, "every record that is there is whole, side file included"


INPUTS: dict[str, Any] = {
    "scoring": 1,
    "method": {"name": "coop", "version": 1, "config": {"context": 16, "steps": 60}, "learning_rates": [1e-3]},
    "backbone": {"weights_hash": "00", "preprocessing": {"mean": [0.5], "size": 64}, "precision": "float32"},
    "dataset": {"name": "tiny", "version": "v1", "data_hash": "00"},
    "task": {"protocol": "ucdr", "split": "line", "rules": "clean", "fit_id": "00", "retrievals": {"unseen": "00"}},
    "select": "val",
    "seed": 0,
}


def leaves(tree: dict[str, Any], path: tuple[str, ...] = ()) -> list[tuple[str, ...]]:
    return [
        leaf
        for key, value in tree.items()
        for leaf in (leaves(value, (*path, key)) if isinstance(value, dict) else [(*path, key)])
    ]


@pytest.mark.parametrize("path", leaves(INPUTS), ids="/".join)
def test_the_key_changes_with_each_input(path: tuple[str, ...]) -> None:
    changed = copy.deepcopy(INPUTS)
    inner = changed
    for part in path[:-1]:
        inner = inner[part]
    inner[path[-1]] = "another"
    assert content_key(changed) != content_key(INPUTS)


def test_the_key_ignores_the_order_of_settings() -> None:
    turned = {key: INPUTS[key] for key in reversed(INPUTS)}
    assert content_key(turned) == content_key(INPUTS)
    assert content_key({"a": (1, 2)}) == content_key({"a": [1, 2]})


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "/absolute",
        "..",
        ".hidden",
        "a\nb",
        "a\x00b",
        "<script>",
        "con:aux",
        "ß" * 300,
        "",
        " ",
        "-rf",
    ],
)
def test_hostile_names_stay_in_the_folder(tmp_path: Path, name: str) -> None:
    part = safe_name(name)
    assert part
    assert part not in (".", "..")
    assert len(part) <= 48
    assert not set(part) - set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._+-")
    store = ResultStore(tmp_path / "results")
    hostile = record(cell=cell(method=name, dataset=name, protocol=name, split=name))
    written = store.write(hostile, per_query())
    path = store.path(written.cell, written.key).resolve()
    assert path.is_relative_to((tmp_path / "results" / "cells").resolve())
    assert [p.name for p in tmp_path.iterdir()] == ["results"]
    assert store.read(written.cell, written.key) == written


def test_two_names_with_one_file_name_are_two_cells(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    for split in ("a/b", "a?b"):
        store.write(record(cell=cell(split=split), inputs={"split": split}), per_query())
    assert sorted(r.cell.split for r in store.records()) == ["a/b", "a?b"]


def test_records_of_schema_1_keep_loading() -> None:
    lines: list[str] = []
    frame = load_results(FIXTURES / "store_v1", lines.append)
    assert not lines
    assert sorted(frame["status"].unique()) == ["failed", "ok"]
    ok = frame[(frame["status"] == "ok") & (frame["metric"] == "map@all")].set_index("gallery")["value"]
    assert ok.to_dict() == {"unseen": 0.5, "mixed": 0.375}
    failed = frame[frame["status"] == "failed"]
    assert failed["reason"].tolist() == ["RuntimeError: out of memory"] * 2
    assert failed["value"].isna().all()
    paths = ResultStore(FIXTURES / "store_v1").paths()
    assert [read_record(path).schema for path in paths] == [1, 1]


def test_a_newer_schema_is_refused_with_the_mend() -> None:
    data = json.loads(record().to_json())
    with pytest.raises(RecordError, match="upgrade ucdr-bench"):
        Record.from_json(json.dumps({**data, "schema": SCHEMA + 1}))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("status",), "fine", "record.status"),
        (("cell", "seed"), "0", "record.cell.seed must be int"),
        (("cell", "seed"), True, "record.cell.seed must be int"),
        (("scores", "unseen", "metrics", "map@all"), "high", "metrics.map@all must be float"),
        (("scores", "unseen", "metrics", "map@all"), None, "metrics.map@all must be float"),
        (("galleries",), {"unseen": []}, "not every gallery"),
        (("cell",), None, "record.cell must be an object"),
        (("cost", "seconds"), [], "record.cost.seconds must be dict"),
    ],
)
def test_a_record_is_checked_when_read(path: tuple[str, ...], value: Any, message: str) -> None:
    data = json.loads(record().to_json())
    inner = data
    for part in path[:-1]:
        inner = inner[part]
    inner[path[-1]] = value
    with pytest.raises(RecordError, match=message):
        Record.from_json(json.dumps(data))


def test_a_missing_field_is_named() -> None:
    data = json.loads(record().to_json())
    del data["cell"]["seed"]
    with pytest.raises(RecordError, match=r"record\.cell\.seed is missing"):
        Record.from_json(json.dumps(data))


def test_nan_in_a_loss_curve_is_valid_json() -> None:
    text = record(fit=Fit(losses=[{"step": 1, "loss": float("nan")}])).to_json()
    assert "NaN" not in text
    assert Record.from_json(text).fit.losses == [{"step": 1, "loss": None}]


def test_the_frame_has_one_row_a_metric_and_cell(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    store.write(record(), per_query())
    store.write(record("failed", inputs={"seed": 1}, cell=cell(seed=1), reason="boom"))
    frame = benchmarks.load_results(tmp_path)
    assert len(frame) == 2 * 2 + 2
    row = frame[(frame["gallery"] == "mixed") & (frame["metric"] == "map@all")].iloc[0]
    assert (row["value"], row["n_queries"], row["n_without_relevant"], row["gallery_size"]) == (0.375, 8, 1, 24)
    assert (row["fit_seconds"], row["trainable_parameters"], row["headline"]) == (1.0, 7, ("map@all", "recall@1"))
    assert frame[frame["status"] == "failed"]["gallery"].tolist() == ["unseen", "mixed"]


def test_no_folder_is_an_error_that_names_the_mend(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"benchmarks\.run --out"):
        load_results(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert load_results(tmp_path / "empty").empty


def make_fixture() -> None:
    """Write tests/fixtures/store_v1 anew (only for a new schema: the committed files must not change)."""
    store = ResultStore(FIXTURES / "store_v1")
    store.write(dataclasses.replace(record(), created="2026-01-01T00:00:00+00:00"), per_query())
    failed = record("failed", inputs={**record().inputs, "seed": 1}, cell=cell(seed=1))
    store.write(dataclasses.replace(failed, reason="RuntimeError: out of memory", traceback="Traceback ..."))
