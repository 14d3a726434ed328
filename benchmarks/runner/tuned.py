"""Learning rates that were searched beforehand: files ``benchmarks/presets/tuned/<backbone>.toml``, as data.

A rate is the best of a budget: a preset takes the rates that were searched with its own, where there are any
(``<backbone>-<preset>.toml``), else those of :data:`USUAL`, else any.

Each table ``[[rates]]`` is one search: of a method, on a protocol of a data set, with what it was made on and by. A
file belongs to the backbone whose hashes it states, whatever its name. ``python -m benchmarks.tune`` writes it
(:mod:`benchmarks.runner.tuning`); presets with ``tuned`` take their rates from it. Nothing here imports torch.
"""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.store.files import safe_name, write_atomically
from benchmarks.store.records import RecordError, parse_value

#: Folder of the committed files.
TUNED = Path(__file__).resolve().parents[1] / "presets" / "tuned"

#: The preset whose rates serve a preset that has none of its own.
USUAL = "standard"

#: Data set, hash of its data, protocol, method.
RateQuestion = tuple[str, str, str, str]

_AGAIN = "make it again with `python -m benchmarks.tune`, or delete it"


class TunedFileError(ValueError):
    """A file of tuned rates that cannot be used; one line that names the file and the fix."""


@dataclass(frozen=True)
class TunedRate:
    """A learning rate and the search that found it.

    ``trials``, ``rate_range`` and ``edge`` are those of :class:`benchmarks.store.records.Search`; ``paper`` is the rate
    searched around; ``splits`` are the protocol's splits on whose validation data it was searched; ``budget`` holds
    the preset's name and what each trial could spend; ``version`` is that of the method's code.
    """

    dataset: str
    data_hash: str
    protocol: str
    splits: list[str]
    method: str
    version: int
    paper: float
    learning_rate: float
    rate_range: list[float]
    edge: str
    seed: int
    budget: dict[str, Any]
    command: str
    trials: list[dict[str, Any]]

    @property
    def question(self) -> RateQuestion:
        """Data set, hash of its data, protocol and method; a file has one search of each."""
        return self.dataset, self.data_hash, self.protocol, self.method

    @property
    def outcome(self) -> str:
        """Text that is equal for searches with the same trials."""
        return json.dumps([self.learning_rate, self.edge, self.rate_range, self.trials], sort_keys=True)


def read_tuned(file: Path) -> tuple[dict[str, str], list[TunedRate]]:
    """The backbone's identity (name of a hash to the hash) and the rates of a file.

    Raises :class:`TunedFileError` for one that cannot be read or has a field missing, of a wrong type or unknown.
    """
    try:
        stated = tomllib.loads(file.read_text(encoding="utf-8"))
        identity = parse_value(dict[str, str], stated["identity"], "identity")
        entries = stated.get("rates", [])
        rates = [parse_value(TunedRate, entry, f"rates[{place}]") for place, entry in enumerate(entries)]
        known = {field.name for field in dataclasses.fields(TunedRate)}
        for place, entry in enumerate(entries):
            if unknown := set(entry) - known:
                raise RecordError(f"rates[{place}].{min(unknown)} is unknown")
        for place, rate in enumerate(rates):
            if not 0 < rate.learning_rate < float("inf"):
                raise RecordError(f"rates[{place}].learning_rate must be above 0, not {rate.learning_rate!r}")
    except IsADirectoryError as error:
        raise TunedFileError(
            f"{file}: a folder, not a file of rates; give it a name that does not end in .toml"
        ) from error
    except OSError as error:
        raise TunedFileError(f"{file}: {error.strerror or error}; {_AGAIN}") from error
    except KeyError as error:
        raise TunedFileError(f"{file}: {error.args[0]} is missing; {_AGAIN}") from error
    except (ValueError, TypeError) as error:  # RecordError and errors of TOML and of UTF-8 are ValueErrors
        raise TunedFileError(f"{file}: {error}; {_AGAIN}") from error
    return identity, rates


def file_name(backbone: str, preset: str) -> str:
    """The name of the file of a backbone's rates that were searched with a preset's budget."""
    name = safe_name(backbone)
    return f"{name}.toml" if preset == USUAL else f"{name}-{safe_name(preset)}.toml"


def tuned_rates(
    identity: Mapping[str, str], folder: Path | None = None, *, preset: str = USUAL
) -> dict[RateQuestion, TunedRate]:
    """The rates of the backbone with this identity by `TunedRate.question`, of all files in the folder.

    Those searched with the budget of ``preset`` come before those of :data:`USUAL`, and these before all others.
    Raises :class:`TunedFileError` for any file that cannot be used.
    """
    found: list[TunedRate] = []
    for file in sorted((folder or TUNED).glob("*.toml")):
        of_backbone, rates = read_tuned(file)
        if of_backbone == dict(identity):
            found += rates
    order = {USUAL: 1, preset: 2}
    found.sort(key=lambda rate: order.get(str(rate.budget.get("preset")), 0))
    return {rate.question: rate for rate in found}


def write_tuned(file: Path, backbone: str, identity: Mapping[str, str], rates: Iterable[TunedRate]) -> list[TunedRate]:
    """Write rates, beside those that the file has of the same backbone and other questions; returns all of them.

    Rates of a backbone with another identity are replaced. Raises ``OSError`` if the file cannot be written, and
    :class:`TunedFileError` if there is one that cannot be read.
    """
    merged: dict[RateQuestion, TunedRate] = {}
    if file.exists():
        of_backbone, before = read_tuned(file)
        if of_backbone == dict(identity):
            merged = {rate.question: rate for rate in before}
    merged |= {rate.question: rate for rate in rates}
    ordered = [merged[question] for question in sorted(merged)]
    lines = [
        "# Learning rates searched on validation data, around the rate of each method's paper; presets take them.",
        "# Made by the command that each entry states; not to be edited by hand.",
        f"backbone = {toml(backbone)}",
        "",
        "[identity]",
        *(f"{name} = {toml(value)}" for name, value in sorted(identity.items())),
    ]
    for rate in ordered:
        lines += ["", "[[rates]]"]
        for field in dataclasses.fields(TunedRate):
            if field.name != "trials":
                lines.append(f"{field.name} = {toml(getattr(rate, field.name))}")
        lines += ["trials = [", *(f"    {toml(trial)}," for trial in rate.trials), "]"]
    write_atomically(file, ("\n".join(lines) + "\n").encode())
    return ordered


def toml(value: Any) -> str:
    """A value as TOML: texts, numbers, booleans, lists, and mappings as inline tables without their None values."""
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key} = {toml(item)}" for key, item in value.items() if item is not None) + "}"
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(toml, value)) + "]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return repr(value)
    return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
