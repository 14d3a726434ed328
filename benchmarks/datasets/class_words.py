"""Class names as people write them on folders, read as words: ``001.Alarm_Clock`` is ``alarm clock``."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable

#: Numbering before a name, 001.ak47 (CUB, Caltech-256) or 001_ak47, or a WordNet id before or behind it
#: (n02085620-Chihuahua, Stanford Dogs).
_NUMBERED = re.compile(r"^(?:[0-9]+\.\s*|0[0-9]+[\s_-]+|n[0-9]{8}[\s_.-]+)(?=[^\W\d_])|[\s_.-]+n[0-9]{8}$")


def without_number(folder: str) -> str:
    """The name without a number and dot, a number with leading zeros or a WordNet id before it, or a WordNet id behind
    it; ``3.5 inch disk``, ``3_ring_binder`` and ``7`` stay."""
    return _NUMBERED.sub("", folder.strip())


def words_of(folder: str) -> str:
    """A class folder's name as words, one space between them.

    Underscores, and hyphens and dots between parts of two characters or more, are spaces; a number and dot, a number
    with leading zeros or a WordNet id before the name, or an id behind it, is numbering; ``AlarmClock`` is two words,
    and Capitalised words become lower case. Names that are only numbers or WordNet ids, acronyms (``TVs``,
    ``USB stick``), ``iPod`` and ``T-shirt`` stay.
    """
    name = unicodedata.normalize("NFC", folder).strip()
    if re.fullmatch(r"n[0-9]{8}|[\W\d_]+", name):
        return name
    name = " ".join(without_number(name).replace("_", " ").split())
    name = re.sub(r"(?<=[^\W\d_]{2})\.(?=[^\W\d_]{2})|(?<=[^\W_]{2})-(?=[^\W\d_]{2})", " ", name)
    return " ".join(word.lower() if _capitalised(word) else word for word in _split_camel(name).split())


def _capitalised(word: str) -> bool:
    return len(word) > 1 and word[0].isupper() and word[1:].islower() and word.isalpha()


def _split_camel(name: str) -> str:
    """Spaces before the capitals inside a word, but not in iPod, McDonald, TVs."""
    made: list[str] = []
    for word in name.split():
        parts = re.findall(r"[A-Z]{2,}(?=[A-Z][a-z]{2})|[A-Z][a-z]+|[a-z]+|[A-Z]+", word)
        whole = "".join(parts) == word and len(parts) > 1
        plain = whole and all(len(part) > 2 or (part.isupper() and len(part) > 1) for part in parts)
        made += parts if plain and parts[0] != "Mac" else [word]
    return " ".join(made)


def same_name(words: str) -> str:
    """What spellings of one name share: no case, no spaces or hyphens between letters; ``C++`` is not ``C``."""
    return re.sub(r"(?<=[^\W\d_])[ -](?=[^\W\d_])", "", words.casefold())


def read_classes(folders: Iterable[tuple[str, str]]) -> dict[str, str]:
    """``(domain, class folder)`` pairs -> the class of every folder name.

    Folders with the same name as words are one class, called by the spelling with the fewest capitals. Names that
    one domain distinguishes by number (``001.crane``, ``002.crane``) or, for single words, by case alone (``Turkey``,
    ``turkey``) stay separate classes, with the names as they are written.
    """
    groups: dict[str, dict[str, set[str]]] = {}
    for domain, folder in folders:
        groups.setdefault(same_name(words_of(folder)), {}).setdefault(folder, set()).add(domain)
    names_of: dict[str, str] = {}
    for spellings in groups.values():
        if _apart(spellings):
            names_of |= {folder: folder for folder in spellings}
            continue
        read = {words_of(folder) for folder in spellings}
        best = min(read, key=lambda name: (sum(map(str.isupper, name)), -name.count(" "), name))
        names_of |= dict.fromkeys(spellings, best)
    return names_of


def _apart(spellings: dict[str, set[str]]) -> bool:
    """Whether one domain has two of these folders that differ in number, or in the case of one word, alone."""
    names = sorted(spellings)
    for place, first in enumerate(names):
        for second in names[place + 1 :]:
            if not spellings[first] & spellings[second]:
                continue
            numbered = without_number(first) != first.strip() and without_number(second) != second.strip()
            if numbered or (first.casefold() == second.casefold() and first.isalnum()):
                return True
    return False


def plain_name(name: str) -> str:
    """A class name with its letters and digits only, lower case: what spellings of one name share."""
    return re.sub(r"[\W_]+", "", unicodedata.normalize("NFC", name)).casefold()
