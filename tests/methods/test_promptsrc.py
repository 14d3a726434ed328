"""PromptSRC: its loss, its texts and its weighted mean against loops written here."""

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from methods.interface import Method
from methods.maple import IVLP
from methods.parts.backbone import Backbone
from methods.parts.prompts import class_text
from methods.parts.templates import IMAGENET_60
from methods.promptsrc import PromptSRC, PromptSRCConfig, epoch_weights, loss_terms
from tests.support.prompting import SEEN, quiet, task

SMALL: dict[str, Any] = {"steps": 4, "batch_size": 16, "augment": False, "learning_rate": 0.1, "warmup_epochs": 0}


def fitted(backbone: Backbone, data: Any = None, *, log: Any = quiet, **changes: Any) -> PromptSRC:
    method = PromptSRC(backbone, PromptSRCConfig(**{**SMALL, **changes}))
    method.fit(task() if data is None else data, seed=0, log=log)
    return method


def terms_by_hand(
    images: Tensor, texts: Tensor, frozen_images: Tensor, frozen_texts: Tensor, labels: list[int], scale: float
) -> dict[str, Tensor]:
    """The four terms, an image and an entry at a time."""
    unit = [[row / row.norm() for row in rows] for rows in (images, texts, frozen_images, frozen_texts)]
    zero = torch.zeros((), dtype=images.dtype)
    terms = {"ce": zero, "image": zero, "text": zero, "logits": zero}
    count, classes, width = len(images), len(texts), images.shape[1]
    for number in range(count):
        shares, known = [], []
        for a, b, out in ((unit[0], unit[1], shares), (unit[2], unit[3], known)):
            powers = [(scale * a[number] @ text).exp() for text in b]
            out += [power / sum(powers) for power in powers]
        terms["ce"] = terms["ce"] - shares[labels[number]].log() / count
        terms["image"] = terms["image"] + sum(abs(unit[0][number] - unit[2][number])) / (count * width)
        for p, q in zip(known, shares, strict=True):
            terms["logits"] = terms["logits"] + p * (p / q).log() / (count * classes)
    for one, other in zip(unit[1], unit[3], strict=True):
        terms["text"] = terms["text"] + sum(abs(one - other)) / (classes * width)
    return terms


def test_loss_terms_and_their_gradients() -> None:
    draw = torch.Generator().manual_seed(0)
    given_ = [torch.randn(rows, 6, generator=draw, dtype=torch.float64).requires_grad_() for rows in (5, 3, 5, 3)]
    labels = [2, 0, 1, 1, 0]
    got = loss_terms(*given_, torch.tensor(labels), 7.0)
    expected = terms_by_hand(*given_, labels, 7.0)
    assert set(got) == set(expected)
    for name, value in got.items():
        torch.testing.assert_close(value, expected[name], msg=name)
        for one, other in zip(
            torch.autograd.grad(value, given_[:2], retain_graph=True, allow_unused=True),
            torch.autograd.grad(expected[name], given_[:2], retain_graph=True, allow_unused=True),
            strict=True,
        ):
            assert (one is None) == (other is None)
            if one is not None:
                torch.testing.assert_close(one, other, msg=name)


def test_features_of_clip_itself_cost_nothing() -> None:
    draw = torch.Generator().manual_seed(0)
    images, texts = torch.randn(4, 6, generator=draw), torch.randn(3, 6, generator=draw)
    terms = loss_terms(images, texts, images, texts, torch.tensor([0, 1, 2, 0]), 10.0)
    assert [float(terms[name]) for name in ("image", "text", "logits")] == pytest.approx([0, 0, 0], abs=1e-6)


@pytest.mark.parametrize("augment", [False, True])
@pytest.mark.parametrize("diverse", [False, True])
def test_the_loss_of_a_step(augment: bool, diverse: bool, tiny_backbone: Backbone) -> None:
    """Weights 10, 25 and 1; the frozen features are of the same pixels, and of 60 texts a class."""
    data, seen = task(domains=1), []
    method = PromptSRC(tiny_backbone, PromptSRCConfig(**{**SMALL, "steps": 1, "diverse_texts": diverse}))
    original = method.batch_loss

    def spied(batch: Any, prompts: Any, fixed: Any) -> Tensor:
        value = original(batch, prompts, fixed)
        seen.append((batch, float(value.detach())))
        return value

    method.batch_loss = spied  # type: ignore[method-assign]
    method.config = PromptSRCConfig(**{**SMALL, "steps": 1, "diverse_texts": diverse, "augment": augment})
    method.fit(data, seed=5, log=quiet)
    ((batch, value),) = seen
    start = IVLP(tiny_backbone, IVLP.Config(context_tokens=4, prompt_tokens=4))
    start.parameters = start.build(5)
    with torch.no_grad():
        frozen = torch.zeros(4, 24)
        for template in IMAGENET_60 if diverse else ("a photo of a {name}.",):
            frozen += tiny_backbone.encode_texts([template.replace("{name}", class_text(name)) for name in SEEN])
        terms = terms_by_hand(
            start.image_features(batch.pixels),
            start.text_features(start.prompts(SEEN)),
            tiny_backbone.encode_images(batch.pixels),
            frozen,
            batch.labels.tolist(),
            tiny_backbone.logit_scale,
        )
    expected = terms["ce"] + 10 * terms["image"] + 25 * terms["text"] + terms["logits"]
    assert value == pytest.approx(float(expected), abs=1e-4)


def test_sixty_texts() -> None:
    assert len(IMAGENET_60) == len(set(IMAGENET_60)) == 60
    assert all(text.count("{name}") == 1 and text.endswith(".") and "  " not in text for text in IMAGENET_60)
    known = {"a photo of a {name}.", "itap of the {name}.", "a origami {name}.", "the {name} in a video game.",
             "a photo of the hard to see {name}.", "a black and white photo of the {name}.",
             "graffiti of a {name}."}  # fmt: skip
    assert known <= set(IMAGENET_60)


@given(st.integers(1, 60), st.floats(-10, 100), st.floats(0.5, 50))
def test_epoch_weights_are_a_normal_density(epochs: int, mean: float, deviation: float) -> None:
    weights = epoch_weights(epochs, mean, deviation)
    assert len(weights) == epochs and sum(weights) == pytest.approx(1)
    best = max(range(epochs), key=lambda epoch: weights[epoch])
    assert abs(best + 1 - mean) <= min(abs(epoch + 1 - mean) for epoch in range(epochs)) + 1e-9
    for epoch in range(1, epochs):
        if weights[epoch] > 1e-200 and weights[epoch - 1] > 1e-200:
            ratio = ((epoch - mean) ** 2 - (epoch + 1 - mean) ** 2) / (2 * deviation**2)
            assert math.log(weights[epoch] / weights[epoch - 1]) == pytest.approx(ratio, rel=1e-6, abs=1e-6)


@pytest.mark.parametrize(("steps", "epochs"), [(12, 4), (10, 4), (3, 6), (5, 5)])
def test_the_model_is_the_weighted_mean_of_the_epochs(steps: int, epochs: int, tiny_backbone: Backbone) -> None:
    """Also where steps are fewer than epochs: the prompts of a step then stand for all the epochs it ends."""
    settings = {"steps": steps, "epochs": epochs, "ensemble_mean": 2.5, "ensemble_std": 1.3}
    states: list[dict[str, Tensor]] = []
    method = PromptSRC(tiny_backbone, PromptSRCConfig(**{**SMALL, **settings}))
    aggregate = method.after_step

    def spied(step: int, of: int) -> None:
        states.append({name: value.detach().clone() for name, value in (method.parameters or {}).items()})
        aggregate(step, of)

    method.after_step = spied  # type: ignore[method-assign]
    method.fit(task(), seed=0, log=quiet)
    weights = [math.exp(-0.5 * ((epoch - 2.5) / 1.3) ** 2) for epoch in range(1, epochs + 1)]
    ends = [next(step for step in range(steps) if (step + 1) * epochs // steps >= epoch + 1) for epoch in range(epochs)]
    assert ends[-1] == steps - 1
    for name, value in method.tensors().items():
        expected = sum(w * states[end][name] for w, end in zip(weights, ends, strict=True)) / sum(weights)
        torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-6)
    last = fitted(tiny_backbone, **settings, ensemble=False)
    assert all(torch.equal(value, states[-1][name]) for name, value in last.tensors().items())


def test_validation_sees_the_mean_so_far(tiny_backbone: Backbone) -> None:
    found: list[Tensor] = []

    def validate(method: Method) -> float:
        found.append(method.tensors()["prompts"].clone())
        return float(len(found))

    settings = {"steps": 4, "epochs": 4, "validate_every": 1, "ensemble_mean": 0.0, "ensemble_std": 100.0}
    method = fitted(tiny_backbone, task(validate=validate), **settings)
    raw: list[Tensor] = []
    other = PromptSRC(tiny_backbone, method.config)
    aggregate = other.after_step

    def spied(step: int, of: int) -> None:
        raw.append((other.parameters or {})["prompts"].detach().clone())
        aggregate(step, of)

    other.after_step = spied  # type: ignore[method-assign]
    other.fit(task(), seed=0, log=quiet)
    for count, value in enumerate(found, start=1):
        torch.testing.assert_close(value, torch.stack(raw[:count]).mean(dim=0), rtol=1e-3, atol=1e-5)
    assert torch.equal(method.tensors()["prompts"], found[-1])


def test_weights_of_early_epochs_may_be_zero(tiny_backbone: Backbone) -> None:
    """A narrow density far behind the first epochs: their weight is 0 in floating point, and the mean is the last."""
    settings = {"steps": 3, "epochs": 60, "ensemble_mean": 60.0, "ensemble_std": 0.5}
    method, last = fitted(tiny_backbone, **settings), fitted(tiny_backbone, **settings, ensemble=False)
    for name, value in method.tensors().items():
        torch.testing.assert_close(value, last.tensors()[name], rtol=1e-5, atol=1e-7)


def test_constraints_hold_the_prompts_to_clip(tiny_backbone: Backbone) -> None:
    data, drift = task(), []
    pixels = data.images.pixels(torch.arange(12))
    frozen = F.normalize(tiny_backbone.encode_images(tiny_backbone.normalize(pixels)), dim=1)
    for weight in (0.0, 100.0):
        method = fitted(tiny_backbone, data, steps=60, image_weight=weight, ensemble=False, learning_rate=0.3)
        drift.append(float((method.encode_images(pixels) - frozen).abs().mean()))
    assert drift[1] < 0.7 * drift[0]
