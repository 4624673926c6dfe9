"""Run the notebooks of docs/tutorials and write their outputs anew; needs no network.

    python scripts/run_tutorials.py [NAME ...]

Only what a reader sees is kept: no times, no messages on stderr, no metadata of the editor.
"""

import argparse
import os
import re
from pathlib import Path
from unittest import mock

import nbformat
from nbclient import NotebookClient
from nbformat import NotebookNode

from phasegpt.cli import guarded
from phasegpt.core.files import write_atomic

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "docs" / "tutorials"
#: Bytes of a notebook, most of which are its pictures in base64.
LARGEST = 200_000
_SHOWN = ("image/png", "text/plain")  # the first that there is
_PATH = re.compile(r"(?<![\w.:/])/(?:\w[\w.-]*/)+[\w.-]+|\b[A-Z]:\\")


def execute(notebook: NotebookNode, *, folder: Path = FOLDER, timeout: int = 600) -> NotebookNode:
    """A copy of the notebook with what its cells gave; CellExecutionError for one that fails."""
    done = nbformat.from_dict(notebook)
    # This checkout's package, also where another one is installed.
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    variables = {"PYTHONPATH": os.pathsep.join(paths), "HF_HUB_OFFLINE": "1"}
    with mock.patch.dict(os.environ, variables):
        NotebookClient(
            done, timeout=timeout, kernel_name="python3", resources={"metadata": {"path": folder}}
        ).execute()
    return done


def clean(notebook: NotebookNode) -> NotebookNode:
    """The notebook with its sources and what a reader sees of its outputs."""
    kept = nbformat.v4.new_notebook()
    kept.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3"}}
    for number, cell in enumerate(notebook.cells):
        copy = nbformat.from_dict({**cell, "id": f"cell-{number}", "metadata": {}})
        if cell.cell_type == "code":
            outputs = [out for out in cell.outputs if out.get("name") != "stderr"]
            for out in outputs:
                out.pop("execution_count", None)
                if "data" in out:
                    kind = next(kind for kind in _SHOWN if kind in out.data)
                    out.metadata, out.data = {}, {kind: out.data[kind]}
                if out.output_type == "execute_result":
                    out["execution_count"] = None
            copy |= {"execution_count": None, "outputs": outputs}
        kept.cells.append(copy)
    return kept


def faults(notebook: NotebookNode) -> list[str]:
    """What must not be in a committed notebook: errors, paths, metadata of an editor, weight."""
    found = [] if clean(notebook) == notebook else ["metadata, counts or stderr"]
    for number, cell in enumerate(notebook.cells):
        for out in cell.get("outputs", ()):
            if out.output_type == "error":
                found.append(f"cell {number}: {out.ename}")
            texts = [out.get("text", ""), out.get("data", {}).get("text/plain", "")]
            found += [f"cell {number}: the path {path}" for path in _PATH.findall("\n".join(texts))]
    if len(nbformat.writes(notebook)) > LARGEST:
        found.append(f"more than {LARGEST:,} bytes")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", default=sorted(p.stem for p in FOLDER.glob("*.ipynb")))
    for name in parser.parse_args().names:
        path = FOLDER / f"{Path(name).stem}.ipynb"
        done = clean(execute(nbformat.read(path, as_version=4)))
        write_atomic(path, (nbformat.writes(done) + "\n").encode())
        print(path.relative_to(ROOT), *faults(done), sep="\n  ")


if __name__ == "__main__":
    guarded(main)
