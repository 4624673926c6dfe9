"""The notebooks of docs/tutorials run from end to end, and what is committed of them is clean."""

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import nbformat
import pytest
from helpers import ROOT

NOTEBOOKS = sorted((ROOT / "docs" / "tutorials").glob("*.ipynb"))
every_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def tutorials() -> ModuleType:
    """scripts/run_tutorials.py."""
    spec = importlib.util.spec_from_file_location("tutorials", ROOT / "scripts/run_tutorials.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def shown(notebook: nbformat.NotebookNode) -> tuple[list[list[str]], list[float]]:
    """The kinds of every cell's outputs, and all numbers with decimals in what they print."""
    outputs = [cell.get("outputs", ()) for cell in notebook.cells]
    text = "".join(out.get("text", "") for some in outputs for out in some)
    numbers = [float(number) for number in re.findall(r"[-+]?\d+\.\d+", text)]
    return [[out.output_type for out in some] for some in outputs], numbers


@every_notebook
def test_a_committed_notebook_has_outputs_and_no_faults(path: Path, tutorials: ModuleType) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert tutorials.faults(notebook) == []
    assert any(cell.get("outputs") for cell in notebook.cells)


@every_notebook
def test_a_notebook_runs_from_end_to_end(
    path: Path, tutorials: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    notebook = nbformat.read(path, as_version=4)
    done = tutorials.clean(tutorials.execute(notebook))
    assert tutorials.faults(done) == []
    (kinds, found), (committed, told) = shown(done), shown(notebook)
    assert kinds == committed
    assert found == pytest.approx(told, rel=0.03, abs=0.03)


def test_faults_finds_errors_paths_and_metadata(tutorials: ModuleType) -> None:
    new = nbformat.v4
    cell = new.new_code_cell("1", outputs=[new.new_output("stream", text="in /home/me/runs/x")])
    bad = new.new_code_cell("2", outputs=[new.new_output("error", ename="ValueError", evalue="")])
    bad.metadata["execution"] = {"iopub.execute_input": "now"}
    notebook = new.new_notebook(cells=[cell, bad])
    assert tutorials.faults(notebook) == [
        "metadata, counts or stderr",
        "cell 0: the path /home/me/runs/x",
        "cell 1: ValueError",
    ]
    assert len(tutorials.faults(tutorials.clean(notebook))) == 2
