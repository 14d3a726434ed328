"""A small store that has everything a page shows: seeds, floors, failures, extensions, ablations, costs, cards."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from benchmarks.store.files import ResultStore
from benchmarks.store.records import CellId, Cost, Fit, GalleryScores, Record, content_key

CLASSES = ("cat", "dog", "car", "truck", "apple", "pear")
DOMAINS = ("line", "pixel")


def retrieval_table(domain: str, skill: float, seed: int, gallery: str = "unseen") -> pd.DataFrame:
    """Two queries a class; a gallery of one image a class, ranked at random but for the skilled."""
    rng = np.random.default_rng([seed, len(domain)])
    rows: list[dict[str, Any]] = []
    for number in range(2 * len(CLASSES)):
        own = CLASSES[number // 2]
        others = [name for name in rng.permutation(CLASSES) if name != own]
        place = 0 if rng.random() < skill else int(rng.integers(1, len(CLASSES)))
        order = [*others[:place], own, *others[place:]]
        rows.append(
            {
                "query": f"{domain}/{own}/{number}", "class": own, "domain": domain, "gallery": gallery,
                "n_relevant": 1, "ap@all": 1 / (place + 1), "recall@1": float(place == 0), "p@100": 0.01,
                "top_keys": [f"flat/{name}/0" for name in order], "top_scores": [1.0 - i / 10 for i in range(6)],
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


def zero_shot_table(skill: float, seed: int) -> pd.DataFrame:
    """Two images a class and the classes answered; the last two classes are unseen."""
    table = retrieval_table("pixel", skill, seed, "target")[["query", "class", "domain", "gallery", "top_keys"]]
    answered = [[key.split("/")[1] for key in keys] for keys in table["top_keys"]]
    credit = np.array([float(names[0] == own) for names, own in zip(answered, table["class"], strict=True)])
    unseen = table["class"].isin(CLASSES[-2:]).to_numpy()
    return table.assign(top_keys=answered, credit=credit, unseen=unseen, zsl_credit=np.where(unseen, credit, np.nan))


def metrics_of(table: pd.DataFrame) -> dict[str, float]:
    if "credit" not in table:
        return {"map@all": float(table["ap@all"].mean()), "recall@1": float(table["recall@1"].mean())}
    seen, unseen = (float(table.loc[table["unseen"] == flag, "credit"].mean()) for flag in (False, True))
    return {"h[image]": 0.0 if seen * unseen == 0 else 2 / (1 / seen + 1 / unseen), "seen[image]": seen,
            "unseen[image]": unseen}  # fmt: skip


def add(store: ResultStore, method: str, tables: pd.DataFrame | None, **changes: Any) -> Record:
    """Store a record; ``extension``, ``trainable`` and ``reason`` besides fields of the cell."""
    extension, reason = changes.pop("extension", ""), changes.pop("reason", "RuntimeError: boom")
    trainable = changes.pop("trainable", 0)
    cell = CellId(
        **{
            "method": method, "variant": "paper", "config": {}, "backbone": "picto-clip-v2", "dataset": "tiny",
            "protocol": "ucdr", "rules": "clean", "split": "line", "select": "val", "seed": 0, **changes,
        }
    )  # fmt: skip
    inputs = {
        "scoring": 1,
        "cell": vars(cell),
        "dataset": {"data_hash": "ab" * 32},
        "backbone": {"weights_hash": "cd" * 32, "precision": "float32"},
    }
    galleries = {"unseen": ["map@all", "recall@1"]}
    if cell.protocol == "dazsl":
        galleries = {"target": ["h[image]", "seen[image]", "unseen[image]"]}
    scores = {}
    if tables is not None:
        name = next(iter(galleries))
        scores = {name: GalleryScores(metrics_of(tables), len(tables), 6, "cosine")}
    losses = [{"stage": "all", "step": i, "loss": 3 / (i + 1)} for i in range(20)] if trainable else []
    record = Record(
        key=content_key(inputs),
        status="ok" if tables is not None else "failed",
        cell=cell,
        inputs=inputs,
        method={
            "title": method,
            "floor": method == "random",
            "extensions": dict.fromkeys(galleries, extension) if extension else {},
        },
        dataset={"version": "v1", "gallery_domain": "flat"},
        galleries=galleries,
        scores=scores,
        fit=Fit(fit_id=cell.split, steps=len(losses), losses=losses, learning_rate=0.01 if trainable else None),
        cost=Cost({"fit": 4.0, "search": 9.0, "encode": 0.5, "rank": 0.01}, 900.0, None, 500.0, trainable, 10_000),
        reason="" if tables is not None else reason,
        created="2026-01-01T00:00:00+00:00",
    )
    return store.write(record, tables)


def fill(store: ResultStore) -> None:
    """Three methods and seeds on two domains and DAZSL; a failure, an extension, an oracle run, an ablation, cards."""
    for number, (method, skill) in enumerate((("good", 0.9), ("fair", 0.5), ("random", 0.1))):
        for seed in range(3):
            for split in DOMAINS:
                table = retrieval_table(split, skill, 10 * number + seed)
                add(store, method, table, split=split, seed=seed, trainable=256 * (method != "random"))
            add(store, method, zero_shot_table(skill, 10 * number + seed), protocol="dazsl", split="line to pixel",
                seed=seed, extension="as if <i>seen</i>" if method == "fair" else "",
                trainable=256 * (method != "random"))  # fmt: skip
    add(store, "stuck", None)
    add(store, "good", retrieval_table("line", 0.95, 1), select="oracle", trainable=256)
    for split in DOMAINS:
        table = retrieval_table(split, 0.2, 5)
        add(store, "good", table, split=split, config={"mask": False}, ablation="no_mask", trainable=256)
    store.write_card(
        "methods",
        "good",
        {
            "name": "good", "title": "A good method", "authors": "A. Author", "venue": "CVPR", "year": 2024,
            "url": "https://example.org/paper", "trains": "everything", "similarity": "cosine",
            "bibtex": "@inproceedings{good2024,\n  title = {Good}\n}", "notes": "",
            "deviations": [{"topic": "token", "paper": "class", "released": "prompt", "switch": "read_out"}],
        },
    )  # fmt: skip
    store.write_card("datasets", "tiny", {"name": "tiny", "title": "Tiny shapes", "known_problems": ["very few"]})
    store.write_resolved({"methods": ["good", "fair", "random"], "seeds": [0, 1, 2], "command": "python -m ..."})


@pytest.fixture
def store(tmp_path: Path) -> ResultStore:
    """An empty store."""
    return ResultStore(tmp_path / "results")


@pytest.fixture(scope="session")
def filled(tmp_path_factory: pytest.TempPathFactory) -> ResultStore:
    """`fill`'s store; tests must not write to it."""
    store = ResultStore(tmp_path_factory.mktemp("filled"))
    fill(store)
    return store
