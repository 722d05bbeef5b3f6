"""A store of shards selects what one store of all their documents does."""

import random

import pytest

from shared_context import Document, SharedLLMContextStore, StoreConfig, TreeConfig
from shared_context.errors import (
    ConfigError,
    DocumentNotFoundError,
    DuplicateDocumentError,
    ModelMismatchError,
    ShardUnavailableError,
    StoreClosedError,
    StoreFormatError,
    StoreUnavailableError,
)
from shared_context.remote.fetching import pull
from shared_context.remote.publishing import push
from shared_context.shards import ShardedContextStore, open_store
from shared_context.store import leaf_file, prefilter
from shared_context.store.shard_folders import folders_of

CONFIG = StoreConfig(tree=TreeConfig(chunk_size=256))
QUESTIONS = [
    "What did the glazier repair in Ashford?",
    "bridge 417",
    "When does the night ferry leave, and who mends the nets?",
    "Tell me about the beekeeper. The harvest was early this year and nobody had expected so much rain in the valley, "
    "so that many of the hives stood under water for weeks. What did the beekeeper do with his hives after the flood, "
    "and who bought the honey?",
]


class LetterEmbedder:
    """An embedder without weights: how often each letter comes."""

    name, dimension = "letters", 26

    def encode(self, texts):
        import numpy as np

        counts = np.array([[text.lower().count(chr(97 + letter)) + 1 for letter in range(26)] for text in texts], float)
        return (counts / np.linalg.norm(counts, axis=1, keepdims=True)).astype(np.float32)


TRADES = ["glazier", "beekeeper", "ferryman", "miller", "saddler", "netmaker"]
PLACES = ["Ashford", "the valley", "Stone Quay", "Upper Lea", "bridge 417", "the mill pond"]


def documents(seed: int, count: int, lengths: tuple[int, ...] = (1, 3, 12, 60)) -> list[Document]:
    rng = random.Random(seed)
    things = ["windows", "hives", "nets", "wheels", "saddles", "lamps", "ropes", "sails"]
    made = []
    for number in range(count):
        sentences = [
            f"The {rng.choice(TRADES)} of {rng.choice(PLACES)} {rng.choice(['repaired', 'sold', 'lost', 'painted'])} "
            f"{rng.randint(2, 40)} {rng.choice(things)} in week {rng.randint(1, 52)}."
            for _ in range(rng.choice(lengths))
        ]
        metadata = (
            {"title": f"Notes of the {rng.choice(TRADES)}", "year": rng.randint(1990, 2020)} if number % 3 else {}
        )
        made.append(Document(" ".join(sentences), f"d{number}", metadata))
    return [*made, Document(made[1].text, "twin"), Document(made[5].text, "other twin")]


@pytest.fixture(scope="module")
def small(make_small_model):
    return make_small_model()


def split(small, tmp_path_factory, made: list[Document], shards: int, embedder):
    """Documents split at random over shards, and one store of all of them in the order of the shards."""
    folder = tmp_path_factory.mktemp("stores")
    sharded = ShardedContextStore.create(small, folder / "sharded", shards, config=CONFIG, embedder=embedder)
    sharded.add(made)
    one = SharedLLMContextStore(small, folder / "one", config=CONFIG, embedder=embedder)
    of_id = {document.id: document for document in made}
    one.add([of_id[id] for id in sharded.ids()])
    return sharded, one


@pytest.fixture(
    scope="module",
    params=[(documents(0, 40), 3, LetterEmbedder()), (documents(1, 25), 7, None)],
    ids=["embedder", "none"],
)
def both(request, small, tmp_path_factory):
    sharded, one = split(small, tmp_path_factory, *request.param)
    with sharded, one:
        yield sharded, one


def seen(selection):
    return [(node.doc_id, node.start, node.end, node.ratio, node.also_in) for node in selection.nodes]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"budget": 64},
        {"budget": 5000},
        {"policy": "late_interaction", "floor": 0.0},
        {"policy": "lexical", "budget": 200},
        {"policy": "last_token", "budget": 200},
        {"filters": {"year": {"$gte": 2005}}, "budget": 200},
        {"doc_ids": ["d3", "d11", "twin"]},
        {"recent": 40, "budget": 200},
        {"coarse": [16, 8, 4, 2], "fine": 1, "budget": 300},
        {"search": "split_and_search"},
        {"show_metadata": True, "budget": 200},
        {"min_score": 0.3},
    ],
    ids=str,
)
def test_a_selection_is_the_one_of_a_single_store(both, options):
    sharded, one = both
    for question in QUESTIONS:
        found, expected = sharded.select(question, **options), one.select(question, **options)
        assert seen(found) == seen(expected)
        assert [node.score for node in found.nodes] == pytest.approx([node.score for node in expected.nodes], abs=1e-5)
        assert found.missing_shards == ()


@pytest.mark.slow
def test_so_it_is_among_ten_thousand_documents(small, tmp_path_factory):
    drawn = random.Random(3)
    sharded, one = split(small, tmp_path_factory, documents(3, 10_000, (1, 2, 3)), 16, LetterEmbedder())
    with sharded, one:
        for number in range(200):
            question = f"What did the {drawn.choice(TRADES)} of {drawn.choice(PLACES)} do in week {1 + number % 52}?"
            assert seen(sharded.select(question, budget=256)) == seen(one.select(question, budget=256)), question


def test_so_are_passages(both):
    sharded, one = both
    for question in QUESTIONS:
        found, expected = sharded.retrieve(question, 7), one.retrieve(question, 7)
        assert [(node.doc_id, node.start, node.text) for node in found] == [
            (node.doc_id, node.start, node.text) for node in expected
        ]


@pytest.mark.parametrize("exhaustive", [20_000, 4])
def test_so_is_what_the_prefilter_leaves(small, tmp_path_factory, monkeypatch, exhaustive):
    monkeypatch.setattr(prefilter, "EXHAUSTIVE_SPANS", exhaustive)
    monkeypatch.setattr(prefilter, "PROBED_LISTS", 1000)
    sharded, one = split(small, tmp_path_factory, documents(2, 30), 4, LetterEmbedder())
    with sharded, one:
        for options in (
            {"prefilter": 5},
            {"prefilter_chunks": 6},
            {"prefilter": 3, "filters": {"year": {"$gte": 2000}}},
        ):
            for question in QUESTIONS:
                assert seen(sharded.select(question, **options)) == seen(one.select(question, **options))


def test_what_the_prefilters_of_shards_have_learned_is_kept(small, tmp_path, monkeypatch):
    monkeypatch.setattr(prefilter, "EXHAUSTIVE_SPANS", 4)
    monkeypatch.setattr(prefilter, "PROBED_LISTS", 1000)
    found = []
    with ShardedContextStore.create(small, tmp_path / "s", 3, config=CONFIG, embedder=LetterEmbedder()) as store:
        store.add(documents(4, 40))
        found.append(seen(store.select(QUESTIONS[0], prefilter=5)))
    monkeypatch.setattr(prefilter, "_learned", None)
    with open_store(small, tmp_path / "s", embedder=LetterEmbedder()) as store:
        found.append(seen(store.select(QUESTIONS[0], prefilter=5)))
        store.delete("d3")
        store.add("The glazier of Ashford repaired the windows.", id="new")
        assert "new" in store.select("glazier Ashford repaired windows", prefilter=5).doc_ids
    assert found[0] == found[1]


def test_what_shards_map_is_kept_and_damage_of_it_changes_no_answer(small, tmp_path, monkeypatch):
    monkeypatch.setattr(leaf_file, "LEAST_TOKENS", 1)
    with ShardedContextStore.create(small, tmp_path / "s", 3, config=CONFIG, embedder=LetterEmbedder()) as store:
        store.add(documents(4, 40))
        expected = [seen(store.select(question, prefilter=9)) for question in QUESTIONS]
    files = [folder / leaf_file.FILE for folder in folders_of(tmp_path / "s", 3)]
    for file in files:
        file.unlink(missing_ok=True)
    open_store(small, tmp_path / "s", embedder=LetterEmbedder()).close()
    with open_store(small, tmp_path / "s", embedder=LetterEmbedder()) as store:
        for file in files:
            with open(file, "r+b") as damaged:
                middle = file.stat().st_size // 2  # behind it are rows, and before them what says where they are
                damaged.seek(middle)
                turned = bytes(byte ^ 64 for byte in damaged.read())
                damaged.seek(middle)
                damaged.write(turned)
        assert [seen(store.select(question, prefilter=9)) for question in QUESTIONS] == expected


def test_what_a_model_is_shown_is_the_same(both):
    sharded, one = both
    found, expected = (store.select(QUESTIONS[0], budget=128).key_values() for store in both)
    assert found.token_ids.tolist() == expected.token_ids.tolist()
    assert all(bool((a.data == b.data).all()) for a, b in zip(found.chunks, expected.chunks, strict=True))


def test_documents_are_read_changed_and_deleted(small, tmp_path):
    with ShardedContextStore.create(small, tmp_path / "store", 3, embedder=None) as store:
        assert store.ids() == [] and store.select("Anything?").nodes == ()
        store.add([Document(f"The keeper of lamp {number} sleeps.", f"d{number}") for number in range(9)])
        assert len(store) == store.stats()["documents"] == 9 and "d4" in store
        with pytest.raises(DuplicateDocumentError):
            store.add("Again.", id="d4")
        store.update("d4", "The keeper of the lighthouse wakes.", {"kind": "keeper"})
        assert store.get("d4").metadata == {"kind": "keeper"}
        assert store.retrieve("Who wakes in the lighthouse?", 1, policy="lexical")[0].doc_id == "d4"
        store.append("d4", " He sings.")
        assert store.get("d4").text.endswith("wakes. He sings.")
        with pytest.raises(DocumentNotFoundError):
            store.delete(["d1", "nobody"])
        store.delete(["d1", "d4"])
        assert len(store) == 7 and "d4" not in store
    with open_store(small, tmp_path / "store") as again:
        assert isinstance(again, ShardedContextStore) and len(again) == 7
        with pytest.raises(ConfigError, match="conversation"):
            again.conversation("chat")
    with pytest.raises(StoreClosedError):
        again.ids()


def test_a_shard_that_does_not_answer_fails_or_is_left_out(small, tmp_path, caplog):
    with ShardedContextStore.create(small, tmp_path / "store", 3, embedder=None) as store:
        store.add([Document(f"The keeper of lamp {number} sleeps.", f"d{number}") for number in range(9)])
        ids = store.ids()
    for missing in ("raise", "answer"):
        with ShardedContextStore(small, tmp_path / "store", missing=missing) as store:
            lost = store._crew._workers._shards[1]
            held = [entry.id for entry in lost.entries(lost.state().keys.tolist())]
            lost.late_interaction = None  # calling it fails as a process does that has died
            if missing == "raise":
                with pytest.raises(ShardUnavailableError, match="Shard 1 of 3"):
                    store.select("Who sleeps?")
                continue
            selection = store.select("Who sleeps?", budget=1000, floor=0.0)
            assert selection.missing_shards == store.missing_shards == ("shard-001",)
            assert sorted(selection.doc_ids) == sorted(set(ids) - set(held))
            assert "shards [1] do not answer" in caplog.text
            del lost.late_interaction
            store.recall()
            assert len(store.select("Who sleeps?", budget=1000, floor=0.0).doc_ids) == 9


@pytest.mark.parametrize("filters", [None, {"lamp": {"$gte": 0}}])
def test_what_is_deleted_while_a_question_is_answered_is_not_shown(small, tmp_path, filters):
    made = [Document(f"The keeper of lamp {n} sleeps.", f"d{n}", {"lamp": n}) for n in range(300)]
    with ShardedContextStore.create(small, tmp_path / "store", 2, embedder=None) as writer:
        writer.add(made)
        with ShardedContextStore(small, tmp_path / "store") as store:
            workers, ask = store._crew._workers, store._crew._workers.ask
            asked = []

            def ask_and_delete(questions):
                answers = ask(questions)
                if not asked and any(method == "state" for method, _ in questions.values()):
                    asked.append(questions)
                    writer.delete(["d7", "d8"])
                return answers

            workers.ask = ask_and_delete
            shown = store.select("Who is the keeper of lamp 7?", budget=5000, floor=0.0, filters=filters).doc_ids
            assert asked and len(shown) == 298 and {"d7", "d8"}.isdisjoint(shown)
            assert len(store) == 298 and "d7" not in store and store.get("d9").metadata == {"lamp": 9}


def test_what_is_no_store_of_shards_is_named(small, make_small_model, tmp_path):
    with pytest.raises(StoreFormatError, match="no store of shards"):
        ShardedContextStore(small, tmp_path / "nothing")
    with pytest.raises(ConfigError, match="shards=0"):
        ShardedContextStore.create(small, tmp_path / "store", 0)
    ShardedContextStore.create(small, tmp_path / "store", 2, embedder=None).close()
    with pytest.raises(StoreFormatError, match="holds something already"):
        ShardedContextStore.create(small, tmp_path / "store", 2)
    with pytest.raises(ModelMismatchError):
        ShardedContextStore(make_small_model(seed=1), tmp_path / "store")
    (tmp_path / "store" / "shard-001").rename(tmp_path / "store" / "shard-002")
    with pytest.raises(StoreFormatError, match="2 shards: shard-001 missing, shard-002 too many"):
        ShardedContextStore(small, tmp_path / "store")
    (tmp_path / "store" / "shard-002").rename(tmp_path / "elsewhere")
    SharedLLMContextStore(small, tmp_path / "store" / "shard-001", embedder=None).close()
    with pytest.raises(StoreFormatError, match="not made together"):
        ShardedContextStore(small, tmp_path / "store")


def test_it_is_published_and_read_from_there(small, tmp_path, monkeypatch):
    monkeypatch.setenv("SHARED_CONTEXT_HOME", str(tmp_path / "home"))
    address = (tmp_path / "bucket" / "name").as_uri()
    with ShardedContextStore.create(small, tmp_path / "store", 3, embedder=None) as store:
        store.add([Document(f"The keeper of lamp {number} sleeps.", f"d{number}") for number in range(9)])
        store.warm()
        expected = store.select("Which lamp?", budget=64)
    assert push(tmp_path / "store", address, kv=True).documents == 9
    with open_store(small, address) as store:
        assert isinstance(store, ShardedContextStore)
        assert seen(store.select("Which lamp?", budget=64)) == seen(expected)
        monkeypatch.setattr(small.compressor, "encode", None)  # what is computed fails: all of it was published
        assert store.select("Which lamp?", budget=64).key_values().chunks
        with pytest.raises(StoreUnavailableError, match="reading only"):
            store.add("New.", id="new")
    pull(address, tmp_path / "pulled")
    with ShardedContextStore(small, tmp_path / "pulled") as store:
        store.add("The keeper of lamp 9 sleeps.", id="d9")
    assert push(tmp_path / "pulled", address).documents == 10
    for place in (address, tmp_path / "pulled"):
        with pytest.raises(StoreFormatError, match="ShardedContextStore"):
            SharedLLMContextStore(small, place)
