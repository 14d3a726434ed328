"""Builds PictoDomains, the embedded data set: real drawings of everyday things in eight styles, WordNet-linked.

The built pack is part of the repository; only somebody who wants to change it needs this module. Fetch and unpack the
two sources with the ordinary clients, then build::

    npm pack @iconify/json@2.2.535 && tar xzf iconify-json-2.2.535.tgz          # gives package/
    apt-get download openclipart-svg && dpkg -x openclipart-svg_*.deb openclipart
    python -m benchmarks.datasets.build.picto_build package openclipart --contact-sheets sheets

What happens, in this order (each step is one function below):

1. :func:`match`: an icon joins a class when its name, freed of style suffixes and category prefixes, is one of the
   class's phrases. Phrases, wrong senses and single images are decided by hand in ``picto_curation.json``; clip art
   is matched by hand only, because its file names are too loose.
2. :func:`draw`: 96 x 96 RGB on white; blanks are dropped.
3. :func:`one_per_design`: outline, filled and two-tone renderings of one design in one domain count once; the same
   design in two domains (fluent emoji in 2D, 3D and high contrast; icon-park; streamline ultimate) stays in one domain
   only, the rarer one, as long as the class stays valid.
4. :func:`drop_near_duplicates`: perceptual near-duplicates, within and across collections, domains and classes.
5. :func:`cap`: at most :data:`CAP` images a class and domain, collections taking turns.
6. :func:`valid_classes`, and :func:`check_one_class`: no drawing is in two classes.
7. :func:`draw_splits`, :func:`draw_held_back`, :func:`write_parquet`.

Nothing is drawn from a random generator: every draw sorts by a SHA-256 of seed and name, so the same sources give the
same bytes.
"""

from __future__ import annotations

import hashlib
import json
import re
import struct
import sys
import time
import zlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from benchmarks.console import OneLineParser
from benchmarks.datasets.build import perceptual, picto_documents, picto_sources
from benchmarks.datasets.build.picto_drawings import RENDERINGS, ClassEntry, LabelledDrawing
from benchmarks.datasets.build.picto_sources import DOMAIN_COLLECTIONS

VERSION = "2"
SIDE = 96
GALLERY = "flat"
#: A class needs images in this many domains, and this many in the gallery domain.
MIN_DOMAINS = 5
MIN_GALLERY = 2
#: At most this many images of a class in a domain.
CAP = 10
#: Stays as the versions go on, so that a class keeps its split.
SPLIT_SEED = "pictodomains-v1"
#: Shares of the classes of each WordNet lexicographer file.
SPLIT_SHARES = {"train": 0.62, "val": 0.13, "test": 0.25}
#: Share of a train class's images that no training ever sees.
HELD_BACK_GALLERY = 0.3
HELD_BACK_OTHER = 0.2

CURATION = Path(__file__).with_name("picto_curation.json")
ASSETS = Path(__file__).resolve().parents[2] / "assets" / "picto_domains"
PARQUET = f"pictodomains-v{VERSION}.parquet"
SPLITS = f"splits-v{VERSION}.json"

#: Last words of an icon's name that name a rendering or a variant, not another thing.
STYLE_SUFFIXES = RENDERINGS | frozenset({"remix", "alt", "alternate", "one", "two", "three", "four", "five", "six"})
DOMAINS = tuple(DOMAIN_COLLECTIONS)
#: Domain in which a design or drawing found in several domains is kept: fewest images first.
RARITY = ("freehand", "pixel", "clipart", "shaded", "multicolour", "flat", "glyph", "line")


# --- curation ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Curation:
    """The hand-checked part of the build, as ``picto_curation.json`` holds it.

    ``one_drawing``: keys of images that show one drawing, with and without ornaments for example, which
    :mod:`~benchmarks.datasets.build.perceptual` does not find; they may be in one class only.
    """

    classes: Mapping[str, ClassEntry]
    category_prefixes: frozenset[str]
    clipart: Mapping[str, str]
    drops: Mapping[str, str]
    moves: Mapping[str, str]
    dropped_classes: Mapping[str, str] = field(default_factory=dict)
    one_drawing: tuple[frozenset[str], ...] = ()

    @property
    def phrase_to_class(self) -> dict[str, str]:
        """Every phrase with the class it names."""
        return {phrase: entry.name for entry in self.classes.values() for phrase in entry.phrases}


def load_curation(path: Path = CURATION) -> Curation:
    """Reads and checks the curation file.

    Raises ``ValueError`` with one line where a phrase is claimed twice or an image goes to an unknown class.
    """
    data = json.loads(path.read_text(encoding="utf-8"))
    classes: dict[str, ClassEntry] = {}
    owner: dict[str, str] = {}
    for name, entry in data["classes"].items():
        phrases = tuple(dict.fromkeys([name.replace(" ", "-"), *entry["phrases"]]))
        for phrase in phrases:
            if owner.setdefault(phrase, name) != name:
                raise ValueError(f"{path}: phrase '{phrase}' is claimed by '{owner[phrase]}' and '{name}': remove one")
        classes[name] = ClassEntry(name, entry["synset"], entry["offset"], entry["kind"], phrases)
    drops, moves = {}, {}
    for key, decision in data["pictures"].items():
        if "drop" in decision:
            drops[key] = decision["drop"]
        else:
            moves[key] = decision["class"]
    clipart = {image: name for name, images in data["clipart"].items() for image in images}
    for source, target in [*moves.items(), *clipart.items()]:
        if target not in classes:
            raise ValueError(
                f"{path}: '{source}' goes to the unknown class '{target}': add the class or correct the name"
            )
    one_drawing = tuple(frozenset(keys) for keys in data.get("one_drawing", ()))
    prefixes = frozenset(data["category_prefixes"])
    return Curation(classes, prefixes, clipart, drops, moves, data["dropped_classes"], one_drawing)


# --- names ------------------------------------------------------------------------------------------------------------


def base_name(name: str) -> str:
    """The icon's name without style suffixes and trailing numbers: ``beer-stein-02-outline`` -> ``beer-stein``."""
    words = name.lower().replace("_", "-").split("-")
    while len(words) > 1 and (words[-1] in STYLE_SUFFIXES or words[-1].isdigit()):
        words.pop()
    return "-".join(words)


def singular(word: str) -> str:
    """The English singular by rule (``cherries`` -> ``cherry``, ``boxes`` -> ``box``, ``glass`` stays)."""
    if word.endswith("ies") and len(word) > 4:
        return word[:-3] + "y"
    if re.search(r"(ch|sh|x|ss)es$", word):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith(("ss", "us")) else word


def candidate_phrases(name: str, category_prefixes: frozenset[str]) -> list[str]:
    """The phrases an icon's name may stand for, the most literal first.

    ``pet-animals-cat-2`` gives ``pet-animals-cat`` and, as ``pet-animals`` is a category prefix, ``cat``.
    """
    words = base_name(name).split("-")
    phrases = []
    for start in range(len(words)):
        if start == 0 or "-".join(words[:start]) in category_prefixes:
            rest = words[start:]
            phrases += ["-".join(rest), "-".join([*rest[:-1], singular(rest[-1])])]
    return list(dict.fromkeys(phrases))


# --- matching and drawing ---------------------------------------------------------------------------------------------


def match(iconify: Path, openclipart: Path, curation: Curation) -> list[LabelledDrawing]:
    """All drawings that belong to a class, in the order of domains, collections and names.

    Raises ``FileNotFoundError`` with the command that fetches a missing source, ``ValueError`` for a collection whose
    licence does not allow redistribution or a curated clip-art file that is missing from the source.
    """
    known = picto_sources.collections(iconify)
    phrases = curation.phrase_to_class
    labelled: list[LabelledDrawing] = []
    for domain, prefixes in DOMAIN_COLLECTIONS.items():
        for prefix in prefixes:
            if prefix == "openclipart":
                drawings = {drawing.name: drawing for drawing in picto_sources.openclipart(openclipart)}
                for name, label in sorted(curation.clipart.items()):
                    if name not in drawings:
                        raise ValueError(f"{openclipart} has no {name}.svg: use Debian's openclipart-svg 1:0.18+dfsg")
                    labelled.append(LabelledDrawing(drawings[name], label, domain))
                continue
            if prefix not in known:
                continue
            if known[prefix].license not in picto_sources.OPEN_LICENCES:
                raise ValueError(f"{prefix}: licence {known[prefix].license} is not in picto_sources.OPEN_LICENCES")
            for drawing in picto_sources.icons(iconify, prefix):
                choice = curation.moves.get(drawing.key)
                if choice is None and drawing.key not in curation.drops:
                    options = candidate_phrases(drawing.name, curation.category_prefixes)
                    choice = next((phrases[option] for option in options if option in phrases), None)
                if choice is not None:
                    labelled.append(LabelledDrawing(drawing, choice, domain))
    return [image for image in labelled if image.key not in curation.drops]


def draw(images: Iterable[LabelledDrawing], tick: Callable[[], None] = lambda: None) -> list[LabelledDrawing]:
    """Draws every image at 96 x 96 and computes its signature; those that cannot be drawn are left out."""
    drawn = []
    for image in images:
        pixels = picto_sources.render(image.drawing, SIDE)
        if pixels is not None:
            image.pixels, image.signature = pixels, perceptual.signature(pixels)
            drawn.append(image)
        tick()
    return drawn


# --- what stays -------------------------------------------------------------------------------------------------------


def is_valid(images: Iterable[LabelledDrawing]) -> bool:
    """Whether one class's images span :data:`MIN_DOMAINS` domains, with :data:`MIN_GALLERY` in the gallery domain."""
    count = Counter(image.domain for image in images)
    return len(count) >= MIN_DOMAINS and count[GALLERY] >= MIN_GALLERY


def by_class(images: Iterable[LabelledDrawing]) -> dict[str, list[LabelledDrawing]]:
    """Images of each class, classes in alphabetical order."""
    groups: dict[str, list[LabelledDrawing]] = defaultdict(list)
    for image in images:
        groups[image.label].append(image)
    return dict(sorted(groups.items()))


def _preference(image: LabelledDrawing, rarity: Sequence[str]) -> tuple[int, int, int, str]:
    """Rarer domain, then the collections' order, then the plainer name."""
    collections = DOMAIN_COLLECTIONS[image.domain]
    name = image.drawing.name
    return rarity.index(image.domain), collections.index(image.drawing.collection), name.count("-"), name


def one_per_design(images: Iterable[LabelledDrawing]) -> list[LabelledDrawing]:
    """Keeps one rendering of each design.

    Within a domain always. Across domains the rarer domain (:data:`RARITY`) keeps it; where this would make a class
    invalid, the class keeps its twins from the commonest domains on until it is valid again.
    """
    kept: list[LabelledDrawing] = []
    for group in by_class(images).values():
        ordered = sorted(group, key=lambda image: _preference(image, RARITY))
        seen: dict[tuple[str, str], set[str]] = defaultdict(set)
        chosen: list[LabelledDrawing] = []
        twins: list[LabelledDrawing] = []
        for image in ordered:
            domains = seen[image.design]
            if image.domain in domains:
                continue
            (twins if domains else chosen).append(image)
            domains.add(image.domain)
        for twin in sorted(twins, key=lambda image: (image.domain != GALLERY, RARITY.index(image.domain))):
            if is_valid(chosen):
                break
            present = Counter(image.domain for image in chosen)
            if present[twin.domain] < (MIN_GALLERY if twin.domain == GALLERY else 1):
                chosen.append(twin)
        kept += chosen
    return kept


def drop_near_duplicates(
    images: Sequence[LabelledDrawing], threshold: float = perceptual.SAME_DRAWING
) -> tuple[list[LabelledDrawing], list[tuple[LabelledDrawing, LabelledDrawing, float]]]:
    """Keeps no two images whose signatures reach the threshold.

    Smaller classes choose first, in a class the rarer domain; a class that would become invalid this way gives its
    gallery images precedence. Returns what is kept and the removed images, each with the kept one it equals and
    their similarity.
    """
    valid = {label for label, group in by_class(images).items() if is_valid(group)}
    gallery_first: set[str] = set()
    while True:
        kept, removed = _greedy(images, threshold, gallery_first)
        lost = valid - gallery_first - {label for label, group in by_class(kept).items() if is_valid(group)}
        if not lost:
            return kept, removed
        gallery_first |= lost


def _greedy(
    images: Sequence[LabelledDrawing], threshold: float, gallery_first: set[str]
) -> tuple[list[LabelledDrawing], list[tuple[LabelledDrawing, LabelledDrawing, float]]]:
    size = Counter(image.label for image in images)
    reordered = (GALLERY, *(domain for domain in RARITY if domain != GALLERY))
    order = sorted(
        images,
        key=lambda p: (size[p.label], p.label, _preference(p, reordered if p.label in gallery_first else RARITY)),
    )
    signatures = np.stack([image.signature for image in order]) if order else np.zeros((0, 1), dtype=np.float32)
    twins: dict[int, list[tuple[int, float]]] = defaultdict(list)
    for i, j, similarity in perceptual.near_duplicate_pairs(signatures, threshold=threshold):
        twins[j].append((i, similarity))
    gone: set[int] = set()
    removed = []
    for j, image in enumerate(order):
        alive = [(i, similarity) for i, similarity in twins.get(j, []) if i not in gone]
        if alive:
            gone.add(j)
            i, similarity = max(alive, key=lambda pair: (pair[1], -pair[0]))
            removed.append((image, order[i], similarity))
    return [image for j, image in enumerate(order) if j not in gone], removed


def cap(images: Iterable[LabelledDrawing], limit: int = CAP) -> list[LabelledDrawing]:
    """At most ``limit`` images of a class in a domain: collections take turns, each gives its plainest name first.

    Clip art is one collection: there the authors take turns.
    """
    kept: list[LabelledDrawing] = []
    for group in by_class(images).values():
        for domain in DOMAINS:
            queues: dict[str, list[LabelledDrawing]] = defaultdict(list)
            for image in sorted((p for p in group if p.domain == domain), key=lambda p: _preference(p, RARITY)):
                source = image.drawing.author if domain == "clipart" else image.drawing.collection
                queues[source].append(image)
            turns = [p for turn in range(limit) for queue in queues.values() for p in queue[turn : turn + 1]]
            kept += turns[:limit]
    return kept


def valid_classes(images: Iterable[LabelledDrawing]) -> list[LabelledDrawing]:
    """Only the images of classes that are valid (:func:`is_valid`)."""
    return [image for group in by_class(images).values() if is_valid(group) for image in group]


def drawings_in_two_classes(
    keys: Sequence[str], labels: Sequence[str], signatures: np.ndarray, one_drawing: Iterable[frozenset[str]] = ()
) -> list[tuple[int, int]]:
    """Pairs ``(i, j)``, ``i < j``, of N images in different classes that show one drawing.

    That is: they have the same key (``collection:name``), are both in one of the sets ``one_drawing`` of keys, or their
    ``signatures [N, 2048]`` reach :data:`~benchmarks.datasets.build.perceptual.SAME_DRAWING`.
    """
    rows: dict[str, list[int]] = defaultdict(list)
    for row, key in enumerate(keys):
        rows[key].append(row)
    same = [rows_of_key for rows_of_key in rows.values() if len(rows_of_key) > 1]
    same += [sorted(row for key in group for row in rows.get(key, ())) for group in one_drawing]
    pairs = {(i, j) for group in same for i in group for j in group if i < j}
    pairs |= {(i, j) for i, j, _ in perceptual.near_duplicate_pairs(signatures)}
    return sorted((i, j) for i, j in pairs if labels[i] != labels[j])


def check_one_class(images: Sequence[LabelledDrawing], curation: Curation) -> None:
    """Raises ``ValueError``, one line, if a drawing is in two classes (:func:`drawings_in_two_classes`)."""
    keys, labels = [image.key for image in images], [image.label for image in images]
    signatures = np.stack([image.signature for image in images])
    pairs = drawings_in_two_classes(keys, labels, signatures, curation.one_drawing)
    if pairs:
        i, j = pairs[0]
        more = f" (and {len(pairs) - 1} more)" if len(pairs) > 1 else ""
        raise ValueError(
            f"one drawing is in two classes: {images[i].id} and {images[j].id}{more}; drop one of the two under"
            f' "pictures" in {CURATION.name}'
        )


# --- splits -----------------------------------------------------------------------------------------------------------


def _draw_order(*parts: str) -> str:
    return hashlib.sha256("/".join((SPLIT_SEED, *parts)).encode()).hexdigest()


def draw_splits(classes: Mapping[str, ClassEntry]) -> dict[str, str]:
    """Class name -> ``train``, ``val`` or ``test``.

    The classes of each WordNet lexicographer file (animal, artifact, ...) are sorted by SHA-256 of seed and synset; the
    first 25 % (rounded) are test, the next 13 % validation, the rest train.
    """
    splits = {}
    strata: dict[str, list[ClassEntry]] = defaultdict(list)
    for entry in classes.values():
        strata[entry.kind].append(entry)
    for kind, entries in strata.items():
        entries.sort(key=lambda entry: _draw_order("class", kind, entry.synset))
        test = round(SPLIT_SHARES["test"] * len(entries))
        val = round(SPLIT_SHARES["val"] * len(entries))
        for position, entry in enumerate(entries):
            splits[entry.name] = "test" if position < test else "val" if position < test + val else "train"
    return dict(sorted(splits.items()))


def draw_held_back(images: Iterable[LabelledDrawing]) -> set[str]:
    """Ids of the images of train classes that no training sees.

    In the gallery domain 30 % (rounded), at least one, at most all but one; elsewhere 20 % (rounded), at least one,
    where a class has three or more images in the domain. Drawn by SHA-256 of seed and id within class and domain.
    """
    held: set[str] = set()
    for group in by_class(image for image in images if image.split == "train").values():
        for domain in DOMAINS:
            ids = sorted((p.id for p in group if p.domain == domain), key=lambda id_: _draw_order("picture", id_))
            if domain == GALLERY:
                count = min(max(1, round(HELD_BACK_GALLERY * len(ids))), len(ids) - 1)
            else:
                count = max(1, round(HELD_BACK_OTHER * len(ids))) if len(ids) >= 3 else 0
            held.update(ids[:count])
    return held


def canonical_splits(splits: Mapping[str, str]) -> str:
    """The text whose SHA-256 is in the splits file: ``split<TAB>class`` lines, sorted."""
    return "".join(f"{line}\n" for line in sorted(f"{split}\t{name}" for name, split in splits.items()))


# --- writing ----------------------------------------------------------------------------------------------------------


def png(pixels: np.ndarray) -> bytes:
    """Lossless 8-bit RGB PNG of uint8 ``[H, W, 3]``, without and with row filters: the shorter one.

    Few-coloured drawings compress a sixth smaller without the row filters that encoders choose by default.
    """
    height, width, _ = pixels.shape
    raw = pixels.reshape(height, width * 3).astype(np.int16)
    left, above, corner = np.zeros_like(raw), np.zeros_like(raw), np.zeros_like(raw)
    left[:, 3:], above[1:], corner[1:, 3:] = raw[:, :-3], raw[:-1], raw[:-1, :-3]
    guess = left + above - corner
    to_left, to_above, to_corner = abs(guess - left), abs(guess - above), abs(guess - corner)
    paeth = np.where(
        (to_left <= to_above) & (to_left <= to_corner), left, np.where(to_above <= to_corner, above, corner)
    )
    filtered = np.stack([raw, raw - left, raw - above, raw - (left + above) // 2, raw - paeth]).astype(np.uint8)
    signed = filtered.astype(np.int16)
    choice = np.minimum(signed, 256 - signed).sum(axis=2).argmin(axis=0)
    shortest = min((_deflate(filtered, rows) for rows in (np.zeros(height, dtype=np.intp), choice)), key=len)
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", shortest), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def _deflate(filtered: np.ndarray, rows: np.ndarray) -> bytes:
    lines = filtered[rows, np.arange(len(rows))]
    return zlib.compress(np.concatenate([rows.astype(np.uint8)[:, None], lines], axis=1).tobytes(), 9)


_TEXT_COLUMNS = ("id", "class", "synset", "domain", "split", "collection", "name", "author", "license", "title")


def write_parquet(images: Sequence[LabelledDrawing], classes: Mapping[str, ClassEntry], path: Path) -> None:
    """Writes the pack; pandas reads the image column as ``{"bytes": ..., "path": ...}``, ``datasets`` as images."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows: dict[str, list[Any]] = defaultdict(list)
    for image in images:
        drawing, entry = image.drawing, classes[image.label]
        rows["id"].append(image.id)
        rows["image"].append({"bytes": png(image.pixels), "path": f"{image.id}.png"})
        rows["class"].append(image.label)
        rows["synset"].append(entry.synset)
        rows["offset"].append(entry.offset)
        rows["domain"].append(image.domain)
        rows["split"].append(image.split)
        rows["held_back"].append(image.held_back)
        rows["collection"].append(drawing.collection)
        rows["name"].append(drawing.name)
        rows["author"].append(drawing.author)
        rows["license"].append(drawing.license)
        rows["title"].append(drawing.title)
    types: dict[str, Any] = {column: pa.string() for column in _TEXT_COLUMNS}
    types["image"] = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    types["offset"] = pa.int64()
    types["held_back"] = pa.bool_()
    features = {column: {"dtype": "string", "_type": "Value"} for column in rows}
    features["image"] = {"_type": "Image"}
    features["offset"] = {"dtype": "int64", "_type": "Value"}
    features["held_back"] = {"dtype": "bool", "_type": "Value"}
    schema = pa.schema(
        [pa.field(column, types[column]) for column in rows],
        metadata={"huggingface": json.dumps({"info": {"features": features}})},
    )
    table = pa.table([pa.array(rows[column], types[column]) for column in rows], schema=schema)
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, compression="zstd", row_group_size=1000)


def sha256(path: Path) -> str:
    """SHA-256 of a file in hexadecimal."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def write_splits(images: Sequence[LabelledDrawing], splits: Mapping[str, str], path: Path) -> None:
    """Writes the class lists with the SHA-256 of :func:`canonical_splits`, and the ids held back."""
    content = {
        "version": VERSION,
        "seed": SPLIT_SEED,
        "rule": "within each WordNet lexicographer file, classes sorted by sha256('SEED/class/KIND/SYNSET'):"
        " first 25 % test, next 13 % val, rest train",
        "sha256": hashlib.sha256(canonical_splits(splits).encode()).hexdigest(),
        "classes": {split: sorted(n for n, s in splits.items() if s == split) for split in SPLIT_SHARES},
        "held_back_rule": "within a train class and domain, images sorted by sha256('SEED/image/ID'): in flat the"
        " first 30 % (at least one, never all), elsewhere the first 20 % (at least one) where there are three or more",
        "held_back": sorted(image.id for image in images if image.held_back),
    }
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


# --- the whole --------------------------------------------------------------------------------------------------------


def build(
    iconify: Path,
    openclipart: Path,
    out: Path,
    *,
    curation: Curation | None = None,
    contact_sheets: Path | None = None,
    show_progress: bool = False,
) -> Path:
    """Builds the whole pack in ``out`` and returns the Parquet file's path.

    Writes the Parquet file, the splits file, ``CARD.md``, ``ATTRIBUTION.md`` and ``contact_sheet.png``; with
    ``contact_sheets`` also labelled sheets of every class for review. Raises as :func:`match` and
    :func:`check_one_class` do, and ``ValueError`` when no class is valid.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    curation = curation or load_curation()
    matched = match(iconify, openclipart, curation)
    text, left = TextColumn("{task.description} {task.fields[rate]}"), TimeRemainingColumn()
    with Progress(text, BarColumn(), MofNCompleteColumn(), left, disable=not show_progress) as progress:
        task = progress.add_task("drawing", total=len(matched), rate="")
        started, done = time.monotonic(), 0

        def tick() -> None:
            nonlocal done
            done += 1
            progress.update(task, advance=1, rate=f"{done / (time.monotonic() - started + 1e-9):.0f}/s")

        drawn = draw(matched, tick)
    designs = one_per_design(drawn)
    distinct, removed = drop_near_duplicates(designs)
    capped = cap(distinct)
    images = valid_classes(capped)
    if not images:
        raise ValueError(f"no class has images in {MIN_DOMAINS} domains and {MIN_GALLERY} in {GALLERY}")
    check_one_class(images, curation)
    classes = {name: curation.classes[name] for name in sorted({image.label for image in images})}
    splits = draw_splits(classes)
    for image in images:
        image.split = splits[image.label]
    held = draw_held_back(images)
    for image in images:
        image.held_back = image.id in held
    images.sort(key=lambda p: (p.label, DOMAINS.index(p.domain), p.id))

    out.mkdir(parents=True, exist_ok=True)
    parquet = out / PARQUET
    write_parquet(images, classes, parquet)
    write_splits(images, splits, out / SPLITS)
    domains_of_design: dict[tuple[str, str, str], set[str]] = defaultdict(set)
    for image in images:
        domains_of_design[image.label, *image.design].add(image.domain)
    numbers = picto_documents.BuildNumbers(
        matched=len(drawn),
        one_per_design=len(designs),
        duplicates=len(removed),
        duplicates_across_domains=sum(gone.domain != kept.domain for gone, kept, _ in removed),
        duplicates_across_classes=sum(gone.label != kept.label for gone, kept, _ in removed),
        after_cap=len(capped),
        twins_kept=sum(len(domains) - 1 for domains in domains_of_design.values()),
        twins_in_gallery=sum(GALLERY in domains and len(domains) > 1 for domains in domains_of_design.values()),
    )
    document = picto_documents.card(images, classes, curation.dropped_classes, numbers, CAP, parquet, sha256(parquet))
    (out / "CARD.md").write_text(document, encoding="utf-8")
    document = picto_documents.attribution(images, picto_sources.collections(iconify))
    (out / "ATTRIBUTION.md").write_text(document, encoding="utf-8")
    picto_documents.readme_sheet(images).quantize(256, dither=Image.Dither.NONE).save(
        out / "contact_sheet.png", optimize=True
    )
    if contact_sheets is not None:
        picto_documents.review_sheets(images, contact_sheets)
    return parquet


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code."""
    parser = OneLineParser(
        prog="python -m benchmarks.datasets.build.picto_build",
        description="Build the PictoDomains pack from the unpacked sources.",
        epilog="Sources: `npm pack @iconify/json@2.2.535` and `tar xzf`;"
        " `apt-get download openclipart-svg` and `dpkg -x`.",
    )
    parser.add_argument("iconify", type=Path, help="folder 'package' of the unpacked @iconify/json")
    parser.add_argument("openclipart", type=Path, help="folder that `dpkg -x openclipart-svg_*.deb FOLDER` made")
    parser.add_argument("--out", type=Path, default=ASSETS, help="where the pack goes (default: the package's assets)")
    parser.add_argument(
        "--contact-sheets", type=Path, metavar="FOLDER", help="also write labelled sheets of every class"
    )
    options = parser.parse_args(arguments)
    try:
        parquet = build(
            options.iconify,
            options.openclipart,
            options.out,
            contact_sheets=options.contact_sheets,
            show_progress=sys.stderr.isatty(),
        )
    except (FileNotFoundError, ValueError) as error:
        print(f"picto_build: {error}", file=sys.stderr)
        return 2
    print(f"{parquet}: {parquet.stat().st_size} bytes, sha256 {sha256(parquet)}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
