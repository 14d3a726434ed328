"""``folder``: your own images, any ``ROOT/domain/class/*`` tree, with splits made by a stated rule.

The rule, with the defaults that ``ROOT/folder.toml`` may change (``gallery_domain``, ``seed``, ``test_share``,
``val_share``, ``held_back_share``):

0. Class folders are read as words (:mod:`benchmarks.datasets.class_words`): ``alarm_clock``, ``AlarmClock`` and
   ``001.alarm_clock`` are the class ``alarm clock``. ``exact_names = true`` takes them as they are written. The table
   ``[synsets]`` may give WordNet synsets of classes: ``mouse = "mouse.n.04"``.
1. A domain is a folder under the root that holds class folders with images; two at least.
2. The gallery domain is ``real``, ``photo``, ``photos``, ``image`` or ``images`` if there is one (in that order), else
   the domain with most images, the first by name if equal.
3. Validation and test classes are drawn among the classes with images in every domain, in the order of
   ``sha256("SEED/class/NAME")``, NAME without capitals: the first quarter is test, the next 15 % val, at least one
   each; all others are train.
4. Of every train class a fifth of the gallery domain's images, those whose key has the lowest sha256, is held back.
5. UDA: all ordered pairs of the four domains with most images, over the classes with three images in each of them.
6. DAZSL: from the domain with most images (the gallery domain excepted) to the gallery domain; seen are the train
   classes with three source images and one target image, unseen the test classes.
"""

from __future__ import annotations

import dataclasses
import itertools
import re
import tomllib
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.datasets.base import ClosedSet, DatasetCard, DatasetError, RetrievalCut
from benchmarks.datasets.class_words import plain_name, read_classes, same_name, words_of
from benchmarks.datasets.folder_dataset import FolderDataset
from benchmarks.datasets.splits import class_splits, held_back
from benchmarks.datasets.tree_scan import IMAGE_SUFFIXES, Finding, Listing, Place, scan, usable_entries

SETTINGS = "folder.toml"
PHOTOGRAPHS = ("real", "photo", "photos", "image", "images")

#: Names of domains, as :func:`plain_name` gives them; two of them as class folders, and none as a domain folder, show a
#: tree with the two levels the other way round.
USUAL_DOMAINS = frozenset(
    (
        *("real", "realworld", "photo", "photos", "photograph", "photographs", "photography", "sketch", "sketches"),
        *("drawing", "drawings", "linedrawing", "clipart", "cartoon", "cartoons", "comic", "painting", "paintings"),
        *("art", "artpainting", "watercolor", "quickdraw", "infograph", "product", "synthetic", "rendered"),
    )
)

#: Folders that are often between a domain and its classes.
BETWEEN = frozenset({"images", "image", "imgs", "train", "test", "val", "valid", "validation", "data"})


def _similar_domains(domains: list[str]) -> list[Finding]:
    """A finding for every domain whose name differs from another's in case, spaces or punctuation only."""
    first: dict[str, str] = {}
    pairs = [(name, first.setdefault(plain_name(name) or name, name)) for name in domains]
    return [
        Finding(
            "similar_names", name, f"this domain's name is almost that of {other!r}; if both are one domain, join them"
        )
        for name, other in pairs
        if name != other
    ]


def _swapped(domains: list[str], classes: list[str]) -> str:
    """For an error, two class folders that are called as domains are, where no domain folder is; else ""."""
    named = [name for name in classes if plain_name(name) in USUAL_DOMAINS]
    if len(named) < 2 or len(domains) <= len(classes) or any(plain_name(name) in USUAL_DOMAINS for name in domains):
        return ""
    return f"such as {domains[0]}/{{{','.join(named[:2])}}}"


def _almost_equal(domains_of: Mapping[str, frozenset[str]]) -> dict[str, str]:
    """Class -> another class of almost its name, where no domain has both: they differ in a plural's ending, in
    numbering or in punctuation (``12-airplane`` and ``airplane``, ``anchors`` and ``anchor``)."""
    by_name: dict[str, list[str]] = {}
    for name in sorted(domains_of):
        by_name.setdefault(re.sub(r"^[0-9]+(?=[^0-9]{3})", "", plain_name(name)), []).append(name)
    pairs: dict[str, str] = {}
    for plain, names in by_name.items():
        others = [other for ending in ("", "s", "es") for other in by_name.get(plain + ending, ()) if len(plain) > 2]
        for name in names:
            for other in others:
                if other != name and other not in pairs and not domains_of[name] & domains_of[other]:
                    pairs.setdefault(name, other)
    return pairs


def _flat_layout_hint(root: Path) -> str:
    """For an error, where the images are one folder below the root: those are classes without domains."""
    if not any(file.suffix.lower() in IMAGE_SUFFIXES for file in itertools.islice(root.glob("*/*"), 1000)):
        return ""
    return "; the layout is ROOT/DOMAIN/CLASS/*: put these class folders into a folder per domain"


def _braces(domain: str, names: list[str]) -> str:
    return f"{domain}/{names[0]}" if len(names) == 1 else f"{domain}/{{{','.join(names)}}}"


@dataclass(frozen=True)
class FolderRule:
    """The settings in ``folder.toml``; ``gallery_domain`` "" lets the rule choose."""

    gallery_domain: str = ""
    seed: int = 0
    test_share: float = 0.25
    val_share: float = 0.15
    held_back_share: float = 0.2
    exact_names: bool = False
    synsets: dict[str, str] = field(default_factory=dict)


def read_rule(file: Path) -> FolderRule:
    """The settings of a tree; the defaults if there is no file. Raises :class:`DatasetError` naming file and key."""
    if not file.is_file():
        return FolderRule()
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise DatasetError(f"{file} is not TOML: {' '.join(str(error).split())}") from error
    known = dict(vars(FolderRule()))
    stated = values.get("synsets", {})
    if not isinstance(stated, dict) or not all(isinstance(entry, str) for entry in stated.values()):
        raise DatasetError(f'{file}: synsets must be a table of class = "synset", such as mouse = "mouse.n.04"')
    for key, value in values.items():
        if key not in known:
            raise DatasetError(f"{file}: unknown key {key!r}; known are {', '.join(known)}")
        wanted = type(known[key])
        if isinstance(value, bool) is not (wanted is bool) or not isinstance(
            value, (int, float) if wanted is float else wanted
        ):
            raise DatasetError(f"{file}: {key} must be {wanted.__name__}, not {value!r}")
    rule = FolderRule(**values)
    shares: dict[str, Any] = {key: getattr(rule, key) for key in known if key.endswith("_share")}
    for key, value in shares.items():
        if not 0 < value < 1:
            raise DatasetError(f"{file}: {key} must be between 0 and 1, not {value}")
    if rule.test_share + rule.val_share >= 1:
        raise DatasetError(f"{file}: test_share and val_share leave no train classes; their sum must be below 1")
    return rule


class OwnFolder(FolderDataset):
    """A tree of the user's. Its card is made for the tree: the gallery domain is chosen when it is first read."""

    card = DatasetCard(
        name="folder",
        title="Your own images",
        version="v1",
        source="yours",
        licence="yours",
        gallery_domain="",
        headline=RetrievalCut(map_at=None, precision_at=None),
        layout="ROOT/DOMAIN/CLASS/*, optionally ROOT/folder.toml",
    )

    def __init__(self, root: Path | None = None) -> None:
        super().__init__(root)
        with self._errors_named():
            if root is None or not root.is_dir():
                return
            self.rule = read_rule(root / SETTINGS)
        gallery = self._gallery(self.listing.images)
        vars(self)["card"] = dataclasses.replace(self.card, gallery_domain=gallery)  # over the class's, for this tree

    def read(self, root: Path) -> Listing:
        """Every folder under the root that is not hidden is a domain."""
        entries, odd = usable_entries(root)
        names = [entry.name for entry in entries if Path(entry.path).is_dir()]  # False for a link to itself
        odd += [
            Finding(
                "link",
                entry.name,
                "a link to nothing, or to itself; not a domain: remove it, or link a folder under this root",
            )
            for entry in entries
            if entry.is_symlink() and not Path(entry.path).exists()
        ]
        if not names:
            why = f" ({odd[0]})" if odd else ""
            raise DatasetError(f"{root} has no domain folders{why}; the layout is {self.card.layout}")
        odd += [
            Finding("not_read", entry.name, "beside the domain folders; not read", "beside the domain folders")
            for entry in entries
            if entry.name not in names and entry.name.lower().endswith(IMAGE_SUFFIXES) and entry.is_file()
        ]
        listing = scan(root, [Place(unicodedata.normalize("NFC", name), (name,), optional=True) for name in names])
        findings = tuple(
            entry for entry in listing.findings if entry.kind != "second_folder"
        )  # each is a domain of its own
        odd += _similar_domains(sorted(set(listing.images["domain"])))
        linked = {finding.path for finding in listing.findings if finding.kind == "link"}
        empty = sorted(set(names) - set(listing.images["path"].str.partition("/")[0]) - linked)
        deeper = self._deeper(root)
        for name in empty:
            why = (
                f": its class folders are in {_braces(name, deeper[name])}, move them to {name}/"
                if name in deeper
                else ""
            )
            odd.append(Finding("empty_folder", name, f"has no class folders with images, so it is not a domain{why}"))
        return Listing(listing.images, (*findings, *odd))

    def looks_like_root(self, folder: Path) -> bool:
        """Whether two folders in it hold class folders with images."""
        return sum(map(self._holds_classes, sorted(folder.iterdir()))) > 1 if folder.is_dir() else False

    def _deeper(self, root: Path) -> dict[str, list[str]]:
        """Domain folders whose class folders are one level too deep, with the folders between."""
        middle_folders: dict[str, list[str]] = {}
        for domain in sorted(root.iterdir()):
            middle = (
                [entry.name for entry in sorted(domain.iterdir()) if self._holds_classes(entry)]
                if domain.is_dir()
                else []
            )
            if middle and not domain.name.startswith("."):
                middle_folders[domain.name] = middle
        return middle_folders

    @staticmethod
    def _share_classes(root: Path, deeper: dict[str, list[str]]) -> bool:
        """Whether several domains have class folders of the same names in the folders between."""
        classes = [
            {entry.name for name in names for entry in (root / domain / name).iterdir()}
            for domain, names in deeper.items()
        ]
        return len(classes) > 1 and bool(set.intersection(*classes))

    @staticmethod
    def _holds_classes(folder: Path) -> bool:
        """Whether there are images one folder below, and none in the folder itself."""
        if not folder.is_dir() or folder.name.startswith("."):
            return False
        return any(file.suffix.lower() in IMAGE_SUFFIXES for file in itertools.islice(folder.glob("*/*"), 1000))

    def _hint(self, root: Path) -> str:
        """For an error: the folder between domain and class, where there is one in several domains."""
        try:
            deeper = self._deeper(root) if root.is_dir() else {}
        except OSError:
            deeper = {}
        between = {name for names in deeper.values() for name in names}
        parts = all(name.casefold() in BETWEEN for name in deeper)
        if len(deeper) > 1 and parts and not {name.casefold() for name in between} <= BETWEEN:
            places = " and ".join(_braces(name, deeper[name]) for name in deeper)
            return f"; the domain folders are one level too deep, in {places}: join them, so that they are DOMAIN/CLASS"
        first, *others = deeper or [""]
        shared = bool(others) and between == set.intersection(*map(set, deeper.values()))
        alone = all(len(names) == 1 for names in deeper.values()) and self._share_classes(root, deeper)
        if not deeper or not (shared or alone or (between and between <= BETWEEN)):
            return super()._hint(root) or _flat_layout_hint(root)
        places = _braces(first, deeper[first])
        return (
            f"; the class folders are one level too deep, in {places}: move them up, so that they are {first}/CLASS"
            + (f" (in all of {', '.join(deeper)})" if len(deeper) > 1 else "")
        )

    def _gallery(self, images: pd.DataFrame) -> str:
        counts = images.groupby("domain").size()
        if len(counts) < 2:
            out = [
                str(entry)
                for entry in self.listing.findings
                if entry.kind in ("link", "empty_folder") and "/" not in entry.path
            ]
            why = f" (left out: {'; '.join(out[:3])})" if out else ""
            raise DatasetError(f"folder: {self.folder} has only the domain {counts.index[0]}; two are needed{why}")
        wanted = unicodedata.normalize("NFC", self.rule.gallery_domain)
        if wanted and wanted not in counts.index:
            raise DatasetError(
                f"folder: {self.folder / SETTINGS}: no domain {wanted!r}; there are {', '.join(counts.index)}"
            )
        if wanted:
            return wanted
        named = {str(name).casefold(): str(name) for name in counts.index}
        known = next((named[name] for name in PHOTOGRAPHS if name in named), None)
        return known or min(map(str, counts.index), key=lambda name: (-counts[name], name))

    def arrange(self, images: pd.DataFrame) -> pd.DataFrame:
        """The rule of this module."""
        images = self._read_classes(images)
        counts = images.groupby(["class", "domain"]).size().unstack(fill_value=0)
        everywhere = counts.index[(counts > 0).all(axis=1)]
        swapped = _swapped(list(counts.columns), list(counts.index))
        if swapped:
            raise DatasetError(
                f"{self.folder}: the layout is ROOT/DOMAIN/CLASS/*, and these folders are CLASS/DOMAIN ({swapped}):"
                " swap the two levels"
            )
        if len(everywhere) < 3:
            hint = "; if the folders are CLASS/DOMAIN, swap the two levels" if len(counts.columns) > len(counts) else ""
            raise DatasetError(
                f"{self.folder}: {len(everywhere)} classes are in every domain ({', '.join(counts.columns)}); "
                f"three are needed: train, validation and test{hint}"
            )
        rule = self.rule
        plain = {name: name.casefold() for name in everywhere}
        if rule.exact_names or len(set(plain.values())) < len(plain):
            plain = {name: name for name in everywhere}
        drawn = class_splits(plain.values(), seed=rule.seed, val_share=rule.val_share, test_share=rule.test_share)
        split_of = {name: drawn[plain[name]] for name in everywhere}
        split = images["class"].map(lambda name: split_of.get(name, "train"))
        train = set(images["class"][split == "train"])
        held = held_back(images, train, self.card.gallery_domain, share=rule.held_back_share)
        return images.assign(split=split, held_back=held)

    def _read_classes(self, images: pd.DataFrame) -> pd.DataFrame:
        """Class folders read as words; a note for every class that is spelled in several ways, or kept apart."""
        pairs = sorted(set(zip(images["domain"], images["class"], strict=True)))
        folders = sorted({folder for _, folder in pairs})
        names = {folder: folder for folder in folders} if self.rule.exact_names else read_classes(pairs)
        spelled: dict[str, list[str]] = {}
        for folder in folders:
            spelled.setdefault(names[folder], []).append(folder)
        for name, several in spelled.items():
            if len(several) > 1:
                self.note("similar_names", name, f"one class, read from the folders {', '.join(map(repr, several))}")
        first_of: dict[str, str] = {}
        for name in spelled:
            other = first_of.setdefault(words_of(name).casefold(), name)
            if other != name:
                differs = "differs from {} in case only" if other.casefold() == name.casefold() else "reads as {} does"
                self.note("similar_names", name, f"{differs.format(other)}; if both are one class, rename one")
        images = images.assign(**{"class": images["class"].map(names)})
        by_class = images.drop_duplicates(["class", "domain"]).groupby("class")["domain"]
        for name, other in _almost_equal({str(key): frozenset(domains) for key, domains in by_class}).items():
            reason = f"almost the name of {other!r}, which is in other domains; if both are one class, rename one"
            self.note("similar_names", name, reason)
        return images

    @property
    def name_notes(self) -> tuple[str, ...]:
        """What a run reports about the class names."""
        domains = set(self.domains)
        similar = [entry for entry in self.findings if entry.kind == "similar_names"]
        notes = [f"domain {entry.path!r}: {entry.reason}" for entry in similar if entry.path in domains]
        notes += [f"class {entry}" for entry in similar if entry.path not in domains]
        return (*notes[:5], *([f"and {len(notes) - 5} more names of several spellings"] if len(notes) > 5 else []))

    @property
    def synsets(self) -> Mapping[str, str]:
        """The synsets in ``folder.toml``; raises :class:`DatasetError` for a class or synset that does not exist."""
        if self.root is None or not self.root.is_dir() or not self.rule.synsets:
            return {}
        return self._synsets_from_settings

    @cached_property
    def _synsets_from_settings(self) -> dict[str, str]:
        from methods.parts.senses import WordNetError, named_synset

        file, known = self.folder / SETTINGS, {same_name(words_of(name)): name for name in self.classes()}
        known |= {name: name for name in self.classes()}
        middle_folders = {}
        for name, synset in self.rule.synsets.items():
            written = unicodedata.normalize("NFC", name)
            class_name = known.get(written) or known.get(same_name(words_of(written)))
            if class_name is None:
                raise DatasetError(f"folder: {file}: synsets names {name!r}, which is not a class here")
            if class_name in middle_folders:
                raise DatasetError(f"folder: {file}: synsets names the class {class_name!r} twice; keep one line")
            try:
                middle_folders[class_name] = str(named_synset(class_name, synset).name())
            except WordNetError:
                raise DatasetError(f"folder: {file}: WordNet has no noun synset {synset!r} (class {name!r})") from None
            if not synset.split(".")[-2:-1] == ["n"]:
                raise DatasetError(f"folder: {file}: {synset!r} (class {name!r}) is not a noun synset")
        return middle_folders

    @cached_property
    def closed_set(self) -> ClosedSet:
        """UDA and DAZSL by the rule of this module; empty where too few images are shared."""
        table, gallery = self.table, self.card.gallery_domain
        counts = table.groupby(["class", "domain"]).size().unstack(fill_value=0)
        order = sorted(self.domains, key=lambda name: (-counts[name].sum(), name))
        domains = tuple(sorted(order[:4]))
        shared = tuple(sorted(counts.index[(counts[list(domains)] >= 3).all(axis=1)]))
        source = next(name for name in order if name != gallery)
        split = table.drop_duplicates("class").set_index("class")["split"].reindex(counts.index)
        shown = counts[gallery] >= 1
        seen = tuple(sorted(counts.index[shown & (counts[source] >= 3) & (split == "train")]))
        unseen = tuple(sorted(counts.index[shown & (split == "test")]))
        return ClosedSet(
            uda_domains=domains if len(shared) >= 2 else (),
            uda_classes=shared if len(shared) >= 2 else (),
            dazsl_pairs=((source, gallery),) if seen and unseen else (),
            seen=seen,
            unseen=unseen,
        )
