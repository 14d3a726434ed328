"""The settings of a run: command line over file over defaults, checked before anything is loaded.

Nothing here imports torch, so a wrong name is reported at once.
"""

from __future__ import annotations

import dataclasses
import difflib
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from benchmarks.datasets.registry import DATASETS
from benchmarks.protocols.registry import PROTOCOLS
from benchmarks.recipes import RECIPES, paper_recipes, recipes
from benchmarks.runner.executor_registry import EXECUTORS
from benchmarks.runner.presets import PRESETS, Preset
from methods.registry import METHODS, UnknownNameError

Rules = Literal["clean", "official"]
Select = Literal["last", "val", "oracle", "im", "snd", "bnm", "entropy", "dev"]
PrecisionChoice = Literal["auto", "float32", "tf32", "bf16"]
KeepWeights = Literal["best", "all"]


#: Trackers of accelerate that ``--track`` takes; another one is named by ``module:Class``.
TRACKERS = ("tensorboard", "wandb", "mlflow", "comet_ml", "aim", "clearml", "dvclive", "swanlab", "trackio")


class SettingsError(ValueError):
    """A setting that cannot be used; one line that names the option and the fix (exit code 2)."""


#: Settings of methods that have an option of their own beside ``--set``.
SHORT = ("templates", "class_names")

#: What a message says of how a list, or a setting of its own form, is written.
HINTS = {
    **dict.fromkeys(("methods", "datasets", "protocols", "selectors"), "name at least one, or all"),
    "track": "name at least one, e.g. tensorboard",
    "splits": "name at least one, or give a number N: the first N of each protocol",
    "shard": "write I/N with I from 1 to N, e.g. 2/4",
    "seeds": "write whole numbers, e.g. 0,1,2",
    **dict.fromkeys(("limit", "validation_limit", "shots", "shots_draw", "threads", "jobs"), "write a whole number"),
}

#: The name of a setting where it was given: ``--limit``, or ``run.toml: limit``.
Naming = Callable[[str], str]

#: Seeds are whole numbers below this.
SEEDS = 2**32


@dataclass(frozen=True)
class Settings:
    """All settings of a run. Tuples of names are in the order given.

    ``("all",)`` becomes all registered names, except for ``datasets``: there it means those whose files are present,
    which the plan finds. ``set`` has the ``--set`` changes as ``("method.field" or "field", value)``; ``limit`` is the
    effective one (the preset's unless given); ``device`` and ``precision`` may be ``auto``, and ``jobs`` and
    ``threads`` 0, until :func:`benchmarks.runner.machine.final_settings` fills them in. ``compile``: the frozen towers
    are compiled. ``search``: each fit searches its own learning rate on validation data, in place of tuned rates or a
    preset's grid. ``shard`` is (number from 1, of how many).
    ``gpu_hours_each_fit`` and ``gpu_hours_basis`` are what a recipe's file expects of one fit, and why; a dry run
    prints them. ``keep_weights``: which fits' weights stay with the records (:mod:`benchmarks.store.weights`).
    ``splits``: names of the query domains and transfers that run, or one number: the first so many of each protocol;
    empty: as many as the preset says. ``shots``: labelled images a class and domain, drawn anew for another
    ``shots_draw``. ``validation_limit``: query and gallery images that a validation looks at, at most.
    ``selectors``: for which of the ways to select without target labels each validation's value is recorded.
    ``track``: trackers that get losses and scores (:mod:`benchmarks.runner.tracking`).

    Under ``--preset full`` the recipes apply even without ``--recipe``: each method's config on each
    data set is that of its recipe (:func:`paper_config`); where data sets are named (not ``all``), backbone and
    protocols are the recipes' too unless stated.
    Rules, variant, selection and seeds come from a recipe only where ``--recipe`` names it.
    """

    methods: tuple[str, ...] = ("all",)
    datasets: tuple[str, ...] = ("picto_domains",)
    data_root: str | None = None
    protocols: tuple[str, ...] = ("all",)
    splits: tuple[str, ...] = ()
    rules: Rules = "clean"
    variant: str = "paper"
    select: Select = "val"
    backbone: str = "picto-clip"
    preset: str = "quick"
    seeds: tuple[int, ...] = (0,)
    device: str = "auto"
    precision: PrecisionChoice = "auto"
    compile: bool = False
    search: bool = False
    set: tuple[tuple[str, Any], ...] = ()
    out: str = "results/run"
    limit: int | None = None
    validation_limit: int | None = None
    shots: int | None = None
    shots_draw: int = 0
    threads: int = 0
    jobs: int = 0
    executor: str = "local"
    shard: tuple[int, int] | None = None
    dry_run: bool = False
    fail_fast: bool = False
    force: bool = False
    keep_weights: KeepWeights | None = None
    selectors: tuple[str, ...] = ()
    track: tuple[str, ...] = ()
    gpu_hours_each_fit: float = 0.0
    gpu_hours_basis: str = ""

    @property
    def budget(self) -> Preset:
        """The preset, as data."""
        return PRESETS[self.preset]

    @property
    def split_count(self) -> int | None:
        """The number in ``splits``; None where it has names or nothing."""
        return int(self.splits[0]) if self.splits and self.splits[0].isdecimal() else None

    def as_dict(self) -> dict[str, Any]:
        """JSON-able form; ``set`` as a mapping."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()} | {"set": dict(self.set)}


def resolve(command_line: Mapping[str, Any], file: Path | None = None) -> Settings:
    """Settings from the options given on the command line, then the TOML file, then the defaults.

    Raises :class:`SettingsError` for an unknown key or value, or :class:`~methods.registry.UnknownNameError` for an
    unknown method, dataset or protocol; both name where the setting was given, and the nearest valid name.
    """
    stated = _read(file) if file else {}
    values = {**stated, **command_line}

    def option(key: str) -> str:
        return f"--{key.replace('_', '-')}" if key in command_line or key not in stated else f"{file}: {key}"

    if "set" in stated:
        values["set"] = (*_still_applicable(stated, values, option), *command_line.get("set", ()))
    known = {field.name for field in dataclasses.fields(Settings)}
    for key in values:
        if key not in known:
            raise SettingsError(f"{file}: unknown setting {key!r}; {nearest(key, known)}")
    settings = Settings(**{key: _convert(option(key), key, value) for key, value in values.items()})
    for key, kind in (("rules", Rules), ("select", Select), ("precision", PrecisionChoice)):
        _one_of(option(key), getattr(settings, key), get_args(kind))
    if settings.keep_weights is not None:
        _one_of(option("keep_weights"), settings.keep_weights, get_args(KeepWeights))
    settings = dataclasses.replace(settings, selectors=_selectors(settings, option("selectors")))
    for name in settings.track:
        if ":" not in name:
            _one_of(option("track"), name, TRACKERS)
    _one_of(option("executor"), settings.executor, executors())
    _one_of(option("preset"), settings.preset, PRESETS)
    for seed in settings.seeds:
        if not 0 <= seed < SEEDS:  # numpy and the methods' generators take 32 bits: a larger one would equal another
            raise SettingsError(f"{option('seeds')}: a seed is 0 or larger and at most {SEEDS - 1}, not {seed}")
    if not 0 <= settings.gpu_hours_each_fit < float("inf"):
        raise SettingsError(f"{file}: gpu_hours_each_fit must be 0 or more, not {settings.gpu_hours_each_fit}")
    for key in ("limit", "validation_limit", "shots", "threads", "jobs", "shots_draw"):
        least = 0 if key == "shots_draw" else 1
        if (value := getattr(settings, key)) is not None and key in values and value < least:
            raise SettingsError(f"{option(key)} must be {'positive' if least else '0 or more'}, not {value}")
    if any(name.isdecimal() for name in settings.splits) and (len(settings.splits) > 1 or int(settings.splits[0]) < 1):
        given = ",".join(settings.splits)
        text = "is either one number from 1 (the first N of each protocol) or names"
        raise SettingsError(f"{option('splits')} {text}, not {given!r}")
    if settings.shots_draw and settings.shots is None:
        raise SettingsError("--shots-draw needs --shots, the number of images a class and domain")
    if settings.shots is not None and settings.rules == "official":
        raise SettingsError("--shots: the official rules train on all images; leave --rules or --shots out")
    settings = dataclasses.replace(
        settings,
        methods=_names(option, "methods", settings.methods),
        datasets=_names(option, "datasets", settings.datasets),
        protocols=_names(option, "protocols", settings.protocols),
        seeds=tuple(dict.fromkeys(settings.seeds)),
        limit=settings.limit if settings.limit is not None else settings.budget.limit,
    )
    if settings.gpu_hours_basis:
        settings = dataclasses.replace(settings, gpu_hours_basis=_basis(settings, stated))
    return _as_published(settings, values) if settings.preset == "full" else settings


def _selectors(settings: Settings, option: str) -> tuple[str, ...]:
    """The selectors to record, ``all`` written out. Raises :class:`SettingsError` where no validation is made."""
    known = get_args(Select)[3:]
    if settings.selectors and settings.select == "last":
        raise SettingsError(f"{option}: --select last makes no validation to record; take another --select")
    if settings.select in known and settings.rules == "official":
        raise SettingsError(
            f"--select {settings.select}: the official rules select on the test images; leave --rules or --select out"
        )
    for name in settings.selectors:
        _one_of(option, name, ("all", *known))
    return known if "all" in settings.selectors else tuple(dict.fromkeys(settings.selectors))


def _still_applicable(
    stated: Mapping[str, Any], values: Mapping[str, Any], option: Naming
) -> Iterable[tuple[str, Any]]:
    """A file's ``set`` without the settings of those of its methods that the command line has replaced."""
    chosen = _convert(option("methods"), "methods", values.get("methods", "all"))
    left_out = set() if "all" in chosen else set(stated.get("methods", ())) - set(chosen)
    return [(key, value) for key, value in stated["set"] if key.rpartition(".")[0] not in left_out]


def _basis(settings: Settings, stated: Mapping[str, Any]) -> str:
    """A file's basis of the expected GPU hours, beginning with what of the run differs from the file."""
    effective = {"datasets": ",".join(settings.datasets), "backbone": settings.backbone}
    of_file = {"datasets": ",".join(stated.get("datasets", ())), "backbone": stated.get("backbone", "")}
    others = [f"for {of_file[key]}, not {effective[key]}" for key in effective if effective[key] != of_file[key]]
    return f"{', '.join(others)}: {settings.gpu_hours_basis}" if others else settings.gpu_hours_basis


def executors() -> list[str]:
    """Names that ``--executor`` takes: those of the registry, third parties' included; ``local`` means the two of
    this machine; ``--jobs`` chooses between them."""
    return ["local", *(name for name in EXECUTORS.names() if name not in ("serial", "processes"))]


def recipe_file(name: str) -> Path:
    """The settings file of a packaged recipe; raises :class:`SettingsError` for an unknown name."""
    if name not in recipes():
        raise SettingsError(f"--recipe {name!r} is unknown; {nearest(name, recipes())}")
    return RECIPES / f"{name}.toml"


def _as_published(settings: Settings, stated: Mapping[str, Any]) -> Settings:
    """The papers' backbone and protocols unless file or command line states others.

    A variant that recipes of their own have (AD-CLIP's ``official_resnet``) means those recipes; any other, those of
    the papers' main variants.

    Raises :class:`SettingsError` if the papers of these methods and data sets have several backbones.
    """
    found = paper_recipes(settings.methods, settings.datasets)
    special = [recipe for recipe in found if recipe["variant"] not in ("paper", "official")]
    named = [recipe for recipe in special if recipe["variant"] == settings.variant]
    recipes_used = named or [recipe for recipe in found if recipe not in special]
    if recipes_used and "backbone" not in stated:
        backbones = sorted({recipe["backbone"] for recipe in recipes_used})
        if len(backbones) > 1:
            raise SettingsError(
                f"--preset full: the papers of these methods and data sets use {' and '.join(backbones)};"
                " choose one with --backbone, or run them apart"
            )
        settings = dataclasses.replace(settings, backbone=backbones[0])
    if recipes_used and "protocols" not in stated:
        protocols = tuple(dict.fromkeys(name for recipe in recipes_used for name in recipe["protocols"]))
        settings = dataclasses.replace(settings, protocols=protocols)
    return settings


def nearest(name: str, known: Iterable[str]) -> str:
    """``did you mean ...?`` or the list to choose from."""
    known = sorted(known)
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
    return f"did you mean {' or '.join(near)}?" if near else f"choose from: {', '.join(known)}"


def parse_value(text: str) -> Any:
    """A ``--set`` value: a TOML literal (``3``, ``0.1``, ``true``, ``[1, 2]``, ``"text"``), else the text itself."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def parse_set(items: Iterable[str]) -> tuple[tuple[str, Any], ...]:
    """``KEY=VALUE`` strings as pairs; raises :class:`SettingsError` for one without ``=``."""
    pairs = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals or not key.strip():
            raise SettingsError(f"--set {item}: write KEY=VALUE, e.g. --set zero_shot.template='a drawing of a {{}}'")
        pairs[key.strip()] = parse_value(value.strip())
    return tuple(pairs.items())


def config_changes(
    settings: Settings, configs: Mapping[str, type], *, option: str = "--set"
) -> dict[str, dict[str, Any]]:
    """The ``--set`` changes of each method, given each method's ``Config`` class; errors name the ``option``.

    ``field`` reaches every method that has the field, ``method.field`` one method. Raises :class:`SettingsError` if a
    key reaches no method of this run or the value's type does not fit.
    """
    changes: dict[str, dict[str, Any]] = {name: {} for name in configs}
    fields = {name: {field.name: field for field in dataclasses.fields(config)} for name, config in configs.items()}
    for key, value in settings.set:
        method, dot, name = key.rpartition(".")
        reached = [m for m in configs if name in fields[m] and (not dot or m == method)]
        if not reached and dot and method not in configs and method in METHODS.names():
            raise SettingsError(
                f"{option} {key}: {method} is not a method of this run; add it to --methods, or leave the setting out"
            )
        if not reached and key in SHORT:
            raise SettingsError(f"--{key.replace('_', '-')}: no method of this run has it; add zero_shot to --methods")
        if not reached:
            every = {n for m in fields for n in fields[m]} | {f"{m}.{n}" for m in fields for n in fields[m]}
            raise SettingsError(
                f"{option} {key}: no method of this run has that setting; {nearest(key, every)}"
                if every
                else f"{option} {key}: no method of this run has any setting"
            )
        for m in reached:
            changes[m][name] = _fitting(f"{option} {m}.{name}", value, getattr(configs[m](), name))
    return changes


def _fitting(option: str, value: Any, default: Any) -> Any:
    """The value in the type of the default: int to float and list to tuple are made, all else must agree."""
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if isinstance(default, tuple) and isinstance(value, list):
        return tuple(value)
    if isinstance(default, str) and not isinstance(value, str):
        raise SettingsError(f"{option} is a text, not {value!r}; quote it: '\"{value}\"'")
    if default is not None and type(value) is not type(default):
        kind = KINDS.get(type(default), type(default).__name__)
        raise SettingsError(f"{option} takes {kind} (default {_said(default)}), not {_said(value)}")
    return value


#: What a message calls the types of values.
KINDS = {int: "a whole number", float: "a number", bool: "true or false", tuple: "a list", dict: "a table"}


def _said(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _read(file: Path) -> dict[str, Any]:
    try:
        values = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"--config {file}: {error.strerror or error}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"--config {file} is not TOML: {error}") from error
    if "set" in values:
        values["set"] = tuple(_flat(file, values["set"]))
    return {key.replace("-", "_"): value for key, value in values.items()}


def _flat(file: Path, table: Any) -> Iterable[tuple[str, Any]]:
    if not isinstance(table, dict):
        raise SettingsError(f"--config {file}: [set] must be a table of settings")
    for key, value in table.items():
        if isinstance(value, dict):
            yield from ((f"{key}.{name}", item) for name, item in value.items())
        else:
            yield key, value


def _convert(option: str, key: str, value: Any) -> Any:
    """A value of the command line or the file in the type of its setting; errors name the ``option``."""
    default = getattr(Settings, key)
    try:
        if key == "set":
            return tuple(value)
        if key == "seeds":
            items = (
                value.split(",") if isinstance(value, str) else value if isinstance(value, list | tuple) else [value]
            )
            seeds = tuple(_whole(item) for item in items)
            if not seeds:
                raise ValueError
            return seeds
        if isinstance(default, tuple):
            if key == "splits" and isinstance(value, int):
                value = str(_whole(value))
            items = value.split(",") if isinstance(value, str) else value
            names = tuple(item.strip() for item in items if item.strip())
            if not names and (default or isinstance(value, str)):
                raise ValueError
            return names
        if key in ("limit", "validation_limit", "shots", "shots_draw", "threads", "jobs"):
            return None if value is None else _whole(value)
        if isinstance(default, float):
            return float(value)
        if key == "shard":
            number, _, count = value.partition("/")
            if not 1 <= int(number) <= int(count):
                raise ValueError
            return int(number), int(count)
    except (TypeError, ValueError, AttributeError):
        hint = f"; {HINTS[key]}" if key in HINTS else ""
        raise SettingsError(f"{option}: cannot read {value!r}{hint}") from None
    if key in ("out", "data_root", "device", "backbone") and value is not None and not str(value).strip():
        raise SettingsError(f"{option} is empty; name one, or leave the option out")
    if isinstance(default, bool) and not isinstance(value, bool):
        raise SettingsError(f"{option} is true or false, not {value!r}")
    return value if isinstance(default, bool) or value is None else str(value)


def _whole(value: Any) -> int:
    """A whole number; raises ``ValueError`` for anything that ``int`` would truncate."""
    if isinstance(value, bool | float):
        raise ValueError
    return int(value)


def _one_of(option: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise SettingsError(f"{option} {value!r} is unknown; {nearest(value, known)}")


def _names(option: Naming, key: str, names: tuple[str, ...]) -> tuple[str, ...]:
    """Registered names; ``all`` means all of them. Raises UnknownNameError for a name that is not registered."""
    registry = {"methods": METHODS, "datasets": DATASETS, "protocols": PROTOCOLS}[key]
    if "all" in names:
        return ("all",) if key == "datasets" else tuple(registry.defaults())
    for name in names:
        try:
            registry.check(name)
        except UnknownNameError as error:
            raise UnknownNameError(f"{option(key)}: {error}") from None
    return tuple(dict.fromkeys(names))
