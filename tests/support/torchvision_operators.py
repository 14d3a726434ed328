"""Torchvision beside a torch that its published build does not fit (a CPU-only one): importable, without operators.

Its package describes operators that its compiled part would have made known; where that part does not load, the import
fails, and with it ``transformers`` and ``open_clip``. None of the operators is used here, so that declaring them is
enough. ``tests/conftest.py`` does so before anything imports torchvision.
"""

from __future__ import annotations

import importlib.util

import torch

#: The operators whose description is registered even where the compiled part is missing.
OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)

_libraries: list[torch.library.Library] = []  # a library's operators go with it


def declare() -> None:
    """Declare them, unless torchvision is not installed or its compiled part loads."""
    found = importlib.util.find_spec("torchvision")
    if _libraries or found is None or not found.submodule_search_locations:
        return
    try:
        torch.ops.load_library(f"{found.submodule_search_locations[0]}/_C.so")
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        for operator in OPERATORS:
            library.define(operator)
        _libraries.append(library)
