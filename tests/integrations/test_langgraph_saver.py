"""SharedContextSaver: threads that last, and may outgrow the model's window."""

import pytest
from langchain_core.messages import AIMessage, HumanMessage, RemoveMessage
from langgraph.graph import START, MessagesState, StateGraph

from shared_context import SharedLLMContextStore
from shared_context.errors import ConfigError
from shared_context.integrations.langchain import ChatSharedLLM
from shared_context.integrations.langgraph import SharedContextSaver


def agent(llm, saver):
    graph = StateGraph(MessagesState)
    graph.add_node("model", lambda state: {"messages": [llm.invoke(state["messages"])]})
    graph.add_edge(START, "model")
    return graph.compile(checkpointer=saver)


def thread(name):
    return {"configurable": {"thread_id": name}}


@pytest.fixture
def store(make_small_model):
    with SharedLLMContextStore(make_small_model(), embedder=None) as store:
        yield store


@pytest.fixture
def llm(store):
    return ChatSharedLLM(model=store.model, max_tokens=4)


def test_a_thread_is_the_stores_conversation(store, llm):
    saver = SharedContextSaver(store)
    chat = agent(llm, saver)
    chat.invoke({"messages": [HumanMessage("Good morning.")]}, thread("ada"))
    state = chat.invoke({"messages": [HumanMessage("Is it raining?")]}, thread("ada"))
    chat.invoke({"messages": [HumanMessage("Hello.")]}, thread("ben"))
    assert saver.history("ada").messages == state["messages"]
    assert [message["role"] for message in store.conversation("ben").messages()] == ["user", "assistant"]
    saver.delete_thread("ada")
    assert chat.get_state(thread("ada")).values == {} and store.conversations() == ["ben"]


async def test_async_forms(store, llm):
    saver = SharedContextSaver(store)
    chat = agent(llm, saver)
    state = await chat.ainvoke({"messages": [HumanMessage("Good morning.")]}, thread("ada"))
    assert (await chat.aget_state(thread("ada"))).values == state
    assert saver.history("ada").messages == state["messages"]
    assert [each async for each in chat.aget_state_history(thread("ada"))][0].values == state
    await saver.adelete_thread("ada")
    assert store.conversations() == []


def test_a_thread_goes_on_after_reopening(make_small_model, tmp_path):
    model = make_small_model()
    llm, lengths = ChatSharedLLM(model=model, max_tokens=4), []
    for question in ("Good morning.", "Is it raining?"):
        with SharedLLMContextStore(model, tmp_path / "chat.ctx", embedder=None) as store:
            saver = SharedContextSaver(store)
            state = agent(llm, saver).invoke({"messages": [HumanMessage(question)]}, thread("ada"))
            lengths.append(len(state["messages"]))
            saver.close()
    assert lengths == [2, 4]


def test_a_turn_that_is_changed_changes_the_conversation(store, llm):
    saver = SharedContextSaver(store)
    chat = agent(llm, saver)
    state = chat.invoke({"messages": [HumanMessage("Good morning.")]}, thread("ada"))
    chat.invoke({"messages": [HumanMessage("Is it raining?")]}, thread("ada"))
    chat.update_state(thread("ada"), {"messages": [RemoveMessage(state["messages"][0].id)]})
    kept = chat.get_state(thread("ada")).values["messages"]
    assert len(kept) == 3 and saver.history("ada").messages == kept


def test_old_turns_are_injected_and_recent_ones_read(model):
    talk = [HumanMessage("My dog is called Mustard."), AIMessage("What a fine name for a dog!")]
    for day in ("Monday", "Tuesday", "Wednesday", "Thursday"):
        talk += [HumanMessage(f"On {day} it rained here."), AIMessage(f"I am sorry about {day}.")]
    with SharedLLMContextStore(model, embedder=None) as store:
        chat = agent(ChatSharedLLM(model=model, max_tokens=12), SharedContextSaver(store, recent_tokens=40))
        chat.update_state(thread("ada"), {"messages": talk})
        question = HumanMessage("What is the name of my dog?")
        state = chat.invoke({"messages": [question]}, thread("ada"))
    answer = state["messages"][-1]
    assert len(state["messages"]) == len(talk) + 2
    assert "Mustard" in answer.content
    assert answer.response_metadata["context_entries"] > 0


def test_a_thread_may_outgrow_the_window(store, llm):
    chat = agent(llm, SharedContextSaver(store, recent_tokens=512, budget=256))
    weather = "We speak of the weather. " * 20
    talk = [turn for _ in range(24) for turn in (HumanMessage(weather), AIMessage("It rains. " * 20))]
    assert store.model.count_tokens("".join(turn.content for turn in talk)) > store.model.context_window
    chat.update_state(thread("ada"), {"messages": talk})
    for question in ("When does the gate open?", "And when is it closed?"):
        state = chat.invoke({"messages": [HumanMessage(question)]}, thread("ada"))
    assert state["messages"][-2].content == "And when is it closed?"


def test_what_is_no_store_is_refused_in_words():
    with pytest.raises(ConfigError, match="store is a str"):
        SharedContextSaver("chat.ctx")


def test_threads_of_a_namespace_are_its_own_and_go_with_it(make_small_model, tmp_path):
    model = make_small_model()
    llm = ChatSharedLLM(model=model, max_tokens=4)
    with SharedLLMContextStore(model, tmp_path / "store", embedder=None) as store:
        one, two = store.namespace("one"), store.namespace("two")
        savers = [SharedContextSaver(one), SharedContextSaver(two)]
        chats = [agent(llm, saver) for saver in savers]
        chats[0].invoke({"messages": [HumanMessage("My parrot is Admiral.")]}, thread("ada"))
        assert chats[1].get_state(thread("ada")).values == {}
        assert (one.conversations(), two.conversations(), store.conversations()) == (["ada"], [], [])
        for saver in savers:
            saver.close()
        one.drop()
        left = b"".join(path.read_bytes() for path in (tmp_path / "store").rglob("*") if path.is_file())
        assert b"Admiral" not in left
