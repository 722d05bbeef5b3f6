"""SharedLLM as a LlamaIndex LLM, on the real default model."""

import asyncio
import json
import threading
import time

import pytest
import torch
from llama_index.core import Document, PromptTemplate, SummaryIndex
from llama_index.core.base.llms.types import (
    ChatMessage,
    CitableBlock,
    CitationBlock,
    DocumentBlock,
    ImageBlock,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.callbacks import CallbackManager, TokenCountingHandler
from llama_index.core.instrumentation import get_dispatcher
from llama_index.core.instrumentation.event_handlers import BaseEventHandler
from llama_index.core.instrumentation.events.llm import (
    LLMChatEndEvent,
    LLMChatInProgressEvent,
    LLMChatStartEvent,
    LLMCompletionEndEvent,
)
from llama_index.core.instrumentation.span_handlers import SimpleSpanHandler
from pydantic import ValidationError

from shared_context import SharedLLMContextStore
from shared_context.errors import ConfigError, QueryError, WindowExceededError
from shared_context.integrations.llamaindex import SharedLLM
from shared_context.integrations.llamaindex.messages import to_conversation

FRANCE = "What is the capital of France?"
STORY = "Tell me a long story about a fox."
DOOR = "The code of the green door in the east wing is 4417. The red door needs no code, only the blue key card."
DOOR_QUESTION = "What is the code of the green door?"


@pytest.fixture(scope="module")
def llm(model):
    return SharedLLM(model=model, max_new_tokens=16)


@pytest.fixture(scope="module")
def selection(model):
    with SharedLLMContextStore(model, embedder=None) as store:
        store.add(DOOR, id="doors")
        yield store.select(DOOR_QUESTION, budget=256)


@pytest.fixture
def events():
    """Everything that instrumentation reports while the test runs."""
    seen = []

    class Recorder(BaseEventHandler):
        def handle(self, event, **kwargs):
            seen.append(event)

    root, recorder = get_dispatcher(), Recorder()
    root.add_event_handler(recorder)
    yield seen
    root.event_handlers.remove(recorder)


def user(text):
    return [ChatMessage(role="user", content=text)]


async def collect(stream):
    return [response async for response in stream]


# ----------------------------------------------------------------------------------------------------------- answers


def test_complete_and_chat_answer(llm):
    assert "Paris" in llm.complete(FRANCE).text
    answer = llm.chat(user(FRANCE)).message
    assert "Paris" in answer.content
    assert answer.role == "assistant"


def test_a_conversation_is_read_whole(llm):
    history = [*user("My dog is called Bruno."), ChatMessage(role="assistant", content="A good name for a dog.")]
    assert "Bruno" in llm.chat([*history, *user("What is my dog called?")]).message.content


def test_roles_have_the_names_of_the_chat_template(llm):
    as_developer = [ChatMessage(role="developer", content="You are a parrot."), *user("Hello")]
    as_system = [ChatMessage(role="system", content="You are a parrot."), *user("Hello")]
    assert llm.chat(as_developer).message.content == llm.chat(as_system).message.content


@pytest.mark.parametrize("call", ["stream_complete", "stream_chat"])
def test_streams_give_the_answer_piece_by_piece(llm, call):
    prompt = STORY if call == "stream_complete" else user(STORY)
    whole = llm.complete(STORY)
    responses = list(getattr(llm, call)(prompt))
    texts = [r.text if call == "stream_complete" else r.message.content for r in responses]
    assert len(responses) > 5
    assert "".join(r.delta for r in responses) == texts[-1] == whole.text
    assert all(later.startswith(earlier) for earlier, later in zip(texts, texts[1:], strict=False))
    assert responses[-1].raw["usage"]["completion_tokens"] == whole.raw["usage"]["completion_tokens"]


async def gather_all(llm):
    return (
        (await llm.acomplete(FRANCE)).text,
        (await llm.achat(user(FRANCE))).message.content,
        (await collect(await llm.astream_complete(FRANCE)))[-1].text,
        (await collect(await llm.astream_chat(user(FRANCE))))[-1].message.content,
    )


def test_async_forms_give_the_same_answers(llm):
    assert set(asyncio.run(gather_all(llm))) == {llm.complete(FRANCE).text}


def test_async_calls_side_by_side_do_not_mix(llm):
    questions = [FRANCE, "What is the capital of Italy?", "What is the capital of Spain?"]

    async def ask_all():
        return await asyncio.gather(*(llm.acomplete(question) for question in questions))

    answers = [response.text for response in asyncio.run(ask_all())]
    assert answers == [llm.complete(question).text for question in questions]


def test_async_streams_yield_pieces_as_they_come_and_leave_the_loop_free(llm):
    async def watch():
        turns = 0

        async def other_work():
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        task = asyncio.create_task(other_work())
        turns_at_piece = []
        async for _ in await llm.astream_chat(user(STORY)):
            turns_at_piece.append(turns)
        task.cancel()
        return turns_at_piece

    turns_at_piece = asyncio.run(watch())
    assert len(turns_at_piece) > 5
    assert turns_at_piece == sorted(set(turns_at_piece)), "the loop stood still between two pieces"


def test_who_leaves_a_stream_early_ends_the_generation(llm, monkeypatch):
    model, streams = llm.shared_model, []
    begin = model.stream

    def remembered(*args, **kwargs):
        streams.append(begin(*args, **kwargs))
        return streams[-1]

    monkeypatch.setattr(model, "stream", remembered)

    stream = llm.stream_complete(STORY, max_new_tokens=500)
    next(stream)
    stream.close()

    async def leave():
        stream = await llm.astream_chat(user(STORY), max_new_tokens=500)
        await anext(stream)
        await stream.aclose()

    asyncio.run(leave())
    assert len(streams) == 2
    assert all(s.completion.completion_tokens < 500 for s in streams)


def test_a_stream_can_be_cancelled_while_a_piece_is_computed(llm, monkeypatch):
    model, computing = llm.shared_model, threading.Event()
    decoder = model._decoder
    inputs = decoder.inputs

    def slow(*args, **kwargs):
        computing.set()
        time.sleep(0.3)
        return inputs(*args, **kwargs)

    monkeypatch.setattr(decoder, "inputs", slow)

    async def cancelled():
        stream = await llm.astream_complete(STORY, max_new_tokens=500)
        task = asyncio.ensure_future(anext(stream))
        await asyncio.to_thread(computing.wait, 60)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        return task.cancelled()

    assert asyncio.run(cancelled())


# ----------------------------------------------------------------------------------------------------------- context


def test_a_selection_is_injected_into_every_form(llm, selection):
    calls = {
        "complete": llm.complete(DOOR_QUESTION, context=selection),
        "chat": llm.chat(user(DOOR_QUESTION), context=selection),
        "stream_complete": list(llm.stream_complete(DOOR_QUESTION, context=selection))[-1],
        "stream_chat": list(llm.stream_chat(user(DOOR_QUESTION), context=selection))[-1],
        "acomplete": asyncio.run(llm.acomplete(DOOR_QUESTION, context=selection)),
        "achat": asyncio.run(llm.achat(user(DOOR_QUESTION), context=selection)),
    }
    for name, response in calls.items():
        assert "4417" in str(response), name
        assert response.raw["usage"]["context_entries"] == selection.kv_entries, name
    assert "4417" not in llm.complete(DOOR_QUESTION).text


def test_text_as_context_is_pasted(llm):
    response = llm.complete(DOOR_QUESTION, context=DOOR)
    assert "4417" in response.text
    assert response.raw["usage"]["context_entries"] == 0


def test_with_context_serves_what_passes_no_arguments_on(llm, selection):
    bound = llm.with_context(selection)
    template = PromptTemplate("{question}")
    assert "4417" in bound.predict(template, question=DOOR_QUESTION)
    assert "4417" in "".join(bound.stream(template, question=DOOR_QUESTION))
    assert "4417" not in llm.predict(template, question=DOOR_QUESTION), "the original must stay as it was"
    assert bound.complete(DOOR_QUESTION, context=None).raw["usage"]["context_entries"] == 0


def test_what_does_not_fit_the_window_is_refused_by_the_call_itself(llm):
    with pytest.raises(WindowExceededError):
        llm.complete("one " * 10_000)
    with pytest.raises(WindowExceededError):
        llm.stream_chat(user("one " * 10_000))
    with pytest.raises(WindowExceededError):
        asyncio.run(llm.astream_complete("one " * 10_000))


# ---------------------------------------------------------------------------------------------------------- settings


def test_settings_of_the_llm_and_of_the_call(llm, model):
    counting = STORY
    assert llm.complete(counting, max_new_tokens=3).raw["usage"]["completion_tokens"] == 3
    assert llm.complete(counting, max_new_tokens=3).raw["finish_reason"] == "length"
    cut = llm.complete(FRANCE, stop=["Paris"])
    assert "Paris" not in cut.text
    assert cut.raw["finish_reason"] == "stop"
    sampled = SharedLLM(model=model, max_new_tokens=12, temperature=1.5, seed=3)
    first = sampled.complete("Write a line about the sea.").text
    assert first == sampled.complete("Write a line about the sea.").text
    assert first != sampled.complete("Write a line about the sea.", seed=4).text
    assert first != sampled.complete("Write a line about the sea.", temperature=0.0).text


def test_formatted_prompts_get_no_chat_template(llm, model):
    messages = [{"role": "system", "content": "Answer in French."}, {"role": "user", "content": "Good morning"}]
    prompt = model.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    formatted = llm.complete(prompt, formatted=True)
    chat = llm.chat([ChatMessage(**message) for message in messages])
    assert formatted.text == chat.message.content
    assert formatted.raw["usage"]["prompt_tokens"] == chat.raw["usage"]["prompt_tokens"]
    assert llm.complete(prompt).raw["usage"]["prompt_tokens"] > formatted.raw["usage"]["prompt_tokens"]


def test_prompt_formats_of_the_user_are_honoured(model):
    llm = SharedLLM(
        model=model,
        max_new_tokens=8,
        completion_to_prompt=lambda prompt: f"Q: {prompt}\nA:",
        messages_to_prompt=lambda messages: f"Q: {messages[-1].content}\nA:",
    )
    expected = llm.complete(f"Q: {FRANCE}\nA:", formatted=True)
    assert llm.complete(FRANCE).raw["usage"]["prompt_tokens"] == expected.raw["usage"]["prompt_tokens"]
    assert llm.chat(user(FRANCE)).message.content == expected.text


def test_metadata_tell_the_true_window(llm, model):
    metadata = llm.metadata
    assert (metadata.context_window, metadata.num_output) == (model.context_window, 16)
    assert metadata.model_name == model.name
    assert metadata.is_chat_model


def test_settings_survive_serialisation(model):
    llm = SharedLLM(model=model, max_new_tokens=7, stop=["\n"], generate_kwargs={"repetition_penalty": 1.1})
    written = json.loads(llm.to_json())
    assert written["class_name"] == "SharedLLM"
    again = SharedLLM.from_dict(written, model=model)
    assert again.to_dict() == llm.to_dict()
    assert again.complete(FRANCE).text == llm.complete(FRANCE).text


def test_wrong_arguments_are_named(model):
    with pytest.raises(ValidationError, match="max_tokens"):
        SharedLLM(model=model, max_tokens=5)
    with pytest.raises(ConfigError, match="model=3"):
        SharedLLM(model=3)


def test_a_model_is_loaded_by_name_once_for_each_way_to_load_it(model):
    other = "float32" if model.dtype != torch.float32 else "bfloat16"  # which one `auto` takes hangs on the machine
    llm = SharedLLM("smollm2-135m-instruct", dtype=other, device="cpu")
    assert llm.shared_model.identity != model.identity, "the dtype must count"
    assert str(llm.shared_model.dtype) == f"torch.{other}"
    same = SharedLLM("smollm2-135m-instruct", adapter=None, dtype=llm.shared_model.dtype, device="cpu")
    assert same.shared_model is llm.shared_model
    again = SharedLLM.from_dict(json.loads(llm.to_json()))
    assert again.shared_model is llm.shared_model
    assert SharedLLM.from_dict(json.loads(llm.to_json()), model=model).shared_model is model
    with pytest.raises(ConfigError, match="adapter.*loaded already"):
        SharedLLM(model, adapter="factoid")


def test_what_other_models_left_in_a_history_is_read(llm, tmp_path):
    (tmp_path / "note.md").write_text("The bell is cast in 1911.", encoding="utf-8")
    history = [
        *user("When does the gate open?"),
        ChatMessage(
            role="assistant",
            blocks=[
                ThinkingBlock(content="Perhaps the clock knows."),
                TextBlock(text="Let me look."),
                ToolCallBlock(tool_call_id="1", tool_name="opening_hours", tool_kwargs={"of": "gate"}),
            ],
        ),
        ChatMessage(role="tool", content="at six"),
        ChatMessage(
            role="user",
            blocks=[
                CitableBlock(title="The gate", source="gate.md", content="It is green."),
                DocumentBlock(title="A list", data=b"rye, oats", document_mimetype="text/plain"),
                DocumentBlock(path=tmp_path / "note.md"),
            ],
        ),
        ChatMessage(
            role="assistant",
            blocks=[
                CitationBlock(
                    title="The gate", source="gate.md", cited_content="green", additional_location_info={"start": 6}
                )
            ],
        ),
        *user("So?"),
    ]
    turns = to_conversation(history)
    assert [turn["role"] for turn in turns] == ["user", "assistant", "tool", "user", "assistant", "user"]
    assert turns[1]["content"] == 'Let me look.\nopening_hours({"of": "gate"})'
    for part in ("The gate (gate.md):\nIt is green.", "A list:\nrye, oats", "The bell is cast in 1911."):
        assert part in turns[3]["content"]
    assert turns[4]["content"] == "The gate (gate.md):\ngreen"
    assert llm.chat(history, max_new_tokens=2).message.content


def test_a_document_that_is_no_text_is_refused_by_name(llm, tmp_path):
    scan = DocumentBlock(title="A scan", data=b"%PDF-1.7 \xff\xfe", document_mimetype="application/pdf")
    with pytest.raises(QueryError, match="'A scan'.*application/pdf"):
        llm.chat([ChatMessage(role="user", blocks=[scan])])
    with pytest.raises(QueryError, match="'Gone'.*TextBlock"):
        llm.chat([ChatMessage(role="user", blocks=[DocumentBlock(title="Gone", path=str(tmp_path / "gone.md"))])])


def test_images_are_refused(llm):
    message = ChatMessage(role="user", blocks=[TextBlock(text="What is this?"), ImageBlock(url="http://x.test/a.png")])
    with pytest.raises(QueryError, match="image"):
        llm.chat([message])


# --------------------------------------------------------------------------------------- callbacks and instrumentation


@pytest.mark.parametrize("streaming", [False, True])
def test_token_counters_count_what_the_model_read_and_wrote(model, streaming):
    counter = TokenCountingHandler(tokenizer=model.tokenizer.encode)
    llm = SharedLLM(model=model, max_new_tokens=12, callback_manager=CallbackManager([counter]))
    response = list(llm.stream_chat(user(FRANCE)))[-1] if streaming else llm.chat(user(FRANCE))
    usage = response.raw["usage"]
    assert counter.prompt_llm_token_count == usage["prompt_tokens"] > 0
    assert counter.completion_llm_token_count == usage["completion_tokens"] > 0
    assert response.additional_kwargs["time_to_first_token"] > 0


def test_instrumentation_sees_every_call_once(llm, events):
    llm.chat(user(FRANCE))
    assert [type(event) for event in events] == [LLMChatStartEvent, LLMChatEndEvent]
    assert events[0].model_dict["model_name"] == llm.model
    assert "Paris" in events[1].response.message.content
    events.clear()
    list(llm.stream_chat(user(FRANCE)))
    kinds = [type(event) for event in events]
    assert kinds[0] is LLMChatStartEvent
    assert kinds[-1] is LLMChatEndEvent
    assert kinds.count(LLMChatInProgressEvent) > 2
    events.clear()
    asyncio.run(llm.acomplete(FRANCE))
    assert [type(event) for event in events][-1] is LLMCompletionEndEvent
    assert len(events) == 2


def test_calls_are_spans(llm):
    root, spans = get_dispatcher(), SimpleSpanHandler()
    root.add_span_handler(spans)
    try:
        llm.complete(FRANCE)
    finally:
        root.span_handlers.remove(spans)
    assert [span.id_.partition("-")[0] for span in spans.completed_spans] == ["SharedLLM.complete"]


def test_events_of_a_call_with_context_can_be_written_as_json(llm, selection, events):
    llm.chat(user(DOOR_QUESTION), context=selection)
    for event in events:
        assert json.loads(event.model_dump_json())["span_id"].startswith("SharedLLM.chat")


# --------------------------------------------------------------------------------------------- in others' pipelines


def test_it_serves_pipelines_that_paste_text(llm):
    index = SummaryIndex.from_documents([Document(text=DOOR)])
    response = index.as_query_engine(llm=llm).query(DOOR_QUESTION)
    assert "4417" in str(response)
