"""SharedContextChain: what a user of create_retrieval_chain would look for."""

import copy
from operator import itemgetter

import pytest
from langchain_core.documents import Document
from langchain_core.language_models import FakeListChatModel, FakeListLLM
from langchain_core.messages import HumanMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langchain_core.runnables.history import RunnableWithMessageHistory
from langchain_core.tracers.run_collector import RunCollectorCallbackHandler
from pydantic import BaseModel, Field, ValidationError

from shared_context import SharedLLMContextStore, SharedLLMModel, StoreConfig, TreeConfig
from shared_context.errors import ConfigError, ModelMismatchError, QueryError
from shared_context.integrations.langchain import (
    ChatSharedLLM,
    SharedContextChain,
    SharedContextChatMessageHistory,
    SharedContextRetriever,
)
from shared_context.integrations.langchain.documents import divide

DOCUMENTS = [
    Document("The code of the safe is 4711. Only the porter knows it.", id="safe", metadata={"floor": 0}),
    Document("The night shift starts at 22:15. It ends at 06:30.", id="shift", metadata={"floor": 1}),
    Document("The password of the guest network is marigold.", id="network", metadata={"floor": 9}),
]
SAFE = {"input": "What is the code of the safe?"}
NETWORK = {"input": "What is the password of the guest network?"}


@pytest.fixture(scope="module")
def store(model):
    with SharedLLMContextStore(model, embedder=None) as store:
        SharedContextRetriever.from_documents(DOCUMENTS, store=store)
        yield store


@pytest.fixture(scope="module")
def chain(model, store):
    return SharedContextChain.from_store(store, llm=ChatSharedLLM(model=model, max_tokens=12))


def test_question_in_context_and_answer_out(chain):
    result = chain.invoke(SAFE)
    assert result.keys() == {"input", "context", "answer"}
    assert result["input"] == SAFE["input"]
    assert "4711" in result["answer"]
    assert [passage.metadata["doc_id"] for passage in result["context"]][0] == "safe"
    assert all(isinstance(passage, Document) for passage in result["context"])


def test_what_is_found_is_injected_and_not_pasted(chain):
    runs = RunCollectorCallbackHandler()
    chain.invoke(SAFE, config={"callbacks": [runs]})
    asked = runs.traced_runs[0].child_runs[-1]
    assert "porter" not in str(asked.inputs)
    message = asked.outputs["generations"][0][0]["message"]["kwargs"]
    assert message["response_metadata"]["context_entries"] > 0


class Code(BaseModel):
    """What opens something."""

    code: int = Field(le=99999)


async def test_an_llm_with_structured_output_answers_with_objects(model, store):
    llm = ChatSharedLLM(model=model, max_tokens=32).with_structured_output(Code)
    chain = SharedContextChain.from_store(store, llm=llm)
    runs = RunCollectorCallbackHandler()
    assert chain.invoke(SAFE, config={"callbacks": [runs]})["answer"] == Code(code=4711)
    assert "porter" not in str(runs.traced_runs[0].child_runs[-1].inputs), "it is injected all the same"
    assert (await chain.ainvoke(SAFE))["answer"] == Code(code=4711)
    assert list(chain.stream(SAFE))[-1]["answer"] == Code(code=4711)
    assert [piece async for piece in chain.astream(SAFE)][-1]["answer"] == Code(code=4711)


def test_a_parser_behind_the_llm_parses_its_answer(model, store):
    chain = SharedContextChain.from_store(store, llm=ChatSharedLLM(model=model, max_tokens=12) | StrOutputParser())
    answer = chain.invoke(SAFE)["answer"]
    assert "4711" in answer
    assert "".join(piece["answer"] for piece in chain.stream(SAFE) if "answer" in piece) == answer


def test_what_is_injected_is_the_selection_behind_the_passages(handbook_store, model):
    question = "When does the night shift start?"
    selection = handbook_store.select(question, budget=1024)
    assert len(selection.nodes) > len(selection.passages) > 1
    llm = ChatSharedLLM(model=model, max_tokens=12)
    result = SharedContextChain.from_store(handbook_store, llm=llm, budget=1024).invoke({"input": question})
    assert len(result["context"]) == len(selection.passages)
    assert result["answer"] == llm.invoke(question, context=selection).content
    spans, foreign = divide(handbook_store, result["context"])
    injected = handbook_store.selection_from(spans)
    assert not foreign
    assert [(n.start, n.end, n.ratio) for n in injected.nodes] == [(n.start, n.end, n.ratio) for n in selection.nodes]
    places = [[chunk.tolist() for chunk in each.key_values().places] for each in (injected, selection)]
    assert places[0] == places[1]


def test_a_stream_yields_input_then_context_then_the_answer_in_pieces(chain):
    chunks = list(chain.stream(SAFE))
    assert chunks[0] == SAFE
    assert chunks[1].keys() == {"context"}
    assert all(chunk.keys() == {"answer"} for chunk in chunks[2:])
    assert len(chunks) > 4
    assert sum(chunks[1:], chunks[0]) == chain.invoke(SAFE)


async def test_async_forms_give_the_same(chain):
    expected = chain.invoke(SAFE)
    assert await chain.ainvoke(SAFE) == expected
    chunks = [chunk async for chunk in chain.astream(SAFE)]
    assert [*chunks[0], *chunks[1], *chunks[2]] == ["input", "context", "answer"]
    assert sum(chunks[1:], chunks[0]) == expected
    assert [result["answer"] for result in await chain.abatch([SAFE, NETWORK])] == [
        expected["answer"],
        chain.invoke(NETWORK)["answer"],
    ]


def test_a_batch_keeps_questions_and_contexts_together(chain):
    safe, network = chain.batch([SAFE, NETWORK])
    assert "4711" in safe["answer"]
    assert "marigold" in network["answer"]


def test_it_is_a_tool_that_takes_a_question(chain):
    tool = chain.as_tool(name="handbook", description="Answers from the handbook.")
    assert tool.args.keys() == {"input"}
    assert "4711" in tool.invoke(SAFE)["answer"]


def test_a_deep_copy_shares_store_and_model(chain, store):
    again = copy.deepcopy(chain)
    assert again.invoke(SAFE) == chain.invoke(SAFE)
    store.add("The code of the bicycle shed is 0815.", id="shed")
    found = again.invoke({"input": "What is the code of the bicycle shed?"})["context"]
    store.delete("shed")
    assert "shed" in [passage.metadata["doc_id"] for passage in found]


def test_it_composes(chain):
    answer = {"input": RunnablePassthrough()} | chain | itemgetter("answer") | StrOutputParser()
    assert "4711" in answer.invoke(SAFE["input"])
    pieces = list((chain.pick("answer") | StrOutputParser()).stream(SAFE))
    assert len(pieces) > 2
    assert "4711" in "".join(pieces)


def test_chat_history_is_read(chain):
    history = [("human", "My dog is called Mustard."), ("ai", "Nice!")]
    result = chain.invoke({"input": "What is my dog called?", "chat_history": history})
    assert "Mustard" in result["answer"]
    assert result["chat_history"] == history


def test_other_keys_pass_through(chain):
    given = {**SAFE, "user": 7, "answer": "an older one"}
    result = chain.invoke(given, max_tokens=3)
    assert result.keys() == {"input", "user", "context", "answer"}
    chunks = list(chain.stream(given, max_tokens=3))
    assert sum(chunks[1:], chunks[0]) == result


def test_arguments_of_a_call_go_to_the_model(chain):
    short = chain.invoke(SAFE, max_tokens=2)["answer"]
    assert chain.invoke(SAFE)["answer"].startswith(short)
    assert chain.bind(max_tokens=2).invoke(SAFE)["answer"] == short


@pytest.mark.parametrize("call", ["invoke", "stream"])
def test_runs_are_nested_and_carry_the_config(chain, call):
    runs = RunCollectorCallbackHandler()
    config = {"run_name": "porter", "tags": ["night"], "metadata": {"tenant": "west"}, "callbacks": [runs]}
    list(getattr(chain, call)(SAFE, config=config))
    root = runs.traced_runs[0]
    assert (root.name, root.run_type, root.inputs) == ("porter", "chain", SAFE)
    assert "4711" in root.outputs["answer"]
    assert [(run.name, run.run_type) for run in root.child_runs] == [
        ("SharedContextRetriever", "retriever"),
        ("ChatSharedLLM", "llm"),
    ]
    for run in (root, *root.child_runs):
        assert run.tags == ["night"]
        assert run.extra["metadata"]["tenant"] == "west"


async def test_events_name_every_step_and_every_token(chain):
    events = [event async for event in chain.astream_events(SAFE, version="v2")]
    kinds = [event["event"] for event in events]
    assert kinds[0] == "on_chain_start"
    assert kinds.index("on_retriever_end") < kinds.index("on_chat_model_start")
    tokens = [event["data"]["chunk"].content for event in events if event["event"] == "on_chat_model_stream"]
    assert "4711" in "".join(tokens)


def test_a_passage_that_was_masked_on_the_way_is_not_injected(chain, store):
    def mask(passages):
        return [p.model_copy(update={"page_content": p.page_content.replace("4711", "[hidden]")}) for p in passages]

    masked = SharedContextChain(store=store, retriever=chain.retriever | mask, llm=chain.llm)
    assert "4711" in chain.invoke(SAFE)["answer"]
    assert "4711" not in masked.invoke(SAFE)["answer"]


def test_what_a_postprocessor_drops_is_not_injected_and_what_it_shortens_is_pasted(store, model):
    def ask(postprocess):
        retriever = SharedContextRetriever(store=store) | postprocess
        chain = SharedContextChain(store=store, retriever=retriever, llm=ChatSharedLLM(model=model, max_tokens=2))
        runs = RunCollectorCallbackHandler()
        chain.invoke(SAFE, config={"callbacks": [runs]})
        asked = runs.traced_runs[0].child_runs[-1]
        message = asked.outputs["generations"][0][0]["message"]["kwargs"]
        return str(asked.inputs), message["response_metadata"]["context_entries"]

    everything = ask(lambda passages: passages)[1]
    prompt, entries = ask(lambda passages: passages[:1])
    assert 0 < entries < everything
    prompt, entries = ask(lambda passages: [passages[0].model_copy(update={"page_content": "The code is"})])
    assert entries == 0
    assert "The code is" in prompt


@pytest.mark.parametrize("place", [{}, {"doc_id": "safe"}, {"doc_id": "safe", "start": 0.0, "end": 12.0}])
def test_another_retrievers_passages_are_pasted(chain, store, place):
    other = RunnableLambda(lambda question: [Document("The code of the safe is 9205.", metadata=place)])
    assert "9205" in SharedContextChain(store=store, retriever=other, llm=chain.llm).invoke(SAFE)["answer"]


def test_where_nothing_is_found_the_model_answers_alone(store, model):
    chain = SharedContextChain.from_store(store, filters={"floor": 77}, llm=ChatSharedLLM(model=model, max_tokens=4))
    result = chain.invoke(SAFE)
    assert result["context"] == []
    assert result["answer"]


def test_settings_of_the_retriever(store):
    chain = SharedContextChain.from_store(store, k=1, filters={"floor": {"$gt": 0}})
    assert [passage.metadata["doc_id"] for passage in chain.retriever.invoke(NETWORK["input"])] == ["network"]


def test_from_documents_on_disk_and_again_from_the_store(model, tmp_path):
    first = SharedContextChain.from_documents(DOCUMENTS, model=model, path=tmp_path / "house.ctx")
    answer = first.invoke(SAFE, max_tokens=12)["answer"]
    first.store.close()
    with SharedLLMContextStore(model, tmp_path / "house.ctx") as store:
        assert store.get("network").metadata == {"floor": 9}
        assert SharedContextChain.from_store(store).invoke(SAFE, max_tokens=12)["answer"] == answer


@pytest.mark.parametrize("adapter", [SharedContextChain, SharedContextRetriever])
def test_settings_of_a_new_store(model, store, adapter):
    config = StoreConfig(tree=TreeConfig(chunk_size=128, height=3))
    made = adapter.from_documents(DOCUMENTS, model, config=config, embedder=None, budget=64).store
    assert (made.config, made.embedder) == (config, None)
    for setting in ({"config": config}, {"embedder": None}, {"path": "elsewhere"}):
        with pytest.raises(ConfigError, match="store="):
            adapter.from_documents([Document("Another text.", id="another")], store=store, **setting)
    assert "another" not in store


def test_a_wrong_setting_is_refused_before_anything_is_stored(store):
    before = len(store)
    with pytest.raises(ValidationError, match="buget"):
        SharedContextChain.from_documents([Document("Another text.", id="another")], store=store, buget=512)
    assert len(store) == before


def test_the_store_takes_the_model_of_the_llm(model):
    chain = SharedContextChain.from_documents(DOCUMENTS[:1], llm=ChatSharedLLM(model=model))
    assert chain.store.model is model


def test_another_model_than_the_stores_is_refused(store):
    half = SharedLLMModel.from_pretrained("smollm2-135m-instruct", injection_layers=15)
    with pytest.raises(ModelMismatchError, match="store.model"):
        SharedContextChain.from_store(store, llm=ChatSharedLLM(model=half))


@pytest.mark.parametrize("wrong", ["When?", {"question": "When?"}], ids=["text", "another key"])
def test_input_of_another_form_is_refused(chain, wrong):
    with pytest.raises(QueryError, match="'input'"):
        chain.invoke(wrong)


def test_a_message_is_a_question_too(chain):
    assert "4711" in chain.invoke({"input": HumanMessage(SAFE["input"])})["answer"]


@pytest.mark.filterwarnings("ignore:RunnableWithMessageHistory is deprecated")
def test_with_message_history(chain, store):
    remembering = RunnableWithMessageHistory(
        SharedContextChain.from_store(store, llm=chain.llm, show_metadata=False),
        lambda session: SharedContextChatMessageHistory(session, store),
        input_messages_key="input",
        history_messages_key="chat_history",
        output_messages_key="answer",
    )
    config = {"configurable": {"session_id": "ada"}}
    remembering.invoke({"input": "My dog is called Mustard."}, config=config)
    pieces = list(remembering.stream({"input": "What is my dog called?"}, config=config))
    assert "Mustard" in "".join(piece.get("answer", "") for piece in pieces)
    history = SharedContextChatMessageHistory("ada", store)
    assert [message.type for message in history.messages] == ["human", "ai", "human", "ai"]


class Listening(FakeListChatModel):
    """Another chat model, which keeps what it was given."""

    given: list = []

    def _call(self, messages, *args, **kwargs):
        assert "context" not in kwargs
        self.given.append(messages)
        return super()._call(messages, *args, **kwargs)


@pytest.fixture
def listening():
    return Listening(responses=["At the lodge."], given=[])


def test_any_other_chat_model_is_given_the_passages_as_text(store, listening):
    chain = SharedContextChain.from_store(store, llm=listening, system_prompt="You are the porter.")
    assert chain.invoke({**SAFE, "chat_history": [("human", "Hi."), ("ai", "Hello.")]})["answer"] == "At the lodge."
    (messages,) = listening.given
    assert [message.type for message in messages] == ["system", "human", "ai", "human"]
    assert messages[0].content == "You are the porter."
    assert DOCUMENTS[0].page_content in messages[-1].content
    assert messages[-1].content.endswith(SAFE["input"])
    assert sum(piece.get("answer", "") == "" for piece in chain.stream(SAFE)) == 2


def test_an_llm_answers_too(store):
    chain = SharedContextChain.from_store(store, llm=FakeListLLM(responses=["4711."]))
    assert chain.invoke(SAFE)["answer"] == "4711."
    assert "".join(piece.get("answer", "") for piece in chain.stream(SAFE)) == "4711."


PROMPT = ChatPromptTemplate(
    [("system", "Answer in {language}. {context}"), ("placeholder", "{chat_history}"), ("human", "{input}")]
)


def test_a_prompt_is_filled_with_what_is_pasted(store, listening):
    chain = SharedContextChain.from_store(store, llm=listening, prompt=PROMPT)
    given = {"input": "What is {this}?", "language": "Latin", "chat_history": [("human", "{that}")]}
    result = chain.invoke(given)
    assert result["language"] == "Latin"
    system, earlier, asked = listening.given[0]
    assert system.content.startswith("Answer in Latin. ") and DOCUMENTS[0].page_content in system.content
    assert (earlier.content, asked.content) == ("{that}", "What is {this}?"), "braces of a user are text"


def test_a_prompt_leaves_what_is_injected_to_the_model(chain, store):
    runs = RunCollectorCallbackHandler()
    prompted = SharedContextChain.from_store(store, llm=chain.llm, prompt=PROMPT)
    result = prompted.invoke({**SAFE, "language": "English"}, config={"callbacks": [runs]})
    assert "4711" in result["answer"]
    asked = next(run for run in runs.traced_runs[0].child_runs if run.run_type == "llm")
    assert "porter" not in str(asked.inputs) and "Answer in English." in str(asked.inputs)


def test_a_model_with_something_bound_to_it_is_injected_into(chain, store):
    bound = SharedContextChain.from_store(store, llm=chain.llm.bind(max_tokens=2))
    assert chain.invoke(SAFE)["answer"].startswith(bound.invoke(SAFE)["answer"])
    assert bound.llm.kwargs == {"max_tokens": 2}


def test_metadata_are_shown_unless_they_are_not_wanted(store, model):
    llm = ChatSharedLLM(model=model, max_tokens=1)

    def entries(**settings):
        runs = RunCollectorCallbackHandler()
        SharedContextChain.from_store(store, llm=llm, **settings).invoke(SAFE, config={"callbacks": [runs]})
        message = runs.traced_runs[0].child_runs[-1].outputs["generations"][0][0]["message"]["kwargs"]
        return message["response_metadata"]["context_entries"]

    assert entries() > entries(show_metadata=False) > 0


def test_a_program_may_be_run_again(make_small_model, tmp_path):
    model = make_small_model()
    for text in ("The gate opens at six.", "The gate opens at six.", "The gate opens at seven."):
        documents = [Document(text, metadata={"source": "gate.txt"}), Document("", metadata={"source": "gate.txt"})]
        chain = SharedContextChain.from_documents(documents, model, path=tmp_path / "house.ctx", embedder=None)
        assert [document.text for document in chain.store] == [text]
        chain.store.close()


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"llm": "gpt"}, "llm is a str"),
        ({"prompt": "Answer: {input}"}, "prompt is a str.*ChatPromptTemplate"),
        ({"prompt": ChatPromptTemplate([("human", "{question}")])}, "{input}"),
        ({"system_prompt": 5}, "system_prompt is a int"),
        ({"prompt": PROMPT, "system_prompt": "Be brief."}, "both given"),
    ],
)
def test_arguments_of_another_type_are_refused_in_words(store, wrong, message):
    with pytest.raises(ConfigError, match=message):
        SharedContextChain.from_store(store, **wrong)


@pytest.mark.parametrize(
    "wrong, message",
    [({"input": 5}, "input is a int"), ({**SAFE, "chat_history": "Hello"}, "chat_history is a str")],
)
def test_inputs_of_another_type_are_refused_in_words(chain, wrong, message):
    with pytest.raises(QueryError, match=message):
        chain.invoke(wrong)
