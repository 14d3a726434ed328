"""Embedded images among class names: any names, with the method's own classifier."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.applying.image_index import CHUNK, SLAB, ApplyError, ImageIndex, decode_images, encode_pixels
from methods.interface import Method, NotApplicableError, unit_length
from methods.parts.backbone import BackboneError


def read_names(text: str) -> list[str]:
    """Class names of a comma list, or of a text file with one name a line (``@FILE``).

    Raises :class:`ApplyError` for a file that cannot be read, fewer than two names, or one that is repeated.
    """
    if text.startswith("@"):
        try:
            names = Path(text[1:]).expanduser().read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ApplyError(f"--classify {text}: cannot be read ({error})") from error
    else:
        names = text.split(",")
    names = [name.strip() for name in names if name.strip()]
    if len(set(names)) < 2:
        raise ApplyError(f"--classify {text}: give two or more class names, as cat,dog or @FILE with one a line")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise ApplyError(f"--classify: the class {twice!r} is named twice")
    return names


def classify_images(method: Method, index: ImageIndex, names: Sequence[str], top: int) -> tuple[np.ndarray, np.ndarray]:
    """The ``top`` most probable classes of each image and their probabilities (softmax over ``names``), ``[N, k]``.

    A method that classifies as :class:`Method` does is given its embeddings; any other one is given the images again.
    Raises :class:`ApplyError` if the method has no classifier for these names, one is too long, or an image is gone.
    """
    k = min(top, len(names))
    classes, values = np.empty((len(index), k), np.int64), np.empty((len(index), k), np.float32)

    def keep(start: int, logits: Tensor) -> None:
        best = logits.softmax(dim=1).topk(k, dim=1)
        part = slice(start, start + len(logits))
        classes[part], values[part] = best.indices.numpy(), best.values.numpy()

    try:
        if type(method).classify is Method.classify:
            with torch.no_grad():
                weights = method.logit_scale() * unit_length(method.encode_classes(names).float().cpu()).T
            for start in range(0, len(index), SLAB):
                images = torch.from_numpy(np.array(index.embeddings[start : start + SLAB]))
                keep(start, F.normalize(images, dim=-1) @ weights)
            return classes, values
        for start in range(0, len(index), CHUNK):
            rows = np.arange(start, min(start + CHUNK, len(index)))
            _, pixels, _, broken = decode_images(index.paths, method, rows)
            if broken:
                row, reason = next(iter(broken.items()))
                raise ApplyError(f"{index.paths[row]}: {reason}; give IMAGES, so that the index is brought up to date")
            keep(start, encode_pixels(lambda batch: method.classify(batch, names), pixels, method.device))
    except BackboneError as error:
        raise ApplyError(f"--classify: {error}") from error
    except NotApplicableError as error:
        raise ApplyError(f"{method.card.name} cannot classify these names ({error})") from error
    return classes, values
