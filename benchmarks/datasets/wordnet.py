"""The embedded WordNet nouns: where they are, and how NLTK finds them.

After a normal or an editable install NLTK finds them by itself under ``sys.prefix`` (see ``data-files`` in
pyproject.toml). Importing `benchmarks` puts them in front in any case, so a checkout needs no install. Built by
`benchmarks.datasets.build.wordnet_build`.
"""

from __future__ import annotations

import atexit
import os
import shutil
import stat
import sys
import tempfile
from pathlib import Path

NLTK_DATA = Path(__file__).parents[1] / "assets" / "nltk_data"


def offer_to_nltk() -> None:
    """Let NLTK, imported before or after, find the embedded WordNet first; NLTK itself is not imported.

    NLTK refuses files that other accounts may write to, as those of a checkout made under umask 002 are; they are then
    offered as a private copy, which this process removes at its end.
    """
    folder = str(NLTK_DATA if _is_private(NLTK_DATA) else _private_copy(NLTK_DATA))
    others = [path for path in os.environ.get("NLTK_DATA", "").split(os.pathsep) if path not in ("", folder)]
    os.environ["NLTK_DATA"] = os.pathsep.join([folder, *others])
    data = sys.modules.get("nltk.data")
    if data is not None and folder not in data.path:
        data.path.insert(0, folder)


def _is_private(folder: Path) -> bool:
    """Whether only this account, or root, may write to a folder and what is in it."""
    if os.name != "posix":
        return True
    statuses = [path.lstat() for path in (folder, *folder.rglob("*"))]
    return all(
        status.st_uid in (0, os.geteuid()) and not status.st_mode & (stat.S_IWGRP | stat.S_IWOTH) for status in statuses
    )


def _private_copy(folder: Path) -> Path:
    copy = Path(tempfile.mkdtemp(prefix="ucdr-bench-nltk-"))
    atexit.register(shutil.rmtree, copy, ignore_errors=True)
    for path in sorted(folder.rglob("*")):
        place = copy / path.relative_to(folder)
        if path.is_dir():
            place.mkdir(mode=0o700)
        else:
            shutil.copyfile(path, place)
            place.chmod(0o600)
    return copy
