"""An image becomes the pixels that the checkpoint's own image processor makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from methods.parts.backbone import Backbone, BackboneError
from methods.parts.preprocessing import ImageProcessing, ProcessingError, read_processor
from tests.support.tiny_clip import tiny_clip_folder

SIDE = 32
SQUARE = {"height": SIDE, "width": SIDE}


def image(height: int, width: int, seed: int = 0) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (-(-height // 4), -(-width // 4), 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


SHAPES = [(80, 160), (161, 47), (32, 32), (10, 15), (1, 90), (90, 1), (33, 31), (1, 1)]

CONFIGS: dict[str, dict[str, Any]] = {
    "shortest edge": {"size": {"shortest_edge": SIDE}, "crop_size": SQUARE},
    "old numbers": {"size": SIDE, "crop_size": SIDE},
    "squash": {"size": SQUARE, "do_center_crop": False},
    "squash as a list": {"size": [SIDE, SIDE], "do_center_crop": False},
    "larger, then cropped": {"size": {"shortest_edge": 40}, "crop_size": SQUARE},
    "smaller, then padded": {"size": {"shortest_edge": 21}, "crop_size": SQUARE},
    "not square, then cropped": {"size": {"height": 45, "width": 20}, "crop_size": SQUARE},
    "only cropped": {"do_resize": False, "crop_size": SQUARE},
    "size missing": {"crop_size": SQUARE},
    "defaults of ViT's old int": {"size": SIDE, "default_to_square": True, "do_center_crop": False},
    **{
        f"filter {number}": {"size": {"shortest_edge": SIDE}, "crop_size": SQUARE, "resample": number}
        for number in range(6)
    },
    "other statistics": {"size": SQUARE, "crop_size": SQUARE, "image_mean": [0.1, 0.2, 0.3], "image_std": [1, 2, 3]},
    "not normalised": {"size": SQUARE, "crop_size": SQUARE, "do_normalize": False},
    "another factor": {"size": SQUARE, "crop_size": SQUARE, "rescale_factor": 1 / 127.5, "image_mean": [1, 1, 1]},
    "not rescaled": {"size": SQUARE, "crop_size": SQUARE, "do_rescale": False, "image_std": [99, 98, 97]},
    "neither": {"size": SQUARE, "crop_size": SQUARE, "do_rescale": False, "do_normalize": False},
}


@pytest.mark.parametrize("name", CONFIGS)
def test_pixels_are_those_of_the_processor(name: str) -> None:
    how, theirs = read_processor(CONFIGS[name], SIDE), CLIPImageProcessorPil(**CONFIGS[name])
    assert ImageProcessing.of_record(json.loads(json.dumps(how.record())), SIDE) == how
    for number, (height, width) in enumerate(SHAPES):
        shown = image(height, width, number)
        pixels = how.apply(shown).astype(np.float64) / 255
        ours = (pixels - np.array(how.mean)[:, None, None]) / np.array(how.std)[:, None, None]
        expected = np.asarray(theirs(images=shown)["pixel_values"][0])
        assert ours.shape == expected.shape == (3, SIDE, SIDE)
        np.testing.assert_allclose(ours, expected, rtol=1e-4, atol=1e-4)


def test_a_very_long_image_is_resized_where_it_is_seen() -> None:
    config = CONFIGS["shortest edge"]
    shown = image(2, 80_000)
    expected = np.asarray(CLIPImageProcessorPil(**config, do_normalize=False)(images=shown)["pixel_values"][0])
    assert np.abs(read_processor(config, SIDE).apply(shown) / 255 - expected).max() <= 1.01 / 255


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"crop_size": 31}, "crop_size 31 x 31, but the model takes 32 x 32"),
        ({"crop_size": {"shortest_edge": 32}}, "crop_size .*: give {'height': H, 'width': W}"),
        ({"do_center_crop": False}, r"size {'shortest_edge': 32} with do_center_crop false"),
        ({"size": {"height": 64, "width": 32}, "do_center_crop": False}, "size 64 x 32, but the model takes"),
        ({"size": {"shortest_edge": 32, "longest_edge": 64}}, "size .*longest_edge.*: give"),
        ({"size": {"shortest_edge": -1}}, "size .*: give"),
        ({"size": "big"}, "size 'big': give"),
        ({"do_resize": False, "do_center_crop": None}, "do_resize and do_center_crop false"),
        ({"do_pad": True}, "do_pad true, which is not supported"),
        ({"do_resize": "yes"}, "do_resize 'yes': give true or false"),
        ({"resample": None}, "resample null: give a number"),
        ({"resample": 3.0}, "resample 3.0: give a number"),
        ({"resample": "bicubic"}, "resample 'bicubic': give a number"),
        ({"size": {"longest_edge": 32}}, "size .*longest_edge.*: give"),
        ({"rescale_factor": 0}, "rescale_factor 0: give a number above 0"),
        ({"do_rescale": False}, "do_rescale false with image_mean"),
        ({"image_std": [1, float("nan"), 1]}, "image_mean .*three numbers each"),
        ({"image_processor_type": "BlipImageProcessor"}, "image_processor_type 'BlipImageProcessor'"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_key(change: dict[str, Any], reason: str, tmp_path: Path) -> None:
    config = {"size": {"shortest_edge": SIDE}, "crop_size": SQUARE, **change}
    with pytest.raises(ProcessingError, match=reason):
        read_processor(config, SIDE)
    folder = tiny_clip_folder(tmp_path / "clip")
    (folder / "preprocessor_config.json").write_text(json.dumps(config))
    with pytest.raises(BackboneError, match=f"preprocessor_config.json has {reason}") as caught:
        Backbone.load(folder)
    assert "\n" not in str(caught.value)


def test_a_missing_crop_size_is_named_as_missing() -> None:
    with pytest.raises(ProcessingError, match="crop_size missing, which means 224 x 224, but the model takes 32 x 32"):
        read_processor({"size": {"shortest_edge": SIDE}}, SIDE)
    assert read_processor({}, 224) == ImageProcessing.clip(224)


def test_the_official_rules_take_the_central_square_as_stored() -> None:
    how = read_processor({**CONFIGS["squash"], "resample": 0, "image_mean": [0.1, 0.2, 0.3]}, SIDE)
    official = how.official()
    assert (official.resize, official.crop, official.resample) == ("fit", None, "bicubic")
    assert (official.orientation, official.mean) == ("as stored", how.mean)
    assert how.geometry() != official.geometry()


def test_a_backbone_carries_its_processing(tmp_path: Path) -> None:
    folder = tiny_clip_folder(tmp_path / "clip")
    (folder / "preprocessor_config.json").write_text(json.dumps(CONFIGS["larger, then cropped"]))
    backbone = Backbone.load(folder)
    assert backbone.processing == read_processor(CONFIGS["larger, then cropped"], SIDE)
    assert backbone.clone().preprocessing == backbone.preprocessing
    shown = image(60, 100)
    pixels = torch.from_numpy(backbone.processing.apply(shown))[None].float() / 255
    expected = CLIPImageProcessorPil(**CONFIGS["larger, then cropped"])(images=shown, return_tensors="pt")
    theirs = backbone.encode_images(expected["pixel_values"].float())
    assert torch.cosine_similarity(backbone.encode_images(backbone.normalize(pixels)), theirs).item() > 0.99999
