"""SharedContextRetriever: LangChain's conformance suite, and what a user of a retriever would notice."""

import json

import pytest
from langchain_core.documents import Document
from langchain_core.language_models import FakeListChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_tests.integration_tests import RetrieversIntegrationTests
from pydantic import ValidationError

from shared_context import SharedLLMContextStore
from shared_context.errors import FilterError, QueryError
from shared_context.integrations.langchain import SharedContextRetriever

TEXTS = {
    "door": "The door of the boiler room is painted green. Its key hangs in the porter's lodge. 🔑",
    "lift": "The lift of the east wing is painted purple. It stops at every second floor.",
    "roof": "On the roof stand four beehives. The honey is sold in the canteen every October.",
}
QUESTION = "Which colour is the door of the boiler room?"


@pytest.fixture(scope="module")
def store(model):
    documents = [
        Document(text, id=name, metadata={"house": name, "year": 2020 + number})
        for number, (name, text) in enumerate(TEXTS.items())
    ]
    with SharedLLMContextStore(model, embedder=None) as store:
        SharedContextRetriever.from_documents(documents, store=store)
        yield store


class TestStandard(RetrieversIntegrationTests):
    @pytest.fixture(autouse=True)
    def _store(self, store):
        self.store = store

    @property
    def retriever_constructor(self):
        return SharedContextRetriever

    @property
    def retriever_constructor_params(self):
        return {"store": self.store}

    @property
    def retriever_query_example(self):
        return QUESTION


def test_a_passage_says_where_it_stands(store):
    best = SharedContextRetriever(store=store, k=1).invoke(QUESTION)[0]
    where = best.metadata
    assert where["doc_id"] == where["house"] == "door"
    assert best.page_content == TEXTS["door"][where["start"] : where["end"]]
    assert where.keys() == {"doc_id", "start", "end", "level", "ratio", "score", "house", "year"}
    json.dumps(where)


def test_passages_come_best_first_and_have_ids_of_their_own(store):
    for retriever in (SharedContextRetriever(store=store), SharedContextRetriever(store=store, k=3)):
        passages = retriever.invoke(QUESTION)
        scores = [passage.metadata["score"] for passage in passages]
        assert scores == sorted(scores, reverse=True)
        assert passages[0].metadata["doc_id"] == "door"
        assert len({passage.id for passage in passages}) == len(passages)


def test_a_budget_bounds_what_is_found(model, store):
    passages = SharedContextRetriever(store=store, budget=30).invoke(QUESTION)
    assert 0 < sum(model.count_tokens(passage.page_content) for passage in passages) <= 30
    assert len(SharedContextRetriever(store=store, budget=30).invoke(QUESTION, budget=1024)) == 3


def test_neighbours_come_as_one_passage(model):
    text = " ".join(f"Room {number} is painted {colour}." for number in range(60) for colour in ("blue", "white"))
    with SharedLLMContextStore(model, embedder=None) as store:
        store.add(text, id="rooms")
        (passage,) = SharedContextRetriever(store=store, budget=4096).invoke("Which room is blue?")
        assert passage.page_content == text
        assert (passage.metadata["start"], passage.metadata["end"]) == (0, len(text))
        assert len(SharedContextRetriever(store=store, k=3).invoke("Which room is blue?")) == 3


def test_a_budget_in_a_call_goes_before_a_k_of_the_retriever(store):
    assert len(SharedContextRetriever(store=store, k=1).invoke(QUESTION, budget=1024)) == 3


def test_filters_of_the_retriever_and_of_a_call(store):
    retriever = SharedContextRetriever(store=store, filters={"year": {"$gte": 2021}})
    assert {passage.metadata["doc_id"] for passage in retriever.invoke(QUESTION)} == {"lift", "roof"}
    assert [passage.metadata["doc_id"] for passage in retriever.invoke(QUESTION, filters={"house": "roof"})] == ["roof"]
    with pytest.raises(FilterError):
        retriever.invoke(QUESTION, filters={"year": {"$near": 2021}})


async def test_the_async_form_takes_the_same_settings(store):
    retriever = SharedContextRetriever(store=store)
    assert await retriever.ainvoke(QUESTION, k=2) == retriever.invoke(QUESTION, k=2)
    assert await retriever.abatch([QUESTION], k=1) == [retriever.invoke(QUESTION, k=1)]


def test_somebody_elses_model_reads_the_text(store):
    prompt = ChatPromptTemplate([("human", "{context}\n\n{question}")])
    asked = []

    class Fake(FakeListChatModel):
        def _call(self, messages, *args, **kwargs):
            asked.append(messages[0].content)
            return super()._call(messages, *args, **kwargs)

    def join(passages):
        return "\n".join(passage.page_content for passage in passages)

    chain = (
        {"context": SharedContextRetriever(store=store, k=1) | join, "question": RunnablePassthrough()}
        | prompt
        | Fake(responses=["Green."])
        | StrOutputParser()
    )
    assert chain.invoke(QUESTION) == "Green."
    assert asked == [f"{TEXTS['door']}\n\n{QUESTION}"]


def test_a_blank_page_does_not_stop_the_rest(model, caplog):
    with SharedLLMContextStore(model, embedder=None) as store:
        SharedContextRetriever.from_documents([Document("One.", id="one"), Document(" ", id="two")], store=store)
        assert store.ids() == ["one"] and "'two' is blank" in caplog.text


def test_repeated_pages_of_a_loader_are_stored(model):
    with SharedLLMContextStore(model, embedder=None) as store:
        pages = [Document("Notes", metadata={"page": page}) for page in (1, 2)]
        SharedContextRetriever.from_documents([*pages, Document("A text."), Document("A text.")], store=store)
        assert [(d.text, d.metadata.get("page")) for d in store] == [("Notes", 1), ("Notes", 2), ("A text.", None)]


def test_a_misspelt_setting_is_refused(store):
    with pytest.raises(ValidationError, match="buget"):
        SharedContextRetriever(store=store, buget=512)
    with pytest.raises(TypeError, match="buget"):
        SharedContextRetriever(store=store).invoke(QUESTION, buget=512)


def test_an_empty_question_is_refused(store):
    with pytest.raises(QueryError):
        SharedContextRetriever(store=store).invoke("  ")
