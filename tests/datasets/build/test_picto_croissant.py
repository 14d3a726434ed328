"""Croissant metadata of PictoDomains: the committed file is that of the pack; a validator reads it if there is one."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import re

import pytest
from pyarrow import parquet

from benchmarks.datasets.build import picto_croissant
from benchmarks.datasets.build.picto_croissant import CROISSANT, text
from benchmarks.datasets.picto_domains import pack_path


def test_the_committed_file_is_what_is_made_of_the_pack() -> None:
    assert CROISSANT.read_text(encoding="utf-8") == text()


def test_it_names_the_file_and_every_column_with_its_type() -> None:
    made = json.loads(CROISSANT.read_text(encoding="utf-8"))
    (file,) = made["distribution"]
    assert (file["@type"], made["conformsTo"]) == ("cr:FileObject", "http://mlcommons.org/croissant/1.0")
    assert file["sha256"] == hashlib.sha256(pack_path().read_bytes()).hexdigest()
    assert re.fullmatch(r"\d+ B", file["contentSize"]) and int(file["contentSize"][:-2]) == pack_path().stat().st_size
    for required in ("name", "description", "license", "url", "creator", "datePublished"):
        assert made[required], required
    (records,) = made["recordSet"]
    columns = [field["source"]["extract"]["column"] for field in records["field"]]
    assert columns == parquet.read_schema(pack_path()).names
    types = {field["name"]: field["dataType"] for field in records["field"]}
    assert types["image"] == "sc:ImageObject" and types["offset"] == "sc:Integer" and types["held_back"] == "sc:Boolean"
    ids = {record["@id"] for record in (file, records, *records["field"])}
    assert len(ids) == 2 + len(columns) and records["key"]["@id"] in ids
    assert all(field["source"]["fileObject"]["@id"] in ids for field in records["field"])


def test_a_column_that_is_not_described_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(picto_croissant.FIELDS, "title")
    with pytest.raises(ValueError, match="describe each"):
        text()


@pytest.mark.skipif(importlib.util.find_spec("mlcroissant") is None, reason="needs the package mlcroissant")
def test_the_validator_reads_it_and_its_records() -> None:
    import mlcroissant

    data = mlcroissant.Dataset(str(CROISSANT))
    assert not data.metadata.ctx.issues.errors
    record = next(iter(data.records("images")))
    assert record["images/class"] and record["images/image"].size == (96, 96)


@pytest.mark.skipif(importlib.util.find_spec("datasets") is None, reason="needs the package datasets")
def test_hugging_face_datasets_reads_the_pack() -> None:
    from datasets import load_dataset

    images = load_dataset("parquet", data_files=str(pack_path()), split="train")
    assert images.num_rows == parquet.read_metadata(pack_path()).num_rows
    assert images[0]["image"].size == (96, 96)
