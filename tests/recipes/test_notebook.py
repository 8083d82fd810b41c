"""The notebook: it runs from top to bottom in a kernel, its picture is stored in it, and it stays small."""

import json
from pathlib import Path

import pytest

NOTEBOOK = Path(__file__).parents[2] / "recipes" / "quickstart.ipynb"
LARGEST = 300_000  # bytes


def outputs_of(cells):
    return [output for cell in cells if cell["cell_type"] == "code" for output in cell["outputs"]]


def test_the_notebook_is_small_and_holds_no_errors_and_no_bars():
    content = NOTEBOOK.read_text(encoding="utf-8")
    outputs = outputs_of(json.loads(content)["cells"])
    assert len(content.encode()) < LARGEST
    assert not [output for output in outputs if output["output_type"] == "error" or output.get("name") == "stderr"]


@pytest.mark.slow
def test_the_notebook_runs_in_a_kernel_and_shows_its_picture(tmp_path):
    reason = "nbclient and ipykernel, of the extra dev, are not installed"
    nbclient, nbformat = (pytest.importorskip(name, reason=reason) for name in ("nbclient", "nbformat"))
    pytest.importorskip("ipykernel", reason=reason)
    notebook = nbformat.read(NOTEBOOK, 4)
    where = {"metadata": {"path": str(tmp_path)}}
    nbclient.NotebookClient(notebook, timeout=1200, kernel_name="python3", resources=where).execute()
    pictures = [output for output in outputs_of(notebook.cells) if "image/png" in output.get("data", {})]
    assert len(pictures) == 1 and (tmp_path / "runs" / "notebook" / "distilled").is_dir()
    assert "untrained 1.0" in "".join(output.get("text", "") for output in outputs_of(notebook.cells))
