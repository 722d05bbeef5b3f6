"""The index of words is checked whenever a store is opened, also after a writer that was killed."""

import os
import random
import signal
import sqlite3
from contextlib import closing

import pytest

from shared_context import Document, SharedLLMContextStore
from shared_context.store.sqlite_file import FILE
from shared_context.store.word_index import SCHEMA, LeafWords, WordIndex

VOCABULARY = [f"word{number}" for number in range(4000)]


def leaf_words(drawn: random.Random, leaves: int) -> LeafWords:
    rows = (" ".join(sorted(drawn.sample(VOCABULARY, drawn.randint(1, 20)))) for _ in range(leaves))
    return LeafWords("english", 32, list(rows))


@pytest.fixture
def connection():
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as opened:
        for statement in SCHEMA:
            opened.execute(statement)
        yield opened


@pytest.mark.parametrize("seed", range(4))
def test_the_checksum_that_is_carried_on_is_that_of_all_there_is(connection, seed):
    drawn = random.Random(seed)
    writers = [WordIndex(connection) for _ in range(2)]  # as two processes take turns
    writers[0].checksum.seal()
    there: dict[int, LeafWords] = {}
    last = 0
    for number in range(120):
        words = drawn.choice(writers)
        connection.execute("BEGIN")
        for _ in range(drawn.choice([1, 1, 1, 3])):
            last += 1
            there[last] = leaf_words(drawn, drawn.choice([1, 5, 40, 300 if number % 10 == 0 else 2]))
            words.add(1, last, there[last])
        if drawn.random() < 0.4:
            gone = drawn.choice(list(there))
            words.remove(1, gone, there.pop(gone))
            if drawn.random() < 0.5:
                words.merge()
        if drawn.random() < 0.2:
            words.move(drawn.choice(list(there)), last + 1000)
        if undone := drawn.random() < 0.1:
            before = words.checksum.stored()
            connection.execute("ROLLBACK")
            words.checksum.forget()
            assert words.checksum.stored() == before
            return_to = {key for (key,) in connection.execute("SELECT key FROM worded")}
            there = {key: value for key, value in there.items() if key in return_to}
        else:
            words.checksum.finish()
            connection.execute("COMMIT")
        assert words.checksum.stored() == words.checksum.total(), f"after change {number}, undone: {undone}"


def killed_writer(model, path):
    """Change a store in another process, which is killed behind its last change."""
    if (child := os.fork()) == 0:
        store = SharedLLMContextStore(model, path, embedder=None)
        store.add([Document(f"The heron number {n} stands by the weir.", f"heron {n}") for n in range(6)])
        store.delete("heron 2")
        store.append("heron 3", " It eats eels.")
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])


def test_the_index_of_a_killed_writer_is_known_to_be_whole(filled, model, path, open_store, caplog):
    filled.close()
    killed_writer(model, path)
    store = open_store(path)
    assert "index of words" not in caplog.text
    assert store.retrieve("eels", k=1, policy="lexical")[0].doc_id == "heron 3"


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE words_data SET block = zeroblob(length(block)) WHERE id > 10",
        "DELETE FROM words_idx",
        "DELETE FROM worded WHERE key = (SELECT MAX(key) FROM worded)",
    ],
)
def test_damage_behind_a_killed_writer_is_found_when_the_store_is_opened(
    filled, model, path, open_store, caplog, damage
):
    filled.close()
    killed_writer(model, path)
    with closing(sqlite3.connect(path / FILE, isolation_level=None)) as connection:
        connection.execute(damage)
    store = open_store(path)
    assert "index of words was damaged and has been made anew" in caplog.text
    assert store.retrieve("eels", k=1, policy="lexical")[0].doc_id == "heron 3"
    assert "heron 2" not in [passage.doc_id for passage in store.retrieve("weir", k=20, policy="lexical")]


def test_an_index_that_an_earlier_version_left_without_a_checksum_is_made_anew(filled, path, open_store, caplog):
    expected = [(p.doc_id, p.score) for p in filled.retrieve("ferry", k=3, policy="lexical")]
    filled.close()
    with closing(sqlite3.connect(path / FILE, isolation_level=None)) as connection:
        connection.execute("UPDATE word_checksum SET total = NULL")
    store = open_store(path)
    assert "left without a checksum" in caplog.text
    assert [(p.doc_id, p.score) for p in store.retrieve("ferry", k=3, policy="lexical")] == expected
    store.close()
    caplog.clear()
    open_store(path)
    assert "index of words" not in caplog.text
