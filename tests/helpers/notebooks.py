"""The notebooks of the guide: how they are run, in tests and by `make notebooks`, which keeps the outputs.

Outputs are committed, so that a Git host shows them. A notebook's metadata holds a hash of the code that
its outputs are of.
"""

import hashlib
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbformat.v4 import new_output

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs/notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
OUTPUTS_OF = "outputs_of"
"""The name of the hash in the metadata."""
PROGRESS = re.compile(r"\d+%\|.*\||\d+it \[|\d+\.?\d*[kM]?tok \[")
"""In a line of tqdm's."""


def read(path: Path) -> Any:
    """A notebook. Raises nbformat's ValidationError if it is not valid."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    return notebook


def hash_of(notebook: Any) -> str:
    """A hash of the code cells' sources."""
    sources = "\0".join(cell.source for cell in notebook.cells if cell.cell_type == "code")
    return hashlib.sha256(sources.encode()).hexdigest()[:16]


def executed(notebook: Any, folder: Path) -> Any:
    """Run all cells in order in a new kernel, in a folder. The package is the one in this repository.

    Raises: nbclient's CellExecutionError with the traceback of a cell that fails.
    """
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    client = NotebookClient(
        notebook,
        timeout=None,
        kernel_name="python3",
        record_timing=False,
        coalesce_streams=True,
        resources={"metadata": {"path": str(folder)}},
    )
    environment = {
        "PYTHONPATH": os.pathsep.join(paths),
        "PYTHONWARNINGS": "ignore:IProgress not found",  # tqdm's, where there are no ipywidgets
    }
    return client.execute(env=os.environ | environment)


def text_of(output: Any) -> str:
    """What is shown of an output as text; "" for a plot."""
    return output.get("text") or output.get("data", {}).get("text/plain", "")


def without_progress(outputs: list[Any]) -> list[Any]:
    """Outputs without the progress bars that were written to stderr."""
    kept = []
    for output in outputs:
        if output.get("name") == "stderr":
            lines = re.split(r"[\r\n]+", output.text)
            lines = [line for line in lines if line.strip() and not PROGRESS.search(line)]
            if not lines:
                continue
            output = new_output("stream", name="stderr", text="\n".join(lines) + "\n")
        kept.append(output)
    return kept


def main(paths: list[Path]) -> None:
    """Run notebooks and write them with their outputs."""
    for path in paths:
        with tempfile.TemporaryDirectory() as folder:
            notebook = executed(read(path), Path(folder))
        for cell in notebook.cells:
            if cell.cell_type == "code":
                cell.outputs = without_progress(cell.outputs)
        notebook.metadata = {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
            OUTPUTS_OF: hash_of(notebook),
        }
        nbformat.write(notebook, path)
        print(path)


if __name__ == "__main__":
    main([Path(path) for path in sys.argv[1:]] or NOTEBOOKS)
