"""Backbones by name: ``picto-clip`` is the newest shipped version; every other name goes to ``Backbone.load``.

Every score names the version (``picto-clip-v2``), never the bare name.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from methods.parts.backbone import Backbone

#: Folder of the shipped versions, ``picto-clip-v1``, ``picto-clip-v2``, ...
SHIPPED = Path(__file__).parent / "assets" / "picto_clip"


def shipped_versions() -> dict[str, Path]:
    """Shipped versions of picto-clip by name, oldest first."""
    found = [path for path in SHIPPED.glob("picto-clip-v*") if (path / "config.json").is_file()]
    return {path.name: path for path in sorted(found, key=lambda path: [int(n) for n in re.findall(r"\d+", path.name)])}


def resolve(name_or_folder: str) -> tuple[str, str]:
    """``(name for the records, what Backbone.load takes)``; raises ``ValueError`` if no version of picto-clip is there.

    Names that are not ours pass through unchanged; ``Backbone.load`` says what is wrong with them.
    """
    versions = shipped_versions()
    if name_or_folder == "picto-clip" and versions:
        newest = list(versions)[-1]
        return newest, str(versions[newest])
    if name_or_folder in versions:
        return name_or_folder, str(versions[name_or_folder])
    if re.fullmatch(r"picto-clip(-v[\d.]+)?", name_or_folder) and not Path(name_or_folder).is_dir():
        there = ", ".join(versions) or "none"
        raise ValueError(
            f"backbone {name_or_folder} is not in this installation (there: {there}); use --backbone FOLDER"
        )
    return "", name_or_folder


def load(name_or_folder: str, *, device: str, precision: Literal["float32", "bf16"]) -> Backbone:
    """The backbone, with ``name`` set to the shipped version's name or what :meth:`Backbone.load` makes of it."""
    from methods.parts.backbone import Backbone

    name, source = resolve(name_or_folder)
    backbone = Backbone.load(source, device=device, precision=precision)
    backbone.name = name or backbone.name
    return backbone
