"""The format of a store's file: older ones are upgraded, whatever happens meanwhile."""

import shutil
import sqlite3
from contextlib import closing

import pytest

from shared_context import errors
from shared_context.store import format as file_format
from shared_context.store.sqlite_file import FILE

FACTS = ("The lamp is lit at dusk.", "The bell rings in fog.", "The ferry leaves at seven.", "Soup is served at noon.")


@pytest.fixture
def old(filled, path, to_format_2):
    """The folder of a store of format 2 with documents and a conversation, and what it must hold."""
    for id in filled.ids():
        filled.update(id, metadata={})  # that format had no headers
    filled.append("lamp", "\nSince 1950 it is electric. " * 20)
    talk = filled.conversation("talk", recent_tokens=10)
    for fact in FACTS:
        talk.append("user", fact)
    filled.warm()
    expected = held(filled)
    filled.close()
    to_format_2(path)
    return path, expected


def held(store) -> list:
    talk = store.conversation("talk", recent_tokens=10)
    shown = [
        (n.doc_id, n.start, n.end, round(n.score, 4)) for n in store.select("When is soup served?", budget=64).nodes
    ]
    return [list(store), talk.messages(), talk.recent(), talk.select(None, ratio=1).text, shown]


def test_a_store_of_an_older_format_is_upgraded_when_it_is_opened(old, open_store):
    path, expected = old
    for _ in range(2):
        store = open_store(path)
        assert held(store) == expected
        store.close()
    store = open_store(path)
    store.conversation("talk", recent_tokens=10).append("user", "And bread?")
    store.append("lamp", "And it hums.")
    assert store.get("lamp").text.endswith("And it hums.")


@pytest.mark.parametrize("name", ["put_meta", "put_part", "put_document", "put_message"])
def test_an_upgrade_that_is_cut_off_changes_nothing(old, open_store, monkeypatch, name):
    path, expected = old

    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(file_format, name, interrupted)
        with pytest.raises(KeyboardInterrupt):
            open_store(path)
    with closing(sqlite3.connect(path / FILE)) as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (2,)
    assert held(open_store(path)) == expected


def test_a_store_with_another_program_s_triggers_or_views_is_refused(filled, path, open_store, tmp_path):
    filled.close()
    for number, statement in enumerate(
        [
            "CREATE TRIGGER t AFTER INSERT ON documents BEGIN DELETE FROM documents; END",
            "CREATE VIEW v AS SELECT * FROM documents",
            "ALTER TABLE documents ADD COLUMN more TEXT",
            "DROP INDEX parts_digest",
        ]
    ):
        copy = shutil.copytree(path, tmp_path / str(number))
        with closing(sqlite3.connect(copy / FILE)) as connection:
            connection.execute(statement)
        with pytest.raises(errors.StoreFormatError, match="tables are not those of a store"):
            open_store(copy)
