"""Cost of a long text on tiny inputs: that every way is measured, and that what is extrapolated is said to be."""

import pytest

from benchmarks import cost, cost_memory, ways
from shared_context import SharedLLMModel
from shared_context.evaluation.report import Lines
from shared_context.model.pretrained import DEFAULT_MODEL


@pytest.fixture(scope="module")
def narrow(model):
    """The default model with a window that a short text overflows."""
    return SharedLLMModel(model.hf_model, model.tokenizer, name=model.name, context_window=512)


@pytest.mark.slow
def test_every_way_is_timed_and_what_was_not_read_is_named(narrow, handbook_questions):
    report = cost.measure(
        narrow, handbook_questions, lengths=[1100, 2048], runs=2, read_at_most=1, budget=128, steps=[64, 128]
    )
    lines, table, steps = (part.table() for part in report.parts)
    rows = {(row[0], row[1]): dict(zip(table.columns, row, strict=True)) for row in table.rows}
    every = [ways.STORE, ways.SECOND, ways.AGAIN, ways.SMALL_STORE, ways.STREAMING, ways.LAYOUT, ways.FULL]
    assert list(rows) == [(n, way) for n in (1100, 2048) for way in every]
    for (n, way), row in rows.items():
        assert 0 < row["least"] <= row["median"] <= row["most"] and row["runs"] == 2
        assert row["times the store"] == pytest.approx(row["median"] / rows[n, ways.STORE]["median"])
        # two windows of 512 tokens are read at least
        read_in_part = way in (ways.STREAMING, ways.FULL)
        assert row["how"] == ("extrapolated from 1,024 tokens" if read_in_part else "measured")
    assert [row[0] for row in steps.rows] == [64, 128] and report.setting["its step"] in (64, 128)
    assert isinstance(report.parts[0], Lines) and len(lines.rows) == len(every)
    assert report.targets == []  # they are set for 131,072 tokens


def test_what_the_rest_of_a_text_would_take_follows_from_how_a_way_grows():
    """Seconds that grow as a way's do are continued exactly."""
    linear = [(n, 3.0 + 0.01 * max(0, n - 512) + 1e-5 * min(n, 512) ** 2) for n in range(128, 1025, 128)]
    assert ways.rest_of_stream(linear, 4096, window=512) == pytest.approx(0.01 * (4096 - 1024))
    square = [(n, 3.0 + 0.01 * n + 1e-5 * n**2) for n in range(128, 1025, 128)]
    expected = 0.01 * (4096 - 1024) + 1e-5 * (4096**2 - 1024**2)
    assert ways.rest_of_full_attention(square, 4096) == pytest.approx(expected)


@pytest.mark.slow
def test_memory_is_measured_for_every_way(handbook_questions):
    report = cost_memory.measure(DEFAULT_MODEL, handbook_questions, lengths=[2048], read_at_most=1024, step=512)
    _, table, loaded = (part.table() for part in report.parts)
    peaks = {row[1]: row[2:] for row in table.rows}
    assert list(peaks) == list(cost_memory.MEMORY_OF)
    base, with_store = (row[1] for row in loaded.rows)
    assert 200 < base < with_store <= peaks[ways.STORE][0]
    assert all(mib > base for mib, _ in peaks.values())
    assert {how for _, how in peaks.values()} == {"measured"}  # two windows are always read
    assert report.targets == []
