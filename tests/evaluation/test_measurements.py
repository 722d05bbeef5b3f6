"""Every measurement on a tiny input: that it runs, and that its controls come out on the right side."""

import json
from pathlib import Path

import pytest

from shared_context.evaluation import answers, evidence, first_token, ingest, memory
from shared_context.evaluation.__main__ import main
from shared_context.evaluation.long_text import repeat_to
from shared_context.model.pretrained import DEFAULT_MODEL

DATA = Path(__file__).parents[2] / "examples" / "data"
QUESTIONS, TEXT = DATA / "handbook-questions.json", DATA / "handbook.md"


def by_first_column(table):
    return {row[0]: row[1:] for row in table.rows}


def test_evidence_grows_with_the_budget_and_the_first_layers_cosine_finds_least(model):
    report = evidence.measure(model, QUESTIONS, limit=10)
    recall, shown = (by_first_column(table) for table in report.tables[:2])
    assert list(recall) == ["hybrid", "late_interaction", "embedding", "last_token", evidence.DEFAULT, evidence.RAG]
    assert recall[evidence.RAG][0] is None  # no chunk of 256 tokens fits 128
    for way, shares in recall.items():
        known = [share for share in shares if share is not None]
        assert known == sorted(known), way
    assert recall["hybrid"][-1] > recall["last_token"][-1]
    for way, tokens in shown.items():
        assert all(t is None or t <= budget for t, budget in zip(tokens, evidence.BUDGETS, strict=True)), way
    assert shown[evidence.DEFAULT][-1] < shown["hybrid"][-1]
    assert report.setting["questions"] == 10


@pytest.mark.slow
def test_answers_are_likelier_with_the_right_context_than_with_a_wrong_one_or_none(model):
    report = answers.measure(model, QUESTIONS, limit=3)
    mean = {name: nll for name, (nll, _) in by_first_column(report.tables[0]).items()}
    assert mean[answers.GOLD] < mean[answers.NONE]
    assert mean[answers.INJECTED] < mean[answers.NONE]
    assert mean[answers.INJECTED] < mean[answers.WRONG]
    differences = {row[:2]: row[2:] for row in report.tables[1].rows}
    difference, low, high = differences[answers.INJECTED, answers.WRONG]
    assert difference == pytest.approx(mean[answers.INJECTED] - mean[answers.WRONG])
    assert low <= difference <= high


@pytest.mark.slow
def test_first_token_is_timed_for_both_sides_over_contexts_of_like_size(model):
    report = first_token.measure(model, QUESTIONS, context_tokens=[512], runs=2)
    (table,) = report.tables
    rows = {row[1]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert list(rows) == [first_token.OURS, first_token.RAG, first_token.BARE, first_token.BARE_PASTED]
    for row in rows.values():
        assert 256 < row["tokens shown"] <= 512
        assert 0 < row["least"] <= row["median"] <= row["most"]
    faster = rows[first_token.RAG]["median"] / rows[first_token.OURS]["median"]
    assert rows[first_token.OURS]["times faster"] == pytest.approx(faster)
    assert report.targets == []  # none is set for 512 tokens


def test_ingest_says_what_is_extrapolated(model):
    report = ingest.measure(model, TEXT, tokens=4096, limit=2)
    rows = by_first_column(report.tables[0])
    assert list(rows) == ["ingest, lazily", "prefill in windows of 8,192", "prefill in windows of 1,024"]
    assert report.notes == ["Windows of 1,024: extrapolated from the first 2,048 tokens."]


@pytest.mark.slow
def test_memory_is_measured_in_processes_of_their_own():
    report = memory.measure(DEFAULT_MODEL, TEXT, tokens=4096, cache_mib=32, questions=1)
    peaks = [peak for _, peak in report.tables[0].rows]
    assert peaks == sorted(peaks)  # a peak never falls
    assert peaks[0] > 200  # MiB; the model's weights alone are more
    compared = by_first_column(report.tables[1])
    assert compared["full KV of 4,096 tokens, were it kept"] == (90,)  # 23,040 bytes a token
    assert report.targets[0].value == peaks[-1]


def test_repeated_text_has_the_length_and_no_section_twice(model, handbook):
    text = repeat_to(model, handbook, 40_000)
    assert len(model.tokenize(text)) == pytest.approx(40_000, abs=5)
    headings = [line for line in text.splitlines() if line.startswith("# Part ")]
    assert len(headings) == len(set(headings)) > 100
    assert len(model.tokenize(repeat_to(model, "no heading at all", 500))) == pytest.approx(500, abs=5)


def test_command_prints_tables_and_writes_json(tmp_path, capsys):
    file = tmp_path / "ingest.json"
    assert main(["ingest", "--tokens", "1024", "--limit", "1", "--json", str(file)]) == 0
    printed = capsys.readouterr().out
    assert "## ingest" in printed
    assert "**Targets**" in printed
    assert json.loads(file.read_text())["name"] == "ingest"


def test_command_names_what_is_wrong_with_a_file(tmp_path, capsys):
    assert main(["evidence", "--data", str(TEXT)]) == 1
    assert "handbook.md is not in SQuAD format" in capsys.readouterr().err
    assert main(["evidence", "--data", str(tmp_path / "missing.json")]) == 1
    assert "missing.json" in capsys.readouterr().err
