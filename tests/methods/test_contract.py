"""What methods with state of their own keep to: checkpoints, seeds, batches, names, precision, and what they train.

Baselines that differ in what they train alone are in test_baselines.py; each method's equations in a file of its own.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from methods.interface import Method, TrainingData
from methods.parts.backbone import Backbone
from methods.registry import METHODS
from tests.docs.test_documents import generator
from tests.methods.test_baselines import NAMES, Target, Toy, quiet, scores, task

#: Settings at which the random tiny CLIP learns within some steps (the defaults are for a trained CLIP).
LEARNS: dict[str, dict[str, Any]] = {
    "pda": {"learning_rate": 0.1, "steps": 150, "batch_size": 24, "augment": False, "coupled": 1, "target_weight": 0.1},
    "cmkd": {"learning_rate": 1e-3, "head_rate": 50.0, "steps": 60, "batch_size": 24, "augment": False},
    "sketch_lvm": {"learning_rate": 0.02, "steps": 60, "batch_size": 24},
    "tip_adapter": {"views": 0},
    "tip_adapter_f": {"learning_rate": 0.05, "steps": 60, "batch_size": 24, "augment": False, "views": 0},
}
#: The protocols' target images are read by these.
READS_TARGET = {"cmkd", "pda"}
#: A checkpoint's tensors that are no trained parameters.
SEEN_ONLY: dict[str, set[str]] = {"sketch_lvm": {"domain_means"}, "cmkd": {"head.mean", "head.var"}}
SEEN_ONLY["pda"] = {"bank.source", "bank.target", *(f"ift.norm{n}.{of}" for n in (1, 2) for of in ("mean", "var"))}

each = pytest.mark.parametrize("name", LEARNS)
trained_ones = pytest.mark.parametrize("name", [name for name in LEARNS if METHODS.get(name).trained])


def make(name: str, backbone: Backbone, **changes: Any) -> Any:
    """The method with a small budget, as far as its config knows one."""
    kind = METHODS.get(name)
    known = {field.name for field in dataclasses.fields(kind.Config)}
    small = {key: value for key, value in {"steps": 3, "batch_size": 12}.items() if key in known}
    return kind(backbone, kind.Config(**{**small, **changes}))


def fitted(name: str, backbone: Backbone, data: TrainingData | None = None, *, seed: int = 0, **changes: Any) -> Any:
    method = make(name, backbone, **changes)
    method.fit(task() if data is None else data, seed=seed, log=quiet)
    return method


def adaptation() -> TrainingData:
    """One labelled domain, and unlabelled images of another."""
    labels = torch.arange(4).repeat(6)
    return task(domains=1, target=Toy(labels, torch.full_like(labels, 2)))


def answers(method: Method, pixels: Tensor) -> dict[str, Tensor]:
    return {
        "embeddings": method.encode_images(pixels),
        "raw": method.encode_raw(pixels),
        "classes": method.encode_classes(NAMES),
        "logits": method.classify(pixels, NAMES),
    }


@each
@pytest.mark.parametrize("shown", [task, adaptation])
def test_a_checkpoint_gives_equal_answers(name: str, shown: Any, tiny_backbone: Backbone, tmp_path: Path) -> None:
    method = fitted(name, tiny_backbone, shown())
    method.save(tmp_path / "model")
    loaded = METHODS.get(name).load(tmp_path / "model", tiny_backbone)
    pixels = task().images.pixels(torch.arange(6))
    assert loaded.config == method.config
    assert loaded.total_parameters() == method.total_parameters()
    for key, value in answers(method, pixels).items():
        assert torch.equal(answers(loaded, pixels)[key], value), key
    other = fitted(name, tiny_backbone, shown(), seed=1)
    other.load_tensors(method.tensors(), method.facts())
    assert torch.equal(other.classify(pixels, NAMES), method.classify(pixels, NAMES)), "into a fitted one, too"


@each
def test_a_checkpoint_that_does_not_fit_is_refused(name: str, tiny_backbone: Backbone) -> None:
    method = fitted(name, tiny_backbone)
    with pytest.raises(ValueError, match=f"{name}: the checkpoint's tensors do not fit"):
        make(name, tiny_backbone).load_tensors({**method.tensors(), "unknown": torch.zeros(2)}, method.facts())


@each
@pytest.mark.parametrize("shown", [task, adaptation])
def test_a_seed_gives_the_same_bits(name: str, shown: Any, tiny_backbone: Backbone) -> None:
    learned = []
    for seed, noise in ((3, 1), (3, 2), (4, 1)):
        torch.manual_seed(noise)  # the global generator must not matter
        learned.append(fitted(name, tiny_backbone, shown(), seed=seed).tensors())
    first, again, other = learned
    assert all(torch.equal(value, again[key]) for key, value in first.items())
    assert not all(value.shape == other[key].shape and torch.equal(value, other[key]) for key, value in first.items())


@each
def test_an_answer_does_not_depend_on_its_batch(name: str, tiny_backbone: Backbone) -> None:
    method, pixels = fitted(name, tiny_backbone), task().images.pixels(torch.arange(9))
    for ask in (method.encode_images, method.encode_raw, lambda some: method.classify(some, NAMES)):
        torch.testing.assert_close(ask(pixels), torch.cat([ask(one[None]) for one in pixels]), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(method.encode_images(pixels).norm(dim=1), torch.ones(9), rtol=0, atol=1e-5)
    torch.testing.assert_close(F.normalize(method.encode_raw(pixels)), method.encode_images(pixels), rtol=0, atol=1e-5)


@each
def test_any_class_name_has_an_embedding_and_a_logit(name: str, tiny_backbone: Backbone) -> None:
    method, pixels = fitted(name, tiny_backbone), task().images.pixels(torch.arange(3))
    names = [*NAMES, "a name never seen"]
    together = method.encode_classes(names)
    assert together.shape == (6, tiny_backbone.embed_dim)
    torch.testing.assert_close(together[[5, 0]], method.encode_classes([names[5], names[0]]), rtol=0, atol=1e-5)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(6), rtol=0, atol=1e-5)
    assert method.classify(pixels, names).shape == (3, 6)


@each
@pytest.mark.parametrize("shown", [task, adaptation])
def test_the_backbone_stays_as_it_is(name: str, shown: Any, tiny_backbone: Backbone) -> None:
    before = {key: value.clone() for key, value in tiny_backbone.model.state_dict().items()}
    answers(fitted(name, tiny_backbone, shown()), task().images.pixels(torch.arange(3)))
    assert not any(value.requires_grad or value.grad is not None for value in tiny_backbone.model.parameters())
    assert all(torch.equal(value, before[key]) for key, value in tiny_backbone.model.state_dict().items())


@each
def test_it_learns_its_training_classes(name: str, tiny_backbone: Backbone) -> None:
    data, slow = task(), {}
    if METHODS.get(name).trained:
        slow = {**LEARNS[name], "steps": 1, "learning_rate": 0.0}
    start = scores(fitted(name, tiny_backbone, data, **slow), data) if slow else (0.25, float("inf"))
    accuracy, loss = scores(fitted(name, tiny_backbone, data, **LEARNS[name]), data)
    assert loss < 0.8 * start[1]
    assert accuracy >= 0.9


@trained_ones
@pytest.mark.parametrize("shown", [task, adaptation])
def test_all_that_is_trained_moves_and_is_counted(name: str, shown: Any, tiny_backbone: Backbone) -> None:
    method, starts = make(name, tiny_backbone, **{**LEARNS[name], "steps": 3}), []

    def note(**numbers: Any) -> None:
        starts.append({key: value.detach().clone() for key, value in method.trainable().items()})

    report = method.fit(shown(), seed=0, log=note)
    trained = method.trainable()
    assert set(trained) <= set(method.tensors()) <= set(trained) | SEEN_ONLY.get(name, set())
    assert report.trainable_parameters == sum(value.numel() for value in trained.values())
    still = {key for key, value in trained.items() if torch.equal(value, starts[0][key])}
    assert not {
        key for key in still if not key.endswith("k_proj.bias")
    }  # a key bias has no gradient but rounding noise
    assert report.steps == 3


@trained_ones
def test_the_weights_of_the_best_validation_are_kept(name: str, tiny_backbone: Backbone) -> None:
    seen: list[dict[str, Tensor]] = []

    def validate(method: Method) -> float:
        seen.append({key: value.clone() for key, value in method.tensors().items()})
        return [0.1, 0.5, 0.4, 0.3, 0.2][len(seen) - 1]

    method = make(name, tiny_backbone, steps=5, validate_every=1)
    report = method.fit(task(validate=validate), seed=0, log=quiet)
    assert (report.steps, report.selected_step) == (5, 2)
    assert all(torch.equal(value, seen[1][key]) for key, value in method.tensors().items())


@each
def test_what_it_does_not_use_changes_nothing(name: str, tiny_backbone: Backbone) -> None:
    """A class name without images and, where the method reads none, target images."""
    target = Target(torch.zeros(5, dtype=torch.long), torch.zeros(5, dtype=torch.long))
    shown = task(domains=1) if name in READS_TARGET else task(domains=1, target=target)
    hidden = task(domains=1)
    hidden.class_names = NAMES[:4]
    learned = [fitted(name, tiny_backbone, data).tensors() for data in (shown, hidden)]
    if name not in READS_TARGET:
        assert all(torch.equal(value, learned[1][key]) for key, value in learned[0].items())


CHANGES = [
    pytest.param(name, change, id=f"{name}-{label}")
    for name in LEARNS
    for label, change in {**METHODS.get(name).variants, **METHODS.get(name).ablations}.items()
]


@pytest.mark.parametrize(("name", "change"), CHANGES)
def test_variants_and_ablations_run_and_load(
    name: str, change: dict[str, Any], tiny_backbone: Backbone, tmp_path: Path
) -> None:
    budget = {"steps": 2} if METHODS.get(name).trained else {}
    method = make(name, tiny_backbone, **{**budget, **change})
    assert method.config != make(name, tiny_backbone, **budget).config
    for data in (task(), adaptation()):
        method.fit(data, seed=0, log=quiet)
        method.save(tmp_path / "model")
        loaded = METHODS.get(name).load(tmp_path / "model", tiny_backbone)
        pixels = task().images.pixels(torch.arange(3))
        assert torch.equal(loaded.classify(pixels, NAMES), method.classify(pixels, NAMES))


@each
def test_it_runs_in_bf16(name: str, tiny_backbone: Backbone, tiny_folder: Path) -> None:
    features, slow = [], {"learning_rate": 1e-5} if METHODS.get(name).trained else {}
    for backbone in (tiny_backbone, Backbone.load(tiny_folder, precision="bf16")):
        method = fitted(name, backbone, **slow)
        pixels = task().images.pixels(torch.arange(4))
        features.append(torch.cat([method.encode_images(pixels), method.encode_classes(NAMES)]))
        floats = [value for value in method.tensors().values() if value.is_floating_point()]
        assert all(value.dtype == torch.float32 for value in (features[-1], method.classify(pixels, NAMES), *floats))
    assert F.cosine_similarity(*features).min() > 0.99


@each
def test_fast_and_plain_path_agree(name: str, tiny_backbone: Backbone) -> None:
    pixels = task().images.pixels(torch.arange(5))
    slow = {"learning_rate": 0.0} if METHODS.get(name).trained else {}  # Adam's first steps magnify the last bits
    fast, plain = (answers(fitted(name, tiny_backbone, fast=one, **slow), pixels) for one in (True, False))
    for key, value in fast.items():
        torch.testing.assert_close(value, plain[key], rtol=1e-4, atol=1e-4, msg=key)


@each
def test_nothing_is_answered_before_fit(name: str, tiny_backbone: Backbone) -> None:
    with pytest.raises(RuntimeError, match=f"{name} is not fitted: call fit or load first"):
        make(name, tiny_backbone).classify(torch.zeros(1, 3, 32, 32), NAMES)


@each
def test_every_setting_is_documented(name: str) -> None:
    config = METHODS.get(name).Config
    explained = {field for fields, text in generator().meanings(config) if text for field in fields}
    assert explained == {field.name for field in dataclasses.fields(config)}
