"""The interface of a method: what the base class checks, stores and loads."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from methods.interface import (
    FitReport,
    Log,
    Method,
    MethodCard,
    NotFittedError,
    TrainingData,
    restore,
    unit_length,
)
from methods.parts.backbone import Backbone


class Shift(Method):
    """Adds a learned vector to nothing at all: the smallest method with a state."""

    card = MethodCard("shift", "Shift", "tests", "-", 2026, "", trains="a vector")
    fact_names = ("class_names", "seed")
    class_names: tuple[str, ...] = ()
    seed = 0
    vector: Tensor | None = None

    def fit(self, data: TrainingData, *, seed: int, log: Log) -> FitReport:
        self.class_names, self.seed, self.vector = ("cat", "dog"), seed, torch.arange(3.0)
        return FitReport()

    def encode_images(self, pixels: Tensor) -> Tensor:
        return self.fitted(self.vector).expand(len(pixels), -1)

    def encode_classes(self, names: Sequence[str]) -> Tensor:
        return self.fitted(self.vector).expand(len(names), -1)

    def learned_tensors(self) -> Mapping[str, Tensor]:
        return {"vector": self.fitted(self.vector)}

    def prepare_state(self, tensors: Mapping[str, Tensor]) -> None:
        if self.vector is None:
            self.vector = torch.zeros(3)


def quiet(**_: object) -> None: ...


def fitted(backbone: Backbone) -> Shift:
    method = Shift(backbone)
    method.fit(None, seed=7, log=quiet)  # type: ignore[arg-type]
    return method


def test_what_is_learned_is_needed_after_fit_or_load_only(tiny_backbone: Backbone) -> None:
    for use in (lambda m: m.encode_classes(["cat"]), lambda m: m.tensors(), lambda m: m.total_parameters()):
        with pytest.raises(NotFittedError, match=r"^shift is not fitted: call fit or load first$"):
            use(Shift(tiny_backbone))


def test_state_is_saved_and_loaded_by_the_base_class(tiny_backbone: Backbone, tmp_path: Path) -> None:
    method = fitted(tiny_backbone)
    assert method.facts() == {"class_names": ["cat", "dog"], "seed": 7}
    assert not method.tensors()["vector"].requires_grad
    method.save(tmp_path / "folder" / "shift")
    record = json.loads((tmp_path / "folder" / "shift.json").read_text())
    assert (record["method"], record["facts"]) == ("shift", method.facts())
    loaded = Shift.load(tmp_path / "folder" / "shift", tiny_backbone)
    assert isinstance(loaded, Shift)
    assert (loaded.class_names, loaded.seed) == (("cat", "dog"), 7)
    assert torch.equal(loaded.encode_classes(["x"]), method.encode_classes(["x"]))


def test_tensors_are_copied_into_those_in_use(tiny_backbone: Backbone) -> None:
    method = fitted(tiny_backbone)
    used = method.vector
    method.load_tensors({"vector": torch.ones(3)}, method.facts())
    assert method.vector is used
    assert torch.equal(method.encode_classes(["x"]), torch.ones(1, 3))


@pytest.mark.parametrize(
    "tensors", [{}, {"vector": torch.zeros(4)}, {"vector": torch.zeros(3), "more": torch.zeros(1)}]
)
def test_tensors_that_do_not_fit_are_refused(tiny_backbone: Backbone, tensors: dict[str, Tensor]) -> None:
    method = fitted(tiny_backbone)
    with pytest.raises(ValueError, match="shift: the checkpoint's tensors do not fit this config and backbone; load"):
        restore(method, method.learned_tensors(), tensors)


def test_only_rows_of_another_length_are_normalised() -> None:
    unit = torch.tensor([[1.005, 0.0], [0.0, 1.0]])
    assert unit_length(unit) is unit
    assert torch.equal(unit_length(torch.tensor([[2.0, 0.0], [0.0, 1.0]])), torch.eye(2))
