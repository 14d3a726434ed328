"""Every method, and a small run, on a device that refuses what CUDA refuses (tests/support/sim_device.py)."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from benchmarks.datasets.registry import DATASETS
from benchmarks.evaluation.classification import classify, classify_zero_shot
from benchmarks.evaluation.ranking import rank
from benchmarks.evaluation.search import search
from benchmarks.run import main
from benchmarks.runner.environment import environment
from benchmarks.runner.fit_group import GroupRunner
from benchmarks.runner.machine import pick_device
from benchmarks.runner.process_settings import prepare_process
from benchmarks.runner.settings import SettingsError
from benchmarks.store.files import ResultStore
from benchmarks.store.records import Record
from methods.parts.augment import Augmentation, augment
from methods.registry import METHODS
from methods.training.loop import training_attention
from tests.support.device_grid import VARIANTS, answers, bench, trained
from tests.support.every import Silent, small, small_set
from tests.support.sim_device import simulated, syncs, uploads
from tests.support.tiny_clip import tiny_tokenizer
from tests.support.tiny_dataset import TinyShapes


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("part", ["not slow", pytest.param("slow", marks=pytest.mark.slow)])
def test_on_the_simulated_device(part: str) -> None:
    """All tests marked ``simulated``, in a process of their own: torch takes no new device after its first backward."""
    command = [sys.executable, "-m", "pytest", "-n0", "-m", f"simulated and {part}", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]


@pytest.fixture
def sim() -> Iterator[str]:
    """The device's name; it can be used while the test runs."""
    with simulated():
        yield "sim"


@pytest.fixture(scope="module")
def tiny() -> Iterator[None]:
    DATASETS.add("tiny", TinyShapes)
    yield
    DATASETS.remove("tiny")


@pytest.mark.simulated
@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_every_method_on_the_device(
    name: str, variant: str, tiny_folder: Path, tmp_path: Path, tiny: None, sim: str
) -> None:
    on_device, on_cpu = bench(tiny_folder, sim), bench(tiny_folder, "cpu")
    method, pixels, names = trained(name, variant, on_device)
    given = answers(method, pixels, names)
    assert {key: value.device.type for key, value in given.items()} == dict.fromkeys(given, sim)
    for key, value in answers(method, pixels.to(sim), names).items():
        torch.testing.assert_close(value.cpu(), given[key].cpu(), msg=f"{key} of images on the device")
    method.save(tmp_path / "kept")
    for place in (on_device, on_cpu):
        loaded = type(method).load(tmp_path / "kept", place.backbone, place.device)
        assert loaded.device.type == place.backbone.device.type
        for key, value in answers(loaded, pixels, names).items():
            assert value.device.type == place.device
            torch.testing.assert_close(
                value.cpu(), given[key].cpu(), atol=1e-4, rtol=1e-4, msg=f"{key}, {place.device}"
            )


#: Of each stage, steps that make what is kept, and those behind them whose waits are counted.
WARM, COUNTED = 1, 2

#: Copies of a step to the device that wait for it: none, but what a method has by itself.
UPLOADS = 0


@pytest.mark.simulated
@pytest.mark.parametrize(
    ("name", "variant"), [pytest.param(*one, marks=[pytest.mark.slow] * (one[1] != "paper")) for one in VARIANTS]
)
def test_bf16_and_waits_on_the_device(
    name: str, variant: str, tiny_folder: Path, tmp_path: Path, tiny: None, sim: str
) -> None:
    on_device = bench(tiny_folder, sim, "bf16")
    stages = 2 if hasattr(METHODS.get(name).Config, "stage1_share") else 1
    steps: list[tuple[str, int, dict[str, int], dict[str, int]]] = []

    def log(**numbers: Any) -> None:
        if "loss" in numbers:
            steps.append((numbers["stage"], numbers["step"], dict(syncs), dict(uploads)))
        syncs.clear()
        uploads.clear()

    more = {"steps": stages * (WARM + COUNTED), "stage1_share": 0.5, "validate_every": 0, "patience": 0}
    more |= {"warmup_share": 0.0, "memory": 8}  # SRE-CLIP's target losses, all of them
    method, pixels, names = trained(name, variant, on_device, log=log, **more)
    counted = [one for one in steps if one[1] > WARM]
    assert len(counted) == (stages * COUNTED if "steps" in small(METHODS.get(name)) else 0)
    assert [one for one in counted if sum(one[2].values()) > 1] == [], "a step waits for the device once, for its loss"
    assert [one for one in counted if sum(one[3].values()) > UPLOADS] == []
    given = answers(method, pixels, names)
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in given.values())
    method.save(tmp_path / "kept")
    loaded = type(method).load(tmp_path / "kept", on_device.backbone, on_device.device)
    for key, value in answers(loaded, pixels, names).items():
        torch.testing.assert_close(value.cpu(), given[key].cpu(), msg=key)


@pytest.mark.simulated
def test_training_on_the_device_gives_the_numbers_of_the_cpu(tiny_folder: Path, tiny: None, sim: str) -> None:
    of_device, of_cpu = (answers(*trained("coop", "paper", bench(tiny_folder, device))) for device in (sim, "cpu"))
    for key, value in of_device.items():
        torch.testing.assert_close(value.cpu(), of_cpu[key], atol=1e-4, rtol=1e-4)


@pytest.mark.simulated
@pytest.mark.parametrize("crop", [0.5, 1.0])
def test_images_are_augmented_on_the_device(crop: float, sim: str) -> None:
    pixels = torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    on_device, on_cpu = (
        augment(pixels.to(device), Augmentation(crop), torch.Generator().manual_seed(1)) for device in (sim, "cpu")
    )
    assert on_device.device.type == sim
    torch.testing.assert_close(on_device.cpu(), on_cpu, atol=1e-6, rtol=0)


@pytest.mark.simulated
def test_a_small_run_on_the_device(tiny_folder: Path, tmp_path: Path, tiny: None, sim: str) -> None:
    names, scores = ("zero_shot", "coop", "raw_pixel"), {}
    for device in (sim, "cpu"):
        out = tmp_path / device
        settings = [f"{name}={value}" for name, value in small_set(names)]
        arguments = ["--methods", ",".join(names), "--protocols", "ucdr,dazsl", "--datasets", "tiny", "--seeds", "1"]
        arguments += ["--preset", "smoke", "--backbone", str(tiny_folder), "--device", device, "--jobs", "1"]
        arguments += ["--threads", "1", "--out", str(out), *(part for one in settings for part in ("--set", one))]
        assert main(arguments) == 0
        records = list(ResultStore(out).records())
        assert {record.status for record in records} <= {"ok", "not_applicable"}
        assert {record.environment.device for record in records} == {device}
        assert {record.environment.tf32 for record in records} == {False}
        older = json.loads(records[0].to_json())
        del older["environment"]["tf32"]  # as in records that were written before it was recorded
        assert Record.from_json(json.dumps(older)).environment.tf32 is None
        scores[device] = {
            (record.cell.method, record.cell.protocol, record.cell.split, name): one.metrics
            for record in records
            for name, one in record.scores.items()
        }
    assert scores[sim].keys() == scores["cpu"].keys()
    assert {key[0] for key in scores[sim]} == set(names)
    for key, metrics in scores[sim].items():
        assert metrics == pytest.approx(scores["cpu"][key], abs=0.02), key


@pytest.mark.simulated
def test_scores_take_tensors_of_any_device(sim: str) -> None:
    generator = torch.Generator().manual_seed(0)
    query, gallery = torch.randn(6, 8, generator=generator), torch.randn(9, 8, generator=generator)
    labels, logits = torch.arange(6) % 3, torch.randn(6, 3, generator=generator)

    def all_scores(put: Callable[[Any], Any]) -> list[Any]:
        ranked = rank(put(query), put(gallery), put(labels), put(torch.arange(9) % 3), ks=(2,), top=3)
        found = search(put(query), put(gallery), 3)
        mask = torch.tensor([True, False, True])
        return [
            ranked.means(),
            found.ids.tolist(),
            classify(put(logits), put(labels)).means(),
            classify(iter([put(logits[:4]), put(logits[4:])]), put(labels)).means(),
            *(classify_zero_shot(put(logits), put(labels), put(seen)).means() for seen in (mask, torch.tensor([0, 2]))),
        ]

    assert all_scores(lambda tensor: tensor.to(sim)) == all_scores(lambda tensor: tensor)
    assert all_scores(lambda tensor: tensor.numpy()) == all_scores(lambda tensor: tensor)


# --- the simulated device itself --------------------------------------------------------------------------------------


@pytest.mark.simulated
def test_the_device_refuses_what_cuda_refuses(sim: str) -> None:
    here, there = torch.ones(3, 3), torch.ones(3, 3, device=sim)
    refused: list[Callable[[], Any]] = [
        lambda: here @ there,
        lambda: there + here,
        lambda: torch.cat([here, there]),
        lambda: torch.nn.functional.linear(there, here),
        lambda: there.index_select(0, torch.tensor([0])),
        lambda: here[torch.tensor([0], device=sim)] + there[0],
        lambda: torch.nn.functional.conv2d(there[None, None], here[None, None]),
        lambda: there.gather(0, torch.zeros(1, 3, dtype=torch.long)),
    ]
    for number, one in enumerate(refused):
        with pytest.raises(RuntimeError, match=r"same device|device type"):
            one()
            pytest.fail(f"number {number} was let through")
    with pytest.raises(TypeError, match="numpy"):
        there.numpy()
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(3, device=sim, generator=torch.Generator())
    with pytest.raises(RuntimeError, match="generator"):
        torch.rand(3, generator=torch.Generator(sim))


@pytest.mark.simulated
def test_the_device_allows_what_cuda_allows(sim: str) -> None:
    there = torch.arange(6.0, device=sim).view(2, 3)
    assert (there * torch.tensor(2.0)).sum().item() == 30  # a CPU tensor without dimensions
    assert there[torch.tensor([1])].tolist() == [[3, 4, 5]]  # a CPU index
    assert torch.rand(3, device=sim, generator=torch.Generator(sim).manual_seed(0)).device.type == sim
    np.testing.assert_array_equal(there.cpu().numpy(), np.arange(6).reshape(2, 3))
    weight = torch.nn.Parameter(there.clone())
    (weight.square().sum()).backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == (2 * there).tolist()
    with torch.autocast(sim, dtype=torch.bfloat16):
        assert (there @ there.T).dtype == torch.bfloat16
        assert there.softmax(0).dtype == torch.float32


@pytest.mark.simulated
def test_what_would_wait_for_the_device_is_counted(sim: str) -> None:
    there = torch.arange(6.0, device=sim)
    waiting: list[Callable[[], Any]] = [
        lambda: float(there[0]),
        lambda: there.cpu(),
        lambda: there.tolist(),
        lambda: bool((there > 2).any()),
        lambda: there[there > 2],
        lambda: there.index_put_((there > 2,), torch.zeros(3, device=sim)),
        lambda: torch.empty(6).copy_(there),
        lambda: torch.nonzero(there),
        lambda: torch.unique(there),
    ]
    running: list[Callable[[], Any]] = [
        lambda: there + 1,
        lambda: there[torch.tensor([1])],
        lambda: there.masked_fill(there > 2, 0.0),
        lambda: torch.where(there > 2, there, 0.0),
        lambda: torch.ones(3).to(sim),
        lambda: there.view(2, 3).max(dim=0).values,
    ]
    for calls, expected in ((waiting, 1), (running, 0)):
        for number, call in enumerate(calls):
            syncs.clear()
            call()
            assert sum(syncs.values()) == expected, (number, syncs)
            assert all(place.startswith(__file__) for place in syncs)
    blocking: list[Callable[[], Any]] = [
        lambda: torch.ones(3).to(sim),
        lambda: there[torch.tensor([1])],
        lambda: torch.empty(6, device=sim).copy_(torch.ones(6)),
    ]
    queued: list[Callable[[], Any]] = [
        lambda: torch.ones(3).to(sim, non_blocking=True),
        lambda: torch.empty(6, device=sim).copy_(torch.ones(6), non_blocking=True),
        lambda: there.to(torch.bfloat16),
        lambda: torch.zeros(3, device=sim),
    ]
    for calls, expected in ((blocking, 1), (queued, 0)):
        for number, call in enumerate(calls):
            uploads.clear()
            call()
            assert sum(uploads.values()) == expected, (number, uploads)


@pytest.mark.simulated
def test_nothing_is_left_behind() -> None:
    generator, swap = torch.Generator, torch.__future__.get_swap_module_params_on_conversion()
    drawn = torch.rand(3, generator=torch.Generator().manual_seed(1))
    with pytest.raises(ZeroDivisionError), simulated():
        assert math.isclose(1 / 0, 0)
    assert torch.Generator is generator
    assert torch.__future__.get_swap_module_params_on_conversion() is swap
    assert torch.overrides._len_torch_function_stack() == 0
    assert torch.equal(torch.rand(3, generator=torch.Generator().manual_seed(1)), drawn)
    assert torch.get_default_device().type == "cpu"


# --- devices that are not there ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["meta", "mps", "cuda:99", "xpu:7", "nonsense", "cuda:", "", "sims"])
def test_a_device_that_is_not_there_is_refused_in_one_line(name: str) -> None:
    with pytest.raises(SettingsError, match=r"^--device .* cannot be used here \(.+\); try --device cpu$") as refused:
        pick_device(name)
    assert len(str(refused.value)) < 400


# --- one process, one GPU ---------------------------------------------------------------------------------------------


def test_peak_memory_is_that_of_the_gpu_in_use(tiny_folder: Path, tiny: None, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = GroupRunner(bench(tiny_folder, "cpu"), Silent(), lambda record, values: None)
    runner.resources.device = "cuda:3"
    asked: list[tuple[str, Any]] = []

    def spy(name: str) -> Callable[..., int]:
        return lambda device=None: asked.append((name, device)) or 5 * 2**20

    for name in ("reset_peak_memory_stats", "synchronize", "max_memory_allocated"):
        monkeypatch.setattr(torch.cuda, name, spy(name))
    with runner._measured() as peak:
        asked.append(("work", None))
    third = torch.device("cuda:3")
    assert asked == [
        ("reset_peak_memory_stats", third),
        ("work", None),
        ("synchronize", third),
        ("max_memory_allocated", third),
    ]
    assert peak["gpu_mib"] == 5


@pytest.fixture
def arithmetic() -> Iterator[None]:
    """The process's settings, put back after the test."""
    deterministic = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory
    rounded = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    yield
    torch.use_deterministic_algorithms(deterministic[0], warn_only=deterministic[1])
    torch.utils.deterministic.fill_uninitialized_memory = filled
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = rounded


@pytest.mark.parametrize("before", [True, False])
def test_float32_is_float32_and_each_record_says_so(before: bool, arithmetic: None) -> None:
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = before
    torch.utils.deterministic.fill_uninitialized_memory = True
    assert environment("cpu", 1).tf32 is before
    prepare_process(0)
    assert environment("cpu", 1).tf32 is False
    assert torch.backends.cudnn.conv.fp32_precision != "tf32"
    assert torch.are_deterministic_algorithms_enabled()
    torch.backends.cudnn.allow_tf32 = True
    assert environment("cpu", 1).tf32 is True  # what is so, not what should be


@pytest.mark.parametrize("precision", ["float32", "tf32", "bf16"])
def test_a_record_states_the_arithmetic(precision: str, arithmetic: None) -> None:
    prepare_process(0, precision)
    found = environment("cpu", 1)
    assert found.tf32 is (precision == "tf32")
    stated = found.arithmetic
    assert (stated["matmul_tf32"], stated["cudnn_tf32"]) == (found.tf32, found.tf32)
    assert stated["deterministic"] == "warn" and stated["cudnn_benchmark"] is False
    assert stated["cublas_workspace"] == os.environ["CUBLAS_WORKSPACE_CONFIG"] != ""
    assert stated["training_attention"] == ["math"] and set(stated["attention"]) >= {"math", "flash"}
    torch.use_deterministic_algorithms(False)
    assert environment("cpu", 1).arithmetic["deterministic"] is False
    json.dumps(stated)


def test_memory_that_is_only_reserved_is_not_written(arithmetic: None) -> None:
    prepare_process(0)
    assert torch.utils.deterministic.fill_uninitialized_memory is False
    for _ in range(20):
        kept = torch.empty(64)
        if not kept.isnan().all():
            return
    pytest.fail("torch.empty is filled with NaN")


def kernels() -> dict[str, bool]:
    """Which attention kernels torch may choose from."""
    cuda = torch.backends.cuda
    on = (cuda.math_sdp_enabled, cuda.flash_sdp_enabled, cuda.mem_efficient_sdp_enabled, cuda.cudnn_sdp_enabled)
    return {one.__name__.removesuffix("_sdp_enabled"): one() for one in on}


def test_attention_in_training_is_deterministic_on_a_gpu() -> None:
    before = kernels()
    assert before["flash"]
    with training_attention(torch.device("cuda:1")):
        assert kernels() == {"math": True, "flash": False, "mem_efficient": False, "cudnn": False}
    assert kernels() == before
    with training_attention(torch.device("cpu")):
        assert kernels() == before


def test_every_step_of_a_stage_uses_that_attention(
    tiny_folder: Path, tiny: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.device] = []
    real = training_attention

    def spy(device: torch.device) -> Any:
        seen.append(device)
        return real(device)

    monkeypatch.setattr("methods.training.loop.training_attention", spy)
    method, _, _ = trained("coop", "paper", bench(tiny_folder, "cpu"))
    assert seen == [method.device] * method.config.steps


@pytest.mark.gpu
def test_attention_gradients_on_a_gpu_are_equal_in_every_run(arithmetic: None) -> None:
    prepare_process(0)
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(64, 8, 257, 64, generator=generator).cuda().requires_grad_() for _ in range(3)]

    def gradients() -> list[torch.Tensor]:
        with training_attention(torch.device("cuda")):
            loss = torch.nn.functional.scaled_dot_product_attention(*tensors).square().sum()
        return list(torch.autograd.grad(loss, tensors))

    first = gradients()
    for _ in range(5):
        assert all(torch.equal(a, b) for a, b in zip(first, gradients(), strict=True))


def test_the_tiny_tokenizer_is_equal_in_every_process() -> None:
    code = "from tests.support.tiny_clip import tiny_tokenizer as t; import json; print(json.dumps(t().get_vocab()))"
    root = str(Path(__file__).parents[2])
    other = "1" if os.environ.get("PYTHONHASHSEED") != "1" else "2"
    variables = os.environ | {"PYTHONHASHSEED": other, "PYTHONPATH": root}
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, check=True, text=True)
    assert json.loads(done.stdout) == tiny_tokenizer().get_vocab()
