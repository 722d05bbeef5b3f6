"""The adapter that ships with the library."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from shared_context import SharedLLMModel
from shared_context.errors import AdapterError
from shared_context.evaluation.compression import STRIDE, TRAINED, UNTRAINED, WRONG, injected, measure_passages
from shared_context.model.adapter import SHIPPED, shipped_adapters
from shared_context.store.encoding import kept_rows

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
def test_an_eighth_of_the_right_passage_serves_better_than_that_of_a_wrong_one_and_than_every_eighth_row(trained):
    rows = {row[:2]: row[2] for row in measure_passages(trained, QUESTIONS, limit=12).tables()[0].rows}
    for weights in TRAINED, UNTRAINED:
        right = rows[injected(8), weights]
        assert right < rows[WRONG, weights] - 0.5
        assert right < rows[STRIDE, weights] - 0.5
    assert rows[injected(8), TRAINED] < rows[injected(8), UNTRAINED] - 0.5


def test_the_probe_finds_most_of_what_a_repetition_finds_important(model, trained, handbook):
    assert model.has_probe and not trained.has_probe
    ids = torch.from_numpy(model.tokenize(handbook).ids[1000:1200].astype("int64"))
    encodings = model.compressor.encode([ids])
    kept = []
    for method in "repetition", "probe":
        (importance,) = model.importance_scorer(method).score([ids], encodings, 0)
        kept.append(kept_rows(replace(encodings[0], importance=importance), [(0, 200, 8)]))
    assert kept[0].sum() == kept[1].sum()
    # by chance it would be an eighth
    assert (kept[0] & kept[1]).sum() > 0.5 * kept[0].sum()
