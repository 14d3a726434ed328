"""UCDR, UcCDR, UdCDR: who sees what (docs/protocols.md), and the released code's lists to the file (tests/golden)."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks.datasets.base import Dataset, DatasetCard, DatasetError, ReleasedListing
from benchmarks.datasets.picto_domains import PictoDomains, pack_path
from benchmarks.datasets.pixels import PixelCache
from benchmarks.protocols import official, uccdr, ucdr, udcdr
from benchmarks.protocols.task import Retrieval, Task
from benchmarks.protocols.training import training_data
from methods.interface import WithheldError
from tests.support.golden import golden_dir, golden_set
from tests.support.tiny_dataset import DOMAINS, TinyShapes

FAMILY = (ucdr.PROTOCOL, uccdr.PROTOCOL, udcdr.PROTOCOL)


def _datasets() -> list[Any]:
    packed = pytest.param(PictoDomains, marks=pytest.mark.skipif(not pack_path().is_file(), reason="no pack here"))
    return [pytest.param(TinyShapes, id="tiny"), packed]


@pytest.fixture(scope="module", params=_datasets())
def dataset(request: pytest.FixtureRequest) -> Dataset:
    made: Dataset = request.param()
    made.check()
    return made


def facts(dataset: Dataset, rows: np.ndarray) -> pd.DataFrame:
    return dataset.table.iloc[rows]


@pytest.mark.parametrize("protocol", FAMILY, ids=lambda protocol: protocol.name)
def test_who_sees_what(dataset: Dataset, protocol: Any) -> None:
    gallery_domain = dataset.card.gallery_domain
    splits = protocol.splits(dataset)
    assert set(splits) == set(dataset.domains) - {gallery_domain}
    for split in splits:
        task = protocol.task(dataset, split)
        task.check(dataset)
        held_out = None if protocol.name == "uccdr" else split
        train = facts(dataset, task.train)
        assert set(train["split"]) == {"train"}
        assert not train["held_back"].any()
        assert set(train["domain"]) == set(dataset.domains) - {held_out}
        expected = dataset.table[
            (dataset.table["split"] == "train") & ~dataset.table["held_back"] & (dataset.table["domain"] != held_out)
        ]
        assert task.train.tolist() == expected.index.tolist(), "all such images, none left out"
        assert task.class_names == dataset.classes("train")
        assert task.target is None
        assert tuple(one.name for one in task.retrievals) == protocol.galleries
        wanted = "train" if protocol.name == "udcdr" else "test"
        for one in task.retrievals:
            query, gallery = facts(dataset, one.query), facts(dataset, one.gallery)
            everything = dataset.table[(dataset.table["domain"] == split) & (dataset.table["split"] == wanted)]
            assert one.query.tolist() == everything.index.tolist()
            assert set(gallery["domain"]) == {gallery_domain}
            assert (
                set(gallery["split"]) == {"unseen": {"test"}, "seen": {"train"}, "mixed": {"test", "train"}}[one.name]
            )
            assert gallery.loc[gallery["split"] == "train", "held_back"].all()
            assert set(query["domain"]) == {split}
        assert task.validation is not None
        query, gallery = facts(dataset, task.validation.query), facts(dataset, task.validation.gallery)
        assert set(query["split"]) == set(gallery["split"]) == {"val"}
        assert set(query["domain"]) == set(dataset.domains) - {gallery_domain, held_out}
        assert set(gallery["domain"]) == {gallery_domain}


@pytest.mark.parametrize("protocol", FAMILY, ids=lambda protocol: protocol.name)
def test_nothing_asked_or_searched_was_trained_or_selected_on(dataset: Dataset, protocol: Any) -> None:
    content = np.array(dataset.content)
    for split in protocol.splits(dataset):
        task = protocol.task(dataset, split)
        assert task.validation is not None
        used = np.unique(np.concatenate([task.train, task.validation.query, task.validation.gallery]))
        for one in task.retrievals:
            tested = np.concatenate([one.query, one.gallery])
            assert not np.intersect1d(used, tested).size
            assert not np.intersect1d(content[used], content[tested]).size, "not under another name either"
            assert not np.intersect1d(content[one.query], content[one.gallery]).size
        trained = set(facts(dataset, used)["class"])
        if protocol.name != "udcdr":
            assert not trained & set(facts(dataset, task.retrievals[0].query)["class"])
            assert not trained & set(facts(dataset, task.retrievals[0].gallery)["class"])


def test_ucdr_and_udcdr_share_a_model_and_uccdr_has_one(dataset: Dataset) -> None:
    splits = ucdr.PROTOCOL.splits(dataset)
    for split in splits:
        assert ucdr.PROTOCOL.task(dataset, split).fit_id == udcdr.PROTOCOL.task(dataset, split).fit_id
    assert len({ucdr.PROTOCOL.task(dataset, split).fit_id for split in splits}) == len(splits)
    assert len({uccdr.PROTOCOL.task(dataset, split).fit_id for split in splits}) == 1
    assert ucdr.PROTOCOL.task(dataset, splits[0]).fit_id != ucdr.PROTOCOL.task(dataset, splits[0], "official").fit_id


def test_official_rules_keep_their_flaws_and_name_them(dataset: Dataset) -> None:
    for split in ucdr.PROTOCOL.splits(dataset):
        task = ucdr.PROTOCOL.task(dataset, split, "official")
        task.check(dataset)
        assert set(facts(dataset, task.train)["split"]) == {"train", "val"}
        assert task.class_names == (*dataset.classes("train"), *dataset.classes("val"))
        assert task.validation is not None
        assert np.array_equal(task.validation.query, task.retrievals[0].query), "selected on test"
        assert "selected on test" in task.notes
        seen = udcdr.PROTOCOL.task(dataset, split, "official")
        gallery = seen.retrievals[0].gallery
        assert set(gallery) <= set(seen.train), "the gallery was trained on"
        assert set(facts(dataset, gallery)["class"]) <= set(task.class_names[: official.UDCDR_CLASSES])
        assert not set(seen.retrievals[0].query) & set(seen.train)


def test_training_data_shows_the_task_and_nothing_else() -> None:
    dataset = TinyShapes()
    task = ucdr.PROTOCOL.task(dataset, "line")
    asked: list[Retrieval] = []

    def score(method: Any, retrieval: Retrieval) -> float:
        asked.append(retrieval)
        return 0.25

    shown = training_data(task, PixelCache(dataset, 16), score)
    table = facts(dataset, task.train).reset_index(drop=True)
    assert len(shown.images) == len(task.train) == 6 * 3 * 4
    assert [shown.class_names[i] for i in shown.labels] == table["class"].tolist()
    assert [shown.domain_names[i] for i in shown.domains] == table["domain"].tolist()
    assert shown.domain_names == tuple(d for d in DOMAINS if d != "line")
    assert set(shown.class_names) == set(dataset.classes("train"))
    assert set(shown.synsets) == {name for name in dataset.synsets if name in shown.class_names}
    index = torch.tensor([3, 0, 71])
    expected = dataset.pixels(task.train[index.numpy()], 16)
    assert (shown.images.pixels(index) - expected).abs().max() <= 0.5 / 255 + 1e-6
    assert list(shown.images.content)[71] == dataset.content[task.train[71]]
    assert shown.validate(None) == 0.25  # type: ignore[arg-type]
    assert asked == [task.validation]
    assert not shown.has_target
    with pytest.raises(WithheldError, match="ucdr shows no target"):
        _ = shown.target
    with pytest.raises(WithheldError):
        _ = shown.target_labels
    training_data(task, PixelCache(dataset, 16), score, select="oracle").validate(None)  # type: ignore[arg-type]
    assert asked[1] is task.retrievals[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("trained query", "test image 'line/.* is also trained on"),
        ("trained gallery", "test image 'flat/.* is also trained on"),
        ("query in gallery", "a query stands in the gallery"),
        ("empty", "no query images"),
        ("withheld class", "trains on classes whose names are withheld"),
    ],
)
def test_a_leaking_task_is_refused(change: str, message: str) -> None:
    dataset = TinyShapes()
    good = ucdr.PROTOCOL.task(dataset, "line")
    one, train, names = good.retrievals[0], good.train, good.class_names
    query, gallery = one.query, one.gallery
    if change == "trained query":
        train = np.union1d(train, query[:1])
    elif change == "trained gallery":
        train = np.union1d(train, gallery[:1])
    elif change == "query in gallery":
        gallery = np.union1d(gallery, query[:1])
    elif change == "empty":
        query = query[:0]
    else:
        names = names[1:]
    bad = Task("ucdr", "tiny", "clean", "line", train, names, (Retrieval("unseen", query, gallery),))
    with pytest.raises(DatasetError, match=message):
        bad.check(dataset)


# --- the released lists -----------------------------------------------------------------------------------------------


class GoldenTree(Dataset):
    """The fixture's synthetic file tree, listed in order of class lists and file names."""

    card = DatasetCard("golden", "Golden tree", "v1", "tests/golden", "MIT", gallery_domain="real")

    def __init__(self, splits: dict[str, Any]) -> None:
        super().__init__(None)
        self.lists = splits

    @cached_property
    def table(self) -> pd.DataFrame:
        split_of = {name: split for split in ("train", "val", "test") for name in self.lists[f"{split}_classes"]}
        rows = [
            {
                "key": f"{domain}/{name}/{domain[0]}_{number:03d}.jpg",
                "class": name,
                "domain": domain,
                "split": split_of[name],
                "held_back": False,
            }
            for domain, classes in self.lists["files_per_class"].items()
            for name, count in classes.items()
            for number in range(count)
        ]
        return pd.DataFrame(rows).sort_values("key", ignore_index=True)

    def pixels(self, rows: np.ndarray, size: int) -> torch.Tensor:
        raise AssertionError("only the lists are tested")

    @cached_property
    def content(self) -> Sequence[str]:
        return list(self.table["key"])

    def classes(self, split: str | None = None) -> tuple[str, ...]:
        """The fixture's own order: the seed of a class's sample is its place in this list."""
        return tuple(self.lists[f"{split}_classes"])


@pytest.fixture(scope="module")
def golden_splits() -> dict[str, Any]:
    splits: dict[str, Any] = golden_set().json("splits.json")
    return splits


def sha(paths: Sequence[str]) -> str:
    return hashlib.sha256("\n".join(paths).encode()).hexdigest()


class Listing:
    """What the rules of benchmarks/protocols/official.py make of the tree, as paths."""

    def __init__(self, dataset: GoldenTree, train_classes: Sequence[str]) -> None:
        self.keys = dataset.table["key"].to_numpy()
        self.listing = ucdr.OfficialListing(dataset, ucdr.Rows(dataset))
        self.train_classes = train_classes

    def files(self, domain: str, classes: Sequence[str] | None = None) -> list[list[int]]:
        return self.listing.files(domain, self.train_classes if classes is None else classes)

    def paths(self, rows: Sequence[int]) -> list[str]:
        return [str(self.keys[row]) for row in rows]


@pytest.fixture(scope="module")
def listing(golden_splits: dict[str, Any]) -> Listing:
    return Listing(GoldenTree(golden_splits), golden_splits["expected"]["full_train_classes"])


@pytest.mark.golden
def test_generalised_listing_is_the_released_one(listing: Listing, golden_splits: dict[str, Any]) -> None:
    expected, test_classes = golden_splits["expected"], golden_splits["test_classes"]
    training, rest = official.generalised(listing.files("real"))
    assert listing.paths(rest) == expected["gallery_generalised_test_seen"]
    assert listing.paths(training)[:100] == expected["gallery_generalised_train_first100"]
    assert len(training) == expected["gallery_generalised_train_count"]
    assert sha(listing.paths(training)) == expected["gallery_generalised_train_sha256_of_newline_join"]
    for role, domain in (("gallery", "real"), ("query", "quickdraw")):
        unseen = [row for files in listing.files(domain, test_classes) for row in files]
        seen = official.generalised(listing.files(domain))[1]
        assert len(unseen) == expected[f"{role}_plain_test_count"]
        assert sha(listing.paths(unseen)) == expected[f"{role}_plain_test_sha256_of_newline_join"]
        assert len(seen + unseen) == expected[f"{role}_generalised_test_count"] == expected[f"full_{role}_va_count"]
        assert sha(listing.paths(seen + unseen)) == expected[f"{role}_generalised_test_sha256_of_newline_join"]
        of_245 = official.generalised(listing.files(domain, expected["ucdra_variant"]["full_train_classes"]))[1]
        assert len(of_245 + unseen) == expected["ucdra_variant"][f"full_{role}_va_count"]
    of_gallery = [row for files in listing.files("real", test_classes) for row in files]
    assert len(of_gallery) == expected["gallery_generalised_test_unseen_count"]
    assert sha(listing.paths(of_gallery)) == expected["gallery_generalised_test_unseen_sha256_of_newline_join"]


@pytest.mark.golden
def test_udcdr_samples_are_the_released_ones(listing: Listing, golden_splits: dict[str, Any]) -> None:
    expected = golden_splits["expected"]
    assert (official.udcdr_share("quickdraw"), official.udcdr_share("painting")) == (0.1, 0.25)

    def sample(domain: str, share: float) -> list[str]:
        return listing.paths(official.udcdr_sample(listing.files(domain), share))

    gallery = sample("real", 0.1)
    assert sample("quickdraw", 0.1) == expected["udcdr_query_quickdraw_p010"]
    assert gallery == expected["udcdr_gallery_real_p010"]
    assert sample("painting", 0.25) == expected["udcdr_painting_p025"]
    trained = set(listing.paths(official.generalised(listing.files("real"))[0]))
    assert len(set(gallery) & trained) == expected["udcdr_gallery_also_in_training"] == len(gallery)


@pytest.mark.golden
def test_official_tasks_hold_the_released_lists(golden_splits: dict[str, Any]) -> None:
    """Held-out quickdraw: the task's rows are the released lists (as sets: the order of training files is theirs)."""
    expected, dataset = golden_splits["expected"], GoldenTree(golden_splits)
    keys = dataset.table["key"].to_numpy()
    task = ucdr.PROTOCOL.task(dataset, "quickdraw", "official")
    assert list(task.class_names) == expected["full_train_classes"]
    assert len(task.train) == expected["full_train_files_count"]
    domains = facts(dataset, task.train)["domain"].value_counts()
    for domain, count in expected["full_train_domain_counts"].items():
        assert int(domains.get(domain, 0)) == count
    unseen, mixed = task.retrievals
    assert len(unseen.query) == expected["full_query_te_count"]
    assert len(unseen.gallery) == expected["full_gallery_te_count"]
    assert len(mixed.gallery) == expected["gallery_generalised_test_count"]
    seen = udcdr.PROTOCOL.task(dataset, "quickdraw", "official").retrievals[0]
    assert set(keys[seen.query]) == set(expected["udcdr_query_quickdraw_p010"])
    assert set(keys[seen.gallery]) == set(expected["udcdr_gallery_real_p010"])
    assert len(np.intersect1d(seen.query, task.train)) == expected["udcdr_query_also_in_training"]
    assert len(np.intersect1d(seen.gallery, task.train)) == expected["udcdr_gallery_also_in_training"]
    painting = udcdr.PROTOCOL.task(dataset, "painting", "official").retrievals[0]
    assert set(keys[painting.query]) == set(expected["udcdr_painting_p025"])


@pytest.mark.golden
def test_the_full_training_list_is_the_released_one(listing: Listing, golden_splits: dict[str, Any]) -> None:
    """Gallery domain's 92 %, then the seen domain (painting), then the auxiliary ones, each class by class."""
    expected = golden_splits["expected"]
    for names, values in (
        (expected["full_train_classes"], expected),
        (expected["ucdra_variant"]["full_train_classes"], expected["ucdra_variant"]),
    ):
        rows = official.generalised(listing.files("real", names))[0]
        auxiliary = sorted(set(golden_splits["files_per_class"]) - {"quickdraw", "painting", "real"})
        for domain in ("painting", *auxiliary):
            rows += [row for files in listing.files(domain, names) for row in files]
        assert len(rows) == values["full_train_files_count"]
        assert sha(listing.paths(rows)) == values["full_train_files_sha256"]


class Golden245(GoldenTree):
    """The tree as UCDR-Adapter's code lists DomainNet."""

    released = ReleasedListing(trains_on_validation=False)


class GoldenPlain(GoldenTree):
    """The tree as the released code lists Sketchy and TU-Berlin."""

    released = ReleasedListing(mixed_gallery=False)


@pytest.mark.golden
def test_official_tasks_without_the_validation_classes(golden_splits: dict[str, Any]) -> None:
    """UCDR-Adapter's code: the same test, trained on 245 classes instead of 300."""
    expected, dataset = golden_splits["expected"]["ucdra_variant"], Golden245(golden_splits)
    task, usual = (ucdr.PROTOCOL.task(tree, "quickdraw", "official") for tree in (dataset, GoldenTree(golden_splits)))
    assert list(task.class_names) == expected["full_train_classes"] == golden_splits["train_classes"]
    assert len(task.train) == expected["full_train_files_count"]
    domains = facts(dataset, task.train)["domain"].value_counts()
    assert {name: int(domains.get(name, 0)) for name in dataset.domains} == expected["full_train_domain_counts"]
    assert task.notes == ("selected on test",), "validation classes are neither trained on nor asked for"
    assert np.array_equal(task.retrievals[0].gallery, usual.retrievals[0].gallery)
    assert set(task.retrievals[1].gallery) < set(usual.retrievals[1].gallery), "no images of validation classes"
    assert task.fit_id != usual.fit_id
    clean, clean_usual = (ucdr.PROTOCOL.task(tree, "quickdraw") for tree in (dataset, GoldenTree(golden_splits)))
    assert np.array_equal(clean.train, clean_usual.train)


@pytest.mark.golden
def test_official_tasks_without_a_mixed_gallery(golden_splits: dict[str, Any]) -> None:
    """The released code's plain listing: every image of a training class is trained on, and the gallery is unseen."""
    expected, dataset = golden_splits["expected"], GoldenPlain(golden_splits)
    for protocol in (ucdr.PROTOCOL, uccdr.PROTOCOL):
        task = protocol.task(dataset, "quickdraw", "official")
        task.check(dataset)
        assert [one.name for one in task.retrievals] == ["unseen"]
        assert len(task.retrievals[0].gallery) == expected["gallery_plain_test_count"]
        trained = facts(dataset, task.train)
        assert int((trained["domain"] == "real").sum()) == expected["gallery_plain_train_count"]
        assert list(task.class_names) == expected["full_train_classes"]
    assert [one.name for one in ucdr.PROTOCOL.task(dataset, "quickdraw").retrievals] == ["unseen", "mixed"], "clean"


@pytest.mark.golden
def test_the_golden_folder_is_the_one_asked_for() -> None:
    assert (golden_dir() / "splits.json").is_file()
    assert golden_set().folder == Path(golden_dir())
