"""The image cache: kept across processes, filled anew where damaged, done without where there is no room."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.datasets import decoding, image_cache, image_workers
from benchmarks.datasets.base import DatasetError
from benchmarks.datasets.pixels import PixelCache
from methods.parts.feeding import unit_range
from tests.datasets.small import Small, small_tree
from tests.datasets.trees import image_bytes


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return small_tree(tmp_path)


def test_decoded_once_and_kept_across_processes_and_copies(root: Path, tmp_path: Path) -> None:
    first = Small(root)
    rows = np.array([5, 0, 5, 11])
    pixels = first.pixels(rows, 8)
    assert pixels.dtype == torch.float32
    assert torch.equal(pixels[0], pixels[2])
    assert (pixels >= 0).all() and (pixels <= 1).all()
    expected = decoding.decode(Path(first.paths(np.array([11]))[0]).read_bytes(), 8)
    assert torch.equal((pixels[3] * 255).round().to(torch.uint8), torch.from_numpy(expected))
    assert (first.image_cache(8).decoded, first.image_cache(8).filled()) == (3, 3)
    again = Small(root)
    assert torch.equal(again.pixels(rows, 8), pixels)
    assert again.image_cache(8).decoded == 0, "nothing is decoded twice"
    again.pixels(np.arange(12), 8)
    assert again.image_cache(8).decoded == 9, "it goes on where it stopped"
    assert again.image_cache(6).filled() == 0, "another size is another cache"


def test_a_changed_file_is_decoded_again(root: Path) -> None:
    dataset = Small(root)
    dataset.pixels(np.arange(24), 8)
    file = root / str(dataset.table["path"].iloc[3])
    data = bytearray(file.read_bytes())
    replaced = image_bytes("photos/other/9.jpg", (10, 8))
    file.write_bytes(replaced + b"\0" * max(0, len(data) - len(replaced)))
    os.utime(file, ns=(1, 1))
    changed = Small(root)
    pixels = changed.pixels(np.array([3]), 8)
    assert torch.equal((pixels[0] * 255).round().to(torch.uint8), torch.from_numpy(decoding.decode(replaced, 8)))


def test_a_slot_that_was_not_written_whole_is_filled_anew(root: Path) -> None:
    dataset = Small(root)
    pixels = dataset.pixels(np.arange(24), 8)
    folder = dataset.image_cache(8).folder
    assert folder is not None
    with (folder / "pixels.u8").open("r+b") as file:
        file.seek(7 * dataset.image_cache(8).slot_bytes)
        file.write(b"\0" * 40)
    again = Small(root)
    assert torch.equal(again.pixels(np.arange(24), 8), pixels)
    assert again.image_cache(8).decoded == 1


def test_worker_processes_give_the_same_pixels(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alone = Small(root).pixels(np.arange(24), 8)
    monkeypatch.setenv("UCDR_BENCH_WORKERS", "2")
    monkeypatch.setenv("UCDR_BENCH_CACHE", "off")
    without = Small(root)
    assert torch.equal(without.pixels(np.arange(24), 8), alone), "through worker processes, without a cache"
    monkeypatch.setenv("UCDR_BENCH_CACHE", str(root.parent / "cache2"))
    kept = Small(root)
    assert torch.equal(kept.pixels(np.arange(24), 8), alone)
    assert kept.image_cache(8).filled() == 24
    (root / "photos/ant/0000.jpg").write_bytes(b"x")
    with pytest.raises(DatasetError, match=r"photos/ant/0000\.jpg is broken: not an image that Pillow can read"):
        Small(root).pixels(np.arange(24), 8)
    assert sum(bool(one.reason) for one in image_workers.check_images(Small(root).paths())) == 1


def test_no_room_means_no_cache_and_one_warning(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(image_cache, "SPARE", 1 << 60)
    dataset = Small(root)
    with pytest.warns(RuntimeWarning, match="has no room for more images"):
        first = dataset.pixels(np.arange(4), 8)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(dataset.pixels(np.arange(4), 8), first)
    assert dataset.image_cache(8).filled() == 0


def test_a_disk_that_fills_up_ends_the_cache_and_not_the_run(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int, data: bytes, offset: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(image_workers, "_write", full)
    dataset = Small(root)
    with pytest.warns(RuntimeWarning, match=r"image cache .* cannot be written \(No space left on device\)"):
        pixels = dataset.pixels(np.arange(24), 8)
    assert dataset.image_cache(8).folder is None
    monkeypatch.setenv("UCDR_BENCH_CACHE", "off")
    assert torch.equal(Small(root).pixels(np.arange(24), 8), pixels)


def test_without_a_home_folder_there_is_no_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UCDR_BENCH_CACHE", "~nobody-of-that-name/cache")
    with pytest.warns(
        RuntimeWarning, match="home folder of ~nobody-of-that-name/cache is not known; set UCDR_BENCH_CA"
    ):
        assert image_cache.cache_folder() is None


@pytest.mark.skipif(not hasattr(signal, "pthread_sigmask"), reason="no signal masks here")
def test_a_worker_that_starts_does_not_see_the_interrupt(request: pytest.FixtureRequest) -> None:
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background may ignore it
    request.addfinalizer(lambda: signal.signal(signal.SIGINT, before))
    blocked = "import signal; raise SystemExit(signal.SIGINT in signal.pthread_sigmask(signal.SIG_BLOCK, []))"
    with pytest.raises(KeyboardInterrupt), image_workers._interrupts_wait():  # the caller sees it, afterwards
        assert subprocess.run([sys.executable, "-c", blocked], check=False).returncode == 1
        signal.raise_signal(signal.SIGINT)
    assert subprocess.run([sys.executable, "-c", blocked], check=False).returncode == 0


def test_a_cache_folder_that_cannot_be_written_is_done_without(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (root / "file").write_text("")
    monkeypatch.setenv("UCDR_BENCH_CACHE", str(root / "file"))
    with pytest.warns(RuntimeWarning, match="cannot be used"):
        assert Small(root).pixels(np.arange(2), 8).shape == (2, 3, 8, 8)


def test_a_killed_fill_leaves_only_whole_images(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = Small(root)
    real, done = image_workers._work, []

    def dies(job: image_workers.Job) -> image_workers.JobResult:
        if done:
            raise KeyboardInterrupt
        done.append(job)
        return real(job)

    monkeypatch.setattr(image_workers, "CHUNK", 5)
    monkeypatch.setattr(image_workers, "_work", dies)
    with pytest.raises(KeyboardInterrupt):
        dataset.pixels(np.arange(24), 8)
    monkeypatch.setattr(image_workers, "_work", real)
    again = Small(root)
    assert again.image_cache(8).filled() == 5
    monkeypatch.setenv("UCDR_BENCH_CACHE", "off")
    assert torch.equal(again.pixels(np.arange(24), 8), Small(root).pixels(np.arange(24), 8))


@pytest.mark.parametrize("few", [True, False])
def test_a_process_that_cannot_start_others_decodes_in_threads(
    few: bool, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The workers of a run are such processes: they decoded one image after the other."""
    alone, rows = Small(root).pixels(np.arange(24), 8), np.arange(12 if few else 24)
    together, real = threading.Barrier(2), image_workers.decode

    def both(*arguments: Any) -> Any:
        together.wait(20)  # broken unless two threads decode at a time
        return real(*arguments)

    monkeypatch.setattr(image_workers, "decode", both)
    monkeypatch.setattr(image_workers, "ProcessPoolExecutor", lambda *_, **__: pytest.fail("a process was started"))
    monkeypatch.setenv("UCDR_BENCH_WORKERS", "2")
    if not few:
        monkeypatch.setattr(multiprocessing.current_process(), "_config", {"daemon": True})
    monkeypatch.setenv("UCDR_BENCH_CACHE", str(root.parent / "cache2"))
    kept = Small(root)
    assert torch.equal(kept.pixels(rows, 8), alone[rows])
    assert kept.image_cache(8).filled() == len(rows)
    monkeypatch.setenv("UCDR_BENCH_CACHE", "off")
    assert torch.equal(Small(root).pixels(rows, 8), alone[rows])


def test_threads_that_read_together_decode_each_image_once(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Training reads ahead while validation reads."""
    expected, seen = Small(root).pixels(np.arange(24), 8), list[str]()
    monkeypatch.setenv("UCDR_BENCH_CACHE", str(root.parent / "cache2"))
    real = image_workers._work

    def slow(job: image_workers.Job) -> image_workers.JobResult:
        time.sleep(0.02)
        seen.extend(job.files)
        return real(job)

    monkeypatch.setattr(image_workers, "_work", slow)
    monkeypatch.setattr(image_workers, "CHUNK", 6)
    cache = PixelCache(Small(root), 8)
    direct = cache.dataset
    with ThreadPoolExecutor(6) as threads:
        got = [threads.submit(cache.__getitem__, np.arange(start, start + 18)) for start in (0, 3, 6)]
        got += [threads.submit(direct.pixels, np.arange(start, start + 18), 8) for start in (0, 3, 6)]
        for future, start in zip(got, (0, 3, 6) * 2, strict=True):
            torch.testing.assert_close(
                unit_range(future.result()), expected[start : start + 18], atol=1e-6, rtol=0, msg=str(start)
            )
    assert len(seen) == len(set(seen)) == 24
