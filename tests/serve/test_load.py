"""Clients that ask a server at once, and what is told of it."""

import pytest

from shared_context.errors import ConfigError
from shared_context.evaluation import load

QUESTIONS = ["When does the ferry sail?", "What does a goat pay?", "Who trims the lamp?", "What burns?"]


def test_every_question_is_answered_by_each_number_of_clients(served):
    report = load.measure(served.url, QUESTIONS, clients=(1, 3), max_tokens=4)
    (table,) = report.parts
    for clients, row in zip((1, 3), table.rows, strict=True):
        at_once, median, late, whole, per_minute, failed = row
        assert (at_once, failed) == (clients, 0)
        assert 0 < median <= late and median <= whole and per_minute > 0


def test_a_soak_changes_documents_and_looks_up_what_is_cited(make_coast, serving):
    store = make_coast()
    with serving({"coast": store}) as running:
        report = load.measure(running.url, QUESTIONS, clients=(2,), max_tokens=4, minutes=0.05)
    row = dict(zip(report.parts[1].columns, report.parts[1].rows[0], strict=True))
    assert (row["failed"], row["untrue"]) == (0, 0)
    assert row["citations"] > 0 and row["changes"] >= 1 and row["memory"] > 0
    assert all(target.reached for target in report.targets[:2])
    assert store.ids() == ["coast/lighthouse.md", "coast/ferry.md"]  # nothing stays


def test_what_is_no_server_is_named(served):
    with pytest.raises(ConfigError, match="nobody answers"):
        load.measure("http://127.0.0.1:9", QUESTIONS)
    with pytest.raises(ConfigError, match="no store"):
        load.measure(f"{served.url}/nowhere", QUESTIONS)
    with pytest.raises(ConfigError):
        load.measure(served.url, [])
