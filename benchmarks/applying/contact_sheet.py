"""A contact sheet: each query with its nearest images, as one PNG file."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from benchmarks.datasets.decoding import ImageError, upright
from benchmarks.store.files import write_atomically

#: Side of a thumbnail, and height of the caption under it, in pixels.
SIDE, CAPTION = 144, 34

GAP = 8


@dataclass(frozen=True)
class Tile:
    """A thumbnail: the image file (None: the caption alone) and two lines under it."""

    path: Path | None
    title: str
    line: str = ""


def write_sheet(path: Path, rows: Sequence[Sequence[Tile]]) -> None:
    """Write rows of tiles as a PNG file; an image that cannot be read is a grey square with its caption."""
    columns = max(len(row) for row in rows)
    width, height = columns * (SIDE + GAP) + GAP, len(rows) * (SIDE + CAPTION + GAP) + GAP
    sheet = Image.new("RGB", (width, height), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(12)
    for number, row in enumerate(rows):
        for column, tile in enumerate(row):
            x, y = GAP + column * (SIDE + GAP), GAP + number * (SIDE + CAPTION + GAP)
            thumbnail = None if tile.path is None else _thumbnail(tile.path)
            if thumbnail is not None:
                sheet.paste(thumbnail, (x + (SIDE - thumbnail.width) // 2, y + (SIDE - thumbnail.height) // 2))
            else:
                pen.rectangle((x, y, x + SIDE - 1, y + SIDE - 1), fill="#eceff1")
            colour = "#0d47a1" if column == 0 else "#202124"
            for place, text in enumerate((tile.title, tile.line)):
                pen.text((x, y + SIDE + 2 + 15 * place), _shortened(text, font), fill=colour, font=font)
        line = GAP + SIDE + GAP // 2
        y = GAP + number * (SIDE + CAPTION + GAP)
        pen.line((line, y, line, y + SIDE + CAPTION - 4), fill="#b0bec5")
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    write_atomically(path, buffer.getvalue())


def _thumbnail(path: Path) -> Image.Image | None:
    try:
        image = upright(path.read_bytes())[0]
    except (OSError, ImageError):
        return None
    image.thumbnail((SIDE, SIDE))
    return image


def _shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    """The end of a text that fits under a thumbnail: of a path, the file's name says most."""
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    if font.getlength(text) <= SIDE:
        return text
    while text and font.getlength(f"...{text}") > SIDE:
        text = text[1:]
    return f"...{text}"
