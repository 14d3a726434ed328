"""Compiled towers: the numbers of the plain ones, one compilation for all blocks, and a key of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.backbones.features import SiglipBackbone
from benchmarks.runner.plan import plan
from benchmarks.runner.resources import Resources
from benchmarks.runner.settings import resolve
from methods.parts.backbone import Backbone, BackboneError
from methods.parts.feature_cache import FeatureScope
from methods.parts.transformer import run_block


@pytest.mark.parametrize("precision", ["float32", "bf16"])
def test_traced_towers_give_the_same_numbers(precision: str, tiny_folder: Path) -> None:
    plain, ours = (Backbone.load(tiny_folder, precision=precision) for _ in range(2))  # type: ignore[arg-type]
    torch._dynamo.reset()
    assert ours.compile(backend="eager", fullgraph=True) is ours and ours.compiled and not plain.compiled
    pixels = torch.rand(3, 3, ours.image_size, ours.image_size)
    with torch.no_grad():
        assert torch.equal(ours.encode_images(pixels), plain.encode_images(pixels))
        assert torch.equal(ours.encode_texts(["a cat", "a dog"]), plain.encode_texts(["a cat", "a dog"]))
        for one, other in zip(ours.encode_styles(pixels)[1], plain.encode_styles(pixels)[1], strict=True):
            assert torch.equal(one, other)
    tokens = [plain.image_tokens(pixels).detach().requires_grad_() for _ in range(2)]
    for backbone, given in zip((plain, ours), tokens, strict=True):
        backbone.run_vision(given).square().mean().backward()
    assert tokens[0].grad is not None and torch.equal(tokens[0].grad, tokens[1].grad)


def test_all_blocks_share_a_compilation(tiny_folder: Path) -> None:
    ours = Backbone.load(tiny_folder)
    torch._dynamo.reset()
    count = torch._dynamo.testing.CompileCounter()
    ours.compile(backend=count, fullgraph=True)
    assert ours.vision_layers > 1
    with torch.no_grad():
        for _ in range(2):
            ours.encode_images(torch.rand(2, 3, ours.image_size, ours.image_size))
    assert count.frame_count == 1


def test_a_clone_is_not_compiled(tiny_folder: Path) -> None:
    ours = Backbone.load(tiny_folder).compile(backend="eager")
    assert ours.vision.block is not run_block
    copy = ours.clone()
    assert copy.vision.block is run_block and copy.text.block is run_block and not copy.compiled


def test_features_and_scores_of_compiled_towers_have_keys_of_their_own(tiny_folder: Path, tiny_dataset: type) -> None:
    plain, ours = Backbone.load(tiny_folder), Backbone.load(tiny_folder).compile(backend="eager")
    assert FeatureScope.of(plain, "x").key != FeatureScope.of(ours, "x").key
    keys = []
    for changes in ({}, {"compile": True}):
        given = {"methods": "zero_shot", "protocols": "uda", "datasets": "tiny", "preset": "smoke", "device": "cpu"}
        settings = resolve({**given, "backbone": str(tiny_folder), **changes})
        made = plan(settings, Resources(settings))
        keys.append({cell.key for cell in made.cells})
        assert all(("compiled" in cell.inputs["backbone"]) is bool(changes) for cell in made.cells)
    assert keys[0].isdisjoint(keys[1])


def test_towers_that_cannot_be_compiled_say_so() -> None:
    other = object.__new__(SiglipBackbone)
    other.name = "siglip"
    with pytest.raises(BackboneError, match="backbone siglip cannot be compiled"):
        other.compile()


@pytest.mark.slow
def test_the_compiler_of_this_machine(tiny_folder: Path) -> None:
    plain, ours = Backbone.load(tiny_folder), Backbone.load(tiny_folder).compile()
    torch._dynamo.reset()
    pixels = torch.rand(3, 3, ours.image_size, ours.image_size)
    with torch.no_grad():
        torch.testing.assert_close(ours.encode_images(pixels), plain.encode_images(pixels), atol=1e-5, rtol=1e-4)
