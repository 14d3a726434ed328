"""Packs: the same frame and per-query values as the loose store, small, reproducible, and plain when damaged."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pyarrow import parquet

from benchmarks import cli
from benchmarks.console import file_size
from benchmarks.pack import main
from benchmarks.store import packed
from benchmarks.store.files import ResultStore, write_atomically
from benchmarks.store.frame import load_results
from benchmarks.store.pack_writer import sample, write_pack
from benchmarks.store.packed import MANIFEST, PER_QUERY, RECORDS, PackError, open_pack
from benchmarks.store.records import CellId, Fit, GalleryScores, Record, RecordError, Search, content_key
from benchmarks.store.weights import FitWeights, WeightStore

CLASSES = ("bee", "cat", "dog\n", "../eel", "Fuß", "gnu")


@pytest.fixture(autouse=True)
def _no_flush(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


def frame_of(rng: np.random.Generator, queries: int, *, classified: bool = False) -> pd.DataFrame:
    """Per-query values as a run stores them: two galleries, or a gallery and a classification."""
    classes = [CLASSES[i % len(CLASSES)] for i in range(queries)]
    about = {"query": [f"line/{c}/{i}" for i, c in enumerate(classes)], "class": classes, "domain": "line"}
    keys = [f"flat/{c}/{i}" for c in CLASSES for i in range(5)]

    def ranked(gallery: str) -> pd.DataFrame:
        values = {name: rng.random(queries) for name in ("ap@all", "ap@200[trec]", "p@100", "recall@1", "recall@10")}
        without = rng.random(queries) < 0.1
        values = {name: np.where(without, np.nan, column) for name, column in values.items()}
        top = [[str(key) for key in rng.choice(keys, 10, replace=False)] for _ in range(queries)]
        best = [np.round(np.sort(rng.normal(0, 1, 10))[::-1], 4).tolist() for _ in range(queries)]
        count = np.where(without, 0, np.arange(queries) % 7 + 1)
        lists = {"top_keys": top, "top_scores": best}
        return pd.DataFrame({**about, "gallery": gallery, "n_relevant": count, **values, **lists})

    frames = [ranked("unseen")]
    if classified:
        credit = {"credit": (rng.random(queries) < 0.5).astype(float), "zsl_credit": rng.random(queries)}
        best = [np.round(np.sort(rng.normal(20, 5, 3))[::-1], 4).tolist() for _ in range(queries)]
        names = [list(CLASSES[:3]) for _ in range(queries)]
        lists = {"top_keys": names, "top_scores": best}
        frames.append(pd.DataFrame({**about, "gallery": "target", **credit, "unseen": True, **lists}))
    else:
        frames.append(ranked("mixed"))
    return pd.concat(frames, ignore_index=True)


def record(
    method: str, split: str, seed: int, *, protocol: str = "ucdr", status: str = "ok", value: float = 0.5
) -> Record:
    inputs = {"method": {"name": method, "version": 1}, "split": split, "seed": seed, "protocol": protocol}
    galleries = {
        "unseen": ["map@200[trec]"],
        "target" if protocol == "uda" else "mixed": ["accuracy[image]", "recall@1"],
    }
    scores = {
        name: GalleryScores({"map@all": value / (1 + i), "recall@1": 1 / 3}, 8, 24, "cosine")
        for i, name in enumerate(galleries)
    }
    return Record(
        key=content_key(inputs),
        status=status,  # type: ignore[arg-type]
        cell=CellId(method, "paper", {"steps": 7}, "picto", "tiny", protocol, "clean", split, "val", seed),
        inputs=inputs,
        method={"title": method},
        dataset={"title": "Tiny"},
        galleries=galleries,
        scores=scores if status == "ok" else {},
        fit=Fit("f", 2, 1, [{"step": 0, "loss": 0.1 + value}]),
        reason="" if status == "ok" else "RuntimeError: boom",
    )


def fill(root: Path, *, methods: int = 3, seeds: tuple[int, ...] = (0, 1), queries: int = 24) -> ResultStore:
    rng = np.random.default_rng(0)
    store = ResultStore(root)
    for protocol, split in (("ucdr", "line"), ("ucdr", "a/b\n"), ("uda", "line to flat")):
        for method in range(methods):
            for seed in seeds:
                frame = frame_of(rng, queries, classified=protocol == "uda")
                store.write(record(f"m{method}", split, seed, protocol=protocol, value=rng.random()), frame)
    store.write(record("broken", "line", 0, status="failed"))
    store.write_card("methods", "m0", {"title": "M0"})
    store.write_resolved({"seeds": list(seeds)})
    store.write_search("tiny", "m0", content_key({"search": 1}), {"search": 1}, Search([{"learning_rate": 0.1}], 0.1))
    return store


@pytest.fixture(scope="module")
def loose(tmp_path_factory: pytest.TempPathFactory) -> ResultStore:
    return fill(tmp_path_factory.mktemp("loose"))


@pytest.fixture(params=["lean", "full"])
def form(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def only(store: ResultStore, **cell: Any) -> Record:
    found = [r for r in store.records() if all(getattr(r.cell, name) == value for name, value in cell.items())]
    assert len(found) == 1
    return found[0]


def test_the_frame_of_results_is_that_of_the_loose_store(loose: ResultStore, tmp_path: Path, form: str) -> None:
    manifest = write_pack(loose, tmp_path, form=form)
    pd.testing.assert_frame_equal(load_results(tmp_path), load_results(loose.root), check_exact=True)
    lines: list[str] = []
    store = ResultStore(tmp_path, lines.append)
    assert list(store.records()) == list(loose.records())
    assert store.paths() == []
    assert (manifest.form, manifest.records, manifest.searches) == (form, 19, 1)
    assert manifest.rows == sum(r.per_query.rows for r in loose.records() if r.per_query)
    for name in (RECORDS, PER_QUERY):
        note = json.loads(parquet.read_schema(tmp_path / name).metadata[b"ucdr-bench pack"])
        assert note["form"] == form
        assert note["rounding"] == (1e-4 if form == "lean" else 0)
    assert (tmp_path / "cards/methods/m0.json").read_bytes() == (loose.root / "cards/methods/m0.json").read_bytes()
    assert (tmp_path / "resolved.json").read_bytes() == (loose.root / "resolved.json").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == sorted(
        [MANIFEST, RECORDS, PER_QUERY, "cards", "resolved.json"]
    )
    assert not lines


def test_cells_and_searches_are_found_in_a_pack(loose: ResultStore, tmp_path: Path, form: str) -> None:
    write_pack(loose, tmp_path, form=form)
    store = ResultStore(tmp_path)
    for one in loose.records():
        assert store.read(one.cell, one.key) == one
        assert (store.finished(one.cell, one.key) == one) == (one.status == "ok")
    assert store.read(only(loose, method="broken").cell, "0" * 32) is None
    assert store.read_search("tiny", "m0", content_key({"search": 1})) == Search([{"learning_rate": 0.1}], 0.1)
    assert store.read_search("tiny", "m0", content_key({"search": 2})) is None
    with pytest.raises(RecordError, match="has no per-query values"):
        store.per_query(only(store, method="broken"))


def test_full_keeps_every_value(loose: ResultStore, tmp_path: Path) -> None:
    write_pack(loose, tmp_path, form="full")
    store = ResultStore(tmp_path)
    for one in loose.records():
        if one.per_query:
            pd.testing.assert_frame_equal(store.per_query(one), loose.per_query(one), check_exact=True)


def test_lean_keeps_what_reports_show(loose: ResultStore, tmp_path: Path) -> None:
    write_pack(loose, tmp_path, form="lean", top=4)
    store = ResultStore(tmp_path)
    shown: dict[tuple[str, str, str], set[str]] = {}
    for one in loose.records():
        if one.per_query is None:
            continue
        exact, lean = loose.per_query(one), store.per_query(one)
        kept = ["query", "class", "domain", "gallery", "n_relevant", "ap@all", "ap@200[trec]", "recall@1"]
        kept += ["credit", "unseen"] if one.cell.protocol == "uda" else []
        assert sorted(lean.columns) == sorted([*kept, "top_keys", "top_scores"])
        pd.testing.assert_frame_equal(lean[kept], exact[kept], check_exact=False, rtol=0, atol=0.5001e-4)
        exactly = [name for name in kept if exact[name].dtype != float or name == "n_relevant"]
        pd.testing.assert_frame_equal(lean[exactly], exact[exactly], check_exact=True)
        rounded = lean["ap@all"].dropna()
        assert (rounded == (rounded * 1e4).round() / 1e4).all()
        there = lean["top_keys"].notna()
        assert (there == lean["top_scores"].notna()).all()
        if one.cell.seed != 0:
            assert not there.any()
            continue
        assert lean[there].groupby("gallery").size().tolist() == [4, 4]
        assert lean[there].groupby("gallery")["class"].nunique().tolist() == [4, 4], "spread over classes"
        for name in ("top_keys", "top_scores"):
            assert [list(v) for v in lean.loc[there, name]] == [list(v) for v in exact.loc[there, name]]
        for gallery, part in lean[there].groupby("gallery"):
            place = (one.cell.protocol, one.cell.split, str(gallery))
            assert shown.setdefault(place, set(part["query"])) == set(part["query"]), "the same under every method"
    assert len(shown) == 6


def test_the_lowest_seed_there_is_keeps_its_images(tmp_path: Path) -> None:
    write_pack(fill(tmp_path / "loose", methods=1, seeds=(5, 3)), tmp_path / "pack")
    store = ResultStore(tmp_path / "pack")
    kept = {r.cell.seed: store.per_query(r)["top_keys"].notna().any() for r in store.records() if r.per_query}
    assert kept == {3: True, 5: False}


def test_the_same_records_give_the_same_bytes(loose: ResultStore, tmp_path: Path, form: str) -> None:
    for name in "ab":
        write_pack(loose, tmp_path / name, form=form)
    for name in (MANIFEST, RECORDS, PER_QUERY):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    for again in ("c", "c"):  # a pack of a pack is that pack, over a former one too
        write_pack(ResultStore(tmp_path / "a"), tmp_path / again, form=form)
    for name in (MANIFEST, RECORDS, PER_QUERY):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "c" / name).read_bytes()


def test_a_loose_record_wins_over_a_packed_one(loose: ResultStore, tmp_path: Path) -> None:
    write_pack(loose, tmp_path, form="full")
    store = ResultStore(tmp_path)
    old = only(store, method="m1", split="line", seed=1)
    frame = frame_of(np.random.default_rng(9), 24)
    mine = store.write(dataclasses.replace(old, notes=["again"]), frame)
    other = store.write(record("m9", "line", 0), frame)
    assert only(store, method="m1", split="line", seed=1) == mine
    assert store.read(mine.cell, mine.key) == mine
    assert store.per_query(mine)["ap@all"].equals(frame["ap@all"])
    assert len(list(store.records())) == 20
    names = [store.name(r.cell, r.key) for r in store.records()]
    assert names == sorted(names, key=lambda name: Path(name).parts), "one order for both kinds"
    assert store.per_query(old)["ap@all"].equals(loose.per_query(old)["ap@all"]), "each record has its own values"
    both = tmp_path / "both"
    write_pack(store, both, form="full")
    assert only(ResultStore(both), method="m1", split="line", seed=1) == mine
    assert ResultStore(both).per_query(other)["ap@all"].equals(frame["ap@all"])


def test_an_unreadable_loose_record_uncovers_the_packed_one(loose: ResultStore, tmp_path: Path) -> None:
    write_pack(loose, tmp_path, form="full")
    lines: list[str] = []
    store = ResultStore(tmp_path, lines.append)
    old = only(store, method="m1", split="line", seed=1)
    store.write(old, loose.per_query(old))
    path = store.path(old.cell, old.key)
    path.write_text("{")
    path.with_suffix(".parquet").unlink()
    assert len(list(store.records())) == 19
    assert store.read(old.cell, old.key) == old
    pd.testing.assert_frame_equal(store.per_query(old), loose.per_query(old))
    assert [line.split(": ")[0] for line in lines] == [str(path)] * 2


def damage(folder: Path, kind: str) -> str:
    """Damage a pack; returns the name of the file that a line must name."""
    name = {"r": RECORDS, "v": PER_QUERY, "m": MANIFEST}[kind[0]]
    path = folder / name
    match kind.partition(" ")[2]:
        case "cut":
            path.write_bytes(path.read_bytes()[:100])
        case "bit":
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
        case "gone":
            path.unlink()
        case "folder":
            path.unlink()
            path.mkdir()
        case "binary":
            path.write_bytes(b"\xff\xfe\x00\x01")
        case "foreign":
            path.write_text("[1, 2]")
        case "newer":
            path.write_text(json.dumps({**json.loads(path.read_text()), "schema": 2}))
        case "other":  # a well-formed pack whose table is not a pack's
            pd.DataFrame({"x": [1]}).to_parquet(path)
            manifest = json.loads((folder / MANIFEST).read_text())
            manifest["files"][name] = hashlib.sha256(path.read_bytes()).hexdigest()
            (folder / MANIFEST).write_text(json.dumps(manifest))
    return name


@pytest.mark.parametrize(
    "kind",
    [
        *(f"{file} {how}" for file in ("records", "values") for how in ("cut", "bit", "gone", "folder", "binary")),
        *(f"manifest {how}" for how in ("cut", "gone", "folder", "binary", "foreign", "newer")),
        "records other",
    ],
)
def test_a_damaged_pack_is_one_line_and_counts_as_absent(loose: ResultStore, tmp_path: Path, kind: str) -> None:
    write_pack(loose, tmp_path)
    one = only(ResultStore(tmp_path), method="m0", split="line", seed=0)
    name = damage(tmp_path, kind)
    lines: list[str] = []
    store = ResultStore(tmp_path, lines.append)
    assert list(store.records()) == []
    assert store.read(one.cell, one.key) is None
    assert store.read_search("tiny", "m0", content_key({"search": 1})) is None
    with pytest.raises(RecordError, match="cannot be read"):
        store.per_query(one)
    assert len(lines) == 1
    assert lines[0].startswith(f"{tmp_path / name}: ")
    assert "\n" not in lines[0]
    fix = "upgrade ucdr-bench" if kind == "manifest newer" else "pack again or delete the pack"
    assert lines[0].endswith(f": {fix}; until then its records count as absent")
    assert lines[0].count("pack again") == (kind != "manifest newer"), "the fix once, and no good data is deleted"
    warned: list[str] = []
    (row,) = load_results(tmp_path, warned.append).to_dict("records")
    assert (row["status"], row["reason"]) == ("failed", lines[0])
    assert warned == lines
    store.write(record("m9", "line", 0), frame_of(np.random.default_rng(1), 6))
    assert [r.cell.method for r in store.records()] == ["m9"], "loose records beside it stay readable"


def test_values_of_another_kind_of_table_are_one_line(loose: ResultStore, tmp_path: Path) -> None:
    write_pack(loose, tmp_path)
    one = only(ResultStore(tmp_path), method="m0", split="line", seed=0)
    damage(tmp_path, "values other")
    with pytest.raises(RecordError, match=rf"{PER_QUERY}: not a pack's table .*pack again"):
        ResultStore(tmp_path).per_query(one)


def test_files_are_read_and_checked_once(loose: ResultStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_pack(loose, tmp_path)
    read: list[str] = []
    real = packed.Pack._checked
    monkeypatch.setattr(packed.Pack, "_checked", lambda self, name: read.append(name) or real(self, name))
    for _ in range(3):
        store = ResultStore(tmp_path)
        for one in store.records():
            if one.per_query:
                store.per_query(one)
    assert sorted(read) == sorted([RECORDS, PER_QUERY, PER_QUERY])
    first = open_pack(tmp_path)
    assert open_pack(tmp_path) is first
    write_pack(loose, tmp_path, top=1)
    assert open_pack(tmp_path) is not first, "a new pack in the same place is seen"


def contents(folder: Path) -> dict[str, bytes]:
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def keep_weights(root: Path, seed: int) -> Path:
    """Made-up weights of a fit, as a run keeps them; returns their folder below the store."""
    inputs = {name: name for name in ("scoring", "select")} | {"seed": seed, "task": {"fit_id": "f", "rules": "clean"}}
    inputs |= {"method": {"name": "m0", "version": 1}, "backbone": {}, "dataset": {"name": "tiny"}}
    folder = WeightStore(root).write(inputs, FitWeights({"method.json": b"{}", "README.md": b"card"}), "all")
    assert folder is not None
    return folder.relative_to(root)


@pytest.mark.parametrize("place", ["new", "into place", "into place, twice"])
@pytest.mark.parametrize("stop", ["m0.json", "method.json", PER_QUERY, RECORDS, MANIFEST])
def test_a_writer_that_fails_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop: str, place: str
) -> None:
    store, out = fill(tmp_path / "loose", methods=1, seeds=(0,)), tmp_path / "pack"
    keep_weights(store.root, 0)
    if place == "into place, twice":
        write_pack(store, out, weights=True)
        (out / "mine.txt").write_text("mine")
    before = contents(out)
    store.write(record("m1", "line", 0), frame_of(np.random.default_rng(1), 6))
    store.write_card("methods", "m0", {"title": "changed"})
    real, failed = Path.replace, []

    def full(self: Path, target: Path) -> Path:
        if Path(target).name == stop and ("new" in Path(target).parts) == (place == "new") and not failed:
            failed.append(target)
            raise OSError(28, "No space left on device")
        return real(self, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", full)
        with pytest.raises(OSError, match="No space"):
            write_pack(store, out, weights=True)
    assert contents(out) == before
    assert out.exists() == bool(before)
    write_pack(store, out, weights=True)
    assert len(list(ResultStore(out).records())) == 5
    assert {*contents(out)} >= {*before}
    assert not list(out.rglob("*.tmp"))


def test_weights_that_cannot_be_read_leave_the_pack_that_was_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    store, out = fill(tmp_path / "loose", methods=1, seeds=(0,)), tmp_path / "pack"
    write_pack(store, out)
    before = contents(out)
    broken = store.root / keep_weights(store.root, 0) / "method.json"
    store.write(record("m1", "line", 0), frame_of(np.random.default_rng(1), 6))
    real = Path.read_bytes

    def denied(self: Path) -> bytes:
        if self == broken:
            raise PermissionError(13, "Permission denied", str(self))
        return real(self)

    monkeypatch.setattr(Path, "read_bytes", denied)
    assert main([str(store.root), "--out", str(out), "--weights"]) == 2
    assert capsys.readouterr().err.startswith(f"benchmarks.pack: {broken}: cannot be read (Permission denied)")
    monkeypatch.undo()
    assert contents(out) == before


def test_what_a_killed_writer_left_is_no_obstacle(loose: ResultStore, tmp_path: Path) -> None:
    left = tmp_path / ".pack.00000000-1-0.tmp" / "new" / "records.parquet"
    write_atomically(left, b"half")
    write_pack(loose, tmp_path)
    assert len(list(ResultStore(tmp_path).records())) == 19


def test_a_folder_of_other_files_is_refused_whatever_is_asked(
    loose: ResultStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, text in (
        ("cards/methods/a.json", "{}"),
        ("resolved.json", "{}"),
        ("weights/a/b/mine.txt", "mine"),
        ("pack.json", '{"name": "of another program"}'),
        ("pack.json", "{"),
        ("records.parquet", "mine"),
    ):
        out = tmp_path / str(len(list(tmp_path.iterdir())))
        write_atomically(out / name, text.encode())
        for more in ([], ["--replace"]):
            assert main([str(loose.root), "--out", str(out), *more]) == 2
            shown = capsys.readouterr()
            assert (shown.out, shown.err.count("\n")) == ("", 1)
            assert f"--out {out}: holds {name.partition('/')[0]} and no readable pack" in shown.err
            assert "name a new or empty folder" in shown.err
            assert contents(out) == {name: text.encode()}
    (tmp_path / "file").write_text("mine")
    assert main([str(loose.root), "--out", str(tmp_path / "file")]) == 2
    assert "is not a folder; name a new or empty folder" in capsys.readouterr().err


def test_only_files_of_the_former_pack_go(tmp_path: Path) -> None:
    store, out = fill(tmp_path / "loose", methods=2, seeds=(0,)), tmp_path / "pack"
    store.write_card("methods", "m1", {"title": "M1"})
    gone = keep_weights(store.root, 0)
    write_pack(store, out, weights=True)
    mine = ("README.md", "cards/methods/mine.json", "weights/a/b/mine.txt", f"{gone}/mine.txt", "weights/x.json")
    for name in mine:
        write_atomically(out / name, b"mine")
    other = fill(tmp_path / "other", methods=1, seeds=(0,))
    (other.root / "resolved.json").unlink()
    write_pack(other, out, replace=True)
    assert {*contents(out)} == {*mine, MANIFEST, RECORDS, PER_QUERY, "cards/methods/m0.json"}
    assert {contents(out)[name] for name in mine} == {b"mine"}


def test_a_pack_that_holds_more_is_replaced_only_when_asked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    large, small = fill(tmp_path / "large", methods=2, seeds=(0,)), fill(tmp_path / "small", methods=1, seeds=(0,))
    small.write(record("new", "line", 0), frame_of(np.random.default_rng(1), 6))
    large.write_search("tiny", "m1", content_key({"search": 2}), {"search": 2}, Search([{"learning_rate": 0.1}], 0.1))
    keep_weights(large.root, 0)
    out = tmp_path / "pack"
    write_pack(large, out, weights=True)
    before = contents(out)
    assert main([str(small.root), "--out", str(out)]) == 2
    shown = capsys.readouterr()
    assert (shown.out, shown.err.count("\n")) == ("", 1)
    assert (
        f"--out {out}: holds a pack with 3 records, 1 search, weights of 1 fit that {small.root} would not" in shown.err
    )
    assert shown.err.endswith("name another folder, or replace it with --replace\n")
    assert contents(out) == before
    assert main([str(small.root), "--out", str(out), "--replace"]) == 0
    assert f"{out}: replaces a pack of 7 records\n" in capsys.readouterr().out
    assert len(list(ResultStore(out).records())) == 5


def test_a_grown_folder_is_packed_again_without_a_question(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, out = fill(tmp_path / "loose", methods=1, seeds=(0,)), tmp_path / "pack"
    keep_weights(store.root, 0)
    arguments = [str(store.root), "--out", str(out), "--weights"]
    assert main(arguments) == 0
    store.write(record("m7", "line", 3), frame_of(np.random.default_rng(1), 6))
    keep_weights(store.root, 1)
    assert main(arguments) == 0
    assert "replaces" not in capsys.readouterr().out
    assert len(list(ResultStore(out).records())) == 5
    assert len(list(WeightStore(out).all())) == 2
    assert main(arguments[:-1]) == 2
    assert "weights of 2 fits that" in (err := capsys.readouterr().err) and "--weights takes those" in err


def test_a_lean_pack_in_the_place_of_a_full_one_is_asked_for(
    loose: ResultStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_pack(loose, tmp_path, form="full")
    assert main([str(loose.root), "--out", str(tmp_path)]) == 2
    assert "holds a full pack, whose exact values a lean one lacks" in capsys.readouterr().err
    assert main([str(loose.root), "--out", str(tmp_path), "--replace"]) == 0


@pytest.mark.parametrize("kind", ["records cut", "values gone", "manifest gone", "manifest cut", "manifest newer"])
def test_a_damaged_pack_is_replaced_only_when_asked(
    loose: ResultStore, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    write_pack(loose, tmp_path)
    damage(tmp_path, kind)
    before = contents(tmp_path)
    assert main([str(loose.root), "--out", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"benchmarks.pack: --out {tmp_path}: holds a pack that cannot be read (")
    assert err.endswith("--replace\n")
    assert contents(tmp_path) == before
    assert main([str(loose.root), "--out", str(tmp_path), "--replace"]) == 0
    assert f"{tmp_path}: replaces a damaged pack\n" in capsys.readouterr().out
    assert len(list(ResultStore(tmp_path).records())) == 19


def test_what_cannot_be_packed_is_refused_in_one_line(
    loose: ResultStore, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refused(*arguments: str) -> str:
        assert main(list(arguments)) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n")) == ("", 1)
        assert err.startswith("benchmarks.pack: ")
        return err

    lean = str(tmp_path / "lean")
    assert main([str(loose.root), "--out", lean, "--top", "2"]) == 0
    assert "lean, 19 records" in capsys.readouterr().out
    assert "not a results folder" in refused(str(tmp_path / "nowhere"), "--out", str(tmp_path / "x"))
    (tmp_path / "empty").mkdir()
    assert "no readable record" in refused(str(tmp_path / "empty"), "--out", str(tmp_path / "x"))
    assert "into itself" in refused(str(loose.root), "--out", str(loose.root))
    shutil.copytree(loose.root, tmp_path / "other")
    assert "has loose records" in refused(str(loose.root), "--out", str(tmp_path / "other"))
    assert "rounded" in refused(lean, "--out", str(tmp_path / "x"), "--per-query", "full")
    assert "lean pack with --top 2; --top 3 needs the run's own records" in refused(
        lean, "--out", str(tmp_path / "x"), "--top", "3"
    )
    assert "--top is 0 or more" in refused(str(loose.root), "--out", str(tmp_path / "x"), "--top", "-1")
    both = ("--per-query", "full", "--top", "3")
    assert "--top is 0 or more" in refused(str(loose.root), "--out", str(tmp_path / "x"), *both)
    assert not (tmp_path / "x").exists()


def test_empty_names_are_refused(
    loose: ResultStore, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for arguments, name in (([str(loose.root), "--out", ""], "--out"), (["", "--out", "x"], "RESULTS")):
        with pytest.raises(SystemExit) as stopped:
            main(arguments)
        assert stopped.value.code == 2
        assert f"argument {name}: is empty; name a folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_small_files_are_given_in_kilobytes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store, out = fill(tmp_path / "loose", methods=1, seeds=(0,)), tmp_path / "pack"
    keep_weights(store.root, 0)
    assert main([str(store.root), "--out", str(out)]) == 0
    shown = capsys.readouterr().out
    sizes = {name: (out / name).stat().st_size / 1e3 for name in (RECORDS, PER_QUERY)}
    assert "; " + ", ".join(f"{name} {size:.1f} kB" for name, size in sizes.items()) + "\n" in shown
    assert re.search(r"weights of 1 fit, \d+\.\d kB: left out", shown)
    assert (file_size(999_949), file_size(999_950), file_size(0)) == ("999.9 kB", "1.00 MB", "0.0 kB")


def test_unreadable_records_are_left_out_and_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = fill(tmp_path / "loose", methods=1, seeds=(0,))
    one = only(store, split="line", method="m0")
    store.path(one.cell, one.key).write_text("{")
    assert cli.main(["pack", str(store.root), "--out", str(tmp_path / "pack")]) == 1
    assert str(store.path(one.cell, one.key)) in capsys.readouterr().err
    assert len(list(ResultStore(tmp_path / "pack").records())) == 3


def test_a_column_that_a_pack_cannot_hold_is_named(tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "loose")
    frame = frame_of(np.random.default_rng(0), 6)
    store.write(record("m0", "line", 0), frame.assign(record="mine"))
    with pytest.raises(PackError, match="'record'"):
        write_pack(store, tmp_path / "pack")


def test_cards_of_a_former_pack_go(tmp_path: Path) -> None:
    store = fill(tmp_path / "loose", methods=2, seeds=(0,))
    store.write_card("methods", "m1", {"title": "M1"})
    write_pack(store, tmp_path / "pack")
    (store.root / "cards/methods/m1.json").unlink()
    write_pack(store, tmp_path / "pack")
    assert [p.name for p in (tmp_path / "pack/cards/methods").iterdir()] == ["m0.json"]


def test_help_loads_nothing_heavy() -> None:
    program = "import sys, benchmarks.pack as p\ntry: p.main(['--help'])\nexcept SystemExit: print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parents[2], check=True
    )
    assert "--per-query" in done.stdout
    assert not {"torch", "pandas", "pyarrow", "numpy"} & set(done.stdout.split())


def test_a_store_of_realistic_shape_is_small(tmp_path: Path) -> None:
    """45 cells with independent random values, which compress worst, still take a sixth of the loose files."""
    store = fill(tmp_path / "loose", methods=5, seeds=(0, 1, 2), queries=80)
    manifest = write_pack(store, tmp_path / "pack", top=10)
    before = sum(file.stat().st_size for file in (store.root / "cells").rglob("*.*"))
    after = sum((tmp_path / "pack" / name).stat().st_size for name in (RECORDS, PER_QUERY))
    assert manifest.rows == 3 * 5 * 3 * 2 * 80
    assert after < 12 * manifest.rows
    assert after < before / 6


names = st.text(max_size=6)
values = st.one_of(st.just(float("nan")), st.floats(0, 1), st.floats(-1e9, 1e9))


@st.composite
def frames(draw: st.DrawFn) -> pd.DataFrame:
    rows = draw(st.integers(1, 7))

    def column(what: st.SearchStrategy[Any]) -> list[Any]:
        return draw(st.lists(what, min_size=rows, max_size=rows))

    lists = st.lists(names, max_size=3)
    made = {
        "query": column(names),
        "class": column(names),
        "gallery": column(st.sampled_from(("unseen", "mixed"))),
        "n_relevant": column(st.integers(0, 2**40)),
        "ap@all": pd.array(column(values), dtype="float64"),
        "p@100": pd.array(column(values), dtype="float64"),
        "top_keys": column(lists),
        "top_scores": column(st.lists(st.floats(-100, 100, width=32), max_size=3)),
    }
    dropped = draw(st.sets(st.sampled_from(("class", "gallery", "p@100", "n_relevant", "top_scores"))))
    return pd.DataFrame({name: made[name] for name in made if name not in dropped})


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.lists(frames(), min_size=1, max_size=4), st.integers(0, 5), st.booleans())
def test_whatever_is_packed_comes_back(
    tmp_path_factory: pytest.TempPathFactory, made: list[pd.DataFrame], top: int, same: bool
) -> None:
    root = tmp_path_factory.mktemp("law")
    store = ResultStore(root / "loose")
    for number, frame in enumerate(made):
        store.write(record(f"m{number}", "line", 0), made[0] if same else frame)
    write_pack(store, root / "full", form="full")
    write_pack(store, root / "lean", form="lean", top=top)
    write_pack(ResultStore(root / "lean"), root / "again", form="lean", top=top)
    assert (root / "lean" / PER_QUERY).read_bytes() == (root / "again" / PER_QUERY).read_bytes()
    for one in store.records():
        exact = store.per_query(one)
        pd.testing.assert_frame_equal(ResultStore(root / "full").per_query(one), exact, check_exact=True)
        lean = ResultStore(root / "lean").per_query(one)
        assert len(lean) == len(exact)
        assert "p@100" not in lean
        plain = [name for name in lean if name in ("query", "class", "gallery", "n_relevant")]
        assert lean[plain].equals(exact[plain])
        difference = (lean["ap@all"] - exact["ap@all"]).abs()
        assert (lean["ap@all"].isna() == exact["ap@all"].isna()).all()
        assert not (difference > 0.5001e-4).any()


@given(st.lists(st.tuples(names, names, st.sampled_from("ab")), max_size=20), st.integers(0, 8), st.randoms())
def test_the_sample_follows_from_the_names(rows: list[tuple[str, str, str]], top: int, order: Any) -> None:
    rows = list(dict.fromkeys(rows))
    columns = list(zip(*rows, strict=True)) or [(), (), ()]
    taken = {row for row, took in zip(rows, sample(*columns, top), strict=True) if took}
    shuffled = rows.copy()
    order.shuffle(shuffled)
    columns = list(zip(*shuffled, strict=True)) or [(), (), ()]
    assert {row for row, took in zip(shuffled, sample(*columns, top), strict=True) if took} == taken
    more = {row for row, took in zip(shuffled, sample(*columns, top + 1), strict=True) if took}
    assert taken <= more
    for gallery in "ab":
        mine = [row for row in rows if row[2] == gallery]
        chosen = [row for row in taken if row[2] == gallery]
        assert len(chosen) == min(top, len(mine))
        count = [sum(row[1] == name for row in chosen) for name in {row[1] for row in mine}]
        left = [sum(row[1] == name for row in mine) for name in {row[1] for row in mine}]
        assert all(c == n or c >= max(count) - 1 for c, n in zip(count, left, strict=True)), "spread over classes"
