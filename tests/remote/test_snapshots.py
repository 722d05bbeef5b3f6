"""Stores in object storage: published whole or not at all, and read as they were published."""

import json
import os
import random
import signal
import threading
import time
from pathlib import Path

import pytest

from shared_context import SharedLLMContextStore
from shared_context.errors import (
    ConfigError,
    ModelMismatchError,
    SnapshotConflictError,
    SnapshotNotFoundError,
    StoreFormatError,
    StoreUnavailableError,
)
from shared_context.remote.address import Address
from shared_context.remote.fetching import pull
from shared_context.remote.publishing import push
from shared_context.remote.snapshot import manifest_name

TEXTS = {
    "orchard": "The orchard has ninety pear trees. They are pruned in February, before the sap rises.",
    "mill": "The mill grinds rye on Tuesdays. Its stone was cut in a quarry near the river.",
    "kiln": "The kiln reaches 1,180 degrees in nine hours and is opened on the third day.",
}
KILLS = 20
QUESTION = "When are the pear trees pruned?"


@pytest.fixture(scope="module")
def small(make_small_model):
    return make_small_model()


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("SHARED_CONTEXT_HOME", str(tmp_path / "home"))
    return tmp_path / "home" / "snapshots"


@pytest.fixture
def folder(small, tmp_path) -> Path:
    with SharedLLMContextStore(small, tmp_path / "store", embedder=None) as store:
        for id, text in TEXTS.items():
            store.add(text, id=id)
    return tmp_path / "store"


@pytest.fixture
def address(tmp_path) -> str:
    return (tmp_path / "bucket" / "name").as_uri()


def add(small, folder: Path, id: str, text: str = "The ferry crosses at noon.") -> None:
    with SharedLLMContextStore(small, folder) as store:
        store.add(text, id=id)


def objects(address: str) -> list[Path]:
    return sorted(Path(address.removeprefix("file://"), "objects").iterdir())


def test_a_published_store_answers_as_the_one_in_the_folder(small, folder, address):
    push(folder, address)
    with SharedLLMContextStore(small, folder) as here, SharedLLMContextStore(small, address) as there:
        assert there.ids() == here.ids()
        assert there.get("mill") == here.get("mill")
        assert there.select(QUESTION, budget=64).nodes == here.select(QUESTION, budget=64).nodes
        assert there.place == there.stats()["path"] == f"{address}@1"


def test_it_cannot_be_changed(small, folder, address):
    push(folder, address)
    with SharedLLMContextStore(small, address) as store:
        with pytest.raises(StoreUnavailableError, match="reading only"):
            store.add("Nothing.", id="new")
        with pytest.raises(StoreUnavailableError, match="reading only"):
            store.delete("mill")
        assert len(store) == len(TEXTS)


def test_what_was_published_stays_as_it_was(small, folder, address):
    push(folder, address)
    with SharedLLMContextStore(small, address) as store:
        add(small, folder, "ferry")
        assert push(folder, address).number == 2
        assert "ferry" not in store
    with SharedLLMContextStore(small, address) as last, SharedLLMContextStore(small, f"{address}@1") as first:
        assert "ferry" in last and "ferry" not in first


def test_publishing_twice_publishes_once(folder, address):
    first = push(folder, address)
    before = objects(address)
    assert push(folder, address) == first
    assert objects(address) == before


def test_a_pulled_store_is_one_like_any_other(small, folder, address, tmp_path):
    push(folder, address)
    assert pull(address, tmp_path / "pulled").documents == len(TEXTS)
    add(small, tmp_path / "pulled", "ferry")
    assert push(tmp_path / "pulled", address).number == 2  # on top of the snapshot that it comes from
    with SharedLLMContextStore(small, address) as store:
        assert store.ids() == [*TEXTS, "ferry"]


def test_a_folder_that_holds_something_is_left_alone(folder, address, tmp_path):
    push(folder, address)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(StoreFormatError, match="holds something already"):
        pull(address, tmp_path / "mine")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["notes.txt"]


def test_who_did_not_see_the_last_snapshot_is_refused(small, folder, address, tmp_path):
    push(folder, address)
    pull(address, tmp_path / "other")
    add(small, tmp_path / "other", "theirs")
    push(tmp_path / "other", address)
    add(small, folder, "ours")
    with pytest.raises(SnapshotConflictError, match=r"snapshot 2 .* since snapshot 1.*--replace"):
        push(folder, address)
    with SharedLLMContextStore(small, address) as store:
        assert "theirs" in store and "ours" not in store
    assert push(folder, address, replace=True).number == 3
    with SharedLLMContextStore(small, f"{address}@2") as store:
        assert "theirs" in store


def test_who_was_cut_off_behind_the_manifest_goes_on_from_there(small, folder, address, monkeypatch):
    push(folder, address)
    add(small, folder, "ferry")
    create = Address.create

    def create_and_die(*arguments):
        create(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Address, "create", create_and_die)
        with pytest.raises(KeyboardInterrupt):
            push(folder, address)
    add(small, folder, "second ferry")
    assert push(folder, address).number == 3
    with SharedLLMContextStore(small, address) as store:
        assert store.ids() == [*TEXTS, "ferry", "second ferry"]


@pytest.mark.slow
@pytest.mark.posix
def test_killed_publishers_leave_whole_snapshots_and_lose_nothing(small, folder, address):
    rng, acknowledged = random.Random(0), len(TEXTS)
    began = time.monotonic()
    push(folder, address)
    usual = time.monotonic() - began
    for number in range(KILLS):
        add(small, folder, f"ferry {number}")
        if (publisher := os.fork()) == 0:
            push(folder, address)
            os._exit(0)
        time.sleep(rng.uniform(0, 1.5 * usual))
        os.kill(publisher, signal.SIGKILL)
        _, status = os.waitpid(publisher, 0)
        if status == 0:
            acknowledged = len(TEXTS) + number + 1
        with SharedLLMContextStore(small, address) as store:
            assert acknowledged <= len(store) <= len(TEXTS) + number + 1
            assert store.ids() == [*TEXTS, *(f"ferry {n}" for n in range(len(store) - len(TEXTS)))]
            acknowledged = len(store)
    push(folder, address)
    with SharedLLMContextStore(small, address) as store:
        assert len(store) == len(TEXTS) + KILLS


def test_of_several_that_publish_at_once_one_succeeds(small, folder, address, tmp_path):
    push(folder, address)
    others = [tmp_path / f"other-{number}" for number in range(3)]
    for number, other in enumerate(others):
        pull(address, other)
        add(small, other, f"of-{number}")
    outcomes: dict[int, object] = {}
    start = threading.Barrier(len(others))

    def publish(number: int) -> None:
        start.wait()
        try:
            outcomes[number] = push(others[number], address).number
        except SnapshotConflictError as error:
            outcomes[number] = error

    threads = [threading.Thread(target=publish, args=(number,)) for number in range(len(others))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (winner,) = (number for number, outcome in outcomes.items() if outcome == 2)
    assert all(isinstance(outcome, SnapshotConflictError) for n, outcome in outcomes.items() if n != winner)
    with SharedLLMContextStore(small, address) as store:
        assert store.ids() == [*TEXTS, f"of-{winner}"]


def test_nothing_is_visible_of_what_was_cut_off(small, folder, address, monkeypatch):
    push(folder, address)
    add(small, folder, "ferry")

    def cut_off(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Address, "create", cut_off)
        with pytest.raises(KeyboardInterrupt):
            push(folder, address)
    with SharedLLMContextStore(small, address) as store:
        assert "ferry" not in store
    push(folder, address)
    with SharedLLMContextStore(small, address) as store:
        assert "ferry" in store


@pytest.mark.parametrize("damage", [lambda content: content[:-5], lambda content: content[:-1] + b"?"])
def test_a_truncated_or_exchanged_object_is_named(small, folder, address, damage, cache):
    push(folder, address)
    for path in objects(address):
        path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(StoreFormatError, match=r"the object [0-9a-f]{64} is damaged or another one"):
        SharedLLMContextStore(small, address)
    assert not list(cache.rglob("store.sqlite"))


def test_so_is_a_missing_one_which_publishing_again_brings_back(small, folder, address):
    push(folder, address)
    for path in objects(address):
        path.unlink()
    with pytest.raises(StoreFormatError, match="is missing"):
        SharedLLMContextStore(small, address)
    push(folder, address)
    with SharedLLMContextStore(small, address) as store:
        assert len(store) == len(TEXTS)


def test_a_damaged_manifest_is_named_and_the_one_before_stays_readable(small, folder, address):
    push(folder, address)
    add(small, folder, "ferry")
    push(folder, address)
    manifest = Path(address.removeprefix("file://"), manifest_name(2))
    values = json.loads(manifest.read_bytes())
    for content in (manifest.read_bytes()[:-20], json.dumps({**values, "stores": []}).encode(), b"[]"):
        manifest.write_bytes(content)
        with pytest.raises(StoreFormatError, match=r"000000002.json is damaged .*ADDRESS@NUMBER"):
            SharedLLMContextStore(small, address)
    manifest.write_bytes(json.dumps({**values, "format": 99}).encode())
    with pytest.raises(StoreFormatError, match="format 99.*Upgrade"):
        SharedLLMContextStore(small, address)
    with SharedLLMContextStore(small, f"{address}@1") as store:
        assert store.ids() == list(TEXTS)


def test_the_cache_is_checked_and_mended(small, folder, address, cache, caplog):
    push(folder, address)
    SharedLLMContextStore(small, address).close()
    (file,) = cache.rglob("store.sqlite")
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2] + b"x" + content[len(content) // 2 + 1 :])
    with SharedLLMContextStore(small, address) as store:
        assert store.ids() == list(TEXTS)
    assert "fetched anew" in caplog.text
    assert file.read_bytes() == content


def test_what_is_in_the_cache_is_not_fetched_again(small, folder, address):
    push(folder, address)
    SharedLLMContextStore(small, address).close()
    for path in objects(address):
        path.unlink()
    with SharedLLMContextStore(small, address) as store:
        assert len(store) == len(TEXTS)


def test_the_cache_has_a_limit_and_keeps_what_is_open(small, folder, address, cache, monkeypatch):
    push(folder, address)
    add(small, folder, "ferry")
    push(folder, address)
    monkeypatch.setenv("SHARED_CONTEXT_SNAPSHOT_BYTES", "1")
    with SharedLLMContextStore(small, f"{address}@1") as first:
        with SharedLLMContextStore(small, f"{address}@2"):
            assert len(list(cache.rglob("store.sqlite"))) == 2
            assert first.get("mill").text == TEXTS["mill"]
        add(small, folder, "second ferry")
        push(folder, address)
        with SharedLLMContextStore(small, address):
            assert {path.parent.name[-1] for path in cache.rglob("store.sqlite")} == {"1", "3"}
    monkeypatch.setenv("SHARED_CONTEXT_SNAPSHOT_BYTES", "much")
    with pytest.raises(ConfigError, match="SHARED_CONTEXT_SNAPSHOT_BYTES='much'"):
        SharedLLMContextStore(small, address)


def test_published_keys_and_values_are_not_computed_again(small, folder, address, monkeypatch):
    with SharedLLMContextStore(small, folder) as store:
        store.warm()
        expected = store.select(QUESTION, budget=64).key_values()
    assert push(folder, address, kv=True).stores[0].kv_bytes
    with SharedLLMContextStore(small, address) as store:
        monkeypatch.setattr(small.compressor, "encode", None)  # anything that computes fails
        found = store.select(QUESTION, budget=64).key_values()
    assert all(bool((a.data == b.data).all()) for a, b in zip(found.chunks, expected.chunks, strict=True))


def test_damaged_ones_are_computed(small, folder, address, caplog):
    with SharedLLMContextStore(small, folder) as store:
        store.warm()
    push(folder, address)
    before = set(objects(address))
    push(folder, address, kv=True)
    for path in set(objects(address)) - before:
        if path.read_bytes()[:1] != b"{":  # the list of them is JSON
            path.write_bytes(b"damaged")
    with SharedLLMContextStore(small, address) as store:
        assert store.select(QUESTION, budget=64).key_values().chunks
    assert "computed instead" in caplog.text


def test_another_model_is_refused_before_anything_is_fetched(make_small_model, folder, address, cache):
    push(folder, address)
    with pytest.raises(ModelMismatchError, match="small-0.*small-1"):
        SharedLLMContextStore(make_small_model(seed=1), address)
    assert not list(cache.rglob("store.sqlite"))


def test_addresses_that_lead_nowhere_are_named(small, folder, address, tmp_path):
    with pytest.raises(SnapshotNotFoundError, match="Nothing is published.*push"):
        SharedLLMContextStore(small, address)
    push(folder, address)
    with pytest.raises(SnapshotNotFoundError, match="no snapshot 7 .*last ones are: 1"):
        SharedLLMContextStore(small, f"{address}@7")
    with pytest.raises(SnapshotConflictError, match="names a snapshot"):
        push(folder, f"{address}@1")
    with pytest.raises(StoreUnavailableError, match="nosuch"):
        push(folder, "nosuch://bucket/name")
    with pytest.raises(ConfigError, match="is no address"):
        pull("bucket/name", tmp_path / "new")


def test_a_folder_is_no_store_to_publish(tmp_path, address):
    with pytest.raises(StoreFormatError, match="holds no store"):
        push(tmp_path / "nothing", address)
