"""The adapter that ships with the library."""

from pathlib import Path
from statistics import fmean

import pytest

from shared_context import SharedLLMModel
from shared_context.errors import AdapterError
from shared_context.evaluation.compression import TRAINED, UNTRAINED, WRONG, injected, measure_passages
from shared_context.model.adapter import SHIPPED, shipped_adapters

QUESTIONS = Path(__file__).parents[2] / "examples" / "data" / "handbook-questions.json"


FACTOID = "factoid"


@pytest.fixture(scope="module")
def trained() -> SharedLLMModel:
    return SharedLLMModel.from_pretrained(adapter=FACTOID)


def test_it_is_loaded_by_name_and_not_by_itself(trained, model):
    assert shipped_adapters() == [FACTOID]
    assert trained.has_adapter and trained.fingerprint == model.fingerprint
    assert not SharedLLMModel.from_pretrained().has_adapter
    with pytest.raises(AdapterError, match="'factoid'"):
        SharedLLMModel.from_pretrained(adapter="auto")


def test_it_is_small_and_says_what_it_is(trained):
    assert sum(file.stat().st_size for file in (SHIPPED / FACTOID).iterdir()) < 24_000_000
    card = trained.adapter().card
    assert trained.fingerprint in card
    assert "a wrong one of the same length" in card


def test_answers_are_short_and_end(trained):
    context = "The lamp of the harbour is lit at dusk by Ann Keller. The gate opens at six and closes at nine."
    completion = trained.complete("Who lights the lamp?", context=context, max_new_tokens=24)
    assert 1 <= completion.completion_tokens <= 12
    assert completion.finish_reason == "stop"


@pytest.mark.slow
def test_an_eighth_of_the_right_passage_serves_better_than_that_of_a_wrong_one_or_than_without_training(trained):
    rows = {row[:2]: row[2] for row in measure_passages(trained, QUESTIONS, limit=12).tables()[0].rows}
    right = rows[injected(8), TRAINED]
    assert right < rows[WRONG, TRAINED] - 0.5
    assert right < rows[injected(8), UNTRAINED] - 0.5
    grains = [rows[injected(ratio), TRAINED] for ratio in (1, 2, 4, 8, 16)]
    assert grains[0] == min(grains)
    assert fmean(grains[:2]) < fmean(grains[3:])
