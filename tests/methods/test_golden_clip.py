"""Plain CLIP against the golden fixtures (tests/golden/README.md, sections 1 to 3)."""

import numpy as np
import pytest
import torch

from tests.support.golden import assert_golden, golden_set, kind_of

pytestmark = pytest.mark.golden


def test_fill_rule_gives_the_recorded_tensors() -> None:
    golden = golden_set()
    checks = golden.json("fill_check.json")["checks"]
    assert checks
    for check in checks:
        value = golden.fill(check["name"], tuple(check["shape"]), check["kind"]).double().numpy().reshape(-1)
        np.testing.assert_allclose(value[: len(check["first4"])], check["first4"], rtol=1e-6, atol=0)
        assert np.sqrt((value**2).sum()) == pytest.approx(check["l2"], rel=1e-6)
        assert value.sum() == pytest.approx(check["sum"], rel=1e-5, abs=1e-5 * check["l2"])


def test_kinds_follow_from_clip_names() -> None:
    golden = golden_set()
    names = golden.json("fill_check.json")["clip_state_dict_names_2_2"]
    for check in golden.json("fill_check.json")["checks"]:
        if check["name"] in names:
            assert kind_of(check["name"]) == check["kind"]


def test_names_are_those_of_the_clip_model() -> None:
    golden = golden_set()
    names = golden.clip(vision_layers=2, text_layers=2).model.state_dict()
    assert sorted(names) == sorted(golden.json("fill_check.json")["clip_state_dict_names_2_2"])


@pytest.mark.parametrize("layers", [2, 12])
def test_plain_forward(layers: int) -> None:
    golden = golden_set()
    arrays = golden.arrays("clip_base.npz")
    backbone = golden.clip(vision_layers=layers, text_layers=2)
    expected = arrays[f"v{layers}_image_features"]
    with torch.no_grad():
        images = backbone.encode_images(golden.images("images.clip", len(expected), backbone.image_size))
        texts = backbone.encode_ids(torch.from_numpy(arrays["token_ids"]).long())
        logits = backbone.logit_scale * torch.nn.functional.normalize(images) @ torch.nn.functional.normalize(texts).T
    assert_golden(images, expected, what="image features")
    assert_golden(texts, arrays[f"v{layers}_text_features"], what="text features")
    assert_golden(logits, arrays[f"v{layers}_logits_per_image"], what="logits")


@pytest.mark.parametrize("layers", [2, 12])
def test_equal_to_the_stock_model(layers: int) -> None:
    golden = golden_set()
    backbone = golden.clip(vision_layers=layers, text_layers=2)
    pixels = golden.images("images.clip", 2, backbone.image_size)
    ids = torch.from_numpy(golden.arrays("clip_base.npz")["token_ids"]).long()
    with torch.no_grad():
        assert_golden(backbone.encode_images(pixels), backbone.model.get_image_features(pixels).pooler_output, 1e-5)
        assert_golden(backbone.encode_ids(ids), backbone.model.get_text_features(ids).pooler_output, 1e-5)
        assert_golden(backbone.encode_ids(ids, cut=False), backbone.model.get_text_features(ids).pooler_output, 1e-5)
