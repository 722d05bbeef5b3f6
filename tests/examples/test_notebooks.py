"""The notebooks run from top to bottom, and show what their words say."""

from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from shared_context.model.pretrained import resolve_model
from shared_context.store.embedder import resolve_default_embedder

EXAMPLES = Path(__file__).parent.parent.parent / "examples"


@pytest.fixture(scope="module")
def executed(request):
    """``executed(name)`` is what each code cell of a notebook shows, as text."""
    resolve_model("smollm2-135m-instruct")
    resolve_default_embedder()

    def execute(name: str) -> list[str]:
        notebook = nbformat.read(EXAMPLES / f"{name}.ipynb", as_version=4)
        NotebookClient(
            notebook, timeout=1200, kernel_name="python3", resources={"metadata": {"path": EXAMPLES}}
        ).execute()
        cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
        # One text may come in several pieces.
        return ["".join(_text(output) for output in cell.outputs).strip() for cell in cells]

    return execute


def _text(output) -> str:
    data = output.get("data", {})
    return (
        data.get("text/html") or data.get("text/plain") or (output.get("text", "") if output.name == "stdout" else "")
    )


@pytest.mark.slow
def test_the_tour_answers_from_the_document_as_it_is(executed):
    _, selection, answer, without, changed, llamaindex, langchain, remembered = executed("tour")
    assert "drying room" in selection and selection.startswith("<")
    assert "41 °C" in answer and "41 °C" not in without
    assert all("52 °C" in text for text in (changed, llamaindex, langchain))
    assert "8264" in remembered


@pytest.mark.slow
def test_grains_keep_more_than_strides_and_lose_slowly(executed):
    _, table, strides, budgets = executed("grains")
    rows = [line.split() for line in table.splitlines()[1:6]]
    entries, right, wrong = ([float(row[column]) for row in rows] for column in (1, 2, 3))
    assert entries == sorted(entries, reverse=True)
    assert all(ours < theirs for ours, theirs in zip(right, wrong, strict=True))
    by_stride = [float(line.split()[2]) for line in strides.splitlines()]
    assert all(ours < theirs for ours, theirs in zip(right[2:], by_stride, strict=True))
    whole, quarter = (line.split() for line in budgets.splitlines())
    assert int(quarter[3]) > int(whole[3]) and int(quarter[1]) <= 32
