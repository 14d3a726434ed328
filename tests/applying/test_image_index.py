"""Embedded folders: equal to the method's own embeddings, resumed, brought up to date, searched exactly."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet

from benchmarks.applying import image_index
from benchmarks.applying.class_names import classify_images, read_names
from benchmarks.applying.image_index import (
    NOT_UTF8,
    ApplyError,
    ImageIndex,
    embed_images,
    find_images,
    image_query,
    text_query,
)
from benchmarks.datasets.decoding import decode
from benchmarks.evaluation.ranking import rank
from methods.floors import RawPixel
from methods.parts.backbone import Backbone
from methods.zero_shot import ZeroShot


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    monkeypatch.setenv("UCDR_BENCH_WORKERS", "1")
    monkeypatch.setattr("methods.parts.row_files.SPARE", 0)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Nine images in two folders, a broken one, a text and a hidden file."""
    folder, random = tmp_path / "photos", np.random.default_rng(0)
    for number in range(9):
        path = folder / ("a", "b/c")[number % 2] / f"{number}.{('png', 'JPG')[number % 3 == 0]}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (40, 50, 3), dtype=np.uint8)).save(path)
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "notes.txt").write_text("no image")
    (folder / ".hidden.png").write_bytes((folder / "a" / "2.png").read_bytes())
    return folder


@pytest.fixture
def method(tiny_backbone: Backbone) -> ZeroShot:
    return ZeroShot(tiny_backbone)


def expected(method: Any, index: ImageIndex) -> torch.Tensor:
    """Each image decoded and encoded by itself."""
    pixels = [decode(Path(path).read_bytes(), method.backbone.processing) for path in index.paths]
    return torch.cat([method.encode_images(torch.from_numpy(one)[None].float() / 255) for one in pixels])


def test_every_image_is_embedded_as_the_method_does_and_broken_ones_are_named(method: ZeroShot, photos: Path) -> None:
    index, broken = embed_images(method, "k", find_images([photos]), photos.parent / "out")
    assert list(broken) == ["broken.png"] and "not an image" in broken["broken.png"]
    assert (photos.parent / "out" / "broken.csv").read_text().splitlines()[1].startswith("broken.png,")
    assert index.names == sorted(index.names) and len(index) == 9 and "b/c/1.png" in index.names
    torch.testing.assert_close(torch.from_numpy(np.array(index.embeddings)), expected(method, index))
    assert isinstance(index.embeddings, np.memmap)
    index.write_parquet(photos.parent / "all.parquet")
    table = parquet.read_table(photos.parent / "all.parquet").to_pydict()
    assert table["name"] == index.names
    assert np.array_equal(np.array(table["embedding"], np.float32), index.embeddings)


def test_a_run_that_is_stopped_goes_on_and_gives_the_same_bytes(
    method: ZeroShot, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_index, "CHUNK", 2)
    found, out = find_images([photos]), photos.parent / "out"
    embed_images(method, "k", found, photos.parent / "whole")
    encoded: list[int] = []
    encode = image_index.encode_pixels

    def stopping(run: Any, pixels: np.ndarray, device: Any) -> torch.Tensor:
        if sum(encoded) >= 4:
            raise KeyboardInterrupt
        encoded.append(len(pixels))
        return encode(run, pixels, device)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(image_index, "encode_pixels", stopping)
        embed_images(method, "k", found, out)
    with pytest.raises(ApplyError, match="no embedded images"):
        ImageIndex(out)
    rest: list[int] = []
    monkeypatch.setattr(
        image_index,
        "encode_pixels",
        lambda run, pixels, device: (rest.append(len(pixels)), encode(run, pixels, device))[1],
    )
    embed_images(method, "k", found, out)
    assert sum(encoded) + sum(rest) == 9 and sum(rest) < 9
    for name in ("embeddings.npy", "images.parquet"):
        assert (out / name).read_bytes() == (photos.parent / "whole" / name).read_bytes()
    assert not (out / "partial").exists()


def test_only_new_and_changed_images_are_encoded_again(
    method: ZeroShot, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = photos.parent / "out"
    embed_images(method, "k", find_images([photos]), out)
    shutil.copy(photos / "a" / "2.png", photos / "a" / "1new.png")
    Image.new("RGB", (30, 30), "red").save(photos / "a" / "4.png")
    (photos / "a" / "8.png").unlink()
    Image.new("RGB", (30, 30), "blue").save(photos / "broken.png")
    encoded: list[int] = []
    encode = image_index.encode_pixels

    def counting(run: Any, pixels: np.ndarray, device: Any) -> torch.Tensor:
        encoded.append(len(pixels))
        return encode(run, pixels, device)

    monkeypatch.setattr(image_index, "encode_pixels", counting)
    index, broken = embed_images(method, "k", find_images([photos]), out)
    assert (sum(encoded), broken, (out / "broken.csv").exists()) == (3, {}, False)
    torch.testing.assert_close(torch.from_numpy(np.array(index.embeddings)), expected(method, index))
    assert embed_images(method, "k", find_images([photos]), out)[1] == {} and sum(encoded) == 3
    embed_images(method, "other weights", find_images([photos]), out)
    assert sum(encoded) == 3 + len(index)


def test_the_search_is_the_ranking_and_its_index_is_kept_and_made_again_when_cut(
    method: ZeroShot, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index, _ = embed_images(method, "k", find_images([photos]), photos.parent / "out")
    queries = torch.cat([image_query(method, photos / "a" / "2.png"), text_query(method, "cat")])
    hits = index.search(queries, 4)
    ranked = rank(queries, index.embeddings, np.zeros(2, int), np.zeros(9, int), ks=(), top=4)
    assert np.array_equal(hits.ids, ranked.top_ids) and np.array_equal(hits.scores, ranked.top_scores)
    assert index.names[hits.ids[0, 0]] == "a/2.png" and hits.scores[0, 0] == pytest.approx(1, abs=1e-6)
    file = photos.parent / "out" / "search.faiss"
    whole = file.read_bytes()
    made: list[int] = []
    build = image_index.scan_index
    monkeypatch.setattr(image_index, "scan_index", lambda gallery: (made.append(1), build(gallery))[1])
    assert np.array_equal(ImageIndex(index.folder).search(queries, 4).ids, hits.ids) and not made
    file.write_bytes(whole[:-8])
    assert np.array_equal(ImageIndex(index.folder).search(queries, 4).ids, hits.ids) and made == [1]
    assert file.read_bytes() == whole


def test_classes_are_those_of_the_method(method: ZeroShot, photos: Path) -> None:
    index, _ = embed_images(method, "k", find_images([photos]), photos.parent / "out")
    names = ["cat", "dog", "red bicycle"]
    classes, values = classify_images(method, index, names, 2)
    pixels = torch.stack(
        [torch.from_numpy(decode(Path(p).read_bytes(), method.backbone.processing)) for p in index.paths]
    )
    best = method.classify(pixels.float() / 255, names).softmax(dim=1).topk(2, dim=1)
    assert np.array_equal(classes, best.indices.numpy())
    np.testing.assert_allclose(values, best.values.numpy(), rtol=1e-4)

    class Own(ZeroShot):
        def classify(self, pixels: torch.Tensor, names: Any) -> torch.Tensor:
            return -super().classify(pixels, names)

    worst, _ = classify_images(Own(method.backbone), index, names, 3)
    assert np.array_equal(worst[:, ::-1][:, :2], classes)
    Path(index.paths[0]).unlink()
    with pytest.raises(ApplyError, match="give IMAGES"):
        classify_images(Own(method.backbone), index, names, 3)


def test_a_method_without_text_or_cosine_still_searches_by_image(tiny_backbone: Backbone, photos: Path) -> None:
    floor = RawPixel(tiny_backbone)
    index, _ = embed_images(floor, "k", find_images([photos]), photos.parent / "out")
    hits = index.search(image_query(floor, photos / "a" / "2.png"), 3)
    assert index.names[hits.ids[0, 0]] == "a/2.png"
    with pytest.raises(ApplyError, match="raw_pixel"):
        text_query(floor, "cat")


def test_what_cannot_be_used_is_one_line(method: ZeroShot, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ApplyError, match="no such file"):
        find_images([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ApplyError, match="no images there"):
        find_images([tmp_path / "empty"])
    with pytest.raises(ApplyError, match=r"broken\.png: not an image"):
        embed_images(method, "k", find_images([photos / "broken.png"]), tmp_path / "out")
    found, _ = embed_images(method, "k", find_images([photos]), tmp_path / "out")
    (tmp_path / "out" / "embeddings.npy").write_bytes(b"cut")
    with pytest.raises(ApplyError, match="damaged"):
        ImageIndex(tmp_path / "out")
    for text, message in (
        ("cat", "two or more"),
        ("cat,dog,cat", "'cat' is named twice"),
        ("@nowhere", "cannot be read"),
    ):
        with pytest.raises(ApplyError, match=message):
            read_names(text)
    with pytest.raises(ApplyError, match=r"^--text: .* tokens, backbone .* reads"):
        text_query(method, "on and on " * 40)
    with pytest.raises(ApplyError, match=r"^--classify: .* tokens, backbone .* reads"):
        classify_images(method, found, ["cat", "on and on " * 40], 1)
    assert read_names("cat, red dog") == ["cat", "red dog"]


def test_the_same_file_is_listed_once_and_names_of_two_places_differ(photos: Path) -> None:
    both = find_images([photos, photos / "a", photos / "a" / "2.png"])
    assert len({image.path for image in both}) == len(both) == 10
    assert all(str(photos) in image.name for image in both)


def test_a_name_that_is_not_utf8_is_left_out_before_anything_is_encoded(method: ZeroShot, photos: Path) -> None:
    try:
        (photos / "a" / "2.png").rename(photos / "a" / os.fsdecode(b"\xff.png"))
    except OSError:
        pytest.skip("this file system takes UTF-8 names only")
    found, out = find_images([photos]), photos.parent / "out"
    for _ in range(2):
        index, broken = embed_images(method, "k", found, out)
        assert [reason for name, reason in broken.items() if name == r"a/\udcff.png"] == [NOT_UTF8]
        assert len(index) == len(found) - len(broken) and all(name.isprintable() for name in index.names)
        assert r"a/\udcff.png" in (out / "broken.csv").read_text(encoding="utf-8")
    with pytest.raises(ApplyError, match=r"udcff.*rename it"):
        embed_images(method, "k", [image for image in found if image.name not in index.names][:1], photos.parent / "no")


def test_the_list_of_broken_images_is_that_of_the_last_run(method: ZeroShot, photos: Path) -> None:
    out = photos.parent / "out"
    embed_images(method, "k", find_images([photos]), out)
    assert "broken.png" in (out / "broken.csv").read_text()
    (photos / "late.png").write_bytes(b"no")
    embed_images(method, "k", find_images([photos]), out)
    assert "late.png" in (out / "broken.csv").read_text()
    for name in ("late.png", "broken.png"):
        (photos / name).unlink()
    assert embed_images(method, "k", find_images([photos]), out)[1] == {}
    assert not (out / "broken.csv").exists()


def test_contact_sheets_in_the_folder_of_embeddings_are_no_images_to_embed(photos: Path) -> None:
    out = photos / "a" / "applied"
    out.mkdir()
    (out / "hits.png").write_bytes((photos / "a" / "2.png").read_bytes())
    names = {image.name for image in find_images([photos])}
    assert names - {image.name for image in find_images([photos], out)} == {"a/applied/hits.png"}
    assert [image.name for image in find_images([out], out)] == ["hits.png"]  # named itself, it is meant
