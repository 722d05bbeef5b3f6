"""Reading training data, and what is said where they are broken."""

import gzip
import json

import pytest

from shared_context.errors import TrainingDataError
from shared_context.training.data import BLOCK, read_rows

ROWS = [{"question": f"question {i}", "answers": [f"answer {i}"], "passage": f"passage {i}"} for i in range(3)]


def test_json_lines_are_read_plain_and_compressed(tmp_path):
    text = "\n".join(json.dumps(row) for row in ROWS) + "\n\n"
    (tmp_path / "rows.jsonl").write_text(text)
    with gzip.open(tmp_path / "rows.jsonl.gz", "wt") as file:
        file.write(text)
    for name in ("rows.jsonl", "rows.jsonl.gz"):
        rows = list(read_rows(tmp_path / name))
        assert [row.fields for row in rows] == ROWS
        assert rows[2].place == f"{tmp_path / name}, line 3"


def test_a_broken_line_is_reported_with_its_number_and_skipped_on_request_only(tmp_path, caplog):
    file = tmp_path / "rows.jsonl"
    file.write_text(f'{json.dumps(ROWS[0])}\n{{"question": \n[1]\n{json.dumps(ROWS[1])}\n')
    rows = read_rows(file)
    assert next(rows).fields == ROWS[0]
    with pytest.raises(TrainingDataError, match=r"rows\.jsonl, line 2 is broken .*--skip-broken"):
        next(rows)
    assert [row.fields for row in read_rows(file, skip_broken=True)] == ROWS[:2]
    assert ["line 2" in m or "line 3" in m for m in caplog.messages] == [True, True]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.jsonl.gz"])
def test_bytes_that_are_no_utf_8_break_their_line_only(tmp_path, name, caplog):
    file = tmp_path / name
    lines = [json.dumps(ROWS[0]).encode(), '{"passage": "Grüße"}'.encode("latin-1"), json.dumps(ROWS[1]).encode()]
    content = b"\n".join(lines)
    file.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
    with pytest.raises(TrainingDataError, match="line 2 is broken .*utf-8.*--skip-broken"):
        list(read_rows(file))
    assert [row.fields for row in read_rows(file, skip_broken=True)] == ROWS[:2]
    assert "line 2 is skipped" in caplog.text


def test_a_cut_off_file_is_an_error(tmp_path):
    file = tmp_path / "rows.jsonl.gz"
    whole = gzip.compress("\n".join(json.dumps(row) for row in ROWS * 50).encode())
    file.write_bytes(whole[:-20])
    with pytest.raises(TrainingDataError, match="cannot be read"):
        list(read_rows(file))


def test_a_text_longer_than_a_block_is_read_in_pieces_that_make_it_up(tmp_path):
    text = "word " * (BLOCK // 4) + "end"
    (tmp_path / "book.txt").write_text(text)
    pieces = [row.text("text") for row in read_rows(tmp_path / "book.txt")]
    assert len(pieces) == 3
    assert "".join(pieces) == text


def test_squad_files_give_a_row_per_question(tmp_path):
    passage = "The lamp is lit by Ann."
    asked = {"question": "Who lights it?", "answers": [{"text": "Ann", "answer_start": 19}]}
    file = tmp_path / "squad.json"
    file.write_text(json.dumps({"data": [{"title": "t", "paragraphs": [{"context": passage, "qas": [asked]}]}]}))
    (row,) = read_rows(file)
    assert (row.text("question"), row.texts("answers"), row.text("passage")) == ("Who lights it?", ["Ann"], passage)
    file.write_text("{}")
    with pytest.raises(TrainingDataError, match="no set of questions"):
        list(read_rows(file))


def test_broken_rows_of_squad_files_stop_a_run_unless_they_are_passed_over(tmp_path, caplog):
    def asked(**answers):
        return {"question": "What burns?", **answers}

    good = asked(answers=[{"text": "colza", "answer_start": 15}])
    impossible, moved = asked(answers=[]), asked(answers=[{"text": "colza", "answer_start": 3}])
    file = tmp_path / "squad.json"

    def rows(*qas, **options):
        paragraph = {"context": "The lamp burns colza.", "qas": qas}
        file.write_text(json.dumps({"data": [{"title": "Lamps", "paragraphs": [paragraph]}]}))
        return len(list(read_rows(file, **options)))

    assert rows(good, impossible) == 1
    assert "1 for no answers" in caplog.text
    with pytest.raises(TrainingDataError, match="answer_start.*question 2.*--skip-broken"):
        rows(good, moved)
    assert rows(good, moved, skip_broken=True) == 1


def test_squad_files_may_be_compressed(tmp_path):
    asked = {"question": "What burns?", "answers": [{"text": "colza", "answer_start": 15}]}
    article = {"title": "Lamps", "paragraphs": [{"context": "The lamp burns colza.", "qas": [asked]}]}
    (tmp_path / "squad.json.gz").write_bytes(gzip.compress(json.dumps({"data": [article]}).encode()))
    (row,) = read_rows(tmp_path / "squad.json.gz")
    assert row.texts("answers") == ["colza"]


def test_whatever_datasets_loads_is_streamed(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS))
    assert [row.text("question") for row in read_rows(folder)] == [row["question"] for row in ROWS]
    with pytest.raises(TrainingDataError, match="neither a file nor a data set"):
        list(read_rows(tmp_path / "missing"))


def test_a_data_set_is_named_with_its_configuration_and_split(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    first, second, *_ = ROWS
    (folder / "short.jsonl").write_text(json.dumps(first))
    (folder / "long.jsonl").write_text(json.dumps(second))
    (folder / "README.md").write_text(
        "---\nconfigs:\n"
        "- config_name: short\n  data_files:\n  - split: validation\n    path: short.jsonl\n"
        "- config_name: long\n  data_files:\n  - split: train\n    path: long.jsonl\n---\n"
    )
    (row,) = read_rows(f"{folder}:short:validation")
    assert row.text("question") == first["question"]
    (row,) = read_rows(f"{folder}:long")
    assert row.text("question") == second["question"]
    with pytest.raises(TrainingDataError, match="NAME:CONFIGURATION:SPLIT"):
        list(read_rows(folder))  # there are two to choose from
    with pytest.raises(TrainingDataError, match="validation"):
        list(read_rows(f"{folder}:short"))  # it has no split "train"


@pytest.mark.parametrize("answers", [[], [""], None, [1], {"text": []}])
def test_a_row_without_answer_is_named(tmp_path, answers):
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({**ROWS[0], "answers": answers}))
    (row,) = read_rows(file)
    with pytest.raises(TrainingDataError, match="line 1: answers"):
        row.texts("answers")


def test_a_text_with_half_of_a_surrogate_pair_is_named(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"text": "a lamp \\ud83d"}\n{"text": "a lamp \\ud83d\\ude00"}')
    broken, whole = read_rows(file)
    assert whole.text("text") == "a lamp \U0001f600"
    with pytest.raises(TrainingDataError, match="line 1: text must be .* surrogate"):
        broken.text("text")
