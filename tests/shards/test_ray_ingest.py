"""Documents are stored by Ray actors: once each, whatever dies meanwhile."""

import os
import signal
import threading
import time
from functools import partial

import pytest

from shared_context import Document, SharedLLMModel
from shared_context.errors import ConfigError
from shared_context.shards import ShardedContextStore

ray = pytest.importorskip("ray")

from shared_context.shards.ray_ingest import documents_of, ingest  # noqa: E402

pytestmark = pytest.mark.slow  # every process loads torch

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
