"""Keys and values may leave the cache at any time: that costs time, never an answer."""

import shutil
from dataclasses import replace

import pytest
import torch

from shared_context import CacheConfig, Document, SharedLLMContextStore, SharedLLMModel, StoreConfig, TreeConfig
from shared_context.config import GIB
from shared_context.kernels import ChunkKV
from shared_context.store import kv_file

QUERY = "When does the last ferry to Holm leave on Sundays?"
ANSWER = "at 17:30"
CHUNK_BYTES = (16 + 64) * 30 * 2 * 3 * 64 * 4
"""The KV of a full chunk of the default model and its lead-in in float32."""


@pytest.fixture(scope="session")
def model() -> SharedLLMModel:
    """The default model in float32: in bfloat16 a chunk's KV depend a little on the chunks it is encoded with."""
    return SharedLLMModel.from_pretrained(adapter=None, dtype="float32")


@pytest.fixture
def exact(filled, model) -> float:
    """The answer's score when all is computed for the first time."""
    return model.nll(QUERY, ANSWER, context=filled.select(QUERY, budget=96))


def test_the_score_is_the_same_from_memory_and_from_disk(filled, model, exact, open_store, path):
    assert model.nll(QUERY, ANSWER, context=filled.select(QUERY, budget=96)) == pytest.approx(exact, abs=1e-4)
    filled.close()
    again = open_store(path)
    assert model.nll(QUERY, ANSWER, context=again.select(QUERY, budget=96)) == pytest.approx(exact, abs=1e-4)
    disk = again.stats()["kv_cache"]["disk"]
    assert disk["hits"] > 0
    assert disk["misses"] == 0


def test_a_deleted_cache_folder_is_made_again(filled, model, exact, open_store, path):
    selection = filled.select(QUERY, budget=96)
    filled.close()
    shutil.rmtree(path / "kv")
    again = open_store(path)
    assert model.nll(QUERY, ANSWER, context=again.select(QUERY, budget=96)) == pytest.approx(exact, abs=1e-3)
    assert (path / "kv").is_dir()
    shutil.rmtree(path / "kv")
    assert model.nll(QUERY, ANSWER, context=selection) == pytest.approx(exact, abs=1e-3)


@pytest.mark.parametrize(
    "cache",
    [
        CacheConfig(memory_bytes=0, disk_bytes=0),
        CacheConfig(memory_bytes=CHUNK_BYTES, disk_bytes=0),
        CacheConfig(memory_bytes=0, disk_bytes=2 * CHUNK_BYTES),
    ],
    ids=["no cache", "room for one chunk", "on disk only"],
)
def test_a_cache_too_small_for_the_selection_gives_the_same_answer(filled, model, exact, open_store, path, cache):
    filled.close()
    shutil.rmtree(path / "kv")
    small = open_store(path, config=replace(filled.config, cache=cache))
    for _ in range(2):
        assert model.nll(QUERY, ANSWER, context=small.select(QUERY, budget=96)) == pytest.approx(exact, abs=1e-3)
    stats = small.stats()["kv_cache"]
    assert stats["memory"]["bytes"] <= cache.memory_bytes
    assert stats["disk"]["bytes"] <= cache.disk_bytes


def test_int8_is_close_and_the_first_answer_is_no_other_than_the_next(filled, model, exact, open_store, path):
    filled.close()
    shutil.rmtree(path / "kv")
    config = replace(filled.config, cache=CacheConfig(quantize=True))
    store = open_store(path, config=config)
    scores = [model.nll(QUERY, ANSWER, context=store.select(QUERY, budget=96)) for _ in range(2)]
    store.close()
    again = open_store(path, config=config)
    scores.append(model.nll(QUERY, ANSWER, context=again.select(QUERY, budget=96)))
    assert scores[0] == pytest.approx(scores[1], abs=1e-4) == pytest.approx(scores[2], abs=1e-4)
    assert scores[0] == pytest.approx(exact, abs=0.1)
    assert again.stats()["kv_cache"]["disk"]["hits"] > 0


def test_nothing_is_computed_before_it_is_needed(filled):
    assert filled.select(QUERY, budget=96)
    cache = filled.stats()["kv_cache"]
    assert (cache["memory"]["entries"], cache["disk"]["entries"]) == (0, 0)


def test_warming_a_selection_computes_what_it_needs(filled, model):
    selection = filled.select(QUERY, budget=64)
    calls = []
    filled.warm(selection, progress=lambda *call: calls.append(call))
    chunks = len(selection.chunks)
    assert filled.stats()["kv_cache"]["memory"]["entries"] == chunks
    assert calls[-1] == (chunks, chunks, "chunks")
    misses = filled.stats()["kv_cache"]["memory"]["misses"]
    model.nll(QUERY, ANSWER, context=selection)
    assert filled.stats()["kv_cache"]["memory"]["misses"] == misses


def test_warming_the_store_computes_all_chunks_once(filled):
    chunks = filled.stats()["chunks"]
    filled.warm(filled.select(QUERY, budget=64))
    calls = []
    filled.warm(progress=lambda *call: calls.append(call))
    stats = filled.stats()["kv_cache"]
    assert stats["disk"]["entries"] == stats["memory"]["entries"] == chunks
    assert calls[-1] == (chunks, chunks, "chunks")
    encode = filled.model.compressor.encode
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filled.model.compressor, "encode", lambda chunks: pytest.fail("computed again"))
        filled.warm()
        filled.select(None, ratio=1).key_values()
    assert filled.model.compressor.encode == encode


def test_a_selection_survives_the_deletion_of_its_document(filled, model, exact):
    selection = filled.select(QUERY, budget=96)
    text, nodes = selection.text, selection.nodes
    filled.delete(filled.ids())
    filled.add("Nothing of interest.", id="ferry")
    assert (selection.text, selection.nodes) == (text, nodes)
    assert model.nll(QUERY, ANSWER, context=selection) == pytest.approx(exact, abs=1e-3)


def test_the_keys_and_values_of_a_deleted_document_are_deleted_too(filled, documents, path):
    filled.warm()
    chunks = filled.stats()["chunks"]
    of_lamp = len(filled.select(None, ratio=1, doc_ids=["lamp"]).chunks)
    filled.delete("lamp")
    cache = filled.stats()["kv_cache"]
    assert cache["disk"]["entries"] == cache["memory"]["entries"] == chunks - of_lamp
    filled.update("ferry", "Closed.")
    filled.delete("kitchen")
    assert filled.stats()["kv_cache"]["disk"]["entries"] == 0
    assert list((path / "kv").rglob("*.safetensors")) == []


def test_appending_keeps_the_keys_and_values_of_whole_chunks(filled):
    filled.warm()
    whole = sum(len(c.token_ids) == 64 for c in filled.select(None, ratio=1, doc_ids=["ferry"]).chunks)
    others = len(filled.select(None, ratio=1, doc_ids=["lamp", "kitchen"]).chunks)
    filled.append("ferry", " No ferry on Good Friday.")
    assert whole > 0
    assert filled.stats()["kv_cache"]["disk"]["entries"] == others + whole


def test_behind_a_lead_in_that_reaches_its_beginning_a_document_is_read_as_in_one_chunk(model, documents, open_store):
    def score(chunk_size, lead_in):
        tree = TreeConfig(chunk_size=chunk_size, height=2)
        store = open_store(config=StoreConfig(tree=tree, lead_in=lead_in))
        store.add(documents[1])
        return model.nll(QUERY, ANSWER, context=store.select(None, ratio=1))

    whole = score(chunk_size=128, lead_in=0)
    assert score(chunk_size=64, lead_in=64) == pytest.approx(whole, abs=1e-4)
    assert score(chunk_size=64, lead_in=0) != pytest.approx(whole, abs=1e-2)


@pytest.mark.parametrize("injection", ["prefix", "cross_attention"])
def test_no_more_is_held_than_the_cache_may_and_what_is_shown(documents, model, injection):
    reader = model
    if injection == "cross_attention":
        reader = SharedLLMModel.from_pretrained(adapter=None, dtype="float32", injection=injection, injection_layers=4)
    scores = []
    for memory_bytes in (GIB, 1):
        tree = TreeConfig(chunk_size=64, height=2)
        config = StoreConfig(tree=tree, floor=0.0, lead_in=16, cache=CacheConfig(memory_bytes=memory_bytes))
        with SharedLLMContextStore(reader, config=config, embedder=None) as store:
            store.add(documents)
            selection = store.select(QUERY, budget=96)
            assert len(selection.chunks) > 1
            context = selection.key_values()
            scores.append(reader.nll(QUERY, ANSWER, context=selection))
    assert sum(chunk.tokens for chunk in context.chunks) == selection.kv_entries
    assert scores[1] == pytest.approx(scores[0], abs=1e-4)


def test_no_keys_and_values_of_a_deleted_document_come_back(filled, model, documents):
    selection = filled.select(QUERY, budget=96)
    filled.delete(selection.doc_ids)
    model.nll(QUERY, ANSWER, context=selection)
    cache = filled.stats()["kv_cache"]
    assert (cache["memory"]["entries"], cache["disk"]["entries"]) == (0, 0)
    filled.add([d for d in documents if d.id not in filled])
    model.nll(QUERY, ANSWER, context=filled.select(QUERY, budget=96))
    assert filled.stats()["kv_cache"]["disk"]["entries"] > 0


def test_what_another_document_says_too_is_kept(filled, model, documents):
    twin = next(d for d in documents if d.id == "ferry")
    filled.add(Document(twin.text, "twin"))
    filled.delete("ferry")
    for _ in range(2):
        model.nll(QUERY, ANSWER, context=filled.select(QUERY, budget=64, doc_ids=["twin"]))
    cache = filled.stats()["kv_cache"]
    assert 0 < cache["disk"]["entries"] == cache["memory"]["entries"]


def test_a_deletion_reaches_keys_and_values_that_another_prompt_or_lead_in_left(filled, model, path):
    filled.warm()
    filled.close()
    rhyming = SharedLLMModel(model.hf_model, model.tokenizer, name=model.name, system_prompt="Answer in rhyme.")
    with SharedLLMContextStore(rhyming, path, config=replace(filled.config, lead_in=8), embedder=None) as other:
        other.warm()
        assert other.stats()["kv_cache"]["disk"]["entries"] == 2 * other.stats()["chunks"]
        other.delete(other.ids())
        assert other.stats()["kv_cache"]["disk"]["entries"] == 0


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data[:, :, :, :1],
        lambda data: data[:, :1],
        lambda data: data[..., :2],
        lambda data: data.half(),
        lambda data: torch.full_like(data, torch.nan),
    ],
    ids=["fewer tokens", "fewer layers", "narrower heads", "another dtype", "no numbers"],
)
def test_kv_files_that_somebody_else_made_are_computed_again(make_small_model, tmp_path, change):
    model = make_small_model()
    with SharedLLMContextStore(model, tmp_path / "store", embedder=None) as store:
        store.add("The gate opens at six and closes at nine. " * 9, id="gate")
        right = model.nll("When does the gate open?", "at six", context=store.select("gate", budget=64))
    (file,) = (tmp_path / "store" / "kv").rglob("*.safetensors")
    chunk_kv = kv_file.decoded(file.stem, file.read_bytes(), "")
    file.write_bytes(kv_file.encoded(file.stem, ChunkKV(change(chunk_kv.data).contiguous()), ""))
    with SharedLLMContextStore(model, tmp_path / "store", embedder=None) as store:
        assert model.nll("When does the gate open?", "at six", context=store.select("gate", budget=64)) == right
    assert kv_file.decoded(file.stem, file.read_bytes(), "").data.equal(chunk_kv.data)
