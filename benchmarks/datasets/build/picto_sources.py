"""The drawings that PictoDomains and the pretraining corpus are made of: reading, licences, kinship, rendering.

Two sources, fetched with the ordinary clients and unpacked by the user:

* ``npm pack @iconify/json@2.2.535 && tar xzf iconify-json-2.2.535.tgz`` gives the folder ``package/``
  (``collections.json`` and ``json/PREFIX.json``: SVG bodies, names, licences);
* ``apt-get download openclipart-svg && dpkg -x openclipart-svg_*.deb .`` gives ``usr/share/openclipart/svg``
  (SVG files in the public domain, with title and author in their RDF metadata).

Nothing here draws at random: the same folders give the same drawings in the same order.
"""

from __future__ import annotations

import html
import io
import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

ICONIFY_VERSION = "2.2.535"

#: Which collection feeds which PictoDomains domain (drawing style). ``flat`` is the gallery domain.
DOMAIN_COLLECTIONS: dict[str, tuple[str, ...]] = {
    "flat": ("noto", "twemoji", "fluent-emoji-flat", "noto-v1"),
    "shaded": (
        "fluent-emoji",
        "streamline-kameleon-color",
        "streamline-ultimate-color",
        "streamline-plump-color",
        "meteocons",
    ),
    "multicolour": (
        "icon-park",
        "streamline-color",
        "streamline-flex-color",
        "streamline-sharp-color",
        "marketeq",
        "flat-color-icons",
    ),
    "clipart": ("openclipart",),
    "glyph": (
        "game-icons",
        "fluent-emoji-high-contrast",
        "fa7-solid",
        "healthicons",
        "maki",
        "temaki",
        "pinhead",
        "icon-park-solid",
        "whh",
    ),
    "line": (
        "tabler",
        "lucide",
        "lucide-lab",
        "hugeicons",
        "iconoir",
        "streamline-ultimate",
        "icon-park-outline",
        "la",
        "guidance",
        "mynaui",
        "uil",
    ),
    "freehand": ("streamline-freehand", "streamline-freehand-color", "pepicons-pencil", "streamline-cyber"),
    "pixel": ("pixelarticons", "pixel", "streamline-pixel", "memory", "dinkie-icons"),
}

#: Forks and other versions of a collection in :data:`DOMAIN_COLLECTIONS`; never in the pretraining corpus.
KIN: dict[str, str] = {
    "icon-park-twotone": "icon-park",
    "streamline": "streamline-color",
    "streamline-flex": "streamline-flex-color",
    "streamline-sharp": "streamline-sharp-color",
    "streamline-plump": "streamline-plump-color",
    "streamline-cyber-color": "streamline-cyber",
    "fa": "fa7-solid",
    "fa-solid": "fa7-solid",
    "fa-regular": "fa7-solid",
    "fa6-solid": "fa7-solid",
    "fa6-regular": "fa7-solid",
    "fa7-regular": "fa7-solid",
    "feather": "lucide",
    "fe": "lucide",
    "meteor-icons": "lucide",
    "akar-icons": "lucide",
    "pepicons": "pepicons-pencil",
    "pepicons-pop": "pepicons-pencil",
    "pepicons-print": "pepicons-pencil",
    "uim": "uil",
    "uis": "uil",
    "uit": "uil",
    "fa-brands": "fa7-solid",
    "fa6-brands": "fa7-solid",
    "osmic": "pinhead",
    "roentgen": "pinhead",
    "map": "maki",
}

#: Licences (SPDX) that allow redistribution without share-alike and non-commercial terms.
OPEN_LICENCES = frozenset(
    {
        "MIT",
        "Apache-2.0",
        "CC-BY-4.0",
        "CC-BY-3.0",
        "CC0-1.0",
        "ISC",
        "OFL-1.1",
        "Unlicense",
        "BSD-3-Clause",
        "Public domain",
    }
)

#: Categories of collections that hold logos, flags or brand marks.
_LOGO_CATEGORIES = frozenset({"Logos", "Programming"})
_FLAG_COLLECTIONS = frozenset({"circle-flags", "flag", "flagpack", "cif"})


@dataclass(frozen=True)
class Drawing:
    """One drawing with its provenance.

    ``svg`` is a complete SVG document for icons; ``None`` for a file, whose path is in ``path``.
    ``category`` is the collection's own grouping (may be empty).
    """

    collection: str
    name: str
    title: str
    author: str
    license: str
    category: str = ""
    svg: str | None = None
    path: Path | None = None
    monochrome: bool = False

    @property
    def key(self) -> str:
        """``collection:name``, unique over all sources."""
        return f"{self.collection}:{self.name}"


@dataclass(frozen=True)
class CollectionInfo:
    """What ``collections.json`` says of one collection."""

    prefix: str
    title: str
    author: str
    author_url: str
    license: str
    license_url: str
    category: str
    total: int
    palette: bool


def collections(iconify: Path) -> dict[str, CollectionInfo]:
    """All collections of the unpacked ``@iconify/json`` package, by prefix.

    Raises ``FileNotFoundError`` with one line that names the folder and the command that fetches it.
    """
    index = iconify / "collections.json"
    if not index.is_file():
        raise FileNotFoundError(
            f"{index} is missing: give the folder 'package' that `npm pack @iconify/json@{ICONIFY_VERSION}` and"
            " `tar xzf` make"
        )
    collections = {}
    for prefix, info in sorted(json.loads(index.read_text(encoding="utf-8")).items()):
        license_ = info.get("license", {})
        author = info.get("author", {})
        collections[prefix] = CollectionInfo(
            prefix=prefix,
            title=info.get("name", prefix),
            author=author.get("name", ""),
            author_url=author.get("url", ""),
            license=license_.get("spdx", license_.get("title", "")),
            license_url=license_.get("url", ""),
            category=info.get("category", ""),
            total=int(info.get("total", 0)),
            palette=bool(info.get("palette", False)),
        )
    return collections


def corpus_collections(iconify: Path) -> list[str]:
    """Prefixes that may feed the pretraining corpus: open licence, no logos, no flags, no kin of PictoDomains."""
    feeding = {prefix for prefixes in DOMAIN_COLLECTIONS.values() for prefix in prefixes}
    return [
        prefix
        for prefix, info in collections(iconify).items()
        if prefix not in feeding
        and prefix not in KIN
        and prefix not in _FLAG_COLLECTIONS
        and info.category not in _LOGO_CATEGORIES
        and info.license in OPEN_LICENCES
    ]


def icons(iconify: Path, prefix: str) -> Iterator[Drawing]:
    """The icons of one collection in name order (hidden ones and pure aliases left out)."""
    info = collections(iconify)[prefix]
    file = iconify / "json" / f"{prefix}.json"
    if not file.is_file():
        raise FileNotFoundError(f"{file} is missing: unpack @iconify/json@{ICONIFY_VERSION} again")
    data = json.loads(file.read_text(encoding="utf-8"))
    categories = {name: title for title, names in (data.get("categories") or {}).items() for name in names}
    for name, icon in sorted(data["icons"].items()):
        if icon.get("hidden"):
            continue
        width = icon.get("width", data.get("width", 16))
        height = icon.get("height", data.get("height", 16))
        left, top = icon.get("left", data.get("left", 0)), icon.get("top", data.get("top", 0))
        side = max(width, height)
        left, top = left - (side - width) / 2, top - (side - height) / 2
        body = icon["body"]
        yield Drawing(
            collection=prefix,
            name=name,
            title=name.replace("-", " "),
            author=info.author,
            license=info.license,
            category=categories.get(name, ""),
            svg=f'<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
            f' viewBox="{left:g} {top:g} {side:g} {side:g}">{body}</svg>',
            monochrome=_is_monochrome(body),
        )


def _is_monochrome(body: str) -> bool:
    """True if the only paint of an SVG body is ``currentColor`` (and none)."""
    if "gradient" in body.lower() or "<image" in body:
        return False
    colours = set(re.findall(r'(?:fill|stroke|stop-color)\s*[=:]\s*["\']?\s*([#\w()%,.]+)', body))
    return colours <= {"currentColor", "none", "inherit", "transparent", "evenodd", "nonzero"}


def openclipart(folder: Path) -> Iterator[Drawing]:
    """The SVG files of Debian's ``openclipart-svg`` in path order; the name is the path without its ending.

    Raises ``FileNotFoundError`` with one line that names the folder and the command that fetches it.
    """
    root = folder / "usr" / "share" / "openclipart" / "svg"
    root = root if root.is_dir() else folder / "svg" if (folder / "svg").is_dir() else folder
    files = sorted(root.rglob("*.svg"))
    if not files:
        raise FileNotFoundError(
            f"{folder} holds no SVG files: give the folder that `apt-get download openclipart-svg` and `dpkg -x` make"
        )
    for file in files:
        if file.is_symlink():
            continue
        text = file.read_text(encoding="utf-8", errors="replace")
        title = _rdf(text, r"<dc:title>(.*?)</dc:title>")
        author = _rdf(text, r"<dc:creator>.*?<dc:title>(.*?)</dc:title>")
        relative = file.relative_to(root)
        yield Drawing(
            collection="openclipart",
            name=relative.with_suffix("").as_posix(),
            title=title,
            author=author or "unknown (Open Clip Art Library)",
            license="Public domain",
            category=relative.parent.as_posix().replace("/", " "),
            path=file,
        )


def _rdf(text: str, pattern: str) -> str:
    match = re.search(pattern, text, flags=re.DOTALL)
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", match.group(1))).split()) if match else ""


def render(drawing: Drawing, size: int) -> np.ndarray | None:
    """Draw at ``size`` x ``size`` pixels on white: uint8 ``[size, size, 3]``; None if it cannot be drawn or is blank.

    Icons keep the margins of their own canvas; clip art, which often sits in the corner of a page, is cropped to its
    content and centred with a margin of 6 %. ``currentColor`` is black.
    """
    from resvg_py import svg_to_bytes

    try:
        if drawing.svg is not None:
            data = svg_to_bytes(
                svg_string=drawing.svg, width=size, height=size, background="white", skip_system_fonts=True
            )
            image = Image.open(io.BytesIO(data)).convert("RGB")
        else:
            data = svg_to_bytes(
                svg_path=str(drawing.path), width=4 * size, background="white", skip_system_fonts=True, dpi=90
            )
            image = _crop_to_content(Image.open(io.BytesIO(data)).convert("RGB"), size)
    except (ValueError, OSError):
        return None
    if image.size != (size, size):
        return None
    pixels = np.asarray(image)
    return None if int((pixels.min(axis=2) < 250).sum()) < size * size // 200 else pixels


def _crop_to_content(image: Image.Image, size: int) -> Image.Image:
    ink = np.asarray(image).min(axis=2) < 250
    rows, columns = np.flatnonzero(ink.any(axis=1)), np.flatnonzero(ink.any(axis=0))
    if len(rows) == 0:
        return image
    box = image.crop((int(columns[0]), int(rows[0]), int(columns[-1]) + 1, int(rows[-1]) + 1))
    side = round(max(box.size) * 1.12)
    square = Image.new("RGB", (side, side), "white")
    square.paste(box, ((side - box.width) // 2, (side - box.height) // 2))
    return square.resize((size, size), Image.Resampling.LANCZOS, reducing_gap=3.0)
