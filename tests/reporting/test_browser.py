"""The page in headless Chromium, opened from disk: it sorts, filters, shows images and asks for nothing outside."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from benchmarks.reporting.data import ReportData
from benchmarks.reporting.files import write_report
from benchmarks.reporting.types import Galleries, GalleryQuery, Hit, Plot, RankedImages
from benchmarks.store.files import ResultStore
from benchmarks.store.frame import load_results

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="no chromium on the PATH"),
]

#: Runs before the page's own script: keeps errors and what the page's policy had to block.
EARS = """
window.heard = [];
addEventListener("error", (event) => heard.push(String(event.message ?? event.target?.outerHTML)), true);
addEventListener("securitypolicyviolation", (event) => heard.push("blocked " + event.blockedURI));
for (const kind of ["error", "warn"]) console[kind] = (...words) => heard.push(words.join(" "));
"""

#: Uses the page as a reader would and writes what it saw into the page.
READER = (Path(__file__).parent / "reader.js").read_text(encoding="utf-8")

#: A frame with the page in it; what the reader there has written is copied here.
FRAME = """<!DOCTYPE html><style>body {{ margin: 0 }} iframe {{ border: 0 }}</style>
<iframe width="{width}" height="900" srcdoc="{content}"></iframe>
<script>
const look = setInterval(() => {{
  const said = document.querySelector("iframe").contentDocument.getElementById("saw");
  if (said) {{ clearInterval(look); document.body.append(said.cloneNode(true)); }}
}}, 50);
</script>
"""

#: One blue point.
PIXEL = (
    "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAA"
    "AABJRU5ErkJggg=="
)


def made_up_galleries() -> Galleries:
    """Two queries under two methods."""
    queries = []
    for domain in ("line", "pixel"):
        hits = tuple(Hit(f"flat/{name}/0", name, name == "cat") for name in ("dog", "cat", "car"))
        rows = (RankedImages("good", "good", 0.5, hits), RankedImages("fair", "fair", 1 / 3, hits[::-1]))
        queries.append(GalleryQuery(f"{domain}/cat/0", "cat", domain, "UCDR unseen", 0.4, rows))
    keys = {query.key for query in queries} | {hit.key for hit in queries[0].rows[0].hits}
    return Galleries(tuple(queries), dict.fromkeys(sorted(keys), PIXEL))


@pytest.fixture(scope="module")
def opened(filled: ResultStore, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of the made-up store, with ears and a reader put into it."""
    folder = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("benchmarks.reporting.galleries.galleries", lambda *_, **__: made_up_galleries())
        no_map = Plot("Embeddings of the frozen backbone", failed="not drawn")
        patch.setattr("benchmarks.reporting.files.embedding_plot", lambda *_: no_map)
        files = write_report(ReportData(load_results(filled.root), store=filled, resamples=100), folder, images={})
    text = files[-1].read_text(encoding="utf-8")
    text = text.replace("</title>", f"</title><script>{EARS}</script><script>{READER}</script>", 1)
    path = folder / "read.html"
    path.write_text(text, encoding="utf-8")
    return path


def visit(page: Path, width: int, home: Path) -> dict[str, Any]:
    """Open the page in a frame of this width (a window has at least 500 pixels); what the reader saw."""
    assert CHROMIUM is not None
    window = page.with_suffix(f".{width}.html")
    content = html.escape(page.read_text(encoding="utf-8"))
    window.write_text(FRAME.format(width=width, content=content), encoding="utf-8")
    return dumped(window, home)


def dumped(page: Path, home: Path) -> dict[str, Any]:
    """Open a file in a window of 1280 pixels; what the reader in it saw."""
    command = [str(CHROMIUM), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
    command += ["--disable-background-networking", "--disable-extensions", "--no-first-run", f"--user-data-dir={home}"]
    command += ["--window-size=1280,900", "--virtual-time-budget=20000", "--dump-dom", page.as_uri()]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)
    found = re.search(r'<pre id="saw">(.*?)</pre>', shown.stdout, re.DOTALL)
    assert found, f"the reader came to no end: {shown.stderr[-800:]}"
    saw: dict[str, Any] = json.loads(html.unescape(found[1]))
    return saw


@pytest.mark.timeout(600)
@pytest.mark.parametrize("width", [1280, 390])
def test_a_reader_finds_everything(opened: Path, width: int, tmp_path: Path) -> None:
    saw = dumped(opened, tmp_path / "home") if width == 1280 else visit(opened, width, tmp_path / "home")
    assert saw["ready"] == "yes"
    assert saw["heard"] == [], "no error, no warning, nothing blocked"
    assert saw["fetched"] == []
    for scrolled, inner in saw["widths"]:
        assert scrolled <= inner == width, "the page never scrolls sideways"
    numbers = [float(text) for text in saw["descending"] if re.fullmatch(r"[\d.]+", text)]
    assert len(numbers) == 3
    assert numbers == sorted(numbers, reverse=True)
    assert saw["ascending"][:3] == saw["descending"][2::-1]
    assert saw["descending"][3:] == saw["ascending"][3:] == ["incomplete"], "what has no score stays last"
    assert saw["sorted"] == "ascending"
    assert saw["names"] == ["fair", "good", "random", "stuck"]
    assert saw["filtered"] == ["good"]
    assert saw["secondary"] == [True, False, True]
    assert saw["failures"] == [1, 0]
    assert saw["settings"] == [[False, True], [False, False]]
    assert saw["domains"] == [["line", "pixel"], ["pixel"]]
    there, complete = saw["images"]
    assert there == complete > 10
    (right, solid), (wrong, dashed) = saw["borders"]
    assert right != wrong
    assert (solid, dashed) == ("solid", "dashed")
    assert saw["signs"] == ["✓", "✗"]


def test_the_reader_would_hear_a_request(opened: Path, tmp_path: Path) -> None:
    """A check of the check: an outside image is blocked by the page's policy, and heard."""
    text = opened.read_text(encoding="utf-8").replace("<main>", '<main><img src="https://example.org/x.png">', 1)
    path = tmp_path / "asking.html"
    path.write_text(text, encoding="utf-8")
    assert any("example.org" in line for line in visit(path, 800, tmp_path / "home")["heard"])
