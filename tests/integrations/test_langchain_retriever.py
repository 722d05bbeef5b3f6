"""SharedContextRetriever: LangChain's conformance suite, and what a user of a retriever would notice."""

import json
from datetime import date
from pathlib import Path

import pytest
from langchain_core.documents import Document
from langchain_core.indexing import InMemoryRecordManager, index
from langchain_core.language_models import FakeListChatModel
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnablePassthrough
from langchain_tests.integration_tests import RetrieversIntegrationTests
from langchain_tests.integration_tests.indexer import AsyncDocumentIndexTestSuite, DocumentIndexerTestSuite
from pydantic import ValidationError

from shared_context import Document as StoreDocument
from shared_context import SharedLLMContextStore
from shared_context.errors import BatchError, ConfigError, DocumentError, FilterError, QueryError
from shared_context.integrations.langchain import SharedContextChain, SharedContextRetriever

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


def test_a_passage_names_the_other_documents_that_say_the_same(model):
    with SharedLLMContextStore(model, embedder=None) as store:
        store.add([StoreDocument(TEXTS["door"], id) for id in ("old", "new")])
        store.add(TEXTS["lift"], id="lift", metadata={"also_in": "the loader's own"})
        door, lift = SharedContextRetriever(store=store, k=2).invoke(QUESTION)
    assert {door.metadata["doc_id"], *door.metadata["also_in"]} == {"old", "new"}
    assert lift.metadata["also_in"] == "the loader's own"


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


# Documents that are read again


@pytest.fixture
def small_store(make_small_model):
    with SharedLLMContextStore(make_small_model(), embedder=None) as store:
        yield store


class TestStandardDocumentIndex(DocumentIndexerTestSuite):
    @pytest.fixture
    def index(self, small_store):
        yield SharedContextRetriever(store=small_store)


class TestStandardAsyncDocumentIndex(AsyncDocumentIndexTestSuite):
    @pytest.fixture
    async def index(self, small_store):
        yield SharedContextRetriever(store=small_store)


def page(text, source, **metadata):
    return Document(text, metadata={"source": source, **metadata})


def texts(store):
    return {document.id: document.text for document in store}


def test_a_second_run_adds_nothing_and_takes_in_what_changed(small_store):
    monday = [page("The gate opens at six.", "gate.txt"), page("The lamp is lit at dusk.", "lamp.txt")]
    for _ in range(2):
        SharedContextRetriever.from_documents([*monday, Document("A note from nowhere.")], store=small_store)
        assert len(small_store) == 3
    tuesday = [page("The gate opens at seven.", "gate.txt"), monday[1]]
    SharedContextRetriever.from_documents(tuesday, store=small_store)
    assert len(small_store) == 3
    assert small_store.get("gate.txt").text == "The gate opens at seven."
    SharedContextRetriever.from_documents([page("The gate opens at seven.", "gate.txt", year=7)], store=small_store)
    assert small_store.get("gate.txt").metadata["year"] == 7
    assert "The lamp is lit at dusk." in texts(small_store).values(), "another source stays"


def test_metadata_of_loaders_are_stored_and_filtered_as_they_are(small_store):
    day = date(2024, 5, 1)
    for text in ("The gate opens at six.", "The gate opens at seven."):
        pages = [page(text, Path("/srv/gate.txt"), day=day), page("The lamp is lit at dusk.", "lamp.txt")]
        retriever = SharedContextRetriever.from_documents(pages, store=small_store)
        assert texts(small_store)["/srv/gate.txt"] == text and len(small_store) == 2
    found = retriever.invoke("When does the gate open?", filters={"day": {"$gte": day}})
    assert [passage.metadata["day"] for passage in found] == ["2024-05-01"]
    SharedContextRetriever.from_documents([page("Another page.", Path("/srv/gate.txt"), id=1)], store=small_store)
    assert "The gate opens at seven." not in texts(small_store).values()


def test_pages_that_are_gone_go_from_the_store(small_store):
    pages = [page(f"This is page {number}.", "a.pdf") for number in (1, 2, 3)]
    SharedContextRetriever.from_documents(pages, store=small_store)
    SharedContextRetriever.from_documents([page("Another book.", "b.pdf"), pages[0]], store=small_store)
    assert sorted(texts(small_store).values()) == ["Another book.", "This is page 1."]
    SharedContextRetriever.from_documents([page("Only this.", "a.pdf")], store=small_store, source_key=None)
    assert len(small_store) == 3


def test_what_was_stored_before_under_other_ids_is_found_by_its_source(small_store):
    small_store.add("The gate opens at six.", id="an old id", metadata={"source": "gate.txt"})
    SharedContextRetriever.from_documents([page("The gate opens at seven.", "gate.txt")], store=small_store)
    assert texts(small_store) == {"gate.txt": "The gate opens at seven."}


def test_a_bad_page_is_left_out_and_leaves_what_was_stored(small_store, caplog):
    good = [page("Page one.", "a.pdf"), page("Page two.", "a.pdf")]
    SharedContextRetriever.from_documents(good, store=small_store)
    worse = [good[0], page(" ", "a.pdf"), page("Page three.", "a.pdf")]
    SharedContextRetriever.from_documents(worse, store=small_store)
    assert "a.pdf#2" in caplog.text
    assert list(texts(small_store).values()) == ["Page one.", "Page two.", "Page three."]
    with pytest.raises(BatchError, match="a.pdf#2"):
        SharedContextRetriever.from_documents(worse, store=small_store, on_error="raise")


def test_langchains_index_keeps_it_in_step(small_store):
    retriever, records = SharedContextRetriever(store=small_store), InMemoryRecordManager(namespace="house")
    records.create_schema()

    def read(*documents):
        options = {"cleanup": "incremental", "source_id_key": "source", "key_encoder": "sha256"}
        return index(list(documents), records, retriever, **options)

    gate, lamp = page("The gate opens at six.", "gate.txt"), page("The lamp is lit at dusk.", "lamp.txt")
    assert read(gate, lamp)["num_added"] == 2
    assert read(gate, lamp)["num_skipped"] == 2
    changed = read(page("The gate opens at seven.", "gate.txt"), lamp)
    assert (changed["num_added"], changed["num_deleted"]) == (1, 1)
    assert sorted(texts(small_store).values()) == ["The gate opens at seven.", "The lamp is lit at dusk."]


def test_floor_recent_and_prefilter_chunks_reach_the_selection(handbook_store):
    question = "When does the night shift start?"
    retriever = SharedContextRetriever(store=handbook_store, budget=1024)

    def places(passages):
        return sorted((passage.metadata["start"], passage.metadata["end"]) for passage in passages)

    usual = places(retriever.invoke(question))
    for setting in ({"floor": 1.0}, {"recent": 64}, {"prefilter_chunks": 1}):
        selection = handbook_store.select(question, budget=1024, **setting)
        expected = sorted((source.start, source.end) for source in selection.sources)
        assert places(retriever.invoke(question, **setting)) == expected != usual
        assert places(SharedContextRetriever(store=handbook_store, budget=1024, **setting).invoke(question)) == expected
    with pytest.raises(ConfigError, match="recent"):
        retriever.invoke(question, k=2, recent=64)


def test_what_scores_too_little_is_not_retrieved(handbook_store):
    question = "When does the night shift start?"
    scores = [
        passage.metadata["score"] for passage in SharedContextRetriever(store=handbook_store, k=5).invoke(question)
    ]
    least = (scores[0] + scores[-1]) / 2
    kept = SharedContextRetriever(store=handbook_store, k=5, min_score=least).invoke(question)
    assert [passage.metadata["score"] for passage in kept] == [score for score in scores if score >= least] != scores


@pytest.mark.parametrize(
    "wrong, message",
    [
        ("a text", "documents is a str"),
        (["a text"], r"documents\[0\] is a str"),
        (Document("alone"), "documents is a Document"),
        (None, "documents is a NoneType"),
    ],
)
def test_documents_of_another_type_are_refused_in_words(small_store, wrong, message):
    with pytest.raises(DocumentError, match=message):
        SharedContextRetriever.from_documents(wrong, store=small_store)


@pytest.mark.parametrize("of", [SharedContextRetriever, SharedContextChain])
def test_a_model_that_is_named_is_loaded_as_one_says(of, model, small_store):
    loading = {"dtype": "float32", "device": "cpu"}
    made = of.from_documents(
        [page("The gate opens at six.", "gate.md")], "smollm2-135m-instruct", embedder=None, **loading
    )
    assert str(made.store.model.dtype) == "torch.float32"
    with pytest.raises(ConfigError, match="dtype.*loaded already"):
        of.from_documents([page("The gate opens at six.", "gate.md")], model, **loading)
    with pytest.raises(ConfigError, match="store= is given.*adapter"):
        of.from_documents([page("The gate opens at six.", "gate.md")], store=small_store, adapter="factoid")


def test_a_store_of_another_type_is_refused_in_words():
    with pytest.raises(ConfigError, match="store is a str.*path="):
        SharedContextRetriever.from_documents([Document("A text.")], store="handbook.ctx")
