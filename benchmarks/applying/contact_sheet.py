"""A contact sheet: each query with its nearest images, as one PNG file."""

from __future__ import annotations

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from benchmarks.console import printable
from benchmarks.datasets.decoding import ImageError, upright
from benchmarks.store.files import write_atomically

#: Side of a thumbnail, and height of the caption under it, in pixels.
SIDE, CAPTION = 144, 34

GAP = 8

#: Lines of a text query in its square, at most.
LINES = 7


@dataclass(frozen=True)
class Tile:
    """A thumbnail and two lines under it; without an image file, of a text query, the title takes its place."""

    path: Path | None
    title: str
    line: str = ""


def write_sheet(path: Path, rows: Sequence[Sequence[Tile]]) -> None:
    """Write rows of tiles as a PNG file; an image that cannot be read is a grey square with its caption."""
    columns = max(len(row) for row in rows)
    width, height = columns * (SIDE + GAP) + GAP, len(rows) * (SIDE + CAPTION + GAP) + GAP
    sheet = Image.new("RGB", (width, height), "white")
    pen, font = ImageDraw.Draw(sheet), _font(11)
    for number, row in enumerate(rows):
        for column, tile in enumerate(row):
            x, y = GAP + column * (SIDE + GAP), GAP + number * (SIDE + CAPTION + GAP)
            thumbnail = None if tile.path is None else _thumbnail(tile.path)
            if thumbnail is not None:
                sheet.paste(thumbnail, (x + (SIDE - thumbnail.width) // 2, y + (SIDE - thumbnail.height) // 2))
            else:
                pen.rectangle((x, y, x + SIDE - 1, y + SIDE - 1), fill="#eceff1")
                if tile.path is None:
                    _write(pen, tile.title, (x, y))
            colour = "#0d47a1" if column == 0 else "#202124"
            for place, text in enumerate((tile.title, tile.line)):
                pen.text((x, y + SIDE + 2 + 15 * place), _shortened(text, font), fill=colour, font=font)
        line = GAP + SIDE + GAP // 2
        y = GAP + number * (SIDE + CAPTION + GAP)
        pen.line((line, y, line, y + SIDE + CAPTION - 4), fill="#b0bec5")
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    write_atomically(path, buffer.getvalue())


def _font(size: int) -> ImageFont.FreeTypeFont:
    """DejaVu Sans, which comes with matplotlib: Latin letters with accents, Greek and Cyrillic; Pillow's has ASCII."""
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), size)


def _write(pen: ImageDraw.ImageDraw, text: str, corner: tuple[int, int]) -> None:
    """The text, in lines, in the middle of a thumbnail's square; what does not fit ends in dots."""
    font, lines = _font(14), textwrap.wrap(printable(text), 15)
    if len(lines) > LINES:
        lines = [*lines[: LINES - 1], "..."]
    middle = (corner[0] + SIDE // 2, corner[1] + SIDE // 2)
    pen.multiline_text(middle, "\n".join(lines), fill="#0d47a1", font=font, anchor="mm", align="center")


def _thumbnail(path: Path) -> Image.Image | None:
    try:
        image = upright(path.read_bytes())[0]
    except (OSError, ImageError):
        return None
    image.thumbnail((SIDE, SIDE))
    return image


def _shortened(text: str, font: ImageFont.FreeTypeFont) -> str:
    """The end of a text that fits under a thumbnail: of a path, the file's name says most."""
    text = printable(text)
    if font.getlength(text) <= SIDE:
        return text
    while text and font.getlength(f"...{text}") > SIDE:
        text = text[1:]
    return f"...{text}"
