"""The pretraining corpus: every openly licensed drawing that PictoDomains does not use and does not resemble.

Built from the same two sources as PictoDomains (see :mod:`benchmarks.datasets.build.picto_sources`) into one folder:

``mono.npy``     uint8 ``[N, S, S]``, ink of single-colour drawings (0 = paper, 255 = full ink);
``colour.npy``   uint8 ``[M, S, S, 3]``, RGB on white;
``index.parquet`` one row a drawing: ``key, collection, phrase, style, category, kind ("mono"|"colour"), row``;
``corpus.json``  settings, counts and what was left out, by reason.

Left out: collections that feed PictoDomains, their forks and versions, logos and flags, licences that do not allow
redistribution, and every drawing perceptually equal (:data:`~benchmarks.datasets.build.perceptual.SAME_DRAWING`) to any
drawing of a collection that feeds PictoDomains, used there or not.
"""

from __future__ import annotations

import io
import json
import multiprocessing
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from benchmarks.datasets.build import perceptual, picto_sources
from benchmarks.datasets.build.picto_sources import Drawing

#: Words at the end (or start) of an icon's name for how it is drawn, not what it shows.
STYLE_WORDS = frozenset(
    {
        *("outline", "outlined", "fill", "filled", "solid", "line", "linear", "stroke", "regular", "medium"),
        *("bold", "thin", "light", "ultra", "sharp", "rounded", "round", "broken", "alt", "remix", "poly"),
        *("duotone", "duo", "twotone", "two", "tone", "flat", "color", "colour", "monochrome", "mono", "3d"),
        *("sm", "md", "lg", "xl", "small", "large", "mini", "micro"),
    }
)
_LOGO_NAMES = re.compile(
    r"(^|-)(logo|logos|brand|brands|flag-[a-z]{2}|flags?-for|google|apple|facebook|twitter|x-twitter|github|gitlab|"
    r"instagram|whatsapp|youtube|linkedin|microsoft|windows|android|amazon|aws|docker|paypal|visa|mastercard|reddit|"
    r"telegram|tiktok|spotify|dribbble|figma|slack|discord|wechat|alipay|taobao|weibo|bitcoin|ethereum|chrome|firefox|"
    r"safari|opera|dropbox|skype|snapchat|pinterest|tumblr|vimeo|twitch|steam|xbox|playstation|nintendo|wordpress|"
    r"adobe|angular|react|vue|nodejs|npm|python|javascript|typescript|html5|css3|stripe|netflix)(-|$)"
)
_SKIN = re.compile(r"-(light|medium|dark|medium-light|medium-dark)(-skin-tone)?$|skin-tone")


def clean_name(name: str) -> tuple[str, str]:
    """Split an icon's name into ``(phrase, style)``: ``"bicycle-24-filled" -> ("bicycle", "filled")``.

    Style words and numbers are taken off the end while something is left; the phrase is lower case with spaces.
    """
    words = re.split(r"[-_\s]+", name.lower())
    style: list[str] = []
    while len(words) > 1 and (words[-1] in STYLE_WORDS or words[-1].isdigit()):
        word = words.pop()
        if not word.isdigit():
            style.insert(0, word)
    words = [re.sub(r"(?<=[a-z])\d+$", "", word) or word for word in words]
    return " ".join(words), " ".join(style)


def clipart_phrase(drawing: Drawing) -> str:
    """What a piece of clip art shows, from its title or else its file name without the author's part."""
    title = re.sub(r"[^a-z ]+", " ", drawing.title.lower())
    title = " ".join(word for word in title.split() if len(word) > 1)
    if 0 < len(title.split()) <= 6:
        return title
    stem = drawing.name.rsplit("/", 1)[-1].lower()
    words = [word for word in re.split(r"[^a-z]+", stem) if len(word) > 1]
    return " ".join(words[:3])


def _drawings(iconify: Path, clipart: Path, hold_out: frozenset[str]) -> Iterator[tuple[Drawing, str, str]]:
    for prefix in picto_sources.corpus_collections(iconify):
        for drawing in picto_sources.icons(iconify, prefix):
            if _LOGO_NAMES.search(drawing.name) or _SKIN.search(drawing.name) or drawing.key in hold_out:
                continue
            phrase, style = clean_name(drawing.name)
            if re.search(r"[a-z]{2}", phrase):
                yield drawing, phrase, style
    for drawing in picto_sources.openclipart(clipart):
        if drawing.key in hold_out or any(part in drawing.name for part in ("logos", "flags", "signs_and_symbols")):
            continue
        phrase = clipart_phrase(drawing)
        if phrase:
            yield drawing, phrase, "clip art"


def _feeding(iconify: Path, clipart: Path, hold_out: frozenset[str]) -> Iterator[Drawing]:
    for prefixes in picto_sources.DOMAIN_COLLECTIONS.values():
        for prefix in prefixes:
            if prefix != "openclipart":
                yield from picto_sources.icons(iconify, prefix)
    for drawing in picto_sources.openclipart(clipart):
        if drawing.key in hold_out:
            yield drawing


def _draw(task: tuple[Drawing, int]) -> tuple[np.ndarray, np.ndarray] | None:
    drawing, size = task
    pixels = picto_sources.render(drawing, size)
    return None if pixels is None else (pixels, perceptual.signature(pixels))


@lru_cache(maxsize=8)
def _progress_columns() -> tuple:
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

    return (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())


def _render_all(drawings: Iterable[Drawing], size: int, jobs: int, label: str, total: int) -> Iterator:
    from rich.progress import Progress

    from benchmarks.console import Lines

    with Progress(*_progress_columns(), disable=not sys.stderr.isatty()) as bar, multiprocessing.Pool(jobs) as pool:
        task = bar.add_task(label, total=total)
        lines = None if sys.stderr.isatty() else Lines(total, f"drawings ({label})")
        for result in pool.imap(_draw, ((drawing, size) for drawing in drawings), chunksize=64):
            bar.advance(task)
            if lines is not None:
                lines.advance(1)
            yield result


def build(
    iconify: Path, clipart: Path, out: Path, *, size: int = 64, hold_out: frozenset[str] = frozenset(), jobs: int = 2
) -> dict:
    """Render the corpus into ``out`` and return the content of ``corpus.json``. Deterministic.

    ``hold_out`` holds keys (``collection:name``) to leave out as well: the clip art that PictoDomains uses or may use.
    Raises ``FileNotFoundError`` naming the source folder that is missing.
    """
    out.mkdir(parents=True, exist_ok=True)
    feeding = list(_feeding(iconify, clipart, hold_out))
    references = [r[1] for r in _render_all(feeding, size, jobs, "PictoDomains side", len(feeding)) if r is not None]
    reference = np.stack(references).astype(np.float32)

    candidates = list(_drawings(iconify, clipart, hold_out))
    left_out: Counter[str] = Counter()
    mono: list[np.ndarray] = []
    colour: list[np.ndarray] = []
    rows: list[dict] = []
    overlap: Counter[str] = Counter()
    seen: set[bytes] = set()
    block: list[tuple[Drawing, str, str, np.ndarray, np.ndarray]] = []

    def flush() -> None:
        if not block:
            return
        _, similarity = perceptual.nearest(np.stack([b[4] for b in block]), reference)
        for (drawing, phrase, style, pixels, _), nearest in zip(block, similarity, strict=True):
            if nearest >= perceptual.SAME_DRAWING:
                left_out["equals a drawing of a collection that feeds PictoDomains"] += 1
                overlap[drawing.collection] += 1
                continue
            fingerprint = phrase.encode() + pixels.tobytes()
            if fingerprint in seen:
                left_out["same picture and name twice"] += 1
                continue
            seen.add(fingerprint)
            kind = "mono" if drawing.monochrome else "colour"
            store = mono if kind == "mono" else colour
            rows.append(
                {
                    "key": drawing.key,
                    "collection": drawing.collection,
                    "phrase": phrase,
                    "style": style,
                    "category": re.sub(r"[^a-z ]+", " ", drawing.category.lower()).strip(),
                    "kind": kind,
                    "row": len(store),
                }
            )
            store.append(255 - pixels[:, :, 0] if kind == "mono" else pixels)
        block.clear()

    results = _render_all((c[0] for c in candidates), size, jobs, "corpus", len(candidates))
    for (drawing, phrase, style), result in zip(candidates, results, strict=True):
        if result is None:
            left_out["cannot be drawn or is blank"] += 1
            continue
        block.append((drawing, phrase, style, *result))
        if len(block) == 2048:
            flush()
    flush()

    if not rows:
        raise ValueError(f"{iconify}: no drawing is left for the corpus; check that the package is complete")
    np.save(out / "mono.npy", np.stack(mono) if mono else np.zeros((0, size, size), dtype=np.uint8))
    np.save(out / "colour.npy", np.stack(colour) if colour else np.zeros((0, size, size, 3), dtype=np.uint8))
    index = pd.DataFrame(rows)
    index.to_parquet(out / "index.parquet")
    summary = {
        "iconify_version": picto_sources.ICONIFY_VERSION,
        "size": size,
        "pictures": len(rows),
        "mono": len(mono),
        "colour": len(colour),
        "phrases": int(index["phrase"].nunique()),
        "left_out": dict(left_out),
        "overlap_by_collection": dict(overlap.most_common()),
        "collections": {str(k): int(v) for k, v in index["collection"].value_counts().sort_index().items()},
    }
    (out / "corpus.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return summary


def _stored_signature(task: tuple[Path, str, int]) -> np.ndarray:
    folder, kind, row = task
    pixels = np.load(folder / f"{kind}.npy", mmap_mode="r")[row]
    return perceptual.signature(np.repeat(255 - pixels[:, :, None], 3, axis=2) if kind == "mono" else pixels)


def purge(folder: Path, pack: Path, *, jobs: int = 2) -> list[str]:
    """Drop from the index every drawing perceptually equal to an image of a PictoDomains pack; returns their keys.

    ``build`` already leaves out what equals a drawing of the collections that feed PictoDomains; this settles it for
    the pack itself, clip art included, and is cheap to repeat when the pack or the rule changes.
    """
    index = pd.read_parquet(folder / "index.parquet")
    images = pd.read_parquet(pack, columns=["id", "image", "collection", "name"])
    decoded = (np.asarray(Image.open(io.BytesIO(image["bytes"])).convert("RGB")) for image in images["image"])
    reference = np.stack([perceptual.signature(pixels) for pixels in decoded])
    tasks = [(folder, kind, int(row)) for kind, row in zip(index["kind"], index["row"], strict=True)]
    similarity = np.empty(len(index), dtype=np.float32)
    with multiprocessing.Pool(jobs) as pool:
        for start in range(0, len(tasks), 8192):
            block = pool.map(_stored_signature, tasks[start : start + 8192], chunksize=256)
            similarity[start : start + len(block)] = perceptual.nearest(np.stack(block), reference)[1]
    used = set(images["collection"] + ":" + images["name"])
    dropped = (similarity >= perceptual.SAME_DRAWING) | index["key"].isin(used).to_numpy()
    keys = index["key"][dropped].tolist()
    index[~dropped].reset_index(drop=True).to_parquet(folder / "index.parquet")
    summary = json.loads((folder / "corpus.json").read_text(encoding="utf-8"))
    summary["left_out"]["equals a picture of PictoDomains"] = summary["left_out"].get(
        "equals a picture of PictoDomains", 0
    ) + len(keys)
    kept = index[~dropped]
    summary |= {
        "pictures": len(kept),
        "mono": int((kept["kind"] == "mono").sum()),
        "colour": int((kept["kind"] == "colour").sum()),
        "phrases": int(kept["phrase"].nunique()),
        "collections": {str(k): int(v) for k, v in kept["collection"].value_counts().sort_index().items()},
    }
    (folder / "corpus.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return keys
