"""Recall of what is shown, for the library's policies and the baselines."""

import sys

import pytest

from shared_context.evaluation import retrieval
from shared_context.evaluation.page import page
from shared_context.evaluation.report import Lines

TOKENS = (128, 256, 512)


@pytest.fixture(scope="module", autouse=True)
def _few_settings():
    """Two sizes of chunks instead of all."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(retrieval, "CHUNKS", ((64, 0), (256, 20)))
        yield


@pytest.fixture(scope="module")
def report(model, few_questions):
    return retrieval.measure(model, few_questions, tokens=TOKENS)


def recall(report):
    return {line.name: line.points for part in report.parts if isinstance(part, Lines) for line in part.series}


def rows(report, title):
    return {row[0]: row[1:] for table in report.tables() if table.title.startswith(title) for row in table.rows}


def test_every_policy_and_baseline_has_its_line(report):
    shown = recall(report)
    policies = ["hybrid", "late_interaction", "embedding", "lexical", "last_token", retrieval.DEFAULT, retrieval.LARGE]
    assert list(shown) == [*policies, *(f"{name}, at its best" for name in retrieval.BASELINES)]
    for name, points in shown.items():
        assert [point.x for point in points] == list(TOKENS), name
        assert all(0 <= p.low <= p.y <= p.high <= 1 for p in points), name
    assert shown["hybrid"][-1].y > shown["last_token"][0].y
    assert report.not_run == {}


def test_nobody_is_shown_more_tokens_than_the_column_says(report):
    for way, counts in rows(report, "Tokens shown, mean").items():
        assert all(0 < shown <= allowed for shown, allowed in zip(counts, TOKENS, strict=True)), way


def test_a_baseline_at_its_best_is_its_best_setting(report):
    for name in retrieval.BASELINES:
        settings = rows(report, f"{name}: every setting")
        assert len(settings) == len(retrieval.CHUNKS) * len(retrieval.BASELINES[name])
        assert settings[next(s for s in settings if s.startswith("chunks of 256, overlap 20"))][0] is None
        for column, point in enumerate(recall(report)[f"{name}, at its best"]):
            assert point.y == max(values[column] for values in settings.values() if values[column] is not None)


def test_a_run_that_is_resumed_gives_the_same_report(report, model, few_questions, tmp_path):
    state = tmp_path / "state"
    part = retrieval.measure(model, few_questions, tokens=TOKENS, limit=2, seed=1, resume=state)
    assert part.setting["questions"] == 2
    kept = state.read_text()
    whole = retrieval.measure(model, few_questions, tokens=TOKENS, resume=state)
    assert whole.as_json() == report.as_json()
    assert state.read_text().startswith(kept) and len(state.read_text().splitlines()) == 1 + 6


def test_ways_are_not_asked_for_less_than_they_can_show(model, few_questions):
    report = retrieval.measure(model, few_questions, tokens=[32, 64], limit=1)
    shown = {name: len(points) for name, points in recall(report).items()}
    assert shown[retrieval.LARGE] == shown[f"{retrieval.RAG}, at its best"] == 1 and shown["hybrid"] == 2
    assert "stroke-dasharray" in page("retrieval", [report])  # lines are drawn, though some have one point


def test_a_baseline_that_is_not_installed_is_reported(model, few_questions, monkeypatch):
    monkeypatch.setitem(sys.modules, "llama_index.retrievers.bm25", None)
    report = retrieval.measure(model, few_questions, tokens=TOKENS, limit=2)
    assert set(report.not_run) == {retrieval.BM25, retrieval.FUSION}
    assert "sharedllm[eval]" in report.not_run[retrieval.BM25]
    assert f"{retrieval.RAG}, at its best" in recall(report)
    assert "Not run" in report.markdown()
