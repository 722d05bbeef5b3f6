"""Reading SQuAD files: documents, and answers exactly where they stand in them."""

import json
from pathlib import Path

import pytest

from shared_context.errors import DocumentError
from shared_context.evaluation.squad import read_squad

HANDBOOK_QUESTIONS = Path(__file__).parents[2] / "examples" / "data" / "handbook-questions.json"


def paragraph(context, *asked):
    def answers(gold):
        return [{"text": text, "answer_start": context.find(text)} for text in gold]

    return {"context": context, "qas": [{"question": q, "answers": answers(gold)} for q, *gold in asked]}


@pytest.fixture
def file(tmp_path):
    articles = [
        {
            "title": "Harbour",
            "paragraphs": [
                paragraph("The lamp burns colza oil.", ("What burns?", "colza oil", "oil")),
                paragraph("Ünïcode — the mole is 90 m long.", ("How long is the mole?", "90 m"), ("Why?",)),
            ],
        },
        {"title": "Staff", "paragraphs": [paragraph("Imelda draws up rosters.", ("Who draws up rosters?", "Imelda"))]},
    ]
    path = tmp_path / "questions.json"
    path.write_text(json.dumps({"data": articles}), encoding="utf-8")
    return path


@pytest.mark.parametrize(("unit", "documents"), [("file", 1), ("article", 2), ("paragraph", 3)])
def test_answers_stand_where_their_spans_say_whatever_a_document_is(file, unit, documents):
    squad = read_squad(file, unit)
    assert len(squad.documents) == documents
    assert [question.answer for question in squad.questions] == ["colza oil", "90 m", "Imelda"]
    for question in squad.questions:
        text = squad.documents[question.document]
        assert text[slice(*question.spans[0])] == question.answer
        start, end = question.paragraph
        assert all(start <= span[0] < span[1] <= end for span in question.spans)
    assert len(squad.questions[0].spans) == 2


def test_paragraphs_of_a_document_are_joined_by_blank_lines(file):
    (text,) = read_squad(file, "file").documents.values()
    assert text == "The lamp burns colza oil.\n\nÜnïcode — the mole is 90 m long.\n\nImelda draws up rosters."


def test_sample_is_spread_over_the_whole_file():
    squad = read_squad(HANDBOOK_QUESTIONS)
    few = squad.sample(4)
    assert [squad.questions.index(question) for question in few] == [0, 10, 20, 30]
    assert squad.sample(None) == squad.sample(1000) == squad.questions


@pytest.mark.parametrize(
    "content",
    [
        "no JSON",
        "[]",
        '{"data": [{"title": "t", "paragraphs": [{"context": "c"}]}]}',
        json.dumps({"data": [{"title": "t", "paragraphs": [paragraph("a lamp", ("What?", "an oil lamp"))]}]}),
    ],
)
def test_a_file_that_is_something_else_is_refused_by_name(tmp_path, content):
    path = tmp_path / "other.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(DocumentError, match=r"other\.json"):
        read_squad(path)
