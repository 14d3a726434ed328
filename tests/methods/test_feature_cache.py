"""The feature cache: right values, and a miss whenever anything that matters changes."""

import hashlib
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from methods.parts.backbone import Backbone, token_statistics
from methods.parts.feature_cache import FeatureCache, FeatureScope, image_features, layer_statistics
from tests.support.tiny_clip import tiny_model


class Album:
    """Pictures in memory that count how often they are asked for."""

    def __init__(self, pixels: Tensor) -> None:
        self.all = pixels
        self.asked = 0

    def __len__(self) -> int:
        return len(self.all)

    def pixels(self, index: Tensor) -> Tensor:
        self.asked += len(index)
        return self.all[index]

    @property
    def content(self) -> Sequence[str]:
        return [hashlib.sha256(picture.numpy().tobytes()).hexdigest() for picture in self.all]


def album(count: int = 10, seed: int = 0) -> Album:
    return Album(torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed)))


@torch.no_grad()
def test_cached_values_are_the_backbones(tiny_backbone: Backbone) -> None:
    pictures, cache = album(), FeatureCache()
    normalised = tiny_backbone.normalize(pictures.all)
    for _ in range(2):
        features = image_features(tiny_backbone, pictures, cache=cache, batch_size=4)
        torch.testing.assert_close(features, tiny_backbone.encode_images(normalised))
        styles = layer_statistics(tiny_backbone, pictures, cache=cache, batch_size=4)
    assert pictures.asked == 20  # ten for each quantity, none the second time
    mu, sigma = token_statistics(tiny_backbone.run_vision_layers(tiny_backbone.image_tokens(normalised)))
    torch.testing.assert_close(styles["mu"], mu.transpose(0, 1))
    torch.testing.assert_close(styles["sigma"], sigma.transpose(0, 1))
    torch.testing.assert_close(styles["features"], features)


def test_last_bits_do_not_depend_on_company_or_history(tiny_backbone: Backbone) -> None:
    pictures = album()
    together = image_features(tiny_backbone, pictures, cache=FeatureCache(), batch_size=4)
    cache = FeatureCache()
    order = torch.tensor([7, 3, 8])
    some = image_features(tiny_backbone, Album(pictures.all[order]), cache=cache, batch_size=4)
    assert torch.equal(some, together[order])
    assert torch.equal(image_features(tiny_backbone, pictures, cache=cache, batch_size=4), together)


def test_equal_pictures_are_computed_once(tiny_backbone: Backbone) -> None:
    pictures = album(3)
    doubled = Album(torch.cat([pictures.all, pictures.all]))
    features = image_features(tiny_backbone, doubled, cache=FeatureCache())
    assert doubled.asked == 3
    assert torch.equal(features[:3], features[3:])
    assert image_features(tiny_backbone, album(0), cache=FeatureCache()).shape == (0, 24)


def test_every_part_of_the_key_matters(tiny_backbone: Backbone, tiny_folder: Path) -> None:
    cache = FeatureCache()
    image_features(tiny_backbone, album(), cache=cache)
    assert (cache.hits, cache.misses) == (0, 10)
    image_features(tiny_backbone.clone(), album(), cache=cache)  # another object, the same content
    assert (cache.hits, cache.misses) == (10, 10)

    trained = tiny_backbone.clone()
    with torch.no_grad():
        trained.class_token[0] += 1
    sharper = tiny_backbone.clone()
    sharper.preprocessing["std"] = [0.1, 0.1, 0.1]
    changed = [
        lambda: image_features(trained, album(), cache=cache),
        lambda: image_features(sharper, album(), cache=cache),
        lambda: image_features(tiny_backbone, album(), cache=cache, statistics="imagenet"),
        lambda: image_features(Backbone.load(tiny_folder, precision="bf16"), album(), cache=cache),
        lambda: image_features(tiny_backbone, album(seed=1), cache=cache),
        lambda: layer_statistics(tiny_backbone, album(), cache=cache)["features"],
        lambda: image_features(Backbone(tiny_model(seed=1)), album(), cache=cache),
    ]
    for count, ask in enumerate(changed, start=2):
        ask()
        assert (cache.hits, cache.misses) == (10, 10 * count)

    scope = FeatureScope.of(tiny_backbone, "image_features")
    keys = {replace(scope, **{field.name: "other"}).key for field in fields(scope)}
    assert len(keys | {scope.key}) == 1 + len(fields(scope))


def test_a_folder_outlives_the_process(tiny_backbone: Backbone, tmp_path: Path) -> None:
    first = image_features(tiny_backbone, album(), cache=FeatureCache(tmp_path))
    again = FeatureCache(tmp_path)
    pictures = album()
    assert torch.equal(image_features(tiny_backbone, pictures, cache=again), first)
    assert pictures.asked == 0
    more = Album(torch.cat([album().all, album(5, seed=1).all]))
    image_features(tiny_backbone, more, cache=again)
    assert more.asked == 5
    last = FeatureCache(tmp_path)
    image_features(tiny_backbone, more, cache=last)
    assert last.misses == 0
    files = list(tmp_path.rglob("*.*"))
    assert len(files) == 2
    assert {file.suffix for file in files} == {".safetensors"}


def test_a_broken_file_is_reported_and_computed_again(tiny_backbone: Backbone, tmp_path: Path) -> None:
    first = image_features(tiny_backbone, album(), cache=FeatureCache(tmp_path))
    (file,) = tmp_path.rglob("*.safetensors")
    file.write_bytes(file.read_bytes()[:100])
    with pytest.warns(UserWarning, match=f"{file.name} cannot be read"):
        assert torch.equal(image_features(tiny_backbone, album(), cache=FeatureCache(tmp_path)), first)
    repaired = FeatureCache(tmp_path)
    image_features(tiny_backbone, album(), cache=repaired)
    assert repaired.misses == 0


def test_memory_is_bounded_and_the_oldest_go_first(tiny_backbone: Backbone) -> None:
    cache = FeatureCache(limit=6 * 24 * 4)  # six pictures
    pictures = album()
    features = image_features(tiny_backbone, pictures, cache=cache)
    assert features.shape == (10, 24)
    image_features(tiny_backbone, Album(pictures.all[4:]), cache=cache)
    assert (cache.hits, cache.misses) == (6, 10)
    image_features(tiny_backbone, Album(pictures.all[:4]), cache=cache)
    assert (cache.hits, cache.misses) == (6, 14)
    cache.clear()
    image_features(tiny_backbone, Album(pictures.all[:4]), cache=cache)
    assert (cache.hits, cache.misses) == (0, 4)
