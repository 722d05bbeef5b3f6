"""What is done to a store of the campaign, and what it must hold after each step."""

from __future__ import annotations

from pathlib import Path
from random import Random

import numpy as np
import torch

from shared_context.config import TreeConfig
from shared_context.kernels import ChunkKV
from shared_context.model.tokenization import TokenizedText
from shared_context.store import leaf_file
from shared_context.store.catalogue import Catalogue
from shared_context.store.database import Database
from shared_context.store.encoding import chunk_digest
from shared_context.store.format import DEFAULT_NAMESPACE
from shared_context.store.kv_cache import TieredKVCache
from shared_context.store.leaf_words import LeafWords
from shared_context.store.line_rows import Entry
from shared_context.store.node_data import HeaderData, NodeData, NodeShape, StoredText
from shared_context.store.node_index import NodeIndex
from shared_context.store.sqlite_file import is_vacant

TREE = TreeConfig(chunk_size=64, height=2)
VOCABULARY = 1 << 10
SHAPE = NodeShape(TREE, 4, 6, VOCABULARY)
leaf_file.LEAST_TOKENS = 1  # that small stores have the file of large ones
META = {"about": b"{}", "codec": b"-"}
IDS = [f"document {number}" for number in range(5)]
WORDS = [f"w{number:02}" for number in range(97)]

State = dict[str, tuple[int, int, int]]
"""Seed, length and version of the metadata of each document."""


def stored_text(seed: int, tokens: int) -> StoredText:
    random = np.random.default_rng(seed)
    ids = random.integers(0, VOCABULARY, tokens).astype(np.int32)
    return StoredText(text_of(ids), TokenizedText(ids, np.arange(tokens + 1) * 4))


def text_of(ids: np.ndarray) -> str:
    return "".join(f"{WORDS[one % len(WORDS)]} " for one in ids)


def nodes_of(stored: StoredText, seed: int) -> NodeData:
    random, tokens = np.random.default_rng(seed + 1), len(stored.tokens)
    return NodeData(
        random.integers(-127, 128, (tokens, 4), dtype=np.int8),
        random.random(tokens).astype(np.float16),
        random.random((SHAPE.rows("embeddings", tokens), 6), dtype=np.float32),
        LeafWords.by_chunk(stored.text, stored.tokens, TREE.leaf_size, TREE.chunk_size),
    )


def header_of(version: int) -> HeaderData:
    random = np.random.default_rng(version)
    codes, scales = random.integers(-127, 128, (5, 4), dtype=np.int8), random.random(5).astype(np.float16)
    return HeaderData(codes, scales, random.random((SHAPE.rows("embeddings", 5), 6), dtype=np.float32))


def header_ids(entry: Entry) -> np.ndarray:
    return np.array([entry.metadata["version"]], np.int32)


def kv(key: str) -> ChunkKV:
    return ChunkKV(torch.from_numpy(np.random.default_rng(int(key[:8], 16)).random((2, 1, 1, 16, 4), np.float32)))


def apply(state: State, seed: int, step: int) -> State:
    """What a step makes of a state."""
    random = Random(f"{seed} {step}")
    id, kind = random.choice(IDS), random.random()
    if kind < 0.25:
        return {other: value for other, value in state.items() if other != id}
    if kind < 0.45 and id in state:
        return state | {id: (*state[id][:2], step)}
    return state | {id: (seed * 1000 + step, random.choice([3, 40, 64, 150]), 0)}


class Rooms:
    """What a store keeps, without a model.

    Args:
        folder: of the store.
        database: its rows.
    """

    def __init__(self, folder: Path, database: Database):
        self.database, self.cache = database, TieredKVCache(0, folder / "kv", 1 << 20)
        database.mend_words(TREE.leaf_size)
        with database.snapshot():
            namespace = database.namespace(DEFAULT_NAMESPACE)
        assert namespace is not None, "no namespace"
        self.namespace, self.salt = namespace
        self.index = NodeIndex(TREE, VOCABULARY)
        self.catalogue = Catalogue(
            database, self.namespace, DEFAULT_NAMESPACE, self.salt, self.index, SHAPE, self.cache, header_ids, folder
        )

    def digests(self, ids: np.ndarray) -> list[str]:
        """Of the chunks of a document."""
        size = TREE.chunk_size
        return [chunk_digest(self.salt, ids[first : first + size]).hex() for first in range(0, len(ids), size)]


class Workload:
    """Steps on a store, the same for every seed.

    Args:
        folder: of the store.
        seed: of the steps.
    """

    def __init__(self, folder: Path, seed: int):
        self.seed = seed
        self.rooms = Rooms(folder, Database(folder, META) if is_vacant(folder) else Database(folder))
        with self.rooms.catalogue.reading():
            pass
        self.rooms.catalogue.keep()

    def step(self, before: State, number: int) -> State:
        """Take a step; returns the state behind it, or raises and leaves the one before."""
        after, rooms = apply(before, self.seed, number), self.rooms
        (id,) = [one for one in IDS if before.get(one) != after.get(one)] or [None]
        if id is not None:
            with rooms.catalogue.changing() as change:
                key = rooms.catalogue.find("document", id)
                seed, tokens, version = after.get(id, (0, 0, 0))
                entry, header = Entry("document", id, {"version": version}), header_of(version)
                if key is not None and tokens and before[id][:2] == after[id][:2]:
                    change.describe(key, entry, header)
                else:
                    if key is not None:
                        change.remove(key)
                    if tokens:
                        stored = stored_text(seed, tokens)
                        change.insert(entry, stored, nodes_of(stored, seed), header)
                rooms.database.add_message(rooms.namespace, "talk", {"role": "user", "content": str(number)}, 1)
            for digest in rooms.digests(stored_text(seed, tokens).tokens.ids) if tokens else ():
                rooms.cache.put(digest + "00", kv(digest))
        return after

    def close(self) -> None:
        self.rooms.catalogue.keep()
        self.rooms.database.close()


def read(folder: Path) -> tuple[State, int]:
    """All that a store holds, every column compared with what was written, and how many messages."""
    database = Database(folder)
    try:
        rooms = Rooms(folder, database)
        found: State = {}
        holding: dict[str, list[tuple[int, int]]] = {}
        expected, alive = NodeIndex(TREE, VOCABULARY), set()
        with rooms.catalogue.reading():
            keys = rooms.catalogue.documents()
            headers = database.headers(keys, SHAPE)
            for key in keys:
                entry, text = rooms.catalogue.entry(key), rooms.catalogue.text(key)
                ids, nodes = database.nodes(key, SHAPE)
                version = entry.metadata["version"]
                found[entry.id] = int.from_bytes(ids[:4].tobytes(), "little"), len(ids), version
                assert len(text.tokens) == len(ids) and len(nodes.codes) == len(ids)
                assert text.text == text_of(ids), "another text"
                assert all(map(np.array_equal, vars(headers[key]).values(), vars(header_of(version)).values())), (
                    "header"
                )
                for leaf, terms in enumerate(LeafWords.of(text.text, text.tokens, TREE.leaf_size).terms):
                    for term in terms.split():
                        holding.setdefault(term, []).append((key, leaf))
                expected.add(key, ids, nodes)
                alive.update(rooms.digests(ids))
            for term in {*holding, *WORDS}:
                leaves = [row.tolist() for row in database.words.leaves_with(rooms.namespace, term)]
                assert [*zip(*leaves, strict=True)] == holding.get(term, []), f"{term!r} is found elsewhere"
            assert (rooms.index.frequency == expected.frequency).all(), "frequencies"
            if keys:
                mapped, own = rooms.index.leaves(), expected.leaves()
                for name in ("codes", "scales", "embeddings"):
                    assert torch.equal(getattr(mapped, name), getattr(own, name)), f"other {name} are compared"
            messages = len(database.messages(rooms.namespace, "talk"))
            for path in (folder / "kv").glob("*/*.safetensors"):
                assert path.stem[:-2] in alive, "keys and values of a document that is gone"
                held = rooms.cache.get(path.stem)
                assert held is None or torch.equal(held.data, kv(path.stem).data), "other keys and values"
        return found, messages
    finally:
        database.close()


def as_read(state: State) -> State:
    """A state with what :func:`read` tells of it."""
    told = {}
    for id, (seed, tokens, version) in state.items():
        ids = stored_text(seed, tokens).tokens.ids
        told[id] = int.from_bytes(ids[:4].tobytes(), "little"), tokens, version
    return told


def states(seed: int, steps: int) -> list[tuple[State, int]]:
    """What a store holds after none, one, two ... steps."""
    now: State = {}
    found, messages = [({}, 0)], 0
    for step in range(steps):
        after = apply(now, seed, step)
        messages += after != now
        now = after
        found.append((as_read(now), messages))
    return found


def after_steps(seed: int, steps: list[int]) -> tuple[State, int]:
    now: State = {}
    messages = 0
    for step in steps:
        after = apply(now, seed, step)
        messages += after != now
        now = after
    return as_read(now), messages
