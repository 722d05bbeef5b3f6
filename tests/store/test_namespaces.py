"""Namespaces: each is a store of its own by every method, in one file; dropping one leaves nothing of it."""

import sqlite3
from pathlib import Path

import pytest

from shared_context import Document
from shared_context.errors import ConfigError, DocumentError, StoreClosedError, StoreFormatError
from shared_context.store import leaf_file
from shared_context.store.check import check
from shared_context.store.sqlite_file import FILE


def everything(folder: Path) -> bytes:
    """All bytes in a folder."""
    return b"".join(path.read_bytes() for path in folder.rglob("*") if path.is_file())


def test_a_namespace_has_ids_texts_and_conversations_of_its_own(open_store, path):
    store = open_store(path)
    one, two = store.namespace("one"), store.namespace("two")
    store.add("The store's own lamp.", id="lamp")
    one.add("The lamp of the first.", id="lamp")
    two.add("The lamp of the second.", id="lamp")
    one.conversation("talk").append("user", "hello")
    assert [s.get("lamp").text[:9] for s in (store, one, two)] == ["The store", "The lamp ", "The lamp "]
    assert [s.select("lamp").text for s in (one, two)] == ["The lamp of the first.", "The lamp of the second."]
    assert [s.conversations() for s in (store, one, two)] == [[], ["talk"], []]
    assert (store.namespaces(), one.namespaces()) == (["one", "two"], [])
    two.delete("lamp")
    assert ("lamp" in store, "lamp" in one, "lamp" in two) == (True, True, False)
    store.close()
    again = open_store(path)
    assert [len(again.namespace(name)) for name in ("one", "two")] == [1, 0]
    assert again.namespaces() == ["one", "two"]


def test_handles_of_one_namespace_see_each_others_changes(open_store, path, other):
    store = open_store(path)
    first, second = store.namespace("one"), store.namespace("one")
    first.add("The gate opens at six.", id="gate")
    assert second.select("gate").text == "The gate opens at six."
    other.run(f"theirs = SharedLLMContextStore(model, {str(path)!r}, embedder=None)")
    assert other.run("result = theirs.namespace('one').ids()") == ["gate"]
    other.run("theirs.namespace('one').update('gate', 'It opens at seven.')")
    assert first.get("gate").text == second.select("gate").text == "It opens at seven."
    other.run("theirs.namespace('one').drop(); theirs.close()")
    with pytest.raises(StoreClosedError, match="'one' was dropped"):
        second.ids()
    assert store.namespace("one").ids() == []


def test_folders_that_a_link_leads_to_are_not_taken_for_those_of_dropped_namespaces(store, path, tmp_path, open_store):
    store.namespace("one").add("The gate opens at six.", id="gate")
    store.close()
    kept = tmp_path / "elsewhere"
    for name in ("precious", "0" * 32):
        (kept / name).mkdir(parents=True)
    (path / "namespaces").symlink_to(kept)
    open_store(path).gc()
    assert sorted(folder.name for folder in kept.iterdir()) == ["0" * 32, "precious"]


@pytest.mark.parametrize("which", ["namespaces", "one"])
def test_a_link_in_the_place_of_a_namespaces_folder_is_refused_by_its_name(
    store, path, tmp_path, open_store, monkeypatch, which
):
    monkeypatch.setattr(leaf_file, "LEAST_TOKENS", 1)  # or what would be written is too little
    store.namespace("one").add("The gate opens at six.", id="gate")
    store.close()
    elsewhere, folder = tmp_path / "elsewhere", path / "namespaces"
    opened = open_store(path)
    opened.namespace("one")
    opened.close()
    (own,) = folder.iterdir()
    linked = folder if which == "namespaces" else own
    linked.rename(elsewhere)
    linked.symlink_to(elsewhere)
    before = sorted((file.name, file.stat().st_mtime_ns) for file in elsewhere.rglob("*"))
    opened = open_store(path)
    with pytest.raises(StoreFormatError, match=f"{linked.name} is a link"):
        opened.namespace("one")
    opened.close()
    assert sorted((file.name, file.stat().st_mtime_ns) for file in elsewhere.rglob("*")) == before
    linked.unlink()
    assert open_store(path).namespace("one").select("When does the gate open?").doc_ids == ["gate"]


def test_words_and_languages_of_another_namespace_change_no_score(open_store):
    store = open_store()
    alone, beside = store.namespace("alone"), store.namespace("beside")
    text = "The ledger lies behind the door. The key is on the table, and nobody has read it."
    alone.add(text, id="a")
    before = [(node.start, node.score) for node in alone.select("ledger and keys", policy="lexical").nodes]
    for number in range(5):
        beside.add(f"Die Schlüssel und das Buch sind nicht hier. The ledger {number} and the keys.", id=str(number))
    alone.update("a", text + " ")
    alone.update("a", text)
    assert [(node.start, node.score) for node in alone.select("ledger and keys", policy="lexical").nodes] == before


def test_a_text_that_another_namespace_has_is_no_hit(open_store, path):
    store = open_store(path)
    one, two = store.namespace("one"), store.namespace("two")
    for namespace in (one, two):
        namespace.add("The password of the vault is colza.", id="secret")
    one.warm()
    two.warm()
    for cache in (one.stats()["kv_cache"], two.stats()["kv_cache"]):
        assert {part: (cache[part]["entries"], cache[part]["hits"]) for part in cache} == {
            "memory": (1, 0),
            "disk": (1, 0),
        }


def test_what_a_namespace_keeps_on_disk_has_a_limit_of_its_own(open_store, path):
    store = open_store(path)
    one, two = store.namespace("one"), store.namespace("two")
    for namespace in (one, two):
        namespace.add("The lamp is lit at dusk.", id="lamp")
        namespace.warm()
    one.limit_kv(0)
    assert [s.stats()["kv_cache"]["disk"]["entries"] for s in (one, two)] == [0, 1]
    store.close()
    again = open_store(path)
    assert again.namespace("one").config.cache.disk_bytes == 0
    assert again.namespace("two").config == again.config


def test_nothing_is_left_of_a_namespace_that_is_dropped(open_store, path):
    store = open_store(path)
    one, two = store.namespace("one in hiding"), store.namespace("two")
    for namespace in (one, two):
        namespace.add("The lamp is lit at dusk.", id="lamp")
        namespace.warm()
    one.add("Quoxalin is stored in cellar nine.", id="quoxalin")
    one.conversation("plans").append("user", "Where is the quoxalin?")
    selection = one.select("Where is quoxalin?")
    one.drop()
    assert b"uoxalin" not in everything(path) and b"in hiding" not in everything(path)
    assert len(list((path / "namespaces").iterdir())) == 1
    selection.key_values()  # it outlives its namespace, and leaves nothing in it
    assert len(list((path / "namespaces").iterdir())) == 1
    assert two.select("lamp").text and two.stats()["kv_cache"]["disk"]["entries"] == 1
    for call in (one.ids, one.drop, lambda: one.add("x", id="x")):
        with pytest.raises(StoreClosedError):
            call()
    assert store.namespaces() == ["two"]
    assert check(path).damage == []


def test_the_folder_of_a_drop_that_was_cut_off_goes_when_the_store_is_opened(open_store, path):
    store = open_store(path)
    store.namespace("one").add("The lamp is lit at dusk.", id="lamp")
    store.close()
    left = path / "namespaces" / "0123" / "kv"
    left.mkdir(parents=True)
    (left / "file").write_text("keys and values")
    assert open_store(path).namespaces() == ["one"]
    assert not left.parent.exists()


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE namespaces SET name = 'tenanu' WHERE name = 'tenant'",
        "UPDATE namespaces SET salt = zeroblob(16) WHERE name = 'tenant'",
        "DELETE FROM namespaces WHERE name = 'tenant'",
    ],
)
def test_a_namespace_that_is_damaged_while_the_store_is_open_is_named_and_not_made_anew(open_store, path, change):
    store = open_store(path)
    for name in ("tenant", "tenant 2", 'ten"'):
        store.namespace(name).add(f"The lamp of {name}.", id="lamp")
    with sqlite3.connect(path / FILE) as connection:
        connection.execute(change)
    connection.close()
    with pytest.raises(StoreFormatError, match="namespace 'tenant'"):
        store.namespace("tenant")
    assert [store.namespace(name).ids() for name in ("tenant 2", 'ten"', "tenan", "ten")] == [
        ["lamp"],
        ["lamp"],
        [],
        [],
    ]


def test_a_closed_namespace_leaves_the_others_open(open_store):
    store = open_store()
    with store.namespace("one") as one, store.namespace("two") as two:
        one.close()
        with pytest.raises(StoreClosedError, match="ask the store"):
            one.ids()
        assert two.ids() == store.ids() == store.namespace("one").ids() == []


def test_a_copy_of_a_namespace_is_a_store(open_store, path, tmp_path):
    store = open_store(path)
    one = store.namespace("one")
    store.add("The store's own.", id="own")
    one.add([Document("The lamp is lit at dusk. " * 9, "lamp", {"place": "pier"}), Document("A gate.", "gate")])
    talk = one.conversation("talk", recent_tokens=1)
    talk.append("user", "Is the lamp lit?")
    talk.append("user", "And the gate?")
    one.persist(tmp_path / "copy")
    copy = open_store(tmp_path / "copy")
    assert [vars(document) for document in copy] == [vars(document) for document in one]
    for question in ("When is the lamp lit?", "gate"):
        assert copy.select(question).nodes == one.select(question).nodes
    assert copy.conversation("talk").messages() == talk.messages()
    assert copy.conversation("talk").select("lamp", budget=32).text == talk.select("lamp", budget=32).text
    assert check(tmp_path / "copy").damage == []


def test_a_repair_keeps_every_namespace(open_store, path):
    store = open_store(path)
    one = store.namespace("one")
    one.add("The lamp is lit at dusk.", id="lamp")
    one.add("The gate is shut.", id="gate")
    one.limit_kv(12_345)
    store.close()
    connection = sqlite3.connect(path / FILE)
    connection.execute("UPDATE parts SET text = 'The lamp is lit at dawn.' WHERE text LIKE 'The lamp%'")
    connection.commit()
    connection.close()
    assert check(path, repair=True).repaired
    again = open_store(path).namespace("one")
    assert again.ids() == ["gate"] and again.select("gate").text == "The gate is shut."
    assert again.config.cache.disk_bytes == 12_345


def test_what_makes_no_sense_is_refused(open_store):
    store = open_store()
    with pytest.raises(ConfigError, match="delete its folder"):
        store.drop()
    with pytest.raises(ConfigError, match="a namespace has none"):
        store.namespace("one").namespace("two")
    for name in ("", "x" * 513, 7):
        with pytest.raises(DocumentError):
            store.namespace(name)
