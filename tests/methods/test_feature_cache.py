"""The feature cache: right values, and a miss whenever anything that matters changes."""

import hashlib
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from methods.interface import Images
from methods.parts import feature_cache, row_files
from methods.parts.backbone import Backbone, ClipBackbone, token_statistics
from methods.parts.feature_cache import FeatureCache, FeatureScope, image_features, layer_statistics
from tests.support.tiny_clip import tiny_model


class Album(Images):
    """Images in memory that count how often they are asked for."""

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
        return [hashlib.sha256(image.numpy().tobytes()).hexdigest() for image in self.all]


def album(count: int = 10, seed: int = 0) -> Album:
    return Album(torch.rand(count, 3, 32, 32, generator=torch.Generator().manual_seed(seed)))


@torch.no_grad()
def test_cached_values_are_the_backbones(tiny_backbone: Backbone) -> None:
    images, cache = album(), FeatureCache()
    normalised = tiny_backbone.normalize(images.all)
    for _ in range(2):
        features = image_features(tiny_backbone, images, cache=cache, batch_size=4)
        torch.testing.assert_close(features, tiny_backbone.encode_images(normalised))
        styles = layer_statistics(tiny_backbone, images, cache=cache, batch_size=4)
    assert images.asked == 20  # ten for each quantity, none the second time
    mu, sigma = token_statistics(tiny_backbone.run_vision_layers(tiny_backbone.image_tokens(normalised)))
    torch.testing.assert_close(styles["mu"], mu.transpose(0, 1))
    torch.testing.assert_close(styles["sigma"], sigma.transpose(0, 1))
    torch.testing.assert_close(styles["features"], features)


@pytest.fixture
def threads() -> Iterator[Callable[[int], None]]:
    """Sets torch's threads; puts the number back."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("count", [1, 2, 4])
def test_last_bits_do_not_depend_on_company_or_history(
    tiny_backbone: Backbone, threads: Callable[[int], None], count: int
) -> None:
    images = album()
    threads(count)
    together = image_features(tiny_backbone, images, cache=FeatureCache(), batch_size=4)
    assert torch.get_num_threads() == count
    cache = FeatureCache()
    order = torch.tensor([7, 3, 8])
    some = image_features(tiny_backbone, Album(images.all[order]), cache=cache, batch_size=4)
    assert torch.equal(some, together[order])
    assert torch.equal(image_features(tiny_backbone, images, cache=cache, batch_size=4), together)


def test_last_bits_do_not_depend_on_the_number_of_threads(
    tiny_backbone: Backbone, threads: Callable[[int], None]
) -> None:
    found = []
    for count in (1, 2, 4):
        threads(count)
        features = image_features(tiny_backbone, album(50), cache=FeatureCache(), batch_size=4)
        styles = layer_statistics(tiny_backbone, album(50), cache=FeatureCache(), batch_size=4)
        assert not features.requires_grad
        found.append({"image": features, **styles})
    for other in found[1:]:
        assert all(torch.equal(found[0][name], other[name]) for name in found[0])


def test_an_error_in_a_batch_puts_the_threads_back(tiny_backbone: Backbone, threads: Callable[[int], None]) -> None:
    class Torn(Album):
        def pixels(self, index: Tensor) -> Tensor:
            if 8 in index:
                raise OSError("torn")
            return super().pixels(index)

    threads(2)
    with pytest.raises(OSError, match="torn"):
        image_features(tiny_backbone, Torn(album().all), cache=FeatureCache(), batch_size=4)
    assert torch.get_num_threads() == 2


def test_equal_images_are_computed_once(tiny_backbone: Backbone) -> None:
    images = album(3)
    doubled = Album(torch.cat([images.all, images.all]))
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
        lambda: image_features(ClipBackbone(tiny_model(seed=1)), album(), cache=cache),
    ]
    for count, ask in enumerate(changed, start=2):
        ask()
        assert (cache.hits, cache.misses) == (10, 10 * count)

    scope = FeatureScope.of(tiny_backbone, "image_features")
    keys = {replace(scope, **{field.name: "other"}).key for field in fields(scope)}
    assert len(keys | {scope.key}) == 1 + len(fields(scope))


@pytest.fixture
def on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], FeatureCache]:
    """Makes caches over one folder that keep more than four images there, four at a time."""
    monkeypatch.setattr(feature_cache, "CHUNK", 4)
    monkeypatch.setattr(row_files, "SPARE", 0)
    return lambda: FeatureCache(tmp_path, limit=4 * 4 * 24 * 4)


def test_a_large_set_lies_in_files_and_outlives_the_process(
    tiny_backbone: Backbone, tmp_path: Path, on_disk: Callable[[], FeatureCache]
) -> None:
    expected = image_features(tiny_backbone, album(), cache=FeatureCache(), batch_size=4)
    cache = on_disk()
    assert torch.equal(image_features(tiny_backbone, album(), cache=cache, batch_size=4), expected)
    assert (cache._rows, cache.misses) == ({}, 10), "nothing of it is held in memory"
    again, images = on_disk(), album()
    assert torch.equal(image_features(tiny_backbone, images, cache=again, batch_size=4), expected)
    assert (images.asked, again.hits) == (0, 10)
    assert {file.name for file in tmp_path.rglob("*.*")} == {"about.json", "features.bin", "filled.bin"}
    image_features(tiny_backbone, album(10, seed=1), cache=again, batch_size=4)
    assert again.misses == 10, "another set of images has its own files"
    image_features(tiny_backbone, album(4, seed=2), cache=again, batch_size=4)
    assert len(again._rows) == 4, "a small set stays in memory"
    styles = layer_statistics(tiny_backbone, album(), cache=on_disk(), batch_size=4)
    for name, value in layer_statistics(tiny_backbone, album(), cache=FeatureCache(), batch_size=4).items():
        assert torch.equal(styles[name], value)


def test_a_killed_computation_goes_on_where_it_stopped(
    tiny_backbone: Backbone, on_disk: Callable[[], FeatureCache]
) -> None:
    class Dies(Album):
        def pixels(self, index: Tensor) -> Tensor:
            if self.asked > 5:  # one image that gives the size, four of the first write, killed in the third
                raise KeyboardInterrupt
            return super().pixels(index)

    with pytest.raises(KeyboardInterrupt):
        image_features(tiny_backbone, Dies(album().all), cache=on_disk(), batch_size=4)
    images, cache = album(), on_disk()
    features = image_features(tiny_backbone, images, cache=cache, batch_size=4)
    assert (images.asked, cache.hits, cache.misses) == (2, 8, 2)
    assert torch.equal(features, image_features(tiny_backbone, album(), cache=FeatureCache(), batch_size=4))


@pytest.mark.parametrize("name", ["about.json", "features.bin", "filled.bin"])
def test_damaged_files_are_begun_anew(
    tiny_backbone: Backbone, tmp_path: Path, on_disk: Callable[[], FeatureCache], name: str
) -> None:
    expected = image_features(tiny_backbone, album(), cache=on_disk(), batch_size=4).clone()
    (file,) = tmp_path.rglob(name)
    file.write_bytes(file.read_bytes()[:9])
    cache = on_disk()
    assert torch.equal(image_features(tiny_backbone, album(), cache=cache, batch_size=4), expected)
    assert cache.misses == 10
    again = on_disk()
    image_features(tiny_backbone, album(), cache=again, batch_size=4)
    assert again.misses == 0


def test_a_flipped_bit_costs_its_row_and_no_score(
    tiny_backbone: Backbone, tmp_path: Path, on_disk: Callable[[], FeatureCache]
) -> None:
    expected = image_features(tiny_backbone, album(), cache=on_disk(), batch_size=4).clone()
    (file,) = tmp_path.rglob("features.bin")
    data = bytearray(file.read_bytes())
    data[24 * 4 * 3 + 5] ^= 64  # in row 3
    file.write_bytes(data)
    for misses in (1, 0):
        cache = on_disk()
        assert torch.equal(image_features(tiny_backbone, album(), cache=cache, batch_size=4), expected)
        assert cache.misses == misses


def test_without_room_on_the_disk_features_are_held_in_memory(
    tiny_backbone: Backbone, on_disk: Callable[[], FeatureCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_files, "SPARE", 1 << 60)
    expected = image_features(tiny_backbone, album(), cache=FeatureCache(), batch_size=4)
    with pytest.warns(RuntimeWarning, match=r"features cannot be kept in .* \(No space left on device for 0\.0 GiB\)"):
        found = image_features(tiny_backbone, album(), cache=on_disk(), batch_size=4)
    assert torch.equal(found, expected)


def test_a_disk_that_fills_up_costs_nothing_that_is_stored(
    tiny_backbone: Backbone, on_disk: Callable[[], FeatureCache], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = image_features(tiny_backbone, album(), cache=FeatureCache(), batch_size=4)
    write = row_files.RowFiles.write

    def fills_up(files: row_files.RowFiles, rows: np.ndarray, values: dict[str, Tensor]) -> None:
        if files.filled.sum() >= 8:
            raise OSError(28, "No space left on device")
        write(files, rows, values)

    monkeypatch.setattr(row_files.RowFiles, "write", fills_up)
    images = album()
    with pytest.warns(RuntimeWarning, match="No space left on device"):
        found = image_features(tiny_backbone, images, cache=on_disk(), batch_size=4)
    assert torch.equal(found, expected)
    assert images.asked == 1 + 10 + 2, "one gives the size, and only the two that were not stored are computed again"


def test_a_deletion_that_was_killed_leaves_nothing_that_counts_as_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_files, "SPARE", 0)
    rows, values = np.arange(3), {"x": torch.ones(3, 2)}
    row_files.RowFiles(tmp_path / "f", 3).write(rows, values)
    (tmp_path / "f" / "x.bin").write_bytes(b"damaged")

    def killed(folder: Path, ignore_errors: bool) -> None:
        (folder / "about.json").unlink()  # a folder is emptied in any order
        raise KeyboardInterrupt

    with monkeypatch.context() as context, pytest.raises(KeyboardInterrupt):
        context.setattr(row_files.shutil, "rmtree", killed)
        row_files.RowFiles(tmp_path / "f", 3)
    files = row_files.RowFiles(tmp_path / "f", 3)
    files.write(rows[:1], {"x": torch.ones(1, 2)})
    assert files.filled.tolist() == [True, False, False]


def test_rows_of_another_kind_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_files, "SPARE", 0)
    files = row_files.RowFiles(tmp_path / "f", 3)
    files.write(np.arange(1), {"x": torch.ones(1, 2)})
    for values in ({}, {"y": torch.ones(1, 2)}, {"x": torch.ones(1, 2).half()}, {"x": torch.ones(1, 3)}):
        with pytest.raises(ValueError, match="delete"):
            files.write(np.arange(1, 2), values)
    assert files.filled.tolist() == [True, False, False]


def test_a_large_set_is_never_in_memory_as_a_whole(tmp_path: Path) -> None:
    """64 MiB of values in chunks of 2 MiB; anonymous memory alone counts, since pages of files can be dropped."""
    script = """
import sys
from pathlib import Path
import torch
from methods.parts.feature_cache import FeatureCache, FeatureScope
import methods.parts.row_files as row_files

def anonymous():
    return int(next(x for x in Path("/proc/self/status").read_text().splitlines() if x[:7] == "RssAnon").split()[1])

row_files.SPARE = 0
peak = []
def compute(index):
    peak.append(anonymous())
    return {"x": index[:, None].float().expand(-1, 128).clone()}

content = [str(number) for number in range(1 << 17)]
cache = FeatureCache(Path(sys.argv[1]), limit=1 << 20)
compute(torch.arange(4096))
before = anonymous()
found = cache.lookup(FeatureScope("x", "", "", ""), content, compute)["x"]
assert found.shape == (1 << 17, 128) and all(torch.equal(found[i], torch.full((128,), float(i))) for i in (0, 99999))
print(max(*peak, anonymous()) - before)
"""
    if not Path("/proc/self/status").exists():
        pytest.skip("/proc is needed to read the memory")
    done = subprocess.run([sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) / 1024 < 32, f"{int(done.stdout) / 1024:.0f} MiB more than before"


def test_memory_is_bounded_and_the_oldest_go_first(tiny_backbone: Backbone) -> None:
    cache = FeatureCache(limit=6 * 24 * 4)  # six images
    images = album()
    features = image_features(tiny_backbone, images, cache=cache)
    assert features.shape == (10, 24)
    image_features(tiny_backbone, Album(images.all[4:]), cache=cache)
    assert (cache.hits, cache.misses) == (6, 10)
    image_features(tiny_backbone, Album(images.all[:4]), cache=cache)
    assert (cache.hits, cache.misses) == (6, 14)
    cache.clear()
    image_features(tiny_backbone, Album(images.all[:4]), cache=cache)
    assert (cache.hits, cache.misses) == (0, 4)
