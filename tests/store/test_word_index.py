"""The index of words finds what stands there, and is looked at whenever a store is opened."""

import os
import random
import signal
import sqlite3
from contextlib import closing

import pytest

from shared_context import Document, SharedLLMContextStore
from shared_context.store import format as file_format
from shared_context.store.check import check
from shared_context.store.leaf_words import LeafWords
from shared_context.store.sqlite_file import FILE
from shared_context.store.word_index import WordIndex

VOCABULARY = [f"word{number}" for number in range(1000)]


def leaf_words(drawn: random.Random, leaves: int) -> LeafWords:
    rows = (" ".join(sorted(drawn.sample(VOCABULARY, drawn.randint(1, 20)))) for _ in range(leaves))
    return LeafWords("english", 32, list(rows))


@pytest.fixture
def connection():
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as opened:
        file_format.create(opened)
        yield opened


@pytest.mark.parametrize("seed", range(2))
def test_what_is_found_is_what_stands_there_whatever_came_and_went(connection, seed):
    drawn = random.Random(seed)
    namespaces = [file_format.add_namespace(connection, name) for name in ("", "other")]
    writers = [WordIndex(connection) for _ in range(2)]  # as two processes take turns
    there: dict[int, tuple[int, LeafWords]] = {}
    last = 0
    for number in range(25):
        words = drawn.choice(writers)
        before = dict(there)
        connection.execute("BEGIN")
        for _ in range(drawn.choice([1, 1, 1, 3, 20])):
            last += drawn.choice([1, 1, 100])
            there[last] = (
                drawn.choice(namespaces),
                leaf_words(drawn, drawn.choice([1, 5, 40, 150 if number % 10 == 0 else 2])),
            )
            words.add(there[last][0], last, there[last][1])
        for gone in drawn.sample(list(there), min(len(there), drawn.choice([0, 0, 1, 30]))):
            namespace, of_gone = there.pop(gone)
            words.remove(namespace, gone, of_gone)
        if there and drawn.random() < 0.5:  # as text is added to the end of a document
            key = drawn.choice(list(there))
            namespace, old = there[key]
            kept, new = len(old.terms) - 1, leaf_words(drawn, 3)
            words.remove(namespace, key, old.leaves(kept, kept + 1), kept)
            if kept == 0:
                words.add(namespace, key, new)
            else:
                words.add(namespace, key, new, kept)
            there[key] = namespace, LeafWords("english", 32, [*old.terms[:kept], *new.terms])
        if drawn.random() < 0.1:
            connection.execute("ROLLBACK")
            words.undo()
            there = before
        else:
            words.write()
            connection.execute("COMMIT")
        assert words.is_whole(32), f"after change {number}"
    assert words.is_whole(32, thorough=True)
    for namespace in namespaces:
        for term in [*drawn.sample(VOCABULARY, 40), "word1 word2", "nowhere", ""]:
            expected = [
                (key, leaf)
                for key, (of, has) in sorted(there.items())
                for leaf, terms in enumerate(has.terms)
                if of == namespace and term and set(term.split()) <= set(terms.split())
            ]
            keys, leaves = writers[0].leaves_with(namespace, term)
            assert list(zip(keys.tolist(), leaves.tolist(), strict=True)) == expected
    for key, (namespace, has) in there.items():
        writers[0].remove(namespace, key, has)
    writers[0].write()
    assert connection.execute("SELECT COUNT(*) FROM postings").fetchone() == (0,)
    assert writers[0].is_whole(32, thorough=True)


def test_the_rows_of_many_changes_at_once_are_those_of_one_after_another(connection):
    """Whatever is gathered before it is written, and however many rows one statement reads."""
    drawn = random.Random(7)
    many = [LeafWords("english", 32, [" ".join(f"w{drawn.randrange(9000)}" for _ in range(300))]) for _ in range(12)]
    together, apart = (
        file_format.add_namespace(connection, name, b"the salt of both") for name in ("together", "apart")
    )
    rows = {}
    for namespace in (together, apart):
        words = WordIndex(connection)
        words.make_anew((), 32)
        for key, of_document in enumerate(many, start=1):
            words.add(namespace, key, of_document)
            if key % 3 == 0:
                words.remove(namespace, key - 1, many[key - 2])
            if namespace == apart:
                words.write()
        words.write()
        assert words.is_whole(32, thorough=True)
        rows[namespace] = {
            (term, block, frozenset(places[at : at + 2] for at in range(0, len(places), 2)))
            for term, block, places in connection.execute("SELECT term, block, places FROM postings")
        }
    assert rows[together] == rows[apart]
    assert len(rows[apart]) > 1000


def killed_writer(model, path):
    """Change a store in another process, which is killed behind its last change."""
    if (child := os.fork()) == 0:
        store = SharedLLMContextStore(model, path, embedder=None)
        store.add([Document(f"The heron number {n} stands by the weir.", f"heron {n}") for n in range(6)])
        store.delete("heron 2")
        store.append("heron 3", " It eats eels.")
        os.kill(os.getpid(), signal.SIGKILL)
    assert os.WIFSIGNALED(os.waitpid(child, 0)[1])


@pytest.mark.posix
def test_the_index_of_a_killed_writer_is_known_to_be_whole(filled, model, path, open_store, caplog):
    filled.close()
    killed_writer(model, path)
    store = open_store(path)
    assert "index of words" not in caplog.text
    assert store.retrieve("eels", k=1, policy="lexical")[0].doc_id == "heron 3"


@pytest.mark.posix
@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE postings SET checksum = 0",
        "DELETE FROM postings",
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


@pytest.mark.parametrize("version", [3, 4])
def test_a_store_whose_words_were_in_fts5_gets_an_index_of_its_own(filled, path, open_store, version):
    filled.append("lamp", " It was lit by hand once.")
    expected = [(p.doc_id, p.score) for p in filled.retrieve("ferry", k=3, policy="lexical")]
    with filled.namespace("tenant") as tenant:
        tenant.add("The tenant keeps an otter.", id="otter")
    filled.close()
    with closing(sqlite3.connect(path / FILE, isolation_level=None)) as connection:
        connection.execute("DROP TABLE postings")
        connection.execute(
            "CREATE VIRTUAL TABLE words USING fts5("
            """terms, content = '', columnsize = 0, detail = none, tokenize = "ascii tokenchars '-_./'")"""
        )
        connection.execute("INSERT INTO words (rowid, terms) VALUES (1 << 24, 'heliograph lamp')")
        if version == 3:
            connection.execute("DROP TABLE word_checksum")
        connection.execute(f"PRAGMA user_version = {version}")
    for _ in range(2):
        store = open_store(path)
        assert [(p.doc_id, p.score) for p in store.retrieve("ferry", k=3, policy="lexical")] == expected
        assert store.retrieve("hand", k=1, policy="lexical")[0].doc_id == "lamp"
        assert store.namespace("tenant").retrieve("otter", k=1, policy="lexical")[0].doc_id == "otter"
        store.close()
        assert check(path).damage == []
    assert not any(b"heliograph" in file.read_bytes() for file in path.glob(f"{FILE}*"))
