"""LangChain's objects are pickled without stores and weights, which are found again where they are read."""

import copy
import pickle
from itertools import product

import pytest
from langchain_core.documents import Document
from langchain_core.messages import HumanMessage

from shared_context import SharedLLMContextStore
from shared_context.errors import ConfigError, ModelMismatchError, StoreFormatError
from shared_context.integrations.langchain import (
    ChatSharedLLM,
    SharedContextChain,
    SharedContextChatMessageHistory,
    SharedContextRetriever,
    SharedLLM,
)

GATE = {"input": "When does the gate open?"}


@pytest.fixture
def store(make_small_model, tmp_path):
    with SharedLLMContextStore(make_small_model(), tmp_path / "store", embedder=None) as store:
        store.add("The gate opens at six.", id="gate")
        yield store


def pickled(thing):
    written = pickle.dumps(thing)
    assert len(written) < 10_000, "no weights, no documents"
    return pickle.loads(written)


def test_models_are_shared(make_small_model):
    alike = [make_small_model() for _ in range(4)]
    for model, llm_class in product(alike, (ChatSharedLLM, SharedLLM)):
        llm = llm_class(model=model, max_tokens=4, stop=["."])
        again = pickled(llm)
        assert again == llm and again.model is model
        assert again.invoke("Hello") and pickled(llm.bind(stop=["!"])).kwargs == {"stop": ["!"]}


def test_a_chain_and_a_retriever_stand_over_the_same_store(store):
    chain = SharedContextChain.from_store(store, llm=ChatSharedLLM(model=store.model, max_tokens=4), budget=64)
    again = pickled(chain)
    assert again.store is store and again.retriever.store is store and again.retriever.budget == 64
    assert again.invoke(GATE)["answer"] == chain.invoke(GATE)["answer"]
    assert pickled(chain.retriever).invoke(GATE["input"]) == chain.retriever.invoke(GATE["input"])
    tenant = SharedContextRetriever(store=store.namespace("tenant"))
    assert pickled(tenant).store.namespace_name == "tenant" and pickled(tenant).invoke("gate") == []


def test_a_store_is_opened_again_unless_it_is_gone(store, tmp_path):
    retriever = SharedContextRetriever(store=store)
    written = pickle.dumps(retriever)
    store.close()
    reopened = pickle.loads(written)
    assert [passage.page_content for passage in reopened.invoke(GATE["input"])] == ["The gate opens at six."]
    reopened.store.close()
    (tmp_path / "store").rename(tmp_path / "moved")
    with pytest.raises(StoreFormatError, match="is gone"):
        pickle.loads(written)


def test_a_store_in_memory_is_not_found_once_it_is_gone(make_small_model):
    with SharedLLMContextStore(make_small_model(), embedder=None) as store:
        written = pickle.dumps(SharedContextRetriever(store=store))
        assert pickle.loads(written).store is store
    with pytest.raises(ConfigError, match="in memory.*a path"):
        pickle.loads(written)


def test_a_history_goes_on_with_the_same_conversation(store):
    history = SharedContextChatMessageHistory("ada", store, recent_tokens=100, budget=99)
    for number, again in enumerate((copy.copy(history), copy.deepcopy(history), pickled(history)), 1):
        again.add_user_message("Hello")
        assert history.messages == [HumanMessage("Hello")] * number
        assert (again.session_id, again.budget, again.recent_tokens) == ("ada", 99, 100)


def test_a_history_of_a_store_in_memory_brings_what_was_said(make_small_model):
    with SharedLLMContextStore(make_small_model(), embedder=None) as store:
        history = SharedContextChatMessageHistory("ada", store)
        history.add_user_message("Hello")
        written = pickle.dumps(history)
    assert pickle.loads(written).messages == [HumanMessage("Hello")]


def test_what_is_bound_to_a_selection_is_copied_with_it_and_not_pickled(store):
    bound = ChatSharedLLM(model=store.model, max_tokens=4).bind(context=store.select(GATE["input"]))
    assert copy.deepcopy(bound).invoke("When?").content == bound.invoke("When?").content
    with pytest.raises(ConfigError, match="stays with its store.*select again"):
        pickle.dumps(bound)


def test_in_another_process_the_model_is_loaded_by_its_name(model, tmp_path, in_another_process):
    with SharedLLMContextStore(model, tmp_path / "store", embedder=None) as store:
        documents = [Document("The gate opens at six.", id="gate")]
        chain = SharedContextChain.from_documents(documents, store=store, llm=ChatSharedLLM(model=model, max_tokens=8))
        said = chain.invoke(GATE)["answer"]
        printed = in_another_process(
            f"print(thing.store.ids(), thing.store.model is thing.llm.model, thing.invoke({GATE})['answer'])", chain
        )
    assert printed == f"['gate'] True {said}"


def test_a_model_of_another_name_is_not_taken_for_it(make_small_model, in_another_process):
    llm = ChatSharedLLM(model=make_small_model())
    llm.model.name = "smollm2-135m-instruct"
    assert ModelMismatchError.__name__ in in_another_process("", llm)


def test_in_another_process_an_adapter_is_loaded_with_its_model(in_another_process):
    llm = ChatSharedLLM(adapter="factoid", model_kwargs={"token": "secret"})
    assert b"secret" not in pickle.dumps(llm.model_copy(update={"model_kwargs": {}}))
    assert in_another_process("print(thing.model.identity)", llm) == llm.model.identity
