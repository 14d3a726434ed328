"""Embeddings: each image once a model, whatever the batch, the threads and the place they are stored in."""

from __future__ import annotations

import dataclasses
import errno
import multiprocessing
import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.datasets.pixels import PixelCache
from benchmarks.runner import embeddings, scoring
from benchmarks.runner.embeddings import EncodedImages
from benchmarks.runner.plan import plan
from benchmarks.runner.resources import Resources
from benchmarks.runner.settings import Settings
from methods.parts import row_files
from methods.zero_shot import ZeroShot
from tests.runner.probe import Probe, run
from tests.support.tiny_dataset import TinyShapes


def test_each_image_is_encoded_once_a_model(settings: Settings) -> None:
    resources = Resources(settings)
    planned, _, _, watcher = run(settings, resources)
    needed = 0
    for group in planned.groups:
        rows: set[int] = set()
        for cell in group.cells:
            for one in resources.task("tiny", cell.id.protocol, cell.id.split).retrievals:
                rows |= {*one.query.tolist(), *one.gallery.tolist()}
        needed += len(rows)
    assert watcher.encoded == needed
    assert set(Probe.batches) == {embeddings.BATCH}


def test_an_untrained_method_encodes_each_image_once_in_all(settings: Settings) -> None:
    settings = dataclasses.replace(settings, methods=("zero_shot",), seeds=(0, 1))
    resources = Resources(settings)
    planned, _, _, watcher = run(settings, resources)
    rows: set[int] = set()
    for cell in planned.cells:
        for one in resources.task("tiny", cell.id.protocol, cell.id.split).retrievals:
            rows |= {*one.query.tolist(), *one.gallery.tolist()}
    assert watcher.encoded == 2 * len(rows), "once a seed"


def test_an_embedding_depends_neither_on_its_batch_nor_on_threads(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embeddings, "BATCH", 16)
    monkeypatch.setattr(scoring, "BATCH", 16)
    resources = Resources(settings)
    method = ZeroShot(resources.backbone)
    cache = resources.pixels("tiny")
    rows = np.arange(len(cache.dataset.table))
    before, counted = torch.get_num_threads(), [0]
    try:
        torch.set_num_threads(1)
        whole = EncodedImages(method.encode_images, cache, lambda n: None)[rows]
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            encoded = EncodedImages(method.encode_images, cache, counted.append)
            assert torch.equal(encoded[rows], whole), threads
            parts = EncodedImages(method.encode_images, cache, lambda n: None)
            for piece in np.array_split(np.random.default_rng(0).permutation(rows), 7):
                assert torch.equal(parts[piece], whole[piece]), threads
            assert torch.get_num_threads() == threads
            assert encoded.count == -(-len(rows) // embeddings.BATCH) * embeddings.BATCH
            assert encoded.seconds > 0
    finally:
        torch.set_num_threads(before)
    assert sum(counted) == 3 * len(rows)


def test_embeddings_are_computed_by_several_threads_each_with_one(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embeddings, "BATCH", 8)
    monkeypatch.setattr(scoring, "BATCH", 8)
    resources = Resources(settings)
    cache = resources.pixels("tiny")
    seen: list[tuple[int, int, bool]] = []

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        seen.append((threading.get_ident(), torch.get_num_threads(), torch.is_grad_enabled()))
        number = len(seen)
        time.sleep(0.05)
        if number >= 4:
            raise RuntimeError("the fourth fails")
        return pixels.mean(dim=(2, 3))

    rows = np.arange(len(cache.dataset.table))
    assert len(rows) > 4 * embeddings.BATCH
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with pytest.raises(RuntimeError, match="the fourth fails"):
            EncodedImages(encode, cache, lambda n: None).encode(rows)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
    assert {(threads, grad) for _, threads, grad in seen} == {(1, False)}
    assert seen[0][0] == threading.get_ident()
    assert len({name for name, _, _ in seen}) > 1


@pytest.fixture
def large(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Every data set counts as large, two batches a write; the cache folder."""
    monkeypatch.setattr(embeddings, "LARGE", 0)
    monkeypatch.setattr(embeddings, "CHUNK", 2 * embeddings.BATCH)
    monkeypatch.setattr(row_files, "SPARE", 0)
    monkeypatch.setenv("UCDR_BENCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_a_killed_encoding_goes_on_where_it_stopped(settings: Settings, large: Path) -> None:
    resources = Resources(settings)
    method, pixels = ZeroShot(resources.backbone), resources.pixels("tiny")
    rows, batches = np.arange(len(pixels.dataset.table)), []

    def dies(shown: torch.Tensor) -> torch.Tensor:
        if len(batches) == 3:
            raise KeyboardInterrupt
        batches.append(len(shown))
        return method.encode_images(shown)

    with pytest.raises(KeyboardInterrupt):
        EncodedImages(dies, pixels, lambda n: None, large / "x").encode(rows)
    expected = EncodedImages(method.encode_images, pixels, lambda n: None)[rows]
    again = EncodedImages(method.encode_images, pixels, lambda n: None, large / "x")
    assert torch.equal(again[rows], expected)
    assert again.count == -(-(len(rows) - 2 * embeddings.BATCH) // embeddings.BATCH) * embeddings.BATCH
    last = EncodedImages(dies, pixels, lambda n: None, large / "x")
    assert torch.equal(last[rows[::-3].copy()], expected[rows[::-3].copy()])
    last.discard()
    assert not (large / "x").exists()


def test_without_room_embeddings_are_held_in_memory(
    settings: Settings, large: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resources = Resources(settings)
    method, pixels = ZeroShot(resources.backbone), resources.pixels("tiny")
    rows = np.arange(len(pixels.dataset.table))
    expected = EncodedImages(method.encode_images, pixels, lambda n: None)[rows]
    encoded = EncodedImages(method.encode_images, pixels, lambda n: None, large / "x")
    encoded.encode(rows[:30])

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(row_files.RowFiles, "write", full)
    with pytest.warns(RuntimeWarning, match=r"embeddings cannot be kept in .* \(No space left on device\)"):
        assert torch.equal(encoded[rows], expected)


def test_embeddings_in_files_change_no_score(settings: Settings, large: Path) -> None:
    settings = dataclasses.replace(settings, methods=("zero_shot", "probe"), seeds=(0,))
    _, outcome, store, _ = run(settings)
    assert outcome.failed == 0
    left = list((large / "embeddings").iterdir())
    assert len(left) == 1, "those of trained models are deleted when their group is done"
    scores = {record.key: record.scores for record in store.records()}
    again = dataclasses.replace(settings, out=settings.out + "2", methods=("zero_shot",))
    _, _, second, watcher = run(again)
    assert watcher.encoded == 0, "what is not trained is encoded once"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("UCDR_BENCH_CACHE", "off")
        _, _, third, watcher = run(dataclasses.replace(settings, out=settings.out + "3"))
    assert watcher.encoded > 0
    assert {record.key: record.scores for record in third.records()} == scores
    assert {record.key: record.scores for record in second.records()}.items() <= scores.items()


def test_equal_devices_share_embeddings(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "LARGE", 1)
    monkeypatch.setattr(embeddings, "cache_folder", lambda: Path("cache"))
    resources = Resources(settings)
    group, pixels = plan(settings, resources).groups[0], resources.pixels("tiny")
    method = Probe(resources.backbone)
    places = []
    for device in ("cpu", "cuda:0", "cuda:1"):
        method.device = torch.device(device)
        places.append(embeddings.embedding_folder(group, method, pixels))
    assert places[1] == places[2] != places[0]


def one_of_several(number: int, processes: int, out: Path) -> None:
    """A process that encodes with others; the last one knows a part already."""
    encoded, rows = _sums()
    everything = encoded_alone(rows)
    torch.distributed.init_process_group("gloo", init_method=f"file://{out}/meeting", rank=number, world_size=processes)
    if number == processes - 1:
        encoded._kept = everything
        encoded._known[rows[:40]] = True
    some = encoded[rows[10:30]].clone()
    np.save(out / f"{number}.npy", np.concatenate([encoded[rows].numpy(), some.numpy()]))
    (out / f"{number}.txt").write_text(str(encoded.count))
    torch.distributed.destroy_process_group()


def _sums() -> tuple[EncodedImages, np.ndarray]:
    """Embeddings that tell images apart, and the rows of the tiny data set in another order."""
    dataset = TinyShapes()
    pixels = PixelCache(dataset, 16)
    rows = np.random.default_rng(0).permutation(len(dataset.table))
    return EncodedImages(lambda batch: batch.flatten(1)[:, ::97], pixels, lambda count: None), rows


def encoded_alone(rows: np.ndarray) -> torch.Tensor:
    encoded, _ = _sums()
    return torch.stack(list(encoded[np.arange(len(rows))]))


@pytest.mark.skipif(not hasattr(os, "fork"), reason="starts its processes by fork")
@pytest.mark.parametrize("processes", [2, 3])
@pytest.mark.parametrize("batch", [16, 64])
def test_processes_that_train_together_share_the_encoding(
    processes: int, batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(embeddings, "BATCH", batch)
    fork = multiprocessing.get_context("fork")
    together = [fork.Process(target=one_of_several, args=(n, processes, tmp_path)) for n in range(processes)]
    for process in together:
        process.start()
    for process in together:
        process.join(timeout=60)
        assert process.exitcode == 0
    encoded, rows = _sums()
    alone = encoded[rows].numpy()
    counts = [int((tmp_path / f"{number}.txt").read_text()) for number in range(processes)]
    assert max(counts) - min(counts) == 0
    assert counts[0] <= encoded.count / processes + 2 * batch, "each process encodes its share"
    for number in range(processes):
        found = np.load(tmp_path / f"{number}.npy")
        np.testing.assert_array_equal(found[: len(rows)], alone)
        np.testing.assert_array_equal(found[len(rows) :], alone[10:30])
