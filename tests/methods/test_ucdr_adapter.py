"""UCDR-Adapter: its equations against naive loops, the fast path against the plain one, and fit from data to file."""

from __future__ import annotations

import dataclasses
import math
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from methods import ucdr_adapter
from methods.interface import FitReport, Method, TrainingData
from methods.official.ucdr_adapter import SETTINGS as OFFICIAL
from methods.official.ucdr_adapter import hardest_triplet_loss
from methods.parts.backbone import Backbone, BackboneError
from methods.parts.feature_cache import process_cache
from methods.parts.queues import ClassQueues
from methods.plain import ucdr_adapter as plain
from methods.ucdr_adapter import Own, UCDRAdapter, UCDRAdapterConfig, UCDRAdapterModel, ema_update, triplet_loss
from tests.support.images import InMemoryImages

CLASSES, DOMAINS = ("cat", "aircraft_carrier", "sea_turtle"), ("clipart", "photo")
#: Small and quick, else the paper's.
SMALL: dict[str, Any] = {"context_tokens": 4, "batch_size": 6, "stage1_batch_size": 12, "steps": 4, "stage1_share": 0.5}


def task(*, domains: int = 2, images: int = 4, validate: Any = None, names: Sequence[str] = CLASSES) -> TrainingData:
    """``images`` of each class in each domain: a class is a pattern of its own, a domain a contrast."""
    generator = torch.Generator().manual_seed(5)
    patterns = torch.rand(len(CLASSES), 3, 32, 32, generator=generator)
    labels = torch.arange(len(CLASSES)).repeat_interleave(domains * images)
    of_domain = torch.arange(domains).repeat_interleave(images).repeat(len(CLASSES))
    noise = 0.1 * torch.rand(len(labels), 3, 32, 32, generator=generator)
    values = (patterns[labels] * (0.5 + 0.4 * of_domain[:, None, None, None]) + noise).clamp(0, 1)
    return TrainingData(
        protocol="test",
        images=InMemoryImages(values),
        labels=labels,
        domains=of_domain,
        class_names=names,
        domain_names=DOMAINS,
        validate=validate,
    )


def config(**changes: Any) -> UCDRAdapterConfig:
    return UCDRAdapterConfig(**{**SMALL, **changes})


def built(backbone: Backbone, **changes: Any) -> UCDRAdapter:
    """Untrained, but with prompts, biases and a momentum copy that differ clearly from each other."""
    method = UCDRAdapter(backbone, config(**changes))
    method.build(CLASSES, DOMAINS, seed=0)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for branch in (method.model.branch, method.model.momentum):
            for value in branch.parameters():
                value.add_(torch.randn(value.shape, generator=generator), alpha=0.2)
    return method


def fitted(backbone: Backbone, data: TrainingData | None = None, seed: int = 0, **changes: Any) -> UCDRAdapter:
    method = UCDRAdapter(backbone, config(**changes))
    method.fit(data or task(), seed=seed, log=lambda **_: None)
    return method


def batch(backbone: Backbone) -> tuple[Tensor, Own]:
    data = task()
    index = torch.tensor([0, 9, 17, 4, 23, 1])
    return backbone.normalize(data.images.pixels(index)), (data.domains[index], data.labels[index])


# --- the equations ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("length", [1, 3])
def test_target_prompts_by_a_loop(tiny_backbone: Backbone, length: int, fast: bool) -> None:
    method = built(tiny_backbone, prompt_length=length, fast=fast)
    branch, (pixels, own) = method.model.branch, batch(tiny_backbone)
    h = method.model.image_context(pixels)
    for masked in (True, False):
        got = branch.target_prompts(h, own if masked else None)
        assert got.shape == (len(h), 2, tiny_backbone.vision_width)  # one token of each kind whatever L is
        for i in range(len(h)):
            for kind, bank in enumerate((branch.domain_prompts, branch.class_prompts)):
                prompts = bank.detach().clone()
                if masked:
                    item = int(own[kind][i])
                    prompts[item * length : (item + 1) * length] = 0
                keys = [branch.W_prompt.weight @ prompt + branch.W_prompt.bias for prompt in prompts]
                query = branch.W_image.weight @ h[i] + branch.W_image.bias
                weights = [math.exp(float((key @ query).detach()) / 0.75) for key in keys]
                q = sum(weight / sum(weights) * key for weight, key in zip(weights, keys, strict=True))
                expected = (q + branch.layer_norm2(branch.prompt_proj(q))) / 33
                torch.testing.assert_close(got[i, kind], expected, rtol=1e-4, atol=1e-6)


def test_image_features_are_those_of_the_sequence(tiny_backbone: Backbone) -> None:
    method, length = built(tiny_backbone, prompt_length=2), 2
    branch, (pixels, own) = method.model.branch, batch(tiny_backbone)
    patches, positions = tiny_backbone.patch_tokens(pixels), tiny_backbone.vision_positions
    features = method.model.image_features(branch, pixels, branch.own_prompts(own))
    for i in range(len(pixels)):
        domain, label = int(own[0][i]) * length, int(own[1][i]) * length
        sequence = [
            (branch.class_token + positions[0])[None],
            branch.domain_prompts[domain : domain + length],
            branch.class_prompts[label : label + length],
            patches[i] + positions[1:],
        ]
        hidden = tiny_backbone.run_vision(torch.cat(sequence)[None])
        expected = tiny_backbone.readout(hidden[:, 0], projection=branch.projection)[0]
        torch.testing.assert_close(features[i], expected, rtol=1e-4, atol=1e-5)


def test_image_context_is_frozen_clips_class_token(tiny_backbone: Backbone) -> None:
    method, (pixels, _) = built(tiny_backbone), batch(tiny_backbone)
    h = method.model.image_context(pixels)
    projected = F.linear(h, tiny_backbone.vision_projection)
    torch.testing.assert_close(projected, tiny_backbone.encode_images(pixels), rtol=1e-5, atol=1e-5)


def test_a_lone_domain_is_not_masked(tiny_backbone: Backbone) -> None:
    method = UCDRAdapter(tiny_backbone, config())
    method.build(CLASSES, DOMAINS[:1], seed=0)
    pixels, (_, labels) = batch(tiny_backbone)
    h, own = method.model.image_context(pixels), (torch.zeros_like(labels), labels)
    masked, unmasked = (method.model.branch.target_prompts(h, who) for who in (own, None))
    assert torch.equal(masked[:, 0], unmasked[:, 0])
    assert not torch.allclose(masked[:, 1], unmasked[:, 1])


def test_without_a_mask_labels_do_not_matter(tiny_backbone: Backbone) -> None:
    method, (pixels, (domains, labels)) = built(tiny_backbone, mask=False), batch(tiny_backbone)
    with torch.no_grad():
        first, second = (
            method.model.phase2(pixels, own).images for own in ((domains, labels), (1 - domains, 2 - labels))
        )
        assert torch.equal(first, second)
        hidden = built(tiny_backbone).model.phase2(pixels, (domains, labels)).images
    assert not torch.allclose(first, hidden, atol=1e-3)


def test_the_momentum_copy_is_an_average(tiny_backbone: Backbone) -> None:
    start = UCDRAdapter(tiny_backbone, config())
    start.build(CLASSES, DOMAINS, seed=0)
    for slow, online in zip(start.model.momentum.parameters(), start.model.branch.parameters(), strict=True):
        assert torch.equal(slow, online)
    method = built(tiny_backbone)
    before = [value.detach().clone() for value in method.model.momentum.parameters()]
    ema_update(method.model.momentum, method.model.branch, 0.9)
    for old, new, online in zip(
        before, method.model.momentum.parameters(), method.model.branch.parameters(), strict=True
    ):
        torch.testing.assert_close(new, 0.9 * old + 0.1 * online)
    ema_update(method.model.momentum, method.model.branch, 0.0)
    for new, online in zip(method.model.momentum.parameters(), method.model.branch.parameters(), strict=True):
        assert torch.equal(new, online)
    own = UCDRAdapter(tiny_backbone, config(momentum_start="own"))
    own.build(CLASSES, DOMAINS, seed=0)
    assert not torch.equal(own.model.momentum.class_prompts, own.model.branch.class_prompts)
    assert torch.equal(own.model.momentum.projection, own.model.branch.projection)


def test_phase_1_is_the_image_text_loss_plus_the_triplet_loss(tiny_backbone: Backbone) -> None:
    method, (pixels, own) = built(tiny_backbone, triplet_weight=0.5), batch(tiny_backbone)
    uniforms = torch.rand(len(pixels), 2, 2, generator=torch.Generator().manual_seed(0))
    terms = method.model.phase1(pixels, own, uniforms)
    expected = torch.stack(
        [-(image @ terms.texts.T / 0.07).log_softmax(0)[y] for image, y in zip(terms.images, own[1], strict=True)]
    ).mean()
    torch.testing.assert_close(terms.image_text, expected)
    assert terms.triplet is not None
    assert float(terms.triplet.detach()) > 0
    torch.testing.assert_close(terms.loss, terms.image_text + 0.5 * terms.triplet)
    assert (
        method.model.queues.lengths.tolist() == torch.bincount(own[1], minlength=3).tolist()
    )  # queued before the loss
    assert terms.momentum_images is not None
    assert not terms.momentum_images.requires_grad


# --- queues and triplets ----------------------------------------------------------------------------------------------


def pushed(*, classes: int, size: int, sizes: Sequence[int]) -> tuple[ClassQueues, list[deque[Tensor]]]:
    """The same batches of random features in our queues and in Python's."""
    generator = torch.Generator().manual_seed(2)
    queues = ClassQueues(classes, size, 8)
    lists: list[deque[Tensor]] = [deque(maxlen=size) for _ in range(classes)]
    for number in sizes:
        labels = torch.randint(1, classes, (number,), generator=generator)  # class 0 stays empty
        features = F.normalize(torch.randn(number, 8, generator=generator), dim=-1)
        queues.push(features, labels)
        for feature, label in zip(features, labels.tolist(), strict=True):
            lists[label].append(feature)
    return queues, lists


@pytest.mark.parametrize("sizes", [(3,), (7, 7, 7), (60,), (5, 60, 1, 9)])
def test_queues_are_first_in_first_out(sizes: tuple[int, ...]) -> None:
    queues, expected = pushed(classes=4, size=5, sizes=sizes)
    assert queues.lengths.tolist() == [len(entries) for entries in expected]
    for ours, theirs in zip(queues.lists(), expected, strict=True):
        assert torch.equal(ours, torch.stack(list(theirs)) if theirs else torch.zeros(0, 8))


@pytest.mark.parametrize("sizes", [(9,), (7, 60, 4)])
def test_triplet_loss_by_a_loop(sizes: tuple[int, ...]) -> None:
    queues, lists = pushed(classes=4, size=5, sizes=sizes)
    generator = torch.Generator().manual_seed(3)
    anchors = F.normalize(torch.randn(30, 8, generator=generator), dim=-1)
    labels = torch.randint(0, 4, (30,), generator=generator)  # class 0 has no positives: skipped
    uniforms = torch.rand(30, 2, 2, generator=generator)
    uniforms[0], uniforms[1] = 0, 1 - 2**-24  # the first and the last place
    losses, hardest = [], []
    for anchor, label, picks in zip(anchors, labels.tolist(), uniforms.tolist(), strict=True):
        positives = list(lists[label])
        negatives = [entry for number, entries in enumerate(lists) if number != label for entry in entries]
        if not positives:
            continue
        pairs = [(positives[int(p * len(positives))], negatives[int(n * len(negatives))]) for p, n in picks]
        losses += [max(0.0, float((anchor - p).norm() - (anchor - n).norm()) + 0.2) for p, n in pairs]
        far, near = max((anchor - p).norm() for p in positives), min((anchor - n).norm() for n in negatives)
        hardest.append(max(0.0, float(far - near) + 0.2))
    assert 0 < len(hardest) < 30
    for loss in (triplet_loss, plain.triplet_loss):
        got = loss(anchors, queues, labels, uniforms, 0.2)
        assert float(got) == pytest.approx(sum(losses) / len(losses), rel=1e-5), loss.__name__
    got = hardest_triplet_loss(anchors, queues, labels, 0.2)
    assert float(got) == pytest.approx(sum(hardest) / len(hardest), rel=1e-5)


def test_without_negatives_the_triplet_loss_is_zero() -> None:
    queues, anchors = ClassQueues(3, 5, 8), F.normalize(torch.randn(4, 8), dim=-1).requires_grad_(True)
    labels = torch.ones(4, dtype=torch.long)
    queues.push(anchors, labels)
    uniforms = torch.rand(4, 2, 2)
    for loss in (triplet_loss, plain.triplet_loss):
        value = loss(anchors, queues, labels, uniforms, 0.2)
        assert float(value.detach()) == 0
        value.backward()
    assert float(hardest_triplet_loss(anchors, queues, labels, 0.2).detach()) == 0
    assert not anchors.grad.any()  # type: ignore[union-attr]


def test_draws_are_uniform_over_own_queue_and_all_others() -> None:
    queues, lists = pushed(classes=4, size=5, sizes=(40,))
    labels = torch.full((6000,), 2)
    positives, negatives, valid = queues.draw(
        labels, torch.rand(6000, 1, 2, generator=torch.Generator().manual_seed(0))
    )
    assert bool(valid.all())
    others = [entry for number in (1, 3) for entry in lists[number]]
    for drawn, expected in ((positives[:, 0], list(lists[2])), (negatives[:, 0], others)):
        same = (drawn[:, None] == torch.stack(expected)).all(dim=-1)
        assert bool(same.sum(dim=1).eq(1).all())
        share = same.double().mean(dim=0)
        assert float((share - 1 / len(expected)).abs().max()) < 0.02


# --- exact speed ------------------------------------------------------------------------------------------------------


def loss_and_gradients(method: UCDRAdapter, phase: int) -> tuple[Tensor, dict[str, Tensor]]:
    pixels, own = batch(method.backbone)
    trained = method.trainable(phase)
    if phase == 1:
        uniforms = torch.rand(len(pixels), 2, 2, generator=torch.Generator().manual_seed(4))
        loss = method.model.phase1(pixels, own, uniforms).loss
    else:
        loss = method.model.phase2(pixels, own).loss
    loss.backward()
    gradients = {name: value.grad for name, value in trained.items()}
    assert all(gradient is not None and bool(gradient.any()) for gradient in gradients.values())
    return loss.detach(), gradients  # type: ignore[return-value]


@pytest.mark.parametrize("length", [1, 4])
@pytest.mark.parametrize("phase", [1, 2])
def test_the_fast_path_has_the_plain_paths_numbers(tiny_backbone: Backbone, phase: int, length: int) -> None:
    loss, gradients = loss_and_gradients(built(tiny_backbone, prompt_length=length), phase)
    plain, expected = loss_and_gradients(built(tiny_backbone, prompt_length=length, fast=False), phase)
    torch.testing.assert_close(loss, plain, rtol=1e-5, atol=1e-5)
    assert set(gradients) == set(expected)
    for name, gradient in gradients.items():
        scale = float(expected[name].abs().max())
        torch.testing.assert_close(gradient, expected[name], rtol=0, atol=1e-5 * max(1.0, scale), msg=name)


def test_what_is_constant_is_computed_once(tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = {"text": 0, "context": 0}
    encode_prompts, image_context = ucdr_adapter.encode_prompts, UCDRAdapterModel.image_context

    def texts(*args: Any, **options: Any) -> Tensor:
        calls["text"] += 1
        return encode_prompts(*args, **options)

    def context(self: UCDRAdapterModel, pixels: Tensor) -> Tensor:
        calls["context"] += 1
        return image_context(self, pixels)

    monkeypatch.setattr(ucdr_adapter, "encode_prompts", texts)
    monkeypatch.setattr(UCDRAdapterModel, "image_context", context)
    fitted(tiny_backbone, steps=6, stage1_share=1 / 3)
    assert calls == {"text": 2 + 1, "context": 4}  # each step of phase 1, and once for phase 2
    process_cache().clear()
    still: dict[str, Any] = {"steps": 6, "stage1_share": 1 / 3, "crop": 1.0, "flip": False, "jitter": 0.0}
    calls["context"] = 0
    cached = fitted(tiny_backbone, **still)
    assert calls["context"] == 1  # images that do not change: all of them at once
    plain = fitted(tiny_backbone, **still, fast=False)
    for name, value in cached.tensors().items():
        torch.testing.assert_close(value, plain.tensors()[name], rtol=0, atol=1e-5, msg=name)


# --- fit, encode, store -----------------------------------------------------------------------------------------------


def test_the_loss_falls(tiny_backbone: Backbone) -> None:
    data = task()
    whole = {"batch_size": 24, "stage1_batch_size": 24, "crop": 1.0, "flip": False, "jitter": 0.0}
    method = UCDRAdapter(tiny_backbone, config(learning_rate=2e-2, steps=80, **whole))
    report = method.fit(data, seed=0, log=lambda **_: None)
    assert (report.steps, report.selected_step) == (80, 80)
    for stage in ("source adapter", "target prompts"):
        losses = [float(point["loss"]) for point in report.losses if point["stage"] == stage]
        assert len(losses) == 40
        assert losses[-1] < 0.7 * losses[0], stage
    assert report.trainable_parameters == sum(value.numel() for value in method.tensors().values())
    logits = method.classify(data.images.pixels(torch.arange(len(data.images))), CLASSES)
    assert float((logits.argmax(dim=1) == data.labels).double().mean()) > 0.6  # chance: a third


def test_phases_train_what_they_should(tiny_backbone: Backbone) -> None:
    method = UCDRAdapter(tiny_backbone, config())
    method.build(CLASSES, DOMAINS, seed=0)
    first = {"text_context", "domain_prompts", "class_prompts"}
    assert set(method.trainable(1)) == first
    assert set(method.trainable(2)) == set(method.tensors()) - first
    assert method.model.context is not None
    stopped = (method.model.context, method.model.branch.class_prompts, method.model.branch.domain_prompts)
    assert not any(value.requires_grad for value in stopped)
    hash_before = tiny_backbone.weights_hash
    fitted(tiny_backbone)
    assert tiny_backbone.weights_hash == hash_before  # the shared backbone never changes


def test_the_same_seed_gives_the_same_bits(tiny_backbone: Backbone) -> None:
    first, second, other = (fitted(tiny_backbone, seed=seed).tensors() for seed in (3, 3, 4))
    assert set(first) == set(second)
    for name, value in first.items():
        assert torch.equal(value, second[name]), name
    assert any(not torch.equal(value, other[name]) for name, value in first.items())


def test_an_embedding_does_not_depend_on_its_batch(tiny_backbone: Backbone) -> None:
    method, pixels = fitted(tiny_backbone), task().images.pixels(torch.arange(7))
    together = method.encode_images(pixels)
    alone = torch.cat([method.encode_images(image[None]) for image in pixels])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)
    torch.testing.assert_close(method.encode_images(pixels.flip(0)).flip(0), together, rtol=0, atol=1e-6)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(7))
    torch.testing.assert_close(F.normalize(method.encode_raw(pixels), dim=-1), together)


CASES = {**UCDRAdapter.ablations, **UCDRAdapter.variants, "hardest": {"triplet": "hardest"}}


@pytest.mark.parametrize("name", CASES)
def test_every_variant_and_ablation_runs_and_stores(tiny_backbone: Backbone, tmp_path: Path, name: str) -> None:
    changes = {**SMALL, **CASES[name]}
    if "context_tokens" in CASES[name]:
        changes["context_tokens"] = CASES[name]["context_tokens"]
    method = UCDRAdapter(tiny_backbone, UCDRAdapterConfig(**changes))
    report = method.fit(task(), seed=0, log=lambda **_: None)
    assert report.steps == 4
    assert all(math.isfinite(float(point["loss"])) for point in report.losses)
    pixels, names = task().images.pixels(torch.arange(5)), [*CLASSES, "an_unseen_class"]
    method.save(tmp_path / "model")
    again = UCDRAdapter.load(tmp_path / "model", tiny_backbone)
    assert again.config == method.config
    for encode in ("encode_images", "encode_raw"):
        assert torch.equal(getattr(again, encode)(pixels), getattr(method, encode)(pixels)), encode
    assert torch.equal(again.encode_classes(names), method.encode_classes(names))
    assert method.classify(pixels, names).shape == (5, 4)


def test_ablations_take_away_what_they_name(tiny_backbone: Backbone) -> None:
    assert fitted(tiny_backbone, context_tokens=0).model.context is None
    assert fitted(tiny_backbone, domain_prompts=False).tensors()["domain_prompts"].numel() == 0
    assert fitted(tiny_backbone, class_prompts=False).model.branch.mean_prompts().shape == (
        1,
        tiny_backbone.vision_width,
    )
    assert int(fitted(tiny_backbone, triplet_weight=0.0).model.queues.pushed.sum()) == 0
    assert int(fitted(tiny_backbone).model.queues.pushed.sum()) == 2 * 12  # phase 1 only
    assert int(fitted(tiny_backbone, momentum_in_phase2=True).model.queues.pushed.sum()) == 2 * 12 + 2 * 6
    method = fitted(tiny_backbone, generate=False, prompt_length=2)
    assert set(method.stage_steps(task())) == {1}
    pixels, branch = task().images.pixels(torch.arange(3)), method.model.branch
    prompts = [branch.domain_prompts.view(2, 2, -1).mean(0), branch.class_prompts.view(3, 2, -1).mean(0)]
    expected = method.model.image_features(branch, tiny_backbone.normalize(pixels), torch.cat(prompts))
    torch.testing.assert_close(method.encode_raw(pixels), expected)


def test_budgets_and_rates(tiny_backbone: Backbone) -> None:
    data = task()  # 24 images, 12 of each domain

    def steps(**changes: Any) -> dict[int, int]:
        return UCDRAdapter(tiny_backbone, config(**{"steps": 0, **changes})).stage_steps(data)

    assert steps() == {1: 2, 2: 40}
    assert steps(stage1_epochs=3, epochs=2, batch_size=5) == {1: 6, 2: 10}
    assert steps(sampler="released", batch_size=10, epochs=1) == {1: 2, 2: 2}  # 2 rounds of 5 + 5
    assert steps(generate=False, stage1_epochs=3) == {1: 6}
    assert steps(steps=10, stage1_share=0.2) == {1: 2, 2: 8}
    assert steps(steps=10, generate=False) == {1: 10}
    assert steps(steps=1) == {2: 1}
    first, second = UCDRAdapter(tiny_backbone).stages()
    assert [first.rate(step, steps=20) for step in (0, 19)] == [1e-4, 1e-4]
    rates = [second.rate(step, steps=20) for step in range(20)]
    assert rates == pytest.approx([1e-4 * 1e-3 ** ((step // 2) / 20) for step in range(20)])
    released = UCDRAdapter(tiny_backbone, config(**{**OFFICIAL, "learning_rate": 1e-3})).stages()
    assert [stage.rate(0, steps=1) for stage in released] == [1e-4, 1e-3]


def test_selection_sees_the_last_phase_only(tiny_backbone: Backbone) -> None:
    seen: list[float] = []

    def validate(method: Method) -> float:
        assert method.encode_images(torch.rand(2, 3, 32, 32)).shape == (2, 24)
        seen.append(0.0 if seen else 1.0)
        return seen[-1]

    method = UCDRAdapter(tiny_backbone, config(steps=20, stage1_share=0.5, epochs=5, learning_rate=1e-2))
    report: FitReport = method.fit(task(validate=validate), seed=0, log=lambda **_: None)
    assert seen == [1.0, 0.0, 0.0]  # once an epoch of 2 steps, patience 2
    assert (report.steps, report.selected_step) == (16, 12)
    stopped = fitted(tiny_backbone, steps=20, stage1_share=0.5, epochs=5, learning_rate=1e-2)
    assert not torch.equal(
        stopped.model.branch.projection, method.model.branch.projection
    )  # the selected weights are back


def test_classes_without_images_get_no_prompt(tiny_backbone: Backbone) -> None:
    names = ("ape", *CLASSES, "cow")
    data = task(names=names)
    data.labels += 1
    method = fitted(tiny_backbone, data)
    assert (method.class_names, method.domain_names) == (CLASSES, DOMAINS)
    assert method.encode_classes(names).shape == (5, tiny_backbone.embed_dim)
    one = fitted(tiny_backbone, task(domains=1))
    assert one.domain_names == DOMAINS[:1]


def test_what_cannot_be_used_is_named(tiny_backbone: Backbone) -> None:
    with pytest.raises(ValueError, match="domain_prompts and class_prompts are both off"):
        config(domain_prompts=False, class_prompts=False)
    with pytest.raises(RuntimeError, match="call fit or load first"):
        UCDRAdapter(tiny_backbone).encode_images(torch.rand(1, 3, 32, 32))
    with pytest.raises(BackboneError, match="use fewer context tokens"):
        fitted(tiny_backbone, context_tokens=60)
    method = fitted(tiny_backbone)
    with pytest.raises(ValueError, match="do not fit this config"):
        UCDRAdapter(tiny_backbone, config(prompt_length=2)).load_tensors(method.tensors(), method.facts())


def test_every_switch_has_its_row() -> None:
    fields = {field.name for field in dataclasses.fields(UCDRAdapterConfig)}
    switches = {row.switch for row in UCDRAdapter.card.deviations if row.switch}
    assert switches <= fields
    paper, official = UCDRAdapterConfig(), UCDRAdapterConfig.official()
    different = {name for name in fields if getattr(paper, name) != getattr(official, name)}
    assert different <= switches
    assert all(row.switch or row.ours for row in UCDRAdapter.card.deviations)
