"""The lowest versions that pyproject.toml allows, as constraints: ``python -m tests.support.lowest`` writes the file.

``constraints-lowest.txt`` then holds ``name==version`` for every ``name>=version`` and ``name~=version`` of the
dependencies and of the extras ``test``, ``build`` and ``multigpu``. ``tox -e lowest`` runs the tests with it; a test
compares the file with pyproject.toml.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILE = ROOT / "constraints-lowest.txt"
EXTRAS = ("test", "build", "multigpu")
HEAD = "# Written by: python -m tests.support.lowest (from the lower bounds in pyproject.toml)\n"

_REQUIREMENT = re.compile(r"^([\w.-]+)(?:\[[\w,]+\])?(?:>=|~=)([\w.]+)$")


def constraints(pyproject: str) -> str:
    """The text of the constraints file.

    Raises:
        ValueError: a requirement has no lower bound, or two requirements name two.
    """
    project = tomllib.loads(pyproject)["project"]
    extras = project.get("optional-dependencies", {})
    versions: dict[str, str] = {}
    for requirement in [*project["dependencies"], *(entry for extra in EXTRAS for entry in extras.get(extra, ()))]:
        match = _REQUIREMENT.match(requirement)
        if match is None:
            raise ValueError(f"pyproject.toml: {requirement!r} needs one lower bound, as in 'name>=1.2'")
        name, version = match[1].lower(), match[2]
        if versions.setdefault(name, version) != version:
            raise ValueError(f"pyproject.toml: {name} has the lower bounds {versions[name]} and {version}")
    return HEAD + "".join(f"{name}=={version}\n" for name, version in sorted(versions.items()))


if __name__ == "__main__":
    FILE.write_text(constraints((ROOT / "pyproject.toml").read_text(encoding="utf-8")), encoding="utf-8")
