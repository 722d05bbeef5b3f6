"""A damaged store says what is hurt, and the rest can be kept."""

import sqlite3
from contextlib import closing

import pytest

from shared_context import errors
from shared_context.store.check import check
from shared_context.store.sqlite_file import FILE


@pytest.fixture
def closed(filled, path):
    """The folder of a store with three documents and a conversation."""
    talk = filled.conversation("talk", recent_tokens=10)
    for number in range(4):
        talk.append("user", f"This is message number {number} about the lamp.")
    filled.close()
    return path


def execute(path, statement: str) -> None:
    with closing(sqlite3.connect(path / FILE)) as connection:
        connection.execute(statement)
        connection.commit()


def test_a_whole_store_has_no_damage(closed):
    report = check(closed)
    assert (report.documents, report.conversations, report.damage) == (3, 1, [])
    assert not check(closed, repair=True).repaired


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("UPDATE parts SET text = replace(text, '38 crowns', '88 crowns')", "'ferry'"),
        ("UPDATE documents SET metadata = replace(metadata, 'pier', 'inns') WHERE id = 'ferry'", "'ferry'"),
        ("UPDATE parts SET codes = zeroblob(length(codes)) WHERE text LIKE '%38 crowns%'", "'ferry'"),
        ("UPDATE parts SET number = 7 WHERE text LIKE '%38 crowns%'", "'ferry': a part is missing"),
        ("DELETE FROM documents WHERE id = 'ferry'", "1 documents are missing"),
    ],
)
def test_the_documents_that_are_hurt_are_named_and_the_others_kept(closed, open_store, documents, statement, named):
    execute(closed, statement)
    with pytest.raises(errors.StoreFormatError, match="shared-context check"):
        store = open_store(closed)
        [store.get(id) for id in store.ids()]
    report = check(closed)
    assert len(report.damage) == 1 and named in report.damage[0]
    assert report.documents == 2 and not report.repaired
    assert check(closed, repair=True).repaired
    assert check(closed).damage == []
    kept = open_store(closed)
    assert list(kept) == [document for document in documents if document.id != "ferry"]
    assert len(kept.conversation("talk", recent_tokens=10).messages()) == 4
    assert kept.retrieve("Who lights the lamp?", k=1)[0].doc_id == "lamp"
    kept.add(documents[1])
    kept.delete("lamp")
    assert set(kept.ids()) == {"kitchen", "ferry"}


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM namespaces WHERE name = 'tenant'",
        "UPDATE namespaces SET name = 'x', salt = zeroblob(16) WHERE name = 'tenant'",
        "UPDATE namespaces SET key = 9 WHERE name = 'tenant'",
    ],
)
def test_a_namespace_whose_row_is_hurt_is_named_and_kept(closed, open_store, documents, statement):
    store = open_store(closed)
    store.namespace("tenant").add("The vault is below the mill.", id="vault")
    store.close()
    execute(closed, statement)
    assert "'tenant'" in check(closed).damage[0]
    assert check(closed, repair=True).repaired
    assert check(closed).damage == []
    kept = open_store(closed)
    assert list(kept) == list(documents) and kept.namespaces() == ["tenant"]
    assert kept.namespace("tenant").retrieve("Where is the vault?", k=1)[0].doc_id == "vault"


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE documents SET key = 1000 WHERE id = 'ferry'",
        "UPDATE headers SET document = 1000 WHERE document = (SELECT key FROM documents WHERE id = 'ferry')",
    ],
)
def test_a_document_of_another_number_is_named_and_kept(closed, open_store, documents, statement):
    execute(closed, statement)
    assert check(closed).damage
    assert check(closed, repair=True).repaired
    assert check(closed).damage == []
    assert {document.id for document in open_store(closed)} == {document.id for document in documents}


def test_a_conversation_that_is_hurt_is_named(closed, open_store):
    execute(closed, "UPDATE messages SET message = replace(message, 'lamp', 'bell') WHERE number = 2")
    report = check(closed, repair=True)
    assert ["talk" in damage for damage in report.damage] == [True]
    assert (report.documents, report.conversations, report.repaired) == (3, 0, True)
    assert len(open_store(closed)) == 3
