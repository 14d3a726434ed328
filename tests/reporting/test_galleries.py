"""Galleries from lists in the store and a data set's images: which queries, which marks, and what does not fit."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from benchmarks.reporting import galleries as galleries_module
from benchmarks.reporting import page, plots
from benchmarks.reporting.data import ReportData
from benchmarks.reporting.files import write_report
from benchmarks.reporting.galleries import galleries
from benchmarks.reporting.tables import settings_of
from benchmarks.reporting.types import Galleries
from benchmarks.store.files import ResultStore
from benchmarks.store.frame import load_results
from benchmarks.store.records import backbone_identity
from tests.reporting.conftest import add
from tests.reporting.reading import Page

NAMES = ("one_cross", "one_ring", "two_box", "two_wedge")


def table_of(domain: str, places: dict[str, int]) -> pd.DataFrame:
    """A query a class; its own class's image is at the given place, the others before and after it."""
    rows = []
    for name, place in places.items():
        others = [other for other in NAMES if other != name]
        order = [*others[:place], name, *others[place:]]
        rows.append(
            {
                "query": f"{domain}/{name}/0", "class": name, "domain": domain, "gallery": "unseen", "n_relevant": 1,
                "ap@all": 1 / (place + 1), "recall@1": float(place == 0),
                "top_keys": [f"flat/{other}/1" for other in order], "top_scores": [0.5] * 4,
            }
        )  # fmt: skip
    return pd.DataFrame(rows)


@pytest.fixture
def shown(store: ResultStore, tiny_dataset: type) -> ResultStore:
    """Two methods and a floor on two domains; one_ring is the hardest class, in ``line`` harder than in ``sketch``."""
    for domain, ring in (("line", 3), ("sketch", 2)):
        add(
            store,
            "good",
            table_of(domain, {"one_cross": 0, "one_ring": ring, "two_box": 1, "two_wedge": 0}),
            split=domain,
        )
        add(
            store, "fair", table_of(domain, {"one_cross": 1, "one_ring": 3, "two_box": 1, "two_wedge": 0}), split=domain
        )
        add(store, "random", table_of(domain, dict.fromkeys(NAMES, 0)), split=domain)
    return store


def make(store: ResultStore, **options: int) -> Galleries:
    return galleries(ReportData(load_results(store.root), store=store, report=print), **options)


def test_the_hardest_queries_come_first_under_every_method(shown: ResultStore) -> None:
    found = make(shown, queries=2)
    assert [(query.domain, query.class_name) for query in found.queries] == [
        ("line", "one_ring"), ("sketch", "one_ring"), ("line", "two_box"), ("sketch", "two_box"),
        ("line", "one_cross"), ("sketch", "one_cross"),
    ]  # fmt: skip
    assert [query.spread for query in found.queries[-2:]] == [0.5, 0.5], "the methods disagree most on these"
    first = found.queries[0]
    assert {row.label for row in first.rows} == {"good", "fair", "random"}
    good = next(row for row in first.rows if row.label == "good")
    assert [hit.right for hit in good.hits] == [False, False, False, True]
    assert [hit.class_name for hit in good.hits] == ["one_cross", "two_box", "two_wedge", "one_ring"]
    assert good.score == 0.25
    assert first.score == pytest.approx(0.25), "floors do not say what is hard"


def test_a_query_without_a_relevant_image_is_not_among_the_hardest(shown: ResultStore) -> None:
    """It has no AP: among sorted scores NaN puts queries in the order of a set, another one in each process."""
    unanswerable = pd.concat([table_of("line", dict.fromkeys(NAMES, 0))] * 3, ignore_index=True)
    unanswerable["query"] = [f"line/{name}/{n}" for n, name in enumerate(unanswerable["class"], start=1)]
    unanswerable[["ap@all", "recall@1"]] = np.nan
    unanswerable["n_relevant"] = 0
    expected = make(shown).queries
    for method in ("good", "fair", "random"):
        places = {"one_cross": int(method == "fair"), "one_ring": 0 if method == "random" else 3}
        places |= {"two_box": int(method != "random"), "two_wedge": 0}
        add(shown, method, pd.concat([unanswerable, table_of("line", places)], ignore_index=True), split="line")
    found = make(shown).queries
    assert [(query.key, query.score) for query in found] == [(query.key, query.score) for query in expected]
    assert all(np.isfinite(query.score) for query in found)


def test_images_are_those_of_the_data_set(shown: ResultStore, tiny_dataset: type) -> None:
    found = make(shown, side=32)
    dataset = tiny_dataset()
    row = int(np.flatnonzero(dataset.table["key"] == "flat/one_ring/1")[0])
    kind, _, data = found.images["flat/one_ring/1"].partition(",")
    assert kind == "data:image/webp;base64"
    image = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"), dtype=float) / 255
    assert image.shape == (32, 32, 3)
    assert np.abs(image - dataset.pixels(np.array([row]), 32)[0].permute(1, 2, 0).numpy()).mean() < 0.05


def test_what_does_not_fit_is_said(shown: ResultStore) -> None:
    whole = make(shown)
    size = sum(map(len, whole.images.values()))
    found = make(shown, limit=size * 3 // 4)
    assert 0 < len(found.queries) < len(whole.queries)
    assert sum(map(len, found.images.values())) <= size * 3 // 4
    assert any("more queries are left out" in note for note in found.notes)
    assert not any("left out" in note for note in whole.notes)


def test_the_page_shows_right_and_wrong_by_border_and_sign(shown: ResultStore, tmp_path: Path) -> None:
    data = ReportData(load_results(shown.root), store=shown)
    parsed = Page(page.render(data, galleries=make(shown)))
    assert parsed.crossed == []
    cells = [given["class"] for tag, given in parsed.tags if tag == "td" and given.get("class") in ("right", "wrong")]
    signs = [text for text in parsed.texts if text in ("✓", "✗")]
    assert [{"right": "✓", "wrong": "✗"}[kind] for kind in cells] == signs
    assert {"right", "wrong"} == set(cells)


def test_the_sheet_shows_one_query_a_domain_without_floors(
    shown: ResultStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from matplotlib.axes import Axes

    written: list[str] = []
    text = Axes.text
    monkeypatch.setattr(Axes, "text", lambda self, x, y, s, **rest: (written.append(s), text(self, x, y, s, **rest))[1])
    found = make(shown, queries=2)
    [file] = plots.gallery_sheet(found, tmp_path)
    assert Image.open(file).width == 840
    assert [word for word in written if word in ("line", "sketch")] == ["line", "sketch"]
    assert written.count("one_cross") == 2, "of each domain the query that methods disagree most on"
    assert "random" not in written
    assert (written.count("good"), written.count("fair"), written.count("✓")) == (2, 2, 4)
    assert plots.gallery_sheet(Galleries((), {}), tmp_path / "none") == []


def test_missing_data_cost_the_galleries_only(shown: ResultStore, tmp_path: Path) -> None:
    add(shown, "good", table_of("line", {"one_cross": 0}), dataset="domainnet", protocol="ucdr", limit=3)
    lines: list[str] = []
    frame = load_results(shown.root)
    only = frame[frame["dataset"] == "domainnet"]
    data = ReportData(only, store=shown, report=lines.append, resamples=50)
    files = write_report(data, tmp_path / "out", images={"data_root": str(tmp_path)})
    assert any(line.startswith("retrieval galleries left out: DatasetError") for line in lines), lines
    assert files[-1].name == "index.html"


def test_embedding_map_needs_the_very_backbone(shown: ResultStore, tiny_folder: Path, tmp_path: Path) -> None:
    from methods.parts.backbone import Backbone

    frame = load_results(shown.root).assign(backbone=str(tiny_folder))
    with pytest.raises(ValueError, match="other weights"):
        galleries_module.embedding_map(settings_of(frame)[0])
    backbone = Backbone.load(tiny_folder)
    frame = frame.assign(weights_hash=backbone.weights_hash)
    with pytest.raises(ValueError, match="another config, tokenizer or image processor"):
        galleries_module.embedding_map(settings_of(frame.assign(identity="ab" * 16))[0])
    identity = backbone_identity({**backbone.identity, "preprocessing": backbone.preprocessing})
    frame = frame.assign(identity=identity)
    svg, png = plots.embedding_points(galleries_module.embedding_map(settings_of(frame)[0]), tmp_path)
    assert Image.open(png).width == 700
    assert svg.stat().st_size > 5000
