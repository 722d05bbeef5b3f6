import io
import json
import os
import sys
from datetime import date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import StrEnum
from pathlib import Path, PurePosixPath
from uuid import UUID

import numpy as np
import pytest

from shared_context.errors import BatchError, ConfigError, DocumentError, DuplicateDocumentError
from shared_context.store.documents import Document
from shared_context.store.filters import compile_filter
from shared_context.store.loading import TextFile, load_documents

LIMIT = 1000


def load(source, **options):
    return load_documents(source, max_bytes=LIMIT, **options)


def refused(source, **options):
    with pytest.raises(DocumentError) as caught:
        load(source, **options)
    return str(caught.value)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty folder that is also the working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


# ---- text


def test_text_with_an_id():
    assert load("Tea is at four.", id="tea", metadata={"page": 1}) == [Document("Tea is at four.", "tea", {"page": 1})]


@pytest.mark.parametrize("named", [str, Path])
def test_a_text_with_an_id_that_names_a_file_is_that_file(folder, named):
    Path("a house.plan").write_text("Two rooms.")
    (document,) = load(named("a house.plan"), id="house")
    assert (document.id, document.text) == ("house", "Two rooms.")
    assert document.metadata == {"file_name": "a house.plan", "file_path": "a house.plan"}


def test_a_document_is_never_a_path(folder):
    Path("secret.txt").write_text("the content of a file")
    assert load(Document("secret.txt", "said by somebody"))[0].text == "secret.txt"


@pytest.mark.parametrize("name", ["handbok.md", "docs/handbok.PDF"])
def test_a_misspelt_path_is_not_stored_as_a_text(folder, name):
    message = refused(name, id="x")
    assert "no file" in message and name in message and "Document" in message
    assert load("See handbok.md", id="x")[0].text == "See handbok.md"


@pytest.mark.parametrize(
    "text", ["nowhere.md", "two\nlines", "x" * 100_000, "nul\0nul", "lone \ud800", "", "a/" * 5000]
)
def test_text_without_an_id_is_told_about_ids(folder, text):
    message = refused(text)
    assert "no file" in message and "id=" in message
    assert len(message) < 500


@pytest.mark.parametrize(
    "text, named",
    [
        ("", "empty"),
        (" \n\t\u2003", "blank"),
        ("ab\0c", "NUL character at 2"),
        ("ab\ud83dc", "U+D83D, at character 2"),
        ("x" * (LIMIT + 1), "1,001"),
        ("é" * (LIMIT // 2 + 1), "1,002 bytes, the limit is 1,000"),
        (b"bytes", "bytes"),
        (None, "NoneType"),
    ],
)
def test_texts_that_cannot_be_stored(text, named):
    message = refused(Document(text, "minutes"))
    assert named in message and "'minutes'" in message


def test_text_is_kept_exactly():
    text = "\ufeffa\r\nb\rc\u2028d \U0001f600 שלום e\u0301\n\n"
    assert load(text, id="x")[0].text == text
    assert load("é" * (LIMIT // 2), id="x")[0].text == "é" * (LIMIT // 2)


# ---- ids and metadata


def test_an_id_is_derived_from_text_and_metadata():
    (first,), (other,), (page,) = (
        load(Document("a")),
        load(Document("b")),
        load(Document("a", metadata={"x": 1, "y": 2})),
    )
    assert first.id == "ca978112ca1bbdcafac231b39a23dc4d"
    assert len({first.id, other.id, page.id}) == 3
    assert load(Document("a", metadata={"y": 2, "x": 1}))[0].id == page.id


def test_repeated_pages_without_ids_are_told_apart_by_their_metadata():
    pages = [Document("Notes", metadata={"page": 1}), Document("Text", metadata={"page": 2})]
    pages += [Document("Notes", metadata={"page": 3}), Document("Notes", metadata={"page": 1})]
    assert [(d.text, d.metadata) for d in load(pages)] == [(d.text, d.metadata) for d in pages[:3]]


def test_the_calls_id_and_metadata_go_before_the_documents():
    document = Document("text", "own", {"a": 1, "b": 1})
    assert load(document, id="given", metadata={"b": 2}) == [Document("text", "given", {"a": 1, "b": 2})]


@pytest.mark.parametrize("id", ["", " \n", "a\nb", "a\x7fb", "\ud800", "x" * 513, 7])
def test_ids_that_are_refused(id):
    assert "id" in refused("text", id=id)
    assert "id" in refused(Document("text", id))


def test_long_and_unusual_ids_are_accepted():
    for id in ["x" * 512, "ünï/cødé 漢字 \U0001f600", "../../etc/passwd", "#3"]:
        assert load("text", id=id)[0].id == id


@pytest.mark.parametrize(
    "metadata, where",
    [
        ({"score": float("nan")}, "metadata['score'] is nan"),
        ({"a": [1, {"b": float("-inf")}]}, "metadata['a'][1]['b'] is -inf"),
        ({"when": os.stat_result}, "metadata['when'] is a type"),
        ({"when": {1, 2}}, "metadata['when'] is a set"),
        ({1: "a"}, "key 1"),
        ({"a": {None: "b"}}, "metadata['a'] has the key None"),
        ({"a": "\ud800"}, "lone surrogate"),
        ([("a", 1)], "expected a dict"),
        ("a", "expected a dict"),
    ],
)
def test_metadata_that_json_cannot_hold(metadata, where):
    assert where in refused(Document("text", "x", metadata))
    assert where in refused("text", id="x", metadata=metadata)


def test_metadata_that_contain_themselves():
    metadata = {}
    metadata["self"] = metadata
    assert "contain themselves" in refused(Document("text", "x", metadata))


def test_metadata_are_copied_as_json_values():
    given = {"tags": ("a", "b"), "nested": {"n": None, "t": True}}
    loaded = load(Document("text", "x", given))[0].metadata
    assert loaded == {"tags": ["a", "b"], "nested": {"n": None, "t": True}}
    given["nested"]["n"] = 1
    assert loaded["nested"]["n"] is None


class Shift(StrEnum):
    NIGHT = "night"


AS_JSON = [
    (datetime(2024, 5, 1, 10, 30), "2024-05-01T10:30:00"),
    (datetime(2024, 5, 1, 10, 30, tzinfo=timezone(timedelta(hours=2))), "2024-05-01T08:30:00+00:00"),
    (date(2024, 5, 1), "2024-05-01"),
    (time(22, 15), "22:15:00"),
    (PurePosixPath("/srv/rules.pdf"), "/srv/rules.pdf"),
    (UUID(int=7), "00000000-0000-0000-0000-000000000007"),
    (Shift.NIGHT, "night"),
    (Decimal("149.5"), 149.5),
    (Decimal(149), 149),
    (np.int64(3), 3),
    (np.float32(0.5), 0.5),
    (np.bool_(True), True),
    (np.datetime64("2024-05-01T10:30:00.000000000"), "2024-05-01T10:30:00"),
    (np.array([[1, 2]]), [[1, 2]]),
]


@pytest.mark.parametrize("value, stored", AS_JSON, ids=[str(value) for value, _ in AS_JSON])
def test_what_loaders_note_is_stored_as_what_stands_for_it_in_json(value, stored):
    metadata = load(Document("text", "x", {"a": value, "b": [{"c": value}]}))[0].metadata
    assert metadata == {"a": stored, "b": [{"c": stored}]}
    assert json.loads(json.dumps(metadata)) == metadata and type(metadata["a"]) is type(stored)
    assert compile_filter({"a": value})(metadata) and compile_filter({"a": {"$in": [value]}})(metadata)
    assert not compile_filter({"a": {"$ne": value}})(metadata)


@pytest.mark.parametrize(
    "value", [np.datetime64("NaT"), Decimal("NaN"), np.nan, timedelta(1), np.timedelta64(1, "D"), 1j]
)
def test_what_nothing_in_json_stands_for_is_refused(value):
    assert "metadata['a'] is" in refused(Document("text", "x", {"a": value}))


# ---- files


def test_a_file_is_named_by_its_path_as_given(folder):
    Path("docs").mkdir()
    Path("docs/a.weird").write_bytes(b"text")
    metadata = {"file_name": "a.weird", "file_path": "docs/a.weird"}
    expected = Document("text", "docs/a.weird", metadata, unsearched_keys=("file_path",), hidden_keys=("file_path",))
    assert load("docs/a.weird") == load(Path("docs", "a.weird")) == [expected]
    assert load(folder / "docs" / "a.weird")[0].id == (folder / "docs" / "a.weird").as_posix()


def test_a_files_id_and_metadata_can_be_given(folder):
    Path("a.md").write_bytes(b"text")
    (document,) = load(Path("a.md"), id="handbook", metadata={"file_name": "Handbook", "year": 2024})
    assert document.id == "handbook"
    assert document.metadata == {"file_name": "Handbook", "file_path": "a.md", "year": 2024}


def test_newlines_stay_and_a_byte_order_mark_goes(folder):
    Path("a.md").write_bytes(b"\xef\xbb\xbfone\r\ntwo\rthree\n\xe2\x80\xa8end")
    assert load("a.md")[0].text == "one\r\ntwo\rthree\n\u2028end"


@pytest.mark.parametrize(
    "content, named",
    [
        (b"", "empty"),
        (b"\xef\xbb\xbf", "empty"),
        (b" \r\n", "blank"),
        (b"%PDF-1.7\nplain", "as a PDF"),
        (b"PK\x03\x04rest", ".docx"),
        (b"\x1f\x8brest", "gzip"),
        ("Grüße".encode("utf-16"), "UTF-16"),
        ("Grüße".encode("utf-16-le"), "NUL at byte 1"),
        (b"abc\x00def", "NUL at byte 3"),
        ("Grüße".encode("latin1"), "byte 2 is 0xfc"),
        (b"\xef\xbb\xbfab\xff", "byte 5 is 0xff"),
        (b"ab\xed\xa0\x80", "byte 2 is 0xed"),
        (b"x" * (LIMIT + 1), "1,001 bytes, the limit is 1,000 bytes"),
    ],
)
def test_files_that_cannot_be_stored(folder, content, named):
    Path("a.md").write_bytes(content)
    message = refused("a.md")
    assert named in message and "'a.md'" in message


def test_the_limit_is_in_bytes_and_inclusive(folder):
    Path("a.md").write_bytes(b"x" * LIMIT)
    assert len(load("a.md")[0].text) == LIMIT


def test_a_file_far_above_the_limit_is_not_read(folder):
    with open("huge.md", "wb") as file:
        file.truncate(1 << 40)  # sparse; reading it would take a terabyte of memory
    assert f"{1 << 40:,} bytes" in refused("huge.md")


@pytest.mark.posix
def test_what_is_no_regular_file(folder):
    os.mkfifo("pipe.md")
    assert "neither a regular file nor a folder" in refused("pipe.md")


# ---- folders


@pytest.mark.posix
def test_a_folder_gives_its_text_files_in_order(folder):
    for name in ["b.md", "a.txt", "sub/deep/c.RST", "sub/d.md", ".hidden.md", ".git/e.md", "g.py", "noext", "t.csv"]:
        path = Path("docs", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"text of {name}")
    os.mkfifo("docs/pipe.txt")
    Path("docs/gone.txt").symlink_to("nowhere")
    Path("docs/loop").symlink_to(folder / "docs")
    documents = load("docs", metadata={"team": "x"})
    assert [document.id for document in documents] == [
        "docs/a.txt",
        "docs/b.md",
        "docs/g.py",
        "docs/noext",
        "docs/sub/d.md",
        "docs/sub/deep/c.RST",
        "docs/t.csv",
    ]
    assert documents[5].text == "text of sub/deep/c.RST"
    assert documents[5].metadata == {"file_name": "c.RST", "file_path": "docs/sub/deep/c.RST", "team": "x"}


def test_a_link_to_a_folder_is_not_followed_and_is_named(folder, caplog):
    Path("docs/sub").mkdir(parents=True)
    Path("docs/sub/fine.md").write_text("text")
    Path("docs/loop").symlink_to(folder / "docs")
    Path("docs/.hidden").symlink_to(folder)
    assert [document.id for document in load("docs")] == ["docs/sub/fine.md"]
    (said,) = caplog.messages
    assert "docs/loop" in said and "link to a folder" in said
    assert load("docs", exclude=["loop"]) and len(caplog.messages) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="other systems refuse such names")
def test_a_file_whose_name_is_no_text_is_refused_by_its_id(folder):
    Path("docs").mkdir()
    Path("docs", os.fsdecode(b"a\xff.txt")).write_text("text")
    Path("docs/fine.md").write_text("text")
    assert "the id 'docs/a" in refused("docs")


def test_links_that_lead_to_each_other_are_left_out(folder):
    Path("docs").mkdir()
    Path("docs/fine.md").write_text("text")
    Path("docs/a.txt").symlink_to("b.txt")
    Path("docs/b.txt").symlink_to("a.txt")
    assert [document.id for document in load("docs")] == ["docs/fine.md"]


def test_a_file_that_becomes_a_link_while_its_folder_is_read_is_not_followed(folder, monkeypatch):
    Path("docs").mkdir()
    Path("secret.txt").write_text("the key of the vault")
    for name in "abc":
        Path(f"docs/{name}.txt").write_text(f"text of {name}")
    read = TextFile.read

    def swap(file, max_bytes):
        if file.path.name == "a.txt":
            Path("docs/b.txt").unlink()
            Path("docs/b.txt").symlink_to("../secret.txt")
        return read(file, max_bytes)

    monkeypatch.setattr(TextFile, "read", swap)
    assert [document.text for document in load("docs")] == ["text of a", "text of c"]


def test_a_folder_without_text(folder):
    Path("docs").mkdir()
    Path("docs/a.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    message = refused("docs")
    assert "no text file" in message and "docs/a.png is a PNG image" in message


def test_a_folder_cannot_have_one_id(folder):
    Path("a.md").write_text("text")
    assert "is a folder" in refused(Path("."), id="x")


def test_a_folder_with_bad_files_names_each(folder):
    Path("docs").mkdir()
    Path("docs/good.md").write_text("text")
    Path("docs/bad.md").write_bytes(b"\xff\xfb")
    Path("docs/empty.md").write_bytes(b"")
    with pytest.raises(BatchError, match="2 of 3") as caught:
        load("docs", on_error="raise")
    assert list(caught.value.failures) == ["docs/bad.md", "docs/empty.md"]
    assert "not UTF-8" in str(caught.value.failures["docs/bad.md"])


def test_bad_files_do_not_stop_the_rest_and_are_named_with_their_reasons(folder, caplog):
    Path("docs").mkdir()
    Path("docs/good.md").write_text("text")
    Path("docs/bad.md").write_bytes(b"\xff\xfb")
    Path("docs/logo.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert [document.id for document in load("docs")] == ["docs/good.md"]
    assert "docs/bad.md' is not UTF-8" in caplog.text and "docs/logo.png' is a PNG image" in caplog.text
    told = {}
    caplog.clear()
    load(["docs", Document(" ", "page"), Document("fine")], on_error=told.__setitem__)
    assert list(told) == ["docs/logo.png", "docs/bad.md", "page"] and not caplog.text
    assert "blank" in str(told["page"])


def test_a_batch_of_nothing_but_bad_ones_is_refused(folder):
    with pytest.raises(BatchError, match="2 of 2"):
        load([Document(""), Document(" ")])


def test_what_is_wrong_with_a_call_is_never_left_out(folder):
    for wrong in [Document("a", "x", {"set": {1}}), Document("a", ""), 7, "nowhere.md", Document("b", "good")]:
        with pytest.raises(BatchError):
            load([Document("a", "good"), wrong, Document("", "empty")])


def test_on_error_is_checked():
    with pytest.raises(ConfigError, match="'ignore'"):
        load(Document("a"), on_error="ignore")


def test_a_few_characters_that_are_no_text_are_replaced(caplog):
    text = "The of\0ce opens at six, and a lone \ud83d surrogate does not close it."
    (document,) = load(Document(text, "page"))
    assert document.text == text.replace("\0", "\ufffd").replace("\ud83d", "\ufffd")
    assert "'page': replaced" in caplog.text
    assert "NUL" in refused(Document(text, "page"), on_error="raise")
    assert "NUL" in refused(Document("T\0h\0e\0 \0o\0f\0"))  # UTF-16 read as something else is not mended


def test_patterns_choose_among_the_files_of_a_folder(folder):
    for name in ["a.md", "b.txt", "drafts/c.md", "guides/d.md", "guides/drafts/e.txt"]:
        path = Path("docs", name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("text")

    def chosen(**patterns):
        return [document.id.removeprefix("docs/") for document in load("docs", **patterns)]

    assert chosen(include=["*.md"]) == ["a.md", "drafts/c.md", "guides/d.md"]
    assert chosen(include=["guides/*"]) == chosen(include=["guides/"]) == ["guides/d.md", "guides/drafts/e.txt"]
    assert chosen(exclude=["drafts"]) == ["a.md", "b.txt", "guides/d.md"]
    assert chosen(include=["*.md", "*.txt"], exclude=["guides/drafts", "b.*"]) == ["a.md", "drafts/c.md", "guides/d.md"]
    assert "no text file" in refused("docs", include=["*.rst"])


# ---- batches


def test_a_batch_of_everything(folder):
    Path("a.md").write_text("A")
    Path("docs").mkdir()
    Path("docs/b.md").write_text("B")
    given = (source for source in ["a.md", Path("docs"), Document("C", "c"), Document("D")])
    documents = load(given)
    assert [document.text for document in documents] == ["A", "B", "C", "D"]
    assert list(given) == []


def test_an_empty_batch_is_empty():
    assert load([]) == []


def test_every_problem_of_a_batch_is_reported_at_once(folder):
    Path("bad.md").write_bytes(b"a\0")
    batch = [Document("fine", "a"), Document("", "b"), Document(" "), "bad.md", "some text", 7, Document("x", "a")]
    with pytest.raises(BatchError, match="6 of 7") as caught:
        load(batch)
    failures = caught.value.failures
    assert list(failures) == ["b", "#2", "bad.md", "#4", "#5", "a"]
    assert "builtins.int" in str(failures["#5"])
    assert isinstance(failures["a"], DuplicateDocumentError)
    assert "5 more" not in str(caught.value) and "1 more" in str(caught.value)


def test_positions_are_those_of_the_batch_even_behind_a_folder(folder):
    for name in "abc":
        Path(f"{name}.md").write_text(name)
    with pytest.raises(BatchError) as caught:
        load([Path("."), Document("")], on_error="raise")
    assert list(caught.value.failures) == ["#1"]


def test_duplicates_within_a_batch(folder):
    Path("a.md").write_text("A")
    with pytest.raises(BatchError) as caught:
        load([Document("same", "s"), Document("same", "s"), "a.md", Path("a.md"), Document("other", "a.md")])
    failures = caught.value.failures
    assert list(failures) == ["s", "a.md", "#4"]
    assert all(isinstance(error, DuplicateDocumentError) for error in failures.values())
    assert "same text" in str(failures["s"]) and "another text" in str(failures["#4"])


def test_a_single_document_in_a_list_fails_with_its_own_error():
    with pytest.raises(DocumentError) as caught:
        load([Document("", "a")])
    assert not isinstance(caught.value, BatchError)


def test_one_id_for_several_documents():
    assert "several" in refused([Document("a"), Document("b")], id="x")


@pytest.mark.parametrize("source", [7, None, b"bytes", memoryview(b"bytes"), {"text": "a"}, io.StringIO("a\nb")])
def test_what_is_no_source(source):
    assert type(source).__name__ in refused(source)


def test_an_error_of_the_callers_generator_is_the_callers():
    def documents():
        yield Document("a")
        raise RuntimeError("their own")

    with pytest.raises(RuntimeError, match="their own"):
        load(documents())
