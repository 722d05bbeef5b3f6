"""SharedContextIndex, its retriever, synthesizer, query and chat engines, on the real default model."""

import asyncio
import subprocess
import sys

import pytest
from llama_index.core import PromptTemplate, Settings, SimpleDirectoryReader
from llama_index.core.base.llms.types import ChatMessage, ChatResponse
from llama_index.core.base.response.schema import PydanticResponse
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.llm import LLMChatEndEvent, LLMChatStartEvent
from llama_index.core.llms import MockLLM
from llama_index.core.memory import Memory
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.postprocessor import SimilarityPostprocessor
from llama_index.core.postprocessor.types import BaseNodePostprocessor
from llama_index.core.retrievers import BaseRetriever
from llama_index.core.schema import Document, ImageDocument, MetadataMode, NodeWithScore, QueryBundle, TextNode
from llama_index.core.tools import QueryEngineTool
from llama_index.core.vector_stores import FilterCondition, FilterOperator, MetadataFilter, MetadataFilters
from pydantic import BaseModel

from shared_context import SharedLLMContextStore, SharedLLMModel
from shared_context.errors import (
    BatchError,
    ConfigError,
    DocumentError,
    DocumentNotFoundError,
    DuplicateDocumentError,
    FilterError,
    ModelMismatchError,
    StoreFormatError,
)
from shared_context.integrations.llamaindex import (
    SharedContextChatEngine,
    SharedContextIndex,
    SharedContextRetriever,
    SharedContextSynthesizer,
    SharedLLM,
)

DOORS = (
    "The green door in the east wing opens with the code 4417. The porter keeps the key cards of the west wing in a "
    "drawer. Deliveries go through the yellow gate, which is open on weekdays from seven in the morning until noon."
)
SHIFTS = (
    "The night shift of the bakery starts at eleven in the evening and ends at six. The head baker is Marta Lindqvist, "
    "who trained in Uppsala. Rye bread is baked on Tuesdays, and the ovens are cleaned every Friday after lunch."
)
GARDEN = (
    "The garden behind the museum was planted in 1932 by Aurel Popescu. It has forty rose beds, one pond with carp and "
    "a walnut tree that is older than the house. Visitors may walk there from April to October, and dogs stay outside."
)
DOOR_QUESTION = "Which code opens the green door?"
SHIFT_QUESTION = "When does the night shift of the bakery start?"


def documents():
    return [
        Document(text=SHIFTS, id_="shifts", metadata={"topic": "bakery", "year": 2023, "tags": ["bread"]}),
        Document(text=DOORS, id_="doors", metadata={"topic": "access", "year": 2021, "tags": ["door", "code"]}),
        Document(text=GARDEN, id_="garden", metadata={"topic": "museum", "year": 2024, "tags": [], "note": ""}),
    ]


@pytest.fixture(scope="module")
def llm(model):
    return SharedLLM(model=model, max_new_tokens=24)  # a whole sentence: not all processors round alike


@pytest.fixture(scope="module")
def index(llm):
    return SharedContextIndex.from_documents(documents(), llm=llm, embedder=None)


@pytest.fixture
def small_index(llm):
    """One of its own for tests that change it."""
    return SharedContextIndex.from_documents(documents()[:2], llm=llm, embedder=None)


@pytest.fixture
def calls():
    """What the LLM was asked while the test ran (all messages as one text), and the KV entries injected into it."""
    seen = []

    class Recorder(BaseEventHandler):
        def handle(self, event, **kwargs):
            if isinstance(event, LLMChatStartEvent):
                seen.append(["\n".join(message.content for message in event.messages), None])
            elif isinstance(event, LLMChatEndEvent):
                seen[-1][1] = event.response.raw["usage"]["context_entries"]

    root, recorder = get_dispatcher(), Recorder()
    root.add_event_handler(recorder)
    yield seen
    root.event_handlers.remove(recorder)


def where(*conditions, condition=FilterCondition.AND):
    return MetadataFilters(
        filters=[MetadataFilter(key=key, operator=operator, value=value) for key, operator, value in conditions],
        condition=condition,
    )


class Masking(BaseNodePostprocessor):
    """Blackens digits, as a filter for personal data would."""

    def _postprocess_nodes(self, nodes, query_bundle=None):
        for scored in nodes:
            scored.node.set_content("".join("#" if c.isdigit() else c for c in scored.node.text))
        return nodes


# ------------------------------------------------------------------------------------------------------ query engine


def test_a_query_is_answered_from_injected_context_with_its_sources(index, calls):
    response = index.as_query_engine().query(DOOR_QUESTION)
    assert "4417" in str(response)
    best = response.source_nodes[0]
    assert best.node.ref_doc_id == "doors"
    assert best.metadata["topic"] == "access"
    assert response.metadata[best.node_id] == best.metadata
    ((prompt, injected),) = calls
    assert prompt == DOOR_QUESTION, "the context must not be pasted"
    passages = sum(node.metadata["kv_entries"] for node in response.source_nodes)
    assert injected > passages > 0, "the documents' metadata are shown, too"
    index.as_query_engine(show_metadata=False).query(DOOR_QUESTION)
    assert calls[-1][1] == passages


def test_metadata_are_searched_and_shown_as_documents_want(llm, calls):
    bells = [
        Document(
            text="It was cast in bronze by the brothers of the foundry and hangs in the northern tower.",
            id_=name,
            metadata={"bell": name, "ledger": "secret-77", "shelf": "north"},
            excluded_llm_metadata_keys=["ledger"],
            excluded_embed_metadata_keys=["shelf"],
        )
        for name in ("Matilda", "Augustus", "Philomena", "Bartholomew")
    ]
    index = SharedContextIndex.from_documents(bells, llm=llm, embedder=None)
    for name in ("Philomena", "Augustus"):
        (best,) = index.as_retriever(similarity_top_k=1).retrieve(f"Of what was {name} cast?")
        assert best.node.ref_doc_id == name
    shown, embedded = (best.get_content(metadata_mode=mode) for mode in (MetadataMode.LLM, MetadataMode.EMBED))
    assert "bell: Augustus" in shown and "secret-77" not in shown and "shelf: north" in shown
    assert "bell: Augustus" in embedded and "secret-77" in embedded and "shelf" not in embedded
    stored = index.store.get("Augustus")
    assert (stored.unsearched_keys, stored.hidden_keys) == (("shelf",), ("ledger",))
    assert index.refresh_ref_docs(bells) == [False] * 4

    class Anonymous(BaseNodePostprocessor):
        def _postprocess_nodes(self, nodes, query_bundle=None):
            for scored in nodes:
                scored.node.metadata.pop("bell")
            return nodes

    for processors in ([], [Anonymous()]):
        response = index.as_query_engine(similarity_top_k=1, node_postprocessors=processors).query("Of what is it?")
        passages = sum(node.metadata["kv_entries"] for node in response.source_nodes)
        assert (calls[-1][1] > passages) == (not processors), "what was taken out must not come back with the KV"


def test_every_way_to_query_gives_the_same_answer(index):
    async def ask():
        plain = await index.as_query_engine().aquery(DOOR_QUESTION)
        streaming = await index.as_query_engine(streaming=True).aquery(DOOR_QUESTION)
        return str(plain), [piece async for piece in streaming.async_response_gen()]

    expected = str(index.as_query_engine().query(DOOR_QUESTION))
    plain, apieces = asyncio.run(ask())
    response = index.as_query_engine(streaming=True).query(DOOR_QUESTION)
    pieces = list(response.response_gen)
    assert plain == "".join(apieces) == "".join(pieces) == expected
    assert "" not in pieces[:-1]
    assert len([piece for piece in pieces if piece]) >= len(expected.split()) > 1
    assert len(apieces) == len(pieces)  # the last holds no text, its response carries the figures
    assert response.source_nodes[0].node.ref_doc_id == "doors"


def test_filters_reach_the_query_engine(index):
    engine = index.as_query_engine(filters=where(("topic", FilterOperator.EQ, "bakery")))
    response = engine.query(DOOR_QUESTION)
    assert {node.node.ref_doc_id for node in response.source_nodes} == {"shifts"}
    assert "4417" not in str(response)


def test_nothing_retrieved_gives_llamaindexs_empty_response(index):
    engine = index.as_query_engine(filters=where(("topic", FilterOperator.EQ, "none such")))
    assert str(engine.query(DOOR_QUESTION)) == "Empty Response"


def test_postprocessors_decide_what_is_injected(index, calls):
    class OnlyBest(BaseNodePostprocessor):
        def _postprocess_nodes(self, nodes, query_bundle=None):
            return nodes[:1]

    engine = index.as_query_engine(node_postprocessors=[OnlyBest()], show_metadata=False)
    response = engine.query(SHIFT_QUESTION)
    assert [node.node.ref_doc_id for node in response.source_nodes] == ["shifts"]
    assert "leven" in str(response)
    assert calls[-1][1] == response.source_nodes[0].metadata["kv_entries"]
    cutoff = SimilarityPostprocessor(similarity_cutoff=1e9)
    assert str(index.as_query_engine(node_postprocessors=[cutoff]).query(SHIFT_QUESTION)) == "Empty Response"


def test_what_a_postprocessor_masked_stays_masked(index, calls):
    access = where(("topic", FilterOperator.EQ, "access"))
    response = index.as_query_engine(node_postprocessors=[Masking()], filters=access).query(DOOR_QUESTION)
    prompt, injected = calls[-1]
    assert injected == 0
    assert "opens with the code ####" in prompt
    assert "4417" not in str(response)


def test_the_question_can_be_worded(index, calls):
    template = PromptTemplate("Context: {context_str}\nAnswer in capital letters: {query_str}")
    index.as_query_engine(text_qa_template=template).query(DOOR_QUESTION)
    assert calls[-1][0] == f"Context: (the context above)\nAnswer in capital letters: {DOOR_QUESTION}"
    assert calls[-1][1] > 0
    engine = index.as_query_engine()
    engine.update_prompts({"response_synthesizer:text_qa_template": PromptTemplate("Please: {query_str}")})
    engine.query(DOOR_QUESTION)
    assert calls[-1][0] == f"Please: {DOOR_QUESTION}"


@pytest.mark.parametrize("mode", ["compact", "refine", "simple_summarize"])
def test_modes_that_answer_from_all_nodes_inject(index, calls, mode):
    index.as_query_engine(response_mode=mode).query(DOOR_QUESTION)
    assert calls[-1][1] > 0


def test_other_modes_are_llamaindexs_own(index, calls):
    index.as_query_engine(response_mode="accumulate", similarity_top_k=2).query(DOOR_QUESTION)
    assert [injected for _, injected in calls] == [0, 0]
    assert "4417" in "".join(prompt for prompt, _ in calls)


def test_options_without_a_meaning_here_are_refused(index):
    with pytest.raises(ConfigError, match="refine_template"):
        index.as_query_engine(refine_template=PromptTemplate("{existing_answer}"))
    with pytest.raises(TypeError, match="similarity_topk"):
        index.as_query_engine(similarity_topk=3)
    with pytest.raises(ConfigError, match="similarity_top_k"):
        index.as_query_engine(similarity_top_k=3, budget=256)


def test_answers_can_be_parsed(model, index):
    class Code(BaseModel):
        code: int

    class Dictated(SharedLLM):
        """Says what a larger model would: this one writes no JSON."""

        def chat(self, messages, **kwargs):
            text = '{"code": 4417}' if self._context is not None else "{}"
            return ChatResponse(message=ChatMessage(role="assistant", content=text))

        async def achat(self, messages, **kwargs):
            return self.chat(messages)

    dictated = Dictated(model=model)
    engine = index.as_query_engine(llm=dictated, output_cls=Code)
    structured = index.as_query_engine(llm=dictated.as_structured_llm(Code))
    answers = [engine.query(DOOR_QUESTION), asyncio.run(engine.aquery(DOOR_QUESTION)), structured.query(DOOR_QUESTION)]
    for response in answers:
        assert isinstance(response, PydanticResponse)
        assert response.response == Code(code=4417)
    with pytest.raises(ConfigError, match="output_cls"):
        index.as_query_engine(output_cls=Code, streaming=True)


def test_somebody_elses_llm_gets_text(index):
    response = index.as_query_engine(llm=MockLLM()).query(DOOR_QUESTION)
    assert DOORS in str(response)
    assert "topic: access" in str(response)
    assert "kv_entries" not in str(response)


def test_it_is_a_tool_like_any_query_engine(index):
    tool = QueryEngineTool.from_defaults(index.as_query_engine(), name="house", description="About the house.")
    assert "4417" in str(tool.call(DOOR_QUESTION))


# --------------------------------------------------------------------------------------------------------- retriever


def test_retrieved_nodes_say_where_they_come_from(index):
    nodes = index.as_retriever().retrieve(DOOR_QUESTION)
    assert [node.score for node in nodes] == sorted((node.score for node in nodes), reverse=True)
    best = nodes[0].node
    assert best.ref_doc_id == "doors"
    assert best.text == DOORS[best.start_char_idx : best.end_char_idx]
    assert best.metadata["ratio"] == 1
    assert best.metadata["level"] >= 0
    assert best.get_content(MetadataMode.LLM).startswith("topic: access\nyear: 2021")
    assert "ratio" not in best.get_content(MetadataMode.EMBED)
    assert nodes[0].node_id == index.as_retriever().retrieve(DOOR_QUESTION)[0].node_id, "ids must be stable"


def test_budget_and_count_bound_what_is_retrieved(index):
    within = index.as_retriever(budget=64).retrieve(DOOR_QUESTION)
    assert 0 < sum(node.metadata["kv_entries"] for node in within) <= 64
    assert len(index.as_retriever(similarity_top_k=2).retrieve(DOOR_QUESTION)) == 2
    by_bundle = asyncio.run(index.as_retriever(similarity_top_k=1).aretrieve(DOOR_QUESTION))
    assert by_bundle[0].node.ref_doc_id == "doors"
    only = index.as_retriever(doc_ids=["garden"]).retrieve(DOOR_QUESTION)
    assert {node.node.ref_doc_id for node in only} == {"garden"}


def test_what_the_store_selects_by_reaches_the_retriever(handbook_store, llm):
    index = SharedContextIndex.from_store(handbook_store, llm)

    def shown(**settings):
        nodes = index.as_retriever(budget=512, **settings).retrieve("How warm is the drying room kept?")
        return sum(node.metadata["kv_entries"] for node in nodes), {node.node_id for node in nodes}

    assert shown(floor=0.0)[0] > shown(floor=1.0)[0]
    end = len(handbook_store.get("handbook").text.rstrip())
    assert any(node_id.endswith(f"-{end}") for node_id in shown(recent=64)[1])
    assert not any(node_id.endswith(f"-{end}") for node_id in shown()[1])
    nodes = index.as_retriever(similarity_top_k=20, prefilter_chunks=1).retrieve("How warm is the drying room kept?")
    assert len(nodes) == 8, "one chunk of 1,024 tokens has eight passages of 128"
    engine = index.as_query_engine(floor=1.0, budget=512)
    assert sum(n.metadata["kv_entries"] for n in engine.retrieve(QueryBundle(DOOR_QUESTION))) < 512
    with pytest.raises(ConfigError, match="floor.*similarity_top_k=3"):
        index.as_retriever(similarity_top_k=3, floor=0.5)


def test_neighbours_come_as_one_passage(model):
    text = " ".join(f"Room {number} is painted {colour}." for number in range(60) for colour in ("blue", "white"))
    with SharedLLMContextStore(model, embedder=None) as store:
        store.add(text, id="rooms")
        (node,) = SharedContextRetriever(store, budget=4096).retrieve("Which room is blue?")
        assert node.node.text == text
        assert node.metadata["kv_entries"] == model.count_tokens(text)


def test_metadata_of_the_user_are_never_overwritten(llm):
    document = Document(text=DOORS, id_="doors", metadata={"level": "beginner", "ratio": 0.5})
    index = SharedContextIndex.from_documents([document], llm=llm, embedder=None)
    response = index.as_query_engine().query(DOOR_QUESTION)
    node = response.source_nodes[0].node
    assert (node.metadata["level"], node.metadata["ratio"]) == ("beginner", 0.5)
    assert "level: beginner" in node.get_content(MetadataMode.LLM)
    assert "4417" in str(response)


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        (where(("topic", FilterOperator.EQ, "access")), {"doors"}),
        (where(("topic", FilterOperator.NE, "access")), {"shifts", "garden"}),
        (where(("year", FilterOperator.GT, 2021), ("year", FilterOperator.LT, 2024)), {"shifts"}),
        (where(("year", FilterOperator.GTE, 2023)), {"shifts", "garden"}),
        (where(("year", FilterOperator.LTE, 2021)), {"doors"}),
        (where(("topic", FilterOperator.IN, ["access", "museum"])), {"doors", "garden"}),
        (where(("topic", FilterOperator.NIN, ["access", "museum"])), {"shifts"}),
        (where(("tags", FilterOperator.CONTAINS, "bread")), {"shifts"}),
        (where(("tags", FilterOperator.ANY, ["bread", "code"])), {"doors", "shifts"}),
        (where(("tags", FilterOperator.ALL, ["door", "code"])), {"doors"}),
        (where(("topic", FilterOperator.TEXT_MATCH, "use")), {"garden"}),
        (where(("topic", FilterOperator.TEXT_MATCH_INSENSITIVE, "USE")), {"garden"}),
        (where(("tags", FilterOperator.ALL, [])), {"doors", "shifts", "garden"}),
        (where(("tags", FilterOperator.IS_EMPTY, None)), {"garden"}),
        (where(("note", FilterOperator.IS_EMPTY, None)), {"doors", "shifts", "garden"}),
        (
            where(
                ("year", FilterOperator.EQ, 2021), ("topic", FilterOperator.EQ, "museum"), condition=FilterCondition.OR
            ),
            {"doors", "garden"},
        ),
        (
            where(
                ("year", FilterOperator.EQ, 2021), ("topic", FilterOperator.EQ, "museum"), condition=FilterCondition.NOT
            ),
            {"shifts"},
        ),
        (
            MetadataFilters(
                filters=[where(("year", FilterOperator.GTE, 2023)), where(("topic", FilterOperator.NE, "bakery"))]
            ),
            {"garden"},
        ),
        (MetadataFilters(filters=[]), {"doors", "shifts", "garden"}),
        ({"year": {"$lt": 2022}}, {"doors"}),
    ],
)
def test_metadata_filters_mean_what_they_mean_elsewhere(index, filters, expected):
    nodes = index.as_retriever(filters=filters).retrieve("What is there?")
    assert {node.node.ref_doc_id for node in nodes} == expected


def test_options_of_other_retrievers_are_refused_by_the_name_of_what_is_here(index):
    for option, instead in (
        ({"top_k": 2}, "similarity_top_k="),
        ({"vector_store_query_mode": "hybrid"}, "policy="),
        ({"node_ids": ["doors"]}, "doc_ids="),
    ):
        for make in index.as_retriever, index.as_query_engine, index.as_chat_engine:
            with pytest.raises(ConfigError, match=f"{next(iter(option))}= is not of.*{instead}"):
                make(**option)


def test_filters_without_a_translation_are_errors(index):
    with pytest.raises(FilterError, match=r"'doc_id' is about ids.*doc_ids="):
        index.as_retriever(filters=where(("doc_id", FilterOperator.EQ, "doors")))
    with pytest.raises(FilterError, match="any"):
        index.as_retriever(filters=where(("tags", FilterOperator.ANY, "bread")))


# ------------------------------------------------------------------------------------------------------- synthesizer


def test_nodes_that_travelled_as_json_are_injected_all_the_same(index, calls):
    nodes = index.as_retriever().retrieve(DOOR_QUESTION)
    travelled = [NodeWithScore(node=TextNode.from_json(node.node.to_json()), score=node.score) for node in nodes]
    synthesizer = SharedContextSynthesizer(index.store, index.llm, show_metadata=False)
    answer = synthesizer.synthesize(DOOR_QUESTION, travelled[::-1])
    assert "4417" in str(answer)
    assert calls[-1][1] == sum(node.metadata["kv_entries"] for node in nodes)


def test_foreign_nodes_are_pasted_beside_the_injected_ones(index, calls):
    foreign = NodeWithScore(node=TextNode(text="The code of the attic is 9090.", metadata={"source": "a note"}))
    own = index.as_retriever().retrieve(DOOR_QUESTION)
    response = SharedContextSynthesizer(index.store, index.llm).synthesize(
        "What is the code of the attic?", [*own, foreign]
    )
    prompt, injected = calls[-1]
    assert "9090" in str(response)
    assert "source: a note\n\nThe code of the attic is 9090." in prompt
    assert "4417" not in prompt
    assert injected > 0
    assert response.source_nodes == [*own, foreign]


def test_chunks_of_another_retriever_are_injected_where_the_store_holds_their_text(index, calls):
    document = Document(text=DOORS, id_="doors", metadata={"ratio": 0.5})
    chunks = SentenceSplitter(chunk_size=48, chunk_overlap=8).get_nodes_from_documents([document])
    assert len(chunks) > 1
    response = SharedContextSynthesizer(index.store, index.llm).synthesize(
        DOOR_QUESTION, [NodeWithScore(node=chunk) for chunk in chunks]
    )
    assert "4417" in str(response)
    prompt, injected = calls[-1]
    assert prompt == DOOR_QUESTION
    assert injected > 0


def test_texts_alone_are_pasted(index, calls):
    synthesizer = SharedContextSynthesizer(index.store)
    assert "4417" in synthesizer.get_response(DOOR_QUESTION, [DOORS])
    assert "4417" in asyncio.run(synthesizer.aget_response(DOOR_QUESTION, [DOORS]))
    assert calls[-1][1] == 0


def test_kv_are_never_injected_into_another_model(index):
    other = SharedLLMModel.from_pretrained("smollm2-135m-instruct", system_prompt="Answer like a pirate.")
    with pytest.raises(ModelMismatchError):
        index.as_query_engine(llm=SharedLLM(model=other))
    with pytest.raises(ModelMismatchError):
        SharedContextIndex.from_store(index.store, SharedLLM(model=other))
    with pytest.raises(ConfigError, match="MockLLM"):
        SharedContextSynthesizer(index.store, MockLLM())


# --------------------------------------------------------------------------------------------------------- documents


def test_documents_come_and_go(small_index):
    small_index.insert(documents()[2])
    assert set(small_index.ref_doc_info) == {"doors", "shifts", "garden"}
    assert small_index.ref_doc_info["garden"].metadata == documents()[2].metadata
    with pytest.raises(DuplicateDocumentError):
        small_index.insert(documents()[2])
    small_index.delete_ref_doc("doors")
    assert "4417" not in str(small_index.as_query_engine().query(DOOR_QUESTION))
    with pytest.raises(DocumentNotFoundError):
        small_index.delete_ref_doc("doors")
    small_index.update_ref_doc(Document(text=DOORS.replace("4417", "5528"), id_="doors"))
    assert "5528" in str(small_index.as_query_engine().query(DOOR_QUESTION))


def test_refresh_does_only_what_changed(small_index):
    shifts, doors, garden = documents()
    options = {"delete_kwargs": {"delete_from_docstore": True}}
    assert small_index.refresh_ref_docs([doors, shifts], update_kwargs=options) == [False, False]
    doors.metadata["year"] = 2025
    assert small_index.refresh_ref_docs([doors, shifts, garden]) == [True, False, True]
    assert small_index.ref_doc_info["doors"].metadata["year"] == 2025
    shifts.set_content(SHIFTS.replace("eleven", "nine"))
    assert small_index.refresh_ref_docs([doors, shifts, garden]) == [False, True, False]
    assert "nine" in str(small_index.as_query_engine().query(SHIFT_QUESTION))


@pytest.mark.parametrize("bad", ["  ", "no\0text"])
def test_a_refresh_with_a_bad_document_leaves_what_is_stored_of_it(small_index, bad):
    shifts, doors, garden = documents()
    doors.set_content(DOORS.replace("4417", "5528"))
    shifts.set_content(bad)
    assert small_index.refresh_ref_docs([garden, shifts, doors]) == [True, False, True]
    assert small_index.store.get("shifts").text == SHIFTS
    assert "5528" in small_index.store.get("doors").text


async def test_documents_can_be_managed_without_blocking(small_index):
    shifts, doors, garden = documents()
    await small_index.ainsert(garden)
    assert await small_index.arefresh_ref_docs([doors, shifts, garden]) == [False, False, False]
    await small_index.aupdate_ref_doc(Document(text="Short.", id_="doors"))
    await small_index.adelete_ref_doc("garden")
    assert set(small_index.ref_doc_info) == {"doors", "shifts"}


def test_a_blank_page_does_not_stop_the_rest(llm, caplog):
    store = SharedLLMContextStore(llm.shared_model, embedder=None)
    SharedContextIndex.from_documents([*documents(), Document(text="  ", id_="blank")], llm=llm, store=store)
    assert len(store) == len(documents()) and "'blank' is blank" in caplog.text


def test_a_picture_among_documents_is_left_out_unless_all_are_asked_for(llm, caplog):
    picture = ImageDocument(image=b"\x89PNG", id_="picture", metadata={})
    store = SharedLLMContextStore(llm.shared_model, embedder=None)
    with pytest.raises(BatchError) as refused:
        SharedContextIndex.from_documents([*documents(), picture], llm=llm, store=store, on_error="raise")
    assert list(refused.value.failures) == ["picture"]
    assert len(store) == 0
    seen = []
    index = SharedContextIndex.from_documents(
        [*documents(), picture], llm=llm, store=store, on_error=lambda name, error: seen.append((name, str(error)))
    )
    assert len(store) == len(documents())
    ((name, reason),) = seen
    assert name == "picture" and "image" in reason
    assert index.refresh_ref_docs([picture, *documents()]) == [False] * 4
    with pytest.raises(DocumentError, match="picture"):
        index.insert(picture)


def test_an_index_is_there_again_after_persisting(small_index, llm, tmp_path):
    small_index.persist(tmp_path / "house")
    again = SharedContextIndex.load(tmp_path / "house", llm)
    assert again.refresh_ref_docs(documents()[:2]) == [False, False]
    assert "4417" in str(again.as_query_engine().query(DOOR_QUESTION))
    again.insert(documents()[2])
    again.persist(tmp_path / "house")  # it lives there: nothing to do
    again.store.close()
    assert len(SharedContextIndex.load(tmp_path / "house", llm).ref_doc_info) == 3
    (tmp_path / "empty").mkdir()
    for nothing in ("nowhere", "empty"):
        with pytest.raises(StoreFormatError, match="from_documents"):
            SharedContextIndex.load(tmp_path / nothing, llm)
    assert not (tmp_path / "nowhere").exists()


def test_folders_are_read_by_llamaindexs_readers(llm, tmp_path):
    (tmp_path / "doors.txt").write_text(DOORS)
    read = SimpleDirectoryReader(tmp_path, filename_as_id=True).load_data()
    with SharedLLMContextStore(llm.shared_model, tmp_path / "index", embedder=None) as store:
        index = SharedContextIndex.from_documents(read, llm=llm, store=store, show_progress=True)
        (node,) = index.as_retriever().retrieve(DOOR_QUESTION)
        assert node.metadata["file_name"] == "doors.txt"
        assert "file_name" not in node.get_content(MetadataMode.LLM)
        assert index.refresh_ref_docs(read) == [False]
        again = SimpleDirectoryReader(tmp_path, filename_as_id=True, required_exts=[".txt"]).load_data()
        with pytest.raises(DocumentError, match="stored already"):
            SharedContextIndex.from_documents(again, llm=llm, store=store)


def test_the_llm_comes_from_llamaindexs_settings(llm, monkeypatch):
    monkeypatch.setattr(Settings, "_llm", llm)
    index = SharedContextIndex.from_documents(documents(), embedder=None)
    assert index.llm is llm
    with pytest.raises(ConfigError, match="MockLLM"):
        SharedContextIndex.from_documents(documents(), llm=MockLLM())
    with pytest.raises(ConfigError, match="store="):
        SharedContextIndex.from_documents(documents(), llm=llm, store=index.store, path="elsewhere")


# --------------------------------------------------------------------------------------------------------- callbacks


def test_callback_handlers_see_the_whole_query(model):
    debug = LlamaDebugHandler(print_trace_on_end=False)
    llm = SharedLLM(model=model, max_new_tokens=4, callback_manager=CallbackManager([debug]))
    index = SharedContextIndex.from_documents(documents(), llm=llm, embedder=None)
    index.as_query_engine().query(DOOR_QUESTION)
    for event in (CBEventType.QUERY, CBEventType.RETRIEVE, CBEventType.SYNTHESIZE, CBEventType.LLM):
        assert len(debug.get_event_pairs(event)) == 1, event


# ------------------------------------------------------------------------------------------------------- chat engine


def test_a_chat_answers_from_injected_context_and_remembers(index, calls):
    engine = index.as_chat_engine(show_metadata=False)
    first = engine.chat(DOOR_QUESTION)
    assert "4417" in str(first)
    assert first.source_nodes[0].node.ref_doc_id == "doors"
    assert calls[-1] == [DOOR_QUESTION, sum(node.metadata["kv_entries"] for node in first.source_nodes)]
    engine.chat("And when is the yellow gate open?")
    prompt, injected = calls[-1]
    assert prompt == f"{DOOR_QUESTION}\n{first}\nAnd when is the yellow gate open?"
    assert injected > 0
    assert [message.role for message in engine.chat_history] == ["user", "assistant", "user", "assistant"]
    engine.reset()
    assert engine.chat_history == []


def test_a_chat_streams_and_awaits(index):
    expected = str(index.as_chat_engine(chat_mode="context").chat(DOOR_QUESTION))
    engine = index.as_chat_engine(chat_mode="context")
    pieces = list(engine.stream_chat(DOOR_QUESTION).response_gen)
    assert "".join(pieces) == expected
    assert len(pieces) >= len(expected.split()) > 1
    assert engine.chat_history[-1].content == expected

    async def chat():
        engine = index.as_chat_engine(chat_mode="context")
        stream = await engine.astream_chat(DOOR_QUESTION)
        pieces = [piece async for piece in stream.async_response_gen()]
        return str(await index.as_chat_engine(chat_mode="context").achat(DOOR_QUESTION)), pieces, engine.chat_history

    answer, pieces, history = asyncio.run(chat())
    assert answer == "".join(pieces) == history[-1].content == expected


def test_a_follow_up_is_condensed_before_it_is_looked_up(index, calls):
    engine = index.as_chat_engine(chat_mode="condense_plus_context", condense_prompt="{chat_history} | {question}")
    engine.chat(DOOR_QUESTION)
    assert len(calls) == 1, "a first message is a question of its own"
    engine.chat("And the yellow gate?")
    assert calls[-1][0].endswith("And the yellow gate?")


def test_a_chat_without_anything_retrieved_still_answers(index):
    nothing = where(("topic", FilterOperator.EQ, "none such"))
    engine = index.as_chat_engine(chat_mode="context", filters=nothing)
    response = engine.chat("What is the capital of France?")
    assert "Paris" in str(response)
    assert response.source_nodes == []


def test_system_prompt_and_history_reach_the_model_as_they_are(index, calls):
    history = [
        ChatMessage(role="system", content="The user is called Ada."),
        ChatMessage(role="user", content='{"a": {b}}, {query_str} and {context_str}?'),
    ]
    engine = index.as_chat_engine(chat_mode="context", system_prompt="Put {query_str} last.", chat_history=history)
    engine.chat("What is {query_str}?")
    said = "Put {query_str} last.\n\nThe user is called Ada.\n" + '{"a": {b}}, {query_str} and {context_str}?'
    assert calls[-1][0] == f"{said}\nWhat is {{query_str}}?"
    list(engine.stream_chat(DOOR_QUESTION).response_gen)
    assert calls[-1][0].startswith(said)


@pytest.mark.parametrize("given", [False, True], ids=["memory of the index", "memory of the user"])
def test_a_chat_goes_on_from_a_history_longer_than_the_window(make_small_model, handbook, calls, given):
    llm = SharedLLM(model=make_small_model(), max_new_tokens=4)
    document = Document(text=handbook[:20_000], id_="handbook")
    index = SharedContextIndex.from_documents([document], llm=llm, embedder=None)
    history = [
        ChatMessage(role=role, content=f"Number {number}: " + "we spoke of the weather. " * 10)
        for number in range(40)
        for role in ("user", "assistant")
    ]
    assert llm.shared_model.count_tokens("".join(map(str, history))) > llm.metadata.context_window
    memory = Memory.from_defaults(token_limit=256, chat_history=history[:2]) if given else None
    engine = index.as_chat_engine(chat_history=history, memory=memory, similarity_top_k=12)
    for question in (DOOR_QUESTION, SHIFT_QUESTION):
        engine.chat(question)
    index.as_chat_engine(chat_history=history[-8:], similarity_top_k=14).chat(
        DOOR_QUESTION
    )  # fits a budget's rest only
    assert "Number 39" in calls[0][0] and "Number 0:" not in calls[0][0]
    assert calls[0][1] > 1024, "more than a budget would have taken"
    assert DOOR_QUESTION in calls[1][0]


def test_chat_modes(index, llm):
    assert isinstance(index.as_chat_engine(), SharedContextChatEngine)
    assert "Paris" in str(index.as_chat_engine(chat_mode="simple").chat("What is the capital of France?"))
    condensing = index.as_chat_engine(chat_mode="condense_question", condense_prompt="{chat_history} | {question}")
    assert "4417" in str(condensing.chat(DOOR_QUESTION))
    assert str(condensing.chat("And the yellow gate?"))
    assert DOORS in str(index.as_chat_engine(chat_mode="context", llm=MockLLM()).chat(DOOR_QUESTION))
    with pytest.raises(ConfigError, match="react"):
        index.as_chat_engine(chat_mode="react")

    class Somewhere(BaseRetriever):
        def _retrieve(self, query_bundle):
            return [NodeWithScore(node=TextNode(text="The code of the attic is 9090."))]

    engine = SharedContextChatEngine(
        Somewhere(), llm, index.as_chat_engine()._memory, store=index.store, skip_condense=True
    )
    assert "9090" in str(engine.chat("What is the code of the attic?"))


# ------------------------------------------------------------------------------------------------------------ package


def test_without_llama_index_the_import_says_what_to_install():
    hide = "import sys; sys.modules['llama_index'] = sys.modules['llama_index.core'] = None; "
    run = subprocess.run(
        [sys.executable, "-c", hide + "import shared_context.integrations.llamaindex"], capture_output=True, text=True
    )
    assert run.returncode != 0
    assert "pip install sharedllm[llamaindex]" in run.stderr


def test_a_query_transform_says_what_is_searched_for(index):
    hyde = QueryBundle("What is there?", custom_embedding_strs=[DOOR_QUESTION])
    assert index.as_retriever(similarity_top_k=1).retrieve(hyde)[0].node.ref_doc_id == "doors"
