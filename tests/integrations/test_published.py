"""Frameworks over stores that were published, of one file or of shards."""

import pytest
from langchain_core.documents import Document as LangChainDocument
from llama_index.core import Document as LlamaDocument

from shared_context import SharedLLMContextStore
from shared_context.errors import SnapshotNotFoundError, StoreUnavailableError
from shared_context.integrations.langchain import SharedContextRetriever
from shared_context.integrations.llamaindex import SharedContextIndex, SharedLLM
from shared_context.remote.publishing import push
from shared_context.shards import ShardedContextStore, open_store

TEXTS = {"forge": "The forge is lit at five in the morning.", "quay": "The quay was rebuilt in granite."}


@pytest.fixture(params=["one file", "shards"])
def published(request, make_small_model, tmp_path, monkeypatch):
    monkeypatch.setenv("SHARED_CONTEXT_HOME", str(tmp_path / "home"))
    model, folder, address = make_small_model(), tmp_path / "store", (tmp_path / "bucket" / "name").as_uri()
    if request.param == "shards":
        store = ShardedContextStore.create(model, folder, 2, embedder=None)
    else:
        store = SharedLLMContextStore(model, folder, embedder=None)
    with store:
        for id, text in TEXTS.items():
            store.add(text, id=id)
    push(folder, address)
    return model, address


def test_llamaindex_loads_and_asks_them(published):
    model, address = published
    index = SharedContextIndex.load(address, SharedLLM(model=model))
    nodes = index.as_retriever(policy="lexical").retrieve("When is the forge lit?")
    assert nodes[0].text == TEXTS["forge"]
    with pytest.raises(StoreUnavailableError, match="reading only"):
        index.insert(LlamaDocument(text="New."))
    with pytest.raises(SnapshotNotFoundError):
        SharedContextIndex.load(f"{address}/elsewhere", SharedLLM(model=model))


def test_so_does_langchain(published):
    model, address = published
    retriever = SharedContextRetriever(store=open_store(model, address), policy="lexical")
    found = retriever.invoke("When is the forge lit?")
    assert isinstance(found[0], LangChainDocument) and found[0].page_content == TEXTS["forge"]
