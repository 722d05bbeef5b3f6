"""SharedContextMemory and SharedContextMemoryBlock, on the real default model."""

import asyncio
import json

import pytest
from llama_index.core import Document
from llama_index.core.agent.workflow import ReActAgent
from llama_index.core.base.llms.types import ChatMessage, TextBlock, ToolCallBlock
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.llms import MockLLM
from llama_index.core.memory import ChatMemoryBuffer, Memory
from llama_index.core.schema import QueryBundle
from llama_index.core.workflow import Context, JsonSerializer

from shared_context import SharedLLMContextStore
from shared_context.integrations.llamaindex import (
    SharedContextChatStore,
    SharedContextIndex,
    SharedContextMemory,
    SharedContextMemoryBlock,
    SharedLLM,
)

PARROT = "My parrot is called Admiral and was born in Lisbon."
QUESTION = "What is the name of my parrot?"


@pytest.fixture
def store(model):
    with SharedLLMContextStore(model, embedder=None) as store:
        yield store


@pytest.fixture(scope="module")
def long_ago():
    """A conversation whose first turn has long left a window of a hundred tokens."""
    small_talk = [
        ("The weather in the harbour was grey all week, and the ferry came late twice.", "That sounds tiresome."),
        ("I repaired the fence behind the shed, and painted it with what was left in the tin.", "Well done."),
        ("On Sunday we walked to the lighthouse and had soup in the small inn beside it.", "A lovely walk."),
        ("The library closes early in winter, so I took four novels home at once.", "Enjoy your reading."),
    ]
    turns = [(PARROT, "A fine name for a parrot."), *small_talk]
    return [ChatMessage(role=r, content=c) for turn in turns for r, c in zip(("user", "assistant"), turn, strict=True)]


def text_of(messages):
    return "\n".join(message.content or "" for message in messages)


# ------------------------------------------------------------------------------------------------------------ memory


def test_what_was_put_is_there_until_it_is_replaced_or_reset(store):
    memory = SharedContextMemory.from_defaults(store, "ada")
    hello = ChatMessage(role="user", content="Hello")
    memory.put(hello)
    assert memory.get() == memory.get_all() == [hello]
    memory.set([ChatMessage(role="user", content="Good evening")])
    assert text_of(memory.get_all()) == "Good evening"
    memory.reset()
    assert memory.get("Hello") == memory.get_all() == []


def test_messages_come_back_whole(store):
    memory = SharedContextMemory(store)
    call = ToolCallBlock(tool_call_id="1", tool_name="clock", tool_kwargs={"zone": "UTC"})
    messages = [
        ChatMessage(role="user", content="What time is it?"),
        ChatMessage(role="assistant", blocks=[TextBlock(text="Let me see."), call]),
        ChatMessage(role="tool", content="noon", additional_kwargs={"tool_call_id": "1"}),
        ChatMessage(role="assistant", blocks=[call]),
    ]
    memory.put_messages(messages)
    assert memory.get_all() == messages


def test_old_turns_come_back_when_they_are_asked_for(store, long_ago):
    memory = SharedContextMemory.from_defaults(store, recent_tokens=100, budget=128, chat_history=long_ago)
    assert memory.get_all() == long_ago
    system, *recent = memory.get(QUESTION)
    assert system.role == "system"
    assert PARROT in system.content
    assert recent == long_ago[-len(recent) :]
    assert 0 < len(recent) < len(long_ago)
    assert recent[0].role == "user", "an answer must not stand without its question"
    assert memory.select(QUESTION).kv_entries <= 128
    assert memory.get(ChatMessage(role="user", content=QUESTION))[0] == system
    without = SharedContextMemory(store, memory.session_id, recent_tokens=100, budget=0)
    assert PARROT not in text_of(without.get(QUESTION))
    assert without.get(QUESTION)[-len(recent) :] == recent


def test_a_message_longer_than_the_window_still_finds_older_turns(store, long_ago):
    memory = SharedContextMemory.from_defaults(store, recent_tokens=100, budget=128, chat_history=long_ago)
    memory.put(ChatMessage(role="user", content="Nothing is said here. " * 3000 + QUESTION))
    assert PARROT in text_of(memory.get())


def test_an_answer_whose_question_is_compressed_does_not_stand_first(store):
    asked = ChatMessage(role="user", content="The parrot of the harbour master is called Ferdinand. " * 12 + "Is it?")
    answer = ChatMessage(role="assistant", content="It is.")
    memory = SharedContextMemory.from_defaults(store, recent_tokens=16, chat_history=[asked, answer])
    for (told,) in memory.get(), memory.get("What is the parrot called?"):
        assert told.role == "system"
        assert "Ferdinand" in told.content and "It is." in told.content
    greeted = SharedContextMemory.from_defaults(store, chat_history=[answer])
    assert greeted.get() == [answer]


def test_a_chat_is_asked_with_a_query_bundle(store, long_ago):
    memory = SharedContextMemory.from_defaults(store, recent_tokens=100, budget=128, chat_history=long_ago)
    assert memory.get(QueryBundle(QUESTION)) == memory.get(QUESTION)


def test_any_llm_can_use_it(store, model, long_ago):
    memory = SharedContextMemory.from_defaults(store, recent_tokens=100, budget=128, chat_history=long_ago)
    llm = SharedLLM(model=model, max_new_tokens=12)
    engine = SimpleChatEngine.from_defaults(llm=llm, memory=memory)
    # What so small a model says hangs on rounding, what it is told does not.
    assert PARROT in text_of(memory.get(QUESTION))
    assert str(engine.chat(QUESTION))
    assert memory.get_all()[-2].content == QUESTION
    echo = SimpleChatEngine.from_defaults(llm=MockLLM(), memory=memory)
    assert PARROT in str(echo.chat("Tell me about the parrot."))
    injected = llm.chat([ChatMessage(role="user", content=QUESTION)], context=memory.select(QUESTION))
    assert injected.raw["usage"]["context_entries"] > 0


def test_a_chat_over_documents_can_keep_its_conversation_in_the_same_store(store, model):
    store.add("The ferry to the island leaves at nine.", id="ferry")
    index = SharedContextIndex.from_store(store, SharedLLM(model=model, max_new_tokens=12))
    engine = index.as_chat_engine(memory=SharedContextMemory(store, "ada"))
    engine.chat("When does the ferry leave?")
    assert [message.role for message in engine.chat_history] == ["user", "assistant"]
    assert set(index.ref_doc_info) == {"ferry"}, "a conversation is no document"


def test_sessions_are_kept_apart_and_found_again(model, tmp_path, long_ago):
    with SharedLLMContextStore(model, tmp_path / "chats", embedder=None) as store:
        ada = SharedContextMemory.from_defaults(store, "ada", recent_tokens=100, chat_history=long_ago)
        SharedContextMemory(store, "bob").put(ChatMessage(role="user", content="Hello"))
        written = json.loads(ada.to_json())
    with SharedLLMContextStore(model, tmp_path / "chats", embedder=None) as store:
        again = SharedContextMemory.from_dict(written, store=store)
        assert again.get_all() == long_ago
        assert PARROT in again.get(QUESTION)[0].content
        assert text_of(SharedContextMemory(store, "bob").get(QUESTION)) == "Hello"
    new, other = SharedContextMemory(store), SharedContextMemory(store)
    assert new.session_id != other.session_id


def test_it_can_be_awaited(store, long_ago):
    async def converse():
        memory = SharedContextMemory(store, recent_tokens=100)
        await memory.aset(long_ago)
        await memory.aput(ChatMessage(role="user", content=QUESTION))
        found = await memory.aget(QUESTION)
        await memory.areset()
        return found, await memory.aget_all()

    found, after = asyncio.run(converse())
    assert PARROT in found[0].content
    assert found[-1].content == QUESTION
    assert after == []


def test_turns_of_other_writers_are_read(store):
    store.conversation("shared").append("user", "Written by the store itself.")
    assert SharedContextMemory(store, "shared").get_all() == [
        ChatMessage(role="user", content="Written by the store itself.")
    ]


# --------------------------------------------------------------------------------------------- an agent's saved context


def saved(memory):
    """A context with this memory, as an agent's user keeps it: through JSON."""

    async def save():
        context = Context(AGENT)
        await context.store.set("memory", memory)
        return context.to_dict(serializer=JsonSerializer())

    return json.loads(json.dumps(asyncio.run(save())))


def restored(written):
    async def restore():
        return await Context.from_dict(AGENT, written, serializer=JsonSerializer()).store.get("memory")

    return asyncio.run(restore())


AGENT = ReActAgent(tools=[], llm=MockLLM())


def test_a_memory_goes_on_where_a_saved_context_is_restored(make_small_model, long_ago):
    with SharedLLMContextStore(make_small_model(), embedder=None) as store:
        memory = SharedContextMemory.from_defaults(store, "ada", long_ago, recent_tokens=100, budget=128)
        again = restored(saved(memory))
        assert again.get_all() == long_ago
        assert (again.session_id, again.recent_tokens, again.budget) == ("ada", 100, 128)
        again.put(ChatMessage(role="user", content=QUESTION))
        assert memory.get_all()[-1].content == QUESTION, "it is the same conversation"
        assert PARROT in text_of(again.get(QUESTION)) or again.get(QUESTION)[0].role == "system"


def test_a_conversation_in_memory_outlives_its_store(make_small_model, long_ago):
    model = make_small_model()
    with SharedLLMContextStore(model, embedder=None) as store:
        written = saved(SharedContextMemory.from_defaults(store, "ada", long_ago, recent_tokens=100))
    again = restored(written)
    assert again.get_all() == long_ago
    assert 0 < len(again.get()) < len(long_ago) + 1


def test_a_conversation_on_disk_is_opened_again(make_small_model, long_ago, tmp_path, monkeypatch):
    model = make_small_model()
    monkeypatch.chdir(tmp_path)
    with SharedLLMContextStore(model, "chats", embedder=None) as store:
        written = saved(SharedContextMemory.from_defaults(store, "ada", long_ago))
    assert PARROT not in json.dumps(written), "the messages are in the store already"
    (tmp_path / "chats").rename(tmp_path / "moved")
    with pytest.raises(ValueError, match="chats'.*is gone"):
        restored(written)
    assert not (tmp_path / "chats").exists(), "nothing must be made in its place"
    (tmp_path / "moved").rename(tmp_path / "chats")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    again = restored(written)
    assert again.get_all() == long_ago
    again.put(ChatMessage(role="user", content=QUESTION))
    with SharedLLMContextStore(model, tmp_path / "chats", embedder=None) as store:
        assert SharedContextMemory(store, "ada").get_all()[-1].content == QUESTION


# ------------------------------------------------------------------------------------------------------ memory block


def overflowing(store, session_id=None):
    return Memory.from_defaults(
        session_id=session_id,
        token_limit=140,
        chat_history_token_ratio=0.7,
        token_flush_size=40,
        memory_blocks=[SharedContextMemoryBlock(store, budget=128)],
    )


def test_the_block_remembers_what_fell_out_of_the_window(store, long_ago):
    memory = overflowing(store)
    for message in long_ago:
        memory.put(message)
    assert PARROT not in text_of(memory.get_all()[-2:])
    memory.put(ChatMessage(role="user", content=QUESTION))
    messages = memory.get()
    assert messages[0].role == "system"
    assert PARROT in messages[0].content
    assert "<EarlierMessages>" in messages[0].content
    assert messages[-1].content == QUESTION


def test_the_block_keeps_sessions_apart(store, long_ago):
    first, second = overflowing(store, "first"), overflowing(store, "second")
    for message in long_ago:
        first.put(message.model_copy(deep=True))
    for memory in (first, second):
        memory.put(ChatMessage(role="user", content=QUESTION))
    assert PARROT in text_of(first.get())
    assert PARROT not in text_of(second.get())


async def test_the_block_by_itself(store):
    block = SharedContextMemoryBlock(store, name="Past", session_id="alone")
    question = [ChatMessage(role="user", content=QUESTION)]
    assert await block.aget(question) == ""
    assert await block.aget([]) == ""
    kept = ChatMessage(role="user", content=PARROT, additional_kwargs={"mood": "glad"})
    await block.aput([kept, ChatMessage(role="assistant", content="Good to know.")])
    assert PARROT in await block.aget(question)
    assert store.conversations() == ["alone"]


def test_a_memory_in_a_namespace_is_restored_there(make_small_model, tmp_path):
    with SharedLLMContextStore(make_small_model(), tmp_path / "store", embedder=None) as store:
        one, two = store.namespace("one"), store.namespace("two")
        memory, others = (SharedContextMemory.from_defaults(each, "ada") for each in (one, two))
        memory.put(ChatMessage(role="user", content="Hello"))
        saved = memory.to_dict(), others.to_dict()
        restored, others_restored = map(SharedContextMemory.from_dict, json.loads(json.dumps(saved)))
        assert restored.get_all() == memory.get_all() and others_restored.get_all() == []
        index = SharedContextIndex.from_store(one)
        index.insert(Document(text="The lamp is lit at noon.", id_="lamp"))
        assert (one.ids(), two.ids(), store.ids()) == (["lamp"], [], [])


# ---------------------------------------------------------------------------------- forgetting, editing, asking anew


def test_an_exchange_is_forgotten_also_where_it_was_compressed(store, long_ago):
    memory = SharedContextMemory.from_defaults(store, "ada", chat_history=long_ago, recent_tokens=40)
    assert "Admiral" in text_of(memory.get(QUESTION))
    memory.forget(0, 2)
    assert memory.get_all() == long_ago[2:]
    assert "Admiral" not in text_of(memory.get(QUESTION))


def test_a_message_is_edited_also_where_it_was_compressed(store, long_ago):
    memory = SharedContextMemory.from_defaults(store, "ada", chat_history=long_ago, recent_tokens=40)
    memory.edit(0, PARROT.replace("Admiral", "Commodore"))
    told = text_of(memory.get(QUESTION))
    assert "Commodore" in told and "Admiral" not in told
    assert memory.get_all()[0] == ChatMessage(role="user", content=PARROT.replace("Admiral", "Commodore"))


def test_the_last_question_is_asked_anew(store):
    engine = SimpleChatEngine.from_defaults(llm=MockLLM(), memory=SharedContextMemory(store, "ada"))
    engine.chat("Hello there")
    again = engine._memory.regenerate()
    assert again.content == "Hello there" and engine._memory.get_all() == []
    engine.chat(again.content)
    assert [message.role for message in engine.chat_history] == ["user", "assistant"]
    assert SharedContextMemory(store, "nobody").regenerate() is None


def test_messages_that_are_set_again_stay_with_when_they_were_said(store, long_ago):
    memory = SharedContextMemory.from_defaults(store, "ada", chat_history=long_ago, recent_tokens=40)
    said = [node.said for node in memory.select(QUESTION).nodes]
    memory.set([*long_ago[:-1], ChatMessage(role="assistant", content="Which ones?")])
    assert memory.get_all()[:-1] == long_ago[:-1] and memory.get_all()[-1].content == "Which ones?"
    assert [node.said for node in memory.select(QUESTION).nodes] == said


def test_a_chat_store_keeps_the_messages_of_a_memory_of_llamaindex(store, long_ago):
    chat_store = SharedContextChatStore(store)
    buffer = ChatMemoryBuffer.from_defaults(chat_store=chat_store, chat_store_key="ada", token_limit=10_000)
    for message in long_ago:
        buffer.put(message)
    assert buffer.get() == long_ago and chat_store.get_keys() == ["ada"]
    assert chat_store.delete_last_message("ada") == long_ago[-1]
    assert chat_store.delete_message("ada", 1) == long_ago[1]
    assert chat_store.delete_message("ada", 99) is None
    assert chat_store.get_messages("ada") == [long_ago[0], *long_ago[2:-1]]
    assert chat_store.delete_messages("ada") == [long_ago[0], *long_ago[2:-1]]
    assert chat_store.delete_messages("ada") is None and chat_store.get_keys() == []


def test_a_memory_goes_on_with_what_a_chat_store_holds(store, long_ago):
    SharedContextChatStore(store).set_messages("ada", long_ago)
    memory = SharedContextMemory(store, "ada", recent_tokens=40)
    memory.put(ChatMessage(role="user", content="Good evening"))
    assert "Admiral" in text_of(memory.get(QUESTION))
