"""Trackers for tests: one writes what it gets as JSON lines, one fails at its second record."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

from accelerate.tracking import GeneralTracker


class JsonLines(GeneralTracker):  # type: ignore[misc]
    """Writes ``RUN.jsonl``: a line for what the run is about, each step, each image and its end."""

    name = "json_lines"
    requires_logging_directory = True

    def __init__(self, run_name: str, logging_dir: str) -> None:
        super().__init__()
        self.file = Path(logging_dir) / f"{run_name}.jsonl"

    @property
    def tracker(self) -> Path:
        return self.file

    def _write(self, **values: Any) -> None:
        with self.file.open("a", encoding="utf-8") as file:
            file.write(json.dumps(values) + "\n")

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self._write(about=values)

    def log(self, values: dict[str, float], step: int | None = None, **more: Any) -> None:
        self._write(step=step, values=values)

    def log_images(self, values: dict[str, Any], step: int | None = None, **more: Any) -> None:
        self._write(images={name: [list(image.shape) for image in images] for name, images in values.items()})

    def finish(self) -> None:
        self._write(end=True)


class Broken(GeneralTracker):  # type: ignore[misc]
    """Loses its connection at the second run."""

    name = "broken"
    requires_logging_directory = False
    runs: ClassVar[list[str]] = []

    def __init__(self, run_name: str) -> None:
        super().__init__()
        self.runs.append(run_name)
        if len(self.runs) > 1:
            raise ConnectionError("no network")

    @property
    def tracker(self) -> None:
        return None

    def store_init_configuration(self, values: dict[str, Any]) -> None: ...

    def log(self, values: dict[str, float], step: int | None = None, **more: Any) -> None: ...

    def finish(self) -> None: ...
