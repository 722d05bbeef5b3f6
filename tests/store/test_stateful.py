"""A store against a dictionary: whatever is done, in whatever order, by whichever of two handles, it holds the same."""

import asyncio
import shutil
import sqlite3
import tempfile
from contextlib import closing
from dataclasses import replace as replace_in
from itertools import count
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from shared_context import Document, SharedLLMContextStore, StoreConfig, TreeConfig
from shared_context.errors import (
    BudgetError,
    DocumentError,
    DocumentNotFoundError,
    SharedContextError,
    StoreClosedError,
)
from shared_context.store import leaf_file
from shared_context.store.check import check
from shared_context.store.sqlite_file import FILE
from shared_context.store.word_index import WordIndex

CONFIG = StoreConfig(tree=TreeConfig(chunk_size=32, height=2), lead_in=8, floor=0.0)
NOUNS = ["weir", "heron", "miller", "barge", "lock", "osier", "eel", "towpath"]
DIGEST_DIGITS = 40
"""Of a chunk's digest, which the names of its files begin with."""

names = st.sampled_from(["", "", "", "north", "south"])
ids = st.sampled_from(["one", "two", "three", "four"])
talks = st.sampled_from(["ann", "ben"])
nouns = st.lists(st.sampled_from(NOUNS), min_size=1, max_size=40)
years = st.integers(1, 3)
questions = st.sampled_from(["Where is the heron?", "eel barge", "Who opens the lock?", "osier 7"])


class StoreMachine(RuleBasedStateMachine):
    """Documents, conversations and namespaces as dictionaries, and two handles of one folder that must agree."""

    model = None  # set by the tests

    def __init__(self):
        super().__init__()
        self.root = Path(tempfile.mkdtemp())
        self.folder = self.root / "store"
        self.numbers = count(1)
        self.documents: dict[str, dict[str, Document]] = {"": {}}
        self.talks: dict[str, dict[str, list[tuple[str, str]]]] = {"": {}}
        self.selections = []
        self.handles = [self.open(), self.open()]

    def open(self):
        return SharedLLMContextStore(self.model, self.folder, config=CONFIG, embedder=None)

    def teardown(self):
        for handle in self.handles:
            handle.close()
        assert check(self.folder).damage == []
        shutil.rmtree(self.root)

    def text(self, words: list[str]) -> str:
        """A text that no other one is like: its mark stands nowhere else, in no file, once it is gone."""
        return f"Note mark{next(self.numbers):05}q: " + " ".join(words) + "."

    def of(self, handle: int, name: str):
        """A namespace by one of the handles; it is made where it is not there."""
        self.documents.setdefault(name, {})
        self.talks.setdefault(name, {})
        return self.handles[handle].namespace(name) if name else self.handles[handle]

    def put(self, name: str, document: Document) -> None:
        """What adding or replacing does: a document with another text is the last one."""
        kept = self.documents[name]
        if document.id in kept and kept[document.id].text != document.text:
            del kept[document.id]
        kept[document.id] = document

    # Documents

    @rule(handle=st.integers(0, 1), name=names, id=ids, words=nouns, year=years, replace=st.booleans())
    def add(self, handle, name, id, words, year, replace):
        store, document = self.of(handle, name), Document(self.text(words), id, {"year": year})
        if id in self.documents[name] and not replace:
            with pytest.raises(DocumentError, match="stored already"):
                store.add(document)
            return
        assert store.add(document, replace=replace) == [id]
        self.put(name, document)

    @rule(handle=st.integers(0, 1), name=names, words=nouns, year=years, atomic=st.booleans(), same=st.booleans())
    def add_several(self, handle, name, words, year, atomic, same):
        store = self.of(handle, name)
        known = self.documents[name].get("two")
        second = known.text if same and known is not None else self.text(words[:3])
        documents = [Document(self.text(words), "one", {"year": year}), Document(second, "two", {"year": 9})]
        assert asyncio.run(store.aadd(documents, replace=True, atomic=atomic)) == ["one", "two"]
        for document in documents:
            self.put(name, document)

    @rule(handle=st.integers(0, 1), name=names, id=ids, words=st.none() | nouns, year=st.none() | years)
    def update(self, handle, name, id, words, year):
        store = self.of(handle, name)
        text, metadata = words and self.text(words), year and {"year": year, "place": "mill"}
        before = self.documents[name].get(id)
        if before is None:
            with pytest.raises(DocumentNotFoundError):
                store.update(id, text, metadata)
            return
        store.update(id, text, metadata)
        self.put(name, replace_in(before, text=text or before.text, metadata=metadata or before.metadata))

    @rule(handle=st.integers(0, 1), name=names, id=ids, words=nouns)
    def append(self, handle, name, id, words):
        store, more = self.of(handle, name), " " + self.text(words)
        before = self.documents[name].get(id)
        if before is None:
            with pytest.raises(DocumentNotFoundError):
                store.append(id, more)
            return
        store.append(id, more)
        self.put(name, replace_in(before, text=before.text + more))

    @rule(handle=st.integers(0, 1), name=names, gone=st.lists(ids, min_size=1, max_size=3))
    def delete(self, handle, name, gone):
        store = self.of(handle, name)
        if not set(gone) <= self.documents[name].keys():
            with pytest.raises(DocumentNotFoundError):
                store.delete(gone)
            return
        store.delete(gone)
        for id in set(gone):
            del self.documents[name][id]

    @rule(handle=st.integers(0, 1), words=st.lists(nouns, min_size=1, max_size=3), remove=st.booleans())
    def sync(self, handle, words, remove):
        files = self.root / "files"
        if remove:
            shutil.rmtree(files, ignore_errors=True)
        files.mkdir(exist_ok=True)
        texts = {}
        for number, each in enumerate(words):
            texts[files / f"{number}.md"] = self.text(each)
        for path, text in texts.items():
            path.write_text(text)
        report = self.of(handle, "").sync(files)
        kept = self.documents[""]
        there = {path.as_posix() for path in files.iterdir()}
        gone = [id for id in kept if id.startswith(files.as_posix()) and id not in there]
        new = [path.as_posix() for path in texts if path.as_posix() not in kept]
        changed = [path.as_posix() for path in texts if path.as_posix() in kept]
        assert (list(report.added), list(report.replaced), list(report.removed)) == (new, changed, gone)
        for id in gone:
            del kept[id]
        for id in (*new, *changed):
            metadata, keys = {"file_name": Path(id).name, "file_path": id}, ("file_path",)
            self.put("", Document(texts[Path(id)], id, metadata, unsearched_keys=keys, hidden_keys=keys))

    # Queries

    @rule(
        handle=st.integers(0, 1),
        name=names,
        question=questions,
        budget=st.sampled_from([8, 32, 400]),
        year=st.none() | years,
        policy=st.sampled_from([None, "lexical", "late_interaction"]),
    )
    def select(self, handle, name, question, budget, year, policy):
        store = self.of(handle, name)
        filters = None if year is None else {"year": year}
        try:
            selection = store.select(question, budget=budget, filters=filters, policy=policy)
        except BudgetError:
            return
        kept = self.documents[name]
        for node in selection.nodes:
            assert kept[node.doc_id].text[node.start : node.end] == node.text
            assert year is None or kept[node.doc_id].metadata.get("year") == year
        assert selection.kv_entries <= budget
        if budget == 400 and year is None:
            shown = sum(len(node.text) for node in selection.nodes)
            assert bool(shown) == bool(kept)
        self.selections.append(selection)

    @rule(handle=st.integers(0, 1), name=names, question=questions, year=st.none() | years)
    def retrieve(self, handle, name, question, year):
        passages = self.of(handle, name).retrieve(question, 3, filters=year and {"year": year})
        kept = self.documents[name]
        wanted = [d for d in kept.values() if year is None or d.metadata.get("year") == year]
        assert bool(passages) == bool(wanted)
        for passage in passages:
            assert passage.text in kept[passage.doc_id].text and kept[passage.doc_id] in wanted

    @rule(name=names, number=st.integers(0, 10**6))
    def find_by_mark(self, name, number):
        """A word that only one document has finds it, whatever came and went before."""
        kept = list(self.of(0, name) and self.documents[name].values())
        if kept:
            document = kept[number % len(kept)]
            mark = document.text.split()[1].rstrip(":")
            assert self.of(1, name).retrieve(mark, 1, policy="lexical")[0].doc_id == document.id

    @rule(number=st.integers(0, 10**6))
    def answer(self, number):
        """A selection that is held: what it shows is read, or it is told that it changed."""
        if self.selections:
            selection = self.selections[number % len(self.selections)]
            try:
                assert self.model.nll("Where?", " Here.", context=selection if selection.nodes else None) > 0
            except SharedContextError:
                current = [d for kept in self.documents.values() for d in kept.values()]
                texts = [one.text for one in current]
                assert not all(any(node.text in text for text in texts) for node in selection.nodes)

    @rule(handle=st.integers(0, 1), name=names)
    def warm(self, handle, name):
        self.of(handle, name).warm()

    # Conversations

    @rule(handle=st.integers(0, 1), name=names, talk=talks, words=nouns, recent=st.sampled_from([0, 15, 1000]))
    def say(self, handle, name, talk, words, recent):
        text = self.text(words)
        self.of(handle, name).conversation(talk, recent_tokens=recent).append("user", text)
        self.talks[name].setdefault(talk, []).append(("user", text))

    @rule(handle=st.integers(0, 1), name=names, talk=talks, question=questions)
    def recall(self, handle, name, talk, question):
        memory = self.of(handle, name).conversation(talk)
        said = [text for _, text in self.talks[name].get(talk, ())]
        assert [message["content"] for message in memory.recent()] == said[len(said) - len(memory.recent()) :]
        for node in memory.select(question, budget=64).nodes:
            words = node.text.split()  # none where the line's end behind a message is a leaf of its own
            assert not words or any(word in " ".join(said) for word in words)

    @rule(handle=st.integers(0, 1), name=names, talk=talks, position=st.integers(0, 3), words=st.none() | nouns)
    def forget_or_edit(self, handle, name, talk, position, words):
        memory, said = self.of(handle, name).conversation(talk), self.talks[name].get(talk, [])
        content = words and self.text(words)
        change = (lambda: memory.edit(position, content)) if words else (lambda: memory.forget(position))
        if position >= len(said):
            with pytest.raises(DocumentError):
                change()
            return
        change()
        if words:
            said[position] = ("user", content)
        else:
            del said[position]
            if not said:
                del self.talks[name][talk]

    @rule(handle=st.integers(0, 1), name=names, talk=talks)
    def clear(self, handle, name, talk):
        self.of(handle, name).conversation(talk).clear()
        self.talks[name].pop(talk, None)

    # The store

    @rule(handle=st.integers(0, 1), name=st.sampled_from(["north", "south"]))
    def drop(self, handle, name):
        other = self.of(1 - handle, name)
        self.of(handle, name).drop()
        del self.documents[name], self.talks[name]
        with pytest.raises(StoreClosedError, match="dropped"):
            other.ids()

    @rule(handle=st.integers(0, 1))
    def reopen(self, handle):
        self.handles[handle].close()
        with pytest.raises(StoreClosedError):
            self.handles[handle].ids()
        self.handles[handle] = self.open()

    @rule()
    def reopen_all(self):
        for handle in self.handles:
            handle.close()
        assert check(self.folder).damage == []
        self.handles = [self.open(), self.open()]

    @rule(handle=st.integers(0, 1), keep=st.sampled_from([None, 0, 10**5]))
    def gc(self, handle, keep):
        self.handles[handle].gc(keep)

    @rule(handle=st.integers(0, 1))
    def compact(self, handle):
        self.handles[handle].compact()

    @rule(handle=st.integers(0, 1), limit=st.sampled_from([0, 10**5, 2**30]))
    def limit_kv(self, handle, limit):
        self.handles[handle].limit_kv(limit)

    @rule(handle=st.integers(0, 1), name=names)
    def persist(self, handle, name):
        copy = self.root / f"copy {next(self.numbers)}"
        self.of(handle, name).persist(copy)
        with SharedLLMContextStore(self.model, copy, embedder=None) as store:
            assert list(store) == list(self.documents[name].values())
            assert store.conversations() == sorted(self.talks[name])
            assert sorted(store.namespaces()) == ([] if name else sorted(filter(None, self.documents)))
        shutil.rmtree(copy)

    @initialize()
    def begin(self):
        assert self.handles[0].ids() == []

    # What holds at any time

    @invariant()
    def both_handles_hold_the_same(self):
        for handle in self.handles:
            assert sorted(handle.namespaces()) == sorted(filter(None, self.documents))
            for name in self.documents:
                store = handle.namespace(name) if name else handle
                kept = self.documents[name]
                assert list(store) == list(kept.values())
                assert store.ids({"year": 2}) == [d.id for d in kept.values() if d.metadata.get("year") == 2]
                assert len(store) == len(kept) and ("one" in store) == ("one" in kept)
                assert store.conversations() == sorted(self.talks[name])
                for talk, said in self.talks[name].items():
                    messages = store.conversation(talk).messages()
                    assert [(message["role"], message["content"]) for message in messages] == said

    @invariant()
    def nothing_outlives_its_document(self):
        marks = [f"mark{number:05}q" for number in range(1, next(self.numbers))]
        with closing(sqlite3.connect(self.folder / FILE)) as connection:
            digests = connection.execute("SELECT digest FROM parts UNION SELECT digest FROM headers").fetchall()
            words = WordIndex(connection)
            assert words.is_whole(CONFIG.tree.leaf_size, thorough=True)
            there = {key for (key,) in connection.execute("SELECT key FROM documents")}
            for (namespace,) in connection.execute("SELECT key FROM namespaces").fetchall():
                for mark in marks:
                    assert set(words.leaves_with(namespace, mark)[0].tolist()) <= there
        kept = {path.stem[:DIGEST_DIGITS] for path in self.folder.rglob("kv/*/*.safetensors")}
        assert kept <= {digest.hex() for (digest,) in digests}
        texts = " ".join(
            [d.text for kept in self.documents.values() for d in kept.values()]
            + [text for talks in self.talks.values() for said in talks.values() for _, text in said]
        )
        content = b"".join(path.read_bytes() for path in self.folder.glob(f"{FILE}*"))
        for mark in marks:
            if mark not in texts:
                assert mark.encode() not in content, f"{mark} is still in the file"


def run(model, examples: int, steps: int) -> None:
    machine = type("Machine", (StoreMachine,), {"model": model})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=examples < 50,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize("mapped", [False, True])
def test_a_store_holds_what_a_dictionary_holds(make_small_model, mapped, monkeypatch):
    if mapped:  # as in a store of many tokens
        monkeypatch.setattr(leaf_file, "LEAST_TOKENS", 1)
    run(make_small_model(), examples=3, steps=25)


@pytest.mark.slow
@pytest.mark.parametrize("mapped", [False, True])
def test_a_store_holds_what_a_dictionary_holds_over_many_steps(make_small_model, mapped, monkeypatch):
    if mapped:
        monkeypatch.setattr(leaf_file, "LEAST_TOKENS", 1)
    run(make_small_model(), examples=150, steps=60)
