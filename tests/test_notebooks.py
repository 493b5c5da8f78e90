"""The notebooks of the guide: they run from top to bottom, and what they show is of their cells."""

import re

import pytest
from notebooks import (
    NOTEBOOKS,
    OUTPUTS_OF,
    executed,
    hash_of,
    read,
)
from upstreams_tracing import require_upstreams_tracing

SHORTER = [
    (r"\bSTEPS = (300|1200)\b", "STEPS = 60"),
    (r"\bsteps=100\b", "steps=20"),
    ("20_000", "4_000"),
    (r"\bn_ctxs=256\b", "n_ctxs=32"),
    (r"\(\s*config\.run,", "(config.run, batch_size=256, n_ctxs=32, eval_documents=4,"),
]
"""`make notebooks` runs them at their full length."""


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def kinds(cell):
    """In which forms a cell shows something. Warnings depend on what else is installed."""
    outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return {
        kind
        for output in outputs
        for kind in output.get("data", {output.get("name", output.output_type): None})
    }


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


@pytest.mark.guide
@pytest.mark.slow
def test_a_notebook_runs(path, tmp_path):
    """A cell that fails is an error here."""
    if "dictionary_learning.buffer" in path.read_text(encoding="utf-8"):
        require_upstreams_tracing()
    committed, shorter = read(path), read(path)
    for cell in code_cells(shorter):
        for pattern, small in SHORTER:
            cell.source = re.sub(pattern, small, cell.source)
    assert shorter != committed
    done = executed(shorter, tmp_path)
    assert [kinds(cell) for cell in code_cells(done)] == [
        kinds(cell) for cell in code_cells(committed)
    ]


def test_its_outputs_are_those_of_its_cells(path):
    notebook = read(path)
    assert notebook.metadata.get(OUTPUTS_OF) == hash_of(notebook), "run `make notebooks`"
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
