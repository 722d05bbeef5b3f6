"""Publishing on S3, spoken by s3fs with a server on loopback that keeps to the protocol."""

import threading
from pathlib import Path

import pytest

from shared_context import SharedLLMContextStore
from shared_context.errors import SnapshotConflictError, SnapshotNotFoundError, StoreFormatError, StoreUnavailableError
from shared_context.remote import pruning
from shared_context.remote.address import Address
from shared_context.remote.fetching import pull
from shared_context.remote.publishing import push
from shared_context.remote.snapshot import find, numbers

pytest.importorskip("s3fs")
moto_server = pytest.importorskip("moto.server")


@pytest.fixture(scope="module")
def server():
    server = moto_server.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    yield server
    server.stop()


@pytest.fixture(autouse=True)
def client(server, tmp_path, monkeypatch):
    import boto3
    import s3fs

    host, port = server.get_host_and_port()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://{host}:{port}")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "someone")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("SHARED_CONTEXT_HOME", str(tmp_path / "home"))
    s3fs.S3FileSystem.clear_instance_cache()
    client = boto3.client("s3")
    client.create_bucket(Bucket="bucket")
    yield client
    for found in client.list_objects_v2(Bucket="bucket").get("Contents", ()):
        client.delete_object(Bucket="bucket", Key=found["Key"])
    s3fs.S3FileSystem.clear_instance_cache()


@pytest.fixture(scope="module")
def small(make_small_model):
    return make_small_model()


@pytest.fixture
def folder(small, tmp_path) -> Path:
    with SharedLLMContextStore(small, tmp_path / "store", embedder=None) as store:
        store.add("The lighthouse was painted white in spring.", id="lighthouse")
    return tmp_path / "store"


def test_a_store_is_published_read_pulled_and_published_again(small, folder, tmp_path):
    assert push(folder, "s3://bucket/name", kv=True).number == 1
    with SharedLLMContextStore(small, "s3://bucket/name") as store:
        assert store.retrieve("Who painted it?")[0].doc_id == "lighthouse"
    pull("s3://bucket/name", tmp_path / "pulled")
    with SharedLLMContextStore(small, tmp_path / "pulled") as store:
        store.add("The harbour freezes in January.", id="harbour")
    assert push(tmp_path / "pulled", "s3://bucket/name").number == 2
    with pytest.raises(SnapshotConflictError):
        with SharedLLMContextStore(small, folder) as store:
            store.add("Another one.", id="other")
        push(folder, "s3://bucket/name")
    assert numbers(Address("s3://bucket/name")) == [1, 2]


def test_of_several_that_create_an_object_at_once_one_succeeds():
    start, created = threading.Barrier(6), []

    def create(number: int) -> None:
        address = Address("s3://bucket/race")
        start.wait()
        if address.create("snapshots/000000001.json", b"%d" % number):
            created.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = created
    assert Address("s3://bucket/race").read("snapshots/000000001.json") == b"%d" % winner


def test_who_creates_again_what_is_there_already_has_succeeded():
    """A client asks again when an answer was lost: what it meets then is its own object."""
    address = Address("s3://bucket/again")
    assert address.create("snapshots/000000001.json", b"same")
    assert address.create("snapshots/000000001.json", b"same")
    assert not address.create("snapshots/000000001.json", b"other")


def test_objects_that_were_truncated_or_deleted_are_named(client, small, folder):
    push(folder, "s3://bucket/name")
    (piece,) = find(Address("s3://bucket/name")).stores[0].pieces
    client.put_object(Bucket="bucket", Key=f"name/objects/{piece}", Body=b"SQLite")
    with pytest.raises(StoreFormatError, match=f"the object {piece} is damaged"):
        SharedLLMContextStore(small, "s3://bucket/name")
    client.delete_object(Bucket="bucket", Key=f"name/objects/{piece}")
    with pytest.raises(StoreFormatError, match=f"the object {piece} is missing"):
        SharedLLMContextStore(small, "s3://bucket/name")


def test_a_bucket_that_is_not_there_is_named(small, folder):
    with pytest.raises(StoreUnavailableError, match="s3://elsewhere/name"):
        push(folder, "s3://elsewhere/name")
    with pytest.raises(SnapshotNotFoundError, match="s3://elsewhere/name"):
        SharedLLMContextStore(small, "s3://elsewhere/name")


def test_so_is_a_server_that_does_not_answer_or_credentials_that_are_missing(small, folder, monkeypatch):
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(StoreUnavailableError, match="s3://bucket/name cannot be used now"):
        SharedLLMContextStore(small, "s3://bucket/name")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    s3fs.S3FileSystem.clear_instance_cache()
    with pytest.raises(StoreUnavailableError, match="credentials"):
        push(folder, "s3://bucket/name")


def test_earlier_snapshots_are_pruned(small, folder, monkeypatch):
    push(folder, "s3://bucket/name")
    with SharedLLMContextStore(small, folder) as store:
        store.add("The keeper lives in the tower.", id="keeper")
    push(folder, "s3://bucket/name")
    assert pruning.prune("s3://bucket/name", keep=1).objects == 0  # they are young
    monkeypatch.setattr(pruning, "GRACE_SECONDS", -60)
    assert pruning.prune("s3://bucket/name", keep=1).objects == 1
    assert numbers(Address("s3://bucket/name")) == [2]
    with SharedLLMContextStore(small, "s3://bucket/name") as store:
        assert store.ids() == ["lighthouse", "keeper"]
