"""The builder of PictoDomains: names, matching, duplicates, splits and determinism on small made-up sources."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from benchmarks.datasets.build import picto_build, picto_drawings
from benchmarks.datasets.build.picto_build import Curation
from benchmarks.datasets.build.picto_drawings import LabelledDrawing
from benchmarks.datasets.build.picto_sources import DOMAIN_COLLECTIONS, Drawing

PREFIXES = frozenset({"pet-animals", "food-drink", "food"})


@pytest.mark.parametrize(
    ("name", "base"),
    [
        ("beer-stein-02-outline", "beer-stein"),
        ("crown-two", "crown"),
        ("bell", "bell"),
        ("circle-filled", "circle"),
        ("outline", "outline"),
        ("traffic_light", "traffic-light"),
    ],
)
def test_base_name_drops_style_and_number(name: str, base: str) -> None:
    assert picto_build.base_name(name) == base


@pytest.mark.parametrize(
    ("name", "collection", "design"),
    [
        ("beer-stein-02-outline", "hugeicons", "beer-stein-02"),
        ("bell-filled", "tabler", "bell"),
        ("ice-cream-15", "maki", "ice-cream"),
        ("ice-cream-15", "tabler", "ice-cream-15"),
        ("bicycle-bike-flat", "streamline-plump-color", "bicycle-bike"),
    ],
)
def test_design_name_keeps_numbers_that_name_another_drawing(name: str, collection: str, design: str) -> None:
    assert picto_drawings.design_name(name, collection) == design


@pytest.mark.parametrize(
    ("plural", "singular"),
    [
        ("cherries", "cherry"),
        ("boxes", "box"),
        ("glass", "glass"),
        ("dogs", "dog"),
        ("cactus", "cactus"),
        ("pie", "pie"),
        ("bus", "bus"),
    ],
)
def test_singular(plural: str, singular: str) -> None:
    assert picto_build.singular(plural) == singular


def test_category_prefixes_are_stripped_only_when_known() -> None:
    assert picto_build.candidate_phrases("pet-animals-cats-2", PREFIXES) == [
        *("pet-animals-cats", "pet-animals-cat", "cats", "cat")
    ]
    assert picto_build.candidate_phrases("shopping-cart-off", PREFIXES) == ["shopping-cart-off"]


# --- made-up sources --------------------------------------------------------------------------------------------------

THINGS = ("cat", "key", "cup")
_ONE_EACH = {domain: prefixes[0] for domain, prefixes in DOMAIN_COLLECTIONS.items() if domain != "clipart"}


def _drawing(thing: int, variant: int) -> str:
    """An SVG body on a 24 x 24 canvas; things and variants differ in shape, not in colour alone."""
    generator = np.random.default_rng([thing, variant])
    shapes = [
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{w:.1f}" height="{h:.1f}" fill="#0{colour}0"/>'
        for x, y, w, h, colour in generator.uniform([0, 0, 2, 2, 0], [20, 20, 12, 12, 9], size=(5, 5)).round(1).tolist()
        for colour in [int(colour)]
    ]
    return "".join(shapes)


@pytest.fixture
def sources(tmp_path: Path) -> tuple[Path, Path]:
    """An iconify folder with one collection a domain (two images a thing) and a clip-art folder with one cat."""
    iconify, clipart = tmp_path / "package", tmp_path / "clipart"
    (iconify / "json").mkdir(parents=True)
    information = {}
    for number, (domain, prefix) in enumerate(_ONE_EACH.items()):
        information[prefix] = {
            "name": prefix.title(),
            "author": {"name": f"Author of {prefix}", "url": "https://example.org"},
            "license": {"title": "MIT", "spdx": "MIT", "url": "https://example.org/licence"},
            "total": 6,
            "palette": True,
        }
        bodies = {}
        for thing, name in enumerate(THINGS):
            variants = ("", "-2", "-3") if domain == "flat" else ("", "-2")
            for variant, suffix in enumerate(variants):
                bodies[f"{name}{suffix}"] = {"body": _drawing(thing, 10 * number + variant)}
            bodies[f"{name}-off"] = {"body": _drawing(thing, 100 + number)}
        icons = {"prefix": prefix, "icons": bodies, "width": 24, "height": 24}
        (iconify / "json" / f"{prefix}.json").write_text(json.dumps(icons))
    (iconify / "collections.json").write_text(json.dumps(information))
    (clipart / "animals").mkdir(parents=True)
    svg = f'<svg xmlns="http://www.w3.org/2000/svg" width="24" height="24">{_drawing(0, 999)}</svg>'
    (clipart / "animals" / "gatto_01.svg").write_text(svg)
    return iconify, clipart


@pytest.fixture
def curation(tmp_path: Path) -> Curation:
    entry = {"offset": 1, "kind": "artifact", "phrases": []}
    content = {
        "category_prefixes": [],
        "classes": {name: {**entry, "synset": f"{name}.n.01"} for name in THINGS},
        "clipart": {"cat": ["animals/gatto_01"]},
        "pictures": {"noto:key-2": {"drop": "not a key"}, "twemoji:none": {"class": "cat", "why": "shows a cat"}},
        "dropped_classes": {"star": "a shape"},
    }
    path = tmp_path / "curation.json"
    path.write_text(json.dumps(content))
    return picto_build.load_curation(path)


def test_matching_takes_phrases_and_leaves_compounds_and_dropped_images(
    sources: tuple[Path, Path], curation: Curation
) -> None:
    found = {image.key: (image.label, image.domain) for image in picto_build.match(*sources, curation)}
    assert found["noto:cat"] == ("cat", "flat")
    assert found["noto:cat-2"] == ("cat", "flat")
    assert found["openclipart:animals/gatto_01"] == ("cat", "clipart")
    assert "noto:cat-off" not in found
    assert "noto:key-2" not in found


def test_two_builds_give_the_same_bytes(sources: tuple[Path, Path], curation: Curation, tmp_path: Path) -> None:
    files = []
    for run in ("one", "two"):
        picto_build.build(*sources, tmp_path / run, curation=curation, contact_sheets=tmp_path / run / "sheets")
        files.append(
            {p.relative_to(tmp_path / run): p.read_bytes() for p in (tmp_path / run).rglob("*") if p.is_file()}
        )
    assert files[0] == files[1]
    assert {path.name for path in files[0]} >= {
        *(
            picto_build.PARQUET,
            picto_build.SPLITS,
            "CARD.md",
            "ATTRIBUTION.md",
            "contact_sheet.png",
            "classes_00.png",
        )
    }


def test_built_pack_keeps_pixels_and_provenance(sources: tuple[Path, Path], curation: Curation, tmp_path: Path) -> None:
    table = pd.read_parquet(picto_build.build(*sources, tmp_path / "out", curation=curation)).set_index("id")
    assert set(table["class"]) == set(THINGS)
    row = table.loc["flat/cat/noto:cat"]
    assert (row["author"], row["license"], row["synset"]) == ("Author of noto", "MIT", "cat.n.01")
    drawn = picto_build.draw([p for p in picto_build.match(*sources, curation) if p.key == "noto:cat"])[0]
    image = Image.open(io.BytesIO(row["image"]["bytes"]))
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), drawn.pixels)
    assert "Author of noto" in (tmp_path / "out" / "ATTRIBUTION.md").read_text()


def test_missing_sources_are_named_with_the_command_that_fetches_them(
    sources: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    iconify, clipart = sources
    assert picto_build.main([str(tmp_path / "nowhere"), str(clipart), "--out", str(tmp_path / "out")]) == 2
    message = capsys.readouterr().err
    assert "nowhere" in message
    assert "npm pack @iconify/json" in message
    assert len(message.strip().splitlines()) == 1
    empty = tmp_path / "empty"
    empty.mkdir()
    assert picto_build.main([str(iconify), str(empty), "--out", str(tmp_path / "out")]) == 2
    assert "apt-get download openclipart-svg" in capsys.readouterr().err


def test_closed_licence_is_refused(sources: tuple[Path, Path], curation: Curation) -> None:
    index = sources[0] / "collections.json"
    information = json.loads(index.read_text())
    information["noto"]["license"] = {"spdx": "CC-BY-SA-4.0"}
    index.write_text(json.dumps(information))
    with pytest.raises(ValueError, match=r"noto: licence CC-BY-SA-4\.0"):
        picto_build.match(*sources, curation)


def test_phrase_claimed_twice_is_refused(tmp_path: Path) -> None:
    entry = {"synset": "x.n.01", "offset": 1, "kind": "artifact"}
    content = {
        "category_prefixes": [],
        "classes": {"mouse": {**entry, "phrases": []}, "computer mouse": {**entry, "phrases": ["mouse"]}},
        "clipart": {},
        "pictures": {},
        "dropped_classes": {},
    }
    path = tmp_path / "curation.json"
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match="phrase 'mouse' is claimed by 'mouse' and 'computer mouse'"):
        picto_build.load_curation(path)


# --- steps on images made here --------------------------------------------------------------------------------------


def _image(collection: str, name: str, domain: str, label: str = "cat", seed: int | None = None) -> LabelledDrawing:
    drawing = Drawing(collection=collection, name=name, title=name, author="A", license="MIT")
    image = LabelledDrawing(drawing, label, domain)
    if seed is not None:
        pixels = np.full((96, 96, 3), 255, dtype=np.uint8)
        for top, left, height, width in np.random.default_rng(seed).integers(4, 48, size=(4, 4)):
            pixels[top : top + height, left : left + width] = (top, left, height)
        image.pixels, image.signature = pixels, picto_build.perceptual.signature(pixels)
    return image


def _valid_cat() -> list[LabelledDrawing]:
    return [
        *(_image("noto", "cat", "flat", seed=1), _image("twemoji", "cat", "flat", seed=2)),
        *(_image("meteocons", "cat", "shaded", seed=3), _image("maki", "cat", "glyph", seed=4)),
        *(_image("lucide", "cat", "line", seed=5), _image("memory", "cat", "pixel", seed=6)),
    ]


def test_renderings_of_one_design_count_once_and_twins_go_to_the_rarer_domain() -> None:
    images = [
        *_valid_cat(),
        *(_image("tabler", "cat", "line"), _image("tabler", "cat-filled", "line")),
        *(_image("fluent-emoji", "cat", "shaded"), _image("fluent-emoji-flat", "cat", "flat")),
    ]
    kept = {image.key for image in picto_build.one_per_design(images)}
    assert "tabler:cat" in kept
    assert "tabler:cat-filled" not in kept
    assert "fluent-emoji:cat" in kept
    assert "fluent-emoji-flat:cat" not in kept


def test_twin_stays_where_the_class_needs_it() -> None:
    images = [p for p in _valid_cat() if p.drawing.collection != "twemoji"]
    images += [_image("fluent-emoji", "cat", "shaded"), _image("fluent-emoji-flat", "cat", "flat")]
    kept = {image.key for image in picto_build.one_per_design(images)}
    assert {"fluent-emoji:cat", "fluent-emoji-flat:cat"} <= kept


def test_near_duplicates_go_across_domains_and_classes() -> None:
    copies = [
        _image("lucide", "kitten", "line", seed=6),
        _image("whh", "dog", "glyph", label="dog", seed=5),
        _image("noto", "dog", "flat", label="dog", seed=77),
    ]
    kept, removed = picto_build.drop_near_duplicates([*_valid_cat(), *copies])
    names = {image.key for image in kept}
    assert "memory:cat" in names
    assert {"lucide:kitten"} == {gone.key for gone, _, _ in removed if gone.label == "cat"} - {"lucide:cat"}
    signatures = np.stack([image.signature for image in kept])
    assert picto_build.perceptual.near_duplicate_pairs(signatures) == []


def test_cap_lets_collections_take_turns() -> None:
    images = [_image("tabler", f"cat-{i}", "line") for i in range(20)] + [_image("uil", "cat", "line")]
    kept = picto_build.cap(images, limit=3)
    assert [image.key for image in kept] == ["tabler:cat-0", "uil:cat", "tabler:cat-1"]


def test_held_back_is_a_part_of_train_and_leaves_training_images() -> None:
    images = _valid_cat() + [_image("tabler", f"cat-{i}", "line") for i in range(9)]
    for image in images:
        image.split = "train"
    held = picto_build.draw_held_back(images)
    assert sum(id_.startswith("flat/") for id_ in held) == 1
    assert sum(id_.startswith("line/") for id_ in held) == 2
    assert not any(id_.startswith(("pixel/", "shaded/")) for id_ in held)
    for image in images:
        image.split = "test"
    assert picto_build.draw_held_back(images) == set()


def test_splits_do_not_depend_on_the_order_of_classes(curation: Curation) -> None:
    entries = [
        picto_drawings.ClassEntry(f"thing {i}", f"thing{i}.n.01", i, "food" if i % 3 else "animal", ())
        for i in range(60)
    ]
    forward = picto_build.draw_splits({entry.name: entry for entry in entries})
    backward = picto_build.draw_splits({entry.name: entry for entry in reversed(entries)})
    assert forward == backward
    animals = [forward[f"thing {i}"] for i in range(0, 60, 3)]
    assert (animals.count("test"), animals.count("val"), animals.count("train")) == (5, 3, 12)


def test_png_is_lossless_for_flat_and_noisy_images() -> None:
    generator = np.random.default_rng(0)
    noisy = generator.integers(0, 256, size=(96, 96, 3), dtype=np.uint8)
    smooth = np.add.outer(np.arange(96), np.arange(96)).astype(np.uint8)[..., None].repeat(3, axis=2)
    for pixels in (noisy, smooth, np.zeros((5, 7, 3), dtype=np.uint8)):
        np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(picto_build.png(pixels)))), pixels)


# --- one drawing, one class -------------------------------------------------------------------------------------------


def _signatures(count: int) -> np.ndarray:
    vectors = np.random.default_rng(0).standard_normal((count, 2048)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def test_a_drawing_in_two_classes_is_found_by_key_look_and_list() -> None:
    keys, signatures = ["noto:cat", "noto:dog", "noto:cat", "line:cow", "line:ox", "a:fir", "a:tree"], _signatures(7)
    signatures[4] = signatures[3]
    listed = [frozenset({"a:fir", "a:tree", "a:gone"})]
    two = ["cat", "dog", "dog", "cow", "ox", "conifer", "christmas tree"]
    assert picto_build.drawings_in_two_classes(keys, two, signatures, listed) == [(0, 2), (3, 4), (5, 6)]
    assert picto_build.drawings_in_two_classes(keys, two, signatures) == [(0, 2), (3, 4)]
    one = ["cat", "dog", "cat", "cow", "cow", "conifer", "conifer"]
    assert picto_build.drawings_in_two_classes(keys, one, signatures, listed) == []


def test_the_build_stops_at_a_drawing_in_two_classes(
    sources: tuple[Path, Path], curation: Curation, tmp_path: Path
) -> None:
    pair = frozenset({"noto:cat", "noto:key"})
    with pytest.raises(ValueError, match=r"in two classes: flat/cat/noto:cat and flat/key/noto:key; drop"):
        picto_build.build(*sources, tmp_path / "out", curation=replace(curation, one_drawing=(pair,)))
    assert not (tmp_path / "out").exists()
