"""A few questions, small enough for every measurement."""

import json
from pathlib import Path

import pytest

from shared_context.evaluation.questions import read_questions

HANDBOOK_QUESTIONS = Path(__file__).parents[2] / "examples" / "data" / "handbook-questions.json"


@pytest.fixture(scope="session")
def few_questions(tmp_path_factory):
    """A SQuAD file of the handbook's first six sections that have questions, each an article, about 2,500 tokens."""
    (article,) = json.loads(HANDBOOK_QUESTIONS.read_text(encoding="utf-8"))["data"]
    articles = [{"title": str(n), "paragraphs": [p]} for n, p in enumerate(article["paragraphs"][:6])]
    path = tmp_path_factory.mktemp("data") / "few.json"
    path.write_text(json.dumps({"data": articles}), encoding="utf-8")
    return path


@pytest.fixture(scope="session")
def handbook_questions():
    """All of the handbook's questions."""
    return read_questions(HANDBOOK_QUESTIONS)


@pytest.fixture(scope="session")
def small(make_small_model):
    """A small random model with a window of 256 tokens."""
    return make_small_model(window=256)
