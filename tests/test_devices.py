"""Every method, and a small run, on a device that refuses what CUDA refuses (tests/support/sim_device.py)."""

from __future__ import annotations

import math
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
from benchmarks.protocols.training import training_data
from benchmarks.run import main
from benchmarks.settings import SettingsError, resolve
from benchmarks.store import ResultStore
from benchmarks.workbench import Workbench, pick_device
from methods.interface import Method
from methods.registry import METHODS
from tests.support.every import METHOD_NAMES, small, small_set
from tests.support.sim_device import simulated
from tests.support.tiny_dataset import TinyShapes

#: Every method with its paper settings and, where there are any, those of its released code.
VARIANTS = [
    (name, variant) for name in METHOD_NAMES for variant in (dict(METHODS.get(name).variants) or {"paper": {}})
]


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


def bench(folder: Path, device: str, precision: str = "float32") -> Workbench:
    settings = {"methods": METHOD_NAMES, "protocols": ("uda",), "datasets": "tiny", "preset": "smoke", "jobs": 1}
    settings |= {"backbone": str(folder), "out": "unused", "threads": 1, "device": device, "precision": precision}
    return Workbench(resolve(settings))


def trained(name: str, variant: str, bench: Workbench) -> tuple[Method, torch.Tensor, list[str]]:
    """A method after a few steps of UDA (the protocol that shows target pictures), pictures and class names."""
    kind = METHODS.get(name)
    task = bench.task("tiny", "uda", bench.splits("tiny", "uda")[0])
    pixels = bench.pixels("tiny")
    config = kind.Config(**{**dict(kind.variants).get(variant, {}), **small(kind)})
    method = kind(bench.backbone, config, bench.device)
    torch.manual_seed(0)
    method.fit(training_data(task, pixels, lambda method, question: 0.5), seed=0, log=lambda **_: None)
    return method, pixels[task.train[:5]], list(task.class_names)


def answers(method: Method, pixels: torch.Tensor, names: list[str]) -> dict[str, torch.Tensor]:
    """What a run asks of a method."""
    with torch.no_grad():
        return {
            "embeddings": method.encode_images(pixels),
            "raw": method.encode_raw(pixels),
            "classes": method.encode_classes(names),
            "logits": method.classify(pixels, names),
        }


@pytest.mark.parametrize(("name", "variant"), VARIANTS)
def test_every_method_on_the_device(
    name: str, variant: str, tiny_folder: Path, tmp_path: Path, tiny: None, sim: str
) -> None:
    on_device, on_cpu = bench(tiny_folder, sim), bench(tiny_folder, "cpu")
    method, pixels, names = trained(name, variant, on_device)
    given = answers(method, pixels, names)
    assert {key: value.device.type for key, value in given.items()} == dict.fromkeys(given, sim)
    for key, value in answers(method, pixels.to(sim), names).items():
        torch.testing.assert_close(value.cpu(), given[key].cpu(), msg=f"{key} of pictures on the device")
    method.save(tmp_path / "kept")
    for place in (on_device, on_cpu):
        loaded = type(method).load(tmp_path / "kept", place.backbone, place.device)
        assert loaded.device.type == place.backbone.device.type
        for key, value in answers(loaded, pixels, names).items():
            assert value.device.type == place.device
            torch.testing.assert_close(value.cpu(), given[key].cpu(), atol=1e-4, rtol=1e-4, msg=f"{key}, {place.device}")


@pytest.mark.parametrize("name", [name for name in METHOD_NAMES if METHODS.get(name).trained])
def test_bf16_on_the_device(name: str, tiny_folder: Path, tiny: None, sim: str) -> None:
    given = answers(*trained(name, "paper", bench(tiny_folder, sim, "bf16")))
    assert all(value.dtype == torch.float32 and value.isfinite().all() for value in given.values())


def test_training_on_the_device_gives_the_numbers_of_the_cpu(tiny_folder: Path, tiny: None, sim: str) -> None:
    of_device, of_cpu = (answers(*trained("coop", "paper", bench(tiny_folder, device))) for device in (sim, "cpu"))
    for key, value in of_device.items():
        torch.testing.assert_close(value.cpu(), of_cpu[key], atol=1e-4, rtol=1e-4)


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
        scores[device] = {
            (record.cell.method, record.cell.protocol, record.cell.split, name): one.metrics
            for record in records
            for name, one in record.scores.items()
        }
    assert scores[sim].keys() == scores["cpu"].keys()
    assert {key[0] for key in scores[sim]} == set(names)
    for key, metrics in scores[sim].items():
        assert metrics == pytest.approx(scores["cpu"][key], abs=0.02), key


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
