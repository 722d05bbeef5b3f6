"""Stores and uploads whose folders somebody takes away while they are served."""

import json
import logging
import shutil

import httpx
import openai
import pytest

from shared_context.serve.logs import JsonLines

ASKED = {"messages": [{"role": "user", "content": "When does the ferry sail?"}], "max_tokens": 2}


@pytest.fixture
def vanished(make_coast, serving, tmp_path):
    """A server of two stores that it was given and one that a request made; the first and the last have no folder."""
    stores = {name: make_coast(tmp_path / f"{name}.ctx") for name in ("coast", "inland")}
    with serving(stores, data=tmp_path / "data") as running:
        running.client().vector_stores.create(name="shed")
        for path in (tmp_path / "coast.ctx", tmp_path / "data" / "stores" / "shed"):
            shutil.rmtree(path)
        yield running
    for store in stores.values():
        store.close()


def test_one_that_is_gone_is_told_without_its_place_and_the_others_answer(vanished, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="shared_context.serve")
    client = vanished.client()
    file = client.files.create(file=("bell.md", b"The bell is bronze."), purpose="assistants")
    calls = [
        lambda: client.chat.completions.create(model="coast", **ASKED),
        lambda: client.chat.completions.create(model="coast", **ASKED, stream=True),
        lambda: client.vector_stores.search("coast", query="ferry"),
        lambda: client.vector_stores.retrieve("coast"),
        lambda: client.vector_stores.files.list("coast"),
        lambda: client.vector_stores.files.content("coast/ferry.md", vector_store_id="coast"),
        lambda: client.vector_stores.files.delete("coast/ferry.md", vector_store_id="coast"),
    ]
    for call in calls:
        with pytest.raises(openai.InternalServerError) as refused:
            call()
        assert (refused.value.status_code, refused.value.code) == (503, "store_unavailable")
        assert str(tmp_path) not in refused.value.message
    added = client.vector_stores.files.create_and_poll(file.id, vector_store_id="coast", poll_interval_ms=50)
    assert added.status == "failed" and str(tmp_path) not in added.last_error.message
    client.models.list()  # a line is written behind its answer
    lines = [json.loads(JsonLines().format(record)) for record in caplog.records if hasattr(record, "fields")]
    assert sum("was removed" in line.get("reason", "") for line in lines) == len(calls) + 1
    listed = {one.id: one.status for one in client.vector_stores.list()}
    assert listed == {"coast": "expired", "inland": "completed", "shed": "expired"}
    assert client.chat.completions.create(model="inland", **ASKED).choices
    figures = httpx.get(f"{vanished.url}/metrics").text
    assert 'kv_cache_bytes{store="inland"' in figures and 'kv_cache_bytes{store="coast"' not in figures


def test_one_that_is_gone_can_be_deleted_and_made_again(vanished):
    client = vanished.client()
    assert client.vector_stores.delete("shed").deleted
    client.vector_stores.create(name="shed")
    assert client.vector_stores.retrieve("shed").status == "completed"


def test_uploads_begin_again_where_their_folder_is_gone(vanished, tmp_path):
    client = vanished.client()
    file = client.files.create(file=("bell.md", b"The bell is bronze."), purpose="assistants")
    shutil.rmtree(tmp_path / "data" / "files")
    assert not client.files.list().data
    with pytest.raises(openai.NotFoundError):
        client.files.retrieve(file.id)
    again = client.files.create(file=("bell.md", b"The bell is bronze."), purpose="assistants")
    assert [one.id for one in client.files.list()] == [again.id]


def test_uploads_that_cannot_be_kept_are_refused(vanished, tmp_path):
    shutil.rmtree(tmp_path / "data" / "files")
    (tmp_path / "data" / "files").write_text("in the way")
    with pytest.raises(openai.InternalServerError) as refused:
        vanished.client().files.create(file=("bell.md", b"The bell is bronze."), purpose="assistants")
    assert (refused.value.status_code, refused.value.code) == (503, "files_unavailable")
    assert str(tmp_path) not in refused.value.message
