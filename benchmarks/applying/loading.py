"""A fitted method from its stored weights: from a record, a folder of weights, or a results folder that has one."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.backbones import sources
from benchmarks.store.files import read_record
from benchmarks.store.records import RecordError
from benchmarks.store.weights import FIT, FOLDER, STEM, KeptWeights, WeightsError, WeightStore, read_kept
from methods.registry import METHODS, UnknownNameError

if TYPE_CHECKING:
    from methods.interface import Method
    from methods.parts.backbone import Backbone

#: What to do about weights that are damaged or were not kept.
AGAIN = "run its command again with --keep-weights best --force"

#: Folders that a message lists, at most.
LISTED = 5


@dataclass(frozen=True)
class LoadedMethod:
    """A fitted method, ready to encode; ``key`` names its weights and settings by their content."""

    method: Method
    key: str
    stem: Path


def load_method(
    path: str | Path, backbone: str | Path | Backbone | None = None, device: str | None = None
) -> LoadedMethod:
    """The method whose weights ``path`` names, on its backbone.

    Args:
        path: a record (``cells/.../x.json``) whose weights were kept, a folder of weights, a results folder with the
            weights of one fit, or what ``Method.save`` was given.
        backbone: a name or folder in place of the name in the file, or a loaded backbone.
        device: where it computes (default: a GPU if there is one; that of a loaded ``backbone``).

    Raises:
        WeightsError: nothing there, damaged, of an unknown method, or fitted on another backbone than the one found;
            one line each.
    """
    from safetensors import SafetensorError

    from benchmarks.runner.machine import pick_device

    stem = find_weights(Path(path).expanduser())
    stated = _stated(stem)
    if stem.with_name(FIT).is_file() and stem.name == STEM:
        _kept(stem.parent).check()
    try:
        kind = METHODS.get(stated["method"])
    except (UnknownNameError, ImportError) as error:
        raise WeightsError(f"{stem}.json: {error}") from error
    if backbone is None or isinstance(backbone, str | Path):
        loaded = _backbone(stem, stated, backbone, pick_device(device or "auto"))
    else:
        loaded = backbone
        given, wanted = loaded.preprocessing, stated.get("preprocessing", loaded.preprocessing)
        if given != wanted:
            raise WeightsError(f"{stem}.json was fitted with the image processing {wanted}, not {given}")
    try:
        method = kind.load(stem, loaded)
        content = [Path(f"{stem}.{ending}").read_bytes() for ending in ("json", "safetensors")]
    except SafetensorError as error:
        raise WeightsError(f"{stem}.safetensors: damaged ({' '.join(str(error).split())}); fit again") from error
    except OSError as error:
        raise WeightsError(f"{stem}: cannot be read ({error.strerror or error})") from error
    except (KeyError, TypeError) as error:
        text = " ".join(str(error).split())
        raise WeightsError(f"{stem}.json: does not fit this version of {stated['method']} ({text})") from error
    except ValueError as error:
        raise WeightsError(" ".join(str(error).split())) from error
    return LoadedMethod(method, hashlib.sha256(b"".join(content)).hexdigest(), stem)


def load_plain(backbone: str, device: str) -> LoadedMethod:
    """CLIP as it is (``zero_shot``) on a backbone; raises :class:`WeightsError` if it cannot be loaded."""
    from benchmarks.runner.machine import pick_device
    from methods.zero_shot import ZeroShot

    try:
        method = ZeroShot(sources.load(backbone, device=pick_device(device), precision="float32"))
    except ValueError as error:  # BackboneError is one
        raise WeightsError(f"--backbone: {error}") from error
    facts = json.dumps([method.backbone.identity, method.backbone.preprocessing], sort_keys=True)
    return LoadedMethod(method, hashlib.sha256(facts.encode()).hexdigest(), Path())


def find_weights(path: Path) -> Path:
    """The path, without ending, of the weights that ``path`` names; raises :class:`WeightsError`."""
    given = path
    if path.is_dir():
        return _in_folder(path)
    if path.suffix == ".safetensors":
        path = path.with_suffix("")
    if path.suffix == ".json" and path.is_file():
        data = _json(path)
        if "cell" in data:
            return _of_record(path)
        path = path.with_suffix("")
    if not Path(f"{path}.json").is_file():
        what = "no weights there" if given.exists() else "no such file or folder"
        raise WeightsError(f"{given}: {what}; give a record, or a folder that --keep-weights made")
    return path


def _in_folder(folder: Path) -> Path:
    if (folder / f"{STEM}.json").is_file():
        return folder / STEM
    kept = list(WeightStore(folder).all()) or list(WeightStore(folder.parent).all()) * (folder.name == FOLDER)
    if not kept and folder.parent.name == FOLDER:  # results/mine/weights/picto_domains
        kept = [one for one in WeightStore(folder.parent.parent).all() if one.folder.parent == folder]
    if len(kept) <= 1:  # a damaged one may be the one that is meant
        for pattern in (f"{FOLDER}/*/*/{FIT}", *[f"*/*/{FIT}", f"*/{FIT}"] * (FOLDER in folder.parts[-2:]), FIT):
            for file in sorted(folder.glob(pattern)):
                if not file.parent.name.startswith("."):
                    _kept(file.parent)
    fit = kept[0].folder if len(kept) == 1 else folder
    if (fit / FIT).is_file():
        if not (fit / f"{STEM}.json").is_file():
            raise WeightsError(f"{fit / STEM}.json: missing; {AGAIN}")
        return fit / STEM
    if not kept and (folder / "cells").is_dir():
        raise WeightsError(f"{folder}: has records, but their weights were not kept; {AGAIN}")
    if not kept:
        raise WeightsError(f"{folder}: no weights there; `python -m benchmarks.run --keep-weights best` keeps them")
    some = ", ".join(str(one.folder) for one in kept[:LISTED]) + (", ..." if len(kept) > LISTED else "")
    raise WeightsError(f"{folder}: has the weights of {len(kept)} fits; name one: {some}")


def _kept(folder: Path) -> KeptWeights:
    """What a folder of weights says of its fit; raises :class:`WeightsError` that names the file and the fix."""
    try:
        return read_kept(folder)
    except WeightsError as error:
        if error.__cause__ is None:  # written by a newer version: the message says what to do
            raise
        raise WeightsError(f"{error}; {AGAIN}") from error


def _of_record(path: Path) -> Path:
    try:
        record = read_record(path)
    except RecordError as error:
        raise WeightsError(f"{path}: {error}") from error
    store = WeightStore(path.resolve().parents[3])
    if place := store.of_record(record):
        return store.root / place / STEM
    rivals = store.rivals(record.inputs) if "task" in record.inputs else []
    instead = f"; of its fits, those of {rivals[0].folder} are kept" if rivals else ""
    raise WeightsError(
        f"{path}: its weights were not kept{instead or '; run its command again with --keep-weights all --force'}"
    )


def _stated(stem: Path) -> dict[str, Any]:
    data = _json(Path(f"{stem}.json"))
    if not {"method", "config", "backbone", "facts"} <= data.keys():
        raise WeightsError(f"{stem}.json: not the file of a fitted method (Method.save writes one)")
    return data


def _json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else " ".join(str(error).split())
        raise WeightsError(f"{path}: cannot be read ({reason}); fit again") from error
    if not isinstance(data, dict):
        raise WeightsError(f"{path}: not the file of a fitted method")
    return data


def _backbone(stem: Path, stated: dict[str, Any], given: str | Path | None, device: str) -> Backbone:
    name = stated.get("backbone_name", "") if given is None else str(given)
    if not name:
        raise WeightsError(f"{stem}.json names no backbone; give the one it was fitted on with --backbone")
    try:
        backbone = sources.load(name, device=device, precision=stated.get("precision", "float32"))
    except ValueError as error:  # BackboneError is one
        hint = "" if given is not None else f"; {stem}.json was fitted on it: give its folder with --backbone FOLDER"
        raise WeightsError(f"{error}{hint}") from error
    backbone.preprocessing = stated.get("preprocessing", backbone.preprocessing)
    return backbone
