"""The LaTeX leaderboard: the same figures, every character escaped, and it compiles where an engine is installed."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.reporting.data import ReportData
from benchmarks.reporting.latex import escape, leaderboard_latex
from benchmarks.store.files import ResultStore
from benchmarks.store.frame import load_results
from tests.reporting.conftest import add, retrieval_table

HOSTILE = "\\input{/etc/passwd}$a_1$ %&#{}~^<b>|\"'`--[x]\n\\end{document}\x00é中\u202e\U0001f600,,??!!`"

#: What an escaped text may consist of: characters without meaning, and these commands.
COMMANDS = (
    "textbackslash|textasciitilde|textasciicircum|textless|textgreater|textbar|textquotedbl|textquotesingle|"
    "textasciigrave|textdagger|textpm|textendash|texttimes|textdiv|ldots"
)
HARMLESS = re.compile(
    r"(?:[^\\{}$&#%_^~<>|\"'`\[\]\x00-\x1f\x7f]|\\[{}$&#%_]|\\(?:" + COMMANDS + r")\{\}|\{\[\}|\{\]\}|\{\})*"
)


@given(st.text(max_size=60) | st.text(alphabet="\\{}$&#%_^~<>|\"'`[]-,!? é\n", max_size=30))
@settings(max_examples=300, deadline=None)
def test_no_text_is_a_command(text: str) -> None:
    escaped = escape(text)
    assert HARMLESS.fullmatch(escaped), escaped
    assert "--" not in escaped
    assert ",," not in escaped
    assert all(character.isascii() or "\u00c0" <= character <= "\u017e" for character in escaped)
    if re.fullmatch(r"[A-Za-z0-9 .:]*", text):
        assert escaped == " ".join(text.split())


def test_figures_are_those_of_the_page(filled: ResultStore) -> None:
    text = leaderboard_latex(
        ReportData(load_results(filled.root), store=filled, resamples=100, command="python -m x_y")
    )
    table = text[text.index(r"\caption{UCDR, unseen: map@all in percent, by query domain}") :]
    row = next(line for line in table.splitlines() if line.startswith("good & "))
    assert row.endswith(r" \\")
    cells = row.removesuffix(r" \\").split(" & ")
    assert len(cells) == 5
    assert re.fullmatch(r"\\(best|tied)\{\d+\.\d\} \{\\small\$\\pm\$\d+\.\d\}", cells[3])
    assert "random (floor)" in text
    assert "good (oracle, unranked)" in text
    assert r"fair\textdagger{}" in text
    assert r"\item fair, DAZSL: as if \textless{}i\textgreater{}seen\textless{}/i\textgreater{}" in text
    assert "x\\_y" in text


@pytest.mark.parametrize("engine", ["pdflatex", "tectonic"])
def test_it_compiles_with_hostile_names(engine: str, store: ResultStore, tmp_path: Path) -> None:
    if shutil.which(engine) is None:
        pytest.skip(f"{engine} is not installed")
    add(store, HOSTILE, retrieval_table("line", 0.5, 0), split=HOSTILE, extension=HOSTILE)
    add(store, "other", None, split=HOSTILE)
    data = ReportData(load_results(store.root), command=HOSTILE)
    (tmp_path / "a.tex").write_text(leaderboard_latex(data), encoding="utf-8")
    options = ["-draftmode", "-halt-on-error", "-interaction=nonstopmode"] if engine == "pdflatex" else ["--untrusted"]
    done = subprocess.run([engine, *options, "a.tex"], cwd=tmp_path, capture_output=True, timeout=250)
    assert done.returncode == 0, done.stdout[-1500:].decode("utf-8", "replace")
