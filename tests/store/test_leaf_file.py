"""What is kept for the next opening: the same answers, nothing of what was deleted, and no harm where it is damaged."""

import json
import os
import random
import shutil
import sqlite3
import struct
from contextlib import closing

import numpy as np
import pytest
import torch
from safetensors import safe_open

from shared_context import Document, SharedLLMContextStore, StoreConfig, TreeConfig
from shared_context.errors import StoreFormatError
from shared_context.store import database, leaf_file, store_file
from shared_context.store.database import Database
from shared_context.store.leaf_file import FILE

ROWS = (
    "figures", "embeddings", "header_embeddings", "ids", "scales", "header_scales", "codes", "header_codes"
)  # fmt: skip

QUESTIONS = ("Who lights the lamp when the ferry leaves?", "What is served in the kitchen?")
TREE = TreeConfig(chunk_size=32, height=2)


@pytest.fixture(autouse=True)
def any_store_is_kept(monkeypatch, made):
    monkeypatch.setattr(leaf_file, "LEAST_TOKENS", 1)
    monkeypatch.setattr(leaf_file, "DOCUMENTS_CHECKED", 4)  # several times as many are in it


@pytest.fixture(scope="module")
def made(model, embedder, documents, tmp_path_factory):
    """The folder of a store with a file, closed, whose documents have embeddings and metadata."""
    path = tmp_path_factory.mktemp("stores") / "kept"
    with SharedLLMContextStore(model, path, config=StoreConfig(tree=TREE), embedder=embedder) as store:
        store.add(documents)
        store.add([Document(f"Note {n} tells of the {n}th keeper. " * 4, f"note-{n}", {"page": n}) for n in range(12)])
    return path


@pytest.fixture
def kept(made, reopen, tmp_path):
    """A copy of it that a test may change, opened once: it has a file now."""
    path = shutil.copytree(made, tmp_path / "kept")
    reopen(path).close()
    assert (path / FILE).exists()
    return path


@pytest.fixture
def reopen(open_store, embedder):
    return lambda path: open_store(path, embedder=embedder)


def compared(store) -> dict:
    """All that queries are compared with."""
    catalogue = store._rooms.catalogue
    with catalogue.reading():
        index = catalogue.index
        leaves = index.leaves()
        held = {name: getattr(leaves, name) for name in ("codes", "scales", "embeddings", "spans")}
        held |= {name: getattr(leaves, name) for name in ("document", "chunk", "slot", "span_chunk", "chunk_length")}
        # Of many lengths, so that headers say some of it in part.
        words = torch.linspace(-1, 1, 64) * 1.5 ** torch.arange(-6, 14)[:, None]
        said, near = index.headers.said(torch.cat([words, -words])), index.headers.near(torch.ones(384))
        held |= {"header words of": said.keys, "header words": said.shares}
        held |= {"header cosines of": near.keys, "header cosines": near.scores}
        figures = index.headers.with_figures([str(n) for n in range(90)])
        held |= {"figures of": figures.keys, "figures": figures.scores} if figures is not None else {}
        ids = index.token_ids()
        held |= {"frequency": index.frequency, "rarity": index.weights(np.arange(100))}
        held |= {"ids": np.concatenate([ids[key] for key in sorted(ids)])}
        held = {name: torch.as_tensor(values).numpy() for name, values in held.items()}
    return held | {"documents": np.array(store.ids())}


def from_database(path, tmp_path, reopen) -> dict:
    """The same of a store that reads everything from its database."""
    copy = tmp_path / f"copy-{random.random()}"
    shutil.copytree(path, copy)
    (copy / FILE).unlink(missing_ok=True)
    store = reopen(copy)
    try:
        return compared(store)
    finally:
        store.close()


def assert_same(found: dict, expected: dict) -> None:
    assert found.keys() == expected.keys()
    for name, values in found.items():
        if name in ("header words", "header cosines"):
            np.testing.assert_allclose(values, expected[name], atol=1e-5, err_msg=name)
        else:
            np.testing.assert_array_equal(values, expected[name], err_msg=name)


def test_a_store_that_is_opened_again_answers_the_same(kept, made, reopen):
    def answered(store) -> list:
        found = [(n.doc_id, n.start, round(n.score, 4)) for q in QUESTIONS for n in store.retrieve(q, k=3)]
        shown = [(n.doc_id, n.start, round(n.score, 4)) for q in QUESTIONS for n in store.select(q, budget=40).nodes]
        return [found, shown, [n.doc_id for q in QUESTIONS for n in store.retrieve(q, k=2, prefilter=3)]]

    assert answered(reopen(kept)) == answered(reopen(made))


def test_a_file_holds_all_that_queries_are_compared_with(kept, reopen, tmp_path):
    assert_same(compared(reopen(kept)), from_database(kept, tmp_path, reopen))


def test_opening_again_reads_no_document_but_those_that_changed(kept, reopen, tmp_path, monkeypatch):
    store = reopen(kept)
    for said in ("The lamp is lit by Anna.", "Who puts it out?"):
        store.conversation("talk", recent_tokens=0).append("user", said)
    store.update("note-6", metadata={"page": 606})
    store.append("note-2", " It is told again.")
    store.delete("note-3")
    read: list[int] = []
    for name in ("nodes", "document", "catalogue", "node_sums"):
        original = getattr(Database, name)
        monkeypatch.setattr(Database, name, lambda *of, was=original: (read.append(of[1]), was(*of))[1])
    again = reopen(kept)
    with again._rooms.catalogue.reading():
        assert read == [again._rooms.catalogue.key("note-2")]
    assert again.conversation("talk", recent_tokens=0).select("Who?").text
    assert_same(compared(again), from_database(kept, tmp_path, reopen))


def test_a_damaged_line_is_told_by_name_when_it_is_read(kept, reopen):
    with closing(sqlite3.connect(kept / "store.sqlite")) as connection, connection:
        connection.execute("UPDATE documents SET metadata = '{}' WHERE id = 'note-3'")
    store = reopen(kept)
    assert store.get("note-4").metadata == {"page": 4}
    for ask in (lambda: store.get("note-3"), lambda: store.select("note", filters={"page": 3}), store.ids):
        with pytest.raises(StoreFormatError, match="note-3"):
            ask()


def test_a_line_that_vanished_is_told_when_the_store_is_opened(kept, reopen):
    with closing(sqlite3.connect(kept / "store.sqlite")) as connection, connection:
        connection.execute("DELETE FROM documents WHERE id = 'note-3'")
    with pytest.raises(StoreFormatError, match="some of its documents are missing"):
        reopen(kept)


def test_more_changes_than_are_remembered_are_seen_when_the_store_is_opened_again(kept, reopen, tmp_path, monkeypatch):
    monkeypatch.setattr(database, "CHANGES_KEPT", 3)
    store = reopen(kept)
    for number in range(5):
        store.update("note-6", metadata={"page": number})
        store.delete(f"note-{7 + number}")
    assert_same(compared(reopen(kept)), from_database(kept, tmp_path, reopen))


CHANGES = {
    "add": lambda store: store.add("Note 77 tells of a lamp in the harbour.", id="new", metadata={"page": 77}),
    "delete": lambda store: store.delete(["note-3", "lamp", "note-11"]),
    "delete and add": lambda store: (store.delete("ferry"), store.add("The ferry is gone.", id="ferry")),
    "update": lambda store: store.update("note-5", "Note 5 is about soup in the kitchen now."),
    "append": lambda store: store.append("note-2", " And the lamp of the ferry is lit again."),
    "metadata": lambda store: store.update("note-6", metadata={"page": 7, "of": "the lamp"}),
    "no metadata": lambda store: store.update("note-6", metadata={}),
    "everything goes": lambda store: (store.delete(store.ids()), store.add("A lamp.", id="one")),
}


@pytest.mark.parametrize("name", CHANGES)
def test_changes_are_seen_while_the_store_is_open_and_when_it_is_opened_again(kept, reopen, tmp_path, name):
    store, other = reopen(kept), reopen(kept)
    compared(store), compared(other)
    CHANGES[name](store)
    expected = from_database(kept, tmp_path, reopen)
    assert_same(compared(store), expected)
    assert_same(compared(other), expected)
    assert_same(compared(reopen(kept)), expected)
    other.close()
    store.close()
    assert_same(compared(reopen(kept)), expected)


def test_many_changes_one_after_the_other_leave_what_the_database_holds(kept, reopen, tmp_path, monkeypatch):
    monkeypatch.setattr(leaf_file, "SHARE", 2)
    drawn = random.Random(5)
    store = reopen(kept)
    for step in range(24):
        ids = store.ids()
        match drawn.randrange(5):
            case 0:
                store.add(f"Step {step} of the keeper. " * drawn.randint(1, 9), id=f"step-{step}", metadata={"n": step})
            case 1 if len(ids) > 3:
                store.delete(drawn.choice(ids))
            case 2:
                store.append(drawn.choice(ids), f" Step {step} is told behind the ferry.")
            case 3:
                store.update(drawn.choice(ids), metadata={"page": step})
            case _:
                store.close()
                store = reopen(kept)
        if step % 6 == 5:
            assert_same(compared(store), from_database(kept, tmp_path, reopen))


def rows_of(kept, reopen, id: str) -> bytes:
    """What the file has of a document, as bytes that nothing else has."""
    store = reopen(kept)
    catalogue = store._rooms.catalogue
    with catalogue.reading():
        _, nodes = catalogue.nodes(catalogue.key(id))
    store.close()
    codes = nodes.codes[:8].tobytes()
    assert codes in (kept / FILE).read_bytes()
    return codes


@pytest.mark.parametrize("change", ["delete", "update", "compact"])
def test_nothing_of_a_document_that_is_gone_is_in_the_file(kept, reopen, change):
    codes = rows_of(kept, reopen, "kitchen")
    size = (kept / FILE).stat().st_size
    store = reopen(kept)
    if change == "update":
        store.update("kitchen", "The kitchen is closed.")
    else:
        store.delete("kitchen")
    assert codes not in (kept / FILE).read_bytes()
    if change == "compact":
        store.compact()
        assert (kept / FILE).stat().st_size < size


def test_what_a_killed_process_left_of_a_document_goes_when_the_store_is_opened(kept, reopen, tmp_path):
    codes = rows_of(kept, reopen, "kitchen")
    before = shutil.copy(kept / FILE, tmp_path / "before")
    store = reopen(kept)
    store.delete("kitchen")
    expected = compared(store)
    store.close()
    shutil.copy(before, kept / FILE)
    assert_same(compared(reopen(kept)), expected)
    assert codes not in (kept / FILE).read_bytes()


def test_a_file_of_an_older_or_another_store_is_not_taken(kept, reopen, tmp_path):
    older = shutil.copytree(kept, tmp_path / "older")
    for folder, text in ((kept, "The lamp is red."), (older, "The lamp is blue.")):
        store = reopen(folder)
        store.delete("note-11")
        store.add(text, id="colour")
        store.compact()
        store.close()
    shutil.copy(older / FILE, kept / FILE)
    assert "red" in reopen(kept).retrieve("Which colour has the lamp?", k=1)[0].text
    assert_same(compared(reopen(kept)), from_database(kept, tmp_path, reopen))


def test_damage_anywhere_in_the_file_changes_no_answer(kept, reopen, tmp_path):
    expected = from_database(kept, tmp_path, reopen)
    whole = (kept / FILE).read_bytes()
    drawn = random.Random(3)
    for number in range(24):
        data, at = bytearray(whole), drawn.randrange(len(whole) if number % 2 else 2000)
        match number % 4:
            case 0 | 1:
                data[at] ^= 1 << drawn.randrange(8)
            case 2:
                data[at : at + 64] = bytes(64)
            case 3:
                del data[at:]
        (kept / FILE).write_bytes(data)
        store = reopen(kept)
        assert_same(compared(store), expected)
        store.close()


def damage(path, kinds=ROWS, every: int = 1) -> None:
    """Turn a bit over in every ``every``-th row, or so, of each of these kinds."""
    with open(path / FILE, "r+b") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        for kind in kinds:
            begin, end = header[kind]["data_offsets"]
            count = header[kind]["shape"][0]
            for row in range(0, count, every):
                at = 8 + length + begin + (row + 1) * ((end - begin) // count) - 1
                file.seek(at)
                (byte,) = file.read(1)
                file.seek(at)
                file.write(bytes([byte ^ 32]))


@pytest.mark.parametrize("every", [1, 7])
@pytest.mark.parametrize("kind", ROWS)
def test_rows_that_are_damaged_before_they_are_first_read_change_no_answer(kept, reopen, tmp_path, kind, every):
    expected = from_database(kept, tmp_path, reopen)
    store = reopen(kept)
    damage(kept, [kind], every)
    assert_same(compared(store), expected)
    store.close()
    assert_same(compared(reopen(kept)), expected)


@pytest.mark.parametrize("name", CHANGES)
def test_changes_of_a_store_whose_file_is_damaged_are_seen(kept, reopen, tmp_path, name):
    store, other = reopen(kept), reopen(kept)
    damage(kept)
    CHANGES[name](store)
    expected = from_database(kept, tmp_path, reopen)
    assert_same(compared(other), expected)
    assert_same(compared(reopen(kept)), expected)
    assert_same(compared(store), expected)
    other.close()
    store.close()
    assert_same(compared(reopen(kept)), expected)


@pytest.mark.parametrize("damaged", [False, True])
@pytest.mark.parametrize("name", CHANGES)
def test_changes_before_anything_is_read_are_seen(kept, reopen, tmp_path, name, damaged):
    store, other = reopen(kept), reopen(kept)
    CHANGES[name](store)
    if damaged and (kept / FILE).exists():
        damage(kept, every=5)
    expected = from_database(kept, tmp_path, reopen)
    assert_same(compared(other), expected)
    assert_same(compared(store), expected)


def test_a_damaged_file_is_mended_when_the_store_is_closed(kept, reopen, tmp_path):
    with safe_open(kept / FILE, "np") as file:
        whole = file.get_tensor("codes").copy()
    store = reopen(kept)
    damage(kept, ["codes"])
    compared(store)
    store.close()
    with safe_open(kept / FILE, "np") as file:
        np.testing.assert_array_equal(file.get_tensor("codes"), whole)


def test_a_store_that_may_only_be_read_uses_the_file_and_leaves_it(kept, reopen, tmp_path, monkeypatch):
    expected = from_database(kept, tmp_path, reopen)
    store = reopen(kept)
    store.delete("note-11")
    store.close()
    before = (kept / FILE).read_bytes()
    monkeypatch.setattr(store_file, "is_writable", lambda folder: False)
    store = reopen(kept)
    assert compared(store)["documents"].tolist() == expected["documents"].tolist()[:-1]
    store.close()
    assert (kept / FILE).read_bytes() == before


@pytest.mark.posix
@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_what_is_no_file_is_left_alone(kept, reopen, tmp_path, kind):
    expected = from_database(kept, tmp_path, reopen)
    elsewhere = (kept / FILE).rename(tmp_path / "elsewhere")
    before = elsewhere.read_bytes()
    match kind:
        case "link":
            (kept / FILE).symlink_to(elsewhere)
        case "pipe":
            os.mkfifo(kept / FILE)
        case "folder":
            (kept / FILE).mkdir()
    store = reopen(kept)
    assert_same(compared(store), expected)
    store.delete("lamp")
    assert elsewhere.read_bytes() == before


def test_a_writing_that_was_cut_off_leaves_nothing(kept, reopen, tmp_path, monkeypatch):
    def cut_off(*_):
        raise OSError("No space left on device")

    expected = from_database(kept, tmp_path, reopen)
    (kept / FILE).unlink()
    monkeypatch.setattr(leaf_file.os, "fsync", cut_off)
    store = reopen(kept)
    assert_same(compared(store), expected)
    store.close()
    assert sorted(path.name for path in kept.iterdir()) == ["store.sqlite"]


def test_namespaces_have_files_of_their_own(kept, reopen):
    store = reopen(kept)
    tenant = store.namespace("tenant")
    tenant.add("The tenant's lamp is green.", id="green")
    store.close()
    files = list((kept / "namespaces").glob(f"*/{FILE}"))
    assert len(files) == 1
    store = reopen(kept)
    store.namespace("tenant")
    store.close()
    assert files[0].exists()
    store = reopen(kept)
    assert store.namespace("tenant").retrieve("Which lamp?", k=1)[0].doc_id == "green"
    store.namespace("tenant").drop()
    assert not files[0].exists()
