"""The embedded WordNet nouns: where they lie, and how NLTK learns of it.

After a normal or an editable install NLTK finds them by itself under ``sys.prefix`` (see ``data-files`` in
pyproject.toml). Importing `benchmarks` puts them in front in any case, so a checkout needs no install. Built by
`benchmarks.datasets.wordnet_build`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

NLTK_DATA = Path(__file__).parents[1] / "assets" / "nltk_data"


def offer_to_nltk() -> None:
    """Let NLTK, imported before or after, find the embedded WordNet first; NLTK itself is not imported."""
    folder = str(NLTK_DATA)
    others = [path for path in os.environ.get("NLTK_DATA", "").split(os.pathsep) if path not in ("", folder)]
    os.environ["NLTK_DATA"] = os.pathsep.join([folder, *others])
    data = sys.modules.get("nltk.data")
    if data is not None and folder not in data.path:
        data.path.insert(0, folder)
