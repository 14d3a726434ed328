"""Retrieval galleries and a map of embeddings: the parts of a report that need the data set (the map a backbone too).

A gallery shows a query and its ten best images under every method, from the lists that the store keeps. Images are
put into the page once each, as small WebP files; `LIMIT` bounds them, and what does not fit is said.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from benchmarks.reporting import grids, leaderboard
from benchmarks.reporting.leaderboard import Table, protocol_title
from benchmarks.store.files import ResultStore
from benchmarks.store.records import Record, RecordError, backbone_identity

if TYPE_CHECKING:
    from benchmarks.datasets.base import Dataset

#: Side of an image in pixels.
SIDE = 64

#: Bytes of all images of a page, as they stand in it.
LIMIT = 2_500_000

#: Results shown for a query, queries shown for a question and query domain, and classes of the map.
TOP, QUERIES, MAP_CLASSES, MAP_IMAGES = 10, 2, 7, 6


@dataclass(frozen=True)
class Hit:
    """An image retrieved."""

    key: str
    class_name: str
    right: bool


@dataclass(frozen=True)
class Ranked:
    """What a method retrieved for a query; ``score`` is the query's AP, ``floor`` as on the method's card."""

    label: str
    method: str
    score: float
    hits: tuple[Hit, ...]
    floor: bool = False


@dataclass(frozen=True)
class Query:
    """A query under every method; ``title`` names the question.

    ``score`` is the mean AP over methods that are no floors, ``spread`` the difference between their best and worst.
    """

    key: str
    class_name: str
    domain: str
    title: str
    score: float
    rows: tuple[Ranked, ...]
    spread: float = 0.0


@dataclass(frozen=True)
class Galleries:
    """Queries, the hardest first, and every image in them as a data URI by key."""

    queries: tuple[Query, ...]
    images: Mapping[str, str]
    notes: tuple[str, ...] = ()
    side: int = SIDE


def galleries(
    store: ResultStore,
    frame: pd.DataFrame,
    records: Mapping[str, Record],
    report: Callable[[str], None],
    *,
    data_root: str | None = None,
    side: int = SIDE,
    limit: int = LIMIT,
    queries: int = QUERIES,
) -> Galleries:
    """Galleries of the first ranked setting: for each protocol's first gallery the hardest queries of every domain.

    To each domain's hardest comes one query that the methods disagree on.

    Args:
        store: where the lists are read from.
        frame: results without ablations.
        records: by key.
        report: gets one line for each record whose lists cannot be used.
        data_root: folder of the data sets; None: the embedded one.
        side: of an image in pixels.
        limit: bytes of all images together.
        queries: the hardest ones of each question and domain.

    Raises:
        DatasetError: the data set is not there.
    """
    from benchmarks.datasets.base import dataset_root
    from benchmarks.datasets.registry import DATASETS

    settings = [one for one in leaderboard.settings_of(frame) if one.select != "oracle"]
    if not settings:
        return Galleries((), {}, ("There is no ranked setting to show images of.",), side)
    setting = settings[0]
    dataset: Dataset = DATASETS.get(setting.dataset)(dataset_root(data_root, setting.dataset))
    place = {str(key): row for row, key in enumerate(dataset.table["key"])}
    class_of = dict(zip(dataset.table["key"].astype(str), dataset.table["class"].astype(str), strict=True))
    rows = grids.of_setting(leaderboard.usable(frame), setting)
    labels = leaderboard.row_labels(rows)
    first: dict[str, Table] = {}
    for table in leaderboard.tables(frame, setting):
        if table.leads and table.metric.startswith("map@"):
            first.setdefault(table.protocol, table)
    asked: list[list[Query]] = []
    for table in first.values():
        by_domain: dict[str, list[Query]] = {}
        for query in _hardest(store, rows, labels, records, table, class_of, report):
            by_domain.setdefault(query.domain, []).append(query)
        chosen = [_chosen(own, queries) for own in by_domain.values()]
        asked += [[own[n] for own in chosen if n < len(own)] for n in range(queries + 1)]
    images: dict[str, str] = {}
    shown: list[Query] = []
    used, left_out = 0, 0
    for query in _in_turn(asked):
        keys = dict.fromkeys([query.key, *(hit.key for row in query.rows for hit in row.hits)])
        new = [key for key in keys if key not in images and key in place]
        made = dict(zip(new, _data_uris(dataset, [place[key] for key in new], side), strict=True))
        size = sum(map(len, made.values()))
        if used + size > limit:
            left_out += 1
            continue
        used += size
        images |= made
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


def _chosen(hardest: Sequence[Query], number: int) -> list[Query]:
    """The hardest, one a class, and of the others the one that methods disagree most on."""
    chosen: list[Query] = []
    for query in hardest:
        if len(chosen) < number and all(query.class_name != other.class_name for other in chosen):
            chosen.append(query)
    rest = [query for query in hardest if query not in chosen and query.spread > 0]
    return [*chosen, max(rest, key=lambda query: query.spread)] if rest else chosen


def _in_turn(rounds: Sequence[Sequence[Query]]) -> Iterator[Query]:
    """Queries of all questions by turns, so that a limit leaves some of each."""
    titles: dict[str, list[Query]] = {}
    for group in rounds:
        for query in group:
            titles.setdefault(query.title, []).append(query)
    for n in range(max(map(len, titles.values()), default=0)):
        yield from (own[n] for own in titles.values() if n < len(own))


def _hardest(
    store: ResultStore,
    rows: pd.DataFrame,
    labels: Mapping[Any, str],
    records: Mapping[str, Record],
    table: Table,
    class_of: Mapping[str, str],
    report: Callable[[str], None],
) -> list[Query]:
    """Queries that every method with scores has a list for, by mean AP over methods that are no floors."""
    own = rows[(rows["protocol"] == table.protocol) & (rows["gallery"] == table.gallery) & (rows["status"] == "ok")]
    found: dict[str, dict[tuple[str, str], Ranked]] = {}
    about: dict[tuple[str, str], tuple[str, str]] = {}
    column = table.metric.removeprefix("m")
    for identity, of_method in own.groupby(["method", "variant", "config"], sort=False):
        label, floor = labels[identity], bool(of_method["floor"].any())
        lists: dict[tuple[str, str], Ranked] = {}
        lowest = of_method[of_method["seed"] == of_method["seed"].min()]
        for key, split in lowest[["key", "split"]].drop_duplicates().itertuples(index=False):
            try:
                values = store.per_query(records[key])
            except (RecordError, KeyError) as error:
                report(f"{label} on {table.protocol}: {error.args[0]}; not in the galleries")
                continue
            values = values[values["gallery"] == table.gallery]
            if "top_keys" not in values.columns or column not in values.columns:
                continue
            values = values[values["top_keys"].notna()]
            names = ["query", "class", "domain", column, "top_keys"]
            for query, name, domain, score, keys in values[names].itertuples(index=False):
                where = (str(split), str(query))
                about[where] = (str(name), str(domain))
                hits = tuple(
                    Hit(one, class_of.get(one, "?"), class_of.get(one) == name) for one in map(str, keys[:TOP])
                )
                lists[where] = Ranked(label, str(identity[0]), float(score), hits, floor)
        if len(lowest["split"].unique()) == len(table.columns) and lists:
            found[label] = lists
    if not found:
        return []
    order = {row.label: n for n, row in enumerate(table.rows)}
    shared = set.intersection(*(set(lists) for lists in found.values()))
    queries = []
    for split, key in shared:
        ranked = sorted((lists[split, key] for lists in found.values()), key=lambda one: order[one.label])
        judged = [one.score for one in ranked if not one.floor] or [one.score for one in ranked]
        name, domain = about[split, key]
        of_transfer = f", {split}" if leaderboard.is_transfer(table.protocol) else ""
        title = f"{protocol_title(table.protocol)} {table.gallery}{of_transfer}"
        spread = max(judged) - min(judged)
        queries.append(Query(key, name, domain, title, float(np.mean(judged)), tuple(ranked), spread))
    queries.sort(key=lambda query: (query.score, query.domain, query.key, query.title))
    if leaderboard.is_transfer(table.protocol):  # of many transfers, each query once, under its hardest
        queries = list({query.key: query for query in reversed(queries)}.values())[::-1]
        queries = [replace(query, title=f"{protocol_title(table.protocol)} {table.gallery}") for query in queries]
    return queries


def _data_uris(dataset: Dataset, rows: Sequence[int], side: int) -> list[str]:
    """WebP images of these rows of the data set."""
    from PIL import Image

    if not rows:
        return []
    pixels = dataset.pixels(np.array(rows), side).clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).numpy()
    made = []
    for one in pixels:
        buffer = io.BytesIO()
        Image.fromarray(one).save(buffer, "WEBP", quality=80, method=4)
        made.append(f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}")
    return made


def embedding_map(
    frame: pd.DataFrame, folder: Path, *, data_root: str | None = None, classes: int = MAP_CLASSES
) -> list[Path]:
    """The frozen backbone's embeddings of some classes on two axes: colour is the class, shape the domain.

    Data set and backbone are those of the first setting of ``frame``.

    The axes are the first two principal components of the unit embeddings, of at most `MAP_IMAGES` images a class
    and domain; classes are the test classes with most images. Returns the files.

    Raises:
        DatasetError, BackboneError: the data set or the backbone is not there.
    """
    import torch

    from benchmarks.backbones import sources
    from benchmarks.datasets.base import dataset_root
    from benchmarks.datasets.pixels import unit_range
    from benchmarks.datasets.registry import DATASETS
    from benchmarks.reporting import plots

    setting = leaderboard.settings_of(frame)[0]
    dataset: Dataset = DATASETS.get(setting.dataset)(dataset_root(data_root, setting.dataset))
    backbone = sources.load(setting.backbone, device="cpu", precision="float32")
    if backbone.weights_hash != setting.weights_hash:
        raise ValueError(f"backbone {setting.backbone} has other weights now than these results")
    how = backbone.processing.released() if setting.rules == "official" else backbone.processing
    identity = backbone_identity({**backbone.identity, "preprocessing": how.record()})
    if setting.identity not in ("", identity):
        raise ValueError(f"backbone {setting.backbone} has another config, tokenizer or image processor now")
    table = dataset.table.reset_index(drop=True)
    test = table[table["split"] == "test"]
    table = test if len(test) else table
    names = table["class"].value_counts().sort_index().sort_values(ascending=False, kind="stable").index[:classes]
    picked = table[table["class"].isin(names)].groupby(["class", "domain"], sort=True).head(MAP_IMAGES)
    points = []
    with torch.inference_mode():
        for start in range(0, len(picked), 64):
            pixels = unit_range(dataset.processed(picked.index[start : start + 64].to_numpy(), how))
            points.append(backbone.encode_images(backbone.normalize(pixels.to(backbone.device))).double().cpu().numpy())
    values = np.concatenate(points)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    centred = values - values.mean(0)
    _, _, axes = np.linalg.svd(centred, full_matrices=False)
    share = (centred @ axes[:2].T).var(0).sum() / centred.var(0).sum()
    return plots.embedding_points(
        centred @ axes[:2].T, picked["class"].tolist(), picked["domain"].tolist(), float(share), folder
    )
