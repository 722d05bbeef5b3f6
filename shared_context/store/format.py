"""The format of a store's SQLite file: its tables, its version, and the steps from one version to the next.

To change what is kept: give SCHEMA the new tables, raise VERSION by one, and append to STEPS a function that makes of a
file of the version before one of the new version. A step runs inside of one transaction, so it may be cut off anywhere;
it must set right the checksums of the rows that it changes.
"""

from __future__ import annotations

import json
import secrets
import sqlite3
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import numpy as np

from shared_context.config import TreeConfig
from shared_context.model.tokenization import TokenizedText
from shared_context.store import word_index
from shared_context.store.checksum import checksum
from shared_context.store.leaf_words import LeafWords
from shared_context.store.node_data import COLUMNS, NodeData, NodeShape, StoredText

APPLICATION_ID = 0x5C0471E8
"""Marks the file as ours, in the header field that SQLite keeps for it."""
VERSION = 5
OLDEST = 2
"""The oldest version that there is a step from."""

LARGEST_KEY = 1 << 62 - word_index.LEAF_BITS
"""A document's key and the number of a leaf are one integer in the index of words."""

DEFAULT_NAMESPACE = ""
"""The namespace of a store's own documents."""

OF_NAMESPACE = "namespace "
"""What the keys of values begin with that say what a namespace's row says; its key follows."""

OF_CONVERSATION = "compressed of conversation "
"""The same of values that say how many messages of a conversation are compressed."""

# Small columns come first: SQLite reads a row from its beginning.
SCHEMA = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, checksum INTEGER NOT NULL, value BLOB NOT NULL) WITHOUT ROWID",
    # documents, total: how many there are and the sum of their checksums, so that none can vanish unnoticed.
    """CREATE TABLE namespaces (
        key INTEGER PRIMARY KEY AUTOINCREMENT,
        name TEXT NOT NULL UNIQUE,
        salt BLOB NOT NULL,
        documents INTEGER NOT NULL DEFAULT 0,
        total INTEGER NOT NULL DEFAULT 0
    )""",
    # A document gets a new key with every change of its text; content, the first of them, stays when text is added at
    # its end.
    """CREATE TABLE documents (
        key INTEGER PRIMARY KEY AUTOINCREMENT,
        namespace INTEGER NOT NULL,
        kind TEXT NOT NULL,
        id TEXT NOT NULL,
        content INTEGER NOT NULL,
        parts INTEGER NOT NULL,
        bytes INTEGER NOT NULL,
        checksum INTEGER NOT NULL,
        metadata TEXT NOT NULL,
        unsearched_keys TEXT NOT NULL,
        hidden_keys TEXT NOT NULL,
        UNIQUE (namespace, kind, id)
    )""",
    # What queries are compared with of a document's metadata, and the digest of what models are shown of them.
    """CREATE TABLE headers (
        document INTEGER PRIMARY KEY,
        content INTEGER NOT NULL,
        digest BLOB NOT NULL,
        checksum INTEGER NOT NULL,
        codes BLOB NOT NULL,
        scales BLOB NOT NULL,
        embeddings BLOB NOT NULL
    )""",
    "CREATE INDEX headers_digest ON headers (digest)",
    # A chunk each: an appended line changes the last one only.
    f"""CREATE TABLE parts (
        key INTEGER PRIMARY KEY,
        content INTEGER NOT NULL,
        number INTEGER NOT NULL,
        digest BLOB NOT NULL,
        node_checksum INTEGER NOT NULL,
        text_checksum INTEGER NOT NULL,
        ids BLOB NOT NULL,
        {", ".join(f"{name} BLOB NOT NULL" for name in COLUMNS)},
        bounds BLOB NOT NULL,
        text TEXT NOT NULL,
        UNIQUE (content, number)
    )""",
    "CREATE INDEX parts_digest ON parts (digest)",
    # messages, total: how many there are and the sum of their checksums; the first ones are part of the document.
    """CREATE TABLE conversations (
        key INTEGER PRIMARY KEY AUTOINCREMENT,
        namespace INTEGER NOT NULL,
        id TEXT NOT NULL,
        messages INTEGER NOT NULL DEFAULT 0,
        compressed INTEGER NOT NULL DEFAULT 0,
        total INTEGER NOT NULL DEFAULT 0,
        UNIQUE (namespace, id)
    )""",
    """CREATE TABLE messages (
        conversation INTEGER NOT NULL,
        number INTEGER NOT NULL,
        tokens INTEGER NOT NULL,
        checksum INTEGER NOT NULL,
        message TEXT NOT NULL,
        PRIMARY KEY (conversation, number)
    ) WITHOUT ROWID""",
    # What other processes have to take in: keys that came, changed or went, and the digests of chunks that went.
    """CREATE TABLE changes (
        version INTEGER PRIMARY KEY AUTOINCREMENT,
        namespace INTEGER NOT NULL,
        document INTEGER NOT NULL,
        digests BLOB NOT NULL
    )""",
    *word_index.SCHEMA,
)


class Line(NamedTuple):
    """What the table of documents says of one of them.

    Attributes:
        namespace: its namespace's key.
        kind: document or conversation.
        id: its id.
        content: the key that it had first, which its parts are kept under.
        parts: how many there are.
        bytes: of its text in UTF-8.
        metadata: as JSON.
        unsearched_keys: metadata that no query is compared with, as JSON.
        hidden_keys: metadata that no model is shown, as JSON.
    """

    namespace: int
    kind: str
    id: str
    content: int
    parts: int
    bytes: int
    metadata: str
    unsearched_keys: str = "[]"
    hidden_keys: str = "[]"


def tables(connection: sqlite3.Connection) -> set[tuple[str, str, str | None]]:
    """Type, name and statement of all that a file is made of."""
    return set(connection.execute("SELECT type, name, sql FROM sqlite_master"))


@cache
def expected_tables() -> set[tuple[str, str, str | None]]:
    """What :func:`tables` says of a file of this version."""
    with closing(sqlite3.connect(":memory:")) as connection:
        create(connection)
        return tables(connection)


def create(connection: sqlite3.Connection) -> None:
    """Make the tables of this version; in a transaction."""
    for statement in SCHEMA:
        connection.execute(statement)
    word_index.WordIndex(connection).make_anew((), 0)
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version = {VERSION}")


def put_meta(connection: sqlite3.Connection, key: str, value: bytes) -> None:
    """Write a value of the store as a whole."""
    connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?, ?)", (key, checksum(key, value), value))


def add_namespace(connection: sqlite3.Connection, name: str, salt: bytes | None = None) -> int:
    """Make a namespace; returns its key.

    Args:
        salt: what the digests of its chunks begin with, so that they are no other namespace's.
    """
    salt = secrets.token_bytes(16) if salt is None else salt
    row = connection.execute("INSERT INTO namespaces (name, salt) VALUES (?, ?)", (name, salt)).lastrowid
    assert row is not None  # one was inserted
    note_namespace(connection, row, name, salt)
    return row


def note_namespace(connection: sqlite3.Connection, key: int, name: str, salt: bytes) -> None:
    """Keep what a namespace's row says a second time, with a checksum."""
    put_meta(connection, f"{OF_NAMESPACE}{key}", namespace_value(name, salt))


def namespace_value(name: str, salt: bytes) -> bytes:
    """What is kept of a namespace a second time."""
    return as_json([name, salt.hex()]).encode()


def next_key(connection: sqlite3.Connection) -> int:
    """The key of the next document, which no other ever had.

    Raises:
        ValueError: what the file says of it is damaged.
    """
    row = connection.execute("SELECT seq FROM sqlite_sequence WHERE name = 'documents'").fetchone()
    last = 0 if row is None else row[0]
    (largest,) = connection.execute("SELECT COALESCE(MAX(key), 0) FROM documents").fetchone()
    if not isinstance(last, int) or not largest <= last < LARGEST_KEY:
        raise ValueError(f"the last key is {last!r}, and there is a document {largest}")
    return last + 1


def put_document(connection: sqlite3.Connection, line: Line) -> int:
    """Write a document's line, and note that it came; returns its key."""
    total, key = checksum(*line), next_key(connection)
    names = ", ".join(Line._fields)
    connection.execute(
        f"INSERT INTO documents (key, {names}, checksum) VALUES (?, {', '.join('?' * len(line))}, ?)",
        (key, *line, total),
    )
    connection.execute(
        "UPDATE namespaces SET documents = documents + 1, total = total + ? WHERE key = ?", (total, line.namespace)
    )
    note_change(connection, line.namespace, key)
    return key


def put_part(
    connection: sqlite3.Connection, content: int, number: int, digest: bytes, stored: StoredText, nodes: NodeData
) -> None:
    """Write a chunk of a document."""
    ids = stored.tokens.ids.astype(np.int32).tobytes()
    bounds = stored.tokens.bounds.astype(np.uint32).tobytes()
    of_nodes = [getattr(nodes, name).tobytes() for name in COLUMNS]
    connection.execute(
        f"INSERT INTO parts (content, number, digest, node_checksum, text_checksum, ids, {', '.join(COLUMNS)}, bounds, "
        f"text) VALUES ({', '.join('?' * (8 + len(COLUMNS)))})",
        (
            content,
            number,
            digest,
            checksum(content, number, digest, ids, *of_nodes),
            checksum(content, number, bounds, stored.text),
            ids,
            *of_nodes,
            bounds,
            stored.text,
        ),
    )


def put_message(connection: sqlite3.Connection, conversation: int, number: int, tokens: int, message: str) -> None:
    """Write a message of a conversation."""
    total = checksum(conversation, number, tokens, message)
    connection.execute("INSERT INTO messages VALUES (?, ?, ?, ?, ?)", (conversation, number, tokens, total, message))
    connection.execute(
        "UPDATE conversations SET messages = messages + 1, total = total + ? WHERE key = ?", (total, conversation)
    )


def as_json(value: object) -> str:
    """Metadata, keys or a message as they are kept."""
    return json.dumps(value, ensure_ascii=False)


def note_change(connection: sqlite3.Connection, namespace: int, document: int, digests: Iterable[bytes] = ()) -> None:
    """Note for other processes that a document came, changed or went, and which chunks went."""
    connection.execute(
        "INSERT INTO changes (namespace, document, digests) VALUES (?, ?, ?)", (namespace, document, b"".join(digests))
    )


def upgrade(connection: sqlite3.Connection, version: int, digest: Callable[[bytes, np.ndarray], bytes]) -> None:
    """Make a file of an older version one of this version; in a transaction.

    Args:
        version: the file's, from OLDEST to VERSION - 1.
        digest: of a chunk's token ids, behind a salt.
    """
    for step in STEPS[version - OLDEST :]:
        step(connection, digest)
    connection.execute(f"PRAGMA user_version = {VERSION}")


def _parts_and_checksums(connection: sqlite3.Connection, digest: Callable[[bytes, np.ndarray], bytes]) -> None:
    """From version 2, where a document was one row, a message had no number of its own kind, and nothing a checksum."""
    for table in ("meta", "documents", "messages"):
        connection.execute(f"ALTER TABLE {table} RENAME TO old_{table}")
    for statement in SCHEMA:
        connection.execute(statement)
    for key, value in connection.execute("SELECT key, value FROM old_meta").fetchall():
        put_meta(connection, key, value)
        if key == "about":
            tree = TreeConfig(**json.loads(value)["config"]["tree"])
    words = word_index.WordIndex(connection)
    words.make_anew((), tree.leaf_size)
    # Without a salt, so that the keys and values in the folder are found again.
    namespace = add_namespace(connection, DEFAULT_NAMESPACE, b"")
    for (key,) in connection.execute("SELECT key FROM old_documents ORDER BY key").fetchall():
        kind, id, metadata, text, ids, bounds, codes, scales, embeddings = connection.execute(
            "SELECT kind, id, metadata, text, ids, bounds, codes, scales, embeddings FROM old_documents WHERE key = ?",
            (key,),
        ).fetchone()
        tokens = TokenizedText(np.frombuffer(ids, np.int32), np.frombuffer(bounds, np.uint32).astype(np.int64))
        leaves = -(-len(tokens) // tree.leaf_size)
        shape = NodeShape(
            tree,
            len(codes) // len(tokens),
            len(embeddings) // 4 // -(-leaves // tree.embedded_leaves),
            0,
        )
        content = next_key(connection)
        found = LeafWords.by_chunk(text, tokens, tree.leaf_size, tree.chunk_size)
        words.add(namespace, content, found)
        nodes = replace(shape.decode(len(tokens), (codes, scales, embeddings)), words=found)
        parts = shape.split(StoredText(text, tokens), nodes)
        for number, part in enumerate(parts):
            put_part(connection, content, number, digest(b"", part.stored.tokens.ids), part.stored, part.nodes)
        put_document(connection, Line(namespace, kind, id, content, len(parts), len(text.encode()), metadata))
    words.write()
    for (id,) in connection.execute("SELECT DISTINCT conversation FROM old_messages").fetchall():
        conversation = connection.execute(
            "INSERT INTO conversations (namespace, id) VALUES (?, ?)", (namespace, id)
        ).lastrowid
        assert conversation is not None  # one was inserted
        compressed = 0
        for number, (message, tokens, old) in enumerate(
            connection.execute(
                "SELECT message, tokens, compressed FROM old_messages WHERE conversation = ? ORDER BY number", (id,)
            ).fetchall(),
            start=1,
        ):
            put_message(connection, conversation, number, tokens, message)
            compressed += old
        connection.execute("UPDATE conversations SET compressed = ? WHERE key = ?", (compressed, conversation))
    for table in ("meta", "documents", "messages"):
        connection.execute(f"DROP TABLE old_{table}")


def _own_postings(connection: sqlite3.Connection, digest: Callable[[bytes, np.ndarray], bytes]) -> None:
    """From versions 3 and 4, where words were kept in SQLite's FTS5."""
    there = {name for _, name, _ in tables(connection)}
    if "postings" in there:  # the step before has made the tables of today
        return
    for name in ("words", "worded", "word_checksum"):
        connection.execute(f"DROP TABLE IF EXISTS {name}")
    for statement in word_index.SCHEMA:
        connection.execute(statement)
    (about,) = connection.execute("SELECT value FROM meta WHERE key = 'about'").fetchone()
    tree = TreeConfig(**json.loads(about)["config"]["tree"])
    word_index.WordIndex(connection).make_anew(_texts(connection), tree.leaf_size)


def _texts(connection: sqlite3.Connection) -> Iterator[tuple[int, int, int, list[tuple[str, TokenizedText]]]]:
    """Namespace, first key, key and chunks of all documents but those of which a chunk is damaged."""
    for namespace, content, key in connection.execute("SELECT namespace, content, key FROM documents").fetchall():
        rows = connection.execute(
            "SELECT number, text_checksum, ids, bounds, text FROM parts WHERE content = ? ORDER BY number", (content,)
        ).fetchall()
        if all(expected == checksum(content, number, bounds, text) for number, expected, _, bounds, text in rows):
            yield (
                namespace,
                content,
                key,
                [
                    (
                        text,
                        TokenizedText(np.frombuffer(ids, np.int32), np.frombuffer(bounds, np.uint32).astype(np.int64)),
                    )
                    for *_, ids, bounds, text in rows
                ],
            )


STEPS = (_parts_and_checksums, _own_postings, _own_postings)
"""Steps from OLDEST on, each to the next version."""
