"""The weights of fitted methods, kept with the records that ``--keep-weights`` asks for.

::

    RESULTS/weights/<dataset>/<method>-s<seed>-<key>/method.safetensors, method.json   what ``Method.save`` writes
    RESULTS/weights/<dataset>/<method>-s<seed>-<key>/fit.json      the fit, its validation score, the files' sha256
    RESULTS/weights/<dataset>/<method>-s<seed>-<key>/README.md     model card with the scores of the fit's records

One fit serves several records (protocols and splits that share their training data), so ``<key>`` is not a record's: it
is a hash over the part of a record's inputs that determines the fit (:func:`fit_inputs`). The folder of a record's
weights follows from the record, and no record changes when weights are kept or removed.

The folder appears whole or not at all. Under ``best``, one fit stays of those that differ only in seed and setting
(config and learning rates) and have the training data, protocol and split in common: the one with the highest
validation score; of equal scores, or where there is none (a method that is not trained, a task without validation), the
lowest seed. Weights that ``all`` kept are never removed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.store.files import is_file, safe_name, temporary_name, write_atomically
from benchmarks.store.records import Record, content_key, json_value

SCHEMA = 1

#: The folder of weights below a results folder.
FOLDER = "weights"

#: Path of a fit's weights in its folder as ``Method.save`` and ``Method.load`` take it.
STEM = "method"

#: The file that describes the fit.
FIT = "fit.json"

#: The model card: written again with each score, so that its content is not checked.
CARD = "README.md"

#: Values of ``--keep-weights``.
KEEP = ("best", "all")


class WeightsError(ValueError):
    """Weights that cannot be used; one line that names the folder and the fix."""


@dataclass(frozen=True)
class FitWeights:
    """The weights of one fit: files by name, and the validation score (None where there is none).

    ``problem``: why they could not be saved, in one line.
    """

    files: dict[str, bytes]
    validation: float | None = None
    problem: str = ""


@dataclass(frozen=True)
class KeptWeights:
    """Weights in a store. ``rivals`` names the fits that ``best`` chooses one of; ``inputs`` determine the fit;
    ``files``: sha256 by name."""

    folder: Path
    key: str
    rivals: str
    method: str
    dataset: str
    seed: int
    validation: float | None
    keep: str
    inputs: dict[str, Any]
    files: dict[str, str] = field(default_factory=dict)

    @property
    def order(self) -> tuple[float, int, str]:
        """Larger for the better fit: validation score, then the lower seed."""
        return -math.inf if self.validation is None else self.validation, -self.seed, self.key

    def check(self) -> None:
        """Raise :class:`WeightsError` if a file is missing or is not the one that was stored."""
        for name, expected in self.files.items():
            try:
                found = hashlib.sha256((self.folder / name).read_bytes()).hexdigest()
            except OSError as error:
                raise WeightsError(f"{self.folder / name}: cannot be read ({error.strerror or error})") from error
            if found != expected:
                raise WeightsError(f"{self.folder / name}: changed or cut off since it was stored; fit again (--force)")


def fit_inputs(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a record's inputs that determines the fit: all but what is asked of it."""
    names = ("scoring", "method", "backbone", "dataset", "select", "seed")
    return {**{name: inputs[name] for name in names}, **{name: inputs["task"][name] for name in ("fit_id", "rules")}}


def fit_key(inputs: Mapping[str, Any]) -> str:
    """Names a fit, given the inputs of one of its records: 32 hexadecimal digits."""
    return content_key(fit_inputs(inputs))


def rivals_key(inputs: Mapping[str, Any]) -> str:
    """Names the fits that differ from a record's only in seed and setting."""
    chosen = fit_inputs(inputs)
    del chosen["seed"]
    return content_key(chosen | {"method": {name: inputs["method"][name] for name in ("name", "version")}})


class WeightStore:
    """Reads and writes the weights below one results folder. Several processes may write to it at the same time.

    A ``read_only`` one writes nothing.
    """

    def __init__(self, root: Path | str, *, read_only: bool = False) -> None:
        self.root = Path(root)
        self.read_only = read_only

    def folder(self, inputs: Mapping[str, Any]) -> Path:
        """Where the weights of a record with these inputs are, if they are kept."""
        dataset, method = safe_name(inputs["dataset"]["name"]), safe_name(inputs["method"]["name"])
        return self.root / FOLDER / dataset / f"{method}-s{inputs['seed']}-{fit_key(inputs)}"

    def of_record(self, record: Record) -> str:
        """The folder of a record's weights below the results folder, with forward slashes; "" if none are kept."""
        if not {"method", "backbone", "dataset", "task"} <= record.inputs.keys():  # a cell that was never planned
            return ""
        with contextlib.suppress(OSError):
            if not (self.root / FOLDER / safe_name(record.inputs["dataset"]["name"])).is_dir():  # most stores
                return ""
        folder = self.folder(record.inputs)
        return folder.relative_to(self.root).as_posix() if is_file(folder / FIT) else ""

    def all(self) -> Iterator[KeptWeights]:
        """All weights in a fixed order; folders that cannot be read are skipped."""
        for path in sorted((self.root / FOLDER).glob(f"*/*/{FIT}")):
            if not path.parent.name.startswith("."):
                with contextlib.suppress(WeightsError):
                    yield read_kept(path.parent)

    def rivals(self, inputs: Mapping[str, Any]) -> list[KeptWeights]:
        """Kept weights among which ``best`` chooses for a record with these inputs."""
        key, method = rivals_key(inputs), safe_name(inputs["method"]["name"])
        found = (path.parent for path in self.folder(inputs).parent.glob(f"{method}-s*/{FIT}"))
        kept = []
        for folder in sorted(found):
            with contextlib.suppress(WeightsError):
                kept.append(read_kept(folder))
        return [one for one in kept if one.rivals == key]

    def covers(self, inputs: Mapping[str, Any], keep: str) -> bool:
        """Whether the weights that ``keep`` asks for of a record with these inputs are there (``best``: of a rival)."""
        return is_file(self.folder(inputs) / FIT) or (keep == "best" and bool(self.rivals(inputs)))

    def write(self, inputs: Mapping[str, Any], weights: FitWeights, keep: str) -> Path | None:
        """Keep the weights of a fit, replacing those of the same fit; None if ``best`` keeps another one's.

        Raises ``OSError`` if they cannot be written.
        """
        folder = self.folder(inputs)
        if self.read_only:
            return None
        kept = KeptWeights(
            folder=folder,
            key=fit_key(inputs),
            rivals=rivals_key(inputs),
            method=inputs["method"]["name"],
            dataset=inputs["dataset"]["name"],
            seed=inputs["seed"],
            validation=weights.validation if _is_number(weights.validation) else None,
            keep=keep,
            inputs=fit_inputs(inputs),
            files={name: hashlib.sha256(data).hexdigest() for name, data in weights.files.items() if name != CARD},
        )
        if keep == "best":
            others = [one for one in self.rivals(inputs) if one.key != kept.key]
            if any(one.order > kept.order for one in others):
                self._remove(folder)
                return None
        described = {name: value for name, value in vars(kept).items() if name != "folder"} | {"schema": SCHEMA}
        text = json.dumps(json_value(described), indent=1, ensure_ascii=False) + "\n"
        partial = temporary_name(folder)
        try:
            for name, data in weights.files.items():
                write_atomically(partial / name, data)
            write_atomically(partial / FIT, text.encode())
            self._remove(folder)
            partial.replace(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
        if keep == "best":
            self._keep_best(inputs)
        return folder

    def write_card(self, inputs: Mapping[str, Any], text: str) -> None:
        """Replace the model card beside a fit's weights, if these are kept."""
        folder = self.folder(inputs)
        if (folder / FIT).is_file() and not self.read_only:
            write_atomically(folder / CARD, text.encode())

    def _keep_best(self, inputs: Mapping[str, Any]) -> None:
        rivals = self.rivals(inputs)
        best = max(rivals, key=lambda one: one.order)
        for one in rivals:
            if one is not best and one.keep == "best":
                self._remove(one.folder)

    @staticmethod
    def _remove(folder: Path) -> None:
        """Remove a fit's folder: renamed first, so that no reader finds half of it."""
        gone = temporary_name(folder)
        with contextlib.suppress(OSError):
            folder.replace(gone)
        shutil.rmtree(gone, ignore_errors=True)


def read_kept(folder: Path) -> KeptWeights:
    """What ``fit.json`` in a folder says; raises :class:`WeightsError`."""
    path = folder / FIT
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data.pop("schema") > SCHEMA:
            raise WeightsError(f"{path}: written by a newer version; upgrade ucdr-bench")
        kept = KeptWeights(folder=folder, **data)
        if content_key(kept.inputs) != kept.key or not isinstance(kept.files, dict):
            raise ValueError("the key is not the hash of the inputs")
    except WeightsError:
        raise
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise WeightsError(f"{path}: not the description of a fit ({error})") from error
    return kept


def _is_number(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
