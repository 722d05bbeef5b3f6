"""Time, memory and bytes on tiny inputs: that each is measured, for all sides, and says what it extrapolates."""

import sys
from dataclasses import replace

import pytest

from shared_context.errors import ConfigError
from shared_context.evaluation import decoding, first_token, growth, ingest, memory, storage
from shared_context.evaluation.indexing import LANGCHAIN, LLAMAINDEX
from shared_context.evaluation.long_text import repeat_to
from shared_context.evaluation.questions import read_questions
from shared_context.evaluation.report import Lines
from shared_context.model.pretrained import DEFAULT_MODEL

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


@pytest.mark.parametrize(("measurement", "options"), [(ingest, {"limit": 1, "runs": 1}), (storage, {})])
def test_a_framework_that_is_missing_is_reported_and_the_other_measured(
    model, handbook, monkeypatch, measurement, options
):
    monkeypatch.setitem(sys.modules, "shared_context.evaluation.langchain_rag", None)
    tokens = 512 if measurement is ingest else [512]
    report = measurement.measure(model, handbook, tokens=tokens, **options)
    assert list(report.not_run) == ["LangChain's InMemoryVectorStore"]
    assert "sharedllm[eval]" in report.not_run["LangChain's InMemoryVectorStore"]
    measured = [row[0] for row in report.parts[0].table().rows]
    assert [name for name in measured if name in FRAMEWORKS] == FRAMEWORKS[:2]


def test_storage_counts_bytes_by_length_beside_both_frameworks(model, handbook):
    report = storage.measure(model, handbook, tokens=[512, 1024])
    size, seconds, kv = (part.table() for part in report.parts)
    assert size.columns[1:] == seconds.columns[1:] == ("512", "1,024")
    assert all(64 < each < 1000 for each in size.rows[0][1:])  # a code alone takes 64 bytes a token
    assert [row[0] for row in size.rows[1:]] == [row[0] for row in seconds.rows[1:]] == FRAMEWORKS
    assert all(each > 0 for row in seconds.rows for each in row[1:])
    for name, _, long in size.rows[1:]:
        chunks = 1024 / (256 if "256" in name else 1024)
        # The text itself, and for each chunk an embedding of 384 numbers, which JSON writes with 16 digits or more.
        assert long > len(handbook) / model.count_tokens(handbook) + chunks * 384 * 16 / 1024
    kept = by_first_column(kv)
    assert kept["as computed"] == (23_040.0,)  # 30 layers of 3 KV heads of 64 numbers, two bytes each, twice
    assert 0.5 < kept["int8"][0] / 23_040 < 0.6


@pytest.mark.slow
def test_memory_is_measured_in_processes_of_their_own(handbook):
    report = memory.measure(DEFAULT_MODEL, handbook, tokens=4096, cache_mib=32, questions=1)
    peaks = [peak for _, peak in tables(report)["Peak resident memory"].rows]
    assert peaks == sorted(peaks)  # a peak never falls
    assert peaks[0] > 200  # MiB; the model's weights alone are more
    chunked = by_first_column(tables(report)["The same with chunked RAG, as peaks in MiB"])
    assert list(chunked) == FRAMEWORKS
    assert all(200 < loaded <= indexed <= answered for loaded, indexed, answered in chunked.values())
    compared = by_first_column(tables(report)["For comparison"])
    assert compared["full KV of 4,096 tokens, were it kept"] == (90,)  # 23,040 bytes a token
    assert report.targets[0].value == peaks[-1]


@pytest.mark.slow
def test_growth_measures_all_ways_at_each_size_and_fits_slopes(handbook):
    questions = ["Who draws up the rosters?", "When does the night shift begin?"]
    report = growth.measure(DEFAULT_MODEL, [handbook], questions, documents=[60, 20], runs=2)
    rows = tables(report)["Selections"].rows
    ways = [growth.ALL, growth.PREFILTERED, LLAMAINDEX, LANGCHAIN]
    assert [(row[0], row[2]) for row in rows] == [(size, way) for size in (20, 60) for way in ways]
    assert all(0 < least <= median <= most for *_, median, least, most in rows)
    _, memory = (part for part in report.parts if isinstance(part, Lines))
    assert [line.name for line in memory.series] == [growth.STORE, LLAMAINDEX, LANGCHAIN]
    assert all(line.points[0].y <= line.points[1].y for line in memory.series)  # a peak never falls
    slopes = tables(report)["Slopes on log scales: 1 is linear, less is sub-linear"]
    assert slopes.columns == ("what", "fitted", "20 to 60")
    assert len(slopes.rows) == len(ways) + 3
    for what, fitted, step in slopes.rows:
        assert fitted == pytest.approx(step), what
    (target,) = report.targets
    assert target.sign == "<" and target.value == by_first_column(slopes)[f"seconds of a selection, {ways[1]}"][0]
    assert report.not_run == {}
    assert "repeated under different headings" in report.notes[0]


@pytest.mark.slow
def test_growth_without_a_framework_measures_the_rest_and_says_what_is_missing(handbook, monkeypatch):
    monkeypatch.setitem(sys.modules, "shared_context.evaluation.baselines", None)
    report = growth.measure(DEFAULT_MODEL, [handbook], ["Who draws up the rosters?"], documents=[20], runs=1)
    assert [row[2] for row in tables(report)["Selections"].rows] == [growth.ALL, growth.PREFILTERED, LANGCHAIN]
    assert "sharedllm[eval]" in report.not_run[LLAMAINDEX]
    assert report.targets == []  # one size has no slope


def test_slope_is_the_exponent_of_a_power_law():
    assert growth.slope([100, 1000, 10_000], [1.0, 10.0, 100.0]) == pytest.approx(1.0)
    assert growth.slope([100, 10_000], [2.0, 20.0]) == pytest.approx(0.5)
    assert growth.slope([100], [2.0]) is None
    assert growth.slope([100, 1000], [0.0, 2.0]) is None  # no power law begins at nothing


def test_repeated_text_has_the_length_and_no_section_twice(model, handbook):
    text = repeat_to(model, handbook, 40_000)
    assert len(model.tokenize(text)) == pytest.approx(40_000, abs=5)
    headings = [line for line in text.splitlines() if line.startswith("# Part ")]
    assert len(headings) == len(set(headings)) > 100
    assert len(model.tokenize(repeat_to(model, "no heading at all", 500))) == pytest.approx(500, abs=5)
