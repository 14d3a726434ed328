"""CoCoOp: its equations against loops written here."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import methods.cocoop as cocoop
from methods.cocoop import CoCoOp, CoCoOpConfig
from methods.parts.backbone import Backbone
from methods.parts.prompts import class_text
from methods.zero_shot import ZeroShot
from tests.support.prompting import NAMES, SEEN, quiet, task, text_by_hand

SMALL: dict[str, Any] = {"steps": 3, "batch_size": 16, "augment": False, "learning_rate": 0.1, "warmup_epochs": 0}
UNSEEN = ("horse", "unseen dog")


def fitted(backbone: Backbone, **changes: Any) -> CoCoOp:
    method = CoCoOp(backbone, CoCoOpConfig(**{**SMALL, "anchors": 5, **changes}))
    method.fit(task(), seed=0, log=quiet)
    return method


def context_by_hand(method: CoCoOp, feature: Tensor) -> Tensor:
    """V + h(x) of one frozen feature [E] -> [m, v]."""
    learned, unit = method.trainable(), feature / feature.norm()
    first, second = "meta_net.linear1", "meta_net.linear2"
    hidden = (learned[f"{first}.weight"] @ unit + learned[f"{first}.bias"]).clamp(min=0)
    shift = learned[f"{second}.weight"] @ hidden + learned[f"{second}.bias"]
    return torch.stack([token + shift for token in learned["context"]])


def texts_by_hand(method: CoCoOp, feature: Tensor, names: Any) -> Tensor:
    """t_k(x) of one image [C, E]; the template's words are all learned tokens."""
    context = context_by_hand(method, feature)
    assert len(context) >= len(method.backbone.token_ids("a photo of a"))
    return torch.stack([text_by_hand(method.backbone, context, f"{class_text(name)}.") for name in names])


def features_of(backbone: Backbone, pixels: Tensor) -> Tensor:
    return backbone.encode_images(backbone.normalize(pixels))


@pytest.mark.parametrize("reduction", [4, 16])
def test_what_inference_answers(reduction: int, tiny_backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens = len(tiny_backbone.token_ids("a photo of a"))
    method = fitted(tiny_backbone, context_tokens=tokens, reduction=reduction)
    pixels = task().images.pixels(torch.arange(4))
    logits = []
    for feature in features_of(tiny_backbone, pixels):
        unit = feature / feature.norm()
        logits.append((tiny_backbone.logit_scale * texts_by_hand(method, feature, UNSEEN) @ unit).detach())
    assert method.anchors is not None and len(method.anchors) == 5
    classes = torch.stack([texts_by_hand(method, anchor, UNSEEN) for anchor in method.anchors]).mean(dim=0).detach()
    for prompts in (4096, 3):  # fewer than the classes of two images: one at a time
        monkeypatch.setattr(cocoop, "PROMPTS_PER_PASS", prompts)
        torch.testing.assert_close(method.classify(pixels, UNSEEN), torch.stack(logits), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(method.encode_classes(UNSEEN), F.normalize(classes, dim=-1), rtol=1e-4, atol=1e-5)
    assert torch.equal(method.encode_images(pixels), ZeroShot(tiny_backbone).encode_images(pixels))


def test_training_is_sgd_on_the_cross_entropy(tiny_backbone: Backbone) -> None:
    data = task(domains=1)  # 16 images, one batch
    tokens = len(tiny_backbone.token_ids("a photo of a"))
    method = CoCoOp(tiny_backbone, CoCoOpConfig(**{**SMALL, "context_tokens": tokens, "epochs": 1}))
    report = method.fit(data, seed=3, log=quiet)
    other = CoCoOp(tiny_backbone, method.config)
    other.parameters = other.build(3)
    sgd = torch.optim.SGD(other.parameters.values(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    features = features_of(tiny_backbone, data.images.pixels(torch.arange(16)))
    for entry in report.losses:
        loss = torch.zeros(())
        for feature, label in zip(features, data.labels.tolist(), strict=True):
            logits = tiny_backbone.logit_scale * texts_by_hand(other, feature, SEEN) @ (feature / feature.norm())
            loss = loss - (logits[label] - sum(one.exp() for one in logits).log()) / 16
        assert entry["loss"] == pytest.approx(float(loss.detach()), abs=1e-4)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
    for name, value in other.parameters.items():
        torch.testing.assert_close(method.tensors()[name], value.detach(), rtol=1e-3, atol=1e-5)


def test_the_context_depends_on_the_image_unless_it_may_not(tiny_backbone: Backbone) -> None:
    pixels = task().images.pixels(torch.arange(12))
    for conditional in (True, False):
        method = fitted(tiny_backbone, conditional=conditional, steps=20)
        contexts = method.contexts(features_of(tiny_backbone, pixels))
        assert torch.equal(contexts[0], contexts[1]) is not conditional
        assert any(name.startswith("meta_net") for name in method.trainable()) is conditional
        shared = tiny_backbone.logit_scale * method.encode_images(pixels) @ method.encode_classes(NAMES).T
        close = torch.allclose(shared, method.classify(pixels, NAMES), rtol=1e-4, atol=1e-3)
        assert close is not conditional


def test_starts_from_words_and_a_linear_layers_weights(tiny_backbone: Backbone) -> None:
    start = CoCoOp(tiny_backbone).build(0)
    words = tiny_backbone.token_ids("a photo of a")[:4]
    assert torch.equal(start["context"].detach(), tiny_backbone.embed_tokens(torch.tensor(words)))
    assert start["meta_net.linear1.weight"].shape == (24 // 16, 24)
    assert float(start["meta_net.linear1.weight"].detach().abs().max()) <= 24**-0.5


def test_anchors_are_training_images_drawn_by_the_seed(tiny_backbone: Backbone) -> None:
    data = task()
    known = features_of(tiny_backbone, data.images.pixels(torch.arange(48)))
    drawn = []
    for seed in (0, 0, 1):
        method = CoCoOp(tiny_backbone, CoCoOpConfig(**{**SMALL, "anchors": 5}))
        method.fit(data, seed=seed, log=quiet)
        assert method.anchors is not None
        drawn.append(torch.cdist(method.anchors, known).argmin(dim=1).tolist())
        assert float(torch.cdist(method.anchors, known).min(dim=1).values.max()) < 0.02
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 5
    assert len(fitted(tiny_backbone, anchors=1000).anchors) == 48
