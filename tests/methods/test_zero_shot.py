"""Zero-shot CLIP: CLIP's own features, its own words, nothing trained."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import CLIPModel

from methods.interface import TrainingData
from methods.parts.backbone import Backbone
from methods.zero_shot import ZeroShot, ZeroShotConfig


def images(count: int = 4) -> Tensor:
    return torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(0))


def test_images_are_clips_features_of_unit_length(tiny_backbone: Backbone, tiny_folder: Path) -> None:
    method = ZeroShot(tiny_backbone)
    stock = CLIPModel.from_pretrained(tiny_folder).eval()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in ([0.6, 0.5, 0.4], [0.25, 0.3, 0.2]))
    with torch.no_grad():
        raw = stock.get_image_features((images() - mean) / std).pooler_output
    torch.testing.assert_close(method.encode_raw(images()), raw, rtol=1e-4, atol=1e-4)
    unit = raw / raw.norm(dim=1, keepdim=True)
    torch.testing.assert_close(method.encode_images(images()), unit, rtol=1e-4, atol=1e-5)
    assert not method.encode_images(images()).requires_grad


def test_classes_are_the_template_filled_with_words(tiny_backbone: Backbone) -> None:
    method = ZeroShot(tiny_backbone)
    embedding = method.encode_classes(["sea_turtle", "dog"])
    torch.testing.assert_close(embedding.norm(dim=1), torch.ones(2))
    with torch.no_grad():
        texts = tiny_backbone.encode_texts(["a photo of a sea turtle", "a photo of a dog"])
    torch.testing.assert_close(embedding, texts / texts.norm(dim=1, keepdim=True))
    drawing = ZeroShot(tiny_backbone, ZeroShotConfig(template="a drawing of a {}")).encode_classes(["dog"])
    assert float((drawing[0] - embedding[1]).abs().max()) > 1e-3


def test_logits_are_cosines_times_clips_scale(tiny_backbone: Backbone) -> None:
    method = ZeroShot(tiny_backbone)
    logits = method.classify(images(), ["cat", "dog", "horse"])
    cosines = method.encode_images(images()) @ method.encode_classes(["cat", "dog", "horse"]).T
    scale = float(tiny_backbone.model.logit_scale.detach().exp())
    assert scale > 2
    torch.testing.assert_close(logits, scale * cosines)


def test_nothing_is_learned(tiny_backbone: Backbone, tmp_path: Path) -> None:
    method = ZeroShot(tiny_backbone)
    before = tiny_backbone.weights_hash
    blank = TrainingData(
        protocol="ucdr",
        images=[],  # type: ignore[arg-type]
        labels=torch.zeros(0, dtype=torch.int64),
        domains=torch.zeros(0, dtype=torch.int64),
        class_names=["cat"],
        domain_names=["line"],
    )
    report = method.fit(blank, seed=0, log=lambda **numbers: None)
    assert (report.steps, report.trainable_parameters) == (0, 0)
    assert tiny_backbone.weights_hash == before
    assert method.total_parameters() == sum(p.numel() for p in tiny_backbone.model.parameters())
    method.save(tmp_path / "zero")
    again = ZeroShot.load(tmp_path / "zero", tiny_backbone)
    assert torch.equal(again.encode_images(images()), method.encode_images(images()))


def test_a_checkpoint_of_other_weights_is_refused(tiny_backbone: Backbone, tmp_path: Path) -> None:
    ZeroShot(tiny_backbone).save(tmp_path / "zero")
    other = tiny_backbone.clone()
    with torch.no_grad():
        other.model.visual_projection.weight.add_(1)
    with pytest.raises(ValueError, match="other backbone weights"):
        ZeroShot.load(tmp_path / "zero", other)


def test_one_name_in_place_of_a_list_is_refused(tiny_backbone: Backbone) -> None:
    with pytest.raises(ValueError, match=r"write \['cat'\]"):
        ZeroShot(tiny_backbone).encode_classes("cat")
