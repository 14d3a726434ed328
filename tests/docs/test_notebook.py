"""The notebook docs/results.ipynb runs from top to bottom, and shows what it says."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "docs" / "results.ipynb"


@pytest.mark.timeout(600)
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    from ipykernel.kernelspec import install

    install(prefix=str(tmp_path))  # a kernel of this Python, whatever else is installed
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "share" / "jupyter"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]))
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path / "ipython"))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code), "outputs are not committed"
    nbclient.NotebookClient(
        notebook, timeout=500, kernel_name="python3", resources={"metadata": {"path": str(ROOT / "docs")}}
    ).execute()
    shown = [[*output.get("data", {})] for cell in code for output in cell.outputs]
    assert sum("image/png" in kinds for kinds in shown) == 2, "the figure, and the query with its hits"
    tables = [output["data"]["text/plain"] for cell in code for output in cell.outputs if "data" in output]
    assert any("zero_shot" in text for text in tables)
    (hits,) = [text for text in tables if "score" in text]
    assert hits.count("flat/") == 5


def test_the_notebook_uses_only_public_functions() -> None:
    text = NOTEBOOK.read_text(encoding="utf-8")
    assert "import _" not in text and "._" not in text
