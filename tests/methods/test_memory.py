"""Weights read from a file have aligned memory of their own: products round them like those that were trained."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from methods.parts.backbone import Backbone
from methods.parts.memory import ALIGNMENT, align_parameters, aligned


@pytest.mark.parametrize("length", range(1, 40, 3))
def test_a_tensor_of_a_file_becomes_aligned_and_keeps_its_values(tmp_path: Path, length: int) -> None:
    values = {"a": torch.arange(float(length)), "b": torch.arange(3.0 * length).view(length, 3)}
    save_file(values, tmp_path / "file.safetensors")
    for name, found in load_file(tmp_path / "file.safetensors").items():
        assert aligned(found).data_ptr() % ALIGNMENT == 0
        assert torch.equal(aligned(found), values[name])


def test_what_is_aligned_is_not_copied() -> None:
    tensor = torch.zeros(64)
    assert tensor.data_ptr() % ALIGNMENT == 0, "torch aligns its own memory"
    assert aligned(tensor).data_ptr() == tensor.data_ptr()


def test_a_module_is_aligned_in_place() -> None:
    module = torch.nn.Linear(8, 8)
    weight = torch.randn(65)[1:].view(8, 8)
    assert weight.data_ptr() % ALIGNMENT
    module.weight.data = weight
    parameter, before = module.weight, weight.clone()
    align_parameters(module)
    assert module.weight is parameter
    assert parameter.data_ptr() % ALIGNMENT == 0
    assert torch.equal(parameter, before)


def test_a_loaded_backbone_is_aligned(tiny_backbone: Backbone, tiny_folder: Path) -> None:
    loaded = load_file(tiny_folder / "model.safetensors")
    assert any(value.data_ptr() % ALIGNMENT for value in loaded.values()), "the file alone is not"
    assert not any(value.data_ptr() % ALIGNMENT for value in tiny_backbone.model.state_dict().values())
