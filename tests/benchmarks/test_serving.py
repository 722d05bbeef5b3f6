"""Answers under load, of the command itself; beside vLLM they are measured by tests/vllm."""

import pytest

from benchmarks import serving
from shared_context.evaluation.questions import read_questions


@pytest.mark.slow
def test_what_runs_without_vllm_is_measured_and_the_rest_is_told(model, few_questions):
    asked = read_questions(few_questions)
    report = serving.measure(model, asked, vllm=None, entries=(128,), clients=(1, 3), limit=3, max_tokens=4)
    (table,) = report.parts
    assert [row[:3] for row in table.rows] == [(128, at_once, serving.IN_PROCESS) for at_once in (1, 3)]
    for row in table.rows:
        median, late, whole, per_minute, failed, tokens = row[3:]
        assert 0 < median <= late and median <= whole and per_minute > 0
        assert failed == 0 and 0 < tokens <= 4
    assert list(report.not_run) == [serving.INJECTED, serving.PASTED] and not report.targets
