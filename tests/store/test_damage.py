"""Flipped bits, smears and lost sectors anywhere in a store's file are told, or change nothing."""

import random
import shutil
import sqlite3
from contextlib import closing

import pytest

from shared_context import Document
from shared_context.errors import SharedContextError, StoreFormatError
from shared_context.store import leaf_file
from shared_context.store.check import check
from shared_context.store.sqlite_file import FILE

QUESTION = "Who lights the lamp when the ferry leaves?"
FAULTS = 36


def answers(store) -> list:
    talk = store.conversation("talk", recent_tokens=10)
    found = [(node.doc_id, node.start, node.end, node.score) for node in store.retrieve(QUESTION, k=4)]
    return [list(store), talk.messages(), found]


@pytest.fixture
def kept(filled, path):
    """The folder of a closed store with documents and a conversation, and what it answers."""
    filled.add([Document(f"Lamp {n} is lit by keeper {n}. " * 6, f"lamp-{n}", {"n": n}) for n in range(4)])
    talk = filled.conversation("talk", recent_tokens=10)
    for number in range(4):
        talk.append("user", f"This is message number {number} about the ferry.")
    expected = answers(filled)
    filled.close()
    return path, expected


def test_no_damage_changes_an_answer_without_a_word(kept, open_store, tmp_path):
    path, expected = kept
    whole = (path / FILE).read_bytes()
    drawn = random.Random(7)
    told = 0
    for number in range(FAULTS):
        data, at = bytearray(whole), drawn.randrange(len(whole))
        if number % 3 == 0:
            data[at] ^= 1 << drawn.randrange(8)
        elif number % 3 == 1:
            data[at : at + 16] = drawn.randbytes(len(data[at : at + 16]))
        else:
            at = at // 512 * 512
            data[at : at + 512] = bytes(512)
        copy = shutil.copytree(path, tmp_path / str(number))
        (copy / FILE).write_bytes(data)
        try:
            store = open_store(copy)
            assert answers(store) == expected, f"fault {number} at {at}"
            store.close()
        except SharedContextError:
            told += 1
    assert 0 < told < FAULTS


WORD_FAULTS = (
    "UPDATE postings SET checksum = checksum + 1 WHERE term > 0",
    "DELETE FROM postings",
    "DELETE FROM postings WHERE term = (SELECT MAX(term) FROM postings)",
    "UPDATE worded SET document = document + 1",
    "UPDATE worded SET language = 'finnish'",
    "DELETE FROM word_checksum",
    "UPDATE postings SET term = term + 1 WHERE term = (SELECT MAX(term) FROM postings)",
    "UPDATE postings SET block = block + 1 WHERE term = (SELECT MIN(term) FROM postings)",
    "UPDATE meta SET value = '5' WHERE key = 'keys of words'",
)


@pytest.mark.parametrize("statement", WORD_FAULTS)
def test_a_damaged_index_of_words_is_made_anew_of_the_texts(kept, open_store, statement, caplog):
    path, expected = kept
    with closing(sqlite3.connect(path / FILE)) as connection:
        connection.execute(statement)
        connection.commit()
    assert ["index of words" in damage for damage in check(path).damage] == [True]
    store = open_store(path)
    assert "index of words was damaged" in caplog.text
    assert answers(store) == expected
    store.delete("ferry")
    store.close()
    assert check(path).damage == []


@pytest.mark.parametrize(
    "change_of_row",
    [
        "places = zeroblob(LENGTH(places))",
        "places = CAST(x'7f7f' || SUBSTR(places, 3) AS BLOB)",
        "places = x'00'",
        "places = 'text'",
        "block = block + 0.5",
        "block = block || ' text'",
    ],
)
def test_a_damaged_row_of_the_index_of_words_is_told_and_the_index_made_anew(kept, open_store, change_of_row, caplog):
    path, expected = kept
    with closing(sqlite3.connect(path / FILE)) as connection:
        connection.execute(f"UPDATE postings SET {change_of_row}")
        connection.commit()
    damaged = check(path).damage
    assert [("index of words" in damage) for damage in damaged] == [True] * len(damaged)
    store = open_store(path)
    for change in (lambda: store.retrieve("ferry"), lambda: store.delete("ferry")):
        if damaged:
            with pytest.raises(StoreFormatError, match="made anew of the texts: try again"):
                change()
            damaged = []
        assert answers(store) == expected
    store.delete("ferry")
    store.close()
    assert check(path).damage == []


OTHER_ROWS = {
    "a namespace's name": "UPDATE namespaces SET name = 'tenanu' WHERE name = 'tenant'",
    "a namespace's salt": "UPDATE namespaces SET salt = zeroblob(16) WHERE name = 'tenant'",
    "the salt of the store's own documents": "UPDATE namespaces SET salt = zeroblob(16) WHERE name = ''",
    "two namespaces change places": "UPDATE namespaces SET key = 9 - key",
    "a namespace is lost": "DELETE FROM namespaces WHERE name = 'tenant'",
    "a document's number": "UPDATE documents SET key = 1000 WHERE id = 'lamp-2'",
    "a header's document": "UPDATE headers SET document = 1000 WHERE document = (SELECT MAX(document) FROM headers)",
    "the numbering of documents": "UPDATE sqlite_sequence SET seq = 1 WHERE name = 'documents'",
    "the numbering of documents is lost": "DELETE FROM sqlite_sequence WHERE name = 'documents'",
    "fewer messages are compressed": "UPDATE conversations SET compressed = compressed - 1",
    "more messages are compressed": "UPDATE conversations SET compressed = compressed + 1",
    "the name of a limit": "UPDATE meta SET key = 'disk_bytes of namespacf 2' WHERE key LIKE 'disk%'",
}


@pytest.mark.parametrize("statement", OTHER_ROWS.values(), ids=OTHER_ROWS)
def test_what_rows_are_known_by_is_told_when_it_is_another(kept, open_store, statement):
    path, expected = kept
    store = open_store(path)
    tenant = store.namespace("tenant")
    tenant.add("The vault is below the mill.", id="vault", metadata={"of": "the mill"})
    tenant.limit_kv(1_000_000)
    store.close()
    with closing(sqlite3.connect(path / FILE)) as connection:
        assert connection.execute(statement).rowcount
        connection.commit()
    with pytest.raises(StoreFormatError, match="is damaged"):
        store = open_store(path)
        assert answers(store) == expected
        store.add("A barge lies at the quay.", id="barge")
        tenant = store.namespace("tenant")
        assert tenant.ids() == ["vault"]


def test_a_header_that_is_lost_is_made_anew(kept, open_store, caplog):
    path, _ = kept
    with closing(sqlite3.connect(path / FILE)) as connection:
        headers = connection.execute("SELECT * FROM headers ORDER BY document").fetchall()
        connection.execute("DELETE FROM headers WHERE document > (SELECT MIN(document) FROM headers)")
        connection.commit()
    open_store(path).close()
    assert "its header was lost" in caplog.text
    with closing(sqlite3.connect(path / FILE)) as connection:
        assert connection.execute("SELECT * FROM headers ORDER BY document").fetchall() == headers


def test_tokens_that_are_others_are_told_where_leaves_are_mapped(kept, open_store, monkeypatch):
    path, expected = kept
    monkeypatch.setattr(leaf_file, "LEAST_TOKENS", 1)
    open_store(path).close()
    assert (path / leaf_file.FILE).exists()
    with closing(sqlite3.connect(path / FILE)) as connection:
        ids, key = connection.execute("SELECT ids, key FROM parts ORDER BY key").fetchone()
        connection.execute("UPDATE parts SET ids = ? WHERE key = ?", (bytes([ids[0] ^ 8]) + ids[1:], key))
        connection.commit()
    with pytest.raises(StoreFormatError, match="digest of its tokens"):
        store = open_store(path)
        for id in store.ids():
            store.select(QUESTION, budget=64, doc_ids=[id])


@pytest.mark.parametrize("lost", ["DELETE FROM conversations", "DELETE FROM namespaces"])
def test_a_row_that_is_lost_is_told(kept, open_store, lost):
    path, _ = kept
    with closing(sqlite3.connect(path / FILE)) as connection:
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.execute(lost)
        connection.commit()
    with pytest.raises(StoreFormatError, match="missing"):
        answers(open_store(path))
