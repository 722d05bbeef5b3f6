"""Evidence: documents with marked characters, how much of it is shown, and the controls."""

import gzip
import json

import pytest

from shared_context.errors import DocumentError
from shared_context.evaluation import evidence, retrieval
from shared_context.evaluation.metrics import covered
from shared_context.evaluation.questions import Span, read_evidence
from shared_context.evaluation.report import Lines

LAMP = "The lamp on the pier is lit by Ada Quist. She climbs 112 steps with a can of oil and trims the wick. "
SOUP = "In the inn soup is served at noon. The cook makes it of cod, leeks and barley, and bakes bread at night. "
FERRY = "The ferry to Holm leaves at six. A ticket is 38 crowns, and in a gale it stays where it is. "
BELLS = "When fog comes in the bells of Saint Olaf ring twice a minute until the wind has turned to the east again. "
TEXT = BELLS + LAMP + "Nobody knows why the old mill has two doors but no window. " + SOUP + FERRY


def marked(question, text):
    start = TEXT.index(text)
    return {"question": question, "evidence": [[start, start + len(text)]]}


ROWS = [
    {"id": "town", "text": TEXT, "questions": [marked("Who lights the lamp?", LAMP), marked("When is soup?", SOUP)]},
    {"text": FERRY, "questions": [{"question": "What is a ticket?", "evidence": [[0, 20], [33, 60]]}]},
]


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "marked.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(map(json.dumps, ROWS)).encode()))
    return path


def test_documents_are_read_with_what_is_marked(data):
    found = read_evidence(data)
    assert found.documents == {"town": TEXT, "line 2": FERRY}
    assert [question.text for question in found.questions] == [
        "Who lights the lamp?",
        "When is soup?",
        "What is a ticket?",
    ]
    assert found.questions[2].spans == (Span("line 2", 0, 20), Span("line 2", 33, 60))
    assert found.questions[2].passage == Span("line 2", 0, 60)


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"question": "Who?"}, "no evidence"),
        ({"question": "Who?", "evidence": []}, "no evidence"),
        ({"question": "Who?", "evidence": [[5, 4]]}, "outside"),
        ({"question": "Who?", "evidence": [[0, 10_000]]}, "outside"),
        ({"question": " ", "evidence": [[0, 4]]}, "no question"),
    ],
)
def test_what_cannot_be_used_is_left_out_with_its_place(tmp_path, asked, why):
    path = tmp_path / "marked.jsonl"
    path.write_text(json.dumps({"text": "Some text.", "questions": [asked]}))
    with pytest.raises(DocumentError, match=rf"(?s){why}.*line 1"):
        read_evidence(path)


def test_a_file_that_is_something_else_is_named(tmp_path):
    path = tmp_path / "letter.txt"
    path.write_text("Dear all")
    with pytest.raises(DocumentError, match="letter.txt"):
        read_evidence(path)


def test_the_share_shown_counts_characters_once():
    texts = {"a": "a" * 25, "b": " " * 2 + "b" * 18, "c": "c" * 9}
    wanted = [Span("a", 0, 10), Span("a", 5, 20), Span("b", 0, 20)]
    shown = [Span("a", 0, 10), Span("a", 0, 10), Span("b", 15, 20), Span("c", 0, 9)]
    assert covered(shown, wanted, texts) == 15 / 38
    assert covered([Span("b", 2, 20), Span("a", 0, 25)], wanted, texts) == 1
    assert covered([], wanted, texts) == 0


def test_evidence_is_measured_with_its_controls_and_a_run_is_resumed(model, data, tmp_path, monkeypatch):
    monkeypatch.setattr(retrieval, "CHUNKS", ((64, 0),))
    state = tmp_path / "state"
    report = evidence.measure(model, data, tokens=(64, 4096), resume=state)
    share, whole = (
        {line.name: [point.y for point in line.points] for part in report.parts if isinstance(part, Lines)
         and part.title.startswith(title) for line in part.series}
        for title in ("Share of the evidence shown", "Share of questions whose evidence is all shown")
    )  # fmt: skip
    assert set(share) >= {"hybrid", "lexical", evidence.ASKED_OTHERWISE, evidence.BEGINNING, "BM25, at its best"}
    assert share["hybrid"][0] > share[evidence.BEGINNING][0]
    assert all(shown[1] == 1 for shown in (*share.values(), *whole.values()))
    assert all(whole[way][0] <= share[way][0] for way in share)
    again = evidence.measure(model, data, tokens=(64, 4096), resume=state)
    assert again.as_json() == report.as_json()
