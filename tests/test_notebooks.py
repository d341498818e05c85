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


def test_notebooks_run(tmp_path, monkeypatch):
    """In one kernel, which forgets all names in between; the first renders the videos."""
    monkeypatch.setenv("SCAV_DATA", str(tmp_path / "chimes-tiny"))
    monkeypatch.setenv("PYDEVD_DISABLE_FILE_VALIDATION", "1")
    whole, own = nbformat.v4.new_notebook(), {}
    for path in RUN_HERE:
        cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
        for cell in cells:
            cell.source = cell.source.replace("_blocks=1", "_blocks=0")
        own[path.stem] = cells
        whole.cells += [nbformat.v4.new_code_cell(f"%reset -f\n{SMALLER}"), *cells]
    where = {"metadata": {"path": os.getcwd()}}
    NotebookClient(whole, timeout=300, resources=where).execute()
    for name, cells in own.items():
        outputs = [output for cell in cells for output in cell.outputs]
        assert sum("image/png" in output.get("data", {}) for output in outputs) >= 2, name


@pytest.mark.parametrize("path", sorted(NOTEBOOKS.glob("*.ipynb")), ids=lambda path: path.stem)
def test_paths_are_those_of_the_repository_where_jupyter_starts_in_the_notebooks_folder(
    path, monkeypatch
):
    monkeypatch.chdir(NOTEBOOKS)
    first = next(c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code")
    found = first.source.index("if Path.cwd().name")
    exec(first.source[found : first.source.index(" = Path(os.environ")].rpartition("\n")[0])
    assert Path.cwd() == NOTEBOOKS.parents[1]


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
