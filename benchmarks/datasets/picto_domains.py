"""PictoDomains, the embedded default: openly licensed drawings of everyday things in eight styles, WordNet-linked.

The pack ships with the package (``benchmarks/assets/picto_domains``); its card there says how it was made.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from benchmarks.datasets.base import ClosedSet, Dataset, DatasetCard, DatasetError, RetrievalCut

if TYPE_CHECKING:
    from torch import Tensor

    from methods.parts.preprocessing import ImageProcessing

VERSION = "v2"


def pack_path() -> Path:
    """The path of the shipped Parquet file."""
    return Path(str(resources.files("benchmarks"))) / "assets" / "picto_domains" / f"pictodomains-{VERSION}.parquet"


class PictoDomains(Dataset):
    """The shipped pack, or another file of the same columns given as ``root``."""

    card = DatasetCard(
        name="picto_domains",
        title="PictoDomains: drawings of everyday things in eight styles",
        version=VERSION,
        source="@iconify/json 2.2.535 (npm) and openclipart-svg (Debian), rendered by this project",
        licence="per image (MIT, Apache-2.0, CC-BY, CC0, ISC, OFL, public domain); see ATTRIBUTION.md",
        gallery_domain="flat",
        headline=RetrievalCut(map_at=None, precision_at=None),
        known_problems=(
            "few images a class and domain: P@100 and a cut at 200 mean little here, so mAP@all and recall@1 lead",
            "drawings, not photographs: scores say nothing about photographs",
            "the clip-art domain is one collection by many authors",
        ),
    )

    @cached_property
    def _frame(self) -> pd.DataFrame:
        path = self.root if self.root is not None and self.root.suffix == ".parquet" else pack_path()
        if not path.is_file():
            raise DatasetError(f"{path} is missing: reinstall the package, or build the pack with picto_build")
        frame = pd.read_parquet(path).rename(columns={"id": "key"})
        return frame.sort_values("key", kind="stable", ignore_index=True)

    @cached_property
    def table(self) -> pd.DataFrame:
        """All samples with their provenance (without the image bytes)."""
        return self._frame.drop(columns="image")

    @cached_property
    def _bytes(self) -> list[bytes]:
        return [image["bytes"] for image in self._frame["image"]]

    @cached_property
    def _decoded(self) -> np.ndarray:
        from PIL import Image

        return np.stack([np.asarray(Image.open(io.BytesIO(data)).convert("RGB")) for data in self._bytes])

    def pixels(self, rows: np.ndarray, size: int) -> Tensor:
        """RGB in [0, 1], resized from 96 x 96 with antialiased bicubic interpolation."""
        import torch
        from torch.nn import functional as F

        rows = np.asarray(rows)
        pixels = torch.from_numpy(self._decoded[rows]).permute(0, 3, 1, 2).float().div_(255)
        if pixels.shape[-1] != size:
            pixels = F.interpolate(pixels, (size, size), mode="bicubic", antialias=True, align_corners=False)
        return pixels.clamp_(0, 1)

    def processed(self, rows: np.ndarray, how: ImageProcessing) -> Tensor:
        """RGB under a backbone's image processing, uint8: :meth:`pixels` where it resizes the whole square with
        bicubic interpolation, else as Pillow resizes and crops."""
        import torch
        from PIL import Image

        if how.whole_square and how.resample == "bicubic":
            return self.pixels(rows, how.size).mul_(255).round_().to(torch.uint8)
        made = [how.apply(Image.fromarray(self._decoded[row])) for row in np.asarray(rows)]
        return torch.from_numpy(np.stack(made))

    @cached_property
    def content(self) -> Sequence[str]:
        """sha256 of every image's PNG bytes."""
        return [hashlib.sha256(data).hexdigest() for data in self._bytes]

    @cached_property
    def synsets(self) -> Mapping[str, str]:
        """WordNet synset name of every class."""
        pairs = self._frame[["class", "synset"]].drop_duplicates()
        return dict(zip(pairs["class"], pairs["synset"], strict=True))

    @cached_property
    def closed_set(self) -> ClosedSet:
        """The committed UDA and DAZSL settings (:func:`closed_set_of` made them)."""
        if self.root is not None and self.root.suffix == ".parquet":
            return closed_set_of(self.table)
        lists = json.loads(closed_set_path().read_text(encoding="utf-8"))
        return ClosedSet(
            uda_domains=tuple(lists["uda_domains"]),
            uda_classes=tuple(lists["uda_classes"]),
            dazsl_pairs=tuple((source, target) for source, target in lists["dazsl_pairs"]),
            seen=tuple(lists["seen"]),
            unseen=tuple(lists["unseen"]),
        )


def closed_set_path() -> Path:
    """The path of the committed UDA and DAZSL settings."""
    return pack_path().with_name(f"closed-sets-{VERSION}.json")


def closed_set_of(table: pd.DataFrame) -> ClosedSet:
    """The rule behind the UDA and DAZSL settings.

    UDA: the four domains that draw things in the most different ways and still share many classes (clip art, flat,
    glyph, line), over every class with at least three images in each of them, whatever its split. DAZSL: line art to
    flat emoji; seen are the train classes, unseen the test classes, with at least three source images (seen) and two
    target images; validation classes stay with validation.
    """
    counts = table.groupby(["class", "domain"]).size().unstack(fill_value=0)
    split = table.drop_duplicates("class").set_index("class")["split"]
    domains = ("clipart", "flat", "glyph", "line")
    enough = (counts.reindex(columns=list(domains), fill_value=0) >= 3).all(axis=1)
    source, target = "line", "flat"
    shown = counts[target] >= 2
    seen = shown & (counts[source] >= 3) & (split.reindex(counts.index) == "train")
    unseen = shown & (split.reindex(counts.index) == "test")
    return ClosedSet(
        uda_domains=domains,
        uda_classes=tuple(sorted(counts.index[enough])),
        dazsl_pairs=((source, target),),
        seen=tuple(sorted(counts.index[seen])),
        unseen=tuple(sorted(counts.index[unseen])),
    )
