"""Documents are stored by Ray actors: once each, whatever dies meanwhile."""

import os
import signal
import threading
import time
from functools import partial

import pytest
from typer.testing import CliRunner

from shared_context import Document, SharedLLMModel
from shared_context.cli.main import app
from shared_context.errors import ConfigError
from shared_context.shards import ShardedContextStore

ray = pytest.importorskip("ray")

from shared_context.shards.ray_ingest import documents_of, ingest, ingest_published  # noqa: E402

pytestmark = [pytest.mark.posix, pytest.mark.slow]  # every process loads torch

DOCUMENTS = [
    Document(f"The keeper of lamp {number} paints boat {number * 3}." * 40, f"d{number}", {"lamp": number})
    for number in range(60)
]


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def load(make_small_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model")
    small = make_small_model()
    small.hf_model.save_pretrained(folder)
    small.tokenizer.save_pretrained(folder)
    return partial(SharedLLMModel.from_pretrained, str(folder), adapter=None, dtype="float32")


def writers() -> list[int]:
    """Process ids of the actors that write."""
    found = []
    for name in filter(str.isdecimal, os.listdir("/proc")):
        try:
            with open(f"/proc/{name}/cmdline", encoding="utf-8") as read:
                if read.read().startswith("ray::Writer"):
                    found.append(int(name))
        except OSError:
            continue
    return found


def test_killed_writers_and_a_second_run_lose_and_repeat_nothing(load, tmp_path, monkeypatch):
    monkeypatch.setattr("shared_context.shards.ray_ingest.BATCH_CHARACTERS", 4000)
    bad = [Document("", "empty"), Document("broken \0 text", "broken")]
    killed = []

    def kill_some() -> None:
        deadline = time.monotonic() + 300
        while not killed and time.monotonic() < deadline:
            if list((tmp_path / "store").glob("shard-*/store.sqlite")) and (found := writers()):
                os.kill(found[0], signal.SIGKILL)
                killed.append(found[0])
            time.sleep(0.2)

    killer = threading.Thread(target=kill_some)
    killer.start()
    report = ingest(load, tmp_path / "store", [*DOCUMENTS, *bad], shards=2, embedder=None, num_cpus=0.5)
    killer.join()
    assert killed and report.stored + report.known == len(DOCUMENTS)
    assert report.refused.keys() == {"empty", "broken"}
    again = ingest(load, tmp_path / "store", DOCUMENTS, shards=2, embedder=None, num_cpus=0.5)
    assert (again.stored, again.known) == (0, len(DOCUMENTS))
    with ShardedContextStore(load(), tmp_path / "store") as store:
        assert sorted(store.ids()) == sorted(document.id for document in DOCUMENTS)
        assert store.get("d7") == DOCUMENTS[7]
    with pytest.raises(ConfigError, match="shards=3.* has 2"):
        ingest(load, tmp_path / "store", DOCUMENTS, shards=3, embedder=None)


def test_a_ray_data_set_is_ingested(load, tmp_path):
    rows = [{"id": number, "text": f"Row {number} is of rye.", "field": "north"} for number in range(5)]
    dataset = ray.data.from_items(rows)
    report = ingest(
        load, tmp_path / "store", documents_of(dataset, metadata=["field"]), shards=1, embedder=None, num_cpus=0.5
    )
    assert report.stored == 5
    with ShardedContextStore(load(), tmp_path / "store") as store:
        assert store.get("3").metadata == {"field": "north"}
    with pytest.raises(ConfigError, match="no column name"):
        next(documents_of(dataset, text="name"))


def test_a_published_store_is_made_and_added_to(load, tmp_path, monkeypatch):
    monkeypatch.setenv("SHARED_CONTEXT_HOME", str(tmp_path / "home"))
    address = (tmp_path / "bucket" / "name").as_uri()
    made, first = ingest_published(load, address, DOCUMENTS[:3], shards=2, embedder=None)
    added, second = ingest_published(load, address, DOCUMENTS[:5], shards=2, embedder=None)
    assert (made.stored, first.number, first.documents) == (3, 1, 3)
    assert (added.stored, added.known, second.number) == (2, 3, 2)
    assert not list((tmp_path / "home" / "staging").iterdir())
    with ShardedContextStore(load(), address) as store:
        assert sorted(store.ids()) == [document.id for document in DOCUMENTS[:5]]


def test_a_run_that_was_cut_off_before_publishing_is_gone_on_with(load, tmp_path, monkeypatch):
    address, staging = (tmp_path / "bucket" / "name").as_uri(), tmp_path / "staging"

    def documents():
        yield from DOCUMENTS[:3]
        raise KeyboardInterrupt

    monkeypatch.setattr("shared_context.shards.ray_ingest.BATCH_CHARACTERS", 1)
    with pytest.raises(KeyboardInterrupt):
        ingest_published(load, address, documents(), shards=1, staging=staging, embedder=None)
    report, snapshot = ingest_published(load, address, DOCUMENTS[:4], shards=1, staging=staging, embedder=None)
    assert report.stored + report.known == 4 and report.known >= 1
    assert snapshot.documents == 4 and not staging.exists()


def test_the_command_fills_a_folder_and_an_address(load, tmp_path, monkeypatch):
    monkeypatch.setenv("SHARED_CONTEXT_HOME", str(tmp_path / "home"))
    docs = tmp_path / "docs"
    docs.mkdir()
    for document in DOCUMENTS[:3]:
        (docs / f"{document.id}.txt").write_text(document.text)
    (docs / "empty.txt").write_text("")

    def run(place: object, *options: str, code: int = 3) -> str:
        given = ["ingest", str(place), str(docs), "--ray", "auto", "--model", *load.args, "--no-embedder", *options]
        result = CliRunner().invoke(app, given)
        assert result.exit_code == code, result.output
        return result.output

    assert "how many shards" in run(tmp_path / "store", code=2)
    assert "3 stored, 0 there already, 1 refused" in run(tmp_path / "store", "--shards", "2", "--dtype", "float32")
    assert "0 stored, 3 there already, 1 refused" in run(tmp_path / "store", "--dtype", "float32", code=1)
    address = (tmp_path / "bucket" / "name").as_uri()
    assert "3 stored" in run(address, "--shards", "2", "--dtype", "float32")
    with ShardedContextStore(load(), address) as store:
        assert sorted(store.ids()) == [(docs / f"{document.id}.txt").as_posix() for document in DOCUMENTS[:3]]
    assert "leave it out" in run(address, "--warm", code=2)
