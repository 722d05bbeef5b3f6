"""Small stores with the embedded default model, and a second process to share them with."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shared_context import Document, SharedLLMContextStore, SharedLLMModel, StoreConfig, TreeConfig
from shared_context.store.database import Database
from shared_context.store.embedder import Embedder, load_default_embedder
from shared_context.store.format import APPLICATION_ID
from shared_context.store.sqlite_file import FILE

CONFIG = StoreConfig(tree=TreeConfig(chunk_size=64, height=2), floor=0.0, lead_in=16)
"""Leaves of 16 tokens: a sentence or so. Budgets are spent whole."""

LAMP = (
    "The lamp on the north pier is lit by the keeper, Ada Quist, one hour before sunset. She climbs the 112 steps "
    "with a can of colza oil and trims the wick. When fog comes in she also rings the bell, twice every minute. "
    "The lens was ground in Marseille in 1874 and is cleaned with spirit on the first Monday of the month."
)
FERRY = (
    "The ferry to Holm leaves from berth 4 at 06:40, 11:15 and 17:30; on Sundays only the last one runs. "
    "A ticket is 38 crowns, and a bicycle travels for 12 crowns more. Captain Brandt keeps a parrot called Admiral. "
    "In a south-westerly gale above force eight the ferry stays in the harbour and the mail goes by road."
)
KITCHEN = (
    "In the kitchen of the inn, soup is served from noon. The cook, Ilse Marr, makes it of cod, leeks and barley. "
    "Bread is baked twice a day in the oven behind the hall, and the last loaf goes to the night watch. "
    "Guests who are allergic to shellfish wear a blue ribbon so that nobody has to ask them twice."
)
DOCUMENTS = (
    Document(LAMP, "lamp", {"place": "pier", "year": 1874}),
    Document(FERRY, "ferry", {"place": "pier", "year": 1990}),
    Document(KITCHEN, "kitchen", {"place": "inn", "year": 1990, "tags": ["food"]}),
)
MakeStore = Callable[..., SharedLLMContextStore]


@pytest.fixture(scope="session")
def documents() -> tuple[Document, ...]:
    """Three short documents: lamp, ferry, kitchen."""
    return DOCUMENTS


@pytest.fixture(scope="session")
def embedder() -> Embedder:
    """MiniLM."""
    return load_default_embedder()


@pytest.fixture(scope="session")
def empty_folder(model: SharedLLMModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store without documents, to be copied: making one takes longer than opening it."""
    folder = tmp_path_factory.mktemp("stores") / "empty"
    SharedLLMContextStore(model, folder, config=CONFIG, embedder=None).close()
    return folder


@pytest.fixture
def path(empty_folder: Path, tmp_path: Path) -> Path:
    """The folder of a store of this test's own, without documents and without an embedder."""
    return Path(shutil.copytree(empty_folder, tmp_path / "store"))


@pytest.fixture
def open_store(model: SharedLLMModel) -> Iterator[MakeStore]:
    """``open_store(path, **options)`` opens or makes a store; it is closed when the test ends."""
    opened = []

    def make(path: Path | None = None, **options: Any) -> SharedLLMContextStore:
        store = SharedLLMContextStore(model, path, **{"embedder": None, **options})
        opened.append(store)
        return store

    yield make
    for store in opened:
        store.close()


@pytest.fixture
def store(open_store: MakeStore, path: Path) -> SharedLLMContextStore:
    """A store of this test's own, in a folder, without documents and without an embedder."""
    return open_store(path)


@pytest.fixture
def filled(store: SharedLLMContextStore, documents: tuple[Document, ...]) -> SharedLLMContextStore:
    """The same with the three documents."""
    store.add(documents)
    return store


@pytest.fixture(scope="module")
def hybrid(model: SharedLLMModel, embedder: Embedder) -> Iterator[SharedLLMContextStore]:
    """A store in memory with MiniLM and the three documents; tests share it and must not change it."""
    with SharedLLMContextStore(model, config=CONFIG, embedder=embedder) as store:
        store.add(DOCUMENTS)
        yield store


class OtherProcess:
    """A Python process that has the default model as ``model`` and ``SharedLLMContextStore`` at hand."""

    MAIN = """
import json, sys
from shared_context import SharedLLMContextStore, SharedLLMModel
scope = {"SharedLLMContextStore": SharedLLMContextStore, "model": SharedLLMModel.from_pretrained(adapter=None)}
for line in sys.stdin:
    exec(json.loads(line), scope)
    print("result", json.dumps(scope.pop("result", None)), flush=True)
"""

    def __init__(self) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", self.MAIN], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def start(self, code: str) -> None:
        """Have it run code, and do not wait."""
        self.process.stdin.write(json.dumps(code) + "\n")
        self.process.stdin.flush()

    def result(self) -> Any:
        """What the code begun last assigned to ``result``."""
        for line in self.process.stdout:
            if line.startswith("result "):
                return json.loads(line.removeprefix("result "))
        raise AssertionError(f"the other process ended with {self.process.wait()}")

    def run(self, code: str) -> Any:
        """Have it run code; returns what that assigned to ``result``."""
        self.start(code)
        return self.result()

    def end(self) -> None:
        self.process.stdin.close()
        self.process.wait(timeout=60)
        self.process.stdout.close()


@pytest.fixture(scope="module")
def other() -> Iterator[OtherProcess]:
    """A second process with the default model."""
    process = OtherProcess()
    yield process
    process.end()


@pytest.fixture
def to_format_2() -> Callable[[Path], None]:
    """``to_format_2(path)`` makes of a closed store one of the format in which a document was a row."""

    def write(folder: Path) -> None:
        with contextlib.closing(Database(folder)) as store, store.snapshot():
            meta = [(key, store.get_meta(key)) for key in ("about", "codec")]
            rows = []
            for key, entry in store.catalogue(1).items():
                stored = store.document(key)
                parts = [row[-3:] for row in store._parts(key, "codes, scales, embeddings")]
                bounds = stored.tokens.bounds.astype(np.uint32).tobytes()
                nodes = [b"".join(part[n] for part in parts) for n in range(3)]
                ids = stored.tokens.ids.tobytes()
                rows.append((entry.kind, entry.id, json.dumps(entry.metadata), stored.text, ids, bounds, *nodes, b""))
            messages = []
            for id in store.conversations(1):
                recent = {row.number for row in store.messages(1, id, recent=True)}
                for row in store.messages(1, id):
                    messages.append((id, row.number, json.dumps(row.message), row.tokens, row.number not in recent))
        for file in folder.glob(f"{FILE}*"):
            file.unlink()
        with contextlib.closing(sqlite3.connect(folder / FILE)) as connection:
            connection.execute("PRAGMA journal_mode = WAL")
            for statement in FORMAT_2:
                connection.execute(statement)
            connection.executemany("INSERT INTO meta VALUES (?, ?)", meta)
            names = "kind, id, metadata, text, ids, bounds, codes, scales, embeddings, states"
            marks = ", ".join("?" * 10)
            connection.executemany(f"INSERT INTO documents ({names}) VALUES ({marks})", rows)
            connection.executemany("INSERT INTO messages VALUES (?, ?, ?, ?, ?)", messages)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute("PRAGMA user_version = 2")
            connection.commit()

    return write


FORMAT_2 = (
    "CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID",
    """CREATE TABLE documents (key INTEGER PRIMARY KEY AUTOINCREMENT, kind TEXT NOT NULL, id TEXT NOT NULL,
        metadata TEXT NOT NULL, text TEXT NOT NULL, ids BLOB NOT NULL, bounds BLOB NOT NULL, codes BLOB NOT NULL,
        scales BLOB NOT NULL, states BLOB NOT NULL, embeddings BLOB NOT NULL, UNIQUE (kind, id))""",
    """CREATE TABLE messages (conversation TEXT NOT NULL, number INTEGER NOT NULL, message TEXT NOT NULL,
        tokens INTEGER NOT NULL, compressed INTEGER NOT NULL DEFAULT 0, PRIMARY KEY (conversation, number))
        WITHOUT ROWID""",
)
