"""Reads a page as a browser's parser would: tables, ids, links, and whatever would be fetched."""

from __future__ import annotations

from html.parser import HTMLParser

VOID = {"meta", "link", "img", "input", "br"}


class Page(HTMLParser):
    """Tables as lists of rows of texts (by caption: the first of its name); tags, ids, texts; what does not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.all_tables: list[list[list[str]]] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.ids: list[str] = []
        self.texts: list[str] = []
        self.crossed: list[str] = []
        self._open: list[str] = []
        self._rows: list[list[str]] = []
        self._caption = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.tags.append((tag, given))
        if "id" in given:
            self.ids.append(given["id"])
        if tag not in VOID:
            self._open.append(tag)
        if tag == "figcaption":
            self._caption = ""
        if tag == "table":
            self._rows = []
        if tag == "tr":
            self._rows.append([])
        if tag in ("td", "th"):
            self._rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.crossed.append(tag)
        if tag == "table":
            self.all_tables.append([[" ".join(cell.split()) for cell in row] for row in self._rows])
            self.tables.setdefault(self._caption.strip(), self.all_tables[-1])

    def handle_data(self, data: str) -> None:
        inside = self._open[-1] if self._open else ""
        if inside in ("script", "style"):
            return
        self.texts.append(data)
        if "figcaption" in self._open:
            self._caption += data
        if ("td" in self._open or "th" in self._open) and self._rows and self._rows[-1]:
            self._rows[-1][-1] += data

    @property
    def fetched(self) -> list[str]:
        """Addresses that a browser would ask for when it opens the page."""
        names = ("src", "srcset", "data", "poster", "background")
        found = [given[name] for _, given in self.tags for name in names if name in given]
        found += [given["href"] for tag, given in self.tags if tag == "link"]
        return [address for address in found if not address.startswith("data:")]
