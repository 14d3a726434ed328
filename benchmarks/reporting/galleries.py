"""Retrieval galleries and a map of embeddings: the parts of a report that need the data set (the map a backbone too).

A gallery shows a query and its ten best images under every method, from the lists that the store keeps. Images are
put into the page once each, as small WebP files; `LIMIT` bounds them, and a note says what did not fit.

`benchmarks.reporting.plots` draws the map and the sheet of a gallery; nothing here draws.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from benchmarks.datasets.registry import DATASETS
from benchmarks.reporting.data import ReportData, SettingData
from benchmarks.reporting.tables import METHOD_COLUMNS
from benchmarks.reporting.types import (
    EmbeddingMap,
    Galleries,
    GalleryQuery,
    Hit,
    RankedImages,
    ScoreTable,
    Setting,
    is_transfer,
)
from benchmarks.store.records import RecordError, backbone_identity

if TYPE_CHECKING:
    from benchmarks.datasets.base import Dataset

#: Side of an image in pixels.
SIDE = 64

#: Bytes of all images of a page, encoded as in the page.
LIMIT = 600_000

#: Results shown for a query, queries shown for a question and query domain, and classes of the map.
TOP, QUERIES, MAP_CLASSES, MAP_IMAGES = 10, 2, 7, 6


def galleries(
    data: ReportData,
    *,
    data_root: str | None = None,
    side: int = SIDE,
    limit: int = LIMIT,
    queries: int = QUERIES,
) -> Galleries:
    """Galleries of the first ranked setting: for each protocol's first gallery the hardest queries of every domain.

    To each domain's hardest comes one query that the methods disagree on.

    Records whose lists cannot be used are reported.

    Args:
        data: of the report.
        data_root: folder of the data sets; None: the embedded one.
        side: of an image in pixels.
        limit: bytes of all images together.
        queries: the hardest ones of each question and domain.

    Raises:
        DatasetError: the data set is not there.
    """
    from benchmarks.datasets.base import dataset_root

    ranked = [part for part in data.settings if part.setting.select != "oracle"]
    if not ranked:
        return Galleries((), {}, ("There is no ranked setting to show images of.",), side)
    of_setting = ranked[0]
    setting = of_setting.setting
    dataset: Dataset = DATASETS.get(setting.dataset)(dataset_root(data_root, setting.dataset))
    place = {str(key): row for row, key in enumerate(dataset.table["key"])}
    class_of = dict(zip(dataset.table["key"].astype(str), dataset.table["class"].astype(str), strict=True))
    first: dict[str, ScoreTable] = {}
    for table in of_setting.leading:
        if table.metric.startswith("map@"):
            first.setdefault(table.protocol, table)
    proposed: list[list[GalleryQuery]] = []
    for table in first.values():
        by_domain: dict[str, list[GalleryQuery]] = {}
        for query in _hardest(data, of_setting, table, class_of):
            by_domain.setdefault(query.domain, []).append(query)
        chosen = [_chosen(own, queries) for own in by_domain.values()]
        proposed += [[own[n] for own in chosen if n < len(own)] for n in range(queries + 1)]
    images: dict[str, str] = {}
    shown: list[GalleryQuery] = []
    used, left_out = 0, 0
    for query in _in_turn(proposed):
        keys = dict.fromkeys([query.key, *(hit.key for row in query.rows for hit in row.hits)])
        new = [key for key in keys if key not in images and key in place]
        uris = dict(zip(new, _data_uris(dataset, [place[key] for key in new], side), strict=True))
        size = sum(map(len, uris.values()))
        if used + size > limit:
            left_out += 1
            continue
        used += size
        images |= uris
        shown.append(query)
    order = {title: n for n, title in enumerate(dict.fromkeys(query.title for query in shown))}
    shown.sort(key=lambda query: (order[query.title], query.score))
    notes = [
        f"{setting.title()}. Of each domain the {queries} hardest queries, one a class, and one that "
        "methods disagree on; lowest seed."
    ]
    if left_out:
        notes.append(f"{left_out} more queries are left out: images may take {limit / 1e6:g} MB of this page.")
    missing = {hit.key for query in shown for row in query.rows for hit in row.hits} - images.keys()
    if missing:
        notes.append(f"{len(missing)} images are not in this copy of the data set.")
    return Galleries(tuple(shown), images | dict.fromkeys(missing, ""), tuple(notes), side)


def _chosen(hardest: Sequence[GalleryQuery], number: int) -> list[GalleryQuery]:
    """The hardest, one a class, and of the others the one that methods disagree most on."""
    chosen: list[GalleryQuery] = []
    for query in hardest:
        if len(chosen) < number and all(query.class_name != other.class_name for other in chosen):
            chosen.append(query)
    rest = [query for query in hardest if query not in chosen and query.spread > 0]
    return [*chosen, max(rest, key=lambda query: query.spread)] if rest else chosen


def _in_turn(rounds: Sequence[Sequence[GalleryQuery]]) -> Iterator[GalleryQuery]:
    """Queries of all questions by turns, so that a limit leaves some of each."""
    titles: dict[str, list[GalleryQuery]] = {}
    for group in rounds:
        for query in group:
            titles.setdefault(query.title, []).append(query)
    for n in range(max(map(len, titles.values()), default=0)):
        yield from (own[n] for own in titles.values() if n < len(own))


def _hardest(
    data: ReportData, of_setting: SettingData, table: ScoreTable, class_of: Mapping[str, str]
) -> list[GalleryQuery]:
    """Queries that every method with scores has a list for, by mean AP over methods that are no floors.

    Queries without a relevant image in the gallery have no AP and are left out.
    """
    rows, labels = of_setting.rows, of_setting.labels
    answered = rows[
        (rows["protocol"] == table.protocol) & (rows["gallery"] == table.gallery) & (rows["status"] == "ok")
    ]
    lists_of: dict[str, dict[tuple[str, str], RankedImages]] = {}
    about: dict[tuple[str, str], tuple[str, str]] = {}
    column = table.metric.removeprefix("m")
    for configuration, of_method in answered.groupby(METHOD_COLUMNS, sort=False):
        label, floor = labels[configuration], bool(of_method["floor"].any())
        lists: dict[tuple[str, str], RankedImages] = {}
        lowest = of_method[of_method["seed"] == of_method["seed"].min()]
        for key, split in lowest[["key", "split"]].drop_duplicates().itertuples(index=False):
            try:
                values = data.per_query(key)
            except (RecordError, KeyError) as error:
                data.warn(f"{label} on {table.protocol}: {error.args[0]}; not in the galleries")
                continue
            values = values[values["gallery"] == table.gallery]
            if "top_keys" not in values.columns or column not in values.columns:
                continue
            values = values[values["top_keys"].notna() & values[column].notna()]  # NaN: no relevant image
            names = ["query", "class", "domain", column, "top_keys"]
            for query, name, domain, score, keys in values[names].itertuples(index=False):
                where = (str(split), str(query))
                about[where] = (str(name), str(domain))
                hits = tuple(
                    Hit(key, class_of.get(key, "?"), class_of.get(key) == name) for key in map(str, keys[:TOP])
                )
                lists[where] = RankedImages(label, str(configuration[0]), float(score), hits, floor)
        if len(lowest["split"].unique()) == len(table.columns) and lists:
            lists_of[label] = lists
    if not lists_of:
        return []
    order = {row.label: n for n, row in enumerate(table.rows)}
    shared = set.intersection(*(set(lists) for lists in lists_of.values()))
    queries = []
    for split, key in shared:
        ranked = sorted((lists[split, key] for lists in lists_of.values()), key=lambda row: order[row.label])
        judged = [row.score for row in ranked if not row.floor] or [row.score for row in ranked]
        name, domain = about[split, key]
        of_transfer = f", {split}" if is_transfer(table.protocol) else ""
        title = f"{table.question()}{of_transfer}"
        spread = max(judged) - min(judged)
        queries.append(GalleryQuery(key, name, domain, title, float(np.mean(judged)), tuple(ranked), spread))
    queries.sort(key=lambda query: (query.score, query.domain, query.key, query.title))
    if is_transfer(table.protocol):  # of many transfers, each query once, under its hardest
        queries = list({query.key: query for query in reversed(queries)}.values())[::-1]
        queries = [replace(query, title=table.question()) for query in queries]
    return queries


def _data_uris(dataset: Dataset, rows: Sequence[int], side: int) -> list[str]:
    """WebP images of these rows of the data set."""
    from PIL import Image

    if not rows:
        return []
    pixels = dataset.pixels(np.array(rows), side).clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).numpy()
    uris = []
    for image in pixels:
        buffer = io.BytesIO()
        Image.fromarray(image).save(buffer, "WEBP", quality=80, method=4)
        uris.append(f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}")
    return uris


def embedding_map(setting: Setting, *, data_root: str | None = None, classes: int = MAP_CLASSES) -> EmbeddingMap:
    """The frozen backbone's embeddings of some classes on two axes, with the data set and backbone of a setting.

    The axes are the first two principal components of the unit embeddings, of at most `MAP_IMAGES` images a class
    and domain; classes are the test classes with most images.

    Raises:
        DatasetError, BackboneError: the data set or the backbone is not there.
        ValueError: the backbone is not the one of the setting.
    """
    import torch

    from benchmarks.backbones import sources
    from benchmarks.datasets.base import dataset_root
    from benchmarks.datasets.pixels import unit_range

    dataset: Dataset = DATASETS.get(setting.dataset)(dataset_root(data_root, setting.dataset))
    backbone = sources.load(setting.backbone, device="cpu", precision="float32")
    if backbone.weights_hash != setting.weights_hash:
        raise ValueError(f"backbone {setting.backbone} has other weights now than these results")
    processing = backbone.processing.official() if setting.rules == "official" else backbone.processing
    identity = backbone_identity({**backbone.identity, "preprocessing": processing.record()})
    if setting.identity not in ("", identity):
        raise ValueError(f"backbone {setting.backbone} has another config, tokenizer or image processor now")
    table = dataset.table.reset_index(drop=True)
    test = table[table["split"] == "test"]
    table = test if len(test) else table
    names = table["class"].value_counts().sort_index().sort_values(ascending=False, kind="stable").index[:classes]
    picked = table[table["class"].isin(names)].groupby(["class", "domain"], sort=True).head(MAP_IMAGES)
    encoded = []
    with torch.inference_mode():
        for start in range(0, len(picked), 64):
            pixels = unit_range(dataset.processed(picked.index[start : start + 64].to_numpy(), processing))
            features = backbone.encode_images(backbone.normalize(pixels.to(backbone.device)))
            encoded.append(features.double().cpu().numpy())
    values = np.concatenate(encoded)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    centred = values - values.mean(0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    points = centred @ axes[:2].T
    share = float(points.var(0).sum() / centred.var(0).sum())
    return EmbeddingMap(points, tuple(picked["class"]), tuple(picked["domain"]), share)
