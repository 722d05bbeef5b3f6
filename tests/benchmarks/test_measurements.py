"""Time, memory and bytes on tiny inputs: that each is measured, for all sides, and says what it extrapolates."""

import sys

import pytest

from benchmarks import growth, memory, opening, published, storage
from shared_context.errors import SnapshotConflictError
from shared_context.evaluation.indexing import LANGCHAIN, LLAMAINDEX
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
    numbers = 30 * 3 * 64 * 2  # layers, KV heads, numbers of a key and a value
    assert kept["as computed"] == (numbers * model.dtype.itemsize,)
    assert 1.0 < kept["int8"][0] / numbers < 1.2


def test_a_framework_that_is_missing_is_reported_and_the_other_measured(model, handbook, monkeypatch):
    monkeypatch.setitem(sys.modules, "shared_context.evaluation.langchain_rag", None)
    report = storage.measure(model, handbook, tokens=[512])
    assert list(report.not_run) == ["LangChain's InMemoryVectorStore"]
    assert "sharedllm[eval]" in report.not_run["LangChain's InMemoryVectorStore"]
    measured = [row[0] for row in report.parts[0].table().rows]
    assert [name for name in measured if name in FRAMEWORKS] == FRAMEWORKS[:2]


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
@pytest.mark.parametrize("shards", [None, 3])
def test_opening_is_measured_for_each_size_the_first_time_and_again(handbook, shards):
    questions = ["Who draws up the rosters?", "How warm is the drying room?"]
    (table,) = opening.measure(DEFAULT_MODEL, handbook, questions, documents=[30, 10], shards=shards).tables()
    assert [row[0] for row in table.rows] == [10, 10, 30, 30]
    assert all(60 * row[0] < row[1] < 200 * row[0] for row in table.rows)  # tokens
    assert all(figure > 0 for row in table.rows for figure in row[3:10])


@pytest.mark.slow
def test_a_published_store_is_measured_beside_the_same_on_disk(handbook, tmp_path):
    questions = ["Who draws up the rosters?", "How warm is the drying room?"]
    address = f"file://{tmp_path}/published"
    (table,) = published.measure(DEFAULT_MODEL, handbook[:8000], questions, address, runs=1).tables()
    assert [row[0] for row in table.rows] == [
        published.DISK, published.COMPUTED, published.ADDRESS, published.AGAIN
    ]  # fmt: skip
    assert all(seconds > 0 for row in table.rows for seconds in row[1:])
    with pytest.raises(SnapshotConflictError):  # somebody else's store is not measured instead
        published.measure(DEFAULT_MODEL, handbook[:2000], questions, address, runs=1)


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
