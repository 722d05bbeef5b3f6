"""SharedContextChatMessageHistory: a conversation that a store keeps."""

import pytest
from langchain_core.documents import Document
from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables.history import RunnableWithMessageHistory

from shared_context import SharedLLMContextStore, SharedLLMModel
from shared_context.integrations.langchain import (
    ChatSharedLLM,
    SharedContextChain,
    SharedContextChatMessageHistory,
)

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


TALK = [
    *[HumanMessage("My dog is called Mustard."), AIMessage("What a fine name for a dog!")],
    *[HumanMessage("On Monday it rained here."), AIMessage("I am sorry about Monday.")],
    *[HumanMessage("On Tuesday it rained here."), AIMessage("I am sorry about Tuesday.")],
    *[HumanMessage("On Wednesday it rained here."), AIMessage("I am sorry about Wednesday.")],
    *[HumanMessage("On Thursday it rained here."), AIMessage("I am sorry about Thursday.")],
]


def test_old_turns_are_injected_and_recent_ones_read(store, model):
    history = SharedContextChatMessageHistory("ada", store, recent_tokens=40)
    history.add_messages(TALK)
    recent = history.recent_messages
    assert 0 < len(recent) < len(history.messages)
    assert recent == history.messages[-len(recent) :]
    question = "What is the name of my dog?"
    selection = history.select(question, budget=256)
    assert "Mustard" in selection.text
    llm = ChatSharedLLM(model=model, max_tokens=12)
    assert "Mustard" in llm.invoke([*recent, HumanMessage(question)], context=selection).content
    store.add("The gate opens at six.", id="gate")
    both = store.select(question) + selection
    message = llm.invoke([*recent, HumanMessage(question)], context=both)
    assert "Mustard" in message.content
    assert message.response_metadata["context_entries"] == both.kv_entries


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


@pytest.mark.filterwarnings("ignore:RunnableWithMessageHistory is deprecated")
@pytest.mark.parametrize("behind_a_prompt", [False, True])
async def test_with_message_history_injects_old_turns(store, model, behind_a_prompt):
    SharedContextChatMessageHistory("ada", store).add_messages(TALK)
    llm = ChatSharedLLM(model=model, max_tokens=12)
    prompt = ChatPromptTemplate([("system", "Be brief."), MessagesPlaceholder("past"), ("human", "{input}")])
    keys = {"input_messages_key": "input", "history_messages_key": "past"} if behind_a_prompt else {}

    def remembering(recent_tokens):
        return RunnableWithMessageHistory(
            prompt | llm if behind_a_prompt else llm,
            lambda session: SharedContextChatMessageHistory(session, store, recent_tokens=recent_tokens),
            **keys,
        )

    question = "What is the name of my dog?"
    asked = {"input": question} if behind_a_prompt else question
    config = {"configurable": {"session_id": "ada"}}
    history = SharedContextChatMessageHistory("ada", store, recent_tokens=40)
    verbatim = remembering(1024).invoke(asked, config=config)
    assert "input_token_details" not in verbatim.usage_metadata, "all of it is recent"
    history.clear()
    history.add_messages(TALK)
    shown = history.select(question, budget=512).kv_entries
    for call in ("invoke", "stream", "ainvoke", "astream"):
        history.clear()
        history.add_messages(TALK)
        answer = getattr(remembering(40), call)(asked, config=config)
        if call == "stream":
            answer = sum(answer, AIMessageChunk(""))
        elif call == "astream":
            answer = sum([piece async for piece in answer], AIMessageChunk(""))
        elif call == "ainvoke":
            answer = await answer
        assert "Mustard" in answer.content
        assert answer.usage_metadata["input_token_details"]["cache_read"] == shown
        assert answer.usage_metadata["input_tokens"] - shown < verbatim.usage_metadata["input_tokens"]
        assert history.messages[:-2] == TALK


@pytest.mark.filterwarnings("ignore:RunnableWithMessageHistory is deprecated")
@pytest.mark.parametrize("of_a_chain", [False, True])
def test_a_conversation_may_outgrow_the_window(make_small_model, of_a_chain):
    model = make_small_model()
    llm = ChatSharedLLM(model=model, max_tokens=4)
    chain = SharedContextChain.from_documents(
        [Document("The gate opens at six. " * 100, id="gate")], llm=llm, budget=512
    )
    keys = {"input_messages_key": "input", "history_messages_key": "chat_history", "output_messages_key": "answer"}
    remembering = RunnableWithMessageHistory(
        chain if of_a_chain else llm,
        lambda session: SharedContextChatMessageHistory(session, chain.store, recent_tokens=512, budget=256),
        **(keys if of_a_chain else {}),
    )
    history = SharedContextChatMessageHistory("ada", chain.store, recent_tokens=512)
    config = {"configurable": {"session_id": "ada"}}
    while model.count_tokens("".join(str(message.text) for message in history.messages)) < model.context_window:
        history.add_messages([HumanMessage("We speak of the weather. " * 20), AIMessage("It rains. " * 20)])
    for question in ("When does the gate open?", "And when is it closed?"):
        remembering.invoke({"input": question} if of_a_chain else question, config=config)
    assert [message.content for message in history.messages[-4::2]] == [
        "When does the gate open?",
        "And when is it closed?",
    ]


def test_a_prompt_keeps_what_is_not_an_old_turn(store, model):
    history = SharedContextChatMessageHistory("ada", store, recent_tokens=10)
    history.add_messages(TALK)
    assert history.recent_messages == TALK[-1:]
    start, question = SystemMessage("Be brief."), HumanMessage("What is the name of my dog?")
    messages, context = history.compressed([start, *TALK, question], "The gate opens at six.")
    assert messages[0] == start and messages[-1] == question
    assert [message.type for message in messages] == ["system", "human", "human"], "a user speaks first"
    assert "I am sorry about Thursday." in messages[1].content
    assert "Mustard" in context and context.endswith("The gate opens at six.")
    trimmed = [*TALK[4:], question]
    assert history.compressed(trimmed) == (trimmed, None)


@pytest.mark.filterwarnings("ignore:RunnableWithMessageHistory is deprecated")
def test_another_models_history_is_read_as_it_is(store, model):
    history = SharedContextChatMessageHistory("ada", store, recent_tokens=40)
    history.add_messages(TALK)
    other = SharedLLMModel.from_pretrained("smollm2-135m-instruct", system_prompt="Be brief.", adapter=None)
    remembering = RunnableWithMessageHistory(ChatSharedLLM(model=other, max_tokens=4), lambda session: history)
    answer = remembering.invoke("What is the name of my dog?", config={"configurable": {"session_id": "ada"}})
    assert answer.response_metadata["context_entries"] == 0


LAMP = [
    HumanMessage("My lamp is called Bertha."),
    AIMessage("A fine name for a lamp."),
    HumanMessage("It rained all week, and the ferry came late twice."),
    AIMessage("That sounds tiresome.", id="b"),
]


def test_messages_are_forgotten_edited_and_asked_anew(store):
    history = SharedContextChatMessageHistory("ada", store, recent_tokens=8)
    history.add_messages(LAMP)
    assert "Bertha" in history.select("What is my lamp called?").text
    history.edit(0, "My lamp is called Dora.")
    assert history.messages[0] == HumanMessage("My lamp is called Dora.")
    assert "Dora" in history.select("What is my lamp called?").text
    history.forget(0, 2)
    assert history.messages == LAMP[2:]
    assert "lamp" not in history.select("What is my lamp called?").text
    assert history.regenerate() == LAMP[2] and history.messages == []
    assert history.regenerate() is None


def test_messages_may_be_set(store):
    history = SharedContextChatMessageHistory("ada", store)
    history.add_messages(LAMP)
    history.messages = LAMP[:2]
    assert history.messages == LAMP[:2]
    history.messages = [LAMP[0], LAMP[3]]
    assert history.messages == [LAMP[0], LAMP[3]]
    history.messages = []
    assert history.messages == []
