"""The schema of a record: what is kept of one cell, its key, and the validation of a record that is read."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import math
import types
import typing
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

SCHEMA = 1

#: Version of the scoring code (ranking, metrics): raise it when a change of that code changes scores.
SCORING = 1

Status = Literal["ok", "failed", "skipped", "not_applicable"]
STATUSES: tuple[str, ...] = typing.get_args(Status)

#: A cell with one of these needs no second run.
FINISHED = ("ok", "not_applicable")


class RecordError(ValueError):
    """A file that is not a valid record; one line that names the wrong field."""


class UnusableHereError(RecordError):
    """A record that may be good but that this user may not read, or a newer version wrote: no reason to delete it."""


def cannot_be_read(error: OSError, fix: str = "") -> str:
    """Why a file or folder cannot be read, and the fix: access where that is missing, else ``fix``."""
    fix = "give yourself access" if isinstance(error, PermissionError) else fix
    return f"cannot be read ({error.strerror or error})" + (f": {fix}" if fix else "")


@dataclass(frozen=True)
class CellId:
    """The cell of the plan that a record belongs to; ``ablation`` names the factor switched in an ablation.

    ``shots``: labelled images a class and domain, "" for all, "4 draw 1" for another draw than the first.
    """

    method: str
    variant: str
    config: dict[str, Any]
    backbone: str
    dataset: str
    protocol: str
    rules: str
    split: str
    select: str
    seed: int
    limit: int | None = None
    ablation: str = ""
    shots: str = ""


@dataclass(frozen=True)
class GalleryScores:
    """Scores of one search in a gallery, or of one classification among class names.

    ``metrics`` are fractions in [0, 1] by name; the name includes the convention. For a classification ``n_queries``
    are the images, ``gallery_size`` the classes, and ``similarity`` is ``logits``.
    """

    metrics: dict[str, float]
    n_queries: int
    gallery_size: int
    similarity: str
    n_without_relevant: int = 0
    without_relevant: str = ""


@dataclass(frozen=True)
class Fit:
    """What training did; ``fit_id`` names the training data, so cells that share a fitted model share it.

    ``trials``: where a learning rate was searched, each rate in the order tried with its validation score (None if that
    training failed, with the ``reason``) and seconds; ``learning_rate`` is the one picked, or set by the preset.
    ``rate_from``: ``search`` (made for this fit), ``tuned`` (a search made beforehand, benchmarks/presets/tuned),
    ``grid`` (a preset's fixed rates), ``paper`` (the config's, where nothing is tuned yet), ``config`` (``--set``, or a
    preset that leaves rates alone), "" in records written before this was recorded; of these too:
    ``rate_range``: the lowest and highest rate that the search could try; ``edge``: ``low`` or ``high`` where the rate
    picked is the lowest or highest of those tried, else "". ``convergence``: ``converged`` or ``rising``
    (:func:`benchmarks.runner.records.convergence`), "" where validation cannot tell. ``checkpoints`` (``--selectors``;
    a trial has its own): for each validation the stage, the step and the value of each way to select; ``oracle`` is the
    score on the test data.
    """

    fit_id: str = ""
    steps: int = 0
    selected_step: int = 0
    losses: list[dict[str, Any]] = field(default_factory=list)
    validation: list[dict[str, Any]] = field(default_factory=list)
    trials: list[dict[str, Any]] = field(default_factory=list)
    learning_rate: float | None = None
    rate_from: str = ""
    rate_range: list[float] = field(default_factory=list)
    edge: str = ""
    convergence: str = ""
    checkpoints: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class Search:
    """A learning-rate search: ``trials``, ``rate_range`` and ``edge`` as in :class:`Fit`.

    ``learning_rate`` is None where nothing was picked: a search that is not finished.
    """

    trials: list[dict[str, Any]] = field(default_factory=list)
    learning_rate: float | None = None
    rate_range: list[float] = field(default_factory=list)
    edge: str = ""


@dataclass(frozen=True)
class Cost:
    """The cost of a cell in seconds and memory.

    ``seconds`` by phase: ``fit`` (once for all cells of a fitted model, and the same number in each of their records),
    ``search`` (training with every learning rate of the grid, once for all seeds; with the search's seed the kept fit
    is one of them), ``encode`` (images first needed by this cell), ``rank`` and ``classify``.
    ``peak_memory_mib``: resident memory of the process at its highest in these phases. ``pictures_per_second``:
    encoding or classifying with this fitted model, decoding excluded; None if nothing had to be.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    peak_memory_mib: float | None = None
    peak_gpu_memory_mib: float | None = None
    pictures_per_second: float | None = None
    trainable_parameters: int | None = None
    total_parameters: int | None = None


@dataclass(frozen=True)
class Environment:
    """Where a cell ran: package versions, the code's git commit, hardware (no host name), device and threads.

    ``tf32``: whether a GPU may round the factors of float32 products and convolutions to TF32; None in records
    written before this was recorded. ``arithmetic``: the settings of torch that decide how numbers are computed
    (determinism, cuDNN, TF32, cuBLAS's workspace, kernels of attention), as they were; empty in older records.
    """

    packages: dict[str, str] = field(default_factory=dict)
    git: dict[str, Any] = field(default_factory=dict)
    hardware: dict[str, Any] = field(default_factory=dict)
    device: str = ""
    threads: int = 0
    tf32: bool | None = None
    arithmetic: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class PerQuery:
    """The side file: its name beside the record, its sha256 and its number of rows."""

    file: str
    sha256: str
    rows: int


@dataclass(frozen=True)
class Record:
    """One cell's record.

    ``inputs`` is what ``key`` hashes. ``method`` and ``dataset`` are what tables need of the cards: title, ``floor``
    and, by gallery, the ``extensions`` beyond the paper (method); title, version and gallery domain (dataset).
    ``galleries`` are the galleries and classifications of the task, scored or not, each with the metrics that lead
    its tables; ``scores`` has one entry each where ``status`` is ``ok``.
    """

    key: str
    status: Status
    cell: CellId
    inputs: dict[str, Any]
    method: dict[str, Any]
    dataset: dict[str, Any]
    galleries: dict[str, list[str]]
    scores: dict[str, GalleryScores] = field(default_factory=dict)
    fit: Fit = field(default_factory=Fit)
    cost: Cost = field(default_factory=Cost)
    environment: Environment = field(default_factory=Environment)
    notes: list[str] = field(default_factory=list)
    reason: str = ""
    traceback: str = ""
    per_query: PerQuery | None = None
    created: str = ""
    schema: int = SCHEMA

    def to_json(self) -> str:
        """Indented JSON; values that JSON cannot hold (NaN in a loss curve) become null."""
        return json.dumps(json_value(dataclasses.asdict(self)), indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str) -> Record:
        """Parse and validate; raises :class:`RecordError` that names the first thing wrong."""
        try:
            data = json.loads(text)
        except ValueError as error:
            raise RecordError(f"not JSON ({error})") from error
        if not isinstance(data, dict) or not isinstance(data.get("schema"), int):
            raise RecordError("not a record (no schema number)")
        if data["schema"] > SCHEMA:
            raise UnusableHereError(
                f"schema {data['schema']} is newer than this version reads ({SCHEMA}); upgrade ucdr-bench"
            )
        record: Record = parse_value(cls, data, "record")
        if record.key != _key_of_parsed(record.inputs):
            raise RecordError("the key is not the hash of the inputs")
        if record.status == "ok":
            if set(record.scores) != set(record.galleries):
                raise RecordError("status is ok, but not every gallery has scores")
            for gallery, scores in record.scores.items():
                if not scores.metrics or not all(math.isfinite(value) for value in scores.metrics.values()):
                    raise RecordError(f"status is ok, but the scores of gallery {gallery!r} are not all numbers")
        return record


@dataclass(frozen=True)
class Unreadable:
    """A record that cannot be read: its name below the folder, and one line that names file and fix."""

    name: str
    reason: str


def content_key(inputs: Mapping[str, Any]) -> str:
    """The record key of these inputs: 32 hexadecimal digits of a sha256."""
    text = json.dumps(json_value(inputs), sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _key_of_parsed(inputs: Mapping[str, Any]) -> str:
    """:func:`content_key` of what ``json.loads`` returned, without the copy that other values need."""
    try:
        text = json.dumps(inputs, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    except ValueError:  # NaN, which json reads
        return content_key(inputs)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def backbone_identity(backbone: Mapping[str, Any]) -> str:
    """32 hexadecimal digits for a backbone's config, tokenizer and image processor, as a record's inputs state them.

    Empty for a record that does not state config and tokenizer (records of older versions).
    """
    parts = {name: backbone.get(name) for name in ("config_hash", "tokenizer_hash", "preprocessing")}
    return content_key(parts) if parts["config_hash"] else ""


def json_value(value: Any) -> Any:
    """JSON-able copy: tuples become lists, numpy scalars numbers, non-finite numbers null, other objects text."""
    if isinstance(value, Mapping):
        return {str(key): json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [json_value(item) for item in value]
    if hasattr(value, "item") and not isinstance(value, str | bytes) and getattr(value, "ndim", 0) == 0:
        value = value.item()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, str | int | bool) else str(value)


_OBJECT = dict[str, Any]
_SCALARS = (str, int, float, bool)


@functools.cache
def _type_hints(kind: Hashable) -> dict[str, Any]:
    return typing.get_type_hints(kind)


@functools.cache
def _shape(kind: Hashable) -> tuple[Any, tuple[Any, ...], bool]:
    """A type's origin, its arguments, and whether it is a dataclass; read once, for stores hold a million values."""
    return typing.get_origin(kind), typing.get_args(kind), dataclasses.is_dataclass(kind)


def parse_value(kind: Any, value: Any, where: str) -> Any:
    """``value`` as ``kind`` (a dataclass, a builtin, a Literal, a union or a container of these), checked."""
    if kind is type(value) and kind in _SCALARS:
        return value
    origin, arguments, has_fields = _shape(kind)
    if has_fields:
        if not isinstance(value, dict):
            raise RecordError(f"{where} must be an object")
        types_of = _type_hints(typing.cast(Hashable, kind))
        values = {}
        for item in dataclasses.fields(kind):
            if item.name in value:
                values[item.name] = parse_value(types_of[item.name], value[item.name], f"{where}.{item.name}")
            elif item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING:
                raise RecordError(f"{where}.{item.name} is missing")
        return kind(**values)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return parse_value(next(argument for argument in arguments if argument is not type(None)), value, where)
    if origin is Literal:
        if value not in arguments:
            raise RecordError(f"{where} is {value!r}, not one of {', '.join(arguments)}")
        return value
    if origin is dict and isinstance(value, dict):
        if arguments[1] is Any:
            return value
        if arguments[1] in _SCALARS and all(type(item) is arguments[1] for item in value.values()):
            return value
        return {key: parse_value(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if origin is list and isinstance(value, list):
        if arguments[0] == _OBJECT and all(type(item) is dict for item in value):
            return value  # loss curves, mostly
        if arguments[0] in _SCALARS and all(type(item) is arguments[0] for item in value):
            return value
        return [parse_value(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
    if kind is Any:
        return value
    if kind is float and isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    plain = origin or kind
    if not isinstance(value, plain) or (plain is int and isinstance(value, bool)):
        raise RecordError(f"{where} must be {plain.__name__}, not {type(value).__name__}")
    return value
