"""Files and vector stores, by OpenAI's own client: created, filled, searched, deleted, and found again."""

import json

import openai
import pytest

from shared_context.serve import ServeConfig

MILL = b"# The mill\n\nThe mill grinds rye on Mondays. The miller is Tobiah Crane, and his scales weigh in stones.\n"
ASK = {"max_tokens": 4}
JSON = {"headers": {"Content-Type": "application/json"}}


@pytest.fixture(scope="module")
def running(make_coast, serving, tmp_path_factory):
    """A server that makes stores."""
    with serving({"coast": make_coast()}, data=tmp_path_factory.mktemp("data")) as running:
        yield running


@pytest.fixture
def client(running):
    return running.client()


@pytest.fixture
def mills(client):
    """A new store with an uploaded file."""
    store = client.vector_stores.create(name="mills")
    file = client.vector_stores.files.upload_and_poll(vector_store_id="mills", file=("mill.md", MILL))
    yield store, file
    client.vector_stores.delete("mills")
    client.files.delete(file.id)


def test_a_file_is_kept_as_it_was(client):
    file = client.files.create(file=("a/../b.txt", b"\x00\xff bytes"), purpose="assistants")
    assert (file.bytes, file.purpose, file.status) == (8, "assistants", "processed")
    assert "/" not in file.filename
    assert client.files.retrieve(file.id).filename == file.filename
    assert client.files.content(file.id).read() == b"\x00\xff bytes"
    assert file.id in [one.id for one in client.files.list()]
    assert client.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError, match=file.id):
        client.files.retrieve(file.id)


def test_a_store_is_made_filled_asked_and_deleted(client, mills):
    store, file = mills
    assert (store.id, store.object) == ("mills", "vector_store")
    assert file.status == "completed" and file.usage_bytes == len(MILL)
    assert client.vector_stores.retrieve("mills").file_counts.completed == 1
    assert {"mills", "coast"} <= {one.id for one in client.vector_stores.list()}
    assert "mills" in {one.id for one in client.models.list()}
    assert [one.id for one in client.vector_stores.files.list("mills")] == [file.id]
    assert client.vector_stores.files.content(file.id, vector_store_id="mills").data[0].text == MILL.decode()
    asked = {"model": "mills", "messages": [{"role": "user", "content": "Who is the miller?"}], **ASK}
    (cited,) = client.chat.completions.create(**asked).choices[0].message.to_dict()["annotations"]
    assert cited["file_citation"]["file_id"] == file.id
    assert cited["file_citation"]["filename"] == "mill.md"
    assert client.vector_stores.files.delete(file.id, vector_store_id="mills").deleted
    assert client.vector_stores.retrieve("mills").file_counts.total == 0
    with pytest.raises(openai.NotFoundError):
        client.vector_stores.files.retrieve(file.id, vector_store_id="mills")
    assert client.files.retrieve(file.id)  # what was uploaded stays


def test_a_deleted_store_is_gone(client):
    client.vector_stores.create(name="shed")
    stream = client.chat.completions.create(
        model="shed", messages=[{"role": "user", "content": "Anything?"}], stream=True, max_tokens=50
    )
    next(stream)
    assert client.vector_stores.delete("shed").deleted
    for _ in stream:
        pass  # an answer that is being written ends
    with pytest.raises(openai.NotFoundError, match="shed"):
        client.vector_stores.retrieve("shed")
    with pytest.raises(openai.NotFoundError, match="shed"):
        client.chat.completions.create(model="shed", messages=[{"role": "user", "content": "?"}])


def test_search_gives_passages_with_where_they_are_from(client):
    found = client.vector_stores.search("coast", query="Who is the captain of the ferry Marigold?").data
    assert found[0].file_id == "coast/ferry.md"
    assert "Anselm Okafor" in "".join(part.text for one in found for part in one.content)
    assert [one.score for one in found] == sorted((one.score for one in found), reverse=True)
    assert found[0].attributes == {"tower": False}
    (first,) = client.vector_stores.search("coast", query=["ferry", "lamp"], max_num_results=1).data
    assert first.file_id


def test_search_takes_filters_in_both_forms(client):
    def found(filters):
        page = client.vector_stores.search("coast", query="Where is it?", filters=filters)
        return {one.file_id for one in page.data}

    tower = {"type": "eq", "key": "tower", "value": True}
    assert found(tower) == found({"tower": True}) == {"coast/lighthouse.md"}
    none = {"type": "and", "filters": [tower, {"type": "ne", "key": "tower", "value": True}]}
    assert found(none) == set()
    assert found({"type": "or", "filters": [tower, {"type": "in", "key": "tower", "value": [False]}]}) == {
        "coast/lighthouse.md",
        "coast/ferry.md",
    }
    for wrong in ({"type": "near", "key": "tower", "value": 1}, {"type": "and", "filters": [1]}, {"a": {"$b": 1}}):
        with pytest.raises(openai.BadRequestError) as refused:
            found(wrong)
        assert refused.value.code == "filters"


def test_ids_may_have_slashes_and_dots(client):
    ids = [one.id for one in client.vector_stores.files.list("coast", order="asc")]
    assert ids == ["coast/lighthouse.md", "coast/ferry.md"]
    one = client.vector_stores.files.retrieve("coast/ferry.md", vector_store_id="coast")
    assert one.id == "coast/ferry.md" and one.attributes == {"tower": False}
    assert "Marigold" in client.vector_stores.files.content("coast/ferry.md", vector_store_id="coast").data[0].text
    for name in ("coast/plane.md", "coast", "ferry.md", "%2e%2e/coast"):
        with pytest.raises(openai.NotFoundError):
            client.vector_stores.files.retrieve(name, vector_store_id="coast")


def test_lists_come_in_parts(client):
    first = client.vector_stores.files.list("coast", limit=1, order="asc")
    assert len(first.data) == 1 and first.has_next_page()
    assert [one.id for one in first] == ["coast/lighthouse.md", "coast/ferry.md"]


@pytest.mark.parametrize("content", [b"", b"\x00\x01\x02" * 100, b"%PDF-1.4 broken"])
def test_a_file_that_is_no_text_fails_with_the_reason(client, mills, content):
    file = client.vector_stores.files.upload_and_poll(vector_store_id="mills", file=("bad.txt", content))
    assert file.status == "failed"
    assert file.last_error.code == "unsupported_file" and "bad.txt" in file.last_error.message
    assert client.vector_stores.retrieve("mills").file_counts.failed == 1
    assert client.vector_stores.files.delete(file.id, vector_store_id="mills").deleted
    assert client.vector_stores.retrieve("mills").file_counts.failed == 0


@pytest.mark.parametrize("attributes", [{"a": "\ud800"}, {"\ud800": 1}, {"a": {"b": 1}}, {"a": None}])
def test_attributes_that_cannot_be_kept_are_refused_and_nothing_stays_of_them(client, mills, attributes):
    file = client.files.create(file=("bell.md", b"The bell is bronze."), purpose="assistants")
    with pytest.raises(openai.BadRequestError) as refused:
        body = json.dumps({"file_id": file.id, "attributes": attributes}).encode()
        client.post("/vector_stores/mills/files", cast_to=object, content=body, options=JSON)
    assert refused.value.param.startswith("attributes")
    assert [one.filename for one in client.files.list() if one.id == file.id] == ["bell.md"]
    assert file.id not in [one.id for one in client.vector_stores.files.list("mills")]


def test_what_there_is_not_is_said(client):
    with pytest.raises(openai.NotFoundError, match="no file"):
        client.vector_stores.files.create("coast", file_id="file-1")
    with pytest.raises(openai.NotFoundError, match="no store"):
        client.vector_stores.search("nowhere", query="x")
    with pytest.raises(openai.BadRequestError, match="limit"):
        client.vector_stores.list(limit=0)
    with pytest.raises(openai.BadRequestError, match="must be 1 to 64"):
        client.vector_stores.create(name="../up")
    with pytest.raises(openai.ConflictError, match="already"):
        client.vector_stores.create(name="coast")
    with pytest.raises(openai.PermissionDeniedError, match="given when the server was started"):
        client.vector_stores.delete("coast")


def test_without_a_folder_no_stores_are_made(served):
    with pytest.raises(openai.PermissionDeniedError, match="--data"):
        served.client().vector_stores.create(name="new")


def test_an_upload_that_is_too_large_is_refused(make_coast, serving):
    with serving({"coast": make_coast()}, config=ServeConfig(max_upload_bytes=1000)) as running:
        with pytest.raises(openai.APIStatusError) as refused:
            running.client().files.create(file=("big.txt", b"x" * 2000), purpose="assistants")
        assert refused.value.status_code == 413


def test_stores_and_files_are_there_again(make_coast, serving, tmp_path):
    with serving({"coast": make_coast()}, data=tmp_path) as running:
        client = running.client()
        client.vector_stores.create(name="mills")
        file = client.vector_stores.files.upload_and_poll(vector_store_id="mills", file=("mill.md", MILL))
    with serving({"coast": make_coast()}, data=tmp_path) as running:
        client = running.client()
        assert client.files.retrieve(file.id).filename == "mill.md"
        assert client.vector_stores.files.retrieve(file.id, vector_store_id="mills").status == "completed"
        assert client.vector_stores.search("mills", query="Who is the miller?").data[0].filename == "mill.md"
