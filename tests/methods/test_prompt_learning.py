"""What every prompt-learning method does: dapl, cocoop, maple, ivlp, promptsrc. Equations are in files of their own."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from methods.interface import Method, NotFittedError
from methods.parts.backbone import Backbone, BackboneError
from methods.parts.prompts import PromptTemplate, encode_prompts
from methods.registry import METHODS
from methods.training.sgd import SgdMethod, warm_cosine
from methods.zero_shot import ZeroShot
from tests.docs.test_documents import generator
from tests.support.prompting import DOMAINS, NAMES, SEEN, quiet, task

PROMPTING: dict[str, type[Any]] = {name: METHODS.get(name) for name in ("dapl", "cocoop", "maple", "ivlp", "promptsrc")}
#: Rates at which the random tiny CLIP learns within some steps.
RATES = {"dapl": 0.05, "cocoop": 0.1, "maple": 0.1, "ivlp": 0.3, "promptsrc": 0.3}
FROZEN = ("dapl", "cocoop")

each = pytest.mark.parametrize("name", PROMPTING)


def make(name: str, backbone: Backbone, **changes: Any) -> Any:
    """A method with a small budget."""
    method = PROMPTING[name]
    small = {"steps": 3, "batch_size": 12, "learning_rate": RATES[name]}
    return method(backbone, method.Config(**{**small, **changes}))


def pixels(count: int = 5) -> Tensor:
    return task().images.pixels(torch.arange(count))


def features(method: Method) -> list[Tensor]:
    return [method.encode_images(pixels()), method.encode_classes(NAMES), method.classify(pixels(3), NAMES)]


@each
@pytest.mark.parametrize("target", [False, True])
def test_learns(name: str, target: bool, tiny_backbone: Backbone) -> None:
    """Accuracy on the training images, well above chance (four classes)."""
    if name == "dapl" and target:
        pytest.skip("its classes are those of the target: tests/methods/test_dapl.py")
    data = task(domains=1 if target else 3, each=6, target=target)
    changes = {"image_weight": 0.0, "text_weight": 0.0, "ensemble_mean": 20.0} if name == "promptsrc" else {}
    method = make(name, tiny_backbone, steps=120, batch_size=24, augment=False, weight_decay=0.0, **changes)
    report = method.fit(data, seed=0, log=quiet)
    losses = [float(entry["loss"]) for entry in report.losses]
    logits = method.classify(data.images.pixels(torch.arange(len(data.images))), SEEN)
    assert sum(losses[-5:]) < 0.8 * sum(losses[:5])
    assert float((logits.argmax(1) == data.labels).float().mean()) > 0.5


@each
@pytest.mark.parametrize("target", [False, True])
def test_save_and_load_give_equal_features(name: str, target: bool, tiny_backbone: Backbone, tmp_path: Path) -> None:
    data = task(domains=2, target=target)
    method = make(name, tiny_backbone)
    method.fit(data, seed=0, log=quiet)
    method.save(tmp_path / "model")
    loaded = PROMPTING[name].load(tmp_path / "model", tiny_backbone)
    assert loaded.config == method.config and loaded.facts() == method.facts()
    assert all(torch.equal(one, other) for one, other in zip(features(method), features(loaded), strict=True))
    assert loaded.total_parameters() == method.total_parameters()
    with pytest.raises(ValueError, match=f"{name}: the checkpoint's tensors do not fit"):
        make(name, tiny_backbone).load_tensors({**method.tensors(), "unknown": torch.zeros(2)}, method.facts())


@each
@pytest.mark.parametrize("augment", [False, True])
def test_a_seed_gives_the_same_bits(name: str, augment: bool, tiny_backbone: Backbone) -> None:
    learned = []
    for seed, noise in ((3, 1), (3, 2), (4, 1)):
        torch.manual_seed(noise)  # the global generator must not matter
        method = make(name, tiny_backbone, augment=augment)
        report = method.fit(task(target=True, domains=1), seed=seed, log=quiet)
        learned.append((method.tensors(), [entry["loss"] for entry in report.losses]))
    first, again, other = learned
    assert first[1] == again[1] != other[1]
    assert all(torch.equal(value, again[0][key]) for key, value in first[0].items())
    assert not all(torch.equal(value, other[0][key]) for key, value in first[0].items())


@each
def test_trains_all_of_its_parts_and_no_weight_of_clip(name: str, tiny_backbone: Backbone) -> None:
    before = tiny_backbone.weights_hash
    method = make(name, tiny_backbone, learning_rate=1.0, warmup_epochs=0, weight_decay=0.0, steps=2)
    report = method.fit(task(), seed=0, log=quiet)
    start = method.build(0)
    trained = {key: value for key, value in method.tensors().items() if key != "anchors"}
    assert set(trained) == set(start)
    assert not [key for key, value in start.items() if torch.equal(value.detach(), trained[key])]
    assert report.trainable_parameters == sum(value.numel() for value in trained.values())
    weights = sum(value.numel() for value in tiny_backbone.model.parameters())
    assert method.total_parameters() == weights + report.trainable_parameters
    assert tiny_backbone.weights_hash == before
    assert not any(value.requires_grad or value.grad is not None for value in tiny_backbone.model.parameters())


def test_sizes_of_what_is_trained(tiny_backbone: Backbone) -> None:
    """Two blocks of width 32 in each tower, features of 24."""
    counts = {name: make(name, tiny_backbone).fit(task(), seed=0, log=quiet).trainable_parameters for name in PROMPTING}
    assert counts == {
        "dapl": (16 + 3 * 16) * 32,
        "cocoop": 4 * 32 + (24 + 1) + (32 + 32),
        "maple": 2 * 2 * 32 + 2 * (32 * 32 + 32),
        "ivlp": 2 * 2 * 32 + 2 * 2 * 32,
        "promptsrc": 2 * 4 * 32 + 2 * 4 * 32,
    }


@each
def test_an_embedding_does_not_depend_on_its_batch(name: str, tiny_backbone: Backbone) -> None:
    method = make(name, tiny_backbone)
    method.fit(task(), seed=0, log=quiet)
    together, logits = method.encode_images(pixels(9)), method.classify(pixels(9), NAMES)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(9), rtol=0, atol=1e-5)
    for number, one in enumerate(pixels(9)):
        torch.testing.assert_close(method.encode_images(one[None])[0], together[number], rtol=0, atol=1e-5)
        torch.testing.assert_close(method.classify(one[None], NAMES)[0], logits[number], rtol=1e-4, atol=1e-4)


@each
def test_any_class_name_has_an_embedding(name: str, tiny_backbone: Backbone) -> None:
    method = make(name, tiny_backbone)
    method.fit(task(), seed=0, log=quiet)
    names = [*NAMES, "a name never seen"]
    together = method.encode_classes(names)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(6), rtol=0, atol=1e-5)
    torch.testing.assert_close(together[[5, 0]], method.encode_classes([names[5], names[0]]), rtol=0, atol=1e-5)


@each
def test_images_are_clips_or_prompted(name: str, tiny_backbone: Backbone) -> None:
    method = make(name, tiny_backbone)
    method.fit(task(), seed=0, log=quiet)
    clip = ZeroShot(tiny_backbone).encode_images(pixels())
    assert torch.equal(method.encode_images(pixels()), clip) == (name in FROZEN)


@each
def test_fast_and_plain_path_agree(name: str, tiny_backbone: Backbone) -> None:
    for target in (False, True):
        data, losses, found = task(domains=2, target=target), [], []
        for fast in (True, False):
            method = make(name, tiny_backbone, augment=False, steps=4, fast=fast, learning_rate=1e-3)
            report = method.fit(data, seed=0, log=quiet)
            losses.append([float(entry["loss"]) for entry in report.losses])
            found.append(torch.cat([method.encode_images(pixels()), method.encode_classes(NAMES)]))
        assert losses[0] == pytest.approx(losses[1], abs=1e-4)
        torch.testing.assert_close(*found, rtol=0, atol=1e-4)


@each
def test_keeps_the_weights_of_the_best_validation(name: str, tiny_backbone: Backbone) -> None:
    seen: list[list[Tensor]] = []

    def validate(method: Method) -> float:
        seen.append(features(method))
        return [0.1, 0.5, 0.4, 0.3][len(seen) - 1]

    method = make(name, tiny_backbone, steps=4, validate_every=1)
    report = method.fit(task(validate=validate), seed=0, log=quiet)
    assert (report.steps, report.selected_step) == (4, 2)
    assert all(torch.equal(one, other) for one, other in zip(features(method), seen[1], strict=True))
    assert not all(torch.equal(one, other) for one, other in zip(seen[1], seen[3], strict=True))


CHANGES = [
    pytest.param(name, change, id=f"{name}-{label}")
    for name, method in PROMPTING.items()
    for label, change in {**method.variants, **method.ablations}.items()
    if change
]


@pytest.mark.parametrize(("name", "change"), CHANGES)
def test_variants_and_ablations_change_something_and_load(
    name: str, change: dict[str, Any], tiny_backbone: Backbone, tmp_path: Path
) -> None:
    data = task(domains=1, target=True)
    method, default = make(name, tiny_backbone, steps=2, **change), make(name, tiny_backbone, steps=2)
    method.fit(data, seed=0, log=quiet)
    assert method.config != default.config
    method.save(tmp_path / "model")
    loaded = PROMPTING[name].load(tmp_path / "model", tiny_backbone)
    assert all(torch.equal(one, other) for one, other in zip(features(method), features(loaded), strict=True))


@each
def test_trains_in_bf16(name: str, tiny_backbone: Backbone, tiny_folder: Path) -> None:
    found = []
    for backbone in (tiny_backbone, Backbone.load(tiny_folder, precision="bf16")):
        method = make(name, backbone, learning_rate=1e-4)
        method.fit(task(domains=1, target=True), seed=0, log=quiet)
        found.append(torch.cat([method.encode_images(pixels()), method.encode_classes(NAMES)]))
        assert all(value.dtype == torch.float32 for value in (found[-1], *method.tensors().values()))
    assert F.cosine_similarity(*found).min() > 0.99
    assert not torch.equal(*found)


@each
def test_is_refused_before_it_is_fitted(name: str, tiny_backbone: Backbone) -> None:
    for asked in (lambda m: m.encode_classes(NAMES), lambda m: m.tensors(), lambda m: m.classify(pixels(), NAMES)):
        with pytest.raises(NotFittedError, match=f"{name} is not fitted: call fit or load first"):
            asked(make(name, tiny_backbone))


@each
def test_every_setting_is_documented(name: str) -> None:
    config = PROMPTING[name].Config
    explained = {field for fields, text in generator().meanings(config) if text for field in fields}
    assert explained == {field.name for field in dataclasses.fields(config)}


@each
def test_a_text_that_is_too_long_is_named(name: str, tiny_backbone: Backbone) -> None:
    with pytest.raises(BackboneError, match="use fewer context tokens"):
        make(name, tiny_backbone, context_tokens=tiny_backbone.context_length - 2).fit(task(), seed=0, log=quiet)


# --- training --------------------------------------------------------------------------------------------------------


@each
def test_sgd_with_the_papers_schedule(name: str, tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rates, momentum and weight decay of every step; the epochs are spread over a given number of steps."""
    kind = PROMPTING[name]
    paper = {"dapl": (3e-3, 25, 32), "cocoop": (2e-3, 10, 1), "maple": (3.5e-3, 5, 4), "ivlp": (3.5e-3, 5, 4),
             "promptsrc": (2.5e-3, 20, 4)}  # fmt: skip
    config = kind.Config()
    assert (config.learning_rate, config.epochs, config.batch_size) == paper[name]
    seen: list[tuple[float, float, float]] = []
    step = torch.optim.SGD.step

    def noted(self: torch.optim.SGD, *args: Any, **options: Any) -> Any:
        group = self.param_groups[0]
        seen.append((group["lr"], group["momentum"], group["weight_decay"]))
        return step(self, *args, **options)

    monkeypatch.setattr(torch.optim.SGD, "step", noted)
    steps = 2 * config.epochs
    kind(tiny_backbone, kind.Config(steps=steps, batch_size=2, augment=False)).fit(task(), seed=0, log=quiet)
    expected = [1e-5, 1e-5]
    for epoch in range(1, config.epochs):
        expected += 2 * [config.learning_rate * (1 + math.cos(math.pi * (epoch - 1) / config.epochs)) / 2]
    assert [rate for rate, _, _ in seen] == pytest.approx(expected)
    assert {rest for _, *rest in map(tuple, seen) for rest in [tuple(rest)]} == {(0.9, 5e-4)}


def test_warm_cosine() -> None:
    rates = [warm_cosine(passed, 1.0, periods=4, warmup=2, warmup_rate=0.1) for passed in range(7)]
    assert rates == pytest.approx([0.1, 0.1, 1.0, 0.5 + 0.25 * math.sqrt(2), 0.5, 0.5 - 0.25 * math.sqrt(2), 0.0])


@each
def test_batches_are_shuffles_of_all_images(name: str, tiny_backbone: Backbone) -> None:
    data, method = task(), make(name, tiny_backbone, batch_size=16)
    assert isinstance(method, SgdMethod)
    stream = method.batches(data, torch.Generator().manual_seed(0))
    epochs = [torch.cat([next(stream) for _ in range(3)]) for _ in range(2)]
    assert all(sorted(epoch.tolist()) == list(range(48)) for epoch in epochs)
    assert epochs[0].tolist() != epochs[1].tolist()


# --- shared parts ----------------------------------------------------------------------------------------------------


def test_opening_replaces_the_first_tokens(tiny_backbone: Backbone) -> None:
    template = "a photo of a {name}."
    words = tiny_backbone.token_ids("a photo of a")
    name = tiny_backbone.token_ids("sea turtle.")
    for tokens in (1, 3, len(words), len(words) + 2):
        prompts = PromptTemplate.opening(tiny_backbone, ["sea_turtle"], template, tokens)
        assert prompts.slots.tolist() == [list(range(1, 1 + tokens))]
        rest = [*words[tokens:], *name, tiny_backbone.end_id]
        assert prompts.ids[0, 1 + tokens : 1 + tokens + len(rest)].tolist() == rest
        assert int(prompts.eot) == tokens + len(rest)
    at_start = encode_prompts(
        tiny_backbone,
        PromptTemplate.opening(tiny_backbone, NAMES, template, 3),
        tiny_backbone.embed_tokens(torch.tensor(words[:3])),
    )
    plain = tiny_backbone.encode_texts([f"a photo of a {name.replace('_', ' ')}." for name in NAMES])
    torch.testing.assert_close(at_start, plain, rtol=0, atol=1e-5)


@pytest.mark.parametrize("images", [0, 3])
@torch.no_grad()
def test_deep_text_prompts_fast_and_plain(images: int, tiny_backbone: Backbone) -> None:
    prompts = PromptTemplate.opening(tiny_backbone, NAMES, "a photo of a {name}.", 2)
    draw = torch.Generator().manual_seed(0)
    context = torch.randn(*(images,) * bool(images), 2, 32, generator=draw)
    deep = torch.randn(1, 2, 32, generator=draw)
    found = [
        encode_prompts(tiny_backbone, prompts, context, deep_prompts=deep, **path)
        for path in ({}, {"shared_prefix": False}, {"shared_prefix": False, "cut": False}, {"class_chunk": 2})
    ]
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-5, atol=1e-5)
    assert not torch.allclose(found[0], encode_prompts(tiny_backbone, prompts, context), atol=1e-3)


def test_deep_text_prompts_that_do_not_fit_are_refused(tiny_backbone: Backbone) -> None:
    prompts = PromptTemplate.opening(tiny_backbone, NAMES, "a photo of a {name}.", 2)
    context = torch.zeros(2, 32)
    with pytest.raises(BackboneError, match="deep prompts need as many slots"):
        encode_prompts(tiny_backbone, prompts, context, deep_prompts=torch.zeros(1, 3, 32))
    later = PromptTemplate.build(tiny_backbone, NAMES, "a {context} {name}.", 2)
    with pytest.raises(BackboneError, match="right behind the start token"):
        encode_prompts(tiny_backbone, later, context, deep_prompts=torch.zeros(1, 2, 32))
    for path in ({}, {"shared_prefix": False}):
        with pytest.raises(BackboneError, match="deep_prompts has 2 rows, this tower needs 1 at most"):
            encode_prompts(tiny_backbone, prompts, context, deep_prompts=torch.zeros(2, 2, 32), **path)


@pytest.mark.parametrize("version", ["v2", "v3"])
@each
def test_works_on_the_embedded_backbones(name: str, version: str) -> None:
    folder = Path(__file__).parents[2] / "benchmarks" / "assets" / "picto_clip" / f"picto-clip-{version}"
    backbone = Backbone.load(folder)
    size = backbone.image_size
    data = task(domains=1, target=True)
    for images in (data.images, data.target):
        images.values = F.interpolate(images.values, (size, size))
    method = make(name, backbone, steps=2, batch_size=4)
    method.fit(data, seed=0, log=quiet)
    some = data.images.pixels(torch.arange(3))
    assert method.encode_images(some).shape == (3, backbone.embed_dim)
    assert method.classify(some, NAMES).isfinite().all()


def test_the_domains_of_the_support_task() -> None:
    assert task().domain_names == DOMAINS
