"""MaPLe and IVLP: their equations against the stock towers run by hand."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPConfig

from methods.maple import IVLP, MaPLe
from methods.parts.backbone import ClipBackbone
from methods.parts.prompts import class_text
from methods.zero_shot import ZeroShot
from tests.support.prompting import NAMES, SEEN, image_by_hand, quiet, task, text_by_hand
from tests.support.tiny_clip import tiny_tokenizer

SMALL: dict[str, Any] = {"steps": 3, "batch_size": 16, "augment": False, "learning_rate": 0.1, "warmup_epochs": 0}
KINDS = pytest.mark.parametrize("kind", [MaPLe, IVLP])


@pytest.fixture(scope="module")
def deep() -> ClipBackbone:
    """A CLIP of four vision and three text blocks with widths of their own."""
    sizes = {"num_attention_heads": 2, "intermediate_size": 40}
    tokenizer = tiny_tokenizer()
    config = CLIPConfig(
        vision_config={**sizes, "hidden_size": 24, "num_hidden_layers": 4, "image_size": 32, "patch_size": 8},
        text_config={
            **sizes,
            "hidden_size": 16,
            "num_hidden_layers": 3,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 64,
            "eos_token_id": tokenizer.eos_token_id,
            "bos_token_id": tokenizer.bos_token_id,
        },
        projection_dim=12,
    )
    return ClipBackbone.from_config(config, 0, tokenizer=tokenizer)


def vision_by_hand(method: Any) -> list[Tensor]:
    """Q of each prompted block, an entry at a time."""
    learned = method.trainable()
    if isinstance(method, IVLP):
        return list(learned["prompts"])
    texts = [learned["context"], *learned.get("deep_context", ())]
    weight, bias = learned["coupling.weight"], learned["coupling.bias"]
    return [torch.stack([weight[j] @ token + bias[j] for token in text]) for j, text in enumerate(texts)]


def texts_by_hand(method: Any, names: Any) -> Tensor:
    learned, backbone, m = method.trainable(), method.backbone, method.config.context_tokens
    texts = []
    for name in names:
        words = backbone.token_ids("a photo of a")[m:]
        rest = class_text(name) + "."
        if words:  # the template's other words, put in front of the name as text
            rest = f"{backbone.tokenizer.decode(words)} {rest}"
            assert backbone.token_ids(rest)[: len(words)] == words
        texts.append(text_by_hand(backbone, learned["context"], rest, list(learned.get("deep_context", ()))))
    return torch.stack(texts)


@KINDS
@pytest.mark.parametrize("change", [{}, {"depth": 1}, {"depth": 2, "context_tokens": 3}, {"context_tokens": 40}])
def test_features(kind: Any, change: dict[str, Any], deep: ClipBackbone) -> None:
    method = kind(deep, kind.Config(**{**SMALL, **change}))
    method.fit(task(), seed=0, log=quiet)
    pixels = deep.normalize(task().images.pixels(torch.arange(3)))
    vision = vision_by_hand(method)
    depth = change.get("depth", 9)
    assert len(vision) == min(depth, 3 if kind is MaPLe else 4)
    assert len(method.trainable().get("deep_context", ())) == min(depth, 3) - 1
    expected = torch.stack([image_by_hand(deep, image, vision) for image in pixels])
    torch.testing.assert_close(
        method.encode_images(task().images.pixels(torch.arange(3))), expected, rtol=1e-4, atol=1e-5
    )
    torch.testing.assert_close(method.encode_classes(NAMES), texts_by_hand(method, NAMES), rtol=1e-4, atol=1e-5)


@KINDS
def test_the_first_prompts_are_words(kind: Any, deep: ClipBackbone) -> None:
    """Before training, without deep prompts, a class is the text ``a photo of a {class}.``."""
    method = kind(deep, kind.Config(**{**SMALL, "steps": 1, "learning_rate": 0.0, "depth": 1}))
    method.fit(task(), seed=0, log=quiet)
    plain = F.normalize(deep.encode_texts([f"a photo of a {class_text(name)}." for name in NAMES]), dim=1)
    torch.testing.assert_close(method.encode_classes(NAMES), plain, rtol=0, atol=1e-5)
    assert not torch.allclose(
        method.encode_images(task().images.pixels(torch.arange(2))),
        ZeroShot(deep).encode_images(task().images.pixels(torch.arange(2))),
        atol=1e-4,
    )


def test_starts_as_released(deep: ClipBackbone) -> None:
    """All coupling maps but the first begin equal; other prompts are drawn with deviation 0.02."""
    start = MaPLe(deep, MaPLe.Config(context_tokens=40)).build(0)
    weight, bias = start["coupling.weight"], start["coupling.bias"]
    assert torch.equal(weight[1], weight[2]) and torch.equal(bias[1], bias[2])
    assert not torch.equal(weight[0], weight[1])
    assert float(weight.detach().abs().max()) <= 16**-0.5
    for part in (start["deep_context"], IVLP(deep, IVLP.Config(prompt_tokens=40)).build(0)["prompts"]):
        assert float(part.detach().std()) == pytest.approx(0.02, rel=0.1)


@KINDS
def test_training_is_sgd_on_the_cross_entropy(kind: Any, deep: ClipBackbone) -> None:
    data = task(domains=1)  # 16 images, one batch: all of them, whatever the order
    method = kind(deep, kind.Config(**{**SMALL, "epochs": 1}))
    report = method.fit(data, seed=3, log=quiet)
    other = kind(deep, method.config)
    other.parameters = other.build(3)
    sgd = torch.optim.SGD(other.parameters.values(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    pixels = deep.normalize(data.images.pixels(torch.arange(16)))
    for entry in report.losses:
        texts, vision, loss = texts_by_hand(other, SEEN), vision_by_hand(other), torch.zeros(())
        for image, label in zip(pixels, data.labels.tolist(), strict=True):
            logits = deep.logit_scale * texts @ image_by_hand(deep, image, vision)
            loss = loss - (logits[label] - sum(one.exp() for one in logits).log()) / 16
        assert entry["loss"] == pytest.approx(float(loss.detach()), abs=1e-4)
        sgd.zero_grad()
        loss.backward()
        sgd.step()
    for name, value in method.tensors().items():
        torch.testing.assert_close(value, other.parameters[name].detach(), rtol=1e-3, atol=1e-4)


def test_coupling_lets_images_train_the_text_prompts(deep: ClipBackbone) -> None:
    """The gradient of an image feature alone reaches MaPLe's text prompts, not IVLP's."""
    for kind, reached in ((MaPLe, True), (IVLP, False)):
        method = kind(deep)
        method.parameters = method.build(0)
        method.image_features(deep.normalize(task().images.pixels(torch.arange(2)))).sum().backward()
        gradient = method.parameters["context"].grad
        assert (gradient is not None and bool(gradient.any())) is reached
