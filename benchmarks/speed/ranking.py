"""Cost of the ranking engine as a multiple of the bare matrix product, measured in the same run.

``python -m benchmarks.speed.ranking`` draws class clusters (20,000 queries, 20,000 gallery items, 512 dimensions) and
times, in turn and several times over,

* the float32 product ``query @ gallery.T`` alone, in blocks into one preallocated array: the least any exact
  evaluation can cost, since the scores are not even looked at;
* the product followed by a partition of every row: the least a search for the first 200 can cost;
* `benchmarks.evaluation.ranking.rank`: all figures of all queries, average precision over the whole gallery included;
* the same with ``whole=False``: mAP@200, P@200 and P@100 alone;
* once, on one block of queries, the product followed by a full ``argsort`` of every ranking, as evaluation code often
  does it.

The printed ratio is fastest over fastest, as timeit advises on machines that do other work too; the range over the
repeats is given with it. The figures are those of exact float64 scores (see the engine's docstring for what that buys);
a float64 product of all pairs would alone be twice the float32 product.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.console import OneLineParser

BLOCK = 1000

#: Places of the search, and the largest cut.
SEARCHED = 200

PHASES = ("bare product", "product and search", "ranking", "ranking of the first")
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


def measure(
    queries: int,
    gallery: int,
    dim: int,
    classes: int,
    repeats: int,
    similarity: str = "cosine",
    memory_mib: float = 512,
    seed: int = 0,
    progress: Callable[[str, int], None] = lambda phase, done: None,
) -> dict[str, Any]:
    """Time the bare product and the ranking ``repeats`` times each; seconds, their ratio, and the figures found."""
    import numpy as np

    from benchmarks.evaluation.ranking import rank

    rng = np.random.default_rng(seed)
    centres = 0.35 * rng.standard_normal((classes, dim), dtype=np.float32)
    query_labels, gallery_labels = rng.integers(0, classes, queries), rng.integers(0, classes, gallery)
    query = centres[query_labels] + rng.standard_normal((queries, dim), dtype=np.float32)
    items = centres[gallery_labels] + rng.standard_normal((gallery, dim), dtype=np.float32)
    query /= np.linalg.norm(query, axis=1, keepdims=True)
    items /= np.linalg.norm(items, axis=1, keepdims=True)
    block = np.empty((min(BLOCK, queries), gallery), np.float32)

    def product() -> None:
        for start in range(0, queries, BLOCK):
            part = query[start : start + BLOCK]
            np.matmul(part, items.T, out=block[: len(part)])
            progress("bare product", len(part))

    def search() -> None:
        for start in range(0, queries, BLOCK):
            part = query[start : start + BLOCK]
            np.matmul(part, items.T, out=block[: len(part)])
            for row in block[: len(part)]:
                row.argpartition(max(0, gallery - SEARCHED))
            progress("product and search", len(part))

    def ranking(whole: bool) -> dict[str, float]:
        phase = "ranking" if whole else "ranking of the first"
        return rank(
            query,
            items,
            query_labels,
            gallery_labels,
            similarity=similarity,  # type: ignore[arg-type]
            ks=(100, SEARCHED),
            recall_ks=(1, 10, 100) if whole else (),
            whole=whole,
            memory_mib=memory_mib,
            progress=lambda done: progress(phase, done),
        ).means()

    def full_sort() -> None:
        np.matmul(query[: len(block)], items.T, out=block)
        block.argsort(axis=1)

    def seconds(call: Callable[[], Any]) -> tuple[float, float]:
        """Wall-clock and processor seconds of a call."""
        wall, cpu = time.perf_counter(), time.process_time()
        call()
        return time.perf_counter() - wall, time.process_time() - cpu

    product_times, search_times, ranking_times, first_times = [], [], [], []
    means: dict[str, float] = {}
    first: dict[str, float] = {}
    for _ in range(repeats):
        product_times.append(seconds(product))
        search_times.append(seconds(search))
        ranking_times.append(seconds(lambda: means.update(ranking(True))))
        first_times.append(seconds(lambda: first.update(ranking(False))))
    assert all(means[name] == value for name, value in first.items())
    sort_s = seconds(full_sort)[0] * queries / len(block)
    product_s, product_cpu_s = zip(*product_times, strict=True)
    ranking_s, ranking_cpu_s = zip(*ranking_times, strict=True)
    bare = min(product_s)
    return {
        "queries": queries,
        "gallery": gallery,
        "dim": dim,
        "classes": classes,
        "similarity": similarity,
        "memory_mib": memory_mib,
        "seed": seed,
        "product_s": product_s,
        "ranking_s": ranking_s,
        "product_cpu_s": product_cpu_s,
        "ranking_cpu_s": ranking_cpu_s,
        "ratio": min(ranking_s) / bare,
        "ratios": [r / p for r, p in zip(ranking_s, product_s, strict=True)],
        "cpu_ratio": min(ranking_cpu_s) / min(product_cpu_s),
        "search_cpu_ratio": min(cpu for _, cpu in search_times) / min(product_cpu_s),
        "first_cpu_ratio": min(cpu for _, cpu in first_times) / min(product_cpu_s),
        "full_sort_ratio": sort_s / bare,
        "pairs_per_second": queries * gallery / min(ranking_s),
        "means": means,
        "threads": {name: os.environ.get(name) for name in THREAD_VARIABLES},
        "cpu_count": os.cpu_count(),
        "machine": platform.machine(),
        "python": platform.python_version(),
        "numpy": np.__version__,
    }


def _progress(queries: int, repeats: int) -> tuple[Any, Callable[[str, int], None]]:
    """A rich display with rate and time left, silent when standard error is not a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
    from rich.text import Text

    class Rate(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:,.0f} queries/s" if task.speed else "")

    console = Console(stderr=True)
    display = Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f}/{task.total:,.0f}"),
        Rate(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
    tasks = {phase: display.add_task(phase, total=queries * repeats) for phase in PHASES}
    return display, lambda phase, done: display.update(tasks[phase], advance=done)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see ``--help``."""
    parser = OneLineParser(
        prog="python -m benchmarks.speed.ranking",
        description="Time the exact ranking engine as a multiple of the bare float32 matrix product.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--queries", type=int, default=20_000)
    parser.add_argument("--gallery", type=int, default=20_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument(
        "--classes", type=int, default=200, help="about gallery / classes items are relevant to a query"
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--similarity", choices=["cosine", "sqeuclidean"], default="cosine")
    parser.add_argument("--memory-mib", type=float, default=512, help="memory ceiling of the ranking engine")
    parser.add_argument("--threads", type=int, help="threads of the matrix product (default: as in the environment)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write every number to FILE")
    args = parser.parse_args(argv)
    for name in ("queries", "gallery", "dim", "classes", "repeats"):
        if getattr(args, name) < 1:
            parser.error(f"--{name} must be at least 1")
    if args.threads is not None:
        if "numpy" in sys.modules:
            parser.error("--threads only works before numpy is imported; set OMP_NUM_THREADS instead")
        os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(args.threads)))

    display, advance = _progress(args.queries, args.repeats)
    with display:
        result = measure(
            args.queries,
            args.gallery,
            args.dim,
            args.classes,
            args.repeats,
            args.similarity,
            args.memory_mib,
            args.seed,
            advance,
        )
    if args.json is not None:
        args.json.parent.mkdir(parents=True, exist_ok=True)
        args.json.write_text(json.dumps(result, indent=2) + "\n")
    low, high = min(result["ratios"]), max(result["ratios"])
    print(f"{args.queries:,} queries x {args.gallery:,} gallery x {args.dim} dimensions, {args.similarity}")
    print(f"bare float32 product  {min(result['product_s']):8.2f} s")
    print(f"exact ranking         {min(result['ranking_s']):8.2f} s   (all figures)")
    print(f"ratio                 {result['ratio']:8.2f}     ({low:.2f} to {high:.2f} over {args.repeats} repeats)")
    print(
        f"in processor time     {result['cpu_ratio']:8.2f}     (the better measure where other work shares the cores)"
    )
    print(
        f"first {SEARCHED} only        {result['first_cpu_ratio']:8.2f}     (mAP@{SEARCHED}, P@100, in processor time)"
    )
    print(f"bare search for them  {result['search_cpu_ratio']:8.2f}     (product and partition, in processor time)")
    print(f"with a full argsort   {result['full_sort_ratio']:8.2f}     (product and argsort alone, no figures)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
