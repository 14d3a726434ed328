"""WordNet ids as ImageNet and related data sets write them (``n02084071``: a noun's offset in WordNet 3.0)."""

from __future__ import annotations

import contextlib
import re
import warnings
from typing import Any

from benchmarks.datasets.base import DatasetError


def synset_of(wnid: str) -> Any:
    """NLTK's synset of a WordNet id, from the embedded WordNet; raises :class:`DatasetError` if there is none."""
    from nltk.corpus import wordnet

    synset = None
    if re.fullmatch(r"n\d{8}", wnid):
        with warnings.catch_warnings(), contextlib.suppress(Exception):  # whatever it finds between two entries
            warnings.simplefilter("ignore")
            synset = wordnet.synset_from_pos_and_offset("n", int(wnid[1:]))
    if synset is None or synset.offset() != int(wnid[1:]):
        raise DatasetError(f"{wnid} is not a noun of WordNet 3.0")
    return synset


def synset_name(wnid: str) -> str:
    """The synset's name, such as ``dog.n.01``."""
    name: str = synset_of(wnid).name()
    return name
