"""How the prefilter divides spans is kept: nobody learns it again, nothing of what was deleted, no harm from damage."""

import random
import shutil

import numpy as np
import pytest

from shared_context import Document, StoreConfig, TreeConfig
from shared_context.store import prefilter
from shared_context.store.span_lists import FILE, SPAN_BITS, SpanLists

QUESTIONS = ("Who keeps the light of note 7?", "What is served in the kitchen?", "note 31")
TREE = TreeConfig(chunk_size=32, height=2)


@pytest.fixture(autouse=True)
def learned(monkeypatch) -> list[int]:
    """Any store is large enough; every list is read; and how often a process had to learn lists."""
    monkeypatch.setattr(prefilter, "EXHAUSTIVE_SPANS", 8)
    monkeypatch.setattr(prefilter, "PROBED_LISTS", 1000)
    times: list[int] = []
    monkeypatch.setattr(prefilter, "_learned", lambda *of, was=prefilter._learned: (times.append(1), was(*of))[1])
    return times


@pytest.fixture
def reopen(open_store, embedder):
    return lambda path: open_store(path, embedder=embedder, config=StoreConfig(tree=TREE))


@pytest.fixture
def kept(reopen, tmp_path):
    """The folder of a closed store with a file."""
    path = tmp_path / "kept"
    store = reopen(path)
    store.add([Document(f"Note {n} tells of the {n}th keeper of the light.", f"note-{n}") for n in range(60)])
    found(store)
    store.close()
    assert (path / FILE).exists()
    return path


def found(store) -> list[list[str]]:
    """The nearest documents; every list is read, so that they are the exact ones."""
    return [sorted(store.select(question, prefilter=3, budget=4000).doc_ids) for question in QUESTIONS]


def exact(store) -> list[list[str]]:
    """The same without FAISS: what filters leave is compared one by one."""
    store.add("It is of no use.", id="beside", metadata={"beside": True})
    result = [
        sorted(store.select(question, prefilter=3, budget=4000, filters={"$not": {"beside": True}}).doc_ids)
        for question in QUESTIONS
    ]
    store.delete("beside")
    return result


def held(path) -> SpanLists:
    from safetensors.numpy import load_file

    return SpanLists(**load_file(path / FILE))


def test_one_process_learns_and_others_find_the_same(kept, reopen, learned):
    assert len(learned) == 1
    store = reopen(kept)
    assert found(store) == found(reopen(kept)) == exact(store)
    assert len(learned) == 1


CHANGES = {
    "add": lambda store: store.add("Note 77 tells of soup.", id="new"),
    "delete": lambda store: store.delete([f"note-{n}" for n in range(20, 40)]),
    "delete and add": lambda store: (store.delete("note-7"), store.add("The keeper of note 7 is gone.", id="note-7")),
    "update": lambda store: store.update("note-5", "Note 5 is about soup in the kitchen now."),
    "append": lambda store: store.append("note-2", " And the lamp of the ferry is lit again, says the keeper. " * 3),
    "grown": lambda store: store.add([Document(f"Page {n} is about soup.", f"page-{n}") for n in range(40)]),
}


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("loaded", [True, False])
def test_changes_are_taken_in_without_learning(kept, reopen, learned, name, loaded):
    store = reopen(kept)
    if loaded:
        found(store)
    CHANGES[name](store)
    expected = exact(store)
    assert found(store) == expected
    store.close()
    assert found(reopen(kept)) == expected
    assert len(learned) == 1


@pytest.mark.parametrize("loaded", [True, False])
def test_nothing_of_a_document_that_is_gone_is_in_the_file(kept, reopen, loaded):
    store = reopen(kept)
    if loaded:
        found(store)
    ids = store.ids()
    for id in ids[:-3]:
        store.delete(id)
    lists, keys = held(kept), [store._rooms.catalogue.key(id) for id in ids[-3:]]
    assert sorted(set((lists.ids >> SPAN_BITS).tolist())) == keys
    # What is left of each list is the direction of what is in it, and of the others nothing.
    with store._rooms.catalogue.reading():
        leaves = store._rooms.catalogue.index.leaves()
        embeddings = leaves.embeddings.numpy()
    for number, direction in enumerate(lists.directions):
        members = embeddings[lists.lists == number]
        mean = members.sum(axis=0) / max(1e-12, np.linalg.norm(members.sum(axis=0)))
        np.testing.assert_allclose(direction, mean, atol=1e-6)


def test_what_a_killed_process_left_of_a_document_goes_when_the_store_is_opened(kept, reopen, tmp_path):
    before = shutil.copy(kept / FILE, tmp_path / "before")
    store = reopen(kept)
    key = store._rooms.catalogue.key("note-7")
    store.delete("note-7")
    store.close()
    shutil.copy(before, kept / FILE)
    assert key in held(kept).ids >> SPAN_BITS
    reopen(kept).close()
    assert key not in held(kept).ids >> SPAN_BITS


def test_damage_and_files_of_others_are_made_anew_with_a_line_in_the_log(kept, reopen, learned, caplog, tmp_path):
    caplog.set_level("INFO")
    expected, whole, drawn = found(reopen(kept)), (kept / FILE).read_bytes(), random.Random(1)
    for number in range(6):
        data, at = bytearray(whole), drawn.randrange(len(whole))
        if number % 2:
            data[at] ^= 1 << drawn.randrange(8)
        else:
            del data[at:]
        (kept / FILE).write_bytes(data)
        before = len(learned)
        caplog.clear()
        store = reopen(kept)
        assert found(store) == expected
        store.close()
        assert len(learned) == before + 1
        assert sum(FILE in line and "made anew" in line for line in caplog.messages) >= 1
    assert (kept / FILE).read_bytes()[:8] == whole[:8]


def test_lists_of_another_store_give_no_wrong_answer(kept, reopen, tmp_path):
    other = reopen(tmp_path / "other")
    other.add([Document(f"Soup {n} is served in the kitchen.", f"soup-{n}") for n in range(60)])
    expected = found(other)
    other.close()
    shutil.copy(kept / FILE, tmp_path / "other" / FILE)
    assert found(reopen(tmp_path / "other")) == expected


def test_a_writing_that_was_cut_off_is_detected(kept, reopen, learned, monkeypatch):
    store = reopen(kept)
    expected = exact(store)
    whole = (kept / FILE).read_bytes()
    # As a process leaves it that is killed after it had begun to overwrite.
    (kept / FILE).write_bytes(bytes(8) + whole[8:])
    assert found(reopen(kept)) == expected
    assert len(learned) == 2
