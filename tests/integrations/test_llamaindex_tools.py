"""Tools and objects from LlamaIndex's SharedLLM, on the real default model: the form holds, whatever it says."""

import asyncio
import json
from typing import Literal

import pytest
from llama_index.core import Document, PromptTemplate
from llama_index.core.agent.workflow import AgentWorkflow, FunctionAgent
from llama_index.core.base.llms.types import ChatMessage, TextBlock, ToolCallBlock
from llama_index.core.prompts import ChatPromptTemplate
from llama_index.core.tools import FunctionTool
from pydantic import BaseModel, Field

from shared_context.errors import ConfigError, QueryError
from shared_context.integrations.llamaindex import SharedContextIndex, SharedLLM
from shared_context.integrations.llamaindex.messages import to_conversation

SAID = "The gate opens at six, and {who} closes it at nine."


class Hours(BaseModel):
    """When the gate is open."""

    opens: str = Field(max_length=12)
    closes: str = Field(max_length=12)


class Shift(BaseModel):
    """A shift."""

    name: str = Field(max_length=12)
    starts: int = Field(ge=0, le=23)
    kind: Literal["day", "night"]


class Shifts(BaseModel):
    """All shifts."""

    shifts: list[Shift] = Field(min_length=1, max_length=2)


def add(a: int, b: int) -> int:
    """Add two numbers."""
    return a + b


async def weather(city: Literal["Paris", "Oslo"]) -> str:
    """Say what the weather is."""
    return f"It rains in {city}."


TOOLS = [FunctionTool.from_defaults(fn=add), FunctionTool.from_defaults(async_fn=weather)]


@pytest.fixture(scope="module")
def llm(model):
    return SharedLLM(model=model, max_new_tokens=96)


PROMPTS = [
    PromptTemplate(SAID),
    ChatPromptTemplate([ChatMessage("You know hours.", role="system"), ChatMessage(SAID, role="user")]),
]


@pytest.mark.parametrize("prompt", PROMPTS)
@pytest.mark.parametrize("kind", [Hours, Shifts])
def test_an_answer_is_an_object_of_the_class(llm, prompt, kind):
    assert isinstance(llm.structured_predict(kind, prompt, who="Ann"), kind)


def test_every_form_of_structured_answers_gives_the_same_object(llm):
    prompt = PromptTemplate(SAID)
    expected = llm.structured_predict(Hours, prompt, who="Ann")

    async def later():
        streamed = [found async for found in await llm.astream_structured_predict(Hours, prompt, who="Ann")]
        return await llm.astructured_predict(Hours, prompt, who="Ann"), streamed[-1]

    streamed = list(llm.stream_structured_predict(Hours, prompt, who="Ann"))
    assert streamed[-1] == expected
    assert len(streamed) > 2  # it grows
    assert asyncio.run(later()) == (expected, expected)
    assert llm.as_structured_llm(Hours).complete(SAID.format(who="Ann")).raw == expected


def test_an_object_that_was_cut_is_said_in_words(llm):
    for predict in (llm.structured_predict, lambda *a, **k: list(llm.stream_structured_predict(*a, **k))):
        with pytest.raises(QueryError, match=r"before the Hours was whole: raise max_new_tokens"):
            predict(Hours, PromptTemplate(SAID), llm_kwargs={"max_new_tokens": 3}, who="Ann")


def test_a_query_engine_answers_with_objects(llm):
    index = SharedContextIndex.from_documents([Document(text=SAID.format(who="Ann"))], llm=llm, embedder=None)
    response = index.as_query_engine(budget=64, output_cls=Hours).query("When is the gate open?").response
    assert isinstance(response, Hours)


def test_a_tool_that_must_be_called_is_called_in_its_form(llm):
    for choice in ({"tool_required": True}, {"tool_choice": "add"}):
        response = llm.chat_with_tools(TOOLS[:1], "What is 2 and 3?", **choice)
        (call,) = llm.get_tool_calls_from_response(response)
        assert call.tool_name == "add"
        assert all(isinstance(call.tool_kwargs[name], int) for name in ("a", "b"))
        assert call.tool_id
    answer = llm.predict_and_call(TOOLS[:1], "What is 2 and 3?", tool_required=True)
    assert answer.response == str(sum(answer.sources[0].raw_input["kwargs"].values()))


def test_a_streamed_call_is_the_same_and_leaves_no_tags_among_the_words(llm):
    whole = llm.chat_with_tools(TOOLS, "How is the weather in Paris?", tool_required=True)
    pieces = list(llm.stream_chat_with_tools(TOOLS, "How is the weather in Paris?", tool_required=True))

    def said(response):
        return [(call.tool_name, call.tool_kwargs) for call in llm.get_tool_calls_from_response(response)]

    assert said(pieces[-1]) == said(whole)
    assert "".join(piece.delta or "" for piece in pieces) == ""


def test_words_in_place_of_a_call_are_words(llm):
    response = llm.chat_with_tools(TOOLS, "Say hello.", tool_choice="none", max_new_tokens=8)
    assert response.message.content
    assert llm.get_tool_calls_from_response(response, error_on_no_tool_call=False) == []
    with pytest.raises(QueryError, match="calls no tool"):
        llm.get_tool_calls_from_response(response)
    with pytest.raises(ConfigError, match="no tool has this name; there are add, weather"):
        llm.chat_with_tools(TOOLS, "Say hello.", tool_choice="nothing")


def test_a_call_that_was_cut_is_shown_and_is_no_call(llm):
    response = llm.chat_with_tools(TOOLS[:1], "What is 2 and 3?", tool_required=True, max_new_tokens=12)
    assert '"name": "add"' in response.message.content
    assert llm.get_tool_calls_from_response(response, error_on_no_tool_call=False) == []


@pytest.mark.parametrize("arguments", [{"a": 2, "b": 3}, '{"a": 2, "b": 3}'])
def test_earlier_calls_are_read_as_the_model_writes_them(arguments):
    messages = [
        ChatMessage("What is 2 and 3?", role="user"),
        ChatMessage(
            role="assistant",
            blocks=[
                TextBlock(text="Let me see."),
                ToolCallBlock(tool_call_id="1", tool_name="add", tool_kwargs=arguments),
            ],
        ),
        ChatMessage("5", role="tool", additional_kwargs={"tool_call_id": "1"}),
    ]
    asked, called, told = to_conversation(messages, with_tools=True)
    assert asked["role"] == told["role"] == "user"
    assert "5" in told["content"]
    words, _, call = called["content"].partition("<tool_call>")
    assert words == "Let me see.\n"
    assert json.loads(call.removesuffix("</tool_call>")) == {"name": "add", "arguments": {"a": 2, "b": 3}}


def test_an_agent_calls_a_tool_and_answers(llm):
    called = []

    def look(place: Literal["gate", "lamp"]) -> str:
        """Look at a place of the island."""
        called.append(place)
        return f"The {place} is shut."

    class Once(SharedLLM):
        """Must call where it has not yet: whether to call is more than a small model knows."""

        def _prepare_chat_with_tools(self, tools, chat_history=None, **kwargs):
            required = not any(message.role == "tool" for message in chat_history or [])
            choice = "required" if required else "none"
            kwargs.pop("tool_required", None)
            return super()._prepare_chat_with_tools(tools, chat_history=chat_history, tool_choice=choice, **kwargs)

    once = Once(model=llm.shared_model, max_new_tokens=64)
    agent = FunctionAgent(tools=[look], llm=once, allow_parallel_tool_calls=False)

    async def run():
        return await agent.run("Look at the gate. Is it shut?")

    answer = asyncio.run(run())
    assert len(called) == 1
    assert str(answer)
    workflow = AgentWorkflow.from_tools_or_functions([look], llm=llm)
    assert isinstance(workflow.agents["Agent"], FunctionAgent)


def test_what_is_no_message_is_said_in_words(llm):
    for wrong in ([{"role": "user", "content": "hi"}], ChatMessage("hi", role="user")):
        with pytest.raises(QueryError, match="takes a list of ChatMessage"):
            to_conversation(wrong)
    with pytest.raises(QueryError, match="prompt is a list"):
        llm.complete(["hi"])
