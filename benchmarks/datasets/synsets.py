"""Hand-checked WordNet synsets of the known data sets' classes (``benchmarks/assets/class_synsets/NAME.tsv``).

A line is a class, its noun synset in WordNet 3.0, how well it fits and the synset's definition. Each was chosen by its
definitions, for what the data set's images show. ``approximate``: WordNet has no synset for the class; the nearest
wider one is used.
"""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path

from benchmarks.datasets.base import DatasetError

#: The table of each data set by its name; several data sets share the classes of one.
TABLES: Mapping[str, str] = {
    "domainnet": "domainnet",
    "domainnet_245": "domainnet",
    "mini_domainnet": "domainnet",
    "sketchy": "sketchy",
    "sketchy_random": "sketchy",
    "tuberlin": "tuberlin",
    "office_home": "office_home",
    "visda": "visda",
    "visda_test": "visda",
    "pacs": "pacs",
    "vlcs": "vlcs",
    "terra_incognita": "terra_incognita",
}


@dataclass(frozen=True)
class CheckedSynset:
    """A class's synset; ``exact`` is False where it is only the nearest wider one."""

    synset: str
    exact: bool


@cache
def checked_synsets(dataset: str) -> Mapping[str, CheckedSynset]:
    """The table of a data set, by class name; empty for a data set without one.

    Raises :class:`DatasetError` if the file was damaged.
    """
    if dataset not in TABLES:
        return {}
    file = Path(str(resources.files("benchmarks"))) / "assets" / "class_synsets" / f"{TABLES[dataset]}.tsv"
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            rows = list(csv.DictReader(lines, delimiter="\t", quoting=csv.QUOTE_NONE))
        synsets_of = {
            row["class"]: CheckedSynset(row["synset"], {"exact": True, "approximate": False}[row["fit"]])
            for row in rows
        }
    except (OSError, ValueError, KeyError) as error:
        raise DatasetError(f"{file} cannot be read ({error}); reinstall the package") from error
    if len(synsets_of) != len(rows):
        raise DatasetError(f"{file} names a class twice; reinstall the package")
    return synsets_of
