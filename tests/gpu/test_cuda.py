"""Every method on a CUDA device: the grid of the simulated device (tests/methods/test_devices.py), and what only a GPU
can show: equal bits from equal seeds, bfloat16 beside float32, memory, waits.

``python -m benchmarks.speed.gpu`` runs these tests. ``GPU_TESTS_DEVICE=cpu`` runs on the CPU those that make sense
there, so that the tests themselves are tested without a GPU.
"""

from __future__ import annotations

import dataclasses
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks.datasets.registry import DATASETS
from benchmarks.run import main
from benchmarks.runner.process_settings import prepared_process
from benchmarks.store.files import ResultStore
from methods.interface import Method
from methods.parts.backbone import Backbone
from methods.registry import METHODS
from tests.methods.test_devices import UPLOADS
from tests.support.device_grid import VARIANTS, answers, bench, trained
from tests.support.every import small, small_set
from tests.support.tiny_dataset import TinyShapes

DEVICE = os.environ.get("GPU_TESTS_DEVICE", "cuda")
ON_GPU = DEVICE.startswith("cuda")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        ON_GPU and not torch.cuda.is_available(),
        reason="no CUDA device is here: run `python -m benchmarks.speed.gpu` on a machine with one",
    ),
]
only_gpu = pytest.mark.skipif(not ON_GPU, reason="needs a GPU; GPU_TESTS_DEVICE names another device")

#: Trained methods with their papers' settings; the grid runs the released ones too.
TRAINED = [(name, variant) for name, variant in VARIANTS if variant == "paper" and "steps" in small(METHODS.get(name))]

#: Without what each device draws by itself (augmentation, dropout).
PLAIN = {"augment": False, "crop": 1.0, "flip": False, "jitter": 0.0, "dropout": 0.0}


@pytest.fixture(scope="module")
def tiny() -> Iterator[None]:
    DATASETS.add("tiny", TinyShapes)
    yield
    DATASETS.remove("tiny")


@pytest.fixture(autouse=True)
def _arithmetic_of_a_run(tiny: None) -> Iterator[None]:
    with prepared_process(1):
        yield


def losses(name: str, variant: str, made: Any, **more: Any) -> tuple[Method, list[float]]:
    """A fitted method and the loss of each step."""
    seen: list[float] = []

    def log(**numbers: Any) -> None:
        if "loss" in numbers:
            seen.append(numbers["loss"])

    return trained(name, variant, made, log=log, **more)[0], seen


# --- the grid ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_every_method(name: str, variant: str, precision: str, tiny_folder: Path, tmp_path: Path) -> None:
    on_device, on_cpu = bench(tiny_folder, DEVICE, precision), bench(tiny_folder, "cpu", "float32")
    method, pixels, names = trained(name, variant, on_device)
    given = answers(method, pixels, names)
    assert {value.device.type for value in given.values()} == {torch.device(DEVICE).type}
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in given.values())
    method.save(tmp_path / "kept")
    again = answers(type(method).load(tmp_path / "kept", on_device.backbone, on_device.device), pixels, names)
    for key, value in again.items():
        torch.testing.assert_close(value, given[key], msg=f"{key} after saving and loading")
    elsewhere = answers(type(method).load(tmp_path / "kept", on_cpu.backbone, on_cpu.device), pixels, names)
    exact = precision == "float32"
    for key in ("embeddings", "classes"):
        cosines = torch.cosine_similarity(given[key].cpu(), elsewhere[key], dim=-1)
        assert float(cosines.min()) > (1 - 1e-4 if exact else 0.97), f"{key} beside float32 on the CPU"
    if exact:
        for key, value in elsewhere.items():
            scale = float(value.abs().max())
            torch.testing.assert_close(given[key].cpu(), value, atol=2e-3 * scale, rtol=1e-3, msg=key)


@pytest.mark.parametrize(("name", "variant"), TRAINED)
def test_training_follows_the_cpu(name: str, variant: str, tiny_folder: Path) -> None:
    of_device, of_cpu = (losses(name, variant, bench(tiny_folder, one), **PLAIN)[1] for one in (DEVICE, "cpu"))
    assert len(of_device) == len(of_cpu) > 0
    assert of_device[0] == pytest.approx(of_cpu[0], rel=1e-4, abs=1e-5), "the first loss, with equal weights"
    assert of_device == pytest.approx(of_cpu, rel=2e-2, abs=1e-3)


@pytest.mark.parametrize("precision", ["float32", "bf16"])
@pytest.mark.parametrize(("name", "variant"), TRAINED)
def test_equal_seeds_give_equal_bits(name: str, variant: str, precision: str, tiny_folder: Path) -> None:
    made = bench(tiny_folder, DEVICE, precision)
    first, second = (losses(name, variant, made) for _ in range(2))
    assert first[1] == second[1]
    learned = first[0].tensors()
    assert learned
    for key, value in second[0].tensors().items():
        assert torch.equal(value, learned[key]), key


@pytest.mark.parametrize(("name", "variant"), TRAINED)
def test_bf16_stays_close_to_float32(name: str, variant: str, tiny_folder: Path) -> None:
    exact, rounded = (losses(name, variant, bench(tiny_folder, DEVICE, one), **PLAIN)[1] for one in ("float32", "bf16"))
    assert rounded[0] == pytest.approx(exact[0], rel=5e-2, abs=5e-2)


def test_a_small_run(tiny_folder: Path, tmp_path: Path) -> None:
    names = ("zero_shot", "coop", "full_finetune", "raw_pixel")
    scores: dict[str, dict[Any, Any]] = {}
    for device in (DEVICE, "cpu"):
        out = tmp_path / device.replace(":", "-") / str(len(scores))
        arguments = ["--methods", ",".join(names), "--protocols", "ucdr,dazsl", "--datasets", "tiny", "--seeds", "1"]
        arguments += ["--preset", "smoke", "--backbone", str(tiny_folder), "--device", device, "--jobs", "1"]
        arguments += ["--precision", "float32", "--threads", "1", "--out", str(out)]
        arguments += [part for field, value in small_set(names) for part in ("--set", f"{field}={value}")]
        assert main(arguments) == 0
        records = list(ResultStore(out).records())
        assert {record.status for record in records} <= {"ok", "not_applicable"}
        assert {record.environment.device for record in records} == {device}
        if device.startswith("cuda"):
            peaks = [record.cost.peak_gpu_memory_mib for record in records if record.status == "ok"]
            assert all(peak is not None and 0 < peak < 4096 for peak in peaks)
            assert {record.environment.arithmetic["cublas_workspace"] for record in records} == {":4096:8"}
            assert all(record.environment.hardware["gpu"] for record in records)
        scores[str(len(scores))] = {
            (record.cell.method, record.cell.protocol, record.cell.split, name): one.metrics
            for record in records
            for name, one in record.scores.items()
        }
    first, second = scores.values()
    assert first.keys() == second.keys()
    for key, metrics in first.items():
        assert metrics == pytest.approx(second[key], abs=0.05), key


# --- what only a GPU shows --------------------------------------------------------------------------------------------


@only_gpu
def test_auto_precision_and_its_record(tiny_folder: Path) -> None:
    made = bench(tiny_folder, DEVICE, "auto")
    expected = "bf16" if torch.cuda.get_device_capability() >= (8, 0) else "float32"
    assert made.backbone.precision == made.backbone_facts.precision == expected


@only_gpu
def test_tf32_rounds_and_float32_does_not() -> None:
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("this GPU has no TF32")
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(512, 512, generator=generator) for _ in range(2))
    exact, found = a.double() @ b.double(), {}
    for precision in ("float32", "tf32"):
        with prepared_process(1, precision):
            found[precision] = float(((a.cuda() @ b.cuda()).cpu().double() - exact).abs().max())
    assert found["float32"] < 1e-3 < found["tf32"] < 1


@only_gpu
@pytest.mark.parametrize(("batch", "heads", "tokens", "width"), [(16, 12, 50, 64), (64, 8, 257, 64), (8, 16, 577, 64)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gradients_of_attention_are_equal_in_every_run(
    batch: int, heads: int, tokens: int, width: int, dtype: torch.dtype
) -> None:
    from methods.training.loop import training_attention

    generator = torch.Generator().manual_seed(0)
    shape = (batch, heads, tokens, width)
    given = [torch.randn(shape, generator=generator).to(DEVICE, dtype).requires_grad_() for _ in range(3)]

    def gradients() -> list[torch.Tensor]:
        with training_attention(torch.device(DEVICE)):
            loss = torch.nn.functional.scaled_dot_product_attention(*given).float().square().sum()
        return list(torch.autograd.grad(loss, given))

    first = gradients()
    for _ in range(4):
        assert all(torch.equal(a, b) for a, b in zip(first, gradients(), strict=True))


@only_gpu
@pytest.mark.parametrize(("name", "variant"), TRAINED)
def test_a_step_does_not_make_the_host_wait(name: str, variant: str, tiny_folder: Path) -> None:
    """torch warns where it waits for the device; the loss is read behind an event, which it does not count.

    What it does count beside: copies from memory that is not pinned, of which the simulated device allows so many too.
    """
    counts: list[int] = []
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")

        def log(**numbers: Any) -> None:
            counts.append(sum("synchroniz" in str(one.message) for one in caught))
            caught.clear()

        made = bench(tiny_folder, DEVICE)
        made.backbone.encode_texts(["warm"])
        torch.cuda.set_sync_debug_mode("warn")
        try:
            trained(name, variant, made, log=log, steps=8, validate_every=0, patience=0, **PLAIN)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert sorted(counts)[len(counts) // 2] <= UPLOADS, counts


@only_gpu
@pytest.mark.parametrize(("name", "variant"), TRAINED)
def test_a_fit_leaves_no_memory_behind(name: str, variant: str, tiny_folder: Path) -> None:
    made = bench(tiny_folder, DEVICE)
    peaks = []
    for _ in range(3):
        torch.cuda.reset_peak_memory_stats()
        trained(name, variant, made)
        torch.cuda.synchronize()
        peaks.append(torch.cuda.max_memory_allocated())
    assert peaks[2] <= 1.02 * peaks[1] + 2**20, peaks


@only_gpu
def test_frozen_weights_take_half_their_bytes_once_more(tiny_folder: Path) -> None:
    ours = Backbone.load(tiny_folder, device=DEVICE, precision="bf16")
    pixels = torch.rand(4, 3, ours.image_size, ours.image_size, device=DEVICE)
    with torch.no_grad():
        ours.encode_images(pixels)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        for _ in range(3):
            ours.encode_images(pixels)
        torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() <= before + 2**20


def test_the_grid_has_every_method() -> None:
    assert {name for name, _ in VARIANTS} == set(METHODS.names())
    assert all(dataclasses.is_dataclass(METHODS.get(name).Config) for name, _ in VARIANTS)
