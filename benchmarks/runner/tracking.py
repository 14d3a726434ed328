"""``--track NAME,...``: losses, validation scores, final scores and a sheet of galleries in experiment trackers.

The trackers are those of accelerate, and any subclass of its ``GeneralTracker`` by ``module:Class``. Nothing of them
is imported unless it is asked for. A tracker gets a run for each record of this command, when the record is stored,
wherever the fit took place; what was finished before is not sent again. A tracker that fails is named once and left out
from then on: no score depends on it.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks.runner.settings import SettingsError
from benchmarks.store.files import ResultStore, safe_name
from benchmarks.store.records import Record

if TYPE_CHECKING:
    import pandas as pd

#: Folder below the results folder where trackers that write files write them, each in one of its name.
FOLDER = "tracking"

#: Name of the run that holds the sheet of galleries.
GALLERY = "gallery"

_SCALAR = (str, int, float, bool)


def tracker_class(name: str) -> Any:
    """accelerate's tracker ``name``, or the class at ``module:Class``.

    Raises:
        SettingsError: accelerate or the tracker's package is not installed, or there is no such class.
    """
    try:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
    except ImportError as error:
        raise SettingsError(
            f"--track {name}: accelerate cannot be imported ({error}); pip install 'ucdr-bench[tracking]'"
        ) from error
    if ":" in name:
        module, _, attribute = name.partition(":")
        try:
            found = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise SettingsError(f"--track {name}: cannot be imported ({error})") from error
        if not (isinstance(found, type) and issubclass(found, GeneralTracker)):
            raise SettingsError(f"--track {name}: not a subclass of accelerate.tracking.GeneralTracker")
        return found
    known = {str(getattr(key, "value", key)): value for key, value in LOGGER_TYPE_TO_CLASS.items()}
    if name not in known:
        raise SettingsError(f"--track {name}: accelerate in this version has no such tracker; update accelerate")
    packages = {"tensorboard": ("tensorboard", "tensorboardX")}.get(name, (name,))
    if not any(importlib.util.find_spec(package) for package in packages):
        raise SettingsError(f"--track {name}: the package {name} is not installed; pip install {name}")
    return known[name]


class Tracking:
    """Sends records to trackers. Texts, steps and scores are those of the records, and nothing is computed here.

    Args:
        names: of `benchmarks.runner.settings.TRACKERS`, or ``module:Class``.
        folder: where trackers that write files write them, each in a folder of its name.
        report: gets one line for each tracker that fails.

    Raises:
        SettingsError: a tracker that cannot be imported.
    """

    def __init__(self, names: Sequence[str], folder: Path, report: Callable[[str], None]) -> None:
        self._classes = {name: tracker_class(name) for name in names}
        self._folder = folder
        self._report = report
        from accelerate.state import PartialState

        if not PartialState._shared_state:  # trackers ask it which process writes; it must not choose a device
            PartialState(cpu=True)

    def record(self, record: Record) -> None:
        """A run with a record's curves and scores."""
        cell = record.cell
        name = "-".join(map(safe_name, (cell.method, cell.dataset, cell.protocol, cell.split, f"s{cell.seed}")))
        with self._runs(f"{name}-{record.key[:8]}", configuration(record)) as runs:
            for tracker_name, tracker in runs:
                with self._reported(tracker_name):
                    for step, values in events(record):
                        tracker.log(named_for(tracker_name, values), step=step)

    def images(self, files: Sequence[Path]) -> None:
        """A run with images, by the names of their files."""
        import numpy as np
        from PIL import Image

        shown = {path.stem: np.asarray(Image.open(path).convert("RGB"))[None] for path in files}
        with self._runs(GALLERY, {}) as runs:
            for name, tracker in runs:
                with self._reported(name):
                    if not hasattr(tracker, "log_images"):
                        self._report(f"--track {name}: takes no images")
                        continue
                    more = {"dataformats": "NHWC"} if name == "tensorboard" else {}
                    values = {key: images if more else list(images) for key, images in shown.items()}
                    tracker.log_images(values, step=0, **more)

    @contextlib.contextmanager
    def _runs(self, run: str, about: Mapping[str, Any]) -> Iterator[list[tuple[str, Any]]]:
        """A run of every tracker, finished at the end."""
        runs = []
        for name, kind in list(self._classes.items()):
            with self._reported(name):
                place = self._folder / safe_name(name)
                if kind.requires_logging_directory:
                    place.mkdir(parents=True, exist_ok=True)
                named, more = started_with(name, run, place)
                if kind.requires_logging_directory:
                    more["logging_dir"] = str(place)
                tracker = kind(*named, **more)
                if hasattr(tracker, "start"):  # in older versions of accelerate the constructor starts it
                    tracker.start()
                runs.append((name, tracker))
                if name == "comet_ml":
                    tracker.tracker.set_name(run)
                if about:
                    tracker.store_init_configuration(dict(about))
        try:
            yield runs
        finally:
            for name, tracker in runs:
                with self._reported(name):
                    tracker.finish()

    @contextlib.contextmanager
    def _reported(self, name: str) -> Iterator[None]:
        """A block after whose failure a tracker is left out."""
        try:
            yield
        except Exception as error:
            if self._classes.pop(name, None) is not None:
                text = " ".join(str(error).split())
                self._report(f"--track {name}: {type(error).__name__}: {text}; it gets nothing more of this run")


def started_with(tracker: str, run: str, folder: Path) -> tuple[tuple[str, ...], dict[str, Any]]:
    """What a tracker's class is called with for a run: accelerate calls some trackers' *project* ``run_name``.

    The project is the tracker's own environment variable, or `PROJECT`; ``folder`` is for a tracker of files.
    """
    if tracker in _RUN_NAME:
        variable, option = _RUN_NAME[tracker]
        project = os.environ.get(variable) or PROJECT
        return (project,), {option: run} if option else {}
    if tracker == "mlflow":
        return (), {"experiment_name": PROJECT, "run_name": run}  # accelerate reads MLFLOW_EXPERIMENT_NAME
    if tracker == "clearml":
        return (run,), {"project_name": os.environ.get("CLEARML_PROJECT") or PROJECT, "task_name": run}
    if tracker == "dvclive":
        return (run,), {"dir": str(folder / run)}
    return (run,), {}


#: Name of the project, where a tracker has projects.
PROJECT = "ucdr-bench"

#: Trackers whose first argument is the project: the variable that names another one, and the option for a run's name.
_RUN_NAME = {
    "wandb": ("WANDB_PROJECT", "name"),
    "trackio": ("TRACKIO_PROJECT", "name"),
    "swanlab": ("SWANLAB_PROJECT", "experiment_name"),
    "comet_ml": ("COMET_PROJECT_NAME", ""),
}


def configuration(record: Record) -> dict[str, Any]:
    """What is sent of a record's cell: its fields, its config, the learning rate; texts, numbers and flags."""
    cell = vars(record.cell)
    about = {name: value for name, value in cell.items() if name != "config" and value is not None}
    about |= {f"config/{name}": value for name, value in record.cell.config.items()}
    about |= {"key": record.key, "status": record.status}
    if record.fit.learning_rate is not None:
        about["learning_rate"] = record.fit.learning_rate
    return {name: value if isinstance(value, _SCALAR) else str(value) for name, value in about.items()}


def events(record: Record) -> list[tuple[int, dict[str, float]]]:
    """The numbers of a record by step, steps ascending.

    ``loss`` (and what else was logged beside it) and ``validation`` at the steps of training, then the scores as
    ``GALLERY/METRIC`` at the last step.
    """
    by_step: dict[int, dict[str, float]] = {}
    for logged in (*record.fit.losses, *({"validation": one.get("score"), **one} for one in record.fit.validation)):
        step = logged.get("step")
        if isinstance(step, int):
            numbers = {key: value for key, value in logged.items() if key not in ("step", "score") and _number(value)}
            by_step.setdefault(step, {}).update(numbers)
    scores = {
        f"{gallery}/{metric}": value for gallery, one in record.scores.items() for metric, value in one.metrics.items()
    }
    if scores:
        by_step.setdefault(max([record.fit.steps, *by_step]), {}).update(scores)
    return [(step, by_step[step]) for step in sorted(by_step) if by_step[step]]


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def named_for(tracker: str, values: Mapping[str, float]) -> dict[str, float]:
    """The numbers under names that a tracker takes: MLflow's have no ``@`` and no brackets."""
    if tracker != "mlflow":
        return dict(values)
    return {re.sub(r"[^\w\-. /]+", "_", name.replace("@", " at ")).strip("_"): value for name, value in values.items()}


class TrackedStore(ResultStore):
    """A store that also sends each record that it writes to trackers."""

    tracking: Tracking

    def write(self, record: Record, per_query: pd.DataFrame | None = None) -> Record:
        """Write a record, then send it."""
        written = super().write(record, per_query)
        self.tracking.record(written)
        return written


def tracked_store(root: Path | str, names: Sequence[str], report: Callable[[str], None]) -> TrackedStore:
    """The store of a run with ``--track``; raises :class:`SettingsError` for a tracker that cannot be imported."""
    store = TrackedStore(root, report)
    store.tracking = Tracking(names, store.root / FOLDER, report)
    return store


def track_gallery(store: ResultStore, data: Any, data_root: str | None) -> None:
    """Send the sheet of retrieval galleries of a report's data, where there is anything to display.

    ``data``: a ``benchmarks.reporting.data.ReportData``. What cannot be drawn is reported there.
    """
    if not isinstance(store, TrackedStore):
        return
    from benchmarks.reporting import galleries, plots

    folder = store.root / FOLDER
    found = data.attempt("the tracked gallery", lambda: galleries.galleries(data, data_root=data_root))
    if found is not None and found.queries:
        files = data.attempt("the tracked gallery", lambda: plots.gallery_sheet(found, folder))
        if files:
            store.tracking.images(files)
