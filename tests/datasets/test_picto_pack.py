"""The committed PictoDomains pack keeps what its card promises."""

import hashlib
import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from benchmarks.datasets.build import perceptual, picto_build, picto_drawings
from benchmarks.datasets.build.picto_sources import DOMAIN_COLLECTIONS, OPEN_LICENCES
from benchmarks.datasets.wordnet import offer_to_nltk

PARQUET = picto_build.ASSETS / picto_build.PARQUET
KINDS = {"animal", "artifact", "body", "food", "object", "plant"}


@pytest.fixture(scope="module")
def table() -> pd.DataFrame:
    return pd.read_parquet(PARQUET)


@pytest.fixture(scope="module")
def splits() -> dict:
    return json.loads((picto_build.ASSETS / picto_build.SPLITS).read_text(encoding="utf-8"))


def _pixels(image: dict) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(image["bytes"])))


def test_size_and_counts(table: pd.DataFrame) -> None:
    assert PARQUET.stat().st_size <= 16_000_000
    assert table["class"].nunique() >= 200
    assert table.groupby("class")["domain"].nunique().min() >= 5
    flat = table[table["domain"] == "flat"].groupby("class").size()
    assert flat.reindex(table["class"].unique(), fill_value=0).min() >= 2
    assert table.groupby(["class", "domain"]).size().max() <= picto_build.CAP
    assert set(table["domain"]) == set(DOMAIN_COLLECTIONS)


def test_ids_are_unique_and_say_what_the_columns_say(table: pd.DataFrame) -> None:
    assert table["id"].is_unique
    columns = table[["domain", "class", "collection", "name"]].itertuples(index=False, name=None)
    expected = [f"{domain}/{cls.replace(' ', '-')}/{collection}:{name}" for domain, cls, collection, name in columns]
    assert table["id"].tolist() == expected
    for domain, collections in table.groupby("domain")["collection"].unique().items():
        assert set(collections) <= set(DOMAIN_COLLECTIONS[domain])


def test_classes_are_curated_concrete_synsets(table: pd.DataFrame) -> None:
    curation = picto_build.load_curation()
    for name, synset, offset in table[["class", "synset", "offset"]].drop_duplicates().itertuples(index=False):
        entry = curation.classes[name]
        assert (entry.synset, entry.offset) == (synset, offset)
        assert entry.kind in KINDS
    assert table.groupby("synset")["class"].nunique().max() == 1
    assert not set(curation.dropped_classes) & set(table["class"])


def test_synsets_and_offsets_are_those_of_the_embedded_wordnet(table: pd.DataFrame) -> None:
    offer_to_nltk()
    from nltk.corpus import wordnet

    curation = picto_build.load_curation()
    for name in table["class"].unique():
        entry = curation.classes[name]
        synset = wordnet.synset_from_pos_and_offset("n", entry.offset)
        assert (synset.name(), synset.lexname()) == (entry.synset, f"noun.{entry.kind}")


def test_no_dropped_image_is_inside(table: pd.DataFrame) -> None:
    keys = set(table["collection"] + ":" + table["name"])
    assert not keys & set(picto_build.load_curation().drops)


def test_splits_are_disjoint_hashed_and_drawn_by_the_rule(table: pd.DataFrame, splits: dict) -> None:
    of_class = {name: split for split, names in splits["classes"].items() for name in names}
    assert sum(map(len, splits["classes"].values())) == len(of_class) == table["class"].nunique()
    assert dict(table[["class", "split"]].drop_duplicates().itertuples(index=False)) == of_class
    assert table.groupby("class")["split"].nunique().max() == 1
    assert hashlib.sha256(picto_build.canonical_splits(of_class).encode()).hexdigest() == splits["sha256"]
    curation = picto_build.load_curation()
    assert picto_build.draw_splits({name: curation.classes[name] for name in of_class}) == of_class
    share = {split: len(names) / len(of_class) for split, names in splits["classes"].items()}
    assert share == pytest.approx({"train": 0.62, "val": 0.13, "test": 0.25}, abs=0.02)


def test_held_back_images_are_train_images_and_leave_some_for_training(table: pd.DataFrame, splits: dict) -> None:
    held = table[table["held_back"]]
    assert set(held["id"]) == set(splits["held_back"])
    assert set(held["split"]) == {"train"}
    train = table[table["split"] == "train"]
    left = train[~train["held_back"]]
    for domain in DOMAIN_COLLECTIONS:
        assert set(left.loc[left["domain"] == domain, "class"]) == set(train.loc[train["domain"] == domain, "class"])
    assert set(held.loc[held["domain"] == "flat", "class"]) == set(train["class"])


def test_images_are_96_pixel_rgb_png(table: pd.DataFrame) -> None:
    for image in table["image"].iloc[::37]:
        assert image["bytes"].startswith(b"\x89PNG")
        image = Image.open(io.BytesIO(image["bytes"]))
        assert (image.format, image.mode, image.size) == ("PNG", "RGB", (96, 96))
        assert int((np.asarray(image).min(axis=2) < 250).sum()) >= 96 * 96 // 200


def test_no_drawing_stands_twice(table: pd.DataFrame) -> None:
    """Hence none in both query and gallery, and none in both train and test or held back."""
    signatures = np.stack([perceptual.signature(_pixels(image)) for image in table["image"]])
    pairs = perceptual.near_duplicate_pairs(signatures)
    assert [(table["id"][i], table["id"][j], similarity) for i, j, similarity in pairs] == []


def test_designs_drawn_in_several_styles_never_face_their_twin_in_the_gallery(table: pd.DataFrame) -> None:
    families = table["collection"].map(picto_drawings.FAMILIES)
    names = [picto_drawings.design_name(name) for name in table["name"]]
    twins = table.assign(family=families, design=names).dropna(subset=["family"])
    for _, group in twins.groupby(["family", "design", "class"]):
        assert "flat" not in set(group["domain"]) or group["domain"].nunique() == 1


def test_licences_are_open_and_everybody_is_attributed(table: pd.DataFrame) -> None:
    assert set(table["license"]) <= OPEN_LICENCES
    assert (table["author"].str.len() > 0).all()
    text = (picto_build.ASSETS / "ATTRIBUTION.md").read_text(encoding="utf-8")
    for prefix, rows in table.groupby("collection"):
        line = next(line for line in text.splitlines() if f"| `{prefix}` |" in line)
        assert line.rstrip(" |").endswith(f"| {len(rows)}")
        if prefix != "openclipart":
            assert rows["author"].iloc[0] in line
            assert rows["license"].iloc[0] in line
    for author, name in table.loc[table["collection"] == "openclipart", ["author", "name"]].itertuples(index=False):
        assert f"- {author}: " in text
        assert name in text


def test_schema_tells_hugging_face_which_column_is_the_image() -> None:
    import pyarrow.parquet as pq

    features = json.loads(pq.read_schema(PARQUET).metadata[b"huggingface"])["info"]["features"]
    assert features["image"] == {"_type": "Image"}
    assert features["held_back"]["dtype"] == "bool"
    assert list(features) == pq.read_schema(PARQUET).names


def test_card_names_the_file_it_describes() -> None:
    card = (picto_build.ASSETS / "CARD.md").read_text(encoding="utf-8")
    assert hashlib.sha256(PARQUET.read_bytes()).hexdigest() in card
    assert Path(picto_build.ASSETS / "contact_sheet.png").stat().st_size <= 600_000


def test_no_drawing_is_in_two_classes(table: pd.DataFrame) -> None:
    keys = (table["collection"] + ":" + table["name"]).tolist()
    signatures = np.stack([perceptual.signature(_pixels(image)) for image in table["image"]])
    found = picto_build.drawings_in_two_classes(
        keys, table["class"].tolist(), signatures, picto_build.load_curation().one_drawing
    )
    assert [(table["id"][i], table["id"][j]) for i, j in found] == []


def test_images_judged_to_be_one_drawing_exist(table: pd.DataFrame) -> None:
    curation = picto_build.load_curation()
    keys = set(table["collection"] + ":" + table["name"])
    assert curation.one_drawing
    for group in curation.one_drawing:
        assert len(group & keys) == 1
        assert group - keys <= set(curation.drops)
