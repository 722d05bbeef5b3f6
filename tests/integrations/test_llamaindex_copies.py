"""LlamaIndex copies and pickles what it is given: stores and models are shared then, and found again elsewhere."""

import copy
import pickle

import numpy as np
import pytest
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.schema import Document
from llama_index.core.vector_stores.types import VectorStoreQuery

from shared_context import SharedLLMContextStore, SharedLLMModel
from shared_context.errors import ConfigError, ModelMismatchError, ModelNotFoundError, StoreFormatError
from shared_context.integrations.llamaindex import (
    SharedContextChatStore,
    SharedContextEmbedding,
    SharedContextIndex,
    SharedContextMemory,
    SharedContextMemoryBlock,
    SharedContextVectorStore,
    SharedLLM,
)

HELLO = ChatMessage(role="user", content="Hello")


@pytest.fixture
def store(make_small_model, tmp_path):
    with SharedLLMContextStore(make_small_model(), tmp_path / "store", embedder=None) as store:
        yield store


def copies(thing):
    return copy.copy(thing), copy.deepcopy(thing), pickle.loads(pickle.dumps(thing))


def test_copies_of_an_llm_share_its_model(make_small_model):
    llm = SharedLLM(model=make_small_model(), max_new_tokens=4, stop=["."])
    for again in copies(llm):
        assert again.to_dict() == llm.to_dict() and again.shared_model.identity == llm.shared_model.identity
        assert str(again.complete("Hello")) == str(llm.complete("Hello"))
    deep = copy.deepcopy(llm)
    deep.stop.append("!")
    assert llm.stop == ["."]
    assert len(pickle.dumps(llm)) < 10_000, "no weights"


def test_an_llm_with_a_context_is_copied_with_it(make_small_model, store):
    llm = SharedLLM(model=store.model, max_new_tokens=4)
    said = llm.with_context("The gate opens at six.")
    for again in copies(said):
        assert str(again.complete("When?")) == str(said.complete("When?"))
    store.add("The gate opens at six.", id="gate")
    bound = llm.with_context(store.select("When does the gate open?"))
    assert str(copy.deepcopy(bound).complete("When?")) == str(bound.complete("When?"))
    with pytest.raises(ConfigError, match="bound to a selection.*select again"):
        pickle.dumps(bound)


def test_an_llm_is_loaded_by_its_name_in_another_process(model, make_small_model, in_another_process):
    llm = SharedLLM(model=model, max_new_tokens=8, system_prompt="Be brief.")
    printed = in_another_process("print(thing.shared_model.identity, thing.complete('Hello'))", llm)
    assert printed == f"{model.identity} {llm.complete('Hello')}"
    assert ModelNotFoundError.__name__ in in_another_process("", SharedLLM(model=make_small_model()))


def test_an_llm_of_another_name_is_not_taken_for_it(make_small_model):
    llm = SharedLLM(model=make_small_model())
    pickled = pickle.dumps(llm).replace(llm.shared_model.fingerprint.encode(), b"0" * len(llm.shared_model.fingerprint))
    llm.model = SharedLLMModel.from_pretrained().name
    with pytest.raises((ModelMismatchError, ModelNotFoundError)):
        pickle.loads(pickled)


def test_copies_of_a_memory_go_on_with_the_same_conversation(store, tmp_path):
    memory = SharedContextMemory(store, "ada", recent_tokens=100)
    for number, again in enumerate(copies(memory), 1):
        again.put(HELLO)
        assert memory.get_all() == [HELLO] * number
        assert (again.session_id, again.recent_tokens) == ("ada", 100)
    pickled = pickle.dumps(memory)
    store.close()
    reopened = pickle.loads(pickled)
    assert reopened.get_all() == memory_of(reopened, "ada") == [HELLO] * 3
    reopened._store.close()
    (tmp_path / "store").rename(tmp_path / "moved")
    with pytest.raises(StoreFormatError, match="is gone"):
        pickle.loads(pickled)


def memory_of(memory, session_id):
    return SharedContextMemory(memory._store, session_id).get_all()


def test_a_pickled_memory_of_a_store_in_memory_brings_what_was_said(make_small_model):
    with SharedLLMContextStore(make_small_model(), embedder=None) as store:
        pickled = pickle.dumps(SharedContextMemory.from_defaults(store, "ada", [HELLO]))
    assert pickle.loads(pickled).get_all() == [HELLO]


def test_what_stands_over_a_store_is_copied_over_it(store):
    store.add("The gate opens at six.", id="gate")
    for again in copies(SharedContextVectorStore(store)):
        assert again.client is store
        assert again.query(VectorStoreQuery(query_str="When does the gate open?", similarity_top_k=1)).ids
    for again in copies(SharedContextChatStore(store)):
        again.set_messages("ada", [HELLO])
        assert SharedContextChatStore(store).get_messages("ada") == [HELLO]
    for again in copies(SharedContextMemoryBlock(store, budget=99)):
        assert again.budget == 99 and again._store is store


def test_what_asks_and_fills_a_store_is_copied_over_it(store):
    llm = SharedLLM(model=store.model, max_new_tokens=4)
    index = SharedContextIndex.from_documents([Document(text="The gate opens at six.", id_="gate")], llm, store=store)
    said = str(index.as_query_engine().query("When does the gate open?"))
    for again in copies(index):
        assert again.store is store and again.llm.shared_model.identity == store.model.identity
        assert str(again.as_query_engine().query("When does the gate open?")) == said
    for again in copies(index.as_query_engine()):
        assert str(again.query("When does the gate open?")) == said
    for again in copies(index.as_retriever()):
        assert again.store is store and again.retrieve("When does the gate open?")
    for again in copies(index.docstore):
        assert again.docs.keys() == {"gate"}
    assert copy.deepcopy(index.storage_context).docstore.docs.keys() == {"gate"}
    assert str(copy.deepcopy(index.as_chat_engine(chat_mode="simple")).chat("Hello"))


def test_a_store_in_memory_is_not_found_again_once_it_is_gone(make_small_model):
    with SharedLLMContextStore(make_small_model(), embedder=None) as store:
        pickled = pickle.dumps(SharedContextVectorStore(store))
        assert pickle.loads(pickled).client is store
    with pytest.raises(ConfigError, match="in memory.*a path"):
        pickle.loads(pickled)


def test_an_embedding_is_pickled_by_its_name(store, handbook_store):
    for over in (store, handbook_store):
        embedding = SharedContextEmbedding(over)
        for again in copies(embedding):
            assert np.allclose(again.get_text_embedding("honey"), embedding.get_text_embedding("honey"), atol=1e-3)
        assert len(pickle.dumps(embedding)) < 10_000, "no weights"


@pytest.mark.slow
def test_a_pipeline_embeds_in_several_processes(handbook_store):
    pipeline = IngestionPipeline(transformations=[SharedContextEmbedding(handbook_store)])
    nodes = pipeline.run(documents=[Document(text=text) for text in ("Honey.", "Kiln.")], num_workers=2)
    assert [len(node.embedding) for node in nodes] == [handbook_store.embedder.dimension] * 2
