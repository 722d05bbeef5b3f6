"""Whether what holds the answer is named: counted of right answers only, beside a control."""

import json
from pathlib import Path

import pytest

from shared_context import SharedLLMModel
from shared_context.errors import DocumentError
from shared_context.evaluation import citations

HANDBOOK = Path(__file__).parent.parent.parent / "examples" / "data" / "handbook-questions.json"


def test_without_a_right_answer_there_is_nothing_to_be_named(make_small_model, tmp_path):
    row = {"question": "Who trims the lamp?", "answers": ["Perpetua"], "passage": "The lamp is trimmed by Perpetua."}
    (tmp_path / "one.jsonl").write_text(json.dumps(row))
    with pytest.raises(DocumentError, match="none of 1 answers was right"):
        citations.measure(make_small_model(), tmp_path / "one.jsonl", budget=64, max_tokens=4)


@pytest.mark.slow
def test_the_gold_passage_is_named_and_not_by_chance():
    model = SharedLLMModel.from_pretrained(adapter="factoid")
    report = citations.measure(model, HANDBOOK, limit=12, budget=256)
    (table,) = report.parts
    (_, named, *_, leaves, shown), (_, random, *_) = table.rows
    assert named >= 0.9 > random + 0.3
    assert leaves < shown / 2
