"""Reading question sets: documents, and answers exactly where they stand in them."""

import gzip
import json
from pathlib import Path

import pytest

from shared_context.errors import ConfigError, DocumentError
from shared_context.evaluation.questions import read_questions

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
    asked = read_questions(file, unit)
    assert len(asked.documents) == documents
    assert [question.answers for question in asked.questions] == [("colza oil", "oil"), ("90 m",), ("Imelda",)]
    # A question that SQuAD marks as having no answer.
    assert asked.left_out == {"no answers": ["article 1, paragraph 2, question 2"]}
    for question in asked.questions:
        text = asked.documents[question.document]
        assert [text[span.start : span.end] for span in question.spans] == list(question.answers)
        assert all(question.passage.start <= s.start < s.end <= question.passage.end for s in question.spans)


def test_paragraphs_of_a_document_are_joined_by_blank_lines(file):
    (text,) = read_questions(file, "file").documents.values()
    assert text == "The lamp burns colza oil.\n\nÜnïcode — the mole is 90 m long.\n\nImelda draws up rosters."


def test_the_same_seed_draws_the_same_questions_in_the_order_of_the_file():
    asked = read_questions(HANDBOOK_QUESTIONS)
    few = asked.sample(10, seed=3)
    places = [asked.questions.index(question) for question in few]
    assert places == sorted(set(places)) and len(places) == 10
    assert asked.sample(10, seed=3) == few != asked.sample(10, seed=4)
    assert asked.sample(None) == asked.sample(1000) == asked.questions
    drawn = asked.drawn(None, seed=3)
    assert sorted(drawn, key=asked.questions.index) == list(asked.questions) != list(drawn)
    assert set(drawn[:10]) == set(few) and asked.drawn(10, seed=3) == drawn[:10]
    with pytest.raises(ConfigError, match="limit"):
        asked.sample(0)


def test_a_question_is_found_again_by_its_key():
    asked = read_questions(HANDBOOK_QUESTIONS)
    assert [asked.by_key(asked.key(question)) for question in asked.questions] == list(asked.questions)


ROWS = [
    {"question": "What burns?", "answers": ["Colza"], "passage": "The lamp burns colza, bought in 1950."},
    {"question": "How much?", "answers": "9 barrels", "passages": ["In 1950 it took 19 barrels.", "Now 9 barrels do."]},
    {"question": "How many?", "answers": ["9"], "passages": [{"title": "Now", "text": "Now 9 barrels do."}]},
    {"question": "Who?", "answers": ["Nobody knows"], "passage": "The lamp burns colza, bought in 1950."},
]


@pytest.mark.parametrize("packed", [False, True])
def test_rows_with_passages(tmp_path, packed):
    content = "\n".join(json.dumps(row) for row in ROWS).encode()
    path = tmp_path / ("rows.jsonl.gz" if packed else "rows.jsonl")
    path.write_bytes(gzip.compress(content) if packed else content)
    asked = read_questions(path)
    (text,) = asked.documents.values()
    assert text.count("Now 9 barrels do.") == 1  # a passage of several questions stands in the document once
    found = [[text[span.start : span.end] for span in question.spans] for question in asked.questions]
    # Upper and lower case are the same; "9" does not stand in "1950" or "19".
    assert found == [["colza"], ["9 barrels"], ["9"]]
    assert [text[q.passage.start : q.passage.end] for q in asked.questions][1] == "Now 9 barrels do."
    assert asked.left_out == {"no answer that stands in the documents": ["line 4"]}
    assert len(read_questions(path, "paragraph").documents) == 3


def test_line_separators_of_unicode_do_not_end_a_row(tmp_path):
    row = {"question": "What burns?", "answers": ["colza"], "passage": "The lamp\u2028burns\x85colza."}
    path = tmp_path / "rows.jsonl"
    path.write_bytes("\r\n".join(json.dumps(r, ensure_ascii=False) for r in (row, row)).encode())
    assert len(read_questions(path).questions) == 2


def test_a_folder_of_documents_with_a_question_file(tmp_path):
    (tmp_path / "more").mkdir()
    (tmp_path / "gate.md").write_text("The gate opens at six.")
    (tmp_path / "more" / "lamp.txt").write_text("The lamp is lit at six.")
    rows = [
        {"question": "When is the lamp lit?", "answers": ["six"], "document": "more/lamp.txt"},
        {"question": "When does anything happen?", "answers": ["six"]},
    ]
    (tmp_path / "questions.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    asked = read_questions(tmp_path)
    assert set(asked.documents) == {"gate.md", "more/lamp.txt"}
    lamp, anything = asked.questions
    assert [(span.document, span.start) for span in lamp.spans] == [("more/lamp.txt", 19)]
    assert {span.document for span in anything.spans} == set(asked.documents)


def test_a_folder_without_questions_says_what_is_missing(tmp_path):
    (tmp_path / "gate.md").write_text("The gate opens at six.")
    with pytest.raises(DocumentError, match=r"questions\.jsonl"):
        read_questions(tmp_path)


def test_questions_that_no_document_answers_are_refused(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(ROWS[-1]))
    with pytest.raises(DocumentError, match="no question whose answer"):
        read_questions(path)


def test_what_cannot_be_used_of_a_squad_file_is_left_out_and_named(tmp_path):
    lamp = paragraph("The lamp burns colza.", ("What burns?", "colza"), ("Who?", "Imelda"))
    lamp["qas"] += [
        {"question": "Why?", "is_impossible": True},
        {"question": None, "answers": []},
        {"question": "Why?", "answers": 9},
    ]
    same = [{"title": "Lamp", "paragraphs": [paragraph(f"It burns {n}.", ("What?", n))]} for n in ("oil", "gas")]
    articles = [{"paragraphs": [lamp, {"context": " "}, {"qas": []}]}, *same, {"title": "Empty"}, "none"]
    path = tmp_path / "questions.json"
    path.write_text(json.dumps({"data": articles}), encoding="utf-8-sig")
    asked = read_questions(path, "article")
    assert list(asked.documents) == ["article 1", "Lamp", "Lamp (2)"]
    assert [question.answers for question in asked.questions] == [("colza",), ("oil",), ("gas",)]
    assert asked.left_out == {
        "an answer that is not at its answer_start": ["article 1, paragraph 1, question 2"],
        "no answers": ["article 1, paragraph 1, question 3", "article 1, paragraph 1, question 5"],
        "no question": ["article 1, paragraph 1, question 4"],
        "no context": ["article 1, paragraph 2", "article 1, paragraph 3"],
        "no paragraphs": ["article 4", "article 5"],
    }
    assert "2 for no context (the first: article 1, paragraph 2)" in asked.left_out_text


def test_rows_that_cannot_be_used_are_left_out_and_named(tmp_path):
    rows = [
        {"question": "When?", "answers": [1950, None], "passages": "It was bought in 1950."},
        {"question": "When?", "passage": "It was bought in 1950."},
        {"question": "When?", "answers": None, "passage": "It was bought in 1950."},
        {"answers": "1950", "passage": "It was bought in 1950."},
        {"question": "When?", "answers": "1950", "passages": [{"title": "t"}]},
    ]
    path = tmp_path / "rows.ndjson"
    content = "\n".join([*map(json.dumps, rows), "", "no JSON", "[]"])
    path.write_text(content, encoding="utf-8-sig")
    asked = read_questions(path)
    assert [question.answers for question in asked.questions] == [("1950",)]
    assert asked.left_out == {
        "no text": ["line 5"],
        "no JSON object": ["line 7", "line 8"],
        "no answers": ["line 2", "line 3"],
        "no question": ["line 4"],
    }
    path.write_text("\n".join(content.splitlines()[1:]))
    with pytest.raises(DocumentError, match=r"rows\.ndjson .*the first: line 1\)"):
        read_questions(path)


def test_a_question_about_a_document_that_is_missing_is_left_out(tmp_path):
    (tmp_path / "gate.md").write_text("The gate opens at six.")
    rows = [{"question": "When?", "answers": "six", "document": name} for name in ("lamp.md", "gate.md", None)]
    (tmp_path / "questions.json").write_text(json.dumps(rows), encoding="utf-8-sig")
    asked = read_questions(tmp_path)
    assert len(asked.questions) == 2
    assert asked.left_out == {"a document that is not in the folder": ["row 1"]}


@pytest.mark.parametrize(
    ("passage", "answer", "stands"),
    [
        ("灯塔建于1950年，位于北京东部。", "北京", True),
        ("灯塔建于1950年，位于北京东部。", "1950", True),
        ("灯塔建于1950年，位于北京东部。", "50", False),
        ("その灯台は東京にあります。", "東京", True),
        ("ประภาคารอยู่ที่กรุงเทพมหานคร", "กรุงเทพ", True),
        ("The lamp burns.", "amp", False),
    ],
)
def test_an_answer_need_not_stand_between_spaces_where_none_are_written(tmp_path, passage, answer, stands):
    row = {"question": "Which?", "answers": [answer], "passage": passage}
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, (row, ROWS[0]))))
    found = [span.start for question in read_questions(path).questions[:-1] for span in question.spans]
    assert found == ([passage.index(answer)] if stands else [])


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
        read_questions(path)
