"""MkDocs hooks: files outside ``docs/`` that pages link to become part of the site.

A page links to ``../methods/pros.py``, which also works where the repository is shown. In the site, a linked text file
is a page ``repository/methods/pros.py`` that shows it, each linked Markdown file a page (its links are followed
too), and every other file (images, the interactive report) is copied. A link to a file that does not exist stays as it
is, and the strict build fails on it.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PREFIX = "repository"
LINK = re.compile(r"(\]\()([^)\s#]+)((?:#[^)\s]*)?\))")
FENCE = re.compile(r"(^```.*?^```[^\n]*$)", flags=re.DOTALL | re.MULTILINE)
LANGUAGES = {".py": "python", ".toml": "toml", ".json": "json", ".csv": "text", ".cff": "yaml", ".txt": "text"}
#: A text file up to this size is shown; a longer one is copied.
SHOWN_BYTES = 200_000


def target(page: str, link: str) -> str:
    """The repository path of a relative link on a page (both with ``/``, from the repository's root); "" for others."""
    if "://" in link or link.startswith(("mailto:", "/")):
        return ""
    return posixpath.normpath(posixpath.join(posixpath.dirname(page), link))


def is_shown(path: str) -> bool:
    """Whether a file outside ``docs/`` is shown as a page around its text."""
    file = ROOT / path
    return file.suffix in LANGUAGES and file.stat().st_size <= SHOWN_BYTES


def uri(path: str) -> str:
    """The place in the site's sources of a file of the repository."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    return f"{PREFIX}/{path}.md" if is_shown(path) else f"{PREFIX}/{path}"


def links(text: str) -> list[str]:
    """Link targets of a Markdown text, outside of code blocks."""
    return [link for _, link, _ in LINK.findall(FENCE.sub("", text))]


def linked_files() -> list[str]:
    """Every file outside ``docs/`` that a page, or a page that a page links to, links to."""
    found: dict[str, None] = {}
    waiting = [f"docs/{file.name}" for file in sorted((ROOT / "docs").glob("*.md"))]
    while waiting:
        page = waiting.pop()
        for link in links((ROOT / page).read_text(encoding="utf-8")):
            path = target(page, link)
            if path and not path.startswith(("docs/", "..")) and path not in found and (ROOT / path).is_file():
                found[path] = None
                waiting += [path] if path.endswith(".md") else []
    return list(found)


def on_files(files: Files, config: Any) -> Files:
    """Add the linked files."""
    for path in linked_files():
        file = ROOT / path
        if is_shown(path):
            text = file.read_text(encoding="utf-8").rstrip()
            page = f"# `{path}`\n\n````{LANGUAGES[file.suffix]}\n{text}\n````\n"
            files.append(File.generated(config, uri(path), content=page))
        elif file.suffix == ".md":
            files.append(File.generated(config, uri(path), content=file.read_text(encoding="utf-8")))
        else:
            files.append(File.generated(config, uri(path), abs_src_path=str(file)))
    return files


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Let links to files of the repository point to their places in the site."""
    source = page.file.src_uri
    path = source.removeprefix(f"{PREFIX}/") if source.startswith(f"{PREFIX}/") else f"docs/{source}"

    def point(match: re.Match[str]) -> str:
        goal = target(path, match[2])
        if not goal or goal.startswith("..") or not (ROOT / goal).is_file():
            return match[0]
        return f"{match[1]}{posixpath.relpath(uri(goal), posixpath.dirname(source) or '.')}{match[3]}"

    return "".join(part if part.startswith("```") else LINK.sub(point, part) for part in FENCE.split(markdown))


def on_page_content(html: str, **_: Any) -> str:
    """Docstrings are reST: cross-reference roles become code, ``::`` before an example a colon."""
    html = re.sub(r":(?:class|func|meth|mod|attr|data):<code>~?(?:[\w.]*\.)?(\w+)</code>", r"<code>\1</code>", html)
    return html.replace("::</p>", ":</p>")
