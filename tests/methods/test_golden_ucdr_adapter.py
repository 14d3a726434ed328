"""UCDR-Adapter's ``official`` variant against outputs of the released code (tests/golden/README.md, section 6)."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from methods.parts.prompts import PromptTemplate
from methods.ucdr_adapter import DRAWS, Own, Terms, UCDRAdapter, UCDRAdapterConfig
from tests.support.golden import (
    FEATURES,
    Compared,
    GoldenSet,
    assert_all_compared,
    assert_golden,
    assert_gradients,
    assert_step,
    golden_set,
)

pytestmark = pytest.mark.golden

#: The released code's names of what it trains, where they differ from :meth:`UCDRAdapter.tensors`.
RELEASED_NAMES = {
    "specific_domain_prompts": "domain_prompts",
    "specific_class_prompts": "class_prompts",
    "ctx": "text_context",
    "feature_template": "vision_model.embeddings.class_embedding",
    "feature_proj": "visual_projection.weight",
}
#: Released pixels come normalised; all other switches as released.
OFFICIAL = dataclasses.replace(UCDRAdapterConfig.official(), train_statistics="none", test_statistics="none")


@pytest.fixture(scope="module")
def arrays() -> Compared:
    return Compared("ucdr_adapter.npz")


def canonical(name: str, owner: str = "ucdra") -> str:
    """The name of a parameter of :meth:`UCDRAdapter.tensors` in the fixtures: CLIP's own names stay as they are."""
    return name if name.startswith("vis") else f"{owner}.{name}"


def kind(name: str) -> str:
    if "layer_norm" in name and name.endswith("weight"):
        return "ln"
    return "bias" if name.endswith("bias") else "weight" if name.endswith("weight") else "vec"


def fill(module: nn.Module, owner: str, golden: GoldenSet) -> None:
    with torch.no_grad():
        for name, value in module.named_parameters():
            if name not in ("class_token", "projection"):  # those stay CLIP's
                value.copy_(golden.fill(f"{owner}.{name}", tuple(value.shape), kind(name)))


def filled(arrays: Mapping[str, np.ndarray], config: UCDRAdapterConfig = OFFICIAL) -> UCDRAdapter:
    """The method with everything filled by rule, before any training forward."""
    golden = golden_set()
    backbone = golden.clip(vision_layers=2, text_layers=2)
    tokens = golden.shape("ucdr_adapter.npz", "s1_", "ucdra.text_context")[0]
    method = UCDRAdapter(backbone, dataclasses.replace(config, context_tokens=tokens))
    start = torch.from_numpy(arrays["text_context_start"])
    slots = start[:, None] + torch.arange(tokens)
    prompts = PromptTemplate.from_ids(backbone, torch.from_numpy(arrays["text_token_ids"]), slots)
    method.build(golden.config["classes"], golden.config["domains"], seed=0, prompts=prompts)
    assert method.model.context is not None
    with torch.no_grad():
        method.model.context.copy_(golden.fill("ucdra.text_context", tuple(method.model.context.shape), "vec"))
    for branch, owner in ((method.model.branch, "ucdra"), (method.model.momentum, "ucdra.momentum")):
        fill(branch, owner, golden)
    return method


def batch(arrays: Mapping[str, np.ndarray], second: bool = False) -> tuple[Tensor, Own]:
    """Images, and their domains and classes."""
    golden, end = golden_set(), "_second" if second else ""
    domains, labels = (torch.from_numpy(arrays[f"{what}_ids{end}"]) for what in ("domain", "class"))
    name = "images.ucdra.second" if second else "images.ucdra"
    return golden.images(name, len(labels)), (domains, labels)


def first_of_each(own: Own) -> Tensor:
    """The uniforms that draw index 0 of every list, as the fixtures do."""
    return torch.zeros(len(own[1]), DRAWS, 2)


def last_of_each(own: Own) -> Tensor:
    return torch.full((len(own[1]), DRAWS, 2), float(np.nextafter(np.float32(1), np.float32(0))))


def training_forward(method: UCDRAdapter, phase: int, arrays: Mapping[str, np.ndarray]) -> Terms:
    pixels, own = batch(arrays)
    return method.model.phase1(pixels, own, first_of_each(own)) if phase == 1 else method.model.phase2(pixels, own)


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "plain"])
@pytest.mark.parametrize("phase", [1, 2])
def test_training_forward(arrays: Compared, phase: int, fast: bool) -> None:
    method = filled(arrays, dataclasses.replace(OFFICIAL, fast=fast))
    method.trainable(phase)
    terms, (_, own) = training_forward(method, phase, arrays), batch(arrays)
    assert_golden(terms.images, arrays[f"s{phase}_image_features"], what="image features")
    assert_golden(terms.texts, arrays[f"s{phase}_text_features"], what="text features")
    assert_golden(terms.momentum_images, arrays[f"s{phase}_momentum_image_features"], what="momentum features")
    assert method.model.queues.lengths.tolist() == arrays[f"s{phase}_queue_lengths"].tolist()
    triplet = method.model.triplet(terms.images, own[1], first_of_each(own))
    assert_golden(triplet, arrays["s1_loss_triplet" if phase == 1 else "s2_loss_triplet_not_used"], what="triplet")
    assert_golden(terms.image_text, arrays[f"s{phase}_loss_ce"], what="cross-entropy")
    assert_golden(terms.loss, arrays[f"s{phase}_loss"], what="loss")


@pytest.mark.parametrize("phase", [1, 2])
def test_training_step(arrays: Compared, phase: int) -> None:
    method, prefix = filled(arrays), f"s{phase}_"
    optimizer, trained = method.optimizer(phase), method.trainable(phase)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([float(arrays[f"{prefix}lr"])])
    released = [str(name).partition(".")[2] for name in arrays[f"{prefix}official_trainable"]]
    assert {RELEASED_NAMES.get(name, name) for name in released} == set(trained)
    training_forward(method, phase, arrays).loss.backward()
    before = {canonical(name): value.detach().clone() for name, value in trained.items()}
    assert_gradients(arrays, prefix, {canonical(name): value.grad for name, value in trained.items()})
    optimizer.step()
    after = {canonical(name): value.detach() for name, value in trained.items()}
    assert_step(arrays, prefix, before, after)
    for name, norm in zip(arrays[f"{prefix}param_names"], arrays[f"{prefix}param_norm_after"], strict=True):
        assert float(after[str(name)].norm()) == pytest.approx(float(norm), rel=FEATURES), name
    with torch.no_grad():
        loss = training_forward(method, phase, arrays).loss
    assert_golden(loss, arrays[f"{prefix}loss_after_one_step"], what="loss after one step")


def test_generated_prompts(arrays: Compared) -> None:
    method, (pixels, own) = filled(arrays), batch(arrays)
    with torch.no_grad():
        h = method.model.image_context(pixels)
        prompts = method.model.branch.target_prompts(h, None)
        masked = method.model.image_features(method.model.branch, pixels, method.model.branch.target_prompts(h, own))
    assert_golden(h[:, None], arrays["s2_attention_image_token"], what="image context token")
    assert_golden(prompts[:, :1], arrays["s2_domain_prompt"], what="domain prompt")
    assert_golden(prompts[:, 1:], arrays["s2_class_prompt"], what="class prompt")
    assert_golden(masked, arrays["s2_variant_effective_mask_image_features_raw"], what="features with a mask")
    assert_golden(method.encode_raw(pixels), arrays["s4_image_features_raw"], what="inference")


def test_momentum_after_one_forward(arrays: Compared) -> None:
    method, golden = filled(arrays), golden_set()
    for branch, owner in ((method.model.branch, "ucdra"), (method.model.momentum, "ucdra.momentum")):
        branch.layer_norm1 = nn.LayerNorm(golden.clip(vision_layers=2, text_layers=2).vision_width)
        fill(branch, owner, golden)  # the released code has this layer and never uses it: it moves all the same
    before = {name: value.detach().clone() for name, value in method.model.momentum.named_parameters()}
    with torch.no_grad():
        training_forward(method, 1, arrays)
    after = {name: value.detach() for name, value in method.model.momentum.named_parameters()}
    names = [str(name).removeprefix("momentum.ucdra.") for name in arrays["momentum_names"]]
    assert set(names) == set(before) - {"class_token", "projection"}
    for row, name in enumerate(names):
        delta = after[name] - before[name]
        assert float(before[name].norm()) == pytest.approx(arrays["momentum_norm_before"][row], rel=FEATURES)
        assert float(after[name].norm()) == pytest.approx(arrays["momentum_norm_after_one_forward"][row], rel=FEATURES)
        assert float(delta.norm()) == pytest.approx(arrays["momentum_delta_norm"][row], rel=1e-3), name
        assert_golden(after[name].flatten()[:8], arrays["momentum_first8_after_one_forward"][row], what=name)
    for name in ("class_token", "projection"):  # CLIP's own: equal in both, so they stay
        assert torch.equal(after[name], before[name])


@torch.no_grad()
def test_two_batches(arrays: Compared) -> None:
    method, (pixels, own) = filled(arrays), batch(arrays, second=True)
    official = method.config
    training_forward(method, 1, arrays)
    terms = method.model.phase1(pixels, own, first_of_each(own))
    assert method.model.queues.lengths.tolist() == arrays["two_batch_queue_lengths"].tolist()
    assert_golden(torch.cat(method.model.queues.lists()), arrays["two_batch_queue_features"], what="queues")
    assert_golden(terms.images, arrays["two_batch_image_features"], what="image features")
    names = ("domain_prompts", "class_prompts", "W_image.weight")
    norms = [float(method.model.momentum.get_parameter(name).norm()) for name in names]
    assert norms == pytest.approx(arrays["two_batch_momentum_norm"].tolist(), rel=FEATURES)

    def triplet(name: str, uniforms: Tensor, **switches: Any) -> None:
        method.model.config = dataclasses.replace(official, **switches)
        value = method.model.triplet(terms.images, own[1], uniforms)
        assert_golden(value, arrays[f"two_batch_triplet_{name}"], what=f"triplet, {name} {switches}")

    for fast in (True, False):
        triplet("index_first", first_of_each(own), fast=fast)
        triplet("index_last", last_of_each(own), fast=fast)
    triplet("hardest_unused_variant", first_of_each(own), triplet="hardest")


def test_every_array_is_compared(request: pytest.FixtureRequest, arrays: Compared) -> None:
    """Runs last: nothing in the file was left out."""
    assert_all_compared(arrays, request, {})
