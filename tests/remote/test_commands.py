"""`shared-context push` and `pull`, and the commands that read what was published."""

import json

import pytest
from typer.testing import CliRunner

from shared_context import SharedLLMContextStore
from shared_context.cli.main import app


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.setenv("SHARED_CONTEXT_HOME", str(tmp_path / "home"))

    def run(*arguments: object, code: int = 0) -> str:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments])
        assert result.exit_code == code, result.output
        return result.output

    return run


def test_a_store_goes_to_an_address_and_comes_back(run, make_small_model, tmp_path):
    with SharedLLMContextStore(make_small_model(), tmp_path / "store", embedder=None) as store:
        store.add("The vineyard is harvested by hand.", id="vineyard")
    address = (tmp_path / "bucket" / "name").as_uri()
    pushed = json.loads(run("push", tmp_path / "store", address, "--json"))
    assert (pushed["snapshot"], pushed["documents"], pushed["kv_bytes"]) == (1, 1, 0)
    assert run("pull", address, tmp_path / "new").startswith(f"snapshot 1 of {address}: 1 documents, ")
    with SharedLLMContextStore(make_small_model(), tmp_path / "new") as store:
        assert store.ids() == ["vineyard"]
    assert "holds something already" in run("pull", address, tmp_path / "new", code=1)


def test_what_is_published_is_not_changed(run, tmp_path):
    (tmp_path / "note.txt").write_text("A note.")
    assert "is published" in run("ingest", "s3://bucket/name", tmp_path / "note.txt", code=2)
    assert not (tmp_path / "s3:").exists()
    assert "--shards and --staging" in run("ingest", tmp_path / "store", tmp_path / "note.txt", "--shards", "2", code=2)


def test_reading_commands_take_an_address(run, tmp_path):
    address = (tmp_path / "nothing").as_uri()
    for command in (["stats"], ["list"], ["search", "What?"]):
        assert f"Nothing is published at {address}" in run(command[0], address, *command[1:], code=1)
