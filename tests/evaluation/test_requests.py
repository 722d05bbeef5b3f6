"""Requests of every kind: how near answers are to the plain model's, and whether what is not there is said so."""

import json
from pathlib import Path

import pytest

from shared_context.errors import DocumentError
from shared_context.evaluation import requests
from shared_context.evaluation.contexts import INJECTED, PASTED

TEXT = "The bakery opens at six. Rye bread costs two pounds. The oven was built by Agnes Thorne in 1911. " * 3
ASKED = [
    {"request": "List the prices.", "kind": "list"},
    {"request": "When does it open?", "kind": "question"},
    {"request": "Who is the mayor?", "kind": "not there", "answered": False},
]


@pytest.fixture
def asked(tmp_path):
    """A document and requests about it."""
    (tmp_path / "bakery.txt").write_text(TEXT, encoding="utf-8")
    (tmp_path / "requests.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ASKED), encoding="utf-8")
    return tmp_path / "bakery.txt", tmp_path / "requests.jsonl"


def test_each_way_is_compared_with_the_plain_model_over_pasted_text(make_small_model, asked, monkeypatch, tmp_path):
    monkeypatch.setattr(requests, "ANSWER_TOKENS", 8)
    small = make_small_model(window=2048)
    report = requests.measure(small, *asked, budget=32, resume=tmp_path / "ledger.json")
    every, by_kind, refused = report.tables()[:3]  # then what was not run
    ways = {row[0]: row[1:] for row in every.rows}
    assert set(ways) == {INJECTED, PASTED}
    assert ways[PASTED][1:4] == (0, 0, 0)
    assert ways[INJECTED][1] == pytest.approx(ways[INJECTED][0] - ways[PASTED][0])
    assert {(row[0], row[1]) for row in by_kind.rows} == {(r["kind"], w) for r in ASKED for w in (INJECTED, PASTED)}
    assert [row[0] for row in refused.rows] == [INJECTED, PASTED]
    assert [len(question.answers) for question in report.questions] == [2, 2, 2]
    assert requests.measure(small, *asked, budget=32, resume=tmp_path / "ledger.json").tables() == report.tables()


@pytest.mark.parametrize(
    "content",
    [
        "",
        "no JSON",
        '["a list"]',
        '{"kind": "list"}',
        '{"request": " ", "kind": "list"}',
        '{"request": "x", "kind": 3}',
    ],
)
def test_a_file_without_requests_is_refused_by_name(content, tmp_path):
    path = tmp_path / "requests.jsonl"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DocumentError, match=r"requests\.jsonl.*Wanted: JSON lines"):
        requests.read_requests(path)


def test_the_requests_that_ship_can_be_read():
    found = requests.read_requests(Path(__file__).parents[2] / "examples" / "data" / "handbook-requests.jsonl")
    assert {request.answered for request in found} == {True, False}
