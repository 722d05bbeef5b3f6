"""One store under several threads and processes."""

import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from shared_context import Document, errors
from shared_context.store import store_file

QUERY = "When does the last ferry to Holm leave on Sundays?"
SELECT = f"""
nodes = store.select({QUERY!r}, budget=64).nodes
result = [[n.doc_id, n.start, n.end, n.text, n.level, n.ratio, round(n.score, 4)] for n in nodes]
"""


def shown(store) -> list[list]:
    nodes = store.select(QUERY, budget=64).nodes
    return [[n.doc_id, n.start, n.end, n.text, n.level, n.ratio, round(n.score, 4)] for n in nodes]


@pytest.fixture
def shared(filled, path, other):
    """The filled store, which the other process has opened as ``store``."""
    other.run(f"store = SharedLLMContextStore(model, {str(path)!r})")
    yield filled
    other.run("store.close()")


def test_another_process_selects_the_same(shared, other):
    assert other.run(SELECT) == shown(shared)
    assert other.run("result = [d.text for d in store]") == [d.text for d in shared]


def test_keys_and_values_that_another_process_computed_are_used(shared, other):
    other.run(f"store.warm(store.select({QUERY!r}, budget=64))")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shared.model.compressor, "encode", lambda chunks: pytest.fail("computed again"))
        shared.select(QUERY, budget=64).key_values()


def test_changes_of_another_process_are_seen_at_once(shared, other):
    assert other.run("result = store.ids()") == ["lamp", "ferry", "kitchen"]
    shared.add("The bakery opens at five.", id="bakery", metadata={"place": "inn"})
    assert other.run("result = [store.get('bakery').text, len(store)]") == ["The bakery opens at five.", 4]
    other.run("store.append('bakery', ' It closes at noon.')")
    assert shared.get("bakery").text == "The bakery opens at five. It closes at noon."
    assert shared.retrieve("When does the bakery close?", k=1)[0].doc_id == "bakery"
    other.run("store.update('lamp', metadata={'place': 'museum'})")
    assert shared.ids({"place": "museum"}) == ["lamp"]
    assert shared.get("lamp").metadata == {"place": "museum"}
    shared.update("ferry", "The ferry was sold.")
    assert other.run("result = store.get('ferry').text") == "The ferry was sold."
    other.run("store.delete(['bakery', 'lamp'])")
    assert shared.ids() == ["kitchen", "ferry"] == other.run("result = store.ids()")
    assert shown(shared) == other.run(SELECT)
    with pytest.raises(errors.DocumentNotFoundError):
        shared.get("bakery")


def test_who_may_only_read_sees_what_others_change(filled, path, open_store, monkeypatch):
    filled.close()
    with monkeypatch.context() as limited:
        limited.setattr(store_file, "is_writable", lambda folder: False)
        reader = open_store(path)
        assert "barge" not in reader
    for change, seen in (
        (lambda store: store.add("A barge lies at the quay.", id="barge"), lambda: "barge" in reader),
        (lambda store: store.update("barge", "The barge is gone."), lambda: "gone" in reader.get("barge").text),
        (lambda store: store.delete("barge"), lambda: "barge" not in reader),
    ):
        writer = open_store(path)
        change(writer)
        with monkeypatch.context() as limited:
            limited.setattr(store_file, "is_writable", lambda folder: False)
            assert seen()  # while the other one has it open
            writer.close()
            assert seen()


@pytest.mark.posix
def test_a_child_sees_what_its_parent_changed_behind_the_fork(filled):
    told, tell = os.pipe()
    if (child := os.fork()) == 0:
        missing = True
        try:
            os.read(told, 1)
            missing = "barge" not in filled
        finally:
            os._exit(missing)
    filled.add("A barge lies at the quay.", id="barge")
    os.write(tell, b".")
    assert os.waitpid(child, 0)[1] == 0


def test_a_conversation_of_two_processes_loses_no_message(shared, other):
    ours = shared.conversation("talk", recent_tokens=30)
    other.run("talk = store.conversation('talk', recent_tokens=30)")
    for number in range(6):
        ours.append("user", f"This is message number {number} of this process, about the lamp.")
        other.run(f"talk.append('assistant', 'This is reply number {number} of the other process.')")
    messages = other.run("result = talk.messages()")
    assert ours.messages() == messages
    assert len(messages) == 12
    recent = ours.recent()
    compressed = "".join(f"{m['role']}: {m['content']}\n" for m in messages[: -len(recent)])
    assert "".join(node.text for node in ours.select(None, ratio=1).nodes) == compressed


def test_two_processes_add_at_the_same_time(shared, other):
    count = 12
    other.start(f"for i in range({count}): store.add(f'Note {{i}} of the other process.', id=f'theirs {{i}}')")
    for i in range(count):
        shared.add(f"Note {i} of this process.", id=f"ours {i}")
    other.result()
    ids = {f"{whose} {i}" for whose in ("ours", "theirs") for i in range(count)} | {"lamp", "ferry", "kitchen"}
    assert set(shared.ids()) == ids
    assert shared.ids() == other.run("result = store.ids()")
    assert shown(shared) == other.run(SELECT)


def test_of_two_that_add_one_id_one_is_refused(shared, other):
    add = "\n".join(
        [
            "result = []",
            "for i in range(8):",
            "    try:",
            "        store.add('Theirs.', id=f'note {i}')",
            "        result.append(i)",
            "    except DuplicateDocumentError:",
            "        pass",
        ]
    )
    other.run("from shared_context.errors import DuplicateDocumentError")
    other.start(add)
    ours = []
    for i in range(8):
        try:
            shared.add("Ours.", id=f"note {i}")
            ours.append(i)
        except errors.DuplicateDocumentError:
            pass
    theirs = other.result()
    assert sorted(ours + theirs) == list(range(8))
    assert [shared.get(f"note {i}").text for i in range(8)] == ["Ours." if i in ours else "Theirs." for i in range(8)]


def test_a_document_that_is_deleted_while_it_is_updated_stays_deleted(filled, monkeypatch):
    ingest = filled._rooms.documents.ingest
    monkeypatch.setattr(filled._rooms.documents, "ingest", lambda *given: filled.delete("lamp") or ingest(*given))
    with pytest.raises(errors.DocumentNotFoundError):
        filled.update("lamp", "The lamp is new.")
    assert "lamp" not in filled


def test_metadata_that_change_while_the_text_is_updated_are_kept(filled, monkeypatch):
    ingest = filled._rooms.documents.ingest
    monkeypatch.setattr(
        filled._rooms.documents, "ingest", lambda *given: filled.update("lamp", metadata={"a": 1}) or ingest(*given)
    )
    filled.update("lamp", "The lamp is new.")
    assert filled.get("lamp") == Document("The lamp is new.", "lamp", {"a": 1})


def test_two_appends_at_the_same_time_both_land(filled, open_store, path):
    second = open_store(path)
    filled.add("Log.", id="log")

    def append(store, who):
        for i in range(5):
            store.append("log", f" {who}{i}.")

    with ThreadPoolExecutor(2) as pool:
        for future in [pool.submit(append, filled, "a"), pool.submit(append, second, "b")]:
            future.result()
    words = filled.get("log").text.split()
    assert sorted(words) == sorted(["Log.", *(f"{who}{i}." for who in "ab" for i in range(5))])
    assert second.get("log") == filled.get("log")


def test_threads_select_add_change_and_delete_at_once(filled):
    stop = threading.Event()

    def select() -> int:
        done = 0
        while not stop.is_set():
            selection = filled.select(QUERY, budget=64)
            assert 0 < selection.kv_entries <= 64
            assert "ferry" in selection.doc_ids
            assert filled.retrieve("Who lights the lamp?", k=2)
            for document in filled:
                assert document.text
            done += 1
        return done

    def change(number: int) -> None:
        for i in range(6):
            filled.add(f"Note {i} of thread {number} about the lamp.", id=f"{number}/{i}")
            filled.append(f"{number}/{i}", " And more of it.")
            filled.update(f"{number}/{i}", metadata={"thread": number})
            if i % 2:
                filled.delete(f"{number}/{i}")

    with ThreadPoolExecutor(5) as pool:
        readers = [pool.submit(select) for _ in range(2)]
        writers = [pool.submit(change, number) for number in range(3)]
        try:
            for writer in writers:
                writer.result()
        finally:
            stop.set()
        assert all(reader.result() > 0 for reader in readers)
    assert len(filled) == 3 + 3 * 3
    assert filled.ids({"thread": 1}) == ["1/0", "1/2", "1/4"] or set(filled.ids({"thread": 1})) == {"1/0", "1/2", "1/4"}


KILLED = """
    import sys
    from shared_context import Document, SharedLLMContextStore, SharedLLMModel
    model = SharedLLMModel.from_pretrained(adapter=None)
    store = SharedLLMContextStore(model, sys.argv[1])
    print("ready", flush=True)
    for batch in range(1000):
        store.add([Document(f"Note {i} of batch {batch}. " * 20, f"{batch}/{i}") for i in range(20)])
        print("added", batch, flush=True)
"""


@pytest.mark.slow
@pytest.mark.posix
def test_a_process_killed_while_it_adds_leaves_whole_batches(filled, open_store, path, documents):
    filled.close()
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(KILLED), str(path)], stdout=subprocess.PIPE, text=True
    )
    added = -1
    for line in process.stdout:
        if line.startswith("added"):
            added = int(line.split()[1])
            if added == 2:
                break
    time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    added = max([added, *(int(line.split()[1]) for line in process.stdout)])
    process.wait()
    process.stdout.close()
    again = open_store(path)
    ids = again.ids()
    batches = (len(ids) - 3) // 20
    assert ids == ["lamp", "ferry", "kitchen", *(f"{batch}/{i}" for batch in range(batches) for i in range(20))]
    assert batches in (added + 1, added + 2)  # killed between landing and saying so
    assert [again.get(d.id) for d in documents] == list(documents)
    assert again.retrieve("Which note is of batch 1?", k=1)
    again.add("Goes on.", id="more")
