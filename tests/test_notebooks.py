"""The notebooks run from top to bottom, on the tiny rendered data set."""

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).parents[1] / "scripts" / "notebooks"
# Of a trained model: stored with what they show of the demo's. `test_readme` runs them.
SHOWN = ("score_sounds", "search_videos")
RUN_HERE = sorted(path for path in NOTEBOOKS.glob("*.ipynb") if path.stem not in SHOWN)
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """A folder that the first notebook renders videos into; the others find them there."""
    return tmp_path_factory.mktemp("notebooks") / "chimes-tiny"


@pytest.mark.parametrize("path", RUN_HERE, ids=lambda path: path.stem)
def test_notebook_runs(path, data, monkeypatch):
    monkeypatch.setenv("SCAV_DATA", str(data))
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": os.getcwd()}}).execute()
    figures = [
        output
        for cell in notebook.cells
        if cell.cell_type == "code"
        for output in cell.outputs
        if "image/png" in output.get("data", {})
    ]
    assert len(figures) >= 2


@pytest.mark.parametrize("path", RUN_HERE, ids=lambda path: path.stem)
def test_notebook_is_stored_without_outputs(path):
    notebook = nbformat.read(path, as_version=4)
    assert all(not c.outputs for c in notebook.cells if c.cell_type == "code")


@pytest.mark.parametrize("name", SHOWN)
def test_notebook_is_stored_with_outputs(name):
    """Of one run from top to bottom, without errors and without paths of a machine."""
    notebook = nbformat.read(NOTEBOOKS / f"{name}.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    outputs = [output for cell in cells for output in cell.outputs]
    assert all(output.output_type != "error" for output in outputs)
    assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2
    text = "".join(output.get("text", "") for output in outputs)
    assert "distance" in text or "constant error" in text
    assert "/home/" not in text and "Traceback" not in text
