"""Earlier snapshots are removed, and nothing that a snapshot needs, or one that is being published."""

import json
import os
import time
from pathlib import Path

import pytest

from shared_context import SharedLLMContextStore
from shared_context.cli.main import app
from shared_context.errors import ConfigError, SnapshotNotFoundError, StoreFormatError, StoreUnavailableError
from shared_context.remote import publishing
from shared_context.remote.pruning import GRACE_SECONDS, prune
from shared_context.remote.publishing import push
from shared_context.remote.snapshot import manifest_name


@pytest.fixture(scope="module")
def small(make_small_model):
    return make_small_model()


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("SHARED_CONTEXT_HOME", str(tmp_path / "home"))


@pytest.fixture
def bucket(tmp_path) -> Path:
    return tmp_path / "bucket" / "name"


@pytest.fixture
def folder(small, bucket, tmp_path) -> Path:
    """A store of which three states are published."""
    for number in range(3):
        add(small, tmp_path / "store", f"d{number}")
        push(tmp_path / "store", bucket.as_uri(), kv=True)
    return tmp_path / "store"


def add(small, folder: Path, id: str) -> None:
    with SharedLLMContextStore(small, folder, embedder=None) as store:
        store.add(f"The {id} is painted every spring before the boats go out.", id=id)
        store.warm()


def age(bucket: Path, seconds: float = 2 * GRACE_SECONDS) -> None:
    for path in bucket.rglob("*"):
        if path.is_file():
            os.utime(path, (time.time() - seconds,) * 2)


def objects(bucket: Path) -> set[str]:
    return {path.name for path in (bucket / "objects").iterdir()}


def test_the_last_ones_stay_and_can_be_read(small, folder, bucket):
    age(bucket)
    before = objects(bucket)
    pruned = prune(bucket.as_uri(), keep=2)
    assert (pruned.snapshots, pruned.kept) == ((1,), (2, 3))
    assert pruned.objects == len(before - objects(bucket)) > 0
    with (
        SharedLLMContextStore(small, bucket.as_uri()) as last,
        SharedLLMContextStore(small, f"{bucket.as_uri()}@2") as earlier,
    ):
        assert (last.ids(), earlier.ids()) == (["d0", "d1", "d2"], ["d0", "d1"])
        assert last.select("Who paints?", budget=64).key_values() is not None
    with pytest.raises(SnapshotNotFoundError, match="no snapshot 1"):
        SharedLLMContextStore(small, f"{bucket.as_uri()}@1")
    assert prune(bucket.as_uri(), keep=2).objects == 0


def test_what_is_young_stays_for_the_next_time(folder, bucket):
    before = objects(bucket)
    assert prune(bucket.as_uri(), keep=1).objects == 0
    assert objects(bucket) == before
    age(bucket)
    assert prune(bucket.as_uri(), keep=1).objects > 0


def test_nothing_is_pruned_under_one_who_publishes(small, folder, bucket, monkeypatch):
    """Old objects without a snapshot, as of a push that was cut off, and a pruner right before the manifest."""
    add(small, folder, "late")
    monkeypatch.setattr(publishing.Address, "create", lambda *_: (_ for _ in ()).throw(StoreUnavailableError("cut")))
    with pytest.raises(StoreUnavailableError, match="cut"):
        push(folder, bucket.as_uri())
    monkeypatch.undo()
    age(bucket)
    create = publishing.Address.create

    def create_after_pruning(at, name, content):
        prune(bucket.as_uri(), keep=1)
        return create(at, name, content)

    monkeypatch.setattr(publishing.Address, "create", create_after_pruning)
    assert push(folder, bucket.as_uri()).number == 4
    with SharedLLMContextStore(small, bucket.as_uri()) as store:
        assert "late" in store and store.select("Who paints?", budget=64).nodes


def test_where_one_that_stays_is_damaged_nothing_is_removed(folder, bucket):
    age(bucket)
    (bucket / manifest_name(2)).write_text("{}")
    before = objects(bucket)
    with pytest.raises(StoreFormatError, match="Nothing was pruned: snapshot 2"):
        prune(bucket.as_uri(), keep=2)
    assert objects(bucket) == before and len(list((bucket / "snapshots").iterdir())) == 3
    assert prune(bucket.as_uri(), keep=1).snapshots == (1, 2)


def test_wrong_arguments_are_named(folder, bucket):
    with pytest.raises(ConfigError, match="keep=0"):
        prune(bucket.as_uri(), keep=0)
    with pytest.raises(StoreUnavailableError, match="names one snapshot"):
        prune(f"{bucket.as_uri()}@2", keep=1)


def test_the_command_says_what_it_removed(folder, bucket, run_command):
    age(bucket)
    assert run_command("prune", bucket.as_uri(), "--keep", "1").startswith("2 snapshots and ")
    assert json.loads(run_command("prune", bucket.as_uri(), "--keep", "1", "--json"))["kept"] == [3]


@pytest.fixture
def run_command():
    from typer.testing import CliRunner

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(app, arguments)
        assert result.exit_code == 0, result.output
        return result.output

    return run
