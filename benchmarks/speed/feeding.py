"""How fast images reach a training step: ``python -m benchmarks.speed.feeding`` measures it on JPEG files made for it.

Photograph-like JPEGs (500 x 375) are written to a folder that is removed afterwards, and read through the data set, the
image cache and :class:`~benchmarks.datasets.pixels.DatasetImages`, as a run reads them (pixels are not kept in memory).

* ``decode``: images a second of a first pass, from JPEG to the cache, by worker processes, by the threads that a
  daemon process has (a worker of a run cannot start processes), and by one thread.
* ``cache``: images a second of later passes in batches, as 8-bit images (what a step takes) and, plainly, as floats
  made on the CPU.
* ``wait``: milliseconds a step waits for its batch where the device works for ``--step-ms`` (the CPU sleeps
  meanwhile): read ahead, and plainly (read, made floats, copied when the step asks). Once from the cache, and once with
  nothing decoded yet.
* ``augment``: milliseconds to augment a batch: ours on 8-bit images, and, plainly, kornia's operations on floats (left
  out where kornia is not installed).

The plain ways are those of version 1 of the augmentation and of the code before images were read ahead, in the same
run; the ratio is the plain way's time over ours.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import importlib.util
import json
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.console import OneLineParser

if TYPE_CHECKING:
    from torch import Tensor

    from benchmarks.datasets.folder_dataset import FolderDataset
    from benchmarks.datasets.pixels import DatasetImages
    from methods.parts.feeding import Feed

#: Width and height of the JPEG files.
PHOTOGRAPH = (500, 375)

#: Batches that are augmented: images and their side.
AUGMENTED = ((32, 64), (32, 224))


def write_photographs(root: Path, count: int) -> None:
    """A tree ``ROOT/domain/class/*.jpg`` of ``count`` smooth images with some noise, in 2 domains and 4 classes."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    for number in range(count):
        folder = root / ("photo", "sketch")[number % 2] / f"class {number // 2 % 4}"
        folder.mkdir(parents=True, exist_ok=True)
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(PHOTOGRAPH)
        grain = random.integers(-12, 13, (PHOTOGRAPH[1], PHOTOGRAPH[0], 3))
        pixels = np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{number:05d}.jpg", quality=90)


@contextlib.contextmanager
def setting(name: str, value: str) -> Iterator[None]:
    """An environment variable inside the block."""
    before = os.environ.get(name)
    os.environ[name] = value
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


def opened(root: Path, size: int) -> tuple[FolderDataset, DatasetImages]:
    """The tree as a data set, and all its images as a method sees them, which are not kept in memory."""
    import numpy as np

    from benchmarks.datasets.own_folder import OwnFolder
    from benchmarks.datasets.pixels import DatasetImages, PixelCache

    dataset = OwnFolder(root)
    return dataset, DatasetImages(PixelCache(dataset, size, share=0.0), np.arange(len(dataset.table)))


def first_pass(root: str, size: int, cache: str, workers: int) -> float:
    """Images a second of decoding the whole tree into a cache folder."""
    import numpy as np

    with setting("UCDR_BENCH_CACHE", cache), setting("UCDR_BENCH_WORKERS", str(workers)):
        dataset, _ = opened(Path(root), size)
        images = dataset.image_cache(size)
        rows = np.arange(len(images.files))
        images.keep(rows[:64])  # starts the workers, which stay for the rest of a run
        start = time.perf_counter()
        images.keep(rows)
        return (len(rows) - 64) / (time.perf_counter() - start)


def send_first_pass(results: Any, arguments: tuple[str, int, str, int]) -> None:
    """Put :func:`first_pass` into a queue: what a daemon process runs."""
    results.put(first_pass(*arguments))


def decoding_rates(root: Path, size: int, folder: Path, workers: int) -> dict[str, float]:
    """Images a second of a first pass by each kind of worker."""
    spawn = multiprocessing.get_context("spawn")
    rates = {"processes": first_pass(str(root), size, str(folder / "processes"), workers)}
    for kind, count in (("threads", workers), ("one thread", 1)):
        results = spawn.SimpleQueue()
        arguments = (str(root), size, str(folder / kind), count)
        process = spawn.Process(target=send_first_pass, args=(results, arguments), daemon=True)
        process.start()
        process.join()
        if process.exitcode:
            raise RuntimeError(f"decoding by {kind} ended with exit code {process.exitcode}")
        rates[kind] = results.get()
    return rates


def batches(count: int, batch: int, steps: int) -> list[Tensor]:
    """Index batches of shuffled epochs, the same at each call."""
    import torch

    generator = torch.Generator().manual_seed(0)
    epochs = -(-steps * batch // count)
    order = torch.cat([torch.randperm(count, generator=generator) for _ in range(epochs)])
    return list(order[: steps * batch].split(batch))


def cache_rates(images: DatasetImages, batch: int, repeats: int) -> dict[str, float]:
    """Images a second of a pass over decoded images, the fastest of the repeats."""
    index = batches(len(images), batch, len(images) // batch)
    ways: dict[str, Callable[[Tensor], Tensor]] = {"8-bit": images.stored, "floats": images.pixels}
    best = dict.fromkeys(ways, 0.0)
    for _ in range(repeats):
        for way, read in ways.items():
            start = time.perf_counter()
            for part in index:
                read(part)
            best[way] = max(best[way], len(index) * batch / (time.perf_counter() - start))
    return best


def waits(images: DatasetImages, index: Sequence[Tensor], device: str, step_s: float, *, ahead: bool) -> list[float]:
    """Seconds that each step waits for its batch on the device; between two of them the CPU sleeps ``step_s``."""
    from methods.parts.feeding import feed

    def one_by_one() -> Feed[Tensor]:
        for part in index:
            yield part, (images.pixels(part).to(device),)

    found = []
    stream = feed(index, lambda part: (images.stored(part),), device) if ahead else one_by_one()
    with contextlib.closing(stream):
        for _ in index:
            start = time.perf_counter()
            next(stream)
            found.append(time.perf_counter() - start)
            time.sleep(step_s)
    return found


def wait_times(
    root: Path, size: int, folder: Path, batch: int, steps: int, device: str, step_s: float
) -> dict[str, dict[str, dict[str, float]]]:
    """Mean and longest wait of a step in milliseconds, by where images come from and how they are read."""
    times: dict[str, dict[str, dict[str, float]]] = {"cache": {}, "JPEG": {}}
    for way in ("plain", "ours"):
        with setting("UCDR_BENCH_CACHE", str(folder / f"wait {way}")):
            _, images = opened(root, size)
            epoch = batches(len(images), batch, max(2, len(images) // batch))
            images.stored(epoch[0])  # starts the workers
            for source, index in (("JPEG", epoch[1:]), ("cache", batches(len(images), batch, steps))):
                found = waits(images, index, device, step_s, ahead=way == "ours")[1:]  # nothing is ahead of the first
                times[source][way] = {"mean_ms": 1000 * sum(found) / len(found), "longest_ms": 1000 * max(found)}
    return times


def augmentation_times(device: str, repeats: int) -> list[dict[str, Any]]:
    """Milliseconds to augment each batch of :data:`AUGMENTED`: the fastest of the repeats, in turn."""
    import torch

    from methods.parts.augment import Augmentation, augment

    def ours(stored: Tensor) -> Tensor:
        return augment(stored, Augmentation(), torch.Generator().manual_seed(0))

    rows = []
    for count, side in AUGMENTED:
        stored = torch.randint(0, 256, (count, 3, side, side), dtype=torch.uint8).to(device)
        floats = stored.float() / 255
        ways: dict[str, Callable[[], Tensor]] = {"ours": functools.partial(ours, stored)}
        if importlib.util.find_spec("kornia"):
            ways["plain"] = functools.partial(kornia_pipeline(side), floats)
        best = dict.fromkeys(ways, float("inf"))
        for _ in range(repeats + 1):  # the first warms up
            for way, run in ways.items():
                start = time.perf_counter()
                run().sum().item()
                best[way] = min(best[way], 1000 * (time.perf_counter() - start))
        ratio = best["plain"] / best["ours"] if "plain" in best else None
        rows.append(
            {"images": count, "side": side, "ours_ms": best["ours"], "plain_ms": best.get("plain"), "ratio": ratio}
        )
    return rows


def kornia_pipeline(side: int) -> Callable[[Tensor], Tensor]:
    """What version 1 of the augmentation called."""
    import kornia.augmentation as kornia

    steps = [
        kornia.RandomResizedCrop((side, side), scale=(0.8, 1.0), p=1.0),
        kornia.RandomHorizontalFlip(p=0.5),
        kornia.ColorJitter(0.4, 0.4, 0.4, 0.4, p=1.0),
    ]
    pipeline = kornia.AugmentationSequential(*steps, data_keys=["input"], same_on_batch=False)
    return lambda floats: pipeline(floats).clamp(0, 1)


def measure(
    *, images: int, size: int, batch: int, steps: int, step_ms: float, repeats: int, workers: int, device: str
) -> dict[str, Any]:
    """All figures; the arguments are the command's options."""
    with tempfile.TemporaryDirectory(prefix="ucdr-bench-speed-") as made:
        folder, root = Path(made), Path(made) / "photographs"
        write_photographs(root, images)
        decode = decoding_rates(root, size, folder, workers)
        with setting("UCDR_BENCH_WORKERS", str(workers)):
            with setting("UCDR_BENCH_CACHE", str(folder / "processes")):
                cache = cache_rates(opened(root, size)[1], batch, repeats)
            wait = wait_times(root, size, folder, batch, steps, device, step_ms / 1000)
    return {"decode": decode, "cache": cache, "wait": wait, "augment": augmentation_times(device, repeats)}


def table(result: dict[str, Any]) -> str:
    """The figures as a Markdown table."""
    decode, cache = result["decode"], result["cache"]
    lines = ["| | ours | plain | ratio |", "| --- | ---: | ---: | ---: |"]
    for kind in ("processes", "threads"):
        rates = decode[kind], decode["one thread"]
        lines.append(f"| decode, {kind}, images/s | {rates[0]:.0f} | {rates[1]:.0f} | {rates[0] / rates[1]:.1f} |")
    lines.append(
        f"| cache, images/s | {cache['8-bit']:.0f} | {cache['floats']:.0f} | {cache['8-bit'] / cache['floats']:.1f} |"
    )
    for source, ways in result["wait"].items():
        ours, plain = ways["ours"]["mean_ms"], ways["plain"]["mean_ms"]
        lines.append(f"| wait of a step, {source}, ms | {ours:.2f} | {plain:.2f} | {plain / ours:.1f} |")
    for row in result["augment"]:
        plain, ratio = ("", "") if row["plain_ms"] is None else (f"{row['plain_ms']:.1f}", f"{row['ratio']:.1f}")
        what = f"augment {row['images']} images of {row['side']} pixels, ms"
        lines.append(f"| {what} | {row['ours_ms']:.1f} | {plain} | {ratio} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see ``--help``."""
    parser = OneLineParser(
        prog="python -m benchmarks.speed.feeding",
        description="Time decoding, the image cache, the wait of a training step for its images, and augmentation.",
    )
    parser.add_argument("--images", type=int, default=1000, help="JPEG files (default: %(default)s)")
    parser.add_argument("--size", type=int, default=224, help="side of the decoded images (default: %(default)s)")
    parser.add_argument("--batch-size", type=int, default=50, help="images a step (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=60, help="steps timed from the cache (default: %(default)s)")
    parser.add_argument(
        "--step-ms", type=float, default=50.0, help="what the device works in a step (default: %(default)s)"
    )
    parser.add_argument("--repeats", type=int, default=5, help="of the fast measurements (default: %(default)s)")
    parser.add_argument("--workers", type=int, default=2, help="that decode (default: %(default)s)")
    parser.add_argument("--threads", type=int, help="CPU threads of torch (default: OMP_NUM_THREADS, or all cores)")
    parser.add_argument("--device", default="cpu", help="cpu (default), cuda, ...")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every number to FILE")
    args = parser.parse_args(argv)
    least = {"images": 2 * max(64, args.batch_size), "size": 8, "batch_size": 1, "steps": 2, "repeats": 1, "workers": 1}
    for name, low in least.items():
        if getattr(args, name) < low:
            parser.error(f"--{name.replace('_', '-')} must be at least {low}")
    if args.threads is not None and args.threads < 1:
        parser.error("--threads must be at least 1")
    if args.step_ms < 0:
        parser.error("--step-ms cannot be negative")

    import torch

    from benchmarks.runner.environment import environment
    from benchmarks.runner.machine import pick_device
    from benchmarks.runner.process_settings import prepare_process
    from benchmarks.runner.settings import SettingsError

    try:
        device = pick_device(args.device)
    except SettingsError as error:
        parser.error(str(error))
    prepare_process(args.threads or 0)
    settings = {
        "images": args.images,
        "size": args.size,
        "batch": args.batch_size,
        "steps": args.steps,
        "step_ms": args.step_ms,
        "repeats": args.repeats,
        "workers": args.workers,
        "device": device,
    }
    load = [os.getloadavg()]
    result = measure(**settings)
    load.append(os.getloadavg())
    print(table(result))
    print(f"\nload average {load[0][0]:.1f} at the start, {load[1][0]:.1f} at the end; {os.cpu_count()} cores")
    if args.json is not None:
        about = {
            "schema": 1,
            "environment": dataclasses.asdict(environment(device, torch.get_num_threads())),
            "load_average": {"start": load[0], "end": load[1]},
            "settings": settings,
        }
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps({**about, **result}, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
