"""What is best shown under a budget: ways on the same questions, with evidence and likelihood."""

import json

from shared_context import StoreConfig
from shared_context.evaluation import selections

STORY = " ".join(f"Key {n} of the ferryman opened door {n * 7 % 19} of the tower." for n in range(24))
FOG = "The fog came in at noon. " * 4


def test_ways_are_compared_on_documents_with_marked_evidence(make_small_model, tmp_path):
    asked = {"question": "What did the second key open?", "answers": ["the tower"], "evidence": [[0, len(STORY)]]}
    rows = [
        {"id": "keys", "text": STORY, "questions": [asked, {"question": "Who?", "evidence": [[0, 30]]}]},
        {"id": "other", "text": FOG, "questions": [{"question": "When?", "answers": ["noon"], "evidence": [[0, 24]]}]},
    ]
    data = tmp_path / "marked.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    model = make_small_model(window=8192)
    report = selections.measure(model, data, budgets=(64,))
    assert report.setting["questions"] == 2  # one has no answer
    shown = {row[1]: row[2:] for row in report.tables()[0].rows}
    assert set(shown) == {*selections.ways(StoreConfig().tree), selections.CONTROL}
    assert all(0 <= evidence <= 1 and nll > 0 and 0 < entries <= 64 for evidence, nll, entries in shown.values())
    # Coarser leaves of the same budget show more, and another document's show nothing of what is asked.
    assert shown["leaves at ratio 8"][0] > shown["whole leaves"][0] > shown[selections.CONTROL][0] == 0
