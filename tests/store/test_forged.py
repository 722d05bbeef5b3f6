"""What somebody wrote into a store's file with the right checksums is told as damage, or does no harm."""

import sqlite3
import struct
from contextlib import closing
from zlib import crc32

import pytest
import torch
from safetensors.torch import load, save

from shared_context.errors import SharedContextError
from shared_context.store import format as file_format
from shared_context.store.checksum import checksum
from shared_context.store.database import Database
from shared_context.store.format import Line
from shared_context.store.node_data import COLUMNS
from shared_context.store.sqlite_file import FILE

OF_LAMP = "content = (SELECT content FROM documents WHERE id = 'lamp')"
FORGED = {
    "a text of bytes": f"UPDATE parts SET text = CAST(text AS BLOB) WHERE {OF_LAMP}",
    "ids of text": f"UPDATE parts SET ids = 'abcd' WHERE {OF_LAMP}",
    "codes that are a number": f"UPDATE parts SET codes = 5 WHERE {OF_LAMP}",
    "a digest of text": f"UPDATE parts SET digest = '../../x' WHERE {OF_LAMP}",
    "a header's digest of text": "UPDATE headers SET digest = '../../x'",
    "a billion parts": "UPDATE documents SET parts = 1000000000 WHERE id = 'lamp'",
    "parts of text": "UPDATE documents SET parts = 'x' WHERE id = 'lamp'",
    "an id of bytes": "UPDATE documents SET id = x'00ff' WHERE id = 'lamp'",
    "keys at their end": "UPDATE sqlite_sequence SET seq = 9223372036854775807 WHERE name = 'documents'",
    "keys of text": "UPDATE sqlite_sequence SET seq = 'x' WHERE name = 'documents'",
    "a salt of text": "UPDATE namespaces SET salt = 'x'",
    "messages compressed up to a text": "UPDATE conversations SET compressed = 'x'",
    "a message that is a list": "UPDATE messages SET message = '[]'",
    "a message of nobody": "UPDATE messages SET message = '{}'",
    "tokens of a message that are a text": "UPDATE messages SET tokens = 'x'",
    "an empty digest": f"UPDATE parts SET digest = x'' WHERE {OF_LAMP}",
    "a language that there is not": "UPDATE worded SET language = 'klingon'",
    "leaves of no tokens": "UPDATE worded SET leaf_size = 0",
    "no document in the index of words": "DELETE FROM worded",
    "words behind the last leaf": "UPDATE postings SET places = CAST(places || x'ffff' AS BLOB)",
    "words of no document": "UPDATE postings SET block = block + 1000000",
    "words before all documents": "UPDATE postings SET block = -1 - block",
    "another version": "PRAGMA user_version = 2",
}


def with_right_checksums(connection: sqlite3.Connection) -> None:
    for key, content, number, digest, ids, bounds, text, *values in connection.execute(
        f"SELECT key, content, number, digest, ids, bounds, text, {', '.join(COLUMNS)} FROM parts"
    ).fetchall():
        of_nodes, of_text = checksum(content, number, digest, ids, *values), checksum(content, number, bounds, text)
        connection.execute(
            "UPDATE parts SET node_checksum = ?, text_checksum = ? WHERE key = ?", (of_nodes, of_text, key)
        )
    total = 0
    for key, *line in connection.execute(f"SELECT key, {', '.join(Line._fields)} FROM documents").fetchall():
        total += checksum(*line)
        connection.execute("UPDATE documents SET checksum = ? WHERE key = ?", (checksum(*line), key))
    connection.execute("UPDATE namespaces SET total = ?", (total,))
    for document, *values in connection.execute(
        "SELECT document, content, digest, codes, scales, embeddings FROM headers"
    ).fetchall():
        connection.execute("UPDATE headers SET checksum = ? WHERE document = ?", (checksum(*values), document))
    for conversation, number, *values in connection.execute("SELECT * FROM messages").fetchall():
        tokens, _, message = values
        connection.execute(
            "UPDATE messages SET checksum = ? WHERE conversation = ? AND number = ?",
            (checksum(conversation, number, tokens, message), conversation, number),
        )
    connection.execute(
        "UPDATE conversations SET total = (SELECT SUM(checksum) FROM messages WHERE conversation = conversations.key)"
    )
    total = 0
    for term, block, places in connection.execute("SELECT term, block, places FROM postings").fetchall():
        of_row = crc32(places, crc32(struct.pack("<qq", term, block)))
        connection.execute("UPDATE postings SET checksum = ? WHERE term = ? AND block = ?", (of_row, term, block))
        total += of_row
    total += sum(checksum(*row) for row in connection.execute("SELECT key, document, language, leaf_size FROM worded"))
    connection.execute("UPDATE word_checksum SET total = ?", (total,))


@pytest.mark.parametrize("statement", FORGED.values(), ids=FORGED)
def test_forged_rows_are_told_or_do_no_harm(filled, path, open_store, statement, model):
    talk = filled.conversation("talk", recent_tokens=10)
    for number in range(3):
        talk.append("user", f"This is message number {number} about the ferry.")
    filled.close()
    with closing(sqlite3.connect(path / FILE, isolation_level=None)) as connection:
        connection.execute(statement)
        with_right_checksums(connection)
    try:
        store = open_store(path)
    except SharedContextError:
        return
    for use in (
        lambda: list(store),
        lambda: store.retrieve("When does the ferry leave?"),
        lambda: store.select("Who lights the lamp?", budget=64, show_metadata=True),
        lambda: store.append("lamp", " It is green."),
        lambda: store.update("lamp", metadata={"colour": "green"}),
        lambda: store.conversation("talk").select("ferry", budget=32),
        lambda: store.conversation("talk", recent_tokens=5).append("user", "And the mail, when does that go?"),
        lambda: store.add("A barge lies at the quay.", id="barge"),
        lambda: store.delete("lamp"),
        store.compact,
    ):
        try:
            use()
        except SharedContextError:
            continue


@pytest.mark.parametrize(
    "tensors",
    [
        lambda mean, projection: {"mean": mean * torch.nan, "projection": projection},
        lambda mean, projection: {"mean": mean, "projection": projection / 0},
        lambda mean, projection: {"mean": mean[1:], "projection": projection},
        lambda mean, projection: {"mean": mean[1:], "projection": projection[1:]},
        lambda mean, projection: {"mean": mean.double(), "projection": projection},
        lambda mean, projection: {"mean": mean[None], "projection": projection},
        lambda mean, projection: {"mean": mean, "projection": projection[:, :0]},
    ],
)
def test_a_codec_that_is_none_is_told_when_the_store_is_opened(filled, path, open_store, tensors):
    filled.close()
    with closing(sqlite3.connect(path / FILE, isolation_level=None)) as connection:
        (codec,) = connection.execute("SELECT value FROM meta WHERE key = 'codec'").fetchone()
        forged = save({name: tensor.contiguous() for name, tensor in tensors(**load(codec)).items()})
        connection.execute(
            "UPDATE meta SET value = ?, checksum = ? WHERE key = 'codec'", (forged, checksum("codec", forged))
        )
    with pytest.raises(SharedContextError, match="its codec"):
        open_store(path)


def test_a_file_that_only_claims_to_be_of_an_older_format_is_told(filled, path):
    filled.close()
    with closing(sqlite3.connect(path / FILE)) as connection:
        connection.execute(f"PRAGMA user_version = {file_format.OLDEST}")
    with pytest.raises(SharedContextError, match=f"no file of format {file_format.OLDEST}"):
        Database(path, digest=lambda salt, ids: b"")


def test_what_a_killed_copy_left_goes_when_the_folder_is_opened(store, path, open_store):
    store.namespace("tenant").add("The vault is below the mill.", id="vault")
    store.close()
    left = path / f".{FILE}.copy.abc" / "store"
    left.mkdir(parents=True)
    (left / FILE).write_text("The vault is below the mill.")
    open_store(path)
    assert not left.parent.exists()
