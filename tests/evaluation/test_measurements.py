"""Time, memory and bytes on tiny inputs: that each is measured, for all sides, and says what it extrapolates."""

import sys
from dataclasses import replace

import pytest

from shared_context.errors import ConfigError
from shared_context.evaluation import decoding, first_token, ingest
from shared_context.evaluation.long_text import repeat_to
from shared_context.evaluation.questions import read_questions
from shared_context.evaluation.report import Lines

FRAMEWORKS = [
    "LlamaIndex's VectorStoreIndex, default chunks (1,024 tokens)",
    "LlamaIndex's VectorStoreIndex, chunks of 256 tokens",
    "LangChain's InMemoryVectorStore, default chunks (4,000 characters)",
    "LangChain's InMemoryVectorStore, chunks of 256 tokens",
]


def tables(report):
    return {table.title: table for table in report.tables()}


def by_first_column(table):
    return {row[0]: row[1:] for row in table.rows}


@pytest.mark.slow
def test_first_token_is_timed_for_both_sides_over_contexts_of_like_size(model, handbook_questions):
    report = first_token.measure(model, handbook_questions, context_tokens=[512], runs=2)
    table = tables(report)["Seconds to the first token"]
    rows = {row[1]: dict(zip(table.columns, row, strict=True)) for row in table.rows}
    assert list(rows) == [
        first_token.OURS,
        first_token.RAG,
        first_token.BARE,
        first_token.BARE_PASTED,
        first_token.LANGCHAIN,
    ]
    assert report.not_run == {}
    for row in rows.values():
        assert 256 < row["tokens shown"] <= 512
        assert 0 < row["least"] <= row["median"] <= row["most"]
    faster = rows[first_token.RAG]["median"] / rows[first_token.OURS]["median"]
    assert rows[first_token.OURS]["times faster"] == pytest.approx(faster)
    (plot,) = [part for part in report.parts if isinstance(part, Lines)]
    assert {line.name: line.points[0].y for line in plot.series} == {way: row["median"] for way, row in rows.items()}
    assert report.targets == []  # none is set for 512 tokens


@pytest.mark.slow
def test_decoding_is_timed_for_all_sides(model, few_questions):
    report = decoding.measure(model, read_questions(few_questions), context_tokens=[256], runs=1)
    rows = {row[1]: row for row in tables(report)["Tokens per second after the first"].rows}
    chunked = [f"{framework}, pasted" for framework in FRAMEWORKS if "256" in framework]
    assert list(rows) == [decoding.INJECTED, decoding.PASTED, *chunked, *decoding.STEPS]
    alike = tables(report)["How far answers are those of the weights themselves, as a share of their characters"].rows
    assert [row[1] for row in alike] == list(decoding.STEPS) and all(0 <= row[2] <= 1 for row in alike)
    # what is pasted has blank lines between its pieces, too
    assert all(128 < row[2] < 272 and 0 < row[4] <= row[3] <= row[5] for row in rows.values())


@pytest.mark.parametrize("measurement", [decoding, first_token])
def test_contexts_that_the_documents_cannot_fill_are_not_run(measurement, model, few_questions):
    report = measurement.measure(model, read_questions(few_questions), context_tokens=[100_000], runs=1)
    assert "100,000 context tokens" in report.not_run
    assert all(table.rows == [] for title, table in tables(report).items() if title != "Not run")
    assert not report.targets


@pytest.mark.parametrize("measurement", [decoding, first_token])
def test_speed_needs_a_question_beside_that_which_is_not_counted(measurement, model, few_questions):
    asked = read_questions(few_questions)
    with pytest.raises(ConfigError, match="questions=1: .*two or more"):
        measurement.measure(model, replace(asked, questions=asked.questions[:1]))
    with pytest.raises(ConfigError, match="runs=0"):
        measurement.measure(model, asked, runs=0)


def test_ingest_is_timed_beside_both_frameworks_and_says_what_is_extrapolated(model, handbook):
    report = ingest.measure(model, handbook, tokens=1536, limit=1, runs=2)
    rows = by_first_column(tables(report)["Seconds"])
    assert list(rows) == [
        "ingest, lazily",
        *FRAMEWORKS,
        "prefill in windows of 8,192",
        "prefill in windows of 1,024",
    ]
    for middle, least, most, speed, ratio in rows.values():
        assert 0 < least <= middle <= most
        assert speed == pytest.approx(report.setting["document"] / middle)
        assert ratio == pytest.approx(middle / rows["ingest, lazily"][0])
    assert report.not_run == {}
    assert report.notes[1:] == ["Windows of 1,024: extrapolated from the first 1,024 tokens."]


def test_a_framework_that_is_missing_is_reported_and_the_other_measured(model, handbook, monkeypatch):
    monkeypatch.setitem(sys.modules, "shared_context.evaluation.langchain_rag", None)
    report = ingest.measure(model, handbook, tokens=512, limit=1, runs=1)
    assert list(report.not_run) == ["LangChain's InMemoryVectorStore"]
    assert "sharedllm[eval]" in report.not_run["LangChain's InMemoryVectorStore"]
    measured = [row[0] for row in report.parts[0].table().rows]
    assert [name for name in measured if name in FRAMEWORKS] == FRAMEWORKS[:2]


def test_repeated_text_has_the_length_and_no_section_twice(model, handbook):
    text = repeat_to(model, handbook, 40_000)
    assert len(model.tokenize(text)) == pytest.approx(40_000, abs=5)
    headings = [line for line in text.splitlines() if line.startswith("# Part ")]
    assert len(headings) == len(set(headings)) > 100
    assert len(model.tokenize(repeat_to(model, "no heading at all", 500))) == pytest.approx(500, abs=5)
