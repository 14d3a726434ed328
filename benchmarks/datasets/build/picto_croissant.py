"""``python -m benchmarks.datasets.build.picto_croissant``: PictoDomains' metadata in the Croissant format (1.0).

Croissant (MLCommons, https://docs.mlcommons.org/croissant) is JSON-LD in schema.org's words: the data set, its file
with its sha256, and the fields of its records with the columns they come from.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from pyarrow import parquet

from benchmarks.datasets.picto_domains import PictoDomains, pack_path

#: The metadata, beside the Parquet file.
CROISSANT = pack_path().with_name("croissant.json")

#: What each column holds, in the order of the file.
FIELDS = {
    "id": "Unique name of the image: domain/class/collection:name.",
    "image": "PNG, 96 x 96 pixels, RGB on white.",
    "class": "Class name, words joined by underscores.",
    "synset": "The class's WordNet 3.0 noun synset.",
    "offset": "The synset's offset in WordNet 3.0.",
    "domain": "Drawing style, one of eight.",
    "split": "train, val or test; a property of the class.",
    "held_back": "Whether the image is of a train class and no training may see it.",
    "collection": "The collection that the drawing comes from.",
    "name": "The drawing's name in its collection.",
    "author": "Author of the collection or drawing.",
    "license": "The image's own licence.",
    "title": "The drawing's title.",
}

_TYPES = {"string": "sc:Text", "int64": "sc:Integer", "bool": "sc:Boolean"}

#: The prefixes of Croissant 1.0, as the specification lists them.
CONTEXT: dict[str, Any] = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    "extract": "cr:extract",
    "field": "cr:field",
    "fileProperty": "cr:fileProperty",
    "fileObject": "cr:fileObject",
    "fileSet": "cr:fileSet",
    "format": "cr:format",
    "includes": "cr:includes",
    "isLiveDataset": "cr:isLiveDataset",
    "jsonPath": "cr:jsonPath",
    "key": "cr:key",
    "md5": "cr:md5",
    "parentField": "cr:parentField",
    "path": "cr:path",
    "recordSet": "cr:recordSet",
    "references": "cr:references",
    "regex": "cr:regex",
    "repeated": "cr:repeated",
    "replace": "cr:replace",
    "samplingRate": "cr:samplingRate",
    "sc": "https://schema.org/",
    "separator": "cr:separator",
    "source": "cr:source",
    "subField": "cr:subField",
    "transform": "cr:transform",
}


def croissant() -> dict[str, Any]:
    """The metadata of the shipped pack."""
    path, card = pack_path(), PictoDomains.card
    data = path.read_bytes()
    columns = {field.name: str(field.type) for field in parquet.read_schema(path)}
    if list(columns) != list(FIELDS):
        raise ValueError(f"{path.name} has the columns {', '.join(columns)}; describe each in FIELDS, in this order")
    licences = sorted(set(parquet.read_table(path, columns=["license"]).column("license").to_pylist()))
    return {
        "@context": CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": "PictoDomains",
        "description": f"{card.title}. A benchmark for retrieval across domains, classes linked to WordNet 3.0.",
        "version": f"{card.version.removeprefix('v')}.0.0",
        "datePublished": "2026-11-27",
        "license": licences,
        "creator": {"@type": "sc:Organization", "name": "The UCDR-Bench authors"},
        "url": path.name,
        "citeAs": "PictoDomains, in UCDR-Bench: the reference benchmark for cross-domain retrieval (CITATION.cff)",
        "keywords": ["cross-domain retrieval", "domain generalisation", "drawings", "WordNet"],
        "isLiveDataset": False,
        "distribution": [
            {
                "@type": "cr:FileObject",
                "@id": "pack",
                "name": path.name,
                "contentUrl": path.name,
                "contentSize": f"{len(data)} B",
                "encodingFormat": "application/x-parquet",
                "sha256": hashlib.sha256(data).hexdigest(),
            }
        ],
        "recordSet": [
            {
                "@type": "cr:RecordSet",
                "@id": "images",
                "name": "images",
                "description": "One record an image.",
                "key": {"@id": "images/id"},
                "field": [_field(name, kind) for name, kind in columns.items()],
            }
        ],
    }


def _field(name: str, kind: str) -> dict[str, Any]:
    source: dict[str, Any] = {"fileObject": {"@id": "pack"}, "extract": {"column": name}}
    if name == "image":
        source["transform"] = {"jsonPath": "bytes"}
    return {
        "@type": "cr:Field",
        "@id": f"images/{name}",
        "name": name,
        "description": FIELDS[name],
        "dataType": "sc:ImageObject" if name == "image" else _TYPES[kind],
        "source": source,
    }


def text() -> str:
    """The content of ``croissant.json``."""
    return json.dumps(croissant(), indent=1, ensure_ascii=False) + "\n"


def main(file: Path = CROISSANT) -> None:
    """Write it."""
    file.write_text(text(), encoding="utf-8")
    print(file.name)


if __name__ == "__main__":
    main()
