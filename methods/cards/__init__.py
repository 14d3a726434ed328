"""Method cards: what a method is, where it comes from, and where its official code differs from the paper.

A card is data, ``methods/cards/NAME.toml``, checked when it is read; a method's class writes ``card =
read_card("coop")``. The keys are the fields of :class:`MethodCard`, with ``[extensions]`` as a table and one
``[[deviations]]`` table for each :class:`Deviation`. A method outside this package may write a :class:`MethodCard`
inline, or keep its own file and name its folder. Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

Similarity = Literal["cosine", "sqeuclidean"]

#: The folder of the cards of this package's methods.
FOLDER = Path(__file__).parent


class CardError(ValueError):
    """A card file that cannot be used; the message is one line and names the file and the fix."""


@dataclass(frozen=True)
class Deviation:
    """One place where the official (released) code does something else than the paper.

    ``switch`` names the config field that chooses (empty if the item is not switchable, with the reason in ``ours``).
    """

    topic: str
    paper: str
    released: str
    switch: str = ""
    ours: str = ""


@dataclass(frozen=True)
class MethodCard:
    """What a method is and where it comes from; ``floor`` marks a baseline without learned knowledge.

    ``extensions``: results that the paper does not define and this suite does, by protocol (``"ucdr"``) or by
    protocol and kind of question (``"uda/retrieval"``, ``"uda/classification"``), each with what is done. Results carry
    them.
    """

    name: str
    title: str
    authors: str
    venue: str
    year: int
    url: str
    trains: str
    similarity: Similarity = "cosine"
    bibtex: str = ""
    code_licence: str = ""
    deviations: tuple[Deviation, ...] = ()
    notes: str = ""
    floor: bool = False
    extensions: Mapping[str, str] = field(default_factory=dict)

    def extension(self, protocol: str, kind: Literal["retrieval", "classification"]) -> str:
        """What this suite does where the paper defines nothing, or "" where the paper does.

        A protocol's variants (``uda_inductive``) take its entry.
        """
        for key, text in self.extensions.items():
            name, _, question = key.partition("/")
            if (protocol == name or protocol.startswith(f"{name}_")) and question in ("", kind):
                return text
        return ""


def read_card(name: str, folder: Path | str = FOLDER) -> MethodCard:
    """The card in ``FOLDER/NAME.toml``.

    Raises :class:`CardError` if there is no such file, it is not TOML, a key is unknown, missing or of the wrong type,
    its name is not the file's, or a deviation is repeated.
    """
    path = Path(folder) / f"{name}.toml"
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CardError(f"{path}: cannot be read ({error.strerror}); write the card of {name} there") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise CardError(f"{path}: is not TOML: {error}; correct that line") from error
    _check(path, "the card", MethodCard, values)
    if values["name"] != name:
        raise CardError(f"{path}: name is {values['name']!r}; write {name!r}, or rename the file")
    deviations: list[Deviation] = []
    for number, row in enumerate(values.get("deviations", []), 1):
        _check(path, f"deviation {number}", Deviation, row)
        deviations.append(Deviation(**row))
        if any(earlier.topic == deviations[-1].topic for earlier in deviations[:-1]):
            raise CardError(
                f"{path}: deviation {number} repeats the topic {deviations[-1].topic!r}; remove one of them"
            )
    return MethodCard(**{**values, "deviations": tuple(deviations)})


def _check(path: Path, where: str, kind: type, values: Mapping[str, Any]) -> None:
    """Raise :class:`CardError` unless ``values`` are the fields of the dataclass ``kind``, each of its type."""
    fields = {field.name: field for field in dataclasses.fields(kind)}
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"did you mean {near[0]}?" if near else f"the keys are {', '.join(fields)}"
            raise CardError(f"{path}: {where} has the unknown key {key!r}; {hint}")
    for key, entry in fields.items():
        required = entry.default is dataclasses.MISSING and entry.default_factory is dataclasses.MISSING
        if required and key not in values:
            raise CardError(f"{path}: {where} has no {key}; add a line {key} = ...")
    hints = typing.get_type_hints(kind)
    for key, value in values.items():
        expected = _mismatch(hints[key], value)
        if expected:
            raise CardError(f"{path}: {where} has {key} = {value!r}; write {expected}")


def _mismatch(hint: Any, value: Any) -> str:
    """What a value of this type is, in words, or "" if ``value`` is one."""
    origin = typing.get_origin(hint)
    if origin is Literal:
        return "" if value in typing.get_args(hint) else f"one of {', '.join(typing.get_args(hint))}"
    if origin is tuple:
        fits = isinstance(value, list) and all(isinstance(row, dict) for row in value)
        return "" if fits else "one [[deviations]] table for each"
    if origin is Mapping:
        fits = isinstance(value, dict) and all(isinstance(text, str) for text in value.values())
        return "" if fits else "a table of texts"
    words: Mapping[type, str] = types.MappingProxyType({str: "a text", int: "a whole number", bool: "true or false"})
    return "" if type(value) is hint else words[hint]
