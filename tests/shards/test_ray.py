"""Shards in Ray actors: the same selections, from other processes that may die or be late."""

import os
import signal
from functools import partial

import pytest

from shared_context import Document, SharedLLMContextStore
from shared_context.errors import ShardUnavailableError
from shared_context.remote.publishing import push
from shared_context.shards import ShardedContextStore

ray = pytest.importorskip("ray")

from shared_context.shards.ray_workers import RayWorkers  # noqa: E402

pytestmark = [pytest.mark.posix, pytest.mark.slow]  # every process loads torch

DOCUMENTS = [
    Document(f"The keeper of lamp {number} paints boat {number * 3} and sleeps.", f"d{number}", {"lamp": number})
    for number in range(12)
]


@pytest.fixture(scope="module", autouse=True)
def cluster():
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    yield
    ray.shutdown()


@pytest.fixture(scope="module")
def small(make_small_model):
    return make_small_model()


@pytest.fixture(scope="module")
def folder(small, tmp_path_factory):
    folder = tmp_path_factory.mktemp("stores") / "sharded"
    with ShardedContextStore.create(small, folder, 2, embedder=None) as store:
        store.add(DOCUMENTS)
    return folder


def workers(**options):
    return partial(RayWorkers, num_cpus=0.1, **options)


def process_of(store: ShardedContextStore, number: int) -> int:
    actor = store._crew._workers._actors[number]
    return ray.get(actor.__ray_call__.remote(lambda shard: os.getpid()))


def test_actors_select_what_one_store_selects_also_after_one_was_killed(small, folder, tmp_path):
    with (
        ShardedContextStore(small, folder, workers=workers()) as store,
        SharedLLMContextStore(small, tmp_path / "one", embedder=None) as one,
    ):
        of_id = {document.id: document for document in DOCUMENTS}
        one.add([of_id[id] for id in store.ids()])
        for killed in (False, True):
            if killed:
                os.kill(process_of(store, 1), signal.SIGKILL)
            for question in ("Who paints boat 9?", "lamp 7"):
                found, expected = (each.select(question, budget=64) for each in (store, one))
                assert [(n.doc_id, n.start, n.end) for n in found.nodes] == [
                    (n.doc_id, n.start, n.end) for n in expected.nodes
                ]
                assert found.missing_shards == ()


def test_a_dead_shard_fails_or_is_left_out(small, folder):
    for missing in ("raise", "answer"):
        with ShardedContextStore(small, folder, workers=workers(restarts=0), missing=missing) as store:
            os.kill(process_of(store, 0), signal.SIGKILL)
            if missing == "raise":
                with pytest.raises(ShardUnavailableError, match="Shard 0 of 2"):
                    store.select("Who sleeps?")
            else:
                selection = store.select("Who sleeps?", budget=2000, floor=0.0)
                assert selection.missing_shards == ("shard-000",)
                assert 0 < len(selection.doc_ids) < len(DOCUMENTS)


def test_so_is_a_late_one(small, folder):
    with ShardedContextStore(small, folder, workers=workers(timeout=3.0), missing="answer") as store:
        os.kill(process_of(store, 1), signal.SIGSTOP)
        assert store.select("Who sleeps?").missing_shards == ("shard-001",)


def test_actors_fetch_what_is_published(small, folder, tmp_path, monkeypatch):
    monkeypatch.setenv("SHARED_CONTEXT_HOME", str(tmp_path / "home"))
    address = (tmp_path / "bucket" / "name").as_uri()
    push(folder, address)
    there = workers(runtime_env={"env_vars": {"SHARED_CONTEXT_HOME": str(tmp_path / "home of actors")}})
    with ShardedContextStore(small, address, workers=there) as store:
        assert store.get("d3").text == DOCUMENTS[3].text
        assert store.retrieve("boat 9", 1, policy="lexical")[0].doc_id == "d3"
    assert not list((tmp_path / "home").rglob("store.sqlite"))
    assert len(list((tmp_path / "home of actors").rglob("store.sqlite"))) == 2
