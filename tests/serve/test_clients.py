"""The clients that people have, unchanged, against a server on a real socket."""

import json

import openai
import pytest
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage
from langchain_openai import ChatOpenAI
from llama_index.core.llms import ChatMessage
from llama_index.llms.openai_like import OpenAILike

QUESTION = "Who is the captain of the ferry?"
ASKED = {"model": "coast", "messages": [{"role": "user", "content": QUESTION}], "max_tokens": 12}


@pytest.fixture(scope="module")
def expected(coast) -> str:
    """What the library itself answers."""
    return coast.model.generate(QUESTION, context=coast.select(QUESTION, budget=1024), max_new_tokens=12)


# ---- OpenAI's


def test_each_store_is_a_model(client):
    (found,) = client.models.list().data
    assert (found.id, found.object) == ("coast", "model")
    assert client.models.retrieve("coast").id == "coast"


def test_an_answer_is_that_of_the_library(client, coast, expected):
    answer = client.chat.completions.create(**ASKED)
    (choice,) = answer.choices
    assert choice.message.content == expected
    assert (choice.message.role, answer.model, answer.object) == ("assistant", "coast", "chat.completion")
    entries = coast.select(QUESTION, budget=1024).kv_entries
    usage = answer.usage
    assert usage.prompt_tokens_details.cached_tokens == entries
    assert usage.prompt_tokens > entries
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert 0 < usage.completion_tokens <= 12


def test_a_stream_says_the_same_and_ends_with_what_it_took(client, expected):
    chunks = list(client.chat.completions.create(**ASKED, stream=True, stream_options={"include_usage": True}))
    *said, usage = chunks
    assert "".join(chunk.choices[0].delta.content or "" for chunk in said) == expected
    assert said[0].choices[0].delta.role == "assistant"
    assert said[-1].choices[0].finish_reason in ("stop", "length")
    assert usage.choices == [] and usage.usage.prompt_tokens_details.cached_tokens > 0
    assert {chunk.id for chunk in chunks} == {usage.id}


def test_a_stream_comes_piece_by_piece(client):
    pieces = [c.choices[0].delta.content for c in client.chat.completions.create(**ASKED, stream=True)]
    assert len([piece for piece in pieces if piece]) > 1


async def test_the_client_for_event_loops(served, expected):
    async with openai.AsyncOpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        stream = await client.chat.completions.create(**ASKED, stream=True)
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream]) == expected


def test_text_completions_stream_and_not(client, expected):
    asked = {"model": "coast", "prompt": QUESTION, "max_tokens": 12}
    answer = client.completions.create(**asked)
    assert answer.choices[0].text == expected
    assert answer.usage.prompt_tokens_details.cached_tokens > 0
    assert "".join(chunk.choices[0].text for chunk in client.completions.create(**asked, stream=True)) == expected


def test_what_the_protocol_has_no_word_for(client, coast):
    def took(**extra):
        return client.chat.completions.create(**ASKED, extra_body=extra).usage.prompt_tokens_details.cached_tokens

    assert took(context=False) == 0
    assert 0 < took(budget=32) <= 32
    assert took(filters={"tower": True}) == coast.select(QUESTION, filters={"tower": True}, budget=1024).kv_entries
    assert took(doc_ids=["coast/ferry.md"]) == coast.select(QUESTION, doc_ids=["coast/ferry.md"]).kv_entries
    assert took(ratio=4) == coast.select(QUESTION, ratio=4).kv_entries


def test_stop_strings_and_the_limit_end_an_answer(client, expected):
    stop = expected[len(expected) // 2 :][:3]
    ended = client.chat.completions.create(**ASKED, stop=[stop]).choices[0]
    assert (ended.message.content, ended.finish_reason) == (expected[: expected.index(stop)], "stop")
    short = client.chat.completions.create(**{**ASKED, "max_tokens": 1})
    assert short.choices[0].finish_reason == "length" and short.usage.completion_tokens == 1
    named = client.chat.completions.create(model="coast", messages=ASKED["messages"], max_completion_tokens=1)
    assert named.usage.completion_tokens == 1


def test_a_seed_repeats_what_is_sampled(client):
    def sample(seed):
        answer = client.chat.completions.create(**ASKED, seed=seed, temperature=1.5, top_p=0.99)
        return answer.choices[0].message.content

    assert sample(1) == sample(1)
    assert len({sample(seed) for seed in range(1, 6)}) > 1


def test_an_answer_follows_a_schema(client):
    schema = {"type": "object", "properties": {"sails": {"type": "boolean"}}, "required": ["sails"]}
    form = {"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}
    answer = client.chat.completions.create(**{**ASKED, "max_tokens": 40}, response_format=form)
    assert json.loads(answer.choices[0].message.content)["sails"] in (True, False)


def test_a_history_is_read(client, coast):
    history = [
        {"role": "system", "content": "Answer in one word."},
        {"role": "user", "content": "Where do boots go?"},
        {"role": "assistant", "content": "The porch."},
        {"role": "user", "content": [{"type": "text", "text": QUESTION}]},
    ]
    plain = [*history[:-1], {"role": "user", "content": QUESTION}]
    want = coast.model.generate(plain, context=coast.select(QUESTION, budget=1024), max_new_tokens=12)
    answer = client.chat.completions.create(**{**ASKED, "messages": history})
    assert answer.choices[0].message.content == want


# ---- LlamaIndex's and LangChain's


@pytest.fixture
def openai_like(served):
    whereto = {"model": "coast", "api_base": f"{served.url}/v1", "api_key": "none", "max_retries": 0}
    return OpenAILike(**whereto, is_chat_model=True, max_tokens=12, temperature=0)


def test_llamaindex_asks_stream_and_not(openai_like, expected):
    messages = [ChatMessage(role="user", content=QUESTION)]
    assert openai_like.chat(messages).message.content == expected
    assert "".join(piece.delta or "" for piece in openai_like.stream_chat(messages)) == expected
    assert openai_like.complete(QUESTION).text == expected


@pytest.fixture
def chat_openai(served):
    return ChatOpenAI(model="coast", base_url=f"{served.url}/v1", api_key="none", max_tokens=12, max_retries=0)


def test_langchain_asks_stream_and_not(chat_openai, expected):
    answer = chat_openai.invoke(QUESTION)
    assert answer.content == expected
    assert answer.usage_metadata["input_token_details"]["cache_read"] > 0
    assert "".join(chunk.content for chunk in chat_openai.stream(QUESTION)) == expected
    turns = [SystemMessage("Be brief."), HumanMessage("Hello."), AIMessage("Hello!"), HumanMessage(QUESTION)]
    assert chat_openai.invoke(turns).content


def test_tools_are_refused_by_name(chat_openai):
    def weather(place: str) -> str:
        """How the weather is."""

    with pytest.raises(openai.BadRequestError, match="tools: is not served here"):
        chat_openai.bind_tools([weather]).invoke(QUESTION)


# ---- conversations


def test_a_conversation_is_remembered_by_its_id(make_coast, serving):
    store = make_coast()
    with serving({"coast": store}) as running:
        client = running.client()

        def say(text, **extra):
            messages = [{"role": "user", "content": text}]
            asked = {"model": "coast", "messages": messages, "max_tokens": 8}
            return client.chat.completions.create(**asked, extra_body={"conversation": "a/b", **extra})

        first = say("My goat is called Balthazar.")
        second = say(QUESTION)
        kept = store.conversation("a/b").messages()
        assert [turn["role"] for turn in kept] == ["user", "assistant"] * 2
        assert kept[1]["content"] == first.choices[0].message.content
        # the second answer read the first exchange
        assert second.usage.prompt_tokens - second.usage.prompt_tokens_details.cached_tokens > (
            first.usage.prompt_tokens - first.usage.prompt_tokens_details.cached_tokens
        )
        with pytest.raises(openai.BadRequestError, match="send the user's new message alone"):
            client.chat.completions.create(
                model="coast", messages=[*ASKED["messages"], *ASKED["messages"]], extra_body={"conversation": "a/b"}
            )
        assert len(store.conversation("a/b").messages()) == 4


def test_a_long_conversation_is_read_beside_the_documents(make_coast, serving):
    store = make_coast()
    memory = store.conversation("long")
    for number in range(60):
        memory.append("user", f"In the year {number} the captain of the ferry had a dog called Rex the {number}th.")
        memory.append("assistant", "I will remember the captain, the ferry and the dog.")
    with serving({"coast": store}) as running:
        extra = {"conversation": "long", "seen": True, "budget": 256}
        answer = running.client().chat.completions.create(**{**ASKED, "max_tokens": 4}, extra_body=extra)
        cited = [note.model_dump()["file_citation"]["file_id"] for note in answer.choices[0].message.annotations]
        assert "coast/ferry.md" in cited and set(cited) <= {"coast/ferry.md", "coast/lighthouse.md"}
        assert {one["file_id"] for one in answer.model_dump()["seen"]} >= set(cited)


def test_citations_are_what_the_answer_leans_on_or_all_that_was_shown(client, coast):
    def cited(**extra):
        answer = client.chat.completions.create(**ASKED, extra_body=extra)
        return [note["file_citation"] for note in answer.choices[0].message.model_dump()["annotations"]]

    shown, leaned_on = cited(citations="shown"), cited()
    assert {one["attention"] for one in shown} == {None}
    paid = [one["attention"] for one in leaned_on]
    assert paid == sorted(paid, reverse=True) and 0 < paid[-1] <= paid[0] <= 1 and paid[-1] >= paid[0] / 2 - 1e-4
    assert all(any(one["quote"] in other["quote"] for other in shown) for one in leaned_on)
    for one in [*shown, *leaned_on]:
        assert coast.get(one["file_id"]).text[one["start"] : one["end"]] == one["quote"]
    streamed = client.chat.completions.create(**ASKED, stream=True)
    assert list(streamed)[-1].choices[0].delta.model_dump()["annotations"][0]["file_citation"] == leaned_on[0]
    # grains whose attention is not watched
    assert {one["attention"] for one in cited(ratio=4)} == {None}
