"""Flipped bits, smears and lost sectors anywhere in a store's file are told, or change nothing."""

import random
import shutil
import sqlite3
from contextlib import closing

import pytest

from shared_context import Document
from shared_context.errors import SharedContextError, StoreFormatError
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
    "places",
    ["zeroblob(LENGTH(places))", "CAST(x'7f7f' || SUBSTR(places, 3) AS BLOB)", "x'00'", "'text'"],
)
def test_a_damaged_row_of_the_index_of_words_is_told_and_the_index_made_anew(kept, open_store, places, caplog):
    path, expected = kept
    with closing(sqlite3.connect(path / FILE)) as connection:
        connection.execute(f"UPDATE postings SET places = {places}")
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


@pytest.mark.parametrize("lost", ["DELETE FROM conversations", "DELETE FROM namespaces"])
def test_a_row_that_is_lost_is_told(kept, open_store, lost):
    path, _ = kept
    with closing(sqlite3.connect(path / FILE)) as connection:
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.execute(lost)
        connection.commit()
    with pytest.raises(StoreFormatError, match="missing"):
        answers(open_store(path))
