"""Images are read ahead of the step that needs them, in the same order, with the same numbers."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import threading
from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from methods.interface import Images, TrainingData
from methods.parts import feeding
from methods.parts.feature_cache import process_cache
from methods.parts.feeding import feed, unit_range
from methods.registry import METHODS

WAIT = 20  # seconds until something that should happen has not happened


def feeders() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("feeding")]


@pytest.mark.parametrize("ahead", [0, 1, 2, 5])
def test_items_come_in_order_with_what_was_loaded(ahead: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feeding, "AHEAD", ahead)
    got = list(feed(range(7), lambda item: (torch.tensor([item]), torch.tensor([item, -item])), "cpu"))
    assert [item for item, _ in got] == list(range(7))
    assert [[tensor.tolist() for tensor in tensors] for _, tensors in got] == [[[n], [n, -n]] for n in range(7)]
    assert list(feed([], lambda item: (item,), "cpu")) == []
    assert list(feed(iter("ab"), None, "cpu")) == [("a", ()), ("b", ())]
    assert not feeders()


def test_the_next_batches_are_loaded_while_a_step_runs() -> None:
    loaded = [threading.Event() for _ in range(9)]

    def load(item: int) -> Sequence[Tensor]:
        assert threading.current_thread() is not threading.main_thread()
        loaded[item].set()
        return (torch.tensor(item),)

    with contextlib.closing(feed(range(9), load, "cpu")) as fed:
        assert not any(event.is_set() for event in loaded)
        for step in range(4):
            assert next(fed)[0] == step
            assert loaded[step + feeding.AHEAD].wait(WAIT), "not read ahead"
            assert not loaded[step + feeding.AHEAD + 1].wait(0.05), "read further ahead than AHEAD"
    assert not feeders()


def test_no_more_is_taken_than_there_is_to_take() -> None:
    """An endless stream is cut by its user, who then knows what was drawn."""
    stream = itertools.count()
    assert [item for item, _ in feed(itertools.islice(stream, 5), lambda item: (), "cpu")] == list(range(5))
    assert next(stream) == 5


@pytest.mark.parametrize("of", ["items", "load"])
def test_an_error_is_raised_at_its_turn(of: str) -> None:
    def items() -> Iterator[int]:
        for item in range(9):
            if of == "items" and item == 2:
                raise OSError("torn")
            yield item

    def load(item: int) -> Sequence[Tensor]:
        if of == "load" and item == 2:
            raise OSError("torn")
        return ()

    fed = feed(items(), load, "cpu")
    assert [next(fed)[0], next(fed)[0]] == [0, 1]
    with pytest.raises(OSError, match="torn"):
        next(fed)
    assert not feeders()


def test_8_bit_images_become_floats_and_floats_stay() -> None:
    assert unit_range(torch.tensor([0, 51, 255], dtype=torch.uint8)).tolist() == pytest.approx([0, 0.2, 1])
    floats = torch.rand(2, 3)
    assert unit_range(floats) is floats


# --- in training ------------------------------------------------------------------------------------------------------


class Stored(Images):
    """8-bit noise; remembers the threads that read it."""

    def __init__(self, count: int, size: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.values = torch.randint(0, 256, (count, 3, size, size), dtype=torch.uint8, generator=generator)
        self.seed, self.readers, self.broken = seed, set[str](), -1

    def __len__(self) -> int:
        return len(self.values)

    def pixels(self, index: Tensor) -> Tensor:
        return unit_range(self.values[index])

    def stored(self, index: Tensor) -> Tensor:
        if self.broken in index:
            raise OSError(f"image {self.broken} is torn")
        self.readers.add(threading.current_thread().name)
        return self.values[index]

    @property
    def content(self) -> Sequence[str]:
        return [f"noise {self.seed} {number}" for number in range(len(self))]


def data(size: int, **options: Any) -> TrainingData:
    number = torch.arange(24)
    return TrainingData(
        protocol="toy",
        images=Stored(24, size, 0),
        target=Stored(18, size, 1),
        labels=number % 4,
        domains=number // 12,
        class_names=("cat", "dog", "cow", "hen"),
        domain_names=("photo", "sketch"),
        **options,
    )


def fitted(name: str, backbone: Any, given: TrainingData, **changes: Any) -> Any:
    process_cache().clear()
    method_class = METHODS.get(name)
    known = {field.name for field in dataclasses.fields(method_class.Config)}
    small = {"steps": 4, "batch_size": 6, "stage1_batch_size": 6, "validate_every": 0, "learning_rate": 1e-3, **changes}
    method = method_class(backbone, method_class.Config(**{key: small[key] for key in small if key in known}))
    method.fit(given, seed=3, log=lambda **_: None)
    return method


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("full_finetune", {}),
        ("coop", {"augment": True}),
        ("coop", {"augment": False}),
        ("metric_head", {"augment": True}),
        ("vpt_deep", {"fast": False}),
        ("pros", {}),
        ("pros", {"sampler": "released"}),
        ("ucdr_adapter", {"crop": 1.0, "flip": False, "jitter": 0.0}),
        ("ad_clip", {}),
        ("ad_clip", {"crop": 1.0, "flip": False}),
        ("ad_clip", {"crop": 1.0, "flip": False, "fast": False}),
        ("cmkd", {"augment": True}),
        ("dapl", {"augment": True}),
        ("pda", {"augment": True}),
    ],
)
def test_reading_ahead_changes_no_number(
    name: str, changes: dict[str, Any], tiny_backbone: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead = fitted(name, tiny_backbone, read := data(tiny_backbone.image_size, select="last"), **changes)
    assert not feeders()
    assert read.images.readers | read.target.readers == {"feeding_0"}  # type: ignore[attr-defined]
    monkeypatch.setattr(feeding, "AHEAD", 0)
    alone = fitted(name, tiny_backbone, read := data(tiny_backbone.image_size, select="last"), **changes)
    assert read.images.readers | read.target.readers == {threading.main_thread().name}  # type: ignore[attr-defined]
    assert ahead.tensors().keys() == alone.tensors().keys()
    for key, value in ahead.tensors().items():
        assert torch.equal(value, alone.tensors()[key]), key


@pytest.mark.parametrize("name", ["full_finetune", "pros", "ad_clip"])
def test_the_thread_ends_with_a_fit_that_stops_early_or_fails(name: str, tiny_backbone: Any) -> None:
    size, scores = tiny_backbone.image_size, iter([3.0, 2.0, 1.0, 0.0])
    stops = data(size, validate=lambda method: next(scores))
    fitted(name, tiny_backbone, stops, steps=400, validate_every=1, patience=2)
    assert next(scores) == 0.0  # three validations, and then it stopped
    assert not feeders()
    torn = data(size, select="last")
    torn.images.broken = 13  # type: ignore[attr-defined]
    with pytest.raises(OSError, match="image 13 is torn"):
        fitted(name, tiny_backbone, torn, steps=40, anchors=1)
    assert not feeders()


# --- on a GPU ---------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
def test_batches_on_a_gpu_are_whole_when_they_are_used() -> None:
    values = torch.randint(0, 256, (40, 64, 3, 64, 64), dtype=torch.uint8)
    work = torch.rand(2048, 2048, device="cuda")
    sums = []
    for _, (pixels, more) in feed(range(40), lambda item: (values[item], values[item].float()), "cuda"):
        assert pixels.device.type == more.device.type == "cuda"
        work = work @ work / 1024  # keeps the computing stream busy while the next batch is copied
        sums.append((pixels.long().sum(), more.double().sum()))
        del pixels, more
    for item, (whole, same) in enumerate(sums):
        assert whole.item() == same.item() == values[item].long().sum().item()
