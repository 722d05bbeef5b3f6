"""SharedContextChatMessageHistory: a conversation that a store keeps."""

import pytest
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.runnables.history import RunnableWithMessageHistory

from shared_context import SharedLLMContextStore
from shared_context.integrations.langchain import ChatSharedLLM, SharedContextChatMessageHistory

MESSAGES = [
    SystemMessage("Be brief.", id="s"),
    HumanMessage("What is the weather in Zürich? 🌦️", id="h", name="ada", additional_kwargs={"channel": "web"}),
    AIMessage(
        "",
        id="a",
        tool_calls=[{"name": "weather", "args": {"city": "Zürich"}, "id": "call-1", "type": "tool_call"}],
        usage_metadata={"input_tokens": 7, "output_tokens": 5, "total_tokens": 12},
        response_metadata={"model_name": "other"},
    ),
    ToolMessage("Rain.\r\n12 degrees.", tool_call_id="call-1", name="weather", status="success", artifact={"raw": [1]}),
    AIMessage([{"type": "text", "text": "It rains, "}, {"type": "text", "text": "12 degrees."}], id="b"),
    HumanMessage([{"type": "text", "text": "And this?"}, {"type": "image", "url": "https://example.com/sky.png"}]),
    FunctionMessage(name="noop", content="nothing"),
    ChatMessage(role="referee", content="Time is up."),
]


@pytest.fixture
def store(model):
    with SharedLLMContextStore(model, embedder=None) as store:
        yield store


def test_every_type_of_message_comes_back_as_it_was(store):
    history = SharedContextChatMessageHistory("ada", store)
    assert history.messages == []
    history.add_messages(MESSAGES)
    assert history.messages == MESSAGES


def test_a_streamed_message_comes_back_whole(store):
    history = SharedContextChatMessageHistory("ada", store)
    history.add_message(AIMessageChunk("Good ", id="1") + AIMessageChunk("day.", id="1"))
    assert history.messages == [AIMessage("Good day.", id="1")]


def test_it_survives_reopening(model, tmp_path):
    with SharedLLMContextStore(model, tmp_path / "chat.ctx", embedder=None) as store:
        SharedContextChatMessageHistory("ada", store).add_messages(MESSAGES)
    with SharedLLMContextStore(model, tmp_path / "chat.ctx", embedder=None) as store:
        assert SharedContextChatMessageHistory("ada", store).messages == MESSAGES


def test_sessions_are_kept_apart_and_cleared_alone(store):
    ada, ben = SharedContextChatMessageHistory("ada", store), SharedContextChatMessageHistory("ben", store)
    ada.add_user_message("I am Ada.")
    ben.add_user_message("I am Ben.")
    ben.add_ai_message("Hello Ben.")
    ada.clear()
    assert ada.messages == []
    assert [message.content for message in ben.messages] == ["I am Ben.", "Hello Ben."]
    ada.add_user_message("Ada again.")
    assert [message.content for message in ada.messages] == ["Ada again."]


async def test_async_forms(store):
    history = SharedContextChatMessageHistory("ada", store)
    await history.aadd_messages(MESSAGES)
    assert await history.aget_messages() == MESSAGES
    await history.aclear()
    assert await history.aget_messages() == []


def test_old_turns_are_injected_and_recent_ones_read(store, model):
    history = SharedContextChatMessageHistory("ada", store, recent_tokens=40)
    history.add_messages([HumanMessage("My dog is called Mustard."), AIMessage("What a fine name for a dog!")])
    for day in ("Monday", "Tuesday", "Wednesday", "Thursday"):
        history.add_messages([HumanMessage(f"On {day} it rained here."), AIMessage(f"I am sorry about {day}.")])
    recent = history.recent_messages
    assert 0 < len(recent) < len(history.messages)
    assert recent == history.messages[-len(recent) :]
    question = "What is the name of my dog?"
    selection = history.select(question, budget=256)
    assert "Mustard" in selection.text
    llm = ChatSharedLLM(model=model, max_tokens=12)
    assert "Mustard" in llm.invoke([*recent, HumanMessage(question)], context=selection).content


def test_turns_that_the_library_wrote_are_messages_too(store):
    conversation = store.conversation("ada")
    conversation.append("user", "Hello.")
    conversation.append("assistant", "Good day.")
    assert SharedContextChatMessageHistory("ada", store).messages == [HumanMessage("Hello."), AIMessage("Good day.")]


@pytest.mark.filterwarnings("ignore:RunnableWithMessageHistory is deprecated")
async def test_with_message_history(store, model):
    remembering = RunnableWithMessageHistory(
        ChatSharedLLM(model=model, max_tokens=12),
        lambda session: SharedContextChatMessageHistory(session, store),
    )
    config = {"configurable": {"session_id": "ada"}}
    remembering.invoke("My dog is called Mustard.", config=config)
    assert "Mustard" in (await remembering.ainvoke("What is my dog called?", config=config)).content
    assert len(SharedContextChatMessageHistory("ada", store).messages) == 4
