"""Everything that needs a GPU, in one run of at most ten minutes: its tests, then the speed table.

``python -m benchmarks.speed.gpu`` runs, in this order, until the time is up:

1. the tests marked ``gpu`` (``tests/gpu``, ``tests/methods/test_devices.py``), where the sources have them;
2. the rate of a large matrix product, in bfloat16 and float32: what the card gives at most;
3. for CLIP sizes ViT-B/32, B/16 and L/14 with random weights in bfloat16: images and texts encoded a second, with the
   images on the device, and the share of the matrix rate that is reached;
4. a training step of every method beside its plain path (:mod:`benchmarks.speed.training`, same inputs, same losses),
   with the share of the matrix rate and the peak memory.

What the time did not suffice for is named in the facts. Written to ``results/speed/``: ``gpu.json`` (the environment,
the tests' outcome, every number), ``gpu_encoding.csv`` and ``gpu_steps.csv`` (the tables). Shares are of the measured
matrix rate of the same precision, and for known cards also of the data sheet's.

``--device cpu --quick`` tries the script without a GPU: small batches, picto-clip, one repeat.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from benchmarks.console import OneLineParser

if TYPE_CHECKING:
    import torch

    from methods.parts.backbone import Backbone

ROOT = Path(__file__).resolve().parents[2]

#: Folders and files with tests of a GPU.
TESTS = ("tests/gpu", "tests/methods/test_devices.py")

#: Largest rate of dense bfloat16 products by the cards' data sheets, in TFLOP/s (NVIDIA; without sparsity).
DATA_SHEETS: Mapping[str, float] = {
    "A100": 312,
    "A10G": 70,
    "A10": 125,
    "A30": 165,
    "A40": 150,
    "L40S": 362,
    "L40": 181,
    "L4": 121,
    "H100 PCIe": 756,
    "H100": 989,
    "H200": 989,
    "B200": 2250,
    "RTX 4090": 165,
    "RTX 3090": 71,
}

#: Share of the whole time that the tests may take.
TEST_SHARE = 0.45

#: Seconds that stopped tests get to write what they have.
STOPPING_S = 20

ENCODING = ("backbone", "precision", "batch", "images_per_s", "image_tflops", "share_of_matrix_rate", "texts_per_s")
STEPS = (
    *("backbone", "method", "stage", "part", "batch", "classes", "plain_s", "ours_s", "ratio", "ours_tflops"),
    *("share_of_matrix_rate", "peak_gpu_mib", "losses_agree"),
)


def data_sheet(name: str) -> float | None:
    """The data sheet's rate of a card; None for a card that is not in :data:`DATA_SHEETS`."""
    known = [card for card in DATA_SHEETS if all(part in name for part in card.split())]
    return DATA_SHEETS[max(known, key=len)] if known else None


def run_tests(device: str, seconds: float) -> dict[str, Any]:
    """Run the tests marked ``gpu`` in a process of their own: how many passed, failed and were skipped, and failures.

    ``finished`` is False if they took longer than ``seconds``; the counts are then those of the tests that had run.
    """
    there = [name for name in TESTS if (ROOT / name).exists()]
    if not there:
        return {"finished": False, "reason": "the tests are not here: they come with the sources, not with the package"}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "tests.xml"
        command = [sys.executable, "-m", "pytest", "-n0", "-q", "-m", "gpu", "-p", "no:cacheprovider", *there]
        environment = {**os.environ, "GPU_TESTS_DEVICE": device}
        start = time.perf_counter()
        process = subprocess.Popen(
            [*command, f"--junitxml={report}"],
            cwd=ROOT,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            said, _ = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # pytest then writes what it has
            try:
                said, _ = process.communicate(timeout=STOPPING_S)
            except subprocess.TimeoutExpired:
                process.kill()
                said, _ = process.communicate()
            found = outcome(ElementTree.parse(report).getroot()) if report.is_file() else {}
            return {"finished": False, "reason": f"stopped after {seconds:.0f} s", **found}
        spent = time.perf_counter() - start
        if not report.is_file():
            last = said.strip().splitlines()[-1:] or [f"exit code {process.returncode}"]
            return {"finished": False, "reason": last[0], "seconds": spent}
        return {"finished": True, "seconds": spent, **outcome(ElementTree.parse(report).getroot())}


def outcome(report: ElementTree.Element) -> dict[str, Any]:
    """Counts of a JUnit report, and each failed test with the first line of its reason."""
    counts = {"passed": 0, "failed": 0, "skipped": 0}
    failures = []
    for case in report.iter("testcase"):
        bad = [part for kind in ("failure", "error") for part in case.findall(kind)]
        if bad:
            counts["failed"] += 1
            reason = (bad[0].get("message") or bad[0].text or "").strip().splitlines()
            name = f"{case.get('classname')}::{case.get('name')}"
            failures.append({"test": name, "reason": reason[0] if reason else ""})
        else:
            counts["skipped" if case.find("skipped") is not None else "passed"] += 1
    return {**counts, "failures": failures}


def waited(device: torch.device) -> None:
    """Wait until the device is done."""
    if device.type == "cuda":
        import torch

        torch.cuda.synchronize(device)


def fastest(call: Callable[[], Any], device: torch.device, repeats: int, seconds: float) -> float:
    """Seconds of a call: the median of ``repeats`` after one untimed, fewer if they take longer than ``seconds``."""
    from statistics import median

    call()
    waited(device)
    times: list[float] = []
    begun = time.perf_counter()
    while len(times) < repeats and (not times or time.perf_counter() - begun < seconds):
        start = time.perf_counter()
        call()
        waited(device)
        times.append(time.perf_counter() - start)
    return median(times)


def matrix_rate(device: torch.device, dtype: torch.dtype, side: int) -> float:
    """TFLOP/s of the product of two ``side`` x ``side`` matrices."""
    import torch

    a = torch.randn(side, side, device=device).to(dtype)
    b = torch.randn(side, side, device=device).to(dtype)
    return 2 * side**3 / fastest(lambda: a @ b, device, 20, 5) / 1e12


def encoding(backbone: Backbone, batch: int, rate: float) -> dict[str, Any]:
    """A row of :data:`ENCODING`: how fast a backbone encodes images that are on the device, and texts."""
    import torch

    from benchmarks.speed.training import class_list, work_counter

    device, side = backbone.device, backbone.image_size
    pixels = torch.rand(batch, 3, side, side, device=device)
    texts = [f"a photo of a {name}" for name in class_list()[0]]

    @torch.no_grad()
    def images() -> None:
        backbone.encode_images(backbone.normalize(pixels))

    @torch.no_grad()
    def words() -> None:
        backbone.encode_texts(texts)

    with work_counter() as counter:
        images()
    seconds = fastest(images, device, 20, 5)
    tflops = counter.get_total_flops() / seconds / 1e12
    values = (backbone.name, backbone.precision, batch, batch / seconds, tflops, tflops / rate)
    return dict(zip(ENCODING, (*values, len(texts) / fastest(words, device, 5, 5)), strict=True))


def step_row(row: Mapping[str, Any], rate: float) -> dict[str, Any]:
    """A row of :data:`STEPS` from one of :func:`benchmarks.speed.training.measure`."""
    ours, plain = row["ours"], row["plain"]
    tflops = ours["flops"] / ours["s"] / 1e12
    peak = None if row["peak_gpu_mib"] is None else row["peak_gpu_mib"]["ours"]
    what = (row["backbone"], row["method"], row["stage"], row["part"], row["batch_size"], row["classes"])
    seconds = (plain and plain["s"], ours["s"], row["ratio"], tflops, tflops / rate, peak, row["agrees"])
    return dict(zip(STEPS, (*what, *seconds), strict=True))


def write_table(file: Path, columns: Sequence[str], rows: Sequence[Mapping[str, Any]]) -> None:
    """A CSV file; numbers with four digits."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", newline="", encoding="utf-8") as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        for row in rows:
            writer.writerow({key: f"{value:.4g}" if isinstance(value, float) else value for key, value in row.items()})


def build_parser() -> argparse.ArgumentParser:
    """The options."""
    parser = OneLineParser(
        prog="python -m benchmarks.speed.gpu",
        description="Run the tests of a GPU, then measure encoding and training steps on it; ten minutes at most.",
    )
    parser.add_argument("--device", default="cuda", help="cuda (default), cuda:1, or cpu to try the script")
    parser.add_argument("--minutes", type=float, default=10, help="stop starting new work after this (default: 10)")
    parser.add_argument("--out", type=Path, default=ROOT / "results" / "speed", metavar="FOLDER")
    parser.add_argument("--no-tests", action="store_true", help="leave the tests out")
    parser.add_argument("--quick", action="store_true", help="small batches, one repeat, picto-clip: to try the script")
    parser.add_argument("--backbones", metavar="LIST", help="default: vit-b-32,vit-b-16,vit-l-14; --quick: picto-clip")
    parser.add_argument("--methods", default="all", metavar="LIST", help="of the steps; default: all trained ones")
    parser.add_argument("--precision", choices=["float32", "tf32", "bf16"], default="bf16")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; see ``--help``. Exit code 1 if a test or method failed or paths disagree, 2 for wrong options."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if not 0 < args.minutes <= 60:
        parser.error("--minutes must be above 0 and at most 60")

    import torch

    from benchmarks.runner.environment import environment
    from benchmarks.runner.machine import pick_device, pick_precision
    from benchmarks.runner.process_settings import prepare_process
    from benchmarks.runner.settings import SettingsError
    from benchmarks.speed import training

    try:
        device = pick_device(args.device)
        precision = pick_precision(args.precision, device)
    except SettingsError as error:
        parser.error(str(error))
    names = training.trained_methods() if args.methods == "all" else args.methods.split(",")
    if unknown := [name for name in names if name not in training.trained_methods()]:
        parser.error(
            f"--methods: {unknown[0]} is not a trained method; choose from: {', '.join(training.trained_methods())}"
        )
    sizes = (args.backbones or ("picto-clip" if args.quick else "vit-b-32,vit-b-16,vit-l-14")).split(",")
    start = time.perf_counter()

    def left() -> float:
        return 60 * args.minutes - (time.perf_counter() - start)

    tests: dict[str, Any] | None = None
    if not args.no_tests:
        tests = run_tests(device, TEST_SHARE * left())
        print("tests:", json.dumps({key: value for key, value in tests.items() if key != "failures"}), flush=True)
        for failure in tests.get("failures", []):
            print(f"FAILED {failure['test']}: {failure['reason']}", file=sys.stderr)
    prepare_process(0, precision)
    place = torch.device(device)
    side = 256 if args.quick else 8192
    rates = {"bf16": matrix_rate(place, torch.bfloat16, side), "float32": matrix_rate(place, torch.float32, side // 2)}
    rate = rates["bf16" if precision == "bf16" else "float32"]
    print(f"matrix products: {rates['bf16']:.3g} TFLOP/s in bf16, {rates['float32']:.3g} in {precision}", flush=True)

    encoded: list[dict[str, Any]] = []
    steps: list[dict[str, Any]] = []
    details: list[dict[str, Any]] = []
    failures: list[dict[str, str]] = []
    left_out: list[str] = []
    settings = (
        training.SpeedSettings(batch_size=4, classes=6, steps=1, repeats=1)
        if args.quick
        else training.SpeedSettings(repeats=1)
    )
    for size in sizes:
        if left() <= 0:
            left_out.append(f"{size}: everything")
            continue
        try:
            backbone = training.load_backbone(size, device, precision)
        except ValueError as error:
            parser.error(str(error))
        backbone.weights_hash  # noqa: B018 (kept by the backbone: no fit pays for it)
        row = encoding(backbone, 8 if args.quick else 256, rate)
        encoded.append(row)
        print(f"{row['backbone']}: {row['images_per_s']:.4g} images/s, {row['share_of_matrix_rate']:.0%}", flush=True)
        for name in names:
            if left() <= 0:
                left_out.append(f"{size}: {name}")
                continue
            try:
                measured = training.measure(name, backbone, training.workload(settings, size, place.type))
            except (RuntimeError, ValueError, MemoryError) as error:  # out of memory, ...: the others go on
                reason = next(iter(str(error).splitlines()), type(error).__name__)
                failures.append({"method": name, "backbone": backbone.name, "reason": reason})
                continue
            details += measured
            steps += (fresh := [step_row(one, rate) for one in measured])
            for one in fresh:
                print(
                    ", ".join(
                        f"{key} {value:.4g}" if isinstance(value, float) else f"{value}"
                        for key, value in one.items()
                        if value is not None
                    ),
                    flush=True,
                )
        del backbone
        if place.type == "cuda":
            torch.cuda.empty_cache()

    card = environment(device, torch.get_num_threads())
    facts = {
        "schema": 1,
        "environment": dataclasses.asdict(card),
        "precision": precision,
        "quick": args.quick,
        "seconds": time.perf_counter() - start,
        "tests": tests,
        "matrix_tflops": rates,
        "data_sheet_bf16_tflops": data_sheet(str(card.hardware.get("gpu", ""))),
        "encoding": encoded,
        "steps": details,
        "failures": failures,
        "left_out": left_out,
    }
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "gpu.json").write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
    write_table(args.out / "gpu_encoding.csv", ENCODING, encoded)
    write_table(args.out / "gpu_steps.csv", STEPS, steps)
    print(f"written to {args.out}: gpu.json, gpu_encoding.csv, gpu_steps.csv; {facts['seconds']:.0f} s")
    for line in left_out:
        print(f"left out for time: {line}", file=sys.stderr)
    for one in failures:
        print(f"failed: {one['method']} on {one['backbone']}: {one['reason']}", file=sys.stderr)
    wrong = [one for one in details if one["agrees"] is False and one["part"] == "step"]
    for one in wrong:
        print(
            f"DISAGREE: {one['method']} on {one['backbone']}, stage {one['stage']}: losses of both paths",
            file=sys.stderr,
        )
    return 1 if failures or wrong or (tests is not None and tests.get("failed", 0)) else 0


if __name__ == "__main__":
    sys.exit(main())
