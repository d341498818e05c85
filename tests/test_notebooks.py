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


# Half of the tiny preset's clips, and parameters that are drawn: what is compiled is what costs.
SMALLER = f"""
import subprocess, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
import drawn
from scav_jax import train_step
train_step.init_params, train_step.init_state = drawn.params, drawn.state
few = ["training_instruments=2"]
few += [f"{{split}}_performances=1" for split in ("validation", "test", "unseen")]
few = [word for change in few for word in ("--set", change)]
def run(words, run=subprocess.run, **more):
    return run([*words, *(few if "scav_jax.datasets.chimes" in words else ())], **more)
subprocess.run = run
"""


def executed(path):
    """The notebook as a reader's kernel leaves it, its towers without blocks."""
    notebook = nbformat.read(path, as_version=4)
    for cell in notebook.cells:
        cell.source = cell.source.replace("_blocks=1", "_blocks=0")
    notebook.cells.insert(0, nbformat.v4.new_code_cell(SMALLER))
    where = {"metadata": {"path": os.getcwd()}}
    return NotebookClient(notebook, timeout=300, resources=where).execute()


def test_notebooks_run(tmp_path, monkeypatch):
    """In one test: the first renders the videos, the others find them there."""
    monkeypatch.setenv("SCAV_DATA", str(tmp_path / "chimes-tiny"))
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    for path in RUN_HERE:
        cells = [cell for cell in executed(path).cells if cell.cell_type == "code"]
        outputs = [output for cell in cells for output in cell.outputs]
        assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2, path.stem


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
