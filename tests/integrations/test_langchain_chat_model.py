"""ChatSharedLLM: LangChain's conformance suites, and what a user of a chat model would notice."""

import asyncio
import json
import threading

import pytest
from langchain_core.caches import InMemoryCache
from langchain_core.callbacks import BaseCallbackHandler, UsageMetadataCallbackHandler
from langchain_core.exceptions import OutputParserException
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.tools import tool
from langchain_tests.integration_tests import ChatModelIntegrationTests
from langchain_tests.unit_tests import ChatModelUnitTests
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition
from pydantic import BaseModel, Field
from transformers import LlamaConfig, LlamaForCausalLM

from shared_context import SharedLLMContextStore
from shared_context.errors import ConfigError, QueryError, WindowExceededError
from shared_context.integrations.langchain import ChatSharedLLM
from shared_context.integrations.langchain.settings import load_model

NAME = "smollm2-135m-instruct"
SAFE = "The code of the safe is 4711. Only the porter knows it."
SHIFT = "The night shift starts at 22:15. It ends at 06:30."
QUESTION = "What is the code of the safe?"


class TestStandardUnit(ChatModelUnitTests):
    @property
    def chat_model_class(self):
        return ChatSharedLLM

    @property
    def chat_model_params(self):
        return {"model": NAME}


class TestStandardIntegration(ChatModelIntegrationTests):
    @pytest.fixture(scope="class", autouse=True)
    @classmethod
    def _another_model(cls, tmp_path_factory):
        """A tiny model in a folder, for the tests that name another model in a call."""
        folder = tmp_path_factory.mktemp("models") / "another-model"
        tokenizer = load_model(NAME).tokenizer
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=2048,
        )
        LlamaForCausalLM(config).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        cls.another_model = str(folder)

    @property
    def chat_model_class(self):
        return ChatSharedLLM

    @property
    def chat_model_params(self):
        return {"model": NAME, "max_tokens": 8}

    @property
    def has_tool_calling(self):
        return False  # below

    @property
    def has_structured_output(self):
        return False  # below

    @property
    def model_override_value(self):
        return self.another_model

    @property
    def enable_vcr_tests(self):
        return True  # there is no traffic to record: the test streams from the model itself


@pytest.mark.slow
class TestStandardToolsAndStructuredOutput(TestStandardIntegration):
    """The whole suite once more, with answers long enough for calls and objects."""

    @property
    def chat_model_params(self):
        return {"model": NAME, "max_tokens": 160}

    @property
    def has_tool_calling(self):
        return True

    @property
    def has_structured_output(self):
        return True

    @property
    def supports_json_mode(self):
        return True

    @pytest.mark.xfail(reason="a model of 135 million parameters answers in words where it is free to call a tool")
    @pytest.mark.parametrize("model", [{}, {"output_version": "v1"}], indirect=True)
    def test_agent_loop(self, model):
        super().test_agent_loop(model)

    @pytest.mark.xfail(reason="a model of 135 million parameters does not keep to the keys that a prompt asks for")
    def test_json_mode(self, model):
        super().test_json_mode(model)


@pytest.fixture(scope="module")
def store(model):
    with SharedLLMContextStore(model, embedder=None) as store:
        store.add(SAFE, id="safe")
        store.add(SHIFT, id="shift")
        yield store


@pytest.fixture(scope="module")
def llm(model):
    return ChatSharedLLM(model=model, max_tokens=12)


class Tokens(BaseCallbackHandler):
    def __init__(self):
        self.tokens = []
        self.invocation_params = None

    def on_chat_model_start(self, serialized, messages, *, invocation_params, **kwargs):
        self.invocation_params = invocation_params

    def on_llm_new_token(self, token, **kwargs):
        self.tokens.append(token)


def test_the_answer_is_the_models(model, llm):
    assert llm.invoke(QUESTION).content == model.generate(QUESTION, max_new_tokens=12)


def test_pieces_of_a_stream_add_up_to_the_answer(llm):
    chunks = list(llm.stream(QUESTION))
    whole = llm.invoke(QUESTION)
    streamed = sum(chunks[1:], chunks[0])
    assert sum(bool(chunk.content) for chunk in chunks) > 2
    assert streamed.content == whole.content
    assert streamed.usage_metadata == whole.usage_metadata
    assert streamed.response_metadata.keys() == whole.response_metadata.keys()
    assert streamed.response_metadata["finish_reason"] == whole.response_metadata["finish_reason"]


def test_leaving_a_stream_ends_the_generation(llm):
    threads = threading.active_count()
    stream = llm.stream("Tell me a very long story.", max_tokens=2000)
    next(stream)
    stream.close()
    assert threading.active_count() == threads


async def test_an_async_stream_leaves_the_event_loop_free_between_pieces(llm):
    turns = 0

    async def count_turns():
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counter = asyncio.create_task(count_turns())
    seen = [turns async for chunk in llm.astream(QUESTION) if chunk.content]
    counter.cancel()
    assert len(seen) > 2
    assert seen == sorted(set(seen))


def test_a_batch_keeps_its_order(llm):
    questions = ["Name a colour.", "What is 1 + 1?", "Say hello."]
    answers = llm.batch(questions, max_tokens=5)
    expected = [llm.invoke(question, max_tokens=5).content for question in questions]
    assert [answer.content for answer in answers] == expected


def test_a_selection_is_injected(llm, store):
    with_context = llm.invoke(QUESTION, context=store.select(QUESTION))
    assert "4711" in with_context.content
    assert with_context.response_metadata["context_entries"] > 0
    assert with_context.response_metadata["time_to_first_token"] > 0
    usage = with_context.usage_metadata
    assert usage["input_token_details"]["cache_read"] == with_context.response_metadata["context_entries"]
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert "4711" not in llm.invoke(QUESTION).content


def test_a_bound_selection_serves_a_pipeline(llm, store):
    prompt = ChatPromptTemplate([("human", "{question}")])
    chain = prompt | llm.bind(context=store.select(QUESTION)) | StrOutputParser()
    assert "4711" in chain.invoke({"question": QUESTION})
    assert "4711" in "".join(chain.stream({"question": QUESTION}))


def test_stop_strings_end_the_answer_and_are_not_part_of_it(llm):
    message = "Repeat after me: one two three four"
    whole = llm.invoke(message).content
    word = whole.split()[2]
    for stopped in (llm.invoke(message, stop=[word]), llm.model_copy(update={"stop": [word]}).invoke(message)):
        assert stopped.content == whole[: whole.index(word)]
        assert stopped.response_metadata["finish_reason"] == "stop"


def test_a_call_overrides_the_settings(model):
    llm = ChatSharedLLM(model=model, max_new_tokens=12)
    for limit in ({"max_tokens": 3}, {"max_new_tokens": 3}):
        answer = llm.invoke("Tell me a long story.", **limit)
        assert answer.usage_metadata["output_tokens"] == 3
        assert answer.response_metadata["finish_reason"] == "length"


def test_a_seed_makes_sampling_repeatable(llm):
    sampled = [llm.invoke("Invent a name.", temperature=1.5, seed=seed, max_tokens=6).content for seed in (1, 1, 2)]
    assert sampled[0] == sampled[1] != sampled[2]


def test_earlier_turns_are_read(llm):
    turns = [HumanMessage("My dog is called Mustard."), AIMessage("Nice!"), HumanMessage("What is my dog called?")]
    assert "Mustard" in llm.invoke(turns).content


def test_blocks_of_text_read_like_a_string(llm):
    blocks = [SystemMessage("Be brief."), HumanMessage([{"type": "text", "text": QUESTION}])]
    string = [SystemMessage("Be brief."), HumanMessage(QUESTION)]
    assert llm.invoke(blocks, max_tokens=5).content == llm.invoke(string, max_tokens=5).content


def test_an_image_is_refused(llm):
    image = {"type": "image", "url": "https://example.com/cat.png"}
    with pytest.raises(QueryError, match="'image'"):
        llm.invoke([HumanMessage([{"type": "text", "text": "What is this?"}, image])])


def test_callbacks_see_every_piece(llm):
    handler = Tokens()
    list(llm.stream(QUESTION, config={"callbacks": [handler]}))
    answer = llm.invoke(QUESTION).content
    assert "".join(handler.tokens) == answer
    handler.tokens.clear()
    ChatSharedLLM(model=llm.model, max_tokens=12, streaming=True).invoke(QUESTION, config={"callbacks": [handler]})
    assert "".join(handler.tokens) == answer


def test_usage_is_summed_by_model_name(model, llm):
    usage = UsageMetadataCallbackHandler()
    answers = llm.batch(["Say hello.", "Say goodbye."], config={"callbacks": [usage]}, max_tokens=3)
    total = usage.usage_metadata[model.name]
    assert total["output_tokens"] == sum(answer.usage_metadata["output_tokens"] for answer in answers)


def test_a_trace_shows_what_was_injected_as_json(llm, store):
    handler = Tokens()
    llm.invoke(QUESTION, context=store.select(QUESTION), config={"callbacks": [handler]}, max_tokens=1)
    context = json.loads(json.dumps(handler.invocation_params))["context"]
    assert {passage["doc_id"]: passage["text"] for passage in context} == {"safe": SAFE, "shift": SHIFT}


def test_a_cache_tells_contexts_apart(model, store):
    llm = ChatSharedLLM(model=model, max_tokens=12, cache=InMemoryCache())
    without = llm.invoke(QUESTION)
    injected = llm.invoke(QUESTION, context=store.select(QUESTION))
    other = llm.invoke(QUESTION, context=store.select(QUESTION, doc_ids=["shift"]))
    assert len({without.content, injected.content, other.content}) == 3
    again = llm.invoke(QUESTION, context=store.select(QUESTION))
    assert again.content == injected.content
    assert again.id == injected.id  # the stored message itself, not a new answer


def test_what_does_not_fit_the_window_is_refused(llm):
    with pytest.raises(WindowExceededError):
        llm.invoke("word " * 9000)


def test_an_unknown_option_is_refused(llm):
    with pytest.raises(ConfigError, match="max_tokenz"):
        llm.invoke("Hello", max_tokenz=3)


class Person(BaseModel):
    """Somebody who is spoken of."""

    name: str = Field(max_length=12)
    age: int = Field(ge=0, le=120)


ALICE = "Alice is 31 years old and lives in Rome."


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_structured_output_is_an_object_of_the_schema(model, method):
    llm = ChatSharedLLM(model=model, max_tokens=64)
    person = llm.with_structured_output(Person, method=method).invoke(ALICE)
    assert isinstance(person, Person) and person.age == 31
    as_dict = llm.with_structured_output(Person.model_json_schema(), method=method, include_raw=True).invoke(ALICE)
    assert as_dict["parsed"]["age"] == 31
    assert isinstance(as_dict["raw"], AIMessage) and as_dict["parsing_error"] is None


async def test_an_object_grows_in_a_stream(model):
    llm = ChatSharedLLM(model=model, max_tokens=64).with_structured_output(Person.model_json_schema())
    states = list(llm.stream(ALICE))
    assert len(states) > 2 and states[-1]["age"] == 31
    assert [state async for state in llm.astream(ALICE)] == states


@pytest.mark.parametrize("include_raw", [False, True])
def test_an_object_that_is_cut_is_an_error_in_words(model, include_raw):
    llm = ChatSharedLLM(model=model, max_tokens=3).with_structured_output(Person, include_raw=include_raw)
    if include_raw:
        result = llm.invoke(ALICE)
        assert result["parsed"] is None
        assert "max_tokens" in str(result["parsing_error"])
    else:
        with pytest.raises(OutputParserException, match="max_tokens"):
            llm.invoke(ALICE)


def test_structured_output_reads_a_selection(model, store):
    class Safe(BaseModel):
        code: int = Field(le=99999)

    llm = ChatSharedLLM(model=model, max_tokens=32).with_structured_output(Safe)
    assert llm.invoke(QUESTION, context=store.select(QUESTION)).code == 4711


def test_what_structured_output_cannot_enforce_is_refused_in_words(llm):
    with pytest.raises(ConfigError, match="method"):
        llm.with_structured_output(Person, method="guessing")
    for wrong in (int, "Person", Person(name="Alice", age=3)):
        with pytest.raises(ConfigError, match="must be a Pydantic class, a TypedDict or a JSON schema"):
            llm.with_structured_output(wrong)
    unenforceable = {"title": "Odd", "type": "object", "properties": {"a": {"not": {"type": "string"}}}}
    with pytest.raises(ConfigError, match="cannot be enforced"):
        llm.with_structured_output(unenforceable).invoke(ALICE)


@tool
def get_weather(city: str) -> str:
    """Tell the weather in a city."""
    return f"It is 17 degrees in {city}."


@tool
def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


@pytest.fixture(scope="module")
def calling(model):
    return ChatSharedLLM(model=model, max_tokens=64)


def test_a_forced_call_takes_its_arguments_from_the_question(calling):
    answer = calling.bind_tools([get_weather, add], tool_choice="any").invoke("What is the weather in Paris?")
    (call,) = answer.tool_calls
    assert (call["name"], call["args"]) == ("get_weather", {"city": "Paris"})
    assert call["id"] and answer.content == ""
    (call,) = calling.bind_tools([get_weather, add], tool_choice="add").invoke("What is 17 + 25?").tool_calls
    assert (call["name"], call["args"]) == ("add", {"a": 17, "b": 25})


def test_a_providers_own_tool_is_refused_in_words(calling):
    for own in ({"type": "web_search_preview"}, {"type": "file_search", "vector_store_ids": ["a"]}):
        with pytest.raises(ConfigError, match=f"{own['type']}.*run by a provider.*give a function"):
            calling.bind_tools([own])


def test_a_streamed_call_is_the_same_call(calling):
    bound = calling.bind_tools([add], tool_choice="any")
    chunks = list(bound.stream("What is 17 + 25?"))
    whole = sum(chunks[1:], chunks[0])
    expected = bound.invoke("What is 17 + 25?")
    assert [(c["name"], c["args"]) for c in whole.tool_calls] == [(c["name"], c["args"]) for c in expected.tool_calls]
    assert whole.content == expected.content
    assert whole.usage_metadata == expected.usage_metadata


def test_a_model_that_is_free_may_answer_in_words(calling):
    answer = calling.bind_tools([add]).invoke("Hello! How are you?")
    assert answer.content and not answer.tool_calls
    answer = calling.bind_tools([add], tool_choice="none").invoke("What is 17 + 25?")
    assert answer.content and not answer.tool_calls


def test_a_call_that_is_cut_says_so(calling):
    bound = calling.bind_tools([add], tool_choice="any")
    answer = bound.invoke("What is 17 + 25?", max_tokens=12)
    assert not answer.tool_calls
    assert "max_tokens" in answer.invalid_tool_calls[0]["error"]


@pytest.mark.parametrize("choice", ["subtract", 3.5, {"type": "function", "function": {"name": "subtract"}}])
def test_a_wrong_choice_of_tools_is_refused(calling, choice):
    with pytest.raises(ConfigError, match="tool_choice"):
        calling.bind_tools([add], tool_choice=choice)


def test_an_agent_calls_a_tool_and_answers(calling):
    def decide(state):
        asked = isinstance(state["messages"][-1], HumanMessage)
        bound = calling.bind_tools([get_weather, add], tool_choice="any" if asked else "none")
        return {"messages": [bound.invoke(state["messages"])]}

    graph = StateGraph(MessagesState)
    graph.add_node("model", decide)
    graph.add_node("tools", ToolNode([get_weather, add]))
    graph.add_edge(START, "model")
    graph.add_conditional_edges("model", tools_condition)
    graph.add_edge("tools", "model")
    messages = graph.compile().invoke({"messages": [HumanMessage("What is the weather in Paris?")]})["messages"]
    assert [message.type for message in messages] == ["human", "ai", "tool", "ai"]
    assert messages[2].content == "It is 17 degrees in Paris."
    assert "17" in messages[3].content


WEATHER = {"type": "object", "properties": {"degrees": {"type": "integer"}}, "required": ["degrees"]}
AS_JSON = {"type": "json_schema", "json_schema": {"name": "Weather", "schema": WEATHER, "strict": True}}


@pytest.mark.parametrize("tools", [[], [get_weather]], ids=["no tools", "tools"])
def test_an_agents_response_format_is_followed(calling, tools):
    bound = calling.bind_tools(tools, response_format=AS_JSON, strict=True)  # as create_agent binds them
    answer = bound.invoke("It is 17 degrees in Paris. How warm is it?")
    assert bool(answer.tool_calls) != (answer.text.startswith("{") and json.loads(answer.text).keys() == {"degrees"})
    words = calling.bind_tools(tools, response_format=AS_JSON, tool_choice="none").invoke("It is 17 degrees in Paris.")
    assert json.loads(words.text).keys() == {"degrees"}


def test_without_tools_nothing_is_bound(calling):
    assert calling.bind_tools([]).invoke("Say hello.").content == calling.invoke("Say hello.").content
    with pytest.raises(ConfigError, match="give one or more"):
        calling.bind_tools([], tool_choice="any")
    with pytest.raises(ConfigError, match="response_format"):
        calling.invoke("Say hello.", response_format="json")


def test_it_counts_and_declares_with_the_models_own_numbers(model, llm):
    assert llm.get_num_tokens(SAFE) == model.count_tokens(SAFE)
    assert llm.profile["max_input_tokens"] == model.context_window
    assert llm.profile["tool_calling"] and llm.profile["tool_choice"] and llm.profile["structured_output"]
