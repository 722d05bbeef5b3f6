"""The store's file: what is written lands whole, what is no store is refused, damage is found and named."""

import random
import shutil
import sqlite3
import subprocess
import sys
import textwrap
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from pathlib import Path
from threading import Barrier, Event

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared_context import errors
from shared_context.config import TreeConfig
from shared_context.errors import StoreUnavailableError
from shared_context.model.tokenization import TokenizedText
from shared_context.store import format as file_format
from shared_context.store import sqlite_file
from shared_context.store.database import Database
from shared_context.store.leaf_words import LeafWords
from shared_context.store.line_rows import Entry
from shared_context.store.log import lost_changes, running_checksum
from shared_context.store.node_data import NodeData, NodeShape, StoredText
from shared_context.store.sqlite_file import FILE, check_files, is_vacant

META = {"about": b"{}", "codec": b"-"}
CODE, DIMENSION = 4, 6
SHAPE = NodeShape(TreeConfig(chunk_size=1024, height=6), CODE, DIMENSION, 1_000_000)
OWN = 1
"""The key of the store's own namespace."""


def nodes(tokens: int, seed: int) -> NodeData:
    random = np.random.default_rng(seed)
    return NodeData(
        random.integers(-127, 128, (tokens, CODE), dtype=np.int8),
        random.random(tokens).astype(np.float16),
        random.random((SHAPE.rows("embeddings", tokens), DIMENSION), dtype=np.float32),
        LeafWords.by_chunk(text(tokens).text, text(tokens).tokens, 16, 1024),
    )


def text(tokens: int) -> StoredText:
    ids = np.arange(tokens, dtype=np.int32) + 70_000
    return StoredText("é\r\n" * tokens, TokenizedText(ids, np.arange(tokens + 1, dtype=np.int64) * 3))


def parts(tokens: int, seed: int = 0) -> list:
    return [(bytes([i % 256] * 20), part) for i, part in enumerate(SHAPE.split(text(tokens), nodes(tokens, seed)))]


def insert(store: Database, id: str, tokens: int = 100, seed: int = 0) -> int:
    with store.transaction():
        return store.insert(OWN, Entry("document", id, {"id": id}), parts(tokens, seed))


def read_everything(folder: Path) -> dict[str, int]:
    """Tokens of every document, all columns of which have been read."""
    store = Database(folder)
    try:
        with store.snapshot():
            found = {}
            for key, entry in store.catalogue(OWN).items():
                found[entry.id] = len(store.document(key).tokens)
                store.nodes(key, SHAPE)
                store.get_meta("about")
            return found
    finally:
        store.close()


@pytest.fixture
def folder(tmp_path) -> Path:
    """A store with two documents, closed."""
    store = Database(tmp_path / "store", META)
    insert(store, "one", 100)
    insert(store, "two", 3000)
    store.close()
    return tmp_path / "store"


def test_a_document_comes_back_as_it_was_written(tmp_path):
    for place in (None, tmp_path / "store"):
        store = Database(place, META)
        key = insert(store, "one", 37, seed=3)
        with store.snapshot():
            assert store.catalogue(OWN) == {key: Entry("document", "one", {"id": "one"})}
            stored, (ids, read), written = store.document(key), store.nodes(key, SHAPE), nodes(37, 3)
            assert stored.text == text(37).text
            np.testing.assert_array_equal(stored.tokens.ids, text(37).tokens.ids)
            np.testing.assert_array_equal(stored.tokens.bounds, text(37).tokens.bounds)
            np.testing.assert_array_equal(ids, text(37).tokens.ids)
            for name in ("codes", "scales", "embeddings"):
                np.testing.assert_array_equal(getattr(read, name), getattr(written, name))
        store.close()


def test_a_key_is_never_used_again(folder):
    store = Database(folder)
    with store.transaction():
        last = max(store.catalogue(OWN))
        store.remove(last)
    assert insert(store, "three") > last
    store.close()


def test_an_error_in_a_transaction_undoes_all_of_it(folder):
    store = Database(folder)
    with pytest.raises(KeyError), store.transaction():
        store.insert(OWN, Entry("document", "three", {}), parts(5))
        raise KeyError
    insert(store, "four")
    store.close()
    assert read_everything(folder) == {"one": 100, "two": 3000, "four": 100}


def test_a_snapshot_is_of_one_moment_whatever_others_write(folder):
    reader, writer = Database(folder), Database(folder)
    with reader.snapshot():
        before, version = reader.catalogue(OWN), reader.data_version()
        insert(writer, "three")
        with writer.transaction():
            writer.remove(min(before))
        assert reader.catalogue(OWN) == before
        assert reader.document(min(before)).text
    with reader.snapshot():
        assert reader.data_version() != version
        assert [entry.id for entry in reader.catalogue(OWN).values()] == ["two", "three"]
    reader.close()
    writer.close()


def test_a_copy_is_a_store_of_its_own(folder, tmp_path):
    for place in (None, tmp_path / "another"):
        store = Database(place, META)
        insert(store, "one", 50)
        target = tmp_path / f"copy of {place is None}"
        store.copy_to(target)
        insert(store, "two")
        store.close()
        assert read_everything(target) == {"one": 50}
        connection = sqlite3.connect(target / FILE)
        assert connection.execute("PRAGMA application_id").fetchone() == (file_format.APPLICATION_ID,)
        assert connection.execute("PRAGMA user_version").fetchone() == (file_format.VERSION,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        connection.close()


def test_many_that_make_one_store_at_the_same_time_get_one_and_the_same(tmp_path):
    threads = 6
    barrier = Barrier(threads)

    def make(folder: Path, number: int) -> bytes:
        barrier.wait()
        vacant = is_vacant(folder)
        store = Database(folder, {**META, "about": str(number).encode()}) if vacant else Database(folder)
        try:
            return store.get_meta("about")
        finally:
            store.close()

    for attempt in range(15):
        with ThreadPoolExecutor(threads) as pool:
            seen = set(pool.map(partial(make, tmp_path / str(attempt)), range(threads)))
        assert len(seen) == 1


def test_a_log_that_another_process_removes_while_a_store_is_opened_is_no_pipe(folder):
    ended = Event()

    def open_and_close() -> None:
        while not ended.is_set():
            Database(folder).close()

    with ThreadPoolExecutor(1) as pool:
        others = pool.submit(open_and_close)
        try:
            for _ in range(20_000):
                check_files(folder)
        finally:
            ended.set()
        others.result()


KILLED = """
    import sys
    from pathlib import Path
    import numpy as np
    from shared_context.model.tokenization import TokenizedText
    from shared_context.store.database import Database
    from shared_context.store.line_rows import Entry
    from shared_context.store.node_data import NodeData, Part, StoredText
    from shared_context.store.leaf_words import LeafWords

    store = Database(Path(sys.argv[1]))
    with store.transaction():
        for number in range(5):
            stored = StoredText("x" * 2_000_000, TokenizedText(np.zeros(9, "i4"), np.arange(10)))
            words = LeafWords.of(stored.text, stored.tokens, 16)
            nodes = NodeData(*(np.zeros((9, n), t) for n, t in ((4, "i1"), (1, "f2"), (6, "f4"))), words)
            store.insert(1, Entry("document", f"new {number}", {}), [(bytes(20), Part(stored, nodes))])
        print("half done", flush=True)
        sys.stdin.read()
"""


def test_a_process_killed_in_the_middle_of_a_change_leaves_nothing_of_it(folder):
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        assert process.stdout.readline() == "half done\n"
        process.kill()
    assert read_everything(folder) == {"one": 100, "two": 3000}
    store = Database(folder)
    insert(store, "three")
    store.close()
    assert set(read_everything(folder)) == {"one", "two", "three"}


# What is no store


def refused(folder: Path) -> str:
    with pytest.raises(errors.StoreFormatError) as caught:
        read_everything(folder)
    assert str(folder) in str(caught.value)
    return str(caught.value)


def test_a_missing_or_empty_folder_is_vacant_and_holds_no_store(tmp_path):
    for folder in (tmp_path, tmp_path / "missing" / "too"):
        assert is_vacant(folder)
        assert "no store" in refused(folder)


def test_a_file_is_no_store(tmp_path):
    file = tmp_path / "handbook.md"
    file.write_text("The handbook.")
    assert "is a file" in refused(file)
    assert file.read_text() == "The handbook."


def test_a_folder_with_other_things_is_no_store_and_stays_as_it_is(tmp_path):
    (tmp_path / "thesis.tex").write_text("x")
    assert "not a store" in refused(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]


def test_a_write_ahead_log_alone_is_no_store(folder):
    (folder / FILE).rename(folder / f"{FILE}-wal")
    assert "not a store" in refused(folder)


def test_another_program_s_database_is_left_alone(tmp_path):
    connection = sqlite3.connect(tmp_path / FILE)
    connection.execute("CREATE TABLE meta (key, value)")
    connection.close()
    before = (tmp_path / FILE).read_bytes()
    assert "another program" in refused(tmp_path)
    assert (tmp_path / FILE).read_bytes() == before


@pytest.mark.parametrize(("version", "mend"), [(file_format.VERSION + 6, "Upgrade"), (1, "anew from its documents")])
def test_another_format_is_refused_with_both_numbers_and_the_mend(folder, version, mend):
    connection = sqlite3.connect(folder / FILE)
    connection.execute(f"PRAGMA user_version = {version}")
    connection.close()
    message = refused(folder)
    assert f"format {version}" in message
    assert f"reads {file_format.VERSION}" in message
    assert mend in message


def test_a_path_below_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(StoreUnavailableError, match="cannot be used"):
        Database(tmp_path / "file" / "store", META)


# Damage


@pytest.mark.parametrize("left", [0, 1, 15, 16, 99, 100, 511, 512, 1000, 4095, 4096, 4097, 8192, 20_000, -4096, -1])
def test_a_file_that_was_cut_off_is_refused(folder, left):
    content = (folder / FILE).read_bytes()
    (folder / FILE).write_bytes(content[:left])
    message = refused(folder)
    assert "cut off" in message or "damaged" in message


@pytest.mark.parametrize("table", ["sqlite_master", "documents"])
def test_a_page_of_garbage_is_refused(folder, table):
    connection = sqlite3.connect(folder / FILE)
    pages = dict(connection.execute("SELECT name, rootpage FROM sqlite_master"))
    connection.close()
    content = bytearray((folder / FILE).read_bytes())
    first = (pages.get(table, 1) - 1) * 4096
    content[first : first + 40] = b"\xa5" * 40
    (folder / FILE).write_bytes(content)
    assert "damaged" in refused(folder)


@pytest.mark.parametrize(
    "damage",
    [
        "documents SET metadata = '{\"id\": '",
        'documents SET metadata = \'{"id": "tvo"}\'',
        "documents SET metadata = CAST(x'7bff' AS TEXT)",
        "documents SET id = 'tvo' WHERE id = 'two'",
        "documents SET parts = 2",
        "parts SET text = CAST(x'c3' AS TEXT)",
        "parts SET text = replace(text, 'é', 'e')",
        "parts SET ids = x'000000'",
        "parts SET codes = x'000000'",
        "parts SET scales = zeroblob(length(scales))",
        "parts SET embeddings = 7",
        "parts SET bounds = zeroblob(length(bounds))",
        "meta SET value = x'7b7d20' WHERE key = 'about' AND 1",
    ],
)
def test_a_row_that_was_changed_is_damage(folder, damage):
    connection = sqlite3.connect(folder / FILE)
    connection.execute(f"UPDATE {damage}{'' if 'WHERE' in damage else ' WHERE true'}")
    connection.commit()
    connection.close()
    assert "damaged" in refused(folder)


@pytest.mark.parametrize("table", ["documents", "parts"])
def test_a_row_that_is_missing_is_damage(folder, table):
    connection = sqlite3.connect(folder / FILE)
    connection.execute(f"DELETE FROM {table} WHERE key = 1")
    connection.commit()
    connection.close()
    assert "missing" in refused(folder)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["scales", "embeddings"])
def test_numbers_that_are_none_are_damage_whatever_their_checksum(tmp_path, name, value):
    store = Database(tmp_path / "store", META)
    broken = replace(nodes(100, 0), **{name: np.full_like(getattr(nodes(100, 0), name), value)})
    with store.transaction():
        (part,) = SHAPE.split(text(100), broken)
        key = store.insert(OWN, Entry("document", "one", {}), [(bytes(20), part)])
    with store.snapshot(), pytest.raises(errors.StoreFormatError, match=f"'one': its {name} hold infinities or NaN"):
        store.nodes(key, SHAPE)
    store.close()


MADE = """
    import os, signal, sys
    from pathlib import Path
    from shared_context.store import database

    kill = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
    if sys.argv[2] == "linked":
        os.link = kill
    else:
        database.file_format.put_meta = kill
    database.Database(Path(sys.argv[1]), {"about": b"{}"})
"""


@pytest.mark.posix
@pytest.mark.parametrize("at", ["filled", "linked"])
def test_a_store_whose_making_was_cut_off_is_made_again(tmp_path, at):
    folder = tmp_path / "store"
    subprocess.run([sys.executable, "-c", textwrap.dedent(MADE), str(folder), at])
    assert list(folder.iterdir())
    assert is_vacant(folder)
    Database(folder, META).close()
    assert read_everything(folder) == {}


def test_a_last_page_that_was_cut_off_is_taken_from_the_log(folder, tmp_path):
    store = Database(folder)
    insert(store, "three")
    shutil.copytree(folder, tmp_path / "copy")
    with (tmp_path / "copy" / FILE).open("ab") as file:
        file.write(b"x" * 1000)
    assert read_everything(tmp_path / "copy") == {"one": 100, "two": 3000, "three": 100}
    store.close()


@pytest.mark.parametrize("at", [0.1, 0.3, 0.6, 0.999])
def test_what_recovery_of_a_damaged_log_drops_is_said(folder, tmp_path, caplog, at):
    store = Database(folder)
    for number in range(6):
        insert(store, f"new {number}", 300)
    copy = shutil.copytree(folder, tmp_path / "copy")
    log = bytearray((copy / f"{FILE}-wal").read_bytes())
    assert lost_changes(copy / f"{FILE}-wal") == 0
    log[int(at * len(log))] ^= 4
    (copy / f"{FILE}-wal").write_bytes(log)
    assert len(read_everything(copy)) < 8
    assert "lost up to" in caplog.text
    store.close()


def test_a_last_change_whose_mark_in_the_log_is_damaged_is_said_to_be_lost(folder, tmp_path, caplog):
    store = Database(folder)
    for number in range(3):
        insert(store, f"new {number}", 300)
    copy = shutil.copytree(folder, tmp_path / "copy")
    log, page = bytearray((copy / f"{FILE}-wal").read_bytes()), 4096
    frames = range(32, len(log), 24 + page)
    log[frames[-1] : frames[-1] + 24] = bytes(24)
    (copy / f"{FILE}-wal").write_bytes(log)
    assert len(read_everything(copy)) < 5
    assert "lost up to 1 change" in caplog.text
    store.close()


@given(st.lists(st.integers(0, 2**32 - 1), min_size=2, max_size=40), st.tuples(*[st.integers(0, 2**32 - 1)] * 2))
def test_the_log_s_checksum_is_the_one_of_its_definition(words, before):
    words = words[: len(words) // 2 * 2]
    first, second = before
    for x, y in zip(words[::2], words[1::2], strict=True):
        first = (first + x + second) % 2**32
        second = (second + y + first) % 2**32
    assert running_checksum(np.array(words, np.uint32), before) == (first, second)


def test_a_log_that_was_cut_off_loses_no_change_that_came_before(folder, tmp_path):
    store = Database(folder)
    insert(store, "three")
    log = (folder / f"{FILE}-wal").stat().st_size
    insert(store, "four")
    for left in (0, 100, log, log + 500):
        copy = tmp_path / str(left)
        shutil.copytree(folder, copy)
        with (copy / f"{FILE}-wal").open("rb+") as file:
            file.truncate(left)
        expected = {"one", "two", "three"} if left >= log else {"one", "two"}
        assert set(read_everything(copy)) == expected
    store.close()


def test_meta_that_is_missing_is_damage(folder):
    store = Database(folder)
    with pytest.raises(errors.StoreFormatError, match="its colour is missing"):
        store.get_meta("colour")
    store.close()


# What may pass


def test_a_file_that_another_process_writes_to_for_too_long_is_busy(folder, monkeypatch):
    monkeypatch.setattr(sqlite_file, "BUSY_SECONDS", 0.1)
    store = Database(folder)
    blocker = sqlite3.connect(folder / FILE, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreUnavailableError, match="locked.*Another process"):
        insert(store, "three")
    with store.snapshot():
        assert len(store.catalogue(OWN)) == 2
    blocker.execute("ROLLBACK")
    blocker.close()
    insert(store, "three")
    store.close()
    assert set(read_everything(folder)) == {"one", "two", "three"}


@pytest.mark.posix
def test_a_full_disk_stores_nothing_of_the_change_and_loses_nothing(folder):
    code = """
        import resource, sys
        from pathlib import Path
        import numpy as np
        from shared_context import errors
        from shared_context.model.tokenization import TokenizedText
        from shared_context.errors import StoreUnavailableError
        from shared_context.store.database import Database
        from shared_context.store.line_rows import Entry
        from shared_context.store.node_data import NodeData, Part, StoredText
        from shared_context.store.leaf_words import LeafWords

        def insert(tokens):
            stored = StoredText("x" * tokens, TokenizedText(np.zeros(tokens, "i4"), np.arange(tokens + 1)))
            words = LeafWords.of(stored.text, stored.tokens, 16)
            nodes = NodeData(*(np.zeros((tokens, n), t) for n, t in ((4, "i1"), (1, "f2"), (6, "f4"))), words)
            with store.transaction():
                store.insert(1, Entry("document", f"new {tokens}", {}), [(bytes(20), Part(stored, nodes))])

        store = Database(Path(sys.argv[1]))
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (500_000, limit[1]))
        try:
            insert(100_000)
        except StoreUnavailableError as error:
            print(error)
        insert(10)
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
        insert(200_000)
        store.close()
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code), str(folder)], capture_output=True, text=True, check=True
    )
    assert "Free some space" in done.stdout
    store = Database(folder)
    with store.snapshot():
        assert [entry.id for entry in store.catalogue(OWN).values()] == ["one", "two", "new 10", "new 200000"]
    store.close()


def test_nothing_that_was_deleted_is_in_the_file_once_it_was_made_anew(tmp_path):
    drawn, store = random.Random(2), Database(tmp_path, META)
    there: dict[int, list[str]] = {}
    gone: list[str] = []
    for _ in range(60):
        with store.transaction():
            for _ in range(drawn.choice([1, 2, 12])):
                if there and drawn.random() < 0.45:
                    key = drawn.choice(list(there))
                    store.clear_messages(OWN, there[key][0])
                    gone += [*there.pop(key), *(digest.hex() for digest in store.remove(key))]
                    continue
                id, metadata, message = (
                    f"{kind}{drawn.getrandbits(48):012x}" for kind in ("id", "metadata", "message")
                )
                tokens = drawn.choice([1, 5, 30])
                chunk = SHAPE.split(text(tokens), nodes(tokens, 0))
                entry = Entry("document", id, {"of": metadata, "more": "x" * drawn.choice([0, 20, 200])})
                key = store.insert(OWN, entry, [(drawn.randbytes(20), part) for part in chunk])
                store.add_message(OWN, id, {"role": "user", "content": message}, 1)
                there[key] = [id, metadata, message]
    store.compact()
    kept = b"".join(path.read_bytes() for path in tmp_path.iterdir() if not path.name.endswith("-shm"))
    assert [
        value for value in gone if value.encode() in kept or (len(value) == 40 and bytes.fromhex(value) in kept)
    ] == []
    assert all(value.encode() in kept for values in there.values() for value in values)
    store.close()
